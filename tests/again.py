"""Run tests as unittest does, and then once more, alone, the few that have failed.

    python3 -m tests.again LEDGER ARGUMENT...       what .ci/run does; the arguments are those of unittest

Some thousand tests start processes on a machine that now and then stands still for seconds, so one of them
comes too late.  A test that failed and then passes alone, in a new process, counts as passed and is a debt:
LEDGER gets its name, the load and what it said at first, and .ci/run prints that last.  These get no second
chance:

- more than MOST tests of all parts that share this LEDGER, at the same time or one after the other;
- a test of what holds in every order of events (EVERY_ORDER): it has found one in which it does not;
- what is not one test: a set-up of a class or module, a module that cannot be imported, a process that died.
"""
import fcntl
import os
import pathlib
import re
import subprocess
import sys
import unittest

from tests import name_alone

MOST = 3
EVERY_ORDER = (     # modules and packages
    "tests.file.test_claiming", "tests.file.test_format", "tests.file.test_handing_out",
    "tests.file.test_no_second_copy", "tests.file.test_scanning", "tests.lists.test_edit", "tests.orders",
    "tests.runner.test_memory",
)
PASSED_ALONE = "PASSED ALONE, AND MUST BE MENDED: "
# neither skipped nor without tests, which unittest calls OK, too
ONE_PASSED = re.compile(r"^Ran 1 test in .*\n\nOK(?: \(expected failures=1\))?$", re.MULTILINE)


def failed_tests(result: unittest.TestResult) -> dict[str, str]:
    """What each failed test has said first, by the name by which it can run alone, '' if it cannot."""
    said: dict[str, str] = {}
    for test, text in result.failures + result.errors:
        said.setdefault(name_alone(test), text)
    for test in result.unexpectedSuccesses:
        said.setdefault(name_alone(test), "passed, and should not")
    return said


def may_run_again(name: str) -> bool:
    """Whether the machine can be why this test failed; '' is the name of what is not one test."""
    return bool(name) and not f"{name}.".startswith(tuple(f"{module}." for module in EVERY_ORDER))


def indented(text: str) -> str:
    """The lines of a text, so that none can be taken for one that .ci/run or its reader counts."""
    return "".join(f"  | {line}\n" for line in text.splitlines())


def passes_alone(name: str) -> bool:
    """Run one test in a process of its own, and show what that prints."""
    print(f"again, alone: {name}", file=sys.stderr, flush=True)
    ended = subprocess.run([sys.executable, "-m", "unittest", "-v", name], stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    printed = ended.stdout.decode(errors="replace")
    print(indented(printed), end="", file=sys.stderr, flush=True)
    return ended.returncode == 0 and bool(ONE_PASSED.search(printed))


def pass_at_second_try(said: dict[str, str], ledger: pathlib.Path) -> bool:
    """Run these tests alone if they may, and enter them into the ledger if they all pass.

    It stays locked meanwhile: parts that end at the same time count together, one after the other.
    """
    load = " ".join(f"{load:.1f}" for load in os.getloadavg())
    with ledger.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        earlier = file.read().count(PASSED_ALONE)
        if earlier + len(said) > MOST or not all(map(may_run_again, said)):
            names = ", ".join(name or "what is not one test" for name in said)
            print(f"no second chance: {names} ({earlier} passed only alone before)", file=sys.stderr)
            return False
        if not all(list(map(passes_alone, said))):      # all run, also after one that fails
            return False
        for name, text in said.items():
            file.write(f"{PASSED_ALONE}{name} (load in 1, 5 and 15 minutes: {load})\n{indented(text)}")
    print(f"passed only alone: {', '.join(said)}", file=sys.stderr)
    return True


def main(ledger: pathlib.Path, arguments: list[str]) -> int:
    """Run the tests that the arguments name; the exit status is 0 if all have passed, if need be alone."""
    result = unittest.main(None, argv=["python3 -m tests.again", *arguments], exit=False).result
    ran = result.testsRun or result.skipped
    if not result.wasSuccessful() and not result.shouldStop:
        return int(not pass_at_second_try(failed_tests(result), ledger))
    return int(not (ran and result.wasSuccessful()))


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]), sys.argv[2:]))
