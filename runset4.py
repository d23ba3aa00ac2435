#!/usr/bin/env python3
"""runset4 - write a job file of runmaker4: set states, list jobs, add jobs, import other tools' jobs.

States are set under each line's record lock, so running runners are never disturbed; lines are appended all or
none, under the append lock.  runmaker4.py says how that works.

The file reads top-down: appending, states, editing, lists, job files, tests, the end of following, the command line.
What imports something yields the lines that it comes to, and raises Problem with the place that is wrong; all of them
are there before the first is appended.
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
import stat
import subprocess
import tempfile
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field, replace
from typing import Callable, Iterable, Iterator, NoReturn, Sequence

from runmaker4 import (APPEND_BYTE, DIRECTIVE, DONE, ERROR, FAILED, HELD, NEW, NO_DIRECTIVE, NO_JOB, REFRESH_BYTE,
                       RUNNING, STRAY, UTF8_MARK, JobFile, Line, Parser, Problem, Say, Scan, Shifted, add_help,
                       append_locked, check_lines, check_mount, duration, exit_on, first_line, is_free, is_look_alike,
                       leave, lock, locked, open_job_file, own_command, parse_settings, plural, printable, put_lines,
                       quote, reason, run_main, says, show, unlock, warn, when_used, whole_number, write_all)

configparser, difflib = map(when_used, ("configparser", "difflib"))

PROG = "runset4.py"


# ======== Appending ===================================================================================================

# A runner gives the command to the shell as one word, which may be 128 KiB long for execve(2), in b"{ :; \n\n}\nexit\0"
LONGEST = (128 << 10) - 14
BLOCK = 1 << 20                     # bytes that are read or written at once
IN_MEMORY = 16 << 20                # bytes of new lines that are not put into a temporary file


def job(command: bytes) -> bytes:
    """The line of a new job.  Raises ValueError: why it cannot be one."""
    if b"\n" in command or b"\0" in command or not command.strip():
        raise ValueError(f"not a command: '{show(command[:80])}' (one line, not empty, no NUL)")
    if len(command) > LONGEST:
        raise ValueError("the command is longer than 128 KiB")
    return b". %s\n" % command


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that would end us wait until the block is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def appending(file: JobFile, patience: float = 30.0, make: bool = True) -> Iterator[int]:
    """Hold the append lock of a job file, which is made if it is not there: a descriptor for append_locked().

    Editors put another file in its place at any moment, and what is appended to the old one is in nobody's file.  So
    the lock counts only on the file that the path names; until then the next one is tried.  If at the end the path
    names another, that is an error (ESTALE): the new file has the lines or lacks them, depending on when its writer
    read the old one, and nothing tells which (equal commands are no proof; and a runner may have taken one from the old
    file).  To append them once more might run them twice, to be content might lose them; so somebody has to look.

    patience: seconds to wait for others who append.  Signals have to wait, too.  Raises Problem, OSError.
    """
    end = time.monotonic() + patience
    if make and not os.path.lexists(file.path):
        os.close(os.open(file.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
    while True:
        fd = open_job_file(file.path, os.O_RDWR | os.O_APPEND)
        try:
            with locked(fd, APPEND_BYTE, patience=end - time.monotonic()), uninterrupted():
                if file.names(fd):
                    end = os.fstat(fd).st_size
                    lock(fd, end, REFRESH_BYTE - end)   # nobody takes a new line that may yet be cut off again
                    yield fd
                    file.must_name(fd)
                    return
        finally:
            os.close(fd)
        await_file(file.path, end)


def await_file(path: str, end: float) -> None:
    """Wait for the file that an editor is about to put here.  Raises OSError after `end`, monotonic seconds."""
    while True:
        if time.monotonic() > end:
            raise OSError(errno.EAGAIN, "is replaced again and again, or was removed")
        if os.path.lexists(path):
            return
        time.sleep(0.002)


def append_lines(file: JobFile, lines: Iterable[bytes]) -> None:
    """Append lines to a job file, all or none; it is not touched before the last of them is made.

    Raises Problem, OSError.
    """
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as spool:
        try:
            rest = iter(lines)
            while piece := b"".join(itertools.islice(rest, 256)):       # line by line would take eight times as long
                spool.write(piece)
            spool.seek(0)
        except OSError as error:
            raise Problem(f"a temporary file cannot be written: {reason(error)} (TMPDIR says where)") from None
        with appending(file) as fd:
            append_locked(fd, iter(lambda: spool.read(BLOCK), b""), sync=True)


def given_jobs(commands: Sequence[str]) -> Iterator[bytes]:
    """The lines of jobs that stand on the command line.  Raises Problem."""
    for command in commands:
        try:
            yield job(os.fsencode(command))
        except ValueError as fault:
            raise Problem(f"{fault}; nothing was added") from None


class Source:
    """A text that jobs are imported from, and where in it we are."""
    LIMIT = 2 * LONGEST             # bytes of a line: in a longer one no command would be short enough

    def __init__(self, path: str) -> None:
        """path: '-' for stdin."""
        self.path = path
        self.name = "stdin" if path == "-" else show(os.fsencode(path))
        self.number = 0             # of the line that was read last

    def __iter__(self) -> Iterator[bytes]:
        """The lines, without mark, b'\\n' and b'\\r\\n'.  Raises Problem."""
        try:
            with open(0 if self.path == "-" else self.path, "rb", closefd=self.path != "-") as file:
                for self.number, line in enumerate(iter(functools.partial(file.readline, self.LIMIT), b""), 1):
                    if self.number == 1:
                        line = self._unmarked(line)
                    if b"\0" in line:
                        raise self.problem("there is a NUL in it (a text is wanted)")
                    if line.endswith(b"\n"):
                        line = line[:-2] if line.endswith(b"\r\n") else line[:-1]
                    elif len(line) >= self.LIMIT:
                        raise self.problem("is too long (128 KiB for a command)")
                    yield line
        except OSError as error:
            raise Problem(f"{self.name}: {reason(error)}") from None

    def _unmarked(self, line: bytes) -> bytes:
        if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise Problem(f"{self.name}: is UTF-16 (save it as UTF-8)")
        return line[len(UTF8_MARK):] if line.startswith(UTF8_MARK) else line

    def problem(self, text: object) -> Problem:
        """What is wrong with the line that was read last."""
        return Problem(f"{self.name}: line {self.number}: {text}")


# ======== States ======================================================================================================

KNOWN = NEW + RUNNING + DONE + FAILED + ERROR + HELD


def selected(options: argparse.Namespace, file: JobFile) -> Iterator[Line]:
    """The job lines that are meant.

    `I have a list` is a job line, too, on hold.  Lines in such states are changed only by number or by --state.
    """
    pattern = None if options.match is None else os.fsencode(options.match)
    for line in file.lines(options.state or (None if options.list or options.lines else KNOWN)):
        if options.lines and not any(line.number in span for span in options.lines):
            continue
        if pattern is None or line.command == pattern or fnmatch.fnmatchcase(line.command, pattern):
            yield line


@contextlib.contextmanager
def writable(file: JobFile, line: Line) -> Iterator[bool]:
    """Lock a line's state, or if somebody else has it another byte; whether nobody had it.  Raises OSError.

    On NFS a write under any lock leaves its neighbours alone.
    """
    free = lock(file.fd, line.offset)
    at = line.offset if free else REFRESH_BYTE
    try:
        if not free:
            lock(file.fd, at, shared=True)
        yield free
    finally:
        unlock(file.fd, at)


def set_state(file: JobFile, line: Line, state: bytes, force: bool) -> str:
    """Set the state of a line that a scan of a `single` file has found; why that was refused, or ''.

    Running lines are locked, and refused, unless forced.  Raises OSError; ESTALE: the file was replaced.
    """
    with writable(file, line) as free:
        if not free and not force:
            return "is running (wait for it, or use --force)"
        file.must_name(file.fd)                 # after the lock: what is replaced later had this state in it
        return _overwrite(file, line, state, force)


def _overwrite(file: JobFile, line: Line, state: bytes, force: bool) -> str:
    """The same under a lock that is held."""
    found = file.state_at(file.fd, line)
    if found is None or found != line.state and not force:
        return "has changed meanwhile, and is left alone"
    file.write(file.fd, line, state)
    return ""


@dataclass
class Outcome:
    """How many jobs were selected, and how many of them were refused."""
    selected: int = 0
    refused: int = 0

    def note(self, file: JobFile, line: Line, fault: str) -> bool:
        """Count a job, and say why it was refused; whether it was not."""
        if fault:
            file.say(f"line {line.number}: {fault}")
        self.selected += 1
        self.refused += bool(fault)
        return not fault


def set_states(options: argparse.Namespace, file: JobFile, outcome: Outcome) -> None:
    """Set the states of the selected jobs.  Raises OSError; ESTALE: the file was replaced, and lines may have moved."""
    for line in selected(options, file):
        outcome.note(file, line, set_state(file, line, options.set, options.force))
    if outcome.selected:
        file.must_name(file.fd)


def rerun(options: argparse.Namespace, file: JobFile, outcome: Outcome) -> None:
    """Put the selected jobs on hold, also locked ones, and append their commands anew.

    In this order, so that no job runs twice whatever happens.  They keep their settings.  All of it under the append
    lock of one file.  Raises Problem, OSError; then all have the states again that they had, unless it was replaced.
    """
    with appending(file, make=False) as fd:
        lines = {}
        for line in selected(options, file):
            try:
                lines[line] = job(line.command)
            except ValueError as fault:
                raise Problem(f"{file.path}: line {line.number}: {fault}") from None
        settings, last = settings_of(file, lines)
        file.must_name(fd)                  # so this is the file that was read
        held: list[Line] = []
        try:
            for line in lines:
                if parse_settings(settings[line]).settings.together:
                    fault = "is of a group (which runs again if all its lines are set to .)"
                else:
                    fault = set_state(file, line, HELD, force=True)
                if outcome.note(file, line, fault):
                    held.append(line)
            if held:
                appended = with_settings([(settings[line], lines[line]) for line in held], last)
                append_locked(fd, [b"".join(appended)], sync=True)
        except OSError:
            for line in held:
                with contextlib.suppress(OSError):
                    set_state(file, replace(line, state=HELD), line.state, force=True)
            raise
    if held:
        say_below_end(file)


STOPPING = 10.0                     # seconds to wait for the locks of cancelled jobs


def cancel_line(file: JobFile, line: Line) -> tuple[bytes | None, bool]:
    """Write x over a line's `r` or `.`: the state that stood there (None: it moved), and whether nobody had it locked.

    Raises OSError; ESTALE: the file was replaced.
    """
    with writable(file, line) as free:
        file.must_name(file.fd)
        found = file.state_at(file.fd, line)
        if found in (NEW, RUNNING):
            file.write(file.fd, line, HELD)
        return found, free


def cancel(options: argparse.Namespace, file: JobFile, outcome: Outcome) -> None:
    """Stop the selected jobs: x over `r` and `.`, which ends what runs; wait until nobody has these lines locked.

    A runner that claims a line at this moment may have read its `.` before our x, and writes its `r` after it: but it
    has the line locked, so we see that while we wait, and write x once more.  A runner whose job ends at this moment
    may write its result first: then that stands, and is said.  Raises OSError.
    """
    met, waiting = set(), []
    for line in selected(options, file):
        met.add(line.number)
        found, free = cancel_line(file, line) if line.state in (NEW, RUNNING) else (line.state, True)
        if found == RUNNING and free:
            file.say(f"line {line.number}: is r, but nobody runs it (its runner or host died); it is x now")
        if found in (NEW, RUNNING):
            outcome.note(file, line, "")
            waiting += [] if free else [line]
        elif options.lines or line.state in (NEW, RUNNING):
            outcome.note(file, line, "has moved meanwhile, and is left alone (look, and run this again)" if not found
                         else f"does not run: its state is {show(found)}")
    for span in options.lines:
        if span[0] == span[-1] and span[0] not in met:
            outcome.selected += 1
            outcome.refused += 1
            file.say(f"line {span[0]}: is no job" + ("" if options.match is None else " that matches"))
    await_stop(file, waiting, outcome)


def await_stop(file: JobFile, waiting: Sequence[Line], outcome: Outcome) -> None:
    """Wait until nobody has these cancelled lines locked; name the ones that stay so.  Raises OSError."""
    end = time.monotonic() + STOPPING
    while waiting and time.monotonic() < end:
        time.sleep(0.05)
        file.refresh()
        file.must_name(file.fd)
        still = []
        for line in waiting:
            free = is_free(file.fd, line.offset)        # before its state is read: its holder has written that
            found = file.state_at(file.fd, line)
            if found in (NEW, RUNNING):
                cancel_line(file, line)
            if found in (NEW, RUNNING) or not free and found:
                still.append(line)
            elif found != HELD:
                outcome.refused += 1
                file.say(f"line {line.number}: " + (f"ended first: its state is {show(found)}" if found else
                                                    "has moved meanwhile (look, and run this again)"))
        waiting = still
    for line in waiting:
        outcome.refused += 1
        file.say(f"line {line.number}: is x, but still locked after {STOPPING:.0f} s (its job does not end, its runner "
                 "does not answer, or its host is dead)")


def settings_of(file: JobFile, lines: Iterable[Line]) -> tuple[dict[Line, bytes], bytes]:
    """The settings that each of these lines is under, and the last ones in the file.  Raises OSError."""
    wanted = {line.offset: line for line in lines}
    found: dict[Line, bytes] = {}
    last = b"RUN"
    for line in Scan(file.fd, file.start, directives=True):
        if line.offset in wanted:
            found[wanted[line.offset]] = last
        elif line.state == DIRECTIVE and says(line, "settings"):
            last = line.text.rstrip()
    return {line: found.get(line, last) for line in wanted.values()}, last


def with_settings(jobs: Iterable[tuple[bytes, bytes]], last: bytes) -> Iterator[bytes]:
    """Jobs, each after its settings, as lines to be appended where the last settings hold; these hold below, too."""
    now = last
    for settings, line in jobs:
        if settings != now:
            yield b"#%b\n" % settings
        now = settings
        yield line
    if now != last:
        yield b"#%b\n" % last


# ======== Editing =====================================================================================================

# What the person changed in a copy is merged into the live file, all or nothing: half an edit is one that nobody
# wanted, and a person who sees what is refused can mend the copy ("What now?", as visudo asks; no terminal: exit 1).
#
# While it is merged and written we hold the append lock and the lock of each line that is not `r`.  So:
#
#     1. No line can be claimed, ended or set meanwhile but the ones that others have locked.  We wait for the locked
#        ones that are not yet `r` (a claim, a --set): then each line is ours, or `r`, or frozen, see below.  An `r`
#        whose lock is free stays free: after another edit its runner may be about to lock it here, and must not find it
#        taken.
#     2. States and lines at the end are written in place.  Anything else: a new file, by rename, in which running lines
#        are `r`; their runners see that the path was replaced and lock them there within a second (network: 5 s).
#        We hold its append lock, too: the next edit waits until all of this is done.
#     3. A runner that opened the old file before the rename may lock a line there after it.  So before we let go, each
#        claimable line in the old file becomes `r`: it verifies the line under its lock, and finds it taken.
#     4. A runner may have written a result into the old file after we read it.  So each line that ran is looked at
#        until its lock in the old file is free - we take it, nobody writes there any more, and what stands there
#        instead of `r` is carried over - or somebody has it locked in the new one.  Old locks alone do not tell: jobs
#        that go on keep theirs.  Lines of one text are interchangeable, so of these as many must be locked as jobs go
#        on.  For others such a line is an orphan only after three looks, one second apart: we are faster.
#     5. A line that some `echo >>` appended to the old file at this moment is appended to the new one.
#
# A job is frozen if others keep it locked in a state that nobody may claim: it was cancelled and has not ended, or its
# host is dead.  A result is written only over `r`, so none comes; only a --set may write there, and that says if the
# file was replaced meanwhile.  So it is no matter for steps 3 and 4: nobody can take it in the old file, there is
# nothing to carry over, and nobody locks it in the new one, so to wait for that would be in vain.  The edit may move
# it, but not change it: set to `.` it might run while its first job still does.  (That a new file shows the line
# without its lock is the limit that README has for each job that outlived its runner.)  Nor is it deleted: somebody
# may wait for it to end.  In a state that may be claimed a locked line is never frozen: whoever has it may be about to
# write `r` into the old file, and to run what the new one has as new.
#
# Killed by kill -9 between the rename and step 4 we may lose a result: its line becomes an orphan, and so `e`.

COPY_LINES = 2000                   # so many lines at most are compared with care for which of equal ones is meant
COPY_PAIRS = 40_000                 # ... and so many pairs of equal ones: that takes half a second
AT_ONCE = 1.0                       # seconds: an editor that is faster has not shown anything to a person
SHOWN = 5                           # so many new lines at most are named that are no jobs
SETTLING = 10.0                     # seconds to wait for others' claims, and for runners to follow to the new file
PASSING = 1.0                       # seconds after which a locked line that nobody may claim is frozen
CLAIMABLE = NEW + FAILED + ERROR


def is_job(line: bytes) -> bool:
    return line[:1] not in b"#/ \t" and line[1:2] in (b" ", b"\t")


def runs(line: bytes) -> bool:
    return line[:1] == RUNNING and is_job(line)


def key(line: bytes) -> bytes:
    """What a line is known by: a job's text without the state."""
    return b"\n" + line[1:] if is_job(line) else line


def split_lines(data: bytes) -> list[bytes]:
    """The lines of a job file, without mark and newlines."""
    data = data[len(UTF8_MARK):] if data.startswith(UTF8_MARK) else data
    lines = data.split(b"\n")
    return lines if lines[-1] else lines[:-1]


def equal_pairs(a: Iterable[bytes], b: Iterable[bytes]) -> int:
    """How many pairs of a line and an equal other one there are."""
    counts = Counter(b)
    return sum(counts[line] for line in a)


def align(old: Sequence[bytes], new: Sequence[bytes]) -> list[int]:
    """For each new line the old one that it was, wherever that stood; -1: it is new.

    Which of equal ones it was is found with care only where that is fast: all lines are locked meanwhile.  Elsewhere
    they are taken in order.  That is right, too, for lines of one text are interchangeable: it may take an edit for a
    larger one, and so refuse more, but what is written is the same.
    """
    a, b = [key(line) for line in old], [key(line) for line in new]
    first, least = 0, min(len(a), len(b))
    while first < least and a[first] == b[first]:
        first += 1
    last = 0
    while last < least - first and a[-1 - last] == b[-1 - last]:
        last += 1
    found = [*range(first), *[-1] * (len(b) - first - last), *range(len(a) - last, len(a))]
    middle_a, middle_b = a[first:len(a) - last], b[first:len(b) - last]
    if max(len(middle_a), len(middle_b)) <= COPY_LINES and equal_pairs(middle_a, middle_b) <= COPY_PAIRS:
        for i, j, size in difflib.SequenceMatcher(None, middle_a, middle_b, False).get_matching_blocks():
            found[first + j:first + j + size] = range(first + i, first + i + size)
    known, rest = set(found), defaultdict(deque)
    for index in range(first, len(a) - last):
        if index not in known:
            rest[a[index]].append(index)
    for index in range(first, len(b) - last):
        if found[index] < 0 and rest.get(b[index]):
            found[index] = rest[b[index]].popleft()
    return found


@dataclass
class Merge:
    """What becomes of a file: its lines, which line of the live file each of them is (-1: new), what is refused."""
    lines: list[bytes] = field(default_factory=list)
    origin: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def in_place(self, live: Sequence[bytes]) -> bool:
        """Whether only states changed and lines were added at the end."""
        return self.origin[:len(live)] == [*range(len(live))] and all(at < 0 for at in self.origin[len(live):])


def refusal(before: bytes, now: bytes) -> str:
    """Why a job that was given like this and is like that now cannot be changed; ''."""
    if now[:1] == RUNNING:
        return "is running (--cancel it first)"
    return "" if before[:1] == now[:1] else f"has changed meanwhile: its state is {show(now[:1])} now"


def new_fault(line: bytes) -> str:
    """What is wrong with a line that somebody has written; ''."""
    try:
        if line.startswith(b"#RUN"):
            parse_settings(line[1:])
        elif is_job(line):
            job(line[2:])
            return "is r, and nobody runs it (r is for runners; . is new)" if line[:1] == RUNNING else ""
    except ValueError as fault:
        return str(fault)
    return ""


def doubt(line: bytes) -> str:
    """Why a comment that somebody has written may be meant as something else; ''."""
    if STRAY.match(line + b"\n"):
        return NO_JOB
    return NO_DIRECTIVE if is_look_alike(line) else ""


def merge(base: Sequence[bytes], theirs: Sequence[bytes], live: Sequence[bytes]) -> Merge:
    """Three ways: what they were given, what they made of it, what the file is now."""
    made, now = align(base, theirs), align(base, live)
    there = {at: index for index, at in enumerate(now) if at >= 0}
    merged, kept, adds = Merge(), set(made), -1 in made
    for at, line in enumerate(base):
        if at in kept or not is_job(line):
            continue
        fault = refusal(line, live[there[at]]) if at in there else adds and "somebody else has changed it, too"
        if fault:
            merged.faults.append(f"line {there.get(at, at) + 1}: {fault}; '{show(line[2:80])}' was changed or deleted")
    for number, (line, at) in enumerate(zip(theirs, made), 1):
        fault, origin = "", there.get(at, -1)
        if at < 0:
            fault = new_fault(line)
        elif origin < 0 and line == base[at]:
            continue                                    # somebody else has deleted it
        elif origin < 0:
            fault = "somebody else has changed or deleted it, too"
        elif line[:1] == base[at][:1] or line[:1] == live[origin][:1]:
            line = live[origin]
        else:
            fault = "r is for runners" if line[:1] == RUNNING else refusal(base[at], live[origin])
        if fault:
            merged.faults.append(f"line {number} of the copy: {fault}")
        merged.lines.append(line)
        merged.origin.append(origin)
    return with_others(merged, now, live)


def with_others(merged: Merge, now: Sequence[int], live: Sequence[bytes]) -> Merge:
    """The same with the lines that others have added meanwhile, each behind the line that it stands behind."""
    placed, behind, last = set(merged.origin), defaultdict(list), -1
    for index, at in enumerate(now):
        if index in placed:
            last = index
        elif at < 0:
            behind[last].append(index)
    origin = list(behind[-1])
    lines = [live[index] for index in origin]
    for line, at in zip(merged.lines, merged.origin):
        more = behind[at] if at >= 0 else []
        origin += [at, *more]
        lines += [line, *(live[index] for index in more)]
    return Merge(lines, origin, merged.faults)


def read_all(fd: int, start: int = 0) -> bytes:
    """A whole file, or the rest of it.  Raises OSError."""
    data = bytearray()
    while more := os.pread(fd, BLOCK, start + len(data)):
        data += more
    return bytes(data)


def offsets(data: bytes) -> list[int]:
    """Where the lines of a job file begin, and where the last one ends."""
    start = len(UTF8_MARK) if data.startswith(UTF8_MARK) else 0
    return list(itertools.accumulate((len(line) + 1 for line in split_lines(data)), initial=start))


def _seize(fd: int, places: Sequence[int], first: int, last: int) -> list[int]:
    """Lock lines first to last - 1; returns the ones that others have.  Raises OSError."""
    if first >= last or lock(fd, places[first], places[last] - places[first]):
        return []
    if last - first == 1:
        return [first]
    middle = (first + last) // 2
    return _seize(fd, places, first, middle) + _seize(fd, places, middle, last)


def running(data: bytes, places: Sequence[int]) -> list[int]:
    """Which of the lines that begin in these places are `r`."""
    return [index for index, at in enumerate(places[:-1]) if runs(data[at:at + 2])]


@dataclass
class Seized:
    """A job file that is ours, but for some lines."""
    data: bytes
    places: list[int]               # where its lines begin, and where the last one ends
    busy: list[int]                 # its lines that are `r`
    frozen: list[int]               # its jobs in other states that others keep locked, and nobody may claim


def seize(fd: int) -> Seized:
    """Lock all lines that are not `r`.

    Also an `r` whose lock is free stays so: after another edit its runner may be about to lock it here.
    Raises OSError; EAGAIN: others keep changing it, or keep a line locked that may be claimed.
    """
    end = time.monotonic() + SETTLING
    while True:
        data = read_all(fd)
        places = offsets(data)
        others = running(data, places)
        for before, behind in zip([-1, *others], [*others, len(places) - 1]):
            others += _seize(fd, places, before + 1, behind)
        busy, frozen = _await_claims(fd, places, sorted(others), end)
        data = read_all(fd)
        same = offsets(data) == places and running(data, places) == busy
        claims = [index for index in frozen if data[places[index]:places[index] + 1] in CLAIMABLE] if same else []
        if same and not claims:
            return Seized(data, places, busy, frozen)
        unlock(fd, 0, REFRESH_BYTE)
        if time.monotonic() > end:
            raise OSError(errno.EAGAIN, "somebody else keeps changing it" if not claims else
                          f"line {claims[0] + 1} stays locked, and its state is {chr(data[places[claims[0]]])} (its "
                          "job has not ended, or its host is dead; --set=x --force takes it out)")


def _await_claims(fd: int, places: Sequence[int], others: list[int], end: float) -> tuple[list[int], list[int]]:
    """Wait for who has locked a job that is not `r`; which lines are `r` then, and which jobs stay locked.

    others: the lines that are `r`, or that others have.  Raises OSError.
    """
    passed = time.monotonic() + PASSING
    while True:
        lock(fd, REFRESH_BYTE, shared=True)             # makes reads fresh, also where not one line was free
        heads = {index: os.pread(fd, 2, places[index]) for index in others}
        others = [index for index in others if runs(heads[index]) or not lock(fd, places[index])]
        busy = [index for index in others if runs(heads[index])]
        locked = [index for index in others if is_job(heads[index]) and not runs(heads[index])]
        claims = any(heads[index][:1] in CLAIMABLE for index in locked)
        if not locked or time.monotonic() > (end if claims else passed):
            return busy, locked
        time.sleep(0.002)


class NotFollowed(Problem):
    """The edit is made, but some running jobs did not follow to the new file."""


def apply(file: JobFile, base: bytes, theirs: bytes) -> list[str]:
    """Merge what was made of a copy into the file; what is refused, and then nothing was written.

    Raises Problem, NotFollowed, OSError; ESTALE: the file was replaced or removed meanwhile.
    """
    followed = True
    fd = open_job_file(file.path, os.O_RDWR)
    try:
        with locked(fd, APPEND_BYTE, patience=30.0), uninterrupted():
            file.must_name(fd)
            try:
                seized = seize(fd)
                live = split_lines(seized.data)
                merged = merge(split_lines(base), split_lines(theirs), live)
                merged.faults += frozen_faults(merged, live, seized.frozen)
                if merged.faults:
                    return merged.faults
                file.must_name(fd)
                if merged.in_place(live):
                    _write_in_place(fd, merged, live, seized.places)
                else:
                    followed = _replace(file, fd, merged, seized)
            finally:
                unlock(fd, 0, REFRESH_BYTE + 1)
    finally:
        os.close(fd)
    say_doubts(file, merged)                    # a terminal may keep us waiting: not while we have all the locks
    if not followed:
        raise NotFollowed("was changed as wished, but some running jobs did not follow to the new file: their runners "
                          "are dead, or do not answer (runwait4.py --status says what became of them)")
    return []


def frozen_faults(merged: Merge, live: Sequence[bytes], frozen: Iterable[int]) -> list[str]:
    """Which of the frozen lines a merge would change or delete."""
    kept = dict(zip(merged.origin, merged.lines))
    return [f"line {index + 1}: is locked: its job has not ended, or its host is dead; '{show(live[index][2:80])}' was "
            "changed or deleted" for index in frozen if kept.get(index) != live[index]]


def say_doubts(file: JobFile, merged: Merge) -> None:
    """Name the first new lines that may be meant as something else, by their numbers in the file."""
    doubts = [f"line {number} {fault}" for number, (line, origin) in enumerate(zip(merged.lines, merged.origin), 1)
              if origin < 0 and (fault := doubt(line))]
    for text in doubts[:SHOWN]:
        file.say(text)
    if len(doubts) > SHOWN:
        file.say(f"... and {plural(len(doubts) - SHOWN, 'more line')} like this")


def _write_in_place(fd: int, merged: Merge, live: Sequence[bytes], places: Sequence[int]) -> None:
    """Add lines at the end, then write the states that changed; we hold the lock of each.  Raises OSError."""
    added = b"".join(line + b"\n" for line in merged.lines[len(live):])
    size = os.fstat(fd).st_size
    lock(fd, size, REFRESH_BYTE - size)         # nobody takes a new line that may yet be cut off again
    if added:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        try:
            append_locked(fd, [added], sync=True)
        finally:
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)   # with it, pwrite() would append, too
    for line, old, at in zip(merged.lines, live, places):
        if line != old:
            os.pwrite(fd, line[:1], at)
    os.fsync(fd)


def _replace(file: JobFile, fd: int, merged: Merge, seized: Seized) -> bool:
    """Put a new file in the place of the old one; wait until no runner can write to that.

    False: some running jobs did not follow to the new file.  Raises Problem, OSError.
    """
    info, target = os.fstat(fd), os.path.realpath(file.path)
    if info.st_nlink > 1:
        raise Problem(f"{file.path}: has several names (hard links), which a new file would part (change only states, "
                      "and add lines at the end)")
    text = b"".join(line + b"\n" for line in merged.lines)
    mark = UTF8_MARK if seized.data.startswith(UTF8_MARK) else b""
    folder, name = os.path.split(target)
    new, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        _give(new, info)
        if shuts_out(info, os.fstat(new)):
            raise Problem(f"{file.path}: belongs to others, who could not write to a new file of yours (change only "
                          "states, and add lines at the end)")
        write_all(new, mark + text)
        os.fsync(new)
        lock(new, APPEND_BYTE)                  # the next edit waits until our last step is done
        os.rename(temporary, target)
        sync_names(folder)                      # or a power loss might leave the old file, spoilt
        _spoil(fd, seized)
        where = {origin: at for origin, at in zip(merged.origin, offsets(mark + text))}
        live, ran = split_lines(seized.data), defaultdict(list)
        for index in seized.busy:
            ran[live[index]].append((seized.places[index], where[index]))
        followed = _carry_over(file, fd, new, ran)
        tail = read_all(fd, len(seized.data))
        if tail.strip():
            fcntl.fcntl(new, fcntl.F_SETFL, os.O_APPEND)        # others append to the new file by now
            append_locked(new, [tail if tail.endswith(b"\n") else tail + b"\n"], sync=True)
        return followed
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        os.close(new)


def _give(new: int, info: os.stat_result) -> None:
    """Give a new file the owner, group and mode of the old one, as far as that is allowed.  Raises OSError."""
    for owner in info.st_uid, -1:
        with contextlib.suppress(PermissionError):      # only root may give files away, and nobody else's group
            os.fchown(new, owner, info.st_gid)
            break
    os.fchmod(new, stat.S_IMODE(info.st_mode))


def shuts_out(old: os.stat_result, new: os.stat_result) -> bool:
    """Whether somebody who could write to a file cannot write to the new one, which has its mode."""
    everybody, group = (old.st_mode & bits == bits for bits in (0o006, 0o060))
    return not everybody and (old.st_gid != new.st_gid and bool(old.st_mode & 0o060)
                              or old.st_uid != new.st_uid and not group)


def _spoil(fd: int, seized: Seized) -> None:
    """Step 3: r over each job's state in the old file that somebody might still take.  Raises OSError."""
    for at in seized.places[:-1]:
        if is_job(seized.data[at:at + 2]) and seized.data[at:at + 1] in CLAIMABLE:
            os.pwrite(fd, RUNNING, at)
    os.fsync(fd)


def sync_names(folder: str) -> None:
    """Sync a directory's names to disk.  Raises OSError."""
    fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _carry_over(file: JobFile, fd: int, new: int, ran: dict[bytes, list[tuple[int, int]]]) -> bool:
    """Step 4, for lines that ran, by text: where they stand in the old file, and in the new one.  Raises OSError.

    False: some were not settled in time.
    """
    end = time.monotonic() + SETTLING * (3 if file.network else 1)
    while ran and time.monotonic() < end:
        for text, pairs in list(ran.items()):
            old, places = [at for at, _ in pairs if at >= 0], [at for _, at in pairs]
            going = []
            for at in old:
                if not lock(fd, at) or not _carry(new, os.pread(fd, 1, at), places):
                    going.append(at)
            if sum(not is_free(new, at) for at in places) >= len(going):
                del ran[text]
            else:
                ran[text] = [*zip(going, places), *((-1, at) for at in places[len(going):])]
        time.sleep(0.01 if ran else 0)
    os.fsync(new)
    return not ran


def _carry(new: int, state: bytes, places: list[int]) -> bool:
    """Write the state of a job that ended in the old file over an `r` of its text; whether it is settled."""
    if state == RUNNING:
        return True                             # its runner has moved on, or is dead
    for at in places:
        if lock(new, at):
            free = os.pread(new, 1, at) == RUNNING
            if free:
                os.pwrite(new, state, at)
            unlock(new, at)
            if free:
                places.remove(at)
                return True
    return False


def given(file: JobFile) -> bytes:
    """What a person is given to edit: the file as it is now.  Raises Problem, OSError."""
    fd = open_job_file(file.path, os.O_RDWR)
    try:
        lock(fd, REFRESH_BYTE, shared=True)
        return read_all(fd)
    finally:
        os.close(fd)


def edit(file: JobFile) -> int:
    """Open a copy in the person's editor, and merge it; the exit status.  Raises Problem, OSError."""
    base = given(file)
    copy = os.path.join(tempfile.mkdtemp(prefix="runset4-"), os.path.basename(file.path))
    with open(copy, "xb") as fresh:
        fresh.write(base)
    while True:
        began = time.monotonic()
        fault = run_editor(copy)
        theirs = read_copy(copy)
        if theirs == base:
            early = not fault and time.monotonic() - began < AT_ONCE
            if not early and theirs is not None:
                discard(copy)
            file.say((fault or "nothing was changed") + (
                " (the editor came back at once: if it goes on in a window of its own, have it wait, as in "
                f"EDITOR='code --wait'; the copy is kept: {copy})" if early else ""))
            return 1 if fault or early else 0
        fault = fault or copy_fault(base, theirs)
        try:
            faults = [fault] if fault else apply(file, base, theirs)
        except NotFollowed as left:
            discard(copy)
            file.say(str(left))
            return 1
        except (Problem, OSError):
            file.say(f"the copy is kept: {copy}")
            raise
        if not faults:
            discard(copy)
            return 0
        for fault in faults[:20]:
            file.say(fault)
        file.say(f"nothing was written{'' if theirs is None else f'; the copy is kept: {copy}'}" + (
            f" ({len(faults) - 20} more lines were refused)" if len(faults) > 20 else ""))
        if theirs is None or not ask_again():
            return 1


def discard(copy: str) -> None:
    """Remove a copy's directory with all that the editor left in it; what stays there is no fault of the edit."""
    shutil.rmtree(os.path.dirname(copy), ignore_errors=True)


def run_editor(copy: str) -> str:
    """Run the person's editor on a file; how it failed, or ''.  Raises Problem."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    before = signal.signal(signal.SIGINT, lambda *_: None)      # Ctrl-C is the editor's
    try:
        code = subprocess.run([*shlex.split(editor), copy]).returncode
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else error
        return f"the editor '{printable(editor)}' cannot be started: {why} (set VISUAL or EDITOR)"
    finally:
        signal.signal(signal.SIGINT, before)
    return "" if not code else (f"the editor '{printable(editor)}' " + (
        f"died of signal {-code}" if code < 0 else f"failed: exit {code}"))


def read_copy(copy: str) -> bytes | None:
    """What stands in the copy; None: it is gone."""
    try:
        with open(copy, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def copy_fault(base: bytes, theirs: bytes | None) -> str:
    """Why a copy is no job file any more; ''."""
    if theirs is None:
        return "the copy is gone"
    if not theirs.strip():
        return "the copy is empty now"
    if theirs.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "the copy is UTF-16 now (save it as UTF-8)"
    return "there are NULs in the copy now (save it as UTF-8)" if b"\0" in theirs and b"\0" not in base else ""


def ask_again() -> bool:
    """Whether the person wants to edit the copy once more; no, if there is no terminal."""
    if not (os.isatty(0) and os.isatty(2)):
        return False
    try:
        return input("What now? (e)dit again, e(x)it: ").strip().lower().startswith("e")
    except EOFError:
        return False


# ======== Lists =======================================================================================================

PLACEHOLDER = re.compile(rb"\{(|\.|/|//|/\.|#)\}")


def without_extension(path: bytes) -> bytes:
    """As GNU parallel sees it: 'a/b.c' -> 'a/b', '.b' -> ''."""
    stem, dot, extension = path.rpartition(b".")
    return stem if dot and b"/" not in extension else path


def directory(path: bytes) -> bytes:
    """As dirname(1) sees it: 'a/b' -> 'a', 'b' -> '.', 'a/b/' -> 'a', '/' -> '/'."""
    return os.path.dirname(path.rstrip(b"/") or path) or b"."


class Template:
    """A command with places for a value."""
    VALUES: dict[bytes, Callable[[bytes], bytes]] = {
        b"": lambda value: value,
        b".": without_extension,
        b"/": os.path.basename,
        b"//": directory,
        b"/.": lambda value: without_extension(os.path.basename(value)),
    }

    def __init__(self, text: bytes) -> None:
        """text: the command, with {} {.} {/} {//} {/.} for parts of the value, {#} for its number."""
        if not self.VALUES.keys() & set(PLACEHOLDER.findall(text)):
            text += b" {}"
        self.parts = [self.VALUES.get(name) for name in PLACEHOLDER.findall(text)]     # None: the number
        self.format = PLACEHOLDER.sub(lambda found: b"%b" if found[1] in self.VALUES else b"%d",
                                      text.replace(b"%", b"%%"))

    def fill(self, value: bytes, number: int) -> bytes:
        """The command for a value."""
        return self.format % tuple([quote(part(value)) if part else number for part in self.parts])


def list_jobs(path: str, template: Template | None) -> Iterator[bytes]:
    """The jobs in a list of commands, or of values for a template: one per line, but blank lines and comments.

    Raises Problem.
    """
    source, number = Source(path), 0
    for line in source:
        if line.lstrip()[:1] in b"#":       # or b""
            continue
        number += 1
        try:
            yield job(template.fill(line, number) if template else line)
        except ValueError as fault:
            raise source.problem(fault) from None
    if not number:
        raise Problem(f"{source.name}: there is no job in it (nothing to add)")


# ======== Job files ===================================================================================================

SECTIONS = ("control", "fjd")
LARGEST = 1 << 20                   # bytes of a job file: what is larger is something else


def read_job_file(path: str) -> bytes:
    """The line of the job that a job file (INI) describes: its executable, with the path behind it.  Raises Problem."""
    source = Source("./-" if path == "-" else path)
    config = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        config.read_string(ini_text(source))
    except configparser.Error as error:
        source.number = getattr(error, "lineno", 0) or error.errors[0][0]
        if isinstance(error, configparser.MissingSectionHeaderError):
            raise source.problem("stands in no [section]") from None
        raise source.problem("is neither 'NAME = VALUE' nor a comment") from None
    executable = next((config[section]["executable"] for section in SECTIONS
                       if config.has_option(section, "executable")), None)
    if executable is None:
        raise Problem(f"{source.name}: there is no executable= in [{'] or ['.join(SECTIONS)}]")
    if not executable:
        raise Problem(f"{source.name}: its executable= is empty")
    try:
        return job(b"%b %b" % (executable.encode("utf-8", "surrogateescape"), quote(absolute(path))))
    except ValueError as fault:
        raise Problem(f"{source.name}: {fault}") from None


def describes_jobs(path: str) -> bool:
    """Whether it is a job file, or a directory."""
    with contextlib.suppress(Problem):
        return os.path.isdir(path) or bool(read_job_file(path))
    return False


def ini_text(source: Source) -> str:
    """What stands in a job file.  Raises Problem."""
    text = bytearray()
    for line in source:
        text += line + b"\n"
        if len(text) > LARGEST:
            raise source.problem("this is too large for a job file (1 MiB)")
    return text.decode("utf-8", "surrogateescape")


def absolute(path: str) -> bytes:
    return os.path.abspath(os.fsencode(path))


def is_job_file(entry: os.DirEntry[str]) -> bool:
    """Whether something in a directory is a job file: no hidden file, no editor's copy."""
    try:
        return not entry.name.startswith(".") and not entry.name.endswith("~") and entry.is_file()
    except OSError:                 # a link that leads nowhere
        return False


def job_files(folder: str) -> list[str]:
    """The paths of the job files in a directory, by name.  Raises Problem."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if is_job_file(entry))
    except OSError as error:
        raise Problem(f"{show(os.fsencode(folder))}: {reason(error)}") from None
    return [os.path.join(folder, name) for name in names]


def find_added(fd: int, paths: Iterable[bytes]) -> set[bytes]:
    """Those job files that stand at the end of some job's command already, whatever its state.  Raises OSError.

    paths: absolute.  The file is searched in one go for what begins like one of their directories.
    """
    words = {quote(path): path for path in paths}
    folders = {os.path.dirname(path).rstrip(b"/").replace(b"'", b"'\"'\"'") for path in words.values()}
    pattern = re.compile(rb"^[^#/ \t\n][ \t].*[ \t]('?(?:%b)/[^/\n]*?)\r?$" % b"|".join(map(re.escape, folders)),
                         re.MULTILINE)
    found: set[bytes] = set()
    with open(fd, "rb", closefd=False) as text:
        text.seek(first_line(fd))
        for lines in iter(functools.partial(text.readlines, BLOCK), []) if words else ():
            found |= words.keys() & set(pattern.findall(b"".join(lines)))
    return {words[word] for word in found}


def add_job_files(file: JobFile, jobs: dict[bytes, bytes], once: Iterable[bytes], patience: float = 30.0) -> None:
    """Append jobs, given by the absolute paths of their job files.

    once: which of them are left out if they stand there already.  Raises Problem, OSError.
    """
    with appending(file, patience) as fd:
        added = find_added(fd, once)
        lines = b"".join(line for name, line in jobs.items() if name not in added)
        if lines:
            append_locked(fd, [lines], sync=True)


def add_jobs(file: JobFile, names: Sequence[str]) -> None:
    """Append the jobs of job files; of directories the files that are not added yet.  Raises Problem, OSError."""
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
        raise Problem(f"{show(os.fsencode(names[0]))}: there is no job file in it (nothing to add)")
    add_job_files(file, jobs, once)


@dataclass
class Arrival:
    """A job file that is not added yet."""
    signature: tuple[int, ...]      # changes whenever the file does
    since: float                    # when it was first seen so, in seconds
    judged: bool = False            # it is no good as it is


def file_signature(path: str) -> tuple[int, ...]:
    """What changes whenever a file does.  Opening it makes NFS ask the server, not its cache.  Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
    finally:
        os.close(fd)
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


@dataclass
class Collector:
    """Adds the job files that come into some directories, each once, when nobody writes to it any more.

    It knows from the job file which were added before it was started.
    """
    INTERVAL = 0.5                  # seconds from look to look
    REST = 1.0                      # seconds without a change, after which a file counts as written
    PATIENCE = 2.0                  # seconds to wait for others who append; then the next look tries again
    LONG = 2.0                      # seconds that a look may read job files; the next one goes on

    file: JobFile
    folders: Sequence[str]
    say: Say
    clock: Callable[[], float] = time.monotonic
    added: set[str] = field(default_factory=set)
    arrivals: dict[str, Arrival] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)      # the trouble with a path that was said last

    def look(self) -> None:
        """Add what has come to rest."""
        names = itertools.chain.from_iterable(map(self._names, self.folders))
        self.arrivals = {name: self._arrival(name) for name in names if name not in self.added}
        jobs: dict[str, bytes] = {}
        end = self.clock() + self.LONG
        for name, arrival in self.arrivals.items():
            line = self._job(name, arrival)
            if line:
                jobs[name] = line
            if self.clock() > end:
                break
        self._add(jobs)

    def _add(self, jobs: dict[str, bytes]) -> None:
        """Append the jobs of these files; if that fails, the next look tries again."""
        try:
            if jobs:
                lines = {absolute(name): line for name, line in jobs.items()}
                add_job_files(self.file, lines, lines, self.PATIENCE)
                self.added |= jobs.keys()
                text = jobs_below_end(self.file)
                if text:
                    self._say_once("#RUN end", f"{self.file.path}: {text}")
            self.said.pop(self.file.path, None)
        except Problem as problem:
            self._say_once(self.file.path, str(problem))
        except OSError as error:
            self._say_once(self.file.path, f"{self.file.path}: {reason(error)}")

    def _names(self, folder: str) -> list[str]:
        """The job files in a directory, none while it cannot be read."""
        try:
            names = job_files(folder)
            self.said.pop(folder, None)
            return names
        except Problem as problem:
            self._say_once(folder, f"{problem}; waiting for it")
            return []

    def _arrival(self, name: str) -> Arrival:
        """What is known of a file by now."""
        try:
            signature = file_signature(name)
        except OSError as error:
            signature = (error.errno,)
        known = self.arrivals.get(name)
        return known if known and known.signature == signature else Arrival(signature, self.clock())

    def _job(self, name: str, arrival: Arrival) -> bytes:
        """The line for a file that has come to rest; b'' if it has not, or is no good."""
        if arrival.judged or self.clock() - arrival.since < self.REST:
            return b""
        try:
            line = read_job_file(name)
            return line if self._arrival(name) is arrival else b""      # not if it was written to just now
        except Problem as problem:
            arrival.judged = True
            self._say_once(name, f"{problem}; waiting for a change")
            return b""

    def _say_once(self, about: str, text: str) -> None:
        if self.said.get(about) != text:
            self.said[about] = text
            self.say(text)


def follow(file: JobFile, names: Sequence[str]) -> NoReturn:
    """Add what is in some directories and what comes into them, until a signal ends that.

    The signals wait while lines are appended: none cuts them in two.  Raises Problem, OSError: what is wrong at the
    start.
    """
    folders = list({absolute(name): name for name in names}.values())
    for folder in folders:
        job_files(folder)
    with appending(file):
        pass                        # it is a job file, and can be written to
    exit_on(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    collector = Collector(file, folders, lambda text: warn(f"{PROG}: {text}"))
    while True:
        collector.look()
        time.sleep(collector.INTERVAL)


# ======== Tests =======================================================================================================
#
# The configuration of NetJobs.  Lines are stripped; empty ones and lines that begin with # do not count.
#
#     LABEL:                        begins a test
#     -generaltimeout: T            ... for all its commands: 330s, 5m, 2h or none [none]
#     -minhosts: N                  ... how many targets must not time out, or all [all]
#     TARGET: "COMMAND"             any number of commands, of the same target in order
#     -timeout: T                   ... for the command above
#     end                           ends the test

LABEL = re.compile(rb"([^:]+):")
FLAG = re.compile(rb"-(generaltimeout|minhosts|timeout)\s*:\s*(.*)")
COMMAND = re.compile(rb'([\w.][\w.-]*)\s*:\s*(?:"(.*)"|(.*))')      # without its quotes, if it stands in a pair
TIMEOUT = re.compile(rb"(\d+)\s*([hms])")


@dataclass
class TestCommand:
    """A command of a test."""
    line: bytes                     # of its job
    timeout: bytes                  # as in a directive; b"": none is given


@dataclass
class Test:
    """A test: what some hosts begin to run at the same moment."""
    label: bytes
    timeout: bytes = b""
    min_hosts: bytes = b"all"
    targets: dict[bytes, list[TestCommand]] = field(default_factory=dict)
    last: TestCommand | None = None

    def read(self, line: bytes) -> None:
        """Take a line of the test.  Raises ValueError: what is wrong with it."""
        flag, command = FLAG.fullmatch(line), COMMAND.fullmatch(line)
        if flag:
            self._read_flag(flag[1].decode(), flag[2])
        elif command:
            self._read_command(command[1], command[command.lastindex])
        else:
            raise ValueError(f"cannot be understood: '{show(line[:80])}' (TARGET: COMMAND, -timeout: T or end)")

    def _read_command(self, target: bytes, text: bytes) -> None:
        if not text.strip():
            raise ValueError(f"'{show(target)}' has no command (or is the end of the test above missing?)")
        self.last = TestCommand(job(text), self.timeout)
        self.targets.setdefault(target, []).append(self.last)

    def _read_flag(self, name: str, value: bytes) -> None:
        if name == "timeout":
            if not self.last:
                raise ValueError("-timeout stands before the first target")
            self.last.timeout = directive_timeout(value)
        elif self.last:
            raise ValueError(f"-{name} stands behind a target")
        elif name == "generaltimeout":
            self.timeout = directive_timeout(value)
        else:
            self.min_hosts = value if value == b"all" else checked(whole_number(0), value)

    def lines(self) -> Iterator[bytes]:
        """What stands for it in a job file."""
        yield b"#RUN barrier\n# test %b\n" % self.label
        group = re.sub(rb"[\s,=]+", b"_", self.label)
        settings = b""
        for target, commands in self.targets.items():
            for command in commands:
                timeout = b" timeout=%b" % command.timeout if command.timeout else b""
                wanted = b"#RUN together=%b host=%b%b min-hosts=%b\n" % (group, target, timeout, self.min_hosts)
                yield (b"" if wanted == settings else wanted) + command.line
                settings = wanted


def directive_timeout(text: bytes) -> bytes:
    """A time-out as a directive has it: '5 m' -> '5m', '0s' -> 'none'.  Raises ValueError."""
    match = TIMEOUT.fullmatch(text)
    if not match and text != b"none":
        raise ValueError(f"not a time-out: '{show(text[:80])}' (such as 330s, 5m, 2h or none)")
    if not match or not match[1].strip(b"0"):
        return b"none"
    return checked(duration, match[1] + match[2])


def checked(kind: Callable[[str], object], text: bytes) -> bytes:
    """A value that an argparse type takes.  Raises ValueError."""
    try:
        kind(os.fsdecode(text))
        return text
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None


def read_tests(path: str) -> Iterator[Test]:
    """The tests of a configuration.  Raises Problem."""
    source, test, began, count = Source(path), None, 0, 0
    for line in map(bytes.strip, source):
        if line[:1] in b"#":                # or b""
            continue
        if line == b"end" and test and test.targets:
            yield test
            test, count = None, count + 1
        elif line == b"end" and test:
            raise source.problem(f"the test '{show(test.label)}' has no targets")
        elif test:
            try:
                test.read(line)
            except ValueError as fault:
                raise source.problem(fault) from None
        else:
            match = LABEL.fullmatch(line)
            if not match or not match[1].strip():
                raise source.problem(f"not the label of a test: '{show(line[:80])}' (such as 'LABEL:')")
            test, began = Test(match[1].strip()), source.number
    if test:
        source.number = began
        raise source.problem(f"the test '{show(test.label)}' has no end")
    if not count:
        raise Problem(f"{source.name}: there is no test in it (nothing to add)")


def test_lines(path: str) -> Iterator[bytes]:
    """Directives and jobs for the tests of a configuration.  Raises Problem."""
    for test in read_tests(path):
        yield from test.lines()
    yield b"#RUN\n"                         # the settings of the last one do not hold for what is added later


# ======== The end of following ========================================================================================


def find_ends(fd: int) -> list[Line]:
    """The lines `#RUN end`.  Raises OSError."""
    return [line for line in Scan(fd, first_line(fd), b"", directives=True) if says(line, "end")]


def add_end(file: JobFile) -> None:
    """Append `#RUN end`, unless there is one.  Raises Problem, OSError."""
    with appending(file) as fd:
        if not find_ends(fd):
            append_locked(fd, [b"#RUN end\n"], sync=True)


def jobs_below_end(file: JobFile) -> str:
    """What is to be said if there are new jobs below a `#RUN end`; ''.

    Nobody has to wait meanwhile: the append lock is free again.  Raises OSError; ESTALE: an editor took the file away.
    """
    try:
        end = next((line for line in file.lines(b"", directives=True) if says(line, "end")), None)
    except FileNotFoundError:
        raise Shifted from None
    if end is None or not Scan(file.fd, end.offset, NEW).next():
        return ""
    return (f"there is a #RUN end in line {end.number}; no --follow runner takes the jobs below it "
            "(--reopen, then --end)")


def say_below_end(file: JobFile) -> None:
    """Say that jobs were appended below a `#RUN end`.  Raises OSError."""
    text = jobs_below_end(file)
    if text:
        file.say(text)


def reopen(file: JobFile) -> int:
    """Make comments of the lines `#RUN end`, in place; how many there were.  Raises Problem, OSError."""
    with appending(file, make=False):
        file.follow_path()
        return sum(not set_state(file, line, b"#off", force=False) for line in find_ends(file.fd))


# ======== Command line ================================================================================================


def state(text: str) -> bytes:
    """An argparse type: a state byte that makes sense."""
    data = os.fsencode(text)
    if len(data) != 1 or data in b"#/" or not b"!" <= data <= b"~":
        raise argparse.ArgumentTypeError(f"not a state: '{show(data)}' (one printable character, not #, / or blank)")
    return data


def new_state(text: str) -> bytes:
    """An argparse type: a state that somebody may set."""
    if text == RUNNING.decode():
        raise argparse.ArgumentTypeError("r is for runners (. is new)")
    return state(text)


def states(text: str) -> bytes:
    """An argparse type: one state, or several."""
    return b"".join(state(byte) for byte in text) or state(text)


def line_range(text: str) -> range:
    """An argparse type: a line number, or FROM-TO."""
    first, dash, last = text.partition("-")
    last = last if dash else first
    if not all(word.isascii() and word.isdigit() for word in (first, last)) or not 1 <= int(first) <= int(last):
        raise argparse.ArgumentTypeError(f"not a line number or FROM-TO: '{text}'")
    return range(int(first), int(last) + 1)


def command_template(text: str) -> Template:
    """An argparse type: a command with {} in it."""
    if not text.strip() or "\n" in text:
        raise argparse.ArgumentTypeError(f"not a command: '{show(os.fsencode(text))}' (one line, not empty)")
    return Template(os.fsencode(text))


ADDING = ("add", "add_list", "add_jobs", "add_tests", "end")
CHANGING = ("set", "rerun", "reopen", "cancel")
EXAMPLE = f"""\
Have failed jobs run again, stop one, edit while it runs, add, hold, release:
    {PROG} --set=. --state='!e' runs.txt
    {PROG} --cancel runs.txt 17
    {PROG} --edit runs.txt
    {PROG} runs.txt --add 'simulate --seed 7' 'simulate --seed 8'
    {PROG} runs.txt --add-list names --template 'convert {{}} {{.}}.png'
    {PROG} --set=x --state=. runs.txt 5-9
    {PROG} --set=. --state=x runs.txt 5-9"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options; `action` is the one thing to do.  Raises Problem."""
    parser = Parser(
        PROG, example=EXAMPLE, usage="[options] FILE [LINE|FROM-TO ...]",
        epilog="Exit status: 0 all was done as asked; 1 no job was selected, some were refused,\n"
               "or the file was replaced meanwhile; 2 bad usage or input, nothing was added;\n"
               "130, 143 ended by a signal.")
    add = parser.add_argument_group("what to do with selected jobs").add_argument
    add("-s", "--set", type=new_state, metavar="STATE", help="set their state: . (new), x (on hold), ...")
    add("-l", "--list", action="store_true", help="print LINE STATE COMMAND [of all]")
    add("--rerun", action="store_true", help="set them to x, also where a dead host holds them, and append them anew")
    add("--cancel", action="store_true", help="stop them wherever they run: x over r (and .); wait until they are gone")
    add("--force", action="store_true", help="set states of running jobs, too, which ends them")
    add = parser.add_argument_group("which jobs (all conditions must hold)").add_argument
    add("file", metavar="FILE", nargs="?", help="the job file")
    add("lines", nargs="*", type=line_range, metavar="LINE", help="line numbers, or ranges FROM-TO")
    add("-a", "--all", action="store_true", help="all jobs in the states . r d ! e x (to list: in any)")
    add("--state", type=states, action="append", metavar="S", help="jobs in this state, or in one of these: '!e'")
    add("--match", metavar="TEXT", help="... with this command; it may be a shell pattern for the whole command")
    add = parser.add_argument_group("or what to append (all of it or nothing; FILE is made if need be)").add_argument
    add("--add", nargs="+", metavar="CMD", help="jobs; FILE stands before it")
    add("--add-list", metavar="LIST", help="a job per line of LIST (-: stdin), but blank lines and # comments")
    add("--template", type=command_template, metavar="T",
        help="... what is run: {} is the line, quoted for the shell, {.} without extension, {/} base name, "
             "{//} directory, {/.} base name without extension, {#} its number")
    add("--add-jobs", nargs="+", metavar="JOB",
        help="a job per file of fjd's (INI, [control] or [fjd], executable=), or per such file in a directory, once")
    add("--follow", action="store_true", help="... and those that come into the directories later")
    add("--add-tests", metavar="CONFIG", help="the tests of a NetJobs configuration, for runmaker4-server.py")
    add("--end", action="store_true", help="#RUN end: --follow runners leave when nothing above is left for them")
    add("--reopen", action="store_true", help="take each #RUN end back (it becomes #off end, a comment)")
    add = parser.add_argument_group("other").add_argument
    add("--edit", action="store_true", help="edit a copy in $VISUAL, $EDITOR or vi; what was changed is merged")
    add("--single-host", action="store_true", help="no other host uses the file: any file system will do")
    add_help(add)
    options = parser.parse_intermixed_args(argv)
    options.state = b"".join(options.state or ())
    if options.file is None:
        parser.error(missing_file(options, argv))
    check_usage(parser, options)
    return options


def missing_file(options: argparse.Namespace, argv: Sequence[str]) -> str:
    """What to say where no FILE is given: the last of what is to be added may be meant."""
    name, words = ("--add", options.add) if options.add else ("--add-jobs", options.add_jobs)
    if not words:
        return "the following arguments are required: FILE"
    last, rest = words[-1], list(argv)
    if len(words) == 1 or (re.search(r"\s", last) if options.add else describes_jobs(last)):
        last = "FILE"                       # all of them are to be added
    else:
        del rest[len(rest) - 1 - rest[::-1].index(last)]
    return f"FILE stands before {name}: {own_command([last, *rest])}"


def check_usage(parser: Parser, options: argparse.Namespace) -> None:
    """What argparse does not know about which options go together.  Raises Problem."""
    actions = [name for name in ("list", "edit", *CHANGING, *ADDING) if getattr(options, name) not in (None, False)]
    if len(actions) != 1:
        parser.error("one of --set, --list, --rerun, --cancel, --edit, --add, --add-list, --add-jobs, --add-tests, "
                     "--end and --reopen is wanted")
    options.action, = actions
    name = f"--{options.action.replace('_', '-')}"
    options.selective = bool(options.lines or options.state or options.match is not None)
    if options.action in ("set", "rerun", "cancel") and not (options.selective or options.all):
        parser.error(f"{name} needs to know which jobs: lines, --state, --match or --all")
    if options.action in (*ADDING, "edit", "reopen") and (options.selective or options.all):
        parser.error(f"{name} takes no selection of lines")
    if options.template and options.action != "add_list":
        parser.error("--template is for --add-list")
    if options.follow and options.action != "add_jobs":
        parser.error("--follow is for --add-jobs")


def add_lines(options: argparse.Namespace, file: JobFile) -> int:
    """Append what is asked for; the exit status.  Raises Problem, OSError."""
    if options.follow:
        follow(file, options.add_jobs)
    if options.end:
        add_end(file)
    elif options.add_jobs:
        add_jobs(file, options.add_jobs)
    elif options.add:
        append_lines(file, given_jobs(options.add))
    elif options.add_list is not None:
        append_lines(file, list_jobs(options.add_list, options.template))
    else:
        append_lines(file, test_lines(options.add_tests))
    say_below_end(file)
    return 0


def change_states(options: argparse.Namespace, file: JobFile) -> Outcome:
    """Do what is asked to the selected jobs.  Raises Problem, OSError."""
    outcome = Outcome()
    try:
        {"set": set_states, "rerun": rerun, "cancel": cancel}[options.action](options, file, outcome)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        changed = plural(outcome.selected - outcome.refused, "job")
        done = f"was replaced meanwhile, after {changed} had been set: the new file may have"
        file.say(f"{done} them so or not; look, and run this again" if options.action != "rerun" else
                 f"{done} them so, without copies; look (--list --state=x), and run this again by line numbers")
        outcome.refused += 1
    return outcome


def use_lines(options: argparse.Namespace, file: JobFile) -> int:
    """List or change lines; the exit status.  Raises Problem, OSError."""
    os.close(open_job_file(file.path, os.O_RDONLY if options.list else os.O_RDWR))
    check_lines(file.path, file.say)
    if options.edit:
        return edit(file)
    if options.reopen:
        outcome = Outcome(reopen(file))
    elif options.list:
        outcome = Outcome(put_lines(map(bytes, selected(options, file))))
    else:
        outcome = change_states(options, file)
    if outcome.refused or outcome.selected or options.list and not options.selective:
        return 1 if outcome.refused else 0
    file.say("there is no #RUN end in it" if options.reopen else "no job is selected by this")
    return 1


def change_file(argv: Sequence[str]) -> int:
    """The body of runset4.py.  Raises Problem."""
    options = parse(argv)
    path = options.file

    def say(text: str) -> None:
        warn(f"{PROG}: {path}: {text}")

    try:
        mount = check_mount(path, options.single_host or options.list, say)
        file = JobFile(path, say=say, mount=mount, read_only=options.list, single=True)
        if options.action in ADDING:
            if os.path.lexists(path):
                check_lines(path, say, refuse=False)
            return add_lines(options, file)
        return use_lines(options, file)
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno == errno.ESTALE:
            say("was replaced meanwhile, and may lack what was just written: look, and if so run this again")
            return 1
        raise Problem(f"{path}: {reason(error)}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run runset4.py with these arguments; the exit status."""
    return run_main(PROG, change_file, argv)


if __name__ == "__main__":
    leave(main())
