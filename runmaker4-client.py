#!/usr/bin/env python3
"""runmaker4-client - run jobs that a runmaker4-server.py hands out, on hosts that share no file system.

    alice$ runmaker4-server.py runs.txt              bob$ runmaker4-client.py -j4 alice

It is runmaker4.py's `Runner` with a connection instead of a file.  Everything that must not be lost (start,
output and result of a run) is an event, sent again after each reconnect until the server has acknowledged it.
While the connection is lost, jobs keep running; once 2 MiB of output are unsent, the client stops reading the
pipes of the jobs.

The client gives back a job that gets no slot within a second.  The protocol is described in
runmaker4-server.py.

The sections; begin at ClientProgram.connect_parts(), RemoteJobs.claim() and stay_connected():

    The token               from an option, the environment or a file
    Dialling                Endpoint: the first connection, before the event loop, and why one fails
    What the server must learn      Event; Outbox, which keeps each until the server has acknowledged it
    Files that travel       Porter, which moves the files of send= and fetch=
    The connection          LinkLife, a table of states and events; Requests; RemoteJobs, the `Jobs` of Runner
    What the server is told of runs     ServerSink, which makes events of output and results
    The program             ClientProgram makes and connects the parts
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
import enum
import getpass
import itertools
import random
import re
import secrets
import socket
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

try:
    import runmaker4
except ModuleNotFoundError as missing:
    if missing.name != "runmaker4":
        raise
    print("runmaker4-client.py: runmaker4.py is missing (copy it to where this script is)", file=sys.stderr)
    sys.exit(2)

from runmaker4 import (
    DONE,
    ERROR,
    FILE_PIECE_BYTES,
    HEX_128_BITS,
    JOB_VARIABLES,
    KILL_SIGNALS,
    LARGE_PIECE_BYTES,
    MAX_NAME_CHARS,
    NEW,
    NO_OFFSET,
    NOBODY,
    OUTPUT_WINDOW_BYTES,
    PORT,
    SIGNALS,
    UNMADE,
    ClientChannel,
    Counts,
    Fields,
    FileExecutor,
    FileTree,
    FileVersion,
    Job,
    JobDirectory,
    JobSettings,
    JobsToKill,
    Link,
    LockFds,
    Message,
    NoJob,
    OtherFileError,
    OutDir,
    Parser,
    RefusedError,
    Resources,
    Run,
    Runner,
    RunnerProgram,
    RunResult,
    Say,
    Sink,
    Stream,
    Summary,
    Tracking,
    UsageError,
    WireError,
    add_background_options,
    add_general_options,
    add_limit_options,
    add_running_options,
    add_verbosity_options,
    allow_descriptors,
    begin_fields,
    boottime,
    check_not_empty,
    dataclass,
    display_text,
    duration,
    end_fields,
    error_text,
    exit_now,
    exit_on,
    human_time,
    integer_between,
    literal_beginning,
    name_program,
    once_per_subject,
    open_descriptors,
    own_name,
    plural,
    printable,
    read_token,
    run_main,
    spawn_task,
    start_thread,
    tls_context,
    to_bytes,
    to_text,
    token_of_environment,
    token_path,
    wait_for_event,
)

if TYPE_CHECKING:
    import ssl

PROG = "runmaker4-client.py"
MIN_PAUSE_SECONDS = 0.1         # between two attempts to connect; each pause is twice the last
MAX_PAUSE_SECONDS = 30.0
MAX_CONNECT_SECONDS = 10.0      # of an attempt
# from then to the welcome: thousands of clients wait in the queue of the server's socket, and one that dials
# again begins at its end
MAX_WELCOME_SECONDS = 40.0
MAX_QUEUED_SECONDS = 1.0        # then a job without a slot is given back
MAX_COUNT_SECONDS = 30.0        # for a server to count the file: with orphans it scans three times
HANDSHAKE_POLL_SECONDS = 0.2
SILENCE_SECONDS = 300.0         # without a server, until an idle client reports that a second time
FOREVER = 1e9                   # seconds: only an event ends the wait


# [host]:port or host:port; or a host alone: without colons or brackets, or an IPv6 address
ADDRESS = re.compile(r"(?:\[([^\[\]]+)\]|([^:]+)):([0-9]{1,5})|([^:\[\]]*|[^\[\]]*:[^\[\]]*:[^\[\]]*)")


def server_address(text: str) -> tuple[str, int | None]:
    """Return host and port of 'alice', 'alice:9998', '::1' or '[::1]:9998'.  For argparse.

    The port is None if not given: then --port applies.
    """
    match = ADDRESS.fullmatch(text)
    port = int(match[3]) if match and match[3] else None
    if match is None or port == 0 or (port or 0) > 65535:
        raise argparse.ArgumentTypeError(f"not HOST or HOST:PORT: '{printable(text)}'")
    return match[1] or match[2] or match[4] or "", port


def make_parser() -> Parser:
    # docs/install/make.py also calls this, for the man page and the completion
    parser = Parser(
        PROG,
        purpose="Run jobs that runmaker4-server.py hands out, in this directory, with the files of "
                "`#RUN send=`.",
        usage="[options] SERVER",
        examples=f"Run four jobs at a time:\n"
                 f"    {PROG} -j4 alice          (where runmaker4-server.py runs)",
        notes={"Directory": "jobs run where the client was started, or (`scratch=yes`) below.",
               "Signals": SIGNALS,
               "Variables": f"{JOB_VARIABLES}; the client's: NO_COLOR, RUNMAKER4_TOKEN."},
        statuses={
            "0": "nothing in the file is !, e, r without a runner, or left for this client",
            "1": "a job is, on any runner; or results are not written",
            "2": "bad usage, or no server",
            "130, 143": "ended by a signal",
        },
    )
    add = parser.add_argument_group("which jobs, and how many").add_argument
    add("server", metavar="SERVER", type=server_address,
        help="the host where runmaker4-server.py runs, or HOST:PORT")
    add_running_options(add)
    add("--follow", action="store_true", help="wait for more jobs")
    add = parser.add_argument_group("connection to the server").add_argument
    add("--token", metavar="TOKEN", help="the token of the server, or a file with it [$RUNMAKER4_TOKEN, "
                                         "~/.runmaker4.token, or asked]")
    add("--port", type=integer_between(1, 65535), metavar="N", help=f"the server's port [{PORT}]")
    add("--give-up", type=lambda text: 0.0 if text == "0" else duration(text), metavar="T",
        help="exit if there is no server for T; 0: at once [never]")
    add = parser.add_argument_group("background and hosts").add_argument
    add_background_options(add)
    add("--name", type=check_not_empty, metavar="NAME",
        help="this host's name (messages, host=) [the node name]")
    add_limit_options(parser.add_argument_group("limits").add_argument)
    add_verbosity_options(parser.add_argument_group("output").add_argument)
    add_general_options(parser)
    return parser


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options; `server` and `port` are what to dial."""
    parser = make_parser()
    options = parser.parse(argv)
    options.server, port = options.server
    if port and options.port and options.port != port:
        parser.error(f"give only one of --port {options.port} and SERVER:{port}")
    options.port = options.port or port or PORT
    return options


# ======== The token =========================================================================================
#
# No message shows the token.


class Token(NamedTuple):
    text: str
    source: str                 # for messages, for example '--token'


def find_token(token_option: str | None) -> Token:
    """Return the token of the first that is given: --token, $RUNMAKER4_TOKEN, the token file, user's input.

    Ask the user only on a terminal, and if there is no token file.  A bad token is an error: no later
    source is tried.  token_option: a token or the path of a file; None: not given.
    """
    if token_option is None:
        if from_environment := token_of_environment():
            return Token(from_environment, "$RUNMAKER4_TOKEN")
    elif HEX_128_BITS.fullmatch(token_option):
        return Token(token_option, "--token")
    path = token_path()
    try:
        if token_option is not None:
            return Token(read_token(token_option), "--token")
        if not os.path.lexists(path) and os.isatty(0):
            exit_on(*KILL_SIGNALS)      # by an exception, so that getpass() restores the echo
            try:
                typed = getpass.getpass("Token (the server prints it): ").strip()
            except EOFError:
                typed = ""
            if not HEX_128_BITS.fullmatch(typed):
                raise UsageError("not a token (32 hexadecimal digits)")
            return Token(typed, "the terminal")
        return Token(read_token(path), path)
    except UsageError as problem:
        raise UsageError(f"token: {problem}") from None
    except OSError as error:
        why = f"no token: {path}: {error_text(error)} (--token gives it; the server prints it)"
        if token_option is not None:
            why = "--token: neither a token (32 hexadecimal digits) nor a file that can be read"
        raise UsageError(why) from None


# ======== Dialling ==========================================================================================
#
# Before the event loop, and before the program goes into the background, we connect once and close that
# connection, so that errors appear on the user's terminal.


@dataclass(frozen=True)
class Endpoint:
    host: str
    port: int
    token: Token
    context: ssl.SSLContext

    def open_channel(self, file_id: str = "") -> ClientChannel:
        return ClientChannel(self.token.text, self.context, file_id)

    def try_to_connect(self, seconds: float) -> None:
        """Connect, authenticate both ends, and close the connection: a test before the event loop.

        Raises OSError or WireError, for which why_unreachable() and why_rejected() have texts.  seconds: for
        all of this.
        """
        deadline = boottime() + seconds
        channel = self.open_channel()
        with socket.create_connection((self.host, self.port), timeout=seconds) as sock:
            while not channel.is_authenticated:
                sock.settimeout(max(deadline - boottime(), 0.01))       # with 0 the socket would not block
                if not (data := sock.recv(1 << 16)):
                    raise ConnectionResetError("the server has closed the connection")
                channel.receive(data)
                sock.sendall(channel.take_outgoing())

    def why_unreachable(self, error: Exception) -> str:
        """Return why no connection was made, and a remedy: 'port 9998: no answer (is ...)'."""
        if isinstance(error, socket.gaierror):
            return error_text(error)
        number = error.errno if isinstance(error, OSError) else None
        text = os.strerror(number).lower() if number and number > 0 else "no connection"
        if isinstance(error, (TimeoutError, asyncio.TimeoutError, socket.timeout)):
            text = "no answer"
        return f"port {self.port}: {text} (is runmaker4-server.py running on that host?)"

    def why_rejected(self, error: WireError) -> str:
        """Return why authentication failed, and a remedy: 'wrong token, from ...'."""
        if str(error) == "wrong token":
            return (
                f"wrong token, from {printable(self.token.source)} (the first line that the server printed "
                "names the file with the right one; give it with --token)"
            )
        if isinstance(error, RefusedError):         # by another version of the protocol
            return f"{error} (use the same release on both ends)"
        return f"no runmaker4-server.py: {error}"


# ======== What the server must learn ========================================================================
#
# Everything that must not be lost is an event: a run has started, printed or ended; a job has a result, or is
# given back.  The `Outbox` keeps events until the server has written them to files, and acknowledges them.
# A new connection makes all events unsent again, in order, and adds the `begin` of runs that go on, which
# another server needs.  The server reports the last event that it has dealt with; only later ones are sent.


@dataclass(eq=False)
class Event:
    """A message that must not be lost, kept until the server has acknowledged it."""
    message: Fields             # of type 'begin', 'output', 'end' or 'finish'; `n` is the number
    size: int                           # bytes of output


class RemoteJob(Job):
    """A job from the server, and what the server must learn about it."""
    key = ""
    of_group = False                    # with together=
    result: bytes | None = None         # NEW: given back; None: not finished
    result_text = "not started"         # the last run: "exit 0", "signal 9"
    loses_host = True                   # of a group: that run had a timeout, or was not started
    # of the current run, once acknowledged, until the `end` is: another server would also need it
    begin: Event | None = None
    send: Sequence[bytes] = ()          # paths of files that it needs
    fetch: Sequence[bytes] = ()         # ... and that it makes; with scratch=yes, names for is_result()
    scratch = False
    tree: FileTree                      # of the directory in which it runs, from Porter.bring() on

    @classmethod
    def from_message(cls, item: Message) -> RemoteJob:
        """Return a job from an item of a `jobs` message, which the server's make_job_entry() has made.

        Raises WireError.
        """
        slots = item.integer("slots")
        # null: no limit; negative: in percent; as in JobSettings
        timeout = item.get("timeout", 0)
        is_percent = isinstance(timeout, float) and timeout < 0
        # further amounts apply after a run without enough memory
        needs, *larger_needs = (Resources(slots, memory) for memory in item.list_of("memory", int) or [0])
        job = cls(item.job_line(), JobSettings(
            timeout=timeout if timeout is None or is_percent else item.seconds("timeout"),
            needs=needs,
            larger_needs=tuple(larger_needs),
            shell=os.fsdecode(item.data("shell")),
        ))
        job.key = item.text("id")
        job.of_group = item.boolean("group")
        job.gated = item.boolean("hold")            # in a group, until `go`
        job.send = list(map(to_bytes, item.list_of("send", str)))
        job.fetch = list(map(to_bytes, item.list_of("fetch", str)))
        job.scratch = item.boolean("scratch")
        return job


class Outbox:
    """Events for the server, in order."""

    def __init__(self) -> None:
        self._unsent: deque[Event] = deque()
        self._in_flight: deque[Event] = deque()
        self._numbers = itertools.count(1)
        self._in_flight_bytes = 0                   # of output
        self.backlog = 0                            # bytes of unsent output

    @property
    def is_empty(self) -> bool:
        return not self._unsent and not self._in_flight

    def add(self, message: Fields, size: int) -> None:
        """Queue an event.  size: bytes of output."""
        message["n"] = next(self._numbers)
        self._unsent.append(Event(message, size))
        self.backlog += size

    def send(self, link: ServerLink) -> None:
        """Send events until the window is full: OUTPUT_WINDOW_BYTES of output that are not acknowledged."""
        # later events wait behind one that does not fit: they must arrive in order
        while self._unsent and self._in_flight_bytes + self._unsent[0].size <= OUTPUT_WINDOW_BYTES:
            event = self._unsent.popleft()
            self._in_flight.append(event)
            self.backlog -= event.size
            self._in_flight_bytes += event.size
            link.post(event.message)
        if self._unsent:
            link.flush()                # post() can wait 20 ms, but only an acknowledgement makes room

    def acknowledge(self, last_number: int) -> list[Event]:
        """Remove and return the events up to this number."""
        acknowledged = []
        while self._in_flight and self._in_flight[0].message["n"] <= last_number:
            event = self._in_flight.popleft()
            self._in_flight_bytes -= event.size
            acknowledged.append(event)
        return acknowledged

    def requeue_all(self, to_repeat: Iterable[Event], last_number: int) -> list[Event]:
        """Make all events unsent after the `welcome` of a server; remove and return those that it has.

        last_number: of the last event that it has dealt with; 0: a new server has none.  to_repeat: events
        that an earlier server has acknowledged, and a new server needs.
        """
        # all of them, because acknowledge() looks only at those in flight
        self._in_flight = deque([*sorted(to_repeat, key=lambda event: int(event.message["n"])),
                                 *self._in_flight, *self._unsent])
        acknowledged = self.acknowledge(last_number)
        self._unsent = self._in_flight
        self._in_flight = deque()
        self._in_flight_bytes = 0
        self.backlog = sum(event.size for event in self._unsent)
        return acknowledged


# ======== Files that travel =================================================================================
#
# A job waits until all files of send= have come, and after exit 0 until those of fetch= are at the server.
# Pieces are asked for, or sent, ahead: a few on a slow link, so that other messages need not wait for long.

SMALL_FILE_BYTES = 1 << 12          # of an input, with the answer which version there is
MAX_PIECES_AHEAD = 8                # of one file
MAX_PIECES = 24                     # of all files
SLOW_PIECE_SECONDS = 0.15           # more than the fastest piece took: link or disk is busy
RETRY_SECONDS = 1.0                 # after a file has changed while it travels
FULL_DISK_SECONDS = 5.0             # from one attempt to write at the server to the next


class FilesError(WireError):
    """Why a file cannot travel."""


class Porter:
    """Moves the files of jobs on one link after the other."""

    def __init__(self, tree: FileTree, say: Say) -> None:
        self.tree = tree
        self._say_once = once_per_subject(say)
        self._link: ServerLink | None = None
        self._link_came = asyncio.Event()
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Message | None]] = {}       # None: the link was lost
        self._places = asyncio.Semaphore(MAX_PIECES)
        # of each path that moves: several jobs can need a file
        self._locks: weakref.WeakValueDictionary[bytes, asyncio.Lock] = weakref.WeakValueDictionary()

    def on_link(self, link: ServerLink) -> None:
        self._link = link
        self._link_came.set()

    def on_link_lost(self) -> None:
        self._link = None
        self._link_came.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(None)

    def on_piece(self, message: Message) -> None:
        answer = self._answers.get(message.integer("ask"))
        if answer and not answer.done():
            answer.set_result(message)

    async def bring(self, job: RemoteJob) -> str:
        """Have the files of send=, and places for those of fetch=; return '', or why not.

        job.host_errno is set if this host is to blame.
        """
        job.travelled = job.host_errno = 0
        job.tree = self.tree
        return ((await self._for_all(self._make_directory, job, [b"its directory"]) if job.scratch else "")
                or await self._for_all(self._prepare, job, job.fetch)
                or await self._for_all(self._pull, job, [*dict.fromkeys(job.send)]))

    async def deliver(self, job: RemoteJob, state: bytes) -> str:
        """Have the files of fetch= at the server, if the job has made all; return '', or why not.

        After a failure, also of that, only those of a scratch job that are marked so travel.
        """
        paths, why = job.fetch if state == DONE else [], ""
        if job.directory:
            paths, why = await job.directory.call(job.directory.choose_results, job.fetch, job.send, state)
            if len(paths) > runmaker4.MAX_FILES:        # none travels, as the server would refuse the rest
                return f"more than {runmaker4.MAX_FILES:,} files of one job"
        error = (await self._for_all(self._find_version, job, paths)
                 or await self._for_all(self._push, job, paths))
        return why or error

    async def _make_directory(self, job: RemoteJob, _: bytes) -> None:
        """Make the directory of a job, in place of that of the run before."""
        if job.directory:
            await job.directory.call(job.directory.remove)
        job.directory = JobDirectory(self.tree, job.number)
        job.tree = job.directory.tree
        await job.directory.call(job.directory.make)

    async def _for_all(self, move: Callable[[RemoteJob, bytes], Awaitable[object]], job: RemoteJob,
                       paths: Iterable[bytes]) -> str:
        """Call move() for each file, again while that is False; return '', or why one failed."""
        async def move_one(path: bytes) -> str:
            try:
                async with self._locks.setdefault(path, asyncio.Lock()):
                    while await move(job, path) is False:
                        await asyncio.sleep(RETRY_SECONDS)
                return ""
            except WireError as error:
                return f"{display_text(path)}: {error}"
            except OSError as error:
                self.tree.forget([path])        # it can fill the disk
                job.host_errno = error.errno or 0
                return f"{display_text(path)}: {error_text(error)} at the client"

        paths = [*paths]
        errors: dict[bytes, str] = {}
        remaining = iter(paths)

        async def move_remaining() -> None:
            for path in remaining:
                errors[path] = await move_one(path)

        await asyncio.gather(*(move_remaining() for _ in paths[:MAX_PIECES]))
        return next(filter(None, map(errors.get, paths)), "")

    async def _prepare(self, job: RemoteJob, path: bytes) -> bool:
        """Make the directory of a file of fetch= at both ends; return False if the link was lost."""
        is_file = True
        if job.scratch:
            name = own_name(path)
            beginning = literal_beginning(path)
            is_file = name == beginning and not name.endswith("/")
            path = os.fsencode(name if is_file else f"{beginning}x")
        await job.tree.call(job.tree.make_directory, path)
        return not is_file or await self._ask(job, path, NO_OFFSET, kind="place") is not None

    async def _find_version(self, job: RemoteJob, path: bytes) -> FileVersion:
        try:
            return (await job.tree.call(job.tree.read_piece, path))[0]
        except OSError as error:
            raise FilesError(f"the job has not made this file ({error_text(error)})") from None

    async def _pull(self, job: RemoteJob, path: bytes) -> bool:
        """Receive a file; return False if it has changed, the link is lost, or another client receives it."""
        if not (first_answer := await self._ask(job, path, 0, SMALL_FILE_BYTES)):
            return False
        version = FileVersion.from_message(first_answer)
        add = partial(self.tree.call, self.tree.add_piece, path, version)

        async def add_answer(end: int, answer: Message) -> int:
            if FileVersion.from_message(answer) != version:
                return -1
            return await add(end, answer.file_bytes)

        data = first_answer.file_bytes
        end = await (add(0, data) if len(data) == version.size else add(NO_OFFSET, b""))
        if await self._move_pieces(version.size, end, partial(self._ask, job, path), add_answer):
            if job.directory:
                is_result = path in {os.fsencode(own_name(name)) for name in job.fetch}
                await job.directory.call(job.directory.add_input, path, UNMADE if is_result else version)
            return True
        # let another client in this directory receive it, as long as the part grows
        while end != (new_end := await add(NO_OFFSET, b"")) and new_end < version.size:
            end = new_end
            await asyncio.sleep(RETRY_SECONDS)
        return False

    async def _push(self, job: RemoteJob, path: bytes) -> bool:
        """Send a file; return False if it has changed, or its end at the server, or the link was lost."""
        version = await self._find_version(job, path)
        ask = partial(self._ask, job, path, version=version)

        async def read_end(_: int, answer: Message) -> int:
            return answer.integer("end")

        # whatever the server has of a larger file does not go again
        first_answer = await ask(0 if version.size <= SMALL_FILE_BYTES else NO_OFFSET, SMALL_FILE_BYTES)
        return first_answer is not None and await self._move_pieces(
            version.size, first_answer.integer("end"), ask, read_end)

    async def _move_pieces(self, size: int, end: int, ask: Callable[[int, int], Awaitable[Message | None]],
                           take: Callable[[int, Message], Awaitable[int]]) -> bool:
        """Move a file from an offset on; return False if take() does not return the end of the piece.

        Also if the link was lost: what had come by then is not asked for, or sent, again.
        """
        # the end of each piece, when it was asked for, and the answer
        asked: deque[tuple[int, float, asyncio.Future[Message | None]]] = deque()
        next_offset, most_asked, length, least_seconds = end, 1, FILE_PIECE_BYTES, FOREVER
        try:
            while end < size:
                while next_offset < size and len(asked) < most_asked:
                    task = asyncio.ensure_future(ask(next_offset, length))
                    next_offset = min(next_offset + length, size)
                    asked.append((next_offset, boottime(), task))
                wanted_end, asked_at, future = asked.popleft()
                answer = await future
                if not answer or await take(end, answer) != wanted_end:
                    return False
                end = wanted_end
                seconds = boottime() - asked_at
                least_seconds = min(least_seconds, seconds)
                is_slow = seconds > least_seconds + SLOW_PIECE_SECONDS
                most_asked = max(most_asked // 2, 1) if is_slow else min(most_asked + 1, MAX_PIECES_AHEAD)
                length = FILE_PIECE_BYTES if is_slow else min(2 * length, LARGE_PIECE_BYTES)
            return True
        finally:
            for *_, future in asked:
                future.cancel()
            await asyncio.gather(*(future for *_, future in asked), return_exceptions=True)

    async def _ask(self, job: RemoteJob, path: bytes, offset: int, length: int = 0,
                   version: FileVersion | None = None, kind: str = "get") -> Message | None:
        """Ask for a piece by a message of this kind, or send one of a version; return the answer.

        None: the link was lost, or the file has changed.  While the server cannot write the file, do that
        again.  Raises FilesError, OSError.
        """
        fields: Fields = dict(type=kind, id=job.key, path=to_text(path), offset=offset, length=length)
        data = b""
        if version:
            fields.update(version._asdict(), type="put")
        while True:
            async with self._places:
                if version:
                    found, data = await job.tree.call(job.tree.read_piece, path, offset, length)
                    if found != version:
                        return None
                answer = await self._send_and_await(fields, data)
            if not answer:
                return None
            job.travelled += len(data or answer.file_bytes)
            if "error" not in answer:
                return answer
            error = answer.text("error")
            if not answer.boolean("again"):
                raise FilesError(f"{error} at the server")
            self._say_once(to_text(path), f"{display_text(path)}: {error} at the server; trying again")
            await asyncio.sleep(FULL_DISK_SECONDS)

    async def _send_and_await(self, fields: Fields, data: bytes) -> Message | None:
        """Send a message with bytes of a file, and return the answer; None: lost: on_link_lost()."""
        await self._link_came.wait()
        link = self._link
        if link:
            await link.writable.wait()
        if not link or link is not self._link:
            return None
        number = next(self._numbers)
        answer: asyncio.Future[Message | None] = link.loop.create_future()
        self._answers[number] = answer
        link.post(dict(fields, ask=number), data)
        link.flush()
        try:
            return await answer
        finally:
            del self._answers[number]


# ======== The connection ====================================================================================
#
# `RemoteJobs` gives the `Runner` jobs, as a job file does in runmaker4.py.  It never waits for the server:
# claim() returns a job that has arrived, or asks for some; finish() queues an event.
# `Requests` decides how many jobs to ask for; `LinkLife` opens one `ServerLink` after the other.  The steps
# on each link:
#
#     1. We send `have` for each job that we hold, then `hello`.
#     2. `welcome` has our last event that the server has dealt with.  Now the link is in use.  `lost` follows
#        for each job that others have taken, and we kill it.
#     3. Each request for jobs has a number, which the answer repeats: `jobs`, or `nothing` if we would exit.
#        An answer proves that the server was alive when the request was sent.  We start a job only soon
#        after that, for the line can become `e` once we are silent for the grace.
#     4. When the link is lost, jobs keep running.  We give back the jobs without a slot, because the next
#        server must know that they were not started; but we just forget the jobs of a group.
#     5. While we have jobs or results, we accept only a server of the same file: the handshake ends before we
#        have named a job if a server proves another file id.
#
# To exit, we wait until all events are acknowledged, ask for a summary of the file, and send `bye`.


class Complaint(enum.IntEnum):
    """The gravest report since the server was lost: each is made once."""
    NOTHING = 0
    LOSS = 1
    SILENCE = 2                         # and no server has answered for SILENCE_SECONDS
    REFUSAL = 3                         # why a server refuses us


class ServerLink(Link, asyncio.Protocol):
    channel: ClientChannel

    def __init__(self, jobs: RemoteJobs, channel: ClientChannel) -> None:
        super().__init__(channel, jobs.loop)
        self._jobs = jobs
        self.lost_reason: asyncio.Future[str] = jobs.loop.create_future()

    def on_authenticated(self) -> None:
        self._jobs.greet(self)

    def handle(self, message: Message) -> None:
        self._jobs.handle(self, message)

    def on_disconnected(self, why: str) -> None:
        self.lost_reason.set_result(why)

    def request(self, kind: str, **fields: Any) -> int:
        """Send a request; return the number: the time in microseconds."""
        number = int(boottime() * 1e6)
        self.send(type=kind, request=number, **fields)
        return number


class LinkLife:
    """Keeps a client's link alive, and dials again when it is lost.

    Only one attempt or link exists at a time; on_welcome() and so on:

        state     welcome   lost   pause over   conclude
        DOWN      IN_USE    same   same/OVER    OVER
        IN_USE    same      DOWN   x            OVER
        OVER      x         same   same         same

    DOWN: no server has sent a welcome since the last link was lost: we dial, greet or wait.  IN_USE: there is
    a `link`.  OVER: not `wants_server`: we exit, or the server does, or --give-up is over.  A pending attempt
    can still succeed or fail, but all messages of the server are ignored.  x: cannot happen.
    """

    def __init__(self, endpoint: Endpoint, give_up: float | None, reported_complaint: Complaint) -> None:
        """give_up: exit after these seconds without a server; None: never.

        reported_complaint: by the attempt before the event loop.
        """
        self._endpoint = endpoint
        self._give_up_seconds = FOREVER if give_up is None else give_up
        self.reported_complaint = reported_complaint        # since the last welcome
        self.wants_server = True
        # on which messages can be sent and are understood (welcome and closing always are)
        self.link: ServerLink | None = None
        self.file = ""                              # the job file of the last server
        self.file_id = ""                           # its file id; "": no server has accepted us yet
        self.down_since = boottime()               # when the last link in use was lost
        self._grace = 0.0                           # seconds for which the server keeps our lines
        self._server_alive_at = -FOREVER            # when the last answered request was sent
        self._next_pause = MIN_PAUSE_SECONDS        # to the next attempt, in seconds

    @property
    def was_accepted(self) -> bool:
        return self.file_id != ""

    @property
    def can_start_jobs(self) -> bool:
        """Return True if the server has answered a recent request.

        A server that hears nothing from us for the grace gives our jobs to others: one that starts later
        could run twice.  Half of the grace is the safety margin.
        """
        return (self.link is not None and boottime() - self._server_alive_at
                < min(self._grace / 2, runmaker4.MAX_SILENT_SECONDS))

    def on_welcome(self, link: ServerLink, file: str, grace: float) -> str:
        """Use a link after the welcome; return a message such as 'serving runs.txt'.

        grace: seconds for which the server keeps our lines without us.
        """
        file_id = link.channel.file_id
        message = f"serving {file}"
        if self.was_accepted:
            message = "connected again"
            if file_id != self.file_id:
                message = f"connected again; serving another file: {file}"
        self.link = link
        self.file = file
        self.file_id = file_id
        self.reported_complaint = Complaint.NOTHING
        self._grace = grace
        self._next_pause = MIN_PAUSE_SECONDS
        return message

    def on_answer(self, number: int) -> None:
        """Note that the server was alive when we sent this request."""
        # a wrong answer may not name a time to come
        self._server_alive_at = max(self._server_alive_at, min(number / 1e6, boottime()))

    def on_lost(self, complaint: Complaint) -> bool:
        """Note a lost link, or a failed attempt to get one; return True if the caller must report it.

        Attempts follow each other: report a loss once, and once more a long silence and a refusal, which name
        a remedy.
        """
        if not self.wants_server:
            return False
        if self.link:
            self.down_since = boottime()
        self.link = None
        must_report = complaint > self.reported_complaint
        self.reported_complaint = max(self.reported_complaint, complaint)
        return must_report

    async def connect(self, jobs: RemoteJobs, file_id: str) -> ServerLink:
        """Open a connection to the server; return it as a link, before the handshake.

        file_id: of the file that the server must have; '': any.  Raises OSError, asyncio.TimeoutError.
        """
        endpoint = self._endpoint
        link = ServerLink(jobs, endpoint.open_channel(file_id))
        await asyncio.wait_for(
            # the next address of a host is tried after 0.25 s (RFC 8305)
            jobs.loop.create_connection(
                lambda: link, endpoint.host, endpoint.port, happy_eyeballs_delay=0.25
            ),
            min(MAX_CONNECT_SECONDS, self._seconds_left()))
        return link

    async def keep_alive(self, link: ServerLink) -> str:
        """Keep a new link until it is lost; return why.

        Pings show that the server lives, and allow us to start jobs.  Drop the link if the server is silent,
        or if the `welcome` takes too long.
        """
        opened_at = boottime()
        while not link.lost_reason.done():
            # several pings in the half grace for which an answer lets us start jobs
            await asyncio.wait([link.lost_reason], timeout=(
                min(runmaker4.PING_SECONDS, self._grace / 8) if self.link else HANDSHAKE_POLL_SECONDS))
            now = boottime()
            # what follows does nothing to a link that is lost
            if self.link:
                if now - link.last_message_at > runmaker4.MAX_SILENT_SECONDS:
                    link.drop(f"nothing was heard for {human_time(runmaker4.MAX_SILENT_SECONDS)}")
                else:
                    link.request("ping")
            elif self.wants_server and now - opened_at > min(MAX_WELCOME_SECONDS, self._seconds_left()):
                link.drop("no answer")
        error = link.channel.error
        if isinstance(error, OtherFileError):
            return f"the server has another file; waiting for the server of {self.file}"
        if isinstance(error, RefusedError):
            return self._endpoint.why_rejected(error)
        return link.lost_reason.result()

    async def pause_before_retry(self) -> float | None:
        """Wait before the next attempt to connect; but give up once the time of --give-up is over.

        Return the seconds without a server if the client gives up: then the caller kills the jobs.  Otherwise
        None.
        """
        if not self.wants_server:
            return None
        seconds_down = boottime() - self.down_since
        if seconds_down >= self._give_up_seconds:
            self.conclude()
            return seconds_down
        # random, because otherwise all clients would reconnect at once
        await asyncio.sleep(min(self._next_pause * random.uniform(0.5, 1.0), self._seconds_left()))
        self._next_pause = min(2 * self._next_pause, MAX_PAUSE_SECONDS)
        return None

    def conclude(self) -> None:
        """Begin to exit for good, as we or the server do."""
        self.wants_server = False
        self.link = None

    def _seconds_left(self) -> float:
        """Return the seconds until the client gives up; at least 0.5, enough for an attempt."""
        return max(self._give_up_seconds - (boottime() - self.down_since), 0.5)


class Requests:
    """Decides what to ask the server for.

    `want` and memory are sent as differences, so jobs under way to us do not matter.
    """

    def __init__(self) -> None:
        self._pending_slots = 0     # for which requested jobs have not arrived
        self._reported_slots = 0    # in service
        # bytes that the server can still allocate: our offers less the needs of arrived jobs
        self._offered_memory = 0
        # of the claim that announced: if there is no job, we exit
        self._exit_request: int | None = None
        self.no_job = NoJob()

    def make_hello(self, slots: int, free_memory: float) -> dict[str, int]:
        """Return fields of a `hello`: slots in service, bytes of memory."""
        self._reported_slots = slots
        self._offered_memory = int(min(free_memory, runmaker4.MAX_INTEGER))
        return dict(slots=slots, memory=self._offered_memory)

    def send_claim(self, link: ServerLink, free: Resources, slots: int, exits_if_none: bool) -> None:
        """Ask the server for jobs by a `claim`, unless nothing has changed since the last one.

        The server goes by the newest claim, so each has `last`, which announces our exit, until it is
        answered.

        free: what the jobs that have arrived leave.  slots: in service.
        """
        wanted_slots = max(int(free.slots) - self._pending_slots, 0)
        more_memory = int(min(max(free.memory, 0), runmaker4.MAX_INTEGER)) - self._offered_memory
        if not (wanted_slots or more_memory or self._reported_slots != slots
                or (exits_if_none and self._exit_request is None)):
            return
        self._pending_slots += wanted_slots
        self._offered_memory += more_memory
        self._reported_slots = slots
        is_last = exits_if_none or self._exit_request is not None
        number = link.request("claim", want=wanted_slots, memory=more_memory, last=is_last, slots=slots)
        if is_last:
            self._exit_request = number

    def on_job(self, job: RemoteJob) -> None:
        self._pending_slots = max(self._pending_slots - int(job.settings.needs.slots), 0)
        self._offered_memory -= int(job.settings.needs.memory)

    def on_no_job(self, request: int, answer: NoJob) -> None:
        """Let the runner exit, as the answer says, if this or an earlier request announced that."""
        if answer.may_exit and self._exit_request is not None and request >= self._exit_request:
            self._exit_request = None
            self.no_job = answer

    def forget_no_job(self) -> None:
        self._exit_request = None
        self.no_job = NoJob()

    def on_lost(self) -> None:
        self._pending_slots = 0
        self.forget_no_job()


class RemoteJobs:
    """The server as the `Jobs` of a `Runner` (see runmaker4.Jobs): our jobs, and the events about them."""

    interval = FOREVER                  # the server says which jobs to kill
    poll = FOREVER                      # _wake_runner() wakes the runner

    def __init__(self, program: ClientProgram) -> None:
        self._program = program
        self.loop = program.loop
        self._say = program.say
        self._id = secrets.token_hex(8)  # of this client, for all servers and links
        self.link_life = LinkLife(program.endpoint, program.options.give_up, program.reported_complaint)
        self._requests = Requests()
        # the states of lines that the server must still run again for us: see Consumer.retry
        self._retry = to_text(program.retry)
        self._jobs: dict[str, RemoteJob] = {}       # with slots or results, by key
        self._jobs_ahead: dict[str, RemoteJob] = {}     # the others, oldest first, by key
        self._outbox = Outbox()
        # an acknowledgement or a summary came: summarize() can go on
        self._progress = asyncio.Event()
        # the summary of the server's file; None: the server has none
        self._summary: asyncio.Future[Summary | None] = self.loop.create_future()
        self._runner = program.make_runner(self, [ServerSink(self), *program.console], self._outbox)
        self._porter = Porter(FileTree(program.directory), self._say)
        self._medians: dict[bytes, float] = {}      # in seconds, by program; of the server's runs
        self._runner.read_median = lambda command: self._medians.get(name_program(command), 0.0)

    # -- as a Runner sees it ---------------------------------------------------------------------------------

    def our_job(self, job: Job) -> RemoteJob | None:
        """Return a job; None: another runner has the line, or the server has the result."""
        current = self._jobs.get(job.key) if isinstance(job, RemoteJob) else None
        return current if current is job else None

    async def claim(self, exits_if_none: bool, free: Resources, capacity: Resources) -> RemoteJob | NoJob:
        """Return a job that the server has sent, and ask for more; a NoJob if none can start now.

        Never wait for the server: _wake_runner() has the runner call this again.  exits_if_none: the runner
        exits if the server has no job for it.
        """
        first_job = next(iter(self._jobs_ahead.values()), None)
        # The first job waits until it fits and the server has answered, and the others wait for it: only
        # report our memory.  A job that has ended, or the answer, makes the runner claim again.
        if first_job and not (free.holds(first_job.settings.needs) and self.link_life.can_start_jobs):
            self._request_jobs(free._replace(slots=0))
            return NoJob()
        if first_job:
            del self._jobs_ahead[first_job.key]
            self._jobs[first_job.key] = first_job
            self._requests.forget_no_job()
            self._request_jobs(free - first_job.settings.needs)
            return first_job
        if not self._requests.no_job.may_exit:
            # the answer can be a job: without a free slot (--delay) it would have to go back
            self._request_jobs(free, free.slots > 0 and exits_if_none)
        return self._requests.no_job

    async def copy_lock_fds(self, job: Job) -> LockFds:
        """Return nothing to inherit: the server has the lock."""
        return ()

    async def still_has(self, job: Job) -> bool:
        """Return True if a job can run once more: without a server, others can get it meanwhile."""
        return self.our_job(job) is not None and self.link_life.can_start_jobs

    async def finish(self, job: Job, state: bytes) -> str:
        """Queue the event that a job has finished, if it is still ours.

        state: NEW: it was not started, so it is given back.  Return '': a server that cannot write the result
        sends a `fault` later.
        """
        if remote_job := self.our_job(job):
            # we killed it, because we exit: as if the link was lost
            if state == ERROR and self._runner.exits_early:
                remote_job.result_text, remote_job.loses_host = "vanished", True
            self._queue_result(remote_job, state)
            # no other try can use what has come of its files
            if state != NEW and remote_job.result_text == "not started":
                needed = {path for other in (*self._jobs.values(), *self._jobs_ahead.values())
                          if other.result is None for path in other.send}
                self._porter.tree.forget({*remote_job.send} - needed)
        return ""

    def _give_back(self, job: RemoteJob) -> None:
        # until this is acknowledged greet() names the job, as a next server must also learn that
        self._jobs[job.key] = job
        self._queue_result(job, NEW)

    def _queue_result(self, job: RemoteJob, result: bytes) -> None:
        job.result = result
        self.send_event(type="finish", id=job.key, state=to_text(result), how=job.result_text,
                        **({"lost": True} if job.loses_host else {}))   # rare, and of groups alone

    async def check_jobs(self) -> JobsToKill:
        """Return no job: a message of the server kills a job at once."""
        return {}

    async def summarize(self, runner: Runner) -> Summary | None:
        """Close the connection after the last job; return the server's summary of the file; None: unknown.

        First give back jobs without a slot, and wait until the server has written all results.
        """
        self._return_queued_jobs()
        started = boottime()
        # Wait until the server has acknowledged all events, or there will be no server; after a kill signal,
        # the end of the wall time or a defect, at most MAX_RESULT_SECONDS
        while not self._outbox.is_empty and self.link_life.wants_server:
            # a second Ctrl-C ends the wait
            if (runner.exits_early or self._program.defects) and (
                    runner.processes.kills_at_once or boottime() - started > runner.MAX_RESULT_SECONDS):
                break
            await self._wait_for_progress()
        if self._jobs:
            self._say(f"the results of {plural(len(self._jobs), 'job')} could not be sent to the server")
            for job in self._jobs.values():
                self._program.runner_stats.add_unwritten(job, job.result)
        # the answer `nothing` that let the runner exit had a summary already
        if runner.exit_summary and not self._summary.done():
            self._summary.set_result(runner.exit_summary)
        await runner.wait_unless_killed(self._request_summary())
        link = self.link_life.link
        self.link_life.conclude()
        if link:
            link.send(type="bye")
            link.flush()
            link.transport.close()
        return self._summary.result() if self._summary.done() else None

    @property
    def _has_unstarted_jobs(self) -> bool:
        """Return True if a job has no slot, or the server has not acknowledged that we gave it back."""
        return bool(self._jobs_ahead) or any(job.result == NEW for job in self._jobs.values())

    async def _wait_for_progress(self) -> None:
        self._progress.clear()
        await wait_for_event(self._progress, 0.2)

    async def _request_summary(self) -> None:
        """Ask the server for a summary of the file, and wait until it is in `_summary`, or time is over.

        Jobs can still arrive, for an earlier claim.  Give them back, and ask only when their lines are new:
        until then the server counts them as running.
        """
        started = boottime()
        asked_link = None
        while not self._summary.done() and self.link_life.wants_server:
            self._return_queued_jobs()
            link = self.link_life.link
            if self._has_unstarted_jobs:
                asked_link = None
            elif link and link is not asked_link:
                asked_link = link
                # all slots, also those that get no more jobs: a job that needs them counts as left for us
                link.send(type="account", slots=self._runner.slots.listed)
            if self.link_life.reported_complaint and not self.link_life.was_accepted:
                return                          # there was never a server
            if boottime() - started > (MAX_COUNT_SECONDS if link else MAX_CONNECT_SECONDS):
                return
            await self._wait_for_progress()

    # -- asking for jobs -------------------------------------------------------------------------------------

    def _request_jobs(self, free: Resources, exits_if_none: bool = False) -> None:
        """Ask for jobs for the free slots, and report our free memory.

        Without a link, or if the runner starts no more jobs, do nothing.  exits_if_none: announce that we
        exit if there is no job.
        """
        link = self.link_life.link
        if not link or self._runner.exit_step:
            return
        for job in self._jobs_ahead.values():       # they wait for a slot
            free -= job.settings.needs
        self._requests.send_claim(link, free, self._runner.slots.in_service, exits_if_none)

    def _return_queued_job(self, key: str) -> bool:
        if job := self._jobs_ahead.pop(key, None):
            self._give_back(job)
            # a slot can be free: while this job waited, claim() returned no later one
            self._wake_runner()
        return job is not None

    def _return_queued_jobs(self) -> None:
        for key in list(self._jobs_ahead):
            self._return_queued_job(key)

    def _return_late_jobs(self, arrived: Sequence[RemoteJob]) -> None:
        for job in arrived:
            # a job of a group that goes back makes the group fail
            if self._jobs_ahead.get(job.key) is job and not (job.of_group and self._program.options.delay):
                self._return_queued_job(job.key)

    def _wake_runner(self) -> None:
        self._runner.changed.set()

    # -- events ----------------------------------------------------------------------------------------------

    def send_event(self, size: int = 0, **message: Any) -> None:
        """Send a message that must not be lost.  size: bytes of output in it."""
        self._outbox.add(message, size)
        self._send_queued_events()

    def _send_queued_events(self) -> None:
        if link := self.link_life.link:
            self._outbox.send(link)

    def _on_acknowledged(self, events: Iterable[Event]) -> None:
        for event in events:
            job, kind = self._jobs.get(event.message["id"]), event.message["type"]
            if job and kind == "finish":
                del self._jobs[job.key]
            elif job and kind == "begin":
                job.begin = event       # until the `end` is acknowledged a next server would need it
            elif job and kind == "end":
                job.begin = None
        self._send_queued_events()
        if self._outbox.is_empty:
            self._progress.set()
        self._runner.pump.resume()      # the backlog is smaller: job output can be read again

    def _on_job_lost(self, key: str) -> None:
        """Handle a `lost`: another runner has the job's line, or the line is gone.  So kill our copy."""
        job = self._jobs.pop(key, None)
        self._jobs_ahead.pop(key, None)
        if not job:
            return
        if job.result is None:
            self._runner.kill_job(job, "lost")
        elif job.result != NEW:
            self._report_unwritten_result(
                job, "another runner took over this job, or its line was edited; "
                f"the result {display_text(job.result)} is not written"
            )

    def _report_unwritten_result(self, job: RemoteJob, error: str) -> None:
        self._say(f"line {job.number}: {error}")
        self._program.runner_stats.add_unwritten(job, job.result)

    # -- connecting ------------------------------------------------------------------------------------------

    async def stay_connected(self) -> None:
        """Connect, and reconnect after each loss, until the client exits or gives up.

        Raises UsageError if a server refuses us before any welcome.
        """
        while self.link_life.wants_server:
            complaint = Complaint.LOSS
            try:
                # the server of another file could not write our results; without jobs any file will do
                link = await self.link_life.connect(self, self.link_life.file_id if self._jobs else "")
                why = await self.link_life.keep_alive(link)
                # After a welcome neither kill jobs nor give up: this end has not proved that it knows the
                # token, and after a crash another user's server can have the port
                if isinstance(link.channel.error, RefusedError):
                    complaint = Complaint.REFUSAL
                    if not self.link_life.was_accepted:
                        raise UsageError(f"{self._program.endpoint.host}: {why}")
            except (OSError, asyncio.TimeoutError) as error:
                why = self._program.endpoint.why_unreachable(error)
            self._on_link_lost(why, complaint)
            seconds_down = await self.link_life.pause_before_retry()
            if seconds_down is not None:
                self._progress.set()
                self._runner.fail(f"no server for {human_time(seconds_down)}: {why}")
                self._runner.kill_jobs()

    def greet(self, link: ServerLink) -> None:
        """Name our jobs (`have`) and ourselves (`hello`) on a new link, when it is authenticated."""
        if not self.link_life.wants_server:     # we exit, or give up; this attempt was still under way
            return
        for job in self._jobs.values():             # one by one: a command can fill a message
            link.send(type="have", jobs=[dict(id=job.key, number=job.number, text=to_text(job.text),
                                              result=None if job.result is None else to_text(job.result))])
        link.send(
            type="hello",
            client=self._id,
            name=printable(os.fsdecode(self._program.host))[:MAX_NAME_CHARS],
            **self._requests.make_hello(self._runner.slots.in_service, self._program.memory),
            retry=self._retry,
            follow=self._program.options.follow,
            directory=to_text(self._program.directory),
        )

    def _on_link_lost(self, why: str, complaint: Complaint) -> None:
        """After a lost link or a failed attempt, give back jobs without a slot; report the loss once.

        Running jobs go on.  The events that give jobs back wait for the next link.
        """
        must_report = self.link_life.on_lost(complaint)
        self._porter.on_link_lost()
        if must_report:
            unfinished = f"; {plural(len(self._jobs), 'job')} not handed in yet" if self._jobs else ""
            self._say(f"{why}{unfinished}; trying again")
        seconds_down = boottime() - self.link_life.down_since
        # results that are not handed in are worth the wait
        if seconds_down > SILENCE_SECONDS and not self._jobs and self.link_life.on_lost(Complaint.SILENCE):
            self._say(f"{why}; no server has answered for {human_time(seconds_down)}; trying again (only "
                      "--give-up T limits that)")
        jobs_ahead = self._jobs_ahead
        self._jobs_ahead = {}
        for job in jobs_ahead.values():
            # A new server must know that a job was not started.  But if a job of a group goes back, we can
            # count as a lost host.  If we do not name that job, the same server sends it again
            # (Client._settle_unreported_jobs() there).
            if not job.of_group:
                self._give_back(job)
        for task in self._runner.tasks.values():
            # only of a job that waits for `go`: the server calls its group off when it loses a client
            task.refuse_gate()
        self._requests.on_lost()

    # -- messages --------------------------------------------------------------------------------------------

    def handle(self, link: ServerLink, message: Message) -> None:
        """Handle a message from the server.  Raises WireError: it is invalid, or comes before the welcome."""
        kind = message.text("type")
        if not self.link_life.wants_server:
            return
        if link is not self.link_life.link and kind not in ("welcome", "closing"):
            raise WireError("no welcome")
        if kind == "welcome":
            self._on_welcome(link, message)
        elif kind == "jobs":
            self._on_jobs_arrived(link, message)
        elif kind == "ack":
            self._on_acknowledged(self._outbox.acknowledge(message.integer("n")))
        elif kind == "nothing":
            self._on_no_job(message)
        elif kind == "pong":            # the server is alive: queued jobs can start
            request_number = message.integer("request")
            self._retry = to_text(message.retried_states())
            self.link_life.on_answer(request_number)
            if self._jobs_ahead:
                self._wake_runner()
            if any((task.timeout or 0.0) < 0 for task in self._runner.tasks.values()):
                link.send(type="medians")
        elif kind == "medians":         # for timeouts in percent
            self._medians = {item.data("program"): item.seconds("seconds")
                             for item in message.objects("medians")}
        elif kind == "fault":           # the server cannot write the result of a job
            job = self._jobs.get(message.text("id"))
            is_cancelled, error = message.boolean("cancelled"), message.text("text")
            if job:
                if is_cancelled:
                    job.tracking = Tracking.CANCELLED
                self._report_unwritten_result(job, error)
        elif kind == "piece":           # of a file, or that one has come
            self._porter.on_piece(message)
        elif kind == "lost":            # to another runner
            self._on_job_lost(message.text("id"))
        elif kind == "go":              # all jobs of a group are ready
            if job := self._jobs.get(message.text("id")):
                self._runner.open_gate(job)
        elif kind == "stop":            # a running job, or one that waits for a slot; ended ones are ignored
            key = message.text("id")
            cause = "cancelled" if message.boolean("cancelled") else "stopped"      # with the group
            job = self._jobs.get(key)
            if not self._return_queued_job(key) and job and job.result is None:
                self._runner.kill_job(job, cause)
        elif kind == "dismissed":       # our jobs fail, and those of other clients do not
            self._runner.fail(message.text("text"))
        elif kind == "account":         # before we exit
            self._on_summary(message)
        elif kind == "closing":
            if message.boolean("done"):         # the server exits for good, so we do, too
                self._on_summary(message)
                self.link_life.conclude()
                self._runner.drain()
            link.drop("the server was stopped")
        else:
            raise WireError(f"an unknown message {kind!a}")

    def _on_welcome(self, link: ServerLink, message: Message) -> None:
        """Use a link from now on, and send the events that the server lacks."""
        file = message.text("file")
        grace = max(message.seconds("grace"), 0.1)
        last_event = message.integer("seen")
        directory = message.data("directory")
        is_first_welcome = not self.link_life.was_accepted
        report = self.link_life.on_welcome(link, file, grace)
        here = self._program.directory
        if is_first_welcome and directory != here:
            report += f"; jobs run in {display_text(here)}, not in the server's {display_text(directory)}"
            self._runner.slots.first_broken = 0         # one bad end takes a slot out of service
        if not is_first_welcome or not self._program.options.quiet:
            self._say(report)
        # a new server needs the `begin` of runs that go on
        self._on_acknowledged(self._outbox.requeue_all(
            [job.begin for job in self._jobs.values() if job.begin], last_event))
        link.request("ping")                    # the answer allows us to start jobs
        self._porter.on_link(link)
        self._wake_runner()

    def _on_jobs_arrived(self, link: ServerLink, message: Message) -> None:
        """Queue jobs for the runner, perhaps more than were requested, and wake it."""
        request_number = message.integer("request")
        arrived = list(map(RemoteJob.from_message, message.objects("jobs")))
        for job in arrived:
            if job.send or job.fetch or job.scratch:
                job.bring, job.deliver = partial(self._porter.bring, job), partial(self._porter.deliver, job)
            self._jobs_ahead[job.key] = job         # it can come twice
            self._requests.on_job(job)
        # those that still have no slot by then go back, for other clients
        self.loop.call_later(MAX_QUEUED_SECONDS, self._return_late_jobs, arrived)
        self.link_life.on_answer(request_number)
        # if the answered request is too old, the server can have given the jobs to others since
        if not self.link_life.can_start_jobs:
            link.request("ping")
        self._requests.forget_no_job()          # an earlier answer is outdated
        self._wake_runner()

    def on_ready_to_start(self, job: Job) -> None:
        """Report that a job of a group is ready; `go` follows when all are."""
        remote_job = self.our_job(job)
        link = self.link_life.link
        if link and remote_job:
            link.send(type="ready", id=remote_job.key)

    def _on_no_job(self, message: Message) -> None:
        """Handle `nothing`, the answer to a claim that announced our exit; the runner then exits."""
        request_number = message.integer("request")
        # jobs ahead have arrived since the request, so then the runner stays
        self._requests.on_no_job(request_number, NoJob(
            may_exit=not self._jobs_ahead, why_left=message.text("left"),
            summary=self._read_summary(message),
        ))
        self.link_life.on_answer(request_number)
        self._wake_runner()

    def _on_summary(self, message: Message) -> None:
        summary = self._read_summary(message)
        if not self._has_unstarted_jobs and not self._summary.done():
            self._summary.set_result(summary)
        self._progress.set()

    def _read_summary(self, message: Message) -> Summary | None:
        """Return the server's summary of the file, for exit status and closing line; None: it is unreadable.

        The messages `account`, `nothing` and `closing` have one.
        """
        if message.get("account") is None:
            return None
        summary = Message(message["account"])
        counts = Message(summary.get("now"))
        return Summary(
            Counts(*(counts.integer(name) for name in Counts._fields)),
            bad_lines=tuple(summary.list_of("bad", int)),
            can_retry=summary.boolean("again"),
            # with -1, when each slot has had its job, jobs remain on purpose
            jobs_left=summary.boolean("left") and not self._runner.slots.each_had_job,
            first_stray=summary.integer("first_stray"),
            with_jobs=frozenset([NOBODY] * summary.boolean("stopped")),
            without_jobs={NOBODY: summary.text("lack", runmaker4.MAX_FRAME_BYTES)},
        )


# ======== What the server is told of runs ===================================================================
#
# The server acknowledges what is on the disk.  So that a short job leaves no file there, its output is held
# here, and sent with the `end`, which goes to the journal.


class ServerSink(Sink):
    """Reports the start, output and end of runs to the server."""

    def __init__(self, jobs: RemoteJobs) -> None:
        self._jobs = jobs
        # by run, in order: output by stream, held until the run is no longer short
        self._held_output: dict[Run, dict[bytes, bytearray]] = {}

    def on_started(self, run: Run) -> None:
        self._send_event(run, "begin", **begin_fields(run))
        self._held_output[run] = {}

    def on_no_result(self, run: Run) -> None:
        self._send_event(run, "begin", **begin_fields(run))
        self._send_end(run, run.no_result, "not started", True)

    def on_output(self, run: Run, stream: Stream, data: bytes) -> None:
        """Hold output while the run is short, to send it with the `end`; send that of longer runs at once.

        A run is short until it has printed MAX_SHORT_BYTES or taken MAX_SHORT_SECONDS (on_tick()).
        """
        held_output = self._held_output.get(run)
        if held_output is None:
            return self._send_output(run, stream.name, data)
        held = held_output.setdefault(stream.name, bytearray())
        held += data
        if len(held) > OutDir.MAX_SHORT_BYTES:
            self._send_held_output(run)

    def on_ended(self, run: Run, run_result: RunResult) -> None:
        """Report the end of a run, with output that is still held."""
        # on_tick() does so, too, but only once a second
        if run in self._held_output and run.duration > OutDir.MAX_SHORT_SECONDS:
            self._send_held_output(run)
        self._send_end(run, run_result, str(run_result), run_result.cause == "timeout")

    def on_tick(self) -> None:
        for run in list(self._held_output):
            if time.monotonic() - run.started > OutDir.MAX_SHORT_SECONDS:
                self._send_held_output(run)

    def _send_held_output(self, run: Run) -> None:
        for name, held in self._held_output.pop(run).items():
            self._send_output(run, name, bytes(held))

    def _send_output(self, run: Run, name: bytes, data: bytes) -> None:
        for start in range(0, len(data), runmaker4.MAX_PIECE_BYTES):
            chunk = data[start:start + runmaker4.MAX_PIECE_BYTES]
            self._send_event(run, "output", len(chunk), stream=to_text(name), data=to_text(chunk))

    def _send_end(self, run: Run, run_result: RunResult, result_text: str, loses_host: bool) -> None:
        if job := self._jobs.our_job(run.job):
            job.result_text, job.loses_host = result_text, loses_host
        # only a short run still has any; the server puts it into the journal
        held_output = self._held_output.pop(run, {})
        self._send_event(
            run,
            "end",
            sum(map(len, held_output.values())),
            **end_fields(run, run_result),
            **{to_text(name): to_text(bytes(held)) for name, held in held_output.items()},
            received=[stream.received for stream in run.streams],       # bytes
            timeout=run_result.limit if run_result.cause == "timeout" else 0.0,     # seconds
        )

    def _send_event(self, run: Run, kind: str, size: int = 0, /, **fields: Any) -> None:
        if job := self._jobs.our_job(run.job):
            self._jobs.send_event(size, type=kind, id=job.key, **fields)


# ======== The program =======================================================================================
#
# The loop has two tasks: one runs jobs, the other stays connected.


class ClientProgram(RunnerProgram):
    """Connects first, to report errors at once; then runs jobs."""

    def __init__(self, argv: Sequence[str]) -> None:
        options = parse_options(argv)
        context = tls_context(server_side=False)
        # this can refuse, and the next can ask the user
        self.endpoint = Endpoint(options.server, options.port, find_token(options.token), context)
        super().__init__(PROG, options.server, options)

    def check_and_open(self) -> None:
        """Check what the jobs need, and try to connect once.  Raises UsageError.

        If the server does not answer, the client waits for it, except with --give-up 0, or if waiting cannot
        help (an unknown host, a wrong token).
        """
        # a file of slots can be on a file system that blocks; a client keeps no records
        if self.slot_file:
            self.executor = FileExecutor(self.slot_file.mount.network, self.on_writer_relieved)
        # both ends of two pipes for each job, and the lock of its directory; 28 for the program itself
        allow_descriptors(len(open_descriptors()) + 28 + 5 * len(self.slots))
        self.report_if_no_slurm_time_left()
        # connect once: against some errors waiting cannot help
        host = self.endpoint.host
        self.reported_complaint = Complaint.NOTHING
        try:
            # 0: one attempt, and then no wait
            self.endpoint.try_to_connect(
                min(self.options.give_up or MAX_CONNECT_SECONDS, MAX_CONNECT_SECONDS))
        except UnicodeError:
            raise UsageError(f"{host}: unknown host: not a host name") from None
        except WireError as error:
            raise UsageError(f"{host}: {self.endpoint.why_rejected(error)}") from None
        except OSError as error:
            why = self.endpoint.why_unreachable(error)
            # EAI_AGAIN can pass: when a system starts, the name service can come after us
            is_unknown = isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN
            if is_unknown or self.options.give_up == 0:
                raise UsageError(f"{host}: {'unknown host: ' * is_unknown}{why}") from None
            self.say(f"{why}; trying again")
            if not self.options.daemon:         # else once more, where the messages go then
                self.reported_complaint = Complaint.LOSS
        if HEX_128_BITS.fullmatch(self.options.token or ""):
            self.say(
                "other users of this host can see the token in the list of processes (give --token a file, "
                "or set $RUNMAKER4_TOKEN)"
            )

    async def connect_parts(self) -> int:
        """Run the server's jobs, and stay connected meanwhile.  Return the exit status.

        It is 2 instead of 1 if no server ever accepted us.
        """
        names_pool = runmaker4.thread_pool()    # for the names of servers
        start_thread(names_pool)
        self.loop.set_default_executor(names_pool)
        # the same for all servers
        self.console = self.console_sinks(None, with_output=True, is_recorded=False)
        jobs = RemoteJobs(self)
        jobs_task = asyncio.ensure_future(self.run_and_report(jobs))
        self._connection_task = asyncio.ensure_future(jobs.stay_connected())
        await asyncio.wait([self._connection_task, jobs_task], return_when=asyncio.FIRST_COMPLETED)
        if self._connection_task.done() and isinstance(self._connection_task.exception(), UsageError):
            self._connection_task.result()      # raises it: the server refused us, and no job has started
        spawn_task(self._connection_task)       # any other exception in this running task is a defect
        exit_status = await jobs_task
        return 2 if exit_status == 1 and not jobs.link_life.was_accepted else exit_status

    def shut_down_after_defect(self) -> None:
        """After a defect, also kill the jobs if no task stays connected: no server would get results."""
        super().shut_down_after_defect()
        if self._connection_task.done():
            self.runner.kill_jobs()


def run_client(words: Sequence[str]) -> int:
    program = ClientProgram(words)
    program.check_and_open()
    return program.in_background()


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(PROG, run_client, argv)


if __name__ == "__main__":
    exit_now(main())
