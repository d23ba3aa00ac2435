#!/usr/bin/env python3
"""runset4 - write a job file of runmaker4: set states, add jobs, list them.

States are set under each line's record lock, so running runners are never disturbed; lines are appended all or
none, under the append lock.  runmaker4.py says how that works.
"""
from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)    # Ctrl-C during what follows: no traceback

import argparse
import fnmatch
import os
from typing import Iterator, Sequence

from runmaker4 import (JobFile, Line, Parser, Problem, append, check_mount, leave, open_job_file, put_lines, reason,
                       run_main, show, warn)

PROG = "runset4.py"


def state(text: str) -> bytes:
    """An argparse type: a state byte that makes sense."""
    data = os.fsencode(text)
    if len(data) != 1 or data in b"#/" or not b"!" <= data <= b"~":
        raise argparse.ArgumentTypeError(f"not a state: '{show(data)}' (one printable character, not #, / or blank)")
    return data


def line_range(text: str) -> range:
    """An argparse type: a line number, or FROM-TO."""
    first, dash, last = text.partition("-")
    last = last if dash else first
    if not all(word.isascii() and word.isdigit() for word in (first, last)) or not 1 <= int(first) <= int(last):
        raise argparse.ArgumentTypeError(f"not a line number or FROM-TO: '{text}'")
    return range(int(first), int(last) + 1)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options.  Raises Problem."""
    parser = Parser(
        PROG, example=f"Have all failed jobs run again, add two jobs, take jobs 5 to 9 out, list what is on hold:\n"
                      f"    {PROG} --set=. --state=! runs.txt\n"
                      f"    {PROG} runs.txt --add 'simulate --seed 7' 'simulate --seed 8'\n"
                      f"    {PROG} --set=x runs.txt 5-9\n"
                      f"    {PROG} --list --state=x runs.txt",
        usage="[options] FILE [LINE|FROM-TO ...]",
        epilog="Exit status: 0 all was done as asked; 1 no job was selected, or some were refused; 2 bad usage.")
    add = parser.add_argument_group("what to do").add_argument
    add("-s", "--set", type=state, metavar="STATE", help="set the state of the selected jobs: . (new), x (on hold), ...")
    add("-l", "--list", action="store_true", help="print LINE STATE COMMAND of the selected jobs [of all]")
    add("--add", nargs="+", metavar="CMD", help="append jobs, all of them or none; FILE stands before it, or is made")
    add("--force", action="store_true", help="set states of running jobs, too (what they will report is not written)")
    add = parser.add_argument_group("which jobs (all conditions must hold)").add_argument
    add("file", metavar="FILE", help="the job file")
    add("lines", nargs="*", type=line_range, metavar="LINE", help="line numbers, or ranges FROM-TO")
    add("-a", "--all", action="store_true", help="all jobs")
    add("--state", type=state, metavar="S", help="jobs in this state")
    add("--match", metavar="TEXT", help="jobs with this command; it may be a shell pattern for the whole command")
    add = parser.add_argument_group("other").add_argument
    add("--single-host", action="store_true", help="no other host uses the file: any file system will do")
    add("-h", "--help", action="help", help="print this help")
    options = parser.parse_intermixed_args(argv)
    if sum((options.set is not None, options.list, options.add is not None)) != 1:
        parser.error("one of --set, --list and --add is wanted")
    options.selective = bool(options.lines or options.state or options.match is not None)
    if options.set and not (options.selective or options.all):
        parser.error("--set needs to know which jobs: lines, --state, --match or --all")
    if options.add and (options.selective or options.all):
        parser.error("--add takes commands, and no selection of lines")
    return options


def selected(options: argparse.Namespace, file: JobFile) -> Iterator[Line]:
    """The job lines that are meant."""
    pattern = None if options.match is None else os.fsencode(options.match)
    for line in file.lines(options.state):
        if options.lines and not any(line.number in span for span in options.lines):
            continue
        if pattern is None or line.command == pattern or fnmatch.fnmatchcase(line.command, pattern):
            yield line


def set_states(options: argparse.Namespace, file: JobFile, fd: int) -> tuple[int, int]:
    """Set the states of the selected jobs; how many were selected, how many refused."""
    count = refused = 0
    for line in selected(options, file):
        count += 1
        fault = file.set_state(fd, line, options.set, options.force)
        if fault:
            refused += 1
            file.say(f"line {line.number}: {fault}")
    return count, refused


def add_jobs(path: str, commands: Sequence[str]) -> None:
    """Append jobs.  Raises Problem, OSError."""
    data = [os.fsencode(command) for command in commands]
    for command in data:
        if b"\n" in command or b"\0" in command or not command.strip():
            raise Problem(f"not a command: '{show(command[:80])}' (one line, not empty, no NUL; nothing was added)")
    if not os.path.lexists(path):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
    fd = open_job_file(path, os.O_RDWR | os.O_APPEND)
    append(fd, b"".join(b". %s\n" % command for command in data), sync=True)


def change_file(argv: Sequence[str]) -> int:
    """The body of runset4.py.  Raises Problem."""
    options = parse(argv)
    path = options.file

    def say(text: str) -> None:
        warn(f"{PROG}: {path}: {text}")

    try:
        mount = check_mount(path, options.single_host or options.list, say)
        if options.add:
            add_jobs(path, options.add)
            return 0
        fd = open_job_file(path, os.O_RDWR if options.set else os.O_RDONLY)
        file = JobFile(path, say=say, network=mount.network, read_only=not options.set)
        if options.set:
            count, refused = set_states(options, file, fd)
        else:
            count, refused = put_lines(map(bytes, selected(options, file))), 0
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Problem(f"{path}: {reason(error)}") from None
    if not count and (options.set or options.selective):
        say("no job is selected by this")
        return 1
    return 1 if refused else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run runset4.py with these arguments; the exit status."""
    return run_main(PROG, change_file, argv)


if __name__ == "__main__":
    leave(main())
