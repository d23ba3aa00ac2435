"""A line is claimed by exactly one runner, however many there are, and however they retry."""
import re
import signal
import subprocess
from collections import Counter

from tests.support.case import Case
from tests.support.console import console_lines, printed
from tests.support.over_tcp import OverTcp, ordinarily
from tests.support.processes import Ended
from tests.support.runs import LOOKS, RunCase
from tests.support.scripts import ALL, FULL, RUNMAKER, RUNSET, RUNWAIT
from tests.support.values import as_bytes


class ManyRunners(Case):
    """Eight runners on one file that others append to, set and watch: each job is started exactly once."""
    LINES, ROUNDS = (5000, 40) if ALL else (2000, 10) if FULL else (600, 3)

    def job(self, number: int) -> str:
        """A job that says that it started; every seventh fails."""
        return f"echo {number} >>marks" + ("; false" if number % 7 == 0 else "")

    def others(self, first: int) -> list[subprocess.Popen[bytes]]:
        """Append twice ten jobs, put on hold what is next to be run, and count, all at once."""
        added = [self.job(number) for number in range(first, first + 20)]
        with open(self.dir / "runs.txt", "ab") as file:
            file.write(as_bytes("".join(f". {command}\n" for command in added[:10])))
        begun = len(self.read("marks").split())
        return [self.start(RUNSET, "runs.txt", "--add", *added[10:]),
                self.start(RUNSET, "--set=x", "--state=.", "runs.txt", f"{begun + 1}-{begun + 300}"),
                self.start(RUNWAIT, "--status", "--json", "runs.txt")]

    def release(self) -> None:
        """Take back what is on hold."""
        self.assertIn(self.run_script(RUNSET, "--set=.", "--state=x", "runs.txt").code, (0, 1))

    def end(self, runners: list[subprocess.Popen[bytes]]) -> None:
        for runner in runners:
            runner.send_signal(signal.SIGHUP)
        for runner in runners:
            self.assertIn(self.finish(runner).code, (0, 1))

    def test_each_job_is_started_once_and_every_state_is_right(self) -> None:
        self.write("".join(f". {self.job(number)}\n" for number in range(1, self.LINES + 1)))
        self.write("", "marks")
        watch = self.start(RUNWAIT, "--progress", "runs.txt")
        runners = [self.start(RUNMAKER, "-j4", "-q", *options, "runs.txt")
                   for options in [(), ("--follow",)] * 4]
        for number in range(self.ROUNDS):
            codes = [self.finish(other).code for other in self.others(self.LINES + 1 + 20 * number)]
            self.assertEqual((codes[0], codes[2]), (0, 0))
            self.assertIn(codes[1], (0, 1))             # 1: nothing to hold, or a line began to run meanwhile
            self.release()

        self.assertEqual(self.run_script(RUNWAIT, "runs.txt").code, 0)
        self.assertEqual(self.finish(watch).code, 0)
        self.end(runners)

        total = self.LINES + 20 * self.ROUNDS
        self.assertEqual(Counter(self.read("marks").split()),
                         Counter(b"%d" % number for number in range(1, total + 1)))
        expected = [f"{'!' if number % 7 == 0 else 'd'} {self.job(number)}" for number in range(1, total + 1)]
        lines = self.read().decode().splitlines()
        self.assertEqual(lines[:self.LINES], expected[:self.LINES])
        self.assertEqual(sorted(lines), sorted(expected))


class HugeFile(RunCase):
    """Where a look takes its time, looks are rare; but none is spared before the runner leaves."""

    # as after a look at a huge file
    RESTING = "import runmaker4; runmaker4.Throttle.pause_seconds = lambda throttle, factor: 10.0\n"

    def test_what_a_job_sets_back_as_it_ends_is_run_also_by_who_waits_for_the_end(self) -> None:
        looked = "until [ -s runs.txt.looks ]; do sleep 0.02; done"
        self.write(f"d true\n. {looked}; printf . | dd of=runs.txt conv=notrunc\n#RUN end\n")
        ended = self.finish(self.start_patched(LOOKS + self.RESTING, "-j2", "--follow", "-q", "runs.txt"))
        self.assertEqual((ended.code, self.states()), (0, "dd"), ended.err)


class TwoThatRetry(Case):
    """Two runners with -r or --resume at once come to an end, although the jobs fail every time."""

    def check(self, option: str, command: str, state: str) -> None:
        """Each line is run once, and once more for each runner at whose start it had ended badly."""
        self.write(f". {command}\n{state} {command}\n" * 10)
        runners = [self.start(RUNMAKER, "-j3", option, "runs.txt") for _ in range(2)]
        ended = [self.finish(runner) for runner in runners]
        self.assertEqual(self.states(), state * 20)
        self.assertIn(1, [end.code for end in ended])
        taken = Counter(line for end in ended for line in self.taken(end))
        self.assertEqual(len(taken), 20)
        self.assertLessEqual(max(taken.values()), 1 + len(runners))

    @staticmethod
    def taken(ended: Ended) -> list[bytes]:
        """The lines whose jobs a runner has run, or has said that it cannot start."""
        return printed(console_lines(ended.out)) + re.findall(rb"line (\d+): cannot be started", ended.err)

    def test_with_retry_jobs_that_fail(self) -> None:
        self.check("-r", "echo $JOB_ID; false", "!")

    def test_with_resume_jobs_that_cannot_be_started(self) -> None:
        self.check("--resume", "echo a\0b", "e")


# -- the same, promised of a client -------------------------------------------------------------------------


@ordinarily("test_with_retry_jobs_that_fail")
class TwoThatRetryOverTcp(OverTcp, TwoThatRetry):
    """-r and --resume by two clients at once come to an end, although the jobs fail every time."""


@ordinarily()
class HugeFileOverTcp(OverTcp, HugeFile):
    """The server looks through a huge file once more before it tells a client that there is nothing."""
