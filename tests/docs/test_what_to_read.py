"""Promise: before one of the usual changes to the simulation, nobody must read more than LIMIT lines."""
import ast
import re
import unittest

from tests.orders import simulation
from tests.support.scripts import ROOT
from tests.support.values import present

LIMIT = 1500
ORDERS = ROOT / "tests/orders"
FIRST = "simulation/__init__", "test_simulation"        # what is read before each change
# what the simulation's table says: for which change one reads which modules, and how many lines that are
ROWS = [(change, modules.split(", "), int(lines)) for change, modules, lines in re.findall(
    r"^\| (.+?) \| (.+?) \| (\d+) \|$", present(simulation.__doc__), re.MULTILINE)]


def imported(module: str) -> set[str]:
    """The modules of the simulation that this one needs when it is imported."""
    tree = ast.parse((ORDERS / f"simulation/{module}.py").read_text())
    names = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {name.rpartition(".")[2] for name in names if name.startswith(f"{simulation.__name__}.")}


class Simulation(unittest.TestCase):
    """Its table names what to read before a change."""

    def test_the_table_counts_the_lines_and_they_are_few(self) -> None:
        for change, modules, told in ROWS:
            names = [*FIRST, *(f"simulation/{module}" for module in modules)]
            lines = sum(len((ORDERS / f"{name}.py").read_text().splitlines()) for name in names)
            with self.subTest(change=change, lines=lines):
                self.assertEqual(told, -(-lines // 100) * 100)
                self.assertLessEqual(told, LIMIT)

    def test_each_module_is_in_the_table(self) -> None:
        there = {path.stem for path in ORDERS.glob("simulation/*.py")} - {"__init__"}
        self.assertEqual({module for _, modules, _ in ROWS for module in modules}, there)

    def test_a_module_comes_after_those_that_it_imports(self) -> None:
        for change, modules, _ in ROWS:
            for at, module in enumerate(modules):
                with self.subTest(change=change, module=module):
                    self.assertEqual(imported(module).intersection(modules[at:]), set())
