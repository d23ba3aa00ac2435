"""Promise: --report writes one page about all runs, whole at any time, that shows commands and never runs
them.
"""
import base64
import html
import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
import time
import unittest
import zlib
from typing import Any, Optional

import runmaker4
import runwait4
from tests.journal import BEGAN, end, start
from tests.support import FULL, GATE, ROOT, RUNMAKER, RUNWAIT, Ended, RunCase, Text, as_bytes, lock_table
from tests.values import present

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "</script><img src=x onerror=\"document.title='owned'\">"
LONG_AGO = """
import runwait4
runwait4.Watcher.can_log_be_behind = lambda self: False
"""
HERE = os.uname().nodename
FAILED_RUNS = "Runs that failed or ended in error"
OTHERS = "Other runs that failed or ended in error"
VOID = {"meta", "br", "img", "link", "input"}


def words(text: str) -> str:
    """What an element of a page says."""
    return html.unescape(re.sub("<[^>]*>", "|" if "<q>" in text else "", text)).rstrip("|")


class Page(html.parser.HTMLParser):
    """A page whose elements all end where they should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.title = ""
        self.feed(text)
        self.close()
        data = re.search(r'<script id="data" type="text/plain">([A-Za-z0-9+/=]+)</script>', text)
        packed = present(data)[1]
        self.data: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
        shown = text.partition("<script")[0]
        self.when = words(present(re.search('<p id="when">(.*?)</p>', shown))[1])
        self.refresh = re.findall('http-equiv="refresh" content="([0-9]+)"', shown)
        self.place = words(present(re.search('<p class="place">(.*?)</p>', shown))[1])
        self.figures = {
            words(name): words(value) for name, value in re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", shown)
        }
        self.bar, self.key = (" ".join(map(words, re.findall("<li>(.*?)</li>", found)))
                              for found in re.findall('<ul class="legend">(.*?)</ul>', shown))
        self.groups = [words(item) for item in re.findall('<li>(<b>.*?)</li>', shown)]
        self.runs = words("".join(re.findall('</ul><p class="hint">(.*?)</p>', shown)))
        self.tables = {words(table.partition("</h2>")[0]): table
                       for table in re.findall('<section class="runs">(.*?)</section>', shown, re.DOTALL)}

    def heads(self, title: str) -> list[str]:
        """The heads of the columns of a table."""
        return re.findall("<th [^>]*>(.*?)</th>", self.tables[title])

    def rows(self, title: str, *columns: str) -> list[list[str]]:
        """What a table has in these columns; below each row stands what ran, and what it printed last."""
        if title not in self.tables:
            return []
        heads = [*self.heads(title), "what"]
        found = [list(map(words, re.findall("<td[^>]*>(.*?)</td>", body, re.DOTALL)))
                 for body in re.findall("<tbody[^>]*>(.*?)</tbody>", self.tables[title], re.DOTALL)]
        return [[row[heads.index(column)] for column in columns] for row in found]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["title"]:
            self.title += data


def journal_end(number: int, took: float = 1.0, **more: Any) -> bytes:
    """The end of a run that took a second, so many seconds after BEGAN."""
    return end(number, number, began=BEGAN + number - took, took=took,
               **{"host": "alice", "memory": 1 << 20, "files": [], **more})


class ReportCase(RunCase):
    """Helpers for tests of the report."""

    def setUp(self) -> None:
        super().setUp()
        os.mkdir(self.dir / "out")

    def report(self, *args: object, **options: Any) -> Ended:
        return self.run_script(RUNWAIT, "--report", "out.html", *args, **options)

    def page(self, name: str = "out.html") -> Page:
        page = Page(self.read(name).decode())
        self.assertEqual(page.open, [])
        return page

    def late_page(self) -> Page:
        """The page when no end is on its way any more."""
        ended = self.finish(self.start_patched(LONG_AGO, "--report", "out.html", "--outdir", "out",
                                               "runs.txt", script=RUNWAIT))
        self.assertEqual(ended.code, 0, ended.err)
        return self.page()

    def journal(self, *lines: Text) -> None:
        self.write(b"".join(map(as_bytes, lines)), "out/journal")


class Content(ReportCase):
    """What stands in the page."""

    def test_names_that_are_no_utf8_are_shown_as_well_as_can_be_in_any_locale(self) -> None:
        self.write(". echo 1 >&2; exit 3\n. echo 2 >&2; exit 3\n")
        self.run_script(RUNMAKER, "--outdir", "out", "--name", os.fsdecode(b"caf\xe9"), "runs.txt")
        for locale in {}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}:
            self.assertEqual(self.report("--outdir", "out", "runs.txt", env=locale).code, 0)
            self.assertIn("caf\ufffd", self.read("out.html").decode())

    def test_it_tells_of_what_runners_ran_with_commands_and_last_output(self) -> None:
        self.write(". echo hello\n. echo one; echo two >&2; exit 3\n. kill -9 $$\nx true\n")
        self.run_script(RUNMAKER, "--outdir", "out", "--name", "alice", "runs.txt")
        self.assertEqual(self.report("--outdir", "out", "runs.txt").code, 0)
        page = self.page()
        self.assertEqual(
            (page.bar, page.runs), ("4 jobs: 1 done 2 failed 1 held", "3 runs: 1 done, 2 failed")
        )
        self.assertEqual(page.refresh, [])
        self.assertEqual(
            page.rows("Left to fix", "Line", "Ended", "Host", "what"),
            [
                ["2", "exit 3", "alice", "echo one; echo two >&2; exit 3|two"],
                ["3", "signal 9 (SIGKILL)", "alice", "kill -9 $$"],
            ],
        )
        self.assertEqual(page.data["rows"], [["alice", "1"]])

    def test_a_job_log_will_do(self) -> None:
        self.write(". true\n. false\n")
        self.run_script(RUNMAKER, "--joblog", "log", "runs.txt")
        self.assertEqual(self.report("--joblog", "log").code, 0)
        page = self.page()
        self.assertEqual(page.bar, "2 runs: 1 done 1 failed")
        self.assertEqual(page.rows(FAILED_RUNS, "Line", "Ended"), [["2", "exit 1"]])

    def test_nothing_that_a_job_says_or_is_called_becomes_part_of_the_page(self) -> None:
        self.journal(
            journal_end(
                1, command=EVIL, host=EVIL, slot=EVIL, state="!", exit=1, cause=EVIL, files=["1.err"],
                promised=1 << 30
            ),
            journal_end(2, command="odd").replace(b"odd", rb"\ud800\udcff \u0000\n\u001b[1m"),
        )
        self.write(EVIL, "out/1.err")
        name = "<img onerror=x>&.txt"
        self.write("! x\n", name)
        self.assertEqual(self.report("--outdir", "out", name).code, 0)
        page = self.page()
        self.assertEqual((page.tags.count("script"), page.tags.count("img")), (2, 0))
        self.assertEqual(set(page.links), {"./out/1.err"})
        self.assertEqual(page.title, f"{name} – {HERE}:{os.path.realpath(self.dir)}")
        self.assertEqual(page.rows(OTHERS, "Ended", "Host", "what"), [[EVIL, EVIL[:80], f"{EVIL}|{EVIL}"]])

    def test_each_state_has_a_name_and_a_colour_by_day_and_by_night(self) -> None:
        self.journal(*(journal_end(number, state=state) for number, state in enumerate("d!e.x", 1)))
        self.report("--outdir", "out")
        page, text = self.page(), self.read("out.html").decode()
        self.assertEqual(page.bar, "5 runs: 1 done 1 failed 1 error 1 put back 1 cancelled")
        self.assertEqual(
            page.data["names"], ["done", "failed", "error", "put back", "running", "cancelled", "unknown"]
        )
        self.assertEqual(sorted(re.findall(r"--s(\d): #", text)), sorted("0123456" * 2))

    def test_runs_of_one_slot_that_overlap_have_rows_of_their_own(self) -> None:
        self.journal(journal_end(1, took=0.5), journal_end(2, took=1.5), journal_end(3, slot="10"),
                     journal_end(4, slot="9"))
        self.report("--outdir", "out")
        self.assertEqual([slot for _, slot in self.page().data["rows"]], ["1", "1 (2)", "9", "10"])

    def test_the_bar_is_of_jobs_and_what_was_run_again_comes_after_what_is_left_to_fix(self) -> None:
        self.write("d a\n! b\nd c\ne d\n. e\n")
        self.journal(*(end(f"{number} {command}", number, command, BEGAN + number, state="!")
                       for number, command in enumerate("abce", 1)),
                     end("again", 1, "a", BEGAN + 20), end("other", 3, "c", BEGAN + 30, state="!"))
        self.assertEqual(self.report("--outdir", "out", "runs.txt").code, 0)
        page = self.page()
        self.assertEqual(
            (page.bar, page.runs), ("5 jobs: 2 done 1 failed 1 error 1 new", "6 runs: 1 done, 5 failed")
        )
        self.assertEqual(page.rows("Left to fix", "Line", "Ended"), [["2", "exit 3"], ["4", "error"]])
        self.assertEqual(page.rows(OTHERS, "Line", "Ended"), [
            ["3", "exit 3 (now done)"], ["5", "exit 3 (now new)"], ["3", "exit 3 (now done)"],
            ["1", "exit 3 (now done)"]])
        self.assertEqual(list(page.tables), ["Left to fix", OTHERS, "Slowest runs", "Largest runs"])

    def test_a_run_without_an_end_is_drawn_until_its_runner_was_heard_of_last_below_all_others(self) -> None:
        self.write("! a\nd b\nd c\nr o\n")
        self.journal(start("1", 1, "a", BEGAN), start("o", 4, "o", BEGAN + 2, slot="2"),
                     *(end(number, number, command, BEGAN + 10 * number)
                       for number, command in ((2, "b"), (3, "c"))),
                     start("late", 9, "z", BEGAN + 500, host="node2").replace(b"node1-", b"node2-"))
        page = self.late_page()
        data = page.data
        self.assertEqual(data["rows"], [["node1", "1"], ["node1", "2"], ["node2", "1"]])
        self.assertEqual((data["sizes"], data["line"]), ([2, 0, 0], [2, 3, 1, 4, 9]))
        self.assertEqual(data["loose"], [0, 1, 2])
        self.assertEqual([round(took * data["tick"], 1) for took in data["took"][2:4]], [31.5, 29.5])
        self.assertEqual(page.key, "2 done 1 lost 2 unknown")

    def test_failures_are_grouped_by_their_last_words_whatever_their_numbers(self) -> None:
        count = 45
        self.write("".join(f"! run {number}\n" for number in range(1, count + 1)))
        ends = []
        for number in range(1, count + 1):
            words = "ValueError: singular matrix" if number <= 41 else f"step {number}: {EVIL}"
            self.write(f"Traceback:\n{words}\n", f"out/{number}.err")
            names = [f"{number}.err"] if number < count else []
            ends.append(end(number, number, f"run {number}", BEGAN + number, state="!", files=names))
        self.journal(*ends)
        self.assertEqual(self.report("--outdir", "out", "runs.txt").code, 0)
        page = self.page()
        self.assertEqual(page.groups, [
            "41 linesValueError: singular matrixlines 1, 2, 3, 4, 5, 6, 7, 8, ... on node1",
            f"3 linesstep …: {EVIL}lines 42, 43, 44 on node1",
            "1 line(exit 3, printed nothing)line 45 on node1"])
        self.report("--outdir", "out")                  # without the job file: runs
        self.assertEqual(self.page().groups[0].partition("matrix")[0], "41 runsValueError: singular ")

    def test_output_is_linked_where_it_lies_below_the_page_and_nowhere_else(self) -> None:
        odd = "a \"'><img src=x>?%#\udcff.out"
        names = ["1.err", "1.out", odd, "gone.err", "link.out", "../runs.txt", ".."]
        for name in names[:3]:
            self.write("words\n", os.path.join("out", name))
        self.write("! true\n")
        (self.dir / "out/link.out").symlink_to(self.dir / "runs.txt")
        self.journal(end(1, 1, state="!", files=names))
        (self.dir / "beside").mkdir()
        there = ["1.err", "1.out", "a%20%22%27%3E%3Cimg%20src%3Dx%3E%3F%25%23%FF.out"]
        for page, base in ("page.html", "./out/"), ("out/page.html", "./"), ("beside/page.html", None):
            with self.subTest(page):
                self.assertEqual(
                    self.run_script(RUNWAIT, "--report", page, "--outdir", "out", "runs.txt").code, 0
                )
                self.assertEqual(set(self.page(page).links), {f"{base}{name}" for name in there if base})
                self.assertEqual(self.page(page).data["files"], {"0": there} if base else {})

    def test_held_lines_and_where_and_how_the_page_was_made_are_told(self) -> None:
        self.write("x cancelled\nd b\nh later\n. new\n")
        self.journal(end(1, 2, "b"))
        self.report("--outdir", "out", "runs.txt")
        page = self.page()
        self.assertEqual(page.rows("Held lines", "Line", "Ended", "what"),
                         [["1", "held (x)", "cancelled"], ["3", "held (h)", "later"]])
        place = f"{HERE}:{os.path.realpath(self.dir)}"
        self.assertEqual(page.title, f"runs.txt – {place}")
        self.assertEqual(page.place, f"{place}$ runwait4.py --report out.html --outdir out runs.txt")

    def test_a_directory_that_was_removed_is_not_named(self) -> None:
        self.journal(end(1, 1))
        gone = self.dir / "gone"
        gone.mkdir()
        outdir, page = self.dir / "out", self.dir / "out.html"
        command = ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", sys.executable, str(ROOT / RUNWAIT),
                   "--report", str(page), "--outdir", str(outdir)]
        done = subprocess.run(command, cwd=gone, stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
                              check=False)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertRegex(self.page().place, rf"^{re.escape(HERE)}\$ runwait4\.py --report ")

    def test_all_tables_have_the_same_columns(self) -> None:
        self.write("d a\n! b\nx c\n")
        self.journal(end(1, 1, "a"), end(2, 2, "b", state="!", memory=None))
        self.report("--outdir", "out", "runs.txt")
        page = self.page()
        self.assertEqual(list(page.tables), ["Left to fix", "Held lines", "Slowest runs", "Largest runs"])
        self.assertEqual(len({tuple(page.heads(title)) for title in page.tables}), 1)

    def test_a_column_that_nothing_is_known_for_is_not_there(self) -> None:
        self.journal(journal_end(1, memory=None))
        self.report("--outdir", "out")
        page = self.page()
        self.assertNotIn("Memory", page.heads("Slowest runs"))
        self.assertNotIn("Peak memory", page.figures)

    def test_a_run_may_have_taken_years(self) -> None:
        self.journal(journal_end(1, took=4e8))
        self.assertEqual(self.report("--outdir", "out").code, 0)

    def test_of_runs_without_an_end_the_last_of_a_running_line_runs_and_an_orphan_s_is_lost(self) -> None:
        self.start_to_gate(f"# an edit\n# moved these\n. {GATE}\nd a\nr orphan\n! b\n")
        self.addCleanup(self.open_gate)
        for number in (1, 3):               # before the edit, and after it
            self.journal(start("dead", number, GATE, BEGAN), start("alive", number, GATE, BEGAN + 1),
                         start("gone", 4, "a", BEGAN + 2), end("ended", 4, "a"), start("o", 5, "orphan"),
                         start("b", 6, "b"))
            page = self.late_page()
            self.assertEqual(page.runs, "6 runs: 1 done, 1 error, 1 running, 3 unknown")
            self.assertEqual(page.rows("Left to fix", "Line", "Ended"),
                             [["5", "lost"], ["6", "unknown (now failed)"]])
            self.assertNotIn(OTHERS, page.tables)
            self.assertEqual(page.data["busy"][-1], 1)

    def test_a_run_whose_end_is_not_written_yet_is_ending_and_no_failure(self) -> None:
        runner = os.open(lock_table(self.dir / "runs.txt"), os.O_RDWR | os.O_CREAT)
        self.addCleanup(os.close, runner)
        self.assertTrue(runmaker4.lock(runner, runmaker4.PRESENCE_BYTES))      # a runner is at work
        for state in "d!":
            for age, runs, how in (0, "1 running", "ending"), (6, "1 unknown", "unknown"):
                with self.subTest(state=state, age=age):
                    path = self.write(f"{state} a\n")
                    os.utime(path, (time.time() - age,) * 2)
                    self.journal(start(1, 1, "a"))
                    self.assertEqual(self.report("--outdir", "out", "runs.txt").code, 0)
                    self.assertEqual((self.page().runs, self.page().data["endings"][0][1]),
                                     (f"1 run: {runs}", how))
                    failed = self.run_script(RUNWAIT, "--failed", "--outdir", "out", "runs.txt").out
                    self.assertEqual(how.encode() in failed, state == "!")
                    shown = self.run_script(RUNWAIT, "--show", "1", "--outdir", "out", "runs.txt").out
                    self.assertIn(b": %s on " % how.encode(), shown)

    def test_a_hundred_looks_at_a_busy_campaign_find_no_failure(self) -> None:
        """Ends come into the journal up to a second late."""
        count, looks = (1200, 100) if FULL else (60, 6)
        self.write(". sleep 0.1\n" * count)
        runner = self.start(RUNMAKER, "-q", "-j2", "--outdir", "out", "runs.txt")
        self.wait_file("out/journal")
        for look in range(looks):
            calls = [(RUNWAIT, *options, "--outdir", "out", "runs.txt")
                     for options in (("--failed",), ("--status",), ("--report", f"{look}.html"))]
            for (_, option, *_), ended in self.run_all(calls):
                self.assertEqual((ended.code, ended.err), (0, b""))
                if option == "--failed":
                    self.assertEqual(ended.out, b"")
                if option == "--status":
                    self.assertIn(b" 0 failed, 0 error,", ended.out)
            page = self.page(f"{look}.html")
            self.assertNotRegex(page.bar + page.runs, "failed|error|unknown")
            self.assertEqual(
                [title for title in page.tables if not title.startswith(("Slowest", "Largest"))], []
            )
            if runner.poll() is not None:
                break
        self.assertIn("Slowest runs", page.tables)      # at the first look perhaps none had ended
        runner.terminate()
        self.finish(runner)

    def test_only_times_that_are_known_are_counted_and_as_the_statistics_count_them(self) -> None:
        self.journal(*(end(number, number, took=number) for number in range(1, 11)), start("open", 1))
        self.report("--outdir", "out")
        page = self.page()
        self.assertEqual(page.bar, "11 runs: 10 done 1 unknown")
        self.assertEqual(
            [page.figures[name] for name in ("Median time of a run", "90th percentile", "Longest")],
            ["5.0s", "9.0s", "10s"],
        )
        self.assertIn(b" 5.0s  9.0s      10s ", self.run_script(RUNWAIT, "--stats", "--outdir", "out").out)

    def test_the_numbers_are_those_of_now_and_the_earlier_ones_stand_in_the_details(self) -> None:
        self.write("d a\n# new\n! b\nd c\nd c\n")
        self.journal(*(end(f"{number} {command}", number, command, state=state, files=[])
                       for number, command, state in
                       ((1, "a", "d"), (2, "b", "!"), (3, "c", "d"), (4, "c", "!"), (9, "gone", "d"))))
        self.report("--outdir", "out", "runs.txt")
        page = self.page()
        self.assertEqual(page.rows("Left to fix", "Line", "what"), [["3", "line 2 when it ran: b"]])
        self.assertEqual(page.rows(OTHERS, "Line", "what"), [["5", "line 4 when it ran: c"]])
        self.assertEqual(sorted(page.rows("Slowest runs", "Line", "what")),
                         [["1", "a"], ["3", "line 2 when it ran: b"], ["4", "line 3 when it ran: c"],
                          ["5", "line 4 when it ran: c"], ["9", "gone"]])
        self.assertEqual(page.data["line"], [1, 3, 4, 5, 9])
        self.assertEqual(page.data["was"], {"1": 2, "2": 3, "3": 4})
        self.assertIn("on node1", page.groups[0])
        self.assertIn("line 3 ", page.groups[0])

    def test_of_clocks_that_are_apart_the_page_tells_and_of_no_duration(self) -> None:
        def clocks(apart: float, *hosts: str) -> Page:
            self.journal(*(journal_end(number, host=hosts[number % len(hosts)]) for number in range(1, 9)),
                         *(end(f"apart {number}", number, began=BEGAN + apart + number, host="apart")
                           for number in range(9, 11)), journal_end(11, host=hosts[0]))
            os.utime(self.dir / "out/journal", (BEGAN + 20, BEGAN + 20))
            self.report("--outdir", "out")
            return self.page()

        for apart in 3600, -3600:
            page = clocks(apart, "alice", "bob")
            self.assertIn(" · the clock of apart is wrong: times of different hosts cannot", page.when)
            self.assertNotIn("Duration", page.figures)
        page = clocks(0, "alice", "bob")
        self.assertNotIn("clock", page.when)
        self.assertIn("Duration", page.figures)
        self.journal(*map(journal_end, range(1, 9)))        # one host: its times fit, whatever its clock is
        self.report("--outdir", "out")
        self.assertNotIn("clock", self.page().when)
        self.assertEqual(self.page().figures["Duration"], "8.0s")

    def test_with_stats_both_are_done(self) -> None:
        self.write("d true\n")
        self.journal(end(1, 1, "true"))
        alone = self.run_script(RUNWAIT, "--stats", "--outdir", "out")
        for more in (), ("runs.txt",):
            (self.dir / "out.html").unlink(missing_ok=True)
            ended = self.report("--stats", "--outdir", "out", *more)
            self.assertEqual((ended.code, ended.out, ended.err), (0, alone.out, b""))
            self.assertRegex(self.page().bar, "^1 (run|job): 1 done$")

    def test_the_time_of_all_runs_is_the_sum_of_the_jobs_that_ran(self) -> None:
        self.journal(
            *(journal_end(number, slot=str(number % 3), took=number / 7) for number in range(1, 50))
        )
        self.report("--outdir", "out")
        data = self.page().data
        total = sum(number / 7 for number in range(1, 50))
        self.assertAlmostEqual(sum(data["busy"]) / len(data["busy"]) * data["span"], total, delta=total / 100)

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes seconds")
    def test_of_many_runs_the_last_are_drawn_and_the_page_stays_small(self) -> None:
        self.journal(*(journal_end(number, took=0.5, slot=str(number % 50), command=os.urandom(50).hex(),
                                   state="d!"[number % 9 == 0]) for number in range(1, 100_001)))
        self.assertEqual(self.report("--outdir", "out").code, 0)
        page = self.page()
        self.assertLess(len(self.read("out.html")), 8 << 20)
        self.assertEqual((len(page.data["line"]), min(page.data["line"])), (60_000, 40_001))
        self.assertIn("the pictures show the last 60,000 runs of 100,000", page.when)
        self.assertEqual(page.bar, "100000 runs: 88,889 done 11,111 failed")


class Writing(ReportCase):
    """When and how the page is written."""

    def test_while_jobs_run_it_is_written_too_and_says_that_it_will_be_anew(self) -> None:
        self.write(f". true\n. {GATE}\n")
        runner = self.start(RUNMAKER, "--outdir", "out", "runs.txt")
        self.wait_file("out/journal")
        waiter = self.start(RUNWAIT, "--progress", "--report", "out.html", "--outdir", "out", "runs.txt")
        self.wait_file("out.html")
        self.assertGreaterEqual(int(self.page().refresh[0]), 10)
        self.open_gate()
        self.assertEqual((self.finish(runner).code, self.finish(waiter).code), (0, 0))
        self.assertEqual((self.page().refresh, self.page().bar), ([], "2 jobs: 2 done"))
        self.assertEqual([name for name in os.listdir(self.dir) if name.startswith(".runwait4")], [])

    def test_a_page_that_cannot_be_written_is_reported_once_and_the_waiting_goes_on(self) -> None:
        self.start_to_gate(f". {GATE}\n", "--outdir", "out")
        self.wait_file("out/journal")
        hasty = "import runwait4\nrunwait4.Reporter.MIN_PAGE_SECONDS = 0.1\n"
        with open(self.dir / "said", "wb") as said:
            waiter = self.start_patched(hasty, "--progress", "--report", "out.html", "--outdir", "out",
                                        "runs.txt", script=RUNWAIT, stderr=said)
        page = self.dir / "out.html"
        self.wait_file("out.html")
        page.unlink()
        page.mkdir()
        self.assertIn(b"out.html: is a directory", self.wait_file("said"))
        time.sleep(1)
        self.assertIsNone(waiter.poll())
        self.assertEqual(self.read("said").count(b"\n"), 1)
        page.rmdir()
        self.open_gate()
        self.assertEqual((waiter.wait(60), self.page().bar), (0, "1 job: 1 done"))
        self.assertEqual(self.read("said").count(b"\n"), 1)

    def test_a_last_page_that_cannot_be_written_is_an_error(self) -> None:
        self.start_to_gate(f". {GATE}\n", "--outdir", "out")
        self.wait_file("out/journal")
        waiter = self.start(RUNWAIT, "--progress", "--report", "out.html", "--outdir", "out", "runs.txt")
        self.wait_file("out.html")
        (self.dir / "out.html").unlink()
        (self.dir / "out.html").mkdir()
        self.open_gate()
        ended = self.finish(waiter)
        self.assertEqual(ended.code, 2)
        self.assertIn(b"out.html: is a directory", ended.err)

    def test_a_failed_barrier_check_ends_it_with_exit_status_1_and_is_named(self) -> None:
        self.write("! a\n#RUN barrier check\n. b\n")
        self.journal(end(1, 1, "a", state="!"))
        ended = self.report("--progress", "--outdir", "out", "runs.txt")
        self.assertEqual(ended.code, 1, ended.err)
        self.assertRegex(ended.err, rb"^runwait4\.py: runs\.txt: .*line 1\b.*barrier check.*line 2\b.*\n$")
        self.assertEqual((self.page().refresh, self.page().bar), ([], "2 jobs: 1 failed 1 new"))
        self.assertEqual(self.report("--outdir", "out", "runs.txt").code, 0)

    def test_a_file_of_plain_commands_is_refused(self) -> None:
        self.write("echo a\necho b\n")
        self.journal(end(1, 1))
        for options in ("--report", "out.html"), ("--report", "out.html", "--progress"), ("--stats",):
            self.assertRefused(
                self.run_script(RUNWAIT, *options, "--outdir", "out", "runs.txt"), "no jobs; 2"
            )

    def test_only_an_older_report_and_an_empty_file_are_replaced(self) -> None:
        self.journal(journal_end(1))
        page = "<!DOCTYPE html>\n<title>a page of somebody else's</title>\n"
        for name, content in ("runs.txt", ". true\n"), ("notes.html", ". true\n"), ("index.html", page):
            text = self.write(content, name).read_bytes()
            for more in ((), ("--progress", "runs.txt")):       # which says so before it waits
                ended = self.run_script(RUNWAIT, "--report", name, "--outdir", "out", *more, timeout=20)
                self.assertRefused(ended, f"{name}: not a report of runwait4.py")
                self.assertEqual(self.read(name), text)
        self.write("", "out.html")
        for _ in range(2):
            self.assertEqual(self.report("--outdir", "out").code, 0)
            self.assertEqual(self.page().bar, "1 run: 1 done")

    def test_what_does_not_go_together_or_is_not_there_is_refused(self) -> None:
        self.journal("")
        self.write("", "log")
        for args, word in (
            ((), "--report requires either --outdir or --joblog, as the jobs were run with"),
            (("--outdir", "out", "--joblog", "log"), "requires either"),
            (("--outdir", "nowhere"), "nowhere"),
            (("--outdir", "out"), "no run"),
            (("--outdir", "out", "--progress"), "FILE"),
            (("--joblog", "log"), "no run"),
            (("--outdir", "out", "--status", "log"), "--report and --status exclude each other"),
            (("--joblog", "log", "--stats"), "--stats requires --outdir"),
            (("--outdir", "out", "--stats", "--progress", "log"), "--progress and --stats exclude"),
        ):
            with self.subTest(args=args):
                self.assertRefused(self.report(*args), word)
        self.assertFalse((self.dir / "out.html").exists())


@unittest.skipUnless(CHROMIUM, "chromium is not installed (`python3 -m tests.rigs tools` does that)")
class InABrowser(ReportCase):
    """What a browser makes of the page."""

    def test_the_page_is_drawn_and_a_hostile_command_stays_text(self) -> None:
        self.journal(journal_end(1, command=EVIL, state="!", exit=1), *map(journal_end, range(2, 2000)),
                     journal_end(2000, state="x", exit=-1, signal=15, cause="cancelled"))
        text = self.shown()
        self.assertIn("<b>1</b> cancelled</li>", text)
        self.assertNotIn("cannot draw", text)
        self.assertIn(f"<title>out – {HERE}:", text)
        self.assertIn(">Slowest runs</h2>", text)
        self.assertIn("&lt;/script&gt;&lt;img src=x", text)
        self.assertNotIn("<img", text)

    def test_runs_are_found_by_text_state_host_and_last_words(self) -> None:
        self.campaign()
        acts = {                                        # runs found, and of what is left to fix
            'type("SEED 1")': (11, 4),                  # 1, 10 to 19
            'type("singular")': (6, 6),
            'choose("state", "failed")': (10, 10),
            'choose("host", "node2")': (20, 6),
            'choose("host", "node2"); choose("state", "failed"); type("seed 15")': (1, 1),
            'document.querySelector(".groups button").click()': (6, 6),
            'type("nothing")': (0, 0),
        }
        told = """
            const told = [];
            const count = selector => document.querySelectorAll(selector).length;
            for (const act of [%s]) {
              act();
              told.push([get("hits").textContent, count("#found tbody"), count(
                "#tables section:first-child tbody:not([hidden])"), get("clear").hidden]);
              get("clear").click();
            }
            told.push([get("hits").textContent, count("#found tbody"), count(
              "#tables section:first-child tbody:not([hidden])"), get("clear").hidden]);
            choose("state", "failed");
            document.title = JSON.stringify(told);""" % ", ".join(f"() => {{ {act} }}" for act in acts)
        text = self.shown(told)
        *found, cleared = json.loads(html.unescape(present(re.search("<title>(.*?)</title>", text))[1]))
        for act, (hits, rows, left, no_clear) in zip(acts, found):
            with self.subTest(act):
                self.assertEqual((hits.partition(":")[0], rows), (f"{acts[act][0]} of 40 runs", acts[act][0]))
                self.assertEqual((left, no_clear), (acts[act][1], False))
        self.assertEqual(cleared, ["", 0, 10, True])
        found = present(re.search('id="found"(.*?)</section>', text, re.DOTALL))
        self.assertRegex(found[1], '<a [^>]*href="./out/12.err"[^>]*>.err</a>')

    def found(self, act: str, *more: object) -> list[Any]:
        """What the page tells after this was done: the hits, and the rows of what was found."""
        text = self.shown("""
            %s;
            document.title = JSON.stringify([get("hits").textContent,
              [...document.querySelectorAll("#found tbody")].map(row => row.textContent)]);""" % act, *more)
        told: list[Any] = json.loads(html.unescape(present(re.search("<title>(.*?)</title>", text))[1]))
        return told

    def test_what_all_runs_have_printed_last_is_found_not_only_the_last_runs_of_lines(self) -> None:
        self.write("".join(f"! run {line}\n" for line in range(1, 4)))
        ends = []
        for attempt in range(5):
            for line in range(1, 4):
                name = f"{line}.err.~{attempt}~"
                self.write(f"step {attempt}: singular matrix\n", f"out/{name}")
                ends.append(end(f"{attempt} {line}", line, f"run {line}", BEGAN + 9 * attempt, state="!",
                                files=[name]))
        self.journal(*ends)
        for act in 'type("singular")', 'document.querySelector(".groups button").click()':
            hits, rows = self.found(act)
            self.assertEqual((hits.partition(":")[0], len(rows)), ("15 of 15 runs", 15))

    def test_the_end_of_a_long_command_is_found_among_many_runs(self) -> None:
        count, path = 6000, "long/" * 30
        self.journal(*(journal_end(number, 0.5, command=f"{path} --seed {number}")
                       for number in range(1, count + 1)))
        hits, rows = self.found('type("--seed 599")')
        self.assertEqual((hits, len(rows)), ("11 of 6,000 runs", 11))

    def test_of_commands_that_are_too_long_for_the_page_the_beginning_is_searched(self) -> None:
        self.journal(*(journal_end(number, 0.5, command=f"{number} {'x' * 50}") for number in range(1, 11)))
        patch = "import runwait4\nrunwait4.Pictures.MAX_COMMANDS_CHARACTERS = 200\n"
        self.finish(self.start_patched(patch, "--report", "out.html", "--outdir", "out", script=RUNWAIT))
        self.assertIn(" · only the first 20 characters of a command are searched", self.page().when)
        self.assertEqual({len(command) for command in self.page().data["commands"]}, {23})

    def test_durations_are_as_on_the_rest_of_the_page(self) -> None:
        self.journal(journal_end(1))
        times = [0, 1e-5, 0.00994, 0.00996, 0.0494, 0.9994, 0.9996, 5, 9.94, 9.96, 59.4, 59.6, 61, 3599.4,
                 3600, 7384, 86399, 86400, 9e6]
        told = self.shown(f"document.title = JSON.stringify({times}.map(duration))")
        shown = json.loads(html.unescape(present(re.search("<title>(.*?)</title>", told))[1]))
        self.assertEqual(shown, list(map(runwait4.took, times)))

    def test_what_was_found_has_the_numbers_of_now(self) -> None:
        self.write("d a\n# new\nd b\n")
        self.journal(end("a", 1, "a"), end("b", 2, "b"))
        _, rows = self.found('type("b")')
        self.assertEqual(len(rows), 1)
        self.assertRegex(rows[0], r"^3exit 0.*line 2 when it ran: b$")

    def test_what_is_found_stays_text(self) -> None:
        self.write(f"! {EVIL}\n")
        self.write(EVIL, "out/1.err")
        self.journal(end(1, 1, EVIL, state="!", host=EVIL, slot=EVIL, cause=EVIL, files=["1.err"]))
        text = self.shown('type("img")', "runs.txt")
        self.assertIn("1 of 1 runs", text)
        self.assertNotIn("<img", text)
        self.assertIn(f"<title>runs.txt – {HERE}:", text)

    def test_no_colour_is_wider_than_what_it_stands_for(self) -> None:
        long = [end(f"d{number}", 1, "long", BEGAN + 1.3 * number + 0.033, 1.25) for number in range(500)]
        bad = [end(f"f{number}", 2, "short", BEGAN + 1.3 * number, 0.033, state="!")
               for number in range(500) if number % 100 == 50]
        self.journal(*long, *bad)
        failed, done = self.pixels("--s1", "--s0")
        self.assertLessEqual(len(failed), 5)            # columns of a pixel
        self.assertGreaterEqual(len(failed), 4)
        self.assertGreater(len(done), 100)

    def test_a_run_without_an_end_is_hatched_and_a_legend_names_it(self) -> None:
        self.journal(start("open", 1), end("last", 2, began=BEGAN + 50, slot="2"),
                     end("over", 3, began=BEGAN + 10, took=20.0))
        unknown, = self.pixels("--s6")
        self.assertGreater(len(unknown), 200)           # of 520 or so, less those below the other run
        self.assertGreater(max(unknown) - min(unknown), 0.9 * 600)
        self.assertRegex(self.shown(), r'<i class="fill s6 hatched"></i><b>1</b> unknown</li>')

    def test_the_time_of_another_day_is_not_cut_on_a_small_screen(self) -> None:
        self.journal(journal_end(1))
        told = self.shown("""
            const cells = [...document.querySelectorAll("td.began")];
            document.title = [cells.length, cells.every(cell => cell.scrollWidth <= cell.clientWidth)].join();
            """, width=720)
        self.assertRegex(told, "<title>[1-9],true</title>")

    def test_counts_stand_beside_their_headings_on_a_telephone(self) -> None:
        self.campaign()
        told = self.shown("""
            const boxes = [...document.querySelectorAll(".head")].map(head => [head.querySelector("h2"),
              head.querySelector("p")].map(node => node.getBoundingClientRect())).filter(([, p]) => p.width);
            document.title = [boxes.length, boxes.every(([h, p]) => p.left - h.right < 20 && p.left >= h.right
              && Math.abs(p.top + p.bottom - h.top - h.bottom) < 12),
              document.documentElement.scrollWidth <= innerWidth].join();
            """, width=390)
        self.assertRegex(told, "<title>[4-9],true,true</title>")

    def test_a_page_whose_writer_is_gone_says_so(self) -> None:
        self.write(f". {GATE}\n")
        runner = self.start(RUNMAKER, "--outdir", "out", "runs.txt")
        self.wait_file("out/journal")
        waiter = self.start(RUNWAIT, "--progress", "--report", "out.html", "--outdir", "out", "runs.txt")
        self.wait_file("out.html")
        waiter.kill()
        self.finish(waiter)
        self.open_gate()
        self.finish(runner)
        text = self.read("out.html").decode()
        self.assertIn(", updated every 10s while jobs run</span>", text)
        data = self.page().data
        for age, gone in (0, False), (3600, True):
            told = json.dumps({**data, "made": time.time() - age}).encode()
            packed = base64.b64encode(zlib.compress(told)).decode()
            self.write(re.sub('(<script id="data" [^>]*>)[^<]*', rf"\g<1>{packed}", text), "out.html")
            shown = self.browse("")
            live = words(present(re.search('<span id="live"[^>]*>(.*?)</span>', shown))[1])
            self.assertRegex(live, "^; nothing new for 1h 00m: the program that wrote it has exited$" if gone
                             else "^, updated every 10s while jobs run$")

    def campaign(self) -> None:
        """40 runs on two hosts, of which 10 have failed: 6 for one reason, 4 for another."""
        ends, lines = [], []
        for seed in range(1, 41):
            bad = seed in (1, 5, 10, 12, 15, 25, 30, 31, 35, 40)
            command = f"./simulate --seed {seed}"
            lines.append(f"{'!' if bad else 'd'} {command}\n")
            if bad:
                self.write("singular matrix\n" if seed < 26 else "no memory\n", f"out/{seed}.err")
            ends.append(end(seed, seed, command, BEGAN + seed, state="!" if bad else "d",
                            host=f"node{1 + seed % 2}", files=[f"{seed}.err"] if bad else []))
        self.write("".join(lines))
        self.journal(*ends)

    def pixels(self, *colours: str) -> list[list[int]]:
        """In which columns of the picture of the slots there are pixels of these colours."""
        text = self.shown("""
            const node = get("slots"), c = node.getContext("2d"), image = c.getImageData(0, 0, node.width,
              node.height).data;
            const style = getComputedStyle(document.documentElement);
            document.title = JSON.stringify(%s.map(name => {
              const digits = style.getPropertyValue(name).trim().slice(1);
              const colour = digits.match(/../g).map(part => parseInt(part, 16));
              const found = new Set();
              for (let k = 0; k < image.length; k += 4)
                if (colour.reduce((sum, part, i) => sum + Math.abs(image[k + i] - part), 0) < 9
                  && image[k + 3] == 255) found.add(k / 4 %% node.width);
              return [...found].sort((a, b) => a - b);
            }));""" % json.dumps(colours))
        found: list[list[int]] = json.loads(present(re.search("<title>(.*?)</title>", text))[1])
        return found

    def shown(self, act: str = "", *more: object, width: int = 800) -> str:
        """The elements that the report of out/journal has in a browser, after a script has acted on it."""
        file = ["runs.txt"] if (self.dir / "runs.txt").exists() else []
        self.assertEqual(self.report("--outdir", "out", *file).code, 0)
        return self.browse(act, width)

    def browse(self, act: str, width: int = 800) -> str:
        """The elements that out.html has in a browser."""
        script = """<script>
            const type = text => { get("text").value = text; get("text").oninput(); };
            const choose = (id, value) => { get(id).value = value; get(id).onchange(); };
            function act() { %s }
            function ready() { if (get("main").hidden) setTimeout(ready, 20); else act(); }
            ready();
            </script></body>""" % act
        page = self.read("out.html").decode()
        self.write(page.replace("</body>", script), "acted.html")
        command = [
            present(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={self.dir}/profile",
            f"--window-size={width},900",
            "--virtual-time-budget=5000",
            "--dump-dom",
            f"file://{self.dir}/acted.html",
        ]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=300, check=True
        )
        return re.sub("<script>.*?</script>", "", done.stdout.decode(), flags=re.DOTALL)


if __name__ == "__main__":
    unittest.main()
