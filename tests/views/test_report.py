"""Promise: --report writes one page about all runs, whole at any time, which runs no command."""
import contextlib
import html
import html.parser
import json
import os
import re
import subprocess
import time
import unittest
import unittest.mock
from typing import Any

import runmaker4
import runwait4
from tests.support.case import GATE
from tests.support.journal import BEGAN, end, start
from tests.support.locks import lock_table
from tests.support.page import CHROMIUM, Page, browser_command, words
from tests.support.processes import DEADLINE, Ended, wait_until
from tests.support.runs import RunCase
from tests.support.scripts import FULL, RUNMAKER, RUNWAIT
from tests.support.values import present

EVIL = "</script><img src=x onerror=\"document.title='owned'\">"
HERE = os.uname().nodename


spared = unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: each browser takes seconds")


BERLIN = {"TZ": "Europe/Berlin"}


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
        return self.run_script(RUNWAIT, "--report", "out.html", "--outdir", "out", "runs.txt", *args,
                               **options)

    def page(self, name: str = "out.html") -> Page:
        page = Page(self.read(name).decode())
        self.assertEqual(page.open, [])
        return page

    def journal(self, *lines: bytes) -> None:
        """Write the journal, and a job file if there is none."""
        self.write(b"".join(lines), "out/journal")
        if not (self.dir / "runs.txt").exists():
            self.write("d true\n")


class Content(ReportCase):
    """What stands in the page."""

    def test_it_tells_of_what_runners_ran_with_commands_and_last_output(self) -> None:
        self.write(". echo hello\n. echo one; echo two >&2; exit 3\n. kill -9 $$\nx true\n")
        self.run_script(RUNMAKER, "--outdir", "out", "--name", "alice", "runs.txt")
        self.assertEqual(self.report().code, 0)
        page = self.page()
        self.assertEqual(page.counts, "4 jobs: 0 new, 0 running, 1 done, 2 failed, 0 error, 1 held")
        self.assertEqual(page.data["counts"], {"new": 0, "running": 0, "done": 1, "failed": 2, "error": 0,
                                               "held": 1})
        self.assertEqual(page.refresh, [])
        self.assertEqual(page.failed("host", "command", "output"), [
            [2, "exit 3", "alice", "echo one; echo two >&2; exit 3", "two"],
            [3, "signal 9 (SIGKILL)", "alice", "kill -9 $$", ""]])
        self.assertEqual(page.others("slot", "command"), [[1, "exit 0", "1", "echo hello"]])
        self.assertEqual(page.groups, ["1|two|line 2 on alice", "1|signal 9 (SIGKILL)|line 3 on alice"])

    def test_what_runs_and_why_new_lines_wait_stands_there_as_in_the_status(self) -> None:
        self.start_to_gate(f". {GATE}\n#RUN barrier\n. b\n", "--outdir", "out")
        self.addCleanup(self.open_gate)
        self.wait_file("out/journal")
        self.assertEqual(self.report().code, 0)
        status = self.run_script(RUNWAIT, "--status", "--outdir", "out", "runs.txt").out.decode()
        shown = f"{self.page().counts}\n{self.page().status}\n"
        self.assertIn("line 3 waits at the #RUN barrier", status)
        self.assertEqual(*([word for word in text.split() if not re.fullmatch(r"[\d.]+[ms]", word)]
                           for text in (status, shown)))        # but for how long it has run
        self.assertEqual(self.page().outcomes, {"running": 1})

    def test_nothing_that_a_job_says_or_is_called_becomes_part_of_the_page(self) -> None:
        name = "<img onerror=x>&.txt"
        self.write("! x\n! odd\n! said\n", name)
        self.journal(
            journal_end(1, command="x", host=EVIL, slot=EVIL, state="!", exit=1, cause=EVIL, files=["1.err"]),
            journal_end(2, command="odd", state="!", cause="odd").replace(
                b'"cause": "odd"', rb'"cause": "\udcff \u0000\n\u001b[1m\u2028\u202e"'),
            journal_end(3, command="said", state="!", exit=1, files=["1.err"]),
        )
        self.write(EVIL + "\x1b[1m\u2028\u202e", "out/1.err")
        ended = self.run_script(RUNWAIT, "--report", "out.html", "--outdir", "out", name)
        self.assertEqual(ended.code, 0, ended.err)
        page = self.page()
        self.assertEqual((page.tags.count("script"), page.tags.count("img"), page.links), (2, 0, []))
        self.assertEqual(page.title, f"{name} – {HERE}:{os.path.realpath(self.dir)}")
        self.assertEqual(page.failed("host", "slot"), [
            [1, EVIL, EVIL, EVIL], [2, "\udcff \0\n\x1b[1m\u2028\u202e", "alice", "1"],
            [3, "exit 1", "alice", "1"]])
        self.assertEqual(page.groups, [f"1|{EVIL}|line 1 on {EVIL}", "1|\ufffd ???[1m??|line 2 on alice",
                                       f"1|{EVIL}??|line 3 on alice"])
        text = self.read("out.html").decode()
        self.assertNotRegex(text, "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]")

    def test_each_state_has_a_colour_by_day_and_by_night(self) -> None:
        ends = [journal_end(number, state=state) for number, state in enumerate("!e.x", 2)]
        self.journal(journal_end(1, took=4e8), *ends)           # a run may have taken years
        self.report()
        self.assertIn("4629d 15h", [row["took"] for row in self.page().rows])
        self.assertEqual(self.page().outcomes,
                         {"done": 1, "failed": 1, "error": 1, "put back": 1, "cancelled": 1})
        text = self.read("out.html").decode()
        for state in "done", "failed", "error", "running", "held", "new", "cancelled", "unknown":
            self.assertEqual(len(re.findall(f"--{state}: #", text)), 2, state)

    def test_style_sheet_and_picture_ask_the_same_so_both_are_printed_in_light_colours(self) -> None:
        asked = re.findall(r"(\w+ and )?\(prefers-color-scheme: dark\)", runwait4.PAGE)
        self.assertEqual(asked, ["screen and "] * 2)

    def test_no_font_size_and_no_width_ignores_the_font_size_that_is_set_in_the_browser(self) -> None:
        style = runwait4.PAGE.partition("<script")[0]
        sizes = re.findall(r"font(?:-size)?: *([^;}]+)", style)
        self.assertGreater(len(sizes), 5)
        self.assertEqual([size for size in sizes if re.search(r"\dpx", size)], [])
        self.assertNotRegex(runwait4.PAGE, r"width: [0-9.]+px\)")           # of the window

    def test_what_was_run_again_comes_after_what_is_left_to_fix(self) -> None:
        self.write("d a\n! b\nd c\ne d\n. e\n")
        self.journal(*(end(f"{number} {command}", number, command, BEGAN + number, state="!", files=[])
                       for number, command in enumerate("abce", 1)),
                     end("again", 1, "a", BEGAN + 20), end("other", 3, "c", BEGAN + 30, state="!"))
        self.assertEqual(self.report().code, 0)
        page = self.page()
        self.assertEqual(page.counts, "5 jobs: 1 new, 0 running, 2 done, 1 failed, 1 error, 0 held")
        self.assertEqual(page.outcomes, {"done": 1, "failed": 5})
        self.assertEqual(page.failed(), [[2, "exit 3"], [4, "error"]])
        self.assertEqual(page.rows[:2], [row for row in page.rows if row["line"] in (2, 4)])
        self.assertEqual(page.others("is_last"), [
            [1, "exit 3 (now done)", False], [3, "exit 3 (now done)", False], [5, "exit 3 (now new)", True],
            [1, "exit 0", True], [3, "exit 3 (now done)", False]])
        self.assertEqual(page.groups, ["1|exit 3|line 2 on node1", "1|no recorded run|line 4"])

    def test_exit_statuses_are_reasons_of_their_own(self) -> None:
        self.write("".join(f"! run {number}\n" for number in range(1, 7)))
        self.journal(*(end(number, number, f"run {number}", state="!", exit=number % 2 + 1, files=[])
                       for number in range(1, 7)))
        self.assertEqual(self.report().code, 0)
        self.assertEqual(self.page().groups,
                         ["3|exit 2|lines 1, 3, 5 on node1", "3|exit 1|lines 2, 4, 6 on node1"])

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
        self.assertEqual(self.report().code, 0)
        page = self.page()
        self.assertEqual(page.groups,
                         ["41|ValueError: singular matrix|lines 1, 2, 3, 4, 5, 6, 7, 8, ... on node1",
                          f"3|step …: {EVIL}|lines 42, 43, 44 on node1", "1|exit 3|line 45 on node1"])
        self.assertEqual([row["group"] for row in page.rows], [0] * 41 + [1] * 3 + [2])

    def test_output_is_linked_where_it_lies_below_the_page_and_nowhere_else(self) -> None:
        odd = "a \"'><img src=x>?%#\udcff.out"
        names = ["1.err", "1.out", odd, "gone.err", "../runs.txt", ".."]
        for name in names[:3]:
            self.write("words\n", os.path.join("out", name))
        self.write("! true\n")
        self.journal(end(1, 1, state="!", files=names))
        (self.dir / "beside").mkdir()
        there = ["1.err", "1.out", "a%20%22%27%3E%3Cimg%20src%3Dx%3E%3F%25%23%FF.out", "gone.err"]
        for locale in {}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}:
            for page, base in ("page.html", "./out/"), ("out/page.html", "././"), ("beside/page.html", None):
                with self.subTest(page, locale=locale):
                    ended = self.run_script(RUNWAIT, "--report", page, "--outdir", "out", "runs.txt",
                                            env=locale)
                    self.assertEqual(ended.code, 0, ended.err)
                    links = [f"{base}{name}" for name in there if base]
                    self.assertEqual([row["files"] for row in self.page(page).rows], [links])

    def test_where_and_how_the_page_was_made_is_told(self) -> None:
        self.write("d b\n")
        self.journal(end(1, 2, "b"))
        ended, page = self.report("--stats"), self.page()           # both are done
        alone = self.run_script(RUNWAIT, "--stats", "--outdir", "out")
        self.assertEqual((ended.code, ended.out, ended.err), (0, alone.out, b""))
        self.assertEqual(page.place, f"{HERE}:{os.path.realpath(self.dir)}")
        self.assertEqual(page.title, f"runs.txt – {page.place}")
        self.assertEqual(page.command, "runwait4.py --report out.html --outdir out runs.txt --stats")
        self.assertRegex(page.made, r"^Made \d{4}-\d\d-\d\d \d\d:\d\d:\d\d [-+]\d{4}$")

    def test_each_run_has_the_offset_that_its_host_had_from_utc_then(self) -> None:
        self.write("d a\nd b\n")
        summer, winter = 1_792_836_000.0, 1_793_104_000.0       # around 25 October 2026, in Europe
        self.journal(end(1, 1, "a", summer), end(2, 2, "b", winter))
        self.assertEqual(self.report(env=BERLIN).code, 0)
        self.assertEqual([row["zone"] for row in self.page().rows], [7200, 3600])

    def test_it_is_made_in_a_directory_that_was_removed(self) -> None:
        self.journal(end(1, 1))
        gone = self.dir / "gone"
        gone.mkdir()
        names = "--report", self.dir / "out.html", "--outdir", self.dir / "out", self.dir / "runs.txt"
        ended = self.run_script("sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", *self.command(RUNWAIT, *names),
                                cwd=gone)
        self.assertEqual((ended.code, ended.err), (0, b""))
        self.assertEqual(self.page().place, f"{HERE}:{os.path.realpath(self.dir)}")

    def test_a_run_whose_end_is_not_written_yet_is_ending_and_no_failure(self) -> None:
        runner = os.open(lock_table(self.dir / "runs.txt"), os.O_RDWR | os.O_CREAT)
        self.addCleanup(os.close, runner)
        self.assertTrue(runmaker4.lock(runner, runmaker4.PRESENCE_BYTES))      # a runner is at work
        for state, now in ("d", "done"), ("!", "failed"):
            for age, outcome, how in (-55, "running", "ending"), (6, "unknown", "unknown"):     # at most 5
                with self.subTest(state=state, age=age):
                    path = self.write(f"{state} a\n")
                    os.utime(path, (time.time() - age,) * 2)
                    self.journal(start(1, 1, "a"))
                    self.assertEqual(self.report().code, 0)
                    row, = self.page().rows
                    self.assertEqual((row["outcome"], row["result"]), (outcome, f"{how} (now {now})"))
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
            self.assertIn(" 0 failed, 0 error,", page.counts)
            self.assertLessEqual(page.outcomes.keys(), {"done", "running"})
            self.assertEqual((page.failed(), page.groups), ([], []))
            if runner.poll() is not None:
                break
        self.stop(runner)

    def test_of_many_runs_the_last_are_there_and_the_last_ones_of_all_failed_lines(self) -> None:
        self.write("! a\n! b\nd c\n! d\n! e\n")
        self.write("no space\n", "out/1.out")
        self.write("no memory\n", "out/2.out")
        self.journal(end("a1", 1, "a", state="!"), end("a2", 1, "a", state="!"), end("b", 2, "b", state="!"),
                     end("d", 4, "d", state="!", files=[], stderr="no network\n"),
                     end("e", 5, "e", state="!", cause="timeout"),
                     *(end(f"c{number}", 3, "c", BEGAN + number) for number in range(9)))
        patch = "import runwait4\nrunwait4.Report.MAX_RUNS = 3\nrunwait4.Report.MAX_OUTPUTS = 1\n"
        self.finish(self.start_patched(patch, "--report", "out.html", "--outdir", "out", "runs.txt",
                                       script=RUNWAIT))
        page = self.page()
        self.assertEqual([row["line"] for row in page.rows], [1, 2, 4, 5, 3, 3, 3])
        self.assertIn("table and picture have the last 3 of 14 runs, the table also the last of each failed",
                      page.status)
        self.assertEqual(page.groups, ["1|no space|line 1 on node1",
                                       "1|exit 3, output not read|line 2 on node1",
                                       "1|no network|line 4 on node1",
                                       "1|timeout after 1.5s|line 5 on node1"])
        self.assertEqual(page.rows[1]["output"], "(output not read)")


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
        self.assertEqual((self.page().refresh, self.page().data["counts"]["done"]), ([], 2))
        self.assertEqual([name for name in os.listdir(self.dir) if name.startswith(".runwait4")], [])

    def test_a_page_that_cannot_be_written_is_said_once_and_is_an_error_if_it_is_the_last(self) -> None:
        self.start_to_gate(f". {GATE}\n", "--outdir", "out")
        self.wait_file("out/journal")
        # it writes a page at each look, however long a page takes
        hasty = """
import sys, runwait4
due = runwait4.Reporter.write_page_if_due
def write_page_now(self):
    self._next_page_time = 0.0
    with open("tries", "a") as tries:
        print(sys.argv[3], file=tries)
    return due(self)
runwait4.Reporter.write_page_if_due = write_page_now
"""
        names, waiters = ("out.html", "last.html"), []
        for name in names:
            with open(self.dir / f"said.{name}", "wb") as said:
                waiters.append(self.start_patched(hasty, "--progress", "--report", name, "--outdir", "out",
                                                  "runs.txt", script=RUNWAIT, stderr=said))
        for name in names:
            self.wait_file(name)
            while not (self.dir / name).is_dir():
                with contextlib.suppress(FileExistsError):      # it was written anew in between
                    (self.dir / name).unlink(missing_ok=True)
                    (self.dir / name).mkdir()
            self.assertIn(f"{name}: is a directory", self.wait_file(f"said.{name}").decode())
        before = len(self.read("tries"))
        for name in names:
            wait_until(lambda: self.read("tries")[before:].count(name.encode()) > 1, what="another try")
        self.assertEqual([waiter.poll() for waiter in waiters], [None, None])
        self.assertEqual(self.read("said.out.html").count(b"\n"), 1)
        (self.dir / "out.html").rmdir()
        self.open_gate()
        self.assertEqual([waiter.wait(DEADLINE) for waiter in waiters], [0, 2])
        self.assertEqual(self.page().data["counts"]["done"], 1)
        self.assertEqual(self.read("said.out.html").count(b"\n"), 1)
        self.assertIn(b"last.html: is a directory", self.read("said.last.html").splitlines()[-1])

    def test_a_failed_barrier_check_ends_it_with_exit_status_1_and_is_named(self) -> None:
        self.write("! a\n#RUN barrier check\n. b\n")
        self.journal(end(1, 1, "a", state="!"))
        ended = self.report("--progress")
        self.assertEqual(ended.code, 1, ended.err)
        self.assertRegex(ended.err, rb"^runwait4\.py: runs\.txt: .*line 1\b.*barrier check.*line 2\b.*\n$")
        page = self.page()
        self.assertEqual((page.refresh, page.counts[:31]), ([], "2 jobs: 1 new, 0 running, 0 don"))
        self.assertIn("barrier check", page.status)
        self.assertEqual(self.report().code, 0)

    def test_a_file_of_plain_commands_is_refused(self) -> None:
        self.write("echo a\necho b\n")
        self.journal(end(1, 1))
        for options in ("--report", "out.html"), ("--report", "out.html", "--progress"), ("--stats",):
            ended = self.run_script(RUNWAIT, *options, "--outdir", "out", "runs.txt")
            self.assertRefused(ended, "no jobs; line 1 is plain text")

    def test_only_an_older_report_and_an_empty_file_are_replaced(self) -> None:
        self.journal(journal_end(1))
        page = "<!DOCTYPE html>\n<title>a page of somebody else's</title>\n"
        for name, content in ("runs.txt", ". true\n"), ("notes.html", ". true\n"), ("index.html", page):
            text = self.write(content, name).read_bytes()
            for more in ((), ("--progress",)):                  # which says so before it waits
                ended = self.run_script(RUNWAIT, "--report", name, "--outdir", "out", *more, "runs.txt")
                self.assertRefused(ended, f"{name}: not written by this option")
                self.assertEqual(self.read(name), text)
        self.write("", "out.html")
        for _ in range(2):
            self.assertEqual(self.report().code, 0)
            self.assertEqual(self.page().outcomes, {"done": 1})

    def test_one_observation_makes_one_page_but_for_its_time(self) -> None:
        self.write("! a\n! b\nd c\n")
        self.journal(*(end(f"{host}{number}", number % 3 + 1, "abc"[number % 3], BEGAN + number, state="!",
                           host=host)
                       for number in range(20) for host in ("alice", "bob", "carol")))
        pages = set()
        for seed in "123":
            self.assertEqual(self.report(env={"PYTHONHASHSEED": seed}).code, 0)
            pages.add(re.sub('"made":[0-9.]+|Made [-+0-9: ]+', "", self.read("out.html").decode()))
        self.assertEqual(len(pages), 1)

    def test_a_page_is_rewritten_after_ten_seconds_and_not_before(self) -> None:
        self.journal(journal_end(1))
        options = runwait4.parse_options(["--progress", "--report", str(self.dir / "out.html"), "--outdir",
                                          str(self.dir / "out"), str(self.dir / "runs.txt")])
        reporter = runwait4.Reporter(options, runwait4.Watcher(options.file), [])
        with unittest.mock.patch.object(runwait4.Reporter, "write_page") as write_page, \
                unittest.mock.patch("runwait4.time.monotonic") as now:
            for seconds, pages in (100.0, 1), (109.9, 1), (110.0, 2), (119.0, 2), (121.0, 3):
                now.return_value = seconds
                self.assertEqual(reporter.write_page_if_due(), "")
                self.assertEqual(write_page.call_count, pages)


@unittest.skipUnless(CHROMIUM, "chromium is not installed (`python3 -m tests.real.rigs tools` does that)")
class InABrowser(ReportCase):
    """What a browser makes of the page."""

    def test_the_page_is_drawn_and_a_hostile_command_stays_text(self) -> None:
        self.write(f"! {EVIL}\n")
        self.write(EVIL, "out/1.err")
        self.journal(end(1, 1, EVIL, state="!", exit=1, host=EVIL, slot=EVIL, cause=EVIL, files=["1.err"]),
                     *map(journal_end, range(2, 2000)),
                     journal_end(2000, state="c", exit=-1, signal=15, cause="cancelled"))
        self.assertEqual(self.report().code, 0)
        text = self.browse('click("#groups button"); type("img")')
        self.assertIn("1,998runs done1run failed1run cancelled", words(text))    # the legend of the picture
        self.assertIn(f"<title>runs.txt – {HERE}:", text)
        self.assertRegex(text, '<h1 id="headline"><b class="failed">1</b> of 1 job failed</h1>')
        self.assertIn(">1 of 2,000: &lt;/script&gt;&lt;img src=x", text)
        self.assertRegex(text, "<q[^>]*>&lt;/script&gt;&lt;img src=x")
        self.assertNotIn("<img", text)

    def test_a_file_of_fetch_that_is_missing_is_named(self) -> None:
        self.write("! a\n")
        self.journal(end(1, 1, "a", state="!", exit=0, cause="files", why="out/1: not made", files=[]))
        self.assertEqual(self.report().code, 0)
        self.assertRegex(self.browse('type("not made")'), "<q[^>]*>out/1: not made<")

    @spared
    def test_runs_are_found_by_text_state_host_and_last_words(self) -> None:
        self.campaign()
        acts = {
            "": 10,                                     # at first what is left to fix
            'type("SEED 1")': 4,                        # 10, 12, 15 and 1
            'click("#clear"); type("SEED 1")': 11,      # 1, 10 to 19
            'click("#clear"); type("singular")': 6,
            'choose("kind", "failed")': 10,
            'choose("kind", "done")': 30,
            'choose("kind", ""); choose("host", "node2")': 20,
            'choose("host", "node2"); type("seed 15")': 1,
            'click("#groups button")': 6,
            'click("#groups button"); click("#groups button")': 40,
            'type("nothing")': 0,
        }
        found = self.told("""
            const told = [];
            for (const act of [%s]) {
              act();
              told.push([get("hits").textContent, document.querySelectorAll("#table tbody").length,
                get("clear").hidden]);
              change({text: "", kind: "to fix", host: "", words: ""});
            }
            return told;""" % ", ".join(f"() => {{ {act} }}" for act in acts))
        for act, (hits, rows, all_shown) in zip(acts, found):
            with self.subTest(act):
                self.assertEqual((hits.partition(":")[0], rows), (f"{acts[act]} of 40", acts[act]))
                self.assertEqual(all_shown, acts[act] == 40)

    @spared
    def test_of_many_reasons_the_most_frequent_are_shown(self) -> None:
        count = 30
        self.write("".join(f"! {number}\n" for number in range(count)))
        causes = ["same"] * 4 + [chr(65 + number) for number in range(count - 4)]
        self.journal(*(end(number, number + 1, str(number), state="!", cause=cause, files=[])
                       for number, cause in enumerate(causes)))
        told = self.told("""
            const rows = [...document.querySelectorAll("#groups button")];
            const shares = rows.slice(0, 2).map(row => row.style.cssText);
            return [rows.length, get("rest").textContent, ...shares];""")
        self.assertEqual(told, [20, "and 7 more reasons", "--share: 100%;", "--share: 25%;"])

    @spared
    def test_a_search_and_the_order_survive_a_reload(self) -> None:
        self.campaign()
        first = self.told('change({text: "singular", sort: "line", up: true}); return location.hash;')
        page = self.browse("", fragment=first)
        self.assertEqual(re.findall('<td class="right">([0-9]+)</td><td class="result">', page),
                         ["1", "5", "10", "12", "15", "25"])

    @spared
    def test_a_click_on_a_heading_sorts_by_it_and_unknown_values_come_last(self) -> None:
        self.write("! a\n! b\n! c\n! d\n")
        self.journal(end(1, 1, "a", took=10, state="!", host="node10"),
                     end(2, 2, "b", took=9, state="!", host="node9"),
                     end(3, 3, "c", took=0.5, state="!", host="node1", memory=None))
        told = self.told("""
            return ["Line", "Time", "Host", "Memory"].map(name => [0, 1].map(() => {
              [...document.querySelectorAll("th button")].find(button => button.textContent == name).click();
              const rows = [...document.querySelectorAll("#table tbody")];
              return [document.querySelector("th[aria-sort]").ariaSort,
                ...rows.map(row => +row.rows[0].cells[0].textContent)];
            }));""")
        self.assertEqual(told[0], [["ascending", 1, 2, 3, 4], ["descending", 4, 3, 2, 1]])
        self.assertEqual(told[1], [["descending", 1, 2, 3, 4], ["ascending", 3, 2, 1, 4]])
        self.assertEqual(told[2], [["ascending", 3, 2, 1, 4], ["descending", 1, 2, 3, 4]])
        self.assertEqual([row[3:] for row in told[3]], [[3, 4]] * 2)

    @spared
    def test_many_runs_are_shown_part_by_part(self) -> None:
        self.journal(*(journal_end(number, 0.5, command=f"{'long/' * 30} --seed {number}")
                       for number in range(1, 6001)))
        told = self.told("""
            const count = () => document.querySelectorAll("#table tbody").length;
            const before = count();
            click('#more');
            const after = count();
            type("--seed 599");
            return [before, after, get("hits").textContent, count()];""")
        self.assertEqual(told, [200, 400, "11 of 6,000", 11])

    @spared
    def test_what_was_found_has_the_numbers_of_now_and_links_to_output(self) -> None:
        self.write("d a\n# new\nd b\n")
        self.write("x", "out/2.out")
        self.journal(end("a", 1, "a", files=[]), end("b", 2, "b", files=["2.out"]))
        rows, links = self.told("""
            type("b");
            const rows = [...document.querySelectorAll("#table tbody")];
            return [rows.map(row => row.textContent),
              [...document.querySelectorAll("#table a")].map(a => [a.getAttribute("href"), a.textContent])];
            """)
        self.assertEqual((len(rows), links), (1, [["./out/2.out", "out"]]))
        self.assertRegex(rows[0], r"^3exit 0.*line 2 when it ran: b out$")

    @spared
    def test_no_colour_is_wider_than_what_it_stands_for(self) -> None:
        long = [end(f"d{number}", 1, "long", BEGAN + 1.3 * number + 0.033, 1.25) for number in range(500)]
        bad = [end(f"f{number}", 2, "short", BEGAN + 1.3 * number, 0.033, state="!")
               for number in range(500) if number % 100 == 50]
        self.journal(*long, *bad)
        failed, done = self.pixels(("--failed", 1.0), ("--done", 1.0))
        self.assertEqual(len(failed), 5)                # columns of a pixel
        self.assertGreater(len(done), 100)

    @spared
    def test_a_run_without_an_end_is_pale_up_to_the_next_one_of_its_slot(self) -> None:
        self.journal(start("open", 1), end("next", 2, began=BEGAN + 80, took=20.0))
        unknown, pale, done = self.pixels(("--unknown", 0.3), ("--done", 0.3), ("--done", 1.0))
        self.assertGreater(max(unknown) - min(unknown), 0.7 * 600)
        self.assertEqual(pale, [])
        self.assertGreater(len(done), 80)

    @spared
    def test_the_picture_begins_where_it_has_all_runs(self) -> None:
        """Before, all slots would seem idle but for failures; a run that goes beyond is cut off there."""
        self.write("! a\nd b\n! c\n")
        self.journal(end("a", 1, "a", BEGAN, state="!"),
                     *(end(f"b{number}", 2, "b", BEGAN + 1000 + number, 1.0) for number in range(9)),
                     end("c", 3, "c", BEGAN + 500, 510.0, state="!", slot="2"))
        patch = "import runwait4\nrunwait4.Report.MAX_RUNS = 5\n"
        self.finish(self.start_patched(patch, "--report", "out.html", "--outdir", "out", "runs.txt",
                                       script=RUNWAIT))
        text = self.browse("document.title = JSON.stringify([first, last, [...document.querySelectorAll("
                           "'#colours li')].map(entry => entry.textContent), runs.length])")
        self.assertEqual(json.loads(html.unescape(present(re.search("<title>(.*?)</title>", text))[1])),
                         [BEGAN + 1006, BEGAN + 1010, ["4runs done", "1run failed"], 6])

    @spared
    def test_the_legend_has_the_colours_of_the_picture_also_the_pale_one(self) -> None:
        self.write("e open\nd next\n")
        self.journal(start("open", 1, "open"), end("next", 2, "next", BEGAN + 80, 20.0))
        legend, drawn = self.told("""
            const c = get("slots").getContext("2d"), samples = [...document.querySelectorAll("#colours i")];
            const used = c.getImageData(0, 0, get("slots").width, get("slots").height).data;
            const seen = new Set();
            for (let k = 0; k < used.length; k += 4) seen.add([...used.slice(k, k + 3)].join());
            return [samples.map(sample => {
              c.fillStyle = getComputedStyle(sample).backgroundColor; c.fillRect(0, 0, 1, 1);
              return [...c.getImageData(0, 0, 1, 1).data.slice(0, 3)].join(); }), [...seen]];""")
        self.assertEqual(len(legend), 2)
        near = [[all(abs(int(one) - int(other)) < 3 for one, other in zip(sample.split(","), seen.split(",")))
                 for seen in drawn] for sample in legend]
        self.assertTrue(all(map(any, near)), (legend, drawn))

    def test_the_picture_has_the_fonts_of_the_page_and_their_size(self) -> None:
        self.campaign()
        small, large = (self.told("""
            document.body.style.fontSize = "%s";
            const c = get("slots").getContext("2d"), sizes = [];
            c.fillText = () => sizes.push(c.getTransform().a * parseFloat(c.font) / devicePixelRatio);
            dispatchEvent(new Event("resize"));
            return [c.font.includes("sans-serif"), sizes[0], get("slots").clientHeight];""" % size)
            for size in ("15px", "30px"))
        self.assertEqual([small[0], large[0], large[1] / small[1]], [True, True, 2.0])
        self.assertAlmostEqual(large[2] / small[2], 2.0, delta=0.1)

    def test_times_are_those_of_the_host_by_the_clock_of_that_day(self) -> None:
        """With the year if it is another one; and the axis has whole hours on both sides."""
        summer, winter = 1_761_400_000.0, 1_761_480_000.0       # around 26 October 2025, in Europe
        self.write("d a\nd b\n")
        self.journal(end(1, 1, "a", summer), end(2, 2, "b", winter))
        began, ticks = self.told("""
            const ticks = [], node = get("slots"), c = node.getContext("2d");
            c.fillText = text => ticks.push(text);
            draw();
            return [[...document.querySelectorAll("tbody td:nth-child(5)")].map(cell => cell.textContent),
              ticks.filter(text => text.includes(":"))];""", env=BERLIN)
        self.assertEqual(began, ["2025-10-26 13:00:00", "2025-10-25 15:46:40"])
        self.assertTrue(ticks)
        odd = [tick for tick in ticks if not re.search(r"^2025-10-2\d (00|06|12|18):00$", tick)]
        self.assertEqual(odd, [])

    def test_tries_with_too_little_memory_have_not_the_colour_of_failures(self) -> None:
        self.write("d a\n! b\n")
        self.journal(*(end(f"{try_}{command}", line, command, BEGAN + 100 * try_ + 10 * line, state=state,
                           cause=cause, promised=1 << 30, exit=-1 if cause else 0)
                       for line, command, last in ((1, "a", ("d", "")), (2, "b", ("!", "memory")))
                       for try_, (state, cause) in enumerate([("!", "memory"), ("!", "memory"), last])))
        legend = self.told("""
            return [...document.querySelectorAll("#colours li")].map(entry => entry.textContent);""")
        self.assertEqual(sorted(legend), ["1run done", "1run failed", "4runs with too little memory"])

    @spared
    def test_the_page_is_no_wider_than_the_screen_and_a_table_has_its_commands(self) -> None:
        self.campaign()
        for width in 400, 1000, 1900:
            with self.subTest(width):
                told = self.told("""
                    return [document.documentElement.scrollWidth <= innerWidth,
                      get("table").scrollWidth <= get("table").parentNode.clientWidth,
                      [...document.querySelectorAll("td.what")].every(cell => cell.clientWidth > 200),
                      document.querySelectorAll("tbody q").length,
                      document.querySelector("th.command").offsetWidth > 0];""", width=width)
                self.assertEqual(told, [True, True, True, 10, width > 700])

    @spared
    def test_a_common_beginning_is_left_out_and_no_line_ends_within_an_option(self) -> None:
        option = f"--learning-rate-{'of-' * 6}layers"
        ends = [end(number, number, f"simulate --name 'a b' {option} {number} {option}",
                    BEGAN + number, state="!", files=[f"{number}.err"]) for number in (1, 2)]
        self.write(f"unrecognized: {option} --mode", "out/1.err")
        self.write(f"! {'! '.join(json.loads(line)['command'] + chr(10) for line in ends)}")
        self.journal(*ends)
        for width in 500, 800, 1400:
            with self.subTest(width):
                shown, heights, found = self.told("""
                    const cells = [...document.querySelectorAll("td.what")];
                    const options = [...document.querySelectorAll("span.option")];
                    type("name");
                    return [cells.map(cell => [cell.firstChild.nodeValue, cell.textContent, cell.title]),
                      options.map(span => span.offsetHeight), get("hits").textContent];""", width)
                self.assertEqual([cell[1].split(" err")[0] for cell in shown],
                                 [f"... {option} {number} {option}" for number in (2, 1)])
                self.assertEqual(shown[0][2], f"simulate --name 'a b' {option} 2 {option}")
                self.assertEqual((len(heights), max(heights) < 30, found), (10, True, "2 of 2"))

    @spared
    def test_without_scripts_the_status_and_the_reasons_are_read(self) -> None:
        self.campaign()
        self.assertEqual(self.report().code, 0)
        text = self.read("out.html").decode()
        self.write(re.sub("<script>.*?</script>", "", text, flags=re.DOTALL), "out.html")
        shown = self.browse("")
        self.assertIn(">40 jobs: 0 new, 0 running, 30 done, 10 failed, 0 error, 0 held<", shown)
        self.assertIn("<b>6</b><code>singular matrix</code>", shown)

    @spared
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
        self.assertRegex(text, r", updated every [\dms ]+ while jobs run</p>")
        for age, gone in (0, False), (3600, True):
            self.write(re.sub('"made":[0-9.]+', f'"made":{time.time() - age}', text), "out.html")
            made = present(re.search('<p id="made">(.*?)</p>', self.browse("")))[1]
            self.assertEqual("the program that writes it has exited" in made, gone)

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

    def pixels(self, *colours: tuple[str, float]) -> list[list[int]]:
        """In which columns of the slots' picture each colour is, of which so much covers the background."""
        found: list[list[int]] = self.told("""
            const node = get("slots"), c = node.getContext("2d"), image = c.getImageData(0, 0, node.width,
              node.height).data;
            const style = getComputedStyle(document.documentElement);
            const parts = name => style.getPropertyValue(name).trim().slice(1).match(/../g)
              .map(part => parseInt(part, 16));
            const below = parts("--shade");
            return %s.map(([name, alpha]) => {
              const colour = parts(name).map((part, i) => part * alpha + below[i] * (1 - alpha));
              const found = new Set();
              for (let k = 0; k < image.length; k += 4)
                if (colour.reduce((sum, part, i) => sum + Math.abs(image[k + i] - part), 0) < 9
                  && image[k + 3] == 255) found.add(k / 4 %% node.width);
              return [...found].sort((a, b) => a - b);
            });""" % json.dumps(colours))
        return found

    def told(self, act: str, width: int = 800, **options: Any) -> Any:
        """What a script returns that acts on the report of out/journal in a browser."""
        self.assertEqual(self.report(**options).code, 0)
        text = self.browse("document.title = JSON.stringify((() => { %s })())" % act, width)
        return json.loads(html.unescape(present(re.search("<title>(.*?)</title>", text))[1]))

    def browse(self, act: str, width: int = 800, fragment: str = "") -> str:
        """The elements that out.html has in a browser."""
        script = """<script>
            const type = text => { get("text").value = text; get("text").oninput(); };
            const choose = (id, value) => { get(id).value = value; get(id).onchange(); };
            const click = selector => document.querySelector(selector).click();
            %s
            </script></body>""" % act
        page = self.read("out.html").decode()
        self.write(page.replace("</body>", script if act else "</body>"), "acted.html")
        command = [*browser_command(self.dir), f"--window-size={width},900", "--dump-dom",
                   f"file://{self.dir}/acted.html{fragment}"]
        shown = subprocess.check_output(command, stderr=subprocess.DEVNULL, timeout=300)
        return re.sub("<script>.*?</script>", "", shown.decode(), flags=re.DOTALL)
