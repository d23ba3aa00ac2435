"""Promise: readers of records can lock them; that costs nothing on one host, and over a network no job.

A shared record lock wants no more than a descriptor for reading (fcntl(2)).
"""
import contextlib
import errno
import itertools
import json
import os
import signal
import tempfile
import time
import unittest
import unittest.mock
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Optional

import runmaker4
import runwait4
from tests.support.job_file import FileCase
from tests.support.processes import wait_until
from tests.support.runs import WAITING, RunCase
from tests.support.sinks import a_run

FILES = "out/journal", "joblog", "log"
RECORDS = "--outdir", "out", "--joblog", "joblog", "-l", "log"
FAR = ("import runmaker4\n"
       "runmaker4.find_mount = lambda path: runmaker4.Mount('nfs4', frozenset())\n"
       "runmaker4.RecordFile.MAX_LOCKED_SECONDS = 3\n")
# A file tells that it waits
NOTED = """
prepare_retry = runmaker4.RecordFile._prepare_retry
def note(*args):
    open("waits", "w").close()
    return prepare_retry(*args)
runmaker4.RecordFile._prepare_retry = note
"""
# The file goes bad now and then, also once a record was written, and stays so until it is opened anew
BAD = """
import errno, os
calls, bad = [], []
append, dup2 = runmaker4.append_at, os.dup2
def append_badly(fd, *args):
    calls.append(fd)
    if bad:
        raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))
    if len(calls) % 5 != 2:
        append(fd, *args)
    if len(calls) % 5 in (2, 4):
        bad.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))
def dup2_well(*args, **named):
    bad.clear()
    return dup2(*args, **named)
runmaker4.append_at, os.dup2 = append_badly, dup2_well
runmaker4.Journal.GATHER_SECONDS = 0.0
"""
# The client of the file system has died, and half a second counts as a minute
DEAD = """
import errno, os
def append_never(*args):
    raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
runmaker4.append_at = append_never
runmaker4.RecordFile.MAX_AWAY_SECONDS = 0.5
"""


class LockedCase(RunCase):
    """Records that somebody has locked."""

    def setUp(self) -> None:
        super().setUp()
        (self.dir / "out").mkdir()
        for name in FILES:
            self.write("", name)

    @contextlib.contextmanager
    def locked(self, *names: str) -> Iterator[None]:
        """Have these files locked by somebody who may only read them."""
        with contextlib.ExitStack() as stack:
            for name in names:
                file = stack.enter_context(open(self.dir / name, "rb"))
                self.assertTrue(runmaker4.lock(file.fileno(), 0, 0, shared=True))
            yield

    def assertComplete(self, count: int) -> None:
        """All records of these jobs are there, each once."""
        entries = [json.loads(line) for line in self.read("out/journal").splitlines() if line]
        self.assertEqual(sorted(entry["line"] for entry in entries if entry["event"] == "end"),
                         list(range(1, count + 1)))
        header, *lines = self.read("joblog").splitlines()
        self.assertEqual(header + b"\n", runmaker4.JobLog.HEADER)
        self.assertEqual(sorted(int(line.split(b"\t")[0]) for line in lines), list(range(1, count + 1)))
        self.assertEqual(self.read("log").count(b"): exit 0 "), count)


class OnOneHost(LockedCase):
    """There it goes without the lock."""

    def test_a_lock_costs_no_record_and_no_time(self) -> None:
        self.jobs(*["true"] * 12)
        with self.locked(*FILES):
            patch = "import runmaker4\n" + NOTED
            ended = self.finish(self.start_patched(patch, "-q", *RECORDS, "runs.txt"))
        self.assertFalse(self.exists("waits"))
        self.assertEqual((ended.code, self.states()), (0, "d" * 12), ended.err)
        self.assertEqual(ended.err.count(b"\n"), 1, ended.err)
        self.assertComplete(12)

    def test_a_signal_has_the_records_written_at_once(self) -> None:
        self.jobs("true", WAITING, "true")
        with self.locked(*FILES):
            runner = self.start_jobs("-q", *RECORDS, up=(2,))
            runner.send_signal(signal.SIGINT)
            ended = self.finish(runner)
        self.assertEqual((ended.code, self.states()), (130, "de."), ended.err)
        self.assertNotIn(b"incomplete", ended.err)
        self.assertEqual(self.read("joblog").count(b"\n"), 3)
        self.assertEqual(self.read("out/journal").count(b'"end"'), 2)


class OverANetwork(LockedCase):
    """There all calls wait for the lock for a while."""

    def test_a_lock_for_a_moment_costs_no_record(self) -> None:
        self.jobs(*["true"] * 12)
        with self.locked(*FILES):
            patch = f"{FAR}{NOTED}runmaker4.RecordFile.MAX_LOCKED_SECONDS = 60"
            runner = self.start_patched(patch, "-q", *RECORDS, "runs.txt")
            wait_until((self.dir / "waits").exists, what="it waits")
            self.assertEqual(self.read("joblog"), b"")
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states()), (0, "d" * 12), ended.err)
        self.assertComplete(12)

    def test_a_lock_that_stays_costs_records_and_that_is_said_but_no_job(self) -> None:
        self.jobs(*["true"] * 12)
        patch = FAR + "runmaker4.RecordFile.MAX_LOCKED_SECONDS = 0.3\n"
        with self.locked(*FILES):
            ended = self.finish(self.start_patched(patch, "-q", *RECORDS, "runs.txt"))
        self.assertEqual((ended.code, self.states()), (1, "d" * 12), ended.err)
        for name in FILES:
            self.assertIn(f"runmaker4.py: {name}: locked by another process, ".encode(), ended.err)

    def test_states_are_written_after_a_signal(self) -> None:
        self.jobs("true", WAITING)
        with self.locked("joblog"):
            runner = self.start_patched(FAR, "-q", "-j2", "--no-records", "--joblog", "joblog", "runs.txt")
            self.wait_up(2, runner=runner)
            runner.send_signal(signal.SIGTERM)
            ended = self.finish(runner)
        self.assertEqual((ended.code, self.states()), (143, "de"), ended.err)
        self.assertComplains(ended, "joblog: locked by another process", "the job log is incomplete")

    def test_a_journal_whose_file_goes_bad_is_opened_anew_and_lacks_no_entry(self) -> None:
        """What had arrived although it seemed to fail is there twice; readers take it once."""
        self.jobs(*["true"] * 12)
        ended = self.finish(self.start_patched(FAR + BAD, "-q", *RECORDS, "runs.txt"))
        self.assertEqual((ended.code, self.states()), (0, "d" * 12), ended.err)
        journal = runwait4.JournalReader(str(self.dir / "out"), self.fail)
        with journal.file:
            self.assertEqual(sorted(run.line for run in journal.start_pass()), list(range(1, 13)))
        lines = set(self.read("joblog").splitlines(keepends=True)) - {runmaker4.JobLog.HEADER}
        self.assertEqual(sorted(int(line.split(b"\t")[0]) for line in lines), list(range(1, 13)))

    def test_a_journal_whose_file_system_has_died_is_given_up(self) -> None:
        self.jobs("true")
        ended = self.finish(self.start_patched(FAR + DEAD, "-q", "--outdir", "out", "runs.txt"))
        self.assertEqual((ended.code, self.states()), (1, "d"), ended.err)
        self.assertComplains(ended, "transport endpoint is not connected", "the journal is incomplete")


class RecordFileCase(FileCase):
    """A file for records, and what it says."""

    def make(self, kind: str) -> None:
        """Make a file on a file system of this kind."""
        self.said: list[str] = []
        self.lost: list[bytes] = []
        mount = runmaker4.Mount(kind, frozenset())
        say = self.said.append
        with unittest.mock.patch.object(runmaker4, "find_mount", lambda path: mount):
            self.file = runmaker4.RecordFile(str(self.path), "journal", os.O_APPEND,
                                             (b"2", b"f"), say, say, self.lost.append)
        self.addCleanup(os.close, self.file.fd)

    def append(self, line: bytes) -> None:
        self.file.write(runmaker4.APPEND_BYTE, lambda: line)


class FixedPlaces(FileCase):
    """Records at fixed places: what two write at the same time remains, with blank lines in between."""

    RECORD_BYTES = len(runmaker4.BLANK_LINE) * 4

    def make(self, kind: str) -> runmaker4.RecordFile:
        mount = runmaker4.Mount(kind, frozenset())
        with unittest.mock.patch.object(runmaker4, "find_mount", lambda path: mount):
            file = runmaker4.RecordFile(str(self.path), "log file", 0, runmaker4.LogFile.HEADS,
                                        self.fail, self.fail)
        self.addCleanup(os.close, file.fd)
        return file

    def record(self, number: int) -> bytes:
        return (b".-> %d" % number).ljust(self.RECORD_BYTES - 1) + b"\n"

    def put(self, file: runmaker4.RecordFile, number: int) -> None:
        file.write((number - 1) * self.RECORD_BYTES, lambda: self.record(number))

    def assertRecords(self, *numbers: int) -> None:
        """These are written, and the others up to the last are blank, as what comes after it."""
        blank = runmaker4.BLANK_LINE * 4
        records = [self.record(number) if number in numbers else blank
                   for number in range(1, max(numbers) + 1)]
        text = self.path.read_bytes()
        size = max(numbers) * self.RECORD_BYTES
        self.assertEqual((text[:size], text[size:].strip()), (b"".join(records), b""))

    def test_another_that_writes_at_any_moment_loses_nothing(self) -> None:
        """Below and above the place that is being made, from each call of the first one on."""
        for kind, name in itertools.product(("ext4", "nfs4"), ("fstat", "pwrite", "write", "lseek")):
            for first, second in itertools.permutations((2, 5, 9), 2):
                with self.subTest(kind=kind, name=name, first=first, second=second):
                    self.path.write_bytes(b"")
                    ours, other = self.make(kind), self.make(kind)
                    others = [second]
                    real = getattr(os, name)

                    def interrupted(*args: Any, real: Any = real, others: list[int] = others,
                                    other: runmaker4.RecordFile = other) -> Any:
                        if others and runmaker4.lock(other.fd, 0, 0):      # nobody holds a lock
                            runmaker4.unlock(other.fd, 0, 0)
                            self.put(other, others.pop())
                        return real(*args)

                    with unittest.mock.patch.object(os, name, interrupted):
                        self.put(ours, first)
                    for number in others:
                        self.put(other, number)
                    self.assertRecords(first, second)

    def test_a_file_that_ends_within_a_line_gets_whole_records(self) -> None:
        """As after a full disk."""
        self.path.write_bytes(self.record(1) + b" " * 100)
        file = self.make("ext4")
        for number in 4, 3:
            self.put(file, number)
        text = self.path.read_bytes()
        self.assertEqual(text[:self.RECORD_BYTES], self.record(1))
        self.assertEqual(text[2 * self.RECORD_BYTES:4 * self.RECORD_BYTES], self.record(3) + self.record(4))
        self.assertNotIn(b"\0", text)

    def test_a_hundred_at_once_on_a_long_list_make_it_little_longer(self) -> None:
        """Each sees that it is too short before another has extended it."""
        files = [self.make("ext4") for _ in range(100)]
        waiting = files[1:]
        real = os.fstat

        def interrupted(fd: int) -> os.stat_result:
            info = real(fd)
            if waiting:
                self.put(waiting.pop(), 10_000)
            return info

        with unittest.mock.patch.object(os, "fstat", interrupted):
            self.put(files[0], 10_000)
        self.assertLess(self.path.stat().st_size, 4 * 10_000 * self.RECORD_BYTES)
        self.assertNotIn(b"\0", self.path.read_bytes())


class GivingUp(unittest.TestCase):
    """When a RecordWait gives a record up, row by row of its table."""
    AWAY = -1

    def setUp(self) -> None:
        self.begin(None)

    def begin(self, size: Optional[int]) -> None:
        """Begin another record.  size: when the one before was given up; None: that was written."""
        self.wait = runmaker4.RecordWait(size, 1000.0)

    def fail_at(self, seconds: float, size: int, max_seconds: float = 8.0) -> bool:
        """An error, so many seconds after the first try of a record; the file is then so long."""
        with tempfile.TemporaryFile() as file, \
                unittest.mock.patch.object(time, "monotonic", lambda: 1000.0 + seconds):
            file.truncate(max(size, 0))
            return self.wait.gives_up(max_seconds, self.AWAY if size == self.AWAY else file.fileno())

    def test_an_error_that_no_wait_can_end(self) -> None:
        self.assertTrue(self.fail_at(0.0, 5, max_seconds=0.0))

    def test_a_file_that_does_not_grow_or_is_away_until_the_next_look(self) -> None:
        for size in 5, self.AWAY:
            with self.subTest(size=size):
                self.setUp()
                self.assertEqual([self.fail_at(when, size) for when in (0.0, 4.0, 7.9, 8.0)],
                                 [False, False, False, True])

    def test_after_one_that_was_given_up_a_record_is_tried_once_until_the_file_grows(self) -> None:
        for size in 5, self.AWAY:
            with self.subTest(size=size):
                self.begin(size)
                self.assertTrue(self.fail_at(0.0, size))
                self.begin(size)
                self.assertFalse(self.fail_at(0.0, 6))
        self.begin(None)
        self.assertFalse(self.fail_at(0.0, 6))

    def test_a_file_that_grows_is_waited_for_two_minutes(self) -> None:
        answers = [self.fail_at(when, size) for size, when in enumerate((0.0, 8.0, 60.0, 119.9, 128.0))]
        self.assertEqual(answers, [False, False, False, False, True])


class Waits(RecordFileCase):
    """When records wait, and what is said."""

    def test_on_a_full_disk_what_is_lost_is_told_but_not_what_fitted(self) -> None:
        self.make("ext4")
        fits = [10, 0]

        def write(fd: int, data: Any, real: Any = os.write) -> int:
            if not fits[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(real(fd, bytes(data)[:fits.pop(0)]))

        with unittest.mock.patch.object(os, "write", write):
            self.append(b"first\nsecond\nthird\n")
        self.assertEqual((self.lost, len(self.said)), ([b"second\nthird\n"], 1))
        self.append(b"fourth\n")
        self.assertEqual(self.path.read_bytes(), b"first\nseco\nfourth\n")

    def test_a_file_that_is_back_is_opened_only_if_it_is_of_that_kind(self) -> None:
        for text in b"2 old\n", b"my letter\n", b"":
            with self.subTest(text=text):
                self.path.write_bytes(b"")
                self.make("nfs4")
                self.path.unlink()
                if text:
                    self.path.write_bytes(text)
                before = len(os.listdir("/proc/self/fd"))
                self.file._prepare_retry(OSError(errno.EIO, os.strerror(errno.EIO)))
                self.assertLessEqual(len(os.listdir("/proc/self/fd")), before)
                self.assertEqual(os.fstat(self.file.fd).st_nlink, text == b"2 old\n")
                self.assertEqual(self.path.exists(), text != b"")

    def test_the_end_is_read_only_after_an_append_of_others_and_their_cut_line_stays_alone(self) -> None:
        for kind in "ext4", "nfs4":
            with self.subTest(kind=kind):
                self.path.write_bytes(b"")
                self.make(kind)
                self.append(b"1\n")
                with unittest.mock.patch.object(runmaker4.Reader, "pread") as pread:
                    self.append(b"2\n")
                self.assertFalse(pread.called)
                with open(self.path, "ab") as other:
                    other.write(b"cut")
                self.append(b"3\n")
                self.assertEqual(self.path.read_bytes(), b"1\n2\ncut\n3\n")
                self.path.unlink()
                self.append(b"4\n")
                self.assertEqual(self.path.read_bytes(), b"4\n")

    def test_on_fuse_the_size_is_asked_for_before_each_append(self) -> None:
        """JuiceFS knows only then what other hosts have appended."""
        self.make("fuse.juicefs")
        stat, utime, sizes = os.stat, os.utime, [0]

        def remember(file: Any) -> os.stat_result:
            info = list(stat(file))
            info[6] = sizes[0]
            return os.stat_result(info)

        def ask(fd: int) -> None:
            utime(fd)
            sizes[0] = stat(fd).st_size

        with unittest.mock.patch.multiple(os, stat=remember, fstat=remember, utime=ask):
            self.append(b"1\n")
            sizes[0] = 2
            with open(self.path, "ab") as other:
                other.write(b"cut")
            self.append(b"3\n")
        self.assertEqual(self.path.read_bytes(), b"1\ncut\n3\n")

    def test_over_a_network_the_first_record_waits_and_the_next_ones_are_tried_once(self) -> None:
        refusals = {"locked by another process": lambda *args: False, "no locks": self.out_of_locks}
        for text, refuse in refusals.items():
            self.path.write_bytes(b"")
            self.make("nfs4")
            with self.subTest(text=text), unittest.mock.patch.object(runmaker4, "lock", refuse), \
                    unittest.mock.patch.object(self.file, "MAX_LOCKED_SECONDS", 0.1):
                for waits in True, False:
                    with unittest.mock.patch("time.sleep") as sleep:
                        self.append(b"1\n")
                    self.assertEqual((sleep.called, self.lost.pop()), (waits, b"1\n"))
                self.assertIn(text, self.said[0])
            self.append(b"2\n")
            self.assertEqual((self.path.read_bytes(), self.lost), (b"2\n", []))

    def test_a_record_waits_while_others_append_and_for_who_keeps_the_lock_not_for_longer(self) -> None:
        self.make("nfs4")
        turns = [True, False, False, False, False, False]

        def lock(fd: int, *args: Any) -> bool:
            with open(self.path, "ab") as other:
                other.write(b"2 of another\n")
            return turns.pop()

        self.file.MAX_LOCKED_SECONDS = 0.01
        with unittest.mock.patch.object(runmaker4, "lock", lock):
            self.append(b"1\n")
        self.assertEqual((self.lost, turns, self.path.read_bytes()[-2:]), ([], [], b"1\n"))
        with unittest.mock.patch.object(runmaker4, "lock", lambda *args: False):
            self.append(b"lost\n")
        self.assertEqual(self.lost, [b"lost\n"])
        turns += [True, False, False]           # the file grows again, so nobody has kept the lock since
        with unittest.mock.patch.object(runmaker4, "lock", lock):
            self.append(b"3\n")
        self.assertEqual((self.lost, self.path.read_bytes()[-2:]), ([b"lost\n"], b"3\n"))

    def test_a_journal_gathers_the_longer_the_longer_appends_take(self) -> None:
        for network, written in ((True, 1), (False, 3)):
            self.path.write_bytes(b"")
            executor: Any = SimpleNamespace(pool=network, say=self.fail)
            with tempfile.TemporaryDirectory() as folder:
                journal = runmaker4.Journal(folder, executor, self.fail, self.fail, True)
                file = journal._file
                for _ in range(3):
                    journal.add_end(a_run(), {"time": 1.5, "run": "1"}, 0.0)
                    journal.flush_after(0.0)
                    file.took = 30.0
                with open(file.path, "rb") as lines:
                    self.assertEqual(len(lines.readlines()), written)
                journal.MAX_GATHER_SECONDS = 0.0
                journal.flush_after(0.0)
                with open(file.path, "rb") as lines:
                    self.assertEqual(len(lines.readlines()), 3)
                os.close(file.fd)

    def test_an_end_says_for_how_long_it_was_gathered_and_waited_for_its_turn_to_append(self) -> None:
        executor: Any = SimpleNamespace(pool=True, say=self.fail)
        with tempfile.TemporaryDirectory() as folder:
            mount = runmaker4.Mount("nfs4", frozenset())
            with unittest.mock.patch.object(runmaker4, "find_mount", lambda path: mount):
                journal = runmaker4.Journal(folder, executor, self.fail, self.fail, True)
            self.addCleanup(os.close, journal._file.fd)
            seconds = [100.0]
            refused = [5.0, 2.0]        # others append for so many seconds

            def lock(*args: Any) -> bool:
                if refused:
                    seconds[0] += refused.pop()
                    return False
                return True

            clock = unittest.mock.patch.object(time, "monotonic", lambda: seconds[0])
            with clock, unittest.mock.patch.object(runmaker4, "lock", lock):
                journal._flushed_at = seconds[0]
                journal.add_start(a_run(), lambda: {"time": 1.5, "event": "start", "run": "2"})
                journal.add_end(a_run(), {"time": 1.5, "event": "end", "run": "1"}, 99.5)
                seconds[0] += 1.0
                # a client's clock is fast
                journal.add_end(a_run(), {"time": 1.5, "event": "end", "run": "3"}, 150.0)
                journal.flush()
            with open(journal._file.path, "rb") as file:
                lines = [json.loads(line) for line in file]
            self.assertEqual([line.get("gathered") for line in lines], [8.5, 0.0, None])

    @staticmethod
    def out_of_locks(*args: Any) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
