"""Promise: each job that may be taken is handed out once, in order; nothing changes but states."""
import contextlib
import errno
import os
import random
from collections.abc import Iterator
from unittest import mock

import runmaker4
from tests.support.claims import JobFileCase, job_of
from tests.support.job_file import BOM, FileCase, job_file, parse
from tests.support.processes import wait_until


class Claims(FileCase):
    """A job file hands out each job that may be taken once, in order, and changes nothing but states."""

    def jobs(self, retry: bytes = b"") -> runmaker4.Cursor:
        """The file, as a runner sees it that takes these states besides; its clock leaps."""
        clock = mock.Mock(side_effect=range(0, 1_000_000, 10))
        file = runmaker4.JobFile(str(self.path), say=self.said.append, clock=clock)
        return runmaker4.Cursor(runmaker4.JobQueue(file), [runmaker4.Consumer("", retry=retry)])

    def setUp(self) -> None:
        super().setUp()
        self.said: list[str] = []

    def take_all(self, jobs: runmaker4.Cursor, state: bytes) -> list[int]:
        numbers = []
        while True:
            job = jobs.claim()
            if isinstance(job, runmaker4.Job):
                numbers.append(job.number)
                self.assertEqual(jobs.finish(job, state), "")
            elif jobs.no_job.retry_after is None:
                return numbers

    def test_runners_that_have_met_choose_among_the_next_lines_but_not_across_a_directive(self) -> None:
        self.path.write_bytes(b". a 1\n" + b"".join(b". %d\n" % number for number in range(19))
                              + b"#RUN timeout=9\n. b\n")
        jobs = self.short_jobs()
        jobs.queue.spread = 1 << 8
        numbers = self.take_all(jobs, b"d")
        self.assertEqual(sorted(numbers[:20]), [*range(1, 21)])
        self.assertNotEqual(numbers[:20], [*range(1, 21)])
        self.assertEqual(numbers[20:], [22])

    def short_jobs(self) -> runmaker4.Cursor:
        """The file, as a runner of short jobs on NFS sees it."""
        mount = runmaker4.Mount("nfs4", frozenset())
        file = runmaker4.JobFile(str(self.path), say=self.said.append, mount=mount)
        self.addCleanup(file.close_files)
        return runmaker4.Cursor(runmaker4.JobQueue(file), [runmaker4.Consumer("", runs_short_jobs=True)])

    def test_a_short_job_has_its_bucket_until_that_is_trimmed_and_then_its_job_lock(self) -> None:
        self.path.write_bytes(b". a\n. b\n")
        jobs = self.short_jobs()
        job = job_of(jobs.claim())
        bucket, table = runmaker4.bucket_of(b"a"), jobs.file.lock_table
        self.assertTrue(table.is_held(bucket + 9) and table.is_mutex_held(b"a"))
        jobs.queue.trim_bucket(job)
        self.assertEqual([*runmaker4.other_locks(table.fd, bucket, 1 << 16)], [range(bucket + 1, bucket + 2)])
        self.assertEqual(jobs.finish(job, b"d"), "")
        self.assertEqual([*runmaker4.other_locks(table.fd, bucket, 1 << 16)], [])

    def test_who_would_exit_waits_for_a_last_line_whose_bucket_the_short_job_of_another_has(self) -> None:
        """When that gives it up, nothing changes in the file."""
        self.path.write_bytes(b". a\n. a\n")
        one, other = self.short_jobs(), self.short_jobs()
        job = job_of(one.claim())
        found = other.claim(other.consumers.all)
        self.assertEqual((found, other.no_job.exits), (other.no_job, {}))
        self.assertIsNotNone(other.no_job.retry_after, "it would wait for a change")
        one.queue.trim_bucket(job)
        wait_until(lambda: other.claim(other.consumers.all), what="it is claimed")
        last, = other.queue.claimed
        self.assertEqual([one.finish(job, b"d"), other.finish(last, b"d")], ["", ""])
        self.assertEqual(self.path.read_bytes(), b"d a\nd a\n")

    def test_a_result_waits_while_a_host_that_has_cached_the_old_file_cannot_open_the_new_one(self) -> None:
        self.path.write_bytes(b". a\n")
        clock, mount = mock.Mock(return_value=0.0), runmaker4.Mount("fuse.x", frozenset())
        file = runmaker4.JobFile(str(self.path), say=self.said.append, mount=mount, clock=clock)
        self.addCleanup(file.close_files)
        jobs = runmaker4.Cursor(runmaker4.JobQueue(file), [runmaker4.NOBODY])
        job, open_fd = job_of(jobs.claim()), os.open
        self.path.rename(f"{self.path}.old")
        self.path.write_bytes(b"r a\n. b\n")

        def open_new(path: str, flags: int, *args: int, **named: int) -> int:
            if os.path.basename(path) == self.path.name or path == f"/proc/self/fd/{file.reader.fd}":
                raise OSError(error, "stale")
            return open_fd(path, flags, *args, **named)
        with mock.patch.object(runmaker4, "path_names_fd", lambda path, fd: True):
            for error in errno.ENOENT, errno.ESTALE:
                for clock.return_value in 0.0, 100.0, 200.0:
                    with self.subTest(error=error), mock.patch.object(os, "open", open_new), \
                            self.assertRaisesRegex(runmaker4.TemporaryError, "replaced"):
                        jobs.finish(job, b"d")
                    self.assertTrue(file.is_open)
        self.assertEqual((jobs.finish(job, b"d"), self.path.read_bytes()), ("", b"d a\n. b\n"))

    def test_a_server_that_unlocks_no_part_of_a_lock_is_asked_for_no_bucket_of_a_job(self) -> None:
        self.path.write_bytes(b". a\n. b\n")
        jobs, unlock = self.short_jobs(), runmaker4.unlock
        table = jobs.file.lock_table

        def unlock_whole(fd: int, offset: int, length: int = 1) -> None:
            is_part = fd not in (table.fd, jobs.file.fd) and [range(offset, offset + length)] != [
                *runmaker4.other_locks(table.fd, offset - 1, length + 2)]
            if is_part:
                raise OSError(errno.EIO, "NFS4ERR_LOCK_RANGE")
            unlock(fd, offset, length)
        with mock.patch.object(runmaker4, "unlock", unlock_whole):
            for command in b"a", b"b":
                job = job_of(jobs.claim())
                self.assertEqual((table.count_job_locks(command), table.is_mutex_held(command)), (1, False))
                self.assertEqual(jobs.finish(job, b"d"), "")
                self.assertEqual(table.count_job_locks(command), 0)

    def test_no_bucket_stays_locked_if_nothing_of_it_can_be_unlocked(self) -> None:
        self.path.write_bytes(b". a\n")
        jobs = self.short_jobs()
        jobs.queue.open_files()
        with mock.patch.object(runmaker4, "unlock", side_effect=OSError(errno.EIO, "Input/output error")):
            self.assertEqual(jobs.claim(), runmaker4.NoJob(retry_after=jobs.interval))
        jobs.queue.open_files()
        self.assertEqual(jobs.file.lock_table.count_job_locks(b"a"), 0)

    def test_a_result_that_cannot_be_written_leaves_the_mutex_to_others_until_the_next_try(self) -> None:
        self.path.write_bytes(b". a\n")
        jobs = self.short_jobs()
        job, table = job_of(jobs.claim()), jobs.file.lock_table
        for error in OSError(errno.ENOSPC, "No space left on device"), FileNotFoundError:
            with mock.patch.object(jobs.file, "write", side_effect=error), \
                    self.assertRaises(runmaker4.TemporaryError):
                jobs.finish(job, b"d")
            self.assertEqual((table.count_job_locks(b"a"), table.is_mutex_held(b"a")), (1, False))
        self.assertEqual(jobs.finish(job, b"d"), "")

    def test_a_description_is_used_again_only_if_no_process_has_it(self) -> None:
        self.path.write_bytes(b". a\n. b\n")
        for ends in False, True:                # all processes of the first job
            jobs = self.short_jobs()
            first = job_of(jobs.claim())
            lock_fd, pipe_fd = jobs.queue.copy_lock_fds(first)
            if ends:
                os.close(pipe_fd)
            self.assertEqual(jobs.finish(first, b"."), "")
            self.assertFalse(jobs.file.lock_table.is_mutex_held(b"a"), "a process that is left has no lock")
            self.assertEqual(jobs.file.lock_table.count_job_locks(b"a"), 0)
            second = job_of(jobs.claim())
            assert second.job_lock              # on the same description, it is no obstacle
            self.assertEqual(runmaker4.is_free(lock_fd, second.job_lock.offset), ends)
            self.assertEqual(jobs.finish(second, b"."), "")

    def test_all_tries_of_a_job_have_one_pipe_and_one_that_cannot_start_leaves_nothing_open(self) -> None:
        self.path.write_bytes(b". a\n. b\n")
        jobs = self.short_jobs()
        first = job_of(jobs.claim())
        left = jobs.queue.copy_lock_fds(first)          # by the first try
        opened = runmaker4.open_descriptors()
        for number in range(3):
            runmaker4.close_all(*jobs.queue.copy_lock_fds(first))
            with mock.patch("os.dup", side_effect=OSError(errno.EMFILE, "")):
                self.assertRaises(OSError, jobs.queue.copy_lock_fds, first)
            self.assertEqual(runmaker4.open_descriptors(), opened, number)
        self.assertEqual(jobs.finish(first, b"."), "")
        second = job_of(jobs.claim())
        assert second.job_lock
        self.assertFalse(runmaker4.is_free(left[0], second.job_lock.offset), "it has the description")
        self.assertEqual(jobs.finish(second, b"."), "")
        runmaker4.close_all(*left)

    def test_a_result_whose_job_lock_is_lost_is_not_written_over_the_r_of_another_runner(self) -> None:
        self.path.write_bytes(b". a\n")
        first, second = self.short_jobs(), self.jobs(b"er")
        job = job_of(first.claim())
        assert job.job_lock
        first.file.lock_table.free_job_lock(job.job_lock)
        job.job_lock = None
        job_of(second.claim())
        self.assertIn("another runner took over this job", first.finish(job, b"d"))
        self.assertEqual(self.path.read_bytes(), b"r a\n")

    def test_a_long_search_returns_between_two_reads_so_results_and_trims_come_first(self) -> None:
        self.path.write_bytes((b"d done\n" * 9 + b". a\n. b\n") * 4)
        jobs = self.short_jobs()
        jobs.queue.spread = 5
        with self.slices(32):
            self.assertEqual(jobs.claim(), runmaker4.NoJob(retry_after=0.0))
            numbers = self.take_all(jobs, b"d")
        self.assertEqual(sorted(numbers), [10, 11, 21, 22, 32, 33, 43, 44])

    @staticmethod
    @contextlib.contextmanager
    def slices(size: int) -> Iterator[None]:
        """Each claim returns once it has read so many bytes."""
        with (
            mock.patch.multiple(runmaker4.Scan, MIN_CHUNK_SIZE=size, MAX_CHUNK_SIZE=size),
            mock.patch.object(runmaker4.Cursor, "SLICE", -1.0),
        ):
            yield

    def test_what_a_search_met_before_the_last_result_does_not_let_a_runner_exit(self) -> None:
        self.path.write_bytes(b". a\n#RUN barrier\nr b\n")
        jobs = self.jobs()
        job = job_of(jobs.claim())
        with self.slices(8):
            self.assertEqual(jobs.claim(), runmaker4.NoJob(retry_after=0.0))
            self.assertEqual(jobs.finish(job, b"d"), "")
            jobs.claim(jobs.consumers.all)
            while not jobs.no_job.exits:
                self.assertEqual(jobs.no_job.retry_after, 0.0)
                jobs.claim(jobs.consumers.all)
        self.assertEqual(self.path.read_bytes(), b"d a\n#RUN barrier\ne b\n")

    def test_a_job_lock_in_a_removed_lock_file_counts_no_more_whatever_fails_then(self) -> None:
        self.path.write_bytes(b". a\n")
        jobs = self.short_jobs()
        job, table = job_of(jobs.claim()), jobs.file.lock_table
        os.unlink(table.path)
        (new := self.path.with_name("new")).write_bytes(b"r a\n")
        os.replace(new, self.path)
        no_answer = OSError(errno.ETIMEDOUT, "Connection timed out")
        with mock.patch.object(table, "drop_lost_job_locks", side_effect=no_answer):
            self.assertRaises(OSError, jobs.queue.open_files)
        self.assertIsNone(job.job_lock)
        self.assertEqual(jobs.finish(job, b"d"), "")
        self.assertEqual(self.path.read_bytes(), b"d a\n")

    def test_if_the_lock_file_was_removed_a_result_waits_until_each_job_is_locked_in_the_next(self) -> None:
        """Until then no other runner can use the file, and take the other job's line for an orphan."""
        for hindrance in self.hold_mutex, self.leave_no_descriptor:
            with self.subTest(hindrance=hindrance.__name__):
                self.path.write_bytes(b". a\n. b\n")
                jobs = self.jobs()
                job, other = job_of(jobs.claim()), job_of(jobs.claim())
                self.assertEqual((job.text, other.text), (b" a", b" b"))
                os.unlink(jobs.file.lock_table.path)
                with hindrance(jobs):
                    self.assertRaises(runmaker4.TemporaryError, jobs.finish, other, b"d")
                    newcomer = self.jobs().file
                    with self.assertRaisesRegex(OSError, "is in use with another lock file"):
                        newcomer.open_to_write()
                    newcomer.close_files()
                self.assertEqual(jobs.finish(other, b"d"), "")
                self.assertEqual(self.path.read_bytes(), b"r a\nd b\n")
                self.assertTrue(jobs.queue.still_has(job))
                self.assertEqual(jobs.finish(job, b"d"), "")
                jobs.file.close_files()

    @contextlib.contextmanager
    def hold_mutex(self, jobs: runmaker4.Cursor) -> Iterator[None]:
        """Another process has the command mutex of the first job."""
        fd = runmaker4.open_lock_file_of(str(self.path))
        self.assertTrue(runmaker4.lock(fd, runmaker4.bucket_of(b"a") + runmaker4.MUTEX_OFFSET))
        yield
        os.close(fd)

    @contextlib.contextmanager
    def leave_no_descriptor(self, jobs: runmaker4.Cursor) -> Iterator[None]:
        error = OSError(errno.EMFILE, "Too many open files")
        with mock.patch.object(jobs.file.lock_table, "open_job_lock", side_effect=error):
            yield

    def test_lost_locks_are_looked_for_also_if_the_lock_file_cannot_be_opened_with_a_new_file(self) -> None:
        self.path.write_bytes(b". a\n")
        queue = self.short_jobs().queue
        table = queue.file.lock_table
        no_locks = OSError(errno.ENOLCK, "No locks available")
        with mock.patch.object(table, "drop_lost_job_locks") as drop:
            with mock.patch.object(table, "_open", side_effect=no_locks), self.assertRaises(OSError):
                queue.open_files()
            self.assertFalse(drop.called)
            queue.open_files()
            drop.assert_called_once_with()

    def test_random_files_by_runners_with_and_without_retry(self) -> None:
        random_ = random.Random(8)
        for _ in range(100):
            data = job_file(random_)
            retry = random_.choice([b"", b"er", b"!er"])
            result = random_.choice([b"d", b"!", b"e"])
            self.path.write_bytes(data)
            wanted = b"." + retry
            numbers = [number for number, state, _ in parse(data) if state in wanted]
            self.assertEqual(sorted(self.take_all(self.jobs(retry), result)), numbers, data)
            self.assertEqual(self.path.read_bytes(), self.expected(data, wanted, result), data)

    def expected(self, data: bytes, wanted: bytes, result: bytes) -> bytes:
        """The file after a runner: what it ran has this result, and other orphans are errors."""
        after = data.split(b"\n")
        for number, state, _ in parse(data):
            if state in wanted or state == b"r":
                line = after[number - 1]
                at = len(BOM) if line.startswith(BOM) else 0
                new = result if state in wanted else b"e"
                after[number - 1] = line[:at] + new + line[at + 1:]
        return b"\n".join(after)


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
                    queue.open_files()
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


class ReplacedInAWalk(JobFileCase):
    """While a walk pauses, another file takes the place of the job file; the walk goes on in the old one."""

    def test_its_end_lets_no_runner_exit(self) -> None:
        cursor = self.jobs(b"d done\n" * 9)
        leaving = cursor.consumers.all
        with mock.patch.multiple(runmaker4.Scan, MIN_CHUNK_SIZE=8, MAX_CHUNK_SIZE=8), \
                mock.patch.object(runmaker4.Cursor, "SLICE", -1.0):
            self.assertEqual(cursor.claim(leaving), runmaker4.NoJob(runmaker4.AGAIN))
        (new := self.path.with_name("new")).write_bytes(b". a\n")
        os.replace(new, self.path)
        found = cursor.claim(leaving)
        self.assertFalse(isinstance(found, runmaker4.NoJob) and found.exits)
        self.clock.now += 10.0
        self.assertEqual(job_of(cursor.claim(leaving)).command, b"a")
