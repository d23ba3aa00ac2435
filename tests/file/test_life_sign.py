"""The lock is the life sign: it lives as long as the runner or the job, wherever the line stands."""
import os
import subprocess
import unittest
from typing import Any

from tests.support.case import GATE
from tests.support.console import console_lines, printed
from tests.support.life_sign import LifeSign
from tests.support.line_locks import locked_lines
from tests.support.processes import DEADLINE, Ended, alive, wait_until
from tests.support.runs import HASTY
from tests.support.scripts import FULL, RUNMAKER, RUNSET, RUNWAIT


class KilledRunner(LifeSign):
    """A runner dies by kill -9 while its job runs."""

    def test_the_job_lives_on_and_nobody_runs_it_again_and_in_the_end_it_is_an_error(self) -> None:
        self.lose_runner()
        for option in "--resume", "--retry":
            ended = self.run_script(RUNMAKER, option, "runs.txt")
            self.assertEqual((ended.code, ended.out), (1, b""), ended.err)
            self.assertIn(b" running", ended.err)
            self.assert_running()
        self.end_job()
        # its last look at the file was that of the dead runner
        self.assertEqual(self.states(), "r")
        # at the first look
        self.assertIn(b"1 error", self.run_script(RUNWAIT, "--status", "runs.txt").out)
        ended = self.finish(self.start_runner())
        said = b"runmaker4.py: runs.txt: line 1: is r without a lock"
        self.assertEqual((ended.code, ended.err.count(said)), (1, 1), ended.err)
        self.assertEqual((self.states(), self.runs()), ("e", 1))

    def test_a_line_is_freed_when_its_job_ends_though_a_later_job_of_the_runner_runs(self) -> None:
        self.write(". until [ -e go.1 ]; do sleep 0.02; done\n. echo $$ >>marks; " + GATE + "\n")
        runner = self.start_runner("-j2")
        self.job_pid()
        self.wait_states("rr")
        self.kill(runner)
        self.assertEqual(locked_lines(self), [1, 2])
        self.write("", "go.1")
        wait_until(lambda: locked_lines(self) == [2], what="only line 2 is locked")
        self.assertTrue(alive(self.job_pid()))


class SavedAsNew(LifeSign):
    """An editor saves the `.` that it has read over the `r` of a job whose runner is dead."""
    HASTY = HASTY + "runmaker4.Cursor.MIN_IDLE_SECONDS = 0.5\n"

    def start_hasty(self, *args: object, patience: str = "", **settings: Any) -> subprocess.Popen[bytes]:
        return self.start_patched(patience or self.HASTY, *args, **settings)

    def check_wait(self, above: str, states: str, *options: str) -> None:
        """A new line below these, like the one that runs, is new when that has ended; it is said once."""
        self.lose_runner()
        self.write(f"{above}. {self.WAITING}\n")
        with open(self.dir / "said", "wb") as said:
            runner = self.start_runner(*options, stderr=said)
        wait_until(lambda: b"1 new job waits: runwait4.py --status runs.txt" in self.read("said"))
        self.assertEqual((self.states(), self.runs()), (states, 1))
        self.open_gate()
        self.assertEqual(runner.wait(DEADLINE), 0)
        self.assertEqual((self.states(), self.runs()), (states.replace(".", "d"), 2))
        self.assertEqual(self.read("said").count(b"1 new job waits"), 1)
        self.assertEqual(self.read("marks").split()[1::2], [b"ended", b"ended"])

    def test_it_waits_until_the_copy_has_ended(self) -> None:
        self.check_wait("", ".", "--resume")

    def test_a_new_line_like_one_whose_job_was_cancelled_waits(self) -> None:
        self.check_wait(f"x {self.WAITING}\n", "x.")


class BroughtBack(LifeSign):
    """An editor saves the `r` that it has read over the result that came since: it is an orphan like others.
    """
    TEXT = f". echo 1 >>marks\n. echo 2 >>marks; false\n. {GATE}\n"

    def save_old_states(self, *options: str) -> Ended:
        """How a runner ends that meets them."""
        runner = self.start_to_gate(self.TEXT, *options)
        self.wait_states("d!r")
        self.write(self.read().decode().replace("d e", "r e").replace("! e", "r e"))
        self.open_gate()
        return self.finish(runner)

    def test_the_line_becomes_an_error_and_that_is_said(self) -> None:
        ended = self.save_old_states()
        self.assertEqual((ended.code, self.states(), self.read("marks")), (1, "eed", b"1\n2\n"))
        for number in 1, 2:
            self.assertIn(f"line {number}: is r without a lock, so its runner and job are dead or cut off; "
                          "marked e (--resume runs it again)\n", ended.err.decode())

    def test_resume_runs_it_once_more(self) -> None:
        ended = self.save_old_states("--resume")
        self.assertEqual((ended.code, self.states()), (1, "d!d"))
        self.assertEqual(sorted(self.read("marks").split()), [b"1", b"1", b"2", b"2"])


class Orphans(LifeSign):
    """Lines that say `r` and have neither runner nor job."""
    TEXT = "".join(f"r echo {number} >>marks\n" for number in (1, 2, 3))

    def test_one_that_runs_again_counts_once_in_the_closing_line(self) -> None:
        runner = self.start_to_gate(f"r true\n. {GATE}\n", "-j2")
        self.wait_states("er")
        self.run_script(RUNSET, "--set=.", "runs.txt", "1")
        self.wait_states("dr")
        self.open_gate()
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states()), (0, "dd"))
        self.assertIn(b": 2 done in ", ended.err)

    def test_two_runners_at_once_run_each_again_once(self) -> None:
        runners = []
        for option in "--resume", "--retry":
            self.write(self.TEXT.replace("marks", f"marks{option}"), f"runs{option}")
            runners += [self.start_hasty(option, f"runs{option}") for _ in range(2)]
        self.assertEqual([self.finish(runner).code for runner in runners], [0] * 4)
        for option in "--resume", "--retry":
            self.assertEqual(self.states(f"runs{option}"), "ddd", option)
            self.assertEqual(sorted(self.read(f"marks{option}").split()), [b"1", b"2", b"3"], option)

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_only_the_first_ten_are_named_and_all_are_counted(self) -> None:
        self.write("# comment\n" + "r true\n" * 12)
        ended = self.run_script(RUNMAKER, "runs.txt")
        *said, closing, _ = ended.err.decode().splitlines()     # the last one names the next command
        named = [line.split(": ")[2] for line in said if "is r without a lock" in line]
        self.assertEqual(named, [f"line {number}" for number in range(2, 12)])
        self.assertIn("12 error", closing)
        self.assertEqual((ended.code, self.states()), (1, "e" * 12))


class WhoHoldsTheLock(LifeSign):
    """A line is locked until the shell of its job ends, whatever that leaves (in each shell: test_shell)."""

    def test_the_line_is_done_and_free_while_the_process_lives(self) -> None:
        """A job is done when its shell is."""
        self.write(f". sleep 1000 & echo $! >left; echo said\n. {self.WAITING}\n")
        runner = self.start_runner("-j2")
        self.wait_states("dr")
        wait_until(lambda: locked_lines(self) == [2], what="only line 2 is locked")
        self.assertTrue(alive(int(self.read("left"))))
        self.open_gate()
        ended = self.finish(runner)
        self.assertEqual(ended.code, 0, ended.err)
        self.assertEqual(printed(console_lines(ended.out)), [b"said"])
        self.assertTrue(alive(int(self.read("left"))))
        self.assertEqual(self.run_script(RUNWAIT, "-e", "runs.txt").code, 0)


class EditedFile(LifeSign):
    """The file is edited while a job lives on without its runner: nobody runs the job again.

    While its runner lives: test_no_second_copy, and for the results test_file_trouble.
    """

    def overwrite(self, text: bytes) -> None:
        with open(self.dir / "runs.txt", "r+b") as file:
            file.write(text)

    def replace(self, text: bytes) -> None:
        """Change the file as most editors do: write another, and rename it."""
        self.write(text, "runs.new")
        os.replace(self.dir / "runs.new", self.dir / "runs.txt")

    def test_a_job_that_outlives_its_runner_is_not_run_again_whatever_is_saved(self) -> None:
        self.lose_runner()
        saved = self.read()
        above = b"# a note\nx held\n"
        for number, text in enumerate((above + saved, saved.replace(b"r ", b". ", 1), b"# " + saved)):
            for save in self.overwrite, self.replace:
                save(text + b". echo >>passed%d\n" % number)
                other = self.start(RUNMAKER, "--resume", "--follow", "runs.txt")
                self.wait_file(f"passed{number}")       # so it has come past the job's line
                self.stop(other)
                self.assertEqual(self.runs(), 1)
                (self.dir / f"passed{number}").unlink()
        self.end_job()
