"""Promise: docs/reference.md lists what there is, no more, no less; docs/messages.md explains real messages.

The truth is taken from the code, or from what a real run leaves: a directive, variable, field, file, signal
or status that is in one and not in the other is a failure.
"""
import ast
import json
import os
import re
import signal
import unittest
from collections.abc import Iterator
from typing import Any

import runmaker4
import runset4
from docs.install import make
from tests.support.case import GATE
from tests.support.documents import MESSAGES
from tests.support.patches import PATIENT
from tests.support.processes import wait_until
from tests.support.runs import RunCase
from tests.support.scripts import ROOT, RUNMAKER, RUNSET, RUNWAIT, SCRIPTS
from tests.support.tcp import TcpCase


def rows(heading: str, number: int = 0) -> list[list[str]]:
    """The cells of a table below a heading of the reference, without the rows above the dashes."""
    text = (ROOT / "docs/reference.md").read_text()
    below = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\n)+", below, re.MULTILINE)
    lines = tables[number].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def names(*cells: str) -> set[str]:
    """The words in backquotes."""
    return {word for cell in cells for text in re.findall("`([^`]+)`", cell) for word in text.split()}


def trees() -> Iterator[ast.AST]:
    """All nodes of all scripts."""
    for script in SCRIPTS:
        yield from ast.walk(ast.parse((ROOT / script).read_text()))


def texts(node: ast.AST) -> Iterator[str]:
    """What a node is as a text, if it is a constant."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
        yield os.fsdecode(node.value)


def is_environment(node: ast.AST) -> bool:
    """Whether it is a mapping of variables."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in ("environ", "environb")


def variables_read() -> set[str]:
    """The names that scripts look up in an environment."""
    found: set[str] = set()
    for node in trees():
        keys: list[ast.AST] = []
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and is_environment(node.func.value):
                keys = list(node.args[:1])
            elif isinstance(node.func, ast.Name) and node.func.id == "positive_number":
                keys = list(node.args)
        elif isinstance(node, ast.Subscript) and is_environment(node.value):
            keys = [node.slice]
        elif isinstance(node, ast.Compare) and any(map(is_environment, node.comparators)):
            keys = [node.left]
        for key in keys:
            found.update(texts(key))
    return found


class JobFile(RunCase):
    """What is in a file, besides jobs."""

    def test_a_line_that_it_calls_no_comment_is_reported_and_gives_exit_status_1(self) -> None:
        text = (ROOT / "docs/reference.md").read_text()
        example, = re.findall(r"No runner runs any other line, such as `([^`]+)`", text)
        self.write(f"# a comment\n/ none\n\n \n. true\n{example}\n")
        ended = self.run_script(RUNMAKER, "-q", "runs.txt")
        self.assertEqual(ended.code, 1)
        self.assertIn(b"line 6 is neither", ended.err)


class Tables(unittest.TestCase):
    """What can be read out of the code."""

    def test_directives(self) -> None:
        told = {re.findall("`([^`=]+)", row[0])[0] for row in rows("Directives")}
        self.assertEqual(told, {*runmaker4.KNOWN_SETTINGS, *runmaker4.KNOWN_DIRECTIVES})

    def test_states(self) -> None:
        told = [names(row[1]) for row in rows("States")]
        self.assertEqual({word for word in runset4.STATES if not any(word in some for some in told)}, set())
        self.assertEqual(len(told), len(runset4.STATES))

    def test_variables_that_are_read(self) -> None:
        told = names(*(row[0] for row in rows("Environment variables")))
        self.assertEqual(told, variables_read() | {os.fsdecode(runmaker4.JOB_TAG_VARIABLE)})

    def test_signals(self) -> None:
        told = names(*(row[0] for row in rows("Signals")))
        known = {signal.Signals(number).name.removeprefix("SIG") for number in runmaker4.STOP_SIGNALS}
        self.assertEqual(told, known | {"TSTP"})

    def test_exit_statuses(self) -> None:
        columns = {"runmaker4": 1, "runmaker4-client": 1, "runmaker4-server": 2, "runset4": 3, "runwait4": 4}
        table = {frozenset(names(row[0])): row for row in rows("Exit statuses")}
        for script, column in columns.items():
            known = {frozenset(status.split(", ")) for status in make.read_script(script).parser.statuses}
            with self.subTest(script):
                self.assertLessEqual(known, table.keys())
                self.assertEqual([row for row in table.values() if not row[column]], [])

    def test_files(self) -> None:
        told = names(*(row[0] for row in rows("Files")))
        self.assertLessEqual({name for names in make.FILES for name in names.split(", ")}, told)

    def test_messages_of_the_questions(self) -> None:
        """Each part of one stands in a script; where it has numbers or names, `...` is shown."""
        parts = [text for node in trees() for text in texts(node)]
        self.assertGreater(len(MESSAGES), 20)
        for message in MESSAGES:
            for piece in message.split("..."):
                with self.subTest(message):
                    self.assertTrue(any(piece.strip() in part for part in parts), piece)


class Fields(TcpCase):
    """What runs leave, and what is printed of them."""

    def printed(self, *words: str) -> Any:
        return json.loads(self.run_script(*words).out)

    def test_variables_of_a_job(self) -> None:
        self.write("#RUN memory=1M\n. env -0\n")
        ended = self.run_script(RUNMAKER, "--plain", "runs.txt")
        there = {entry.partition(b"=")[0].decode() for entry in ended.out.split(b"\0") if b"=" in entry}
        told = names(*(row[0] for row in rows("Environment variables", 1)))
        self.assertLessEqual(told, there)
        self.assertEqual({name for name in there if re.match("RUNMAKER4_(?!TEST)", name)} - told, set())

    def test_the_journal(self) -> None:
        named = """until grep -q '[f]iles": ..3' runs.txt.out/journal; do sleep 0.1; done"""
        self.write(f"#RUN memory=100M\n. echo a; echo b >&2\n. seq 9999; {named}\n. echo a\0\n")
        self.finish(self.start_patched(PATIENT, "-q", "runs.txt"))          # only seq has files
        found: dict[str, set[str]] = {}
        for line in self.read("runs.txt.out/journal").splitlines():
            entry = json.loads(line)
            found.setdefault(entry["event"], set()).update(entry)
        start, end = (names(*(row[0] for row in rows("The journal", number))) for number in range(2))
        self.assertEqual(found.keys(), {"start", "end"})
        self.assertEqual(found["start"], start)
        self.assertEqual(found["end"] | {"incomplete", "travelled"}, start | end)
        self.assertEqual({name for name, *_ in runmaker4.START + runmaker4.END} | {"event"}, start | end)

    def test_json(self) -> None:
        self.write(f"#RUN memory=100M\n. {GATE}\n. {GATE}; : 2\n")
        server = self.start_server("--outdir", "out")
        client = self.start_client(server, "-j1")
        wait_until(lambda: b'"start"' in self.read("out/journal"), what="a job is in the journal")
        outdir = "--json", "--outdir", "out", "runs.txt"
        status, ran, stats, fields = (rows("JSON", number) for number in range(4))
        job = names(fields[0][1]) - {"--outdir"}
        run = job | names(fields[2][1], fields[3][1])
        took = names(fields[4][1], fields[5][1]) - {"host", "command"}
        told = self.printed(RUNWAIT, "--status", *outdir)
        self.assertEqual(told.keys(), names(*(row[0] for row in status)))
        self.assertEqual(told["jobs"][0].keys(), job | names(fields[1][1]))
        told = self.printed(RUNWAIT, "--show", "2", *outdir)
        self.assertEqual((told.keys(), told["runs"][0].keys()), (names(ran[0][0]), run))
        self.open_gate()
        self.stop(client)
        self.stop(server)
        self.run_script(RUNSET, "--set=!", "runs.txt", 2)
        for options in (), ("--outdir", "out"):
            told = self.printed(RUNWAIT, "--failed", "--json", *options, "runs.txt")
            self.assertEqual((told.keys(), told["runs"][0].keys()), (names(ran[0][0]), run))
        told = json.loads(self.run_script(RUNWAIT, "--output", *outdir).out.splitlines()[0])
        self.assertEqual(told.keys(), names(fields[6][1]) - {"--template"})
        told = self.printed(RUNWAIT, "--stats", *outdir)
        self.assertEqual(told.keys(), names(*(row[0] for row in stats)))
        self.assertEqual((told["all"].keys(), told["hosts"][0].keys(), told["commands"][0].keys()),
                         (took, took | {"host"}, took | {"command"}))
