#!/usr/bin/env python3
"""runmaker4 - run the jobs in a text file, on as many cores and hosts as you like.

    $ cat runs.txt                      $ runmaker4.py -j4 runs.txt
    . simulate --seed 1                 (the same on any other host that sees the file)
    . simulate --seed 2

One text file is the queue.  A line ". CMD" is a job; the first byte is the job's state, which runners rewrite
in place.  Any number of runners, on any number of hosts, can work on one file at once.

    .  new                  d  done: exit 0                        #  /  a comment, as is every line whose
    r  running              !  failed: exit not 0, timed out,            second byte is neither blank nor tab
                               out of memory, or a signal of its own
    e  error: it did not run to its end (we ended it, its runner or host died), or it could not be started
    any other byte: held (x by convention), never run; written over an r it cancels the job

A job's life.  The first line `.` that the runner may run (Walk) gets an `r`, while a byte of the lock file
beside it, `.runs.txt.lock`, is locked for the command (JobQueue.claim()).  /bin/sh inherits that lock
(JobTask, Processes.start()).  So it is held as long as the runner or the job lives: there are no heartbeats
and no time limits.  An `r` whose lock is free is an orphan (Orphans).  While a job outlives its runner, no
other copy starts (JobReader.can_run_another_copy()).  When the job has ended, console, logs and journal get
its output and result, which some gather (Sink); then `d`, `!` or `e` replaces the `r`, and the lock is freed
(JobQueue.finish()).  A runner exits when a walk through the whole file finds no line for it.  If the file has
one line of a command, no second copy of the command starts while one lives, however the file is edited.

The sections, each of which uses almost only those above it.  Begin at App.connect_parts() and
Runner._start_jobs():

    Starting fast           what comes before the first import of a script
    Basics                  errors, texts, sizes, the options' parser; run_main(), which calls each main()
    Record locks            to lock a byte; the bytes of a lock file
    File systems            mounts; Reader, which reads what other hosts have written; lost locks
    Job lines and           Line; Scan, from one line to the next; the settings of #RUN lines
      directives
    The job file            the protocol, with its proof; LockTable, JobReader, JobFile, JobQueue
    Finding work            Walk, Cursor: which line is the next, when to look again, who may exit; Orphans
    The executor            calls files, if need be in a thread; FileJobs, as a Runner sees the job file
    A run                   one run of a job; Sink: who is told of it
    Processes               shells, signals, and the end of a process tree
    The allocation          CPUs, memory and time of this process
    Output                  the sinks
    Slots                   which are idle, busy or out of service
    The runner              Runner, and a JobTask with a phase for each job
    Background              -d and --pidfile
    Command line            the options; App, from main() to the loop
    The wire                what server and client share
    Files that travel       the parts of files of send= and fetch=, at both ends
"""
# ======== Starting fast =====================================================================================
#
# A user's script can start ours a thousand times.  So each loads only what it needs, and when runmaker4.py is
# the script, what is below `exit_now(main())` is not even defined.  No signal and no old Python may cause a
# traceback here, before run_main().

from __future__ import annotations

import os
import sys

# Look for modules in the standard library first (`site` has imported os from there), then beside this script,
# which PYTHONSAFEPATH leaves out.  Neither must a queue.py of the user run instead, nor an installed
# runmaker4.py of another version.
if __name__ == "__main__" and (needed := "Python 3.9 or later"):   # Python 3.7 shows this with a SyntaxError
    library = os.path.dirname(os.__file__)
    sys.path[:0] = library, f"{library}/lib-dynload", os.path.dirname(os.path.realpath(__file__))

import gc
import signal

if sys.hexversion < 0x03090000:     # otherwise a traceback follows: at tuple[int, int] at the latest
    print(f"{sys.argv[0].rpartition('/')[2]}: needs Python 3.9 or later (this is {sys.version.split()[0]})",
          file=sys.stderr)
    sys.exit(2)

# Our parent can send a signal at once.  A blocked signal waits until run_main(), or until there is a handler.
if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGXCPU,
                                              signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT))
    # Imports and definitions leave no garbage, and a collector would take 5 ms.  Program.in_background()
    # enables it.
    gc.disable()
    # asyncio can do without ssl, which would take another 5 ms.  None makes the import of ssl fail (The
    # Python Language Reference, "The module cache"); the type of sys.modules does not allow None.
    sys.modules["ssl"] = None   # type: ignore[assignment]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)    # Ctrl-C before there are handlers: no traceback

import argparse
import array
import binascii
import bisect
import contextlib
import enum
import errno
import fcntl
import fnmatch
import functools
import heapq
import importlib.util
import itertools
import math
import mmap
import re
import resource
import select
import shlex
import struct
import termios
import time
import types
import warnings
from _blake2 import blake2b  # hashlib also has it, but takes ten times as long to load
from argparse import ArgumentTypeError, Namespace
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Collection, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from functools import partial
from math import inf
from stat import S_IMODE, S_ISDIR, S_ISLNK, S_ISREG, S_ISVTX, S_IWGRP, S_IWOTH
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    NamedTuple,
    NoReturn,
    Protocol,
    TypeVar,
)


def lazy_import(name: str) -> Any:
    """Import a module that Python loads when an attribute is first used, so that a script starts sooner."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module {name}", name=name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# They take a third as long to load as this file, and runset4.py never needs them.
if TYPE_CHECKING:
    import asyncio
    import io
    import socket
    from concurrent import futures
    from dataclasses import dataclass as dataclass  # noqa: PLC0414
    from dataclasses import field as field  # noqa: PLC0414
    from dataclasses import replace as replace  # noqa: PLC0414
    from typing import ParamSpec  # Python 3.10
    P = ParamSpec("P")
    lazy_pattern = re.compile
else:
    asyncio = lazy_import("asyncio")
    socket = lazy_import("socket")

    class lazy_pattern:
        """A regular expression that is compiled when it is first used: a start needs few."""
        def __init__(self, *pattern):
            self._pattern = pattern

        def __getattr__(self, name):
            value = self.__dict__[name] = getattr(re.compile(*self._pattern), name)
            return value

    # The module dataclasses loads `inspect`, and compiles methods for each class: a third of the time that
    # this file takes to load.  Here one method sets the fields of all.  eq: objects are compared by them.
    class field:
        def __init__(self, default_factory):
            self.make = default_factory

    def dataclass(cls=None, eq=True, **_):
        def complete(cls):
            names = cls.FIELDS = [*cls.__annotations__]
            makers = [(name, value.make) for name, value in vars(cls).items() if isinstance(value, field)]

            def set_fields(self, *values, **named):
                self.__dict__.update([(name, make()) for name, make in makers])
                self.__dict__.update(zip(names, values), **named)

            cls.__init__ = set_fields
            if eq:
                cls.__eq__ = lambda self, other: type(other) is cls and get_fields(self) == get_fields(other)
            return cls
        return complete(cls) if cls else complete

    def get_fields(self):
        return {name: getattr(self, name) for name in self.FIELDS}

    def replace(self, **changes):
        # all others are the defaults; a cached property is no field
        given = {name: value for name, value in vars(self).items() if name in self.FIELDS}
        return type(self)(**{**given, **changes})

# ======== Basics ============================================================================================
#
# - Errors.  An error that the user can fix is raised as a UsageError.
# - Bytes.  Job files and output are bytes, and kept unchanged.
# - Descriptors.  Python opens them with O_CLOEXEC (PEP 446): jobs inherit only what they are given.

VERSION = "4.1"

# The states, and who writes them.  A line in any other can be text: `I have a list`.  OUR_STATES decides
# which lines --all selects, which show that a file is not plain text, and what --add refuses as a job line.
# If one but NEW shows --add that runners know the file, it says if none is at work.
NEW = b"."                      # a user; a runner that gives a job back or repeats it
RUNNING = b"r"                  # a runner that claims the line
DONE = b"d"                     # a runner: RunResult.state
FAILED = b"!"                   # the same; also of a line lost Orphans.MAX_LOSSES times
ERROR = b"e"                    # the same; also of an orphan
CANCELLED = b"c"                # --cancel
HELD = b"x"                     # a user
STATE_WORDS = {NEW: "new", RUNNING: "running", DONE: "done", FAILED: "failed", ERROR: "error",
               CANCELLED: "cancelled", HELD: "held"}
OUR_STATES = b"".join(STATE_WORDS)
RUNNER_STATES = NEW + RUNNING + DONE + FAILED + ERROR       # any other counts as held
CHECK_FAILURES = FAILED + ERROR                             # stop `#RUN barrier check`
# all but `.`, `r`, `d`, and bytes that begin no job
BAD_STATES = bytes(byte for byte in range(256) if byte not in b"#/ \t\n.rd")

Say = Callable[[str], None]     # prints a message of one line, without program and file name
Clock = Callable[[], float]     # returns seconds
Callback = Callable[[], None]
LockFds = tuple[int, ...]       # what a job inherits: LockTable.copy_job_lock()
Fields = dict[str, Any]         # of a JSON object
Identity = tuple[int, int]      # of a file: device and inode number
T = TypeVar("T")
ReaderT = TypeVar("ReaderT", bound="Reader")


class UsageError(Exception):
    """An error that the user can fix: printed as one line, exit status 2."""


def error_text(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


TOO_MANY_PROCESSES = " (too many processes: see ulimit -u)"       # a remedy


@contextmanager
def refused_as(subject: str, remedy: str = "") -> Iterator[None]:
    """Make an OSError of a `with` block a UsageError: `subject`, such as a path, the error, `remedy`."""
    try:
        yield
    except BrokenPipeError:                     # from stdout: run_main() handles it
        raise
    except OSError as error:
        raise UsageError(f"{subject}: {error_text(error)}{remedy}") from None


# Control characters, C0 and C1; characters that turn the direction of writing (Unicode Standard Annex 9, 2);
# line and paragraph separators; and bytes that are C1 for an 8-bit terminal (PEP 383: byte 0x80 is \udc80)
UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\udc80-\udc9f]")


def printable(text: str) -> str:
    """Replace each character that could control a terminal, or begin a new line, by '?'."""
    return UNPRINTABLE.sub("?", text)


def display_text(data: bytes) -> str:
    """Decode bytes for a message, as printable()."""
    return printable(os.fsdecode(data))


def to_text(data: bytes) -> str:
    """Decode bytes for JSON, the wire or a journal, in any locale; to_bytes() reverses it."""
    return data.decode("utf-8", "surrogateescape")


class WireError(Exception):
    """What another program has sent or written is not as agreed."""


def to_bytes(text: str) -> bytes:
    """Return the bytes from which to_text() made this text."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise WireError("invalid text") from None


def one_line(data: bytes) -> bytes:
    return os.fsencode(display_text(data))


def quote(word: bytes) -> bytes:
    return os.fsencode(shlex.quote(os.fsdecode(word)))


DURATION = lazy_pattern(r"(\d+\.?\d*|\.\d+)([smhd%]?)", re.ASCII)
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "%": -1}


def duration(text: str, lower_bound: float = 0.0) -> float | None:
    """Return the seconds in '90', '5m', '1.5h' or '1d'; None for 'none' (no limit); an argparse type.

    lower_bound: the answer must be greater.  A negative one also allows percentages: '300%' gives -300.0.
    0 is always refused: in JobSettings.timeout it means that the directive sets none.
    """
    if text == "none":
        return None
    if match := DURATION.fullmatch(text):
        seconds = float(match[1]) * UNITS[match[2]]
        if lower_bound < seconds < 1e9 and seconds:
            return seconds
    raise ArgumentTypeError(
        f"not a duration: '{printable(text)}' (such as 90, 90s, 5m, 2h, 1d or none; a timeout also 300%)"
    )


time_limit = partial(duration, lower_bound=-1e6)


def integer_between(minimum: int, maximum: int = 1_000_000, hint: str = "") -> Callable[[str], int]:
    """Return an argparse type: a whole number, with both limits allowed.  hint: after the refusal."""
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and minimum <= int(text) <= maximum):
            raise ArgumentTypeError(
                f"not a whole number from {minimum} to {maximum}: '{printable(text)}'{hint}"
            )
        return int(text)
    return parse


SIZE = lazy_pattern(r"([0-9]{1,15}|[0-9]{0,15}\.[0-9]{1,15})([KMGT])", re.ASCII)
SIZE_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def memory_size(text: str) -> int:
    """Return the bytes in '512M', '4G' or '1.5T' (an argparse type)."""
    match = SIZE.fullmatch(text)
    size = int(float(match[1]) * SIZE_UNITS[match[2]]) if match else 0
    if not 0 < size < 1 << 60:
        raise ArgumentTypeError(f"not a size: '{printable(text)}' (such as 512M, 4G, 1.5T)")
    return size


def growing_sizes(text: str) -> tuple[int, ...]:
    """Return the bytes in '4G,16G,64G': a job that had too little memory runs again with the next."""
    sizes = tuple(map(memory_size, text.split(",")))
    if any(size <= previous for previous, size in zip(sizes, sizes[1:])):
        raise ArgumentTypeError(f"not growing: '{printable(text)}' (such as 4G,16G,64G)")
    return sizes


LINES = lazy_pattern(r"([0-9]+)(?:-([0-9]+))?")


def parse_line_ranges(text: str) -> list[range]:
    """Return the line numbers in a list such as '1,2,5-9' (an argparse type)."""
    ranges = []
    for word in text.split(","):
        match = LINES.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 0 < first <= last:
            raise ArgumentTypeError(
                f"not a line number or FROM-TO: '{printable(text)}' (such as 17, 5-9 or 1,2,5-9; "
                "one FILE only; new jobs: --add CMD, or --add --template CMD :::)"
            )
        ranges.append(range(first, last + 1))
    return ranges


def memory_text(size: float) -> str:
    """Return '512M', '4G', '1.5G'."""
    unit = next((unit for unit in "TGM" if size >= SIZE_UNITS[unit]), "K")
    return f"{size / SIZE_UNITS[unit]:.1f}".removesuffix(".0") + unit


def human_time(seconds: float) -> str:
    """Return a time such as '0.4s', '12s', '5m 03s', '3h 12m', '2d 04h'."""
    if seconds < 9.95:                          # 9.96 would become '10.0s'
        return f"{seconds:.1f}s"
    total = round(seconds)
    for unit, inner, size, inner_size in (("d", "h", 86400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if total >= size:
            return f"{total // size}{unit} {total % size // inner_size:02}{inner}"
    return f"{total}s"


def to_milliseconds(seconds: float) -> float:
    """Round a time: round() takes twice as long."""
    return int(seconds * 1000 + 0.5) / 1000


def plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


NAMED_LINES = 8                 # at most, in a message; and hosts


def join_first_few(names: Sequence[object]) -> str:
    """Return '3, 5, 7, ...', with NAMED_LINES names at most."""
    return ", ".join([*map(str, names[:NAMED_LINES]), *["..."] * (len(names) > NAMED_LINES)])


def name_lines(numbers: Iterable[int]) -> str:
    """Return 'line 3', or 'lines 3, 5, 7, ...'."""
    lines = sorted(numbers)
    return f"{'lines' if len(lines) > 1 else 'line'} {join_first_few(lines)}"


def describe_lines_in_doubt(numbers: Iterable[int]) -> str:
    """Return 'lines 5, 41-52 had just ended when ...'."""
    known = {*numbers}
    bounds = zip(sorted(known - {number + 1 for number in known}),
                 sorted(known - {number - 1 for number in known}))
    ranges = ["-".join(dict.fromkeys(map(str, bound))) for bound in bounds]
    return (f"line{'s'[len(known) == 1:]} {join_first_few(ranges)} had just ended when this host was "
            "switched off, or ended after its disk lost writes; results can be lost")


OPTION = lazy_pattern("--[a-z][a-z-]+|-[a-zA-Z]")
SCRIPTS = "runmaker4.py", "runset4.py", "runwait4.py", "runmaker4-server.py", "runmaker4-client.py"


def find_script_with_option(option: str) -> str:
    """Return the name of a script beside this one whose text adds the option; '' if none does."""
    for name in SCRIPTS:
        with suppress(OSError), open(os.path.join(os.path.dirname(__file__), name), "rb") as file:
            if re.search(rf'add\(\s*(?:"-\w", )?"{option}"'.encode(), file.read()):
                return name
    return ""


# by options of GNU parallel, xargs, NetJobs and older versions, which none of ours means
OUR_OPTIONS = {"--retry-failed": "-r", "--resume-failed": "-r", "--max-procs": "-j", "-P": "-j",
               "--halt": "--max-failed", "--dryrun": "--dry-run", "-p": "--port", "-t": "--token",
               "--bar": "runwait4.py --progress", "--eta": "runwait4.py --progress",
               "--add-jobs": "python3 docs/convert.py fjd JOB... | runset4.py FILE --add-list - --new",
               "--add-tests": "python3 docs/convert.py netjobs CONFIG... | runset4.py FILE --add-list -"}


class Parser(argparse.ArgumentParser):
    """Begins the help with the program's purpose, and raises UsageError."""

    def __init__(self, prog: str, purpose: str, usage: str, examples: str, statuses: Mapping[str, str],
                 notes: Mapping[str, str]) -> None:
        super().__init__(
            prog=prog,
            usage=f"{prog} {usage}",
            add_help=False,                     # add_general_options() adds it, below the other options
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.color = False                      # Python 3.14 would colour a part, 3.15 drop backticks
        self.purpose = purpose
        self.examples = examples
        self.statuses = statuses
        self.notes = notes  # by title: a paragraph below the options

    def format_help(self) -> str:
        # the formatter leaves description and epilog as they are, for the examples
        import shutil  # not above: it loads zlib, bz2 and lzma
        width = max(shutil.get_terminal_size().columns - 2, 20)
        self.description = f"{filled(self.purpose, width)}\n\n{self.examples}"
        notes = [filled(f"{title}: {text}", width) for title, text in self.notes.items()]
        statuses = [filled(text, width, f"  {status}  ") for status, text in self.statuses.items()]
        self.epilog = "\n".join([*notes, "Exit status:", *statuses])
        return super().format_help()

    def print_help(self, file: Any = None) -> None:
        print_bytes(self.format_help().encode())

    def parse(self, words: Sequence[str], intermixed: bool = False) -> Namespace:
        """Parse arguments; refuse an unknown option before its value can be taken for FILE.

        intermixed: options can stand between the positional arguments.
        """
        if {":::", "::::"}.intersection(words):         # as for GNU parallel; runset4.py has taken them out
            raise UsageError("::: makes no jobs here (use runset4.py runs.txt --add --template 'convert {}' "
                             "::: *.png, or --add-list FILE)")
        for word in itertools.takewhile(lambda word: word != "--", words):
            option = word.partition("=")[0]
            if OPTION.fullmatch(option) and option not in self._option_string_actions:
                ours = OUR_OPTIONS.get(option, "")
                if ours in self._option_string_actions or " " in ours:
                    raise UsageError(f"unrecognized arguments: {word} (here: {ours})")
                script = find_script_with_option(option)
                if script not in ("", self.prog):
                    raise UsageError(f"{option} is an option of {script}")
                self.error(f"unrecognized arguments: {word}")
        return self.parse_intermixed_args(words) if intermixed else self.parse_args(words)

    def error(self, message: str) -> Any:
        if message.endswith("expected one argument"):       # argparse takes -1 for an option
            message += "; if it begins with -, write OPTION=ARGUMENT"
        raise UsageError(f"{message} (see --help)")


class Once(argparse.Action):
    """Stores the value of an option, and refuses a second one, which would replace it."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Namespace, values: object,
                 option_string: str | None = None) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"two {option_string} (give one)")
        setattr(namespace, self.dest, values)


def filled(text: str, width: int, indent: str = "") -> str:
    """Break a paragraph into lines, not at the hyphens of options; `indent`: how the first line begins."""
    import textwrap  # only --help and runwait4.py need it
    text = " ".join(text.split())
    if 0 < len(text) <= width - len(indent):        # --failed has 100,000 such lines
        return indent + text
    return textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=" " * len(indent), break_on_hyphens=False
    )


def run_main(prog: str, main: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    # No other file may get the number of a closed standard descriptor
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    # one of KILL_SIGNALS came while they were blocked
    for signum in set(KILL_SIGNALS).intersection(signal.sigpending()):
        if signal.getsignal(signum) != signal.SIG_IGN:
            return 128 + signum
    # These now kill us, even while a file system or a server does not answer.  HUP, USR1 and QUIT remain
    # blocked until they have a handler
    signal.pthread_sigmask(signal.SIG_UNBLOCK, KILL_SIGNALS)
    try:
        if os.path.realpath("/proc/self") != f"/proc/{os.getpid()}":
            raise UsageError("/proc is not mounted, or that of another PID namespace; so no process of a job "
                             "can be found (mount it; unshare has --mount-proc)")
        return main(sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        warn(f"{prog}: {error}")
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 0                            # `| head` needs no more


def exit_on(*signums: int) -> None:
    """Make these signals raise SystemExit with status 128 + n, except ignored ones (nohup)."""
    for signum in signums:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, lambda signum, _: sys.exit(128 + signum))


def exit_now(status: int) -> None:
    """Exit without Python's clean-up, which takes as long as 20 short jobs; our output is unbuffered."""
    os._exit(status)


def warn(text: str) -> None:
    with suppress(OSError):      # stderr is closed or full
        write_all(2, os.fsencode(printable(text)) + b"\n")


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all data, waiting as long as that takes; with O_APPEND, behind what other hosts have appended."""
    view = memoryview(data)
    while view:
        try:
            # ceph-fuse (16.2, 20.2) appends at the size that this host knows.  fstat(2) makes that current.
            # Call it only to append: on NFS it waits until the last write is at the server.
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
                os.fstat(fd)
            view = view[os.write(fd, view):]
        except BlockingIOError:             # another process has set O_NONBLOCK on the description
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()


def pwrite_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    while (written := os.pwrite(fd, data, offset)) < len(data):
        data = data[written:]
        offset += written


def is_regular(fd: int) -> bool:
    return S_ISREG(os.fstat(fd).st_mode)


def print_bytes(data: bytes | bytearray) -> None:
    with refused_as("stdout"):
        write_all(1, data)


def once_per_subject(say: Say) -> Callable[[str, str], None]:
    """Return a function of subject and text that prints only the first text of each subject."""
    subjects = set()

    def say_once(subject: str, text: str) -> None:
        if subject not in subjects:
            subjects.add(subject)
            say(text)

    return say_once


def print_lines(lines: Iterable[bytes]) -> int:
    """Print many lines, and return how many; an iterator's need not fit in memory."""
    count = 0
    # a command's control characters must not reach a terminal
    printed_lines = map(one_line, lines) if os.isatty(1) else iter(lines)
    while batch := list(itertools.islice(printed_lines, 1000)):
        print_bytes(b"\n".join(batch) + b"\n")
        count += len(batch)
    return count


# Returns the seconds since boot; time.monotonic() would stop during a suspend (clock_gettime(2)).
boottime = partial(time.clock_gettime, time.CLOCK_BOOTTIME)


class Throttle:
    """Measures one run of a repeated task; the pause, from its end or start, is a multiple of its time.

    Of waits, for a file system or by SIGSTOP, MAX_WAITING_SECONDS count at most: no pause of minutes follows.

        throttle = Throttle()
        with throttle:                          # again for each further part of the run
            count_lines()
        sleep(throttle.pause_seconds(9))        # at most a tenth of the CPU
    """
    MAX_WAITING_SECONDS = 0.15

    def __init__(
        self, clock: Clock = time.monotonic, max_waiting_seconds: float = MAX_WAITING_SECONDS
    ) -> None:
        self.clock = clock
        self._max_waiting_seconds = max_waiting_seconds
        self._started_at = -inf            # the task has not run
        # __enter__() subtracts the clock, __exit__() adds it; so within the `with` block they mean nothing
        self._seconds = 0.0
        self._cpu_seconds = 0.0

    def __enter__(self) -> None:
        """Begin a part of the run, which must end in the same thread: CPU times are per thread."""
        now = self.clock()
        if self._started_at == -inf:
            self._started_at = now
        self._seconds -= now
        self._cpu_seconds -= time.thread_time()

    def __exit__(self, *_: object) -> None:
        self._seconds += self.clock()
        self._cpu_seconds += time.thread_time()

    def pause_seconds(self, factor: float) -> float:
        """Return `factor` times the task's CPU time and a part of its waits."""
        most = self._cpu_seconds + self._max_waiting_seconds
        return factor * (max(self._seconds, self._cpu_seconds) if self._seconds < most else most)

    def seconds_until_due(self, factor: float, min_seconds: float = 0.0) -> float:
        """Return the seconds until the task is to run again; 0: now, also if it has not run yet.

        min_seconds: from one start of the task to the next.
        """
        return max(self._started_at + max(self.pause_seconds(factor), min_seconds) - self.clock(), 0.0)

    def is_due(self, factor: float, min_seconds: float) -> bool:
        """Return True if seconds_until_due() is 0, with fewer calls."""
        age = self.clock() - self._started_at
        return age >= min_seconds and age >= self.pause_seconds(factor)


# ======== Record locks ======================================================================================
#
# Runners coordinate by locks on bytes, which need not exist in the file.  No process blocks on a lock
# (keep_trying()).
#
# The locks are open-file-description locks (fcntl(2)): the description that open() made owns them, not the
# process.  So two opens of one process exclude each other; closing another descriptor of the file frees
# nothing; and a child that inherits the descriptor also holds the lock, until both have closed it or one has
# unlocked it.  The kernel frees the locks of a process that dies in any way: so they are life signs.

FLOCK = struct.Struct("hhqqi4x")        # type, whence, start, length, pid (0 for these locks)
# <bits/fcntl-linux.h>; a Python that was built with headers before glibc 2.20 does not know these
OFD_GETLK, OFD_SETLK = getattr(fcntl, "F_OFD_GETLK", 36), getattr(fcntl, "F_OFD_SETLK", 37)


def lock(fd: int, offset: int, length: int = 1, shared: bool = False) -> bool:
    """Lock bytes without waiting; return False if another description has any of them locked.

    Never lock bytes twice in the same way with one description: the CephFS server merges the two locks into
    one with a 32-bit end (src/mds/flock.cc, adjust_locks(); 16.2: of [0, 2^32 + 5) five bytes remained).
    """
    try:
        fcntl.fcntl(fd, OFD_SETLK, FLOCK.pack(
            fcntl.F_RDLCK if shared else fcntl.F_WRLCK, os.SEEK_SET, offset, length, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def unlock(fd: int, offset: int, length: int = 1) -> None:
    """Unlock bytes, also for children that inherited the descriptor."""
    fcntl.fcntl(fd, OFD_SETLK, FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, offset, length, 0))


def other_lock(fd: int, offset: int, length: int) -> range | None:
    """Return any one part of these bytes that another open file description has locked; None: none has."""
    if not length:
        return None                             # for fcntl(2) a length of 0 means all up to the end
    # an exclusive lock would conflict with shared locks, too
    answer = fcntl.fcntl(fd, OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, length, 0))
    kind, _, start, locked_length, _ = FLOCK.unpack(answer)
    if kind == fcntl.F_UNLCK:
        return None
    stop = start + locked_length
    if not locked_length or stop > offset + length:     # 0: up to the end of the file
        stop = offset + length
    return range(start if start > offset else offset, stop)


def is_free(fd: int, offset: int, length: int = 1) -> bool:
    return other_lock(fd, offset, length) is None


def other_locks(fd: int, offset: int, length: int) -> Iterator[range]:
    """Yield the ranges that other descriptions have locked, in no order; a query for each."""
    unexplored = [(offset, offset + length)]
    while unexplored:
        first, stop = unexplored.pop()
        if locked := other_lock(fd, first, stop - first):
            yield locked
            unexplored.append((first, locked.start))
            unexplored.append((locked.stop, stop))


def keep_trying(attempt: Callable[[], bool], patience: float, pause: float = 0.002) -> bool:
    """Call `attempt` until it returns True, for `patience` seconds at most; return the last result.

    In a lock call that waits, an NFSv4.0 client would poll with pauses of seconds.
    """
    return attempt() or try_again(attempt, patience, pause)


def try_again(attempt: Callable[[], bool], patience: float, pause: float) -> bool:
    """Continue keep_trying() after the first try."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
        if attempt():
            return True
    return False


def lock_random_byte(fd: int) -> int:
    """Lock a random free byte of PROBE_BYTES, for a test of locks or a pulse, and return the offset."""
    while not lock(fd, offset := PROBE_BYTES + int.from_bytes(os.urandom(4), "big")):
        pass
    return offset


# ---- lock files --------------------------------------------------------------------------------------------
#
# When an editor replaces a file, locks would remain on the old one.  So runners lock bytes of a lock file.

JOB_LOCKS_PER_BUCKET = (1 << 16) - 1
MUTEX_OFFSET = JOB_LOCKS_PER_BUCKET            # of the command mutex in a bucket
BUCKET_SIZE = JOB_LOCKS_PER_BUCKET + 1         # bytes
# The first byte after all buckets: older versions lock it in journals.
BUCKETS_END = 1 << 62
APPEND_BYTE = BUCKETS_END + 1      # locked exclusively to append
HERE_BYTE = BUCKETS_END + 2        # shared by all processes that can write states: LockTable._open()
PROBE_BYTES = BUCKETS_END + 3      # 2^32 bytes from here: the start-up test, and pulses, one byte each
# 2^32 bytes from here: presence locks of runners, and then of servers
PRESENCE_BYTES = PROBE_BYTES + (1 << 32)
# 2^61 bytes from here: 2^16 for each name of a limit=.  Each of its jobs has one of the first MAX_LIMIT
# locked, and a process one of the others while its line with that number waits
LIMIT_BYTES = BUCKETS_END + (1 << 61)
MAX_LIMIT = 10_000
MAX_WAIT_NUMBER = BUCKET_SIZE - 2 * MAX_LIMIT   # as each process that waits with a line below takes one more


@functools.lru_cache(1000)
def bucket_of(command: bytes) -> int:
    """Return the offset of a command's bucket; commands that share one by chance wait for each other."""
    return int.from_bytes(blake2b(command, digest_size=8).digest(), "big") >> 18 << 16


def job_lock_offsets(command: bytes) -> range:
    bucket = bucket_of(command)
    return range(bucket, bucket + JOB_LOCKS_PER_BUCKET)


def find_held_job_locks(fd: int) -> Iterator[range]:
    """Yield ranges of job locks that others hold, but none with a command mutex, such as a whole bucket."""
    for locked in other_locks(fd, 0, BUCKETS_END):
        if locked.start | MUTEX_OFFSET not in locked:           # the mutex
            yield locked


LOCK_FILE = lazy_pattern(r"\.(.+)\.lock", re.DOTALL)  # a lock file's name; group 1: the name of the file


def lock_file_of(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.lock")


INODE_LINE_SIZE = 21                # read_inode_line(); then comes the mark for power cuts
# O_NONBLOCK: opening a pipe must not wait
LOCK_FILE_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK


def open_lock_file(path: str, flags: int, network: bool) -> int:
    try:
        return open_direct(path, flags | LOCK_FILE_FLAGS, network)
    except OSError as error:
        # O_NOFOLLOW: by a link, another user could choose the file that we create or lock
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, "is a symbolic link") from None
        raise


def open_lock_file_of(path: str, network: bool = False) -> int:
    """Open the lock file of the file at this path; create it if there is none.

    Only users with write permission for the file may open it: any user who can read a lock file can lock any
    byte, shared, and so stop all runners.  Raises OSError, EPERM if we do not trust the owner.
    """
    lock_path = lock_file_of(path)
    try:
        fd = open_lock_file(lock_path, os.O_RDWR, network)
    except FileNotFoundError:
        fd = open_or_create(lock_path, os.O_RDWR | LOCK_FILE_FLAGS, 0o600, network)
    try:
        lock_status = stat_file_with_one_name(fd)
        read_inode_line(fd, network)            # another program's file can have that name
        file_status = stat_or_none(path)  # None: the file does not exist yet, or is just being replaced
        if lock_status.st_uid not in (os.geteuid(), 0) and not (
                file_status and is_trusted_replacement(lock_status, file_status)):
            raise OSError(
                errno.EPERM,
                f"belongs to {user_name(lock_status.st_uid)}, who could remove it while jobs run "
                "(remove it once no job runs: a new one is created)",
            )
        if file_status and os.geteuid() in (0, lock_status.st_uid):     # others may not change the mode
            share_with_writers(fd, file_status, 0o600)
    except OSError:
        os.close(fd)
        raise
    return fd


def inode_line_of(fd: int) -> bytes:
    return b"%*d\n" % (INODE_LINE_SIZE - 1, os.fstat(fd).st_ino)


def read_inode_line(fd: int, network: bool) -> bytes:
    """Return the first line of a lock file: the inode for which it was written (another one: it is a copy).

    b"": there is none yet.  Raises OSError if the file has other contents: then it is no lock file of ours.
    """
    with Reader.with_own_fd(fd, network) as reader:
        # runners of development versions appended NULs
        contents = reader.pread(INODE_LINE_SIZE, 0).strip(b"\0")
    if not re.fullmatch(b"( *[0-9]+\n)?", contents):
        raise OSError(errno.EEXIST, "is a file with contents, not one for locks")
    return contents


def stat_file_with_one_name(fd: int) -> os.stat_result:
    """Return the status of an open file; raise OSError unless it is a regular file with one name.

    By a hard link, another user could choose the file that we open.
    """
    info = os.fstat(fd)
    if not S_ISREG(info.st_mode):
        raise OSError(errno.EEXIST, "is a directory" if S_ISDIR(info.st_mode) else "not a regular file")
    if info.st_nlink > 1:
        raise OSError(errno.EEXIST, "has several names (hard links)")
    return info


def is_trusted_replacement(new: os.stat_result, old: os.stat_result) -> bool:
    """Return True if the owner of a new job file, lock file or output directory is trusted.

    That is us, root, or one who owned the old file or could write to it.  old: of the replaced job file; for
    the others, of the job file, or of `/` if there is none.
    """
    if new.st_uid in (os.geteuid(), 0, old.st_uid) or old.st_mode & S_IWOTH:
        return True
    return bool(old.st_mode & S_IWGRP) and new.st_gid == old.st_gid


def stat_or_none(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def share_with_writers(fd: int, model: os.stat_result, mode: int | None = None) -> None:
    """Set group and mode of an open file or directory so that users who may write to `model` may write it.

    model: of the job file; for a record, of its directory.  With the sticky bit, as /tmp has it, nothing is
    shared.  mode: to which these rights are added; None: the one that the file has.
    """
    status = os.fstat(fd)
    old_mode = S_IMODE(status.st_mode)     # with setgid
    writers = 0 if model.st_mode & S_ISVTX else model.st_mode & 0o022
    shared = 3 * writers                        # w and r
    if S_ISDIR(status.st_mode):
        shared |= writers >> 1                  # and x
    if writers and status.st_gid != model.st_gid:
        try:
            os.fchown(fd, -1, model.st_gid)
        except OSError:                         # we are not in that group; our own gets no rights
            shared &= 0o007
    new_mode = (old_mode if mode is None else mode) | shared
    if old_mode != new_mode:
        with suppress(OSError):      # it was removed, or the file system has no modes
            os.fchmod(fd, new_mode)


def user_name(uid: int) -> str:
    import pwd  # only error messages need it
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


# ======== File systems ======================================================================================
#
# On network file systems a lock excludes other hosts, but this host can answer from caches:
#
#  what is old                    where (for how long)          what makes it current, and who calls it
#
#  names and sizes in a           NFS (60 s), FUSE (1 s or      refresh_file(): LockTableReader.refresh()
#  directory                      more)                         before each look, refresh_under_lock() once a
#                                                               mutex is locked
#  pages of a file                NFS, CephFS (no limit),       Reader.pread(): O_DIRECT, or drops the pages
#                                 FUSE
#  what a daemon has read for     MooseFS (60 s), JuiceFS (as   Reader.refresh(), a new description:
#  an open description            long as it is open)           reopen_reader_on_fuse() under each mutex, and
#                                                               in JobReader.open_files(), so before
#                                                               each walk and check_jobs()
#  the size to append at          NFS (until it is locked),     RecordFile._find_position() by utimensat(2);
#                                 JuiceFS, ceph-fuse (1 s)      write_all() by fstat(2)
#  files of up to 64 KiB          GlusterFS (1 s)               refresh_file()

MOUNTINFO = "/proc/self/mountinfo"
# Kinds that only one host can use, also fuseblk (FUSE on a disk of this host) and the upper directory of an
# overlay.  Unknown kinds count as network file systems: slow, but right.
LOCAL_KINDS = {
    "", "adfs", "affs", "apfs", "bcachefs", "btrfs", "ecryptfs", "erofs", "exfat", "ext2", "ext3", "ext4",
    "f2fs", "fuse.fuse-overlayfs", "fuseblk", "hfs", "hfsplus", "hugetlbfs", "iso9660", "jfs", "minix",
    "msdos", "nilfs2", "ntfs", "ntfs3", "overlay", "ramfs", "reiserfs", "rootfs", "squashfs", "tmpfs",
    "ubifs", "udf", "ufs", "vfat", "xfs", "zfs",
}
# Tested with several hosts by tests/real: test_nfs.py, test_fs.py and test_machines.py
TESTED_KINDS = {"nfs", "nfs4", "ceph", "gfs2", "fuse.glusterfs", "fuse.ceph-fuse", "fuse.mfs"}


@dataclass(frozen=True)
class Mount:
    """The mount of a file: the kind of file system, such as 'ext4', and options."""
    kind: str
    options: frozenset[str]
    point: str = "/"
    shared: bool = False        # other hosts can use the file (no --single-host), so locks must reach them

    @functools.cached_property
    def network(self) -> bool:
        return self.kind not in LOCAL_KINDS

    @functools.cached_property
    def forgets_locks(self) -> bool:
        """Return True if locks can be lost without an error, as when a GlusterFS brick dies."""
        return self.network and not self.is_nfs

    @functools.cached_property
    def is_nfs(self) -> bool:
        return self.kind in ("nfs", "nfs4")

    @functools.cached_property
    def is_fuse(self) -> bool:
        """Return True if a daemon answers, from another cache (refresh_file, Reader.refresh)."""
        return self.network and self.kind.partition(".")[0] in ("fuse", "virtiofs")


LOCAL = Mount("", frozenset())


def find_mount(path: str, last_line: str = "") -> Mount:
    """Return the mount of a path, which need not exist; LOCAL if /proc/self/mountinfo is unreadable.

    last_line: of the list, with a mount: only those before it count; '': all.
    """
    longest_point, its_line = LOCAL.point, ""
    try:
        path = os.path.realpath(path) + "/"
        # in names blank, tab, newline and backslash are escaped
        with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape", newline="\n") as mounts:
            for line in itertools.takewhile(last_line.__ne__, mounts):
                point = decode_octal_escapes(line.split(" ")[4])
                # the longest mount point counts, of several mounts there the last
                if len(point) >= len(longest_point) and path.startswith(point.rstrip("/") + "/"):
                    longest_point, its_line = point, line
    except OSError:
        pass                            # not Linux, or no current directory: no mount will be refused
    if not its_line:
        return LOCAL
    # proc(5): '36 35 98:0 / /mnt rw,noatime - ext4 /dev/sda rw'
    mount, _, system = its_line.rstrip("\n").partition(" - ")
    options = mount.split(" ")[5]
    kind, source, super_options = system.split(" ")[:3]         # the source can be empty
    source = decode_octal_escapes(source)
    if kind == "fuse" and "#" in source:                        # as mfsmount does: mfs#10.0.0.1:9421
        kind = f"fuse.{source.partition('#')[0]}"
    # Its files are those of another directory, which mountinfo names as the source; locks stop at eCryptfs.
    # Often that is the directory itself: what had been mounted there before
    if kind == "ecryptfs" and (lower_mount := find_mount(source, its_line)).network:
        kind = f"ecryptfs above {lower_mount.kind}"
    return Mount(kind, frozenset(f"{options},{super_options}".split(",")), longest_point)


def decode_octal_escapes(field: str) -> str:
    """Return '/my disk' for '/my\\040disk'."""
    return re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), field)


def open_folder_of(path: str) -> int:
    return os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)


def refresh_file(path: str, mount: Mount) -> None:
    """Drop this host's cache of all files in the folder of this file: names, sizes, contents of small files.

    Raises OSError(EACCES) on FUSE if we may not list the folder.

    - NFS asks the server for names when the directory is opened, and for a size at each lock.
    - FUSE refreshes names and sizes of the whole directory when it is listed (READDIRPLUS;
      fs/fuse/readdir.c, fuse_direntplus_link()).
    - GlusterFS answers reads of files up to 64 KiB, even with O_DIRECT, from a cache that any look-up on this
      host fills for a second (xlators/performance/quick-read).  A listing drops old entries
      (qr_readdirp_cbk()).
    """
    try:
        fd = open_folder_of(path)
    except PermissionError:
        if not mount.is_fuse:
            return                      # we may use the names in the directory, but not list them
        raise OSError(
            errno.EACCES,
            "no permission to list the directory, which is needed to see the writes of other hosts",
        ) from None
    try:
        if mount.is_fuse:
            os.listdir(fd)
    finally:
        os.close(fd)


# ---- reading data of other hosts ---------------------------------------------------------------------------
#
# A lock alone makes cached pages current on NFS only.  So on network file systems the protocol reads with
# O_DIRECT, in whole aligned blocks, as some of them require (open(2), NOTES).  It writes through another
# descriptor, without O_DIRECT (GlusterFS refuses to write single bytes with it), and syncs.

BLOCK = 4096                    # bytes
MAKING = 20                     # attempts to open a file that another host is creating

# After these errors the locks of a descriptor can be lost
LOCKS_LOST = (errno.EIO, errno.ESTALE, errno.EBADF, errno.EBADFD, errno.ENOTCONN)


# No process has this descriptor (sysctl_nr_open_max in fs/file.c): EBADF; for -1 fcntl() raises ValueError
CLOSED = (1 << 31) - 1


class Opened:
    """An object with a file that is open, or closed for now."""
    fd = CLOSED

    @property
    def is_open(self) -> bool:
        return self.fd != CLOSED

    def detach(self) -> int:
        """Become closed, and return the descriptor, which the caller must close."""
        fd = self.fd
        self.fd = CLOSED
        return fd

    def close(self) -> None:
        close_all(self.detach())


class Reading(Enum):
    """How a Reader avoids old data in this host's page cache."""
    CACHED = "with pread(2): this host alone uses the file"
    DIRECT = "with O_DIRECT"
    DROPPED = "with pread(2), after asking the kernel to drop the pages: the file system refuses O_DIRECT"


class Reader(Opened):
    """An open file; reads return the current contents, not old pages of this host's cache."""

    def __init__(self, fd: int = CLOSED, network: bool = False) -> None:
        """Read through `fd`, which close() will close.  network: open_direct() has opened it."""
        self.fd = fd
        self.reading_mode = Reading.CACHED
        if network:
            self.reading_mode = (Reading.DIRECT if fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_DIRECT
                                 else Reading.DROPPED)

    @classmethod
    def with_own_fd(cls: type[ReaderT], fd: int, network: bool) -> ReaderT:
        """Return a reader with its own descriptor: on a network, data read through `fd` can be old."""
        if not network:
            return cls(os.dup(fd))
        return cls(open_direct(f"/proc/self/fd/{fd}", os.O_RDONLY, network), network)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refresh(self, mount: Mount) -> None:
        """Make later reads return what other hosts had written by now.  Call refresh_file() first.

        A FUSE daemon can cache data for each open file description, even with O_DIRECT, so open a new one.
        In MooseFS a thread of the daemon learns that a file has changed, perhaps after another one that a
        lock is granted (mfsclient/extrapackets.c, readdata.c).
        """
        if mount.is_fuse and self.is_open:
            direct = os.O_DIRECT if self.reading_mode is Reading.DIRECT else 0
            old_fd = self.fd
            self.fd = os.open(f"/proc/self/fd/{old_fd}", os.O_RDONLY | direct)
            os.close(old_fd)

    def pread(self, size: int, offset: int) -> bytes:
        """Return `size` bytes from an offset on; fewer only at the end of the file."""
        if self.reading_mode is Reading.CACHED:
            return os.pread(self.fd, size, offset)
        if self.reading_mode is Reading.DIRECT:
            try:
                return self._read_blocks(size, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            # The file system refuses to read with O_DIRECT
            fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) & ~os.O_DIRECT)
            self.reading_mode = Reading.DROPPED
        if self.reading_mode is Reading.DROPPED:
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(self.fd, size, offset)

    def _read_blocks(self, size: int, offset: int) -> bytes:
        """Do pread() with O_DIRECT, which needs whole blocks and aligned memory: mmap() gives pages."""
        skipped = offset % BLOCK
        first_block = offset - skipped
        total = -(-(skipped + size) // BLOCK) * BLOCK           # rounded up
        memory = memoryview(mmap.mmap(-1, max(total, BLOCK)))       # not 0 bytes, which mmap() refuses
        bytes_read = 0
        while bytes_read < total:
            count = os.preadv(self.fd, [memory[bytes_read:total]], first_block + bytes_read)
            bytes_read += count
            if not count or count % BLOCK:              # the end of the file
                break
        return bytes(memory[skipped:min(skipped + size, bytes_read)])


def open_direct(path: str, flags: int, network: bool, mode: int = 0o777) -> int:
    """Open a file, on a network file system with O_DIRECT unless that is refused (EINVAL)."""
    if network:
        try:
            return os.open(path, flags | os.O_DIRECT, mode)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return os.open(path, flags, mode)


def open_or_create(path: str, flags: int, mode: int, network: bool = False) -> int:
    """Open or create a file.  If two hosts create it at once, MooseFS gives one EEXIST: then try again."""
    for _ in range(MAKING):
        with suppress(FileExistsError):
            return open_direct(path, flags | os.O_CREAT, network, mode)
        time.sleep(0.1)
    return open_direct(path, flags | os.O_CREAT, network, mode)


def copy_owner_and_mode(new_fd: int, old_info: os.stat_result) -> None:
    """Give a new file the owner, group and mode of the one that it replaces, as far as the kernel allows."""
    mode = S_IMODE(old_info.st_mode)
    for owner in old_info.st_uid, -1:
        # Only root may change the owner; others may only set a group that they are in
        with suppress(PermissionError):
            os.fchown(new_fd, owner, old_info.st_gid)
            break
    else:
        mode &= ~0o070 | mode << 3                      # our group gets only what all have
    os.fchmod(new_fd, mode)                             # last: fchown(2) can clear set-ID bits


# ---- appending ---------------------------------------------------------------------------------------------

def _read_size_and_last_byte(file: Reader) -> tuple[int, bytes]:
    info = os.fstat(file.fd)
    if not info.st_nlink:
        raise OSError(errno.ENOENT, "was removed")
    return info.st_size, file.pread(1, info.st_size - 1) if info.st_size else b""


def find_append_position(file: Reader, path: str, mount: Mount, header: bytes = b"") -> tuple[int, bytes]:
    """Return the size of a file, and the bytes to write before the next line that is appended.

    These are `header` for an empty file, and a newline if the last line has none.  Raises OSError(ENOENT) if
    the file was removed.  On a network file system the size can be an older one: within a line, the file then
    gets an empty line; if the file only seems empty, a second header.
    """
    size, last_byte = _read_size_and_last_byte(file)
    if mount.network and not last_byte:
        with suppress(OSError):
            refresh_file(path, mount)
        size, last_byte = _read_size_and_last_byte(file)
    if not size:
        return 0, header
    return size, b"" if last_byte == b"\n" else b"\n"


def append_at(fd: int, lines: bytes | bytearray, size: int, separator: bytes) -> None:
    """Append lines to a file, all or none, and sync: a network file system reports errors only then.

    The caller has opened `fd` with O_APPEND, and holds the append lock.  size, separator: of
    find_append_position(), called under that lock.
    """
    written = 0
    try:
        for part in (separator, lines):         # not joined: a long list would be in memory twice
            unwritten = memoryview(part)
            while unwritten:
                count = os.write(fd, unwritten)
                unwritten = unwritten[count:]
                written += count
        os.fsync(fd)
    except OSError as error:
        # Cut off the part of a line, unless another process can have appended, as after lost locks
        if written and error.errno not in LOCKS_LOST and os.fstat(fd).st_size == size + written:
            os.ftruncate(fd, size)
        raise


# of a description to append (02000), or only to write (1), in /proc/PID/fdinfo/FD (proc(5))
WRITES = lazy_pattern(rb"flags:\s+\d*(?:[2367]\d{3}|1)\n")


def find_writer(fd: int) -> str:
    """Return the number of a process that has a file open to append, or only to write; '': none is seen.

    Programs of ours keep a job file open to read and write.  Not found: one of another host, PID or mount
    namespace, or of a user whose descriptors we may not see (proc(5)).
    """
    import glob
    # names, because stat(2) could wait for a file server that is away
    path = os.readlink(f"/proc/self/fd/{fd}")
    for link in glob.iglob("/proc/[0-9]*/fd/*"):
        with suppress(OSError):                 # it was closed
            if os.readlink(link) == path:
                with open(link.replace("fd", "fdinfo"), "rb") as fields:
                    if WRITES.search(fields.read()):
                        return link.split("/")[2]
    return ""


# ---- identity of files, lost locks -------------------------------------------------------------------------
#
# A path can lead to another file at any time, and a host that was cut off loses locks without a notice.


def lost_locks(fd: int, offsets: Iterable[int], mount: Mount) -> set[int]:
    """Return the offsets at which this descriptor, which had locked them all, has no lock now.

    On NFS, a read through `fd` then fails, and all locks count as lost.  Elsewhere, a query through a second
    description must find our lock, and one through `fd` no other.
    """
    if not mount.forgets_locks:
        try:
            Reader(fd, True).pread(1, 0)
        except OSError as error:
            if error.errno not in LOCKS_LOST:
                raise
            return set(offsets)
        return set()
    second_fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    try:
        return {offset for offset in offsets if is_free(second_fd, offset) or not is_free(fd, offset)}
    finally:
        os.close(second_fd)


def file_identity_lines(fd: int) -> list[bytes]:
    """Return mount id and inode number of a file, without asking an NFS server; [] before Linux 5.14."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
        identity = [line for line in lines if line.startswith((b"mnt_id:", b"ino:"))]
    return identity if len(identity) == 2 else []


def path_names_fd(path: str, fd: int) -> bool:
    """Return True if a path names this open file; False: another file, or a symbolic link.

    Call refresh_file() first: this host's cache of names answers.  Raises FileNotFoundError.
    """
    path_fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        # as /proc has it: stat(2) would ask an NFS server
        if not (identity := file_identity_lines(path_fd)):
            return os.path.sameopenfile(path_fd, fd)            # this asks an NFS server
        return identity == file_identity_lines(fd)
    finally:
        os.close(path_fd)


def mount_error(mount: Mount) -> str:
    """Return why locks on this mount do not exclude other hosts; '' if no reason is known."""
    kind = mount.kind
    options = mount.options
    if kind == "nfs":                       # version 3 or older; version 4 is nfs4, and ignores these options
        for option in ("nolock", "local_lock=posix", "local_lock=all"):
            if option in options:
                return f"is on NFS mounted with {option}: locks do not reach other hosts"
    if kind in ("lustre", "gfs2") and options & {"localflock", "noflock", "localflocks"}:
        return "is on Lustre mounted without flock, or GFS2 with localflocks: locks do not reach other hosts"
    if kind == "ocfs2" and "cluster_stack=pcmk" not in options:
        return "is on OCFS2 with the cluster stack o2cb: locks do not reach other hosts"
    if kind in ("cifs", "smb3") and "nobrl" not in options:
        return f"is on {kind}: locks keep other hosts from reading, and need nobrl to work on this one"
    if kind in ("9p", "cifs", "smb3", "hostfs") or kind.startswith("ecryptfs above "):
        return f"is on {kind}: locks do not reach other hosts"
    return ""


OTHER_MOUNT = "use another file system, or --single-host if no other host uses the file"


def refuse_local_locks(fd: int, mount: Mount) -> None:
    """Raise OSError(EOPNOTSUPP) if locks on FUSE do not exclude other hosts.  `fd` must hold a lock.

    If the daemon gets no lock calls, the kernel of this host keeps the locks (fs/fuse/file.c,
    fuse_file_lock()), and lists them in fdinfo (proc(5), since Linux 4.1).
    """
    if mount.is_fuse:                   # elsewhere the list tells nothing
        with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
            if any(line.startswith(b"lock:") for line in lines):
                raise OSError(
                    errno.EOPNOTSUPP,
                    f"is on {mount.kind}, mounted so that locks do not reach other hosts ({OTHER_MOUNT})",
                )


def check_mount(path: str, single_host: bool) -> Mount:
    """Return the mount of a path; raise UsageError if locks there are known not to exclude other hosts.

    single_host: no other host uses the file, so accept any mount.
    """
    mount = find_mount(path)
    if single_host:
        return mount
    if why := mount_error(mount):
        raise UsageError(f"{path}: {why} ({OTHER_MOUNT})")
    return replace(mount, shared=mount.network)


# ======== Job lines and directives ==========================================================================
#
# A Scan finds the next line in a wanted state, or directive, by one regular expression: a million done lines
# cost no more than a search.

UTF8_MARK = b"\xef\xbb\xbf"
JOB_LINE = re.compile(rb"\n([^#/ \t\n])[ \t]")
DIRECTIVE = b"#"                # the "state" of a Line that is a directive
# a directive, or a comment that looks like one: its author could lose a barrier
DIRECTIVE_LIKE = rb"#RUN|(?i:[ \t]*#[ \t]*run[ \t]+(?:(?:barrier|pause|end)[ \t\r\n]|[-\w]+=))"


class Line:
    """A job line as it was read."""
    __slots__ = "command", "is_complete", "number", "offset", "state", "text"

    def __init__(self, number: int, offset: int, state: bytes, text: bytes, is_complete: bool = True) -> None:
        """text: between the state and the newline: separator, command, perhaps \\r.  is_complete: it ends
        with a newline.
        """
        self.number = number        # as in editors, from 1; kept up to date while the line is claimed
        self.offset = offset        # of the state byte
        self.state = state
        self.text = text
        self.is_complete = is_complete
        self.command = text[1:].removesuffix(b"\r")

    def __bytes__(self) -> bytes:
        return b"%d %s %s" % (self.number, self.state, self.command)


LONGEST_COMMAND = (128 << 10) - 1       # bytes: execve(2) accepts an argument of 128 KiB, with its NUL


def command_error(command: bytes) -> str:
    """Return why no runner can start a command; '' if it is valid."""
    if len(command) > LONGEST_COMMAND:
        return "the command is longer than 128 KiB (put it into a script)"
    return "" if command.strip() else "no command after the state"


def is_continued(command: bytes) -> bool:
    """Return True if a backslash at the end quotes the newline."""
    return (len(command) - len(command.rstrip(b"\\"))) % 2 == 1


class FileChangedError(OSError):
    """A line has moved, or the lock file is another one: the file was edited or replaced."""

    def __init__(self, what: str = "was replaced by another file") -> None:
        super().__init__(errno.ESTALE, what)


def changed_if_gone(error: OSError) -> OSError:
    """Return a FileChangedError if the file to open is gone; otherwise the error."""
    return FileChangedError() if error.errno in (errno.ENOENT, errno.ESTALE) else error


class Paused(Exception):
    """Raised by a scan after the time Scan.pause_at; next() continues."""


class Scan:
    """One walk through a job file, in chunks, from one line in a wanted state to the next.

    Chunks are small at first and after reread_from(), so that the next line comes from a fresh read.
    """
    MIN_CHUNK_SIZE = 4096                # bytes
    MAX_CHUNK_SIZE = 1 << 20

    def __init__(self, file: Reader, start: int, states: bytes | None = None, *,
                 with_directives: bool = False, counted: Counter[bytes] | None = None,
                 check_numbers: bool = False) -> None:
        """Start at the offset `start`, where a line begins.  states: the wanted states; None: all.

        counted: gets the number of job lines in each state, also of unwanted lines.
        check_numbers: raise FileChangedError if an edit has made line numbers wrong.
        with_directives: also find #RUN lines.
        """
        self.file = file
        self._checks_numbers = check_numbers
        self._with_directives = with_directives
        self._states = states
        self._buffer = b"\n"
        self._buffer_offset = start - 1  # of buffer[0] in the file
        self._position = 0      # an index of the buffer; all before is searched, and the lines are counted
        self.line_number = 0    # of the last line that begins at or before this position; 0: none does
        self.counted = counted
        self.chunk_size = self.MIN_CHUNK_SIZE      # bytes
        self.last: Line | None = None              # found by next(); None: none yet
        # Paused comes after the first whole chunk past this time (monotonic)
        self.pause_at = inf

    def next(self, states: bytes = b"") -> Line | None:
        """Return the next wanted line; None at the end of the file, to which job lines can be added later.

        states: instead of the wanted ones.  Raises Paused after the time pause_at, and with check_numbers
        FileChangedError if an edit has moved the last line found.
        """
        pattern = wanted_lines_pattern(states or self._states, self._with_directives)
        while True:
            if match := pattern.search(self._buffer, self._position):
                # a match begins with the newline before the line
                return self._parse_line_at(match.start() + 1)
            if not self._read_chunk():
                return None

    def __iter__(self) -> Iterator[Line]:
        return iter(self.next, None)

    def skip_to(self, number: int) -> None:
        """Go down to the line with this number, or to the end of the file, so that next() begins there."""
        while self.line_number + self._buffer.count(b"\n", self._position) < number:
            self._count_lines_to(len(self._buffer))
            if not self._read_chunk():
                return
        while self.line_number < number - 1:
            self._count_lines_to(self._buffer.index(b"\n", self._position) + 1)

    @property
    def end(self) -> int:
        """Return the offset up to which the file was read."""
        return self._buffer_offset + len(self._buffer)

    def seek_back(self, line: Line) -> None:
        """Let next() return a job line again.  Raises FileChangedError as reread_from()."""
        self.last = line
        self.line_number = line.number - 1
        self.reread_from(line)

    def reread_from(self, last_line: Line, data: bytes = b"") -> None:
        """Read the file again from the line returned last: others can have claimed lines below.

        data: what read_line() has just read there; b"": nothing.  Raises FileChangedError unless the line is
        still there, in any state: line numbers can be wrong.
        """
        self.chunk_size = self.MIN_CHUNK_SIZE
        is_checked = data != b""
        if not is_checked:
            line_size = len(last_line.text) + 2         # with state and newline
            data = self.file.pread(max(self.chunk_size, line_size), last_line.offset)
        self._buffer = b"\n" + data
        self._buffer_offset = last_line.offset - 1
        # from 0 next() finds the line again, from 1 the next one
        self._position = 0 if self.line_number < last_line.number else 1
        if not (is_checked or has_line_at(self._buffer, 1, last_line)):
            raise FileChangedError

    def _parse_line_at(self, state_index: int) -> Line:
        """Return the line whose state is buffer[state_index], move the position there, and set `last`."""
        newline = self._buffer.find(b"\n", state_index)
        if newline < 0:
            self._drop_buffer_to(state_index - 1)   # buffer[0] is the newline before the line
            state_index = 1
            while newline < 0:
                length = len(self._buffer)
                # at least twice as much, so a long line takes few reads
                self._buffer += self.file.pread(max(self.chunk_size, length), self._buffer_offset + length)
                if len(self._buffer) == length:     # the end of the file
                    break
                newline = self._buffer.find(b"\n", length)
        self._count_lines_to(state_index)
        is_complete = newline >= 0
        line_end = newline if is_complete else len(self._buffer)
        # a malformed directive can begin with a blank
        state = self._buffer[state_index:state_index + 1].strip(b" \t") or DIRECTIVE
        text = self._buffer[state_index + 1:line_end]
        self.last = Line(self.line_number, self._buffer_offset + state_index, state, text, is_complete)
        return self.last

    def _count_lines_to(self, stop: int) -> None:
        self.line_number += self._buffer.count(b"\n", self._position, stop)
        if self.counted is not None:
            # the last newline can be at stop - 1, and a job follow it
            self.counted.update(JOB_LINE.findall(self._buffer, self._position, stop + 2))
        self._position = stop

    def _read_chunk(self) -> bool:
        """Add the next chunk of the file, also if Paused is raised.  Return False at the end of the file."""
        data = self.file.pread(self.chunk_size, self._buffer_offset + len(self._buffer))
        # A match can begin in one chunk and end in the next.  At the end of the file only a line that has
        # just begun is not counted
        overlap = 64 if data else 2
        self._drop_buffer_to(max(self._position, len(self._buffer) - overlap))
        self._buffer += data
        is_whole = len(data) == self.chunk_size
        self.chunk_size = min(2 * self.chunk_size, self.MAX_CHUNK_SIZE)
        if is_whole and time.monotonic() > self.pause_at:
            raise Paused
        return bool(data)

    def _drop_buffer_to(self, stop: int) -> None:
        """Count the lines of buffer[:stop], and drop this part."""
        if self._checks_numbers and self.last:
            text = self.last.text[:64]
            if self.file.pread(len(text), self.last.offset + 1) != text:
                raise FileChangedError
        self._count_lines_to(stop)
        self._buffer = self._buffer[stop:]
        self._buffer_offset += stop
        self._position = 0


@functools.cache
def wanted_lines_pattern(states: bytes | None, with_directives: bool) -> re.Pattern[bytes]:
    """Return a pattern that begins with the newline before a line.  states: None: all; b"": no job line."""
    beginnings = []
    if states is None:
        beginnings.append(rb"[^#/ \t\n][ \t]")
    elif states:
        beginnings.append(rb"[" + re.escape(states) + rb"][ \t]")
    if with_directives:
        beginnings.append(DIRECTIVE_LIKE)
    return re.compile(rb"\n(" + rb"|".join(beginnings) + rb")")


def whole_lines(file: Reader, start: int) -> Iterator[bytes]:
    """Yield the file from an offset on at which a line begins, in pieces of whole lines.

    Only the last piece lacks a newline, and can be empty.
    """
    incomplete: list[bytes] = []
    offset = start
    # small at first: with O_DIRECT an NFS client asks the server also for bytes beyond the end of the file
    size = 4096
    while True:
        data = file.pread(size, offset)
        lines, newline, rest = data.rpartition(b"\n")
        if newline:
            yield b"".join((*incomplete, lines, newline))
            incomplete = []
        incomplete.append(rest)
        if len(data) < size:
            break
        offset += size
        size = min(4 * size, 1 << 20)
    yield b"".join(incomplete)


def lines_of_piece(piece: bytes) -> list[bytes]:
    """Return the lines of a piece of whole_lines(), without newlines."""
    return piece.removesuffix(b"\n").split(b"\n")


def find_command_lines(file: Reader, start: int, commands: Collection[bytes]) -> Iterator[Line]:
    """Yield the job lines with one of these commands, in any state; the line at `start` has number 1."""
    if not commands:
        return                                  # and do not read the file
    number = 0
    offset = start
    for lines in whole_lines(file, start):
        for whole_line in lines_of_piece(lines):
            number += 1
            # a look-up is faster than parsing
            if whole_line[2:].removesuffix(b"\r") in commands and JOB_LINE.match(b"\n" + whole_line):
                yield Line(number, offset, whole_line[:1], whole_line[1:], lines.endswith(b"\n"))
            offset += len(whole_line) + 1


def count_running(lines: bytes, command: bytes) -> int:
    """Count the lines `r` of a command, in text where each has a newline before and after it."""
    # all pieces but the first and last follow a state r, and end before a newline: one more r ends the last
    count = 0
    for piece in (lines + b"r").split(b"\nr")[1:-1]:
        text = piece.partition(b"\n")[0]
        count += text[:1] in (b" ", b"\t") and text[1:].removesuffix(b"\r") == command
    return count


def first_line_offset(file: Reader) -> int:
    """Return the offset of the first line: 3 after a UTF-8 byte-order mark, otherwise 0.

    Raises OSError for UTF-16, in which no job would be found.
    """
    head = file.pread(BLOCK, 0)
    low, high = sorted([head[::2].count(0), head[1::2].count(0)])
    # without a mark: NULs only among every other byte, and more than half of these
    if (len(head) > 3 and not low and 4 * high > len(head)) or head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise OSError(errno.EILSEQ, "is UTF-16 (save it as UTF-8)")
    return 3 if head.startswith(UTF8_MARK) else 0


def lstat_refusing_symlink(path: str) -> os.stat_result:
    """Return the status of a job file; raise OSError(ELOOP) if the path is a symbolic link.

    The lock file is named after the path, so runners would not see the locks of users of a link.
    """
    info = os.lstat(path)
    if S_ISLNK(info.st_mode):
        target = os.path.realpath(path)
        is_pipe = target.startswith("/proc/")       # of <(...); nothing has this name
        remedy = "name a regular file" if is_pipe else f"name the file itself: {target}"
        raise OSError(errno.ELOOP, f"is a symbolic link ({remedy})")
    return info


def open_job_file(path: str, flags: int) -> int:
    """Open a job file: a regular file, no symbolic link, not UTF-16.  Raises UsageError."""
    try:
        mode = lstat_refusing_symlink(path).st_mode
        if not S_ISREG(mode):
            raise UsageError(f"{path}: is {'a directory' if S_ISDIR(mode) else 'not a regular file'} "
                             "(expected a job file)")
        fd = os.open(path, flags | os.O_NOFOLLOW)
        try:
            first_line_offset(Reader(fd))              # refuses UTF-16
        except OSError:
            os.close(fd)
            raise
        return fd
    except OSError as error:
        remedies = {
            errno.ENOENT: " (make it, with a line '. COMMAND' for each job)",
            errno.EACCES: f" (it must be readable{' and writable' if flags & os.O_RDWR else ''})",
            errno.EROFS: " (jobs are claimed by writing to it)",
        }
        raise UsageError(f"{path}: {error_text(error)}{remedies.get(error.errno or 0, '')}") from None


@contextmanager
def job_file(path: str, network: bool) -> Iterator[Reader]:
    """Open a job file to read; in the `with` block an OSError becomes a UsageError."""
    fd = open_job_file(path, os.O_RDONLY)
    try:
        with refused_as(path), Reader.with_own_fd(fd, network) as file:
            yield file
    finally:
        os.close(fd)


# ---- directives --------------------------------------------------------------------------------------------
#
# A line `#RUN ...` applies to all jobs below, up to the next directive of the same kind.  A Directives is the
# combined effect of all directives above a line.


SHELL = "/bin/sh"
# Names of shells that understand Processes.SHELL_SCRIPT; with `true -c JOB` the job would count as done
POSIX_LIKE = lazy_pattern(r"(z?sh|[bdy]?ash|(m|l|o|lo|pd)?ksh)(-?[0-9][-+.\w]*|-static)?", re.ASCII)


class Resources(NamedTuple):
    """The needs of a job, the capacity of a runner, or the free part of it: docs/architecture.md."""
    slots: float
    memory: float = 0           # bytes

    def __str__(self) -> str:
        """Return '4 slots', '16G of memory', or '4 slots and 16G of memory'."""
        slots = f"{self.slots:.0f} slots"
        memory = f"{memory_text(self.memory)} of memory"
        if not self.memory:
            return slots
        return memory if self.slots == 1 else f"{slots} and {memory}"

    def __sub__(self, taken: Resources) -> Resources:
        return Resources(self.slots - taken.slots, self.memory - taken.memory)

    def holds(self, needs: Resources) -> bool:
        """Return True if there is enough for a job.  For one without memory=, free memory can be negative."""
        return needs.slots <= self.slots and (not needs.memory or needs.memory <= self.memory)


class Limit(NamedTuple):
    """At most how many jobs of a name run at once, on all hosts."""
    name: str
    maximum: int

    def __str__(self) -> str:
        """Return 'matlab: 3 of 3'."""
        return f"{self.name}: {self.maximum} of {self.maximum}"

    @property
    def offsets(self) -> range:
        """Return the bytes of the lock file of which each of these jobs has one locked."""
        start = LIMIT_BYTES + (bucket_of(os.fsencode(self.name)) >> 1 & ~MUTEX_OFFSET)
        return range(start, start + self.maximum)

    def waits(self, number: int) -> range:
        """Return the bytes of the lines up to this number: locked while the line waits for the limit."""
        start = self.offsets.start + MAX_LIMIT
        return range(start, start + min(number, MAX_WAIT_NUMBER))


ONE_SLOT = Resources(1)                 # the needs of a job without slots= and memory=
UNBOUNDED = Resources(inf, inf)


@dataclass(eq=False)
class JobSettings:
    """The settings that a directive gives the jobs below it."""
    line: Line | None = None            # the directive; None: there is none
    # seconds; None: no limit; 0: the option of the runner counts; negative: percent of Journal.median(), if
    # that is known, and MIN_PERCENT_SECONDS at least
    timeout: float | None = 0.0
    hosts: tuple[str, ...] = ()         # names and patterns, in lower case; (): any host
    together: str = ""                  # the name of a group; "": no group
    min_hosts: int | None = None        # of the group; None: all
    needs: Resources = ONE_SLOT
    # for later runs, one after the other, after a run that lacked memory
    larger_needs: tuple[Resources, ...] = ()
    shell: str = SHELL                  # a name or path
    limits: tuple[Limit, ...] = ()
    hours: frozenset[int] = frozenset()     # minutes of a week, from Monday, 00:00, on; empty: all
    start: float = 0.0                  # by from=; seconds since the epoch
    name: str = ""                      # for after= below; "": none
    after: tuple[str, ...] = ()         # names and patterns; the jobs wait for all above of these names
    awaited: list[Named] = field(default_factory=list)      # those names, but for some that are done
    # paths of files that travel to a client, and back; {2} is a word of the command: see fill_in_words()
    send: tuple[str, ...] = ()
    fetch: tuple[str, ...] = ()
    scratch: str = ""                   # "yes": a job runs in a JobDirectory, and fetch= can have patterns

    def find_awaited(self) -> Named | None:
        """Return a name with unfinished jobs for which these wait, if possible one with a bad job; or None.

        A name that is done above is not asked again: with a pattern there can be many.
        """
        while self.awaited and not self.awaits(self.awaited[-1]):
            self.awaited.pop()
        return self.awaited[-1] if self.awaited else None

    def awaits(self, named: Named) -> bool:
        """Return True if a job of a name above is not done."""
        return self.line is not None and any(offset < self.line.offset for offset in named.unfinished)

    def __str__(self) -> str:
        """Return what a job waits for: 'host bob with 4 slots or more (#RUN in line 4)'."""
        if not self.hosts:
            names = "a client of a server" if self.scratch else "a runner"
        elif len(self.hosts) == 1:
            names = f"host {self.hosts[0]}"
        else:
            names = f"one of the hosts {join_first_few(self.hosts)}"
        needs = "" if self.needs == ONE_SLOT else f" with {self.needs} or more"
        return printable(f"{names}{needs} ({self.where})")

    def is_open(self, now: float) -> bool:
        """Return True if hours= and from= let the jobs start.  now: by time.time(), which can be set back."""
        local = time.localtime(now)
        minute = (local.tm_wday * 24 + local.tm_hour) * 60 + local.tm_min
        return now >= self.start and (not self.hours or minute in self.hours)

    def describe_opening(self, now: float) -> str:
        """Return when is_open() will be True, for example '20:00 (in 3h 12m)'."""
        first = max(now, self.start)
        # minute by minute: when the clocks change, a day lacks an hour, or has one twice
        minutes = itertools.count(first // 60 * 60 + 60, 60)
        opening = next(filter(self.is_open, itertools.chain([first], minutes)))
        form = "%H:%M" if opening - now < 86400 else "%F %H:%M"
        return f"{time.strftime(form, time.localtime(opening))} (in {human_time(opening - now)})"

    @functools.cached_property
    def is_restricted(self) -> bool:
        """Return True if the jobs wait for a limit=, or for hours= or from=."""
        return bool(self.limits or self.hours or self.start)

    @property
    def where(self) -> str:
        """Return '#RUN in line 4'; 'no #RUN line' for the defaults."""
        return f"#RUN in line {self.line.number}" if self.line else "no #RUN line"


NO_SETTINGS = JobSettings()


ConsumerKey = tuple[tuple[str, ...], Resources, str, bool]
Restriction = tuple[tuple[Limit, ...], frozenset[int], float, ConsumerKey]


class Directives(NamedTuple):
    """The combined effect of the directives above a line of a job file."""
    settings: JobSettings = NO_SETTINGS
    barrier: Line | None = None             # the last one, or a `#RUN pause`
    barrier_kind: str = ""                  # "barrier", "barrier check" or "pause"
    end: Line | None = None                 # the last `#RUN end`
    error: str = ""                         # the error in the first malformed directive: jobs below it wait

    @property
    def below_end(self) -> bool:
        """Return True below a `#RUN end`, where runners with --follow take no jobs."""
        return self.end is not None

    @property
    def consumer_key(self) -> ConsumerKey:
        """Return all conditions but together= for the consumers of these jobs."""
        return self.settings.hosts, self.settings.needs, self.settings.scratch, self.below_end

    @property
    def restriction(self) -> Restriction:
        """Return what jobs share of which none may start if the first may not, whatever their directives."""
        return self.settings.limits, self.settings.hours, self.settings.start, self.consumer_key

    def with_directive(self, line: Line) -> Directives:
        """Return these directives with the effect of one more, below them in the file.

        If that is malformed, the result has an `error` (the first one remains), and no settings.
        """
        try:
            directive = parse_directive(line.text)
        except ValueError as error:
            return self._replace(settings=NO_SETTINGS, error=self.error or f"line {line.number}: {error}")
        if isinstance(directive, JobSettings):
            return self._replace(settings=replace(directive, line=line))
        if directive == "end":
            return self._replace(end=line)
        return self._replace(barrier=line, barrier_kind=directive)

    @property
    def group_key(self) -> tuple[object, ...]:
        """Return what all jobs of a together= group have in common."""
        return self.settings.together, self.barrier, self.end, self.error


NO_DIRECTIVES = Directives()                   # above the first directive


@dataclass(eq=False)
class Consumer:
    """A runner on the file, or a client of a server, that takes jobs."""
    name: str                   # the host name
    follow: bool = False        # it waits for more jobs, and exits at `#RUN end`
    # The states of lines that it runs again (--retry, --resume): `!` and `e` once; `r` means orphans, always
    retry: bytes = b""
    capacity: Resources = UNBOUNDED
    free: Resources = UNBOUNDED
    runs_short_jobs: bool = False       # so a claim locks all of a bucket if it can
    is_client: bool = True              # only clients take jobs with scratch=yes

    def matches_host(self, pattern: str) -> bool:
        """Return True if a pattern of host= matches the host name, or its part up to the first dot."""
        name = self.name.lower()
        return any(fnmatch.fnmatchcase(host_name, pattern) for host_name in (name, name.partition(".")[0]))

    def matches_hosts(self, patterns: Sequence[str]) -> bool:
        return not patterns or any(map(self.matches_host, patterns))

    def fits(self, scope: Directives) -> bool:
        """Return True if host=, scratch=, `#RUN end` and capacity let the consumer take such jobs."""
        return not self._find_lack(scope)

    def _find_lack(self, scope: Directives) -> str:
        """Return why such jobs are not for it: 'needs 2G of 1G', 'needs host bob'; '': they are."""
        settings, needs, own = scope.settings, scope.settings.needs, self.capacity
        if self.follow and scope.below_end:
            return "is below a #RUN end"
        if settings.scratch and not self.is_client:
            return "needs a client of a server (scratch=yes)"
        if needs.slots > own.slots:
            return f"needs {needs.slots} slots of {own.slots}"
        if not own.holds(needs):
            return f"needs {memory_text(needs.memory)} of {memory_text(own.memory)}"
        if not self.matches_hosts(settings.hosts):
            return f"needs host {join_first_few(settings.hosts)}"
        return ""

    def describe_lack(self, line: Line, scope: Directives) -> str:
        """Return why a line is not for it, as 'line 2 needs host bob'; '': it is."""
        lack = self._find_lack(scope)
        return printable(f"line {line.number} {lack}") if lack else ""


NOBODY = Consumer("")              # the consumer of a job that a server takes back, until the client is known


def parse_patterns(text: str) -> tuple[str, ...]:
    """Return the names and patterns of host= or after=.  Raises ValueError."""
    patterns = tuple(text.split(","))
    for pattern in patterns:
        try:
            # makes a regular expression, which takes a while.  Only one such as [z-a] is invalid, for older
            # Pythons
            if "[" in pattern:
                fnmatch.fnmatchcase("", pattern)
        except re.error:
            raise ValueError(f"invalid pattern: '{printable(pattern)}'") from None
    return patterns


NAMES_ARE = "a name has neither blanks nor commas (replace them in both lines: tr ' ,' '__')"


def parse_shell(text: str) -> str:
    """Return the name or path of shell=.  Raises ValueError."""
    if not POSIX_LIKE.fullmatch(os.path.basename(text)):
        raise ValueError(f"shell={printable(text)} is no POSIX-like shell: bash, zsh, ksh, dash, yash "
                         "(a job may call others itself: . fish -c 'COMMANDS')")
    return text


# Shell code before an operator that is searched for: no quotes are open there, and no comment has begun.  A
# substitution in double quotes can have quotes and parentheses, but none within these, or nothing is found
# behind it
SHELL_CODE = rb"""(?:
    [^'"\\\#&|;<>]
    | \\.
    | (?<=[^\s;&|()<>])\#                       # begins no comment
    | [&|;<>](?:&|(?!&))                        # so && and >& are one operator
    | '[^']*'
    | "(?: [^"\\`$] | \\. | `[^"`]*` | \$(?!\()
        | \$\((?: [^()'"\\] | \\. | '[^']*' | "(?:[^"`\\$]|\$(?!\())*" | \((?: [^()'"\\] | '[^']*' )*\) )*\)
    )*"
)*?"""
# What an author who comes from bash can mean by a command: the shells that know it, and a message for others.
# To dash `prog &> log` is `prog &` and `> log`; to ksh `prog |& tee log` begins a coprocess
MISREAD = {
    # a & with nothing behind it but redirections and a comment
    SHELL_CODE + rb"""&(?![&>])[!|]?
        (?: (?:\s*|(?:\s+|(?<=&))\d+)(?:<>|[<>]&|>[>|]?|<)\s*
            (?: [^\s'"\\;&|()<>`\#] | \\. | '[^']*' | "[^"]*" | (?<=[^\s<>])\# )+ )*
        \s*(?:(?<=[\s&])\#.*)?\s*\Z""":
        ("no shell", "ends in &, so it is done at once, and later output can be lost (omit the &: -j runs "
                     "jobs in parallel)"),
    SHELL_CODE + rb"&>>":
        ("/(bash|zsh|[lm]ksh)[^/]*$",
         "&>> does not redirect both streams in its shell (write >> FILE 2>&1, or #RUN shell=bash above)"),
    SHELL_CODE + rb"&>":
        ("/(bash|zsh|[lm]ksh|busybox)[^/]*$",
         "&> does not redirect both streams in its shell (write > FILE 2>&1, or #RUN shell=bash above)"),
    SHELL_CODE + rb"\|&":
        ("/(bash|zsh)[^/]*$",
         "|& does not pipe both streams in its shell (write 2>&1 |, or #RUN shell=bash above)"),
}


def why_misread(command: bytes, shell: str) -> str:
    """Return what a command does in this shell that its author does not expect, and a remedy; '': nothing."""
    if is_continued(command):
        return "ends in \\, but the next line is another job (write a command in one line)"
    # first a quick test: a & that is no part of && or >&
    if b"&" in command and re.search(rb"(?<![&<>;])&(?!&)", command):
        for pattern, (shells, why) in MISREAD.items():
            # /bin/sh is a link to dash or bash
            if re.match(pattern, command, re.VERBOSE) and not re.search(shells, os.path.realpath(shell)):
                return why
    return ""


# ---- the paths of send= and fetch= -------------------------------------------------------------------------
#
# {2} stands for the second word of the command.  Operators are no words, quotes count as for the shell.  A
# word that the shell would expand has no value: only the shell of the client could tell it.


COMMAND_TOKEN = lazy_pattern(rb"""
    [0-9]*[<>](?:&(?:[0-9]+|-)|[<>]?[&|]?) | [|&;()]+ | \#.* | \s+     # an operator, a comment: no word
    | (?P<word> (?!~) (?: [^\s'"\\|&;()<>$`*?\[{] | '[^']*' | "(?:[^"\\$`]|\\.)*" | \\. )+
        (?![^\s|&;()<>]) )
    | (?P<expanded> (?: [^\s'"\\|&;()<>$`] | '[^']*' | "(?:[^"\\$`]|\\.|\$(?!\())*" | \\. | \$(?!\() )+
        (?![^\s|&;()<>]) )
    | .+                            # behind a $( ) words cannot be told
    """, re.VERBOSE | re.DOTALL)
# of a word: in quotes, in double quotes, behind a backslash, or plain
WORD_PART = lazy_pattern(rb"""'([^']*)'|"((?:[^"\\]|\\.)*)"|\\(.)|([^'"\\]+)""")
PLACE = lazy_pattern(r"\{([1-9][0-9]{0,3})\}")
TRAVELLING_PATH = lazy_pattern(r"(?:[^./\0][^/\0]*/)*[^./\0][^/\0]*")
LONG_NAME = lazy_pattern(rb"[^/]{201}")         # the name of its part would be longer than NAME_MAX, 255


def literal_words(command: bytes) -> list[str]:
    """Return the words of a command, without quotes; '': the shell expands that word, or it is empty."""
    return [os.fsdecode(b"".join(
                single or re.sub(rb'\\([$`"\\])', rb"\1", double) or quoted or plain
                for single, double, quoted, plain in WORD_PART.findall(match["word"] or b"")))
            for match in COMMAND_TOKEN.finditer(command) if match.lastgroup]


MARKS = re.compile("(:always|:optional)*$")         # at the end of a name of fetch=
NO_PATH = re.compile("[*?[]|/(,|$)|:(always|optional)")     # what only names of fetch= have


def simplify_path(path: str) -> str:
    """Return 'a/b' for './a//b'."""
    return re.sub(r"(?<=/)(\./|/)+", "", path).removeprefix("./")


def check_travelling_path(path: str) -> str:
    """Return the path of a file that travels, simplified.  Raises ValueError."""
    if (not TRAVELLING_PATH.fullmatch(simple_path := simplify_path(path))
            or LONG_NAME.search(os.fsencode(simple_path))):
        raise ValueError(f"'{printable(path)}' cannot travel (give a file below the directory of the job "
                         "file, none that is hidden, no name of more than 200 bytes)")
    return simple_path


def parse_travelling_paths(text: str) -> tuple[str, ...]:
    """Return the paths of send= or fetch=, with places such as {2}.  Raises ValueError."""
    paths = tuple(text.split(","))
    for path in paths:
        filled = check_travelling_path(PLACE.sub("x", path))
        if re.search("[{}]|:(always|optional)$", filled):
            raise ValueError(f"'{printable(path)}': braces are for words of the command, as in {{2}}, and "
                             "marks for fetch=")
    return paths


def parse_results(text: str) -> tuple[str, ...]:
    """Return the names of fetch=: paths, patterns, directories, with marks.  Raises ValueError."""
    names = parse_patterns(text)
    parse_travelling_paths(",".join(MARKS.sub("", name).rstrip("/") for name in names))
    return names


def without_marks(name: bytes) -> str:
    """Return the path, pattern or directory in a name of fetch=."""
    return MARKS.sub("", os.fsdecode(name))


ESCAPED = re.compile(r"\[([*?[])\]")     # in a name of fetch=: of a word of the command


def own_name(name: bytes) -> str:
    """Return the path, pattern or directory in a name of fetch=, as the user wrote it."""
    return ESCAPED.sub(r"\1", without_marks(name))


def literal_beginning(name: bytes) -> str:
    """Return what stands before the first pattern character in a name of fetch=; all of it: own_name()."""
    pattern = without_marks(name)
    first = re.search("[*?[]", ESCAPED.sub("...", pattern))
    return ESCAPED.sub(r"\1", pattern[:first.start()] if first else pattern)


def is_result(path: bytes, name: bytes) -> bool:
    """Return True if a name of fetch= with scratch=yes stands for a file; `*` does for `/`, too."""
    pattern, file = without_marks(name), os.fsdecode(path)
    return (fnmatch.fnmatchcase(file, pattern + "*" * pattern.endswith("/"))
            and TRAVELLING_PATH.fullmatch(file) is not None)


def may_be_below(directory: bytes, name: bytes) -> bool:
    """Return True if a name of fetch=, without marks, can be a file below a directory (b"a/"; b"": any)."""
    beginning = re.split(rb"[*?[]", name)[0]
    # otherwise the name is that of one file
    return beginning.startswith(directory) or (
        beginning != name.rstrip(b"/") and directory.startswith(beginning))


def fill_in_words(paths: Sequence[str], command: bytes, in_patterns: object = False) -> list[bytes]:
    """Return the paths of send= or fetch= for a command: words are in their places.  Raises ValueError.

    in_patterns: the paths are names for is_result().
    """
    words = dict(enumerate(literal_words(command), 1)) if paths else {}

    def word_at(match: re.Match[str]) -> str:
        if not (word := words.get(int(match[1]))):
            raise ValueError(f"{match[0]}: the command has no such word, or the shell would expand it")
        return re.sub("[*?[]", r"[\g<0>]", word) if in_patterns else word

    finish = simplify_path if in_patterns else check_travelling_path
    return [os.fsencode(finish(PLACE.sub(word_at, path))) for path in paths]


# ---- settings ----------------------------------------------------------------------------------------------


def parse_limits(text: str) -> tuple[Limit, ...]:
    """Return the value of limit=, for example matlab:3,disk:2.  Raises ArgumentTypeError."""
    limits = {}
    for word in text.split(","):
        name, _, maximum = word.rpartition(":")
        if not name:
            raise ArgumentTypeError(f"not a name and a number: '{printable(word)}' (such as matlab:3)")
        if name in limits:
            raise ArgumentTypeError(f"not one number for each name: '{printable(text)}'")
        limits[name] = Limit(name, integer_between(1, MAX_LIMIT)(maximum))
    return tuple(limits.values())


HOURS = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])-([01]?[0-9]|2[0-4]):([0-5][0-9])")
DAYS = "mon", "tue", "wed", "thu", "fri", "sat", "sun"


@functools.lru_cache(maxsize=1000)      # up to 10,080 minutes, and each sample can have a directive
def parse_hours(text: str) -> frozenset[int]:
    """Return the minutes of a week in hours=, for example 20:00-07:00,sat,sun.  Raises ArgumentTypeError."""
    hours = set[int]()
    for word in text.lower().split(","):
        if word in DAYS:
            start = 1440 * DAYS.index(word)
            hours.update(range(start, start + 1440))
        elif match := HOURS.fullmatch(word):
            hour, minute, last_hour, last_minute = map(int, match.groups())
            start, end = 60 * hour + minute, 60 * last_hour + last_minute
            for day in range(7):
                hours.update(1440 * day + time % 1440 for time in range(start, end + 1440 * (end <= start)))
        else:
            raise ArgumentTypeError(f"not times and days: '{printable(text)}' (such as 20:00-07:00,sat,sun: "
                                    "times with minutes, and each day alone)")
    return frozenset(hours)


def parse_time(text: str) -> float:
    """Return the local time of from=, such as 2026-12-24T18:00.  Raises ArgumentTypeError."""
    for form in "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S":          # as `date +%FT%T` prints it
        with suppress(ValueError, OverflowError):
            return time.mktime(time.strptime(text, form))
    raise ArgumentTypeError(f"not a date and a time: '{printable(text)}' (such as 2026-12-24T18:00)")


KNOWN_DIRECTIVES = ("barrier", "barrier check", "pause", "end")
# and how their values are parsed: as argparse types, or with a ValueError that names the setting
KNOWN_SETTINGS: Mapping[str, Callable[[str], Any]] = {
    "timeout": time_limit,
    "host": lambda text: parse_patterns(text.lower()),
    "together": str,
    "min-hosts": lambda text: None if text == "all" else integer_between(0)(text),
    "slots": integer_between(1, 100_000),
    "memory": growing_sizes,
    "shell": parse_shell,
    "limit": parse_limits,
    "hours": parse_hours,
    "from": parse_time,
    "name": str,
    "after": parse_patterns,
    "send": parse_travelling_paths,
    "fetch": parse_results,
    "scratch": str,
}
SETTINGS_ARE = (
    f"settings are {' '.join(f'{name}=' for name in KNOWN_SETTINGS)}; {', '.join(KNOWN_DIRECTIVES)} have none"
)


# Each walk meets all directives.  A cache that is smaller than a file has, is of no use to the next walk
@functools.lru_cache(maxsize=1_000_000)
def parse_directive(text: bytes) -> JobSettings | str:
    """Return what a directive says: settings, or one of KNOWN_DIRECTIVES.  Raises ValueError.

    The result is shared by all equal directives, so do not change it.  text: Line.text, of a valid directive
    all after the `#`.
    """
    name, *words = re.split("[ \t]+", os.fsdecode(text.rstrip(b" \t\r")))
    if name != "RUN":
        raise ValueError("looks like a directive, but is none (write #RUN, a blank, and the settings)")
    if (rest := " ".join(words)) in KNOWN_DIRECTIVES:
        return rest
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in KNOWN_SETTINGS or not equals:
            unknown = printable(word if equals else rest)
            raise ValueError(f"unknown setting '{unknown}' "
                             f"({NAMES_ARE if values.keys() & {'name', 'after'} else SETTINGS_ARE})")
        if name in values:
            raise ValueError(f"{name}= is given twice")
        if "" in (value.split(",") if name in ("host", "after") else [value]):
            raise ValueError(f"{name}= has an empty value")
        if name == "name" and "," in value:
            raise ValueError(f"{printable(word)}: {NAMES_ARE}")
        try:
            values[name] = KNOWN_SETTINGS[name](value)
        except ArgumentTypeError as error:
            raise ValueError(f"{name}= is {error}") from None
    if "together" in values and "host" not in values:
        raise ValueError("together= requires host=")
    if "min-hosts" in values and "together" not in values:
        raise ValueError("min-hosts= requires together=")
    if values.get("name") in values.get("after", ()):
        raise ValueError("after= has their own name: jobs cannot wait for themselves")
    for name in "slots", "memory", "send", "fetch", "scratch", "after", "limit", "hours", "from":
        if {name, "together"} <= values.keys():
            raise ValueError(f"{name}= cannot be used with together=")
    if values.setdefault("scratch", "") not in ("", "yes"):
        raise ValueError("scratch= is yes")
    if not values["scratch"] and NO_PATH.search(",".join(values.get("fetch", ()))):
        raise ValueError("patterns, directories and marks in fetch= require scratch=yes")
    slots = values.pop("slots", 1)
    needs, *larger_needs = (Resources(slots, size) for size in values.pop("memory", [0]))
    return JobSettings(
        hosts=values.pop("host", ()),
        min_hosts=values.pop("min-hosts", None),
        needs=needs,
        larger_needs=tuple(larger_needs),
        limits=values.pop("limit", ()),
        start=values.pop("from", 0.0),
        **values,               # the others have the names of the fields
    )


# ---- the lines above a line --------------------------------------------------------------------------------


class Why(Enum):
    """Why new lines may not start now; of several rules the first holds."""
    INVALID = "the meaning is unknown: a directive is invalid, or a group is too big"
    PAUSED = "a pause lasts until its line is removed"
    CHECK = "a barrier check has met a failure; only consumers that follow wait for `#RUN end`"
    BARRIER = "a barrier waits for the first unfinished job above it"
    STOPPED = "a job of a name in after= has failed or is held"
    NAMED = "a job of a name in after= is not done"
    NOBODY = "none of these consumers may take them"
    GROUP = "a server starts them, all at once"
    CLOCK = "hours= or from= let them start later"
    LIMIT = "as many jobs run as limit= lets"


class Wait(NamedTuple):
    """A rule that keeps new lines from starting now."""
    why: Why
    # of the directive, or for STOPPED and NAMED the name
    line: Line | None = None
    named: Named | None = None
    text: str = ""              # of INVALID, PAUSED, CHECK: a complete message
    bad: Line | None = None     # for STOPPED and CHECK, mostly: the failed or held line

    @property
    def stops(self) -> bool:
        """Return True if only -r or a person can end it; False: it ends by itself, or once jobs are done."""
        return self.why in (Why.CHECK, Why.STOPPED)


class Named:
    """Which jobs of one name= are not done, of those that were met."""
    __slots__ = "bad", "name", "unfinished"     # a file can have 100,000s
    MAX_LINES = 1000                            # more are left to another walk

    def __init__(self, name: str) -> None:
        self.name = name
        self.unfinished: dict[int, int] = {}    # numbers of lines, by offset; -1: there are more
        # the first that failed or is held; or such a line that stops the first
        self.bad: Line | None = None


@dataclass(eq=False)
class Above:
    """The directives, names, and the first unfinished job from the top of a file to the last line."""
    scope: Directives = NO_DIRECTIVES       # of the last line
    # the first job that was unfinished when reached, and no failure stops
    unfinished: Line | None = None
    block: Wait | None = None               # for all jobs below
    skips_unfinished: bool = False          # all jobs above count as ended, but for failed and held ones
    checked_offset: int = 0                 # no line before this offset makes a barrier check fail
    names: dict[str, Named | None] = field(default_factory=dict)    # None: all done
    _sorted_names: list[str] = field(default_factory=list)
    stopped: str = ""           # why the first job that waits for a bad line does not start; '': none
    holders: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # of a limit=

    @property
    def bad_states_to_read(self) -> bytes:
        """Return the states of failed and held lines if they stop the jobs that wait for this name."""
        return BAD_STATES if self.scope.settings.name else b""

    def record_first_unfinished(self, line: Line) -> None:
        if not self.skips_unfinished:
            self.unfinished = self.unfinished or line
            self._record_named(line)

    def record_bad(self, line: Line) -> None:
        """Record a failed or held line; or the one that stops the jobs here."""
        if named := self._record_named(line):
            named.bad = named.bad or line

    def _record_named(self, line: Line) -> Named | None:
        """Record a line as not done, and return the name of the jobs here; None: they have none."""
        name = self.scope.settings.name
        if not name:
            return None
        named = self.names[name] = self.names[name] or Named(name)
        named.unfinished[line.offset if len(named.unfinished) < named.MAX_LINES else -1] = line.number
        return named

    def find_wait(self, file: JobReader, consumers: Consumers | None = None) -> Wait | None:
        """Return why new jobs here may not start now; None: they may.  All rules are here, in their order.

        consumers: None: do not ask who may take them, nor for a limit=, of which a claim decides.
        """
        settings = self.scope.settings
        if self.block:
            return self.block
        if awaited := settings.find_awaited():
            return Wait(Why.STOPPED if awaited.bad else Why.NAMED, named=awaited, bad=awaited.bad)
        if consumers and settings.together:
            return Wait(Why.GROUP)
        if consumers and not consumers.any_fits(self.scope):
            return Wait(Why.NOBODY)
        why = not self.skips_unfinished and file.find_restriction(settings, asks_limits=consumers is not None)
        return Wait(why) if why else None

    def record_new(self, line: Line, wait: Wait | None) -> None:
        """Record a new job, and that it stops others if it is stopped itself."""
        if not (wait and wait.named and wait.bad):
            return self.record_first_unfinished(line)
        self.record_bad(wait.bad)
        self.stopped = self.stopped or (
            f"line {line.number} waits for {describe_named(wait.named)}, and the "
            f"after={printable(wait.named.name)} of "
            f"{self.scope.settings.where} stops the jobs below it")

    def enter(self, line: Line) -> None:
        """Apply a directive to the lines below.  A name of after= that no line above has is an error."""
        self.scope = self.scope.with_directive(line)
        settings = self.scope.settings
        awaited = []
        for pattern in settings.after:
            names = [pattern] if pattern in self.names else self._match_names(pattern)
            awaited += [named for name in names if (named := self.names[name])]
            if not (names or self.scope.error):
                self.scope = self.scope._replace(error=(
                    f"line {line.number}: after={printable(pattern)}: no #RUN line above has that name="))
        if awaited:
            # those with a bad job last: find_awaited() asks from there
            settings.awaited = sorted(awaited, key=lambda named: named.bad is not None)
        if settings.name and settings.name not in self.names:
            self.names[settings.name] = None
            bisect.insort(self._sorted_names, settings.name)

    def _match_names(self, pattern: str) -> list[str]:
        """Return the names that match; each of 100,000 samples can have a pattern, such as `S17-*`."""
        names, prefix = self._sorted_names, re.split(r"[*?[]", pattern)[0]
        end = bisect.bisect(names, prefix + chr(sys.maxunicode))
        return fnmatch.filter(names[bisect.bisect_left(names, prefix):end], pattern)

    def find_block_below(
        self, directive: Line, file: JobReader, bad_states: bytes = CHECK_FAILURES, open_states: bytes = b""
    ) -> Wait | None:
        """Return what keeps the jobs below a directive from starting; None if they may start.

        Call enter() first.  A check fails at lines in bad_states, and waits at those in open_states: a line
        that has failed can be new by now.
        """
        if self.scope.error:
            return Wait(Why.INVALID, directive, text=f"{self.scope.error}; the jobs below it wait")
        if self.scope.barrier is not directive:
            return None
        if self.scope.barrier_kind == "pause":
            return Wait(Why.PAUSED, directive, text=f"paused (#RUN pause in line {directive.number})")
        if self.unfinished:
            return Wait(Why.BARRIER, directive)
        if self.scope.barrier_kind == "barrier check":
            # One scan: two would miss a line that becomes new, and fails, between them.  Only one from the
            # top knows line numbers; mostly a shorter one shows that none is needed
            states, start = bad_states + open_states, max(self.checked_offset, file.start)
            if (_first_line_between(start, directive, file, states)
                    and (line := _first_line_between(file.start, directive, file, states))):
                if line.state not in open_states:
                    return Wait(Why.CHECK, directive, bad=line, text=(
                        f"{what_happened(line)}, and the #RUN barrier check in line "
                        f"{directive.number} stops the jobs below it"))
                if not self.stopped:
                    return Wait(Why.BARRIER, directive)
            if self.stopped:                    # by a held line, which the scan passes
                return Wait(Why.CHECK, directive, text=self.stopped)
            self.checked_offset = directive.offset
        return None


def settings_without_jobs(file: Reader, directives: Iterable[Line]) -> Iterator[str]:
    """Yield a message for each directive whose settings apply to no job."""
    for line in directives:
        if b"=" not in line.text:
            continue                            # it clears settings, or is a barrier
        below = Scan(file, line.offset, with_directives=True)
        below.line_number = line.number - 1
        below.next()                            # the directive itself
        # text[3:] is what follows RUN: a #RUN alone clears all settings.  A barrier or an end clears none
        successor = next((line for line in below if b"=" in line.text or line.state != DIRECTIVE
                          or not line.text[3:].strip()), None)
        if successor is None:
            yield f"line {line.number} applies to no job (only to jobs added below it)"
        elif successor.state == DIRECTIVE:
            repeated = successor.text.split()
            cleared = b" ".join(setting for setting in line.text[3:].split() if setting not in repeated)
            subject = f"line {line.number}"
            if cleared:
                subject = f"line {successor.number} clears {display_text(cleared)} of {subject}, which"
            yield f"{subject} applies to no job"


def what_happened(bad_line: Line) -> str:
    what = {FAILED: "failed", ERROR: "ended in error", RUNNING: "ended in error", CANCELLED: "is cancelled"}
    return f"line {bad_line.number} {what.get(bad_line.state, 'is held')}"


def describe_named(named: Named) -> str:
    """Return 'trim: line 2 failed', or '...: line 3 is not done'."""
    cause = (what_happened(named.bad) if named.bad
             else f"line {next(iter(named.unfinished.values()))} is not done")
    return f"{printable(named.name)}: {cause}"


def _first_line_between(start: int, barrier: Line, file: JobReader, states: bytes) -> Line | None:
    """Return the first line in one of `states` from an offset to a barrier; or None."""
    # the barrier is a directive itself, so the scan meets it
    for line in Scan(file.reader, start, states, with_directives=True):
        if line.offset >= barrier.offset:
            break
        if line.state != DIRECTIVE:
            return line
    return None


# ---- stray lines -------------------------------------------------------------------------------------------
#
# A stray is neither a job nor a comment, such as a line without the blank after the dot.


# A newline before a stray; not before a single last byte: an editor can be writing that line
STRAY = re.compile(rb"\n(?![^ \t\n][ \t]|[#/]|[ \t\r\f\v]*(?:[#\n]|\Z)|.\Z)")
# In a file without a job, a line that looks like one is a stray, too, and one that begins with a path: only
# `//`, `/*`, or `/` and white space or nothing begin a comment
STRAY_WITHOUT_JOBS = re.compile(rb"\n(?!#|/(?![^\s/*])|[ \t\r\f\v]*(?:[#\n]|\Z)|.\Z)")
JOB_OR_COMMENT = "a job is '. COMMAND', a comment begins with #"


def find_stray_line(file: Reader, pattern: re.Pattern[bytes]) -> int:
    """Return the number of the first stray line; 0: there is none.  pattern: STRAY or STRAY_WITHOUT_JOBS."""
    lines_above = 0
    for lines in whole_lines(file, first_line_offset(file)):
        text = b"\n" + lines                   # so each line begins with a newline
        if match := pattern.search(text):
            return lines_above + text.count(b"\n", 0, match.start() + 1)
        lines_above += lines.count(b"\n")
    return 0


def stray_line_message(number: int) -> str:
    return f"line {number} is neither a job nor a comment"


def check_for_strays(
    path: str, network: bool, say: Say, refuse: bool = True, job_states: bytes | None = None
) -> None:
    """Report the first stray line of a job file.  Raises UsageError, also if the file cannot be read.

    refuse: raise UsageError if it has a stray, and begins with another program's #!, or no line is a job
    in one of `job_states` (None: any): a list of commands, of which some look like jobs, as `( cd a; b )`.
    """
    with job_file(path, network) as file:
        check_file_for_strays(file, path, say, refuse, job_states)


def check_file_for_strays(file: Reader, path: str, say: Say, refuse: bool, job_states: bytes | None) -> None:
    """Do check_for_strays() for an open file."""
    has_job = Scan(file, first_line_offset(file), states=job_states).next() is not None
    if not (number := find_stray_line(file, STRAY if has_job else STRAY_WITHOUT_JOBS)):
        return
    head = file.pread(4096, first_line_offset(file))
    if refuse and re.match(rb"#! */(?!.*runmaker4)", head):
        raise UsageError(f"{path}: {stray_line_message(number)}, so this is a script (to run it for each "
                         "line of LIST: runset4.py NEW --add-list LIST --template 'SCRIPT {}')")
    if has_job or not refuse:
        say(f"{stray_line_message(number)} ({JOB_OR_COMMENT})")
    elif b"\0" not in head:
        raise UsageError(
            f"{path}: no jobs; line {number} is plain text (a job is '. COMMAND'; runset4.py NEW --add-list "
            f"{shlex.quote(as_argument(path))} makes jobs of the lines)"
        )
    else:
        raise UsageError(f"{path}: no jobs, and not a text file (a job is '. COMMAND')")


def check_job_file(path: str, network: bool, say: Say, is_dry_run: bool = False) -> bool:
    """Raise UsageError if a job file has a malformed #RUN line, or plain text and no job; report strays.

    Report the first #RUN line that the next line clears, too; a dry run reports all.  Return False for an
    empty file, which can be still being written.
    """
    with job_file(path, network) as file:
        check_file_for_strays(file, path, say, refuse=True, job_states=OUR_STATES)
        above, without_jobs = Above(), ""
        for directive in Scan(file, first_line_offset(file), states=b"", with_directives=True):
            last = above.scope.settings.line
            above.enter(directive)
            if above.scope.error:
                raise UsageError(f"{path}: {above.scope.error}")
            if last and last.number + 1 == directive.number and not (without_jobs or is_dry_run):
                without_jobs = next(settings_without_jobs(file, [last]), "")
        if without_jobs:
            say(without_jobs)
        size = os.fstat(file.fd).st_size        # also of a file that is replaced just now
        if size and file.pread(1, size - 1) != b"\n":
            say("the last line has no newline, so what >> appends can become part of it (if it is complete: "
                "echo >>FILE)")
        return size > 0


# ======== The job file ======================================================================================
#
# The complete protocol by which runners share a file; each step is described where it is done:
#
#     1  locks belong to commands             below
#     2  claim a new line                     JobQueue.claim(), LockTable.take_bucket()
#     3  start the job                        LockTable.copy_job_lock()
#     4  write the result                     JobQueue.finish()
#     5  find orphans, repair edits           JobReader.is_orphan(), JobQueue.check_jobs()
#        set states of orphans, failed lines  JobFile.change_state(), JobFile.reset_lines()
#     6  append lines, edit the file          append_lock(), hold_all_locks() of runset4.py; complete_line()
#     7  agree on one lock file               JobFile.mark_lock_file_in_use()
#     8  read no old data                     JobFile.command_mutex()
#
# Step 1.  Next to the real job file NAME is the lock file `.NAME.lock`, which no editor knows.  Never delete
# it while jobs run.  Each command hashes to a bucket of 2^16 bytes in it: 65,535 job locks, and after them
# the command mutex.  A job lock is locked as long as a copy of the command or the runner of that copy lives;
# the command mutex, while the state of a line of this command is written.  All of these are
# open-file-description record locks.
#
# Assumptions: the file system shares record locks between all hosts that use the file (check_mount() and
# refuse_local_locks() refuse the exceptions); the lock file is not removed; editors may replace or rewrite
# the file, but other programs do not write to it between the read and the writes of a step 2 or 4
# (microseconds; on a network some round trips); jobs keep descriptor 64 open, or have a shell that does.
# Lines that begin with "#RUN" are not part of the protocol: each runner reads them before it claims.
#
# Invariants:
#
#     I1  A job lock is locked before its `r` is written, and freed after that `r` was overwritten.
#     I2  A process writes the state of a line only while holding the command mutex.  So no process of ours
#         changes lines of this command that the holder has read.  The mutex of a short job stays locked
#         until the result, or the end of a job whose runner dies, by the description that the job inherits
#         (LockTable.take_bucket()).  Only the runner writes under it.
#     I3  A living copy of a command, or the runner of that copy, holds a job lock of the command's bucket;
#         two copies hold two.
#     I4  For a command let h be the number of held job locks, R the number of lines `r`.  No process of ours
#         raises h - R above 0: a claim adds one to both, a result takes one from both, a repair writes an
#         `r` for a job lock that has none, or locks one while h < R, as the claim of an orphan does; or an
#         orphan is taken from R while h < R.
#
# Theorem: at no time do more copies of a command live than the file had lines of it when the last was
# claimed.  A new line is claimed only if h <= R.  The line itself is one more than R, so h + 1 copies are at
# most as many as lines.  (A claim that has locked the whole bucket need not count: its description had no
# lock there, so h was 0.)  An orphan is overwritten or claimed only if h < R, so h <= R still holds.  By I3
# h counts each living copy.  Lines are counted in the file that the path names, while holding the command
# mutex, so only other programs can change them before the `r` is written.
#
# The theorem also holds on a network file system, where this host can have an old name, size or content
# cached: these are read while holding the command mutex, after refresh_file().  A read without the mutex only
# decides which mutex to lock next, or that there is nothing to do yet; a walk that finds nothing is repeated.
#
# A line's own job lock is the line number modulo 65,535; the runner takes it if it is free.  So until an edit
# moves equal lines, job locks show which one is an orphan, or cancelled.  Safety does not depend on that.
#
# A whole bucket is not counted as 65,535 job locks: who decides by h holds the mutex, which is part of the
# bucket.  Without the mutex (is_orphan()) a bucket shows life: the own job lock of each line is in it.
#
# If h > R, an editor has overwritten an `r`, and no line of the command can be claimed, until a living runner
# repairs that in check_jobs().
#
# Steps of a state change: lock the command mutex (of a short job it can be locked already); drop this host's
# cache; check that the path still names this file (check_at_path()), and that the line has not moved
# (read_line()); write; unlock the mutex.  If the file or the lock file was replaced, raise FileChangedError,
# which unlocks a mutex that this change has locked.  Neither file is exchanged in between.
#
# The path can name other files at any time, and this host can lose its locks.  Between two state changes
# JobQueue.open_files() sees to both.  The order of its steps is part of the proof:
#
#     O1  If our locks are lost, close both files: until O3 nothing can be written.
#     O2  Open the job file that the path names, with the in-use lock on it, unless it is open.
#     O3  The same for the lock file.  After O2, which refuses a file that must not be used.
#     O4  Forget job locks that prove nothing: those in an old lock file, where no runner looks for them, and
#         those that this host has lost.  Before O5, which counts the held ones.
#     O5  Lock a job lock again for each claimed job that has none (if its mutex is held, at the next check).
#         One for which no line is left is "lost".
#     O6  Mark the lock file as in use, last, and only if each job has its lock: as long as the mark is at an
#         old lock file, no other process can use the new one (step 7), and take lines of these jobs for
#         orphans.  Until then no state is written, but the `r` of a running job (O5) over an editor's `.`.
#
# Who has no jobs needs only some: JobReader.open_files() does O2 and O3, JobFile.open_to_write() also O6.
# After an error the next call begins again at O1.  Only the JobQueue may do that for its JobFile; code that
# counts lines at the same time has a separate JobReader.


class Tracking(Enum):
    """What we know of a claimed line."""
    FOUND = "the line is at the known offset, as `r`"
    MISSED = "a check, or the result, has not found it"
    GONE = "it was missed for so long that it counts as removed, which was reported"
    CHANGED_ONCE = "the last check has found another state at the offset; an editor can be saving"
    CANCELLED = "two checks in a row have: a user has set that state"


class Job(Line):
    """A claimed line; `state` is the one before the claim."""
    job_lock: JobLock | None = None            # None: lost, freed, or none yet
    tracking = Tracking.FOUND
    absent_since = 0.0                  # when it stopped being FOUND (JobQueue's clock)
    # the last result that we tried to write; despite an error the file can have it; b"": none
    unconfirmed_state = b""
    gated = False                       # the shell waits until open_gate() lets the job begin
    # have the files of send= here, and after a run with this state those of fetch= at the server; return '',
    # or why not; None: none travel
    bring: Callable[[], Awaitable[str]] | None = None
    deliver: Callable[[bytes], Awaitable[str]] | None = None
    directory: JobDirectory | None = None       # in which it runs; None: that of the runner
    travelled = 0                       # bytes of these files, for the last run
    host_errno = 0                      # why they cannot come, for a reason here; else 0
    outlives_runner = False             # processes that could not be killed live, and the runner exits

    def __init__(self, line: Line, settings: JobSettings = NO_SETTINGS, consumer: Consumer = NOBODY) -> None:
        super().__init__(line.number, line.offset, line.state, line.text, line.is_complete)
        self.first_number = line.number     # in records, also of later tries
        self.settings = settings
        self.consumer = consumer

    @property
    def cancelled(self) -> bool:
        return self.tracking is Tracking.CANCELLED


JobsToKill = dict[Job, str]     # and why: "lost" to another runner, or "cancelled"


class TemporaryError(Exception):
    """A result cannot be written or a line claimed now; try again."""


class LockedNow(TemporaryError):
    """Another process holds the command mutex, mostly for a moment."""


class LineCheck(Enum):
    """The result of checking a line."""
    OPEN = "the line is as it was found, and can be claimed"
    CHANGED = "the line has another state"
    LOCKED = "another process holds the command mutex (lslocks names it)"
    APPENDING = "lines are being appended to the file"
    NO_JOB_LOCK = "a copy of the command is running without a line r"
    AT_LIMIT = "as many jobs run as limit= lets"


class Attempt:
    """The result of an attempt to claim a line."""
    job: Job | None = None
    new_state = b""                 # the line was not claimed, but got this state

    def __init__(self, check: LineCheck, data: bytes = b"") -> None:
        """data: from the line's state on; b"": nothing was read."""
        self.check = check
        self.data = data


@dataclass(eq=False)
class Snapshot:
    """The contents of a job file at one moment."""
    states: Counter[bytes]                                      # job lines in each state
    running: list[Line] = field(default_factory=list)           # lines `r` that are not orphans
    orphans: list[Line] = field(default_factory=list)
    half_saved: bool = False    # an editor could be about to write more


class Counts(NamedTuple):
    """The number of jobs in each state; orphans count as `error`."""
    new: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    error: int = 0
    held: int = 0

    @property
    def all(self) -> int:
        return self.new + self.running + self.processed

    @property
    def processed(self) -> int:
        return self.done + self.bad

    @property
    def bad(self) -> int:
        return self.failed + self.error


def describe_counts(**numbers: int) -> list[str]:
    """Return the numbers other than 0 with their names: ['31 done', '2 failed']."""
    return [f"{number} {word}" for word, number in numbers.items() if number]


def count_states(snapshot: Snapshot) -> Counts:
    states = snapshot.states
    return Counts(
        states[NEW],
        states[RUNNING] - len(snapshot.orphans),
        states[DONE],
        states[FAILED],
        states[ERROR] + len(snapshot.orphans),
        sum(count for state, count in states.items() if state not in RUNNER_STATES),
    )


@dataclass(frozen=True)
class Summary:
    """A job file when some consumers exit."""
    counts: Counts
    half_saved: bool = False
    bad_lines: tuple[int, ...] = ()   # the numbers of the first lines that are `!`, `e` or orphans
    can_retry: bool = False     # -r would run some bad lines again: not all belong to groups
    jobs_left: bool = False          # a new job remains that one of these consumers could have run
    orphans: int = 0
    first_stray: int = 0        # 0: none
    has_end: bool = False       # there is a `#RUN end`
    # consumers for which new jobs are left, but none that keeps them
    with_jobs: frozenset[Consumer] = frozenset()
    # none is left for these; and why the first new line is not for them; '': no line is new
    without_jobs: Mapping[Consumer, str] = field(default_factory=dict)

    def describe(self, with_lines: bool) -> str:
        """Return '31 done, 2 failed (lines 3, 5), 9 new'.  with_lines: with numbers of bad lines."""
        counted = self.counts
        processed = describe_counts(done=counted.done, failed=counted.failed, error=counted.error)
        if counted.bad and self.bad_lines and with_lines:     # counts and lines are of different moments
            processed[-1] += f" ({name_lines(self.bad_lines)})"
        return ", ".join(processed + describe_counts(
            running=counted.running, new=counted.new, held=counted.held)) or "no jobs"


def close_all(*fds: int | None) -> None:
    for fd in {*fds}:
        try:
            if fd is not None and fd != CLOSED:
                os.close(fd)
        except OSError:                 # EIO: the lease was lost, and unsynced writes
            continue


def identity_of(fd: int) -> Identity:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def own_job_lock_offset(line: Line) -> int:
    return bucket_of(line.command) + line.number % JOB_LOCKS_PER_BUCKET


class JobLock(NamedTuple):
    """A byte that is locked for a claimed line and its job."""
    fd: int                     # of the description that owns the lock; the job inherits it
    offset: int

    @property
    def bucket(self) -> int:
        return self.offset & ~MUTEX_OFFSET


class PresenceLock:
    """A random byte of the lock file that a runner or server keeps locked to show that it runs.

    No job inherits its description, so the kernel frees it when the program dies.  The journal names the
    program by it.
    """
    COUNT = 1 << 32
    SERVERS = 1 << 31           # presence locks from here on are for servers
    TRIES = 9                   # in one take(): another process can have locked all bytes
    # an abstract socket on which a server tells of its clients (unix(7)), bound before others see the number
    SOCKET = "\0runmaker4.clients.%d"

    def __init__(self, of_server: bool) -> None:
        self._of_server = of_server
        self.offset = self._draw()              # the byte, counted from PRESENCE_BYTES
        self.is_held = False

    def _draw(self) -> int:
        drawn = int.from_bytes(os.urandom(4), "big") % self.SERVERS
        return self.SERVERS + drawn if self._of_server else drawn

    def take(self, fd: int) -> None:
        """Lock the byte through `fd`, or another one; `is_held` says whether that succeeded."""
        for _ in range(self.TRIES):
            self.is_held = lock(fd, PRESENCE_BYTES + self.offset)
            if self.is_held:
                break
            self.offset = self._draw()


def same_user(sock: socket.socket) -> bool:
    # unix(7), SO_PEERCRED
    uid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    return uid == os.geteuid()


def connect_in_time(sock: socket.socket, address: bytes | str, seconds: int) -> None:
    """Connect to a Unix socket, and let it wait so long in each call.  Raises OSError.

    Any user can fill the queue.  With a timeout of Python's connect() would fail then, and not wait.
    """
    # a timeval
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("2l", seconds, 0))
    sock.connect(address)
    sock.settimeout(seconds)


class LockTableReader(Opened):
    """The lock file of a job file, for queries through `fd`."""

    def __init__(self, file: str, mount: Mount, say: Say) -> None:
        self._file = file  # path of the job file
        self._mount = mount
        self.network = mount.network
        self.say = say
        self.path = lock_file_of(file)  # of the lock file
        # `fd` is also CLOSED if the lock file is unreadable or missing
        # kept by close(); None: no lock file was opened.  While `fd` is open no other file can have it
        self.inode: Identity | None = None
        self.is_unreadable = False      # so its locks are unknown, and no line `r` counts as an orphan
        self.is_copied = False          # so jobs can hold locks of the original: likewise

    def refresh(self) -> None:
        """Drop this host's cache of the job file, the lock file and the names of both."""
        if self.network:
            refresh_file(self._file, self._mount)

    def is_current(self) -> bool:
        """Return True if the path still names the open lock file, or no file if none is open."""
        if self.fd == CLOSED:
            return not os.path.lexists(self.path)
        try:
            if self.network:
                return path_names_fd(self.path, self.fd)
            info = os.stat(self.path)
            return self.inode == (info.st_dev, info.st_ino)
        except FileNotFoundError:
            return False

    def open_current(self) -> None:
        """Open the lock file that the path names now; after an OSError the old one, with its locks, stays."""
        if self.is_open and self.is_current():
            return
        old_fd = self.fd
        try:
            self.fd, self.inode = self._open()
        except OSError as error:
            raise OSError(error.errno, f"lock file {self.path}: {error_text(error)}") from None
        close_all(old_fd)

    def _open(self) -> tuple[int, Identity | None]:
        """Return descriptor and identity of the lock file; CLOSED and None: none exists, or unreadable."""
        was_hidden = self.is_unreadable
        self.is_unreadable = self.is_copied = False
        try:
            fd = open_lock_file(self.path, os.O_RDONLY, self.network)
        except FileNotFoundError:
            return CLOSED, None
        except PermissionError:
            self.is_unreadable = True
            if not was_hidden:
                self.say("cannot tell whether jobs marked r are still running: no permission to read "
                         f"{self.path}")
            return CLOSED, None
        try:
            info = stat_file_with_one_name(fd)
            self.is_copied = read_inode_line(fd, self.network) not in (b"", inode_line_of(fd))
        except OSError:
            os.close(fd)
            raise
        return fd, (info.st_dev, info.st_ino)

    def is_mutex_held(self, command: bytes) -> bool:
        return self.is_open and not is_free(self.fd, bucket_of(command) + MUTEX_OFFSET)

    def count_job_locks(self, command: bytes) -> int:
        """Return how many job locks of a command are held, by any process."""
        if self.fd == CLOSED:
            return 0
        return sum(map(len, other_locks(self.fd, bucket_of(command), JOB_LOCKS_PER_BUCKET)))

    def is_held(self, offset: int) -> bool:
        return not is_free(self.fd, offset)

    def is_full(self, limit: Limit) -> bool:
        return self.is_open and all(map(self.is_held, limit.offsets))

    def presence_locks(self) -> set[int] | None:
        """Return the presence locks of other programs; None: we may not read the lock file."""
        if self.is_unreadable:
            return None
        if not self.is_open:
            return set()
        return set(self.other_presence_locks())

    def other_presence_locks(self) -> Iterator[int]:
        for locked in other_locks(self.fd, PRESENCE_BYTES, PresenceLock.COUNT):
            if len(locked) == 1:                # a longer range is locked by another program
                yield locked.start - PRESENCE_BYTES


# The life of our locks.  A host that is cut off from a network file system loses its locks, and no call tells
# it at that moment.
#
#     HELD    as far as is known, LockTable.fd, JobFile.fd and each JobLock have their locks
#     LOST    LockTable.fd has not, and this process does not know it yet
#     CLOSED  it does: job file and lock file are closed.  Lost job locks are forgotten by the next
#             open_files() at the latest; others are still held
#
#     event                                       HELD        LOST                 CLOSED
#     to lock a mutex, to write a state:          it is       OSError(EIO)         FileChangedError
#       check_still_has_locks(); it believes the  done
#       last answer for MAX_TRUST_SECONDS
#     the same for an orphan: it believes none    it is one   OSError(EIO)         -
#       after expire_lock_check()
#     a call fails with one of LOCKS_LOST:        CLOSED      CLOSED               CLOSED
#       JobQueue.close_if_locks_lost()
#     to write a result:                          written     OSError(EIO)         FileChangedError
#       JobQueue._write_and_release()
#     another run of a job: still_has()           it starts   it waits             it waits
#     before a walk and a check of jobs:          HELD        HELD: a job that     the same
#       JobQueue.open_files()                                 has lost its lock
#                                                             gets one; if no line
#                                                             is left for it, it
#                                                             is "lost"
#     the same, and the lock file is another      HELD: all job locks are freed in the old one, and locked in
#                                                 the new one


class LockTable(LockTableReader):
    """The lock file of a job file, to lock command mutexes and job locks.

    `fd` has all locks of this process except those of jobs.  Each of these is on another description, which
    the job inherits, and where queries through `fd` find it.

    On NFS a short job has all of its bucket locked on that description (take_bucket()).  What can happen:

        the job ends                    the result is written under that mutex, and one call frees all
        the job runs for longer         trim_bucket() leaves the job lock
        we need the mutex otherwise     the same (JobFile.command_mutex())
        its result cannot be written    the same (JobQueue.finish())
        trim_bucket() fails             the bucket stays locked until the job ends; the next one is a test
        the server refuses to trim      the first one was a test, and we take no more
        the runner dies                 the mutex stays locked until the job has ended

    A read on NFS detects lost locks.  On all other network file systems `fd` keeps one more byte locked, the
    pulse: if it is lost, so are all locks of this host.
    """
    MAX_TRUST_SECONDS = 5.0     # in an answer True of still_has_locks(), a round trip; a lease takes longer

    def __init__(self, file: str, mount: Mount, *, say: Say, clock: Clock,
                 presence_lock: PresenceLock | None = None) -> None:
        super().__init__(file, mount, say)
        self.clock = clock
        self.job_locks: dict[int, JobLock] = {}        # by offset
        # those with all of a bucket locked, by its offset; no other job lock of ours is in it
        self.buckets: dict[int, JobLock] = {}
        # for limit=: the bytes that are locked with a job lock, by its offset
        self.limit_locks: dict[int, list[int]] = {}
        # the bytes of limits= that are locked while lines wait, by that of the line: Limit.waits()
        self.waits: dict[int, int] = {}
        self.can_trim: bool | None = None       # None: it must be tested
        # on NFS, by descriptor for a job lock: the read end of a pipe (_keep_or_close()); CLOSED: none yet
        self._pipes: dict[int, int] = {}
        self._spare_fds: list[int] = []         # for the next jobs
        self.uses_mark = False                  # USE_BYTE is locked through `fd`
        self.presence_lock = presence_lock
        self.pulse_offset = 0                   # 0: not needed
        self.locked_now = 0, 0                  # from here to there, by the `with` block in progress
        self._locks_known_at = 0.0              # when `fd` was last known to have its locks (clock)

    def _open(self) -> tuple[int, Identity]:
        """Open or create the lock file, with presence lock and pulse."""
        opened_at = self.clock()                # before: locks can be lost during the call
        fd = open_lock_file_of(self._file, self.network)
        try:
            # without a lock on a file an NFS client does not notice that the server has dropped its locks
            lock(fd, HERE_BYTE, shared=True)
            self.pulse_offset = lock_random_byte(fd) if self._mount.forgets_locks else 0
            if self.presence_lock:
                self.presence_lock.take(fd)
            if self._mount.shared:
                refuse_local_locks(fd, self._mount)
            inode = identity_of(fd)
        except OSError:
            os.close(fd)
            raise
        # those are of the previous lock file
        close_all(*self._spare_fds, *self._pipes.values())
        self._spare_fds, self._pipes = [], {}
        self._locks_known_at = opened_at
        self.waits = {}
        self.can_trim = None                    # False: perhaps only because locks were lost
        self.uses_mark = False
        return fd, inode

    def open_current(self) -> None:
        """Open the lock file that the path names now; free all job locks in an old one (O4)."""
        old_inode = self.inode
        super().open_current()
        if old_inode not in (None, self.inode):
            self.say(f"the lock file {self.path} was removed; it was created and locked again (do not remove "
                     "it)")
            self.free_all_job_locks()
        if self.presence_lock and not self.presence_lock.is_held:
            self.presence_lock.take(self.fd)

    def check_still_has_locks(self) -> None:
        """Raise OSError(EIO) if this host has lost its locks, so that another can hold our command mutex."""
        if not self.still_has_locks():
            raise OSError(errno.EIO, "the locks were lost")

    def still_has_locks(self) -> bool:
        """Return False if this host has lost the locks on `fd`."""
        if not self.network or not self.is_open:
            return True
        now = self.clock()
        if now - self._locks_known_at <= self.MAX_TRUST_SECONDS:
            return True
        if lost_locks(self.fd, [self.pulse_offset], self._mount):
            return False
        self._locks_known_at = now
        return True

    def expire_lock_check(self) -> None:
        self._locks_known_at = -inf

    # -- command mutexes -------------------------------------------------------------------------------------

    def locking(self, offset: int, patience: float, on_locked: Callback | None = None,
                length: int = 1) -> LockTable:
        """Lock bytes from `offset` on for a `with` block, drop this host's cache, and call on_locked().

        The block gets False if another process has any of them locked for `patience` seconds.  Raises
        FileChangedError if the path no longer names this lock file.  Blocks cannot be nested.
        """
        assert self.locked_now == (0, 0)
        # the second try comes after a round trip on a network
        if self._lock(offset, length) or try_again(
                partial(self._lock, offset, length), patience, 0.01 if self.network else 0.0005):
            self.locked_now = offset, offset + length
            try:
                self.refresh_under_lock()
                if on_locked:
                    on_locked()
            except OSError:
                self.__exit__()
                raise
        return self

    def __enter__(self) -> bool:
        return self.locked_now != (0, 0)

    def __exit__(self, *_: object) -> None:
        (start, stop), self.locked_now = self.locked_now, (0, 0)
        try:
            if stop:
                unlock(self.fd, start, stop - start)
        except OSError:     # EIO, ESTALE: lost; all writes were synced.  EBADF: closed in the block
            return

    def refresh_under_lock(self) -> None:
        """Drop this host's cache.  Raises FileChangedError if the path no longer names this lock file."""
        if self.network:
            self.refresh()
        if not self.is_current():
            raise FileChangedError("the lock file was removed")

    def has_mutex(self, command: bytes) -> bool:
        """Return True if the `with` block in progress, or a job, has locked the mutex of a command."""
        bucket, (start, stop) = bucket_of(command), self.locked_now
        return start <= bucket + MUTEX_OFFSET < stop or bucket in self.buckets

    def _lock(self, offset: int, length: int) -> bool:
        if self.network or self.fd == CLOSED:
            self._check_can_lock()
        return lock(self.fd, offset, length)

    def _check_can_lock(self) -> None:
        self.check_still_has_locks()
        if self.fd == CLOSED:
            raise FileChangedError("the lock file is not open")

    # -- job locks -------------------------------------------------------------------------------------------

    def is_ours(self, offset: int) -> bool:
        """Return True if this process holds this job lock, which it could lock again."""
        return offset in self.job_locks

    def open_job_lock(self) -> int:
        """Return a descriptor for one job lock: a job that inherited `fd` would keep all our locks."""
        if self._spare_fds:
            return self._spare_fds.pop()
        fd = open_direct(self.path, os.O_RDWR, self.network)
        if self._mount.is_nfs:
            self._pipes[fd] = CLOSED
            # never unlocked: without any lock an NFS client gives its lock state up, and must set up another
            with suppress(OSError):
                lock(fd, PROBE_BYTES, shared=True)
        return fd

    def close_job_lock(self, fd: int) -> None:
        close_all(fd, self._pipes.pop(fd, None))

    def copy_job_lock(self, fd: int) -> LockFds:
        """Return descriptors for a job to inherit, which the caller closes: a copy, and on NFS a pipe's end.

        Step 3, start the job: runner and job now hold the lock together (and with a whole bucket the mutex).
        It is free only when both are gone.  A copy, because the I/O thread can close the original.  All tries
        of a job share the pipe of _keep_or_close(): one for each would take all descriptors.
        """
        if fd not in self._pipes:               # not on NFS
            return os.dup(fd),
        if self._pipes[fd] == CLOSED:
            self._pipes[fd], write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        else:
            # opened so, the read end of a pipe gives another write end of that pipe
            write_end = os.open(f"/proc/self/fd/{self._pipes[fd]}", os.O_WRONLY | os.O_NONBLOCK)
        try:
            return os.dup(fd), write_end
        except OSError:
            os.close(write_end)
            raise

    def _keep_or_close(self, fd: int) -> None:
        """Keep a description without a job lock for the next job, if no process has it; else close it.

        A process that a job has left would hold the next job's lock, too.  Each process that inherited the
        description has the write end of its pipe: end of file means that none lives.  Only on NFS, where
        to open one takes round trips.
        """
        try:
            if fd in self._pipes and (self._pipes[fd] == CLOSED or not os.read(self._pipes[fd], 1)):
                self._spare_fds.append(fd)
                return
        except BlockingIOError:                 # a process lives
            pass
        self.close_job_lock(fd)

    def take_job_lock(self, line: Line) -> JobLock:
        """Lock a free job lock of the command, the line's own if it is free.

        Needs the command mutex.  Raises OSError(ENOLCK) if each job lock of the command is taken.
        """
        bucket = bucket_of(line.command)
        assert self.locked_now[1] == bucket + BUCKET_SIZE       # the mutex
        fd = self.open_job_lock()
        try:
            for others in range(JOB_LOCKS_PER_BUCKET):
                offset = bucket + (line.number + others) % JOB_LOCKS_PER_BUCKET
                # all job locks of a server are on one description, which could lock its own again
                if not self.is_ours(offset) and lock(fd, offset):
                    job_lock = JobLock(fd, offset)
                    self.job_locks[offset] = job_lock
                    return job_lock
            raise OSError(errno.ENOLCK, "all job locks of this command are taken")
        except OSError:
            self.close_job_lock(fd)
            raise

    def take_limits(self, job_lock: JobLock, settings: JobSettings) -> bool:
        """Lock a byte of each limit= for a job; False: one is full.  Needs the job lock, but no mutex.

        After False or an OSError the bytes of the limits before stay locked, until free_job_lock(): they are
        on the description of the job lock.  So each living job has one of the first N bytes, no count can be
        wrong, and the kernel frees it when runner and job are dead.  A claim takes them last and waits for
        none, so there is no deadlock.
        """
        for limit in settings.limits:
            # as in take_job_lock()
            ours = {*itertools.chain(*self.limit_locks.values())}
            first = job_lock.offset % limit.maximum         # so that jobs seldom try the same one
            offset = next((offset for offset in (*limit.offsets[first:], *limit.offsets[:first])
                           if offset not in ours and lock(job_lock.fd, offset)), None)
            if offset is None:
                return False
            self.limit_locks.setdefault(job_lock.offset, []).append(offset)
        return True

    def show_waits(self, offsets: set[int]) -> None:
        """Lock just these bytes of Limit.waits(); for one that another process has, the next that is free."""
        for offset in self.waits.keys() - offsets:
            with suppress(OSError):             # EIO, ESTALE: lost.  A claim that ends here has a job
                unlock(self.fd, self.waits.pop(offset))
        for offset in offsets - self.waits.keys():
            self.waits[offset] = next(free for free in itertools.count(offset)
                                      if free not in self.waits.values() and lock(self.fd, free))

    def take_bucket(self, line: Line) -> JobLock | None:
        """Try to lock all of a command's bucket for a job, in one call; None: the mutex must be locked alone.

        Step 2, claim a new line, for short jobs on NFS.  If it is granted, the runner has the mutex, and no
        job lock of the command is held (h = 0): claim() need not count lines `r`.
        """
        if self.can_trim is False:
            return None
        self._check_can_lock()
        job_lock = JobLock(self.open_job_lock(), own_job_lock_offset(line))
        try:
            taken = lock(job_lock.fd, job_lock.bucket, BUCKET_SIZE)
            if taken and self.can_trim is None:
                # A server may refuse to unlock a part (NFS4ERR_LOCK_RANGE, which the client reports as EIO;
                # RFC 8881, 18.12.3).  Test it, once, with the first byte that is not the job lock
                try:
                    unlock(job_lock.fd, job_lock.bucket + (job_lock.offset == job_lock.bucket))
                    self.can_trim = True
                except OSError:
                    taken = self.can_trim = False
                    unlock(job_lock.fd, job_lock.bucket, BUCKET_SIZE)
        except OSError:
            self.close_job_lock(job_lock.fd)
            raise
        if not taken:
            self._keep_or_close(job_lock.fd)
            return None
        self.job_locks[job_lock.offset] = self.buckets[job_lock.bucket] = job_lock
        return job_lock

    def trim_bucket(self, bucket: int) -> None:
        """If a job has locked all of a bucket, unlock all but the job lock.

        The mutex is in the upper part, and is unlocked last: who gets it counts held job locks.
        """
        if bucket not in self.buckets:
            return
        fd, offset = self.buckets[bucket]
        try:
            if offset > bucket:                 # length 0: see other_lock()
                unlock(fd, bucket, offset - bucket)
            unlock(fd, offset + 1, bucket + BUCKET_SIZE - (offset + 1))
            del self.buckets[bucket]
        except OSError:                         # locks are lost: check_jobs() finds that out
            self.can_trim = None                # or the server refuses: take_bucket() tests that again

    def free_job_lock(self, job_lock: JobLock, is_job_alive: bool = False) -> None:
        """Unlock a job lock: to close it is not enough, processes that the job left can have it.

        is_job_alive: leave it locked by processes that this runner could not kill.
        """
        if is_job_alive:
            self.trim_bucket(job_lock.bucket)
        del self.job_locks[job_lock.offset]
        start, length = job_lock.offset, 1
        if self.buckets and job_lock.bucket in self.buckets:
            del self.buckets[job_lock.bucket]
            start, length = job_lock.bucket, BUCKET_SIZE
        limit_offsets = self.limit_locks.pop(job_lock.offset, ())
        if not is_job_alive:
            try:
                unlock(job_lock.fd, start, length)
                for offset in limit_offsets:
                    unlock(job_lock.fd, offset)
            except OSError:                  # EIO, ESTALE: already lost
                pass
        self._keep_or_close(job_lock.fd)

    def free_all_job_locks(self) -> None:
        for job_lock in list(self.job_locks.values()):
            self.free_job_lock(job_lock)

    def drop_lost_job_locks(self) -> None:
        """Forget job locks that a network file system has dropped (O4).

        Their descriptions stay useless, even if a lock on one seems to succeed.
        """
        if not self.network:
            return
        offsets = defaultdict(list)              # of job locks, by descriptor
        for job_lock in self.job_locks.values():
            offsets[job_lock.fd].append(job_lock.offset)
        for fd in offsets:
            if not lost_locks(fd, offsets[fd], self._mount):
                continue
            # the job has a copy; without this the lost locks conflict with new ones (seen on NFS v4.2)
            with suppress(OSError):
                unlock(fd, 0, 0)  # all bytes
            for offset in offsets[fd]:
                self.limit_locks.pop(offset, None)
                self.buckets.pop(self.job_locks.pop(offset).bucket, None)
            self.discard(fd)

    def discard(self, fd: int) -> None:
        self.close_job_lock(fd)


def has_line_at(data: bytes, index: int, line: Line) -> bool:
    """Return True if the line, in any state, is at an index of a piece of the file.

    data: must begin at least len(UTF8_MARK) bytes before the line, or at the top of the file; or with a
    newline of the caller, who does not ask for the one before the line.
    """
    return ((data.startswith(line.text + b"\n", index + 1) or data[index + 1:] == line.text)
            and (data.endswith(b"\n", 0, index) or not index
                 or (line.offset == len(UTF8_MARK) and data.endswith(UTF8_MARK, 0, index))))


# Power cuts.  The kernel can bring a `d` to disk before what the job has written.  So before its first result
# a process on a local file system brings a mark to disk, behind the first line of the lock file: this boot of
# the host, and a checksum of each line that is safe, as it was `d` before a sync(1).  Every RENEWAL_SECONDS
# one runner notes the lines `d`, syncs, and makes these the safe ones (Program.keep_mark()).  At their exit
# runners sync, and the last one removes the mark.
#
# So a mark of another boot shows that the host went down at work.  The lines `d` that it lacks are in doubt:
# the next runner marks them `e`, before its first claim.  Until then, none removes or renews that mark.  Each
# line has its place in the mark, which is overwritten: if only parts are on disk, more lines are in doubt.
#
# The kernel reports lost writes once.  Then LOST_WRITES replaces the boot, and what ends until all runners
# have exited is in doubt, too: it can have written before.
#
# MARK_BYTE is a mutex: its holder makes the mark before its first result, and locks USE_BYTE shared; or it
# finds that free, so nobody is at work, and judges or removes the mark.  Network file systems have no mark:
# other hosts run on.

BOOT_ID = "/proc/sys/kernel/random/boot_id"
USE_BYTE = PRESENCE_BYTES + PresenceLock.COUNT
MARK_BYTE = USE_BYTE + 1
RENEWER_BYTE = USE_BYTE + 2         # of the process that renews the mark
BOOT_SIZE = 43
LOST_WRITES = b"a sync has failed".ljust(BOOT_SIZE)     # of no boot
MARK_SIZE = INODE_LINE_SIZE + BOOT_SIZE     # then four bytes for each line; 0: not safe


def read_boot_id() -> bytes:
    boot = b"unknown"               # so no other is found
    with suppress(OSError), open(BOOT_ID, "rb") as file:
        boot = file.read()
    return boot.ljust(BOOT_SIZE)


class OpenJobFile(Reader):
    """An open job file, and what is known of it: each opening makes another object."""
    info: os.stat_result | None = None      # when it was opened; None: none was yet
    identity: Identity | None = None        # of `info`
    committed_size = 0                      # up to which all lines are committed (JobFile.check_committed())
    marked_lock_file: Identity | None = None    # the one that mark_lock_file_in_use() shows; None: none yet
    is_checked = False                      # JobQueue has looked for job locks that were lost before


class Seconds:
    """An attribute of a JobReader; another number on a network file system."""
    def __init__(self, local: float, network: float) -> None:
        self.seconds = local, network

    def __get__(self, file: JobReader, _: object) -> float:
        return self.seconds[file.network]


class JobReader(Opened):
    """A job file, to read: it follows the path, counts lines, and finds orphans.  It locks nothing.

    Use it in one thread at a time; on a network file system not in the event loop's: calls can take long.
    """
    ACCESS = os.O_RDONLY
    MAX_LOOKS = 3                           # then a half saved or missing file counts as it is
    interval = Seconds(1.0, 5.0)            # from look to look: some 10 round trips
    poll = Seconds(0.25, 5.0)               # the same while nothing happens: one round trip
    first_retry_seconds = Seconds(0.05, 0.25)   # a claim holds a mutex for less
    unchanged_seconds = Seconds(1.0, 5.0)   # within a line writers pause for less
    max_absence = Seconds(2.0, 10.0)        # of a line: editors save faster
    max_search_pause = Seconds(60.0, 300.0)     # for such a line: a search reads the file
    max_error_seconds = Seconds(3.0, 30.0)  # a file server restarts
    # MooseFS takes 30 s to save a file in place if two hosts write to it
    MAX_SAVE_SECONDS = 60.0
    MAX_NAMED = 9                     # lines that a summary names
    NEAR_BYTES = 1 << 14                # above a line

    def __init__(self, path: str, *, say: Say, mount: Mount = LOCAL, clock: Clock = boottime) -> None:
        self.path = path
        self.say = say
        self.say_once = once_per_subject(say)
        self.clock = clock
        # without links among the directories, so that file and lock file stay in one directory
        folder, name = os.path.split(path)
        self.real_folder = os.path.realpath(folder or ".")
        has_links = self.real_folder != os.path.abspath(folder or ".")
        self.real_path = os.path.join(self.real_folder, name) if has_links else path
        self.mount = mount
        self.network = mount.network
        self.wall_clock: Clock = time.time              # for hours= and from=
        self._tail: tuple[int, bytes] | None = None         # the last seen size and last byte of the file
        self._tail_since = 0.0                  # when that was first seen (clock)
        # the size when the file was last known to be complete, or opened
        self._trusted_size = 0
        self.boot = b"" if self.network else read_boot_id()     # b"": there is no mark for power cuts
        self.reader = OpenJobFile()
        self.lock_table = LockTableReader(self.real_path, mount, say)

    @property
    def start(self) -> int:
        """Return the offset of the first line; an editor can change it."""
        return first_line_offset(self.reader)

    def scan_lines(
        self, states: bytes | None = None, counted: Counter[bytes] | None = None,
        with_directives: bool = False
    ) -> Scan:
        self.open_files()
        return Scan(self.reader, self.start, states, counted=counted, with_directives=with_directives)

    def lines_by_command(self, commands: Collection[bytes]) -> dict[bytes, list[Line]]:
        lines_of_command: dict[bytes, list[Line]] = {command: [] for command in commands}
        for line in find_command_lines(self.reader, self.start, lines_of_command):
            lines_of_command[line.command].append(line)
        return lines_of_command

    def snapshot(self) -> Snapshot:
        """Read the whole file, with a lock query for each line `r`: on a network a round trip each."""
        snapshot = Snapshot(Counter())
        scan = self.scan_lines(RUNNING, counted=snapshot.states)
        for line in scan:
            if self.is_orphan(line):
                snapshot.orphans.append(line)
            else:
                snapshot.running.append(line)
        snapshot.half_saved = self.seconds_until_trusted(scan.end) > 0
        return snapshot

    def seconds_until_trusted(self, size: int) -> float:
        """Return the seconds until a scan that has read `size` bytes can be trusted; 0: now.

        Another process can be writing: an editor that saves in place empties the file first.  So size and
        last byte must stay the same for a while, unless the file ends with a newline when first read.
        """
        now = self.clock()
        last_byte = self.reader.pread(1, max(size - 1, 0))
        tail = size, last_byte
        if tail != self._tail:
            needs_no_wait = self._tail is None and last_byte == b"\n"      # at the first look
            self._tail = tail
            self._tail_since = -inf if needs_no_wait else now
        unchanged_seconds = self.MAX_SAVE_SECONDS if self.is_save_held_up() else self.unchanged_seconds
        wait = self._tail_since + unchanged_seconds - now
        if wait > 0:
            return min(wait, self.interval)
        self._trusted_size = size
        return 0.0

    def is_save_held_up(self) -> bool:
        """Return True if a network file system seems to hold up an editor that is saving the file in place.

        Then the former last byte is missing, or NUL in the gap before a state that a runner has written.
        """
        return (self.network and self.reader.is_open and self._trusted_size > 0
                and self.reader.pread(1, self._trusted_size - 1) in (b"", b"\0"))

    def summarize(
        self, consumers: Iterable[Consumer], groups: bool = False, keep_above: float | None = None,
        looks: bool = True
    ) -> Summary:
        """Count the open file for consumers that exit, or that ask if they may.

        keep_above: a consumer that could run a new job before this offset may not exit, and is neither in
        `with_jobs` nor in `without_jobs`, unless a failure stops that job (after=); once none may exit, the
        count is incomplete.  None: any offset, but only a job that may start now; the count is complete.
        groups: the consumers also run jobs with together=.  looks: False: all lines `r` count as running.
        """
        snapshot = Snapshot(Counter())
        above = Above(skips_unfinished=True)
        scope = above.scope
        met_new = False                         # since the last directive: one is enough
        is_paused = False
        bad_lines: list[int] = []
        can_retry = False
        remaining = Consumers(consumers)        # that no new job keeps
        with_jobs: set[Consumer] = set()
        lacks: dict[Consumer, str] = {}
        scan = Scan(self.reader, self.start, counted=snapshot.states, with_directives=True)
        while True:
            is_grouped = scope.settings.together != ""
            wants_bad = len(bad_lines) < self.MAX_NAMED or not (can_retry or is_grouped)
            may_suit = remaining.any_fits(scope) or bool(remaining.all and not lacks)
            wants_new = not met_new and (scope.settings.awaited != [] or (
                may_suit and (groups or not is_grouped)))
            line = scan.next(
                RUNNING + above.bad_states_to_read + (FAILED + ERROR) * wants_bad + NEW * wants_new)
            if not line:
                break
            if line.state == DIRECTIVE:
                above.enter(line)
                scope = above.scope
                met_new = False
                is_paused |= scope.barrier_kind == "pause"
            elif line.state == NEW:
                met_new = True
                lacks = lacks or {
                    consumer: consumer.describe_lack(line, scope) for consumer in remaining.all}
                fitting = [*remaining.fitting(scope)]
                with_jobs.update(fitting)
                wait = above.find_wait(self)
                above.record_new(line, wait)
                if not wait and (line.offset < keep_above if keep_above is not None else (
                        not is_paused and not self.find_restriction(scope.settings))):
                    for consumer in fitting:
                        del remaining.all[consumer]
                    if not remaining.all and keep_above is not None:        # none may exit
                        return Summary(count_states(snapshot))
            elif line.state != RUNNING or (looks and self.is_orphan(line)):
                if line.state == RUNNING:
                    snapshot.orphans.append(line)
                else:
                    above.record_bad(line)
                if line.state in FAILED + ERROR + RUNNING:
                    bad_lines.append(line.number)
                    can_retry = can_retry or line.state == RUNNING or not is_grouped
        return Summary(
            count_states(snapshot),
            half_saved=self.seconds_until_trusted(scan.end) > 0,
            bad_lines=tuple(bad_lines[:self.MAX_NAMED]),
            can_retry=can_retry,
            jobs_left=bool(with_jobs),
            orphans=len(snapshot.orphans),
            first_stray=find_stray_line(self.reader, STRAY),        # neither a job nor a comment
            has_end=scope.below_end,
            with_jobs=frozenset(with_jobs & remaining.all.keys()),
            without_jobs={consumer: lacks.get(consumer, "") for consumer in remaining.all.keys() - with_jobs},
        )

    def plan(self, above: Above, consumers: Consumers, wanted: bytes = NEW,
             failures: bytes = CHECK_FAILURES + RUNNING, every: bool = False
             ) -> Iterator[tuple[Line, Wait | None]]:
        """Yield the new lines, and why they may not start now: of a section that waits only the first.

        A section is what stands between two directives: its lines wait for the same.  Meanwhile `above` has
        what stands above the line.  wanted: what counts as new.  failures: at which a barrier check stops.
        every: yield all new lines.
        """
        wait: Wait | None = None
        scan = self.scan_lines(with_directives=True)
        while line := scan.next(above.bad_states_to_read + (wanted if every or not wait else b"")
                                + (b"" if above.skips_unfinished else RUNNING)):
            if line.state == DIRECTIVE:
                wait = None
                above.enter(line)
                # a check reads states only if no job above is unfinished: then each line `r` is an orphan
                above.block = above.block or above.find_block_below(line, self, failures)
            elif line.state in wanted and (line.state != RUNNING or self.is_orphan(line)):
                wait = wait or above.find_wait(self, consumers)
                above.record_new(line, wait)
                yield line, wait
            elif line.state != RUNNING:
                if line.state not in wanted:
                    above.record_bad(line)
            elif not above.skips_unfinished:
                for limit in above.scope.settings.limits:
                    above.holders[limit.name].append(line.number)
                # is_orphan() last: it can take a lock query
                if ((not above.unfinished or above.scope.settings.name) and not above.block
                        and not self.is_orphan(line)):
                    above.record_first_unfinished(line)

    def find_restriction(self, settings: JobSettings, asks_limits: bool = True) -> Why | None:
        """Return CLOCK or LIMIT if hours=, from= or a limit= keeps jobs back; of a limit= a claim decides.

        asks_limits: on a network each is a round trip for each of its places.
        """
        if not settings.is_restricted:
            return None
        if not settings.is_open(self.wall_clock()):
            return Why.CLOCK
        return Why.LIMIT if asks_limits and any(map(self.lock_table.is_full, settings.limits)) else None

    def has_no_other_users(self) -> bool:
        # each answer is a round trip
        return self.lock_table.is_open and next(self.lock_table.other_presence_locks(), None) is None

    def read_line(self, line: Line, after: int = 1) -> bytes:
        """Read a line again, with state and `after` more bytes; b'' if it has moved."""
        # has_line_at() needs the bytes before the line
        margin = len(UTF8_MARK) if line.offset > len(UTF8_MARK) else line.offset
        data = self.reader.pread(margin + 1 + len(line.text) + after, line.offset - margin)
        return data[margin:] if has_line_at(data, margin, line) else b""

    def state_at(self, line: Line) -> bytes | None:
        return self.read_line(line)[:1] or None

    def read_part(self, lines: Sequence[Line]) -> tuple[int, bytes]:
        """Return the part of the file with these lines, which are in order, and where it begins."""
        start = max(lines[0].offset - len(UTF8_MARK), 0)        # for has_line_at()
        stop = lines[-1].offset + 1 + len(lines[-1].text) + 1
        return start, self.reader.pread(stop - start, start)

    def without_changed(self, lines: Sequence[Line]) -> list[Line]:
        """Return the lines but those that are still there in another state; one read for all, as a hint."""
        start, data = self.read_part(lines)
        return [line for line in lines
                if data[(index := line.offset - start):index + 1] == line.state
                or not has_line_at(data, index, line)]

    # -- power cuts ------------------------------------------------------------------------------------------

    def read_old_mark(self) -> bytes:
        """Return a mark that is not of this boot, which is only judged; b"": there is none."""
        fd = self.lock_table.fd
        mark = os.pread(fd, os.fstat(fd).st_size, 0)
        boot = mark[INODE_LINE_SIZE:MARK_SIZE].strip(b"\0")
        # with another inode it is a copy
        return mark if boot not in (b"", self.boot) and mark.startswith(inode_line_of(fd)) else b""

    def find_lines_in_doubt(self) -> list[Line] | None:
        """Return the lines `d` that an old mark lacks; None: there is none, or it is in use."""
        if not (self.boot and self.lock_table.is_open and is_free(self.lock_table.fd, USE_BYTE)
                and (mark := self.read_old_mark())):
            return None
        safe = array.array("I", mark[MARK_SIZE:len(mark) // 4 * 4])
        # an edit can have moved lines
        more = Counter(self.checksum_done_lines()) - Counter(safe)
        return [line for line in self.scan_lines(DONE)
                if (checksum := binascii.crc32(line.state + line.text)) in more
                and checksum not in safe[line.number - 1:line.number]]

    def checksum_done_lines(self) -> array.array[int]:
        """Return a checksum for each line of the open file; 0: it is not `d`."""
        return array.array("I", (binascii.crc32(line) if DONE <= line < ERROR else 0
                                 for piece in whole_lines(self.reader, self.start)
                                 for line in lines_of_piece(piece)))

    # -- held locks ------------------------------------------------------------------------------------------

    def is_orphan(self, line: Line) -> bool:
        """Return True if a line `r` is an orphan: a hint, change_state() asks again under the mutex.

        Step 5 of the protocol: A line `r` is an orphan if its own job lock is free, and h < R.  Where locks
        can be lost without an error, two checks are needed (Orphans.MIN_UNLOCKED_SECONDS).  An old `r` that
        an editor has saved over a result is an orphan like any other.
        """
        lock_table = self.lock_table
        if lock_table.is_unreadable:
            return False                        # unknown
        if lock_table.is_open and self._locks_show_life(line):
            return False
        if lock_table.is_copied:
            self.say_once("copied", f"{lock_table.path}: was copied, perhaps from a backup; line "
                          f"{line.number} (r) can still run (when no such job does, remove this file)")
            return False
        lock_table.refresh()
        self.reopen_reader_on_fuse()
        # after the job locks: the job can have just finished
        if self.state_at(line) != RUNNING:
            return False
        # a lock file that was just removed or created proves nothing
        return lock_table.is_current()

    def _locks_show_life(self, line: Line) -> bool:
        """Return True if the held job locks show that a line `r` has a runner or a job.

        Their job lock is not the line's own if that was taken, or if the line has moved since.
        """
        if self.lock_table.is_held(own_job_lock_offset(line)):
            return True
        for _ in range(2):                      # a job can start after the locks were counted
            job_locks = self.lock_table.count_job_locks(line.command)
            if not job_locks:
                return False
            if not self._has_running_lines(line.command, job_locks + 1, line.offset):
                return True
        return False

    def can_run_another_copy(self, command: bytes, for_orphan: bool = False, near: int = 0) -> bool:
        """Return True if h <= R, so that one more copy of a command may start; for_orphan: if h < R.

        near: the offset of the line.
        """
        living_copies = self.lock_table.count_job_locks(command)
        return not living_copies or self._has_running_lines(command, living_copies + for_orphan, near)

    def _has_running_lines(self, command: bytes, at_least: int, near: int) -> bool:
        """Return True if at least so many lines of a command are `r`.

        Equal lines are claimed from the top, so those that run are mostly a little above the offset `near`.
        """
        # 16 short lines each; on a network a read is a round trip
        for size in (at_least * 16 * len(command[:64]), self.NEAR_BYTES)[self.network:]:
            above = near - size if near > size else 0
            # without a newline before it, a part of a line does not count
            if count_running(self.reader.pread(near - above, above), command) >= at_least:
                return True
        count = 0
        for lines in whole_lines(self.reader, self.start):
            count += count_running(b"\n%b\n" % lines, command)
            if count >= at_least:
                return True
        return False

    # -- the current file ------------------------------------------------------------------------------------

    def reopen_reader_on_fuse(self) -> None:
        """On FUSE, open the file again: a daemon can answer from old data as long as it is open.

        Raises FileChangedError if the file was replaced.
        """
        try:
            self.reader.refresh(self.mount)
        except OSError as error:
            raise changed_if_gone(error) from None

    def _stat(self) -> os.stat_result:
        """Return stat(2) of the file at the path; NFS asks the server at open(2)."""
        info = lstat_refusing_symlink(self.real_path)
        if not self.network:
            return info
        fd = os.open(self.real_path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def signature(self) -> tuple[int, ...]:
        """Return device, inode, size and mtime of the file at the path."""
        self.lock_table.refresh()
        info = self._stat()
        return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns

    def find_replacement(self) -> os.stat_result | None:
        """Return stat(2) of the file at the path; None: it is the open file.

        Call LockTable.refresh() first, or lock the command mutex, which does so.
        """
        if self.network and self.is_open and path_names_fd(self.real_path, self.fd):
            return None
        info = self._stat()
        return info if self.fd == CLOSED or (info.st_dev, info.st_ino) != self.reader.identity else None

    def open_files(self) -> None:
        """Open the job file and the lock file that the path names now, unless they are open.

        Raises OSError(EPERM): the new job file is of a user who could not write to the old one.
        """
        self.lock_table.refresh()
        if replacement := self.find_replacement():          # O2
            if not S_ISREG(replacement.st_mode):
                raise OSError(errno.EINVAL, "is no longer a regular file")
            self._open()
        else:
            try:
                self.reopen_reader_on_fuse()
            except FileChangedError:
                # The path names the open file in this host's cache only.  At ESTALE, open(2) of a path asks
                # the file system (fs/namei.c, do_filp_open()), of /proc/self/fd it does not
                try:
                    self._open()
                except OSError as error:
                    raise changed_if_gone(error) from None
        self.lock_table.open_current()                      # O3

    def _open(self) -> None:
        """Open the job file that the path names now; after an OSError the old one stays."""
        fd = os.open(self.real_path, self.ACCESS | os.O_NOFOLLOW)
        reader = OpenJobFile(fd)
        try:
            if self.network:
                reader = OpenJobFile.with_own_fd(fd, True)
            first_line_offset(reader)           # raises OSError for UTF-16
            reader.info = info = os.fstat(fd)
            reader.identity = info.st_dev, info.st_ino
            old_info = self.reader.info
            if self.is_open:
                with suppress(OSError):      # the file server can have lost it
                    old_info = os.fstat(self.fd)                # owner and mode can have changed
            if old_info and not is_trusted_replacement(info, old_info):
                raise OSError(
                    errno.EPERM,
                    f"was replaced by a file of {user_name(info.st_uid)}, who could not write to the old one "
                    "(put that back, or start again)",
                )
            if self.ACCESS == os.O_RDWR:        # before anything is written
                lock_all(fd)
                if self.mount.is_nfs:           # so a read fails (EIO) once this host has lost its locks
                    lock_all(reader.fd)
        except OSError:
            close_all(fd, reader.detach())
            raise
        close_all(self.fd, self.reader.detach())    # they can be one
        self.fd = fd
        self.reader = reader
        # one that replaces another can be half saved: its size is not trusted yet
        self._trusted_size = self._trusted_size or info.st_size

    def close_files(self) -> None:
        close_all(self.detach(), self.reader.detach())
        self.lock_table.close()


# the in-use lock: each process that writes the job file locks bytes 0 to here shared
IN_USE_BYTES = 1 << 62
# then 2^61 bytes; a lock on one identifies the lock file in use
USER_BYTES = IN_USE_BYTES + 2
USERS = 1 << 61


def lock_all(fd: int) -> None:
    """Lock IN_USE_BYTES of a job file, shared: the in-use lock of each process that writes to the file.

    On NFS it makes the size current, and a write fail once this host has lost its locks.  Raises
    OSError(EBUSY) if another process has locked a part exclusively.
    """
    if not lock(fd, 0, IN_USE_BYTES, shared=True):
        raise OSError(
            errno.EBUSY, "another process locks bytes of it (an older runmaker4? lslocks names the process)"
        )


class JobFile(JobReader):
    """A job file, to write.

    The in-use lock keeps an NFS client from writing neighbouring bytes back.  While a process holds a command
    mutex, all reads of `reader` return data no older than that lock.
    """
    ACCESS = os.O_RDWR
    lock_table: LockTable
    MUTEX_SECONDS = 2.0         # to wait for a command mutex
    MUTEX_SECONDS_LOCAL = 0.01  # for runners and servers on a local file system
    PROBE_SECONDS = 10.0        # on NFSv3, for others that start at the same time

    def __init__(self, path: str, *, say: Say, mount: Mount = LOCAL, clock: Clock = boottime,
                 presence_lock: PresenceLock | None = None,
                 make_lock_table: Callable[..., LockTable] = LockTable) -> None:
        """presence_lock: None: this process takes no jobs."""
        super().__init__(path, say=say, mount=mount, clock=clock)
        self.lock_table = make_lock_table(
            self.real_path, mount, say=say, clock=clock, presence_lock=presence_lock
        )
        # seconds to wait for a command mutex; on a local file system in the event loop
        self.patience = self.MUTEX_SECONDS if self.network else self.MUTEX_SECONDS_LOCAL
        # the same in a walk, which can go on to other lines
        self.walk_patience = 0.0 if self.network else self.MUTEX_SECONDS_LOCAL
        self.was_written = False
        self.safe_since = time.time()   # the last write of the mark
        self._noted = 0                 # the time of the last change that note_done_lines() has seen

    # -- while holding the command mutex ---------------------------------------------------------------------

    def command_mutex(self, command: bytes, patience: float = MUTEX_SECONDS,
                      job_lock: JobLock | None = None) -> contextlib.AbstractContextManager[bool]:
        """Lock the mutex of a command for the `with` block, and make reads of the file current.

        Yield False if another process holds it for `patience` seconds.  job_lock: if it was locked with all
        of the command's bucket, which includes the mutex, use that, and leave it locked.

        Step 8 of the protocol, on a network file system: a process that has locked a command mutex drops this
        host's cache (refresh_file()) before it reads.  It reads with O_DIRECT (Reader), on FUSE also through
        a new description (reopen_reader_on_fuse()).  It syncs each write.  On NFS the description that it
        reads through has the in-use lock, too: so a read fails once this host has lost its locks.
        """
        lock_table, bucket = self.lock_table, bucket_of(command)
        if lock_table.buckets:
            if job_lock and lock_table.buckets.get(bucket) is job_lock:
                lock_table.refresh_under_lock()
                self.reopen_reader_on_fuse()
                return contextlib.nullcontext(True)
            lock_table.trim_bucket(bucket)
        return lock_table.locking(bucket + MUTEX_OFFSET, patience,
                                  self.reopen_reader_on_fuse if self.mount.is_fuse else None)

    def mark_lock_file_in_use(self) -> None:
        """Show other processes which lock file we use, by a lock on a byte of the job file.

        Step 7 of the protocol: Each process of ours that can write the job file holds the in-use lock, and a
        shared lock on one byte after it, which the inode number of the lock file selects.  So processes that
        use two lock files, because the job file has two names, notice each other: OSError(EBUSY).
        """
        fd = self.fd
        inode = self.lock_table.inode
        if inode is None or inode == self.reader.marked_lock_file:
            return
        self.reader.marked_lock_file = None
        # again: the pulse in a new lock file shows only the loss of locks that were taken after it
        unlock(fd, 0, IN_USE_BYTES)
        try:
            lock_all(fd)
        except OSError:
            self.close_files()                  # nothing may be written without the in-use lock
            raise
        unlock(fd, USER_BYTES, USERS)
        _, inode_number = inode
        our_byte = USER_BYTES + inode_number % USERS
        lock(fd, our_byte, shared=True)
        # those below our byte, and those above
        for start, stop in (USER_BYTES, our_byte), (our_byte + 1, USER_BYTES + USERS):
            part = fd, start, stop - start
            is_unused = is_free(*part)
            if is_unused and start < stop and self.mount.kind == "nfs":
                # On NFSv3 a query shows no shared lock of another host (Linux 6.1.0-56, 6.12.117), but no
                # exclusive lock is granted beside one, nor while another process asks in this way
                is_unused = keep_trying(partial(lock, *part), self.PROBE_SECONDS)
                unlock(*part)
            if not is_unused:
                raise OSError(
                    errno.EBUSY,
                    "is in use with another lock file (use one name for it; or a process without write "
                    "permission keeps it locked: lslocks names it)",
                )
        self.reader.marked_lock_file = inode

    def open_to_write(self) -> None:
        self.open_files()
        self.mark_lock_file_in_use()

    def check_at_path(self) -> None:
        """Raise FileChangedError if the path no longer names the open file.  Needs the command mutex."""
        try:
            if self.find_replacement():
                raise FileChangedError
        except FileNotFoundError:               # an editor is replacing it
            raise FileChangedError from None

    def check_writable(self) -> None:
        """Raise FileChangedError if no state may be written.  Needs the mutex."""
        self.check_at_path()
        if self.lock_table.inode != self.reader.marked_lock_file:
            raise FileChangedError("O6 is missing")

    def size(self) -> int:
        # cheaper than fstat(2)
        return os.fstat(self.fd).st_size if self.network else os.lseek(self.fd, 0, os.SEEK_END)

    def seconds_until_complete(self, size: int) -> float:
        """Return the seconds until a last line without a newline counts, in a file of `size` bytes; 0: now.

        Not as long as a process here has the file open to write: its output can come in blocks, which end
        within a line.
        """
        wait = self.seconds_until_trusted(size)
        if not wait and self._tail_since > -inf:
            self._tail_since = -inf             # not asked again while the file ends so
            if writer := find_writer(self.reader.fd):
                self._tail_since = self.clock()
                self.say_once("writer", f"the last line has no newline, and process {writer} has the file "
                                        "open: waiting for the rest")
                return self.interval
        return wait

    def complete_line(self, line: Line) -> bool:
        """Append the newline that a last line lacks; return False if other lines are being appended.

        So what another process appends to the line, while and after it is claimed, is a line of its own: a
        stray, mostly.  That process can be faster, as it takes no lock: then line and newline are apart, and
        the claim does not find the line.
        """
        with self.lock_table.locking(APPEND_BYTE, 0.0, self.reopen_reader_on_fuse) as locked:
            if locked and self.size() == line.offset + 1 + len(line.text):
                self.check_writable()
                with open(f"/proc/self/fd/{self.fd}", "ab", buffering=0) as file:
                    file.write(b"\n")
                self._tail = None               # the next look is a first one
            return locked

    def change_state(self, line: Line, state: bytes, before: Callback = lambda: None) -> Attempt:
        """Call before(), and write `state` over the state of an orphan (a line `r`) or a finished line.

        In the Attempt, `new_state` is what was written; b"": nothing, and `check` says why.  Raises
        FileChangedError if the line has moved.
        """
        with self.command_mutex(line.command, self.walk_patience) as locked:
            if not locked:
                return Attempt(LineCheck.LOCKED)
            # a finished line has neither job lock nor `r`: made new, it changes the number of neither
            attempt = self.check_claimable(line, NO_SETTINGS, needs_room=line.state == RUNNING)
            if attempt.check is LineCheck.OPEN:
                before()
                self.write(line, state)
                attempt.new_state = state
        return attempt

    def check_claimable(self, line: Line, settings: JobSettings, needs_room: bool) -> Attempt:
        """Read a line again; return in `check` of an Attempt that it can be claimed (OPEN), or why not.

        Needs the command mutex.  Raises FileChangedError if the line, or the directive with its settings, is
        not at its offset.  needs_room: one more copy of the command must be allowed.
        """
        self.check_writable()
        committed = self.check_committed(line)
        data = self.read_line(line, Scan.MIN_CHUNK_SIZE)
        if not data:
            raise FileChangedError
        if settings.line and self.state_at(settings.line) is None:
            raise FileChangedError
        is_orphan = line.state == RUNNING
        if data[:1] != line.state or (is_orphan and self.lock_table.is_held(own_job_lock_offset(line))):
            return Attempt(LineCheck.CHANGED, data)       # since it was found
        if not committed:
            return Attempt(LineCheck.APPENDING, data)
        if needs_room and not self.can_run_another_copy(line.command, is_orphan, line.offset):
            return Attempt(LineCheck.NO_JOB_LOCK, data)
        return Attempt(LineCheck.OPEN, data)

    def check_committed(self, line: Line) -> bool:
        """Return True if a line is committed: no append is in progress that could cut it off after an error.

        Otherwise the job could run without a line.  The committed size is remembered, so that lines can be
        claimed during an append.  NFS can know an older, smaller size: then the line waits.  If an editor
        shortens the file after that, and an append fails, this can return True for a line that is cut off.
        """
        # on a local file system it costs little to ask again, and that sees lines that are cut off
        was_committed = line.is_complete and line.offset < self.reader.committed_size
        if self.network and was_committed:
            return True
        size = self.size()
        # before the second size: if the append lock is free, that includes all appended lines
        if other_lock(self.lock_table.fd, APPEND_BYTE, 1):
            return was_committed
        if self.network:
            self.lock_table.refresh()
        if self.size() != size:
            return False
        self.reader.committed_size = size
        return line.offset < size

    def reset_lines(self, lines: Sequence[Line]) -> bool:
        """Write `.` over the states of finished lines at once; leave out lines with another state by now.

        Return False, and write nothing, if another process has a mutex or a job lock, or appends.  Raises
        FileChangedError if a line has moved.

        One lock over all buckets includes each command mutex, and the append byte: `runset4.py --edit` locks
        that before it locks bucket after bucket, so the two never lock buckets at the same time.  The bytes
        between the states are written as they were read, which only programs other than ours could change.
        """
        first, last = lines[0], lines[-1]
        with self.lock_table.locking(0, 0.0, self.reopen_reader_on_fuse, APPEND_BYTE + 1) as locked:
            if not locked:
                return False
            self.check_writable()
            start, data = self.read_part(lines)
            new_data = bytearray(data)
            for line in lines:
                index = line.offset - start
                if not has_line_at(data, index, line):
                    raise FileChangedError
                if data[index:index + 1] == line.state:
                    new_data[index:index + 1] = NEW
            if self.read_part(lines)[1] != data:
                raise FileChangedError
            if new_data != data:
                self._write(new_data[first.offset - start:last.offset + 1 - start], first.offset)
            return True

    def write(self, line: Line, state: bytes) -> None:
        """Write the state of a checked line.  Needs the command mutex."""
        assert self.lock_table.has_mutex(line.command)
        self._write(state, line.offset)

    def _write(self, data: bytes | bytearray, offset: int) -> None:
        # without locks another host can hold the mutex
        if self.network:
            self.lock_table.check_still_has_locks()
        pwrite_all(self.fd, data, offset)
        self.was_written = True
        if self.network:
            os.fsync(self.fd)                   # reports a server that is full or lost
            # if locks were lost meanwhile, another host can have changed the line
            self.lock_table.check_still_has_locks()


    # -- power cuts ------------------------------------------------------------------------------------------

    def judge_mark(self) -> None:
        """Mark the lines in doubt `e`, unless others work.

        Raises BlockingIOError: claim nothing: jobs can wait for these lines (after=).
        """
        table = self.lock_table
        if table.uses_mark or self.find_lines_in_doubt() is None:
            return
        # not by locking(): each line needs its command mutex
        if not lock(table.fd, MARK_BYTE):
            raise BlockingIOError("another process checks lines in doubt")
        try:
            # another starter can have judged the mark, and have run these lines since
            lines = self.find_lines_in_doubt()
            if lines is None:
                return
            if lines:
                self.say_once("power", f"{describe_lines_in_doubt(line.number for line in lines)}: marked e "
                                       "(--resume runs them again)")
            if not all(self.change_state(line, ERROR).new_state for line in lines):
                raise BlockingIOError("another process holds up one of these lines")
            os.fsync(self.fd)
            os.ftruncate(table.fd, INODE_LINE_SIZE)
        finally:
            with suppress(OSError):             # the file was closed
                unlock(table.fd, MARK_BYTE)

    def join_mark(self) -> None:
        """Before the first result, make the mark, unless there is one.  Raises LockedNow, OSError."""
        table = self.lock_table
        if table.uses_mark or not self.boot:
            return
        with table.locking(MARK_BYTE, self.patience) as locked:
            if locked and os.fstat(table.fd).st_size <= MARK_SIZE:
                self.write_mark(self.checksum_done_lines())
            if not (locked and lock(table.fd, USE_BYTE, shared=True)):
                raise LockedNow("another process makes, checks or removes the mark in the lock file")
            table.uses_mark = True

    def note_done_lines(self) -> array.array[int] | None:
        """Return what to write into the mark after a sync; None: nothing, or another does it."""
        with suppress(OSError):
            changed = os.fstat(self.fd).st_mtime_ns
            if (self.lock_table.uses_mark and changed != self._noted
                    and lock(self.lock_table.fd, RENEWER_BYTE)):
                self._noted = changed
                return self.checksum_done_lines()
        return None

    def write_mark(self, checksums: array.array[int]) -> None:
        fd = self.lock_table.fd
        with suppress(OSError):                 # more lines stay in doubt; on a full disk there is no mark
            if not self.read_old_mark():
                self.safe_since = time.time()
                pwrite_all(fd, inode_line_of(fd) + self.boot, 0)
                pwrite_all(fd, memoryview(checksums).cast("B"), MARK_SIZE)      # in no second copy
                os.fsync(fd)

    def doubt_mark(self) -> None:
        """After lost writes, leave all lines in doubt that are not safe."""
        fd = self.lock_table.fd
        with suppress(OSError):
            if os.fstat(fd).st_size > MARK_SIZE:
                os.pwrite(fd, LOST_WRITES, INODE_LINE_SIZE)

    def leave_mark(self) -> None:
        """Remove the mark if no other process uses it, unless it is an old one.  A sync comes before."""
        table = self.lock_table
        with suppress(OSError), table.locking(MARK_BYTE, self.MUTEX_SECONDS) as locked:
            if locked and is_free(table.fd, USE_BYTE) and not self.read_old_mark():
                os.ftruncate(table.fd, INODE_LINE_SIZE)
                os.fsync(table.fd)
            unlock(table.fd, USE_BYTE)
            table.uses_mark = False


class JobQueue:
    """Claims lines of a job file, checks claimed lines, writes results.

    Hold no command mutex when you call it: they cannot be nested.
    """
    MAX_SINGLE_READS = 16       # lines of a command
    MAX_CUT_OFF_SECONDS = 60.0  # with ENOTCONN, until the client of the file system counts as dead
    MAX_SPREAD = 32             # new lines
    # Who waits for a limit= asks once an interval; who frees a place, at once, and would get each.  So it
    # gives way, but only now and then: one that waits can have been stopped
    GIVE_WAY_INTERVALS = 2
    TURN_INTERVALS = 10         # from one time to the next

    def __init__(self, file: JobFile) -> None:
        self.file = file
        self.say = file.say
        self.claimed: dict[Job, None] = {}
        self._jobs_to_kill: JobsToKill = {}     # for the next check_jobs()
        # among so many new lines a runner chooses: not all shall try the same
        self.spread = 1
        # by the clock
        self._searched_at = -inf                # for moved lines
        self._cut_off_since: float | None = None        # by ENOTCONN, and not opened since
        self._freed: set[str] = set()           # names of limits=, of which we have freed places
        self._ask_at: dict[str, float] = {}     # when to ask again if others wait for that
        self._reserve = [*os.pipe2(os.O_CLOEXEC)]       # for one result without a descriptor; not renewed

    def open_files(self) -> None:
        """Open the files that the path names now, and take back the locks of our jobs.

        Raises OSError, also FileNotFoundError and FileChangedError: claim nothing.
        """
        if not self.file.lock_table.still_has_locks():
            self.file.close_files()                         # O1
        try:
            self.file.open_files()                          # O2, O3
            if not self.file.reader.is_checked:
                self._on_file_opened()                      # O4
        finally:
            self._forget_job_locks()                        # also if O3 freed them, and then failed
        self.take_back_locks()                              # O5
        if self.file.lock_table.inode != self.file.reader.marked_lock_file and not all(
                job.job_lock or self._is_result_written(job) for job in self.claimed):
            raise OSError(errno.EAGAIN, "another process holds the command mutex of a running job")
        self.file.mark_lock_file_in_use()                   # O6
        self.file.judge_mark()                 # before failed lines become new

    def _on_file_opened(self) -> None:
        # reads of this file do not show that locks were lost before it was opened
        self.file.lock_table.drop_lost_job_locks()
        self.file.reader.is_checked = True      # after it: an error leaves it to the next open_files()
        self._searched_at = -inf                # missing lines can be in this file
        self._cut_off_since = None
        if self.file.reader.reading_mode is Reading.DROPPED:
            self.file.say_once(
                "direct",
                f"the file system ({self.file.mount.kind}) refuses O_DIRECT, so results of other hosts can "
                "be read late (test it with runwait4.py --check-locks DIR)"
            )

    def take_back_locks(self) -> None:
        # the answer is no matter here: the next check or result searches again
        self._reconcile_commands([job for job in self.claimed if not job.job_lock])

    def close_if_locks_lost(self, error: OSError) -> None:
        """Close both files, for open_files(), if an error can mean that locks were lost."""
        if error.errno == errno.ENOTCONN and self._cut_off_since is None:
            self._cut_off_since = self.file.clock()
        # a FileChangedError has the errno ESTALE, too
        if error.errno in LOCKS_LOST and not isinstance(error, FileChangedError):
            self.file.close_files()

    def _forget_job_locks(self) -> None:
        for job in self.claimed:
            if job.job_lock and self.file.lock_table.job_locks.get(job.job_lock.offset) is not job.job_lock:
                job.job_lock = None

    def copy_lock_fds(self, job: Job) -> LockFds:
        """Return what a job inherits; (): the job lock is lost."""
        return self.file.lock_table.copy_job_lock(job.job_lock.fd) if job.job_lock else ()

    def still_has(self, job: Job) -> bool:
        """Return True if we certainly hold the job lock: only then may the job run again here."""
        # an old answer is not certain; a host loses all its locks together
        self.file.lock_table.expire_lock_check()
        try:
            return job.job_lock is not None and self.file.is_open and self.file.lock_table.still_has_locks()
        except OSError:                         # unknown
            return False

    # -- claiming a line -------------------------------------------------------------------------------------

    def claim(self, line: Line, consumer: Consumer = NOBODY, settings: JobSettings = NO_SETTINGS,
              syncs: bool = False) -> Attempt:
        """Claim a line for a consumer; `check` of the result says why there is no `job`.

        Raises FileChangedError if line or file moved; OSError: EIO: locks were lost; EBUSY: another lock file
        is in use; ENOLCK: no job lock is free.  Then no lock remains.

        Step 2 of the protocol, under one mutex: check path and line, count job locks and lines `r`, lock one,
        write `r`, unless it is an orphan.  Before, a last line gets its newline.

        syncs: bring the `r` to disk, as the job can take the host down.
        """
        file, lock_table = self.file, self.file.lock_table
        bucket_lock: JobLock | None = None
        job: Job | None = None
        if any(self._gives_way(limit, line) for limit in settings.limits):
            return Attempt(LineCheck.AT_LIMIT)
        if not (line.is_complete or file.complete_line(line)):
            return Attempt(LineCheck.APPENDING)
        # with all of the bucket h was 0; an equal job of ours has a job lock in it
        if (consumer.runs_short_jobs and line.state == NEW
                and all(other.command != line.command for other in self.claimed)):
            bucket_lock = lock_table.take_bucket(line)
        try:
            # without a bucket, the mutex alone: equal lines can be running
            with file.command_mutex(line.command, file.walk_patience, bucket_lock) as locked:
                attempt = (file.check_claimable(line, settings, needs_room=not bucket_lock) if locked
                           else Attempt(LineCheck.LOCKED))
                if attempt.check is LineCheck.OPEN:
                    attempt.job = job = self._lock_and_mark(line, consumer, settings, bucket_lock, syncs)
                    if not job:
                        attempt.check = LineCheck.AT_LIMIT
        finally:
            # if _lock_and_mark() has failed, it has freed the lock
            if bucket_lock and not job and lock_table.is_ours(bucket_lock.offset):
                lock_table.free_job_lock(bucket_lock)
        # mostly another process was faster
        if not job:
            self.spread = self.MAX_SPREAD
        elif self.spread > 1:
            self.spread -= 1
        if job and lock_table.waits and consumer.free.slots <= settings.needs.slots:
            lock_table.show_waits(set())        # until it has a free slot
        return attempt

    def _gives_way(self, limit: Limit, line: Line) -> bool:
        """Return True for a while if another process waits for a limit= with this line or one above.

        It asks only after we have freed a place, and once an interval: on a network that is a round trip.
        """
        now, interval = self.file.clock(), self.file.interval
        ask_at = self._ask_at.get(limit.name, now)
        if now >= ask_at and limit.name in self._freed:
            self._freed.remove(limit.name)
            offsets = limit.waits(line.number)
            is_first = is_free(self.file.lock_table.fd, offsets.start, len(offsets))
            ask_at = self._ask_at[limit.name] = now + interval * (1 if is_first else self.TURN_INTERVALS)
        return ask_at - now > (self.TURN_INTERVALS - self.GIVE_WAY_INTERVALS) * interval

    def trim_bucket(self, job: Job) -> None:
        """Unlock the mutex, if claim() has locked it for a short job."""
        if job.job_lock:
            self.file.lock_table.trim_bucket(job.job_lock.bucket)

    def _lock_and_mark(self, line: Line, consumer: Consumer, settings: JobSettings,
                       job_lock: JobLock | None, syncs: bool) -> Job | None:
        """Lock a job lock, unless one is given; write `r`; add the new job to `claimed`.

        None: a limit= is reached.  Needs the command mutex.  After None or an OSError the lock is free.
        """
        job = Job(line, settings, consumer)
        job.job_lock = job_lock or self.file.lock_table.take_job_lock(job)
        try:
            if settings.limits and not self.file.lock_table.take_limits(job.job_lock, settings):
                self.release_job(job)
                return None
            if line.state != RUNNING:           # not of an orphan, or a client that is back
                self.file.write(line, RUNNING)
            if syncs:
                os.fsync(self.file.fd)
        except OSError:
            # no `r` may remain; after a lost lease one can, and is an orphan
            with suppress(OSError):
                if self.file.state_at(line) == RUNNING != line.state:        # an editor can have saved
                    self.file.write(line, line.state)
            self.release_job(job)               # after the `r`: I1
            raise
        self.claimed[job] = None
        return job

    # -- results ---------------------------------------------------------------------------------------------

    def finish(self, job: Job, state: bytes) -> str:
        """Write the result of a job over its `r`, and release the job.

        Return '', or why the result will never be written.  Raises TemporaryError, never OSError: the job
        stays claimed, and locked unless its locks are lost.

        Step 4 of the protocol: lock the command mutex, unless the bucket is locked; check path and line;
        write the state; free the job lock, then the mutex, or all of the bucket in one call.

        state: CANCELLED: the user's state stays.  NEW: the job was not started.
        """
        self._freed.update(limit.name for limit in job.settings.limits)
        if state == CANCELLED:
            self.release_job(job)
            return ""
        try:
            try:
                self._write_and_release(job, state)
                return ""
            except FileChangedError:
                # not under that mutex: a new lock file has another
                self.open_files()
                return self._search_and_write(job, state)
        except OSError as error:
            self.close_if_locks_lost(error)
            why = error_text(error)
            while error.errno == errno.EMFILE and self._reserve:        # for the next attempt
                os.close(self._reserve.pop())
            # a dead FUSE client gives ENOTCONN for ever, GlusterFS also while no server answers
            cut_off_since = self._cut_off_since
            if cut_off_since is None or self.file.clock() - cut_off_since < self.MAX_CUT_OFF_SECONDS:
                raise TemporaryError(f"the result {display_text(state)} cannot be written: {why}") from None
            why = f"the client of the file system has died ({why})"
        finally:
            self.trim_bucket(job)               # others can need the mutex
        self.release_job(job)
        return f"{why}; the result {display_text(state)} is not written"

    def _write_and_release(self, job: Job, state: bytes) -> None:
        """Write a result over the `r` at the job's offset, and release the job.

        Raises LockedNow, OSError; FileChangedError: open_files() and search.
        """
        self.file.join_mark()                   # before: it locks other bytes
        with self.file.command_mutex(job.command, self.file.patience, job.job_lock) as locked:
            if not locked:
                raise LockedNow("another process holds the command mutex")
            self.file.check_writable()
            if self._is_result_written(job):
                self.release_job(job)
                return
            # without our job lock the `r` can be that of another runner
            if not job.job_lock or self.file.state_at(job) != RUNNING:
                raise FileChangedError("the line is not where it was, or the job lock was lost")
            job.unconfirmed_state = state       # first: write() can raise after the byte has arrived
            self.file.write(job, state)
            # under the mutex: the next holder must find as many job locks as lines `r`
            self.release_job(job)

    def _search_and_write(self, job: Job, state: bytes) -> str:
        """Do what finish() does after a search for the line; raises OSError, too."""
        # None: its line was found, or the mutex is held elsewhere
        state_now = self._reconcile_commands([job]).get(job)
        if job not in self.claimed:                 # lost, here or in open_files()
            self.release_job(job)                   # so check_jobs() does not report it
            return f"another runner took over this job; the result {display_text(state)} is not written"
        if state_now is None:
            self._write_and_release(job, state)
            return ""
        # an editor can be about to write more
        if self.file.state_at(job) in (None, RUNNING):
            self._mark_absent(job)
            if not self._is_gone(job):
                raise TemporaryError("the line is not where it was")
        self.release_job(job)
        # NEW only gives the line up
        if state_now and state in (NEW, state_now):
            return ""
        why = "the line is gone"
        if state_now:
            job.tracking = Tracking.CANCELLED       # it counts as cancelled, not as unwritten
            why = f"a user set the state '{display_text(state_now)}'"
        return f"{why}; the result {display_text(state)} is not written"

    def _is_result_written(self, job: Job) -> bool:
        """Return True if a failed try has written the result: another would overwrite another line `r`."""
        return job.unconfirmed_state != b"" and self.file.state_at(job) == job.unconfirmed_state

    def release_job(self, job: Job) -> None:
        """Forget a job and free the job lock, unless that was done."""
        self.claimed.pop(job, None)
        self._jobs_to_kill.pop(job, None)
        if job.job_lock:
            self.file.lock_table.free_job_lock(job.job_lock, job.outlives_runner)
            job.job_lock = None

    # -- checking claimed lines ------------------------------------------------------------------------------
    #
    # Step 5 of the protocol: an editor that read the file before a claim can save `.` over the `r`.  The
    # runner makes it `r` again in a second, on a network in a few; if the runner is dead, the line is new
    # once the copy has exited.  Any other state cancels the job, even an old `!` that vi saves after -r.
    #
    # If a line is not at its offset as `r`, or a job lock was lost, _reconcile_command() gives all our jobs
    # of the command lines, under one mutex.  Equal lines are interchangeable, but each held job lock has an
    # `r`.

    def check_jobs(self) -> JobsToKill:
        """Compare the claimed jobs with the file, and repair what edits and lost locks have changed.

        Return the jobs to kill, each once: a lost one is released, a cancelled one stays claimed until
        finish().  Raises no OSError.
        """
        if not self.claimed and not self._jobs_to_kill:
            return {}
        try:
            self.open_files()
            now = self.file.clock()
            astray = []
            # in a new file two jobs can seem to have the same line
            used_offsets = set()
            for job in self.claimed:
                if job.cancelled or self._is_result_written(job):
                    continue
                if job.offset not in used_offsets and self.file.state_at(job) == RUNNING:
                    job.tracking = Tracking.FOUND
                    used_offsets.add(job.offset)
                else:
                    astray.append(job)
            if any(self._is_search_due(job, now) for job in astray):
                for job, state in self._reconcile_commands(astray).items():
                    self._on_line_missing(job, state)
                self._searched_at = now
        except OSError as error:
            # another check follows, and finish() reports it
            self.close_if_locks_lost(error)
        assert self.file.lock_table.job_locks == {
            job.job_lock.offset: job.job_lock for job in self.claimed if job.job_lock
        }
        to_kill = self._jobs_to_kill
        self._jobs_to_kill = {}
        return to_kill

    def _is_search_due(self, job: Job, now: float) -> bool:
        # CHANGED_ONCE: this search decides if the job is cancelled
        if job.tracking in (Tracking.FOUND, Tracking.CHANGED_ONCE):
            return True
        # pauses grow: to read a long file each second costs half a core
        return now - self._searched_at >= min((now - job.absent_since) / 2, self.file.max_search_pause)

    def _reconcile_commands(self, jobs: Sequence[Job]) -> dict[Job, bytes]:
        """Give these jobs lines `r` and job locks again.

        Return what _reconcile_command() returns, but only for `jobs`.  A command whose mutex is held
        elsewhere is left for the next check.
        """
        our_jobs: dict[bytes, list[Job]] = {job.command: [] for job in jobs}
        if not our_jobs:
            return {}
        for job in self.claimed:                # all: lines of the others would look like a surplus
            if job.command in our_jobs:
                our_jobs[job.command].append(job)
        without_line = {}
        for command, known_lines in self.file.lines_by_command(our_jobs).items():
            with self.file.command_mutex(command, self.file.patience) as locked:
                if locked:
                    self.file.check_at_path()
                    # again, under the mutex; each read can be a round trip
                    lines = []
                    if len(known_lines) <= self.MAX_SINGLE_READS:
                        lines = [Line(line.number, line.offset, state, line.text, line.is_complete)
                                 for line in known_lines if (state := self.file.state_at(line))]
                    if len(lines) < len(known_lines):
                        lines = list(find_command_lines(self.file.reader, self.file.start, {command}))
                    without_line.update(self._reconcile_command(command, our_jobs[command], lines))
        # the others can have results, or states that no check has seen twice
        return {job: without_line[job] for job in jobs if job in without_line}

    def _reconcile_command(
        self, command: bytes, our_jobs: Sequence[Job], lines: Iterable[Line]
    ) -> dict[Job, bytes]:
        """Match our jobs of a command with its lines, after edits or lost locks.

        Needs the mutex, and all lines of the command, read under it.  Return those jobs without a line, each
        with the state there; b"": none, or another job's `r`.
        """
        assert self.file.lock_table.has_mutex(command)
        by_offset = {line.offset: line for line in lines}
        unused_running = {offset: line for offset, line in by_offset.items() if line.state == RUNNING}
        # of all processes, before any is taken back; _pick_line() leaves others as many lines `r`
        job_locks = self.file.lock_table.count_job_locks(command)
        locks_of_others = job_locks - sum(job.job_lock is not None for job in our_jobs)
        written = {job for job in our_jobs if self._is_result_written(job)}
        # First, as no line becomes `r` without a job lock (I1): one for each `r` that lacks one; the jobs
        # beyond are given up.  A job whose result is written needs none
        self._take_back_job_locks((job for job in our_jobs if job not in written),
                                  len(unused_running) - job_locks)
        # no other line for a job whose state is set, by the user or as the result
        without_line = {
            job: self.file.state_at(job) or b"" for job in our_jobs if job.cancelled or job in written
        }
        # One that was not given up keeps its offset if the line there is `r`.  All of these first: the others
        # get the rest
        astray = [job for job in our_jobs if job not in without_line and job in self.claimed
                  and not unused_running.pop(job.offset, None)]
        for job in astray:
            line = self._pick_line(job, by_offset, unused_running, locks_of_others)
            if line and line.state in (RUNNING, NEW):
                self._restore_running_state(line)
                job.offset = line.offset
                job.number = line.number
                job.text = line.text
                job.tracking = Tracking.FOUND
            else:
                without_line[job] = line.state if line else b""
        return without_line

    def _pick_line(self, job: Job, by_offset: Mapping[int, Line], unused_running: dict[int, Line],
                   locks_of_others: int) -> Line | None:
        """Return the line of a job that is astray; None: there is none.  Remove an `r` from unused_running.

        Another state than `r` and `.` is mostly a user's: the job can be cancelled.
        """
        # of the lines `r` without a job of ours, each lock of others has one; any surplus is ours
        if unused_running and len(unused_running) > locks_of_others:
            return unused_running.pop(min(unused_running, key=lambda offset: abs(offset - job.offset)))
        # otherwise an `r` was overwritten: on the only line of the command, or at the job's offset
        is_only_line = len(by_offset) == 1
        own_line = next(iter(by_offset.values())) if is_only_line else by_offset.get(job.offset)
        if own_line and own_line.state != RUNNING:
            return own_line
        # or on an equal line, which has moved; a `c` can be older
        lines = (line for state in (NEW, CANCELLED) for line in by_offset.values() if line.state == state)
        return next(lines, None)

    def _take_back_job_locks(self, our_jobs: Iterable[Job], spare_lines: int) -> None:
        """Lock the job locks again that were lost; a job for which no line `r` is left is lost.

        Then another runner has the line, or it was removed.  spare_lines: lines `r` minus held job locks;
        negative: there are too few for those that hold one.
        """
        for job in our_jobs:
            if job.job_lock:
                continue
            # an editor has saved `.` over our `r`: it will be `r` again, by _pick_line()
            usable_lines = spare_lines + (self.file.state_at(job) == NEW)
            if usable_lines > 0:
                job.job_lock = self.file.lock_table.take_job_lock(job)
                spare_lines = usable_lines - 1
                is_counted = self.file.lock_table.take_limits(job.job_lock, job.settings)
                self.say(f"line {job.number}: locked again{', beyond its limit=' * (not is_counted)}")
            else:
                self.release_job(job)           # first: it removes the job from `_jobs_to_kill`
                self._jobs_to_kill[job] = "lost"

    def _restore_running_state(self, line: Line) -> None:
        """Make a line `r` again: else it could be claimed after its job.  Needs the mutex."""
        if line.state != RUNNING:
            self.file.write(line, RUNNING)
            self.say(
                f"line {line.number}: the job is running, so the {display_text(line.state)} that an editor "
                "saved over r is r again (runset4.py --edit keeps states)"
            )
            line.state = RUNNING                # no other job may get it as new

    def _mark_absent(self, job: Job) -> None:
        if job.tracking is Tracking.FOUND:
            job.tracking = Tracking.MISSED
            job.absent_since = self.file.clock()

    def _is_gone(self, job: Job) -> bool:
        """Return True if a line has been missing for longer than an editor takes to save."""
        file = self.file
        return file.clock() - job.absent_since >= (
            file.MAX_SAVE_SECONDS if file.is_save_held_up() else file.max_absence)

    def _on_line_missing(self, job: Job, state: bytes) -> None:
        """Decide what becomes of a job without a line; an editor can be saving: one search is not enough.

        state: what has replaced the `r`, also in an equal line if that of the job was deleted; b"": nothing.
        """
        if job.cancelled:
            return
        earlier = job.tracking
        self._mark_absent(job)
        if state and earlier is Tracking.CHANGED_ONCE:
            job.tracking = Tracking.CANCELLED
            self._jobs_to_kill[job] = "cancelled"
        elif state:
            job.tracking = Tracking.CHANGED_ONCE
        elif self._is_gone(job):
            job.tracking = Tracking.GONE
            if earlier is not Tracking.GONE:
                self.say(f"line {job.number}: no longer in the file; it is not tried again (a run goes on)")
        else:
            job.tracking = Tracking.MISSED


NO_LOCKS = "requires Linux 3.15 or newer, and a file system with locks"
LOCK_REMEDIES = {
    errno.EINVAL: NO_LOCKS,
    errno.ENOSYS: NO_LOCKS,
    errno.EOPNOTSUPP: NO_LOCKS,
    errno.ENOLCK: "the file system grants no lock: on NFS, rpc.statd and lockd must run on both hosts",
    errno.EAGAIN: "the file system does not answer: try again",
    errno.ELOOP: "jobs are locked in this file: remove the link, and a file is created",
    errno.ENOSPC: "no space or no inode is left: see df and df -i",
    errno.EDQUOT: "your quota of space or inodes is used up: see quota",
}


def check_lock_file(file: JobFile) -> None:
    """Raise UsageError unless all users of a job file will use one lock file, and locks work.

    Make the lock file if there is none, unless the job file does not exist: group and mode come from that.
    Leave both files open: on NFS, opening them costs some 20 round trips.
    """
    path, mount = file.path, file.mount
    lock_path = lock_file_of(path)
    if not sys.platform.startswith("linux"):
        raise UsageError(
            f"{path}: no open-file-description locks on this system (requires Linux 3.15 or newer)"
        )
    info = stat_or_none(path)           # None: with --follow, or an editor replaces it just now
    if info and info.st_nlink > 1:
        raise UsageError(
            f"{path}: has several names (hard links), and runners of different names would not see each "
            "other (keep one)"
        )
    if mount.point == os.path.realpath(path):
        raise UsageError(
            f"{path}: is a mount point, and runners on it would not see the others (mount the directory)"
        )
    if os.path.lexists(path):
        try:
            os.close(open_lock_file_of(path))       # creates it if there is none
            with open(lock_path, "rb+", buffering=0) as first, open(lock_path, "rb+", buffering=0) as second:
                if is_free(second.fileno(), lock_random_byte(first.fileno())):
                    raise UsageError(
                        f"{lock_path}: record locks on this file system do not exclude other processes (use "
                        "another one, or mount cifs with nobrl)"
                    )
        except OSError as error:
            remedy = LOCK_REMEDIES.get(
                error.errno or 0,
                f"jobs are locked in this file: if it is root's, sudo chown --reference={path} {lock_path}; "
                "if a colleague's, they open it with any change by runset4.py; if there is none, create an "
                "empty file of this name that all users may write",
            )
            raise UsageError(f"{lock_path}: {error_text(error)} ({remedy})") from None
        # Users of a removed lock file switch to the new one within a moment: EBUSY
        deadline = time.monotonic() + 3.0
        while not file.is_open:
            try:
                file.open_to_write()
                if inode_line := refuse_copied_lock_file(file):
                    with suppress(OSError), open(lock_path, "rb+", buffering=0) as lock_file:
                        lock_file.write(inode_line)         # on a full disk no copy will be noticed
                        lock_file.truncate()
            except OSError as error:
                file.close_files()
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise UsageError(f"{path}: {error_text(error)}") from None
                time.sleep(0.1)
    if mount.shared and mount.kind not in TESTED_KINDS:
        file.say(f"is on {mount.kind}, with which runmaker4 was not tested (runwait4.py --check-locks tells "
                 "whether locks and reads are right there; or use --single-host)")


def refuse_copied_lock_file(file: JobFile) -> bytes:
    """Raise UsageError if the lock file is a copy, such as a backup, and lines are `r` without a lock.

    Their jobs can live, and hold locks of the original, whose inode number is in the first line.  Return the
    line with the present number; b"" if the file has it.
    """
    lock_table = file.lock_table
    own_line = inode_line_of(lock_table.fd)
    inode_line = read_inode_line(lock_table.fd, lock_table.network)
    if inode_line == own_line:
        return b""
    if inode_line and (orphans := file.snapshot().orphans):
        raise UsageError(
            f"{lock_table.path}: was copied, perhaps from a backup; what is marked r can still run: "
            f"{name_lines(line.number for line in orphans)} (when it does not, remove this file)"
        )
    return own_line


# ======== Finding work ======================================================================================
#
# A Cursor answers "which line next?".  Its parts:
#
#     Walk        goes down the file with a Scan, gives each line to the first Consumer that may have it, and
#                 records directives, unfinished jobs and skipped lines
#     Orphans     decides which lines `r` are orphans, and writes new states there
#
# If a walk has claimed no line, the answer is a NoJob: the time to ask again, and who may exit, by a count of
# the file after the walk (JobReader.summarize()).  Walks and counts get a twentieth of the time at most, a
# hundredth while the file looks unchanged.


class Consumers:
    """The consumers that want jobs now, the next one first."""

    def __init__(self, consumers: Iterable[Consumer]) -> None:
        self.all = dict.fromkeys(consumers)
        # by Directives.consumer_key; can contain consumers that were removed from `all` since
        self.fitting_by_key: dict[ConsumerKey, set[Consumer]] = {}

    def fitting(self, scope: Directives) -> Iterator[Consumer]:
        """Yield, in order, the consumers that could take jobs below these directives (Consumer.fits()).

        What they have free does not matter.  While iterating, do not remove a consumer from `all`.
        """
        settings = scope.settings
        if settings.needs == ONE_SLOT and not (settings.hosts or settings.scratch or scope.end):
            return iter(self.all)
        # once for equal settings: a file can have many directives, and a server many clients
        key = scope.consumer_key
        fitting = self.fitting_by_key.get(key)
        if fitting is None:
            fitting = {consumer for consumer in self.all if consumer.fits(scope)}
            self.fitting_by_key[key] = fitting
        return filter(fitting.__contains__, self.all) if fitting else iter(())

    def any_fits(self, scope: Directives) -> bool:
        return any(self.fitting(scope))


class BlockReason(NamedTuple):
    """Why no jobs are started."""
    text: str
    stops: bool = False         # permanent: runners exit, except with --follow


# ---- groups ------------------------------------------------------------------------------------------------


def no_group_message(line: Line, settings: JobSettings) -> str:
    return (
        f"line {line.number}: only runmaker4-server.py starts jobs with together=; skipping them "
        f"({settings.where})"
    )


@dataclass(eq=False)
class PendingGroup:
    """The new jobs of a group that a walk has found."""
    MAX_GROUP_JOBS = 10_000

    name: str
    below_end: bool = False     # it is below `#RUN end`
    jobs: list[tuple[Line, JobSettings]] = field(default_factory=list)
    is_complete: bool = False   # the walk has reached the end of the group
    # some of its jobs run, or are perhaps not found yet; it has too many, or ends at an invalid directive
    cannot_start_yet: bool = False
    started: bool = False       # a server has begun to start it


# ---- orphans -----------------------------------------------------------------------------------------------


class Suspicion(Enum):
    """How sure it is that a line `r` is an orphan."""
    NONE = "it has a runner, or a job"
    SOME = "it looks like one; if locks can be lost without an error, a later check must find the same"
    PROVED = "it is one"


def default_outdir(path: str) -> str:
    """Return the default --outdir: runs.txt.out for runs.txt."""
    return f"{path}.out"


class Orphans:
    """Finds the orphans among lines `r`, and writes their next states, in the file executor."""
    MAX_REPORTED = 10
    # where locks can be lost without an error: between two checks that must find a line `r` without a lock;
    # by then all runners have noticed lost locks and locked them again
    MIN_UNLOCKED_SECONDS = 15.0
    # A line that is lost with its runner so often in a row probably kills it: it is marked `!`, which only -r
    # and users run again.  More than ALONE_LOSSES: else one that ran beside the killer is marked, too
    MAX_LOSSES = 5
    # Many lines that were lost twice can be victims of power cuts: they run beside such lines only.  Only
    # those that run then are lost a third time: one takes all slots, so that the killer is found
    SUSPECT_LOSSES = 2
    ALONE_LOSSES = 3

    def __init__(self, file: JobFile) -> None:
        self._file = file
        self.outdir: OutDir | None = None       # its journal counts losses; None: they are not counted
        # by number and command of the line: how often it was lost in a row
        self.losses: Counter[tuple[int, bytes]] = Counter()
        # numbers of lines marked `e` that got no result since
        self.marked: frozenset[int] = frozenset()
        self.suspects: set[Job] = set()         # running jobs of lines lost twice in a row, or more
        self._reported = 0              # so many lines
        self.last_found_at = -inf       # clock; of a line that may be one, too
        # when (clock) a line was first seen without a lock: see check_orphan()
        self._unlocked_since: dict[tuple[int, int, bytes], float] = {}

    def check_orphan(self, line: Line) -> Suspicion:
        """Return how certain it is that the runner and job of a line `r` have died.

        Raises OSError(EIO) if our own locks are lost.
        """
        lock_table = self._file.lock_table
        # pulse_offset: a check through an earlier description of our lock file does not count
        key = lock_table.pulse_offset, line.number, line.command
        if not self._file.is_orphan(line):
            self._unlocked_since.pop(key, None)
            return Suspicion.NONE
        self.last_found_at = self._file.clock()
        if not self._file.mount.forgets_locks:
            return Suspicion.PROVED
        # if our own locks were lost, the first check proves nothing
        lock_table.expire_lock_check()
        lock_table.check_still_has_locks()
        now = self._file.clock()
        if now - self._unlocked_since.setdefault(key, now) < self.MIN_UNLOCKED_SECONDS:
            return Suspicion.SOME
        return Suspicion.PROVED

    def read_losses(self) -> None:
        self.losses = Counter(self.outdir.journal.read_losses() if self.outdir else ())

    def count_losses(self, line: Line) -> int:
        """Return how often a line was lost in a row, of an orphan also with its last runner."""
        return self.losses.get((line.number, line.command), 0) + (line.state == RUNNING)

    def write_next_state(self, line: Line, state: bytes) -> Attempt:
        """Write a state over the `r` of an orphan; in Attempt.new_state b"": nothing was written.

        Raises FileChangedError.
        """
        attempt = self._file.change_state(line, state, partial(self.add_loss, line, state))
        if attempt.new_state == ERROR:
            self.marked |= {line.number}
        return attempt

    def add_loss(self, line: Line, state: bytes) -> None:
        """Record that an orphan gets this state (NEW: it runs again), and report MAX_REPORTED.

        Needs its mutex or job lock: so the next runner counts this loss, too.
        """
        key = line.number, line.command
        losses = self.losses[key] = self.losses[key] + 1
        self._unlocked_since.pop((self._file.lock_table.pulse_offset, *key), None)
        if self.outdir:
            self.outdir.journal.add_loss(line, state, losses)
        if self._reported < self.MAX_REPORTED:
            self._reported += 1
            text = "is r without a lock, so its runner and job are dead or cut off; "
            often = f"(lost {losses} times in a row"
            beside = (f", alone: one such line at a time {often})" if losses >= self.ALONE_LOSSES
                      else f", beside such lines only {often})" if losses >= self.SUSPECT_LOSSES else "")
            text += {NEW: f"runs again{beside}", ERROR: "marked e (--resume runs it again)",
                     FAILED: f"marked ! {often}; -r runs it once more)"}[state]
            ending = "; further lines are not reported" if self._reported == self.MAX_REPORTED else ""
            self._file.say(f"line {line.number}: {text}{ending}")


# ---- one walk ----------------------------------------------------------------------------------------------


class Stop(Enum):
    """Why a walk stopped without a job."""
    END = "it has met the end of the file"
    CUT = "it has met a last line without a newline, which can be incomplete"
    BLOCK = "no jobs below can start now; if ever, then another walk finds them"
    SHORT = "each consumer has too little free for a job; the walk goes on once one has enough"
    SLICED = "the time slice is over; the walk can go on"
    RESTART = "the file was edited during the walk"


# a new job that is kept until it may start: its offset, a number that no other has, the line, the directives
# above it
WaitingJob = tuple[int, int, Line, Directives]


class Walk:
    """One walk down a job file: claim_next() goes on to the next job.

    It ends at a block.  At a barrier it knows only the first unfinished job above: once that has finished,
    others can be unfinished.  So only another walk, from the top, passes the barrier.

    It passes over the new jobs that wait for names (after=), and keeps them.  Once a job of this process is
    the last of a name to be done, they are claimed wherever the walk stands, also after its end, so that no
    other walk is needed.  For results of other processes, and jobs that were not kept, one is.

    In the same way it keeps jobs that a limit=, hours= or from= keeps back, and asks again once an interval.
    """
    MAX_WAITING = 10_000        # jobs that are kept; more are left to another walk

    def __init__(
        self,
        queue: JobQueue,
        consumers: Consumers,
        resuming_consumers: Consumers,
        orphans: Orphans,
        *,
        serving: bool,
        after_edit: bool,
    ) -> None:
        """resuming_consumers: those for which orphans run again, even if they want no job now.
        serving: for a server, which starts groups.
        """
        self._queue = queue
        self._file = file = queue.file
        self.consumers = consumers              # of the last claim; at the end, those that got nothing
        self._resuming_consumers = resuming_consumers
        self._orphans = orphans
        self._starts_groups = serving
        # A line that was lost with its runner can have killed it.  If it started first, no other line would
        # ever run.  So another walk takes such lines
        self.takes_lost_lines = self.has_left_lost_lines = False
        self.look_share = 1.0                   # the share of lines `r` that are checked: is one an orphan?
        self.running_count = 0                  # lines `r` of other processes that were met
        self.throttle = Throttle(file.clock)    # without the pauses between claims
        self.signature = file.signature()       # at the start
        # another walk follows: this one has claimed a job, or the file is being edited
        self.needs_another_walk = after_edit
        self.above = Above()
        self._states = NEW + RUNNING            # of lines that matter up to the next directive
        self._waiting: defaultdict[Named, list[WaitingJob]] = defaultdict(list)     # in order
        self.kept_count = 0                    # jobs that this walk has kept until now
        # offsets of named jobs of ours that were done before they were met: the scan can have read their `r`
        self._done_below: set[int] = set()
        self.ready: list[WaitingJob] = []       # those that wait for nothing any more, in order
        # those that a limit=, hours= or from= keeps back, and later ones of the same, in order; and of which
        # some are left to another walk
        self._restricted: defaultdict[Restriction, list[WaitingJob]] = defaultdict(list)
        self._left: set[Restriction] = set()
        self._ask_at = -inf                     # (clock) when to ask again if some may start
        self.claimable_soon = False             # a line can soon be, although the file does not change
        # commands that _try_change() does not try again in this walk, and why not
        self._refused_commands: dict[bytes, LineCheck] = {}
        self.passed: list[Line] = []            # new lines that are left to others
        self._choose_among(queue.spread)        # sets `_lines_to_pass`
        # for each Directives.consumer_key the first skipped new job: later consumers begin there
        self.skipped_new: dict[ConsumerKey, tuple[Line, Directives]] = {}
        # for consumers that had too little free for a job: that job and the needs
        self._waiting_for_capacity: dict[Consumer, tuple[Line, Resources]] = {}
        self.groups: list[PendingGroup] = []
        self.group_problem = ""     # a message about the first group, if this process starts none
        self.seconds_until_trusted = 0.0  # for which the end of the file can be half saved
        self.scan = Scan(file.reader, file.start, check_numbers=True, with_directives=True)

    def claim_next(self, consumers: Consumers, pause_at: float) -> Job | Stop:
        """Walk on, and claim the next job that one of these consumers may take; or return why the walk stops.

        consumers: between two calls the caller can remove some from this object.  To add one, it gives
        another object: then the walk goes back to jobs that it has skipped.
        pause_at: (time.monotonic()).  After an OSError begin another walk: this one has passed the line.
        """
        self.scan.pause_at = pause_at
        try:
            if self._waiting_for_capacity:
                self._end_waits_for_capacity(consumers.all)
            if consumers is not self.consumers:
                self._continue_for_consumers(consumers)
            # there seem to be fewer other runners than lines that were left to them
            if len(self.passed) >= self._queue.spread:
                self._go_back_to_passed()
            while True:
                line = self.scan.next(self._states)
                if self.passed and (not line or line.state == DIRECTIVE or not line.is_complete):
                    self._choose_among(len(self.passed))
                    self._go_back_to_passed()
                    continue
                if not line:
                    break
                # a process can be writing it
                if not line.is_complete:
                    self.seconds_until_trusted = self._file.seconds_until_complete(self.scan.end)
                    if self.seconds_until_trusted:
                        return Stop.CUT
                if line.state == DIRECTIVE:
                    self._apply_directive(line)
                elif line.state == NEW or (line.state == RUNNING and line.offset not in self._done_below
                                           and self._is_orphan_to_run(line)):
                    if job := self._claim_or_skip(line):
                        self.needs_another_walk = True
                        return job
                elif line.state != RUNNING:
                    self.above.record_bad(line)
                if self.above.block:
                    return Stop.BLOCK
                if consumers.all and consumers.all.keys() <= self._waiting_for_capacity.keys():
                    # a walk from the top takes long
                    self.scan.seek_back(line)
                    return Stop.SHORT
            self.seconds_until_trusted = self._file.seconds_until_trusted(self.scan.end)
            return Stop.END
        except Paused:
            return Stop.SLICED
        except FileChangedError:
            return Stop.RESTART

    def _choose_among(self, count: int) -> None:
        """Choose one of the next `count` new lines at random, and leave those above it to other runners.

        Otherwise all runners would try the same line.
        """
        self._lines_to_pass = (
            os.urandom(1)[0] % count if self._file.network and not self._starts_groups else 0)

    def _go_back_to_passed(self) -> None:
        """Raises FileChangedError."""
        passed, self.passed = self.passed, []
        self.scan.seek_back(passed[0])

    def _continue_for_consumers(self, consumers: Consumers) -> None:
        """Go back to the first skipped line that one of these consumers may take, if there is one.

        What the walk met from there on is forgotten.  Raises FileChangedError.
        """
        self.consumers = consumers
        # a consumer that waits for slots or memory was here when the line was skipped
        skipped = [
            (line, scope) for line, scope in self.skipped_new.values()
            if any(consumer not in self._waiting_for_capacity for consumer in consumers.fitting(scope))
        ]
        if skipped:
            line, self.above.scope = min(skipped, key=lambda line_and_scope: line_and_scope[0].offset)
            self.skipped_new = {
                key: value for key, value in self.skipped_new.items() if value[0].offset < line.offset
            }
            self.groups = [group for group in self.groups
                           if group.jobs and group.jobs[0][0].offset < line.offset]
            self.scan.seek_back(line)
        # new jobs here can be for these consumers
        self._states = NEW + RUNNING + self.above.bad_states_to_read

    # -- consumers with too little free ----------------------------------------------------------------------

    def _end_waits_for_capacity(self, consumers: Mapping[Consumer, None]) -> None:
        """End the wait of each consumer that has enough now, or whose job's line has changed."""
        state_at_offset = {}
        for consumer in self._waiting_for_capacity.keys() & consumers.keys():
            line, needs = self._waiting_for_capacity[consumer]
            if line.offset not in state_at_offset:
                state_at_offset[line.offset] = self._file.state_at(line)
            if consumer.free.holds(needs) or state_at_offset[line.offset] != line.state:
                del self._waiting_for_capacity[consumer]

    # -- jobs that are met -----------------------------------------------------------------------------------

    def _claim_or_skip(self, line: Line) -> Job | None:
        """Claim a new line, or an orphan, for the first consumer that may have it.

        None: walk on.  Something comes back to the line.  In `_waiting` or `_restricted`: claim_ready().  In
        `skipped_new`: another consumer, or this one with more free.  In `passed`: this walk, or others.  In a
        group: the server.  Else another walk, for lost lines or from the top.
        """
        scope = self.above.scope
        settings = scope.settings
        # a group starts as a whole, whatever became of a line of it
        losses = 0 if settings.together else self._orphans.count_losses(line)
        wait = self.above.find_wait(self._file)
        self.above.record_new(line, wait)       # first: lines below can wait for it
        awaited = wait.named if wait else None
        if losses and not awaited and not self.takes_lost_lines:
            self.has_left_lost_lines = True
            return None
        # others of the same go first
        if wait or (settings.is_restricted and scope.restriction in self._restricted):
            self._keep_or_pass_over(line, awaited, losses)
            return None
        # next, as it notes who waits: one without a free slot does so at a job of a group, too
        consumer = self._choose_consumer(line, scope, self.consumers, losses)
        if settings.together:
            self._add_to_group(line, settings)
        elif not consumer:
            if not self._waiting_for_capacity:
                # none may take the new jobs up to the next directive
                self._pass_over_new_lines()
            self.skipped_new.setdefault(scope.consumer_key, (line, scope))
        elif self._lines_to_pass and not self.takes_lost_lines:     # lost ones come after all new ones
            self._lines_to_pass -= 1
            self.passed.append(line)
        else:
            return self._claim(line, consumer, losses)
        return None

    def _claim(self, line: Line, consumer: Consumer, losses: int) -> Job | None:
        """Try to claim a line for a consumer with enough free; None: not claimed."""
        settings = self.above.scope.settings
        if losses >= Orphans.ALONE_LOSSES:
            settings = replace(settings, needs=settings.needs._replace(slots=consumer.capacity.slots))
        attempt = self._try_change(line, self._queue.claim, consumer, settings, losses > 0)
        if attempt.check is LineCheck.AT_LIMIT:
            self._keep_or_pass_over(line, None, losses)
        elif attempt.job and losses:            # an orphan has one
            if losses >= Orphans.SUSPECT_LOSSES:
                self._orphans.suspects.add(attempt.job)
            if line.state == RUNNING:
                self._orphans.add_loss(line, NEW)
        return attempt.job

    def _add_to_group(self, line: Line, settings: JobSettings) -> None:
        """Add a new line to its group, for the server to start; a runner takes no job of a group."""
        if not self._starts_groups:
            self._pass_over_new_lines()
            self.group_problem = self.group_problem or no_group_message(line, settings)
            return
        group = self._current_or_new_group()
        group.jobs.append((line, settings))
        if len(group.jobs) > PendingGroup.MAX_GROUP_JOBS:
            group.cannot_start_yet = True
            self.above.block = Wait(
                Why.INVALID,
                line,
                text=f"line {line.number}: the group {printable(group.name)} has more than "
                f"{PendingGroup.MAX_GROUP_JOBS:,} jobs; it and the jobs below wait",
            )

    def _pass_over_new_lines(self) -> None:
        """Pass over the new lines up to the next directive, unless others wait for each of them."""
        named = self.above.names.get(self.above.scope.settings.name)
        if not named or named.bad or len(named.unfinished) > named.MAX_LINES:
            self._states = self._states.replace(NEW, b"")

    # -- jobs that wait for names ----------------------------------------------------------------------------

    def _wait_for(self, awaited: Named | None, job: WaitingJob) -> None:
        """Keep a job that waits for a name; None: at most for a limit=, hours= or from=."""
        scope = job[-1]
        jobs = self._waiting[awaited] if awaited else self.ready
        if scope.settings.is_restricted and not awaited:
            jobs = self._restricted[scope.restriction]
            self.ask_again()
        bisect.insort(jobs, job)

    def _keep_or_pass_over(self, line: Line, awaited: Named | None, losses: int) -> None:
        """Keep a new job that may not start now, or pass over it and those below.

        awaited: the name that it waits for; None: it waits for a limit=, hours= or from=.  A line that was
        lost is left to a walk for these.
        """
        scope = self.above.scope
        jobs = self._waiting[awaited] if awaited else self._restricted[scope.restriction]
        room = self.MAX_WAITING - self.kept_count
        if awaited:
            can_start_later = not awaited.bad and room > 0 and len(jobs) < awaited.MAX_LINES
        else:
            if len(jobs) > room:                # as much must be left for the lists of others
                self._left.add(scope.restriction)
            can_start_later = scope.restriction not in self._left and self.consumers.any_fits(scope)
        if can_start_later and not losses:
            self.kept_count += 1
            bisect.insort(jobs, (line.offset, id(line), line, scope))
        else:
            self._pass_over_new_lines()

    @property
    def has_ready(self) -> bool:
        return bool(self.ready) or (bool(self._restricted) and self._file.clock() >= self._ask_at)

    def on_done(self, job: Job) -> None:
        """Find the jobs that wait no longer, now that a job of this process is done.

        If the uppermost one of those that wait for its name still does, so do the others.
        """
        names = self.above.names
        # of a job that a client has brought back to a new server the settings are unknown
        candidates = names if job.settings is NO_SETTINGS else [job.settings.name]
        for named in filter(None, map(names.get, candidates)):
            if named.unfinished.pop(job.offset, None):
                waiting = self._waiting[named]
                while waiting and (awaited := waiting[0][-1].settings.find_awaited()) is not named:
                    self._wait_for(awaited, waiting.pop(0))
                return
        if job.settings.name:
            self._done_below.add(job.offset)

    def claim_ready(self, consumers: Consumers) -> Job | None:
        """Claim the first job that waits for nothing any more, without a walk; None: none is for these.

        A line that another process has taken is left to the next walk.  Raises FileChangedError, OSError.
        """
        self._end_waits_for_capacity(consumers.all)
        jobs = self.ready
        if self._file.clock() >= self._ask_at:
            jobs = sorted([*jobs, *self._find_startable()])
        for job in [*jobs]:
            *_, line, scope = job
            if consumer := self._choose_consumer(line, scope, consumers):
                attempt = self._queue.claim(line, consumer, scope.settings)
                if attempt.check is LineCheck.AT_LIMIT:
                    continue
                if scope.settings.is_restricted:
                    self._restricted[scope.restriction].remove(job)
                    self.ask_again()            # the next one of these
                else:
                    self.ready.remove(job)
                if attempt.job:
                    return attempt.job
                self.claimable_soon |= attempt.check is not LineCheck.CHANGED
        return None

    def ask_again(self) -> None:
        """Let the next claim ask which jobs may start: one with a limit= has ended here."""
        self._ask_at = -inf

    def _find_startable(self) -> Iterator[WaitingJob]:
        """Yield the first job of each list in `_restricted` that may start; of a limit= a claim decides."""
        self._ask_at = self._file.clock() + self._file.interval
        for restriction, jobs in [*self._restricted.items()]:
            if jobs and not self._file.find_restriction(jobs[0][-1].settings):
                yield jobs[0]
            elif not jobs and restriction not in self._left:
                del self._restricted[restriction]

    def show_waits(self) -> None:
        """Show other processes, at the end of the walk, the first line of each list in `_restricted`."""
        now = self._file.wall_clock()
        first_jobs = [jobs[0] for jobs in self._restricted.values() if jobs]
        self._file.lock_table.show_waits({
            limit.waits(line.number)[-1] for *_, line, scope in first_jobs for limit in scope.settings.limits
            if scope.settings.is_open(now) and self.consumers.any_fits(scope)})

    # -- running lines ---------------------------------------------------------------------------------------

    def _is_orphan_to_run(self, line: Line) -> bool:
        """Return True for an orphan that can run again now; otherwise record a line `r`.

        It runs again, after all new lines, if a consumer, present or not, has --resume.  It becomes new only
        if none here can take it, or it can wait for others, who do not know its losses.  Otherwise, and in a
        group, it becomes `e`.
        """
        scope = self.above.scope
        suspicion = Suspicion.NONE
        self.running_count += not self._file.lock_table.is_ours(own_job_lock_offset(line))
        # not if another walk follows: on a network each check is a round trip
        if (self.takes_lost_lines or not self.needs_another_walk) and (
                self.look_share == 1.0 or int.from_bytes(os.urandom(4), "big") < self.look_share * 2**32):
            suspicion = self._orphans.check_orphan(line)
        if suspicion is Suspicion.PROVED and not self.takes_lost_lines:
            self.has_left_lost_lines = True
        elif suspicion is Suspicion.PROVED:
            next_state = ERROR
            if self._orphans.count_losses(line) >= self._orphans.MAX_LOSSES:
                next_state = FAILED
            elif not scope.settings.together and self._resuming_consumers.any_fits(scope):
                next_state = NEW
            if (next_state == NEW and self.consumers.any_fits(scope)
                    and not (scope.settings.is_restricted or self.above.find_wait(self._file))):
                return True
            attempt = self._try_change(line, self._orphans.write_next_state, next_state)
            if attempt.new_state:
                if attempt.new_state == NEW:
                    self.scan.seek_back(line)   # for consumers that come
                else:
                    line.state = attempt.new_state      # claim_next() records it
                return False
        self.above.record_first_unfinished(line)
        if suspicion is Suspicion.SOME:
            self.claimable_soon = True
        elif suspicion is Suspicion.NONE and scope.settings.together:
            # a server starts all jobs of a group together, and this one is running
            self._current_or_new_group().cannot_start_yet = True
        return False

    def _choose_consumer(self, line: Line, scope: Directives, consumers: Consumers,
                         losses: int = 0) -> Consumer | None:
        """Return the first consumer that may take a line and has enough free; or None.

        One without enough is noted, and takes nothing below, so that small jobs do not delay a big one.
        """
        needs = scope.settings.needs
        for consumer in consumers.fitting(scope):
            waits = self._waiting_for_capacity.get(consumer)
            # above that line: kept back by a limit= or name
            if not waits or line.offset <= waits[0].offset:
                if losses >= Orphans.ALONE_LOSSES:
                    needs = needs._replace(slots=consumer.capacity.slots)
                if consumer.free.holds(needs) and self._can_run_beside(
                        consumer, losses >= Orphans.SUSPECT_LOSSES):
                    return consumer
                self._waiting_for_capacity[consumer] = line, needs
        return None

    def _can_run_beside(self, consumer: Consumer, is_suspect: bool) -> bool:
        """Return True if each job of a consumer is a suspect, or none is."""
        suspects, claimed = self._orphans.suspects, self._queue.claimed
        if not (suspects or is_suspect):
            return True
        suspects &= claimed.keys()
        return all((job in suspects) == is_suspect for job in claimed if job.consumer is consumer)

    # -- claims ----------------------------------------------------------------------------------------------

    def _try_change(self, line: Line, change: Callable[..., Attempt], *args: Any) -> Attempt:
        """Try to claim a line or to change its state, by change(line, *args).  Raises FileChangedError.

        A command that was refused once is not tried again in this walk.
        """
        if line.command in self._refused_commands:
            self.claimable_soon = True
            return Attempt(self._refused_commands[line.command])
        attempt = change(line, *args)
        # others can have changed the lines below meanwhile.  After LOCKED nothing new was read
        if attempt.check is not LineCheck.LOCKED:
            self.scan.reread_from(line, attempt.data)
        self._choose_among(self._queue.spread)
        if not (attempt.job or attempt.new_state or attempt.check is LineCheck.AT_LIMIT):
            self.claimable_soon = True
            if attempt.check is not LineCheck.CHANGED:      # that is of this line only, not of the command
                self._refused_commands[line.command] = attempt.check
        return attempt

    # -- groups ----------------------------------------------------------------------------------------------

    def _current_or_new_group(self) -> PendingGroup:
        if not self.groups or self.groups[-1].is_complete:
            scope = self.above.scope
            self.groups.append(PendingGroup(scope.settings.together, scope.below_end))
        return self.groups[-1]

    def mark_group_complete(self, cannot_start_yet: bool) -> None:
        """Mark the last group, if any, as complete.  cannot_start_yet: lines of it can be missing."""
        if self.groups and not (group := self.groups[-1]).is_complete:
            group.is_complete = True
            group.cannot_start_yet |= cannot_start_yet

    # -- directives ------------------------------------------------------------------------------------------

    def _apply_directive(self, line: Line) -> None:
        """Apply a directive to the lines below; it can set above.block."""
        directives_above = self.above.scope
        self.above.enter(line)
        if self.groups and self.above.scope.group_key != directives_above.group_key:
            # below an invalid one it is unknown if jobs belong to the group above
            self.mark_group_complete(cannot_start_yet=self.above.scope.error != "")
        self._states = NEW + RUNNING + self.above.bad_states_to_read    # new jobs can be for other consumers
        self.above.block = self.above.find_block_below(line, self._file, open_states=NEW + RUNNING)


# ---- when to walk ------------------------------------------------------------------------------------------


# NoJob.retry_after, if it is not seconds
WAIT = None                     # until something changes
AGAIN = 0.0                     # at once: the time slice is over, or the next walk checks all lines `r`


@dataclass(frozen=True)
class NoJob:
    """Why no job was claimed, for a runner, or a Cursor; it is false, a Job true."""
    retry_after: float | None = WAIT    # seconds until there can be a job
    final_error: str = ""               # why nothing can be claimed any more
    may_exit: bool = False              # the runner that has asked `Jobs`; a Cursor sets `exits`
    why_left: str = ""                  # why jobs are left that it could run; '': none are
    summary: Summary | None = None      # of a count that lets consumers exit; incomplete if nobody may
    # who may exit, as a Cursor finds by a count, and why jobs are left that it could run; '': none are
    exits: Mapping[Consumer, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return False


class Cursor:
    """Finds and claims the next line for one consumer or, at a server, for many.

        RESET   failed lines of consumers in `_to_reset` are being made new; until then nothing is claimed
        TOP     there is no walk
        WALK    `_walk` has claimed a job, or all consumers that are here have too little free
        SLICED  `_walk` has paused between two reads of the file (`_is_sliced`)
        IDLE    `_idle_walk` has found no job

    The first row that holds decides what a claim does.  "anew": a walk begins at the top; "on": `_walk` goes
    on; "ready": it returns a job that waits for nothing more, and the state stays; "wait": a NoJob;
    "pause": the same until PAUSE_FACTOR times the length of the last walk is over, then anew.

        a claim finds                                           TOP     WALK    SLICED  IDLE
        consumers with --retry or --resume have come            RESET   RESET   RESET   RESET
        the file was opened again, or is closed                 anew    anew    anew    anew
        such a job (has_ready), and the walk  is not overdue    -       ready   ready   ready
        the last line has moved (if it is read: _walk_on())     -       anew    -       -
        the walk is overdue (_is_overdue())                     -       anew    on      anew *
        one has come, and `skipped_new` has jobs (not those     anew    on      on      anew
          of groups, which a server has in its plans)
        one asks to exit, and was not answered (`_answered`)    anew    on      on      anew; server: pause
        one has come, a block was met, the last answer had a    anew    on      on      pause
          time, or the file has changed since, or is another
        none of these                                           anew    on      on      wait

        the walk                                                the next state
        claims a job                                            WALK, and a Job is returned
        meets a job for which all have too little free          WALK, and WAIT
        has used its SLICE                                      SLICED, and AGAIN
        meets an edit                                           anew, at once
        ends: it began after an edit, it has claimed a job,     anew, at once
          one has asked to exit since, or it left lost lines
        ends otherwise                                          IDLE, and a time, or who may exit: _end_walk()
        raises OSError                                          TOP: _no_job_after_error()

    * checked after the rows below it: a file system with coarse time stamps can hide a change.
    """
    MAX_FOLDER_SECONDS = 60.0   # without the directory of the file, with --follow
    MIN_IDLE_SECONDS = 30.0     # then report that new jobs wait
    LOOK_AT_ALL_SECONDS = 60.0  # running lines, after an orphan: a dead host leaves many
    PAUSE_FACTOR = 20           # times the length of a walk: from its start to the next
    LONG_PAUSE_FACTOR = 100     # the same, while the file looks unchanged or a walk goes on, claim by claim
    SLICE = 0.05                # then a claim returns: results, clients and signals wait
    SILENT_SECONDS = 2.0        # then report how many failed lines were made new
    RESET_BYTES = 1 << 16       # failed lines in so much of the file are made new at once

    def __init__(self, queue: JobQueue, consumers: Iterable[Consumer] = (), *,
                 wait_for_file: bool = False, unchecked: bool = False, serving: bool = False) -> None:
        """consumers: claim for these unless claim() gets others.  wait_for_file: the file can be created
        later.  unchecked: claim() warns of stray lines, once it exists.  serving: for a server.
        """
        self.queue = queue
        self.file = file = queue.file
        self.say = file.say
        self.clock = file.clock
        self._wait_for_file = wait_for_file
        self._serving = serving
        self._is_file_unchecked = unchecked
        self.interval = file.interval
        self.consumers = Consumers(consumers)            # of the last claim
        self._leaving: frozenset[Consumer] = frozenset()    # of the last claim
        # those of `_leaving` whom this walk will answer, or the last idle one did not let exit
        self._answered: frozenset[Consumer] = frozenset()
        self.orphans = Orphans(file)
        self._reset: Iterator[float] | None = None      # _make_failed_lines_new(), under way
        self._retrying: set[Consumer] = set()           # for whom `_reset` makes lines new
        self._known: Collection[Consumer] = ()
        self._to_reset: set[Consumer] = set()           # of them, those whose failed lines are not yet new
        self._walk: Walk | None = None
        self._idle_walk: Walk | None = None     # the last that has found no job, also while `_walk` goes on
        self.no_job = NoJob()
        self._is_sliced = False
        # when (clock) the errors in a row began, or if the wait has no end, the last; None: no error
        self._errors_since: float | None = None
        self._waiting_signature: tuple[int, ...] = ()   # at the last walk without a job
        self._report_waiting_at = inf           # when (clock) to report that jobs wait, if it is still that
        self._printed_block = ""                # the reported problem of the last idle walk; '': none

    @property
    def groups(self) -> list[PendingGroup]:
        walk = self._walk or self._idle_walk
        return walk.groups if walk else []

    def claim(self, leaving: Collection[Consumer] = (), consumers: Consumers | None = None,
              known: Collection[Consumer] = ()) -> Job | NoJob:
        """Claim the next job for the first of the consumers that may take it; or return why there is none.

        No OSError comes out.
        leaving: the consumers that run no job, and exit if they may: NoJob.exits has those that may.
        consumers: those that want a job now; None: those of the last claim.
        known: all consumers, also those that want jobs later; empty: there are no others.
        """
        try:
            self._leaving = frozenset(leaving)
            result = self._walk_if_due(consumers or self.consumers, known)
            self._errors_since = None
            if self._is_file_unchecked:
                # at the start a file of plain text was refused; now only warn
                with suppress(OSError):     # look again, as at an empty file, which is still being written
                    check_file_for_strays(self.file.reader, self.file.path, self.say, False, None)
                    self._is_file_unchecked = not self.file.size()
        except OSError as error:
            result = self._no_job_after_error(error)
        if isinstance(result, NoJob):
            self.no_job = result
        return result

    def _walk_if_due(self, consumers: Consumers, known: Collection[Consumer]) -> Job | NoJob:
        """Walk on to the next job and claim it; a NoJob: no walk is due, or not all failed lines are new."""
        self.consumers = consumers
        known = known or consumers.all
        # in a batch of claims they are the same 10,000 clients
        if known is not self._known:
            self._known = known
            # --retry and --resume both set ERROR in `retry`, until all failed lines are new
            self._to_reset = {consumer for consumer in known if ERROR in consumer.retry}
        self._restart_walk_if_replaced()
        if self._to_reset:
            wait = self._go_on_with_reset(self._to_reset)
            if wait is not None:
                return NoJob(wait)
            self._to_reset = set()
        walk = self._walk or self._idle_walk
        if walk and walk.has_ready and not self._is_overdue(walk):
            try:
                if job := walk.claim_ready(consumers):
                    return job
            except FileChangedError:
                self.restart_walk()
        if self._idle_walk and not self._walk:
            wait = self._seconds_until_walk(self._idle_walk)
            if wait != 0.0:                     # seconds, or WAIT
                return NoJob(wait)
        return self._walk_on(consumers)

    def _go_on_with_reset(self, consumers: set[Consumer]) -> float | None:
        """Make failed lines new for SLICE seconds.  Return the seconds until the next call; None: all are."""
        pause_at = time.monotonic() + self.SLICE
        if not self._reset or self._retrying != consumers:
            self._retrying = consumers
            self.queue.open_files()
            self._restart_walk_if_replaced()
            self._reset = self._make_failed_lines_new(Consumers(consumers))
        try:
            for wait in self._reset:
                if wait or time.monotonic() > pause_at:
                    return wait
            seconds = None
        except FileChangedError:
            seconds = self.file.first_retry_seconds
        self.restart_walk()                     # drops `_reset`, too: the next call begins at the top
        return seconds

    def _make_failed_lines_new(self, consumers: Consumers) -> Iterator[float]:
        """Make the failed lines new that these consumers could run; of their `retry` only RUNNING remains.

        Nothing is claimed before all are new, so no line starts before a failed one above it.  Lines of
        groups, and those below an invalid directive, stay as they are.  Yield the seconds until the next
        step.  Raises FileChangedError if a line has moved.
        """
        report_at = self.clock() + self.SILENT_SECONDS
        count = 0
        above = Above()
        scope = above.scope
        scan = Scan(self.file.reader, self.file.start, FAILED + ERROR, with_directives=True)
        for _, block in itertools.groupby(scan, lambda line: line.offset // self.RESET_BYTES):
            lines = []
            for line in block:
                if line.state == DIRECTIVE:
                    above.enter(line)
                    scope = above.scope
                elif not (scope.error or scope.settings.together) and any(
                    line.state in consumer.retry for consumer in consumers.fitting(scope)
                ):
                    lines.append(line)
            tries_all = True                    # all at once is the next try, not the first line alone
            while lines:
                if tries_all and self.file.reset_lines(lines):
                    made, check = len(lines), LineCheck.OPEN
                else:
                    made, check = 1, self.file.change_state(lines[0], NEW).check
                tries_all = check is not LineCheck.OPEN
                if not tries_all:
                    del lines[:made]
                    count += made
                    if self.clock() >= report_at:
                        self.file.say_once("reset", f"{plural(count, 'failed line')} made new so far; no job "
                                                    "starts before all are")
                elif check is not LineCheck.CHANGED:
                    self.file.say_once("locked", f"line {lines[0].number}: no job starts before it is new "
                                                 f"again: {check.value}")
                    yield self.file.first_retry_seconds
                yield 0.0
                # without a mutex: another state was set by another runner, or by a user
                if tries_all:
                    self.file.lock_table.refresh()
                    self.file.check_at_path()
                    lines = self.file.without_changed(lines)
            yield 0.0
            # a check of jobs can have opened another file meanwhile
            if scan.file is not self.file.reader:
                raise FileChangedError
        self.orphans.read_losses()              # for lost lines that were marked `e` or `!`
        for consumer in consumers.all:          # failed lines only once; orphans always
            consumer.retry = RUNNING

    def _seconds_until_walk(self, walk: Walk) -> float | None:
        """Return the seconds until another walk is due after `walk`, which found no job; 0: now.

        WAIT: none is, until the file or the consumers change.
        """
        asks_to_exit = not self._leaving <= self._answered
        has_newcomers = not self.consumers.all.keys() <= walk.consumers.all.keys()
        # skipped jobs can be for newcomers
        if (asks_to_exit and not self._serving) or (has_newcomers and walk.skipped_new):
            return 0.0
        # the first four can find jobs even if the file is as it was
        if (asks_to_exit or has_newcomers or self.no_job.retry_after is not WAIT or walk.above.block
                or self.file.signature() != walk.signature):
            # while our own jobs release others, the file changes all the time
            return walk.throttle.seconds_until_due(
                self.PAUSE_FACTOR, self.interval if walk.kept_count and not asks_to_exit else 0.0)
        return 0.0 if self._is_overdue(walk) else WAIT     # coarse time stamps can hide a change

    def _is_overdue(self, walk: Walk) -> bool:
        """Return True if a walk is so old that lines above can have been edited in place since."""
        return walk.throttle.is_due(self.LONG_PAUSE_FACTOR, self.interval)

    def _walk_on(self, consumers: Consumers) -> Job | NoJob:
        """Continue the current walk, or begin another, until one claims a job or has to stop."""
        was_edited = False
        # a walk that has only paused goes on: otherwise it would never end in a long file
        if self._walk and not self._is_sliced:
            scan = self._walk.scan
            try:
                # Other runners can have claimed lines below.  But old data does no harm if we have met no
                # others lately, and another walk follows: a claim reads its line again.  With `passed` lines
                # the walk itself reads again from one of them
                if scan.last and not self._walk.passed and (
                        self.queue.spread > 1 or not self._walk.needs_another_walk):
                    scan.reread_from(scan.last)
            except FileChangedError:
                was_edited = True
            if was_edited or self._is_overdue(self._walk):
                self._walk = None
        pause_at = time.monotonic() + self.SLICE
        while True:
            walk = self._walk or self._begin_walk(consumers, was_edited)
            with walk.throttle:
                result = walk.claim_next(consumers, pause_at)
            self._is_sliced = result is Stop.SLICED
            if isinstance(result, Job):
                return result
            if self._is_sliced:
                return NoJob(AGAIN)
            if result is Stop.SHORT:
                return NoJob(WAIT)
            self._walk = None
            was_edited = result is Stop.RESTART
            # one asks to exit: since the walk began, its last job can have opened a barrier
            if was_edited or walk.needs_another_walk or not self._leaving <= self._answered:
                continue
            if not walk.has_left_lost_lines:
                return self._end_walk(walk, result)
            self.orphans.read_losses()
            self._begin_walk(consumers, after_edit=False).takes_lost_lines = True

    def _begin_walk(self, consumers: Consumers, after_edit: bool) -> Walk:
        """Begin a walk of the file that the path names now.

        after_edit: an edit has ended the walk before.
        """
        self.queue.open_files()
        self._restart_walk_if_replaced()
        resuming_consumers = Consumers(
            consumer for consumer in self._known if RUNNING in consumer.retry
        )
        self._walk = Walk(self.queue, consumers, resuming_consumers, self.orphans,
                          serving=self._serving, after_edit=after_edit)
        # On NFS each look at a line `r` is a round trip.  So an idle runner looks only at some two, at none
        # in its first idle walk; but before it exits, a walk and a count look at all
        last, is_idle = self._idle_walk, self._leaving <= self._answered and not resuming_consumers.all
        if (is_idle and self.file.mount.is_nfs and not self._serving
                and self.file.clock() - self.orphans.last_found_at > self.LOOK_AT_ALL_SECONDS):
            self._walk.look_share = 2 / max(last.running_count, 2) if last else 0.0
        self._answered = self._leaving
        return self._walk

    def _end_walk(self, walk: Walk, stop: Stop) -> NoJob:
        """Find out when another walk is due after one that has found no job, or who may exit now."""
        last, self._idle_walk = self._idle_walk, walk
        if walk.groups and not walk.groups[-1].is_complete:
            # the last group can go on.  Ask before the size, which then includes all appended lines
            is_appended_to = self.file.lock_table.is_held(APPEND_BYTE)
            walk.claimable_soon |= is_appended_to
            has_grown = self.file.signature()[2] != walk.signature[2]
            walk.mark_group_complete(cannot_start_yet=stop is Stop.CUT or is_appended_to or has_grown)
        walk.show_waits()
        waits = []                              # seconds until a walk is due without a change; none may exit
        if walk.seconds_until_trusted:
            waits.append(walk.seconds_until_trusted)
        if walk.claimable_soon:
            waits.append(self.interval if last and last.claimable_soon else self.file.first_retry_seconds)
        no_job = self._find_exits(walk) if not waits else NoJob(
            max(min(waits), walk.throttle.pause_seconds(self.PAUSE_FACTOR)))
        self._answered = self._leaving - no_job.exits.keys()
        if no_job.exits and walk.look_share < 1.0:      # it has not looked at all lines `r`
            no_job = NoJob(AGAIN)
        self._report_obstacles(walk, no_job.summary)
        self._report_if_idle(walk.signature)
        return no_job

    def _find_exits(self, walk: Walk) -> NoJob:
        """Count the file after a walk that has found no job, for the consumers that ask to exit.

        A consumer stays as long as a new line suits it, unless a failure stops it (barrier check, after=).
        With --follow it also stays until there is a `#RUN end`.  A line that becomes new after the count has
        a living runner, or was an orphan.
        """
        block = walk.above.block
        check = block if block and block.why is Why.CHECK else None
        why_stopped = check.text if check else walk.above.stopped
        # a `#RUN end` can be below a block; and with --follow a failure is reported
        leaving = [consumer for consumer in self._leaving
                   if block or why_stopped or walk.above.scope.below_end or not consumer.follow]
        summary = None
        if leaving:
            with walk.throttle, suppress(FileChangedError):
                self.file.check_at_path()       # a walk that paused can have met the end of a replaced file
                summary = self.file.summarize(
                    leaving, groups=self._serving, looks=walk.look_share == 1.0,
                    keep_above=check.line.offset if check and check.line else inf
                )
        # none asks, or the file was just replaced; or lines can be missing
        if not summary or summary.half_saved:
            return NoJob(WAIT)
        # without a reason a job has failed since the walk
        stopped = summary.with_jobs if why_stopped else ()
        return NoJob(summary=summary, exits={
            consumer: why_stopped if consumer in stopped else ""
            for consumer in {*summary.without_jobs, *stopped} if summary.has_end or not consumer.follow})

    def _restart_walk_if_replaced(self) -> None:
        """Drop the walk if the job file was opened again or is closed: offsets can be wrong now."""
        walk = self._walk or self._idle_walk
        if self.file.fd == CLOSED or (walk and walk.scan.file is not self.file.reader):
            self.restart_walk()                 # the next walk opens it

    def restart_walk(self) -> None:
        self._walk = self._idle_walk = self._reset = None

    # -- messages --------------------------------------------------------------------------------------------

    def _report_obstacles(self, walk: Walk, summary: Summary | None) -> None:
        """Report, once, why jobs cannot start.  summary: of the count; None: there was none, or it failed."""
        block = walk.above.block
        problem = block.text if block else walk.above.stopped
        is_stopped = block.stops if block else problem != ""
        if is_stopped and not (summary and any(consumer.follow for consumer in summary.with_jobs)):
            # the runners report it when they exit; or another count follows
            problem = self._printed_block
        if problem and problem != self._printed_block:
            self.say(problem)
        self._printed_block = problem
        if walk.group_problem:
            self.file.say_once("groups", walk.group_problem)

    def _report_if_idle(self, signature: tuple[int, ...]) -> None:
        """Report, once, that new jobs wait although the file has not changed for MIN_IDLE_SECONDS."""
        now = self.clock()
        if self._waiting_signature != signature:
            self._waiting_signature = signature
            self._report_waiting_at = now + self.MIN_IDLE_SECONDS
        elif now >= self._report_waiting_at:
            self._report_waiting_at = inf  # reported, until the file changes
            # a reader of its own: only the queue may open another file in `self.file`
            reader = JobReader(self.file.path, say=self.say, mount=self.file.mount, clock=self.clock)
            snapshot = reader.snapshot()
            reader.close_files()
            new_count = snapshot.states[NEW]
            if new_count and not snapshot.running:
                self.say(f"{plural(new_count, 'new job')} {'waits' if new_count == 1 else 'wait'}: "
                         f"runwait4.py --status {shlex.quote(as_argument(self.file.path))} shows why")

    # -- results ---------------------------------------------------------------------------------------------

    def finish(self, job: Job, state: bytes) -> str:
        """Write the result of a job, as JobQueue.finish().

        state: NEW gives up a job that was not started; one that a user has cancelled keeps the user's state.
        """
        if state == NEW and job.cancelled:
            state = CANCELLED
        error = self.queue.finish(job, state)
        self.orphans.marked -= {job.number}
        if not error and (walk := self._walk or self._idle_walk):
            if job.settings.limits:
                walk.ask_again()
            if state == DONE:
                walk.on_done(job)
        return error

    # -- errors ----------------------------------------------------------------------------------------------

    def _no_job_after_error(self, error: OSError) -> NoJob:
        """Return a NoJob after an error: try again in a while, or `final_error`.

        Lines in doubt that another process holds up, and with --follow a missing file, are waited for without
        end, but a missing directory for a minute only.
        """
        self.restart_walk()
        self.queue.close_if_locks_lost(error)
        now, text = self.clock(), error_text(error)
        patience = self.file.max_error_seconds
        if isinstance(error, BlockingIOError):
            patience = inf
        elif self._wait_for_file and error.errno == errno.ENOENT:
            # FileNotFoundError: our working directory is gone
            with suppress(FileNotFoundError):
                patience = (inf if os.path.isdir(os.path.abspath(os.path.dirname(self.file.real_path)))
                            else self.MAX_FOLDER_SECONDS)
            if patience < inf:
                text = "the directory is gone"
        if self._errors_since is None:
            self.say(f"{text}; {'waiting for it' if patience == inf else 'trying again'}")
        if self._errors_since is None or patience == inf:
            self._errors_since = now
        if now - self._errors_since >= patience:
            return NoJob(final_error=text)
        return NoJob(self.interval)


# ---- reasons to wait, and the dry run ----------------------------------------------------------------------


def find_block_reason(file: JobReader, hosts: Collection[str], memory: float,
                      is_served: bool) -> BlockReason | None:
    """Return what in the file or its locks keeps all runners from new jobs; None: nothing, or none are new.

    It does not ask if a runner is at work.  Raises OSError.
    hosts: those with a runner, as far as known.  memory: bytes that one may have.  is_served: by a server.
    """
    reasons: dict[bool, BlockReason] = {}       # the first, by `stops`
    for line, wait, text in find_reasons(file, hosts, memory, is_served):
        if not text:
            return None
        reason = BlockReason(text if wait and wait.text else f"line {line.number} {text}",
                             wait is not None and wait.stops)
        if wait and wait.line:                  # all new lines below wait, too
            return reason
        reasons.setdefault(reason.stops, reason)
    return reasons.get(False) or reasons.get(True)


def find_reasons(file: JobReader, hosts: Collection[str], memory: float, is_served: bool,
                 numbers: Collection[int] | None = None) -> Iterator[tuple[Line, Wait | None, str]]:
    """Yield new lines, why they may not start, whoever runs jobs, and in words: 'waits for a: ...'; '': may.

    numbers: yield all new lines, and ask for these if their commands may start; None: those of
    JobReader.plan(), all asked, and 'waits' is enough for all but the first of them by Wait.stops.
    """
    # of host= only `*` matches the first; each of the others has a runner, perhaps busy
    consumers = Consumers(Consumer(name, capacity=Resources(1, memory), is_client=is_served)
                          for name in ("", *hosts))
    reason_of = functools.lru_cache(maxsize=None)(partial(_reason_command_waits, file))
    above = Above()
    reasons: dict[int, str] = {}                # of the first lines of sections, by number
    previous: Wait | None = None
    described: set[bool] = set()
    text = ""
    for line, wait in file.plan(above, consumers, every=numbers is not None):
        if not wait:
            text = reason_of(line.command) if numbers is None or line.number in numbers else ""
        elif numbers is None and wait.stops in described and not wait.line:
            text = "waits"
        elif wait is not previous:
            text = wait.text or _describe(wait, above, file, hosts, reasons)
            described.add(wait.stops)
        if not wait or wait is not previous:
            reasons[line.number] = text
        previous = wait
        yield line, wait, text


def _describe(wait: Wait, above: Above, file: JobReader, hosts: Collection[str],
              reasons: Mapping[int, str]) -> str:
    """Return for what lines wait, and for what that waits, from `reasons`, by number."""
    settings = above.scope.settings

    def add_reason(text: str, number: int) -> str:
        first, *others = reasons.get(number, "").split(", which ")
        if others[1:]:                          # of a long chain the beginning and the root
            others = ["in the end " + others[-1].removeprefix("in the end ")]
        return ", which ".join(filter(None, [text, first, *others]))

    if wait.named:
        awaited = itertools.islice(filter(settings.awaits, reversed(settings.awaited)), 3)
        what = ", and for ".join(
            add_reason(describe_named(named), 0 if named.bad else next(iter(named.unfinished.values())))
            for named in awaited)
    elif wait.why is Why.BARRIER:
        if not (wait.line and above.unfinished):
            return ""
        number = above.unfinished.number
        return add_reason(f"waits at the #RUN barrier in line {wait.line.number} for line {number}", number)
    elif wait.why is Why.GROUP:
        what = (f"the hosts of the group {printable(settings.together)} ({settings.where}; "
                "runmaker4-server.py starts it)")
    elif wait.why is Why.NOBODY:
        has_runner = any(Consumer(name).matches_hosts(settings.hosts) for name in hosts)
        what = str(replace(settings, hosts=()) if has_runner else settings)
    elif full := next(filter(file.lock_table.is_full, settings.limits), None):
        lines = above.holders[full.name]        # others can be below
        what = (f"limit {printable(str(full))} run" + f": {name_lines(lines)}" * bool(lines)
                + f" ({settings.where})")
    else:
        what = f"{settings.describe_opening(time.time())} ({settings.where})"
    return f"waits for {what}"


def _reason_command_waits(file: JobReader, command: bytes) -> str:
    """Return what keeps every runner from claiming a line of this command now; '': nothing."""
    if file.lock_table.is_mutex_held(command):
        return "waits for another process, which holds the command mutex (lslocks names it)"
    if file.can_run_another_copy(command):
        return ""
    return "waits for a copy of the command that is running without a line r"


def dry_run(file: JobReader, consumer: Consumer, slots: float) -> Iterator[Line]:
    """Yield the lines that this consumer would run if it were alone, and report what it cannot run.

    slots: for all jobs together; inf: without -1.  Raises UsageError for a command that its shell would
    misread, and OSError.
    """
    directives = [*file.scan_lines(b"", with_directives=True)]      # this opens it
    report_same_fetch(file, directives)
    for text in settings_without_jobs(file.reader, directives):
        file.say(text)
    say_once = once_per_subject(file.say)
    above = Above(skips_unfinished=True)        # all jobs have run when a barrier is met
    sizes: dict[bytes, int] = {}        # of the files of send=
    # a barrier check does not fail for states that the consumer runs again
    for line, wait in file.plan(above, Consumers([consumer]), NEW + consumer.retry,
                                CHECK_FAILURES.translate(None, delete=consumer.retry)):
        settings = above.scope.settings
        if above.block or not slots:
            break
        if settings.needs.memory:
            say_once("memory", f"{memory_text(consumer.capacity.memory)} of memory for jobs with memory=")
        if wait and wait.why is Why.GROUP and line.state == NEW:
            say_once(f"group {settings.together}", no_group_message(line, settings))
        if not wait and settings.needs.slots <= slots:
            slots -= settings.needs.slots
            why = why_misread(line.command, settings.shell)
            try:
                if fetched := fill_in_words(settings.fetch, line.command, settings.scratch):
                    say_once("fetch", f"line {line.number}: fetch={display_text(b','.join(fetched))}")
                for word, path in zip(settings.send, fill_in_words(settings.send, line.command)):
                    name = os.path.join(os.path.dirname(os.fsencode(file.path)), path)
                    if os.path.isfile(name):
                        sizes[path] = os.path.getsize(name)
                    else:
                        found = display_text(path)
                        say_once(found, f"line {line.number}: {found}, by send={word}: missing, or not a "
                                        f"regular file ({settings.where})")
            except ValueError as error:
                why = f"{error} ({settings.where})"
            if why:
                raise UsageError(f"{file.path}: line {line.number}: {why}")
            yield line
    if above.block and slots:
        file.say(above.block.text)              # no job below starts
        return
    if sizes:
        file.say(f"{memory_text(sum(sizes.values()))} in {plural(len(sizes), 'file')} of send= would travel "
                 "over TCP")


def report_same_fetch(file: JobReader, directives: Iterable[Line]) -> None:
    """Report the first two of the first 10,000 lines of which one result replaces the other."""
    numbers: dict[bytes, int] = {}
    scope = NO_DIRECTIVES
    if any(b"fetch=" in line.text for line in directives):
        scan = file.scan_lines(RUNNER_STATES, with_directives=True)
        for line in itertools.islice(scan, 10_000):
            if line.state == DIRECTIVE:
                scope = scope.with_directive(line)
                continue
            with suppress(ValueError):          # a word is missing
                for path in fill_in_words(scope.settings.fetch, line.command, scope.settings.scratch):
                    # jobs can make different files of one pattern or directory
                    if (not (scope.settings.scratch and NO_PATH.search(without_marks(path)))
                            and numbers.setdefault(path, line.number) != line.number):
                        return file.say(f"lines {numbers[path]}, {line.number} have one fetch=, "
                                        f"{display_text(path)}: a later result replaces an earlier one")


# ======== The executor ======================================================================================
#
# An event loop must not wait for a file system.  So a FileExecutor makes every file operation: on a local
# file system at once, on a network file system in one thread, in order.


def spawn_task(work: Awaitable[Any]) -> asyncio.Future[Any]:
    """Start a task that is not awaited; an exception, a defect, goes to the loop's handler."""
    def raise_error(task: asyncio.Future[Any]) -> None:
        if not task.cancelled():
            task.result()

    task = asyncio.ensure_future(work)
    task.add_done_callback(raise_error)
    return task


@types.coroutine
def go_on(work: Coroutine[Any, Any, object], awaited: Any) -> Generator[Any, Any, None]:
    """Go on with a coroutine that waits for `awaited`, as a task that began it would."""
    with suppress(StopIteration):
        while True:
            try:
                yield awaited
            except BaseException as error:      # of what it waits for; or it is cancelled
                awaited = work.throw(error)
            else:
                awaited = work.send(None)


def begin(work: Coroutine[Any, Any, Any]) -> asyncio.Future[Any] | None:
    """Do the work of a coroutine, up to where it waits; return the task that goes on; None: it has ended.

    So work that need not wait needs no task: a task costs a tenth of a short job.  In this part there is no
    asyncio.current_task(), which wait_for() needs.  Its exceptions, defects, come out here.
    """
    try:
        awaited = work.send(None)
    except StopIteration:
        return None
    return spawn_task(go_on(work, awaited))


async def wait_for_event(event: asyncio.Event, seconds: float | None) -> bool:
    """Return True if an event is set within `seconds` (None: no limit).  begin() may be what calls this."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([waiting], timeout=seconds)
    finally:
        waiting.cancel()
    return event.is_set()


FIRST_RETRY_SECONDS = 0.05
MAX_LOCKED_SECONDS = 1.0        # of pauses, until a locked command is reported: a claim is shorter
MAX_RETRY_SECONDS = 30.0        # each pause is twice as long as the last, up to this


async def write_with_retries(write: Callable[[Job, bytes], Awaitable[str]], job: Job, state: bytes,
                             say: Say) -> str:
    """Call write() until it raises no TemporaryError; return '', or the permanent error."""
    waited, pause = 0.0, FIRST_RETRY_SECONDS
    is_reported = False
    while True:
        try:
            return await write(job, state)
        except TemporaryError as error:
            if not (is_reported or (waited < MAX_LOCKED_SECONDS and isinstance(error, LockedNow))):
                say(f"line {job.number}: {error}; trying again")
                is_reported = True
        await asyncio.sleep(pause)
        waited, pause = waited + pause, min(2 * pause, MAX_RETRY_SECONDS)


def thread_pool(size: int | None = None) -> futures.ThreadPoolExecutor:
    """Return an executor whose threads block signals, so that the main thread gets them.

    Otherwise SIGCHLD can wake another thread, which waits for the GIL: 10 % of the CPU time of a short job
    (signal(7), findings/python-sigchld-wakes-idle-threads.sh).  size: None: Python chooses.
    """
    from concurrent import futures  # which asyncio has loaded
    return futures.ThreadPoolExecutor(
        size, initializer=signal.pthread_sigmask,
        # TTOU stops a program in the background that writes to a terminal with `stty tostop`, as it should
        initargs=(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGTTOU})
    )


def start_thread(pool: futures.ThreadPoolExecutor) -> None:
    """Start the first thread of a pool.  Raises UsageError.

    Do it at the start, but once -d has forked: later there can be too many processes.
    """
    try:
        pool.submit(int)
    except RuntimeError as error:
        raise UsageError(f"{error}{TOO_MANY_PROCESSES}") from None


class FileExecutor:
    """Makes file operations in order: at once, or in one thread if they can block."""

    def __init__(self, threaded: bool, on_relieved: Callback = lambda: None,
                 say: Say = lambda text: None) -> None:
        """on_relieved: called when the backlog can be smaller.  say: for messages about records."""
        self.pool = thread_pool(1) if threaded else None
        self._on_relieved = on_relieved
        self.say = say
        self.backlog = 0            # bytes posted and not yet written
        self.pending: set[futures.Future[Any]] = set()      # calls that the thread has not finished

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.submit(function, *args, **kwargs) if self.pool else function(*args, **kwargs)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        assert self.pool
        future = self.pool.submit(function, *args, **kwargs)
        self.pending.add(future)
        future.add_done_callback(self.pending.discard)
        return asyncio.wrap_future(future)

    def call_then(self, on_answer: Callable[[T], object], function: Callable[P, T], *args: P.args,
            **kwargs: P.kwargs) -> None:
        """Make a call; on_answer() gets the answer in the event loop.  An exception is a defect."""
        if self.pool:
            self.submit(function, *args, **kwargs).add_done_callback(
                lambda answer: on_answer(answer.result()))
        else:
            asyncio.get_running_loop().call_soon(on_answer, function(*args, **kwargs))

    def then(self, on_done: Callable[[], object]) -> None:
        """Call on_done() in the event loop once all earlier calls are made."""
        self.call_then(lambda _: on_done(), int)

    def post(self, function: Callable[..., object], *args: Any, size: int = 0) -> None:
        """Make a call that handles all errors itself, and ignore the answer.

        size: bytes that count as backlog until the call is done.
        """
        if not self.pool:
            function(*args)
            return
        self.backlog += size
        self.submit(function, *args).add_done_callback(partial(self._on_posted_call_done, size))

    def _on_posted_call_done(self, size: int, answer: asyncio.Future[object]) -> None:
        self.backlog -= size
        self._on_relieved()
        answer.result()             # an exception is a defect

    async def flush(self, max_seconds: float | None = None) -> None:
        """Wait until all calls so far and their callbacks are done, max_seconds at most (None: no limit)."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.call(int), max_seconds)     # int() does nothing
            await asyncio.sleep(0)              # for the callbacks


class FileCounter:
    """Counts the lines of a job file by state, for the status line of a terminal."""
    PAUSE_FACTOR = 50                   # counts take at most 1/50 of a CPU
    MIN_COUNT_SECONDS = 2.0             # from one count to the next
    MIN_COUNT_SECONDS_FAR = 15.0        # on a network file system

    def __init__(self, file: JobReader, executor: FileExecutor) -> None:
        self._file = file
        self._executor = executor
        # by the last successful count, and our results since it began; None: there was none
        self._states: Counter[bytes] | None = None
        self._results: list[bytes] = []         # of our jobs since the last count began
        self._is_counting = False
        self._throttle = Throttle()             # of the last count

    def request_count_if_due(self) -> None:
        """Start a count, unless one is in progress or recent; `counts` has the result later."""
        if not self._is_counting and self._throttle.is_due(
                self.PAUSE_FACTOR,
                self.MIN_COUNT_SECONDS_FAR if self._file.network else self.MIN_COUNT_SECONDS):
            self._is_counting = True
            self._results = []
            self._executor.call_then(self._on_counted, self._count_states)

    def _count_states(self) -> Counter[bytes] | None:
        """Return the number of lines in each state; None: there is no file now."""
        states: Counter[bytes] = Counter()
        self._throttle = Throttle()
        with self._throttle, suppress(OSError):
            deque(self._file.scan_lines(RUNNING, states), 0)
            return states
        return None

    def _on_counted(self, states: Counter[bytes] | None) -> None:
        self._is_counting = False
        if states is not None:
            self._states = states
            results, self._results = self._results, []
            for state in results:
                self.add_result(state)

    def add_result(self, state: bytes) -> None:
        """Add a result of ours to the last count: the status line is below the line that reports it."""
        self._results.append(state)
        states = self._states or Counter()
        # for each job that ended, another was started, if there was one
        before = NEW if states[NEW] else RUNNING
        if states[before]:                      # otherwise the count has the result
            states[before] -= 1
            states[state] += 1

    @property
    def counts(self) -> Counts | None:
        """Return the last count, with our results since, and orphans as running; None: unknown."""
        return None if self._states is None else count_states(Snapshot(self._states))


class Jobs(Protocol):
    """The source of a Runner's jobs: a job file, or a connection to a server."""
    interval: float                     # seconds; claimed lines are checked twice in it
    poll: float                         # seconds between checks for new jobs while there are none

    async def claim(self, exits_if_none: bool, free: Resources, capacity: Resources) -> Job | NoJob:
        """Return a job, or why there is none.  exits_if_none: then the runner exits if it may."""

    def copy_lock_fds(self, job: Job) -> Awaitable[LockFds]:
        """Return descriptors for the job to inherit, the first with the job lock; (): it has none.

        The caller closes them in the executor.
        """

    async def still_has(self, job: Job) -> bool:
        """Return True if surely no other runner has the line."""

    def on_ready_to_start(self, job: Job) -> None:
        """Handle a shell that waits at the gate."""

    def finish(self, job: Job, state: bytes) -> Awaitable[str]:
        """Write a job's new state (NEW: it was not started) and give the line up.

        Return '', or the permanent error.  Raises TemporaryError.
        """

    async def check_jobs(self) -> JobsToKill:
        """Return the jobs to kill, and why: "lost" to another runner, or "cancelled"."""

    async def summarize(self, runner: Runner) -> Summary | None:
        """Return the last summary of the file, after the last job; None: it is unknown."""


class FileJobs:
    """The `Jobs` of a runner on the shared file: a `FileExecutor` calls a cursor and a queue."""
    # after so many short jobs in a row a claim on NFS locks the bucket; other network file systems can merge
    # or split locks wrongly
    SHORT_JOBS = 8
    SHORT_SECONDS = 0.1

    def __init__(self, cursor: Cursor, reader: JobReader, executor: FileExecutor, consumer: Consumer) -> None:
        self._cursor = cursor
        self._queue = cursor.queue
        self._file = cursor.file
        self._reader = reader                   # for counts: only the queue may open its file again
        self.executor = executor
        self._consumer = consumer               # this runner
        self.interval = cursor.interval
        self.poll = cursor.file.poll
        self._short_jobs = 0                    # jobs in a row that ended within SHORT_SECONDS, on NFS
        # timers that call _on_long_job(), of jobs on NFS claimed less than SHORT_SECONDS ago
        self._trims: dict[Job, asyncio.TimerHandle] = {}

    async def claim(self, exits_if_none: bool, free: Resources, capacity: Resources) -> Job | NoJob:
        # the claim reads these in the executor; no other claim is under way (Runner._start_jobs())
        consumer = self._consumer
        if capacity != consumer.capacity:
            consumer.capacity = capacity
            self._cursor.consumers.fitting_by_key.clear()       # other settings can fit now
        consumer.free = free
        consumer.runs_short_jobs = self._short_jobs >= self.SHORT_JOBS
        result = await self.executor.call(self._cursor.claim, [consumer] if exits_if_none else ())
        if isinstance(result, NoJob):
            if consumer in result.exits:
                return replace(result, may_exit=True, why_left=result.exits[consumer])
        elif self._file.mount.is_nfs:
            self._trims[result] = asyncio.get_running_loop().call_later(
                self.SHORT_SECONDS, self._on_long_job, result)
        return result

    def _on_long_job(self, job: Job) -> None:
        self._short_jobs = 0
        del self._trims[job]
        self.executor.post(self._queue.trim_bucket, job)

    def copy_lock_fds(self, job: Job) -> Awaitable[LockFds]:
        return self.executor.call(self._queue.copy_lock_fds, job)

    async def still_has(self, job: Job) -> bool:
        return await self.executor.call(self._queue.still_has, job)

    def on_ready_to_start(self, job: Job) -> None:
        """Only a server starts groups."""

    def finish(self, job: Job, state: bytes) -> Awaitable[str]:
        if job in self._trims:                  # it has ended before _on_long_job()
            self._trims.pop(job).cancel()
            self._short_jobs += 1
        return self.executor.call(self._cursor.finish, job, state)

    async def check_jobs(self) -> JobsToKill:
        return await self.executor.call(self._queue.check_jobs)

    async def summarize(self, runner: Runner) -> Summary | None:
        """Return a summary; None: unreadable, or no answer soon after a signal that killed jobs."""
        summary = await runner.wait_unless_killed(self._summarize_at_exit(runner))
        runner.runner_stats.orphans += self._cursor.orphans.marked
        return summary

    def _summarize_now(self, consumers: Collection[Consumer]) -> Summary:
        """Count the jobs in the file.  consumers: this runner, or none: then no new job counts as left.

        Jobs without a runner count as left: no runner will see their exit status.
        """
        # before and after: a runner that exits or starts in between can have the running jobs
        was_only_runner = self._file.has_no_other_users()
        self._reader.open_files()
        summary = self._reader.summarize(consumers)
        has_unsupervised_jobs = (
            summary.counts.running > 0 and was_only_runner and self._file.has_no_other_users())
        return replace(summary, jobs_left=summary.jobs_left or has_unsupervised_jobs)

    async def _summarize_at_exit(self, runner: Runner) -> Summary | None:
        """Return a summary; None: the file cannot be read, which is reported."""
        summary = runner.exit_summary
        if summary and not self._can_change_soon(summary) and not (
                summary.counts.running and await self.executor.call(self._file.has_no_other_users)):
            return summary
        # jobs that do not fit only because slots are out of service are left
        consumers = () if runner.slots.each_had_job else (self._consumer,)
        self._consumer.capacity = runner.full_capacity
        for looks_left in reversed(range(self._reader.MAX_LOOKS)):
            try:
                summary = await self.executor.call(self._summarize_now, consumers)
                if runner.kill_signal or not looks_left or not self._can_change_soon(summary):
                    return summary
            except OSError as error:
                # with --follow, such a file has no jobs
                if error.errno == errno.ENOENT and not self._file.is_open and runner.options.follow:
                    return Summary(Counts())
                if runner.kill_signal or runner.claim_error or not looks_left:
                    runner.say(f"{error_text(error)}; the state of the jobs is unknown")
                    return None
            await asyncio.sleep(self.interval)
        return None

    def _can_change_soon(self, summary: Summary) -> bool:
        """Return True if an editor seems to be saving, or orphans can be claimed."""
        return summary.half_saved or (summary.orphans > 0 and RUNNING in self._consumer.retry)


# ======== A run =============================================================================================


class Run:
    """One run of a job, as the sinks and the runner see it."""
    duration = 0.0                      # seconds; 0 until the end
    shell: Shell | None = None
    streams: tuple[Stream, ...] = ()    # stdout and stderr
    cause = ""                          # why it is being killed, or was: as in RunResult
    why = ""                            # why it could not be started, or killed; "": neither
    peak = 0                            # bytes of memory seen in use by all processes
    limit = 0.0                         # seconds of a timeout in percent that it has exceeded; 0.0: none
    requested_memory = 0                # bytes, by memory=; 0: none
    directory = b""                     # its working directory; b"": ours

    def __init__(self, job: Job, slots: Sequence[str], host: bytes, sinks: Sequence[Sink] = ()) -> None:
        """slots: names; the first is the slot of records."""
        self.job = job
        self.slots = slots
        self.host = host
        self.sinks = sinks
        self.started_at = time.time()           # seconds since the epoch
        self.started = time.monotonic()

    @property
    def is_open(self) -> bool:
        return any(stream.fd is not None for stream in self.streams)

    @property
    def pid(self) -> int:
        return self.shell.pid if self.shell else 0

    @property
    def no_result(self) -> RunResult:
        return RunResult(UNKNOWN, self.cause or "lost")

    @property
    def host_and_pid(self) -> bytes:
        """Return for example b'(alice,601)'."""
        return b"(%s,%d)" % (self.host, self.pid)

    def add_output(self, stream: Stream, data: bytes) -> None:
        stream.received += len(data)
        for sink in self.sinks:
            sink.on_output(self, stream, data)


class Stream:
    """A pipe that a job writes to."""
    received = 0                        # bytes
    was_watched = False                 # by the event loop

    def __init__(self, name: bytes, fd: int) -> None:
        self.name = name                # b"stdout" or b"stderr"
        self.fd: int | None = fd        # None: read to the end


class Shell:
    """The shell of a job, as far as records need it."""
    # CPU seconds, user and system, of the shell and all waited-for children; None: unknown, or not yet
    cpu: float | None = None
    memory: int | None = None       # peak of these processes, in bytes; None as above
    memory_below: int | None = None         # upper bound of an unknown peak, in bytes

    def __init__(self, pid: int, job_tag: bytes) -> None:
        self.pid = pid              # also the session number
        self.job_tag = job_tag


# causes that make a job failed, not interrupted, so that --retries runs it again; oom: the host had no
# memory; files: one of fetch= is missing
FAILURE_CAUSES = "timeout", "memory", "oom", "files"
UNKNOWN = 0x7F                          # a wait status of neither an exit nor a signal (wait(2): stopped)


class RunResult:
    """How a run ended."""

    def __init__(self, status: int, cause: str = "", limit: float = 0.0, peak: int = 0) -> None:
        """status: the wait status; UNKNOWN: there is none.  cause: one of FAILURE_CAUSES, "stopped",
        "cancelled" or "lost"; "": it ended by itself.  limit: the timeout in seconds; if the cause is
        "memory", bytes allocated.  peak: of memory, in bytes; 0: unknown.
        """
        self.status = status
        self.cause = cause
        self.limit = limit
        self.peak = peak
        if cause == "cancelled":
            self.state = CANCELLED
        elif cause and cause not in FAILURE_CAUSES:     # "stopped" or "lost" is not the job's own failure
            self.state = ERROR
        else:
            self.state = FAILED if cause or status else DONE
        # the exit status; -1: there is none, because a signal killed the shell
        self.code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        # the signal that killed the shell; 0: it exited
        self.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0

    @property
    def fatal_signal(self) -> int:
        """Return the signal that killed the shell or the last command (exit status 128 + n); 0: unknown."""
        return self.signal or max(self.code - 128, 0)

    def __str__(self) -> str:
        """Return 'exit 3', 'signal 9', 'timeout after 60s', 'cancelled', ..."""
        if self.cause == "timeout":
            return f"timeout after {self.limit:.12g}s"
        if self.cause == "memory":
            return f"took {memory_text(self.peak)} of {memory_text(self.limit)}"
        if self.cause == "cancelled":
            return "cancelled"
        text = f"signal {self.signal}" if self.signal else f"exit {self.code}"
        if self.cause == "files":
            return f"{text}, but without its files"
        return f"out of memory, {text}" if self.cause == "oom" else text


class Sink:
    """Receives the events of a run, in this order; on_no_result() can replace those before on_job_over()."""

    def on_started(self, run: Run) -> None:
        """Handle the start of a run's shell."""

    def on_no_result(self, run: Run) -> None:
        """Handle a run that was not started, or whose result will never be known."""

    def on_output(self, run: Run, stream: Stream, data: bytes) -> None:
        """Handle job output."""

    def on_ended(self, run: Run, run_result: RunResult) -> None:
        """Handle the end of a run, after all output."""

    def on_job_over(self, job: Job, state: bytes) -> None:
        """Handle a job that will not run again here."""

    def on_tick(self) -> None:
        """Do what is due by now."""

    def on_exit(self) -> None:
        """Finish: no run will start."""


# ======== Processes =========================================================================================
#
# A job is a shell in a new session, with the job lock, and with a tag in the environment.
#
# To kill a job is to kill a tree: the processes of the session, all with the tag, all that share the job lock
# with them, and all descendants, as /proc shows them.  Each process gets TERM once, and KILL after the grace.
# The tree is read again and again, because processes fork.  A process that outlives KILL, of another user or
# in state D, keeps the job alive.
#
# A runner kills only its own jobs.  Of a job whose runner is dead, Holders finds processes, to name them.

LOCK_FD = 64                        # descriptor of the job lock in a job: out of the way of `exec 3>file`
# the soft limit of open files of jobs; ours can be higher: select(2) fails above 1,024
START_LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
# descriptors of make -j, which no job inherits: make would use the job's files of these numbers
# (GNU make manual, "POSIX Jobserver Interaction"; --jobserver-fds: before 4.2;
# findings/make-writes-jobserver-tokens-into-files.sh)
JOBSERVER_FDS = lazy_pattern(rb"(^| )--jobserver-(auth|fds)=[0-9]+,[0-9]+(?= |$)")
# the first commands of a shell at a gate; at end of file it exits
GATE = b"read -r RUNMAKER4_GATE || exit; unset RUNMAKER4_GATE; exec </dev/null\n"
GRACE = 10.0                        # seconds from TERM to KILL (--kill-after)
JOB_TAG_VARIABLE = b"RUNMAKER4_JOB"     # of all processes of a job, in any session
PAGE = os.sysconf("SC_PAGE_SIZE")
# the exclusive lock of an open file description in /proc/PID/fdinfo/FD (proc(5))
EXCLUSIVE_LOCK = lazy_pattern(rb"OFDLCK +ADVISORY +WRITE +-1 ([0-9a-f:]+ \d+ \d+)\n")
# of a job; our own can ignore SIGCHLD (findings/python-exit-status-0-where-sigchld-is-ignored.sh)
DEFAULT_SIGNALS = tuple(int(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
# USR2 and XCPU are the warnings of Grid Engine (-notify, s_cpu), OAR and LSF that KILL follows
# (findings/gridengine-notify-ends-the-script-before-the-program.sh)
KILL_SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGXCPU
DRAIN_SIGNALS = signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT
STOP_SIGNALS = KILL_SIGNALS + DRAIN_SIGNALS     # the runner kills all jobs, or starts no more


class Child(Shell):
    """A shell that this process has started."""

    def __init__(self, pid: int, job_tag: bytes, on_exit: Callable[[int], None]) -> None:
        super().__init__(pid, job_tag)
        self.status: int | None = None  # the wait status (waitpid(2)); None: it has not exited
        self._exit_callback = on_exit
        self.session_ended = False      # another session can get its number
        self.tags = {job_tag}           # and the job lock, once a process was seen with it

    def on_exit(self, status: int) -> None:
        if self.status is None:
            self.status = status
            self._exit_callback(status)
            del self._exit_callback         # of a JobTask, which has us: leave no cycle


class ProcessStat(NamedTuple):
    """Fields of /proc/PID/stat (proc(5))."""
    state: bytes
    parent: int
    session: int
    threads: int
    resident_pages: int

    @classmethod
    def read(cls, pid_text: str) -> ProcessStat:
        """Raises OSError if the process has exited."""
        fd = os.open(f"/proc/{pid_text}/stat", os.O_RDONLY)
        try:
            # after the pid and '(NAME)', which can contain blanks and )
            state, parent, _, session, *fields = os.read(fd, 4096).rpartition(b")")[2].split()
        finally:
            os.close(fd)
        # the numbers in proc(5) are 7 larger than these indices: num_threads, rss
        return cls(state, int(parent), int(session), int(fields[13]), int(fields[17]))

    @property
    def is_alive(self) -> bool:
        """Return False for a zombie.  A process shows Z, too, if only the first thread has exited."""
        return self.state not in (b"Z", b"X") or self.threads > 1


class ProcessTable:
    """Living processes (proc(5))."""
    TAG_ENTRY = lazy_pattern(rb"(?:^|\0)" + JOB_TAG_VARIABLE + rb"=([^\0]*)")

    def __init__(self, names: Iterable[str] | None = None) -> None:
        """names: of the processes, in /proc; None: all, which takes long on a large host."""
        self.processes: dict[int, ProcessStat] = {}     # by pid
        self.children: dict[int, list[int]] = {}        # by the pid of the parent
        self.sessions: dict[int, list[int]] = {}        # by session number
        # by each job tag in the environment; without one, by the inherited job lock
        self.tagged: dict[bytes, list[int]] = {}
        for pid_text in filter(str.isdigit, os.listdir("/proc") if names is None else names):
            with suppress(OSError):      # it has exited
                process = ProcessStat.read(pid_text)
                if process.is_alive:
                    pid = int(pid_text)
                    self.processes[pid] = process
                    self.children.setdefault(process.parent, []).append(pid)
                    self.sessions.setdefault(process.session, []).append(pid)
                    # Last: this raises for a process of another user.  With tags, the lock does not count: it
                    # can be that of another job
                    for tag in self._tags_of(pid_text) or self._inherited_locks(pid):
                        self.tagged.setdefault(tag, []).append(pid)

    @classmethod
    def _tags_of(cls, pid_text: str) -> list[bytes]:
        """Return the tags of the jobs that a process belongs to, the outermost first; []: it shows none."""
        with open(f"/proc/{pid_text}/environ", "rb") as file:
            match = cls.TAG_ENTRY.search(file.read())
        return match[1].split(b"/") if match else []

    @staticmethod
    def _inherited_locks(pid: int) -> Iterator[bytes]:
        """Yield the job locks that a process has inherited; none of another user's, or of this process."""
        for fd in LOCK_FD, LOCK_FD + 2:         # unless the limit of open files is low: _lock_fd
            with suppress(OSError), open(f"/proc/{pid}/fdinfo/{fd}", "rb") as file:
                if pid != os.getpid():
                    yield from EXCLUSIVE_LOCK.findall(file.read())

    def job_processes(self, shell: Child) -> list[int]:
        """Return the living processes of a job, each parent before the children.

        Not found: one that has left session and tag (`env -i setsid`), and closed the job lock or is another
        user's.
        """
        # a shell that outlived its command would start the next one
        # the shell first
        todo = deque(sorted([] if shell.session_ended else self.sessions.get(shell.pid, []),
                            key=lambda pid: pid != shell.pid))
        for tag in shell.tags:
            todo += self.tagged.get(tag, [])
        found: dict[int, None] = {}
        while todo:
            pid = todo.popleft()
            if pid not in found:
                found[pid] = None
                # for the next table
                shell.tags.update(self._inherited_locks(pid))
                todo.extendleft(self.children.get(pid, []))
        return list(found)

    def needing_term(self, pids: Iterable[int], got_term: Collection[int]) -> list[int]:
        """Return the processes that must still get TERM; pids: each parent before the children.

        A new child of a process that got TERM gets none: it can be a command of a trap.
        """
        needing_term = []
        spared_parents = set(got_term)
        for pid in pids:
            if pid in got_term:
                continue
            if self.processes[pid].parent in spared_parents:
                spared_parents.add(pid)
            else:
                needing_term.append(pid)
        return needing_term


class Holders:
    """The processes here that have job locks of a lock file: ours, or to root all."""
    JOB_LOCK = lazy_pattern(
        rb"flags:\s+([0-7]+)\n(?s:.*)OFDLCK +ADVISORY +WRITE +-1 [0-9a-f]+:[0-9a-f]+:\d+ (\d+) \2\n"
    )

    def __init__(self, lock_file: Identity | None) -> None:
        # lock_file: None: there is none
        self._by_lock: defaultdict[int, list[int]] = defaultdict(list)   # by the offset of the job lock
        for name in filter(str.isdigit, os.listdir("/proc")):
            for fd in LOCK_FD, LOCK_FD + 2:     # as in ProcessTable
                with suppress(OSError):      # there is none, or it is another user's
                    info = os.stat(f"/proc/{name}/fd/{fd}")
                    if (info.st_dev, info.st_ino) == lock_file:
                        with open(f"/proc/{name}/fdinfo/{fd}", "rb") as file:
                            match = self.JOB_LOCK.search(file.read())
                        # only a job has it without close-on-exec
                        if match and not int(match[1], 8) & os.O_CLOEXEC:
                            self._by_lock[int(match[2])].append(int(name))

    def pids(self, line: Line) -> list[int]:
        """Return the processes of a line's job, or, if the line has moved, of all jobs of the command."""
        offsets = job_lock_offsets(line.command)
        equal = (pid for job_lock, pids in self._by_lock.items() if job_lock in offsets for pid in pids)
        return sorted(self._by_lock.get(own_job_lock_offset(line)) or equal)


PSS = lazy_pattern(rb"^Pss:\s+([0-9]+) kB", re.MULTILINE)


def resident_memory(pid: int) -> int:
    """Return the resident memory of a process, in bytes; 0: unreadable, or it has exited.

    Of shared pages its share counts (proc(5): Pss), or nothing if that is unreadable.
    """
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        if share := PSS.search(file.read()):
            return int(share[1]) << 10
    with suppress(OSError), open(f"/proc/{pid}/statm", "rb") as file:
        _, resident, shared, *_ = map(int, file.read().split())
        return (resident - shared) * PAGE
    return 0


class OomKills:
    """Counts the kernel's OOM kills in our control group and those below: see docs/architecture.md."""
    MAX_AGE_SECONDS = 0.05
    KILLS = lazy_pattern(r"^oom_kill ([0-9]+)", re.MULTILINE)

    def __init__(self) -> None:
        self._count = 0
        self._read_at = -inf       # (monotonic)

    def recent_count(self, now: float) -> int:
        """Return the count of at most MAX_AGE_SECONDS before `now`."""
        return self._count if now - self._read_at < self.MAX_AGE_SECONDS else self.read_count()

    def read_count(self) -> int:
        """Return the number of kills; 0 if the kernel does not count them."""
        self._read_at = time.monotonic()
        match = self.KILLS.search(next(cgroup_texts("memory.events"), ""))
        self._count = int(match[1]) if match else 0
        return self._count


class Signals:
    """Calls handlers in the event loop.  asyncio's add_signal_handler wakes it twice: 5 % of a short job."""
    IS_CHILD = signal.SIGCHLD.__eq__

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._handlers: dict[int, Callback] = {}      # by signal number
        self.read_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        # a pipe full of SIGCHLD is no matter: one byte suffices for reap()
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        os.set_blocking(self.read_fd, False)
        loop.add_reader(self.read_fd, self.dispatch)

    def handle(self, number: int, handler: Callback) -> None:
        self._handlers[number] = handler
        signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))   # we, or our parent, can have blocked it

    def ignore_from_now_on(self) -> None:
        """Python restores default actions at exit, and a late HUP would become our exit status."""
        signal.set_wakeup_fd(-1)
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)

    def dispatch(self) -> None:
        try:
            numbers = {*os.read(self.read_fd, 1 << 16)}         # each byte is a signal number
        except BlockingIOError:
            return
        # SIGCHLD is last: StopSignals has a signal before the job that also got it is reaped
        for number in sorted(numbers, key=self.IS_CHILD):
            if handler := self._handlers.get(number):
                handler()


def describe_process(pid: int) -> str:
    """Return for example '601 (dd of root, state D)' (proc(5)); '601' if it has exited."""
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        pid_and_name, _, fields = display_text(file.read()).rpartition(")")
        return f"{pid_and_name} of {user_name(os.fstat(file.fileno()).st_uid)}, state {fields[1]})"
    return str(pid)


class TreeKiller:
    EMPTY_READINGS = 2              # in a row: during execve(2) a process shows no tag
    MAX_DYING_SECONDS = 5.0         # from KILL until a process should be dead
    UNDYING_PAUSE = 1.0             # seconds between two looks for those that are not

    def __init__(self, loop: asyncio.AbstractEventLoop, grace: float | None) -> None:
        """grace: seconds from TERM to KILL; None: never KILL."""
        self._loop = loop
        self.grace = inf if grace is None else grace
        self.kills_at_once = False  # True: without the grace, after a second INT
        # one for all jobs that are being killed; None: no caller waits
        self._reading: asyncio.Task[ProcessTable] | None = None
        self._throttle = Throttle()     # of the last reading

    async def kill_tree(self, shell: Child, gives_up: Callable[[list[int]], bool]) -> list[int]:
        """Kill the tree of a job.  Return [] once no process lives.

        gives_up: is asked about processes that outlive KILL; True: return them, the shell counts as killed.
        """
        start = self._loop.time()
        got_term: set[int] = set()
        killed_at = inf
        empty_readings = 0
        pause = 0.005
        while True:
            has_exited = shell.status is not None   # before the reading, which takes a while
            if not self._reading:
                self._reading = asyncio.ensure_future(self._read_after_pause())
            table = await asyncio.shield(self._reading)
            if has_exited and shell.pid not in table.sessions:
                shell.session_ended = True
            alive = table.job_processes(shell)
            now = self._loop.time()
            empty_readings = 0 if alive else empty_readings + 1
            if empty_readings >= self.EMPTY_READINGS and shell.status is not None:
                return []
            if alive and now - killed_at > self.MAX_DYING_SECONDS:
                if gives_up(alive):
                    shell.on_exit(signal.SIGKILL)       # unless it has exited
                    return alive
                pause = self.UNDYING_PAUSE
            if self.kills_at_once or now - start > self.grace:
                killed_at = min(killed_at, now)
                self._signal(alive, signal.SIGKILL)
            else:
                pids = table.needing_term(alive, got_term)
                got_term.update(pids)
                self._signal(pids, signal.SIGTERM)
                # a stopped process acts on TERM only now, when all others have got it, too
                self._signal(pids, signal.SIGCONT)
            await asyncio.sleep(0.02 if empty_readings else pause)
            pause = min(2 * pause, 0.1)

    async def _read_after_pause(self) -> ProcessTable:
        await asyncio.sleep(self._throttle.seconds_until_due(3))
        self._reading = None            # callers from now on wait for the next reading
        self._throttle = Throttle()
        with self._throttle:
            return ProcessTable()

    @staticmethod
    def _signal(pids: Iterable[int], number: int) -> None:
        # another process can have the PID by now: older kernels lack pidfd_open(2)
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


class Processes(TreeKiller):
    """Starts, reaps and kills jobs.  It reaps all children of this process: nothing else may wait for one."""
    # $1 is the job's command, one line.  First the shell checks that the command does not lack its end, as
    # `echo a &&` and `cat <<END` do, and runs nothing of it: whatever it closes here, the `break` comes
    # first.  To zsh `echo a &&` and `while false` lack nothing, so there the check is that a `:` below
    # remains a command of its own (zshmodules(1): functions).  The line of a blank is for a command that ends
    # with a backslash; an empty line would end `cat <<''`.
    #
    # The last eval opens nothing that the command could close: so the shell refuses an end too many, such as
    # `}` or `else`, before it runs anything.  Without the exit, shells exec the last command; if that closes
    # all descriptors above 2, as ssh does, the job lock is lost.  ksh93 takes `exit` for the body of `f()`,
    # but not `! exit`.  For a killed command $? is 256 + the signal in ksh93, 384 + in yash, else 128 + it.
    SHELL_SCRIPT = (
        b'case ${ZSH_VERSION-} in\n'
        b'"") while :; do eval "break; { :\n$1\n \n}"; exit; done ;;\n'
        b"*) eval 'zmodload zsh/parameter; functions[RUNMAKER4]=\":\n$1\n \n:\"\n"
        b'case ${functions[RUNMAKER4]-} in *"\n\t:") unset -f RUNMAKER4 ;;\n'
        b'*) echo "not a complete command" >&2; exit 1 ;; esac\' ;;\n'
        b'esac\n'
        b'eval "shift\n$1\n \n"\'! exit "$(($?>256?128+$?%128:$?))"\'\n'
        b'exit'
    )
    SHOWN_WHOLE = lazy_pattern(rb"[ -~]{0,100}")

    def __init__(self, loop: asyncio.AbstractEventLoop, signals: Signals, grace: float | None) -> None:
        super().__init__(loop, grace)
        self.running: dict[int, Child] = {}             # by pid
        self._own_peak = 0              # of this process's memory, when last asked, in KiB
        own_id = b"%s-%d-%d" % (os.fsencode(os.uname().nodename), os.getpid(), time.time_ns() // 1_000_000)
        self._new_tags = (b"%s-%d" % (own_id, number) for number in itertools.count(1))
        self._null = os.open(os.devnull, os.O_RDWR)
        self.max_descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # the number of the job lock in a job; start() needs some above it, below the limit
        self._lock_fd = min(LOCK_FD, self.max_descriptors - 8)
        # the token is secret, and memory that an outer runner has allocated is not each job's
        self.environ = {key: value for key, value in os.environb.items()
                        if key not in (b"RUNMAKER4_TOKEN", b"RUNMAKER4_MEMORY")}
        for name in self.environ.keys() & {b"MAKEFLAGS", b"MFLAGS"}:
            self.environ[name] = JOBSERVER_FDS.sub(b"", self.environ[name])
        own_tags = self.environ.get(JOB_TAG_VARIABLE)   # if we are a job, our jobs are part of it
        self.outer_tags = own_tags + b"/" if own_tags else b""
        self.on_reaped: Callback = lambda: None     # called after SIGCHLD
        signals.handle(signal.SIGCHLD, self._on_child_signal)

    def start(self, shell: str, command: bytes, environ: dict[bytes, bytes], out_fd: int | None,
              err_fd: int | None, on_exit: Callable[[int], None], lock_fds: Sequence[int] = (),
              gate_fd: int | None = None, directory: bytes = b"") -> Child:
        """Start a job's shell in a new session.  Raises OSError, ValueError (a NUL in the command).

        shell: a path, or a name to look up in our own PATH.  environ: variables besides ours.  out_fd,
        err_fd: None: /dev/null.  on_exit: called once, with the wait status.  gate_fd: see GATE.  directory:
        in which it runs; b"": in ours.
        """
        job_tag = next(self._new_tags)
        dup2 = os.POSIX_SPAWN_DUP2
        actions = [(dup2, self._null if fd is None else fd, number)
                   for fd, number in ((gate_fd, 0), (out_fd, 1), (err_fd, 2))]
        # The job lock gets the number `_lock_fd`, or, if ours has that, `_lock_fd` + 2: some C libraries
        # leave close-on-exec set if dup2(2) gets one number twice.  It is copied last: one of ours above can
        # have one of these numbers.
        if lock_fds[1:]:
            free_numbers = (number for number in itertools.count(self._lock_fd + 3) if number not in lock_fds)
            actions += ((dup2, fd, number) for fd, number in zip(lock_fds[1:], free_numbers))
        if lock_fds:
            actions.append((dup2, lock_fds[0], self._lock_fd + 2 * (lock_fds[0] == self._lock_fd)))
        gate = b"" if gate_fd is None else GATE
        # ps shows the comment.  Its last # keeps a backslash of the command from the newline
        shown = command if self.SHOWN_WHOLE.fullmatch(command) else (
            display_text(command[:400])[:100].encode(errors="replace"))
        enter = directory and b"cd -- %b || exit\n" % quote(directory)
        script = b"# %b #\nulimit -Sn %d\n%b%b%b" % (shown, START_LIMIT, enter, gate, self.SHELL_SCRIPT)
        environ = self.environ | {**environ, JOB_TAG_VARIABLE: self.outer_tags + job_tag}
        pid = os.posix_spawnp(
            shell, (shell, b"-c", script, shell, command), environ, file_actions=actions, setsid=True,
            setsigmask=(), setsigdef=DEFAULT_SIGNALS)
        child = self.running[pid] = Child(pid, job_tag, on_exit)
        return child

    def _on_child_signal(self) -> None:
        self.reap()
        self.on_reaped()

    def reap(self) -> None:
        """Collect status and usage of the children that have exited, and call their on_exit now."""
        try:
            while (waited := os.wait4(-1, os.WNOHANG))[0]:
                pid, status, usage = waited
                shell = self.running.pop(pid, None)
                # None: a child from before execve(2) of this program
                if shell and shell.status is None:
                    shell.cpu = to_milliseconds(usage.ru_utime + usage.ru_stime)
                    # ru_maxrss begins with our own peak, also after execve(2)
                    # (findings/python-peak-memory-of-a-child-is-its-parents.sh)
                    if usage.ru_maxrss > self._own_peak:
                        self._own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                    if usage.ru_maxrss > self._own_peak:
                        shell.memory = usage.ru_maxrss << 10        # from KiB
                    else:
                        shell.memory_below = self._own_peak << 10
                    shell.on_exit(status)
        except ChildProcessError:
            return


# ======== The allocation ====================================================================================
#
# CPUs, memory and time of this process, by the kernel, control groups and Slurm.

CGROUP_ROOT, PROC_CGROUP = "/sys/fs/cgroup", "/proc/self/cgroup"


def available_cpus() -> int:
    limits = [len(os.sched_getaffinity(0)), slurm_cpus()]
    for text in cgroup_texts("cpu.max"):
        if limit := re.match("([0-9]+) ([1-9][0-9]*)", text):       # quota and period; or `max`, period
            limits.append(int(limit[1]) / int(limit[2]))
    return max(1, int(min(limits)))


def cgroup_texts(name: str) -> Iterator[str]:
    """Yield a file, such as 'cpu.max', of our control group (version 2, cgroups(7)), then of those above."""
    try:
        with open(PROC_CGROUP, encoding="utf-8", errors="surrogateescape") as lines:
            group = "".join(line.rstrip("\n")[3:] for line in lines if line.startswith("0::"))
    except OSError:
        return
    # a group outside of our cgroup namespace begins with `..` (cgroup_namespaces(7))
    names = [name for name in group.split("/") if name not in ("", "..")]
    for depth in range(len(names), -1, -1):
        with suppress(OSError), \
                open(os.path.join(CGROUP_ROOT, *names[:depth], name), encoding="ascii") as file:
            yield file.read()


def slurm_cpus() -> float:
    """Return the number of CPUs that Slurm gives a task; infinite if it sets no variable.

    Without -c the tasks of a step share the CPUs of a node, and a batch script has all.
    """
    task_cpus = positive_number("SLURM_CPUS_PER_TASK")
    if task_cpus < inf:
        return task_cpus
    return positive_number("SLURM_CPUS_ON_NODE") / slurm_tasks()


def positive_number(name: str) -> float:
    """Return the positive number in an environment variable; infinite if there is none."""
    number = re.fullmatch("[1-9][0-9]{0,17}", os.environ.get(name, ""))
    return int(number[0]) if number else inf


def is_slurm_step() -> bool:
    return os.environ.get("SLURM_STEP_ID", "").isdigit()        # a batch script has -5 (26.05), or none


def slurm_tasks() -> int:
    """Return the number of tasks on this node, which Slurm lists as `4,5` (srun(1)); batch script: `0`."""
    return os.environ.get("SLURM_GTIDS", "").count(",") + 1


# ---- how much memory ---------------------------------------------------------------------------------------


def is_job() -> bool:
    """Return False if $RUNMAKER4_JOB names a runner that is no ancestor: sbatch and tmux keep variables."""
    host, *named_pid = os.environ.get("RUNMAKER4_JOB", "").rsplit("-", 3)[:2]       # named_pid []: none
    pid = os.getppid()
    with suppress(OSError):                     # no process is above, or it is hidden
        while named_pid not in ([], [str(pid)]):
            pid = ProcessStat.read(str(pid)).parent
        # each host has a process 1, which can be the runner of a container
        return not named_pid or host.endswith(os.uname().nodename)
    return False


def available_memory() -> float:
    """Return the memory that this process can use, in bytes: the least of all known limits."""
    # Slurm gives it per node or per CPU, in MiB; 0: the whole node.  Tasks of a step (srun) share it; a batch
    # script can use all that the Slurm job has on the node, regardless of -c
    cpus = slurm_cpus() if is_slurm_step() else positive_number("SLURM_CPUS_ON_NODE")
    limits = [
        float(os.sysconf("SC_PHYS_PAGES") * PAGE),
        positive_number("RUNMAKER4_MEMORY") if is_job() else inf,   # what an outer runner has allocated
        positive_number("SLURM_MEM_PER_NODE") / slurm_tasks() * SIZE_UNITS["M"],
        positive_number("SLURM_MEM_PER_CPU") * cpus * SIZE_UNITS["M"],
    ]
    limits += [float(text) for text in cgroup_texts("memory.max") if text.strip().isdigit()]    # or `max`
    return min(limits)


# ---- until when --------------------------------------------------------------------------------------------
#
# By SLURM_JOB_END_TIME (Slurm 23.02 or later), for --walltime auto.


AUTO = "auto"                       # --walltime auto


def allow_most_descriptors() -> None:
    """Raise the soft limit of open files to the hard one; jobs still get START_LIMIT."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def allow_descriptors(needed: int, user: str = "so many jobs need",
                      remedy: str = "lower -j, or raise ulimit -Hn") -> None:
    """Raise the soft limit of open files to `needed`, or UsageError with user and remedy."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise UsageError(f"{user} {needed} open files, the limit is {hard} ({remedy})")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


# ======== Output ============================================================================================
#
# Sinks are the console, the log file, the output directory and the job log.  No sink blocks the event loop:
# the console writes through a Writer with an executor of its own, the others through that of the files.
# While the backlog, the bytes still to be written, is large, the runner reads no job output: jobs block on
# the pipes.


class Writer:
    """Writes to a descriptor that other processes share (a terminal, a pipe); never blocks the event loop.

    A thread writes, unless it is a regular file: O_NONBLOCK would apply to all of these processes.
    """
    LOW_BACKLOG = 1 << 18                       # bytes; below, job output is read again
    HIGH_BACKLOG = 1 << 20                      # bytes; above, it is not read
    GATHER_SECONDS = 0.02               # for which lines are gathered
    MAX_GATHERED_BYTES = 1 << 18        # more is written at once
    needs_thread = False                # True: a regular file needs a thread, too

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop, on_broken: Callable[[OSError], None],
                 on_relieved: Callback = lambda: None) -> None:
        """on_broken: called once, when a write has failed; later data is dropped.  on_relieved: called after
        each write of the thread.
        """
        self.fd = fd
        self.loop = loop
        self.on_broken = on_broken
        self.on_relieved = on_relieved
        self.terminal = os.isatty(fd)
        self.gathered = bytearray()    # not yet in the executor
        self.gather_until = -inf       # loop's time: no timer writes sooner
        self.closed = False                 # after an error: nothing is written
        self.timer: asyncio.TimerHandle | None = None  # calls flush(); None: it is not set
        self.executor = FileExecutor(self.needs_thread or not is_regular(fd), self._on_written)

    @property
    def backlog(self) -> int:
        return len(self.gathered) + self.executor.backlog

    def write(self, data: bytes) -> None:
        """Write data, with data of the next moment: waking the thread costs as much as several lines."""
        if self.closed or not data:
            return
        self.gathered += data
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self.executor.backlog:
            # _on_written() calls this again; many small writes would take more memory
            return
        if len(self.gathered) >= self.MAX_GATHERED_BYTES:
            self.flush()
        elif self.gathered and not self.timer:
            # a Terminal that has just drawn the status line gathers for longer
            self.timer = self.loop.call_at(
                max(self.loop.time() + self.GATHER_SECONDS, self.gather_until), self.flush)

    def _on_written(self) -> None:
        self._flush_soon()
        self.on_relieved()

    def flush(self) -> None:
        if self.timer:
            self.timer.cancel()
            self.timer = None
        data = bytes(self.gathered)
        self.gathered.clear()
        self.executor.post(self.write_chunks, [data], size=len(data))

    def write_chunks(self, chunks: Iterable[bytes]) -> None:
        try:
            for chunk in chunks:
                write_all(self.fd, chunk)
        except OSError as error:
            self.loop.call_soon_threadsafe(self._close, error)

    def _close(self, error: OSError) -> None:
        if not self.closed:
            self.closed = True
            self.on_broken(error)

    async def drain(self) -> None:
        """Wait until all is written, two seconds at most."""
        self.flush()
        await self.executor.flush(2.0)


class MessageLog(Writer):
    """The file of --errors as descriptor 2.  Each line begins with the local time and its offset."""
    needs_thread = True                 # each write opens the path, which can block on NFS
    path: str

    def write(self, data: bytes) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z ").encode()
        super().write(b"".join(now + line for line in data.splitlines(keepends=True)))

    def write_chunks(self, chunks: Iterable[bytes]) -> None:
        """Write chunks to the file that the path names now: logrotate renames the old one."""
        with suppress(UsageError):  # it cannot be opened: write to the old file
            fd = open_or_create_output(self.path, os.O_WRONLY | os.O_APPEND)
            os.dup2(fd, self.fd)
            os.close(fd)
        super().write_chunks(chunks)

    def _close(self, error: OSError) -> None:
        self.on_broken(error)       # `closed` would drop all later lines


class Terminal(Writer):
    """A terminal with a status line below all printed lines.

    The cursor stays at its beginning: so both parts are erased if a narrower window breaks it in two, and a
    typed `^C` overwrites it.  In the background, where the cursor is the shell's, nothing is erased or drawn.
    """
    MIN_DRAWING_PAUSE = 0.1             # seconds between drawings
    ERASE = b"\r\x1b[J"                 # from here to the end of the screen

    # of one terminal:
    status: Callable[[int], str] | None = None      # for a number of columns; None, "": no status line
    ignored = 0                         # bytes of the queue that are no backlog: ignore_backlog()
    _is_drawn = False

    @property
    def backlog(self) -> int:
        return max(super().backlog - self.ignored, 0)

    def redraw(self) -> None:
        if not (self.closed or super().backlog) and self.loop.time() >= self.gather_until:
            self.flush()

    def ignore_backlog(self) -> None:
        """Let jobs go on although the terminal accepts nothing, as after Ctrl-S.

        The data that waits now is no backlog until it is written.  What follows must be skipped.
        """
        self.flush()
        self.ignored = self.executor.backlog
        self.executor.then(self._stop_ignoring_backlog)
        self.on_relieved()

    def _stop_ignoring_backlog(self) -> None:
        self.ignored = 0

    def flush(self) -> None:
        """Erase the status line, print the gathered data, and draw the line again, in one write."""
        try:
            may_draw = os.tcgetpgrp(self.fd) == os.getpgrp()    # no shell has put us into the background
        except OSError:                     # not our controlling terminal
            may_draw = True
        is_too_early = bool(self.gathered) and self.loop.time() < self.gather_until
        status_line = b""
        if self.status and may_draw and not self.executor.backlog and not is_too_early:
            status_line = os.fsencode(self.status(columns_of(self.fd)))
        if self._is_drawn and may_draw:
            self.gathered[:0] = self.ERASE
        self._is_drawn = bool(status_line)
        if status_line:
            self.gathered += status_line + b"\r"
            self.gather_until = self.loop.time() + self.MIN_DRAWING_PAUSE
        super().flush()


# ---- how far it is -----------------------------------------------------------------------------------------


def bar(counts: Counts, width: int) -> str:
    """Return a bar of `width` characters: done =, error e, failed !, running >; for example '=====e!>> '."""
    text = ""
    jobs_so_far = 0
    for count, character in (
            (counts.done, "="), (counts.error, "e"), (counts.failed, "!"), (counts.running, ">")):
        jobs_so_far += count
        text = text.ljust(jobs_so_far * width // max(counts.all, 1), character)
    return text.ljust(width)


def columns_of(fd: int) -> int:
    """Return the width of a terminal; 80 if it reports none (ssh -tt, serial lines), or was just closed."""
    with suppress(OSError):
        return os.get_terminal_size(fd).columns or 80
    return 80


class Rate:
    """The rate at which jobs are processed: over five minutes, 20 changes or two waves, whatever is longest.

    Equal jobs that start together end together, in waves, so that the time from the first to the last end of
    a wave says nothing.  Begin with the number before the first start.
    """
    MIN_SECONDS = 300.0
    MIN_CHANGES = 20

    def __init__(self) -> None:
        # (time, number of processed jobs)
        self._changes: deque[tuple[float, int]] = deque()

    def add_count(self, timestamp: float, processed: int) -> None:
        if not self._changes or processed != self._changes[-1][1]:
            self._changes.append((timestamp, processed))

    @property
    def last_change(self) -> float | None:
        return self._changes[-1][0] if len(self._changes) > 1 else None

    def per_second(self, now: float) -> float:
        """Return the jobs processed per second, up to `now`; 0: none, or unknown: no time left is shown."""
        times = [timestamp for timestamp, _ in self._changes]
        two_waves = (2 * (after - before) for before, after in zip(times, times[1:]))
        min_seconds = max([self.MIN_SECONDS, *two_waves])
        while len(self._changes) > self.MIN_CHANGES and now - self._changes[1][0] > min_seconds:
            self._changes.popleft()
        first_time, first_processed = self._changes[0]
        last_time, last_processed = self._changes[-1]
        seconds = max(now, last_time) - first_time      # `last_time` can come from the clock of another host
        return max(last_processed - first_processed, 0) / seconds if seconds > 0 else 0.0

    def seconds_left(self, unfinished: int, now: float) -> float | None:
        """Return the time for so many more jobs; None: unknown."""
        rate = self.per_second(now)
        # at least as long as no job has ended: those that run can take longer than those before
        return max(unfinished / rate, now - self._changes[-1][0]) if rate else None


MIN_ENDED = 10                          # runs, to judge by their times
HANGING_FACTOR = 5                      # times the longest of MIN_ENDED runs or more
MIN_PERCENT_SECONDS = 10.0              # no timeout in percent is shorter


def median(run_times: Iterable[float]) -> float:
    """Return the median of times in seconds; 0.0: there are fewer than MIN_ENDED, too few to judge by."""
    in_order = sorted(run_times)
    return in_order[len(in_order) // 2] if len(in_order) >= MIN_ENDED else 0.0


def name_program(command: bytes, other: bytes = b"#") -> bytes:
    """Return the first word, with `other`, as in re.sub(), for numbers and what JSON escapes."""
    return re.sub(rb"[^a-zA-Z/_-]+", other, command.lstrip().partition(b" ")[0])


def no_median(_: bytes) -> float:
    return 0.0


def describe_if_hanging(number: int, seconds: float, ended: int, longest: float) -> str:
    """Return 'line 17 runs 8 times longer than any of the last 90' if the job of that line hangs; else ''.

    seconds: how long it runs.  ended: how many runs are known, of which the longest took `longest` seconds.
    """
    # the longest of few is exceeded more often
    is_hanging = ended >= 5 and seconds * min(ended, MIN_ENDED) > HANGING_FACTOR * MIN_ENDED * longest
    return (f"line {number} runs {seconds / max(longest, 0.01):.0f} times longer than any of the last "
            f"{ended:,}" if is_hanging else "")


class ProgressBar:
    """A status line as wide as fits: a bar, the recent rate and the time left; at the end the time taken."""
    MAX_BAR_COLUMNS = 60

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._rate = Rate()
        self._was_complete = False      # no job was new or running
        self._start = clock()

    def line(self, counts: Counts, columns: int, hanging: str = "") -> str:
        """Return the longest text that fits, and a bar.  hanging: shown, not the time left; '': no job."""
        now = self._clock()
        is_complete = counts.processed == counts.all
        if self._was_complete and not is_complete:
            self._rate = Rate()         # the time without jobs does not count
        self._was_complete = is_complete
        self._rate.add_count(now, counts.processed)
        bad_jobs = "".join(f", {text}" for text in describe_counts(failed=counts.failed, error=counts.error))
        without_rate = f"progress: {counts.processed:3} of {counts.all:3} jobs processed{bad_jobs} []"
        shortest = f"{counts.processed}/{counts.all}{bad_jobs} []"
        estimate = ""                   # the rate is unknown
        if hanging:
            estimate = f" {hanging}"
        elif is_complete and (finished_at := self._rate.last_change) is not None:
            estimate = f" took {human_time(finished_at - self._start)}"
        elif (seconds_left := self._rate.seconds_left(counts.all - counts.processed, now)) is not None:
            rate = self._rate.per_second(now)
            estimate = (f" {rate:.1f}/s" if rate >= 0.1 else f" {rate * 3600:.1f}/h" if rate * 3600 >= 0.1
                        else f" {rate * 86400:.1f}/d")
            estimate += f", {human_time(seconds_left)} left"
        # `[]` becomes the bar, of 8 columns at least
        text = next((text for text in (without_rate + estimate, shortest + estimate, without_rate)
                     if len(text) + 8 < columns), shortest)
        width = min(columns - 1 - len(text), self.MAX_BAR_COLUMNS)
        return text.replace("[]", f"[{bar(counts, width)}]" if width > 0 else "")[:max(columns - 1, 0)]


# ---- the console -------------------------------------------------------------------------------------------


class Lines:
    """Splits a stream into lines; of a line over MAX_PIECE_BYTES, each piece counts as a line."""
    MAX_PIECE_BYTES = 1 << 20

    def __init__(self) -> None:
        self.incomplete_line = bytearray()
        self.was_cut = False            # a newline was added to a part of a long line

    def feed(self, data: bytes) -> bytes:
        """Add data, and return all complete lines so far; b"": none is complete."""
        if self.was_cut and data:
            self.was_cut = False
            data = data.removeprefix(b"\n")         # this newline was added already
        if not (end_offset := data.rfind(b"\n") + 1):
            self.incomplete_line += data
            # so an endless line does not fill the memory
            self.was_cut = len(self.incomplete_line) >= self.MAX_PIECE_BYTES
            return self.take_incomplete_line() if self.was_cut else b""
        lines = bytes(self.incomplete_line) + data[:end_offset]
        self.incomplete_line[:] = data[end_offset:]
        return lines

    def take_incomplete_line(self) -> bytes:
        """Remove and return the remaining data as a line; b"": none."""
        line = bytes(self.incomplete_line) + b"\n" if self.incomplete_line else b""
        self.incomplete_line.clear()
        return line


class LinePrinter(Sink):
    """Prints job output in complete lines."""

    def __init__(self, writer: Writer, with_output: bool) -> None:
        self.writer = writer
        self._with_output = with_output  # False: only results
        self._lines: defaultdict[Stream, Lines] = defaultdict(Lines)

    def on_output(self, run: Run, stream: Stream, data: bytes) -> None:
        if self._with_output and (lines := self._lines[stream].feed(data)):
            self._print_lines(run, stream, lines)

    def on_no_result(self, run: Run) -> None:
        """Print incomplete lines; the runner reports the reason."""
        for stream in run.streams:
            if (lines := self._lines.pop(stream, None)) and (line := lines.take_incomplete_line()):
                self._print_lines(run, stream, line)

    def _print_lines(self, run: Run, stream: Stream, lines: bytes) -> None:
        raise NotImplementedError


class Console(LinePrinter):
    """Prints for programs: all events, and job output: 'stdout (alice,601): text'."""

    def _command_of(self, run: Run) -> bytes:
        return one_line(run.job.command) if self.writer.terminal else run.job.command

    def on_started(self, run: Run) -> None:
        command = self._command_of(run)
        self.writer.write(b"executing `%s'\nstatus %s: forked \"%s\"\n" % (
            command, run.host_and_pid, command))

    def on_ended(self, run: Run, run_result: RunResult) -> None:
        """Print for example 'status (alice,601): exit 0 "COMMAND"'."""
        self.on_no_result(run)
        self.writer.write(b'status %s: %s "%s"\n' % (
            run.host_and_pid, str(run_result).encode(), self._command_of(run)))

    def _print_lines(self, run: Run, stream: Stream, lines: bytes) -> None:
        prefix = b"%s %s: " % (stream.name, run.host_and_pid)
        self.writer.write(prefix + lines[:-1].replace(b"\n", b"\n" + prefix) + b"\n")


PLAIN = b"\x1b[0m"                      # ends colours
# what a terminal overwrites, up to the last carriage return; and carriage returns at the end
INVISIBLE = lazy_pattern(rb"^[^\n]*\r(?=[^\r\n])|\r+$", re.MULTILINE)
# escape sequences but colours (ECMA-48: CSI ... m), and control characters, also C1 (U+009B is CSI), for an
# 8-bit terminal as bytes (see UNPRINTABLE)
SEQUENCES = lazy_pattern(
    r"\x1b(?!\[[\d;:]*m)(?:\[[0-?]*[ -/]*[@-~]|[]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[ -/]*[0-~])?"
    r"|[\x00-\x08\x0b-\x1a\x1c-\x1f\x80-\x9f\udc80-\udc9f]", re.ASCII
)


def terminal_text(lines: bytes) -> bytes:
    """Return lines of job output without what could control a terminal, but with colours."""
    if b"\r" in lines:                      # progress bars overwrite their line
        lines = INVISIBLE.sub(b"", lines)
    return SEQUENCES.sub("", to_text(lines)).encode("utf-8", "surrogateescape")


class TerminalConsole(LinePrinter):
    """Prints for people: job output with line numbers, results, at the bottom the progress."""
    RED = b"\x1b[31m"
    MAGENTA = b"\x1b[35m"
    MAX_FULL_SECONDS = 5
    writer: Terminal

    def __init__(self, terminal: Terminal, with_output: bool, file_counter: FileCounter | None,
                 bar: ProgressBar | None, colour: bool, is_recorded: bool) -> None:
        """bar: None: no status line.  with_output: also print job output.  file_counter: None: the status
        line counts only our jobs.  is_recorded: an output directory has all job output.
        """
        super().__init__(terminal, with_output)
        self._is_recorded = is_recorded
        self._full_seconds = 0          # for how long the terminal has been too slow
        self._skipped_bytes = 0
        self._file_counter = file_counter
        self._bar = bar
        self._colour = colour
        self._running: dict[Job, float] = {}            # our jobs, and when they began (monotonic)
        self._longest = 0.0             # seconds, of our ended runs
        self._results: Counter[bytes] = Counter()       # of our jobs, by state
        if bar:
            terminal.status = self._format_status_line

    def _format_status_line(self, columns: int) -> str:
        """Return a line of at most `columns` - 1 characters, so it does not wrap; "": nothing to show."""
        if self._bar and self._file_counter and (counts := self._file_counter.counts):
            hanging = ""
            if self._running and not counts.new:
                job, began = next(iter(self._running.items()))          # the oldest
                seconds = time.monotonic() - began
                hanging = describe_if_hanging(
                    job.number, seconds, sum(self._results.values()), self._longest)
            return self._bar.line(counts, columns, hanging)
        count_texts = describe_counts(
            done=self._results[DONE],
            failed=self._results[FAILED],
            error=self._results[ERROR],
            running=len(self._running),
        )
        if not count_texts:
            return ""
        return f"progress: {', '.join(count_texts)}"[:columns - 1]

    def on_started(self, run: Run) -> None:
        self._running.pop(run.job, None)        # of an earlier try: the oldest start is first
        self._running[run.job] = run.started
        self._request_count()

    def _request_count(self) -> None:
        if self._file_counter:
            self._file_counter.request_count_if_due()

    def on_ended(self, run: Run, run_result: RunResult) -> None:
        """Print for example '[3] exit 2 in 0.4s: COMMAND'."""
        self.on_no_result(run)
        self._longest = max(self._longest, run.duration)
        is_done = run_result.state == DONE
        result_text = "done" if is_done else str(run_result)
        if run_result.cause != "timeout":       # otherwise the text has the time
            result_text += f" in {human_time(run.duration)}"
        line = b"[%d] %s: %s\n" % (run.job.first_number, result_text.encode(), one_line(run.job.command))
        self._print(self.RED + line[:-1] + PLAIN + b"\n" if self._colour and not is_done else line)

    def on_job_over(self, job: Job, state: bytes) -> None:
        self._running.pop(job, None)
        self._results[state] += 1
        if self._file_counter:
            self._file_counter.add_result(state)

    def on_tick(self) -> None:
        self._request_count()
        # A terminal that accepts nothing (Ctrl-S, a frozen ssh) must not hold up all jobs for good.  Only
        # what is also recorded may be skipped
        is_full = self._is_recorded and self.writer.backlog > Writer.HIGH_BACKLOG
        self._full_seconds = self._full_seconds + 1 if is_full else 0  # a tick is a second
        if self._full_seconds > self.MAX_FULL_SECONDS:
            self.writer.ignore_backlog()
        if not self.writer.ignored:
            self._report_skipped()
        if self._bar:
            self.writer.redraw()            # after a new window size, or Ctrl-Z

    def on_exit(self) -> None:
        self._report_skipped()
        self.writer.status = None
        self.writer.flush()

    def _print(self, data: bytes) -> None:
        if self.writer.ignored:
            self._skipped_bytes += len(data)
        else:
            self.writer.write(data)

    def _report_skipped(self) -> None:
        if self._skipped_bytes:
            self.writer.write(b"(%d bytes not shown: the terminal was stopped; the output directory has them)"
                              b"\n" % self._skipped_bytes)
            self._skipped_bytes = 0

    def _print_lines(self, run: Run, stream: Stream, lines: bytes) -> None:
        """Print output lines with the prefix '[LINE NUMBER] ', magenta for stderr."""
        lines = terminal_text(lines)
        prefix = b"[%d] " % run.job.first_number
        if self._colour and stream.name == b"stderr":
            prefix = self.MAGENTA + prefix
        line_end = b"\n"
        if b"\x1b" in prefix or b"\x1b" in lines:
            line_end = PLAIN + b"\n"                # the next line can be of another job
        self._print(prefix + lines[:-1].replace(b"\n", line_end + prefix) + line_end)


class PendingOutput:
    """What a run has printed so far: in memory, or, if longer than MAX_BYTES, in a temporary file.

    A full disk would leave a tempfile.SpooledTemporaryFile unusable
    (findings/python-spooled-file-breaks-on-a-full-disk.sh).
    """
    MAX_BYTES = 1 << 20
    size = 0

    def __init__(self) -> None:
        self._text = bytearray()        # that is not in the file
        self._file: io.FileIO | None = None

    def write(self, data: bytes) -> None:
        """Raises OSError: some is lost."""
        self._text += data
        self.size += len(data)
        if not self._file:
            if len(self._text) <= self.MAX_BYTES:
                return
            import tempfile
            try:
                self._file = tempfile.TemporaryFile(buffering=0)    # noqa: SIM115
            except OSError:             # all stays in memory, until a later call can make it
                return
        text, self._text = self._text, bytearray()
        write_all(self._file.fileno(), text)

    def pieces(self) -> Iterator[bytes | bytearray]:
        """Raises OSError."""
        if self._file:
            self._file.seek(0)
            while piece := self._file.read(1 << 16):
                yield piece
        yield self._text

    def close(self) -> None:
        if self._file:
            self._file.close()


class Plain(Sink):
    """Prints job output only, and of a job only the last run, once the job is over."""

    def __init__(self, writers: Mapping[bytes, Writer], in_order: bool, on_error: Say) -> None:
        """writers: by stream name.  in_order: in the order of the starts.  on_error: told of lost output."""
        self.writers = writers
        self.in_order = in_order
        self.on_error = on_error
        # by the name of the stream, of the jobs in the order of their starts
        self.pending: dict[Job, dict[bytes, PendingOutput]] = {}
        self.finished: set[Job] = set()                 # that wait for earlier ones

    def on_started(self, run: Run) -> None:
        for output in self.pending.get(run.job, {}).values():       # of an earlier try; records have it
            output.close()
        self.pending[run.job] = defaultdict(PendingOutput)      # in the place of the first start

    def on_output(self, run: Run, stream: Stream, data: bytes) -> None:
        outputs = self.pending[run.job]
        try:
            outputs[stream.name].write(data)
        except OSError as error:
            self._report_lost_output(run.job, error)

    def on_job_over(self, job: Job, state: bytes) -> None:
        """Print a job's output; with in_order, of all finished jobs before the first unfinished one."""
        if job in self.pending:             # False: it was never started
            self.finished.add(job)
        printable = [job]
        if self.in_order:
            # a list: _print_job() changes `pending`
            printable = list(itertools.takewhile(self.finished.__contains__, self.pending))
        for next_job in printable:
            self._print_job(next_job)

    def on_exit(self) -> None:
        for job in list(self.pending):
            self._print_job(job)

    def _print_job(self, job: Job) -> None:
        self.finished.discard(job)
        for name, output in self.pending.pop(job, {}).items():
            writer = self.writers[name]
            writer.flush()              # what was written before comes first
            writer.executor.post(writer.write_chunks, self._read_pieces(job, output, writer.loop),
                                 size=output.size)

    def _read_pieces(self, job: Job, output: PendingOutput,
                     loop: asyncio.AbstractEventLoop) -> Iterator[bytes | bytearray]:
        """Yield output from the start, in the writer's thread, and close it."""
        try:
            yield from output.pieces()
        except OSError as error:
            loop.call_soon_threadsafe(self._report_lost_output, job, error)
        output.close()

    def _report_lost_output(self, job: Job, error: OSError) -> None:
        self.on_error(f"line {job.number}: {error_text(error)} in a temporary file "
                      "(the output is incomplete; the jobs go on)")


class Record:
    """A record in the log file: the last lines of a run."""
    changed = True                      # since the last write

    def __init__(self, run: Run, max_lines: int) -> None:
        self.run = run
        self.lines: deque[bytes] = deque(maxlen=max_lines)
        self.incomplete_lines: defaultdict[Stream, bytes] = defaultdict(bytes)


BLANK_LINE = b" " * 160 + b"\n"


class LogFile(Sink):
    """The log file: for each line a record of fixed size with a heading and the last lines, 160 bytes each.

    The k-th record is that of the job whose line was number k when claimed, or blank lines:

        .-> simulate --seed 7 (in /home/me)
        : stdout (alice,601): step 341
        ! stderr (alice,601): no convergence
        + status (alice,601): exit 3 "simulate --seed 7"
    """
    WIDTH = 160
    # up to WIDTH bytes of a line, which end where a character ends; unless the line is not UTF-8
    CUT = lazy_pattern(rb"(?s).{156,160}(?![\x80-\xbf])|.{0,160}")
    HEADS = b".->", BLANK_LINE, b"\0\0\0"  # of a record, and of blank lines; NUL: an earlier version's
    PREFIX = {b"stdout": b": ", b"stderr": b"! ", b"status": b"+ "}

    def __init__(self, path: str, max_lines: int, directory: bytes, executor: FileExecutor,
                 on_error: Say) -> None:
        """max_lines: of output and status, per record.  on_error: gets a message for each record that is
        given up.  directory: where jobs run.  Raises UsageError.
        """
        self.max_lines = max_lines
        self._shown_directory = one_line(directory)
        self.executor = executor
        self.record_bytes = (1 + max_lines) * (self.WIDTH + 1)      # with the heading and newlines
        self.records: dict[Run, Record] = {}
        self.file = RecordFile(path, "log file", 0, self.HEADS, executor.say, on_error)

    def on_started(self, run: Run) -> None:
        record = self.records[run] = Record(run, self.max_lines)
        self._add_line(record, b"status", b'forked "%s"' % run.job.command)

    def on_no_result(self, run: Run) -> None:
        if record := self.records.pop(run, None):
            self._write_record(record)

    def on_output(self, run: Run, stream: Stream, data: bytes) -> None:
        record = self.records[run]
        record.changed = True
        # split off only as many lines from the end as the record has room for
        *lines, last_part = (record.incomplete_lines[stream] + data).rsplit(b"\n", self.max_lines + 1)
        for line in lines[-self.max_lines:]:
            self._add_line(record, stream.name, line)
        # a record shows WIDTH bytes of a line at most, and CUT looks at the byte after them
        record.incomplete_lines[stream] = last_part[:self.WIDTH + 4]

    def on_ended(self, run: Run, run_result: RunResult) -> None:
        record = self.records.pop(run)
        for stream, incomplete_line in record.incomplete_lines.items():
            if incomplete_line:
                self._add_line(record, stream.name, incomplete_line)
        self._add_line(record, b"status", b'%s "%s"' % (str(run_result).encode(), run.job.command))
        self._write_record(record)

    def on_tick(self) -> None:
        for record in self.records.values():
            if record.changed and self.executor.backlog < Writer.HIGH_BACKLOG:
                self._write_record(record)

    def _add_line(self, record: Record, name: bytes, text: bytes) -> None:
        """Add a line such as b': stdout (alice,601): text'."""
        record.lines.append(b"%s%s %s: %s" % (
            self.PREFIX[name], name, record.run.host_and_pid, text[:self.WIDTH + 4]))

    def _write_record(self, record: Record) -> None:
        """Write a record over its last version, padded to the fixed size."""
        run = record.run
        record.changed = False
        directory = one_line(run.directory) if run.directory else self._shown_directory
        lines = [b".-> %s (in %s)" % (run.job.command, directory), *record.lines]
        data = b"".join([self.CUT.findall(line)[0].ljust(self.WIDTH) + b"\n" for line in lines])
        data += BLANK_LINE * (1 + self.max_lines - len(lines))
        self.executor.post(self.file.write, (run.job.first_number - 1) * self.record_bytes, lambda: data,
                           size=self.record_bytes)


def open_or_create_output(path: str, flags: int) -> int:
    """Open or create a file, which must be a regular one.  Raises UsageError.

    flags: O_NOFOLLOW refuses a symbolic link.  A dangling one is always refused: with it, another user could
    choose where we create a file.
    """
    flags |= os.O_NONBLOCK      # otherwise open(2) of a FIFO can block
    try:
        try:
            fd = os.open(path, flags)
        except FileNotFoundError:
            flags |= os.O_NOFOLLOW          # the path can also be a dangling link
            fd = open_or_create(path, flags, 0o666)
        if not is_regular(fd):
            os.close(fd)
            raise UsageError(f"{path}: not a regular file (give another name)")
        return fd
    except OSError as error:
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise UsageError(f"{path}: is a symbolic link (remove it, or give another name)") from None
        raise UsageError(f"{path}: {error_text(error)} (it must be a file that can be written)") from None


def read_head(fd: int, path: str, size: int, network: bool = False) -> bytes:
    with refused_as(path), Reader.with_own_fd(fd, network) as file:
        return file.pread(size, 0)


@dataclass
class RecordWait:
    """Decides when a record is given up that cannot be written.

    A look at the size of the file shows if others can write.  There is one at the first error of a record,
    and one whenever it has failed for as long as its error allows (RecordFile._prepare_retry()).

        a look comes                                            the record
        after an error that no wait can end                     is given up
        to the size of the last look, even if that was at       is given up: so while a lock is kept, the
          the record before, and that was given up              next records are tried once
        MAX_SECONDS after the first try                         is given up
        otherwise: at a first error, or the file has grown      waits until the next look
    """
    MAX_SECONDS = 120.0

    # of the file at the last look; -1: it was away; None: there was none, and the record before was written
    size: int | None
    began: float                        # (time.monotonic())
    looked_at: float = -inf             # the same; -inf: no error yet

    def gives_up(self, max_seconds: float, fd: int) -> bool:
        """Return True if the record is given up after an error; otherwise it is to be tried again.

        max_seconds: from one look to the next; 0: no wait can end this error.  fd: of the file.  With
        O_DIRECT an NFS client asks the server for the size (fs/nfs/file.c, nfs_revalidate_file_size()).
        """
        now = time.monotonic()
        if now - self.looked_at < max_seconds:
            return False
        self.looked_at = now
        last_size, self.size = self.size, -1
        with suppress(OSError):
            self.size = os.lseek(fd, 0, os.SEEK_END)
        return not max_seconds or self.size == last_size or now - self.began >= self.MAX_SECONDS


class RecordFile:
    """A file for records of all runners and hosts that use it.  The file executor calls all methods.

    On a file system of one host no lock is needed: write(2) with O_APPEND finds the end and writes there in
    one step (open(2)).  After an error nothing is truncated, because another runner can have written those
    bytes; the next record starts with a newline.

    On a network file system each record needs a lock on this file, which on NFS makes its size current in
    this host's cache.  Otherwise two hosts append at the same offset, and NFS writes back old data around the
    record.  While the lock is refused, or the file system is away, the thread waits, and all later calls with
    it.  But any user who can read the file can hold a shared lock for any time: so a RecordWait can give up.
    After a failed append a line can be in the file twice: readers ignore the second.
    """
    # less than Runner.MAX_RESULT_SECONDS: states follow after a signal
    MAX_LOCKED_SECONDS = 8.0
    MAX_AWAY_SECONDS = JobQueue.MAX_CUT_OFF_SECONDS

    def __init__(
        self,
        path: str,
        kind: str,
        flags: int,
        heads: tuple[bytes, ...],
        say: Say,
        on_error: Say,
        on_lost: Callable[[bytes], None] = lambda lines: None,
        header: bytes = b"",
    ) -> None:
        """Open or create the file.  Raises UsageError.

        kind: for messages, such as 'journal'.  heads: any other file that is not empty is refused.  header:
        for an empty file.  flags: of open(2), without the access mode.  on_lost: gets the lines of a record
        that is given up, on_error a message about it; say: all other messages.
        """
        self.path = path
        # a symbolic link to the directory can change
        folder, name = os.path.split(path)
        self._real_path = os.path.join(os.path.realpath(folder), name)
        self.kind = kind
        self._mount = find_mount(path)
        # through a descriptor that can read, NFS reads a page before it writes a part of it
        # (fs/nfs/file.c, nfs_want_read_modify_write())
        self._flags = flags | (os.O_WRONLY if self._mount.network else os.O_RDWR)
        self._heads = heads
        self._say = say
        self._on_error = on_error
        self._on_lost = on_lost
        self._header = header
        self.fd = self._open(path)
        self._identity = identity_of(self.fd)
        self._reader = Reader.with_own_fd(self.fd, self._mount.network)
        self._end = -1                  # of the file after our last append; -1: unknown
        # of the file when the last record was given up; None: that was written
        self._size_when_stuck: int | None = None
        # seconds for the last record, with all waits; it falls by half at most: one append can be quick
        self.took = 0.0

    def _open(self, path: str) -> int:
        fd = open_or_create_output(path, self._flags)
        head = read_head(fd, self.path, len(BLANK_LINE), self._mount.network)
        if head and not head.startswith(self._heads):
            os.close(fd)
            raise UsageError(f"{self.path}: is not a {self.kind} (give another name)")
        return fd

    def write(self, offset: int, make_record: Callable[[], bytes]) -> None:
        """Write a record at an offset, or wait and try again; report a record that is given up.

        offset: APPEND_BYTE: append it.  make_record: called for each try.
        """
        write = self._write_locked if self._mount.network else self._write
        began = time.monotonic()
        wait: RecordWait | None = None      # no error yet
        while True:
            # _write() removes what it has appended
            unwritten = bytearray(make_record())
            try:
                if offset != APPEND_BYTE:
                    self._extend(write, offset + len(unwritten))
                write(offset, unwritten)
                self._end = os.lseek(self.fd, 0, os.SEEK_CUR)
                self._size_when_stuck = None
                self.took = max(time.monotonic() - began, self.took / 2)
                return
            except (OSError, UsageError) as error:
                wait = wait or RecordWait(self._size_when_stuck, began)
                if wait.gives_up(self._prepare_retry(error), self._reader.fd):
                    self._size_when_stuck = wait.size
                    reason = f"{self.path}: {error_text(error)}" if isinstance(error, OSError) else error
                    self._on_error(f"{reason} (the {self.kind} is incomplete; the jobs go on)")
                    self._on_lost(bytes(unwritten))
                    return
            # growing pauses would favour newcomers over those that have waited long
            time.sleep(0.02 + 0.06 * os.urandom(1)[0] / 256)

    def sync(self) -> None:
        try:
            os.fsync(self.fd)
        except OSError as error:
            self._on_error(f"{self.path}: {error_text(error)} (the {self.kind} can be incomplete)")

    def _prepare_retry(self, error: OSError | UsageError) -> float:
        """Open the file again if its locks are lost; return for how many seconds to retry, 0.0: not at all.

        The wait begins with the first error, which GlusterFS reports only after 42 s.
        """
        if not self._mount.network or isinstance(error, UsageError):
            return 0.0
        if error.errno in LOCKS_LOST:
            # still away, or another file has its name: the next attempt fails, too
            with suppress(OSError, UsageError):
                if os.path.lexists(self._real_path):
                    self._replace_fd(self._open(self._real_path))
            return self.MAX_AWAY_SECONDS
        return self.MAX_LOCKED_SECONDS if error.errno in (errno.EAGAIN, errno.ENOLCK) else 0.0

    def _extend(self, append: Callable[[int, bytearray], None], end: int) -> None:
        """Append blank lines until the file has at least `end` bytes: a hole would read as NUL bytes.

        No record begins beyond the end, so they overwrite none.  If others append, too, some are left over.
        """
        while (missing := end - os.fstat(self.fd).st_size) > 0:
            fcntl.fcntl(self.fd, fcntl.F_SETFL, os.O_APPEND)
            lines = min(missing // len(BLANK_LINE) + 1, 1024)
            append(APPEND_BYTE, bytearray(BLANK_LINE * lines)[:missing])
        fcntl.fcntl(self.fd, fcntl.F_SETFL, 0)      # with O_APPEND, pwrite(2) appends

    def _write(self, offset: int, record: bytearray) -> None:
        """Write a record without a lock.  offset: APPEND_BYTE: append it, and remove it from `record`.

        After an error only the lines that remain there are lost.
        """
        if offset != APPEND_BYTE:
            return pwrite_all(self.fd, record, offset)
        _, header_or_newline = self._find_position()
        data = header_or_newline + record
        written = 0
        try:
            while written < len(data):
                written += os.write(self.fd, data[written:])
        finally:
            del record[:record.rfind(b"\n", 0, max(written - len(header_or_newline), 0)) + 1]

    def _write_locked(self, offset: int, record: bytearray) -> None:
        """Lock bytes at an offset, write a record there (APPEND_BYTE: append it), and sync it."""
        locked_bytes = 1 if offset == APPEND_BYTE else len(record)
        self._lock(offset, locked_bytes)
        try:
            if offset != APPEND_BYTE:
                pwrite_all(self.fd, record, offset)
                os.fsync(self.fd)
            else:
                append_at(self.fd, record, *self._find_position())
        finally:
            unlock(self.fd, offset, locked_bytes)

    def _lock(self, offset: int, length: int) -> None:
        if not lock(self.fd, offset, length):
            raise OSError(errno.EAGAIN, "locked by another process, see lslocks")

    def _find_position(self) -> tuple[int, bytes]:
        """Return the size of the file, and the bytes to write before the next line.

        If the file was renamed or removed, as by logrotate, create a new one first.  On a network file system
        the caller must hold the append lock, or NFS answers with an old size.  Raises OSError, UsageError.
        """
        # setting the times makes a daemon answer with the size, also on JuiceFS; it can be refused
        if self._mount.is_fuse:
            with suppress(OSError):
                os.utime(self.fd)
        info = stat_or_none(self._real_path)
        if not info or not info.st_nlink or (info.st_dev, info.st_ino) != self._identity:
            os.makedirs(os.path.dirname(self._real_path), exist_ok=True)
            self._replace_fd(self._open(self._real_path))
            self._say(f"{self.path}: was renamed or removed; the {self.kind} goes on in a new file")
            if self._mount.network:
                self._lock(APPEND_BYTE, 1)      # the old lock has gone with the old file
        # the last byte is our newline: others make the file longer, or cut off what they have added
        elif info.st_size == self._end:
            return self._end, b""
        if not self._reader.is_open:
            self._reader = Reader.with_own_fd(self.fd, self._mount.network)
        self._reader.refresh(self._mount)
        return find_append_position(self._reader, self._real_path, self._mount, self._header)

    def _replace_fd(self, fd: int) -> None:
        """Make `self.fd`, which keeps its number, refer to the open file of `fd`, and close `fd`."""
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)         # it can be needed; _extend() clears it
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        self._identity = identity_of(self.fd)
        self._reader.close()            # _find_position() makes another
        self._end = -1                  # unknown: the last byte must be read


class JobLog(Sink):
    """The job log: one line per run, in GNU parallel's format (parallel(1), --joblog).

        3       alice   1795183239.120       1.502      0       17      0       0       simulate --seed 3
    """
    HEADER = b"Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"

    def __init__(self, path: str, executor: FileExecutor, on_error: Say) -> None:
        # on_error: gets a message for each line that is lost
        self.executor = executor
        self.file = RecordFile(
            path,
            "job log",
            os.O_APPEND,
            (self.HEADER,),
            executor.say,
            on_error,
            header=self.HEADER,
        )

    def on_ended(self, run: Run, run_result: RunResult) -> None:
        # as in GNU parallel 20240222; 20221122 wrote 0 (findings/parallel-joblog-of-a-killed-job.sh)
        code = 128 + run_result.signal if run_result.signal else run_result.code
        line = b"%d\t%s\t%.3f\t%10.3f\t0\t%d\t%d\t%d\t%s\n" % (
            run.job.first_number,
            run.host,
            run.started_at,
            run.duration,
            run.streams[0].received,  # of stdout
            -1 if run_result.cause == "timeout" else code,
            run_result.signal,
            run.job.command.replace(b"\t", b" "),
        )
        self.executor.post(self.file.write, APPEND_BYTE, lambda: line, size=len(line))


class OutputFile:
    """Output of a run on one stream: in memory while it is short, otherwise in a file.

    The file is DIR/12.out for line 12, or the next free numbered name, such as DIR/12.out.~2~.
    """

    def __init__(self, path: str, network: bool, on_error: Say) -> None:
        # on_error: gets a message if output is lost
        self.text = bytearray()         # that is not in the file
        self.has_failed = False
        self._path = path
        self._network = network
        self._on_error = on_error
        self._fd: int | None = None     # None: no file yet

    @property
    def name(self) -> str:
        return "" if self._fd is None else os.path.basename(self._path)

    def write_text(self) -> None:
        """Append `text` to the file, created if need be, and empty it.  An error is only reported."""
        try:
            if self.text and not self.has_failed:
                if self._fd is None:
                    self._fd, self._path = create_with_free_name(self._path)
                write_all(self._fd, self.text)
        except OSError as error:            # later data would leave a hole: the file ends here
            self._give_up(error)
        self.text.clear()

    def close(self) -> None:
        """Close the file; an error is that of a failed write."""
        if self._fd is None:
            return
        try:
            try:
                if self._network:           # GlusterFS reports a full disk only here
                    os.fsync(self._fd)
            finally:
                os.close(self._fd)
        except OSError as error:            # NFS also reports errors on close
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.has_failed = True
        self._on_error(f"{self._path}: {error_text(error)} (this output is incomplete; the jobs go on)")


def create_with_free_name(path: str) -> tuple[int, str]:
    """Create an empty file with this path, or the first free one of 'path.~1~', 'path.~2~', ...

    Return descriptor and path.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL        # no run gets the file of another, on any host
    number = 0
    while True:
        unused_path = f"{path}.~{number}~" if number else path
        with suppress(FileExistsError):
            fd = os.open(unused_path, flags, 0o666)
            # not if the directory is like /tmp
            share_with_writers(fd, os.stat(os.path.dirname(path)))
            return fd, unused_path
        number += 1


# ---- the journal -------------------------------------------------------------------------------------------
#
# FILE.out/journal has a JSON object per line (here broken).  A job prints 100 kB, and runs for two seconds:
#
#     {"time": 1795801113.84, "event": "start", "run": "alice-4026531836-601-1795801113835-3", "line": 3,
#      "command": "simulate 3", "host": "alice", "slot": "1", "pid": 612, "runner": 1783855833,
#      "directory": "/home/me", "files": ["3.out"]}
#     {"time": 1795801115.861, "event": "end", "run": "alice-4026531836-601-1795801113835-3", "line": 3,
#      "command": "simulate 3", "host": "alice", "slot": "1", "pid": 612, "runner": 1783855833,
#      "directory": "/home/me", "files": ["3.out"], "state": "d", "exit": 0, "signal": 0, "cause": "",
#      "seconds": 2.021, "cpu": 1.9, "memory": 48234496, "memory_below": null, "bytes": 100000}
#
# A short job has one line, and its output there:
#
#     {..., "seconds": 0.003, ..., "bytes": 6, "stdout": "short\n"}


def is_text(value: Any) -> bool:
    """Return True for a text; one with half a surrogate pair makes to_bytes() raise WireError."""
    return type(value) is str and (value.isascii() or to_bytes(value) != b"")


def is_count(value: Any) -> bool:
    # a bool is an int for isinstance()
    return type(value) is int and 0 <= value < 1 << 59


def is_time(value: Any) -> bool:
    """Return True for seconds, also since 1970."""
    return type(value) in (int, float) and 0 <= value <= 10 ** 10


State = str                     # of the line after the run
Pid = int
Code = int                      # exit status, or number of a signal
# what JSON must have in a field of this type; null only where that is the default
IS_VALID: dict[str, Callable[[Any], bool]] = {
    "str": is_text,
    "bytes": is_text,           # see to_text()
    "int": is_count,
    "int | None": is_count,
    "float": is_time,
    "float | None": is_time,
    "bool": lambda value: type(value) is bool,
    "Sequence[str]": lambda value: type(value) in (list, tuple) and all(map(is_text, value)),
    "State": lambda value: is_text(value) and value in {*"d!e.cx"},
    "Pid": lambda value: is_count(value) and value < 1 << 31,       # pid_t is an int
    "Code": lambda value: type(value) is int and -1 <= value < 256,
}
Field = tuple[str, Callable[[Any], bool], Any]        # name, check, default


class BeginFields:
    """What the host of a run tells when it starts, in a client's `begin` message."""
    time: float                 # seconds since 1970 by the clock of `host`; of the end in an `end` event
    run: str                    # unique forever: the job tag, without a shell host and time
    slot: str
    pid: Pid                    # 0: the job could not be started
    promised: int | None = None         # bytes of requested memory; None: not requested


class StartFields(BeginFields):
    """What the program that writes the journal adds."""
    line: int                   # number of the job's line when the record was written
    command: bytes
    host: str
    # presence lock of the runner that started the run, or the server that assigned it; None: unknown
    runner: int | None = None
    directory: str = ""         # where the job ran; "": unknown
    files: Sequence[str] = ()   # names of output files in DIR


class RunFields(StartFields):
    """The schema of a run: the fields, their types and defaults; without one a field is required.

    An `end` event must also have `state` and `seconds`.
    """
    # what the host of a run tells when it ends, in a client's `end` message
    state: State = ""           # d ! e; x, c: cancelled; .: a stopped job, put back; without an end: r e ?
    exit: Code = -1             # -1: none
    signal: Code = 0
    # "", "timeout", "memory", "oom", "files", "cancelled", "stopped", "lost"; without an end also "ending",
    # "unknown"
    cause: str = ""
    seconds: float | None = None
    cpu: float | None = None    # seconds; None: unknown
    memory: int | None = None   # bytes at the peak; None: unknown
    memory_below: int | None = None     # an upper bound of the peak, if it could not be measured
    bytes: int = 0              # of output
    travelled: int = 0          # bytes of files of send= and fetch=
    why: str = ""               # why the job could not be started, or killed; "": neither
    stdout: str = ""            # output in no file
    stderr: str = ""
    incomplete: bool = False    # output was lost
    gathered: float = 0.0       # seconds from the end until it was written here

    def __init__(self, values: Mapping[str, Any], fields: Iterable[Field]) -> None:
        """Take `fields`, such as START, from a JSON object; all others keep the defaults.

        Raises WireError if a value is not of its type, or a required field is missing.
        """
        for name, is_valid, default in fields:
            value = values.get(name, default)
            if not (value is default is None or is_valid(value)):
                raise WireError(f"{name}: invalid")
            setattr(self, name, value)


def fields_of(schema: type) -> list[Field]:
    return [(name, IS_VALID[kind], getattr(schema, name, ...))         # ...: required
            for name, kind in schema.__annotations__.items()]


BEGIN, END = fields_of(BeginFields), fields_of(RunFields)
START = BEGIN + fields_of(StartFields)


MAX_NAME_CHARS = 255            # of a host or slot, in records and messages: _POSIX_HOST_NAME_MAX
# of names that many runs have
name_text = functools.lru_cache(1000)(to_text)
slot_text = functools.lru_cache(1000)(lambda slot: printable(slot)[:MAX_NAME_CHARS])


def begin_fields(run: Run) -> Fields:
    """Return what the host of a run tells at the start: the fields BEGIN."""
    # a job that could not be started has no job tag
    fields = {"time": to_milliseconds(run.started_at),
              "run": to_text(run.shell.job_tag if run.shell else b"%s-%d" % (run.host, time.time_ns())),
              "slot": slot_text(run.slots[0]), "pid": run.pid}
    if run.requested_memory:
        fields["promised"] = run.requested_memory
    return fields


def end_fields(run: Run, run_result: RunResult) -> Fields:
    """Return what the host of a run tells at the end, without output.

    The order of the fields is that of GOOD_END, and of PLAIN_END in runwait4.py.
    """
    shell = run.shell or Shell(0, b"")
    fields = {
        "time": to_milliseconds(run.started_at + run.duration),
        "state": name_text(run_result.state),
        "exit": run_result.code,
        "signal": run_result.signal,
        "cause": run.cause,
        "seconds": to_milliseconds(run.duration),
        "cpu": shell.cpu,
        "memory": shell.memory,
        "memory_below": shell.memory_below,
        "bytes": sum([stream.received for stream in run.streams]),
    }
    if run.job.travelled:
        fields["travelled"] = run.job.travelled
    if run.why:
        fields["why"] = run.why
    return fields


class Journal:
    """DIR/journal: the events of all runs, one JSON object per line, appended by all hosts.

    The file executor calls all methods.  An `end` event is written at once, with the gathered events, or, if
    the last write was just before, a moment later (OutDir).  So it can come later than the state of its line,
    and readers wait for it (Watcher in runwait4.py).  A `start` waits for the next write, and is left out if
    the `end`, which repeats its fields, comes first.
    """
    GATHER_SECONDS = 1.0                # for which events are gathered
    END_GATHER_SECONDS = 0.05           # the same for an `end` event on a file system of one host
    MAX_GATHER_SECONDS = 8.0            # if appends take long: less than readers wait for an `end` (Watcher)
    # %b: name_program() with OTHER
    GOOD_END = (rb'"command": " *%b[ "][^\n]*?"state": "d", "exit": 0, "signal": 0, "cause": "", '
                rb'"seconds": ([0-9]+\.?[0-9]*),')         # the comma: a torn line can end in a number
    OTHER = rb"(?:[^ a-zA-Z/_-]|\\\\u....)+"
    DIRECTORY = lazy_pattern(rb'"directory": ("(?:[^"\\]|\\.)+")')
    MEDIAN_BYTES = 1 << 18              # more if too few of these runs ended well
    # of a line; not the end that a server writes for a client that does not come back
    LOSS_OR_END = lazy_pattern(
        rb'"time": ([0-9.]+), "event": "(?:loss|end)", "run": "[^"]*", "line": ([0-9]+), "command": '
        rb'("(?:[^"\\]|\\.)*"), (?:"losses": ([0-9]+))?(?!.*"cause": "lost")')
    LOSS_BYTES = 1 << 20                # at the end, in which losses are counted
    START_WITH_FILES = lazy_pattern(rb'\{"time": [0-9.]+, "event": "start", .*, "files": \[.*\]\}')
    MAX_LOSS_SECONDS = 3600.0           # between two losses in a row: long jobs can be preempted for ever

    def __init__(self, folder: str, executor: FileExecutor, on_error: Say,
                 on_incomplete: Callable[[int], None], may_be_shared: bool) -> None:
        """Open or create the journal.  Raises UsageError.

        on_incomplete: gets the line number of each run whose output is lost with the `end`.
        may_be_shared: another user's, to which all may write, is not refused.
        """
        self._on_incomplete = on_incomplete
        flags = os.O_APPEND | os.O_NOFOLLOW
        path = os.path.join(folder, "journal")
        self._file = RecordFile(path, "journal", flags, (b"{",), executor.say, on_error,
                                self._report_lost_lines)
        share_with_writers(self._file.fd, os.stat(folder))
        info = os.fstat(self._file.fd)
        if info.st_uid not in (os.geteuid(), 0) and info.st_mode & S_IWOTH and not may_be_shared:
            raise UsageError(
                f"{path}: belongs to {user_name(info.st_uid)}, and all may write to it "
                "(give another --outdir)"
            )
        self.network = bool(executor.pool)
        self._starts: dict[Run, Callable[[], Fields]] = {}      # of runs that have not ended
        self._ends: list[tuple[Fields, float]] = []     # and when they ended (monotonic)
        self._flushed_at = -inf        # (monotonic)

    def add_start(self, run: Run, make_event: Callable[[], Fields]) -> None:
        """Add the `start` event of a run, which is made when it is written; a second one replaces it."""
        self._starts[run] = make_event
        self.flush_after(self.GATHER_SECONDS)

    def add_end(self, run: Run, event: Fields, ended: float) -> None:
        """Add an `end` event.  ended: when (monotonic)."""
        self._starts.pop(run, None)
        self._ends.append((event, ended))
        self.flush_after(self.GATHER_SECONDS if self.network else self.END_GATHER_SECONDS)

    def flush_after(self, seconds: float) -> None:
        """Append the gathered events, unless the last append was less than `seconds` ago."""
        # Over a network one runner appends at a time, in some five round trips; all claims and results wait
        if self.network:
            seconds = max(seconds, min(20 * self._file.took, self.MAX_GATHER_SECONDS))
        if time.monotonic() - self._flushed_at > seconds:
            self.flush()

    def flush(self) -> None:
        """Append the gathered events, made again for each try; those that cannot be written are lost."""
        starts, ends = self._starts, self._ends
        self._starts, self._ends = {}, []

        def make_lines() -> bytes:
            import json  # takes 3 ms to load: not before there is a record
            now = time.monotonic()      # after other runners' appends
            for event, ended in ends:
                event["gathered"] = to_milliseconds(max(now - ended, 0.0))      # never -0.0
            # a run begins after the last one of its line has ended: see add_if_later() of runwait4.py
            events = [event for event, _ in ends] + [make() for make in starts.values()]
            # one call for all: each makes an encoder.  No text contains what is replaced: a quote within is
            # `\"`, and behind the last one is no letter
            lines = json.JSONEncoder(check_circular=False).encode(events)[1:-1]
            return lines.replace('}, {"time": ', '}\n{"time": ').encode() + b"\n"

        if starts or ends:
            self._file.write(APPEND_BYTE, make_lines)
            self._flushed_at = time.monotonic()

    def median(self, command: bytes) -> float:
        """Return the median of the program's last good runs; 0.0: below MIN_ENDED, or unreadable now."""
        program = name_program(command, self.OTHER)
        for factor in 1, 4, 16, 64, 256:
            seconds = re.findall(self.GOOD_END % program, self._read_last(factor * self.MEDIAN_BYTES))
            if len(seconds) >= MIN_ENDED:
                break
        return median(map(float, seconds))

    def _read_last(self, size: int) -> bytes:
        """Return the last bytes, as many as there are; b'' also: unreadable now."""
        with suppress(OSError), Reader.with_own_fd(self._file.fd, self.network) as file:
            return file.pread(size, max(os.fstat(file.fd).st_size - size, 0))
        return b""

    @functools.cached_property
    def files_in_journal(self) -> defaultdict[str, set[str]]:
        """The names of the files of each run, as far as they were in the journal when first asked for."""
        import json
        files: defaultdict[str, set[str]] = defaultdict(set)
        with suppress(OSError), Reader.with_own_fd(self._file.fd, self.network) as file:
            for lines in whole_lines(file, 0):
                for line in self.START_WITH_FILES.findall(lines):
                    with suppress(ValueError):          # torn
                        event = json.loads(line)
                        files[event["run"]].update(event["files"])
        return files

    def read_losses(self) -> dict[tuple[int, bytes], int]:
        """Return how often lines were lost in a row, by number and command; some 0 times."""
        import json
        data = self._read_last(self.LOSS_BYTES)
        oldest = time.time() - self.MAX_LOSS_SECONDS
        if b'"loss"' in data:                   # mostly not
            with suppress(ValueError, WireError):       # a line is not ours
                return {(int(number), to_bytes(json.loads(command))): int(losses or 0) * (float(at) > oldest)
                        for at, number, command, losses in self.LOSS_OR_END.findall(data)}
        return {}

    def add_loss(self, line: Line, state: bytes, losses: int) -> None:
        """Append that a line has no runner any more, and gets this state; losses: so often in a row.

        And sync if it runs again, as that can take the host down.  A `!` is the last run of the line for
        readers.
        """
        now = time.time()
        self._ends.append(({
            "time": to_milliseconds(now), "event": "loss", "run": f"loss-{now}", "line": line.number,
            "command": to_text(line.command), "losses": losses, "host": "?", "slot": "?", "pid": 0,
            "state": to_text(state), "cause": "lost with its runner" + f" {losses} times" * (state == FAILED),
            "seconds": 0.0}, time.monotonic()))
        self.flush()
        if state == NEW:
            self._file.sync()

    def describe_other_directory(self, directory: bytes, folder: str) -> str:
        """Return '; those before ran in "/x"' if none of the last runs was in this directory; otherwise ''.

        folder: where the first run should be.
        """
        ran_in = self.DIRECTORY.findall(self._read_last(self.MEDIAN_BYTES))
        if not ran_in:
            return ", not in the directory of the job file" * (folder != os.fsdecode(directory))
        import json
        return ("" if json.dumps(to_text(directory)).encode() in ran_in
                else f"; those before ran in {to_text(ran_in[-1])}")

    def _report_lost_lines(self, lines: bytes) -> None:
        import json
        for line in lines.splitlines():
            event = json.loads(line)
            if "stdout" in event or "stderr" in event:
                self._on_incomplete(event["line"])


class RunEntry:
    """The records of a run that has not ended."""
    can_be_short = True                 # (event loop) _switch_to_files() was not posted
    named_files = 0                     # in the journal

    def __init__(self, run: Run, uses_files: bool) -> None:
        self.run = run
        self.uses_files = uses_files    # (I/O thread) output is written as it comes
        self.stored = 0                 # (I/O thread) bytes of output
        self.outputs: dict[bytes, OutputFile] = {}      # by the name of the stream

    @property
    def file_names(self) -> list[str]:
        return [output.name for output in self.outputs.values() if output.name]


class OutDir(Sink):
    """The output directory: the journal, with short output, and files with all other output.

    A file costs more than a short job, on NFS several round trips.
    """
    SUFFIX = {b"stdout": ".out", b"stderr": ".err"}
    MAX_SHORT_BYTES = 4096              # of each stream of a run; more would fill Journal.LOSS_BYTES
    MAX_SHORT_SECONDS = 1.0             # then the output of a running job is in files

    def __init__(
        self,
        path: str,
        executor: FileExecutor,
        on_error: Say,
        on_incomplete: Callable[[int], None],
        presence_lock: PresenceLock,
        directory: bytes,
        is_default: bool,
    ) -> None:
        """Create the directory if necessary.  Raises UsageError.

        on_incomplete: gets the line number of each run whose output is incomplete.  on_error: gets a message
        about each loss.  directory: where jobs run.  presence_lock: ours.  is_default: it is FILE.out, which
        has short output in the journal, and a trusted owner.
        """
        self.executor = executor
        self._path = os.path.realpath(path)         # a symbolic link in it can change
        self._on_error = on_error
        self._on_incomplete = on_incomplete
        self._presence_lock = presence_lock
        self._directory = directory
        self._uses_files = not is_default       # --outdir: all output is in files
        self._entries: dict[Run, RunEntry] = {}
        self._flush_timer: asyncio.TimerHandle | None = None    # for ends that can wait; None: none can
        try:
            os.makedirs(path, exist_ok=True)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            is_dangling = isinstance(error, FileExistsError) and not os.path.exists(path)
            problem = "is a symbolic link to nothing" if is_dangling else error_text(error)
            raise UsageError(f"{path}: {problem} (it must be a directory that can be written)") from None
        self.journal = Journal(path, executor, on_error, on_incomplete, is_default)

    def on_started(self, run: Run) -> None:
        entry = self._entries[run] = RunEntry(run, self._uses_files)
        self.executor.post(self.journal.add_start, run, partial(self._make_start, entry))

    def on_no_result(self, run: Run) -> None:
        self.on_ended(run, run.no_result)

    def on_output(self, run: Run, stream: Stream, data: bytes) -> None:
        self.executor.post(
            self._store, self._entries[run], stream.name,
            os.path.join(self._path, f"{run.job.first_number}{self.SUFFIX[stream.name]}"), data,
            size=len(data))

    def on_ended(self, run: Run, run_result: RunResult) -> None:
        # on_started() has made an entry, unless the run could not be started
        entry = self._entries.pop(run, None) or RunEntry(run, self._uses_files)
        self.executor.post(self._write_end, entry, end_fields(run, run_result))
        # on a network file system the next on_tick() flushes
        if not (self.journal.network or self._flush_timer):
            self._flush_timer = asyncio.get_running_loop().call_later(
                self.journal.END_GATHER_SECONDS, self.flush)

    def on_tick(self) -> None:
        for run in self._entries:
            if time.monotonic() - run.started > self.MAX_SHORT_SECONDS:
                self.write_output(run)
        # also starts
        self.executor.post(self.journal.flush_after, 0.0)

    def flush(self) -> None:
        self._flush_timer = None
        self.executor.post(self.journal.flush)

    on_exit = flush

    def write_output(self, run: Run) -> None:
        """Write the output of a run to files, even if it is short."""
        entry = self._entries[run]
        if entry.can_be_short:
            entry.can_be_short = False
            self.executor.post(self._switch_to_files, entry)

    # -- in the file executor --------------------------------------------------------------------------------

    def _make_start(self, entry: RunEntry) -> Fields:
        run = entry.run
        fields = {
            # None: begin_fields() has the value; this is the order that PLAIN_END of runwait4.py expects
            "time": None,
            "event": "start",
            "run": None,
            "line": run.job.first_number,
            "command": to_text(run.job.command),
            "host": name_text(run.host),
            "slot": None,
            "pid": None,
            "runner": self._presence_lock.offset,
            "directory": name_text(run.directory or self._directory),
            **begin_fields(run),
        }
        if entry.uses_files and (file_names := entry.file_names):
            fields["files"] = file_names
        return fields

    def _store(self, entry: RunEntry, stream_name: bytes, path: str, data: bytes) -> None:
        """Keep a piece of output, or write it to the file `path`, or one with a free name."""
        if not (output := entry.outputs.get(stream_name)):
            output = entry.outputs[stream_name] = OutputFile(path, self.journal.network, self._on_error)
        output.text += data
        entry.stored += len(data)
        if entry.uses_files or len(output.text) > self.MAX_SHORT_BYTES:
            self._switch_to_files(entry)

    def _switch_to_files(self, entry: RunEntry) -> None:
        """Write the output so far to files, and all later output; name a new file in the journal."""
        entry.uses_files = True
        for output in entry.outputs.values():
            output.write_text()
        if len(entry.file_names) > entry.named_files:
            entry.named_files = len(entry.file_names)
            self.journal.add_start(entry.run, partial(self._make_start, entry))

    def _write_end(self, entry: RunEntry, result: Fields) -> None:
        """Record the end of a run; report output that it has printed and that is nowhere."""
        run = entry.run
        if run.duration > self.MAX_SHORT_SECONDS:   # on_tick() does so, too, but once a second only
            self._switch_to_files(entry)
        event = self._make_start(entry)
        event["event"] = "end"
        event.setdefault("files", [])
        event.update(result)
        has_failed = False
        for stream_name, output in entry.outputs.items():
            if output.text:
                event[to_text(stream_name)] = to_text(bytes(output.text))
            output.close()                      # before add_end(): it can fail
            has_failed |= output.has_failed
        missing = result["bytes"] - entry.stored
        if missing > 0:     # an earlier server has it, unless its host lost power before it was on the disk
            missing -= self._measure_earlier(event["run"], entry.file_names)
        if missing > 0:
            self._on_error(f"{self._path}: {missing} bytes that line {event['line']} has printed are gone "
                           "(this output is incomplete; the jobs go on)")
        if missing > 0 or has_failed:
            event["incomplete"] = True
            self._on_incomplete(event["line"])
        self.journal.add_end(run, event, run.started + run.duration)

    def _measure_earlier(self, run: str, own_files: Sequence[str]) -> int:
        """Return the bytes in the files that earlier servers have begun for a run."""
        size = 0
        for name in self.journal.files_in_journal[run].difference(own_files):
            with suppress(FileNotFoundError):
                size += os.stat(os.path.join(self._path, name)).st_size
        return size


# ======== Slots =============================================================================================
#
# A slot is the right to run one job at a time.  `--slots` gives slots names, which the jobs receive; several
# can have the same.  With `--slots @FILE` names can change.


class Slots:
    """The slots of a runner.  A name has as many as the times that it is listed."""
    FIRST_JOBS = 10             # if none of them could run, the directory is probably wrong

    def __init__(self, one_only: bool, max_broken: int) -> None:
        """one_only: each slot gets one job.  max_broken: ends in a row of jobs that could not run, until a
        name is out of service; 0: no limit.
        """
        self._one_only = one_only
        self._max_broken = max_broken
        self._listed: Counter[str] = Counter()
        self._ranks: dict[str, int] = {}        # of equally busy names the lowest rank gets the next job
        self._busy: defaultdict[str, int] = defaultdict(int)       # have or get a job; also of removed names
        self._spent: Counter[str] = Counter()   # have run their only job; also of removed names
        # how the last jobs in a row ended that probably could not run there
        self._broken_ends: dict[str, list[str]] = {}
        # of the jobs in another directory than the file's; -inf: the directory is right, or a job could run
        self.first_broken = -inf
        # a heap: how many slots of the name are busy before this one, the rank of the name, the name
        self.idle: list[tuple[int, int, str]] = []
        self._usable: dict[str, int] = {}       # slots of each name that get jobs, now or later
        self.in_service = 0                     # their sum

    def set_names(self, names: Iterable[str]) -> None:
        """Make one slot for each name; slots with other names get no more jobs.

        A name out of service is usable again after it was missing here once.
        """
        old, self._listed = self._listed, Counter(names)
        self._ranks = {name: rank for rank, name in enumerate(self._listed)}
        self._broken_ends = {
            name: ends for name, ends in self._broken_ends.items() if old[name] and self._listed[name]
        }
        self._update()

    def _update(self) -> None:
        self._usable = {name: max(count - self._spent[name], 0) for name, count in self._listed.items()
                        if not self._is_broken(name)}
        self.in_service = sum(self._usable.values())
        self.idle = [(busy, self._ranks[name], name) for name, count in self._usable.items()
                     for busy in range(self._busy[name], count)]
        heapq.heapify(self.idle)

    def _is_broken(self, name: str) -> bool:
        max_broken = self._max_broken if self.first_broken < self.FIRST_JOBS else min(self._max_broken, 1)
        return 0 < max_broken <= len(self._broken_ends.get(name, ()))

    @property
    def listed(self) -> int:
        return sum(self._listed.values())

    @property
    def each_had_job(self) -> bool:
        """Return True if all slots have had their one job (-1)."""
        return self._one_only and all(
            self._spent[name] >= count and not self._is_broken(name) for name, count in self._listed.items()
        )

    @property
    def are_only_broken(self) -> bool:
        """Return True if all names are out of service, and no removed one has had its only job (-1)."""
        return all(map(self._is_broken, [*self._listed, *self._spent]))

    def take(self, count: float) -> list[str]:
        """Return the names of idle slots, `count` at most, which are busy from now on.

        Jobs with one slot go to the least busy names; a job with more stays on one GPU or host if it can.
        """
        if count > 1:
            self.idle.sort(key=lambda slot: (self._busy[slot[-1]], *slot[1:], slot[0]))
        names: list[str] = []
        while self.idle and len(names) < count:
            *_, name = self.idle.pop(0) if count > 1 else heapq.heappop(self.idle)
            self._busy[name] += 1
            names.append(name)
        if count > 1:
            heapq.heapify(self.idle)
        return names

    def give_back(self, names: Iterable[str], was_used: bool = False) -> None:
        """Free the slots of a job.  was_used: it has run, so with -1 these slots get no other one."""
        for name in names:
            self._busy[name] -= 1
            if was_used and self._one_only:
                self._spent[name] += 1
                self._update()
            # otherwise the name is out of service now, or no longer listed so often
            elif self._usable.get(name, 0) > self._busy[name]:
                heapq.heappush(self.idle, (self._busy[name], self._ranks[name], name))

    def add_end(self, name: str, broken_end: str) -> list[str]:
        """Record the end of a job.  If that takes the name out of service, return the ends in a row; else [].

        One end does if none of the FIRST_JOBS could run in another directory than the file's, until one can.
        broken_end: such as '127 within a second', if the job probably could not run there; '': any other end.
        """
        if not broken_end and self.first_broken < 0 and not self._broken_ends.get(name):
            return []
        was_reported = self._is_broken(name)    # after an earlier job
        counts_for_all = self.first_broken >= 0
        self.first_broken = self.first_broken + 1 if broken_end else -inf
        if not self._is_broken(name):
            self._broken_ends[name] = [*self._broken_ends.get(name, ()), broken_end] if broken_end else []
        if broken_end or counts_for_all:
            self._update()
        return [] if was_reported or not self._is_broken(name) else self._broken_ends[name]


class SlotFile:
    """A file with one name per line; blank lines and # lines are ignored."""
    INTERVAL = 0.25                     # seconds from one look to the next
    MAX_FILE_BYTES = 1 << 20

    def __init__(self, path: str) -> None:
        """Read the names.  Raises UsageError if there is none."""
        self.path = path
        self.mount = find_mount(path)
        with refused_as(path, " (expected a file of names, one per line)"):
            self.names = self._read_names()
        self._last_names = self.names
        allow_most_descriptors()        # for more names later

    def reload_names(self) -> Sequence[str] | None:
        """Return new names once two calls in a row have read them; None: no change.  Raises OSError.

        An editor can write the file in pieces.
        """
        names = self._read_names()
        is_stable = names == self._last_names
        self._last_names = names
        if not is_stable or names == self.names:
            return None
        self.names = names
        return names

    def _read_names(self) -> Sequence[str]:
        """Return the names in the file, at least one.  Raises OSError, also if it is no list of names."""
        if self.mount.network:
            refresh_file(self.path, self.mount)
        fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)     # a FIFO would block
        with open(fd, "rb") as file:
            if not is_regular(fd):
                raise OSError(errno.EINVAL, "not a regular file")
            # without a byte-order mark; one byte more than allowed
            data = file.read(self.MAX_FILE_BYTES + 1)[first_line_offset(Reader(fd)):]
        if len(data) > self.MAX_FILE_BYTES or b"\0" in data:
            raise OSError(errno.EINVAL, "is no list of names")
        names = [os.fsdecode(line) for line in map(bytes.strip, data.splitlines())
                 if line and not line.startswith(b"#")]
        if not names:
            raise OSError(errno.EINVAL, "contains no name")
        return names


# ======== The runner ========================================================================================
#
# A Runner waits for a free slot, claims a job, and starts a shell.  A JobTask has each job.  Once the shell
# has exited, its coroutine runs the job again according to --retries, and writes the state, mostly at once
# (Runner.follow()).  A Pump moves job output from the pipes to the sinks.
#
# A runner drains if no job is left, after a signal, near the end of the wall time, or after --max-failed: it
# claims no more jobs, and the tasks finish.


@dataclass(eq=False)
class RunnerStats:
    """The results of a runner's jobs."""
    results: defaultdict[bytes, int] = field(default_factory=lambda: defaultdict(int))     # jobs by state
    had_errors: bool = False            # output or records were lost, or file or slots unusable
    unwritten_lines: list[int] = field(default_factory=list)
    bad_lines: list[int] = field(default_factory=list)      # failed or in error
    orphans: list[int] = field(default_factory=list)        # of dead runners: Orphans.marked
    incomplete: set[int] = field(default_factory=set)       # lines with incomplete output

    def add_result(self, job: Job, state: bytes) -> None:
        """Count a job.  state: of the line after the run."""
        if job.cancelled:
            state = CANCELLED                   # even if the job has just ended
        self.results[state] += 1
        if state in (FAILED, ERROR):
            self.bad_lines.append(job.number)

    def find_too_many_failures(self, max_failed: int) -> str:
        """Return why no more jobs may start by --max-failed, which is an error of the run; '': they may."""
        count = len(self.bad_lines)
        if not 0 < max_failed <= count:         # 0: no limit
            return ""
        self.had_errors = True
        return f"{plural(count, 'job')} failed or in error (--max-failed)"

    def add_unwritten(self, job: Job, counted: bytes | None = None) -> None:
        """counted: the state of add_result(); None: none."""
        if not job.cancelled:           # otherwise a user has set the state
            self.unwritten_lines.append(job.number)
            if counted:
                self.results[counted] -= 1

    def exit_status(self, summary: Summary | None) -> int:
        """Return the exit status, unless a signal decides it.  summary: None: unknown."""
        if (summary is None or summary.counts.bad or summary.jobs_left or summary.first_stray
                or self.unwritten_lines or self.had_errors):
            return 1
        # another runner can have started our jobs in error again
        return int(bool(self.results[ERROR] and summary.counts.running))

    def closing_line(self, summary: Summary | None, seconds: float, retry: str) -> str:
        """Return the last line of output, such as '3 done, 1 failed in 12s (line 4); -r runs them again'.

        summary: None: unknown.  seconds: since the start.  retry: for example '-r runs them'.
        """
        own_bad_lines = {*self.bad_lines, *self.unwritten_lines, *self.orphans}
        # as the file would be counted if it had only our jobs
        own = Counts(0, 0, self.results[DONE], self.results[FAILED], self.results[ERROR] + len(self.orphans),
                     self.results[CANCELLED])
        did_nothing = not (own.done or own.held or own_bad_lines)
        if did_nothing:
            text = "nothing done" if not summary or summary.jobs_left else "nothing to do"
        else:
            text = ", ".join([f"{own.done} done", *describe_counts(
                failed=own.failed, error=own.error, cancelled=own.held,
                **{"not written down": len(self.unwritten_lines)})])
            text += f" in {human_time(seconds)}"
            if own_bad_lines:
                text += f" ({name_lines(own_bad_lines)})"
        incomplete = ""
        if self.incomplete:
            incomplete = (f"; the output of {plural(len(self.incomplete), 'job')} is incomplete "
                          f"({name_lines(self.incomplete)})")
        if not summary:
            return f"{text}; the state of the file is unknown{incomplete}"
        counts = summary.counts
        has_more_than_done = bool(own_bad_lines) or counts.done < counts.all or counts.held > 0
        if has_more_than_done and (own != counts or self.unwritten_lines):      # else it repeats the text
            text += ": " if text == "nothing to do" else "; in all "
            text += summary.describe(with_lines=not own_bad_lines)
        if did_nothing:
            text += "".join(f"; {why}" for why in summary.without_jobs.values() if why)
        # lines without their result are `r`, and orphans once we exit
        if summary.can_retry or (self.unwritten_lines and counts.running):
            text += f"; {retry} again"
        if summary.first_stray:
            text += f"; {stray_line_message(summary.first_stray)}"
        return text + incomplete


class Backlogged(Protocol):
    """Has bytes yet to be written."""

    @property
    def backlog(self) -> int:
        """Return how many."""


class Pump:
    """Moves job output from pipes to sinks; while a writer's backlog is large, only at the end of a run."""
    WATCH_AFTER_SECONDS = 0.01          # from the start: most short jobs have ended then
    MAX_READ_BYTES = 1 << 18
    QUIET_SECONDS = 0.3                 # then processes left by a shell print no more
    MAX_READING_SECONDS = 5.0           # after the exit of a shell

    def __init__(self, loop: asyncio.AbstractEventLoop, writers: Sequence[Backlogged],
                 on_resumed: Callback) -> None:
        self._loop = loop
        self._writers = writers
        self._on_resumed = on_resumed
        # that have not ended; what is called on output, and when a pause begins or ends
        self.runs: dict[Run, Callback] = {}
        self._young: deque[Run] = deque()   # not watched yet
        self.is_paused = False              # no job output is read

    @property
    def backlog(self) -> int:
        return max([writer.backlog for writer in self._writers])

    def add(self, run: Run, on_output: Callback) -> None:
        self.runs[run] = on_output
        self._young.append(run)
        if len(self._young) == 1:       # one timer for all
            self._loop.call_later(self.WATCH_AFTER_SECONDS, self._watch_old)

    def _watch_old(self) -> None:
        old = time.monotonic() - self.WATCH_AFTER_SECONDS
        while self._young and self._young[0].started <= old:
            if (run := self._young.popleft()) in self.runs:
                self.watch(run)
        if self._young:                 # not when the next is old: short jobs end before that
            self._loop.call_later(self.WATCH_AFTER_SECONDS, self._watch_old)

    def finish_reading(self, run: Run) -> None:
        """Read what is in the pipes of a run that has ended, and close them: others can keep them open."""
        self.runs.pop(run, None)
        for stream in run.streams:
            if stream.fd is not None:
                # os.read() could block on an empty pipe
                unread = bytearray(4)
                fcntl.ioctl(stream.fd, termios.FIONREAD, unread)
                if any(unread):
                    run.add_output(stream, os.read(stream.fd, int.from_bytes(unread, sys.byteorder)))
                self._close(stream, stream.fd)

    def close_ended(self, run: Run) -> bool:
        """Close the empty pipes that nobody can write to; False: others have a writer."""
        poll = select.poll()
        streams = {stream.fd: stream for stream in run.streams if stream.fd is not None}
        for fd in streams:
            poll.register(fd, select.POLLIN)
        for fd, event in poll.poll(0):
            if event & select.POLLHUP:
                stream = streams.pop(fd)
                if not event & select.POLLIN:
                    self._close(stream, fd)
        return not streams

    def resume(self) -> None:
        """End a pause if all backlogs are small again; call it after each write of a writer."""
        if self.is_paused and self.backlog < Writer.LOW_BACKLOG:
            self.is_paused = False
            for run, wake in self.runs.items():
                self.watch(run)
                wake()                          # _read_remaining_output() does not count the pause
            self._on_resumed()

    def watch(self, run: Run) -> None:
        for stream in run.streams:
            if stream.fd is not None and not self.is_paused:        # after a pause, resume() calls this
                stream.was_watched = True
                self._loop.add_reader(stream.fd, self._on_readable, run, stream, stream.fd)

    def _on_readable(self, run: Run, stream: Stream, fd: int) -> None:
        """Read from a pipe, or close it at end of file; pause all reading at a large backlog."""
        if run in self.runs:                # False: a defect has ended the task of the job
            self.runs[run]()
        if not (data := os.read(fd, self.MAX_READ_BYTES)):
            return self._close(stream, fd)
        run.add_output(stream, data)
        if self.backlog > Writer.HIGH_BACKLOG and not self.is_paused:
            self.is_paused = True           # jobs block on full pipes
            for paused_run, wake in self.runs.items():
                for paused_stream in paused_run.streams:
                    if paused_stream.fd is not None:
                        self._loop.remove_reader(paused_stream.fd)
                wake()

    def _close(self, stream: Stream, fd: int) -> None:
        if stream.was_watched:                      # those of short jobs are not
            self._loop.remove_reader(fd)
        os.close(fd)
        stream.fd = None


class StopSignals:
    """Remembers when the runner got stop signals, which can also have ended jobs.

    Slurm, systemd and Ctrl-C in some programs signal the runner and the jobs, in any order.  So a run counts
    as interrupted if, within TOGETHER_SECONDS of a stop signal of the runner, it dies of such a signal or
    exits with 128 plus its number (as srun does).  After a signal that kills all jobs any end counts: a
    program can save its state and exit with 0, and --resume leaves out a `d`.

    The runner can see such an end before its own signal, so results of runs of MIN_HELD_RUN seconds or more
    are held back for a moment.  A later signal takes no state back: jobs below a barrier can have started.
    """
    TOGETHER_SECONDS = 1.0
    MIN_HELD_RUN = 0.25
    HELD_SHARE, MAX_HELD_SECONDS = 0.02, 0.1        # of the duration of the run, but no longer than this

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # when each signal came (loop's time), and True if all jobs had to be killed
        self.received: list[tuple[float, bool]] = []
        self._came = asyncio.Event()

    def add_signal(self, kills_jobs: bool) -> None:
        self.received.append((self._loop.time(), kills_jobs))
        self._came.set()
        self._came.clear()

    async def find_out_if_interrupted(self, run: Run, status: int) -> bool:
        """Return True if a signal that also came to the runner interrupted a run (`e`); await a late one.

        status: of its shell (wait(2)).
        """
        if run.cause:
            return False
        exited_at = run.started + run.duration
        died_of_signal = status != 0 and RunResult(status).fatal_signal in STOP_SIGNALS
        if died_of_signal:
            max_wait = self.TOGETHER_SECONDS
        elif run.duration >= self.MIN_HELD_RUN:
            max_wait = min(run.duration * self.HELD_SHARE, self.MAX_HELD_SECONDS)
        elif self.received:
            max_wait = 0.0
        else:
            return False
        while not any(
            -self.TOGETHER_SECONDS <= came_at - exited_at <= max_wait
            and (kills_jobs or died_of_signal)
            for came_at, kills_jobs in self.received
        ):
            seconds_left = exited_at + max_wait - self._loop.time()
            if seconds_left <= 0:
                return False
            await wait_for_event(self._came, seconds_left)
        return True


# ---- one job -----------------------------------------------------------------------------------------------
#
# A JobTask handles one job.  The effect of an event on the job depends only on the phase of the job:
#
#                  drain              kill("stopped")      kill("cancelled")    kill("lost")
#     sent by      HUP, USR1, QUIT;   INT, TERM, ...;      another state was    another runner
#                  --max-failed; ...  wall time over; ...  set over the `r`     has taken the line
#
#     STARTING     as before          as before*           as set               nothing
#     AT_GATE      as before          as before            as set               nothing
#     RUNNING      (goes on)          killed: e            killed: as set       killed: nothing
#     READING_ON   (goes on)          rest killed: result  rest killed: as set  rest killed: nothing
#     DELIVERING   (goes on)          e                    as set               nothing
#     UNDYING      (goes on)          result               as set               nothing
#     GROWING      e                  e                    as set               nothing
#     SETTLING     (goes on)          (goes on)            (goes on)            (goes on)
#
# The cells give the processes that are killed and the new state of the line.  as before: `.`, also of an
# orphan; or, if the job has run already, the result of the last run, which at * is `e` instead.  result: of
# the last run, by the exit status of the shell; `e` if a signal interrupted it (StopSignals).  as set,
# nothing: nothing is written.
#
# Processes of the run that outlive KILL make the job UNDYING.  Job lock, slots, memory and `r` stay until
# these are gone; then the line gets what the table says, or the job runs again.  If the runner exits, the
# line gets that at once: no runner can take it for an orphan and start a second copy.  The job lock is not
# unlocked then, so a process that has it keeps it.
#
# A second INT ends all grace periods; a second TERM changes nothing, because Slurm sends it twice.  Only a
# stronger cause replaces a cause (CAUSES_BY_STRENGTH).
#
# Three events concern one run only; the job can run again after them.  A timeout kills a RUNNING run, which
# has then failed, and the remaining processes of a READING_ON run, which keeps the result.  Too much memory
# kills a RUNNING run.  The exit of the shell ends RUNNING and AT_GATE.
#
# The phase changes in the same call as the event, not when the coroutine wakes up.  Time, exit status, signal
# and OOM kills are recorded when the shell exits: reading the remaining output can take longer than the
# interval between two signals that belong together.


class Phase(Enum):                      # of a JobTask
    __hash__ = object.__hash__          # that of Enum takes four times as long
    STARTING = "slots, job lock and shell are being acquired"
    AT_GATE = "the shell waits until all jobs of the group can begin"
    RUNNING = "the shell runs"
    READING_ON = "the shell has exited; processes that it left can still print"
    DELIVERING = "files of the job travel to the server"
    UNDYING = "processes of the run cannot be killed"
    GROWING = "it had too little memory, and runs again once more is free"
    SETTLING = "nothing more of the job begins; the line gets a state"


NEXT_PHASES = {
    Phase.STARTING: (Phase.AT_GATE, Phase.RUNNING, Phase.SETTLING),
    Phase.AT_GATE: (Phase.RUNNING, Phase.SETTLING),
    Phase.RUNNING: (Phase.READING_ON, Phase.UNDYING),
    Phase.READING_ON: (Phase.UNDYING, Phase.DELIVERING, Phase.STARTING, Phase.GROWING, Phase.SETTLING),
    Phase.DELIVERING: (Phase.STARTING, Phase.GROWING, Phase.SETTLING),
    Phase.UNDYING: (Phase.DELIVERING, Phase.STARTING, Phase.GROWING, Phase.SETTLING),
    Phase.GROWING: (Phase.STARTING, Phase.SETTLING),
    Phase.SETTLING: (),
}
CAUSES_BY_STRENGTH = ("", "refused", "stopped", "cancelled", "lost")


class JobTask:
    """One job, from the claim until the final state is written."""
    phase = Phase.STARTING
    cause = ""                          # why the job must not start (again): one of CAUSES_BY_STRENGTH
    state = NEW                         # to write if the job does not run again; NEW: it has no result
    is_followed = False                 # by a coroutine (Runner.follow())
    _event: asyncio.Event | None = None         # wakes that; None: it has never waited
    run: Run                            # the last one, perhaps not started yet
    # of that run:
    run_result: RunResult | None                # None: not finished
    shell: Child | None = None                  # from start to finish
    _gate_fd: int | None = None                 # our end of its pipe
    _kill_task: asyncio.Future[list[int]] | None        # kills the processes
    _timeout_task: asyncio.Future[None] | None = None   # kills the run; None: it has no timeout
    _oom_kills = 0                      # the count of OomKills at the start

    def __init__(self, runner: Runner, job: Job, slots: Sequence[str]) -> None:
        self._runner = runner
        self.job = job
        self.slots = slots
        # seconds; negative: percent of the median; None: no limit
        self.timeout = runner.options.timeout if job.settings.timeout == 0 else job.settings.timeout
        self.needs = job.settings.needs         # slots and memory
        self._larger_needs = [*job.settings.larger_needs]       # for runs after one that lacked memory
        self._is_gated = job.gated
        self._prepare_run()

    def _prepare_run(self) -> None:
        self.run = Run(self.job, self.slots, self._runner.host, self._runner.sinks)
        self.run.requested_memory = int(self.needs.memory)
        self.run_result = self._kill_task = None

    def _enter_phase(self, phase: Phase) -> None:
        assert phase in NEXT_PHASES[self.phase], (self.phase, phase)
        self.phase = phase
        self._wake()

    def _wake(self) -> None:
        """Wake the coroutine: after each change that it can wait for."""
        if self._event:
            self._event.set()

    async def _wait_for_event(self, seconds: float | None = None) -> bool:
        """Wait until _wake() is called; return False after `seconds` (None: no limit)."""
        self._event = asyncio.Event()
        return await wait_for_event(self._event, seconds)

    @property
    def has_result(self) -> bool:
        return self.state != NEW

    @property
    def _can_start(self) -> bool:
        return not (self._runner.exit_step or self.cause or self.job.tracking is Tracking.GONE)

    # -- events ----------------------------------------------------------------------------------------------

    def drain(self) -> None:
        self._close_gate()
        self._wake()

    def refuse_gate(self) -> None:
        if self._is_gated and self.phase in (Phase.STARTING, Phase.AT_GATE):
            self._forbid_start("refused")

    def open_gate(self) -> None:
        self._runner.processes.reap()           # changes the phase if the shell has died
        if self.phase is Phase.AT_GATE and self._gate_fd is not None:
            with suppress(BrokenPipeError):      # the shell was just killed; _on_exit() follows
                os.write(self._gate_fd, b"\n")
            self._record_start()                # again, without the time at the gate
            self._enter_phase(Phase.RUNNING)
            self._close_gate()

    def kill(self, cause: str) -> None:
        """Kill the processes of the job, and keep it from starting (again).

        cause: "stopped", "cancelled" or "lost", as in the table before Phase.
        """
        self._runner.processes.reap()           # a shell that has already exited keeps its result
        if self.phase is Phase.SETTLING:
            return
        if self.phase in (Phase.RUNNING, Phase.READING_ON):
            self._kill_processes(cause)
        elif cause == "stopped" and self.has_result:
            self.state = ERROR                  # it was to run again, and now will not
        self._forbid_start(cause)

    def kill_run(self, cause: str) -> None:
        """Kill the run; the job can run again.  cause: "timeout" or "memory"."""
        self._runner.processes.reap()
        if self.phase is Phase.RUNNING or (self.phase is Phase.READING_ON and cause == "timeout"):
            self._kill_processes(cause)

    def _on_exit(self, status: int) -> None:
        """Record the exit of the shell, or that it is given up.  status: the wait status."""
        run = self.run
        run.duration = time.monotonic() - run.started       # as the loop's time
        if self._is_gated and self.phase is Phase.AT_GATE:      # the command did not run: there is no result
            self._close_gate()
            self._enter_phase(Phase.SETTLING)
            return
        # a KILL that is not ours is of the OOM killer if that has killed since the start
        if (status and not run.cause and RunResult(status).fatal_signal == signal.SIGKILL
                and self._runner.oom_kills.read_count() > self._oom_kills):
            run.cause = "oom"
        if self.phase is Phase.RUNNING:         # otherwise UNDYING, and stays that
            self._enter_phase(Phase.READING_ON)
        else:
            self._wake()
        if not self.is_followed:
            self._runner.exited.append(self)

    def restart_if_memory_is_free(self, free: Resources) -> bool:
        """Let a GROWING job run again if enough memory is free."""
        if free.memory < self.needs.memory:
            return False
        self._enter_phase(Phase.STARTING)
        return True

    def _forbid_start(self, cause: str) -> None:
        self.cause = max(self.cause, cause, key=CAUSES_BY_STRENGTH.index)
        self.drain()

    def _close_gate(self) -> None:
        close_all(self._gate_fd)        # a shell at the gate reads end of file, and exits
        self._gate_fd = None

    def _kill_processes(self, cause: str) -> asyncio.Future[list[int]]:
        assert self.shell
        if not self._kill_task:
            if self.phase is Phase.RUNNING:     # otherwise the run keeps its result
                self.run.cause = cause
            self._kill_task = spawn_task(self._runner.processes.kill_tree(self.shell, self._on_undying))
            self._wake()
            self._runner.follow(self)           # not only once the shell exits: it can be UNDYING
        return self._kill_task

    def _on_undying(self, pids: list[int]) -> bool:
        """Enter UNDYING, and name a process, once.  Return True if the runner exits without waiting."""
        if self.phase is not Phase.UNDYING:
            self.run.why = f"could not be killed: process {describe_process(pids[0])}"
            self._say(f"{self.run.why}; the job runs until that exits, or this runner")
            self._enter_phase(Phase.UNDYING)
        self.job.outlives_runner = self._runner.exits_early
        return self.job.outlives_runner

    # -- the life of a job -----------------------------------------------------------------------------------

    async def run_until_settled(self) -> None:
        """Wait for the end of the first run, run the job again if it must, and write the final state.

        Call start() before, which need not have started a shell.
        """
        failures = 0
        while self.shell:                      # None: start() could not, or was not allowed to
            await self._follow_run(self.shell)
            # SETTLING: it has exited at the gate; other causes kill for good
            if (self.state == DONE or self.phase is Phase.SETTLING or not self._can_start
                    or self.run.cause not in ("", *FAILURE_CAUSES)):
                break
            if self.run.cause in ("memory", "oom") and self._larger_needs:
                can_run = await self._wait_for_more_memory()
            else:
                failures += 1
                # the remaining wall time can be too short for another run
                can_run = failures <= self._runner.options.retries and self._runner.admit_or_drain(self)
            if not can_run:
                break
            if self.phase is not Phase.STARTING:    # by restart_if_memory_is_free()
                self._enter_phase(Phase.STARTING)
            self._prepare_run()
            await self.start()
        await self.write_final_state()
        if self.job.directory and not self.job.outlives_runner:
            await self.job.directory.call(self.job.directory.remove)

    async def write_final_state(self) -> None:
        """Pass the final state of the job to the sinks, and write it, until that succeeds or never can.

        Raises CancelledError after a kill signal.
        """
        runner, job = self._runner, self.job
        if self.phase is not Phase.SETTLING:    # it is after an exit at the gate
            self._enter_phase(Phase.SETTLING)
        if self.cause == "lost":
            self.state = ERROR              # for the sinks only: the line is that of another runner
        elif self.cause == "cancelled":
            self.state = CANCELLED          # even if the job has just ended by itself
        for sink in self.run.sinks:
            sink.on_job_over(job, self.state)
        if self.cause == "lost":
            return
        try:
            error = await write_with_retries(runner.jobs.finish, job, self.state, runner.say)
        except asyncio.CancelledError:          # by Runner._exit_if_results_hang(), after a signal
            runner.runner_stats.add_unwritten(job)
            raise
        if error:
            self._say(error)
            runner.runner_stats.add_unwritten(job, self.state)

    def _say(self, text: str) -> None:
        self._runner.say(f"line {self.job.number}: {text}")

    # -- running again ---------------------------------------------------------------------------------------

    async def _wait_for_more_memory(self) -> bool:
        """Wait until the next size of memory= is free; False: the job will not run again."""
        needs = self._larger_needs.pop(0)
        if needs.memory > self._runner.memory:
            size, available = memory_text(needs.memory), memory_text(self._runner.memory)
            self._say(f"{self.run_result}; does not run again with {size}: there are {available} here")
            return False
        self.needs = needs
        if self._runner.admit_or_drain(self):
            self._enter_phase(Phase.GROWING)        # keeps the slots, not the memory
            self._runner.has_growing = True
            self._runner.changed.set()
            while self.phase is Phase.GROWING and self._can_start:
                await self._wait_for_event()
            await self._wait_until_line_is_ours()
            if self._can_start and self._runner.admit_or_drain(self):
                return True
        self.state = ERROR                  # as in kill(): --resume and successors run it with that size
        return False

    async def _wait_until_line_is_ours(self) -> None:
        """Wait until the line is surely ours: in a pause the job lock can be lost, a server out of reach."""
        while self._can_start and not await self._runner.jobs.still_has(self.job):
            if self._can_start:                 # an event can have come before the answer
                await self._wait_for_event(1.0)

    # -- starting a shell ------------------------------------------------------------------------------------

    # After an OSError another host can run the job: the line becomes `.`, without a record, and
    # on_failed_start() keeps this host from trying line after line.  A job of a group, or one
    # that has run, cannot be given back: it waits for an error to pass, or becomes `e`.

    async def start(self) -> None:
        """Start the shell of `run`.

        `shell` stays None if the job must not start (_can_start), or after an error.
        """
        error = command_error(self.job.command)
        while not (error or self.shell) and self._can_start:
            try:
                error = await self._try_to_start()
            except OSError as host_error:
                can_pass = self._runner.on_failed_start(self.job, host_error)
                if not (self.has_result or self._is_gated):
                    self._forbid_start("refused")
                elif not can_pass:
                    error = str(host_error.strerror)
        if error:
            self._say(f"cannot be started: {error}")
            self.state = ERROR
            self.run.why = error
            for sink in self.run.sinks:
                sink.on_no_result(self.run)
        elif self.shell and not self._is_gated:
            self._begin_run()           # no await since posix_spawn(3): its exit was not handled

    async def _try_to_start(self) -> str:
        """Start the shell, if the job may start.  Return '', or an error of the command.

        Raises OSError: an error of this host.
        """
        runner = self._runner
        if self.job.bring:
            if error := await self._move_files(self.job.bring()):
                if self.job.host_errno:
                    raise OSError(self.job.host_errno, error)
                return error
            await self._wait_until_line_is_ours()
            runner.admit_or_drain(self)         # they can have travelled for long
        # reserve the next turn before another task can
        while (seconds := runner.next_start_at - (now := time.monotonic())) > 0 and self._can_start:
            await self._wait_for_event(seconds)
            await self._wait_until_line_is_ours()
            runner.admit_or_drain(self)
        runner.next_start_at = now + (runner.options.delay or 0)
        lock_fds: LockFds = ()
        try:
            lock_fds = await runner.jobs.copy_lock_fds(self.job)
            if self.job.directory:
                lock_fds = (os.dup(self.job.directory.lock_fd),)
            if self._can_start:                 # the file system can have answered late
                self._spawn_shell(lock_fds)
            return ""
        except ValueError:
            return "the command contains a NUL byte"
        except OSError as error:
            why = error_text(error)
            if error.errno == errno.E2BIG:
                return "environment, or --runner and command, are too long"
            if error.filename:                  # for example 'no fish on alice'
                import shutil
                shell = os.fsdecode(error.filename)
                is_there = os.path.exists(shell) if "/" in shell else shutil.which(shell)
                why = f"{shell}: {why}" if is_there else f"no {shell} on {os.fsdecode(runner.host)}"
            raise OSError(error.errno, why) from None
        finally:
            runner.executor.post(close_all, *lock_fds)      # the shell has copies; close(2) can block

    def _spawn_shell(self, lock_fds: Sequence[int]) -> None:
        """Start the shell with pipes for output and, for a job of a group, the gate.

        The caller closes lock_fds.  Raises OSError, ValueError (a NUL).
        """
        run, has_gate = self.run, self._is_gated
        # Results, records (two files of each job) and kills need the last numbers.  So running jobs can
        # always end, and free their descriptors for jobs that wait to start
        limit = self._runner.processes.max_descriptors - 8 - 2 * len(self._runner.tasks)
        out_fd = err_fd = gate_fd = None
        fds: list[int] = []             # to close: the ends of the shell; all ends if it was not started
        try:
            if run.sinks:               # without sinks output has no reader
                fds += os.pipe()
                fds += os.pipe()
                out_fd, err_fd = fds[1], fds[3]
            if has_gate:
                gate_fd, gate_end = os.pipe()
                fds += gate_fd, gate_end
            if fds and max(fds) >= limit:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            shell, command = self.job.settings.shell, self.job.command
            if wrapper := self._runner.options.runner:          # it is written for /bin/sh
                shell, command = SHELL, wrap_in_runner(os.fsencode(wrapper), shell, command)
            self._record_start()
            run.shell = self.shell = self._runner.processes.start(
                shell, command, self._environ(), out_fd, err_fd, self._on_exit, lock_fds, gate_fd,
                self.job.directory.path if self.job.directory else b"")
            if has_gate:
                self._gate_fd = fds.pop()
            if run.sinks:
                run.streams = Stream(b"stdout", fds.pop(0)), Stream(b"stderr", fds.pop(1))
        finally:
            close_all(*fds)
        self._enter_phase(Phase.AT_GATE if has_gate else Phase.RUNNING)
        self._runner.failed_starts = 0

    def _record_start(self) -> None:
        run, runner = self.run, self._runner
        run.started_at = time.time()
        run.started = time.monotonic()
        # --delay counts from the real start
        runner.next_start_at = run.started + (runner.options.delay or 0)
        self._oom_kills = runner.oom_kills.recent_count(run.started)

    def _environ(self) -> dict[bytes, bytes]:
        names = list(map(os.fsencode, self.slots))
        line = b"%d" % self.job.first_number
        # SLAVE_IP and JOB_ID: for job scripts of cli.py, a cluster scheduler (docs/coming-from.md)
        environ = {b"RUNMAKER4_LINE": line, b"RUNMAKER4_SLOT": names[0], b"SLAVE_IP": names[0],
                   b"RUNMAKER4_SLOTS": b",".join(names)}
        # in Grid Engine JOB_ID is that of the batch job, which qrsh -inherit, and so mpirun, needs
        if b"SGE_TASK_ID" not in self._runner.processes.environ:
            environ[b"JOB_ID"] = line
        if self.run.requested_memory:
            environ[b"RUNMAKER4_MEMORY"] = b"%d" % self.run.requested_memory
        return environ

    # -- one run ---------------------------------------------------------------------------------------------

    async def _follow_run(self, shell: Child) -> None:
        """Wait until the run has finished, and report the result; none if the shell exits at the gate."""
        try:
            if self._is_gated:
                self._runner.jobs.on_ready_to_start(self.job)       # the group waits for this
                while self.phase is Phase.AT_GATE:
                    await self._wait_for_event()
                if self.phase is Phase.SETTLING:
                    self._runner.pump.finish_reading(self.run)
                    return
                self._is_gated = False
                self._begin_run()
            while (status := shell.status) is None:
                await self._wait_for_event()
            await self._find_result(shell, status)
        finally:
            # after a defect
            if self.run in self._runner.runs:
                del self._runner.runs[self.run]
                await asyncio.wait([self._kill_processes("stopped")])
            self.shell = None

    def _begin_run(self) -> None:
        """Tell the sinks that the command runs, and limit its time."""
        runner, run = self._runner, self.run
        try:
            for sink in run.sinks:
                sink.on_started(run)
            runner.pump.add(run, self._wake)
        finally:
            if run not in runner.runs:          # a defect: nobody writes down how it ends
                self.is_followed = True
                runner.add_job_run(self._kill_processes("stopped"))
        if self.timeout:
            self._timeout_task = spawn_task(self._kill_after_timeout(self.timeout))

    async def _find_result(self, shell: Child, status: int) -> None:
        """Read the output that remains after the exit of a shell, and set `run_result` and `state`."""
        runner, run = self._runner, self.run
        if not runner.pump.close_ended(run):    # otherwise the rest is for finish_reading()
            await self._read_remaining_output()
        was_interrupted = await runner.signals.find_out_if_interrupted(run, status)
        if self._kill_task:                     # the slots stay busy while processes of the run live
            await self._kill_task
        if self._timeout_task:
            self._timeout_task.cancel()         # until here a timeout ends processes that the shell left, too
        runner.pump.finish_reading(run)
        if was_interrupted:
            run.cause = "stopped"               # gives `e`, without a retry
        if run.peak:        # of all processes together; wait4(2) has that of the largest
            shell.memory, shell.memory_below = max(shell.memory or 0, run.peak), None
        # a cancelled job counts as killed by SIGTERM, however the shell reacted
        status = signal.SIGTERM if run.cause == "cancelled" else status
        if self.job.deliver and (state := RunResult(status, run.cause).state) in DONE + FAILED:
            self.state = state
            self._enter_phase(Phase.DELIVERING)
            if why := await self._move_files(self.job.deliver(state)):
                self._say(why)
                run.why, run.cause = run.why or why, run.cause or "files"
            run.cause = self.cause or run.cause
        limit = run.requested_memory if run.cause == "memory" else run.limit or self.timeout or 0.0
        self.run_result = RunResult(status, run.cause, limit, shell.memory or 0)
        self.state = self.run_result.state
        for sink in run.sinks:
            sink.on_ended(run, self.run_result)

    async def _move_files(self, moving: Awaitable[str]) -> str:
        """Wait until files have travelled, or the job is killed, or must not start.

        Return why they have not travelled; '' also in the last two cases.
        """
        task = spawn_task(moving)
        task.add_done_callback(lambda _: self._wake())
        try:
            while not task.done() and (self._can_start if self.phase is Phase.STARTING else not self.cause):
                await self._wait_for_event()
            return task.result() if task.done() else ""
        finally:
            task.cancel()

    async def _kill_after_timeout(self, timeout: float) -> None:
        """Kill the run after a timeout in seconds; negative: in percent of the median run time, if known."""
        runner, age, median = self._runner, 0.0, 0.0
        limit = timeout if timeout > 0 else MIN_PERCENT_SECONDS
        while age < limit:
            paused_at, pause = runner.loop.time(), min(limit - age, 1.0)
            await asyncio.sleep(pause)
            # a batch system that stops the runner, or a paused virtual machine, mostly stops the job as well
            age += min(runner.loop.time() - paused_at, pause + 0.1)
            if timeout < 0 and age >= limit:
                median = await runner.executor.call(runner.read_median, self.job.command) or inf
                # it can change: read it again when the run is half as old again, at the latest
                limit = min(max(-timeout / 100 * median, MIN_PERCENT_SECONDS), 1.5 * age)
        self.kill_run("timeout")
        if timeout < 0 and self.run.cause == "timeout":
            self.run.why = f"{-timeout:.12g}% of the median {human_time(median)}, at least 10s"
            self._say(f"timeout after {human_time(limit)}: {self.run.why}")
            self.run.limit = limit

    async def _read_remaining_output(self) -> None:
        """Read the output of processes that outlive the shell, as in `exec > >(tee log)`, for a while."""
        pump, run, loop = self._runner.pump, self.run, self._runner.loop
        pump.watch(run)
        seconds_left = pump.MAX_READING_SECONDS
        while run.is_open and not self._kill_task and seconds_left > 0:
            began, was_paused = loop.time(), pump.is_paused
            is_quiet = not await self._wait_for_event(pump.QUIET_SECONDS)
            if not was_paused:                  # so a slow console or an unreachable server loses no output
                if is_quiet:
                    return
                seconds_left -= loop.time() - began

    def measure_memory(self, table: ProcessTable) -> int:
        """Return the bytes of memory that the processes of the run use, and record the peak."""
        assert self.shell
        pids = table.job_processes(self.shell)
        # an estimate: shared pages count for each process, and the kernel's counters are late by some MB
        used_bytes = sum(table.processes[pid].resident_pages for pid in pids) * PAGE
        # near the limit: the exact share, which takes a while to read
        if used_bytes >= self.run.requested_memory * 0.75:
            used_bytes = sum(map(resident_memory, pids))
        self.run.peak = max(self.run.peak, used_bytes)
        return used_bytes


class ExitStep(enum.IntEnum):
    """The steps of a runner towards the exit, never back."""
    NONE = 0            # starts jobs
    DRAINING = 1        # starts no more jobs and waits for running jobs
    EARLY = 2           # kills all jobs, or the wall time is too near: waits for no UNDYING job


class Runner:
    """Assigns jobs to slots.

    One loop (`_start_jobs`) claims all jobs, so one claim is under way at a time, and only this loop makes
    slots busy.  It tries again when an event sets `changed`, or after the time that the last claim returned.
    """
    MAX_BACKLOG_BYTES = 1 << 24         # above this no jobs are started
    BROKEN_STATUSES = 126, 127          # of a shell that cannot run the program, or does not find it
    MAX_BROKEN_SECONDS = 1.0            # later, a job has done some work
    BUSY_ERRORS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT)
    BUSY_SECONDS = 2.0                  # then a start can succeed
    # of ssh(1), after any time; a killed command can give it, too
    # (findings/ssh-255-for-a-killed-command.sh)
    SSH_FAILED = 255
    MAX_NAMED_COMMAND = 80              # characters of a command in a message
    TICK_SECONDS = 1.0                  # between calls of Sink.on_tick()
    MAX_RESULT_SECONDS = 10.0           # after a kill signal, to write states
    MAX_ANSWER_SECONDS = 2.0            # after a kill signal, for an answer
    MIN_MEASURING_PAUSE = 1.0           # seconds between measurements of memory
    MEASURING_PAUSE_FACTOR = 99         # of the CPU time of a measurement
    READ_AGAIN = 2000                   # measurements in which each process of the host is read again

    def __init__(self, jobs: Jobs, processes: Processes, sinks: list[Sink], writers: Sequence[Any],
                 host: bytes, options: Namespace, say: Say, runner_stats: RunnerStats,
                 names: Sequence[str], slot_file: SlotFile | None, executor: FileExecutor,
                 memory: float, seconds_left: float | None) -> None:
        """slot_file: None: the names are not from a file.  memory: bytes for all running jobs with memory=.
        names: of the slots.  seconds_left: until all jobs are killed; None: no limit.
        """
        self.jobs = jobs
        self.processes = processes
        self.sinks = sinks
        self.say = say
        self.host = host
        self.options = options
        self.memory = memory
        self._slot_file = slot_file
        self.executor = executor
        self.slots = Slots(options.one_only, options.slot_errors)
        self.slots.set_names(names)
        self.capacity = self.full_capacity      # what jobs can have, by the last claim
        self._starting_jobs: asyncio.Future[None] | None = None     # None: run() was not called
        self.tasks: dict[Job, JobTask] = {}     # from the claim until the slots are free again
        self.exited: deque[JobTask] = deque()   # whose shells have exited, until follow()
        self._job_runs: set[asyncio.Future[Any]] = set()    # of jobs that must wait for something
        self.has_growing = False                # a job was ever GROWING
        self._say_once = once_per_subject(say)
        self.loop = asyncio.get_running_loop()
        self.runner_stats = runner_stats
        self.changed = asyncio.Event()  # wakes _start_jobs()
        self.pump = Pump(self.loop, writers, self.changed.set)
        self.runs = self.pump.runs
        processes.on_reaped = self._end_jobs
        self.oom_kills = OomKills()
        self._why_jobs_left = ""            # '': none are, or another reason shows it
        # None: no count lets it exit, or the count leaves out jobs for slots out of service
        self.exit_summary: Summary | None = None
        self.claim_error = ""  # why nothing can be claimed any more; "": nothing is known
        self.exit_step = ExitStep.NONE
        self.kill_signal = 0                # made the runner kill all jobs; 0: none did
        self.signals = StopSignals(self.loop)
        self.is_out_of_time = False         # the wall time was the first reason to start no more jobs
        self.began = self.loop.time()
        self.wall_end = self.began + (inf if seconds_left is None else seconds_left)
        self.next_start_at = self.began     # no shell starts before (loop's time)
        self.failed_starts = 0              # in a row
        self.read_median: Callable[[bytes], float] = no_median      # for the executor: Journal.median()

    # -- from start to end -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run jobs until none remain, or the runner drains and the last has finished.

        Then report why jobs remain, if that was not reported before.
        """
        # first: _watch_memory() must list the processes before a job starts
        chores = [spawn_task(chore) for chore in (
            self._watch_wall_time(), self._kill_lost_and_cancelled_jobs(), self._tick_sinks(),
            self._poll_slot_file(), self._watch_memory())]
        self._starting_jobs = spawn_task(self._start_jobs())
        await asyncio.wait([self._starting_jobs])
        while self.runs or self._job_runs:
            self.changed.clear()
            await self.changed.wait()
        for chore in chores:
            chore.cancel()
        if self.kill_signal:                    # reported when it came
            return
        if self.claim_error:
            self.say(f"{self.claim_error} (no more jobs were started)")
            self.runner_stats.had_errors = True
        elif self._why_jobs_left:
            if not self.options.follow:         # otherwise it was reported when it happened
                self.say(self._why_jobs_left)
        elif not self.exit_step and self.slots.are_only_broken:
            self.say("no slot is left in service (no more jobs were started)")
            self.runner_stats.had_errors = True

    async def wait_unless_killed(self, awaitable: Awaitable[T],
                                 seconds: float = MAX_ANSWER_SECONDS) -> T | None:
        """Return an answer; None: a kill signal came, and in `seconds` none.

        The call is not cancelled then.
        """
        future = asyncio.ensure_future(awaitable)
        while not future.done() and not self.kill_signal:
            await asyncio.wait([future], timeout=0.1)
        await asyncio.wait([future], timeout=seconds)
        return future.result() if future.done() else None

    def on_drain_signal(self, number: int) -> None:
        self.signals.add_signal(kills_jobs=self.kill_signal != 0)
        self._report_and_drain(signal.Signals(number).name)

    def _report_and_drain(self, why: str) -> None:
        self.say(f"{why}: starting no more jobs, waiting for {plural(len(self.runs), 'job')}")
        self.drain()

    def on_kill_signal(self, number: int) -> None:
        """Kill the jobs and exit.  A later INT ends the grace period; not a later TERM: Slurm sends two."""
        is_first = not self.kill_signal
        self.kill_signal = self.kill_signal or number
        self.signals.add_signal(kills_jobs=True)
        if is_first:
            hint = " (Ctrl-C again: at once)" if number == signal.SIGINT and self.runs else ""
            self.say(f"{signal.Signals(number).name}: killing {plural(self._unsettled_count, 'job')}{hint}")
            self.kill_jobs()
            spawn_task(self._exit_if_results_hang())
        elif number == signal.SIGINT:
            self.processes.kills_at_once = True

    async def _watch_wall_time(self) -> None:
        await asyncio.sleep(self.wall_end - self.loop.time())
        self.is_out_of_time |= not self.exit_step
        self.say(f"the wall time is over, killing {plural(self._unsettled_count, 'job')}")
        self.kill_jobs()

    @property
    def _unsettled_count(self) -> int:
        return len(self.tasks) - len(self._tasks_in(Phase.SETTLING))

    @property
    def exits_early(self) -> bool:
        return self.exit_step >= ExitStep.EARLY

    def drain(self, step: ExitStep = ExitStep.DRAINING) -> None:
        self.exit_step = max(self.exit_step, step)
        self.changed.set()
        for task in self.tasks.values():
            task.drain()

    def fail(self, why: str) -> None:
        self.claim_error = why
        self.drain()

    def kill_job(self, job: Job, cause: str) -> None:
        if cause == "lost":
            self.say(f"line {job.number}: another runner took over this job; stopping our copy")
        if job in self.tasks:
            self.tasks[job].kill(cause)

    def open_gate(self, job: Job) -> None:
        if job in self.tasks:
            self.tasks[job].open_gate()

    def kill_jobs(self) -> None:
        self.drain(ExitStep.EARLY)
        for task in self.tasks.values():
            task.kill("stopped")

    async def _exit_if_results_hang(self) -> None:
        """Exit after a kill signal even if a file system that does not answer holds up results."""
        while self.runs:                        # killing takes its own time
            await asyncio.sleep(0.05)
        await asyncio.sleep(self.MAX_RESULT_SECONDS)
        for future in filter(None, (self._starting_jobs, *self._job_runs)):
            future.cancel()                     # waits for no file system: the exit frees all locks

    async def _kill_lost_and_cancelled_jobs(self) -> None:
        while True:
            await asyncio.sleep(self.jobs.interval / 2)
            for job, cause in (await self.jobs.check_jobs()).items():
                self.kill_job(job, cause)

    async def _tick_sinks(self) -> None:
        while True:
            await asyncio.sleep(self.TICK_SECONDS)
            for sink in self.sinks:
                sink.on_tick()

    async def _watch_memory(self) -> None:
        """Kill runs that use more memory than requested at two measurements in a row.

        Reading all processes of a large host takes too long.  A process that starts outside of these runs
        never becomes part of one.  So a measurement reads the processes of these runs, each new process once,
        and a few others: one can have the PID of another now, or was read during execve(2), without a tag.
        """
        exceeding = set()         # runs that used too much at the last measurement
        others = {*os.listdir("/proc")}     # outside of these runs: no job has started yet
        throttle = Throttle(self.loop.time)
        for count in itertools.count():
            await asyncio.sleep(
                throttle.seconds_until_due(self.MEASURING_PAUSE_FACTOR, self.MIN_MEASURING_PAUSE)
            )
            tasks = [
                task for task in self.tasks.values()
                if task.phase is Phase.RUNNING and task.run.requested_memory and not task.run.cause
            ]
            # to wait for a CPU costs nothing
            throttle = Throttle(self.loop.time, max_waiting_seconds=0.0)
            with throttle:
                known = others
                try:
                    others = {*os.listdir("/proc")}
                except OSError:                         # no descriptor is free for a moment
                    continue
                if tasks:
                    table = ProcessTable(name for name in others if name not in known
                                         or hash(name) % self.READ_AGAIN == count % self.READ_AGAIN)
                    for task in tasks:
                        if task.shell:
                            others.difference_update(map(str, table.job_processes(task.shell)))
                    tasks = [task for task in tasks if task.measure_memory(table) > task.run.requested_memory]
                # a shell at a gate is measured later
                others -= {str(task.shell.pid) for task in self.tasks.values() if task.shell}
            for task in tasks:
                if task.run in exceeding:
                    task.kill_run("memory")
            exceeding = {task.run for task in tasks}

    # -- slots -----------------------------------------------------------------------------------------------

    async def _poll_slot_file(self) -> None:
        while self._slot_file:
            await asyncio.sleep(self._slot_file.INTERVAL)
            try:
                names = await self.executor.call(self._slot_file.reload_names)
            except OSError as error:
                self._say_once("slots", f"{self._slot_file.path}: {error_text(error)}; going on with the "
                                        "slots known so far")
                continue
            if names is not None and not self.exit_step:
                self.slots.set_names(names)
                self.changed.set()

    @property
    def full_capacity(self) -> Resources:
        return Resources(self.slots.listed, self.memory)

    def _tasks_in(self, phase: Phase) -> list[JobTask]:
        return [task for task in self.tasks.values() if task.phase is phase]

    def _free_resources(self) -> Resources:
        # in these two phases a job has no process
        allocated_memory = sum([task.needs.memory for task in self.tasks.values() if task.needs.memory
                                and task.phase not in (Phase.GROWING, Phase.SETTLING)])
        return Resources(len(self.slots.idle), self.memory - allocated_memory)

    async def _start_jobs(self) -> None:
        while not self.exit_step:
            # with --follow, the slot file can get names
            can_get_slots = self._slot_file and self.options.follow and not self.options.one_only
            if not (self.tasks or can_get_slots or self.slots.in_service):
                return
            self.changed.clear()                # before the claim, to miss no event during it
            pause = await self._start_next_job()  # seconds; None: until `changed`
            if pause == 0:
                await asyncio.sleep(0)          # for signals and the job just started
                continue
            # wait_for() would make a task for each job of a client, before Python 3.12
            timer = self.loop.call_later(pause, self.changed.set) if pause else None
            await self.changed.wait()
            if timer:
                timer.cancel()

    async def _start_next_job(self) -> float | None:
        """Start the next run of a GROWING job; without one, claim and start a job.

        Return the seconds until the next attempt; None: wait for `changed`.
        """
        if self.pump.backlog > self.MAX_BACKLOG_BYTES:          # job output is written too slowly
            return 1.0
        if len(self.tasks) > self.slots.in_service < len(self._tasks_in(Phase.SETTLING)):
            return None                         # results are written too slowly
        # no other job may take the memory that this one waits for
        if self.has_growing and (growing := self._tasks_in(Phase.GROWING)):
            return 0.0 if growing[0].restart_if_memory_is_free(self._free_resources()) else None
        if not self.slots.idle:
            return None
        if self.capacity.slots != self.slots.in_service:
            self.capacity = Resources(self.slots.in_service, self.memory)
        free = self._free_resources()
        delay = self.next_start_at - time.monotonic()
        if delay > 0:
            free = free._replace(slots=0)       # claims nothing, but finds out if this runner can exit
        claimed = await self.jobs.claim(not self.tasks, free, self.capacity)
        if isinstance(claimed, NoJob):
            if claimed.final_error:
                self.fail(claimed.final_error)
            elif claimed.may_exit and not self.tasks:
                self._why_jobs_left = claimed.why_left
                # otherwise the count can leave out jobs that need more slots
                if self.capacity == self.full_capacity:
                    self.exit_summary = claimed.summary
                self.drain()
            waits = self.jobs.poll, claimed.retry_after, delay if delay > 0 else None
            return min(seconds for seconds in waits if seconds is not None)
        return await self._start_claimed_job(claimed)

    async def _start_claimed_job(self, job: Job) -> float | None:
        """Start a job, or release it if too few slots are idle, or the runner drains.

        Return as _start_next_job().
        """
        slots = self.slots.take(job.settings.needs.slots)
        task = self.tasks[job] = JobTask(self, job, slots)
        # during the claim, slots can have gone out of service, or a signal come
        if len(slots) < job.settings.needs.slots or not self.admit_or_drain(task):
            self.slots.give_back(slots)
            await task.write_final_state()
            del self.tasks[job]
            return 0.0
        if why := why_misread(job.command, job.settings.shell):
            self._say_once(why, f"line {job.number}: {why}")
        if self.read_median is no_median and (task.timeout or 0.0) < 0:
            self._say_once("timeout", f"line {job.number}: no timeout: without records there is no median")
        if not job.bring:           # otherwise _run_to_end() does, for files can travel for long
            await task.start()      # --delay, or an error that passes, holds up all later claims
        if job.gated or not task.shell:         # otherwise once the shell has exited
            self.follow(task)
        return 0.0 if self.slots.idle else None

    def admit_or_drain(self, task: JobTask) -> bool:
        """Return True if the runner can start this job; False: it drains, from now on if wall time lacks."""
        timeout = task.timeout or 0.0           # one in percent is negative, so it always fits
        seconds_left = self.wall_end - self.loop.time()
        if timeout > seconds_left and not self.exit_step:
            if seconds_left > 0:                # otherwise _watch_wall_time() reports that it is over
                walltime, hint = self.options.walltime, ""
                # with --walltime auto the next Slurm job can have more time
                if isinstance(walltime, float) and timeout >= walltime:
                    hint = " (it never fits: give --walltime more)"
                self.say(
                    f"line {task.job.number}: the timeout is {human_time(timeout)}, and the wall time is "
                    f"over in {human_time(seconds_left)}: starting no more jobs{hint}"
                )
            self.is_out_of_time = True
            self.drain(ExitStep.EARLY)
        return not self.exit_step

    # -- finished jobs ---------------------------------------------------------------------------------------

    def _end_jobs(self) -> None:
        """Follow the jobs whose shells have exited, each in a turn of the loop: one can have a defect.

        Those that another reap() has collected come here at their SIGCHLD.
        """
        if self.exited:
            task = self.exited.popleft()
            if self.exited:
                self.loop.call_soon(self._end_jobs)
            self.follow(task)

    def follow(self, task: JobTask) -> None:
        """Begin to run a job to its end, unless that was begun; mostly its shell has exited."""
        if not task.is_followed:
            task.is_followed = True
            if job_run := begin(self._run_to_end(task)):
                self.add_job_run(job_run)

    def add_job_run(self, job_run: asyncio.Future[Any]) -> None:
        self._job_runs.add(job_run)
        job_run.add_done_callback(self._on_job_run_done)

    def _on_job_run_done(self, job_run: asyncio.Future[Any]) -> None:
        self._job_runs.discard(job_run)
        self.changed.set()                      # also after a defect, or once it was cancelled

    async def _run_to_end(self, task: JobTask) -> None:
        """Run a job until it is settled, count it, and release the slots (not after a defect)."""
        if task.job.bring:
            await task.start()
        await task.run_until_settled()
        if task.has_result:
            if task.cause != "lost":            # otherwise the other runner counts it
                self.runner_stats.add_result(task.job, task.state)
            if not self.exit_step and (
                    why := self.runner_stats.find_too_many_failures(self.options.max_failed)):
                self._report_and_drain(why)
            slot = task.slots[0]
            ends = self.slots.add_end(slot, self._describe_broken_end(task))
            if ends:
                command = display_text(task.job.command)[:self.MAX_NAMED_COMMAND]
                self.say(
                    f"slot {slot}: {plural(len(ends), 'job')} in a row ended with "
                    f"{' or '.join(dict.fromkeys(ends))}; it is out of service (the last: on "
                    f"{display_text(self.host)} in {os.readlink('/proc/self/cwd')}: {command})"
                )
        self.slots.give_back(task.slots, was_used=task.has_result)
        self.changed.set()
        del self.tasks[task.job]

    def on_failed_start(self, job: Job, host_error: OSError) -> bool:
        """Start no job for a while, or after some errors no more.  Return True if this one can pass."""
        self._say_once(f"start {host_error.errno}",
                       f"line {job.number}: cannot be started here: {host_error.strerror}")
        if host_error.errno in self.BUSY_ERRORS:
            self.next_start_at = self.loop.time() + self.BUSY_SECONDS
            return True
        self.failed_starts += 1
        if self.failed_starts == (self.options.slot_errors or 3):
            self.runner_stats.had_errors = True
            starts = plural(self.failed_starts, "start")
            self._report_and_drain(f"{starts} in a row failed ({host_error.strerror})")
        return False

    def _describe_broken_end(self, task: JobTask) -> str:
        """Return for example '127 within a second' if the job probably could not run there; else ''."""
        result = task.run_result
        if not (result and result.status) or result.cause:      # not run, done, or killed
            return ""
        if result.code in self.BROKEN_STATUSES and task.run.duration < self.MAX_BROKEN_SECONDS:
            return f"{result.code} within a second"
        runner = self.options.runner or ""
        if result.code != self.SSH_FAILED or not ssh_words(runner):
            return ""
        return "255 from ssh" + " (a shared connection? use ssh -S none)" * ("-S none" not in runner)


def ssh_words(runner: str) -> list[str]:
    """Return the words of a --runner that are ssh, or a path to it."""
    return list(filter(re.compile("([^=]*/)?ssh").fullmatch, shlex.split(runner)))


def wrap_in_runner(runner: bytes, shell: str, command: bytes) -> bytes:
    """Return the command that makes `runner` run a job, for example `nice -n 19 /bin/sh -c 'echo 1'`."""
    # a blank, or the shell takes a job that begins with - or + for an option
    words = [os.fsencode(shell), b"-c", b" " + command if command[:1] in (b"-", b"+") else command]
    # by the local shell, and after each ssh, which joins arguments to one string for another shell
    for _ in range(1 + len(ssh_words(os.fsdecode(runner)))):
        words = list(map(quote, words))
    return b" ".join([runner, *words])


# ======== Background ========================================================================================
#
# With -d the program forks twice and leaves the session, so no terminal can send SIGHUP.


def open_descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd")]


def redirect_to_null(fds: Iterable[int] = (0, 1, 2)) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in fds:
        os.dup2(null, fd)


def go_into_background() -> int:
    """Leave terminal and session (daemon(7)), but not the directory; return the descriptor for detach().

    The original process waits for detach(), or the exit of a session leader (ssh -t) would send us SIGHUP; if
    we exit before, it exits with status 2.  Raises UsageError.
    """
    read_fd, ready_fd = os.pipe()
    # a child does not inherit pending signals
    pending_signals = signal.sigpending()
    if fork_quietly():
        os.close(ready_fd)
        os._exit(0 if os.read(read_fd, 1) else 2)
    os.close(read_fd)
    os.setsid()
    # a process that leads no session cannot get a terminal again by opening one
    if fork_quietly():
        os._exit(0)
    for number in pending_signals:
        os.kill(os.getpid(), number)
    return ready_fd


def detach(ready_fd: int) -> None:
    """Redirect descriptors 0 to 2 to /dev/null, except regular files; the original process exits with 0."""
    # from a terminal, or a pipe whose reader waits for EOF
    redirect_to_null(itertools.filterfalse(is_regular, (0, 1, 2)))
    os.write(ready_fd, b"+")
    os.close(ready_fd)


def open_pid_file(path: str) -> int:
    """Open or create the pid file, and lock it while the returned descriptor is open.  Raises UsageError.

    A file that holds more than a number is refused: ours will overwrite it.
    """
    fd = open_or_create_output(path, os.O_RDWR | os.O_NOFOLLOW)
    head = read_head(fd, path, 32)
    if not re.fullmatch(rb"[0-9]{0,19}\s{0,8}", head):
        raise UsageError(f"{path}: is not a pid file: it holds more than a number (give another name)")
    with suppress(OSError):      # on a file system without locks this cannot be checked
        if not lock(fd, 0):
            raise UsageError(f"{path}: is the pid file of process {display_text(head.strip())}, which lives "
                             "(stop it, or give another name)")
    return fd


@contextmanager
def set_up_process(options: Namespace, say: Say) -> Iterator[None]:
    """Do what -d, --pidfile and --errors ask for; at the end remove the pid file.  Raises UsageError.

    It forks, so no other thread may run yet.  STOP_SIGNALS remain blocked until Signals.dispatch().
    """
    errors_fd = pid_fd = ready_fd = None
    # while errors still reach the terminal and the caller
    if options.errors:
        errors_fd = open_or_create_output(options.errors, os.O_WRONLY | os.O_APPEND)
    if options.pidfile:
        pid_fd = open_pid_file(options.pidfile)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if options.daemon:
        ready_fd = go_into_background()
    pid = os.getpid()                   # of the process in the background
    if pid_fd is not None:
        with refused_as(options.pidfile, " (the process number must be written)"):
            os.ftruncate(pid_fd, 0)
            write_all(pid_fd, b"%d\n" % pid)
    if ready_fd is not None and not getattr(options, "quiet", False):       # a server has no -q
        destination = "nowhere (see --errors)"
        if options.errors:
            destination = f"to {options.errors}"
        elif is_regular(2):
            destination = "where stderr goes"
        say(f"process {pid} (kill {pid} stops it, kill -USR1 {pid} lets running jobs finish); messages go "
            f"{destination}")
    if errors_fd is not None:
        os.dup2(errors_fd, 2)           # not earlier: messages of the start go to the original stderr
    if ready_fd is not None:
        detach(ready_fd)
    try:
        yield
    finally:
        if pid_fd is not None:
            with suppress(OSError):
                with open(os.open(options.pidfile, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK),
                          "rb") as file:
                    is_ours = file.read(20) == b"%d\n" % pid
                if is_ours:             # otherwise another process has replaced our id
                    os.unlink(options.pidfile)


def fork_quietly() -> int:
    """Fork without Python's warning: the child needs no lock of a thread.  Raises UsageError."""
    with warnings.catch_warnings(), refused_as("fork", TOO_MANY_PROCESSES):
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def exit_without_waiting(exit_status: int) -> None:
    """Exit although a thread waits for a file system that does not answer.

    Python's exit would wait for the thread, the kernel's for the last close of a locked file on NFS.  So a
    child keeps all descriptors open, and waits in our place.
    """
    parent = os.getpid()
    if fork_quietly() == 0:
        os.setsid()
        redirect_to_null()
        while os.getppid() == parent:
            time.sleep(0.02)
        os._exit(0)
    os._exit(exit_status)


# ======== Command line ======================================================================================
#
# make_parser() knows the options.  App checks what can be checked before any job starts, and makes the parts.

PROG = "runmaker4.py"
AddArgument = Callable[..., Any]        # the type of an argument group's add_argument()


def check_runner_command(text: str) -> str:
    """Check an option value: a command that runs another, for example 'nice -n 19'."""
    try:
        words = shlex.split(text)
    except ValueError:                      # an open quote
        words = []
    options_at_end = itertools.takewhile(lambda word: word.startswith("-"), reversed(words))
    if any(re.fullmatch("-[a-zA-Z]*c[a-zA-Z]*", option) for option in options_at_end):
        # `bash -c /bin/sh -c JOB` runs /bin/sh without a command: status 0
        raise ArgumentTypeError(
            f"'{printable(text)}' ends in -c, and `/bin/sh -c JOB` comes after that, so no job would run "
            "(for bash write #RUN shell=bash above the jobs; after a program that is no shell write env)"
        )
    # it becomes a part of the job's command, which is one line without a NUL
    if words and not re.search(r"[\0\n]", text):
        return text
    raise ArgumentTypeError(f"not a command: '{printable(text)}' (such as 'nice -n 19')")


def check_not_empty(text: str) -> str:
    """Check that an option value is not empty, as "$UNSET" would be."""
    if not text:
        raise ArgumentTypeError("is empty (give a value)")
    return text


def check_output_path(text: str) -> str:
    """Check an option value: an output file, but no lock file, which all programs would then refuse.

    Return it with the home directory for a ~, which the shell leaves in `--outdir=~/out`.
    """
    if text == "-":
        raise ArgumentTypeError("a file is required ('./-' if that is its name)")
    text = os.path.expanduser(check_not_empty(text))
    for path in text, os.path.realpath(text):       # the target of a symbolic link
        if match := LOCK_FILE.fullmatch(os.path.basename(path)):
            raise ArgumentTypeError(
                f"'{printable(text)}' is the lock file of {printable(match[1])} (give another name)"
            )
    return text


def check_job_file_path(text: str) -> str:
    if match := LOCK_FILE.fullmatch(os.path.basename(check_not_empty(text))):
        raise ArgumentTypeError(
            f"'{printable(text)}' is not a job file, but the lock file of {printable(match[1])}"
        )
    return text


def check_slot_names(text: str) -> str:
    """Check an option value: names such as 'a,b', or @ and a file."""
    if not all(map(str.strip, text.split(","))) or re.search(r"^@$|\n|(?:^|,)\d+(?:-|\.\.)\d", text):
        raise ArgumentTypeError(f"not a list of names: '{printable(text)}' (A,B,... or 0,1,2,3 or @FILE)")
    return text


# Parts of the help of runner and client
SIGNALS = "INT, TERM, USR2, XCPU kill jobs (e); HUP, USR1, QUIT start no more."
JOB_VARIABLES = ("of a job: JOB_ID, RUNMAKER4_LINE, RUNMAKER4_SLOT, SLAVE_IP (slot), RUNMAKER4_SLOTS (all), "
                 "RUNMAKER4_MEMORY, RUNMAKER4_JOB")


def add_running_options(add: AddArgument) -> None:
    # of runner and client
    add("-j", "--jobs", type=integer_between(0, 100_000, " (0: one per CPU)"), metavar="N",
        help="run N jobs at once, 0: one per CPU of this process")
    add("-r", "--retry", action="store_true", help="as --resume; also run failed jobs (!) again")
    add("--resume", action="store_true", help="run jobs in error (e) or without a runner again")
    add(
        "--retries",
        type=integer_between(0),
        default=0,
        metavar="N",
        help="run a failing job up to N more times, at once",
    )
    add("--runner", type=check_runner_command, metavar="CMD",
        help="run `CMD /bin/sh -c JOB`: nice -n 19, ssh \"$SLAVE_IP\"")
    add("-1", "--one-only", action="store_true", help="run no more than one job per slot, then exit")
    add(
        "--slots",
        type=check_slot_names,
        metavar="A,B",
        help="instead of -j: a slot per name (@FILE: one a line)",
    )
    add("--memory", type=memory_size, metavar="SIZE", help="memory for jobs with memory= (60G) [all]")


def add_limit_options(add: AddArgument) -> None:
    # of runner and client
    add("--timeout", type=time_limit, metavar="T", help="kill a job after T: ! (5m, 2h; 300%% of the median)")
    add(
        "--walltime",
        type=lambda text: AUTO if text == AUTO else duration(text),
        metavar="T",
        help="kill the jobs and exit after T (auto: before Slurm)",
    )
    add(
        "--hire",
        type=check_not_empty,
        metavar="CMD",
        help="start a successor by CMD when --walltime is over",
    )
    add(
        "--kill-after",
        type=duration,
        default=GRACE,
        metavar="T",
        help="time from TERM to KILL, when jobs are killed [10s]",
    )
    add("--delay", type=duration, metavar="T", help="start jobs, and tries of --retries, at least T apart")
    add(
        "--slot-errors",
        type=integer_between(0),
        default=3,
        metavar="N",
        help="retire a slot after N times 126, 127 or ssh's 255 [3]",
    )
    add_max_failed_option(add)


def add_max_failed_option(add: AddArgument) -> None:
    add("--max-failed", type=integer_between(1), default=0, metavar="N",
        help="start no more once N of its own jobs failed (!, e)")


def add_record_options(add: AddArgument) -> None:
    # of runner and server
    add("--outdir", type=check_output_path, metavar="DIR",
        help="journal, and output in DIR/LINE.out, .err [FILE.out]")
    add("--no-records", action="store_true", help="keep no journal and no output")
    add(
        "--joblog",
        type=check_output_path,
        metavar="FILE",
        help="one line per run of a job, in GNU parallel's format",
    )
    add("-l", "--logfile", type=check_output_path, metavar="FILE",
        help="the last lines of every job; shared by all hosts")
    add(
        "-n",
        "--loglines",
        type=integer_between(1, 10_000),
        default=3,
        metavar="N",
        help="lines of output per record [3]",
    )


def add_verbosity_options(add: AddArgument) -> None:
    add("-q", "--quiet", action="store_true", help="print only errors and the closing line")
    add("--plain", action="store_true", help="print job output only, one job after the other")
    add("-k", "--keep-order", action="store_true", help="with --plain: in the order of starts")


def add_background_options(add: AddArgument) -> None:
    add("-d", "--daemon", action="store_true", help="go into the background (start errors come first)")
    add("--pidfile", type=check_output_path, metavar="FILE", help="write the process ID to FILE")
    add("--errors", type=check_output_path, metavar="FILE", help="append messages, with times, to FILE")


def add_general_options(parser: Parser) -> None:
    add = parser.add_argument_group("general").add_argument
    add("--version", action="version", version=f"%(prog)s {VERSION}", help="print the version")
    add("-h", "--help", action="help", help="print this help")


def make_parser() -> Parser:
    parser = Parser(
        PROG,
        purpose="Run the jobs of a text file on any number of hosts.  A job is a line '. COMMAND'; the dot "
                "becomes r (running), then d (done), ! (failed) or e (error).",
        usage="[options] FILE",
        examples="Run the jobs in runs.txt, four at a time (the same on any other host):\n"
                 f"    {PROG} -j4 runs.txt",
        notes={"Signals": SIGNALS, "Variables": f"{JOB_VARIABLES}; the runner: NO_COLOR."},
        statuses={
            "0": "nothing in the file is !, e, r without a runner, or left for this one",
            "1": "a job is; a line is no job; output, records or results are not written",
            "2": "bad usage, or the file cannot be used",
            "130, 143": "ended by a signal",
        },
    )
    add = parser.add_argument_group("which jobs, and how many").add_argument
    add("file", metavar="FILE", type=check_job_file_path, help="the job file")
    add_running_options(add)
    add("--follow", action="store_true", help="wait for more jobs, also for a file to be made")
    add("--dry-run", action="store_true", help="print which jobs would run, and change nothing")
    add = parser.add_argument_group("background and hosts").add_argument
    add_background_options(add)
    add("--name", type=check_not_empty, metavar="NAME",
        help="this host's name (messages, host=) [the node name]")
    add("--single-host", action="store_true", help="no other host uses the file: any file system will do")
    add_limit_options(parser.add_argument_group("limits").add_argument)
    add = parser.add_argument_group("output and records").add_argument
    add_verbosity_options(add)
    add_record_options(add)
    add_general_options(parser)
    return parser


def as_argument(path: str) -> str:
    """Return a path that no program takes for an option: ./-x for -x."""
    return f"./{path}" if path.startswith("-") else path


def refuse_as_output(path: str) -> None:
    """Raise UsageError if a job file is our stdout or stderr: job output would become jobs."""
    for fd, name in (1, "stdout"), (2, "stderr"):
        with suppress(OSError):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                raise UsageError(
                    f"{path}: {name} goes to this file, and output would become jobs (give another file)"
                )


class Program:
    """The common part of runner, server and client."""
    MAX_MESSAGES_OF_A_KIND = 10
    MAX_CLOSING_SECONDS = 1.0           # for unfinished calls of the executor
    RENEWAL_SECONDS = 45.0              # a power cut has jobs of this time run again; each costs a sync
    GATHER_SECONDS = 2.0                # until the output and the records of a line that is `d` are written
    task: str                           # '-j8 on runs.txt', for the log of --errors
    loop: asyncio.AbstractEventLoop
    stdout: Writer
    stderr: Writer
    signals: Signals

    def __init__(self, prog: str, label: str, options: Namespace) -> None:
        """label: the job file, or the server, for messages."""
        if options.daemon and os.getpid() == 1:
            raise UsageError("-d: this is process 1 of a container, with which all others end (leave out -d)")
        self.prog = prog
        self.label = label
        self.options = options
        self._is_loop_running = False   # True: the attributes declared above exist
        self.executor = FileExecutor(False, self.on_writer_relieved)  # until open_record_files()
        self.runner_stats = RunnerStats()
        self._errors: set[str] = set()
        self.defects = 0
        try:
            self.directory = os.getcwdb()       # now; the directory can be removed later
        except OSError:
            raise UsageError("the current directory is gone (cd to one that exists)") from None

    def open_record_files(self, network: bool, presence_lock: PresenceLock,
                    *inputs: str) -> tuple[LogFile | None, OutDir | None, JobLog | None]:
        """Open the files for -l, --outdir and --joblog, and make the executor.  Raises UsageError.

        None: no -l or --joblog was given; for the output directory: --no-records was given, or there is no
        --outdir and FILE.out cannot be used, which is reported.
        presence_lock: tells readers of the journal if this process lives.  inputs: files that are read, which
        no record may overwrite.  network: calls for the job file, or a file of slots, can block.
        """
        options = self.options
        if options.no_records and options.outdir:
            raise UsageError("--no-records and --outdir exclude each other")
        outputs = options.logfile, options.joblog, options.errors, options.pidfile
        outdir_path = "" if options.no_records else options.outdir or default_outdir(options.file)
        uses = {os.path.join(os.path.realpath(outdir_path), "journal"): "the journal"} if outdir_path else {}
        for path in filter(None, inputs + outputs):
            real_path = os.path.realpath(path)
            if real_path in uses:
                raise UsageError(f"{path}: is also {uses[real_path]} (give another name)")
            uses[real_path] = "read" if path in inputs else "written by another option"
        record_paths = filter(None, (options.logfile, options.joblog, outdir_path))
        needs_thread = network or any(find_mount(path).network for path in record_paths)
        self.executor = FileExecutor(needs_thread, self.on_writer_relieved, self.say_without_label)
        on_error = partial(self.call_in_loop, self._on_error)
        logfile = outdir = joblog = None
        if options.logfile:
            logfile = LogFile(options.logfile, options.loglines, self.directory, self.executor, on_error)
        if outdir_path:
            outdir = self._open_outdir(outdir_path, on_error, presence_lock)
        if options.joblog:
            joblog = JobLog(options.joblog, self.executor, on_error)
        return logfile, outdir, joblog

    def _open_outdir(self, path: str, on_error: Say, presence_lock: PresenceLock) -> OutDir | None:
        """Open --outdir, or its default FILE.out; None: that failed, and the jobs run without records."""
        is_default = not self.options.outdir
        on_incomplete = partial(self.call_in_loop, self.runner_stats.incomplete.add)
        try:
            with suppress(OSError):             # OutDir() reports it
                if is_default:
                    self._share_default_outdir(path)
            return OutDir(path, self.executor, on_error, on_incomplete, presence_lock, self.directory,
                          is_default)
        except UsageError as error:
            if not is_default:
                raise
            self.runner_stats.had_errors = True
            self.say(f"{error}; the jobs run without records")
            return None

    def _share_default_outdir(self, path: str) -> None:
        """Make FILE.out, for all who may write to FILE.  Raises OSError; UsageError: it is not trusted."""
        os.makedirs(path, exist_ok=True)
        # Another user could read job output, or a link could lead us anywhere.  Until the job file exists,
        # trust only us and root, as for `/`
        status = os.lstat(path)
        file_status = stat_or_none(self.options.file)
        if not is_trusted_replacement(status, file_status or os.stat("/")):
            raise UsageError(f"{path}: belongs to {user_name(status.st_uid)} (give another --outdir)")
        if file_status:
            directory_fd = os.open(path, os.O_DIRECTORY)
            share_with_writers(directory_fd, file_status)
            os.close(directory_fd)

    def in_background(self) -> int:
        """Do the work of this program in an event loop, with -d in the background; return the exit status."""
        with set_up_process(self.options, self.say):
            # Jobs inherit no descriptors that we inherited, such as from `flock 9`
            for fd in open_descriptors():
                if fd > 2:
                    with suppress(OSError):          # the descriptor that listed them is closed
                        os.set_inheritable(fd, False)
            # as asyncio.run(), but do not wait for a name resolver that hangs
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
            gc.freeze()                         # a collection need not look at our code
            gc.enable()
            try:
                exit_status = self.loop.run_until_complete(self._run_in_event_loop())
            finally:
                tasks = asyncio.all_tasks(self.loop)
                for task in tasks:
                    task.cancel()
                if tasks:
                    self.loop.run_until_complete(asyncio.wait(tasks))
                self.loop.close()
        if self.executor.pending:
            exit_without_waiting(exit_status)
        return exit_status

    # -- power cuts ------------------------------------------------------------------------------------------

    # Exits with 8 or 9 if sync(1) reports lost writes; usage (before coreutils 8.24: no -f) is no such report
    SYNC_SCRIPT = """n=7
for path in {} {}; do
    n=$((n + 1))
    said=$(LC_ALL=C sync -f -- "$path" 2>&1) && failed= || case $said in
    "" | "sync: "[iuU]*" option"* | *"not found" | *"No such file or directory" | *"Permission denied")
        failed=1 ;;
    *)  exit "$n" ;;
    esac
done
[ -z "$failed" ] || exec sync"""

    async def _sync(self, file: JobFile, processes: Processes) -> bool:
        """Bring the file systems of records and job file to disk; return whether that succeeded."""
        paths = {8: self.options.outdir or default_outdir(self.options.file), 9: self.options.file}
        # in a process of its own, as it can take long, or hang
        script = os.fsencode(self.SYNC_SCRIPT.format(*map(shlex.quote, paths.values())))
        exited = 1
        with suppress(OSError):                 # no process can be started
            waited: asyncio.Future[int] = self.loop.create_future()
            processes.start(SHELL, script, {}, None, None, on_exit=waited.set_result)
            exited = await waited >> 8
        if exited in paths:
            await self.executor.call(file.doubt_mark)
            self._on_error(f"{paths[exited]}: writes to its disk were lost; lines that have ended since "
                           f"{time.ctime(file.safe_since)}, or end from now on, are in doubt (make space or "
                           "replace the disk, and start again with --resume)")
        return exited == 0

    async def keep_mark(self, file: JobFile, processes: Processes, exiting: asyncio.Event) -> None:
        """Now and then sync, and note in the mark which lines `d` are safe; at the exit, remove it."""
        while not await wait_for_event(exiting, self.RENEWAL_SECONDS):
            if checksums := await self.executor.call(file.note_done_lines):
                await wait_for_event(exiting, self.GATHER_SECONDS)
                if await self._sync(file, processes):
                    await self.executor.call(file.write_mark, checksums)
        if file.boot and file.was_written and await self._sync(file, processes):
            await self.executor.call(file.leave_mark)

    # -- messages --------------------------------------------------------------------------------------------

    def report_pending_records(self) -> None:
        if self.executor.pending:
            self.say("a file system does not answer, or records are locked (some can be missing)")

    async def _run_in_event_loop(self) -> int:
        """Set up what needs the event loop, and call connect_parts().  Return the exit status."""
        writer_class = Terminal if os.isatty(1) else Writer
        self.stdout = writer_class(1, self.loop, self._on_stdout_broken, self.on_writer_relieved)
        is_same_file = os.path.sameopenfile(1, 2)   # then one Writer keeps lines from mixing
        self.stderr = self.stdout
        if not is_same_file:
            stderr_class = MessageLog if self.options.errors else Writer
            self.stderr = stderr_class(2, self.loop, self._on_stderr_broken, self.on_writer_relieved)
            if isinstance(self.stderr, MessageLog):     # of a symbolic link, the target is rotated
                self.stderr.path = os.path.realpath(self.options.errors)
        for executor in self.executor, self.stdout.executor, self.stderr.executor:
            if executor.pool:
                start_thread(executor.pool)
        self.signals = Signals(self.loop)
        self._is_loop_running = True
        self.loop.set_exception_handler(self._end_after_defect)
        # Many runners can append to the file of --errors.  With --plain, which sets quiet, it gets job output
        if self.options.errors and not getattr(self.options, "quiet", False):       # a server has no -q
            self.say(f"process {os.getpid()}, {self.task}")
        try:
            # the closing line can be lost, too, and a sync comes after it
            return await self.connect_parts() or int(self.runner_stats.had_errors)
        except UsageError as error:                 # a server that came late has refused us
            self.say_without_label(str(error))
            return 2
        finally:
            await self.stderr.drain()
            # last in the loop: on Python 3.9 an answer to a closed loop causes a traceback
            await self.executor.flush(self.MAX_CLOSING_SECONDS)
            self.signals.ignore_from_now_on()

    async def connect_parts(self) -> int:
        """Connect the parts of this program, and let them work.  Return the exit status."""
        raise NotImplementedError

    def _end_after_defect(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report an unhandled exception (for the event loop), and shut down: a task is missing."""
        error = context.get("exception")
        # the loop also reports other problems, and exceptions of futures that no code awaits: these are known
        if error is None or "never retrieved" in context["message"]:
            return loop.default_exception_handler(context)
        import traceback
        self.defects += 1
        self.runner_stats.had_errors = True
        self.shut_down_after_defect()
        if self.defects <= self.MAX_MESSAGES_OF_A_KIND:
            self.say(f"a defect of {self.prog} ends it, please report this: {type(error).__name__}: {error}")
            self.stderr.write(
                os.fsencode("".join(traceback.format_exception(type(error), error, error.__traceback__)))
            )

    def shut_down_after_defect(self) -> None:
        """Shut down after a defect, without losing a job or result."""
        raise NotImplementedError

    def on_writer_relieved(self) -> None:
        """Resume held-back work if little is unwritten now; called after each write of a thread."""
        raise NotImplementedError

    def handle_signals(self, on_kill: Callable[[int], None], on_drain: Callable[[int], None]) -> None:
        """Make KILL_SIGNALS (INT, ...) call on_kill(number), DRAIN_SIGNALS (HUP, ...) on_drain(number)."""
        for handler, numbers in ((on_kill, KILL_SIGNALS), (on_drain, DRAIN_SIGNALS)):
            for number in numbers:
                if signal.getsignal(number) != signal.SIG_IGN:      # else ignored at the start (nohup)
                    self.signals.handle(number, partial(handler, number))
        self.signals.dispatch()             # blocked signals, before any job is started

    async def wait_until_printed(self, writer: Writer, is_hurried: Callable[[], bool]) -> None:
        """Wait until all is printed; once is_hurried(), as after a kill signal, two seconds at most."""
        writer.flush()
        while writer.executor.backlog and not is_hurried():
            await asyncio.sleep(0.05)
        await writer.drain()

    # -- messages --------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Print a line with the label on stderr, from any thread; before the loop runs, without a Writer."""
        line = f"{self.label}: {text}"
        if self._is_loop_running:
            self.say_without_label(line)
        else:
            warn(f"{self.prog}: {line}")

    def say_closing_line(self, summary: Summary | None, seconds: float, retry: str) -> None:
        """Print the closing line, and the command that shows why not all is well."""
        options = self.options
        self.say(self.runner_stats.closing_line(summary, seconds, retry))
        if not summary or getattr(options, "no_records", True):     # a client keeps none
            return
        # left without a runner
        runs_alone = summary.jobs_left and not (summary.counts.new or self.runner_stats.unwritten_lines)
        view = "--failed" if summary.counts.bad else "--status" * runs_alone
        if view:
            outdir_option = ["--outdir", as_argument(options.outdir)] if options.outdir else []
            command = shlex.join(["runwait4.py", view, *outdir_option, as_argument(options.file)])
            self.stderr.write(os.fsencode(f"next: {printable(command)}\n"))

    def call_in_loop(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function in the event loop's thread, the main one: at once, or soon from another thread."""
        import threading
        if threading.current_thread() is threading.main_thread():
            function(*args)
        else:
            self.loop.call_soon_threadsafe(function, *args)

    def _on_error(self, text: str) -> None:
        """Record that output or records were lost, and report each reason once, and only a few."""
        self.runner_stats.had_errors = True
        if text not in self._errors and len(self._errors) < self.MAX_MESSAGES_OF_A_KIND:
            self._errors.add(text)
            self.say_without_label(text + " (more such messages are left out)" * (
                len(self._errors) == self.MAX_MESSAGES_OF_A_KIND))

    def say_without_label(self, text: str) -> None:
        self.call_in_loop(self.stderr.write, os.fsencode(printable(f"{self.prog}: {text}") + "\n"))

    def _on_stderr_broken(self, error: OSError) -> None:
        """Record that a file lacks messages; a reader that has exited misses nothing."""
        self.runner_stats.had_errors |= is_regular(2)

    def _on_stdout_broken(self, error: OSError) -> None:
        self.say(f"stdout: {error_text(error)}; the jobs go on, but job output is no longer shown")
        # no error: the reader has exited
        has_no_reader = error.errno == errno.EPIPE or (error.errno == errno.EIO and self.stdout.terminal)
        self.runner_stats.had_errors |= not has_no_reader


# Between the end of the jobs (with --kill-after of the last SIGKILL) and that of the runner's Slurm job.
SLURM_MARGIN_SECONDS = 30.0


class RunnerProgram(Program):
    """The common part of runmaker4.py and runmaker4-client.py."""
    MAX_HIRE_SECONDS = 15       # a part of SLURM_MARGIN_SECONDS

    def __init__(self, prog: str, label: str, options: Namespace) -> None:
        # check the options that runner and client share.  Raises UsageError
        super().__init__(prog, label, options)
        self.slot_file: SlotFile | None = None  # None: no --slots @FILE
        if options.slots:
            if options.jobs is not None:
                raise UsageError("give only one of -j and --slots")
            self.slots: Sequence[str] = [name.strip() for name in options.slots.split(",")]
            if options.slots.startswith("@"):
                self.slot_file = SlotFile(options.slots[1:])
                self.slots = self.slot_file.names
        else:
            count = 1 if options.jobs is None else options.jobs or available_cpus()
            self.slots = [str(number) for number in range(1, count + 1)]
        self.task = f"-j{len(self.slots)} on {label}"
        self.memory = options.memory or available_memory()  # bytes, for all running jobs together
        self.host = os.fsencode(options.name or os.uname().nodename)
        # states of lines to run again; `r`: orphans (Consumer.retry)
        self.retry = FAILED + ERROR + RUNNING if options.retry else ERROR + RUNNING if options.resume else b""
        if options.keep_order and not options.plain:
            raise UsageError("-k requires --plain")
        if options.hire:
            if options.walltime is None:        # it would never hire a successor
                raise UsageError("--hire requires --walltime (--walltime auto in Slurm)")
            tasks = positive_number("SLURM_STEP_NUM_TASKS")        # on all nodes (srun(1))
            if is_slurm_step() and 1 < tasks < inf:
                raise UsageError(f"--hire: each of the {tasks} tasks of this step would hire (use an array)")
            # set by _hire_successor() for its sbatch; that of a job would submit an array
            os.environ.pop("SBATCH_ARRAY_INX", None)
        if options.daemon and options.plain:
            raise UsageError("--plain prints to stdout, and -d has none (see runwait4.py --show)")
        options.quiet |= options.plain          # --plain prints no more messages than -q
        os.environ.pop("ZSH_VERSION", None)     # by which SHELL_SCRIPT knows zsh
        if "SHELLOPTS" in os.environ:           # with `noexec` bash would run no job, and exit with 0
            os.environ["SHELLOPTS"] = os.environ["SHELLOPTS"].replace("noexec", "hashall")

    def seconds_left(self) -> float | None:
        """Return the seconds until --walltime kills all jobs; None or inf: no limit.  Raises UsageError."""
        walltime: float | str | None = self.options.walltime
        if not isinstance(walltime, str):
            return walltime
        text = os.environ.get("SLURM_JOB_END_TIME", "")
        if not re.fullmatch("NONE|[1-9][0-9]{8,10}", text):     # squeue prints NONE for no limit
            problem = f"is not a time: '{printable(text)}'" if text else "is not set"
            raise UsageError(
                f"--walltime auto: SLURM_JOB_END_TIME {problem} (give a time, such as --walltime 2h; or see "
                "docs/clusters.md#slurm)"
            )
        kill_time = inf if text == "NONE" else float(text)
        return kill_time - SLURM_MARGIN_SECONDS - (self.options.kill_after or 0.0) - time.time()

    def report_if_no_slurm_time_left(self) -> None:
        """With --walltime auto, report at the start if no time is left: the runner then starts no job."""
        seconds = self.seconds_left()
        if self.options.walltime == AUTO and seconds is not None and seconds <= 0:
            margin = human_time(SLURM_MARGIN_SECONDS + (self.options.kill_after or 0.0))
            self.say(f"Slurm ends this job within the margin of {margin}: no job is started")

    def console_sinks(self, file: JobReader | None, with_output: bool, is_recorded: bool) -> list[Sink]:
        """Return the sinks that print results and output.  file: None: the server has the job file.

        is_recorded: an output directory has all job output, so a slow terminal may miss some.  with_output:
        False: -l has it.
        """
        options, is_dumb = self.options, os.environ.get("TERM") in (None, "", "dumb")
        if options.plain:
            return [Plain({b"stdout": self.stdout, b"stderr": self.stderr}, options.keep_order,
                          self._on_error)]
        if options.quiet or options.daemon:
            return []
        if isinstance(self.stdout, Terminal):
            colour = not os.environ.get("NO_COLOR") and not is_dumb
            bar = None if is_dumb else ProgressBar(self.loop.time)
            file_counter = FileCounter(file, self.executor) if file and bar else None
            return [TerminalConsole(self.stdout, with_output, file_counter, bar, colour, is_recorded)]
        return [Console(self.stdout, with_output)]

    def make_runner(self, jobs: Jobs, sinks: list[Sink], files: Backlogged) -> Runner:
        """Make the runner and install signal handlers.  files: if it is far behind, no job output is read."""
        options = self.options
        self.runner = runner = Runner(
            jobs, Processes(self.loop, self.signals, options.kill_after), sinks,
            (self.stdout, self.stderr, files), self.host, options, self.say, self.runner_stats, self.slots,
            self.slot_file, self.executor, self.memory, self.seconds_left())
        # last: signals that waited are handled at once, by this runner
        self.handle_signals(runner.on_kill_signal, runner.on_drain_signal)
        return runner

    def on_writer_relieved(self) -> None:
        self.runner.pump.resume()

    def shut_down_after_defect(self) -> None:
        """Start no more jobs; running jobs can finish and results are written."""
        self.runner.drain()

    async def run_and_report(self, jobs: Jobs) -> int:
        """Run the jobs, print the output and the closing line, and return the exit status."""
        runner = self.runner
        if self.stderr.terminal and not self.options.quiet:
            self.say("Ctrl-C kills the jobs; Ctrl-\\ starts no more")
            if self.options.jobs is None and not self.options.slots and not self.options.one_only:
                self.say("one job at a time (-j0: one per CPU)")
        await runner.run()
        # sinks post or print what they have gathered; flush() below waits for the posts
        for sink in runner.sinks:
            sink.on_exit()
        summary = await jobs.summarize(runner)
        await runner.wait_unless_killed(self.executor.flush())
        self.report_pending_records()
        await self.wait_until_printed(self.stdout, lambda: runner.kill_signal != 0)
        seconds = self.loop.time() - runner.began
        exit_status = self.runner_stats.exit_status(summary)
        if runner.kill_signal:
            exit_status = 128 + runner.kill_signal
        is_all_done = not exit_status and summary is not None and not summary.counts.new
        if not (self.options.plain and is_all_done):        # --plain: only output, if all is well
            self.say_closing_line(
                summary, seconds, retry="--resume runs interrupted jobs"
                if runner.is_out_of_time and self.runner_stats.results[ERROR] else "-r runs them")
        if self.options.hire and summary:
            # before what the command prints
            await self.stderr.drain()
            await self._hire_successor(summary)
        await self.wait_until_printed(self.stderr, lambda: runner.kill_signal != 0)
        return exit_status

    async def _hire_successor(self, summary: Summary) -> None:
        """Run the command of --hire, for MAX_HIRE_SECONDS at most, if there is work for a successor.

        A runner that has finished no line hires none, so there are never more successors than lines, whatever
        the command does.  With -r a failed line does not count: each successor would run it again.
        """
        runner, stats = self.runner, self.runner_stats
        # with -r or --resume, a successor would also run our lines in error
        has_startable = summary.jobs_left and not summary.with_jobs     # these never start, or later
        has_lines_left = has_startable or (self.retry and stats.results[ERROR])
        if not (runner.is_out_of_time and has_lines_left) or runner.signals.received:
            return
        if not stats.results[DONE] and (self.options.retry or not stats.results[FAILED]):
            return self.say("--hire: this runner has finished no line, and hires no successor")
        command, environ = self.options.hire, dict(os.environb)
        if task := environ.get(b"SLURM_ARRAY_TASK_ID"):
            # of an array, sbatch submits only this task (it takes variables before `#SBATCH`: sbatch(1))
            environ[b"SBATCH_ARRAY_INX"] = task
        began = self.loop.time()
        while True:
            try:
                # like a job, so that it can be killed with all its processes, and none hires later
                exited = self.loop.create_future()
                hired = runner.processes.start(SHELL, os.fsencode(command), environ, 2, 2,
                                               on_exit=exited.set_result)
                break
            except OSError as error:            # such as too many processes
                if self.loop.time() - began > self.MAX_HIRE_SECONDS or runner.signals.received:
                    stats.had_errors = True
                    return self.say(f"--hire: cannot be started: {error_text(error)}: {command}")
                await asyncio.sleep(0.5)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(runner.wait_unless_killed(exited), self.MAX_HIRE_SECONDS)
        if hired.status is None:
            runner.processes.kills_at_once = True
            await runner.processes.kill_tree(hired, lambda pids: True)
            end = "a signal" if runner.kill_signal else f"{self.MAX_HIRE_SECONDS} s"
            self.say(f"--hire: killed after {end}: {command}")
        elif (status := os.waitstatus_to_exitcode(hired.status)) or not self.options.quiet:
            result = f"failed with exit status {status}" if status else "started a successor"
            self.say(f"--hire: {result}: {command}")


class App(RunnerProgram):
    def __init__(self, options: Namespace) -> None:
        # refuse what can be refused without opening records; --dry-run goes no further
        super().__init__(PROG, options.file, options)
        self.host = one_line(self.host)         # for records; a client refuses other names
        self.path = options.file
        self._mount = check_mount(self.path, options.single_host)
        self._presence_lock = PresenceLock(of_server=False)
        self._file = JobFile(self.path, say=self.say, mount=self._mount, presence_lock=self._presence_lock)
        self._consumer = Consumer(
            os.fsdecode(self.host), options.follow, self.retry, Resources(len(self.slots), self.memory),
            is_client=options.dry_run)
        # with --follow the file need not exist yet, but its directory, which records would make; the cursor
        # checks it later
        exists = (not (options.follow and os.path.isdir(os.path.dirname(self.path) or "."))
                  or os.path.lexists(self.path))
        if exists:
            os.close(open_job_file(self.path, os.O_RDONLY if options.dry_run else os.O_RDWR))
            refuse_as_output(self.path)
        if not options.dry_run:                 # it can create the lock file, and a dry run changes nothing
            check_lock_file(self._file)
        self._is_checked = exists and check_job_file(
            self.path, self._mount.network, self.say, options.dry_run)

    def check_and_open(self) -> None:
        """Raise the limit of descriptors, and open the files for records.  Raises UsageError."""
        # Of a job: the lock, and an end of each pipe, all twice while it starts; perhaps two files.  28: for
        # the program itself
        allow_descriptors(len(open_descriptors()) + 28 + len(self.slots) * 8)
        inputs, needs_thread = [self.path], self._mount.network
        if self.slot_file:
            inputs.append(self.slot_file.path)
            needs_thread |= self.slot_file.mount.network
        self._record_sinks = self.open_record_files(needs_thread, self._presence_lock, *inputs)
        _, outdir, _ = self._record_sinks
        if outdir and (elsewhere := outdir.journal.describe_other_directory(
                self.directory, self._file.real_folder)):
            self.say(f"the jobs run in \"{display_text(self.directory)}\"{elsewhere}")

    def print_dry_run(self) -> None:
        """Print the jobs that would run.  Raises UsageError, and BrokenPipeError if stdout has no reader."""
        file = JobReader(self.path, say=self.say, mount=self._mount)
        with refused_as(self.path):
            print_lines(map(bytes, dry_run(file, self._consumer,
                                           len(self.slots) if self.options.one_only else inf)))

    async def connect_parts(self) -> int:
        """Connect job file, outputs and runner, and run the jobs.  Return the exit status."""
        cursor = Cursor(
            JobQueue(self._file),
            [self._consumer],
            wait_for_file=self.options.follow,
            unchecked=not self._is_checked,
        )
        reader = JobReader(self.path, say=self.say, mount=self._mount)
        jobs = FileJobs(cursor, reader, self.executor, self._consumer)
        logfile_sink, outdir_sink, joblog_sink = self._record_sinks
        sinks = [*self.console_sinks(reader, not logfile_sink, is_recorded=outdir_sink is not None),
                 *filter(None, (logfile_sink, outdir_sink, joblog_sink))]
        runner = self.make_runner(jobs, sinks, self.executor)
        cursor.orphans.outdir = outdir_sink
        if self._file.real_folder != os.fsdecode(self.directory):
            runner.slots.first_broken = 0
        if outdir_sink:
            runner.read_median = outdir_sink.journal.median
        exiting = asyncio.Event()
        mark = spawn_task(self.keep_mark(self._file, runner.processes, exiting))
        exit_status = await self.run_and_report(jobs)
        exiting.set()                           # last: what was printed can be in files
        await runner.wait_unless_killed(mark, runner.MAX_RESULT_SECONDS)
        return exit_status


# From main() to the loop that starts the jobs, each calls the next (client and server begin in the same way):
#
#     main(), run_main()              standard descriptors, signals; a UsageError becomes one line
#     run_app()                       App() refuses options and files; check_and_open() all that can fail
#     Program.in_background()         -d, --pidfile and --errors; the event loop
#     Program._run_in_event_loop()    writers for stdout and stderr
#     App.connect_parts()             Cursor, JobQueue, sinks and Runner
#     RunnerProgram.run_and_report()  the closing line and the exit status, once run() has returned
#     Runner.run()                    what else goes on while jobs run, such as the check of their lines
#     Runner._start_jobs()            the loop; _start_next_job() claims, _start_claimed_job() starts a shell

def run_app(words: Sequence[str]) -> int:
    """Run the jobs, or print the jobs that would run (--dry-run).  Return the exit status."""
    app = App(make_parser().parse(words))
    app.report_if_no_slurm_time_left()
    if app.options.dry_run:
        if os.path.lexists(app.path):
            app.print_dry_run()
        return 0
    app.check_and_open()
    return app.in_background()


def main(argv: Sequence[str] | None = None) -> int:
    """Run runmaker4.py with these arguments (None: sys.argv)."""
    return run_main(PROG, run_app, argv)


if __name__ == "__main__":
    exit_now(main())


# ======== The wire ==========================================================================================
#
# The protocol between runmaker4-server.py (S) and runmaker4-client.py (C).  Both know the token,
# 128 random bits, which never crosses the wire.  TLS 1.3 (RFC 8446) starts only after the token is proved, so
# no bytes from an unauthenticated peer reach OpenSSL.
#
#      bytes                                       the receiver knows
#  1   S: {"runmaker4": V, "nonce": NS}            C: the version V: WIRE_VERSION
#  2   C: {"runmaker4": V, "nonce": NC,            S: C knows the token, and answers now, because NS is new
#          "proof": H("client")}
#  3   S: {"certificate": D, "file": F,            C: S knows the token, answers now, made the certificate D,
#          "proof": H("server")}                   and serves the file F
#      or {"error": "version"}, {"error": "token"}; then S closes the connection
#  4   both: the handshake of TLS 1.3              C: TLS ends at S, because only S has the key of D
#                                                  S: nothing, because TLS asks C for no certificate
#  5   C, in TLS: {"proof": H("confirmed")}        S: TLS ends at C, because C sends this proof only to the
#                                                  owner of D; C accepts the file F
#  6   both, in TLS: messages, each {"type": ...}, as runmaker4-server.py describes them
#
#     H(label) = HMAC-SHA256(token, text), in hexadecimal
#     text     = "runmaker4 " + WIRE_VERSION + " " + label + newline + NS + NC; from step 3 on also + D + F
#     NS, NC   = challenges: 128 random bits, 32 hexadecimal digits, new for each connection
#     D        = the SHA-256 of the certificate that S made when it started: 64 hexadecimal digits
#     F        = the file id, a hash of the job file's path: 32 hexadecimal digits
#     frame    = the length of the rest (4 bytes, big-endian), the JSON; before bytes of a file also a NUL
#
# A man in the middle without the token can relay steps 1 to 3, and then relay or terminate TLS.  If he relays
# TLS, he sees lengths and times, and can cut the connection.  If he terminates TLS, C finds a certificate
# other than D, and he has no proof for step 5.  If he leads C to another server of the same user, C
# recognizes that by F, unless both serve the same path.  Against a downgrade, each proof includes the
# version, and both ends refuse every TLS version but 1.3; against replay, two new challenges and a label for
# the step.  Who learns the token later cannot decrypt a recording: TLS 1.3 makes new keys for each
# connection.
#
# All parts of a text have fixed lengths, so different values never give the same text.  Bytes that are not
# UTF-8 travel as lone surrogates (PEP 383).  A length is checked before data of that length is stored.

if TYPE_CHECKING:
    import hashlib
    import hmac
    import json
    import secrets
    import ssl
else:
    hashlib = lazy_import("hashlib")
    hmac = lazy_import("hmac")
    json = lazy_import("json")
    secrets = lazy_import("secrets")

WIRE_VERSION = 15
PORT = 9998
MAX_EARLY_FRAME_BYTES = 1 << 10             # JSON, until the other end is authenticated
MAX_FRAME_BYTES = 1 << 20                   # JSON, from then on
# of output in a message (JSON can need six for each), which must be acknowledged before MAX_SILENT_SECONDS
MAX_PIECE_BYTES = 1 << 14
OUTPUT_WINDOW_BYTES = 1 << 18               # of output that a client sends before an acknowledgement
PING_SECONDS = 6.0                          # between two pings of a client; the server answers each
MAX_SILENT_SECONDS = 15.0       # without a byte; then each end takes the other for lost; also can_start_jobs
KEEPALIVE_SECONDS = 7                       # without a byte; then the kernel asks the other host
MAX_HANDSHAKE_SECONDS = 10.0                # until the other end must be authenticated
HEX_128_BITS = re.compile(r"[0-9a-f]{32}")  # a token
MAX_UNREAD_BYTES = 1 << 24                  # with more unread, the other end is dropped
MAX_INTEGER = 1 << 62                       # for lines, bytes, requests, ...
MAX_TEXT_CHARS = 1000                       # of another text, such as why jobs remain


class RefusedError(WireError):
    """The two ends do not match: the token, the version, or the file."""


class OtherFileError(RefusedError):
    """The server serves a file other than the client requires."""


def _parse_bounded_int(digits: str) -> int:
    if len(digits) > 19:        # for thousands of digits int() takes long
        raise ValueError("a huge number")
    return int(digits)


def _parse_finite_float(text: str) -> float:
    """Convert a number in JSON; raise ValueError for NaN and infinity."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number that is not finite")
    return number


@functools.cache
def _json_encoder() -> json.JSONEncoder:
    """Return an encoder: json.dumps() would make one for each message."""
    return json.JSONEncoder(separators=(",", ":"), check_circular=False)


@functools.cache
def _json_decoder() -> json.JSONDecoder:
    return json.JSONDecoder(parse_int=_parse_bounded_int, parse_float=_parse_finite_float,
                            parse_constant=_parse_finite_float)


def encode(message: Any) -> bytes:
    return _json_encoder().encode(message).encode("ascii")


def decode(frame: bytes | bytearray) -> Fields:
    """Return the message in a frame.  Raises WireError."""
    try:
        message = _json_decoder().decode(frame.decode("utf-8"))
    except (ValueError, RecursionError):        # no JSON, or nested too deeply
        raise WireError("invalid JSON") from None
    if not isinstance(message, dict):
        raise WireError("no message")
    return message


class Message(Fields):
    """A message, or an object in one, with getters that check a field: each raises WireError.

    So handlers read all fields before they change anything.
    """
    file_bytes: bytes | bytearray = b""     # of a file, which came behind the JSON

    def __init__(self, fields: Any) -> None:
        if not isinstance(fields, dict):
            raise WireError("not an object")
        super().__init__(fields)

    def _string(self, name: str, max_length: int) -> str:
        value = self.get(name)
        if not isinstance(value, str) or len(value) > max_length:
            raise WireError(f"{name}: invalid text")
        return value

    def text(self, name: str, max_length: int = MAX_TEXT_CHARS) -> str:
        """Return a text that each terminal, record and locale can take."""
        value = self._string(name, max_length)
        return value if value.isascii() and value.isprintable() else display_text(to_bytes(value))

    def data(self, name: str) -> bytes:
        return to_bytes(self._string(name, MAX_FRAME_BYTES))

    def job_line(self) -> Line:
        """Return the line of a job by `number` and `text`: offset and state are known to the server alone."""
        text = self.data("text")
        if text[:1] not in (b" ", b"\t") or b"\n" in text:
            raise WireError("text: no job")
        return Line(self.integer("number"), 0, NEW, text)

    def hexadecimal(self, name: str, digits: int = 32) -> str:
        value = self.text(name, digits)
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
            raise WireError(f"{name}: not {digits} hexadecimal digits")
        return value

    def integer(self, name: str, maximum: int = MAX_INTEGER, minimum: int = 0) -> int:
        value = self.get(name)
        # not isinstance(): True is an int
        if type(value) is not int or not minimum <= value <= maximum:
            raise WireError(f"{name}: not a valid whole number")
        return value

    def seconds(self, name: str) -> float:
        value: Any = self.get(name)
        if not is_time(value):
            raise WireError(f"{name}: not a valid time")
        return float(value)

    def boolean(self, name: str) -> bool:
        value = self.get(name)
        if not isinstance(value, bool):
            raise WireError(f"{name}: neither true nor false")
        return value

    def state_byte(self, name: str) -> bytes:
        """Return the state of a line: a printable byte, but not # or / (comments)."""
        value = self.data(name)
        if len(value) != 1 or value in b"#/" or not b"!" <= value <= b"~":
            raise WireError(f"{name}: no state")
        return value

    def retried_states(self) -> bytes:
        """Return the states of lines that a client runs again (Consumer.retry); b"": none."""
        value = self.data("retry")
        if value not in (b"", RUNNING, ERROR + RUNNING, FAILED + ERROR + RUNNING):
            raise WireError("retry: not valid states")
        return value

    def list_of(self, name: str, kind: type) -> list[Any]:
        """Return a list with items of type `kind`: str, dict, or int (0 to MAX_INTEGER)."""
        value = self.get(name)
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise WireError(f"{name}: not a valid list")
        if kind is int and not all(0 <= item <= MAX_INTEGER for item in value):
            raise WireError(f"{name}: not valid whole numbers")
        return value

    def objects(self, name: str) -> list[Message]:
        return [Message(item) for item in self.list_of(name, dict)]


# ---- TLS ---------------------------------------------------------------------------------------------------


def tls_context(server_side: bool) -> ssl.SSLContext:
    """Return a context for TLS 1.3 only, without certificate.  Raises UsageError if this Python has none.

    OpenSSL checks no certificate: ClientChannel compares its hash with the one that the server has proved.
    """
    try:
        import ssl
        has_tls13 = ssl.HAS_TLSv1_3
    except ImportError:
        has_tls13 = False
    if not has_tls13:
        raise UsageError("this Python has no TLS 1.3 (use one with OpenSSL 1.1.1 or later)")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    if server_side:
        context.num_tickets = 0  # no session is ever resumed
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Tls:
    """The encryption of a connection from step 4 on, without I/O."""
    MAX_RECORD_BYTES = 1 << 14          # without encryption (RFC 8446, 5.1)

    def __init__(self, context: ssl.SSLContext, server_side: bool) -> None:
        import ssl
        self._received = ssl.MemoryBIO()
        self._to_send = ssl.MemoryBIO()
        self._connection = context.wrap_bio(self._received, self._to_send, server_side)

    def decrypt(self, data: bytes) -> bytes:
        """Continue TLS's handshake, then decrypt; b"": more data must come first.  Raises WireError."""
        import ssl
        self._received.write(data)
        chunks: list[bytes] = []
        try:
            self._connection.do_handshake()             # does nothing once complete
            while self._received.pending:
                if not (chunk := self._connection.read(self.MAX_RECORD_BYTES)):
                    raise WireError("TLS was closed")   # our ends never do that
                chunks.append(chunk)
        except ssl.SSLWantReadError:                    # the next record is not complete
            pass
        except ssl.SSLError as error:
            raise WireError(f"TLS: {error.reason or error}") from None
        return b"".join(chunks)

    def encrypt(self, text: bytes) -> bytes:
        if text:
            self._connection.write(text)
        return self._to_send.read()

    def certificate_hash(self) -> str | None:
        """Return the SHA-256 of the other end's certificate; None: the TLS handshake is not complete."""
        if self._connection.version() is None:
            return None
        return hashlib.sha256(self._connection.getpeercert(True) or b"").hexdigest()


# ---- the two ends ------------------------------------------------------------------------------------------


class Channel:
    """One end of a connection, without I/O: converts bytes to messages, and messages to bytes."""
    LENGTH_PREFIX = struct.Struct(">I")
    REFUSALS = {"token": "wrong token", "version": "another version of the protocol"}

    def __init__(self, token: str, context: ssl.SSLContext) -> None:
        self._token = token.encode()
        self._context = context
        # True: the other end has proved that it knows the token, and that TLS ends there
        self.is_authenticated = False
        self.error: WireError | None = None         # why the connection is broken; None: it is not
        self._own_nonce = secrets.token_hex(16)     # our challenge: random, new for each connection
        # what a proof covers: both challenges; from step 3 on also certificate hash and file id
        self._proved_text = ""
        # None: nothing is encrypted yet; at the server: the client has not proved that it knows the token
        self.tls: Tls | None = None
        self._buffer = bytearray()                  # received and decrypted
        self._frames: list[bytes] = []              # to encrypt and send
        self._clear_text = b""                      # to send before these frames, not encrypted
        self._handshake = self._shake_hands()
        next(self._handshake)                       # to the first wait: a server now has a message to send

    def _shake_hands(self) -> Generator[None, None, None]:
        """Do steps 1 to 5; yield whenever more bytes from the other end are needed.  Raises WireError."""
        raise NotImplementedError

    def take_outgoing(self) -> bytes:
        """Return the bytes to write now; they are forgotten."""
        frames = b"".join(self._frames)
        data = self._clear_text + (self.tls.encrypt(frames) if self.tls else frames)
        self._clear_text = b""
        self._frames.clear()
        return data

    def send(self, message: Fields, file_bytes: bytes = b"") -> None:
        """Add a message to take_outgoing().  Raise ValueError if it is too long, or not is_authenticated."""
        body = (encode(message), b"\0", file_bytes) if file_bytes else (encode(message),)
        if not self.is_authenticated or sum(map(len, body)) > MAX_FRAME_BYTES:
            raise ValueError("a message too early, or too long")
        self._add_frame(*body)

    def receive(self, data: bytes) -> list[Message]:
        """Add received bytes, and return the messages that are now complete; none before the handshake is.

        After bytes that violate the protocol, raise WireError at each call; messages before these in `data`
        are lost.
        """
        if self.error:
            raise self.error
        messages: list[Message] = []
        try:
            self._buffer += self.tls.decrypt(data) if self.tls else data
            if not self.is_authenticated:
                try:
                    next(self._handshake)
                    return messages             # the handshake needs more bytes
                except StopIteration:           # it is complete
                    self.is_authenticated = True
            while (message := self._pop_message()) is not None:
                messages.append(message)
        except WireError as error:
            self.is_authenticated = False
            self.error = error
            self._frames.clear()                    # OpenSSL encrypts nothing after an error
            raise
        return messages

    def _wait_for_message(self) -> Generator[None, None, Message]:
        while (message := self._pop_message()) is None:
            yield
        return message

    def _pop_message(self) -> Message | None:
        """Remove and return the next message; None: incomplete.  Raises WireError."""
        if len(self._buffer) < self.LENGTH_PREFIX.size:
            return None
        length, = self.LENGTH_PREFIX.unpack_from(self._buffer)
        if length > (MAX_FRAME_BYTES if self.is_authenticated else MAX_EARLY_FRAME_BYTES):
            raise WireError("a frame that is too long")
        frame_end = self.LENGTH_PREFIX.size + length
        if len(self._buffer) < frame_end:
            return None
        text_end = self._buffer.find(b"\0", self.LENGTH_PREFIX.size, frame_end)
        file_bytes = self._buffer[text_end + 1:frame_end] if text_end >= 0 else b""
        text = self._buffer[self.LENGTH_PREFIX.size:text_end if file_bytes else frame_end]
        del self._buffer[:frame_end]
        message = Message(decode(text))
        message.file_bytes = file_bytes
        return message

    def _add_frame(self, *body: bytes) -> None:
        self._frames += (self.LENGTH_PREFIX.pack(sum(map(len, body))), *body)

    def _add_handshake_message(self, **fields: object) -> None:
        self._add_frame(encode(fields))

    def _start_tls(self, server_side: bool) -> Tls:
        """Begin TLS (step 4): decrypt all bytes after those of step 3, and encrypt all further frames."""
        # the frames so far, of steps 1 to 3, are sent unencrypted
        self._clear_text = self.take_outgoing()
        self.tls = Tls(self._context, server_side)
        self._buffer[:] = self.tls.decrypt(bytes(self._buffer))
        return self.tls

    def _proof(self, label: str) -> str:
        text = f"runmaker4 {WIRE_VERSION} {label}\n{self._proved_text}"
        return hmac.digest(self._token, text.encode("ascii"), "sha256").hex()

    def _is_proved(self, message: Message, label: str) -> bool:
        return hmac.compare_digest(self._proof(label).encode("ascii"), message.data("proof"))


@dataclass(frozen=True)
class Credentials:
    """The things that a server proves in addition to the token."""
    context: ssl.SSLContext             # has certificate and key
    certificate: str                    # the SHA-256 of that certificate (D)
    file_id: str                        # of the job file (F)


class ServerChannel(Channel):

    def __init__(self, token: str, credentials: Credentials) -> None:
        self._credentials = credentials
        super().__init__(token, credentials.context)

    def _shake_hands(self) -> Generator[None, None, None]:
        self._add_handshake_message(runmaker4=WIRE_VERSION, nonce=self._own_nonce)      # step 1
        knock = yield from self._wait_for_message()                     # step 2
        if knock.integer("runmaker4") != WIRE_VERSION:
            self._refuse("version")
        self._proved_text = self._own_nonce + knock.hexadecimal("nonce")
        if not self._is_proved(knock, "client"):
            self._refuse("token")
        certificate_hash = self._credentials.certificate                # step 3
        file_id = self._credentials.file_id
        self._proved_text += certificate_hash + file_id
        self._add_handshake_message(certificate=certificate_hash, file=file_id, proof=self._proof("server"))
        self._start_tls(server_side=True)                               # step 4
        confirmation = yield from self._wait_for_message()              # step 5
        if not self._is_proved(confirmation, "confirmed"):
            raise WireError("TLS does not end at a client that knows the token")

    def _refuse(self, cause: str) -> NoReturn:
        self._add_handshake_message(error=cause)
        # receive() drops all frames after an error, but this one must reach the client
        self._clear_text = self.take_outgoing()
        raise RefusedError(self.REFUSALS[cause])


class ClientChannel(Channel):

    def __init__(self, token: str, context: ssl.SSLContext, required_file_id: str = "") -> None:
        """required_file_id: of the file that the server must have; '': any file."""
        self._required_file_id = required_file_id
        self.file_id = ""                           # of the file that the server has (F); "": not known yet
        super().__init__(token, context)

    def _shake_hands(self) -> Generator[None, None, None]:
        greeting = yield from self._wait_for_message()                  # step 1
        self._check_refusal(greeting)
        version = greeting.integer("runmaker4")         # of the protocol
        if version != WIRE_VERSION:
            raise RefusedError(f"another version of the protocol ({version}, here it is {WIRE_VERSION})")
        self._proved_text = greeting.hexadecimal("nonce") + self._own_nonce
        self._add_handshake_message(
            runmaker4=WIRE_VERSION, nonce=self._own_nonce, proof=self._proof("client")
        )                                               # step 2
        credentials = yield from self._wait_for_message()               # step 3
        self._check_refusal(credentials)
        certificate_hash = credentials.hexadecimal("certificate", 64)
        file_id = credentials.hexadecimal("file")
        self._proved_text += certificate_hash + file_id
        if not self._is_proved(credentials, "server"):
            raise RefusedError(self.REFUSALS["token"])
        if self._required_file_id not in ("", file_id):
            raise OtherFileError("another file is served")
        self.file_id = file_id
        tls = self._start_tls(server_side=False)        # step 4
        while not (hash_at_tls_end := tls.certificate_hash()):  # None: TLS's handshake is not complete
            yield
        if hash_at_tls_end != certificate_hash:
            raise WireError("TLS does not end at the server")
        self._add_handshake_message(proof=self._proof("confirmed"))     # step 5

    def _check_refusal(self, message: Message) -> None:
        if "error" in message:
            raise RefusedError(self.REFUSALS.get(message.text("error", 64), "refused"))


class Link:
    """A Channel on a connection in the event loop.

    It has methods of asyncio.Protocol without being a subclass, which would load asyncio at import; its
    subclasses inherit from both.  By default, asyncio closes the connection at end of file.  Only files wait
    until the other end reads: flush() checks the number of unread bytes.  on_disconnected() is called once,
    after all else.
    """

    def __init__(self, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        self.channel = channel
        self.loop = loop
        self.transport: Any = None         # None until connection_made()
        # when the other end, authenticated, last sent bytes (boottime()); until then: when the Link was made
        self.last_message_at = boottime()
        self.why = ""                       # why the connection was dropped
        self.closing = False                # finish_writing() was called
        self._flush_timer: asyncio.TimerHandle | None = None    # until posted messages are sent
        self._is_receiving = False          # True: data_received() sends posted messages at its end
        self.writable = asyncio.Event()     # the other end reads what we send
        self.writable.set()

    # -- for subclasses --------------------------------------------------------------------------------------

    def on_authenticated(self) -> None:
        """Handle the authentication of the other end; called once."""

    def handle(self, message: Message) -> None:
        """Handle a received message.  Raises WireError."""
        raise NotImplementedError

    def on_disconnected(self, why: str) -> None:
        raise NotImplementedError

    # -- methods that subclasses use -------------------------------------------------------------------------

    def send(self, **message: Any) -> None:
        """Send a message, together with others of this loop iteration."""
        self.post(message)
        self.loop.call_soon(self.flush)

    def post(self, message: Fields, file_bytes: bytes = b"") -> None:
        """Send a message within 20 ms, together with others, unless the connection is closing.

        Call it only once the channel is_authenticated.
        """
        if self.closing or self.transport.is_closing():
            return                          # on_disconnected() will handle that
        self.channel.send(message, file_bytes)
        if not (self._flush_timer or self._is_receiving):       # data_received() flushes at its end
            self._flush_timer = self.loop.call_later(Writer.GATHER_SECONDS, self.flush)

    def flush(self) -> None:
        """Write all pending messages; drop the connection if the other end does not read."""
        self._is_receiving = False
        if self._flush_timer:
            self._flush_timer.cancel()
            self._flush_timer = None
        data = self.channel.take_outgoing()
        # after finish_writing() nothing is answered
        if data and not self.closing and not self.transport.is_closing():
            self.transport.write(data)
            if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                self.drop("it does not read messages")

    def finish_writing(self) -> None:
        """Send what is pending, then end of file, upon which the other end closes the connection.

        If we closed it with unread data, the last messages could be lost (RFC 2525, 2.17).
        """
        self.flush()
        if not self.transport.is_closing():
            self.closing = True
            with suppress(OSError):      # ENOTCONN: the peer has closed; on_disconnected() follows
                self.transport.write_eof()

    def drop(self, why: str) -> None:
        """Close the connection without sending what is pending; on_disconnected() is called soon after."""
        self.why = self.why or why
        self.transport.abort()

    # -- asyncio.Protocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        with suppress(OSError):  # the connection is already closed
            # With Nagle's algorithm a second small frame waits 40 ms for the other end's delayed
            # acknowledgement.  asyncio turns this off only for sockets with proto IPPROTO_TCP; accepted
            # sockets have proto 0
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # if the server's queue was full (SYN cookies), its host can know nothing of this connection
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.flush()                        # a server speaks first (step 1)

    def data_received(self, data: bytes) -> None:
        """Handle received bytes; close the connection if they violate the protocol."""
        self._is_receiving = True
        was_authenticated = self.channel.is_authenticated
        try:
            messages = self.channel.receive(data)
            if self.channel.is_authenticated and not was_authenticated:
                self.on_authenticated()
            if self.channel.is_authenticated:       # also within a message that takes long on a slow network
                self.last_message_at = boottime()
            for message in messages:
                self.handle(message)
        except WireError as error:
            self.why = self.why or str(error)
            self.flush()
            self.transport.close()          # once the refusal is written
            return
        self.flush()                        # all answers together, in one record of TLS

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.writable.set()
        self.on_disconnected(self.why or (
            error_text(error) if isinstance(error, OSError) else "the connection was closed"))


# ---- the token ---------------------------------------------------------------------------------------------


def token_path() -> str:
    return os.path.join(os.path.expanduser("~"), ".runmaker4.token")


def token_of_environment() -> str | None:
    """Return the token in $RUNMAKER4_TOKEN; None if it is unset or empty.  Raises UsageError."""
    token = os.environ.get("RUNMAKER4_TOKEN", "").strip()
    if token and not HEX_128_BITS.fullmatch(token):
        raise UsageError(
            "$RUNMAKER4_TOKEN: not a token (32 hexadecimal digits in small letters; or unset it)"
        )
    return token or None


def read_token(path: str) -> str:
    """Return the token in a file that only we can access.  Raises UsageError, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)         # a FIFO would block
    try:
        info = os.fstat(fd)
        if not S_ISREG(info.st_mode):
            raise UsageError(f"{path}: not a regular file")
        if info.st_uid not in (0, os.geteuid()):
            raise UsageError(f"{path}: belongs to another user (chown it)")
        # root's read-only files are secrets that a container gets
        if info.st_mode & 0o077 and (info.st_uid or info.st_mode & 0o222):
            raise UsageError(
                f"{path}: other users have access, permissions {info.st_mode & 0o777:04o} (chmod 600 it)"
            )
        text = os.read(fd, 100).decode("ascii", "replace").strip()
    finally:
        os.close(fd)
    if not HEX_128_BITS.fullmatch(text):
        raise UsageError(
            f"{path}: contains no token (32 hexadecimal digits; a client needs a copy of the server's, and a "
            "server makes one if you remove this file)"
        )
    return text


# ======== Files that travel =================================================================================
#
# Client and server move the files of send= and fetch= in pieces, each at an offset.  What has come of a file
# is its part: a hidden file named after the source, so whoever comes later, after a lost link or a kill, goes
# on at its end.  A piece is added only where the part ends, and all pieces have one source: a version of an
# input, or of the result of one job.

WRITE_BITS = 0o222                  # an input without these is linked for jobs, not copied
FILE_PIECE_BYTES = 1 << 18
LARGE_PIECE_BYTES = 15 << 16        # on a fast link: half the CPU time per byte; fits into MAX_FRAME_BYTES
NO_OFFSET = MAX_INTEGER             # where no file has any bytes: asks for its version, or a part's end
MAX_FILES = 10_000                  # of a job
MAX_TRAVELLING_PATH_BYTES = 4095    # Linux opens no longer path (PATH_MAX), so no job has made one
PART_SUFFIX = b".runmaker4-part"
MAX_PART_SECONDS = 86400.0          # then nobody will go on with it
MTIME_UNITS = 1, 100, 1000, 10**6, 10**9, 2 * 10**9     # nanoseconds: what file systems keep of an mtime


class FileVersion(NamedTuple):
    size: int
    mtime: int                          # nanoseconds
    mode: int
    ctime: int = 0                      # nanoseconds; no program can set it

    @classmethod
    def from_message(cls, message: Message) -> FileVersion:
        return cls(message.integer("size"), message.integer("mtime"), message.integer("mode", 0o777),
                   message.integer("ctime"))

    def is_kept_as(self, kept: FileVersion) -> bool:
        """Return True if a file here is this version, on a disk that can keep less of mtime and mode."""
        return (kept.size == self.size and not self.mode & ~kept.mode & 0o100
                and any(self.mtime // unit * unit == kept.mtime for unit in MTIME_UNITS))


UNMADE = FileVersion(0, 0, 0)           # of a result that the job has still to make


class FileTree:
    """The directory to which the paths of files that travel are relative.

    Its methods can block: call() has a thread make them.  They follow no symbolic link, so none leads out.
    """
    THREADS = 4

    def __init__(self, root: bytes, refused: Collection[bytes] = (),
                 executors: Sequence[FileExecutor] = ()) -> None:
        """refused: names directly below the root."""
        self.root = os.path.realpath(root)
        self._refused = refused
        self._swept: dict[bytes, float] = {}    # when each directory was cleared of old parts; boottime()
        self._parts: dict[bytes, tuple[str, bytes]] = {}    # by path, the last: of which job, and the name
        self.executors = executors or [FileExecutor(threaded=True) for _ in range(self.THREADS)]

    def call(self, function: Callable[..., T], path: bytes, *args: Any) -> asyncio.Future[T]:
        """Make a call for a path, after the earlier ones for that path."""
        return self.executors[hash(path) % self.THREADS].submit(function, path, *args)

    @contextmanager
    def directory_of(self, path: bytes, makes: bool = False) -> Iterator[tuple[int, bytes]]:
        """Yield a descriptor of the directory of a file, and the name.  makes: create it if need be."""
        if not TRAVELLING_PATH.fullmatch(os.fsdecode(path)):
            raise OSError(errno.EPERM, "no path that can travel")
        if path.split(b"/")[0] in self._refused:
            raise OSError(errno.EPERM, "the job file and its records do not travel")
        if len(path) > MAX_TRAVELLING_PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, "the path is too long")
        *directories, name = path.split(b"/")
        fd = open_no_link(self.root, os.O_DIRECTORY)
        try:
            for directory in directories:
                if makes:
                    with suppress(FileExistsError):
                        os.mkdir(directory, dir_fd=fd)
                # however deep, with two descriptors
                parent_fd, fd = fd, open_no_link(directory, os.O_DIRECTORY, fd)
                os.close(parent_fd)
            yield fd, name
        finally:
            os.close(fd)

    def make_directory(self, path: bytes) -> None:
        """Make the directory of a file.  Raises OSError."""
        with self.directory_of(path, makes=True):
            pass

    def read_piece(self, path: bytes, offset: int = 0, length: int = 0) -> tuple[FileVersion, bytes]:
        """Return the version of a file, and the bytes of a piece.  Raises OSError."""
        with self.directory_of(path) as (directory_fd, name):
            fd = open_no_link(name, os.O_NONBLOCK, directory_fd)
        try:
            info = os.fstat(fd)
            if not S_ISREG(info.st_mode):
                raise IsADirectoryError(errno.EISDIR, "not a regular file")     # or a FIFO, ...
            data = os.pread(fd, min(length, max(info.st_size - offset, 0)), offset)
            info = os.fstat(fd)             # write(2) sets the times first, so no byte is of a later version
            mtime = min(max(info.st_mtime_ns, 0), MAX_INTEGER)      # 1970 to 2116
            return FileVersion(info.st_size, mtime, info.st_mode & 0o777, abs(info.st_ctime_ns)), data
        finally:
            os.close(fd)

    def add_piece(self, path: bytes, version: FileVersion, offset: int, data: bytes | bytearray,
                  job_key: str = "") -> int:
        """Add a piece to the part of a file, if that ends at the offset; return where it ends then.

        That is the size if the file is complete, and has its name; -1 if the part of an input ends elsewhere,
        as another client receives it, too.  Raises OSError.  job_key: of a result; '': an input.
        """
        try:
            found = self.read_piece(path)[0]
            # a result is here already only if both ends have this directory
            if found == version if job_key else version.is_kept_as(found):
                return version.size
        except IsADirectoryError:
            raise                               # it cannot be replaced
        except OSError:                         # there is no such file
            pass
        if self._swept.get(directory := os.path.dirname(path), -inf) <= boottime() - MAX_PART_SECONDS:
            self._swept[directory] = boottime()
            self.remove_parts(path, ())
        with self.directory_of(path, makes=True) as (directory_fd, name):
            part = b".%b.%b%x-%x%b" % (name, job_key.encode(), version.ctime, version.size, PART_SUFFIX)
            last_key, last_part = self._parts.get(path, ("", part))
            if last_part != part and last_key == job_key:       # of another version: nobody goes on with it
                with suppress(FileNotFoundError):
                    os.unlink(last_part, dir_fd=directory_fd)
            self._parts[path] = job_key, part
            fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=directory_fd)
            try:
                # after a crash of the host its end can be missing on the disk
                if os.fstat(fd).st_ctime < time.time() - boottime():
                    os.ftruncate(fd, 0)
                end = os.lseek(fd, 0, os.SEEK_END)
                if end == offset:
                    write_all(fd, memoryview(data)[:version.size - end])
                    end = os.lseek(fd, 0, os.SEEK_CUR)
                elif data and offset and not job_key:
                    return -1
                if version == UNMADE:           # it was only tried if one can be made
                    os.unlink(part, dir_fd=directory_fd)
                elif end == version.size:
                    os.utime(fd, ns=(version.mtime, version.mtime))
                    sync_or_empty(fd)
                    os.fchmod(fd, version.mode)     # with 0444, who comes after a kill cannot open the part
                    try:
                        os.rename(part, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
                    except FileNotFoundError:       # another client has renamed or removed it
                        return self.add_piece(path, version, NO_OFFSET, b"", job_key)
                    os.fsync(directory_fd)
                    del self._parts[path]
                    if offset:                  # those of dead runs; another job that sends this file repeats
                        self.remove_parts(path, [name])
                return end
            finally:
                os.close(fd)

    def forget(self, paths: Iterable[bytes]) -> None:
        """Have the parts of files removed that no job needs any more; each directory is listed few times."""
        names: defaultdict[tuple[bytes, int], list[bytes]] = defaultdict(list)
        for path in paths:
            directory, name = os.path.split(path)
            names[directory, hash(path) % self.THREADS].append(name)
        for (directory, _), group in names.items():
            self.call(self.remove_parts, os.path.join(directory, group[0]), frozenset(group))

    def remove_parts(self, path: bytes, names: Collection[bytes]) -> None:
        """Remove the parts in the directory of a file that are a day old, and all parts of these names."""
        with suppress(OSError), self.directory_of(path) as (directory_fd, _):
            for other in map(os.fsencode, os.listdir(directory_fd)):
                if other.startswith(b".") and other.endswith(PART_SUFFIX):
                    with suppress(FileNotFoundError):       # another thread has renamed or removed it
                        info = os.stat(other, dir_fd=directory_fd, follow_symlinks=False)
                        if (time.time() - info.st_ctime > MAX_PART_SECONDS
                                or other[1:-len(PART_SUFFIX)].rpartition(b".")[0] in names):
                            os.unlink(other, dir_fd=directory_fd)


# with the name of the host: some network file systems show no locks of other hosts
JOB_SUFFIX, LOCK_SUFFIX = b".%b.runmaker4-job" % os.fsencode(os.uname().nodename), b".lock"


class JobDirectory:
    """The directory of a job with scratch=yes, hidden in that of its runner.

    The lock file beside it is locked before the directory is made, and until it is removed.  The job inherits
    the lock: after a kill of the runner its directory stays as long as a process of the job lives.
    """

    def __init__(self, parent: FileTree, number: int) -> None:
        """Name a directory for make().  number: of the line."""
        name = b".%d-%b%b" % (number, os.urandom(4).hex().encode(), JOB_SUFFIX)
        self.path = os.path.join(parent.root, name)
        self.lock_fd = -1                       # -1: none yet
        self._parent = parent
        self.tree = FileTree(self.path, executors=parent.executors)
        # makes calls in order, also behind one that nobody awaits any more
        self.call = parent.executors[hash(self.path) % parent.THREADS].call

    def make(self) -> None:
        """Raises OSError."""
        remove_dead_directories(self._parent.root)
        self.lock_fd = os.open(self.path + LOCK_SUFFIX, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        if not lock(self.lock_fd, 0):           # by remove_dead_directories() of another process
            raise OSError(errno.EAGAIN, "the lock file is locked")
        os.mkdir(self.path)

    def add_input(self, path: bytes, version: FileVersion) -> None:
        """Copy a file of the runner's directory, or link it if nobody may write it.  Raises OSError.

        version: as the server has it; UNMADE: it is also a result, and a symbolic link is none.
        """
        import shutil
        self.tree.make_directory(path)
        source, target = os.path.join(self._parent.root, path), os.path.join(self.path, path)
        found = self._parent.read_piece(path)[0]
        if not found.mode & WRITE_BITS:
            # A hard link alters the ctime.  Of the server's own file that would be another version, so it
            # would travel to other clients again and again
            make_link = os.symlink if found == version else os.link
            with suppress(OSError):             # the file system has no links
                return make_link(source, target)
        shutil.copy2(source, target)
        return None

    def choose_results(self, names: Sequence[bytes], inputs: Sequence[bytes],
                       state: bytes) -> tuple[list[bytes], str]:
        """Return the files to bring back, and '', or why these are not all.

        Of inputs, which a job can have changed, only those that have their own name in fetch=.
        """
        own_names = [os.fsencode(own_name(name)) for name in names]
        why = ""
        errors: list[OSError] = []
        try:
            made = [path[len(self.path) + 1:] for directory, files in walk_unlocked(self.path, errors.append)
                    for path in (os.path.join(directory, file) for file in files)
                    if os.path.isfile(path) and not os.path.islink(path)]
        except RecursionError:                  # before Python 3.12
            return [], "the directories of the job are too deep"
        # those that another user closed; not one that a process of the job has removed meanwhile
        unread = [(error.filename[len(self.path) + 1:] + b"/").lstrip(b"/") for error in errors
                  if not isinstance(error, FileNotFoundError)]
        found = {name: [path for path in made
                        if is_result(path, name) and (path in own_names or path not in inputs)]
                 for name in names}
        for name, path in zip(names, own_names) if state == DONE else ():
            closed = [directory for directory in unread if may_be_below(directory, path)]
            if closed:
                why = f"{display_text(path)}: {display_text(closed[0])} cannot be read"
            elif not (found[name] or why or b":optional" in name):
                why = f"{display_text(path)}: {self._describe_missing(path)}"
        return [path for name in names for path in found[name]
                if (state == DONE and not why) or b":always" in name], why

    def _describe_missing(self, path: bytes) -> str:
        """Return why a name of fetch=, without marks, stands for no file."""
        found = os.path.join(self.path, path)
        if os.path.islink(found.rstrip(b"/")):
            return "a symbolic link, which does not travel"
        if os.path.isdir(found) and not path.endswith(b"/"):
            return f"a directory ({display_text(path)}/ fetches the files below it)"
        with suppress(OSError):                 # there is no directory
            if os.listdir(found):
                return "no file in it travels (hidden ones, links and inputs do not)"
        return "the job has not made this file" + " (marks: :always, :optional)" * (b":" in path)

    def remove(self) -> None:
        """Remove the directory; what cannot be removed stays."""
        remove_job_directory(self.path)
        close_all(self.lock_fd)


def walk_unlocked(path: bytes, on_error: Callable[[OSError], None] | None = None
                  ) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yield each directory from `path` on, and its files; the user gets all rights to their directories.

    on_error: gets the error of each that cannot be listed.
    """
    def unlock(directory: bytes) -> None:
        with suppress(OSError):                 # it is another user's, or is gone
            if not os.path.islink(directory):
                os.chmod(directory, 0o700)

    unlock(path)
    for directory, names, files in os.walk(path, onerror=on_error):
        for name in names:
            unlock(os.path.join(directory, name))
        yield directory, files


def remove_job_directory(path: bytes) -> None:
    """Remove a directory and its lock file, which the caller has locked; what cannot be removed stays."""
    import shutil
    with suppress(OSError, RecursionError):
        if os.path.lexists(path):
            for _ in () if os.path.islink(path) else walk_unlocked(path):
                pass                            # some directories can be read-only
            shutil.rmtree(path)
        os.unlink(path + LOCK_SUFFIX)


@functools.cache
def remove_dead_directories(root: bytes) -> None:
    """Remove the directories of this host's jobs of which neither runner nor process lives.

    A second call does nothing.  Raises OSError.
    """
    for name in os.listdir(root):
        if name.endswith(JOB_SUFFIX + LOCK_SUFFIX):
            with suppress(OSError), open(path := os.path.join(root, name), "r+b") as file:
                if lock(file.fileno(), 0):
                    remove_job_directory(path.removesuffix(LOCK_SUFFIX))


def open_no_link(name: bytes, flags: int, directory_fd: int | None = None) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=directory_fd)
    except OSError as error:
        if os.path.islink(name if directory_fd is None else b"/proc/self/fd/%d/%b" % (directory_fd, name)):
            error.strerror = "a symbolic link, which does not travel,"
        raise


def sync_or_empty(fd: int) -> None:
    """Sync a file; if that fails, empty it: on NFS, a full disk can be found only now.  Raises OSError."""
    try:
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, 0)
        raise
