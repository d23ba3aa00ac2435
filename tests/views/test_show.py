"""Promise: runwait4.py --show tells what became of lines, run by run."""
import json
import os
import re
from typing import Any

from tests.support.case import GATE
from tests.support.journal import BEGAN, end, pair, start
from tests.support.line_locks import hold_line
from tests.support.processes import Ended, wait_until
from tests.support.scripts import RUNMAKER
from tests.support.telling import TellingCase

WHEN = re.compile(r"[A-Z][a-z]{2} \d\d \d\d:\d\d|\d\d:\d\d:\d\d")


class ShowCase(TellingCase):

    def shown(self, line: object, *options: str) -> str:
        """What is told of a line, with the times of day blotted out."""
        return WHEN.sub("WHEN", self.told("--show", line, *options, "--outdir", "out", "runs.txt"))

    def rows(self, line: object) -> list[dict[str, Any]]:
        """The same for programs."""
        found: list[dict[str, Any]] = json.loads(self.shown(line, "--json"))["runs"]
        return found

    def heads(self, line: object) -> list[str]:
        """How each of its runs ended."""
        return re.findall(r"(?m)^line \d+: (.*)", self.shown(line))

    def ran(self, *options: object) -> Ended:
        """Run runs.txt to its end, with out/."""
        return self.run_script(RUNMAKER, "-q", "--outdir", "out", *options, "runs.txt")

    def wait_journal(self, what: bytes, count: int = 1) -> None:
        wait_until(lambda: self.read("out/journal").count(what) >= count, what=f"{what!r} in the journal")


class Runs(ShowCase):
    """All runs of a line, and the end of what each has printed."""

    def test_each_try_is_told_and_its_last_lines(self) -> None:
        self.write(". for i in $(seq 12); do echo line $i; done; printf part; exit 3\n. true\n")
        self.ran("--retries", "1")
        told = re.sub(r"after .*|process \d+, in [^,]*|CPU [^,]*", "...", self.shown(1)).splitlines()
        command = f"    {self.read().splitlines()[0][2:].decode()}"
        tail = [*(f"  | line {number}" for number in range(4, 13)), "  | part"]
        self.assertEqual(
            [re.sub(r"on \S+,", "on here,", line) for line in told],
            [line for name in ("1.out", "1.out.~1~")
             for line in ("line 1: exit 3 on here, WHEN, ...", command,
                          f"    slot 1, ..., ..., printed 91 B: out/{name}", *tail)],
        )
        self.assertRegex(self.shown(2), r"^line 2: exit 0 .*\n    true\n    .* printed nothing\n$")

    def test_as_json(self) -> None:
        self.write(". printf abc; [ -e second ] || { : >second; exit 3; }\n. true\n")
        self.ran("--retries", "1")
        runs = self.rows(1)
        told = [(run["line"], run["state"], run["outcome"], run["exit"], run["files"]) for run in runs]
        self.assertEqual(told, [(1, "done", "failed", 3, ["1.out"]), (1, "done", "done", 0, ["1.out.~1~"])])
        for run in runs:
            self.assertEqual(run["command"], self.read().splitlines()[0][2:].decode())
            self.assertAlmostEqual(run["end"] - run["start"], run["seconds"], 2)
            self.assertEqual((run["bytes"], run["signal"], run["cause"]), (3, None, ""))
        self.assertEqual(self.rows("p*"), runs)

    def test_what_a_line_is_now_if_its_last_run_does_not_tell(self) -> None:
        commands = "done", "cancelled", "put back", "unstarted", "lost", "odd", "again", "kept"
        path = self.write("".join(f"{state} {command}\n" for state, command in zip("dx.eer.x", commands)))
        os.utime(path, (BEGAN, BEGAN))
        ends: list[dict[str, Any]] = [{}, {"cause": "cancelled", "signal": 15, "exit": -1, "state": "c"},
                                      {"signal": 15, "exit": -1, "state": "."},
                                      {"pid": 0, "exit": -1, "state": "e"}]
        self.journal(*[end(line, line, command, files=[], **ends[line - 1])
                       for line, command in enumerate(commands[:4], 1)], start(5, 5, "lost"),
                     start(6, 6, "odd"), end(7, 7, "again"), end(8, 8, "kept", state="!"))
        wanted = ["exit 0", "cancelled", "put back, signal 15 (SIGTERM)", "could not be started", "lost",
                  "lost", "new; last run: exit 0", "held; last run: exit 3"]
        self.assertEqual([head.partition(" on ")[0] for head in self.heads("*")], wanted)
        self.assertRegex(self.shown(5), r"\n    slot 1, process 4712, output unknown\n$")

    def test_one_that_runs_is_told_so_far(self) -> None:
        self.start_to_gate(f". echo hello; {GATE}\n", "--outdir", "out")
        self.addCleanup(self.open_gate)
        self.wait_journal(b'"start"')
        self.wait_journal(b'"files"')
        self.assertRegex(self.shown(1), r"^line 1: running on \S+, began WHEN, \S+ ago\n    echo hello.*\n"
                                        r"    slot 1, .*, printed 6 B: out/1\.out\n  \| hello\n$")
        (run,) = self.rows(1)
        self.assertEqual((run["outcome"], run["end"], run["exit"], run["bytes"], run["files"]),
                         ("running", None, None, 6, ["1.out"]))
        self.assertEqual(self.status("--outdir", "out")["jobs"][0]["files"], ["1.out"])
        self.assertGreater(run["seconds"], 0)

    def test_a_cancelled_one_that_lives_still_runs(self) -> None:
        self.write("x a\n")
        hold_line(self, 1)
        self.journal(start(1, 1, "a"))
        self.assertRegex(self.shown(1), r"^line 1: held; last run: running on node1, ")

    def test_one_that_has_not_run(self) -> None:
        self.write(". a\n. b\n")
        self.journal(*pair(1, 1, "a"))
        waits = "no runner is at work (start runmaker4.py)"
        self.assertEqual(self.shown(2), f"line 2: new; no run in the journal\n    {waits}\n    b\n")
        (row,) = self.rows(2)
        self.assertEqual({key: row[key] for key in row if row[key] is not None},
                         {"line": 2, "command": "b", "state": "new", "waits": waits})

    def test_a_terminal_is_not_too_narrow(self) -> None:
        self.write("! a\x1b[31m" + "long" * 40 + "\n")
        self.journal(end(1, 1, self.read()[2:-1], state="!", host="\x1b" + "host" * 5, exit=139))
        self.write("\x1b[31mred\n" + "x" * 200, "out/1.out")
        for columns in (80, 40):
            lines = self.at_terminal(columns, "--show", "1", "--outdir", "out", "runs.txt")
            # the line was asked for, so its command is complete; the terminal wraps it
            text = "".join(lines)
            self.assertIn("    a?[31m" + "long" * 40, text)
            lines = [line for line in lines if "long" not in line]
            self.assertLess(max(map(len, lines)), columns)
            self.assertIn("  | red", lines)
            self.assertIn("out/1.err", " ".join(lines))
            lines = self.at_terminal(columns, "--failed", "--outdir", "out", "runs.txt")
            self.assertLess(max(map(len, lines)), columns)


class Lines(ShowCase):
    """Which lines are meant, and which runs are theirs."""

    def test_they_are_named_by_a_number_a_command_or_a_pattern(self) -> None:
        self.write("# 1\nd simulate --seed 1\n! simulate --seed 2\nx simulate --seed *\nd 17\n")
        self.journal(*pair(1, 2, "simulate --seed 1"))
        for wanted, lines in (("2", [2]), ("simulate --seed 1", [2]), ("*seed 2", [3]),
                              ("simulate --seed *", [4]), ("*17", [5]), ("simulate --seed [12]", [2, 3]),
                              ("*", [2, 3, 4, 5]), ("[x]17", []), ("17", []), ("1", []), ("0", []),
                              ("9" * 30, []), ("1-3", [2, 3]), ("3,5", [3, 5]), ("4-99,2", [2, 4, 5]),
                              ("4-" + "9" * 30, [4, 5]), ("3,2-3,3", [2, 3]),
                              ("6-9", []), ("5-4", []), ("1-", [])):
            with self.subTest(wanted):
                if lines:
                    self.assertEqual([row["line"] for row in self.rows(wanted)], lines)
                else:
                    ended = self.runwait("--show", wanted, "--outdir", "out", "runs.txt")
                    self.assertRefused(ended, f"runs.txt: no job matches '{wanted}'")

    def test_of_several_numbers_the_one_that_is_no_job_is_named(self) -> None:
        self.write("d a\nd b\n# none\n")
        self.journal(*pair(1, 1, "a"))
        for wanted, word in ("1,3", "3"), ("1-2,7-9", "7-9"):
            ended = self.runwait("--show", wanted, "--outdir", "out", "runs.txt")
            self.assertRefused(ended, f"runs.txt: no job matches '{word}'")

    def test_what_is_missing_is_said_in_a_line(self) -> None:
        self.write("d a\n")
        self.journal()
        (self.dir / "old").mkdir()
        here = "--outdir", "old"
        one = "--show", "1"
        for options, words in (
            ((*one, "--outdir", "no", "runs.txt"), "no/journal: no such file or directory"),
            ((*one, *here, "runs.txt"), "old/journal: no such file or directory"), ((*one, *here), "FILE"),
            (("--show", "", *here, "runs.txt"), "is empty"),
            ((*one, "--status", *here, "runs.txt"), "--show and --status exclude each other"),
            ((*one, "-e", *here, "runs.txt"), "--show and -e exclude each other"),
            ((*one, "--report", "x", *here, "runs.txt"), "--report and --show exclude each other"),
            ((*one, "--timeline", "x", *here), "--show and --timeline exclude each other"),
            (("--stats", "runs.txt"), "runs.txt.out/journal: no such file or directory (expected the"),
            (("--timeline", "x", "runs.txt"), "runs.txt.out/journal: no such file or directory"),
            (("--report", "x", "runs.txt"), "runs.txt.out: no runs"), (("--timeline", "x"), "missing FILE"),
            (("--report", "x", "--outdir", "out"), "missing FILE"),
            (("--report", "x", "--outdir", "out", "runs.txt"), "out: no runs"),
            (("--report", "x", "--stats", "--progress", "runs.txt"), "--progress and --stats exclude"),
            (("--json", "runs.txt"), "--json requires one of --status, --failed, --show, --output, "),
            (("--outdir", "out"), "--outdir requires one of --timeline, --report, --progress, --status"),
            (("--check-locks", ".", "--outdir", "out"), "--check-locks and --outdir exclude each other")
        ):
            with self.subTest(options):
                self.assertRefused(self.runwait(*options), words)


class Output(ShowCase):
    """Whatever a run has printed is fit to be shown, however much it is."""

    def output(self, data: bytes) -> list[str]:
        """What is shown of a run that has printed this to stdout."""
        self.write("d a\n")
        self.journal(end(1, 1, "a", files=["1.out"], bytes=len(data)))
        self.write(data, "out/1.out")
        return self.shown(1).splitlines()[3:]

    def test_any_bytes(self) -> None:
        self.assertEqual(self.output(b"\0\x1b[2J\xff\xc3\xa9\x9b\n\n10%\r20%\r\nlast"),
                         ["  | ?\udcff\u00e9?", "  | 20%", "  | last"])

    def test_only_the_end_of_a_large_file_is_read(self) -> None:
        self.output(b"")
        with open(self.dir / "out/1.out", "r+b") as file:
            file.truncate(1 << 36)
            file.seek(0, os.SEEK_END)
            file.write(b"\nnext to last\nlast\n")
        told = self.shown(1).splitlines()
        self.assertEqual(told[-2:], ["  | next to last", "  | last"])
        self.assertLess(max(map(len, told)), 600)


class Waits(ShowCase):
    """Why a new line waits, and what a failed one stops."""

    def setUp(self) -> None:
        super().setUp()
        self.journal()

    def assertWaits(self, text: str, line: int, told: str) -> None:
        self.write(text)
        (row,) = self.rows(line)
        self.assertEqual(re.sub(r" \(in [^)]*\)", "", str(row["waits"])), told)
        shown = self.shown(line)
        self.assertIn(f"    {row['waits']}\n", shown)

    def test_a_step_names_the_steps_above_and_the_line_that_is_the_root(self) -> None:
        steps = "#RUN name=a\n{} 2\n#RUN name=b after=a\n. 4\n. 5\n#RUN name=c after=b\n. 7\n"
        for state, line, told in (("!", 4, "waits for a: line 2 failed"),
                                  ("p", 5, "waits for a: line 2 is held"),
                                  ("!", 7, "waits for b: line 2 failed"),
                                  (".", 5, "waits for a: line 2 is not done"),
                                  (".", 7, "waits for b: line 4 is not done, "
                                           "which waits for a: line 2 is not done")):
            with self.subTest(state=state, line=line):
                self.assertWaits(steps.format(state), line, told)
        late = steps.replace("name=a", "name=a from=2100-01-01T00:00").format(".")
        self.assertWaits(late + "#RUN after=c\n. 9\n", 9,
                         "waits for c: line 7 is not done, which waits for b: line 4 is not done, "
                         "which in the end waits for 2100-01-01 00:00 (#RUN in line 1)")

    def test_each_name_of_several_is_told(self) -> None:
        text = "".join(f"#RUN name={name}\n{state} {name}\n" for name, state in zip("abcd", "!ed."))
        self.assertWaits(text + "#RUN after=a,b,c,d\n. 10\n", 10,
                         "waits for b: line 4 ended in error, and for a: line 2 failed, "
                         "and for d: line 8 is not done")

    def test_other_rules_have_the_words_of_the_status(self) -> None:
        for text, line, told in (
                (". 1\n#RUN barrier\n. 3\n. 4\n", 4, "waits at the #RUN barrier in line 2 for line 1"),
                (". 1\n#RUN pause\n. 3\n. 4\n", 4, "paused (#RUN pause in line 2)"),
                ("! 1\n#RUN barrier check\n. 3\n. 4\n", 4,
                 "line 1 failed, and the #RUN barrier check in line 2 stops the jobs below it"),
                (". 1\n#RUN host=bob\n. 3\n. 4\n", 4, "waits for host bob (#RUN in line 2)"),
                (". 1\n#RUN from=2100-01-01T00:00\n. 3\n. 4\n", 4,
                 "waits for 2100-01-01 00:00 (#RUN in line 2)"),
                (". 1\n#RUN host=a together=g\n. 3\n", 3,
                 "waits for the hosts of the group g (#RUN in line 2; runmaker4-server.py starts it)")):
            with self.subTest(text):
                self.assertWaits(text, line, told)

    def test_a_failure_names_the_lines_that_it_stops(self) -> None:
        self.write("#RUN name=a\n! 2\n! 3\n#RUN name=b after=a\n. 5\n. 6\n#RUN after=b\n. 8\n#RUN\n. 10\n")
        failed = self.told("--failed", "--outdir", "out", "runs.txt")
        self.assertEqual(failed.count("stops 3 lines: 5, 6, 8\n"), 1, failed)
        rows = json.loads(self.told("--failed", "--json", "--outdir", "out", "runs.txt"))["runs"]
        self.assertEqual([row["stops"] for row in rows], [[5, 6, 8], None])
