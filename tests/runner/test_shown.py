"""Promise: what is shown of commands and names neither commands a terminal nor begins a line."""
import os
import re
import unittest

import runmaker4
from tests.support.job_file import FileCase
from tests.support.pipes import read_terminal
from tests.support.runs import RunCase
from tests.support.scripts import RUNMAKER, RUNSET, RUNWAIT
from tests.support.sinks import a_run
from tests.support.values import Text, as_bytes

# what it is, and what it is as a text or, if it has no character, as bytes
HOSTILE: dict[str, Text] = {"a colour": "\x1b[31m", "a carriage return": "\r", "a bell": "\7", "DEL": "\x7f",
                            "C1": "\x9b31m", "NEL": "\x85", "a line separator": "\u2028",
                            "a paragraph separator": "\u2029", "an override": "\u202e",
                            "an isolate": "\u2066", "its end": "\u2069", "a mark": "\u200f",
                            "an Arabic mark": "\u061c", "C1 of eight bits": b"\x9b31m", "a line": "\n"}
HARMLESS = "é ß 語 \U0001f600 ~".encode() + b" \xff\xa0"


class Printable(unittest.TestCase):

    def test_nothing_of_these_is_shown_and_all_else_is(self) -> None:
        for name, text in HOSTILE.items():
            with self.subTest(name):
                data = as_bytes(text)
                rest = re.sub(rb"^[^ -~]+", b"", data)
                self.assertEqual(runmaker4.one_line(b"a" + data + b"b"), b"a?" + rest + b"b")
        self.assertEqual(runmaker4.one_line(HARMLESS), HARMLESS)


class Commands(RunCase):
    """Of such commands a terminal gets no such bytes; a pipe or a file gets them."""

    COMMAND = (
        b"true '" + b"".join(as_bytes(text) for text in HOSTILE.values() if text != "\n") + HARMLESS + b"'"
    )

    def shown(self, script: str, *args: object) -> bytes:
        """What a terminal gets."""
        master, slave = os.openpty()
        self.addCleanup(os.close, master)
        process = self.start(script, *args, stdout=slave, stderr=slave, env={"NO_COLOR": "1", "TERM": "dumb"})
        os.close(slave)
        shown = read_terminal(master)
        self.assertEqual(process.wait(), 0, shown)
        return shown

    def assertShown(self, lines: int, *call: str) -> None:
        """The command is in so many lines, and nothing of what is hostile in any."""
        shown = self.shown(*call)
        self.assertEqual(shown.count(b"true '?[31m???"), lines, shown)
        self.assertEqual(shown.count(HARMLESS), lines, shown)
        for name, text in HOSTILE.items():
            if text != "\n":
                self.assertNotIn(as_bytes(text)[:3], shown, name)

    def test_lists_of_jobs(self) -> None:
        for call in (RUNSET, "--list", "runs.txt"), (RUNMAKER, "--dry-run", "runs.txt"):
            with self.subTest(call=call):
                self.write(b". " + self.COMMAND + b"\n")
                self.assertShown(1, *call)
                self.assertEqual(self.run_script(*call).out, b"1 . " + self.COMMAND + b"\n")

    def test_what_runs(self) -> None:
        self.write(b". " + self.COMMAND + b"\n")
        self.assertShown(1, RUNMAKER, "runs.txt")
        self.write(b". " + self.COMMAND + b"\n")
        self.assertEqual(self.run_jobs().out.count(self.COMMAND), 3)


class Names(RunCase):
    """Names of files that hold such bytes."""

    def test_each_message_is_one_line_and_commands_nothing(self) -> None:
        name = b"a" + b"".join(map(as_bytes, HOSTILE.values())) + b"b.txt"
        (self.dir / os.fsdecode(name)).write_bytes(b". false\n")
        calls = [(RUNMAKER, name), (RUNMAKER, "-r", "-q", name), (RUNWAIT, "--stats", b"missing" + name),
                 (RUNMAKER, "-d", "-r", name), (RUNSET, "--set=.", "1", name), (RUNSET, "--set=d", "7", name),
                 (RUNMAKER, b"missing" + name), (RUNWAIT, b"missing" + name),
                 (RUNSET, "--list", b"missing" + name), (RUNMAKER, "a.txt", name)]
        for call in calls:
            words = [os.fsdecode(word) for word in call]
            with self.subTest(call=call):
                ended = self.run_script(*words)
                said = ended.err
                self.assertTrue(said)
                for line in said.splitlines():
                    self.assertRegex(line, rb"^(run(maker|set|wait)4\.py|next): ")
                for text in HOSTILE.values():
                    self.assertTrue(text == "\n" or as_bytes(text) not in said, said)


class Records(RunCase):
    """A directory or a host whose name holds a newline begins no line of its own."""
    FORGED = "x\n+ status (alice,1): exit 0 \"other\"\tb"

    def test_of_a_runner_and_of_a_host(self) -> None:
        for host, directory in ("alice", self.FORGED), (self.FORGED, "sub"):
            with self.subTest(host=host, directory=directory):
                self.jobs("true")
                (self.dir / directory).mkdir()
                log, joblog, file = (self.dir / name for name in ("log", "joblog", "runs.txt"))
                ended = self.run_script(RUNMAKER, "-q", "--name", host, "-l", log, "--joblog", joblog, file,
                                        cwd=self.dir / directory)
                self.assertEqual(ended.code, 0)
                rows = log.read_bytes().split(b"\n")
                self.assertEqual([len(row) for row in rows], [160] * 4 + [0])
                self.assertEqual([row[:3] for row in rows], [b".->", b"+ s", b"+ s", b"   ", b""])
                _, line = joblog.read_bytes().splitlines()
                self.assertEqual(line.count(b"\t"), 8)
                joblog.unlink()


class RecordsOfClients(FileCase):
    """A server writes what its clients say."""

    def test_a_directory(self) -> None:
        log = runmaker4.LogFile(str(self.path), 3, b"/", runmaker4.FileExecutor(threaded=False), self.fail)
        self.addCleanup(os.close, log.file.fd)
        run = a_run()
        run.directory = as_bytes(Records.FORGED)
        log.on_started(run)
        log.on_ended(run, runmaker4.RunResult(0))
        rows = self.path.read_bytes()[-4 * 161:].split(b"\n")
        self.assertEqual([row[:2] for row in rows], [b".-", b"+ ", b"+ ", b"  ", b""])
        self.assertIn(b"(in x?+ status", rows[0])
