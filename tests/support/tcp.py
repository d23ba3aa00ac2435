"""What the tests of TCP share: servers and clients as real processes, and what they say, collected in files.

The home directory of both is the test's directory, so a client finds the token that its server has written
there.
"""
import itertools
import os
import pathlib
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional, Protocol

from tests.support.ports import free_port
from tests.support.process_table import process_table
from tests.support.processes import DEADLINE, MARK, Ended, marked, wait_until
from tests.support.runs import RunCase
from tests.support.scripts import RUNCLIENT, RUNSERVER, program_of
from tests.support.values import as_bytes, present

# ... and that with which a server waits for long until the keeper of a dead one answers
PATIENT = f"\n__import__('runmaker4-server').KeeperLink.MAX_EXIT_SECONDS = {int(DEADLINE)}\n"
TOKEN_LINE = re.compile(rb"Token for runmaker4-client\.py: \(shown on a terminal only\) "
                        rb"\(written to (.*)\)\n")
# a client's first line
SERVING = re.compile(rb"^runmaker4-client\.py: \S+: serving [^\n]*\n", re.MULTILINE)
PORT_LINE = re.compile(rb": serving on port (\d+)")
# what a server says when a client comes and goes
CLIENT_NEWS = re.compile(rb"^runmaker4-server\.py: \S+: client (.*) \(\S+\) (came|left|is lost)\b",
                         re.MULTILINE)


@dataclass
class Program:
    """A server or client that was started.  What it prints goes to files, so it never waits for a reader."""
    process: subprocess.Popen[bytes]
    files: tuple[pathlib.Path, pathlib.Path]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> Optional[int]:
        return self.process.returncode

    @property
    def out(self) -> bytes:
        return self.files[0].read_bytes()

    @property
    def err(self) -> bytes:
        return self.files[1].read_bytes()

    def poll(self) -> Optional[int]:
        return self.process.poll()

    def wait(self, timeout: Optional[float] = None) -> int:
        return self.process.wait(timeout)

    def communicate(self, timeout: Optional[float] = None) -> tuple[bytes, bytes]:
        """Wait for its end; all that it printed."""
        self.process.wait(timeout)
        return self.out, self.err

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait()


class Listening(Protocol):
    """Where a client can connect to: a server, what stands in for one, or what stands before one."""
    port: int


@dataclass
class Server(Program):
    """A server that is ready for its clients."""
    port: int = 0
    token: str = ""


class TcpCase(RunCase):
    """A test with servers and clients, on the loopback unless it says otherwise."""
    HOST = "127.0.0.1"

    def setUp(self) -> None:
        super().setUp()
        self.programs: list[Program] = []
        self.numbers = itertools.count(1)
        (self.dir / "said").mkdir()

    def tearDown(self) -> None:
        for program in self.programs:
            self.assertNotIn(b"Traceback", program.err)
        super().tearDown()

    def environ(self, extra: Optional[dict[str, str]] = None) -> dict[str, str]:
        return super().environ({"HOME": str(self.dir), **(extra or {})})

    # -- starting -------------------------------------------------------------------------------------------

    def start_program(self, script: str, *args: object, within: Sequence[str] = (), patch: str = "",
                      **settings: Any) -> Program:
        """Start a script whose output goes to files.

        within: a command to put before it, as `ip netns exec NAME`; patch: statements that are run before it,
        such as `import runmaker4; runmaker4.GRACE = 1`.
        """
        words = [*within, *(self.patched(patch, script, *args) if patch else self.command(script, *args))]
        kind, number = script.rpartition("-")[2].partition(".")[0], next(self.numbers)
        out, err = (self.dir / "said" / f"{number}-{kind}.{end}" for end in ("out", "err"))
        with open(out, "wb") as stdout, open(err, "wb") as stderr:
            settings.update(stdout=settings.get("stdout", stdout), stderr=settings.get("stderr", stderr))
            program = Program(self.start(*words, **settings), (out, err))
        self.programs.append(program)
        return program

    def patched(self, statements: str, script: str, *args: object) -> list[str]:
        """The argv of a script that runs in a Python that has run these statements before."""
        python, path, *words = self.command(script, *args)
        return [python, "-c", program_of(script, path, statements), *words]

    def start_server(self, *options: object, file: str = "runs.txt", **settings: Any) -> Server:
        """Start a server, on a free port of HOST unless options say otherwise; return it when it is ready."""
        words = [str(option) for option in options]
        for option, value in ("--port", "0"), ("--host", self.HOST):
            if not any(word.split("=")[0] == option for word in words):
                words += [option, value]
        port = words.index("--port") + 1
        if words[port] == "0":                  # nobody else gets it before the next server does
            words[port] = str(free_port())
        else:                                   # this is the next
            settings["patch"] = settings.get("patch", "") + PATIENT
        program = self.start_program(RUNSERVER, *words, file, **settings)

        def is_ready() -> bool:
            return bool(TOKEN_LINE.match(program.out) and PORT_LINE.search(program.err))

        wait_until(lambda: is_ready() or program.poll() is not None, what="the server serves")
        written, serving = TOKEN_LINE.match(program.out), PORT_LINE.search(program.err)
        if not written or not serving:
            self.fail(f"the server is not ready: {program.out!r} {program.err!r}")
        token = pathlib.Path(os.fsdecode(written[1])).read_text().strip()
        return Server(program.process, program.files, int(serving[1]), token)

    def as_server(self, program: Program, token: str = "") -> Server:
        """A server whose stdout is not the file of its program, once it serves."""
        port = PORT_LINE.search(self.wait_said(program, "serving on port"))
        return Server(program.process, program.files, int(present(port)[1]), token)

    def client_words(self, server: Listening, *options: object, host: str = "") -> tuple[object, ...]:
        """The arguments of a client of this server; host: another name of it."""
        return ("--port", server.port, *options, host or self.HOST)

    def start_client(self, server: Listening, *options: object, host: str = "", up: Sequence[int] = (),
                     **settings: Any) -> Program:
        """Start a client; return it when the jobs of these lines have made their up.LINE."""
        client = self.start_program(RUNCLIENT, *self.client_words(server, *options, host=host), **settings)
        self.wait_up(*up, runner=client)
        return client

    def run_client(self, server: Listening, *options: object, host: str = "", timeout: float = DEADLINE,
                   **settings: Any) -> Ended:
        return self.finish(self.start_client(server, *options, host=host, **settings), timeout)

    # -- looking --------------------------------------------------------------------------------------------

    def connected(self, server: Program) -> Counter[str]:
        """The names of the clients that are connected, as the server has said; how many have each."""
        names: Counter[str] = Counter()
        for name, what in CLIENT_NEWS.findall(server.err):
            names[os.fsdecode(name)] += 1 if what == b"came" else -1
        return names

    def wait_clients(self, server: Program, count: int) -> None:
        wait_until(lambda: sum(self.connected(server).values()) == count, what=f"{count} clients")

    def wait_said(self, program: Program, *words: str, timeout: float = DEADLINE) -> bytes:
        """Wait until a whole line of stderr has all these words (in any case); the line."""
        end = time.monotonic() + timeout
        while True:
            over = program.poll() is not None or time.monotonic() > end
            for line in program.err.split(b"\n")[:-1]:
                if all(as_bytes(word).lower() in line.lower() for word in words):
                    return line
            if over:
                self.fail(f"it did not say {words}: {program.err!r}")
            time.sleep(0.01)

    def keeper(self, server: Server) -> int:
        """The child of a server that survives it."""
        keeper, = (pid for pid, (state, parent) in process_table().items()
                   if parent == server.pid and state != "Z")
        return keeper

    def assertNoJobLeft(self) -> None:
        """No process of a job lives on; servers and clients may."""
        wait_until(lambda: not set(marked(f"{MARK}={self.mark}")) & set(marked("RUNMAKER4_JOB=")),
                   what="no job is left")

    def assertClientEnded(self, ended: Ended, code: int, states: str) -> None:
        """The client's exit status, the states (at once, or soon), only they changed, and no job lives on."""
        self.assertEqual(ended.code, code, ended.err.decode(errors="replace"))
        self.wait_states(states)
        self.assertOnlyStatesChanged()
        self.assertNoJobLeft()
