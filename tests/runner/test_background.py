"""Promise: workers in the background come before or after their jobs, and survive a logout."""
import os
import shlex
import signal
import termios
from typing import Any

from tests.support.over_tcp import OverTcp, ordinarily
from tests.support.processes import DEADLINE, Ended, alive, wait_until
from tests.support.runs import WAITING, RunCase
from tests.support.scripts import FULL, RUNMAKER, RUNSERVER, RUNSET
from tests.support.terminal import Terminal, TerminalCase

TIME = rb"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[-+]\d{4} "


class BackgroundCase(RunCase):

    def assertInBackground(self, ended: Ended, messages: str) -> None:
        """A starter has said who runs now, how that is stopped, and where messages go; and nothing else."""
        self.assertEqual((ended.code, ended.out), (0, b""))
        self.assertRegex(
            ended.err,
            rb"\A\S+: \S+: process (\d+) \(kill \1 stops it, kill -USR1 \1 lets running jobs "
            rb"finish\); messages go %b\n\Z" % messages.encode(),
        )


class WorkerCase(BackgroundCase):

    def hire(self, *options: object, number: int = 1) -> int:
        """Start a worker that waits for jobs; its pid."""
        ended = self.run_jobs("-d", "--follow", "--pidfile", f"pid.{number}", "--errors", "errors", *options)
        self.assertInBackground(ended, "to errors")
        pid = int(self.read(f"pid.{number}"))           # it is there when the command returns
        self.assertTrue(alive(pid))
        return pid

    def change(self, *words: object) -> None:
        ended = self.run_script(RUNSET, "-q", *words)
        self.assertEqual((ended.code, ended.err), (0, b""), words)

    def wait_gone(self, *pids: int) -> None:
        wait_until(lambda: not any(map(alive, pids)), what="the workers have left")
        self.assertNotIn(b"Traceback", self.read("errors"))
        self.assertEqual(list(self.dir.glob("pid.*")), [])


class OfAContainer(RunCase):
    """All processes end with process 1 of a PID namespace, so it cannot go into the background."""

    def test_the_first_process_is_refused_and_another_is_not(self) -> None:
        box = "unshare", "-r", "--pid", "--fork", "--mount-proc"
        probe = self.run_script(*box, "true")
        if probe.code:
            self.skipTest(f"no PID namespace (unshare --pid): {probe.err.decode()}")
        self.jobs("true")
        for script in RUNMAKER, RUNSERVER:
            self.assertRefused(self.run_script(*box, *self.command(script, "-d", "runs.txt")), "leave out -d")
        self.assertEqual(self.states(), ".")
        wait = "until grep -q ^d runs.txt; do sleep 0.1; done"
        ended = self.run_script(*box, "sh", "-c", f'"$@" && {wait}', "sh",
                                *self.command(RUNMAKER, "-d", "runs.txt"))
        self.assertEqual((ended.code, self.states()), (0, "d"), ended.err)


class HiredAndFired(WorkerCase):
    """Workers come before the jobs or after them, go when they are told to, and say what is wrong at once."""

    def test_a_worker_waits_for_the_file_and_for_what_is_added_to_it(self) -> None:
        worker = self.hire("-j4")
        self.assertFalse(self.exists("runs.txt"))
        self.change("runs.txt", "--add", "echo a >a", "echo b >b", "false")
        self.wait_states("dd!")
        self.change("runs.txt", "--add", "echo c >c")
        self.wait_states("dd!d")
        self.assertTrue(alive(worker))
        self.change("runs.txt", "--add", "#RUN end")
        self.wait_gone(worker)
        said = self.read("errors").splitlines()
        self.assertRegex(said[0], TIME + b"runmaker4.py: runs.txt: process %d, -j4 on runs.txt$" % worker)
        self.assertRegex(said[-2], TIME + b"runmaker4.py: runs.txt: 3 done, 1 failed")

    def test_quiet_starts_of_cron_add_only_the_closing_line(self) -> None:
        self.write("d true\n")
        for _ in range(3):
            self.run_script(RUNMAKER, "-q", "--errors", "errors", "runs.txt")
        said = self.read("errors").splitlines()
        self.assertEqual([line.rpartition(b": ")[2] for line in said], [b"nothing to do"] * 3)

    def test_the_messages_go_on_in_a_new_file_once_the_old_one_is_renamed(self) -> None:
        worker = self.hire()
        wait_until(lambda: b"waiting for it" in self.read("errors"), what="the first messages are written")
        os.rename(self.dir / "errors", self.dir / "errors.1")
        self.change("runs.txt", "--add", "true")
        self.wait_states("d")
        os.kill(worker, signal.SIGUSR1)
        self.wait_gone(worker)
        self.assertEqual((self.read("errors.1") + self.read("errors")).count(b"1 done in"), 1)
        for line in self.read("errors").splitlines():
            self.assertRegex(line, TIME + rb"runmaker4\.py: runs\.txt: (SIGUSR1: |1 done in )")

    def test_a_file_of_plain_commands_that_comes_late_is_named(self) -> None:
        worker = self.hire()
        self.write("touch never\n")
        wait_until(lambda: b"line 1 is neither a job nor a comment" in self.read("errors"), what="it is said")
        self.assertTrue(alive(worker))

    def check_named(self, said: str, *, late: bool) -> None:
        """A file that is empty at first, before the worker comes or after, gets its text."""
        if not late:
            self.write("")
        with open(self.dir / said, "wb") as stderr:
            worker = self.start_looking("--follow", "runs.txt", stderr=stderr)
        if late:
            wait_until(lambda: b"waiting for it" in self.read(said), what="it waits")
            self.write("")
        self.wait_looked()
        self.write("touch never\n")
        wait_until(lambda: b"line 1 is neither a job nor a comment" in self.read(said), what="it is said")
        self.wait_looked()
        self.assertEqual(self.read(said).count(b"is neither"), 1)
        self.stop(worker, signal.SIGHUP)
        (self.dir / "runs.txt").unlink()

    def test_it_is_named_once_if_the_file_is_empty_at_first(self) -> None:
        """As a shell makes it, before the program whose output goes to it has written any."""
        self.check_named("said.1", late=False)
        self.check_named("said.2", late=True)

    def test_jobs_below_the_end_wait_until_it_is_taken_back(self) -> None:
        self.write(f". {WAITING}\n")
        first = self.hire()
        self.wait_up(1)
        self.change("runs.txt", "--add", "#RUN end")
        added = self.run_script(RUNSET, "runs.txt", "--add", "touch below")
        self.assertEqual(added.code, 0)
        self.assertIn(b"line 2 is a #RUN end; --follow runners do not run the jobs below it", added.err)
        self.open_gate()
        self.wait_gone(first)
        self.assertEqual(self.states(), "d.")
        # it holds for those that come later, too
        late = self.run_script(RUNMAKER, "--follow", "runs.txt")
        self.assertEqual((late.code, late.out), (0, b""))
        self.assertEqual(self.states(), "d.")
        editing = self.run_script(RUNSET, "-q", "--edit", "runs.txt", env={"EDITOR": "sed -i '/^#RUN end/d'"})
        self.assertEqual((editing.code, editing.err), (0, b""))
        second = self.hire()
        self.wait_states("dd")
        self.assertTrue(alive(second))
        os.kill(second, signal.SIGHUP)
        self.wait_gone(second)

    def test_the_pid_file_of_a_process_that_lives_is_refused(self) -> None:
        self.write(f". {WAITING}\n")
        first = self.hire()
        self.wait_up(1)
        os.kill(first, signal.SIGHUP)
        call = "-d", "--follow", "--pidfile", "pid.1", "--errors", "errors", "runs.txt"
        # so one name keeps slots, such as GPUs, for one runner, whatever its job file is
        self.write(". touch never\n", "other.txt")
        for words in call, ("--slots", "0,1", "--pidfile", "pid.1", "other.txt"):
            ended = self.run_script(RUNMAKER, *words)
            self.assertRefused(ended, f"pid.1: is the pid file of process {first}, which lives (")
        self.assertFalse((self.dir / "never").exists())
        self.assertEqual(int(self.read("pid.1")), first)
        # its name is taken from it: the file that comes in its place is its successor's
        (self.dir / "pid.1").unlink()
        self.assertEqual(self.run_script(RUNMAKER, *call).code, 0)
        second = int(self.read("pid.1"))
        self.open_gate()
        wait_until(lambda: not alive(first), what="the first worker has left")
        self.assertEqual((int(self.read("pid.1")), self.states()), (second, "d"))
        os.kill(second, signal.SIGHUP)
        self.wait_gone(second)

    def test_a_worker_that_waits_for_the_file_heeds_signals(self) -> None:
        workers = [self.hire(number=number) for number in (1, 2)]
        for worker, number in zip(workers, (signal.SIGTERM, signal.SIGHUP)):
            os.kill(worker, number)
        self.wait_gone(*workers)

    def test_a_failed_start_is_reported(self) -> None:
        self.write(". touch never\n")
        (self.dir / "folder").mkdir()
        cases = ["missing.txt", "--follow folder", "--follow --slots @missing runs.txt", "--follow wrong.txt"]
        if FULL:
            cases += ["-j x runs.txt", "--follow -l folder runs.txt", "--follow --outdir runs.txt runs.txt",
                      "--jobs=2 --slots a runs.txt", "--errors missing/errors runs.txt",
                      "--follow --pidfile missing/pid runs.txt"]
        calls = [(RUNMAKER, "-d", "--pidfile", "pid", *words.split()) for words in cases]
        calls += [(RUNMAKER, "-d", "--pidfile", "pid", "--errors", "errors", *words.split())
                  for words in ("missing.txt", "--outdir runs.txt runs.txt", "-j x runs.txt")]
        self.write("#RUN hots=alice\n. touch never\n", "wrong.txt")
        for call, ended in self.run_all(calls):
            with self.subTest(call=call):
                self.assertRefused(ended)
        self.assertFalse(self.exists("pid"))
        self.assertNobodyLeft()
        self.assertEqual(self.states(), ".")


class LoggedOut(TerminalCase, WorkerCase):
    """The terminal hangs up: a worker in the background goes on, and prints nothing there."""

    def test_a_worker_in_the_background_goes_on(self) -> None:
        self.jobs(f"echo said; echo cried >&2; {WAITING}; echo more", "echo second; exit 3", "true")
        terminal = Terminal(500)
        settings = termios.tcgetattr(terminal.slave)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(terminal.slave, termios.TCSANOW, settings)
        shell = self.start_at(terminal, "sh", "-i", PS1="> ", ENV="")
        records = ("--pidfile", "pid.1", "--errors", "errors", "--outdir", "out", "-l", "log")
        call = self.command(RUNMAKER, "-d", *records, "runs.txt")
        os.write(terminal.master, f"{shlex.join(call)}\n".encode())
        self.wait_up(1)
        worker = int(self.read("pid.1"))
        wait_until(lambda: len(terminal.look()) == 2, what="the shell waits for another line")
        self.assertRegex(terminal.screen.lines()[0], f"process {worker} ")
        self.assertNotEqual(os.getsid(worker), shell.pid)
        terminal.close()
        shell.wait(timeout=DEADLINE)
        self.open_gate()
        self.wait_gone(worker)
        self.assertEqual(self.states(), "d!d")
        self.assertEqual((self.read("out/1.out"), self.read("out/1.err")), (b"said\nmore\n", b"cried\n"))
        self.assertIn(b"second", self.read("log"))
        self.assertIn(b"runmaker4.py: runs.txt: 2 done, 1 failed", self.read("errors"))


class Background(BackgroundCase):
    """-d: start-up errors come first, then the runner leaves the terminal and goes on."""

    def start_daemon(self, **settings: Any) -> int:
        """Start a runner with -d whose first job waits at the gate; its pid."""
        ended = self.run_jobs("-d", "--pidfile", "pid", "--errors", "errors", **settings)
        self.assertInBackground(ended, "to errors")
        pid = int(self.wait_file("pid"))
        self.wait_up(1)
        self.assertTrue(alive(pid))
        return pid

    def test_with_plain_it_is_refused(self) -> None:
        self.jobs("touch never")
        self.assertRefused(self.run_jobs("-d", "--plain"), "--plain", "runwait4.py --show")
        self.assertEqual(self.states(), ".")

    def wait_gone(self, pid: int) -> None:
        wait_until(lambda: not alive(pid), what="the runner in the background has ended")
        self.assertNobodyLeft()
        self.assertOnlyStatesChanged()

    def test_it_holds_the_lines_of_its_jobs_and_runs_in_the_same_directory(self) -> None:
        """Nothing comes on stdout, though that is a file."""
        self.jobs(f"echo said; {WAITING}; pwd -P > where; echo said", "true")
        with open(self.dir / "printed", "wb") as printed:
            pid = self.start_daemon(stdout=printed)
        self.assertEqual(self.run_script(RUNSET, "--set=.", "runs.txt", "1").code, 1)
        self.open_gate()
        self.wait_gone(pid)
        self.assertEqual((self.states(), self.read("where").decode().strip()), ("dd", str(self.dir)))
        self.assertEqual(self.read("printed"), b"")

    def test_a_caller_that_reads_its_pipes_to_their_end_is_not_kept_waiting(self) -> None:
        """As ssh does, and the shell's $(...)."""
        self.jobs(WAITING)
        ended = self.finish(self.start(RUNMAKER, "-d", "--pidfile", "pid", "runs.txt"), 20)
        self.assertInBackground(ended, "nowhere \\(see --errors\\)")
        pid = int(self.wait_file("pid"))
        self.open_gate()
        self.wait_gone(pid)
        self.assertEqual(self.states(), "d")


@ordinarily()
class BackgroundOverTcp(OverTcp, Background):
    """-d: the client goes on in the background."""

    def test_the_errors_file_has_what_the_client_says(self) -> None:
        self.jobs(f"{WAITING}; exit 1", "true")
        pid = self.start_daemon()
        self.open_gate()
        self.wait_gone(pid)
        said, = self.read("errors").splitlines()[2:]    # after its process, and which file it is
        self.assertRegex(said, TIME + rb"runmaker4-client\.py: 127\.0\.0\.1: 1 done, 1 failed in ")

    def test_a_wrong_token_is_reported_before_it_goes_into_the_background(self) -> None:
        self.jobs("touch never")
        ended = self.run_jobs("-d", "--pidfile", "pid", "--errors", "errors", "--token", "0" * 32)
        self.assertRefused(ended, "token")
        self.assertFalse(self.exists("pid"))
        self.assertEqual(self.states(), ".")
