"""People: runset4.py sets states, appends, cancels, pauses and holds; an editor saves what it has read long
ago in place, or puts another file there in one of three ways; somebody works with `runset4.py --edit`.
"""
from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress

from tests.orders.simulation.files import PATH, Host, Inode, lines_of
from tests.orders.simulation.processes import Process
from tests.orders.simulation.product import CORE, SETTER, Setter
from tests.orders.simulation.run_rules import History


def set_by_hand(world: History, me: Process, calls: int) -> None:
    """runset4.py: set states, append; who is stopped by something sees that, and runs it again."""
    setter = Setter(me.host)
    for call in range(calls):
        world.sleep(me, world.draws.choice((0.0, 0.3, 1.2, 3.0)) * world.throttle)
        with suppress(OSError, CORE.UsageError):
            if world.random() < 0.5:
                command = b" by %b, %d" % (me.name.encode(), call)
                comment = b"# that has a comment below it"      # so half of both is a whole line
                world.known |= {command, comment}
                setter.append(b".%b\n%b\n" % (command, comment))
                world.appended.append(command)
                continue
            line = world.draws.choice(
                [line for line in setter.lines() if line.state != b"r" or world.random() < 0.2] or [None]
            )
            if line and line.state in b"d!ecx":
                setter.set_state(line, b".")
            elif line and line.state == b"r" and world.random() < 0.5:
                setter.cancel(world, me, line)
            elif line:
                setter.set_state(line, b"x")


def cancel_left(world: History, me: Process, runner: Process) -> None:
    """runset4.py cancels a line that runs, once this runner was killed; perhaps it is to run once more."""
    setter = Setter(me.host)
    while not runner.killed and runner in world.actors:
        world.sleep(me, 0.1 * world.throttle)
    line = world.draws.choice([*setter.lines(b"r")] or [None])
    if not line:
        return
    while True:
        try:
            setter.cancel(world, me, line)
            break
        except BlockingIOError:
            if not world.is_left_locked(line.text):
                raise
        world.sleep(me, world.throttle)
    if world.draws.random() < 0.3:
        world.sleep(me, world.draws.choice((0.0, 1.0)) * world.throttle)
        line.state = b"c"
        setter.set_state(line, b".")


def pause(world: History, me: Process) -> None:
    """runset4.py --pause, and some time later --go, again and again until it succeeds."""
    file = Setter(me.host).file
    for pauses in True, False:
        world.sleep(me, world.draws.choice((0.0, 0.1, 0.7, 3.0)) * world.throttle)
        while True:
            with suppress(OSError, CORE.UsageError):
                SETTER.set_pause(file, pauses, quiet=True)
                break
            world.sleep(me, 0.5 * world.throttle)


def hold_and_release(world: History, me: Process) -> None:
    """runset4.py holds all new lines and releases them."""
    file, draws = Setter(me.host).file, world.draws
    world.sleep(me, draws.choice((0.0, 0.1, 0.5, 1.0)) * world.throttle)
    world.paused = {command for command in world.known if command.startswith(b" ")}
    for old, new in (b".", b"p"), (b"p", b"."):
        while True:
            with suppress(OSError):
                SETTER.change_states(file, argparse.Namespace(
                    quiet=True, cancel=False, set=new, selection=SETTER.Selection((), old, None)))
                break
        world.sleep(me, draws.choice((0.0, 0.5)) * world.throttle)


def edit_by_command(world: History, me: Process, number: int) -> None:
    """runset4.py --edit: what a person makes of a copy is merged into the file, or refused."""
    file, draws = Setter(me.host).file, world.draws
    for count in range(draws.choice((1, 3, 6))):
        world.sleep(me, draws.choice((0.0, 0.0, 0.1, 0.7, 3.0)) * world.throttle)
        with suppress(OSError, CORE.UsageError):
            file.open_to_write()
            base = SETTER.read_to_end(file.reader)
            world.sleep(me, draws.choice((0.0, 0.0, 0.1, 0.8, 2.5)) * world.throttle)
            lines = changed(world, base.splitlines(), 10 * number + count, again=world.most is None)
            SETTER.apply_edit(file, base, b"".join(line + b"\n" for line in lines))


def edit(world: History, host: Host, saves: int) -> Iterator[float]:
    """An editor: reads, thinks, saves; in place, or by one of the ways to put a new file there."""
    draws = world.draws
    for count in range(saves):
        yield draws.choice((0.0, 0.2, 1.0, 4.0)) * world.throttle
        while any(actor.shielded for actor in world.actors):    # not while half a line was appended
            yield world.tick
        inode = world.names[PATH]
        lines = [line for _, line in lines_of(world.view(host, inode))]
        yield draws.choice((0.0, 0.1, 0.8, 2.5)) * world.throttle
        lines = changed(world, lines, count)
        yield from save(world, host, inode, b"".join(line + b"\n" for line in lines))


def save(world: History, host: Host, inode: Inode, new: bytes) -> Iterator[float]:
    """Save this, in place of what is in the file, or as another file."""
    way = world.draws.choice(("in place", "in place", "rename", "away", "link"))
    if way == "in place":
        for data in b"", new:
            while any(actor.shielded for actor in world.actors):    # not between a check and its write
                yield world.tick
            world.on_save(data, way)
            inode.data[:] = data
            world.note_content(inode)
            host.pages.pop(inode, None)
            yield world.tick
        return
    if way == "away":
        world.name(PATH + "~", inode)
        world.name(PATH, None)
        world.disturbed = max(world.disturbed, world.steps)
        yield world.tick
    elif way == "link":
        world.name(PATH + "~", inode)
        yield world.tick
    world.on_save(new, way)
    world.name(PATH, world.make_file(new))
    yield world.tick
    world.name(PATH + "~", None)


def save_old(world: History, host: Host, runner: Process) -> Iterator[float]:
    """An editor saves what it has read at the beginning, once this runner was killed."""
    inode = world.names[PATH]
    old = bytes(inode.data)
    while not runner.killed and runner in world.actors:
        yield 0.1 * world.throttle
    yield world.draws.choice((0.0, 0.5, 2.0)) * world.throttle
    yield from save(world, host, world.names[PATH], old)


def changed(world: History, lines: list[bytes], count: int, again: bool = True) -> list[bytes]:
    """What a person makes of these lines; again: perhaps what has ended is to run again."""
    draws = world.draws
    at = draws.randrange(len(lines) + 1)
    what = draws.choice(("as it was", "comment", "comment", "job", "delete", "swap", "swap")
                        + (("double", "again") if again else ("swap", "swap")))
    if what == "comment":
        lines.insert(at, b"# edited %d" % count)
    elif what == "job":
        lines.insert(at, b". edited %d" % count)
    elif what == "delete" and len(lines) > 2:
        del lines[at % len(lines)]
    elif what == "again":
        lines = [b"." + line[1:] if line[:1] in b"d!e" and line[1:2] == b" " else line for line in lines]
    elif what == "double" and lines:
        lines.insert(at, draws.choice(lines))
    elif what == "swap" and len(lines) > 1:
        other = draws.randrange(len(lines))
        lines[other], lines[at % len(lines)] = lines[at % len(lines)], lines[other]
    if any(line.startswith(b"#RUN barrier") for line in lines):
        # otherwise jobs below it could wait for one of host one, whose runners have exited
        lines = [line.replace(b"host=one", b"host=*") for line in lines]
        world.known.update(bytes(line) for line in lines if b"host=*" in line)
    return lines
