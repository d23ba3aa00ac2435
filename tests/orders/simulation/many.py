"""Many histories, with a planted defect or none, on all cores."""
from __future__ import annotations

import math
import multiprocessing
import multiprocessing.pool
import multiprocessing.queues
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.orders.simulation.histories import explore
from tests.orders.simulation.planted_defects import planted
from tests.orders.simulation.system_calls import MACHINE

# raised by a planted defect that does not fit where it is put
MISFITS = "AttributeError", "NameError", "TypeError"


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
                last_line = violation.rstrip().rpartition("\n")[2]
                # otherwise a defect whose names are out of date would count as found
                assert not (name and last_line.startswith(MISFITS)), f"{name} does not fit: {last_line}"
                found.broken[seed] = violation
                if len(found.broken) >= enough:
                    break
    return found


def take_core(cores: multiprocessing.queues.Queue[int]) -> None:
    """Use one core only: on that, a thread hands the baton to the next one ten times as fast as across two.
    """
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


def explore_on_all_cores(pool: multiprocessing.pool.Pool, schedules: int, first: int = 0,
                         name: str = "") -> Found:
    """That many seeds, with a planted defect or ''."""
    piece = max(20, min(500, schedules // 20))
    tasks = [(name, range(seed, min(seed + piece, first + schedules)))
             for seed in range(first, first + schedules, piece)]
    all_found = Found()
    for found in pool.starmap(explore_many, tasks, chunksize=1):
        all_found.schedules += found.schedules
        all_found.steps += found.steps
        all_found.broken.update(found.broken)
    return all_found
