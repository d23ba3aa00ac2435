"""Promise: in whatever order system calls come, no more copies of a command live than the file had lines of
it when the last of them was claimed, no state is written over another line's, and nothing is lost.

The real JobFile and Cursor run on a simulated host system, in histories that no run before has had, each made
from a seed; simulation/__init__.py says what to read of that.  Defects that are planted into histories which
are always the same show that this finds what it is there to find.
"""
import multiprocessing.pool
import os
import random
import subprocess
import sys
import unittest

from tests.orders.simulation import many
from tests.orders.simulation.planted_defects import PLANTED
from tests.support.scripts import ALL, FULL, ROOT, SEED, chance

SCHEDULES = 1_000_000 if ALL else 20_000 if FULL else 300
FIRST = (chance("histories") if SEED else random.Random()).randrange(10**9)
# histories in which the full size must find each defect, the ordinary size only these:
MANY, FEW = 100_000, 600
QUICKLY_FOUND = (
    "no command mutex", "command mutex of another text", "result without the command mutex",
    "job lock not locked", "job lock freed before the write",
    "job lock freed after the claim", "job lock not lent", "state from before the command mutex",
    "second lock file", "no in-use lock", "result not verified", "closed twice", "appended without the lock",
    "edited without the command mutexes",
)


class Histories(unittest.TestCase):
    """Runners, editors, runset4.py, kills, stops, a network that comes and goes; in any order."""
    pool: multiprocessing.pool.Pool

    @classmethod
    def setUpClass(cls) -> None:
        workers = many.workers()
        cls.pool = workers.__enter__()
        cls.addClassCleanup(workers.__exit__, None, None, None)

    def test_no_history_breaks_a_promise(self) -> None:
        found = many.explore_on_all_cores(self.pool, SCHEDULES, FIRST)
        self.assertEqual((found.schedules, found.broken), (SCHEDULES, {}),
                         "python3 -m tests.orders.simulation --seed N")

    def test_planted_defects_are_found(self) -> None:
        chosen = [name for name in PLANTED if ALL or not SEED or chance(name).random() < 1 / 3]
        names, schedules = (chosen, MANY) if FULL else (QUICKLY_FOUND, FEW)
        found = self.pool.starmap(
            many.explore_many, [(name, range(schedules), 1) for name in names], chunksize=1
        )
        self.assertEqual([name for name, it in zip(names, found) if not it.broken], [])

    def test_a_seed_makes_the_same_history_everywhere(self) -> None:
        """Also where objects have other addresses, and strings other hashes."""
        told = {
            subprocess.run([sys.executable, "-m", "tests.orders.simulation", "--seed", "7"],
                           cwd=ROOT, check=True, stdout=subprocess.PIPE,
                           env={**os.environ, "PYTHONHASHSEED": str(number)}).stdout
            for number in (1, 2)
        }
        self.assertEqual(len(told), 1)
        self.assertGreater(told.pop().count(b"\n"), 50)
