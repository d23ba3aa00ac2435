"""Parts of the scripts by themselves: random bytes, made-up clocks, and references of a few lines."""
import argparse
import asyncio
import contextlib
import errno
import os
import pathlib
import random
import shlex
import tempfile
import unittest
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Optional
from unittest import mock

import runmaker4
import runwait4
from tests.file.test_format import BOM, parse
from tests.support.claims import job_of

JOB = runmaker4.Job(number=7, offset=0, state=b".", text=b" CMD")
SHELL = runmaker4.Shell(601, b"")


def job_file(random_: random.Random, lines: int = 40) -> bytes:
    """Job lines, comments and prose in all states, of very different lengths."""
    text = []
    for _ in range(random_.randrange(lines)):
        state = random_.choice([".", ".", "r", "d", "!", "e", "x", "#", "/", ""])
        separator = random_.choice([" ", " ", "\t", "prose"])
        command = "c" * random_.choice([0, 1, 2, 3, 10, 50, 300])
        text.append(state + separator + command + random_.choice(["\n", "\n", "\r\n", "\n\n"]))
    return random_.choice([b"", b"", BOM]) + "".join(text).encode()


def a_run() -> runmaker4.Run:
    """A run of a job, as the sinks see it."""
    streams = (runmaker4.Stream(b"stdout", 3), runmaker4.Stream(b"stderr", 4))
    return runmaker4.Run(job=JOB, slots=["1"], host=b"alice", shell=SHELL, streams=streams)


class Accounts(unittest.TestCase):
    """What a closing line says of a file."""

    def test_a_line_that_failed_once_the_others_were_counted_is_not_taken_for_one_of_them(self) -> None:
        for states, text in ((0, 1, 0), "1 running"), ((0, 1, 2), "2 done, 1 running"):
            now = runmaker4.Counts(*states, failed=0, error=0, held=0)
            self.assertEqual(runmaker4.Summary(now, bad_lines=(3,)).describe(True), text)


class FileCase(unittest.TestCase):
    """A test with a file of its own."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="runmaker4-", dir=os.environ.get("RUNMAKER4_TEST_DIR"))
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "runs.txt"

    def open(self, flags: int = os.O_RDONLY) -> int:
        descriptor = os.open(self.path, flags)
        self.addCleanup(os.close, descriptor)
        return descriptor


class Messages(FileCase):
    """What several hosts append to one file."""

    def test_each_host_asks_for_the_size_before_it_appends(self) -> None:
        """With O_APPEND, ceph-fuse writes at the size that this host knows."""
        self.path.touch()
        hosts = [self.open(os.O_WRONLY | os.O_APPEND) for _ in "ab"]
        sizes, store, fstat = dict.fromkeys(hosts, 0), self.open(os.O_WRONLY), os.fstat

        def ask(fd: int) -> os.stat_result:
            sizes[fd] = fstat(fd).st_size
            return fstat(fd)

        def write(fd: int, data: bytes) -> int:
            return os.pwrite(store, data, sizes[fd])

        with mock.patch.multiple(os, fstat=ask, write=write):
            for host in hosts * 2:
                runmaker4.write_all(host, b"a line\n")
        self.assertEqual(self.path.read_text(), "a line\n" * 4)


class Durations(unittest.TestCase):
    """Durations are read as people write them, and nothing else is taken for one."""

    def test_numbers_and_units(self) -> None:
        for text, seconds in (("90", 90), ("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86400),
                              ("1.5h", 5400), (".5", 0.5), ("0.25s", 0.25), ("007", 7), ("none", None)):
            with self.subTest(text=text):
                self.assertEqual(runmaker4.duration(text), seconds)

    def test_anything_else_is_refused(self) -> None:
        words = "0 0s -1 +1 s . 1:30 1h30m 5M 5ms 1e3 inf nan None \u0665 1,5 1_0".split()
        for text in (*words, "", "5 m", " 5", "5\n", "9" * 400):
            with self.subTest(text=text), self.assertRaises(argparse.ArgumentTypeError):
                runmaker4.duration(text)

    def test_times_are_told_with_two_units_at_the_most(self) -> None:
        for seconds, text in ((0, "0.0s"), (0.44, "0.4s"), (9.94, "9.9s"), (9.96, "10s"), (59.4, "59s"),
                              (59.6, "1m 00s"), (303, "5m 03s"), (3599.6, "1h 00m"), (11_520, "3h 12m"),
                              (187_200, "2d 04h")):
            with self.subTest(seconds=seconds):
                self.assertEqual(runmaker4.human_time(seconds), text)


class Scans(FileCase):
    """A scan finds what a parser of the whole file finds, however the file falls into chunks."""

    def scan(self, data: bytes, sizes: tuple[int, int], states: Optional[bytes]) -> list[runmaker4.Line]:
        self.path.write_bytes(data)
        with (
            mock.patch.multiple(runmaker4.Scan, MIN_CHUNK_SIZE=sizes[0], MAX_CHUNK_SIZE=sizes[1]),
            open(self.path, "rb") as file,
        ):
            reader = runmaker4.Reader(file.fileno())
            start = runmaker4.first_line_offset(reader)
            return list(runmaker4.Scan(reader, start, states, counted=Counter()))

    def test_random_files_in_chunks_of_all_sizes(self) -> None:
        random_ = random.Random(6)
        for _ in range(400):
            data = job_file(random_)
            sizes = random_.choice([(1, 1), (1, 8), (2, 2), (3, 3), (7, 64), (50, 400), (4096, 1 << 20)])
            states = random_.choice([None, b".", b"r", b".r", b".r!e", b"x"])
            expected = [job for job in parse(data) if states is None or job[1] in states]
            found = self.scan(data, sizes, states)
            told = [(line.number, line.state, line.command) for line in found]
            self.assertEqual(told, expected, (data, sizes, states))
            for line in found:
                stop = line.offset + 1 + len(line.text)
                self.assertEqual(data[line.offset:stop], line.state + line.text)
                self.assertEqual((line.is_complete, data[stop:stop + 1]), (True, b"\n"))

    def test_a_scan_goes_on_when_the_file_has_grown(self) -> None:
        random_ = random.Random(7)
        for _ in range(50):
            data = job_file(random_, 20)
            mark = len(BOM) if data.startswith(BOM) else 0
            found: list[runmaker4.Line] = []
            with open(self.path, "wb", buffering=0) as writer, open(self.path, "rb") as file:
                writer.write(data[:mark])
                reader = runmaker4.Reader(file.fileno())
                scan = runmaker4.Scan(reader, runmaker4.first_line_offset(reader))
                for line in data[mark:].splitlines(keepends=True):
                    writer.write(line)
                    found += list(scan)
            self.assertEqual([(line.number, line.state, line.command) for line in found], parse(data))

    def test_lines_are_counted_as_they_are_found(self) -> None:
        random_ = random.Random(8)
        for _ in range(400):
            data = job_file(random_)[:-random_.randrange(1, 3)]
            self.path.write_bytes(data)
            with open(self.path, "rb") as file:
                reader = runmaker4.Reader(file.fileno())
                begins = [0, *(at + 1 for at, byte in enumerate(data) if byte == 10)]
                for command in b"c", b"cc", b"c" * 300, b"":
                    start, later = sorted(random_.choices(begins, k=2))
                    end = random_.choice([later, float("inf")])
                    found = [line for line in runmaker4.find_command_lines(reader, start, {command})
                             if line.state == b"r" and line.offset < end]
                    counted = runmaker4.count_running_lines(reader, start, end, command, 1000)
                    self.assertEqual(counted, len(found), (data, start, end, command))


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
        jobs.queue.reopen_if_replaced()
        with mock.patch.object(runmaker4, "unlock", side_effect=OSError(errno.EIO, "Input/output error")):
            self.assertEqual(jobs.claim(), runmaker4.NoJob(retry_after=jobs.interval))
        jobs.queue.reopen_if_replaced()
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

    def test_a_claim_writes_the_results_of_short_jobs_too(self) -> None:
        self.path.write_bytes(b". a\n. b\n. c\n")
        jobs = self.short_jobs()
        results = {job_of(jobs.claim()): b"d", job_of(jobs.claim()): b"!"}
        jobs.queue.due = results
        self.assertEqual(job_of(jobs.claim()).number, 3)
        self.assertEqual(self.path.read_bytes(), b"d a\n! b\nr c\n")
        self.assertEqual([jobs.finish(*result) for result in results.items()], ["", ""])
        table = jobs.file.lock_table
        self.assertEqual([table.count_job_locks(command) for command in (b"a", b"b", b"c")], [0, 0, 65535])

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

    def test_only_a_result_whose_bucket_is_locked_waits_for_the_next_claim(self) -> None:
        self.path.write_bytes(b". a\n. b\n")
        asyncio.run(self.end_with_and_without_bucket(self.short_jobs()))

    async def end_with_and_without_bucket(self, cursor: runmaker4.Cursor) -> None:
        consumer, = cursor.consumers.all
        jobs = runmaker4.FileJobs(cursor, cursor.file, runmaker4.FileExecutor(False), consumer)
        for short_jobs in 0, jobs.SHORT_JOBS:
            jobs._short_jobs = short_jobs
            job = job_of(await jobs.claim(False, runmaker4.UNBOUNDED, runmaker4.UNBOUNDED))
            result = asyncio.ensure_future(jobs.finish(job, b"d"))
            await asyncio.sleep(0)
            self.assertEqual(result.done(), not short_jobs)
            self.assertEqual(await result, "")

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

    def test_lost_locks_are_looked_for_also_if_the_lock_file_cannot_be_opened_with_a_new_file(self) -> None:
        self.path.write_bytes(b". a\n")
        queue = self.short_jobs().queue
        table = queue.file.lock_table
        no_locks = OSError(errno.ENOLCK, "No locks available")
        with mock.patch.object(table, "drop_lost_job_locks") as drop:
            with mock.patch.object(table, "_open", side_effect=no_locks), self.assertRaises(OSError):
                queue.reopen_if_replaced()
            self.assertFalse(drop.called)
            queue.reopen_if_replaced()
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


class Snapshots(FileCase):
    """A look at a file counts each job once, whatever happens meanwhile."""

    def test_jobs_that_change_their_state_are_counted_once(self) -> None:
        self.path.write_bytes(b". a\nd b\n")
        writer = self.open(os.O_RDWR)
        self.assertTrue(runmaker4.lock(writer, 0))
        random_, read = random.Random(16), os.pread

        def change_and_read(*args: int) -> bytes:
            os.pwrite(writer, random_.choice([b".", b"r", b"d"]), 0)
            return read(*args)

        jobs = runmaker4.JobReader(str(self.path), say=self.fail)
        with mock.patch.object(os, "pread", change_and_read):
            totals = {runmaker4.count_states(jobs.snapshot()).all for _ in range(100)}
        self.assertEqual(totals, {2})


class LogRecords(FileCase):
    """A record has its place and its size; it shows the head and the last lines of a job."""

    def test_both_streams_are_shown_in_the_order_of_their_lines(self) -> None:
        log = runmaker4.LogFile(str(self.path), 6, b"/", runmaker4.FileExecutor(threaded=False), self.fail)
        self.addCleanup(os.close, log.file.fd)
        run = a_run()
        log.on_started(run)
        for number, data in (0, b"a"), (1, b"x\ny"), (0, b"b\n"), (1, b"z\n"), (0, b"end"):
            log.on_output(run, run.streams[number], data)
            log.on_tick()
        log.on_ended(run, runmaker4.RunResult(0))
        rows = self.path.read_bytes().split(b"\n")[-7:-1]            # of the second job
        self.assertEqual([row.rstrip() for row in rows], [
            b'+ status (alice,601): forked "CMD"', b"! stderr (alice,601): x", b": stdout (alice,601): ab",
            b"! stderr (alice,601): yz", b": stdout (alice,601): end", b'+ status (alice,601): exit 0 "CMD"'])


class SshInRunners(unittest.TestCase):
    """How often a job is read by shells on its way is known by the words of the runner."""

    def test_each_word_that_is_ssh_counts_and_nothing_else_does(self) -> None:
        for count, *runners in (
            (0, "docker exec sshd", "nice -n 19", "apptainer exec ssh.sif", "myssh bob", '"$RSH" bob'),
            (1, "ssh bob", "/usr/bin/ssh -p 22 bob", "timeout 5 ssh bob", "sshpass -e ssh bob",
             "env A=/bin/ssh ssh bob", "'ssh' \"$SLAVE_IP\"", "docker exec ssh"),
            (2, "ssh gate ssh bob", "ssh ssh", "ssh -l ssh bob"),
        ):
            for runner in runners:
                with self.subTest(runner=runner):
                    wrapped = runmaker4.wrap_in_runner(runner.encode(), "/bin/sh", b"a  b")
                    words = shlex.split(wrapped.decode().removeprefix(runner))
                    for _ in range(count):
                        words = shlex.split(" ".join(words))        # as ssh does, and a shell over there
                    self.assertEqual(words, ["/bin/sh", "-c", "a  b"])


class Mounts(FileCase):
    """The mount of a file is found in the kernel's list."""

    TABLE = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw,relatime shared:2 - nfs4 server:/home rw,vers=4.2,local_lock=none
31 30 0:41 / /home/with\040blank rw - nfs server:/b rw,vers=3,local_lock=posix
32 22 0:42 / /homes rw - tmpfs tmpfs rw
33 30 0:43 / /home/over rw - ext4 /dev/sdb1 rw
34 33 0:44 / /home/over rw - fuse.sshfs user@host:/ rw
35 22 0:45 / /mfs rw - fuse mfs\04310.0.0.1:9421 rw
36 22 0:46 / /bind rw - fuse /some/folder rw
37 22 0:47 / /without/source rw - nfs  rw,vers=3,nolock
38 32 0:48 / /home/over/lay rw - overlay overlay rw,lowerdir=/a,upperdir=/home/upper,workdir=/home/work
"""

    def test_the_innermost_mount_counts_and_the_last_one_there(self) -> None:
        self.path.write_text(self.TABLE)
        with mock.patch.object(runmaker4, "MOUNTINFO", str(self.path)):
            for path, kind in (("/runs.txt", "ext4"), ("/home/runs.txt", "nfs4"), ("/home", "nfs4"),
                               ("/home/with blank/runs.txt", "nfs"), ("/home/with", "nfs4"),
                               ("/homes/runs.txt", "tmpfs"), ("/homeless/runs.txt", "ext4"),
                               ("/home/over/a/runs.txt", "fuse.sshfs"), ("/mfs/runs.txt", "fuse.mfs"),
                               ("/home/over/lay/runs.txt", "overlay"),
                               ("/bind/runs.txt", "fuse"), ("/without/source/runs.txt", "nfs")):
                with self.subTest(path=path):
                    self.assertEqual(runmaker4.find_mount(path).kind, kind)
            self.assertIn("local_lock=posix", runmaker4.find_mount("/home/with blank/runs.txt").options)
            self.assertIn("nolock", runmaker4.find_mount("/without/source/runs.txt").options)

    def test_all_that_is_not_known_to_be_of_one_host_is_a_network_file_system(self) -> None:
        for kind in "ext4", "xfs", "btrfs", "tmpfs", "zfs", "overlay", "fuseblk", "fuse.fuse-overlayfs", "":
            self.assertFalse(runmaker4.Mount(kind, frozenset()).network, kind)
        for kind in "nfs nfs4 lustre ceph gpfs ocfs2 gfs2 9p virtiofs fuse fuse.mfs fuse.new new".split():
            mount, reads_as_fuse = runmaker4.Mount(kind, frozenset()), kind.startswith(("fuse", "virtiofs"))
            self.assertEqual((mount.network, mount.is_fuse), (True, reads_as_fuse), kind)


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
