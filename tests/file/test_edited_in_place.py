"""Promise: an editor that saves in place, at a bad moment or half, leads no state to another line."""
import errno
import os
import time
from typing import Optional
from unittest import mock

import runmaker4
from tests.support.claims import JobFileCase, job_of
from tests.support.locks import locked
from tests.support.values import present


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

    def test_a_look_that_finds_the_line_where_it_has_moved_comes_between_them(self) -> None:
        cursor = self.jobs(b". a\n")
        job = job_of(cursor.claim())
        for text in b"x a\n", b"#\nr a\n", b"#\nx a\n":
            self.path.write_bytes(text)
            self.assertEqual(self.look(cursor), {})
        self.assertEqual(self.look(cursor), {job: "cancelled"})

    def test_a_line_that_is_saved_as_new_elsewhere_is_r_again_though_an_equal_one_is_done(self) -> None:
        cursor = self.jobs(b". a\nd a\n")
        job = job_of(cursor.claim())
        self.path.write_bytes(b"#\n. a\nd a\n")
        self.assertEqual(self.look(cursor), {})
        self.assertEqual(self.path.read_bytes(), b"#\nr a\nd a\n")
        self.assertEqual(cursor.finish(job, b"d"), "")

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

    def test_a_job_whose_line_is_deleted_runs_on(self) -> None:
        for before, after in ((b". a\nd b\n", b"d b\n"), (b"d b\n. a\n", b"d b\n"), (b". a\n", b"")):
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

    def test_a_job_whose_line_is_deleted_counts_as_cancelled_if_an_equal_one_has_its_place(self) -> None:
        for before, after in (b". a\nd a\n", b"d a\n"), (b"d b\n. b\n! b\n", b"d b\n! b\n"):
            with self.subTest(before=before):
                cursor = self.jobs(before)
                job = job_of(cursor.claim())
                self.path.write_bytes(after)
                self.assertEqual(self.look(cursor), {})
                self.assertEqual(self.look(cursor), {job: "cancelled"})

    def test_jobs_are_cancelled_on_equal_lines_that_have_moved_since_the_last_look(self) -> None:
        cursor = self.jobs(b". a\n. a\n. a\n")
        jobs = [job_of(cursor.claim()), job_of(cursor.claim())]
        self.path.write_bytes(b"#\nc a\nc a\nc a\n")
        self.assertEqual([self.look(cursor), self.look(cursor)], [{}, dict.fromkeys(jobs, "cancelled")])

    def test_an_equal_line_that_is_new_is_the_jobs_and_not_one_that_was_cancelled_earlier(self) -> None:
        cursor = self.jobs(b"c a\n. a\n")
        job = job_of(cursor.claim())
        self.path.write_bytes(b"#\nc a\n. a\n")
        self.assertEqual([self.look(cursor), self.look(cursor)], [{}, {}])
        self.assertEqual(cursor.finish(job, b"d"), "")
        self.assertEqual(self.path.read_bytes(), b"#\nc a\nd a\n")

    def test_a_job_that_is_cancelled_does_not_go_to_the_equal_line_of_another_runner(self) -> None:
        cursor = self.jobs(b". a\n. a\n")
        job = job_of(cursor.claim())
        second, = cursor.file.scan_lines(b".")
        others = runmaker4.JobQueue(self.another(cursor.file))
        theirs = present(others.claim(second).job)
        self.path.write_bytes(b"x a\nr a\n")
        self.assertEqual([self.look(cursor), self.look(cursor)], [{}, {job: "cancelled"}])
        cursor.queue.release_job(job)
        self.assertEqual(others.finish(theirs, b"d"), "")
        self.assertEqual(self.path.read_bytes(), b"x a\nd a\n")

    def test_a_job_that_was_cancelled_does_not_get_the_line_of_an_equal_one_that_has_moved(self) -> None:
        cursor = self.jobs(b". a\n. a\n")
        first, second = job_of(cursor.claim()), job_of(cursor.claim())
        self.path.write_bytes(b"x a\nr a\n")
        self.assertEqual([self.look(cursor), self.look(cursor)], [{}, {first: "cancelled"}])
        self.path.write_bytes(b"#\nx a\nr a\n")          # before that job has ended
        self.assertEqual(self.look(cursor), {})
        self.assertEqual(cursor.finish(second, b"d"), "")
        self.assertEqual(self.path.read_bytes(), b"#\nx a\nd a\n")
        cursor.queue.release_job(first)

    def test_a_job_whose_result_is_written_is_not_cancelled_beside_an_equal_one_that_is(self) -> None:
        cursor = self.jobs(b". a\n. a\n")
        first, second = job_of(cursor.claim()), job_of(cursor.claim())
        self.write_and_fail(cursor, first)
        self.path.write_bytes(b"d a\nx a\n")
        self.assertEqual([self.look(cursor), self.look(cursor)], [{}, {second: "cancelled"}])
        self.assertEqual(cursor.finish(first, b"d"), "")

    def write_and_fail(self, cursor: runmaker4.Cursor, job: runmaker4.Job) -> None:
        """The result `d` of a job arrives in the file, and it seems that it does not."""
        write = cursor.file._write

        def write_and_fail(data: bytes, offset: int) -> None:
            write(data, offset)
            raise OSError(errno.ENOSPC, "No space left on device")          # an fsync(2) after the write

        with mock.patch.object(cursor.file, "_write", write_and_fail), \
                self.assertRaises(runmaker4.TemporaryError):
            cursor.finish(job, b"d")

    def test_a_job_whose_result_is_written_needs_no_job_lock_any_more(self) -> None:
        cursor = self.jobs(b". a\n")
        job = job_of(cursor.claim())
        self.write_and_fail(cursor, job)
        self.lose_job_lock(cursor.queue, job)
        self.assertEqual(self.look(cursor), {})
        self.assertEqual(cursor.finish(job, b"d"), "")

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

    def test_a_result_waits_while_another_process_uses_another_lock_file(self) -> None:
        self.begin(runmaker4.LOCAL)
        os.unlink(runmaker4.lock_file_of(str(self.path)))
        with open(self.path, "rb") as other:
            self.assertTrue(runmaker4.lock(other.fileno(), runmaker4.USER_BYTES + 5, shared=True))
            with self.assertRaises(OSError):
                self.cursor.queue.open_files()
            self.assertWaits(0)
            self.assertEqual(self.path.read_bytes(), b"r a\n. b\n")
        self.assertEqual(self.cursor.finish(self.job, b"d"), "")
        self.assertEqual(self.path.read_bytes(), b"d a\n. b\n")


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
