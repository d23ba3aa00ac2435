#!/usr/bin/env python3
"""runwait4 - look at a job file of runmaker4: wait for its jobs, show progress, tell what runs, draw what ran.

It never writes to the file.  A line `r` that nobody holds locked is an orphan, and counts as an error.

The file reads top-down: the command line, waiting, progress, the journal, what runs, what failed, statistics, the job
log, the timeline, the report, the program, the page of the report.
"""
from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)    # Ctrl-C during what follows: no traceback

import argparse
import base64
import bisect
import contextlib
import heapq
import itertools
import json
import math
import operator
import os
import re
import stat
import time
import zlib
from array import array
from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Callable, Collection, Iterable, Iterator, Sequence, TypeVar

from runmaker4 import (ERROR, FAILED, REFRESH_BYTE, TOLD, Counts, JobFile, JobLog, Line, Pace, Parser, Problem, Survey,
                       add_help, check_lines, check_mount, counts, exit_on, given_name, human_time, job_file, leave,
                       lock, name_lines, open_job_file, plural, printable, put, reason, run_main, show, unlock, warn,
                       when_used)

html, secrets = map(when_used, ("html", "secrets"))

PROG = "runwait4.py"
T = TypeVar("T")


# ======== The command line ============================================================================================


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options.  Raises Problem."""
    parser = Parser(
        PROG, example=f"Wait until no job is new or running any more, watch meanwhile; count the jobs:\n"
                      f"    {PROG} --progress runs.txt && echo all have ended\n"
                      f"    {PROG} --status runs.txt",
        usage=f"[options] FILE\n       {PROG} --outdir DIR|--joblog LOG --timeline OUT.json",
        epilog="Lines on hold are not waited for; lines r that nobody runs any more are errors.\n"
               "Exit status: 0 when the jobs have ended, or what was asked for is printed (with\n"
               "-e: and all jobs are done), else 1; 1 when a failed `#RUN barrier check` keeps\n"
               "new ones from being run; 2 bad usage.")
    add = parser.add_argument_group("what to do").add_argument
    add("file", metavar="FILE", nargs="?", help="the job file")
    add("-p", "--progress", action="store_true",
        help="a bar: redrawn in place with the time left on a terminal, a line per change elsewhere")
    add("-e", "--use-exit-status", action="store_true",
        help="exit 0 only if every job is done, or on hold; with --status that is judged\n"
             "now: new and running jobs are not done")
    add("--status", action="store_true",
        help="print how many jobs are in which state and what runs, and exit;\n"
             "with --outdir also where, since when, jobs per hour and the time left")
    add("--json", action="store_true", help="with --status: as JSON")
    add("--failed", action="store_true",
        help="with --outdir: print each line that is ! or e or left behind, how and where it\n"
             "ended, and what it printed last; and exit")
    add("--stats", action="store_true",
        help="with --outdir: print run times, CPU use and memory per host, and exit (FILE may\nbe left out)")
    add("--outdir", type=given_name, metavar="DIR", help="the --outdir of runmaker4.py, for what its journal tells")
    add_help(add)
    add = parser.add_argument_group("drawing what was run").add_argument
    add("--joblog", type=given_name, metavar="LOG", help="a job log of runmaker4.py --joblog, or of GNU parallel")
    add("--timeline", type=given_name, metavar="OUT.json",
        help="write its runs, or those of --outdir, as trace events, for Perfetto\n"
             "(ui.perfetto.dev) or chrome://tracing: a process for each host, a thread for\neach slot")
    add("--report", type=given_name, metavar="OUT.html",
        help="write a page about the same for any browser; with --progress again and again\n"
             "while the jobs of FILE run")
    options = parser.parse_args(argv)
    check_options(options, parser)
    return options


def check_options(options: argparse.Namespace, parser: Parser) -> None:
    """Refuse what does not go together.  Raises Problem."""
    if options.report is not None:
        check_report_options(options, parser)
        return
    if options.joblog is not None and options.timeline is None:
        parser.error("--joblog goes with --timeline or --report")
    if options.timeline is not None and (options.joblog is None) == (options.outdir is None):
        parser.error("--timeline goes with --joblog, or with --outdir")
    if options.timeline is None and options.file is None and not options.stats:
        parser.error("the following arguments are required: FILE")
    if options.timeline is not None and (options.file is not None or options.progress or options.use_exit_status
                                         or options.status or options.failed or options.stats):
        parser.error("--timeline goes with --joblog or --outdir only")
    if options.json and not options.status:
        parser.error("--json goes with --status")
    told = [name for name in ("progress", "status", "failed", "stats") if vars(options)[name]]
    if len(told) > 1:
        parser.error(f"--{told[0]} and --{told[1]} do not go together")
    if options.stats and options.use_exit_status:
        parser.error("--stats and -e do not go together")
    if options.outdir is None and (options.failed or options.stats):
        parser.error(f"--{told[0]} goes with --outdir only")
    if options.outdir is not None and told in ([], ["progress"]) and options.timeline is None:
        parser.error("--outdir goes with --status, --failed, --stats, --timeline or --report")


def check_report_options(options: argparse.Namespace, parser: Parser) -> None:
    """Refuse what does not go with --report.  Raises Problem."""
    if (options.joblog is None) == (options.outdir is None):
        parser.error("--report needs --outdir or --joblog, one of them")
    if (options.timeline is not None or options.status or options.json or options.use_exit_status or options.failed
            or options.stats):
        parser.error("--report goes with no other option but --progress")
    if options.progress and options.file is None:
        parser.error("--report --progress needs FILE")


# ======== Waiting =====================================================================================================


class Watcher:
    """Looks at the job file again and again, but never spends more than a twentieth of the CPU's time on it."""
    PATIENCE = 5.0              # seconds for which the file may be away: editors replace it
    IDLE = 30.0                 # seconds for which nobody has run new jobs until that is said

    def __init__(self, path: str) -> None:
        """Raises Problem."""
        os.close(open_job_file(path, os.O_RDONLY))
        self.path = path
        mount = check_mount(path, single_host=True, say=warn)
        self.file = JobFile(path, say=lambda text: None, mount=mount, read_only=True)
        self.pause = 5.0 if mount.network else 0.2
        self.pace = Pace()
        self.seen: Callable[[Survey], None] = lambda found: None    # called with each look of wait()
        self.stopped = ""       # why what is new will not be run, if nobody runs it

    def look(self) -> Survey:
        """What the file holds now.  Raises Problem."""
        with self.pace:
            return self._patiently(self.file.survey)

    def _patiently(self, read: Callable[[], T]) -> T:
        """What this finds in the file; the file may be away for a while.  Raises Problem."""
        start = time.monotonic()
        while True:
            try:
                return read()
            except OSError as error:
                if time.monotonic() - start > self.PATIENCE:
                    raise Problem(f"{self.path}: {reason(error)}") from None
            time.sleep(0.1)

    def lines(self, states: bytes) -> list[Line]:
        """The lines in these states.  Raises Problem."""
        return self._patiently(lambda: list(self.file.lines(states)))

    def sure_look(self) -> Survey:
        """The same, with orphans told from running jobs, and no file that an editor is about to fill.

        That takes three looks, one second apart, if there are any.
        """
        while (found := self.look()).unsure:
            time.sleep(self.pause)
        return found

    def wait(self, show: Callable[[Counts], None]) -> Counts:
        """Wait until no job is new or running, or `stopped` says why new ones stay so; show(counts) after each look."""
        while True:
            found = self.look()
            now = counts(found)
            show(now)
            self.seen(found)
            before, self.stopped = self.stopped, self.why_stopped(now)
            ended = not now.new and not now.running and not found.unsure
            if ended or self.stopped and self.stopped == before:
                return now
            time.sleep(max(self.pause, self.pace.rest(20)))

    def why_stopped(self, now: Counts) -> str:
        """What keeps the new jobs from being run, if it is said twice: a job may have begun since the look."""
        return self._patiently(self.file.stopped_by) if now.new and not now.running else ""

    def idle(self, now: Counts) -> str:
        """That nobody runs the new jobs, if nobody has for a while: each claim and each result changes the file."""
        if not now.new or now.running or time.time() - self._patiently(self.file.signature)[3] / 1e9 < self.IDLE:
            return ""
        return f"{now.new} new, and nobody runs them (start runmaker4.py)"


# ======== Progress ====================================================================================================


def bar(now: Counts, width: int) -> str:
    """'========>>>>    ': done =, error e, failed !, running >."""
    text, seen = "", 0
    for count, mark in ((now.done, "="), (now.error, "e"), (now.failed, "!"), (now.running, ">")):
        seen += count
        text += mark * (seen * width // max(now.all, 1) - len(text))
    return text.ljust(width)


def progress_line(now: Counts, width: int = 16) -> str:
    """'progress:   2 of   4 jobs processed, 0 errors [========>>>>    ]'"""
    return f"progress: {now.processed:3} of {now.all:3} jobs processed, {now.bad} errors [{bar(now, width)}]"


class PipeProgress:
    """A line per change, at most one a second; the last always."""

    def __init__(self) -> None:
        self.printed = ""
        self.when = -1.0
        self.line = ""

    def show(self, now: Counts) -> None:
        self.line = progress_line(now)
        if time.monotonic() - self.when >= 1.0:
            self.close()

    def close(self) -> None:
        """Print what is new."""
        if self.line != self.printed:
            put(f"{self.line}\n".encode())
            self.printed, self.when = self.line, time.monotonic()


class TerminalProgress:
    """One line, redrawn in place, as wide as fits, with rate and time left by what was seen lately."""
    CLEAR = "\r\x1b[K"
    WINDOW, CHANGES = 300.0, 20     # seconds and changes: both at least, if there were so many, make up the rate
    WIDEST = 60                 # characters of the bar

    def __init__(self, put: Callable[[bytes], None] = put, clock: Callable[[], float] = time.monotonic) -> None:
        self.put, self.clock = put, clock
        self.seen: deque[tuple[float, int]] = deque()       # when how many were processed; an entry per change

    def show(self, now: Counts) -> None:
        clock = self.clock()
        if not self.seen or now.processed != self.seen[-1][1]:
            self.seen.append((clock, now.processed))
        while len(self.seen) > self.CHANGES and clock - self.seen[0][0] > self.WINDOW:
            self.seen.popleft()
        columns = os.get_terminal_size(1).columns or 80     # 0: it does not tell (ssh -tt, serial lines)
        self.put((self.CLEAR + self.fitted(now, columns)).encode())

    def fitted(self, now: Counts, columns: int) -> str:
        """The fullest text that fits, with a bar that fills the rest."""
        texts = (progress_line(now, 0) + self.estimate(now), progress_line(now, 0),
                 f"{now.processed}/{now.all}, {now.bad} errors []")
        text = next((text for text in texts if len(text) + 8 < columns), texts[-1])
        width = min(columns - 1 - len(text), self.WIDEST)
        return text.replace("[]", f"[{bar(now, width)}]" if width > 0 else "")[:columns - 1]

    def estimate(self, now: Counts) -> str:
        """' 1.2/s, 3m 20s left'"""
        first, before = self.seen[0]
        seconds = self.clock() - first
        if now.processed <= before or seconds <= 0:
            return ""
        rate = (now.processed - before) / seconds
        pace = f"{rate:.1f}/s" if rate >= 0.1 else f"{rate * 3600:.1f}/h"
        return f" {pace}, {human_time((now.all - now.processed) / rate)} left"

    def close(self) -> None:
        """Leave the last line where it is."""
        self.put(b"\n")


# ======== The journal =================================================================================================
#
# `runmaker4.py --outdir DIR` keeps DIR/journal: JSON Lines, an object when a run starts, when it ends, and when an
# output file of an earlier run gets another name.  A start may stand behind its own end.  Of a run only its name, and
# where it started, are kept until it has ended and no start of it can come any more.

STATE_NAMES = {"d": "done", "!": "failed", "e": "error", ".": "put back", "r": "running", "x": "cancelled"}


def refuse_special(path: str, hint: str) -> None:
    """Refuse a directory, and what to open would wait for somebody.  Raises Problem."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise Problem(f"{path}: is {'a directory' if os.path.isdir(path) else 'not a regular file'} ({hint})")


@dataclass(eq=False)
class Run:
    """A run of a job.  One that has not ended has no `ended`, `seconds`, `cpu` and `memory`, and no `state`."""
    __slots__ = ("run", "line", "command", "host", "slot", "pid", "began", "ended", "state", "exit", "signal", "cause",
                 "seconds", "cpu", "memory", "bytes", "files")
    run: str                    # unique for ever
    line: int                   # where the job stood when that was written
    command: bytes
    host: str
    slot: str
    pid: int                    # 0: it could not be started
    began: float                # seconds since 1970, by its host's clock, as all times
    ended: float | None
    state: str                  # d ! e, x where it was cancelled, . where a stopped job was put back
    exit: int                   # -1: it has none
    signal: int
    cause: str                  # "", "timeout", "cancelled", "stopped" or "lost"
    seconds: float | None
    cpu: float | None           # seconds; None: nobody knows
    memory: int | None          # bytes at the peak; None: nobody knows
    bytes: int                  # printed
    files: list[str]            # what it printed: names in DIR, as they are now


class JournalReader:
    """The runs in a journal, as often as one likes to go through them; what was added since it was opened is left."""
    HEAD = re.compile(rb'\{"time": (\d{1,11}(?:\.\d{1,9})?), "event": "(start|end)", "run": "([ !#-[\]-~]{1,300})", ')
    MOVED = re.compile(rb'"event": ?"moved"')
    BOTH = operator.itemgetter("time", "run", "line", "command", "host", "slot", "pid")
    END = operator.itemgetter("state", "exit", "signal", "cause", "seconds", "cpu", "memory", "bytes", "files")
    OPEN_END = "", -1, 0, "", None, None, None, 0, ()
    STATES = frozenset(STATE_NAMES) - {"r"}     # of what has ended
    DECODE = staticmethod(json.JSONDecoder().scan_once)
    LONGEST = 1 << 23           # bytes of a line: no command is so long
    BLOCK = 1 << 17             # bytes that are read at a time
    CHUNK = 1 << 22             # bytes that are searched for moved files at a time
    OPEN, RECENT = 500_000, 50_000      # runs that may be open at a time; ended ones that are remembered at least
    LATEST = 10 ** 10           # seconds since 1970
    NAMED = 9                   # how many lines that make no sense are kept for the message

    def __init__(self, directory: str, say: Callable[[str], None]) -> None:
        """Raises Problem."""
        self.path, self.say = os.path.join(directory, "journal"), say
        try:
            if not os.path.isdir(directory):
                os.stat(directory)
                raise Problem(f"{directory}: is not a directory (the --outdir of runmaker4.py is wanted)")
            refuse_special(self.path, "a journal is wanted")
            self.file = open(self.path, "rb")
            self.size = self._fresh_size()
        except FileNotFoundError:
            missing = ("has no journal (nothing was run with it yet, or by an older version)"
                       if os.path.isdir(directory) else "no such directory (the --outdir of runmaker4.py is wanted)")
            raise Problem(f"{directory}: {missing}") from None
        except OSError as error:
            raise Problem(f"{self.path}: {reason(error)} (it must be readable)") from None

    def _fresh_size(self) -> int:
        """How long it is; NFS has to be asked by a lock for what other hosts have written."""
        fd = self.file.fileno()
        with contextlib.suppress(OSError):
            if lock(fd, REFRESH_BYTE, shared=True):
                unlock(fd, REFRESH_BYTE)
        return os.fstat(fd).st_size

    def __iter__(self) -> Iterator[Run]:
        """Each run once, as it ends, and then the runs that have not ended.  Raises Problem."""
        with self._reading():
            moves = self._moves()
            for at, line, run in self._ends():
                if run := run or self._read(line):
                    run.files = [moves.now(name, at) for name in run.files] if moves.count else run.files
                    yield run
            yield from self._open_runs()
        self._tell(moves.full)

    def overview(self) -> tuple[list[Run], list[float]]:
        """The runs that have not ended, and when the last ones ended that did.  Raises Problem.

        Ends are not parsed, nor are starts that have one: it takes a third of the time.
        """
        with self._reading():
            ends = deque(maxlen=self.RECENT)
            for _, line, run in self._ends():
                if b'"state": "."' not in line:             # put back: its job is as new as it was
                    ends.append(run.ended if run else float(self.HEAD.match(line)[1]))
            running = list(self._open_runs())
        self._tell()
        return running, list(ends)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """A walk through the file.  Raises Problem."""
        self.open: dict[str, int] = {}      # by run: where its start stands
        self.forgotten = 0                  # open runs that were too many
        self.recent: set[str] = set()       # what has ended last, and before that: starts may still come
        self.older: set[str] = set()
        self.number = 0                     # of the line
        self.odd = 0                        # lines that make no sense
        self.first_odd: list[int] = []
        try:
            yield
        except OSError as error:
            raise Problem(f"{self.path}: {reason(error)}") from None

    def _tell(self, moves_full: bool = False) -> None:
        """Say what was left out."""
        if self.odd:
            self.say(f"{self.path}: {plural(self.odd, 'line')} left out: cut, or no lines of a journal "
                     f"({name_lines(self.first_odd)})")
        if self.forgotten:
            self.say(f"{self.path}: {plural(self.forgotten, 'run')} left out that started and did not end: too many")
        if moves_full:
            self.say(f"{self.path}: tells of too many older output files: some are not found")

    def latest(self) -> set[bytes]:
        """Commands of the last runs, a few.  Raises Problem."""
        with self._reading():
            self.file.seek(max(0, self.size - (1 << 16)))
            lines = self.file.read(1 << 16).split(b"\n")[:-1]
            return {run.command for run in map(self._read, lines[-25:]) if run}

    # -- starts and ends --------------------------------------------------------------------------------------------

    def _ends(self) -> Iterator[tuple[int, bytes, Run | None]]:
        """The first end of each run: where it stands, the line, and the run if the line had to be parsed."""
        for at, line in self._lines():
            head = self.HEAD.match(line)
            run = None if head else self._read(line)
            if not head and not run:
                continue
            name, ended = (head[3].decode(), head[2] == b"end") if head else (run.run, run.ended is not None)
            if not ended:
                self._start(name, at)
            elif self._end(name):
                yield at, line, run

    def _start(self, run: str, at: int) -> None:
        if run in self.recent or run in self.older:
            return
        if len(self.open) >= self.OPEN:
            self.forgotten += len(self.open)
            self.open.clear()
        self.open[run] = at

    def _end(self, run: str) -> bool:
        """Whether it is the first end of this run."""
        self.open.pop(run, None)
        if run in self.recent or run in self.older:
            return False
        self.recent.add(run)
        if len(self.recent) >= self.RECENT:
            self.recent, self.older = set(), self.recent
        return True

    def _open_runs(self) -> Iterator[Run]:
        """What has started and not ended."""
        for at in self.open.values():
            self.file.seek(at)
            run = self._read(self.file.readline(self.LONGEST).rstrip(b"\n"))
            if run:
                yield run

    # -- lines ------------------------------------------------------------------------------------------------------

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Where each whole line stands, and the line, without its newline."""
        self.file.seek(0)
        at, rest, whole = 0, b"", True          # whole: of the line that `rest` begins nothing was dropped
        while data := self.file.read(min(self.BLOCK, self.size - at - len(rest))):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self.number += 1
                if whole and len(line) < self.LONGEST:
                    yield at, line
                else:
                    self._note_odd()            # too long
                at, whole = at + len(line) + 1, True
            if not whole or len(rest) >= self.LONGEST:
                at, rest, whole = at + len(rest), b"", False
        if rest or not whole:                   # the last one, and cut
            self.number += 1
            self._note_odd()

    def _read(self, line: bytes) -> Run | None:
        """The run that the line is about, if it makes sense.  Events that we do not know do, but are about none."""
        try:
            text = line.decode()
            event, end = self.DECODE(text, 0)       # json.loads() takes half as long again
            if end != len(text):
                raise ValueError
            kind = event["event"]
            if kind in ("start", "end"):
                return self._run(event, kind == "end", text.isascii() and "\\u" not in text)
            if isinstance(kind, str):
                return None
        except (StopIteration, ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
            pass
        self._note_odd()
        return None

    def _run(self, event: dict[str, Any], ended: bool, plain: bool) -> Run:
        """The run of a start or an end.  Raises KeyError, TypeError, ValueError, ArithmeticError.

        plain: there are but ASCII characters in it; else one may be half a surrogate pair, a ValueError.
        """
        when, name, line, command, host, slot, pid = self.BOTH(event)
        state, code, number, cause, took, cpu, memory, printed, files = self.END(event) if ended else self.OPEN_END
        spent = took if ended else 0
        if not (type(name) is type(command) is type(host) is type(slot) is type(cause) is str
                and type(line) is type(pid) is type(code) is type(number) is type(printed) is int
                and (not ended or state in self.STATES)
                and 0 <= spent <= when <= self.LATEST and 0 <= line < self.LATEST and 0 <= pid < self.LATEST
                and -1 <= code < self.LATEST and 0 <= number < self.LATEST and 0 <= printed < 1 << 63
                and (cpu is None or 0 <= cpu <= self.LATEST) and (memory is None or 0 <= memory < 1 << 63)):
            raise ValueError
        if not plain:
            os.fsencode("".join((host, slot, cause, *files)))
        return Run(name, line, command.encode() if plain else os.fsencode(command), host, slot, pid,
                   when - spent, when if ended else None, state, code, number, cause, took, cpu, memory, printed,
                   [] if files == [] else list(map(os.fspath, files)))

    def _note_odd(self) -> None:
        self.odd += 1
        if self.odd <= self.NAMED:
            self.first_odd.append(self.number)

    def _moves(self) -> Moves:
        """What became of older output files.  A run's files are moved after its end, so this is read first."""
        moves, rest, at = Moves(), b"", 0
        self.file.seek(0)
        while data := self.file.read(min(self.CHUNK, self.size - at - len(rest))):
            block = rest + data
            whole = block.rfind(b"\n") + 1
            for match in self.MOVED.finditer(block, 0, whole):
                start = block.rfind(b"\n", 0, match.start()) + 1
                with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):   # _lines() finds it, too
                    event = json.loads(block[start:block.index(b"\n", match.end())])
                    if event["event"] == "moved":
                        moves.add(event["from"], event["to"], at + start)
            if len(block) - whole > self.LONGEST:
                whole = len(block)
            rest, at = block[whole:], at + whole
        return moves


class Moves:
    """Which output files have got which names, and where the journal says so."""
    MOST = 200_000

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[int, str]]] = {}
        self.count = 0
        self.full = False

    def add(self, old: str, new: str, at: int) -> None:
        """Places must come in order.  Raises TypeError, ValueError."""
        os.fsencode(new)            # half a surrogate pair is no name
        self.full = self.count >= self.MOST
        if not self.full:
            self.found.setdefault(old, []).append((at, new))
            self.count += 1

    def now(self, name: str, at: int) -> str:
        """What a file is called now that had this name at this place of the journal."""
        while later := self.found.get(name):
            index = bisect.bisect(later, (at, name))
            if index == len(later):
                break
            at, name = later[index]
        return name


def read_runs(directory: str, say: Callable[[str], None]) -> Iterator[Run]:
    """Each run of DIR/journal once, as it ends, and then those that have not ended.  Raises Problem.

    Lines that make no sense are skipped, and said in the end.
    """
    journal = JournalReader(directory, say)
    with journal.file:
        yield from journal


# ======== What runs ===================================================================================================


class LastRuns:
    """The last run of each of some lines: of the same command, and of those the one whose number is nearest."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.numbers: dict[bytes, list[int]] = {}           # of the lines, by command
        for number, command in sorted((line.number, line.command) for line in lines):
            self.numbers.setdefault(command, []).append(number)
        self.found: dict[int, Run] = {}                     # by number

    def offer(self, run: Run) -> None:
        """Here is a run, perhaps of one of them."""
        numbers = self.numbers.get(run.command, ())
        above = bisect.bisect_left(numbers, run.line)
        exact = above < len(numbers) and numbers[above] == run.line
        for number in numbers[above if exact else max(above - 1, 0):above + 1]:
            known = self.found.get(number)
            if known is None or (abs(known.line - number), -known.began) >= (abs(run.line - number), -run.began):
                self.found[number] = run


@dataclass
class Status:
    """How it is going."""
    found: Survey
    trouble: str                # why nobody runs what is new
    runs: dict[int, Run]        # of the lines that run, by their number, as far as known
    per_hour: float | None = None

    @property
    def left(self) -> float | None:
        """Seconds until all is done, if it goes on as lately."""
        now = counts(self.found)
        return (now.new + now.running) * 3600 / self.per_hour if self.per_hour and now.running else None

    def text(self, columns: float) -> Iterator[str]:
        """Line by line; the table is no wider than that."""
        now = counts(self.found)
        yield f"{now.all + now.held} jobs: " + ", ".join(f"{count} {name}" for name, count in asdict(now).items())
        if self.per_hour:
            yield f"{self.per_hour:.{0 if self.per_hour >= 10 else 1}f} jobs/h lately" + (
                f", {human_time(self.left)} left" if self.left is not None else "")
        if self.trouble:
            yield self.trouble
        rows = [("line", "host", "slot", "since", "command")]
        for mark, lines in ("", self.found.running), ("(orphan) ", self.found.orphans):
            for line in lines:
                run = self.runs.get(line.number)
                where = (run.host, run.slot, clock(run.began)) if run else ("-", "-", "-")
                rows.append((str(line.number), *where, mark + show(line.command)))
        if not self.runs:
            rows = [(row[0], row[-1]) for row in rows]
        if len(rows) > 1:
            yield from table(rows, columns, right=[0])

    def json(self) -> str:
        """All of it."""
        now = counts(self.found)
        return json.dumps({**asdict(now), "total": now.all + now.held, "jobs": list(map(self._job, self.found.running)),
                           "orphans": list(map(self._job, self.found.orphans)), "per_hour": self.per_hour,
                           "seconds_left": self.left, "trouble": self.trouble})

    def _job(self, line: Line) -> dict[str, Any]:
        run = self.runs.get(line.number)
        where = {"host": run.host, "slot": run.slot, "pid": run.pid, "start": run.began} if run else {}
        return {"line": line.number, "command": line.command.decode(errors="surrogateescape"), **where}


def clock(when: float) -> str:
    """'14:03:22' today, else 'Nov 20 14:03'."""
    then, today = time.localtime(when), time.localtime()
    return time.strftime("%H:%M:%S" if then[:3] == today[:3] else "%b %d %H:%M", then)


def width() -> float:
    """Columns that a line on stdout may have."""
    return (os.get_terminal_size(1).columns or 80) - 1 if os.isatty(1) else math.inf


def fitted(text: str, columns: float) -> str:
    """A text, cut to so many columns, without control characters."""
    text = printable(text)
    return text if len(text) <= columns else f"{text[:max(int(columns) - 3, 0)]}..."


def table(rows: Sequence[Sequence[str]], columns: float, right: Collection[int]) -> Iterator[str]:
    """Rows in columns, some of them to the right; the last has what is left.  In a pipe or file nothing is cut."""
    last, widest = len(rows[0]) - 1, 18 if columns < math.inf else math.inf
    widths = [max(len(fitted(row[index], widest)) for row in rows) for index in range(last)]
    widths.append(max(len(row[last]) for row in rows) if last in right else 0)
    for row in rows:
        cells = [fitted(cell, size or math.inf) for cell, size in zip(row, widths)]
        yield fitted("  ".join(cell.rjust(size) if index in right else cell.ljust(size)
                               for index, (cell, size) in enumerate(zip(cells, widths))), columns)


def rate_per_hour(ends: Sequence[float], now: float) -> float | None:
    """Jobs per hour: of the ones that ended in the last five minutes, or of the last 20 if that is more."""
    ends = sorted(ends)
    first = max(0, min(bisect.bisect(ends, now - TerminalProgress.WINDOW), len(ends) - TerminalProgress.CHANGES))
    lately = ends[first:]
    if len(lately) < 2:
        return None
    return (len(lately) - 1) * 3600 / max(now - lately[0], lately[-1] - lately[0], 0.001)


def say(text: str) -> None:
    """A message, on stderr."""
    warn(f"{PROG}: {text}")


def check_journal(journal: JournalReader, path: str) -> None:
    """Say so if its last runs are of no job in this file.  Raises Problem."""
    commands = itertools.islice(journal.latest(), 12)       # for few texts the file is searched fast
    texts = {blank + command + end for command in commands for blank in (b" ", b"\t") for end in (b"", b"\r")}
    with job_file(path):
        file = JobFile(path, say=say, read_only=True)
        file.follow_path()
        if texts and not next(file.lines_of(texts), None):
            say(f"{journal.path}: none of its last runs is of a line of {path} (is it of another job file?)")


def look(watcher: Watcher, outdir: str | None) -> Status:
    """How it is going now.  Raises Problem."""
    found = watcher.sure_look()
    now = counts(found)
    status = Status(found, watcher.why_stopped(now) or watcher.idle(now), {})
    if outdir is not None:
        journal = JournalReader(outdir, say)
        with journal.file:
            check_journal(journal, watcher.path)
            running, ends = journal.overview()
        last = LastRuns(found.running + found.orphans)
        for run in running:
            last.offer(run)
        status.runs = last.found
        status.per_hour = rate_per_hour(ends, time.time()) if now.running else None     # else it says nothing of today
    return status


# ======== What failed =================================================================================================


def how_ended(run: Run) -> str:
    """'exit 3', 'signal 9', 'timeout 10s', 'lost', ..."""
    if run.seconds is None:
        return "lost"
    if run.cause:
        return f"timeout {human_time(run.seconds)}" if run.cause == "timeout" else run.cause
    if run.signal:
        return f"signal {run.signal}"
    return f"exit {run.exit}" if run.exit >= 0 else "could not be started"


def human_size(size: float) -> str:
    """'812 B', '1.2 kB', '105 MB'."""
    units = iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 999.5 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.{1 if size < 9.95 and unit != 'B' else 0}f} {unit}"


class LastOutput:
    """The last lines in the output files of runs."""
    LINES, BYTES = 3, 1 << 14   # of each at most; only the ends of files are read
    WIDTH = 500                 # characters of a line, where it does not go to a terminal

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def of(self, run: Run) -> list[str]:
        """The last lines that it wrote to stderr, or else to stdout; or why they cannot be read."""
        trouble = []
        for name in sorted(run.files, key=lambda name: ".err" not in name):
            try:
                if lines := self._tail(name):
                    return [show(line[:4 * self.WIDTH]) for line in lines]
            except (OSError, ValueError) as error:          # ValueError: no file can have this name
                trouble.append(f"({name}: {reason(error) if isinstance(error, OSError) else 'no name of a file'})")
        return trouble

    def _tail(self, name: str) -> list[bytes]:
        """Its last lines that are not blank.  Raises OSError, ValueError."""
        if os.path.basename(name) != name:
            raise ValueError
        fd = os.open(os.path.join(self.directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        with open(fd, "rb") as file:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise ValueError
            file.seek(max(0, info.st_size - self.BYTES))
            lines = file.read(self.BYTES).split(b"\n")
        return [line for line in lines if line.strip()][-self.LINES:]


def explain(number: int, command: bytes, run: Run | None, output: LastOutput, columns: float) -> Iterator[str]:
    """Why a line failed, in a few lines."""
    if run is None:
        yield fitted(f"line {number}: no run of it is in the journal", columns)
    else:
        when = ([clock(run.ended), f"after {human_time(run.seconds)}"] if run.seconds is not None else
                [f"began {clock(run.began)}"])
        when += [human_size(run.memory)] if run.memory is not None else []
        yield fitted(f"line {number}: {how_ended(run)} on {run.host}, {', '.join(when)}", columns)
    yield fitted(f"    {show(command)}", columns)
    for line in output.of(run) if run else ():
        yield fitted(f"  | {line}", min(columns, LastOutput.WIDTH))


def tell_failed(watcher: Watcher, outdir: str) -> Counts:
    """Print why lines failed, in file order.  Raises Problem."""
    found = watcher.sure_look()
    journal = JournalReader(outdir, say)
    lines = sorted([*watcher.lines(FAILED + ERROR), *found.orphans], key=lambda line: line.number)
    last = LastRuns(lines)
    with journal.file:
        check_journal(journal, watcher.path)
        for run in journal if lines else ():
            if run.state != "d":
                last.offer(run)
    output, columns = LastOutput(outdir), width()
    for line in lines:
        put(os.fsencode("".join(f"{text}\n" for text in explain(line.number, line.command,
                                                                last.found.get(line.number), output, columns))))
    return counts(found)


# ======== Statistics ==================================================================================================


def quantiles(times: Iterable[float]) -> list[float]:
    """The median, the 90th percentile and the longest of some times; nothing if there are none."""
    in_order = sorted(times)
    return [in_order[math.ceil(len(in_order) * share) - 1] for share in (0.5, 0.9, 1)] if in_order else []


class HostStats:
    """What the runs of a host took."""

    def __init__(self) -> None:
        self.seconds = array("d")
        self.cpu = self.cpu_seconds = 0.0       # of the runs of which CPU time is known: this, and how long they took
        self.memory: int | None = None

    def add(self, run: Run) -> None:
        """A run has ended."""
        self.seconds.append(run.seconds)
        if run.cpu is not None:
            self.cpu += run.cpu
            self.cpu_seconds += run.seconds
        if run.memory is not None:
            self.memory = max(self.memory or 0, run.memory)

    def row(self, name: str) -> tuple[str, ...]:
        return (name, str(len(self.seconds)), *map(human_time, quantiles(self.seconds)),
                f"{100 * self.cpu / self.cpu_seconds:.0f}%" if self.cpu_seconds else "-",
                human_size(self.memory) if self.memory is not None else "-")


def tell_stats(outdir: str, path: str | None) -> None:
    """Print what runs took, per host and in all.  Raises Problem."""
    journal, hosts, whole = JournalReader(outdir, say), {}, HostStats()
    with journal.file:
        if path is not None:
            check_journal(journal, path)
        for run in journal:
            if run.seconds is not None:
                hosts.setdefault(run.host, HostStats()).add(run)
                whole.add(run)
    if not hosts:
        raise Problem(f"{journal.path}: tells of no run that has ended (nothing to count)")
    rows = [("host", "runs", "median", "90%", "longest", "CPU", "memory")]
    rows += [hosts[host].row(host) for host in sorted(hosts)]
    for line in table([*rows, whole.row("in all")], width(), right=range(1, 7)):
        put(os.fsencode(f"{line}\n"))


# ======== The job log =================================================================================================


@dataclass(eq=False)
class LoggedRun:
    """What a log says about one run of a job."""
    line: int                   # the job's line in the job file; GNU parallel: which job it was
    host: bytes
    began: int                  # microseconds since 1970
    took: int                   # microseconds, at least one: viewers take events that begin at once for nested ones
    exit_status: int            # -1: it ran into a time limit, or has none
    signal: int
    state: str                  # one of STATE_NAMES
    command: bytes
    slot: str = ""              # its name; "": nobody knows


class JobLogReader:
    """The runs in a job log, as often as one likes to go through them: of runmaker4's, and of GNU parallel's own."""
    LINE = re.compile(rb"(\d{1,15})\t([^\t]+)\t *(\d{1,10}(?:\.\d{1,9})?)\t *(\d{1,10}(?:\.\d{1,9})?)"
                      rb"\t[-\d.]+\t[-\d.]+\t(-?\d{1,9})\t(\d{1,9})\t(.*)\n", re.DOTALL)
    LONGEST = 1 << 20           # bytes of a line: no command is so long
    LATEST = 9 * 10 ** 15       # microseconds: viewers count nanoseconds in 64 bits
    NAMED = 9                   # how many lines that make no sense are kept for the message

    def __init__(self, path: str) -> None:
        """Raises Problem."""
        self.path = path
        self.odd = 0            # lines that make no sense, as of the last walk
        self.first_odd: list[int] = []
        try:
            refuse_special(path, "a job log is wanted")
            self.file = open(path, "rb")
        except OSError as error:
            raise Problem(f"{path}: {reason(error)} (a job log is wanted)") from None

    def __iter__(self) -> Iterator[LoggedRun]:
        """The runs that make sense, in the order of the lines.  Raises Problem."""
        self.odd, self.first_odd = 0, []
        try:
            self.file.seek(0)
            for number, line in enumerate(self._lines(), 1):
                run = self._read(line)
                if run:
                    yield run
                elif line != JobLog.HEADER:
                    self.odd += 1
                    if self.odd <= self.NAMED:
                        self.first_odd.append(number)
        except OSError as error:
            raise Problem(f"{self.path}: {reason(error)}") from None

    def _lines(self) -> Iterator[bytes]:
        """Line by line; of a line that is too long, and of a last line that is cut, a part without its newline."""
        while line := self.file.readline(self.LONGEST):
            yield line
            while line and not line.endswith(b"\n"):
                line = self.file.readline(self.LONGEST)

    def _read(self, line: bytes) -> LoggedRun | None:
        """What the line says, if it makes sense."""
        match = self.LINE.fullmatch(line)
        if not match:
            return None
        number, host, began, took, exit_status, signal_number, command = match.groups()
        code, ended_by = int(exit_status), int(signal_number)
        run = LoggedRun(int(number), host, round(float(began) * 1e6), round(float(took) * 1e6) or 1, code, ended_by,
                        self._state(code, ended_by), command)
        return run if run.began + run.took <= self.LATEST else None

    @staticmethod
    def _state(exit_status: int, signal_number: int) -> str:
        """What became of the job's line; jobs that are stopped die of these signals, others of others."""
        if signal_number in TOLD and exit_status != -1:
            return "e"
        return "!" if exit_status or signal_number else "d"


# ======== The timeline ================================================================================================
#
# Trace events (Trace Event Format, JSON object form), for Perfetto and chrome://tracing.  The job log does not tell on
# which slot a job ran, so that GNU parallel can read it; any track that was free will do.  The journal does; where two
# runners of a host have slots of one name, there are more tracks of this name.  Times are in microseconds.


@dataclass(frozen=True)
class Track:
    """A thread of the trace: a slot of a host.

    Perfetto looks for the name of a thread by `tid` alone, so no two tracks share one.  The thread whose `tid` is its
    `pid` counts as the main one, and is shown first: slot 1.
    """
    host: str
    name: str
    slot: int                   # from 1
    pid: int
    tid: int

    def metadata(self) -> Iterator[dict[str, Any]]:
        """The events that name it, and its host, and put them in order."""
        if self.slot == 1:
            yield self._event("process_name", name=self.host)
            yield self._event("process_sort_index", sort_index=self.pid)
        yield self._event("thread_name", name=self.name)
        yield self._event("thread_sort_index", sort_index=self.slot)

    def _event(self, event: str, **args: object) -> dict[str, Any]:
        return {"ph": "M", "name": event, "pid": self.pid, "tid": self.tid, "ts": 0, "args": args}


class Packing:
    """Puts the runs of one host on tracks, each on the first that is free when it begins.

    Times are logged in whole milliseconds, so a run may seem to begin before the one ends that it came after.  Then the
    earlier one is cut short: viewers cannot show events of one track that overlap.
    """
    ROUNDING = 1500             # microseconds by which neighbours may overlap

    def __init__(self, began: array[int], took: array[int]) -> None:
        """Of all runs, by index; place() changes what a run took."""
        self.began, self.took = began, took
        self.last: list[int] = []                   # the last run on each track
        self.busy: list[tuple[int, int]] = []       # heap: from when on a track may be free, the track
        self.free: list[int] = []                   # tracks that may be free now, sorted

    def place(self, run: int) -> int:
        """The track, from 0, for the next run; it must begin no earlier than those before it."""
        began, slack = self.began[run], self._slack(run)
        while self.busy and self.busy[0][0] <= began:
            bisect.insort(self.free, heapq.heappop(self.busy)[1])
        track = self._find(latest=began + slack)
        if track < len(self.last):
            before = self.last[track]
            self.took[before] = min(self.took[before], began - self.began[before])
            self.last[track] = run
        else:
            self.last.append(run)
        heapq.heappush(self.busy, (self._end(run) - slack, track))
        return track

    def _find(self, latest: int) -> int:
        """The first free track whose last run ends by then; a new one if there is none."""
        for position, track in enumerate(self.free):
            if self._end(self.last[track]) <= latest:
                return self.free.pop(position)
        return len(self.last)

    def _end(self, run: int) -> int:
        return self.began[run] + self.took[run]

    def _slack(self, run: int) -> int:
        """How far a run may overlap with a neighbour: by less than half of itself."""
        return min(self.ROUNDING, (self.took[run] - 1) // 2)


class JournalLog:
    """The runs in a journal that have ended, as a job log has them."""
    def __init__(self, journal: JournalReader) -> None:
        self.journal = journal

    def __iter__(self) -> Iterator[LoggedRun]:
        """Raises Problem."""
        for run in self.journal:
            if run.seconds is not None:
                yield LoggedRun(run.line, os.fsencode(run.host), round(run.began * 1e6), round(run.seconds * 1e6) or 1,
                                self._exit_status(run), run.signal, run.state, run.command, run.slot)

    @staticmethod
    def _exit_status(run: Run) -> int:
        """As GNU parallel has it: -1 after a timeout, 0 after any other signal."""
        if run.cause == "timeout":
            return -1
        return max(run.exit, 0) if run.signal else run.exit


class Timeline:
    """The runs of a log on their tracks.  It keeps times and tracks; the rest is read once more for the events."""
    HEAD = b'{"traceEvents":['
    ENCODE = json.JSONEncoder(separators=(",", ":")).encode
    NAME = 100                  # characters of a command that make the name of its event

    def __init__(self, log: Iterable[LoggedRun]) -> None:
        """log: gives the same runs each time.  Raises Problem."""
        self.log = log
        self.tracks: list[Track] = []
        self.began, self.took = array("q"), array("q")
        hosts: dict[bytes, dict[str, array[int]]] = {}      # of each slot the runs, by index
        for index, run in enumerate(log):
            self.began.append(run.began)
            self.took.append(run.took)
            hosts.setdefault(run.host, {}).setdefault(run.slot, array("q")).append(index)
        self.track_of = array("q", self.began)
        for host in sorted(hosts):
            self._pack(host, hosts[host])

    def _pack(self, host: bytes, slots: dict[str, array[int]]) -> None:
        """Give the runs of a host their tracks."""
        first, name = len(self.tracks), readable(host)
        for slot in sorted(slots, key=lambda slot: (len(slot), slot)):
            packing, before = Packing(self.began, self.took), len(self.tracks)
            for run in sorted(slots[slot], key=self.began.__getitem__):
                self.track_of[run] = before + packing.place(run)
            for number in range(1, len(packing.last) + 1):
                words = f"slot {printable(slot)}" + f" ({number})" * (number > 1) if slot else f"slot {number}"
                place = len(self.tracks) - first + 1
                self.tracks.append(Track(name, words, place, first + 1, first + place))

    def write(self, file: BinaryIO) -> None:
        """Write all as JSON, an event per line.  Raises OSError, Problem."""
        file.write(self.HEAD)
        for separator, event in zip(itertools.chain([b"\n"], itertools.repeat(b",\n")), self._events()):
            file.write(separator + self.ENCODE(event).encode())
        file.write(b"\n]}\n")

    def _events(self) -> Iterator[dict[str, Any]]:
        for track in self.tracks:
            yield from track.metadata()
        for track, took, run in zip(self.track_of, self.took, self.log):    # what was added to the log is left alone
            yield self._event(self.tracks[track], took, run)

    def _event(self, track: Track, took: int, run: LoggedRun) -> dict[str, Any]:
        """A complete event, as the format calls it."""
        command, state = readable(run.command), STATE_NAMES[run.state]
        name = command if len(command) <= self.NAME else f"{command[:self.NAME - 3]}..."
        args = {"command": command, "line": run.line, "state": state, "exit_status": run.exit_status,
                "signal": run.signal}
        return {"ph": "X", "name": name, "cat": state, "pid": track.pid, "tid": track.tid, "ts": run.began,
                "dur": took, "args": args}


def readable(data: bytes) -> str:
    """Bytes as text that every JSON reader takes: what is not UTF-8 is replaced.

    GNU parallel logs the newlines in a command as NULs.
    """
    return data.decode(errors="replace").replace("\0", "\n")


def refuse_foreign(path: str, what: str, head: bytes) -> None:
    """Refuse to replace a file that is not ours: ours begin with `head`, empty ones have nothing to lose.

    Raises Problem.
    """
    if re.match("/dev/(fd|std)|/proc/", path):          # `>>file` would be replaced, with what stands in it
        raise Problem(f"{path}: is no name of its own (give another name)")
    refuse_special(path, "give another name")
    try:
        with open(path, "rb") as file:
            found = file.read(len(head))
    except FileNotFoundError:
        return
    except OSError as error:
        raise Problem(f"{path}: {reason(error)} (give another name)") from None
    if found not in (b"", head):
        raise Problem(f"{path}: is no {what} of {PROG} (give another name)")


@contextlib.contextmanager
def replacing(path: str, what: str, head: bytes) -> Iterator[BinaryIO]:
    """A file to write, which becomes `path` at the end of the block; after an error nothing is left of it.

    What is there by that name must begin with `head`.  Raises Problem.
    """
    target = os.path.realpath(path)
    beside = os.path.join(os.path.dirname(target), f".{PROG}-{secrets.token_hex(8)}")
    try:
        refuse_foreign(path, what, head)
        with open(beside, "xb") as file:
            yield file
        os.replace(beside, target)
    except OSError as error:
        raise Problem(f"{path}: {reason(error)} (it must be a file that can be written)") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(beside)


def draw(log_path: str, out_path: str) -> None:
    """Write the timeline of a job log.  Raises Problem."""
    log = JobLogReader(log_path)
    with drawing(log, log_path, out_path):
        if log.odd:
            warn(f"{PROG}: {log_path}: {plural(log.odd, 'line')} left out: no lines of a job log "
                 f"({name_lines(log.first_odd)})")


def draw_journal(directory: str, out_path: str) -> None:
    """Write the timeline of a journal.  Raises Problem."""
    said: dict[str, None] = {}                      # it is read twice
    journal = JournalReader(directory, lambda text: said.setdefault(text))
    with journal.file, drawing(JournalLog(journal), journal.path, out_path):
        for text in said:
            say(text)


@contextlib.contextmanager
def drawing(log: Iterable[LoggedRun], log_path: str, out_path: str) -> Iterator[None]:
    """Read a log, and after the block write its timeline.  Raises Problem."""
    if os.path.exists(out_path) and os.path.samefile(log_path, out_path):
        raise Problem(f"{out_path}: is the {'job log' if isinstance(log, JobLogReader) else 'journal'} "
                      "(give another name)")
    with replacing(out_path, "timeline", Timeline.HEAD) as file:
        timeline = Timeline(log)
        if not timeline.tracks:
            raise Problem(f"{log_path}: has no line that tells of a run (a job log is wanted)"
                          if isinstance(log, JobLogReader) else f"{log_path}: tells of no run that has ended")
        yield
        timeline.write(file)


# ======== The report ==================================================================================================
#
# One page: PAGE, at the end of this file, with the data in it as compressed JSON.  Of all runs only columns of numbers
# are kept, and the commands compressed; whole runs only for the tables.  Where there are more runs than a screen has
# pixels, the short ones of a slot are put together: a cell of the timeline is one run, or some short ones.  Times are
# in microseconds.

STATES = "".join(STATE_NAMES)   # as the page numbers them


class Best:
    """The runs with the highest keys."""
    MOST = 200

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Run]] = []
        self.least = 0.0        # what a key must exceed

    def add(self, key: float, index: int, run: Run) -> None:
        """Take it; its key exceeds `least`."""
        heapq.heappush(self.heap, (key, index, run))
        if len(self.heap) > self.MOST:
            heapq.heappop(self.heap)
            self.least = self.heap[0][0]

    def runs(self) -> list[Run]:
        """The highest first."""
        return [run for _, _, run in sorted(self.heap, reverse=True)]


class Commands:
    """The commands of all runs, in their order, compressed."""
    BLOCK = 4096

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.last: list[bytes] = []

    def add(self, command: bytes) -> None:
        self.last.append(command)
        if len(self.last) == self.BLOCK:
            self.blocks.append(self._packed())
            self.last.clear()

    def _packed(self) -> bytes:
        return zlib.compress(b"\n".join([command.replace(b"\n", b"\0") for command in self.last]), 1)

    def pick(self, wanted: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """The commands with these numbers, each with its place in `wanted`; in any order."""
        in_order = sorted(zip(wanted, itertools.count()))
        for block, group in itertools.groupby(in_order, lambda pair: pair[0] // self.BLOCK):
            packed = self.blocks[block] if block < len(self.blocks) else self._packed()
            commands = zlib.decompress(packed).split(b"\n")
            for number, place in group:
                yield place, commands[number % self.BLOCK]


@dataclass(frozen=True)
class Row:
    """A slot of the timeline, and its runs in the order of their beginning."""
    host: str
    slot: str
    runs: array[int]


def with_lost(runs: Iterable[Run], found: Survey) -> Iterator[Run]:
    """These runs.  Of those that have not ended, which come last, all but the last of each running line are lost."""
    last, unended = LastRuns(found.running), []
    for run in runs:
        if run.seconds is not None:
            yield run
        else:
            last.offer(run)
            unended.append(run)
    alive = set(last.found.values())
    for run in unended:
        if run not in alive:
            run.state, run.cause = "e", "lost"
        yield run


class Gathered:
    """What the page tells of all runs."""
    def __init__(self, runs: Iterable[Run], until: float | None) -> None:
        """runs: whose times nobody knows come last.  until: seconds, when the picture ends, if not with the last event.
        """
        self.began, self.took, self.line, self.how = array("q"), array("q"), array("q"), array("i")
        self.commands = Commands()
        self.endings: dict[tuple[str, int, int, str], int] = {}
        self.cpu = self.memory = self.cpu_time = 0.0        # seconds of the CPU, bytes, seconds in which it was used
        self.failed, self.slowest, self.largest = Best(), Best(), Best()
        self.unended: list[int] = []
        self.ended = 0                                      # so many of the columns' entries are of known times
        self.groups: dict[tuple[str, str], array[int]] = {}
        for index, run in enumerate(runs):
            self._take(index, run)
        self.first = min(self.began, default=0)
        self.last = max(map(operator.add, self.began, self.took), default=0)
        if until is not None and self.unended:
            self.last = max(self.last, round(until * 1e6))
        for index in self.unended:
            self.took[index] = max(1, self.last - self.began[index])
        self.rows = list(self._rows())

    def _take(self, index: int, run: Run) -> None:
        """Note the next run."""
        seconds, state, memory = run.seconds, run.state or "r", run.memory
        if seconds is not None:
            self.ended += 1
        else:
            seconds = 0.0
            if state == "r":
                self.unended.append(index)
        self.began.append(int(run.began * 1e6))
        self.took.append(int(seconds * 1e6) or 1)
        self.line.append(run.line)
        ending = state, run.exit, run.signal, run.cause
        self.how.append(self.endings.setdefault(ending, len(self.endings)))
        self.commands.add(run.command)
        try:
            self.groups[run.host, run.slot].append(index)
        except KeyError:
            self.groups[run.host, run.slot] = array("q", [index])
        if seconds > self.slowest.least:
            self.slowest.add(seconds, index, run)
        if memory is not None and memory > self.largest.least:
            self.largest.add(memory, index, run)
        if run.cpu is not None:
            self.cpu += run.cpu
            self.cpu_time += seconds
        if state in "!e" and run.began + seconds > self.failed.least:
            self.failed.add(run.began + seconds, index, run)

    def _rows(self) -> Iterator[Row]:
        """Runs that overlap get rows of their own: two runners of a host may have slots of one name."""
        for host, slot in sorted(self.groups, key=lambda names: [natural(name) for name in names]):
            runs = self.groups.pop((host, slot))
            began = array("q", map(self.began.__getitem__, runs))
            ends = map(operator.add, began, map(self.took.__getitem__, runs))
            if all(map(operator.le, ends, (when + Packing.ROUNDING for when in began[1:]))):
                yield Row(host, slot or "1", runs)
                continue
            packing, lanes = Packing(self.began, self.took), []
            for run in sorted(runs, key=self.began.__getitem__):
                lane = packing.place(run)
                if lane == len(lanes):
                    lanes.append(array("q"))
                lanes[lane].append(run)
            for number, lane in enumerate(lanes, 1):
                yield Row(host, f"{slot} ({number})" if slot and number > 1 else slot or str(number), lane)

    @property
    def span(self) -> int:
        return max(1, self.last - self.first)


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts node2 before node10."""
    return [(int(part[:18]), "") if part.isdecimal() and part.isascii() else (0, part)
            for part in re.split("([0-9]+)", name)]


class Cells:
    """What the timeline shows: columns of cells, row by row; in a row by their beginning."""
    ALONE = 60_000              # up to so many runs each has a cell; of more, the short ones share some
    COMMANDS = 1 << 21          # bytes of commands, compressed
    ROWS = 4000                 # further slots are not drawn

    def __init__(self, all_runs: Gathered) -> None:
        self.all = all_runs
        self.rows = all_runs.rows[:self.ROWS]
        self.width = all_runs.span * len(self.rows) // self.ALONE if len(all_runs.began) > self.ALONE else 0
        self.bad = {number for (state, *_), number in all_runs.endings.items() if state in "!e"}
        self.run, self.began, self.took = array("q"), array("q"), array("q")      # of the first run; the sum
        self.count, self.failures = array("q"), array("q")
        self.sizes = [self._fill(row.runs) for row in self.rows]

    def _fill(self, runs: array[int]) -> int:
        """Make the cells of a row; how many they are."""
        before, bin_, width, bad = len(self.run), -1, self.width, self.bad
        for run, began, took, how in zip(runs, *(map(column.__getitem__, runs)
                                                 for column in (self.all.began, self.all.took, self.all.how))):
            if took < width and began // width == bin_:
                self.took[-1] += took
                self.count[-1] += 1
                self.failures[-1] += how in bad
                continue
            bin_ = began // width if took < width else -1
            self.run.append(run)
            self.began.append(began)
            self.took.append(took)
            self.count.append(1)
            self.failures.append(how in bad)
        return len(self.run) - before

    def page(self) -> dict[str, Any]:
        """For the page: times in ticks of `tick` microseconds, beginnings since the one before in the row."""
        tick = max(1000, self.all.span >> 30)
        starts, at = [], 0
        for size in self.sizes:
            last = 0
            for began in self.began[at:at + size]:
                now = (began - self.all.first) // tick
                starts.append(now - last)
                last = now
            at += size
        return {"tick": tick / 1e6, "rows": [[row.host[:80], row.slot[:80]] for row in self.rows], "sizes": self.sizes,
                "hidden": len(self.all.rows) - len(self.rows), "began": starts,
                "took": [max(1, took // tick) for took in self.took],
                "line": [self.all.line[run] for run in self.run], "how": [self.all.how[run] for run in self.run],
                "count": list(self.count), "bad": list(self.failures), "commands": self._commands()}

    def _commands(self) -> list[str]:
        """The commands of the cells; cut, or none, if they would make the page too large."""
        found = [""] * len(self.run)
        alone = [cell for cell, count in enumerate(self.count) if count == 1]
        for place, command in self.all.commands.pick([self.run[cell] for cell in alone]):
            found[alone[place]] = readable(command)[:1000]
        for most in (1000, 200, 60):
            cut = [command if len(command) <= most else f"{command[:most]}..." for command in found]
            if len(zlib.compress(json.dumps(cut).encode(), 1)) <= self.COMMANDS:
                return cut
        return []


def concurrency(all_runs: Gathered, bins: int = 1000) -> list[float]:
    """How many jobs ran at a time, on average over each of so many equal parts of the time."""
    change, width, first = [0.0] * (bins + 2), all_runs.span / bins, all_runs.first
    for began, took in zip(all_runs.began, all_runs.took):
        start = (began - first) / width
        end = start + took / width
        index, last = int(start), int(end)
        change[index] += index + 1 - start
        change[index + 1] += start - index
        change[last] -= last + 1 - end
        change[last + 1] -= end - last
    return [round(max(0.0, count), 3) for count in itertools.accumulate(change)][:bins]


def histogram(all_runs: Gathered) -> list[list[int]]:
    """[which tenth of a decade of microseconds, runs by STATES] for the run times that are known."""
    states = [STATES.index(state) for state, *_ in all_runs.endings]
    found: dict[int, list[int]] = {}
    for (tenth, how), count in Counter(zip(map(int, map((10.0).__mul__, map(math.log10,
                                                                        all_runs.took[:all_runs.ended]))),
                                           all_runs.how)).items():
        found.setdefault(tenth, [0] * len(STATES))[states[how]] += count
    return [[tenth, *found[tenth]] for tenth in sorted(found)]


def ending(state: str, code: int, number: int, cause: str) -> str:
    """'exit 3', 'SIGKILL', 'timeout', ..."""
    if state == "r":
        return "running"
    if cause:
        return cause
    if number:
        return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return f"exit {code}" if code >= 0 else "could not be started" if state == "e" else "timeout"


def as_run(logged: LoggedRun) -> Run:
    """A run from a job log, which knows no slots."""
    code = -1 if logged.signal else logged.exit_status
    return Run("", logged.line, logged.command, logged.host.decode(errors="replace"), "", 0, logged.began / 1e6,
               (logged.began + logged.took) / 1e6, logged.state, code, logged.signal, "", logged.took / 1e6, None, None,
               0, [])


class Reporter:
    """Writes the page, once or again and again."""
    LEAST = 10.0                # seconds between two pages
    KIND = "report", b"<!DOCTYPE html>"         # and how a page begins

    def __init__(self, options: argparse.Namespace) -> None:
        """Raises Problem."""
        self.options, self.title = options, options.file or options.outdir or options.joblog
        self.source = source = options.joblog or os.path.join(options.outdir, "journal")
        if os.path.exists(options.report) and os.path.exists(source) and os.path.samefile(source, options.report):
            raise Problem(f"{options.report}: is what the report is made from (give another name)")
        refuse_foreign(options.report, *self.KIND)          # now, not when the jobs have ended
        self.next = 0.0
        self.pause = self.LEAST

    def show(self, found: Survey) -> None:
        """The jobs run: write the page, if it is time, and take no more than a twentieth of the CPU's time for it."""
        start = time.monotonic()
        if start >= self.next and os.path.exists(self.source):
            self.write(found, live=True)
            self.pause = max(self.LEAST, 20 * (time.monotonic() - start))
            self.next = start + self.pause

    def write(self, found: Survey | None = None, live: bool = False) -> None:
        """Write the page.  Raises Problem."""
        said: list[str] = []
        runs = self._runs(said.append)
        gathered = Gathered(with_lost(runs, found) if found else runs,
                            time.time() if live or found and found.running else None)
        if not gathered.began and not live:
            wanted = "job log" if self.options.joblog else "journal"
            raise Problem(f"{self.source}: tells of no run (a {wanted} is wanted)")
        data = json.dumps(self._page(gathered, found, live, said), separators=(",", ":")).encode()
        packed = base64.b64encode(zlib.compress(data, 6)).decode()
        page = PAGE.replace("@TITLE@", html.escape(readable(os.fsencode(self.title)))).replace("@DATA@", packed)
        with replacing(self.options.report, *self.KIND) as file:
            file.write(page.encode())
        for text in () if live else said:
            warn(f"{PROG}: {text}")

    def _runs(self, say: Callable[[str], None]) -> Iterator[Run]:
        if self.options.outdir is not None:
            return read_runs(self.options.outdir, say)
        return self._logged(say)

    def _logged(self, say: Callable[[str], None]) -> Iterator[Run]:
        log = JobLogReader(self.options.joblog)
        yield from map(as_run, log)
        if log.odd:
            say(f"{log.path}: {plural(log.odd, 'line')} left out: no lines of a job log ({name_lines(log.first_odd)})")

    def _page(self, runs: Gathered, found: Survey | None, live: bool, said: Sequence[str]) -> dict[str, Any]:
        """All that the page shows."""
        by_state = [0] * len(STATES)
        endings = list(runs.endings)
        for how, count in Counter(runs.how).items():
            by_state[STATES.index(endings[how][0])] += count
        return {
            "title": readable(os.fsencode(self.title)), "made": time.time(), "refresh": self.pause if live else 0,
            "first": runs.first / 1e6, "span": runs.span / 1e6, "runs": len(runs.took), "said": said,
            "names": list(STATE_NAMES.values()), "states": by_state,
            "file": asdict(counts(found)) if found else None, "slots": len(runs.rows),
            "hosts": len({row.host for row in runs.rows}),
            "quantiles": [took / 1e6 for took in quantiles(runs.took[:runs.ended])],
            "cpu": runs.cpu / runs.cpu_time if runs.cpu_time else None,
            "memory": runs.largest.heap and max(runs.largest.heap)[0] or None,
            "endings": [[STATES.index(known[0]), ending(*known)] for known in endings],
            "busy": concurrency(runs), "times": histogram(runs), "cells": Cells(runs).page(),
            "tables": [[name, [self._row(run) for run in best.runs()], total] for name, best, total in (
                ("Failed runs", runs.failed, by_state[1] + by_state[2]), ("Slowest runs", runs.slowest, runs.ended),
                ("Largest runs", runs.largest, runs.ended))]}

    def _row(self, run: Run) -> list[Any]:
        """A row of a table."""
        state, command = run.state or "r", readable(run.command)
        return [run.line, STATES.index(state), ending(state, run.exit, run.signal, run.cause), run.host[:80],
                run.slot[:80], run.began, run.seconds, run.cpu, run.memory, run.bytes,
                command if len(command) <= 500 else f"{command[:500]}...",
                "\n".join(LastOutput(self.options.outdir).of(run)) if self.options.outdir else ""]


# ======== The program =================================================================================================


def wait(watcher: Watcher, with_progress: bool) -> Counts:
    """Wait for the jobs.  Raises Problem."""
    if not with_progress:
        return watcher.wait(lambda now: None)
    exit_on(signal.SIGINT, signal.SIGTERM)
    progress = TerminalProgress() if os.isatty(1) else PipeProgress()
    idle = ""

    def show_all(now: Counts) -> None:
        nonlocal idle
        progress.show(now)
        before, idle = idle, watcher.idle(now)
        if idle and not before:
            progress.close()
            say(f"{watcher.path}: {idle}")

    try:
        return watcher.wait(show_all)
    finally:
        progress.close()


def tell_stopped(watcher: Watcher) -> bool:
    """Whether the waiting has ended although new jobs are left; then say why nobody runs them."""
    if watcher.stopped:
        say(f"{watcher.path}: {watcher.stopped}")
    return bool(watcher.stopped)


def report(options: argparse.Namespace) -> int:
    """Write the report; with --progress also while the jobs run.  Returns the exit status.  Raises Problem."""
    exit_on(signal.SIGINT, signal.SIGTERM)
    reporter = Reporter(options)
    if options.file is None:
        reporter.write()
        return 0
    watcher = Watcher(options.file)
    if options.progress:
        watcher.seen = reporter.show
        wait(watcher, with_progress=True)
    stopped = tell_stopped(watcher)
    reporter.write(watcher.sure_look())
    return int(stopped)


def watch(argv: Sequence[str]) -> int:
    """The body of runwait4.py.  Raises Problem."""
    options = parse(argv)
    if options.file is not None:
        check_lines(options.file, lambda text: say(f"{options.file}: {text}"))
    if options.report is not None:
        return report(options)
    if options.timeline is not None:
        exit_on(signal.SIGINT, signal.SIGTERM)
        if options.outdir is not None:
            draw_journal(options.outdir, options.timeline)
        else:
            draw(options.joblog, options.timeline)
        return 0
    if options.stats:
        tell_stats(options.outdir, options.file)
        return 0
    try:
        return watch_file(options)
    except BrokenPipeError:
        if options.use_exit_status:
            return 1                        # nobody knows whether all would be done
        raise


def watch_file(options: argparse.Namespace) -> int:
    """Wait for the jobs of FILE, or tell how they are going.  Returns the exit status.

    Raises BrokenPipeError, Problem.
    """
    watcher = Watcher(options.file)
    if options.status:
        status = look(watcher, options.outdir)
        now = counts(status.found)
        text = status.json() if options.json else "\n".join(status.text(width()))
        with contextlib.suppress(BrokenPipeError):      # `| head`: the exit status counts all the same
            put(os.fsencode(f"{text}\n"))
    elif options.failed:
        now = tell_failed(watcher, options.outdir)
    else:
        now = wait(watcher, options.progress)
        if tell_stopped(watcher):
            return 1
    return 1 if options.use_exit_status and now.done < now.all else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run runwait4.py with these arguments; the exit status."""
    return run_main(PROG, watch, argv)


# ======== The page of the report ======================================================================================

PAGE = r"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark; --page: #fff; --text: #1c2127; --dim: #5f6b76; --line: #dde2e7; --shade: #f5f7f9;
  --s0: #3a7ab8; --s1: #d9480f; --s2: #8a3a9c; --s3: #9aa4ae; --s4: #7fc4e8; --s5: #b8992a; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #14181c; --text: #e4e8ec; --dim: #98a4af;
  --line: #2e363e; --shade: #1d2329; --s0: #4c8fd0; --s1: #ff7a3d; --s2: #c77ddb; --s3: #7b8691; --s4: #a9dcf5;
  --s5: #d9c45a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 3vw, 3rem) 3rem; max-width: 110rem; background: var(--page);
  color: var(--text); font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0; font-size: 1.05rem; }
section { margin-top: 2.2rem; }
header p, .hint { margin: .2rem 0 0; color: var(--dim); font-size: .87rem; }
.head { display: flex; flex-wrap: wrap; gap: .3rem .6rem; align-items: center; margin-bottom: .6rem; }
.head .hint { flex: 1; margin: 0; }
button, select { font: inherit; font-size: .87rem; color: inherit; background: var(--shade); min-width: 2.1rem;
  border: 1px solid var(--line); border-radius: 5px; padding: .2rem .55rem; max-width: 12rem; }
button { cursor: pointer; }
#bar { display: flex; gap: 1px; height: .8rem; margin: 1.2rem 0 .6rem; border-radius: 4px; overflow: hidden;
  background: var(--line); }
#legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: 0; padding: 0; list-style: none; }
#legend i { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .4rem; }
#facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.2rem, 1fr)); gap: 1rem; margin: 1.4rem 0 0; }
#facts dt { color: var(--dim); font-size: .82rem; }
#facts dd { margin: 0; font-size: 1.3rem; white-space: nowrap; }
canvas { display: block; width: 100%; border-radius: 3px; }
#slots { cursor: crosshair; touch-action: pan-y; }
canvas:focus-visible { outline: 2px solid var(--s0); outline-offset: 2px; }
#tip { position: fixed; z-index: 1; display: none; max-width: min(34rem, 92vw); padding: .45rem .65rem;
  font-size: .85rem; background: var(--page); border: 1px solid var(--dim); border-radius: 6px;
  box-shadow: 0 4px 16px #0004; pointer-events: none; white-space: pre-wrap; overflow-wrap: anywhere; }
#times { display: flex; align-items: flex-end; gap: 1px; height: 11rem; border-bottom: 1px solid var(--dim); }
#times div { flex: 1; display: flex; flex-direction: column-reverse; }
#times span { display: block; }
#ticks { position: relative; height: 1.4rem; color: var(--dim); font-size: .8rem; }
#ticks span { position: absolute; transform: translateX(-50%); padding-top: .15rem; white-space: nowrap; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .87rem; }
th, td { padding: .3rem .5rem; text-align: right; white-space: nowrap; }
th { border-bottom: 1px solid var(--dim); font-weight: 600; cursor: pointer; user-select: none; }
th[aria-sort=descending]::after { content: " ▾"; } th[aria-sort=ascending]::after { content: " ▴"; }
.left { text-align: left; }
tbody { border-bottom: 1px solid var(--line); break-inside: avoid; }
td.what { padding-top: 0; text-align: left; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .8rem/1.4 ui-monospace, "DejaVu Sans Mono", monospace; }
td.what q { display: block; quotes: none; margin-top: .15rem; padding-left: .6rem; border-left: 2px solid var(--line);
  color: var(--dim); }
th:first-child { width: 3.5rem; } th.left { width: 10%; }
b.s1 { color: var(--s1); } b.s2 { color: var(--s2); } td b { font-weight: 600; }
@media (max-width: 700px) { .wide, #hint { display: none; } th, td { padding: .3rem .3rem; } body { padding-top: 1rem; }
  #facts dd { font-size: 1.1rem; } .head h2 { flex: 1; } th.left { width: auto; } }
@media print { button, select, .hint { display: none; } body { padding: 0; font-size: 10pt; }
  .chart { break-inside: avoid; } .head { break-after: avoid; } }
</style>
</head>
<body>
<header><h1 id="title">@TITLE@</h1><p id="when"></p></header>
<noscript><p>This page needs JavaScript to show its data.</p></noscript>
<main id="main" hidden>
<div id="bar"></div><ul id="legend"></ul><dl id="facts"></dl>
<section class="chart"><div class="head"><h2>Over time</h2>
<p class="hint" id="hint">Running jobs; below, the runs of each slot.
Drag to move, Ctrl + wheel or double click to zoom.</p>
<select id="host" aria-label="Host"></select>
<button id="out" aria-label="Zoom out">−</button><button id="in" aria-label="Zoom in">+</button>
<button id="all">All</button></div>
<canvas id="busy" role="img" aria-label="Running jobs over time"></canvas>
<canvas id="slots" tabindex="0" role="img" aria-label="Runs by slot and time"></canvas></section>
<section class="chart"><div class="head"><h2>Run times</h2></div><div id="times"></div><div id="ticks"></div></section>
<div id="tables"></div>
</main>
<div id="tip"></div>
<script id="data" type="text/plain">@DATA@</script>
<script>
"use strict";
const get = id => document.getElementById(id);
const make = (tag, text = "", name = "") => Object.assign(document.createElement(tag), {textContent: text,
  className: name});
const number = n => n.toLocaleString("en-US");
const plural = (n, word) => `${number(n)} ${word}${n == 1 ? "" : "s"}`;
const two = n => String(n).padStart(2, "0");

function duration(s) {
  if (s < 1) return s < .0995 ? `${+(s * 1000).toPrecision(2)} ms` : `${Math.round(s * 1000)} ms`;
  if (s < 59.95) return `${s.toFixed(s < 9.95 ? 2 : 1)} s`;
  s = Math.round(s);
  if (s < 3600) return `${Math.floor(s / 60)} m ${two(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor(s % 3600 / 60))} m`;
  return `${Math.floor(s / 86400)} d ${two(Math.floor(s % 86400 / 3600))} h`;
}
function size(bytes) {
  let unit = 0;
  for (; bytes >= 999.5; unit++) bytes /= 1024;
  const digits = unit && bytes < 9.95 ? bytes.toFixed(1) : Math.round(bytes);
  return `${digits} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"][unit]}`;
}
function clock(t, step = 1, day = data.span > 86400) {
  const d = new Date(t * 1000);
  const date = `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())}`;
  if (step >= 86400) return date.slice(5);
  const time = `${two(d.getHours())}:${two(d.getMinutes())}` + (step < 60 ? `:${two(d.getSeconds())}` : "")
    + (step < 1 ? (d.getMilliseconds() / 1000).toFixed(3).slice(1) : "");
  return day ? `${date.slice(5)} ${time}` : time;
}

let data, cells, view, colours;

async function start() {
  const packed = Uint8Array.from(atob(get("data").textContent), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  data = JSON.parse(await new Response(stream).text());
  get("main").hidden = false;
  summary(); unpack(); histogram(); data.tables.forEach(table); controls(); draw();
  if (data.refresh) setTimeout(() => location.reload(), Math.max(1, data.refresh) * 1000);
}

function summary() {
  const made = new Date(data.made * 1000).toLocaleString("sv-SE");
  get("when").textContent = [data.runs ? `${clock(data.first, 1, true)} – ${clock(data.first + data.span, 1, true)}`
    : "No runs yet",
    `${plural(data.slots, "slot")} on ${plural(data.hosts, "host")}`,
    `made ${made}` + (data.refresh ? `, anew every ${duration(data.refresh)} while jobs run` : ""),
      ...data.said].join(" · ");
  data.names.forEach((name, state) => {
    const count = data.states[state];
    if (!count) return;
    const part = make("span"), item = make("li"), box = make("i");
    part.style.cssText = `flex: ${count}; min-width: 2px; background: var(--s${state})`;
    box.style.background = `var(--s${state})`;
    item.append(box, make("b", number(count)), ` ${name}`);
    get("bar").append(part); get("legend").append(item);
  });
  const f = data.file, q = data.quantiles;
  const facts = [["Runs", number(data.runs)], ["Duration", duration(data.span)], ["Median time",
    q.length && duration(q[0])],
    ["90th percentile", q.length && duration(q[1])], ["Longest", q.length && duration(q[2])],
    ["CPU use", data.cpu != null && `${Math.round(data.cpu * 100)} %`], ["Peak memory",
      data.memory && size(data.memory)]];
  if (f) for (const name of ["new", "running", "done", "failed", "error", "held"])
    facts.push([`Jobs: ${name}`, number(f[name])]);
  for (const [name, value] of facts) if (value) {
    const pair = make("div");
    pair.append(make("dt", name), make("dd", value));
    get("facts").append(pair);
  }
}

function unpack() {
  cells = data.cells;
  cells.start = Float64Array.from(cells.began);
  cells.took = Float64Array.from(cells.took, t => t * cells.tick);
  cells.first = [0];
  let at = 0;
  for (const size of cells.sizes) {
    for (let i = at, t = 0; i < at + size; i++) cells.start[i] = (t += cells.began[i]) * cells.tick;
    cells.first.push(at += size);
  }
  view = {from: 0, to: data.span, host: ""};
  try { Object.assign(view, JSON.parse(sessionStorage.getItem(location.pathname) || "{}")); } catch { }
  if (view.to > data.span || view.whole) view.to = data.span;
}

const rows = () => cells.rows.map((row, i) => i).filter(i => !view.host || cells.rows[i][0] == view.host);
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
  try { sessionStorage.setItem(location.pathname, JSON.stringify(view)); } catch { }
}

function drawBusy() {
  const H = 96, [c, width] = canvas("busy", H), left = LEFT(), W = width - left, bins = data.busy, n = bins.length;
  const per = data.span / n, top = Math.max(1, ...bins), step = nice(top / 3), y = v => H - 6 - v / top * (H - 14);
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
  const fills = data.names.map(() => []), order = [...fills.keys()];
  shown.forEach((row, position) => {
    const y = position * rowHeight, last = cells.first[row + 1];
    let i = seek(row, view.from), x = -1, end = -1, count = 0, bad = 0, state = 0;
    const flush = () => {
      if (!count) return;
      const share = bad && bad < count ? Math.max(.2, bad / count) : 1, w = Math.max(end - x, 1);
      if (share < 1) fills[0].push(x, y, w, thick);
      fills[state].push(x, y + thick * (1 - share), w, thick * share);
      count = bad = 0;
    };
    for (; i < last && cells.start[i] < view.to; i++) {
      const x0 = left + (cells.start[i] - view.from) * scale, x1 = x0 + cells.took[i] * scale,
        s = data.endings[cells.how[i]][0];
      if (!count || x0 >= x + 1) { flush(); x = x0; end = 0; state = s; }
      if (cells.bad[i]) state = s == 2 && state != 1 ? 2 : s == 1 || state == 0 ? 1 : state;
      end = Math.max(end, x1 - (x1 - x0 > 4 ? .6 : 0)); count += cells.count[i]; bad += cells.bad[i];
    }
    flush();
  });
  c.fillStyle = colours.shade; c.fillRect(left, 0, W, body);
  c.save(); c.beginPath(); c.rect(left, 0, W, body); c.clip();
  order.push(...order.splice(1, 2).reverse());      // error and failed come last, on top
  order.forEach(state => {
    c.fillStyle = colours[`s${state}`];
    for (let f = fills[state], k = 0; k < f.length; k += 4) c.fillRect(f[k], f[k + 1], f[k + 2], f[k + 3]);
  });
  c.restore();
  labels(c, left, body, width); axis(c, left, W, body);
}

function labels(c, left, body, width) {
  c.textAlign = "right";
  let before = null, free = 0;
  const several = new Set(shown.map(row => cells.rows[row][0])).size > 1;
  shown.forEach((row, position) => {
    const [host, slot] = cells.rows[row], y = position * rowHeight;
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
  const span = view.to - view.from, step = timeStep(span / W * (data.span > 86400 ? 130 : 90)),
    shift = new Date(data.first * 1000).getTimezoneOffset() * 60;
  c.fillStyle = colours.dim; c.textAlign = "center";
  for (let t = Math.ceil((data.first + view.from - shift) / step) * step + shift; t <= data.first + view.to;
    t += step) {
    const x = left + (t - data.first - view.from) / span * W;
    c.fillRect(Math.round(x), body, 1, 5);
    if (x > left + 28 && x < left + W - 28) c.fillText(clock(t, step), x, body + 15);
  }
}

function seek(row, time) {          // the first cell of the row that ends after this time, or the one before
  let low = cells.first[row], high = cells.first[row + 1];
  while (low < high) { const mid = (low + high) >> 1; cells.start[mid] < time ? low = mid + 1 : high = mid; }
  return Math.max(cells.first[row], low - 1);
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
  const node = get("slots"), hosts = [...new Set(cells.rows.map(row => row[0]))];
  get("host").append(...["", ...hosts].map(host => Object.assign(make("option", host || "All hosts"), {value: host})));
  get("host").hidden = hosts.length < 2;
  if (!hosts.includes(view.host)) view.host = "";
  get("host").value = view.host;
  get("host").onchange = () => { view.host = get("host").value; draw(); };
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

function point(e, time) {           // tell what is under the pointer
  const tip = get("tip"), row = shown[Math.floor(e.offsetY / rowHeight)],
    near = 3 / get("slots").clientWidth * (view.to - view.from);
  let best = -1;
  if (row !== undefined) for (let i = seek(row, time - near);
    i < cells.first[row + 1] && cells.start[i] <= time + near; i++)
    if (cells.start[i] + cells.took[i] >= time - near && (best < 0 || cells.bad[i] || cells.start[i] <= time)) best = i;
  tip.style.display = best < 0 ? "none" : "block";
  if (best < 0) return;
  const [host, slot] = cells.rows[row], [state, how] = data.endings[cells.how[best]], many = cells.count[best] > 1;
  const title = many ? `${number(cells.count[best])} short runs` : `line ${cells.line[best]}: ${data.names[state]}`;
  tip.replaceChildren(make("b", title, `s${state}`),
    many ? `, ${number(cells.bad[best])} failed, from line ${cells.line[best]} on` : how == data.names[state] ? ""
      : ` (${how})`,
    `\n${host}, slot ${slot} · ${clock(data.first + cells.start[best])} · ${duration(cells.took[best])}`,
    !many && cells.commands[best] ? `\n${cells.commands[best].slice(0, 400)}` : "");
  tip.style.left = `${Math.max(4, Math.min(e.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
  const below = e.clientY + 18, fits = below + tip.offsetHeight < innerHeight;
  tip.style.top = `${fits ? below : e.clientY - tip.offsetHeight - 10}px`;
}

function histogram() {
  if (!data.times.length) return;
  const low = data.times[0][0] - 1, high = data.times[data.times.length - 1][0] + 2,
    found = new Map(data.times.map(t => [t[0], t.slice(1)]));
  const top = Math.max(...data.times.map(t => t.slice(1).reduce((a, b) => a + b)));
  for (let tenth = low; tenth < high; tenth++) {
    const bar = make("div"), counts = found.get(tenth) || [], from = 10 ** (tenth / 10 - 6),
      to = 10 ** ((tenth + 1) / 10 - 6);
    counts.forEach((count, state) => {
      const part = make("span");
      part.style.cssText = `height: max(${count ? 1 : 0}px, ${count / top * 10.8}rem); background: var(--s${state})`;
      bar.append(part);
    });
    bar.title = `${duration(from)} to ${duration(to)}: ` + (counts.map((n,
      s) => n && `${number(n)} ${data.names[s]}`).filter(Boolean).join(", ") || "none");
    get("times").append(bar);
  }
  const marks = [1e-3, .01, .1, 1, 10, 60, 600, 3600, 36000, 86400, 864000], names = ["1 ms", "10 ms", "0.1 s", "1 s",
    "10 s", "1 min", "10 min", "1 h", "10 h", "1 d", "10 d"];
  marks.forEach((mark, i) => {
    const at = (Math.log10(mark) * 10 + 60 - low) / (high - low) * 100;
    if (at < 1 || at > 99) return;
    const label = make("span", names[i]);
    label.style.left = `${at}%`;
    get("ticks").append(label);
  });
}

const COLUMNS = [["Line", r => r[0], r => r[0]], ["Ended", r => r[2], r => r[2], "left"], ["Host", r => r[3],
  r => r[3], "left"],
  ["Slot", r => r[4], r => r[4], "left wide"], ["Began", r => r[5], r => clock(r[5])], ["Time", r => r[6],
    r => r[6] == null ? "" : duration(r[6])],
  ["CPU", r => r[6] && r[7] / r[6], r => r[7] == null || !r[6] ? "" : `${Math.round(r[7] / r[6] * 100)} %`, "wide"],
  ["Memory", r => r[8], r => r[8] == null ? "" : size(r[8])], ["Printed", r => r[9], r => size(r[9]), "wide"]];

function table([title, runs, total]) {
  if (!runs.length) return;
  const section = make("section"), head = make("div", "", "head"), scroll = make("div", "", "scroll"),
    node = make("table");
  const which = title.startsWith("Failed") ? "The last " : "";
  const note = total > runs.length ? `${which}${runs.length} of ${number(total)}` : number(total);
  const more = make("button", `Show all ${runs.length}`), order = make("tr"), thead = make("thead");
  let limit = 10;
  const fill = () => {
    node.querySelectorAll("tbody").forEach(body => body.remove());
    runs.slice(0, limit).forEach(run => {
      const body = make("tbody"), top = make("tr"), below = make("tr"), what = make("td", run[10], "what");
      COLUMNS.forEach(([name, , show, name_], i) => {
        const cell = make("td", i == 1 ? "" : show(run), name_ || "");
        if (i == 1) cell.append(make("b", show(run), `s${run[1]}`));
        top.append(cell);
      });
      what.colSpan = COLUMNS.length;
      if (run[11]) what.append(make("q", run[11]));
      below.append(what); body.append(top, below); node.append(body);
    });
    more.hidden = runs.length <= limit;
  };
  COLUMNS.forEach(([name, key, , name_], i) => {
    const cell = make("th", name, name_ || "");
    cell.tabIndex = 0;
    cell.onkeydown = e => e.key == "Enter" && cell.click();
    cell.onclick = () => {
      const up = cell.ariaSort == "descending" || !cell.ariaSort && i < 4, sign = up ? 1 : -1;
      for (const other of order.children) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", up ? "ascending" : "descending");
      runs.sort((a, b) => { const x = key(a) ?? -1, y = key(b) ?? -1; return sign * (x < y ? -1 : x > y ? 1 : 0); });
      fill();
    };
    order.append(cell);
  });
  more.onclick = () => { limit = runs.length; fill(); };
  thead.append(order); node.append(thead); scroll.append(node);
  head.append(make("h2", title), make("p", note, "hint")); section.append(head, scroll, more);
  get("tables").append(section);
  fill();
}

start().catch(error => get("when").textContent = `This page cannot be shown by this browser: ${error.message}`);
</script>
</body>
</html>
"""


if __name__ == "__main__":
    leave(main())
