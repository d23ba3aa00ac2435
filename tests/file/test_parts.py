"""Smaller parts of the scripts by themselves."""
import asyncio
import contextlib
import errno
import fcntl
import functools
import importlib
import itertools
import json
import math
import os
import random
import time
import unittest
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Optional
from unittest import mock

import runmaker4
from tests.file.test_units import FileCase, a_run
from tests.support.claims import job_of
from tests.support.locks import locked
from tests.support.scripts import RUNCLIENT, RUNSERVER
from tests.support.values import present

client = importlib.import_module(RUNCLIENT[:-len(".py")])
server = importlib.import_module(RUNSERVER[:-len(".py")])
# Classes of that module, which only importlib can import: its name has a hyphen
ServedQueue = Any
Sessions = Any


def line(number: int, state: bytes = b"!") -> runmaker4.Line:
    """A line of 10 bytes per number."""
    return runmaker4.Line(number, 10 * (number - 1), state, b" CMD")


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class JobFileCase(FileCase):
    """A test with a job file of its own, and a clock."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        # on a busy machine a claim would return before it has found anything
        patch = mock.patch.object(runmaker4.Cursor, "SLICE", math.inf)
        patch.start()
        self.addCleanup(patch.stop)

    def queue_on(self, text: bytes, **options: Any) -> runmaker4.JobQueue:
        """A JobQueue on this text."""
        self.path.write_bytes(text)
        options = {"say": lambda said: None, "clock": self.clock, **options}
        file = runmaker4.JobFile(str(self.path), **options)
        self.addCleanup(file.close_files)
        return runmaker4.JobQueue(file)

    def another(self, file: runmaker4.JobFile) -> runmaker4.JobFile:
        other = runmaker4.JobFile(file.path, say=self.fail)
        self.addCleanup(other.close_files)
        other.open_to_write()
        return other

    def served_queue(self, mount: runmaker4.Mount = runmaker4.LOCAL) -> ServedQueue:
        """A server's on the file as it is."""
        make_lock_table = functools.partial(server.SharedLockTable, give_to_keeper=lambda fd: None)
        file = server.ServedFile(str(self.path), say=lambda text: None, mount=mount,
                                 make_lock_table=make_lock_table)
        self.addCleanup(file.close_files)
        return server.ServedQueue(file)

    def jobs(self, text: bytes, *, retry: bytes = b"", serving: bool = False,
             **options: Any) -> runmaker4.Cursor:
        """A cursor in a JobQueue on this text, for a runner that takes lines in these states besides."""
        queue = self.queue_on(text, **options)
        return runmaker4.Cursor(queue, [runmaker4.Consumer("", retry=retry)], serving=serving)


class PastTheCache(JobFileCase):
    """Network file systems: lines are read as they are there, and written there."""

    def run_two_jobs(self) -> list[str]:
        """Claim and finish two jobs on such a file system; what was said."""
        said: list[str] = []
        cursor = self.jobs(b". a\n. b\n", mount=runmaker4.Mount("nfs4", frozenset()), say=said.append)
        for _ in range(2):
            self.assertEqual(cursor.finish(job_of(cursor.claim()), b"d"), "")
        self.assertEqual(self.path.read_bytes(), b"d a\nd b\n")
        return said

    def test_all_reads_are_direct_in_whole_blocks_and_writes_are_synced(self) -> None:
        calls, preadv, pwrite, fsync = [], os.preadv, os.pwrite, os.fsync

        def is_direct(fd: int) -> bool:
            return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)

        def read(fd: int, buffers: list[memoryview], at: int) -> int:
            self.assertEqual((is_direct(fd), at % 4096, len(buffers[0]) % 4096), (True, 0, 0))
            calls.append("read")
            return preadv(fd, buffers, at)

        def write(fd: int, data: bytes, at: int) -> int:
            self.assertFalse(is_direct(fd))
            calls.append("write")
            return pwrite(fd, data, at)

        def sync(fd: int) -> None:
            calls.append("sync")
            fsync(fd)

        self.path.write_bytes(b"")
        try:
            os.close(os.open(self.path, os.O_RDONLY | os.O_DIRECT))
        except OSError:
            self.skipTest("no O_DIRECT on the file system of the tests")
        with mock.patch.multiple(os, preadv=read, pwrite=write, fsync=sync), \
                mock.patch.object(os, "pread", side_effect=AssertionError("a plain read")):
            self.assertEqual(self.run_two_jobs(), [])
        kinds = [call for call, before in zip(calls, ["", *calls]) if call != before]
        self.assertEqual(kinds, ["read", "write", "sync"] * 4)

    def test_blocks_give_what_plain_reads_give(self) -> None:
        random_ = random.Random(25)
        with open(self.path, "wb+", buffering=0) as file:
            for size in 0, 1, 4095, 4096, 4097, 8192, 20_000:
                file.truncate(0)
                os.pwrite(file.fileno(), random_.randbytes(size), 0)
                with runmaker4.Reader.with_own_fd(file.fileno(), True) as reader:
                    for _ in range(200):
                        at, count = random_.randrange(size + 5000), random_.choice([0, 1, 4095, 4096, 30_000])
                        expected = os.pread(file.fileno(), count, at)
                        self.assertEqual(reader.pread(count, at), expected, (size, at, count))

    def test_where_opening_with_o_direct_is_refused_pages_are_dropped_and_that_is_said_once(self) -> None:
        right = os.open

        def refuse(path: str, flags: int, *more: int) -> int:
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return right(path, flags, *more)

        with mock.patch.object(os, "open", refuse), mock.patch.object(os, "posix_fadvise") as advised:
            self.assertEqual(["refuses O_DIRECT" in text for text in self.run_two_jobs()], [True])
        self.assertEqual({call.args[3] for call in advised.mock_calls}, {os.POSIX_FADV_DONTNEED})

class DeadClients(JobFileCase):
    """A file system whose client on this host was killed answers ENOTCONN for ever (FUSE)."""

    def cut_off(self) -> contextlib.AbstractContextManager[mock.MagicMock]:
        return mock.patch.object(os, "open",
                                 side_effect=OSError(errno.ENOTCONN, "Transport endpoint is not connected"))

    def setUp(self) -> None:
        super().setUp()
        self.cursor = self.jobs(b". a\n", mount=runmaker4.Mount("fuse.new", frozenset()))
        self.job = job_of(self.cursor.claim())

    def fail_for(self, seconds: int) -> None:
        """Try to write the result for so long, in vain."""
        with self.cut_off():
            for _ in range(seconds):
                with self.assertRaises(runmaker4.TemporaryError):
                    self.cursor.finish(self.job, b"d")
                self.clock.now += 1

    def test_a_result_is_given_up_after_a_minute(self) -> None:
        self.fail_for(60)
        with self.cut_off():
            self.assertIn("client of the file system has died", self.cursor.finish(self.job, b"d"))
        self.assertEqual(self.cursor.queue.claimed, {})

    def test_one_that_comes_back_gets_its_result(self) -> None:
        for _ in range(3):                      # the minute begins anew each time
            self.fail_for(40)
            self.cursor.queue.reopen_if_replaced()
        self.assertEqual(self.cursor.finish(self.job, b"d"), "")
        self.assertEqual(self.path.read_bytes(), b"d a\n")


class Removed(JobFileCase):
    """The job file, or the lock file, was removed."""

    def test_who_only_looks_takes_no_job_for_an_orphan_while_the_lock_file_is_away(self) -> None:
        cursor = self.jobs(b". a\n. b\n")
        jobs = [cursor.claim(), cursor.claim()]
        reader = runmaker4.JobReader(str(self.path), say=self.fail)
        self.addCleanup(reader.close_files)
        lines = list(reader.scan_lines(b"r"))
        os.unlink(cursor.queue.file.lock_table.path)
        cursor.queue.check_jobs()
        self.assertEqual([reader.is_orphan(line) for line in lines], [False] * len(jobs))

    def test_a_server_that_has_forgotten_it_is_put_up_with(self) -> None:
        """NFS answers ESTALE to reads of a file that another host has removed."""
        cursor = self.jobs(b". a\n", mount=runmaker4.Mount("nfs4", frozenset()))
        job = job_of(cursor.claim())
        os.unlink(self.path)
        pread = runmaker4.Reader.pread

        def stale(reader: runmaker4.Reader, size: int, at: int) -> bytes:
            if not os.fstat(reader.fd).st_nlink:
                raise OSError(errno.ESTALE, "Stale file handle")
            return pread(reader, size, at)
        with mock.patch.object(runmaker4.Reader, "pread", stale), self.assertRaises(runmaker4.TemporaryError):
            cursor.finish(job, b"d")

    def test_a_server_keeps_all_job_locks_when_it_opens_the_files_again_after_an_error(self) -> None:
        self.path.write_bytes(b". a\n. b\n")
        queue = self.served_queue(runmaker4.Mount("nfs4", frozenset()))
        jobs = runmaker4.Cursor(queue, [runmaker4.Consumer("")], serving=True)
        self.assertEqual(jobs.finish(job_of(jobs.claim()), b"d"), "")
        job = job_of(jobs.claim())
        job_lock = job.job_lock
        queue.close_if_locks_lost(OSError(errno.EIO, "Input/output error"))
        self.assertEqual(queue.check_jobs(), {})
        self.assertIs(job.job_lock, job_lock, "it was not lost")


class EditedInPlace(JobFileCase):
    """An editor changes the file in place at a bad moment."""

    def job(self, cursor: runmaker4.Cursor) -> runmaker4.Job:
        """The next job, which has the number of the line in which its command stands."""
        self.clock.now += 10.0
        job = job_of(cursor.claim())
        lines = self.path.read_bytes().removeprefix(runmaker4.UTF8_MARK).splitlines()
        self.assertEqual(lines[job.number - 1], b"r" + job.text)
        return job

    def test_no_comment_becomes_a_job_once_the_byte_order_mark_is_gone(self) -> None:
        cursor = self.jobs(runmaker4.UTF8_MARK + b"# nothing\n")
        self.assertFalse(cursor.claim())
        self.path.write_bytes(b"# x. touch INJECTED\n. echo\n")
        self.assertEqual(self.job(cursor).command, b"echo")
        self.assertTrue(self.path.read_bytes().startswith(b"# x. touch INJECTED\n"))

    def test_a_result_finds_its_line_once_a_byte_order_mark_has_come(self) -> None:
        cursor = self.jobs(b". a\n. b\n")
        job = self.job(cursor)
        self.path.write_bytes(runmaker4.UTF8_MARK + b"r a\n. b\n")
        self.assertEqual(cursor.finish(job, b"d"), "")
        self.assertEqual(self.path.read_bytes(), runmaker4.UTF8_MARK + b"d a\n. b\n")

    def test_a_line_keeps_its_number_where_lines_are_inserted_while_somebody_is_behind_a_door(self) -> None:
        cursor = self.jobs(b". a\n. b\n. c\n")

        def insert(*_: object) -> object:
            if claim.call_count > 1:
                return mock.DEFAULT
            self.path.write_bytes(b"# 1\n# 2\n# 3\n" + self.path.read_bytes())
            return runmaker4.Attempt(runmaker4.LineCheck.LOCKED)

        with mock.patch.object(cursor.queue, "claim", wraps=cursor.queue.claim) as claim:
            claim.side_effect = insert
            commands = [self.job(cursor).command for _ in range(3)]
        self.assertEqual(commands, [b"a", b"b", b"c"])


class AppendedAfterTruncation(JobFileCase):
    """An append makes a file longer, also one that somebody has made shorter in place."""

    def test_lines_above_an_append_are_claimed_meanwhile_and_in_order(self) -> None:
        cursor = self.jobs(b". a\n. b\n. c\n")
        self.assertEqual(job_of(cursor.claim()).command, b"a")
        locks = self.another(cursor.file).lock_table.fd
        with locked(locks, runmaker4.APPEND_BYTE):
            with open(self.path, "ab") as file:
                file.write(b". d\n")
            self.assertEqual(job_of(cursor.claim()).command, b"b")
            self.assertEqual(job_of(cursor.claim()).command, b"c")
            self.assertFalse(cursor.claim())
        self.clock.now += 60.0
        self.assertEqual(job_of(cursor.claim()).command, b"d")

    def test_half_a_line_waits_for_the_end_of_the_append(self) -> None:
        for mount in runmaker4.LOCAL, runmaker4.Mount("nfs4", frozenset()):
            with self.subTest(mount.kind):
                cursor = self.jobs(b". a\n. longer\n", mount=mount)
                self.assertEqual(cursor.finish(job_of(cursor.claim()), b"d"), "")
                locks = self.another(cursor.file).lock_table.fd
                self.path.write_bytes(b". rm -r old")
                line = present(runmaker4.Scan(cursor.file.reader, 0).next())
                with locked(locks, runmaker4.APPEND_BYTE), cursor.file.command_mutex(line.command):
                    self.assertFalse(cursor.file.check_committed(line))


class SetByHand(JobFileCase):
    """Another state over the `r` of a held line."""

    def test_two_looks_in_a_row_must_find_it(self) -> None:
        cursor = self.jobs(b". a\n")
        job = job_of(cursor.claim())
        for text in b"", b"x a\n":
            self.path.write_bytes(text)
            self.assertEqual(self.look(cursor), {})
        self.assertEqual(self.look(cursor), {job: "cancelled"})

    def test_thousands_of_equal_lines_are_not_read_one_by_one(self) -> None:
        """On a network file system each read is a round trip, during which the command mutex is locked."""
        rest = b". a\n" * 30_000
        cursor = self.jobs(b". a\n" + rest)
        job = job_of(cursor.claim())
        self.path.write_bytes(b"x a\n" + rest)
        with mock.patch.object(runmaker4.Reader, "pread", autospec=True,
                               side_effect=runmaker4.Reader.pread) as pread:
            self.assertEqual(self.look(cursor), {})
        self.assertLess(pread.call_count, 50)
        self.assertEqual(self.look(cursor), {job: "cancelled"})

    def test_a_file_that_is_half_saved_does_not_tell_that_an_equal_line_is_the_jobs(self) -> None:
        cursor = self.jobs(b"d a\n. a\n")
        job = job_of(cursor.claim())
        self.path.write_bytes(b"d a\n")
        with self.assertRaises(runmaker4.TemporaryError):
            cursor.finish(job, b"!")
        self.path.write_bytes(b"d a\nr a\n")
        self.assertEqual(cursor.finish(job, b"!"), "")
        self.assertEqual(self.path.read_bytes(), b"d a\n! a\n")

    def test_a_job_whose_line_is_deleted_runs_on_whatever_equal_lines_say(self) -> None:
        for before, after in ((b". a\nd a\n", b"d a\n"), (b"d a\n. a\n", b"d a\n"),
                              (b"d a\n. a\n! a\n", b"d a\n! a\n"),
                              (b"d a\n. a\n! a\n. b\n", b"d a\n! a\n. b\n")):
            with self.subTest(before=before):
                said: list[str] = []
                cursor = self.jobs(before, say=said.append)
                job = job_of(cursor.claim())
                self.assertEqual(self.look(cursor), {})
                self.path.write_bytes(after)
                for added in (b"", b"", b". c\n", b"", b"", b"", b"", b""):
                    with self.path.open("ab") as file:
                        file.write(added)
                    self.assertEqual(self.look(cursor), {})
                gone = f"line {job.number}: no longer in the file; it is not tried again (a run goes on)"
                self.assertEqual(said, [gone])
                self.assertIn("the line is gone; the result d is not written", cursor.finish(job, b"d"))
                self.assertEqual(self.path.read_bytes(), after + b". c\n")

    def look(self, cursor: runmaker4.Cursor) -> dict[runmaker4.Job, str]:
        """Which jobs are to end, as a look says a second later."""
        self.clock.now += 1.0
        return cursor.queue.check_jobs()


class HeldUp(JobFileCase):
    """An editor that saves in place is stopped with a part of the file written, or a command is locked."""
    NETWORK = runmaker4.Mount("fuse.mfs", frozenset())

    def begin(self, mount: runmaker4.Mount) -> None:
        """Claim the first of two jobs."""
        self.cursor = self.jobs(b". a\n. b\n", mount=mount)
        self.job = job_of(self.cursor.claim())

    def again(self) -> Optional[float]:
        """When a runner that has nothing left to take looks again; None: it may leave."""
        found = self.cursor.claim()
        self.assertFalse(found)
        return found.retry_after if isinstance(found, runmaker4.NoJob) else None

    def assertWaits(self, *times: int) -> None:
        """So many seconds after the first time the result is still to be written later."""
        start = self.clock.now
        for seconds in times:
            self.clock.now = start + seconds
            with self.assertRaises(runmaker4.TemporaryError):
                self.cursor.finish(self.job, b"d")

    def test_a_result_waits_a_minute_for_its_line_to_come_back(self) -> None:
        for part in b"", b"r", b"d" + bytes(7):         # these zeros are there after a write behind the end
            with self.subTest(part=part):
                self.begin(self.NETWORK)
                self.path.write_bytes(part)
                self.assertWaits(0, 5, 20, 59)
                self.path.write_bytes(b"r a\n. b\n")
                self.assertEqual(self.cursor.finish(self.job, b"d"), "")
                self.assertEqual(self.path.read_bytes(), b"d a\n. b\n")

    def test_what_stays_so_for_long_enough_is_believed(self) -> None:
        """A file that is empty, and one that is no shorter and in which another line stands."""
        for mount, text, *waits, gone in ((self.NETWORK, b"", 0, 5, 20, 59, 60),
                                          (self.NETWORK, b"# not a\n. b\n", 0, 5, 10),
                                          (runmaker4.LOCAL, b"", 0, 1, 2)):
            with self.subTest(mount=mount.kind, text=text):
                self.begin(mount)
                self.path.write_bytes(text)
                start = self.clock.now
                self.assertWaits(*waits)
                self.clock.now = start + gone
                self.assertIn("line is gone", self.cursor.finish(self.job, b"d"))

    def test_who_has_nothing_left_looks_for_a_minute_whether_the_rest_comes(self) -> None:
        for part in b"", b"d" + bytes(7):
            with self.subTest(part=part):
                self.begin(self.NETWORK)
                self.path.write_bytes(part)
                for _ in range(12):
                    self.assertEqual(self.again(), 5)
                    self.clock.now += 5
                self.assertIsNone(self.again())

    def test_a_locked_command_holds_up_neither_claims_nor_results_nor_looks(self) -> None:
        cursor = self.jobs(b". a\n. a\n")
        job = job_of(cursor.claim())
        other = self.another(cursor.queue.file)
        with other.command_mutex(b"a") as opened, mock.patch("time.sleep", side_effect=time.sleep) as sleep:
            self.assertTrue(opened)
            self.assertIsInstance(cursor.claim(), runmaker4.NoJob)
            with self.assertRaises(runmaker4.TemporaryError):
                cursor.finish(job, b"d")
            self.path.write_bytes(b"x a\nr a\n")
            self.clock.now += 10.0
            self.assertEqual(cursor.queue.check_jobs(), {})
        self.assertLess(sum(call.args[0] for call in sleep.call_args_list), 0.2)
        cursor.queue.release_job(job)


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
            jobs.reopen_if_replaced()
            found = jobs.summarize([runmaker4.Consumer("")])
        self.assertEqual((found.orphans, found.jobs_left), (1, True))
        self.assertEqual(os.listdir(self.path.parent), [self.path.name])


class CopiedSettings(unittest.TestCase):
    """Settings are copied whole, whatever is added to them."""

    def test_a_client_gets_all_but_what_the_server_heeds(self) -> None:
        settings = runmaker4.JobSettings(line(7), 30.0, ("bob",), "pair", 1, runmaker4.Resources(2, 1 << 20),
                                         (runmaker4.Resources(2, 1 << 21),), "bash")
        job = runmaker4.Job(**vars(line(9, state=b".")), settings=settings)
        told = json.loads(json.dumps(server.Assignment("0" * 16, None, job).make_job_entry()))
        got = client.RemoteJob.from_message(runmaker4.Message(told)).settings
        heeded = {"line", "hosts", "together", "min_hosts"}
        for one in fields(runmaker4.JobSettings):
            with self.subTest(setting=one.name):
                expected = one.default if one.name in heeded else getattr(settings, one.name)
                self.assertNotEqual(getattr(settings, one.name), one.default, "the test does not set it")
                self.assertEqual(getattr(got, one.name), expected)


class LinesOfADeadServer(JobFileCase):
    """The next server gives them to the clients that name them, also where they have moved."""

    def inherit(self, before: list[bytes], after: bytes) -> ServedQueue:
        """Hold these lines, then edit the file: how the next server has it."""
        self.path.write_bytes(after)
        fd = runmaker4.open_lock_file_of(str(self.path))
        for number, text in enumerate(before, 1):
            self.assertTrue(runmaker4.lock(fd, runmaker4.bucket_of(text[1:]) + number))
        queue = self.served_queue()
        self.addCleanup(os.close, fd)
        queue.reopen_if_replaced()
        queue.file.lock_table.inherit_locks(fd)
        return queue

    def take_back(self, queue: ServedQueue, *texts: bytes) -> list[int]:
        """Where the lines of clients are that say where they were."""
        found = queue.file.lines_by_command({text[1:] for text in texts})
        jobs = []
        for number, text in enumerate(texts, 1):
            lines = found[text[1:]]
            own_line = next((line for line in lines if line.number == number), None)
            running = [line for line in lines if line.state == b"r"]
            jobs.append(present(queue.reclaim_line(own_line, running, b"re.")))
        queue.check_jobs()
        return [job.offset for job in jobs]

    def test_no_seat_is_locked_as_it_is_locked_already(self) -> None:
        """On CephFS that would lock what is behind it, too."""
        with mock.patch.object(server, "lock", wraps=runmaker4.lock) as lock:
            self.inherit([b" a", b" b"], b"r a\nr b\n")
        asked = [(*call.args, *call.kwargs.items()) for call in lock.mock_calls]
        self.assertEqual([len(one) for one in asked], [3, 2] * 2, asked)
        self.assertEqual([one[:2] for one in asked[::2]], asked[1::2])

    def test_equal_lines_go_to_the_clients_that_name_them_and_none_to_two(self) -> None:
        for after, offsets in (
            (b"r echo\nr echo\nr echo\n", [0, 7, 14]),
            (b"# new\nr echo\nr echo\nr echo\n", [6, 13, 20]),    # two of these numbers are still lines
            (b"x echo\nr echo\nr echo\n", [0, 7, 14]),
        ):
            with self.subTest(after=after):
                self.path = self.path.with_name(f"runs.{after[:1].hex()}")
                queue = self.inherit([b" echo"] * 3, after)
                self.assertEqual(sorted(self.take_back(queue, *[b" echo"] * 3)), offsets)

    def test_the_line_that_an_edit_has_left_of_two_goes_to_one_client(self) -> None:
        queue = self.inherit([b" echo"] * 2, b"# new\n# new\nr echo\n")
        left = queue.file.lines_by_command({b"echo"})[b"echo"]
        found = [queue.reclaim_line(left[0], left, b"re") for _ in range(2)]
        self.assertEqual([job is None for job in found], [False, True])

    def test_orphans_and_lines_that_others_have_are_not_among_them(self) -> None:
        text = b" echo"
        self.path.write_bytes(b"r%s\n" % text * 3)
        other = runmaker4.open_lock_file_of(str(self.path))
        self.addCleanup(os.close, other)
        self.assertTrue(runmaker4.lock(other, runmaker4.bucket_of(b"echo") + 3))
        queue = self.inherit([text], b"r%s\n" % text * 3)
        self.assertEqual(len(queue.file.lock_table.locks_without_line), 1)
        self.assertEqual(self.take_back(queue, text), [0])
        file = queue.file
        self.assertEqual([file.is_orphan(line) for line in file.scan_lines(b"r")], [False, True, False])


class LinesOfAClientThatComesBack(JobFileCase):
    """A server seeks the lines of jobs that it has not given to the client that names them."""

    def sessions(self, lines: bytes) -> Sessions:
        """Of a server whose file has these lines, which nobody runs.  To be called in an event loop."""
        self.path.write_bytes(lines)
        self.served = self.served_queue()
        claims = server.Claims(self.served, serving=True)
        loop = asyncio.get_running_loop()
        return server.Sessions(
            loop, runmaker4.FileExecutor(threaded=False), claims, mock.Mock(), runmaker4.RunnerStats(),
            server.Lifetime(loop), say=lambda text: None, on_error=lambda text: None,
            interval=self.served.file.interval, path=str(self.path), directory=b"", grace=60.0, max_failed=0)

    def answer(self, lines: bytes, result: Optional[bytes], known: tuple[str, ...] = ()) -> object:
        """What becomes of a job of the line ` echo` that stood first in the file, which has these lines now.

        The number of the line that the client has then, or the word for why it has none.  known: the keys
        that this server has settled.
        """
        async def come() -> object:
            sessions = self.sessions(lines)
            client = server.Client(sessions, "c" * 16)
            claim = server.ReportedJob("1" * 16, runmaker4.Line(1, 0, b".", b" echo"), result)
            sessions.settled_keys.update(dict.fromkeys(known))
            reclaimed = await sessions.recovery.reclaim(client, [claim])
            words = ["SETTLED"] * len(reclaimed.settled) + ["LOST"] * len(reclaimed.lost)
            numbers = [assignment.number for assignment in client.assignments.values()]
            self.assertEqual(len(self.served.claimed), len(numbers))
            for assignment in client.assignments.values():
                self.served.release_job(assignment.job)
            only, = words + numbers
            return only
        return asyncio.run(come())

    def test_what_a_client_says_and_what_stands_there_decide(self) -> None:
        table = {
            None: {"r": 1, "e": 1, ".": 1, "d": "LOST", "!": "LOST", "x": "LOST"},
            "d": {"r": 1, "e": 1, ".": 1, "d": "SETTLED", "!": "LOST", "x": "LOST"},
            "!": {"r": 1, "e": 1, ".": 1, "d": "LOST", "!": "SETTLED", "x": "LOST"},
            ".": {"r": 1, "e": "LOST", ".": "SETTLED", "d": "LOST", "!": "LOST", "x": "LOST"},
            "e": {"r": 1, "e": "SETTLED", ".": "LOST", "d": "LOST", "!": "LOST", "x": "LOST"},
        }
        for result, answers in table.items():
            said = None if result is None else result.encode()
            for state, answer in answers.items():
                with self.subTest(said=result, stands=state):
                    self.assertEqual(self.answer(b"%s echo\n" % state.encode(), said), answer)
                    self.assertEqual(self.path.read_bytes()[:1].decode(), "r" if answer == 1 else state)
            with self.subTest(said=result, stands="nothing"):
                self.assertEqual(self.answer(b"r other\n", said), "LOST")
            with self.subTest(said=result, stands="anything", known="it is settled"):
                self.assertEqual(self.answer(b". echo\n", said, known=("1" * 16,)), "SETTLED")

    def test_a_line_r_that_another_has_is_lost_whatever_is_said(self) -> None:
        self.path.write_bytes(b"")
        other = runmaker4.open_lock_file_of(str(self.path))
        self.addCleanup(os.close, other)
        self.assertTrue(runmaker4.lock(other, runmaker4.bucket_of(b"echo") + 1))
        for result in None, b"d", b".", b"e":
            with self.subTest(said=result):
                self.assertEqual(self.answer(b"r echo\n", result), "LOST")

    def test_of_equal_lines_any_orphan_will_do_but_of_others_its_own_only(self) -> None:
        """A command may use $JOB_ID: what has run under one number has not under another."""
        for result in None, b"!":
            for lines, answer in (
                (b"d echo\nr echo\n", 2),
                (b"d echo\ne echo\n", "LOST"),
                (b"d echo\n. echo\n", "LOST"),
                (b"# new\nr echo\n", 2),
                (b"# new\ne echo\n", 2),                # it can be no other line
                (b"# new\ne echo\ne echo\n", "LOST"),
                (b"# new\n. echo\n", "LOST"),
                (b"# new\nd echo\n", "LOST"),
            ):
                with self.subTest(said=result, lines=lines):
                    self.assertEqual(self.answer(lines, result), answer)

    def test_the_only_line_of_a_file_that_can_be_half_saved_is_not_taken_yet(self) -> None:
        async def come() -> Any:
            sessions = self.sessions(b"# new\ne echo\n")
            job = server.ReportedJob("1" * 16, runmaker4.Line(1, 0, b".", b" echo"), b"d")
            with mock.patch.object(sessions.claims.file, "seconds_until_trusted", return_value=1.0):
                return sessions.claims.reclaim_lines(server.Client(sessions, "c" * 16), [job], False)
        reclaimed = asyncio.run(come())
        self.assertEqual((reclaimed.jobs, reclaimed.doubt), ({}, "the file can be half saved"))

    def test_the_clients_of_a_dead_server_cost_no_search_each(self) -> None:
        fd = runmaker4.open_lock_file_of(str(self.path))
        self.addCleanup(os.close, fd)
        for number in 1, 2:
            self.assertTrue(runmaker4.lock(fd, runmaker4.bucket_of(b"echo") + number))

        async def come() -> list[int]:
            sessions = self.sessions(b"r echo\nr echo\n")
            sessions.claims.inherit(fd)
            clients = [server.Client(sessions, f"{number:016x}") for number in (1, 2)]
            with mock.patch.object(self.served.file, "lines_by_command", side_effect=AssertionError):
                for number, client in enumerate(clients, 1):
                    line = runmaker4.Line(number, 0, b".", b" echo")
                    await sessions.recovery.reclaim(client, [server.ReportedJob(client.id, line, None)])
            return [assignment.number for client in clients for assignment in client.assignments.values()]
        self.assertEqual(asyncio.run(come()), [1, 2])

    def test_a_result_that_was_written_before_an_edit_is_not_given_to_a_line_of_the_same_text(self) -> None:
        moved = b"# new\nd echo\nr echo\n"
        self.assertEqual(self.answer(moved, b"d"), "SETTLED")
        self.assertEqual(self.answer(moved, b"!"), 3)
        self.assertEqual(self.answer(moved, None), 3)

    def come_in_vain(self, function: str, trouble: object) -> tuple[str, list[int]]:
        """Why the client is not told what it has lost if each call of a function of the queue or its file
        ends so, and the lines that it has then; nothing is asked again after a moment.
        """
        async def come() -> str:
            sessions = self.sessions(b"r echo one\nr echo two\n")
            sessions.interval = 0.05
            where = self.served if hasattr(self.served, function) else self.served.file
            self.client = server.Client(sessions, "c" * 16)
            lines = [runmaker4.Line(number, 0, b".", b" echo " + word)
                     for number, word in enumerate((b"one", b"two", b"three"), 1)]
            jobs = [server.ReportedJob(f"{line.number:016x}", line, None) for line in lines]
            with mock.patch.object(where, function, side_effect=trouble):
                reclaimed = await sessions.recovery.reclaim(self.client, jobs)
            why: str = reclaimed.doubt
            return why
        return asyncio.run(come()), [assignment.number for assignment in self.client.assignments.values()]

    def test_what_cannot_be_looked_at_is_not_lost(self) -> None:
        def locked(*args: object) -> object:
            return runmaker4.Attempt(runmaker4.LineCheck.LOCKED)

        for function, trouble, why in (
            ("reopen_if_replaced", FileNotFoundError(errno.ENOENT, "No such file"), "no such file"),
            ("lines_by_command", OSError(errno.EIO, "Input/output error"), "input/output error"),
            ("claim", runmaker4.FileChangedError("edited"), "edited"),
            ("claim", locked, "holds the command mutex"),
        ):
            with self.subTest(function=function, why=why):
                answer, lines = self.come_in_vain(function, trouble)
                self.assertIn(why, answer.lower())
                self.assertEqual(lines, [])


class ManyRunners(JobFileCase):
    """What one of many runners asks costs no more the more there are."""

    def test_one_lock_answers_whether_others_use_the_file(self) -> None:
        file = self.queue_on(b". a\n").file
        file.open_to_write()
        self.assertTrue(file.has_no_other_users())
        others = [os.open(file.lock_table.path, os.O_RDWR) for _ in range(9)]
        for number, descriptor in enumerate(others):
            self.addCleanup(os.close, descriptor)
            self.assertTrue(runmaker4.lock(descriptor, runmaker4.PRESENCE_BYTES + 99 * number))
        with mock.patch.object(runmaker4, "other_lock", side_effect=runmaker4.other_lock) as asked:
            self.assertFalse(file.has_no_other_users())
            self.assertEqual(asked.call_count, 1)
            self.assertEqual(file.lock_table.presence_locks(), {99 * number for number in range(9)})


    def test_who_claims_one_of_many_equal_lines_reads_little_of_the_file(self) -> None:
        """Others are a little above; far below or above it are only lines that have finished."""
        for above, below in (40_000, 0), (0, 40_000), (40_000, 40_000), (3, 3):
            with self.subTest(above=above, below=below):
                text = b"d a\n" * above + b". a\n" * 9 + b"d a\n" * below
                first = self.queue_on(text)
                other = runmaker4.JobQueue(self.another(first.file))
                for queue in first, other:
                    queue.reopen_if_replaced()
                lines = [*first.file.scan_lines(b".")]
                for line in lines[:4]:
                    self.assertTrue(first.claim(line).job)
                read, pread = [0], runmaker4.Reader.pread

                def counted(reader: runmaker4.Reader, size: int, offset: int) -> bytes:
                    data = pread(reader, size, offset)
                    read[0] += len(data)
                    return data

                with mock.patch.object(runmaker4.Reader, "pread", counted):
                    self.assertTrue(other.claim(lines[4]).job)
                self.assertLess(read[0], 60_000)
                for queue in first, other:
                    for job in [*queue.claimed]:
                        queue.release_job(job)

    def test_equal_lines_are_counted_once_each_wherever_the_next_one_is(self) -> None:
        draws = random.Random(2)
        for case in range(200):
            texts = draws.choices((b". a", b"r a", b"r\ta\r", b"d a", b"r b", b"# r a", b""), k=30)
            file = self.queue_on(draws.choice((b"", b"\xef\xbb\xbf")) + b"\n".join(texts)).file
            file.NEAR_BYTES = draws.choice((0, 1, 16, 1000))
            file.open_to_write()
            running = sum(text in (b"r a", b"r\ta\r") for text in texts)
            near = draws.randrange(200)
            with self.subTest(case=case, texts=texts, near=near):
                self.assertTrue(file._has_running_lines(b"a", running, near))
                self.assertFalse(file._has_running_lines(b"a", running + 1, near))


class RetriesOfMany(JobFileCase):
    """What -r and --resume mean is made new once, from the top, before the first claim."""

    def consumer(self, name: str, retry: bytes = b"") -> runmaker4.Consumer:
        slots = runmaker4.Resources(2)
        return runmaker4.Consumer(name, retry=retry, capacity=slots, free=slots)

    def claim(self, cursor: runmaker4.Cursor, retry: bytes = b"") -> Optional[bytes]:
        """The command of the job that a consumer gets who has just come."""
        consumer = self.consumer("alice", retry)
        job = cursor.claim([consumer], runmaker4.Consumers([consumer]))
        while not job and cursor.no_job.retry_after == 0.0:     # a slice is over: this host is busy
            job = cursor.claim([consumer], runmaker4.Consumers([consumer]))
        self.clock.now += 10.0
        return job.command if isinstance(job, runmaker4.Job) else None

    def test_each_who_comes_makes_new_what_has_failed_by_then(self) -> None:
        cursor = self.jobs(b"! a\ne b\nd c\n", serving=True)
        self.assertIsNone(self.claim(cursor))
        self.assertEqual(self.claim(cursor, b"er"), b"b")
        self.assertEqual(self.claim(cursor, b"er"), None)
        self.assertEqual(self.claim(cursor, b"!er"), b"a")

    def test_who_comes_or_goes_meanwhile_begins_it_again_for_those_who_are_there(self) -> None:
        cursor = self.jobs(b"#RUN host=a\n! 1\n! 2\n#RUN host=b\n! 3\n. 4\n", serving=True)
        gone, other = (self.consumer(name, b"!er") for name in "ab")
        with mock.patch.multiple(runmaker4.Cursor, SLICE=-1.0, RESET_BYTES=4):
            for _ in range(2):
                self.assertFalse(cursor.claim((), runmaker4.Consumers([gone])))
            while not (job := cursor.claim((), runmaker4.Consumers([other]))):
                self.assertEqual(cursor.no_job.retry_after, 0.0)
        self.assertEqual(job_of(job).command, b"3")
        self.assertEqual(self.path.read_bytes(), b"#RUN host=a\n. 1\n! 2\n#RUN host=b\nr 3\n. 4\n")

    def test_only_what_fits_is_new(self) -> None:
        before = (b"#RUN host=bob\n! a\n#RUN slots=3\n! b\n#RUN host=alice together=x\n! c\n"
                  b"#RUN host=alice slots=2\n! d\n")
        cursor = self.jobs(before, serving=True)
        self.assertEqual(self.claim(cursor, b"!er"), b"d")
        self.assertEqual(self.path.read_bytes(), before.replace(b"! d", b"r d"))

    def test_nothing_is_claimed_before_a_line_whose_command_is_locked_is_new_and_named(self) -> None:
        """Before: also above it.  A job that runs has its lines made new one by one."""
        said: list[str] = []
        cursor = self.jobs(b". z\n! a\n! b\n. c\n", retry=b"!er", say=said.append)
        other = self.another(cursor.queue.file)
        with other.command_mutex(b"b") as opened:
            self.assertTrue(opened)
            for _ in range(3):
                self.assertFalse(cursor.claim())
                self.assertIsNotNone(cursor.no_job.retry_after)
                self.clock.now += 10.0
        self.assertEqual(self.path.read_bytes(), b". z\n. a\n! b\n. c\n")
        self.assertEqual(len(said), 1)
        self.assertIn("line 3: no job starts before it is new again: another process holds", said[0])
        self.assertEqual([job_of(cursor.claim()).command for _ in range(4)], [b"z", b"a", b"b", b"c"])

    def test_lines_that_others_have_made_new_meanwhile_are_not_locked_one_by_one(self) -> None:
        change_state = runmaker4.JobFile.change_state
        for new, running in (99, 0), (98, 0), (98, 1):
            with self.subTest(new=new, running=running):
                text = b". z\n" + b"".join(b"! %d\n" % number for number in range(99))
                cursor = self.jobs(text, retry=b"!er")
                file, tries = cursor.queue.file, list[int]()
                text = text.replace(b"!", b"r", running).replace(b"!", b".", new)

                def tried(file: runmaker4.JobFile, line: runmaker4.Line, *more: bytes) -> runmaker4.Attempt:
                    if not tries:
                        self.path.write_bytes(text)
                    tries.append(line.number)
                    return change_state(file, line, *more)

                other = self.another(file)
                with other.command_mutex(b"z"), mock.patch.object(runmaker4.JobFile, "change_state", tried):
                    while not cursor.claim():
                        self.clock.now += 10.0
                self.assertNotIn(b"!", self.path.read_bytes())
                self.assertLess(len(tries), 4, tries)

    def test_what_others_made_new_in_another_file_is_made_new_in_this_one(self) -> None:
        cursor = self.jobs(b". z\n! a\n! b\n", retry=b"!er")
        other = self.another(cursor.queue.file)
        with other.command_mutex(b"a"):
            self.assertFalse(cursor.claim())
        self.path.write_bytes(b". z\n. a\n. b\n")
        (new := self.path.with_name("new")).write_bytes(b". z\n! a\n! b\n")
        new.replace(self.path)
        self.clock.now += 10.0
        while not (job := cursor.claim()):
            self.clock.now += 10.0
        self.assertEqual((job_of(job).command, self.path.read_bytes()), (b"z", b"r z\n. a\n. b\n"))

    def test_signals_act_between_steps_and_after_two_seconds_it_reports_the_lines(self) -> None:
        """However slow the steps are, no new line starts before a failed one above it."""
        said: list[str] = []
        cursor = self.jobs(b"! a\n. new\n! b\n! c\n", retry=b"!er", say=said.append)
        claims = 0
        with mock.patch.multiple(runmaker4.Cursor, SLICE=-1.0, RESET_BYTES=4):
            while not (job := cursor.claim()):
                self.assertEqual(cursor.no_job.retry_after, 0.0)
                claims += 1
                self.clock.now += 1.5
        self.assertEqual((job_of(job).command, claims), (b"a", 6))
        self.assertEqual(said, ["2 failed lines made new so far; no job starts before all are"])

    def test_a_line_that_has_changed_or_moved_since_it_was_read_is_left_alone(self) -> None:
        file = self.jobs(b"! a\nx b\n! c\n").file
        file.open_to_write()
        lines = [*file.scan_lines(b"!x")]
        self.path.write_bytes(b"! a\nd b\n! c\n")
        self.assertTrue(file.make_new(lines))
        self.assertEqual(self.path.read_bytes(), b". a\nd b\n. c\n")
        self.path.write_bytes(moved := b"! a\n! c\nx b\n")
        with self.assertRaises(runmaker4.FileChangedError):
            file.make_new(lines)
        self.assertEqual(self.path.read_bytes(), moved)

    def test_lines_that_were_moved_are_run_again_once_wherever_they_stand(self) -> None:
        """The file is replaced by one with its lines in another order, again and again."""
        for seed in range(20):
            with self.subTest(seed=seed):
                draws = random.Random(seed)
                lines = [b"! %d" % number for number in range(30)] + [b"! same"] * 5 + [b"# a", b". new"]
                draws.shuffle(lines)
                cursor = self.jobs(b"".join(line + b"\n" for line in lines), retry=b"!er")
                tried: list[bytes] = []
                running: list[runmaker4.Job] = []
                while (job := cursor.claim()) or running:
                    if job:
                        running.append(job_of(job))
                        tried.append(running[-1].command)
                    if len(running) == 3 or not job:
                        ended = running.pop(draws.randrange(len(running)))
                        cursor.finish(ended, draws.choice((b"!", b"e", b"d")))
                    self.clock.now += 10.0
                    if draws.random() < 0.2:
                        lines = self.path.read_bytes().splitlines()
                        draws.shuffle(lines)
                        new = self.path.with_name("new")
                        new.write_bytes(b"".join(line + b"\n" for line in lines))
                        os.replace(new, self.path)
                once = {b"%d" % number: 1 for number in range(30)}
                self.assertEqual(Counter(tried), {**once, b"same": 5, b"new": 1})

    def test_an_orphan_is_new_for_one_that_is_busy_or_away(self) -> None:
        cursor = self.jobs(b"d a\n", serving=True)
        away, other = self.consumer("a", b"er"), self.consumer("b")
        self.assertFalse(cursor.claim((), runmaker4.Consumers([away, other]), {away, other}))
        self.path.write_bytes(b"r a\n")
        self.clock.now += 10.0
        job = job_of(cursor.claim((), runmaker4.Consumers([other]), {away, other}))
        self.assertEqual((job.command, job.consumer), (b"a", other))


class InMemory(FileCase):
    """A scan holds one chunk of the file, and the record of a job no more than the log file shows."""

    def test_a_scan_that_wants_every_line_does_not_gather_the_file(self) -> None:
        self.path.write_bytes(b". echo job\n" * 20_000)
        with mock.patch.multiple(runmaker4.Scan, MIN_CHUNK_SIZE=512, MAX_CHUNK_SIZE=4096):
            scan = runmaker4.Scan(runmaker4.Reader(self.open()), 0)
            self.assertLess(max(len(scan._buffer) for _ in scan), 3 * 4096)

    def test_long_lines_are_cut_before_they_are_kept(self) -> None:
        log = runmaker4.LogFile(str(self.path), 100, b"/", runmaker4.FileExecutor(threaded=False), self.fail)
        self.addCleanup(os.close, log.file.fd)
        run = a_run()
        run.job = runmaker4.Job(number=1, offset=0, state=b".", text=b" " + b"c" * 10_000)
        log.on_started(run)
        for data in b"x" * 60_000 + b"\n", b"y" * 60_000, b"y" * 60_000, b"y\n" + b"z" * 60_000:
            for stream in run.streams:
                log.on_output(run, stream, data)
        record = log.records[run]
        self.assertEqual(len(record.lines), 5)          # forked, and two of each stream
        for text in [*record.lines, *record.incomplete_lines.values()]:
            self.assertLessEqual(len(text), log.WIDTH + 40)
