#!/usr/bin/env python3
"""runmaker4 - run the jobs in a text file, on as many cores and hosts as you like.

    $ cat runs.txt                      $ runmaker4.py -j4 runs.txt
    . simulate --seed 1                 (the same on any other host that sees the file)
    . simulate --seed 2

One text file is the queue.  A line ". CMD" is a job; its first byte is its state, and runners rewrite that byte
in place.  Any number of runners, on any number of hosts, work on one file at once; there is nothing to set up.

    .  new                  d  done: exit 0                        #  /  a comment, as is every line whose
    r  running              !  failed: exit not 0, timed out, or         second byte is neither blank nor tab
                               died of a signal of its own
    e  error: it did not run to its end (we ended it, its runner or host died), or it could not be started
    any other byte: on hold (x by convention), never run; written over an r it cancels the job

The protocol, which is all there is to know about how runners share a file:

 1. Claim the job whose state byte is at offset o: open the file anew, take an exclusive open-file-description
    record lock on byte o, without waiting.  Refused: somebody else has it; go on to the next line.
 2. Under the lock read the whole line again.  Only if it is still the line that was found, in a state that may be
    taken, write "r" over the state.
 3. Start the job with a copy of that descriptor.  Runner and job now hold the lock together: it is gone only when
    both are.  The lock is the life sign; there are no heartbeats and no time limits.
 4. When the job has ended, verify the line once more, write its new state over the "r", unlock, close.
 5. A line "r" whose lock is free has neither runner nor job: an orphan.  Editors may have moved it just now, and
    its runner then moves the lock along within a second; so it takes three looks, one second apart, to prove it.
 6. Appending (runset4.py --add) holds an exclusive lock on byte 2^62+1.  A runner that must see the work of
    other hosts first takes a shared lock on byte 2^62 and gives it back: a host that keeps what it has read asks the
    server again only after a granted lock.  On NFS lines are read and written past that memory (`Mount.direct`).

Lines that begin with "#RUN" are directives: they say which hosts may take the jobs below them, for how long these may
run, and what must have ended before.  They are not part of the protocol: each runner reads them before it claims.

Assumptions: the file system shares record locks between all hosts that use the file (JobFile and `check_mount`
refuse those known not to); editors may replace or rewrite the file, programs other than ours do not write to it
within the microseconds between step 2's read and its write; jobs keep descriptor 64 open, or have a shell that does.

The file reads top-down: basics, record locks, file systems, job lines and directives, the job file, finding work,
the worker, processes, output, slots, the runner, background, checking a directory's locks, command line; and behind
main() the wire, which only server and client need.  `Runner` knows neither files nor sockets, `JobFile` knows nothing
of processes.
"""
from __future__ import annotations

import gc
import signal
import sys

if __name__ == "__main__":      # our parent may send a signal at once: it waits until run_main(), or a handler
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1))
    gc.disable()                # while all is imported and defined nothing is garbage, and looking for it takes 5 ms;
                                # until run_loop()
    sys.modules["ssl"] = None   # asyncio does without; to load it would take another 5 ms
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)    # Ctrl-C before there are handlers: no traceback

import argparse
import contextlib
import errno
import fcntl
import fnmatch
import functools
import importlib.util
import itertools
import math
import os
import re
import resource
import select
import shlex
import shutil
import socket
import stat
import struct
import subprocess
import termios
import time
import warnings
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field, replace
from typing import Any, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence, TypeVar


def when_used(name: str) -> Any:
    """A module that is loaded when it is first used (documentation of importlib.util.LazyLoader)."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


asyncio = when_used("asyncio")  # a quarter of the time that all this takes to load, and runset4.py needs it never

VERSION = "4.1"
NEW, RUNNING, DONE, FAILED, ERROR = b".", b"r", b"d", b"!", b"e"
HELD = b"x"                     # by convention; here it stands for any other state

REFRESH_BYTE = 1 << 62          # locked shared and given back to make reads fresh; never exclusively
APPEND_BYTE = REFRESH_BYTE + 1  # locked exclusively to append
PROBE_BYTES = REFRESH_BYTE + 2  # up to 2^32 bytes from here: the start-up test, one byte each

Say = Callable[[str], None]     # takes a message of one line, without program and file name
T = TypeVar("T")


# ======== Basics ======================================================================================================


class Problem(Exception):
    """Something the user can mend: printed as one line, exit status 2."""


def reason(error: OSError) -> str:
    """What an OSError says, without number and file name: 'No space left on device' -> 'no space left on device'."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def printable(text: str) -> str:
    """Text without control characters, for a terminal."""
    return re.sub(r"[\0-\x1f\x7f]", "?", text)


def show(data: bytes) -> str:
    """Bytes as text for a message: invalid UTF-8 survives the way to the terminal, control characters do not."""
    return printable(os.fsdecode(data))


def quote(word: bytes) -> bytes:
    """shlex.quote() for bytes."""
    return os.fsencode(shlex.quote(os.fsdecode(word)))


DURATION = re.compile(r"(\d+\.?\d*|\.\d+)([smhd]?)", re.ASCII)
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> float | None:
    """Seconds in '90', '90s', '5m', '1.5h' or '1d'; None for 'none'.  Raises argparse.ArgumentTypeError."""
    if text == "none":
        return None
    match = DURATION.fullmatch(text)
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"not a duration: '{printable(text)}' (such as 90, 90s, 5m, 2h, 1d or none)")
    return seconds


def whole_number(least: int, most: int = 1_000_000) -> Callable[[str], int]:
    """An argparse type: a whole number from least to most."""
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"not a whole number from {least} to {most}: '{printable(text)}'")
        return int(text)
    return parse


def human_time(seconds: float) -> str:
    """'0.4s', '12s', '5m 03s', '3h 12m', '2d 4h'."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for unit, inner, size, inner_size in (("d", "h", 86400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // inner_size:02}{inner}"
    return f"{whole}s"


def plural(count: int, word: str) -> str:
    """'1 job', '2 jobs'."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def name_lines(numbers: Iterable[int], shown: int = 8) -> str:
    """'line 3', 'lines 3, 5, 7, ...'."""
    lines = sorted(numbers)
    text = ", ".join(map(str, lines[:shown])) + (", ..." if len(lines) > shown else "")
    return f"line{'s' if len(lines) > 1 else ''} {text}"


class Parser(argparse.ArgumentParser):
    """argparse with an example before the usage and errors of one line."""

    def __init__(self, prog: str, example: str, usage: str, **settings: Any) -> None:
        super().__init__(prog=prog, usage=f"{prog} {usage}", add_help=False, allow_abbrev=False,
                         formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=26),
                         **settings)
        self.example = example

    def format_help(self) -> str:
        return f"{self.example}\n\n{super().format_help()}More: README.md and docs/ of runmaker4.\n"

    def print_help(self, file: Any = None) -> None:
        put(self.format_help().encode())

    def error(self, message: str) -> Any:
        raise Problem(f"{message} (see --help)")


def run_main(prog: str, main: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Run a script's body: its Problem becomes one line on stderr and exit status 2, Ctrl-C 130, a closed pipe 0.

    Signals were blocked from the first line on.  Until there are handlers INT and TERM simply end us: no job runs yet,
    and a file system or a server may not answer.  HUP and USR1 wait.
    """
    open_standard_descriptors()
    for number in signal.sigpending() & {signal.SIGINT, signal.SIGTERM}:
        if signal.getsignal(number) != signal.SIG_IGN:
            return 128 + number
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except Problem as problem:
        warn(f"{prog}: {problem}")
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 0                            # `| head` has seen enough


def exit_on(*numbers: int) -> None:
    """From now on these signals end the process by SystemExit, 128 + n; a signal that is ignored (nohup) stays so."""
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def leave(code: int) -> None:
    """End the process.  Python's tear-down would take as long as twenty short jobs, and nothing is unflushed."""
    os._exit(code)


def warn(text: str) -> None:
    """Print a line on stderr, at once."""
    with contextlib.suppress(OSError):      # closed, or full: nowhere is left to say it
        write_all(2, os.fsencode(text) + b"\n")


def open_standard_descriptors() -> None:
    """Where 0, 1 or 2 is closed, the next file would get its number and be written to by mistake."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return
        os.set_inheritable(fd, True)


def write_all(fd: int, data: bytes) -> None:
    """write(2) until everything is written.  Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def pwrite_all(fd: int, data: bytes, at: int) -> None:
    """pwrite(2) until everything is written.  Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


def wait_ready(fds: Iterable[int], event: int, seconds: float | None) -> list[int]:
    """Wait for one of these descriptors (select.POLLIN, POLLOUT); returns the ready ones.  select(2) ends at 1,023."""
    poller = select.poll()
    for fd in fds:
        poller.register(fd, event)
    day = UNITS["d"]
    while True:                         # poll(2) takes no more than 24 days
        found = [fd for fd, _ in poller.poll(None if seconds is None else 1000 * min(seconds, day))]
        if found or seconds is None or seconds <= day:
            return found
        seconds -= day


def put(data: bytes) -> None:
    """Print on stdout, at once.  Raises BrokenPipeError, Problem."""
    try:
        write_all(1, data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Problem(f"stdout: {reason(error)}") from None


def put_lines(lines: Iterable[bytes]) -> int:
    """Print many lines, 1,000 at a time; returns how many there were.  Raises BrokenPipeError, Problem."""
    count, rest = 0, iter(lines)
    while some := list(itertools.islice(rest, 1000)):
        put(b"\n".join(some) + b"\n")
        count += len(some)
    return count


def digest(text: bytes) -> bytes:
    """16 bytes by which a line's text is known again."""
    import hashlib              # few runners need it, and it takes 4 ms to load
    return hashlib.blake2b(text, digest_size=16).digest()


# ======== Record locks ================================================================================================
#
# fcntl(2), "Open file description locks": owned by what open() made, not by the process.  So they exclude two opens of
# one process, survive the close of another descriptor of the file, and are inherited.  struct flock is
# short type, short whence, off_t start, off_t len, pid_t pid (0 for these locks).
#
# Classic record locks are owned by the process; closing *any* descriptor of the file drops them all, and no child has
# them.  Where they must do, a process uses one descriptor for everything and never closes it.

FLOCK = struct.Struct("hhqqi4x")


def _have_description_locks() -> bool:
    """Whether Python and the system know these locks (WSL 1 and kernels before 3.15 answer EINVAL)."""
    if not hasattr(fcntl, "F_OFD_SETLK"):
        return False
    with open(os.devnull, "rb+", buffering=0) as null:
        try:
            fcntl.fcntl(null, fcntl.F_OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
            return True
        except OSError:
            return False


DESCRIPTION_LOCKS = _have_description_locks()


def lock(fd: int, at: int, length: int = 1, shared: bool = False) -> bool:
    """Lock bytes if nobody else has them, without waiting.  Raises OSError for anything but 'somebody has it'."""
    try:
        if DESCRIPTION_LOCKS:
            kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, at, length, 0))
        else:
            fcntl.lockf(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB, length, at)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def unlock(fd: int, at: int, length: int = 1) -> None:
    """Give bytes back, also for children that inherited the descriptor."""
    if DESCRIPTION_LOCKS:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, at, length, 0))
    else:
        fcntl.lockf(fd, fcntl.LOCK_UN, length, at)


def is_free(fd: int, at: int, length: int = 1) -> bool:
    """Whether nobody else has a byte of these locked; a descriptor open for reading will do."""
    request = fcntl.F_OFD_GETLK if DESCRIPTION_LOCKS else fcntl.F_GETLK
    answer = fcntl.fcntl(fd, request, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, length, 0))
    return FLOCK.unpack(answer)[0] == fcntl.F_UNLCK


@contextlib.contextmanager
def locked(fd: int, at: int, length: int = 1, patience: float = 1.0) -> Iterator[None]:
    """Hold an exclusive lock for a moment; tries for `patience` seconds, then raises OSError(EAGAIN).

    F_SETLKW would wait, but on NFSv4.0 it does so by polling with pauses of seconds.
    """
    end = time.monotonic() + patience
    while not lock(fd, at, length):
        if time.monotonic() > end:
            raise OSError(errno.EAGAIN, "somebody else has kept it locked")
        time.sleep(0.002)
    try:
        yield
    finally:
        unlock(fd, at, length)


def append(fd: int, data: bytes, sync: bool, header: bytes = b"", patience: float = 30.0) -> None:
    """Append lines to a shared file, as append_locked() does, under the append lock.

    `patience`: seconds to wait for others who append.  Raises OSError.
    """
    with locked(fd, APPEND_BYTE, patience=patience):
        append_locked(fd, (data,), sync, header)


def append_locked(fd: int, pieces: Iterable[bytes], sync: bool, header: bytes = b"") -> None:
    """Append lines, in pieces that end where it suits, all or nothing, after a last line's missing newline if need be.

    fd is open with O_RDWR | O_APPEND, and the caller has locked APPEND_BYTE on it.  What was written before an error is
    cut off again, but only where it surely is the end of the file.  `sync`: not before it is on disk (a network file
    system tells errors only then).  `header`: what an empty file begins with.  Raises OSError.
    """
    info, written = os.fstat(fd), 0
    if not info.st_nlink:
        raise OSError(errno.ENOENT, "was removed meanwhile")
    size = info.st_size
    lead = b"\n" if size and os.pread(fd, 1, size - 1) != b"\n" else b"" if size else header
    try:
        for piece in pieces:
            view = memoryview(piece if written else lead + piece)
            while view:
                count = os.write(fd, view)
                view, written = view[count:], written + count
        if sync:
            os.fsync(fd)
    except OSError:
        if written and os.fstat(fd).st_size == size + written:
            os.ftruncate(fd, size)
        raise


def test_locks(path: str) -> None:
    """Try the locks before relying on them: two descriptors must exclude each other.  Raises Problem."""
    at = PROBE_BYTES + int.from_bytes(os.urandom(4), "big")
    try:
        with open(path, "rb+", buffering=0) as first, open(path, "rb+", buffering=0) as second:
            broken = not lock(first.fileno(), at) or DESCRIPTION_LOCKS and is_free(second.fileno(), at)
            unlock(first.fileno(), at)
    except OSError as error:
        raise Problem(f"{path}: no record locks on this file system: {reason(error)} (use another one)") from None
    if broken:
        raise Problem(f"{path}: record locks on this file system do not exclude (use another one)")


# ======== File systems ================================================================================================

MOUNTINFO = "/proc/self/mountinfo"
NETWORK_KINDS = {"nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "gpfs", "beegfs", "afs", "9p", "glusterfs"}


@dataclass(frozen=True)
class Mount:
    """What a file is on: the type of its file system ('ext4') and its mount options."""
    kind: str
    options: frozenset[str]

    @property
    def network(self) -> bool:
        return self.kind in NETWORK_KINDS or self.kind.startswith("fuse.")

    @property
    def direct(self) -> int:
        """A flag for open(2): what is read comes from the server, and what is written is there at once; 0 if none.

        NFS takes single bytes so (open(2)).  Others, as Lustre, may want whole blocks, and share one cache anyway.
        Without it each granted lock makes this host forget what it has read, which costs two or three round trips; and
        a read that finds its page in memory does not tell that the lease was lost.
        """
        return os.O_DIRECT if self.kind in ("nfs", "nfs4") else 0


LOCAL = Mount("", frozenset())


def find_mount(path: str) -> Mount:
    """The mount that a path is on, from /proc/self/mountinfo (proc(5)); LOCAL where that does not exist."""
    best, found = -1, LOCAL
    try:
        path = os.path.realpath(path)
        with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                ours, _, theirs = line.partition(" - ")
                point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), ours.split()[4])
                if len(point) >= best and (path + "/").startswith(point.rstrip("/") + "/"):
                    kind, _, options = theirs.rstrip("\n").split(" ")[:3]       # the middle one may be empty
                    best, found = len(point), Mount(kind, frozenset(options.split(",") + ours.split()[5].split(",")))
    except OSError:
        pass                                # not Linux, no current directory: nothing is known, nothing refused
    return found


def see_names(path: str) -> None:
    """Make NFS ask the server for the names beside this one; else it answers from what it knows, right or wrong."""
    with contextlib.suppress(PermissionError):      # a folder whose names we may use, and not list
        os.close(os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def inode_of(fd: int) -> list[bytes]:
    """What tells an open file from others: its mount and inode (proc_pid_fdinfo(5), since Linux 5.14); [] if unknown.

    fstat(2) says more, and asks an NFS server for it after each lock.
    """
    with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
        found = [line for line in lines if line.startswith((b"mnt_id:", b"ino:"))]
    return found if len(found) == 2 else []


def mount_fault(mount: Mount) -> str:
    """Why locks on this mount do not exclude other hosts; '' if nothing is known against them."""
    kind, options = mount.kind, mount.options
    if kind == "nfs":                       # version 3 and before: 4 is nfs4, and ignores these options
        for option in ("nolock", "local_lock=posix", "local_lock=all"):
            if option in options:
                return f"is on NFS mounted with {option}: its locks do not reach other hosts"
    if kind == "lustre" and options & {"localflock", "noflock"}:
        return "is on Lustre mounted without flock: its locks do not reach other hosts"
    if kind in ("9p", "fuse.sshfs"):
        return f"is on {kind}: its locks do not reach other hosts"
    if kind in ("cifs", "smb3"):
        return f"is on {kind}: its locks " + ("do not reach other hosts" if "nobrl" in options else
                                              "keep others from reading, too")
    return ""


def check_mount(path: str, single_host: bool, say: Say) -> Mount:
    """Refuse a file system that does not share locks between hosts.  Raises Problem."""
    mount = find_mount(path)
    fault = "" if single_host else mount_fault(mount)
    if fault:
        raise Problem(f"{path}: {fault} (use another file system, or --single-host if no other host uses the file)")
    if mount.kind in ("beegfs", "afs") and not single_host:
        say(f"is on {mount.kind}, where locks reach other hosts only if it is set up so (or use --single-host)")
    return mount


# ======== Job lines and directives ====================================================================================

UTF8_MARK = b"\xef\xbb\xbf"
JOB_LINE = re.compile(rb"\n([^#/ \t\n])[ \t]")
DIRECTIVE = b"#"                # the "state" of a Line that is a directive


@dataclass(eq=False, repr=False)
class Line:
    """A job line as it was read: `text` is all after the state byte, up to the newline."""
    number: int             # what an editor shows, from 1; of a held line it is kept up to date
    ordinal: int            # counts job lines only, from 1; 0 where nobody asked for it
    offset: int             # of the state byte
    state: bytes
    text: bytes             # separator, command, perhaps \r
    whole: bool = True      # it ends with a newline

    @property
    def command(self) -> bytes:
        return self.text[1:-1] if self.text.endswith(b"\r") else self.text[1:]

    def __bytes__(self) -> bytes:
        """As it is listed: b'7 . COMMAND'."""
        return b"%d %s %s" % (self.number, self.state, self.command)


class Shifted(OSError):
    """The file was edited, so that a line is not where it was found."""

    def __init__(self) -> None:
        super().__init__(errno.ESTALE, "was replaced by another file meanwhile")


class Paused(Exception):
    """A scan has taken the time that it was given, and may go on from where it stands."""


class Scan:
    """One walk through a job file, in chunks, from one line in a wanted state to the next.

    It sees the file as if a newline stood before it, so that every line begins with one.  What lies between wanted
    lines is searched and counted, never parsed; of the file it holds one chunk.  Chunks are small where it just found
    something, so that the next line is judged by a fresh read, and grow to 1 MiB where it finds nothing.
    """
    SMALL, LARGE = 4096, 1 << 20

    def __init__(self, fd: int, start: int, states: bytes | None = None, *, count_states: bool = False,
                 careful: bool = False, directives: bool = False, until: float = math.inf) -> None:
        """states: the wanted ones; None: every job line.  start: where the first line begins (after a mark).

        count_states: count how many job lines are in which state, which gives ordinals, too.
        careful: raise Shifted when line numbers are found to be off.  directives: they are wanted, too.
        until: the offset from where on nothing is of interest; it may still be found.
        """
        self.fd, self.careful, self.until = fd, careful, until
        self.pattern = wanted_lines(states, directives)
        self.few = wanted_lines(RUNNING, directives)
        self.rest = 4 if directives else 2          # bytes at the end of a chunk that may begin a match
        self.buffer, self.base = b"\n", start - 1   # buffer[0] is the byte at offset `base`
        self.pos = 0                                # buffer[:pos] is done with, and counted:
        self.lines = 0
        self.states: Counter[bytes] | None = Counter() if count_states else None
        self.size = self.SMALL
        self.last: Line | None = None
        self.once_more = False                      # the last line is to be found again
        self.pause_at = math.inf                    # raise Paused after the first chunk behind this time (monotonic)

    def next(self, few: bool = False) -> Line | None:
        """The next wanted line; None at the end of the file (ask again when it has grown).  Raises Shifted.

        few: find no jobs but running ones.
        """
        pattern = self.few if few else self.pattern
        while True:
            match = pattern.search(self.buffer, self.pos)
            if match:
                return self._line(match.start() + 1)
            if not self._more():
                return None

    def __iter__(self) -> Iterator[Line]:
        return iter(self.next, None)

    @property
    def end(self) -> int:
        """How far the file was read: its size, once there is no next line."""
        return self.base + len(self.buffer)

    def unread(self) -> None:
        """Make the last line, which is no job, the next one, too."""
        self.lines -= 1
        self.once_more = True
        self.reread()

    def reread(self, data: bytes | None = None) -> bool:
        """Read on behind the state of the last line with fresh bytes: `data` from its offset on, or a new read.

        False: it does not stand there any more.
        """
        offset = self.last.offset
        self.size = self.SMALL
        self.buffer = b"\n" + (os.pread(self.fd, self.size, offset) if data is None else data)
        self.base, self.pos = offset - 1, 0 if self.once_more else 1
        text = self.last.text[:self.SMALL - 1]
        return self.buffer.startswith(text, 2) and self.buffer[2 + len(text):][:1] in (b"\n", b"")

    def _line(self, begin: int) -> Line:
        """The line whose state is at buffer[begin]."""
        end = self.buffer.find(b"\n", begin)
        if end < 0:
            self._drop(begin - 1)
            begin = 1
        while end < 0:
            have = len(self.buffer)
            self.buffer += os.pread(self.fd, max(self.size, have), self.base + have)
            if len(self.buffer) == have:
                break
            end = self.buffer.find(b"\n", have)
        self._count(begin)
        self.once_more = False
        stop = end if end >= 0 else len(self.buffer)
        ordinal = sum(self.states.values()) if self.states else 0
        self.last = Line(self.lines, ordinal, self.base + begin, self.buffer[begin:begin + 1],
                         self.buffer[begin + 1:stop], end >= 0)
        return self.last

    def _count(self, upto: int) -> None:
        """Count the lines that begin in buffer[pos:upto], and move on to there."""
        self.lines += self.buffer.count(b"\n", self.pos, upto)
        if self.states is not None:
            self.states.update(JOB_LINE.findall(self.buffer, self.pos, upto + 2))
        self.pos = upto

    def _more(self) -> bool:
        """Move on to the next chunk; False if there is none yet."""
        self._drop(max(self.pos, len(self.buffer) - self.rest))
        at = self.base + len(self.buffer)
        data = os.pread(self.fd, self.size, at) if at < self.until else b""
        self.buffer += data
        self.size = min(2 * self.size, self.LARGE)
        if data and time.monotonic() > self.pause_at:
            raise Paused
        return bool(data)

    def _drop(self, upto: int) -> None:
        """Count and forget the buffer up to there.  Raises Shifted.

        After an insertion above, the last line does not stand where it stood, and all line numbers are off.
        """
        if self.careful and self.last:
            text = self.last.text[:64]
            if os.pread(self.fd, len(text), self.last.offset + 1) != text:
                raise Shifted
        self._count(upto)
        self.buffer, self.base, self.pos = self.buffer[upto:], self.base + upto, 0


@functools.lru_cache(maxsize=None)
def wanted_lines(states: bytes | None, directives: bool) -> re.Pattern[bytes]:
    """What finds the beginnings of job lines in some states (None: all), and of directives."""
    first = rb"[^#/ \t\n]" if states is None else rb"[" + re.escape(states) + rb"]"
    wanted = ([first + rb"[ \t]"] if states != b"" else []) + ([rb"#RUN"] if directives else [])
    return re.compile(rb"\n(" + rb"|".join(wanted) + rb")")


def first_line(fd: int) -> int:
    """The offset of a job file's first line: 3 after a UTF-8 byte-order mark, else 0.  Raises OSError for UTF-16."""
    head = os.pread(fd, 3, 0)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise OSError(errno.EILSEQ, "is UTF-16 (save it as UTF-8)")
    return 3 if head == UTF8_MARK else 0


def open_job_file(path: str, flags: int) -> int:
    """Open a job file, or say in one line why it cannot be one.  Raises Problem."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise Problem(f"{path}: is {kind} (a job file is wanted)")
        fd = os.open(path, flags | os.O_CLOEXEC)
        try:
            first_line(fd)
        except OSError:
            os.close(fd)
            raise
        return fd
    except OSError as error:
        hint = {errno.ENOENT: "make it, with a line '. COMMAND' for each job",
                errno.EACCES: "it must be readable" + (" and writable" if flags & os.O_RDWR else ""),
                errno.EROFS: "jobs are claimed by writing to it"}.get(error.errno, "")
        raise Problem(f"{path}: {reason(error)}" + (f" ({hint})" if hint else "")) from None


@contextlib.contextmanager
def job_file(path: str) -> Iterator[int]:
    """A job file, open for reading.  Raises Problem."""
    fd = open_job_file(path, os.O_RDONLY)
    try:
        yield fd
    except OSError as error:
        raise Problem(f"{path}: {reason(error)}") from None
    finally:
        os.close(fd)


# ---- directives ------------------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class JobSettings:
    """What a settings directive says of the jobs below it."""
    line: Line | None = None            # the directive itself; None: there is none
    timeout: float | None = 0.0         # seconds; None: no limit; 0: what the runner was told
    hosts: tuple[str, ...] = ()         # names and patterns, in small letters; (): any host
    together: str = ""                  # the name of a group
    min_hosts: int | None = None        # of the group; None: all
    slots: int = 1                      # that each job takes

    def __str__(self) -> str:
        """'host bob with 4 slots (#RUN in line 4)'"""
        names = ("a runner" if not self.hosts else f"host {self.hosts[0]}" if len(self.hosts) == 1 else
                 f"one of the hosts {', '.join(self.hosts)}")
        slots = f" with {self.slots} slots" if self.slots > 1 else ""
        return f"{names}{slots} (#RUN in line {self.line.number})"


NO_SETTINGS = JobSettings()


@dataclass(eq=False, repr=False)
class Directive:
    """A line that begins with #RUN."""
    kind: str                   # "settings", "barrier", "barrier check" or "end"
    settings: JobSettings = NO_SETTINGS


KNOWN_DIRECTIVES = ("barrier", "barrier check", "end")
KNOWN_SETTINGS = ("timeout", "host", "together", "min-hosts", "slots")


def parse_directive(line: Line) -> Directive:
    """What a directive says.  Raises ValueError: what is wrong with it."""
    known = parse_settings(line.text)
    if known.kind != "settings":
        return known
    settings = known.settings   # replace() would take three times as long, and files may have many of these
    return Directive("settings", JobSettings(line, settings.timeout, settings.hosts, settings.together,
                                             settings.min_hosts, settings.slots))


@functools.lru_cache(maxsize=1000)
def parse_settings(text: bytes) -> Directive:
    """What a directive says, wherever it stands; text: from `RUN` on.  Raises ValueError."""
    name, *words = [os.fsdecode(word) for word in re.split(rb"[ \t]+", text.rstrip(b" \t\r"))]
    if name.startswith("RUN:"):
        raise ValueError("unknown directive (write #RUN ..., without the colon)")
    if name != "RUN":
        raise ValueError("unknown directive (nothing but a blank may follow #RUN; a comment needs one after the #)")
    if " ".join(words) in KNOWN_DIRECTIVES:
        return Directive(" ".join(words))
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in KNOWN_SETTINGS or not equals:
            raise ValueError(f"'{printable(word)}' makes no sense here (settings are timeout= host= slots= "
                             "together= min-hosts=; barrier, barrier check and end stand alone)")
        if name in found:
            raise ValueError(f"{name}= stands there twice")
        if "" in (value.split(",") if name == "host" else [value]):
            raise ValueError(f"{name}= has an empty value")
        found[name] = value
    return Directive("settings", _job_settings(found))


def _job_settings(found: dict[str, str]) -> JobSettings:
    """The settings in a settings directive.  Raises ValueError."""
    hosts = tuple(found["host"].lower().split(",")) if "host" in found else ()
    for host in (host for host in hosts if "[" in host):
        try:
            fnmatch.fnmatchcase("", host)
        except re.error:                        # [z-a], before Python 3.10
            raise ValueError(f"host= has a pattern that makes no sense: '{printable(host)}'") from None
    if "together" in found and not hosts:
        raise ValueError("together= needs host=")
    if "min-hosts" in found and "together" not in found:
        raise ValueError("min-hosts= needs together=")
    if "slots" in found and "together" in found:
        raise ValueError("slots= and together= do not go together")
    least = found.get("min-hosts", "all")
    try:
        return JobSettings(None, duration(found["timeout"]) if "timeout" in found else 0.0, hosts,
                           found.get("together", ""), None if least == "all" else whole_number(0)(least),
                           whole_number(1, 100_000)(found.get("slots", "1")))
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None


def says(line: Line, kind: str) -> bool:
    """Whether a line is a directive of this kind, with nothing wrong."""
    return not _fault(line.text) and parse_settings(line.text).kind == kind


def stopping(bad: Line, check: Line) -> str:
    """What is said when a barrier check stops what is below it."""
    how = "failed" if bad.state == FAILED else "ended in error"
    return f"line {bad.number} {how}, and the #RUN barrier check in line {check.number} stops what is below it"


LOOK_ALIKE = re.compile(rb"\n([ \t]{0,8}#[ \t]{0,8}[Rr][Uu][Nn])")      # or a directive itself
# A directive were it not for blanks, small letters and a colon
FORGIVEN = re.compile(rb"[ \t]*#[ \t]*run(?:[ \t:]+(.*))?[ \t\r]*", re.IGNORECASE | re.DOTALL)
NO_DIRECTIVE = "looks like a directive but is a comment (write #RUN ...)"


def is_look_alike(line: bytes) -> bool:
    """Whether a comment may be meant as a directive; prose is none."""
    match = None if line.startswith(b"#RUN") else FORGIVEN.fullmatch(line)
    return match is not None and not _fault(b"RUN " + (match[1] or b"").lower())


def _fault(text: bytes) -> str:
    """What is wrong with a directive; ''."""
    try:
        parse_settings(text)
        return ""
    except ValueError as fault:
        return str(fault)


def check_directives(path: str, say: Say) -> None:
    """Refuse a job file with a malformed directive; name what only looks like one.  Raises Problem."""
    first = alike = 0
    with job_file(path) as fd:
        scan = Scan(fd, first_line(fd), b"", directives=True)
        scan.pattern, scan.rest = LOOK_ALIKE, 20        # the longest match but for its last byte
        for line in scan:
            if line.state == DIRECTIVE and line.text.startswith(b"RUN"):
                fault = _fault(line.text)
                if fault:
                    raise Problem(f"{path}: line {line.number}: {fault}")
            elif is_look_alike(line.state + line.text):
                first, alike = first or line.number, alike + 1
    if alike:
        more = f", and so {'does' if alike == 2 else 'do'} {alike - 1} more" if alike > 1 else ""
        say(f"line {first} {NO_DIRECTIVE}{more}")


# ---- lines that are no jobs ------------------------------------------------------------------------------------------


# Neither a job, nor a comment, nor blank; and not the first byte of a line that is being written
STRAY = re.compile(rb"(?![^ \t\n][ \t]|[#/]|[ \t\r\f\v]*(?:#|$)|.\Z)")
NO_JOB = "is neither a job nor a comment (a job is '. COMMAND', a comment begins with #)"


def stray_lines(fd: int, among: float = math.inf) -> Iterator[int]:
    """The numbers of lines that are neither jobs, nor comments, nor blank, of so many lines.  Raises OSError."""
    with open(fd, "rb", closefd=False) as file:
        file.seek(first_line(fd))
        number, begins = 0, True
        for piece in iter(functools.partial(file.readline, 4096), b""):
            number += begins
            if number > among:
                return
            if begins and STRAY.match(piece):
                yield number
            begins = piece.endswith(b"\n")


def check_lines(path: str, say: Say, refuse: bool = True) -> None:
    """Refuse a file of plain commands, without a job; name a stray line at the beginning of any other file.

    refuse: or only name it there, too.  Raises Problem.
    """
    with job_file(path) as fd:
        refuse = refuse and not Scan(fd, first_line(fd)).next()
        stray = stray_lines(fd) if refuse else stray_lines(fd, 1000)
        first = next(stray, 0)
        count = 1 + sum(1 for _ in stray) if refuse else 1
    if first and refuse:
        raise Problem(f"{path}: has no job, but {plural(count, 'line')} that {'is' if count == 1 else 'are'} no "
                      f"comment, the first is line {first} (a job is '. COMMAND'; to make jobs of them: "
                      f"runset4.py NEW --add-list {shlex.quote(path)})")
    if first:
        say(f"line {first} {NO_JOB}")


def check_job_file(path: str, say: Say) -> None:
    """Before anything runs: refuse a file that was not understood, name what may not be.  Raises Problem."""
    check_lines(path, say)
    check_directives(path, say)


# ======== The job file ================================================================================================


@dataclass(eq=False, repr=False)
class Job(Line):
    """A claimed line; `state` is what it was when it was claimed."""
    fd: int = -1                        # the descriptor with the record lock, for the job to inherit; -1: none
    inode: tuple[int, int] = (0, 0)     # device and inode number of the file that the lock is, or was, on
    missing: int = 0                    # looks in a row that did not find the line as `r`
    search_at: float = 0.0              # when to look again (JobFile's clock)
    retried: bool = False               # it was claimed by --retry or --resume
    set_once: bool = False              # the last look found that somebody has set another state over its `r`
    cancelled: bool = False             # ... and so did the one before
    settings: JobSettings = NO_SETTINGS
    taker: Taker | None = None          # who asked for it
    gate: Gate | None = None            # what its shell is held by until it may begin
    how: str = ""                       # its last run ended: "exit 0", ...


class NotNow(Exception):
    """A result cannot be written at this moment; try again."""


LOST = b""                      # the "state" of a held line that has become another runner's


@dataclass(eq=False, repr=False)
class Matches:
    """The job lines of one text, and the jobs of this text whose lines are searched."""
    jobs: list[Job] = field(default_factory=list)
    count: int = 0                                              # lines in any state
    new: int = 0                                                # ... `.`
    state: bytes = b""                                          # of the last
    running: list[Line] = field(default_factory=list)           # `r`
    saved: list[Line] = field(default_factory=list)             # `.`: the first ones, and those with a wanted number

    def add(self, line: Line, numbers: Collection[int]) -> None:
        """numbers: the wanted ones."""
        self.count += 1
        self.state = line.state
        if line.state == RUNNING:
            self.running.append(line)
        elif line.state == NEW:
            self.new += 1
            if self.new <= len(self.jobs) or line.number in numbers:
                self.saved.append(line)


@dataclass(eq=False, repr=False)
class Suspect:
    """A line `r` that was found without a lock, `looks` times, last at `when` (monotonic seconds)."""
    text: bytes
    when: float
    looks: int = 0


class Suspects:
    """Lines `r` that are not locked.  Three looks, one apart, prove an orphan: editors may have moved it just now."""
    LOOKS = 3

    def __init__(self, interval: float, clock: Callable[[], float]) -> None:
        """interval: seconds from look to look."""
        self.interval, self.clock = interval, clock
        self.found: dict[int, Suspect] = {}     # by offset
        self.met: set[int] = set()              # offsets of the lines that this round has looked at

    def look(self, line: Line) -> bool:
        """A line was found without a lock; whether that proves it."""
        now = self.clock()
        suspect = self.found.get(line.offset)
        if suspect is None or suspect.text != line.text:
            suspect = self.found[line.offset] = Suspect(line.text, now - self.interval)
        self.met.add(line.offset)
        if now - suspect.when >= self.interval:
            suspect.looks += 1
            suspect.when = now
        return suspect.looks >= self.LOOKS

    def acquit(self, offset: int) -> None:
        self.found.pop(offset, None)

    def end_round(self) -> None:
        """Forget the lines that this round has not met."""
        self.found = {at: suspect for at, suspect in self.found.items() if at in self.met}
        self.met.clear()


@dataclass(eq=False, repr=False)
class Survey:
    """What a job file holds."""
    states: Counter[bytes]                                      # how many job lines are in which state
    running: list[Line] = field(default_factory=list)           # lines `r` but for orphans
    orphans: list[Line] = field(default_factory=list)
    unsure: int = 0             # so many of `running` may turn out to be orphans; one more: the file may be half saved


@dataclass(frozen=True)
class Counts:
    """How many jobs are in which state; orphans are errors."""
    new: int
    running: int
    done: int
    failed: int
    error: int
    held: int

    @property
    def all(self) -> int:
        """Jobs that are waited for."""
        return self.new + self.running + self.processed

    @property
    def processed(self) -> int:
        return self.done + self.bad

    @property
    def bad(self) -> int:
        return self.failed + self.error


def counts(found: Survey) -> Counts:
    """How many jobs a survey has found in which state; orphans are errors."""
    states = found.states
    held = sum(states.values()) - sum(states[state] for state in (NEW, RUNNING, DONE, FAILED, ERROR))
    return Counts(states[NEW], len(found.running), states[DONE], states[FAILED], states[ERROR] + len(found.orphans),
                  held)


@dataclass(frozen=True)
class Account:
    """What a job file holds when somebody leaves it."""
    now: Counts
    unsure: int = 0             # how many running jobs may turn out to be orphans
    bad: tuple[int, ...] = ()   # the first lines that are `!`, `e` or orphans
    alone: bool = False         # some of these are run again by -r or --resume
    grouped: bool = False       # some are of groups, which are not
    left: bool = False          # a new job is left that the one who leaves could have run

    def describe(self, with_lines: bool) -> str:
        """'31 done, 2 failed (lines 3, 5), 9 new', as in a closing line."""
        now = self.now
        held = now.held if not now.all else 0
        bad, rest = ([f"{count} {word}" for count, word in some if count] for some in (
            ((now.done, "done"), (now.failed, "failed"), (now.error, "lost")),
            ((now.new, "new"), (now.running, "running"), (held, "held"))))
        if self.bad and with_lines:
            bad[-1] += f" ({name_lines(self.bad)})"
        return ", ".join(bad + rest) or "no jobs"


class JobFile:
    """A job file and the lines of it that are held here: locks, verifies, writes, looks after them.

    For one thread at a time.  It does not wait for jobs, and which line comes next is a `Cursor`'s business.  On a
    network file system any call may take long, and its caller runs it in a thread of its own.

    A runner opens the file anew for each line, and its job inherits that descriptor: the lock lives as long as either.
    A server's jobs are elsewhere.  All its locks are on one descriptor (`single`), which a keeper shares; so are a
    runner's where locks are classic.  Locks on one descriptor do not exclude their own process (fcntl(2)).

    A job is held from mark() to give_up().  It has `fd` and `inode`, of the descriptor that its lock is on, and
    `offset`, of the byte that is locked.  fd = -1: its lock was lost.  offset = -1: it is locked nowhere, because
    something else stands there now; the descriptor is kept, since its shell has the same.  At any time:

     1. `locked` knows each held job that has a lock, by inode and offset, and nothing else.  So no byte has two jobs.
     2. `users` counts the users of a descriptor: held jobs with this `fd`, this object for its own, and
        locked_line() while it lasts.  _drop() alone closes one, with the last of them.
     3. A job loses its lock in _unlock() and _disown() alone, and gets one in _hold() alone.
    """
    LOOKS = 3                   # that prove that a line is gone
    BAD = 9                     # lines that an account names

    def __init__(self, path: str, *, say: Say, mount: Mount = LOCAL, read_only: bool = False, single: bool = False,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.say, self.clock, self.network, self.direct = path, say, clock, mount.network, mount.direct
        self.single = single or not DESCRIPTION_LOCKS
        self.flags = (os.O_RDWR if self.single and not read_only else os.O_RDONLY) | os.O_CLOEXEC
        self.interval = 5.0 if self.network else 1.0    # seconds from look to look
        self.held: dict[Job, None] = {}         # in the order in which they got their locks
        self.locked: dict[tuple[tuple[int, int], int], Job] = {}    # by inode and offset
        self.users: Counter[int] = Counter()    # of each descriptor
        self.to_end: dict[Job, str] = {}        # jobs "lost" to others, or "cancelled"; told by the next look_after()
        self.suspects = Suspects(self.interval, clock)         # of survey()
        self.edits = 0                          # how often it was noticed that lines have moved
        self.size = (-1, 0.0)                   # as it was seen last, and since when
        self.full_size = 0                      # the last that was believed
        self.fd = -1                            # for reading; if `single`: for everything
        self.inode = (0, 0)                     # its device and inode
        self.start = 0                          # where its first line begins

    # -- taking a line ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked_line(self, line: Line, fd: int = -1) -> Iterator[int]:
        """Hold a line's lock for a moment: the descriptor, or -1 if somebody else has it, or this very process.

        A caller that makes it a held line meanwhile keeps lock and descriptor.  fd: the one to use, of today's file.
        Raises Shifted, OSError.
        """
        if fd < 0:
            fd = self.fd if self.single else os.open(self.path, os.O_RDWR | os.O_CLOEXEC | self.direct)
        self.users[fd] += 1
        try:
            if not (self.names(fd) if self.single else self.identity(fd) == self.inode):
                raise Shifted                       # the file was replaced this very moment
            if self.is_ours(line.offset) or not lock(fd, line.offset):
                yield -1
                return
            try:
                yield fd
            finally:
                if not self.is_ours(line.offset):
                    unlock(fd, line.offset)
        finally:
            self._drop(fd)

    def is_ours(self, offset: int) -> bool:
        """Whether we hold this line; locks on one descriptor do not exclude their own process."""
        return (self.inode, offset) in self.locked

    def mark(self, fd: int, line: Line, taker: Taker | None = None, settings: JobSettings = NO_SETTINGS) -> Job:
        """Write `r` over the state of a line that is locked and verified, and hold it.  Raises OSError."""
        job = Job(**vars(line), taker=taker, settings=settings)
        if line.state != RUNNING:
            try:
                self.write(fd, line, RUNNING)
            except OSError:                         # disk full, lease lost: no `r` may stay behind without a lock
                with contextlib.suppress(OSError):
                    self.write(fd, line, line.state)
                raise
        self._hold(job, fd)
        return job

    def _hold(self, job: Job, fd: int) -> None:
        """A line of today's file is held from now on, by the lock that it has on this descriptor."""
        job.fd, job.inode = fd, self.inode
        self.users[fd] += 1
        self.held.pop(job, None)
        self.held[job] = None
        self.locked[job.inode, job.offset] = job

    def _unlock(self, job: Job) -> None:
        """Give back the lock on a held line's byte, if it has one.  Raises OSError; then it has it still."""
        if job.fd >= 0 and job.offset >= 0:
            unlock(job.fd, job.offset)
            del self.locked[job.inode, job.offset]

    def _disown(self, job: Job) -> None:
        """Take descriptor and lock from a held line."""
        if job.fd >= 0:
            self.locked.pop((job.inode, job.offset), None)
            self._drop(job.fd)
            job.fd = -1

    def _drop(self, fd: int) -> None:
        """One user of a descriptor less.

        Without any it is closed, but where locks are classic: to close one would drop all locks on that file.
        """
        self.users[fd] -= 1
        if not self.users[fd]:
            del self.users[fd]
            if DESCRIPTION_LOCKS:
                self.reclaim(fd)

    def check(self) -> None:
        """Assert the invariants, between two calls."""
        owners = [job for job in self.held if job.fd >= 0]
        assert self.locked == {(job.inode, job.offset): job for job in owners if job.offset >= 0}
        assert self.users == Counter([job.fd for job in owners] + [self.fd] * (self.fd >= 0))

    @staticmethod
    def lend(job: Job) -> int:
        """A copy of the descriptor with a held line's lock, for its shell to inherit; -1: none.  Raises OSError.

        Classic locks are not inherited, and to close a copy would give them all back.
        """
        return os.dup(job.fd) if job.fd >= 0 and DESCRIPTION_LOCKS else -1

    @staticmethod
    def reclaim(fd: int) -> None:
        """Close a descriptor that has a lock: what was lent, once the shell has its own copy."""
        with contextlib.suppress(OSError):      # EIO: the lease was lost, which the next look will see; what was
            os.close(fd)                        # written was synced

    def is_orphan(self, line: Line, suspects: Suspects) -> bool:
        """Look at a line `r`: whether it is an orphan for sure."""
        if not is_free(self.fd, line.offset) or self.is_ours(line.offset):
            suspects.acquit(line.offset)
            return False
        if self.state_at(self.fd, line) != RUNNING:    # read after the lock test: it had ended just before that
            return False
        return suspects.look(line)

    # -- results ----------------------------------------------------------------------------------------------------

    def finish(self, job: Job, state: bytes) -> str:
        """Write a job's new state and give its line back.  What went wrong for good, or ''.  Raises NotNow.

        HELD: the job was cancelled, and its line says already what somebody wishes.
        """
        if state == HELD:
            self.give_up(job)
            return ""
        try:
            found = self._find(job)
            if found in (None, NEW) and job.missing < self.LOOKS:
                raise NotNow("its line is not where it was")
            if found == RUNNING and job.fd < 0:
                raise NotNow("its lock was lost, and somebody has taken the line this very moment")
            if found == RUNNING:
                self.write(job.fd, job, state)
        except OSError as error:
            raise NotNow(f"its result {show(state)} cannot be written: {reason(error)}") from None
        self.give_up(job)
        if found in (RUNNING, state):               # somebody may have set it by hand to what it is to be
            return ""
        why = ("its line is gone" if found is None else "another runner has taken it meanwhile" if found == LOST else
               f"its state was set to '{show(found)}' meanwhile")
        return f"{why}; its result {show(state)} is not written"

    def give_up(self, job: Job) -> None:
        """Let go of a job's line without writing anything."""
        self.held.pop(job, None)
        self.to_end.pop(job, None)
        with contextlib.suppress(OSError):          # EIO, ESTALE: the lock is lost already
            self._unlock(job)                       # the job's processes may have the descriptor, too
        self._disown(job)

    # -- looking after held lines -----------------------------------------------------------------------------------

    def look_after(self) -> dict[Job, str]:
        """Follow the lines that an edit has moved and take back lost locks.

        Returns the jobs to be ended: "lost", others have taken them from us; "cancelled", their state was set.
        """
        if not self.held and not self.to_end:
            return {}
        for _ in range(2):              # an error may be over at once, and three looks prove an orphan to others
            try:
                self.follow_path()
                self.refresh()
                self.keep_hold()
                break
            except OSError as error:    # not there, or not now: there is another look soon, and finish() says so
                self.leave_useless(error)
        self.check()
        to_end, self.to_end = self.to_end, {}
        return to_end

    def keep_hold(self) -> None:
        """Lock held lines where they stand now; note in `to_end` which jobs are to be ended.  Raises OSError.

        A read tells that the lease was lost only if it asks the server, not if it finds its page in this host's memory.
        All older locks are lost then: so the oldest are looked at first, and after a lost one all is made fresh again.
        """
        states = {}
        for job in self.held:
            if not job.cancelled:
                states[job] = self._state_here(job)
                if job.fd < 0:
                    self.refresh()
        astray = {job: state for job, state in states.items() if state != RUNNING or job.fd < 0}
        for job in states.keys() - astray.keys():
            job.missing, job.set_once = 0, False
        now = self.clock()
        if any(job.search_at <= now for job in astray):
            self.to_end.update(dict.fromkeys(self._relocate(astray), "lost"))

    @staticmethod
    def _cancels(job: Job, state: bytes | None) -> bool:
        """Whether a state that was set over a held line's `r` is more than what an editor has read before the claim."""
        return state not in (None, RUNNING, NEW, job.state)

    def _note_set(self, job: Job) -> None:
        """Somebody has set a held line's state; an editor may be about to write more, so the next look must agree."""
        job.search_at = 0.0
        if job.set_once:
            job.cancelled = True
            self.to_end[job] = "cancelled"
        job.set_once = not job.cancelled

    def _find(self, job: Job) -> bytes | None:
        """The state of a held line, wherever it stands now; None: it is nowhere; LOST: it is another runner's.

        Raises OSError.
        """
        try:
            self.follow_path()
        except FileNotFoundError:
            job.missing += 1
            return None                             # deleted; or an editor is about to put a new one there
        state = self._state_here(job, fresh=True)
        if state != RUNNING or job.fd < 0:
            if self._relocate({job: state}):
                return LOST
            state = self._state_here(job)
        return state

    def _state_here(self, job: Job, fresh: bool = False) -> bytes | None:
        """The state of a held line if it stands where it stood, in today's file; None if it does not.

        If its lock turns out to be lost, job.fd is -1 from now on.  fresh: other hosts may have edited the file since
        the last refresh(); to lock the line again is one, too.
        """
        if job.inode != self.inode:
            return None
        try:
            if job.fd >= 0:
                ask = fresh and self.network and not self.direct and job.offset >= 0
                if ask and not lock(job.fd, job.offset):
                    raise OSError(errno.EIO, "the lock was lost")
                return self.state_at(job.fd, job)
        except OSError as error:
            # NFS: the lease was lost, and with it every lock of this host; the old descriptor stays useless, even where
            # a lock on it seems to succeed
            if error.errno not in (errno.EIO, errno.ESTALE, errno.EBADF):
                raise
            self._forsake(job.fd)
        return self.state_at(self.fd, job) if job.inode == self.inode else None     # it may have been opened anew

    def _forsake(self, fd: int) -> None:
        """Leave a descriptor whose locks are lost: no held line has it from now on.  Raises OSError.

        Its job, or the keeper, has the same open file description.  So what this host remembers of its locks would
        refuse our own new ones, unless every one of them is given up first (seen on NFS v4.2).  Not before the file is
        open again: else a lock would be gone of which we do not know.
        """
        self.users[fd] += 1
        try:
            if fd == self.fd:
                self._open_anew()
            with contextlib.suppress(OSError):
                unlock(fd, 0, 0)
        finally:
            self._drop(fd)
        for job in self.held:
            if job.fd == fd:
                self._disown(job)

    # A held line that does not stand where it stood as `r` (it is astray) is looked for by its text.  Lines of one text
    # are interchangeable, so only two things count: that each job gets a line `r`, and that no line has two jobs.
    #
    #     1. What stands where the line stood is not ours: its lock is given back.  If it is the same text in another
    #        state, it may be ours all the same (set by hand): its lock is kept until step 2 finds a better line.  So it
    #        is where nothing stands: an editor that saves in place empties the file, and is about to write it.
    #     2. Each takes the first line `r` of its text whose lock is free.  Nobody else can want that one: for others it
    #        is an orphan only after three looks.
    #     3. Otherwise a `.` (or `!`, `e`, if it was claimed as such), which an editor has saved as it read it before
    #        the claim, is made `r` again where the line stood; or a `.` elsewhere, unless the text still stands there
    #        in another state, if there are as many of them as jobs, or one has the job's line number.  While somebody
    #        seems to have a line `r` of this text, it may be ours yet; see `_is_quiet`.
    #     4. Otherwise, if somebody else holds the one line of this text, or the one with the job's number, or has ended
    #        the job after our lock was lost, it is theirs, and we stop our copy.
    #     5. Otherwise the line's state was set by hand, if its text still stands there, or just once in the file: the
    #        job is cancelled if the next look agrees.  Else it is gone, which is looked at again, later and later.

    def _relocate(self, astray: dict[Job, bytes | None]) -> list[Job]:
        """Lock astray lines where they stand now; returns the jobs whose lines others have.

        astray: with the states that stand in their old places, if the text does.  Raises OSError.
        """
        if any(not job.missing for job in astray):
            self.edits += 1
        texts: dict[bytes, Matches] = defaultdict(Matches)
        for job in sorted(astray, key=lambda job: job.number):
            texts[job.text].jobs.append(job)
            if (astray[job] is None and job.fd >= 0 and job.inode == self.inode and job.offset >= 0
                    and os.pread(self.fd, 1, job.offset)):
                self._unlock(job)               # step 1: something else stands there now, perhaps another of ours
                job.offset = -1
        numbers = {job.number for job in astray}
        for line in self.lines_of(texts):
            texts[line.text].add(line, numbers)
        lost = []
        for lines in texts.values():
            lost += self._settle_astray(lines, astray)
        for job in lost:
            self.give_up(job)
        return lost

    def _settle_astray(self, lines: Matches, astray: dict[Job, bytes | None]) -> list[Job]:
        """Steps 2 to 5 for the jobs of one text; returns the jobs whose lines others have.  Raises OSError."""
        jobs, others = lines.jobs, []
        for line in lines.running:
            if jobs and not self.is_ours(line.offset):
                if self._move(jobs[0], line):
                    jobs = jobs[1:]
                else:
                    others.append(line)
        sure_of = [job for job in jobs if not others or self._is_quiet(job)]
        there = [job for job in sure_of if job.fd >= 0 and astray[job] in (NEW, job.state) and self._put_right(job)]
        jobs = [job for job in jobs if job not in there]
        sure = len(jobs) == lines.new - len(there)  # if there are more such lines than jobs, only the number can tell
        for job in list(jobs):
            if job in sure_of and not self._cancels(job, astray[job]) and any(
                    (sure or line.number == job.number) and self._move(job, line) for line in lines.saved):
                jobs.remove(job)
        lost = []
        for job in jobs:
            state = lines.state if astray[job] is None and lines.count == 1 else astray[job]
            if self._is_others(job, lines, others, astray[job]):
                lost.append(job)
            elif self._cancels(job, state):
                self._note_set(job)
            else:
                self._note_missing(job, state)
        return lost

    def _is_others(self, job: Job, lines: Matches, others: list[Line], here: bytes | None) -> bool:
        """Step 4."""
        if job.fd < 0 and here in (RUNNING, DONE, FAILED):
            return True
        return self._is_quiet(job) and (lines.count == len(others) == 1 or any(
            line.number == job.number for line in others))

    def _is_quiet(self, job: Job) -> bool:
        """Whether locks say who has which line.

        After an edit in place they are left on the bytes where other lines stood, until their runners have looked, too:
        so only the third look is believed, unless the file was replaced, and its locks are fresh.
        """
        return job.inode != self.inode or job.missing + 1 >= self.LOOKS

    def _note_missing(self, job: Job, here: bytes | None) -> None:
        """Step 5: say when to look again; to search a long file each second would cost half a core."""
        job.missing += 1
        job.search_at = self.clock() + self.interval * min(2 ** max(job.missing - self.LOOKS, 0), 60)
        if job.missing == self.LOOKS and here is None:
            self.say(f"line {job.number}: is not in the file any more; its job runs on")

    def _put_right(self, job: Job) -> bool:
        """Write `r` over the old state that was saved over a held line in its place."""
        state = self.state_at(job.fd, job)
        if state not in (NEW, job.state):
            return False
        self.write(job.fd, job, RUNNING)
        job.missing = 0
        self.say(f"line {job.number}: its job runs, so the {show(state)} that was saved over its r is r again "
                 "(runset4.py --edit keeps states)")
        return True

    def _move(self, job: Job, line: Line) -> bool:
        """Hold a job's line where it stands now, and nowhere else, if it is free and still so.  Raises OSError."""
        same = job.fd >= 0 and job.inode == self.inode  # on the same file the job shares it: so it keeps its life sign
        with self.locked_line(line, job.fd if same else -1) as fd:
            if fd < 0 or self.state_at(fd, line) != line.state:
                return False
            back = job.fd < 0 and job.offset == line.offset
            if same:
                self._unlock(job)
            self._disown(job)
            self.say(f"line {job.number}: its lock was lost and is taken back" if back else
                     f"line {job.number}: the file was edited; it is line {line.number} now, and its lock moved along")
            self.edits += not back
            job.offset, job.missing, job.number = line.offset, 0, line.number
            self._hold(job, fd)
            if line.state == NEW:
                self.write(fd, job, RUNNING)
        return True

    # -- just looking -----------------------------------------------------------------------------------------------

    def lines(self, states: bytes | None = None, count_states: bool = False, directives: bool = False) -> Scan:
        """All job lines, or those in some states, freshly read.  Raises OSError."""
        self.follow_path()
        self.refresh()
        return Scan(self.fd, self.start, states, count_states=count_states, directives=directives)

    def lines_of(self, texts: Collection[bytes], states: bytes | None = None) -> Iterator[Line]:
        """The job lines with these texts, in some states (None: in any), wherever they stand now.  Raises OSError."""
        scan = Scan(self.fd, self.start, states)
        if len(texts) <= 50:                    # then what finds their heads is faster, though it may find more
            heads = rb"|".join(re.escape(text[:200]) for text in texts)
            scan.pattern, scan.rest = re.compile(rb"\n[^#/ \t\n](?:%b)" % heads), 1 + 200
        for line in scan if texts else ():
            if line.text in texts and (states is None or line.state in states):
                yield line

    def survey(self) -> Survey:
        """Count the states, and tell orphans from running jobs.  Raises OSError."""
        scan = self.lines(RUNNING, count_states=True)
        found = Survey(scan.states)
        for line in scan:
            (found.orphans if self.is_orphan(line, self.suspects) else found.running).append(line)
        self.suspects.end_round()
        found.unsure = len(self.suspects.found) - len(found.orphans) + (self.doubt(scan.end) > 0)
        return found

    def doubt(self, size: int) -> float:
        """Seconds for which it is too early to believe what was read, if the file was of this size.

        An editor that saves a file in place empties it first.  So a file that is empty, or shorter than it was, has to
        stay so for as long as a last line without a newline.
        """
        now = self.clock()
        if size != self.size[0]:
            self.size = size, now
        early = self.size[1] + self.interval - now
        if early > 0 and (size == 0 or size < self.full_size):
            return early
        self.full_size = size
        return 0.0

    def account(self, takers: Takers, groups: bool = False) -> Account:
        """What the file holds.  Raises OSError.

        takers: they leave; the ones for whom no new job is left stay in there.  groups: they run groups, too.
        """
        found = self.survey()
        now = counts(found)
        numbers = [line.number for line in found.orphans]
        known = {False: bool(numbers), True: False}         # whether there are some alone, and some of groups

        def teaches(settings: JobSettings, ended: bool) -> bool:
            return len(numbers) < self.BAD or not known[bool(settings.together)]

        def fits(settings: JobSettings, ended: bool) -> bool:
            return (groups or not settings.together) and any(True for _ in takers.fitting(settings, ended))

        for line, settings, _ in self._lines_under(FAILED + ERROR, teaches) if now.bad else ():
            numbers.append(line.number)
            known[bool(settings.together)] = True
        left = False
        for _, settings, ended in self._lines_under(NEW, fits) if now.new and takers.all else ():
            left = True
            for taker in list(takers.fitting(settings, ended)):
                del takers.all[taker]
        return Account(now, found.unsure, tuple(sorted(numbers)[:self.BAD]), known[False], known[True], left)

    def _lines_under(self, states: bytes, wanted: Callable[[JobSettings, bool], Any],
                     ) -> Iterator[tuple[Line, JobSettings, bool]]:
        """Lines in some states, each with its settings, and whether it is below `#RUN end`, where these are wanted.

        Below a faulty directive everybody waits: so it counts as no settings at all.  Raises OSError.
        """
        settings, ended = NO_SETTINGS, False
        scan = self.lines(states, directives=True)
        while line := scan.next(few=not wanted(settings, ended)):
            if line.state == DIRECTIVE:
                try:
                    directive = parse_directive(line)
                    settings = directive.settings if directive.kind == "settings" else settings
                    ended |= directive.kind == "end"
                except ValueError:
                    settings = NO_SETTINGS
            elif line.state in states:          # else it is one of the few, which are not wanted
                yield line, settings, ended

    def stopped_by(self) -> str:
        """Which failure and barrier check keep all new jobs from being started; '' if none do.  No job may run here.

        Raises OSError.
        """
        bad = check = None
        for line in self.lines(NEW + RUNNING + FAILED + ERROR, directives=True):
            if line.state == NEW:
                return stopping(bad, check) if check else ""
            if line.state != DIRECTIVE:
                bad = bad or line               # a line `r` is an orphan
            elif bad and says(line, "barrier check"):
                check = line
        return ""

    # -- small steps ------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Make reads fresh on a network file system where they are not: only a granted lock does."""
        if self.network and not self.direct:
            for _ in range(100):
                if lock(self.fd, REFRESH_BYTE, shared=True):
                    return unlock(self.fd, REFRESH_BYTE)
                time.sleep(0.01)                # nobody of ours locks it exclusively
            raise OSError(errno.EAGAIN, "somebody keeps its refresh byte locked")

    def _stat(self) -> os.stat_result:
        """What the path names now.

        NFS answers from the directory's cached attributes, so for up to a minute it does not see that another host has
        renamed a new file to this place; opening the directory makes it ask the server (seen on v4.2: 23 s, then 0).
        So does opening the file for its own (nfs(5), close-to-open).
        """
        if self.network:
            see_names(self.path)
        if not self.direct:
            return os.stat(self.path)
        fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def signature(self) -> tuple[int, ...]:
        info = self._stat()
        return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns

    def names(self, fd: int) -> bool:
        """Whether the path still leads to this open file.  Raises OSError."""
        try:
            return self._is_same(fd) or self.signature()[:2] == self.identity(fd)
        except FileNotFoundError:
            return False                        # an editor is about to put a new one there

    def _is_same(self, fd: int) -> bool:
        """Whether the path leads to this open file, as far as one round trip of NFS tells.  Raises OSError."""
        if not self.direct or fd < 0:
            return False
        see_names(self.path)
        named = os.open(self.path, os.O_PATH | os.O_CLOEXEC)
        try:
            return inode_of(named) == inode_of(fd) != []
        finally:
            os.close(named)

    def must_name(self, fd: int) -> None:
        """Raise OSError(ESTALE) if the path leads to another file than this, or to none."""
        if not self.names(fd):
            raise Shifted

    def follow_path(self) -> None:
        """Make `fd` the file that the path names now.  Raises OSError."""
        if self._is_same(self.fd):
            return
        info = self._stat()
        if self.inode == (info.st_dev, info.st_ino):
            return
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, "is no regular file any more")
        known = self.fd >= 0
        self._open_anew()
        if known:
            self.say("was replaced by another file of this name; going on with that")

    def _open(self) -> tuple[int, int]:
        """A descriptor of what the path names now, and where its first line begins.  Raises OSError."""
        fd = -1
        try:
            fd = os.open(self.path, self.flags | self.direct)
            return fd, first_line(fd)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            if error.errno != errno.EINVAL or not self.direct:
                raise
        self.direct = 0                     # an NFS that takes no single bytes so
        return self._open()

    def _open_anew(self) -> None:
        """Go on with what the path names now, on a new descriptor.  Raises OSError; then nothing has changed."""
        fd, start = self._open()
        self.users[fd] += 1
        if self.fd >= 0:
            self.edits += 1
            self._drop(self.fd)                 # held lines may still have their locks on it
        self.fd, self.inode, self.start = fd, self.identity(fd), start
        self.suspects.found.clear()
        for job in self.held:
            job.search_at = 0.0                 # they may stand in here

    def leave_useless(self, error: OSError) -> None:
        """Leave the descriptor for reading if this error may mean that it is of no use any more.

        On NFS that is so if the lease was lost while refresh() had its lock.  The next follow_path() opens the file.
        """
        if error.errno != errno.EIO or self.fd < 0:
            return
        if self.single:                         # its locks are lost, too; so is what was read of them
            with contextlib.suppress(OSError):  # then there is another look
                self._forsake(self.fd)
        else:
            self._drop(self.fd)
            self.fd, self.inode = -1, (0, 0)

    @staticmethod
    def identity(fd: int) -> tuple[int, int]:
        info = os.fstat(fd)
        return info.st_dev, info.st_ino

    def read_line(self, fd: int, line: Line, ahead: int = 1) -> bytes:
        """The file from a line's state on and some way behind it, if the line stands there whole; else b''."""
        if line.offset < 0:
            return b""
        before = 1 if line.offset > self.start else 0
        end = 1 + len(line.text)
        data = os.pread(fd, before + end + ahead, line.offset - before)
        if before and data[:1] != b"\n":
            return b""
        data = data[before:]
        return data if data[1:end] == line.text and data[end:end + 1] in (b"\n", b"") else b""

    def state_at(self, fd: int, line: Line) -> bytes | None:
        """The state of a line that stands where it stood; None if it does not."""
        return self.read_line(fd, line)[:1] or None

    def write(self, fd: int, line: Line, state: bytes) -> None:
        """Write the state of a line that is locked and verified."""
        os.pwrite(fd, state, line.offset)
        if self.network:
            os.fsync(fd)                        # a server that is full, or lost, says so only here

    def close(self) -> None:
        """Sync to disk what was written."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):  # each write was checked; this only speeds it to the disk
                os.fsync(self.fd)


# ======== Finding work ================================================================================================


@dataclass(eq=False, repr=False)
class Taker:
    """A runner on the file, or a client of a server, that takes jobs."""
    name: str                   # of its host
    follow: bool = False        # it waits for more jobs, and leaves at `#RUN end`
    retry: bytes = b""          # the states that it takes besides '.'; r: orphans
    slots: float = math.inf     # that it has
    free: float = math.inf      # ... for one job more, at this moment
    tried: TriedLines = field(default_factory=lambda: TriedLines())

    def is_called(self, host: str) -> bool:
        """Whether an entry of host= means it."""
        name = self.name.lower()
        return any(fnmatch.fnmatchcase(known, host) for known in (name, name.partition(".")[0]))

    def fits(self, settings: JobSettings, ended: bool) -> bool:
        """Whether it may take jobs with these settings; ended: below `#RUN end`."""
        return (not (ended and self.follow) and settings.slots <= self.slots
                and (not settings.hosts or any(map(self.is_called, settings.hosts))))


class Takers:
    """The takers that want jobs now; the first has the next turn."""

    def __init__(self, takers: Iterable[Taker]) -> None:
        self.all = dict.fromkeys(takers)
        # for which hosts, how many slots, below `#RUN end` or not
        self.known: dict[tuple[tuple[str, ...], int, bool], set[Taker]] = {}

    def fitting(self, settings: JobSettings, ended: bool) -> Iterator[Taker]:
        """The takers that may have jobs with these settings."""
        if not settings.hosts and settings.slots == 1 and not ended:
            return iter(self.all)
        key = settings.hosts, settings.slots, ended     # files may have many directives, and servers many clients
        if key not in self.known:
            self.known[key] = {taker for taker in self.all if taker.fits(settings, ended)}
        return filter(self.known[key].__contains__, self.all) if self.known[key] else iter(())


class TriedLines:
    """The lines that --retry and --resume may not take (again): tried before, or left `!` or `e` by this runner.

    Known by line number and text.  Once the file was edited numbers mean nothing any more; then of the lines with one
    text as many are passed over, in each round, as there are of it in here.
    """

    def __init__(self, edits: int = 0) -> None:
        """edits: of the file, as far as they are known."""
        self.edits = edits
        self.round: Round | None = None         # the last that asked
        self.texts: dict[int, int] = {}         # by line number what hash() makes of the text; until the first edit
        self.last: Line | None = None           # the one that stands last in the file: an edit above would move it
        self.counts: Counter[int] | None = None # from the first edit on: how many lines of a text
        self.to_pass: Counter[int] = Counter()  # ... of them this round has still to pass over

    def add(self, line: Line, met: bool = True) -> None:
        """met: this round has just met it; else it may still do so."""
        if self.counts is not None:
            self.counts[hash(line.text)] += 1
            self.to_pass[hash(line.text)] += not met
        self.texts[line.number] = hash(line.text)
        if not self.last or line.offset >= self.last.offset:
            self.last = Line(line.number, 0, line.offset, line.state, line.text)

    def discard(self, line: Line) -> None:
        if self.counts is not None:
            self.counts[hash(line.text)] -= 1
        self.texts.pop(line.number, None)

    def note_edits(self, edits: int) -> None:
        """So many are known by now."""
        if edits != self.edits:
            self.edits = edits
            self.note_edit()

    def note_edit(self) -> None:
        """Line numbers may be off from now on."""
        if self.counts is None:
            self.counts = Counter(self.texts.values())

    def begin_round(self) -> None:
        self.to_pass = Counter(self.counts)

    def __contains__(self, line: Line) -> bool:
        text = hash(line.text)
        if self.counts is None:
            return self.texts.get(line.number) == text
        passed_over = self.to_pass[text] > 0
        self.to_pass[text] -= passed_over
        return passed_over


class StallReporter:
    """Says what has stood still for a while, once."""
    PATIENCE = 30.0             # seconds

    def __init__(self, say: Say, clock: Callable[[], float]) -> None:
        self.say, self.clock = say, clock
        self.since: dict[Any, float] = {}
        self.said: set[Any] = set()

    def update(self, stalls: dict[Any, str], at_once: dict[Any, str]) -> None:
        """What stands still at this moment, each under a key; all else is over.  at_once: said without patience."""
        now, texts = self.clock(), {**stalls, **at_once}
        self.since = {key: self.since.get(key, now) for key in texts}
        self.said &= self.since.keys()
        for key, since in self.since.items():
            if key not in self.said and (key in at_once or now - since >= self.PATIENCE):
                self.said.add(key)
                self.say(texts[key])


class Pace:
    """A stopwatch for looks at a file, which says how long to rest so that they take but a part of the time.

    What a look takes of the CPU counts.  It may take longer: a file system does not answer for a while, the machine is
    busy, we are stopped.  Such looks shall not follow each other at once, but no rest shall last minutes.
    """
    LONGEST = 3.0               # seconds of rest for time that was not spent on the CPU

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.began = -math.inf          # when the look did, by the clock
        self.took = self.worked = 0.0   # seconds, and of these seconds on the CPU, in all but the part under way
        self.since: tuple[float, float] | None = None       # the part under way

    def begin(self) -> None:
        """Another look begins."""
        self.took = self.worked = 0.0
        self.go_on()
        self.began = self.since[0]

    def go_on(self) -> None:
        """It goes on, or has just begun; to be called by the thread that pauses it, too."""
        self.since = self.clock(), time.thread_time()

    def pause(self) -> None:
        """It does not go on for now, or is over."""
        self.took, self.worked = self._spent()
        self.since = None

    __enter__ = begin

    def __exit__(self, *_: object) -> None:
        self.pause()

    def _spent(self) -> tuple[float, float]:
        if not self.since:
            return self.took, self.worked
        return self.took + self.clock() - self.since[0], self.worked + time.thread_time() - self.since[1]

    def rest(self, times: float) -> float:
        """Seconds that are `times` as long as the look."""
        took, worked = self._spent()
        return max(times * worked, min(times * took, self.LONGEST))

    def until_due(self, times: float, least: float = 0.0) -> float:
        """Seconds until another look is due; least: that there are between two in any case."""
        return max(self.began + max(self.rest(times), least) - self.clock(), 0.0)


@dataclass(eq=False, repr=False)
class Block:
    """Why jobs below a directive may not be taken for now."""
    line: Line                  # the directive
    fault: str = ""             # what is wrong with it
    stops: str = ""             # which failure makes a check stop; only takers that follow wait for its end

    @property
    def waits(self) -> bool:
        """Whether it is a barrier that waits for the first unfinished job above it."""
        return not self.fault and not self.stops


@dataclass(eq=False, repr=False)
class PendingGroup:
    """The new jobs of a group that a round has met, each with the settings that it is under."""
    LONGEST = 10_000            # jobs

    name: str
    ended: bool = False         # it stands below `#RUN end`
    jobs: list[tuple[Line, JobSettings]] = field(default_factory=list)
    whole: bool = False         # its end was seen, too
    waits: bool = False         # other jobs of it have not ended, or it may have more than was met
    started: bool = False


@dataclass(eq=False, repr=False)
class Round:
    """What one walk of a cursor through the file has come across; once it is over nothing changes it any more."""
    takers: frozenset[Taker] = frozenset()  # for whom all of it was made
    began: float = -math.inf                # by the cursor's clock
    settings: JobSettings = NO_SETTINGS     # that hold here
    ended: bool = False                     # below `#RUN end`
    unfinished: Line | None = None          # the first job that had not ended when it was met, by its settings:
    unfinished_by: JobSettings = NO_SETTINGS
    outdated: bool = False                  # ... by now it has ended: another round must see what else has not
    block: Block | None = None              # nothing more may be taken
    few: bool = False                       # until the next directive only running jobs are of interest
    found: bool = False                     # it took something: another round follows
    refused: bool = False                   # it met a line that somebody else had just taken, or held for a moment
    tail_seen: bool = False                 # it met a last line without newline
    passed: Line | None = None              # the first job that is for none of the takers
    missed: bool = False                    # it passed over new jobs: others than its takers might have had them
    waiting: set[Taker] = field(default_factory=set)    # takers with jobs that may be taken later
    below: Line | None = None               # the first of these below the block
    full: dict[Taker, float] = field(default_factory=dict)      # takers that wait for free slots, and how many they had
    groups: list[PendingGroup] = field(default_factory=list)
    stalls: dict[Any, str] = field(default_factory=dict)        # what waits for hosts that may never come
    checked: int = 0                        # up to here nothing has failed, or was lost

    def waits_for(self, taker: Taker) -> bool:
        """Whether it met jobs that this taker may take later.  What a check stops is only for takers that follow."""
        return taker in self.waiting and (taker.follow and not self.ended or not self.stopped(taker))

    def stopped(self, taker: Taker) -> str:
        """Which check keeps jobs from this taker for good, if one does."""
        return self.block.stops if self.block and taker in self.waiting else ""


@dataclass(frozen=True)
class Miss:
    """Why a cursor has found no line to take; it is false."""
    round: Round                # what it has met
    whole: bool = False         # ... on a whole walk through the file
    unfinished: bool = False    # it has used up its time, and goes on with the next claim
    again: float | None = None  # seconds until another claim may find a line; None: there is nothing to wait for
    failed: str = ""            # why nothing can be claimed any more

    def __bool__(self) -> bool:
        return False


class Cursor:
    """Finds the next line to take: `.` lines, and what --retry and --resume let its takers take besides.

    It moves forward through the file, and begins again at the top when it has come to the end and has found
    something: states may have been set back.  A server has one for all its clients.

    Directives are obeyed as they are met, since all that they speak of comes after them.  At a barrier a round knows
    the first job above that had not ended when it was met.  While that has not, nothing more need be known; when it
    has, a round begins at the top, and only one that meets nothing unfinished passes.  A round that has taken something
    waits there for a while, then begins again, too.  Only a round that takes nothing concludes that nothing below
    may be taken for now.  It still looks on, for jobs below that its takers must wait for; without any they may leave.
    """
    TROUBLE = 30.0              # seconds that errors of a network file system are put up with
    NAMED = 10                  # orphans, and stalls, that are named one by one
    STALE = 0.002, 1.0          # seconds after which what was read ahead is read again, ...
    PAUSE = 0.25                # seconds from look to look at a barrier
    SLICE = 0.05                # seconds after which a server's claim comes back: it wants to hear its clients, too

    def __init__(self, file: JobFile, takers: Iterable[Taker] = (), *, ordinals: bool = False,
                 wait_for_file: bool = False, unchecked: bool = False, serving: bool = False,
                 is_absent: Callable[[JobSettings], bool] = lambda settings: True) -> None:
        """takers: for whom it claims unless it is told otherwise; wait_for_file: it may come later;
        unchecked: it was not there to be checked.

        serving: its takers come and go, and the groups that it meets are started by somebody.  is_absent: whether none
        of the hosts of these settings is here.
        """
        self.file, self.say, self.clock = file, file.say, file.clock
        self.ordinals, self.wait_for_file, self.serving, self.is_absent = ordinals, wait_for_file, serving, is_absent
        self.unchecked = unchecked
        self.groups_named = False               # it was said that groups are left alone
        self.interval = file.interval
        self.orphans: list[int] = []            # line numbers of those met and not taken
        self.suspects = Suspects(self.interval, self.clock)
        self.edits = (file.edits, file.inode)    # of the file, as far as they are taken into account
        self.tail: tuple[int, float] | None = None          # a last line without newline: file size, since when
        self.scan: Scan | None = None           # the round under way
        self.round = Round()                    # ... or the last one
        self.miss = Miss(self.round)            # the last
        self.takers = Takers(takers)            # of the last claim
        self.claimed = 0.0                      # when that was
        self.sliced = False                     # ... whether it came back in the middle of its walk, to be made again
        self.pause_at = math.inf                # ... as of then (monotonic)
        self.refusals = 0                       # empty rounds in a row that met lines that others held
        self.quiet: tuple[int, ...] | None = None           # signature at the start of the last empty round
        self.pace = Pace(self.clock)            # of rounds, without their pauses
        self.trouble_since: float | None = None
        self.waits = StallReporter(self.say, self.clock)

    def claim(self, last: bool = False, takers: Takers | None = None) -> Job | Miss:
        """Claim the next job for one of the takers, the first that it fits.

        Between calls with the same object takers may leave it, and none may come.  last: nothing is running here, and
        the caller will leave; so no round is spared.
        """
        try:
            found = self._claim(last, takers or self.takers)
            self.trouble_since = None
            if self.unchecked:
                self._check_late()
        except OSError as error:
            found = self._bear(error)
        if not found:
            self.miss = found
        return found

    def _claim(self, last: bool, takers: Takers) -> Job | Miss:
        self._notice_edits()
        if takers is not self.takers:
            self.takers = takers
            if self.scan:                       # the new ones were not asked about what is above
                self.round.few = False
                self.round.takers = self.round.takers.intersection(takers.all)
        now = self.clock()
        if self.scan is None and (not last or self.round.waiting) and self._nothing_new():
            soon = self.round.outdated or self._has_room()
            return replace(self.miss, again=self._until_next()) if soon else self.miss
        self.pace.go_on()
        self.claimed, claimed = now, self.claimed
        self.sliced, sliced = False, self.sliced and self.scan is not None
        try:
            if self.scan is None or not sliced and self.pace.until_due(100, self.interval) == 0:
                self._begin_round()             # what stands above may have been edited in place: directives, too
            elif self.scan.last and not sliced and now - claimed > self._stale_after():     # so may what stands below
                if not self.scan.reread():                          # ... or above, and moved it
                    self._start_over()
            if self.serving:
                self.pause_at = self.scan.pause_at = time.monotonic() + self.SLICE
            return self._walk()
        except Paused:
            self.sliced = True
            return Miss(self.round, unfinished=True, again=0.0)
        finally:
            self.pace.pause()

    def _check_late(self) -> None:
        """Name what is not understood in a file that has come only now; at the start there was none to refuse."""
        self.unchecked = False
        with contextlib.suppress(Problem):      # it is gone again
            check_lines(self.file.path, self.say, refuse=False)

    def _start_over(self) -> None:
        """The file was edited: what was counted is off.  Raises OSError."""
        self.file.edits += 1
        self._begin_round()
        self.round.found = True

    def _walk(self) -> Job | Miss:
        """Go on through the file to the next job to take."""
        while True:
            try:
                line = self.scan.next(self.round.few)
                grows = line is not None and not line.whole and not self._is_over() and self._still_grows()
                if line is None or grows or self._is_over():    # what comes behind a cut line is for the next round
                    if not self.round.found:
                        return self._end_round(whole=line is None or grows, grows=grows)
                    self._begin_round()
                elif line.state == DIRECTIVE:
                    if not self._obey(line):
                        pause = self._until_next()
                        if pause:
                            self.scan.unread()      # the next claim meets this directive once more
                            return Miss(self.round, again=min(self.PAUSE, pause))
                        self._begin_round()
                else:
                    job = self._consider(line)
                    if job:
                        self.round.found = True
                        return job
            except Shifted:
                self._start_over()

    def _stale_after(self) -> float:
        """... the second of a file to which the way is long, until others turn out to claim its lines, too."""
        return self.STALE[self.file.network and not self.round.refused]

    def _begin_round(self) -> None:
        """Start from the top, with fresh reads.  Raises OSError."""
        file = self.file
        self.pace.begin()
        file.follow_path()
        file.refresh()
        file.keep_hold()                        # or an idle slot might take a job of ours that an edit has moved
        self._notice_edits()
        self.signature = file.signature()
        wanted = {*NEW, *RUNNING, *b"".join(taker.retry for taker in self.takers.all)}
        self.scan = Scan(file.fd, file.start, bytes(sorted(wanted)), count_states=self.ordinals, careful=True,
                         directives=True)
        self.scan.pause_at = self.pause_at
        self.round = Round(frozenset(self.takers.all), self.pace.began)

    def _until_next(self) -> float:
        """Seconds until another round may begin: one that may pass a barrier, or begin a big job, comes soon."""
        if self.round.outdated:
            return self.pace.until_due(1)
        return self.pace.until_due(20, 0.0 if self._has_room() else self.interval)

    def _end_round(self, whole: bool, grows: bool) -> Miss:
        """A whole round found nothing.  whole: it came to the end of the file; grows: its last line may change yet."""
        doubt = self.file.doubt(self.scan.end) if whole else 0.0
        self.scan = None
        self.suspects.end_round()
        self._end_group(waits=grows or self._is_being_appended())
        found = self.round
        if not found.tail_seen:
            self.tail = None
        now = self.clock()
        self.quiet = self.signature
        self.refusals = self.refusals + 1 if found.refused else 0
        due = [it.when + self.interval - now for it in self.suspects.found.values()]
        if grows:
            due.append(self.tail[1] + self.interval - now)
        if doubt:
            due.append(doubt)
        if found.refused:
            due.append(self.interval / 20 if self.refusals == 1 else self.interval)
        self._name_stalls()
        again = max(min(due), self.pace.rest(20), 0.01) if due else None
        return Miss(found, whole=True, again=again)

    def _nothing_new(self) -> bool:
        """Whether the last round was empty and there is no reason for another: an idle runner costs nothing.

        The signature is no proof (time stamps are coarse), so after a while a round is made all the same.  The round
        says nothing of takers that it was not made for.
        """
        if not self.quiet:
            return False
        asked = self.round.takers.issuperset(self.takers.all)
        if not asked and self.round.missed:
            return False
        if self.round.block and self.round.block.waits and self._is_outdated():
            return self._until_next() > 0
        if self.pace.until_due(20) > 0:         # a round through a huge file is not free
            return True
        if not asked or self.miss.again is not None or self.round.waiting:
            return False
        self.file.refresh()
        return self.pace.until_due(100, self.interval) > 0 and self.file.signature() == self.quiet

    def _has_room(self) -> bool:
        """Whether a taker that waits for free slots has more of them than it had."""
        return any(taker.free > before for taker, before in self.round.full.items())

    def _notice_edits(self) -> None:
        """If lines have moved: begin a new round, by what they say now."""
        now = self.file.edits, self.file.inode
        if self.edits == now:
            return
        if self.edits[1] != now[1]:                 # it is another file altogether
            self.tail = None
            self.suspects.found.clear()
        self.scan = self.quiet = None
        self.edits = now

    # -- lines that are met -----------------------------------------------------------------------------------------

    def _consider(self, line: Line) -> Job | None:
        """Take a job, if it may be taken now and is for one of the takers."""
        found = self.round
        if found.block:
            return self._note_waiting(line)
        if line.state == RUNNING and not self.file.is_orphan(line, self.suspects):
            self._note_unfinished(line)
            if found.settings.together:
                self._group().waits = True
            return None
        taker = self._taker(line)
        if taker is None and found.full:
            return self._note_unfinished(line)
        if line.state != RUNNING and (taker is None or found.settings.together):
            return self._pass_over(line)
        self.suspects.acquit(line.offset)
        self._note_unfinished(line)
        return self._take(line, None if found.settings.together else taker)

    def _taker(self, line: Line) -> Taker | None:
        """The taker that gets a line: the first that may have it, and has enough free slots.

        One with too few free slots waits for more, and takes nothing below meanwhile: else small jobs would keep a big
        one from its turn for ever.
        """
        for taker in self._able(line):
            if taker not in self.round.full:
                if self.round.settings.slots <= taker.free:
                    return taker
                self.round.full[taker] = taker.free
                self.round.waiting.add(taker)
        return None

    def _able(self, line: Line) -> Iterator[Taker]:
        """The takers that may have a line, by the settings that hold."""
        for taker in self.takers.fitting(self.round.settings, self.round.ended):
            if line.state == NEW or line.state in taker.retry and not self._was_tried(taker.tried, line):
                yield taker

    def _was_tried(self, tried: TriedLines, line: Line) -> bool:
        """Whether a line is one that its taker may not take again.  Raises OSError."""
        file = self.file
        if tried.round is not self.round:       # the file may have been edited while its taker was busy
            tried.round = self.round
            tried.note_edits(file.edits)
            if tried.last and file.state_at(file.fd, tried.last) is None:
                tried.note_edit()
            tried.begin_round()
        return line in tried

    def _note_unfinished(self, line: Line) -> None:
        """A job has not ended: barriers below it have to wait."""
        if not self.round.unfinished:
            self.round.unfinished, self.round.unfinished_by = line, self.round.settings

    def _is_outdated(self) -> bool:
        """Whether a barrier that this round cannot pass may let another one pass.  Raises OSError.

        A job that is `!` or `e` by now may be for a taker with --retry or --resume; a round from the top will see.
        """
        file, found = self.file, self.round
        if found.unfinished and not found.outdated:
            file.refresh()
            state = file.state_at(file.fd, found.unfinished)
            retried = b"".join(taker.retry for taker in self.takers.all)
            found.outdated = state is not None and state not in NEW + RUNNING + retried
        return found.outdated

    def _pass_over(self, line: Line) -> None:
        """A job is for none of the takers, or of a group."""
        found, settings = self.round, self.round.settings
        if line.state != NEW:
            return
        found.few = not settings.together or not self.serving   # a group must be known as a whole
        self._note_unfinished(line)
        if settings.together:
            self._meet_group(line)
        elif (settings.hosts or settings.slots > 1) and not found.ended:
            found.passed = found.passed or line
            key = settings.hosts, settings.slots
            lasting = self.serving or settings.slots > 1 or any(taker.follow for taker in self.takers.all)
            if lasting and key not in found.stalls and len(found.stalls) < self.NAMED and self.is_absent(settings):
                found.stalls[key] = f"line {line.number} waits for {settings}"
        found.missed = True

    def _meet_group(self, line: Line) -> None:
        """A new job of a group is met."""
        settings = self.round.settings
        if self.serving:
            group = self._group()
            group.jobs.append((line, settings))
            if len(group.jobs) > PendingGroup.LONGEST:
                group.waits = True
                self.round.block = Block(line, fault=f"line {line.number}: the group {printable(group.name)} has more "
                                                     f"than {PendingGroup.LONGEST:,} jobs; it and the jobs below wait")
            self._note_takers(line)
        elif not self.groups_named:
            self.groups_named = True
            self.say(f"line {line.number}: jobs with together= are started by runmaker4-server.py, and left alone here "
                     f"(#RUN in line {settings.line.number})")

    def _group(self) -> PendingGroup:
        """The group that is being met."""
        groups = self.round.groups
        if not groups or groups[-1].whole:
            groups.append(PendingGroup(self.round.settings.together, self.round.ended))
        return groups[-1]

    def _note_waiting(self, line: Line) -> None:
        """A job may not be taken yet: the takers that could have it wait."""
        found = self.round
        if line.state == RUNNING:
            return
        if (not found.settings.together or self.serving) and self._note_takers(line) and not found.below:
            found.below = line
        found.few = line.state == NEW or found.waiting.issuperset(self.takers.fitting(found.settings, found.ended))

    def _note_takers(self, line: Line) -> bool:
        """Note the takers that may have a job later; whether there are any."""
        takers = set(self._able(line))
        self.round.waiting |= takers
        return bool(takers)

    def _is_over(self) -> bool:
        """Whether nothing below can matter: all takers must wait, or leave at `#RUN end`."""
        found, takers = self.round, self.takers.all
        if takers and takers.keys() <= found.full.keys():
            return True
        if not takers or not (found.block or found.ended):
            return False
        if found.ended and all(taker.follow for taker in takers):
            return True
        if found.block and found.block.stops and any(taker.follow for taker in takers):
            return False                        # `#RUN end` may stand below
        return found.below is not None and takers.keys() <= found.waiting

    def _still_grows(self) -> bool:
        """Whether the file, whose last line has no newline, may have grown lately."""
        self.round.tail_seen = True
        size = self.scan.end
        if not self.tail or self.tail[0] != size:
            self.tail = (size, self.clock())
        return self.clock() - self.tail[1] < self.interval

    def _take(self, line: Line, taker: Taker | None) -> Job | None:
        """Lock a line, verify it, mark it `r`.  An orphan that we are not to run becomes `e`.  Raises Shifted."""
        file = self.file
        with file.locked_line(line) as fd:
            if fd < 0:
                self.round.refused = True
                file.refresh()
                self.scan.reread()
                return None
            data = file.read_line(fd, line, Scan.SMALL)
            settings = self.round.settings.line
            if not data or settings and file.state_at(fd, settings) is None:
                raise Shifted
            self.scan.reread(data)
            if data[:1] != line.state:              # taken, and ended or not, since we read it
                self.round.refused = True
                return None
            if line.state == RUNNING and not taker:
                file.write(fd, line, ERROR)
                self.orphans.append(line.number)
                if len(self.orphans) <= self.NAMED:
                    self.say(f"line {line.number}: is r, but nobody runs it any more; marked e (--resume runs it "
                             "again)")
                return None
            job = file.mark(fd, line, taker, self.round.settings)
        if line.state == RUNNING:
            self.say(f"line {line.number}: is r, but nobody runs it any more; is run again")
        if line.state != NEW:
            taker.tried.add(line)
            job.retried = True
        return job

    # -- directives that are met ------------------------------------------------------------------------------------

    def _obey(self, line: Line) -> bool:
        """Take a directive into account; False: what is above it must be looked at once more."""
        found = self.round
        found.few = False
        try:
            directive = parse_directive(line)
        except ValueError as fault:
            found.block = found.block or Block(line, fault=f"line {line.number}: {fault}; the jobs below it wait")
            self._end_group(waits=True)         # who knows whether what follows is of the group above
            return True
        if directive.kind == "settings":
            if found.settings.together != directive.settings.together:
                self._end_group()
            found.settings = directive.settings
        elif directive.kind == "end":
            self._end_group()
            found.ended = True
        elif not found.block:
            self._end_group()
            if found.unfinished and (self._is_outdated() or found.found):
                return False
            found.block = self._barrier(line, directive.kind == "barrier check")
        return True

    def _end_group(self, waits: bool = False) -> None:
        """Nothing more comes of the group that was met last."""
        if self.round.groups and not self.round.groups[-1].whole:
            self.round.groups[-1].whole = True
            self.round.groups[-1].waits |= waits

    def _is_being_appended(self) -> bool:
        """Whether a group at the end of the file may be met in part only.  Raises OSError."""
        found = self.round
        if not found.groups or found.groups[-1].whole:
            return False
        appending = not is_free(self.file.fd, APPEND_BYTE)      # asked first: if not, the size is of all of it
        found.refused |= appending
        return appending or self.file.signature()[2] != self.signature[2]

    def _barrier(self, line: Line, check: bool) -> Block | None:
        """What keeps jobs below a barrier from being taken, if anything does."""
        found = self.round
        if found.unfinished:
            return Block(line)
        if check:
            for start in max(found.checked, self.file.start), self.file.start:      # only from there lines are counted
                bad = Scan(self.file.fd, start, FAILED + ERROR, until=line.offset).next()
                if not bad or bad.offset > line.offset:
                    break
            else:
                return Block(line, stops=stopping(bad, line))
            found.checked = line.offset
        return None

    def _stall(self) -> str:
        """Which job above a barrier has not ended, and what it waits for itself."""
        line, settings = self.round.unfinished, self.round.unfinished_by
        text = f"line {line.number}"
        if settings.together:
            return f"{text}, which is of the group {settings.together} (#RUN in line {settings.line.number})"
        return f"{text}, which waits for {settings}" if settings.hosts or settings.slots > 1 else text

    def _name_stalls(self) -> None:
        """Say what waits for something that may never come."""
        found, block = self.round, self.round.block
        stalls: dict[Any, str] = dict(found.stalls)
        at_once: dict[Any, str] = {}
        if block and block.fault:
            at_once[block.fault] = block.fault
        if block and block.stops and any(taker.follow for taker in found.waiting):
            at_once[block.stops] = block.stops
        if block and block.waits and found.below and found.unfinished.state != RUNNING:
            stalls["barrier"] = (f"line {found.below.number} waits at the #RUN barrier in line {block.line.number} "
                                 f"for {self._stall()}")
        self.waits.update(stalls, at_once)

    # -- results ----------------------------------------------------------------------------------------------------

    def finish(self, job: Job, state: bytes) -> str:
        """Write a job's new state and give its line back.  What went wrong for good, or ''.  Raises NotNow."""
        fault = self.file.finish(job, state)
        tried, bad = self._tried_before(job), state in (FAILED, ERROR, HELD)
        if job.taker.retry and bad and not job.retried and job.offset >= 0:
            tried.add(job, met=False)
        elif job.retried and not bad:
            tried.discard(job)
        return fault

    def _tried_before(self, job: Job) -> TriedLines:
        """What its taker has taken, by today's line numbers."""
        job.taker.tried.note_edits(self.file.edits)
        return job.taker.tried

    def release(self, job: Job) -> str:
        """Put a claimed job that was not started back to what it was.  Raises NotNow."""
        fault = self.finish(job, HELD if job.cancelled else ERROR if job.state == RUNNING else job.state)
        if job.retried:
            self._tried_before(job).discard(job)
        return fault

    def renew(self, job: Job) -> str:
        """Make a line new again whose job has just failed; why that cannot be, or ''."""
        file = self.file
        line: Line | None = Line(job.number, job.ordinal, job.offset, FAILED, job.text)
        try:
            file.follow_path()
            file.refresh()
            if file.state_at(file.fd, line) is None:
                line = next(file.lines_of({job.text}, FAILED), None)
            if line is None:
                return "its line is gone"
            with file.locked_line(line) as fd:
                if fd < 0 or file.state_at(fd, line) != FAILED:
                    return "has changed meanwhile"
                file.write(fd, line, NEW)
        except OSError as error:
            return reason(error)
        self._tried_before(job).discard(job)
        return ""

    # -- trouble, and just looking ----------------------------------------------------------------------------------

    def _bear(self, error: OSError) -> Miss:
        """Put up with an error of the file system for a while, then fail for good."""
        self.scan = self.quiet = None
        self.file.leave_useless(error)
        now = self.clock()
        if self.trouble_since is None:
            self.trouble_since = now
            self.say(f"{reason(error)}; " + ("waiting for it" if self._may_come(error) else "trying again"))
        patience = self.TROUBLE if self.file.network else self.file.LOOKS * self.interval
        if now - self.trouble_since >= patience and not self._may_come(error):
            return Miss(self.round, failed=reason(error))
        return Miss(self.round, again=self.interval)

    def _may_come(self, error: OSError) -> bool:
        return self.wait_for_file and error.errno == errno.ENOENT

    def jobs_to_take(self, taker: Taker) -> Iterator[Line]:
        """What claim() would find for this taker, in time, without touching anything.  Raises OSError."""
        self.takers, self.round = Takers([taker]), Round()
        for line in self.file.lines(NEW + RUNNING + taker.retry, directives=True):
            if line.state == DIRECTIVE:
                self.round.unfinished = None        # all that is above a barrier has ended when its time comes
                self._obey(line)
                if self.round.block:
                    return
            elif self.round.settings.together or not any(self.takers.fitting(self.round.settings, self.round.ended)):
                self._pass_over(line)
            elif line.state != RUNNING or RUNNING in taker.retry and is_free(self.file.fd, line.offset):
                yield line


# ======== The worker ==================================================================================================


def watched(work: Awaitable[Any]) -> asyncio.Future[Any]:
    """A task that nobody awaits: what it raises is a defect, of which the loop's exception handler hears at once."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda task: task.cancelled() or task.result())
    return task


class Worker:
    """Makes file operations in the order they come: at once, or in one thread where a file system may block.

    An NFS server that does not answer blocks every call for as long as it pleases.  Output, timeouts and signals
    must go on meanwhile; claims, results and records wait.
    """

    def __init__(self, threaded: bool, relieved: Callable[[], None] = lambda: None) -> None:
        """relieved: called when bytes were written."""
        from concurrent import futures          # which asyncio has loaded
        self.pool = futures.ThreadPoolExecutor(1) if threaded else None
        self.relieved = relieved
        self.backlog = 0            # bytes posted and not yet written
        self.pending: set[futures.Future[Any]] = set()      # calls made and not yet ended

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Make a call and wait for its answer."""
        if not self.pool:
            return function(*args)
        return await asyncio.wrap_future(self._submit(function, *args))

    def ask(self, then: Callable[[Any], None], function: Callable[..., Any], *args: Any) -> None:
        """Make a call, and another one with its answer, later, in the event loop.

        What either raises is a defect, of which the loop's exception handler hears: nobody awaits it.
        """
        if not self.pool:
            asyncio.get_running_loop().call_soon(then, function(*args))
            return
        done = asyncio.wrap_future(self._submit(function, *args))
        done.add_done_callback(lambda future: then(future.result()))

    def post(self, function: Callable[..., None], *args: Any, size: int = 0) -> None:
        """Make a call without waiting; `size`: the bytes it holds on to.  It deals with its errors itself."""
        if not self.pool:
            return function(*args)
        self.backlog += size
        done = asyncio.wrap_future(self._submit(function, *args))
        done.add_done_callback(functools.partial(self._written, size))

    def _submit(self, function: Callable[..., Any], *args: Any) -> Any:
        future = self.pool.submit(function, *args)
        self.pending.add(future)
        future.add_done_callback(self.pending.discard)
        return future

    def _written(self, size: int, done: asyncio.Future[None]) -> None:
        self.backlog -= size
        self.relieved()
        done.result()               # an exception is a defect, for the loop's exception handler

    async def flush(self) -> None:
        """Wait until all calls have ended, and their answers have come."""
        await self.call(int)
        await asyncio.sleep(0)


@dataclass(frozen=True)
class Nothing:
    """Why a runner gets no job; it is false."""
    again: float | None = None  # seconds until there may be one; None: there is nothing to wait for
    failed: str = ""            # why nothing can be claimed any more
    ended: bool = False         # runners that wait for more shall leave
    stopped: str = ""           # why jobs are left that this runner should have run
    others: int = 0             # the first line that is left for other hosts; 0: there is none

    def __bool__(self) -> bool:
        return False


class FileJobs:
    """A job file as `Runner` wants its jobs: calls are awaited, and made by a `Worker`.

    A connection to a server has the same methods, and is all that a Runner needs to know about where jobs come from:
    claim, lend (and reclaim, of what that has given), finish, release, look_after, leave; `interval` (seconds between
    looks after the held lines), `poll` (seconds between looks for new jobs while there are none), `orphans` (the line
    numbers of orphans that were marked `e`).
    """

    def __init__(self, cursor: Cursor, worker: Worker, taker: Taker) -> None:
        self.cursor, self.file, self.worker = cursor, cursor.file, worker
        self.taker = taker
        self.interval, self.orphans = cursor.interval, cursor.orphans
        self.poll = 5.0 if cursor.file.network else 0.25

    async def claim(self, last: bool, free: int, slots: int) -> Job | Nothing:
        """A job, if there is one.  last: the runner leaves if there is none.  free, slots: of its slots, and in all."""
        found = await self.worker.call(self._claim, last, free, slots)
        if found:
            return found
        met = found.round
        again = self.poll if found.again is None and met.waits_for(self.taker) else found.again
        return Nothing(again, found.failed, met.ended, met.stopped(self.taker), met.passed.number if met.passed else 0)

    def _claim(self, last: bool, free: int, slots: int) -> Job | Miss:
        if slots != self.taker.slots:
            self.taker.slots = slots
            self.cursor.takers.known.clear()        # other settings may fit now
        self.taker.free = free
        return self.cursor.claim(last)

    async def lend(self, job: Job) -> int:
        """The job's own descriptor is the worker's, which may close or exchange it at any time."""
        return await self.worker.call(self.file.lend, job)

    def reclaim(self, fd: int) -> None:
        self.worker.post(self.file.reclaim, fd)

    async def finish(self, job: Job, state: bytes) -> str:
        return await self.worker.call(self.cursor.finish, job, state)

    async def release(self, job: Job) -> str:
        return await self.worker.call(self.cursor.release, job)

    async def renew(self, job: Job) -> str:
        return await self.worker.call(self.cursor.renew, job)

    async def look_after(self) -> dict[Job, str]:
        return await self.worker.call(self.file.look_after)

    async def leave(self, runner: Runner) -> Account | None:
        """Sync what was written, and count what the file holds now; None if nobody can know.

        A killed runner does not wait for a file system that may not answer.
        """
        return await runner.in_time(self._leave(runner))

    async def _leave(self, runner: Runner) -> Account | None:
        if not runner.killed:
            await self.worker.call(self.file.close)
            await self.worker.flush()
        for look in itertools.count(1):
            takers = Takers(() if runner.had_one_each else (self.taker,))
            self.taker.slots = runner.size      # what does not fit because slots are out of service is left, too
            try:
                account = await self.worker.call(self.file.account, takers)
                if runner.killed or not account.unsure or look > 3 * self.file.LOOKS:   # it goes on changing
                    return account
            except OSError as error:
                if error.errno == errno.ENOENT and runner.options.follow and self.file.fd < 0:
                    return Account(Counts(0, 0, 0, 0, 0, 0))        # it never came
                if runner.killed or runner.failed or look >= self.file.LOOKS:
                    runner.say(f"{reason(error)}; nobody knows what it holds now")
                    return None
            await asyncio.sleep(self.interval)


# ======== Processes ===================================================================================================

SHELL = b"/bin/sh"
LOCK_FD = 64                        # where a job finds its lock: out of the way of `exec 3>file`
GATE = b"read -r RUNMAKER4_GATE || exit; unset RUNMAKER4_GATE; exec </dev/null\n"      # what holds a shell back
GRACE = 10.0                        # seconds from TERM to KILL, unless --kill-after says otherwise
MARK = b"RUNMAKER4_JOB"             # the variable that marks all processes of a job, wherever they hide
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024    # ru_maxrss of getrusage(2) is in KiB; on macOS in bytes
DEFAULT_SIGNALS = tuple(int(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


def own_peak() -> int:
    """The peak of this process's memory, in bytes.

    Not ru_maxrss where that can be avoided: execve(2) counts in it what this process was before, maybe gigabytes.
    """
    try:
        with open("/proc/self/status", "rb") as status:
            return int(re.search(rb"VmHWM:\s*(\d+) kB", status.read())[1]) * 1024
    except (OSError, TypeError):            # no /proc, or not of Linux (proc(5))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


@dataclass(eq=False, repr=False)
class Shell:
    """The shell of a running job."""
    pid: int
    mark: bytes
    ended: asyncio.Future[int]      # its wait status (waitpid(2))
    usage: resource.struct_rusage | None = None     # what it and all that it waited for have used, once it has ended
    memory: int | None = None       # their peak, in bytes; None: not known

    @property
    def cpu(self) -> float | None:
        """CPU seconds, user and system; None: not known."""
        return round(self.usage.ru_utime + self.usage.ru_stime, 3) if self.usage else None


class ProcessTable:
    """All living processes (proc(5)), by parent, by session, and by the job that marked them."""
    MARKED = re.compile(rb"(?:^|\0)" + MARK + rb"=([^\0]*)")

    def __init__(self, names: Iterable[str]) -> None:
        """names: the numeric entries of /proc."""
        self.children: dict[int, list[int]] = {}
        self.sessions: dict[int, list[int]] = {}
        self.marked: dict[bytes, list[int]] = {}
        for name in names:
            with contextlib.suppress(OSError):      # it has ended meanwhile
                self._add(name)

    @classmethod
    def read(cls) -> ProcessTable:
        """Today's table; empty, and so false, where there is no /proc."""
        try:
            return cls(filter(str.isdigit, os.listdir("/proc")))
        except OSError:
            return cls([])

    def __bool__(self) -> bool:
        return bool(self.children)

    def _add(self, name: str) -> None:
        with open(f"/proc/{name}/stat", "rb") as file:
            state, parent, _, session = file.read().rpartition(b")")[2].split()[:4]
        if state in (b"Z", b"X"):
            return
        self.children.setdefault(int(parent), []).append(int(name))
        self.sessions.setdefault(int(session), []).append(int(name))
        with contextlib.suppress(PermissionError):  # somebody else's
            with open(f"/proc/{name}/environ", "rb") as file:
                mark = self.MARKED.search(file.read())
            for part in mark[1].split(b"/") if mark else ():
                self.marked.setdefault(part, []).append(int(name))

    def tree(self, shell: Shell) -> list[int]:
        """The living processes of a job: its session, what carries its mark, and what descends from these.

        The shell comes first, and parents before their children: were a command ended before its shell, the shell
        would begin the next one.
        """
        if not self:                    # no /proc: all that is known is its process group, -pid for kill(2)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(-shell.pid, 0)
                return [-shell.pid]
            return []
        session = self.sessions.get(shell.pid, [])
        todo = deque(sorted(session, key=lambda pid: pid != shell.pid) + self.marked.get(shell.mark, []))
        found: dict[int, None] = {}
        while todo:
            pid = todo.popleft()
            if pid not in found:
                found[pid] = None
                todo.extendleft(self.children.get(pid, []))
        return list(found)


class Signals:
    """Calls handlers in the event loop when signals come.

    The C-level handler writes the signal's number to a pipe that the loop watches (signal.set_wakeup_fd).  asyncio's
    own add_signal_handler wakes the loop twice for each signal, which for SIGCHLD costs 5 % of a short job.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.handlers: dict[int, Callable[[], None]] = {}
        self.pipe, feed = os.pipe()
        os.set_blocking(feed, False)
        signal.set_wakeup_fd(feed, warn_on_full_buffer=False)   # full: it will be read, and reap() misses nothing
        os.set_blocking(self.pipe, False)
        loop.add_reader(self.pipe, self.look)

    def handle(self, number: int, handler: Callable[[], None]) -> None:
        self.handlers[number] = handler
        signal.signal(number, lambda *_: None)      # the byte in the pipe is what counts
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))   # we, or our parent, may have blocked it

    def ignore_from_now_on(self) -> None:
        """We are leaving.  Python's end would set default actions again, and a late HUP would be our exit status."""
        signal.set_wakeup_fd(-1)
        for number in self.handlers:
            signal.signal(number, signal.SIG_IGN)

    def look(self) -> None:
        """Call the handlers of what has come."""
        try:
            numbers = set(os.read(self.pipe, 1 << 16))
        except BlockingIOError:             # nothing has
            return
        for number in numbers & self.handlers.keys():
            self.handlers[number]()


class Processes:
    """Starts jobs, reaps them, ends whole trees.  The one place that knows SIGCHLD and wait4."""
    EMPTY = 2       # looks that must find nothing of a job: within execve(2) a process shows no environment, no mark

    def __init__(self, loop: asyncio.AbstractEventLoop, signals: Signals, grace: float | None) -> None:
        """grace: seconds from TERM to KILL; None: never KILL."""
        self.loop, self.grace = loop, math.inf if grace is None else grace
        self.running: dict[int, Shell] = {}
        self.own = 0                # the peak of our own memory when last looked at; it never falls
        self.impatient = False      # KILL now, without grace
        self.reading: asyncio.Task[ProcessTable] | None = None      # will be, for all that wait for it
        self.rested = 0.0           # when the next reading may be (event loop's time)
        unique = os.fsencode(os.uname().nodename), os.getpid(), time.time_ns() // 1_000_000
        self.marks = (b"%s-%d-%d-%d" % (*unique, number) for number in itertools.count(1))
        self.null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.lock_fd = min(LOCK_FD, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 8)
        self.environ = {key: value for key, value in os.environb.items() if key != b"RUNMAKER4_TOKEN"}
        outer = self.environ.get(MARK)              # we are a job ourselves: our jobs are also that job's
        self.chain = outer + b"/" if outer else b""
        signals.handle(signal.SIGCHLD, self.reap)

    def start(self, command: bytes, environ: dict[bytes, bytes], out: int, err: int, locks: Sequence[int],
              gate: int = -1) -> Shell:
        """Start a job's shell in a session of its own.  Raises OSError, ValueError (a NUL in the command).

        locks: the descriptors that it shall hold as long as it lives.  gate: what it reads a line from before it does
        anything else; at its end it ends, too.

        The `exit` at the end keeps the shell around the last command: shells exec that otherwise, and with a command
        that closes all descriptors above 2, as ssh does, the lock would be gone.  The empty line is for a command
        that ends with a backslash, the braces for one that is cut off behind `&&` or `|`: `exit` would complete it.
        """
        mark = next(self.marks)
        # Numbers that are none of these: dup2 of one onto itself would leave close-on-exec set in some C libraries.
        numbers = (number for number in itertools.count(self.lock_fd, 2) if number not in locks)
        pairs = [(self.null if gate < 0 else gate, 0), (out, 1), (err, 2), *zip(locks, numbers)]
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for fd, number in pairs]
        command = (GATE if gate >= 0 else b"") + b"{ :; %s\n\n}\nexit" % command
        environ = {**self.environ, **environ, MARK: self.chain + mark}
        pid = os.posix_spawn(SHELL, (SHELL, b"-c", command), environ, file_actions=actions,
                             setsid=True, setsigmask=(), setsigdef=DEFAULT_SIGNALS)
        shell = self.running[pid] = Shell(pid, mark, self.loop.create_future())
        return shell

    def reap(self) -> None:
        """Collect what has ended."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.wait4(-1, os.WNOHANG))[0]:
                pid, status, usage = ended
                shell = self.running.pop(pid, None)
                if shell and not shell.ended.done():    # else: a child of what this process was before execve(2)
                    shell.usage, shell.memory = usage, self._peak(usage.ru_maxrss * MAXRSS_UNIT)
                    shell.ended.set_result(status)

    def _peak(self, counted: int) -> int | None:
        """A job's memory; None where it may be ours: execve(2) counts what was there before, too."""
        if counted > self.own:
            self.own = own_peak()
        return counted if counted > self.own else None

    async def end(self, shell: Shell) -> list[int]:
        """End a job and all that came of it: TERM and CONT, after the grace KILL.  Returns what does not die."""
        start = self.loop.time()
        asked: set[int] = set()
        empty = 0
        for pause in itertools.chain((0.005, 0.01, 0.02, 0.04, 0.08), itertools.repeat(0.1)):
            alive = (await self._look()).tree(shell)
            looked = self.loop.time()
            empty = 0 if alive else empty + 1
            if empty >= self.EMPTY and shell.ended.done():
                return []
            if looked - start > self.grace + 5:
                return alive                        # in a system call that does not end
            if self.impatient or looked - start > self.grace:
                self._signal(alive, signal.SIGKILL)
            else:
                new = [pid for pid in alive if pid not in asked]
                self._signal(new, signal.SIGTERM)
                self._signal(new, signal.SIGCONT)   # not before all have got TERM
                asked.update(new)
            await asyncio.sleep(0.02 if empty else pause)

    async def _look(self) -> ProcessTable:
        """A table that is read from now on: one for all jobs that are ending and wait for it."""
        if not self.reading:
            self.reading = asyncio.ensure_future(self._read())
        return await asyncio.shield(self.reading)

    async def _read(self) -> ProcessTable:
        """Wait until reading takes no more than a third of the time, and read."""
        await asyncio.sleep(self.rested - self.loop.time())
        self.reading = None                         # another call needs another reading
        began = self.loop.time()
        table = ProcessTable.read()
        now = self.loop.time()
        self.rested = now + 2 * (now - began)
        return table

    @staticmethod
    def _signal(pids: Iterable[int], number: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


# ---- how many at once ------------------------------------------------------------------------------------------------

CGROUP_ROOT, PROC_CGROUP = "/sys/fs/cgroup", "/proc/self/cgroup"


def available_cpus() -> int:
    """How many CPUs this process may use: the least of affinity, cgroup limit and Slurm's share; at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([count, *cgroup_limits(), *slurm_limits(os.environ)])))


def slurm_limits(environ: Mapping[str, str]) -> Iterator[float]:
    """What Slurm gives a task: what -c says, and of the job's CPUs on this node its share.

    The tasks of a step share them; a batch script has them for itself.  Unless tasks are bound to their CPUs nothing
    but these variables tells.  What is no number there does not count.
    """
    numbers = {name: int(text) for name, text in environ.items() if re.fullmatch("[0-9]{1,9}", text)}
    if numbers.get("SLURM_CPUS_PER_TASK"):
        yield numbers["SLURM_CPUS_PER_TASK"]
    if numbers.get("SLURM_CPUS_ON_NODE"):
        per_node = environ.get("SLURM_STEP_TASKS_PER_NODE", "") if "SLURM_STEP_ID" in environ else ""
        yield numbers["SLURM_CPUS_ON_NODE"] / tasks_here(per_node, numbers.get("SLURM_NODEID", 0))


def tasks_here(per_node: str, node: int) -> int:
    """How many tasks a step has on a node: that entry of `3,1` or `2(x2),1`; 1 if it is not there."""
    for entry in per_node.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", entry)
        if not match:
            break
        node -= int(match[2] or 1)
        if node < 0:
            return max(1, int(match[1]))
    return 1


def cgroup_limits() -> Iterator[float]:
    """The CPU limits of this process's control groups and their parents (cgroups(7); v1: cfs quota, v2: cpu.max)."""
    try:
        with open(PROC_CGROUP, encoding="utf-8", errors="surrogateescape") as lines:
            entries = [line.rstrip("\n").split(":", 2) for line in lines]
    except OSError:
        return
    for _, controllers, path in (entry for entry in entries if len(entry) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        tops = [os.path.join(CGROUP_ROOT, name) for name in ((controllers, "cpu") if controllers else ("", "unified"))]
        parts = [part for part in path.split("/") if part not in ("", "..")]
        groups = (os.path.join(top, *parts[:depth]) for top in tops for depth in range(len(parts) + 1))
        for group, files in itertools.product(groups, (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))):
            yield from _cpu_limit([os.path.join(group, name) for name in files])


def _cpu_limit(paths: Sequence[str]) -> Iterator[float]:
    """The limit that the files of a control group set, if they are there and do."""
    with contextlib.suppress(OSError):
        words: list[str] = []
        for path in paths:
            with open(path, encoding="ascii") as file:
                words += file.read().split()
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            yield int(words[0]) / int(words[1])


# ---- until when ------------------------------------------------------------------------------------------------------


@dataclass
class SlurmLimit:
    """--walltime auto: jobs must have ended a margin before Slurm ends the job that we are."""
    PATIENCE = 15.0                     # seconds for squeue: it waits for the controller, which may be busy
    margin: float | None                # seconds; None: 30 and --kill-after
    end: float = -math.inf              # when Slurm ends us (seconds since the epoch)

    @property
    def left(self) -> float:
        """Seconds until jobs must have ended."""
        return self.end - self.margin - time.time()

    def find(self, kill_after: float | None) -> None:
        """Learn when Slurm ends us.  Raises Problem."""
        if self.margin is None:
            self.margin = 30.0 + (kill_after or 0.0)
        told = os.environ.get("SLURM_JOB_END_TIME")
        fault = self._take(told) if told else ""
        if not fault and self.left <= 0:                # nobody has said, or the limit was extended since
            fault = run_loop(self.ask())
        if fault and self.end < 0:
            raise Problem(f"--walltime auto: {fault} (give a time, such as --walltime 2h)")

    def _take(self, text: str) -> str:
        """Take over what Slurm says; what is wrong with it, or ''."""
        if not re.fullmatch("NONE|[1-9][0-9]{8,10}", text):
            return f"the time when Slurm ends this job is not understood: '{printable(text)}'"
        self.end = math.inf if text == "NONE" else float(text)
        return ""

    async def ask(self) -> str:
        """Ask squeue when it ends us; what is wrong, or ''."""
        job = os.environ.get("SLURM_JOB_ID")
        if not job:
            return "this is no Slurm job: SLURM_JOB_ID is not set"
        try:
            answer = os.fsdecode(await self._run_squeue(job)).strip()
        except asyncio.TimeoutError:                    # an OSError in newer Pythons
            return f"squeue has not answered within {human_time(self.PATIENCE)}"
        except OSError as error:
            return f"squeue: {reason(error)}"
        ours = re.search(rf"^{re.escape(job)} +(.*?) *$", answer, re.MULTILINE)      # -j shows all tasks of our array
        last = printable(answer.rpartition("\n")[2])
        return self._take(ours[1]) if ours else f"squeue does not tell when job {job} ends: '{last[:200]}'"

    async def _run_squeue(self, job: str) -> bytes:
        """What it prints, errors, too.  Raises OSError, asyncio.TimeoutError."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
        squeue = subprocess.Popen(
            ("squeue", "-h", "-t", "all", "-j", job, "-o", "%A %e"), env={**environ, "SLURM_TIME_FORMAT": "%s"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), squeue.stdout)
        try:
            return await asyncio.wait_for(reader.read(), self.PATIENCE)
        finally:
            transport.close()
            if squeue.poll() is None:   # it has not ended, which Processes.reap() may have seen first
                os.killpg(squeue.pid, signal.SIGKILL)


def allow_descriptors(needed: int) -> None:
    """Raise the soft limit of open files to what is needed.  Raises Problem if the hard limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise Problem(f"so many jobs need {needed} open files, the limit is {hard} (lower -j, or raise ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


# ======== Output ======================================================================================================


class Writer:
    """Writes to a descriptor that others share (a terminal, a pipe) without ever blocking the event loop.

    O_NONBLOCK would be seen by all who share it, so a pipe or terminal is opened a second time, which makes an open
    file of its own.  Where that is not allowed, it writes no more at once than poll(2) and pipe(7) promise to take.
    """
    LOW, HIGH = 1 << 18, 1 << 20        # bytes waiting: below, jobs are read again; above, no more
    DELAY, AT_ONCE = 0.002, 1 << 16     # seconds for which lines are gathered, bytes that do not wait for that
    PROMISED = 256                      # bytes that a terminal takes; a pipe takes more
    MANY = 64                           # chunks at once

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop, broken: Callable[[OSError], None],
                 relieved: Callable[[], None] = lambda: None) -> None:
        """broken: called once, when nothing can be written any more; what comes then is dropped.

        relieved: called when little is left to be written.
        """
        self.fd, self.loop, self.broken, self.relieved = fd, loop, broken, relieved
        self.terminal = os.isatty(fd)
        self.chunks: deque[bytes | memoryview] = deque()
        self.backlog = 0
        self.closed = False
        self.drained: asyncio.Future[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.waiting = False
        self.write_some = self._write_many
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            self.socket = socket.socket(fileno=os.dup(fd))
            self.write_some = self._send
        elif self.terminal or stat.S_ISFIFO(mode):
            try:
                self.fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            except OSError:             # somebody else's terminal (su), no /proc, no reader any more
                self.write_some = self._write_promised

    def write(self, data: bytes) -> None:
        """Write data, together with what comes within two milliseconds: short jobs print few bytes each."""
        if self.closed or not data:
            return
        self.chunks.append(data)
        self.backlog += len(data)
        if self.waiting:
            return                      # it is flushed when more can be written
        if not self.timer:
            self.timer = self.loop.call_later(self.DELAY, self.flush)
        if self.backlog > self.AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what can be written now."""
        if self.timer:
            self.timer.cancel()
            self.timer = None
        if not self.chunks or self.closed:
            return
        try:
            while self.chunks:
                self._drop(self.write_some())
        except BlockingIOError:
            pass
        except OSError as error:
            self.closed = True
            self._drop(self.backlog)
            self.broken(error)
        self._watch()

    def _write_many(self) -> int:
        return os.writev(self.fd, list(itertools.islice(self.chunks, self.MANY)))

    def _send(self) -> int:
        return self.socket.sendmsg(list(itertools.islice(self.chunks, self.MANY)), (), socket.MSG_DONTWAIT)

    def _write_promised(self) -> int:
        if not wait_ready([self.fd], select.POLLOUT, 0):
            raise BlockingIOError
        return os.write(self.fd, self.chunks[0][:self.PROMISED])

    def _drop(self, written: int) -> None:
        """So much has been written."""
        self.backlog -= written
        while written:
            chunk = self.chunks.popleft()
            if len(chunk) > written:
                self.chunks.appendleft(memoryview(chunk)[written:])
            written -= min(written, len(chunk))

    def _watch(self) -> None:
        """Come back when more can be written; report that little, or nothing, is left."""
        if self.chunks and not self.waiting:
            self.loop.add_writer(self.fd, self.flush)
        elif self.waiting and not self.chunks:
            self.loop.remove_writer(self.fd)
        self.waiting = bool(self.chunks)
        if self.drained and not self.chunks and not self.drained.done():
            self.drained.set_result(None)
        if self.backlog < self.LOW:
            self.relieved()

    async def drain(self, patience: float) -> None:
        """Wait until all is written, at the most for `patience` seconds."""
        self.flush()
        if self.backlog:
            self.drained = self.loop.create_future()
            await asyncio.wait([self.drained], timeout=patience)


TOLD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)      # by which runners are told to stop


@dataclass(frozen=True)
class Ending:
    """How a run ended: the shell's wait status, and why we ended it, if we did."""
    status: int
    cause: str = ""                     # "timeout", "stopped", "cancelled" or "lost"; "": it ended by itself
    limit: float = 0.0                  # the timeout, in seconds

    @property
    def code(self) -> int:
        return os.WEXITSTATUS(self.status) if os.WIFEXITED(self.status) else 0

    @property
    def signal(self) -> int:
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0

    @property
    def state(self) -> bytes:
        """The state that the job's line gets."""
        if self.cause == "cancelled":
            return HELD
        if self.cause:
            return FAILED if self.cause == "timeout" else ERROR
        return FAILED if self.status else DONE

    @property
    def told_to_stop(self) -> bool:
        """Whether its shell, or a command in it (128 + n), died of a signal by which runners are told to stop."""
        return (self.signal or self.code - 128) in TOLD

    def __str__(self) -> str:
        if self.cause == "timeout":
            return f"timeout after {self.limit:g}s"
        if self.cause == "cancelled":
            return "cancelled"
        return f"signal {self.signal}" if self.signal else f"exit {self.code}"


@dataclass(eq=False, repr=False)
class Run:
    """One run of a job, as sinks and the runner see it."""
    job: Job
    slot: Slot
    host: bytes
    began: float = 0.0                  # wall clock, seconds
    started: float = 0.0                # monotonic
    took: float = 0.0
    shell: Shell | None = None
    streams: tuple[Stream, ...] = ()    # stdout and stderr
    ending: Ending | None = None
    sinks: Sequence[Sink] = ()          # that take its events
    cause: str = ""                     # why it is being ended
    killer: asyncio.Task[None] | None = None

    @property
    def where(self) -> bytes:
        """'(alice,601)'"""
        return b"(%s,%d)" % (self.host, self.shell.pid)


@dataclass(eq=False, repr=False)
class Stream:
    """One of the two pipes that a job writes to."""
    name: bytes
    fd: int
    received: int = 0
    watched: bool = False


class Sink:
    """Something that takes what happens to jobs: four events, in this order."""

    def starting(self, run: Run) -> None:
        """The run is about to start; it has no process yet."""

    def started(self, run: Run) -> None:
        """Its shell runs."""

    def unstarted(self, run: Run) -> None:
        """It could not be started; no more comes of it."""

    def output(self, run: Run, stream: Stream, data: bytes) -> None:
        """It has printed."""

    def ended(self, run: Run) -> None:
        """It has ended, and all its output came before."""

    def tick(self) -> None:
        """A second has passed."""

    def leaving(self) -> None:
        """All runs have ended, and no more will begin."""


class Lines:
    """Cuts a stream into pieces that end with a newline; a line over 1 MiB is cut into several."""
    LONGEST = 1 << 20

    def __init__(self) -> None:
        self.rest = bytearray()
        self.cut = False                # the last piece ended within a line

    def feed(self, data: bytes) -> bytes:
        """All complete lines up to here, as one piece."""
        if self.cut and data:
            self.cut = False
            if data.startswith(b"\n"):
                data = data[1:]
        end = data.rfind(b"\n") + 1
        if not end:
            self.rest += data
            self.cut = len(self.rest) >= self.LONGEST
            return self.end() if self.cut else b""
        piece = bytes(self.rest) + data[:end] if self.rest else data[:end]
        self.rest[:] = data[end:]
        return piece

    def end(self) -> bytes:
        """What is left, as a line."""
        piece = bytes(self.rest) + b"\n" if self.rest else b""
        self.rest.clear()
        return piece


class Console(Sink):
    """What a person sees: every line of every job, whole, after the name of the stream, the host and the process."""
    RED, PLAIN = b"\x1b[31m", b"\x1b[0m"

    def __init__(self, writer: Writer, with_output: bool, colour: bool) -> None:
        self.writer, self.with_output, self.colour = writer, with_output, colour
        self.lines: defaultdict[Stream, Lines] = defaultdict(Lines)

    def starting(self, run: Run) -> None:
        self.writer.write(b"executing `%s'\n" % run.job.command)

    def started(self, run: Run) -> None:
        self.writer.write(b'status %s: forked "%s"\n' % (run.where, run.job.command))

    def output(self, run: Run, stream: Stream, data: bytes) -> None:
        if self.with_output:
            self._print(run, stream, self.lines[stream].feed(data))

    def ended(self, run: Run) -> None:
        for stream in run.streams:
            self._print(run, stream, self.lines.pop(stream, Lines()).end())
        line = b'status %s: %s "%s"' % (run.where, str(run.ending).encode(), run.job.command)
        if self.colour and run.ending.state != DONE:
            line = self.RED + line + self.PLAIN
        self.writer.write(line + b"\n")

    def _print(self, run: Run, stream: Stream, lines: bytes) -> None:
        if lines:
            prefix = b"%s %s: " % (stream.name, run.where)
            self.writer.write(prefix + lines[:-1].replace(b"\n", b"\n" + prefix) + b"\n")


@dataclass(eq=False, repr=False)
class Record:
    """What the log file's record of a run shows: its last lines."""
    lines: deque[bytes]
    rests: dict[Stream, bytes] = field(default_factory=dict)    # begun lines
    changed: bool = True                # since it was written


class LastLines(Sink):
    """A fixed record per job: a heading and the last lines of the job, 160 bytes each."""
    WIDTH = 160
    PREFIX = {b"stdout": b": ", b"stderr": b"! ", b"status": b"+ "}

    def __init__(self, store: Any, files: Any, lines: int, directory: bytes) -> None:
        """store: takes the records; a LogFile, or the server's.  files: what writes them, and has a `backlog`.

        lines: of output per record.  directory: where jobs run.
        """
        self.store, self.files, self.lines, self.directory = store, files, lines, directory
        self.records: dict[Run, Record] = {}

    @classmethod
    def size(cls, lines: int) -> int:
        """The bytes of a record."""
        return (1 + lines) * (cls.WIDTH + 1)

    def started(self, run: Run) -> None:
        record = self.records[run] = Record(deque(maxlen=self.lines))
        self._line(run, record, b"status", b'forked "%s"' % run.job.command)

    def output(self, run: Run, stream: Stream, data: bytes) -> None:
        record = self.records[run]
        record.changed = True
        *lines, rest = data.rsplit(b"\n", self.lines + 1)
        if lines:
            if len(lines) <= self.lines:                        # the first of these goes on where the last one stopped
                lines[0] = record.rests.get(stream, b"") + lines[0]
            for line in lines[-self.lines:]:
                self._line(run, record, stream.name, line)
        else:
            rest = record.rests.get(stream, b"") + rest
        record.rests[stream] = rest[:self.WIDTH + 4]            # no more of it can be shown

    def ended(self, run: Run) -> None:
        record = self.records.pop(run)
        for stream, rest in record.rests.items():
            if rest:
                self._line(run, record, stream.name, rest)
        self._line(run, record, b"status", b'%s "%s"' % (str(run.ending).encode(), run.job.command))
        self._write(run, record)

    def tick(self) -> None:
        for run, record in self.records.items():
            if record.changed and self.files.backlog < Writer.HIGH:     # else file system or server does not answer
                self._write(run, record)

    def _line(self, run: Run, record: Record, name: bytes, text: bytes) -> None:
        record.lines.append(b"%s%s %s: %s" % (self.PREFIX[name], name, run.where, text[:self.WIDTH + 4]))

    def _write(self, run: Run, record: Record) -> None:
        record.changed = False
        lines = [b".-> %s (in %s)" % (run.job.command, self.directory), *record.lines]
        lines += [b""] * (1 + self.lines - len(lines))
        self.store.put(run.job, b"".join(fit(line, self.WIDTH) + b"\n" for line in lines))


class LogFile:
    """The log file: record k, of the job with the ordinal k, is at a fixed place.

    Hosts share the file.  On NFS a page is written back whole, with old neighbours in it, unless a lock is held:
    so each record is locked while it is written.
    """

    def __init__(self, path: str, worker: Worker, trouble: Say) -> None:
        """Raises Problem."""
        self.path, self.worker, self.trouble = path, worker, trouble
        self.fd = open_record(path, os.O_RDWR)
        if read_head(self.fd, path, 4) not in (b"", b".-> ", bytes(4)):     # NULs: the first record is yet to come
            raise Problem(f"{path}: is not a log file (give another name)")

    def put(self, job: Job, data: bytes) -> None:
        self.put_piece((job.ordinal - 1) * len(data), data)

    def put_piece(self, at: int, data: bytes) -> None:
        """A record, or a part of one, at this place of the file."""
        self.worker.post(self._store, at, data, size=len(data))

    def _store(self, at: int, data: bytes) -> None:
        try:
            with locked(self.fd, at, len(data)):
                pwrite_all(self.fd, data, at)
                if self.worker.pool:
                    os.fsync(self.fd)
        except OSError as error:
            self.trouble(f"{self.path}: {reason(error)} (the log file is incomplete; the jobs go on)")


def fit(line: bytes, width: int) -> bytes:
    """A line cut to whole UTF-8 characters, or padded, to exactly `width` bytes."""
    if len(line) > width:
        cuts = range(width, width - 5, -1)
        line = line[:next((cut for cut in cuts if line[cut] & 0xC0 != 0x80), width)]    # no continuation byte behind it
    return line.ljust(width)


def open_record(path: str, flags: int) -> int:
    """Open, or make, a file that records go to.  Raises Problem."""
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Problem(f"{path}: is not a regular file (give another name)")
        return fd
    except OSError as error:
        raise Problem(f"{path}: {reason(error)} (it must be a file that can be written)") from None


def read_head(fd: int, path: str, size: int) -> bytes:
    """The first bytes of a file that records go to.  Raises Problem."""
    try:
        return os.pread(fd, size, 0)
    except OSError as error:
        raise Problem(f"{path}: {reason(error)}") from None


class OutFile:
    """One stream of one run in the output directory: made when there is something to write.

    Most jobs print nothing on stderr, many nothing at all; making empty files for them would cost more than a short
    job does (several round trips on NFS).

    No file is ever written, renamed or removed that is another run's: a name is taken with O_EXCL or link(2) only, and
    the file that had it before gets a numbered name, which it keeps.  An edit may move the line meanwhile:
    the file has the number that the line has when it is made, and gets that which it has when the run ends.
    """

    def __init__(self, job: Job, suffix: str, fresh: bool, journal: Journal) -> None:
        """fresh: no such file may be there; else the run began under a server before us, and this goes on."""
        self.job, self.suffix, self.fresh, self.journal = job, suffix, fresh, journal
        self.trouble = journal.trouble
        self.number = 0                     # that the name has
        self.name = ""
        self.fd = -1
        self.size = 0                       # where it ends, as far as we know
        self.broken = False

    def _use_number(self) -> None:
        """Take the name for the number that the line has now."""
        self.number = self.job.number
        self.name = os.path.join(self.journal.folder, f"{self.number}{self.suffix}")

    def prepare(self) -> None:
        """Put an older run's file out of the way."""
        self._use_number()
        try:
            self._keep_older(self.name)
        except OSError as error:            # what we write will find another name, if there is room at all
            self.trouble(f"{self.name}: {reason(error)} (this older file stays; the jobs go on)")

    def store(self, at: int, data: bytes) -> None:
        """Write what stands at this place of the stream; a client may tell it twice."""
        if self.broken:
            return
        try:
            if self.fd < 0:
                self._make()
            if at > self.size and at > os.fstat(self.fd).st_size:
                raise OSError(errno.EINVAL, "a piece is missing")
            pwrite_all(self.fd, data, at)
            self.size = at + len(data)
        except OSError as error:            # what comes later would stand behind a hole: the file ends here
            self._give_up(error)

    def _make(self) -> None:
        """Make the file, under a numbered name if its own cannot be had.  Raises OSError."""
        self._use_number()
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        if not self.fresh:
            self.fd = os.open(self.name, flags, 0o666)
            return
        try:
            self.fd = self._displace(lambda: os.open(self.name, flags | os.O_EXCL, 0o666))
        except OSError:                     # a directory; somebody else's, in a folder with the sticky bit
            self.fd, self.name = make_numbered(self.name)

    def close(self) -> None:
        """The run has ended."""
        try:
            if self.number != self.job.number:
                self._follow_line()
            elif self.fd >= 0 and not is_file(self.name, os.fstat(self.fd)):
                self.name = self._kept(self.name) or self.name      # another run has put it out of its way
        except OSError as error:
            self.trouble(f"{self.name}: {reason(error)} (is the output of what is line {self.job.number} now)")
        try:
            if self.fd >= 0:
                os.close(self.fd)
        except OSError as error:            # NFS tells on close that the disk is full
            self._give_up(error)

    def _follow_line(self) -> None:
        """Rename the file: its line has another number now.  Raises OSError.

        By way of a numbered name, which nobody else renames: between a look at its own and a rename it may become
        another's.  Another run may have put it there already.
        """
        older = self.name
        self._use_number()
        if self.fd < 0:
            self._keep_older(self.name)
            return
        see_names(older)
        if is_file(older, os.fstat(self.fd)):
            keep_older(older)
        kept = self._kept(older)
        if kept:                            # else somebody has removed it, or given it a name of their own
            self._displace(lambda: os.link(kept, self.name))
            os.unlink(kept)

    def _kept(self, name: str) -> str:
        """The numbered name for `name` that is this file's; '' if none is."""
        info = os.fstat(self.fd)
        names = (numbered(name, number) for number in range(free_number(name) - 1, 0, -1))          # the latest first
        return next((kept for kept in names if is_file(kept, info)), "")

    def _keep_older(self, name: str) -> None:
        """Put what another run has written out of the way, and write down where it is now.  Raises OSError."""
        # Few names are taken, and only on a network file system is there more to ask for than this one.
        kept = keep_older(name) if self.journal.network or os.path.lexists(name) else ""
        if kept:
            moved = {"from": os.path.basename(name), "to": os.path.basename(kept)}
            self.journal.add({"time": round(time.time(), 3), "event": "moved", **moved})

    def _displace(self, make: Callable[[], Any]) -> Any:
        """Make something under this name; what has it is put out of the way, again if need be.  Raises OSError."""
        for _ in range(5):
            try:
                return make()
            except FileExistsError:
                self._keep_older(self.name)
        return make()

    def _give_up(self, error: OSError) -> None:
        self.broken = True
        self.trouble(f"{self.name}: {reason(error)} (this output is incomplete; the jobs go on)")


def numbered(name: str, number: int) -> str:
    """A name for an older file, as cp --backup=numbered makes them."""
    return f"{name}.~{number}~"


def free_number(name: str) -> int:
    """A number that no older file has, where one has the number below; found in few looks, also among thousands."""
    used, free = 0, 1
    while os.path.lexists(numbered(name, free)):
        used, free = free, 2 * free
    while free - used > 1:
        middle = (used + free) // 2
        used, free = (middle, free) if os.path.lexists(numbered(name, middle)) else (used, middle)
    return free


def make_numbered(name: str) -> tuple[int, str]:
    """Make an empty file under the next numbered name: its descriptor and name.  Raises OSError."""
    for number in itertools.count(free_number(name)):
        with contextlib.suppress(FileExistsError):      # another has been faster
            fd = os.open(numbered(name, number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            return fd, numbered(name, number)


def keep_older(name: str) -> str:
    """Give a file, if it exists, the next numbered name, and return that; else ''.  Raises OSError.

    rename(2) replaces what has the name; so an empty file takes the new name first: others may do the same just now.
    """
    see_names(name)
    if not os.path.lexists(name):
        return ""
    fd, kept = make_numbered(name)
    os.close(fd)
    try:
        os.rename(name, kept)
    except OSError as error:
        see_names(kept)
        if not os.stat(kept).st_size:       # NFS may say that there is no such file after it has renamed it
            os.unlink(kept)
            kept = ""
        if not isinstance(error, FileNotFoundError):    # another has been faster
            raise
    return kept


def is_file(name: str, info: os.stat_result) -> bool:
    """Whether a name is this file's."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.lstat(name), info)
    return False


class Journal:
    """DIR/journal: what ran where and when, one JSON object a line, appended by all hosts.  In the worker's thread.

    An end is written with what has gathered, unless the last one was just now: short jobs end hundreds of times a
    second, and on a network file system an append costs some six round trips.  Starts and moves, which only inform, and
    what is left then wait for the next, or for a second at most.
    """
    GATHER, AT_ONCE = 1.0, 0.05         # seconds

    def __init__(self, folder: str, worker: Worker, trouble: Say) -> None:
        """Raises Problem."""
        import json                         # few runners need it, and it takes 3 ms to load
        self.encode = json.JSONEncoder().encode
        self.folder, self.path, self.trouble = folder, os.path.join(folder, "journal"), trouble
        self.fd = open_record(self.path, os.O_RDWR | os.O_APPEND)
        self.network = bool(worker.pool)
        self.pause = self.GATHER if self.network else self.AT_ONCE
        self.waiting: list[dict[str, Any]] = []     # encoded together, which is four times as fast as one now and then
        self.flushed = -math.inf            # when (monotonic seconds)

    def add(self, entry: dict[str, Any], end: bool = False) -> None:
        self.waiting.append(entry)
        if time.monotonic() - self.flushed > (self.pause if end else self.GATHER):
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        if self.waiting:
            data = "".join(f"{self.encode(entry)}\n" for entry in self.waiting).encode()
            self.waiting.clear()
            try:
                append(self.fd, data, self.network, patience=10.0 if self.network else 1.0)
            except OSError as error:
                self.trouble(f"{self.path}: {reason(error)} (the journal is incomplete; the jobs go on)")
            self.flushed = time.monotonic()


class OutDir:
    """The output directory: DIR/ID.out, DIR/ID.err, and the journal."""
    SUFFIX = {b"stdout": ".out", b"stderr": ".err"}

    def __init__(self, path: str, worker: Worker, trouble: Say) -> None:
        """Makes the directory if need be.  Raises Problem."""
        self.worker = worker
        self.files: dict[tuple[Job, bytes], OutFile] = {}
        self.begun: dict[Job, dict[str, Any]] = {}      # the entries of runs that have not ended
        try:
            os.makedirs(path, exist_ok=True)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise Problem(f"{path}: {reason(error)} (it must be a directory that can be written)") from None
        self.journal = Journal(path, worker, trouble)

    def begin(self, job: Job, entry: dict[str, Any]) -> None:
        """A run begins.  entry: for the journal, but for what is known here, as in end()."""
        self._close(job)
        for stream in self.SUFFIX:
            self.worker.post(self._file(job, stream, fresh=True).prepare)
        self.begun[job] = entry
        self.worker.post(self.journal.add, self._whole(job, "start", entry))

    def put(self, job: Job, stream: bytes, at: int, data: bytes) -> None:
        file = self.files.get((job, stream)) or self._file(job, stream, fresh=False)
        self.worker.post(file.store, at, data, size=len(data))

    def end(self, job: Job, entry: dict[str, Any]) -> None:
        """The run has ended, or could not be started."""
        files = self._close(job)
        self.worker.post(self._write_end, self._whole(job, "end", entry), files)

    def abandon(self, job: Job) -> None:
        """Nobody will say how its run ended, if that has not ended yet."""
        entry = self.begun.get(job)
        if entry:
            now = time.time()
            state, cause = ("x", "cancelled") if job.cancelled else ("e", "lost")
            self.end(job, {**entry, "time": round(now, 3), "state": state, "exit": -1, "signal": 0, "cause": cause,
                           "seconds": round(now - entry["time"], 3), "cpu": None, "memory": None, "bytes": 0})
        self._close(job)

    def tick(self) -> None:
        """A second has passed."""
        self.worker.post(self.journal.flush)

    @staticmethod
    def _whole(job: Job, event: str, entry: dict[str, Any]) -> dict[str, Any]:
        """In the order in which runwait4.py finds time, event and run without parsing the line."""
        return {"time": entry["time"], "event": event, "run": entry["run"], "line": job.number,
                "command": os.fsdecode(job.command), **entry}

    def _write_end(self, entry: dict[str, Any], files: Sequence[OutFile]) -> None:
        entry["files"] = [os.path.basename(file.name) for file in files if file.size]
        self.journal.add(entry, end=True)

    def _close(self, job: Job) -> list[OutFile]:
        """No more output comes of the job's last run; the files it may have."""
        self.begun.pop(job, None)
        files = [self.files.pop((job, stream)) for stream in self.SUFFIX if (job, stream) in self.files]
        for file in files:
            self.worker.post(file.close)
        return files

    def _file(self, job: Job, stream: bytes, fresh: bool) -> OutFile:
        file = self.files[job, stream] = OutFile(job, self.SUFFIX[stream], fresh, self.journal)
        return file


class AllOutput(Sink):
    """Everything that a job prints, in files of its own; and what became of it, in the journal."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def started(self, run: Run) -> None:
        self.store.begin(run.job, self._entry(run))

    def unstarted(self, run: Run) -> None:
        self.ended(run)

    def output(self, run: Run, stream: Stream, data: bytes) -> None:
        self.store.put(run.job, stream.name, stream.received - len(data), data)

    def ended(self, run: Run) -> None:
        ending, shell = run.ending, run.shell
        self.store.end(run.job, {
            **self._entry(run), "state": os.fsdecode(ending.state) if ending else "e",
            "exit": ending.code if ending and not ending.signal else -1, "signal": ending.signal if ending else 0,
            "cause": run.cause, "seconds": round(run.took, 3),
            "cpu": shell.cpu if shell else None, "memory": shell.memory if shell else None,
            "bytes": sum(stream.received for stream in run.streams)})

    def tick(self) -> None:
        self.store.tick()

    def leaving(self) -> None:
        self.store.tick()                   # what has gathered is written

    @staticmethod
    def _entry(run: Run) -> dict[str, Any]:
        """What begins the journal's lines on a run."""
        return {"time": round(time.time(), 3),
                "run": os.fsdecode(run.shell.mark if run.shell else b"%s-%d" % (run.host, time.time_ns())),
                "host": os.fsdecode(run.host), "slot": run.slot.name, "pid": run.shell.pid if run.shell else 0}


class JobLog:
    """The job log: one line per run, in GNU parallel's format (parallel(1), --joblog)."""
    HEADER = b"Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"

    def __init__(self, path: str, worker: Worker, trouble: Say) -> None:
        """Raises Problem."""
        self.path, self.worker, self.trouble = path, worker, trouble
        self.fd = open_record(path, os.O_RDWR | os.O_APPEND)
        if read_head(self.fd, path, len(self.HEADER)) not in (b"", self.HEADER):
            raise Problem(f"{path}: is not a job log (give another name)")

    def put(self, job: Job, line: bytes) -> None:
        self.worker.post(self._store, line, size=len(line))

    def _store(self, line: bytes) -> None:
        try:
            append(self.fd, line, bool(self.worker.pool), self.HEADER, patience=10.0 if self.worker.pool else 1.0)
        except OSError as error:
            self.trouble(f"{self.path}: {reason(error)} (the job log is incomplete; the jobs go on)")


class History(Sink):
    """One line per run: the record of history."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def ended(self, run: Run) -> None:
        ending = run.ending
        code = -1 if ending.cause == "timeout" else ending.code         # as GNU parallel has it
        self.store.put(run.job, b"%d\t%s\t%.3f\t%10.3f\t0\t%d\t%d\t%d\t%s\n" % (
            run.job.number, run.host, run.began, run.took, run.streams[0].received, code, ending.signal,
            run.job.command))


# ======== Slots =======================================================================================================


@dataclass(eq=False, repr=False)
class Slot:
    """One of the jobs that a runner runs at once.  Its name tells the job which (a host, a GPU)."""
    name: str
    copy: int = 0                       # among the slots of the same name
    fd: int = -1                        # has the lock of a shared name while a job runs, which inherits it
    listed: bool = True                 # the list of names has it
    at_work: bool = False               # it gets jobs, or has one
    busy: bool = False                  # it has one
    borrowed: list[Slot] = field(default_factory=list)          # other slots that this job has
    lent: asyncio.Future[None] | None = None                    # ... and on this one, until when another's job has it
    in_use: bool = False                # another runner has a job on it
    broken: bool = False                # it was taken out of service
    spent: bool = False                 # it has had its one job (-1)
    errors: list[Job] = field(default_factory=list)     # its last jobs, if they ended with exit status 255

    @property
    def retired(self) -> bool:
        """Whether it gets no more jobs."""
        return self.broken or self.spent or not self.listed

    @property
    def byte(self) -> int:
        """Where its lock is, in the companion of a file of names."""
        return int.from_bytes(digest(b"%d %s" % (self.copy, os.fsencode(self.name)))[:7], "big")


class SlotFile:
    """A file NAMES with a name per line; blank lines and lines that begin with # do not count.

    While a job runs on a name, its runner and the job itself hold a lock on a byte that follows from the name, in the
    companion NAMES.lock: so NAMES may be edited or replaced at any time.  The companion is made with the mode of NAMES,
    never written to, and never removed: without it names could be used twice until the jobs that run now have ended.
    A symbolic link is resolved at the start, so that runners share names whichever way they come to the file.
    """
    INTERVAL = 0.1                      # seconds from look to look (network file system: 1)
    LONGEST = 1 << 20                   # bytes of the file
    DESCRIPTORS = 9                     # for each name: its lock, and what a job needs

    def __init__(self, path: str, network: bool, say: Say) -> None:
        """Raises Problem."""
        self.path, self.network, self.say = path, network, say
        self.target = os.path.realpath(path)
        self.companion = self.target + ".lock"
        self.shared_fd = -1                 # where locks are classic: one descriptor of the companion, never closed
        self.interval = 1.0 if network else self.INTERVAL
        self.names: list[str] = []
        self.last: tuple[tuple[int, ...], float] | None = None      # a last line without newline: signature, since when
        self.faults: dict[str, str] = {}                # what was said last, of what
        try:
            end = time.monotonic() + 1.0                # an editor that saves in place empties it first
            self.names = self._read()
            while not self.names and (self.last or time.monotonic() < end):
                time.sleep(0.05)
                self.names = self._read()
            if not self.names:
                raise OSError(errno.EINVAL, "there is no name in it")
        except OSError as error:
            raise Problem(f"{path}: {reason(error)} (a file of names, one per line, is wanted)") from None
        self._make_room()

    def prepare(self) -> None:
        """Make sure that names can be locked.  Raises Problem."""
        try:
            self.shared_fd = self._open_companion()
        except OSError as error:
            raise Problem(f"{self.companion}: {reason(error)} (it must be a file that can be written: names "
                          "are locked there)") from None
        if DESCRIPTION_LOCKS:
            os.close(self.shared_fd)

    def look(self) -> Sequence[str] | None:
        """The names, if they have changed; without any the last ones are kept."""
        try:
            names = self._read()
            fault = "" if names else "is empty"
        except OSError as error:
            names, fault = [], reason(error)
        self._complain("names", fault and f"{fault}; going on with the slots known so far")
        if not names or names == self.names:
            return None
        self.names = names
        self._make_room()
        return names

    def _make_room(self) -> None:
        """Raise the soft limit of open files, which jobs inherit, to what the names may need, as far as that goes."""
        hard, wanted = resource.getrlimit(resource.RLIMIT_NOFILE)[1], 32 + len(self.names) * self.DESCRIPTORS
        allow_descriptors(wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))

    def _read(self) -> list[str]:
        """The names as they stand there now.  Opening a file makes NFS fresh (nfs(5)).  Raises OSError."""
        if self.network:
            see_names(self.target)
        fd = os.open(self.target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)   # a FIFO would block
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(errno.EINVAL, "is no regular file")
            data = os.pread(fd, self.LONGEST + 1, first_line(fd))
        finally:
            os.close(fd)
        if len(data) > self.LONGEST or b"\0" in data:
            raise OSError(errno.EINVAL, "is no list of names")
        if data and not data.endswith(b"\n"):
            now, sign = time.monotonic(), (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
            if not self.last or self.last[0] != sign:
                self.last = sign, now
            if now - self.last[1] < 1.0:
                data = data[:data.rfind(b"\n") + 1]     # somebody may be writing it
        else:
            self.last = None
        lines = [line.strip() for line in data.splitlines()]
        return [os.fsdecode(line) for line in lines if line and not line.startswith(b"#")]

    def _open_companion(self) -> int:
        """The companion, made if need be for all who may write to the names.  Raises OSError."""
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(self.companion, flags)
        except FileNotFoundError:
            info = os.stat(self.target)
            fd = os.open(self.companion, flags | os.O_CREAT, 0o600)
            with contextlib.suppress(OSError):          # another has been faster, and it is theirs
                os.fchown(fd, -1, info.st_gid)
                os.fchmod(fd, info.st_mode & 0o666 | 0o600)
            return fd

    def seize(self, slot: Slot) -> bool:
        """Lock a slot's name; False: another runner, or the job of one that has died, has it."""
        assert slot.fd < 0
        try:
            slot.fd = self._open_companion() if DESCRIPTION_LOCKS else self.shared_fd
            if lock(slot.fd, slot.byte):
                return True
        except OSError as error:
            self._complain("locks", f"names cannot be locked: {reason(error)}")
        self._close(slot)
        return False

    def free(self, slot: Slot) -> None:
        """Give a name back."""
        if slot.fd >= 0:
            with contextlib.suppress(OSError):          # EIO, ESTALE: the lock is lost already
                unlock(slot.fd, slot.byte)
            self._close(slot)

    @staticmethod
    def _close(slot: Slot) -> None:
        if DESCRIPTION_LOCKS and slot.fd >= 0:
            os.close(slot.fd)
        slot.fd = -1

    def _complain(self, what: str, fault: str) -> None:
        """Say what is wrong with something, once."""
        if fault and fault != self.faults.get(what):
            self.say(f"{self.path}: {fault}")
        self.faults[what] = fault


# ======== The runner ==================================================================================================


@dataclass(eq=False, repr=False)
class Tally:
    """What became of a runner's jobs."""
    done: int = 0
    failed: int = 0
    lost: int = 0                       # marked e
    cancelled: int = 0                  # somebody has set their state
    trouble: bool = False               # output or records were lost, the file or all slots could not be used
    unwritten: list[int] = field(default_factory=list)      # lines whose result could not be written
    bad_lines: list[int] = field(default_factory=list)

    def count(self, number: int, state: bytes) -> None:
        self.done += state == DONE
        self.failed += state == FAILED
        self.lost += state == ERROR
        self.cancelled += state == HELD
        if state not in (DONE, HELD):
            self.bad_lines.append(number)

    def status(self, account: Account | None) -> int:
        """The exit status: 1 if something in the file is bad or left, or went wrong here; None: nobody knows."""
        well = account and not account.now.bad and not account.left
        well = well and not (self.lost and account.now.running)     # what we have lost, others may be running now
        return int(not well or bool(self.unwritten) or self.trouble)

    def summary(self, account: Account | None, orphans: Sequence[int], seconds: float,
                again: Callable[[str], str], why: str = "") -> str:
        """The closing line: what was done here, what the file holds if that is not all done, and what to do about it.

        again(option): the command that goes on, with -r, with --resume, or as it was.  why: that tells what failed.
        """
        lines = {*self.bad_lines, *self.unwritten, *orphans}
        idle = not (self.done or self.cancelled or lines)
        text = "nothing done" if not account or account.left else "nothing to do"
        if not idle:
            ends = ((self.failed, "failed"), (self.lost, "lost"), (self.cancelled, "cancelled"),
                    (len(orphans), "left behind"), (len(self.unwritten), "not written down"))
            text = ", ".join([f"{self.done} done", *(f"{count} {word}" for count, word in ends if count)])
            text += f" in {human_time(seconds)}"
            text += f" ({name_lines(lines)})" if lines else ""
        if not account:
            return f"{text}; what the file holds now is not known"
        now = account.now
        ours = (self.done, self.failed, self.lost + len(orphans))
        said = ours == (now.done, now.failed, now.error) and now.processed == now.all
        if not said and (lines or now.done < now.all) or idle and now.held and not now.all:
            text += f"{':' if text == 'nothing to do' else '; in all'} {account.describe(with_lines=not lines)}"
        return text + (f"; why: {why}" if why and now.bad else "") + self._hint(account, again)

    def _hint(self, account: Account, again: Callable[[str], str]) -> str:
        """How to go on."""
        bad = account.alone or self.unwritten and account.now.running > 0       # which are ours, and orphans soon
        option = ("-r" if account.now.failed else "--resume") if bad else ""
        command = again(option) if bad or account.left else ""
        hints = [command] if command else []
        hints += ["groups by runset4.py --set=. FILE LINE ..."] if account.grouped else []
        return f"; {'run again' if bad or account.grouped else 'go on'}: {', '.join(hints)}" if hints else ""


class Gate:
    """Holds back a job whose shell has been started: it reads a line first.  If we die, it reads the end, and ends."""

    def __init__(self, arrived: Callable[[], None]) -> None:
        """arrived: called when the shell waits here."""
        self.arrived = arrived
        self.loop = asyncio.get_running_loop()
        self.fd = -1                    # what opens it
        # When it was opened (wall clock, event loop's time); None: it never will be
        self.settled: asyncio.Future[tuple[float, float] | None] = self.loop.create_future()

    def open(self) -> None:
        """Let the job begin."""
        if self.fd >= 0 and not self.settled.done():
            with contextlib.suppress(BrokenPipeError):      # somebody has killed the shell, which will be noticed
                os.write(self.fd, b"\n")
            self.settled.set_result((time.time(), self.loop.time()))
            self.refuse()               # which closes it, and is too late for anything else

    def refuse(self) -> None:
        """End the shell without beginning the job, unless that has begun; also a shell that is started only now."""
        if not self.settled.done():
            self.settled.set_result(None)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Pump:
    """Moves what jobs print from their pipes to the sinks; reads no more while a writer is behind.

    A pipe is not watched before its job is 10 ms old: most short jobs have ended by then, and are read at their end.
    """
    YOUNG = 0.01                        # seconds
    READ = 1 << 18                      # bytes

    def __init__(self, loop: asyncio.AbstractEventLoop, writers: Sequence[Any], resumed: Callable[[], None]) -> None:
        """writers: their `backlog` is the bytes yet to be written.  resumed: called when jobs are read again."""
        self.loop, self.writers, self.resumed = loop, writers, resumed
        self.runs: set[Run] = set()         # that have begun, and not ended
        self.paused = False                 # jobs are not read
        self.timer: asyncio.TimerHandle | None = None       # the next of them will be old enough

    @property
    def backlog(self) -> int:
        """How many bytes the slowest writer is behind."""
        return max(writer.backlog for writer in self.writers)

    def begin(self, run: Run) -> None:
        """A run has begun."""
        self.runs.add(run)
        if not self.timer:
            self.timer = self.loop.call_later(self.YOUNG, self._watch_older)

    def finish(self, run: Run) -> None:
        """A run has ended: take what its pipes still hold.  What it left in the background may keep them open."""
        self.runs.discard(run)
        for stream in run.streams:
            if stream.fd >= 0:
                waiting = int.from_bytes(fcntl.ioctl(stream.fd, termios.FIONREAD, bytes(4)), sys.byteorder)
                if waiting:
                    self._feed(run, stream, os.read(stream.fd, waiting))
                self._close(stream)

    def resume(self) -> None:
        """Read again, if no writer is behind any more."""
        if self.paused and self.backlog < Writer.LOW:
            self.paused = False
            for run in self.runs:
                self._watch(run)
            self.resumed()

    def _watch_older(self) -> None:
        """Watch runs that did not end at once; one timer serves many short jobs."""
        now = self.loop.time()
        young = [run.started for run in self.runs if now - run.started < self.YOUNG]
        self.timer = self.loop.call_later(min(young) + self.YOUNG - now, self._watch_older) if young else None
        for run in self.runs:
            if now - run.started >= self.YOUNG:
                self._watch(run)

    def _watch(self, run: Run) -> None:
        for stream in run.streams:
            if stream.fd >= 0 and not stream.watched and not self.paused:
                stream.watched = True
                self.loop.add_reader(stream.fd, self._readable, run, stream)

    def _unwatch(self, stream: Stream) -> None:
        if stream.watched:
            stream.watched = False
            self.loop.remove_reader(stream.fd)

    def _readable(self, run: Run, stream: Stream) -> None:
        data = os.read(stream.fd, self.READ)
        if not data:
            return self._close(stream)
        self._feed(run, stream, data)
        if self.backlog > Writer.HIGH:
            self.paused = True
            for other in itertools.chain.from_iterable(run.streams for run in self.runs):
                self._unwatch(other)

    def _feed(self, run: Run, stream: Stream, data: bytes) -> None:
        stream.received += len(data)
        for sink in run.sinks:
            sink.output(run, stream, data)

    def _close(self, stream: Stream) -> None:
        self._unwatch(stream)
        os.close(stream.fd)
        stream.fd = -1


class Runner:
    """N slots, each: claim a job, run it, write down how it ended, again.  Knows neither files nor sockets."""
    HOLD = 1 << 24                      # bytes that writers may be behind before no more jobs are started
    UNREACHABLE = 255                   # ssh's exit status when it could not reach the host, or lost it
    LAST_TRIES = 10.0                   # seconds for the states of jobs that a signal has ended
    LAST_LOOK = 2.0                     # ... and for what the file holds then
    TOGETHER = 1.0                      # seconds between signals that somebody sent to jobs and runner alike
    PASSING = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)      # the machine is full, for now

    def __init__(self, jobs: Any, processes: Processes, sinks: list[Sink], writers: Sequence[Any],
                 host: bytes, options: argparse.Namespace, say: Say, tally: Tally,
                 names: Sequence[str], slot_file: SlotFile | None, worker: Worker) -> None:
        """jobs: a FileJobs, or what has its methods; sinks: for runs that start from now on, it may change.

        writers: the console's, and what writes files (see Pump).  host: this one, for the sinks.  names: of the slots;
        slot_file: what they are from, if they may change, and others may use them; worker: makes its calls.
        """
        self.jobs, self.processes, self.sinks, self.say, self.host = jobs, processes, sinks, say, host
        self.options = options
        self.names, self.slot_file, self.worker = names, slot_file, worker
        self.slots: dict[tuple[str, int], Slot] = {}        # by name, and which of that name
        self.tasks: set[asyncio.Future[None]] = set()       # of those at work
        self.wait_told = False              # it was said that all are in use by others
        self.loop = asyncio.get_running_loop()
        self.tally = tally
        self.gated: set[Run] = set()        # runs whose shell waits at a gate
        self.turn = asyncio.Lock()          # one slot at a time looks for work
        self.changed = asyncio.Event()      # a reason to look again
        self.pump = Pump(self.loop, writers, self.changed.set)
        self.runs = self.pump.runs          # that have begun, and not ended
        self.settling: set[Job] = set()     # jobs whose state is being written
        self.unwanted: dict[Job, str] = {}  # to be ended, and why; some have not begun
        self.nothing = Nothing()            # what the last claim said, if it got no job
        self.failed = ""                    # why no more jobs can be had
        self.stopping = False               # start nothing more
        self.wall_over = False              # because the wall time is over, or too near
        self.ending = False                 # what runs, or is just being started, is ended
        self.killed = 0                     # by which signal
        self.hopeless = False               # we leave without waiting for the file system: all locks go with us
        self.told_at = -math.inf            # when a signal last told us to stop
        self.told: asyncio.Future[None] = self.loop.create_future()     # the next one has come
        self.began = self.loop.time()
        self.slurm = options.walltime if isinstance(options.walltime, SlurmLimit) else None
        self.wall_end = self.began + (self.slurm.left if self.slurm else options.walltime or math.inf)

    # -- from start to end ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run jobs until there is nothing to do."""
        chores = [watched(chore) for chore in (self._wall(), self._look_after(), self._tick(), self._follow_slots())]
        self._set_slots(self.names)         # not before: where no wall time is left, nothing is claimed
        may_get_slots = bool(self.slot_file) and self.options.follow and not self.options.one_only
        while self.tasks or may_get_slots and not self.stopping:
            if not self.tasks:                  # all slots are out of service
                await self._wait(self.slot_file.interval)
                continue
            done, _ = await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
            self.tasks -= done
        for chore in chores:
            chore.cancel()
        if not self.killed:
            self._name_rest()

    def _name_rest(self) -> None:
        """Say why jobs are left."""
        if self.failed:
            self.say(f"{self.failed} (no more jobs were started)")
            self.tally.trouble = True
        elif self.nothing.stopped:
            if not self.options.follow:         # else it was said when it happened
                self.say(self.nothing.stopped)
        elif not self.stopping and all(slot.broken for slot in self.slots.values() if slot.listed or slot.spent):
            self.say("no slot is left in service (no more jobs were started)")
            self.tally.trouble = True
        elif self.nothing.others:
            self.say(f"jobs for other hosts, or for more slots, are left, from line {self.nothing.others} on")

    @property
    def had_one_each(self) -> bool:
        """Whether all slots have had their one job (-1): what is left then is left on purpose."""
        return self.options.one_only and all(slot.spent and not slot.broken for slot in self.slots.values()
                                             if slot.listed)

    async def in_time(self, asked: Awaitable[T]) -> T | None:
        """An answer; None where it takes longer than a moment after a signal that kills."""
        answer = asyncio.ensure_future(asked)
        while not answer.done() and not self.killed:
            await asyncio.wait([answer, self.told], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([answer], timeout=self.LAST_LOOK)
        return answer.result() if answer.done() else None

    def drain(self, number: int) -> None:
        """Start nothing more, wait for what runs."""
        self._note_signal()
        self.say(f"{signal.Signals(number).name}: starting no more jobs, waiting for {plural(self.busy, 'job')}")
        self.stop()

    def kill(self, number: int) -> None:
        """End the jobs and leave; at once if it is another INT.  Slurm sends TERM twice and does not mean that."""
        self._note_signal()
        if self.killed:
            self.processes.impatient |= number == signal.SIGINT
            return
        self.killed = number
        self.say(f"{signal.Signals(number).name}: ending {plural(len(self.runs), 'job')}")
        self.stop()
        self.end_all()
        watched(self._last_resort())

    def _note_signal(self) -> None:
        """A signal tells us to stop: jobs that died of it, too, hear of that (`_was_interrupted`)."""
        self.told_at = self.loop.time()
        self.told.set_result(None)
        self.told = self.loop.create_future()

    async def _was_interrupted(self, ending: Ending) -> bool:
        """Whether a job that has just failed did so since somebody (Slurm, Ctrl-C) stops jobs and runners alike.

        Nobody says whom a signal was meant for, only when it came: a job that dies of such a signal within a second of
        ours was stopped, too.  Ours may come last, so it waits for that.  After INT and TERM no failure is the job's
        own any more; but where we only drain, jobs go on to their end, and may fail.
        """
        if ending.cause or not ending.status:
            return False
        if self.loop.time() - self.told_at <= self.TOGETHER:
            return ending.told_to_stop or self.killed != 0
        return ending.told_to_stop and bool((await asyncio.wait([self.told], timeout=self.TOGETHER))[0])

    async def _wall(self) -> None:
        while self.loop.time() < self.wall_end:
            await asyncio.sleep(self.wall_end - self.loop.time())
            await self._ask_slurm()
        self.say(f"the wall time is over, ending {plural(len(self.runs), 'job')}")
        self.wall_over = True
        self.stop()
        self.end_all()

    async def _ask_slurm(self) -> None:
        """Before the wall time ends anything: Slurm may have extended it.  No answer: the end that we know counts."""
        if self.slurm and await self.in_time(self.slurm.ask()) == "":
            known, left = self.wall_end, self.slurm.left
            self.wall_end = self.loop.time() + left
            if abs(self.wall_end - known) > 2:          # clocks and rounding
                rest = "has no end" if left == math.inf else f"is over in {human_time(max(left, 0))}"
                self.say(f"Slurm ends this job at another time now; the wall time {rest}")

    def stop(self) -> None:
        """Start nothing more."""
        self.stopping = True
        self.changed.set()
        for run in self.gated:
            run.job.gate.refuse()

    def fail(self, why: str) -> None:
        """Start nothing more, for no more jobs can be had."""
        self.failed = why
        self.stop()

    def end_job(self, job: Job, cause: str = "stopped") -> None:
        """End a job, or see to it that it never begins."""
        self.unwanted[job] = cause
        if job.gate:
            job.gate.refuse()
        for run in [*self.runs, *self.gated]:
            if run.job is job and (not job.gate or job.gate.settled.result()):      # else it ends by itself
                self._end(run, cause)

    def end_all(self) -> None:
        """End what runs."""
        self.ending = True
        for run in list(self.runs):
            self._end(run, "stopped")

    async def _last_resort(self) -> None:
        """Leave although results cannot be written: the file system does not answer."""
        while self.runs:
            await asyncio.sleep(0.05)
        await asyncio.sleep(self.LAST_TRIES)
        self.tally.unwritten += [job.number for job in self.settling]
        self.hopeless = True
        for task in self.tasks:
            task.cancel()

    async def _look_after(self) -> None:
        """Keep hold of the lines of running jobs; end a job whose line others have taken, or somebody has set."""
        while True:
            await asyncio.sleep(self.jobs.interval / 2)
            for job, cause in (await self.jobs.look_after()).items():
                if cause == "lost":
                    self.say(f"line {job.number}: was lost to another runner, our copy is stopped")
                self.end_job(job, cause)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for sink in {*self.sinks, *(sink for run in self.runs for sink in run.sinks)}:
                sink.tick()

    # -- slots ------------------------------------------------------------------------------------------------------

    def _set_slots(self, names: Sequence[str]) -> None:
        """Put a slot to work for each name; slots of other names get no more jobs."""
        copies: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
        listed = dict.fromkeys((name, next(copies[name])) for name in names)
        self.slots = {key: slot for key, slot in self.slots.items() if key in listed or slot.at_work or slot.spent}
        for key in listed:
            self.slots.setdefault(key, Slot(*key))
        for key, slot in self.slots.items():
            slot.listed = key in listed
            slot.broken &= slot.listed          # a name that is taken out of the file and put back is in service again
            if not slot.at_work and not slot.retired:
                slot.at_work = True
                self.tasks.add(watched(self._use_slot(slot)))
        self.changed.set()                      # the slot that waits for a job has asked for fewer slots

    async def _follow_slots(self) -> None:
        """Look at the names of the slots now and then, where these may change."""
        while self.slot_file:
            await asyncio.sleep(self.slot_file.interval)
            names = await self.worker.call(self.slot_file.look)
            if names is not None and not self.stopping:
                self._set_slots(names)

    async def _use_slot(self, slot: Slot) -> None:
        """Run jobs on a slot, until there are no more for it."""
        while True:
            async with self.turn:
                job = None if slot.lent else await self._next_job(slot)
                slot.busy = bool(job)
            if slot.lent:
                await slot.lent
                continue
            if job:
                try:
                    begun = await self._work(job, slot)
                    for used in (slot, *slot.borrowed):
                        used.spent = begun and self.options.one_only
                finally:
                    await self._free(slot)      # while it is busy: then nobody borrows it, and locks its name again
                    slot.busy = False
                    await self._give_back(slot)
                    self.changed.set()
            elif slot.in_use:                   # somebody may find meanwhile that it is not any more
                self._note_wait()
                await asyncio.sleep(self.slot_file.interval)
                continue
            if slot.retired or not job:
                slot.at_work = False
                return

    @property
    def busy(self) -> int:
        """How many jobs were claimed, and are not settled."""
        return sum(slot.busy for slot in self.slots.values())

    @property
    def size(self) -> int:
        """How many slots there are, in service or not."""
        return sum(slot.listed for slot in self.slots.values())

    @property
    def in_service(self) -> int:
        """How many slots get jobs, now or when others leave them."""
        return sum(not slot.retired for slot in self.slots.values())

    def _idle(self) -> list[Slot]:
        """The slots that have nothing to do.  The caller has the turn: until it gives that away they stay idle."""
        return [slot for slot in self.slots.values()
                if slot.at_work and not (slot.busy or slot.lent or slot.in_use or slot.retired)]

    async def _borrow(self, slot: Slot, count: int) -> bool:
        """Give a job so many other slots besides its own; False: other runners use slots that seemed free."""
        for other in self._idle():
            if len(slot.borrowed) < count and other is not slot:
                other.in_use = not await self._seize(other)
                if not other.in_use:
                    other.lent = self.loop.create_future()
                    slot.borrowed.append(other)
        if len(slot.borrowed) < count:
            await self._give_back(slot)
            return False
        return True

    async def _give_back(self, slot: Slot) -> None:
        """The job of this slot needs the others no more."""
        while slot.borrowed:
            other = slot.borrowed.pop()
            await self._free(other)
            done, other.lent = other.lent, None
            done.set_result(None)

    def _note_wait(self) -> None:
        """Say once that there is nothing to do but wait for a slot."""
        if not self.wait_told and all(slot.in_use for slot in self.slots.values() if slot.at_work):
            self.wait_told = True
            self.say("all slots are in use by other runners; waiting for one")

    async def _next_job(self, slot: Slot) -> Job | None:
        """Claim a job, or wait for one; None: this slot is in use elsewhere, or shall start no more."""
        while not self.stopping and not slot.retired:
            if self.pump.backlog > self.HOLD:
                await self._wait(1.0)
                continue
            slot.in_use = not await self._seize(slot)
            if slot.in_use:
                return None
            self.changed.clear()
            found = await self.jobs.claim(not self.busy and (not self.options.follow or self.nothing.ended),
                                          len(self._idle()), self.in_service)
            job = found or None
            self.nothing = Nothing(ended=self.nothing.ended) if job else found
            short = False
            if job and not self.stopping and await self._fits(job):
                short = not await self._borrow(slot, job.settings.slots - 1)
            if job and not self.stopping and not short:
                if self.options.verbose:
                    self.say(f"line {job.number}: claimed")
                return job
            if job:         # it was claimed while the signal came, or has no time left, or not enough of shared slots
                await self._give_back(slot)
                await self._settle(job, NEW)
            await self._free(slot)
            if self.nothing.failed:
                self.fail(self.nothing.failed)
            elif not job and self._nothing_left():
                self.stop()                     # the other slots need not look again
            elif short or not job:
                again = self.nothing.again
                seconds = self.jobs.poll if again is None else min(self.jobs.poll, again)
                if short or any(slot.in_use for slot in self.slots.values()):
                    # Others want these names, too, and must not try at the same times.
                    pause = self.slot_file.interval * (1 + os.urandom(1)[0] / 64)
                    seconds = pause if short else min(seconds, pause)
                await self._wait(seconds)
                await self._find_unused()
        slot.in_use = False
        return None

    async def _find_unused(self) -> None:
        """Notice which slots other runners do not use any more: while one slot has the turn, the others cannot look."""
        for slot in self.slots.values():
            if slot.in_use and await self._seize(slot):
                await self._free(slot)
                slot.in_use = False

    async def _seize(self, slot: Slot) -> bool:
        """Take a slot for a job; False: another runner has a job there."""
        return not self.slot_file or await self.worker.call(self.slot_file.seize, slot)

    async def _free(self, slot: Slot) -> None:
        """Let other runners use a slot's name."""
        if self.slot_file and not self.hopeless:
            await self.worker.call(self.slot_file.free, slot)

    def _nothing_left(self) -> bool:
        """Whether it is time to leave, after a claim that found nothing."""
        return self.nothing.again is None and not self.busy and (not self.options.follow or self.nothing.ended)

    def _limit(self, job: Job) -> float | None:
        """How many seconds a job may run."""
        return self.options.timeout if job.settings.timeout == 0.0 else job.settings.timeout

    async def _fits(self, job: Job) -> bool:
        """Whether a job may be started: not if one that takes its whole timeout would exceed the wall time."""
        limit = self._limit(job) or 0.0
        if self.loop.time() + limit > self.wall_end:
            await self._ask_slurm()
        rest = self.wall_end - self.loop.time()
        if limit > rest and not self.stopping:
            if rest > 0:                        # else _wall() says so
                self.say(f"line {job.number}: its timeout is {human_time(limit)}, and the wall time is over in "
                         f"{human_time(rest)}: starting no more jobs")
            self.wall_over = True
            self.stop()
        return not self.stopping

    async def _wait(self, seconds: float) -> None:
        """Wait for a change, at the most so long."""
        alarm = self.loop.call_later(seconds, self.changed.set)
        await self.changed.wait()
        self.changed.clear()
        alarm.cancel()

    async def _work(self, job: Job, slot: Slot) -> bool:
        """Run a job, again if it fails and that is wished, and write down its state; whether it was begun."""
        for more in range(self.options.retries, -1, -1):
            run = Run(job, slot, self.host, sinks=tuple(self.sinks))
            state = await self._run(run)
            if (state in (DONE, NEW) or self.stopping or run.cause not in ("", "timeout") or job in self.unwanted
                    or not run.shell or more and not await self._fits(job)):
                break
        cause = self.unwanted.pop(job, run.cause)
        if cause == "cancelled" and state != DONE:
            state = HELD                        # also if it has just failed by itself, or was between two retries
        if cause == "lost":
            state = ERROR                       # its line is another's now
        else:
            await self._settle(job, state)
        if state != NEW:
            self.tally.count(job.number, state)
            if self.options.slot_errors:
                await self._note_errors(run)
        return state != NEW

    async def _note_errors(self, run: Run) -> None:
        """Take a slot out of service whose jobs all fail as they do when its host cannot be reached (ssh(1): 255)."""
        slot, ending = run.slot, run.ending
        if not ending or run.cause or ending.code != self.UNREACHABLE:
            slot.errors.clear()
            return
        slot.errors.append(run.job)
        if len(slot.errors) < self.options.slot_errors:
            return
        slot.broken = True
        self.say(f"slot {slot.name}: {plural(len(slot.errors), 'job')} in a row ended with exit status "
                 f"{self.UNREACHABLE}; it gets no more, {name_lines(job.number for job in slot.errors)} set back")
        for job in slot.errors:
            fault = await self.jobs.renew(job)
            if fault:
                self.say(f"line {job.number}: is not set back: {fault}")
            else:
                self.tally.failed -= 1
                self.tally.bad_lines.remove(job.number)
        slot.errors.clear()
        self.changed.set()

    async def _settle(self, job: Job, state: bytes) -> None:
        """Write a job's state, however long it takes.  NEW: the one that it had when it was claimed."""
        self.settling.add(job)
        pause = self.jobs.interval
        while True:
            try:
                fault = await (self.jobs.release(job) if state == NEW else self.jobs.finish(job, state))
                break
            except NotNow as trouble:
                if pause == self.jobs.interval:
                    self.say(f"line {job.number}: {trouble}; trying again")
            await asyncio.sleep(pause)
            pause = min(2 * pause, 30.0)
        self.settling.discard(job)
        if fault:
            self.say(f"line {job.number}: {fault}")
            self.tally.unwritten.append(job.number)

    # -- one run ----------------------------------------------------------------------------------------------------

    async def _run(self, run: Run) -> bytes:
        """Run a job once; the state that its line should get."""
        fault = await self._start(run)
        if fault:
            return fault
        if run.job.gate and not await self._let_in(run):
            return NEW
        try:
            await self._attend(run)
        finally:
            if run in self.runs:                # a defect: nobody would hear how it ends
                self.runs.discard(run)
                self._end(run, "stopped")
                await (run.killer or run.shell.ended)
        return run.ending.state

    async def _attend(self, run: Run) -> None:
        """Accompany a run whose shell was started to its end."""
        self.pump.begin(run)
        for sink in run.sinks:
            sink.started(run)
        limit = self._limit(run.job)
        timer = self.loop.call_later(limit, self._end, run, "timeout") if limit else None
        if self.ending:
            self._end(run, "stopped")           # the signal came while it was started
        elif run.job in self.unwanted:
            self._end(run, self.unwanted[run.job])
        status = await run.shell.ended
        if run.killer:
            await run.killer
        if timer:
            timer.cancel()
        self.pump.finish(run)
        run.took = self.loop.time() - run.started
        if run.cause == "cancelled":
            status = signal.SIGTERM             # whatever its shell made of that
        run.ending = Ending(status, run.cause, limit or 0.0)
        if await self._was_interrupted(run.ending):
            run.cause = "stopped"
            run.ending = replace(run.ending, cause=run.cause)
        run.job.how = str(run.ending)
        for sink in run.sinks:
            sink.ended(run)

    async def _start(self, run: Run) -> bytes:
        """Start a run's shell; else the state for its line: ERROR if that cannot be, NEW if it shall not be."""
        if not run.job.gate:
            self._announce(run)
        pause = 0.1
        while True:
            passing, lent = False, -1
            try:
                lent = await self.jobs.lend(run.job)
                if self.stopping and not run.job.gate:      # the file system took its time to answer
                    return NEW
                self._spawn(run, lent)
                return b""
            except ValueError:
                fault = "there is a NUL in the command"
            except OSError as error:
                fault = reason(error)
                if error.errno == errno.E2BIG:
                    fault = "the command, or the environment, is too long (128 KiB for the command)"
                passing = error.errno in self.PASSING
            finally:
                if lent >= 0:
                    self.jobs.reclaim(lent)
            if pause == 0.1:
                self.say(f"line {run.job.number}: cannot be started: {fault}" + ("; trying again" if passing else ""))
            if not passing:
                for sink in run.sinks:
                    sink.unstarted(run)
                return ERROR
            if self.stopping:
                return NEW
            await self._wait(pause)
            pause = min(2 * pause, 5.0)

    def _announce(self, run: Run) -> None:
        for sink in run.sinks:
            sink.starting(run)

    async def _let_in(self, run: Run) -> bool:
        """Wait until a job whose shell waits at its gate may begin; False: it shall not, and its shell has ended."""
        gate = run.job.gate
        self.gated.add(run)
        if self.stopping:
            gate.refuse()
        gate.arrived()
        await asyncio.wait([gate.settled, run.shell.ended], return_when=asyncio.FIRST_COMPLETED)
        self.gated.discard(run)
        gate.refuse()                           # if somebody has killed the shell
        run.job.gate = None
        opened = gate.settled.result()
        if opened:
            run.began, run.started = opened
            self._announce(run)
            return True
        await run.shell.ended
        self.pump.finish(run)
        return False

    def _spawn(self, run: Run, lent: int) -> None:
        """Make the pipes and start the shell.  lent: what its job's lock is on, or -1.  Raises OSError, ValueError."""
        fds: list[int] = []
        job, slots = run.job, [run.slot, *run.slot.borrowed]
        names = [os.fsencode(slot.name) for slot in slots]
        try:
            for _ in range(3 if job.gate else 2):
                fds += os.pipe()
            entrance = fds[4] if job.gate else -1       # what its shell reads from
            run.began, run.started = time.time(), self.loop.time()
            environ = {b"JOB_ID": b"%d" % job.number, b"RUNMAKER4_SLOT": names[0], b"SLAVE_IP": names[0],
                       b"RUNMAKER4_SLOTS": b",".join(names)}
            locks = [fd for fd in (lent, *(slot.fd for slot in slots)) if fd >= 0]
            runner = self.options.runner
            command = wrap(os.fsencode(runner), job.command) if runner else job.command
            run.shell = self.processes.start(command, environ, fds[1], fds[3], locks, entrance)
        except (OSError, ValueError):
            for fd in fds:
                os.close(fd)
            raise
        for fd in (fds[1], fds[3], *fds[4:5]):
            os.close(fd)
        run.streams = Stream(b"stdout", fds[0]), Stream(b"stderr", fds[2])
        if job.gate:
            job.gate.fd = fds[5]

    def _end(self, run: Run, cause: str) -> None:
        """End a run and all its processes, unless it has just ended by itself."""
        self.processes.reap()
        if not run.cause and not run.shell.ended.done():
            run.cause = cause
            run.killer = asyncio.ensure_future(self._kill_tree(run))

    async def _kill_tree(self, run: Run) -> None:
        undying = await self.processes.end(run.shell)
        if undying:
            self.say(f"line {run.job.number}: these processes do not die: {', '.join(map(str, undying))}")
            if not run.shell.ended.done():
                run.shell.ended.set_result(signal.SIGKILL)


def count_ssh(words: Sequence[str]) -> int:
    """How many words of a command start ssh; the last may be a host or user of that name, as may an option's value."""
    count = 0
    for before, word, _ in zip(["", *words], words, words[1:]):
        if re.fullmatch("([^=]*/)?ssh", word) and not (count and before.startswith("-")):
            count += 1
    return count


def wrap(runner: bytes, command: bytes) -> bytes:
    """The command that has `runner` run a job: runner /bin/sh -c JOB.

    ssh joins its arguments to one string, which a shell at the other end reads once more: so the job is quoted once
    more for each ssh in the runner.  Without a blank in front `-n` would be an option of the shell's.
    """
    word = quote(b" " + command if command[:1] in (b"-", b"+") else command)
    for _ in range(count_ssh(shlex.split(os.fsdecode(runner)))):
        word = quote(word)
    return b"%s %s -c %s" % (runner, SHELL, word)


# ======== Background ==================================================================================================


def open_descriptors() -> list[int]:
    """The open descriptors; without /proc all that may be open."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(FileNotFoundError):
            return [int(name) for name in os.listdir(folder)]
    return list(range(1024))


def hold_signals() -> None:
    """Block signals until there are handlers: what is started from now on must be ended as it should be."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1))


def keep_descriptors_from_jobs() -> None:
    """Whatever we were started with besides 0 to 2 (`flock 9`, a pipe of make's) is not for jobs to hold open."""
    for fd in open_descriptors():
        if fd > 2:
            with contextlib.suppress(OSError):          # the one that listed them is closed by now
                os.set_inheritable(fd, False)


def go_into_background() -> int:
    """Leave terminal and session (daemon(7)); stay in the directory, where the jobs are to run.

    The starter waits until detach() is called with the descriptor that is returned: were it the leader of its session
    (ssh -t), its end would hang up on us before we have left.
    """
    watch, ready = os.pipe()
    waiting = signal.sigpending()       # and meant for the process that runs the jobs; a child does not inherit them
    if os.fork():
        os.close(ready)
        os._exit(0 if os.read(watch, 1) else 2)
    os.close(watch)
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in waiting:
        os.kill(os.getpid(), number)
    return ready


def detach(ready: int) -> None:
    """All went well: let the starter go, and have no more to do with its terminal."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # a terminal, or a pipe whose end somebody waits for
            os.dup2(null, fd)
    os.write(ready, b"+")
    os.close(ready)


def write_pid(path: str, fd: int) -> None:
    """Write our number to the pid file.  Raises Problem."""
    try:
        os.ftruncate(fd, 0)
        write_all(fd, b"%d\n" % os.getpid())
    except OSError as error:
        raise Problem(f"{path}: {reason(error)} (the process number must be written)") from None


def remove_pid(path: str) -> None:
    """Remove the pid file, unless another has written its own number there while we waited for the last jobs."""
    with contextlib.suppress(OSError):
        with open(path, "rb") as file:
            ours = file.read(20) == b"%d\n" % os.getpid()
        if ours:
            os.unlink(path)


def fork_quietly() -> int:
    """fork(2) besides a thread: Python warns of that, but the children that we make need no lock of its."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def leave_without_waiting(code: int) -> None:
    """Exit although a thread waits for a file system that does not answer.

    Python's own exit would wait for the thread.  The kernel's would wait, too, for the answer to the unlock that comes
    with the last close of a locked file on NFS.  So a child keeps all descriptors until we are gone, and does the
    waiting; it is nobody's business any more.
    """
    parent = os.getpid()
    child = fork_quietly()
    if child == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        while os.getppid() == parent:
            time.sleep(0.02)
        os._exit(0)
    os._exit(code)


# ======== Checking a directory's locks ================================================================================
#
# Each host has two files in the directory: a job file that all try their locks on, and one to which it appends what it
# says: how far it is, and every two seconds an empty line, its life sign.  No host begins a step before all have ended
# the one before.  A host that says nothing for 40 s, by the clock of the one that listens, is lost.  So nothing here
# needs a lock, or clocks that agree.  Locks are tried by the functions that runners use, and by a real runner.

LOCK_TESTS = {                  # in the order of the report
    "names": "each host has a name of its own",
    "answers": "all hosts answer",
    "mount": "the mount shares locks between hosts",
    "lock": "record locks are granted",
    "run": "a runner claims a line and starts its job",
    "claim": "a line is claimed once",
    "held": "the line of a running job is locked for others",
    "kept": "the job keeps the lock when its runner is killed",
    "free": "the lock is free when the job has ended",
    "fresh": "what others write is read after a refresh",
    "rename": "a file put in place of another is seen",
}
LOCK_CURES = {
    "nfs": "mount with vers=4.2; or with NFSv3 let rpc.statd run on hosts and server, without nolock and local_lock",
    "lustre": "mount with flock",
}


@dataclass
class Voice:
    """What a host says of itself, and how far it is."""
    name: str
    node: str
    boot: str                   # the same: the same kernel
    pid: int
    mount: str
    group: list[str] = field(default_factory=list)          # the hosts that take part
    step: int = 0               # that it has ended; 0: it waits for others to come
    job: int = 0                # the process that holds its first line
    lines: dict[str, int] = field(default_factory=dict)     # the one that it has claimed, by whose file
    inode: int = 0              # of the file that it has put in place of its first
    rows: list[list[Any]] = field(default_factory=list)     # test, whose file, seconds, fault or ''

    @classmethod
    def last(cls, data: bytes) -> Voice | None:
        """The last whole thing in what a host has said; None: it has said nothing that we understand."""
        import json
        said = data.rpartition(b"\n")[0].rstrip(b"\n").rpartition(b"\n")[2]
        try:
            voice = cls(**json.loads(said))
        except (TypeError, ValueError):         # of another version
            return None
        like = vars(cls("", "", "", 0, ""))
        good = all(type(value) is type(like[key]) for key, value in vars(voice).items())
        return voice if good and all(isinstance(host, str) and "/" not in host for host in voice.group) else None


@dataclass(eq=False)
class Peer:
    """A host that takes part, as it is known here."""
    voice: Voice | None = None
    data: bytes = b""           # all that it has said
    seen: float = field(default_factory=time.monotonic)     # since when
    heard: float = -math.inf    # when it has said something new; until it does by the clock of the file system
    gone: bool = False          # its files are gone, or not ours
    lost: bool = False          # nobody waits for it any more


class LockCheck:
    """Tries, with all hosts that do the same in this directory, whether runners can rely on its locks."""
    GATHER, SILENCE, BEAT, PATIENCE, PAUSE = 60.0, 40.0, 2.0, 10.0, 0.1     # seconds
    LAST = 9                    # the step behind all tests

    def __init__(self, folder: str, name: str | None, signs: int) -> None:
        """signs: where it writes what it does, before any call that may hang.  Raises Problem."""
        os.write(signs, b"a look at it\n")
        if not os.path.isdir(folder):
            raise Problem(f"{folder}: is no directory (--check-locks tries the one that a job file is to be in)")
        self.folder, self.mount, node = folder, find_mount(folder), os.uname().nodename
        kind = [self.mount.kind or "unknown", *(option for option in sorted(self.mount.options)
                                                if re.match("vers=|nolock|local_lock=[^n]|nocto", option))]
        self.voice = Voice(printable(name or node), node, boot_id(), os.getpid(), " ".join(kind))
        self.me = f"{re.sub('[^A-Za-z0-9.-]', '_', self.voice.name)[:64]}-{os.getpid()}-{os.urandom(4).hex()}"
        self.peers = {self.me: Peer(self.voice)}
        self.signs, self.fd, self.spoken = signs, -1, 0.0
        self.runner: subprocess.Popen[bytes] | None = None
        self.cursors: dict[str, Cursor] = {}
        self.jobs: dict[str, Job] = {}
        self.said: list[str] = []               # by job files
        self.notes: list[str] = []

    def main(self) -> int:
        """The exit status: 0 all was tried and holds, 1 not so.  Raises Problem."""
        exit_on(signal.SIGINT, signal.SIGTERM)
        try:
            self._announce()
            try:
                self._go_through()
            except OSError as error:
                self._note("answers", self.me, f"{reason(error)}; the tests did not come to their end")
            return self._report()
        finally:
            self._clean()

    def _go_through(self) -> None:
        """Go through all steps with all hosts.  Raises OSError."""
        self._gather()
        steps = (self._begin, self._claim, self._kill_runner, lambda: self._try_all("kept", self._is_held),
                 self._end_job, self._try_ended, self._replace,
                 lambda: self._try_all("rename", self._is_new, self.PATIENCE))
        for number, step in enumerate(() if self._namesakes() else steps, 1):
            step()
            self._reach(number)
        for number in (self.LAST, self.LAST + 1):       # all have said what they found; ... and have read that
            self._reach(number)

    # -- the group --------------------------------------------------------------------------------------------------

    def _path(self, host: str, suffix: str = "host") -> str:
        return os.path.join(self.folder, f"runmaker4-check-{host}.{suffix}")

    def _announce(self) -> None:
        """Make the file that others find us by.  Raises Problem."""
        try:
            self.fd = os.open(self._path(self.me), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC)
            self._say()
        except OSError as error:
            raise Problem(f"{self.folder}: no file can be made there: {reason(error)} (runners write there)") from None

    def _say(self, sign_only: bool = False) -> None:
        """Say how far we are, or only that we live.  Raises OSError.

        The descriptor stays: a server gives nobody a read delegation, which a host that hangs would not give back.
        """
        import json
        said = {**vars(self.voice), "rows": self.voice.rows if self.voice.step >= self.LAST else []}
        write_all(self.fd, b"\n" if sign_only else b"\n%s\n" % json.dumps(said).encode())
        os.fsync(self.fd)
        self.spoken = time.monotonic()

    def _look(self) -> None:
        """Say that we live, and hear the others; rest for a while.  Raises OSError."""
        began = time.monotonic()
        os.write(self.signs, b"a look for other hosts\n")
        if began - self.spoken > self.BEAT:
            self._say(sign_only=True)
        if not os.path.exists(self._path(self.me)):
            raise OSError(errno.ENOENT, "its files are gone (with the directory? by hosts that it did not answer?)")
        for name in os.listdir(self.folder):
            if name.startswith("runmaker4-check-") and name.endswith(".host"):
                self.peers.setdefault(name[16:-5], Peer())
        for host, peer in self.peers.items():
            if host != self.me and not peer.lost:
                self._hear(host, peer)
        time.sleep(max(self.PAUSE, 2 * (time.monotonic() - began)))

    def _hear(self, host: str, peer: Peer) -> None:
        """Read what a host says; it is lost if that ends.  Raises OSError."""
        try:
            with open(self._path(host), "rb") as file:
                data, age = file.read(), max(0.0, os.fstat(self.fd).st_mtime - os.fstat(file.fileno()).st_mtime)
        except FileNotFoundError:
            peer.gone, data, age = True, peer.data, 0.0
        except PermissionError as error:            # somebody else's
            peer.gone = peer.lost = True
            return self._note("answers", host, f"its file cannot be read: {reason(error)}")
        now, known = time.monotonic(), peer.heard > -math.inf
        if data != peer.data or not known:
            peer.data, peer.voice, peer.heard = data, Voice.last(data) or peer.voice, now - (0.0 if known else age)
        ours = self.me in peer.voice.group if peer.voice else host in self.voice.group
        if peer.gone:
            peer.lost = not ours or not peer.voice or peer.voice.step < self.LAST
            if peer.lost and ours:
                self._note("answers", host, "has left before the end")
        elif now - peer.heard >= self.SILENCE and now - peer.seen >= 3 * self.BEAT:     # clocks of hosts may differ
            peer.lost = True
            if peer.seen - peer.heard >= self.SILENCE:          # before we came
                self.notes.append(f"{self._name(host)}: files of a run that was killed were removed")
            else:
                self._note("answers", host, f"no sign of life for more than {human_time(self.SILENCE)} "
                           "(killed, cut off, or its server does not answer it)")

    def _name(self, host: str) -> str:
        """Its name; with the process if several have that."""
        voice = self.peers[host].voice if host in self.peers else None
        if not voice:
            return printable(host)
        same = [peer for peer in self.peers.values() if peer.voice and peer.voice.name == voice.name]
        return printable(voice.name if len(same) == 1 else f"{voice.name},{voice.pid}")

    def _present(self) -> dict[str, Voice | None]:
        """The hosts of the group, with us; without lost ones, and without any that has begun without us."""
        found = {host: self.peers.setdefault(host, Peer()) for host in self.voice.group}
        return {host: peer.voice for host, peer in found.items() if not peer.lost
                and not (peer.voice and peer.voice.step and self.me not in peer.voice.group)}

    def _gather(self) -> None:
        """Wait a minute for others, or until one begins; then until all mean the same ones.  Raises OSError."""
        warn(f"{PROG}: {self.folder}: waits a minute for other hosts: start this there, too (Enter: all begin now)")
        end = time.monotonic() + self.GATHER
        while True:
            self._look()
            voices = {host: peer.voice for host, peer in self.peers.items() if peer.voice and not peer.lost}
            group = {host for voice in voices.values() if self.me in voice.group for host in voice.group}
            if not group and (time.monotonic() >= end or self._entered()):
                group = {host for host, voice in voices.items() if not voice.group and not voice.step}
            if group != set(self.voice.group):
                self.voice.group = sorted(group)
                self._say()
            elif group and all(voice and set(voice.group) == group for voice in self._present().values()):
                busy = [self._name(host) for host, voice in voices.items() if voice.step and self.me not in voice.group]
                self.notes += [f"Had begun before, without this host: {', '.join(busy[:8])}"] if busy else []
                return

    @staticmethod
    def _entered() -> bool:
        """Whether somebody has pressed Enter."""
        return (os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp() and bool(wait_ready([0], select.POLLIN, 0))
                and bool(os.read(0, 1024)))

    def _reach(self, step: int) -> None:
        """Say that we have ended a step, and wait until all have.  Raises OSError."""
        self.voice.step = step
        self._say()
        while not all(voice and voice.step >= step or self.peers[host].gone for host, voice in self._present().items()):
            self._look()

    def _namesakes(self) -> list[str]:
        """Names that several hosts have; then no test would say more, and each could take very long."""
        voices = [peer.voice for peer in self.peers.values() if peer.voice and not peer.lost]
        hosts = Counter(node for node, _ in {(voice.node, voice.boot) for voice in voices})
        return [node for node, count in hosts.items() if count > 1]

    # -- the tests --------------------------------------------------------------------------------------------------

    def _note(self, test: str, host: str, fault: str, seconds: float = 0.0) -> None:
        self.voice.rows.append([test, host, seconds, fault])

    def _test(self, test: str, host: str, attempt: Callable[[], str | None], patience: float = 0.0) -> bool:
        """Try something with a host's file, until it succeeds or patience ends, and note how that went."""
        os.write(self.signs, os.fsencode(f"the test whether {LOCK_TESTS[test]} ({self._name(host)}'s file)\n"))
        began = time.monotonic()
        while True:
            try:
                fault = attempt() or ""
            except OSError as error:
                fault = reason(error)
            except (NotNow, Problem) as error:
                fault = str(error).removeprefix(self._path(host, "txt") + ": ").partition(" (use another")[0]
            seconds = time.monotonic() - began
            if not fault or seconds >= patience:
                self._note(test, host, fault, seconds)
                self._say(sign_only=True)
                return not fault
            time.sleep(0.05)

    def _begin(self) -> None:
        """Start a runner with a job that ends when we do."""
        path = self._path(self.me, "txt")
        with open(path, "xb") as file:
            file.write(b". while kill -0 %d 2>/dev/null; do sleep 0.1; done\n" % os.getpid())
            file.write(b". true\n" * len(self.voice.group))
        self._test("mount", self.me, lambda: check_mount(path, False, self.notes.append) and None)
        if self._test("lock", self.me, lambda: test_locks(path)):
            self._test("run", self.me, lambda: self._start(path))

    def _start(self, path: str) -> str:
        """Start the runner; what keeps it from running the job, or ''."""
        line = b""
        words = [sys.executable, __file__, "--single-host", "-1", "--name", self.voice.name, path]
        self.runner = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in self.runner.stdout:
            forked = re.search(rb",(\d+)\): forked ", line)
            if forked:
                self.voice.job = int(forked[1])
                return ""
        return show(line)

    def _claim(self) -> None:
        """Claim a line of each file.  From then on this host has it open for writing: that is when reads may lie."""
        for host, voice in self._present().items():
            file = JobFile(self._path(host, "txt"), say=self.said.append, mount=self.mount)
            self.cursors[host] = Cursor(file, [Taker(self.voice.name)])
            self._test("claim", host, functools.partial(self._claim_line, host), self.PATIENCE)
        self._try_all("held", self._is_held)

    def _claim_line(self, host: str) -> str:
        found = self.cursors[host].claim()
        if not found:
            return found.failed or "".join(self.said[-1:]) or "no line is left"
        self.jobs[host] = found
        self.voice.lines[host] = found.number
        return ""

    def _is_held(self, host: str, voice: Voice, wanted: bool = True) -> str:
        """Try the lock of a host's job as a claim does, and as a look for orphans does."""
        file = self.cursors[host].file
        line = file.lines().next()
        if not line or line.state != RUNNING:
            return f"its state is read as {show(line.state) if line else 'nothing'}"
        with file.locked_line(line) as fd:
            refused = fd < 0
        seen = not is_free(file.fd, line.offset)
        return "" if refused == seen == wanted else "it is locked" if refused and seen else "it is free"

    def _kill_runner(self) -> None:
        if self.runner:
            self.runner.kill()
            self.runner.wait()

    def _end_job(self) -> None:
        """End the job, and write another state than the others have read."""
        self._kill_job()
        if self.me in self.jobs:
            self._test("fresh", self.me, lambda: self.cursors[self.me].finish(self.jobs[self.me], DONE))

    def _kill_job(self) -> None:
        if self.voice.job:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.voice.job, signal.SIGKILL)

    def _try_ended(self) -> None:
        """Reads come first: a lock that is granted makes them fresh."""
        self._try_all("fresh", self._is_done)
        self._try_all("free", functools.partial(self._is_held, wanted=False), self.PATIENCE)

    def _is_done(self, host: str, voice: Voice) -> str:
        states = {line.number: line.state for line in self.cursors[host].file.lines()}
        state = states.get(voice.lines[host], b"nothing")
        return "" if state == DONE else f"its state is read as {show(state)}"

    def _replace(self) -> None:
        """Put another file in the place of ours, as editors do."""
        path, new = self._path(self.me, "txt"), self._path(self.me, "new")
        shutil.copyfile(path, new)
        self.voice.inode = os.stat(new).st_ino
        self._test("rename", self.me, lambda: os.replace(new, path))

    def _is_new(self, host: str, voice: Voice) -> str:
        file = self.cursors[host].file
        file.follow_path()
        return "" if file.inode[1] == voice.inode else "the old file is seen"

    def _try_all(self, test: str, attempt: Callable[[str, Voice], str | None], patience: float = 0.0) -> None:
        """Try something with the files of all hosts whose own part of it has not failed."""
        for host, voice in self._present().items():
            if host in self.jobs and (voice.lines.get(host) if test in ("fresh", "rename") else voice.job):
                self._test(test, host, functools.partial(attempt, host, voice), patience)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _report(self) -> int:
        """Print what all have found; the exit status."""
        voices = {host: voice for host, voice in sorted({**self._present(), self.me: self.voice}.items()) if voice}
        name = self._name
        rows = [(test, name(host) + f"'s file on {name(by)}" * (host != by and test != "answers"), seconds, fault)
                for by, voice in voices.items() for test, host, seconds, fault in voice.rows]
        rows += [("names", node, 0.0, "several hosts have it: an NFSv4 server takes each for the other, rebooted, and "
                  "drops its locks (EIO); rename them before they mount (hostnamectl)") for node in self._namesakes()]
        rows += [("claim", f"{name(host)}'s file", 0.0, f"{count} hosts have claimed a line") for host in voices
                 for count in Counter(voice.lines.get(host, -by) for by, voice in enumerate(voices.values())).values()
                 if count > 1]
        bad = {test for test, _, _, fault in rows if fault}
        hosts = [f"{name(host)} ({voice.mount})" for host, voice in voices.items()]
        lines = [f"{self.folder}: {', '.join(hosts[:8])}" + f", ... ({len(hosts)} hosts)" * (len(hosts) > 8)]
        for test in LOCK_TESTS:
            ours = [row for row in rows if row[0] == test]
            if test in bad:
                lines.append(f"NO            {LOCK_TESTS[test]}: {self._faults(ours)}")
            elif ours and test != "mount":
                most = max(seconds for _, _, seconds, _ in ours)
                lines.append(f"yes {f'{1000 * most:6.1f} ms' if most < 1 else f'{most:6.1f} s '}  {LOCK_TESTS[test]}")
        lines += self.notes[:2]
        alone = len({voice.boot for voice in voices.values()}) == 1
        if alone and len(voices) > 1:
            lines.append("All these run on one host.")
        if bad:
            kinds = {voice.mount.partition(" ")[0] for voice in voices.values() if bad - {"names", "answers"}}
            lines += [f"To change: {cure}." for kind, cure in LOCK_CURES.items() if kind in kinds]
            lines.append("Until all holds these hosts should not share job files here: take another directory, or TCP "
                         "(runmaker4-server.py).")
        elif alone:
            lines.append("All holds on this host. " + (
                "No other has come: start this there, too, within a minute." if self.mount.network else
                f"Other hosts do not see {self.mount.kind}: they can have jobs over TCP (runmaker4-server.py)."))
        else:
            lines.append("These hosts can share job files in this directory.")
        put(os.fsencode("\n".join(map(printable, lines)) + "\n"))
        return int(bool(bad) or alone and self.mount.network)

    @staticmethod
    def _faults(rows: Iterable[tuple[str, str, float, str]]) -> str:
        """What is wrong with a test, and where."""
        where: dict[str, dict[str, None]] = defaultdict(dict)
        for _, place, _, fault in rows:
            if fault:
                where[fault][place] = None
        texts = [f"{', '.join([*places][:4])}{', ...' * (len(places) > 4)}: {fault}" for fault, places in where.items()]
        return "; ".join(texts[:3]) + "; ..." * (len(texts) > 3)

    def _clean(self) -> None:
        """Remove what was made here, and what hosts that died have left.  Closed first: NFS keeps what is open."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self._kill_runner()
        self._kill_job()
        for host, cursor in self.cursors.items():
            if host in self.jobs:
                cursor.file.give_up(self.jobs[host])
            for fd in list(cursor.file.users):
                cursor.file.reclaim(fd)
        for host in [self.me, *(host for host, peer in self.peers.items() if peer.lost and not peer.gone)]:
            for suffix in ("new", "txt", "host"):
                with contextlib.suppress(OSError):      # it is gone, or not ours to remove
                    os.unlink(self._path(host, suffix))


def boot_id() -> str:
    """What tells this machine's running system from all others."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return os.uname().nodename


def check_locks(folder: str, name: str | None) -> int:
    """Check the locks of a directory in a child, and watch that; the exit status.  Raises Problem.

    A server that is away answers no call, and a process that waits for it in fsync(2) cannot even be killed.
    """
    watch, signs = os.pipe()
    child = os.fork()
    if not child:
        os.close(watch)
        return LockCheck(folder, name, signs).main()
    os.close(signs)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: os.kill(child, number))
    sign = ""
    while wait_ready([watch], select.POLLIN, LockCheck.SILENCE):
        said = os.read(watch, 1 << 16)
        if not said:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            return code if code >= 0 else 1
        sign = show(said.splitlines()[-1])
    os.kill(child, signal.SIGKILL)
    warn(f"{PROG}: {folder}: does not answer: {sign} takes more than {human_time(LockCheck.SILENCE)} (is its server "
         "there? with NFSv3: does rpc.statd run on both, and do firewalls let it and lockd pass?)")
    return 1


# ======== Command line ================================================================================================

PROG = "runmaker4.py"
Add = Callable[..., Any]        # an argument group's add_argument


def runner_words(text: str) -> str:
    """An argparse type: a command that runs another."""
    try:
        if shlex.split(text) and not re.search(r"[\0\n]", text):
            return text
    except ValueError:                      # an open quote
        pass
    raise argparse.ArgumentTypeError(f"not a command: '{printable(text)}' (such as 'nice -n 19')")


def given_name(text: str) -> str:
    """An argparse type: a name of anything; "$UNSET" is none."""
    if not text:
        raise argparse.ArgumentTypeError("is empty (a name is wanted)")
    return text


def wall_time(text: str) -> float | SlurmLimit | None:
    """An argparse type: a duration; auto, or auto- and a margin."""
    if text == "auto":
        return SlurmLimit(None)
    return SlurmLimit(duration(text[5:]) or 0.0) if text.startswith("auto-") else duration(text)


def slot_names(text: str) -> str:
    """An argparse type: names, or @ and a file."""
    if not all(map(str.strip, text.split(","))) or text == "@" or "\n" in text:
        raise argparse.ArgumentTypeError(f"not a list of names: '{printable(text)}' (A,B,... or @FILE)")
    return text


def add_running_options(add: Add) -> None:
    """What runner and client can be told about which jobs they run."""
    add("-j", "--jobs", type=whole_number(0, 100_000), metavar="N",
        help="run N jobs at once, 0: as many as there are CPUs for this process [1]")
    add("--runner", type=runner_words, metavar="CMD",
        help="run `CMD /bin/sh -c JOB`; CMD is read by the shell: nice -n 19, ssh \"$SLAVE_IP\"")
    add("-1", "--one-only", action="store_true", help="run no more than one job per slot, then exit")
    add("-r", "--retry", action="store_true", help="as --resume; also run jobs that failed (!)")
    add("--resume", action="store_true", help="also run jobs in error (e), or r that nobody runs any more")
    add("--retries", type=whole_number(0), default=0, metavar="N", help="run a failing job up to N more times, at once")
    add("--follow", action="store_true", help="when there is nothing to do, or no file yet, wait for more")
    add("--slots", type=slot_names, metavar="A,B",
        help="instead of -j: a slot per name (hosts, GPUs, ...), or @FILE: one per line, followed while running")


def add_limits(add: Add) -> None:
    """What ends jobs."""
    add("--timeout", type=duration, metavar="T", help="kill a job that runs longer, and mark it !")
    add("--walltime", type=wall_time, metavar="T",
        help="after T (auto, auto-5m: before Slurm ends us) kill what runs, and exit; start no job that may not fit")
    add("--kill-after", type=duration, default=GRACE, metavar="T", help="from TERM to KILL when jobs are ended [10s]")


def add_records(add: Add) -> None:
    """What runner and server can write besides the job file."""
    add("-l", "--logfile", type=given_name, metavar="FILE",
        help="the last lines of every job, a fixed record each; shared by all hosts")
    add("-n", "--loglines", type=whole_number(1, 10_000), default=3, metavar="N", help="lines of output per record [3]")
    add("--outdir", type=given_name, metavar="DIR", help="what jobs print: DIR/LINE.out, .err; and a journal")
    add("--joblog", type=given_name, metavar="FILE", help="one line per run of a job, in GNU parallel's format")


def add_verbosity(add: Add) -> None:
    """How much is printed."""
    add("-q", "--quiet", action="store_true", help="print only errors and the closing line")
    add("-v", "--verbose", action="store_true", help="print more")


def add_background(add: Add) -> None:
    """How to go into the background; and what stands last everywhere."""
    add("-d", "--daemon", action="store_true", help="go into the background (start errors come first)")
    add("--pidfile", type=given_name, metavar="FILE", help="write the process number there")
    add("--errors", type=given_name, metavar="FILE", help="append there what would go to stderr")
    add_help(add)


def add_help(add: Add) -> None:
    """What stands last in every script's help."""
    add("--version", action="version", version=f"%(prog)s {VERSION}", help="print the version")
    add("-h", "--help", action="help", help="print this help")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options of runmaker4.py.  Raises Problem."""
    parser = Parser(
        PROG, example="Run the jobs in runs.txt, four at a time (the same on any other host):\n"
                      f"    {PROG} -j4 runs.txt\n"
                      "A job is a line '. COMMAND'.  The dot becomes r (running), then d (done),\n"
                      "! (failed) or e (error).",
        usage="[options] FILE",
        epilog="Durations: 90, 90s, 5m, 2h, 1d.  Signals: INT and TERM end the jobs and mark\n"
               "them e; HUP and USR1 start nothing more and wait.  Exit status: 0 nothing in\n"
               "the file is !, e or left for this runner; 1 something is, whoever ran it;\n"
               "2 bad usage, or the file cannot be used; 130, 143 ended by a signal.\n"
               "Variables of a job: JOB_ID (its line), RUNMAKER4_SLOT and SLAVE_IP (its slot),\n"
               "RUNMAKER4_SLOTS (all that `#RUN slots=N` gives it), RUNMAKER4_JOB (marks its\n"
               "processes).  Of the runner: NO_COLOR (no colours).")
    add = parser.add_argument_group("which jobs, and how many").add_argument
    add("file", metavar="FILE", help="the job file")
    add_running_options(add)
    add("--slot-errors", type=whole_number(1), default=0, metavar="N",
        help="give a slot no more jobs after N in a row with exit status 255 (ssh), set these back")
    add("--dry-run", action="store_true", help="print what would be run, touch nothing")
    add_limits(parser.add_argument_group("limits").add_argument)
    add = parser.add_argument_group("output and records").add_argument
    add_records(add)
    add_verbosity(add)
    add = parser.add_argument_group("hosts and background").add_argument
    add("--name", type=given_name, metavar="NAME", help="this host's name (messages, host=) [the node name]")
    add("--single-host", action="store_true", help="no other host uses the file: any file system will do")
    add("--check-locks", action="store_true", help="FILE is a directory: try its locks with other hosts")
    add_background(add)
    options = parser.parse_args(argv)
    others = {option for option, value in vars(options).items() if value != parser.get_default(option)}
    if options.check_locks and others - {"file", "check_locks", "name"}:
        parser.error("--check-locks: runs no jobs, and takes no other option than --name")
    return options


def rerun_command(argv: Sequence[str], option: str) -> str:
    """This runner's command, with an option if there is one; fit to be pasted."""
    words = list(argv)
    if option and not {option, "-r", "--retry"} & set(words):
        words.insert(0, option)
    return own_command(words)


def why_command(outdir: str | None, path: str) -> str:
    """What tells why lines failed, if there is an output directory."""
    script = os.path.join(os.path.dirname(sys.argv[0]), "runwait4.py")
    return own_command(["--failed", "--outdir", outdir, path], script) if outdir else ""


def own_command(words: Sequence[str], script: str = "") -> str:
    """This program's name, or that of another of ours, with these arguments, fit to be pasted."""
    script = script or sys.argv[0]
    found = shutil.which(os.path.basename(script))
    if found and os.path.realpath(found) == os.path.realpath(script):
        return shlex.join([os.path.basename(script), *words])
    python = os.path.basename(sys.executable)
    found = shutil.which(python)
    same = found and os.path.realpath(found) == os.path.realpath(sys.executable)
    return shlex.join([python if same else sys.executable, script, *words])


def run_loop(main: Any) -> int:
    """As asyncio.run(), which would wait for a resolver that does not answer before it lets us go."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    gc.enable()
    try:
        return loop.run_until_complete(main)
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.close()


class Program:
    """What runner, server and client have in common: messages, records, the background, the event loop."""
    TROUBLES = 10               # messages of one kind that are printed

    def __init__(self, prog: str, label: str, options: argparse.Namespace) -> None:
        """label: the job file, or the server, for messages.  Raises Problem."""
        self.prog, self.label, self.options = prog, label, options
        self.stderr: Writer | None = None       # once there is an event loop
        self.worker = Worker(False, self.relieved)
        self.tally = Tally()
        self.troubles = 0
        self.defects = 0            # of our own, that have shown
        try:
            self.directory = os.getcwdb()       # by this name, also when it is gone
        except OSError:
            raise Problem("the current directory is gone (cd to one that exists)") from None

    def open_stores(self, network: bool, *inputs: str) -> tuple[LogFile | None, OutDir | None, JobLog | None]:
        """Open what -l, --outdir and --joblog ask for, and make the worker that writes there.  Raises Problem.

        network: the file system of the inputs may not answer.  inputs: the job file, and what else is read.
        """
        options = self.options
        names: set[str] = set()
        for path in filter(None, (*inputs, options.logfile, options.joblog, options.errors, options.pidfile)):
            if os.path.realpath(path) in names:
                raise Problem(f"{path}: is the job file itself, or named twice (give another name)")
            names.add(os.path.realpath(path))
        paths = options.logfile, options.outdir, options.joblog
        self.worker = Worker(network or any(find_mount(path).network for path in paths if path), self.relieved)
        trouble = functools.partial(self.in_loop, self._trouble)
        return (LogFile(options.logfile, self.worker, trouble) if options.logfile else None,
                OutDir(options.outdir, self.worker, trouble) if options.outdir else None,
                JobLog(options.joblog, self.worker, trouble) if options.joblog else None)

    def main(self) -> int:
        """Go into the background if that is asked for, and work; the exit status.  Raises Problem."""
        options = self.options
        errors = open_record(options.errors, os.O_WRONLY | os.O_APPEND) if options.errors else -1
        pidfile = open_record(options.pidfile, os.O_WRONLY) if options.pidfile else -1
        hold_signals()
        ready = go_into_background() if options.daemon else -1
        if pidfile >= 0:
            write_pid(options.pidfile, pidfile)
        if errors >= 0:
            os.dup2(errors, 2)              # only now: errors at the start go to our parent's stderr
        if ready >= 0:
            self._introduce()
            detach(ready)
        keep_descriptors_from_jobs()
        try:
            code = run_loop(self._run())
        finally:
            if pidfile >= 0:
                remove_pid(options.pidfile)
        if self.worker.pending:
            leave_without_waiting(code)
        return code

    def _introduce(self) -> None:
        """Say which process runs in the background, how to stop it, and where its messages go."""
        if getattr(self.options, "quiet", False):       # a server has no -q
            return
        pid, kept = os.getpid(), stat.S_ISREG(os.fstat(2).st_mode)
        where = (f"to {self.options.errors}" if self.options.errors else
                 "where stderr goes" if kept else "nowhere (see --errors)")
        with contextlib.suppress(BrokenPipeError, Problem):     # nobody listens
            put(os.fsencode(f"{self.prog}: {self.label}: process {pid} (kill {pid} stops it, kill -USR1 {pid} lets its "
                            f"jobs end); messages go {where}\n"))

    async def _run(self) -> int:
        """All that happens inside the event loop."""
        self.loop = asyncio.get_running_loop()
        self.stdout = Writer(1, self.loop, self._stdout_broken, self.relieved)
        same = os.path.sameopenfile(1, 2)       # then one must not overtake the other in the middle of a line
        self.stderr = self.stdout if same else Writer(2, self.loop, lambda error: None)     # nowhere is left to say it
        self.signals = Signals(self.loop)
        self.loop.set_exception_handler(self._on_exception)
        try:
            return await self.work()
        finally:
            self.signals.ignore_from_now_on()

    async def work(self) -> int:
        """What this program is for; the exit status."""
        raise NotImplementedError

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something was raised where nobody waits, in a callback or a `watched` task: a defect, which ends the program.

        Were it to go on, what has died (a chore, a look for jobs) would be missed by nobody but the user.
        """
        error = context.get("exception")
        if error is None or "never retrieved" in context["message"]:        # asyncio's own, and no news
            return loop.default_exception_handler(context)
        import traceback
        self.defects += 1
        self.tally.trouble = True
        self.end_for_defect()
        if self.defects <= self.TROUBLES:
            self.say(f"a defect of {self.prog} ends it, please report this: {type(error).__name__}: {error}")
            self.stderr.write(os.fsencode("".join(traceback.format_exception(type(error), error, error.__traceback__))))

    def end_for_defect(self) -> None:
        """Come to an end and lose nothing, whatever does not work any more."""
        raise NotImplementedError

    def relieved(self) -> None:
        """Some of what waited to be written was written: what was held back for that may go on."""
        raise NotImplementedError

    def handle_signals(self, end: Callable[[int], None], drain: Callable[[int], None]) -> None:
        """INT and TERM: end(number); HUP and USR1: drain(number)."""
        for action, numbers in ((end, (signal.SIGINT, signal.SIGTERM)), (drain, (signal.SIGHUP, signal.SIGUSR1))):
            for number in numbers:
                if signal.getsignal(number) != signal.SIG_IGN:      # ignored at the start (nohup): stays so
                    self.signals.handle(number, functools.partial(action, number))
        self.signals.look()                 # what has waited until now comes first: no job is started before

    async def print_rest(self, writer: Writer, hurried: Callable[[], bool]) -> None:
        """Wait until all is printed, however long that takes; when hurried (after a signal) two seconds more."""
        while writer.backlog and not hurried():
            await writer.drain(0.5)
        await writer.drain(2.0)

    # -- messages ---------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Print a message of one line."""
        line = f"{self.prog}: {self.label}: {text}"
        if self.stderr:
            self.stderr.write(os.fsencode(line + "\n"))
        else:
            warn(line)

    def in_loop(self, function: Callable[..., None], *args: Any) -> None:
        """What the worker's thread has to say goes through the loop's."""
        if self.worker.pool:
            self.loop.call_soon_threadsafe(function, *args)
        else:
            function(*args)

    def _trouble(self, text: str) -> None:
        """Output or records were lost."""
        self.tally.trouble = True
        self.troubles += 1
        if self.troubles <= self.TROUBLES:
            more = " (more such messages are left out)" if self.troubles == self.TROUBLES else ""
            self.stderr.write(os.fsencode(f"{self.prog}: {text}{more}\n"))

    def _stdout_broken(self, error: OSError) -> None:
        self.say(f"stdout: {reason(error)}; the jobs go on, their output is not shown any more")
        unheard = error.errno == errno.EPIPE or error.errno == errno.EIO and self.stdout.terminal   # which is gone
        self.tally.trouble |= not unheard


class RunnerProgram(Program):
    """What runmaker4.py and runmaker4-client.py have in common: a Runner, wherever its jobs come from."""

    def __init__(self, prog: str, label: str, options: argparse.Namespace, argv: Sequence[str]) -> None:
        """argv: as it may be printed in a command that runs jobs again.  Raises Problem."""
        super().__init__(prog, label, options)
        self.argv = argv
        self.slot_file: SlotFile | None = None
        self.slots = self._slot_names()
        self.host = os.fsencode(options.name or os.uname().nodename)
        self.retry = FAILED + ERROR if options.retry else ERROR if options.resume else b""

    def _slot_names(self) -> Sequence[str]:
        """What -j or --slots asks for.  Raises Problem."""
        count, names = self.options.jobs, self.options.slots
        if not names:
            return [str(slot + 1) for slot in range(1 if count is None else count or available_cpus())]
        if count is not None:
            raise Problem("-j and --slots exclude each other (see --help)")
        if not names.startswith("@"):
            return [name.strip() for name in names.split(",")]
        network = check_mount(names[1:], self.options.single_host, self.say).network
        self.slot_file = SlotFile(names[1:], network, lambda text: self.in_loop(self.say, text))
        return self.slot_file.names

    def find_wall_time(self) -> None:
        """Learn from Slurm until when jobs may run, where that is asked for.  Raises Problem."""
        limit = self.options.walltime
        if isinstance(limit, SlurmLimit):
            limit.find(self.options.kill_after)
            if limit.left <= 0:
                self.say(f"Slurm ends this job in {human_time(max(limit.left + limit.margin, 0))}, and the margin is "
                         f"{human_time(limit.margin)}: no job is started")

    def console(self, with_output: bool) -> list[Sink]:
        """What is printed of the jobs."""
        if self.options.quiet:
            return []
        colour = self.stdout.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return [Console(self.stdout, with_output, colour)]

    def make_runner(self, jobs: Any, sinks: list[Sink], files: Any) -> Runner:
        """The runner, which signals will find.  jobs: a FileJobs, or what has its methods.  files: what writes them."""
        processes = Processes(self.loop, self.signals, self.options.kill_after)
        self.runner = runner = Runner(jobs, processes, sinks, (self.stdout, files), self.host, self.options, self.say,
                                      self.tally, self.slots, self.slot_file, self.worker)
        self.handle_signals(runner.kill, runner.drain)
        return runner

    def relieved(self) -> None:
        self.runner.pump.resume()

    def end_for_defect(self) -> None:
        """What runs may end, and is written down."""
        self.runner.stop()

    async def run_to_end(self, jobs: Any) -> int:
        """Run the jobs, print what there is to print; the exit status."""
        runner = self.runner
        await runner.run()
        for sink in runner.sinks:
            sink.leaving()
        account = await jobs.leave(runner)
        await self.print_rest(self.stdout, lambda: bool(runner.killed))
        seconds = self.loop.time() - runner.began
        why = why_command(getattr(self.options, "outdir", None), self.label)        # a client has none
        self.say(self.tally.summary(account, jobs.orphans, seconds, functools.partial(rerun_command, self.argv), why))
        await self.print_rest(self.stderr, lambda: bool(runner.killed))
        return 128 + runner.killed if runner.killed else self.tally.status(account)


class App(RunnerProgram):
    """runmaker4.py: checks everything that can be checked, then puts the parts together and runs them."""

    def __init__(self, argv: Sequence[str], options: argparse.Namespace) -> None:
        """Raises Problem."""
        super().__init__(PROG, options.file, options, argv)
        self.path = options.file
        self.mount = check_mount(self.path, options.single_host, self.say)
        self.taker = Taker(os.fsdecode(self.host), options.follow, self.retry and self.retry + RUNNING, len(self.slots))
        self.inputs, self.network = [self.path], self.mount.network         # what is used, and whether from elsewhere
        if self.slot_file:
            self.network |= self.slot_file.network
            self.inputs += [self.slot_file.path, self.slot_file.companion]
        self.checked = not options.follow or os.path.lexists(self.path)
        if self.checked:
            os.close(open_job_file(self.path, os.O_RDONLY if options.dry_run else os.O_RDWR))
            if not options.dry_run:
                test_locks(self.path)
            check_job_file(self.path, self.say)

    def main(self) -> int:
        """Run, or say what would be run; the exit status."""
        options = self.options
        if options.dry_run:
            if os.path.lexists(self.path):      # with --follow it need not be there
                jobs = self._cursor().jobs_to_take(self.taker)
                put_lines(map(bytes, itertools.islice(jobs, len(self.slots) if options.one_only else None)))
            return 0
        self.find_wall_time()
        if self.slot_file:
            self.slot_file.prepare()
        allow_descriptors(32 + len(self.slots) * (8 if options.outdir else 6))
        self.stores = self.open_stores(self.network, *self.inputs)
        return super().main()

    def _cursor(self) -> Cursor:
        file = JobFile(self.path, say=lambda text: self.in_loop(self.say, text), mount=self.mount)
        return Cursor(file, [self.taker], ordinals=bool(self.options.logfile), wait_for_file=self.options.follow,
                      unchecked=not self.checked)

    async def work(self) -> int:
        """Run the jobs of the file."""
        log, outdir, joblog = self.stores
        sinks = self.console(with_output=not log)
        if log:
            sinks.append(LastLines(log, self.worker, self.options.loglines, self.directory))
        if outdir:
            sinks.append(AllOutput(outdir))
        if joblog:
            sinks.append(History(joblog))
        jobs = FileJobs(self._cursor(), self.worker, self.taker)
        self.make_runner(jobs, sinks, self.worker)
        return await self.run_to_end(jobs)


def main(argv: Sequence[str] | None = None) -> int:
    """Run runmaker4.py with these arguments; the exit status."""
    def start(words: Sequence[str]) -> int:
        options = parse(words)
        return check_locks(options.file, options.name) if options.check_locks else App(words, options).main()

    return run_main(PROG, start, argv)


if __name__ == "__main__":
    leave(main())


# ======== The wire ====================================================================================================
#
# Between runmaker4-server.py (S) and runmaker4-client.py (C), version 4.  Both know a token of 128 random bits, which
# never crosses the wire: each answers a challenge of the other end with it, and from then on every frame has a MAC.
#
#     1. S   {"runmaker4": 4, "nonce": S's challenge}                                   128 random bits, and the version
#     2. C   {"runmaker4": 4, "nonce": C's challenge, "proof": H("client")}             C's answer authenticates C
#     3. S   {"proof": H("server")}                                                     S's answer authenticates S
#            {"error": "token"}, {"error": "version"}                                   or this, and the connection ends
#     4. C, S   messages, each {"type": ...}, as said in the two scripts
#
#     H(label) = HMAC-SHA256(token, label + S's challenge + C's challenge), in hexadecimal
#     frame    = length of the JSON (4 bytes, big-endian), from step 4 on its MAC (32 bytes), JSON
#     MAC      = HMAC-SHA256(key, number of the frame in its direction (8 bytes) + JSON); the keys are
#                H("client to server") and H("server to client"), as bytes
#
# So frames cannot be altered, left out, repeated, put in another order, sent back to where they come from, or taken
# from another connection.  They can be read: secrecy is a tunnel's business (docs/clusters.md).  Bytes that are no
# UTF-8 travel as lone surrogates (PEP 383).  Every length is capped before anything of that length is kept.

hmac, json, secrets = map(when_used, ("hmac", "json", "secrets"))

WIRE_VERSION = 4
PORT = 9998
UNAUTHENTICATED_FRAME, FRAME = 1 << 10, 1 << 20     # bytes of JSON: until the other end is authenticated, and then
PIECE = 1 << 16                             # bytes of output in a message; JSON may need six for one
KEEP_ALIVE = 5.0                            # seconds: a client lets hear from itself so often, and is answered
SILENCE = 15.0                              # seconds without a frame: the other end is lost
HANDSHAKE = 10.0                            # seconds until the other end must be authenticated
HEX = re.compile(r"[0-9a-f]{32}")           # 128 random bits: token and challenges
UNREAD = 1 << 24                            # bytes that the other end may leave unread


class WireError(Exception):
    """The other end does not keep to the protocol."""


class Refused(WireError):
    """The two ends do not fit together: the token, or the version."""


def boottime() -> float:
    """Seconds of a clock that goes on while the machine sleeps (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def to_text(data: bytes) -> str:
    """Bytes as they travel in JSON."""
    return data.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    """The bytes that travelled.  Raises WireError."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise WireError("text that stands for no bytes") from None


def _bounded_int(digits: str) -> int:
    if len(digits) > 19:        # as many as 2^63 has; int() takes long for thousands
        raise ValueError("a huge number")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number that is not finite")
    return number


def encode(message: Any) -> bytes:
    """A message as it travels: ASCII."""
    return json.dumps(message, separators=(",", ":")).encode("ascii")


def decode(frame: bytes) -> dict[str, Any]:
    """The message in a frame.  Raises WireError."""
    try:
        message = json.loads(frame.decode("utf-8"), parse_int=_bounded_int, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        raise WireError("no JSON that can be read") from None
    if not isinstance(message, dict):
        raise WireError("no message")
    return message


class Message:
    """Reads the fields of a message and takes nothing on trust: each getter raises WireError."""

    def __init__(self, fields: Any) -> None:
        if not isinstance(fields, dict):
            raise WireError("no object where one is wanted")
        self.fields = fields

    def _string(self, name: str, longest: int) -> str:
        value = self.fields.get(name)
        if not isinstance(value, str) or len(value) > longest:
            raise WireError(f"{name}: no text that will do")
        return value

    def text(self, name: str, longest: int = FRAME) -> str:
        value = self._string(name, longest)
        if not value.isascii():
            to_bytes(value)
        return value

    def data(self, name: str) -> bytes:
        return to_bytes(self._string(name, FRAME))

    def whole(self, name: str, most: int = 1 << 62, least: int = 0) -> int:
        value = self.fields.get(name)
        if type(value) is not int or not least <= value <= most:
            raise WireError(f"{name}: no whole number that will do")
        return value

    def real(self, name: str) -> float:
        value = self.fields.get(name)
        if type(value) not in (int, float):
            raise WireError(f"{name}: no number")
        return float(value)

    def duration(self, name: str) -> float | None:
        """Seconds, or None."""
        return None if self.fields.get(name, 0) is None else max(self.real(name), 0.0)

    def flag(self, name: str) -> bool:
        value = self.fields.get(name)
        if not isinstance(value, bool):
            raise WireError(f"{name}: neither true nor false")
        return value

    def state(self, name: str) -> bytes:
        value = self.data(name)
        if len(value) != 1 or value in b"#/" or not b"!" <= value <= b"~":
            raise WireError(f"{name}: no state")
        return value

    def items(self, name: str, kind: type) -> list[Any]:
        """A list of texts (str), whole numbers (int) or objects (dict)."""
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise WireError(f"{name}: no list that will do")
        return value

    def objects(self, name: str) -> list[Message]:
        return [Message(item) for item in self.items(name, dict)]


class Channel:
    """One end of a connection, without its I/O: bytes come in and messages out, and the other way round."""
    LENGTH, NUMBER = struct.Struct(">I"), struct.Struct(">Q")
    MAC = 32                            # bytes

    def __init__(self, token: str | bytes, server: bool) -> None:
        self.token = token.encode() if isinstance(token, str) else token
        self.server = server
        self.authenticated = False      # the other end knows the token
        self.buffer = bytearray()       # received, and not yet a whole frame
        self.ready: list[bytes] = []    # to be written
        self.sent = self.received = 0   # frames with a MAC
        self.my_challenge = secrets.token_hex(16)
        self.their_challenge = ""
        self.broken: WireError | None = None
        if server:
            self._write({"runmaker4": WIRE_VERSION, "nonce": self.my_challenge})

    def outgoing(self) -> bytes:
        """What is to be written, and is forgotten here."""
        data = b"".join(self.ready)
        self.ready.clear()
        return data

    def send(self, message: dict[str, Any]) -> None:
        """Encode a message, to be written; the other end must be authenticated."""
        body = encode(message)
        if not self.authenticated or len(body) > FRAME:
            raise ValueError("a message too early, or too long")
        mac = hmac.digest(self.key_out, self.NUMBER.pack(self.sent) + body, "sha256")
        self.sent += 1
        self.ready += (self.LENGTH.pack(len(body)), mac, body)

    def receive(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that are complete with these bytes.  Raises WireError: then nothing more can be received."""
        if self.broken:
            raise self.broken
        self.buffer += data
        messages = []
        try:
            frame = self._frame()
            while frame is not None:
                if self.authenticated:
                    messages.append(decode(frame))
                elif self.server:
                    self._verify_client(Message(decode(frame)))
                else:
                    self._verify_server(Message(decode(frame)))
                frame = self._frame()
        except WireError as error:
            self.broken = error
            raise
        return messages

    def _frame(self) -> bytes | None:
        """The JSON of the next frame, if it is complete.  Raises WireError."""
        start = self.LENGTH.size + (self.MAC if self.authenticated else 0)
        if len(self.buffer) < self.LENGTH.size:
            return None
        length, = self.LENGTH.unpack_from(self.buffer)
        if length > (FRAME if self.authenticated else UNAUTHENTICATED_FRAME):
            raise WireError("a frame that is too long")
        if len(self.buffer) < start + length:
            return None
        body = bytes(self.buffer[start:start + length])
        if self.authenticated:
            mac = hmac.digest(self.key_in, self.NUMBER.pack(self.received) + body, "sha256")
            if not hmac.compare_digest(mac, bytes(self.buffer[self.LENGTH.size:start])):
                raise WireError("a frame that was altered")
            self.received += 1
        del self.buffer[:start + length]
        return body

    def _verify_client(self, message: Message) -> None:
        """Step 2, at the server.  Raises WireError."""
        if message.whole("runmaker4") != WIRE_VERSION:
            self._write({"error": "version"})
            raise Refused("another version of the protocol")
        self.their_challenge = self._challenge(message)
        if not hmac.compare_digest(self._answer("client"), message.data("proof")):
            self._write({"error": "token"})
            raise Refused("wrong token")
        self._write({"proof": self._answer("server").decode()})
        self._authenticated()

    def _verify_server(self, message: Message) -> None:
        """Steps 1 and 3, at the client.  Raises WireError."""
        if "error" in message.fields:
            raise Refused({"token": "wrong token", "version": "another version of the protocol"}.get(
                message.text("error", 64), "refused"))
        if not self.their_challenge:
            version = message.whole("runmaker4")
            if version != WIRE_VERSION:
                raise Refused(f"another version of the protocol ({version}, here it is {WIRE_VERSION})")
            self.their_challenge = self._challenge(message)
            answer = self._answer("client").decode()
            self._write({"runmaker4": WIRE_VERSION, "nonce": self.my_challenge, "proof": answer})
        elif hmac.compare_digest(self._answer("server"), message.data("proof")):
            self._authenticated()
        else:
            raise Refused("wrong token")

    @staticmethod
    def _challenge(message: Message) -> str:
        challenge = message.text("nonce")
        if not HEX.fullmatch(challenge):    # of one length always: so H's texts cannot run into each other
            raise WireError("no challenge")
        return challenge

    def _answer(self, label: str) -> bytes:
        """H(label)."""
        mine, theirs = self.my_challenge, self.their_challenge
        text = label + (mine + theirs if self.server else theirs + mine)
        return hmac.digest(self.token, text.encode("ascii"), "sha256").hex().encode()

    def _authenticated(self) -> None:
        """The other end is authenticated: from now on frames have a MAC."""
        keys = [bytes.fromhex(self._answer(label).decode()) for label in ("server to client", "client to server")]
        self.key_out, self.key_in = keys if self.server else reversed(keys)
        self.authenticated = True

    def _write(self, message: dict[str, Any]) -> None:
        """A frame of the handshake."""
        body = encode(message)
        self.ready += (self.LENGTH.pack(len(body)), body)


class Link:
    """A Channel on a connection in the event loop.  Subclasses say what messages, and the end, mean.

    It has what asyncio.Protocol has, which would have to be loaded here to be its base.
    """

    def __init__(self, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        self.channel, self.loop = channel, loop
        self.transport: Any = None
        self.heard = boottime()          # when the last frame that counts has come
        self.why = ""                       # it was dropped
        self.flushing = self.receiving = self.ended = False
        self.timer: asyncio.TimerHandle | None = None       # until what was posted is sent

    # -- for subclasses -------------------------------------------------------------------------------------------

    def authenticated(self) -> None:
        """The other end has just been authenticated."""

    def handle(self, message: Message) -> None:
        """A message has come.  Raises WireError."""
        raise NotImplementedError

    def handled(self) -> None:
        """All messages that have come together are handled."""

    def lost(self, why: str) -> None:
        """The connection is gone."""
        raise NotImplementedError

    # -- what they use --------------------------------------------------------------------------------------------

    def send(self, **message: Any) -> None:
        """Send a message, together with others of this turn of the loop."""
        if self.post(message) and not self.flushing:
            self.flushing = True
            if not self.receiving:          # else it is done after the last message that came
                self.loop.call_soon(self.flush)

    def post(self, message: dict[str, Any]) -> bool:
        """Send a message within two milliseconds, together with others; False if it is too late for any."""
        if self.ended or self.transport.is_closing():
            return False                    # the connection is being lost, which will be dealt with
        self.channel.send(message)
        if not self.timer and not self.flushing:
            self.timer = self.loop.call_later(Writer.DELAY, self.flush)
        return True

    def flush(self) -> None:
        """Hand over what is to be written; an end that does not read is dropped."""
        self.flushing = False
        if self.timer:
            self.timer.cancel()
            self.timer = None
        data = self.channel.outgoing()
        if data and not self.ended and not self.transport.is_closing():     # what comes after end() may want an answer
            self.transport.write(data)
            if self.transport.get_write_buffer_size() > UNREAD:
                self.drop("it does not read what it is sent")

    def end(self) -> None:
        """Send nothing more; once the other end has read everything, it closes the connection."""
        self.flush()
        if not self.transport.is_closing():
            self.ended = True
            with contextlib.suppress(OSError):      # ENOTCONN: the other end is gone, which we shall hear
                self.transport.write_eof()

    def drop(self, why: str) -> None:
        """Close this connection, at once."""
        self.why = self.why or why
        self.transport.abort()

    # -- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        with contextlib.suppress(OSError):  # it is gone already
            # asyncio does so only for sockets that know their protocol, which accepted ones do not; with Nagle's
            # algorithm a second small frame waits for the other end's delayed acknowledgement: 40 ms
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.flush()

    def data_received(self, data: bytes) -> None:
        known, self.receiving = self.channel.authenticated, True
        try:
            messages = self.channel.receive(data)
            if self.channel.authenticated and not known:
                self.authenticated()
            if messages:
                self.heard = boottime()
            for message in messages:
                self.handle(Message(message))
            self.handled()
        except WireError as error:
            self.why = self.why or str(error)
            self.flush()
            self.transport.close()          # after what says why
            return
        finally:
            self.receiving = False
        if self.flushing or not known:
            self.flush()

    def eof_received(self) -> None:
        """The other end sends nothing more: the connection is closed."""

    def pause_writing(self) -> None:
        """Much is unread: flush() knows."""

    resume_writing = pause_writing

    def connection_lost(self, error: Exception | None) -> None:
        why = self.why or (reason(error) if isinstance(error, OSError) else "the connection was closed")
        self.lost(why)


# ---- the token -------------------------------------------------------------------------------------------------------


def token_path() -> str:
    """Where the server leaves its token: ~/.runmaker4.token."""
    return os.path.join(os.path.expanduser("~"), ".runmaker4.token")


def read_token(path: str, follow: bool = True) -> str:
    """The token in a file that nobody else can read.  follow: also through a link.  Raises Problem, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise Problem(f"{path}: is not a regular file")
        if info.st_uid != os.geteuid():
            raise Problem(f"{path}: belongs to somebody else (chown it)")
        if info.st_mode & 0o077:
            raise Problem(f"{path}: others can get at it, permissions {info.st_mode & 0o777:04o} (chmod 600 it)")
        text = os.read(fd, 100).decode("ascii", "replace").strip()
    finally:
        os.close(fd)
    if not HEX.fullmatch(text):
        raise Problem(f"{path}: has no token in it (32 hexadecimal digits; the server makes one)")
    return text


def make_token(path: str, new: bool) -> str:
    """The server's token: the one in the file, or a new one.  Raises Problem.

    A link, or a file that others could read, is replaced; links are never followed.
    """
    try:
        while True:
            try:
                info = os.lstat(path)
                if stat.S_ISREG(info.st_mode) and info.st_uid != os.geteuid():
                    raise Problem(f"{path}: belongs to somebody else (move it away)")
                if stat.S_ISDIR(info.st_mode):
                    raise Problem(f"{path}: is a directory (move it away)")
                if not new and stat.S_ISREG(info.st_mode):
                    with contextlib.suppress(Problem):
                        return read_token(path, follow=False)
                return _write_token(path, os.replace)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):      # another server was faster: its token will do
                    return _write_token(path, os.link)
            except OSError as error:
                if error.errno != errno.ELOOP:                  # it has just become a link: look again
                    raise
    except OSError as error:
        raise Problem(f"{path}: {reason(error)} (the token must be written there)") from None


def _write_token(path: str, place: Callable[[str, str], None]) -> str:
    """Write a new token to a file that never was anybody else's to read, and put it in its place.  Raises OSError."""
    token = secrets.token_hex(16)
    draft = f"{path}.{secrets.token_hex(4)}"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)                # whatever the umask left of it
        write_all(fd, token.encode() + b"\n")
        os.fsync(fd)
        place(draft, path)
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
    return token


def change_argument(old: bytes, new: bytes) -> bool:
    """Overwrite bytes, as many, where ps reads (proc(5): arg_start, arg_end in /proc/self/stat); whether it is so."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            at = memory.read(end - start).find(old)
            if at >= 0:
                memory.seek(start + at)
                memory.write(new)
        return True
    except (OSError, ValueError, IndexError):
        return False
