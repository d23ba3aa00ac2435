"""Promise: jq, Miller, node, SQLite, R, pandas and awk read our tables, with every text whole."""
import json
import pathlib
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from tests.support.journal import end
from tests.support.scripts import ROOT, RUNMAKER, RUNWAIT
from tests.support.telling import TellingCase

TEXTS = ["3.5", "a,b", 'say "hi"', "two\nlines", "", " blank ", "é 💀", "007", "=1+1", "NA", "null", "0x1f",
         "\\n", "1e3", "bar 1%\rbar 2%", "\t", "'", "2026-11-30"]
# Debian's pandas is a module of Debian's Python
PANDAS = ["/usr/bin/python3", "-c"]
HAVE_PANDAS = bool(shutil.which(PANDAS[0])) and subprocess.run(
    [*PANDAS, "import pandas"], capture_output=True, check=False).returncode == 0
# each prints a JSON array [line, stdout] for each row of table.json, one after the other or within one array
READ_JSON = {
    "jq": ["jq", "-c", "[.line, .stdout]", "table.json"],
    "mlr": ["mlr", "--ijsonl", "--ojsonl", "cut", "-f", "line,stdout", "table.json"],
    "node": ["node", "-e", """
        for (const text of require("fs").readFileSync("table.json", "utf8").trimEnd().split("\\n")) {
          const row = JSON.parse(text);
          console.log(JSON.stringify([row.line, row.stdout])); }"""],
    "Rscript": ["Rscript", "-e", """
        rows <- jsonlite::stream_in(file("table.json"), verbose = FALSE)
        for (i in seq_len(nrow(rows)))
          cat(as.character(jsonlite::toJSON(list(rows$line[i], rows$stdout[i]), auto_unbox = TRUE)),
              "\\n")"""],
    "pandas": [*PANDAS, "import pandas\n"
               "rows = pandas.read_json('table.json', lines=True, dtype=False)\n"
               "print(rows[['line', 'stdout']].to_json(orient='values'))"],
}
READ_CSV = {
    "mlr": ["mlr", "-S", "--icsv", "--ojsonl", "cut", "-f", "line,stdout", "table.csv"],
    "sqlite3": ["sqlite3", ":memory:", ".mode csv", ".import table.csv rows", ".mode list",
                "select json_array(line, stdout) from rows"],
    "Rscript": ["Rscript", "-e", """
        rows <- read.csv("table.csv", colClasses = "character", na.strings = NULL, encoding = "UTF-8")
        for (i in seq_len(nrow(rows)))
          cat(as.character(jsonlite::toJSON(list(rows$line[i], rows$stdout[i]), auto_unbox = TRUE)),
              "\\n")"""],
    "pandas": [*PANDAS, "import pandas\n"
               "rows = pandas.read_csv('table.csv', dtype=str, keep_default_na=False)\n"
               "print(rows[['line', 'stdout']].to_json(orient='values'))"],
}


class ReaderCase(TellingCase):

    def read_by(self, program: str, command: list[str], codes: Sequence[int] = (0,)) -> str:
        """What a program prints that ends with one of these exit statuses, or a skip that names it."""
        if not (HAVE_PANDAS if program == "pandas" else shutil.which(program)):
            self.skipTest(f"{program} is not installed (`python3 -m tests.real.rigs tools` does that)")
        done = subprocess.run(command, cwd=self.dir, capture_output=True, check=False,
                              env={**self.environ(), "LC_ALL": "C.UTF-8"})
        self.assertIn(done.returncode, codes, done.stderr)
        return done.stdout.decode()

    def rows_by(self, program: str, command: list[str]) -> list[list[Any]]:
        """The rows that a program reads: line and stdout."""
        text, rows = self.read_by(program, command), []
        decoder, at = json.JSONDecoder(), 0
        while at < len(text.rstrip()):
            row, at = decoder.raw_decode(text, at)
            rows.append([*row.values()] if isinstance(row, dict) else row)
            at += len(text) - at - len(text[at:].lstrip())
        return rows if len(rows) > 1 else [*rows[0]]

    def make_tables(self, texts: list[str]) -> None:
        """Write table.json and table.csv of jobs that have printed these texts."""
        self.write("".join(f"d job {number}\n" for number in range(len(texts))))
        self.journal(*(end(number, number + 1, f"job {number}", files=[], stdout=f"{text}\n")
                       for number, text in enumerate(texts)))
        for kind in "json", "csv":
            ended = self.runwait("--output", f"--{kind}", "--outdir", "out", "runs.txt")
            self.assertEqual(ended.code, 0, ended.err)
            self.write(ended.out, f"table.{kind}")


class Tables(ReaderCase):
    """--output --json and --csv."""

    def setUp(self) -> None:
        super().setUp()
        self.make_tables(TEXTS)

    def check_json(self, program: str) -> None:
        self.assertEqual(self.rows_by(program, READ_JSON[program]),
                         [[number, f"{text}\n"] for number, text in enumerate(TEXTS, 1)])

    def check_csv(self, program: str, carriage_return: str = "\r") -> None:
        self.assertEqual(self.rows_by(program, READ_CSV[program]),
                         [[str(number), text.replace("\r", carriage_return)]
                          for number, text in enumerate(TEXTS, 1)])

    def test_jq_reads_json(self) -> None:
        self.check_json("jq")

    def test_miller_reads_json(self) -> None:
        self.check_json("mlr")

    def test_node_reads_json(self) -> None:
        self.check_json("node")

    def test_r_reads_json(self) -> None:
        self.check_json("Rscript")

    def test_pandas_reads_json(self) -> None:
        self.check_json("pandas")

    def test_miller_reads_csv(self) -> None:
        self.check_csv("mlr")

    def test_sqlite_reads_csv(self) -> None:
        self.check_csv("sqlite3")

    def test_r_reads_csv(self) -> None:
        self.check_csv("Rscript", carriage_return="\n")      # as any text that R reads

    def test_pandas_reads_csv(self) -> None:
        self.check_csv("pandas")


class OtherBytes(ReaderCase):
    """A byte that is not UTF-8 makes some programs refuse the table; its line is named, and can be mended."""
    TEXTS = ["1", "20 \udcb0C", "💀"]

    def setUp(self) -> None:
        super().setUp()
        self.make_tables(self.TEXTS)

    def test_the_line_is_named_and_the_exit_status_is_that_of_a_complete_table(self) -> None:
        for kind in "json", "csv":
            told = self.runwait("--output", f"--{kind}", "--outdir", "out", "runs.txt")
            self.assertRegex(told.err, rb"^runwait4.py: runs.txt: not UTF-8: line 2 \(many programs refuse")
            self.assertEqual((told.code, told.err.count(b"\n")), (0, 1))
        plain = self.runwait("--output", "--outdir", "out", "runs.txt")
        self.assertEqual(plain.out, "1\n20 \udcb0C\n💀\n".encode(errors="surrogateescape"))
        self.assertEqual(plain.err, b"")

    def test_jq_mends_json_and_the_journal(self) -> None:
        mended = ["1\n", "20 \ufffdC\n", "💀\n"]
        for name in "table.json", "out/journal":
            text = self.read_by("jq", ["jq", "-c", ".", name])
            self.assertEqual([json.loads(line)["stdout"] for line in text.splitlines()], mended)
        self.write(self.read_by("jq", ["jq", "-c", ".", "table.json"]), "table.json")
        self.assertEqual([row[1] for row in self.rows_by("pandas", READ_JSON["pandas"])], mended)

    def test_iconv_mends_csv(self) -> None:
        """Newer ones (2.43) end with 1 when they have left something out."""
        text = self.read_by("iconv", ["iconv", "-c", "-f", "UTF-8", "-t", "UTF-8", "table.csv"], codes=(0, 1))
        self.assertEqual([line.rpartition(",")[2] for line in text.splitlines()[1:]], ["1", "20 C", "💀"])


class Records(ReaderCase):
    """The journal, the job log, the timeline, and the objects of --json."""

    def setUp(self) -> None:
        super().setUp()
        self.write("".join(f". echo {number}; exit {number % 2}\n" for number in range(6)))
        self.run_script(RUNMAKER, "-q", "--joblog", "joblog", "runs.txt")

    def test_jq_and_node_read_all_objects(self) -> None:
        self.run_script(RUNWAIT, "--timeline", "timeline.json", "runs.txt")
        for view in "status", "stats", "failed":
            self.write(self.run_script(RUNWAIT, f"--{view}", "--json", "runs.txt").out, f"{view}.json")
        for name, path, count in (("timeline", ".traceEvents | map(select(.ph == \"X\")) | length", 6),
                                  ("status", ".done", 3), ("stats", ".all.runs", 6),
                                  ("failed", ".runs | length", 3)):
            with self.subTest(name):
                self.assertEqual(self.read_by("jq", ["jq", path, f"{name}.json"]), f"{count}\n")
                self.read_by("node", ["node", "-e", f"JSON.parse(require('fs').readFileSync('{name}.json'))"])

    def test_jq_miller_and_pandas_read_the_journal(self) -> None:
        ends = 'select(.event == "end") | .exit'
        self.assertEqual(self.read_by("jq", ["jq", ends, "runs.txt.out/journal"]), "0\n1\n" * 3)
        self.assertEqual(self.read_by("mlr", [
            "mlr", "--ijsonl", "--onidx", "filter", '$event == "end"', "then", "count",
            "runs.txt.out/journal"]), "6\n")
        self.assertEqual(self.read_by("pandas", [
            *PANDAS, "import pandas\nrows = pandas.read_json('runs.txt.out/journal', lines=True)\n"
            "print(rows[rows['event'] == 'end']['exit'].astype(int).tolist())"]), "[0, 1, 0, 1, 0, 1]\n")

    def test_miller_and_r_read_the_job_log(self) -> None:
        self.assertEqual(self.read_by("mlr", ["mlr", "--itsv", "--onidx", "cut", "-f", "Exitval", "joblog"]),
                         "0\n1\n" * 3)
        self.assertEqual(self.read_by("Rscript", [
            "Rscript", "-e", 'cat(read.delim("joblog", quote = "")$Exitval)']), "0 1 0 1 0 1")


class Awk(ReaderCase):
    """The line of docs/recipes.md for awk, also where numbers have a decimal comma."""

    def check(self, program: str) -> None:
        text = (ROOT / "docs/recipes.md").read_text()
        line = next(line for line in text.splitlines() if "awk -F, 'NR > 1" in line)
        self.write("line,state,exit,seconds,host,beta,command,stdout\n"
                   "1,done,0,0.1,alice,0.1,x,1.5\n2,done,0,0.1,alice,0.1,x,2.5\n"
                   "3,failed,1,0.1,alice,0.1,x,9\n", "table.csv")
        if not pathlib.Path("/usr/share/i18n/charmaps").exists():
            self.skipTest("locales (charmaps) is not installed")
        (self.dir / "locales").mkdir()
        self.read_by("localedef", ["localedef", "-i", "de_DE", "-f", "UTF-8", "locales/de_DE.UTF-8"])
        self.read_by(program, ["true"])
        (self.dir / "bin").mkdir()
        (self.dir / "bin/awk").symlink_to(str(shutil.which(program)))
        env = {**self.environ(), "LANG": "de_DE.UTF-8", "LOCPATH": str(self.dir / "locales"),
               "PATH": f"{self.dir}/bin:/usr/bin:/bin"}
        for name in "LC_ALL", "LC_NUMERIC":
            env.pop(name, None)
        self.assertEqual(subprocess.check_output(["sh", "-c", line], cwd=self.dir, env=env), b"0.1 2\n")

    def test_mawk(self) -> None:
        self.check("mawk")

    def test_gawk(self) -> None:
        self.check("gawk")
