"""LossCase: a server, a client of the name bob, jobs that wait at the gate, and ways to lose each of them."""
import json
import signal
from collections.abc import Sequence
from typing import Any

from tests.support.case import GATE
from tests.support.line_locks import locked_lines
from tests.support.process_table import process_table, send
from tests.support.processes import wait_until
from tests.support.proxy import Proxy
from tests.support.runs import UP
from tests.support.scripts import RUNCLIENT, RUNMAKER, RUNSERVER
from tests.support.tcp import Program, Server, TcpCase
from tests.support.tcp_patches import EAGER

JOB = f"echo $$ >>pids.$JOB_ID; {UP}; {GATE}"           # notes its pid and runs until open_gate() is called
LATER = JOB.replace("-e go", "-e go.2")                 # one that runs on when others have ended
LONG = 600.0                                            # a grace that no test waits for


class LossCase(TcpCase):
    """Helpers: a server, a client of the name bob, jobs that wait at the gate; ways to lose each of them."""
    # statements that servers and clients run before they start
    PATCH = EAGER

    def start_program(self, script: str, *args: object, patch: str = "", **settings: Any) -> Program:
        if script in (RUNSERVER, RUNCLIENT):
            patch = self.PATCH + patch
        return super().start_program(script, *args, patch=patch, **settings)

    def serve(self, *commands: str, grace: float = LONG, **settings: Any) -> Server:
        """Make runs.txt of these commands, and start a server with a job log on it."""
        self.jobs(*commands)
        return self.serve_again(grace=grace, **settings)

    def serve_again(self, port: int = 0, grace: float = LONG, **settings: Any) -> Server:
        return self.start_server("--grace", grace, "--joblog", "joblog", "--outdir", "out", "--port", port,
                                 **settings)

    def connect(self, server: Server, *options: object, up: Sequence[int] = (1,), name: str = "bob",
                **settings: Any) -> Program:
        """Start a client; return it when the jobs of these lines run, as its server knows."""
        client = self.start_client(server, "--name", name, *options, up=up, **settings)
        if up:
            wait_until(lambda: self.started_lines(name).issuperset(up), what="the server knows it")
        return client

    def serve_bob(self, *commands: str, up: Sequence[int] = (1,),
                  grace: float = LONG) -> tuple[Server, Program]:
        """A server of these jobs, and bob, who runs those of some lines."""
        server = self.serve(*commands, grace=grace)
        return server, self.connect(server, f"-j{len(up)}", up=up)

    def started_lines(self, name: str) -> set[int]:
        """The lines whose jobs a client of this name has started, by the server's journal."""
        if not self.exists("out/journal"):
            return set()
        entries = [json.loads(line) for line in self.read("out/journal").split(b"\n")[:-1]]
        return {entry["line"] for entry in entries if entry["event"] == "start" and entry["host"] == name}

    def connect_by_proxy(self, server: Server, *options: object,
                         up: Sequence[int] = (1,)) -> tuple[Proxy, Program]:
        """Start a client whose connections go through a proxy; both, when its jobs run."""
        proxy = Proxy(server.port)
        self.addCleanup(proxy.close)
        return proxy, self.connect(server, "--port", proxy.port, *options, up=up)

    def pids(self, line: int = 1) -> list[int]:
        name = f"pids.{line}"
        return [int(pid) for pid in self.read(name).split()] if self.exists(name) else []

    def wait_runs(self, count: int, line: int = 1) -> None:
        wait_until(lambda: len(self.pids(line)) == count, what=f"line {line} has been started {count} times")

    def end_jobs(self, client: Program, count: int = 1) -> None:
        """Let the jobs that wait at the GATE end, and wait until so many have, as the client knows itself."""
        self.open_gate()
        wait_until(lambda: client.out.count(b"): exit ") >= count, what="the client has seen its jobs end")

    def logged(self) -> list[int]:
        """The lines of the runs in the server's job log, in order of numbers."""
        return sorted(int(line.split(b"\t")[0]) for line in self.read("joblog").splitlines()[1:])

    def kill_jobs(self, client: Program) -> None:
        """kill -9 a client with its jobs, each of which is a session of its own."""
        jobs = [pid for pid, (_, parent) in process_table().items() if parent == client.pid]
        client.kill()
        send(signal.SIGKILL, [-pid for pid in jobs])

    def assert_held(self, *lines: int) -> None:
        """The file says that these lines, and no others, are running, and somebody has them locked."""
        states = self.states()
        self.assertEqual([line for line in range(1, len(states) + 1) if states[line - 1] == "r"], list(lines))
        # a lock is freed a moment after the result is written
        wait_until(lambda: locked_lines(self) == list(lines), what=f"only the lines {lines} are locked")

    def assert_nothing_for_others(self, unsupervised: bool = False) -> None:
        """A runner on the file, that takes what dead runners left behind, finds nothing to do.

        unsupervised: it finds no server there whose jobs these are.
        """
        ended = self.run_script(RUNMAKER, "--resume", "runs.txt")
        self.assertEqual((ended.code, ended.out), (int(unsupervised), b""), ended.err)
        self.assertEqual(b"nothing done" in ended.err, unsupervised, ended.err)

    def assert_each_ran_once(self, client: Program, states: str) -> None:
        """The client ends well, with these states; every job ran once and is once in the job log."""
        self.assertClientEnded(self.finish(client), 0, states)
        lines = list(range(1, len(states) + 1))
        self.assertEqual(([len(self.pids(line)) for line in lines], self.logged()), ([1] * len(lines), lines))

    def assert_second_ran_on(self, client: Program) -> None:
        """The result of line 1 arrives; line 2 is held until it ends, too."""
        self.wait_states("dr")
        self.assert_held(2)
        self.write("", "go.2")
        self.assert_each_ran_once(client, "dd")
