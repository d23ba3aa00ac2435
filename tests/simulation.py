"""Histories: the real `JobFile` and `Cursor` race each other on a simulated host system, each time from another seed.

Private copies of runmaker4.py and runset4.py find tests/simulated_host.py where they look for `os`, `fcntl` and `time`.
`Product` and `Setter` are all that is known here of their methods; `run_jobs` does what `Runner` does, in short.  There
are two or three runners, on one host or on two, with or without --resume and -r; runset4.py, which sets states and
appends; an editor that saves in place, or puts another file there in one of three ways; or instead of both one or two
people with `runset4.py --edit`; and fate, which kills runners (their jobs die with them or live on), stops them, and
cuts hosts off.  A job is a time span and a result: processes and output are none of this.  Nor are groups, and the
server with its one descriptor for all.

What is checked: each byte before it is written (History.may_write), each start of a job (check_runs, check_barrier),
locks and descriptors after each operation (operation), and all that is left at the end, when all have gone and one
more runner with --resume has looked at it (settle).  What README's limits do not promise is excused in one place
(History.excuse); that an editor does not write in the microseconds between a check and its write is seen to in edit().

    python3 -m tests.simulation                       how many histories find each planted defect
    python3 -m tests.simulation --seed 7              the system calls of one history
    python3 -m tests.simulation --seed 7 --planted 'no third look'
"""
from __future__ import annotations

import argparse
import fcntl
import functools
import importlib.util
import itertools
import math
import multiprocessing
import multiprocessing.pool
import os
import random
import sys
import time
import traceback
import types
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, List, Sequence, Tuple

from tests.simulated_host import (LEASE, MACHINE, PATH, Actor, Description, Hand, Host, Inode, Violation, World,
                                  command_of, lines_of)
from tests.support import ROOT


# ======== What must hold ==============================================================================================


@dataclass(eq=False)
class Run:
    """A job that was started."""
    command: bytes
    runner: Process
    job: Any
    began: float                # when the claim did
    until: float
    result: bytes
    descriptions: list[Description] = field(default_factory=list)       # inherited
    blind: bool = False         # its line was claimed in a file that was replaced at that very moment
    written: bool = False
    released: bool = False      # it was not even started
    excused: bool = False       # that another ran at the same time
    settle_at: float = 0.0
    pause: float = 0.0


class Process(Actor):
    """A runner, or runset4.py."""

    def __init__(self, name: str, host: Host, work: Callable[[Any], None]) -> None:
        super().__init__(name, host, work=work)
        self.runs: list[Run] = []
        self.stops: list[tuple[float, float]] = []      # when it could not look, from when to when
        self.began = 0.0            # when its last operation did
        self.claimed = self.claimed_state = b""         # the command that it has claimed, and what it was
        self.claimed_blind = False  # ... in a file that was replaced meanwhile
        self.by_force = False
        self.carries = False        # it writes what a person wishes, and what became of others' jobs


class History(World):
    """What happened, and what must not have happened."""

    def __init__(self, seed: int, kind: str) -> None:
        super().__init__(seed, kind)
        self.runs: list[Run] = []
        self.edited = -math.inf                     # when an editor saved last
        self.saved_over: dict[bytes, float] = {}    # when an editor saved another state than r for this command
        self.forced: set[bytes] = set()             # commands whose state was set by force
        self.released: set[tuple[bytes, bytes]] = set()     # commands claimed and not started, and their states
        self.appended: list[bytes] = []             # commands, by those who were told that this went well
        self.known: set[bytes] = set()              # commands that may be in the file
        self.edits = False                          # whether there is an editor
        self.hand_set = self.again = False          # ... somebody who sets states, or runs again what has ended
        self.fates: set[str] = set()
        self.most: Counter[bytes] | None = None     # how often each command may run, where nobody asks for more

    def note_replaced(self) -> None:
        self.edited = self.now

    def may_write(self, me: Process, owner: Description, data: bytes, at: int) -> bytes:
        """Check a state before it is written; the command of its line."""
        inode = owner.inode
        line = dict(lines_of(inode.data)).get(at, b"")
        command = command_of(line)
        if len(data) != 1 or command == line:
            self.fail(f"writes {data!r} where no job line begins, at {at}")
        mine = [lock for lock in inode.locks if lock.owner is owner and lock.real]
        if not any(lock.start <= at < lock.end and lock.exclusive for lock in mine) and not (me.by_force and mine):
            self.fail(f"writes {data!r} over {line!r} without its lock")
        read = next((read[at - start:] for file, start, read in reversed(me.reads)
                     if file is inode and start <= at < start + len(read)), b"")
        looked_for = command[:len(read) - 1] if me.carries else command     # where it has put a text it reads states
        if read[1:].partition(b"\n")[0] != looked_for:
            self.fail(f"writes {data!r} over {line!r}, which was {read.partition(bytes([10]))[0]!r} when it looked")
        # Force takes no lock: who has verified a line under its own lock may write a moment after it, or before
        if read[:1] != line[:1] != data and command not in self.forced:
            self.fail(f"writes {data!r} over {line!r}, which was {read[:1]!r} when it looked")
        self.check_state(me, inode, line, data)
        return command

    def check_state(self, me: Process, inode: Inode, line: bytes, data: bytes) -> None:
        """Check that this state is what became of this line."""
        command = command_of(line)
        runs = self.runs if me.carries else me.runs
        own = [run for run in runs if run.command == command and run.until <= self.now]
        back = data == line[:1] or me.claimed == command and me.claimed_state == data   # a claim could not be synced
        # Equal commands change places, and their states; jobs that were not started have the state again that they had
        as_wished = me.carries and (line[:1] != b"r" or (command, data) in self.released)
        if data in b"d!" and not (back or as_wished or any(run.result == data for run in own)):
            self.fail(f"writes {data!r} over {line!r}, which has no such result")
        if data == b"e" and not any(run.result == data for run in own) and line[:1] == b"r":
            if self.most is not None:
                self.fail(f"calls {line!r} an orphan, though nobody was killed")
            self.check_runs(command, "is an orphan in error, while it runs")
        if data == b"r":
            if line[:1] == b"d" or line[:1] == b"x" and command not in self.forced:
                self.fail(f"claims {line!r}")
            me.claimed, me.claimed_state = command, line[:1]
            me.claimed_blind = inode is not self.names.get(PATH)
            if me.claimed_blind and inode.nameless < me.looked:
                self.fail(f"claims {line!r} in a file that was replaced before it looked")
        for run in own:
            run.written |= run.result == data

    def check_runs(self, command: bytes, what: str, new: Run | None = None) -> None:
        """Check that with one more there are not more jobs of a command running than lines of it."""
        if new and self.most is not None and sum(run.command == command for run in self.runs) >= self.most[command]:
            self.fail(f"{command!r} {what}, once more than anybody wished")
        alive = [run for run in self.runs if run.command == command and run.until > self.now]
        if len(alive) >= max(1, self.last.commands.count(command)):
            alive_now = alive + [new] * bool(new)
            if any(run.excused or self.excuse(run) for run in alive_now):
                for run in alive_now:
                    run.excused = True          # also when the time for excuses is over
            else:
                names = ", ".join(f"{run.runner.name} since {run.began:.3f}" for run in alive)
                self.fail(f"{command!r} {what}: {names}")

    def is_visible(self, run: Run) -> bool:
        """Whether a running job's line is locked for it, where the path leads."""
        inode = self.last
        owners = run.descriptions + [run.runner.fds[fd] for fd in (run.job.fd,) if fd in run.runner.fds]
        places = {at for at, line in lines_of(inode.data) if command_of(line) == run.command}
        return any(lock.owner in owners and lock.real and any(lock.start <= at < lock.end for at in places)
                   for lock in inode.locks)

    def excuse(self, run: Run) -> str:
        """Why another may run, or have ended, this running job's line, by what README's limits say; ''."""
        if self.is_visible(run):
            return ""                   # nothing excuses who takes a line that is locked
        if run.runner.killed and self.edited > run.began:
            return "it outlived its runner, and its file was edited: its share of the lock stayed where the line was"
        if run.runner.host.robbed > run.began and any(self.now < end + 2 * self.pace for _, end in run.runner.stops):
            return "its host was cut off for longer than the lease, and its runner has yet to take its lock back"
        if run.blind or self.saved_over.get(run.command, -math.inf) >= run.began:
            return "an editor that had read the file before the claim saved the old state after it"
        if any(end > max(self.edited, run.began) for _, end in run.runner.stops):
            return "its runner was stopped, or cut off, and could not follow an edit"
        if run.command in self.forced:
            return "its state was set by force, and an editor has moved it: its runner leaves it alone"
        return ""

    def check_barrier(self, job: Any) -> None:
        """Check that nothing above a barrier is unfinished, where nobody edits, sets states, or runs jobs again."""
        if self.edits or self.hand_set or self.again:
            return
        unfinished = b""
        for at, line in lines_of(self.last.data):
            if line == b"#RUN barrier" and unfinished and at < job.offset:
                self.fail(f"{job.text!r} is started below a barrier, and {unfinished!r} has not ended")
            if command_of(line) != line and line[:1] in b".r":
                unfinished = unfinished or line

    def note_save(self, inode: Inode, new: bytes, way: str) -> None:
        """An editor saves this: what README says it may do to running jobs."""
        self.edited = self.now
        for _, line in lines_of(new):
            if line[:1] != b"r":
                self.saved_over[command_of(line)] = self.now
        if MACHINE.trace is not None:
            MACHINE.trace.append(f"{self.now:9.4f} editor saves {way}: {new!r}")

    def settle(self) -> None:
        """Check what is left at the end: no line without an end, none that nobody knows, no result without a run."""
        inode = self.names[PATH]
        for description in {lock.owner for lock in inode.locks}:
            self.fail(f"locks are left, of {description.host.name}")
        if [command_of(line) for _, line in lines_of(inode.data)] != inode.commands:
            self.fail(f"lines were altered: {bytes(inode.data)!r}")
        for at, line in lines_of(inode.data):
            if command_of(line) not in self.known and b" edited" not in line:
                self.fail(f"nobody wrote the line {line!r}")
            if command_of(line) != line and line[:1] not in b"d!ex":
                self.fail(f"line {line!r} was never run to its end")
        if not self.edits and any(inode.commands.count(command) != 1 for command in self.appended):
            self.fail(f"not all of {self.appended} were appended once")


# ======== The product =================================================================================================


def load(path: str, **others: types.ModuleType) -> types.ModuleType:
    """A private copy of a script, on the simulated machine; others: modules that it is to import."""
    name = "simulated_" + os.path.basename(path).partition(".")[0]
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    before = {other: sys.modules.get(other) for other in others}
    sys.modules.update(others, **{name: module})        # dataclasses look for their module there
    try:
        spec.loader.exec_module(module)
    finally:
        for other, old in before.items():
            sys.modules.pop(other) if old is None else sys.modules.update({other: old})
    return module


CORE = load("runmaker4.py")
SETTER = load("runset4.py", runmaker4=CORE)
SERIAL = itertools.count()
CORE.Job.__hash__ = lambda job: vars(job).setdefault("serial", next(SERIAL))    # so that sets of jobs have an order


def install() -> None:
    """Have the product make its system calls on the machine as it is now."""
    for module in CORE, SETTER:
        for name, simulated in MACHINE.namespaces().items():
            if name in vars(module):
                setattr(module, name, simulated)


def say(text: str) -> None:
    """What the product says."""
    if MACHINE.trace is not None:
        MACHINE.trace.append(f"{MACHINE.world.now:9.4f} {MACHINE.world.me.name:8} says: {text}")


def mount_of(host: Host) -> Any:
    """What the product finds out of its file system."""
    return CORE.Mount(host.kind, frozenset())


class Product:
    """A runner's `JobFile` and `Cursor`, and all that is known here of their methods."""

    def __init__(self, host: Host, retry: bytes) -> None:
        self.file = CORE.JobFile(PATH, say=say, mount=mount_of(host), clock=lambda: MACHINE.world.now)
        self.cursor = CORE.Cursor(self.file, [CORE.Taker(host.name, retry=retry)])
        self.taker = next(iter(self.cursor.takers.all))
        self.interval, self.poll = self.file.interval, 5.0 if host.network else 0.25
        self.claim, self.lend, self.reclaim = self.cursor.claim, self.file.lend, self.file.reclaim
        self.look_after, self.close = self.file.look_after, self.file.close

    @property
    def failed(self) -> str:
        return self.cursor.miss.failed

    @property
    def again(self) -> float | None:
        """Seconds until another claim may find more; None: it will not."""
        again = self.cursor.miss.again
        return again if again is not None or not self.cursor.round.waits_for(self.taker) else self.poll

    def finish(self, job: Any, state: bytes) -> str | None:
        """What went wrong for good, or ''; None: not now."""
        try:
            return self.cursor.finish(job, state)
        except CORE.NotNow:
            return None

    def release(self, job: Any) -> str | None:
        try:
            return self.cursor.release(job)
        except CORE.NotNow:
            return None


class Setter:
    """What runset4.py does to a file."""

    def __init__(self, host: Host) -> None:
        self.file = CORE.JobFile(PATH, say=say, mount=mount_of(host), single=True, clock=lambda: MACHINE.world.now)
        self.lines, self.set_state = self.file.lines, functools.partial(SETTER.set_state, self.file)

    def append(self, line: bytes) -> None:
        SETTER.append_lines(self.file, [line])


# ======== Actors ======================================================================================================


def run_jobs(world: History, me: Process, retry: bytes, slots: int, late: float) -> None:
    """A runner: what `Runner` does, in short."""
    if late:
        world.sleep(me, late)
    product = Product(me.host, retry)
    look, look_for_more, leaving = world.now, world.now, False
    while me.runs or not leaving:
        if me.runs and world.now >= look:
            for job, cause in operation(world, me, product.look_after).items():
                run = next((run for run in me.runs if run.job is job), None)
                if run:
                    end_run(world, run)
                    if cause == "cancelled":
                        operation(world, me, product.finish, job, b"x")
                    me.runs.remove(run)
            look = world.now + product.interval
        for run in [run for run in me.runs if run.until <= world.now and run.settle_at <= world.now]:
            settle_run(world, me, product, run)
            look_for_more = world.now
        if not leaving and len(me.runs) < slots and world.now >= look_for_more:
            job = operation(world, me, product.claim, not me.runs)
            if job:
                start_run(world, me, product, job)
                continue
            again = product.again
            leaving = bool(product.failed) or again is None and not me.runs
            look_for_more = world.now + min(product.poll, again or product.poll)
        times = [max(run.until, run.settle_at) for run in me.runs] + [look] * bool(me.runs)
        if not leaving and len(me.runs) < slots:
            times.append(look_for_more)
        if times:
            world.sleep(me, min(times) - world.now)
    product.close()
    if len(me.fds) > 1:
        world.fail(f"leaves {len(me.fds)} descriptors open")


def operation(world: History, me: Process, function: Callable[..., Any], *args: Any) -> Any:
    """Call the product, and see what it leaves open and locked."""
    me.shielded, me.began, me.claimed = False, world.now, b""
    result = function(*args)
    held = len(me.runs) + (function.__name__ == "claim" and result is not None)
    if len(me.fds) > 1 + held:
        world.fail(f"has {len(me.fds)} descriptors open, for {held} jobs")
    if sum(owner.exclusive for owner in set(me.fds.values())) > held:
        world.fail(f"has more lines locked than its {held} jobs")
    return result


def start_run(world: History, me: Process, product: Product, job: Any) -> None:
    """A job is claimed: have it inherit the lock, and run."""
    run = Run(job.text, me, job, me.began, world.now + world.draws.choice((0.001, 0.1, 0.7, 1.5, 5.0)) * world.pace,
              world.draws.choice((b"d", b"d", b"d", b"!", b"e")), blind=me.claimed_blind, pause=product.interval)
    me.claimed_blind = False
    if world.random() < 0.05:                   # a signal came just then
        run.until, run.result, run.released = world.now, b"e" if job.state == b"r" else job.state, True
        world.released.add((run.command, run.result))
        me.runs.append(run)
        return
    if job.state == b".":
        world.check_barrier(job)
    lent = product.lend(job)
    world.check_runs(job.text, f"is run by {me.name}", run)
    me.runs.append(run)                         # here the shell is started
    world.runs.append(run)
    if lent >= 0:
        run.descriptions.append(me.fds[lent])
        me.fds[lent].shares += 1
        product.reclaim(lent)


def end_run(world: History, run: Run) -> None:
    """Its shell has ended: its share of the lock is gone."""
    run.until = min(run.until, world.now)
    while run.descriptions:
        world.share_less(run.descriptions.pop())


def settle_run(world: History, me: Process, product: Product, run: Run) -> None:
    """A job has ended: write down how."""
    end_run(world, run)
    fault = (operation(world, me, product.release, run.job) if run.released else
             operation(world, me, product.finish, run.job, run.result))
    if fault is None:                           # as Runner does: later and later
        run.settle_at, run.pause = world.now + run.pause, min(2 * run.pause, 30.0)
        return
    me.runs.remove(run)
    if fault and not (world.edits or world.forced or world.fates & {"cut"}):
        world.fail(f"cannot write {run.result!r} for {run.command!r}: {fault}")
    if not (fault or run.written or world.edits or run.result + run.command in bytes(world.last.data).split(b"\n")):
        world.fail(f"says that {run.result!r} of {run.command!r} is written, and it is not")


def set_by_hand(world: History, me: Process, calls: int) -> None:
    """runset4.py: set states, append.  It is let alone by what stops it: somebody sees that, and runs it again."""
    setter = Setter(me.host)
    for call in range(calls):
        world.sleep(me, world.draws.choice((0.0, 0.3, 1.2, 3.0)) * world.pace)
        with suppress(OSError, CORE.Problem):
            if world.random() < 0.5:
                command = b" by %b, %d" % (me.name.encode(), call)
                world.known.add(command)
                setter.append(b"." + command + b"\n")
                world.appended.append(command)
                continue
            line = world.draws.choice([line for line in setter.lines() if line.state != b"r" or world.random() < 0.2]
                                      or [None])
            if line and line.state in b"d!ex":
                setter.set_state(line, b".", False)
            elif line:
                me.by_force = line.state == b"r"        # to have a running line set to . runs it twice, as was wished
                if me.by_force:
                    world.forced.add(line.text)
                setter.set_state(line, b"x", me.by_force)
                me.by_force = False


def edit_by_command(world: History, me: Process, number: int) -> None:
    """runset4.py --edit: what a person makes of a copy is merged into the file, or refused."""
    file, draws = Setter(me.host).file, world.draws
    for count in range(draws.choice((1, 3, 6))):
        world.sleep(me, draws.choice((0.0, 0.0, 0.1, 0.7, 3.0)) * world.pace)
        with suppress(OSError, CORE.Problem):
            base = SETTER.given(file)
            world.sleep(me, draws.choice((0.0, 0.0, 0.1, 0.8, 2.5)) * world.pace)
            lines = changed(draws, base.splitlines(), 10 * number + count, again=world.most is None)
            me.carries = True
            SETTER.apply(file, base, b"".join(line + b"\n" for line in lines))


def edit(world: History, host: Host, saves: int) -> Iterator[float]:
    """An editor: reads, thinks, saves; in place, or by one of the ways to put a new file there."""
    draws = world.draws
    for count in range(saves):
        yield draws.choice((0.0, 0.2, 1.0, 4.0)) * world.pace
        while any(actor.shielded for actor in world.actors):    # not while half a line was appended
            yield world.tick
        inode = world.names[PATH]
        lines = [line for _, line in lines_of(world.view(host, inode))]
        yield draws.choice((0.0, 0.1, 0.8, 2.5)) * world.pace
        new = b"".join(line + b"\n" for line in changed(draws, lines, count))
        way = draws.choice(("in place", "in place", "rename", "away", "link"))
        if way == "in place":
            while any(actor.shielded for actor in world.actors):    # not in the microseconds from a check to its write
                yield world.tick
            world.note_save(inode, b"", way)
            inode.data[:] = b""
            inode.changed = world.now
            yield world.tick
            while any(actor.shielded for actor in world.actors):
                yield world.tick
            world.note_save(inode, new, way)
            inode.data[:] = new
            inode.changed = world.now
            world.note_content(inode)
            host.pages.pop(inode, None)
            continue
        if way == "away":
            world.name(PATH + "~", inode)
            world.name(PATH, None)
            yield world.tick
        elif way == "link":
            world.name(PATH + "~", inode)
            yield world.tick
        world.note_save(inode, new, way)
        world.name(PATH, world.make_file(new))
        yield world.tick
        world.name(PATH + "~", None)


def changed(draws: random.Random, lines: list[bytes], count: int, again: bool = True) -> list[bytes]:
    """What a person makes of these lines; again: perhaps what has ended is to run again."""
    at = draws.randrange(len(lines) + 1)
    what = draws.choice(("as it was", "comment", "comment", "job", "delete", "again" if again else "swap", "swap"))
    if what == "comment":
        lines.insert(at, b"# edited %d" % count)
    elif what == "job":
        lines.insert(at, b". edited %d" % count)
    elif what == "delete" and len(lines) > 2:
        del lines[at % len(lines)]
    elif what == "again":
        lines = [b"." + line[1:] if line[:1] in b"d!e" and line[1:2] == b" " else line for line in lines]
    elif what == "swap" and len(lines) > 1:
        other = draws.randrange(len(lines))
        lines[other], lines[at % len(lines)] = lines[at % len(lines)], lines[other]
    return lines


def fate(world: History, runners: list[Actor], blows: list[str]) -> Iterator[float]:
    """Runners are killed, alone or with their jobs, or stopped for a while; hosts are cut off."""
    draws = world.draws
    for blow in blows:
        yield draws.choice((0.0, 0.001, 0.01, 0.4, 1.5, 3.0)) * world.pace * (0.5 + draws.random())
        actor = draws.choice(runners)
        if actor not in world.actors:
            continue
        if MACHINE.trace is not None:
            MACHINE.trace.append(f"{world.now:9.4f} fate: {blow} {actor.name}")
        if blow == "kill":
            actor.killed = True
            world.actors.remove(actor)
            for run in actor.runs:
                if run.until <= world.now or draws.random() < 0.4:
                    end_run(world, run)
                else:
                    world.actors.append(Actor("job", actor.host, script=live_on(world, run)))
            world.close_all(actor)
            continue
        if blow == "stop":
            seconds, stopped = draws.choice((0.5, 2.0, 6.0)) * world.pace, [actor]
        else:
            seconds = draws.choice((0.5, 1.5, 3.0)) * LEASE
            stopped = [it for it in world.actors if it.host is actor.host and not it.script]
            actor.host.cut = world.now, world.now + seconds
        for it in stopped:
            it.wake = max(it.wake, world.now + seconds)
            it.stops.append((world.now, it.wake + 2 * world.pace))     # ... and one look later


def live_on(world: History, run: Run) -> Iterator[float]:
    """A job whose runner was killed."""
    yield run.until - world.now
    end_run(world, run)


# ======== Histories ===================================================================================================


def make_world(seed: int) -> History:
    """What there is at the beginning of a history, and who acts in it."""
    world = History(seed, random.Random(f"network? {seed}").choices(("nfs4", "ceph", ""), (0.2, 0.2, 0.6))[0])
    draws = world.draws
    world.name(PATH, world.make_file(b"".join(line + b"\n" for line in make_lines(draws))))
    world.known.update(world.last.commands)
    local = Host("one", "")
    hosts = [Host(name, world.kind) if world.kind else local for name in ("one", "two", "three")]
    if world.kind and draws.random() < 0.3:
        runners, blows = make_runners(world, hosts[:2], (b"er",), (2.0, 5.0)), ["cut"]
    else:
        runners = make_runners(world, draws.choices(hosts[:2], k=draws.choice((2, 2, 2, 3))),
                               (b"", b"", b"er", b"!er"), (0.0, 0.0, 0.5, 4.0, 8.0))
        blows = draws.choices(("kill", "stop", "cut"), (3, 1, 2 * bool(world.kind)), k=draws.choice((0, 0, 1, 2)))
    world.actors += runners
    world.fates = set(blows)
    world.actors.append(Actor("fate", local, script=fate(world, runners[:1] if blows == ["cut"] else runners, blows)))
    if random.Random(f"edits? {seed}").random() < 0.25:
        world.edits, hands = True, range(draws.choice((1, 1, 2)))
        if not blows and not world.again and b"\nr " not in b"\n" + world.last.data:     # so each is run at most once
            world.most = Counter(world.last.commands + [b" edited %d" % number for number in range(20)])
        world.actors += [Process(f"editor {number + 1}", draws.choice(hosts), functools.partial(
            edit_by_command, world, number=number)) for number in hands]
        return world
    if draws.random() < 0.3:
        calls, world.hand_set = draws.choice((1, 2)), True
        world.actors += [Process(f"setter {index + 1}", host, lambda me: set_by_hand(world, me, calls))
                         for index, host in enumerate(draws.sample(hosts, draws.choice((1, 1, 2))))]
    if draws.random() < 0.4:
        world.edits = True
        world.actors.append(Actor("editor", hosts[2], script=edit(world, hosts[2], draws.choice((1, 1, 2)))))
    if draws.random() < 0.2:
        world.errors = draws.choice((1, 2, 3))
    return world


def make_lines(draws: random.Random) -> list[bytes]:
    """A job file."""
    commands = [b" a", b" b", b" c", b" d"][:draws.choice((1, 2, 2, 3, 4))]
    if draws.random() < 0.2:
        commands.append(b" a")
    lines = [draws.choice((b".",) * 8 + (b"r", b"!", b"e", b"d")) + command for command in commands]
    if draws.random() < 0.25:
        lines.insert(draws.randrange(1, len(lines) + 1), b"#RUN barrier")
    if draws.random() < 0.1:
        lines += [b"#RUN host=one", b". of one"]
    return lines


def make_runners(world: History, hosts: list[Host], retries: Sequence[bytes], late: Sequence[float]) -> list[Process]:
    """A runner on each of these hosts, which may retry these states, and but for the first may be late."""
    runners = []
    for index, host in enumerate(hosts):
        retry = world.draws.choice(retries)
        world.again |= b"e" in retry
        work = functools.partial(run_jobs, world, retry=retry, slots=world.draws.choice((1, 2)),
                                 late=world.draws.choice(late) * world.pace * bool(index))
        runners.append(Process(f"runner {index + 1}", host, work))
    return runners


HANDS: list[Hand] = []


def explore(seed: int) -> str:
    """Make one history; what it breaks, or ''."""
    return play(make_world(seed))


def play(world: History) -> str:
    """Have all that happen, and a last runner look at what is left; what was broken, or ''."""
    MACHINE.world = world
    world.run(HANDS)
    if world.violation:
        return world.violation
    world.errors, retry = 0, b"er" if world.most is None else b""
    try:
        last = Process("last", Host("one", world.kind), lambda me: run_jobs(world, me, retry, 1, 0.0))
        world.me, world.actors = last, [last]
        last.work(last)
        world.close_all(last)
        world.settle()
    except Violation:
        pass
    except Exception:
        world.note_violation("broke: " + traceback.format_exc())
    return world.violation


# ======== Planted defects =============================================================================================


def no_second_read() -> Patches:
    """The first read under a lock tells what was read before it."""
    plain, served = MACHINE.pread, set()

    def pread(fd: int, count: int, at: int) -> bytes:
        me = MACHINE.world.me
        owner, data = me.fds.get(fd), plain(fd, count, at)
        if not owner or not owner.exclusive or owner in served:
            return data
        served.add(owner)
        me.reads.pop()
        old = [(start, read) for inode, start, read in me.reads
               if inode is owner.inode and start <= at < start + len(read)]
        return old[-1][1][at - old[-1][0]:][:count] if old else data
    return [(MACHINE, "pread", pread)]


def unlock_before_the_write() -> Patches:
    plain = MACHINE.pwrite

    def pwrite(fd: int, data: bytes, at: int) -> int:
        MACHINE.world.set_lock(MACHINE.world.me.fds[fd], fcntl.F_UNLCK, at, at + 1)
        return plain(fd, data, at)
    return [(MACHINE, "pwrite", pwrite)]


def classic_locks() -> Patches:
    """To close any descriptor of a file gives back all locks that this process has on it."""
    plain = MACHINE.close

    def close(fd: int) -> None:
        mine = MACHINE.world.me.fds
        for owner in list(mine.values()):
            if owner.inode and owner.inode is mine[fd].inode:
                MACHINE.world.set_lock(owner, fcntl.F_UNLCK, 0, math.inf)
        plain(fd)
    return [(MACHINE, "close", close)]


def text_not_checked() -> Patches:
    return [(CORE.JobFile, "read_line", lambda self, fd, line, ahead=1: CORE.os.pread(
        fd, 1 + len(line.text) + ahead, line.offset) if line.offset >= 0 else b"")]


def rename_not_followed() -> Patches:
    plain = CORE.JobFile.follow_path
    return [(CORE.JobFile, "follow_path", lambda self: None if self.fd >= 0 else plain(self))]


def locked_line_taken() -> Patches:
    """Who looks for the line that it has lost takes the first of that text, locked or not."""
    move, lock, moving = CORE.JobFile._move, CORE.lock, set()

    def take(self: Any, job: Any, line: Any) -> bool:
        moving.add(MACHINE.world.me)
        try:
            return move(self, job, line)
        finally:
            moving.discard(MACHINE.world.me)
    return [(CORE.JobFile, "_move", take),
            (CORE, "lock", lambda *args, **more: lock(*args, **more) or MACHINE.world.me in moving)]


def closed_twice() -> Patches:
    plain = CORE.JobFile.give_up

    def give_up(self: Any, job: Any) -> None:
        fd = job.fd
        plain(self, job)
        CORE.os.close(fd)
    return [(CORE.JobFile, "give_up", give_up)]


Patches = List[Tuple[Any, str, Any]]    # each an object, an attribute of it, and what takes its place
PLANTED: dict[str, Callable[[], Patches]] = {
    "no second read": no_second_read,
    "unlock before the write": unlock_before_the_write,
    "classic locks": classic_locks,
    "text not checked": text_not_checked,
    "rename not followed": rename_not_followed,
    "locked line taken": locked_line_taken,
    "closed twice": closed_twice,
    "left open": lambda: [(CORE.JobFile, "_drop", lambda self, fd: None)],
    "no third look": lambda: [(CORE.Suspects, "LOOKS", 1)],
    "no look after held lines": lambda: [(CORE.JobFile, "keep_hold", lambda self: None)],
    "result not verified": lambda: [(CORE.JobFile, "_find", lambda self, job: b"r")],
    "lock not lent": lambda: [(CORE.JobFile, "lend", staticmethod(lambda job: -1))],
    "no refresh": lambda: [(CORE.JobFile, "refresh", lambda self: None)],
    "lost lease ignored": lambda: [(CORE.JobFile, "_forsake", lambda self, job: None)],
    "barrier ignored": lambda: [(CORE.Cursor, "_barrier", lambda self, line, check: None)],
    "appended without the lock": lambda: [(SETTER, "locked", lambda *args, **more: nullcontext())],
    "ends not carried over": lambda: [(SETTER, "_carry_over", lambda *args: True)],
    "states as the person read them": lambda: [(SETTER, "merge", lambda base, theirs, live, plain=SETTER.merge:
                                               plain(base, theirs, base))],
    "half a line left": lambda: [(MACHINE, "ftruncate", lambda fd, size: None)],
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The product with a defect, or as it is (''); on the machine as it is now."""
    patches = PLANTED[name]() if name else []
    before = [(owner, attribute, vars(owner).get(attribute)) for owner, attribute, _ in patches]
    for owner, attribute, new in patches:
        assert hasattr(owner, attribute), f"{name}: there is no {attribute} any more"
        setattr(owner, attribute, new)
    install()
    try:
        yield
    finally:
        for owner, attribute, old in before:
            if old is None:
                delattr(owner, attribute)       # of an object; its class has the old one
            else:
                setattr(owner, attribute, old)
        install()



# ======== Many histories ==============================================================================================


@dataclass
class Found:
    """What a number of histories have broken."""
    schedules: int = 0
    steps: int = 0                                          # system calls
    broken: dict[int, str] = field(default_factory=dict)    # by seed


def explore_many(name: str, seeds: range, enough: float = math.inf) -> Found:
    """Explore these seeds, with a planted defect or '', until so many of them have broken something."""
    found = Found()
    with planted(name):
        for seed in seeds:
            violation = explore(seed)
            found.schedules += 1
            found.steps += MACHINE.world.steps
            if violation:
                found.broken[seed] = violation
                if len(found.broken) >= enough:
                    break
    return found


def take_core(cores: multiprocessing.Queue) -> None:
    """Use one core only: on that, a thread hands the baton to the next one ten times as fast as across two."""
    os.sched_setaffinity(0, {cores.get()})


@contextmanager
def workers() -> Iterator[multiprocessing.pool.Pool]:
    """A process for each core."""
    context = multiprocessing.get_context("spawn")          # threads do not survive a fork
    cores = context.Queue()
    for core in os.sched_getaffinity(0):
        cores.put(core)
    with context.Pool(len(os.sched_getaffinity(0)), take_core, (cores,)) as pool:
        yield pool


def explore_on_all_cores(pool: multiprocessing.pool.Pool, schedules: int, first: int = 0, piece: int = 500) -> Found:
    """The product as it is, on that many seeds."""
    tasks = [("", range(seed, min(seed + piece, first + schedules)))
             for seed in range(first, first + schedules, piece)]
    all_found = Found()
    for found in pool.starmap(explore_many, tasks, chunksize=1):
        all_found.schedules += found.schedules
        all_found.steps += found.steps
        all_found.broken.update(found.broken)
    return all_found


def history(seed: int, name: str = "") -> list[str]:
    """The system calls of one history, and at the end what it breaks."""
    MACHINE.trace = []
    try:
        with planted(name):
            explore(seed)
        return MACHINE.trace
    finally:
        MACHINE.trace = None
        install()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m tests.simulation", allow_abbrev=False)
    parser.add_argument("--seed", type=int, help="show this history, rather than a table of planted defects")
    parser.add_argument("--planted", choices=PLANTED, default="", help="with this defect only")
    parser.add_argument("--schedules", type=int, default=2000, help="for each line of the table [2000]")
    parser.add_argument("--first", type=int, default=0, help="the first seed of them [0]")
    options = parser.parse_args()
    if options.seed is not None:
        print("\n".join(history(options.seed, options.planted)))
        return
    names = [options.planted] if options.planted else ["", *PLANTED]
    with workers() as pool:
        tasks = [(name, range(options.first, options.first + options.schedules)) for name in names]
        begin = time.perf_counter()
        for name, found in zip(names, pool.starmap(explore_many, tasks, chunksize=1)):
            seed, violation = next(iter(found.broken.items()), ("", ""))
            print(f"{name or 'as it is':28}{len(found.broken):6} of {found.schedules}  {seed:>5} {violation:.70}")
        print(f"{len(tasks) * options.schedules / (time.perf_counter() - begin):.0f} schedules/second")


if __name__ == "__main__":
    main()
