"""Promise: runwait4.py --show tells what became of a line, run by run."""
import json
import os
import re
import subprocess
import unittest
import unittest.mock
from typing import Any

from tests.journal import BEGAN, end, moved, pair, start
from tests.support import GATE, RUNMAKER, Ended, wait_until
from tests.test_telling import TellingCase

WHEN = re.compile(r"[A-Z][a-z]{2} \d\d \d\d:\d\d|\d\d:\d\d:\d\d")


class ShowCase(TellingCase):

    def shown(self, line: object, *options: str, err: str = "") -> str:
        """What is told of a line, with the times of day blotted out."""
        told = self.told("--show", line, *options, "--outdir", "out", "runs.txt", err=err)
        return WHEN.sub("WHEN", told)

    def ran(self, *options: object) -> Ended:
        """Run runs.txt to its end, with out/."""
        return self.run_script(RUNMAKER, "-q", "--outdir", "out", *options, "runs.txt")

    def at_work(self, *lines: str, options: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """A real runner, one of whose jobs is at the gate, with out/."""
        return self.start_to_gate("".join(f"{line}\n" for line in lines), "--outdir", "out", *options)

    def wait_journal(self, what: bytes, count: int = 1) -> None:
        """Wait until the journal has this so many times."""
        wait_until(lambda: self.read("out/journal").count(what) >= count, what=f"{what!r} in the journal")


class Runs(ShowCase):
    """All runs of a line, and the end of what the last one has printed."""

    def test_each_try_is_told_and_the_last_lines_of_the_last_one(self) -> None:
        self.write(". for i in $(seq 12); do echo line $i; done; echo bad >&2; printf part; exit 3\n. true\n")
        self.ran("--retries", "1")
        lines = re.sub(r"after .*|process \d+|CPU .*", "...", self.shown(1)).splitlines()
        self.assertEqual(re.sub(r"on \S+,", "on here,", "\n".join(lines[2:])), """\
run 1: exit 3 ...
    on here, slot 1, ..., WHEN to WHEN, ...
    printed 95 B: out/1.out.~1~, out/1.err.~1~
run 2: exit 3 ...
    on here, slot 1, ..., WHEN to WHEN, ...
    printed 95 B: out/1.out, out/1.err
stdout, 91 B:
""" + "".join(f"  | line {number}\n" for number in range(4, 13)) + "  | part\nstderr, 4 B:\n  ! bad")
        self.assertEqual(lines[0], "line 1: failed, 2 runs")
        self.assertRegex(self.shown(2),
                         r"^line 2: done, 1 run\n    true\nrun 1: exit 0 .*\n.*\n    printed nothing\n$")

    def test_as_json(self) -> None:
        self.write(". printf abc; [ -e second ] || { : >second; exit 3; }\n")
        self.ran("--retries", "1")
        told = json.loads(self.shown("1", "--json"))
        runs = told.pop("runs")
        self.assertEqual(
            told, {"line": 1, "command": self.read()[2:-1].decode(), "state": "done"}
        )
        self.assertEqual([(run["run"], run["line"], run["state"], run["exit"], run["files"]) for run in runs],
                         [(1, 1, "failed", 3, ["1.out.~1~"]), (2, 1, "done", 0, ["1.out"])])
        self.assertEqual(
            set(runs[0]),
            {"run", "line", "host", "slot", "pid", "start", "end", "state", "exit", "signal", "cause",
             "seconds", "cpu", "memory", "memory_below", "promised", "bytes", "files"},
        )
        for run in runs:
            self.assertAlmostEqual(run["end"] - run["start"], run["seconds"], 2)
            self.assertEqual((run["bytes"], run["signal"], run["cause"]), (3, None, ""))

    def test_how_runs_end(self) -> None:
        commands = "done", "segv", "timeout", "cancelled", "stopped", "put back", "unstarted", "lost", "odd"
        path = self.write("".join(f"{state} {command}\n" for state, command in zip("d!!xe.eer", commands)))
        os.utime(path, (BEGAN, BEGAN))
        ends: list[dict[str, Any]] = [
            {}, {"signal": 11, "exit": -1, "state": "!"},
            {"cause": "timeout", "signal": 9, "exit": -1, "state": "!"},
            {"cause": "cancelled", "signal": 15, "exit": -1, "state": "x"},
            {"cause": "stopped", "signal": 15, "exit": -1, "state": "e"},
            {"signal": 15, "exit": -1, "state": "."}, {"pid": 0, "exit": -1, "state": "e"},
        ]
        self.journal(*[end(line, line, command, files=[], **ends[line - 1])
                       for line, command in enumerate(commands[:7], 1)],
                     start(8, 8, "lost"), start(9, 9, "odd"))
        wanted = [
            "done|exit 0 after 1.5s", "failed|signal 11 (SIGSEGV) after 1.5s",
            "failed|timeout (SIGKILL) after 1.5s", "held|cancelled (SIGTERM) after 1.5s",
            "error|stopped (SIGTERM) after 1.5s", "new|put back: signal 15 (SIGTERM) after 1.5s",
            "error|could not be started", "error|lost", "error (r, but nobody runs it any more)|lost",
        ]
        for line, text in enumerate(wanted, 1):
            with self.subTest(text):
                heading, _, run, *_ = self.shown(line).splitlines()
                state, _, how = text.partition("|")
                self.assertEqual((heading, run), (f"line {line}: {state}, 1 run", f"run 1: {how}"))

    def test_of_an_earlier_run_without_an_end_nobody_knows_how_it_ended(self) -> None:
        os.utime(self.write("d a\n"), (BEGAN, BEGAN))
        self.journal(start(1, 1, "a"), moved("1.out", "1.out.~1~"), *pair(2, 1, "a", BEGAN + 9, files=[]))
        self.write("its last words\n", "out/1.out.~1~")
        self.assertRegex(self.shown(1), r"2 runs\n    a\nrun 1: unknown\n    on node1, slot 1, process 4712, "
                                        r"since WHEN\n    printed 15 B: out/1\.out\.~1~\nrun 2: exit 0 ")

    def test_one_that_runs_is_told_so_far(self) -> None:
        self.at_work(f". echo hello; {GATE}")
        self.addCleanup(self.open_gate)
        self.wait_journal(b'"start"')
        wait_until((self.dir / "out/1.out").exists)
        self.assertRegex(self.shown(1), r"^line 1: running, 1 run\n    echo hello.*\nrun 1: running for .*\n"
                                        r"    on \S+, slot 1, .*, since WHEN\n    printed 6 B so far: "
                                        r"out/1\.out\nstdout, 6 B:\n  \| hello\n$")
        (run,) = json.loads(self.shown(1, "--json"))["runs"]
        self.assertEqual((run["state"], run["end"], run["exit"], run["bytes"], run["files"]),
                         ("running", None, None, 6, ["1.out"]))
        self.assertGreater(run["seconds"], 0)

    def test_a_cancelled_one_that_lives_still_runs(self) -> None:
        self.write("x a\n")
        self.hold_line(1)
        self.journal(start(1, 1, "a"))
        self.assertRegex(
            self.shown(1), r"^line 1: cancelled, still running, 1 run\n    a\nrun 1: running for "
        )

    def test_one_that_has_not_run(self) -> None:
        self.write(". a\n. b\n")
        self.journal(*pair(1, 1, "a"))
        self.assertEqual(self.shown(2), "line 2: new, no run of it is in the journal\n    b\n")
        self.assertEqual(json.loads(self.shown(2, "--json"))["runs"], [])

    def test_a_terminal_is_not_too_narrow(self) -> None:
        self.write("! a\x1b[31m" + "long" * 40 + "\n")
        self.journal(end(1, 1, self.read()[2:-1], state="!", host="\x1b" + "host" * 5, exit=139))
        self.write("\x1b[31mred\n" + "x" * 200, "out/1.out")
        for columns in (80, 40):
            lines = self.at_terminal(columns, "--show", "1", "--outdir", "out", "runs.txt")
            self.assertLess(max(map(len, lines)), columns)
            self.assertIn("  | ?[31mred", lines)
            self.assertIn("out/1.err", " ".join(lines))


class Lines(ShowCase):
    """Which line is meant, and which runs are its."""

    def test_it_is_named_by_its_number_its_command_or_a_pattern(self) -> None:
        self.write("# 1\nd simulate --seed 1\n! simulate --seed 2\nx simulate --seed *\nd 17\n")
        self.journal(*pair(1, 2, "simulate --seed 1"))
        for wanted, line in (("2", 2), ("simulate --seed 1", 2), ("*seed 2", 3), ("simulate --seed *", 4),
                             ("*17", 5), ("[x]17", 0), ("simulate --seed [12]", -1), ("*", -1), ("17", 0),
                             ("1", 0), ("0", 0), ("9" * 30, 0)):
            with self.subTest(wanted):
                ended = self.runwait("--show", wanted, "--outdir", "out", "runs.txt")
                if line > 0:
                    self.assertEqual((ended.code, ended.out.split(b":")[0]), (0, b"line %d" % line))
                elif line == 0:
                    self.assertRefused(ended, "runs.txt: ", "no job")
                else:
                    self.assertRefused(ended, "is lines 2, 3", "(give the number of one)")

    def test_runs_of_another_command_under_its_number_are_none_of_its(self) -> None:
        self.write("d b\nd a\n")
        self.journal(*pair(1, 1, "a"), *pair(2, 2, "b"), *pair(3, 1, "b", BEGAN + 9), start(4, 1, "x"))
        told = self.shown(1, err=r"runwait4.py: runs.txt: 2 runs of other commands, which line 1 had before, "
                                 r"left out\n")
        self.assertEqual((told.count("\nrun "), told.split("\n")[0]), (2, "line 1: done, 2 runs"))

    def test_of_equal_lines_each_has_the_runs_that_are_nearest(self) -> None:
        self.write("d a\n\n\n\n\nd a\n")
        self.journal(*pair(1, 2, "a"), *pair(2, 5, "a"), *pair(3, 9, "a", BEGAN + 9))
        told = [json.loads(self.shown(line, "--json"))["runs"] for line in (1, 6)]
        self.assertEqual([[run["line"] for run in runs] for runs in told], [[2], [5, 9]])

    def test_a_line_that_moved_has_the_runs_from_before(self) -> None:
        self.write(". echo moved\n")
        self.ran()
        self.write(b"# a note\n" + self.read())
        self.assertIn("run 1: exit 0", self.shown(2))

    def test_what_is_missing_is_said_in_a_line(self) -> None:
        self.write("d a\n")
        (self.dir / "old").mkdir()
        here = "--outdir", "old"
        one = "--show", "1"
        for options, words in (
            ((*one, "runs.txt"), "--show needs --outdir DIR, of jobs that were run with runmaker4.py"),
            ((*one, "--outdir", "no", "runs.txt"), "no: no such directory"),
            ((*one, *here, "runs.txt"), "old: has no journal"),
            ((*one, *here), "FILE"),
            (("--show", "", *here, "runs.txt"), "is empty"),
            ((*one, "--status", *here, "runs.txt"), "--status and --show do not go together"),
            ((*one, "-e", *here, "runs.txt"), "--show and -e do not go together"),
            ((*one, "--report", "x", *here), "--report and --show do not go together"),
            ((*one, "--timeline", "x", *here), "--timeline goes with"),
            ((*one, "--follow", *here, "runs.txt"), "unrecognized arguments: --follow"),
            (("--stats", "runs.txt"), "--stats needs --outdir DIR, of jobs that were run with runmaker4.py"),
        ):
            with self.subTest(options):
                self.assertRefused(self.runwait(*options), words)


class Output(ShowCase):
    """Whatever a run has printed is fit to be shown, and what is gone is said."""

    def output(self, data: bytes, **fields: Any) -> list[str]:
        """What is shown of a run that has printed this to stdout."""
        self.write("d a\n")
        self.journal(end(1, 1, "a", files=["1.out"], bytes=len(data), **fields))
        self.write(data, "out/1.out")
        return self.shown(1).splitlines()[6:]

    def test_any_bytes(self) -> None:
        self.assertEqual(self.output(b"\0\x1b[2J\xff\xc3\xa9\x9b\n\n10%\r20%\r\nlast"),
                         ["  | ??[2J\udcff\u00e9?", "  | ", "  | 20%", "  | last"])

    def test_only_the_end_of_a_large_file_is_read(self) -> None:
        self.output(b"")
        with open(self.dir / "out/1.out", "r+b") as file:
            file.truncate(1 << 36)
            file.seek(0, os.SEEK_END)
            file.write(b"\nnext to last\nlast\n")
        told = self.shown(1).splitlines()
        self.assertEqual((told[5][:14], told[-2:]), ("stdout, 69 GB:", ["  | next to last", "  | last"]))
        self.assertLess(max(map(len, told[6:])), 600)

    def test_files_that_cannot_be_shown(self) -> None:
        self.write("d a\n")
        names = ["gone.out", "fifo.err"]
        self.journal(end(1, 1, "a", files=names))
        os.mkfifo(self.dir / "out/fifo.err")
        self.assertEqual(self.shown(1).splitlines()[5:], [
            "(stdout: out/gone.out: is not there any more)", "(stderr: out/fifo.err: is no file of output)"])
        self.journal(end(1, 1, "a", files=["../runs.txt", "link.err"], incomplete=True))
        (self.dir / "out/link.err").symlink_to("/etc/passwd")
        told = self.shown(1).splitlines()
        self.assertIn("printed 4 B (not all of it could be written): ", told[4])
        self.assertEqual(len(told), 7)
        self.assertTrue(all(line.startswith("(std") for line in told[5:]), told)


if __name__ == "__main__":
    unittest.main()
