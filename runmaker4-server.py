#!/usr/bin/env python3
"""runmaker4-server - hand out the jobs of a file to runmaker4-client.py on hosts that share no file system.

    alice$ runmaker4-server.py runs.txt              bob$ runmaker4-client.py -j4 alice

A line's life.  A client asks for jobs.  Claims, a Cursor in the file executor, claims a line for it with the
locks of runmaker4.py, so runners and servers can work on one file together; a keeper holds the locks, too.
The line is an Assignment until the client's events have brought the result, which goes to the records and to
the line.

The sections; begin at Server.connect_parts(), Dispatcher.hand_out_lines() and Sessions.receive_event():

    The job file of a server, The keeper        job locks that outlive the server
    The life of the server                      Lifetime: serving, draining, exiting
    Lines that clients have                     Assignment: a line from the claim to the result
    Clients and connections                     Client, which outlives its ClientLinks
    Records, Groups, Summaries                  runs of clients; jobs that start together; the file at an exit
    Sessions                                    messages of clients, and their effects
    Recovery                                    Claims; the jobs that a client brings back
    Handing out                                 Dispatcher: which client gets the next line
    The server                                  Server makes and connects the parts
    The certificate, Token and sockets          before the first client

"The wire" in runmaker4.py describes handshake and frames.  Then follow:

    client                                              server
    have       jobs from an earlier connection
    hello      name, slots, memory and options          welcome    the file, the last event of the client;
                                                                   then `lost` for each lost job
    claim      a request for jobs: additional slots     jobs       some; a few ahead if the jobs are short
               and memory; the number of all slots      nothing    there are none: the answer to `last`,
               (last: the client exits without jobs)               after another scan
    ping       every six seconds                        pong       and which failed lines the client retries
                                                                   (-r, --resume)
    medians    a timeout is in percent                  medians    the times of programs that ended well
    ready      the shell of a job waits at the gate     go         the job begins
                                                        stop       kill this job, or do not begin it
                                                        dismissed  no more jobs: they fail there alone
    begin, output, end: of a run; finish: of a job,     ack        all events up to this number are dealt
    also if it is given back (state `.`); these are                with, and in the files (a second later for
    events, numbered from 1, sent again after a new                the log file, while the job runs, and for a
    connection until acked                                         journal on a network file system)
    get        a request for a piece of a file of       piece      it, and size, times and mode of the file;
               send=: path, offset and length                      or `error`
    place      can a file of fetch= come here later?    piece      yes; or `error` (again: the client must
                                                                   try again)
    put        a piece of a file of fetch=, and size,   piece      where the file ends here; or `error`
               times and mode of the file                          (again)
                                                        fault      a result could not be written
                                                        lost       kill the job: another runner has the line
    account    a request for the counts of the file     account    jobs by state; are there new ones for the
                                                                   client?
    bye        the client exits and has no more jobs    closing    the server exits (done: no more jobs; with
                                                                   the account)

These rules keep jobs from being lost or run twice:

 1.  A client is lost when the connection is closed, or silent for MAX_SILENT_SECONDS.  For --grace its lines
    stay `r` and locked.  Then they are orphans, like a dead runner's: the jobs may have started.
 2.  A client starts a job only if the server has answered a request that the client sent less than half the
    grace (and less than MAX_SILENT_SECONDS) ago.  If the client slept longer, another runner can have the
    line.
 3.  A client that comes back lists its jobs.  It keeps a job if no other runner has taken the line since,
    and kills all others ("Recovery").  While the server cannot read the file, it drops the connection: the
    client keeps all jobs, and connects again.  A job that it gives back becomes `.`, and so does one that
    it does not list, or `e` if that has begun.  Another server gets the `begin` of running jobs again, and
    begins new records.  After a restart, a client that lies can name another client's running line; it has
    the token, so it could also pass for the server.
 4.  All job locks are on one open file description, shared with a keeper: a process that outlives the server
    by the grace, and passes the description, with the locks, to the next server.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and (needed := "Python 3.9 or later"):   # Python 3.7 shows this with a SyntaxError
    # "Starting fast" in runmaker4.py
    library = os.path.dirname(os.__file__)
    sys.path[:0] = library, f"{library}/lib-dynload", os.path.dirname(os.path.realpath(__file__))

import signal

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGXCPU,
                                              signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import asyncio
import base64
import errno
import fnmatch
import functools
import hashlib
import itertools
import secrets
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

try:
    import runmaker4
except ModuleNotFoundError as missing:
    if missing.name != "runmaker4":
        raise
    print("runmaker4-server.py: runmaker4.py is missing (copy it to where this script is)", file=sys.stderr)
    sys.exit(2)

from runmaker4 import (
    AGAIN,
    BEGIN,
    BUCKETS_END,
    CANCELLED,
    DONE,
    END,
    ERROR,
    FAILED,
    LIMIT_BYTES,
    MAX_NAME_CHARS,
    MAX_TEXT_CHARS,
    NEW,
    NO_DIRECTIVES,
    OUTPUT_WINDOW_BYTES,
    PORT,
    RUNNING,
    UNMADE,
    Console,
    Consumer,
    Consumers,
    Credentials,
    Cursor,
    Fields,
    FileChangedError,
    FileExecutor,
    FileTree,
    FileVersion,
    Job,
    JobFile,
    JobLock,
    JobLog,
    JobQueue,
    JobReader,
    JobSettings,
    Line,
    LineCheck,
    Link,
    LockTable,
    LogFile,
    Message,
    NoJob,
    OutDir,
    Parser,
    PendingGroup,
    PresenceLock,
    Processes,
    Program,
    Reader,
    Resources,
    Run,
    RunFields,
    RunnerStats,
    RunResult,
    Say,
    Scan,
    Seconds,
    ServerChannel,
    Shell,
    Sink,
    Stream,
    Summary,
    TemporaryError,
    Throttle,
    UsageError,
    WireError,
    Writer,
    add_background_options,
    add_general_options,
    add_max_failed_option,
    add_record_options,
    allow_descriptors,
    allow_most_descriptors,
    boottime,
    check_job_file,
    check_job_file_path,
    check_lock_file,
    check_mount,
    close_all,
    command_error,
    connect_in_time,
    display_text,
    duration,
    error_text,
    exit_now,
    fill_in_words,
    find_held_job_locks,
    fork_quietly,
    human_time,
    identity_of,
    integer_between,
    is_free,
    is_result,
    job_lock_offsets,
    join_first_few,
    lock,
    memory_text,
    name_lines,
    name_program,
    once_per_subject,
    one_line,
    open_descriptors,
    open_job_file,
    other_locks,
    own_job_lock_offset,
    plural,
    print_bytes,
    printable,
    read_token,
    redirect_to_null,
    refuse_as_output,
    refused_as,
    report_same_fetch,
    run_main,
    same_user,
    spawn_task,
    tls_context,
    to_bytes,
    to_text,
    token_of_environment,
    token_path,
    unlock,
    wait_for_event,
    write_all,
    write_with_retries,
)

if TYPE_CHECKING:
    import ssl

PROG = "runmaker4-server.py"
MAX_HANDSHAKES = 100            # under way, without stalled ones
MAX_STALLED = 200               # without a proof of the token
BACKLOG = 4096                  # connections that wait for accept(2); the system can allow fewer
LOOK_SECONDS = 0.01             # between looks for waiting connections
MAX_ASKERS = 100                # answered in a look; other users can fill the queue, which has 128
STALLED_LOOKS = 20              # in which a handshake normally ends
TCP_ESTABLISHED = b"\1"         # the first byte of TCP_INFO, while the connection is not closed
ACCEPT_PAUSE_SECONDS = 1.0      # after a failed accept(2)
MIN_DESCRIPTORS = 500           # some 20 for the server, 400 for strangers, the rest for clients
MAX_BATCH_LINES = 32            # lines claimed before other work follows: `e` if the server is killed then
MAX_PREFETCHED_LINES = 16       # sent before a request: Client.slots_to_fill
MAX_QUICK_FAILURES = 10         # of a client at which no job was done
QUICK_SECONDS = 1.0             # from sending a line to such a failure
SHORT_JOB_SECONDS = 0.1         # from sending a line to the result of a short job
POLL_SECONDS = 0.1              # between scans of a local file, while clients wait
OFFER_SECONDS = 5e-5            # pause for each waiting client; an offer takes some 3 us
FEW_OFFERS = 2 * MAX_BATCH_LINES    # enough while each line suits all clients
MAX_REPORTED_BYTES = 1 << 25    # jobs that a client may report
MAX_JOBS_BYTES = 128 << 10      # several jobs in a message
ACKNOWLEDGE_SECONDS = 0.01      # in which events are gathered
MAX_RETURN_SECONDS = 12 * 3600.0   # for which a server waits for a lost client: one night
SEARCH_INTERVALS = 0.1          # between searches for a reported job, in intervals of the job file
RETURN_SECONDS = 2.0            # in which a client normally starts a job or gives it back
MAX_SETTLED_KEYS = 10_000
MAX_BRINGERS = 100_000          # results, of which the lines are remembered
MAX_HELD_BYTES = 1 << 26        # in memory, of pieces of files that wait to be written or sent
# any error but these ends an input, or a new job
FULL_OR_BUSY = errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.EMFILE, errno.ENFILE
MAX_SLOTS = 1_000_000           # of a client
MAX_PATH_CHARS = 200            # at the end of the job file's name, in a welcome


def make_parser() -> Parser:
    # docs/install/make.py also calls this, for the man page and the completion
    parser = Parser(
        PROG,
        purpose="Hand out the jobs of a text file to hosts that do not share the file system. "
                "`#RUN send=` and `fetch=` bring files to them and back.",
        usage="[options] FILE",
        examples=f"Serve the jobs in runs.txt from one host, run them on another:\n"
                 f"    alice$ {PROG} runs.txt\n"
                 f"    bob$   runmaker4-client.py -j4 alice    (asks for the token printed here)",
        notes={
            "Signals": "INT, TERM, USR2 and XCPU stop the server; running jobs are kept for --grace, for "
                       "the next server on this file.  HUP, USR1 and QUIT (Ctrl-\\) hand out no more jobs "
                       "and wait for running ones.",
        },
        statuses={
            "0": "nothing in the file is new, !, e, or r without a runner",
            "1": "a job is, on any runner; or output, records or results are not written",
            "2": "bad usage, or the file cannot be used",
            "130, 143": "ended by a signal",
        },
    )
    add = parser.add_argument_group("jobs to hand out").add_argument
    add("file", metavar="FILE", type=check_job_file_path,
        help="the job file; runmaker4.py can work on it at the same time")
    add("--exit-when-done", action="store_true",
        help="exit when all jobs have finished; clients exit as well")
    add("--grace", type=duration, default=60.0, metavar="T",
        help="keep the jobs of a lost client, or server, for T [60s]")
    add(
        "--single-host",
        action="store_true",
        help="no other host uses the file itself: any file system will do",
    )
    add_max_failed_option(add)
    add = parser.add_argument_group(
        "address and token ($RUNMAKER4_TOKEN, or ~/.runmaker4.token)"
    ).add_argument
    add("--host", metavar="HOST", help="listen on this address only [all, IPv6 and IPv4]")
    add(
        "--port",
        type=integer_between(0, 65535),
        default=PORT,
        metavar="N",
        help=f"port, 0: any free one, another at each start [{PORT}]",
    )
    add = parser.add_argument_group(
        "output and records of all clients",
    ).add_argument
    add_record_options(add)
    add("--print", action="store_true", help="print the job output of all clients")
    add_background_options(parser.add_argument_group("background").add_argument)
    add_general_options(parser)
    return parser


# ======== The job file of a server ==========================================================================
#
# A runner has each job lock on a description (open(2)) of its own, which the job inherits.  A server's jobs
# run on other hosts, and the lines must stay locked when it dies.  So all its job locks are on one
# description, which the keeper also holds open:
#
#     1.  Locks on one description do not exclude each other.  So the server counts its own in memory, where a
#        runner would ask the kernel.
#     2.  The next server gets the description from the keeper.  The locks on it are those that a second
#        description cannot lock, and this one can.
#     3.  A job lock shows the command of the line, but not which client has the job.  Until a client names
#        the job, or the grace is over, no client has the line.


NO_JOB_LOCK = -1                # key of inherited bytes in SharedLockTable.limit_locks: see `_inherited`


class SharedLockTable(LockTable):
    """A lock file with all job locks on one description, which outlives the server.

    They are `job_locks` and `locks_without_line`.  `fd` is another description.
    """

    def __init__(self, *args: Any, give_to_keeper: Callable[[int], None], **named: Any) -> None:
        """give_to_keeper: called with the descriptor of each new description."""
        super().__init__(*args, **named)
        self._give_to_keeper = give_to_keeper
        self._shared_fd = -1                    # -1: none
        # offsets of the previous server's job locks for which no line is known yet
        self.locks_without_line: frozenset[int] = frozenset()
        # all of these, until their jobs have ended or are given up.  Till then the inherited bytes of limit=
        # stay locked, as nothing shows to which of these jobs one belongs
        self._inherited: set[int] = set()

    def open_job_lock(self) -> int:
        """Return the shared descriptor; if there is none, open one and give it to the keeper."""
        if self._shared_fd < 0:
            self._shared_fd = super().open_job_lock()
            self._pipes.clear()                 # no job inherits it, and it is never spare
            self._give_to_keeper(self._shared_fd)
        return self._shared_fd

    def close_job_lock(self, fd: int) -> None:
        """Leave the description open: other job locks can be on it."""

    def discard(self, fd: int) -> None:
        """Close the shared descriptor: its locks are lost."""
        close_all(fd)
        self._shared_fd = -1
        self.limit_locks.clear()

    def free_job_lock(self, job_lock: JobLock, is_job_alive: bool = False) -> None:
        super().free_job_lock(job_lock, is_job_alive)
        self._inherited.discard(job_lock.offset)
        self._free_inherited_limits()

    def _free_inherited_limits(self) -> None:
        if not self._inherited:
            for offset in self.limit_locks.pop(NO_JOB_LOCK, ()):
                with suppress(OSError):
                    unlock(self._shared_fd, offset)

    def free_all_job_locks(self) -> None:
        super().free_all_job_locks()
        self.drop_locks_without_line()
        self.discard(self._shared_fd)

    def count_job_locks(self, command: bytes) -> int:
        """Return how many job locks of a command are held, by any process."""
        offsets = job_lock_offsets(command)
        if self._shared_fd < 0:                 # none is ours
            return super().count_job_locks(command)
        # `fd` is on another description, so this call also finds our own
        if is_free(self.fd, offsets.start, len(offsets)):
            return 0
        # the kernel names only locks of other descriptions; a call for each of ours would be slow
        ours = filter(offsets.__contains__, itertools.chain(self.job_locks, self.locks_without_line))
        return len([*ours]) + sum(map(len, other_locks(self._shared_fd, offsets.start, len(offsets))))

    def is_ours(self, offset: int) -> bool:
        return offset in self.job_locks or offset in self.locks_without_line

    def inherit_locks(self, shared_fd: int) -> bool:
        """Take over the job locks of the dead server; return False if they are in another lock file: void.

        shared_fd: from its keeper.  Raises OSError before anything is taken over.
        """
        def inherit(locked: Iterable[range]) -> Iterator[int]:
            # of all processes; those that shared_fd can lock once more were the previous server's
            for offset in [*itertools.chain.from_iterable(locked)]:
                # on CephFS a second lock of the same kind would damage the first: it becomes shared, then
                # exclusive
                if lock(shared_fd, offset, shared=True) and lock(shared_fd, offset):
                    yield offset

        if identity_of(shared_fd) != self.inode:
            return False
        self.locks_without_line = frozenset(inherit(find_held_job_locks(self.fd)))
        self._inherited = {*self.locks_without_line}
        # 2^61 bytes: up to the end of all offsets
        self.limit_locks[NO_JOB_LOCK] = [*inherit(other_locks(self.fd, LIMIT_BYTES, 1 << 61))]
        self._shared_fd = shared_fd
        return True

    def is_own_lock_inherited(self, line: Line) -> bool:
        return own_job_lock_offset(line) in self.locks_without_line

    def take_lock_without_line(self, offset: int) -> JobLock:
        """Move an inherited job lock, whose line was found, to `job_locks`; return it."""
        self.locks_without_line -= {offset}
        job_lock = JobLock(self._shared_fd, offset)
        self.job_locks[offset] = job_lock
        return job_lock

    def drop_locks_without_line(self) -> None:
        for offset in self.locks_without_line:
            with suppress(OSError):          # EIO: the lease was lost, and with it the locks
                unlock(self._shared_fd, offset)
        self._inherited -= self.locks_without_line
        self.locks_without_line = frozenset()
        self._free_inherited_limits()


class ServedFile(JobFile):
    lock_table: SharedLockTable
    poll = Seconds(POLL_SECONDS, 1.0)


class ServedQueue(JobQueue):
    file: ServedFile

    def reclaim_line(self, line: Line, lock_offset: int, states: bytes) -> Job | None:
        """Claim the line of a job that a returning client has; None: another job or runner has it.

        lock_offset: of the job lock for the line number that the client reports.  states: of lines that may
        be claimed without an inherited lock.  Raises TemporaryError: it is unknown now who has the line;
        OSError.
        """
        if any(job.offset == line.offset for job in self.claimed):
            return None
        inherited_locks = self.file.lock_table.locks_without_line
        # the previous server had assigned the line; if a user has set its state, check_jobs() finds that
        if lock_offset in inherited_locks:
            return self.claim_inherited(line, lock_offset)
        if line.state not in states:
            return None
        attempt = self.claim(line)
        if attempt.job:
            return attempt.job
        if attempt.check is LineCheck.NO_JOB_LOCK:
            # if an edit had moved the line, the previous server had it with the lock of another number
            locks = inherited_locks.intersection(job_lock_offsets(line.command))
            return self.claim_inherited(line, min(locks)) if locks and line.state == RUNNING else None
        if attempt.check is LineCheck.CHANGED and attempt.data[:1] == RUNNING:
            return None                         # another runner was faster
        raise TemporaryError(attempt.check.value)

    def claim_inherited(self, line: Line, lock_offset: int) -> Job:
        """Claim a line whose job lock is held already, so without the command mutex.

        check_jobs() repairs what edits changed.
        """
        job = Job(line)
        job.job_lock = self.file.lock_table.take_lock_without_line(lock_offset)
        self.claimed[job] = None
        return job


# ======== The keeper ========================================================================================
#
# A lock lasts as long as a process has its description open.  The keeper is such a process, so no runner can
# start the jobs of a dead server's clients again:
#
#     1.  The server forks the keeper, and sends it the descriptor over a socket pair.
#     2.  When the server dies, the keeper reads an end of file, and waits --grace for the next server.
#     3.  The next server finds the keeper, which sends it the descriptor.  Once a keeper of its own has that,
#        too, it lets the old keeper exit.
#     4.  While the old server lives, its keeper accepts no connection, and the new server refuses to start.
#
# The keeper listens on an abstract socket (unix(7)), which vanishes with it.  The next server finds it in the
# kernel's list of sockets.  Any user can bind any name, and connect: so the name ends in a hash of the token
# and random characters, and both ends ignore processes of other users.


def keep_locks(listener: socket.socket, server_sock: socket.socket, grace: float) -> None:
    """Hold the job locks until a server sends `exit`, or none follows a dead one within the grace.

    server_sock: the server sends it the descriptor with the job locks, and another after the lock file was
    created again.
    """
    locks_fd = -1
    while True:
        try:
            message, fds, _, _ = socket.recv_fds(server_sock, 64, 1)
        except OSError:                     # ECONNRESET: the server has died with our message unread
            message, fds = b"", []
        if fds:
            close_all(locks_fd)
            locks_fd = fds[0]
            continue
        # any message without a descriptor is `exit`; b"": the server is dead; -1: there are no locks to hold
        if message or locks_fd < 0 or not (new_server := give_to_next_server(listener, locks_fd, grace)):
            return
        server_sock = new_server


def give_to_next_server(listener: socket.socket, locks_fd: int, grace: float) -> socket.socket | None:
    """Send the job locks to the next server; return the connection to it; None: none came in the grace."""
    deadline = time.monotonic() + grace
    # not longer, even if other users connect again and again
    while (seconds := deadline - time.monotonic()) > 0:
        listener.settimeout(min(seconds, 86400.0))  # poll(2) counts milliseconds: 24 days fit into its int
        # a timeout; EPIPE: it asked while the old server lived, and has given up
        with suppress(OSError):
            new_server, _ = listener.accept()
            if same_user(new_server):           # any user can connect
                socket.send_fds(new_server, [b"locks"], [locks_fd])
                return new_server
            new_server.close()
    return None


class KeeperLink:
    MAX_EXIT_SECONDS = 2                # to wait for another server to exit

    def __init__(self, path: str, grace: float, token: str) -> None:
        """Make what the next server of this file finds the keeper by.  Raises OSError.

        Containers can share abstract names: one path can lead to two files there, and two paths to one.
        """
        # not the inode of the lock file, which changes when that is created again
        folder, name = os.path.split(os.path.realpath(os.fsencode(path)))
        folder_info = os.stat(folder)
        self._secret = b"%b %d %d %b" % (token.encode(), folder_info.st_dev, folder_info.st_ino, name)
        self._grace = grace
        # the keeper inherits _keeper_end
        self._keeper_sock, self._keeper_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.locks_fd = -1                  # -1: none yet

    def take_over_and_start_keeper(self) -> None:
        """Get the job locks from the previous server's keeper, if any, and start our own.

        This forks: call it before the event loop.  Raises UsageError: another server of this user serves the
        file; OSError.
        """
        previous_keeper = self._take_over_locks()
        # until the loop handles them: a signal that killed us from here on would leave a keeper
        signal.pthread_sigmask(signal.SIG_BLOCK, runmaker4.STOP_SIGNALS)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.make_address(secrets.token_hex(6).encode()))
            # a server that connects while ours lives stays in the queue, also after it has given up
            listener.listen(128)
            if fork_quietly() == 0:                     # in the child
                self._become_keeper(listener)           # never returns
            self._keeper_end.close()
        if self.locks_fd >= 0:
            self.send_locks_to_keeper(self.locks_fd)
        if previous_keeper:                 # not sooner: the locks would depend on us alone
            with previous_keeper, suppress(OSError):
                previous_keeper.send(b"exit")

    def _take_over_locks(self) -> socket.socket | None:
        """Get the job locks of a dead server; return the connection to its keeper; None: no keeper has any.

        Raises UsageError if a keeper does not answer: its server lives; OSError.
        """
        tried_addresses: set[bytes] = set()
        # a keeper that exits now can have passed the locks to another, so look again
        while addresses := self.find_addresses() - tried_addresses:
            address = addresses.pop()
            tried_addresses.add(address)
            keeper_sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connect_in_time(keeper_sock, address, self.MAX_EXIT_SECONDS)
                # a process of another user can neither block us nor answer
                fds = socket.recv_fds(keeper_sock, 64, 1)[1] if same_user(keeper_sock) else []
            except socket.timeout:                  # or the keeper was stopped
                raise UsageError("is served already (use that server, or stop it)") from None
            except OSError:                         # nobody listens, the queue is full, or it has exited
                fds = []
            if fds:
                self.locks_fd = fds[0]
                return keeper_sock
            keeper_sock.close()
        return None

    def make_address(self, salt: bytes) -> bytes:
        """Return an address that no other user can guess.  salt: 12 characters."""
        return b"\0runmaker4." + salt + hashlib.sha256(salt + self._secret).hexdigest()[:32].encode()

    def find_addresses(self) -> set[bytes]:
        with open("/proc/self/net/unix", "rb") as sockets:      # `@` stands for the NUL
            return {address for word in sockets.read().split() if word[:1] == b"@"
                    and (address := self.make_address(word[11:23])) == b"\0" + word[1:]}

    def _become_keeper(self, listener: socket.socket) -> None:
        """Run the keeper in the child process.  Never returns."""
        has_defect = True
        try:
            signal.set_wakeup_fd(-1)
            os.setsid()
            for signum in (*runmaker4.STOP_SIGNALS, signal.SIGPIPE):
                signal.signal(signum, signal.SIG_IGN)   # meant for the server
            redirect_to_null()
            needed_fds = {0, 1, 2, listener.fileno(), self._keeper_end.fileno()}
            # client connections and the server's end of our socket must close when the server is dead
            close_all(*(fd for fd in open_descriptors() if fd not in needed_fds))
            keep_locks(listener, self._keeper_end, self._grace)
            has_defect = False
        finally:
            if has_defect:              # no runner may start the jobs again sooner
                time.sleep(self._grace)
            os._exit(0)

    def send_locks_to_keeper(self, fd: int) -> None:
        self.locks_fd = fd
        with suppress(OSError):              # it was killed
            socket.send_fds(self._keeper_sock, [b"locks"], [fd])

    def dismiss_keeper(self) -> None:
        with suppress(OSError):
            self._keeper_sock.send(b"exit")


# ======== The life of the server ============================================================================
#
# An event changes the phase at once; the coroutines that react run a little later:
#
#     event                                               SERVING     DRAINING    EXITING
#     HUP, USR1, QUIT, --exit-when-done, --max-failed,    DRAINING    -           -
#       an unusable file: drain()
#     INT, TERM, USR2, XCPU: start_exiting(128 + number)  EXITING     EXITING     hurry()
#     a defect: start_exiting(1)                          EXITING     EXITING     -
#     all is dealt with, and the file is counted:         x           EXITING     x
#       start_exiting()
#
# x: cannot happen, as a server drains first, and counts last.
#
# If a signal or a defect ends the server, running jobs remain with the keeper, for the next server.


class ServerPhase(Enum):
    SERVING = "jobs are handed out"
    DRAINING = "running jobs finish, no more are handed out"
    EXITING = "messages of clients are ignored"


class Lifetime:

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.phase = ServerPhase.SERVING
        self.exit_status: int | None = None     # None: the counts of the file decide
        self.exiting: asyncio.Future[None] = loop.create_future()
        self.hurrying: asyncio.Future[None] = loop.create_future()      # done: wait for nothing
        self.may_end = asyncio.Event()          # set when no client has a line any more, and on drain()

    @property
    def is_serving(self) -> bool:
        return self.phase is ServerPhase.SERVING

    @property
    def is_exiting(self) -> bool:
        return self.phase is ServerPhase.EXITING

    def drain(self) -> None:
        if self.is_serving:
            self.phase = ServerPhase.DRAINING
            self.may_end.set()

    def start_exiting(self, status: int | None = None) -> None:
        """Begin to exit; the first call counts.  status: None: the counts of the file decide."""
        if not self.is_exiting:
            self.phase = ServerPhase.EXITING
            self.exit_status = status
            self.exiting.set_result(None)

    def hurry(self) -> None:
        if not self.hurrying.done():
            self.hurrying.set_result(None)


# ======== Lines that clients have ===========================================================================
#
# A line that was claimed for a client is an `Assignment`, until the result is written.  The job ends, the
# client's grace is over, a user sets the state in the file, the group is stopped: the first `LineResult`
# counts, and only decide_result() can alter it.


# Its phases, which only methods of Assignment change:
#
#     phase     meaning                                      next phase
#     CLAIMED   the client does not know the line: the       SENT by mark_sent(), ENDING, OVER
#               message is about to go, or waits for
#               others of a group
#     SENT      the client can have begun the job            BEGUN by mark_begun(), ENDING, OVER; CLAIMED
#                                                            by mark_unsent(), if the message was lost;
#                                                            SENT once more, when a group gets `go`
#     BEGUN     the client has reported it, or got `go`      ENDING, OVER; BEGUN once more for each run, and
#                                                            when the client is back
#     ENDING    the result is decided and being written      OVER
#     OVER      no client has the line                       none: mark_over() is the last call
#
# A line that a client has brought back is BEGUN.  OVER follows without ENDING if no result will be written:
# another runner has the line, or it becomes an orphan.


class AssignmentPhase(Enum):
    CLAIMED = "claimed"
    SENT = "sent"
    BEGUN = "begun"
    ENDING = "ending"
    OVER = "over"


@dataclass(frozen=True)
class LineResult:
    state: bytes                        # of the line
    result_text: str = "given back"     # for the results of a group; for example "exit 0"
    loses_host: bool = False            # the group goes on without the host
    event: int = 0                      # to acknowledge once the state is written; 0: it came in no message


RETURNED = LineResult(NEW)
STOPPED = LineResult(ERROR, "stopped")  # too many hosts of the group are lost
VANISHED = LineResult(ERROR, "vanished", loses_host=True)               # the client
UNSTARTED = LineResult(ERROR, "not started", loses_host=True)
TAKEN = LineResult(ERROR, "lost", loses_host=True)                      # another runner has the line


class TravellingFiles(NamedTuple):
    send: Collection[bytes] = ()
    fetch: Collection[bytes] = ()       # with scratch=yes, names for is_result()
    scratch: bool = False

    def has_result(self, path: bytes) -> bool:
        return any(is_result(path, name) for name in self.fetch) if self.scratch else path in self.fetch


NO_FILES = TravellingFiles()


@dataclass(eq=False)
class Assignment:
    key: str                            # of the job, in messages
    client: Client
    job: Job
    phase: AssignmentPhase = AssignmentPhase.CLAIMED
    sent_at: float = 0.0                # the job, or `go`; boottime(); 0.0: not sent
    member: Member | None = None        # None: it is in no group
    run: Run | None = None              # None: there is none, or no records
    last_output: bytes = b""            # of the runs: a piece, perhaps several lines
    result: LineResult | None = None    # None: undecided
    files: TravellingFiles | None = NO_FILES        # None: an earlier server knew: Sessions._find_files()
    is_refused: bool = False            # one of them, by us for good
    # of each file that travels, the bytes that have come
    travelled: dict[bytes, tuple[int, FileVersion]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return self.job.number

    @property
    def is_cancelled(self) -> bool:
        return self.job.cancelled

    @property
    def group(self) -> Group | None:
        return self.member.group if self.member else None

    @property
    def is_gated(self) -> bool:
        return self.group is not None and self.group.stage is Stage.PREPARING

    def send_message(self, type: str, **fields: Any) -> None:
        self.client.send_message(type=type, id=self.key, **fields)

    @property
    def is_undecided(self) -> bool:
        return self.phase not in (AssignmentPhase.ENDING, AssignmentPhase.OVER)

    @property
    def can_become_new(self) -> bool:
        """Return True if the line can soon be new again: no client may exit then, as it could take that."""
        if self.result:
            return self.result.state == NEW
        # then a connected client can still give the job back
        return ((self.sent_at > boottime() - RETURN_SECONDS or self.files is not NO_FILES)
                and self.phase is AssignmentPhase.SENT and self.client.link is not None)

    def make_job_entry(self) -> Fields:
        job = self.job
        settings = job.settings
        files = self.files or NO_FILES
        return dict(
            id=self.key,
            number=job.first_number,
            text=to_text(job.text),
            timeout=settings.timeout,  # as in JobSettings
            slots=settings.needs.slots,
            memory=[needs.memory for needs in (settings.needs, *settings.larger_needs)],  # bytes
            shell=to_text(os.fsencode(settings.shell)),
            group=bool(settings.together),
            hold=self.is_gated,  # it waits at the gate for `go`
            send=list(map(to_text, files.send)),
            fetch=list(map(to_text, files.fetch)),
            scratch=files.scratch,
        )

    def mark_sent(self) -> None:
        self.phase = AssignmentPhase.SENT
        self.sent_at = boottime()

    def mark_unsent(self) -> None:
        self.phase = AssignmentPhase.CLAIMED
        self.sent_at = 0.0

    def mark_begun(self) -> None:
        self.phase = AssignmentPhase.BEGUN

    def decide_result(self, proposed_result: LineResult) -> LineResult | None:
        """Decide the result of the line, for the caller to write; None: it was decided, or the line is gone.

        `d` and `!` stay as proposed.  Altered are, in this order:

            given back to a group that has begun    VANISHED (unless cancelled)
            `e`, and the group was stopped          STOPPED
            `e` or `.`, but a user has set a state  CANCELLED: the state in the file remains
        """
        if not self.is_undecided:
            return None
        self.phase = AssignmentPhase.ENDING
        line_result = proposed_result
        stage = self.group.stage if self.group else None
        # the other hosts would not wait for another start
        if (line_result.state == NEW and stage in (Stage.RUNNING, Stage.STOPPED)
                and not self.is_cancelled):
            line_result = VANISHED
        # the client was ordered to stop the job, so how it ended means nothing
        if line_result.state == ERROR and stage is Stage.STOPPED:
            line_result = STOPPED
        if line_result.state in (NEW, ERROR) and self.is_cancelled:
            line_result = LineResult(CANCELLED, "cancelled", loses_host=line_result == VANISHED)
        self.result = replace(line_result, event=proposed_result.event)
        return self.result

    def mark_over(self) -> None:
        self.phase = AssignmentPhase.OVER


Assignments = dict[str, Assignment]     # by key


# ======== Clients and connections ===========================================================================
#
# A `Client` outlives connections: it has one `ClientLink` after the other.
#
# All clients' events are acknowledged together, a moment after the first came (Sessions.acknowledge): once
# the journal is flushed and the executor has made all earlier calls, they are in the files.  Only a result
# can take longer.  An acknowledgement makes room for output, so there is none while the disk is too slow.


class Client(Consumer):
    """A client that is connected, or can come back: until it has sent bye, or was away for the grace."""

    def __init__(self, sessions: Sessions, id: str) -> None:
        super().__init__("?", capacity=Resources(0))
        self.sessions = sessions
        self.id = id                    # drawn by the client when it starts
        self.address = "?"
        self.directory = b""            # where jobs run
        self.link: ClientLink | None = None     # on which it was welcomed; None at once when that is lost
        self.newest_link: ClientLink | None = None  # of the last `hello`; None: none came
        self._hello_came = asyncio.Event()      # until serve_client() has dealt with it
        self.assignments: Assignments = {}    # by key
        self.group_count = 0            # of which it is a host; while there are any, it gets no other jobs
        self.requested_slots = 0        # without jobs
        self.free_memory = 0            # bytes for these jobs; negative: the memory has shrunk
        self.request_number = 0         # of the last `claim` message, which answers repeat
        self.exits_without_jobs = False     # that message was marked `last`
        self.short_jobs_in_row = 0      # done within SHORT_JOB_SECONDS of being sent
        # directory, command and last line of output; None: this client has done a job
        self.quick_failures: list[bytes] | None = []
        self.awaited: list[Assignment] = []     # jobs of others, before this client is judged
        self.newest_event = 0           # received; 0: none
        self.last_acknowledged = 0      # event
        self.output_bytes = 0           # in all events
        self.written_bytes = 0          # of them, in the files; a result before them may be unwritten
        self.turn = asyncio.Lock()      # of one `get` after the other

    # -- properties ------------------------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        return int(self.capacity.slots)

    @property
    def can_get_jobs(self) -> bool:
        return self.link is not None and not self.group_count and not self.why_distrusted

    @property
    def why_distrusted(self) -> str:
        """Return why the client gets no more jobs, until one is done; '': it gets jobs."""
        if not self.quick_failures or len(self.quick_failures) < MAX_QUICK_FAILURES:
            return ""
        return ("jobs fail here, and not at other clients (the last: "
                f"{display_text(self.quick_failures[-1])[:MAX_TEXT_CHARS // 2]})")

    def matches_host(self, host: str) -> bool:
        return super().matches_host(host) or fnmatch.fnmatchcase(self.address, host)

    @property
    def line_allowance(self) -> int:
        # two undecided lines for each slot, because slots out of service can still finish jobs
        return 2 * self.slots - sum(assignment.is_undecided for assignment in self.assignments.values())

    @property
    def slots_to_fill(self) -> int:
        """Return for how many slots the client may get jobs now: requested ones, and jobs ahead.

        After four short jobs in a row one comes ahead, and so on, so that no slot waits for a round trip.
        Behind a longer job, the client gives them back after a second.
        """
        requested = min(self.requested_slots, self.line_allowance)
        if requested <= 0:
            return 0
        if self.sessions.max_failed:            # the client would start jobs ahead after the limit is reached
            return requested
        return requested + min(self.short_jobs_in_row // 4, MAX_PREFETCHED_LINES)

    @property
    def where(self) -> str:
        # for example 'bob (10.0.0.2)'
        return f"{self.name} ({self.address})"

    # -- connections -----------------------------------------------------------------------------------------

    def on_hello(self, link: ClientLink, message: Message) -> None:
        """Note what a client reports about itself on a new link, and wake serve_client(), which answers.

        Raises WireError before anything has changed.
        """
        name = message.text("name", MAX_NAME_CHARS)
        directory = message.data("directory")
        follow = message.boolean("follow")
        retry = message.retried_states()
        capacity = Resources(message.integer("slots", MAX_SLOTS), message.integer("memory"))
        self.name = name
        self.directory = directory
        self.follow = follow
        self.capacity = capacity
        self.free_memory = int(capacity.memory)         # the next `claim` subtracts what is used
        if not self.newest_link:               # failed lines become new again once, not on each link
            self.retry = retry
        elif self.newest_link.detached.done():
            self.sessions.say(f"client {self.where} came back")
        else:                                  # it has lost that link, and we have not noticed yet
            self.newest_link.detach()
            self.newest_link.drop("it has a new connection")
        self.address = link.address
        self.newest_link = link
        self._hello_came.set()

    async def _next_link(self) -> ClientLink | None:
        """Wait for a `hello`; return the newest link, as several can have come; None after the grace."""
        if not await wait_for_event(self._hello_came, self.sessions.grace):
            return None
        self._hello_came.clear()
        return self.newest_link

    def _welcome(self, link: ClientLink, reclaimed: Reclaimed) -> None:
        """Answer a `hello`, use its link from now on, and repeat orders that the client can have missed."""
        link.client = self
        self.link = link
        sessions = self.sessions
        link.send(
            type="welcome",
            file=to_text(os.fsencode(sessions.path))[-MAX_PATH_CHARS:],
            directory=to_text(sessions.directory),
            grace=sessions.grace,
            seen=self.last_acknowledged,            # later events come again
        )
        # settled jobs are not named: the client sends their events again, and gets an acknowledgement
        for key in reclaimed.lost:
            link.send(type="lost", id=key)
        for assignment in list(self.assignments.values()):
            if assignment.is_cancelled:
                sessions.stop_cancelled_job(assignment)
        for member in {assignment.member for assignment in self.assignments.values() if assignment.member}:
            member.group.on_client_back(member)

    def _settle_unreported_jobs(self, reported_keys: set[str]) -> None:
        """Settle each line that the client was sent but has no job for: it was not started, or is lost.

        reported_keys: of the jobs that it has; empty after `bye`.
        """
        for assignment in self.assignments.values():
            member = assignment.member
            # the client does not know the line yet, or the result is decided
            if assignment.phase not in (AssignmentPhase.SENT, AssignmentPhase.BEGUN):
                continue
            if assignment.key in reported_keys:
                assignment.mark_begun()
            # the message with this job was lost: on_client_back() sends it again
            elif member and member.group.stage is Stage.RUNNING and assignment.phase is AssignmentPhase.SENT:
                assignment.mark_unsent()
            # it has begun, or its group was stopped: the line becomes `e`
            elif member or assignment.phase is AssignmentPhase.BEGUN:
                self.sessions.settle(assignment, VANISHED)
            # the message was lost, so the job was not started: the line becomes `.`
            else:
                self.sessions.settle(assignment, RETURNED)

    def _abandon_lines(self) -> None:
        """Forget a client that did not come back within the grace, and leave its lines as orphans."""
        sessions = self.sessions
        del sessions.clients[self.id]           # it can come again, as another Client
        undecided = [assignment for assignment in self.assignments.values() if assignment.is_undecided]
        if running_lines := [assignment.number for assignment in undecided if not assignment.is_cancelled]:
            sessions.say(f"client {self.where} did not come back within {human_time(sessions.grace)}; "
                         f"{name_lines(running_lines)} given up (if a client was killed, its jobs may still "
                         "run)")
        # of the others the results are being written
        for assignment in undecided:
            # settle() keeps the user's state.  CLAIMED: of a group, and the client never had it
            if assignment.is_cancelled or assignment.phase is AssignmentPhase.CLAIMED:
                sessions.settle(assignment, VANISHED)
            # an earlier one of a group can have stopped it, and settled this one
            elif assignment.is_undecided:
                sessions.remove_assignment(assignment, VANISHED)
                sessions.executor.post(sessions.claims.leave_as_orphan, assignment.job)

    async def serve_client(self) -> None:
        """Serve the client on one link after the other, until `bye`, or until it stays away for the grace.

        If the server exits, return at once: the lines are kept for the next server.
        """
        while link := await self._next_link():
            self._settle_unreported_jobs({job.key for job in link.reported_jobs})
            reclaimed = await self.sessions.reclaim_lines(self, link.reported_jobs)
            if reclaimed.doubt:             # the client keeps all jobs, and connects again
                link.drop(f"cannot look for the jobs now ({reclaimed.doubt})")
            elif not link.detached.done():
                self._welcome(link, reclaimed)
            await link.detached         # from here on, the client is without this link
            if self.sessions.lifetime.is_exiting:
                return
            # the client repeats its requests on the next link
            self.requested_slots = 0
            self.exits_without_jobs = False
            self.request_number = 0
            self.sessions.abort_unstarted_groups(self.assignments)
            if self.sessions.clients.get(self.id) is not self:      # it has said bye
                for assignment in self.assignments.values():
                    if assignment.member:                           # also those that were not sent
                        self.sessions.settle(assignment, VANISHED)
                return self._settle_unreported_jobs(set())
            if link is self.newest_link:        # otherwise the client is not lost
                self.sessions.say(f"client {self.where} is lost: {link.why}"
                                  f"{self.sessions.describe_kept_lines(self.assignments)}")
        if not self.sessions.lifetime.is_exiting:
            self._abandon_lines()

    # -- requests and jobs -----------------------------------------------------------------------------------

    def on_claim_message(self, message: Message) -> None:
        """Add a `claim` message to the client's earlier requests.  Raises WireError before anything changes.

        `want` (slots) and `memory` (bytes; negative: less is free) are changes, so jobs under way to the
        client do not matter.  `slots` and `last` replace those of earlier messages.
        """
        want = message.integer("want", MAX_SLOTS)
        memory_change = 0
        if "memory" in message:
            memory_change = message.integer("memory", minimum=-runmaker4.MAX_INTEGER)
        request_number = message.integer("request")
        is_last = message.boolean("last")
        self.set_slots(message)
        # perhaps more than the client has: `line_allowance` limits the jobs
        self.requested_slots = min(self.requested_slots + want, MAX_SLOTS)
        self.free_memory = min(self.free_memory + memory_change, int(self.capacity.memory))
        self.request_number = request_number
        self.exits_without_jobs = is_last
        if self.exits_without_jobs:             # only clients that request slots get the answer `nothing`
            self.requested_slots = max(self.requested_slots, 1)

    def set_slots(self, message: Message) -> None:
        """Update the number of slots, if it is in the message.  Raises WireError."""
        if "slots" in message:
            self.capacity = self.capacity._replace(slots=message.integer("slots", MAX_SLOTS))

    def subtract_requested(self, slots: int) -> None:
        self.requested_slots = max(self.requested_slots - slots, 0)

    @property
    def unwritten_bytes(self) -> int:
        return self.output_bytes - self.written_bytes

    @property
    def last_complete_event(self) -> int:
        """Return the last event that can be acknowledged once all records are written; 0: none."""
        # a result that is in the file has no assignment any more
        return min((assignment.result.event for assignment in self.assignments.values()
                    if assignment.result and assignment.result.event), default=self.newest_event + 1) - 1

    # -- messages to the client ------------------------------------------------------------------------------

    def send_message(self, **message: Any) -> None:
        if self.link:
            self.link.send(**message)

    def acknowledge(self, last_event: int) -> None:
        """Acknowledge events that are in the files; a client that is away learns of it from the `welcome`."""
        if last_event > self.last_acknowledged:
            self.last_acknowledged = last_event
            self.send_message(type="ack", n=last_event)


class ClientLink(Link, asyncio.Protocol):
    channel: ServerChannel

    def __init__(self, server: Server) -> None:
        super().__init__(ServerChannel(server.token, server.credentials), server.loop)
        self._sessions = server.sessions
        self._dispatcher = server.dispatcher
        self._summaries = server.summaries
        self._has_hello = False
        self.client: Client | None = None       # None: not welcomed yet, or detached
        self.detached: asyncio.Future[None] = self.loop.create_future()
        self.reported_jobs: list[ReportedJob] = []      # that the client has when it connects
        self._reported_bytes = 0                # their size, roughly

    def detach(self) -> None:
        """Ignore further messages on this link, and send the client nothing until it has another.

        A second call does nothing.
        """
        if not self.detached.done():
            self.detached.set_result(None)
            if self.client:
                self._dispatcher.waiting_clients.pop(self.client, None)
                self.client.link = None
            self.client = None

    def connection_made(self, transport: Any) -> None:
        peer_name = transport.get_extra_info("peername")
        # None: the peer has closed the connection; ::ffff: is the prefix of an IPv4 address in IPv6
        self.address = peer_name[0].removeprefix("::ffff:") if peer_name else "?"
        super().connection_made(transport)
        self._sessions.links[self] = None

    def handle(self, message: Message) -> None:
        """Pass a message of the client on.  Raises WireError if it is invalid, or not allowed now."""
        if self._sessions.lifetime.is_exiting:
            return                      # the client sends unacknowledged events to the next server
        kind = message.text("type")
        client = self.client
        if client and "n" in message:        # only events have one
            self._sessions.receive_event(client, kind, message)
        elif kind == "ping":
            self.post(dict(type="pong", request=message.integer("request"),
                           retry=to_text(client.retry if client else b"")))
        elif kind == "medians":
            self.post(dict(type="medians", medians=self._sessions.records.medians()))
        elif kind == "claim" and client:
            client.on_claim_message(message)
            self._dispatcher.enqueue_client(client)
        elif kind == "ready" and client:            # the shell of a group's job waits for `go`
            assignment = client.assignments.get(message.text("id"))
            if assignment and assignment.is_undecided:          # otherwise the line is settled already
                member = assignment.member
                if not member or assignment is not member.current:
                    raise WireError("that job does not wait at a gate")
                member.group.on_ready(member)
        elif kind in ("get", "place", "put") and client:
            spawn_task(self._sessions.answer_file_message(client, self, kind, message))
        elif kind == "have" and not self._has_hello:        # jobs of an earlier link; several come in turn
            jobs = [ReportedJob.from_message(item) for item in message.objects("jobs")]
            self.reported_jobs += jobs
            self._reported_bytes += sum(200 + len(job.line.text) for job in jobs)
            if self._reported_bytes > MAX_REPORTED_BYTES:
                raise WireError("more jobs than it can have")
        elif kind == "hello" and not self._has_hello:
            self._has_hello = True
            self._sessions.receive_hello(self, message)
        elif kind == "account" and client:
            client.set_slots(message)           # all, also spent ones and ones out of service
            # it starts no more jobs: a line that is claimed now would count as running, and then come back
            client.requested_slots = 0
            self._summaries.add_request(self)
        elif kind == "bye" and client:
            self._sessions.on_bye(client, self)
        else:
            raise WireError(f"an unexpected message {kind!a}")

    def on_disconnected(self, why: str) -> None:
        del self._sessions.links[self]
        self.why = why
        self.detach()


# ======== Records ===========================================================================================
#
# Events of clients' runs go to the sinks that a runner uses.


NO_PIPE = -1                            # the descriptor of a client's streams


class Records:

    def __init__(self, stores: tuple[LogFile | None, OutDir | None, JobLog | None], console: Writer | None,
                 executor: FileExecutor) -> None:
        """stores: of -l, output directory and --joblog; console: of --print.  None: not given."""
        log, self._outdir, joblog = stores
        self.sinks: list[Sink] = [*filter(None, (
            joblog, Console(console, with_output=True) if console else None, self._outdir, log))]
        self._console = console
        self._executor = executor
        # the programs of the last runs that ended well, and their seconds
        self._good_runs: deque[tuple[bytes, float]] = deque(maxlen=1000)

    def is_behind(self, limit: int) -> bool:
        return self._executor.backlog > limit or (self._console is not None and self._console.backlog > limit)

    def medians(self) -> list[dict[str, object]]:
        """Return the median seconds of each program that enough of the last runs were of."""
        run_times: dict[bytes, list[float]] = {}
        for program, run_time in self._good_runs:
            run_times.setdefault(program, []).append(run_time)
        return [dict(program=to_text(program), seconds=seconds) for program, times in run_times.items()
                if (seconds := runmaker4.median(times))]

    def begin_run(self, assignment: Assignment, message: Message) -> None:
        """Begin the records of a run.  Raises WireError.

        Of a running job that a client brings back after the grace, or from another server, `begin` comes once
        more, and new records begin.
        """
        begin = RunFields(message, BEGIN)
        if assignment.run:
            raise WireError("the run goes on already")
        run = assignment.run = Run(
            assignment.job,
            [message.text("slot", MAX_NAME_CHARS)],
            os.fsencode(assignment.client.name),
            self.sinks,
        )
        run.requested_memory, run.directory = begin.promised or 0, assignment.client.directory
        run.started_at = begin.time
        run.shell = Shell(begin.pid, to_bytes(begin.run)) if begin.pid else None
        run.streams = Stream(b"stdout", NO_PIPE), Stream(b"stderr", NO_PIPE)
        if run.shell:                   # None: it could not be started
            for sink in run.sinks:
                sink.on_started(run)

    def add_output(self, assignment: Assignment, message: Message) -> None:
        """Pass on the output in an event.  Raises WireError."""
        run = assignment.run
        stream_name, data = message.data("stream"), message.data("data")
        streams = [stream for stream in run.streams if stream.name == stream_name] if run else []
        if not run or not run.shell or not streams:
            raise WireError("output of no run, or no stream")
        run.add_output(streams[0], data)
        assignment.last_output = data
        # short output comes with the `end`, so this run is not short: files get all of its output
        if self._outdir:
            self._outdir.write_output(run)

    def end_run(self, assignment: Assignment, message: Message) -> None:
        """End the records of a run.  Raises WireError.

        Without an exit status (here it is negative), the job was not started, or it is unknown how it ended.
        """
        if not (run := assignment.run):
            raise WireError("the end of no run")
        # read all first: after a WireError, abandon_run() must find the run as it was
        end = RunFields(message, END)
        timeout = message.seconds("timeout")
        received = message.list_of("received", int)
        cause = message.text("cause", 16)
        status = end.signal or end.exit << 8            # as from waitpid(2); negative: unknown
        if status >= 0:
            if not run.shell:
                raise WireError("the exit status of no process")
            run.shell.cpu, run.shell.memory, run.shell.memory_below = end.cpu, end.memory, end.memory_below
            for stream, text in zip(run.streams, (end.stdout, end.stderr)):
                if text:
                    assignment.last_output = to_bytes(text)
                    run.add_output(stream, assignment.last_output)
        run.duration, run.cause, run.why = end.seconds or 0.0, cause, end.why
        assignment.job.travelled = end.travelled
        if end.state == "d" and len(program := name_program(run.job.command)) < 256:
            self._good_runs.append((program, run.duration))
        # the client's counts: to a next server it does not send the earlier output again
        for stream, byte_count in zip(run.streams, received):
            stream.received = byte_count
        assignment.run = None
        # bytes or seconds, by the cause
        limit = run.requested_memory if run.cause == "memory" else timeout
        for sink in run.sinks:
            if status >= 0:
                sink.on_ended(run, RunResult(status, run.cause, limit, end.memory or 0))
            else:
                sink.on_no_result(run)

    @staticmethod
    def abandon_run(assignment: Assignment) -> None:
        """End the records of the run, if any, when no `end` can come."""
        if run := assignment.run:
            assignment.run = None
            run.cause = "cancelled" if assignment.is_cancelled else "lost" * (not run.why)
            run.duration = max(time.time() - run.started_at, 0.0)
            for sink in run.sinks:
                sink.on_no_result(run)

    def on_tick(self) -> None:
        for sink in self.sinks:
            sink.on_tick()

    def flush(self) -> None:
        if self._outdir:
            self._outdir.flush()


# ======== Groups ============================================================================================
#
# The jobs of a group (together=) start together:
#
#     1.  The server claims all lines.  Each client gets the first job, starts the shell, which waits at a
#        pipe (the gate), and sends `ready`.
#     2.  When all clients are ready, each gets one small frame, `go`, and lets the shell go on.
#     3.  If a client is lost before `go`, or gives the job back, the attempt ends: no job has begun, and all
#        lines become `.` again.  A client without a connection shuts the gate for good.
#
# After `go`, a client's further jobs follow in order.

GroupJobs = list[tuple[Line, JobSettings]]


def jobs_by_host(file: Reader, jobs: GroupJobs) -> dict[str, GroupJobs]:
    """Return the new jobs of a group by host, to plan their start.

    Below `#RUN host=alice,bob` jobs go to alice and bob in turn.  All jobs below the directive count for the
    turn, so that a job keeps its host when others are done.  Raises FileChangedError if a line has moved;
    OSError.
    """
    hosts: dict[str, GroupJobs] = {}
    for settings, jobs_below in itertools.groupby(jobs, lambda job: job[1]):       # by directive
        lines = [line for line, _ in jobs_below]
        indexes = {line.offset: 0 for line in lines}            # a single host needs no others
        if settings.line and len(settings.hosts) > 1:
            indexes = {}
            for index, line in enumerate(Scan(file, settings.line.offset)):
                indexes[line.offset] = index
                if line.offset >= lines[-1].offset:
                    break
        for line in lines:
            if line.offset not in indexes:
                raise FileChangedError
            hosts.setdefault(settings.hosts[indexes[line.offset] % len(settings.hosts)], []).append(
                (line, settings))
    return hosts


@dataclass(frozen=True)
class GroupPlan:
    """A group that waits for hosts."""
    pending: PendingGroup
    jobs_by_host: dict[str, GroupJobs]          # by entry of host=


@dataclass(eq=False)
class Member:
    """A host of a group with claimed lines."""
    group: Group
    host: str
    client: Client
    jobs: list[Assignment]                      # unfinished, in order; the client has at most the first
    is_at_gate: bool = False                    # also when it was released
    is_lost: bool = False                       # see LineResult.loses_host

    @property
    def current(self) -> Assignment | None:
        """Return the first job; None: it must still be sent, or no job is left.

        A decided one stays the first until its state is written.
        """
        return self.jobs[0] if self.jobs and self.jobs[0].phase is not AssignmentPhase.CLAIMED else None

    @property
    def is_ready(self) -> bool:
        return (self.is_at_gate and self.current is not None
                and self.current.phase is AssignmentPhase.SENT and self.client.link is not None)

    def stop_current(self) -> None:
        if self.current and self.current.is_undecided:
            self.current.send_message("stop", cancelled=False)


# Only methods of Group change its stage:
#
#     event                          PREPARING             RUNNING                         STOPPED
#     all hosts are ready            RUNNING: `go`         -                               -
#     10 s have passed               CALLED_OFF            -                               -
#     a client is lost, or the       CALLED_OFF            -                               -
#       server drains: abort()
#     a job is finished, and not     CALLED_OFF            the host gets the next job      -
#       in error
#     a job is in error              the host is lost      the host is lost for some       -
#                                                          causes, else: the next job
#     fewer hosts than min-hosts     STOPPED               STOPPED: running jobs are       -
#       remain                                             stopped, the others are `e`
#     a client comes back            impossible            it gets the next job            its job is stopped
#
# RUNNING and STOPPED end when all jobs are finished.  In CALLED_OFF no line belongs to the group.


class Stage(Enum):
    PREPARING = "shells start, and wait at the gate"
    RUNNING = "the jobs run"
    STOPPED = "too many hosts are lost"
    CALLED_OFF = "called off"


class Group:
    MAX_PREPARING_SECONDS = 10.0

    def __init__(self, dispatcher: Dispatcher, pending: PendingGroup,
                 assignments: dict[str, list[Assignment]]) -> None:
        """assignments: the claimed lines by entry of host=; those of one entry are for one client."""
        self._dispatcher = dispatcher
        self._sessions = dispatcher.sessions
        self._stdout = dispatcher.stdout
        self._name = pending.name
        # the directive of the first job decides
        min_hosts = pending.jobs[0][1].min_hosts
        self._members: list[Member] = []
        for host, jobs in assignments.items():
            member = Member(self, host, jobs[0].client, [*jobs])
            self._members.append(member)
            member.client.group_count += 1
            for assignment in jobs:
                assignment.member = member
        # None: all must remain
        self._min_hosts = len(self._members) if min_hosts is None else min(min_hosts, len(self._members))
        self.stage = Stage.PREPARING
        self._result_lines: list[tuple[int, bytes]] = []        # line number, text

    def prepare(self) -> None:
        """Send each host the first of its jobs, to hold at the gate."""
        self._prepare_timer = self._sessions.loop.call_later(
            self.MAX_PREPARING_SECONDS, self._on_prepare_timeout)
        for member in self._members:
            self._send_first(member)

    def on_ready(self, member: Member) -> None:
        member.is_at_gate = True
        self._start_if_ready()

    def _start_if_ready(self) -> None:
        """Let the first jobs of all hosts begin (`go`), once each host is ready or lost."""
        if self.stage is not Stage.PREPARING:
            return
        if not all(member.is_lost or member.is_ready for member in self._members):
            return
        self.stage = Stage.RUNNING
        self._prepare_timer.cancel()
        for member in self._members:
            if member.current and not member.is_lost:
                # from now on, `sent_at` is the time of `go`
                member.current.mark_sent()
                member.current.mark_begun()
                member.current.send_message("go")

    def _on_prepare_timeout(self) -> None:
        self._dispatcher.say_once(
            f"group {printable(self._name)}: not ready within {human_time(self.MAX_PREPARING_SECONDS)}: "
            f"{printable(', '.join(member.host for member in self._members if not member.is_ready))}; "
            "trying again"
        )
        self.abort()

    def abort(self) -> None:
        """Call the group off if no job has begun: all lines become `.`, for a later attempt."""
        if self.stage is not Stage.PREPARING:
            return
        self.stage = Stage.CALLED_OFF
        self._prepare_timer.cancel()
        for member in self._members:
            member.client.group_count -= 1
            member.stop_current()
            for assignment in member.jobs:
                assignment.member = None        # so that on_job_finished() is not called
                self._sessions.settle(assignment, RETURNED)
        # the next attempt could fail at once
        self._dispatcher.hand_out_lines_soon(group_pause_seconds=1.0)

    def on_client_back(self, member: Member) -> None:
        if not member.current:
            self._send_first(member)
        elif self.stage is Stage.STOPPED:
            member.stop_current()

    def _send_first(self, member: Member) -> None:
        """Send a host the first of its unfinished jobs; a client that is away gets it when it is back."""
        if not member.jobs or not member.client.link:
            return
        assignment = member.jobs[0]
        if not self._dispatcher.is_startable(assignment):
            self._sessions.settle(assignment, UNSTARTED)
            return
        if self.stage is Stage.PREPARING:                   # the client has not asked for later jobs
            member.client.subtract_requested(1)
        self._dispatcher.send_jobs(member.client, [assignment])

    def on_job_finished(self, member: Member, assignment: Assignment, line_result: LineResult) -> None:
        """Go on after a job of a host is over: its result is in the file, or never will be.

        In PREPARING an error loses the host; any other end means that the job was given back or cancelled.
        """
        was_preparing = self.stage is Stage.PREPARING
        if was_preparing and line_result.state != ERROR:
            return self.abort()
        member.jobs.remove(assignment)
        elapsed = human_time(boottime() - assignment.sent_at) if assignment.sent_at else ""
        # a terminal gets no control characters
        command = one_line(assignment.job.command) if self._stdout.terminal else assignment.job.command
        self._result_lines.append((assignment.number, b"  %-20s %-20s %8s  %s\n" % (
            os.fsencode(printable(member.host)), os.fsencode(line_result.result_text), elapsed.encode(),
            command)))
        if was_preparing or line_result.loses_host:
            member.is_lost = True
        if self.stage is not Stage.STOPPED and self._min_hosts > sum(
                not other.is_lost for other in self._members):
            self._stop_group()
        elif self.stage is Stage.PREPARING:     # the others no longer wait for this host
            self._settle_unsent_jobs(member)
            self._start_if_ready()
        elif not member.current:
            self._send_first(member)
        if not any(other.jobs for other in self._members):
            self._finish()

    def _stop_group(self) -> None:
        self.stage = Stage.STOPPED
        self._prepare_timer.cancel()
        for member in self._members:
            member.stop_current()
            self._settle_unsent_jobs(member)

    def _settle_unsent_jobs(self, member: Member) -> None:
        for assignment in member.jobs:
            if assignment.phase is AssignmentPhase.CLAIMED:
                self._sessions.settle(assignment, STOPPED)

    def _finish(self) -> None:
        """Print the results in the order of the file, and let the hosts get other jobs."""
        lost_count = sum(member.is_lost for member in self._members)
        verdict = "failed" if self.stage is Stage.STOPPED else "succeeded"
        # for example 'name: succeeded: 0 of 3 hosts lost (min-hosts 3)'
        self._stdout.write(os.fsencode(
            f"{printable(self._name)}: {verdict}: {lost_count} of {plural(len(self._members), 'host')} "
            f"lost (min-hosts {self._min_hosts})\n"
        ) + b"".join(line for _, line in sorted(self._result_lines)))
        for member in self._members:
            member.client.group_count -= 1
        self._dispatcher.hand_out_lines_soon()


# ======== Summaries =========================================================================================
#
# Clients that exit need a summary of the file, and so does the server.  A long file takes a while to read, so
# one summary answers all earlier requests, and the next begins after a pause of four times the duration: some
# fifth of a CPU, however many clients ask.


class Everybody(Consumer):
    """All who could come: each new line suits one of them."""

    def matches_host(self, pattern: str) -> bool:
        return True


EVERYBODY = Everybody("")


def make_summary_fields(summary: Summary | None, client: Client) -> Fields | None:
    """Return a summary as message fields; None: the file is unreadable."""
    if not summary:
        return None
    return dict(
        now=summary.counts._asdict(),           # by state
        bad=summary.bad_lines,                  # numbers of failed lines
        again=summary.can_retry,                # by -r
        left=summary.counts.new > 0 and client not in summary.without_jobs,     # for this client
        stopped=client in summary.with_jobs,    # by a failure above: all that is left for this client
        first_stray=summary.first_stray,        # a line that is neither a job nor a comment; 0: none
        lack=summary.without_jobs.get(client, ""),
    )


@dataclass(eq=False)
class Summaries:
    PAUSE_FACTOR = 4                    # in durations of the last one

    _executor: FileExecutor
    _lifetime: Lifetime
    _reader: JobReader
    _requests: dict[ClientLink, None] = field(default_factory=dict)     # oldest first
    _answer_task: asyncio.Future[None] | None = None    # None: no request came yet
    _next_summary_at: float = 0.0           # boottime()

    def add_request(self, link: ClientLink) -> None:
        self._requests[link] = None
        if not self._answer_task or self._answer_task.done():
            self._answer_task = spawn_task(self._answer_requests())

    async def _answer_requests(self) -> None:
        while self._requests:
            await asyncio.sleep(max(self._next_summary_at - boottime(), 0.0))
            links = self._requests
            self._requests = {}
            # None: the link is detached by now
            summary = await self.make([link.client for link in links if link.client])
            for link in links:
                if link.client:
                    link.send(type="account", account=make_summary_fields(summary, link.client))

    async def make(self, clients: Sequence[Client] = ()) -> Summary | None:
        """Return a summary for the exit status of clients or the server; None: the file is unreadable.

        clients: those that exit; the summary has which of them could run jobs that are left.
        """
        looks_left = self._reader.MAX_LOOKS
        while True:
            throttle = Throttle()
            summary = await self._executor.call(self._summarize_file, clients, throttle)
            self._next_summary_at = boottime() + throttle.pause_seconds(self.PAUSE_FACTOR)
            looks_left -= 1
            # an editor that saves in place empties the file first
            if (summary and not summary.half_saved) or not looks_left or self._lifetime.is_exiting:
                return summary
            await asyncio.sleep(self._reader.interval)

    def _summarize_file(self, clients: Sequence[Client], throttle: Throttle) -> Summary | None:
        """Scan the file once, in the executor; None: it cannot be read.

        EVERYBODY could run any new job, so each counts as left, and the server's exit status is 1.
        """
        with throttle, suppress(OSError):
            self._reader.open_files()
            return self._reader.summarize([*clients, EVERYBODY], groups=True)
        return None


# ======== Sessions ==========================================================================================
#
# An event of a client goes to `Records`, a result to settle(), which decides the line's state and has it
# written.  Then remove_assignment() forgets the line, and the event can be acknowledged.


@dataclass(eq=False)
class Sessions:
    """The clients that are connected or can come back, and their lines.

    Between add_assignment() and remove_assignment() an assignment is in `assignments` here and in the client,
    by key, and the line is locked.
    """

    loop: asyncio.AbstractEventLoop
    executor: FileExecutor
    claims: Claims
    records: Records
    runner_stats: RunnerStats
    lifetime: Lifetime
    say: Say
    on_error: Say
    path: str                           # of the job file
    directory: bytes                    # in which the server was started
    grace: float                        # seconds in which a lost client can come back
    max_failed: int                     # 0: no limit
    clients: dict[str, Client] = field(default_factory=dict)
    assignments: Assignments = field(default_factory=dict)
    _unacknowledged: set[Client] = field(default_factory=set)
    is_held_back: bool = False          # acknowledging waits for the disk or terminal
    links: dict[ClientLink, None] = field(default_factory=dict)     # oldest first
    # of results that are in the file, oldest first; for reclaim_lines(), as a client that connects again
    # reports a job until the result is acknowledged.  OrderedDict: a dict takes ever longer to find the first
    settled_keys: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._reclaiming = asyncio.Lock()       # two clients can name one job
        directory, file_name = os.path.split(os.path.abspath(os.fsencode(self.path)))
        self.tree = FileTree(directory, refused=(file_name, file_name + b".out"))
        self._held_bytes = 0                    # of `get` and `put` that are not answered
        self._say_once = once_per_subject(self.say)
        self._bringers: dict[int, int] = {}     # by the hash of a result's path: the line that brought it

    # -- lines that clients have -----------------------------------------------------------------------------

    def add_assignment(self, assignment: Assignment) -> None:
        assignment.client.assignments[assignment.key] = assignment
        self.assignments[assignment.key] = assignment

    def remove_assignment(self, assignment: Assignment, line_result: LineResult) -> None:
        """Take a line off its client, end the records, and notify the group; a second call does nothing.

        The job lock is not freed here: whoever settles, loses or leaves the line has `Claims` do that.
        """
        if assignment.phase is AssignmentPhase.OVER:
            return
        assignment.mark_over()
        files = assignment.files or NO_FILES
        self.tree.forget(path for path, (_, version) in assignment.travelled.items()
                         if files.has_result(path) and (line_result.state != DONE or version == UNMADE))
        # otherwise the client is back after the grace, with a new assignment
        if self.assignments.get(assignment.key) is assignment:
            del self.assignments[assignment.key]
        del assignment.client.assignments[assignment.key]
        if not self.assignments:
            self.lifetime.may_end.set()
        self.records.abandon_run(assignment)
        if assignment.member:
            assignment.member.group.on_job_finished(assignment.member, assignment, line_result)

    def settle(self, assignment: Assignment, proposed_result: LineResult) -> None:
        """Decide the result of a line, and have it written soon; a later call for the line does nothing.

        The line stays assigned until the result is written, or never can be: not in this call, so callers may
        loop over assignments.
        """
        if not (line_result := assignment.decide_result(proposed_result)):
            return
        self._count_quick_jobs(assignment, line_result.state)
        spawn_task(self._write_result(assignment, line_result))

    def _count_quick_jobs(self, assignment: Assignment, state: bytes) -> None:
        """Count for Client.slots_to_fill and Client.why_distrusted.

        If jobs fail quickly at a client that does others, they can be to blame: begin anew for all clients.
        """
        client, seconds = assignment.client, boottime() - assignment.sent_at
        client.short_jobs_in_row += 1
        if state != DONE or seconds >= SHORT_JOB_SECONDS:
            client.short_jobs_in_row = 0
        if state == DONE:
            client.quick_failures = None
        elif (seconds >= QUICK_SECONDS or state not in FAILED + ERROR or assignment.member
                or assignment.is_refused):
            pass
        elif client.quick_failures is None:
            for other in self.clients.values():
                if other.quick_failures:        # not None: then a job was done there
                    other.quick_failures = []
        else:
            client.quick_failures.append(b"%b: %.80b: %.200b" % (
                client.directory, assignment.job.command,
                assignment.last_output.strip().rpartition(b"\n")[2]))          # the last line
            if len(client.quick_failures) == MAX_QUICK_FAILURES and not self._has_good_client():
                client.awaited = [other for other in self.assignments.values() if other.client is not client
                                  and other.sent_at < assignment.sent_at and other.is_undecided]
                if client.awaited:
                    self.say(f"client {client.where} waits until another client has done a job: "
                             f"{client.why_distrusted}")
                    spawn_task(self._await_others(client))
                else:
                    client.quick_failures = []

    def _has_good_client(self) -> bool:
        return any(client.quick_failures is None for client in self.clients.values())

    async def _await_others(self, client: Client) -> None:
        """Let a client in doubt wait as long as jobs run that others got before its last; then begin anew."""
        while not self._has_good_client() and any(other.is_undecided for other in client.awaited):
            await asyncio.sleep(POLL_SECONDS)
        client.awaited = []
        if client.quick_failures:
            client.quick_failures = []

    async def _write_result(self, assignment: Assignment, line_result: LineResult) -> None:
        """Write a decided result to the file, and forget the assignment once it is there, or never can be.

        If a user has cancelled the job, the state in the file remains, and nothing is written.
        """
        # results that come before the executor's turn share one flush of the records
        await self.executor.call(int)
        # before the state: we can be killed in between, and no client sends a run again whose result is there
        self.records.flush()
        error = await write_with_retries(
            lambda job, state: self.executor.call(self.claims.finish, job, state),
            assignment.job, line_result.state, self.say)
        # answers to earlier calls come first: a count among them lacks a `.` that we have written, and only
        # the assignment keeps clients from exiting
        await asyncio.sleep(0)
        self.runner_stats.add_result(assignment.job, line_result.state)
        if error:
            self.say(f"line {assignment.number}: {error}")
            self.runner_stats.add_unwritten(assignment.job, line_result.state)
            assignment.send_message("fault", text=error[:MAX_TEXT_CHARS], cancelled=assignment.is_cancelled)
        elif line_result.event:                 # the client can report the job until this is acknowledged
            self.settled_keys[assignment.key] = None
            if len(self.settled_keys) > MAX_SETTLED_KEYS:
                self.settled_keys.popitem(last=False)
        self.remove_assignment(assignment, line_result)
        if self.lifetime.is_serving and (
                why := self.runner_stats.find_too_many_failures(self.max_failed)):
            self.drain(why)
        self.acknowledge_soon(assignment.client)

    async def flush_results(self) -> None:
        """Wait until each decided result is written, or was tried once."""
        await asyncio.sleep(0)                  # _write_result() begins for all
        await self.executor.flush()             # the calls before it are made
        await self.executor.flush()             # the states are written

    async def watch_claimed_lines(self) -> None:
        """Now and then check the claimed lines, and have cancelled and lost jobs killed.  Never returns."""
        while True:
            await asyncio.sleep(self.claims.interval / 2)
            # "cancelled": a user has set the line's state; "lost": another runner has the line
            causes = await self.executor.call(self.claims.queue.check_jobs)
            for assignment in list(self.assignments.values()):
                cause = causes.get(assignment.job)
                if cause == "cancelled":
                    self.stop_cancelled_job(assignment)
                # _write_result() reports that of a decided one
                elif cause == "lost" and assignment.is_undecided:
                    self.say(f"line {assignment.number}: another runner took over this job")
                    self.runner_stats.add_result(assignment.job, ERROR)
                    assignment.send_message("lost")
                    self.remove_assignment(assignment, TAKEN)

    def stop_cancelled_job(self, assignment: Assignment) -> None:
        if assignment.phase is AssignmentPhase.CLAIMED:
            self.settle(assignment, LineResult(CANCELLED, "cancelled"))
        else:                                   # if the client is away, _welcome() repeats this
            assignment.send_message("stop", cancelled=True)

    # -- no more jobs ----------------------------------------------------------------------------------------

    def drain(self, why: str) -> None:
        self.say(f"{why}: handing out no more jobs, waiting for {plural(len(self.assignments), 'job')}")
        self.lifetime.drain()

    # -- clients that go and come back -----------------------------------------------------------------------

    @staticmethod
    def abort_unstarted_groups(assignments: Assignments) -> None:
        for assignment in assignments.values():
            if assignment.group:
                assignment.group.abort()        # sets `assignment.member` of each unstarted job to None

    def describe_kept_lines(self, assignments: Assignments) -> str:
        """Return a text such as '; lines 3, 5 kept for 60s'; '': none are."""
        lines = [assignment.number for assignment in assignments.values() if assignment.is_undecided]
        return f"; {name_lines(lines)} kept for {human_time(self.grace)}" if lines else ""

    def receive_hello(self, link: ClientLink, message: Message) -> None:
        """Serve a new client, or wake the task of one that is back within the grace.  Raises WireError."""
        if len({job.key for job in link.reported_jobs}) < len(link.reported_jobs):
            raise WireError("one job twice")
        client_id = message.hexadecimal("client", 16)
        client = self.clients.get(client_id) or Client(self, client_id)
        # this wakes serve_client(); a WireError comes before a new client is kept, which would have no task
        client.on_hello(link, message)
        if client_id not in self.clients:
            self.say(f"client {client.where} came")
            self.clients[client_id] = client
            spawn_task(client.serve_client())

    def on_bye(self, client: Client, link: ClientLink) -> None:
        self.say(f"client {client.where} left")
        del self.clients[client.id]
        link.detach()

    # -- lines of the server before us, and of clients that come back ----------------------------------------

    async def inherit_lines(self, lock_fd: int) -> None:
        """Hold the job locks of the previous server for the grace, in which clients come for them.

        Raises UsageError: the server must not start, and the keeper holds the locks for the next one.
        """
        try:
            count = await self.executor.call(self.claims.inherit, lock_fd)
        except OSError as error:
            raise UsageError(f"{self.path}: {error_text(error)} (start the server again)") from None
        if count is None:
            # all job locks in the old lock file, also for the keeper, which has this description
            with suppress(OSError):
                unlock(lock_fd, 0, BUCKETS_END)
            self.say("the lock file was removed; the lines of the previous server cannot be taken over")
        elif count:
            self.say(
                f"took over {plural(count, 'running job')} of the previous server; waiting "
                f"{human_time(self.grace)} for the clients"
            )
            # otherwise lines that no client names would stay `r` and locked
            self.loop.call_later(self.grace, self.executor.post, self.claims.drop_inherited_locks)

    async def reclaim_lines(self, client: Client, reported: Sequence[ReportedJob]) -> Reclaimed:
        """Give a client the lines of the jobs that it reports; return `lost` ones, or the `doubt`.

        In doubt try again; in the last try a missing line counts as gone.  `jobs` has only those of that try.
        Meanwhile the client can be lost again.
        """
        file = self.claims.file
        deadline = boottime() + file.max_absence
        while True:
            is_last_try = boottime() >= deadline
            async with self._reclaiming:
                unassigned = [job for job in reported if job.key not in self.assignments
                              and job.key not in self.settled_keys]
                reclaimed = await self.executor.call(
                    self.claims.reclaim_lines, client, unassigned, is_last_try)
                for key, job in reclaimed.jobs.items():
                    self.add_assignment(Assignment(key, client, job, AssignmentPhase.BEGUN, files=None))
            # an earlier try can have assigned some; and while the executor searched, a result can have been
            # written, or a line lost
            reclaimed.lost = [job.key for job in reported if not any(
                job.key in known for known in (client.assignments, reclaimed.settled, self.settled_keys))]
            if is_last_try or not reclaimed.doubt:
                return reclaimed
            await asyncio.sleep(SEARCH_INTERVALS * file.interval)

    # -- files that travel -----------------------------------------------------------------------------------

    async def answer_file_message(self, client: Client, link: ClientLink, kind: str,
                                  message: Message) -> None:
        """Answer a `get`, `place` or `put`, if the job has that file."""
        piece, data = b"", message.file_bytes
        held_bytes = 1000 + len(data)
        self._held_bytes += held_bytes
        try:
            ask, path, offset = message.integer("ask"), message.data("path"), message.integer("offset")
            length = message.integer("length", runmaker4.LARGE_PIECE_BYTES) if kind == "get" else 0
            assignment = client.assignments.get(message.text("id"))
            files = await self._find_files(assignment)
            if not (assignment and (path in files.send if kind == "get" else files.has_result(path))):
                if assignment and kind == "put" and not assignment.sent_at:     # see _find_files()
                    assignment.files = None
                    raise OSError(errno.ESTALE, "no longer in fetch=")
                raise OSError(errno.EPERM, "no file of this job")
            if path not in assignment.travelled and len(assignment.travelled) >= runmaker4.MAX_FILES:
                raise OSError(errno.EPERM, f"more than {runmaker4.MAX_FILES:,} files of one job")
            if self._held_bytes > MAX_HELD_BYTES:
                raise OSError(errno.EAGAIN, "too many files travel")
            if kind == "get":
                async with client.turn:         # so that other messages wait for one piece only
                    await link.writable.wait()
                    if link.detached.done():
                        return                  # it asks again on its next link
                    version, piece = await self.tree.call(self.tree.read_piece, path, offset, length)
                answer: Fields = version._asdict()
                end = offset + len(piece)
            else:
                version = FileVersion.from_message(message) if kind == "put" else UNMADE
                end = version.size
                # otherwise the client has lost the last answer
                if assignment.travelled.setdefault(path, (0, version)) != (end, version) or not end:
                    end = await self.tree.call(
                        self.tree.add_piece, path, version, offset, data, assignment.key)
                answer = dict(end=end) if kind == "put" else {}
                if end == version.size and version != UNMADE:
                    self._report_replaced(path, assignment.number)
            if end <= version.size:             # otherwise only the version was asked for
                assignment.travelled[path] = end, version
        except WireError as error:
            return link.drop(str(error))
        except OSError as error:
            why = error_text(error)
            # what a job has made in hours waits until its place is mended
            again = error.errno in FULL_OR_BUSY or (kind == "put"
                                                    and error.errno not in (errno.EPERM, errno.ENAMETOOLONG))
            if again and assignment and kind != "get":
                self._say_once(to_text(path), f"line {assignment.number}: {display_text(path)}: {why}; its "
                               "client tries again")
            elif assignment and not again:
                assignment.is_refused = True
            answer = dict(error=why, again=again)
        finally:
            self._held_bytes -= held_bytes
        link.post(dict(answer, type="piece", ask=ask), piece)
        link.flush()

    def _report_replaced(self, path: bytes, number: int) -> None:
        """Report once if a line brings a result in place of that of another line."""
        if len(self._bringers) < MAX_BRINGERS:
            other_number = self._bringers.setdefault(hash(path), number)
            if other_number != number:
                self._say_once("replaced", f"line {number}: {display_text(path)} replaces the result of line "
                               f"{other_number} (name results by a word of the command)")

    def describe_travelling(self) -> str:
        """Return for example '; files: 3M of 40M for lines 5, 7'; '': none travel now."""
        moving = {assignment.number: assignment.travelled.values() for assignment in self.assignments.values()
                  if any(end < version.size for end, version in assignment.travelled.values())}
        ends = memory_text(sum(end for files in moving.values() for end, _ in files))
        sizes = memory_text(sum(version.size for files in moving.values() for _, version in files))
        return f"; files: {ends} of {sizes} for {name_lines(moving)}" if moving else ""

    async def _find_files(self, assignment: Assignment | None) -> TravellingFiles:
        """Return the files of a job; read the directive again if we have not sent the job.

        An earlier server has, or we did before the grace was over.
        """
        if not assignment or not assignment.is_undecided:
            return NO_FILES
        if assignment.files is None:
            settings = await self.executor.call(self.claims.find_settings, assignment.job)
            assignment.files = NO_FILES
            with suppress(ValueError):
                assignment.files = self.files_of(settings, assignment.job.command)
        return assignment.files

    def files_of(self, settings: JobSettings, command: bytes) -> TravellingFiles:
        """Return the files that directive and command name.  Raises ValueError."""
        files = TravellingFiles(
            fill_in_words(settings.send, command), fill_in_words(settings.fetch, command, settings.scratch),
            bool(settings.scratch))
        if (len(runmaker4.encode([*map(to_text, (command, *files.send, *files.fetch))]))
                > runmaker4.MAX_FRAME_BYTES // 2):
            raise ValueError("send= and fetch= are too long (let an archive of these files travel)")
        return files

    # -- events ----------------------------------------------------------------------------------------------

    def receive_event(self, client: Client, kind: str, message: Message) -> None:
        """Apply an event of a client, once: clients send events again on a new link.

        Raises WireError; also then the event is acknowledged, so that it does not come again on each link.
        """
        event_number = message.integer("n")
        if event_number <= client.newest_event:
            return
        client.newest_event = event_number
        try:
            assignment = client.assignments.get(message.text("id"))
            if assignment is None or not assignment.is_undecided:       # lost, or settled already
                return
            if assignment.phase is AssignmentPhase.CLAIMED:
                raise WireError("it was not given that job")
            if kind == "finish":
                self.settle(assignment, self._read_result(assignment, message, event_number))
            elif kind == "begin":
                has_process = message.integer("pid") > 0        # 0: it could not be started
                if has_process and assignment.is_gated:
                    raise WireError("that job must wait at the gate")
                self.records.begin_run(assignment, message)
                if has_process:
                    assignment.mark_begun()
            elif kind == "output":
                client.output_bytes += len(message.data("data"))
                if client.unwritten_bytes > OUTPUT_WINDOW_BYTES:
                    raise WireError("more output than the window allows")
                self.records.add_output(assignment, message)
            elif kind == "end":
                self.records.end_run(assignment, message)
            else:
                raise WireError(f"an unknown message {kind!a}")
        except WireError as error:
            self.on_error(f"client {client.where}: invalid event '{kind}', not handled: {error}")
            raise
        finally:
            self.acknowledge_soon(client)

    @staticmethod
    def _read_result(assignment: Assignment, message: Message, event_number: int) -> LineResult:
        """Return the result of a job from a `finish`.  Raises WireError."""
        state = message.state_byte("state")
        is_cancelled = state == CANCELLED and assignment.is_cancelled
        # NEW: given back, as it was not begun
        if not (is_cancelled or (state == NEW and not assignment.run) or state in (DONE, FAILED, ERROR)):
            raise WireError("not the end of a job")
        return LineResult(state, message.text("how", 64),
                          "lost" in message and message.boolean("lost"), event_number)

    # -- acknowledging ---------------------------------------------------------------------------------------

    def acknowledge_soon(self, client: Client) -> None:
        """Acknowledge a client's events a moment later, so that many share a message.

        On a network file system (the executor has a thread), a flush of the journal costs some five round
        trips, so it is left to the next flush_records().
        """
        # otherwise a call is due already
        if not self._unacknowledged and not self.executor.pool:
            self.loop.call_later(ACKNOWLEDGE_SECONDS, self.acknowledge)
        self._unacknowledged.add(client)
        if client.unwritten_bytes > OUTPUT_WINDOW_BYTES // 2:       # at the whole window the client stops
            self.acknowledge()

    def acknowledge(self) -> None:
        """Acknowledge all events that came, once they are in the files.

        While the disk or terminal is too slow, do nothing; on_writer_relieved() calls this again.
        """
        self.records.flush()
        # a server that exits gets no further output
        self.is_held_back = self.records.is_behind(Writer.HIGH_BACKLOG) and not self.lifetime.is_exiting
        if self.is_held_back:
            return
        # as of now: events that come before on_written() are not in the files then
        received = [(client, client.last_complete_event, client.output_bytes)
                    for client in self._unacknowledged]
        self._unacknowledged.clear()

        def on_written() -> None:
            for client, last_event, output_bytes in received:
                client.written_bytes = output_bytes
                client.acknowledge(last_event)

        self.executor.then(on_written)          # after the calls that flush() has just posted

    def flush_records(self) -> None:
        self.records.on_tick()
        self.acknowledge()


# ======== Recovery ==========================================================================================
#
# A client can bring jobs that this server has not assigned: of an earlier server, or after the grace.  It
# names line and command, and reclaim_lines() answers:
#
#     the line with that number and command, or
#     the only line of that command                                 answer
#     has the job's result                                          settled
#     is `r` (or `e` or `.`, unless the result is that), and no     the client has that line
#       other job or runner has it
#     was the previous server's, and a user has set its state       stop: the job is cancelled
#     otherwise, or there is none                                   lost: the client kills the job
#
# So if an edit has moved one of several equal lines while no server ran, its job is lost.
#
# No second copy can start: for the grace, lines with job locks of the previous server have no other runner,
# and any other line is claimed as by a runner, under the command mutex and by the count of job locks.
#
# While the answer is in doubt (the file is unreadable or can be half saved, or another process is changing a
# line of the command), the server retries, then drops the connection: the client keeps the jobs, and comes
# back.


@dataclass(frozen=True)
class ReportedJob:
    key: str
    line: Line
    result: bytes | None                # None: the job has not finished

    @classmethod
    def from_message(cls, entry: Message) -> ReportedJob:
        """Return one job from a client's message `have`.  Raises WireError."""
        result = None if entry.get("result") is None else entry.state_byte("result")
        return cls(entry.hexadecimal("id", 16),
                   entry.job_line(), result)


@dataclass
class Reclaimed:
    """What becomes of the jobs of a returning client.  With a doubt, those in `lost` can have a line."""
    jobs: dict[str, Job] = field(default_factory=dict)      # by key: the client has the line again
    settled: set[str] = field(default_factory=set)          # keys: the line has the job's result already
    lost: list[str] = field(default_factory=list)           # keys: all others; Sessions sets this
    doubt: str = ""                     # why it is unknown now who has a line


@dataclass(eq=False)
class ClaimedBatch:
    jobs: list[Job]
    plans: dict[int, GroupPlan]         # of the groups that the walk has met; by the offset of the first job
    no_job: NoJob | None                # None: enough jobs were claimed
    has_skipped_lines: bool = False     # new ones, which can suit clients to whom nothing was offered

    @property
    def must_continue(self) -> bool:
        return self.no_job is not None and self.no_job.retry_after == AGAIN


class Claims(Cursor):
    """Does all that a server does with the job file, except counting.

    Only the file executor calls the methods, perhaps in a thread, and no other object has this file and
    queue.  Of objects that both sides know, each attribute is written on one side only, and has immutable
    values, so the other side reads the old value or the new one:

        object                  written by Claims                  written in the event loop
        Job                     all attributes                     none
        Client, a `Consumer`    `free`; `retry` once its failed    `name`, `address`, `follow`, `capacity`;
                                lines are new again                `retry` at the first hello
        PendingGroup, complete  `cannot_start_yet`                 `started`
        Orphans                 all attributes                     none
    """

    file: ServedFile
    queue: ServedQueue
    # by number and command: lines `r` whose own job locks we have inherited
    _inherited_lines: Mapping[tuple[int, bytes], Line] = {}

    def take_presence_lock(self) -> None:
        """Lock the byte that shows that this server runs."""
        with suppress(OSError):              # the first claim will report it
            self.queue.open_files()

    # -- new lines -------------------------------------------------------------------------------------------

    def claim_batch(self, offers: Sequence[tuple[Consumer, Resources]], leaving: Collection[Consumer],
                    all_consumers: Collection[Consumer]) -> ClaimedBatch:
        """Claim lines for clients, one for each in turn, MAX_BATCH_LINES at most, because other calls wait.

        offers: free slots and memory; empty: only walk on through the file, to find groups and orphans.
        leaving: exit if no line is left for them; EVERYBODY stands for the server.  all_consumers: also busy
        ones, and lost ones in the grace: if one has -r or --resume, failed lines or orphans run again.
        """
        consumers = Consumers(consumer for consumer, _ in offers)       # still want jobs
        for consumer, free in offers:
            consumer.free = free
        jobs: list[Job] = []
        while (consumers.all or not offers) and len(jobs) < MAX_BATCH_LINES:
            result = self.claim(leaving, consumers, all_consumers)
            if isinstance(result, NoJob):
                walk = self._walk or self._idle_walk
                return ClaimedBatch(jobs, self._plan_groups(), result, bool(walk and walk.skipped_new))
            jobs.append(result)
            consumer = result.consumer
            consumer.free -= result.settings.needs
            del consumers.all[consumer]
            if consumer.free.slots > 0:
                consumers.all[consumer] = None              # the last in turn
        return ClaimedBatch(jobs, self._plan_groups(), None)

    def _plan_groups(self) -> dict[int, GroupPlan]:
        """Return a plan for each complete group that has not started, by the offset of its first job.

        {} after an edit, or if the file cannot be read: another walk finds the groups again.
        """
        groups = [group for group in self.groups if group.jobs and group.is_complete and not group.started]
        try:
            return {group.jobs[0][0].offset: GroupPlan(group, jobs_by_host(self.file.reader, group.jobs))
                    for group in groups}
        except OSError:
            self.restart_walk()
            return {}

    def claim_group(self, plan: GroupPlan, clients: Mapping[str, Consumer]) -> dict[str, list[Job]]:
        """Claim the lines of a group, up to the first failure; the caller gives the lines of a part back.

        clients, and the result: by entry of host=.
        """
        claimed: dict[str, list[Job]] = {host: [] for host in plan.jobs_by_host}
        for host, jobs in plan.jobs_by_host.items():
            for line, settings in jobs:
                job = None
                with suppress(OSError):
                    job = self.queue.claim(line, clients[host], settings).job
                if not job:
                    self.restart_walk()         # it reports an error that lasts
                    return claimed
                claimed[host].append(job)
        return claimed

    # -- lines of the server before us, and of clients that come back ----------------------------------------

    def inherit(self, lock_fd: int) -> int | None:
        """Take over the job locks of a dead server, which this descriptor holds; return how many.

        None: the lock file was removed since, so these mean nothing.  Raises OSError before anything is taken
        over.
        """
        self.queue.open_files()
        if not self.file.lock_table.inherit_locks(lock_fd):
            return None
        # a lock does not show the line: look for all once, or each client would cost a search
        with suppress(OSError):
            self._inherited_lines = {(line.number, line.command): line
                                     for line in self.file.scan_lines(RUNNING)
                                     if self.file.lock_table.is_own_lock_inherited(line)}
        return len(self.file.lock_table.locks_without_line)

    def find_settings(self, line: Line) -> JobSettings:
        above = NO_DIRECTIVES
        for directive in self.file.scan_lines(b"", with_directives=True):
            if directive.offset > line.offset:
                break
            above = above.with_directive(directive)
        return above.settings

    def leave_as_orphan(self, job: Job) -> None:
        self.queue.release_job(job)
        self.restart_walk()

    @property
    def has_inherited_locks(self) -> bool:
        return bool(self.file.lock_table.locks_without_line)

    def drop_inherited_locks(self) -> None:
        self.file.lock_table.drop_locks_without_line()
        self.restart_walk()

    def reclaim_lines(self, consumer: Consumer, reported: Sequence[ReportedJob],
                      may_conclude_lost: bool) -> Reclaimed:
        """Claim lines for jobs that a client has, and this server has not assigned.

        may_conclude_lost: a missing line counts as gone even if the file can be half saved.
        """
        reclaimed = Reclaimed()
        try:
            others = []
            for job in reported:
                # mostly so, after a dead server: no search
                line = self._inherited_lines.get((job.line.number, job.line.command))
                if line and self.file.lock_table.is_own_lock_inherited(line):
                    reclaimed.jobs[job.key] = self.queue.claim_inherited(line, own_job_lock_offset(line))
                else:
                    others.append(job)
            if others:
                # a parameter, because jobs that it adds before it raises stay claimed, and must be assigned
                self._reclaim_each(others, may_conclude_lost, reclaimed)
        except TemporaryError as error:
            reclaimed.doubt = str(error)
        except OSError as error:
            self.queue.close_if_locks_lost(error)
            reclaimed.doubt = error_text(error)
        for claimed in reclaimed.jobs.values():
            claimed.state = NEW                 # of the line before its claim: unknown
            claimed.consumer = consumer
        return reclaimed

    def _reclaim_each(self, reported: Sequence[ReportedJob], may_conclude_lost: bool,
                      reclaimed: Reclaimed) -> None:
        """Search the file for each job: claim its line, or find it settled; a job in neither list is lost.

        Raises TemporaryError, OSError: some jobs are in doubt, and earlier ones stay in `reclaimed`.
        """
        self.queue.open_files()
        signature = self.file.signature()
        lines_by_command = self.file.lines_by_command({job.line.command for job in reported})
        is_whole_file = may_conclude_lost or (
            self.file.signature() == signature and not self.file.seconds_until_trusted(signature[2])
        )
        own_lines = {(line.number, line.command): line
                     for lines in lines_by_command.values() for line in lines}
        for reported_job in reported:
            own_line = reported_job.line
            lines = lines_by_command[own_line.command]
            line = own_lines.get((own_line.number, own_line.command))
            # after the grace the line was an orphan, and can be `e` or `.` by now: a job that will run again
            # needs no such line
            states = RUNNING if reported_job.result in (NEW, ERROR) else RUNNING + ERROR + NEW
            # An edit can have moved the only line of the command.  But a new one can be another, which must
            # run.
            if not line and len(lines) == 1 and is_whole_file:
                line = lines[0]
                states = states.replace(NEW, b"")
            # the previous server can have written the result, and exited before the client learned that
            if line and line.state == reported_job.result:
                reclaimed.settled.add(reported_job.key)
            elif line and (job := self.queue.reclaim_line(line, own_job_lock_offset(own_line), states)):
                reclaimed.jobs[reported_job.key] = job
            elif not is_whole_file:
                raise TemporaryError("the file can be half saved")


# ======== Handing out =======================================================================================
#
# Clients that request jobs wait here, and get them in turn:
#
#     1. hand_out_lines() starts to claim lines when a client has requested jobs, a group has started, ended
#        or was aborted, with --exit-when-done when no client has a line any more, and while clients wait:
#        every 0.1 s, on a network file system every second.  Only one claim runs at a time.
#     2. claim_batch(), in the file executor, claims lines for waiting clients, one for each in turn: for the
#        first of them, until a walk (a scan of the file) has met lines that do not suit these, then for all.
#     3. _on_batch_claimed() sends the lines.
#     4. A client that would exit gets `nothing` if a count after the request, and after a walk that found no
#        job, lets it (Cursor._find_exits()), and no line can come back now.  The file executor counts between
#        its other calls, so each line that is not in the count as `.` is an assignment until its `.` is
#        written.  With --exit-when-done the count also decides for the server.
#     5. Each group that a walk has met has a plan.  Once all hosts have a free slot, the lines are claimed,
#        all or none.  If all hosts are connected but some are busy, they get no other jobs until then.


class Dispatcher:

    def __init__(self, sessions: Sessions, stdout: Writer, exit_when_done: bool) -> None:
        """stdout: for results of groups.  exit_when_done: drain if no line is left that anyone could run."""
        self.sessions = sessions
        self.stdout = stdout
        self._exit_when_done = exit_when_done
        self._lifetime = sessions.lifetime
        self.waiting_clients: dict[Client, None] = {}       # the one served last is the last
        self._leaving: set[Client] = set()      # exit if the claim under way lets them
        self._next_claim: asyncio.TimerHandle | None = None
        # of groups that wait for hosts; by the offset of the first job
        self._group_plans: dict[int, GroupPlan] = {}
        self._reserved: set[Client] = set()     # for groups whose hosts are connected, but some are busy
        self.say_once = functools.lru_cache(maxsize=None)(sessions.say)     # prints each text once
        self._groups_paused_until = 0.0         # boottime(): after a group could not start
        self._next_offers_at = 0.0              # boottime(): end of the pause after a claim without a line
        self._had_clients = False
        self._must_offer_to_all = False         # lines are left that do not suit the first clients in turn
        self.is_claiming = False

    def enqueue_client(self, client: Client) -> None:
        """Queue a client that requested jobs; dismiss one at which all have failed, and none is left."""
        self._leaving.discard(client)           # other lines can suit it now
        if client.why_distrusted and client.exits_without_jobs and not client.awaited:
            self.say_once(f"client {client.where} gets no more: {client.why_distrusted}")
            client.send_message(type="dismissed", text=client.why_distrusted)
        elif client.requested_slots:
            self.waiting_clients.setdefault(client, None)
            self.hand_out_lines_soon()

    def hand_out_lines(self, walks_on: bool = True) -> None:
        """Start to claim lines for the waiting clients; once the server drains, let clients exit instead.

        walks_on: if no client waits, walk on, to find groups and orphans.
        """
        if not self._lifetime.is_serving:
            return self._let_clients_exit({
                client: "" for client in self.waiting_clients
                if client.exits_without_jobs and not client.follow      # those wait for the `closing`
            })
        sessions = self.sessions
        if (self.is_claiming or boottime() < self._next_offers_at       # too early
                or not (self.waiting_clients or walks_on) or sessions.records.is_behind(Writer.HIGH_BACKLOG)):
            return
        offers: dict[Client, Resources] = {}
        # FEW_OFFERS do if each line suits each client, so ask all of thousands only if some lines do not; a
        # client that would exit needs an answer, wherever it stands
        waiting = self.waiting_clients
        asks_all = self._must_offer_to_all or any(client.exits_without_jobs for client in waiting)
        for client in waiting if asks_all else itertools.islice(waiting, FEW_OFFERS):
            slots = client.slots_to_fill
            if slots and client.can_get_jobs and client not in self._reserved:
                offers[client] = Resources(slots, client.free_memory)
        self.is_claiming = True
        self._leaving = {client for client in offers if client.exits_without_jobs}
        leaving: set[Consumer] = {*self._leaving}
        if self._exit_when_done and not sessions.assignments:
            leaving.add(EVERYBODY)              # asks if the server may exit
        self._had_clients |= bool(sessions.clients)     # this claim obeys their -r
        sessions.executor.call_then(
            self._on_batch_claimed, sessions.claims.claim_batch, list(offers.items()), leaving,
            list(sessions.clients.values())
        )

    def _on_batch_claimed(self, batch: ClaimedBatch) -> None:
        """Send the jobs that were claimed, let clients exit that can get none, and go on to groups."""
        self.is_claiming = False
        to_send: dict[Client, list[Assignment]] = {}
        for job in batch.jobs:
            assignment = self._assign(job)
            client = assignment.client
            if not self.is_startable(assignment):           # the line becomes `e`
                self.sessions.settle(assignment, UNSTARTED)
            elif client.link and self._lifetime.is_serving:
                to_send.setdefault(client, []).append(assignment)
            else:                                           # the line becomes `.`
                self.sessions.settle(assignment, RETURNED)
        for client, assignments in to_send.items():
            client.subtract_requested(
                sum(int(assignment.job.settings.needs.slots) for assignment in assignments))
            self.send_jobs(client, assignments)
        if batch.no_job is not None:
            self._on_no_job(batch.no_job)
            # otherwise only its time slice is used up; the pause keeps thousands of idle clients cheap
            if not batch.must_continue:
                self._next_offers_at = boottime() + OFFER_SECONDS * len(self.waiting_clients)
                self._must_offer_to_all = batch.has_skipped_lines
                self._group_plans = {}          # the walk was complete: no others wait
        self._group_plans.update(batch.plans)
        self._claim_or_reserve_groups()
        if batch.must_continue or (batch.jobs and self.waiting_clients):
            self.sessions.loop.call_soon(self.hand_out_lines, batch.must_continue)

    def _assign(self, job: Job) -> Assignment:
        client = job.consumer
        assert isinstance(client, Client)       # Claims knows only the base class
        # a client that connects names keys, so they must be hard to guess, and unlike those of other servers
        assignment = Assignment(secrets.token_hex(8), client, job)
        self.sessions.add_assignment(assignment)
        return assignment

    def _on_no_job(self, no_job: NoJob) -> None:
        """After a walk without a job, let clients exit, and plan the next walk.

        Drain if no line can ever be claimed, or with --exit-when-done if all are done.
        """
        final_error, exits = no_job.final_error, no_job.exits
        may_exit = {client: exits[client] for client in self._leaving & exits.keys()}
        # a line that comes back could be for them, so they wait for a later walk
        if may_exit and not any(
            assignment.can_become_new for assignment in self.sessions.assignments.values()
        ):
            self._let_clients_exit(may_exit, no_job.summary)
        if no_job.retry_after:
            if self._next_claim:
                self._next_claim.cancel()
            self._next_claim = self.sessions.loop.call_later(no_job.retry_after, self.hand_out_lines)
        if final_error and self._lifetime.is_serving:
            self.sessions.say(f"{final_error} (no more jobs are handed out)")
            self.sessions.runner_stats.had_errors = True
            self._lifetime.drain()
        if (no_job.summary and EVERYBODY in exits and not no_job.summary.counts.running     # all is done
                and not self.sessions.assignments and self._lifetime.is_serving):
            awaited = {*no_job.summary.bad_lines}
            what = f"a first client, which can have -r for {name_lines(awaited)}"
            if self._had_clients:
                orphans = self.sessions.claims.orphans
                is_in_time = boottime() - orphans.last_found_at < MAX_RETURN_SECONDS
                # an edit can have moved them, and a summary names only the first bad lines
                awaited = set(orphans.marked if is_in_time and no_job.summary.counts.error else ())
                what = (f"results of {name_lines(awaited)} that lost clients can bring, "
                        f"{human_time(MAX_RETURN_SECONDS)} at most")
            if awaited:
                return self.say_once(f"waiting for {what}")
            if exits[EVERYBODY]:
                self.sessions.say(exits[EVERYBODY])
            self._lifetime.drain()

    def is_startable(self, assignment: Assignment) -> bool:
        settings, command = assignment.job.settings, assignment.job.command
        error = command_error(command)
        if not error and (settings.send or settings.fetch or settings.scratch):
            try:
                assignment.files = self.sessions.files_of(settings, command)
            except ValueError as unknown:
                error = f"{unknown} ({settings.where})"
        if error:
            self.sessions.say(f"line {assignment.number}: cannot be started: {error}")
            assignment.run = Run(assignment.job, ["?"], b"?", self.sessions.records.sinks)
            assignment.run.why = error
        return not error

    def send_jobs(self, client: Client, assignments: list[Assignment]) -> None:
        """Send a client its jobs; if it wants more, it waits as the last in turn."""
        self.waiting_clients.pop(client, None)
        if client.requested_slots > 0:
            self.waiting_clients[client] = None
        entries: list[Fields] = []
        message_bytes = 0
        for assignment in assignments:
            assignment.mark_sent()
            client.free_memory -= int(assignment.job.settings.needs.memory)
            files = assignment.files or NO_FILES
            job_bytes = sum(map(len, (assignment.job.text, *files.send, *files.fetch)))
            # the length of a message is limited
            if entries and message_bytes + job_bytes > MAX_JOBS_BYTES:
                client.send_message(type="jobs", request=client.request_number, jobs=entries)
                entries = []
                message_bytes = 0
            entries.append(assignment.make_job_entry())
            message_bytes += job_bytes
        client.send_message(type="jobs", request=client.request_number, jobs=entries)

    def _let_clients_exit(self, why_left: dict[Client, str], summary: Summary | None = None) -> None:
        """Send `nothing` to these clients, unless they have jobs or belong to a group: they exit.

        why_left: why jobs remain that will never start; '': none.  summary: of the count that lets them exit;
        None: the server drains.
        """
        for client, why in why_left.items():
            # when the server exits, `closing` follows: after a signal clients must stay for the next server
            if client.can_get_jobs and not (client.assignments or self._lifetime.is_exiting):
                # a line for a client that exits would come back unstarted
                self.waiting_clients.pop(client, None)
                client.exits_without_jobs = False
                client.send_message(
                    type="nothing",
                    request=client.request_number,
                    left=why[:MAX_TEXT_CHARS],
                    account=make_summary_fields(summary, client),
                )

    # -- groups ----------------------------------------------------------------------------------------------

    def _claim_or_reserve_groups(self) -> None:
        """Start to claim a group if a client with a free slot waits for each of its hosts; one at a time."""
        self._reserved = set()
        # groups further up choose first: for others, reserved clients do not count
        for offset, plan in sorted(self._group_plans.items()):
            if plan.pending.cannot_start_yet:
                continue
            clients = self._choose_clients(plan, {
                client: min(client.requested_slots, client.line_allowance)
                for client in self.waiting_clients if client.can_get_jobs
            })
            is_paused = boottime() < self._groups_paused_until
            if not clients:                     # perhaps all hosts are connected, but some are busy
                self._reserved.update(self._choose_clients(plan, {
                    client: client.slots for client in self.sessions.clients.values() if client.link
                }).values())
            elif not self.is_claiming and self._lifetime.is_serving and not is_paused:
                plan.pending.started = True             # Claims makes no more plans for it
                self.is_claiming = True
                del self._group_plans[offset]
                self.sessions.executor.call_then(partial(self._prepare_or_return_group, plan),
                                                  self.sessions.claims.claim_group, plan, clients)

    def _choose_clients(self, plan: GroupPlan, slots: dict[Client, int]) -> dict[str, Client]:
        """Return a client for each host of a group; {}: some host has none, so the group must wait.

        slots: how many each client can give; a host needs one.
        """
        free = {client: count for client, count in slots.items() if client not in self._reserved}
        if len(plan.jobs_by_host) > sum(free.values()):     # the matching of many hosts is slow
            return {}
        # clients with --follow take no jobs below `#RUN end`
        clients = [client for client in free if not (plan.pending.below_end and client.follow)]
        matching = {host: [client for client in clients if client.matches_host(host)]
                    for host in plan.jobs_by_host}
        chosen = {}
        # first the host with the fewest slots to choose from: several clients can match a pattern
        for host in sorted(matching, key=lambda host: sum(slots[client] for client in matching[host])):
            if not (client := next((client for client in matching[host] if free[client] > 0), None)):
                return {}
            chosen[host] = client
            free[client] -= 1
        return chosen

    def _prepare_or_return_group(self, plan: GroupPlan, claimed: dict[str, list[Job]]) -> None:
        """Prepare a group if all its lines are claimed and its clients connected; else give them back."""
        self.is_claiming = False
        assignments = {host: [self._assign(job) for job in jobs] for host, jobs in claimed.items()}
        all_assignments = [*itertools.chain.from_iterable(assignments.values())]
        can_start = (len(all_assignments) == len(plan.pending.jobs) and self._lifetime.is_serving
                     and all(assignment.client.link for assignment in all_assignments))
        if can_start:
            Group(self, plan.pending, assignments).prepare()
        else:
            plan.pending.started = False
            for assignment in all_assignments:
                self.sessions.settle(assignment, RETURNED)
        self.hand_out_lines_soon(group_pause_seconds=0.0 if can_start else 1.0)

    def hand_out_lines_soon(self, group_pause_seconds: float = 0.0) -> None:
        """Hand out lines as soon as they may be offered; after a failed group, groups pause."""
        now = boottime()
        self._groups_paused_until = max(self._groups_paused_until, now + group_pause_seconds)
        # False: there can be new jobs only if a client waits
        self.sessions.loop.call_later(self._next_offers_at - now, self.hand_out_lines, False)


# ======== The server ========================================================================================
#
# All that can fail comes before the event loop, and before the server goes into the background, so that
# errors appear on the user's terminal.


class Server(Program):

    def __init__(self, argv: Sequence[str]) -> None:
        # check before anything is opened for good
        parser = make_parser()
        options: argparse.Namespace = parser.parse(argv)
        if options.grace is None:
            parser.error("--grace: lines cannot be kept without a limit (give a time)")
        super().__init__(PROG, options.file, options)
        self.path = options.file
        self.mount = check_mount(self.path, options.single_host)
        os.close(open_job_file(self.path, os.O_RDWR))
        refuse_as_output(self.path)
        file = JobFile(self.path, say=self.say, mount=self.mount)
        check_lock_file(file)
        check_job_file(self.path, self.mount.network, self.say)
        report_same_fetch(file, file.scan_lines(b"", with_directives=True))
        file.close_files()              # a ServedFile opens both again, with a SharedLockTable
        self._final_summary: Summary | None = None      # None: the file cannot be read
        self.began = boottime()

    # -- from start to end -----------------------------------------------------------------------------------

    def check_and_open(self) -> None:
        """Open files, port and token, and start the keeper.  Raises UsageError."""
        allow_descriptors(MIN_DESCRIPTORS, "a server needs", "raise ulimit -Hn")
        context = tls_context(server_side=True)
        self._presence_lock = PresenceLock(of_server=True)
        self.stores = self.open_record_files(self.mount.network, self._presence_lock, self.path)
        allow_most_descriptors()                # for connections
        # before the keeper: if the port is in use, the previous server's keeper still has its locks
        self._socket = listen(self.options.host, self.options.port)
        self.port = self._socket.getsockname()[1]
        self.token, token_text = find_or_make_token()
        try:
            self._keeper = KeeperLink(self.path, self.options.grace, self.token)
            self._keeper.take_over_and_start_keeper()
        except UsageError as usage_error:               # the file is served already
            raise UsageError(f"{self.path}: {usage_error}") from None
        except OSError as error:
            raise UsageError(f"the keeper cannot be started: {error_text(error)}") from None
        # by this id a client with jobs recognizes the server of another file; files with one path on two
        # hosts have the same, so their servers need different tokens
        self.credentials = make_credentials(
            context, hashlib.sha256(os.fsencode(os.path.realpath(self.path))).hexdigest()[:32])
        print_bytes(os.fsencode(f"Token for runmaker4-client.py: {token_text}\n"))
        self.task = f"serving on port {self.port}"
        self.say(self.task)

    async def connect_parts(self) -> int:
        """Make the parts of the server and serve clients; return the exit status.  Raises UsageError."""
        self.lifetime = Lifetime(self.loop)
        self._make_components()
        self.handle_signals(self._on_stop_signal, self._on_drain_signal)
        if self._keeper.locks_fd >= 0:          # before clients can connect
            await self.sessions.inherit_lines(self._keeper.locks_fd)
        self._status_socket = socket.socket(socket.AF_UNIX)
        self._status_socket.bind(PresenceLock.SOCKET % self._presence_lock.offset)
        self._status_socket.listen()
        self._status_socket.setblocking(False)
        self.loop.add_reader(self._status_socket, self._answer_status_queries)
        # for runwait4.py --status
        self.executor.post(self.claims.take_presence_lock)
        self._socket.setblocking(False)
        self._strangers: list[ClientLink] = []  # not authenticated at the last look, oldest first
        self._looks: deque[float] = deque(maxlen=STALLED_LOOKS)     # when; boottime()
        self._start_accepting()
        self._exiting = asyncio.Event()
        self._mark = spawn_task(self.keep_mark(self.claims.file, self._processes, self._exiting))
        chores = [
            spawn_task(self._poll()),
            spawn_task(self.sessions.watch_claimed_lines()),
            spawn_task(self._check_clients_and_file()),
        ]
        await self.lifetime.exiting
        for chore in chores:
            chore.cancel()
        self.loop.remove_reader(self._socket)
        self._socket.close()
        await self._shut_down()
        status = self.lifetime.exit_status              # None: the results decide
        return self.runner_stats.exit_status(self._final_summary) if status is None else status

    def _answer_status_queries(self) -> None:
        """Answer each `runwait4.py --status` that has connected: '1 client, 1 lost: bob since 5.0s'."""
        # no other waits, no descriptor is free, or the asker has closed the connection
        with suppress(OSError):
            for _ in range(MAX_ASKERS):
                asker = self._status_socket.accept()[0]
                with asker:
                    if same_user(asker):            # any user can connect
                        asker.send(to_bytes(self._describe_clients()))
        # not before the next look: an accept(2) that fails would come again at once
        self.loop.remove_reader(self._status_socket)
        self.loop.call_later(
            LOOK_SECONDS, self.loop.add_reader, self._status_socket, self._answer_status_queries
        )

    def _describe_clients(self) -> str:
        clients = self.sessions.clients.values()
        lost = [f"{client.name} since {human_time(boottime() - link.last_message_at)}"
                for client in clients if (link := client.newest_link) and link.detached.done()]
        count = len(clients) - len(lost)
        text = (f"{'the server drains: ' * (not self.lifetime.is_serving)}"
                f"{count:,} client{'s'[count == 1:]}, {len(lost):,} lost")
        text = f"{text}: {join_first_few(lost)}" if lost else text
        return text + self.sessions.describe_travelling()

    def _start_accepting(self) -> None:
        if not self.lifetime.is_exiting:
            self.loop.add_reader(self._socket, self._accept_connections)

    def _accept_connections(self) -> None:
        """Accept waiting connections while at most MAX_HANDSHAKES handshakes are under way.

        With more, each would take longer, and all must end before the clients give up; the backlog costs
        nothing.  A stalled handshake leaves its place to another one, and can go on, unless many have
        stalled.

        A look is a turn of the event loop: it reads all that has come, so each handshake makes a step.  In
        seconds, handshakes would stall when the server is slow.
        """
        self._looks.append(boottime())
        self._strangers = [link for link in self._strangers
                           if not (link.channel.is_authenticated or link.detached.done())]
        stalled = [link for link in self._strangers
                   if link.last_message_at < self._looks[0] and not link.channel.tls]
        for link in stalled[:-MAX_STALLED]:
            link.drop("too many unauthenticated connections")
        pause_seconds = LOOK_SECONDS
        try:
            for _ in range(MAX_HANDSHAKES + len(stalled) - len(self._strangers)):
                self._accept_connection()
        except (BlockingIOError, ConnectionAbortedError):
            pass
        except OSError as error:                # for example too many open files
            self.dispatcher.say_once(f"a connection was not accepted: {error_text(error)}")
            pause_seconds = ACCEPT_PAUSE_SECONDS
        self.loop.remove_reader(self._socket)
        self.loop.call_later(pause_seconds, self._start_accepting)

    def _accept_connection(self) -> None:
        """Accept a connection, unless the client has given up while it waited.  Raises OSError."""
        connection, _ = self._socket.accept()
        # the first byte of struct tcp_info is the state of the connection (<linux/tcp.h>)
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != TCP_ESTABLISHED:
            return connection.close()
        link = ClientLink(self)
        self._strangers.append(link)
        spawn_task(self.loop.connect_accepted_socket(lambda: link, connection))

    def _make_components(self) -> None:
        # to count lines: only Claims may open another file in `served_file`
        reader = JobReader(self.path, say=self.say, mount=self.mount)
        self.records = Records(self.stores, self.stdout if self.options.print else None, self.executor)
        served_file = ServedFile(
            self.path, say=self.say, mount=self.mount, presence_lock=self._presence_lock,
            make_lock_table=partial(SharedLockTable, give_to_keeper=self._keeper.send_locks_to_keeper),
        )
        self.claims = Claims(ServedQueue(served_file), serving=True)
        self.claims.orphans.outdir = self.stores[1]
        self._processes = Processes(self.loop, self.signals, grace=None)
        self.sessions = Sessions(
            self.loop,
            self.executor,
            self.claims,
            self.records,
            self.runner_stats,
            self.lifetime,
            self.say,
            self._on_error,
            self.path,
            self.directory,
            self.options.grace,
            self.options.max_failed,
        )
        self.dispatcher = Dispatcher(self.sessions, self.stdout, self.options.exit_when_done)
        self.summaries = Summaries(self.executor, self.lifetime, reader)

    async def _shut_down(self) -> None:
        """Write and send everything, close connections, let the keeper exit, and print the closing line."""
        in_haste = self.lifetime.exit_status is not None        # after a signal or defect
        max_seconds = runmaker4.Runner.MAX_RESULT_SECONDS if in_haste else None
        for assignment in self.sessions.assignments.values():
            self.records.abandon_run(assignment)        # the next server begins new records
        await self._wait_unless_hurried(self.sessions.flush_results(), max_seconds)
        self.executor.call_then(self.runner_stats.orphans.extend, lambda: self.claims.orphans.marked)
        self.sessions.flush_records()                   # acknowledges all
        await self._wait_unless_hurried(self.executor.flush(), max_seconds)
        self._exiting.set()
        await self._wait_unless_hurried(self._mark, max_seconds)
        self.report_pending_records()
        if not self.defects:
            # after the acknowledgements, or clients would send written output to the next server, too
            for client in self.sessions.clients.values():
                # not done: they keep jobs for the next server
                client.send_message(
                    type="closing", done=not in_haste,
                    account=None if in_haste else make_summary_fields(self._final_summary, client))
        # clients close the connections: if we closed one with unread data, the last messages would be lost
        for link in list(self.sessions.links):
            link.finish_writing()
        deadline = self.loop.time() + 1.0
        while self.sessions.links and self.loop.time() < deadline:
            await asyncio.sleep(0.01)
        # the keeper must hold the locks of lines that clients can have; after a defect that is unknown
        if not (self.sessions.assignments or self.defects or self.claims.has_inherited_locks):
            self._keeper.dismiss_keeper()
        await self.wait_until_printed(self.stdout, lambda: in_haste)
        if in_haste and not self.defects:
            self._final_summary = await self._wait_unless_hurried(
                self.summaries.make(), runmaker4.Runner.MAX_ANSWER_SECONDS
            )
        seconds = boottime() - self.began
        self.say_closing_line(self._final_summary, seconds, "runmaker4-client.py -r runs them")
        await self.wait_until_printed(self.stderr, lambda: in_haste)

    async def _wait_unless_hurried(self, awaitable: Awaitable[Any], seconds: float | None) -> Any:
        """Return the result; None after `seconds` (None: no limit), a second signal or an exception."""
        task = spawn_task(awaitable)
        await asyncio.wait([task, self.lifetime.hurrying], timeout=seconds,
                           return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() and not task.exception() else None

    def on_writer_relieved(self) -> None:
        if self.sessions.is_held_back and not self.records.is_behind(Writer.LOW_BACKLOG):
            self.sessions.acknowledge()

    def shut_down_after_defect(self) -> None:
        self.lifetime.start_exiting(1)

    def _on_stop_signal(self, signum: int) -> None:
        """Exit, and keep jobs for the next server; a second signal ends all waits."""
        if self.lifetime.is_exiting:
            return self.lifetime.hurry()
        for assignment in self.sessions.assignments.values():
            # no client can bring this line back, and the next server cannot start a group while one is `r`
            if assignment.phase is AssignmentPhase.CLAIMED:
                assignment.member = None
                self.sessions.settle(assignment, RETURNED)
        kept_text = self.sessions.describe_kept_lines(self.sessions.assignments)
        self.say(f"{signal.Signals(signum).name}: stopping{kept_text}"
                 + (", for the next server" if kept_text else ""))
        self.lifetime.start_exiting(128 + signum)

    def _on_drain_signal(self, signum: int) -> None:
        self.sessions.drain(signal.Signals(signum).name)

    async def _poll(self) -> None:
        """Look for new lines while clients wait; once the server drains, exit when no line is kept for one.

        Looking at an unchanged file costs a stat(2).  Never returns.
        """
        while True:
            await wait_for_event(self.lifetime.may_end, self.claims.file.poll)
            self.lifetime.may_end.clear()
            # once the server drains, this lets clients exit instead
            self.dispatcher.hand_out_lines(self.options.exit_when_done and not self.sessions.assignments)
            if not self.lifetime.is_serving:
                self.sessions.abort_unstarted_groups(self.sessions.assignments)
                if self._is_drained():
                    # for the exit statuses
                    summary = await self.summaries.make(
                        [client for client in self.sessions.clients.values() if client.link])
                    # a client can have come back with a job meanwhile
                    if self._is_drained():
                        self._final_summary = summary
                        self.lifetime.start_exiting()

    def _is_drained(self) -> bool:
        return not (self.sessions.assignments or self.claims.has_inherited_locks
                    or self.dispatcher.is_claiming)

    # -- every second ----------------------------------------------------------------------------------------

    async def _check_clients_and_file(self) -> None:
        """Drop silent connections, write records and scan the file, once a second.  Never returns."""
        check_seconds = min(1.0, runmaker4.MAX_SILENT_SECONDS / 5)      # more often if tests shorten that
        while True:
            await asyncio.sleep(check_seconds)
            for link in list(self.sessions.links):
                silence = boottime() - link.last_message_at
                if not link.channel.is_authenticated and silence > runmaker4.MAX_HANDSHAKE_SECONDS:
                    link.drop("it does not authenticate")
                elif silence > runmaker4.MAX_SILENT_SECONDS:
                    link.drop(f"nothing was heard for {human_time(runmaker4.MAX_SILENT_SECONDS)}")
            self.sessions.flush_records()
            self.dispatcher.hand_out_lines()            # also without clients


# ======== The certificate ===================================================================================
#
# Python's library cannot make a certificate and a key.  So the server makes them: a key on the curve P-256
# (FIPS 186-4, D.1.2.3), which takes 8 ms, and a certificate (RFC 5280), both in DER.  Clients rely only on
# the hash of the certificate, which the proofs of the handshake name ("The wire" in runmaker4.py), so the
# signature is a placeholder.  OpenSSL reads both from pipes: the key is in no file.
#
# A point of the curve is a pair of numbers modulo FIELD with y^2 = x^3 - 3 x + b.  The key is a number from 1
# to ORDER - 1, the public key that multiple of BASE.  ORDER is the least factor whose multiple is not a
# point, so all sums on the way to a smaller multiple are points.

Point = tuple[int, int]
FIELD = 2**256 - 2**224 + 2**192 + 2**96 - 1
ORDER = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551
BASE = (0x6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296,
        0x4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5)
# DER around the public key and the key: a type, a length in bytes (after 81 if it is 128 or more), the
# contents
CERTIFICATE = bytes.fromhex(
    "3081d9 3081bf"                                         # certificate: the signed part,
    "a003 020102 020101"                                    # which is version 3, serial number 1,
    "300a 06082a8648ce3d040302"                             # signed by ECDSA with SHA-256,
    "3014 3112 3010 0603550403 0c0972756e6d616b657234"      # by the common name "runmaker4",
    "3022 180f32303230303130313030303030305a"               # valid from 2020-01-01 00:00:00
    "     180f39393939313233313233353935395a"               # to 9999-12-31 23:59:59,
    "3014 3112 3010 0603550403 0c0972756e6d616b657234"      # of the common name "runmaker4",
    "3059 3013 06072a8648ce3d0201 06082a8648ce3d030107"     # whose public key is for ECDSA on P-256:
    "     0342 00 04"                                       # this point, not compressed
)
SIGNATURE = bytes.fromhex(
    "300a 06082a8648ce3d040302"                             # ECDSA with SHA-256:
    "0309 00 3006 020101 020101"                            # the pair (1, 1), a placeholder
)
PRIVATE_KEY = bytes.fromhex("3031 020101 0420")             # a key for an elliptic curve (RFC 5915),
CURVE = bytes.fromhex("a00a 06082a8648ce3d030107")          # which is P-256


def add_points(point: Point, other_point: Point) -> Point:
    """Return the sum of two points of the curve, by the chord or the tangent (SEC 1, 2.2.1).

    One point must not be the negative of the other.
    """
    (x1, y1), (x2, y2) = point, other_point
    if point == other_point:
        slope = 3 * (x1 * x1 - 1) * pow(2 * y1, -1, FIELD)
    else:
        slope = (y2 - y1) * pow(x2 - x1, -1, FIELD)
    x = (slope * slope - x1 - x2) % FIELD
    return x, (slope * (x1 - x) - y1) % FIELD


def multiply_base(factor: int) -> bytes:
    """Return `factor` (1 to ORDER - 1) times BASE: two numbers of 32 bytes each."""
    # double for each further bit, and add BASE for each 1
    point = BASE
    for bit in f"{factor:b}"[1:]:
        point = add_points(point, point)
        if bit == "1":
            point = add_points(point, BASE)
    return b"".join(number.to_bytes(32, "big") for number in point)


def write_pem_to_pipe(label: bytes, data: bytes) -> int:
    """Return the read end of a pipe with this data as PEM, for OpenSSL, which takes only names of files.

    Any pipe holds 4 KiB, so writing these few bytes cannot block.  The caller closes it.
    """
    read_fd, write_fd = os.pipe()
    write_all(write_fd, b"-----BEGIN %b-----\n%b-----END %b-----\n" % (
        label, base64.encodebytes(data), label))
    os.close(write_fd)
    return read_fd


def make_credentials(context: ssl.SSLContext, file_id: str) -> Credentials:
    """Make a new key and a certificate for TLS.

    file_id: shows clients with jobs which file is served.  Raises UsageError: OpenSSL refuses key or
    certificate.
    """
    key = secrets.randbelow(ORDER - 1) + 1
    certificate = CERTIFICATE + multiply_base(key) + SIGNATURE
    pipes = (write_pem_to_pipe(b"CERTIFICATE", certificate),
             write_pem_to_pipe(b"EC PRIVATE KEY", PRIVATE_KEY + key.to_bytes(32, "big") + CURVE))
    try:
        with refused_as("OpenSSL refuses our certificate", " (see openssl.cnf)"):
            context.load_cert_chain(*(f"/proc/self/fd/{pipe}" for pipe in pipes))
    finally:
        close_all(*pipes)
    return Credentials(context, hashlib.sha256(certificate).hexdigest(), file_id)


# ======== Token and sockets =================================================================================
#
# All servers of a user have one token, in a file that only the user can read, or in $RUNMAKER4_TOKEN.  To get
# a new token, the user removes the file.


def find_or_make_token() -> tuple[str, str]:
    """Return the token that clients must know, and a text about it for the first line of output.

    Raises UsageError: the file cannot be used, or other users can read it.
    """
    if token_in_environment := token_of_environment():
        return token_in_environment, "$RUNMAKER4_TOKEN (neither shown nor written to a file)"
    path = token_path()
    with refused_as(path, " (the token must be in this file)"):
        if not os.path.lexists(path):
            # it gets its name when it is complete, so servers that start at the same moment get the same
            # token
            temporary_path = f"{path}.{secrets.token_hex(4)}"
            fd = os.open(temporary_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                write_all(fd, secrets.token_hex(16).encode() + b"\n")
                os.fsync(fd)
                with suppress(FileExistsError):      # another server was faster
                    os.link(temporary_path, path)
            finally:
                os.close(fd)
                os.unlink(temporary_path)
        token = read_token(path)
    # others may be able to read other output, for example a Slurm log
    return token, f"{token if os.isatty(1) else '(shown on a terminal only)'} (written to {path})"


def listen(host: str | None, port: int) -> socket.socket:
    """Return a socket on the first address of `host` (None: on all, IPv6 and IPv4).  Raises UsageError."""
    address_text = f"{host or 'all addresses'}, port {port}"
    try:
        if not host and socket.has_dualstack_ipv6():
            # without permission for IPv6: IPv4, below
            with suppress(PermissionError):
                family = socket.AF_INET6
                return socket.create_server(("", port), family=family, dualstack_ipv6=True, backlog=BACKLOG)
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except UnicodeError:
        raise UsageError(f"{address_text}: not a host name (see --host)") from None
    except OSError as error:
        hint = ("is another server running? --port gives another one" if error.errno == errno.EADDRINUSE
                else "see --host, --port")
        raise UsageError(f"{address_text}: {error_text(error)} ({hint})") from None


def run_server(words: Sequence[str]) -> int:
    server = Server(words)
    server.check_and_open()
    return server.in_background()


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(PROG, run_server, argv)


if __name__ == "__main__":
    exit_now(main())
