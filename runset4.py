#!/usr/bin/env python3
"""runset4 - write a job file of runmaker4: set states, list jobs, add jobs, import jobs of other tools.

A state is set while holding the mutex of the line's command, so running jobs and runners are never disturbed.
Lines are appended all or none, under the append lock. runmaker4.py explains the locks.

The sections, top-down: appending, states, editing, lists, job files, tests, the end of following, the command
line. Each import yields the lines to append, and raises UsageError with the line number of an error. All
lines are made before the first is appended.
"""
from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)    # Ctrl-C during what follows: no traceback

import argparse
import contextlib
import errno
import fcntl
import fnmatch
import functools
import itertools
import os
import re
import shlex
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Callable, NamedTuple

try:
    import runmaker4  # noqa: F401
except ModuleNotFoundError as missing:
    if missing.name != "runmaker4":
        raise
    print("runset4.py: runmaker4.py is missing (copy it to where this script is)", file=sys.stderr)
    sys.exit(2)

from runmaker4 import (
    APPEND_BYTE,
    BUCKETS_END,
    DIRECTIVE_LIKE,
    DONE,
    ERROR,
    FAILED,
    GRACE,
    HELD,
    HERE_BYTE,
    JOB_LOCKS,
    LOCK_FD,
    LONGEST_COMMAND,
    MUTEX_OFFSET,
    NEW,
    PRESENCE_BYTES,
    RUNNING,
    UTF8_MARK,
    Child,
    FileChangedError,
    Identity,
    JobFile,
    JobReader,
    Line,
    Parser,
    PresenceLock,
    ProcessTable,
    Reader,
    Scan,
    Shell,
    TreeKiller,
    UsageError,
    add_general,
    append_locked,
    bucket_of,
    check_lines,
    check_lock_file,
    check_mount,
    command_error,
    duration,
    error_text,
    exit_now,
    first_line,
    give_rights,
    integer_between,
    is_utf16,
    job_file_path,
    keep_trying,
    line_ranges,
    lock,
    lock_all,
    lost_locks,
    name_lines,
    open_job_file,
    open_or_make,
    other_lock,
    own_job_lock,
    parse_settings,
    plural,
    print_lines,
    printable,
    quote,
    run_main,
    text_of,
    warn,
    when_used,
    whole_lines,
    write_all,
)

asyncio, configparser, csv, subprocess, tempfile = map(
    when_used, ("asyncio", "configparser", "csv", "subprocess", "tempfile")
)

PROG = "runset4.py"


# ======== Appending =========================================================================================
#
# All lines are made first, so nothing is written if one is wrong.  Then we take the append lock in the lock
# file, open the file that the path names, and append the lines in one go.  After an error the written part is
# removed again.  So a reader counts a line as complete only when nobody holds the append lock.

BLOCK = 1 << 20                     # bytes that are read or written at once
MAX_IN_MEMORY = 16 << 20            # bytes of new lines that are kept without a temporary file


def job(command: bytes) -> bytes:
    """Return the line of a new job.  Raises ValueError with the reason if the command cannot be a job."""
    if b"\n" in command or b"\0" in command or not command.strip():
        raise ValueError(f"not a command: '{text_of(command[:80])}' (one line, not empty, no NUL)")
    if why := command_error(command):
        raise ValueError(why)
    return b". %s\n" % command


def directive(text: bytes) -> bytes:
    """Return the line of a directive, after checking it.  Raises ValueError with the reason if it is invalid.
    """
    if b"\n" in text or b"\0" in text:
        raise ValueError(f"not a directive: '{text_of(text[:80])}' (one line, no NUL)")
    parse_settings(text[1:])
    return text + b"\n"


def is_directive(line: bytes) -> bool:
    """Return True if a line, without newline, is a directive or looks like one."""
    return re.match(DIRECTIVE_LIKE, line + b"\n") is not None


def line_to_add(text: bytes) -> bytes:
    """Return the line for a text to add, which is a directive or a command.  Raises ValueError."""
    if is_directive(text):
        return directive(text)
    if begins_with_state(text):
        shown = text_of(state_shown(text[:1]))
        raise ValueError(
            f"'{text_of(text[:80])}' is a complete job line, in state {shown} (leave out the state; if it is "
            "a command, put a blank before it)"
        )
    return job(text)


def begins_with_state(text: bytes) -> bool:
    """Return True if a text would be a job line by itself, in one of the known states."""
    return text[:1] in KNOWN and text[1:2] in (b" ", b"\t")


OTHERS = 30.0                       # seconds to wait for other processes that append


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Block INT, TERM and HUP during the `with` block."""
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


@contextlib.contextmanager
def appending(file: JobFile, make: bool = True) -> Iterator[int]:
    """Hold the append lock of a job file; yield a descriptor for append_locked().

    An editor can replace the file at any moment, and lines appended to the old file are lost. So we append to
    the file that the path names while we hold the lock. If the path then names another file, that is an error
    (ESTALE): the new file has the lines only if the editor read them in the old one, and equal commands do
    not prove that. Appending again could run the lines twice, and not appending could lose them. So a person
    must look.

    make: create the file if it does not exist.  Raises UsageError, OSError.
    """
    end = time.monotonic() + OTHERS
    if make and not os.path.lexists(file.path):
        os.close(open_or_make(file.path, os.O_RDWR | os.O_CLOEXEC, 0o666))
    file.open_to_write()
    with append_lock(file):
        while True:
            await_file(file.real, end)
            with open_to_append(file.real) as fd:
                if file.is_at_path(fd):
                    lock_all(fd)
                    file.lock_table.check_alive()
                    yield fd
                    must_name(file, fd)
                    file.lock_table.check_alive()
                    return


def must_name(file: JobFile, fd: int) -> None:
    """Raise FileChangedError if the path does not name the file of this descriptor."""
    if not file.is_at_path(fd):
        raise FileChangedError


@contextlib.contextmanager
def append_lock(file: JobFile) -> Iterator[None]:
    """Hold the append lock of a job file.  Waits for other processes; blocks signals while it has the lock.
    """
    with file.lock_table.locking(APPEND_BYTE, OTHERS) as opened, uninterrupted():
        if not opened:
            raise OSError(errno.EAGAIN, "another process keeps appending to it")
        yield


@contextlib.contextmanager
def open_to_append(path: str) -> Iterator[int]:
    """Open a job file to append to it.  Raises UsageError, OSError.

    Only write to this descriptor; read with a Reader.
    """
    fd = open_job_file(path, os.O_RDWR | os.O_APPEND)
    try:
        yield fd
    finally:
        os.close(fd)


def await_file(path: str, end: float) -> None:
    """Wait until the path exists, because an editor may be replacing the file.

    Raises OSError after `end` (monotonic seconds).
    """
    while True:
        if time.monotonic() > end:
            raise OSError(errno.EAGAIN, "was removed, or is replaced again and again")
        if os.path.lexists(path):
            return
        time.sleep(0.002)


class Added(NamedTuple):
    """Numbers of appended lines."""
    jobs: int
    directives: int

    def __str__(self) -> str:
        """Return '2 jobs added', '1 directive added' or '2 jobs and 1 directive added'."""
        parts: list[str] = []
        if self.jobs or not self.directives:
            parts.append(plural(self.jobs, "job"))
        if self.directives:
            parts.append(plural(self.directives, "directive"))
        return f"{' and '.join(parts)} added"


def append_lines(file: JobFile, lines: Iterable[bytes]) -> Added:
    """Append lines to a job file, all or none.  All lines are made before the file is touched.

    Raises UsageError, OSError.
    """
    count = 0
    jobs = 0
    with tempfile.SpooledTemporaryFile(MAX_IN_MEMORY) as spool:
        try:
            rest = iter(lines)
            # line by line takes eight times as long
            while piece := b"".join(itertools.islice(rest, 256)):
                spool.write(piece)
                jobs += piece.count(b"\n. ") + piece.startswith(b". ")
                count += piece.count(b"\n")
            spool.seek(0)
        except OSError as error:
            raise UsageError(
                f"cannot write a temporary file: {error_text(error)} (TMPDIR sets its directory)"
            ) from None
        with appending(file) as fd:
            append_locked(fd, file.real, file.mount, iter(lambda: spool.read(BLOCK), b""))
    return Added(jobs, count - jobs)


def lines_to_add(commands: Sequence[str]) -> Iterator[bytes]:
    """Yield the lines for commands and directives of the command line.  Raises UsageError."""
    for command in commands:
        try:
            yield line_to_add(os.fsencode(command))
        except ValueError as error:
            raise UsageError(f"{error}; nothing was added") from None


class Source:
    """A text from which jobs are imported, and the current line number."""
    LIMIT = 2 * LONGEST_COMMAND     # bytes of a line: the command in a longer line would be too long

    def __init__(self, path: str) -> None:
        """path: '-' for stdin."""
        self.path = path
        self.name = "stdin" if path == "-" else text_of(os.fsencode(path))
        self.number = 0             # of the last line read, from 1

    def __iter__(self) -> Iterator[bytes]:
        """Yield the lines without UTF-8 BOM, b'\\n' and b'\\r\\n'.  Raises UsageError."""
        self.number = 0
        try:
            with open(0 if self.path == "-" else self.path, "rb", closefd=self.path != "-") as file:
                while line := file.readline(self.LIMIT):
                    self.number += 1
                    yield self._text(line)
        except OSError as error:
            raise UsageError(f"{self.name}: {error_text(error)}") from None

    def _text(self, line: bytes) -> bytes:
        """Return the text of the last line read.  Raises UsageError."""
        if self.number == 1:
            line = self._unmarked(line)
        if b"\0" in line:
            raise self.problem("contains a NUL (expected text)")
        if line.endswith(b"\r\n"):
            return line[:-2]
        if line.endswith(b"\n"):
            return line[:-1]
        if len(line) >= self.LIMIT:
            raise self.problem("is too long (128 KiB for a command)")
        return line

    def _unmarked(self, line: bytes) -> bytes:
        """Return the first line without its UTF-8 BOM.  Raises UsageError."""
        if is_utf16(line[:4096]):
            raise UsageError(f"{self.name}: is UTF-16 (save it as UTF-8)")
        if line.startswith(UTF8_MARK):
            return line[len(UTF8_MARK):]
        return line

    def problem(self, text: object) -> UsageError:
        """Return a UsageError that names the last line read."""
        return UsageError(f"{self.name}: line {self.number}: {text}")


# ======== States ============================================================================================
#
# We change a state as runners do: while holding the mutex of the line's command, after reading the line
# again.  A line `r` is not changed unless it is an orphan.  To cancel a job, we write x over the `r`: the
# runner sees that at the next poll, and kills the job.  If the runner is dead and the job runs on this host,
# we kill the job ourselves; the processes that hold the job lock show that (Holders).  If it runs on another
# host, a user must do this on that host; the journal names the host.

WORDS = {"new": NEW, "running": RUNNING, "done": DONE, "failed": FAILED, "error": ERROR, "held": HELD}
KNOWN = b"".join(WORDS.values())
NOT_HELD = b"".join(state for state in WORDS.values() if state != HELD)
LETTERS = re.compile(r"(?:([.rd!ex])(?!.*\1))+")        # letters of states, each once, so `err` is not meant


def state_shown(state: bytes) -> bytes:
    """Return a state as messages and --list show it: '.', or 'x (held)' of any that no runner takes."""
    return state if state in NOT_HELD else state + b" (held)"


@dataclass(frozen=True)
class Selection:
    """The jobs that the user selected: those that match all given conditions."""
    numbers: Sequence[range]    # of lines; empty: no condition
    states: bytes               # b"": no condition
    pattern: bytes | None       # a complete command, or a shell pattern; None: no condition

    @property
    def is_given(self) -> bool:
        """Return True if any condition is given."""
        return self.states != b"" or self.names_jobs

    @property
    def names_jobs(self) -> bool:
        """Return True if a condition selects particular jobs, not only states."""
        return bool(self.numbers) or self.pattern is not None

    def lines(self, file: JobReader, otherwise: bytes | None = KNOWN) -> Iterator[Line]:
        """Yield the selected job lines.

        otherwise: the states to select if neither states nor numbers are given; None: any. `I have a list` is
        a job line in state `I`, which counts as held. Lines in such unusual states are changed only by number
        or by --state.
        """
        states = otherwise
        if self.states:
            states = self.states
        elif self.numbers:
            states = None
        return filter(self._means, file.lines(states))

    def _means(self, line: Line) -> bool:
        """Return True if this line is selected; the state matches already."""
        if self.numbers and not self._is_given(line.number):
            return False
        if self.pattern is None or line.command == self.pattern:
            return True
        return fnmatch.fnmatchcase(line.command, self.pattern)

    @functools.cached_property
    def _singles(self) -> set[int]:
        """The numbers that are given one by one; there can be thousands."""
        return {span[0] for span in self.numbers if span[0] == span[-1]}

    @functools.cached_property
    def _spans(self) -> list[range]:
        """The ranges of several lines."""
        return [span for span in self.numbers if span[0] != span[-1]]

    def _is_given(self, number: int) -> bool:
        """Return True if this line number is given."""
        return number in self._singles or any(number in span for span in self._spans)

    def singles(self) -> set[int]:
        """Return the numbers that must each be a selected job line.

        With states the set is empty, because states only filter the lines.
        """
        return set() if self.states else set(self._singles)

    @property
    def why_refused(self) -> str:
        """The reason to refuse a given line number that is not a selected job."""
        return "not a job" if self.pattern is None else "not a matching job"


def await_committed(file: JobFile, line: Line) -> bool:
    """Wait a while until the process that appended a line can no longer remove it; return True if so."""
    return keep_trying(lambda: file.is_committed(line), file.MUTEX_SECONDS, 0.01)


def set_state(file: JobFile, line: Line, state: bytes, force: bool) -> str:
    """Set the state of a line that a scan has found; return the reason for refusing that, or ''.

    Running lines are refused without `force`.  Raises OSError (ESTALE: the file was replaced).
    """
    with file.command_mutex(line.command) as opened:
        if not opened or not await_committed(file, line):
            return "is being added, claimed, finished or edited (try again)"
        file.writable()                         # with the mutex held: the file has not been replaced
        state_now = file.state_at(line)
        if state_now is None or (state_now != line.state and not force):
            return "has changed since it was read; not set"
        if state_now == RUNNING and not force and not file.is_orphan(line):
            return "is running (wait for it, or use --force)"
        file.write(line, state)
    return ""


@dataclass
class ChangeCounts:
    """Counts of the selected jobs: by the state before the change, and refused.

    alive: the numbers of lines with a running job, over whose `r` another state was forced.
    """
    done: Counter[bytes] = field(default_factory=Counter)
    refused: int = 0
    alive: list[int] = field(default_factory=list)

    def refuse(self, file: JobFile, number: int, why: str) -> None:
        """Count a refused line, and report the reason."""
        file.say(f"line {number}: {why}")
        self.refused += 1

    def count(self, file: JobFile, line: Line, why: str) -> bool:
        """Count a job as changed, or as refused if there is a reason (`why`); return True if it was
        changed.
        """
        if why:
            self.refuse(file, line.number, why)
        else:
            self.done[line.state] += 1
        return not why

    def text(self, state: bytes) -> str:
        """Return '2 lines: ! -> ., 1 line: x (held) -> .', where `state` is the new state."""
        parts: list[str] = []
        for old, count in self.done.items():
            if count:
                before, after = text_of(state_shown(old)), text_of(state_shown(state))
                parts.append(f"{plural(count, 'line')}: {before} -> {after}")
        return ", ".join(parts)


def set_states(
    file: JobFile, selection: Selection, state: bytes, force: bool, change_counts: ChangeCounts
) -> None:
    """Set the states of the selected jobs.

    Raises OSError (ESTALE: the file was replaced, and lines may have moved).
    """
    file.open_to_write()
    fd = file.writable()
    missing = selection.singles()
    for line in selection.lines(file):
        missing.discard(line.number)
        done = change_counts.count(file, line, set_state(file, line, state, force))
        if done and force and line.state == RUNNING and file.lock_table.count_job_locks(line.command):
            change_counts.alive.append(line.number)
    for number in sorted(missing):
        change_counts.refuse(file, number, selection.why_refused)
    if change_counts.done:
        must_name(file, fd)


UNSUPERVISED = "is r, but no runner has it (runner or host died)"
STOPPING = 10.0                     # seconds to wait until cancelled jobs have exited


def cancel_line(file: JobFile, line: Line, running: Iterable[Line] = ()) -> tuple[bytes | None, bool]:
    """Write x over the `r` or `.` of a line; return the old state, and True if the job runs.

    The state is None if the line has moved. The job can run in any state: for example, an editor has saved
    `.` over the `r`, or the job was cancelled before and not killed. Then more copies of the command are
    running than lines are `r`.

    running: the lines `r` of this command. Orphans among them become e first, because each would count as the
    owner of a running copy.  Raises OSError (ESTALE: the file was replaced).
    """
    orphans: list[Line] = []
    with file.command_mutex(line.command) as opened:
        file.writable()
        if not opened or not await_committed(file, line):
            raise OSError(errno.EAGAIN, f"line {line.number} keeps being added, claimed or edited")
        state_now = file.state_at(line)
        runs = job_runs(file, line, state_now)
        if runs:
            orphans = mark_orphans(file, [other for other in running if other.offset != line.offset])
        if state_now in (NEW, RUNNING):
            file.write(line, HELD)
    for orphan in orphans:
        file.say(f"line {orphan.number}: {UNSUPERVISED}; it is e now")
    return state_now, runs


def job_runs(file: JobFile, line: Line, state_now: bytes | None) -> bool:
    """Return True if the job of a line runs.  The caller holds the mutex of the command.

    state_now: the present state; None: the line has moved.
    """
    if state_now is None:
        return False
    if state_now == RUNNING:
        return not file.is_orphan(line)
    return not file.has_room(line.command)


def mark_orphans(file: JobFile, lines: Iterable[Line]) -> list[Line]:
    """Write e over the orphans among these lines `r` of a command; return the orphans.

    The caller holds the mutex of the command.
    """
    orphans: list[Line] = []
    for line in lines:
        if file.is_orphan(line):
            file.write(line, ERROR)
            orphans.append(line)
    return orphans


def lines_by_command(lines: Iterable[Line]) -> dict[bytes, list[Line]]:
    """Group lines by command."""
    found: defaultdict[bytes, list[Line]] = defaultdict(list)
    for line in lines:
        found[line.command].append(line)
    return found


def cancel(file: JobFile, selection: Selection, change_counts: ChangeCounts) -> None:
    """Cancel the selected jobs: write x over `r` and `.`, and wait until running jobs have exited.

    A named line in another state is waited for if its job runs. A job that finishes at this moment can get
    the result first: then the line keeps the result, and we report that.
    """
    missing = selection.singles()
    waiting: list[Line] = []
    running = lines_by_command(file.lines(RUNNING))
    for line in selection.lines(file):
        missing.discard(line.number)
        state_now: bytes | None = line.state
        runs = False
        if line.state in (NEW, RUNNING) or selection.names_jobs:
            state_now, runs = cancel_line(file, line, running.get(line.command, ()))
        if state_now is None or not (runs or state_now in (NEW, RUNNING)):
            if selection.numbers or line.state in (NEW, RUNNING):
                change_counts.count(file, line, why_not_cancelled(state_now))
            continue
        if state_now == RUNNING and not runs:
            file.say(f"line {line.number}: {UNSUPERVISED}; it is x now")
        elif state_now not in (NEW, RUNNING):
            file.say(f"line {line.number}: is {text_of(state_now)}, but its job runs")
        stopped = replace(line, state=state_now)
        change_counts.count(file, stopped, "")
        if runs:
            waiting.append(stopped)
    for number in sorted(missing):
        change_counts.refuse(file, number, selection.why_refused)
    await_stop(file, waiting, change_counts)


def why_not_cancelled(state_now: bytes | None) -> str:
    """Return why a line in this state cannot be cancelled; None: it moved."""
    if state_now is None:
        return "has moved since it was read; not cancelled (look, and run this again)"
    return f"is not running: the state is {text_of(state_now)}"


def await_stop(file: JobFile, waiting: Sequence[Line], change_counts: ChangeCounts) -> None:
    """Wait until these cancelled jobs have exited, and report those that have not.

    A job has exited when the held job locks of its command are no more than the lines `r`. If an editor has
    saved an old `r` or `.` over the x, the job is cancelled once more.
    """
    end = time.monotonic() + STOPPING
    look_at = 0.0                       # when to look for unsupervised jobs next
    while waiting and time.monotonic() < end:
        if time.monotonic() >= look_at:
            end_unsupervised_jobs(file, waiting)
            look_at = time.monotonic() + 1.0
        time.sleep(0.05)
        file.open_to_write()
        still = []
        for line in waiting:
            state = file.state_at(line)
            if state in (NEW, RUNNING):
                cancel_line(file, line)
            if state in (NEW, RUNNING) or not file.has_room(line.command):
                still.append(line)
            elif state not in (HELD, line.state):
                change_counts.done[line.state] -= 1
                change_counts.refuse(
                    file, line.number, "has moved or changed since (look, and run this again)"
                )
        waiting = still
    holders = Holders(file.lock_table.inode)
    for line in waiting:
        shown = text_of(HELD if line.state in (NEW, RUNNING) else line.state)
        why = where_it_runs(line, holders, file.mount.is_fuse)
        change_counts.refuse(
            file, line.number, f"is {shown}, but is still running after {STOPPING:.0f} s ({why})"
        )


def end_unsupervised_jobs(file: JobFile, lines: Sequence[Line]) -> None:
    """Kill the jobs of these cancelled lines that run on this host and whose runners are dead."""
    holders = Holders(file.lock_table.inode)
    if not holders.by_jobs:
        return
    jobs: list[Shell] = []
    for command, equal in lines_by_command(lines).items():
        unsupervised = holders.unsupervised(command)
        if not unsupervised:
            continue
        for line, job in unsupervised_jobs(file, equal, unsupervised):
            file.say(f"line {line.number}: the runner is dead; killing the job (process {job.pid})")
            jobs.append(job)
    end_unsupervised(jobs)


def unsupervised_jobs(
    file: JobFile, lines: Sequence[Line], jobs: Mapping[int, Shell]
) -> list[tuple[Line, Shell]]:
    """Return the unsupervised jobs that belong to these equal cancelled lines, each with its line.

    jobs: the unsupervised jobs of this command, by job lock. A line's job is the one that holds the line's
    own job lock. If an edit has moved lines, the job may hold any other lock that is not a running line's
    own. Such a job is killed only if no copy of the command has a living runner: that copy could be the
    cancelled one, and its runner kills it soon. In all, at most as many jobs are killed as run without an
    `r`.
    """
    command = lines[0].command
    with file.command_mutex(command) as opened:
        if not opened:
            return []
        file.writable()
        running = [line for line in file.lines_by_command({command})[command] if line.state == RUNNING]
        alive = file.lock_table.count_job_locks(command)
    kept = {own_job_lock(line) for line in running}
    free = {job_lock: job for job_lock, job in jobs.items() if job_lock not in kept}
    found: list[tuple[Line, Shell]] = []
    unmatched: list[Line] = []
    for line in lines:
        own = free.pop(own_job_lock(line), None)
        if own:
            found.append((line, own))
        else:
            unmatched.append(line)
    if alive == len(jobs):
        found += zip(unmatched, free.values())
    most = max(alive - len(running), 0)
    return found[:most]


CLIENT_AWAY = ("no answer from the client, which kills the job when it is back; otherwise the line is free "
               "after the server's --grace, but the job can go on running")


def is_server(presence_lock: int) -> bool:
    """Return True if this presence lock is one of those for servers."""
    return PresenceLock.SERVERS <= presence_lock < PresenceLock.COUNT


def where_it_runs(line: Line, holders: Holders, on_fuse: bool) -> str:
    """Return why a cancelled job has not exited, as far as this host knows.

    on_fuse: the job file is on FUSE. The FUSE daemon holds these locks, so the kernel does not name the job's
    processes.
    """
    unsupervised = holders.unsupervised(line.command)
    keeping = holders.pids(line.command, jobs=False)
    if any(map(holders.is_server, keeping)):
        return CLIENT_AWAY
    for pid in keeping[:1]:
        if unsupervised:
            pids = ", ".join(str(job.pid) for job in unsupervised.values())
            return (f"ambiguous, because an edit has moved equal lines: process {pids} of "
                    f"this host has no runner, and process {pid} runs another copy")
        return f"process {pid} of this host should kill it, and does not"
    for pid in holders.pids(line.command, jobs=True)[:1]:
        return f"process {pid} of this host is still running"
    if on_fuse:
        return "this file system does not show the owner of a lock: kill the job by hand, on its host"
    return (f"no visible process of this host runs it: use {PROG} --cancel on the right host (runwait4.py "
            "--status --outdir DIR names it); a client over TCP kills it when it is back")


# ---- unsupervised jobs -------------------------------------------------------------------------------------
#
# /proc/PID/fdinfo/FD names the locks of a process's open file description (proc(5)), and /proc/PID/fd/FD the
# file.  So we know exactly which processes of this host hold a job lock, as far as we can look: at our own
# processes, or as root at all.  A signal must reach a job and nothing else:
#
#  - A job's processes have the description only by inheritance: a descriptor from LOCK_FD on that execve(2)
#    leaves open.  Descriptors of a runner are closed by execve(2).  A server can have one that is not, but
#    every process that uses a lock file has HERE_BYTE of it locked, and a keeper has only the first few
#    descriptors.  Each process that has inherited the description descends from the job's shell.  So do all
#    processes of that session, all that carry the job's tag, and their children.  At least one must carry
#    the tag, because no other job ever has it.
#  - Another process that has this description and does not carry that tag is the runner, a server or a
#    keeper.  Such a process is alive, and it is the one that must kill the job.  A runner holds a job lock
#    for as long as it holds the line.
#  - Signals are sent at once after each scan.  If a process exits in between, the kernel gives that PID to
#    another process only after all other PIDs (32,768 at least).


class Hold(NamedTuple):
    """A descriptor of a process, with the job locks that it holds."""
    pid: int
    job_locks: list[range]
    inherited: bool         # as a job inherits it from the runner

    def touches(self, job_locks: range) -> bool:
        """Return True if the descriptor holds any of these locks."""
        return any(own.start < job_locks.stop and job_locks.start < own.stop for own in self.job_locks)


# A lock in /proc/PID/fdinfo/FD of a process: inode, first and last byte (proc(5))
LOCK_LINE = re.compile(rb"\d+: \S+ +\S+ +\S+ +-?\d+ [0-9a-f]+:[0-9a-f]+:(\d+) (\d+) (\d+|EOF)")


class Holders:
    """The processes of this host that hold job locks of a lock file now, as far as we can see them."""
    FLAGS = re.compile(rb"^flags:\s+([0-7]+)", re.MULTILINE)

    def __init__(self, lock_table: Identity | None) -> None:
        """lock file: device and inode of the lock file; None: it does not exist, and there are no holders."""
        self.lock_table = lock_table
        self.by_jobs = [hold for hold in self._holds(LOCK_FD) if hold.inherited]

    @functools.cached_property
    def all(self) -> list[Hold]:
        return list(self._holds(0))

    def _holds(self, least: int) -> Iterator[Hold]:
        """Yield the descriptors, from the number `least` on, that hold job locks."""
        with contextlib.suppress(OSError):                  # no /proc
            for name in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):          # the process has exited, or is another user's
                    numbers = [int(number) for number in os.listdir(f"/proc/{name}/fd")]
                    yield from self._holds_of(int(name), numbers, least)

    def _holds_of(self, pid: int, numbers: Iterable[int], least: int) -> Iterator[Hold]:
        for number in numbers:
            locked, stays = self._locks(pid, number) if number >= least else ([], False)
            job_locks = [span for span in locked if span.start < BUCKETS_END]
            if job_locks:
                inherited = stays and number >= LOCK_FD and not self._is_ours(pid, numbers)
                yield Hold(pid, job_locks, inherited)

    def _is_ours(self, pid: int, numbers: Iterable[int]) -> bool:
        """Return True if a process with these descriptors uses the lock file itself, as runners and servers
        do.
        """
        return any(HERE_BYTE in span for number in numbers for span in self._locks(pid, number)[0])

    def _locks(self, pid: int, number: int) -> tuple[list[range], bool]:
        """Return the bytes of the lock file that a descriptor has locked, and True if execve(2) leaves it
        open.
        """
        try:
            info = os.stat(f"/proc/{pid}/fd/{number}")
            if (info.st_dev, info.st_ino) != self.lock_table:
                return [], False
            with open(f"/proc/{pid}/fdinfo/{number}", "rb") as file:
                text = file.read()
        except OSError:                                     # the descriptor was closed
            return [], False
        flags = self.FLAGS.search(text)
        locked = [range(int(first), int(last) + 1) for _, first, last in LOCK_LINE.findall(text)
                  if last != b"EOF"]
        return locked, flags is not None and not int(flags[1], 8) & os.O_CLOEXEC

    def unsupervised(self, command: bytes) -> dict[int, Shell]:
        """Return the unsupervised jobs of a command, by job lock."""
        first = bucket_of(command)
        spans = [span for hold in self.by_jobs for span in hold.job_locks]
        job_locks = {job_lock for span in spans for job_lock in span if first <= job_lock < first + JOB_LOCKS}
        jobs = {job_lock: self._unsupervised(job_lock) for job_lock in job_locks}
        return {job_lock: job for job_lock, job in jobs.items() if job}

    def _unsupervised(self, job_lock: int) -> Shell | None:
        """Return the job that holds a job lock; None: there is no such job, or another process holds the lock
        as well.
        """
        holds = [hold for hold in self.all if hold.touches(range(job_lock, job_lock + 1))]
        marks = {hold.pid: self._marks(hold.pid) for hold in holds}
        members = [hold.pid for hold in holds if hold.inherited and marks[hold.pid]]
        if not members:
            return None
        # a job can run our programs; their jobs have a longer chain of tags
        mark = min((marks[pid] for pid in members), key=len)[-1]
        if any(mark not in marks[hold.pid] for hold in holds if not hold.inherited):
            return None
        sessions = sorted((session != pid, session) for pid in members if (session := self._session(pid)))
        return Shell(sessions[0][1], mark) if sessions else None

    @staticmethod
    def _marks(pid: int) -> list[bytes]:
        try:
            return ProcessTable.marks_of(str(pid))
        except OSError:                                     # the process has exited
            return []

    @staticmethod
    def _session(pid: int) -> int:
        """Return the session of a process; 0: the process has exited."""
        try:
            return os.getsid(pid)
        except OSError:
            return 0

    def is_server(self, pid: int) -> bool:
        """Return True if a process has the presence lock of a server."""
        with contextlib.suppress(OSError):                  # the process has exited
            locked = [span for number in os.listdir(f"/proc/{pid}/fd")
                      for span in self._locks(pid, int(number))[0]]
            return any(is_server(span.start - PRESENCE_BYTES) for span in locked)
        return False

    def pids(self, command: bytes, jobs: bool) -> list[int]:
        """Return the processes that hold job locks of a command: if `jobs` those of jobs, otherwise all
        others.
        """
        job_locks = range(bucket_of(command), bucket_of(command) + JOB_LOCKS)
        return sorted({hold.pid for hold in self.all if hold.inherited == jobs and hold.touches(job_locks)})


def end_unsupervised(jobs: Iterable[Shell]) -> None:
    """Kill these unsupervised jobs as a runner would."""
    async def end_all() -> None:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        ended.set_result(0)             # as if waited for: a session counts while a process is in it
        ender = TreeKiller(loop, GRACE)
        await asyncio.gather(*(ender.kill_tree(Child(job.pid, job.job_tag, ended)) for job in jobs))

    asyncio.run(end_all())


# ======== Editing ===========================================================================================
#
# A person edits a copy, and we merge the changes into the live file, all or nothing.  The person sees the
# refused changes and can fix the copy ("What now?", as visudo asks; without a terminal the exit status is 1).
# The person can change the lines at will.  Other processes can change states and append lines at the same
# time; if they have done more, nothing is written.
#
# While we merge and write, we hold the append lock, and all of the lock file except the job locks of running
# jobs.  So no line can be claimed, finished or set during that time, and a process that locks a command mutex
# afterwards opens the file that the path names then.  Running lines and their job locks remain: nothing is
# carried over, and no job is waited for.  States and appended lines are written in place.  Any other change
# makes a new file, by rename; a line that `echo >>` appended to the old file at that moment is copied to the
# new one.

MIN_EDITOR_SECONDS = 1.0            # seconds: an editor that exits sooner has not shown the copy to a person
MAX_REASONS = 20                    # reasons for refusing an edit that are printed at most
MUTEX_PATIENCE = 10.0                # seconds to wait for processes that hold a command mutex


def is_job(line: bytes) -> bool:
    return line[:1] not in b"#/ \t" and line[1:2] in (b" ", b"\t")


def runs(line: bytes) -> bool:
    return line[:1] == RUNNING and is_job(line)


def count_running(lines: Iterable[bytes]) -> int:
    return sum(map(runs, lines))


def merge_key(line: bytes) -> bytes:
    """Return the identity of a line: of a job the text without the state, of any other line all of it."""
    return b"\n" + line[1:] if is_job(line) else line


def split_lines(data: bytes) -> list[bytes]:
    """Return the lines of a job file, without BOM and newlines."""
    data = data[len(UTF8_MARK):] if data.startswith(UTF8_MARK) else data
    lines = data.split(b"\n")
    return lines if lines[-1] else lines[:-1]


def equal_until(a: Iterable[bytes], b: Iterable[bytes]) -> int:
    """Return the number of equal lines at the start of both."""
    count = 0
    for one, other in zip(a, b):
        if one != other:
            break
        count += 1
    return count


def changed_part(given: Sequence[bytes], made: Sequence[bytes]) -> tuple[int, int]:
    """Return the numbers of equal lines at the start of both, and at the end of the rest."""
    first = equal_until(given, made)
    return first, equal_until(reversed(given[first:]), reversed(made[first:]))


def why_invalid(line: bytes) -> str:
    """Return the error in a line that a person has written; '': none."""
    try:
        if is_directive(line):
            parse_settings(line[1:])
        elif is_job(line):
            job(line[2:])
    except ValueError as error:
        return str(error)
    return ""


class NotMerged(Exception):
    """The reason to refuse a change that a person made in a copy."""


@dataclass
class EqualLines:
    """The indexes of equal lines, which differ at most in their states."""
    given: list[int] = field(default_factory=list)      # in the original copy, and in the file
    made: list[int] = field(default_factory=list)       # in the edited copy

    def merge(self, base: Sequence[bytes], theirs: Sequence[bytes], live: Sequence[bytes]) -> list[bytes]:
        """Return the merged lines, in order.  Raises NotMerged.

        Equal lines are interchangeable, so only their states count. No other process must have changed the
        states that the person has changed, and the number of `r` must remain. base, theirs, live: see
        merge().
        """
        given = [base[index] for index in self.given]
        made = [theirs[index] for index in self.made]
        now = [live[index] for index in self.given]
        if made == given:
            return now
        if not given and (why := why_invalid(made[0])):
            raise NotMerged(f"line {self.made[0] + 1} of the copy: {why}")
        first, last = changed_part(given, made)
        part = slice(first, len(given) - last)
        wish = made[first:len(made) - last]
        more = count_running(wish) - count_running(now[part])
        if more < 0 or now[part] not in (given[part], wish):
            changed = [index for index in self.given[part] if runs(live[index]) or base[index] != live[index]]
            raise NotMerged(f"line {changed[0] + 1}: {why_kept(live[changed[0]])}")
        if more > 0:
            index = next(index for index in self.made[first:] if runs(theirs[index]))
            raise NotMerged(
                f"line {index + 1} of the copy: is r, but not running (only runners set r; . is new)"
            )
        return [*now[:first], *wish, *now[part.stop:]]


def why_kept(live: bytes) -> str:
    """Return why a person's change to this job line is refused.  live: the line now."""
    why = f"has changed since: the state is {text_of(live[:1])} now"
    if runs(live):
        why = "is r (--cancel it first)"
    return f"{why}; '{text_of(live[2:80])}' was changed or deleted"


MOVED = ("another process has moved, changed or removed lines (edit the file again, and copy your changes "
         "from the copy)")


def merge(
    base: Sequence[bytes], theirs: Sequence[bytes], live: Sequence[bytes]
) -> tuple[list[bytes], list[str]]:
    """Merge three ways; return the merged lines, and the refused changes, in which case there are no lines.

    base: the lines that the person was given.  theirs: the lines of the edited copy.  live: the lines of the
    file now.
    """
    before = len(base)
    texts = [*map(merge_key, base)]
    if texts != [*map(merge_key, live[:before])]:
        return [], [MOVED]
    first, last = changed_part(base, theirs)
    changed = range(first, len(theirs) - last)
    equals: defaultdict[bytes, EqualLines] = defaultdict(EqualLines)
    for index in range(first, before - last):
        equals[texts[index]].given.append(index)
    for index in changed:
        equals[merge_key(theirs[index])].made.append(index)
    becomes: dict[bytes, Iterator[bytes]] = {}
    refusals: list[str] = []
    for text, equal in equals.items():
        try:
            becomes[text] = iter(equal.merge(base, theirs, live))
        except NotMerged as error:
            refusals.append(str(error))
    if refusals:
        return [], refusals
    lines = [
        *live[:first],
        *(next(becomes[merge_key(theirs[index])]) for index in changed),
        *live[before - last:before],
    ]
    # lines that other processes have appended keep their offsets, if the lines above do
    end = before if texts == [*map(merge_key, lines[:before])] else len(lines)
    return [*lines[:end], *live[before:], *lines[end:]], []


def in_place(lines: Sequence[bytes], live: Sequence[bytes]) -> bool:
    """Return True if the only changes are states of lines that do not run, and appended lines."""
    if len(lines) < len(live):
        return False
    for line, old in zip(lines, live):
        if line != old and (merge_key(line) != merge_key(old) or runs(line) or runs(old)):
            return False
    return True


def changes(lines: Sequence[bytes], live: Sequence[bytes]) -> str:
    """Return a summary of the changes: '2 states set, 1 line changed, 3 lines added'."""
    before = Counter(map(merge_key, live))
    after = Counter(map(merge_key, lines))
    new = sum((after - before).values())
    gone = sum((before - after).values())
    states = sum((Counter(lines) - Counter(live)).values()) - new
    changed = min(new, gone)
    counts = (
        (states, "state", "set"),
        (changed, "line", "changed"),
        (new - changed, "line", "added"),
        (gone - changed, "line", "removed"),
    )
    parts = [f"{plural(count, word)} {verb}" for count, word, verb in counts if count]
    return ", ".join(parts) or "lines were moved"


def read_all(file: Reader, start: int = 0) -> bytes:
    """Return a file from the byte `start` to the end."""
    data = bytearray()
    while more := file.pread(BLOCK, start + len(data)):
        data += more
    return bytes(data)


def offsets(data: bytes) -> list[int]:
    """Return the offsets at which the lines of a job file begin, and at which the last one ends."""
    start = len(UTF8_MARK) if data.startswith(UTF8_MARK) else 0
    sizes = [len(line) + 1 for line in split_lines(data)]
    return list(itertools.accumulate(sizes, initial=start))


@contextlib.contextmanager
def alone(file: JobFile) -> Iterator[int]:
    """Hold all of a job file's lock file; yield the descriptor that has the locks.

    In a bucket with job locks of other processes, lock only the command mutex. If another process holds that
    mutex, wait, because it will not take long.
    """
    fd = file.lock_table.open_job_lock()
    end = time.monotonic() + MUTEX_PATIENCE
    mutexes: list[int] = []
    try:
        # Whole buckets: a process that holds a command mutex counts the job locks.  So we must hold no
        # job lock in a bucket of which we lock only the mutex.
        todo = [(0, APPEND_BYTE - 1)]
        while todo:
            first, stop = todo.pop()
            if first < stop and not lock(fd, first, stop - first):
                held = other_lock(fd, first, stop - first)
                command_mutex = (held.start if held else first) | MUTEX_OFFSET
                mutexes.append(command_mutex)
                todo += [(first, command_mutex - MUTEX_OFFSET), (command_mutex + 1, stop)]
        for command_mutex in mutexes:
            if not keep_trying(functools.partial(lock, fd, command_mutex), end - time.monotonic()):
                raise OSError(errno.EAGAIN, "another process keeps changing it")
        file.refresh()
        file.refresh_reader()
        yield fd
    finally:
        file.lock_table.close_job_lock(fd)


def apply(file: JobFile, base: bytes, theirs: bytes, quiet: bool = False) -> list[str]:
    """Merge an edited copy into the file, and report the changes.

    Returns the refused changes; then nothing was written.  Raises UsageError, OSError (ESTALE: the file was
    replaced or removed).
    """
    file.open_to_write()
    with append_lock(file), alone(file) as locks:
        fd = file.writable()
        data = read_all(file.reader)
        live = split_lines(data)
        lines, refusals = merge(split_lines(base), split_lines(theirs), live)
        if refusals:
            return refusals
        if in_place(lines, live):
            must_be_locked(file, locks)
            _write_in_place(file, fd, lines, live, offsets(data))
            must_name(file, fd)
        else:
            _replace(file, fd, locks, lines, data)
    # not while we have all the locks, because a write to a terminal can block
    if not quiet:
        file.say(changes(lines, live))
    return []


LAST_MUTEX = BUCKETS_END - 1            # the command mutex of the last bucket


def must_be_locked(file: JobFile, locks: int) -> None:
    """Raise OSError(EIO) if a network file system dropped our locks, so others can have locked a command
    mutex.

    locks: the descriptor that has the mutex of the last bucket locked.
    """
    if file.network and lost_locks(locks, [LAST_MUTEX], file.mount):
        raise OSError(errno.EIO, "the locks were lost")


def _write_in_place(
    file: JobFile, fd: int, lines: Sequence[bytes], live: Sequence[bytes], line_offsets: Sequence[int]
) -> None:
    """Append the new lines, then write the changed states.  Raises UsageError, OSError."""
    added = b"".join(line + b"\n" for line in lines[len(live):])
    if added:
        with open_to_append(file.real) as end:
            must_name(file, end)
            lock_all(end)
            append_locked(end, file.real, file.mount, [added])
    for line, old, offset in zip(lines, live, line_offsets):
        if line != old:
            os.pwrite(fd, line[:1], offset)
    os.fsync(fd)


def _replace(file: JobFile, fd: int, locks: int, lines: Sequence[bytes], data: bytes) -> None:
    """Replace the file by a new one with these lines.

    fd: the old file.  locks: the descriptor that has every command mutex locked.  data: the contents of the
    old file.  Raises UsageError, OSError.
    """
    info = os.fstat(fd)
    target = file.real
    text = b"".join(line + b"\n" for line in lines)
    bom = UTF8_MARK if data.startswith(UTF8_MARK) else b""
    folder, name = os.path.split(target)
    new, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        give_rights(new, info)
        if shuts_out(info, os.fstat(new)):
            raise UsageError(
                f"{file.path}: other users could not write to a new file of yours (change only states, and "
                "add lines at the end)"
            )
        write_all(new, bom + text)
        os.fsync(new)
        # losing the network during the rename itself can put old states back, and nothing worse
        must_be_locked(file, locks)
        os.rename(temporary, target)
        sync_names(folder)                      # otherwise a power loss can bring the old file back
        tail = read_all(file.reader, len(data))
        if tail.strip():
            fcntl.fcntl(new, fcntl.F_SETFL, os.O_APPEND)        # other processes can append to it already
            append_locked(new, target, file.mount, [tail if tail.endswith(b"\n") else tail + b"\n"])
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        os.close(new)


def shuts_out(old: os.stat_result, new: os.stat_result) -> bool:
    """Return True if a user with write access to the old file has none to the new one, which has the same
    mode.
    """
    if old.st_mode & 0o006 == 0o006:
        return False
    if old.st_gid != new.st_gid and old.st_mode & 0o060:
        return True
    return old.st_uid != new.st_uid and old.st_mode & 0o060 != 0o060


def sync_names(folder: str) -> None:
    """Sync a directory to disk, so that new names survive a power loss."""
    fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def original(file: JobFile) -> bytes:
    """Return the contents of the file now, for a person to edit."""
    file.open_to_write()
    return read_all(file.reader)


def edit(file: JobFile, quiet: bool) -> int:
    """Open a copy in the user's editor, and merge the changes; return the exit status.  Raises UsageError,
    OSError.
    """
    base = original(file)
    copy = os.path.join(tempfile.mkdtemp(prefix="runset4-"), os.path.basename(file.path))
    with open(copy, "xb") as draft:
        draft.write(base)
    while True:
        began = time.monotonic()
        failure = run_editor(copy)
        early = not failure and time.monotonic() - began < MIN_EDITOR_SECONDS
        theirs = read_copy(copy)
        if theirs is None:
            file.say(failure or "the copy was removed")
            file.say("nothing was written")
            return 1
        if theirs == base:
            return end_unchanged(file, copy, failure, early)
        failure = failure or why_invalid_copy(base, theirs)
        refusals = [failure]
        if not failure:
            try:
                refusals = apply(file, base, theirs, quiet)
            except (UsageError, OSError):
                file.say(f"the copy is kept: {copy}")
                raise
        if not refusals:
            discard(copy)
            return 0
        say_refused(file, copy, refusals)
        if not ask_again():
            return 1


def end_unchanged(file: JobFile, copy: str, failure: str, early: bool) -> int:
    """Report that the person has changed nothing; return the exit status.

    failure: how the editor failed, or ''.  early: the editor exited too soon for a person to see the copy.
    """
    if early:
        file.say(
            "nothing was changed (the editor exited at once: if it opens another window, make it wait, for "
            f"example EDITOR='code --wait'; the copy is kept: {copy})"
        )
        return 1
    discard(copy)
    file.say(failure or "nothing was changed")
    return 1 if failure else 0


def say_refused(file: JobFile, copy: str, refusals: Sequence[str]) -> None:
    """Report the reasons for writing nothing."""
    for why in refusals[:MAX_REASONS]:
        file.say(why)
    more = len(refusals) - MAX_REASONS
    rest = f" ({more} more lines were refused)" if more > 0 else ""
    file.say(f"nothing was written; the copy is kept: {copy}{rest}")


def discard(copy: str) -> None:
    """Remove the directory of a copy, and ignore errors, because the edit is complete."""
    shutil.rmtree(os.path.dirname(copy), ignore_errors=True)


def run_editor(copy: str) -> str:
    """Run the user's editor on a file; return how it failed, or ''."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    old_handler = signal.signal(signal.SIGINT, lambda *_: None)     # Ctrl-C is for the editor
    try:
        code = subprocess.run([*shlex.split(editor), copy]).returncode
    except (OSError, ValueError) as error:
        why = error_text(error) if isinstance(error, OSError) else error
        return f"cannot start the editor '{printable(editor)}': {why} (set VISUAL or EDITOR)"
    finally:
        signal.signal(signal.SIGINT, old_handler)
    if code < 0:
        return f"the editor '{printable(editor)}' was killed by signal {-code}"
    if code:
        return f"the editor '{printable(editor)}' failed: exit {code}"
    return ""


def read_copy(copy: str) -> bytes | None:
    """Return the contents of the copy; None: it was removed."""
    try:
        with open(copy, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def why_invalid_copy(base: bytes, theirs: bytes) -> str:
    """Return why a copy is not a job file any more; '': it is one."""
    if not theirs.strip():
        return "the copy is empty"
    if b"\0" in theirs and b"\0" not in base:
        return "the copy contains NULs (save it as UTF-8)"
    return ""


def ask_again() -> bool:
    """Return True if the person wants to edit the copy once more; False if no terminal is open."""
    if not (os.isatty(0) and os.isatty(2)):
        return False
    try:
        return input("What now? (e)dit again, e(x)it: ").strip().lower().startswith("e")
    except EOFError:
        return False


# ======== Lists =============================================================================================
#
# Each line of a list is a command, or holds the values for one.  Values replace the placeholders of a
# template, quoted for the shell.  Lines are processed one by one, so a list can be of any length.

PLACEHOLDER = re.compile(rb"\{(?:(\d*)(|\.|/|//|/\.)|#)\}")
SWEEPS = (":::", ":::+", "::::", "::::+")       # the last two are refused: GNU parallel reads files there


def without_extension(path: bytes) -> bytes:
    """Return a path without the extension, as GNU parallel does: 'a/b.c' -> 'a/b', '.b' -> ''."""
    stem, dot, extension = path.rpartition(b".")
    return stem if dot and b"/" not in extension else path


def directory(path: bytes) -> bytes:
    """Return the directory of a path, as dirname(1) does: 'a/b' -> 'a', 'b' -> '.', 'a/b/' -> 'a', '/' ->
    '/'.
    """
    return os.path.dirname(path.rstrip(b"/") or path) or b"."


def with_place(text: bytes) -> bytes:
    """Return a template with a placeholder for a value: if it has none, add one at the end."""
    for place in PLACEHOLDER.finditer(text):
        if not is_number(place):
            return text
    return text + b" {}"


def is_number(place: re.Match[bytes]) -> bool:
    """Return True if a placeholder is {#}."""
    return place[2] is None


def in_columns(columns: Iterable[int], place: re.Match[bytes]) -> bytes:
    """Return one placeholder per column for a placeholder of the whole line; others are returned unchanged.
    """
    if place[1] != b"":                     # the placeholder is for one column, or is {#}
        return place[0]
    return b" ".join(b"{%d%b}" % (column, place[2]) for column in columns)


class Template:
    """A command with placeholders, as in GNU parallel."""
    PARTS: dict[bytes | None, Callable[[bytes], bytes]] = {
        b"": lambda value: value,
        b".": without_extension,
        b"/": os.path.basename,
        b"//": directory,
        b"/.": lambda value: without_extension(os.path.basename(value)),
    }

    def __init__(self, text: bytes, count: int = 0) -> None:
        """text: the command, with {1} {1.} {1/} {1//} {1/.} for parts of a column, {#} for the number that
        fill() gets.

        {} {.} ... stand for the line, or, if count is not 0, for the columns 1 to count.
        """
        text = with_place(text)
        if count:
            columns = range(1, count + 1)
            text = PLACEHOLDER.sub(functools.partial(in_columns, columns), text)
        # for each placeholder the column (0: the line), and the function for the part (None: it is {#})
        self.places: list[tuple[int, Callable[[bytes], bytes] | None]] = []
        for place in PLACEHOLDER.finditer(text):
            column = int(place[1] or 0)
            self.places.append((column, self.PARTS.get(place[2])))
        self.width = max(column for column, _ in self.places)
        self.format = PLACEHOLDER.sub(self._conversion, text.replace(b"%", b"%%"))

    @staticmethod
    def _conversion(place: re.Match[bytes]) -> bytes:
        """Return the %-conversion for a placeholder in `format`."""
        return b"%d" if is_number(place) else b"%b"

    def fill(self, number: int, line: bytes, columns: Sequence[bytes] = ()) -> bytes:
        """Return the command for a line and the columns.  Raises ValueError if there are too few columns."""
        if len(columns) < self.width:
            raise ValueError(f"no value for {{{self.width}}} ({plural(len(columns), 'column')})")
        values: list[bytes | int] = []
        for column, part in self.places:
            if part:
                value = columns[column - 1] if column else line
                values.append(quote(part(value)))
            else:
                values.append(number)
        return self.format % tuple(values)


# ---- placeholders within quotes ----------------------------------------------------------------------------
#
# A value is quoted when it is inserted.  Inside quotes of the template, the quotes of the value would close
# them, and the shell would run the contents of the value.  So a placeholder is allowed only if no quotes are
# open before it: only characters that quote nothing, and closed quotes without a substitution, because
# quoting starts again inside one.  That refuses more than necessary; in return we need no shell grammar.

UNQUOTED = re.compile(rb"""(?:
    [^'"`\\$(]
    | \((?!\()                              # (( begins arithmetic, which evaluates quoted text
    | \$(?=[^'"{[])                         # $' and $" quote, and a value begins with a quote
    | \$\{[^{}'"`\\$]*\}
    | \\.
    | '[^']*'
    | "(?: [^"`\\$] | \\. | \$(?![({[]) | \$\{[^{}'"`\\$]*\} )*"
)*""", re.VERBOSE)


# by the first characters: constructs in or after which a value is not allowed, and the remedy
UNSAFE = {
    b"`": ("`...`", "write $(...) instead"),
    b"((": ("((...))", "set a variable first: n={}; echo $((n))"),
    b"$[": ("$[...]", "set a variable first: n={}; echo $((n))"),
    b"${": ("${...}", "omit the $, or put the value before that"),
    b"\\": ("\\", "remove the \\"),
    b"$'": ("$'...'", "omit the $"),
    b'$"': ('$"..."', "omit the $"),
    b'"': ('"$(...)"', "put the value before that, or call a script"),
}


def check_template(text: bytes) -> None:
    """Raise argparse.ArgumentTypeError for a template with which the shell could run the contents of a value.
    """
    for place in PLACEHOLDER.finditer(text):
        if not is_number(place) and not UNQUOTED.fullmatch(text, 0, place.start()):
            raise argparse.ArgumentTypeError(f"{text_of(place[0])} {why_unsafe(text, place.start())}")


def why_unsafe(text: bytes, end: int) -> str:
    """Return why a value is not allowed at this offset of a template, and the remedy."""
    plain = UNQUOTED.match(text, 0, end)
    begin = plain.end() if plain else 0
    quote = text[begin:end].lstrip(b"$")[:1]
    if quote in (b"'", b'"') and text.count(quote, begin, end) % 2:
        return "is quoted already (remove your quotes)"
    # UNQUOTED stops only at one of these
    construct, remedy = next(known for start, known in UNSAFE.items() if text.startswith(start, begin))
    return f"is in or after {construct}, where a value cannot be quoted ({remedy})"


def split_columns(line: bytes, colsep: re.Pattern[bytes] | None) -> list[bytes]:
    """Return the columns of a line of a list.  colsep: the separator; None: blanks."""
    if not colsep:
        return line.split()
    return [column.strip() for column in colsep.split(line)]


def list_jobs(path: str, text: bytes | None, colsep: re.Pattern[bytes] | None = None) -> Iterator[bytes]:
    """Yield the lines for a list of commands, or of values for a template.

    Each line becomes a job. Directives are copied; blank lines and comments are skipped.  text: the template;
    None: no template.  Raises UsageError.
    """
    source = Source(path)
    template = Template(text) if text else None
    number = 0
    directives = 0
    for line in source:
        try:
            if is_directive(line):
                directives += 1
                yield directive(line)
                continue
            if line.lstrip()[:1] in b"#":       # or b""
                continue
            number += 1
            if template:
                columns = split_columns(line, colsep) if template.width else ()
                yield job(template.fill(number, line, columns))
            else:
                yield line_to_add(line)
        except ValueError as error:
            raise source.problem(error) from None
    if not number and not directives:
        raise UsageError(f"{source.name}: no jobs (nothing to add)")


# ---- tables ------------------------------------------------------------------------------------------------
#
# A table is read by the rules of RFC 4180.  The first row names the columns.  In the template each name
# becomes the number of the column; after that a table is like any list.

NAMED_PLACE = re.compile(rb"(\$?)\{([^{}]+)\}")
# text in braces that can only be a placeholder for a column
NAME = re.compile(rb"[A-Za-z_\x80-\xff][\w\x80-\xff-]*(?:\.|//?|/\.)?")
PARTS = (b"", b"//", b"/.", b"/", b".")                     # suffixes of a name; '/.' before '.'


def with_numbers(text: bytes, names: Sequence[bytes]) -> bytes:
    """Return a template with column numbers instead of column names.  Raises ValueError."""
    def number(place: re.Match[bytes]) -> bytes:
        dollar, content = place.groups()
        for part in PARTS:
            name = content[:len(content) - len(part)]
            if name and content.endswith(part) and name in names:
                return b"%b{%d%b}" % (dollar, names.index(name) + 1, part)
        if NAME.fullmatch(content) and not dollar:          # ${HOME} is for the shell
            known = ", ".join(text_of(name) for name in names if name)
            raise ValueError(
                f"the template needs a column {text_of(content)} (the columns are {known})"
            )
        return place[0]
    return NAMED_PLACE.sub(number, text)


def table_template(text: bytes, header: Sequence[bytes]) -> Template:
    """Return a template for the rows of a table.  header: the first row, with the names of the columns.
    Raises ValueError.
    """
    names = [name.strip() for name in header]
    for name, count in Counter(names).items():
        if name and count > 1:
            raise ValueError(f"two columns are named {text_of(name)}")
    text = with_numbers(text, names)
    try:
        check_template(with_place(text))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--template: {error}") from None
    return Template(text, len(names))


def table_rows(source: Source) -> Iterator[bytes | list[bytes]]:
    """Yield the rows of a table, as lists; directives between them, as bytes.  Raises UsageError.

    The csv module reads only text: Latin-1 makes one character of any byte, and the same byte of that
    character.
    """
    lines = iter(source)
    more = (line.decode("latin-1") + "\n" for line in lines)
    for line in lines:
        if is_directive(line):
            yield line
        elif line.strip():
            try:        # csv reads more lines if a quoted value goes on there
                row = next(csv.reader(itertools.chain([line.decode("latin-1") + "\n"], more), strict=True))
            except csv.Error as error:
                raise source.problem(error) from None
            yield [value.encode("latin-1") for value in row]


def table_jobs(path: str, text: bytes) -> Iterator[bytes]:
    """Yield the lines for a table: each row below the first becomes a job; directives are copied.

    text: the template.  Raises UsageError.
    """
    source = Source(path)
    template = None
    width = 0
    number = 0
    for record in table_rows(source):
        try:
            if isinstance(record, bytes):
                yield directive(record)
            elif template is None:
                template = table_template(text, record)
                width = len(record)
            elif len(record) != width:
                raise ValueError(f"{plural(len(record), 'value')}, but the first row names {width} columns")
            else:
                number += 1
                yield job(template.fill(number, b"", record))
        except ValueError as error:
            raise source.problem(error) from None
    if not number:
        raise UsageError(f"{source.name}: no rows below the names of the columns (nothing to add)")


def sweep(words: Sequence[str]) -> list[list[tuple[bytes, ...]]]:
    """Return for each `:::` the values, each with the values linked to it by `:::+`.  Raises UsageError."""
    sources: list[list[list[bytes]]] = []
    for word in words:
        if word in SWEEPS[2:]:
            raise UsageError(
                f"{word} is not supported (for values from a file: --add-list FILE --template T)"
            )
        if word == ":::" or (word == ":::+" and not sources):
            sources.append([[]])
        elif word == ":::+":
            sources[-1].append([])
        else:
            sources[-1][-1].append(os.fsencode(word))
    if not all(map(all, sources)):
        raise UsageError("give a value after each ::: and :::+ (see --help)")
    return [list(zip(*linked)) for linked in sources]


def sweep_jobs(text: bytes, sources: Sequence[Sequence[tuple[bytes, ...]]]) -> Iterator[bytes]:
    """Yield a job for each combination of values for a template.  The last values change fastest.

    Raises UsageError.
    """
    count = sum(len(linked[0]) for linked in sources)
    template = Template(text, count)
    for number, combination in enumerate(itertools.product(*sources), 1):
        values = [*itertools.chain.from_iterable(combination)]
        try:
            yield job(template.fill(number, b"", values))
        except ValueError as error:
            raise UsageError(f"{error}; nothing was added") from None


# ======== Job files =========================================================================================
#
# fjd has one file per job.  The file names an executable, which gets the path of the file as argument.  So
# the job becomes a line with the executable and the path.  A file of a directory is added only if no line
# ends with this path.  We search for such lines under the append lock, so two calls that add the same
# directory add each file once.

SECTIONS = ("control", "fjd")
MAX_JOB_FILE = 1 << 20              # bytes of a job file of fjd; a larger file is something else


def read_job_file(path: str) -> bytes:
    """Return the line of the job that a job file of fjd (INI) describes: the executable with the path of the
    file.

    Raises UsageError.
    """
    source = Source("./-" if path == "-" else path)
    config = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        config.read_string(ini_text(source))
    except configparser.Error as error:
        source.number = getattr(error, "lineno", 0) or error.errors[0][0]
        if isinstance(error, configparser.MissingSectionHeaderError):
            raise source.problem("before the first [section]") from None
        raise source.problem("neither 'NAME = VALUE' nor a comment") from None
    sections = [section for section in SECTIONS if config.has_option(section, "executable")]
    if not sections:
        raise UsageError(f"{source.name}: missing executable= in [{'] or ['.join(SECTIONS)}]")
    executable = config[sections[0]]["executable"]
    if not executable:
        raise UsageError(f"{source.name}: executable= is empty")
    try:
        return job(b"%b %b" % (executable.encode("utf-8", "surrogateescape"), quote(absolute(path))))
    except ValueError as error:
        raise UsageError(f"{source.name}: {error}") from None


def ini_text(source: Source) -> str:
    """Return the text of a job file of fjd.  Raises UsageError."""
    text = bytearray()
    for line in source:
        text += line + b"\n"
        if len(text) > MAX_JOB_FILE:
            raise source.problem("too large for a job file (1 MiB)")
    return text.decode("utf-8", "surrogateescape")


def absolute(path: str) -> bytes:
    return os.path.abspath(os.fsencode(path))


def is_job_file(entry: os.DirEntry[str]) -> bool:
    """Return True if an entry of a directory is a job: a file, neither hidden nor an editor's backup
    (`NAME~`).
    """
    try:
        return not entry.name.startswith(".") and not entry.name.endswith("~") and entry.is_file()
    except OSError:                 # a link that leads nowhere
        return False


def job_files(folder: str) -> list[str]:
    """Return the paths of the job files in a directory, sorted by name.  Raises UsageError."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if is_job_file(entry))
    except OSError as error:
        raise UsageError(f"{text_of(os.fsencode(folder))}: {error_text(error)}") from None
    return [os.path.join(folder, name) for name in names]


def find_added(file: Reader, paths: Iterable[bytes]) -> set[bytes]:
    """Return the paths (absolute) with which the command of some job ends already, in any state.

    One regular expression searches the file for words that begin with the directory of a path.
    """
    words = {quote(path): path for path in paths}
    if not words:
        return set()
    folders: set[bytes] = set()
    for path in words.values():
        folder = os.path.dirname(path).rstrip(b"/")
        folders.add(folder.replace(b"'", b"'\"'\"'"))         # as quote() has it
    begins = b"|".join(map(re.escape, folders))
    pattern = re.compile(rb"^[^#/ \t\n][ \t].*[ \t]('?(?:%b)/[^/\n]*?)\r?$" % begins, re.MULTILINE)
    found: set[bytes] = set()
    for lines in whole_lines(file, first_line(file)):
        found |= words.keys() & set(pattern.findall(lines))
    return {words[word] for word in found}


def add_jobs(file: JobFile, names: Sequence[str]) -> int:
    """Append the jobs of fjd's files, and of directories the files that were not added before.

    Returns the number of added jobs.  Raises UsageError, OSError.
    """
    jobs: dict[bytes, bytes] = {}
    once: set[bytes] = set()
    for name in names:
        if os.path.isdir(name):
            found = {absolute(path): read_job_file(path) for path in job_files(name)}
            once |= found.keys() - jobs.keys()
        else:
            found = {absolute(name): read_job_file(name)}
            once -= found.keys()
        jobs.update(found)
    if not jobs:
        raise UsageError(f"{text_of(os.fsencode(names[0]))}: no job files (nothing to add)")
    with appending(file) as fd:
        with Reader.of(fd, file.network) as now:
            added = find_added(now, once)
        lines = [line for name, line in jobs.items() if name not in added]
        if lines:
            append_locked(fd, file.real, file.mount, [b"".join(lines)])
    return len(lines)


# ======== Tests =============================================================================================
#
# This is the configuration of NetJobs.  Lines are stripped; empty lines and comments (#) are ignored.
#
#     LABEL:                        begins a test
#     -generaltimeout: T            for all commands: 330s, 5m, 2h or none [none]
#     -minhosts: N                  the number of targets that must not time out, or all [all]
#     TARGET: "COMMAND"             any number of commands, of the same target in order
#     -timeout: T                   for the command above
#     end                           ends the test
#
# A test becomes a group below a barrier.  The commands become jobs, under `#RUN` lines that name the group,
# the target as host, and the timeout.  After an error, a message names the line, and nothing is added.

LABEL = re.compile(rb"([^:]+):")
FLAG = re.compile(rb"-(generaltimeout|minhosts|timeout)\s*:\s*(.*)")
# the target; the command, without a pair of quotes around it
COMMAND = re.compile(rb'([\w.][\w.-]*)\s*:\s*(?:"(.*)"|(.*))')
TIMEOUT = re.compile(rb"(\d+)\s*([hms])")


@dataclass
class TestCommand:
    """A command of a test."""
    line: bytes                     # of the job
    timeout: bytes                  # as in a directive; b"": not given


@dataclass
class Test:
    """A test: commands that several hosts start at the same moment."""
    label: bytes
    timeout: bytes = b""
    min_hosts: bytes = b"all"
    targets: dict[bytes, list[TestCommand]] = field(default_factory=dict)
    last: TestCommand | None = None

    def read(self, line: bytes) -> None:
        """Parse a line of the test.  Raises ValueError with the reason if it is invalid."""
        flag = FLAG.fullmatch(line)
        command = COMMAND.fullmatch(line)
        if flag:
            self._read_flag(flag[1].decode(), flag[2])
        elif command:
            target, quoted, plain = command.groups()
            self._read_command(target, plain if quoted is None else quoted)
        else:
            raise ValueError(
                f"unknown line '{text_of(line[:80])}' (expected TARGET: COMMAND, -timeout: T or end)"
            )

    def _read_command(self, target: bytes, text: bytes) -> None:
        if not text.strip():
            raise ValueError(f"'{text_of(target)}' has no command (or the test above has no end)")
        self.last = TestCommand(job(text), self.timeout)
        self.targets.setdefault(target, []).append(self.last)

    def _read_flag(self, name: str, value: bytes) -> None:
        if name == "timeout":
            if not self.last:
                raise ValueError("-timeout before the first target")
            self.last.timeout = directive_timeout(value)
        elif self.last:
            raise ValueError(f"-{name} after a target")
        elif name == "generaltimeout":
            self.timeout = directive_timeout(value)
        else:
            self.min_hosts = value if value == b"all" else checked(integer_between(0), value)

    def lines(self) -> Iterator[bytes]:
        """Yield the directives and jobs of the test."""
        yield b"#RUN barrier\n# test %b\n" % self.label
        group = re.sub(rb"[\s,=]+", b"_", self.label)
        settings = b""
        for target, commands in self.targets.items():
            for command in commands:
                timeout = b" timeout=%b" % command.timeout if command.timeout else b""
                required = b"#RUN together=%b host=%b%b min-hosts=%b\n" % (
                    group,
                    target,
                    timeout,
                    self.min_hosts,
                )
                yield (b"" if required == settings else required) + command.line
                settings = required


def directive_timeout(text: bytes) -> bytes:
    """Return a timeout in the form of a directive: '5 m' -> '5m', '0s' -> 'none'.  Raises ValueError."""
    match = TIMEOUT.fullmatch(text)
    if not match and text != b"none":
        raise ValueError(f"not a timeout: '{text_of(text[:80])}' (such as 330s, 5m, 2h or none)")
    if not match or not match[1].strip(b"0"):
        return b"none"
    return checked(duration, match[1] + match[2])


def checked(kind: Callable[[str], object], text: bytes) -> bytes:
    """Return a value if this argparse type accepts it.  Raises ValueError if not."""
    try:
        kind(os.fsdecode(text))
        return text
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None


def read_tests(path: str) -> Iterator[Test]:
    """Yield the tests of a configuration.  Raises UsageError."""
    source = Source(path)
    test: Test | None = None
    began = 0                               # the line number of the label
    count = 0
    for line in map(bytes.strip, source):
        if line[:1] in b"#":                # or b""
            continue
        if line == b"end" and test and test.targets:
            yield test
            test = None
            count += 1
        elif line == b"end" and test:
            raise source.problem(f"the test '{text_of(test.label)}' has no targets")
        elif test:
            try:
                test.read(line)
            except ValueError as error:
                raise source.problem(error) from None
        else:
            match = LABEL.fullmatch(line)
            if not match or not match[1].strip():
                raise source.problem(f"not the label of a test: '{text_of(line[:80])}' (such as 'LABEL:')")
            test = Test(match[1].strip())
            began = source.number
    if test:
        source.number = began
        raise source.problem(f"the test '{text_of(test.label)}' has no end")
    if not count:
        raise UsageError(f"{source.name}: no tests (nothing to add)")


def test_lines(path: str) -> Iterator[bytes]:
    """Yield directives and jobs for the tests of a configuration.  Raises UsageError."""
    for test in read_tests(path):
        yield from test.lines()
    yield b"#RUN\n"                         # the settings of the last test do not apply to jobs added later


# ======== The end of following ==============================================================================
#
# `#RUN end` is a line of the job file like any other: it is appended under the append lock.  To undo that, we
# write `#off` over the first four bytes, while holding the mutex of the line's text.


def is_end(line: Line) -> bool:
    """Return True if a line is a valid `#RUN end`."""
    with contextlib.suppress(ValueError):
        return parse_settings(line.text).kind == "end"
    return False


def end_lines(file: JobFile, fd: int) -> list[Line]:
    """Return the lines `#RUN end` of an open job file."""
    with Reader.of(fd, file.network) as now:
        lines = Scan(now, first_line(now), b"", directives=True)
        return [line for line in lines if is_end(line)]


def add_end(file: JobFile) -> str:
    """Append `#RUN end`, unless the file has one; return a message.  Raises UsageError, OSError."""
    with appending(file) as fd:
        if end_lines(file, fd):
            return "has a #RUN end already"
        append_locked(fd, file.real, file.mount, [b"#RUN end\n"])
    return "#RUN end added"


def say_below_end(file: JobFile) -> None:
    """Report new jobs below a `#RUN end`.

    The caller has released the append lock, so no process must wait.  Raises OSError (ESTALE: an editor
    removed the file).
    """
    try:
        end = next(filter(is_end, file.lines(b"", directives=True)), None)
    except FileNotFoundError:
        raise FileChangedError from None
    if end and Scan(file.reader, end.offset, NEW).next():
        file.say(f"line {end.number} is a #RUN end; --follow runners do not run the jobs below it "
                 "(--reopen, then --end)")


def reopen(file: JobFile, change_counts: ChangeCounts) -> None:
    """Turn each line `#RUN end` into a comment, in place.  Raises UsageError, OSError."""
    with appending(file, make=False):
        file.open_to_write()
        for line in end_lines(file, file.writable()):
            change_counts.count(file, line, set_state(file, line, b"#off", force=False))


# ======== Command line ======================================================================================
#
# A call does one thing: it changes states, edits, lists, appends, or undoes ends; check_usage() refuses other
# options.  Lines are selected one by one, while the file is read.  Each refused line is reported, and then
# the exit status is 1; it is 2 if nothing was started.


def state(text: str) -> bytes:
    """Parse a state, a word or a byte, for argparse."""
    data = WORDS.get(text) or os.fsencode(text)
    if len(data) != 1 or data in b"#/" or not b"!" <= data <= b"~":
        raise argparse.ArgumentTypeError(
            f"not a state: '{text_of(data)}' ({', '.join(WORDS)}; or one printable character, not # or /)")
    return data


def settable_state(text: str) -> bytes:
    """Parse a state that a user can set, for argparse."""
    new_state = state(text)
    if new_state == RUNNING:
        raise argparse.ArgumentTypeError("only runners set r (. is new)")
    return new_state


def states(text: str) -> bytes:
    """Parse states, words or bytes with commas between them, for argparse."""
    found = b""
    for word in text.split(","):
        found += os.fsencode(word) if LETTERS.fullmatch(word) else state(word)
    return found


def command_template(text: str) -> bytes:
    """Parse a command with placeholders, such as 'simulate {1}', for argparse.

    Refuse a directive, column 0, and a placeholder within quotes: raise argparse.ArgumentTypeError.
    """
    template = os.fsencode(text)
    try:
        line = line_to_add(template)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if is_directive(line) or re.search(rb"\{0+[./]*\}", template):
        raise argparse.ArgumentTypeError(f"not a command: '{printable(text)}' (columns begin with {{1}})")
    check_template(with_place(template))
    return template


def separator(text: str) -> re.Pattern[bytes]:
    """Parse a regular expression that does not match an empty text, for argparse."""
    with contextlib.suppress(re.error):
        pattern = re.compile(os.fsencode(text))
        if not pattern.search(b""):
            return pattern
    raise argparse.ArgumentTypeError(
        f"not a regular expression for the separator of columns: '{printable(text)}' "
        r"(such as ',', '\t' or '\|')"
    )


ADDING = ("add", "add_list", "add_jobs", "add_tests", "end")
CHANGING = ("set", "cancel")
NOTHING = "no matching jobs"
EXAMPLES = f"""\
Run failed jobs again, cancel one, edit while jobs run, add, hold:
    {PROG} --set=new --state=failed,error runs.txt
    {PROG} --cancel runs.txt 17
    {PROG} --edit runs.txt
    {PROG} runs.txt --add 'simulate --seed 7' 'simulate --seed 8'
    {PROG} runs.txt --add --template 'simulate {{1}} {{2}}' ::: 1 2 3 ::: a b
    {PROG} --set=held --state=new runs.txt 5-9"""


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        PROG,
        purpose="Write a job file, also while jobs run: set states, cancel, edit, list, add.",
        usage="[options] FILE [LINE|FROM-TO ...]",
        examples=EXAMPLES,
        notes={},
        statuses={
            "0": "success",
            "1": "no job was selected, some were refused, or the file was replaced",
            "2": "bad usage or input; nothing was added",
            "130, 143": "INT (Ctrl-C), TERM",
        },
    )
    add = parser.add_argument_group("edit, list or change jobs").add_argument
    add(
        "--edit",
        action="store_true",
        help="edit a copy in $VISUAL, $EDITOR or vi, merge the changes",
    )
    add("-l", "--list", action="store_true", help="print LINE STATE COMMAND [of all]")
    add(
        "-s",
        "--set",
        type=settable_state,
        metavar="STATE",
        help="set the state: new (.), held (x), done (d), ...",
    )
    add(
        "--cancel",
        action="store_true",
        help="set x, kill running jobs on any host, wait for them",
    )
    add(
        "--force",
        action="store_true",
        help="also --set running jobs: a living runner kills them, a dead host "
        "keeps them locked (see the message)",
    )
    add = parser.add_argument_group("select jobs (all conditions must hold)").add_argument
    add("file", metavar="FILE", nargs="?", type=job_file_path, help="the job file")
    add("lines", nargs="*", type=line_ranges, metavar="LINE", help="line numbers, or ranges: 3 5-9, or 3,5-9")
    add("-a", "--all", action="store_true", help="all jobs in the states . r d ! e x (with --list: in any)")
    add("--state", type=states, action="append", metavar="STATES",
        help="jobs in these states, for example failed,error or '!e'")
    add("--match", metavar="TEXT", help="... with this command, or shell pattern for all of it")
    add = parser.add_argument_group(
        "append lines (all or none; FILE is created if it does not exist)"
    ).add_argument
    add(
        "--add",
        nargs="*",
        metavar="CMD",
        help="jobs; FILE comes first.  --add --template T ::: A B ::: 1 2: a job for each combination "
        "of {1} and {2} (:::+: linked)",
    )
    add(
        "--add-list", metavar="LIST", help="one job or #RUN directive per line of LIST (-: stdin)"
    )
    add("--template", type=command_template, metavar="T",
        help="... the command: {} is the line, quoted for the shell, {.} without extension, {/} base name, "
             "{//} directory, {/.} base name without extension, {1} {2/.} of columns, {#} the line's number")
    add("--csv", action="store_true", help="... LIST is a table; row 1 names columns {NAME}")
    add("--colsep", type=separator, metavar="REGEX", help="... the separator of columns [blanks]")
    add(
        "--add-jobs",
        nargs="+",
        metavar="JOB",
        help="one job per job file of fjd (INI, [control] or [fjd], executable=), or per such file in a "
        "directory, once",
    )
    add("--add-tests", metavar="CONFIG", help="the tests of a NetJobs configuration, for the server")
    add(
        "--end",
        action="store_true",
        help="#RUN end: idle runners exit when no job above remains",
    )
    add("--reopen", action="store_true", help="undo each #RUN end (it becomes #off end, a comment)")
    add = parser.add_argument_group("file system and output").add_argument
    add("--single-host", action="store_true", help="no other host uses the file: accept any file system")
    add("-q", "--quiet", action="store_true", help="do not report the changes")
    add_general(parser)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options; `action` is the one thing to do, `selection` the conditions for jobs.  Raises
    UsageError.
    """
    parser = make_parser()
    end = next((number for number, word in enumerate(argv) if word in SWEEPS), len(argv))
    options: argparse.Namespace = parser.parse_intermixed_args(argv[:end])
    options.sweep = sweep(argv[end:])
    numbers = [*itertools.chain.from_iterable(options.lines)]
    pattern = None if options.match is None else os.fsencode(options.match)
    options.selection = Selection(numbers, b"".join(options.state or ()), pattern)
    if options.file is None:
        parser.error("missing FILE; it comes before options that take several values")
    check_usage(parser, options)
    return options


def check_usage(parser: Parser, options: argparse.Namespace) -> None:
    """Refuse options that exclude each other, as far as argparse does not.  Raises UsageError."""
    actions = [name for name in ("list", "edit", "reopen", *CHANGING, *ADDING)
               if getattr(options, name) not in (None, False)]
    if len(actions) != 1:
        parser.error("give exactly one of --set, --list, --cancel, --edit, --add, --add-list, --add-jobs, "
                     "--add-tests, --end, --reopen")
    action = actions[0]
    name = f"--{action.replace('_', '-')}"
    selects = options.selection.is_given or options.all
    if action in CHANGING and not selects:
        parser.error(f"{name} requires lines, --state, --match or --all")
    if action in (*ADDING, "edit", "reopen") and selects:
        parser.error(f"{name} takes no selection of lines")
    if options.force and action != "set":
        parser.error("--force requires --set")
    check_adding(parser, options, action)
    options.action = action


def check_adding(parser: Parser, options: argparse.Namespace, action: str) -> None:
    """Refuse options for appended lines that exclude each other.  Raises UsageError."""
    template = options.template
    commands = options.add
    sweep = options.sweep
    if sweep and (action != "add" or commands or not template):
        parser.error("::: requires --add --template T before it")
    if action == "add" and not (commands or sweep):
        parser.error("--add requires a command, or --template T ::: VALUE ...")
    if template and not (sweep or action == "add_list"):
        parser.error("--template requires --add-list, or --add and :::")
    fills_list = template and action == "add_list"
    columns = [f"--{name}" for name in ("colsep", "csv") if getattr(options, name)]
    if columns and not fills_list:
        parser.error(f"{columns[0]} requires --add-list with --template")
    if len(columns) > 1:
        parser.error("--csv and --colsep exclude each other")


def add_lines(options: argparse.Namespace, file: JobFile) -> str:
    """Append the requested lines; return a message.  Raises UsageError, OSError."""
    if options.end:
        return add_end(file)
    if options.add_jobs:
        return str(Added(add_jobs(file, options.add_jobs), 0))
    if options.add_tests is not None:
        return str(append_lines(file, test_lines(options.add_tests))._replace(directives=0))
    return str(append_lines(file, asked_lines(options)))


def asked_lines(options: argparse.Namespace) -> Iterator[bytes]:
    """Return the lines for --add or --add-list.  Raises UsageError."""
    template = options.template
    sources = options.sweep
    path = options.add_list
    if sources:
        return sweep_jobs(template, sources)
    if path is None:
        return lines_to_add(options.add)
    if options.csv:
        return table_jobs(path, template)
    return list_jobs(path, template, options.colsep)


def still_alive(lines: Sequence[int], state: bytes) -> str:
    """Return a message about running jobs over whose `r` this state was forced."""
    effect = "writes r over it again" if state == NEW else "kills the job now"
    return (
        f"some jobs are still running ({name_lines(lines)}): a living runner {effect}; a dead host keeps the "
        "commands locked, and --add ' COMMAND', with a blank in front, runs one elsewhere (twice at once, if "
        "that host is alive)"
    )


def change_states(file: JobFile, options: argparse.Namespace) -> int:
    """Set or cancel lines, and report the changes; return the exit status.  Raises UsageError, OSError."""
    change_counts = ChangeCounts()
    selection: Selection = options.selection
    state: bytes = HELD if options.cancel else options.set
    quiet: bool = options.quiet
    try:
        if options.cancel:
            cancel(file, selection, change_counts)
        else:
            set_states(file, selection, state, options.force, change_counts)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        changed = plural(sum(change_counts.done.values()), "job")
        file.say(
            f"was replaced after {changed} had been set: the new file may lack the changes (look, and run "
            "this again)"
        )
        return 1
    text = change_counts.text(state)
    if text and not quiet:
        file.say(text)
    released = change_counts.done[HELD]
    if options.all and not selection.states and state == NEW and released and not quiet:
        file.say(f"{plural(released, 'held line')} released, too (to leave those: --set=. --state='d!e')")
    if change_counts.alive and not quiet:
        file.say(still_alive(change_counts.alive, state))
    if not text and not change_counts.refused:
        file.say(NOTHING)
    return 0 if text and not change_counts.refused else 1


def list_lines(file: JobReader, selection: Selection) -> int:
    """Print the selected jobs; return the exit status."""
    missing = selection.singles()

    def met() -> Iterator[bytes]:
        for line in selection.lines(file, otherwise=None):
            missing.discard(line.number)
            yield b"%d %s %s" % (line.number, state_shown(line.state), line.command)

    count = print_lines(met())
    for number in sorted(missing):
        file.say(f"line {number}: {selection.why_refused}")
    is_nothing = selection.is_given and not count
    if is_nothing and not missing:
        file.say(NOTHING)
    return 1 if is_nothing or missing else 0


def use_lines(options: argparse.Namespace, file: JobFile) -> int:
    """Edit or change lines, or undo ends; return the exit status.  Raises UsageError, OSError."""
    quiet: bool = options.quiet
    os.close(open_job_file(file.path, os.O_RDWR))
    if options.edit:
        status = edit(file, quiet)
        check_lines(file.path, file.network, file.say, refuse=False)
        return status
    check_lines(file.path, file.network, file.say)
    if options.reopen:
        return reopen_file(file, quiet)
    return change_states(file, options)


def reopen_file(file: JobFile, quiet: bool) -> int:
    """Undo each `#RUN end`; return the exit status.  Raises UsageError, OSError."""
    change_counts = ChangeCounts()
    reopen(file, change_counts)
    count = sum(change_counts.done.values())
    if count and not quiet:
        file.say(f"{plural(count, 'line')}: #RUN end -> #off end")
    if not count and not change_counts.refused:
        file.say("no #RUN end")
    return 0 if count and not change_counts.refused else 1


def change_file(argv: Sequence[str]) -> int:
    """Run runset4.py.  Raises UsageError."""
    options = parse(argv)
    path: str = options.file
    lists: bool = options.list

    def say(text: str) -> None:
        warn(f"{PROG}: {path}: {text}")

    try:
        mount = check_mount(path, options.single_host or lists, say)
        if lists:
            os.close(open_job_file(path, os.O_RDONLY))
            check_lines(path, mount.network, say)
            return list_lines(JobReader(path, say=say, mount=mount), options.selection)
        file = JobFile(path, say=say, mount=mount)
        if os.path.lexists(path):
            os.close(open_job_file(path, os.O_RDWR))
            check_lock_file(path, mount)
        if options.action not in ADDING:
            return use_lines(options, file)
        if os.path.lexists(path):
            check_lines(path, mount.network, say, refuse=False)
        done = add_lines(options, file)
        if not options.quiet:
            say(done)
        say_below_end(file)
        return 0
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno == errno.ESTALE:
            say("was replaced, and may lack the changes just written (look, and run this again)")
            return 1
        raise UsageError(f"{path}: {error_text(error)}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run runset4.py with these arguments (None: those of the process); return the exit status."""
    return run_main(PROG, change_file, argv)


if __name__ == "__main__":
    exit_now(main())
