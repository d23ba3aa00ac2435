"""Promise: who may only read records can lock them, and delays nobody by that, nor does a record get lost.

A shared record lock wants no more than a descriptor for reading (fcntl(2)).
"""
import contextlib
import errno
import json
import os
import signal
import time
import unittest
import unittest.mock
from collections.abc import Iterator
from typing import Any

import runmaker4
import runwait4
from tests.support import RUNMAKER, WAITING, RunCase, wait_until
from tests.test_units import FileCase
from tests.values import present

FILES = "out/journal", "joblog", "log"
RECORDS = "--outdir", "out", "--joblog", "joblog", "-l", "log"
FAR = ("import runmaker4\n"
       "runmaker4.find_mount = lambda path: runmaker4.Mount('nfs4', frozenset())\n"
       "runmaker4.RecordFile.REPORT_AFTER_SECONDS, runmaker4.FileExecutor.RETRY_SECONDS_FAR = 0.2, 0.05\n")
# The file goes bad now and then, also once a record was written, and stays so until it is opened anew
BAD = """
import errno, os
calls, bad = [], []
append, dup2 = runmaker4.append_locked, os.dup2
def append_badly(fd, path, *args):
    calls.append(path)
    if bad:
        raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))
    if len(calls) % 5 != 2:
        append(fd, path, *args)
    if len(calls) % 5 in (2, 4):
        bad.append(path)
        raise OSError(errno.EIO, os.strerror(errno.EIO))
def dup2_well(*args, **named):
    bad.clear()
    return dup2(*args, **named)
runmaker4.append_locked, os.dup2 = append_badly, dup2_well
runmaker4.Journal.GATHER_SECONDS = 0.0
"""
# The client of the file system has died, and half a second counts as a minute
DEAD = """
import errno, os
def append_never(*args):
    raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
runmaker4.append_locked = append_never
runmaker4.JobQueue.MAX_CUT_OFF_SECONDS = 0.5
"""
# It is always trying while it leaves
SLOW_TRIES = """
import time
write_kept = runmaker4.RecordFile.write_kept
def write_slowly(file):
    time.sleep(0.3)
    write_kept(file)
runmaker4.RecordFile.write_kept = write_slowly
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
            begin = time.monotonic()
            ended = self.run_jobs("-q", *RECORDS)
            self.assertLess(time.monotonic() - begin, 5)
        self.assertEqual((ended.code, self.states()), (0, "d" * 12), ended.err)
        self.assertEqual(ended.err.count(b"\n"), 1, ended.err)
        self.assertComplete(12)

    def test_output_goes_on_meanwhile(self) -> None:
        """What holds up the event loop holds up what jobs print."""
        self.jobs(*["for i in 1 2 3 4; do date +%s.%N; sleep 0.05; done"] * 8)
        with self.locked(*FILES):
            runner = self.start(RUNMAKER, "-j2", "--plain", *RECORDS[:-2], "runs.txt")
            late = [time.time() - float(line) for line in present(runner.stdout)]
        self.assertEqual((self.finish(runner).code, len(late)), (0, 32))
        late.sort()             # a job's output comes when it ends, after 0.2 s and more
        self.assertLess(late[len(late) // 2], 1.0)
        self.assertLess(late[-1], 3.0)

    def test_a_signal_has_the_records_written_at_once(self) -> None:
        self.jobs("true", WAITING, "true")
        with self.locked(*FILES):
            runner = self.start_jobs("-q", *RECORDS, up=(2,))
            runner.send_signal(signal.SIGINT)
            ended = self.finish(runner, timeout=20)
        self.assertEqual((ended.code, self.states()), (130, "de."), ended.err)
        self.assertNotIn(b"incomplete", ended.err)
        self.assertEqual(self.read("joblog").count(b"\n"), 3)
        self.assertEqual(self.read("out/journal").count(b'"end"'), 2)


class OverANetwork(LockedCase):
    """There records wait for the lock, and nothing else does."""

    def test_they_are_kept_until_they_can_be_written_and_that_is_said(self) -> None:
        self.jobs(*["true"] * 12)
        with self.locked(*FILES):
            with open(self.dir / "said", "wb") as said:
                runner = self.start_patched(FAR, "-q", *RECORDS, "runs.txt", stderr=said)
            self.wait_states("d" * 12)
            wait_until(
                lambda: self.read("said").count(b"\n") == 3, what="it is said that each file is locked"
            )
            self.assertIsNone(runner.poll(), "it waits")
            self.assertEqual(self.read("joblog"), b"")
        self.assertEqual(runner.wait(20), 0)
        self.assertComplete(12)
        lines = self.read("said").decode().splitlines()
        for name, line in zip(sorted(FILES), sorted(lines)):
            self.assertIn(f"runmaker4.py: {name}: locked by another process, ", line)
        self.assertIn("12 done", lines[-1])

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
        ended = self.finish(self.start_patched(FAR + DEAD, "-q", "--outdir", "out", "runs.txt"), 20)
        self.assertEqual((ended.code, self.states()), (1, "d"), ended.err)
        self.assertComplains(ended, "transport endpoint is not connected", "the journal is incomplete")

    def test_after_a_signal_it_leaves_and_says_what_is_lost(self) -> None:
        self.check_what_is_lost(FAR)

    def test_a_try_that_is_under_way_as_it_leaves_does_not_hide_the_lock(self) -> None:
        self.check_what_is_lost(FAR + SLOW_TRIES)

    def check_what_is_lost(self, patch: str) -> None:
        """A runner that keeps records is told to end: it says that they are locked."""
        self.jobs("true", WAITING)
        with self.locked("joblog"):
            runner = self.start_patched(patch, "-q", "--no-records", "--joblog", "joblog", "runs.txt")
            self.wait_up(2, runner=runner)
            runner.send_signal(signal.SIGTERM)
            ended = self.finish(runner, timeout=20)
        self.assertEqual((ended.code, self.states()), (143, "de"), ended.err)
        self.assertRegex(
            ended.err.decode(),
            r"\nrunmaker4.py: joblog: locked by another process, .*\(the job log is incomplete\)\n$",
        )

    def test_one_record_that_is_locked_holds_up_no_other(self) -> None:
        self.jobs("true", "true", "true")
        size = 4 * 161
        with open(self.dir / "log", "rb") as file:
            self.assertTrue(runmaker4.lock(file.fileno(), size, 10, shared=True))
            runner = self.start_patched(FAR, "-q", "-l", "log", "runs.txt")
            wait_until(lambda: self.read("log").count(b"): exit 0 ") == 2, what="the others are written")
            self.assertEqual(self.read("log")[size:2 * size].strip(b"\0"), b"")
        self.assertEqual(self.finish(runner).code, 0)
        self.assertEqual(self.read("log").count(b"): exit 0 "), 3)


class RecordFileCase(FileCase):
    """A file for records, and what it says."""

    def make(self, kind: str) -> None:
        """Make a file on a file system of this kind."""
        self.said: list[str] = []
        self.lost: list[bytes] = []
        worker = runmaker4.FileExecutor(threaded=False, say=self.said.append)
        mount = runmaker4.Mount(kind, frozenset())
        with unittest.mock.patch.object(runmaker4, "find_mount", lambda path: mount):
            self.file = runmaker4.RecordFile(str(self.path), "journal", os.O_RDWR | os.O_APPEND,
                                             [b"1", b"f"], worker, self.said.append, self.lost.append)
        self.addCleanup(os.close, self.file.fd)


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
            self.file.append(b"first\nsecond\nthird\n")
        self.assertEqual((self.lost, len(self.said), self.file.kept), ([b"second\nthird\n"], 1, {}))
        self.file.append(b"fourth\n")
        self.assertEqual(self.path.read_bytes(), b"first\nseco\nfourth\n")

    def test_over_a_network_records_wait_and_each_wait_is_said_once(self) -> None:
        self.make("nfs4")
        refusals = {"locked by another process": lambda *args: False, "grants no lock": self.out_of_locks}
        with unittest.mock.patch.object(runmaker4.RecordFile, "REPORT_AFTER_SECONDS", 0.0):
            for text, refuse in refusals.items():
                with self.subTest(text=text), unittest.mock.patch.object(runmaker4, "lock", refuse):
                    self.said.clear()
                    self.path.write_bytes(b"")
                    for line in b"1\n", b"2\n":
                        self.file.append(line)
                        self.file.write_kept()
                    self.assertEqual((len(self.said), self.path.read_bytes()), (1, b""), self.said)
                    self.assertIn(text, self.said[0])
                    self.assertIn(text, self.file.obstacle)
                self.file.write_kept()
                self.assertEqual((self.path.read_bytes(), self.file.kept), (b"1\n2\n", {}))

    @staticmethod
    def out_of_locks(*args: Any) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


if __name__ == "__main__":
    unittest.main()
