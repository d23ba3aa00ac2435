"""Defects that are planted into the product: each must break a promise in some histories.  One that none
finds is a hole.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Callable
from unittest import mock

from tests.orders.simulation.files import APPEND, BUCKET, LOCK_FILE
from tests.orders.simulation.product import CORE, SETTER, install
from tests.orders.simulation.system_calls import BLOCK, MACHINE

Patches = list[tuple[Any, str, Any]]    # each an object, an attribute of it, and what takes its place
FILE, QUEUE, LOCK_TABLES = CORE.JobFile, CORE.JobQueue, CORE.LockTable


def path_before_the_mutex() -> Patches:
    """What is written is the file that the path named before the command mutex was locked."""
    command_mutex, plain = FILE.command_mutex, FILE.check_at_path
    inside: set[Any] = set()

    @contextmanager
    def early(self: Any, *args: Any) -> Iterator[bool]:
        self.open_files()
        inside.add(self)
        try:
            with command_mutex(self, *args) as opened:
                yield opened
        finally:
            inside.discard(self)

    def must_be_at_path(self: Any) -> None:
        if self not in inside:
            plain(self)
    return [(FILE, "command_mutex", early), (FILE, "check_at_path", must_be_at_path)]


def state_from_before_the_mutex() -> Patches:
    claim, read_line = QUEUE.claim, FILE.read_line
    wanted: dict[Any, Any] = {}

    def claim_unread(self: Any, line: Any, *args: Any) -> Any:
        wanted[self.file] = line
        try:
            return claim(self, line, *args)
        finally:
            del wanted[self.file]

    def read_text(self: Any, line: Any, *args: Any) -> bytes:
        data: bytes = read_line(self, line, *args)
        return bytes(line.state) + data[1:] if data and self in wanted and wanted[self] is line else data
    return [(QUEUE, "claim", claim_unread), (FILE, "read_line", read_text)]


def job_lock_freed_early() -> Patches:
    plain = FILE.write

    def write(self: Any, line: Any, state: bytes) -> None:
        if state != b"r" and isinstance(line, CORE.Job) and line.job_lock:
            CORE.unlock(line.job_lock.fd, line.job_lock.offset)
        plain(self, line, state)
    return [(FILE, "write", write)]


def bucket_trimmed_early() -> Patches:
    """A job keeps its job lock only, and then `r` is written."""
    plain = FILE.write

    def write(self: Any, line: Any, state: bytes) -> None:
        if state == b"r":
            self.lock_table.trim_bucket(CORE.bucket_of(line.command))
            with mock.patch.object(self.lock_table, "has_mutex", lambda command: True):
                plain(self, line, state)
        else:
            plain(self, line, state)
    return [(FILE, "write", write)]


def bucket_locked_late() -> Patches:
    """The line is read, and then the bucket is locked."""
    plain, read_line = QUEUE.claim, FILE.read_line
    known: dict[Any, bytes] = {}

    def claim(self: Any, line: Any, *args: Any) -> Any:
        known[self.file] = read_line(self.file, line, 100)
        try:
            return plain(self, line, *args)
        finally:
            known.clear()

    def read(self: Any, line: Any, *args: Any) -> bytes:
        return known.get(self) or read_line(self, line, *args)
    return [(QUEUE, "claim", claim), (FILE, "read_line", read)]


def read_before_all() -> Patches:
    plain = QUEUE.claim

    def claim(self: Any, line: Any, *args: Any) -> Any:
        read = self.file.reader.pread
        known = read(2 * BLOCK, 0)
        with mock.patch.object(self.file.reader, "pread", lambda size, offset: (
                read(size, offset) if offset + size > 2 * BLOCK else known[offset:offset + size])):
            return plain(self, line, *args)
    return [(QUEUE, "claim", claim)]


def taken_anyway(self: Any, line: Any) -> Any:
    """A bucket that others have locked, too, counts as ours."""
    job_lock = CORE.JobLock(self.open_job_lock(), CORE.own_job_lock_offset(line))
    self.job_locks[job_lock.offset] = self.buckets[job_lock.bucket] = job_lock
    return job_lock


def taken_unlocked(self: Any, line: Any) -> Any:
    """A job has a job lock that nobody has locked."""
    job_lock = CORE.JobLock(self.open_job_lock(), CORE.own_job_lock_offset(line))
    self.job_locks[job_lock.offset] = job_lock
    return job_lock


def result_without_the_mutex() -> Patches:
    plain = QUEUE._write_and_release

    def write(self: Any, job: Any, state: bytes) -> None:
        with mock.patch.object(self.file, "command_mutex", lambda *_: nullcontext(True)), \
                mock.patch.object(self.file.lock_table, "has_mutex", lambda command: True):
            plain(self, job, state)
    return [(QUEUE, "_write_and_release", write)]


def row_unlocked() -> Patches:
    plain = QUEUE.claim

    def claim(self: Any, line: Any, *args: Any) -> Any:
        attempt = plain(self, line, *args)
        if attempt.job:
            CORE.unlock(attempt.job.job_lock.fd, CORE.bucket_of(line.command), BUCKET)
        return attempt
    return [(QUEUE, "claim", claim)]


def reset_without_the_mutex() -> Patches:
    plain = FILE.change_state

    def change_state(self: Any, line: Any, *args: Any) -> Any:
        with mock.patch.object(self, "command_mutex", lambda *_: nullcontext(True)):
            return plain(self, line, *args)
    return [(FILE, "change_state", change_state)]


def reset_whatever_it_is() -> Patches:
    """A line that another runner has claimed or finished since it was read is made new with all others."""
    plain = FILE.reset_lines

    def reset_lines(self: Any, lines: Any) -> Any:
        def refresh() -> None:
            FILE.check_writable(self)
            for line in lines:
                line.state = self.state_at(line) or line.state
        with mock.patch.object(self, "check_writable", refresh):
            return plain(self, lines)
    return [(FILE, "reset_lines", reset_lines)]


def reset_passes_over_locked() -> Patches:
    plain = FILE.change_state

    def change_state(self: Any, line: Any, *args: Any) -> Any:
        attempt = plain(self, line, *args)
        return CORE.Attempt(CORE.LineCheck.OPEN) if attempt.check is CORE.LineCheck.LOCKED else attempt
    return [(FILE, "change_state", change_state)]


def reset_left_to_others() -> Patches:
    """After a line that is locked, all lines near it count as made new by another runner."""
    return [(FILE, "without_changed", lambda self, lines: [])]


def one(owner: Any, attribute: str, new: Any) -> Callable[[], Patches]:
    """A defect that is one patch."""
    return lambda: [(owner, attribute, new)]


orphan_by_its_own_seat = one(FILE, "is_orphan", lambda self, line: (
    self.lock_table.is_open and not self.lock_table.is_held(CORE.own_job_lock_offset(line))))


def room(new: int, orphan: int) -> Callable[[], Patches]:
    """Who counts so many lines too many for a new line, or for an orphan."""
    too_many_new, too_many_orphans = new, orphan

    def has_room(self: Any, command: bytes, orphan: bool = False, near: int = 0) -> bool:
        job_locks = self.lock_table.count_job_locks(command)
        least = job_locks + orphan - (too_many_orphans if orphan else too_many_new)
        return not job_locks or least <= 0 or bool(self._has_running_lines(command, least, near))

    return lambda: [(FILE, "can_run_another_copy", has_room)]


def equal_lines_counted(above: float) -> Callable[[], Patches]:
    """Who counts the equal lines that run from a line on, and then from the top up to the offset `above`."""
    def has_running_lines(self: Any, command: bytes, at_least: int, near: int) -> bool:
        parts = (max(near, self.start), math.inf), (self.start, above)
        found = [line for start, stop in parts
                 for line in CORE.find_command_lines(self.reader, start, {command})
                 if line.state == b"r" and line.offset < stop]
        return len(found) >= at_least

    return lambda: [(FILE, "_has_running_lines", has_running_lines)]


def job_locks_counted(count: Callable[[int, int], int]) -> Callable[[], Patches]:
    """Who puts held lines in order, and counts other job locks of a command than there are.

    count: makes that number from how many there are, and how many of them are ours.
    """
    plain = QUEUE._reconcile_command

    def reconcile(self: Any, command: bytes, ours: Any, lines: Any) -> dict[Any, bytes]:
        lock_table = self.file.lock_table
        job_locks = count(lock_table.count_job_locks(command), sum(job.job_lock is not None for job in ours))
        with mock.patch.object(lock_table, "count_job_locks", lambda command: job_locks):
            without_line: dict[Any, bytes] = plain(self, command, ours, lines)
            return without_line

    return lambda: [(QUEUE, "_reconcile_command", reconcile)]


def exits_unseen(self: Any, walk: Any, plain: Any = CORE.Cursor._find_exits) -> Any:
    """Those who may exit, and no other walk is to look at what this one did not."""
    exits = plain(self, walk)
    walk.look_share = 1.0
    return exits


def join_and_keep_the_lock(self: Any) -> None:
    """Before its first result: an error leaves the mark locked."""
    table = self.lock_table
    if not self.boot or table.uses_mark:
        return
    if not CORE.lock(table.fd, CORE.MARK_BYTE):
        raise CORE.LockedNow("another process makes, checks or removes the mark in the lock file")
    if CORE.os.fstat(table.fd).st_size <= CORE.MARK_SIZE:
        self.write_mark(self.checksum_done_lines())
    table.uses_mark = CORE.lock(table.fd, CORE.USE_BYTE, shared=True)
    CORE.unlock(table.fd, CORE.MARK_BYTE)


def judge_or_pass(self: Any, plain: Any = CORE.JobFile.judge_mark) -> None:
    """Who meets another that settles the mark goes on."""
    if CORE.is_free(self.lock_table.fd, CORE.MARK_BYTE):
        plain(self)


def take_lost_lines_first(self: Any, line: Any, plain: Any = CORE.Walk._is_orphan_to_run) -> bool:
    """Orphans run again when they are met, although other lines are new."""
    self.takes_lost_lines = True
    runs_again: bool = plain(self, line)
    return runs_again


def loss_recorded_late() -> Patches:
    """An orphan becomes new, and a while later its loss is recorded."""
    plain = CORE.Walk._is_orphan_to_run

    def make_new(self: Any, line: Any) -> bool:
        with mock.patch.object(self, "consumers", CORE.Consumers([])):
            runs_again: bool = plain(self, line)
            return runs_again

    def write_next_state(self: Any, line: Any, state: bytes) -> Any:
        attempt = self._file.change_state(line, state)
        if attempt.new_state:
            MACHINE.world.sleep(MACHINE.world.me, MACHINE.world.throttle)
            self.add_loss(line, state)
        return attempt
    return [(CORE.Walk, "_is_orphan_to_run", make_new), (CORE.Orphans, "write_next_state", write_next_state)]


def limit_of_the_runner_alone(self: Any, job_lock: Any, settings: Any, plain: Any = LOCK_TABLES.take_limits
                              ) -> Any:
    """The byte of a limit is locked on the runner's description, so it is free when the runner dies."""
    return plain(self, CORE.JobLock(self.fd, job_lock.offset), settings)


def limit_freed_early(self: Any, line: Any, *args: Any, plain: Any = QUEUE._lock_and_mark) -> Any:
    job = plain(self, line, *args)
    for offset in self.file.lock_table.limit_locks.get(job.job_lock.offset, ()) if job else ():
        CORE.unlock(job.job_lock.fd, offset)
    return job


PLANTED: dict[str, Callable[[], Patches]] = {
    "limit not locked": one(LOCK_TABLES, "take_limits", lambda self, job_lock, settings: True),
    "limit of the runner alone": one(LOCK_TABLES, "take_limits", limit_of_the_runner_alone),
    "limit freed after the claim": one(QUEUE, "_lock_and_mark", limit_freed_early),
    "a full limit taken again at once": one(QUEUE, "_gives_way", lambda self, limit, line: False),
    "waits for a limit not shown": one(LOCK_TABLES, "show_waits", lambda self, offsets: None),
    "gives way to lines below only": one(CORE.Limit, "waits", lambda self, number, plain=CORE.Limit.waits: (
        plain(self, 10_000 - number))),
    "time not asked": one(CORE.JobSettings, "is_open", lambda self, now: True),
    "pause written without the locks": one(
        SETTER, "hold_all_locks", lambda file: nullcontext(file.lock_table.fd)),
    "no command mutex": one(LOCK_TABLES, "_lock", lambda self, at, length, plain=LOCK_TABLES._lock: (
        at % BUCKET == BUCKET - 1 or plain(self, at, length))),
    "command mutex of another text": one(FILE, "command_mutex", lambda self, command, patience=2.0, _=None: (
        self.lock_table.locking(CORE.bucket_of(b"another") + BUCKET - 1, patience))),
    "bucket trimmed before the r": bucket_trimmed_early,
    "bucket locked after the read": bucket_locked_late,
    "all read before the bucket is locked": read_before_all,
    "bucket shared": one(LOCK_TABLES, "take_bucket", lambda self, line, plain=LOCK_TABLES.take_bucket: (
        plain(self, line) or taken_anyway(self, line))),
    "description used again while a process has it": one(
        LOCK_TABLES, "_keep_or_close", lambda self, fd, plain=LOCK_TABLES._keep_or_close: (
            self._pipes.update({fd: CORE.CLOSED}) if fd in self._pipes else None, plain(self, fd))),
    "tries before the last forgotten": one(
        LOCK_TABLES, "copy_job_lock", lambda self, fd, plain=LOCK_TABLES.copy_job_lock: (
            self._pipes.update({fd: CORE.CLOSED}) if fd in self._pipes else None, plain(self, fd))[1]),
    "job lock freed with the trim": one(LOCK_TABLES, "trim_bucket", lambda self, bucket: (
        bucket in self.buckets and CORE.unlock(self.buckets.pop(bucket).fd, bucket, BUCKET))),
    "job lock not locked": one(LOCK_TABLES, "take_job_lock", taken_unlocked),
    "job lock freed before the write": job_lock_freed_early,
    "job lock freed after the claim": row_unlocked,
    "job lock not lent": one(QUEUE, "copy_lock_fds", lambda self, job: ()),
    "path before the command mutex": path_before_the_mutex,
    "state from before the command mutex": state_from_before_the_mutex,
    "text not checked": one(FILE, "read_line", lambda self, line, ahead=1: (
        self.reader.pread(1 + len(line.text) + ahead, line.offset))),
    "room for one too many": room(1, 0),
    "room for one too few": room(-1, 0),
    "one orphan too many": lambda: [*room(0, 1)(), *orphan_by_its_own_seat()],
    "one orphan too few": room(0, -1),
    "equal lines below counted twice": equal_lines_counted(math.inf),
    "equal lines above not counted": equal_lines_counted(0),
    "no room, and taken": one(FILE, "can_run_another_copy", lambda *args, **named: True),
    "orphan by its own job lock": orphan_by_its_own_seat,
    "second lock file": one(CORE, "lock_file_of", lambda path: LOCK_FILE + MACHINE.world.me.host.name),
    "lock file not checked": one(LOCK_TABLES, "is_current", lambda self: True),
    "no in-use lock": lambda: [
        (FILE, "mark_lock_file_in_use", lambda self: None),
        (CORE, "lock_all", lambda fd: None),
    ],
    "lost lease ignored": one(LOCK_TABLES, "still_has_locks", lambda self: True),
    "lost job locks kept": one(LOCK_TABLES, "drop_lost_job_locks", lambda self: None),
    "job locks kept in an old lock file": one(LOCK_TABLES, "free_all_job_locks", lambda self: None),
    "lock file marked before job locks are back": one(
        QUEUE, "take_back_locks", lambda self, plain=QUEUE.take_back_locks: (
            self.file.mark_lock_file_in_use(), plain(self))),
    "lock file marked though a job lock is not back": one(
        QUEUE, "take_back_locks", lambda self, plain=QUEUE.take_back_locks: (
            plain(self), self.file.mark_lock_file_in_use())),
    "lock file marked by a result": one(FILE, "check_writable", lambda self: (
        self.check_at_path(), self.mark_lock_file_in_use())),
    # Each `r` counts as the old state of the job's line, which an editor has saved
    "taken over, and not noticed": one(
        QUEUE, "_take_back_job_locks", lambda self, ours, spare, plain=QUEUE._take_back_job_locks: (
            plain(self, ours, spare + 1))),
    "job locks of others not counted": job_locks_counted(lambda job_locks, ours: ours),
    "a job lock too many counted": job_locks_counted(lambda job_locks, ours: job_locks + 1),
    "not brought back": one(QUEUE, "_restore_running_state", lambda self, line: None),
    "lost command mutex believed in": one(LOCK_TABLES, "check_still_has_locks", lambda self: None),
    # Who asks for the command mutex need not ask for the job lock, unless its clock stood still: its host was
    # suspended
    "result over another's r": lambda: [
        (QUEUE, "still_has", lambda self, job: True),
        (LOCK_TABLES, "check_still_has_locks", lambda self: None),
    ],
    "reads that cannot fail": lambda: [
        (CORE, "lock_all", lambda fd, plain=CORE.lock_all: (
            MACHINE.of(MACHINE.world.me, fd).direct or plain(fd))),
        (LOCK_TABLES, "check_still_has_locks", lambda self: None),
    ],
    "result without the command mutex": result_without_the_mutex,
    "result not verified": one(FILE, "state_at", lambda self, line, plain=FILE.state_at: (
        b"r" if isinstance(line, CORE.Job) else plain(self, line))),
    "written twice": one(QUEUE, "_is_result_written", lambda self, job: False),
    "left open": one(LOCK_TABLES, "close_job_lock", lambda self, fd: None),
    "closed twice": one(LOCK_TABLES, "close_job_lock", lambda self, fd, plain=LOCK_TABLES.close_job_lock: (
        plain(self, fd), CORE.os.close(fd))),
    "barrier ignored": one(CORE.Above, "find_block_below", lambda self, line, file, **_: None),
    "a check looks for failures only": one(
        CORE.Above, "find_block_below", lambda self, line, file, plain=CORE.Above.find_block_below, **_: (
            plain(self, line, file))),
    "appended without the lock": one(
        LOCK_TABLES, "locking", lambda self, at, patience, *after, plain=LOCK_TABLES.locking: (
            nullcontext(True) if at == APPEND else plain(self, at, patience, *after))),
    "taken while appended": one(FILE, "check_committed", lambda *args: True),
    "edited without the command mutexes": one(
        SETTER, "hold_all_locks", lambda file: nullcontext(file.lock_table.fd)),
    "saved over another person's edit": one(SETTER, "check_not_saved_since", lambda *args: None),
    "states as the person read them": one(
        SETTER, "merge_edit", lambda old, new, current, *more, plain=SETTER.merge_edit: (
            plain(old, new, [*old, *current[len(old):]], *more))),
    "names and sizes not seen": one(CORE.LockTable, "refresh", lambda self: None),
    "old pages read": one(
        CORE.Reader, "with_own_fd", classmethod(lambda cls, fd, network: cls(CORE.os.dup(fd)))),
    "read through an old description": one(FILE, "reopen_reader_on_fuse", lambda self: None),
    "locks lost in silence": one(CORE, "lost_locks", lambda fd, places, mount, plain=CORE.lost_locks: (
        set() if mount.forgets_locks else plain(fd, places, mount))),
    "orphans first": one(CORE.Walk, "_is_orphan_to_run", take_lost_lines_first),
    "loss recorded after the line is new": loss_recorded_late,
    "lost twice, and run beside others": one(CORE.Walk, "_can_run_beside", lambda *args: True),
    "orphan at the first look": one(CORE.Orphans, "MIN_UNLOCKED_SECONDS", 0.0),
    "made new without the mutex": reset_without_the_mutex,
    "made new at once, and locked": one(
        LOCK_TABLES, "_lock", lambda self, at, length, plain=LOCK_TABLES._lock: (
            plain(self, at, length) or length > 1)),
    "made new at once, and changed": reset_whatever_it_is,
    "locked lines passed over": reset_passes_over_locked,
    "left to others, who do not": reset_left_to_others,
    "claimed before all are new": one(CORE.Cursor, "_go_on_with_reset", (
        lambda self, consumers, plain=CORE.Cursor._go_on_with_reset: plain(self, consumers) and None)),
    "exit though lines wait at a barrier": one(
        FILE, "summarize", lambda self, consumers, groups, keep_above, looks, plain=FILE.summarize: (
            plain(self, consumers, groups, -math.inf, looks))),
    "names ignored": one(CORE.JobSettings, "find_awaited", lambda self: None),
    "held lines count as done": one(CORE, "BAD_STATES", b"!e"),
    "failures of a name ignored": one(CORE.Above, "record_bad", lambda self, line: None),
    "ready once one job of a name is done": one(CORE.Walk, "on_done", lambda self, job: (
        [self._wait_for(None, waiting.pop(0)) for named, waiting in self._waiting.items() for _ in [*waiting]
         if named.name == job.settings.name])),
    "exit and not all were looked at": one(CORE.Cursor, "_find_exits", exits_unseen),
    "half a line left": one(MACHINE, "ftruncate", lambda fd, size: None),
    "mark left locked after an error": one(FILE, "join_mark", join_and_keep_the_lock),
    "mark removed before it is settled": lambda: [
        (FILE, "leave_mark", lambda self, plain=FILE.leave_mark: (
            mock.patch.object(self, "read_old_mark", bytes).__enter__(), plain(self))),
    ],
    "claimed while another judges the mark": one(FILE, "judge_mark", judge_or_pass),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The product with a defect, or as it is (''); on the machine as it is now."""
    patches = PLANTED[name]() if name else []
    before = [(owner, attribute, vars(owner).get(attribute)) for owner, attribute, _ in patches]
    for owner, attribute, new in patches:
        assert hasattr(owner, attribute), f"{name}: there is no {attribute} any more"
        setattr(owner, attribute, new)
    install()
    try:
        yield
    finally:
        for owner, attribute, old in before:
            if old is None:
                delattr(owner, attribute)       # of an object; its class has the old one
            else:
                setattr(owner, attribute, old)
        install()
