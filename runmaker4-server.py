#!/usr/bin/env python3
"""runmaker4-server - hand out the jobs of a file to runmaker4-client.py on hosts that do not share its file
system.

    alice$ runmaker4-server.py runs.txt              bob$ runmaker4-client.py -j4 alice

The server claims lines for its clients with the same locks as runmaker4.py, so both can work on one file
together.  Handshake and frames are runmaker4.py's ("The wire").  What is said once both ends know each other:

    client                                              server
    have       jobs from an earlier connection
    hello      who it is, and what it may take          welcome    which file is served, which of these are
                                                                   not its jobs any more, what output is
                                                                   collected, the number of the last event
    claim      so many more jobs for so many slots      jobs       some, as soon as there are any
               (last: it will leave if there are none)  nothing    in answer to `last`, after another look at
                                                                   the file
    ping       every five seconds                       pong
    ready      the shell of a job to be held waits      go         it may begin, at this time of the client's
                                                                   clock
    sync       what its clock says                      sync       what does your clock say?
                                                        stop       end this job, or do not begin it
    begin, output, end: of a run; finish, release:      ack        all events up to this number are dealt
    of a job; these are events, numbered from 1,                   with: what they said is in the files (in a
    sent again after a new connection until acked                  second: the records of runs that go on in a
                                                                   log file, and a journal on a network file
                                                                   system)
                                                        fault      a result could not be written
                                                        lost       somebody else has this line now: stop the
                                                                   job
    account    what does the file hold?                 account    so many jobs in each state, and whether new
                                                                   ones are left that it could have run
    bye        it leaves and has no more jobs           closing    the server leaves (done: nothing is handed
                                                                   out any more; with the account)
    status     (without hello)                          summary, client, job, ..., end

What keeps jobs from being lost or run twice:

 1. A client that is lost (its connection closed, or 15 s silent) has --grace to come back.  Its lines stay
    `r` and locked meanwhile.  After that they become `e`, even if it has not said that it started them:
    nobody can know.
 2. A client starts a job only within half the grace after it asked something that was answered: not one
    whose line has become `e` while it slept, and may be another's by now.
 3. A client that comes back says which jobs it has.  It keeps a job whose line nobody has taken since;
    of any other it stops its copy.  Jobs that it does not name were not started, and become `.`; so do jobs
    that it gives back because it had not begun them when it lost the server.  Of runs that go on it also
    sends again what was acknowledged by another server: their `begin`, and the output of the lines that they
    have begun.  It may lie: a job has the number that the server remembers, or finds in the journal or in the
    file, and not the one it names.
 4. All locks are on one open file description, shared with a keeper: a small process that does nothing but
    outlive the server by the grace.  The next server gets the description from it, and so the lines that are
    locked on it.  The clients that come back say whose they are; lines that none has named become `e` after
    the grace.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":      # as in runmaker4.py
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1,
                                              signal.SIGQUIT))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import asyncio
import contextlib
import enum
import errno
import fnmatch
import functools
import hashlib
import itertools
import json
import os
import re
import resource
import secrets
import select
import shlex
import socket
import struct
import sys
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Callable, TypeVar

try:
    import runmaker4
except ModuleNotFoundError as missing:
    if missing.name != "runmaker4":
        raise
    print("runmaker4-server.py: runmaker4.py is missing (copy it to where this script is)", file=sys.stderr)
    sys.exit(2)

from runmaker4 import (
    DIRECTIVE,
    DONE,
    ERROR,
    FAILED,
    HELD,
    LOCAL,
    NEW,
    PORT,
    RUNNING,
    SEATS,
    SHELL,
    TOP,
    Account,
    Channel,
    Companion,
    Console,
    Cursor,
    Ending,
    Failures,
    Job,
    JobFile,
    JobLog,
    JobSettings,
    Line,
    Link,
    LogFile,
    Message,
    Miss,
    Mount,
    OutDir,
    Pace,
    Parser,
    PendingGroup,
    Place,
    Problem,
    Program,
    Reader,
    Round,
    Run,
    Say,
    Scan,
    Seat,
    Shell,
    Shifted,
    Slot,
    Stall,
    StallReporter,
    Stream,
    Taker,
    Takers,
    WireError,
    Worker,
    Writer,
    add_background,
    add_max_failed,
    add_records,
    all_taken,
    boottime,
    check_companion,
    check_job_file,
    check_mount,
    close_all,
    command_fault,
    duration,
    encode_timeout,
    file_of_jobs,
    fork_quietly,
    hold_signals,
    human_time,
    identity_of,
    is_free,
    leave,
    lines_of,
    lock,
    make_token,
    name_lines,
    one_line,
    open_descriptors,
    open_job_file,
    own_seat,
    persist,
    plural,
    printable,
    put,
    put_lines,
    reason,
    row,
    run_main,
    show,
    to_bytes,
    to_text,
    token_path,
    too_many_failures,
    unlock,
    wait_ready,
    watched,
    whole_number,
    why_command,
    why_stalled,
)

T = TypeVar("T")
PROG = "runmaker4-server.py"
UNAUTHENTICATED = 100           # connections at once that have not shown that they know the token
# as many may be there in the first second of each: clients that start together
CROWD = 1000
BACKLOG = 256                   # connections that wait to be accepted
UNACCEPTED = 60.0               # seconds from one line about connections that were not accepted to the next
BATCH = 64                      # lines that are claimed in one go; then others have their turn
POLL = 0.1                      # seconds from look to look at the file, while clients wait
WINDOW = 1 << 20                # bytes of output that a client may send before they are acknowledged
WINDOWS = 1 << 24               # bytes of output that all clients together may send so
CLAIMED = 1 << 25               # bytes of jobs that a client may say it has
LONGEST = 128 << 10             # bytes of several jobs in a message
ACKNOWLEDGE = 0.01              # seconds in which events are gathered that are acknowledged together
RETURN = 5.0                    # seconds within which a client starts a job or gives it back, if all is well
SETTLED = 10_000                # jobs that are remembered when they have ended
EXPIRED = 100_000               # jobs that are remembered after their grace
KEY = re.compile(r"[0-9a-f]{16}")       # of a job
KEYS = 10_000                   # in a list of a message
NAME = 200                      # characters of the job file's, in a welcome: the last ones
COMMAND = 4096                  # bytes of a command in a status
SHOWN = 10                      # waiting jobs in a status
CLAIMABLE = NEW + FAILED + ERROR + RUNNING      # what a line was when it was claimed
JOURNAL = 1 << 24               # bytes at the end of the journal in which starts of runs are sought


def make_parser() -> Parser:
    """The parser of the command line."""
    parser = Parser(
        PROG,
        purpose="Hand out the jobs of a text file to hosts that do not share its file system.",
        usage="[options] FILE",
        examples=f"Serve the jobs in runs.txt from one host, run them on another:\n"
                 f"    alice$ {PROG} runs.txt\n"
                 f"    bob$   runmaker4-client.py -j4 alice     (asks for the token printed here)",
        notes={
            "Signals": "INT and TERM stop the server; what runs is kept for --grace, for the next server on "
                       "this file.  HUP, USR1 and QUIT (Ctrl-\\) hand out nothing more and wait for what "
                       "runs.",
        },
        statuses={
            "0": "nothing in the file is new, !, e, or r without a runner",
            "1": "something is, whoever ran it; output, records or results are not written",
            "2": "bad usage, or the file cannot be used",
            "130, 143": "ended by a signal",
        },
        other_end="runmaker4-client.py",
    )
    add = parser.add_argument_group("what is handed out, and until when").add_argument
    add("file", metavar="FILE", type=file_of_jobs, help="the job file; runmaker4.py may work on it, too")
    add("--exit-when-done", action="store_true", help="leave when all jobs have ended; clients leave, too")
    add("--dry-run", action="store_true", help="print what would start where, touch nothing")
    add("--grace", type=duration, default=60.0, metavar="T",
        help="keep the jobs of a client that is lost, or of this server, so long [60s]")
    add(
        "--single-host",
        action="store_true",
        help="no other host uses the file itself: any file system will do",
    )
    add_max_failed(add)
    add = parser.add_argument_group(
        "address and token ($RUNMAKER4_TOKEN, or ~/.runmaker4.token)"
    ).add_argument
    add("--host", metavar="HOST", help="listen on this address only [all, IPv6 and IPv4]")
    add(
        "--port",
        type=whole_number(0, 65535),
        default=PORT,
        metavar="N",
        help=f"port, 0: any free one [{PORT}]",
    )
    add(
        "--new-token",
        action="store_true",
        help="make a new token; clients with the old one are not let in any more",
    )
    add = parser.add_argument_group(
        "output and records of all clients",
        "for -l, --outdir and --print they send all that their jobs print",
    ).add_argument
    add_records(add)
    add("--print", action="store_true", help="print what the clients print")
    add_background(parser.add_argument_group("background").add_argument)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options.  Raises Problem."""
    parser = make_parser()
    options: argparse.Namespace = parser.parse_args(argv)
    if options.grace is None:
        parser.error("--grace: lines cannot be kept for ever (give a time)")
    return options


# ======== The job file, as a server has it ==================================================================


class SharedCompanion(Companion):
    """A companion with all seats on one description of it, which outlives the server.

    The keeper has it, too, and hands it to the next server.  It is another one only after its lease was lost,
    or the companion removed.  Locks on it do not refuse itself: `seats` and `unclaimed`, and `fd`, which is
    another description, tell what is held.
    """
    def __init__(self, place: Place, mount: Mount, *, say: Say, clock: Callable[[], float], interval: float,
                 read_only: bool) -> None:
        super().__init__(place, mount, say=say, clock=clock, interval=interval, read_only=read_only)
        self.shared = -1                        # the description
        self.shared_inode = (0, 0)              # of which companion it is
        # seats of the server before, of lines that are not `r` any more
        self.unclaimed: set[int] = set()
        # called with the description, once there is one, and whenever it is another
        self.keep: Callable[[int], None] = lambda fd: None

    def open_seat(self) -> int:
        if self.shared < 0 or self.shared_inode != self.inode:
            self.shared = super().open_seat()
            self.shared_inode = identity_of(self.shared)
            self.keep(self.shared)
        return self.shared

    def close_seat(self, fd: int) -> None:
        """Others may have seats on it."""

    def discard(self, fd: int) -> None:
        close_all(fd)
        self.shared = -1

    def count(self, command: bytes) -> int:
        """As a companion counts them, but ours, of which there may be hundreds, without asking for each."""
        first = row(command)
        if self.shared < 0 or self.shared_inode != self.inode:
            return super().count(command)
        if is_free(self.fd, first, SEATS):
            return 0
        ours = sum(first <= at < first + SEATS for at in itertools.chain(self.seats, self.unclaimed))
        return ours + sum(map(len, all_taken(self.shared, first, SEATS)))

    def is_ours(self, at: int) -> bool:
        return at in self.seats or at in self.unclaimed

    def inherit(self, fd: int) -> None:
        """Go on with the description of a server that has died, and the seats on it: they are unclaimed.

        A seat is ours if another description finds it taken, and this one does not.  Raises OSError; ESTALE:
        it is of a companion that was removed.
        """
        if identity_of(fd) != self.inode:
            raise OSError(errno.ESTALE, "its companion was removed")
        # Where a door is taken, too, somebody edits the file: that is no seat.
        ranges = [found for found in all_taken(self.fd, 0, JobFile.GUARD) if found.start | SEATS not in found]
        self.count_in()
        # by way of a shared lock, for most of them are locked through this description (see lock())
        self.unclaimed = {at for found in ranges for at in found
                          if lock(fd, at, shared=True) and lock(fd, at)}
        self.shared = fd
        self.shared_inode = self.inode

    def adopt(self, at: int) -> Seat:
        """An unclaimed seat is that of a line that is held now."""
        self.unclaimed.remove(at)
        seat = self.seats[at] = Seat(self.shared, at)
        return seat

    def drop_unclaimed(self) -> None:
        """Nobody comes for the rest of the seats of the server before."""
        for at in self.unclaimed:
            with contextlib.suppress(OSError):          # EIO: the lease was lost, and they with it
                unlock(self.shared, at)
        self.unclaimed.clear()


class ServedFile(JobFile):
    """A job file whose lines are held for clients."""
    COMPANION = SharedCompanion
    companion: SharedCompanion

    def __init__(self, path: str, *, say: Say, mount: Mount = LOCAL,
                 keep: Callable[[int], None] = lambda fd: None) -> None:
        """keep: called with the description that has the seats, once there is one, and whenever another has
        them.
        """
        super().__init__(path, say=say, mount=mount)
        self.companion.keep = keep

    def take_back(self, line: Line, lines: list[Line], states: bytes) -> Job | None:
        """Hold a line again that a client says it has, of these that are left of its command.  Raises
        OSError.

        states: in which it may be besides `r`.
        """
        first = row(line.command)
        at = next((at for at in self.companion.unclaimed if first <= at < first + SEATS), None)
        if at is not None:                      # where its line stands, look_after() will find out
            return self._adopt(Job(**vars(line)), at)
        free = [there for there in lines if there.state in RUNNING + states]
        for there in sorted(free, key=lambda there: there.number != line.number):
            with contextlib.suppress(Shifted):  # edited this very moment: its lines are to run anew
                job = self.claim(there, TAKING_BACK).job
                if job:
                    lines.remove(there)
                    return job
        return None

    def adopt(self, fd: int) -> list[Job]:
        """Go on with the seats of a server that has died, on this description of the companion; return its
        lines, now held here.

        Of the lines `r` of its command a seat has its own one, or else any that is nobody's.  Clients know
        what the lines were before, and whose they are.  Raises OSError, and may be called again then; ESTALE:
        in vain.
        """
        self.follow_path()
        companion = self.companion
        companion.inherit(fd)
        lines: dict[int, list[Line]] = {}
        for line in Scan(self.reader, self.start, RUNNING):
            own = own_seat(line)
            if own in companion.unclaimed or not companion.is_held(own):    # else it is another runner's
                lines.setdefault(row(line.command), []).append(line)
        jobs = []
        for at in sorted(companion.unclaimed):
            there = lines.get(at - at % (SEATS + 1), [])
            there.sort(key=lambda line: own_seat(line) == at)
            if there:
                jobs.append(self._adopt(Job(**vars(there.pop()), inode=self.inode), at))
        return jobs

    def _adopt(self, job: Job, at: int) -> Job:
        """A job has this seat, which is locked."""
        job.seat = self.companion.adopt(at)
        self.held[job] = None
        return job

    def assign(self, lines: Iterable[Line], jobs: Iterable[Job]) -> dict[Line, Job]:
        """Which of these held jobs a client means by these lines, as it knows them.

        Best is the one of the same number; else, for an edit may have moved it, any of its command.
        """
        free = {job: None for job in jobs if job in self.held}
        found = {}
        here = {(job.number, job.command): job for job in free}
        for line in lines:
            job = here.pop((line.number, line.command), None)
            if job:
                found[line] = job
                del free[job]
        of_command: dict[bytes, deque[Job]] = {}
        for job in free:
            of_command.setdefault(job.command, deque()).append(job)
        for line in lines:
            if line not in found and of_command.get(line.command):
                found[line] = of_command[line.command].popleft()
        return found

    def settled(self, results: dict[Line, bytes], inherited: bool) -> set[Line]:
        """Of these lines those in which their jobs' results stand already, as far as can be told.  Raises
        OSError.

        inherited: an edit while there was no server may have moved them.  Then a line of the same command
        with this result may be theirs: better that one becomes `e` than that a line gets the result of
        another's job.
        """
        states = {line: self.state_at(line) for line in results}
        moved = {line.command for line, state in states.items() if state is None} if inherited else set()
        elsewhere = {(line.command, line.state) for line in lines_of(self.reader, self.start, moved)}
        return {line for line, state in states.items()
                if state == results[line] or (state is None and (line.command, results[line]) in elsewhere)}


TAKING_BACK = Taker("")             # of a line whose client is not known yet


# ======== The keeper ========================================================================================
#
# It is told things over a socket pair, whose end tells it that the server has died; then it waits --grace for
# the next server at an abstract socket (unix(7)), whose name is gone with the keeper.  Both are
# SOCK_SEQPACKET: a message is a packet, with descriptors in it.


def same_user(sock: socket.socket) -> bool:
    """Whether the process at the other end is ours (unix(7), SO_PEERCRED)."""
    uid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    return uid == os.geteuid()


class Keeper:
    """The keeper's process: holds the descriptor that it was sent last, and hands it to the next server."""
    KEPT, BUSY = b"k", b"b"             # what a visitor is told

    def __init__(self, listener: socket.socket, life: socket.socket) -> None:
        """listener: where the next server comes to; life: ends when this one does."""
        self.listener = listener
        self.life = life
        self.locks = -1                 # the descriptor
        self.grace = 0.0
        self.server = b""               # its process
        self.deadline: float | None = None      # None: it lives

    def run(self) -> None:
        """Until the server is dead for the grace, or holds nothing then.

        If a defect ends this sooner, a server that lives starts another keeper; else the locks are held to
        the end all the same, and no next server is let in: jobs that run must not be run by others.
        """
        try:
            while self._serve():
                pass
        finally:
            if self.deadline is not None:
                time.sleep(max(0.0, self.deadline - time.monotonic()))

    def _serve(self) -> bool:
        """Wait for what comes next; whether there will be more."""
        dead = self.deadline is not None
        patience = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        socks = [self.listener] if dead else [self.listener, self.life]         # its end is known
        found = wait_ready([sock.fileno() for sock in socks], select.POLLIN, patience)
        if not found and dead:
            return False
        if self.life.fileno() in found and not self._listen():
            self.deadline = time.monotonic() + self.grace
            if not self._needed():
                self.deadline = None
                return False
        if self.listener.fileno() in found:
            self._receive_visitor()
        return True

    def _needed(self) -> bool:
        """Whether there are seats that may be ours; a runner's are not told from them."""
        if self.locks < 0:
            return False
        try:
            # another description: locks keep it out
            with open(f"/proc/self/fd/{self.locks}", "rb") as other:
                return not is_free(other.fileno(), 0, JobFile.GUARD)
        except OSError:                 # the file system has trouble: better held for nothing than let go
            return True

    def _listen(self) -> bool:
        """Take what the server says, a descriptor or its grace and process; whether it lives."""
        try:
            data, fds, _, _ = socket.recv_fds(self.life, 64, 1)
        except OSError:
            return False
        if fds:
            if self.locks >= 0:
                os.close(self.locks)
            self.locks = fds[0]
        elif data:
            grace, self.server = data.split()
            self.grace = float(grace)
        return bool(data)

    def _receive_visitor(self) -> None:
        """Hand the descriptor to a new server if the old one is dead: that lives from now on."""
        visitor, _ = self.listener.accept()
        with contextlib.suppress(OSError):
            if same_user(visitor):
                if self.deadline is not None and self.locks >= 0:
                    socket.send_fds(visitor, [self.KEPT], [self.locks])
                    self.life.close()
                    self.life = visitor
                    self.deadline = None
                    return
                visitor.send(self.BUSY + self.server)
        visitor.close()


class NoKeeper(Exception):
    """The name of the keeper's socket is somebody else's: anybody on this host may take an abstract name."""


class KeeperLink:
    """The server's end: gives the keeper the descriptor that must outlive us, and fetches that of the server
    before.
    """
    PATIENCE = 2.0                      # seconds for a server that is about to leave
    # seconds for the kernel to close all sockets of a keeper that was killed: the one that tells us of its
    # death may be closed before the one that has its name
    CLOSING = 0.5

    def __init__(self, path: str, grace: float) -> None:
        """path: of the job file.  Raises OSError.

        One path may lead to different files in two containers that share their abstract names (a network
        namespace), and two paths to one file.  So the name has the job file's directory by its device and
        inode.  Those of the companion would be others when that was removed and made again, and the next
        server would not find the keeper.
        """
        folder, name = os.path.split(os.path.realpath(os.fsencode(path)))
        place = os.stat(folder)
        file = hashlib.sha256(name).hexdigest()
        self.name = f"\0runmaker4.{os.geteuid()}.{place.st_dev:x}.{place.st_ino:x}.{file[:32]}"
        self.grace = grace
        self.life: socket.socket | None = None
        self.since = 0.0                    # when the keeper was started
        self.locks = -1                     # the descriptor with the seats, once there is one

    def open(self) -> None:
        """Get the seats from the keeper of the server before us, or start one.

        Raises Problem, NoKeeper, OSError.
        """
        end = time.monotonic() + self.PATIENCE
        while not self._start():
            said = self._visit()
            if self.life:
                return self.introduce()
            if time.monotonic() > end:
                if said is None:
                    raise NoKeeper
                raise Problem(
                    f"is served already, by process {show(said[1:]) or '?'} (use that one, or stop it)"
                )
            time.sleep(0.05)

    def _visit(self) -> bytes | None:
        """Ask for the seats whoever has the name; what a keeper of ours says, None: there is none to be
        reached.
        """
        said = None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(self.PATIENCE)
        # it is just leaving; or was stopped; or is no keeper at all
        with contextlib.suppress(OSError):
            sock.connect(self.name)
            if same_user(sock):
                said = b""
                said, fds, _, _ = socket.recv_fds(sock, 64, 1)
                if fds:
                    sock.settimeout(None)
                    self.life = sock
                    self.locks = fds[0]
                    return said
        sock.close()
        return said

    def _start(self) -> bool:
        """Start a keeper, unless there is one.  Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # before it listens visitors are refused, and come again
            listener.bind(self.name)
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        listener.listen(8)
        self.since = time.monotonic()
        self.life, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if fork_quietly() == 0:
            self._keep(listener, theirs)
        listener.close()
        theirs.close()
        self.introduce()
        if self.locks >= 0:
            self.keep(self.locks)
        return True

    def _keep(self, listener: socket.socket, life: socket.socket) -> None:
        """In the child, which must not go on with anything else: be the keeper, with nothing but what is
        sent.
        """
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            os.setsid()
            for number in (*runmaker4.TOLD, signal.SIGPIPE):
                signal.signal(number, signal.SIG_IGN)   # a signal for the server is not for us
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            for fd in open_descriptors():               # our clients' connections must end with the server
                if fd > 2 and fd not in (listener.fileno(), life.fileno()):
                    with contextlib.suppress(OSError):  # the one that listed them is closed by now
                        os.close(fd)
            Keeper(listener, life).run()
            code = 0
        finally:
            os._exit(code)

    def introduce(self) -> None:
        """Tell the keeper how long it is to wait once we are dead, and who we are; after each fork anew."""
        self._send(b"%f %d" % (self.grace, os.getpid()))

    def keep(self, fd: int) -> None:
        """Make the keeper hold this descriptor, in place of the one that it has."""
        self.locks = fd
        self._send(b"locks", fd)

    def revive(self) -> None:
        """The keeper has died: start another.  Raises OSError."""
        self._close()
        if time.monotonic() - self.since < 1.0:
            raise OSError(errno.ECHILD, "it dies at once")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        end = time.monotonic() + self.CLOSING
        while not self._start():
            if time.monotonic() > end:
                raise OSError(errno.EADDRINUSE, "another has taken its name")
            time.sleep(0.01)

    def dismiss(self) -> None:
        """Nothing is left that must outlive us: it is not to wait."""
        self.grace = 0.0
        self.introduce()
        self._close()

    def _close(self) -> None:
        """Say no more to the keeper."""
        if self.life:
            self.life.close()
            self.life = None

    def _send(self, data: bytes, *fds: int) -> None:
        if self.life:
            with contextlib.suppress(OSError):          # it has died, which will be noticed
                socket.send_fds(self.life, [data], fds) if fds else self.life.send(data)


# ======== Clients and their connections =====================================================================


@dataclass(eq=False)
class Batch:
    """What became of an attempt to claim lines."""
    got: list[Grant] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)     # of groups that were met
    miss: Miss | None = None            # why there are no more; None: it was enough

    @property
    def unfinished(self) -> bool:
        """Whether the look is to go on."""
        return self.miss is not None and self.miss.unfinished


# A line that a client has is in one of these phases.  Only methods of Grant change it:
#
#     phase     what is known of it                              what comes next
#     CLAIMED   its client was not told of it: it is about to    SENT by hand(), ENDING
#               be, or it waits for its turn in a group
#     SENT      its client was told, and may have begun it       BEGUN by begin(), ENDING, OVER; CLAIMED by
#                                                                requeue(), when it was lost on its way
#     BEGUN     its client has it, or its group let it begin     ENDING, OVER
#     ENDING    end() has said what becomes of it, and that      OVER
#               is being written
#     OVER      nobody has it any more                           nothing: forget() is the last call
#
# A line of the server before is SENT, for nobody knows more; one that a client has brought back is BEGUN.
# OVER follows at once when another runner has taken the line, or when the client of an inherited one has
# come.


class Phase(enum.Enum):
    """How far a line has come that a client has."""
    CLAIMED = enum.auto()
    SENT = enum.auto()
    BEGUN = enum.auto()
    ENDING = enum.auto()
    OVER = enum.auto()


class End(enum.Enum):
    """Why a client has a line no more, and what is shown where nothing better is known."""
    RAN = "ended"                       # its job has come to its end
    TIMEOUT = "timeout"
    UNSTARTED = "not started"           # its job could not be started
    RETURNED = "given back"             # its client has not begun it
    STOPPED = "stopped"                 # too many hosts of its group are lost
    CANCELLED = "cancelled"
    VANISHED = "vanished"               # its client has gone
    TAKEN = "lost"                      # somebody else has its line

    @property
    def loses_host(self) -> bool:
        """Whether a host of a group counts as lost when one of its jobs ends so."""
        return self in (End.TIMEOUT, End.UNSTARTED, End.VANISHED, End.TAKEN)


# What a client says of the end of a job, besides its state
CAUSES = {"": End.RAN, "timeout": End.TIMEOUT, "unstarted": End.UNSTARTED, "vanished": End.VANISHED}


@dataclass(frozen=True)
class Outcome:
    """What becomes of a line."""
    end: End
    state: bytes | None                 # that it gets; None: what it was
    how: str = ""                       # how its job ended, to be shown: "exit 0"
    event: int = 0                      # of the client's, to be acknowledged once the state is written

    @property
    def shown(self) -> str:
        return self.how or self.end.value


@dataclass(eq=False)
class Grant:
    """A line that a client has."""
    key: str
    client: Client
    job: Job
    phase: Phase = Phase.CLAIMED
    handed: float | None = None         # when its client was told of it, or that it may begin
    began: float | None = None          # when it began, as far as we know; wall clock, seconds
    pid: int = 0
    member: Member | None = None        # in a group
    run: Run | None = None              # that goes on, as far as records are kept of it
    record: bytes | None = None         # of a job that a client has brought back: what the log file has of it
    goes_on: bool = False               # the files of that run in the output directory are still its own

    @property
    def is_open(self) -> bool:
        """Whether nobody has said yet what becomes of it."""
        return self.phase is not Phase.ENDING and self.phase is not Phase.OVER

    def may_return(self, since: float) -> bool:
        """Whether it may come back unbegun, from a client that is here and was told of it only since then."""
        told = self.handed is not None and self.handed > since
        return told and self.began is None and self.client.link is not None

    def hand(self) -> None:
        """Its client is told of it, or that it may begin."""
        self.phase = Phase.SENT
        self.handed = boottime()

    def requeue(self) -> None:
        """Its client was told of it, but does not know it."""
        self.phase = Phase.CLAIMED
        self.handed = None

    def begin(self, pid: int = 0) -> None:
        """Its job has begun, or begins again."""
        self.phase = Phase.BEGUN
        self.began = time.time()            # the client's clock may be another
        self.pid = pid

    def end(self, outcome: Outcome) -> Outcome | None:
        """Say what becomes of it; what does, in fact.  None: that was said before, and the first one counts.

        What was decided about the line before has more weight than what ends a job without a result of its
        own.  When somebody has set its state, that state stays.  That its group was stopped explains why its
        client, told to end it, has gone or given it back.  And to a group that has begun, a host that gives a
        line back is lost: the others do not wait for it.
        """
        if not self.is_open:
            return None
        self.phase = Phase.ENDING
        cancelled = self.job.cancelled
        stage = self.member.group.stage if self.member else None
        if outcome.end is End.RETURNED and stage in (Stage.RUNNING, Stage.STOPPED) and not cancelled:
            outcome = replace(outcome, end=End.VANISHED, state=ERROR)
        if outcome.state == ERROR and stage is Stage.STOPPED:
            outcome = replace(outcome, end=End.STOPPED, how="")
        if outcome.state in (None, ERROR) and cancelled:
            unbegun = outcome.end in (End.RETURNED, End.UNSTARTED)
            outcome = replace(outcome, end=End.CANCELLED if unbegun else outcome.end, state=HELD)
        return outcome

    def forget(self) -> None:
        """Nobody has it any more."""
        self.phase = Phase.OVER

    def join(self, member: Member) -> None:
        """It is a line of a group that is about to begin, for this host of it."""
        self.member = member

    def leave_group(self) -> None:
        """Its group has been called off."""
        self.member = None

    def begin_run(self, run: Run) -> None:
        """Records are kept of this run of its job from now on."""
        self.run = run
        self.record = None

    def end_run(self) -> Run | None:
        """The run of which records were kept, if there is one: it goes on no more."""
        run, self.run = self.run, None
        return run


class Inbox:
    """The events of a client: which have come, which are dealt with, and of which it was told that they are.

    An event comes once, or more often after new connections; only the first counts.  It is open as long as
    what it says is not in the files.
    """

    def __init__(self) -> None:
        self.seen = 0                   # the last event that has come
        self.acknowledged = 0           # the last that the client was told is dealt with
        self.posted = 0                 # the first that was just posted to the worker's thread; 0: none was
        self.unacknowledged = 0         # bytes of output in events that are not acknowledged
        self._open: set[int] = set()
        self._sizes: deque[tuple[int, int]] = deque()   # of the output: event, bytes

    @property
    def is_dealt_with(self) -> bool:
        """Whether no event is open."""
        return not self._open

    @property
    def dealt_with(self) -> int:
        """The last event before the first that is open."""
        return min(self._open) - 1 if self._open else self.seen

    def take(self, event: int) -> bool:
        """An event has come; whether it is new."""
        if event <= self.seen:
            return False
        self.seen = event
        return True

    def open(self, event: int) -> None:
        """An event is not dealt with before it is closed; 0: none."""
        if event:
            self._open.add(event)

    def close(self, event: int) -> None:
        """All that an event asks for is done."""
        self._open.discard(event)

    def post(self, event: int) -> None:
        """What an event says was posted to the worker's thread, which deals with events in order."""
        if not self.posted:
            self.posted = event
            self.open(event)

    def take_posted(self) -> int:
        """The first event that was posted since this was asked last."""
        event, self.posted = self.posted, 0
        return event

    def count(self, event: int, size: int) -> None:
        """There are so many bytes of output in an event.  Raises WireError: more than a client may send."""
        self.unacknowledged += size
        self._sizes.append((event, size))
        if self.unacknowledged > 4 * WINDOW:
            raise WireError("more output than was asked for")

    def acknowledge(self, upto: int) -> None:
        """The client is told that all events up to this one are dealt with."""
        self.acknowledged = upto
        while self._sizes and self._sizes[0][0] <= upto:
            self.unacknowledged -= self._sizes.popleft()[1]


@dataclass(frozen=True)
class Hello:
    """Who a client says it is, and what it may take."""
    client: str                         # drawn by lot when it started
    name: str                           # of its host
    directory: bytes                    # where its jobs run
    retry: bytes                        # the states that it takes besides '.'
    follow: bool
    pid: int
    slots: int

    @classmethod
    def read(cls, message: Message) -> Hello:
        """Raises WireError."""
        client, name = message.text("client", 16), message.text("name", 255)
        retry = {"": b"", "e": ERROR + RUNNING, "!e": FAILED + ERROR + RUNNING}.get(message.text("retry", 2))
        if retry is None or len(client) != 16 or not client.isalnum() or not client.isascii():
            raise WireError("a hello that makes no sense")
        return cls(
            client,
            name,
            message.data("directory"),
            retry,
            message.flag("follow"),
            message.process("pid"),
            message.whole("slots", 1_000_000),
        )


class Gone(enum.Enum):
    """Why nothing counts any more that comes on a link."""
    LOST = enum.auto()                  # its client has the grace to come back
    REPLACED = enum.auto()              # its client has connected anew
    LEFT = enum.auto()                  # its client has said that it leaves


class Client(Taker):
    """A client, as long as it is here or may come back.

    Its life is one coroutine, live(): it is talked with on one link after the other, until it has said bye,
    or was away for the grace.  A link tells what happens to it in `gone`, and `link` looks there: the
    coroutine has its turn a little later.
    """
    slots: int

    def __init__(self, sessions: Sessions, id: str) -> None:
        super().__init__("?", slots=0)
        self.sessions = sessions
        self.server = sessions.server
        self.id = id
        self.address = "?"
        self.pid = 0
        self.directory = b""            # where its jobs run
        self.newest: ClientLink | None = None   # the last one on which it has said hello
        self.came = asyncio.Event()     # on that one, with which live() has not dealt yet
        self.lost_at = boottime()       # when the last link was
        self.grants: dict[str, Grant] = {}
        self.memberships = 0            # in groups: it gets nothing else meanwhile
        self.want = 0                   # jobs that it would take now
        self.asked = 0                  # the number of its last claim
        self.asked_at = 0.0             # when that came, by the job file's clock
        self.leaving = False            # its last claim said that it will leave if there is nothing
        # how many it was told of or had nothing to do with
        self.orphans = len(sessions.cursor.orphans)
        self.inbox = Inbox()
        self.timer: asyncio.TimerHandle | None = None       # until events are acknowledged

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def link(self) -> ClientLink | None:
        """The link on which it is welcome, if that is not gone."""
        return self.newest if self.newest and self.newest.client is self else None

    def is_called(self, host: str) -> bool:
        """Whether an entry of host= means it: its name, or its address."""
        return super().is_called(host) or fnmatch.fnmatchcase(self.address, host)

    @property
    def room(self) -> int:
        """How many more lines it may have: some slots may finish their jobs out of service; lines that are
        ending count not.
        """
        return 2 * self.slots - sum(grant.is_open for grant in self.grants.values())

    @property
    def where(self) -> str:
        return f"{printable(self.name)} ({self.address})"

    # -- its life --------------------------------------------------------------------------------------------

    def come(self, link: ClientLink, hello: Hello) -> None:
        """It has said hello on this link: an older one is dead, though we may not have noticed."""
        if self.newest and self.newest.gone.done():
            self.server.say(f"client {self.where} came back")
        elif self.newest:
            self.newest.leave(Gone.REPLACED)
            self.newest.drop("it has connected anew")
        self.name = hello.name
        self.address = link.address
        self.pid = hello.pid
        self.directory = hello.directory
        self.follow = hello.follow
        self.retry = hello.retry
        self.slots = hello.slots
        self.newest = link
        self.came.set()

    async def live(self) -> None:
        """Talk with it on one link after the other, until it leaves or its grace is over."""
        while link := await self._next_link():
            gone = await self._talk(link)
            if self.server.over.done():
                return                      # what it has is kept for the next server
            begun = self._detach()
            if gone is Gone.LOST:
                self._note_loss(link.why)
            self.server.leave_if_over()
            if gone is Gone.LEFT:
                return self._part(begun)
        if not self.server.over.done():
            self._expire()

    async def _next_link(self) -> ClientLink | None:
        """The newest link on which it came; None: it did not come within the grace."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.came.wait(), self.server.options.grace)
        if not self.came.is_set():
            return None
        self.came.clear()
        return self.newest

    async def _talk(self, link: ClientLink) -> Gone:
        """Settle what has changed while it was away, and let it in; why the link is gone."""
        keys = {claim.key for claim in link.claims}
        self._release_unknown(keys)
        for grant in self.grants.values():
            if grant.key in keys and grant.phase is Phase.SENT:
                grant.begin()
        others = await self.sessions.recovery.reclaim(self, link.claims)
        if not link.gone.done():
            self._welcome(link, others)
        return await link.gone

    def _welcome(self, link: ClientLink, others: dict[Otherwise, list[str]]) -> None:
        """Let it in; tell what is collected, and which jobs are not its own any more: others."""
        link.welcome()
        sessions = self.sessions
        self._note_acknowledged(self.inbox.dealt_with)
        link.send(
            type="welcome",
            file=to_text(os.fsencode(self.server.path))[-NAME:],
            grace=self.server.options.grace,
            seen=self.inbox.acknowledged,
            window=runmaker4.PIECE if sessions.records.behind(Writer.HIGH) else sessions.window(),
            lost=others[Otherwise.LOST][:KEYS],
            settled=others[Otherwise.SETTLED][:KEYS],
            **sessions.records.wanted(),
        )
        # further settled ones are, once their results come again
        for key in others[Otherwise.LOST][KEYS:]:
            link.send(type="lost", id=key)
        for key in others[Otherwise.CANCELLED]:
            link.send(type="stop", id=key, cancelled=True)
        for grant in list(self.grants.values()):
            if grant.job.cancelled:
                sessions.cancel(grant)
        for member in {grant.member for grant in self.grants.values() if grant.member}:
            member.group.welcome_back(member)

    def _release_unknown(self, keys: set[str]) -> None:
        """Give back the lines that it does not have.  Had it begun one, or its group, that is lost."""
        for grant in list(self.grants.values()):
            if grant.key in keys or grant.phase not in (Phase.SENT, Phase.BEGUN):
                continue
            if grant.member and grant.member.group.take_back(grant.member, grant):
                continue
            if grant.member or grant.phase is Phase.BEGUN:
                self.sessions.settle(grant, Outcome(End.VANISHED, ERROR))
            else:
                self.sessions.settle(grant, Outcome(End.RETURNED, None))

    def _detach(self) -> list[Grant]:
        """It has no link: it asks for nothing, and no group begins with it.

        Returns its jobs of groups that have begun.
        """
        self.want = 0
        self.leaving = False
        self.asked = 0
        self.server.dispatcher.forget(self)
        return self.sessions.abort_groups(self.grants)

    def _note_loss(self, why: str) -> None:
        """Its grace begins."""
        self.lost_at = boottime()
        self.server.say(f"client {self.where} is lost: {why}{self.sessions.kept(self.grants)}")

    def _part(self, begun: list[Grant]) -> None:
        """It has left.  begun: its jobs of groups that have begun."""
        for grant in begun:
            self.sessions.settle(grant, Outcome(End.VANISHED, ERROR))
        self._release_unknown(set())

    def _expire(self) -> None:
        """It did not come back."""
        self.sessions.remove(self)
        lines = [
            grant.job.number for grant in self.grants.values() if grant.is_open and not grant.job.cancelled
        ]
        if lines:
            who = f"client {self.where}" if self.id else "clients of the server before"
            grace = human_time(self.server.options.grace)
            self.server.say(f"{who} did not come back within {grace}; {name_lines(lines)} marked e (where a "
                            "client was killed its jobs may still run)")
        for grant in list(self.grants.values()):
            self.sessions.recovery.note_expired(grant)
            self.sessions.settle(grant, Outcome(End.VANISHED, ERROR))

    # -- what it asks for, and gets --------------------------------------------------------------------------

    def ask(self, message: Message) -> None:
        """It asks for jobs; its slots may have changed (--slots @FILE).  Raises WireError."""
        self.note_slots(message)
        # it gets what it has room for
        self.want = min(self.want + message.whole("want", 1_000_000), 1_000_000)
        self.asked = message.whole("request")
        self.asked_at = self.sessions.file.clock()
        self.leaving = message.flag("last")
        if self.leaving:
            self.want = max(self.want, 1)

    def note_slots(self, message: Message) -> None:
        """How many slots it has now, if it says so.  Raises WireError."""
        if "slots" in message.fields:
            self.slots = message.whole("slots", 1_000_000)

    def note(self, grant: Grant) -> None:
        """It has a line."""
        self.grants[grant.key] = grant

    def forget(self, grant: Grant) -> None:
        """It has this line no more."""
        del self.grants[grant.key]

    def supply(self, slots: int) -> None:
        """It gets jobs for so many of the slots for which it has asked."""
        self.want -= slots

    def offer(self, slots: float) -> None:
        """A look at the file may find jobs for so many of its slots.  In the worker's thread, perhaps."""
        self.free = slots

    def enter_group(self) -> None:
        """It is a host of a group that has begun to prepare."""
        self.memberships += 1

    def leave_group(self) -> None:
        """A group is over."""
        self.memberships -= 1

    # -- what it is told -------------------------------------------------------------------------------------

    def tell_nothing(self, found: Round) -> None:
        """It may leave, for there is nothing for it: that was found by this round."""
        self.leaving = False
        # a look in the worker's thread may find another now
        orphans = self.sessions.cursor.orphans[self.orphans:]
        self.orphans += len(orphans)
        self.tell(
            type="nothing",
            request=self.asked,
            ended=found.ended,
            orphans=[] if self.retry else orphans[:1000],       # one that retries takes them itself
            left=found.stopped(self)[:1000],
        )

    def tell(self, **message: Any) -> None:
        """Send it a message, if it is here."""
        if self.link:
            self.link.send(**message)

    def flush(self) -> None:
        """Send at once what it was told."""
        if self.link:
            self.link.flush()

    def acknowledge_soon(self) -> None:
        """Acknowledge within ten milliseconds, so that many events share a message; at once if it may be
        waiting for that.
        """
        if not self.grants or self.inbox.unacknowledged > WINDOW // 8:
            self.acknowledge()
        elif not self.timer:
            self.timer = self.sessions.loop.call_later(ACKNOWLEDGE, self.acknowledge)

    def acknowledge(self, leaving: bool = False) -> None:
        """Tell it that its events are dealt with, so that it may send more; not while the disk is behind.

        leaving: the server does, so it is told whatever the disk does.
        """
        if self.timer:
            self.timer.cancel()
            self.timer = None
        sessions = self.sessions
        if not leaving and (sessions.records.behind(Writer.HIGH) or self.server.over.done()):
            return
        upto = self.inbox.dealt_with
        if not self.link or upto <= self.inbox.acknowledged:
            return
        self._note_acknowledged(upto)
        self.link.send(type="ack", n=upto, window=sessions.window())

    def _note_acknowledged(self, upto: int) -> None:
        """It is told that these events are dealt with: what the journal has gathered of them is written
        first.

        Not on a network file system, where each such write costs some six round trips.
        """
        if not self.server.worker.pool:
            self.sessions.records.flush()
        self.inbox.acknowledge(upto)


class ClientLink(Link, asyncio.Protocol):
    """A connection of the server's: passes each message on to the part that deals with it."""

    def __init__(self, sessions: Sessions, token: str) -> None:
        super().__init__(Channel(token, server=True), sessions.loop)
        self.sessions = sessions
        self.server = sessions.server
        self.guest: Client | None = None        # the client that has said hello
        self.is_welcome = False                 # that was answered
        self.gone: asyncio.Future[Gone] = self.loop.create_future()
        self.claims: list[Known] = []           # the jobs that it says it has
        self.claimed = 0                        # the bytes of these
        self.clock: Clock | None = None         # the client's, while a group asks for it

    @property
    def client(self) -> Client | None:
        """The client that is welcome here."""
        return self.guest if self.is_welcome and not self.gone.done() else None

    def welcome(self) -> None:
        """The client that has said hello is let in."""
        self.is_welcome = True

    def leave(self, gone: Gone) -> None:
        """Nothing counts any more that comes here; the first reason does."""
        if not self.gone.done():
            self.gone.set_result(gone)

    def ask_clock(self, known: Callable[[], None]) -> Clock:
        """Ask the client for its clock.  known: called when that is known."""
        self.clock = Clock(self, known)
        return self.clock

    def connection_made(self, transport: Any) -> None:
        name = transport.get_extra_info("peername")
        self.address = name[0].removeprefix("::ffff:") if name else "?"     # None: it is gone already
        super().connection_made(transport)
        self.sessions.connected(self)

    def handle(self, message: Message) -> None:
        """Whatever the other end says.  Raises WireError."""
        if self.server.over.done():
            # we leave; what was not acknowledged is for the next server
            return
        kind, client = message.text("type", 16), self.client
        if client and "n" in message.fields:
            self.sessions.take_event(client, kind, message)
        elif kind == "ping":
            self.send(type="pong", request=message.whole("request"))
        elif kind == "claim" and client:
            client.ask(message)
            self.server.dispatcher.note_asking(client)
        elif kind == "sync" and client and self.clock:
            self.clock.answer(message.seconds("clock"))
        elif kind == "ready" and client:
            grant = client.grants.get(message.text("id", 16))
            if grant and grant.is_open:                 # else its group was given up meanwhile
                self._note_ready(grant)
        elif kind == "have" and not self.guest:
            claims = [Known.read(item) for item in message.objects("jobs")]
            self.claims += claims
            self.claimed += sum(200 + len(claim.line.text) for claim in claims)
            if self.claimed > CLAIMED:
                raise WireError("more jobs than it can have")
        elif kind == "hello" and not self.guest:
            self.guest = self.sessions.greet(self, Hello.read(message))
        elif kind == "account" and client:
            client.note_slots(message)                  # all, spent ones and ones out of service, too
            self.server.accountant.ask(self, leaves=True)
        elif kind == "status":
            self.server.accountant.ask(self, leaves=False)
        elif kind == "bye" and client:
            self.sessions.part(client, self)
        else:
            raise WireError(f"what is {kind!a} at this moment?")

    @staticmethod
    def _note_ready(grant: Grant) -> None:
        """A shell waits.  Raises WireError."""
        member = grant.member
        if not member or grant is not member.current:
            raise WireError("nobody has asked it to hold that job")
        member.group.note_ready(member, grant)

    def handled(self) -> None:
        """All that has come together is dealt with: answer it."""
        client = self.client
        if client and client.inbox.posted:
            self.sessions.file_away(client)
        if client:
            client.acknowledge_soon()
        if self.server.dispatcher.wanted:
            self.server.dispatcher.hand_out()

    def lost(self, why: str) -> None:
        self.sessions.disconnected(self)
        self.why = why
        self.leave(Gone.LOST)


@dataclass(frozen=True)
class Known:
    """A job that a client says it has; its result, if it has ended."""
    key: str
    line: Line
    result: bytes | None
    mark: str                           # of its last run; "": it had none yet, as far as was told

    @classmethod
    def read(cls, item: Message) -> Known:
        """Raises WireError."""
        result = None if item.fields.get("result") is None else item.state("result")
        key, text, state = item.text("id", 16), item.data("text"), item.state("state")
        if not KEY.fullmatch(key) or text[:1] not in (b" ", b"\t") or b"\n" in text or state not in CLAIMABLE:
            raise WireError("no job")
        line = Line(item.whole("number"), item.whole("ordinal"), item.whole("offset"), state, text)
        return cls(key, line, result, item.text("run", 512))

    @property
    def turn(self) -> int:
        """Of jobs with one command those with a low one get their lines first, where others have taken some.

        What has come to its end is not to be run again.  To stop a job that runs loses what it has done so
        far.  One that was interrupted, or given back, is to be run anew anyway.
        """
        if self.result is None:
            return 1
        return 0 if self.result not in ERROR + self.line.state else 2


class Otherwise(enum.Enum):
    """What becomes of a job that a client says it has, and for which it gets no line again."""
    LOST = enum.auto()                  # its line is another's, or gone
    CANCELLED = enum.auto()             # somebody has set a state that is held
    SETTLED = enum.auto()               # its result stands in its line


@dataclass(frozen=True)
class Recovered:
    """What became of a job that a client says it has, and that its server does not know."""
    claim: Known
    job: Job | None = None              # held for it again
    record: bytes = b""                 # in the log file
    goes_on: bool = True                # the files of its run in the output directory are still the run's
    otherwise: Otherwise = Otherwise.LOST       # if there is no job


def line_key(line: Line) -> str:
    """The key of an inherited job until its client names it; on the wire there is none like it."""
    return f"line {line.number}"


@dataclass(frozen=True)
class Past:
    """What is remembered of a job whose line became `e` after its grace."""
    number: int
    ordinal: int
    row: int                            # of its command

    @classmethod
    def of(cls, job: Job) -> Past:
        return cls(job.number, job.ordinal, row(job.command))


# An entry of the journal about a run, as OutDir writes it: event, run, line
ENTRY = re.compile(rb'\{"time": [\d.]+, "event": "(start|end)", "run": "((?:[^"\\]|\\.)*)", "line": (\d+), ')


def find_starts(fd: int, commands: dict[str, bytes]) -> dict[str, int | None]:
    """The lines of runs that the journal says have started; None: it has a later run of that line, too.

    commands: of the runs that are sought, by their marks; a run of another command, or one that has come to
    its end, is none of these.  Raises OSError.
    """
    wanted = {json.dumps(mark)[1:-1].encode(): mark for mark in commands}
    found: dict[str, int | None] = {}
    later: set[int] = set()                     # lines of the starts behind this one
    ended: set[bytes] = set()
    end = os.fstat(fd).st_size
    for entry in reversed(os.pread(fd, JOURNAL, max(end - JOURNAL, 0)).split(b"\n")):
        match = ENTRY.match(entry)
        if not match or not wanted:
            continue
        event, run, line = match[1], match[2], int(match[3])
        if event == b"end" and run in wanted and b'"cause": "lost"' not in entry:
            ended.add(run)
        if event == b"start" and run in wanted:
            mark = wanted.pop(run)
            command = b'"command": %s, ' % json.dumps(os.fsdecode(commands[mark])).encode()
            if run not in ended and entry[match.end():].startswith(command):
                found[mark] = None if line in later else line
        if event == b"start":
            later.add(line)
    return found


def remember(keys: OrderedDict[str, T], key: str, value: T, most: int) -> None:
    """Add a key; of more than so many the oldest is forgotten."""
    keys[key] = value
    if len(keys) > most:
        keys.popitem(last=False)            # of a dict that would take longer and longer


class Records:
    """Feeds the sinks of the server (its files and its console) with what clients tell of their runs."""

    def __init__(self, stores: tuple[LogFile | None, OutDir | None, JobLog | None], console: Writer | None,
                 worker: Worker) -> None:
        self.log, self.outdir, self.joblog = stores
        self.console = console
        self.worker = worker
        self.printed = Console(console, with_output=True, colour=False) if console else None

    def wanted(self) -> dict[str, bool]:
        """What clients shall send: that runs begin and end, and what they print."""
        output = bool(self.log or self.printed or self.outdir)
        return dict(records=output or bool(self.joblog), output=output)

    def behind(self, limit: int) -> bool:
        """Whether more bytes than this wait to be written."""
        return self.worker.backlog > limit or (self.console is not None and self.console.backlog > limit)

    def of(self, job: Job) -> bytes:
        """A job's record in the log file, if that is of its command.  In the worker's thread, perhaps."""
        record = b""
        with contextlib.suppress(OSError):      # then it begins anew
            record = self.log.get(job) if self.log else b""
        heading = b".-> %s (in " % job.command
        whole = heading[:LogFile.WIDTH - 4]     # of a long one fit() cuts up to four bytes more
        return record if record.startswith(whole) else b""

    def find_starts(self, commands: dict[str, bytes]) -> dict[str, int | None]:
        """Lines of runs, as the journal has them (see find_starts()).  In the worker's thread, perhaps."""
        if not self.outdir or not commands:
            return {}
        self.outdir.journal.flush()
        with contextlib.suppress(OSError):      # then it says nothing
            return find_starts(self.outdir.journal.file.fd, commands)
        return {}

    def take(self, kind: str, client: Client, grant: Grant, message: Message) -> int:
        """An event of a run; the bytes of output in it.  Raises WireError."""
        if kind == "begin":
            self._begin(client, grant, message)
        elif kind == "output":
            return self._output(grant.run, message)
        elif kind == "end":
            self._end(grant, message)
        else:
            raise WireError(f"what is {kind!a}?")
        return 0

    def _begin(self, client: Client, grant: Grant, message: Message) -> None:
        """A run has begun, or could not be started (no process); `again`: another server has been told so
        before.

        What goes on where that one has stopped is only a job's that the client has brought back, and its
        first run.
        """
        pid, again = message.process("pid"), message.flag("again")
        # where each stream goes on: that is not known of one that another server was sent
        size = -1 if again else 0
        # Of a run that began under a server which wanted no output the next one is not sent any
        of_output = (self.printed, self.outdir, self.log) if message.flag("output") else ()
        if grant.run:
            raise WireError("its run goes on")
        # what the log file has of it, if it goes on where another server has stopped
        before = grant.record if again else None
        if again and before is None:
            raise WireError("it is new here")
        run = Run(
            grant.job, [Slot(message.text("slot", 255))], to_bytes(printable(client.name)),
            began=message.seconds("time"),
            shell=Shell(pid, to_bytes(message.text("mark", 512))) if pid else None,
            streams=(Stream(b"stdout", -1, size), Stream(b"stderr", -1, size)),
            sinks=[*filter(None, (self.joblog, *of_output))], directory=client.directory)
        grant.begin_run(run)
        for sink in run.sinks:
            if before is not None and (sink is not self.outdir or grant.goes_on):
                sink.resumed(run, before)
            else:
                sink.starting(run)
                if run.shell:
                    sink.started(run)

    @staticmethod
    def _output(run: Run | None, message: Message) -> int:
        """A piece of a stream; of a run that began under another server the first one may stand anywhere."""
        name, at, data = message.text("stream", 16).encode(), message.whole("at"), message.data("data")
        if not run or not run.shell:
            raise WireError("output of no run")
        stream = next((stream for stream in run.streams if stream.name == name), None)
        if not stream or at != stream.received != -1:
            raise WireError("a piece is missing")
        stream.received = at + len(data)
        for sink in run.sinks:
            sink.output(run, stream, data)
        return len(data)

    @staticmethod
    def _end(grant: Grant, message: Message) -> None:
        """A run has ended, or could not be started (no status)."""
        run = grant.run
        if not run:
            raise WireError("the end of no run")
        run.took, run.cause = message.seconds("seconds"), message.text("cause", 16)
        for stream in run.streams:
            stream.received = message.whole(stream.name.decode())
        has_ended = message.fields.get("status") is not None
        ending = Records._ending(run, message) if has_ended else None
        # not before all is understood: else nobody would close what it has open
        grant.end_run()
        for sink in run.sinks:
            if ending:
                sink.ended(run, ending)
            else:
                sink.unstarted(run)

    @staticmethod
    def _ending(run: Run, message: Message) -> Ending:
        """How the shell of a run has ended, and what it has used.  Raises WireError."""
        if not run.shell:
            raise WireError("the exit status of no process")
        ending = Ending(message.whole("status", 0xFFFF), run.cause, message.seconds("limit"))
        run.shell.cpu = message.seconds_or_none("cpu")
        known = message.fields.get("memory") is not None
        run.shell.memory = message.whole("memory") if known else None
        return ending

    @staticmethod
    def abandon(grant: Grant) -> None:
        """Nobody will say how a run ended that goes on."""
        run = grant.end_run()
        if run:
            run.cause = "cancelled" if grant.job.cancelled else "lost"
            run.took = max(time.time() - run.began, 0.0)
            for sink in run.sinks:
                sink.unstarted(run)

    def flush(self) -> None:
        """Write what the journal has gathered."""
        if self.outdir:
            self.outdir.tick()


# ======== Groups ============================================================================================
#
# The jobs of a group (together=) start at one moment, on hosts whose clocks differ and whose distances do:
#
#     1. All its lines are claimed.  Each client gets the first of its jobs to be held: it starts the shell,
#        which waits at a pipe, and says `ready`.  Meanwhile it is asked several times what its clock says;
#        the answer that was back soonest tells best how far that is from ours (half the round trip later than
#        it was asked).
#     2. When all are ready each gets one small frame, `go`, with a time of its own clock a little ahead.
#     3. A client that is lost before that, or gives its job back, ends the attempt: nobody has begun, and all
#        lines become `.` again.  What a lost client holds cannot begin: `go` counts only where it was
#        prepared.
#
# After that a client's further jobs follow in order.  The group ends when all have ended, or too many hosts
# are lost.

Jobs = list[tuple[Line, JobSettings]]


class Clock:
    """How far a client's clock is from ours, by asking."""
    QUESTIONS = 8

    def __init__(self, link: ClientLink, known: Callable[[], None]) -> None:
        """known: called when all questions are answered."""
        self.link = link
        self.loop = link.loop
        self.known = known
        self.trip = float("inf")        # seconds, of the quickest answer
        self.offset = 0.0               # what its clock says when ours says 0
        self.unanswered = self.QUESTIONS
        self._ask()

    def _ask(self) -> None:
        self.asked = self.loop.time()
        self.link.send(type="sync")
        self.link.flush()

    def answer(self, theirs: float) -> None:
        """It has answered."""
        if not self.unanswered:
            return
        now = self.loop.time()
        if now - self.asked < self.trip:
            self.trip = now - self.asked
            self.offset = theirs - (self.asked + now) / 2
        self.unanswered -= 1
        if self.unanswered:
            self._ask()
        else:
            self.known()


def jobs_by_host(file: Reader, jobs: Jobs) -> dict[str, Jobs]:
    """Which host gets which jobs of a group: those below one directive go to its hosts in turn.

    Raises OSError.
    """
    hosts: dict[str, Jobs] = {}
    turns: dict[JobSettings, dict[int, int]] = {}
    last = {settings: line.offset for line, settings in jobs}
    for line, settings in jobs:
        if settings.line and settings not in turns and len(settings.hosts) > 1:
            turns[settings] = count_below(file, settings.line, last[settings])
        turn = turns[settings][line.offset] if settings in turns else 0
        hosts.setdefault(settings.hosts[turn % len(settings.hosts)], []).append((line, settings))
    return hosts


def count_below(file: Reader, directive: Line, last: int) -> dict[int, int]:
    """The job lines below a directive, by their offsets up to the last one: which in order each is.

    Raises OSError.
    """
    below = itertools.takewhile(lambda line: line.offset <= last, Scan(file, directive.offset))
    return {line.offset: turn for turn, line in enumerate(below)}


@dataclass(eq=False)
class Plan:
    """A group that waits for its hosts."""
    met: PendingGroup
    hosts: dict[str, Jobs]                      # by entry of host=
    clients: set[Client] = field(default_factory=set)   # kept free for it, since all its hosts are there

    @property
    def first(self) -> Line:
        return self.met.jobs[0][0]


@dataclass(eq=False)
class GroupClaim:
    """An attempt to claim all lines of a group."""
    plan: Plan
    clients: dict[str, Client]                  # by entry of host=
    grants: dict[str, list[Grant]] = field(default_factory=dict)        # by host, too
    whole: bool = False                         # all lines were claimed


@dataclass(eq=False)
class Member:
    """A host of a group that runs, or is about to, and the client there with its jobs."""
    group: Group
    host: str
    client: Client
    clock: Clock                                # of the client
    queue: deque[Grant]                         # jobs that the client was not told of
    current: Grant | None = None
    held: Grant | None = None                   # the job whose shell is held, or was
    lost: bool = False                          # it has timed out, or vanished

    @property
    def is_ready(self) -> bool:
        """Whether its job can begin: its shell waits, and we know when by its clock; its client is here."""
        holds = self.held is not None and self.held.phase is Phase.SENT
        return holds and not self.clock.unanswered and self.client.link is not None


class Stage(enum.Enum):
    """How far a group has come."""
    PREPARING = enum.auto()                     # shells are held
    RUNNING = enum.auto()                       # all have begun at one moment
    STOPPED = enum.auto()                       # too many hosts were lost: what runs is ended
    CALLED_OFF = enum.auto()                    # nobody has begun, and nobody will


class Group:
    """A group whose lines are claimed."""
    HOSTS = 500
    PREPARING = 10.0                            # seconds that clients may take
    # seconds from `go` to the start, besides round trips; and for each host
    LEAD = 0.01, 0.0005

    def __init__(self, dispatcher: Dispatcher, claim: GroupClaim, links: dict[Client, ClientLink]) -> None:
        """claim: which has all lines.  links: of its clients."""
        self.dispatcher = dispatcher
        self.loop = dispatcher.loop
        self.sessions = dispatcher.server.sessions
        self.stdout = dispatcher.server.stdout
        self.name = claim.plan.met.name
        least = claim.plan.met.jobs[0][1].min_hosts
        clocks = {client: link.ask_clock(self._release_if_ready) for client, link in links.items()}
        self.members: list[Member] = []
        for host, grants in claim.grants.items():
            client = claim.clients[host]
            member = Member(self, host, client, clocks[client], deque(grants))
            self.members.append(member)
            for grant in grants:
                grant.join(member)
        self.least = len(self.members) if least is None else min(least, len(self.members))
        self.stage = Stage.PREPARING
        self.unended = {grant for member in self.members for grant in member.queue}
        self.results: list[tuple[int, bytes]] = []

    def prepare(self) -> None:
        """Send each host its first job, to be held."""
        self.timer = self.loop.call_later(self.PREPARING, self._give_up)
        for member in self.members:
            member.client.enter_group()
        for member in self.members:
            self._send_next(member)

    def note_ready(self, member: Member, grant: Grant) -> None:
        """A client says that a shell waits."""
        member.held = grant
        self._release_if_ready()

    def _release_if_ready(self) -> None:
        if self.stage is Stage.PREPARING and all(member.lost or member.is_ready for member in self.members):
            self._release()

    def _give_up(self) -> None:
        """Somebody takes too long."""
        hosts = ", ".join(member.host for member in self.members if not member.is_ready)
        self.dispatcher.say_once(
            f"group {printable(self.name)}: not ready within {human_time(self.PREPARING)}: "
            f"{printable(hosts)}; trying again"
        )
        self.abort()

    def _release(self) -> None:
        """Let all begin at one moment."""
        self.stage = Stage.RUNNING
        self.timer.cancel()
        held = [(member, member.held) for member in self.members if member.held and not member.lost]
        trips = [member.clock.trip for member, _ in held]
        at = self.loop.time() + max(trips, default=0.0) + self.LEAD[0] + self.LEAD[1] * len(held)
        for member, grant in held:
            grant.hand()
            grant.begin()
            member.client.tell(type="go", id=grant.key, at=at + member.clock.offset)
            member.client.flush()

    def abort(self) -> None:
        """Nobody has begun: give all lines back.  Too late for that, it goes on."""
        if self.stage is not Stage.PREPARING:
            return
        self.stage = Stage.CALLED_OFF
        self.timer.cancel()
        for member in self.members:
            member.client.leave_group()
            if member.current:
                member.client.tell(type="stop", id=member.current.key, cancelled=False)
        for grant in self.unended:
            grant.leave_group()
            self.sessions.settle(grant, Outcome(End.RETURNED, None))
        self.dispatcher.look_again(pause=1.0)

    def welcome_back(self, member: Member) -> None:
        """A client that was away for a while is here again."""
        if self.stage is Stage.STOPPED and member.current:
            member.client.tell(type="stop", id=member.current.key, cancelled=False)
        elif not member.current:
            self._send_next(member)

    def take_back(self, member: Member, grant: Grant) -> bool:
        """A client that came back does not know of a job; whether that was lost on its way, and is to be sent
        again.
        """
        if self.stage is not Stage.RUNNING or grant.phase is not Phase.SENT:
            return False
        grant.requeue()
        member.queue.appendleft(grant)
        member.current = None
        return True

    def _send_next(self, member: Member) -> None:
        """Send a client its next job, if it is here."""
        while member.queue and not member.queue[0].is_open:     # cancelled; end() will hear of it
            member.queue.popleft()
        if not member.queue or not member.client.link:
            return
        grant = member.queue.popleft()
        member.current = grant
        if not self.dispatcher.is_startable(grant):
            self.sessions.settle(grant, Outcome(End.UNSTARTED, ERROR))
            return
        if self.stage is Stage.PREPARING:                   # later ones come without having been asked for
            member.client.supply(1)
        self.dispatcher.send_jobs(member.client, [grant])

    def end(self, member: Member, grant: Grant, outcome: Outcome) -> None:
        """A job has ended."""
        preparing = self.stage is Stage.PREPARING
        if preparing and outcome.state != ERROR:
            return self.abort()
        self.unended.discard(grant)
        self._note_result(member, grant, outcome)
        if member.current is grant:
            member.current = None
        elif grant in member.queue:              # its client has gone
            member.queue.remove(grant)
        if preparing or outcome.end.loses_host:
            member.lost = True
        if self.stage is not Stage.STOPPED and sum(not member.lost for member in self.members) < self.least:
            self._stop()
        elif preparing:
            self._drop_queue(member)
            self._release_if_ready()
        elif not member.current:
            self._send_next(member)
        if not self.unended:
            self._finish()

    def _stop(self) -> None:
        """Too many hosts are lost: end what runs, and begin no more."""
        self.stage = Stage.STOPPED
        self.timer.cancel()
        for member in self.members:
            if member.current and member.current.is_open:
                member.client.tell(type="stop", id=member.current.key, cancelled=False)
        for member in self.members:
            self._drop_queue(member)

    def _drop_queue(self, member: Member) -> None:
        """Jobs that the client was not told of are not begun any more."""
        queue, member.queue = member.queue, deque()
        for grant in queue:
            self.sessions.settle(grant, Outcome(End.STOPPED, ERROR))

    def _note_result(self, member: Member, grant: Grant, outcome: Outcome) -> None:
        took = "" if grant.handed is None else human_time(boottime() - grant.handed)
        # as the console has them: a program gets the bytes of a command, a terminal no control characters
        command = one_line(grant.job.command) if self.stdout.terminal else grant.job.command
        host, how = os.fsencode(printable(member.host)), os.fsencode(outcome.shown)
        text = b"  %-20s %-20s %8s  %s\n" % (host, how, took.encode(), command)
        self.results.append((grant.job.number, text))

    def _finish(self) -> None:
        """All its jobs have ended: print how."""
        lost = sum(member.lost for member in self.members)
        verdict = "failed" if self.stage is Stage.STOPPED else "succeeded"
        text = (f"{printable(self.name)}: {verdict}: {lost} of {plural(len(self.members), 'host')} lost "
                f"(min-hosts {self.least})\n")
        self.stdout.write(os.fsencode(text) + b"".join(line for _, line in sorted(self.results)))
        for member in self.members:
            member.client.leave_group()
        self.dispatcher.look_again()


def preview(file: JobFile) -> Iterator[str]:
    """What would start where: LINE STATE COMMAND below headings that begin with #.

    Raises OSError, ValueError.
    """
    group: Jobs = []
    scope = TOP
    heading = ""                    # of the settings, until there is a job below them
    for line in file.lines(NEW, directives=True):
        if line.state != DIRECTIVE:
            if scope.settings.together:
                group.append((line, scope.settings))
                continue
            if heading:
                yield heading
                heading = ""
            yield bytes(line).decode(errors="surrogateescape")
            continue
        above, scope = scope, scope.below(line)
        if scope.fault:
            raise ValueError(scope.fault)
        if scope.has_same_group(above) and scope.settings.together:
            continue
        yield from preview_group(file.reader, group)
        group = []
        if scope.barrier is line:
            yield f"# barrier{' check' if scope.check else ''} (line {line.number})"
        elif scope.end is line:
            yield f"# end (line {line.number})"
        else:
            heading = f"# {', '.join(scope.settings.hosts) or 'any host'}{manner(scope.settings)}"
    yield from preview_group(file.reader, group)


def preview_group(file: Reader, jobs: Jobs) -> Iterator[str]:
    """The part of a preview for a group.  Raises OSError."""
    if not jobs:
        return
    hosts, first = jobs_by_host(file, jobs), jobs[0][1]
    least = "all" if first.min_hosts is None else first.min_hosts
    if len(jobs) > PendingGroup.LONGEST or len(hosts) > Group.HOSTS:
        most = f"{PendingGroup.LONGEST:,} jobs or {Group.HOSTS} hosts"
        yield f"# {first.together}: never, for it has more than {most}"
        return
    yield f"# {first.together}: together, once all of {', '.join(hosts)} are there (min-hosts {least})"
    for host, lines in hosts.items():
        yield f"# {host}"
        yield from (
            bytes(line).decode(errors="surrogateescape") + manner(settings) for line, settings in lines
        )


def manner(settings: JobSettings) -> str:
    """', timeout 30s, shell bash', what there is of it."""
    timeout = f", timeout {human_time(settings.timeout)}" if isinstance(settings.timeout, float) else ""
    return timeout + (f", shell {settings.shell}" if settings.shell != SHELL else "")


# ======== Counting ==========================================================================================


@dataclass(frozen=True)
class Count:
    """What the file holds."""
    fault: str = ""
    account: Account | None = None      # None: it cannot be read
    # the clients that leave for whom nothing new is left
    for_none: Takers = field(default_factory=lambda: Takers(()))
    waiting: list[tuple[int, bytes]] = field(default_factory=list)      # line, command
    stopped: str = ""                   # why these will not be started

    def account_of_all(self) -> Account | None:
        """What counts for the server: any new job is left."""
        return self.account and replace(self.account, left=self.account.now.new > 0)

    def account_for(self, client: Client) -> dict[str, Any] | None:
        """What a client is told that leaves."""
        if not self.account:
            return None
        left = self.account.now.new > 0 and client not in self.for_none.all
        return dict(asdict(self.account), left=left)


class Accountant:
    """Tells how things stand.

    Counting a long file takes a while: one count answers all that ask meanwhile.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        # that want an account (they leave), or a status
        self.asking: dict[tuple[ClientLink, bool], None] = {}
        self.counted = 0.0                      # when the file was counted last, by boottime()
        self.rest = 0.0                         # seconds that it is not to be counted again

    @property
    def pause(self) -> float:
        """Seconds until the file may be counted again: that shall take no more than a fifth of the time."""
        return max(self.counted + self.rest - boottime(), 0.0)

    def ask(self, link: ClientLink, leaves: bool) -> None:
        """Somebody wants an account, or a status; a count that has begun already would not do."""
        if not self.asking:
            watched(self._answer_all())
        self.asking[link, leaves] = None

    async def _answer_all(self) -> None:
        await asyncio.sleep(self.pause)
        asking, self.asking = self.asking, {}
        leaving = Takers(link.client for link, leaves in asking if leaves and link.client)
        count = await self.count(leaving, surely=bool(leaving.all))
        for link, leaves in asking:
            if link.transport.is_closing():
                continue
            if not leaves:
                self._report(link, count)
            elif link.client:
                link.send(type="account", account=count.account_for(link.client))

    async def count(self, clients: Takers | None = None, surely: bool = False) -> Count:
        """Count the file.  clients: that leave.

        surely: not of a file that an editor is about to fill, or that is away for a moment.
        """
        server, looks = self.server, 0
        while True:
            count = await server.worker.call(self._look, Takers(clients.all if clients else ()))
            self.counted = boottime()
            looks += 1
            unsure = not count.account or count.account.half_saved
            if not surely or not unsure or looks >= server.file.LOOKS or server.over.done():
                return count
            await asyncio.sleep(server.file.interval)

    def _look(self, clients: Takers) -> Count:
        """What the file holds.  In the worker's thread, perhaps."""
        file, pace = self.server.file, Pace()
        try:
            with pace:
                account = file.account(clients, groups=True)
                waiting = [
                    (line.number, line.command[:COMMAND]) for line in itertools.islice(file.lines(NEW), SHOWN)
                ]
                stall = why_stalled(file) if waiting and not account.now.running else None
        except OSError as error:
            return Count(reason(error))
        finally:
            self.rest = pace.rest(4)
        return Count("", account, clients, waiting, stall.text if stall and stall.stops else "")

    def _report(self, link: ClientLink, count: Count) -> None:
        """Send a status, in messages of bounded length."""
        server, clock = self.server, time.time()
        now = count.account.now if count.account else None
        link.send(
            type="summary",
            file=to_text(os.fsencode(server.path)),
            host=os.uname().nodename,
            port=server.port,
            pid=os.getpid(),
            since=round(max(clock - server.began, 0.0), 1),
            grace=server.options.grace,
            fault=count.fault,
            counts=dict(asdict(now), total=now.all + now.held) if now else {},
            waiting=[dict(line=number, command=to_text(command)) for number, command in count.waiting],
        )
        for client in server.sessions.clients.values():
            if not client.id and not client.grants:
                # all lines of the server before us have their clients again
                continue
            seen = boottime() - (client.link.heard if client.link else client.lost_at)
            link.send(
                type="client",
                name=client.name,
                address=client.address,
                pid=client.pid,
                slots=client.slots,
                seen=round(max(seen, 0.0), 1),
                lost=client.link is None,
            )
            for grant in client.grants.values():
                since = None if grant.began is None else round(max(clock - grant.began, 0.0), 1)
                link.send(type="job", line=grant.job.number, pid=grant.pid, since=since,
                          command=to_text(grant.job.command[:COMMAND]))
        link.send(type="end")


# ======== Sessions ==========================================================================================


class Sessions:
    """The clients, here or about to come back; the lines that they have, and what they say.

    A line that a client has is in `jobs`, and in its `grants`, by its key, from note() to forget().  So long
    it is locked.
    """

    def __init__(self, server: Server, trouble: Say, crowd: int) -> None:
        """server: that hands out the jobs; what it has at its start is used here, too.  trouble: told what is
        lost.

        crowd: so many connections at the most may be those of strangers.
        """
        self.server = server
        self.loop = server.loop
        self.options = server.options
        self.say = server.say
        self.trouble = trouble
        self.crowd = crowd
        self.file = server.file
        self.cursor: Cursor = server.dispatcher.cursor
        self.worker = server.worker
        self.records = server.records
        self.tally = server.tally
        self.clients: dict[str, Client] = {}
        self.jobs: dict[str, Grant] = {}
        self.recovery = Recovery(server, self)
        self.links: dict[ClientLink, None] = {}     # oldest first

    # -- lines that clients have -----------------------------------------------------------------------------

    def note(self, grant: Grant) -> None:
        """A client has a line."""
        grant.job.taker = grant.client
        grant.client.note(grant)
        self.jobs[grant.key] = grant

    def forget(self, grant: Grant) -> bool:
        """Nobody has this line any more; whether somebody had it."""
        if grant.phase is Phase.OVER:
            return False
        grant.forget()
        if self.jobs.get(grant.key) is grant:   # else its client is back, and has an equal line for that job
            del self.jobs[grant.key]
        grant.client.forget(grant)
        self.records.abandon(grant)
        return True

    def _conclude(self, grant: Grant, outcome: Outcome) -> None:
        """That has become of a line, which nobody has any more."""
        if self.forget(grant) and grant.member:
            grant.member.group.end(grant.member, grant, outcome)

    def settle(self, grant: Grant, said: Outcome) -> None:
        """Somebody says what becomes of a line: its state is written, however long that takes.

        The first attempt is made at once: whatever is answered or asked of the worker after this finds the
        line as it was said.
        """
        outcome = grant.end(said)
        if not outcome:
            return
        grant.client.inbox.open(outcome.event)
        job, state = grant.job, outcome.state
        write = (
            functools.partial(self.cursor.release, job)
            if state is None
            else functools.partial(self.cursor.finish, job, state)
        )
        written = persist(lambda: self.worker.begin(write), self.file.interval, self.say, job)
        watched(self._see_written(grant, outcome, written))

    async def _see_written(self, grant: Grant, outcome: Outcome, written: Awaitable[str]) -> None:
        """A line's state is being written: deal with what follows from that, or from a fault that is for
        good.
        """
        fault = await written
        client, number = grant.client, grant.job.number
        if outcome.state is not None:
            self.tally.count(grant.job, outcome.state)
        if fault:
            self.say(f"line {number}: {fault}")
            self.tally.unwritten.append(number)
            client.tell(type="fault", id=grant.key, text=fault[:200])
        elif outcome.event:
            self.recovery.note_settled(grant)
        self._conclude(grant, outcome)
        self.server.note_failures(self.tally.worse)
        self._deal_with(client, outcome.event)

    async def look_after(self) -> None:
        """Follow lines that edits have moved; tell clients of lines that others have taken."""
        while True:
            await asyncio.sleep(self.file.interval / 2)
            for job, cause in (await self.worker.call(self.file.look_after)).items():
                grant = next((grant for grant in self.jobs.values() if grant.job is job), None)
                if not grant:
                    continue            # it was settled meanwhile
                if cause == "cancelled":
                    self.cancel(grant)
                    continue
                self.say(f"line {job.number}: was lost to another runner")
                self.tally.count(job, ERROR)
                grant.client.tell(type="lost", id=grant.key)
                self._conclude(grant, Outcome(End.TAKEN, ERROR))

    def cancel(self, grant: Grant) -> None:
        """Somebody has set the state of a line: its client is told; if it is away, once it comes back.

        A line of a group that its client was not told of is over at once.
        """
        if grant.phase is Phase.CLAIMED:
            self.settle(grant, Outcome(End.CANCELLED, HELD))
        else:
            grant.client.tell(type="stop", id=grant.key, cancelled=True)

    # -- clients that go and come back -----------------------------------------------------------------------

    @staticmethod
    def abort_groups(jobs: dict[str, Grant]) -> list[Grant]:
        """No group with some of these jobs begins.  Returns the jobs of groups that have begun."""
        for group in {grant.member.group for grant in jobs.values() if grant.member}:
            group.abort()
        return [grant for grant in jobs.values() if grant.member]

    def kept(self, jobs: dict[str, Grant]) -> str:
        """'; lines 3, 5 kept for 60s', if there are any."""
        lines = [grant.job.number for grant in jobs.values() if grant.is_open]
        return f"; {name_lines(lines)} kept for {human_time(self.options.grace)}" if lines else ""

    def greet(self, link: ClientLink, hello: Hello) -> Client:
        """A client says who it is, and what it has; this client.  Raises WireError."""
        if len({claim.key for claim in link.claims}) < len(link.claims):
            raise WireError("one job twice")
        client = self.clients.get(hello.client)
        if client:
            client.come(link, hello)
            return client
        client = Client(self, hello.client)
        client.come(link, hello)
        self.say(f"client {client.where} came")
        self.add(client)
        return client

    def add(self, client: Client) -> asyncio.Future[None]:
        """There is a client more; its life."""
        self.clients[client.id] = client
        return watched(client.live())

    def remove(self, client: Client) -> None:
        """A client has left, or its grace is over: if it comes again, it is another one."""
        del self.clients[client.id]

    def part(self, client: Client, link: ClientLink) -> None:
        """A client leaves."""
        self.say(f"client {client.where} left")
        self.remove(client)
        link.leave(Gone.LEFT)

    # -- events ----------------------------------------------------------------------------------------------

    def take_event(self, client: Client, kind: str, message: Message) -> None:
        """Something that has happened at a client, told once or more often.  Raises WireError."""
        number = message.whole("n")
        # whatever it is: to be sent it again would mend nothing
        if not client.inbox.take(number):
            return
        try:
            self._note_event(client, kind, message, number)
        except WireError as error:
            self.trouble(f"client {client.where}: '{printable(kind)}' makes no sense, and is lost: {error}")
            raise

    def _note_event(self, client: Client, kind: str, message: Message, number: int) -> None:
        """What an event says.  Raises WireError."""
        grant = client.grants.get(message.text("id", 16))
        if grant is None or not grant.is_open:
            # the line has just been lost, which it is told, or was told
            return
        held = grant.member is not None and grant.member.group.stage is Stage.PREPARING
        if grant.phase is Phase.CLAIMED:
            raise WireError("it was not given that job")
        if kind == "finish":
            self.settle(grant, self._result(grant, message, number))
        elif kind == "release":
            self.settle(grant, Outcome(End.RETURNED, None, event=number))
        else:
            if kind == "begin" and held:
                raise WireError("it was to hold that job")
            if kind == "begin":
                grant.begin(message.process("pid"))
            self._note_run(client, kind, grant, message, number)

    @staticmethod
    def _result(grant: Grant, message: Message, event: int) -> Outcome:
        """How a job has ended.  Raises WireError."""
        state, end = message.state("state"), CAUSES.get(message.text("cause", 16))
        if state == HELD and grant.job.cancelled:
            end = End.CANCELLED
        elif state not in (DONE, FAILED, ERROR):
            end = None
        if not end:
            raise WireError("no end of a job")
        return Outcome(end, state, printable(message.text("how", 64)), event)

    def _note_run(self, client: Client, kind: str, grant: Grant, message: Message, number: int) -> None:
        """An event that goes to files or console.  Raises WireError."""
        size = self.records.take(kind, client, grant, message)
        if self.worker.pool:
            client.inbox.post(number)
        client.inbox.count(number, size)

    def file_away(self, client: Client) -> None:
        """Acknowledge what was posted to the worker's thread once that has come so far."""
        number = client.inbox.take_posted()
        self.worker.ask(lambda _: self._deal_with(client, number), int)

    def _deal_with(self, client: Client, event: int) -> None:
        """All that an event asks for is done."""
        client.inbox.close(event)
        client.acknowledge_soon()
        self.server.leave_if_over()

    # -- output that comes faster than it goes ---------------------------------------------------------------

    def window(self) -> int:
        return max(runmaker4.PIECE, min(WINDOW, WINDOWS // (len(self.clients) or 1)))

    def tick(self) -> None:
        """A second or so has passed: bring the records up to date."""
        self.records.flush()
        if self.records.log:
            self.records.log.tick()

    def connected(self, link: ClientLink) -> None:
        """There is a connection more; who it is will be said."""
        self.links[link] = None
        self.limit_unauthenticated()

    def disconnected(self, link: ClientLink) -> None:
        """A connection is gone."""
        del self.links[link]

    def drop_silent(self, slept: bool) -> None:
        """Drop connections from which nothing has come for too long.

        slept: we have slept ourselves, and what they sent meanwhile comes now.
        """
        now = boottime()
        for link in list(self.links):
            if slept:
                link.heard = max(link.heard, now - runmaker4.SILENCE / 2)
            elif not link.channel.authenticated and now - link.heard > runmaker4.HANDSHAKE:
                link.drop("it does not say who it is")
            elif now - link.heard > runmaker4.SILENCE:
                link.drop(f"nothing was heard for {human_time(runmaker4.SILENCE)}")
        self.limit_unauthenticated()

    def limit_unauthenticated(self) -> None:
        """Drop the oldest of too many that do not say who they are; a crowd may come in one second, though.
        """
        unknown = [link for link in self.links if not link.channel.authenticated and not link.why]
        for count, oldest in zip(range(len(unknown), min(UNAUTHENTICATED, self.crowd), -1), unknown):
            if count <= self.crowd and boottime() - oldest.heard < 1.0:
                return
            oldest.drop("too many that do not say who they are")

# ======== Recovery ==========================================================================================
#
# A client may have jobs that this server has not given it: those of a server before, and those whose lines
# became `e` when its grace was over.  It gets their lines again as far as they can be had:
#
#     1. A server that takes over has the seats of the one before on the description of the companion that
#        the keeper hands it: inherit().  Seats say which lines run; whose they are nobody knows.  So these
#        lines have a client that never comes, `absent`, whose grace begins with the server.
#     2. Each client that comes names its jobs.  For those that it does not have here reclaim() looks for
#        lines: first among the lines of `absent`, then among seats whose lines were moved by an edit, at last
#        among lines that nobody holds: `r`, or `e` if the server may have made them so.  One client after the
#        other, for two may name one line.
#     3. A job that has ended needs no line if its result stands there already: the server before had no time
#        to say so.  Of jobs that this server has settled or has given up it remembers the keys.
#     4. When the grace of `absent` is over, its lines become `e`, and seats that are left are given up.


class Recovery:
    """Finds the lines of jobs that clients have, and that this server has not given them."""

    def __init__(self, server: Server, sessions: Sessions) -> None:
        """server: what it has at its start is used here, too."""
        self.server = server
        self.sessions = sessions
        self.say = server.say
        self.file = server.file
        self.cursor = server.dispatcher.cursor
        self.worker = server.worker
        self.records = server.records
        self.tally = server.tally
        self.absent = Client(sessions, "")      # has lines of the server before us until their clients come
        self.abandoned = False                  # a signal came before they could be taken over
        self._expired: OrderedDict[str, Past] = OrderedDict()       # what became `e` after its grace, by key
        # the keys of jobs that are over, which a client may not know
        self._settled: OrderedDict[str, None] = OrderedDict()
        self._one_by_one = asyncio.Lock()       # while lines are sought that a client says it has

    # -- what is remembered ----------------------------------------------------------------------------------

    def note_settled(self, grant: Grant) -> None:
        """The result of a job is written, and its client may never hear of it."""
        remember(self._settled, grant.key, None, SETTLED)

    def note_expired(self, grant: Grant) -> None:
        """The grace of a job's client is over."""
        remember(self._expired, grant.key, Past.of(grant.job), EXPIRED)

    # -- the server before -----------------------------------------------------------------------------------

    async def inherit(self, locks: int) -> None:
        """Take over the lines that are locked on this descriptor of the server before us, for the grace.

        Where that cannot be, nobody has them any more.
        """
        jobs = await self._adopt(locks)
        if jobs is None:
            return
        for job in jobs:
            self.sessions.note(Grant(line_key(job), self.absent, job, Phase.SENT))
        if jobs:
            grace = human_time(self.server.options.grace)
            self.say(f"took over {plural(len(jobs), 'running job')} of the server before; waiting {grace} "
                     "for the clients")
        if jobs or self.file.companion.unclaimed:
            watched(self._await_clients())

    async def _adopt(self, locks: int) -> list[Job] | None:
        """The lines that are locked on this descriptor, now held here; None: they cannot be."""
        said, end = False, self.server.loop.time() + Cursor.TROUBLE
        while not self.server.over.done():
            try:
                return await self.worker.call(self.file.adopt, locks)
            except OSError as error:
                if error.errno == errno.ESTALE or self.server.loop.time() > end:
                    with contextlib.suppress(OSError):          # EIO: the lease was lost, and they with it
                        unlock(locks, 0, JobFile.GUARD)         # also for the keeper, which has a copy
                    os.close(locks)
                    self.say(f"{reason(error)}; the lines of the server before cannot be taken over")
                    return None
                if not said:
                    self.say(f"{reason(error)}; trying again")
            said = True
            await asyncio.sleep(0.1)
        self.abandoned = True
        return None

    async def _await_clients(self) -> None:
        """Once the grace is over nobody comes any more, neither for lines nor for seats without lines."""
        await self.sessions.add(self.absent)
        self.worker.post(self.file.companion.drop_unclaimed)

    # -- jobs that a client names ----------------------------------------------------------------------------

    async def reclaim(self, client: Client, claims: Sequence[Known]) -> dict[Otherwise, list[str]]:
        """Give a client the lines again of these jobs, as far as it does not have them here.  The keys of all
        others, by what becomes of them.

        When this has its answer the client may be away again.
        """
        async with self._one_by_one:
            return await self._reclaim_next(client, claims)

    async def _reclaim_next(self, client: Client, claims: Sequence[Known]) -> dict[Otherwise, list[str]]:
        # What another client has is no client's to claim, until it is the other's no more: then it may be
        # this one's, of before its grace was over
        others = {claim.key for claim in claims if self._is_anothers(claim.key, client)}
        sought = [claim for claim in claims if claim.key not in client.grants and claim.key not in others
                  and claim.key not in self._settled]
        inherited = {grant.job: grant for grant in self.absent.grants.values()}
        had = [claim.key for claim in claims if claim.key in client.grants]
        try:
            answers = await self.worker.call(self._find, sought, list(inherited))
        except OSError as error:
            self.say(f"{reason(error)}; {plural(len(sought), 'job')} of a client cannot be taken back")
            answers = [Recovered(claim) for claim in sought]
        keys: dict[Otherwise, list[str]] = {otherwise: [] for otherwise in Otherwise}
        keys[Otherwise.LOST] += others
        keys[Otherwise.SETTLED] += [claim.key for claim in claims if claim.key in self._settled]
        for found in answers:
            before = inherited.get(found.job) if found.job else None
            if found.job and (not before or before.is_open):
                self._give(client, found, found.job, before)
            else:                           # if there was a job, it is another's by now
                keys[found.otherwise].append(found.claim.key)
        # while others were sought; those whose end was written meanwhile are among the settled above
        keys[Otherwise.LOST] += [key for key in had if key not in client.grants and key not in self._settled]
        return keys

    def _is_anothers(self, key: str, client: Client) -> bool:
        grant = self.sessions.jobs.get(key)
        return grant is not None and grant.client is not client and grant.is_open

    def _give(self, client: Client, found: Recovered, job: Job, before: Grant | None) -> None:
        """A line is a client's again.  before: that of `absent`, if it was inherited."""
        claim = found.claim
        if before:
            self.sessions.forget(before)
        else:
            self._note_return(claim, job)
        self.sessions.note(Grant(claim.key, client, job, Phase.BEGUN, began=time.time(), record=found.record,
                                 goes_on=found.goes_on))

    def _find(self, claims: Sequence[Known], inherited: Sequence[Job]) -> list[Recovered]:
        """Find the lines that a client thinks it has, though we do not; in the worker's thread, perhaps.

        A line that is free, or inherited, can be its again.  Of two clients that claim one line the first has
        it.  A job whose result stands in its line already (the server before had no time to say so) is no
        claim to another line of the same text.  Of equal lines each will do for any of their jobs: what has
        ended comes first.  Raises OSError.
        """
        file, orphans = self.file, self.cursor.orphaned
        if claims:
            file.follow_path()
        settled = file.settled({claim.line: claim.result for claim in claims if claim.result is not None},
                               bool(inherited))
        claimed = [claim for claim in claims if claim.line not in settled]
        claimed.sort(key=lambda claim: claim.turn)
        jobs: dict[Line, Job] = {}
        for _, alike in itertools.groupby(claimed, key=lambda claim: claim.turn):
            left_over = set(inherited).difference(jobs.values())
            jobs.update(
                file.assign([claim.line for claim in alike], [job for job in inherited if job in left_over])
            )
        left = [claim.line for claim in claimed if claim.line not in jobs]
        lines = file.by_command({line.command for line in left})               # one search for them all
        try:
            for claim in claimed:
                line = claim.line
                expired = self._expired_keys(claim) or line.command in orphans
                if line not in jobs and (
                    job := file.take_back(line, lines[line.command], ERROR if expired else b"")
                ):
                    jobs[line] = job
        except OSError:
            # its client is told that all are lost
            for job in set(jobs.values()).difference(inherited):
                file.give_up(job)
            raise
        recovered = {claim: jobs[claim.line] for claim in claimed if claim.line in jobs}
        moved_away = self._number(recovered)
        found: list[Recovered] = []
        for claim in claims:
            if claim in recovered:
                job = recovered[claim]
                found.append(Recovered(claim, job, self.records.of(job), claim not in moved_away))
            else:
                found.append(Recovered(claim, otherwise=self._otherwise(claim, settled)))
        return found

    def _otherwise(self, claim: Known, settled: set[Line]) -> Otherwise:
        """What becomes of a job that gets no line again.  settled: lines with their jobs' results.

        Raises OSError.
        """
        if claim.line in settled:
            return Otherwise.SETTLED
        if claim.result is None and self._is_on_hold(claim.line):
            return Otherwise.CANCELLED
        return Otherwise.LOST

    def _number(self, jobs: dict[Known, Job]) -> set[Known]:
        """Give jobs that are taken back the numbers that they had; return those whose files are another run's
        now.

        A client may lie about these: so they are what we remember, or what the journal says of that run, and
        else those of the line that the job has now.  In the worker's thread, perhaps.
        """
        commands = {claim.mark: job.command for claim, job in jobs.items() if claim.mark}
        started = self.records.find_starts(commands)
        ordinals = self._ordinals() if jobs and self.records.log else {}
        taken = {job.number for job in set(self.file.held).difference(jobs.values())}
        moved_away: set[Known] = set()
        for claim, job in jobs.items():
            past = self._expired.get(claim.key)
            number: int | None = job.number
            job.state = claim.line.state
            job.ordinal = ordinals.get(job.offset, 0)
            if past and past.row == row(job.command):
                number, job.ordinal = past.number, past.ordinal
            number = started.pop(claim.mark, number)    # of two who name one run the second has not run it
            if number is None:
                moved_away.add(claim)
            elif number not in taken:
                job.number = number
            taken.add(job.number)
        return moved_away

    def _ordinals(self) -> dict[int, int]:
        """The ordinals of the lines that run, by their offsets; none if they cannot be counted."""
        file = self.file
        with contextlib.suppress(OSError):
            return {
                line.offset: line.ordinal
                for line in Scan(file.reader, file.start, RUNNING, seen=Counter())
            }
        return {}

    def _is_on_hold(self, line: Line) -> bool:
        """Whether a line stands where it stood, held now.  Raises OSError."""
        state = self.file.state_at(line)
        return state is not None and state not in NEW + RUNNING + DONE + FAILED + ERROR

    def _expired_keys(self, claim: Known) -> list[str]:
        """The keys under which it is remembered that this job's line became `e` after its grace."""
        pasts = ((key, self._expired.get(key)) for key in (claim.key, line_key(claim.line)))
        return [key for key, past in pasts if past and past.row == row(claim.line.command)]

    def _note_return(self, claim: Known, job: Job) -> None:
        """A line that nobody had is a client's again."""
        expired = self._expired_keys(claim)
        self.say(f"line {job.number}: was taken back" + (" from e" if expired else ""))
        for key in expired:
            del self._expired[key]
        if expired and job.number in self.tally.bad_lines:
            self.tally.bad_lines.remove(job.number)
            self.tally.error -= 1


# ======== Handing out =======================================================================================


class Dispatcher:
    """Looks for lines, and hands them out to the clients that wait for jobs; has groups start.

    The cursor is the worker's while a look is under way (`claiming`): so there is one look at a time.
    """

    def __init__(self, server: Server) -> None:
        """server: what it has at its start is used here, too."""
        self.server = server
        self.loop = server.loop
        self.say = server.say
        self.file = server.file
        self.worker = server.worker
        self.records = server.records
        self.tally = server.tally
        self.stalls = StallReporter(self.say, boottime)
        self.cursor = Cursor(self.file, ordinals=bool(server.stores[0]), serving=True,
                             is_absent=lambda settings: not self._is_here(settings))
        # That nobody guesses, for a client may name its jobs' when it comes; nor do two servers give one key
        self.keys = iter(lambda: secrets.token_hex(8), "")
        self.waiting: dict[Client, None] = {}   # that want jobs; the one that was served last is last
        self.round = Round()                    # the last whole walk through the file that found nothing
        self.looking = True                     # it is too early to say that there is nothing
        # when clients that would leave were last looked for (by the worker)
        self.urgent_at = 0.0
        self.groups: dict[int, Plan] = {}       # that wait for their hosts, by where their first job stands
        self.said: set[str] = set()             # what is not to be said again
        self.pause_until = 0.0                  # no group is started before, by boottime()
        self.wanted = False                     # somebody has just asked for jobs
        self.claiming = False                   # a look at the file is under way

    def _is_here(self, settings: JobSettings) -> bool:
        """Whether a client is here that may take jobs with these settings."""
        clients = list(self.server.sessions.clients.values())
        return any(client.link and client.fits(settings, False) for client in clients)

    async def poll(self) -> None:
        """While clients wait, look for new lines; a look without news costs a stat."""
        while True:
            await asyncio.sleep(max(POLL, self.file.interval / 5 if self.file.network else 0))
            if self.waiting:
                self.hand_out()

    def note_asking(self, client: Client) -> None:
        """A client has asked for jobs, which it gets after all that has come together is dealt with."""
        if client.want:
            self.waiting.setdefault(client, None)
        self.wanted = True

    def forget(self, client: Client) -> None:
        """A client is not here any more."""
        self.waiting.pop(client, None)

    def hand_out(self) -> None:
        """Claim lines for the clients that wait; in turns, so that none gets all."""
        self.wanted = False
        if self.server.stopping:
            return self.answer_waiting()
        if self.claiming or not self.waiting or self.records.behind(Writer.HIGH):
            return
        reserved = self._reserved()
        turns: dict[Client, int] = {}
        for client in self.waiting:
            want = min(client.want, client.room)
            if want > 0 and client.link and not client.memberships and client not in reserved:
                turns[client] = want
        self.look(turns)

    def _reserved(self) -> set[Client]:
        """Clients that are kept free for groups."""
        return set().union(*(plan.clients for plan in self.groups.values()))

    def look(self, turns: dict[Client, int]) -> None:
        """Look for lines, so many for each client."""
        self.claiming = True
        leaving = any(client.leaving and (self.round.ended or not client.follow) for client in turns)
        self.worker.ask(self._claimed, self._claim, turns, leaving)

    def _claim(self, turns: dict[Client, int], leaving: bool) -> Batch:
        """Claim some lines.  In the worker's thread, perhaps: the cursor is its own, all else comes and goes
        with it.

        leaving: somebody will leave if there is nothing.
        """
        batch, clients, cursor = Batch(), Takers(turns), self.cursor
        for client, want in turns.items():
            client.offer(want)
        known: dict[Taker | None, Client] = {client: client for client in turns}
        urgent = leaving and self._may_hurry()
        met: dict[int, PendingGroup] = {}
        while (clients.all or not turns) and len(batch.got) < BATCH:
            found = cursor.claim(urgent, clients)
            for group in cursor.round.groups:
                if group.jobs and group.whole and not group.started:
                    met[group.jobs[0][0].offset] = group
            if isinstance(found, Miss):
                batch.miss = found
                break
            client = known[found.taker]
            batch.got.append(Grant(next(self.keys), client, found))
            client.offer(client.free - found.settings.slots)
            del clients.all[client]
            if client.free > 0:
                clients.all[client] = None      # others have their turn first
        batch.plans = self._plan(met.values()) if met else []
        return batch

    def _may_hurry(self) -> bool:
        """Whether one may make sure again that there is nothing: not so often that whole rounds fill the
        time.
        """
        now = boottime()
        if now - self.urgent_at < self.cursor.pace.rest(20):
            return False
        self.urgent_at = now
        return True

    def _claimed(self, batch: Batch) -> None:
        """Send what was claimed; tell clients that would leave that there is nothing."""
        self.claiming = False
        batches: dict[Client, list[Grant]] = {}
        for grant in batch.got:
            self.server.sessions.note(grant)
            client = grant.client
            if not self.is_startable(grant):
                self.server.sessions.settle(grant, Outcome(End.UNSTARTED, ERROR))
            elif client.link and not self.server.stopping:
                batches.setdefault(client, []).append(grant)
            else:
                self.server.sessions.settle(grant, Outcome(End.RETURNED, None))
        for client, some in batches.items():
            client.supply(sum(grant.job.settings.slots for grant in some))
            self.send_jobs(client, some)
        if batch.miss is not None:
            self._note_miss(batch.miss)
        self._arrange(batch)
        self.answer_waiting()
        self.server.leave_if_over()
        if batch.unfinished or (batch.got and self.waiting):
            self.loop.call_soon(self._look_on)

    def _note_miss(self, miss: Miss) -> None:
        """There was nothing more."""
        if miss.round and miss.whole:
            self.round = miss.round
        if not miss.unfinished:
            self.looking = miss.again is not None
        if miss.failed and not self.server.stopping:
            self.say(f"{miss.failed} (no more jobs are handed out)")
            self.tally.trouble = True
            self.server.stop()

    def _look_on(self) -> None:
        """Go on looking for lines, also if nobody wants any."""
        if self.waiting:
            self.hand_out()
        elif not self.claiming and not self.server.stopping:
            self.look({})

    def is_startable(self, grant: Grant) -> bool:
        """Whether a client could start a job; else that is said."""
        fault = command_fault(grant.job.command)
        if fault:
            self.say(f"line {grant.job.number}: cannot be started: {fault}")
        return not fault

    def send_jobs(self, client: Client, batch: list[Grant]) -> None:
        """Send lines to a client, in as many messages as their lengths need."""
        self.waiting.pop(client, None)
        if client.want > 0:
            self.waiting[client] = None
        jobs: list[dict[str, Any]] = []
        size = 0
        for grant in batch:
            job, member = grant.job, grant.member
            grant.hand()
            if jobs and size + len(job.text) > LONGEST:
                client.tell(type="jobs", request=client.asked, jobs=jobs)
                jobs, size = [], 0
            jobs.append(dict(id=grant.key, number=job.number, ordinal=job.ordinal, offset=job.offset,
                             state=to_text(job.state), text=to_text(job.text),
                             timeout=encode_timeout(job.settings.timeout), slots=job.settings.slots,
                             shell=to_text(os.fsencode(job.settings.shell)),
                             group=bool(job.settings.together),
                             hold=member is not None and member.group.stage is Stage.PREPARING))
            size += len(job.text)
        client.tell(type="jobs", request=client.asked, jobs=jobs)

    def answer_waiting(self) -> None:
        """Tell clients that would leave that there is nothing for them; not while lines may come back
        unstarted.
        """
        leaving = [client for client in self.waiting if client.leaving]
        soon = boottime() - RETURN
        jobs = self.server.sessions.jobs.values()
        if not leaving or (not self.server.stopping and any(grant.may_return(soon) for grant in jobs)):
            return
        found = self.round
        for client in leaving:
            if client.link and not client.memberships and (self.server.stopping or self._may_leave(client)):
                client.tell_nothing(found)

    def _may_leave(self, client: Client) -> bool:
        """Whether there is nothing for a client, nor will be: by a whole round for it, that began after it
        asked.
        """
        found = self.round
        if client not in found.takers or found.began < client.asked_at or (client.follow and not found.ended):
            return False
        return not self.looking and client not in self._reserved() and not found.waits_for(client)

    # -- groups ----------------------------------------------------------------------------------------------

    def _plan(self, groups: Iterable[PendingGroup]) -> list[Plan]:
        """Say which host gets what.  In the worker's thread, perhaps."""
        try:
            return [Plan(met, jobs_by_host(self.file.reader, met.jobs)) for met in groups]
        except (OSError, KeyError):                     # it was edited this very moment
            self.cursor.forget()
            return []

    def _arrange(self, batch: Batch) -> None:
        """Start a group whose hosts all have a free slot; keep the hosts of others free, if all are there."""
        if not (batch.plans or self.groups or self.stalls.since):
            return
        found = {plan.first.offset: plan for plan in batch.plans}
        self.groups = found if batch.miss is not None and not batch.unfinished else {**self.groups, **found}
        stalls: list[Stall] = []
        reserved: set[Client] = set()
        for _, plan in sorted(self.groups.items()):
            if plan.met.waits:
                continue                                # such as one that the server before us has started
            if len(plan.hosts) > Group.HOSTS:
                self.say_once(f"line {plan.first.number}: the group {printable(plan.met.name)} has more than "
                              f"{Group.HOSTS} hosts; it waits")
                continue
            clients = self._choose(plan, {client: min(client.want, client.room) for client in self.waiting
                                        if client.link and not client.memberships and client not in reserved})
            absent = [host for host, client in clients.items()
                      if not client and not self._is_here(JobSettings(hosts=(host,)))]
            busy = [host for host, client in clients.items() if not client and host not in absent]
            if absent or busy:
                what = f"host {absent[0]}" if absent else f"a free slot of host {busy[0]}"
                stalls.append(Stall(plan.met.name, f"line {plan.first.number}, of the group "
                                                   f"{printable(plan.met.name)}, waits for {what}"))
                plan.clients = self._reserve(plan, reserved)
                reserved |= plan.clients
            elif not self.claiming and not self.server.stopping and boottime() >= self.pause_until:
                chosen = {host: client for host, client in clients.items() if client}
                plan.met.started = self.claiming = True
                del self.groups[plan.first.offset]
                self.worker.ask(self._start_group, self._claim_group, GroupClaim(plan, chosen))
        self.stalls.update(stalls)

    def _reserve(self, plan: Plan, reserved: set[Client]) -> set[Client]:
        """Which clients are to be kept free for a group: all that it needs, if they are here.

        reserved: clients that are kept free for groups above.
        """
        chosen = self._choose(plan, {client: client.slots for client in self.server.sessions.clients.values()
                                  if client.link and client not in reserved})
        return {client for client in chosen.values() if client} if all(chosen.values()) else set()

    def _choose(self, plan: Plan, free: dict[Client, int]) -> dict[str, Client | None]:
        """A client for each host of a group, as far as that can be: the hosts with the fewest choices choose
        first.

        free: how many slots each client may give.
        """
        able = {
            host: [
                client for client in free if client.is_called(host) and not (plan.met.ended and client.follow)
            ]
            for host in plan.hosts
        }
        left = dict(free)
        chosen: dict[str, Client | None] = dict.fromkeys(plan.hosts)
        for host in sorted(able, key=lambda host: sum(free[client] for client in able[host])):
            client = next((client for client in able[host] if left[client] > 0), None)
            if client:
                chosen[host] = client
                left[client] -= 1
        return chosen

    def _claim_group(self, claim: GroupClaim) -> GroupClaim:
        """Claim all lines of a group, if that can be done.  In the worker's thread, perhaps."""
        for host, jobs in claim.plan.hosts.items():
            client = claim.clients[host]
            for line, settings in jobs:
                job = self._claim_line(client, line, settings)
                if not job:
                    return claim
                claim.grants.setdefault(host, []).append(Grant(next(self.keys), client, job))
        claim.whole = True
        return claim

    def _claim_line(self, client: Client, line: Line, settings: JobSettings) -> Job | None:
        """Claim one line for a client."""
        with contextlib.suppress(OSError):
            job = self.file.claim(line, client, settings).job
            if job:
                return job
        self.cursor.forget()                            # it is not what it was
        return None

    def _start_group(self, claim: GroupClaim) -> None:
        """Prepare a group whose lines were claimed; give them back if they were not all to be had, or a
        client has gone meanwhile.
        """
        self.claiming = False
        grants = [grant for some in claim.grants.values() for grant in some]
        for grant in grants:
            self.server.sessions.note(grant)
        links = {client: client.link for client in claim.clients.values() if client.link}
        all_here = links.keys() == set(claim.clients.values())
        may_begin = claim.whole and all_here and not self.server.stopping
        if may_begin:
            Group(self, claim, links).prepare()
        else:
            claim.plan.met.started = False
            for grant in grants:
                self.server.sessions.settle(grant, Outcome(End.RETURNED, None))
        self.server.leave_if_over()
        self.look_again(pause=0.0 if may_begin else 1.0)

    def say_once(self, text: str) -> None:
        """Say what may come again and again."""
        if text not in self.said:
            self.said.add(text)
            self.say(text)

    def look_again(self, pause: float = 0.0) -> None:
        """Look for lines soon; for groups only after a pause."""
        self.pause_until = max(self.pause_until, boottime() + pause)
        self.loop.call_soon(self.hand_out)


# ======== The server ========================================================================================


class Server(Program):
    """The program: starts, has lines handed out by `dispatcher` to the clients of `sessions`, and ends."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Raises Problem."""
        options = parse(argv)
        super().__init__(PROG, options.file, options)
        self.path = options.file
        self.argv = argv
        self.mount = check_mount(self.path, options.single_host, self.say)
        os.close(open_job_file(self.path, os.O_RDONLY if options.dry_run else os.O_RDWR))
        if not options.dry_run:
            check_companion(self.path, self.mount)
        check_job_file(self.path, self.mount.network, self.say)
        self.stopping = False                   # nothing more is handed out
        self.counting = False                   # the file is being counted, before we leave
        self.account: Account | None = None     # what it held when we left
        self.code: int | None = None            # of a signal: the exit status
        self.began = time.time()
        self.unaccepted = 0                     # connections, since that was said last
        self.unaccepted_said = -UNACCEPTED      # when that was, by boottime()

    # -- from start to end -----------------------------------------------------------------------------------

    def main(self) -> int:
        """Check and open everything, then serve; the exit status.  Raises Problem."""
        if self.options.dry_run:
            put_lines(
                map(os.fsencode, preview(JobFile(self.path, say=self.say, mount=self.mount, read_only=True)))
            )
            return 0
        self.stores = self.open_stores(self.mount.network, self.path)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.sockets = listen(self.options.host, self.options.port)
        self.port = self.sockets[0].getsockname()[1]
        self.token, shown = choose_token(self.options.new_token)
        hold_signals()                          # before there is a keeper, which would outlive us for a while
        try:
            self.keeper = KeeperLink(self.path, self.options.grace)
            self.keeper.open()
        except Problem as problem:
            raise Problem(f"{self.path}: {problem}") from None
        except NoKeeper:
            self._say_unkept(
                "somebody else has taken the name of its keeper's socket: serving without a keeper"
            )
        except OSError as error:
            raise Problem(f"the keeper cannot be started: {reason(error)}") from None
        put(os.fsencode(f"Token for runmaker4-client.py: {shown}\n"))
        self.say(f"serving on port {self.port}")
        return super().main()

    async def work(self) -> int:
        """Serve until there is a reason to leave; the exit status."""
        self.over = self.loop.create_future()   # a reason to leave
        self.hurry = self.loop.create_future()  # another signal
        self.file = ServedFile(self.path, say=lambda text: self.in_loop(self.say, text), mount=self.mount,
                               keep=self.keeper.keep)
        self.records = Records(self.stores, self.stdout if self.options.print else None, self.worker)
        self.dispatcher = Dispatcher(self)
        at_once, crowd = room_for_strangers(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self.sessions = Sessions(self, self._trouble, crowd)
        self.accountant = Accountant(self)
        self.failures = Failures(self.file, self.worker)
        if self.options.max_failed:
            await self.failures.count()
        self.handle_signals(self._end, self._drain)
        await self._set_up_keeper()
        connected = functools.partial(ClientLink, self.sessions, self.token)
        servers = [
            await self.loop.create_server(connected, sock=sock, backlog=at_once) for sock in self.sockets
        ]
        for sock in self.sockets:
            sock.listen(BACKLOG)  # what asyncio accepts at once is less than may wait
        chores = [
            watched(chore)
            for chore in (
                self.dispatcher.poll(),
                self.sessions.look_after(),
                self._tick(),
                self._watch_failures(),
            )
        ]
        await self.over
        for chore in chores:
            chore.cancel()
        for server in servers:
            server.close()
        await self._close()
        return self.tally.status(self.account) if self.code is None else self.code

    async def _close(self) -> None:
        """Sync and send everything, then let the connections go."""
        seconds = None if self.code is None else runmaker4.Runner.LAST_TRIES        # after a signal
        self.sessions.tick()
        await self._in_time(self.worker.flush(), seconds)
        if self.code is not None and not self.defects:
            self._part()
        self.worker.ask(lambda done: None, self.file.close)
        for link in list(self.sessions.links):
            link.end()
        end = self.loop.time() + 1.0
        # if closed with something unread, what we said is lost
        while self.sessions.links and self.loop.time() < end:
            await asyncio.sleep(0.01)
        # lines may be held of which we know nothing
        unknown = self.defects or self.sessions.recovery.abandoned
        if self.keeper.life and not self.sessions.jobs and not unknown:
            self.loop.remove_reader(self.keeper.life)
            self.keeper.dismiss()
        await self._in_time(self.worker.flush(), seconds)
        await self.print_rest(self.stdout, lambda: self.code is not None)
        # a file system that does not answer is not waited for
        if self.code is not None and not self.defects:
            count = await self._in_time(self.accountant.count(), runmaker4.Runner.LAST_LOOK)
            self.account = count and count.account_of_all()
        port = "" if self.port == PORT else f"--port {self.port} "
        host = self.options.host
        client = f"{port}{os.uname().nodename if host in (None, '0.0.0.0', '::') else host}"
        orphans = self.dispatcher.cursor.orphans
        words = list(self.argv)
        if self.options.port != self.port:              # the last one counts; behind a -- it would be a file
            end = words.index("--") if "--" in words else len(words)
            words[end:end] = ["--port", str(self.port)]
        # we are about to leave
        server = f"{runmaker4.own_name('runmaker4-server')} {shlex.join(words)}"
        self.say(
            self.tally.summary(
                self.account,
                orphans,
                time.time() - self.began,
                lambda option: (
                    option and f"{server}, with {runmaker4.own_name('runmaker4-client')} {option} {client}"
                ),
                self.regroup,
                why_command(self.options.outdir, self.label),
            )
        )
        await self.print_rest(self.stderr, lambda: self.code is not None)

    def _part(self) -> None:
        """After a signal: acknowledge all that is dealt with by now, and say that the next server is to be
        waited for.

        An event before the signal may have been dealt with only after it: what was printed behind it must not
        be sent to the next server, too.
        """
        for client in self.sessions.clients.values():
            client.acknowledge(leaving=True)
            client.tell(type="closing", done=False)

    async def _in_time(self, work: Awaitable[Any], seconds: float | None) -> Any:
        """The answer to this; None if it does not come in time, or before another signal."""
        task = watched(work)
        await asyncio.wait([task, self.hurry], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() and not task.exception() else None

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A defect, which ends the server; but descriptors may run out when connections are accepted."""
        error = context.get("exception")
        if isinstance(error, OSError) and "socket" in context:
            self._note_unaccepted(error)
        else:
            super()._on_exception(loop, context)

    def _note_unaccepted(self, error: OSError) -> None:
        """Say it now and then: asyncio tries hundreds of times a second."""
        self.unaccepted += 1
        if boottime() - self.unaccepted_said > UNACCEPTED:
            often = f" ({self.unaccepted} times since that was said last)" if self.unaccepted > 1 else ""
            self.say(f"a connection was not accepted: {reason(error)}{often}")
            self.unaccepted, self.unaccepted_said = 0, boottime()

    def relieved(self) -> None:
        if not self.records.behind(Writer.LOW):
            for client in self.sessions.clients.values():
                client.acknowledge()

    def end_for_defect(self) -> None:
        """Leave at once, as after a signal: what runs is the next server's, and clients wait for that one."""
        if not self.over.done():
            self.code = 1
            self.stopping = True
            self.over.set_result(None)

    def _end(self, number: int) -> None:
        """INT, TERM: leave; what runs is kept for the next server."""
        if self.over.done():
            if not self.hurry.done():
                self.hurry.set_result(None)
            return
        self.code = 128 + number
        self.stopping = True
        kept = self.sessions.kept(self.sessions.jobs) if self.keeper.life else ""
        self.say(f"{signal.Signals(number).name}: stopping{kept}" + (", for the next server" if kept else ""))
        self.over.set_result(None)

    def _drain(self, number: int) -> None:
        """HUP, USR1, QUIT: hand out nothing more, leave when nothing runs."""
        name, waiting = signal.Signals(number).name, plural(len(self.sessions.jobs), "job")
        self.say(f"{name}: handing out no more jobs, waiting for {waiting}")
        self.stop()

    async def _watch_failures(self) -> None:
        """Count failures of the whole file now and then, where there is a limit to them."""
        while self.options.max_failed:
            await self.failures.rest()
            self.note_failures(await self.failures.count())

    def note_failures(self, count: int) -> None:
        """So many jobs are failed or in error that were not so at the start."""
        if 0 < self.options.max_failed <= count and not self.stopping:
            waiting = plural(len(self.sessions.jobs), "job")
            self.say(f"{too_many_failures(count)}: handing out no more jobs, waiting for {waiting}")
            self.tally.trouble = True
            self.stop()

    def stop(self) -> None:
        self.stopping = True
        self.sessions.abort_groups(self.sessions.jobs)
        self.dispatcher.answer_waiting()
        self.leave_if_over()

    def leave_if_over(self) -> None:
        """Leave if nothing is handed out any more, nothing runs, and all that clients have told is dealt
        with.
        """
        if not self.counting and self._is_over():
            self.counting = True
            watched(self._leave())

    def _is_over(self) -> bool:
        """Whether nothing is left for us to do."""
        return self.stopping and not (
            self.sessions.jobs
            or self.dispatcher.claiming
            or self.over.done()
            or any(not client.inbox.is_dealt_with for client in self.sessions.clients.values() if client.link)
        )

    async def _leave(self) -> None:
        """Count the file, then leave: what it holds decides the exit status, ours and that of the clients."""
        clients = Takers(client for client in self.sessions.clients.values() if client.link)
        count = await self.accountant.count(clients, surely=True)
        self.counting = False
        if not self._is_over():
            # a client came back with a job, or a signal has ended us
            return
        if count.account:
            self.account = count.account_of_all()
        elif not self.tally.trouble:
            self.say(f"{count.fault}; nobody knows what it holds now")
        for client in self.sessions.clients.values():
            client.acknowledge(leaving=True)
            client.tell(type="closing", done=True, account=count.account_for(client))
        self.over.set_result(None)

    # -- the keeper ------------------------------------------------------------------------------------------

    async def _set_up_keeper(self) -> None:
        """Take over what the server before us left, before clients can come."""
        self.keeper.introduce()
        if self.keeper.locks >= 0:
            await self.sessions.recovery.inherit(self.keeper.locks)
        self._watch_keeper()

    def _watch_keeper(self) -> None:
        """Notice when the keeper dies."""
        life = self.keeper.life
        if life:
            self.loop.add_reader(life, self._keeper_died, life)

    def _say_unkept(self, why: str) -> None:
        self.say(f"{why} (the lines of running jobs will not outlive the server)")

    def _keeper_died(self, life: socket.socket) -> None:
        """Somebody killed it."""
        self.loop.remove_reader(life)
        try:
            self.keeper.revive()
        except OSError as error:
            self._say_unkept(f"the keeper has died and cannot be started again: {reason(error)}")
            return
        self._watch_keeper()

    # -- every second ----------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Notice clients that have fallen silent, and that all is done."""
        pause = min(1.0, runmaker4.SILENCE / 5)
        before = boottime()
        while True:
            await asyncio.sleep(pause)
            self.sessions.drop_silent(slept=boottime() - before > 3 * pause)
            self.sessions.tick()
            before = boottime()
            if self.stopping or self.dispatcher.claiming:
                continue
            if self.options.exit_when_done and not self.sessions.jobs and not self.accountant.pause:
                watched(self._stop_if_done())
            if not self.dispatcher.waiting:
                self.dispatcher.look({})                # for directives that wait for clients

    async def _stop_if_done(self) -> None:
        """Stop if all jobs have ended, or no more will be started."""
        count = await self.accountant.count()
        account = count.account
        over = account and not (
            account.half_saved or account.now.running or (account.now.new and not count.stopped)
        )
        if over and not self.sessions.jobs and not self.stopping and not self.dispatcher.looking:
            if count.stopped:
                self.say(count.stopped)
            self.stop()


# ======== Start =============================================================================================


def choose_token(new: bool) -> tuple[str, str]:
    """The token, and how the first line of output shows it.  new: another one is wanted.  Raises Problem."""
    given = os.environ.get("RUNMAKER4_TOKEN")
    if given:
        if new:
            raise Problem(
                "--new-token: the token is that of $RUNMAKER4_TOKEN (unset that, or leave the option out)"
            )
        if not runmaker4.HEX.fullmatch(given):
            raise Problem(
                "$RUNMAKER4_TOKEN: is no token (32 hexadecimal digits in small letters; or unset it)"
            )
        return given, "$RUNMAKER4_TOKEN (neither shown nor written to a file)"
    path = token_path()
    token = make_token(path, new)
    # What is no terminal may end up where others can read it: in a log of Slurm's, or behind `| tee log`
    return token, f"{token if os.isatty(1) else '(shown on a terminal only)'} (written to {path})"


def room_for_strangers(descriptors: int) -> tuple[int, int]:
    """How many connections are accepted at once, and how many strangers may be there: a quarter of all
    descriptors.

    The rest is for clients and their output.  Of what asyncio accepts at once it hands us some, and closes
    what we have dropped, only turns of its loop later: up to four times as many as are accepted in one turn
    are open besides.
    """
    quarter = descriptors // 4
    return min(BACKLOG, quarter // 8), min(CROWD, quarter // 2)


def listen(host: str | None, port: int) -> list[socket.socket]:
    """Sockets that listen: on all addresses of a host, or of this one, all on one port.  Raises Problem."""
    where = f"{host or 'all addresses'}, port {port}"
    try:
        if not host and socket.has_dualstack_ipv6():
            with contextlib.suppress(PermissionError):
                return [
                    socket.create_server(
                        ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
                    )
                ]
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        sockets: list[socket.socket] = []
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            place = (address[0], port, *address[2:])
            sockets.append(socket.create_server(place, family=family, backlog=BACKLOG))
            port = sockets[0].getsockname()[1]          # where any free one was wanted
        return sockets
    except UnicodeError:
        raise Problem(f"{where}: no name of a host (see --host)") from None
    except OSError as error:
        hint = (
            "is another server running? --port gives another one"
            if "in use" in str(error)
            else "see --host, --port"
        )
        raise Problem(f"{where}: {reason(error)} ({hint})") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run runmaker4-server.py with these arguments; the exit status."""
    return run_main(PROG, lambda words: Server(words).main(), argv)


if __name__ == "__main__":
    leave(main())
