"""A runner: what `Runner` of runmaker4.py does, in short, and where the rules of runs are asked."""
from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Callable

from tests.orders.simulation.files import APPEND, Host, command_of, is_bucket
from tests.orders.simulation.processes import Process, Run
from tests.orders.simulation.product import CORE, Product, own
from tests.orders.simulation.run_rules import History


def run_jobs(world: History, me: Process, retry: bytes, slots: int, late: float) -> None:
    """A runner: what `Runner` does, in short."""
    if late:
        world.sleep(me, late)
    me.retry = retry
    me.due, me.came = world.bad_lines(retry), world.now
    me.takes_buckets = world.takes_buckets and world.draws.random() < 0.7
    product = Product(world, me.host, retry, me.takes_buckets,
                      *world.draws.choice(((-1.0, 8), (0.05, 1 << 16))))
    me.product = product
    look, look_for_more, leaving = world.now, world.now, False
    trims: dict[Run, float] = {}
    while me.runs or not (leaving := leaving or me.drains):
        for long_run in [run for run in me.runs if trims.get(run, math.inf) <= world.now]:
            operation(world, me, product.trim, long_run.job)
            del trims[long_run]
        if me.runs and world.now >= look:
            for job, cause in operation(world, me, product.check_jobs).items():
                run = next((run for run in me.runs if run.job is job), None)
                if run:
                    end_run(world, run)
                    if cause == "cancelled":
                        operation(world, me, product.finish, job, b"c")
                    me.runs.remove(run)
            look = world.now + product.interval
        for run in [run for run in me.runs if run.until <= world.now and run.settle_at <= world.now]:
            settle_run(world, me, product, run)
            look_for_more = world.now
        if not leaving and len(me.runs) < slots and world.now >= look_for_more:
            new_before, orphans_before, step = world.new_commands(me), world.orphans(), world.steps
            taken = sum(run.job.settings.needs.slots for run in me.runs)
            job = operation(world, me, product.claim, not me.runs, slots, taken)
            if job:
                start_run(world, me, product, job)
                if me.takes_buckets:
                    until = world.draws.choice((0.0, 0.02, 0.02, 0.1)) * world.throttle
                    trims[me.runs[-1]] = world.now + until
                me.left_since, me.waits, me.passed_since = {}, False, math.inf
                continue
            me.waits = True
            world.check_idle(me)
            again = product.again
            if product.may_exit:
                world.check_exit(me, new_before, orphans_before, step)
            leaving = bool(product.failed) or product.may_exit
            look_for_more = world.now + (product.poll if again is None else min(product.poll, again))
        times = [min(max(run.until, run.settle_at), trims.get(run, math.inf)) for run in me.runs]
        times += [look] * bool(me.runs)
        if not leaving and len(me.runs) < slots:
            times.append(look_for_more)
        if times:
            world.sleep(me, min(times) - world.now)
    if product.file.boot and product.file.was_written:
        operation(world, me, product.leave_mark)
    if me.open_files() > own(me.host):
        world.fail(f"leaves {len(me.fds)} descriptors open")
    # An editor that saves old states can hide a line from a runner that has made all lines new.  A result
    # that was written although its fsync() failed may be made new meanwhile, and written once more
    unknown = me.drains or world.hand_set or world.saved or world.erred or world.disturbed == math.inf
    if not (product.failed or unknown):
        # also those that ran, or had no result, when it came: an editor had saved an old state over their r
        tried = world.tried_since(me.came)
        for line in me.due & world.bad_lines(retry):
            # A person can double such a line with --edit, and then remove the one that was made new
            was_doubled = world.most_lines(command_of(line), 0, world.steps) > 1
            if not (was_doubled or command_of(line) in tried):
                world.fail(f"leaves, and has not tried {line!r}")


def operation(world: History, me: Process, function: Callable[..., Any], *args: Any) -> Any:
    """Call the product, and see what it leaves open and locked."""
    world.check_job_locks(me)
    me.shielded, me.began, me.began_in, me.claimed = False, world.now, world.steps, b""
    me.mutexes.clear()
    me.operation = function.__name__
    result = function(*args)
    if me.product and (walk := me.product.walk) is not me.walk:
        # one for lost lines begins where another ends, to which what is new since then was not new
        if not (me.walk and walk and walk.takes_lost_lines):
            me.walk_began_in = me.began_in
        me.walk = walk
    held = len(me.runs) + (me.operation == "claim" and bool(result))
    if me.open_files() > own(me.host) + held:
        world.fail(f"has {len(me.fds)} descriptors open, for {held} jobs")
    owners = {*me.fds.values()}
    locks = [lock for inode in world.inodes for lock in inode.locks
             if lock.owner in owners and lock.exclusive]
    if any(lock.covers(CORE.MARK_BYTE) for lock in locks):
        world.fail("leaves the mark for power cuts locked")
    locks = [lock for lock in locks if lock.start < APPEND]
    buckets = [lock for lock in locks if is_bucket(lock)]
    if any(owner.writes for owner in owners - {lock.owner for lock in buckets}):
        world.fail("leaves a command mutex locked")
    job_locks = sum(1 if lock in buckets else lock.end - lock.start for lock in locks)
    if job_locks > held:
        world.fail(f"has {job_locks} job locks, for {held} jobs")
    return result


def start_run(world: History, me: Process, product: Product, job: Any) -> None:
    """A job is claimed: have it inherit the lock, and run."""
    if job.text not in me.mutexes:
        world.fail(f"claims {job.text!r} without its command mutex")
    claimed = me.claimed_at if me.claimed == job.text else world.steps
    world.check_losses(me, job)
    if job.state == b"r":
        if b"r" not in me.retry:
            world.fail(f"runs the orphan {job.text!r} again, which is not for it")
        world.renewed[job.text] += 1
        world.check_orphan(me, job.text)
        world.check_last(me, job.text)
    run = Run(job.text, me, job, claimed, world.most_lines(job.text, me.mutexes[job.text], claimed), me.began,
              world.now + world.draws.choice(world.times) * world.throttle,
              world.draws.choice((b"d", b"d", b"d", b"!", b"e")), pause=product.interval)
    if world.random() < world.given_back:       # a signal came just then
        run.until, run.result, run.released = world.now, b".", True
        me.runs.append(run)
        return
    world.check_barrier(me, job)
    tries = [product.lend(job) for _ in range(1 + (world.takes_buckets and world.random() < 0.1))]
    world.check_runs(run)
    world.check_restriction(run)
    world.check_turn(run)
    me.runs.append(run)                         # here the shell is started
    world.runs.append(run)
    for fd in itertools.chain(*tries):
        if me.fds[fd] in me.left:
            world.fail(f"{job.text!r} inherits what a process has that another job left")
        run.descriptions.append(me.fds[fd])
        me.fds[fd].shares += 1
    product.reclaim(*itertools.chain(*tries))
    if len(tries) > 1:                          # the first try has left a process
        me.left += run.descriptions[:len(tries[0])]
        del run.descriptions[:len(tries[0])]
    while me.left and world.random() < 0.8:     # such processes end, with all that they have
        world.share_less(me.left.pop(0))


def end_run(world: History, run: Run) -> None:
    """Its shell has ended: its share of the lock is gone."""
    run.until = min(run.until, world.now)
    if run.descriptions and world.takes_buckets and world.random() < 0.1 and not run.runner.killed:
        run.runner.left += run.descriptions     # it leaves a process
        run.descriptions.clear()
    while run.descriptions:
        world.share_less(run.descriptions.pop())


def settle_run(world: History, me: Process, product: Product, run: Run) -> None:
    """A job has ended: write down how."""
    end_run(world, run)
    fault = operation(world, me, product.finish, run.job, run.result)
    if run.written and not run.released:        # its `end` begins a new row
        world.losses.pop((run.job.number, run.job.command), None)
    if fault is None:                           # as Runner does: later and later
        run.settle_at, run.pause = world.now + run.pause, min(2 * run.pause, 30.0)
        return
    me.runs.remove(run)
    # Of an equal line, which has moved: the runner has written it, and tries again, as the answer was lost
    is_anothers = any(other.job.unconfirmed_state for other in world.runs
                      if other is not run and other.command == run.command and other in other.runner.runs)
    if fault and not (run.written or is_anothers or world.edits or world.forced or world.fates & {"cut"}
                      or world.removed > 0):
        world.fail(f"cannot write {run.result!r} for {run.command!r}: {fault}")
    lines = bytes(world.last.data).split(b"\n")
    # What goes back since it was not begun may have been taken and ended by others, or set by hand
    elsewhere = run.released and any(line[1:] == run.command and line[:1] not in b".r" for line in lines)
    if not (fault or run.written or elsewhere or run.result + run.command in lines):
        world.fail(f"says that {run.result!r} of {run.command!r} is written, and it is not")


def make_runners(world: History, hosts: list[Host], retries: Sequence[bytes],
                 late: Sequence[float]) -> list[Process]:
    """A runner on each of these hosts, which may retry these states, and but for the first may be late."""
    runners = []
    for index, host in enumerate(hosts):
        retry = world.draws.choice(retries)
        world.again |= b"e" in retry
        work = functools.partial(run_jobs, world, retry=retry, slots=world.draws.choice((1, 2)),
                                 late=world.draws.choice(late) * world.throttle * bool(index))
        runners.append(Process(f"runner {index + 1}", host, work, True))
    return runners
