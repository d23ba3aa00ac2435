#!/usr/bin/env python3
"""runmaker4-client - run jobs that a runmaker4-server.py hands out, on hosts that do not share its file
system.

    alice$ runmaker4-server.py runs.txt              bob$ runmaker4-client.py -j4 alice

It is runmaker4.py's `Runner` with a connection instead of a file: jobs come from there, and what becomes of
them goes there.  Everything that must not be lost (a job has started, what it printed, how it ended) is an
event with a number, kept and sent again after each new connection until the server has acknowledged it; what
another server would need to go on with the records of a run is kept for longer.  While the connection is gone
jobs run on; output that the server wants is held back in their pipes once there are 2 MiB of it.

A job is asked for when a slot is free for it; one that no slot has taken soon goes back.  runmaker4-server.py
has the protocol.
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
import functools
import getpass
import json
import os
import random
import re
import secrets
import shlex
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

try:
    import runmaker4
except ModuleNotFoundError as missing:
    if missing.name != "runmaker4":
        raise
    print("runmaker4-client.py: runmaker4.py is missing (copy it to where this script is)", file=sys.stderr)
    sys.exit(2)

from runmaker4 import (
    ERROR,
    HEX,
    JOB_VARIABLES,
    PORT,
    SIGNALS,
    Account,
    Channel,
    Counts,
    Ending,
    Failures,
    Gate,
    Job,
    JobSettings,
    Lines,
    Link,
    Message,
    Miss,
    Parser,
    Problem,
    Refused,
    Run,
    Runner,
    RunnerProgram,
    Sink,
    SlotFile,
    Stream,
    WireError,
    Worker,
    add_background,
    add_limits,
    add_running_options,
    add_verbosity,
    allow_descriptors,
    boottime,
    duration,
    exit_on,
    given_name,
    human_time,
    leave,
    plural,
    printable,
    put,
    read_token,
    reason,
    run_main,
    show,
    to_bytes,
    to_text,
    token_path,
    watched,
    whole_number,
)

PROG = "runmaker4-client.py"
LONGEST_PAUSE = 30.0            # seconds from one attempt to connect to the next
CONNECT = 10.0                  # seconds that an attempt may take
DIALS = 4                       # attempts to be told why, where connections are cut off
UNSTARTED = 1.0                 # seconds after which a job that no slot has taken goes back
COUNTING = 30.0                 # seconds for a server to count the file: with orphans it looks three times
STATES = ("new", "running", "done", "failed", "error", "held")
EVER = 1e9                      # seconds


def patience(text: str) -> float | None:
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
               "Variables": f"{JOB_VARIABLES}; of the client: NO_COLOR, RUNMAKER4_TOKEN."},
        statuses={
            "0": "nothing in the file is !, e, r without a runner, or left for this client",
            "1": "something is, whoever ran it; results are not written",
            "2": "bad usage, or no server",
            "130, 143": "ended by a signal",
        },
        other_end="runmaker4-server.py",
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
    add("--give-up", type=patience, metavar="T", help="end if there is no server for T; 0: at once [never]")
    add = parser.add_argument_group("output").add_argument
    add_verbosity(add)
    add("--status", action="store_true", help="print what waits, and what all clients do, and exit")
    add("--json", action="store_true", help="with --status: as JSON")
    add = parser.add_argument_group("hosts and background").add_argument
    add("--name", type=given_name, metavar="NAME", help="this host's name (messages, host=) [the node name]")
    add("--single-host", action="store_true", help="no other host uses @FILE: any file system will do")
    add_background(add)
    parser.set_defaults(slot_errors=0, max_failed=0)        # the server has --max-failed
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options.  Raises Problem."""
    parser = make_parser()
    options: argparse.Namespace = parser.parse_args(argv)
    options.server, port = options.server
    if port and options.port and options.port != port:
        parser.error(f"--port {options.port} and SERVER:{port} do not go together")
    options.port = options.port or port or PORT
    if options.json and not options.status:
        parser.error("--json goes with --status")
    return options


# ======== The token =========================================================================================


def find_token(given: str | None) -> str:
    """The token that --token, $RUNMAKER4_TOKEN, the file or a person gives.  No message shows it.

    Raises Problem.
    """
    from_option = given is not None
    given = given if from_option else os.environ.get("RUNMAKER4_TOKEN") or None
    if given is not None and HEX.fullmatch(given):
        return given
    path = token_path() if given is None else given
    try:
        if given is None and not os.path.lexists(path) and os.isatty(0):
            return asked_token()
        return read_token(path)
    except Problem as problem:
        raise Problem(f"token: {problem}") from None
    except (OSError, ValueError) as error:
        if given is not None:
            where = "--token" if from_option else "$RUNMAKER4_TOKEN"
            raise Problem(
                f"{where}: neither a token (32 hexadecimal digits) nor a file that can be read"
            ) from None
        fault = reason(error) if isinstance(error, OSError) else str(error)
        raise Problem(f"no token: {path}: {fault} (--token gives it; the server prints it)") from None


def asked_token() -> str:
    """The token that somebody types, unseen.  Raises Problem."""
    exit_on(signal.SIGINT, signal.SIGTERM)      # and not without an echo
    try:
        token = getpass.getpass("Token (the server prints it): ").strip()
    except EOFError:
        token = ""
    if not HEX.fullmatch(token):
        raise Problem("that is none (32 hexadecimal digits)")
    return token


def without_token(argv: Sequence[str]) -> list[str]:
    """The arguments as they may be shown."""
    return [
        "TOKEN" if HEX.fullmatch(word) else HEX.sub("TOKEN", word) if word.startswith("--token=") else word
        for word in argv
    ]


# ======== The connection ====================================================================================


class Patience:
    """Time for several steps of a blocking conversation: each sets the socket's time-out to what is left."""

    def __init__(self, seconds: float) -> None:
        self.end = boottime() + seconds

    def receive(self, sock: socket.socket) -> bytes:
        """Some bytes.  Raises OSError, also if the other end has closed the connection."""
        sock.settimeout(max(self.end - boottime(), 0.01))
        data = sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError("the server has closed the connection")
        return data


def dial(options: argparse.Namespace, token: str) -> tuple[socket.socket, Channel]:
    """Connect, and authenticate both ends.  Raises OSError, WireError."""
    for _ in range(DIALS - 1):
        # that may hide why; the next one will tell
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            return dial_once(options, token)
        time.sleep(random.uniform(0.02, 0.2))
    return dial_once(options, token)


def dial_once(options: argparse.Namespace, token: str) -> tuple[socket.socket, Channel]:
    """An attempt, within ten seconds, or --give-up.  Raises OSError, WireError."""
    seconds = min(CONNECT, options.give_up or CONNECT)
    patience = Patience(seconds)
    sock = socket.create_connection((options.server, options.port), timeout=seconds)
    channel = Channel(token, server=False)
    try:
        while not channel.authenticated:
            channel.receive(patience.receive(sock))
            sock.sendall(channel.outgoing())
    except (OSError, WireError):
        sock.close()
        raise
    return sock, channel


@dataclass(eq=False)
class Event:
    """Something that the server must learn of, kept until it has acknowledged it."""
    number: int
    message: dict[str, Any]
    size: int                           # bytes of output


@dataclass(eq=False)
class RemoteJob(Job):
    """A job of the server's."""
    key: str = ""
    mark: str = ""                      # of its last run that the server was told of
    result: bytes | None = None         # the server is being told
    # why its last run ended: "timeout", "unstarted" (it did not even begin), or "": nothing that we know
    cause: str = "unstarted"
    # acknowledged ones that another server would have to know
    told: list[Event] = field(default_factory=list)

    def keep(self, event: Event) -> None:
        """An event is acknowledged.

        Another server must know of a run that goes on, and of the lines it has begun.
        """
        message = event.message
        if message["type"] == "begin":
            message["again"] = True
            self.told = [event]
        elif message["type"] == "output":
            data = to_bytes(message["data"])
            whole = data.rfind(b"\n") + 1
            begun = [other for other in self.told if other.message.get("stream") == message["stream"]]
            # it is printed without its end
            if whole or sum(other.size for other in begun) > Lines.LONGEST:
                self.told = [other for other in self.told if other not in begun]
            if whole < len(data):
                message.update(at=message["at"] + whole, data=to_text(data[whole:]))
                event.size -= whole
                self.told.append(event)
        else:
            self.told = []


class Outbox:
    """What the server must learn, in order: each event is kept until the server has acknowledged it.

    It is unsent first, then in flight.  Output flies only as far as the server's window allows, and what
    waits behind it waits, too.  After a new connection all that was in flight is unsent again.
    """

    def __init__(self) -> None:
        self.unsent: deque[Event] = deque()
        self.in_flight: deque[Event] = deque()
        self.last = 0                               # the number of the last event
        self.window = runmaker4.PIECE               # bytes of output that may be in flight
        self.flying = 0                             # bytes that are
        # those that are unsent; jobs wait for these, not for what flies
        self.backlog = 0

    @property
    def is_empty(self) -> bool:
        """Whether the server has acknowledged all."""
        return not self.unsent and not self.in_flight

    def add(self, message: dict[str, Any], size: int) -> None:
        """One event more, to be sent.  size: the bytes of output in it."""
        self.last += 1
        message["n"] = self.last
        self.unsent.append(Event(self.last, message, size))
        self.backlog += size

    def send(self, link: ServerLink) -> None:
        """Send what the window allows."""
        while self.unsent and (self.flying < self.window or not self.unsent[0].size):
            event = self.unsent.popleft()
            self.in_flight.append(event)
            self.backlog -= event.size
            self.flying += event.size
            link.post(event.message)

    def acknowledge(self, upto: int) -> list[Event]:
        """The server has dealt with all events up to this one: those that it had not yet."""
        done: list[Event] = []
        while self.in_flight and self.in_flight[0].number <= upto:
            event = self.in_flight.popleft()
            self.flying -= event.size
            done.append(event)
        return done

    def begin_anew(self, told: Iterable[Event], seen: int) -> list[Event]:
        """There is a new connection, whose server has dealt with all events up to `seen`: these.

        All others are to be sent again.  told: events that were acknowledged, and that another server must
        know.
        """
        self.unsent.extendleft(reversed(self.in_flight))
        self.unsent.extendleft(sorted(told, key=lambda event: event.number, reverse=True))
        self.in_flight.clear()
        done: list[Event] = []
        while self.unsent and self.unsent[0].number <= seen:
            done.append(self.unsent.popleft())
        self._count()
        return done

    def drop(self, key: str) -> None:
        """The server is not to learn any more of this job."""
        self.unsent = deque(event for event in self.unsent if event.message["id"] != key)
        self.in_flight = deque(event for event in self.in_flight if event.message["id"] != key)
        self._count()

    def _count(self) -> None:
        """Count the bytes anew."""
        self.flying = sum(event.size for event in self.in_flight)
        self.backlog = sum(event.size for event in self.unsent)


class ServerLink(Link, asyncio.Protocol):
    """A connection of the client's."""

    def __init__(self, connection: Connection, channel: Channel) -> None:
        super().__init__(channel, connection.loop)
        self.connection = connection
        self.gone = connection.loop.create_future()         # why it is lost

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.channel.authenticated:
            self.authenticated()

    def authenticated(self) -> None:
        self.connection.greet(self)

    def handle(self, message: Message) -> None:
        self.connection.handle(self, message)

    def lost(self, why: str) -> None:
        if not self.gone.done():
            self.gone.set_result(why)


class Connection:
    """The server, as a `Runner` wants its jobs (see runmaker4.FileJobs); connects again whenever it is lost.
    """

    AHEAD = 10.0                        # seconds: no group is to start later than this after it was said
    LATE = 0.002                        # seconds by which timers may be late
    QUIET = 0.03                        # seconds without us after the start of a group
    interval = 0.0                      # look_after() comes back when there is something
    poll = EVER                         # and the runner is woken when there is

    def __init__(self, program: ClientProgram, loop: asyncio.AbstractEventLoop, said: str) -> None:
        """said: why there is no connection, if somebody has said that."""
        self.program = program
        self.loop = loop
        self.say = program.say
        self.options = program.options
        self.id = secrets.token_hex(8)
        self.link: ServerLink | None = None         # one on which we are welcome
        # what the server has said to our last question; EVER: nothing yet
        self.nothing = Miss(EVER)
        self.failed = ""
        self.orphans: list[int] = []
        self.failures: Failures | None = None                        # the server counts them
        self.over = False                           # the server has left for good
        self.ever = False                           # there was a connection once
        self.file = ""                              # the server's
        # somebody at the server's port has refused us, which was said
        self.refused = False
        self.down_since = boottime()
        self.grace = 60.0
        self.jobs: dict[str, RemoteJob] = {}        # that we have, but for the ones that wait:
        self.queue: deque[RemoteJob] = deque()
        self.requested = 0                          # jobs asked for that have not come
        self.told_slots = 0                         # how many the server knows of
        self.number = 0                             # of the last request
        self.asked: dict[int, float] = {}           # requests that are not answered: when they were sent
        self.alive = -EVER                          # when the last answered one was sent
        self.last_asked = 0                         # the request that said we leave if there is nothing
        self.outbox = Outbox()
        # what the server wants to know: of runs, of their output
        self.wanted: tuple[bool, bool] | None = None
        self.going: dict[Gate, float] = {}          # of held jobs that may begin, and when
        # jobs "lost" to others, or "cancelled"; told by look_after()
        self.to_end: dict[RemoteJob, str] = {}
        self.something_to_end = asyncio.Event()
        # the last event was acknowledged, or never will be; or an account
        self.emptied = asyncio.Event()
        self.account: Account | None = None         # what the server's file holds; None: it cannot tell
        self.accounted = False                      # the server has told, or said that it cannot
        self.said = said                            # why there is no connection
        self.runner = program.make_runner(self, [], self.outbox)

    # -- as a Runner sees it ---------------------------------------------------------------------------------

    def ours(self, job: Job) -> RemoteJob | None:
        """A job, unless somebody else has its line now."""
        found = self.jobs.get(job.key) if isinstance(job, RemoteJob) else None
        return found if found is job else None

    async def claim(self, last: bool, free: int, slots: int) -> RemoteJob | Miss:
        """A job that has come, if any; else it is asked for, and the runner woken when there is an answer.

        One that needs more slots than are free waits for them, and what has come after it waits, too.
        """
        if self.queue and self.queue[0].settings.slots > free:
            return Miss(EVER)
        if self.queue and self._may_start():
            job = self.queue.popleft()
            self.jobs[job.key] = job
            self._may_ask_again()
            self._ask()
            return job
        if self.nothing.again is not None:
            self._ask(last or (self.options.follow and not self.runner.works))
        return self.nothing

    async def lend(self, job: Job) -> int:
        """The server has the lock."""
        return -1

    def reclaim(self, fd: int) -> None:
        """Nothing was lent."""

    async def finish(self, job: Job, state: bytes) -> str:
        """The result goes its way; what is wrong with it will be told when it is known."""
        ours = self.ours(job)
        if not ours:
            return ""
        cause, how = ours.cause, ours.how
        if state == ERROR and (self.runner.killed or self.runner.wall_over):
            cause = "vanished"                      # we have ended it, for we leave
        if cause in ("vanished", "unstarted"):
            how = ""                                # which says nothing of that
        self._end(ours, state, type="finish", state=to_text(state), cause=cause, how=how)
        return ""

    async def release(self, job: Job) -> str:
        ours = self.ours(job)
        if ours:
            self._end(ours, ours.state, type="release")
        return ""

    def _end(self, job: RemoteJob, result: bytes, **message: Any) -> None:
        job.result = result
        self.event(id=job.key, **message)

    async def look_after(self) -> dict[Job, str]:
        """Wait until jobs are to be ended; these, and why."""
        await self.something_to_end.wait()
        self.something_to_end.clear()
        to_end, self.to_end = self.to_end, {}
        # else it has just ended
        return {job: cause for job, cause in to_end.items() if job.result is None}

    async def leave(self, runner: Runner) -> Account | None:
        """Once no job runs any more: have all results at the server, and part; what its file holds, if it can
        tell.
        """
        for job in list(self.queue):
            self._return(job)
        began = boottime()
        while not (self.outbox.is_empty or self.failed or self.over):
            hurried = runner.killed or runner.wall_over or self.program.defects
            if hurried and (runner.processes.impatient or boottime() - began > runner.LAST_TRIES):
                break
            self.emptied.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.emptied.wait(), 0.2)
        unwritten = [job.number for job in self.jobs.values()]
        if unwritten:
            self.say(f"the server could not be told how {plural(len(unwritten), 'job')} ended")
            self.program.tally.unwritten += unwritten
        await runner.in_time(self._ask_account())
        self.over = True
        if self.link:
            self.link.send(type="bye")
            self.link.flush()
            self.link.transport.close()
        return self.account

    async def _ask_account(self) -> None:
        """Ask what the file holds, each server that we meet; one that leaves for good (`closing`) tells it
        unasked.
        """
        began, asked = boottime(), None
        while not (self.accounted or self.over or self.failed):
            if self.link and self.link is not asked:
                asked = self.link
                asked.send(type="account", slots=self.runner.size)
            coming = self.ever or not self.said         # once more, or for the first time
            if boottime() - began > (COUNTING if self.link else CONNECT if coming else 0.0):
                return
            self.emptied.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.emptied.wait(), 0.2)

    # -- asking for jobs -------------------------------------------------------------------------------------

    def _may_start(self) -> bool:
        """Rule 2 of runmaker4-server.py: only soon after something that was answered."""
        return self.link is not None and boottime() - self.alive < min(self.grace / 2, runmaker4.SILENCE)

    def _slots(self) -> int:
        """How many slots have jobs, or can have some.  Without slots that others use."""
        return sum(slot.busy or slot.idle for slot in self.runner.slots.values())

    def _ask(self, last: bool = False) -> None:
        """Ask for jobs for as many slots as we could use now; tell how many there are, if that has changed.
        """
        link = self.link
        if not link or self.runner.stopping:
            return
        running = sum(job.settings.slots for job in self.jobs.values() if job.result is None)
        due = sum(job.settings.slots for job in self.queue) + self.requested
        want = max(self._slots() - running - due, 0)
        if want or (last and not self.last_asked) or self.told_slots != self.runner.in_service:
            self.requested += want
            last = last or self.last_asked > 0      # it counts until it is answered
            self.told_slots = self.runner.in_service
            number = self._request(link, "claim", want=want, last=last, slots=self.told_slots)
            if last:
                self.last_asked = number

    def _may_ask_again(self) -> None:
        """That there was nothing is no more the last that we know."""
        self.last_asked, self.nothing = 0, replace(self.nothing, again=EVER)

    def _request(self, link: ServerLink, kind: str, **fields: Any) -> int:
        """Ask something that will be answered; the number of the question."""
        self.number += 1
        self.asked[self.number] = boottime()
        link.send(type=kind, request=self.number, **fields)
        return self.number

    def _answered(self, number: int) -> None:
        """The server was alive after this request was sent."""
        if number in self.asked:
            self.alive = max(self.alive, self.asked[number])
            for old in [old for old in self.asked if old <= number]:
                del self.asked[old]

    def _return(self, job: RemoteJob) -> None:
        """Give a job back that no slot has taken: somebody else may run it."""
        if job in self.queue:
            self.queue.remove(job)
            self._give_back(job)
            # a slot may be free, only not allowed to start what has come
            self.wake()

    def _give_back(self, job: RemoteJob) -> None:
        """No slot has taken this job, and none will."""
        self.jobs[job.key] = job
        self._end(job, job.state, type="release")

    def wake(self) -> None:
        """There is news for the runner."""
        self.runner.changed.set()

    # -- events ----------------------------------------------------------------------------------------------

    def event(self, size: int = 0, **message: Any) -> None:
        """Tell the server of something, surely; size: the bytes of output in it."""
        self.outbox.add(message, size)
        self._send_events()

    def _send_events(self) -> None:
        if self.link:
            self.outbox.send(self.link)

    def _acknowledged(self, events: Iterable[Event]) -> None:
        """The server has dealt with these events."""
        for event in events:
            job = self.jobs.get(event.message["id"])
            if job and event.message["type"] in ("finish", "release"):
                del self.jobs[job.key]
            elif job:
                job.keep(event)
        self._send_events()
        if self.outbox.is_empty:
            self.emptied.set()
        self.runner.pump.resume()

    def _drop(self, key: str) -> RemoteJob | None:
        """A job is none of ours any more: nor is what the server does not know of it yet."""
        job = self.jobs.pop(key, None)
        self.queue = deque(waiting for waiting in self.queue if waiting.key != key)
        self.outbox.drop(key)
        self.emptied.set()
        return job

    def _lose(self, key: str) -> None:
        """Somebody else has a job's line now."""
        job = self._drop(key)
        if job and job.result is None:
            self.to_end[job] = "lost"
            self.something_to_end.set()
        elif job and job.result != job.state:       # else it was given back
            self._not_written(job, "was taken by another runner meanwhile")

    def _not_written(self, job: RemoteJob, fault: str) -> None:
        result = f"; its result {show(job.result)} is not written" if job.result else ""
        self.say(f"line {job.number}: {fault}{result}")
        self.program.tally.unwritten.append(job.number)

    # -- connecting ------------------------------------------------------------------------------------------

    async def stay_connected(self, first: tuple[socket.socket, Channel] | None) -> None:
        """Connect, and again whenever the connection is lost, until that is given up.

        first: a connection that is there already.

        A refusal comes from somebody who has not proved that he knows the token: after a crash another user's
        server may have the port.  So it ends neither jobs nor the waiting for our server.  Raises Problem if
        we never had one.
        """
        pause = 0.1
        while not self.over and not self.failed:
            refused = False
            try:
                link = await self._connect(first)
                why = await self._use(link)
                refused = isinstance(link.channel.broken, Refused)
                if refused and not self.ever:
                    raise Problem(f"{self.options.server}: {why}")
                pause = 0.1 if link is self.link else pause
            except (OSError, asyncio.TimeoutError) as error:
                why = no_server(self.options, error)
            first = None
            self._note_loss(why, refused)
            if self.over or self._given_up(why):
                return
            # or all would come at once
            await asyncio.sleep(min(pause * random.uniform(0.5, 1.0), self._left()))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _connect(self, first: tuple[socket.socket, Channel] | None) -> ServerLink:
        """A link on which both ends are authenticated, or soon will be."""
        options = self.options
        if first:
            sock, channel = first
            link = ServerLink(self, channel)
            await self.loop.create_connection(lambda: link, sock=sock)
        else:
            link = ServerLink(self, Channel(self.program.token, server=False))
            await asyncio.wait_for(self.loop.create_connection(
                lambda: link, options.server, options.port, happy_eyeballs_delay=0.25),
                min(CONNECT, self._left()))
        return link

    async def _use(self, link: ServerLink) -> str:
        """Keep a link alive until it is lost; why it was."""
        made = boottime()
        while not link.gone.done():
            pause = min(runmaker4.KEEP_ALIVE, self.grace / 8) if link is self.link else 0.2
            await asyncio.wait([link.gone], timeout=pause)
            now = boottime()
            if link.gone.done():
                break
            if link is self.link:
                if now - link.heard > runmaker4.SILENCE:
                    link.drop(f"nothing was heard for {human_time(runmaker4.SILENCE)}")
                else:
                    self._request(link, "ping")
            elif now - made > min(runmaker4.HANDSHAKE, self._left()):
                link.drop("no answer")
        broken = link.channel.broken
        return refusal(broken) if isinstance(broken, Refused) else link.gone.result()

    def greet(self, link: ServerLink) -> None:
        """The server is authenticated: say who we are, and what we have."""
        for job in self.jobs.values():  # one by one: a command may fill a message
            link.send(
                type="have",
                jobs=[
                    dict(
                        id=job.key,
                        number=job.number,
                        ordinal=job.ordinal,
                        offset=job.offset,
                        state=to_text(job.state),
                        text=to_text(job.text),
                        run=job.mark,
                        result=job.result and to_text(job.result),
                    )
                ],
            )
        self.told_slots = self.runner.in_service
        link.send(type="hello", client=self.id, name=to_text(self.program.host), pid=os.getpid(),
                  slots=self.told_slots, retry=to_text(self.program.retry), follow=self.options.follow,
                  directory=to_text(self.program.directory))

    def _note_loss(self, why: str, refused: bool) -> None:
        """Say once that there is no server; and once what somebody says who is there and does not want us."""
        if self.link:
            self.link, self.down_since = None, boottime()
        if not self.over and (not self.said or (refused and not self.refused)):
            running = f"; {plural(len(self.jobs), 'job')} not handed in yet" if self.jobs else ""
            self.say(f"{why}{running}; trying again")
            self.said = why
            self.refused = refused
        for job in self.queue:
            if not job.settings.together:           # a group's job that we do not name is sent to us again
                self._give_back(job)                # else a new server would not know that it was not begun
        self.queue.clear()
        self.going.clear()
        for job in self.jobs.values():
            if job.gate:
                job.gate.refuse()                   # nobody can let it in any more
        self.requested = 0
        self._may_ask_again()
        self.asked.clear()

    def _limit(self) -> float:
        """Seconds without a server after which we give up."""
        return EVER if self.options.give_up is None else self.options.give_up

    def _left(self) -> float:
        """Seconds until we give up; at least enough to try."""
        return max(self._limit() - (boottime() - self.down_since), 0.5)

    def _given_up(self, why: str) -> bool:
        gone = boottime() - self.down_since
        if gone < self._limit():
            return False
        self.failed = f"no server for {human_time(gone)}: {why}"
        self.emptied.set()
        self.runner.fail(self.failed)
        self.runner.end_all()
        return True

    # -- messages --------------------------------------------------------------------------------------------

    def handle(self, link: ServerLink, message: Message) -> None:
        """Whatever the server says.  Raises WireError."""
        kind = message.text("type", 16)
        if link is not self.link and kind not in ("welcome", "closing"):
            raise WireError("no welcome")
        if kind == "welcome":
            self._on_welcome(link, message)
        elif kind == "jobs":
            self._on_jobs(link, message)
        elif kind == "ack":
            self.outbox.window = max(message.whole("window"), 1)
            self._acknowledged(self.outbox.acknowledge(message.whole("n")))
        elif kind == "nothing":
            self._on_nothing(message)
        elif kind == "pong":
            self._answered(message.whole("request"))
            if self.queue:
                self.wake()
        elif kind == "fault":
            job = self.jobs.get(message.text("id"))
            if job:                                 # the text says that its result is not written
                self.say(f"line {job.number}: {printable(message.text('text', 1000))}")
                self.program.tally.unwritten.append(job.number)
        elif kind == "lost":
            self._lose(message.text("id"))
        elif kind == "sync":
            link.send(type="sync", clock=self.loop.time())
        elif kind == "go":
            self._on_go(message)
        elif kind == "stop":
            self._on_stop(message.text("id"), cancelled=message.flag("cancelled"))
        elif kind == "account":
            self._on_account(message)
        elif kind == "closing":
            self._on_closing(link, message)
        else:
            raise WireError(f"what is {kind!a}?")

    def _on_welcome(self, link: ServerLink, message: Message) -> None:
        """We are known: settle what has changed, send what was not acknowledged, and go on."""
        grace = max(message.seconds("grace"), 0.1)
        seen, window = message.whole("seen"), message.whole("window")
        lost, settled = message.items("lost", str), message.items("settled", str)
        file = printable(message.text("file", 1000))
        sinks = self._sinks(message)
        if self.ever and file != self.file:
            self.say(f"connected again; serving {file}, not {self.file}"
                     + (f", where {plural(len(lost), 'job')} of ours came from" if lost else ""))
            self.program.tally.trouble |= bool(lost)    # what is told of that file says nothing of these jobs
        elif self.ever:
            self.say("connected again")
        elif not self.options.quiet:
            self.say(f"serving {file}")
        self.file = file
        self.link = link
        self.ever = True
        self.refused = False
        self.said = ""
        self.grace = grace
        self.outbox.window = max(window, 1)
        for key in lost:
            self._lose(key)
        for key in settled:
            self._drop(key)
        told = [event for job in self.jobs.values() for event in job.told]
        self._acknowledged(self.outbox.begin_anew(told, seen))
        if sinks:
            self.runner.sinks[:] = sinks
        self._request(link, "ping")
        self.wake()

    def _sinks(self, message: Message) -> list[Sink]:
        """The sinks of runs that start from now on: the console, and what tells the server.

        None: all is as it was.
        """
        wanted = message.flag("records"), message.flag("output")
        if wanted == self.wanted:
            return []
        self.wanted = wanted
        return [Telling(self, *wanted), *self.program.console(with_output=True)]

    def _on_jobs(self, link: ServerLink, message: Message) -> None:
        number = message.whole("request")
        for item in message.objects("jobs"):
            job = RemoteJob(
                item.whole("number"),
                item.whole("ordinal"),
                item.whole("offset"),
                item.state("state"),
                item.data("text"),
                key=item.text("id", 16),
                settings=JobSettings(
                    timeout=item.timeout("timeout"),
                    together="?" * item.flag("group"),
                    slots=item.whole("slots", 100_000),
                    shell=os.fsdecode(item.data("shell")),
                ),
            )
            if item.flag("hold"):
                job.gate = Gate(functools.partial(self._tell_held, job))
            self.queue.append(job)
            self.loop.call_later(UNSTARTED, self._return, job)
            self.requested = max(self.requested - job.settings.slots, 0)
        self._answered(number)
        if not self._may_start():
            self._request(link, "ping")
        self._may_ask_again()
        self.wake()

    def _tell_held(self, job: RemoteJob) -> None:
        """The shell of a job waits at its gate."""
        if self.link and job.key in self.jobs:
            self.link.send(type="ready", id=job.key)

    def _on_go(self, message: Message) -> None:
        """A job that is held may begin, at a time of our clock."""
        job, at = self.jobs.get(message.text("id")), message.seconds("at")
        if job and job.gate:
            self.going[job.gate] = at
            ahead = min(at - self.loop.time(), self.AHEAD)
            self.loop.call_later(max(ahead - self.LATE, 0.0), self._let_in, at)

    def _on_stop(self, key: str, cancelled: bool) -> None:
        """A job shall be ended, or not begin.

        The runner hears only of jobs that it has and that have not ended.
        """
        waiting = next((job for job in self.queue if job.key == key), None)
        job = self.jobs.get(key)
        if waiting:
            self._return(waiting)
        elif job and job.result is None and cancelled:
            self.to_end[job] = "cancelled"
            self.something_to_end.set()
        elif job and job.result is None:
            self.runner.end_job(job)

    def _let_in(self, at: float) -> None:
        """Let those jobs begin that may at this time: timers are late by up to a millisecond, sleep is not.

        Then the processors are theirs for a moment.  Where several clients share a machine, what each has to
        do now would hold up the jobs of clients that are a bit later.
        """
        due = [gate for gate, when in self.going.items() if when <= at]
        self.going = {gate: when for gate, when in self.going.items() if when > at}
        if due:
            time.sleep(min(max(at - self.loop.time(), 0.0), self.LATE))
            for gate in due:
                gate.open()
            time.sleep(self.QUIET)

    def _on_nothing(self, message: Message) -> None:
        number = message.whole("request")
        self.orphans += message.items("orphans", int)
        self.nothing = Miss(
            self.nothing.again, "", message.flag("ended"), printable(message.text("left", 1000))
        )
        self._answered(number)
        if self.last_asked and number >= self.last_asked and not self.queue:
            self.last_asked, self.nothing = 0, replace(self.nothing, again=None)
        self.wake()

    def _on_account(self, message: Message) -> None:
        """What the file holds, if the server can tell."""
        if message.fields.get("account") is not None:
            account = Message(message.fields["account"])
            now = Message(account.fields.get("now"))
            self.account = Account(
                Counts(*(now.whole(name) for name in STATES)),
                False,
                tuple(account.items("bad", int)),
                account.flag("alone"),
                tuple(account.items("grouped", int)[:2]),
                account.flag("left") and not self.runner.had_one_each,
                others="" if account.flag("left") else printable(account.text("others")),
                strays=printable(account.text("strays", 1000)),
            )
        self.accounted = True
        self.emptied.set()

    def _on_closing(self, link: ServerLink, message: Message) -> None:
        """The server leaves."""
        if message.flag("done"):
            self._on_account(message)
            self.over = True
            self.runner.stop()
        link.drop("the server was stopped")


# ======== What the server is told of runs ===================================================================


class Telling(Sink):
    """Tells the server that runs have begun, what they print, and how they have ended.

    Where it keeps no records the result of a job tells enough of a run that ends at once.
    """
    DELAY = 0.05                    # seconds

    def __init__(self, connection: Connection, records: bool, output: bool) -> None:
        """records: the server keeps some; output: also of what runs print."""
        self.connection = connection
        self.records = records
        self.wants_output = output
        self.young: dict[Run, None] = {}        # of which it does not know yet
        self.timer: asyncio.TimerHandle | None = None

    def started(self, run: Run) -> None:
        if self.records:
            return self._begin(run)
        self.young[run] = None
        if not self.timer:
            self.timer = self.connection.loop.call_later(self.DELAY, self._begin_young)

    def unstarted(self, run: Run) -> None:
        self._note_cause(run, "unstarted")
        if self.records:
            self._begin(run)
            self._end(run, None)

    def output(self, run: Run, stream: Stream, data: bytes) -> None:
        at = stream.received - len(data)
        for start in range(0, len(data) if self.wants_output else 0, runmaker4.PIECE):
            piece = data[start:start + runmaker4.PIECE]
            self._tell(
                run, "output", len(piece), stream=to_text(stream.name), at=at + start, data=to_text(piece)
            )

    def ended(self, run: Run, ending: Ending) -> None:
        self._note_cause(run, "timeout" if ending.cause == "timeout" else "")
        if run in self.young:
            del self.young[run]
        else:
            self._end(run, ending)

    def _note_cause(self, run: Run, cause: str) -> None:
        """Why a run has ended, for the result of its job."""
        job = self.connection.ours(run.job)
        if job:
            job.cause = cause

    def _begin_young(self) -> None:
        self.timer = None
        for run in self.young:
            self._begin(run)
        self.young.clear()

    def _begin(self, run: Run) -> None:
        pid, mark = (run.shell.pid, to_text(run.shell.mark)) if run.shell else (0, "")
        job = self.connection.ours(run.job)
        if job:
            job.mark = mark
        self._tell(
            run,
            "begin",
            time=run.began,
            slot=run.slot.name,
            pid=pid,
            mark=mark,
            output=self.wants_output,
            again=False,
        )

    def _end(self, run: Run, ending: Ending | None) -> None:
        """ending: None if it could not be started."""
        shell = run.shell
        self._tell(run, "end", seconds=run.took, cause=run.cause, status=ending.status if ending else None,
                   limit=ending.limit if ending else 0.0, cpu=shell.cpu if shell else None,
                   memory=shell.memory if shell else None,
                   **{to_text(name): sum(stream.received for stream in run.streams if stream.name == name)
                      for name in (b"stdout", b"stderr")})

    def _tell(self, run: Run, kind: str, size: int = 0, **fields: Any) -> None:
        """size: of the output in it."""
        job = self.connection.ours(run.job)
        if job:
            self.connection.event(size, type=kind, id=job.key, **fields)


def fault_of(name: str) -> str:
    """Why the server's records cannot have a name of a host or slot; "": they can."""
    return (
        "a control character in it"
        if printable(name) != name
        else "longer than 255 characters" * (len(name) > 255)
    )


class SlotNames(SlotFile):
    """A file of names, without the ones that the server's records cannot have."""

    def _read(self) -> list[str]:
        names = super()._read()
        bad = next(filter(fault_of, names), "")
        # else an editor has just emptied the file: nothing new is known
        if names:
            self._complain("form", bad and f"'{printable(bad)[:40]}' is left out: {fault_of(bad)}")
        return [name for name in names if not fault_of(name)]


# ======== The program =======================================================================================


class ClientProgram(RunnerProgram):
    """Connects, so that what is wrong is told at once; then runs jobs, in the background if that is asked
    for.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        """Raises Problem."""
        options = parse(argv)
        self.token = find_token(options.token)
        super().__init__(PROG, options.server, options, without_token(argv))
        named = [("--name", os.fsdecode(self.host)), *(("--slots", name) for name in self.slots)]
        for option, name in named:
            if fault_of(name):
                raise Problem(
                    f"{option}: no name: '{printable(name)[:40]}': {fault_of(name)} (give another one)"
                )
        if self.slot_file:
            self.slot_file = SlotNames(self.slot_file.path, self.slot_file.mount, self.slot_file.say)

    def main(self) -> int:
        """Print a status, or run jobs; the exit status.  Raises Problem."""
        options = self.options
        if options.status:
            code = print_status(self)
            self._warn_of_token()
            return code
        if self.slot_file:
            self.slot_file.prepare()
            self.worker = Worker(self.slot_file.network, self.relieved)
        allow_descriptors(32 + 4 * len(self.slots))
        self.find_wall_time()               # squeue may take longer than a server waits for us
        self.first = self._first_connection()
        self._warn_of_token()
        return super().main()

    def _warn_of_token(self) -> None:
        """Say that a token on the command line is seen by others."""
        if self.options.token and HEX.fullmatch(self.options.token):
            self.say(
                "others on this host see the token in the list of processes (give --token a file, or set "
                "$RUNMAKER4_TOKEN)"
            )

    def _first_connection(self) -> tuple[socket.socket, Channel] | None:
        """A connection, or none if one may still come.  Raises Problem."""
        options = self.options
        try:
            with telling(options.server):
                return dial(options, self.token)
        except OSError as error:
            text = no_server(options, error)
            if options.give_up == 0:
                raise Problem(f"{options.server}: {text}") from None
            self.say(f"{text}; trying again")
            return None

    async def work(self) -> int:
        """Run jobs; the exit status."""
        # As _first_connection() said
        self.connection = connection = Connection(self, self.loop, "" if self.first else "no server")
        # first: it makes the slots, which are told
        ending = asyncio.ensure_future(self.run_to_end(connection))
        self.keeping = asyncio.ensure_future(connection.stay_connected(self.first))
        await asyncio.wait([self.keeping, ending], return_when=asyncio.FIRST_COMPLETED)
        if self.keeping.done() and isinstance(self.keeping.exception(), Problem):
            self.keeping.result()           # we are not wanted, and nothing has begun
        watched(self.keeping)
        code = await ending
        return 2 if connection.failed and not connection.ever and code == 1 else code

    def regroup(self, lines: str) -> str:
        """The command that has jobs of groups in these lines run again, on the server's host."""
        words = [runmaker4.own_name("runset4"), "--set=.", "--state=!e", self.connection.file, lines]
        return f"on {self.label}, {shlex.join(words)}"

    def end_for_defect(self) -> None:
        """Without a connection nobody could be told how jobs end: then they are ended."""
        super().end_for_defect()
        if self.keeping.done():
            self.runner.end_all()


@contextlib.contextmanager
def telling(server: str) -> Iterator[None]:
    """What no patience mends is told as a Problem: a host that is unknown, a server that does not want us."""
    try:
        yield
    except (socket.gaierror, UnicodeError) as error:
        text = reason(error) if isinstance(error, OSError) else "no name of a host"
        raise Problem(f"{server}: unknown host: {text}") from None
    except WireError as error:
        raise Problem(f"{server}: {refusal(error)}") from None


def refusal(error: WireError) -> str:
    """What is to be done about a server that does not want us."""
    if str(error) == "wrong token":
        return "wrong token (the server's first line says where the right one is; --token gives it)"
    if isinstance(error, Refused):
        return f"{error} (use the same release on both ends)"
    return f"no runmaker4-server.py: {error}"


def no_server(options: argparse.Namespace, error: Exception) -> str:
    """Why there is no connection."""
    number = error.errno if isinstance(error, OSError) else None
    text = os.strerror(number).lower() if number and number > 0 else "no connection"
    if isinstance(error, (TimeoutError, asyncio.TimeoutError, socket.timeout)):
        text = "no answer"
    return f"port {options.port}: {text} (does runmaker4-server.py run there?)"


# ---- --status ----------------------------------------------------------------------------------------------


def ask_status(program: ClientProgram) -> dict[str, Any]:
    """The server's status, as --json prints it.  Raises Problem, OSError."""
    options = program.options
    with telling(options.server):
        sock, channel = dial(options, program.token)
        channel.send(dict(type="status"))
        sock.sendall(channel.outgoing())
        with sock:
            return gather_status(sock, channel)


def gather_status(sock: socket.socket, channel: Channel) -> dict[str, Any]:
    """Put the messages of a status together.  Raises OSError, WireError, Problem."""
    status: dict[str, Any] = {}
    patience = Patience(CONNECT)
    while True:
        for message in map(Message, channel.receive(patience.receive(sock))):
            kind = message.text("type")
            if kind == "summary":
                status = summary(message)
            elif kind == "end" and status:
                return status
            elif kind == "client" and status:
                status["clients"].append(dict(
                    name=message.text("name"), address=message.text("address"), pid=message.process("pid"),
                    slots=message.whole("slots", 1_000_000), seen=message.seconds("seen"),
                    lost=message.flag("lost"), jobs=[]))
            elif kind == "job" and status and status["clients"]:
                since = message.seconds_or_none("since")
                status["clients"][-1]["jobs"].append(dict(
                    line=message.whole("line"), command=message.text("command"),
                    pid=message.process("pid"), since=since))
            else:
                raise WireError(f"what is {kind!a}?")


def summary(message: Message) -> dict[str, Any]:
    """The beginning of a status.  Raises WireError, Problem."""
    if message.text("fault"):
        raise Problem(f"{printable(message.text('file'))}: {printable(message.text('fault'))}")
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


def print_status(program: ClientProgram) -> int:
    """--status.  Raises Problem."""
    try:
        status = ask_status(program)
    except OSError as error:
        raise Problem(f"{program.options.server}: {no_server(program.options, error)}") from None
    if program.options.json:
        put(json.dumps(status).encode() + b"\n")
    else:
        put(b"".join(to_bytes(line) + b"\n" for line in status_lines(status, 80)))
    return 0


def status_lines(status: dict[str, Any], width: int) -> list[str]:
    """A status for a person."""
    lines = [
        f"{status['file']} on {status['host']}, port {status['port']}, "
        f"served for {human_time(status['since'])}",
        ", ".join(f"{status[name]} {name}" for name in STATES),
    ]
    if status["waiting"]:
        lines.append("waiting:")
        lines += [f"  {job['line']:>7} {job['command']}" for job in status["waiting"]]
        if status["new"] > len(status["waiting"]):
            lines.append(f"      ... and {status['new'] - len(status['waiting'])} more")
    lines.append("clients:" if status["clients"] else "no clients")
    for client in status["clients"]:
        seen = (
            f"lost {human_time(client['seen'])} ago"
            if client["lost"]
            else f"seen {human_time(client['seen'])} ago"
        )
        lines.append(f"  {client['name']} ({client['address']}), {plural(client['slots'], 'slot')}, {seen}")
        for job in client["jobs"]:
            since = "waits" if job["since"] is None else human_time(job["since"])
            lines.append(f"  {job['line']:>7} {since:>7}  {job['command']}")
    return [line if len(line) <= width else line[:width - 3] + "..." for line in map(printable, lines)]


def run_jobs(argv: Sequence[str]) -> int:
    """The body of runmaker4-client.py.  Raises Problem."""
    return ClientProgram(argv).main()


def main(argv: Sequence[str] | None = None) -> int:
    """Run runmaker4-client.py with these arguments; the exit status."""
    return run_main(PROG, run_jobs, argv)


if __name__ == "__main__":
    leave(main())
