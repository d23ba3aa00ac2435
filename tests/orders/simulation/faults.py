"""Faults, and histories that are about one of them: fate kills runners (their jobs die with them or live on),
stops them, and cuts hosts off; locks are forgotten, the lock file is removed, the power is cut.
"""
from __future__ import annotations

import array
import binascii
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from tests.orders.simulation.files import LOCK_FILE, PATH, Host, command_of, lines_of
from tests.orders.simulation.job_files import make_steps
from tests.orders.simulation.people import cancel_left, save_old
from tests.orders.simulation.processes import Process, Run
from tests.orders.simulation.product import CORE, Setter
from tests.orders.simulation.run_rules import History
from tests.orders.simulation.runner import end_run, make_runners
from tests.orders.simulation.world import LEASE, Actor


def fate(world: History, runners: list[Process], blows: list[str]) -> Iterator[float]:
    """Runners are killed, alone or with their jobs, stopped for a while, or drained; hosts are cut off."""
    draws = world.draws
    for blow in blows:
        yield draws.choice((0.0, 0.001, 0.01, 0.4, 1.5, 3.0)) * world.throttle * (0.5 + draws.random())
        actor = draws.choice(runners)
        if actor not in world.actors:
            continue
        world.trace(f"{world.now:9.4f} fate: {blow} {actor.name}")
        if blow == "kill":
            actor.killed = True
            world.actors.remove(actor)
            for run in actor.runs:
                if run.until <= world.now or draws.random() < 0.4:
                    end_run(world, run)
                else:
                    if draws.random() < 0.3:            # long enough for others to see to its line
                        run.until += 20 * world.throttle
                    world.actors.append(Actor("job", actor.host, script=live_on(world, run)))
            world.disturbed = max(world.disturbed, world.steps)
            world.close_all(actor)
            continue
        if blow == "drain":
            actor.drains = True
            continue
        if blow == "stop":
            seconds, stopped = draws.choice((0.5, 2.0, 6.0)) * world.throttle, [actor]
        else:
            seconds = draws.choice((0.5, 1.5, 3.0)) * LEASE
            stopped = [it for it in world.actors if it.host is actor.host and isinstance(it, Process)]
            actor.host.cut = world.now, world.now + seconds
        for it in stopped:
            wake = max(it.wake, world.now + seconds)
            it.stops.append((world.now, wake + 2 * world.throttle))        # and one look later
            if blow == "stop" or not actor.host.fuse:
                it.wake = wake
            # else each goes on to its next call.  GlusterFS has no locks that keep a write away that was held
            # back between a check and its call for longer than the lease, while the cable was out


def live_on(world: History, run: Run) -> Iterator[float]:
    """A job whose runner was killed."""
    yield run.until - world.now
    end_run(world, run)


def remove_lock_file(world: History, lacking: Process | None = None) -> Iterator[float]:
    """Somebody removes what must not be removed; lacking: who can open no job lock for a while then."""
    yield world.draws.choice((0.1, 1.0, 3.0)) * world.throttle
    if lacking:
        lacking.lacks_files_until = world.now + world.draws.choice((3.0, 6.0, 9.0)) * world.throttle
        world.job_locks_back = lacking.lacks_files_until + 2 * world.throttle
    world.name(LOCK_FILE, None)
    world.removed, world.disturbed = world.now, math.inf


def hold_mutex(world: History, me: Process, command: bytes) -> None:
    """Hold a command mutex for a while, once the lock file is another one."""
    file = Setter(me.host).file
    while world.removed < 0:
        world.sleep(me, 0.01 * world.throttle)
    seconds = world.draws.choice((2.5, 4.0)) * world.throttle
    world.job_locks_back = world.now + seconds + 2 * world.throttle
    file.open_files()
    with file.command_mutex(command):
        world.sleep(me, seconds)


def keep_mutex(world: History, me: Process, command: bytes) -> None:
    """A stopped runset4.py keeps the mutex of a command locked."""
    file = Setter(me.host).file
    with suppress(OSError):
        file.open_to_write()
        with file.command_mutex(command[1:]):
            world.sleep(me, world.draws.choice((0.5, 2.0, 6.0)) * world.throttle)


def take_orphans(world: History, hosts: list[Host]) -> None:
    """A runner takes orphans over, and its host is cut off; another one takes the same lines meanwhile."""
    inode = world.last
    inode.data[:] = b"".join(b"r" + line[1:] + b"\n" if command_of(line) != line else line + b"\n"
                             for _, line in lines_of(inode.data))
    world.times = (5.0, 8.0, 12.0, 16.0)
    runners = make_runners(world, hosts[:2], (b"er",), (2.0, 5.0))
    world.actors += runners
    world.fates = {"cut"}
    world.actors.append(Actor("fate", hosts[2], script=fate(world, runners[:1], ["cut"])))


def lose_lines(world: History, hosts: list[Host]) -> None:
    """Runners are killed, some before this history, and others run their lines again."""
    draws = world.draws
    lines = [draws.choice((b"r", b"r", b".", b"!")) + b" %d" % number
             for number in range(draws.choice((3, 5)))]
    world.name(PATH, world.make_file(b"".join(line + b"\n" for line in lines)))
    world.known.update(world.last.commands)
    world.done.clear()
    world.times = draws.choice(((0.001, 0.1, 0.7, 1.5), (0.7, 1.5, 3.0, 5.0)))
    world.given_back = draws.choice((0.05, 0.3))
    world.have_met = draws.random() < 0.5
    world.chunk_size = draws.choice((16, world.chunk_size))
    runners = make_runners(world, draws.choices(hosts[:2], k=4), (b"", b"er", b"!er"), (0.0, 0.1, 0.5, 4.0))
    world.actors += runners
    world.fates = {"kill"}
    world.actors.append(Actor("fate", hosts[2], script=fate(world, runners[:3], ["kill"] * 3)))


def lose_answers(world: History, hosts: list[Host]) -> None:
    """A runner is killed, and leaves an orphan; the result of an equal line is written, and fsync() fails.
    """
    world.name(PATH, world.make_file(b". a\n" * world.draws.choice((2, 3, 4))))
    world.known.add(b" a")
    world.done.clear()
    world.times = (1.5, 3.0, 5.0)
    world.lost_answers = world.draws.choice((1, 2, 3))
    runners = make_runners(world, hosts[:2], (b"",), (0.0, 0.1, 0.5))
    world.actors += runners
    world.fates = {"kill"}
    world.actors.append(Actor("fate", hosts[2], script=fate(world, runners[:1], ["kill"])))


def lose_power(world: History, hosts: list[Host]) -> None:
    """Runners start after a power cut, which has left lines in doubt; the mutex of one can be held for long,
    and runners are killed, stopped and drained.
    """
    draws = world.draws
    states = (b".", b"d", b"d")
    lines = [draws.choice(states) + line[1:] if line[:2] == b". " else line
             for line in make_steps(draws, [b"host=*"])]
    done = [command_of(line) for line in lines if line[:1] == b"d"]
    world.in_doubt = set(draws.sample(done, draws.randint(0, len(done))))
    world.name(PATH, world.make_file(b"".join(line + b"\n" for line in lines)))
    world.known.update(world.last.commands)
    world.done = Counter(command for command in done if command not in world.in_doubt)
    lock_file = world.make_file(b"")
    lock_file.data += b"%*d\n" % (CORE.INODE_LINE_SIZE - 1, lock_file.number)
    lock_file.data += b"the boot before".ljust(CORE.BOOT_SIZE)
    lock_file.data += array.array("I", (binascii.crc32(line) * (command_of(line) in world.done)
                                        for line in lines)).tobytes()
    world.name(LOCK_FILE, lock_file)
    world.times = (0.001, 0.1, 0.7)
    runners = make_runners(world, hosts[:1] * draws.choice((1, 2, 3)), (b"", b"er"), (0.0, 0.0, 0.1, 1.0))
    world.actors += runners
    blows = draws.choices(("kill", "stop", "drain"), (1, 1, 2), k=draws.choice((0, 1, 1, 2)))
    world.fates = set(blows)
    world.actors.append(Actor("fate", hosts[0], script=fate(world, runners, blows)))
    if world.in_doubt and draws.random() < 0.5:
        command = draws.choice(sorted(world.in_doubt))
        world.actors.append(Process("holder", hosts[0], lambda me: keep_mutex(world, me, command)))
    if draws.random() < 0.3:
        world.errors = draws.choice((1, 2, 3))


def lose_brick(world: History, hosts: list[Host]) -> None:
    """A file system's server is started anew, and has forgotten all locks."""
    world.times = (1.5, 5.0, 8.0, 12.0)
    world.actors += make_runners(world, hosts[:2], (b"", b"er"), (0.0, 1.0, 2.0))
    world.fates = {"brick"}

    def forget() -> Iterator[float]:
        for _ in range(world.draws.choice((1, 2))):
            yield world.draws.choice((0.4, 1.5, 3.0)) * world.throttle * (0.5 + world.draws.random())
            for host in hosts:
                world.rob(host)
            yield 6 * world.throttle
    world.actors.append(Actor("server", hosts[2], script=forget()))


def leave_alive(world: History, hosts: list[Host]) -> None:
    """A runner is killed, its job perhaps lives on; then its `r` is overwritten."""
    runners = make_runners(world, hosts[:2], (b"", b"er"), (0.0, 0.5, 4.0))
    world.actors += runners
    world.fates = {"kill"}
    world.actors.append(Actor("fate", hosts[0], script=fate(world, runners[:1], ["kill"])))
    if world.draws.random() < 0.5:
        world.edits = True
        world.actors.append(Actor("editor", hosts[2], script=save_old(world, hosts[2], runners[0])))
        return
    world.hand_set = True
    world.actors.append(Process("setter", hosts[2], lambda me: cancel_left(world, me, runners[0])))


def remove_lock_file_of_jobs(world: History, hosts: list[Host]) -> None:
    """Somebody removes the lock file while jobs run, and a runner cannot lock all of them in the next one: it
    has no descriptor left, or somebody else has a command mutex for long.
    """
    commands = [b" a", b" b", *world.draws.choices((b" a", b" c"), k=2)]
    world.name(PATH, world.make_file(b"".join(b"." + command + b"\n" for command in commands)))
    world.known.update(world.last.commands)
    world.done.clear()
    world.times = (0.7, 1.5, 5.0, 12.0)
    runners = make_runners(world, hosts, (b"", b"er"), (0.0, 0.1, 2.0, 4.0))
    world.actors += runners
    lacking = world.draws.choice((None, runners[0]))
    world.actors.append(Actor("remover", hosts[2], script=remove_lock_file(world, lacking)))
    if not lacking:
        world.actors.append(Process("holder", hosts[2], lambda me: hold_mutex(world, me, b"a")))
