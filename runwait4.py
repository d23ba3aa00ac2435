#!/usr/bin/env python3
"""runwait4 - look at a job file of runmaker4: wait for its jobs, show progress, count.

It never writes to the file.  A line `r` that nobody holds locked is an orphan, and counts as an error.

The file reads top-down: the command line, waiting, progress, the program.
"""
from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)    # Ctrl-C during what follows: no traceback

import argparse
import json
import os
import sys
import time
from collections import deque
from dataclasses import asdict
from typing import Any, Callable, Sequence, TypeVar

from runmaker4 import (Counts, JobFile, Line, Parser, Problem, Survey, check_mount, counts, human_time, leave,
                       open_job_file, put, reason, run_main, warn)

PROG = "runwait4.py"
T = TypeVar("T")


# ======== The command line ============================================================================================


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options.  Raises Problem."""
    parser = Parser(
        PROG, example=f"Wait until no job is new or running any more, watch meanwhile; count the jobs:\n"
                      f"    {PROG} --progress runs.txt && echo all have ended\n"
                      f"    {PROG} --status runs.txt",
        usage="[options] FILE",
        epilog="Lines on hold are not waited for; jobs left behind by a dead runner are errors.\n"
               "Exit status: 0 when the jobs have ended (with -e: and all are done), else 1;\n"
               "1 when a failed `#RUN barrier check` keeps new ones from being run; 2 bad usage.")
    add = parser.add_argument_group("what to do").add_argument
    add("file", metavar="FILE", help="the job file")
    add("-p", "--progress", action="store_true",
        help="a bar: redrawn in place with the time left on a terminal, a line per change elsewhere")
    add("-e", "--use-exit-status", action="store_true", help="exit 0 only if every job is done")
    add("--status", action="store_true", help="print how many jobs are in which state, and exit")
    add("--json", action="store_true", help="with --status: as JSON, with the jobs that run")
    add("-h", "--help", action="help", help="print this help")
    options = parser.parse_args(argv)
    if options.json and not options.status:
        parser.error("--json goes with --status")
    return options


# ======== Waiting =====================================================================================================


class Watcher:
    """Looks at the job file again and again, but never spends more than a twentieth of the time on it."""
    PATIENCE = 5.0              # seconds for which the file may be away: editors replace it

    def __init__(self, path: str) -> None:
        """Raises Problem."""
        os.close(open_job_file(path, os.O_RDONLY))
        self.path = path
        network = check_mount(path, single_host=True, warn=warn).network
        self.file = JobFile(path, say=lambda text: None, network=network, read_only=True)
        self.pause = 5.0 if network else 0.2
        self.cost = 0.0         # seconds for one look
        self.stopped = ""       # why what is new will not be run, if nobody runs it

    def look(self) -> Survey:
        """What the file holds now.  Raises Problem."""
        start = time.monotonic()
        found = self._patiently(self.file.survey)
        self.cost = time.monotonic() - start
        return found

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

    def sure_look(self) -> Survey:
        """The same, with orphans told from running jobs; that takes three looks, one second apart, if there are any."""
        found = self.look()
        while found.unsure:
            time.sleep(self.pause)
            found = self.look()
        return found

    def wait(self, show: Callable[[Counts], None]) -> Counts:
        """Wait until no job is new or running, or `stopped` says why new ones stay so; show(counts) after each look."""
        while True:
            now = counts(self.look())
            show(now)
            before, self.stopped = self.stopped, self._why_stopped(now)
            ended = not now.new and not now.running
            if ended or self.stopped and self.stopped == before:
                return now
            time.sleep(max(self.pause, 20 * self.cost))

    def _why_stopped(self, now: Counts) -> str:
        """What keeps the new jobs from being run, if it is said twice: a job may have begun since the look."""
        return self._patiently(self.file.stopped_by) if now.new and not now.running else ""


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


def print_status(now: Counts, running: Sequence[Line], as_json: bool) -> None:
    """The counts, and in JSON the jobs that run."""
    total = now.all + now.held
    if as_json:
        jobs: list[dict[str, Any]] = [
            {"line": line.number, "command": line.command.decode(errors="surrogateescape")} for line in running]
        text = json.dumps({**asdict(now), "total": total, "jobs": jobs})
    else:
        text = f"{total} jobs: " + ", ".join(f"{count} {name}" for name, count in asdict(now).items())
    put(f"{text}\n".encode())


# ======== The program =================================================================================================


def end_by_signal(number: int, frame: object) -> None:
    """A signal ends the program by way of its `finally`."""
    sys.exit(128 + number)


def catch_signals() -> None:
    """Have INT and TERM end the program in order, where they are not ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end_by_signal)


def wait(watcher: Watcher, with_progress: bool) -> Counts:
    """Wait for the jobs.  Raises Problem."""
    if not with_progress:
        return watcher.wait(lambda now: None)
    catch_signals()
    progress = TerminalProgress() if os.isatty(1) else PipeProgress()
    try:
        return watcher.wait(progress.show)
    finally:
        progress.close()


def watch(argv: Sequence[str]) -> int:
    """The body of runwait4.py.  Raises Problem."""
    options = parse(argv)
    watcher = Watcher(options.file)
    if options.status:
        found = watcher.sure_look()
        now = counts(found)
        print_status(now, found.running, options.json)
    else:
        now = wait(watcher, options.progress)
        if watcher.stopped:
            warn(f"{PROG}: {options.file}: {watcher.stopped}")
            return 1
    return 1 if options.use_exit_status and now.done < now.all else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run runwait4.py with these arguments; the exit status."""
    return run_main(PROG, watch, argv)


if __name__ == "__main__":
    leave(main())
