"""Who acts in a history, what is in its job file, and what the history breaks.

There are two or three runners, on one host or on two, with or without --resume and -r; people (people.py),
or instead one or two with `runset4.py --edit`; fate.  In a third of the histories lines are equal; in some,
jobs wait for jobs by name (run_steps); some begin after a power cut (lose_power).
"""
from __future__ import annotations

import functools
import random
import time
import traceback
from collections import Counter

from tests.orders.simulation.faults import (
    fate,
    leave_alive,
    lose_answers,
    lose_brick,
    lose_lines,
    lose_power,
    remove_lock_file,
    remove_lock_file_of_jobs,
    take_orphans,
)
from tests.orders.simulation.files import PATH, Host, command_of, lines_of
from tests.orders.simulation.job_files import make_lines, make_steps
from tests.orders.simulation.people import edit, edit_by_command, hold_and_release, pause, set_by_hand
from tests.orders.simulation.processes import Process
from tests.orders.simulation.product import CORE
from tests.orders.simulation.run_rules import History
from tests.orders.simulation.runner import make_runners, run_jobs
from tests.orders.simulation.system_calls import MACHINE
from tests.orders.simulation.world import Actor, Hand, Killed, Violation


def make_world(seed: int) -> History:
    """What there is at the beginning of a history, and who acts in it."""
    kinds = {"nfs4": 0.3, "fuse.glusterfs": 0.2, "fuse.mfs": 0.1, "": 0.4}
    kind, = random.Random(f"network? {seed}").choices([*kinds], [*kinds.values()])
    world = History(seed, kind)
    draws = world.draws
    lines = make_lines(draws)
    if b"#RUN barrier" in lines and random.Random(f"checks? {seed}").random() < 0.5:
        lines[lines.index(b"#RUN barrier")] += b" check"
    world.name(PATH, world.make_file(b"".join(line + b"\n" for line in lines)))
    world.known.update(world.last.commands)
    world.done.update(command_of(line) for _, line in lines_of(world.last.data) if line[:1] == b"d")
    local = Host("one", "")
    hosts = [Host(name, world.kind) if world.kind else local for name in ("one", "two", "three")]
    for name, can_be, share, make in (
            ("left", True, 0.1, leave_alive), ("lost", True, 0.1, lose_lines),
            ("orphans", world.kind, 0.1, take_orphans),
            ("answers", world.kind, 0.05, lose_answers),
            ("brick", world.kind == "fuse.glusterfs", 0.1, lose_brick),
            ("short", world.takes_buckets, 0.15, run_short_jobs), ("failed", True, 0.05, run_failed_again),
            ("power", not world.kind, 0.15, lose_power), ("steps", True, 0.15, run_steps),
            ("lock file", not world.kind, 0.05, remove_lock_file_of_jobs), ("turns", True, 0.04, take_turns)):
        if can_be and random.Random(f"{name}? {seed}").random() < share:
            make(world, hosts)
            return world
    if world.kind and draws.random() < 0.3:
        runners, blows = make_runners(world, hosts[:2], (b"er",), (2.0, 5.0)), ["cut"]
    else:
        runners = make_runners(world, draws.choices(hosts[:2], k=draws.choice((2, 2, 2, 3))),
                               (b"", b"", b"er", b"!er"), (0.0, 0.0, 0.5, 4.0, 8.0))
        blows = draws.choices(("kill", "stop", "cut"), (3, 1, 2 * bool(world.kind)),
                              k=draws.choice((0, 0, 1, 2)))
    world.actors += runners
    world.fates = set(blows)
    world.actors.append(
        Actor("fate", local, script=fate(world, runners[:1] if blows == ["cut"] else runners, blows))
    )
    if random.Random(f"edits? {seed}").random() < 0.25:
        world.edits, hands = True, range(draws.choice((1, 1, 2)))
        # so each is run at most once
        if not blows and not world.again and b"\nr " not in b"\n" + world.last.data:
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
    if draws.random() < 0.2:
        world.fills = 0.5
    if not world.kind and draws.random() < 0.05:       # else NFS goes on seeing its name for a while
        world.actors.append(Actor("remover", hosts[2], script=remove_lock_file(world)))
    return world


def restrict(world: History, seed: int) -> None:
    """Have jobs wait for limit= and from=, and somebody pause the file; in their own histories, too."""
    draws = random.Random(f"restricted? {seed}")
    if draws.random() < 0.7 or world.take_turns:
        return
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(world.now + draws.choice((1, 3, 8))))
    settings = [draws.choice(("limit=a:1", "limit=a:1", "limit=a:2", "limit=a:2,b:1", f"from={start}",
                              f"limit=a:1 from={start}")).encode() for _ in range(2)]
    lines = [line + b" " + draws.choice(settings) if line.startswith(b"#RUN ") and b"=" in line else line
             for line in bytes(world.last.data).splitlines()]
    # not where it ends host=: a job for all below a barrier would wait for one of a host without a runner
    lines.insert(draws.choice([at for at in range(len(lines)) if b"host=" not in b"".join(lines[at - 1:at])]),
                 b"#RUN " + settings[0])
    world.last.data[:] = b"".join(line + b"\n" for line in lines)
    world.note_content(world.last)
    world.known.update(world.last.commands)
    # cancel_left() looks once, and would find a replaced file.  If both files are replaced at once, the next
    # job file lacks the mark of a runner that waits for a mutex
    can_pause = not (world.edits or world.fates & {"cut", "brick"}
                     or world.actors[-1].name in ("setter", "remover", "holder"))
    if can_pause and draws.random() < 0.3:
        world.known.add(b"#RUN pause")
        world.actors.append(Process("pauser", Host("one", ""), functools.partial(pause, world)))


def run_failed_again(world: History, hosts: list[Host]) -> None:
    """All lines have failed; two runners make them new at about the same time, and are stopped meanwhile.  Or
    only one does, and the other comes to a check below them.
    """
    lines, retries = [b"! %d\n" % number for number in range(8)], [b"!er"]
    if world.draws.random() < 0.5:
        lines, retries = [*lines[:2], b"#RUN barrier check\n", b". 2\n"], [b"", b"!er"]
    world.name(PATH, world.make_file(b"".join(lines)))
    world.known.update(world.last.commands)
    world.done.clear()
    world.times = (0.001, 0.1)
    runners = make_runners(world, hosts[:2], retries, (0.0, 0.0, 0.1, 0.5))
    world.actors += runners
    world.fates = {"stop"}
    world.actors.append(Actor("fate", hosts[2], script=fate(world, runners, ["stop", "stop"])))


def run_short_jobs(world: History, hosts: list[Host]) -> None:
    """Many short jobs, while runners are killed, and their hosts cut off."""
    commands = [b" %d" % number for number in range(world.draws.choice((6, 12)))]
    world.name(PATH, world.make_file(b"".join(b"." + command + b"\n" for command in commands)))
    world.known.update(world.last.commands)
    world.done.clear()
    world.times = (0.0, 0.001, 0.001, 0.1, 5.0)
    runners = make_runners(world, hosts[:2], (b"", b"er"), (0.0, 0.1))
    world.actors += runners
    blows = world.draws.choices(("kill", "stop", "cut"), (3, 1, 2 * bool(world.kind)),
                                k=world.draws.choice((0, 1, 2)))
    world.fates = set(blows)
    world.actors.append(Actor("fate", hosts[2], script=fate(world, runners, blows)))
    if world.draws.random() < 0.4:
        world.edits = True
        world.actors.append(Actor("editor", hosts[2], script=edit(world, hosts[2], 2)))
    if world.draws.random() < 0.2:
        world.errors = 2


def run_steps(world: History, hosts: list[Host]) -> None:
    """Jobs wait for jobs by name, while runners are killed and stopped, and their hosts cut off; but not the
    last one, which can take each job, so that no other waits for ever.
    """
    draws = world.draws
    blows = draws.choices(("kill", "stop", "cut"), (3, 1, 2 * bool(world.kind)), k=draws.choice((0, 0, 1, 2)))
    # a host that is cut off loses that runner, too
    lines = make_steps(draws, [b"host=*"] if "cut" in blows else [b"host=one", b"host=*"])
    is_paused = draws.random() < 0.3 and not blows
    if is_paused:               # the last one, too, leaves while all that it could take is held
        lines = [line.replace(b"host=one", b"host=*") for line in lines]
        lines.insert(draws.randrange(1, len(lines) + 1), b"#RUN barrier")
    world.name(PATH, world.make_file(b"".join(line + b"\n" for line in lines)))
    world.known.update(world.last.commands)
    world.done.clear()
    world.done.update(command_of(line) for _, line in lines_of(world.last.data) if line[:1] == b"d")
    world.times = (0.001, 0.1, 0.7, 1.5)
    # once a failure has stopped all lines of host one, its runner exits, and a later one of another host
    # must not make that failure new: that one would wait for ever
    retries = (b"",) if any(b"host=one" in line for line in lines) else (b"", b"", b"er", b"!er")
    runners = make_runners(world, [*draws.choices(hosts[:2], k=draws.choice((1, 1, 2))), hosts[0]],
                           retries, (0.0, 0.0, 0.5, 4.0))
    world.actors += runners
    world.fates = set(blows)
    world.actors.append(Actor("fate", hosts[2], script=fate(world, runners[:-1], blows)))
    if is_paused:
        world.actors.append(Process("holder", hosts[2], functools.partial(hold_and_release, world)))


def take_turns(world: History, hosts: list[Host]) -> None:
    """Two runners wait for one limit= all the time, each with lines for its host, or for both."""
    draws, hosts = world.draws, [Host(name, world.kind) for name in ("one", "two")]
    settings = b"limit=a:%d" % draws.choice((1, 1, 2))
    lines = []
    for section, count in enumerate(draws.choice(((40,), (2, 40), (2, 40, 2)))):
        lines.append(b"#RUN %s host=%s" % (settings, draws.choice((b"*", b"one", b"two"))))
        lines += [b". %d %d" % (section, number) for number in range(count)]
    world.name(PATH, world.make_file(b"".join(line + b"\n" for line in lines)))
    world.known.update(world.last.commands)
    world.done.clear()
    world.times, world.given_back, world.take_turns = (0.7, 1.5), 0.0, True
    world.actors += make_runners(world, hosts, (b"",), (0.0, 0.0, 0.5))


HANDS: list[Hand] = []


def explore(seed: int) -> str:
    """Make one history; what it breaks, or ''."""
    world = make_world(seed)
    restrict(world, seed)
    return play(world)


def play(world: History) -> str:
    """Have all that happen, and a last runner look at what is left; what was broken, or ''."""
    MACHINE.world = world
    CORE.Scan.MIN_CHUNK_SIZE = CORE.JobReader.NEAR_BYTES = world.chunk_size
    world.run(HANDS)
    if world.violation:
        return world.violation
    world.errors, world.fills = 0, 0.0
    retry = b"er" if world.most is None else b""
    try:
        last = Process("last", Host("one", world.kind), lambda me: run_jobs(world, me, retry, 1, 0.0), True)
        world.me, world.actors = last, [last]
        run_jobs(world, last, retry, 1, 0.0)
        world.close_all(last)
        world.settle()
    except (Killed, Violation):
        pass
    except TypeError:                       # a planted defect that does not fit where it is put finds nothing
        raise
    except Exception:
        world.note_violation("broke: " + traceback.format_exc())
    return world.violation
