"""The product: private copies of runmaker4.py and runset4.py, which find system_calls.py where they look for
`os`, `fcntl` and `time`.  `Product` and `Setter` are all that is known here of their methods.
"""
from __future__ import annotations

import importlib.machinery
import itertools
import os
import sys
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tests.orders.simulation.files import PATH, Host
from tests.orders.simulation.processes import Process
from tests.orders.simulation.system_calls import MACHINE
from tests.support.scripts import ROOT

if TYPE_CHECKING:
    from tests.orders.simulation.run_rules import History


def load(path: str, **others: types.ModuleType) -> types.ModuleType:
    """A private copy of a script, on the simulated machine; others: modules that it is to import."""
    name = "simulated_" + os.path.basename(path).partition(".")[0]
    loader = importlib.machinery.SourceFileLoader(name, str(ROOT / path))
    module = types.ModuleType(name)
    module.__file__ = loader.path
    before = {other: sys.modules.get(other) for other in others}
    sys.modules.update(others, **{name: module})        # dataclasses look for their module there
    try:
        loader.exec_module(module)
    finally:
        for other, old in before.items():
            sys.modules.pop(other) if old is None else sys.modules.update({other: old})
    return module


CORE = load("runmaker4.py")
SETTER = load("runset4.py", runmaker4=CORE)
vars(SETTER)["exit_on"] = lambda *signals: None         # signal handlers are of the main thread
SERIAL = itertools.count()
# so that sets of jobs have an order
CORE.Job.__hash__ = lambda job: job.__dict__.setdefault("serial", next(SERIAL))


def install() -> None:
    """Have the product make its system calls on the machine as it is now."""
    for module in CORE, SETTER:
        for name, simulated in MACHINE.namespaces().items():
            if name in vars(module):
                setattr(module, name, simulated)


def say(text: str) -> None:
    MACHINE.world.trace(f"{MACHINE.world.now:9.4f} {MACHINE.world.me.name:8} says: {text}")


def mount_of(host: Host) -> Any:
    """What the product finds out of its file system."""
    return CORE.Mount(host.kind, frozenset())


def own(host: Host) -> int:
    """A runner's descriptors besides those of jobs: the file (on NFS also to read), command mutexes."""
    return 3 if host.network else 2


def bucket_of(command: bytes) -> int:
    """Where the row of a command begins."""
    row: int = CORE.bucket_of(command[1:])
    return row


class Journal:
    """The losses in the journal of all runners."""

    def __init__(self, world: History) -> None:
        self.world = world

    def read_losses(self) -> Mapping[tuple[int, bytes], int]:
        self.world.step()
        me = self.world.me
        assert isinstance(me, Process)
        me.known_losses, me.losses_read_in = self.world.losses.copy(), self.world.steps
        return self.world.losses

    def add_loss(self, line: Any, state: bytes, losses: int) -> None:
        self.world.step()
        key, me = (line.number, line.command), self.world.me
        assert isinstance(me, Process)
        if self.world.losses[key] != me.known_losses[key]:
            self.world.miscounted.add(key)
        self.world.losses[key] = me.known_losses[key] = losses


class Product:
    """A runner's `JobQueue` and `Cursor`, and all that is known here of their methods."""

    def __init__(self, world: History, host: Host, retry: bytes, takes_buckets: bool, slice_seconds: float,
                 reset_bytes: int) -> None:
        """slice_seconds: until a claim that makes failed lines new returns; below 0: at each step.

        reset_bytes: of the file, in which lines become new at once.
        """
        self.file = CORE.JobFile(PATH, say=say, mount=mount_of(host), clock=lambda: MACHINE.world.now)
        self.file.boot = b"" if host.network else b"this boot".ljust(CORE.BOOT_SIZE)
        queue = CORE.JobQueue(self.file)
        self.cursor = CORE.Cursor(queue, [CORE.Consumer(host.name, retry=retry)])
        self.cursor.SLICE, self.cursor.RESET_BYTES = slice_seconds, reset_bytes
        queue.spread = queue.MAX_SPREAD if world.have_met else 1
        self.consumer = next(iter(self.cursor.consumers.all))
        self.interval, self.poll = self.file.interval, self.file.poll
        self.consumer.runs_short_jobs = takes_buckets
        self.cursor.orphans.outdir = types.SimpleNamespace(journal=Journal(world))
        self.lend, self.reclaim, self.trim = queue.copy_lock_fds, CORE.close_all, queue.trim_bucket
        self.check_jobs, self.leave_mark = queue.check_jobs, self.file.leave_mark

    @property
    def walk(self) -> Any:
        return self.cursor._walk

    @property
    def failed(self) -> str:
        failed: str = self.cursor.no_job.final_error
        return failed

    @property
    def again(self) -> float | None:
        """Seconds until another claim may find more; None: something must change."""
        again: float | None = self.cursor.no_job.retry_after
        return again

    @property
    def may_exit(self) -> bool:
        return self.consumer in self.cursor.no_job.exits

    def claim(self, is_idle: bool, slots: int, taken: float) -> Any:
        """A job; or None, and `may_exit` if it is idle."""
        self.consumer.capacity = CORE.Resources(slots)
        self.consumer.free = CORE.Resources(slots - taken)
        return self.cursor.claim([self.consumer] if is_idle else ())

    def finish(self, job: Any, state: bytes) -> str | None:
        """What went wrong for good, or ''; None: not now."""
        try:
            fault: str = self.cursor.finish(job, state)
        except CORE.TemporaryError:
            return None
        return fault


class Setter:
    """What runset4.py does to a file."""

    def __init__(self, host: Host) -> None:
        self.file = CORE.JobFile(PATH, say=say, mount=mount_of(host), clock=lambda: MACHINE.world.now)
        self.file.patience = self.file.MUTEX_SECONDS        # as change_lines() waits for what is locked
        self.lines = self.file.scan_lines

    def set_state(self, line: Any, state: bytes) -> None:
        self.file.open_to_write()
        SETTER.set_state(self.file, line, state)

    def cancel(self, world: History, me: Process, line: Any) -> None:
        """Write x over the `r` of a line, whose job can be running."""
        world.forced.add(line.text)
        me.by_force = True
        self.file.open_to_write()
        try:
            SETTER.cancel_line(self.file, line)
        finally:
            me.by_force = False

    def append(self, line: bytes) -> None:
        with SETTER.open_and_lock_to_append(self.file) as fd:
            SETTER.append_locked(self.file, fd, line)
