"""Tests mostly wait: for processes to start, for something to happen.  So found together they run in several
processes.

There are ten, or four in full size, where more tests keep all CPUs busy.
Each process takes the next test when it has ended one; only a class that sets something up for all its tests
is not divided.  What takes longest comes first, so that no process is busy with it when all others have
ended.  All print their dots; in the end the others tell the first what became of their tests, and what they
took.
"""
import inspect
import multiprocessing
import os
import sys
import time
import unittest
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Optional

PROCESSES = 4 if os.environ.get("RUNMAKER4_TEST_FULL") else 10
LONGEST = ("test_tcp_storm", "test_storm", "test_simulation", "test_documents", "test_hostile",
           "test_attacks", "test_claiming", "test_no_second_copy", "test_channel", "test_losses")
SHOWN = 12      # modules that took longest, in the end
FORK = multiprocessing.get_context("fork")      # the tests are found once
Nanoseconds = Counter[str]      # that modules took
TOLD = "failures", "errors", "skipped", "expectedFailures", "unexpectedSuccesses", "collectedDurations"


def load_tests(loader: unittest.TestLoader, _: unittest.TestSuite,
               pattern: Optional[str]) -> unittest.TestSuite:
    """What unittest calls to find the tests of a package."""
    return Shared([loader.discover(os.path.dirname(__file__), pattern or "test*.py")])


@dataclass
class Elsewhere:
    """A test that ran in another process, as far as a result is interested in it."""
    name: str
    alone: str = ""     # see name_alone()

    def __str__(self) -> str:
        return self.name

    def shortDescription(self) -> None:
        """Nothing: it is part of the name."""


def name_alone(test: Any) -> str:
    """The name by which unittest finds a test; '' for what is not one: a set-up, a module not imported."""
    if isinstance(test, Elsewhere):
        return test.alone
    case = getattr(test, "test_case", test)         # of a subtest
    is_test = isinstance(case, unittest.TestCase) and type(case).__module__ != "unittest.loader"
    return case.id() if is_test else ""


class Shared(unittest.TestSuite):
    """Tests that some processes run together."""

    def run(self, result: unittest.TestResult, debug: bool = False) -> unittest.TestResult:
        parts = sorted(parts_of(self), key=lambda tests: module_of(tests) not in LONGEST)
        taken = FORK.Value("i", 0)
        others = [Other(parts, taken, result) for _ in range(PROCESSES - 1)]
        took = run_some(parts, taken, result)
        for other in others:
            took.update(other.add_to(result))
        slowest = ", ".join(f"{name} {round(took / 1e9)} s" for name, took in took.most_common(SHOWN))
        print(f"\nslowest: {slowest}", file=sys.stderr)
        return result


class Other:
    """Another process that runs tests."""

    def __init__(self, parts: list[unittest.TestSuite], taken: "Synchronized[int]",
                 result: unittest.TestResult) -> None:
        self.here, there = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=run_and_tell, args=(parts, taken, result, there))
        self.process.start()
        there.close()

    def add_to(self, result: unittest.TestResult) -> Nanoseconds:
        """Wait for its end, and add what became of its tests; how long they took."""
        took: Nanoseconds = Counter()
        try:
            more, took = self.here.recv()
        except EOFError:
            died = Elsewhere("one of the processes"), "It died: nobody knows how its tests have ended."
            more = {"testsRun": 0, "errors": [died]}
        add(result, more)
        self.process.join()
        return took


def parts_of(suite: unittest.TestSuite) -> Iterator[unittest.TestSuite]:
    """The tests one by one, but those of a class or module with a set-up of its own together."""
    for one in suite:
        if isinstance(one, unittest.TestSuite):
            yield from parts_of(one)
        elif has_own_set_up(type(one)):
            yield suite
            return
        else:
            yield unittest.TestSuite([one])


def has_own_set_up(case: type) -> bool:
    """Whether something is set up for all tests of a class, or of its module."""
    usual = inspect.getattr_static(unittest.TestCase, "setUpClass")
    return (inspect.getattr_static(case, "setUpClass") is not usual
            or hasattr(sys.modules[case.__module__], "setUpModule"))


def module_of(tests: unittest.TestSuite) -> str:
    """The module of some tests, without its package."""
    return type(next(iter(tests))).__module__.rpartition(".")[2]


def run_some(parts: list[unittest.TestSuite], taken: "Synchronized[int]",
             result: unittest.TestResult) -> Nanoseconds:
    """Run parts that nobody has taken, until there are no more."""
    took: Nanoseconds = Counter()
    while not result.shouldStop:
        with taken.get_lock():
            number = taken.value
            taken.value += 1
        if number >= len(parts):
            break
        tests = parts[number]
        module = module_of(tests)       # asked now: a suite forgets its tests once they have run
        begin = time.monotonic_ns()
        tests.run(result)
        took[module] += time.monotonic_ns() - begin
    return took


def run_and_tell(parts: list[unittest.TestSuite], taken: "Synchronized[int]", result: unittest.TestResult,
                 there: connection.Connection) -> None:
    """What the other processes do."""
    took = run_some(parts, taken, result)
    there.send((story(result), took))


def story(result: unittest.TestResult) -> dict[str, Any]:
    """What became of the tests, in words that can be sent."""
    def named(test: unittest.TestCase) -> str:
        return result.getDescription(test) if isinstance(result, unittest.TextTestResult) else str(test)

    def told(entry: Any) -> Any:
        if isinstance(entry, tuple):
            return tuple(map(told, entry))
        return Elsewhere(named(entry), name_alone(entry)) if isinstance(entry, unittest.TestCase) else entry

    lists = {name: [told(entry) for entry in getattr(result, name, ())] for name in TOLD}
    return {"testsRun": result.testsRun, **lists}


def add(result: unittest.TestResult, more: dict[str, Any]) -> None:
    """Add what became of other tests."""
    result.testsRun += more.pop("testsRun")
    for name, entries in more.items():
        if entries:
            getattr(result, name).extend(entries)
