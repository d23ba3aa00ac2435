"""Runners and jobs killed at random: no job is lost, and none runs twice at the same time."""
import re
import subprocess
import unittest
from collections import Counter
from typing import Callable

from tests.support import marks
from tests.support.case import GATE
from tests.support.kills import KillCase
from tests.support.line_locks import locked_lines
from tests.support.processes import wait_until
from tests.support.runs import INTERVAL
from tests.support.scripts import ALL, FULL

JOBS, KILLS, RUNNERS = (10_000, 500, 6) if ALL else (2_000, 100, 6) if FULL else (200, 12, 6)
LONG_JOBS, LAST_KILLS = 12, 4           # once all long jobs have begun, some more runners are killed
PATIENCE = 1800 if FULL else 180


class TheProof(unittest.TestCase):
    """The reader of the marks finds what must not be: else the storm proves nothing."""

    def test_what_must_not_be_is_found_and_nothing_else(self) -> None:
        start, again, end = "start 1 100 50\n", "start 1 101 60\n", "end 1 100\n"
        for found, text, jobs in (
            ("", f"{start}start 2 200 50\nend 2 200\n{end}", 2),
            # a job that was killed may start again, and one whose runner was killed after its end, also
            # before its first mark
            ("", f"{start}killed 100\nkilled 50\n{again}end 1 101\n", 1),
            ("", f"{start}killed 50\n{end}{again}end 1 101\n", 1),
            ("", f"killed 50\nstart 1 100 1\n{end}{again}end 1 101\n", 1),
            ("while it ran as 100", f"{start}killed 50\n{again}end 1 101\n", 1),
            ("100 ended, and was not what ran", f"{start}killed 100\nkilled 50\n{again}{end}end 1 101\n", 1),
            ("nobody killed runner 50", f"{start}{end}{again}end 1 101\n", 1),
            ("neither ended nor", f"{start}{end}killed 50\n{again}", 1),
            ("job 2: never came to its end", start + end, 2),
        ):
            with self.subTest(text):
                problems = "; ".join(marks.problems(text.encode(), jobs, runners={50, 60}))
                self.assertIn(found, problems)
                self.assertEqual(bool(found), bool(problems), problems)


class Storm(KillCase):
    """Runners die by kill -9, alone or with their jobs, and new ones with --resume carry on."""

    def setUp(self) -> None:
        super().setUp()
        self.errors = open(self.dir / "errors", "ab")         # noqa: SIM115 (open as long as the test lasts)
        self.addCleanup(self.errors.close)

    def job(self, number: int) -> str:
        """A short job; the last ones outlast the three looks that other runners take at their lines."""
        if number == 1:
            return marks.command(number, gate=GATE)
        return marks.command(number, 0.03 if number <= JOBS - LONG_JOBS else 1 + 3 * INTERVAL)

    def living(self) -> list[subprocess.Popen[bytes]]:
        return [runner for runner in self.started if runner.poll() is None]

    def keep_runners_until(self, condition: Callable[[], object]) -> None:
        """Start new runners for those that died, until condition() is true."""
        def reached() -> object:
            for _ in range(RUNNERS - len(self.living())):
                slots = self.random.randint(1, 4)
                self.start_hasty(f"-j{slots}", "-q", "--resume", "runs.txt", stderr=self.errors)
            return condition()
        wait_until(reached, PATIENCE)

    def test_no_job_is_lost_and_none_runs_twice_at_once(self) -> None:
        self.write("".join(f". {self.job(number)}\n" for number in range(1, JOBS + 1)))
        self.write("", "marks")
        self.kill_at_gate(self.keep_runners_until, self.living)
        for done in sorted(self.random.sample(range(JOBS * 8 // 10), KILLS - LAST_KILLS)):
            self.keep_runners_until(lambda: self.done() >= done)
            self.kill_one(self.living, with_jobs=self.random.random() < 0.5)
        self.keep_runners_until(lambda: b"start %d " % JOBS in self.read("marks"))
        for number in range(LAST_KILLS):
            self.keep_runners_until(self.living)
            self.kill_one(self.living, with_jobs=number % 2 == 0)
        self.keep_runners_until(lambda: self.states() == "d" * JOBS)

        self.assertGreater(self.read("marks").count(b"killed "), KILLS + 1, "no job died with its runner")
        survivors = [runner for runner in self.started if runner not in self.killed]
        codes = Counter(self.finish(runner).code for runner in survivors)
        self.assertLessEqual(codes.keys(), {0, 1}, self.read("errors"))
        # One that leaves just when others are killed says that their jobs are nobody's, unless they are taken
        # soon
        left = re.findall(b"; in all .*(new|running|error)|nothing done", self.read("errors"))
        self.assertLessEqual(codes[1], len(left), self.read("errors"))
        self.assertNotIn(b"Traceback", self.read("errors"))
        self.assertEqual(locked_lines(self), [])
        self.assertEqual(self.states(), "d" * JOBS)
        self.assertEqual(marks.problems(self.read("marks"), JOBS, {runner.pid for runner in self.started}),
                         [])
