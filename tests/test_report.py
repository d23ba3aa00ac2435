"""Promise: --report writes one page about all runs, whole at any time, that shows commands and never runs them."""
import base64
import html.parser
import json
import os
import re
import shutil
import subprocess
import unittest
import zlib
from typing import Any, Dict, List

import runwait4
from tests.journal import BEGAN, end, start
from tests.support import FULL, GATE, RUNMAKER, RUNWAIT, Ended, RunCase, Text, as_bytes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "</script><img src=x onerror=\"document.title='owned'\">"
VOID = {"meta", "br", "img", "link", "input"}


class Page(html.parser.HTMLParser):
    """A page whose elements all end where they should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: List[str] = []
        self.tags: List[str] = []
        self.links: List[str] = []
        self.title = ""
        self.feed(text)
        self.close()
        packed = re.search(r'<script id="data" type="text/plain">([A-Za-z0-9+/=]+)</script>', text)[1]
        self.data: Dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open[-1:] == ["title"]:
            self.title += data


def journal_end(number: int, **fields: object) -> str:
    """A line of a journal: the end of a run that took a second."""
    return json.dumps({
        "time": 1_795_183_239.0 + number, "event": "end", "run": f"a-1-{number}", "line": number, "command": "true",
        "host": "alice", "slot": "1", "pid": 7, "state": "d", "exit": 0, "signal": 0, "cause": "", "seconds": 1.0,
        "cpu": 0.5, "memory": 1 << 20, "bytes": 4, "files": [], **fields}) + "\n"


class ReportCase(RunCase):
    """Helpers for tests of the report."""

    def setUp(self) -> None:
        super().setUp()
        os.mkdir(self.dir / "out")

    def report(self, *args: object, **options) -> Ended:
        return self.run_script(RUNWAIT, "--report", "out.html", *args, **options)

    def page(self, name: str = "out.html") -> Page:
        page = Page(self.read(name).decode())
        self.assertEqual(page.open, [])
        return page

    def journal(self, *lines: Text) -> None:
        self.write(b"".join(map(as_bytes, lines)), "out/journal")


class Content(ReportCase):
    """What stands in the page."""

    def test_it_tells_of_what_runners_ran_with_commands_and_last_output(self):
        self.write(". echo hello\n. echo one; echo two >&2; exit 3\n. kill -9 $$\nx true\n")
        self.run_script(RUNMAKER, "--outdir", "out", "--name", "alice", "runs.txt")
        self.assertEqual(self.report("--outdir", "out", "runs.txt").code, 0)
        data = self.page().data
        self.assertEqual((data["runs"], data["states"], data["refresh"]), (3, [1, 2, 0, 0, 0, 0], 0))
        self.assertEqual((data["file"]["failed"], data["file"]["held"]), (2, 1))
        failed = {row[0]: row for row in data["tables"][0][1]}
        self.assertEqual((failed[2][2], failed[3][2]), ("exit 3", "SIGKILL"))
        self.assertEqual(failed[2][10:], ["echo one; echo two >&2; exit 3", "two"])
        self.assertEqual(data["cells"]["rows"], [["alice", "1"]])

    def test_a_job_log_will_do(self):
        self.write(". true\n. false\n")
        self.run_script(RUNMAKER, "--joblog", "log", "runs.txt")
        self.assertEqual(self.report("--joblog", "log").code, 0)
        self.assertEqual(self.page().data["states"], [1, 1, 0, 0, 0, 0])

    def test_nothing_that_a_job_says_or_is_called_becomes_part_of_the_page(self):
        self.journal(journal_end(1, command=EVIL, host=EVIL, slot=EVIL, state="!", exit=1, cause=EVIL, files=["1.err"]),
                     journal_end(2, command="\ud800\udcff \0\n\x1b[1m"))
        self.write(EVIL, "out/1.err")
        name = "<img onerror=x>&.txt"
        self.write("! x\n", name)
        self.assertEqual(self.report("--outdir", "out", name).code, 0)
        page = self.page()
        self.assertEqual((page.tags.count("script"), page.tags.count("img"), page.links), (2, 0, []))
        self.assertEqual(page.title, name)
        self.assertIn(EVIL, page.data["tables"][0][1][0])

    def test_each_state_has_a_name_and_a_colour_by_day_and_by_night(self):
        self.journal(*(journal_end(number, state=state) for number, state in enumerate("d!e.x", 1)))
        self.report("--outdir", "out")
        data, text = self.page().data, self.read("out.html").decode()
        self.assertEqual((data["states"], len(runwait4.STATES)), ([1, 1, 1, 1, 0, 1], 6))
        self.assertEqual(data["names"], ["done", "failed", "error", "put back", "running", "cancelled"])
        self.assertEqual(sorted(re.findall(r"--s(\d): #", text)), sorted("012345" * 2))
        self.assertEqual(sum(sum(counts) for _, *counts in data["times"]), 5)
        self.assertEqual(data["endings"][-1][0], 5)

    def test_runs_of_one_slot_that_overlap_have_rows_of_their_own(self):
        self.journal(journal_end(1, seconds=0.5), journal_end(2, seconds=1.5), journal_end(3, slot="10"),
                     journal_end(4, slot="9"))
        self.report("--outdir", "out")
        self.assertEqual([slot for _, slot in self.page().data["cells"]["rows"]], ["1", "1 (2)", "9", "10"])

    def test_of_runs_that_have_not_ended_the_last_of_a_running_line_runs_and_all_others_are_lost(self):
        self.start_to_gate(f"# an edit\n# moved these\n. {GATE}\nd a\n")
        self.addCleanup(self.open_gate)
        for number in (1, 3):               # before the edit, and after it
            self.journal(start("dead", number, GATE, BEGAN), start("alive", number, GATE, BEGAN + 1),
                         start("gone", 4, "a", BEGAN + 2), end("ended", 4, "a"))
            self.assertEqual(self.report("--outdir", "out", "runs.txt").code, 0)
            data = self.page().data
            self.assertEqual((data["states"], data["quantiles"]), ([1, 0, 2, 0, 1, 0], [1.5, 1.5, 1.5]))
            self.assertEqual([row[2] for row in data["tables"][0][1]], ["lost", "lost"])
            self.assertEqual(data["busy"][-1], 1)

    def test_only_times_that_are_known_are_counted_and_as_the_statistics_count_them(self):
        self.journal(*(end(number, number, took=number) for number in range(1, 11)), start("open", 1))
        self.report("--outdir", "out")
        data = self.page().data
        self.assertEqual((data["states"], data["quantiles"]), ([10, 0, 0, 0, 1, 0], [5, 9, 10]))
        self.assertEqual(sum(sum(counts) for _, *counts in data["times"]), 10)
        self.assertIn(b" 5.0s  9.0s      10s ", self.run_script(RUNWAIT, "--stats", "--outdir", "out").out)

    def test_the_time_of_all_runs_is_the_sum_of_the_jobs_that_ran(self):
        self.journal(*(journal_end(number, slot=str(number % 3), seconds=number / 7) for number in range(1, 50)))
        self.report("--outdir", "out")
        data = self.page().data
        total = sum(number / 7 for number in range(1, 50))
        self.assertAlmostEqual(sum(data["busy"]) / len(data["busy"]) * data["span"], total, delta=total / 100)
        self.assertEqual(sum(sum(counts) for _, *counts in data["times"]), 49)

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes seconds")
    def test_many_runs_share_cells_and_the_page_stays_small(self):
        self.journal(*(journal_end(number, seconds=0.5, slot=str(number % 50), command=os.urandom(50).hex(),
                                   state="d!"[number % 9 == 0]) for number in range(1, 150_001)))
        self.assertEqual(self.report("--outdir", "out").code, 0)
        cells = self.page().data["cells"]
        self.assertLess(len(self.read("out.html")), 5 << 20)
        self.assertLess(len(cells["count"]), 130_000)
        self.assertEqual((sum(cells["count"]), sum(cells["bad"])), (150_000, 150_000 // 9))


class Writing(ReportCase):
    """When and how the page is written."""

    def test_while_jobs_run_it_is_written_too_and_says_that_it_will_be_anew(self):
        self.write(f". true\n. {GATE}\n")
        runner = self.start(RUNMAKER, "--outdir", "out", "runs.txt")
        self.wait_file("out/journal")
        waiter = self.start(RUNWAIT, "--progress", "--report", "out.html", "--outdir", "out", "runs.txt")
        self.wait_file("out.html")
        self.assertGreaterEqual(self.page().data["refresh"], 10)
        self.open_gate()
        self.assertEqual((self.finish(runner).code, self.finish(waiter).code), (0, 0))
        data = self.page().data
        self.assertEqual((data["refresh"], data["states"]), (0, [2, 0, 0, 0, 0, 0]))
        self.assertEqual([name for name in os.listdir(self.dir) if name.startswith(".runwait4")], [])

    def test_a_failed_barrier_check_ends_it_with_exit_status_1_and_is_named(self):
        self.write("! a\n#RUN barrier check\n. b\n")
        self.journal(end(1, 1, "a", state="!"))
        ended = self.report("--progress", "--outdir", "out", "runs.txt")
        self.assertEqual(ended.code, 1, ended.err)
        self.assertRegex(ended.err, rb"^runwait4\.py: runs\.txt: .*line 1\b.*barrier check.*line 2\b.*\n$")
        data = self.page().data
        self.assertEqual((data["refresh"], data["states"]), (0, [0, 1, 0, 0, 0, 0]))
        self.assertEqual(self.report("--outdir", "out", "runs.txt").code, 0)

    def test_a_file_of_plain_commands_is_refused(self):
        self.write("echo a\necho b\n")
        self.journal(end(1, 1))
        for options in ("--report", "out.html"), ("--report", "out.html", "--progress"), ("--stats",):
            self.assertRefused(self.run_script(RUNWAIT, *options, "--outdir", "out", "runs.txt"), "has no job, but 2")

    def test_only_an_older_report_and_an_empty_file_are_replaced(self):
        self.journal(journal_end(1))
        for name in ("runs.txt", "notes.html"):
            text = self.write(". true\n", name).read_bytes()
            for more in ((), ("--progress", "runs.txt")):       # which says so before it waits
                ended = self.run_script(RUNWAIT, "--report", name, "--outdir", "out", *more, timeout=20)
                self.assertRefused(ended, f"{name}: is no report of runwait4.py")
                self.assertEqual(self.read(name), text)
        self.write("", "out.html")
        for _ in range(2):
            self.assertEqual(self.report("--outdir", "out").code, 0)
            self.assertEqual(self.page().data["runs"], 1)

    def test_what_does_not_go_together_or_is_not_there_is_refused(self):
        self.journal("")
        self.write("", "log")
        for args, word in (((), "--outdir"), (("--outdir", "out", "--joblog", "log"), "one of them"),
                           (("--outdir", "nowhere"), "nowhere"), (("--outdir", "out"), "no run"),
                           (("--outdir", "out", "--progress"), "FILE"), (("--joblog", "log"), "no run"),
                           (("--outdir", "out", "--status", "log"), "--report")):
            with self.subTest(args=args):
                self.assertRefused(self.report(*args), word)
        self.assertFalse((self.dir / "out.html").exists())


@unittest.skipUnless(CHROMIUM, "chromium is not installed")
class InABrowser(ReportCase):
    """What a browser makes of the page."""

    def test_the_page_is_drawn_and_a_hostile_command_stays_text(self):
        self.journal(journal_end(1, command=EVIL, state="!", exit=1), *map(journal_end, range(2, 2000)))
        text = self.shown()
        self.assertIn("<title>out</title>", text)
        self.assertIn(">Slowest runs</h2>", text)
        self.assertIn("&lt;/script&gt;&lt;img src=x", text)
        self.assertNotIn("<img", text)

    def test_a_cancelled_run_is_drawn_like_any_other(self):
        self.journal(journal_end(1), journal_end(2, state="x", exit=-1, signal=15, cause="cancelled"))
        text = self.shown()
        self.assertIn("<b>1</b> cancelled</li>", re.sub("<b [^>]*>", "<b>", text))
        self.assertRegex(text, r'<b class="s5">cancelled</b>')
        self.assertNotIn("cannot be shown", re.sub("<script>.*?</script>", "", text, flags=re.DOTALL))

    def shown(self) -> str:
        """The elements that the report of out/journal has in a browser."""
        self.report("--outdir", "out")
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={self.dir}/profile",
                   "--virtual-time-budget=5000", "--dump-dom", f"file://{self.dir}/out.html"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=True)
        return done.stdout.decode()


if __name__ == "__main__":
    unittest.main()
