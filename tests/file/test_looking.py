"""Promise: a runner looks at the file no more often than it must, and who only looks disturbs nobody."""
import itertools
import os
import time
from collections.abc import Iterator
from unittest import mock

import runmaker4
from tests.support.claims import Clock, JobFileCase, job_of
from tests.support.values import present


class Looks(JobFileCase):
    """How often a runner looks, by a made-up clock, and that who only looks disturbs nobody."""

    def looks(self, jobs: runmaker4.Cursor, seconds: float) -> Iterator[float]:
        """Look as often as `again` says: the pauses."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.assertFalse(jobs.claim())
            again = present(jobs.no_job.retry_after)
            self.clock.now += again
            yield again

    def test_a_runner_below_a_barrier_looks_when_a_walk_is_due_not_at_the_next_poll(self) -> None:
        jobs = self.jobs(b". a\n#RUN barrier\n. b\n")
        job = job_of(jobs.claim())
        self.assertFalse(jobs.claim())
        self.assertIsNone(jobs.no_job.retry_after)
        jobs.finish(job, b"d")
        self.assertFalse(jobs.claim())                  # the last walk has just ended
        self.clock.now += present(jobs.no_job.retry_after)
        self.assertEqual(job_of(jobs.claim()).number, 3)

    def test_a_new_line_that_stays_locked_is_looked_at_once_a_second_until_it_is_free(self) -> None:
        jobs = self.jobs(b". a\n")
        holder = runmaker4.open_lock_file_of(str(self.path))
        self.addCleanup(os.close, holder)
        # a copy of its job lives, as an editor may leave it
        self.assertTrue(runmaker4.lock(holder, runmaker4.bucket_of(b"a") + 7))
        pauses = list(self.looks(jobs, 20))
        self.assertLess(pauses[0], 0.2)                 # it may have been locked for a moment only
        self.assertTrue(10 <= len(pauses) <= 25, pauses)
        runmaker4.unlock(holder, runmaker4.bucket_of(b"a") + 7)
        self.assertEqual(job_of(jobs.claim()).number, 1)

    def test_an_end_that_has_changed_is_believed_when_it_has_stayed_so_for_a_second(self) -> None:
        jobs = self.jobs(b"d a\nd b\n")
        for wait, text, doubtful in ((0.0, b"d a\nd b\n", False), (0.0, b"", True), (0.5, b"", True),
                                     (0.4, b"d a\n", True), (0.9, b"d a\n", True), (0.1, b"d a\n", False),
                                     (0.0, b"d a\nd c\n", True), (1.0, b"d a\nd c\n", False),
                                     (0.0, b"d b\nd c\n", False), (0.0, b"d a\nd cd", True),
                                     (1.0, b"d a\nd cd", False), (0.0, b"", True), (1.0, b"", False)):
            self.clock.now += wait
            self.path.write_bytes(text)
            self.assertFalse(jobs.claim(jobs.consumers.all))
            self.assertEqual(jobs.no_job.retry_after is not None, doubtful, (wait, text))
        self.path.write_bytes(b". a\n")
        self.assertEqual(job_of(jobs.claim(jobs.consumers.all)).number, 1)

    def test_a_rest_is_so_many_times_as_long_as_the_look_kept_the_cpu_busy_and_else_short(self) -> None:
        """By what a look took of the CPU, and by the clock for a few seconds only."""
        for seconds, worked, rest in ((2.0, 2.0, 40.0), (0.1, 0.1, 2.0), (0.1, 0.01, 2.0), (19.0, 0.01, 3.2)):
            clock = Clock()
            throttle = runmaker4.Throttle(clock)
            with mock.patch.object(time, "thread_time", side_effect=[5.0, 5.0 + worked]), throttle:
                clock.now += seconds
            self.assertAlmostEqual(throttle.pause_seconds(20), rest)

    def test_an_idle_runner_on_nfs_looks_at_a_few_of_the_lines_that_have_long_been_running(self) -> None:
        jobs = self.jobs(b"r a\n" * 256, mount=runmaker4.Mount("nfs4", frozenset()))
        draws, none = itertools.cycle(range(256)), runmaker4.Suspicion.NONE
        with mock.patch.object(runmaker4.Orphans, "check_orphan", return_value=none) as looks, \
                mock.patch.object(os, "urandom", lambda count: bytes([next(draws)] * count)):
            for walks, count in (1, 0), (2, 2), (3, 4):
                self.assertFalse(jobs.claim())
                self.assertEqual(looks.call_count, count, walks)
                self.clock.now += 60.0
            self.assertFalse(jobs.claim(jobs.consumers.all))    # it asks to exit
            self.assertGreaterEqual(looks.call_count, 4 + 256)

    def test_an_idle_runner_on_nfs_that_has_found_an_orphan_looks_at_all(self) -> None:
        jobs = self.jobs(b"".join(b"r %d\n" % number for number in range(256)),
                         mount=runmaker4.Mount("nfs4", frozenset()))
        draws = itertools.cycle(range(256))
        with mock.patch.object(os, "urandom", lambda count: bytes([next(draws)] * count)):
            for _ in range(3):
                self.assertFalse(jobs.claim())
                self.clock.now += 6.0
        self.assertEqual(self.path.read_bytes().count(b"e "), 256)

    def test_nobody_exits_on_nfs_before_all_running_lines_were_looked_at(self) -> None:
        jobs = self.jobs(b"r a\n#RUN barrier\n. b\nr c\n", mount=runmaker4.Mount("nfs4", frozenset()))
        lock_file = runmaker4.open_lock_file_of(str(self.path))
        self.addCleanup(os.close, lock_file)
        self.assertTrue(runmaker4.lock(lock_file, runmaker4.bucket_of(b"a") + 1))
        for _ in range(2):                              # the new line keeps it
            self.assertFalse(jobs.claim(jobs.consumers.all))
            self.assertEqual(jobs.no_job.exits, {})
            self.clock.now += 60.0
        self.path.write_bytes(b"r a\n#RUN barrier\nx b\nr c\n")
        while not jobs.no_job.exits:
            self.assertFalse(jobs.claim(jobs.consumers.all))
            self.clock.now += 0.1
        self.assertEqual(present(jobs.no_job.summary).orphans, 1)

    def test_nothing_is_locked_or_made(self) -> None:
        self.path.write_bytes(b"r a\n. b\n")
        jobs = runmaker4.JobReader(str(self.path), say=self.fail)
        self.addCleanup(jobs.close_files)
        with mock.patch.object(runmaker4, "lock", side_effect=AssertionError):
            jobs.open_files()
            found = jobs.summarize([runmaker4.Consumer("")])
        self.assertEqual((found.orphans, found.jobs_left), (1, True))
        self.assertEqual(os.listdir(self.path.parent), [self.path.name])
