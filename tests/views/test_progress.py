"""Promise: the bar shows states in proportion, and what stands around it tells rate and time left."""
import os
import random
import re
import unittest
from collections.abc import Iterable
from unittest import mock

import runmaker4
import runwait4


class ProgressLines(unittest.TestCase):
    """The bar and what stands around it."""

    def counts(self, done: int = 0, error: int = 0, failed: int = 0, running: int = 0,
               new: int = 0) -> runmaker4.Counts:
        return runmaker4.Counts(new=new, running=running, done=done, failed=failed, error=error, held=3)

    def test_random_bars_show_the_states_in_order_and_in_proportion(self) -> None:
        random_ = random.Random(14)
        for _ in range(300):
            numbers = [random_.choice([0, 1, 2, 50, 4000]) for _ in range(5)]
            width = random_.choice([1, 16, 60])
            bar = runmaker4.bar(self.counts(*numbers), width)
            self.assertRegex(bar, "^=*e*!*>* *$")
            self.assertEqual(len(bar), width)
            for number, mark in zip(numbers, "=e!> "):
                share = width * number / sum(numbers) if sum(numbers) else width * (mark == " ")
                self.assertLess(abs(bar.count(mark) - share), 1.001, (numbers, bar))
            self.assertEqual(bar.endswith(" "), numbers[4] > 0 or not any(numbers), (numbers, bar))

    def test_the_text_fits_whatever_the_width_and_the_numbers(self) -> None:
        random_ = random.Random(15)
        for _ in range(300):
            columns = random_.randrange(1, 250)
            numbers = [random_.choice([0, 3, 4000, 10 ** 6]) for _ in range(10)]
            pause = random_.choice([0.0, 1.0, 1e5])
            looks = [(0.0, self.counts(*numbers[:5])), (pause, self.counts(*numbers[5:]))]
            line = self.drawn(looks, columns)
            # in the last column, some terminals wrap
            self.assertLess(len(line), max(columns, 2), looks)
            self.assertTrue(columns < 30 or f"{looks[-1][1].processed}" in line, (columns, line))

    def drawn(self, looks: Iterable[tuple[float, runmaker4.Counts]], columns: int = 200) -> str:
        """The line on a terminal after these looks, each so many seconds after the one before."""
        clock = 0.0
        printed: list[bytes] = []
        with mock.patch.object(os, "get_terminal_size", lambda _: os.terminal_size((columns, 24))), \
                mock.patch.object(runwait4, "print_bytes", printed.append):
            progress = runwait4.TerminalProgress()
            progress.bar = runmaker4.ProgressBar(clock=lambda: clock)
            for seconds, counts in looks:
                clock += seconds
                progress.update(counts)
        return printed[-1].decode().rpartition("\x1b[K")[2]

    def estimate(self, finished: list[float], now: float, total: int = 100, step: float = 1.0) -> str:
        """What a terminal shows some time after the first look, when jobs ended at these times."""
        done = [sum(end <= look * step for end in finished) for look in range(int(now / step) + 1)]
        return self.drawn((step, self.counts(done=number, new=total - number)) for number in done)

    def test_rate_and_time_left(self) -> None:
        found = self.estimate([float(second) for second in range(1, 51)], 50)
        self.assertRegex(found, r"\b1\.0/s\b.*\b(49|50|51)s left")
        self.assertRegex(self.estimate([], 50), r"processed \[ +\]$")        # before a job has ended
        # the last job of all takes longer than those before
        jobs = [number / 10 for number in range(1, 100)]
        self.assertRegex(self.estimate(jobs, 70), r" (59|1m 00)s left$")

    def test_in_the_end_it_says_how_long_it_took(self) -> None:
        done = [(1.0, self.counts(done=number, new=4 - number)) for number in range(4)]
        done.append((243.0, self.counts(done=4)))
        self.assertRegex(self.drawn(done), r"\] took 4m 07s$")
        # A runner with --follow stays, and looks again
        self.assertRegex(self.drawn([*done, (3600.0, self.counts(done=4))]), r"\] took 4m 07s$")
        self.assertRegex(self.drawn([(1.0, self.counts(done=4))]), r"processed \[=+\]$")

    def test_slow_jobs_are_estimated_well_at_all_times(self) -> None:
        hourly = [3600.0 * hour for hour in range(1, 11)]
        # just after the tenth, half an hour later, nearly an hour later
        for now in (36_010, 37_800, 39_500):
            with self.subTest(now=now):
                found = self.estimate(hourly, now, total=20, step=20.0)
                self.assertRegex(found, r"\b(0\.9|1\.[01])/h\b")
                self.assertRegex(found, r"\b(9|1[01])h \d\dm left")

    def test_jobs_that_end_in_waves(self) -> None:
        for jobs, seconds in (16, 20.0), (64, 3600.0):
            ends = [seconds * wave + jitter * 0.01 for wave in (1, 2) for jitter in range(jobs)]
            for now, shortest, longest in ((1.05, 2.9, 3.4), (1.95, 2.9, 6.1), (2.05, 1.9, 2.4)):
                with self.subTest(seconds=seconds, now=now):
                    found = self.estimate(ends, now * seconds, total=4 * jobs, step=seconds / 40)
                    match = re.search(r", (?:(\d+)h )?(?:(\d+)m ?)?(?:(\d+)s)? left$", found)
                    assert match, found
                    hours, minutes, rest = (int(text or 0) for text in match.groups())
                    left = (3600 * hours + 60 * minutes + rest) / seconds
                    self.assertTrue(shortest < left < longest, found)

    def test_a_runner_that_waits_for_jobs_begins_again_when_they_come(self) -> None:
        """The night before them is no pause of these jobs."""
        looks = [(10.0, self.counts(done=number, new=30 - number)) for number in range(31)]
        looks.append((40_000.0, self.counts(done=30)))
        looks += [(10.0, self.counts(done=30 + number, new=100 - number)) for number in range(6)]
        self.assertRegex(self.drawn(looks), r" 0\.1/s, 15m \d+s left$")
