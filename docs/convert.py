#!/usr/bin/env python3
"""Print the jobs of fjd, or the tests of a NetJobs configuration, as a list for runset4.py.

    python3 docs/convert.py fjd JOB... | runset4.py runs.txt --add-list - --new
    python3 docs/convert.py netjobs CONFIG... | runset4.py runs.txt --add-list -

JOB: a job file of fjd (INI, [control] or [fjd], executable=), or a directory of such files.  After an error
it prints no line.
"""
from __future__ import annotations

import configparser
import os
import pathlib
import re
import signal
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from runmaker4 import (
    UsageError,
    as_argument,
    display_text,
    duration,
    integer_between,
    print_bytes,
    printable,
    quote,
    refused_as,
    to_bytes,
    to_text,
)
from runset4 import Source, excerpt, job_line, open_source

USAGE = "give fjd and job files, or netjobs and configurations (see docs/coming-from.md)"


def list_line(command: bytes) -> bytes:
    """Return the line of a list for this command.  Raises ValueError with the reason."""
    if command.lstrip().startswith(b"#"):
        raise ValueError(f"{excerpt(command)} is a comment, no command")
    line = job_line(command)[2:]
    # a list has no states: the blank tells the command `x FILE` from a held job
    return b" " + line if line[1:2] in (b" ", b"\t") else line


# ======== Jobs of fjd =======================================================================================
#
# fjd has one file per job, which names an executable, whose argument is the path of the file.

FJD_SECTIONS = ("control", "fjd")


def line_of_fjd_file(path: str) -> bytes:
    """Return a command: the executable that a job file of fjd names, and the path of that.  UsageError."""
    config = configparser.ConfigParser(interpolation=None, strict=False)
    with open_source(as_argument(path)) as source:      # Source would read stdin for '-'
        try:
            config.read_file((to_text(line) + "\n" for line in source), source.name)
        except configparser.Error as error:
            raise UsageError(f"{source.name}: {' '.join(str(error).split())}") from None
    values = [config.get(section, "executable", fallback="") for section in FJD_SECTIONS]
    if not (executable := next(filter(None, values), "")):
        raise UsageError(f"{source.name}: missing executable= in [{'] or ['.join(FJD_SECTIONS)}]")
    try:
        return list_line(b"%b %b" % (to_bytes(executable), quote(os.path.abspath(os.fsencode(path)))))
    except ValueError as error:
        raise UsageError(f"{source.name}: {error}") from None


def lines_of_fjd_files(paths: Sequence[str]) -> Iterator[bytes]:
    """Yield the lines for job files, and for those in directories, each once.  Raises UsageError."""
    files = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        with refused_as(printable(path)):
            entries = sorted(os.listdir(path))
        # neither hidden files nor backups (NAME~)
        files += filter(os.path.isfile, (os.path.join(path, entry) for entry in entries
                                         if entry[0] != "." and entry[-1] != "~"))
    if not files:
        raise UsageError(f"{printable(paths[0])}: no job files (nothing to add)")
    yield from dict.fromkeys(map(line_of_fjd_file, files))


# ======== Tests of NetJobs ==================================================================================
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
# A test becomes a group below a barrier.  The commands become jobs, under `#RUN` lines with group, target (as
# host) and timeout.

TEST_LABEL = re.compile(rb"([^:]*[^:\s])\s*:")
TEST_FLAG = re.compile(rb"-(generaltimeout|minhosts|timeout)\s*:\s*(.*)")
# the target; the command, without a pair of quotes around it
TEST_COMMAND = re.compile(rb'([\w.][\w.-]*)\s*:\s*(?:"(.*)"|(.*))')
TEST_TIMEOUT = re.compile(rb"(\d+)\s*([hms])")


@dataclass
class TestCommand:
    target: bytes
    line: bytes                     # of the new job
    timeout: bytes                  # as in a directive: b"5m"; b"": not given


def lines_of_test(label: bytes, source: Source, lines: Iterator[bytes]) -> Iterator[bytes]:
    """Take the lines of a test of NetJobs up to its `end`, and yield those for the list.

    Tests follow each other: each begins with `#RUN barrier`, below which jobs wait until all above have
    finished.  Raises ValueError.  lines: of all tests, read up to the label of this one.
    """
    label_line = source.line_number
    general_timeout = b""           # for commands that have none; b"": not given
    min_hosts = b"all"              # how many hosts must not time out
    commands: list[TestCommand] = []
    for line in lines:
        if line == b"end":
            break
        if flag := TEST_FLAG.fullmatch(line):
            name, value = flag[1].decode(), flag[2]
            if name == "timeout":           # of the command above; other flags are for all, above the first
                if not commands:
                    raise ValueError("-timeout before the first target")
                commands[-1].timeout = convert_timeout(value)
            elif commands:
                raise ValueError(f"-{name} after a target")
            elif name == "generaltimeout":
                general_timeout = convert_timeout(value)
            else:
                min_hosts = value if value == b"all" else check_value(integer_between(0), value)
        elif command := TEST_COMMAND.fullmatch(line):
            target, quoted, plain = command.groups()
            text = plain if quoted is None else quoted
            if not text.strip():
                raise ValueError(f"'{display_text(target)}' has no command (or the test above has no end)")
            commands.append(TestCommand(target, list_line(text), general_timeout))
        else:
            raise ValueError(
                f"unknown line {excerpt(line)} (expected TARGET: COMMAND, -timeout: T or end)"
            )
    else:
        source.line_number = label_line
        raise ValueError(f"the test '{display_text(label)}' has no end")
    if not commands:
        raise ValueError(f"the test '{display_text(label)}' has no targets")
    yield b"#RUN barrier\n"
    yield b"# test %b\n" % label
    yield from lines_of_group(label, min_hosts, commands)


def lines_of_group(label: bytes, min_hosts: bytes, commands: Sequence[TestCommand]) -> Iterator[bytes]:
    """Yield the jobs of a test: below `#RUN together=LABEL host=TARGET timeout=5m min-hosts=all` they are a
    group, whose hosts start together.
    """
    group = re.sub(rb"[\s,=]+", b"_", label)       # a setting cannot contain these characters
    targets = [*dict.fromkeys(command.target for command in commands)]
    previous_directive = b""
    for command in sorted(commands, key=lambda command: targets.index(command.target)):
        timeout = b" timeout=%b" % command.timeout if command.timeout else b""
        directive = b"#RUN together=%b host=%b%b min-hosts=%b\n" % (group, command.target, timeout, min_hosts)
        if directive != previous_directive:
            yield directive
        yield command.line
        previous_directive = directive


def convert_timeout(text: bytes) -> bytes:
    """Return a timeout as in a directive: '5 m' -> '5m', '0s' -> 'none'.  Raises ValueError."""
    match = TEST_TIMEOUT.fullmatch(text)
    if not match and text != b"none":
        raise ValueError(f"not a timeout: {excerpt(text)} (such as 330s, 5m, 2h or none)")
    if not match or not match[1].strip(b"0"):
        return b"none"
    return check_value(duration, match[1] + match[2])


def check_value(parse: Callable[[str], object], text: bytes) -> bytes:
    try:
        parse(os.fsdecode(text))
        return text
    except ArgumentTypeError as error:
        raise ValueError(str(error)) from None


def lines_of_tests(source: Source) -> Iterator[bytes]:
    """Yield the lines for a configuration.  Raises ValueError."""
    lines = (line for line in map(bytes.strip, source) if line[:1] not in b"#")     # b"" is in it, too
    label = None
    for line in lines:
        if not (label := TEST_LABEL.fullmatch(line)):
            raise ValueError(f"not the label of a test: {excerpt(line)} (such as 'LABEL:')")
        yield from lines_of_test(label[1], source, lines)
    if label:
        yield b"#RUN\n"                     # the last test's settings do not apply to later jobs


# ======== Command line ======================================================================================


def lines_of_configs(paths: Sequence[str]) -> Iterator[bytes]:
    for path in paths:
        with open_source(as_argument(path)) as source:
            yield from lines_of_tests(source)


CONVERTERS = {"fjd": lines_of_fjd_files, "netjobs": lines_of_configs}


def main(argv: Sequence[str]) -> str:
    """Print the list, or return why there is none."""
    try:
        if len(argv) < 2 or not (convert := CONVERTERS.get(argv[0])):
            raise UsageError(USAGE)
        if not (text := b"".join(convert(argv[1:]))):
            raise UsageError("no jobs (nothing to add)")
    except UsageError as error:
        return f"convert.py: {error}"
    print_bytes(text)
    return ""


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)       # runset4.py has said why it reads no more
    if problem := main(sys.argv[1:]):
        print(problem, file=sys.stderr)
        sys.exit(2)
