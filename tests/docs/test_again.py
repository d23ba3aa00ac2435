"""tests.again runs a failed test once more, alone, and counts as passed what may be, but names it."""
import importlib.util
import re
import subprocess
import sys

from tests.again import EVERY_ORDER
from tests.support.case import Case
from tests.support.processes import DEADLINE
from tests.support.scripts import ROOT

BEGIN = """
import multiprocessing, os, time, unittest

def first(name):
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

class Planted(unittest.TestCase):
"""
PASSES = """
    def test_passes(self): pass
"""
FAILS_ONCE = """
    def test_fails_once{0}(self):
        self.assertFalse(first("fails_once{0}"), "planted {0}")
"""
FAILS_ALWAYS = """
    def test_fails_always(self):
        first("fails_always")
        self.fail("planted")
"""
SUBTEST = """
    def test_subtest(self):
        for number in range(3):
            with self.subTest(number=number):
                self.assertFalse(number == 1 and first("subtest"), "planted")
"""
UNEXPECTED = """
    @unittest.expectedFailure
    def test_unexpected(self):
        self.assertTrue(first("unexpected"))
"""
SKIPPED = """
    def test_skipped(self):
        if not first("skipped"):
            self.skipTest("planted")
        self.fail("planted")
"""
SIZE = """
    def test_size(self):
        with open("sizes", "a") as file:
            print(os.environ["RUNMAKER4_TEST_FULL"], file=file)
        self.assertFalse(first("size"))
"""
SET_UP = """
    @classmethod
    def setUpClass(cls):
        if first("set_up"):
            raise OSError("planted")
"""
# One dies in another process, and this one waits for it; whoever takes which
DIES = """
    def dies_elsewhere(self):
        if multiprocessing.parent_process():
            first("died")
            os._exit(0)
        end = time.monotonic() + 300
        while not os.path.exists("died") and time.monotonic() < end:
            time.sleep(0.01)

    test_one, test_other = dies_elsewhere, dies_elsewhere
"""


class SecondTry(Case):

    def setUp(self) -> None:
        super().setUp()
        for name in "__init__.py", "again.py":
            self.script((ROOT / "tests" / name).read_text(), f"tests/{name}")
        (self.dir / "ledger").touch()

    def plant(self, *tests: str, module: str = "tests/file/test_planted.py") -> None:
        """Make a module of tests, and its package."""
        self.script(BEGIN + "".join(tests), module)
        (self.dir / module).with_name("__init__.py").touch()

    def start_again(self, *arguments: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start what .ci/run does, with one ledger; without arguments with all tests that are found."""
        return self.start(sys.executable, "-m", "tests.again", "ledger",
                          *(arguments or ("discover", "-v", "-s", "tests", "-t", ".")), env=environ)

    def ended(self, process: subprocess.Popen[bytes]) -> tuple[int, str]:
        """The exit status, and what was printed."""
        out, err = process.communicate(timeout=DEADLINE)
        self.assertEqual(out, b"")
        return process.returncode, err.decode()

    def named(self) -> list[str]:
        """The tests that the ledger names, without their packages."""
        return sorted(re.findall(r"^PASSED ALONE, AND MUST BE MENDED: tests\.(\S+) \(load ",
                                 self.read("ledger").decode(), re.MULTILINE))

    def assertNoSecondChance(self, *arguments: str) -> None:
        """It ends as unittest would, and says so."""
        code, printed = self.ended(self.start_again(*arguments))
        self.assertEqual((code, self.read("ledger")), (1, b""), printed)
        self.assertIn("no second chance: ", printed)
        self.assertNotIn("again, alone: ", printed)

    def test_nothing_is_said_of_tests_that_all_pass(self) -> None:
        self.plant(PASSES)
        code, printed = self.ended(self.start_again())
        self.assertEqual((code, self.read("ledger")), (0, b""), printed)
        self.assertNotIn("alone", printed)

    def test_that_nothing_was_found_is_no_success(self) -> None:
        self.plant()
        self.assertEqual(self.ended(self.start_again())[0], 1)

    def test_three_may_pass_at_the_second_try_however_they_failed(self) -> None:
        self.plant(PASSES, FAILS_ONCE.format(""), SUBTEST, UNEXPECTED)
        code, printed = self.ended(self.start_again())
        self.assertEqual(code, 0, printed)
        self.assertEqual(self.named(), ["file.test_planted.Planted.test_fails_once",
                                        "file.test_planted.Planted.test_subtest",
                                        "file.test_planted.Planted.test_unexpected"])
        ledger = self.read("ledger").decode()
        self.assertIn("  | AssertionError: True is not false : planted", ledger)
        self.assertIn("  | passed, and should not", ledger)
        # .ci/run counts these lines, and nothing of the second try beside them
        self.assertEqual(re.findall("^Ran .* tests?", printed, re.MULTILINE), ["Ran 4 tests"])

    def test_it_is_the_same_for_tests_that_are_named(self) -> None:
        self.plant(FAILS_ONCE.format(""), SUBTEST)
        code, printed = self.ended(self.start_again("tests.file.test_planted"))
        self.assertEqual((code, len(self.named())), (0, 2), printed)

    def test_the_second_try_is_of_the_same_size(self) -> None:
        self.plant(SIZE)
        code, printed = self.ended(self.start_again(RUNMAKER4_TEST_FULL="1"))
        self.assertEqual((code, self.read("sizes")), (0, b"1\n1\n"), printed)

    def test_what_fails_alone_too_has_failed(self) -> None:
        self.plant(FAILS_ONCE.format(""), FAILS_ALWAYS)
        code, printed = self.ended(self.start_again())
        self.assertEqual((code, self.named()), (1, []), printed)
        self.assertIn("again, alone: tests.file.test_planted.Planted.test_fails_always\n", printed)

    def test_what_is_skipped_alone_has_failed(self) -> None:
        self.plant(SKIPPED)
        code, printed = self.ended(self.start_again())
        self.assertEqual((code, self.named()), (1, []), printed)
        self.assertIn("  | OK (skipped=1)", printed)

    def test_a_set_up_gets_no_second_chance(self) -> None:
        self.plant(SET_UP, PASSES)
        self.assertNoSecondChance()

    def test_a_module_that_cannot_be_imported_gets_none(self) -> None:
        self.plant(PASSES)
        self.plant(module="tests/lists/test_planted.py")
        self.script("raise OSError('planted')", "tests/lists/test_planted.py")
        self.assertNoSecondChance()

    def test_a_process_that_died_gets_none(self) -> None:
        self.plant(DIES)
        self.assertNoSecondChance()

    def test_more_than_three_get_none(self) -> None:
        self.plant(*(FAILS_ONCE.format(number) for number in range(4)))
        self.assertNoSecondChance()

    def test_more_than_three_of_parts_at_the_same_time_get_none(self) -> None:
        for part in "file", "lists":
            self.plant(*(FAILS_ONCE.format(f"_{part}{number}") for number in range(2)),
                       module=f"tests/{part}/test_planted.py")
        parts = [self.start_again(f"tests.{part}.test_planted") for part in ("file", "lists")]
        ended = [self.ended(process) for process in parts]
        self.assertEqual(sorted(code for code, _ in ended), [0, 1], ended)
        self.assertEqual(len(self.named()), 2)
        self.assertTrue(any("(2 passed only alone before)" in printed for _, printed in ended), ended)

    def test_a_test_of_every_order_of_events_gets_none(self) -> None:
        for room, module in ("orders", "test_planted"), ("file", "test_claiming"):
            with self.subTest(module=module):
                self.plant(FAILS_ONCE.format(f"_{room}"), module=f"tests/{room}/{module}.py")
                self.assertNoSecondChance(f"tests.{room}.{module}")

    def test_there_are_such_modules(self) -> None:
        for name in EVERY_ORDER:
            with self.subTest(name=name):
                self.assertIsNotNone(importlib.util.find_spec(name))
