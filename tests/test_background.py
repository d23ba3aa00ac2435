"""Promise: workers in the background come before or after their jobs, are hired and fired, and survive a
logout.
"""
import fcntl
import os
import pathlib
import pty
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
import unittest

from tests.support import FULL, GATE, RUNMAKER, RUNSET, SLEEPING, UP, WAITING, RunCase, alive, wait_until

# A job script as people have them: reads its job file, and writes its log file.  The first four wait for each
# other.
JOB_SCRIPT = """
import configparser, os, pathlib, sys, time
job = configparser.ConfigParser()
job.read(sys.argv[1])
section = job["control"] if "control" in job else job["params"]
pathlib.Path("in." + os.environ["JOB_ID"]).touch()
end = time.monotonic() + 20
while len(list(pathlib.Path().glob("in.*"))) < 4 and time.monotonic() < end:
    time.sleep(0.01)
assert time.monotonic() < end, "there are no four workers"
pathlib.Path(section["logfile"]).write_text("done with " + job["params"]["my_param"])
"""
CONTROL = """[control]
executable: {python} ajob.py
logfile: logfiles/job{number}.dat

[params]
my_param: value{number}
"""
FJD = """; as fjd has it
[fjd]
executable: {python} ajob.py

[params]
logfile: logfiles/job{number}.dat
my_param: value{number}
"""


class FileExecutorCase(RunCase):
    """A test of runners in the background."""

    def hire(self, *options: object, number: int = 1, file: str = "runs.txt") -> int:
        """Start a worker that waits for jobs; its pid."""
        ended = self.run_script(
            RUNMAKER, "-d", "--follow", "--pidfile", f"pid.{number}", "--errors", "errors", *options, file
        )
        self.assertInBackground(ended, "to errors")
        pid = int(self.read(f"pid.{number}"))           # it is there when the command returns
        self.assertTrue(alive(pid))
        return pid

    def change(self, *words: object) -> None:
        """Have runset4.py do something to the job file."""
        ended = self.run_script(RUNSET, "-q", *words)
        self.assertEqual((ended.code, ended.err), (0, b""), words)

    def take_end_back(self) -> None:
        """Delete the #RUN end, as a person does."""
        editing = self.run_script(RUNSET, "-q", "--edit", "runs.txt", env={"EDITOR": "sed -i '/^#RUN end/d'"})
        self.assertEqual((editing.code, editing.err), (0, b""))

    def wait_gone(self, *pids: int) -> None:
        wait_until(lambda: not any(map(alive, pids)), what="the workers have left")
        self.assertNotIn(b"Traceback", self.read("errors"))
        self.assertEqual(list(self.dir.glob("pid.*")), [])

    def assertWaits(self, *pids: int) -> None:
        """The workers are still there after some looks at the file."""
        time.sleep(0.5)
        self.assertTrue(all(map(alive, pids)), self.read("errors"))


class HiredAndFired(FileExecutorCase):
    """Workers come before the jobs or after them, and go when they are told to."""

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
        self.assertTrue(said[-1].startswith(b"runmaker4.py: runs.txt: 3 done, 1 failed"), said)

    def test_a_file_of_plain_commands_that_comes_late_is_named(self) -> None:
        worker = self.hire()
        self.write("touch never\n")
        wait_until(lambda: b"line 1 is neither a job nor a comment" in self.read("errors"), what="it is said")
        self.assertTrue(alive(worker))

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
        self.take_end_back()
        second = self.hire()
        self.wait_states("dd")
        self.assertTrue(alive(second))
        os.kill(second, signal.SIGHUP)
        self.wait_gone(second)

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_all_workers_leave_at_the_end_when_their_jobs_are_done(self) -> None:
        self.write(f". {WAITING}\n. {WAITING}\n")
        workers = [self.hire(number=number) for number in (1, 2, 3)]
        self.wait_up(1, 2)
        self.change("runs.txt", "--add", "#RUN end")
        wait_until(lambda: sum(map(alive, workers)) == 2, what="the worker without a job has left")
        self.open_gate()
        self.wait_gone(*workers)
        self.assertEqual(self.states(), "dd")

    def test_the_pid_file_of_a_process_that_lives_is_refused(self) -> None:
        self.write(f". {WAITING}\n")
        first = self.hire()
        self.wait_up(1)
        os.kill(first, signal.SIGHUP)
        call = "-d", "--follow", "--pidfile", "pid.1", "--errors", "errors", "runs.txt"
        ended = self.run_script(RUNMAKER, *call)
        self.assertRefused(ended, f"pid.1: is the pid file of process {first}, which lives (")
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

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_an_end_that_is_taken_back_while_jobs_run_ends_nobody(self) -> None:
        self.write(f". {WAITING}\n")
        worker = self.hire()
        self.wait_up(1)
        self.change("runs.txt", "--add", "#RUN end")
        time.sleep(1)
        self.take_end_back()
        time.sleep(1)
        self.open_gate()
        self.wait_states("d")
        self.assertWaits(worker)
        self.change("runs.txt", "--add", "true")
        self.wait_states("dd")
        os.kill(worker, signal.SIGTERM)
        self.wait_gone(worker)

    def test_a_worker_that_waits_for_the_file_heeds_signals(self) -> None:
        workers = [self.hire(number=number) for number in (1, 2)]
        for worker, number in zip(workers, (signal.SIGTERM, signal.SIGHUP)):
            os.kill(worker, number)
        self.wait_gone(*workers)

    def test_a_worker_that_is_fired_with_term_ends_its_job(self) -> None:
        self.write(f". {SLEEPING}\n. touch never\n")
        worker = self.hire("--outdir", "out")
        self.wait_up(1)
        os.kill(worker, signal.SIGTERM)
        self.wait_gone(worker)
        self.assertEqual(self.states(), "e.")
        self.assertNobodyLeft()


class JobFiles(FileExecutorCase):
    """Ten job files in INI form, a job script that reads them, four workers."""

    def prepare(self) -> list[pathlib.Path]:
        """The job script, and ten job files in jobqueue."""
        self.write(JOB_SCRIPT, "ajob.py")
        for name in "logfiles", "jobqueue":
            (self.dir / name).mkdir()
        names = [f"{number}.conf" for number in range(9)] + ["the tenth's $1.conf"]
        for number, name in enumerate(names):
            text = (CONTROL, FJD)[number % 2].format(python=sys.executable, number=number)
            self.write(text, f"jobqueue/{name}")
        return [self.dir / "jobqueue" / name for name in names]

    def check_done(self, *workers: int) -> None:
        """All ten are done, each by its own job file; the workers are told to go, and go."""
        self.wait_states("d" * 10)
        written = {path.name: path.read_text() for path in (self.dir / "logfiles").iterdir()}
        self.assertEqual(written, {f"job{number}.dat": f"done with value{number}" for number in range(10)})
        self.change("runs.txt", "--add", "#RUN end")
        self.wait_gone(*workers)

    def test_the_jobs_come_first_and_then_four_workers_in_one(self) -> None:
        paths = self.prepare()
        self.change("runs.txt", "--add-jobs", *[path.relative_to(self.dir) for path in paths])
        self.check_done(self.hire("-j4"))


class FailedStart(FileExecutorCase):
    """-d: what is wrong at the start is printed, with exit status 2, before anything goes into the
    background.
    """

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
        calls.append(
            (RUNMAKER, "-d", "--follow", "--errors", "errors", "--pidfile", "missing/pid", "runs.txt")
        )
        self.write("#RUN hots=alice\n. touch never\n", "wrong.txt")
        for call, ended in self.run_all(calls):
            with self.subTest(call=call):
                self.assertRefused(ended)
        self.assertFalse(self.exists("pid"))
        self.assertNobodyLeft()
        self.assertEqual(self.states(), ".")


class LoggedOut(FileExecutorCase):
    """The terminal hangs up: a worker in the background goes on, and prints nothing there."""

    @staticmethod
    def take_terminal() -> None:
        """Make the new session's terminal of stdin."""
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def log_in(self) -> tuple[subprocess.Popen[bytes], int]:
        """An interactive shell on a terminal of its own, and the other end of that."""
        master, slave = pty.openpty()
        settings = termios.tcgetattr(slave)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        shell = self.start("sh", "-i", env={"PS1": "> ", "ENV": ""}, stdin=slave, stdout=slave, stderr=slave,
                           start_new_session=True, preexec_fn=self.take_terminal)
        os.close(slave)
        return shell, master

    def type_line(self, master: int, *words: object) -> None:
        os.write(master, (shlex.join(self.command(RUNMAKER, *words)) + "\n").encode())

    @staticmethod
    def shown(master: int) -> bytes:
        """What has been printed on the terminal."""
        found = b""
        while select.select([master], [], [], 0.1)[0]:
            found += os.read(master, 100_000)
        return found

    def test_a_worker_in_the_background_goes_on(self) -> None:
        self.jobs(f"echo said; echo cried >&2; {WAITING}; echo more", "echo second; exit 3", "true")
        shell, master = self.log_in()
        records = ("--pidfile", "pid.1", "--errors", "errors", "--outdir", "out", "-l", "log")
        self.type_line(master, "-d", *records, "runs.txt")
        self.wait_up(1)
        worker = int(self.read("pid.1"))
        self.assertRegex(self.shown(master).replace(b"> ", b""), rb"\A[^\n]*process %d [^\n]*\r\n\Z" % worker)
        self.assertNotEqual(os.getsid(worker), shell.pid)
        os.close(master)
        shell.wait(timeout=20)
        self.open_gate()
        self.wait_gone(worker)
        self.assertEqual(self.states(), "d!d")
        self.assertEqual((self.read("out/1.out"), self.read("out/1.err")), (b"said\nmore\n", b"cried\n"))
        self.assertIn(b"second", self.read("log"))
        self.assertIn(b"runmaker4.py: runs.txt: 2 done, 1 failed", self.read("errors"))

    def test_a_failed_start_is_seen_on_the_terminal(self) -> None:
        shell, master = self.log_in()
        self.type_line(master, "-d", "missing.txt")
        os.write(master, b"echo status $?; exit\n")
        shell.wait(timeout=20)
        shown = self.shown_to_the_end(master)
        self.assertIn(b"runmaker4.py: missing.txt: ", shown)
        self.assertIn(b"status 2", shown)

    def shown_to_the_end(self, master: int) -> bytes:
        """All that was printed on a terminal that nobody has open any more."""
        found = b""
        while True:
            try:
                found += os.read(master, 100_000)
            except OSError:
                os.close(master)
                return found

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_one_in_the_foreground_finishes_its_job_and_starts_no_more(self) -> None:
        self.jobs(f"{UP}; {GATE}", "touch never")
        shell, master = self.log_in()
        self.type_line(master, "--pidfile", "pid.1", "--errors", "errors", "runs.txt")
        self.wait_up(1)
        runner = int(self.read("pid.1"))
        os.close(master)
        shell.wait(timeout=20)
        time.sleep(0.5)
        self.assertTrue(alive(runner))
        self.open_gate()
        self.wait_gone(runner)
        self.assertEqual(self.states(), "d.")


if __name__ == "__main__":
    unittest.main()
