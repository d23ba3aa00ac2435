"""The processes that make system calls, and the jobs of runners."""
from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable

from tests.orders.simulation.files import Description, Host
from tests.orders.simulation.world import Actor

if TYPE_CHECKING:
    from tests.orders.simulation.product import Product


@dataclass(eq=False)
class Run:
    """A job that was started."""
    command: bytes
    runner: Process
    job: Any
    claimed: int                # the step in which it was
    lines: int                  # the most lines that its command had between the command mutex and the claim
    started_at: float                # when its claim did
    until: float
    result: bytes
    descriptions: list[Description] = field(default_factory=list)       # inherited
    written: bool = False
    released: bool = False      # it was not even started
    settle_at: float = 0.0
    pause: float = 0.0


class Process(Actor):
    """A runner, or runset4.py."""

    def __init__(self, name: str, host: Host, work: Callable[[Any], None], runs_jobs: bool = False) -> None:
        super().__init__(name, host, work=work)
        self.runs_jobs = runs_jobs
        self.runs: list[Run] = []
        self.stops: list[tuple[float, float]] = []      # when it could not look, from when to when
        self.began = 0.0            # when its last operation did
        # the command that it has claimed, ...
        self.claimed, self.claimed_state, self.claimed_at = b"", b"", 0
        # whose command mutex its last operation has locked, in which step; and in which that began
        self.mutexes: dict[bytes, int] = {}
        self.began_in = 0
        self.walk: object = None    # of its last operation, and in which step the one began that began this
        self.walk_began_in = 0
        self.known_losses: Counter[tuple[int, bytes]] = Counter()
        self.losses_read_in = 0
        self.by_force = False
        self.retry = b""            # the states from which it makes lines new
        self.due: set[bytes] = set()        # lines that it must make new, ...
        self.came = 0.0             # as they were when it began
        self.product: Product | None = None
        self.takes_buckets = False
        self.operation = ""         # the name of its last one
        self.drains = False         # it was told to start no more jobs
        # since when it has left a line alone that it might take; of equal ones the first, the second
        self.left_since: dict[tuple[bytes, int], float] = {}
        # whether its last claim found none; and since when others start that line, or lines below, instead
        self.waits, self.passed_since = False, math.inf

    def writes_soon(self) -> bool:
        """A claim does only once it has locked something itself, whatever its jobs have locked."""
        return super().writes_soon() and (self.operation != "claim" or bool(self.mutexes))

    def trims_nothing(self) -> bool:
        return self.killed or not (self.product and self.product.file.lock_table.can_trim)

    def open_files(self) -> int:
        """How many descriptors it has, besides pipes and those that it keeps for jobs to come."""
        spare = self.product.file.lock_table._spare_fds if self.product else ()
        pipes = [owner.written_by for owner in self.fds.values() if owner.written_by]
        return sum(not (owner.written_by or owner in pipes) for owner in self.fds.values()) - len(spare)


def process(actor: Actor) -> Process:
    """Who makes system calls in a history is a runner or runset4.py."""
    if not isinstance(actor, Process):
        raise TypeError(f"{actor.name} makes system calls")
    return actor
