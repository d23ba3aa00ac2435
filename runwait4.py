#!/usr/bin/env python3
"""runwait4 - look at a job file of runmaker4: wait for jobs, show progress and running jobs, draw finished
runs.

runwait4.py never writes to the file. A line `r` whose job lock is not held is an orphan, and counts as error.

The sections, top-down: the command line, waiting, progress, the journal, job output, matching runs to lines,
who is at work, a look, running jobs, runs of lines, statistics, the job log, the timeline, the report,
checking a directory's locks, the program, the page of the report.
"""
from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)    # Ctrl-C during the imports: no traceback

import argparse
import bisect
import contextlib
import errno
import fnmatch
import functools
import gc
import heapq
import itertools
import math
import operator
import os
import re
import shlex
import stat
import sys
import time
import zlib
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
    BUCKETS_END,
    DONE,
    ERROR,
    FAILED,
    JOB_LINE,
    JOB_LOCKS,
    MUTEX_OFFSET,
    NEW,
    RUNNING,
    SIZE_UNITS,
    STOP_SIGNALS,
    BlockReason,
    Counts,
    JobLog,
    JobReader,
    Line,
    Mount,
    Parser,
    PresenceLock,
    ProgressBar,
    Rate,
    Reader,
    Snapshot,
    Throttle,
    UsageError,
    WireError,
    add_general,
    as_argument,
    bucket_of,
    check_lines,
    check_mount,
    close_all,
    columns_of,
    count_states,
    default_outdir,
    error_text,
    exit_now,
    exit_on,
    filled,
    find_block_reason,
    find_mount,
    first_line,
    give_rights,
    human_time,
    is_free,
    job_file,
    job_file_path,
    keep_trying,
    line_ranges,
    lines_of,
    lock,
    memory_size,
    memory_text,
    mount_error,
    name_lines,
    new_jobs_wait,
    nonempty,
    open_direct,
    open_job_file,
    other_locks,
    output_path,
    plural,
    print_bytes,
    printable,
    progress_line,
    pwrite_all,
    refresh_file,
    refresh_reader,
    run_main,
    stat_or_none,
    to_bytes,
    to_text,
    unlock,
    warn,
    when_used,
    whole_lines,
    write_all,
)

base64, html, json, secrets = map(when_used, ("base64", "html", "json", "secrets"))
if TYPE_CHECKING:
    import subprocess
    import tempfile
    from typing import Concatenate, ParamSpec  # of Python 3.10
    P = ParamSpec("P")
else:
    subprocess, tempfile = map(when_used, ("subprocess", "tempfile"))

PROG = "runwait4.py"
T = TypeVar("T")
N = TypeVar("N", int, float)
Wanted = Callable[[re.Match[bytes]], bool]      # selects runs by the head of a line


# ======== The command line ==================================================================================


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        PROG,
        purpose="Look at a job file: wait for jobs, show progress, running jobs and failed jobs, draw "
                "finished runs.  Held lines are not waited for; a line r without a runner counts as error.",
        usage=f"[options] FILE\n       {PROG} --outdir DIR|--joblog LOG --timeline OUT.json\n"
              f"       {PROG} --check-locks DIR",
        examples=f"Wait until no job is new or running, with a progress bar; count the jobs:\n"
                 f"    {PROG} --progress runs.txt && echo finished\n"
                 f"    {PROG} --status runs.txt",
        notes={},
        statuses={
            "0": "the jobs are finished, or the output is complete (with -e: and all jobs are done or held)",
            "1": "otherwise; also if a failed `#RUN barrier check` blocks new jobs",
            "2": "bad usage",
            "130, 143": "INT (Ctrl-C), TERM",
        },
    )
    add = parser.add_argument_group("what to do").add_argument
    add("file", metavar="FILE", nargs="?", type=job_file_path, help="the job file")
    add("-p", "--progress", action="store_true",
        help="a bar: one line redrawn on a terminal, a line per change elsewhere; = done,\n"
             "! failed, e error (interrupted, lost, not started), > running")
    add("-e", "--use-exit-status", action="store_true",
        help="exit 0 only if every job is done or held (with --status: now, so not while\n"
             "jobs are new or running)")
    add("--status", action="store_true",
        help="print the number of jobs in each state, running jobs, and why new jobs wait;\n"
             "with --outdir also hosts, start times, time left")
    add("--json", action="store_true", help="with --status, --failed, --show or --stats: as JSON")
    add("--failed", action="store_true",
        help="print each line that is failed or in error; with --outdir also host, exit\n"
             "status and the last lines of output")
    add("--show", type=nonempty, metavar="LINE",
        help="with --outdir: print the same for all runs of these lines; LINE: a number,\n"
             "1,2,5-9, a complete command, or a shell pattern for commands")
    add("--stats", action="store_true",
        help="with --outdir, also together with --report: print run times, CPU use and\n"
             "memory per host and per command (FILE is optional)")
    add("--outdir", type=nonempty, metavar="DIR",
        help="the --outdir of runmaker4.py, which has the journal [$RUNMAKER4_OUTDIR, FILE.out]")
    add = parser.add_argument_group("drawing finished runs").add_argument
    add(
        "--joblog",
        type=nonempty,
        metavar="LOG",
        help="a job log of runmaker4.py --joblog, or of GNU parallel",
    )
    add("--timeline", type=output_path, metavar="OUT.json",
        help="write the runs as trace events, for Perfetto (ui.perfetto.dev) or\n"
             "chrome://tracing: a process per host, a thread per slot")
    add("--report", type=output_path, metavar="OUT.html",
        help="write a page about the same runs for any browser; with --progress, update it\n"
             "while the jobs of FILE run")
    add = parser.add_argument_group("testing a file system").add_argument
    add("--check-locks", type=nonempty, metavar="DIR",
        help="test for a minute that hosts can share job files in this directory; start it\n"
             "on all of them at the same time")
    add_general(parser)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options.  Raises UsageError."""
    parser = make_parser()
    options: argparse.Namespace = parser.parse_args(argv)
    named = options.outdir is not None
    if not named and options.joblog is None:
        options.outdir = os.environ.get("RUNMAKER4_OUTDIR") or outdir_of_background(options.file)
    check_options(options, parser, named)
    return options


def outdir_of_background(path: str | None) -> str | None:
    """Return the output directory of runners in the background that were given none; None: it cannot be read.
    """
    if path is None or not os.access(os.path.join(default_outdir(path), "journal"), os.R_OK):
        return None
    return default_outdir(path)


EXCLUDED = {                    # by option, the options that exclude it
    "report": ("timeline", "status", "json", "use_exit_status", "failed", "show"),
    "progress": ("status", "failed", "show", "stats"),
    "status": ("failed", "show", "stats"),
    "failed": ("show", "stats"),
    "show": ("stats", "use_exit_status"),
    "stats": ("use_exit_status",),
}


def check_options(options: argparse.Namespace, parser: Parser, outdir_named: bool) -> None:
    """Refuse options that exclude each other.  Raises UsageError.

    outdir_named: --outdir is on the command line.
    """
    given = {name for name, value in vars(options).items() if value}
    if "check_locks" in given:
        if outdir_named or given - {"check_locks", "outdir"}:
            parser.error("--check-locks excludes FILE and all other options")
        return
    has_one_log = len(given & {"joblog", "outdir"}) == 1
    if "report" in given:
        if not has_one_log:
            parser.error("--report requires either --outdir or --joblog, as the jobs were run with")
        if "progress" in given and "file" not in given:
            parser.error("--report --progress requires FILE")
    elif "timeline" in given:
        if not has_one_log:
            parser.error("--timeline requires either --joblog or --outdir")
        if given - {"timeline", "joblog", "outdir", "json"}:
            parser.error("--timeline excludes all options but --joblog and --outdir")
    elif "joblog" in given:
        parser.error("--joblog requires --timeline or --report")
    elif not given & {"file", "stats"}:
        parser.error("missing FILE")
    elif outdir_named and not given & EXCLUDED.keys():
        parser.error("--outdir requires --status, --show, --failed, --stats, --timeline or --report")
    for one, other in [(one, other) for one, others in EXCLUDED.items() for other in others]:
        if {one, other} <= given:
            name = "-e" if other == "use_exit_status" else f"--{other}"
            parser.error(f"--{one} and {name} exclude each other")
    if "json" in given and not given & {"status", "failed", "show", "stats"}:
        parser.error("--json requires --status, --failed, --show or --stats")
    for name in given & {"stats", "show"}:
        if "outdir" not in given:
            parser.error(f"--{name} requires --outdir DIR, after runs with runmaker4.py --outdir DIR")


# ======== Waiting ===========================================================================================
#
# A Watcher reads the complete job file at each poll, and counts the states.  A line `r` counts as running if
# a process holds a job lock of the command; otherwise it is an orphan.  The waiting is over when no job is
# new or running, or when two polls in a row find that no runner will start the new jobs.  A file that an
# editor has only half saved is polled again.

WORDS = {NEW: "new", RUNNING: "running", DONE: "done", FAILED: "failed", ERROR: "error"}    # others: held


def patient(read: Callable[Concatenate[Watcher, P], T]) -> Callable[Concatenate[Watcher, P], T]:
    """Make a method of a Watcher try again while the job file is missing, for MAX_MISSING_SECONDS at most.

    Then the method raises UsageError.
    """
    @functools.wraps(read)
    def tried(self: Watcher, /, *args: P.args, **kwargs: P.kwargs) -> T:
        start = time.monotonic()
        while True:
            try:
                return read(self, *args, **kwargs)
            except OSError as error:
                if time.monotonic() - start > self.MAX_MISSING_SECONDS:
                    raise UsageError(f"{self.path}: {error_text(error)}") from None
            time.sleep(0.1)
    return tried


class Watcher:
    """Polls the job file, but never spends more than a twentieth of the CPU time on that."""
    MAX_MISSING_SECONDS = 5.0   # seconds to wait for a missing file: editors replace it
    IDLE = 30.0                 # seconds without a claim or result until wait() reports that new jobs wait

    def __init__(self, path: str) -> None:
        """Raises UsageError."""
        os.close(open_job_file(path, os.O_RDONLY))
        self.path = path
        mount = check_mount(path, single_host=True, say=warn)
        self.file = JobReader(path, say=lambda text: say(f"{path}: {text}"), mount=mount)
        self._pause = 5.0 if mount.network else 0.2
        # seconds after a change of the job file in which the host appends the end of the run to the journal
        self._delay = 20.0 if mount.network else 5.0
        self._throttle = Throttle()
        self.stopped = ""       # why no runner will start the new jobs; "": one can

    @patient
    def _look(self) -> Snapshot:
        """Return a snapshot of the file."""
        with self._throttle:
            return self.file.snapshot()

    @patient
    def lines(self, states: bytes | None, selects: Callable[[Line], bool] | None = None) -> list[Line]:
        """Return the lines in these states (None: in any) that `selects` accepts (None: all)."""
        return list(filter(selects, self.file.lines(states)))

    @patient
    def lines_at(self, ranges: Sequence[range]) -> list[Line]:
        """Return the job lines with these numbers; stop reading at the last one."""
        last = max(numbers[-1] for numbers in ranges)
        lines = itertools.takewhile(lambda line: line.number <= last, self.file.lines())
        return [line for line in lines if any(line.number in numbers for numbers in ranges)]

    @patient
    def held_lines(self, snapshot: Snapshot, most: int) -> list[Line]:
        """Return the first held lines, at most `most` of them."""
        held = b"".join(state for state in snapshot.states if state not in WORDS)
        return list(itertools.islice(self.file.lines(held), most)) if held else []

    @patient
    def presence_locks(self) -> set[int] | None:
        """Return the presence locks of all runners and servers; None: no permission to read them."""
        self.file.follow()
        return self.file.lock_table.presence_locks()

    @patient
    def cancelled(self, snapshot: Snapshot) -> list[Line]:
        """Return the held lines with jobs that still run, for example after `x` was written over `r`.

        A command has such lines if it has more job locks than lines `r`.  snapshot: the last result of
        sure_look().
        """
        held_states = b"".join(snapshot.states.keys() - WORDS.keys())
        if not held_states or not self.file.lock_table.is_open:
            return []
        buckets = self._buckets_with_job_locks()
        held_lines: dict[bytes, list[Line]] = {}
        for line in self.file.lines(held_states) if buckets else ():
            if bucket_of(line.command) in buckets:
                held_lines.setdefault(line.command, []).append(line)
        cancelled: list[Line] = []
        for command, lines in held_lines.items():
            running = [line for line in snapshot.running + snapshot.orphans if line.command == command]
            cancelled += self._lines_with_spare_job_locks(lines, running)
        return sorted(cancelled, key=lambda line: line.number)

    def _buckets_with_job_locks(self) -> set[int]:
        """Return the buckets in which another process holds a job lock."""
        # A lock that includes the command mutex of a bucket is not a job lock, but `runset4.py --edit`.
        return {some.start & ~MUTEX_OFFSET for some in other_locks(self.file.lock_table.fd, 0, BUCKETS_END)
                if some.start | MUTEX_OFFSET not in some}

    def _lines_with_spare_job_locks(self, lines: Iterable[Line], running: Iterable[Line]) -> list[Line]:
        """Return those of the equal `lines` that have a job lock besides the ones of the `running` lines.

        A job lock has the number of a line, modulo JOB_LOCKS, unless that was taken or the line has moved
        since.  So each line gets the job lock with the nearest number.
        """
        by_number = {line.number % JOB_LOCKS: line for line in lines}
        bucket = bucket_of(next(iter(by_number.values())).command)
        spare = sorted(offset - bucket for some in other_locks(self.file.lock_table.fd, bucket, JOB_LOCKS)
                       for offset in some)
        for line in running:
            if spare:
                spare.remove(nearest(spare, line.number % JOB_LOCKS))
        return [by_number.pop(nearest(sorted(by_number), number)) for number in spare[:len(by_number)]]

    @patient
    def lines_with(self, commands: Collection[bytes]) -> list[Line]:
        """Return the lines with these commands."""
        self.file.follow()
        return list(itertools.chain.from_iterable(self.file.lines_by_command(commands).values()))

    @patient
    def moved(self, runs: Collection[RunRecord]) -> set[bytes]:
        """Return the commands of those runs whose lines have other numbers now, or were removed."""
        self.file.follow()
        commands = {run.line: run.command for run in runs}
        moved = {run.command for run in runs if commands[run.line] != run.command}
        pieces = whole_lines(self.file.reader, self.file.start)
        lines = itertools.chain.from_iterable(piece.removesuffix(b"\n").split(b"\n") for piece in pieces)
        for number, text in enumerate(lines, 1):
            if number in commands and text[2:] == commands[number] and JOB_LINE.match(b"\n" + text[:2]):
                del commands[number]
        return moved.union(commands.values())

    @patient
    def ends_may_come(self) -> bool:
        """Return True if the job file has changed so recently that ends of runs can still be on the way to
        the log.
        """
        age = time.time() - self.file.signature()[3] / 1e9
        return -Clocks.APART <= age < self._delay

    def sure_look(self) -> Snapshot:
        """Return a snapshot of the file while it is not half saved by an editor.  Raises UsageError."""
        while (snapshot := self._look()).half_saved:
            time.sleep(self._pause)
        return snapshot

    def wait(self, update: Callable[[Counts], None], say: Callable[[str], None]) -> Counts:
        """Wait until no job is new or running, or `stopped` gives the reason why no runner will start the new
        ones.

        update: called with the counts of each poll.  say: called once if new jobs wait.  Raises UsageError.
        """
        last: Counts | None = None
        since = 0.0             # when these counts were first seen
        while True:
            snapshot = self._look()
            now = count_states(snapshot)
            update(now)
            if not now.new and not now.running and not snapshot.half_saved:
                return now
            previous = self.stopped
            block_reason = self.block_reason() if now.new and not now.running else None
            self.stopped = block_reason.text if block_reason and block_reason.stops else ""
            if self.stopped and self.stopped == previous:       # seen twice: it is not about to be fixed
                return now
            if now != last:
                last = now
                since = time.monotonic()
            elif now.new and not now.running and time.monotonic() - since > self.IDLE:
                since = math.inf
                say(new_jobs_wait(now.new, self.path))
            time.sleep(max(self._pause, self._throttle.rest(20)))

    @patient
    def block_reason(self, hosts: Collection[str] = ()) -> BlockReason | None:
        """Return the reason why new jobs cannot start, if there is one.  hosts: some of the hosts at work."""
        self._throttle.resume()
        try:
            return find_block_reason(self.file, hosts)
        finally:
            self._throttle.pause()


# ======== Progress ==========================================================================================
#
# A pipe gets a line for each change, at most one a second.  A terminal has one line, redrawn at each poll.


class PipeProgress:
    """Prints a line per change, at most one a second; the last change is always printed."""

    def __init__(self) -> None:
        self._printed = ""
        self._when = -1.0
        self._line = ""

    def update(self, now: Counts) -> None:
        self._line = progress_line(now)
        if time.monotonic() - self._when >= 1.0:
            self.close()

    def close(self) -> None:
        """Print the last change."""
        if self._line != self._printed:
            print_bytes(f"{self._line}\n".encode())
            self._printed = self._line
            self._when = time.monotonic()


class TerminalProgress(ProgressBar):
    """One line, redrawn in place, as wide as the terminal."""
    CLEAR = "\r\x1b[K"

    def __init__(
        self, put: Callable[[bytes], None] = print_bytes, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(clock)
        self.put = put

    def update(self, now: Counts) -> None:
        self.put((self.CLEAR + self.line(now, columns_of(1))).encode())

    def close(self) -> None:
        """Keep the last line, and start a new one."""
        self.put(b"\n")


# ======== The journal =======================================================================================
#
# `runmaker4.py --outdir DIR` keeps DIR/journal: JSON Lines, an object when a run starts, when it ends, and
# when an output file of an earlier run gets another name.
#
# It is read forwards, in one pass.  A start is decoded only if the run has no end: usually the end follows,
# and repeats all fields of the start.  An end names the output files as of that moment; their present names
# are known after the last line.
#
# The starts of running jobs are near the end of the journal.  So --status reads the last part first, and the
# remainder only if a run is missing.

STATE_NAMES = {"d": "done", "!": "failed", "e": "error", ".": "put back", "r": "running", "x": "cancelled",
               "?": "unknown"}


def refuse_special(path: str, hint: str) -> None:
    """Refuse a path to anything but a regular file, for example to a pipe, which can take forever to open.

    Raises UsageError.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "is a directory" if os.path.isdir(path) else "not a regular file"
        raise UsageError(f"{path}: {kind} ({hint})")


@dataclass(eq=False)
class RunRecord:
    """A run of a job.

    A run without an end has no `ended`, `seconds`, `cpu` and `memory`. LineRuns.judge() sets the `state` and
    perhaps a `cause`.
    """

    __slots__ = (
        "began",
        "bytes",
        "cause",
        "command",
        "cpu",
        "ended",
        "exit",
        "files",
        "host",
        "incomplete",
        "line",
        "memory",
        "memory_below",
        "pid",
        "position",
        "promised",
        "run",
        "runner",
        "seconds",
        "signal",
        "slot",
        "state",
    )
    run: str                    # unique forever
    line: int                   # the number of the job's line when the record was written
    command: bytes
    host: str
    slot: str
    pid: int                    # 0: the job could not be started
    began: float                # seconds since 1970, by the clock of `host`, as all times
    ended: float | None
    state: str                  # d ! e; x: cancelled; .: a stopped job was put back; set by judge(): r e ?
    exit: int                   # -1: none
    signal: int
    # "", "timeout", "memory", "oom", "cancelled", "stopped" or "lost"; judge() also sets "ending", "unknown"
    cause: str
    seconds: float | None
    cpu: float | None           # seconds; None: unknown
    memory: int | None          # bytes at the peak; None: unknown
    bytes: int                  # of output
    files: list[str]            # output files: names in DIR as of `position`; after name_files() as of now
    incomplete: bool            # some output could not be written
    memory_below: int | None    # an upper bound of the peak, if it could not be measured
    # presence lock of the runner that started the run, or of the server that assigned it; None: unknown
    runner: int | None
    promised: int | None        # bytes of requested memory; None: not requested
    position: int               # the position in the log of the line for this run

    @property
    def peak(self) -> str:
        """'12 MB', '<30 MB', or with requested memory '3.1G of 4G'; '' if unknown."""
        known = peak_memory(self.memory, self.memory_below, memory_text if self.promised else human_size)
        return f"{known} of {memory_text(self.promised)}" if known and self.promised else known

    @property
    def lacked_memory(self) -> bool:
        """True if the job was killed because it needed more memory than it could have."""
        return self.cause in ("memory", "oom")


class LogPass:
    """One forward pass through a log, or through the last part.

    Yields each run once: finished runs in the order of their ends, and then the others. The pass keeps its
    results: another pass has other objects for the same runs.
    """
    INVALID = StopIteration, ValueError, LookupError, TypeError, ArithmeticError, RecursionError, WireError

    def __init__(self, log: Log, wanted: Wanted | None, begin: int) -> None:
        """See Log.runs()."""
        self.log = log
        self._wanted = wanted
        self._begin = begin
        self._invalid: list[int] = []       # positions of invalid lines

    def __iter__(self) -> Iterator[RunRecord]:
        """Read the log.  Call it at most once.  Raises UsageError."""
        try:
            # At most `begin` lines come before the offset `begin`.  So positions in later parts are larger.
            for position, line in enumerate(self.log.lines(self._begin), self._begin + 1):
                try:
                    run = self._take(position, line)
                except self.INVALID:
                    self._invalid.append(position)
                    continue
                if run:
                    yield run
        except OSError as error:
            raise UsageError(f"{self.log.path}: {error_text(error)}") from None
        yield from self._unended()
        if not self._begin:
            self.log.report_invalid(self._invalid)

    def _take(self, position: int, line: bytes) -> RunRecord | None:
        """Return the run that finishes with the line at this position, if any.  Raises INVALID."""
        raise NotImplementedError

    def _unended(self) -> Iterator[RunRecord]:
        """Yield the runs without an end."""
        return iter(())

    def name_files(self, runs: Iterable[RunRecord]) -> None:
        """Set the present names of the output files of these runs; of runs without an end also the size of
        the output.

        Call it after the pass, once for a run.
        """


class Log:
    """A file with one line per event of a run.  It is read as it was when it was opened; see LogPass."""
    KIND = ""
    PASS = LogPass
    MAX_LINE_BYTES = 1 << 23    # commands are shorter
    READ_BYTES = 1 << 18        # bytes to read at a time

    def __init__(self, path: str, say: Callable[[str], None]) -> None:
        """Raises UsageError."""
        self.path = path
        self._say = say
        self._has_reported = False
        try:
            self.file = self._open()
            self.size = self._size()
            # the time of the last write, by the clock of the file server
            self.changed = os.fstat(self.file.fd).st_mtime
        except OSError as error:
            raise UsageError(f"{path}: {error_text(error)} (expected a {self.KIND})") from None

    def _open(self) -> Reader:
        """Open the log, with all that any host has written up to now.  Raises OSError, UsageError."""
        mount = find_mount(self.path)
        if mount.network:
            refresh_file(self.path, mount)
        refuse_special(self.path, f"expected a {self.KIND}")
        return Reader(open_direct(self.path, os.O_RDONLY | os.O_CLOEXEC, mount.network), mount.network)

    def _size(self) -> int:
        """Return the size.  NFS can report an old size, but reads beyond it."""
        size = os.fstat(self.file.fd).st_size
        while found := self.file.pread(self.READ_BYTES, size):
            size += len(found)
        return size

    def runs(self, wanted: Wanted | None = None, begin: int = 0) -> LogPass:
        """Return a pass through the log.

        wanted: selects runs (None: all); runs that it does not select can also come.  begin: the offset at
        which to start reading.
        """
        return self.PASS(self, wanted, begin)

    def lines(self, begin: int) -> Iterator[bytes]:
        """Yield the lines, from the first complete one after an offset on.

        A lone newline, which is an invalid line, replaces a line that is too long, and the text after the
        last newline.
        """
        offset = begin
        partial = b""
        skips = begin > 0                       # `begin` can be inside a line
        dropped = False                         # a line is too long, and was dropped so far
        while offset < self.size and (
                data := self.file.pread(min(self.READ_BYTES, self.size - offset), offset)):
            offset += len(data)
            *lines, partial = (partial + data).split(b"\n")
            if lines and (skips or dropped):
                lines[:1] = [b"\n"] if dropped and not skips else []
                skips = dropped = False
            yield from lines
            if len(partial) >= self.MAX_LINE_BYTES:
                partial = b""
                dropped = True
        if (partial or dropped) and not skips:
            yield b"\n"

    def report_invalid(self, positions: Collection[int]) -> None:
        """Report once the invalid lines that a complete pass has found."""
        if positions and not self._has_reported:
            self._has_reported = True
            self._say(f"{self.path}: {plural(len(positions), 'line')} skipped: truncated, or not lines of a "
                      f"{self.KIND} ({name_lines(positions)})")


class NoLog(Log):
    """An empty log, for commands without one."""

    def __init__(self) -> None:
        self.path = ""
        self.file = Reader(None)
        self.size = 0
        self.changed = 0.0


class JournalPass(LogPass):
    """One pass through a journal."""
    BOTH = operator.itemgetter("time", "run", "line", "command", "host", "slot", "pid")
    END_FIELDS = operator.itemgetter(
        "state", "exit", "signal", "cause", "seconds", "cpu", "memory", "bytes", "files"
    )
    NO_END: tuple[Any, ...] = "", -1, 0, "", None, None, None, 0, ()        # for END, before the end
    STATES = frozenset("d!e.x")               # of runs with an end
    RECENT = 50_000             # finished runs to remember, because an end can be logged twice
    LATEST = 10 ** 10           # seconds since 1970; and the bound of most numbers
    # The head of a line as runmaker4 writes it.  Groups: event, run, line, command
    BEGINNING = rb'\{"time": [1-9]\d{0,10}(?:\.\d{1,6})?, "event": "(%s)", (?="run": "([^"\\]*)", '
    HEAD = re.compile(
        BEGINNING % b"start|end" + rb'"line": (\d+), "command": ("[^"\\]*(?:\\.[^"\\]*)*"), )'
    )
    START = re.compile(BEGINNING % b"start" + b")")
    NUMBERS = frozenset((int, float))       # not bool, which is also an int for isinstance()

    def __init__(self, log: Log, wanted: Wanted | None, begin: int) -> None:
        super().__init__(log, wanted, begin)
        self._decode = json.JSONDecoder().scan_once
        # by the name of a run: position and line of the start, or of an end with cause "lost"; and the offset
        # from which the line of the end must be equal (0: do not compare)
        self._open_runs: dict[str, tuple[int, bytes, int]] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()     # the last finished runs
        # by the name of a file: positions at which a file of this name was renamed, and the new name
        self._moves: dict[str, list[tuple[int, str]]] = {}

    def _take(self, position: int, line: bytes) -> RunRecord | None:
        """Keep a start undecoded until all ends have come: to decode all lines would take twice as long."""
        if line.isascii() and line.endswith(b"}"):
            head = (self.HEAD if self._wanted else self.START).match(line)
            if head and self._wanted and not self._wanted(head):
                return None
            if head and head[1] == b"start":
                self._add_start(head[2].decode(), position, line, head.end())
                return None
        event = self._event(line)
        kind = event["event"]
        if kind in ("start", "end"):
            run = self._read(position, line, event)
            if kind == "end":
                return self._add_end(run, line)
            self._add_start(run.run, position, line, 0)
        elif kind == "moved":
            old, new = event["from"], event["to"]
            to_bytes(old + new)                 # WireError: half a surrogate pair is no name
            self._moves.setdefault(old, []).append((position, new))
        elif not isinstance(kind, str):
            raise ValueError
        return None

    def _add_start(self, name: str, position: int, line: bytes, body: int) -> None:
        """Remember the start of a run.  body: see _open_runs."""
        if name not in self._ended:
            self._open_runs.setdefault(name, (position, line, body))

    def _add_end(self, run: RunRecord, line: bytes) -> RunRecord | None:
        """Remember the end of a run; return the run.

        Return None if the run was only lost, because the client can come back. Return None also for a second
        end: a server was restarted before it could acknowledge the first.
        """
        if run.run in self._ended:
            return None
        start = self._open_runs.pop(run.run, None)
        if start and start[2] and not line.startswith(start[1][start[2]:-1], line.find(b'"run": ')):
            self._sense(*start)                 # the start is damaged, or differs from the end
        if run.cause == "lost":
            self._open_runs[run.run] = run.position, line, 0
            return None
        self._ended[run.run] = None
        if len(self._ended) > self.RECENT:
            self._ended.popitem(last=False)
        return run

    def _unended(self) -> Iterator[RunRecord]:
        for start in self._open_runs.values():
            if run := self._sense(*start):
                yield run

    def _sense(self, position: int, line: bytes, body: int) -> RunRecord | None:
        """Return the run of an entry of _open_runs; None if the line is invalid, which is recorded."""
        try:
            return self._read(position, line, self._event(line))
        except self.INVALID:
            self._invalid.append(position)
            return None

    def name_files(self, runs: Iterable[RunRecord]) -> None:
        """Set the current names of the output files of runs; later runs of a line rename the files.

        For a run without an `end` event, which would have the names, look for the files in the directory.
        """
        output = LastOutput(os.path.dirname(self.log.path))
        for run in {*runs}:
            names = run.files
            if run.ended is None:
                names = [f"{run.line}{suffix}" for suffix in LastOutput.SUFFIXES]
            run.files = [self.name_now(name, run.position) for name in names]
            if run.ended is None:
                sizes = output.sizes(run)
                run.files = list(sizes)
                run.bytes = sum(sizes.values())

    def name_now(self, name: str, position: int) -> str:
        """Return the present name of a file that had this name at this position of the log."""
        moves = self._moves.get(name, ())
        following = bisect.bisect_left(moves, (position + 1,))
        while following < len(moves):
            position, name = moves[following]
            moves = self._moves.get(name, ())
            following = bisect.bisect_left(moves, (position + 1,))
        return name

    def _event(self, line: bytes) -> dict[str, Any]:
        """Return the JSON object of a line.  Raises INVALID."""
        text = line.decode()
        event: dict[str, Any]
        event, end = self._decode(text, 0)              # json.loads() takes half as long again
        if end != len(text):
            raise ValueError
        return event

    def _read(self, position: int, line: bytes, event: dict[str, Any]) -> RunRecord:
        """Return the run of a start or an end.  event: the JSON object of the line.  Raises INVALID.

        This is the only place where the fields of a run are interpreted; each is checked.
        """
        ended = event["event"] == "end"
        # otherwise one of the texts can be half a surrogate pair, for which to_bytes() raises WireError
        plain = line.isascii() and b"\\u" not in line
        when, name, number, command, host, slot, pid = self.BOTH(event)
        runner = event.get("runner")
        promised = event.get("promised")
        end = self.NO_END
        spent = 0.0
        incomplete = False
        below = None
        if ended:
            end = self.END_FIELDS(event)
            spent = end[4]
            incomplete = event.get("incomplete", False)
            below = event.get("memory_below")
        state, code, died_of, cause, took, cpu, memory, printed, files = end
        texts = "".join((name, command, host, slot, cause, *files))     # TypeError: one is not a text
        if not type(number) is type(pid) is type(code) is type(died_of) is type(printed) is int:
            raise ValueError
        if type(when) not in self.NUMBERS or type(spent) not in self.NUMBERS or type(incomplete) is not bool:
            raise ValueError
        if ended and (state not in self.STATES or type(files) is not list):
            raise ValueError
        if not (0 <= spent <= when <= self.LATEST and 0 <= number < self.LATEST and 0 <= pid < self.LATEST):
            raise ValueError
        if not (-1 <= code < self.LATEST and 0 <= died_of < self.LATEST and 0 <= printed < 1 << 63):
            raise ValueError
        if cpu is not None and not (type(cpu) in self.NUMBERS and 0 <= cpu <= self.LATEST):
            raise ValueError
        for size in memory, below, promised:
            if size is not None and not (type(size) is int and 0 <= size < 1 << 59):
                raise ValueError
        if runner is not None and type(runner) is not int:
            raise ValueError
        if not plain:
            to_bytes(texts)
        return RunRecord(
            name,
            number,
            command.encode() if plain else to_bytes(command),
            host,
            slot,
            pid,
            when - spent,
            when if ended else None,
            state, code, died_of, cause, took, cpu, memory, printed,
            list(files),
            incomplete,
            below,
            # by keyword: CPython 3.11 keeps up to 2,000 tuples of 20 arguments, and never uses one again
            runner=runner,
            promised=promised,
            position=position,
        )


class JournalReader(Log):
    KIND = "journal"
    PASS = JournalPass

    def __init__(self, directory: str, say: Callable[[str], None]) -> None:
        """Raises UsageError."""
        if not os.path.isdir(directory):
            missing = "not a directory" if os.path.exists(directory) else "no such directory"
            raise UsageError(f"{directory}: {missing} (expected the --outdir of runmaker4.py)")
        super().__init__(os.path.join(directory, "journal"), say)

    def _open(self) -> Reader:
        try:
            return super()._open()
        except FileNotFoundError:
            directory = os.path.dirname(self.path)
            raise UsageError(
                f"{directory}: no journal (no job was run with it yet, or by an older version)"
            ) from None


# ======== Job output ========================================================================================
#
# The end of a run names the output files.  A run without an end prints to LINE.out and LINE.err, or to the
# present names of these files if they were renamed.


class LastOutput:
    """The last lines in the output files of runs."""
    SUFFIXES = ".out", ".err"   # of output files, after the number of the line at the start of the run
    BYTES = 1 << 14             # of a file, at most: only the end is read
    WIDTH = 500                 # characters of a line, at most, also on a wider terminal

    def __init__(self, directory: str, most: int = 3) -> None:
        """most: the maximum number of lines of a file."""
        self.directory = directory
        self._most = most
        self.network = find_mount(directory).network

    def of(self, run: RunRecord) -> list[str]:
        """Return the last lines of a run's stderr, or otherwise of stdout; or the reason why they cannot be
        read.
        """
        errors = []
        for name in sorted(run.files, key=lambda name: ".err" not in name):
            try:
                if lines := self._tail(name):
                    return [printable(to_text(line[:4 * self.WIDTH])) for line in lines]
            except OSError as error:
                errors.append(f"({name}: {error_text(error)})")
            except ValueError:
                errors.append(f"({name}: not an output file)")
        return errors

    def _tail(self, name: str) -> list[bytes]:
        """Return the last lines of a file that are not blank.  Raises OSError, ValueError."""
        with self._open(name) as file:
            lines = file.pread(self.BYTES, max(0, os.fstat(file.fd).st_size - self.BYTES)).split(b"\n")
        # a terminal overwrites the text before a \r
        shown = [line.rstrip(b"\r").rpartition(b"\r")[2] for line in lines]
        return [line for line in shown if line.strip()][-self._most:]

    def sizes(self, run: RunRecord) -> dict[str, int]:
        """Return the sizes of the run's output files, by name.  Unreadable files are left out."""
        sizes = {}
        for name in run.files:
            with contextlib.suppress(OSError, ValueError), self._open(name) as file:
                sizes[name] = os.fstat(file.fd).st_size
        return sizes

    def _open(self, name: str) -> Reader:
        """Open an output file of a run.  Raises OSError; ValueError: not an output file.

        The size is as of when the journal was opened: Log._open() has refreshed the directory.
        """
        if os.path.basename(name) != name:
            raise ValueError
        path = os.path.join(self.directory, name)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        file = Reader(open_direct(path, flags, self.network), self.network)
        if not stat.S_ISREG(os.fstat(file.fd).st_mode):
            file.close()
            raise ValueError
        return file


# ======== Matching runs to lines ============================================================================
#
# The journal has the line number of a run at the time of the record.  Lines can have been moved, inserted and
# removed since then, and several can have the same command.  A run belongs to a line with the same command.
# Of several lines, it belongs to the one with the same number, or otherwise to the nearest.  Of two equally
# near ones, it belongs to the lower one in the file, because lines are usually inserted above.
#
# A line inserted above equal lines shifts the numbers of all of them.  So if the log has as many numbers of a
# command as the file has lines with it, they are paired in order first.
#
# If several runs belong to a line, the last run is the one with the nearest number, and of equally near ones
# the last one in the journal.
#
# A run without an end belongs to a line with a running job, or with an end that is on the way to the journal.
# So while lines with this command are `r`, or cancelled and still running, the run belongs to one of these.


def nearest(numbers: Sequence[int], number: int) -> int:
    """Return the number of the line to which a run with this number belongs.  numbers: of the lines, in
    order.
    """
    above = bisect.bisect_left(numbers, number)
    if numbers[above:above + 1] == [number]:
        return number
    return min(numbers[max(above - 1, 0):above + 1], key=lambda other: (abs(other - number), -other))


Last = dict[tuple[bytes, int, bool], RunRecord]         # by command, number, and True for no end


def keep_last_runs(last: Last, runs: Iterable[RunRecord]) -> Last:
    """Keep for each command and number the last finished run, and the last one without an end.

    No other run can be the last run of a line. So memory use does not depend on the length of the log.
    """
    for run in runs:
        key = run.command, run.line, run.ended is None
        if key not in last or run.position > last[key].position:
            last[key] = run
    return last


class LineRuns:
    """Lines, and the runs that belong to them."""

    def __init__(self, lines: Iterable[Line], living: Collection[int], runs: Iterable[RunRecord]) -> None:
        """lines: all lines that have one of some commands.  living: the numbers of lines with running jobs.

        runs: at least the runs of these commands that keep_last_runs() keeps; other runs are ignored.
        """
        self.lines = {line.number: line for line in lines}
        self._numbers: dict[bytes, list[int]] = {}          # of the lines, by command
        self._running: dict[bytes, list[int]] = {}          # of the running ones
        for number in sorted(self.lines):
            line = self.lines[number]
            self._numbers.setdefault(line.command, []).append(number)
            if line.state == RUNNING or number in living:
                self._running.setdefault(line.command, []).append(number)
        known = [run for run in runs if run.command in self._numbers]
        self._file_changed = self._pair(known)
        self.last: dict[int, RunRecord] = {}                # by the number of the line
        ranks: dict[int, tuple[float, int]] = {}
        for run in known:
            number = self._number(run)
            rank = -abs(self._place(run) - number), run.position
            if rank > ranks.get(number, (-math.inf, 0)):
                ranks[number] = rank
                self.last[number] = run

    def _pair(self, runs: Iterable[RunRecord]) -> dict[tuple[bytes, int], int]:
        """Pair the numbers of equal lines in the log with the present ones.

        Return the present number by command and number in the log, where they differ.
        """
        logged: defaultdict[bytes, set[int]] = defaultdict(set)
        for run in runs:
            logged[run.command].add(run.line)
        return {(command, then): now for command, numbers in logged.items()
                if len(numbers) == len(self._numbers[command])
                for then, now in zip(sorted(numbers), self._numbers[command]) if then != now}

    def _place(self, run: RunRecord) -> int:
        """Return the expected present line number of a run."""
        return self._file_changed.get((run.command, run.line), run.line) if self._file_changed else run.line

    def _number(self, run: RunRecord) -> int:
        """Return the number of the line that a run belongs to."""
        numbers = self._numbers[run.command]
        if run.ended is None:
            numbers = self._running.get(run.command, numbers)
        return nearest(numbers, self._place(run))

    def line_of(self, run: RunRecord) -> Line | None:
        """Return the line that a run belongs to; None: no line has this command."""
        return self.lines[self._number(run)] if run.command in self._numbers else None

    def is_last(self, run: RunRecord, line: Line) -> bool:
        """Return True if a run is the last one of this line."""
        return self.last[line.number].position == run.position

    def is_certain(self, line: Line) -> bool:
        """Return True if the last run of a line is running, and no earlier part of the log can change that.

        For one of several equal lines it can: numbers in that part decide if they are paired in order.
        """
        run = self.last.get(line.number)
        return (run is not None and run.ended is None and run.line == line.number
                and len(self._numbers[line.command]) == 1)


def of_commands(commands: Iterable[bytes]) -> Wanted:
    """Return a test for the head of a journal line: True if the run has one of these commands."""
    texts = {json.dumps(to_text(command)).encode() for command in commands}       # as in a journal
    return lambda head: head[4] in texts


def or_incomplete(wanted: Wanted) -> Wanted:
    """Return a test for the head of a journal line: True also if the run's output can be incomplete.

    Few lines have that. So search for the word instead of decoding.
    """
    return lambda head: wanted(head) or b'"incomplete"' in head.string


# ======== Who is at work ====================================================================================
#
# Each runner and each server holds a presence lock in the lock file, and loses it on exit (PresenceLock in
# runmaker4.py).  The journal has the presence lock of the program that started a run.


class AtWork:
    """The runners and servers that use a job file."""

    def __init__(self, presence_locks: Collection[int] | None) -> None:
        """presence locks: the presence locks that are held; None: unknown."""
        self._presence_locks = presence_locks

    def is_gone(self, run: RunRecord | None) -> bool:
        """Return True if the runner that started a run, or the server that assigned it, has surely exited.

        A server takes over the runs of the previous server, so a run has a server if any server is alive.
        """
        if not self._presence_locks or not run or run.runner is None:
            return self.is_nobody
        if run.runner >= PresenceLock.SERVERS:
            return max(self._presence_locks) < PresenceLock.SERVERS
        return run.runner not in self._presence_locks

    @property
    def is_nobody(self) -> bool:
        """True if no runner and no server is alive; False also if unknown."""
        return self._presence_locks is not None and not self._presence_locks

    def counted(self) -> dict[str, int | None]:
        """Return the numbers of runners and servers; None: unknown."""
        if self._presence_locks is None:
            return {"runners": None, "servers": None}
        servers = sum(presence_lock >= PresenceLock.SERVERS for presence_lock in self._presence_locks)
        return {"runners": len(self._presence_locks) - servers, "servers": servers}


class Clocks:
    """The hosts with wrong clocks, as far as a log shows them.  Ages of times from these hosts are unknown.

    The file server records when the last line was appended. A clock is fast if one of its times is more than
    APART after that. Lines are appended as events happen, so a time can be compared with the time in the
    previous line if that is from another host, and in the last line with the mtime of the file. But a client
    that was disconnected appends late, so one early time proves nothing: a clock is slow only if all
    comparable times are more than APART too early.
    """
    APART = 60.0                # seconds

    def __init__(self, changed: float, runs: Iterable[RunRecord] = ()) -> None:
        """changed: the time of the last write to the log, by the clock of the file server.  runs: the last
        few.
        """
        self._is_ours_wrong = changed > time.time() + self.APART
        in_order = sorted(runs, key=operator.attrgetter("position"))
        fast = {run.host for run in in_order if (run.ended or run.began) > changed + self.APART}
        early: set[str] = set()
        punctual: set[str] = set()
        host = ""
        previous = 0.0
        for run in in_order:
            if run.host not in fast:
                when = run.ended or run.began
                if host and run.host != host:
                    (early if when < previous - self.APART else punctual).add(run.host)
                host = run.host
                previous = when
        (early if previous < changed - self.APART else punctual).add(host)
        self.wrong = fast | (early - punctual - {""})

    @property
    def are_right(self) -> bool:
        """True if all clocks are right, as far as the log shows."""
        return not self.wrong and not self._is_ours_wrong

    def age(self, host: str, when: float) -> float | None:
        """Return the seconds since this time by the clock of `host`; None: unknown."""
        return None if self._is_ours_wrong or host in self.wrong else max(0.0, time.time() - when)


# ======== A look ============================================================================================
#
# Each view is a snapshot.  A look reads everything once, in this order:
#
#   presence locks   also of runners that exit during the look, whose lines are still `r` in it
#   the job file     states, running lines and orphans; cancelled lines with running jobs; the lines for the
#                    view
#   presence locks   also of runners that start during the look
#   mtime            shows that ends of runs can still be on the way to the log
#   the log          is opened last.  So it has the ends of all runs with finished lines, except ends that are
#                    on the way.  A runner appends all ends before it releases the presence lock.
#
# --status, --failed, --show and the page are made of the rows.  --stats and --timeline need no lines, and
# read only the log.

LEAVES = {**STATE_NAMES, ".": "new", "x": "held"}       # by the state of a run, the name of its line's state


@dataclass(frozen=True)
class Row:
    """A line and one of its runs, as of one look."""
    line: Line                  # if the line was removed: as of the run
    line_state: str = ""        # a word; an orphan is in error; "": the line was removed
    run: RunRecord | None = None        # None: no known run
    is_last: bool = False       # the line has no later run
    age: float | None = None    # seconds since the start of a running job; None: not running, or unknown
    # fields of a run that --json copies
    AS_TOLD = "cause", "cpu", "memory", "memory_below", "promised", "bytes", "files", "incomplete"

    @property
    def state_since(self) -> str:
        """The state of the line if it differs from the result of the run; otherwise ''."""
        return self.line_state if self.run and self.line_state != LEAVES[self.run.state] else ""

    def job(self) -> dict[str, Any]:
        """Return the --json fields for a job, host and slot; null: unknown."""
        run = self.run
        seconds = run.seconds if run and run.ended is not None else self.age
        return {
            "line": self.line.number,
            "command": to_text(self.line.command),
            "host": run and run.host,
            "slot": run and run.slot,
            "pid": (run and run.pid) or None,
            "start": run and round(run.began, 3),
            "seconds": seconds if seconds is None else round(seconds, 3),
        }

    def json(self) -> dict[str, Any]:
        """Return all --json fields; null: unknown."""
        run = self.run
        return {
            **self.job(),
            "state": self.line_state,
            "outcome": run and STATE_NAMES[run.state],
            "end": run and run.ended,
            "exit": run.exit if run and run.exit >= 0 else None,
            "signal": (run and run.signal) or None,
            **{name: run and getattr(run, name) for name in self.AS_TOLD},
        }


class Look:
    """A job file, the locks and a log of the runs, as of one moment.  The job file or the log can be absent.
    """
    TAIL = 1 << 22              # bytes at the end of a log: mostly enough for the starts of all running jobs

    def __init__(
        self,
        watcher: Watcher | None,
        open_log: Callable[[], Log],
        find: Callable[[Watcher, Snapshot], Sequence[Line]] = lambda watcher, snapshot: (),
    ) -> None:
        """find: reads the lines for the view, in the order of the file.  Raises UsageError."""
        self.watcher = watcher
        self.snapshot = Snapshot(Counter())
        self.cancelled: list[Line] = []
        self.lines: Sequence[Line] = ()         # the lines for the view
        self.at_work = AtWork(None)
        self._ends_may_come = False
        if watcher:
            badges_before = watcher.presence_locks() or set()
            self.snapshot = watcher.sure_look()
            self.cancelled = watcher.cancelled(self.snapshot)
            self.lines = find(watcher, self.snapshot)
            badges_after = watcher.presence_locks()
            self.at_work = AtWork(None if badges_after is None else badges_after | badges_before)
            self._ends_may_come = watcher.ends_may_come()
        self.living = [*self.snapshot.running, *self.cancelled]
        self._living = {line.number for line in self.living}
        self._orphans = {line.number for line in self.snapshot.orphans}
        self.log = open_log()

    def __enter__(self) -> Look:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.file.close()

    @functools.cached_property
    def recent(self) -> list[RunRecord]:
        """The runs in the last part of the log, which is read on first use."""
        return list(self.log.runs(begin=max(0, self.log.size - self.TAIL)))

    @functools.cached_property
    def clocks(self) -> Clocks:
        """The clocks of the hosts, according to the last part of the log."""
        return Clocks(self.log.changed, self.recent)

    def present_rows(self) -> list[Row]:
        """Return the row of the last run of each line that is `r`, or cancelled and still running.

        Read the last part of the log, and the complete log only if a present run is missing there.  Raises
        UsageError.
        """
        lines = [*self.living, *self.snapshot.orphans]
        commands = {line.command for line in lines}
        known = self.line_runs(commands, self.recent if lines else ())
        if self.log.size and not all(map(known.is_certain, lines)):
            known = self.line_runs(commands, self.log.runs(of_commands(commands)))
        return [self.last_row(line, known) for line in lines]

    def last_rows(self) -> Iterator[Row]:
        """Yield the row of the last run of each line for the view, and of each other line if the output of
        the last run is incomplete, in the order of the file.

        Raises UsageError.
        """
        commands = {line.command for line in self.lines}
        while True:
            found = self.log.runs(or_incomplete(of_commands(commands)))
            last = keep_last_runs({}, found)
            others = {run.command for run in last.values() if run.incomplete} - commands
            if not others:
                break
            commands |= others
        known = self.line_runs(commands, last.values())
        requested = {line.number for line in self.lines}
        shown = [number for number in sorted(known.lines)
                 if number in requested or (number in known.last and known.last[number].incomplete)]
        found.name_files(known.last[number] for number in shown if number in known.last)
        for number in shown:
            yield self.last_row(known.lines[number], known)

    def rows(self) -> Iterator[Row]:
        """Yield the rows of all runs of the lines for the view, in the order of the file and of the log.

        A line without a run also has a row.  Raises UsageError.
        """
        commands = {line.command for line in self.lines}
        journal_pass = self.log.runs(of_commands(commands))
        runs = [run for run in journal_pass if run.command in commands]
        line_runs = self.line_runs(commands, runs)
        runs_by_line = defaultdict(list)
        for run in sorted(runs, key=operator.attrgetter("position")):
            if line := line_runs.line_of(run):
                runs_by_line[line.number].append(run)
        journal_pass.name_files(run for line in self.lines for run in runs_by_line[line.number])
        for line in self.lines:
            for run in runs_by_line[line.number]:
                yield self.row(run, line_runs)
            if not runs_by_line[line.number]:
                yield self.last_row(line, line_runs)

    def line_runs(self, commands: Collection[bytes], runs: Iterable[RunRecord]) -> LineRuns:
        """Return all lines with these commands, and the runs that belong to them.  Raises UsageError."""
        lines = self.watcher.lines_with(commands) if self.watcher and commands else []
        # as of the look: these replace others
        seen = [*self.living, *self.snapshot.orphans, *self.lines]
        lines += [line for line in seen if line.command in commands]
        return LineRuns(lines, self._living, runs)

    def last_row(self, line: Line, known: LineRuns) -> Row:
        """Return the row of a line's last run, or of the line alone if it has no known run."""
        run = known.last.get(line.number)
        return self.row(run, known) if run else Row(line, self.state_of(line), is_last=True)

    def row(self, run: RunRecord, known: LineRuns) -> Row:
        """Return the row of a run.  known: contains the line, if it still exists."""
        line = known.line_of(run)
        self.judge(run, known)
        if not line:
            return Row(Line(run.line, 0, 0, b"", b" " + run.command), run=run)
        is_running = run.state == "r" and not run.cause
        age = self.clocks.age(run.host, run.began) if is_running else None
        return Row(line, self.state_of(line), run, known.is_last(run, line), age)

    def state_of(self, line: Line) -> str:
        """Return the state of a line as a word; an orphan is in error."""
        return WORDS[ERROR] if line.number in self._orphans else WORDS.get(line.state, "held")

    def judge(self, run: RunRecord, known: LineRuns) -> None:
        """Set state and cause of a run without an end, by the line.  The first condition that holds counts:

            the job of the line is running, and no later run is known     running
            the line is an orphan, and no later run is known              lost
            the end can be on the way to the log                          ending
            the line is in error, and no later run is known               lost
            otherwise                                                     unknown

        The end can be on the way if the job file has changed a moment ago, and the runner that started the
        run is alive.
        """
        if run.ended is not None:
            return
        line = known.line_of(run)
        state = line.state if line and known.is_last(run, line) else b""
        run.state, run.cause = "?", "unknown"
        if line and state and line.number in self._living:
            run.state, run.cause = "r", ""
        elif state == RUNNING:
            run.state, run.cause = "e", "lost"
        elif line and self._ends_may_come and not self.at_work.is_gone(run):
            run.state, run.cause = "r", "ending"
        elif state == ERROR:
            run.state, run.cause = "e", "lost"


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Turn off the collector of cyclic garbage.

    No view makes cycles, but each line and each run is an object. The collector would visit all of them again
    and again, for a quarter of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def open_log(options: argparse.Namespace, say: Callable[[str], None]) -> Log:
    """Return the journal or the job log that the options name; otherwise an empty log.  Raises UsageError."""
    if options.joblog is not None:
        return JobLogReader(options.joblog, say)
    return NoLog() if options.outdir is None else JournalReader(options.outdir, say)


# ======== Running jobs ======================================================================================
#
# The job file has the running lines; the journal has hosts and start times.  status_of() makes the object
# that --json prints, and status_lines() the text from it.

NARROW = 60                     # columns: a narrower table has neither slots nor start times


def jobs_per_hour(runs: Iterable[RunRecord], running: Mapping[int, Row]) -> float | None:
    """Return the present rate of finished jobs; None: too few to measure.

    runs: in the order of the log. Of a job that ran several times the last run counts.  running: by number
    the lines that are not finished, although earlier tries are.
    """
    ends: dict[tuple[int, bytes], float] = {}
    for run in runs:
        ends.pop((run.line, run.command), None)
        if run.ended is not None and run.state != ".":      # put back: the job is as new as before
            ends[run.line, run.command] = run.ended
    for number, row in running.items():
        ends.pop((number, row.line.command), None)
    if not ends:
        return None
    rate = Rate()
    for count, when in enumerate(sorted(ends.values())):
        rate.add_count(when, count)
    return rate.per_second(time.time()) * 3600 or None


def status_lines(status: dict[str, Any], columns: float) -> Iterator[str]:
    """Yield a status as text, line by line.  columns: the maximum width of the table."""
    counted = ", ".join(f"{status[name]} {name}" for name in Counts._fields)
    yield f"{plural(status['total'], 'job')}: {counted}"
    if per_hour := status["per_hour"]:
        left = status["seconds_left"]
        yield f"{per_hour:.{0 if per_hour >= 10 else 1}f} jobs/h lately" + (
            f", {human_time(left)} left" if left is not None else "")
    if status["waits"]:
        yield printable(status["waits"])
    who = status["runners"], status["servers"]
    if None in who:
        yield "cannot count runners and servers: no permission to read their locks"
    elif any(who):
        parts = (plural(count, word) for count, word in zip(who, ("runner", "server")) if count)
        yield f"{' and '.join(parts)} at work"
    is_narrow = columns < NARROW
    rows = [["line", "host", "slot", "since", "for", "command"]]
    for kind in "jobs", "cancelled", "orphans":
        rows += [status_row(job, mark_of(kind, job["without_runner"], is_narrow)) for job in status[kind]]
    if all(row[1] == "-" for row in rows[1:]):
        rows = [[row[0], row[-1]] for row in rows]
    elif is_narrow:
        rows = [row[:2] + row[4:] for row in rows]
    if len(rows) > 1:
        yield from table(rows, columns, right=[0, len(rows[0]) - 2])


def status_row(job: dict[str, Any], mark: str) -> list[str]:
    """Return the cells for a running job.  mark: a prefix for the command."""
    where = [job["host"] or "-", job["slot"] or "-", "-" if job["start"] is None else clock(job["start"])]
    age = "-" if job["seconds"] is None else human_time(job["seconds"])
    return [str(job["line"]), *where, age, mark + job["command"]]


def mark_of(kind: str, is_unsupervised: bool, is_narrow: bool) -> str:
    """Return the prefix for the command of a job.  kind: the list of the status that has the job."""
    if kind == "orphans":
        return "(orphan) "
    if kind == "cancelled":
        words = "cancelled" if is_narrow else "cancelled, still running"
        return f"({words}{' without a runner' if is_unsupervised and not is_narrow else ''}) "
    return ("(no runner) " if is_narrow else "(still running without a runner) ") if is_unsupervised else ""


def clock(when: float) -> str:
    """Return '14:03:22' today, otherwise 'Nov 20 14:03'."""
    then, today = time.localtime(when), time.localtime()
    return time.strftime("%H:%M:%S" if then[:3] == today[:3] else "%b %d %H:%M", then)


def width() -> float:
    """Return the maximum number of columns of a line on stdout."""
    return columns_of(1) - 1 if os.isatty(1) else math.inf


def fitted(text: str, columns: float) -> str:
    """Return a text without control characters, cut to this width."""
    text = printable(text)
    return text if len(text) <= columns else f"{text[:max(int(columns) - 3, 0)]}..."


def table(rows: Sequence[Sequence[str]], columns: float, right: Collection[int]) -> Iterator[str]:
    """Yield rows in aligned columns; the last column has the remaining width.  right: indexes of
    right-aligned columns.

    Nothing is cut if `columns` is infinite, as for a pipe or a file.
    """
    last, widest = len(rows[0]) - 1, 18 if columns < math.inf else math.inf
    widths = [max(len(fitted(row[index], widest)) for row in rows) for index in range(last)]
    widths.append(max(len(row[last]) for row in rows) if last in right else 0)
    for row in rows:
        cells = [fitted(cell, size or math.inf) for cell, size in zip(row, widths)]
        yield fitted("  ".join(cell.rjust(size) if index in right else cell.ljust(size)
                               for index, (cell, size) in enumerate(zip(cells, widths))), columns)


def say(text: str) -> None:
    """Print a message on stderr."""
    warn(f"{PROG}: {text}")


def check_journal(log: Log, path: str) -> None:
    """Report it if no line of this job file belongs to the last runs of a log.  Raises UsageError."""
    # the last few are enough
    runs = log.runs(begin=max(0, log.size - BLOCK))
    commands = {run.command for run in deque(runs, 12)}
    with job_file(path, find_mount(path).network) as file:
        if commands and not next(lines_of(file, first_line(file), commands), None):
            say(f"{log.path}: no line of {path} belongs to the last runs (a journal of another job file?)")


def status_of(watcher: Watcher, options: argparse.Namespace) -> dict[str, Any]:
    """Return the present status, as --json prints it.  Raises UsageError."""
    with Look(watcher, functools.partial(open_log, options, say)) as look:
        check_journal(look.log, watcher.path)
        now = count_states(look.snapshot)
        rows = {row.line.number: row for row in look.present_rows()}
        # without running jobs, the rate is not the present one
        per_hour = jobs_per_hour(look.recent, rows) if now.running and look.clocks.are_right else None

    def job(line: Line) -> dict[str, Any]:
        row = rows[line.number]
        run = row.run
        if not run or run.ended is None:
            return {**row.job(), "without_runner": look.at_work.is_gone(run)}
        found = {**Row(line).job(), "without_runner": look.at_work.is_nobody}
        # Between two tries the runner keeps the slot; or the log does not have the present run yet
        if run.state in "!e" and run.runner is not None and not look.at_work.is_gone(run):
            found.update(host=run.host, slot=run.slot)
        return found

    jobs = list(map(job, look.snapshot.running))
    left = (now.new + now.running) * 3600 / per_hour if per_hour and not look.at_work.is_nobody else None
    return {
        **now._asdict(),
        "total": now.all + now.held,
        "jobs": jobs,
        "cancelled": list(map(job, look.cancelled)),
        "orphans": list(map(job, look.snapshot.orphans)),
        **look.at_work.counted(),
        "per_hour": per_hour,
        "seconds_left": left,
        "waits": awaited(watcher, now, look.at_work,
                         {job["host"] for job in jobs if job["host"] and not job["without_runner"]}),
    }


def awaited(watcher: Watcher, now: Counts, at_work: AtWork, hosts: Collection[str]) -> str:
    """Return why new jobs wait, or that no runner is alive; '' if a runner can take one.

    hosts: some of the hosts at work.  Raises UsageError.
    """
    if not now.new:
        return ""
    if block_reason := watcher.block_reason(hosts):
        return block_reason.text
    return f"{now.new} new, but no runner (start runmaker4.py)" if at_work.is_nobody else ""


# ======== Runs of lines =====================================================================================
#
# --failed selects the lines that are failed or in error, and the last run of each; --show selects the named
# lines, and all runs of them.  The journal has the results of these runs, the output files the last lines.


def how_ended(run: RunRecord) -> str:
    """Return 'exit 3', 'signal 9 (SIGKILL)', 'timeout', 'took 5.1G of 4G', 'lost', 'running', ..."""
    if run.cause == "memory" and run.promised:
        return f"took {run.peak or 'more'}"
    if run.cause and run.cause != "oom":
        return run.cause
    if run.seconds is None:
        return "running"
    how = "could not be started"
    if run.exit >= 0:
        how = f"exit {run.exit}{signal_name(run.exit - 128)}"       # of a shell whose last command was killed
    if run.signal:
        how = f"signal {run.signal}{signal_name(run.signal)}"
    return f"out of memory, {how}" if run.cause else how


@functools.lru_cache
def signal_name(number: int) -> str:
    """Return ' (SIGSEGV)'; '' if no signal has this number."""
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:
        return ""


def took(seconds: float) -> str:
    """Return '49 ms', '5.0s', '3h 12m'."""
    if seconds >= 0.9995:
        return human_time(seconds)
    return f"{seconds * 1000:.{0 if seconds >= 0.00995 else 1}f} ms"


def human_size(size: float) -> str:
    """Return '812 B', '1.2 kB', '105 MB'."""
    units = iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 999.5 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.{1 if size < 9.95 and unit != 'B' else 0}f} {unit}"


def peak_memory(
    known: int | None, below: int | None, size_text: Callable[[float], str] = human_size
) -> str:
    """Return '12 MB', or '<30 MB' if only a bound is known; '' if unknown."""
    if known is not None:
        return size_text(known)
    return f"<{size_text(below)}" if below is not None else ""


def bad_lines(watcher: Watcher, snapshot: Snapshot) -> list[Line]:
    """Return the lines that are failed or in error, in the order of the file.  Raises UsageError."""
    return sorted([*watcher.lines(FAILED + ERROR), *snapshot.orphans], key=operator.attrgetter("number"))


def find_lines(selection: str, watcher: Watcher, snapshot: Snapshot) -> list[Line]:
    """Return the selected job lines: by numbers, a command, or a shell pattern.  Raises UsageError."""
    command = os.fsencode(selection)
    try:
        ranges = line_ranges(selection)
    except argparse.ArgumentTypeError:
        lines = (watcher.lines_with({command})
                 or watcher.lines(None, lambda line: fnmatch.fnmatchcase(line.command, command)))
        missing = [] if lines else [selection]
    else:
        lines = watcher.lines_at(ranges)
        missing = [word for word, numbers in zip(selection.split(","), ranges)
                   if not any(line.number in numbers for line in lines)]
    if missing:
        raise UsageError(
            f"{watcher.path}: no job matches '{printable(missing[0])}' (expected line numbers such "
            "as 1,2,5-9, a complete command, or a shell pattern for commands)"
        )
    return lines


def describe(row: Row, output: LastOutput | None, columns: float) -> Iterator[str]:
    """Yield lines of text: result, host and time of a run, and the last lines of output.

    output: None without a log.
    """
    yield fitted(f"line {row.line.number}: {describe_row(row, output is not None)}", columns)
    yield fitted(f"    {to_text(row.line.command)}", columns)
    if row.run and output:
        details = printable(details_of(row.run, output.directory))
        width = max(int(columns), 20) if columns < math.inf else len(details) + 4
        yield filled(details, width, "    ")
        for text in output.of(row.run):
            yield fitted(f"  | {text}", min(columns, LastOutput.WIDTH))


def describe_row(row: Row, has_log: bool) -> str:
    """Return 'exit 3 on node1, 14:03:22, after 49 ms', 'failed; last run: exit 0 on node1, ...', ..."""
    if not row.run:
        return f"{row.line_state}; no run in the journal" if has_log else row.line_state
    text = describe_end(row.run)
    if row.age is not None:
        text += f", {human_time(row.age)} ago"
    since = row.state_since if row.is_last else ""
    return f"{since}; last run: {text}" if since else text


def describe_end(run: RunRecord) -> str:
    """Return 'exit 3 on node1, 14:03:22, after 49 ms, 12 MB' or 'running on node1, began 14:03:22'."""
    how = how_ended(run)
    if run.state == ".":
        how = f"put back, {how}"
    parts = [f"{how} on {run.host}"]
    if run.ended is not None and run.seconds is not None:
        parts += [clock(run.ended), f"after {took(run.seconds)}"]
    else:
        parts.append(f"began {clock(run.began)}")
    if run.peak and run.peak not in how:
        parts.append(run.peak)
    return ", ".join(parts)


def details_of(run: RunRecord, directory: str) -> str:
    """Return 'slot 2, process 4712, CPU 1.9s, printed 95 B: out/17.out, out/17.err'."""
    parts = [f"slot {run.slot}"]
    if run.pid:
        parts.append(f"process {run.pid}")
    if run.cpu is not None:
        parts.append(f"CPU {took(run.cpu)}")
    printed = f"printed {human_size(run.bytes)}" if run.bytes else "printed nothing"
    if run.incomplete:
        printed += " (some could not be written)"
    if run.files:
        printed += ": " + ", ".join(os.path.join(directory, name) for name in run.files)
    return ", ".join([*parts, printed])


@without_collector()
def print_runs(watcher: Watcher, options: argparse.Namespace) -> Counts:
    """Print the runs of the selected lines; return the counts.

    Raises UsageError, BrokenPipeError.
    """
    wanted = options.show
    find = bad_lines if wanted is None else functools.partial(find_lines, wanted)
    output = LastOutput(options.outdir, 3 if wanted is None else 10) if options.outdir is not None else None
    columns = width()
    with Look(watcher, functools.partial(open_log, options, say), find) as look:
        check_journal(look.log, watcher.path)
        rows = look.last_rows() if wanted is None else look.rows()
        if options.json:
            put_texts([json.dumps({"runs": [row.json() for row in rows]})])
        else:
            for row in rows:
                put_texts(describe(row, output, columns))
    if look.lines and not output:
        say(f"{watcher.path}: the results need a journal (run with runmaker4.py --outdir DIR, then "
            f"{PROG} --failed --outdir DIR {shlex.quote(as_argument(watcher.path))})")
    return count_states(look.snapshot)


def put_texts(texts: Iterable[str]) -> None:
    print_bytes(to_bytes("".join(f"{text}\n" for text in texts)))


# ======== Statistics ========================================================================================
#
# The ends in the journal are counted by host and by command, in one pass.  Two numbers of each run are kept,
# time and memory, because a quantile needs all of them.


def quantiles(values: Iterable[N], percents: Sequence[int] = (50, 90, 100)) -> list[N]:
    """Return the median, the 90th percentile and the maximum, or other percentiles; [] for no values."""
    in_order = sorted(values)
    return [in_order[math.ceil(len(in_order) * percent / 100) - 1] for percent in percents if in_order]


# A number in a command or in output
NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def largest(*sizes: int | None) -> int | None:
    """Return the largest known size; None: all are unknown."""
    return max((size for size in sizes if size is not None), default=None)


class RunStats:
    """Statistics of some runs: those of a host, of similar commands, or all."""

    def __init__(self) -> None:
        self.seconds = array("d")
        # CPU seconds of the runs with a known CPU time, and elapsed seconds of the same runs
        self.cpu = self.cpu_seconds = 0.0
        self.memory: int | None = None
        self.memory_below: int | None = None    # the largest upper bound of the peaks that are unknown

    def add(self, run: RunRecord) -> None:
        """Count a run, if it is finished."""
        if run.seconds is None:
            return
        self.seconds.append(run.seconds)
        if run.cpu is not None:
            self.cpu += run.cpu
            self.cpu_seconds += run.seconds
        if run.memory is not None and (self.memory is None or run.memory > self.memory):
            self.memory = run.memory
        if run.memory_below is not None:
            self.memory_below = max(self.memory_below or 0, run.memory_below)

    def include(self, other: RunStats) -> None:
        """Add the runs of another object."""
        self.seconds += other.seconds
        self.cpu += other.cpu
        self.cpu_seconds += other.cpu_seconds
        self.memory = largest(self.memory, other.memory)
        self.memory_below = largest(self.memory_below, other.memory_below)

    def json(self) -> dict[str, Any]:
        """Return the --json fields; null: unknown."""
        median, p90, longest = quantiles(self.seconds)
        return {
            "runs": len(self.seconds),
            "median": median,
            "p90": p90,
            "longest": longest,
            "cpu_use": self.cpu / self.cpu_seconds if self.cpu_seconds else None,
            "memory": self.memory,
            "memory_below": self.memory_below,
        }


class Peaks:
    """Peak memory of the runs of similar commands."""

    def __init__(self) -> None:
        self.too_little = 0             # runs that were killed for lack of memory
        self._sizes = array("q")        # of the others, in bytes; or an upper bound if a peak is unknown
        # the jobs, by line and command, with a last run that was killed so: their peak is unknown
        self._unknown: set[tuple[int, bytes]] = set()

    def add(self, run: RunRecord) -> None:
        """Count a run that is done or failed; others were stopped, perhaps before the peak."""
        if run.lacked_memory:
            self.too_little += 1
            self._unknown.add((run.line, run.command))
        elif run.state in "d!":
            if self._unknown:           # an earlier try with less memory can have been killed
                self._unknown.discard((run.line, run.command))
            size = run.memory if run.memory is not None else run.memory_below
            if size is not None:
                self._sizes.append(size)

    @property
    def largest(self) -> int:
        """The largest peak, in bytes; -1: unknown."""
        return max(self._sizes, default=-1)

    def enough(self) -> int | None:
        """Return the `memory=`, in bytes, that is enough for 99 of 100 runs; None: unknown.

        Killed jobs count as larger than all others.
        """
        place = math.ceil((len(self._sizes) + len(self._unknown)) * 99 / 100)
        return round_size(sorted(self._sizes)[place - 1]) if 0 < place <= len(self._sizes) else None


def round_size(size: int) -> int:
    """Round up to a size of two digits, as `memory=` takes it, in bytes: 3.5G, 160M."""
    unit = next((unit for unit in "KMG" if size < 1000 * SIZE_UNITS[unit]), "T")
    amount = max(size, 1) / SIZE_UNITS[unit]
    digits = max(1 - math.floor(math.log10(amount)), -2) if amount >= 1 else 1
    return memory_size(f"{math.ceil(amount * 10 ** digits) / 10 ** digits:.12g}{unit}")


class CommandStats:
    """Statistics of similar commands: those that begin with the same word, apart from numbers in it."""

    def __init__(self, first: bytes) -> None:
        """first: the first word, with … for each number."""
        self._first = first
        self._words: list[bytes] | None = None      # the common first words of all commands
        self._differ = False
        self.stats = RunStats()
        self.peaks = Peaks()

    def add(self, run: RunRecord, words: list[bytes]) -> None:
        """Count a finished run.  words: those of its command."""
        if self._words is None:
            self._words = words
        elif words != self._words:
            self._differ = True
            if words[:len(self._words)] != self._words:
                same = [*map(operator.eq, self._words, words), False]
                self._words = self._words[:same.index(False)]
        self.stats.add(run)
        self.peaks.add(run)

    @property
    def name(self) -> str:
        """The words up to the first difference: 'simulate --seed …'."""
        words = b" ".join(self._words or [self._first])
        return printable(to_text(words + b" " + Commands.MARK if self._differ else words))


class Commands:
    """Runs grouped by command: those that begin with the same word, apart from numbers in it, are similar."""
    MAX_GROUPS = 1000           # groups; all other commands make one more
    SHOWN_GROUPS = 20
    NUMBER = re.compile(NUMBER.pattern.encode())
    MARK = "…".encode()         # replaces the difference

    def __init__(self) -> None:
        self._groups: dict[bytes, CommandStats] = {}

    def add(self, run: RunRecord) -> None:
        """Count a finished run."""
        words = run.command.split()
        first = self.NUMBER.sub(self.MARK, words[0]) if words else b""
        if first not in self._groups and len(self._groups) >= self.MAX_GROUPS:
            first = self.MARK
        if first not in self._groups:
            self._groups[first] = CommandStats(first)
        self._groups[first].add(run, words)

    def json(self) -> list[dict[str, Any]]:
        """Return the --json fields of all groups."""
        return [{"command": alike.name, **alike.stats.json(), "too_little": alike.peaks.too_little,
                 "enough": alike.peaks.enough()} for alike in self.in_order()]

    def in_order(self) -> list[CommandStats]:
        """Return the groups, the one with the largest peak memory first."""
        return sorted(self._groups.values(), key=lambda alike: -alike.peaks.largest)


def print_stats(outdir: str, path: str | None, as_json: bool) -> None:
    """Print statistics of the runs, per host, in all and per command.  Raises UsageError, BrokenPipeError."""
    stats = stats_of(outdir, path)
    put_texts([json.dumps(stats)] if as_json else stats_lines(stats, width()))


def stats_of(outdir: str, path: str | None) -> dict[str, Any]:
    """Return the statistics as --json prints them.  Raises UsageError."""
    journal = JournalReader(outdir, say)
    hosts: defaultdict[str, RunStats] = defaultdict(RunStats)
    total = RunStats()
    commands = Commands()
    with journal.file:
        if path is not None:
            check_journal(journal, path)
        for run in journal.runs():
            if run.ended is not None:
                hosts[run.host].add(run)
                commands.add(run)
    if not hosts:
        raise UsageError(f"{journal.path}: no finished runs (nothing to count)")
    for host in hosts.values():
        total.include(host)
    return {
        "hosts": [{"host": name, **hosts[name].json()} for name in sorted(hosts)],
        "all": total.json(),
        "commands": commands.json(),
    }


def stats_lines(stats: dict[str, Any], columns: float) -> Iterator[str]:
    """Yield statistics as text, line by line."""
    head = ["runs", "median", "90%", "longest", "CPU", "memory"]
    rows = [["host", *head], *(stats_row(host["host"], host) for host in stats["hosts"])]
    yield from table([*rows, stats_row("in all", stats["all"])], columns, right=range(1, 7))
    yield ""
    commands = stats["commands"]
    rows = [["command", *head, "too little", "memory="]]
    for alike in commands[:Commands.SHOWN_GROUPS]:
        enough = memory_text(alike["enough"]) if alike["enough"] is not None else "-"
        rows.append([*stats_row(alike["command"], alike), str(alike["too_little"]), enough])
    if not any(alike["too_little"] for alike in commands):
        rows = [[*row[:-2], row[-1]] for row in rows]
    yield from table(rows, columns, right=range(1, 9))
    if len(commands) > Commands.SHOWN_GROUPS:
        yield f"and {plural(len(commands) - Commands.SHOWN_GROUPS, 'command')} more, which took less memory"


def stats_row(name: str, stats: dict[str, Any]) -> list[str]:
    """Return the cells for some runs."""
    times = [took(stats[key]) for key in ("median", "p90", "longest")]
    cpu = "-" if stats["cpu_use"] is None else f"{100 * stats['cpu_use']:.0f}%"
    return [name, str(stats["runs"]), *times, cpu, peak_memory(stats["memory"], stats["memory_below"]) or "-"]


# ======== The job log =======================================================================================
#
# `runmaker4.py --joblog LOG`, like GNU parallel, writes a line for each finished run: nine fields with tabs
# between them.  It is read like a journal.  It has neither slots nor memory nor files.  The state of a run
# follows from exit status and signal.


class JobLogPass(LogPass):
    """One pass through a job log.  It yields all runs, and all are finished."""
    LINE = re.compile(rb"(\d{1,15})\t([^\t]+)\t *(\d{1,10}(?:\.\d{1,9})?)\t *(\d{1,10}(?:\.\d{1,9})?)"
                      rb"\t[-\d.]+\t[-\d.]+\t(-?\d{1,9})\t(\d{1,9})\t(.*)", re.DOTALL)
    LATEST = 9 * 10 ** 9        # seconds since 1970: viewers count nanoseconds in 64 bits

    def _take(self, position: int, line: bytes) -> RunRecord | None:
        """Return the run of a line.  An exit status of -1 is a timeout, as in GNU parallel."""
        if line == JobLog.HEADER[:-1]:
            return None
        match = self.LINE.fullmatch(line)
        if not match:
            raise ValueError
        number, host, began, took, exit_status, signal_number, command = match.groups()
        start = float(began)
        seconds = float(took)
        code = int(exit_status)
        ended_by = int(signal_number)
        if start + seconds > self.LATEST:
            raise ValueError
        return RunRecord(
            "",
            int(number),
            command,
            to_text(host),
            "",
            0,
            start,
            start + seconds,
            self._state(code, ended_by),
            -1 if ended_by else code,
            ended_by,
            "timeout" if code == -1 else "",
            seconds,
            None,
            None,
            0,
            [],
            False,
            None,
            None,
            promised=None,
            position=position,
        )

    @staticmethod
    def _state(exit_status: int, signal_number: int) -> str:
        """Return the state of the job's line.

        A job that was killed by a signal that stops runners was stopped as well: the line is in error.
        """
        if signal_number in STOP_SIGNALS and exit_status != -1:
            return "e"
        return "!" if exit_status or signal_number else "d"


class JobLogReader(Log):
    """A job log, of runmaker4.py or of GNU parallel."""
    KIND = "job log"
    PASS = JobLogPass
    MAX_LINE_BYTES = 1 << 20    # commands are shorter


# ======== The timeline ======================================================================================
#
# The timeline is a file of trace events (Trace Event Format, JSON object form), for Perfetto and
# chrome://tracing.  The log is read twice: first for the times, from which tracks are made (Spans), then for
# the events.  A track has runs that follow each other.  A slot of the journal is one track, or several if two
# runners of a host have slots of this name.  A job log has no slots, because GNU parallel must also read
# it.  So each run is on the first track of the host that is free.  Times are in microseconds.

# microseconds of overlap between neighbours that count as rounding: job logs have milliseconds
ROUNDING = 1500


class Spans:
    """Start times and durations of runs, in microseconds.

    Each run takes at least 1 µs: viewers would nest the next run in a run that takes no time.
    """

    def __init__(self) -> None:
        self.began = array("q")
        self.took = array("q")
        # numbers of runs, by host and slot; slot "": unknown
        self.runs_of: dict[tuple[str, str], array[int]] = {}

    def add(self, run: RunRecord, seconds: float, on_track: bool = True) -> None:
        """Add the next run.  on_track: put it on a track of the slot; otherwise only record the slot."""
        runs = self.runs_of.setdefault((run.host, run.slot), array("q"))
        if on_track:
            runs.append(len(self.began))
        self.began.append(round(run.began * 1e6))
        self.took.append(round(seconds * 1e6) or 1)

    def slots(self) -> Iterator[tuple[str, str, array[int]]]:
        """Yield host, name and runs of each track, in order; a slot has at least one track, which can be
        empty.
        """
        for host, slot in sorted(self.runs_of, key=lambda names: [natural(name) for name in names]):
            for number, runs in enumerate(self._tracks(self.runs_of[host, slot]) or [array("q")], 1):
                yield host, f"{slot} ({number})" if slot and number > 1 else slot or str(number), runs

    def _tracks(self, runs: Sequence[int]) -> list[array[int]]:
        """Put each run on the first track that is free when the run begins; return the runs of each track, in
        order.

        runs: numbers, in the order of the log. If two overlap by rounding, the earlier one is shortened, by
        less than half.
        """
        began, took = self.began, self.took
        found: list[array[int]] = []
        free: list[int] = []                        # heap of tracks
        busy: list[tuple[int, int]] = []            # heap: the time when a track becomes free, and the track
        for run in sorted(runs, key=began.__getitem__):     # equal start times: as in the log
            while busy and busy[0][0] <= began[run]:
                heapq.heappush(free, heapq.heappop(busy)[1])
            track = heapq.heappop(free) if free else len(found)
            if track == len(found):
                found.append(array("q"))
            else:
                previous = found[track][-1]
                took[previous] = min(took[previous], began[run] - began[previous])
            found[track].append(run)
            heapq.heappush(busy, (began[run] + took[run] - min(ROUNDING, (took[run] - 1) // 2), track))
        return found


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts node2 before node10."""
    return [(int(part[:18]), "") if part.isdecimal() and part.isascii() else (0, part)
            for part in re.split("([0-9]+)", name)]


class Timeline:
    """The runs of a log as trace events.  Keeps only times and tracks; reads the log again for the events.

    A host is a process of the trace, a slot a thread. Perfetto finds the name of a thread by `tid` alone, so
    each `tid` is unique. The thread whose `tid` is its `pid` is the main one, and is shown first: slot 1.
    """
    # the first bytes of our timelines; `otherData` is free for the program that writes
    HEAD = b'{"otherData":{"made_by":"runwait4.py"},"traceEvents":['
    NAME = 100                  # characters of a command in the name of the event

    def __init__(self, log: Log) -> None:
        """Raises UsageError."""
        self.log = log
        spans = Spans()
        for run in self._ended():
            spans.add(run, run.seconds or 0.0)
        self.slots = list(spans.slots())
        self.took = spans.took

    def _ended(self) -> Iterator[RunRecord]:
        """Yield the finished runs.  Raises UsageError."""
        return (run for run in self.log.runs() if run.ended is not None)

    def write(self, file: BinaryIO) -> None:
        """Write all events as JSON, one per line.  Raises OSError, UsageError."""
        encode = json.JSONEncoder(separators=(",", ":")).encode
        file.write(self.HEAD)
        for separator, event in zip(itertools.chain([b"\n"], itertools.repeat(b",\n")), self._events()):
            file.write(separator + encode(event).encode())
        file.write(b"\n]}\n")

    def _events(self) -> Iterator[dict[str, Any]]:
        tid_of = array("q", self.took)              # by run, in the order of the log
        pid_of = array("q")                         # by slot
        pids: dict[str, int] = {}                   # by host
        for tid, (host, slot, numbers) in enumerate(self.slots, 1):
            if host not in pids:
                pids[host] = tid
                yield from self._names("process", well_formed(host), tid, tid, tid)
            pid = pids[host]
            pid_of.append(pid)
            yield from self._names("thread", f"slot {printable(slot)}", pid, tid, tid - pid + 1)
            for number in numbers:
                tid_of[number] = tid
        for tid, took, run in zip(tid_of, self.took, self._ended()):
            yield self._event(pid_of[tid - 1], tid, took, run)

    @staticmethod
    def _names(kind: str, name: str, pid: int, tid: int, rank: int) -> Iterator[dict[str, Any]]:
        """Yield the metadata events with the name and the rank of a process or a thread."""
        for key, value in ("name", name), ("sort_index", rank):
            yield {
                "ph": "M",
                "name": f"{kind}_{key}",
                "pid": pid,
                "tid": tid,
                "ts": 0,
                "args": {key: value},
            }

    def _event(self, pid: int, tid: int, took: int, run: RunRecord) -> dict[str, Any]:
        """Return a "complete event" of the format; exit statuses are as in GNU parallel."""
        command, state = readable(run.command), STATE_NAMES[run.state]
        code = -1 if run.cause == "timeout" else max(run.exit, 0) if run.signal else run.exit
        args = {
            "command": command,
            "line": run.line,
            "state": state,
            "exit_status": code,
            "signal": run.signal,
        }
        return {"ph": "X", "name": cut(command, self.NAME), "cat": state, "pid": pid, "tid": tid,
                "ts": round(run.began * 1e6), "dur": took, "args": args}


def readable(data: bytes) -> str:
    """Return bytes as text that every JSON reader takes: invalid UTF-8 is replaced.

    GNU parallel logs the newlines in a command as NULs.
    """
    return data.decode(errors="replace").replace("\0", "\n")


def well_formed(text: str) -> str:
    """Return text that any reader takes, in any locale: bytes that were not UTF-8 are replaced."""
    return readable(to_bytes(text))


def refuse_foreign(path: str, kind: str, head: bytes) -> None:
    """Refuse to replace a file that is not ours: ours begin with `head`; empty files have nothing to lose.

    Raises UsageError.
    """
    if re.match("/dev/(fd|std)|/proc/", path):          # the file of a `>>file` would be replaced
        raise UsageError(f"{path}: the name of an open file (give another name)")
    refuse_special(path, "give another name")
    try:
        with open(path, "rb") as file:
            found = file.read(len(head))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path}: {error_text(error)} (give another name)") from None
    if found not in (b"", head):
        raise UsageError(f"{path}: not a {kind} of {PROG} (give another name)")


@contextlib.contextmanager
def replacing(path: str, kind: str, head: bytes) -> Iterator[BinaryIO]:
    """Open a temporary file, which replaces `path` at the end of the block; after an error it is removed.

    An existing file must be empty, or begin with `head`.  Raises UsageError.
    """
    target = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(target), f".{PROG}-{secrets.token_hex(8)}")
    try:
        refuse_foreign(path, kind, head)
        old = stat_or_none(path)
        if old is None and os.path.islink(path):
            raise UsageError(f"{path}: broken symbolic link (remove it, or give another name)")
        private = functools.partial(os.open, mode=0o600 if old else 0o666)
        with open(temporary, "xb", opener=private) as file:
            if old:
                give_rights(file.fileno(), old)
            yield file
        os.replace(temporary, target)
    except OSError as error:
        raise UsageError(f"{path}: {error_text(error)} (expected a writable file)") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def draw(log: Log, out_path: str) -> None:
    """Write the timeline of a log.  Raises UsageError."""
    with log.file, replacing(out_path, "timeline", Timeline.HEAD) as file:
        timeline = Timeline(log)
        if not timeline.slots:
            raise UsageError(f"{log.path}: no finished runs (expected a {log.KIND})")
        timeline.write(file)


# ======== The report ========================================================================================
#
# The report is one page: PAGE, at the end of this file, with figures and tables as HTML, and with the data
# for drawing and searching as compressed JSON.  One pass through the log counts all runs (Gathered).
# Complete runs are kept only for the tables, and the last ones for the pictures.  The last lines of output
# are read for a bounded number of failed runs (Outputs, FailuresByWords).
#
# A run with an unknown end is hatched, and drawn up to the last sign of life of the runner in the log.  The
# slot can have run other jobs by then.  So the run is on no track, and the runs of tracks are drawn over it.
#
# No text from jobs becomes markup: tag() and escaped() quote it, and the script uses textContent.

STATES = "".join(STATE_NAMES)   # as the page numbers them
# for browsers without scripts; the script does not reload the page while the user types
REFRESH = '<noscript><meta http-equiv="refresh" content="%d"></noscript>'
# CSS class of the colour, by state of a job
COLOURS = {"done": "s0", "failed": "s1", "error": "s2", "running": "s4", "held": "s3", "new": "line"}
END_UNKNOWN = {"e": "lost", "?": "unknown"}     # names in the legend of runs that are drawn without an end


class Gathered:
    """The results of one pass through a log."""
    DRAWN = 60_000              # finished runs in the pictures, besides all unfinished ones
    SHOWN_RUNS = 200            # of the slowest and of the largest runs
    FAILURES = 2000             # failed runs with their output
    BATCH = 10_000

    def __init__(self, runs: Iterable[RunRecord], watched: Collection[bytes], to_fix: int) -> None:
        """runs: a pass.  watched: commands for which to keep the last runs.  to_fix: the number of failed
        runs that have a table of their own, at most.

        Call take_unended() after the runs without an end were judged.
        """
        self.states: Counter[str] = Counter()
        self.slots: set[tuple[str, str]] = set()
        self.stats = RunStats()
        self.first = math.inf
        self.last = 0.0                             # the time of the last event in the log
        self.last_runs: Last = {}                   # of watched commands
        self.unended: list[RunRecord] = []
        self.slowest: list[RunRecord] = []
        self.largest: list[RunRecord] = []
        self._signs: dict[str, float] = {}          # by runner: the time of the last event
        self._drawn: deque[RunRecord] = deque(maxlen=self.DRAWN)
        self._failed: deque[RunRecord] = deque(maxlen=self.FAILURES + to_fix)
        in_order = iter(runs)
        while batch := list(itertools.islice(in_order, self.BATCH)):
            keep_last_runs(self.last_runs, [run for run in batch if run.command in watched])
            self.unended += [run for run in batch if run.ended is None]
            self._take([run for run in batch if run.ended is not None])

    def take_unended(self, until: float | None) -> None:
        """Count the runs without an end.

        until: where to cut off running jobs, in seconds since 1970; None: at the last event in the log.
        """
        self._take(self.unended)
        self.last = max([until or 0.0, *self._signs.values()])
        if not self.states:
            self.first = self.last = time.time()

    def _take(self, batch: Sequence[RunRecord]) -> None:
        """Count the next runs."""
        for run in batch:
            self.stats.add(run)
            sign = run.ended or run.began
            runner = runner_of(run)
            if sign > self._signs.get(runner, 0.0):
                self._signs[runner] = sign
        self.states.update(map(operator.attrgetter("state"), batch))
        self.slots.update(map(operator.attrgetter("host", "slot"), batch))
        self.first = min([self.first, *map(operator.attrgetter("began"), batch)])
        self._failed += [run for run in batch if run.state in "!e"]
        ended = [run for run in batch if run.ended is not None]
        self._drawn += ended
        self.slowest = self._most(self.slowest, ended, "seconds")
        self.largest = self._most(self.largest, [run for run in ended if run.memory], "memory")

    def _most(self, found: list[RunRecord], more: list[RunRecord], name: str) -> list[RunRecord]:
        """Return SHOWN_RUNS runs with the largest values of a field; of equal ones the latest."""
        if len(found) == self.SHOWN_RUNS:
            least = getattr(found[-1], name)
            more = [run for run in more if getattr(run, name) >= least]
        # The latest come first, so equal ones before them never enter the heap
        return heapq.nlargest(self.SHOWN_RUNS, (found + more)[::-1], operator.attrgetter(name, "position"))

    @property
    def count(self) -> int:
        """The number of runs."""
        return sum(self.states.values())

    @property
    def drawn(self) -> list[RunRecord]:
        """The runs of the pictures."""
        return [*self._drawn, *self.unended]

    @property
    def failed(self) -> list[RunRecord]:
        """The last runs that failed or ended in error, the latest first."""
        return sorted(self._failed, key=lambda run: (run.ended or run.began, run.position), reverse=True)

    def drawn_seconds(self, run: RunRecord) -> float:
        """Return the length of a run in the pictures, in seconds."""
        if run.seconds is not None:
            return run.seconds
        until = self.last if run.state == "r" else self._signs.get(runner_of(run), 0.0)
        return max(0.0, until - run.began)


def runner_of(run: RunRecord) -> str:
    """Return the common prefix of the names of a runner's runs; '' in a job log, which has no names."""
    return run.run.rpartition("-")[0]


def end_unknown(run: RunRecord) -> bool:
    """Return True if a run is over, but the time of the end is unknown."""
    return run.seconds is None and run.state != "r"


class Outputs:
    """The last lines of output, each file read once; and links to the files."""

    def __init__(self, outdir: str | None, page: str) -> None:
        self.output = LastOutput(outdir) if outdir is not None else None
        self.base = way_down(os.path.dirname(os.path.realpath(page)), outdir) if outdir is not None else None
        self.cache: dict[RunRecord, list[str]] = {}

    def of(self, run: RunRecord | None) -> list[str]:
        """Return the last lines that a run printed, or why they cannot be read."""
        if self.output is None or run is None:
            return []
        if run not in self.cache:
            self.cache[run] = self.output.of(run)
        return self.cache[run]

    def names(self, run: RunRecord) -> list[str]:
        """Return the output files of a run that the page can link to: regular files in the directory."""
        return sorted(self.output.sizes(run)) if self.output and self.base is not None else []

    def links(self, run: RunRecord) -> str:
        return " ".join(
            tag("a", escaped(f".{name.rpartition('.')[2]}"), href=f"{self.base}{url_quoted(name)}")
            for name in self.names(run)
        )


def way_down(above: str, directory: str) -> str | None:
    """Return a relative link to a directory, for a page in it or in one above it; otherwise None."""
    way = os.path.relpath(os.path.realpath(directory), above)
    if way.split(os.sep)[0] == os.pardir:
        return None
    return f"./{url_quoted(way)}/" if way != os.curdir else "./"


def url_quoted(name: str) -> str:
    """Return a relative path as a part of a URL."""
    return re.sub("[^A-Za-z0-9_.~/-]",
                  lambda match: "".join(f"%{byte:02X}" for byte in os.fsencode(match[0])), name)


class Pictures:
    """The data for drawing and searching: the last runs, slot by slot, and the number of running jobs over
    time.
    """
    BINS = 1000
    MAX_COMMAND_CHARACTERS = 1000
    MAX_COMMANDS_CHARACTERS = 6_000_000     # of all commands

    def __init__(self, report: Report) -> None:
        self.runs = report.found.drawn
        self.numbers = report.numbers
        self.spans = Spans()
        for run in self.runs:
            self.spans.add(run, report.found.drawn_seconds(run), on_track=not end_unknown(run))
        # characters of a command that can be searched
        self.longest = self.MAX_COMMAND_CHARACTERS
        if sum(min(len(run.command), self.longest) for run in self.runs) > self.MAX_COMMANDS_CHARACTERS:
            self.longest = self.MAX_COMMANDS_CHARACTERS // len(self.runs)
        self.slots = list(self.spans.slots())
        # runs on no track
        self.loose = [number for number, run in enumerate(self.runs) if end_unknown(run)]
        self.loose.sort(key=self.spans.began.__getitem__)
        self.first = min(self.spans.began, default=round(report.found.last * 1e6))
        self.span = max(1, max(map(operator.add, self.spans.began, self.spans.took), default=0) - self.first)

    def page_data(self, failures: FailuresByWords, outputs: Outputs) -> dict[str, Any]:
        """Return the data of the page.  Times are in ticks of `tick` microseconds; a start is relative to the
        previous one on the track.

        The runs of all tracks come first, one track after the other, then the runs with unknown ends.
        """
        tick = max(1000, self.span >> 30)
        in_order = [run for *_, runs in self.slots for run in runs] + self.loose
        starts: list[int] = []
        for runs in [*(runs for *_, runs in self.slots), self.loose]:
            ticks = [(self.spans.began[run] - self.first) // tick for run in runs]
            starts += map(operator.sub, ticks, [0, *ticks])
        ways: dict[tuple[int, str], int] = {}
        hows = [ways.setdefault((STATES.index(run.state), how_ended(run)), len(ways)) for run in self.runs]
        tracks = {(host, slot): number for number, (host, slot, _) in enumerate(self.slots)}
        records = [self.runs[run] for run in in_order]
        failed = [(place, run) for place, run in enumerate(records) if run in failures.group_of]
        return {
            "first": self.first / 1e6,
            "span": self.span / 1e6,
            "zone": time.localtime(self.first / 1e6).tm_gmtoff,
            "names": list(STATE_NAMES.values()),
            "endings": list(ways),
            "busy": self._busy(),
            "tick": tick / 1e6,
            "rows": [[host[:80], slot[:80]] for host, slot, _ in self.slots],
            "sizes": [len(runs) for *_, runs in self.slots],
            "loose": [tracks[self.runs[run].host, self.runs[run].slot or "1"] for run in self.loose],
            "began": starts,
            "took": [max(1, self.spans.took[run] // tick) for run in in_order],
            "line": [self.numbers.get(run, run.line) for run in records],
            "was": {place: run.line for place, run in enumerate(records) if run in self.numbers},
            "how": [hows[run] for run in in_order],
            "commands": [cut(readable(run.command), self.longest) for run in records],
            "groups": [well_formed(group.words) for group in failures.groups],
            "group": {place: failures.group_of[run] for place, run in failed},
            "base": outputs.base,
            "files": {place: names for place, run in failed
                      if (names := list(map(url_quoted, outputs.names(run))))},
        }

    def _busy(self) -> list[float]:
        """Return the average number of running jobs for each of BINS equal parts of the time."""
        change = [0.0] * (self.BINS + 2)
        width = self.span / self.BINS
        for began, took in zip(self.spans.began, self.spans.took):
            start = (began - self.first) / width
            end = start + took / width
            index = int(start)
            last = int(end)
            change[index] += index + 1 - start
            change[index + 1] += start - index
            change[last] -= last + 1 - end
            change[last + 1] -= end - last
        return [round(max(0.0, count), 3) for count in itertools.accumulate(change)][:self.BINS]


def cut(text: str, longest: int) -> str:
    """Return a text, shortened to 'the first characters...' if it is longer."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def tag(name: str, *contents: str, **attributes: object) -> str:
    """Return an element of a page.  contents are HTML; attributes are text, and quoted here."""
    words = ""
    for key, value in attributes.items():
        html_name = key.rstrip("_").replace("_", "-")
        words += f' {html_name}="{escaped(str(value))}"'
    return f"<{name}{words}>{''.join(contents)}</{name}>"


def section(title: str, note: str, *contents: str, **attributes: str) -> str:
    """Return a section of a page: a heading, a note next to it, and the contents."""
    head = tag("div", tag("h2", title), tag("p", note, class_="hint"), class_="head")
    return tag("section", head, *contents, **attributes)


def escaped(text: str) -> str:
    """Return a text quoted for HTML."""
    safe: str = html.escape(well_formed(text))
    return safe


def legend(entries: Iterable[tuple[str, int, str]], head: str = "") -> str:
    """Return a legend of colours.  entries: names, numbers, classes of the colours; numbers of 0 are not
    shown.
    """
    items = [tag("li", tag("i", class_=f"fill {colour}"), f"<b>{count:,}</b> {name}")
             for name, count, colour in entries if count]
    return tag("ul", head, *items, class_="legend")


def bar_of(total: str, counted: Sequence[tuple[str, int, str]]) -> str:
    """Return a bar and the legend.  counted: names, numbers, classes of the colours."""
    parts = [tag("span", style=f"flex: {count}", class_=f"fill {colour}")
             for _, count, colour in counted if count]
    return tag("div", *parts, id="bar") + legend(counted, f"<li>{total}:</li>")


@dataclass
class SameWords:
    """A group of failures with the same last words."""
    words: str
    rows: list[Row] = field(default_factory=list)
    others: list[Row] = field(default_factory=list)     # a search finds these; they are not counted


class FailuresByWords:
    """Failures grouped by last words: the last line of output, or how the run ended.

    Lines that differ only in numbers are the same words: `step 341: no convergence`.
    """
    MAX_LINE_CHARACTERS = 200   # that count
    SHOWN_GROUPS = 20

    def __init__(self, rows: Sequence[Row], total: int, others: Sequence[Row], outputs: Outputs) -> None:
        """rows: some of the failures; total: the number of all.  others: earlier ones, which a search finds
        by their words, but which are not counted.
        """
        self.count = len(rows)
        self.total = total
        groups: dict[str, SameWords] = {}
        for index, row in enumerate([*rows, *others]):
            words = self._words(row, outputs)[:self.MAX_LINE_CHARACTERS]
            alike = NUMBER.sub("…", words)
            group = groups.setdefault(alike, SameWords(words))
            if group.words != words:
                group.words = alike
            (group.rows if index < len(rows) else group.others).append(row)
        self.groups = sorted(groups.values(), key=lambda group: -len(group.rows))
        self.group_of = {row.run: number for number, group in enumerate(self.groups)
                         for row in [*group.rows, *group.others]}

    @staticmethod
    def _words(row: Row, outputs: Outputs) -> str:
        if row.run is None:
            return "(no known run)"
        printed = outputs.of(row.run)
        if printed:
            return printed[-1].strip()
        # Neither a job log nor the start of a run has output
        nothing = ", printed nothing" if outputs.output and row.run.ended is not None else ""
        return f"({how_ended(row.run)}{nothing})"

    def html(self, unit: str) -> str:
        """Return the largest groups as HTML; '' if there are none.  unit: 'line' or 'run'."""
        counted = [group for group in self.groups if group.rows]
        if not counted:
            return ""
        note = plural(len(counted), "group")
        if len(counted) > self.SHOWN_GROUPS:
            note = f"{self.SHOWN_GROUPS} of {note}"
        if self.total > self.count:
            note += f", of {self.count:,} of {self.total:,} {unit}s"
        items = [self._item(number, group, unit) for number, group in enumerate(counted[:self.SHOWN_GROUPS])]
        return section("Failures by their last words", note, tag("ul", *items, class_="groups"), id="groups")

    def _item(self, number: int, group: SameWords, unit: str) -> str:
        """Return a group as HTML: size, words, lines and hosts."""
        hosts = {row.run.host for row in group.rows if row.run}
        where = name_lines({row.line.number for row in group.rows}) + (
            f" on {cut(min(hosts), 80)}" if len(hosts) == 1 else f" on {len(hosts)} hosts" if hosts else "")
        return tag("li", tag("b", plural(len(group.rows), unit)),
                   tag("button", escaped(group.words), type="button", data_group=number),
                   tag("span", escaped(where), class_="hint"))


@dataclass(frozen=True)
class Table:
    """A table of the page."""
    title: str
    rows: Sequence[Row]         # the first SHOWN_ROWS are shown
    total: int                  # rows that there would be without a limit
    SHOWN_ROWS = 200


Cell = tuple[str, object]       # content, and sort key
NO_CELL: Cell = "", -1


class Tables:
    """The tables of the page.  All have the same columns: those with any known value."""

    HEAD = (
        ("Line", "line"),
        ("Ended", "left ended"),
        ("Host", "left host"),
        ("Slot", "left slot wide"),
        ("Began", "began"),
        ("Time", "time"),
        ("CPU", "cpu wide"),
        ("Memory", "memory wide"),
        ("Printed", "printed wide"),
        ("Output", "left output"),
    )

    def __init__(self, outputs: Outputs, failures: FailuresByWords) -> None:
        self.outputs = outputs
        self.failures = failures

    def html(self, tables: Iterable[Table]) -> str:
        """Return the tables that have rows, as HTML."""
        shown = Table.SHOWN_ROWS
        cells = [(table, list(map(self._cells, table.rows[:shown]))) for table in tables if table.rows]
        known = [index for index, _ in enumerate(self.HEAD)
                 if any(row[index][0] for _, rows in cells for row in rows)]
        return "".join(self._table(table, rows, known) for table, rows in cells)

    def _table(self, table: Table, cells: Sequence[Sequence[Cell]], known: Sequence[int]) -> str:
        count = len(cells)
        note = f"{count:,} of {table.total:,}" if table.total > count == Table.SHOWN_ROWS else f"{count:,}"
        heads = [tag("th", name, class_=kind) for name, kind in (self.HEAD[index] for index in known)]
        bodies = [self._body(row, [(*all_cells[index], self.HEAD[index][1]) for index in known])
                  for row, all_cells in zip(table.rows, cells)]
        content = tag("table", tag("thead", tag("tr", *heads)), *bodies)
        return section(table.title, note, tag("div", content, class_="scroll"), class_="runs")

    def _body(self, row: Row, cells: Sequence[tuple[str, object, str]]) -> str:
        """Return a row as HTML.  cells: content, sort key, class.  Command and last output are below the
        cells.
        """
        cell_tags = [tag("td", text, class_=kind, data_key=key) for text, key, kind in cells]
        printed = "\n".join(self.outputs.of(row.run))
        has_moved = row.run is not None and row.run.line != row.line.number
        below = tag("i", f"line {row.run.line} when it ran: ") if row.run and has_moved else ""
        below += escaped(cut(readable(row.line.command), 500))
        if printed:
            below += tag("q", escaped(printed))
        return tag(
            "tbody",
            tag("tr", *cell_tags),
            tag("tr", tag("td", below, class_="what", colspan=len(cells))),
            data_state=STATE_NAMES[row.run.state] if row.run else row.line_state,
            data_host=row.run.host[:80] if row.run else "",
            data_group=self.failures.group_of.get(row.run, ""),
        )

    def _cells(self, row: Row) -> list[Cell]:
        """Return the content and the sort key of each column."""
        run = row.run
        number: Cell = f"{row.line.number}", row.line.number
        if run is None:
            state = tag("b", row.line_state, class_=COLOURS[row.line_state])
            if row.line.state not in WORDS:
                state += f" ({escaped(to_text(row.line.state))})"
            return [number, (state, row.line_state), *itertools.repeat(NO_CELL, 8)]
        how = how_ended(run)
        ended = tag("b", escaped(how), class_=f"s{STATES.index(run.state)}")
        if row.state_since:
            ended += f" (now {row.state_since})"
        cpu = memory = NO_CELL
        if run.cpu and run.seconds:
            cpu = f"{100 * run.cpu / run.seconds:.0f} %", run.cpu / run.seconds
        if run.peak:
            memory = escaped(run.peak), run.memory or 0
        links = self.outputs.links(run)
        return [
            number,
            (ended, how),
            (escaped(run.host[:80]), run.host[:80]),
            (escaped(run.slot[:80]), run.slot[:80]),
            (clock(run.began), run.began),
            (took(run.seconds) if run.seconds is not None else "", run.seconds or -1),
            cpu,
            memory,
            (human_size(run.bytes), run.bytes),
            (links, len(links)),
        ]


class Report:
    """The data of the page, as of one look: all runs of a log, and the rows of the tables."""

    def __init__(self, look: Look, live: bool) -> None:
        """live: jobs are waited for.  Raises UsageError."""
        runs = look.log.runs()
        watched = {line.command for line in [*look.lines, *look.living]}
        self.found = found = Gathered(runs, watched, to_fix=len(look.lines))
        known = self._line_runs(look, watched)
        for run in found.unended:
            look.judge(run, known)
        found.take_unended(until=time.time() if live or look.snapshot.running else None)
        self.look = look
        self.now = count_states(look.snapshot) if look.watcher else None
        # by drawn run, the present number of the line, if it has changed
        self.numbers = {run: line.number for run in found.drawn
                        if (line := known.line_of(run)) and line.number != run.line}
        last = {known.last.get(line.number) for line in look.lines}
        # the clock of a single host agrees with itself
        one_host = len({host for host, _ in found.slots}) == 1
        self.wrong_clocks = set() if one_host else Clocks(look.log.changed, found.drawn).wrong
        self.to_fix = [look.last_row(line, known) for line in look.lines[:Gathered.FAILURES]]
        self.failed = [look.row(run, known) for run in found.failed if run not in last][:Gathered.FAILURES]
        self.failed_count = sum(found.states[state] for state in "!e") - sum(
            run is not None and run.state in "!e" for run in last)
        self.slowest = [look.row(run, known) for run in found.slowest]
        self.largest = [look.row(run, known) for run in found.largest]
        rows = [*self.to_fix, *self.failed, *self.slowest, *self.largest]
        runs.name_files(row.run for row in rows if row.run)

    def _line_runs(self, look: Look, watched: Collection[bytes]) -> LineRuns:
        """Return the lines of watched commands, of the runs in tables, and of others that have moved; with
        their runs.

        Raises UsageError.
        """
        found = self.found
        listed = [*found.failed, *found.slowest, *found.largest, *found.unended]
        kept = {*found.last_runs.values(), *found.drawn, *listed}
        others = [run for run in kept if run.command not in watched]
        moved = look.watcher.moved(others) if look.watcher else set()
        commands = moved.union(watched, [run.command for run in listed])
        return look.line_runs(commands, kept)

    def tables(self) -> Iterator[Table]:
        """Yield the tables, the lines that remain to be fixed first."""
        ended = len(self.found.stats.seconds)
        if self.now and self.look.watcher:
            held = self.look.watcher.held_lines(self.look.snapshot, Table.SHOWN_ROWS)
            yield Table("Left to fix", self.to_fix, len(self.look.lines))
            yield Table("Other runs that failed or ended in error", self.failed, self.failed_count)
            yield Table("Held lines", [Row(line, "held") for line in held], self.now.held)
        else:
            yield Table("Runs that failed or ended in error", self.failed, self.failed_count)
        yield Table("Slowest runs", self.slowest, ended)
        yield Table("Largest runs", self.largest, ended)

    def failures(self, outputs: Outputs) -> FailuresByWords:
        """Return the lines that remain to be fixed, by last words; without a job file, the failed runs."""
        if not self.now:
            return FailuresByWords(self.failed, self.failed_count, (), outputs)
        others = self.failed[:max(Table.SHOWN_ROWS, Gathered.FAILURES - len(self.to_fix))]
        return FailuresByWords(self.to_fix, len(self.look.lines), others, outputs)


class Reporter:
    """Writes the page, once or repeatedly."""
    MIN_PAGE_SECONDS = 10.0     # seconds between two pages, at least
    KIND = "report", b"<!DOCTYPE html>\n<!-- made by runwait4.py -->"      # and the first bytes of PAGE

    def __init__(self, options: argparse.Namespace, watcher: Watcher | None, argv: Sequence[str]) -> None:
        """argv: the options as given.  Raises UsageError."""
        self.options = options
        self.place = os.uname().nodename
        with contextlib.suppress(OSError):          # the current directory was removed
            self.place += f":{os.getcwd()}"
        self.command = shlex.join([PROG, *argv])
        self.watcher = watcher
        self.source = options.joblog or os.path.join(options.outdir, "journal")
        refuse_foreign(options.report, *self.KIND)          # now, not after the last job
        if options.file is not None and os.path.realpath(options.report) == os.path.realpath(options.file):
            raise UsageError(f"{options.report}: is the job file (give another name)")
        self.next = 0.0
        self.pause = self.MIN_PAGE_SECONDS
        self._error = ""            # why the last page could not be written

    def update(self) -> str:
        """Write the page while the jobs run, if it is time; this takes at most a twentieth of the time.

        Returns why it cannot be written, if the reason is new; otherwise ''.
        """
        start = time.monotonic()
        new_error = ""
        if start >= self.next and os.path.exists(self.source):
            try:
                self.write(live=True)
            except UsageError as problem:
                new_error = str(problem) if str(problem) != self._error else ""
                self._error = str(problem)
            self.pause = self._pause_after(start)
            self.next = start + self.pause
        return new_error

    def _pause_after(self, start: float) -> float:
        """Return the seconds between two pages, if one begun at `start` (monotonic) is written now."""
        return max(self.MIN_PAGE_SECONDS, 20 * (time.monotonic() - start))

    @without_collector()
    def write(self, live: bool = False) -> None:
        """Write the page.  live: jobs are waited for.  Raises UsageError."""
        start = time.monotonic()
        messages: list[str] = []
        log = functools.partial(open_log, self.options, messages.append)
        with Look(self.watcher, log, bad_lines) as look:
            report = Report(look, live)
        if not report.found.states and not live:
            raise UsageError(f"{self.source}: no runs (expected a {look.log.KIND})")
        self.pause = self._pause_after(start)       # the remaining steps take little time
        page = self._page(report, live, messages)
        with replacing(self.options.report, *self.KIND) as file:
            file.write(page.encode())
        for text in () if live else messages:
            say(text)

    def _page(self, report: Report, live: bool, messages: Sequence[str]) -> str:
        """Return the page as HTML."""
        runs = report.found
        outputs = Outputs(self.options.outdir, self.options.report)
        failures = report.failures(outputs)
        pictures = Pictures(report)
        data = {
            **pictures.page_data(failures, outputs),
            "made": time.time(),
            "pause": self.pause if live else 0,
        }
        messages = [*messages, *self._limits(report, pictures)]
        packed = zlib.compress(json.dumps(data, separators=(",", ":")).encode(), 6)
        parts = {
            "TITLE": escaped(self.options.file or self.options.outdir or self.options.joblog),
            "PLACE": escaped(self.place),
            "COMMAND": escaped(self.command),
            "DATA": base64.b64encode(packed).decode(),
            "REFRESH": REFRESH % math.ceil(self.pause) if live else "",
            "WHEN": " · ".join([*self._when(runs, live), *map(escaped, messages)]),
            "FIGURES": self._figures(report),
            "KEY": self._key(runs),
            "GROUPS": failures.html("line" if report.now else "run"),
            "TABLES": Tables(outputs, failures).html(report.tables()),
        }
        return re.sub("@([A-Z]+)@", lambda match: parts[match[1]], PAGE)

    @staticmethod
    def _limits(report: Report, pictures: Pictures) -> Iterator[str]:
        """Yield the limits of the page."""
        drawn = len(pictures.runs)
        if drawn < report.found.count:
            yield f"the pictures show the last {drawn:,} runs of {report.found.count:,}"
        if pictures.longest < Pictures.MAX_COMMAND_CHARACTERS:
            yield f"only the first {pictures.longest} characters of a command are searched"
        if wrong := sorted(report.wrong_clocks):
            names = cut(", ".join(wrong), 80)
            clocks = f"clock of {names} is" if len(wrong) == 1 else f"clocks of {names} are"
            yield f"the {clocks} wrong: times of different hosts cannot be compared"

    def _when(self, runs: Gathered, live: bool) -> Iterator[str]:
        """Yield facts about the page, in a few words each, as HTML."""
        day = "%Y-%m-%d %H:%M:%S"
        if runs.states:
            yield " – ".join(time.strftime(day, time.localtime(when)) for when in (runs.first, runs.last))
        hosts = len({host for host, _ in runs.slots})
        yield f"{plural(len(runs.slots), 'slot')} on {plural(hosts, 'host')}" if runs.slots else "no runs yet"
        again = f", updated every {human_time(self.pause)} while jobs run" if live else ""
        yield f"made {time.strftime(day)}" + (tag("span", again, id="live") if live else "")

    @staticmethod
    def _key(runs: Gathered) -> str:
        """Return the legend of the pictures."""
        drawn = Counter((run.state, end_unknown(run)) for run in runs.drawn)
        return legend(
            (END_UNKNOWN.get(state, name) if hatched else name, drawn[state, hatched],
             f"s{number} hatched" if hatched else f"s{number}")
            for number, (state, name) in enumerate(STATE_NAMES.items()) for hatched in (False, True)
        )

    @staticmethod
    def _figures(report: Report) -> str:
        """Return the bar of the present jobs, or of the runs if no job file is named; and figures."""
        runs = report.found
        now = report.now
        by_name = [
            (name, runs.states[state], f"s{number}")
            for number, (state, name) in enumerate(STATE_NAMES.items())
        ]
        all_runs = plural(runs.count, "run")
        if now:
            bar = bar_of(plural(now.all + now.held, "job"),
                         [(name, now._asdict()[name], colour) for name, colour in COLOURS.items()])
            ended = ", ".join(f"{count:,} {name}" for name, count, _ in by_name if count)
            if ended:
                bar += tag("p", f"{all_runs}: {ended}", class_="hint")
        else:
            bar = bar_of(all_runs, by_name)
        stats = runs.stats
        figures: list[tuple[str, str]] = []
        if runs.states and not report.wrong_clocks:
            figures.append(("Duration", took(runs.last - runs.first)))
        times = map(took, quantiles(stats.seconds))
        figures += zip(("Median time of a run", "90th percentile", "Longest"), times)
        if stats.cpu_seconds:
            figures.append(("CPU use", f"{100 * stats.cpu / stats.cpu_seconds:.0f} %"))
        if peak := peak_memory(stats.memory, stats.memory_below):
            figures.append(("Peak memory", escaped(peak)))
        pairs = [tag("div", tag("dt", name), tag("dd", value)) for name, value in figures]
        return bar + tag("dl", *pairs, id="facts")


# ======== Checking a directory's locks ======================================================================
#
# Each host creates a file in the directory with name and boot id in the first line, and locks two bytes, one
# for itself and one for a job.  Then the host counts: once a second it reads the files of all hosts, writes
# the next number over the last one, and locks the byte of that number.  A host that finds this byte locked
# knows the lowest number that a read must show, without a clock.  No host waits for another, and each host
# reports its own observations.
#
# The locks of a host are tested after it starts to count, because it has taken them then.  An earlier test,
# which is also a lock, could keep the host from locking the byte.  A host that exits releases its locks.  So
# a lock counts as missing only if it was never found.
#
# Other users can create files in the directory.  We create our file exclusively.  We open only regular files
# with one name, follow no links, and rely on no contents.

TRIALS = {
    "excluded": "a byte that one host has locked cannot be locked by others",
    "inherited": "a job keeps the lock of its runner, also if the runner is killed, until the job exits",
    "fresh": "data written by one host is read by others at once",
}
CURES = {                       # by the beginning of the file system's type; the first match counts
    "nfs": "mount with vers=4.2; or with NFSv3 let rpc.statd run on hosts and server, without nolock and "
           "local_lock",
    "lustre": "mount with flock",
    "ocfs2": "make it with mkfs.ocfs2 --cluster-stack=pcmk, for a cluster of Pacemaker",
    "beegfs": "set tuneUseGlobalFileLocks = true in beegfs-client.conf",
    "cifs": "share the directory by NFS",
    "smb3": "share the directory by NFS",
    "fuse.ceph": "set fuse_disable_pagecache = true in ceph.conf",
    "fuse.glusterfs": "switch performance.quick-read, open-behind, io-cache, read-ahead, write-behind and "
                      "stat-prefetch off (gluster volume set), and mount with direct-io-mode=enable",
    "fuse": "use the directory where its own file system is mounted (bindfs, sshfs and the like share no "
            "locks); MooseFS: mount with mfscachemode=NEVER",
}
LOCKS = {"excluded": 1 << 62, "inherited": (1 << 62) + 1}          # locked bytes, by trial
NUMBERS = range(1 << 61, (1 << 61) + 1_000_000)
FIRST_LINE = re.compile(rb"(\d{6})\trunmaker4-check 3\t([^\t\n]{1,99})\t([^\t\n]{1,99})\t([^\t\n]{1,299})\n")


class Host:
    """A host that runs this check in the directory, perhaps ours, and our observations of it."""

    def __init__(self, path: str, mount: Mount) -> None:
        """Raises OSError; ENOENT also for a file without a complete first line."""
        self.path = path
        self.mount = mount
        self.results: dict[str, bool] = {}      # by trial, True if passed
        refresh_file(path, mount)
        # Open for writing, as runners do: while a file is open so, NFS keeps old pages
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self.reader = Reader(open_direct(path, flags, mount.network), mount.network)
        info = os.fstat(self.reader.fd)
        header = None
        if stat.S_ISREG(info.st_mode) and info.st_nlink <= 1:
            header = FIRST_LINE.match(self.reader.pread(BLOCK, 0))
        if not header:
            self.reader.close()
            raise FileNotFoundError(errno.ENOENT, "not, or not yet, a file of this check", path)
        self.first = int(header[1])
        self.name, self.boot, self.kind = (word.decode(errors="replace") for word in header.groups()[1:])

    def holds(self, offset: int) -> bool:
        """Return True if the host has locked a byte.

        The test is a shared lock, so that hosts can test at the same time.
        """
        fd = self.reader.fd
        if lock(fd, offset, shared=True):
            unlock(fd, offset)
            return False
        return not is_free(fd, offset)

    def look(self) -> None:
        """Update the results from the locks and the number of the host.

        Read the number once more at the end: if no lock of ours comes between, a stale cache then shows in
        the next call. Locks refresh the cache on some file systems.
        """
        locked = other_locks(self.reader.fd, NUMBERS[0], len(NUMBERS))
        sure = max((numbers[-1] - NUMBERS[0] for numbers in locked), default=0)
        refresh_file(self.path, self.mount)
        refresh_reader(self.reader, self.mount)
        header = FIRST_LINE.match(self.reader.pread(BLOCK, 0))
        number = int(header[1]) if header else 0
        if max(sure, number) > self.first:
            for trial, offset in LOCKS.items():
                self.results[trial] = self.results.get(trial, False) or self.holds(offset)
        if sure:
            self.results["fresh"] = self.results.get("fresh", True) and number >= sure
        self.reader.pread(BLOCK, 0)


class LockCheck:
    """Tests, with all hosts that run this check in the directory, if runners can rely on the locks."""
    MINUTE = 60.0               # seconds of the check on a network file system
    NUMBER_PAUSE = 1.0          # seconds between two numbers on a network file system
    MIN_NUMBERS = 4             # numbers after which a host has tested all on itself
    MAX_SILENT_SECONDS = 60.0   # more seconds until we report that the file system does not answer
    MAX_CLEANUP_SECONDS = 2.0   # seconds for an interrupted check to remove its file

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.mount = find_mount(folder)
        self.name = printable(os.uname().nodename)[:64]
        name = f"{re.sub('[^A-Za-z0-9.-]', '_', self.name)}-{os.urandom(4).hex()}"
        self.path = os.path.join(folder, f"runmaker4-check-{name}")
        self.number = 0
        self.hosts: dict[str, Host] = {}        # by path; we are one of them
        error = mount_error(self.mount)
        self.errors = [f"{self.name}: {error}"] if error else []

    @contextlib.contextmanager
    def noting(self, *expected: int) -> Iterator[None]:
        """Add an error to `errors`, unless its number is in `expected`: these mean that a host has exited, or
        was none.
        """
        try:
            yield
        except OSError as error:
            text = ": ".join(filter(None, [self.name, error.filename, error_text(error)]))
            if error.errno not in expected and text not in self.errors:
                self.errors.append(text)

    def run(self) -> int:
        """Run all trials, and print the observations; return the exit status."""
        with self.noting():
            try:
                with open(self.path, "xb", buffering=0) as file:
                    self.try_all(file.fileno())
            finally:
                self.clean()                    # after the close: NFS keeps a file that is open
        return self.report()

    def try_all(self, fd: int) -> None:
        """Take locks in our file and count in it, and look at all hosts at the same time.

        A host that gets no locks continues, so that the others see it.
        """
        reading, writing = os.pipe()            # the job reads from it, and exits when we close it, or die
        try:
            with self.noting():
                self.write_header(fd)              # first, so that others notice if a lock call never returns
            with self.noting():
                self.take_locks(fd, reading)
            started = time.monotonic()
            while self.number < self.MIN_NUMBERS or (
                self.mount.network and time.monotonic() < started + self.MINUTE
            ):
                time.sleep(self.NUMBER_PAUSE if self.mount.network else 0.1)
                self.number += 1
                with self.noting():
                    self.visit_all()
                with self.noting():
                    self.write_number(fd)
        finally:
            close_all(reading, writing)

    @staticmethod
    def take_locks(fd: int, stdin: int) -> None:
        """Lock a byte, and one for a job: `cat`, whose runner, a shell, is killed."""
        lock(fd, LOCKS["excluded"])
        of_job = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            lock(of_job, LOCKS["inherited"])
            killed = "exec 3<&0; cat <&3 & kill -KILL $$"
            subprocess.run(["sh", "-c", killed], stdin=stdin, pass_fds=[of_job], check=False)
        finally:
            os.close(of_job)

    def write_header(self, fd: int) -> None:
        """Write the first line of this host's file: version, host name, boot id, and file system.

        The file system is named with the mount options that decide if locks work, such as `nfs4 vers=4.2`.
        """
        relevant = re.compile("vers=|nolock|local_lock=[^n]")
        options = sorted(filter(relevant.match, self.mount.options))
        kind = " ".join([self.mount.kind or "unknown", *options])
        header = "\t".join(["000000", "runmaker4-check 3", self.name, boot_id(), kind])
        write_all(fd, f"{header}\n".encode(errors="replace"))
        os.fsync(fd)

    def visit_all(self) -> None:
        """Look at each host with a file in the directory."""
        for name in os.listdir(self.folder):
            if re.fullmatch("runmaker4-check-.*-[0-9a-f]{8}", name):
                path = os.path.join(self.folder, name)
                with self.noting(errno.ENOENT, errno.ESTALE, errno.ELOOP, errno.EISDIR):    # no host
                    if path not in self.hosts:
                        self.hosts[path] = Host(path, self.mount)
                    self.hosts[path].look()

    def write_number(self, fd: int) -> None:
        """Write our number over the last one, and lock it."""
        pwrite_all(fd, b"%06d" % self.number, 0)
        os.fsync(fd)
        lock(fd, NUMBERS[self.number])
        unlock(fd, NUMBERS[self.number - 1])

    def clean(self) -> None:
        """Remove our file, and those of hosts that were dead all the time; close all descriptors."""
        paths = [self.path]
        for host in self.hosts.values():
            with contextlib.suppress(OSError):              # the file was removed
                if "excluded" not in host.results and not host.holds(LOCKS["excluded"]):
                    paths.append(host.path)
            host.reader.close()
        for path in paths:
            with contextlib.suppress(OSError):              # it was removed, or is another user's
                os.unlink(path)

    def report(self) -> int:
        """Print the observations; return the exit status.

        It is 0 if all trials were made and passed, and, if other hosts can use the directory, another host
        has come.
        """
        hosts = sorted(self.hosts.values(), key=lambda host: (host.name, host.path))
        here = boot_id()
        self.judge(hosts, here)
        untried = [host.name for host in hosts if host.results.keys() != TRIALS.keys()]
        if self.path not in self.hosts:
            untried.append(self.name)
        alone = self.mount.network and all(host.boot == here for host in hosts)
        rows = [["host", *TRIALS, "file system"]]
        for host in hosts:
            results = [{True: "yes", False: "NO", None: "-"}[host.results.get(trial)] for trial in TRIALS]
            rows.append([host.name, *results, f"{host.kind}, this host" if host.boot == here else host.kind])
        lines = [
            f"{self.folder}: {self.name} has seen:",
            *table(rows, math.inf, ()),
            *(f"NO   {error}" for error in self.errors),
            *self.verdict(untried, alone),
        ]
        print_bytes(os.fsencode("\n".join(map(printable, lines)) + "\n"))
        return 1 if self.errors or untried or alone else 0

    def judge(self, hosts: Sequence[Host], here: str) -> None:
        """Complete `errors`, after all trials.  here: our boot_id()."""
        machines = {(self.name, here), *((host.name, host.boot) for host in hosts)}
        names = Counter(name for name, _ in machines)
        self.errors += [f"{name}: several hosts have this name: an NFSv4 server takes them for one that "
                        "was rebooted, and drops the locks (EIO); rename them before the mount (hostnamectl)"
                        for name in names if names[name] > 1]
        for trial, text in TRIALS.items():
            if bad := [host.name for host in hosts if host.results.get(trial) is False]:
                self.errors.append(f"{trial}: failed for {', '.join(bad)} ({text})")

    def verdict(self, untried: Sequence[str], alone: bool) -> Iterator[str]:
        """Yield the conclusion for users who want to share job files.

        untried: hosts for which a trial is missing.  alone: other hosts can use this directory, but none has
        come.
        """
        if self.errors:
            cure = next((text for kind, text in CURES.items() if self.mount.kind.startswith(kind)), "")
            if cure:
                yield f"To change: {cure}."
            yield (
                "Until all trials pass, these hosts must not share job files here: use another directory, or "
                "TCP (runmaker4-server.py)."
            )
        elif untried:
            yield (
                f"Some trials are missing for {', '.join(untried)} (started late, exited early, was killed "
                "or disconnected): start this on all hosts within some seconds."
            )
        elif not self.mount.network:
            yield (
                f"All trials passed on this host. Other hosts do not see {self.mount.kind or 'it'}: they can "
                "get jobs over TCP (runmaker4-server.py)."
            )
        elif alone:
            yield "All trials passed on this host. No other has come: start this on another within a minute."
        else:
            yield (
                "All trials passed on this host. If the other hosts print the same, they can share job files "
                "in this directory."
            )


def boot_id() -> str:
    """Return a unique id of the running system of this machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def check_locks(folder: str) -> int:
    """Check the locks of a directory; return the exit status.  Raises UsageError.

    A child makes the check, because a call might never return if the file system is away, and then only the
    parent can report that. The child prints into a file: a reader of our stdout would wait for a hanging
    child.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"{folder}: not a directory (give the directory for the job file)")
    exit_on(signal.SIGINT, signal.SIGTERM)
    mount = find_mount(folder)
    if mount.network:
        warn(f"{PROG}: {folder}: takes a minute; start this on the other hosts now")
    with tempfile.TemporaryFile(buffering=0) as printed:
        child = os.fork()
        if not child:
            os.setsid()                         # Ctrl-C reaches it only through us
            for fd in (1, 2):
                os.dup2(printed.fileno(), fd)
            return LockCheck(folder).run()

        def has_ended() -> bool:
            return bool(os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT))

        try:
            end = keep_trying(has_ended, LockCheck.MINUTE + LockCheck.MAX_SILENT_SECONDS)
        finally:
            os.kill(child, signal.SIGTERM)      # the kernel does not reuse its pid until we wait for it
            keep_trying(has_ended, LockCheck.MAX_CLEANUP_SECONDS)
        if end:
            print_bytes(os.pread(printed.fileno(), os.fstat(printed.fileno()).st_size, 0))
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    more = ""
    if mount.kind.startswith("nfs"):
        more = "; with NFSv3: does rpc.statd run on both, and do firewalls let it and lockd pass"
    warn(f"{PROG}: {folder}: does not answer (is the file server up{more}?)")
    return 1


# ======== The program =======================================================================================
#
# Options name one thing to do: wait, print the status, or draw a log.  Results go to stdout, messages to
# stderr.


def wait(watcher: Watcher, with_progress: bool, on_look: Callable[[], str] = str) -> Counts:
    """Wait for the jobs, and report it once if new jobs wait.

    on_look: called after each poll; returns a text to report, or ''.  Raises UsageError.
    """
    progress: PipeProgress | TerminalProgress | None = None
    if with_progress:
        exit_on(signal.SIGINT, signal.SIGTERM)
        progress = TerminalProgress() if os.isatty(1) else PipeProgress()

    def update(now: Counts) -> None:
        if progress:
            progress.update(now)
        if text := on_look():
            say_below(text)

    def say_below(text: str) -> None:
        if progress:
            progress.close()
        say(text)

    try:
        return watcher.wait(update, lambda text: say_below(f"{watcher.path}: {text}"))
    finally:
        if progress:
            progress.close()


def say_stopped(watcher: Watcher) -> bool:
    """Return True if the waiting has ended although new jobs remain; then report why they cannot start."""
    if watcher.stopped:
        say(f"{watcher.path}: {watcher.stopped}")
    return bool(watcher.stopped)


def report(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Write the report; with --progress also while the jobs run.  Return the exit status.

    Raises UsageError.
    """
    exit_on(signal.SIGINT, signal.SIGTERM)
    watcher = Watcher(options.file) if options.file is not None else None
    reporter = Reporter(options, watcher, argv)
    if watcher is None:
        reporter.write()
        return 0
    if options.progress:
        wait(watcher, with_progress=True, on_look=reporter.update)
    stopped = say_stopped(watcher)
    reporter.write()
    return int(stopped)


def watch(argv: Sequence[str]) -> int:
    """Run runwait4.py.  Raises UsageError."""
    options = parse(argv)
    if options.check_locks is not None:
        return check_locks(options.check_locks)
    path = options.file
    if path is not None:
        check_lines(path, find_mount(path).network, lambda text: say(f"{path}: {text}"))
    if options.report is not None:
        code = report(options, argv)
        if options.stats:
            print_stats(options.outdir, options.file, as_json=False)
        return code
    if options.timeline is not None:
        exit_on(signal.SIGINT, signal.SIGTERM)
        messages: list[str] = []
        draw(open_log(options, messages.append), options.timeline)
        for text in messages:
            say(text)
        return 0
    if options.stats:
        print_stats(options.outdir, options.file, options.json)
        return 0
    try:
        return watch_file(options)
    except BrokenPipeError:
        if options.use_exit_status:
            return 1                        # unknown if all jobs would be done
        raise


def watch_file(options: argparse.Namespace) -> int:
    """Wait for the jobs of FILE, or print the status.  Return the exit status.

    Raises BrokenPipeError, UsageError.
    """
    watcher = Watcher(options.file)
    if options.status:
        now = print_status(watcher, options)
    elif options.failed or options.show is not None:
        now = print_runs(watcher, options)
    else:
        now = wait(watcher, options.progress)
        if say_stopped(watcher):
            return 1
    return 1 if options.use_exit_status and now.done < now.all else 0


def print_status(watcher: Watcher, options: argparse.Namespace) -> Counts:
    """Print the status; return the counts by state.  Raises UsageError."""
    status = status_of(watcher, options)
    with contextlib.suppress(BrokenPipeError):      # `| head`: the exit status still counts
        put_texts([json.dumps(status)] if options.json else status_lines(status, width()))
    return Counts(*(status[name] for name in Counts._fields))


def main(argv: Sequence[str] | None = None) -> int:
    """Run runwait4.py with these arguments (None: those of the process); return the exit status."""
    return run_main(PROG, watch, argv)


# ======== The page of the report ============================================================================
#
# PAGE is a template: Reporter replaces the @NAMES@.  The page loads nothing, and the Content-Security-Policy
# forbids that.
#
# The script unpacks the data and draws on two canvases: the number of running jobs over time, and below that
# a row for each track.  A run that is at least as wide as a pixel is a rectangle.  Shorter runs that begin in
# one pixel share a column.  Runs that failed or are in error have at least a fifth of the height, so that
# none is lost among many others.  Runs with unknown ends come last in the data, and are drawn first.
#
# A search marks the runs that it finds in `hits`.  The picture dims all others, and the tables hide them.
# Session storage survives a reload: it holds the search, the visible time range, and when the page was last
# new.

PAGE = r"""<!DOCTYPE html>
<!-- made by runwait4.py -->
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
@REFRESH@<title>@TITLE@ – @PLACE@</title>
<style>
:root { color-scheme: light dark; --page: #fff; --text: #1c2127; --dim: #5f6b76; --line: #dde2e7; --shade: #f5f7f9;
  --s0: #3a7ab8; --s1: #d9480f; --s2: #8a3a9c; --s3: #9aa4ae; --s4: #7fc4e8; --s5: #b8992a;
  --s6: #6b6b6b; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #14181c; --text: #e4e8ec; --dim: #98a4af;
  --line: #2e363e; --shade: #1d2329; --s0: #4c8fd0; --s1: #ff7a3d; --s2: #c77ddb; --s3: #7b8691; --s4: #a9dcf5;
  --s5: #d9c45a; --s6: #b0b0b0; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 3vw, 3rem) 3rem; max-width: 110rem; background: var(--page);
  color: var(--text); font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0; font-size: 1.05rem; }
section { margin-top: 2.2rem; }
.place { font-family: ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
header p, .hint { margin: .2rem 0 0; color: var(--dim); font-size: .87rem; }
.head { display: flex; flex-wrap: wrap; gap: .3rem .6rem; align-items: center; margin-bottom: .6rem; }
.head .hint { flex: 1; margin: 0; }
button, select, input { font: inherit; font-size: .87rem; color: inherit; background: var(--shade); min-width: 2.1rem;
  border: 1px solid var(--line); border-radius: 5px; padding: .2rem .55rem; max-width: 12rem; }
button { cursor: pointer; }
#bar { display: flex; gap: 1px; height: .8rem; margin: 1.2rem 0 .6rem; border-radius: 4px; overflow: hidden;
  background: var(--line); }
.legend, .groups { margin: 0; padding: 0; list-style: none; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; }
.legend i { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .4rem; }
#main .legend { margin-bottom: .5rem; font-size: .87rem; }
.fill { background: var(--of); }
.fill.hatched { background: repeating-linear-gradient(135deg, var(--of) 0 1.5px, transparent 1.5px 4px); }
.s0 { --of: var(--s0); } .s1 { --of: var(--s1); } .s2 { --of: var(--s2); } .s3 { --of: var(--s3); }
.s4 { --of: var(--s4); } .s5 { --of: var(--s5); } .s6 { --of: var(--s6); } .fill.line { --of: var(--line); }
#search { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin-top: 1.6rem; }
#search input { flex: 1 1 14rem; max-width: 26rem; }
#hits { flex: 1 1 8rem; margin: 0; overflow-wrap: anywhere; }
.gone { color: var(--s1); font-weight: 600; }
.groups li { display: grid; grid-template-columns: 6rem minmax(0, 1fr) minmax(0, 20rem); gap: .6rem; align-items: baseline;
  padding: .25rem 0; border-bottom: 1px solid var(--line); }
.groups button { max-width: none; text-align: left; overflow-wrap: anywhere; background: none; border: 0; padding: 0;
  font: .8rem/1.4 ui-monospace, "DejaVu Sans Mono", monospace; }
.groups button:hover { text-decoration: underline; }
.groups .hint { overflow-wrap: anywhere; }
a { color: var(--s0); }
#facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.2rem, 1fr)); gap: 1rem; margin: 1.4rem 0 0; }
#facts dt { color: var(--dim); font-size: .82rem; }
#facts dd { margin: 0; font-size: 1.3rem; white-space: nowrap; }
canvas { display: block; width: 100%; border-radius: 3px; }
#slots { cursor: crosshair; touch-action: pan-y; }
canvas:focus-visible { outline: 2px solid var(--s0); outline-offset: 2px; }
#tip { position: fixed; z-index: 1; display: none; max-width: min(34rem, 92vw); padding: .45rem .65rem;
  font-size: .85rem; background: var(--page); border: 1px solid var(--dim); border-radius: 6px;
  box-shadow: 0 4px 16px #0004; pointer-events: none; white-space: pre-wrap; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .87rem; table-layout: fixed; }
th, td { padding: .3rem .5rem; text-align: right; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
th.line { width: 6%; } th.ended { width: 18%; } th.host { width: 11%; } th.slot { width: 8%; } th.began { width: 12%; }
th.time { width: 8%; } th.cpu { width: 7%; } th.memory { width: 12%; } th.printed { width: 9%; } th.output { width: 9%; }
td.began, td.memory, td.output { white-space: normal; }
th { border-bottom: 1px solid var(--dim); font-weight: 600; }
.sorted th { cursor: pointer; user-select: none; }
th[aria-sort=descending]::after { content: " ▾"; } th[aria-sort=ascending]::after { content: " ▴"; }
.left { text-align: left; }
tbody { border-bottom: 1px solid var(--line); break-inside: avoid; }
:not(.filtered) > .runs table.short tbody:nth-of-type(n + 11), .filtered > .runs > button { display: none; }
@media print { :not(.filtered) > .runs:first-child table.short tbody:nth-of-type(n) { display: table-row-group; } }
td.what { padding-top: 0; text-align: left; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .8rem/1.4 ui-monospace, "DejaVu Sans Mono", monospace; }
td.what i { font-style: normal; color: var(--dim); }
td.what q { display: block; quotes: none; margin-top: .15rem; padding-left: .6rem; border-left: 2px solid var(--line);
  color: var(--dim); }
b.s1 { color: var(--s1); } b.s2 { color: var(--s2); } td b { font-weight: 600; }
@media (max-width: 1000px), print { table { font-size: .8rem; } th, td { padding: .3rem .25rem; } }
@media (max-width: 700px) { .wide, #hint { display: none; } th, td { padding: .3rem .2rem; } body { padding-top: 1rem; }
  #facts dd { font-size: 1.1rem; } .groups li { grid-template-columns: 4.5rem minmax(0, 1fr); gap: 0 .6rem; }
  .groups .hint { grid-column: 2; } #search input { flex-basis: 100%; max-width: none; }
  td.ended { white-space: normal; } #out { margin-left: auto; }
  th.line { width: 12%; } th.ended { width: 20%; } th.host { width: 14%; } th.began { width: 21%; } th.time { width: 17%; }
  th.output { width: 16%; } }
@media print { #search, .head button, .runs > button, #hint { display: none; } body { padding: 0; font-size: 10pt; }
  .chart { break-inside: avoid; } .head { break-after: avoid; } }
</style>
</head>
<body>
<header><h1 id="title">@TITLE@</h1><p class="place">@PLACE@$ @COMMAND@</p><p id="when">@WHEN@</p></header>
<main>
@FIGURES@
<div id="search" role="search" hidden>
<input id="text" type="search" placeholder="Command, line, last words" aria-label="Text to look for">
<select id="state" aria-label="State"></select>
<select id="host" aria-label="Host"></select>
<button id="clear" type="button">Clear</button><p class="hint" id="hits" aria-live="polite"></p></div>
<section class="runs" id="found" hidden></section>
<section class="chart" id="main" hidden><div class="head"><h2>Over time</h2>
<p class="hint" id="hint">Running jobs; below, the runs of each slot.
Drag to move, Ctrl + wheel or double click to zoom.</p>
<button id="out" aria-label="Zoom out">−</button><button id="in" aria-label="Zoom in">+</button>
<button id="all">All</button></div>
@KEY@
<canvas id="busy" role="img" aria-label="Running jobs over time"></canvas>
<canvas id="slots" tabindex="0" role="img" aria-label="Runs by slot and time"></canvas></section>
@GROUPS@
<div id="tables">@TABLES@</div>
</main>
<div id="tip"></div>
<script id="data" type="text/plain">@DATA@</script>
<script>
"use strict";
const get = id => document.getElementById(id);
const make = (tag, text = "", name = "") => Object.assign(document.createElement(tag), {textContent: text,
  className: name});
const number = n => n.toLocaleString("en-US");
const two = n => String(n).padStart(2, "0");

function duration(s) {              // as took() of runwait4.py
  if (s < .9995) return `${(s * 1000).toFixed(s < .00995 ? 1 : 0)} ms`;
  if (s < 9.95) return `${s.toFixed(1)}s`;
  const whole = Math.round(s);
  for (const [unit, inner, size, part] of [["d", "h", 86400, 3600], ["h", "m", 3600, 60], ["m", "s", 60, 1]])
    if (whole >= size) return `${Math.floor(whole / size)}${unit} ${two(Math.floor(whole % size / part))}${inner}`;
  return `${whole}s`;
}
function clock(t, step = 1, day = data.span > 86400) {          // as the clocks of the host that made the page
  const text = new Date((t + data.zone) * 1000).toISOString(), date = text.slice(5, 10);
  if (step >= 86400) return date;
  const time = text.slice(11, step < 1 ? 23 : step < 60 ? 19 : 16);
  return day ? `${date} ${time}` : time;
}

let data, view, colours;
let hits = null;                    // by run: 1 if it is found; null: no search
let typed = -Infinity;              // time of the last key press in the search

async function start() {
  document.querySelectorAll("#tables .runs").forEach(sortable);
  const packed = Uint8Array.from(atob(get("data").textContent), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  data = JSON.parse(await new Response(stream).text());
  get("main").hidden = get("search").hidden = false;
  unpack(); controls(); searching(); search(); draw(); goOn();
}

function unpack() {
  const count = data.began.length;
  data.start = Float64Array.from(data.began);
  data.took = Float64Array.from(data.took, t => t * data.tick);
  data.row = new Uint32Array(count);
  data.at = [0];
  let at = 0;
  data.sizes.forEach((size, row) => {
    data.row.fill(row, at, at + size);
    for (let i = at, t = 0; i < at + size; i++) data.start[i] = (t += data.began[i]) * data.tick;
    data.at.push(at += size);
  });
  for (let i = at, t = 0; i < count; i++) {         // in no track: their ends are unknown
    data.start[i] = (t += data.began[i]) * data.tick;
    data.row[i] = data.loose[i - at];
  }
  view = {from: 0, to: data.span, host: "", state: "", text: "", words: ""};
  Object.assign(view, kept("view"));
  if (view.to > data.span || view.whole) view.to = data.span;
}

function kept(name) {
  try { return JSON.parse(sessionStorage.getItem(`${location.pathname} ${name}`)) || {}; } catch { return {}; }
}
function keep(name, value) {
  try { sessionStorage.setItem(`${location.pathname} ${name}`, JSON.stringify(value)); } catch { }
}

const then = i => i in data.was ? `line ${data.was[i]} when it ran: ` : "";
const stateOf = i => data.endings[data.how[i]][0];
const isLoose = i => i >= data.at[data.rows.length];
const rows = () => data.rows.map((row, i) => i).filter(i => !view.host || data.rows[i][0] == view.host);
const LEFT = () => innerWidth < 700 ? 52 : 110;

function canvas(id, height) {
  const node = get(id), dpr = devicePixelRatio || 1, width = node.parentNode.clientWidth;
  node.style.height = `${height}px`;
  node.width = width * dpr; node.height = height * dpr;
  const c = node.getContext("2d");
  c.scale(dpr, dpr);
  c.font = "12px system-ui, 'DejaVu Sans', sans-serif";
  c.textBaseline = "middle";
  return [c, width];
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  const states = data.names.map((name, state) => `s${state}`);
  colours = Object.fromEntries([...states, "text", "dim", "line", "shade"].map(n => [n,
    style.getPropertyValue(`--${n}`)]));
  drawBusy(); drawSlots();
  view.whole = view.to >= data.span && view.from <= 0;
  keep("view", view);
}

function drawBusy() {
  const H = 96, [c, width] = canvas("busy", H), left = LEFT(), W = width - left, bins = data.busy, n = bins.length;
  const per = data.span / n, top = Math.max(1, ...bins), step = nice(top / 5), y = v => H - 6 - v / top * (H - 14);
  c.textAlign = "right";
  for (let v = 0; v <= top; v += Math.max(1, step)) {
    c.fillStyle = colours.line; c.fillRect(left, Math.round(y(v)), W, 1);
    c.fillStyle = colours.dim; c.fillText(number(v), left - 8, y(v));
  }
  c.save(); c.beginPath(); c.rect(left, 0, W, H); c.clip(); c.beginPath();
  const x = t => left + (t - view.from) / (view.to - view.from) * W;
  const a = Math.max(0, Math.floor(view.from / per) - 1), b = Math.min(n, Math.ceil(view.to / per) + 1);
  c.moveTo(x(a * per), y(0));
  for (let i = a; i < b; i++) { c.lineTo(x(i * per), y(bins[i])); c.lineTo(x((i + 1) * per), y(bins[i])); }
  c.lineTo(x(b * per), y(0));
  c.globalAlpha = .3; c.fillStyle = colours.s0; c.fill();
  c.globalAlpha = 1; c.strokeStyle = colours.s0; c.stroke(); c.restore();
}

function nice(rough) {
  const power = 10 ** Math.floor(Math.log10(rough)), part = rough / power;
  return (part <= 1 ? 1 : part <= 2 ? 2 : part <= 5 ? 5 : 10) * power;
}
function timeStep(rough) {
  return [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200,
    86400].find(s => s >= rough)
    || (rough < 1 ? nice(rough) : 86400 * nice(rough / 86400));
}

let rowHeight = 1, shown = [];
function drawSlots() {
  shown = rows();
  const room = matchMedia("print").matches ? 400 : 560;
  rowHeight = Math.min(18, room / Math.max(1, shown.length));
  const body = shown.length * rowHeight, [c, width] = canvas("slots", body + 26), left = LEFT(), W = width - left;
  const scale = W / (view.to - view.from), gap = rowHeight > 4 ? 1 : 0, thick = rowHeight - gap;
  const x = time => left + (time - view.from) * scale, DIM = data.names.length;
  const fills = [...data.names, "dim"].map(() => []), place = new Map(shown.map((row, position) => [row, position]));
  const kind = i => hits && !hits[i] ? DIM : stateOf(i), colour = state => state == DIM ? colours.line : colours[`s${state}`];
  shown.forEach((row, position) => {
    const y = position * rowHeight, last = data.at[row + 1];
    let column = -1, short = [];                    // how many runs of less than a pixel begin in one, by kind
    const flush = () => {
      const total = short.reduce((sum, count) => sum + count, 0), bad = (short[1] || 0) + (short[2] || 0);
      const share = bad && bad < total ? Math.max(.2, bad / total) : bad ? 1 : 0;
      const most = short.reduce((best, count, state) => state != 1 && state != 2 && count > (short[best] || 0) ? state : best, DIM);
      if (share < 1 && total) fills[most].push(column, y, 1, thick);
      if (bad) fills[short[1] ? 1 : 2].push(column, y + thick * (1 - share), 1, thick * share);
      short = [];
    };
    for (let i = seek(row, view.from); i < last && data.start[i] < view.to; i++) {
      const at = x(data.start[i]), w = data.took[i] * scale;
      if (w >= 1) { fills[kind(i)].push(at, y, w > 4 ? w - .6 : w, thick); continue; }
      if (Math.floor(at) != column) { flush(); column = Math.floor(at); }
      short[kind(i)] = (short[kind(i)] || 0) + 1;
    }
    flush();
  });
  c.fillStyle = colours.shade; c.fillRect(left, 0, W, body);
  c.save(); c.beginPath(); c.rect(left, 0, W, body); c.clip();
  data.loose.forEach((row, k) => {                  // below all others, which can have used the slots since
    const i = data.at[data.rows.length] + k;
    if (!place.has(row)) return;
    c.fillStyle = hatch(c, colour(kind(i)));
    c.fillRect(x(data.start[i]), place.get(row) * rowHeight, Math.max(data.took[i] * scale, 4), thick);
  });
  for (const state of [DIM, 0, ...data.names.keys()].filter((s, k) => k < 2 || s > 2).concat(2, 1)) {
    c.fillStyle = colour(state);                    // error and failed come last, on top
    for (let f = fills[state], k = 0; k < f.length; k += 4) c.fillRect(f[k], f[k + 1], f[k + 2], f[k + 3]);
  }
  c.restore();
  labels(c, left, body, width); axis(c, left, W, body);
}

function hatch(c, colour) {
  const tile = document.createElement("canvas"), t = tile.getContext("2d");
  tile.width = tile.height = 6;
  t.strokeStyle = colour; t.lineWidth = 1.6;
  t.beginPath();
  for (const x of [-6, 0, 6]) { t.moveTo(x, 6); t.lineTo(x + 6, 0); }
  t.stroke();
  return c.createPattern(tile, "repeat");
}

function labels(c, left, body, width) {
  c.textAlign = "right";
  let before = null, free = 0;
  const several = new Set(shown.map(row => data.rows[row][0])).size > 1;
  shown.forEach((row, position) => {
    const [host, slot] = data.rows[row], y = position * rowHeight;
    if (host != before && several) {
      if (position && rowHeight > 1) { c.fillStyle = colours.dim; c.fillRect(0, y - .5, width, .5); }
      if (y >= free) { text(host, y, left - 8); free = y + 14; }
    } else if (!several && y >= free) { text(slot, y, left - 8); free = y + 13; }
    before = host;
  });
  function text(name, y, room) {
    c.fillStyle = colours.dim;
    while (name.length > 1 && c.measureText(name).width > room) name = name.slice(0, -2) + "…";
    c.fillText(name, left - 8, y + Math.max(7, rowHeight / 2));
  }
}

function axis(c, left, W, body) {
  const span = view.to - view.from, step = timeStep(span / W * (data.span > 86400 ? 130 : 90)), shift = -data.zone;
  c.fillStyle = colours.dim; c.textAlign = "center";
  for (let t = Math.ceil((data.first + view.from - shift) / step) * step + shift; t <= data.first + view.to;
    t += step) {
    const x = left + (t - data.first - view.from) / span * W;
    c.fillRect(Math.round(x), body, 1, 5);
    if (x > left + 28 && x < left + W - 28) c.fillText(clock(t, step), x, body + 15);
  }
}

function seek(row, time) {          // the first cell of the row that ends after this time, or the one before
  let low = data.at[row], high = data.at[row + 1];
  while (low < high) { const mid = (low + high) >> 1; data.start[mid] < time ? low = mid + 1 : high = mid; }
  return Math.max(data.at[row], low - 1);
}

function zoom(factor, at = (view.from + view.to) / 2) {
  const span = Math.min(data.span, Math.max((view.to - view.from) * factor, Math.min(data.span, .01)));
  const from = at - (at - view.from) * span / (view.to - view.from);
  move(from, span);
}
function move(from, span = view.to - view.from) {
  view.from = Math.max(0, Math.min(from, data.span - span));
  view.to = view.from + span;
  get("tip").style.display = "none";
  requestAnimationFrame(draw);
}

function controls() {
  const node = get("slots");
  get("in").onclick = () => zoom(.5); get("out").onclick = () => zoom(2); get("all").onclick = () => move(0, data.span);
  const time = e => view.from + (e.offsetX - LEFT()) / (node.clientWidth - LEFT()) * (view.to - view.from);
  let held = null;
  node.onwheel = e => {
    if (e.ctrlKey) { e.preventDefault(); zoom(Math.exp(e.deltaY / 200), time(e)); }
    else if (e.deltaX) { e.preventDefault(); move(view.from + e.deltaX / node.clientWidth * (view.to - view.from)); }
  };
  node.ondblclick = e => zoom(.25, time(e));
  node.onpointerdown = e => { held = {x: e.offsetX, from: view.from}; node.setPointerCapture(e.pointerId); point(e,
    time(e)); };
  node.onpointerup = node.onpointercancel = () => held = null;
  node.onpointerleave = () => get("tip").style.display = "none";
  node.onpointermove = e => held && Math.abs(e.offsetX - held.x) > 3
    ? move(held.from - (e.offsetX - held.x) / (node.clientWidth - LEFT()) * (view.to - view.from)) : point(e, time(e));
  node.onkeydown = e => {
    const span = view.to - view.from;
    const act = {"+": () => zoom(.5), "-": () => zoom(2), "0": () => move(0, data.span),
      ArrowLeft: () => move(view.from - span / 5), ArrowRight: () => move(view.from + span / 5)}[e.key];
    if (act) { e.preventDefault(); act(); }
  };
  addEventListener("resize", draw);
  addEventListener("beforeprint", draw); addEventListener("afterprint", draw);
  for (const query of ["print", "(prefers-color-scheme: dark)"]) matchMedia(query).addEventListener("change", draw);
}

function point(e, time) {           // show the run under the pointer
  const tip = get("tip"), row = shown[Math.floor(e.offsetY / rowHeight)],
    near = 3 / get("slots").clientWidth * (view.to - view.from);
  let best = -1;
  if (row !== undefined) for (let i = seek(row, time - near);
    i < data.at[row + 1] && data.start[i] <= time + near; i++)
    if (data.start[i] + data.took[i] >= time - near && (best < 0 || data.start[i] <= time)) best = i;
  const loose = best < 0 ? data.loose.findLastIndex((other, k) => other === row && touches(data.at[data.rows.length] + k)) : -1;
  if (loose >= 0) best = data.at[data.rows.length] + loose;
  function touches(i) { return data.start[i] <= time + near && data.start[i] + data.took[i] >= time - near; }
  tip.style.display = best < 0 ? "none" : "block";
  if (best < 0) return;
  const [host, slot] = data.rows[row], [state, how] = data.endings[data.how[best]], words = data.groups[data.group[best]];
  tip.replaceChildren(make("b", `line ${data.line[best]}: ${data.names[state]}`, `s${state}`),
    how == data.names[state] ? "" : ` (${how})`,
    `\n${host}, slot ${slot} · ${clock(data.first + data.start[best])} · ${
      isLoose(best) ? `end unknown, last heard of at ${clock(data.first + data.start[best] + data.took[best])}`
        : duration(data.took[best])}`,
    `\n${then(best)}${data.commands[best].slice(0, 400)}`, words ? `\n${words}` : "");
  tip.style.left = `${Math.max(4, Math.min(e.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
  const below = e.clientY + 18, fits = below + tip.offsetHeight < innerHeight;
  tip.style.top = `${fits ? below : e.clientY - tip.offsetHeight - 10}px`;
}

function searching() {
  const options = (id, all, values) => {
    get(id).append(...["", ...values].map(value => Object.assign(make("option", value || all), {value})));
    get(id).hidden = values.length < 2;
    if (!values.includes(view[id])) view[id] = "";
    get(id).value = view[id];
    get(id).onchange = () => { view[id] = get(id).value; changed(); };
  };
  const changed = () => { search(); requestAnimationFrame(draw); };
  const bodies = [...document.querySelectorAll("#tables tbody")], states = new Set(bodies.map(body => body.dataset.state));
  for (const [state] of data.endings) states.add(data.names[state]);
  options("state", "All states", [...states]);
  options("host", "All hosts", [...new Set(data.rows.map(row => row[0]))]);
  get("text").value = view.text;
  if (view.typing) get("text").focus();
  get("text").oninput = () => { view.text = get("text").value; typed = performance.now(); changed(); };
  get("text").onfocus = get("text").onblur = () => { view.typing = document.activeElement == get("text"); keep("view", view); };
  get("clear").onclick = () => {
    Object.assign(view, {text: "", state: "", host: "", words: ""});
    for (const id of ["text", "state", "host"]) get(id).value = "";
    changed();
  };
  for (const button of document.querySelectorAll(".groups button")) button.onclick = () => {
    view.words = data.groups[button.dataset.group]; changed(); get("search").scrollIntoView();
  };
}

function search() {                 // find runs by text, state, host and group; dim and hide all others
  const text = view.text.trim().toLowerCase(), group = data.groups.indexOf(view.words);
  const wanted = text || view.state || view.host || group >= 0;
  get("clear").hidden = get("found").hidden = !wanted;
  get("tables").className = wanted ? "filtered" : "";
  for (const section of document.querySelectorAll("#tables .runs")) {
    let any = false;
    for (const body of section.querySelectorAll("tbody")) {
      const {state, host, group: its} = body.dataset;
      body.hidden = wanted && !((!view.state || state == view.state) && (!view.host || host == view.host)
        && (group < 0 || its === String(group)) && textOfRow(body).includes(text));
      any ||= !body.hidden;
    }
    section.hidden = !any;
  }
  hits = wanted ? new Uint8Array(data.how.length) : null;
  get("hits").textContent = "";
  get("found").replaceChildren();
  if (!wanted) return;
  const found = [];
  for (let i = 0; i < hits.length; i++) {
    const host = data.rows[data.row[i]][0];
    if ((view.state && data.names[stateOf(i)] != view.state) || (view.host && host != view.host)) continue;
    if ((group >= 0 && data.group[i] !== group) || !textOf(i).includes(text)) continue;
    hits[i] = 1; found.push(i);
  }
  get("hits").textContent = `${number(found.length)} of ${number(hits.length)} runs${group < 0 ? "" : `: ${view.words}`}`;
  tell(found.sort((a, b) => data.start[b] - data.start[a]).slice(0, 200), found.length);
}

function textOf(i) {
  data.texts ||= [];
  return data.texts[i] ||= [data.line[i], then(i), data.endings[data.how[i]][1], ...data.rows[data.row[i]], data.commands[i],
    data.groups[data.group[i]] || ""].join("\n").toLowerCase();
}
const textOfRow = body => body.text ||= [...body.querySelectorAll("td")].map(cell => cell.textContent).join("\n").toLowerCase();

function tell(runs, total) {        // show a table of the runs that were found
  const part = (name, nodes, kind = "") => { const node = make(name, "", kind); node.append(...nodes); return node; };
  const heads = [["Line", "line"], ["Ended", "left ended"], ["Host", "left host"], ["Slot", "left slot wide"],
    ["Began", "began"], ["Time", "time"], ["Output", "left output"]].slice(0, Object.keys(data.files).length ? 7 : 6);
  const body = i => {
    const [state, how] = data.endings[data.how[i]], [host, slot] = data.rows[data.row[i]];
    const took = isLoose(i) ? -1 : data.took[i], links = (data.files[i] || []).flatMap(name =>
      [Object.assign(make("a", name.slice(name.lastIndexOf("."))), {href: data.base + name}), " "]);
    const cells = [[data.line[i]], [make("b", how, `s${state}`), how], [host], [slot],
      [clock(data.first + data.start[i]), data.start[i]], [took < 0 ? "" : duration(took), took], [links, links.length]];
    const first = part("tr", heads.map(([, kind], k) => {
      const [content, key = content] = cells[k], cell = part("td", [].concat(content), kind);
      cell.dataset.key = key;
      return cell;
    }));
    const what = part("td", [make("i", then(i)), data.commands[i].slice(0, 500)], "what");
    what.colSpan = heads.length;
    if (i in data.group) what.append(make("q", data.groups[data.group[i]]));
    return part("tbody", [first, part("tr", [what])]);
  };
  const table = part("table", [part("thead", [part("tr", heads.map(([name, kind]) => make("th", name, kind)))]),
    ...runs.map(body)]);
  const count = total > runs.length ? `${number(runs.length)} of ${number(total)}` : number(total);
  get("found").replaceChildren(part("div", [make("h2", "Runs found"), make("p", count, "hint")], "head"),
    part("div", [table], "scroll"));
  sortable(get("found"));
}

function goOn() {                   // load the next page; report it when none is written
  if (!data.pause) return;
  const now = Date.now() / 1000, before = kept("made");
  // the clock of the host that writes may be another one: it counts only when a page is seen for the first time
  const since = before.made == data.made ? before.since : before.made ? now : Math.min(now, data.made);
  keep("made", {made: data.made, since});
  if (now - since > 3 * data.pause + 20) {
    get("live").textContent = `; nothing new for ${duration(now - since)}: the program that wrote it has exited`;
    get("live").className = "gone";
  }
  setInterval(() => { if (performance.now() - typed > 5000) location.reload(); }, data.pause * 1000);
}

function sortable(section) {
  const table = section.querySelector("table"), heads = [...table.querySelectorAll("th")], bodies = [...table.tBodies];
  const more = make("button", `Show all ${bodies.length}`);
  more.onclick = () => { table.classList.remove("short"); more.remove(); };
  if (bodies.length > 10) { table.classList.add("short"); section.append(more); }
  table.classList.add("sorted");
  heads.forEach((head, i) => {
    const key = body => { const text = body.rows[0].cells[i].dataset.key; return isNaN(text) ? text : +text; };
    head.tabIndex = 0;
    head.onkeydown = e => e.key == "Enter" && head.click();
    head.onclick = () => {
      const up = head.ariaSort == "descending" || !head.ariaSort && i < 4, sign = up ? 1 : -1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      bodies.sort((a, b) => { const x = key(a), y = key(b); return sign * (x < y ? -1 : x > y ? 1 : 0); });
      table.append(...bodies);
    };
  });
}

start().catch(error => get("when").textContent += ` · this browser cannot draw the pictures: ${error.message}`);
</script>
</body>
</html>
"""     # noqa: E501  (a page, not Python)


if __name__ == "__main__":
    exit_now(main())
