#!/usr/bin/env python3
"""runmaker4-client - run jobs that a runmaker4-server.py hands out, on hosts that do not share its file
system.

    alice$ runmaker4-server.py runs.txt              bob$ runmaker4-client.py -j4 alice

It is runmaker4.py's `Runner` with a connection instead of a file: jobs come from there, and their results go
there.  Everything that must not be lost (a job has started, what it printed, how it ended) is an event with a
number.  It is kept, and sent again after each reconnect, until the server has acknowledged it.  What another
server would need to go on with the records of a run is kept for longer.  While the connection is gone, jobs
run on; output that the server wants is held back in their pipes once there are 2 MiB of it.

A job is asked for when a slot is free for it.  The server sends some jobs ahead if they are short.  A job
that no slot has taken after a second is given back.
The protocol stands in runmaker4-server.py.
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
import getpass
import json
import math
import os
import random
import re
import secrets
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

try:
    import runmaker4
except ModuleNotFoundError as missing:
    if missing.name != "runmaker4":
        raise
    print("runmaker4-client.py: runmaker4.py is missing (copy it to where this script is)", file=sys.stderr)
    sys.exit(2)

from runmaker4 import (
    ERROR,
    FAILING,
    HEX,
    JOB_VARIABLES,
    NEW,
    PORT,
    SIGNALS,
    ClientChannel,
    Counts,
    Failures,
    FileExecutor,
    Job,
    JobSettings,
    Lines,
    Link,
    Message,
    NoJob,
    OtherFile,
    Parser,
    Refused,
    Resources,
    Run,
    Runner,
    RunnerProgram,
    RunResult,
    Sink,
    Stream,
    Summary,
    UsageError,
    WireError,
    add_background,
    add_limits,
    add_running_options,
    add_verbosity,
    allow_descriptors,
    boottime,
    columns_of,
    duration,
    exit_on,
    human_time,
    leave,
    memory_text,
    nonempty,
    parse_running,
    plural,
    printable,
    put,
    read_token,
    reason,
    run_main,
    text_of,
    tls_context,
    to_bytes,
    to_text,
    token_of_environment,
    token_path,
    watched,
    whole_number,
)

if TYPE_CHECKING:
    import ssl

PROG = "runmaker4-client.py"
LONGEST_PAUSE = 30.0            # seconds from one attempt to connect to the next
CONNECT = 10.0                  # seconds that an attempt may take
DIALS = 4                       # attempts to connect, if connections are cut off before we are told why
UNSTARTED = 1.0                 # seconds after which a job that no slot has taken is given back
COUNTING = 30.0                 # seconds for a server to count the file: with orphans it looks three times
STATES = ("new", "running", "done", "failed", "error", "held")
EVER = 1e9                      # seconds: not before something happens


def duration_or_zero(text: str) -> float | None:
    """An argparse type: a duration, or 0."""
    return 0.0 if text == "0" else duration(text)


ADDRESS = re.compile(r"(?:\[([^\[\]]+)\]|([^:]+)):([0-9]{1,5})|([^:\[\]]*|[^\[\]]*:[^\[\]]*:[^\[\]]*)")


def server_address(text: str) -> tuple[str, int | None]:
    """An argparse type: a host and a port, or None for --port's, in 'alice', 'alice:9998', '::1' or
    '[::1]:9998'.
    """
    match = ADDRESS.fullmatch(text)
    port = int(match[3]) if match and match[3] else None
    if match is None or port == 0 or (port or 0) > 65535:
        raise argparse.ArgumentTypeError(f"not HOST or HOST:PORT: '{printable(text)}'")
    return match[1] or match[2] or match[4] or "", port


def make_parser() -> Parser:
    """The parser of the command line."""
    parser = Parser(
        PROG,
        purpose="Run jobs that runmaker4-server.py hands out to hosts without its file system.",
        usage="[options] SERVER",
        examples=f"Run four jobs at a time; see what waits, and what all clients do:\n"
                 f"    {PROG} -j4 alice          (where runmaker4-server.py runs)\n"
                 f"    {PROG} --status alice",
        notes={"Signals": SIGNALS,
               "Variables": f"{JOB_VARIABLES}; the client's: NO_COLOR, RUNMAKER4_TOKEN."},
        statuses={
            "0": "nothing in the file is !, e, r without a runner, or left for this client",
            "1": "something is, whoever ran it; results are not written",
            "2": "bad usage, or no server",
            "130, 143": "ended by a signal",
        },
    )
    add = parser.add_argument_group("which jobs, and how many").add_argument
    add("server", metavar="SERVER", type=server_address,
        help="the host where runmaker4-server.py runs, or HOST:PORT")
    add_running_options(add)
    add_limits(parser.add_argument_group("limits").add_argument)
    add = parser.add_argument_group("connection").add_argument
    add("--token", metavar="X", help="the server's token (others on this host see it), or a file with it "
                                     "[$RUNMAKER4_TOKEN, ~/.runmaker4.token, or asked]")
    add("--port", type=whole_number(1, 65535), metavar="N", help=f"the server's port [{PORT}]")
    add("--give-up", type=duration_or_zero, metavar="T",
        help="end if there is no server for T; 0: at once [never]")
    add = parser.add_argument_group("output").add_argument
    add_verbosity(add)
    add("--status", action="store_true", help="print what waits, and what all clients do, and exit")
    add("--json", action="store_true", help="with --status: as JSON")
    add = parser.add_argument_group("hosts and background").add_argument
    add("--name", type=nonempty, metavar="NAME", help="this host's name (messages, host=) [the node name]")
    add("--single-host", action="store_true", help="no other host uses @FILE: any file system will do")
    add_background(add)
    parser.set_defaults(slot_errors=0, max_failed=0)        # the server has --max-failed
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options.  Raises UsageError."""
    parser = make_parser()
    options = parse_running(parser, argv)
    host, port = options.server
    options.server = host
    if port and options.port and options.port != port:
        parser.error(f"--port {options.port} and SERVER:{port} do not go together")
    options.port = options.port or port or PORT
    if options.json and not options.status:
        parser.error("--json goes with --status")
    return options


# ======== The token =========================================================================================
#
# The first of these that exists counts: --token, $RUNMAKER4_TOKEN, the file that a server on this host or a
# user has written, what a person types.  It is read once, and no message shows it.


class Token(NamedTuple):
    """What proves to a server that we may come."""
    text: str
    source: str                 # where it comes from, for messages


def find_token(given: str | None) -> Token:
    """The token that --token, $RUNMAKER4_TOKEN, the file or a person gives.  No message shows it.

    given: what --token says; None: it is not given.  Raises UsageError.
    """
    if given is not None and HEX.fullmatch(given):
        return Token(given, "--token")
    of_environment = token_of_environment() if given is None else None
    if of_environment:
        return Token(of_environment, "$RUNMAKER4_TOKEN")
    path = token_path() if given is None else given
    try:
        if given is None and not os.path.lexists(path) and os.isatty(0):
            return Token(asked_token(), "the terminal")
        return Token(read_token(path), path if given is None else "--token")
    except UsageError as problem:
        raise UsageError(f"token: {problem}") from None
    except (OSError, ValueError) as error:
        if given is not None:
            raise UsageError(
                "--token: neither a token (32 hexadecimal digits) nor a file that can be read"
            ) from None
        fault = reason(error) if isinstance(error, OSError) else str(error)
        raise UsageError(f"no token: {path}: {fault} (--token gives it; the server prints it)") from None


def asked_token() -> str:
    """The token that somebody types, unseen.  Raises UsageError."""
    exit_on(signal.SIGINT, signal.SIGTERM)      # by an exception, so that getpass() restores the echo
    try:
        token = getpass.getpass("Token (the server prints it): ").strip()
    except EOFError:
        token = ""
    if not HEX.fullmatch(token):
        raise UsageError("that is none (32 hexadecimal digits)")
    return token


# ======== Dialling ==========================================================================================
#
# The first connection is made before there is an event loop, and before the program goes into the background,
# so that whoever has typed the command is told what is wrong.  --status needs no other connection.  A
# blocking socket does for both.


def receive(sock: socket.socket, end: float) -> bytes:
    """Some bytes that come before `end`, by boottime().

    Raises OSError, also if the other end has closed the connection.
    """
    sock.settimeout(max(end - boottime(), 0.01))
    data = sock.recv(1 << 16)
    if not data:
        raise ConnectionResetError("the server has closed the connection")
    return data


@dataclass(frozen=True)
class Endpoint:
    """Where the server listens, and what proves to it that we may come."""
    host: str
    port: int
    token: Token
    context: ssl.SSLContext

    def open_channel(self, wanted: str = "") -> ClientChannel:
        """Return a channel for a new connection.  wanted: the id of the file to be served; '': any."""
        return ClientChannel(self.token.text, self.context, wanted)

    def dial(self, seconds: float) -> tuple[socket.socket, ClientChannel]:
        """Connect, and authenticate both ends; `seconds` for an attempt.  Raises OSError, WireError.

        If the server cuts us off, the reset may overtake the message that says why: then we try again.
        """
        for _ in range(DIALS - 1):
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                return self._dial_once(seconds)
            time.sleep(random.uniform(0.02, 0.2))
        return self._dial_once(seconds)

    def _dial_once(self, seconds: float) -> tuple[socket.socket, ClientChannel]:
        """One attempt.  Raises OSError, WireError."""
        end = boottime() + seconds
        sock = socket.create_connection((self.host, self.port), timeout=seconds)
        channel = self.open_channel()
        try:
            while not channel.authenticated:
                channel.receive(receive(sock, end))
                sock.sendall(channel.outgoing())
        except (OSError, WireError):
            sock.close()
            raise
        return sock, channel

    def refusal(self, error: Exception) -> str:
        """Why there is no connection, and what to do about it."""
        number = error.errno if isinstance(error, OSError) else None
        text = os.strerror(number).lower() if number and number > 0 else "no connection"
        if isinstance(error, (TimeoutError, asyncio.TimeoutError, socket.timeout)):
            text = "no answer"
        return f"port {self.port}: {text} (does runmaker4-server.py run there?)"

    def rejection(self, error: WireError) -> str:
        """Why the server does not want us, and what to do about it."""
        if str(error) == "wrong token":
            return (
                f"wrong token, from {printable(self.token.source)} (the server's first line says where the "
                "right one is; --token gives it)"
            )
        if isinstance(error, Refused):
            return f"{error} (use the same release on both ends)"
        return f"no runmaker4-server.py: {error}"

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Raise UsageError if waiting cannot help: the host is unknown, or the server does not want us."""
        try:
            yield
        except (socket.gaierror, UnicodeError) as error:
            text = reason(error) if isinstance(error, OSError) else "no name of a host"
            raise UsageError(f"{self.host}: unknown host: {text}") from None
        except WireError as error:
            raise UsageError(f"{self.host}: {self.rejection(error)}") from None


# ======== What the server must learn ========================================================================
#
# Everything that must not be lost is an event: a run has begun, it has printed, it has ended; a job has its
# result, or is given back.  Events have numbers, from 1.  An event is
#
#     unsent, then in flight,     in the `Outbox`, until the server acknowledges it: what it says is in the
#                                 files then
#     told                        in its `RemoteJob`, if another server would need it to go on with the
#                                 records of a run: the `begin`, and the output of the line that is not yet
#                                 complete
#
# A new connection makes all of them unsent again, in the order of their numbers.  The server says up to which
# number it has dealt with them; those events are left out.


@dataclass(eq=False)
class Event:
    """Something that the server must learn of, kept until it has acknowledged it."""
    number: int
    message: dict[str, Any]
    size: int                           # bytes of output

    @property
    def key(self) -> str:
        """The key of the job that it is about."""
        return str(self.message["id"])

    @property
    def kind(self) -> str:
        return str(self.message["type"])

    @property
    def stream(self) -> str | None:
        """The stream of which it has output; None: it is about something else."""
        return self.message.get("stream")

    @property
    def data(self) -> bytes:
        """The output in it."""
        return to_bytes(self.message["data"])

    def repeat(self) -> None:
        """Mark a `begin` that a server has had already, for the next server."""
        self.message["again"] = True

    def cut(self, count: int) -> None:
        """Drop the first bytes of the output in it."""
        self.message.update(at=self.message["at"] + count, data=to_text(self.data[count:]))
        self.size -= count


@dataclass(eq=False)
class RemoteJob(Job):
    """A job that a server has given us."""
    key: str = ""
    of_group: bool = False              # with together=: not given back when the connection is lost
    result: bytes | None = None         # see add_result(); None: it has not ended
    # why its last run ended: one of FAILING, "unstarted" (no run has begun), or "": none of these
    cause: str = "unstarted"
    mark: str = ""                      # of the last run that the server was told of
    # acknowledged events that another server would need, too
    replay: list[Event] = field(default_factory=list)

    @classmethod
    def read(cls, item: Message) -> RemoteJob:
        """A job in a `jobs` message.  Raises WireError."""
        slots = item.whole("slots", 100_000)
        needs, *more = (Resources(slots, memory) for memory in item.items("memory", int) or [0])
        return cls(
            item.whole("number"),
            0,
            item.whole("offset"),
            NEW,
            item.data("text"),
            key=item.text("id", 16),
            settings=JobSettings(
                timeout=item.timeout("timeout"),
                needs=needs,
                more=tuple(more),
                shell=os.fsdecode(item.data("shell")),
            ),
            of_group=item.flag("group"),
        )

    @property
    def has_ended(self) -> bool:
        """Whether it has a result, or is given back."""
        return self.result is not None

    @property
    def slots(self) -> int:
        """How many slots it takes."""
        return int(self.needs.slots)

    def describe(self) -> dict[str, Any]:
        """What a `have` message says of it."""
        return dict(
            id=self.key,
            number=self.number,
            offset=self.offset,
            text=to_text(self.text),
            run=self.mark,
            result=None if self.result is None else to_text(self.result),
        )

    def add_run(self, mark: str) -> None:
        """Note the run of which the server is being told."""
        self.mark = mark

    def on_run_end(self, cause: str) -> None:
        """Note why its last run has ended."""
        self.cause = cause

    def add_result(self, result: bytes) -> None:
        """Note the state of which the server is being told as its result; NEW: it is given back."""
        self.result = result

    def keep_for_replay(self, event: Event) -> None:
        """Keep of an acknowledged event what another server would need.

        Such a server must know of a run that goes on, and of the lines of output that it has begun.
        """
        if event.kind == "begin":
            event.repeat()
            self.replay = [event]
        elif event.kind == "output":
            self._keep_output(event)
        else:
            self.replay = []

    def _keep_output(self, event: Event) -> None:
        """Keep the line that a stream has begun, unless it is too long: servers do not wait for its end."""
        whole = event.data.rfind(b"\n") + 1
        begun = [other for other in self.replay if other.stream == event.stream]
        if whole or sum(other.size for other in begun) > Lines.LONGEST:
            self.replay = [other for other in self.replay if other not in begun]
        if whole < len(event.data):
            event.cut(whole)
            self.replay.append(event)


class Outbox:
    """What the server must learn, in order: each event is kept until the server has acknowledged it.

    It is unsent first, then in flight.  Output is sent only as far as the server's window allows, and events
    behind it wait, too.  After a reconnect all that was in flight is unsent again.
    """

    def __init__(self) -> None:
        self._unsent: deque[Event] = deque()
        self._in_flight: deque[Event] = deque()
        self._last = 0                              # the number of the last event
        self._window = runmaker4.PIECE              # bytes of output that may be in flight
        self._flying = 0                            # bytes of output that are in flight
        # bytes of output that are unsent; output in flight holds back no job that prints
        self.backlog = 0

    @property
    def is_empty(self) -> bool:
        """Whether the server has acknowledged all events."""
        return not self._unsent and not self._in_flight

    def set_window(self, size: int) -> None:
        """Allow so many bytes of output in flight, as the server says."""
        self._window = max(size, 1)

    def add(self, message: dict[str, Any], size: int) -> None:
        """Add an event, to be sent.  size: the bytes of output in it."""
        self._last += 1
        message["n"] = self._last
        self._unsent.append(Event(self._last, message, size))
        self.backlog += size

    def send(self, link: ServerLink) -> None:
        """Send what the window allows."""
        while self._unsent and (self._flying < self._window or not self._unsent[0].size):
            event = self._unsent.popleft()
            self._in_flight.append(event)
            self.backlog -= event.size
            self._flying += event.size
            link.post(event.message)

    def acknowledge(self, upto: int) -> list[Event]:
        """Drop the events in flight up to this number: the server has dealt with them.  Returns them."""
        done: list[Event] = []
        while self._in_flight and self._in_flight[0].number <= upto:
            event = self._in_flight.popleft()
            self._flying -= event.size
            done.append(event)
        return done

    def replay(self, kept: Iterable[Event], seen: int) -> list[Event]:
        """Make all events unsent for a new connection, but those up to `seen`: these are returned.

        seen: up to this number the server has dealt with them.  kept: acknowledged events that another server
        would need.
        """
        self._unsent.extendleft(reversed(self._in_flight))
        self._unsent.extendleft(sorted(kept, key=lambda event: event.number, reverse=True))
        self._in_flight.clear()
        done: list[Event] = []
        while self._unsent and self._unsent[0].number <= seen:
            done.append(self._unsent.popleft())
        self._count()
        return done

    def drop(self, key: str) -> None:
        """Drop all events of a job: the server is not to learn of them."""
        self._unsent = deque(event for event in self._unsent if event.key != key)
        self._in_flight = deque(event for event in self._in_flight if event.key != key)
        self._count()

    def _count(self) -> None:
        """Count the bytes of output anew."""
        self._flying = sum(event.size for event in self._in_flight)
        self.backlog = sum(event.size for event in self._unsent)


# ======== The connection ====================================================================================
#
# A `Connection` is to its `Runner` what a job file is to runmaker4.py's: claim() takes a job that has come,
# or asks for some; finish() and release() make an event of the result.  None of them waits for the server.
# It has two parts: `Requests` decides what the server is asked for; `LinkLife` opens one `ServerLink` after
# the other, and knows by its state what may be done.  On each link it goes like this:
#
#     1. We say `have` of each job that we hold, then `hello`.
#     2. `welcome` says which of these jobs are others' by now (they are ended), which results the server has,
#        and with which of our events it has dealt: the `Outbox` sends the rest.  From then on the link is in
#        use.
#     3. Jobs are asked for with a number.  The server answers with `jobs`, or with `nothing` if we have said
#        that we leave otherwise.  An answer proves that the server was alive when the question was sent.  A
#        job is begun only soon after that, because its line may become `e` once we are silent for the grace.
#     4. When the link is lost, jobs run on.  Those that no slot has taken are given back, because the next
#        server must know that they were not begun; but jobs of a group are just forgotten.
#     5. As long as we have jobs or results, we let in no server but that of their file: the handshake ends
#        when a server proves another file id, before we have named a job.  Without jobs any file will do.
#
# To leave, we wait until all events are acknowledged, ask what the file holds, and say `bye`.


class Complaint(enum.Enum):
    """What was said since there is no server, so that it is said once."""
    NOTHING = enum.auto()
    LOSS = enum.auto()                  # that there is none
    REFUSAL = enum.auto()               # why a server that is there does not want us


class ServerLink(Link, asyncio.Protocol):
    """The link of a Connection to the server, from connect to loss."""
    channel: ClientChannel

    def __init__(self, connection: Connection, channel: ClientChannel) -> None:
        super().__init__(channel, connection.loop)
        self._connection = connection
        self.gone = connection.loop.create_future()         # set when it is lost, to the reason

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.channel.authenticated:
            self.authenticated()

    def authenticated(self) -> None:
        self._connection.greet(self)

    def handle(self, message: Message) -> None:
        self._connection.handle(self, message)

    def disconnected(self, why: str) -> None:
        if not self.gone.done():
            self.gone.set_result(why)

    def request(self, kind: str, **fields: Any) -> int:
        """Send a request, which will be answered.  Return its number: the microsecond at which it was sent.
        """
        number = int(boottime() * 1e6)
        self.send(type=kind, request=number, **fields)
        return number


class LinkState(enum.Enum):
    """What a LinkLife does."""
    DIALLING = enum.auto()              # it connects, and both ends prove themselves
    GREETING = enum.auto()              # both ends are proven, we have said hello
    IN_USE = enum.auto()                # the server has said welcome
    PAUSED = enum.auto()                # there is no link, and soon the next attempt
    LEAVING = enum.auto()               # the link is in use, and it will be the last one
    OVER = enum.auto()                  # we or the server have left for good
    GIVEN_UP = enum.auto()              # there was no server for the time that --give-up says


class LinkEvent(enum.Enum):
    """What changes the state of a LinkLife."""
    PROVEN = enum.auto()                # both ends of a new link have proven themselves
    WELCOME = enum.auto()               # the server has said welcome
    LOST = enum.auto()                  # an attempt has failed, or a link is gone
    RETRY = enum.auto()                 # the pause is over
    TIME_UP = enum.auto()               # in a pause, --give-up is over
    CONCLUDE = enum.auto()              # we or the server begin to leave for good


NEXT_STATES = {
    LinkState.DIALLING: {
        LinkEvent.PROVEN: LinkState.GREETING,
        LinkEvent.LOST: LinkState.PAUSED,
        LinkEvent.CONCLUDE: LinkState.OVER,
    },
    LinkState.GREETING: {
        LinkEvent.WELCOME: LinkState.IN_USE,
        LinkEvent.LOST: LinkState.PAUSED,
        LinkEvent.CONCLUDE: LinkState.OVER,
    },
    LinkState.IN_USE: {
        LinkEvent.WELCOME: LinkState.IN_USE,
        LinkEvent.LOST: LinkState.PAUSED,
        LinkEvent.CONCLUDE: LinkState.LEAVING,
    },
    LinkState.PAUSED: {
        LinkEvent.RETRY: LinkState.DIALLING,
        LinkEvent.TIME_UP: LinkState.GIVEN_UP,
        LinkEvent.CONCLUDE: LinkState.OVER,
    },
    LinkState.LEAVING: {
        LinkEvent.WELCOME: LinkState.LEAVING,
        LinkEvent.LOST: LinkState.OVER,
        LinkEvent.CONCLUDE: LinkState.LEAVING,
    },
    LinkState.OVER: {
        LinkEvent.PROVEN: LinkState.OVER,
        LinkEvent.LOST: LinkState.OVER,
        LinkEvent.CONCLUDE: LinkState.OVER,
    },
    LinkState.GIVEN_UP: {
        LinkEvent.CONCLUDE: LinkState.GIVEN_UP,
    },
}


class LinkLife:
    """The life of a client's link: keeps it alive, and dials again when it is lost.

    There is one attempt or link at a time.  `state` changes in on() alone, by NEXT_STATES:

        state       link  proven    welcome  lost    retry     time up   conclude
        DIALLING    -     GREETING  x        PAUSED  x         x         OVER
        GREETING    -     x         IN_USE   PAUSED  x         x         OVER
        IN_USE      yes   x         same     PAUSED  x         x         LEAVING
        PAUSED      -     x         x        x       DIALLING  GIVEN_UP  OVER
        LEAVING     yes   x         same     OVER    x         x         same
        OVER        -     same      x        same    x         x         same
        GIVEN_UP    -     x         x        x       x         x         same

    link: whether messages may be sent and are understood, but for welcome and closing.  x: cannot happen; if
    it does, on() raises RuntimeError.  In OVER an attempt that is under way may still succeed or fail, but no
    message of the server counts.
    """

    def __init__(self, endpoint: Endpoint, give_up: float | None, complaint: Complaint) -> None:
        """give_up: seconds without a server after which we leave; None: never.

        complaint: what was said of the first attempt to connect.
        """
        self._endpoint = endpoint
        self._limit = EVER if give_up is None else give_up
        self.complaint = complaint
        self.state = LinkState.DIALLING
        self._link: ServerLink | None = None        # the last link whose ends have proven themselves
        self.was_welcome = False                    # on this link, or one before
        self.file = ""                              # the job file of the server that was there last
        self.file_id = ""                           # its id
        self._down_since = boottime()               # when the last link in use was lost
        self._grace = 60.0                          # seconds for which the server keeps our lines
        self._alive_at = -EVER                      # when the last request that is answered was sent
        self._pause = 0.1                           # seconds to the next attempt, if this one fails

    def on(self, event: LinkEvent) -> None:
        """Change the state, because of this event."""
        after = NEXT_STATES[self.state].get(event)
        if after is None:
            raise RuntimeError(f"{event.name} in the state {self.state.name}")
        self.state = after

    @property
    def link(self) -> ServerLink | None:
        """The link that is in use; None: there is none."""
        return self._link if self.state in (LinkState.IN_USE, LinkState.LEAVING) else None

    @property
    def wants_server(self) -> bool:
        """Return True if there is a server that we do not leave, or we try to reach one."""
        return self.state in (LinkState.DIALLING, LinkState.GREETING, LinkState.IN_USE, LinkState.PAUSED)

    @property
    def may_start(self) -> bool:
        """Return True if a job may begin: only soon after a request that was answered (rule 2 in
        runmaker4-server.py).
        """
        silence = boottime() - self._alive_at
        return self.link is not None and silence < min(self._grace / 2, runmaker4.SILENCE)

    def patience(self) -> float:
        """Return the seconds to wait for an account: 0 if no server was ever there, and we have said so."""
        if self.link:
            return COUNTING
        return CONNECT if self.was_welcome or self.complaint is Complaint.NOTHING else 0.0

    def on_proven(self, link: ServerLink) -> None:
        """Greet on this link."""
        self._link = link
        self.on(LinkEvent.PROVEN)

    def on_welcome(self, file: str, file_id: str, grace: float) -> str:
        """Use the link.  Return what is news about the server."""
        news = f"serving {file}"
        if self.was_welcome:
            news = "connected again"
            if file_id != self.file_id:
                news = f"connected again; serving another file: {file}"
        self.on(LinkEvent.WELCOME)
        self.file = file
        self.file_id = file_id
        self.was_welcome = True
        self.complaint = Complaint.NOTHING
        self._grace = grace
        self._pause = 0.1
        return news

    def on_answer(self, number: int) -> None:
        """Note that the server was alive after this request was sent, because it has answered it."""
        self._alive_at = max(self._alive_at, min(number / 1e6, boottime()))

    def on_lost(self, loss: Complaint) -> bool:
        """Go without a link.  Return True if that is to be said, which happens once.

        loss: what would be said.  A refusal is said even if the loss was said, because it tells what to do.
        """
        if self.link:
            self._down_since = boottime()
        self.on(LinkEvent.LOST)
        is_news = self.complaint is Complaint.NOTHING
        if loss is Complaint.REFUSAL:
            is_news = self.complaint is not Complaint.REFUSAL
        if not is_news or self.state is LinkState.OVER:
            return False
        self.complaint = loss
        return True

    async def connect(self, connection: Connection, first: tuple[socket.socket, ClientChannel] | None,
                      file_id: str) -> ServerLink:
        """Return a link on which both ends are authenticated, or soon will be.

        first: a connection that was made already; None: there is none.  file_id: of the file that must be
        served; '': any.  Raises OSError, asyncio.TimeoutError.
        """
        loop = connection.loop
        if first:
            sock, channel = first
            link = ServerLink(connection, channel)
            await loop.create_connection(lambda: link, sock=sock)
            return link
        where = self._endpoint
        link = ServerLink(connection, where.open_channel(file_id))
        dialling = loop.create_connection(lambda: link, where.host, where.port, happy_eyeballs_delay=0.25)
        await asyncio.wait_for(dialling, min(CONNECT, self._seconds_left()))
        return link

    async def use(self, link: ServerLink) -> str:
        """Keep a link alive until it is lost.  Return why it was lost."""
        made = boottime()
        while not link.gone.done():
            pause = min(runmaker4.KEEP_ALIVE, self._grace / 8) if self.link else 0.2
            await asyncio.wait([link.gone], timeout=pause)
            now = boottime()
            if link.gone.done():
                break
            if self.link:
                if now - link.heard > runmaker4.SILENCE:
                    link.drop(f"nothing was heard for {human_time(runmaker4.SILENCE)}")
                else:
                    link.request("ping")
            elif now - made > min(runmaker4.HANDSHAKE, self._seconds_left()):
                link.drop("no answer")
        error = link.channel.error
        if isinstance(error, OtherFile):
            return f"another file is served there; waiting for the server of {self.file}"
        return self._endpoint.rejection(error) if isinstance(error, Refused) else link.gone.result()

    async def pause(self) -> float | None:
        """Wait for the next attempt, if we want a server.

        Return the seconds for which there was none if we give up, otherwise None.
        """
        if self.state is not LinkState.PAUSED:
            return None
        gone = boottime() - self._down_since
        if gone >= self._limit:
            self.on(LinkEvent.TIME_UP)
            return gone
        # a random part, because otherwise all clients of a server would reconnect at once
        await asyncio.sleep(min(self._pause * random.uniform(0.5, 1.0), self._seconds_left()))
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        if self.wants_server:                       # we may have begun to leave meanwhile
            self.on(LinkEvent.RETRY)
        return None

    def _seconds_left(self) -> float:
        """Return the seconds until we give up; at least 0.5, which is enough for an attempt."""
        return max(self._limit - (boottime() - self._down_since), 0.5)


class Requests:
    """What the server was asked for and has not sent, and what it may be asked for next.

    `want` and the memory are told as differences.  So it does not matter which jobs are on their way to us at
    this moment.  It sends nothing itself.
    """

    def __init__(self) -> None:
        self.pending = 0                            # slots for which jobs were asked for that have not come
        self._reported_slots = 0                    # how many the server knows to be in service
        # bytes that the server may still promise to jobs: what we have said, less what jobs that came take
        self._offered = 0
        self._leave_request: int | None = None      # the request that says we leave if there is nothing
        # why there is no job; `again`: EVER, or None once `_leave_request` was answered by `nothing`
        self.nothing = NoJob(EVER)

    def hello(self, slots: int, memory: float) -> dict[str, int]:
        """Return what a `hello` says of slots and memory."""
        self._reported_slots = slots
        self._offered = int(min(memory, runmaker4.WHOLE))
        return dict(slots=slots, memory=self._offered)

    def claim(self, want: int, memory: float, slots: int, last: bool) -> dict[str, Any] | None:
        """Return what a `claim` says, which must be sent; None: there is no news.

        want: slots for which jobs are asked for.  memory: bytes that no job has.  slots: how many are in
        service.  last: we leave if there is nothing; that holds until the request is answered.
        """
        more = int(min(max(memory, 0), runmaker4.WHOLE)) - self._offered
        begins_to_leave = last and self._leave_request is None
        if not want and not more and not begins_to_leave and self._reported_slots == slots:
            return None
        self.pending += want
        self._offered += more
        self._reported_slots = slots
        return dict(want=want, memory=more, last=last or self._leave_request is not None, slots=slots)

    def on_sent(self, number: int, claim: dict[str, Any]) -> None:
        """Note the number of the request that this claim has become."""
        if claim["last"]:
            self._leave_request = number

    def on_job(self, job: RemoteJob) -> None:
        """Count a job that has come."""
        self.pending = max(self.pending - job.slots, 0)
        self._offered -= int(job.needs.memory)

    def on_nothing(self, number: int, *, met_end: bool, stopped: str, may_leave: bool) -> None:
        """Note that there is no job for us.

        If this answers the request that said we leave, and we still may, the runner is told to leave.
        """
        again = self.nothing.again
        if self._leave_request is not None and number >= self._leave_request and may_leave:
            self._leave_request = None
            again = None
        self.nothing = NoJob(again, met_end=met_end, stopped=stopped)

    def forget_nothing(self) -> None:
        """Forget that the server had no job for us: something has changed, so we may ask again."""
        self._leave_request = None
        if self.nothing.again is None:
            self.nothing = replace(self.nothing, again=EVER)

    def on_lost(self) -> None:
        """Forget what was asked for: there is no server."""
        self.pending = 0
        self.forget_nothing()


class Connection:
    """The server as the `Jobs` of a `Runner` (see runmaker4.Jobs): our jobs, and what it must learn of them.
    """

    AHEAD = 10.0                        # seconds at most that a group's start is put off
    LATE = 0.002                        # seconds by which timers may be late
    QUIET = 0.03                        # seconds that we sleep after the start of a group
    interval = 0.0                      # check_jobs() waits until there is something
    poll = EVER                         # the runner is woken when there is something

    def __init__(self, program: ClientProgram, loop: asyncio.AbstractEventLoop, endpoint: Endpoint, *,
                 give_up: float | None, follow: bool, quiet: bool, complaint: Complaint) -> None:
        """give_up: seconds without a server after which we leave; None: never.  follow: we wait for new jobs.

        quiet: do not say that we are connected.  complaint: what was said of the first attempt to connect.
        """
        self._program = program
        self.loop = loop
        self._say = program.say
        self._endpoint = endpoint
        self._follow = follow
        self._quiet = quiet
        self._id = secrets.token_hex(8)
        self.life = LinkLife(endpoint, give_up, complaint)
        self._requests = Requests()
        self.orphans: list[int] = []                # the server counts them
        self.failures: Failures | None = None       # the server counts these, too
        # the states of lines that are still to be run again for us, as the server says: see Consumer.retry
        self._retry = to_text(program.retry)
        # our jobs by their keys, but for those that wait for a slot: these are in the queue alone
        self._jobs: dict[str, RemoteJob] = {}
        self._queue: deque[RemoteJob] = deque()
        self._outbox = Outbox()
        self._wanted = (False, False)               # whether the server keeps records, and wants output
        # jobs whose gates are to be opened, and when (loop's time)
        self._gates: dict[RemoteJob, float] = {}
        # jobs that check_jobs() is to return: "lost" to others, or "cancelled"
        self._to_end: asyncio.Queue[tuple[RemoteJob, str]] = asyncio.Queue()
        # what leave() waits for may have come: an acknowledgement, or an account
        self._progress = asyncio.Event()
        # what the server's file holds; None: it cannot tell
        self._summary: asyncio.Future[Summary | None] = loop.create_future()
        self._runner = program.make_runner(self, self._sinks(), self._outbox)

    # -- as a Runner sees it ---------------------------------------------------------------------------------

    def ours(self, job: Job) -> RemoteJob | None:
        """This job, if it is in `_jobs` still; None: somebody else has its line, or its result was taken."""
        found = self._jobs.get(job.key) if isinstance(job, RemoteJob) else None
        return found if found is job else None

    async def claim(self, last: bool, free: Resources, capacity: Resources) -> RemoteJob | NoJob:
        """A job that has come, if there is one.  Otherwise one is asked for, and an answer wakes the runner.

        A job that needs more than is free waits until that is free, and jobs that have come after it wait,
        too.
        """
        memory = free.memory - sum(job.needs.memory for job in self._queue)
        if self._queue and not free.holds(self._queue[0].needs):
            self._ask_for(0, memory)
            return NoJob(EVER)
        if self._queue and self.life.may_start:
            job = self._queue.popleft()
            self._jobs[job.key] = job
            self._requests.forget_nothing()
            self._ask(memory)
            return job
        if self._requests.nothing.again is not None:
            self._ask(memory, last or (self._follow and not self._runner.tasks))
        return self._requests.nothing

    async def lend(self, job: Job) -> int | None:
        """None: the server has the lock."""
        return None

    async def still_has(self, job: Job) -> bool:
        """Whether a job may run again, by the rule for its first run: without a server, others may get it.
        """
        return self.ours(job) is not None and self.life.may_start

    def reclaim(self, fd: int) -> None:
        """Nothing was lent."""

    async def finish(self, job: Job, state: bytes) -> str:
        """Make an event of the result.  If the server cannot write it, a `fault` says so later."""
        ours = self.ours(job)
        if not ours:
            return ""
        cause = ours.cause
        if state == ERROR and (self._runner.killed or self._runner.wall_over):
            cause = "vanished"                      # we have ended it, because we leave
        # for these two causes it does not matter how a run has ended
        how = "" if cause in ("vanished", "unstarted") else ours.how
        self._end(ours, state, type="finish", state=to_text(state), cause=cause, how=how)
        return ""

    async def release(self, job: Job) -> str:
        """Give the job back, by an event."""
        ours = self.ours(job)
        if ours:
            self._give_back(ours)
        return ""

    def _give_back(self, job: RemoteJob) -> None:
        self._jobs[job.key] = job
        self._end(job, NEW, type="release")

    def _end(self, job: RemoteJob, result: bytes, **message: Any) -> None:
        job.add_result(result)
        self.event(id=job.key, **message)

    async def check_jobs(self) -> dict[Job, str]:
        """Wait until a job is to be ended; that job, and why.  One that has ended is left out."""
        job, cause = await self._to_end.get()
        return {} if job.has_ended else {job: cause}

    async def leave(self, runner: Runner) -> Summary | None:
        """Hand in all results, and say `bye`, because no job runs any more.

        Returns what the file holds; None if the server cannot tell, or there is none.
        """
        for job in list(self._queue):
            self._return(job)
        await self._hand_in(runner)
        unwritten = [job.number for job in self._jobs.values()]
        if unwritten:
            self._say(f"the server could not be told how {plural(len(unwritten), 'job')} ended")
            self._program.runner_stats.unwritten += unwritten
        await runner.in_time(self._ask_summary())
        self.life.on(LinkEvent.CONCLUDE)
        link = self.life.link
        if link:
            link.send(type="bye")
            link.flush()
            link.transport.close()
        return self._summary.result() if self._summary.done() else None

    async def _hand_in(self, runner: Runner) -> None:
        """Wait until all events are acknowledged, or no server will do that; not for long after a signal."""
        began = boottime()
        while not self._outbox.is_empty and self.life.wants_server:
            hurried = runner.killed or runner.wall_over or self._program.defects
            if hurried and (runner.processes.impatient or boottime() - began > runner.LAST_TRIES):
                return
            await self._wait_for_progress()

    async def _wait_for_progress(self) -> None:
        """Wait for `_progress`, 0.2 s at most."""
        self._progress.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._progress.wait(), 0.2)

    async def _ask_summary(self) -> None:
        """Ask on each new link what the file holds, until a server has answered or patience ends.

        A server that leaves for good (`closing`) tells it unasked.
        """
        began = boottime()
        asked: ServerLink | None = None
        while not self._summary.done() and self.life.wants_server:
            link = self.life.link
            if link and link is not asked:
                asked = link
                link.send(type="account", slots=self._runner.size)
            if boottime() - began > self.life.patience():
                return
            await self._wait_for_progress()

    # -- asking for jobs -------------------------------------------------------------------------------------

    def _slots(self) -> int:
        """How many slots have a job, or could have one now.  Slots that other runners use do not count."""
        return sum(slot.busy or slot.idle for slot in self._runner.slots.values())

    def _ask(self, memory: float, last: bool = False) -> None:
        """Ask for jobs for as many slots as we could use now.

        memory: bytes that no job has.  last: we leave if there is nothing; that holds until the request
        is answered.
        """
        due = sum(job.slots for job in self._queue) + self._requests.pending
        self._ask_for(max(self._slots() - sum(job.slots for job in self._running()) - due, 0), memory, last)

    def _ask_for(self, want: int, memory: float, last: bool = False) -> None:
        """Ask for jobs for `want` slots more, and tell how much of our memory is free, if there is news."""
        link = self.life.link
        if not link or self._runner.draining:
            return
        claim = self._requests.claim(want, memory, self._runner.in_service, last)
        if claim:
            self._requests.on_sent(link.request("claim", **claim), claim)

    def _running(self) -> list[RemoteJob]:
        """The jobs that have slots."""
        return [job for job in self._jobs.values() if not job.has_ended]

    def _return(self, job: RemoteJob) -> None:
        """Give a job back if it still waits for a slot, so that somebody else may run it."""
        if job in self._queue:
            self._queue.remove(job)
            self._give_back(job)
            # a slot may be free, and have waited only because this job was not allowed to start
            self._wake()

    def _wake(self) -> None:
        """Wake the runner, because there is news."""
        self._runner.changed.set()

    # -- events ----------------------------------------------------------------------------------------------

    def event(self, size: int = 0, **message: Any) -> None:
        """Tell the server of something that must not be lost.  size: the bytes of output in it."""
        self._outbox.add(message, size)
        self._send_events()

    def _send_events(self) -> None:
        link = self.life.link
        if link:
            self._outbox.send(link)

    def _acknowledged(self, events: Iterable[Event]) -> None:
        """Go on after these events, which the server has dealt with."""
        for event in events:
            job = self._jobs.get(event.key)
            if job and event.kind in ("finish", "release"):
                del self._jobs[job.key]
            elif job:
                job.keep_for_replay(event)
        self._send_events()
        if self._outbox.is_empty:
            self._progress.set()
        self._runner.pump.resume()

    def _drop(self, key: str) -> RemoteJob | None:
        """Forget a job, and its events that the server does not know; the job, if it was in `_jobs`.
        """
        job = self._jobs.pop(key, None)
        self._queue = deque(waiting for waiting in self._queue if waiting.key != key)
        self._outbox.drop(key)
        self._progress.set()
        return job

    def _lose(self, key: str) -> None:
        """Give up a job whose line somebody else has now.  If it was given back, no result is lost."""
        job = self._drop(key)
        if not job:
            return
        if job.result is None:
            self._to_end.put_nowait((job, "lost"))
        elif job.result != NEW:
            self._on_unwritten(job, "was taken by another runner meanwhile; "
                                      f"its result {text_of(job.result)} is not written")

    def _on_unwritten(self, job: RemoteJob, fault: str) -> None:
        """Say, and count, that a result does not stand in its line."""
        self._say(f"line {job.number}: {fault}")
        self._program.runner_stats.unwritten.append(job.number)

    # -- connecting ------------------------------------------------------------------------------------------

    async def stay_connected(self, first: tuple[socket.socket, ClientChannel] | None) -> None:
        """Connect, and reconnect whenever the connection is lost, until we want no server or give up.

        first: a connection that was made already; None: there is none.

        A refusal comes from an end that has not proved that it knows the token: after a crash another user's
        server may have the port.  So a refusal ends neither jobs nor the waiting for our server.  Raises
        UsageError if we are refused before we were ever welcome.
        """
        while self.life.wants_server:
            loss = Complaint.LOSS
            try:
                link = await self.life.connect(self, first, self.life.file_id if self._jobs else "")
                why = await self.life.use(link)
                if isinstance(link.channel.error, Refused):
                    loss = Complaint.REFUSAL
                    if not self.life.was_welcome:
                        raise UsageError(f"{self._endpoint.host}: {why}")
            except (OSError, asyncio.TimeoutError) as error:
                why = self._endpoint.refusal(error)
            first = None
            self._on_loss(why, loss)
            gone = await self.life.pause()
            if gone is not None:
                self._give_up(f"no server for {human_time(gone)}: {why}")

    def greet(self, link: ServerLink) -> None:
        """Tell the server, which is authenticated, who we are and which jobs we have."""
        self.life.on_proven(link)
        if not self.life.wants_server:
            return
        for job in self._jobs.values():             # one by one, because a command may fill a message
            link.send(type="have", jobs=[job.describe()])
        link.send(
            type="hello",
            client=self._id,
            name=in_records(os.fsdecode(self._program.host)),
            pid=os.getpid(),
            **self._requests.hello(self._runner.in_service, self._program.memory.size),
            retry=self._retry,
            follow=self._follow,
            directory=to_text(self._program.directory),
        )

    def _on_loss(self, why: str, loss: Complaint) -> None:
        """There is no server: say so once, and make ready for the next one what we have."""
        if self.life.on_lost(loss):
            running = f"; {plural(len(self._jobs), 'job')} not handed in yet" if self._jobs else ""
            self._say(f"{why}{running}; trying again")
        for job in self._queue:
            # A new server must know that a job was not begun.  A job of a group is sent again if we do not
            # name it.
            if not job.of_group:
                self._give_back(job)
        self._queue.clear()
        self._gates.clear()
        for job in self._jobs.values():
            self._runner.refuse_gate(job)
        self._requests.on_lost()

    def _give_up(self, why: str) -> None:
        """End what runs, and leave, because there was no server for too long."""
        self._progress.set()
        self._runner.fail(why)
        self._runner.kill_jobs()

    # -- messages --------------------------------------------------------------------------------------------

    def handle(self, link: ServerLink, message: Message) -> None:
        """Deal with a message of the server.  Raises WireError."""
        kind = message.text("type", 16)
        if self.life.state is LinkState.OVER:
            return
        if link is not self.life.link and kind not in ("welcome", "closing"):
            raise WireError("no welcome")
        if kind == "welcome":
            self._on_welcome(link, message)
        elif kind == "jobs":
            self._on_jobs(link, message)
        elif kind == "ack":
            self._outbox.set_window(message.whole("window"))
            self._acknowledged(self._outbox.acknowledge(message.whole("n")))
        elif kind == "nothing":
            self._on_nothing(message)
        elif kind == "pong":
            self._retry = message.text("retry", 3)
            self.life.on_answer(message.whole("request"))
            if self._queue:
                self._wake()
        elif kind == "fault":
            job = self._jobs.get(message.text("id"))
            if job:
                self._on_unwritten(job, printable(message.text("text", 1000)))
        elif kind == "lost":
            self._lose(message.text("id"))
        elif kind == "sync":
            link.send(type="sync", clock=self.loop.time())
        elif kind == "go":
            self._on_go(message)
        elif kind == "stop":
            self._on_stop(message.text("id"), cancelled=message.flag("cancelled"))
        elif kind == "account":
            self._on_summary(message)
        elif kind == "closing":
            self._on_closing(link, message)
        else:
            raise WireError(f"what is {kind!a}?")

    def _on_welcome(self, link: ServerLink, message: Message) -> None:
        """We are welcome: deal with what has changed, send what was not acknowledged, and go on."""
        grace = max(message.seconds("grace"), 0.1)
        seen = message.whole("seen")
        window = message.whole("window")
        taken = message.items("lost", str)
        settled = message.items("settled", str)
        file = printable(message.text("file", 1000))
        wanted = message.flag("records"), message.flag("output")
        is_known = self.life.was_welcome
        news = self.life.on_welcome(file, link.channel.file_id, grace)
        if is_known or not self._quiet:
            self._say(news)
        self._outbox.set_window(window)
        for key in taken:
            self._lose(key)
        for key in settled:
            self._drop(key)
        kept = [event for job in self._jobs.values() for event in job.replay]
        self._acknowledged(self._outbox.replay(kept, seen))
        if wanted != self._wanted:
            self._wanted = wanted
            self._runner.sinks[:] = self._sinks()
        link.request("ping")
        self._wake()

    def _sinks(self) -> list[Sink]:
        """The sinks of runs that start from now on: the console, and one that tells the server."""
        return [ServerSink(self, *self._wanted), *self._program.shown]

    def _on_jobs(self, link: ServerLink, message: Message) -> None:
        """Queue jobs that have come: each is soon taken by a slot, or given back."""
        number = message.whole("request")
        for item in message.objects("jobs"):
            job = RemoteJob.read(item)
            job.gated = item.flag("hold")
            self._queue.append(job)
            self.loop.call_later(UNSTARTED, self._return, job)
            self._requests.on_job(job)
        self.life.on_answer(number)
        if not self.life.may_start:
            link.request("ping")
        self._requests.forget_nothing()
        self._wake()

    def on_at_gate(self, job: Job) -> None:
        """Tell the server that the shell of a job waits at its gate."""
        ours = self.ours(job)
        link = self.life.link
        if link and ours:
            link.send(type="ready", id=ours.key)

    def _on_go(self, message: Message) -> None:
        """Let a job that waits at its gate begin at a time, which is one of our clock."""
        job = self._jobs.get(message.text("id"))
        at = message.seconds("at")
        if job:
            self._gates[job] = at
            ahead = min(at - self.loop.time(), self.AHEAD)
            self.loop.call_later(max(ahead - self.LATE, 0.0), self._open_gates, at)

    def _on_stop(self, key: str, cancelled: bool) -> None:
        """End a job, or see to it that it does not begin.

        The runner is told only of jobs that it has, and that have not ended.
        """
        waiting = next((job for job in self._queue if job.key == key), None)
        job = self._jobs.get(key)
        if waiting:
            self._return(waiting)
        elif not job or job.has_ended:
            return
        elif cancelled:
            self._to_end.put_nowait((job, "cancelled"))
        else:
            self._runner.kill_job(job)

    def _open_gates(self, at: float) -> None:
        """Let the jobs begin whose time this is.

        We sleep for the last moment, because timers are late by up to a millisecond, and sleep is not.
        Afterwards we leave the processors to the jobs for a moment.  If several clients share a machine, what
        each has to do now would hold up the jobs of clients that are a bit later.
        """
        due = [job for job, when in self._gates.items() if when <= at]
        self._gates = {job: when for job, when in self._gates.items() if when > at}
        if due:
            time.sleep(min(max(at - self.loop.time(), 0.0), self.LATE))
            for job in due:
                self._runner.open_gate(job)
            time.sleep(self.QUIET)

    def _on_nothing(self, message: Message) -> None:
        """Note that there is no job for us."""
        number = message.whole("request")
        self._requests.on_nothing(
            number,
            met_end=message.flag("ended"),
            stopped=printable(message.text("left", 1000)),
            may_leave=not self._queue,
        )
        self.life.on_answer(number)
        self._wake()

    def _on_summary(self, message: Message) -> None:
        """Note what the file holds, if the server can tell; the first answer counts."""
        found = None
        if message.fields.get("account") is not None:
            summary = Message(message.fields["account"])
            now = Message(summary.fields.get("now"))
            found = Summary(
                Counts(*(now.whole(name) for name in STATES)),
                False,
                tuple(summary.items("bad", int)),
                summary.flag("again"),
                summary.flag("left") and not self._runner.each_slot_had_job,
                strays=summary.whole("strays"),
                first_stray=summary.whole("first_stray"),
            )
        if not self._summary.done():
            self._summary.set_result(found)
        self._progress.set()

    def _on_closing(self, link: ServerLink, message: Message) -> None:
        """Drop the link, because the server leaves; done: for good, so we leave, too."""
        if message.flag("done"):
            self._on_summary(message)
            self.life.on(LinkEvent.CONCLUDE)
            self._runner.drain()
        link.drop("the server was stopped")


# ======== What the server is told of runs ===================================================================
#
# To a `Runner` the server's records are one more sink.  What they need depends on the server's options: with
# --joblog only that runs begin and end; with -l, --outdir or --print all output, too.  Without records the
# server wants to know of runs only for --status: it is not told of a run that is over within DELAY.


class ServerSink(Sink):
    """Tells the server that runs have begun, what they print, and how they have ended."""
    DELAY = 0.05                    # seconds before a server without records is told of a run

    def __init__(self, connection: Connection, records: bool, output: bool) -> None:
        """records: the server keeps records; output: it wants what runs print, too."""
        self._connection = connection
        self._records = records
        self._wants_output = output
        self._young: dict[Run, None] = {}       # runs of which the server was not told yet
        self._timer: asyncio.TimerHandle | None = None

    def started(self, run: Run) -> None:
        if self._records:
            return self._begin(run)
        self._young[run] = None
        if not self._timer:
            self._timer = self._connection.loop.call_later(self.DELAY, self._begin_young)

    def unstarted(self, run: Run) -> None:
        self._end_run(run, "unstarted")
        if self._records:
            self._begin(run)
            self._end(run, None)

    def output(self, run: Run, stream: Stream, data: bytes) -> None:
        at = stream.received - len(data)
        for start in range(0, len(data) if self._wants_output else 0, runmaker4.PIECE):
            piece = data[start:start + runmaker4.PIECE]
            self._tell(
                run, "output", len(piece), stream=to_text(stream.name), at=at + start, data=to_text(piece)
            )

    def ended(self, run: Run, run_result: RunResult) -> None:
        self._end_run(run, run_result.cause if run_result.cause in FAILING else "")
        if run in self._young:
            del self._young[run]
        else:
            self._end(run, run_result)

    def _end_run(self, run: Run, cause: str) -> None:
        """Note why a run has ended, for the result of its job."""
        job = self._connection.ours(run.job)
        if job:
            job.on_run_end(cause)

    def _begin_young(self) -> None:
        self._timer = None
        for run in self._young:
            self._begin(run)
        self._young.clear()

    def _begin(self, run: Run) -> None:
        pid, mark = (run.shell.pid, to_text(run.shell.mark)) if run.shell else (0, "")
        job = self._connection.ours(run.job)
        if job:
            job.add_run(mark)
        self._tell(
            run,
            "begin",
            time=run.began,
            slot=in_records(run.slot.name),
            pid=pid,
            mark=mark,
            promised=run.promised,
            output=self._wants_output,
            again=False,
        )

    def _end(self, run: Run, run_result: RunResult | None) -> None:
        """ending: None if the run could not be started."""
        shell = run.shell
        self._tell(
            run,
            "end",
            seconds=run.took,
            cause=run.cause,
            status=run_result.status if run_result else None,
            limit=run_result.limit if run_result else 0.0,
            taken=run.peak,
            cpu=shell.cpu if shell else None,
            memory=shell.memory if shell else None,
            memory_below=shell.memory_below if shell else None,
            **{
                to_text(name): sum(stream.received for stream in run.streams if stream.name == name)
                for name in (b"stdout", b"stderr")
            },
        )

    def _tell(self, run: Run, kind: str, size: int = 0, **fields: Any) -> None:
        """Tell the server of a run, if its job is still ours.  size: the bytes of output in the event."""
        job = self._connection.ours(run.job)
        if job:
            self._connection.event(size, type=kind, id=job.key, **fields)


def in_records(name: str) -> str:
    """The name of a host or slot as it stands in the server's records."""
    return printable(name)[:255]


# ======== The program =======================================================================================
#
# The first connection is made in the foreground.  Then the loop has two tasks: one runs jobs to the end, the
# other stays connected.  The first task ends the program, unless a server refuses us before any welcome.


class ClientProgram(RunnerProgram):
    """Connects first, so that what is wrong is told at once; then runs jobs, in the background with -d."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Raises UsageError."""
        options = parse(argv)
        context = tls_context(server_side=False)
        self._endpoint = Endpoint(options.server, options.port, find_token(options.token), context)
        # seconds for an attempt to connect before there is an event loop
        self._attempt = min(CONNECT, options.give_up or CONNECT)
        super().__init__(PROG, options.server, options)

    def main(self) -> int:
        """Print a status, or run jobs; the exit status.  Raises UsageError."""
        if self.options.status:
            code = print_status(self._endpoint, self._attempt, as_json=self.options.json)
            self._warn_of_token()
            return code
        if self.slot_file:
            self.slot_file.prepare()
            self.worker = FileExecutor(self.slot_file.network, self.relieved)
        allow_descriptors(32 + 4 * len(self.slots))
        self.find_wall_time()               # squeue may take longer than a server waits for us
        self._first = self._connect_first()
        self._warn_of_token()
        return super().main()

    def _warn_of_token(self) -> None:
        """Say that others see a token on the command line, if one stands there."""
        if self.options.token and HEX.fullmatch(self.options.token):
            self.say(
                "others on this host see the token in the list of processes (give --token a file, or set "
                "$RUNMAKER4_TOKEN)"
            )

    def _connect_first(self) -> tuple[socket.socket, ClientChannel] | None:
        """A connection; None if there is none yet, after saying so.  Raises UsageError."""
        try:
            with self._endpoint.raising():
                return self._endpoint.dial(self._attempt)
        except OSError as error:
            text = self._endpoint.refusal(error)
            if self.options.give_up == 0:
                raise UsageError(f"{self._endpoint.host}: {text}") from None
            self.say(f"{text}; trying again")
            return None

    async def work(self) -> int:
        """Run jobs; the exit status."""
        options = self.options
        self.shown = self.console(None, with_output=True)       # one console, whatever a server wants to know
        connection = Connection(
            self,
            self.loop,
            self._endpoint,
            give_up=options.give_up,
            follow=options.follow,
            quiet=options.quiet,
            complaint=Complaint.NOTHING if self._first else Complaint.LOSS,
        )
        self._connection = connection
        # the first of the two tasks, because it makes the slots of which the server is told
        run_result = asyncio.ensure_future(self.run_to_end(connection))
        self._keeping = asyncio.ensure_future(connection.stay_connected(self._first))
        await asyncio.wait([self._keeping, run_result], return_when=asyncio.FIRST_COMPLETED)
        if self._keeping.done() and isinstance(self._keeping.exception(), UsageError):
            self._keeping.result()           # we are not wanted, and nothing has begun
        watched(self._keeping)
        code = await run_result
        never_served = connection.life.state is LinkState.GIVEN_UP and not connection.life.was_welcome
        return 2 if never_served and code == 1 else code

    def end_for_defect(self) -> None:
        """End the jobs, too, if the task that stays connected is over: nobody could be told how they end."""
        super().end_for_defect()
        if self._keeping.done():
            self.runner.kill_jobs()


# ======== --status ==========================================================================================
#
# Without a `hello` the server does not take us for a client.  It answers `status` with messages of bounded
# length: `summary`, for each client a `client` and a `job` for each of its jobs, and `end`.


def ask_status(endpoint: Endpoint, seconds: float) -> dict[str, Any]:
    """The server's status, as --json prints it.  Raises UsageError, OSError."""
    with endpoint.raising():
        sock, channel = endpoint.dial(seconds)
        channel.send(dict(type="status"))
        sock.sendall(channel.outgoing())
        with sock:
            return gather_status(sock, channel)


def gather_status(sock: socket.socket, channel: ClientChannel) -> dict[str, Any]:
    """Put the messages of a status together.  Raises OSError, WireError, UsageError."""
    status: dict[str, Any] = {}
    end = boottime() + CONNECT
    while True:
        for message in map(Message, channel.receive(receive(sock, end))):
            kind = message.text("type")
            if kind == "summary":
                status = summary(message)
            elif kind == "end" and status:
                return status
            elif kind == "client" and status:
                status["clients"].append(dict(
                    name=message.text("name"), address=message.text("address"), pid=message.process("pid"),
                    slots=message.whole("slots", 1_000_000), memory=message.whole("memory"),
                    promised=message.whole("promised"), seen=message.seconds("seen"),
                    lost=message.flag("lost"), jobs=[]))
            elif kind == "job" and status and status["clients"]:
                since = message.seconds_or_none("since")
                status["clients"][-1]["jobs"].append(dict(
                    line=message.whole("line"), command=message.text("command"),
                    pid=message.process("pid"), since=since))
            else:
                raise WireError(f"what is {kind!a}?")


def summary(message: Message) -> dict[str, Any]:
    """The beginning of a status.  Raises WireError, UsageError."""
    if message.text("fault"):
        raise UsageError(f"{printable(message.text('file'))}: {printable(message.text('fault'))}")
    counts = Message(message.fields.get("counts"))
    return dict(
        {name: message.text(name) for name in ("file", "host")},
        port=message.whole("port", 65535),
        pid=message.process("pid"),
        **{name: message.seconds(name) for name in ("since", "grace")},
        **{name: counts.whole(name) for name in (*STATES, "total")},
        waiting=[
            dict(line=job.whole("line"), command=job.text("command")) for job in message.objects("waiting")
        ],
        clients=[],
    )


def print_status(endpoint: Endpoint, seconds: float, *, as_json: bool) -> int:
    """Print the status; the exit status.  seconds: for an attempt to connect.  Raises UsageError."""
    try:
        status = ask_status(endpoint, seconds)
    except OSError as error:
        raise UsageError(f"{endpoint.host}: {endpoint.refusal(error)}") from None
    if as_json:
        put(json.dumps(status).encode() + b"\n")
    else:
        width = columns_of(1) if os.isatty(1) else math.inf
        put(b"".join(to_bytes(line) + b"\n" for line in status_lines(status, width)))
    return 0


def status_lines(status: dict[str, Any], width: float) -> list[str]:
    """A status for a person, in lines of at most so many columns."""
    lines = [
        f"{status['file']} on {status['host']}, port {status['port']}, "
        f"served for {human_time(status['since'])}",
        f"{plural(status['total'], 'job')}: " + ", ".join(f"{status[name]} {name}" for name in STATES),
    ]
    if status["waiting"]:
        lines.append("waiting:")
        lines += [f"  {job['line']:>7} {job['command']}" for job in status["waiting"]]
        if status["new"] > len(status["waiting"]):
            lines.append(f"      ... and {status['new'] - len(status['waiting'])} more")
    lines.append("clients:" if status["clients"] else "no clients")
    for client in status["clients"]:
        seen = f"{'lost' if client['lost'] else 'seen'} {human_time(client['seen'])} ago"
        memory = ""
        if client["promised"]:
            memory = f"{memory_text(client['promised'])} of {memory_text(client['memory'])} promised, "
        slots = plural(client["slots"], "slot")
        lines.append(f"  {client['name']} ({client['address']}), {slots}, {memory}{seen}")
        for job in client["jobs"]:
            since = "waits" if job["since"] is None else human_time(job["since"])
            lines.append(f"  {job['line']:>7} {since:>7}  {job['command']}")
    return [
        line if len(line) <= width else line[:int(width) - 3] + "..." for line in map(printable, lines)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run runmaker4-client.py with these arguments (None: those of the process); the exit status."""
    return run_main(PROG, lambda words: ClientProgram(words).main(), argv)


if __name__ == "__main__":
    leave(main())
