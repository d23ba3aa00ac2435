"""Promise: accidents that users had with other tools, or with this one, lose no job and run none twice."""
import ctypes
import os
import re
import shutil
import signal
import subprocess

import runmaker4
from tests.support.line_locks import locked_lines
from tests.support.patches import ONCE_THE_SHELL_IS_DEAD, UNTIL_ENOUGH, WHEN_LATE, patient
from tests.support.permissions import PR_CAPBSET_DROP
from tests.support.processes import alive, wait_until
from tests.support.runs import HASTY, UP, WAITING, RunCase
from tests.support.scripts import PYTHON, RUNCLIENT, RUNMAKER, RUNSET, RUNWAIT, SCRIPTS_AT
from tests.support.tcp import Program, TcpCase

VIEWS = ((RUNWAIT, "--status"), (RUNWAIT, "--failed"), (RUNWAIT, "--show", "1"),
         (RUNMAKER, "--dry-run", "--resume"))


class RestoredLockFile(RunCase):
    """A backup puts a copy in the place of the lock file."""
    LOCK_FILE = ".runs.txt.lock"

    def restore(self) -> None:
        """As `tar xf` does: the copy is another file."""
        shutil.copy2(self.dir / self.LOCK_FILE, self.dir / "copy")
        os.replace(self.dir / "copy", self.dir / self.LOCK_FILE)

    def test_a_job_whose_runner_was_killed_is_not_run_beside_itself(self) -> None:
        self.jobs(f"echo S >>ran; {WAITING}; echo E >>ran")
        runner = self.start_jobs("-q")
        runner.kill()
        runner.wait()
        self.restore()
        for options in ["-r"], ["--resume"], []:
            refused = self.run_jobs("-q", *options)
            self.assertRefused(refused, "was copied", "line 1", "remove this file")
        for script, *words in VIEWS:
            with self.subTest(words):
                shown = self.run_script(script, *words, "runs.txt")
                self.assertIn(b"was copied, perhaps from a backup; line 1 (r) can still run", shown.err)
                self.assertNotRegex(shown.out, b"orphan|lost")
        self.assertEqual((self.states(), self.read("ran")), ("r", b"S\n"))
        self.open_gate()
        wait_until(lambda: self.read("ran") == b"S\nE\n", what="the job has ended")
        os.unlink(self.dir / self.LOCK_FILE)
        self.assertEnded(self.run_jobs("-q", "--resume"), 0, "d")

    def test_a_view_that_has_seen_the_copy_knows_once_it_is_removed(self) -> None:
        self.jobs("true")
        self.assertEnded(self.run_jobs("-q"), 0, "d")
        self.restore()
        reader = runmaker4.JobReader(str(self.write("r true\n")), say=lambda text: None)
        self.addCleanup(reader.close_files)
        reader.open_files()
        line = runmaker4.Line(1, 0, b"r", b" true")
        self.assertFalse(reader.is_orphan(line))
        os.unlink(self.dir / self.LOCK_FILE)
        reader.open_files()
        self.assertTrue(reader.is_orphan(line))

    def test_without_a_job_in_doubt_nothing_is_asked(self) -> None:
        self.jobs("true")
        self.assertEnded(self.run_jobs("-q"), 0, "d")
        self.restore()
        self.jobs("true", WAITING)
        runner = self.start_jobs("-q", up=[2])
        self.restore()                          # its runner locks the copy
        wait_until(lambda: locked_lines(self) == [2], what="the job is locked in the copy")
        self.assertEqual((self.run_jobs("-q").code, self.states()), (0, "dr"))
        self.stop(runner, signal.SIGINT)


class Edits(RunCase):
    """A file that is away for a while, lines that a user deletes, and a last line to which >> appends."""
    # Each try to write a result adds a byte to a file
    TRIES = f"""{HASTY}
finish = runmaker4.JobQueue.finish
def note_and_finish(*args):
    with open("tries", "ab") as tries:
        tries.write(b"x")
    return finish(*args)
runmaker4.JobQueue.finish = note_and_finish
runmaker4.Runner.MAX_RESULT_SECONDS = 0.2
"""

    def run_without_file(self) -> subprocess.Popen[bytes]:
        """Start a runner whose job ends while the file is away; return once it has tried for a while."""
        self.write(f". echo S >>ran; {UP}; until [ -e out ]; do sleep 0.02; done\n#RUN barrier\n. true\n")
        runner = self.start_patched(self.TRIES, "-j2", "runs.txt")
        self.wait_up(1, runner=runner)
        os.rename(self.dir / "runs.txt", self.dir / "away")
        self.write("", "out")
        wait_until(lambda: self.exists("tries") and len(self.read("tries")) > 5, what="it has tried")
        return runner

    def test_a_result_waits_for_a_file_that_is_away(self) -> None:
        runner = self.run_without_file()
        os.rename(self.dir / "away", self.dir / "runs.txt")
        ended = self.finish(runner)
        self.assertComplains(ended, "line 1: the result d cannot be written: no such file")
        self.assertEqual((self.states()[:1], self.read("ran")), ("d", b"S\n"), ended.err)
        # if the file was away for longer than three looks, line 3 is not run

    def test_a_runner_that_is_ended_meanwhile_names_the_result_and_leaves_an_orphan(self) -> None:
        runner = self.run_without_file()
        ended = self.stop(runner)
        self.assertEqual((ended.code, b"1 not written down" in ended.err), (143, True), ended.err)
        os.rename(self.dir / "away", self.dir / "runs.txt")
        self.assertEqual((self.run_jobs("-q").code, self.states()), (1, "ed"))

    def test_a_line_that_is_deleted_during_its_run_is_not_tried_again(self) -> None:
        self.jobs(f"echo S >>ran; {UP}; until [ -e out ]; do sleep 0.02; done; false", "true")
        with open(self.dir / "said", "wb") as said:
            runner = self.start_hasty("--retries", "3", "runs.txt", stderr=said)
        self.wait_up(1, runner=runner)
        self.write(". true\n")
        gone = b"line 1: no longer in the file; it is not tried again (a run goes on)"
        wait_until(lambda: gone in self.read("said"), what="it is noticed")
        self.write("", "out")
        self.finish(runner)
        self.assertEqual((self.states(), self.read("ran")), ("d", b"S\n"), self.read("said"))

    def test_the_runner_warns_before_it_takes_the_line(self) -> None:
        for text, warns in (". echo b", True), (". echo b\n# a comment", True), (". echo b\n", False):
            with self.subTest(text):
                self.write(text)
                ended = self.run_jobs("-q")
                self.assertEqual((ended.code, self.states()), (0, "d"))
                self.assertEqual(b"the last line has no newline" in ended.err, warns, ended.err)


class LeftBehind(RunCase):
    """A process that a job leaves behind has the job lock, whatever its session and environment are."""

    def test_status_and_cancel_name_it(self) -> None:
        self.jobs(f"setsid sleep 600 >daemon 2>&1 & echo $! >pid; {WAITING}")
        runner = self.start_jobs("-q")
        runner.kill()
        runner.wait()
        self.open_gate()
        pid = int(self.read("pid"))
        said = f"line 1: the runner is dead, but the job still runs (end it: kill {pid})\n".encode()
        wait_until(lambda: said in self.status(), what="--status names the daemon alone")
        ended = self.run_script(RUNSET, "--cancel", "runs.txt", "1")
        self.assertEqual(ended.code, 1)
        self.assertIn(f": kill {pid})\n".encode(), ended.err)
        os.kill(pid, signal.SIGTERM)
        self.assertNobodyLeft()

    def status(self) -> bytes:
        return self.run_script(RUNWAIT, "--status", "runs.txt").out

    def test_it_is_killed_before_the_job_is_tried_again(self) -> None:
        self.jobs("(env -i setsid sleep 600 >left 2>&1 & echo $! >>pids); : >late.$$; sleep 600")
        ended = self.finish(self.start_patched(WHEN_LATE, "--timeout=0.3", "--retries=1", "runs.txt"))
        left = [alive(int(pid)) for pid in self.read("pids").split()]
        self.assertEqual((ended.code, left), (1, [False, False]), ended.err)


class CannotBeKilled(TcpCase):
    """A job runs a program as another user, as sudo does; the runner may neither kill nor inspect that."""
    IMPATIENT = ONCE_THE_SHELL_IS_DEAD + UNTIL_ENOUGH + WHEN_LATE
    CAPABILITIES = 5, 19                # of <linux/capability.h>: CAP_KILL and CAP_SYS_PTRACE
    # asleep; on a busy machine it can be about to run
    SAID = re.compile(rb"could not be killed: process (\d+) \(sleep of nobody, state [DRST]\)")

    def setUp(self) -> None:
        super().setUp()
        if os.geteuid() or not shutil.which("setpriv"):
            self.skipTest("needs root and setpriv (util-linux), to run a program as another user")
        self.dir.chmod(0o770)
        self.jobs(self.as_nobody("sleep 600"))

    @staticmethod
    def as_nobody(command: str) -> str:
        """A job that says that it runs, and is late, once a program of nobody's has become `sleep`."""
        return (f"setpriv --reuid=nobody {command} & until grep -q sleep /proc/$!/comm; do sleep 0.02; done; "
                f": >late.$$; {UP}; wait; true")

    def start_bound(self, script: str, *words: object) -> Program:
        libc = ctypes.CDLL(None)
        return self.start_program(script, *words, patch=self.IMPATIENT, preexec_fn=lambda: [
            libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) for number in self.CAPABILITIES])

    def patched(self, statements: str, script: str, *args: object) -> list[str]:
        """The argv of a script that is imported after these statements, so they can change its constants."""
        program = f"import sys; sys.path.insert(0, {str(SCRIPTS_AT)!r})\n{statements}\n" \
                  f"import importlib; sys.exit(importlib.import_module({script[:-3]!r}).main())"
        return [PYTHON, "-c", program, *map(str, args)]

    def wait_named(self, program: Program, number: int = 1) -> int:
        """Wait until the process of so many runs is named; return the last."""
        return int(wait_until(lambda: self.SAID.findall(program.err)[number - 1:], what="it is named")[0])

    def test_its_job_is_not_tried_again_and_keeps_line_and_lock_while_it_lives(self) -> None:
        runner = self.start_bound(RUNMAKER, "--timeout", 0.3, "--retries", 1, "runs.txt")
        first = self.wait_named(runner)
        self.write("", "looks")
        wait_until(lambda: len(self.read("looks")) > 5, what="a second try would have started by now")
        self.assertEqual((len(self.SAID.findall(runner.err)), len(list(self.dir.glob("late.*")))), (1, 1))
        self.assertEqual((self.states(), locked_lines(self)), ("r", [1]))
        os.kill(first, signal.SIGKILL)
        second = self.wait_named(runner, 2)
        ended = self.stop(runner)
        self.assertEqual((ended.code, self.states(), alive(second)), (143, "!", True), ended.err)
        self.assertEqual(locked_lines(self), [1])      # so that no runner starts a second copy
        shown = self.run_script(RUNWAIT, "--failed", "runs.txt").out
        self.assertIn(str(second).encode(), self.SAID.findall(shown))

    def test_cancel_fails_and_the_runner_names_it(self) -> None:
        runner = self.start_bound(RUNMAKER, "runs.txt")
        self.wait_up(1, runner=runner)
        cancelling = self.start_bound(RUNSET, "--cancel", "runs.txt", "1")
        pid = self.wait_named(runner)
        self.write("", "enough")
        self.assertEqual((cancelling.wait(), self.states()), (1, "c"))
        self.assertIn(b"line 1: is c, but its job still runs (no process of it is visible here: run this as "
                      b"root, ", cancelling.err)
        self.assertEqual(self.run_script(RUNWAIT, "-e", "runs.txt").code, 1)
        os.kill(pid, signal.SIGKILL)
        self.assertEqual(self.finish(runner).code, 0)
        self.assertEqual(self.run_script(RUNWAIT, "-e", "runs.txt").code, 0)

    def test_a_client_keeps_its_job_and_the_server_its_line(self) -> None:
        server = self.start_server()
        client = self.start_bound(RUNCLIENT, *self.client_words(server, "--timeout", 0.3))
        pid = self.wait_named(client)
        self.assertEqual((self.states(), locked_lines(self)), ("r", [1]))
        os.kill(pid, signal.SIGKILL)
        self.assertEqual((self.finish(client).code, self.states()), (1, "!"))
        self.stop(server)
        self.assertIn(f"process {pid} (".encode(), self.run_script(RUNWAIT, "--failed", "runs.txt").out)


class Cancelled(RunCase):
    """A cancelled job, whose shell is over, has one outcome."""

    def test_it_is_cancelled_whether_its_shell_has_succeeded_or_failed(self) -> None:
        for status in 0, 3:
            with self.subTest(status=status):
                # a runner reads on while what the shell has left prints
                self.jobs(f"{UP}; while sleep 0.1; do echo on; done & exit {status}")
                runner = self.start_patched(patient(600), "-q", "runs.txt")
                self.wait_up(1, runner=runner)
                self.finish(self.start(RUNSET, "--cancel", "runs.txt", "1"))
                ended = self.finish(runner)
                self.assertEqual((ended.code, self.states()), (0, "c"), ended.err)
                self.assertIn(b"1 cancelled", ended.err)
                (self.dir / "up.1").unlink()
