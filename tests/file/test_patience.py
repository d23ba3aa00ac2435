"""Promise: how long a runner waits for its file, or a line, does not depend on how often it looks."""
import itertools
import os
from collections.abc import Iterator
from unittest import mock

import runmaker4
from tests.support.claims import JobFileCase, job_of
from tests.support.values import present

NFS = runmaker4.Mount("nfs4", frozenset())
MOUNTS = runmaker4.LOCAL, NFS


class Patience(JobFileCase):
    """By a made-up clock."""

    def setUp(self) -> None:
        super().setUp()
        self.names = map(str, itertools.count())

    def new_jobs(self, mount: runmaker4.Mount, text: bytes = b". a\n",
                 say: runmaker4.Say = lambda text: None) -> runmaker4.Cursor:
        """A cursor on a file of its own, as jobs of those before still run."""
        self.path = self.path.with_name(next(self.names))
        return self.jobs(text, mount=mount, say=say)

    def each_interval(self) -> Iterator[None]:
        """Once as often as a runner looks, once more often, once less."""
        for factor in 1.0, 0.6, 3.0:
            interval = runmaker4.Seconds(factor, 5.0 * factor)
            with self.subTest(factor=factor), mock.patch.object(runmaker4.JobReader, "interval", interval):
                yield

    def queue_without_line(self, mount: runmaker4.Mount) -> runmaker4.JobQueue:
        """A queue with a job whose line it has just missed, and no other; what it says goes to `said`."""
        self.said: list[str] = []
        jobs = self.new_jobs(mount, say=self.said.append)
        job_of(jobs.claim())
        self.path.write_bytes(b"# nothing\n")
        jobs.queue.check_jobs()
        self.assertEqual(self.said, [])
        return jobs.queue

    def test_a_line_is_gone_after_2_s_and_on_a_network_after_10(self) -> None:
        for _ in self.each_interval():
            for mount, seconds in zip(MOUNTS, (2.0, 10.0)):
                for wait, count in (seconds - 0.1, 0), (seconds, 1):
                    queue = self.queue_without_line(mount)
                    self.clock.now += wait
                    queue.check_jobs()
                    self.assertEqual(len(self.said), count, (mount.kind, wait))

    def test_a_line_that_is_gone_is_searched_at_least_each_minute_and_on_a_network_each_five(self) -> None:
        for _ in self.each_interval():
            for mount, seconds in zip(MOUNTS, (60.0, 300.0)):
                queue = self.queue_without_line(mount)
                self.clock.now += 10_000.0
                queue.check_jobs()
                with mock.patch.object(queue.file, "lines_by_command", return_value={}) as search:
                    for wait, count in (seconds - 0.1, 0), (0.1, 1), (1.0, 1):
                        self.clock.now += wait
                        queue.check_jobs()
                        self.assertEqual(search.call_count, count, (mount.kind, wait))

    def test_a_last_line_without_a_newline_counts_after_1_s_and_on_a_network_after_5(self) -> None:
        for _ in self.each_interval():
            for mount, seconds in zip(MOUNTS, (1.0, 5.0)):
                jobs = self.new_jobs(mount, b". a")
                for wait, count in (0.0, 0), (seconds - 0.1, 0), (0.1, 1):
                    self.clock.now += wait
                    self.assertEqual(isinstance(jobs.claim(), runmaker4.Job), bool(count), (mount.kind, wait))

    def test_errors_of_the_file_end_a_runner_after_3_s_and_on_a_network_after_30(self) -> None:
        for _ in self.each_interval():
            for mount, seconds in zip(MOUNTS, (3.0, 30.0)):
                jobs = self.new_jobs(mount)
                os.unlink(self.path)
                for wait, is_final in (0.0, False), (seconds - 0.1, False), (0.1, True):
                    self.clock.now += wait
                    self.assertFalse(jobs.claim())
                    self.assertEqual(bool(jobs.no_job.final_error), is_final, (mount.kind, wait))

    def test_a_line_whose_mutex_is_held_is_tried_again_at_once(self) -> None:
        for _ in self.each_interval():
            for mount, seconds in zip(MOUNTS, (0.05, 0.25)):
                jobs = self.new_jobs(mount)
                with self.another(jobs.file).command_mutex(b"a"):
                    self.assertFalse(jobs.claim())
                self.assertLessEqual(present(jobs.no_job.retry_after), seconds)
                self.clock.now += seconds
                self.assertEqual(job_of(jobs.claim()).number, 1)

    def test_a_line_that_looks_like_an_orphan_is_looked_at_again_though_nothing_changes(self) -> None:
        """Where locks can be lost without an error, one look proves nothing."""
        cursor = self.jobs(b"r a\n", retry=b"r", mount=runmaker4.Mount("fuse.glusterfs", frozenset()))
        self.assertFalse(cursor.claim())
        self.assertIsNot(cursor.no_job.retry_after, runmaker4.WAIT)
        self.clock.now += 1000.0
        self.assertEqual(job_of(cursor.claim()).number, 1)

    def test_locks_on_nfs_are_believed_in_for_5_s(self) -> None:
        for _ in self.each_interval():
            jobs = self.new_jobs(NFS)
            job_of(jobs.claim())
            with mock.patch.object(runmaker4, "lost_locks", return_value=set()) as asked:
                for wait, count in (5.1, 1), (5.0, 1), (0.1, 2):
                    self.clock.now += wait
                    self.assertTrue(jobs.file.lock_table.still_has_locks())
                    self.assertEqual(asked.call_count, count, wait)
