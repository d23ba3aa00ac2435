"""Promise: all views of runwait4.py give one answer about a line and its runs."""
import argparse
import json
import os
import re
import time
from typing import Callable
from unittest import mock

import runmaker4
import runwait4
from tests.support.case import GATE
from tests.support.journal import BEGAN, end, pair, start
from tests.support.line_locks import hold_line
from tests.support.locks import lock_table
from tests.support.page import Page
from tests.support.runs import RunCase
from tests.support.scripts import FULL, RUNMAKER, RUNWAIT
from tests.support.telling import TellingCase

PRESENT = 7                     # the number of the presence lock of a runner that is at work


class ViewCase(TellingCase, RunCase):
    """A job file, out/journal, and what the views tell of them."""

    def outcomes(self, *options: str) -> list[tuple[int, str, str]]:
        """Line, outcome and cause of each run that --failed or --show tells."""
        found = json.loads(self.told(*options, "--json", "--outdir", "out", "runs.txt"))["runs"]
        return [(run["line"], run["outcome"], run["cause"]) for run in found]

    def page(self) -> Page:
        self.told("--report", "out.html", "--outdir", "out", "runs.txt")
        return Page(self.read("out.html").decode())

    def hold_presence_lock(self, number: int = PRESENT) -> None:
        """Lock a byte that says that a runner is at work, until the test ends."""
        fd = os.open(lock_table(self.dir / "runs.txt"), os.O_RDWR | os.O_CREAT)
        self.addCleanup(os.close, fd)
        self.assertTrue(runmaker4.lock(fd, runmaker4.PRESENCE_BYTES + number))


class Lost(ViewCase):
    """A run whose runner is dead is not ending, however busy the file is."""

    def test_runs_of_dead_runners_in_a_file_that_has_just_changed(self) -> None:
        path = self.write("e a\n! b\nd c\nd d\n")
        os.utime(path, (time.time() + 30,) * 2)         # until it is 5 s old, an end can be missing
        self.hold_presence_lock()
        self.journal(start(1, 1, "a", runner=99), start(2, 2, "b", runner=99),
                     start(3, 3, "c", runner=PRESENT), start(4, 4, "d", runner=99))
        self.assertEqual(self.outcomes("--failed"), [(1, "error", "lost"), (2, "unknown", "unknown")])
        self.assertEqual(self.outcomes("--show", "*"), [
            (1, "error", "lost"), (2, "unknown", "unknown"), (3, "running", "ending"),
            (4, "unknown", "unknown")])
        page = self.page()
        self.assertEqual(page.outcomes, {"error": 1, "running": 1, "unknown": 2})
        self.assertEqual(page.failed(), [[1, "lost"], [2, "unknown (now failed)"]])

    def test_a_new_line_whose_server_and_client_were_cut_off_has_no_run_that_goes_on(self) -> None:
        """The next server serves it, but has nothing of that run."""
        servers = runmaker4.PresenceLock.SERVERS
        path = self.write(". a\n. b\nd c\n")
        os.utime(path, (time.time() + 30,) * 2)         # until it is 5 s old, an end can be missing
        self.hold_presence_lock(servers + 2)
        self.journal(start(1, 1, "a", runner=servers + 1), start(2, 2, "b", runner=servers + 2),
                     start(3, 3, "c", runner=servers + 1))
        self.assertEqual(self.outcomes("--show", "*"), [
            (1, "unknown", "unknown"), (2, "running", "ending"), (3, "running", "ending")])
        self.assertEqual(self.page().outcomes, {"unknown": 1, "running": 2})

    def test_where_no_runner_is_at_work_no_run_is_ending(self) -> None:
        """Also those of journals that do not name runners."""
        self.write("e a\nd b\n")
        self.journal(start(1, 1, "a"), start(2, 2, "b"))
        self.assertEqual(self.outcomes("--failed"), [(1, "error", "lost")])
        self.assertEqual(self.page().outcomes, {"error": 1, "unknown": 1})

    def test_a_run_without_an_end_is_counted(self) -> None:
        self.write("d a\nd b\n")
        self.journal(start(1, 1, "a", runner=99), *pair(2, 1, "a"), *pair(3, 2, "b"),
                     end(4, 2, "b", state="e", cause="lost"))
        stats = json.loads(self.told("--stats", "--json", "--outdir", "out"))
        self.assertEqual((stats["all"]["runs"], stats["without_end"]), (2, 2))
        self.assertTrue(self.told("--stats", "--outdir", "out").endswith(
            "\n2 runs without an end: running, or lost\n"))
        self.assertEqual(sum(self.page().outcomes.values()), 4)


class TheRunThatCounts(ViewCase):
    """The last run of a line, if it ended in the line's state; otherwise the line has no recorded run."""
    NONE = ("no recorded run: edited or set by hand, stopped between tries or with its group, or "
            "its record was not kept, or is in another --outdir")

    def output(self, *options: str) -> tuple[int, bytes, bytes]:
        ended = self.runwait("--output", *options, "--outdir", "out", "runs.txt")
        return ended.code, ended.out, ended.err

    def test_a_line_was_moved_and_moved_back(self) -> None:
        for first, last in "!d", "d!", "dd":
            with self.subTest(first=first, last=last):
                self.write(f"d other\n{last} a\n")
                self.journal(end(1, 2, "a", BEGAN, state=first, files=[], stdout="first\n"),
                             end(2, 9, "a", BEGAN + 10, state=last, files=[], stdout="last\n"),
                             end(3, 1, "other", files=[]))
                objects = [json.loads(line) for line in self.output("--json")[1].splitlines()]
                self.assertEqual([row["stdout"] for row in objects], ["", "last\n"])
                self.assertEqual(self.output()[1], b"last\n" if last == "d" else b"")
                runs = json.loads(self.told("--show", "2", "--json", "--outdir", "out", "runs.txt"))["runs"]
                self.assertEqual([run["stdout"] for run in runs], ["first\n", "last\n"])
                rows = sorted(self.page().rows, key=lambda row: row["start"])
                self.assertEqual([row["is_last"] for row in rows if row["line"] == 2], [False, True])

    def test_equal_commands_that_end_in_a_carriage_return(self) -> None:
        self.write("d a\r\r\nd a\r\r\n")
        self.journal(*(end(number, number, "a\r", files=[], stdout=f"{number}\n") for number in (1, 2)))
        self.assertEqual(self.output(), (0, b"1\n2\n", b""))

    def test_a_runner_appends_later_what_has_ended_earlier(self) -> None:
        """It says for how long it has gathered that: a moment, or the minutes of an outage."""
        for seconds, gathered in (0.5, 0.6), (7.0, 8.0), (90.0, 120.0):
            for early_state, late_state in "!d", "dd", "d!", "!!":
                with self.subTest(seconds=seconds, early=early_state, late=late_state):
                    self.write(f"{late_state} a\n")
                    early = end(1, 1, "a", state=early_state, files=[], stdout="early\n", runner=1,
                                gathered=gathered)
                    late = end(2, 1, "a", BEGAN + seconds, state=late_state, files=[], stdout="late\n",
                               runner=2, gathered=0.05)
                    self.journal(late, early)
                    row = json.loads(self.output("--json")[1])
                    self.assertEqual((row["stdout"], row["exit"]), ("late\n", 0 if late_state == "d" else 3))
                    if late_state == "d":
                        self.assertEqual(self.output(), (0, b"late\n", b""))
                    else:
                        self.assertEqual(self.outcomes("--failed"), [(1, "failed", "")])
                        self.assertIn("  | late\n", self.told("--failed", "--outdir", "out", "runs.txt"))
                    shown = json.loads(self.told("--show", "1", "--json", "--outdir", "out", "runs.txt"))
                    self.assertEqual([run["stdout"] for run in shown["runs"]], ["early\n", "late\n"])
                    last = {row["start"]: row["is_last"] for row in self.page().rows}
                    self.assertEqual(last, {BEGAN: False, BEGAN + seconds: True})

    def test_the_clock_of_another_host_is_wrong(self) -> None:
        """By more than the second was gathered; or that of one host was set back."""
        self.write("d a\n")
        late = end(1, 1, "a", files=[], stdout="d", runner=2, gathered=0.9)
        for seconds, runner in (3600, 1), (5, 1), (1, 1), (0.5, 2):
            self.journal(end(2, 1, "a", BEGAN + seconds, state="!", files=[], runner=runner), late)
            self.assertEqual(self.output(), (0, b"d", b""))

    def test_a_run_without_an_end_began_while_another_runner_gathered(self) -> None:
        """Its runner was killed, so what the earlier run has printed is not the output of the line."""
        path = self.write("d a\n")
        os.utime(path, (BEGAN, BEGAN))
        early = end(1, 1, "a", files=[], stdout="7\n", runner=1, gathered=8.0)
        for lost in (start(2, 1, "a", BEGAN + 4, runner=2),
                     end(2, 1, "a", BEGAN + 3, took=1.0, state="e", cause="lost", files=[], runner=2)):
            self.journal(lost, early)
            self.assertEqual(self.output()[:2], (1, b""))
            shown = json.loads(self.told("--show", "1", "--json", "--outdir", "out", "runs.txt"))["runs"]
            self.assertEqual([run["stdout"] for run in shown][:2], ["7\n", ""])
        # a `start` is written while the job runs, so it is never later than it seems
        self.journal(end(2, 1, "a", BEGAN + 0.5, files=[], stdout="42\n", runner=2),
                     start(1, 1, "a", BEGAN, runner=1))
        self.assertEqual(self.output()[:2], (1, b""))

    def test_the_line_has_finished_in_another_state(self) -> None:
        path = self.write("d a\n! b\ne c\nd d\nr e\n")
        os.utime(path, (BEGAN, BEGAN))
        runs = (1, "a", "!"), (2, "b", "d"), (3, "c", "!"), (5, "e", "!")
        self.journal(*(end(number, number, command, state=state, files=[], stdout=f"{command}\n")
                       for number, command, state in runs))
        named = (f"runwait4.py: runs.txt: the output is not complete: lines 1, 2, 3, 4, 5 ({self.NONE}; see "
                 "--show LINE)\n").encode()
        code, table, messages = self.output("--csv")
        self.assertEqual((code, messages), (1, named))
        self.assertEqual(table.splitlines()[1:], [b"1,done,,,,a,", b"2,failed,,,,b,", b"3,error,,,,c,",
                                                  b"4,done,,,,d,", b"5,error,,,,e,"])
        code, text, messages = self.output()
        self.assertEqual((code, text), (1, b""))
        self.assertIn(b"not complete: lines 1, 4 (", messages)
        failed = self.told("--failed", "--outdir", "out", "runs.txt")
        for number, state in (2, "failed"), (3, "error"), (5, "error"):
            self.assertIn(f"line {number}: {state}; {self.NONE}\n", failed)
        self.assertIn("     3  no recorded run  (lines 2, 3, 5)\n", failed)
        shown = self.told("--show", "1,2", "--outdir", "out", "runs.txt")
        self.assertRegex(shown, rf"(?s)^line 1: exit 3 .*\nline 1: done; {self.NONE}\n.*\nline 2: exit 0 .*"
                                rf"\nline 2: failed; {self.NONE}\n")
        page = self.page()
        self.assertEqual(page.failed(), [[2, "failed"], [3, "error"], [5, "error"]])
        self.assertEqual(page.groups, ["3|no recorded run|lines 2, 3, 5"])
        self.assertEqual(page.others("is_last"), [
            [1, "exit 3 (now done)", False], [2, "exit 0 (now failed)", False],
            [3, "exit 3 (now error)", False], [5, "exit 3 (now error)", False]])

    def rows_while(self, on_pause: Callable[[float], object],
                   on_snapshot: Callable[[], object] = list) -> list[runwait4.Row]:
        """The last rows of runs.txt, a file that has just changed while a runner is at work."""
        options = argparse.Namespace(outdir=str(self.dir / "out"))
        watcher = runwait4.Watcher(str(self.dir / "runs.txt"))
        with runwait4.Observation(watcher, options, self.fail) as observation:
            on_snapshot()
            lines = watcher.select_lines(None)
            with mock.patch("runwait4.time.sleep", on_pause):
                return observation.last_rows(lines)

    def test_the_end_of_a_finished_line_comes_later(self) -> None:
        self.hold_presence_lock()
        for state in "d!e":
            self.write(f"{state} a\n. b\n")
            self.journal(end(1, 1, "a", state="d" if state == "!" else "!"))
            late = end(2, 1, "a", BEGAN + 9, state=state)

            def append(_: float, data: bytes = late) -> None:
                with open(self.dir / "out/journal", "ab") as file:
                    file.write(data)
            (first, _) = self.rows_while(append)
            self.assertEqual((first.run and first.run.began, first.is_last), (BEGAN + 9, True))

    def test_the_line_finishes_after_the_running_ones_were_read(self) -> None:
        self.hold_presence_lock()
        os.utime(self.write("r a\n"), (BEGAN, BEGAN))
        hold_line(self, 1)
        began = start(1, 1, "a", runner=PRESENT)
        self.journal(began)

        pauses = iter((list, list, lambda: self.journal(began, end(1, 1, "a", state="!"))))
        (row,) = self.rows_while(lambda _: next(pauses)(), lambda: self.set_state(1, "!"))
        self.assertEqual(row.run and row.run.state, "!")

    def test_what_a_line_shows_of_a_run_is_not_written_into_the_run(self) -> None:
        """Of one that a server has recorded as lost, one without an end, and one without a line."""
        os.utime(self.write("r a\ne b\n"), (BEGAN, BEGAN))
        hold_line(self, 1)
        self.journal(end(1, 1, "a", state="e", cause="lost"), start(2, 2, "b"), start(3, 3, "c"))
        watcher = runwait4.Watcher(str(self.dir / "runs.txt"))
        options = argparse.Namespace(outdir=str(self.dir / "out"))

        def told(runs: list[runwait4.RunRecord]) -> list[tuple[str, str, bool]]:
            return [(run.state, run.cause, run.ended is None) for run in runs]

        with runwait4.Observation(watcher, options, self.fail) as observation:
            runs = observation.recent_runs
            line_runs = observation.match_runs_with_lines({run.command for run in runs}, runs)
            rows = [observation.row_of_run(run, line_runs) for run in runs]
            self.assertEqual(told([row.run for row in rows if row.run]),
                             [("r", "", True), ("e", "lost", True), ("?", "unknown", True)])
            self.assertEqual(told(runs), [("e", "lost", False), ("", "", True), ("", "", True)])

    def test_an_end_that_never_comes_is_waited_for_once(self) -> None:
        self.hold_presence_lock()
        self.write("d a\n")
        self.journal(start(1, 1, "b"))
        pauses: list[float] = []
        self.assertIsNone(self.rows_while(pauses.append)[0].run)
        self.assertAlmostEqual(sum(pauses), 2.0, delta=0.2)

    def test_a_view_in_batches_does_not_follow_a_runner_down_the_file(self) -> None:
        """While it pauses, further lines fail."""
        self.hold_presence_lock()
        self.write("! a\n")
        self.journal(start(1, 1, "b"))
        lines = ["! a\n"]

        def go_on(_: float) -> None:
            lines.append("! a\n")
            self.assertLess(len(lines), 100)
            self.write("".join(lines))
        watcher = runwait4.Watcher(str(self.dir / "runs.txt"))
        options = argparse.Namespace(outdir=str(self.dir / "out"))
        with runwait4.Observation(watcher, options, self.fail) as observation, \
                mock.patch("runwait4.time.sleep", go_on), mock.patch("runwait4.MAX_LINES", 1):
            self.assertLess(len(list(runwait4.rows_of_bad_lines(observation))), 100)

    def test_what_was_done_before_is_looked_for_after_a_moment(self) -> None:
        self.hold_presence_lock()
        self.write("d a\n")
        self.journal(end(1, 1, "a"))
        (row,) = self.rows_while(lambda _: self.journal(end(1, 1, "a"), end(2, 1, "a", BEGAN + 9)))
        self.assertEqual(row.run and row.run.began, BEGAN + 9)

    def test_no_end_is_on_the_way_if_no_runner_is_at_work(self) -> None:
        self.write("d a\n")
        self.journal(start(1, 1, "b"))
        self.rows_while(lambda _: self.fail("it waits"))


class Present(ViewCase):
    """--status names host and start of the present run, or none; a host at work is not waited for."""

    def run_to_gate(self, *more: str) -> None:
        """A runner runs line 1 until the test ends; more lines follow."""
        self.start_to_gate("".join(f"{line}\n" for line in (f". {GATE}", *more)))
        self.addCleanup(self.open_gate)

    def test_no_earlier_run_is_taken_for_one_whose_start_is_not_written_yet(self) -> None:
        self.run_to_gate()
        others = [line for number in range(9999) for line in pair(number, number, f"job {number}")]
        for entries in (
            [start("a", 1, GATE), *others, end("a", 1, GATE)],          # it began before the last part
            [start("lost", 1, GATE), *pair("a", 1, GATE)],
        ):
            self.journal(*entries)
            (job,) = self.status("--outdir", "out")["jobs"]
            self.assertEqual((job["host"], job["start"], job["seconds"]), (None, None, None))

    def test_an_ended_run_of_an_equal_line_hides_no_start(self) -> None:
        self.run_to_gate(f"d {GATE}")
        self.journal(start("now", 7, GATE, host="here"), *pair("a", 2, GATE), *pair("b", 30, GATE))
        (job,) = self.status("--outdir", "out")["jobs"]
        self.assertEqual(job["host"], "here")

    def test_a_host_whose_runner_has_just_ended_a_job(self) -> None:
        self.write("#RUN host=vm\nd a\n. b\n")
        self.hold_presence_lock()
        now = time.time()
        for runner, began, waits in ((PRESENT, now - 1, ""), (PRESENT, now - 999, "line 3 waits for host vm"),
                                     (99, now - 1, "line 3 waits for host vm")):
            with self.subTest(runner=runner, began=began):
                self.journal(end(1, 2, "a", began, took=0.1, host="vm", runner=runner))
                self.assertEqual(self.status("--outdir", "out")["waits"].partition(" (")[0], waits)


class AnyLocale(ViewCase):
    """A journal is bytes: what a runner writes in one locale is read in any other."""
    LOCALES = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONUTF8": "1"}
    VIEWS = ("--failed",), ("--show", "1"), ("--stats",), ("--report", "o.html")

    def test_runs_find_their_lines_and_are_printed_as_they_are(self) -> None:
        command = "exit 3 # caf\u00e9".encode() + b" \xe9"
        for writing in self.LOCALES:
            self.write(b". " + command + b"\n")
            ended = self.run_script(RUNMAKER, "-q", "--outdir", "out", "--slots", "\u00e9", "runs.txt",
                                    env=writing)
            self.assertEqual(ended.code, 1, ended.err)
            for reading in self.LOCALES:
                for options in self.VIEWS if FULL else self.VIEWS[:1]:
                    with self.subTest(options, writing=writing, reading=reading):
                        ended = self.run_script(RUNWAIT, *options, "--outdir", "out", "runs.txt", env=reading)
                        self.assertEqual((ended.code, ended.err), (0, b""))
                        if options[0] in ("--failed", "--show"):
                            self.assertRegex(ended.out, rb"^line 1: exit 3 on .*\n    %b\n    slot \xc3\xa9, "
                                             % re.escape(command))
            os.unlink(self.dir / "out/journal")


class OnThePage(ViewCase):
    """The page knows what --failed knows."""

    def test_what_a_lost_run_has_printed(self) -> None:
        os.utime(self.write("e a\n"), (BEGAN, BEGAN))
        self.journal(start(1, 1, "a", files=["1.out"]))
        self.write("its last words\n", "out/1.out")
        self.assertEqual(self.page().failed("printed", "files", "command", "output"),
                         [[1, "lost", "15 B", ["./out/1.out"], "a", "its last words"]])
