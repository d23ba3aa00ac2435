"""Processes that take turns, and a clock.

Each process (an `Actor`) makes one system call at a time; whose turn is next is drawn from a seed, so that a
history can be made again.  What runs the product is a thread, and threads pass a baton, so never two of them
run; all else (an editor, fate) is a generator.  A system call takes a moment by the simulated clock, which
jumps when everybody sleeps: so whoever is not stopped on purpose comes to its turn in time.
"""
from __future__ import annotations

import errno
import itertools
import math
import random
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from typing import Callable, NoReturn

from tests.orders.simulation.files import Description, Host, Inode

LEASE = 20.0                    # seconds (really 90)
LONGEST = 20_000               # system calls in one schedule; more are a livelock


class Killed(BaseException):
    """Unwinds an actor that was killed."""


class Violation(BaseException):
    """A promise was broken.  No product code can mean to catch it."""


class Actor:
    """A process: its descriptors, and whose turn it is."""

    def __init__(self, name: str, host: Host, *, work: Callable[[Actor], None] | None = None,
                 script: Iterator[float] | None = None) -> None:
        """work: what it does, in a thread; or script: yields the seconds until its next step."""
        self.name, self.host, self.work, self.script = name, host, work, script
        self.fds: dict[int, Description] = {}
        self.left: list[Description] = []       # what processes have that its jobs left; they end with it
        self.wake = 0.0
        self.last = 0.0             # when its last call began
        self.hand: Hand             # that does its work; World.run() says which one
        self.killed = self.finished = False
        self.reads: deque[tuple[Description, int, bytes, int]] = deque(maxlen=20)       # the last is the step
        # it has verified something while holding the command mutex, and may be about to write
        self.shielded = False
        self.full = False           # the disk is, and its last write was cut short
        # until when it has a descriptor left for the lock file, but none for a job lock
        self.lacks_files_until = 0.0

    def writes_soon(self) -> bool:
        """Whether it can write by what it reads now."""
        return any(description.writes for description in self.fds.values())

    def writes_more(self) -> bool:
        """A claim that has read a line can write a result first: both have a bucket locked."""
        return sum(description.writes for description in {*self.fds.values()}) > 1


class Hand(threading.Thread):
    """A thread that does actors' work, one after the other; few are made."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.turn = threading.Lock()
        self.turn.acquire()
        self.world: World           # whose work it does next is said before it has its turn
        self.actor: Actor
        self.start()

    def run(self) -> None:
        while True:
            self.turn.acquire()
            world, actor = self.world, self.actor
            try:
                if actor.work and not actor.killed:
                    actor.work(actor)
            except (Killed, Violation):
                pass
            except BaseException:
                world.note_violation("broke: " + traceback.format_exc())
            world.leave(actor)


class World:
    """Actors and a clock, whose turn it is, and what has happened."""

    def __init__(self, seed: int, kind: str) -> None:
        self.draws = random.Random(seed)
        self.random = self.draws.random
        self.kind, network = kind, bool(kind)
        self.switching = self.draws.choice((0.03, 0.1, 0.3, 0.6))
        self.tick = 0.0005 if network else 0.00005
        # seconds from look to look, by which all else is measured
        self.throttle = 5.0 if network else 1.0
        self.now, self.steps = 1000.0, 0
        self.errors = 0                             # how many are still to come
        # who was cut off in an addition could not cut off the half of it
        self.halves = False
        self.edits = False                          # whether there is an editor
        # how likely it is that the disk is full in the middle of a write
        self.fills = 0.0
        self.erred = 0.0                            # when the last one came
        # in which step something else than ours last changed what counts
        self.disturbed: float = -1
        self.actors: list[Actor] = []
        self.me = Actor("", Host("", kind))         # who makes system calls; at first nobody
        self.main = threading.Lock()
        self.main.acquire()
        self.over = False
        self.violation = ""
        self.names: dict[str, Inode] = {}
        self.last: Inode                            # the job file, also while it has no name
        self.directory = Inode(0, bytearray(), self.now)
        self.numbers = itertools.count(10)
        self.inodes: list[Inode] = []

    def trace(self, text: str) -> None:
        """Add a line to the trace, if one is kept."""
        raise NotImplementedError

    def rob(self, host: Host) -> None:
        """All locks of a host are gone, and the descriptors that had them are of no use any more."""
        raise NotImplementedError

    def close_all(self, actor: Actor) -> None:
        """Close what an actor that has ended has open."""
        raise NotImplementedError

    # -- turns -----------------------------------------------------------------------------------------------

    def fail(self, text: str) -> NoReturn:
        self.note_violation(text)
        raise Violation(text)

    def note_violation(self, text: str) -> None:
        if not self.violation:
            self.violation = f"{self.me.name}: {text}"
            self.trace(f"*** {self.violation}")

    def step(self, local: bool = False) -> Actor:
        """A system call is about to be made; who makes it.  Others may make some before.  Raises OSError.

        local: it does what it has to do also without the server.
        """
        me = self.me
        if me.killed or self.over or self.violation:
            raise Killed
        self.steps += 1
        me.last = self.now
        self.now += self.tick
        if self.steps > LONGEST:
            self.fail("does not come to an end")
        if self.random() < self.switching:
            self.hand_on(me)
        host = me.host
        while host.network and host.cut[0] <= self.now < host.cut[1]:
            until = host.cut[1]                 # I/O waits until the host is back
            if host.fuse:
                if self.now >= host.cut[0] + LEASE:
                    break
                until = min(until, host.cut[0] + LEASE)
            me.wake = until
            self.hand_on(me)
        if host.fuse and host.robbed < host.cut[0] and host.cut[0] + LEASE <= min(self.now, host.cut[1]):
            self.rob(host)
        # the daemon answers a call that it cannot make, also if the process is stopped until the host is back
        is_cut_off = host.cut[0] <= self.now < host.cut[1] or host.robbed > me.last
        if host.fuse and is_cut_off and not local:
            self.halves |= me.full
            me.full = False
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return me

    def sleep(self, me: Actor, seconds: float) -> None:
        if me.killed or self.over:
            raise Killed
        me.wake = self.now + max(seconds, self.tick)
        me.shielded = False
        self.hand_on(me)

    def next(self, me: Actor | None) -> Actor | None:
        """Whose turn it is, of those in threads; None: there is nobody left, or `me` was killed."""
        while self.actors and not (me and me.killed):
            ready = [actor for actor in self.actors if actor.wake <= self.now]
            if not ready:
                self.now = min(actor.wake for actor in self.actors)
                if self.now == math.inf:
                    return None
                continue
            it = ready[int(self.random() * len(ready))]
            if not it.script:
                return it
            pause = next(it.script, None)
            if pause is None:
                self.actors.remove(it)
            else:
                it.wake = self.now + pause
        return None

    def hand_on(self, me: Actor) -> None:
        """Returns when it is this actor's turn.  Raises Killed."""
        it = self.next(me)
        if me.killed:
            raise Killed
        if it is None:
            self.fail("nobody will ever have a turn again")
        if it is not me:
            self.me = it
            it.hand.turn.release()
            me.hand.turn.acquire()
            if me.killed or self.over:
                raise Killed

    def leave(self, me: Actor) -> None:
        """A thread has done its work."""
        me.finished = True
        if self.over or self.violation:
            self.over = True
            self.main.release()
            return
        if not me.killed:
            self.actors.remove(me)
            self.close_all(me)
        it = self.next(None)
        if it:
            self.me = it
            it.hand.turn.release()
        else:
            self.main.release()

    def run(self, hands: list[Hand]) -> None:
        """Have all actors do their work, to the end."""
        working = [actor for actor in self.actors if actor.work]
        while len(hands) < len(working):
            hands.append(Hand())
        for actor, hand in zip(working, hands):
            hand.world, hand.actor, actor.hand = self, actor, hand
        first = self.next(None)
        if first:                                   # else fate has killed all of them before they began
            self.me = first
            first.hand.turn.release()
            self.main.acquire()
        self.over = True
        for actor in working:                       # those who were killed, and have not heard of it yet
            if not actor.finished:
                actor.killed = True
                self.me = actor
                actor.hand.turn.release()
                self.main.acquire()
        self.over = bool(self.violation)
