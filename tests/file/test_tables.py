"""Promise: each cell of the tables in front of Cursor and LockTable is what a real object does."""
import contextlib
import errno
import functools
import itertools
import os
import re
import traceback
from typing import Any, Callable, Optional
from unittest import mock

import runmaker4
from tests.support.claims import JobFileCase, job_of
from tests.support.tables import cells
from tests.support.values import present

STATES = "TOP", "WALK", "SLICED", "IDLE"


def noting(kind: object, name: str, note: Callable[[], object]) -> Any:
    """Patch a function so that it first calls note()."""
    plain = getattr(kind, name)

    def patched(*args: Any, **options: Any) -> Any:
        note()
        return plain(*args, **options)
    return mock.patch.object(kind, name, patched)


class TableCase(JobFileCase):
    """A test with many job files."""
    numbers = itertools.count()

    def jobs(self, text: bytes, **options: Any) -> runmaker4.Cursor:
        self.path = self.path.with_name(f"{next(self.numbers)}.txt")
        return super().jobs(text, **options)


class OfCursor(TableCase):
    """What a claim does: the first thing that comes of each event in each state."""

    def cursor_in(self, state: str, serving: bool) -> runmaker4.Cursor:
        text = {"SLICED": b"d done\n" * 9 + b". a\n", "IDLE": b"d done\n#RUN host=bob\n. b\n"}
        cursor = self.jobs(text.get(state, b". a\n. b\n. c\n"), serving=serving)
        if state == "SLICED":
            with mock.patch.multiple(runmaker4.Scan, MIN_CHUNK_SIZE=8, MAX_CHUNK_SIZE=8), \
                    mock.patch.object(runmaker4.Cursor, "SLICE", -1.0):
                self.assertEqual(cursor.claim(), runmaker4.NoJob(runmaker4.AGAIN))
        elif state != "TOP":
            self.assertEqual(bool(cursor.claim()), state == "WALK")
        return cursor

    def answer(self, cursor: runmaker4.Cursor, event: Callable[[runmaker4.Cursor], Any]) -> str:
        """What a claim does once this has happened, which can return the arguments of the claim."""
        did: list[str] = []
        claim = event(cursor) or {}
        with noting(runmaker4.Cursor, "_make_failed_lines_new", lambda: did.append("RESET")), \
                noting(runmaker4.Walk, "claim_ready", lambda: did.append("ready")), \
                noting(runmaker4.Cursor, "_begin_walk", lambda: did.append("anew")), \
                noting(runmaker4.Walk, "claim_next", lambda: did.append("on")):
            cursor.claim(**claim)
        return did[0] if did else "wait" if cursor.no_job.retry_after is runmaker4.WAIT else "pause"

    def replace(self, cursor: runmaker4.Cursor) -> None:
        (new := self.path.with_name("new")).write_bytes(self.path.read_bytes())
        os.replace(new, self.path)
        cursor.queue.open_files()

    def insert(self, cursor: runmaker4.Cursor) -> None:
        """Another runner has been met, so lines below can have changed."""
        self.path.write_bytes(b"#\n" + self.path.read_bytes())
        cursor.queue.spread = 2

    def test_each_cell(self) -> None:
        def come(retry: bytes = b"") -> dict[str, Any]:
            consumers = runmaker4.Consumers([runmaker4.Consumer("bob", retry=retry)])
            return {"consumers": consumers, "known": consumers.all}

        def wait(cursor: runmaker4.Cursor) -> None:
            self.clock.now += 1000.0

        def edit(cursor: runmaker4.Cursor) -> None:
            self.path.write_bytes(self.path.read_bytes() + b"#\n")

        def release(cursor: runmaker4.Cursor) -> None:
            if walk := cursor._walk or cursor._idle_walk:
                line = present(runmaker4.Scan(walk._file.reader, walk._file.start).next())
                walk.ready.append((line.offset, 0, line, runmaker4.NO_DIRECTIVES))

        events: tuple[tuple[str, Callable[[runmaker4.Cursor], Any]], ...] = (
            ("", lambda cursor: come(retry=b"er")), ("", self.replace), ("TOP", release),
            ("TOP SLICED IDLE", self.insert), ("TOP", wait), ("", lambda cursor: come()),
            ("", lambda cursor: {"leaving": cursor.consumers.all}), ("", edit), ("", lambda cursor: None))
        rows = cells(runmaker4, "a claim finds", *STATES)
        self.assertEqual(len(rows), len(events))
        for row, (never, event) in zip(rows, events):
            for state, cell in zip(STATES, row):
                at_runner, _, at_server = cell.rstrip(" *").partition("; server: ")
                for serving, wanted in (False, at_runner), (True, at_server or at_runner):
                    with self.subTest(row=row, state=state, serving=serving):
                        self.assertEqual(wanted, "-" if state in never.split() else
                                         self.answer(self.cursor_in(state, serving), event))


    def test_each_way_in_which_a_walk_stops(self) -> None:
        def claimed_before() -> runmaker4.Cursor:
            cursor = self.jobs(b". a\n")
            job_of(cursor.claim())
            return cursor

        def busy() -> runmaker4.Cursor:
            cursor = self.jobs(b". a\n")
            for consumer in cursor.consumers.all:
                consumer.free = runmaker4.Resources(0)
            return cursor

        failed = OSError(errno.ESTALE, "Stale file handle")
        ways: tuple[tuple[Callable[[], runmaker4.Cursor], list[object]], ...] = (
            (lambda: self.jobs(b". a\n"), []), (busy, []), (lambda: self.cursor_in("SLICED", False), []),
            (lambda: self.jobs(b"d a\n"), [runmaker4.Stop.RESTART, *[runmaker4.Stop.END] * 2]),
            (claimed_before, []),
            (lambda: self.jobs(b"d a\n"), []), (lambda: self.jobs(b". a\n"), [failed]))
        rows = cells(runmaker4, "the walk", "the next state")
        self.assertEqual(len(rows), len(ways))
        for (cell,), (prepare, stops) in zip(rows, ways):
            with self.subTest(cell=cell):
                begun: list[int] = []
                with noting(runmaker4.Cursor, "_begin_walk", functools.partial(begun.append, 1)):
                    cursor = prepare()
                    if not cursor._is_sliced:
                        del begun[:]
                        with mock.patch.object(runmaker4.Walk, "claim_next", side_effect=stops) if stops \
                                else contextlib.nullcontext():
                            cursor.claim()
                state = ("SLICED" if cursor._is_sliced else "WALK" if cursor._walk else
                         "IDLE" if cursor._idle_walk else "TOP")
                # the next walk has stopped, too
                again = len(begun) > (prepare is not claimed_before)
                self.assertEqual(cell.replace(":", ",").split(",")[0], "anew" if again else state)


class OfCaches(TableCase):
    """What makes current what this host remembers of a FUSE file system."""

    def test_who_is_said_to_call_it_does(self) -> None:
        rows = cells(runmaker4, "what is old", "where", "what makes it current")
        refreshing, rereading = set[str](), set[str]()

        def note(callers: set[str]) -> None:
            callers.update(frame.name for frame in traceback.extract_stack())

        with noting(runmaker4, "refresh_file", lambda: note(refreshing)), \
                noting(runmaker4.Reader, "refresh", lambda: note(rereading)):
            cursor = self.jobs(b". a\n. b\n", mount=runmaker4.Mount("fuse.mfs", frozenset()))
            job_of(cursor.claim())
            cursor.queue.check_jobs()
        for row, callers in (rows[0], refreshing), (rows[2], rereading):
            _, *named = re.findall(r"(\w+)\(\)", row[-1])
            self.assertEqual({*named} - callers, set())


class OfLocks(TableCase):
    """What becomes of our locks, and of what needs them."""

    def queue_in(self, state: str) -> runmaker4.JobQueue:
        """A queue with a job, where locks are lost without an error, that has come to this state."""
        cursor = self.jobs(b". a\nr b\n", mount=runmaker4.Mount("fuse.glusterfs", frozenset()))
        self.orphans, queue, self.job = cursor.orphans, cursor.queue, job_of(cursor.claim())
        if state != "HELD":
            for fd in queue.file.lock_table.fd, present(self.job.job_lock).fd:
                runmaker4.unlock(fd, 0, 0)
            self.clock.now += 10.0
        if state == "CLOSED":
            queue.close_if_locks_lost(OSError(errno.EIO, "Input/output error"))
        return queue

    def state(self, queue: runmaker4.JobQueue) -> str:
        table = queue.file.lock_table
        if not table.is_open:
            return "CLOSED"
        is_lost = runmaker4.lost_locks(table.fd, [table.pulse_offset], queue.file.mount)
        self.assertEqual(queue.still_has(self.job), not is_lost)
        return "LOST" if is_lost else "HELD"

    def lock_mutex(self, queue: runmaker4.JobQueue) -> str:
        with queue.file.command_mutex(b"c") as locked:
            return "it is done" if locked else ""

    def look_twice(self, queue: runmaker4.JobQueue) -> str:
        """... at the line of an orphan."""
        line = runmaker4.Line(2, 4, b"r", b" b")
        self.orphans.check_orphan(line)
        self.clock.now += self.orphans.MIN_UNLOCKED_SECONDS
        return "it is one" if self.orphans.check_orphan(line) is runmaker4.Suspicion.PROVED else ""

    def lose(self, queue: runmaker4.JobQueue) -> None:
        queue.close_if_locks_lost(OSError(errno.ESTALE, "Stale file handle"))

    def remove_lock_file(self, queue: runmaker4.JobQueue) -> None:
        os.unlink(queue.file.lock_table.path)
        queue.open_files()

    def test_a_job_lock_that_was_lost_is_locked_again_and_the_others_are_kept(self) -> None:
        """NFS fails a read, and this host still remembers the lock; elsewhere the lock is just not there."""
        for kind in "nfs4", "fuse.glusterfs":
            cursor = self.jobs(b". a\n. b\n", mount=runmaker4.Mount(kind, frozenset()))
            queue, jobs = cursor.queue, [job_of(cursor.claim()), job_of(cursor.claim())]
            lost, kept = (present(job.job_lock) for job in jobs)
            self.addCleanup(os.close, os.dup(lost.fd))          # as the job has one
            if kind != "nfs4":
                runmaker4.unlock(lost.fd, 0, 0)
            pread, failed = runmaker4.Reader.pread, [lost.fd] * (kind == "nfs4")

            def read(reader: runmaker4.Reader, size: int, at: int) -> bytes:
                if reader.fd in failed:
                    failed.clear()
                    raise OSError(errno.EIO, "Input/output error")
                return pread(reader, size, at)

            with self.subTest(kind=kind), mock.patch.object(runmaker4.Reader, "pread", read):
                queue.close_if_locks_lost(OSError(errno.EIO, "Input/output error"))
                self.assertEqual(queue.check_jobs(), {})
                self.assertIs(jobs[1].job_lock, kept)
                again = present(jobs[0].job_lock)
                self.assertIsNot(again, lost)
                self.assertEqual(again.offset, lost.offset)
                self.assertFalse(runmaker4.lock(self.another(queue.file).lock_table.fd, lost.offset))

    def test_a_job_whose_job_lock_was_lost_gets_its_own_line_again_not_the_equal_one_of_another(self) -> None:
        """Its lock is no lock of others."""
        cursor = self.jobs(b". a\n. a\n")
        queue, job = cursor.queue, job_of(cursor.claim())
        second, = queue.file.scan_lines(b".")
        others = runmaker4.JobQueue(self.another(queue.file))
        theirs = present(others.claim(second).job)
        self.lose_job_lock(queue, job)
        self.path.write_bytes(b". a\nr a\n")            # an editor has saved what it had read
        self.assertEqual(queue.check_jobs(), {})
        self.assertEqual(self.path.read_bytes(), b"r a\nr a\n")
        self.assertEqual([queue.finish(job, b"d"), others.finish(theirs, b"!")], ["", ""])
        self.assertEqual(self.path.read_bytes(), b"d a\n! a\n")

    def test_a_job_that_is_lost_with_its_job_lock_makes_no_line_r(self) -> None:
        """That would be an orphan, as nobody has a lock for it."""
        cursor = self.jobs(b". a\n")
        queue, job = cursor.queue, job_of(cursor.claim())
        self.lose_job_lock(queue, job)
        self.path.write_bytes(b"#\n. a\n")
        self.assertEqual(queue.check_jobs(), {job: "lost"})
        self.assertEqual(self.path.read_bytes(), b"#\n. a\n")

    def test_of_jobs_whose_job_locks_were_lost_only_as_many_are_locked_again_as_there_are_lines(self) -> None:
        cursor = self.jobs(b". a\n. a\n. a\n")
        queue, jobs = cursor.queue, [job_of(cursor.claim()) for _ in range(3)]
        for job in jobs:
            self.lose_job_lock(queue, job)
        self.path.write_bytes(b"r a\nr a\n")
        self.assertEqual(queue.check_jobs(), {jobs[2]: "lost"})
        self.assertEqual([*queue.claimed], jobs[:2])
        self.assertEqual(queue.file.lock_table.count_job_locks(b"a"), 2)

    def test_each_cell(self) -> None:
        def write(queue: runmaker4.JobQueue) -> str:
            queue._write_and_release(self.job, b"d")
            return "written"

        def run_again(queue: runmaker4.JobQueue) -> str:
            return "it starts" if queue.still_has(self.job) else "it waits"

        events: tuple[Callable[[runmaker4.JobQueue], Optional[str]], ...] = (
            self.lock_mutex, self.look_twice, self.lose, write, run_again,
            runmaker4.JobQueue.open_files, self.remove_lock_file)
        states = "HELD", "LOST", "CLOSED"
        rows = cells(runmaker4, "event", *states)
        self.assertEqual(len(rows), len(events))
        del rows[-1][1:]                                # that text goes over all columns
        for event, row in zip(events, rows):
            for number, (state, cell) in enumerate(zip(states, row)):
                if cell == "-":
                    self.assertEqual((event, state), (self.look_twice, "CLOSED"))
                    continue
                wanted, *_ = (row[number - 1] if cell == "the same" else cell).replace(",", ":").split(":")
                with self.subTest(row=row, state=state):
                    queue = self.queue_in(state)
                    try:
                        answer = event(queue) or self.state(queue)
                    except runmaker4.FileChangedError:
                        answer = "FileChangedError"
                    except OSError as error:
                        answer = f"OSError({errno.errorcode[present(error.errno)]})"
                    self.assertEqual(answer, wanted)
