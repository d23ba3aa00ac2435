"""Promise: what breaks inside a program ends it with a message, and loses nothing.

Each test has something break.
"""

from tests.support.case import GATE
from tests.support.line_locks import locked_lines
from tests.support.processes import DEADLINE, wait_until
from tests.support.runs import HASTY, UP, WAITING, RunCase, hastened
from tests.support.scripts import RUNMAKER, RUNSERVER, RUNSET, RUNWAIT
from tests.support.tcp import Program, Server, TcpCase

# A method that raises from the moment on when a file is there
BREAK = """
import os, runmaker4
def breaking(function):
    def broken(*args, **more):
        if os.path.exists("break"):
            raise KeyError("broken on purpose")
        return function(*args, **more)
    return broken
"""
THREADED = "runmaker4.find_mount = lambda path: runmaker4.Mount('nfs4', frozenset())\n"
TO_BREAK = f"{UP}; until [ -e break ]; do sleep 0.02; done"
# No thread can be started once the file is there, as when the user's processes are used up
NO_THREAD = """
import os, threading
plain_start = threading.Thread.start
def start(thread):
    if os.path.exists("break"):
        raise RuntimeError("can't start new thread")
    plain_start(thread)
threading.Thread.start = start
"""
NO_FORK = """
import errno, os
def fork(*args, **named):
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
os.fork = fork
import subprocess
subprocess.Popen = fork
"""
SAID = b"KeyError: 'broken on purpose'"


def broken(name: str) -> str:
    """Statements by which a method of runmaker4.py breaks."""
    return f"{HASTY}{BREAK}runmaker4.{name} = breaking(runmaker4.{name})\n"


class OfARunner(RunCase):
    """The runner starts nothing more, lets what runs end, and exits with 1."""

    def check(self, statements: str, *options: object, states: str = "d.") -> None:
        """Something breaks while the first job runs, which ends after that."""
        self.jobs(*[WAITING] * len(states))
        self.start_breaking(statements, *options)
        self.assertEqual(self.states()[0], "r", "the job still runs")
        self.assertBroken(states)

    def start_breaking(self, statements: str, *options: object, up: tuple[int, ...] = (1,)) -> None:
        """Start a runner, and have it break while these jobs run."""
        with open(self.dir / "said", "wb") as said, open(self.dir / "console", "wb") as console:
            self.runner = self.start_patched(statements, *options, "runs.txt", stdout=console, stderr=said)
        self.wait_up(*up, runner=self.runner)
        if "-q" not in options:                 # a job may be up before its runner has said so
            wait_until(lambda: self.read("console").count(b"forked") == len(up), what="it says what runs")
        self.write("", "break")
        wait_until(lambda: SAID in self.read("said"), what="it says what broke")

    def assertBroken(self, states: str) -> None:
        """The jobs that run end; all is said, once; and nobody is left."""
        self.open_gate()
        self.assertEqual((self.runner.wait(DEADLINE), self.states(), locked_lines(self)), (1, states, []),
                         self.read("said"))
        lines = self.read("said").splitlines()
        self.assertIn(SAID, lines[0])
        self.assertIn(b"report this", lines[0])
        self.assertEqual(sum(b"Traceback" in line for line in lines), 1, lines)
        self.assertTrue(lines[-1].startswith(b"runmaker4.py: runs.txt: "), lines)
        self.assertNobodyLeft()

    def test_what_looks_after_running_jobs(self) -> None:
        self.check(broken("JobQueue.check_jobs"))

    def test_what_follows_the_slots(self) -> None:
        self.write("one\n", "names")
        self.check(broken("SlotFile.reload_names"), "--slots", "@names")

    def test_a_slot_that_looks_for_a_job(self) -> None:
        self.check(broken("Cursor.claim"), "-j2", states="d")

    def test_a_callback(self) -> None:
        """The output of a running job comes in; then nothing more does, but the job goes on."""
        self.jobs(f"{TO_BREAK}; echo a; {GATE}", "true")
        self.start_breaking(broken("Console.on_output"))
        self.assertBroken("d.")

    def test_where_files_are_in_a_thread(self) -> None:
        self.check(broken("JobQueue.check_jobs") + THREADED + hastened(1.0, 0.04))

    def test_what_a_record_is_written_with_in_a_thread(self) -> None:
        self.jobs(WAITING, TO_BREAK, GATE)
        self.start_breaking(broken("RecordFile._write_locked") + THREADED, "-q", "-j2", "--joblog", "joblog",
                            up=(1, 2))
        self.open_gate()
        self.assertEqual(self.runner.wait(DEADLINE), 1)
        self.assertEqual(self.states()[:2], "dd")
        self.assertNotIn("r", self.states())

    def test_a_claim_for_which_the_result_of_a_short_job_waits_on_nfs(self) -> None:
        self.jobs(*map(": {}".format, range(12)), "touch break", "true")
        with open(self.dir / "said", "wb") as said:
            runner = self.start_patched(broken("Cursor.claim") + THREADED, "-q", "runs.txt", stderr=said)
        self.assertEqual((runner.wait(DEADLINE), self.states()), (1, "d" * 13 + "."), self.read("said"))

    def test_a_job_whose_slot_breaks_is_ended(self) -> None:
        """Nobody would write down how it ends: its line is an orphan.  What runs on other slots goes on."""
        self.jobs(WAITING, TO_BREAK, f"{UP}; sleep 600", "true")
        self.start_breaking(broken("Console.on_started"), "-j2", up=(1, 2))
        self.assertBroken("ddr.")


class OfServerAndClient(TcpCase):
    """A server leaves as after a signal, and the next one goes on; a client tells how its jobs have ended."""

    def tearDown(self) -> None:
        self.programs.clear()                   # they have printed tracebacks
        super().tearDown()

    def check_server(self, statements: str) -> None:
        """A server breaks while a job runs, which the next server hears of."""
        self.jobs(WAITING, "true")
        first = self.start_server(patch=statements)
        client = self.start_client(first, "-q", up=[1])
        self.write("", "break")
        self.assertEnds(first)
        self.assertEqual(self.states(), "r.")
        self.assertEqual(locked_lines(self), [1], "the keeper has it")
        second = self.start_server("--port", first.port)
        self.wait_said(second, "took over 1 running job")
        self.open_gate()
        self.assertEqual(self.finish(client).code, 0)
        self.assertEqual(self.states(), "dd")
        self.stop(second)

    def assertEnds(self, program: Program) -> None:
        """It says what broke, once, and exits with 1."""
        wait_until(lambda: program.poll() is not None, what="it ends")
        self.assertEqual((program.returncode, program.err.count(SAID) > 0), (1, True), program.err)
        self.assertIn(b"Traceback", program.err)

    def test_what_a_server_looks_after(self) -> None:
        self.check_server(broken("JobQueue.check_jobs"))

    def test_a_servers_look_for_jobs_in_a_thread(self) -> None:
        self.check_server(broken("Cursor.claim") + THREADED)

    def start_breaking(self, statements: str) -> tuple[Server, Program]:
        """A server, and a client that breaks while its job runs."""
        self.jobs(WAITING, "true")
        server = self.start_server("--grace=0.5")
        client = self.start_client(server, patch=statements, up=[1])
        self.write("", "break")
        self.wait_said(client, "broken on purpose")
        return server, client

    def test_a_client_has_its_jobs_end(self) -> None:
        server, client = self.start_breaking(broken("Sink.on_tick"))
        self.open_gate()
        self.assertEnds(client)
        self.assertEqual(self.states(), "d.")
        self.stop(server)


class AtTheLimitOfProcesses(TcpCase):
    """A runner has all its threads before its first job starts; without them it starts none."""

    def test_a_job_that_prints_late_is_printed(self) -> None:
        self.jobs(": >break; echo late", "true")
        ended = self.finish(self.start_patched(NO_THREAD, "runs.txt"))
        self.assertEqual((ended.code, self.states()), (0, "dd"), ended.err)
        self.assertIn(b"late", ended.out)

    def test_it_is_refused_at_the_start(self) -> None:
        self.jobs("true")
        self.write("", "break")
        self.assertRefused(self.finish(self.start_patched(NO_THREAD, "runs.txt")),
                           "can't start new thread", "ulimit -u")
        self.assertEqual(self.states(), ".")

    def test_what_needs_another_process_says_so(self) -> None:
        self.jobs("true")
        for script, words, code, subject in (
            (RUNMAKER, ("-d", "runs.txt"), 2, "fork"),
            (RUNSERVER, ("--port=0", "runs.txt"), 2, "runs.txt: fork"),     # its keeper
            (RUNWAIT, ("--check-locks", "."), 2, "cat"),
            (RUNSET, ("--edit", "runs.txt"), 1, "runs.txt: the editor 'vi' failed"),
        ):
            with self.subTest(script):
                ended = self.finish(self.start_patched(
                    NO_FORK, *words, script=script, env={"EDITOR": "vi", "VISUAL": "vi"}))
                self.assertEqual(ended.code, code)
                self.assertTrue(ended.err.endswith(
                    f"{script}: {subject}: resource temporarily unavailable (too many processes: see "
                    "ulimit -u)\n".encode()), ended.err)
        self.assertEqual(self.states(), ".")

    def test_records_on_a_network_file_system_in_the_background(self) -> None:
        """What -d has forked starts its own threads."""
        self.jobs(": >break; echo late", "true")
        runner = self.start_patched(f"{NO_THREAD}import runmaker4\n{THREADED}", "-d", "--errors", "errors",
                                    "runs.txt")
        self.assertEqual(self.finish(runner).code, 0)
        self.wait_states("dd")
        self.assertNobodyLeft()

    def test_a_client(self) -> None:
        self.jobs(": >break; echo late", "true")
        server = self.start_server()
        ended = self.run_client(server, host="localhost", patch=NO_THREAD)
        self.assertEqual((ended.code, self.states()), (0, "dd"), ended.err)
