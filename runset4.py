#!/usr/bin/env python3
"""runset4 - write a job file of runmaker4: set states, list jobs, add jobs.

A state is set while holding the mutex of the line's command, so running jobs and runners are not disturbed.
Lines are appended all or none, under the append lock.  "The job file" in runmaker4.py explains the locks.

The sections; begin at run_command(), which does the action of the command line:

    Appending           the append lock; lines are made first, then appended, all or none
    States              Selection: the lines that an action is for; --set and --cancel
    Editing             merges a person's copy into the live file
    Lists               lines from a list of values and a template
    Command line        the options, and run_command()

An import yields the lines to append, and raises ValueError; open_source() makes a UsageError of that, with
the number of the line.
"""
from __future__ import annotations

import os
import sys

if __name__ == "__main__" and (needed := "Python 3.9 or later"):   # Python 3.7 shows this with a SyntaxError
    # "Starting fast" in runmaker4.py
    library = os.path.dirname(os.__file__)
    sys.path[:0] = library, f"{library}/lib-dynload", os.path.dirname(os.path.realpath(__file__))

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)    # Ctrl-C during what follows: no traceback

import errno
import fcntl
import fnmatch
import functools
import itertools
import operator
import re
import shlex
import shutil
import time
from argparse import ArgumentTypeError, Namespace
from collections import Counter, defaultdict
from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
    CANCELLED,
    DIRECTIVE,
    DIRECTIVE_LIKE,
    DONE,
    KILL_SIGNALS,
    LONGEST_COMMAND,
    MUTEX_OFFSET,
    NAMED_LINES,
    NEW,
    NO_DIRECTIVES,
    OUR_STATES,
    RUNNER_STATES,
    RUNNING,
    STATE_WORDS,
    STOP_SIGNALS,
    TOO_MANY_PROCESSES,
    UTF8_MARK,
    Above,
    FileChangedError,
    Holders,
    JobFile,
    JobReader,
    Line,
    Once,
    Parser,
    Reader,
    Scan,
    UsageError,
    add_general_options,
    append_at,
    as_argument,
    check_for_strays,
    check_job_file_path,
    check_lock_file,
    check_mount,
    command_error,
    copy_owner_and_mode,
    dataclass,
    display_text,
    error_text,
    exit_now,
    exit_on,
    field,
    find_append_position,
    find_command_lines,
    find_held_job_locks,
    first_line_offset,
    identity_of,
    is_continued,
    job_file,
    keep_trying,
    lazy_import,
    lock,
    lock_all,
    lost_locks,
    name_lines,
    open_folder_of,
    open_job_file,
    open_or_create,
    other_lock,
    own_job_lock_offset,
    parse_directive,
    parse_line_ranges,
    plural,
    print_lines,
    printable,
    quote,
    refused_as,
    report_same_fetch,
    run_main,
    settings_without_jobs,
    to_bytes,
    to_text,
    user_name,
    warn,
    why_misread,
    write_all,
)

csv, difflib, subprocess, tempfile = map(lazy_import, ("csv", "difflib", "subprocess", "tempfile"))

PROG = "runset4.py"


# ======== Appending =========================================================================================
#
# All lines are made first, so nothing is written if one is wrong.  We append them in one go, under the append
# lock; after an error the written part is removed.  So a reader counts a line as complete only when the
# append lock is free.

READ_BYTES = 1 << 20                # at once


def excerpt(line: bytes) -> str:
    """Return the beginning of a line in quotes, as much as a message of one line can show."""
    return f"'{display_text(line[:80])}'"


def job_line(command: bytes) -> bytes:
    """Return the line for a new job, for example b'. make all\\n'.  Raises ValueError with the reason."""
    if re.search(rb"[\n\0]", command) or not command.strip():
        raise ValueError(f"not a command: {excerpt(command)} (one line, not empty, no NUL)")
    if why := command_error(command):
        raise ValueError(why)
    if is_continued(command):
        raise ValueError("ends in \\, but each line is a job of its own (write the command in one line)")
    return b". %s\n" % command


def is_directive(line: bytes) -> bool:
    return re.match(DIRECTIVE_LIKE, line + b"\n") is not None


def new_line(text: bytes) -> bytes:
    """Return the line for a directive or a command.  Raises ValueError with the reason.

    It refuses a complete job line, too: only the command is wanted, without a state.
    """
    if is_directive(text):
        if re.search(rb"[\n\0]", text):
            raise ValueError(f"not a directive: {excerpt(text)} (one line, no NUL)")
        parse_directive(text[1:])            # raises ValueError
        return text + b"\n"
    if text[:1] in OUR_STATES and text[1:2] in (b" ", b"\t"):
        raise ValueError(
            f"{excerpt(text)} is a complete job line, in state "
            f"{display_text(describe_state(text[:1]))} (leave out the state; if it is a command, put a blank "
            "before it)"
        )
    if text.strip().isdigit():
        raise ValueError(
            f"{excerpt(text)} is only a number (quote a command of several words; for values use "
            "--template)"
        )
    return job_line(text)


MAX_APPEND_WAIT_SECONDS = 30.0      # for other processes that append


@contextmanager
def open_and_lock_to_append(file: JobFile) -> Iterator[int]:
    """Open or create a job file, and keep others from appending in the `with` block; yield the descriptor.

    An editor can replace the file at any moment, and lines appended to the old file are lost.  So open the
    path until it names the open file.  If it names another file at the end of the block, a person must look
    (OSError ESTALE): appending again could run the lines twice, and not appending could lose them.
    """
    deadline = time.monotonic() + MAX_APPEND_WAIT_SECONDS
    if not os.path.lexists(file.path):
        file.lock_table.open_current()          # if it refuses this mount, no job file is left
        file.lock_table.close()                 # the new job file decides who may open it
        os.close(open_or_create(file.path, os.O_RDWR, 0o666))
        check_lock_file(file)
    file.open_to_write()
    with append_lock(file):
        while time.monotonic() < deadline:
            if not os.path.lexists(file.real_path):
                time.sleep(0.002)               # an editor that replaces a file can remove it for a moment
                continue
            with open_to_append(file.real_path) as fd:
                if not is_at_path(file, fd):
                    continue
                lock_all(fd)
                file.lock_table.check_still_has_locks()
                yield fd
                check_not_replaced(file, fd)
                file.lock_table.check_still_has_locks()
                return
    raise OSError(errno.EAGAIN, "was removed, or is replaced again and again")


def wait_for_complete_line(file: JobFile) -> None:
    """Wait while another program seems to write the last line: ours must neither join nor cut it.

    Raises OSError(EAGAIN) if that takes too long.
    """
    if not keep_trying(lambda: file.reader.pread(1, max(file.size() - 1, 0)) in b"\n"
                       or not file.seconds_until_complete(file.size()), MAX_APPEND_WAIT_SECONDS):
        raise OSError(errno.EAGAIN, "another process is writing the last line, which has no newline yet")


def is_at_path(file: JobFile, fd: int) -> bool:
    """Return True if the path of a job file names this open file."""
    try:
        return file.signature()[:2] == identity_of(fd)
    except FileNotFoundError:
        return False                            # an editor is replacing it


def check_not_replaced(file: JobFile, fd: int) -> None:
    if not is_at_path(file, fd):
        raise FileChangedError


@contextmanager
def append_lock(file: JobFile) -> Iterator[None]:
    """Hold a job file's append lock, once its last line is whole, so that only we append; delay STOP_SIGNALS.

    A signal that ended us in the middle of an append could leave a part of the lines.

    Step 6 of the protocol: appending holds APPEND_BYTE of the lock file.
    """
    wait_for_complete_line(file)
    with file.lock_table.locking(APPEND_BYTE, MAX_APPEND_WAIT_SECONDS) as acquired:
        if not acquired:
            raise OSError(errno.EAGAIN, "another process keeps appending to it")
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


@contextmanager
def open_to_append(path: str) -> Iterator[int]:
    fd = open_job_file(path, os.O_RDWR | os.O_APPEND)
    try:
        yield fd
    finally:
        os.close(fd)


def append_locked(file: JobFile, fd: int, lines: bytes | bytearray) -> None:
    """Append lines to a job file, all or none, by a descriptor of it.  The caller has the append lock."""
    with Reader.with_own_fd(fd, file.network) as reader:
        size, separator = find_append_position(reader, file.real_path, file.mount)
    file.was_written = True
    try:
        append_at(fd, lines, size, separator)
    except OSError:
        file.was_written = os.fstat(fd).st_size > size      # with lost locks nothing is cut off
        raise


def join_new_lines(lines: Generator[bytes, None, None], directives: Iterable[Line],
                   can_be_empty: bool) -> bytearray:
    """Return all new lines, before any is appended.  Raises UsageError if one is wrong: nothing is written.

    lines: a generator that raises ValueError for a wrong line.  For a command that the shell would misread,
    and for an unknown name, a ValueError is thrown into it, so that the error names the line of the list.
    directives: the #RUN lines above the new lines, read only for a command with `&` or a directive.
    can_be_empty: an empty list is no error, as for `xargs -r`.
    """
    new_lines = bytearray()
    above = Above()
    try:
        for line in lines:
            is_new_directive = line.startswith(b"#RUN")
            if is_new_directive or b"&" in line:
                for directive in directives:
                    above.enter(directive)
                directives = ()
                if is_new_directive:
                    above.scope = above.scope._replace(error="")        # of a line above: it does not matter
                    above.enter(Line(0, 0, b"#", line[1:-1]))
                why = (above.scope.error.partition(": ")[2] if is_new_directive         # without the number
                       else why_misread(line, above.scope.settings.shell))
                if why:
                    lines.throw(ValueError(why))        # to open_source(), which adds the number of the line
            new_lines += line
    except ValueError as error:
        raise UsageError(f"{error}; nothing was added") from None
    if not (new_lines or can_be_empty):
        raise UsageError("no jobs (nothing to add)")
    return new_lines


class Source:
    """A text file, or stdin ('-'), with jobs to import."""
    MAX_LINE_BYTES = 2 * LONGEST_COMMAND    # a longer line has too long a command

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = "stdin" if path == "-" else printable(path)
        self.line_number = 0        # 0: none yet

    def __iter__(self) -> Iterator[bytes]:
        """Yield the lines without UTF-8 BOM and newlines.  Raises ValueError: see open_source()."""
        with refused_as(self.name), \
                open(0 if self.path == "-" else self.path, "rb", closefd=self.path != "-") as file:
            while line := file.readline(self.MAX_LINE_BYTES):
                self.line_number += 1
                if b"\0" in line:
                    raise ValueError("contains a NUL (save it as text in UTF-8)")
                if len(line) == self.MAX_LINE_BYTES:
                    raise ValueError("is too long (128 KiB for a command)")
                yield (line.removeprefix(UTF8_MARK) if self.line_number == 1 else line).rstrip(b"\n")


@contextmanager
def open_source(path: str) -> Iterator[Source]:
    """Yield a source; a ValueError in the `with` block is a UsageError, at the line that was read last."""
    source = Source(path)
    try:
        yield source
    except ValueError as error:
        raise UsageError(f"{source.name}: line {source.line_number}: {error}") from None


# ======== States ============================================================================================
#
# We change a state as runners do: while holding the mutex of the line's command, after reading the line
# again.  A line `r` is changed only if it is an orphan.  To cancel a job, we write c over the `r`; the runner
# sees that at the next poll, and kills the job.  If the runner is dead, a user must: we name the processes of
# this host that hold the job lock (Holders), and signal none, as one that was wrongly found would die too.

STATES = {word: state for state, word in STATE_WORDS.items()}
# each state once, so `err` does not match
STATE_LETTERS = re.compile(f"(?:([{to_text(OUR_STATES)}])(?!.*\\1))+")


def describe_state(state: bytes) -> bytes:
    """Return a state as shown to users: b'.', or b'x (held)' for one that no runner claims."""
    word = os.fsencode(STATE_WORDS.get(state, "held"))
    return state if state in RUNNER_STATES else state + b" (%s)" % word


@dataclass
class ChangeCounts:
    """What became of the selected jobs."""
    file: JobReader
    changed: Counter[bytes] = field(default_factory=Counter)    # by the state before the change
    refused: int = 0
    names_left: int = 0                 # of cancelled jobs to name; the summary has the count
    # line numbers and messages, which say_notes() prints in the order of the file
    names: list[tuple[int, str]] = field(default_factory=list)  # 'cancelled: make all', the first names_left
    notes: list[tuple[int, str]] = field(default_factory=list)  # all

    def add_refusal(self, number: int, why: str) -> None:
        self.notes.append((number, why))
        self.refused += 1

    def say_notes(self) -> None:
        names, self.names = sorted(self.names)[:self.names_left], []
        self.names_left -= len(names)
        # the sort is stable: a name comes before the notes about its line
        notes, self.notes = sorted(names + self.notes, key=operator.itemgetter(0)), []
        for number, text in notes:
            self.file.say(f"line {number}: {text}")

    def summary(self, state: bytes) -> str:
        """Return '2 lines: ! -> ., 1 line: x (held) -> ., 1 line: refused'."""
        new_text = display_text(describe_state(state))
        # `+` drops the counts of 0: wait_for_exit() has taken these changes back
        phrases = [f"{plural(count, 'line')}: {display_text(describe_state(old_state))} -> {new_text}"
                   for old_state, count in (+self.changed).items()]
        if phrases and self.refused:
            phrases.append(f"{plural(self.refused, 'line')}: refused")
        return ", ".join(phrases)


@dataclass(frozen=True)
class Selection:
    """The jobs that match all given conditions."""
    ranges: Sequence[range]     # of line numbers, from 1; empty: no condition
    states: bytes               # one byte per state; b"": no condition
    pattern: bytes | None       # a complete command, or a shell pattern; None: no condition

    @property
    def has_conditions(self) -> bool:
        return self.states != b"" or self.names_jobs

    @property
    def names_jobs(self) -> bool:
        return bool(self.ranges) or self.pattern is not None

    @property
    def single_numbers(self) -> set[int]:
        return {span[0] for span in self.ranges if span[0] == span[-1]}

    def lines(
        self, file: JobReader, change_counts: ChangeCounts, default_states: bytes | None = OUR_STATES
    ) -> Iterator[Line]:
        """Yield the selected job lines, then report single line numbers that are no job.

        Numbers in a range, or together with --state, need not be jobs.  default_states: selected if neither
        states nor numbers are given; None: any.
        """
        states = self.states or (None if self.ranges else default_states)
        missing = set() if self.states else self.single_numbers
        pattern = self.pattern
        # thousands of ranges are possible, and they can overlap: the one that begins first is the last here
        # without any, all lines are selected
        spans = sorted(self.ranges, key=lambda span: -span[0]) or [range(1, sys.maxsize)]
        scan = file.scan_lines(states)
        for line in scan:
            while spans and line.number > spans[-1][-1]:
                spans.pop()
            if not spans:
                break
            if line.number < spans[-1][0]:
                scan.skip_to(spans[-1][0])
            elif pattern is None or line.command == pattern or fnmatch.fnmatchcase(line.command, pattern):
                missing.discard(line.number)
                yield line
        for number in sorted(missing):
            change_counts.add_refusal(number, "no such job")


# LockTable.take_bucket(); that happened less than FileJobs.SHORT_SECONDS after the claim, or on a slow server
LEFT_LOCKED = "a job whose runner was killed or suspended has it locked (wait for it; lslocks names it)"


def change_lines(file: JobFile, selection: Selection, change: Callable[[Line], None],
                 change_counts: ChangeCounts, top_down: bool = False) -> None:
    """Call change() for each selected line, first without waiting for any lock.

    From the last line to the first, unless top_down: what is above a barrier then stays unfinished longest.
    change() raises BlockingIOError for a line that another process keeps locked.  Once all others are
    changed, try such lines again, with patience, and refuse them if that fails, too.  From this second round
    on INT and TERM raise SystemExit, so that the caller can report what was done.
    """
    lines: Iterable[Line] = selection.lines(file, change_counts)
    if not top_down:
        all_lines = [*lines]
        # states are counted in the order of the file
        change_counts.changed.update({line.state: 0 for line in all_lines})
        lines = reversed(all_lines)
    locked: list[Line] = []
    file.patience = 0.0
    for some_lines in lines, locked:
        for line in some_lines:
            try:
                change(line)
            except BlockingIOError:
                if some_lines is lines:
                    locked.append(line)
                    continue
                change_counts.add_refusal(
                    line.number, f"keeps being added, claimed or edited, or {LEFT_LOCKED}"
                )
                # the next line has been locked as long by now, so it gets less time
                file.patience = file.MUTEX_SECONDS_LOCAL
        change_counts.say_notes()
        file.patience = file.MUTEX_SECONDS
        # Not in the first round: a signal without a handler ends us even while a file system does not answer
        exit_on(*KILL_SIGNALS)


@contextmanager
def hold_mutex(file: JobFile, line: Line) -> Iterator[None]:
    """Hold the command mutex of a line that can be changed.

    Raises BlockingIOError if another process holds it, or has appended the line and can still remove it.
    """
    with file.command_mutex(line.command, file.patience) as acquired:
        if not (acquired and keep_trying(lambda: file.check_committed(line), file.patience, 0.01)):
            raise BlockingIOError
        file.check_writable()                         # raises if the file was replaced
        yield


def set_state(file: JobFile, line: Line, state: bytes) -> str:
    """Set the state of a line that was read before; return '', or why that was refused.

    Raises OSError (ESTALE), BlockingIOError.
    """
    with hold_mutex(file, line):
        if file.state_at(line) != line.state:
            return "has changed since it was read; not set"
        if line.state == RUNNING and not file.is_orphan(line):
            return "is running (wait for it, or use --cancel)"
        # its runner, stopped or a client that is away, would take it for an `r` that an editor has replaced
        if state == NEW and line.state == CANCELLED and not file.can_run_another_copy(line.command):
            return "still has a running job (set it again once that has ended)"
        file.write(line, state)
    return ""


ORPHAN_FOUND = "is r, but no runner has it (runner or host died)"
MAX_EXIT_WAIT_SECONDS = 10.0        # a runner looks every 5 s, then --kill-after; what lives on is named
UNFINISHED_STATES = (NEW, RUNNING)  # over these --cancel writes c


def cancel_line(file: JobFile, line: Line) -> tuple[bytes | None, bool]:
    """Write c over the `r` or `.` of a line: then a living runner kills the job.

    Return the state before, and True if the job runs, or could; then the caller waits for its exit.  State
    None: the line has moved, and was not changed.
    """
    with hold_mutex(file, line):
        state_now = file.state_at(line)
        if state_now == RUNNING:
            is_running = not file.is_orphan(line)
        else:
            # A job can run though the line is not `r`, for example after an editor has saved an old `.` over
            # it.  Each copy holds one job lock.  So if the command has more held job locks than lines `r`, a
            # copy runs for a line in another state, perhaps this one
            is_running = bool(state_now) and not file.can_run_another_copy(line.command)
        if state_now in UNFINISHED_STATES:
            file.write(line, CANCELLED)
    return state_now, is_running


def cancel_selected(file: JobFile, selection: Selection, change_counts: ChangeCounts) -> None:
    """Cancel the selected jobs, wait until running ones have exited, and report what happened.

    A line that the user has named is cancelled also in another state than `r` and `.`, if its job runs.

    A job keeps the number of its start in JOB_ID and the names of its output files, although an edit can move
    the line.  So a number alone is refused if a running job of another line was started with it.
    """
    awaited = []
    # only single numbers: users do not take a range from JOB_ID or the name of a file
    numbers = selection.single_numbers if selection.pattern is None else set()
    # How many jobs were started with each number: each holds the job lock of that number.  A server has many
    # job locks on one description, and the kernel shows neighbours as one range.
    started = Counter(offset & MUTEX_OFFSET
                      for locked in (find_held_job_locks(file.lock_table.fd) if numbers else ())
                      for offset in locked)

    def cancel(line: Line) -> None:
        # in a state in which no job should run: only if the user has named the line
        if line.state not in UNFINISHED_STATES and not selection.names_jobs:
            return
        job_lock = own_job_lock_offset(line)
        # is_held(): then one of the jobs that were started with this number is that of the line itself
        if line.number in numbers and started[job_lock & MUTEX_OFFSET] > file.lock_table.is_held(job_lock):
            change_counts.add_refusal(line.number, "another running job had this number when it was started "
                                                   "(add --match COMMAND to cancel this one)")
            return
        state_now, is_running = cancel_line(file, line)
        if state_now is None or not (is_running or state_now in UNFINISHED_STATES):     # nothing to cancel
            # no message for a finished or held line that was selected only by its command
            if selection.ranges or line.state in UNFINISHED_STATES:
                why = "has moved since it was read; not cancelled (look, and run this again)"
                if state_now:
                    why = f"is not running: the state is {display_text(state_now)}"
                change_counts.add_refusal(line.number, why)
            return
        change_counts.changed[state_now] += 1
        change_counts.names.append((line.number, f"cancelled: {display_text(line.command)}"))
        if is_running:
            line.state = state_now
            awaited.append(line)
        if state_now not in UNFINISHED_STATES:
            change_counts.notes.append((line.number, f"is {display_text(state_now)}, but its job runs"))
        elif state_now == RUNNING and not is_running:
            change_counts.notes.append((line.number, f"{ORPHAN_FOUND}; it is c now"))

    change_lines(file, selection, cancel, change_counts)
    wait_for_exit(file, awaited, change_counts)


def wait_for_exit(file: JobFile, awaited: list[Line], change_counts: ChangeCounts) -> None:
    """Wait until the runners have killed these cancelled jobs; name those that live on.

    awaited: the lines, with the states before the c.
    """
    deadline = time.monotonic() + MAX_EXIT_WAIT_SECONDS
    while awaited:
        time.sleep(0.05)
        file.open_to_write()
        # without a runner nobody will kill a job; asked first: a job and then its runner can exit meanwhile
        is_last_check = time.monotonic() > deadline or file.has_no_other_users()
        checked, awaited = awaited, []
        for line in checked:
            state = file.state_at(line)
            if state in UNFINISHED_STATES:      # an editor has saved an old `r` or `.` over the c
                with suppress(BlockingIOError):
                    cancel_line(file, line)
                awaited.append(line)
            elif not file.can_run_another_copy(line.command):   # more held job locks than lines `r`
                awaited.append(line)
            # the job has exited.  line.state: before the c; a line that was neither `r` nor `.` keeps it
            elif state not in (CANCELLED, line.state):
                change_counts.changed[line.state] -= 1
                change_counts.add_refusal(line.number,
                                          "has moved or changed since (look, and run this again)")
        if is_last_check:
            break
    if awaited:
        name_living_jobs(file, awaited, change_counts)


def name_living_jobs(file: JobFile, lines: Iterable[Line], change_counts: ChangeCounts) -> None:
    """Name the processes of cancelled jobs that live on, and count these lines as refused."""
    holders = Holders(file.lock_table.inode)
    for line in lines:
        state_text = display_text(CANCELLED if line.state in UNFINISHED_STATES else line.state)
        if pids := holders.pids(line):
            how = f"end it on host {os.uname().nodename}: kill {' '.join(map(str, pids))}"
        else:
            # on FUSE the daemon holds the locks, so the kernel does not name the job's processes
            how = ("no process of it is visible here: run this as root, on the host that runwait4.py "
                   "--status names, or in its container; on FUSE kill it there; a stopped runner kills it "
                   "after kill -CONT; a client over TCP kills it when it is back")
        change_counts.add_refusal(line.number, f"is {state_text}, but its job still runs ({how})")


# ======== Editing ===========================================================================================
# A person edits a copy, and we merge the changes into the live file, all or nothing.  The person sees refused
# changes and can fix the copy, or write the others ("What now?", as visudo asks).  Meanwhile other processes
# can set states and append lines.  If the changed lines are no longer where they were, because someone else
# has saved, nothing is written, and the copy is kept.
#
# While we merge and write, we hold the append lock, and all of the lock file except the job locks of running
# jobs.  So no line can be claimed, finished or set, and a process that locks a command mutex afterwards opens
# the file that the path names then.  We wait for no job.  States and appended lines are written in place; any
# other change makes a new file, by rename.

FileLines = Sequence[bytes]         # of a file, or their merge_key()s, without newlines
NOTHING_CHANGED = ("nothing was changed (if the editor opens another window, make it wait, for example "
                   "EDITOR='code --wait')")
MAX_MUTEX_WAIT_SECONDS = 10.0       # for processes that hold a command mutex


def is_job(line: bytes) -> bool:
    return line[:1] not in b"#/ \t" and line[1:2] in (b" ", b"\t")


def is_running_line(line: bytes) -> bool:
    return line[:1] == RUNNING and is_job(line)


def merge_key(line: bytes) -> bytes:
    """Return a key that is equal for lines that differ only in the state."""
    # no line contains a newline, so only jobs have such keys
    return b"\n" + line[1:] if is_job(line) else line


def have_same_keys(lines: FileLines, other_lines: FileLines) -> bool:
    """Return True if the lines differ at most in their states."""
    return len(lines) == len(other_lines) and all(
        line == other or merge_key(line) == merge_key(other) for line, other in zip(lines, other_lines))


def split_lines(data: bytes | bytearray) -> list[bytes]:
    lines = bytes(data).removeprefix(UTF8_MARK).split(b"\n")
    return lines if lines[-1] else lines[:-1]       # b"" comes after the last newline


def changed_part(old: bytes | bytearray, new: bytes | bytearray) -> tuple[int, int]:
    """Return the offsets in `old` before and after which `new` has the same lines.

    apply_edit() splits and merges only the part between them, because a list of lines takes several times as
    much memory as the text.  The part begins with the newline before its first line, so that split_lines()
    removes no byte-order mark there.
    """
    view, most, equal = memoryview(new), min(len(old), len(new)), [0, 0]
    # by binary search: so many bytes are equal at the start, and at the end
    for bit in reversed(range(most.bit_length())):
        for at_end, equal_size in enumerate(equal):
            size = equal_size + (1 << bit)
            if size <= most and (old.endswith(view[-size:]) if at_end else old.startswith(view[:size])):
                equal[at_end] = size
    start = max(old.rfind(b"\n", 0, equal[0]), 0)
    # the first line of the equal ones can have another beginning in `new`
    stop = old.find(b"\n", len(old) - min(equal[1], most - start)) + 1 or len(old)
    # insertions at a newline: check_not_saved_since() needs the lines beside it
    if stop - start < 2 and stop < len(old):
        start = max(old.rfind(b"\n", 0, start), 0)
        stop = old.find(b"\n", stop) + 1 or len(old)
    return start, stop


def count_equal_at_start(lines: Iterable[bytes], other_lines: Iterable[bytes]) -> int:
    return sum(itertools.takewhile(bool, map(operator.eq, lines, other_lines)))


def count_equal_ends(old_lines: FileLines, new_lines: FileLines) -> tuple[int, int]:
    """Return the numbers of equal lines at the start, and at the end of the remaining lines."""
    start = count_equal_at_start(old_lines, new_lines)
    return start, count_equal_at_start(reversed(old_lines[start:]), reversed(new_lines[start:]))


class EditRefusedError(Exception):
    """A person's change is refused; the text is the reason."""


class OldLine(NamedTuple):
    number: int         # from 1
    text: bytes         # that the person got
    current: bytes      # in the file now: perhaps in another state


def merge_equal_lines(
    old: Sequence[OldLine], new_texts: list[bytes], numbers_in_copy: Callable[[], dict[bytes, int]]
) -> list[bytes]:
    """Merge the states that a person has set in --edit with those in the file now; return the lines in order.

    All lines here have one merge_key(): they are equal, except in the state.  The person can also have added
    or deleted some.  So match old and new ones from both ends.  old: those of the file.
    new_texts: those of the person.

    Raises EditRefusedError if the line is new and invalid; if a runner or another user has set a different
    state; or if the person makes a line `r`, or takes `r` from a running job.
    """
    old_texts = [line.text for line in old]
    current = [line.current for line in old]
    if new_texts == old_texts:
        return current
    if not old:
        text = new_texts[0]
        try:
            if is_directive(text):
                parse_directive(text[1:])
            elif is_job(text):
                job_line(text[2:])
        except ValueError as error:
            raise EditRefusedError(f"line {numbers_in_copy()[text]} of the copy: {error}") from None
    # merge only what the person has changed
    start, equal_at_end = count_equal_ends(old_texts, new_texts)
    old_end = len(old) - equal_at_end
    replaced, replacing = current[start:old_end], new_texts[start:len(new_texts) - equal_at_end]
    # the person adds so many lines `r`, or if negative takes `r` from running jobs
    added_running = sum(map(is_running_line, replacing)) - sum(map(is_running_line, replaced))
    # the second: others have set states here since, and not those that the person has set
    if added_running < 0 or replaced not in (old_texts[start:old_end], replacing):
        refused = next(line for line in old[start:old_end]
                       if is_running_line(line.current) or line.text != line.current)
        why = f"has changed since: the state is {display_text(refused.current[:1])} now"
        if is_running_line(refused.current):
            why = "is r (--cancel it first)"
        raise EditRefusedError(
            f"line {refused.number}: {why}; {excerpt(refused.current[2:])} was changed or deleted"
        )
    if added_running > 0:
        raise EditRefusedError(
            f"line {numbers_in_copy()[next(filter(is_running_line, replacing))]} of the copy: is r, but not "
            "running (only runners set r; . is new)"
        )
    return [*current[:start], *replacing, *current[old_end:]]


def merge_edit(
    old: FileLines, new: FileLines, current: FileLines, first_number: int = 1
) -> tuple[list[bytes], dict[bytes, str]]:
    """Return a person's lines with the current states, and why changes are refused, by merge_key().

    old: the lines that the person got, from line first_number on.  new: the person's.  current: in the file
    now: the old ones, perhaps in other states, and then lines that others have appended.  These come behind
    the old ones if the person has kept those, else last.  A line has the state of `current`, unless the
    person has changed it.  If any change is refused, return no lines.
    """
    @functools.cache                # only for lines that are refused
    def numbers_in_copy() -> dict[bytes, int]:
        return {line: number for number, line in reversed([*enumerate(new, first_number)])}

    # where both have appended lines, the others' come first, and so keep their offsets
    appended = current[len(old):]
    position = len(old) if have_same_keys(old, new[:len(old)]) else len(new)
    old = [*old, *appended]
    merged = [*new[:position], *appended, *new[position:]]
    equal_at_start, equal_at_end = count_equal_ends(old, merged)
    changed = merged[equal_at_start:len(merged) - equal_at_end]
    replaced = old[equal_at_start:len(old) - equal_at_end]
    is_merged: Iterable[bool] = itertools.repeat(True)
    if len(changed) == len(replaced):       # as `sed -i` leaves them: of most lines all equal ones are kept
        keys = {merge_key(line) for pair in zip(replaced, changed) if pair[0] != pair[1] for line in pair}
        is_merged = [merge_key(line) in keys for line in replaced]
    old_by_key = defaultdict(list)
    new_by_key = defaultdict(list)
    for index, line in itertools.compress(enumerate(replaced, equal_at_start), is_merged):
        old_by_key[merge_key(line)].append(OldLine(first_number + index, line, current[index]))
    for line in itertools.compress(changed, is_merged):
        new_by_key[merge_key(line)].append(line)
    merged_by_key, refusals = {}, {}
    for key in {**old_by_key, **new_by_key}:
        try:
            merged_by_key[key] = iter(merge_equal_lines(old_by_key[key], new_by_key[key], numbers_in_copy))
        except EditRefusedError as error:
            refusals[key] = str(error)
    if refusals:
        return [], refusals
    merged = [next(merged_by_key[merge_key(line)]) if is_one else current[index]
              for (index, line), is_one in zip(enumerate(changed, equal_at_start), is_merged)]
    return [*current[:equal_at_start], *merged, *current[len(old) - equal_at_end:]], {}


MAX_COMPARED_LINES = 5000       # by difflib, whose time can grow with the square while the locks are held


def find_changes(old: FileLines, new: FileLines) -> Iterator[tuple[FileLines, FileLines]]:
    """Yield old lines and what they have become, in order: line by line, or where that is unknown several.

    Between two lines that were kept, as many lines as before are the same ones, changed.
    """
    keys = [[*map(merge_key, lines)] for lines in (old, new)]
    parts = [(0, len(old), 0, len(new))]
    if len(old) + len(new) <= MAX_COMPARED_LINES:
        parts = [part for _, *part in difflib.SequenceMatcher(None, *keys, autojunk=False).get_opcodes()]
    for start, stop, new_start, new_stop in parts:
        lines, new_lines = old[start:stop], new[new_start:new_stop]
        if len(lines) == len(new_lines):
            yield from (([line], [new_line]) for line, new_line in zip(lines, new_lines))
        else:
            yield lines, new_lines


def leave_out(old: FileLines, new: FileLines, refused: dict[bytes, str]) -> list[bytes]:
    """Return the new lines without the changes of refused lines, by merge_key().

    A line that has moved is in two changes: by one alone it would be lost, or there twice.  So leave out
    both, and add the lines in its places to `refused`.
    """
    changes = [({merge_key(line) for line in (*before, *after)}, before, after)
               for before, after in find_changes(old, new)]
    changed_with: defaultdict[bytes, list[set[bytes]]] = defaultdict(list)
    for keys, *_ in changes:
        for key in keys:
            changed_with[key].append(keys)
    todo = [*refused]
    while todo:
        for key in itertools.chain(*changed_with.pop(todo.pop(), ())):
            if key not in refused:
                refused[key] = f"{excerpt(key.strip())} is left out, too"
                todo.append(key)
    return [line for keys, before, after in changes
            for line in (after if refused.keys().isdisjoint(keys) else before)]


def can_write_in_place(merged: FileLines, current: FileLines) -> bool:
    """Return True if the only changes are appended lines, and states of lines that are not running."""
    if len(merged) < len(current):
        return False
    for line, old_line in zip(merged, current):
        if line != old_line and (
            merge_key(line) != merge_key(old_line) or is_running_line(line) or is_running_line(old_line)
        ):
            return False
    return True


def summarize_changes(merged: FileLines, current: FileLines) -> str:
    """Return a summary such as '2 states set, 3 lines added'."""
    old_counts = Counter(map(merge_key, current))
    new_counts = Counter(map(merge_key, merged))
    added = sum((new_counts - old_counts).values())
    removed = sum((old_counts - new_counts).values())
    # a line with another state counts as new here, but its merge_key() is an old one
    changed_states = sum((Counter(merged) - Counter(current)).values()) - added
    # if a line had moved, more places would differ
    in_place = added == removed == sum(map(operator.ne, merged, current)) - changed_states
    counts = ((changed_states, "state", "set"), (added, "line", "changed" if in_place else "added"),
              (0 if in_place else removed, "line", "removed"))
    phrases = [f"{plural(count, word)} {verb}" for count, word, verb in counts if count]
    return ", ".join(phrases) or ("nothing was changed" if merged == current else "lines were moved")


def read_to_end(file: Reader, start_offset: int = 0) -> bytearray:
    data = bytearray()
    while chunk := file.pread(READ_BYTES, start_offset + len(data)):
        data += chunk
    return data


@contextmanager
def hold_all_locks(file: JobFile) -> Iterator[int]:
    """Lock all command mutexes in the `with` block, so that no other process claims a line or sets a state.

    Step 6 of the protocol: --edit holds them and the append lock while it merges and writes.  Yield the
    descriptor with the locks.  Raises OSError: EAGAIN if a process keeps a mutex for MAX_MUTEX_WAIT_SECONDS,
    ESTALE if the lock file was removed.
    """
    fd = file.lock_table.open_job_lock()
    deadline = time.monotonic() + MAX_MUTEX_WAIT_SECONDS
    try:
        # A bucket has 65,535 bytes for job locks, then the command mutex.  It is in use if another process
        # has a lock in it.  Lock all unused buckets, and of others only the mutex: a process that holds that
        # now would count our locks of other bytes as running jobs.
        mutexes_to_lock = []
        ranges_to_lock = [(0, BUCKETS_END)]
        while ranges_to_lock:
            start, stop = ranges_to_lock.pop()
            if start < stop and not lock(fd, start, stop - start):
                held_range = other_lock(fd, start, stop - start)
                held_offset = held_range.start if held_range else start     # None: just unlocked
                command_mutex = held_offset | MUTEX_OFFSET      # the last of 2^16 bytes of that bucket
                mutexes_to_lock.append(command_mutex)
                # those before and after the bucket
                ranges_to_lock += [(start, command_mutex - MUTEX_OFFSET), (command_mutex + 1, stop)]
        for command_mutex in mutexes_to_lock:
            if not keep_trying(functools.partial(lock, fd, command_mutex), deadline - time.monotonic()):
                raise OSError(errno.EAGAIN, f"another process keeps changing it, or {LEFT_LOCKED}")
        file.lock_table.refresh_under_lock()
        file.reopen_reader_on_fuse()
        yield fd
    finally:
        file.lock_table.close_job_lock(fd)


def check_not_saved_since(file: JobFile, old: FileLines, current: FileLines) -> None:
    """Raise UsageError if these lines of the file are no longer the old ones, apart from states."""
    if not have_same_keys(old, current):
        owner = os.fstat(file.fd).st_uid        # of a new file: who has saved it
        raise UsageError(f"{file.path}: {'another editor' if owner == os.geteuid() else user_name(owner)} "
                         "has saved since")


@contextmanager
def locks_to_replace(file: JobFile) -> Iterator[int]:
    """Open a job file, and hold the append lock and all others; yield the descriptor of hold_all_locks().

    Another process can replace the file while this waits for the locks: then open it again.
    """
    deadline = time.monotonic() + MAX_APPEND_WAIT_SECONDS
    while True:
        file.open_to_write()
        with append_lock(file), hold_all_locks(file) as lock_fd:
            try:
                file.check_writable()
            except FileChangedError:
                if time.monotonic() > deadline:
                    raise
                continue
            yield lock_fd
            return


def apply_edit(
    file: JobFile, base: bytes | bytearray, edited: bytes, quiet: bool = False, partly: bool = False
) -> list[str]:
    """Merge an edited copy into the file, and print what has changed; return why changes are refused.

    base: the file as the person got it.  If any change is refused, write nothing, so that the person can edit
    again; partly: write all other changes.  [] means that none is refused.  Raises UsageError if someone else
    has saved, or could not write to a new file; OSError (ESTALE: the file was replaced or removed).
    """
    with locks_to_replace(file) as lock_fd:
        start, stop = changed_part(base, edited)
        old = split_lines(base[start:stop])
        new = split_lines(edited[start:stop + len(edited) - len(base)])
        del edited                              # two copies of the file at once are enough
        contents = read_to_end(file.reader)
        # lines can be appended in place only if the part goes on to the end of the file
        last = stop if stop < len(base) else len(contents)
        current = split_lines(contents[start:last])
        check_not_saved_since(file, old, current if last == stop else current[:len(old)])
        first_number = 1 + base.count(b"\n", 0, start)
        merged, refused = merge_edit(old, new, current, first_number)
        refusals = refused
        while refusals:
            if not partly:
                return [*refused.values()]
            merged, refusals = merge_edit(old, leave_out(old, new, refused), current, first_number)
            refused.update(refusals)
        # where the part is in the file, without a byte-order mark
        offset = start or len(UTF8_MARK) * contents.startswith(UTF8_MARK)
        if can_write_in_place(merged, current) and (last == len(contents) or len(merged) == len(current)):
            check_locks_held(file, lock_fd)
            _write_in_place(file, merged, current, offset)
            check_not_replaced(file, file.fd)
        else:
            _replace_file(file, lock_fd, merged, contents, offset, last)
    # without the locks, because a write to a terminal can block
    if not quiet:
        file.say(summarize_changes(merged, current))
    return [*refused.values()]


def check_locks_held(file: JobFile, lock_fd: int) -> None:
    """Raise OSError (EIO) if a network file system has dropped our locks, so that runners could claim lines.

    lock_fd: from hold_all_locks().  The last command mutex stands for all.
    """
    if file.network and lost_locks(lock_fd, [BUCKETS_END - 1], file.mount):
        raise OSError(errno.EIO, "the locks were lost")


def _write_in_place(file: JobFile, merged: FileLines, current: FileLines, offset: int) -> None:
    """Write a merged edit that only sets states and appends lines into the open file.

    So runners need not open a new file.  current, merged: the lines from the offset on, as they are and will
    be.  The caller holds all locks.
    """
    # first, because only this can lack space
    if appended := b"".join(line + b"\n" for line in merged[len(current):]):
        with open_to_append(file.real_path) as append_fd:
            check_not_replaced(file, append_fd)
            lock_all(append_fd)
            append_locked(file, append_fd, appended)
    for line, old_line in zip(merged, current):
        if line != old_line:
            os.pwrite(file.fd, line[:1], offset)
            file.was_written = True
        offset += len(old_line) + 1
    os.fsync(file.fd)


def _replace_file(
    file: JobFile, lock_fd: int, lines: FileLines, old_contents: bytearray, start: int, stop: int
) -> None:
    """Write a merged edit to a new file, with the same rights, and rename that over the job file.

    It has `lines` instead of old_contents[start:stop].  Raises UsageError, and changes nothing, if other
    users could not write to the new file.  The caller holds all locks; runners then open the new file.
    """
    old_info = os.fstat(file.fd)
    path = file.real_path
    folder, name = os.path.split(path)
    new_fd, temporary_path = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        copy_owner_and_mode(new_fd, old_info)
        if locks_out_writers(old_info, os.fstat(new_fd)):
            raise UsageError(
                f"{file.path}: other users could not write to a new file of yours (change only states, and "
                "add lines at the end)"
            )
        with memoryview(old_contents) as old:           # which copies nothing
            for part in old[:start], b"".join(line + b"\n" for line in lines), old[stop:]:
                write_all(new_fd, part)
        if stop < len(old_contents) and not old_contents.endswith(b"\n"):
            write_all(new_fd, b"\n")
        os.fsync(new_fd)
        # if the locks are lost after this check, the rename can put old states back, no worse
        check_locks_held(file, lock_fd)
        os.rename(temporary_path, path)
        file.was_written = True
        # or a power loss can bring the old file back
        folder_fd = open_folder_of(path)
        try:
            os.fsync(folder_fd)
        finally:
            os.close(folder_fd)
        # a shell's `echo >>` takes no append lock, and can have written to the old file until now
        appended = read_to_end(file.reader, len(old_contents))
        if appended.strip():
            appended = appended if appended.endswith(b"\n") else appended + b"\n"
            fcntl.fcntl(new_fd, fcntl.F_SETFL, os.O_APPEND)     # other processes can append already
            append_locked(file, new_fd, appended)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary_path)
        raise
    finally:
        os.close(new_fd)


def locks_out_writers(old_info: os.stat_result, new_info: os.stat_result) -> bool:
    """Return True if a user can write to the old file, but not to a new one of the same mode."""
    if old_info.st_mode & 0o006 == 0o006:
        return False
    if old_info.st_gid != new_info.st_gid and old_info.st_mode & 0o060:
        return True
    return old_info.st_uid != new_info.st_uid and old_info.st_mode & 0o060 != 0o060


def edit(file: JobFile, quiet: bool) -> int:
    """Open a copy in the user's editor, and merge the changes; after a refusal ask what to do.

    Return the exit status: 1 if the editor failed, or changes were refused; the copy with these is kept.
    """
    file.open_to_write()
    base = read_to_end(file.reader)
    folder = tempfile.mkdtemp(prefix="runset4-")
    copy_path = os.path.join(folder, os.path.basename(file.path))
    with open(copy_path, "xb") as copy:
        copy.write(base)
    answer = "e"  # the first letter of what the person types
    while True:
        failure = run_editor(copy_path) if answer == "e" else ""
        edited = b""                            # also if the copy was removed
        with suppress(FileNotFoundError), open(copy_path, "rb") as copy:
            edited = copy.read()
        if edited == base:
            shutil.rmtree(folder, ignore_errors=True)
            file.say(failure or NOTHING_CHANGED)
            return 1 if failure else 0
        what_now = "(e)dit again, e(x)it"
        if failure:
            refusals = [failure]
        elif not edited or edited.isspace():
            refusals = ["the copy is empty"]
        elif b"\0" in edited and b"\0" not in base:
            refusals = ["the copy contains NULs (save it as UTF-8)"]
        elif unknown := find_unknown_name(copy_path):
            refusals = [f"{unknown} (in the copy)"]
        else:
            what_now = "(e)dit again, (w)rite the other changes, e(x)it"
            copies, edited = [edited], b""      # apply_edit() frees it
            try:
                refusals = apply_edit(file, base, copies.pop(), quiet, partly=answer == "w")
            except UsageError as error:
                raise UsageError(f"{error}; your copy is {copy_path}") from None
            except OSError:
                file.say(f"the copy is kept: {copy_path}")
                raise
        if not refusals:
            shutil.rmtree(folder, ignore_errors=True)
            return 0
        for why in refusals:
            file.say(why)
        file.say(f"{'not all' if answer == 'w' else 'nothing'} was written; the copy is kept: {copy_path}")
        if answer == "w" or not (os.isatty(0) and os.isatty(2)):
            return 1
        answer = ""
        with suppress(EOFError):
            answer = input(f"What now? {what_now}: ").strip().lower()[:1]
        if f"({answer})" not in what_now or answer == "x":
            return 1


def set_pause(file: JobFile, pauses: bool, quiet: bool) -> int:
    """Put `#RUN pause` above the first job, or remove the first one; return 1 if that was done before.

    Raises UsageError and OSError (ESTALE: the file was replaced) as apply_edit().
    """
    with locks_to_replace(file) as lock_fd:
        contents = read_to_end(file.reader)
        # above all jobs: a line below that is lost, or set to new, waits, too
        found = (line for line in Scan(file.reader, file.start, None if pauses else b"", with_directives=True)
                 if line.state != DIRECTIVE or NO_DIRECTIVES.with_directive(line).barrier_kind == "pause")
        line, below = next(found, None), next(found, None)
        is_paused = line is not None and line.state == DIRECTIVE
        if line and is_paused is not pauses:
            stop = line.offset + is_paused * len(b"#%b\n" % line.text)
            _replace_file(file, lock_fd, [b"#RUN pause"] * pauses, contents, line.offset, stop)
        elif pauses and not line:
            with open_to_append(file.real_path) as fd:
                append_locked(file, fd, b"#RUN pause\n")
    where = f"#RUN pause in line {line.number}" if line else "#RUN pause in the last line"
    if is_paused is pauses:
        file.say(f"is paused already ({where})" if pauses else "is not paused")
    elif not quiet:
        file.say(f"paused ({where}); running jobs go on (--go ends the pause)" if pauses
                 else f"goes on ({where} is removed)" if not below
                 else f"goes on up to the #RUN pause in line {below.number - 1} ({where} is removed)")
    return int(is_paused is pauses)


def find_unknown_name(path: str) -> str:
    """Return the first after= of an edited copy with an unknown name; '': none, or not below a wrong #RUN."""
    above = Above()
    with job_file(path, network=False) as copy:
        for directive in Scan(copy, first_line_offset(copy), states=b"", with_directives=True):
            above.enter(directive)
    return above.scope.error if ": after=" in above.scope.error else ""


def run_editor(copy_path: str) -> str:
    """Let the shell run $VISUAL, $EDITOR or vi on a file; return how it failed (exit -9: killed by signal 9),
    or ''.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    old_handler = signal.signal(signal.SIGINT, lambda *_: None)     # Ctrl-C is for the editor
    try:
        # by a shell, because the variable can also have arguments
        exit_code = subprocess.run(["sh", "-c", f'exec {editor} "$1"', "sh", copy_path]).returncode
        why = f"exit {exit_code} (set VISUAL or EDITOR)" if exit_code else ""
    except BlockingIOError as error:
        why = error_text(error) + TOO_MANY_PROCESSES
    finally:
        signal.signal(signal.SIGINT, old_handler)
    return f"the editor '{printable(editor)}' failed: {why}" if why else ""


# ======== Lists =============================================================================================
#
# Values replace the placeholders of a template, quoted for the shell.  The columns of a list have numbers.
# If the template has a placeholder with a name, they have names, too: those in the first row.

# `{}`, `{2/.}`, `{#}`, `{beta}`, and those of other tools, such as `{%}`; not the shell's `{a,b}`, `{1..3}`,
# `{ cmd; }`
PLACEHOLDER = re.compile(
    rb"\{(?![\w-]+\.\.[\w-]+\})(?P<name>|[^\s{},'\"`][^{},'\"`]*?)(?P<suffix>|\.|/|//|/\.)\}"
)
NUMBERED = re.compile(rb"\{(?:\d*(?:|\.|/|//|/\.)|#)\}")       # a placeholder that needs no column's name
SEPARATORS = {".csv": ",", ".tsv": "\t"}
# that end a command which another line has begun
SCRIPT_LINE = re.compile(rb"\s*(?:then|elif|else|fi|do|done|esac)(?:[\s;]|\Z)")
MAKE_MESSAGE = re.compile(rb"make(?:\[\d+\])?: ")
SWEEP_WORDS = (":::", ":::+", "::::", "::::+")      # of GNU parallel; all but ::: are refused


def without_extension(path: bytes) -> bytes:
    """Return a path without extension: b'a/b.c' -> b'a/b', b'.b' -> b''."""
    stem, dot, extension = path.rpartition(b".")
    return stem if dot and b"/" not in extension else path


def directory(path: bytes) -> bytes:
    return os.path.dirname(path.rstrip(b"/") or path) or b"."


FUNCTION_OF_SUFFIX: dict[bytes, Callable[[bytes], bytes]] = {
    b"": bytes,
    b".": without_extension,
    b"/": os.path.basename,
    b"//": directory,
    b"/.": lambda value: without_extension(os.path.basename(value)),
}


def fill_template(
    template: bytes, number: int, all_values: Sequence[bytes], columns: Sequence[bytes] = ()
) -> bytes:
    """Return a command: a template with quoted values, as in GNU parallel: 'convert {} {.}.png'.

    all_values: for {} {.} {/} {//} {/.}, for example the line of a list.  columns: for {1} {1.} {2/} ...
    Raises ValueError if a column is missing.  number: for {#}.
    """
    def value_of(placeholder: re.Match[bytes]) -> bytes:
        # called by re.sub(), below: what replaces a placeholder
        name = placeholder["name"]
        values = all_values
        if name.isdigit():
            values = columns[int(name) - 1:int(name)]
        elif name == b"#":
            values = [b"%d" % number]
        elif name:                      # text within quotes
            return placeholder[0]
        if not values:
            raise ValueError(f"no value for {{{to_text(name)}}} ({plural(len(columns), 'column')}; a table "
                             "with ; needs --colsep ';')")
        parts = [*map(FUNCTION_OF_SUFFIX[placeholder["suffix"]], values)]
        if is_evaluated(template, placeholder[0]):
            for part in itertools.filterfalse(HARMLESS_VALUE.fullmatch, parts):
                raise ValueError(f"the shell would evaluate '{display_text(part)}' (pass it as an argument: "
                                 "sh -c 'show \"$1\"' sh {})")
        misread = misread_value_pattern(template, placeholder[0])
        return b" ".join(b"'%b'" % part if misread.fullmatch(part) else quote(part) for part in parts)

    return PLACEHOLDER.sub(value_of, template)


# ---- placeholders beside other text ------------------------------------------------------------------------
#
# quote() leaves a value bare that has only letters, digits and _@%+=:,./- .  In some places a shell takes a
# bare word for something else than text: the number in `echo {n}>out` for a descriptor.  There it gets
# quotes, too.  In `{var}=1 sim` it stays the name of a variable: the template says so.

# A row: patterns of the text before a place, the bare value and the text after it; an example
NO_TEXT = [row.split()[:3] for row in rb"""
    \$(?:\w+|\W)(?::[^\s/]*)?       .*              .*          $X{n}: a longer name, or a modifier of zsh
    \[\[\s(?:(?!\]\]).)*            .*              .*          [[ x =~ {a} ]]: an operator, a pattern
    [<>]&\s*                        -.+             .*          >&{a}: closes a descriptor
    \{(?:[^\s{}]|\{[^\s{}]*\})*     .*[,.].*        .*          {{a}}: several words
    \{(?:[^\s{}]|\{[^\s{}]*\})*     \w+             \S*\}[<>]   {{a}}>f: a variable for a descriptor
    .*                              \d+             \d*&?[<>]   {n}>f: a descriptor
    .*                              (?:.*:)?=.*     .*          =ls: the path of ls, in zsh
    (?:\A|[;&|({!]|\b(?:if|then|el\w+|do|while|until)\s)\s*(?:\w+=\S*\s+)*      [A-Za-z_]\w*\+?=.*      .*
    (?:\A|[\s;&|({!])   if|then|elif|else|fi|for|while|until|do|done|case|in|esac|select|time   [\s;&|)]|\Z
    (?:\A|[\s;&|({!])   function|coproc|repeat|foreach|end|noglob|nocorrect|namespace           [\s;&|)]|\Z
""".strip().splitlines()]


@functools.cache
def misread_value_pattern(template: bytes, placeholder: bytes) -> re.Pattern[bytes]:
    """Return a pattern of the values that need quotes here, though quote() would leave them bare.

    In a place of this placeholder a shell can take such a value for something else than text, for example
    the number in `echo {n}>out` for a descriptor.  If the placeholder is there several times, and one place
    needs the quotes, all get them: TemplateReader takes only equal words for the same value.
    """
    values = [value for before, value, after in NO_TEXT for match in PLACEHOLDER.finditer(template)
              if match[0] == placeholder and re.search(b"(?:%b)\\Z" % before, template[:match.start()])
              and re.match(after, template[match.end():])]
    return re.compile(rb"(?=[\w@%%+=:,./-]+\Z)(?:%b)" % b"|".join(values))


# ---- placeholders that are evaluated -----------------------------------------------------------------------
#
# Some builtins evaluate their arguments, also quoted ones: `[ -v 'x[$(rm f)]' ]` runs rm.  There a value may
# be a number or a name.

HARMLESS_VALUE = re.compile(rb"[\w.+-]*")
# A place is \0.  Assignments before the name of a command, or of a builtin that runs another
EVALUATED = re.compile(rb"""
      (?:\A|[;&|({!\n]|\b(?:if|then|elif|else|while|until|do|time|command|builtin|exec)\s)\s*(?:\w+=\S*\s+)*
      ['"\\]?
      (?: (?:eval|let|trap|read|unset|mapfile|readarray|getopts|integer|float|compgen|shift|ulimit)
          ['"]?\s[^;&|]*
        | (?:declare|typeset|local|readonly|export)\s (?:[^;&|]*\s)? (?:-\w*[iaAn]\w*\s[^;&|]*)?
        | print(?:f\s+-v|\s+-\w*v)\s*\S*
      )\0
    | (?:\[\[\s(?:(?!\]\]).)* | (?:\btest|\[)\s[^;&|]*)
      (?: -(?:[vR]|eq|ne|lt|le|gt|ge)\s+\S*\0 | \0\S*\s+-(?:eq|ne|lt|le|gt|ge)\s )
    # `bash run.sh -c {}` and `flock file gzip -c {}` give the value to another program
    | (?<![\w.-])(?:(?:ba|da|z|k|mk|a|ya|fi)?sh\d*\s+
          (?:(?:[-+$]|\d*[<>]&?)[^\s;&|]*\s+(?:[^\s;&|-][^\s;&|]*\s+)?)*
        | flock\s+(?:-[^\s;&|]*\s+(?:[\d.]+\s+)?)*[^\s;&|-][^\s;&|]*\s+ | (?:script|su)\s(?:[^;&|]*\s)?
      )-\w*c\s+(?:--\s+)?\S*\0
    | \bset\s[^;&|]*\0.*\(\((?:(?!\)\)).)*\$\{?[\d@*]
    # declare -i n; n={}
    | \b(?:integer|(?:declare|typeset|local|export|readonly)\s+-\w*i\w*)\s
      [^;&|]*\b(\w+)\b.*[\s;&|]\1\+?=\S*\0
    # n={}; echo $((n + 1))
    | \b(\w+)(?:\[\w*\])?\+?=\S*\0.* (?: \(\((?:(?!\)\)).)* | \$\[[^]]* | \blet\s[^;&|]* | \w\[
        | \$\{\w+: | \$\{! | \$\{(?=\w+@P)
        | \[\[\s(?:(?!\]\]).)*-(?:v|eq|ne|lt|le|gt|ge)\s+
        | \[\[\s(?:(?!\]\]).)*(?=\$?\w+\s+-(?:eq|ne|lt|le|gt|ge)\s)
      ) \$?\{?\b\2\b
""", re.VERBOSE | re.DOTALL)


@functools.cache
def is_evaluated(template: bytes, placeholder: bytes) -> bool:
    """Return True if a shell evaluates the value of a placeholder, as far as can be seen."""
    return EVALUATED.search(template.replace(placeholder, b"\0")) is not None


# ---- placeholders within quotes ----------------------------------------------------------------------------
#
# A quoted value inside quotes of the template would close them, and the shell would run the contents of the
# value.  So a placeholder is allowed only if no quotes are open before it: only characters that quote
# nothing, and closed quotes without a substitution, inside which quoting starts again.  That refuses more
# than necessary, but needs no shell grammar.

UNQUOTED_TEXT = re.compile(rb"""(?:
    [^'"`\\$([~=]
    | \[(?![^]\s]*\Z)                       # [{a}] is a pattern, and x[{a}] arithmetic, also of quoted text
    | (?<=[^\s=:;&|(<>])~ | ~(?![\w.+-]*\Z)  # zsh and ksh93 take ~'a' for a home
    | (?<=\S)= | =(?!\Z)                     # zsh takes ='a' for the path of a command
    | \((?!\()                              # (( begins arithmetic, which evaluates quoted text
    | \$(?=[^'"{[])                         # $' and $" quote, and a value begins with a quote
    | \$\{[^{}'"`\\$]*\}
    | \\.
    | '[^']*'
    | "(?: [^"`\\$] | \\. | \$(?![({[]) | \$\{[^{}'"`\\$]*\} )*"
)*""", re.VERBOSE)


def is_unquoted(placeholder: re.Match[bytes]) -> bool:
    return UNQUOTED_TEXT.fullmatch(placeholder.string, 0, placeholder.start()) is not None


UNQUOTABLE = ("%s is within quotes, or after \\, `, ~, [, ((, a first =, or a $ that quotes or expands: a "
              "value cannot be quoted there (remove your quotes or $, quote the ~, [ or = as '[', or set a "
              "variable first: v={}; show \"$v\")")


# ---- placeholders with names -------------------------------------------------------------------------------

def find_placeholders(template: bytes) -> list[re.Match[bytes]]:
    """Return the placeholders of a template; one with a name within quotes is text, as awk has it."""
    return [placeholder for placeholder in PLACEHOLDER.finditer(template)
            if NUMBERED.fullmatch(placeholder[0]) or is_unquoted(placeholder)]


def replace_names_by_numbers(template: bytes, first_row: Sequence[bytes], has_header: bool = False) -> bytes:
    """Return a template with numbers for the names of columns: 'sim {beta}' -> 'sim {2}'.

    first_row: of the list.  has_header: the first row is no job but has the names of the columns.  If one of
    these is `3` or `#`, also `{3}` or `{#}` is a name.

    Raises ValueError for a name that the first row does not have, or has twice.  Within quotes, `{beta}` is
    text if the first row does not have the name; otherwise it is an error.
    """
    def number_of(placeholder: re.Match[bytes]) -> bytes:
        # called by re.sub(), below: what replaces a placeholder
        name = placeholder["name"]
        is_outside_quotes = is_unquoted(placeholder)
        is_number = NUMBERED.fullmatch(placeholder[0])
        # leave a number that is no name, and text within quotes
        if (is_number and not has_header) or (name not in first_row and (is_number or not is_outside_quotes)):
            return placeholder[0]
        shown = display_text(placeholder[0])
        if not is_outside_quotes:
            raise ValueError(UNQUOTABLE % shown)
        if name == b"%":
            raise ValueError(f"no placeholder {shown} (write $RUNMAKER4_SLOT)")
        if (count := first_row.count(name)) != 1:
            columns = ", ".join(map(display_text, first_row)) or "none has a name"
            raise ValueError(f"{count or 'no'} columns of the name in {shown} (columns: {columns}; quote it "
                             "if it is text; a table with ; needs --colsep ';')")
        return b"{%d%b}" % (first_row.index(name) + 1, placeholder["suffix"])

    return PLACEHOLDER.sub(number_of, template)


# ---- a template backwards ----------------------------------------------------------------------------------

# a word for the shell, without expansions
SHELL_WORD = rb"""(?:[^\s'"\\$`;&|<>()]|\\.|'[^']*'|"(?:[^"\\$`]|\\.)*")+"""


class TemplateReader:
    """Finds the values from which a template has made a command."""

    def __init__(self, text: str) -> None:
        """Compile two patterns that match each command that the template can have made.

        In one the words take as much as they can, in the other as little: read() compares what both find.
        Raises ArgumentTypeError, as parse_template().
        """
        template = parse_template(text)
        self.names: list[str] = []      # of the values: what is between { and }; of {} "value"
        pattern = b""
        end = 0
        for placeholder in find_placeholders(template):
            pattern += re.escape(template[end:placeholder.start()])
            end = placeholder.end()
            name = to_text(placeholder[0][1:-1]) or "value"
            if name in self.names:      # the same value again
                pattern += b"(?:\\%d)" % (self.names.index(name) + 1)
            else:
                self.names.append(name)
                pattern += b"(%b)" % SHELL_WORD
        pattern += re.escape(template[end:])
        self._longest_words = re.compile(pattern)
        self._shortest_words = re.compile(pattern.replace(SHELL_WORD, SHELL_WORD + b"?"))

    def find_values(self, command: bytes) -> Sequence[str | None]:
        """Return the values in a command, one for each of `names`; None for each if they are not certain.

        That is so if the template cannot have made the command, or in several ways.  If the way with the
        longest words from the left is also that with the shortest, there is no other.
        """
        longest = self._longest_words.fullmatch(command)
        shortest = self._shortest_words.fullmatch(command)
        if not longest or not shortest or longest.groups() != shortest.groups():
            return [None] * len(self.names)
        # shlex is slow, and most values are not quoted
        return [shlex.split(word)[0] if re.search(r"""['"\\]""", word) else word
                for word in map(to_text, longest.groups())]


# ---- list files --------------------------------------------------------------------------------------------

def read_rows(source: Source, colsep: str | re.Pattern[bytes] | None) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yield the text and the columns of each row of a list; for a row of empty cells, no columns.

    colsep: the separator of columns.  If it is a character, read the list as CSV (RFC 4180): a row can have
    several lines.  Otherwise it is a pattern, and a line is a row.  None: blanks.  Raises ValueError; if the
    list is not CSV, source.line_number is then that of the first line of the row.
    """
    if not isinstance(colsep, str):
        for line in source:
            refuse_carriage_return(line)
            columns = [*map(bytes.strip, colsep.split(line) if colsep else line.split())]
            yield line, columns if any(columns) else []
        return
    source_lines = iter(source)
    first_line = next(source_lines, b"")
    if re.fullmatch(rb"sep=.\r?", first_line):          # as Excel writes it
        colsep = chr(first_line[4])
    else:
        source_lines = itertools.chain(filter(None, [first_line]), source_lines)
    lines = []                      # of the row

    def keep_as_text(line: bytes) -> str:
        lines.append(to_text(line) + "\n")
        return lines[-1]

    # csv drops the quotes, within which outer blanks are a part of the value
    cell = r'(?:\A|SEP)(?:(?!SEP) )*(?:(")(?:[^"]|"")*"|[^SEP]*)'.replace("SEP", re.escape(colsep))
    rows = csv.reader(map(keep_as_text, source_lines), delimiter=colsep, skipinitialspace=colsep != " ",
                      strict=True)
    try:
        for row in rows:
            # In tables of many programs a `"` is text.  csv would join rows there, and their jobs would be
            # lost.  A quoted cell of several lines does not look like that, unless it has separators.
            if sum(line.count(colsep) >= len(row) - 1 for line in lines) > 1:
                raise csv.Error('a " joins several rows')
            text = "".join(lines).rstrip("\r\n")
            lines.clear()
            columns = [to_bytes(value) if quote_mark else to_bytes(value).strip()
                       for value, quote_mark in zip(row, re.findall(cell, text))]
            yield to_bytes(text), columns if any(columns) else []
    except csv.Error as error:
        source.line_number -= len(lines) - 1  # the first one of the row
        raise ValueError(
            f"not CSV: {error} (if a \" is text: --colsep with a regular expression, such as '\\t' or '[,]')"
        ) from None


def refuse_line_of_other_program(text: bytes, number: int) -> None:
    """Raise ValueError for a line that another program understands in another way."""
    if number == 1 and text.startswith(b"#!"):
        raise ValueError("is a script, no list (add it as one job, or remove this line)")
    if number == 1 and text.startswith(b'{"'):
        raise ValueError("is JSON, no table (this makes one: jq -rs '(.[0] | keys_unsorted) as $k | $k, "
                         "(.[] | [.[$k[]]]) | @csv' LIST > LIST.csv)")
    if text.startswith(b"#DISBATCH"):
        raise ValueError("is a directive of disBatch (write a #RUN directive, or remove it)")


def refuse_carriage_return(line: bytes) -> None:
    if b"\r" in line:
        raise ValueError(
            "contains a carriage return (convert line ends CR LF by tr -d '\\r', CR by tr '\\r' '\\n')"
        )


def command_lines(source: Source, skipped: Counter[str]) -> Iterator[bytes]:
    """Yield a job line for each command of a list (--add-list without --template), and the directives.

    Skip, and count, blank lines and comments.  Raises ValueError for a line that is no command of its own.
    """
    for line in source:
        refuse_line_of_other_program(line, source.line_number)
        refuse_carriage_return(line)
        if not (text := line.lstrip()):
            skipped["blank"] += 1
        elif text.startswith(b"#") and not is_directive(line):
            skipped["comment"] += 1
        elif SCRIPT_LINE.match(line):
            raise ValueError("is a part of a script, no command (add the script as one job)")
        elif MAKE_MESSAGE.match(line):
            raise ValueError("is a message of make (try --no-print-directory; no Makefile may call make)")
        else:
            yield new_line(line)


def lines_of_table(source: Source, template: bytes, colsep: str | re.Pattern[bytes] | None,
                   job_numbers: Iterator[int], skipped: Counter[str]) -> Iterator[bytes]:
    """Yield a job line for each row of values in a list (--add-list with --template), and the directives.

    Skip, and count, blank lines.  If the template has names, the first row has those of the columns, and is
    no job.  colsep: as for read_rows().  job_numbers: for {#}.  Raises ValueError.
    """
    has_header = not all(NUMBERED.fullmatch(placeholder[0]) for placeholder in find_placeholders(template))
    is_regular = has_header or isinstance(colsep, str)      # each row has as many columns as the first
    width = 0                                               # of the first row; 0: none yet
    for text, columns in read_rows(source, colsep):
        refuse_line_of_other_program(text, source.line_number)
        if is_directive(text):
            yield new_line(text)
            continue
        if not columns:
            skipped["blank"] += 1
            continue
        if not width:
            width = len(columns)
            if is_regular:
                template = replace_names_by_numbers(template, [*map(bytes.strip, columns)], has_header)
            if has_header:
                continue
        if is_regular and len(columns) != width:
            raise ValueError(f"has {plural(len(columns), 'column')}, and the first row {width} (a table "
                             "with ; needs --colsep ';')")
        if text.startswith(b"#"):       # not skipped: #ff0000 can be a value
            skipped["comment-like job"] += 1
        command = fill_template(template, next(job_numbers), [text], columns)
        if b"\n" in command:
            raise ValueError("a value contains a newline, and a job is one line")
        yield job_line(command)


def without_known_jobs(file: Reader, new_lines: bytearray) -> tuple[bytearray, int]:
    """Return the new lines without the jobs that the file has already, in any state, and how many these are.

    Two equal lines are two jobs: of a command that the list has three times and the file twice, one remains.
    Directives remain if a job does.
    """
    lines = split_lines(new_lines)
    known = Counter(b". " + line.command for line in find_command_lines(
        file, first_line_offset(file), {line[2:] for line in lines}))
    remaining = bytearray()
    for line in lines:
        known[line] -= 1
        if known[line] < 0:
            remaining += line + b"\n"
    return (remaining if re.search(rb"(?m)^\. ", remaining) else bytearray(),
            len(lines) - remaining.count(b"\n"))


# ======== Command line ======================================================================================
#
# Each refused line is reported, and then the exit status is 1; it is 2 if nothing was started.


def parse_state(text: str) -> bytes:
    """Return the state that a word or byte names: 'new' and '.' return b'.'."""
    state = STATES.get(text) or os.fsencode(text)
    if len(state) != 1 or state in b"#/" or not b"!" <= state <= b"~":
        raise ArgumentTypeError(
            f"not a state: '{display_text(state)}' ({', '.join(STATES)}; or one printable character, not # "
            "or /)"
        )
    return state


def parse_settable_state(text: str) -> bytes:
    new_state = parse_state(text)
    if new_state == RUNNING:
        raise ArgumentTypeError("only runners set r (. is new)")
    return new_state


def parse_states(text: str) -> bytes:
    return b"".join(os.fsencode(word) if STATE_LETTERS.fullmatch(word) else parse_state(word)
                    for word in text.split(","))


def parse_template(text: str) -> bytes:
    """Return a command with placeholders, such as 'simulate {1}'; 'wc' -> 'wc {}'.

    An argparse type.  Refuse a directive, and quotes around a placeholder such as {} or {1}.
    replace_names_by_numbers() checks names, once the columns are known.
    """
    template = os.fsencode(text)
    try:
        new_line(template)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    if is_directive(template):
        raise ArgumentTypeError(f"not a command: '{printable(text)}'")
    # {#} may be within quotes, unless a shell can misread a number there: it needs no quotes of ours
    quoted = [placeholder[0] for placeholder in PLACEHOLDER.finditer(template)
              if not is_unquoted(placeholder) and (
                  placeholder[0] != b"{#}"
                  or misread_value_pattern(template, placeholder[0]).fullmatch(b"1"))]
    wrong = [*filter(NUMBERED.fullmatch, quoted)]
    # without a place for a value, the value comes at the end, as with 'wc'
    if all(placeholder[0] == b"{#}" for placeholder in find_placeholders(template)):
        if not UNQUOTED_TEXT.fullmatch(template + b" "):
            wrong += [*quoted, b"a value at the end"]
        template += b" {}"
    if wrong:
        raise ArgumentTypeError(UNQUOTABLE % display_text(wrong[0]))
    return template


def parse_separator(text: str) -> str | re.Pattern[bytes]:
    """Return a character, for CSV, or a longer regular expression."""
    if len(text) == 1 and text not in '"\r\n':
        return text
    with suppress(re.error):
        pattern = re.compile(os.fsencode(text))
        # one that matches nothing would split between all characters
        if not pattern.search(b"") and not pattern.groups:     # split() returns the groups, too
            return pattern
    raise ArgumentTypeError(
        f"not a regular expression for the separator of columns: '{printable(text)}' "
        r"(such as ',', '\t' or '\|')"
    )


ADD_ACTIONS = ("add", "add_list")
CHANGE_ACTIONS = ("set", "cancel")
STDOUT = "-"                    # in the place of FILE: print the new lines
EXAMPLES = f"""\
Run failed jobs again, cancel one, edit while jobs run, add, hold:
    {PROG} --set=new --state=failed,error runs.txt
    {PROG} --cancel runs.txt 17
    {PROG} --edit runs.txt
    {PROG} runs.txt --add 'simulate --seed 7' 'simulate --seed 8'
    {PROG} runs.txt --add --template 'simulate {{1}} {{2}}' ::: 1 2 3 ::: a b
    {PROG} --set=held --state=new runs.txt 5-9"""


def make_parser() -> Parser:
    # docs/install/make.py also calls this, for the man page and the completion
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
    add("--edit", action="store_true", help="edit a copy by $VISUAL, $EDITOR or vi, and merge")
    add("-l", "--list", action="store_true", help="print LINE STATE COMMAND [of all]")
    add("-s", "--set", type=parse_settable_state, metavar="STATE",
        help="set the state: new (.), held (x), done (d), ...")
    add("--pause", action="store_true", help="start nothing more: #RUN pause above all jobs")
    add("--go", action="store_true", help="remove the first #RUN pause")
    add("--cancel", action="store_true", help="set c, kill running jobs on any host, wait for them")
    add = parser.add_argument_group("select jobs (all conditions must hold)").add_argument
    add("file", metavar="FILE", nargs="?", type=check_job_file_path, help="the job file")
    add("lines", nargs="*", type=parse_line_ranges, metavar="LINE",
        help="line numbers, or ranges: 3 5-9, or 3,5-9")
    add("-a", "--all", action="store_true",
        help=f"jobs in states {' '.join(to_text(OUR_STATES))} (--list: in any)")
    add("--state", type=parse_states, action="append", metavar="STATES",
        help="jobs in these states, for example failed,error or '!e'")
    add("--match", metavar="TEXT", help="... with this command, or shell pattern for all of it")
    add = parser.add_argument_group(
        "append lines (all or none; FILE is created if there is none; -: print them)"
    ).add_argument
    add("--add", action="extend", nargs="*", metavar="CMD",
        help="jobs or directives; FILE comes first.  --add --template T ::: A B ::: 1 2: a job for each "
             "combination of {1} and {2}")
    add("--add-list", action="append", metavar="LIST",
        help="one job or #RUN directive per line of LIST (-: stdin)")
    add("--new", action="store_true", help="... only the jobs that FILE lacks, in any state")
    add("--template", action=Once, type=parse_template, metavar="T",
        help="... the command: {} is the line, quoted for the shell, {.} without extension, {/} base name, "
             "{/.} both, {//} directory, {1} {2/.} {NAME} of columns (NAME: from the first line), {#} its "
             "number [at the end: {}]")
    add("--colsep", type=parse_separator, metavar="SEP",
        help="... the separator of columns: a character, as in CSV, or a regular expression [*.csv: comma, "
             "*.tsv: tab, otherwise blanks]")
    add = parser.add_argument_group("file system and output").add_argument
    add("--single-host", action="store_true", help="no other host uses the file: accept any file system")
    add("-q", "--quiet", action="store_true", help="do not report the changes")
    add_general_options(parser)
    return parser


def parse_options(argv: Sequence[str]) -> Namespace:
    """Return the options, with `sweep`, the `selection` of jobs, and the one `action`, such as "add_list"."""
    parser = make_parser()
    words = [*itertools.takewhile(lambda word: word not in SWEEP_WORDS, argv)]
    if "--" in words:                   # parse_intermixed_args() forgets it (until Python 3.13)
        start = words.index("--") + 1
        words[start:] = map(as_argument, words[start:])
    options = parser.parse(words, intermixed=True)
    # the values after each `:::`: for '::: a b ::: x' [[b'a', b'b'], [b'x']]
    sweep_words = argv[len(words):]
    for word in sweep_words:
        if word in SWEEP_WORDS[1:]:
            raise UsageError(
                f"{word} is not supported (for linked values, or values from a file: --add-list FILE "
                "--template T)"
            )
    sweep = options.sweep = [[*map(os.fsencode, values)] for is_mark, values
                             in itertools.groupby(sweep_words, ":::".__eq__) if not is_mark]
    if len(sweep) < sweep_words.count(":::"):
        raise UsageError("give a value after each ::: (see --help)")
    options.selection = Selection(
        [*itertools.chain.from_iterable(options.lines)],
        b"".join(options.state or ()),
        None if options.match is None else os.fsencode(options.match),
    )
    if options.file is None:
        parser.error("missing FILE; it comes before options that take several values")
    actions = [option for option in ("list", "edit", "pause", "go", *CHANGE_ACTIONS, *ADD_ACTIONS)
               if getattr(options, option) not in (None, False)]
    if len(actions) != 1:
        parser.error("give exactly one of --set, --list, --cancel, --edit, --pause, --go, --add, --add-list")
    action = options.action = actions[0]
    option = f"--{action.replace('_', '-')}"
    has_selection = options.selection.has_conditions or options.all
    if action in CHANGE_ACTIONS and not has_selection:
        parser.error(f"{option} requires lines, --state, --match or --all")
    if action in (*ADD_ACTIONS, "edit", "pause", "go") and has_selection:
        parser.error(f"{option} takes no selection of lines")
    template = options.template
    if sweep and (action != "add" or options.add or not template):
        parser.error("::: requires --add --template T before it")
    if template and not (sweep or action == "add_list"):
        parser.error("--template requires --add-list, or --add and :::")
    # {} and {#} need no columns
    has_columns = template and any(
        placeholder["name"] not in (b"", b"#") for placeholder in find_placeholders(template)
    )
    if options.new and action not in ADD_ACTIONS:
        parser.error("--new requires --add or --add-list")
    if options.colsep and not (action == "add_list" and has_columns):
        parser.error("--colsep requires --add-list, and --template with a column, such as {1} or {NAME}")
    return options


def lines_to_add(options: Namespace, skipped: Counter[str]) -> Generator[bytes, None, None]:
    """Yield the new lines for --add or --add-list; count what is skipped."""
    if options.sweep:
        template = replace_names_by_numbers(options.template, ())
        # each combination of the values after each `:::`; the last value changes fastest
        for job_number, values in enumerate(itertools.product(*options.sweep), 1):
            yield job_line(fill_template(template, job_number, values, values))
        return
    for text in options.add or ():
        if text == "-":
            raise UsageError("--add takes jobs, not '-' (for lines of stdin: --add-list -)")
        yield new_line(os.fsencode(text))
    job_numbers = itertools.count(1)
    for path in options.add_list or ():
        with open_source(path) as source:
            if options.template:
                yield from lines_of_table(
                    source, options.template,
                    options.colsep or SEPARATORS.get(os.path.splitext(path)[1].lower()), job_numbers, skipped)
            else:
                yield from command_lines(source, skipped)


def change_states(file: JobFile, options: Namespace) -> int:
    """Set or cancel the selected lines (--set, --cancel), and report the changes; return the exit status.

    It is 1 if no job was selected, or some were refused.  Raises OSError (ESTALE: the file was replaced, and
    the new one can lack the changes).
    """
    change_counts = ChangeCounts(file, names_left=0 if options.quiet else NAMED_LINES)
    state: bytes = CANCELLED if options.cancel else options.set
    renewed: set[int] = set()

    def change(line: Line) -> None:
        if refusal := set_state(file, line, state):
            change_counts.add_refusal(line.number, refusal)
            return
        change_counts.changed[line.state] += 1
        if state == NEW:
            renewed.add(line.number)

    try:
        file.open_to_write()                    # check_lock_file() has not if it saw no file
        if options.cancel:
            cancel_selected(file, options.selection, change_counts)
        else:
            # from the bottom up, or a barrier would open for lines that are held above lines that are not
            # yet; to be released, from the top down
            change_lines(file, options.selection, change, change_counts, top_down=state == NEW)
            if any(change_counts.changed.values()):
                check_not_replaced(file, file.fd)
            if done := find_done_below(file, renewed) if renewed else []:
                file.say(f"{name_lines(done)}: d, and waited by after= for what is new again")
    finally:
        # also after a signal or an error: report what was done
        change_counts.say_notes()
        summary = change_counts.summary(state)
        if summary and not options.quiet:
            file.say(summary)
    if not summary and not change_counts.refused:
        file.say(no_match_text(options.selection.pattern))
    return 0 if summary and not change_counts.refused else 1


def find_done_below(file: JobFile, renewed: Container[int]) -> list[int]:
    """Return the numbers of lines `d` that have after= a name of these lines, or of one that is returned."""
    above, done, states = Above(), [], b""
    scan = file.scan_lines(b"", with_directives=True)
    while line := scan.next(states):
        if line.state == DIRECTIVE:
            above.enter(line)
        elif line.state == DONE or line.number in renewed:
            above.record_bad(line)              # so that find_awaited() tells of those that wait for it
            done += [line.number] * (line.state == DONE)
        settings = above.scope.settings
        states = NEW * (settings.name != "") + DONE * (settings.find_awaited() is not None)
    return done


def no_match_text(pattern: bytes | None) -> str:
    """Return that no job matches, with a hint if a pattern that is part of a command could match."""
    if not pattern or b"*" in pattern:
        return "no matching jobs"
    return f"no matching jobs (a pattern must match the whole command: '*{display_text(pattern)}*')"


def list_lines(file: JobReader, selection: Selection) -> int:
    """Print number, state and command of the selected jobs (--list); return the exit status.

    It is 1 if the conditions select no job, or a given line number is no job.  Without conditions, an empty
    list is a success.
    """
    change_counts = ChangeCounts(file)
    count = print_lines(
        b"%d %s %s" % (line.number, describe_state(line.state), line.command)
        for line in selection.lines(file, change_counts, default_states=None)
    )
    change_counts.say_notes()
    none_selected = selection.has_conditions and not count
    if none_selected and not change_counts.refused:
        file.say(no_match_text(selection.pattern))
    return 1 if none_selected or change_counts.refused else 0


def say_jobs_below_end(file: JobFile) -> list[Line]:
    """Warn about new jobs below a `#RUN end`, where --follow runners do not see them; return all directives.

    Call it without the append lock, for which other processes would have to wait during the scan.
    """
    try:
        directives = list(file.scan_lines(b"", with_directives=True))
    except FileNotFoundError:
        raise FileChangedError from None
    end_line = next((line for line in directives if NO_DIRECTIVES.with_directive(line).below_end), None)
    if end_line and Scan(file.reader, end_line.offset, NEW).next():
        file.say(f"line {end_line.number} is a #RUN end; --follow runners do not run the jobs below it "
                 "(delete it by --edit, then --add '#RUN end')")
    return directives


def describe_last_settings(directives: Sequence[Line]) -> str:
    """Return ', with host=bob of line 3' for jobs below these directives; '': without settings."""
    # the last one with settings decides; after a malformed one there are none
    each_alone = map(NO_DIRECTIVES.with_directive, reversed(directives))
    line = next((one.settings.line for one in each_alone if one.settings.line or one.error), None)
    if line and (settings := line.text[3:].strip()):
        return f", with {display_text(settings)} of line {line.number}"
    return ""


def has_no_runner(file: JobFile) -> bool:
    """Return True if it is sure that no runner is at work."""
    # a --follow runner that has waited for the file sees it, and the lock file, an interval later
    return (time.time() - os.fstat(file.lock_table.fd).st_mtime > 2 * file.interval
            or Scan(file.reader, file.start, OUR_STATES[1:]).next() is not None
            ) and file.has_no_other_users()


def add_lines(options: Namespace, file: JobFile) -> int:
    """Append the lines of --add and the like, to a new file if necessary, and report that; return 0."""
    exists = os.path.lexists(file.path)
    if exists:
        check_for_strays(file.path, file.network, file.say, refuse=False)
    skipped: Counter[str] = Counter()
    known_count = 0                     # jobs that are not added, because the file has them already
    lines = join_new_lines(lines_to_add(options, skipped),
                           file.scan_lines(b"", with_directives=True) if exists else (),
                           can_be_empty=bool(options.add_list))
    with open_and_lock_to_append(file) as fd:
        if options.new:
            with Reader.with_own_fd(fd, file.network) as reader:
                lines, known_count = without_known_jobs(reader, lines)
        if lines:
            append_locked(file, fd, lines)
    directives = say_jobs_below_end(file)
    report_same_fetch(file, directives)
    if options.quiet:
        return 0
    new_count = len(re.findall(rb"(?m)^#RUN", lines))       # of directives
    if new_count:
        # with the last one above, which the new ones can clear
        for text in settings_without_jobs(file.reader, directives[-1 - new_count:]):
            file.say(text)
    file.say("".join([
        plural(lines.count(b"\n"), "line") if lines or known_count else "no line",
        " added",
        *[f", {plural(count, kind)}" for kind, count in skipped.items()],
        f" ({plural(known_count, 'equal one')} in the file already)" if known_count else "",
        describe_last_settings(directives[:len(directives) - new_count]) if lines.startswith(b". ") else "",
        " (no runner is at work)" if has_no_runner(file) else "",
    ]))
    return 0


def run_command(argv: Sequence[str]) -> int:
    """Do the action of the command line, such as --list; return the exit status."""
    options = parse_options(argv)
    path: str = options.file
    adds_lines = options.action in ADD_ACTIONS

    def say(text: str) -> None:
        warn(f"{PROG}: {path}: {text}")

    if path == STDOUT and adds_lines:
        if options.new:
            raise UsageError("--new requires FILE, not - (it adds the jobs that FILE lacks; to look first, "
                             "add to a copy)")
        print_lines(split_lines(join_new_lines(lines_to_add(options, Counter()), (), bool(options.add_list))))
        return 0
    file = None
    try:
        # --list locks nothing, so it works on any file system
        mount = check_mount(path, options.single_host or options.list)
        if options.list:
            os.close(open_job_file(path, os.O_RDONLY))
            check_for_strays(path, mount.network, say)
            return list_lines(JobReader(path, say=say, mount=mount), options.selection)
        file = JobFile(path, say=say, mount=mount)
        if not adds_lines or os.path.lexists(path):
            os.close(open_job_file(path, os.O_RDWR))
            check_lock_file(file)
        if adds_lines:
            return add_lines(options, file)
        if options.edit:
            exit_status = edit(file, options.quiet)
            with suppress(UsageError):          # it cannot be read now
                check_for_strays(path, mount.network, say, refuse=False)
            return exit_status
        if options.pause or options.go:
            return set_pause(file, options.pause, options.quiet)
        check_for_strays(path, mount.network, say)
        return change_states(file, options)
    except BrokenPipeError:                     # from stdout: run_main() handles it
        raise
    except OSError as error:
        if error.errno == errno.ESTALE:
            say("was replaced, and may lack the changes just written (look, and run this again)")
            return 1
        if file and file.was_written:
            say(f"{error_text(error)}, after changes were written (look whether all are there)")
            return 1
        raise UsageError(f"{path}: {error_text(error)}") from None


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(PROG, run_command, argv)


if __name__ == "__main__":
    exit_now(main())
