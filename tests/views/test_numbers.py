"""Promise: runwait4.py --output and --csv have what each last run has printed, whole, and as a table."""
import argparse
import csv
import io
import itertools
import json
import os
import random
import unittest
import unittest.mock
from typing import Any

import runmaker4
import runset4
import runwait4
from tests.support.case import GATE
from tests.support.journal import end, pair, start
from tests.support.processes import Ended
from tests.support.scripts import FULL, PYTHON, ROOT, RUNMAKER, RUNSET, RUNWAIT, program_of
from tests.support.telling import TellingCase
from tests.support.terminal import Terminal


class OutputCase(TellingCase):

    def output(self, *options: object) -> Ended:
        return self.run_script(RUNWAIT, "--output", *options, "--outdir", "out", "runs.txt")

    def table(self, *options: str, err: str = "") -> list[list[str]]:
        """The rows of --csv, the header first."""
        told = self.told("--output", "--csv", *options, "--outdir", "out", "runs.txt", err=err)
        return [*csv.reader(io.StringIO(told, newline=""), strict=True)]

    def cells(self, *options: str) -> list[dict[str, str]]:
        told = self.told("--output", "--csv", *options, "runs.txt")
        return [*csv.DictReader(io.StringIO(told, newline=""))]

    def objects(self, *options: str, err: str = "") -> list[dict[str, Any]]:
        told = self.told("--output", "--json", *options, "--outdir", "out", "runs.txt", err=err)
        return [json.loads(line) for line in told.splitlines()]


class Whole(OutputCase):
    """The stdout of the last run of each done line, wherever it is."""

    def test_short_and_long_output_of_repaired_jobs(self) -> None:
        self.write(". echo a; echo error >&2\n"
                   ". seq 3000; [ -e fixed ] || exit 3; echo last\n"
                   ". printf 'no newline'\n"
                   ". echo in; until [ -s runs.txt.out/4.out ]; do sleep 0.02; done; echo a file; "
                   "echo error >&2\n"
                   ". true\n"
                   r". printf '\377\0\r\n'; printf b" "\n")
        self.assertEqual(self.run_script(RUNMAKER, "-q", "-j6", "runs.txt").code, 1)
        ended = self.run_script(RUNWAIT, "--output", "runs.txt")
        self.assertEqual(ended.out, b"a\nno newline\nin\na file\n\xff\0\r\nb")
        self.assertComplained(ended, b"runwait4.py: runs.txt: not done, and left out: line 2 (--csv and "
                                     b"--json have all lines)\n")
        self.write("", "fixed")
        self.assertEqual(self.run_script(RUNMAKER, "-q", "-r", "runs.txt").code, 0)
        ended = self.run_script(RUNWAIT, "--output", "runs.txt")
        numbers = b"".join(b"%d\n" % number for number in range(1, 3001))
        self.assertEqual((ended.code, ended.err), (0, b""))
        self.assertEqual(ended.out, b"a\n" + numbers + b"last\nno newline\nin\na file\n\xff\0\r\nb")
        self.assertEqual(self.run_script(RUNWAIT, "--output", "runs.txt", "3").out, b"no newline")

    def assertComplained(self, ended: Ended, words: bytes) -> None:
        self.assertEqual((ended.code, ended.err), (1, words))

    TOO_LONG = (b"runwait4.py: runs.txt: the output is not complete: line 2 (out/2.out: too long for a cell, "
                b"which is empty; see --show LINE)\n")

    def test_a_terminal_gets_no_control_sequence_but_colours(self) -> None:
        """Wherever a long output is cut into blocks."""
        self.write("d a\nd b\nd c\nd d\n")
        block = b"x" * 79 + b"\n"
        long = block * (runmaker4.BLOCK // 80) + b"y" * (runmaker4.BLOCK % 80 - 1) + b"\x1b[2Jz\n"
        printed = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\nplain\n", "50 %\r100 %\r\n", "tail\x9b2J"
        self.journal(*(end(number, number, name, files=[], stdout=text)
                       for number, name, text in zip((1, 2, 3), "abc", printed)),
                     end(4, 4, "d", files=["4.out"], bytes=len(long)))
        self.write(long, "out/4.out")
        terminal = Terminal(200)
        self.addCleanup(terminal.close)
        process = self.start(RUNWAIT, "--output", "--outdir", "out", "runs.txt", stdout=terminal.slave)
        shown = ""
        while process.poll() is None:
            shown += terminal.unread()
        shown = (shown + terminal.unread()).replace("\r\n", "\n")
        end_colour = "\x1b[0m\n"
        lines = "\x1b[31mred", "plain", "100 %", "tail2J", "x" * 16
        self.assertEqual(shown[:60], end_colour.join(lines))
        self.assertRegex(shown[-100:], r"x(\x1b\[0m)?\ny*z\n$")
        self.assertEqual(self.output().out, "".join(printed).encode() + b"\n" + long)

    def test_one_that_is_too_long_for_a_cell_is_empty_there_and_its_file_is_named(self) -> None:
        self.write("d a\nd b\nd c\n")
        texts = "12345", "123456", "c\n"
        self.journal(*(end(line, line, "abc"[line - 1], files=[f"{line}.out"], bytes=len(text))
                       for line, text in enumerate(texts, 1)))
        for line, text in enumerate(texts, 1):
            self.write(text, f"out/{line}.out")
        patch = "import runwait4\nrunwait4.OutputOfLines.MAX_CELL_BYTES = 5"
        words = "-c", program_of(RUNWAIT, ROOT / RUNWAIT, patch), "--output", "--outdir", "out", "runs.txt"
        ended = self.run_script(PYTHON, *words, "--csv")
        self.assertComplained(ended, self.TOO_LONG)
        rows = csv.DictReader(io.StringIO(ended.out.decode(), newline=""))
        self.assertEqual([row["stdout"] for row in rows], ["12345", "", "c"])
        ended = self.run_script(PYTHON, *words, "--json")
        self.assertComplained(ended, self.TOO_LONG)
        self.assertEqual([json.loads(line)["stdout"] for line in ended.out.splitlines()],
                         ["12345", "", "c\n"])
        ended = self.run_script(PYTHON, *words)
        self.assertEqual((ended.code, ended.err, ended.out), (0, b"", b"12345\n123456\nc\n"))

    def test_its_size_does_not_matter(self) -> None:
        self.write("d a\nd b\n")
        self.journal(end(1, 1, "a", files=[], stdout="a\n"), end(2, 2, "b", files=["2.out"], bytes=1 << 40))
        self.write("", "out/2.out")
        os.truncate(self.dir / "out/2.out", 1 << 40)
        for kind in "--csv", "--json":
            words = self.command(RUNWAIT, "--output", kind, "--outdir", "out", "runs.txt")
            ended = self.run_script("sh", "-c", 'ulimit -v 250000; exec "$@"', "sh", *words)
            self.assertComplained(ended, self.TOO_LONG)

    def test_files_of_two_servers_are_one_output(self) -> None:
        self.write("d a\n")
        self.journal(start(1, 1, "a", files=["1.out"]), start(1, 1, "a", files=["1.out.~1~"]),
                     end(1, 1, "a", files=["1.out.~1~", "1.err"], stdout="and the rest\n"))
        for name, text in ("1.out", "first\n"), ("1.out.~1~", "second\n"), ("1.err", "error\n"):
            self.write(text, f"out/{name}")
        self.assertEqual(self.output().out, b"first\nsecond\nand the rest\n")

    def test_lines_are_selected_as_with_show(self) -> None:
        self.write("d a\nd b\n! bc\nd c\n")
        self.journal(*(end(line, line, name, files=[], stdout=f"{name}\n")
                       for line, name in enumerate(("a", "b", "bc", "c"), 1)))
        for selection, out, err in (("2,4", b"b\nc\n", b""), ("c", b"c\n", b""),
                                    ("b*", b"b\n", b"not done, and left out: line 3"),
                                    ("7", b"", b"no job matches '7'")):
            with self.subTest(selection):
                ended = self.run_script(RUNWAIT, "--output", "--outdir", "out", "runs.txt", selection)
                self.assertEqual(ended.out, out)
                self.assertIn(err, ended.err)

    def test_what_is_missing_is_said(self) -> None:
        self.write("d gone\nd full\nd unknown\nd ending\nd fine\nx held\n")
        self.journal(end(1, 1, "gone", files=["1.out"]),
                     end(2, 2, "full", files=[], stdout="part\n", incomplete=True),
                     start(4, 4, "ending"), end(5, 5, "fine", files=[], stdout="fine\n"))
        for options in (), ("--csv",), ("--json",):
            ended = self.output(*options)
            self.assertComplained(ended, b"runwait4.py: runs.txt: the output is not complete: lines 1, 2, 3, "
                                         b"4 (no such file or directory, some could not be written, no "
                                         b"recorded run: edited or set by hand, stopped between tries or "
                                         b"with its group, or its record was not kept, or is in another "
                                         b"--outdir; see --show LINE)\n"
                                  + (b"" if options else b"runwait4.py: runs.txt: not done, and left out: "
                                                         b"line 6 (--csv and --json have all lines)\n"))
            self.assertIn(b"part\nfine\n" if not options else b"fine", ended.out)

    def test_a_file_that_was_cut_or_is_of_another_run(self) -> None:
        self.write("d a\nd b\nd c\n")
        self.journal(*(end(line, line, name, files=["1.out", "1.err"], bytes=size)
                       for line, name, size in ((1, "a", 7), (2, "b", 6), (3, "c", 9))))
        self.write("out\n", "out/1.out")
        self.write("er\n", "out/1.err")
        self.assertComplained(self.output(), b"runwait4.py: runs.txt: the output is not complete: lines 2, 3 "
                              b"(its files are of another size than what it has printed; see --show LINE)\n")

    def test_a_file_of_stderr_that_was_removed_is_not_missed(self) -> None:
        self.write("d a\n")
        self.journal(end(1, 1, "a", files=["1.err", "1.out"], bytes=7))
        self.write("out\n", "out/1.out")
        self.assertEqual((self.output().code, self.output().out), (0, b"out\n"))

    def test_a_line_that_is_done_after_the_journal_was_opened(self) -> None:
        self.write(". a\n")
        self.journal(end(0, 7, "other"))
        out, path = self.dir / "out", self.dir / "runs.txt"
        options = runwait4.parse_options(["--output", "--outdir", str(out), str(path)])
        watcher = runwait4.Watcher(options.file)
        with runwait4.Observation(watcher, options, self.fail) as observation:
            self.write("d a\n")
            (lines,) = runwait4.batches_of_lines(watcher, None)
            with open(out / "journal", "ab") as file:
                file.write(end(1, 1, "a", files=[]))
            (row,) = observation.last_rows(lines)
            self.assertEqual(row.run and row.run.state, "d")


class Batches(OutputCase):
    """A few lines are in memory at once, also while somebody edits."""

    def test_the_output_is_the_same_as_with_one_batch(self) -> None:
        commands = [f"{number % 7}" if number % 3 else f"own {number}" for number in range(40)]
        self.write("".join(f"d {command}\n# {command}\n" for command in commands))
        self.journal(*(line for number, command in enumerate(commands)
                       for line in pair(number, 2 * number + 1, command, files=[], stdout=f"{number}\n")))
        views = []
        for size in 50_000, 7, 1:
            with unittest.mock.patch.object(runwait4, "MAX_LINES", size):
                views.append([self.view("--output", *options) for options in ((), ("--csv",), ("--json",))])
        self.assertEqual(views, views[:1] * 3)
        self.assertEqual(views[0][0], "".join(f"{number}\n" for number in range(40)))

    def test_lines_that_an_edit_moves_between_two_batches_come_once(self) -> None:
        lines = [f"d {number}\n" for number in range(10)]
        self.write("".join(lines))
        watcher = runwait4.Watcher(str(self.dir / "runs.txt"))
        with unittest.mock.patch.object(runwait4, "MAX_LINES", 4):
            batches = runwait4.batches_of_lines(watcher, None)
            found = [line.command for line in next(batches)]
            self.write("".join(["d zero\n", *lines[1:4], "d four\n", *lines[5:]]))
            found += [line.command for line in itertools.chain.from_iterable(batches)]
        self.assertEqual(b" ".join(found), b"0 1 2 3 four 5 6 7 8 9")


class Tables(OutputCase):
    """A row or an object for each line, whatever its state is."""

    def test_each_state(self) -> None:
        self.write("# comment\n. new\n\nd done\n! failed\ne error\nx held\n. again\nc cancelled\n"
                   "c when new\n")
        killed = {"exit": -1, "signal": 9}
        runs: list[tuple[int, str, str, dict[str, int]]] = [
            (4, "done", "d", {}), (5, "failed", "!", {}), (6, "error", "e", killed), (7, "held", "d", {}),
            (8, "again", "!", {"incomplete": True}), (9, "cancelled", "c", killed),
            (10, "when new", "d", {})]
        self.journal(*(end(line, line, name, state=state, files=[], stdout=f"{name}\n", **more)
                       for line, name, state, more in runs))
        nothing = ["", "", ""]
        self.assertEqual(self.table(), [
            ["line", "state", "exit", "seconds", "host", "command", "stdout"],
            ["2", "new", *nothing, "new", ""],
            ["4", "done", "0", "1.5", "node1", "done", "done"],
            ["5", "failed", "3", "1.5", "node1", "failed", "failed"],
            ["6", "error", "", "1.5", "node1", "error", "error"],
            ["7", "held", "0", "1.5", "node1", "held", "held"],
            ["8", "new", *nothing, "again", ""],
            ["9", "cancelled", "", "1.5", "node1", "cancelled", "cancelled"],
            ["10", "cancelled", *nothing, "when new", ""],
        ])
        none = dict.fromkeys(("exit", "seconds", "host", "stdout"))
        self.assertEqual([*map(dict, self.objects())][:3], [
            {**none, "line": 2, "state": "new", "command": "new"},
            {"line": 4, "state": "done", "exit": 0, "seconds": 1.5, "host": "node1", "command": "done",
             "stdout": "done\n"},
            {"line": 5, "state": "failed", "exit": 3, "seconds": 1.5, "host": "node1", "command": "failed",
             "stdout": "failed\n"},
        ])

    def test_one_that_runs_has_no_output_yet(self) -> None:
        self.start_to_gate(f". echo first; {GATE}\n. second\n")
        self.addCleanup(self.open_gate)
        self.assertEqual([(cells["state"], cells["exit"], cells["stdout"]) for cells in self.cells()],
                         [("running", "", ""), ("new", "", "")])

    def test_any_text_comes_back(self) -> None:
        texts = ["a,b", 'say "hi"', "two\nlines", "bar 1%\rbar 2%", "\r\n\r\n.", " blank ", "é\udcff",
                 "\t", "0x1f", "=1+1"]
        self.write("".join(f"d {number}\n" for number in range(len(texts))))
        self.journal(*(end(number, number + 1, f"{number}", files=[], stdout=f"{text}\n\n")
                       for number, text in enumerate(texts)))
        named = r"runwait4.py: runs.txt: not UTF-8: line 7 \(many programs refuse .*\)\n"
        self.assertEqual([row[-1] for row in self.table(err=named)[1:]], texts)
        self.assertEqual([fields["stdout"] for fields in self.objects(err=named)],
                         [f"{text}\n\n" for text in texts])


class Backwards(OutputCase):
    """--template gives back the values from which a table's lines were made."""

    def test_a_table_goes_in_and_comes_back_with_its_results(self) -> None:
        rows = [["beta", "n", "a note"], ["0.1", "7", "it's"], ["0.2", "8", 'x, "y" $z `w`'],
                ["-3e5", "", "*?~"], ["0.3", "9", "é \\"]]
        with open(self.dir / "params.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
        template = "printf %s= {a note} {n} > n_{n}.log; printf %s. {a note} {beta}"
        added = self.run_script(RUNSET, "runs.txt", "--add-list", "params.csv", "--template", template)
        self.assertEqual(added.code, 0)
        self.assertEqual(self.run_script(RUNMAKER, "-q", "runs.txt").code, 0)
        for cells, (beta, number, note) in zip(self.cells("--template", template), rows[1:]):
            self.assertEqual([*cells][5:8], ["a note", "n", "beta"])
            self.assertEqual((cells["beta"], cells["n"], cells["a note"], cells["stdout"]),
                             (beta, number, note, f"{note}.{beta}."))
        self.assertEqual(len(self.cells()), 4)

    def test_random_values_are_right_or_unknown(self) -> None:
        """Two places beside each other are not always told apart; then nothing is said."""
        chance = random.Random(55)
        read = 0
        parts = ["{1}", "{2}", "{3}", " ", "_", "x", ".", " --b=", "'q {1}' ", "(", "+", "{1}>f ", " {2}<f ",
                 "$X{3}", "a={2}=", "'", "{#}", "; {3} "]
        for seed in range(3000 if FULL else 1000):
            template = "".join(chance.choices(parts, k=chance.randint(1, 7)))
            values = ["".join(chance.choices("ab_x.'\" \\$1é+=,:", k=chance.randint(0, 4))) for _ in range(3)]
            try:
                parsed = runset4.parse_template(f"sim {template}")
                found = runset4.TemplateReader(f"sim {template}")
            except argparse.ArgumentTypeError:
                continue
            command = runset4.fill_template(parsed, 1, [b"v"], [value.encode() for value in values])
            for name, value in zip(found.names, found.find_values(command)):
                wanted = "v" if name == "value" else "1" if name == "#" else values[int(name) - 1]
                self.assertIn(value, (wanted, None), (seed, template, command))
                read += value is not None
        self.assertGreater(read, seed // 3)

    def test_what_the_writer_quotes_the_reader_takes(self) -> None:
        chance = random.Random(63)
        places = ("{1}>{2}.log", "{2}<f", "$X{1}", "$X:{2}", "{1}", "--n={2}", "{{1}}", "[[ {2} ]]", "{#}>f",
                  "; {1}")
        for _ in range(1000 if FULL else 300):
            template = f"sim {' '.join(chance.choices(places, k=4))} {{1}} {{2}}"
            values = ["".join(chance.choices("17a=:,.-'\" ", k=chance.randint(0, 3))) for _ in range(2)]
            values[1] = chance.choice([values[1], "1", "if", "x=1", "=ls"])
            parsed = runset4.parse_template(template)
            command = runset4.fill_template(parsed, 1, [b"v"], [*map(str.encode, values)])
            found = runset4.TemplateReader(template)
            cells = dict(zip(found.names, found.find_values(command)))
            self.assertEqual([cells["1"], cells["2"]], values, (template, command))

    def test_other_commands_have_empty_cells(self) -> None:
        commands = ["sim 1 1_2", "sim 1 3_2", "sim 1", "sim 1 1_2; rm x", "sim $x $x_2", "sim '1' 1_2",
                    'sim "1" "1"_2', "sim a_b a_b_c", "sim 1 1_2_3", "sim 1 1_2 "]
        self.write("".join(f". {command}\n" for command in commands))
        self.journal()
        fits_not = (r"runwait4.py: runs.txt: --template does not fit, or fits in several ways: lines 2, 3, "
                    r"4, 5, 6, 10 \(their values are empty\)\n")
        found = [(row[5], row[6]) for row in self.table("--template", "sim {a} {a}_{b}", err=fits_not)[1:]]
        nothing = "", ""
        self.assertEqual(found, [("1", "2"), nothing, nothing, nothing, nothing, nothing, ("1", "2"),
                                 ("a_b", "c"), ("1", "2_3"), nothing])
        self.assertEqual(self.objects("--template", "sim {a} {a}_{b}", err=fits_not)[1]["a"], None)

    def test_a_file_without_jobs_is_a_table_without_rows(self) -> None:
        self.write("# none\n")
        self.journal()
        self.assertEqual(len(self.table("--template", "sim {a}")), 1)

    def test_a_template_that_fits_no_line_is_named(self) -> None:
        self.write(". sim 1 2\n. sim 3 4\n")
        self.journal()
        for options in ("--csv",), ("--json",):
            ended = self.output(*options, "--template", "sim {a}")
            self.assertEqual((ended.code, ended.err), (
                1, b"runwait4.py: runs.txt: --template does not fit, or fits in several ways: lines 1, 2 "
                   b"(their values are empty)\n"))

    def test_bad_input_is_refused_in_one_line(self) -> None:
        self.write("d a\n")
        for options, words in (
            (("--csv",), "--csv requires --output"),
            (("--template", "sim {a}"), "--template requires --output"),
            (("--output", "--template", "sim {a}"), "--template requires --json or --csv"),
            (("--output", "--csv", "--json"), "--json and --csv exclude each other"),
            (("--output", "--failed"), "--failed and --output exclude each other"),
            (("--output", "-e"), "--output and -e exclude each other"),
            (("--output", "--csv", "--template", "sim {host}"),
             "--template: two columns host (the table has one; write another name)"),
            (("--output", "--csv", "--template", "sim '{1}'"), "--template: {1} is within quotes"),
            (("--output", "--csv", "--template", ". sim {a}"),
             "--template: '. sim {a}' is a complete job line"),
            (("--output", "--csv", *2 * ("--template", "sim {a}")), "two --template (give one)"),
            (("--output", "--outdir", "nowhere"), "nowhere/journal: no such file or directory"),
        ):
            with self.subTest(options):
                self.assertRefused(self.run_script(RUNWAIT, *options, "runs.txt"), words)
        self.assertRefused(self.run_script(RUNWAIT, "--output"), "missing FILE")
        self.assertEqual(os.listdir(self.dir), ["runs.txt"])
