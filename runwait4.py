#!/usr/bin/env python3
"""runwait4 - look at a job file of runmaker4: wait for jobs, show progress and running jobs, draw finished
runs.

runwait4.py never writes to the file.  A line `r` whose job lock is not held is an orphan, and counts as
error.  Most functions can raise UsageError, which ends the program with a message of one line.

The sections; begin at run_with_options() in The program:

    Text                                    times, sizes and tables as text
    The command line, Waiting, Progress     the options; Watcher, which polls the file
    The journal, Job output                 JournalReader, RunOutput: what runners have recorded
    Matching runs to lines                  which run is a line's last
    Who is at work                          runners, by their presence locks
    Observations                            file, locks and journal, read once, in an order that is right
    Running jobs, Runs of lines, Output of lines, Statistics, The timeline, The report
                                            the views, each on its own
    Checking a directory's locks            --check-locks, which uses no job file
    The program, The page of the report     what each option calls; HTML and script of --report
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
    signal.signal(signal.SIGINT, signal.SIG_DFL)    # Ctrl-C during the imports: no traceback

import argparse
import bisect
import contextlib
import copy
import errno
import fnmatch
import functools
import gc
import itertools
import math
import operator
import re
import shlex
import struct
import time
from argparse import Namespace
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import inf
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, Callable, TypeVar

try:
    import runmaker4  # noqa: F401
except ModuleNotFoundError as missing:
    if missing.name != "runmaker4":
        raise
    print("runwait4.py: runmaker4.py is missing (copy it to where this script is)", file=sys.stderr)
    sys.exit(2)

from runmaker4 import (
    BLOCK,
    DONE,
    END,
    ERROR,
    FAILED,
    KILL_SIGNALS,
    LOCK_FILE_FLAGS,
    MUTEX_OFFSET,
    NAMED_LINES,
    NEW,
    OUR_STATES,
    PLAIN,
    RUNNER_STATES,
    RUNNING,
    SIZE_UNITS,
    START,
    STATE_WORDS,
    STRAY,
    TOO_MANY_PROCESSES,
    Above,
    BlockReason,
    Consumers,
    Counts,
    Fields,
    FileChangedError,
    Holders,
    JobReader,
    Line,
    Mount,
    Once,
    Parser,
    PresenceLock,
    ProcessTable,
    ProgressBar,
    Rate,
    Reader,
    RunFields,
    Say,
    Snapshot,
    Throttle,
    UsageError,
    WireError,
    add_general_options,
    bar,
    bucket_of,
    check_for_strays,
    check_job_file_path,
    check_not_empty,
    check_output_path,
    close_all,
    columns_of,
    connect_in_time,
    copy_owner_and_mode,
    count_states,
    dataclass,
    default_outdir,
    describe_counts,
    describe_if_hanging,
    describe_lines_in_doubt,
    encode,
    error_text,
    exit_now,
    exit_on,
    filled,
    find_block_reason,
    find_held_job_locks,
    find_mount,
    find_reasons,
    find_stray_line,
    human_time,
    is_free,
    is_regular,
    join_first_few,
    keep_trying,
    lazy_import,
    lines_of_piece,
    lock,
    lock_file_of,
    memory_text,
    mount_error,
    name_lines,
    open_direct,
    open_job_file,
    open_lock_file_of,
    open_or_create,
    other_locks,
    parse_line_ranges,
    plural,
    print_bytes,
    printable,
    pwrite_all,
    refresh_file,
    refuse_local_locks,
    refused_as,
    replace,
    run_main,
    same_user,
    stat_file_with_one_name,
    stat_or_none,
    terminal_text,
    to_bytes,
    to_text,
    unlock,
    warn,
    whole_lines,
)

csv, html, json, secrets, socket, subprocess, urls = map(
    lazy_import, ("csv", "html", "json", "secrets", "socket", "subprocess", "urllib.parse"))
if TYPE_CHECKING:
    from runset4 import TemplateReader

PROG = "runwait4.py"
T = TypeVar("T")


# ======== Text ==============================================================================================


def format_time(timestamp: float) -> str:
    """Return '14:03:22' today, 'Nov 20 14:03' this year, otherwise 'Nov 20 2025 14:03'."""
    local, today = time.localtime(timestamp), time.localtime()
    return time.strftime("%H:%M:%S" if local[:3] == today[:3]
                         else "%b %d %H:%M" if local[0] == today[0] else "%b %d %Y %H:%M", local)


def took(seconds: float) -> str:
    """Return '49 ms', '3h 12m'."""
    if seconds >= 0.9995:
        return human_time(seconds)
    return f"{seconds * 1000:.{0 if seconds >= 0.00995 else 1}f} ms"


def size_text(size: int) -> str:
    """Return '812 B', '1.2K'."""
    return memory_text(size) if size >= SIZE_UNITS["K"] else f"{size} B"


def format_peak(peak: int | None, upper_bound: int | None) -> str:
    """Return a memory peak as '12M', or '<30M' if only a bound is known; '' if unknown."""
    if peak is not None:
        return memory_text(peak)
    return f"<{memory_text(upper_bound)}" if upper_bound is not None else ""


def shorten(text: str, max_characters: int) -> str:
    return text if len(text) <= max_characters else f"{text[:max_characters]}..."


def to_valid_text(text: str) -> str:
    return to_bytes(text).decode(errors="replace")


def escape_html(text: str) -> str:
    safe: str = html.escape(to_valid_text(printable(text)))
    return safe


def stdout_columns() -> float:
    """Return the maximum length of a line on stdout; infinite without a terminal."""
    return columns_of(1) - 1 if os.isatty(1) else inf


def fit_to_width(text: str, columns: float) -> str:
    """Return a text without control characters; if it is too wide, cut it and end it by '...'."""
    text = printable(text)
    return text if len(text) <= columns else f"{text[:max(int(columns) - 3, 0)]}..."


# The words that two lines have in common at their start: no part of a word or of a quoted text, no option
# (--seed) without its value; if the lines differ, and neither is only that.  Also for browsers: no lookbehind
MIN_WIDTH = 18                  # of a column of a table that is too wide
MIN_BEGINNING = 5                       # characters; less is not worth the dots
BEGINNING = re.compile(r"""(\s*(?:(?:[^\s'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+\s+){0,99}"""
                       r"""(?!-)(?:[^\s'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+\s+)"""
                       r"""(\S.*)\n\1(?!\2$)\S""")


def without_common_beginning(commands: Sequence[str], columns: float) -> Sequence[str]:
    """Return the commands with '... ' instead of the words with which all begin, if one exceeds `columns`."""
    if not commands or max(map(len, commands)) <= columns:
        return commands
    # the words that the first and the last command in sorted order have in common, all commands have
    common = BEGINNING.match(f"{min(commands)}\n{max(commands)}")
    if common and common.end(1) >= MIN_BEGINNING:
        return [f"... {command[common.end(1):]}" for command in commands]
    return commands


def format_table(
    rows: Sequence[Sequence[str]], columns: float, right_columns: Collection[int]
) -> Iterator[str]:
    """Yield the lines of a table with aligned columns.

    columns: the maximum width.  If the table is wider, the widest columns become narrower, at least
    MIN_WIDTH, then the last one.  right_columns: indexes of right-aligned columns.
    """
    widths = [max(map(len, cells)) for cells in zip(*rows)]
    excess = sum(widths) + 2 * len(widths) - 2 - columns
    for index in sorted(range(len(widths) - 1), key=widths.__getitem__, reverse=True):
        cut = max(min(excess, widths[index] - MIN_WIDTH), 0)
        widths[index] -= int(cut)
        excess -= cut
    for row in rows:
        line = "  ".join(f"{fit_to_width(cell, width):{'<>'[index in right_columns]}{width}}"
                         for index, (cell, width) in enumerate(zip(row, widths)))
        yield fit_to_width(line.rstrip(), columns)


def print_lines(texts: Iterable[str]) -> None:
    print_bytes(to_bytes("".join(f"{text}\n" for text in texts)))


def say(text: str) -> None:
    warn(f"{PROG}: {text}")


# ======== The command line ==================================================================================


def make_parser() -> Parser:
    # docs/install/make.py also calls this, for the man page and the completion
    parser = Parser(
        PROG,
        purpose="Look at a job file: wait, show progress, failures and output, draw finished runs.  Held "
                "lines are not waited for; a line r without a runner counts as error.",
        usage=f"[options] FILE [LINE]\n       {PROG} --outdir DIR [--stats | --timeline OUT.json]\n"
              f"       {PROG} --check-locks DIR",
        examples=f"Wait until no job is new or running, with a progress bar; count the jobs:\n"
                 f"    {PROG} --progress runs.txt && echo finished\n"
                 f"    {PROG} --status runs.txt",
        notes={},
        statuses={
            "0": "the jobs are finished, or the output is complete (with -e: and all jobs are done or held)",
            "1": "otherwise; also if a failure blocks new jobs (`barrier check`, `after=`)",
            "2": "bad usage",
            "130, 143": "INT (Ctrl-C), TERM",
        },
    )
    add = parser.add_argument_group("what to do").add_argument
    add("file", metavar="FILE", nargs="?", type=check_job_file_path, help="the job file")
    add("line", metavar="LINE", nargs="?", type=check_not_empty,
        help="with --output: these lines (1,2,5-9), as with --show")
    add("-p", "--progress", action="store_true",
        help="a bar: one line redrawn on a terminal, a line per change elsewhere, in which\n"
             "failed jobs are errors, too; = done, ! failed, e error, > running")
    add("-e", "--use-exit-status", action="store_true",
        help="exit 0 only if every job is done, or held and not running (with --status: now)")
    add("--status", action="store_true",
        help="print the number of jobs in each state, running jobs, why new jobs wait, and the\n"
             "time left")
    add("--json", action="store_true", help="as JSON: one object, with --output one for each line")
    add("--failed", action="store_true",
        help="print each line that is failed or in error, with host, exit status and the last\n"
             "lines of output")
    add("--show", type=check_not_empty, metavar="LINE",
        help="print the same for all runs of these lines; LINE: a number, 1,2,5-9, a complete\n"
             "command, or a shell pattern for commands")
    add("--output", action="store_true",
        help="print the stdout of the last run of each done line; with --csv or --json, of each\n"
             "line, and how it ended")
    add("--csv", action="store_true", help="with --output: as a table")
    add("--template", action=Once, type=parse_template, metavar="T",
        help="... with the values from which `runset4.py --template T` made the command:\n"
             "'simulate {beta} {n}'")
    add("--stats", action="store_true",
        help="print run times, CPU use and memory per host and command, also with --report")
    add("--outdir", type=check_output_path, metavar="DIR",
        help="the --outdir of runmaker4.py, which has the journal [FILE.out]")
    add = parser.add_argument_group("drawing finished runs").add_argument
    add("--timeline", type=check_output_path, metavar="OUT.json",
        help="write the runs as trace events, for Perfetto (ui.perfetto.dev) or\n"
             "chrome://tracing: a process per host, a thread per slot")
    add("--report", type=check_output_path, metavar="OUT.html",
        help="write a page for any browser about FILE and its runs; with --progress, update\n"
             "it while jobs run")
    add = parser.add_argument_group("testing a file system").add_argument
    add("--check-locks", type=check_not_empty, metavar="DIR",
        help="test for a minute that hosts can share job files in this directory; start it\n"
             "on all at the same time")
    add_general_options(parser)
    return parser


def parse_template(text: str) -> TemplateReader:
    """Return a reader of the values in commands, for --template; an argparse type.

    Each name in the template becomes a column of the table.  So a name that a fixed column has is refused.
    """
    try:
        from runset4 import TemplateReader  # only now: to load it takes time
    except ModuleNotFoundError:
        raise UsageError("runset4.py is missing (copy it to where this script is)") from None
    template = TemplateReader(text)
    if doubled := set(template.names).intersection(OutputOfLines.COLUMNS):
        raise argparse.ArgumentTypeError(
            f"two columns {min(doubled)} (the table has one; write another name)")
    return template


def parse_options(argv: Sequence[str]) -> Namespace:
    parser = make_parser()
    options = parser.parse(argv, intermixed=True)
    check_options(options, parser)
    # --check-locks has neither; without FILE, --timeline and --stats have --outdir
    if options.outdir is None and options.file is not None:
        options.outdir = default_outdir(options.file)
    return options


# by option that says what to do, the options that can be added
COMPANIONS = {
    "check_locks": (),
    "timeline": ("file", "outdir"),
    "report": ("file", "outdir", "progress", "stats"),
    "progress": ("file", "outdir", "report", "use_exit_status"),
    "status": ("file", "outdir", "json", "use_exit_status"),
    "failed": ("file", "outdir", "json", "use_exit_status"),
    "show": ("file", "outdir", "json"),
    "output": ("file", "outdir", "json", "csv", "template", "line"),
    "stats": ("file", "outdir", "json", "report"),
}
OPTION_NAMES = {"file": "FILE", "line": "LINE", "use_exit_status": "-e", "check_locks": "--check-locks"}


def check_options(options: Namespace, parser: Parser) -> None:
    """Refuse options that exclude each other, or lack one that they require.

    An action is an option that says what to do.  COMPANIONS has the options that can be added to each action.
    """
    given = {name for name, value in vars(options).items() if value}
    actions = given & COMPANIONS.keys()
    for action in sorted(actions):
        for excluded in sorted(given - {action, *COMPANIONS[action]}):
            first, second = (OPTION_NAMES.get(name, f"--{name}") for name in (action, excluded))
            parser.error(f"{first} and {second} exclude each other")
    # a wait has these two, too
    for option in sorted({*itertools.chain(*COMPANIONS.values())} - {"file", "use_exit_status"}):
        if option in given and not actions:
            requirements = [f"--{action}" for action in COMPANIONS if option in COMPANIONS[action]]
            name = OPTION_NAMES.get(option, f"--{option}")
            parser.error(f"{name} requires {'one of ' * (len(requirements) > 1)}{', '.join(requirements)}")
    if {"json", "csv"} <= given:
        parser.error("--json and --csv exclude each other")
    if "template" in given and not given & {"json", "csv"}:
        parser.error("--template requires --json or --csv")
    # only these three work without a job file
    if "file" not in given and given - {"json"} not in (
            {"check_locks"}, {"timeline", "outdir"}, {"stats", "outdir"}):
        parser.error("missing FILE")


# ======== Waiting ===========================================================================================
#
# A Watcher polls the complete job file and counts the states.  A line `r` counts as running if a process
# holds a job lock of the command; otherwise it is an orphan.  The waiting is over when no job is new or
# running, or when two polls in a row find that no runner will start the new jobs.  A half saved file is
# polled again.


def retry_while_missing(method: Callable[..., T]) -> Callable[..., T]:
    """Make a method of Watcher try again after OSError, for MAX_MISSING_SECONDS; then it raises UsageError.

    An editor that saves can remove the file for a moment.  A network file system can fail as briefly.
    """
    @functools.wraps(method)
    def retrying(self: Watcher, *args: object) -> T:
        start = time.monotonic()
        while True:
            try:
                return method(self, *args)
            except OSError as error:
                if time.monotonic() - start > self.MAX_MISSING_SECONDS:
                    raise UsageError(f"{self.path}: {error_text(error)}") from None
            time.sleep(0.1)
    return retrying


class Watcher:
    """Polls the job file, with at most a twentieth of a CPU."""
    MAX_MISSING_SECONDS = 5.0   # to wait for a missing file: editors replace it
    MAX_IDLE_SECONDS = 5.0      # without a claim or result, until it is reported why new jobs wait
    PAUSE_FACTOR = 20           # the pause between polls, as a multiple of the time for a poll

    def __init__(self, path: str) -> None:
        os.close(open_job_file(path, os.O_RDONLY))      # refuses a missing file now; later it is awaited
        self.path = path
        mount = find_mount(path)
        self.file = JobReader(path, say=lambda text: say(f"{path}: {text}"), mount=mount)
        # An `end` comes so much later than the state of its line; if several hosts append, later
        self._end_seconds = 1.2 if mount.network else 0.15
        # seconds left for all pauses of wait_for_run_ends()
        self._end_patience = 10.0 if mount.network else 2.0
        # maximum seconds from a result in the job file to the end of the run in the journal
        self._max_journal_delay = 20.0 if mount.network else 5.0
        self.stop_reason = ""   # why no runner will start the new jobs; "": one can

    @retry_while_missing
    def _read_snapshot(self) -> Snapshot:
        """Return the current states and running lines; an editor can have half saved them."""
        return self.file.snapshot()

    @retry_while_missing
    def select_lines(
        self,
        states: bytes | None,
        predicate: Callable[[Line], bool] | None = None,
        last_number: float = inf,
    ) -> list[Line]:
        """Return the lines in these states (None: any) that `predicate` accepts, up to a line number."""
        return list(filter(predicate, itertools.takewhile(
            lambda line: line.number <= last_number, self.file.scan_lines(states))))

    @retry_while_missing
    def lines_below(self, last: Line | None, states: bytes | None) -> list[Line]:
        """Return the next MAX_LINES in these states (None: any) below a line; None: the first ones."""
        scan = self.file.scan_lines(states)
        if last:
            try:
                scan.seek_back(last)
            except FileChangedError:                # an edit has moved it
                scan = self.file.scan_lines(states)
        return list(itertools.islice(
            (line for line in scan if not last or line.number > last.number), MAX_LINES))

    @retry_while_missing
    def presence_locks(self) -> set[int] | None:
        """Return the presence locks of all runners and servers; None: no permission to read them."""
        self.file.open_files()
        return self.file.lock_table.presence_locks()

    @retry_while_missing
    def cancelled_lines(self, snapshot: Snapshot) -> list[Line]:
        """Return the lines whose jobs still run although a user has cancelled them, for example by an `x`.

        A state that no runner claims, such as `x` and `c`, is called held.  Each running job holds a job lock
        of its command.  So if a command has three locked job locks, but one line `r`, then the jobs of two
        held lines still run.  If more lines of the command are held, it is unknown which: take the first two.
        """
        held_states = b"".join(state for state in snapshot.states if state not in RUNNER_STATES)
        if not held_states or not self.file.lock_table.is_open:
            return []
        buckets = {locked.start & ~MUTEX_OFFSET for locked in find_held_job_locks(self.file.lock_table.fd)}
        running = Counter(line.command for line in snapshot.running + snapshot.orphans)
        left_over = {}        # by command, how many held lines still have a job
        cancelled = []
        for line in self.file.scan_lines(held_states) if buckets else ():
            command = line.command
            if command not in left_over and bucket_of(command) in buckets:
                left_over[command] = self.file.lock_table.count_job_locks(command) - running[command]
            if left_over.get(command, 0) > 0:
                left_over[command] -= 1
                cancelled.append(line)
        return cancelled

    @retry_while_missing
    def hashes_of_repeated_commands(self) -> set[int]:
        """Return the hashes of commands that several lines have; for many lines, they take less memory."""
        self.file.open_files()
        lines = itertools.chain.from_iterable(
            map(lines_of_piece, whole_lines(self.file.reader, self.file.start)))
        hashes = sorted(hash(line[2:].removesuffix(b"\r")) for line in lines)
        return {first for first, second in zip(hashes, hashes[1:]) if first == second}

    @retry_while_missing
    def lines_with_commands(self, commands: Collection[bytes]) -> list[Line]:
        self.file.open_files()
        return list(itertools.chain.from_iterable(self.file.lines_by_command(commands).values()))

    @retry_while_missing
    def signature(self) -> tuple[int, ...]:
        return self.file.signature()

    @retry_while_missing
    def can_journal_be_behind(self) -> bool:
        """Return True if a result can be in the job file, and not yet in the journal."""
        *_, mtime_ns = self.file.signature()
        age = time.time() - mtime_ns / 1e9      # negative if the clock of a file server is ahead
        return -MAX_FAST_SECONDS <= age < self._max_journal_delay

    def wait_for_run_ends(self) -> Iterator[None]:
        """Pause, and yield after each pause, while ends of runs can be on the way to the journal.

        The first pause comes before the caller can look: a line that was done can have run again, which its
        state does not show.  There is none without a runner at work, which appends all ends before it exits,
        nor if the job file has not changed for some seconds.  All calls together pause for _end_patience
        seconds: otherwise a view in batches would follow a runner down the file.
        """
        while (self._end_patience > 0 and self.can_journal_be_behind()
                and not RunnersAtWork(self.presence_locks()).has_no_runners):
            time.sleep(self._end_seconds)
            self._end_patience -= self._end_seconds
            yield

    def wait_for_complete_snapshot(self) -> Snapshot:
        while (snapshot := self._read_snapshot()).half_saved:
            time.sleep(self.file.poll)
        return snapshot

    def polls(self, min_pause: float) -> Iterator[Counts]:
        """Poll the job file, and yield the counts after each poll, until waiting is over.

        It is over when no job is new or running.  It is also over when no runner will start the new jobs, for
        example because a failure stops them (after=): then `stop_reason` has the reason.  min_pause: the
        minimum seconds between polls.
        """
        while True:
            throttle = Throttle()
            with throttle:
                snapshot = self._read_snapshot()
            job_counts = count_states(snapshot)
            yield job_counts
            # half_saved: an editor is perhaps about to write more jobs
            if not (job_counts.new or job_counts.running or snapshot.half_saved):
                return
            previous_reason = self.stop_reason
            with throttle:
                block_reason = self.block_reason() if is_idle(job_counts) else None
            self.stop_reason = block_reason.text if block_reason and block_reason.stops else ""
            # one poll alone can fall between two edits
            if self.stop_reason and self.stop_reason == previous_reason:
                return
            time.sleep(max(self.file.poll, min_pause, throttle.pause_seconds(self.PAUSE_FACTOR)))

    @retry_while_missing
    def block_reason(self, hosts: Collection[str] = (), memory: float = inf,
                     is_served: bool = True) -> BlockReason | None:
        """Return the find_block_reason() of the file, which can be missing for a moment."""
        return find_block_reason(self.file, hosts, memory, is_served)

    @retry_while_missing
    def why_lines_wait(self, numbers: Collection[int], memory: float, is_served: bool) -> dict[int, str]:
        """Return for what each of these lines waits, if it is new; '': at most for a runner, or a slot."""
        last = max(numbers, default=0)
        reasons = itertools.takewhile(lambda found: found[0].number <= last,
                                      find_reasons(self.file, (), memory, is_served, numbers))
        return {line.number: text for line, _, text in reasons if line.number in numbers}

    @retry_while_missing
    def find_stopped_lines(self) -> dict[int, list[int]]:
        """Return by the number of a failed or held line the new ones that it stops, also through others."""
        stopped: defaultdict[int, list[int]] = defaultdict(list)
        for line, wait in self.file.plan(Above(), Consumers(()), every=True):
            if wait and wait.bad:
                stopped[wait.bad.number].append(line.number)
        return stopped


def is_idle(job_counts: Counts) -> bool:
    return job_counts.new > 0 and job_counts.running == 0


# ======== Progress ==========================================================================================


class Progress:
    """Shows nothing."""
    MIN_PAUSE_SECONDS = 0.0     # between polls

    def update(self, job_counts: Counts) -> None:
        """Show these counts."""

    def end_line(self) -> None:
        """Let other text begin a new line."""


class PipeProgress(Progress):
    """Prints a line per change, at most one a second."""
    MIN_PAUSE_SECONDS = 1.0

    def __init__(self) -> None:
        self._printed_line = ""

    def update(self, job_counts: Counts) -> None:
        """Print 'progress:   2 of   4 jobs processed, 0 errors [========>>>>    ]', or '..., 1 failed [...',
        unless the last line had the same counts.  Scripts parse this format.
        """
        bad = ", ".join(describe_counts(failed=job_counts.failed, error=job_counts.error)) or "0 errors"
        line = (f"progress: {job_counts.processed:3} of {job_counts.all:3} jobs processed, "
                f"{bad} [{bar(job_counts, 16)}]")
        if line != self._printed_line:
            with suppress(BrokenPipeError):     # nobody reads any more, but the exit status counts
                print_bytes(f"{line}\n".encode())
            self._printed_line = line


class TerminalProgress(Progress):
    """A bar as wide as the terminal, redrawn in place."""
    CLEAR = "\r\x1b[K"

    def __init__(self) -> None:
        self.bar = ProgressBar()

    def update(self, job_counts: Counts) -> None:
        # the terminal prints ^C behind the bar
        print_bytes((self.CLEAR + self.bar.line(job_counts, columns_of(1) - len("^C"))).encode())

    def end_line(self) -> None:
        print_bytes(b"\n")


# ======== The journal =======================================================================================
#
# FILE.out/journal has JSON Lines: an object when a run starts, unless it ends soon, one when it ends, and
# another start when the run gets an output file.  After a restart of the server a run starts once more, with
# other files.
#
# It is read forwards, in one pass.  A start is decoded only if the run has no end: usually the end follows,
# and repeats all fields of the start.
#
# The starts of running jobs are near the end of the journal.  So --status reads the last part first, and the
# complete journal only if a run is missing, or could be one of several equal lines.

# of a run, by the state in the journal; x: of earlier versions
RUN_STATE_WORDS = {**{to_text(state): word for state, word in STATE_WORDS.items()}, ".": "put back",
                   "x": "cancelled", "?": "unknown"}
BAD_RUN_STATES = "!e"           # failed, or ended in error
BAD_LINE_STATES = "failed", "error"
FINISHED_LINE_STATES = "done", *BAD_LINE_STATES


def refuse_special_file(path: str, hint: str) -> None:
    """Refuse anything but a regular file: a pipe can take forever to open."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{path}: {'is a directory' if os.path.isdir(path) else 'not a regular file'} "
                         f"({hint})")


# state and cause of a run without an end
Ending = tuple[str, str]
STILL_RUNNING = "r", ""
ENDING = "r", "ending"          # finished; the end is not in the journal yet
LOST = "e", "lost"
END_UNKNOWN = "?", "unknown"


class RunRecord(RunFields):
    """One run in a journal.  Without an end, `state` and `cause` are unknown: see without_end()."""
    # in half the memory of an object with a dictionary
    __slots__ = (*(name for name, *_ in START + END), "position", "ended", "began")
    position: int               # in the journal, of the line
    ended: float | None
    began: float

    def __init__(self, position: int, event: Mapping[str, Any]) -> None:
        """Read a `start` or `end` event, decoded from JSON.  Raises WireError: the line is invalid.

        from_plain_end() reads an `end` that matches PLAIN_END.
        """
        # a `start` lacks the fields of an `end`, so these get their defaults first
        for name, _, default in END:
            setattr(self, name, default)
        has_end = event["event"] != "start"
        super().__init__(event, START + END if has_end else START)
        self.command = to_bytes(event["command"])
        self.position = position
        self.ended = self.time if has_end else None
        self.began = self.time - (self.seconds or 0.0)
        if self.began < 0 or (has_end and self.seconds is None):
            raise WireError("invalid times")

    @classmethod
    def from_plain_end(cls, position: int, match: re.Match[str]) -> RunRecord:
        """Return the run of an `end` as runmaker4 writes it.  This takes less time than __init__().

        match: of PLAIN_END, which has checked all fields.  promised: the requested memory in bytes.
        """
        run = cls.__new__(cls)
        run.position = position
        # "": a field that is null or missing
        (time, run.run, line, command, run.host, run.slot, pid, runner, run.directory, promised, files,
         run.state, exit_code, signal_number, run.cause, seconds, cpu, memory, memory_below, size, why,
         stdout, stderr, gathered) = match.groups("")
        run.time = run.ended = float(time)
        run.line = int(line)
        run.command = decode_json_string(command).encode()
        run.pid = int(pid)
        run.runner = int(runner) if runner else None
        run.promised = int(promised) if promised else None
        run.files = files.split('", "') if files else []
        run.exit = int(exit_code)
        run.signal = int(signal_number)
        run.seconds = float(seconds)
        run.began = run.time - run.seconds
        run.cpu = float(cpu) if cpu else None
        run.memory = int(memory) if memory else None
        run.memory_below = int(memory_below) if memory_below else None
        run.bytes = int(size)
        run.why = why and decode_json_string(why)
        run.stdout = stdout and decode_json_string(stdout)
        run.stderr = stderr and decode_json_string(stderr)
        run.incomplete = False
        run.travelled = 0
        run.gathered = float(gathered or 0.0)
        return run

    def without_end(self, ending: Ending) -> RunRecord:
        """Return a copy with this state and cause, and no end.  A running one has `seconds` up to now."""
        run = copy.copy(self)
        run.state, run.cause = ending
        run.ended = None
        run.seconds = seconds_since(run.began) if ending == STILL_RUNNING else None
        return run

    @property
    def is_lost(self) -> bool:
        return self.cause.startswith("lost")            # or 'lost with its runner 5 times'

    @property
    def has_ended(self) -> bool:
        """Return False for a run that goes on, or was lost: its client can come back."""
        return self.ended is not None and not self.is_lost

    @property
    def last_run_key(self) -> tuple[bytes, int, bool, bool]:
        """Of several runs with this in common, only the last one can be the last run of a line."""
        return self.command, self.line, self.ended is None, self.cause == "lost"

    @property
    def peak_text(self) -> str:
        """The peak memory: '12M', '<30M', or with requested memory '3.1G of 4G'; '' if unknown."""
        text = format_peak(self.memory, self.memory_below)
        return f"{text} of {memory_text(self.promised)}" if text and self.promised else text


class JournalReader:
    """The journal of a directory, read up to its present end by each call."""
    MAX_LINE_BYTES = 1 << 23    # more than any command
    READ_BYTES = 1 << 18        # at a time
    INVALID_LINE = b"\n"        # no line contains a newline, so no pass accepts it
    OTHER = b""                 # instead of the command of a line without EVENT_HEAD, which any pass decodes

    def __init__(self, directory: str, say: Say, may_be_missing: bool = False) -> None:
        """Open the journal in an output directory.  Raises UsageError.

        may_be_missing: a journal that does not exist, or that this user may not read, counts as empty.
        """
        self.path = os.path.join(directory, "journal")
        self._say = say
        self.invalid_positions: set[int] = set()    # found by passes
        # What read_on() has found: 16 bytes a line, and the runs of any command are found without a pass
        self._ends = array("Q", [0])                # offsets: line N is between _ends[N - 1] and _ends[N]
        self._hashes = array("q")                   # of the command of each line
        self.incomplete_commands: set[bytes] = set()            # of runs with incomplete output
        mount = find_mount(self.path)
        try:
            if mount.network:
                refresh_file(self.path, mount)
            refuse_special_file(self.path, "expected a journal")
            fd = open_direct(self.path, os.O_RDONLY, mount.network)
        except OSError as error:
            is_missing = isinstance(error, (FileNotFoundError, NotADirectoryError, PermissionError))
            if not (may_be_missing and is_missing):
                raise UsageError(
                    f"{self.path}: {error_text(error)} (expected the journal of runmaker4.py: no job was run "
                    "yet, or with --outdir DIR or --no-records)"
                ) from None
            if isinstance(error, PermissionError):
                say(f"{self.path}: {error_text(error)} (so no run is known; its owner can open it)")
            fd = os.open(os.devnull, os.O_RDONLY)
        self.file = Reader(fd, mount.network)
        self.size = os.fstat(fd).st_size        # NFS can report an old one, but reads go beyond

    def _read(self, size: int, offset: int) -> bytes:
        with refused_as(self.path):
            return self.file.pread(size, offset)

    def start_pass(self, start_offset: int = 0) -> Iterator[RunRecord]:
        """Read the journal once, from `start_offset` to its present end, and yield the runs."""
        # a position is the line number, or after a start offset an upper bound
        return read_runs(enumerate((line for line, _ in self.lines(start_offset)), start_offset + 1),
                         set() if start_offset else self.invalid_positions)

    def read_on(self) -> None:
        """Note the offset of each line that was added since the last call, and the hash of its command.

        Call it before runs_of(), which then finds the runs of any command, and reads only their lines.
        """
        first_number = len(self._ends)
        self.invalid_positions.discard(first_number)    # an incomplete last line can be complete now
        # -1: lines() begins after the first newline that it meets
        for number, (line, end) in enumerate(self.lines(max(self._ends[-1] - 1, 0)), first_number):
            command = self.OTHER
            if line == self.INVALID_LINE:
                self.invalid_positions.add(number)
                command = line                      # runs_of() looks for no such command
            elif head := match_event_head(line):
                command = head["command"]
                if b"\\" in command:
                    with suppress(*INVALID_LINE_ERRORS):    # start_pass() notes such a line
                        command = to_bytes(json.loads(b'"%b"' % command))
                if b'"incomplete"' in line:
                    self.incomplete_commands.add(command)
            if end:
                self._ends.append(end)
                self._hashes.append(hash(command))

    @property
    def size_read(self) -> int:
        """The size of the journal as read_on() has found it."""
        return self._ends[-1]

    def runs_of(self, commands: Iterable[bytes]) -> Iterator[RunRecord]:
        """Return an iterator over the runs of these commands, and a few others, that read_on() has found."""
        wanted = {*map(hash, commands), hash(self.OTHER)}
        # a look at all hashes takes less time than a search for each of many commands
        numbers = itertools.compress(itertools.count(1), map(wanted.__contains__, self._hashes))
        return read_runs(self._numbered_lines(numbers), self.invalid_positions)

    def _numbered_lines(self, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Yield these lines, by ascending numbers; one read brings several that are near each other."""
        ends, data, offset, data_end = self._ends, b"", 0, 0
        for number in numbers:
            start, end = ends[number - 1], ends[number]
            if end > data_end:
                data, offset = self._read(max(self.READ_BYTES, end - start), start), start
                data_end = offset + len(data)
            yield number, data[start - offset:end - offset - 1]

    def lines(self, start_offset: int) -> Iterator[tuple[bytes, int]]:
        """Yield each line without the newline, and the offset of its end.

        Begin with the first line that begins after `start_offset`, as the one before it can be cut.  Yield
        INVALID_LINE instead of a line that is too long.  For text after the last newline, of which more can
        follow, yield INVALID_LINE and 0.
        """
        partial = b""                           # the start of a line
        end = start_offset                      # of all before it
        in_cut_line = start_offset > 0          # the next text can end a line that began earlier
        in_long_line = False
        while data := self._read(self.READ_BYTES, end + len(partial)):
            *lines, partial = (partial + data).split(b"\n")
            for line in lines:
                end += len(line) + 1
                if not in_cut_line:
                    yield self.INVALID_LINE if in_long_line else line, end
                in_cut_line = in_long_line = False
            if len(partial) >= self.MAX_LINE_BYTES:
                end += len(partial)
                partial = b""
                in_long_line = True
        if (partial or in_long_line) and not in_cut_line:
            yield self.INVALID_LINE, 0

    def close(self) -> None:
        """Close the journal, and report the lines that were skipped."""
        self.file.close()
        if positions := self.invalid_positions:
            self._say(f"{self.path}: {plural(len(positions), 'line')} skipped: truncated, or not lines of a "
                      f"journal ({name_lines(positions)})")


INVALID_LINE_ERRORS = ValueError, LookupError, TypeError, ArithmeticError, RecursionError, WireError
MAX_REMEMBERED_RUNS = 50_000            # finished ones: an end can be logged twice
# The head of a line as runmaker4 writes it.  The command is JSON
EVENT_HEAD = re.compile(
    rb'\{"time": [1-9]\d{0,10}(?:\.\d{1,6})?, "event": "(?P<event>start|end|loss)", '
    rb'"run": "(?P<run>[^"\\]*)", "line": \d+, "command": "(?P<command>[^"\\]*(?:\\.[^"\\]*)*)", '
)


# An `end` as runmaker4 writes it.  It is JSON, with valid fields and no others; to find that out
# takes a quarter of the time of json.loads() and RunFields(), which check any other line
PLAIN_END = re.compile(re.sub("<([a-z]+)>", lambda match: {
    "text": r'[^"\\\0-\x1f]*',
    "escaped": r'[^"\\\0-\x1f]*(?:\\(?:["\\bfnrt]|u(?!d[89a-f])[0-9a-f]{4})[^"\\\0-\x1f]*)*',
    "number": r"(?:0|[1-9]\d{0,15})",
    "pid": r"(?:0|[1-9]\d{0,8})",
    "seconds": r"(?:0|[1-9]\d{0,8})\.\d+",
    "code": r"-1|0|[1-9]\d?|1\d\d|2[0-4]\d|25[0-5]",
}[match[1]], (
    r'\{"time": ([1-9]\d{9}\.\d+), "event": "end", "run": "(<text>)", "line": (<number>), '
    r'"command": "(<escaped>)", "host": "(<text>)", "slot": "(<text>)", "pid": (<pid>), '
    r'"runner": (?:null|(<number>)), "directory": "(<text>)", (?:"promised": (<number>), )?'
    r'"files": \[(?:"(<text>(?:", "<text>)*)")?\], "state": "([d!e.cx])", "exit": (<code>), '
    r'"signal": (<code>), "cause": "(<text>)", "seconds": (<seconds>), "cpu": (?:null|(<seconds>)), '
    r'"memory": (?:null|(<number>)), "memory_below": (?:null|(<number>)), "bytes": (<number>)'
    r'(?:, "why": "(<escaped>)")?(?:, "stdout": "(<escaped>)")?(?:, "stderr": "(<escaped>)")?'
    r'(?:, "gathered": (<seconds>))?\}')))


def decode_json_string(text: str) -> str:
    """Return the text that JSON has between quotes."""
    with_newlines = text.replace("\\n", "\n")       # no more is to do in most
    return json.loads(f'"{text}"') if "\\" in with_newlines else with_newlines


def match_event_head(line: bytes) -> re.Match[bytes] | None:
    """Return the first fields of an event; None: decode the line."""
    # commands are compared as runmaker4 writes them: in ASCII
    return EVENT_HEAD.match(line) if line.isascii() and line.endswith(b"}") else None


def read_runs(lines: Iterable[tuple[int, bytes]], invalid_positions: set[int]) -> Iterator[RunRecord]:
    """Yield each run of a journal once: finished runs in the order of their ends, then the others.

    The journal has a `start` and an `end` of a run, or several.  So keep the last `start` until the `end`
    comes, which repeats its fields.  Ignore other events and empty lines.

    lines: with their positions, in order.  invalid_positions: gets those of invalid lines.
    """
    # by the name of a run without an end: position and line of the start, or of an end with cause "lost"
    unended_entries: dict[str, tuple[int, bytes]] = {}
    recently_ended: OrderedDict[str, None] = OrderedDict()      # names of runs, the latest last
    # by the name of a run: output files that an earlier server has begun
    earlier_files: dict[str, Sequence[str]] = {}

    def run_of_line(position: int, line: bytes) -> RunRecord | None:
        """Return the run of a start or end; None: another event, or an invalid line (note its position)."""
        try:
            if line.isascii() and (match := PLAIN_END.fullmatch(line.decode())):
                run = RunRecord.from_plain_end(position, match)
            else:
                event = json.loads(line)
                # the last loss of a line that is `!` is its last run
                if event["event"] not in ("start", "end") and event.get("state") != "!":
                    if not isinstance(event["event"], str):
                        raise ValueError
                    return None
                run = RunRecord(position, event)
        except INVALID_LINE_ERRORS:
            invalid_positions.add(position)
            return None
        if run.run in earlier_files:
            run.files = list(dict.fromkeys([*earlier_files[run.run], *run.files]))
        return run

    for position, line in lines:
        run = None
        head = match_event_head(line) if b'"event": "start"' in line[:64] else None
        if head and head["event"] == b"start":
            name = head["run"].decode()     # most starts are never decoded: that halves the time
        # two runners at once can leave an empty line
        elif line and (run := run_of_line(position, line)):
            name = run.run
        else:
            continue
        # a server that was restarted before it could acknowledge the end has logged the run again
        if name in recently_ended:
            continue
        previous = unended_entries.pop(name, None)
        # most starts name no files, and are not decoded
        if previous and b'"files"' in previous[1] and (previous_run := run_of_line(*previous)):
            earlier_files[name] = previous_run.files
        if run and run.has_ended:
            if name in earlier_files:           # the next server may have written nothing before this end
                run.files = list(dict.fromkeys([*earlier_files.pop(name), *run.files]))
            recently_ended[name] = None
            if len(recently_ended) > MAX_REMEMBERED_RUNS:
                recently_ended.popitem(last=False)
            yield run
            continue
        # the run goes on, or is lost.  If the client of a lost run comes back, an `end` can follow
        unended_entries[name] = position, line
    yield from filter(None, itertools.starmap(run_of_line, unended_entries.values()))


# ======== Job output ========================================================================================
#
# The end of a run has its short output.  All other output is in files, which start and end name.


def is_file_name(name: str) -> bool:
    """Return True unless it is a path to another directory, or no name at all."""
    return os.path.basename(name) == name and name not in (os.curdir, os.pardir) and "\0" not in name


# what colours text and moves the cursor: ECMA-48, and the titles of terminals
ESCAPE_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")


def lines_of_output(text: bytes) -> list[str]:
    """Return the last lines that are not blank, without escape sequences and control characters."""
    text = ESCAPE_SEQUENCE.sub(b"", text).replace(b"\t", b" ")
    # a terminal overwrites the text before a \r
    last_parts = (line.rstrip().rpartition(b"\r")[2] for line in text.split(b"\n"))
    return [printable(to_text(part[:MAX_LINE_BYTES]))
            for part in [*filter(bytes.strip, last_parts)][-MAX_REASON_LINES:]]


# The reason of a failure is one line of output.  Programs print it, and then a stack, a footer, a banner of
# MPI, or the words of the program that had started them.  So the last line is often no reason, and the same
# for different failures.  The rule was made from some 200 failures of 75 programs, and tried on others.

MAX_LINE_BYTES = 2000           # of a line of output, or of a command
MAX_REASON_LINES = 60           # at the end of a stream: older errors did not end the program
MAX_REASON_CHARACTERS = 200
MAX_SEARCHED_CHARACTERS = 400   # of a line

# a line without any of these, in lower case, is not looked at closer: the patterns below take long
ERROR_WORDS = (
    "error", "exception", "fatal", "critical", "severe", "panic", "[e::", "what():", "assertion", "unable",
    "can", "could", "n't", "n’t", " not", "fail", "no such", "no convergence", "diverge", "unknown",
    "invalid", "illegal", "incorrect", "denied", "refused", "unrecogni", "unexpected", "unbound", "missing",
    "undefined", "memory", "space",
)
# how most programs begin a report of an error
REPORT_OF_ERROR = re.compile(
    r"(?:^|[ \[(|*])(?:(?:ERROR|FATAL|CRITICAL|SEVERE)\b"
    r"|(?:[Ee]rror|[Ff]atal|[Ee]xception|[Pp]anic)(?:\]|\)|\s?:| in | at | - |\[))"
    r"|\[E::|\w(?:Error|Exception)\b|what\(\):|panicked at|\bAssertion\b|\b[Uu]nable to\b|[Ff]atal error")
# words that seldom stand in other output
REPORT_BY_WORDS = re.compile(
    r"^errors?\b|\berrors? (?:in|at|on|while|when|during|opening|reading|writing|from|occurred|near)\b"
    r"|(?:\b(?:an|syntax|parse|type|input|output|i/o|file|format|database|runtime|system|usage)|ing)"
    r" error\b|\bexception\b|\bcannot\b|\bcan(?: no|'|’)t\b|\bcould(?: not|n['’]t)\b|\bunable\b"
    r"|\b(?:do|does|did|is|are|was|were|has|have)(?: not|n['’]t) (?:an?\b|exist|match|seem|conver|contain"
    r"|found|valid|defined|known|recogni|support|allow|permit|install|access|readable|possible|enough"
    r"|available)|\bnot (?:found|converged?|defined|allowed|permitted|available|supported|enough"
    r"|installed)|\bfail(?:s|ed|ure)?\b|\bno such\b|\bno convergence|\bdiverge|\bunknown\b|\binvalid\b"
    r"|\billegal\b|\bincorrect|\bdenied\b|\brefused\b|\bunrecogni[sz]ed\b|\bunexpected\b|\bunbound\b"
    r"|\bmissing\b|\bundefined (?:\w+ )?[`'\"‘“]|\bundefined (?:reference|symbol|variable|function"
    r"|method)|['’\"`] undefined|\bout of memory|\bno space left", re.IGNORECASE)
# words of a program that has only started the one that failed; usage, source code, and words of success
NO_REASON = re.compile(
    r"ORTE_ERROR_LOG|MPI_Abort|errorcode|exit (?:status|code)|exited with|non-?zero|CalledProcessError"
    r"|RuleException|Group Traceback|^\s*error stop|error termination|previous error"
    r"|above (?:exception|error)|error (?:messages?|log)|/errors?\b|not recoverable|floating-point exceptions"
    r"|warning|\binfo\b|\bdebug\b|program stopped|^\s*at |^[\s|]*(?:raise|throw)\b|^ *\d+ \||\bnote\b"
    r"|execution halted|aborted?\W*$|job (?:execution )?failed|did not complete"
    r"|\berrors?\s*[:=]\s*[-+.\d]+(?:\s|,|%|$)"
    r"|^\W*\d+ errors?\b|\d errors\b|QC-fail"
    r"|\b(?:no|0|without) (?:\w+ ){0,2}(?:errors?|fail|missing|unknown|invalid)"
    r"|\b(?:fail|missing|unknown|invalid)\w*\b[^:=]*[:=]\s*\d+\b"
    r"|\bmissing (?:values?|data|genotypes?|calls?)", re.IGNORECASE)
TRACEBACK = "Traceback (most recent call last)"
EXCEPTION = re.compile(r"(?s:.*)^Traceback \(most .*(?:\n .*)*\n(\S.*)", re.MULTILINE)
# what follows the colon of a line: the next line, and those below that are further to the right
WITH_NEXT_LINES = re.compile(r".*(?:(?<=:)\n( *).*(?:\n\1 +.*)*)?")


def find_error_line(lines: Sequence[str]) -> str:
    """Return the line of a stream that reports an error; '': there is none.  lines: of lines_of_output()."""
    text = "\n".join(lines)
    # after the last traceback of Python
    exception = EXCEPTION.match(text) if TRACEBACK in text else None
    if exception and not NO_REASON.search(exception[1]):
        return exception[1].strip()[:MAX_REASON_CHARACTERS]
    candidates = []
    for index, line in enumerate(lines):
        lower_line = line.lower()
        if any(word in lower_line for word in ERROR_WORDS):
            candidates.append((index, line[:MAX_SEARCHED_CHARACTERS]))
    for pattern in REPORT_OF_ERROR, REPORT_BY_WORDS:
        for index, line in candidates:
            if pattern.search(line) and not NO_REASON.search(line):
                found = WITH_NEXT_LINES.match("\n".join(lines[index:]))
                return re.sub(r"\s*\n\s*", " ", found[0] if found else "").strip()[:MAX_REASON_CHARACTERS]
    return ""


class RunOutput:
    """What runs have printed."""
    MAX_READ_BYTES = 1 << 14    # of a file: only the end is read
    MAX_COLUMNS = 500           # of a line, also on a wider terminal
    FEW_LINES = 3               # of each run
    MORE_LINES = 10             # with --show

    def __init__(self, directory: str, max_lines: int = FEW_LINES) -> None:
        self.directory = directory
        self._max_lines = max_lines
        self.network = find_mount(directory).network

    def last_lines(self, run: RunRecord) -> tuple[list[str], str]:
        """Return the last lines of a run, and the line of output that is the reason of its failure.

        The lines are of stderr, or of stdout if that is empty; above them is the reason, if they do not have
        it.  If no line is found, they say why files cannot be read: '(3.out: No such file or directory)'.
        reason: '' if the run is good, or its cause or a signal says why.
        """
        # short output is in the journal, all other in files; the last one of a stream has the end
        streams = [to_bytes(run.stderr), to_bytes(run.stdout)]
        errors = []
        for name in run.files[::-1]:
            is_stdout = ".err" not in name
            if streams[is_stdout]:
                continue
            try:
                with self._open_output_file(name) as file:
                    offset = max(0, os.fstat(file.fd).st_size - self.MAX_READ_BYTES)
                    streams[is_stdout] = file.pread(self.MAX_READ_BYTES, offset)
            except OSError as error:
                errors.append(f"({name}: {error_text(error)})")
        stderr, stdout = map(lines_of_output, streams)
        lines = stderr or stdout
        if not lines:
            return errors, ""
        shown = lines[-self._max_lines:]
        if run.state not in BAD_RUN_STATES or run.cause or run.signal not in (0, signal.SIGABRT):
            return shown, ""
        error_line = find_error_line(stderr) or find_error_line(stdout)
        # a program that calls abort() has ended itself, and mostly says why
        if run.signal and not error_line:
            return shown, ""
        # a line of dashes is no reason
        last_words = next((line for line in reversed(lines) if any(map(str.isalnum, line))), lines[-1])
        reason = error_line or last_words.strip()[:MAX_REASON_CHARACTERS]
        return ([] if reason in map(str.strip, shown) else [reason]) + shown, reason

    def read_stdout(self, run: RunRecord) -> Iterator[bytes]:
        """Yield the parts of a run's complete stdout, for --output.

        Raises OSError, also after the last part if the output has another length than in the journal.  A
        crash can have cut a file.  Or the file is of a later run, which gets the name of a file that was
        removed.  If a file of stderr is missing, the length cannot be checked.
        """
        missing = run.bytes             # of stdout and stderr together; less what is found below
        for name in run.files:
            if ".err" not in name:
                with self._open_output_file(name) as file:
                    offset = 0
                    while data := file.pread(BLOCK, offset):
                        yield data
                        offset += len(data)
                missing -= offset
        yield to_bytes(run.stdout)
        if run.files:                           # few have any: short output is in the journal
            with suppress(FileNotFoundError):
                missing -= sum(self._size_of(name) for name in run.files if ".err" in name)
                if missing != len(to_bytes(run.stdout + run.stderr)) and not run.incomplete:
                    raise OSError(errno.EIO, "its files are of another size than what it has printed")

    def measure(self, rows: Iterable[Row]) -> None:
        """Set `bytes` of runs without an end to the size of their files."""
        for run in (row.run for row in rows if row.run and row.run.ended is None):
            if run.files:
                run.bytes = 0               # a server that has exited has counted them, too
            for name in run.files:
                with suppress(OSError):
                    run.bytes += self._size_of(name)

    def _size_of(self, name: str) -> int:
        with self._open_output_file(name) as file:
            return os.fstat(file.fd).st_size

    def _open_output_file(self, name: str) -> Reader:
        """Open an output file, a regular file in `directory`.  Raises OSError, also if it is anything else.

        On a network file system this host's cache of names and sizes can be as old as the opening of the
        journal, which has refreshed that cache.
        """
        if is_file_name(name):
            file = Reader(open_direct(os.path.join(self.directory, name),
                                      os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, self.network),
                          self.network)
            if is_regular(file.fd):
                return file
            file.close()
        raise OSError(errno.EINVAL, "not an output file")


# ======== Matching runs to lines ============================================================================
#
# The journal has the number of the line when the record was written; since then lines can have been moved,
# inserted and removed.  A run belongs to a line with the same command: of several to the one with the same
# number, otherwise to the nearest; of two equally near ones to the lower one in the file, because lines are
# usually inserted above.
#
# A line inserted above equal lines (with one command) shifts all their numbers.  So if the journal has as
# many numbers of a command as the file has lines, numbers and lines are paired in order first.
#
# Of several runs of a line, the last one in the journal is the last run, whatever its number: a line can be
# moved, run again, and be moved back.  But two runners append in any order what has ended while one of them
# gathered: then the clocks decide.  An `end` has the time for which it was gathered.
#
# The line of a run without an end has a running job, or the end is on the way to the journal.  So while lines
# with this command are `r`, or cancelled and still running, the run belongs to one of these.
#
# The last run of a done or failed line, or of one in error, counts only if it ended in that state.  Otherwise
# a later run has no record here (--no-records, another --outdir, a killed runner, a full disk), or a user has
# set the state, and the line has no recorded run: what an earlier run has printed is not its output.


K = TypeVar("K")


def add_if_later(last_runs: dict[K, RunRecord], key: K, run: RunRecord) -> None:
    """Make a run the last one of a key, unless the one so far is later, in the journal or by the clocks."""
    if previous := last_runs.get(key):
        first, second = sorted((previous, run), key=operator.attrgetter("position"))
        # What one program writes is in order.  Another can have gathered an `end`, so the clocks decide; if
        # they differ by more than it was gathered, one is wrong, and the order in the journal decides
        is_first_later = first.runner != second.runner and 0 < first.time - second.time <= second.gathered
        run = first if is_first_later else second
    last_runs[key] = run


class LineRuns:
    """Lines, and the runs that belong to them."""

    def __init__(
        self, lines: Iterable[Line], running_numbers: Collection[int], runs: Iterable[RunRecord]
    ) -> None:
        """Match runs with lines, and keep the last run of each line; ignore runs of other commands.

        A run belongs to a line with its command, of several to the one with the nearest number.  The rules
        are above this class.

        lines: all lines of each command, as equal lines compete for the runs.  running_numbers: of the lines
        that are `r`, or have a job.  runs: at least the last one of each RunRecord.last_run_key.
        """
        self.lines = {line.number: line for line in lines}
        self._numbers_of: dict[bytes, list[int]] = {}               # of the lines, by command
        self._running_numbers_of: dict[bytes, list[int]] = {}       # of those that are `r` or have a job
        for number, line in sorted(self.lines.items()):
            command = line.command
            self._numbers_of.setdefault(command, []).append(number)
            if line.state == RUNNING or number in running_numbers:
                self._running_numbers_of.setdefault(command, []).append(number)
        runs_of: dict[bytes, list[RunRecord]] = {}
        for run in runs:
            if run.command in self._numbers_of:
                runs_of.setdefault(run.command, []).append(run)
        # line numbers by command and logged number.  If a command was logged with 3 and 5, and has the lines
        # 4 and 6 now: {(command, 3): 4, (command, 5): 6}
        self._current_numbers: dict[tuple[bytes, int], int] = {}
        self.last_runs: dict[int, RunRecord] = {}  # by line number
        for command, known_runs in runs_of.items():
            numbers = self._numbers_of[command]
            if len(known_runs) > 1:
                logged_numbers = {run.line for run in known_runs}
                if len(logged_numbers) == len(numbers):
                    self._current_numbers.update(
                        zip(((command, logged) for logged in sorted(logged_numbers)), numbers))
            for run in known_runs:
                add_if_later(self.last_runs, self._line_number(run), run)

    def _line_number(self, run: RunRecord) -> int:
        """Return the number of the line to which a run belongs; a line with its command must exist.

        If several lines have the command, take the one that is nearest to where the run's line is expected
        now.  An edit can have moved that line since the run was recorded.
        """
        numbers = self._numbers_of[run.command]
        if len(numbers) == 1:
            return numbers[0]
        if run.ended is None:
            numbers = self._running_numbers_of.get(run.command, numbers)    # only these can have its job
        expected = self._current_numbers.get((run.command, run.line), run.line)
        index = bisect.bisect_left(numbers, expected)
        # of two equally near, take the larger number
        return min(numbers[max(index - 1, 0):index + 1], key=lambda number: (abs(number - expected), -number))

    def line_of(self, run: RunRecord) -> Line | None:
        return self.lines[self._line_number(run)] if run.command in self._numbers_of else None

    def is_last_run_certain(self, line: Line) -> bool:
        """Return True if a line's last run is running, and no earlier part of the journal can change that.

        So rows_of_running_lines() learns if it must read more than the end of the journal.  An earlier part
        matters if several lines have the command: all recorded line numbers together decide which run belongs
        to which line.
        """
        run = self.last_runs.get(line.number)
        return (run is not None and run.ended is None and run.line == line.number
                and len(self._numbers_of[line.command]) == 1)


# ======== Who is at work ====================================================================================
#
# Each runner and server holds a presence lock in the lock file until it exits (PresenceLock in runmaker4.py).
# The journal has the presence lock of the program that started a run.


class RunnersAtWork:
    def __init__(self, presence_locks: Collection[int] | None) -> None:
        self._presence_locks = presence_locks  # None: unknown

    def has_runner_exited(self, run: RunRecord | None, can_be_taken_over: bool = True) -> bool:
        """Return True if the runner that started a run, or each server if one assigned it, has surely exited.

        If the run or that program is unknown, return True only if no runner or server is alive.
        can_be_taken_over: True: a new server takes over the runs of the previous one.
        """
        if not self._presence_locks or not run or run.runner is None:
            return self.has_no_runners
        if can_be_taken_over and self._is_of_server(run.runner):
            return not any(map(self._is_of_server, self._presence_locks))
        return run.runner not in self._presence_locks

    @staticmethod
    def _is_of_server(presence_lock: int) -> bool:
        return presence_lock >= PresenceLock.SERVERS

    @property
    def has_no_runners(self) -> bool:
        """Return True if no runner or server is alive; False also if unknown."""
        return self._presence_locks is not None and not self._presence_locks

    def count_by_kind(self) -> dict[str, int | None]:
        """Return the numbers of runners and servers; None: unknown."""
        if self._presence_locks is None:
            return {"runners": None, "servers": None}
        servers = sum(map(self._is_of_server, self._presence_locks))
        return {"runners": len(self._presence_locks) - servers, "servers": servers}

    def ask_servers(self) -> Iterator[str]:
        """Yield what each server of this user on this host reports, for --status: '3 clients, 0 lost'.

        A server listens on a socket whose name has the number of its presence lock.
        """
        for number in filter(self._is_of_server, self._presence_locks or ()):
            with socket.socket(socket.AF_UNIX) as asker:
                try:
                    connect_in_time(asker, PresenceLock.SOCKET % number, 1)
                    if same_user(asker):
                        yield to_text(asker.recv(1 << 16))
                except ConnectionRefusedError:
                    pass                        # it is on another host, or in another network namespace
                except OSError:
                    yield "the server on this host does not answer (it is stopped or busy)"


# a time so much later than now is of a clock that is wrong
MAX_FAST_SECONDS = 60.0


def seconds_since(timestamp: float) -> float | None:
    """Return the age of a time by another host's clock; None: it is in the future."""
    age = time.time() - timestamp
    return max(age, 0.0) if age >= -MAX_FAST_SECONDS else None


# ======== Observations ======================================================================================
#
# An observation reads everything once, in this order:
#
#   presence locks   also of runners that exit meanwhile, whose lines are still `r` in the snapshot
#   the job file     states, running lines and orphans; cancelled lines with running jobs
#   presence locks   also of runners that start meanwhile
#   mtime            shows that ends of runs can still be on the way to the journal
#   the lines        that the view selects, perhaps in batches
#   the journal      is read up to its end after each batch.  So it has the ends of all runs with finished
#                    lines, except ends on the way.  A runner appends all ends before it releases the presence
#                    lock.
#
# Ends are on the way because a runner writes the state of a line at once, and gathers ends for a moment: an
# append for each job would cost more round trips on NFS than its claim.  So while a runner is at work, a view
# waits for that moment before it reads the journal, and longer if a finished line lacks its run.
#
# --stats and --timeline read only the journal.

# by the state of a run, the states in which it leaves the line
LINE_STATES_AFTER = {**{state: {name} for state, name in RUN_STATE_WORDS.items()}, ".": {"new"},
                     "c": {"cancelled", "held"}, "x": {"cancelled", "held"}}


@dataclass(eq=False)
class Row:
    """A line and one of its runs, as of one observation."""
    line: Line                          # if removed: as of the run
    line_state: str                     # a word; an orphan is in error; "": removed
    run: RunRecord | None               # None: the journal has none, or none that counts
    is_last: bool                       # it is the last run of the line, and counts

    # fields of a run for --json
    RUN_FIELDS = ("cause", "why", "cpu", "memory", "memory_below", "promised", "directory", "bytes", "stdout",
                  "stderr", "files", "incomplete")

    @property
    def differing_line_state(self) -> str:
        """The state of the line if it is not the one in which the run has left it; otherwise ''."""
        return self.line_state if (
            self.run and self.line_state not in LINE_STATES_AFTER[self.run.state]) else ""

    @property
    def is_contradicted(self) -> bool:
        """Return True if the line has finished in another state than the run."""
        return (self.run is not None and self.run.ended is not None
                and self.differing_line_state in FINISHED_LINE_STATES)

    def json_job_fields(self) -> Fields:
        """Return the --json fields that --status has in common with --failed and --show; None: unknown."""
        run = self.run
        seconds = run.seconds if run else None
        return {
            "line": self.line.number,
            "command": to_text(self.line.command),
            "host": run and run.host,
            "slot": run and run.slot,
            "pid": (run and run.pid) or None,
            "start": run and round(run.began, 3),
            "seconds": seconds if seconds is None else round(seconds, 3),
        }

    def json_fields(self) -> Fields:
        """Return all fields for --failed --json and --show --json; None: unknown."""
        run = self.run
        return {
            **self.json_job_fields(),
            "state": self.line_state,
            "outcome": run and RUN_STATE_WORDS[run.state],
            "end": run and run.ended,
            "exit": run.exit if run and run.exit >= 0 else None,
            "signal": (run and run.signal) or None,
            **{name: run and getattr(run, name) for name in self.RUN_FIELDS},
        }


class Observation:
    """A job file, the locks and the journal, which can be empty, as of one moment."""
    TAIL_BYTES = 1 << 22        # the end of a journal: mostly enough for the starts of all running jobs
    # after so long without a run, a host counts as one without a runner: a client has no presence lock
    MAX_BETWEEN_RUNS_SECONDS = 60.0
    def __init__(self, watcher: Watcher, options: Namespace, say: Say) -> None:
        """Read locks and job file, and then open the journal; "Observations" above explains the order."""
        self.watcher = watcher
        # twice, because runners can exit or start while the file is read
        locks_before = watcher.presence_locks() or set()
        self.snapshot = watcher.wait_for_complete_snapshot()
        self.cancelled_lines = watcher.cancelled_lines(self.snapshot)
        locks_after = watcher.presence_locks()
        self.runners_at_work = RunnersAtWork(None if locks_after is None else locks_after | locks_before)
        self._can_journal_be_behind = watcher.can_journal_be_behind()
        # the lines that are `r`, or have a job
        self.running_lines = [*self.snapshot.running, *self.cancelled_lines, *self.snapshot.orphans]
        self._running_numbers = {line.number for line in self.running_lines}
        self.orphan_numbers = {line.number for line in self.snapshot.orphans}
        # for _last_runs_of_equal_lines(): of which version of file and journal, commands, the last runs
        self._equal_lines: tuple[object, set[bytes], dict[int, RunRecord]] = None, set(), {}
        # the default directory is missing if no job was run yet, or with --no-records
        self.journal = JournalReader(
            options.outdir, say, may_be_missing=options.outdir == default_outdir(watcher.path))

    def why_lines_wait(self, lines: Iterable[Line]) -> dict[int, str]:
        """Return for what each of these lines waits, if it is new: as describe_why_new_jobs_wait()."""
        runners = self.runners_at_work
        waits = self.watcher.why_lines_wait(
            {line.number for line in lines if line.state == NEW},
            inf if self.snapshot.running or runners.has_no_runners else 0.0,
            runners.count_by_kind()["servers"] != 0)
        ready = ("no runner is at work (start runmaker4.py)" if runners.has_no_runners
                 else "starts once a slot is free")
        return {number: text or ready for number, text in waits.items()}

    def __enter__(self) -> Observation:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()

    @functools.cached_property
    def recent_runs(self) -> list[RunRecord]:
        """The runs in the last TAIL_BYTES of the journal, read on first use."""
        return list(self.journal.start_pass(max(0, self.journal.size - self.TAIL_BYTES)))

    def rows_of_running_lines(self) -> list[Row]:
        """Return the row of the last run of each line that is `r`, or cancelled and still running.

        The starts of these runs are mostly near the end of the journal.  So read the last TAIL_BYTES first,
        and the complete journal only if that is not enough.
        """
        lines = self.running_lines
        line_runs = self.match_runs_with_lines(
            {line.command for line in lines}, self.recent_runs if lines else ())
        # a run in an earlier part could be the last one of a line
        if self.journal.size > self.TAIL_BYTES and not all(map(line_runs.is_last_run_certain, lines)):
            return self.last_rows_without_waiting(lines)
        return [self.row_of_line(line, line_runs.last_runs) for line in lines]

    def last_rows(self, lines: Sequence[Line]) -> list[Row]:
        """Return the row of the last run of each of these lines, which were just read.

        The end of a run can come to the journal a moment after the state to the line.  So wait for ends that
        are on the way.
        """
        for _ in self.watcher.wait_for_run_ends() if lines else ():
            rows = self.last_rows_without_waiting(lines)
            # wait on only if a finished line lacks the end of its run
            if not any((not row.run or row.run.cause == "ending") and row.line.state in (DONE, FAILED, ERROR)
                       for row in rows):
                return rows
        return self.last_rows_without_waiting(lines)

    def last_rows_without_waiting(self, lines: Iterable[Line]) -> list[Row]:
        """Return the same rows as last_rows(), but wait for no end of a run.

        If only one line has a command, all runs of the command are of that line.  If several have it, the
        line number in a run can be an old one.  So read all of these lines, to match the runs with them.
        """
        self.journal.read_on()
        number_of = {line.command: line.number for line in lines}
        repeated = {command for command in number_of if hash(command) in self._hashes_of_repeated_commands}
        for command in repeated:
            del number_of[command]
        last_runs: dict[int, RunRecord] = {}
        for run in self.journal.runs_of(number_of):
            if run.command in number_of:
                add_if_later(last_runs, number_of[run.command], run)
        if repeated:
            last_runs = {**self._last_runs_of_equal_lines(repeated, lines), **last_runs}
        return [self.row_of_line(line, last_runs) for line in lines]

    def _last_runs_of_equal_lines(self, commands: set[bytes], lines: Iterable[Line]) -> dict[int, RunRecord]:
        """Return the last runs of all lines with these commands, by line number.

        While file and journal are the same, so is the result: it is kept for the next batch of a long list.
        """
        version = self.watcher.signature(), self.journal.size_read
        if self._equal_lines[0] != version or not commands <= self._equal_lines[1]:
            runs: dict[object, RunRecord] = {}
            for run in self.journal.runs_of(commands):
                add_if_later(runs, run.last_run_key, run)
            line_runs = self.match_runs_with_lines(
                commands, runs.values(), [line for line in lines if line.command in commands])
            self._equal_lines = version, commands, line_runs.last_runs
        return self._equal_lines[2]

    @functools.cached_property
    def _hashes_of_repeated_commands(self) -> set[int]:
        return self.watcher.hashes_of_repeated_commands()

    def rows_of_all_runs(self, lines: Sequence[Line]) -> list[Row]:
        """Return rows of all runs of these lines, for --show, in the order of the file, then of the journal.

        The last run of a line comes last, wherever it is in the journal.  If a line has no known run, or has
        finished in another state than that of its last run, its last row has no run.  The lines must have
        been read just now.
        """
        unrecorded_rows = [row for row in self.last_rows(lines) if not row.run]     # waits for ends
        commands = {line.command for line in lines}
        runs = [run for run in self.journal.runs_of(commands) if run.command in commands]
        runs.sort(key=operator.attrgetter("position"))
        line_runs = self.match_runs_with_lines(commands, runs, lines)
        rows = [self.row_of_run(run, line_runs) for run in runs]
        rows += unrecorded_rows
        numbers = {line.number for line in lines}
        last_positions = {None, *(run.position for run in line_runs.last_runs.values())}
        return sorted((row for row in rows if row.line.number in numbers), key=lambda row: (
            row.line.number, getattr(row.run, "position", None) in last_positions))

    def match_runs_with_lines(
        self, commands: Collection[bytes], runs: Iterable[RunRecord], lines: Iterable[Line] = ()
    ) -> LineRuns:
        """Match runs with the lines that have these commands now, and with `lines`; ignore other runs."""
        found_lines = self.watcher.lines_with_commands(commands) if commands else []
        # LineRuns keeps the last of lines with one number: as observed, not as read now
        observed_lines = [line for line in self.running_lines if line.command in commands]
        return LineRuns([*found_lines, *observed_lines, *lines], self._running_numbers, runs)

    def row_of_line(self, line: Line, last_runs: Mapping[int, RunRecord]) -> Row:
        """Return the row of a line's last run, or of the line alone if no run is known, or none counts."""
        row = self._row(line, last_runs.get(line.number), is_last=True)
        return replace(row, run=None) if row.is_contradicted else row

    def row_of_run(self, run: RunRecord, line_runs: LineRuns) -> Row:
        """Return the row of a run, for --show and the page, which show several runs of a line.

        If the line was removed, the row has a line without a state, with number and command from the run.
        """
        if line := line_runs.line_of(run):
            row = self._row(line, run, is_last=line_runs.last_runs[line.number].position == run.position)
            # of a line that has finished in another state, no run counts
            row.is_last &= not row.is_contradicted
            return row
        # only the line could show how the run has ended
        if run.ended is None:
            run = run.without_end(END_UNKNOWN)
        # offset and state are unknown
        line = Line(run.line, 0, b"", b" " + run.command)
        return Row(line, "", run, is_last=False)

    def _row(self, line: Line, run: RunRecord | None, is_last: bool) -> Row:
        """Return the row of a line and one of its runs.  is_last: no other run of the line is later."""
        ending = self._find_ending(line, run, is_last) if run else None
        # an orphan is shown as `error`, because no runner has it
        return Row(line, STATE_WORDS.get(ERROR if line.number in self.orphan_numbers else line.state, "held"),
                   run.without_end(ending) if run and ending else run, is_last)

    def _find_ending(self, line: Line, run: RunRecord, is_last: bool) -> Ending | None:
        """Return state and cause of a run without an end, as far as the line shows them; None: it has one."""
        is_orphan = line.number in self.orphan_numbers
        had_job = is_last and line.number in self._running_numbers
        # A server that exits records its runs as lost.  If the line still has a job, the run goes on, for the
        # next server
        if run.ended is not None and not (
                run.cause == "lost" and had_job and not is_orphan and not self._can_journal_be_behind):
            return None
        if had_job or (is_last and line.state == RUNNING):
            # ENDING: finished meanwhile, and the end follows
            return LOST if is_orphan else ENDING if line.state in (DONE, FAILED, ERROR) else STILL_RUNNING
        # The file changed a moment ago, and the runner is alive: the end follows.  Of a new line the one that
        # started it: no server has taken that over
        if (self._can_journal_be_behind
                and not self.runners_at_work.has_runner_exited(run, can_be_taken_over=line.state != NEW)):
            return ENDING
        return LOST if is_last and line.state == ERROR else END_UNKNOWN


# ======== Running jobs ======================================================================================

def measure_rate(runs: Collection[RunRecord], unfinished_lines: Iterable[Line]) -> Rate | None:
    """Return the current rate of finished jobs, from which --status estimates the time left; None: unknown.

    A job counts once, when its last run ended: not if that was put back, as the job is new again, or if the
    job is in `unfinished_lines`, as it will end once more.
    """
    last_runs = {(run.line, run.command): run for run in runs}
    for line in unfinished_lines:
        last_runs.pop((line.number, line.command), None)
    counted = {run for run in last_runs.values() if run.ended and run.state != "."}
    rate, count, idle_since = Rate(), 0, -inf
    runners = set()                 # those seen
    for run in sorted(filter(operator.attrgetter("ended"), runs), key=operator.attrgetter("time")):
        runner = run.run.rpartition("-")[0]
        # count from the first start since no job ran: for a while, or until a runner was started
        if run.began > idle_since + Observation.MAX_BETWEEN_RUNS_SECONDS * (runner in runners):
            rate = Rate()
            rate.add_count(run.began, count)
        runners.add(runner)
        count += run in counted
        rate.add_count(run.time, count)
        idle_since = run.time
    # a time in the future: a clock is wrong
    return rate if count and seconds_since(idle_since) is not None else None


def status_lines(status: Fields, columns: float) -> Iterator[str]:
    """Yield a status (of status_of()) as lines of text.  columns: the maximum width."""
    yield from status_summary(status)
    if table := table_of_jobs(status, columns):
        yield from format_table(table, columns, right_columns=(0, 4))


# by the list in a status: what the table says before the command, also of a job without a runner
REMARKS = {
    "jobs": ("", "(still running without a runner) "),
    "cancelled": ("(cancelled, still running) ", "(cancelled, still running without a runner) "),
    "orphans": ("(orphan) ",) * 2,
}


def table_of_jobs(status: Fields, columns: float) -> list[list[str]]:
    """Return the rows of running jobs and orphans, below headings; []: there is none.

    columns: the width of the table, for which words with which all commands begin can be left out.
    """
    rows, commands = [["line", "host", "slot", "since", "for", ""]], []
    for job_list, remarks in REMARKS.items():
        for job in status[job_list]:
            rows.append([
                str(job["line"]),
                job["host"] or "-",
                job["slot"] or "-",
                "-" if job["start"] is None else format_time(job["start"]),
                "-" if job["seconds"] is None else human_time(job["seconds"]),
                remarks[job["without_runner"]],
            ])
            commands.append(job["command"])
    shown_commands = ["command", *without_common_beginning(
        commands, columns - max(map(len, format_table(rows, inf, (0, 4)))) - 2)]
    return [[*cells, remark + command]
            for (*cells, remark), command in zip(rows, shown_commands)] if commands else []


def status_summary(status: Fields) -> Iterator[str]:
    """Yield the lines about the numbers of jobs and runners, the time left, and why new jobs wait.

    status: of status_of().
    """
    yield f"{plural(status['total'], 'job')}: " + ", ".join(
        f"{status[name]} {name}" for name in Counts._fields)
    if per_hour := status["per_hour"]:
        seconds_left = status["seconds_left"]
        yield (f"{per_hour:.{0 if per_hour >= 10 else 1}f} jobs/h" if per_hour >= 0.1
               else f"{per_hour * 24:.1f} jobs/d") + " lately" + (
            f", {human_time(seconds_left)} left" if seconds_left is not None else "")
    yield from map(printable, status.get("hanging", ()))
    if why_new_jobs_wait := status["waits"]:
        yield printable(why_new_jobs_wait)
    if numbers := status["in_doubt"]:
        yield f"{describe_lines_in_doubt(numbers)} (runmaker4.py --resume runs them again)"
    for hint, count in Counter(job["hint"] for job in status["orphans"]).items():
        yield (f"{plural(count, 'orphan')}: {hint or 'neither runner nor job lives'} (a runner with --resume "
               f"runs {'it' if count == 1 else 'them'} again, after all new lines"
               f"{'; one at a time, if lost several times in a row' * (count > 1)})")
    for job in status["jobs"]:
        if pids := " ".join(map(str, job["processes"])):    # visible ones of a job without a runner
            yield f"line {job['line']}: the runner is dead, but the job still runs (end it: kill {pids})"
    numbers_at_work = status["runners"], status["servers"]
    if None in numbers_at_work:
        yield "cannot count runners and servers: no permission to read their locks"
    elif any(numbers_at_work) or status["new"]:
        texts = [plural(count, word) for count, word in zip(numbers_at_work, ("runner", "server")) if count]
        yield f"{' and '.join(texts) or 'no runner'} at work"
    yield from map(printable, status.get("clients", ()))


def orphan_hint(host: str | None, runner: int | None) -> str:
    """Return how the job of an orphan can still live; '': it was run here, so it is dead.

    Two kinds of jobs can live without a lock: those on a host that is cut off from the file server, and those
    of a client whose server is dead.

    host, runner: from the last run in the journal; None: unknown.
    """
    if host == os.uname().nodename and (runner or 0) < PresenceLock.SERVERS:
        return ""
    return (f"no lock is held; if {printable(host or 'its host')} is only cut off, or was served by "
            "runmaker4-server.py, its job may live: start the server first")


def status_of(observation: Observation) -> Fields:
    """Return what --status and the page of --report show, as the fields of --status --json."""
    job_counts = count_states(observation.snapshot)
    rows = {row.line.number: row for row in observation.rows_of_running_lines()}
    runs = observation.recent_runs
    rate = measure_rate(runs, observation.running_lines) if job_counts.running else None
    runners_at_work = observation.runners_at_work

    def fields_of_lines(lines: Iterable[Line]) -> list[Fields]:
        return [status_fields_of_row(rows[line.number], runners_at_work) for line in lines]

    jobs = fields_of_lines(observation.snapshot.running)
    orphans = fields_of_lines(observation.snapshot.orphans)
    for job in orphans:
        job["hint"] = orphan_hint(job["host"], getattr(rows[job["line"]].run, "runner", None))
    # if the runner of a job is dead, name the processes that keep the line `r`
    if unsupervised := [(line, job) for line, job in zip(observation.snapshot.running, jobs)
                        if job["without_runner"]]:
        holders = Holders(observation.watcher.file.lock_table.inode)
        for line, job in unsupervised:
            job["processes"] = holders.pids(line)
    # the hosts that have a runner: new jobs whose host= matches none of these wait
    hosts = {job["host"] for job in jobs if job["host"] and not job["without_runner"]}
    if job_counts.new:
        # also hosts where a run has just ended and the runner lives: jobs can be too short to be seen
        earliest = time.time() - observation.MAX_BETWEEN_RUNS_SECONDS
        hosts |= {run.host for run in runs
                  if (run.ended or 0.0) > earliest and not runners_at_work.has_runner_exited(run)}
    run_times = [run.seconds for run in runs if run.has_ended and run.seconds is not None]
    longest = max(run_times, default=0.0)
    # while new jobs wait, one that hangs delays nothing
    hanging = [] if job_counts.new else [text for job in jobs if (text := describe_if_hanging(
        job["line"], job["seconds"] or 0.0, len(run_times), longest))]
    # of this host; RunRecord.run is NODE-PID-TIME-N
    pids = {run.run.rsplit("-", 2)[0].removeprefix(f"{os.uname().nodename}-") for run in runs
            if not runners_at_work.has_runner_exited(run)}
    hanging += [f"a runner or client on this host is stopped (kill -CONT {pid})"
                for pid, process in ProcessTable(pids).processes.items() if process.state == b"T"]
    seconds_left = None
    if rate and not (runners_at_work.has_no_runners or hanging):
        seconds_left = rate.seconds_left(job_counts.new + job_counts.running, time.time())
    server_reports = [*runners_at_work.ask_servers()]
    over_tcp = any((run.runner or 0) >= PresenceLock.SERVERS for run in runs)
    return {
        **job_counts._asdict(),
        "total": job_counts.all + job_counts.held,
        "jobs": jobs,
        "cancelled": fields_of_lines(observation.cancelled_lines),
        "orphans": orphans,
        **runners_at_work.count_by_kind(),
        "per_hour": rate and (rate.per_second(time.time()) * 3600 or None),
        "seconds_left": seconds_left,
        "in_doubt": [line.number for line in observation.watcher.file.find_lines_in_doubt() or ()],
        "waits": describe_why_new_jobs_wait(
            observation.watcher, job_counts, runners_at_work, hosts, over_tcp),
        **({"hanging": hanging} if hanging else {}),
        **({"clients": server_reports} if server_reports else {}),
    }


def status_fields_of_row(last_row: Row, runners_at_work: RunnersAtWork) -> Fields:
    """Return the fields of the status for a running line or an orphan.

    If the last run in the journal has ended, the current run is not there yet, and the fields of a run are
    None.  But if that run was unsuccessful and the runner is alive, return host and slot: a runner keeps them
    between two tries.  status_of() sets `processes`.

    `without_runner`: True if it is sure that the program is dead that would write the result of this line.
    """
    run = last_row.run
    fields = {**last_row.json_job_fields(), **({"files": run.files} if run and run.files else {})}
    without_runner = runners_at_work.has_runner_exited(run)
    if run and run.ended is not None:
        fields = replace(last_row, run=None).json_job_fields()
        if run.state in BAD_RUN_STATES and run.runner is not None and not without_runner:
            fields.update(host=run.host, slot=run.slot)
        without_runner = runners_at_work.has_no_runners         # it is not known which one has the line
    return {**fields, "without_runner": without_runner, "processes": []}


def describe_why_new_jobs_wait(
    watcher: Watcher, job_counts: Counts, runners_at_work: RunnersAtWork, hosts: Collection[str] = (),
    over_tcp: bool = False
) -> str:
    """Return the find_block_reason(), or else that no runner is at work; '': neither, or no job is new.

    hosts: those that have runners, as far as known.  over_tcp: a server has handed out jobs of the file.
    """
    if not job_counts.new:
        return ""
    # inf: lack of memory is no reason while jobs run (it ends with them), nor without runners; 0.0: it is
    memory = inf if job_counts.running or runners_at_work.has_no_runners else 0.0
    is_served = runners_at_work.count_by_kind()["servers"] != 0     # or that is unknown
    if block_reason := watcher.block_reason(hosts, memory, is_served):
        return block_reason.text
    if runners_at_work.has_no_runners:
        return (f"{job_counts.new} new, but no runner (start runmaker4.py"
                f"{' or runmaker4-server.py' * over_tcp})")
    return ""


# ======== Runs of lines =====================================================================================
#
# --failed shows the lines that are failed or in error, and the last run of each; --show the named lines and
# all their runs.


def describe_result(run: RunRecord) -> str:
    """Return how a run ended: 'exit 3', 'signal 9 (SIGKILL)', 'took 5.1G of 4G', 'lost', ..."""
    if run.cause == "memory" and run.promised:
        return f"took {run.peak_text or 'more'}"
    # a cause says it all, but `oom` does not tell how the job ended
    if run.cause and run.cause != "oom":
        return run.cause
    if run.ended is None:
        return "running"
    text = "could not be started" + (f" ({printable(run.why)})" if run.why else "")
    if run.exit >= 0:
        # 128 + signal: a shell whose last command was killed
        text = f"exit {run.exit}{signal_suffix(run.exit - 128)}"
    if run.signal:
        text = f"signal {run.signal}{signal_suffix(run.signal)}"
    return f"out of memory, {text}" if run.cause else text


@functools.lru_cache
def signal_suffix(number: int) -> str:
    """Return ' (SIGSEGV)' for 11; '' if no signal has this number."""
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:
        return ""


MAX_LINES = 50_000              # in memory at once
# of a line that has finished
NO_RECORDED_RUN = ("no recorded run: edited or set by hand, stopped between tries or with its "
                   "group, or its record was not kept, or is in another --outdir")


def batches_of_lines(watcher: Watcher, states: bytes | None) -> Iterator[list[Line]]:
    """Yield the lines in these states (None: any), in the order of the file; batches bound the memory."""
    last = None
    while lines := watcher.lines_below(last, states):
        yield lines
        last = lines[-1]


def find_lines(selection: str, watcher: Watcher) -> list[Line]:
    """Return the lines that a user has named after --show, or for --output: numbers, command, or pattern.

    Try a complete command before a pattern, as commands can have its special characters.  Raises UsageError
    if none matches, or a part such as '5-9' has no job.
    """
    command = os.fsencode(selection)
    try:
        ranges = parse_line_ranges(selection)
    except argparse.ArgumentTypeError:
        lines = (watcher.lines_with_commands({command})
                 or watcher.select_lines(None, lambda line: fnmatch.fnmatchcase(line.command, command)))
        unmatched = [] if lines else [selection]
    else:
        # thousands of single numbers are possible
        single = {span[0] for span in ranges if span[0] == span[-1]}
        longer = [span for span in ranges if span[0] < span[-1]]
        lines = watcher.select_lines(
            None,
            lambda line: line.number in single or any(line.number in span for span in longer),
            max(span[-1] for span in ranges),
        )
        found = [line.number for line in lines]
        unmatched = [part for part, span in zip(selection.split(","), ranges)
                     if bisect.bisect_left(found, span[0]) == bisect.bisect_right(found, span[-1])]
    if unmatched:
        raise UsageError(
            f"{watcher.path}: no job matches '{printable(unmatched[0])}' (expected line numbers such "
            "as 1,2,5-9, a complete command, or a shell pattern for commands)"
        )
    return lines


def format_row(
    row: Row, command: str, directory: str, last_lines: Iterable[str], columns: float, note: str
) -> Iterator[str]:
    """Yield a row as lines of text, for --failed and --show.

    command: as shown, perhaps without its first words.  last_lines: of the output of the run.  directory: of
    the files with output.  note: for what the line waits, or what waits for it; '': nothing.
    """
    result = f"{row.line_state}; " + (
        NO_RECORDED_RUN if row.line_state in FINISHED_LINE_STATES else "no run in the journal")
    if row.run:
        result = describe_run(row.run)
        if row.is_last and row.differing_line_state:
            result = f"{row.differing_line_state}; last run: {result}"
    yield fit_to_width(f"line {row.line.number}: {result}", columns)
    def fill(text: str) -> str:
        # columns is infinite for programs: they get the text in one line
        return filled(text, int(max(min(columns, len(text) + 4), 20)), "    ")

    if note:
        yield fill(note)
    yield f"    {command}"
    if row.run:
        yield fill(printable(describe_resources_and_output(row.run, directory)))
    for text in last_lines:
        yield fit_to_width(f"  | {text}", min(columns, RunOutput.MAX_COLUMNS))


def describe_run(run: RunRecord) -> str:
    """Return a run in words: 'exit 3 on node1, 14:03:22, after 49 ms, 12M'."""
    result = describe_result(run)
    if run.state == ".":
        result = f"put back, {result}"
    parts = [f"{result} on {run.host}"]
    if run.ended is None:
        parts.append(f"began {format_time(run.began)}")
    elif run.seconds is not None:
        parts += [format_time(run.ended), f"after {took(run.seconds)}"]
    if (peak_text := run.peak_text) and peak_text not in result:
        parts.append(peak_text)
    # without a process, describe_result() has it
    if run.why and run.pid:
        parts.append(printable(run.why))
    # still running: a lost one has no `seconds`
    if run.ended is None and run.seconds is not None:
        parts.append(f"{human_time(run.seconds)} ago")
    return ", ".join(parts)


def describe_resources_and_output(run: RunRecord, directory: str) -> str:
    """Return slot, process, directory, CPU time and output of a run in words.

    For example 'slot 2, process 4712, in /home/me, CPU 1.9s, printed 95 B: out/17.out, out/17.err'.
    """
    parts = [f"slot {run.slot}"]
    if run.pid:
        parts.append(f"process {run.pid}")
    if run.directory:
        parts.append(f"in {run.directory}")
    if run.cpu is not None:
        parts.append(f"CPU {took(run.cpu)}")
    output_text = "printed nothing" if run.has_ended else "output unknown"
    if run.bytes:
        output_text = f"printed {size_text(run.bytes)}"
    if run.incomplete:
        output_text += " (some could not be written)"
    if run.files:
        output_text += ": " + ", ".join(os.path.join(directory, name) for name in run.files)
    return ", ".join([*parts, output_text])


def print_runs(watcher: Watcher, options: Namespace) -> Counts:
    """Print the last runs of failed lines (--failed), or all runs of the named lines (--show).

    If several failed lines have one reason, then print each reason, with the number of its lines.  Return the
    number of lines in each state, for the exit status.
    """
    output = RunOutput(options.outdir, RunOutput.FEW_LINES if options.failed else RunOutput.MORE_LINES)
    groups = FailureGroups()
    columns = stdout_columns()
    # one JSON object, printed piece by piece
    before_row = '{"runs": ['
    with Observation(watcher, options, say) as observation:
        stopped = watcher.find_stopped_lines() if options.failed else {}
        for rows in (rows_of_bad_lines(observation) if options.failed
                     else [observation.rows_of_all_runs(find_lines(options.show, watcher))]):
            # --show prints complete commands
            command_columns = columns - 4 if options.failed else inf
            commands = without_common_beginning([to_text(row.line.command) for row in rows], command_columns)
            waits = {} if options.failed else observation.why_lines_wait(row.line for row in rows)
            for row, command in zip(rows, commands):
                number = row.line.number
                output.measure([row])
                last_lines, reason_line = output.last_lines(row.run) if row.run else ([], "")
                if options.json:
                    fields = {**row.json_fields(), "reason": reason_of_failure(row, reason_line) or None,
                              "waits": waits.get(number), "stops": stopped.get(number)}
                    print_bytes((before_row + json.dumps(fields)).encode())
                    before_row = ", "
                    continue
                if row.is_last and row.line_state in BAD_LINE_STATES:
                    groups.add(row, reason_line)
                note = waits.get(number, "") if row.is_last or not row.run else ""
                if number in stopped:
                    note = f"stops {plural(len(stopped[number]), 'line')}: {join_first_few(stopped[number])}"
                print_lines(format_row(row, fit_to_width(command, command_columns), output.directory,
                                       last_lines, columns, note))
    if options.json:
        print_lines([before_row.lstrip(", ") + "]}"])
    largest_first = groups.largest_first()
    if any(group.count > 1 for group in largest_first):
        print_lines(["", *(fit_to_width(f"{group.count:6}  {group.words}  ({group.lines_and_hosts})", columns)
                           for group in largest_first)])
    return count_states(observation.snapshot)


def rows_of_bad_lines(observation: Observation) -> Iterator[list[Row]]:
    """Yield the rows that --failed shows, in batches, which bound the memory.

    These are the last runs of lines that are failed or in error, and last runs with incomplete output.
    """
    observation.journal.read_on()
    incomplete_commands = observation.journal.incomplete_commands
    # None: any line can have incomplete output.  RUNNING: an orphan is `r`, and counts as in error
    states = None if incomplete_commands else FAILED + ERROR + RUNNING
    for lines in batches_of_lines(observation.watcher, states):
        wanted = [line for line in lines
                  if line.state in (FAILED, ERROR) or line.number in observation.orphan_numbers
                  or line.command in incomplete_commands]
        yield [row for row in observation.last_rows(wanted)
               if row.line_state in BAD_LINE_STATES or (row.run and row.run.incomplete)]


# a number in a command or in output
NUMBER_PATTERN = re.compile(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?(?:e[-+]?\d+)?")
PLACEHOLDER = "…"               # for a number, or for what differs
MAX_GROUPS = 1000               # of commands or failures; others make one more


@dataclass(eq=False)
class FailureGroup:
    """Failed lines with one reason."""
    words: str                  # the reason
    count: int
    first_numbers: list[int]    # of the lines, as many as name_lines() needs
    hosts: set[str]

    @property
    def lines_and_hosts(self) -> str:
        """Return for example 'lines 1, 2 on node1'."""
        host_text = min(self.hosts) if len(self.hosts) == 1 else f"{len(self.hosts)} hosts"
        return name_lines(self.first_numbers) + (f" on {host_text}" if self.hosts else "")


def reason_of_failure(row: Row, reason_line: str) -> str:
    """Return why a run failed: cause, result, or the line of RunOutput.last_lines(); '': it did not."""
    run = row.run
    if not run:
        return "no recorded run" if row.line_state in BAD_LINE_STATES else ""
    if run.state not in BAD_RUN_STATES:
        return ""
    # a line without a word says little
    if any(map(str.isalpha, reason_line)):
        return reason_line
    result = describe_result(run) + (reason_line and f": {reason_line}")
    return f"{result} after {human_time(run.seconds or 0)}" if run.cause == "timeout" else result


# of a reason or a command, between what quotes and separates words
WORD = re.compile(r"""[^\s'"`=,:;()<>|&\[\]{}\u2018\u2019]+""")


def without_names(reason_line: str, command: bytes) -> str:
    """Return the line with a placeholder for each number, and each word of the command, such as a file."""
    names = {os.path.basename(word) for word in WORD.findall(to_text(command[:MAX_LINE_BYTES]))}
    text = WORD.sub(lambda word: PLACEHOLDER if os.path.basename(word[0].rstrip(".")) in names else word[0],
                    reason_line)
    return NUMBER_PATTERN.sub(PLACEHOLDER, text)


def merge_words(text: str, other_text: str, general_text: str) -> str:
    """Return the words that two texts share, and for the others those of a text that stands for both."""
    texts = text.split(" "), other_text.split(" "), general_text.split(" ")
    return " ".join(word if word == other else general for word, other, general in zip(*texts))


class FailureGroups:
    """Failed lines, grouped by reason_of_failure().

    Numbers in output are ignored, and words that the command has, for example in `step 341: no convergence`
    and `a.bam: truncated`.  Exit statuses are not.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], FailureGroup] = {}      # by cause, or by general reason

    def add(self, row: Row, reason_line: str) -> FailureGroup:
        """Add a failed line to the group of lines with the same reason, and return that group.

        Call it in the order of the file: a group keeps the numbers of its first lines.
        """
        run = row.run
        words = reason_of_failure(row, reason_line)
        general_line = without_names(reason_line, row.line.command)
        general_words = words.removesuffix(reason_line) + general_line
        cause = run.cause if run else ""
        key = cause, "" if cause else general_words
        # at the limit one more group takes all other lines
        if key not in self._groups and len(self._groups) >= MAX_GROUPS:
            key = "", PLACEHOLDER
        group = self._groups.setdefault(key, FailureGroup(words, 0, [], set()))
        # show the cause, or placeholders for the words in which the lines differ
        if group.words != words:
            group.words = cause or merge_words(group.words, words, key[1])
        group.count += 1
        if len(group.first_numbers) <= NAMED_LINES:
            group.first_numbers.append(row.line.number)
        if run:
            group.hosts.add(run.host)
        return group

    def largest_first(self) -> list[FailureGroup]:
        return sorted(self._groups.values(), key=lambda group: -group.count)


# ======== Output of lines ===================================================================================
#
# --output prints the stdout of the last run of each line, as it is, or in a table with all lines.


class OutputOfLines:
    """The stdout of the last run of each line, and what is known of that run."""
    COLUMNS = ("line", "state", "exit", "seconds", "host", "command", "stdout")
    MAX_CELL_BYTES = 1 << 26    # of a stdout: it is in memory as a whole

    def __init__(self, directory: str, template: TemplateReader | None) -> None:
        self._output = RunOutput(directory)
        self._template = template  # None: no columns for values
        self._columns = [*self.COLUMNS[:-2], *(template.names if template else ()), *self.COLUMNS[-2:]]
        self.left_out_lines: dict[int, str] = {}    # the states of those that as_text() has left out
        self.unfitting_lines: list[int] = []    # whose commands the template cannot have made
        self.fits_any = False                   # it can have made the command of a line
        self.lost_lines: dict[int, str] = {}    # why the output of a line is missing, or incomplete
        self.invalid_lines: list[int] = []      # with a cell that is not UTF-8

    def as_text(self, rows: Iterable[Row]) -> Iterator[bytes]:
        """Yield the stdout of done lines; note the others for a message."""
        previous = b"\n"
        for row in rows:
            if row.line_state == "done":
                for index, part in enumerate(filter(None, self._stdout(row, self._finished_run(row)))):
                    if index == 0 and not previous.endswith(b"\n"):
                        yield b"\n"             # two jobs never share a line
                    yield part
                    previous = part
            else:
                self.left_out_lines[row.line.number] = row.line_state

    def as_json(self, rows: Iterable[Row]) -> Iterator[bytes]:
        """Yield a JSON object for each line (JSON Lines)."""
        for row in rows:
            yield json.dumps(dict(zip(self._columns, self._cells(row)))).encode() + b"\n"

    def as_csv(self, rows: Iterable[Row]) -> Iterator[bytes]:
        """Yield a table for --output --csv (RFC 4180, but lines end with a newline alone).

        A cell has the stdout without the newlines at its end, as $(command) in a shell has it, so that
        numbers stay numbers.
        """
        # A csv.writer quotes a \r only if its own line end has one, and many readers take a bare \r for the
        # end of a row (findings/csv-row-splits-at-a-progress-bar.sh).  So let it write \r\n, and remove
        # the \r
        writer = csv.writer(SimpleNamespace(write=lambda text: to_bytes(f"{text[:-2]}\n")),
                            lineterminator="\r\n")
        yield writer.writerow(self._columns)
        for row in rows:
            *cells, stdout = self._cells(row)
            yield writer.writerow([*cells, (stdout or "").rstrip("\n")])

    def _cells(self, row: Row) -> list[Any]:
        """Return the values of a row for --csv and --json; None: unknown."""
        run = self._finished_run(row)
        values = self._template.find_values(row.line.command) if self._template else ()
        if None in values:
            self.unfitting_lines.append(row.line.number)
        else:
            self.fits_any = True
        stdout = self._short_stdout(row, run)
        cells = [
            row.line.number,
            row.line_state,
            run.exit if run and run.exit >= 0 else None,
            run and run.seconds,
            run and run.host,
            *values,
            to_text(row.line.command),
            stdout if run else None,
        ]
        text = "".join(map(str, cells))
        if to_valid_text(text) != text:
            self.invalid_lines.append(row.line.number)
        return cells

    def _short_stdout(self, row: Row, run: RunRecord | None) -> str:
        """Return the stdout of a finished run; '': none, or, which is noted, it is too long for a cell."""
        # short output is in the journal alone, as text: no file must be opened
        if run and not (run.files or run.incomplete):
            return run.stdout
        stdout = bytearray()
        for part in self._stdout(row, run):
            stdout += part
            if run and len(stdout) > self.MAX_CELL_BYTES:
                self.lost_lines[row.line.number] = (
                    f"{os.path.join(self._output.directory, run.files[0])}: too long for a cell, which is "
                    "empty")
                return ""
        return to_text(bytes(stdout))

    def _stdout(self, row: Row, run: RunRecord | None) -> Iterator[bytes]:
        """Yield the parts of the stdout of a finished run.  If it is not complete, note the line and why.

        run: from _finished_run().  print_output() reports the noted lines.
        """
        reason = ""
        if run:
            reason = "some could not be written" if run.incomplete else ""
            try:
                yield from self._output.read_stdout(run)
            except OSError as error:
                reason = error_text(error)
        # a lost run is recorded, but did not finish
        elif row.line_state in FINISHED_LINE_STATES and not (row.run and row.run.is_lost):
            reason = NO_RECORDED_RUN
        if reason:
            self.lost_lines[row.line.number] = reason

    @staticmethod
    def _finished_run(row: Row) -> RunRecord | None:
        """Return the run of a finished line; None for one that will run again, or whose end is unknown.

        That of a held line is its last one; a line that was cancelled when it was new has none.
        """
        is_finished = row.line_state not in ("new", "running") and (
            row.line_state == "held" or not row.differing_line_state)
        return row.run if is_finished and row.run and row.run.has_ended else None


def for_terminal(lines: bytearray) -> bytes:
    """Return what of job output may reach a terminal; a colour ends with its line."""
    text = terminal_text(bytes(lines))
    return text.replace(b"\n", PLAIN + b"\n") if b"\x1b" in text else text


def print_output(watcher: Watcher, options: Namespace) -> int:
    """Print the output of lines (--output); return the exit status.

    It is 1 if output is missing or not complete, a line is left out, or the template fits no command.
    """
    output = OutputOfLines(options.outdir, options.template)
    print_as = output.as_json if options.json else output.as_csv if options.csv else output.as_text
    buffer = bytearray()
    with Observation(watcher, options, say) as observation:
        batches = batches_of_lines(watcher, None)
        if options.line is not None:
            lines = find_lines(options.line, watcher)
            batches = (lines[start:start + MAX_LINES] for start in range(0, len(lines), MAX_LINES))
        to_stdout = for_terminal if os.isatty(1) else bytes
        for part in print_as(itertools.chain.from_iterable(map(observation.last_rows, batches))):
            buffer += part
            if len(buffer) > BLOCK:
                end_offset = buffer.rfind(b"\n") + 1 or len(buffer)
                print_bytes(to_stdout(buffer[:end_offset]))
                del buffer[:end_offset]
        print_bytes(to_stdout(buffer))
    for problem, line_numbers, hint in (
        ("the output is not complete", output.lost_lines,
         f"{join_first_few([*dict.fromkeys(output.lost_lines.values())])}; see --show LINE"),
        ("not done, and left out", output.left_out_lines, "--csv and --json have all lines"),
        ("--template does not fit, or fits in several ways", output.unfitting_lines,
         "their values are empty"),
        ("not UTF-8", output.invalid_lines, "many programs refuse such a table as a whole: pipe --json into "
         "jq -c ., --csv into iconv -c -f UTF-8 -t UTF-8"),
    ):
        if line_numbers:
            say(f"{watcher.path}: {problem}: {name_lines(line_numbers)} ({hint})")
    return 1 if output.lost_lines or {*output.left_out_lines.values()} - {"held", "cancelled"} or (
        output.unfitting_lines and not output.fits_any) else 0


# ======== Statistics ========================================================================================
#
# The ends in the journal are counted in one pass.  Time and memory of each run are kept for the quantiles.


class ResourceUse:
    """Times, CPU and memory of the runs of a host, of similar commands, or of all runs."""

    def __init__(self) -> None:
        self.seconds = array("d")  # of each run
        # seconds, of the runs with known CPU time
        self.cpu_seconds = self.seconds_with_known_cpu = 0.0
        # bytes; 0: unknown
        self.largest_memory = 0
        self.largest_upper_bound = 0    # bytes, of peaks that could not be measured; 0: none
        self.travelled = 0              # bytes of files of send= and fetch=
        self.too_little = 0             # runs that were killed for lack of memory

    def add(self, run: RunRecord) -> None:
        if run.seconds is None:         # never: an `end` without seconds is invalid (RunRecord)
            return
        self.seconds.append(run.seconds)
        if run.cpu is not None:
            self.cpu_seconds += run.cpu
            self.seconds_with_known_cpu += run.seconds
        self.largest_memory = max(self.largest_memory, run.memory or 0)
        self.largest_upper_bound = max(self.largest_upper_bound, run.memory_below or 0)
        self.travelled += run.travelled
        self.too_little += run.cause in ("memory", "oom")

    def json_fields(self) -> Fields:
        """Return the fields for --stats --json.  At least one run must have been added.

        cpu_use: 1.5 if the runs used one and a half CPUs on average.  memory: the largest known peak, in
        bytes.  memory_below: the unknown peaks were below this.  None: unknown, or no such runs.
        """
        in_order = sorted(self.seconds)
        median, p90, longest = (
            in_order[math.ceil(len(in_order) * percent / 100) - 1] for percent in (50, 90, 100)
        )
        return {
            "runs": len(self.seconds),
            "median": median,
            "p90": p90,
            "longest": longest,
            "cpu_use": (self.cpu_seconds / self.seconds_with_known_cpu if self.seconds_with_known_cpu
                        else None),
            "memory": self.largest_memory or None,
            "memory_below": self.largest_upper_bound or None,
            "too_little": self.too_little,
        }


SHOWN_GROUPS = 20


def read_stats(outdir: str) -> Fields:
    """Count the finished runs of a journal, per host and group of commands, for --stats.

    Commands with the same first word, apart from numbers in it, are one group.  Raises UsageError if no run
    has finished.
    """
    journal = JournalReader(outdir, say)
    total = ResourceUse()
    hosts: defaultdict[str, ResourceUse] = defaultdict(ResourceUse)
    groups: defaultdict[str, ResourceUse] = defaultdict(ResourceUse)
    common_words: dict[str, list[str]] = {}     # by group: with which all its commands begin
    group_of = functools.lru_cache(functools.partial(NUMBER_PATTERN.sub, PLACEHOLDER))
    without_end = 0
    too_little_lines = set()          # their numbers when they ran
    with contextlib.closing(journal):
        for run in journal.start_pass():
            if not run.has_ended:
                without_end += 1
                continue
            words = [*to_text(run.command).split(), ""]     # "": the end of the command
            group = group_of(words[0])
            # at the limit one more group takes all other commands
            if group not in groups and len(groups) >= MAX_GROUPS:
                group = PLACEHOLDER
            common = common_words.setdefault(group, words)
            if words[:len(common)] != common:
                common_words[group] = [word for word, _ in itertools.takewhile(
                    lambda pair: pair[0] == pair[1], zip(common, words))]
            for stats in total, hosts[run.host], groups[group]:
                stats.add(run)
            if run.cause in ("memory", "oom"):
                too_little_lines.add(run.line)
    if not hosts:
        raise UsageError(f"{journal.path}: no finished runs (nothing to count)")
    commands = []
    for group, stats in groups.items():
        # the words with which all commands of the group begin: `simulate --seed …`
        *words, last_word = common_words[group] or [group]
        commands.append({
            "command": printable(" ".join(words if last_word == "" else [*words, last_word, PLACEHOLDER])),
            **stats.json_fields()})
    # those with most memory first
    commands.sort(key=lambda row: -max(row["memory"] or 0, row["memory_below"] or 0))
    return {
        "hosts": [{"host": name, **hosts[name].json_fields()} for name in sorted(hosts)],
        "all": total.json_fields(),
        "commands": commands,
        "without_end": without_end,
        "too_little_lines": sorted(too_little_lines),
        **({"travelled": total.travelled} if total.travelled else {}),
    }


def stats_lines(stats: Fields, columns: float) -> Iterator[str]:
    """Yield statistics (of read_stats()) as lines of text: a table of hosts and one of commands."""
    headings = ["runs", "median", "90%", "longest", "CPU", "memory", "too little"]

    def format_rows(name: str, rows: Iterable[Fields]) -> Iterator[str]:
        # name: heading of the first column, and its key in each row
        cells = [[name, *headings], *([
            row[name],
            str(row["runs"]),
            *(took(row[key]) for key in ("median", "p90", "longest")),
            "-" if row["cpu_use"] is None else f"{100 * row['cpu_use']:.0f}%",
            format_peak(row["memory"], row["memory_below"]) or "-",
            str(row["too_little"]),
        ] for row in rows)]
        return format_table(cells, columns, right_columns=range(1, len(headings) + 1))

    yield from format_rows("host", [*stats["hosts"], {**stats["all"], "host": "in all"}])
    yield ""
    groups = stats["commands"]
    yield from format_rows("command", groups[:SHOWN_GROUPS])
    if len(groups) > SHOWN_GROUPS:
        yield f"and {plural(len(groups) - SHOWN_GROUPS, 'command')} more, which took less memory"
    if numbers := stats["too_little_lines"]:
        yield f"too little memory: {name_lines(numbers)} (the numbers when they ran)"
    if size := stats.get("travelled"):
        yield f"{memory_text(size)} of files travelled over TCP"
    if count := stats["without_end"]:
        yield f"{plural(count, 'run')} without an end: running, or lost"


# ======== The timeline ======================================================================================
#
# The timeline is a file of trace events (Trace Event Format, JSON object form), for Perfetto and
# chrome://tracing.  A track has runs that follow each other.  A slot of the journal is one track, or several
# if two runners of a host have slots of this name.  Times are in microseconds.

# the first bytes of our timelines; the format leaves `otherData` to the writer
TIMELINE_HEAD = b'{"otherData":{"made_by":"runwait4.py"},"traceEvents":['
MAX_NAME_CHARACTERS = 100       # of the command in an event's name
MIN_DURATION_US = 1             # viewers would draw the next run into a run without duration
# a longer overlap is not from rounding: the journal has milliseconds
MAX_ROUNDING_US = 1500


class TraceEvent:
    """The "complete event" (ph X) of a run.  Those of all runs are in memory at once."""
    __slots__ = ("duration_us", "other_fields", "start_us")

    def __init__(self, start_us: int, duration_us: int, other_fields: bytes) -> None:
        self.start_us = start_us
        self.duration_us = duration_us
        self.other_fields = other_fields    # JSON


def trace_event(run: RunRecord, seconds: float) -> TraceEvent:
    """Return the event of a run, for --timeline.  seconds: the duration.

    The exit status is as in GNU parallel: -1 after a timeout, or 128 + the number of a signal.
    """
    command, state = run.command.decode(errors="replace"), RUN_STATE_WORDS[run.state]
    exit_status = -1 if run.cause == "timeout" else 128 + run.signal if run.signal else run.exit
    return TraceEvent(round(run.began * 1e6), max(MIN_DURATION_US, round(seconds * 1e6)), encode({
        "name": shorten(command, MAX_NAME_CHARACTERS),
        "cat": state,
        "args": {
            "command": command,
            "line": run.line,
            "state": state,
            "exit_status": exit_status,
            "signal": run.signal,
        },
    }))


def assign_tracks(events: Iterable[TraceEvent]) -> list[list[TraceEvent]]:
    """Put the runs of a slot on tracks, on which runs follow each other; return the events of each track.

    A run goes to the first track that is free when it begins.  One track suffices, unless two runners of a
    host have slots of this name.
    """
    tracks: list[list[TraceEvent]] = []
    for event in sorted(events, key=operator.attrgetter("start_us")):   # with equal starts: as in the journal
        for track in tracks:
            # Logged times are rounded, so a run can seem to begin before the previous one ends, or with it.
            # That one is shortened then: two tracks would show runs side by side that were not.
            last = track[-1]
            if last.start_us + last.duration_us - MAX_ROUNDING_US <= event.start_us:
                event.start_us = max(event.start_us, last.start_us + MIN_DURATION_US)
                last.duration_us = min(last.duration_us, event.start_us - last.start_us)
                track.append(event)
                break
        else:
            tracks.append([event])
    return tracks


def trace_events(events_by_slot: Mapping[tuple[str, str], Sequence[TraceEvent]]) -> Iterator[bytes]:
    """Yield, as JSON, the names of each host and track, and then the events of their runs.

    A host is a process of the trace, a track a thread.  Perfetto finds the name of a thread by `tid` alone,
    so each `tid` is unique.  The main thread (`tid` equals `pid`) is shown first: slot 1.
    """
    tracks = [
        (host, f"{slot} ({number})" if number > 1 else slot, track)
        # node2 comes before node10
        for host, slot in sorted(events_by_slot, key=lambda names: [
            [int(part) if index % 2 else part for index, part in enumerate(re.split("([0-9]{1,18})", name))]
            for name in names])
        for number, track in enumerate(assign_tracks(events_by_slot[host, slot]), 1)
    ]
    pid_of_host: dict[str, int] = {}        # the number of its first track
    for tid, (host, slot, track) in enumerate(tracks, 1):
        pid = pid_of_host.setdefault(host, tid)
        fields = {"ph": "M", "pid": pid, "tid": tid, "ts": 0}
        if pid == tid:
            yield encode({**fields, "name": "process_name", "args": {"name": to_valid_text(host)}})
            yield encode({**fields, "name": "process_sort_index", "args": {"sort_index": pid}})
        yield encode({**fields, "name": "thread_name", "args": {"name": f"slot {printable(slot)}"}})
        yield encode({**fields, "name": "thread_sort_index", "args": {"sort_index": tid - pid + 1}})
        for event in track:
            yield b'{"ph":"X","pid":%d,"tid":%d,"ts":%d,"dur":%d,%s' % (
                pid, tid, event.start_us, event.duration_us, event.other_fields[1:])


def refuse_foreign_file(path: str, head: bytes) -> None:
    """Refuse to replace a file unless it is missing, empty, or begins with `head`: then it is ours."""
    refuse_special_file(path, "give another name")
    with refused_as(path, " (give another name)"), suppress(FileNotFoundError), \
            open(path, "rb") as file:
        if file.read(len(head)) not in (b"", head):
            raise UsageError(f"{path}: not written by this option (give another name)")


@contextlib.contextmanager
def open_replacement(path: str, head: bytes) -> Iterator[BinaryIO]:
    """Open a temporary file, which replaces `path` at the end of the block, with the rights of the old file.

    So no program reads a half written file, and after an error the old one remains.  Raises UsageError if
    another program has written the old file.  head: with which each file of this kind begins.
    """
    target = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(target), f".{PROG}-{secrets.token_hex(8)}")
    try:
        refuse_foreign_file(path, head)
        with refused_as(path, " (expected a writable file)"):
            old_info = stat_or_none(path)  # None: there is none yet
            with open(temporary, "xb",
                      opener=functools.partial(os.open, mode=0o600 if old_info else 0o666)) as file:
                if old_info:
                    copy_owner_and_mode(file.fileno(), old_info)
                yield file
            os.replace(temporary, target)
    finally:
        with suppress(OSError):         # after os.replace() it is no longer there
            os.unlink(temporary)


def write_timeline(options: Namespace) -> None:
    """Write the finished runs of the journal as trace events, one a line, to --timeline."""
    exit_on(*KILL_SIGNALS)
    journal = JournalReader(options.outdir, say)
    # by host and slot; trace_events() makes tracks of runs that overlap
    events_by_slot = defaultdict(list)
    with contextlib.closing(journal), open_replacement(options.timeline, TIMELINE_HEAD) as file:
        for run in journal.start_pass():
            if run.seconds is not None:
                events_by_slot[run.host, run.slot].append(trace_event(run, run.seconds))
        if not events_by_slot:
            raise UsageError(f"{journal.path}: no finished runs (nothing to draw)")
        lines = trace_events(events_by_slot)
        file.write(TIMELINE_HEAD + b"\n" + next(lines))
        file.writelines(b",\n" + line for line in lines)
        file.write(b"\n]}\n")


# ======== The report ========================================================================================
#
# The report is one page: PAGE, at the end of this file.  The status and the reasons of failures are HTML,
# readable without scripts; from rows as JSON the script makes the table and the picture.
#
# No text from jobs becomes markup: escape_html() quotes it, the JSON has no `<`, and the script uses
# textContent.

# only without scripts: the script does not reload while the user types
REFRESH_TAG = '<noscript><meta http-equiv="refresh" content="%d"></noscript>'


class Report:
    """What the page shows, as of one observation."""
    MAX_RUNS = 20_000           # the last in the journal, plus last runs of failed lines
    MAX_OUTPUTS = 10_000        # runs whose files are read
    MAX_COMMAND_CHARACTERS = 1000

    def __init__(self, observation: Observation, output: RunOutput) -> None:
        """Read what the page shows: the status, runs, and the last lines of output of failed runs.

        The runs are the last MAX_RUNS of the journal.  The last run of each failed line is added, because it
        can be older.
        """
        self.status = status_of(observation)
        # an orphan counts as in error
        failed_lines = [*observation.watcher.select_lines(FAILED + ERROR), *observation.snapshot.orphans]
        failed_lines.sort(key=operator.attrgetter("number"))
        commands = {line.command for line in [*failed_lines, *observation.running_lines]}
        last_runs: dict[tuple[object, ...], RunRecord] = {}
        recent_runs: deque[RunRecord] = deque(maxlen=self.MAX_RUNS)
        self.run_count = 0
        for run in observation.journal.start_pass():
            self.run_count += 1
            recent_runs.append(run)
            # the last run of a failed or running line can be older than the recent runs
            if run.command in commands:
                add_if_later(last_runs, run.last_run_key, run)
        commands.update(run.command for run in recent_runs)
        line_runs = observation.match_runs_with_lines(
            commands, [*last_runs.values(), *recent_runs], failed_lines)
        self.failed_rows = [observation.row_of_line(line, line_runs.last_runs) for line in failed_lines]
        failed_positions = {row.run.position for row in self.failed_rows if row.run}
        self.rows = [*self.failed_rows, *(observation.row_of_run(run, line_runs) for run in recent_runs
                                          if run.position not in failed_positions)]
        output.measure(self.rows)
        bad_runs = [row.run for row in self.rows
                    if row.run and (row.line_state in BAD_LINE_STATES or row.run.state in BAD_RUN_STATES)]
        # short output is in the journal, and read already
        unread_runs = set([run for run in bad_runs if run.files][self.MAX_OUTPUTS:])
        self.last_lines = {run: self._without_output(run) if run in unread_runs else output.last_lines(run)
                           for run in bad_runs}

    @staticmethod
    def _without_output(run: RunRecord) -> tuple[list[str], str]:
        """Return instead of RunOutput.last_lines() that the output of a run was not read."""
        text = "output not read"
        return [f"({text})"], "" if run.cause or run.signal else f"{describe_result(run)}, {text}"

    def fields_of_row(self, row: Row, link_base: str) -> Fields:
        """Return what the page's script shows of a row.  link_base: of find_link_base(); '': no links."""
        run = row.run
        files = run.files if run and link_base else []
        fields = row.json_fields()
        del fields["stdout"], fields["stderr"]          # the page has the last lines
        changed_state = f" (now {row.differing_line_state})" if row.differing_line_state else ""
        return {
            **fields,
            "command": shorten(fields["command"], self.MAX_COMMAND_CHARACTERS),
            "is_last": row.is_last,
            "zone": run and time.localtime(run.began).tm_gmtoff,
            "result": describe_result(run) + changed_state if run else row.line_state,
            "old_line": run and run.line,
            "took": "" if fields["seconds"] is None else took(fields["seconds"]),
            "peak": run and run.peak_text,
            "printed": run and size_text(run.bytes),
            "files": [f"{link_base}/{urls.quote(to_bytes(name))}" for name in files if is_file_name(name)],
            "output": run and "\n".join(self.last_lines.get(run, ([], ""))[0]),
        }


def find_link_base(directory: str, page: str) -> str:
    """Return the relative URL of a directory, such as './out%201'; '' if it is not below the page."""
    relative_path = os.path.relpath(os.path.realpath(directory), os.path.dirname(os.path.realpath(page)))
    if relative_path.split(os.sep)[0] == os.pardir:
        return ""
    return f"./{urls.quote(os.fsencode(relative_path))}"


class Reporter:
    # writes the page of --report; with --progress again and again while jobs run
    MIN_PAGE_SECONDS = 10.0
    SHOWN_GROUPS = 20           # of failures
    FILE_HEAD = b"<!DOCTYPE html>\n<!-- made by runwait4.py -->"           # first bytes of PAGE

    def __init__(self, options: Namespace, watcher: Watcher, argv: Sequence[str]) -> None:
        self.path: str = options.report
        self.options = options
        self.watcher = watcher
        self.command_line = shlex.join([PROG, *argv])
        refuse_foreign_file(self.path, self.FILE_HEAD)      # now, not after the last job
        if os.path.realpath(self.path) == os.path.realpath(watcher.path):
            raise UsageError(f"{self.path}: is the job file (give another name)")
        self._next_page_time = 0.0  # monotonic; 0: at once
        self._last_error = ""       # why the last page could not be written; "": it was written

    def write_page_if_due(self) -> str:
        """Write a page while jobs run (--progress), if the next one is due and there is a journal.

        wait_for_jobs() calls this after each poll, and prints the returned message: why the page cannot be
        written, if the reason is new; otherwise ''.  All pages together take at most a twentieth of the time.
        """
        now = time.monotonic()
        if now < self._next_page_time or not os.path.exists(os.path.join(self.options.outdir, "journal")):
            return ""
        self._next_page_time = now + self.MIN_PAGE_SECONDS      # for a failure; write_page() sets a later one
        previous_error = self._last_error
        self._last_error = ""
        try:
            self.write_page(is_live=True)
        except UsageError as error:
            self._last_error = str(error)
        return self._last_error if self._last_error != previous_error else ""

    def write_page(self, is_live: bool = False) -> None:
        """Read job file and journal, and write the page.

        is_live: another page follows.  Only the last page prints messages on stderr, for example about
        invalid lines in the journal; all pages show them.
        """
        start = time.monotonic()
        # a later page has the ends that are on the way
        for _ in () if is_live else self.watcher.wait_for_run_ends():
            pass
        messages: list[str] = []
        with Observation(self.watcher, self.options, messages.append) as observation:
            report = Report(observation, RunOutput(self.options.outdir))
        # pages take a twentieth of the time at most
        pause = max(self.MIN_PAGE_SECONDS, 20 * (time.monotonic() - start)) if is_live else 0.0
        self._next_page_time = start + pause
        if not is_live:
            for text in messages:
                say(text)
            if not report.run_count:
                raise UsageError(f"{self.options.outdir}: no runs (nothing to report)")
        with open_replacement(self.path, self.FILE_HEAD) as file:
            file.writelines(part.encode() for part in self._page(report, messages, pause))

    def _page(self, report: Report, messages: Sequence[str], pause: float) -> Iterator[str]:
        """Yield the parts of the page: PAGE, with a text for each @NAME@.

        messages: about the journal.  pause: seconds to the next page; 0: this is the last one.
        """
        failures = FailureGroups()
        group_of = {row: failures.add(row, report.last_lines.get(row.run, ([], ""))[1] if row.run else "")
                    for row in report.failed_rows}
        groups = failures.largest_first()
        rank_of = {group: number for number, group in enumerate(groups)}
        link_base = find_link_base(self.options.outdir, self.path)
        group_items = [
            f'<li><button type="button"><b>{group.count:,}</b><code>{escape_html(group.words)}</code>'
            f"<small>{escape_html(group.lines_and_hosts)}</small></button></li>"
            for group in groups[:self.SHOWN_GROUPS]
        ]
        counts_text, *status_texts = status_summary(report.status)
        job_rows = (map(escape_html, cells) for cells in table_of_jobs(report.status, inf))
        is_cut = report.run_count > Report.MAX_RUNS
        if is_cut:
            status_texts.append(f"table and picture have the last {Report.MAX_RUNS:,} of "
                                f"{report.run_count:,} runs, the table also the last of each failed line")
        directory = os.path.dirname(os.path.realpath(self.watcher.path))
        update_text = f", updated every {human_time(pause)} while jobs run" if pause else ""
        parts = {
            "TITLE": escape_html(self.watcher.path),
            "PLACE": escape_html(f"{os.uname().nodename}:{directory}"),
            "COMMAND": escape_html(self.command_line),
            "MADE": time.strftime("%Y-%m-%d %H:%M:%S %z") + update_text,
            "REFRESH": REFRESH_TAG % math.ceil(pause) if pause else "",
            "COUNTS": counts_text,
            "STATUS": "\n".join(map(escape_html, [*status_texts, *messages])),
            "JOBS": "".join(f"<tr><td>{'</td><td>'.join(cells)}</td></tr>" for cells in job_rows),
            "GROUPS": "".join(group_items),
            "BEGINNING": BEGINNING.pattern,
            "LEAST": str(MIN_BEGINNING),
        }
        before, after = (re.sub("@([A-Z]+)@", lambda match: parts[match[1]], half)
                         for half in PAGE.split("@DATA@"))
        yield before + '{"rows":['
        fields: Fields = {}
        for row in report.rows:
            separator = "," if fields else ""
            rank = rank_of[group_of[row]] if row in group_of else None
            fields = {**report.fields_of_row(row, link_base), "group": rank}
            # Without names, which `fields` below has.  A `<` could end the element of the script
            yield separator + encode([*fields.values()]).decode().replace("<", "\\u003c")
        data = {
            "fields": [*fields],
            "counts": {name: report.status[name] for name in Counts._fields},
            "madeZone": time.localtime().tm_gmtoff,
            "made": time.time(),
            "pause": pause,
            "isCut": is_cut,
        }
        yield f"],{encode(data)[1:].decode()}{after}"       # without the brace, which comes before the rows


# ======== Checking a directory's locks ======================================================================
#
# All hosts add to one sum.  A file of the directory has a row for each host with the number of its additions,
# and in front of them the total.  For a minute each host locks one byte, reads the rows as runners read a job
# file, adds one to its row and to the total, writes, and unlocks the byte.  If two hosts ever hold the lock
# together, or one reads old data, it overwrites additions of others.  Then a host finds another number in its
# row than it has written, and sets the total to 0, which the others find.
#
# A host has its row as long as another byte is locked.  Only a child has this lock, as a job whose runner was
# killed has the job lock.  The row of each host that adds must be locked; and if no addition is found in a
# locked row, reads are old.  When the child has ended, its lock must be free.
#
# The locks are in a lock file, as those of runners are: on some file systems a lock makes reads of the same
# file current.  The last host removes both files.

CHECK_FILE = "runmaker4-check"
CHECK_SECONDS = 60.0                # on a network file system
MIN_ADDITIONS = 3                   # elsewhere: no other host will come
DEAD_LOCK_SECONDS = 5.0             # until the lock of a process that has ended must be free
MAX_PAUSE_SECONDS = 0.04            # between reading and writing, and without the lock
SUM_LOCK = 0                        # the byte to lock for an addition; byte N: row N is in use
LABEL_BYTES = 56                    # "HOST FILE_SYSTEM"
ROW = struct.Struct(f"Q{LABEL_BYTES}s")     # additions, label
ROWS = range(1, BLOCK // ROW.size)  # the total is in row 0
REMEDIES = {                       # by how the file system's type begins; the first match counts
    "nfs": "mount with vers=4.2; or with NFSv3 let rpc.statd run on hosts and server, without nolock and "
           "local_lock; no two hosts may have one name",
    "lustre": "mount with flock",
    "ocfs2": "make it with mkfs.ocfs2 --cluster-stack=pcmk, for a cluster of Pacemaker",
    "beegfs": "set tuneUseGlobalFileLocks = true in beegfs-client.conf",
    "cifs": "share the directory by NFS",
    "smb3": "share the directory by NFS",
    "virtiofs": "share the directory by NFS",
    "fuse.ceph": "set fuse_disable_pagecache = true in ceph.conf",
    "fuse.glusterfs": "switch performance.quick-read, open-behind, io-cache, read-ahead, write-behind and "
                      "stat-prefetch off (gluster volume set), and mount with direct-io-mode=enable",
    "fuse.mfs": "mount without mfsnoposixlocks, and with mfscachemode=NEVER",
    "fuse.rclone": "on one host, mount with --vfs-cache-mode writes and give --single-host; rclone shares no "
                   "locks",
    "fuse.sfs": "nothing is known: SaunaFS 5.8 keeps locks on each host, or with enablefilelocks=1 after the "
                "end of their process",
    "fuse": "use the directory where its own file system is mounted, if it has one (bindfs, mergerfs and the "
            "like share no locks)",
}


def wait_randomly() -> None:
    """Wait for a random time: with equal pauses hosts could always write in the same order."""
    time.sleep(MAX_PAUSE_SECONDS * os.urandom(1)[0] / 256)


class LockCheck:
    """Adds to the sum of all hosts, and finds out if an addition was lost."""

    def __init__(self, directory: str, mount: Mount) -> None:
        """Open or create the file, which has a row for each host and the sum in row 0, and its lock file.

        Raises OSError.
        """
        self.mount = mount
        self.path = os.path.join(directory, CHECK_FILE)
        # Keep it open for writing, as a runner keeps the job file: while a file is open so, NFS keeps old
        # pages
        self.fd = open_or_create(self.path, os.O_RDWR | LOCK_FILE_FLAGS, 0o600)
        stat_file_with_one_name(self.fd)
        self.reader = Reader.with_own_fd(self.fd, mount.network)
        self.lock_fd = open_lock_file_of(self.path, mount.network)
        self.label = f"{os.uname().nodename} {mount.kind}".encode()[:LABEL_BYTES].ljust(LABEL_BYTES, b"\0")
        self.row = 0                                # 0: not taken yet
        self.is_row_stuck = False                   # it stays locked after the end of the child
        self.rows: list[tuple[int, bytes]] = []     # as written last
        self.first_rows = self.rows                 # as found first
        self.locked_rows: set[int] = set()          # found at any time

    def take_row(self) -> None:
        """Take a free row of the file: lock its byte by a descriptor that only a child keeps.

        So the check finds out if a child keeps a lock, as a job does whose runner was killed.  The child
        exits with us.  Raises UsageError: it cannot start.
        """
        fd = os.open(f"/proc/self/fd/{self.lock_fd}", os.O_RDWR)
        try:
            row = next((row for row in ROWS if lock(fd, row)), 0)
            if not row:
                raise OSError(errno.EUSERS, f"more than {len(ROWS)} hosts at once")
            # it exits at the end of its stdin, so with us at the latest
            with refused_as("cat", TOO_MANY_PROCESSES):
                self.child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[fd])
            self.row = row
            self.trims_right = not self.mount.is_nfs or self.trim(fd)
            refuse_local_locks(fd, self.mount)
        finally:
            os.close(fd)

    def trim(self, fd: int) -> bool:
        """Test if parts of a lock can be unlocked, which a runner does in LockTable.trim_bucket().

        Lock three bytes, and unlock the first and the last.  Return False if then not only the one between is
        locked.  If the file server refuses to unlock a part, return True: then runners do without.
        """
        start = ROWS.stop + 3 * self.row        # above the bytes of all rows
        lock(fd, start, 3)
        try:
            unlock(fd, start)
            unlock(fd, start + 2)
            return list(other_locks(self.lock_fd, start, 3)) == [range(start + 1, start + 2)]
        except OSError:
            return True
        finally:
            unlock(fd, start, 3)

    def find_locked_rows(self) -> set[int]:
        return {row for locked in other_locks(self.lock_fd, ROWS[0], len(ROWS)) for row in locked}

    def add_repeatedly(self) -> bool:
        """Add again and again until the time is over; return False if an addition was lost.

        After a lost addition go on: the other hosts must find the error, too.
        """
        deadline = time.monotonic() + (CHECK_SECONDS if self.mount.network else 0.0)
        is_right = True
        count = 0
        while count < MIN_ADDITIONS or time.monotonic() < deadline:
            wait_randomly()
            if not keep_trying(lambda: lock(self.lock_fd, SUM_LOCK), CHECK_SECONDS):
                raise OSError(errno.EAGAIN, "another host keeps the lock and does not answer")
            try:
                is_right &= self.add()
                # for check_locks(): a host has its row locked from before its first addition until it exits
                self.locked_rows |= self.find_locked_rows()
            finally:
                unlock(self.lock_fd, SUM_LOCK)
            count += 1
        return is_right

    def add(self) -> bool:
        """Add one to our row and to the total.  Return False if an addition was lost.

        Then the total is not the sum of the rows, or our row is not as we have written it.  The caller has
        locked SUM_LOCK.
        """
        rows = self.read_rows()
        if not self.first_rows:
            if self.find_locked_rows() == {self.row}:
                rows = [(0, b"")] * len(rows)       # we are alone: drop what a killed check has left
            self.first_rows = list(rows)
        is_right = (rows[0][0] == sum(count for count, _ in rows[1:])
                    and (not self.rows or rows[self.row] == self.rows[self.row]))
        wait_randomly()         # a host that the lock does not exclude can write now
        # after an error 0: the other hosts find that total, too
        rows[0] = rows[0][0] + 1 if is_right else 0, b"all"
        rows[self.row] = rows[self.row][0] + 1, self.label
        pwrite_all(self.fd, b"".join(ROW.pack(*row) for row in rows), 0)
        os.fsync(self.fd)
        self.rows = rows
        return is_right

    def read_rows(self) -> list[tuple[int, bytes]]:
        refresh_file(self.path, self.mount)
        self.reader.refresh(self.mount)
        return list(ROW.iter_unpack(self.reader.pread(BLOCK, 0).ljust(BLOCK, b"\0")))

    def close(self) -> None:
        """Give the row back, and remove the files unless another host has a row."""
        if self.row:
            self.child.communicate()                # it holds the row, and exits at the end of its input
            self.is_row_stuck = not keep_trying(lambda: is_free(self.lock_fd, self.row), DEAD_LOCK_SECONDS)
        # Without a row, do not remove the files: perhaps only this host has no locks, and others use them
        is_last = self.row and self.find_locked_rows() <= {self.row}
        self.reader.close()
        close_all(self.fd, self.lock_fd)            # before the removal: NFS keeps a file that is open
        if is_last:
            for path in self.path, lock_file_of(self.path):
                with suppress(FileNotFoundError):   # if locks do not reach another host, it removes them, too
                    os.unlink(path)


def check_locks(directory: str) -> int:
    """Test if hosts can share job files in a directory (--check-locks); print the result.

    Each host adds to a file until the time is over.  What the others have added must be there, too.  Return
    the exit status: 1 if that fails, or on a network file system no other host has come.
    """
    if not os.path.isdir(directory):
        raise UsageError(f"{directory}: not a directory (give the directory for the job file)")
    mount = find_mount(directory)
    if mount.network:
        warn(f"{PROG}: {directory}: takes a minute, unless the file server does not answer; start this on "
             "the other hosts now")
    try:
        check = LockCheck(directory, mount)
        try:
            check.take_row()
            is_right = check.add_repeatedly()
        finally:
            check.close()
        # by row, of the hosts that have added while we did
        additions = {row: count for row in ROWS
                     if (count := check.rows[row][0] - check.first_rows[row][0]) > 0}
        labels = {check.rows[row][1] for row in additions}
        print_lines(f"{count:6} additions by {printable(to_text(check.rows[row][1].strip(bytes(1))))}"
                    for row, count in additions.items())
        error = ""
        if not is_right:
            error = "an addition was lost: two hosts had the lock at once, or one has read old data"
        elif not check.trims_right:
            error = "a lock is lost, or stays, where a part of it is unlocked"
        elif check.is_row_stuck:
            error = "a lock stays after the end of its process"
        # A host has added, but the child that should keep its row locked did not.  On a local file system a
        # check takes a moment, so another one can come and go between two looks: ask for our own row only
        elif (additions.keys() if mount.network else {check.row}) - check.locked_rows:
            error = "a job does not keep the lock of its runner"
        elif mount.network and check.locked_rows - additions.keys():     # one host reads nothing old
            error = "no addition of another host is found: it has exited, does not answer, or reads are old"
    except OSError as failure:
        error = ": ".join(filter(None, [failure.filename, error_text(failure)]))
    if error := mount_error(mount) or error:
        remedies = (f"To change: {text}." for kind, text in REMEDIES.items() if mount.kind.startswith(kind))
        print_lines([f"NO   {printable(error)}", *itertools.islice(remedies, 1),
                     "Until all hosts print another result, use another directory, or TCP "
                     "(runmaker4-server.py)."])
        return 1
    if mount.network and labels == {check.label}:
        print_lines(["No addition was lost, but no other host has come: start this on another within a "
                     "minute."])
        return 1
    print_lines([f"No addition was lost: {'these hosts' if mount.network else 'this host'} can share job "
                 "files in this directory."])
    return 0


# ======== The program =======================================================================================


def wait_for_jobs(
    watcher: Watcher, with_progress: bool, message_after_poll: Callable[[], str] = lambda: ""
) -> Counts:
    """Wait until no job is new or running, or no runner will start the new jobs; return the last counts.

    If no job runs and nothing changes for MAX_IDLE_SECONDS, report why new jobs wait, once until the next
    change.  message_after_poll: called after each poll, returns a message to print or ''.
    """
    progress = Progress()
    if with_progress:
        exit_on(*KILL_SIGNALS)      # by an exception, so that end_line() is called below
        progress = TerminalProgress() if os.isatty(1) else PipeProgress()
    last_counts = Counts()
    last_change = time.monotonic()      # inf: it has been reported why new jobs wait
    try:
        for job_counts in watcher.polls(progress.MIN_PAUSE_SECONDS):
            progress.update(job_counts)
            message = message_after_poll()
            if job_counts != last_counts:
                last_counts = job_counts
                last_change = time.monotonic()
            elif (not message and is_idle(job_counts)
                    and time.monotonic() - last_change > watcher.MAX_IDLE_SECONDS
                    and (reason := describe_why_new_jobs_wait(
                        watcher, job_counts, RunnersAtWork(watcher.presence_locks())))):
                message = f"{watcher.path}: {reason}"
                last_change = inf
            if message:
                progress.end_line()
                say(message)
    finally:
        progress.end_line()
    if watcher.stop_reason:
        say(f"{watcher.path}: {watcher.stop_reason}")
    return last_counts


def run_with_options(argv: Sequence[str]) -> int:
    """Do what the options say; return the exit status."""
    gc.disable()        # it would take a quarter of the time; no view makes cycles
    options = parse_options(argv)
    if options.check_locks is not None:
        return check_locks(options.check_locks)
    path = options.file
    if path is not None:
        check_for_strays(
            path, find_mount(path).network, lambda text: say(f"{path}: {text}"), job_states=OUR_STATES
        )
    exit_status = 0
    try:
        if options.timeline is not None:
            write_timeline(options)
        elif options.report is not None:
            # by an exception, so that a page that is half written is removed
            exit_on(*KILL_SIGNALS)
            watcher = Watcher(options.file)
            reporter = Reporter(options, watcher, argv)
            if options.progress:
                wait_for_jobs(watcher, with_progress=True, message_after_poll=reporter.write_page_if_due)
            reporter.write_page()
            exit_status = 1 if watcher.stop_reason else 0       # 1: no runner will start the new jobs
        elif not options.stats:
            exit_status = print_or_wait_for_jobs(options)
    except BrokenPipeError:
        if not options.use_exit_status:
            raise                           # run_main() returns 0
        exit_status = 1                     # it is not known if all jobs are done
    # alone, or after the page of --report
    if options.stats:
        stats = read_stats(options.outdir)
        print_lines([json.dumps(stats)] if options.json else stats_lines(stats, stdout_columns()))
    return exit_status


def print_or_wait_for_jobs(options: Namespace) -> int:
    """Print the status or the runs of the job file; without such an option, wait for the jobs.

    Return the exit status; for --output see print_output().  After a wait it is 1 if no runner will start the
    new jobs.  With --use-exit-status it is also 1 if jobs are neither done nor held, a held one still runs,
    or a line is no job.
    """
    watcher = Watcher(options.file)
    if options.output:
        return print_output(watcher, options)
    if options.status:
        with Observation(watcher, options, say) as observation:
            status = status_of(observation)
        print_lines([json.dumps(status)] if options.json else status_lines(status, stdout_columns()))
        job_counts = count_states(observation.snapshot)
    elif options.failed or options.show is not None:
        job_counts = print_runs(watcher, options)
    else:
        job_counts = wait_for_jobs(watcher, options.progress)
        if watcher.stop_reason:
            return 1
    return 1 if options.use_exit_status and (
        job_counts.done < job_counts.all
        or (job_counts.held and watcher.cancelled_lines(watcher.wait_for_complete_snapshot()))
        or find_stray_line(watcher.file.reader, STRAY)) else 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(PROG, run_with_options, argv)


# ======== The page of the report ============================================================================
#
# PAGE is a template: Reporter replaces the @NAMES@.  The page loads nothing; the Content-Security-Policy
# forbids that.
#
# The picture has a row for each slot.  A run shorter than a pixel gets one pixel, and failed runs come last,
# so that none is lost among many.  A run with an unknown end is pale, up to the next run of the slot.
#
# The fragment of the URL survives a reload: it holds the search and the order of the table.

PAGE = r"""<!DOCTYPE html>
<!-- made by runwait4.py -->
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';
    base-uri 'none'; form-action 'none'">
@REFRESH@<title>@TITLE@ – @PLACE@</title>
<style>
:root { color-scheme: light dark; --page: #fff; --text: #1c2127; --dim: #5a6672;
  --line: #dde2e7; --shade: #f4f6f8;
  --done: #3a7ab8; --failed: #c8400a; --error: #8a3a9c; --held: #9aa4ae;
  --running: #62b5e0; --cancelled: #a88a1e;
  --unknown: #6b6b6b; --new: #dde2e7;
  --repeated: #a9bdd2; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #14181c; --text: #e4e8ec; --dim: #98a4af;
  --line: #2e363e; --shade: #1d2329; --done: #4c8fd0; --failed: #ff7a3d; --error: #c77ddb; --held: #7b8691;
  --running: #a9dcf5; --cancelled: #d9c45a; --unknown: #b0b0b0; --new: #39424b; --repeated: #5c7086; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0 auto; padding: 1.6rem clamp(1rem, 3vw, 3rem) 3rem; max-width: 120rem;
  background: var(--page);
  color: var(--text);
  font: .9375rem/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
h1 { margin: .5rem 0 0; font-size: clamp(1.5rem, 1.1rem + 1.6vw, 2.3rem); font-weight: 600;
  line-height: 1.2; }
h2 { margin: 0 0 .6rem; font-size: 1.05rem; }
section { margin-top: 2rem; min-width: 0; } #runs { margin-top: 1.5rem; }
code, pre, td.what, #jobs td:last-child { font: .8rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
pre { margin: .8rem 0 0; overflow-x: auto; color: var(--dim); }
pre:empty { display: none; }
p { margin: 0; }
small, .hint { color: var(--dim); font-size: .85rem; }
.file { font-weight: 600; overflow-wrap: anywhere; }
.place { color: var(--dim); }
b.failed { color: var(--failed); } b.error { color: var(--error); } b.done { color: var(--done); }
#bar { display: flex; gap: 2px; height: 1rem; margin: 1rem 0 .6rem; border-radius: 5px; overflow: hidden; }
#bar:empty, .legend:empty, ol:empty, section:has(ol:empty) { display: none; }
#bar span { min-width: 3px; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: 0; padding: 0; list-style: none; }
.legend i { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .4rem; }
.legend b { margin-right: .3rem; }
button, select, input { font: inherit; font-size: .87rem; color: inherit; background: var(--shade);
  padding: .25rem .55rem;
  border: 1px solid var(--line); border-radius: 5px; max-width: 100%; }
button { cursor: pointer; }
:focus-visible { outline: 2px solid var(--done); outline-offset: 1px; }
#groups ol { margin: 0; padding: 0; list-style: none; }
#groups button { display: grid; grid-template-columns: minmax(4.6rem, max-content) minmax(0, 1fr);
  gap: 0 .8rem; width: 100%; text-align: left;
  align-items: baseline; border: 0; border-radius: 4px; padding: .4rem .6rem .4rem 0; margin-bottom: 2px;
  background: linear-gradient(to right, color-mix(in srgb, var(--failed) 13%, transparent) var(--share),
    var(--shade) var(--share)); }
#groups button:hover code { text-decoration: underline; }
#groups button[aria-pressed=true] { outline: 2px solid var(--failed); outline-offset: -2px; }
#groups b { color: var(--failed); font-size: 1.15rem; text-align: right; }
#groups small { grid-column: 2; overflow-wrap: anywhere; }
canvas { display: block; width: 100%; }
#tip { min-height: 1.45em; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; display: block; }
#search { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin-bottom: .6rem; }
#search input { flex: 0 1 24rem; }
#search .hint { flex: 1 1 8rem; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .87rem; }
#jobs { width: auto; margin-top: .6rem; } #jobs tr:first-child { color: var(--dim); }
#jobs td { padding: .1rem .6rem; white-space: normal; overflow-wrap: anywhere; }
#jobs td:nth-child(-n+5) { white-space: nowrap; width: auto; }
#jobs td:nth-child(4n+1) { text-align: right; }
th, td { padding: .3rem .5rem; text-align: left; vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; width: 3.5rem; }
th { border-bottom: 1px solid var(--dim); }
th button { border: 0; padding: 0; background: none; font-weight: 600; white-space: nowrap; }
th[aria-sort=descending] button::after { content: " ▾"; }
th[aria-sort=ascending] button::after { content: " ▴"; }
th.right, td.right { text-align: right; }
tbody { border-bottom: 1px solid var(--line); break-inside: avoid; }
td b { font-weight: 600; }
td.result b { display: inline-block; width: max-content; max-width: clamp(6rem, 15vw, 15rem);
  white-space: normal;
  overflow-wrap: anywhere; }
td.host, td.slot { max-width: 10rem; overflow: hidden; text-overflow: ellipsis; }
td.what { width: 45%; min-width: 16rem; white-space: pre-wrap; unicode-bidi: isolate; }
.option { display: inline-block; max-width: 100%; }
td.what i { font-style: normal; color: var(--dim); }
td.what q { display: block; quotes: none; margin: .15rem 0; padding-left: .6rem;
  border-left: 3px solid var(--line);
  color: var(--dim); }
tr + tr td.what { padding: 0 0 .4rem; min-width: 0; width: auto; }
a { color: var(--done); }
@media (min-width: 87.5em) {
  #why { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 0 3rem; }
  #why section:only-child { grid-column: 1 / -1; } }
@media (max-width: 68.75em) { .wide { display: none; } }
@media (max-width: 43.75em) {
  body { padding-top: 1rem; } th, td { padding: .3rem .25rem; } .slot, th.command { display: none; }
  td.host { max-width: 5.2rem; } td.result b { max-width: 7rem; }
  #search input { flex-basis: 100%; } #groups button { grid-template-columns: 2.6rem minmax(0, 1fr); } }
@media print {
  #search, #more { display: none; } body { padding: 0; font-size: 10pt; } section { break-inside: auto; } }
</style>
</head>
<body>
<header>
<p><span class="file">@TITLE@</span> <code class="place">@PLACE@</code></p>
<h1 id="headline">@COUNTS@</h1>
<div id="bar" aria-hidden="true"></div><ul id="legend" class="legend"></ul>
<pre>@STATUS@</pre>
<div class="scroll"><table id="jobs">@JOBS@</table></div>
</header>
<main>
<div id="why">
<section id="groups"><h2>Why jobs failed</h2><ol>@GROUPS@</ol><p class="hint" id="rest"></p></section>
<section id="time" hidden><h2>Slots over time</h2>
<canvas id="slots" role="img"
  aria-label="The runs of each slot over time; the table has the same runs"></canvas>
<ul id="colours" class="legend"></ul><code id="tip" aria-hidden="true"></code></section>
</div>
<section id="runs" hidden><h2>Runs</h2>
<div id="search" role="search">
<input id="text" type="search" placeholder="Command, line, last words" aria-label="Text to look for">
<select id="kind" aria-label="State of the line"></select>
<select id="host" aria-label="Host"></select>
<button id="clear" type="button">Show all</button>
<p class="hint" id="hits" aria-live="polite"></p></div>
<div class="scroll"><table id="table"><thead><tr id="heads"></tr></thead></table></div>
<p><button id="more" type="button"></button></p></section>
<noscript><p class="hint">The picture and the table of runs need JavaScript.</p></noscript>
</main>
<footer><section class="hint"><code>$ @COMMAND@</code><p id="made">Made @MADE@</p></section></footer>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const get = id => document.getElementById(id), PART = 200;
const make = (name, text = "", style = "") =>
  Object.assign(document.createElement(name), {textContent: text ?? "", className: style});
const data = JSON.parse(get("data").textContent);
const runs = data.rows.map(values => Object.fromEntries(values.map((value, i) => [data.fields[i], value])));
for (const run of runs) run.kind = !run.state ? "removed" : run.is_last ? run.state : "earlier run";
for (const run of runs) run.use = run.cpu !== null && run.seconds ? run.cpu / run.seconds : null;
const outcome = run =>              // what did not have enough memory runs again with more
  run.cause == "memory" && !(run.is_last && run.state == "failed") ? "repeated" : run.outcome ?? run.state;
const isBad = run => run.kind == "failed" || run.kind == "error";
const number = n => n.toLocaleString("en-US");
const parts = text =>               // no line break within an option
  text.split(/(^|\s)(-\S+)/).map((part, i) => i % 3 == 2 ? make("span", part, "option") : part);
const naturally = new Intl.Collator("en", {numeric: true}).compare;
const groups = [...document.querySelectorAll("#groups button")];
const wordsOf = button => button.querySelector("code").textContent;
const columns = [                   // heading, field to sort by, CSS class, content if that is another
  ["Line", "line", "right"], ["Result", "result", "result"],
  ["Host", "host", "host"], ["Slot", "slot", "slot"],
  ["Began", "start", "", run => run.start === null ? "" : clock(run.start, run.zone)],
  ["Time", "seconds", "right", run => run.took],
  ["CPU", "use", "right wide", run => run.use === null ? "" : `${Math.round(100 * run.use)} %`],
  ["Memory", "memory", "right wide", run => run.peak],
  ["Printed", "bytes", "right wide", run => run.incomplete ? `${run.printed} (incomplete)` : run.printed],
  ["Command", "command", ""]];
const view = {text: "", kind: runs.some(isBad) ? "to fix" : "", host: "",
  words: "", sort: "start", up: false};
const narrow = matchMedia("(max-width: 43.75em)");
let shown = PART, typed = -1e9, left = 0;   // left: characters of commands that are left out

const ran = runs.filter(run => run.start !== null);
const kept = ran.filter(run => !isBad(run) && run.end !== null);    // no failure before the last runs
const from = data.isCut && kept.length ? kept.reduce((least, run) => Math.min(least, run.end), Infinity) : 0;
const started = ran.filter(run => run.start + (run.seconds ?? 0) >= from);      // in the picture
const first = Math.max(from,
  started.reduce((least, run) => Math.min(least, run.start), Infinity));
const last = started.reduce((most, run) => Math.max(most, run.start + (run.seconds ?? 0)), 0);

const zones = started.map(run => [run.start, run.zone]).sort(([a], [b]) => a - b);
function zoneAt(time) {             // the UTC offset of the host that made the page: it changes in spring
  const after = zones.findIndex(([start]) => start > time);
  return zones.at(after < 0 ? -1 : Math.max(after - 1, 0))?.[1] ?? data.madeZone;
}

const isoTime = (time, zone) => new Date((time + zone) * 1000).toISOString();
const now = isoTime(data.made, data.madeZone);
const earliest = started.length ? isoTime(first, zoneAt(first)) : now;
const dayFrom = earliest.slice(0, 4) != now.slice(0, 4) ? 0 : 5;
const hasDay = last - first > 72000 || earliest.slice(0, 10) != now.slice(0, 10);

function clock(time, zone, step = 1) {
  const text = isoTime(time, zone), day = text.slice(dayFrom, 10);
  return step >= 86400 ? day : (hasDay ? `${day} ` : "") + text.slice(11, step >= 60 ? 16 : 19);
}

function wordsOfRun(run) {          // also why it could not be killed, or which file of fetch= is missing
  return [run.result.includes(run.why) ? "" : run.why, run.output].filter(Boolean).join("\n");
}

function textOf(run) {
  const texts = [run.line, run.result, run.host, run.slot, run.command, wordsOfRun(run)];
  return run.allText ||= texts.join("\n").toLowerCase();
}

function isFound(run) {
  return (!view.kind || (view.kind == "to fix" ? isBad(run) : run.kind == view.kind))
    && (!view.host || run.host == view.host) && textOf(run).includes(view.text.trim().toLowerCase())
    && (!view.words || run.group !== null && groups[run.group] && wordsOf(groups[run.group]) == view.words);
}

function compare(a, b) {            // unknown values come last
  const x = a[view.sort], y = b[view.sort];
  if (x === null || y === null) return (x === null) - (y === null);
  const order = typeof x == "number" ? x - y : naturally(x, y);
  return view.up ? order : -order;
}

function fill() {
  const found = runs.filter(isFound).sort(compare);
  const words = view.words ? `: ${view.words}` : "";
  get("hits").replaceChildren(...parts(`${number(found.length)} of ${number(runs.length)}${words}`));
  get("clear").hidden = found.length == runs.length;
  for (const body of [...get("table").tBodies]) body.remove();
  const commands = found.slice(0, shown).map(run => run.command).sort();
  left = 0;
  get("table").append(...found.slice(0, shown).map(rowOf));
  const cell = document.querySelector("td.what"), c = get("slots").getContext("2d");
  if (cell) c.font = getComputedStyle(cell).font;
  const widest = commands.reduce((most, text) => text.length > most.length ? text : most, "");
  if (cell && c.measureText(widest).width > cell.clientWidth - 16) {   // the commands have no room
    left = /^@BEGINNING@/.exec(`${commands[0]}\n${commands.at(-1)}`)?.[1].length ?? 0;
    if (left < @LEAST@) left = 0;
    [...get("table").tBodies].forEach((body, i) => left && body.replaceWith(rowOf(found[i])));
  }
  get("more").hidden = found.length <= shown;
  get("more").textContent = `Show ${number(Math.min(PART, found.length - shown))} more`;
  for (const button of groups) button.setAttribute("aria-pressed", wordsOf(button) == view.words);
  const order = view.up ? "ascending" : "descending";
  columns.forEach(([, field], i) => get("heads").cells[i].ariaSort = field == view.sort ? order : null);
}

function rowOf(run) {
  const body = make("tbody"), row = make("tr");
  for (const [heading, field, style, content] of columns.slice(0, -1)) {
    const cell = make("td", heading == "Result" ? "" : content ? content(run) : run[field], style);
    if (heading == "Result") cell.append(make("b", run.result, outcome(run)));
    row.append(cell);
  }
  const what = make("td", "", "what");
  if (run.old_line && run.old_line != run.line) what.append(make("i", `line ${run.old_line} when it ran: `));
  what.append(...parts(left ? `... ${run.command.slice(left)}` : run.command));
  what.title = left ? run.command : "";
  for (const href of run.files) {
    const name = href.slice(href.lastIndexOf("/") + 1);
    what.append(" ", Object.assign(make("a", name.slice(name.indexOf(".") + 1)), {href, title: name}));
  }
  const said = wordsOfRun(run);
  if (said) {
    what.append(make("q"));
    what.lastChild.append(...parts(said));
  }
  body.append(row);
  if (narrow.matches) {
    what.colSpan = columns.length - 1;
    body.append(make("tr"));
  }
  body.lastChild.append(what);
  return body;
}

function slotsOfRuns() {            // the runs of each slot in the order of their starts, by "host\nslot"
  const slots = new Map();
  for (const run of started) {
    const name = `${run.host}\n${run.slot}`;
    if (!slots.has(name)) slots.set(name, []);
    slots.get(name).push(run);
  }
  for (const inSlot of slots.values()) {
    inSlot.sort((a, b) => a.start - b.start);
    inSlot.forEach((run, i) => run.until = run.seconds !== null ? run.start + run.seconds
      : inSlot[i + 1]?.start ?? last);
  }
  return [...slots].sort(([a], [b]) => naturally(a, b));
}

let colours = {};
const slots = slotsOfRuns(), span = Math.max(last - first, .001);
const height = Math.max(1, Math.min(18, 420 / slots.length)), thick = height > 3 ? height - 1 : height;

const unit = () => parseFloat(getComputedStyle(document.body).fontSize) / 15;    // CSS pixels

function draw() {
  const node = get("slots"), c = node.getContext("2d"), width = node.clientWidth / unit();
  const scale = devicePixelRatio * unit();
  const left = width < 600 ? 64 : 120, body = slots.length * height,
    x = time => left + (time - first) / span * (width - left);
  node.width = width * scale; node.height = (body + 26) * scale;
  c.scale(scale, scale);
  const style = getComputedStyle(document.documentElement),
    colour = name => style.getPropertyValue(`--${name}`);
  c.fillStyle = colour("shade"); c.fillRect(left, 0, width - left, body);
  slots.forEach(([, inSlot], i) => {
    for (const bad of [false, true]) for (const run of inSlot) {
      if (bad != ["failed", "error"].includes(outcome(run))) continue;
      const from = Math.max(x(run.start), left), wide = x(run.until) - from;
      c.fillStyle = colours[outcome(run)] ||= colour(outcome(run)) || colour("unknown");
      c.globalAlpha = run.seconds === null ? .3 : 1;
      if (wide < 1.5) c.fillRect(Math.min(Math.floor(from), width - 1), i * height, 1, thick);
      else c.fillRect(from, i * height, wide > 4 ? wide - .6 : wide, thick);
    }
  });
  c.globalAlpha = 1; c.fillStyle = colour("dim"); c.textBaseline = "middle"; c.textAlign = "right";
  c.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  labels(c, left); axis(c, left, width, body, x);
}
function labels(c, left) {          // the host at its first slot, and the slots if there is room
  let before = null, free = 0;
  slots.forEach(([name], i) => {
    const [host, slot] = name.split("\n"), y = i * height;
    const isNew = host != before && slots.length > 1 || slots.length == 1;
    if (isNew && i) c.fillRect(y < free ? left - 4 : 0, y - .75, left + 4, .5);     // through no name
    if (y >= free && (isNew || height >= 12)) {
      const end = isNew && height >= 12 ? ` ${slot}` : "";
      write(c, isNew ? host : slot, end, left - 8, y + Math.max(thick / 2, 6));
      free = y + 12;
    }
    before = host;
  });
}

function write(c, text, end, right, y) {
  while (text.length > 1 && c.measureText(text + end).width > right) text = text.slice(0, -2) + "…";
  c.fillText(text + end, right, y);
}

function axis(c, left, width, body, x) {
  const least = span / (width - left) * (hasDay ? 130 - 5 * dayFrom : 80);
  const steps = [.001, .01, .1, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800, 21600,
    43200, 86400];
  const step = steps.find(step => step >= least) || 86400 * Math.ceil(least / 86400);
  c.textAlign = "center";
  let local = Math.ceil((first + zoneAt(first)) / step) * step, zone, time;
  for (; zone = zoneAt(local - zoneAt(first)), time = local - zone, time <= last; local += step) {
    c.fillRect(Math.round(x(time)), body, 1, 5);
    if (x(time) > left + 28 && x(time) < width - 28) c.fillText(clock(time, zone, step), x(time), body + 16);
  }
}

function point(event) {             // name the run under the pointer
  const width = get("slots").clientWidth / unit(), left = width < 600 ? 64 : 120,
    slack = span / (width - left) * 2;
  const time = first + (event.offsetX / unit() - left) / (width - left) * span;
  const [, inSlot] = slots[Math.floor(event.offsetY / unit() / height)] || [, []];
  const run = inSlot.findLast(run => run.start - slack <= time && time <= run.until + slack);
  const took = run?.took || "end unknown";
  get("tip").textContent = run ? `line ${run.line}: ${run.result}, ${took}: ${run.command}` : "";
}

function choices(id, all, values) {
  for (const [value, text] of [["", all], ...values])
    get(id).append(Object.assign(make("option", text), {value}));
  get(id).hidden = values.length < 2;
  get(id).onchange = () => change({[id]: get(id).value});
}

function change(values) {
  Object.assign(view, values);
  for (const id of ["text", "kind", "host"]) get(id).value = view[id];
  shown = PART;
  location.replace(`#${encodeURIComponent(JSON.stringify(view))}`);
  fill();
}

function restore() {                // the search and the order before a reload
  try {
    Object.assign(view, JSON.parse(decodeURIComponent(location.hash.slice(1))));
  } catch { /* there is none */ }
  if (!columns.some(([, field]) => field == view.sort)) view.sort = "start";
  for (const id of ["text", "kind", "host"]) get(id).value = view[id] = String(view[id]);
}

function update() {                 // load the next page; report it when none is written
  if (!data.pause) return;
  const age = Date.now() / 1000 - data.made;
  if (age > 3 * data.pause + 60)
    get("made").textContent += "; but since then the program that writes it has exited";
  setInterval(() => { if (performance.now() - typed > 5000) location.reload(); }, data.pause * 1000);
}

function explain(legend, name, count, text = name, pale = false) {  // add an entry, and return its colour
  const entry = make("li"), sample = make("i"), full = `var(--${name.replace(" ", "-")}, var(--unknown))`,
    colour = pale ? `color-mix(in srgb, ${full} 30%, var(--shade))` : full;
  sample.style.background = colour;
  entry.append(sample, make("b", number(count)), text);
  get(legend).append(entry);
  return colour;
}

function summarize() {              // the headline, the bar and the legends
  const {failed, error} = data.counts,
    total = Object.values(data.counts).reduce((sum, count) => sum + count, 0);
  const state = failed ? "failed" : error ? "error" : "done",
    how = failed && error ? "failed or in error" : error ? "in error" : state;
  get("headline").replaceChildren(make("b", number(failed + error || data.counts.done), state),
    ` of ${number(total)} ${total == 1 ? "job" : "jobs"} ${how}`);
  const states = ["done", "failed", "error", "running", "held", "new"];
  for (const state of states.filter(state => data.counts[state])) {
    const part = make("span");
    part.style.flex = data.counts[state];
    part.style.background = explain("legend", state, data.counts[state]);
    get("bar").append(part);
  }
  const ends = new Map(), words = {error: "in error", repeated: "with too little memory"};   // of the picture
  for (const run of started) ends.set(outcome(run), (ends.get(outcome(run)) || 0) + 1);
  for (const [end, count] of [...ends].sort(([, a], [, b]) => b - a))
    explain("colours", end, count, `${count == 1 ? "run" : "runs"} ${words[end] ?? end}`,
      started.every(run => outcome(run) != end || run.seconds === null));
  const sizes = [];                 // of all groups, the largest first
  for (const run of runs) if (run.group !== null) sizes[run.group] = (sizes[run.group] || 0) + 1;
  groups.forEach((button, i) => button.style.setProperty("--share", `${100 * sizes[i] / sizes[0]}%`));
  const more = sizes.length - groups.length;
  if (more > 0) get("rest").textContent = `and ${number(more)} more reasons`;
}

const kinds = new Map();
for (const run of runs) kinds.set(run.kind, (kinds.get(run.kind) || 0) + 1);
const toFix = runs.filter(isBad).length;
choices("kind", `all runs (${number(runs.length)})`,
  [...toFix ? [["to fix", `failed or in error (${number(toFix)})`]] : [],
  ...[...kinds].sort().map(([kind, count]) => [kind, `${kind} (${number(count)})`])]);
const hosts = [...new Set(ran.map(run => run.host))].sort(naturally);
choices("host", "all hosts", hosts.map(host => [host, host]));
for (const [heading, field, style] of columns) {
  const head = make("th", "", heading == "Command" ? "command" : style), button = make("button", heading);
  head.scope = "col"; button.type = "button";
  const up = ["line", "result", "host", "slot", "command"].includes(field);
  button.onclick = () => change({sort: field, up: view.sort == field ? !view.up : up});
  head.append(button);
  get("heads").append(head);
}
get("text").oninput = () => { typed = performance.now(); change({text: get("text").value}); };
get("clear").onclick = () => change({text: "", kind: "", host: "", words: ""});
get("more").onclick = () => { shown += PART; fill(); };
for (const button of groups) button.onclick = () => {
  change({text: "", kind: "", host: "", words: view.words == wordsOf(button) ? "" : wordsOf(button)});
  if (view.words) get("runs").scrollIntoView();
};
for (const code of document.querySelectorAll("code")) code.replaceChildren(...parts(code.textContent));
get("slots").onpointermove = get("slots").onpointerdown = point;
get("time").hidden = !started.length; get("runs").hidden = !runs.length;
summarize(); restore(); fill(); draw(); update();
narrow.onchange = fill;
addEventListener("resize", draw);
matchMedia("screen and (prefers-color-scheme: dark)").onchange = () => { colours = {}; draw(); };
</script>
</body>
</html>
"""


if __name__ == "__main__":
    exit_now(main())
