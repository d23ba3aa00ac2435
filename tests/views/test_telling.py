"""Promise: --status, --failed and --stats tell how it is going, what failed and why, and what runs cost."""
import json
import os
import re
import time
from typing import Any
from unittest import mock

import runmaker4
import runwait4
from tests.support.case import GATE
from tests.support.journal import BEGAN, end, pair, start
from tests.support.line_locks import hold_line
from tests.support.processes import Ended
from tests.support.runs import RunCase
from tests.support.scripts import PYTHON, ROOT, RUNWAIT, program_of
from tests.support.telling import TellingCase
from tests.support.trace import read_trace


class Status(TellingCase):

    def setUp(self) -> None:
        super().setUp()
        self.now = time.time()

    def runwait(self, *args: object) -> Ended:
        """Run it at the time of `now`, whenever it comes to that."""
        stopped = f"import time; time.time = lambda: {self.now!r}"
        program = program_of(RUNWAIT, ROOT / RUNWAIT, stopped)
        return self.finish(self.start(PYTHON, "-c", program, *args))

    def running(self, *more: str) -> None:
        """A real runner runs line 1 of runs.txt until the gate opens; more lines follow."""
        text = "".join(f"{line}\n" for line in (f". {GATE}", *more))
        self.runner = self.start_to_gate(text, "--no-records")
        self.addCleanup(self.open_gate)

    def test_without_records_what_the_file_says(self) -> None:
        self.running(". second", "d third")
        self.assertEqual(self.told("--status", "runs.txt"),
                         "3 jobs: 1 new, 1 running, 1 done, 0 failed, 0 error, 0 held\n"
                         "1 runner at work\n"
                         f"line  host  slot  since  for  command\n   1  -     -     -        -  {GATE}\n")

    def test_where_and_since_when_each_line_runs(self) -> None:
        began = self.now - 100
        self.running(". second", "d third")
        self.journal(start("old", 1, GATE, began - 500, slot="x"), *pair("b", 1, GATE, began - 50),
                     start("c", 7, GATE, began - 1), start("a", 1, GATE, began, slot="gpu 2"))
        since = time.strftime("%H:%M:%S", time.localtime(began))
        shown = self.told("--status", "--outdir", "out", "runs.txt")
        if since < "23:58":
            self.assertRegex(shown, r"\nline  host   slot   since        for  command\n"
                                    rf"   1  node1  gpu 2  {since}  1m 40s  {re.escape(GATE)}\n")
        (job,) = self.status("--outdir", "out")["jobs"]
        self.assertAlmostEqual(job.pop("start"), began, 2)
        self.assertAlmostEqual(job.pop("seconds"), 100, 2)
        self.assertEqual(job, {"line": 1, "command": GATE, "host": "node1", "slot": "gpu 2", "pid": 4712,
                               "without_runner": False, "processes": []})

    def test_jobs_per_hour_and_the_time_left_go_by_the_recent_past(self) -> None:
        self.running(*[f". {number}" for number in range(9)])
        now = self.now
        self.journal(
            *(line for number in range(100)
              for line in pair(number, 5 + number, f"d {number}", now - 9000 + number, took=1)),
            *(line for number in range(24)
              for line in pair(f"n{number}", 200 + number, f"n {number}", now - 241 + 10 * number, took=1)),
            start("a", 1, GATE, now), end("put back", 5, "d", now, state=".")
        )
        found = self.status("--outdir", "out")
        self.assertAlmostEqual(found["per_hour"], 23 / 240 * 3600, delta=20)
        self.assertAlmostEqual(found["seconds_left"], 10 / found["per_hour"] * 3600, delta=1)
        self.assertRegex(self.told("--status", "--outdir", "out", "runs.txt"),
                         r"\n3\d\d jobs/h lately, 1m \d\ds left\n")
        for per_hour, shown in (99.6, "100 jobs/h"), (0.6, "0.6 jobs/h"), (1 / 30, "0.8 jobs/d"):
            _, rate, *_ = runwait4.status_summary({**found, "per_hour": per_hour})
            self.assertTrue(rate.startswith(f"{shown} lately, "), rate)
        # tries of a job that is tried again are no jobs of the rate
        tries = [(number, now - 240 + 10 * number + 2 * again) for number in range(24) for again in range(4)]
        self.journal(*(line for began in range(4)
                       for line in pair(f"g{began}", 1, GATE, now - 9 + began, took=1)),
                     *(line for number, began in tries
                       for line in pair(f"{number} {began}", number + 2, f"job {number}", began, took=1)),
                     start("a", 1, GATE, now))
        self.assertAlmostEqual(self.status("--outdir", "out")["per_hour"], 23 / 233 * 3600, delta=20)

    def test_jobs_that_end_in_waves(self) -> None:
        """Just after a wave, in its middle and just before the next one; of equal jobs and of two lengths."""
        now = time.time()

        def fill_slots(lengths: list[float], slots: int, count: int) -> list[tuple[float, float]]:
            """Start and end of so many jobs, as seconds."""
            free, spans = [0.0] * slots, []
            for number in range(count):
                free.sort()
                length = lengths[number % len(lengths)]
                free[0] += 0.0001 * length * number * (number < slots)
                spans.append((free[0], free[0] + length))
                free[0] += length
            return spans

        for lengths, slots in (([20.0], 16), ([2.0], 64), ([3600.0], 64), ([3600.0], 8), ([20.0, 60.0], 16),
                               ([3600.0, 7200.0], 32), ([5.0, 300.0], 48)):
            spans = fill_slots(lengths, slots, 4 * slots)
            longest = max(lengths)
            for moment in (longest * factor for factor in (1.01, 1.5, 1.99, 2.01)):
                with self.subTest(lengths=lengths, slots=slots, moment=moment):
                    zero = now - moment
                    begun = [(number, *span) for number, span in enumerate(spans, 2) if span[0] <= moment]
                    unfinished = sum(ended > moment for _, ended in spans)
                    runs = [runwait4.RunRecord(number, json.loads(
                        end(number, number, began=zero + began, took=ended - began, files=[])
                        if ended <= moment else start(number, number, began=zero + began)))
                        for number, began, ended in begun]
                    lines = [runmaker4.Line(run.line, 0, b"r", b" true") for run in runs if run.ended is None]
                    rate = runwait4.measure_rate(runs, lines)
                    assert rate
                    left = rate.seconds_left(unfinished, now)
                    assert left
                    # if all slots were busy to the end
                    work = sum(ended - max(moment, began) for began, ended in spans if ended > moment)
                    ideal = work / slots
                    self.assertGreater(left, 0.8 * ideal)
                    # just before the second wave the time counts for two, and the jobs for one
                    self.assertLess(left, 3.1 * ideal + longest)

    def test_the_time_in_which_no_job_ran_does_not_count(self) -> None:
        self.running(*[f". {number}" for number in range(9)])
        now = time.time()
        night = [end(number, 5 + number, "d", now - 40_000, took=10.0) for number in range(30)]
        day = [end(f"n{number}", 50 + number, "d", now - 10, took=5.0) for number in range(10)]
        self.journal(*night, *day, start("a", 1, GATE, now - 10))
        self.assertAlmostEqual(self.status("--outdir", "out")["per_hour"], 3600, delta=600)
        # until the first has ended, what ran before is all that is known
        self.journal(*night, start("a", 1, GATE, now - 10))
        self.assertLess(self.status("--outdir", "out")["per_hour"], 3)

    def test_after_a_stop_and_a_resume_it_goes_by_the_runner_that_was_started(self) -> None:
        """The stop has ended many runs at once, and these lines are new again."""
        self.running(*[f". job {number}" for number in range(4, 40)])
        now = time.time()
        stopped = [end(number, 2 + number, f"job {number}", now - 70, took=10.0, state="e", cause="stopped")
                   for number in range(40)]
        resumed = [end(f"B-{number}", 2 + number, f"job {number}", now - 40 + 10 * number, took=10.0)
                   for number in range(4)]
        self.journal(*stopped, *resumed, start("B-4", 1, GATE, now))
        found = self.status("--outdir", "out")
        self.assertAlmostEqual(found["seconds_left"], 10 * 37, delta=60)
        # one that comes beside others that run changes nothing
        beside = [end(f"A-{number}", 80 + number, f"old {number}", now - 100 + number, took=70.0)
                  for number in range(30)]
        self.journal(*beside, *resumed, start("B-4", 1, GATE, now))
        self.assertAlmostEqual(self.status("--outdir", "out")["per_hour"], 34 / 100 * 3600, delta=100)

    def test_the_time_left_is_no_shorter_than_the_time_without_a_result(self) -> None:
        self.running()
        now = self.now
        ends = (end(number, 5 + number, f"d {number}", now - 200 + number / 10, took=60.0)
                for number in range(1000))
        self.journal(*ends, start("a", 1, GATE, now - 140))
        self.assertAlmostEqual(self.status("--outdir", "out")["seconds_left"], 40, delta=10)

    def test_a_hanging_job_is_named_in_place_of_a_time_left(self) -> None:
        now = self.now
        self.running()

        def told(count: int, took: float) -> Any:
            ends = (line for number in range(count)
                    for line in pair(number, 5 + number, f"job {number}", now - 90 + number, took=took))
            self.journal(*ends, start("a", 1, GATE, now - 100))
            found = self.status("--outdir", "out")
            hanging = found.get("hanging", [])
            self.assertEqual(found["seconds_left"] is None, bool(hanging))
            shown = self.told("--status", "--outdir", "out", "runs.txt")
            self.assertEqual("times longer" in shown, bool(hanging))
            return hanging

        self.assertEqual((told(10, 30.0), told(4, 1.0)), ([], []))      # that long, or too few, are no hint
        # the fewer have ended, the more times longer it must run
        times = 9.0, 11.0, 13.0, 19.0, 21.0
        self.assertEqual([len(told(count, took)) for count in (5, 6, 10, 20) for took in times],
                         [1, 0, 0, 0, 0] + [1, 1, 0, 0, 0] + [1, 1, 1, 1, 0] * 2)
        self.assertRegex(told(10, 1.0)[0], r"^line 1 runs 1\d\d times longer than any of the last 10$")
        self.write(self.read() + b". new\n")
        self.assertEqual(told(10, 1.0), [])

    def test_no_age_and_no_rate_are_told_of_a_time_in_the_future(self) -> None:
        self.running(". second")
        now = self.now
        others = [line for number in range(30)
                  for line in pair(number, 5 + number, "d", now - 60 + number, host="node2")]
        for ahead, seconds in (3600, None), (40, 0.0):      # a clock can be a little fast
            with self.subTest(ahead=ahead):
                self.journal(*others, start("a", 1, GATE, now + ahead))
                self.assertEqual(self.status("--outdir", "out")["jobs"][0]["seconds"], seconds)
        self.assertIsNotNone(self.status("--outdir", "out")["per_hour"])
        self.journal(*others, *pair("b", 99, "d", now + 3600), start("a", 1, GATE, now + 3600))
        self.assertIsNone(self.status("--outdir", "out")["per_hour"])
        self.assertRegex(self.told("--status", "--outdir", "out", "runs.txt"), r"\d  +-  ")

    def test_a_time_has_its_day_if_that_is_over_and_its_year_if_that_is(self) -> None:
        now = time.mktime((2026, 3, 2, 12, 0, 0, 0, 0, -1))
        with mock.patch.object(time, "time", lambda: now), \
                mock.patch.object(time, "localtime", lambda t=now, real=time.localtime: real(t)):
            shown = [runwait4.format_time(now - 3600 * hours) for hours in (1, 24, 24 * 90)]
        self.assertEqual(shown, ["11:00:00", "Mar 01 12:00", "Dec 02 2025 12:00"])

    def test_a_long_journal_is_read_from_its_end_as_far_as_need_be(self) -> None:
        self.running("d job 49", "d job 9998")
        old = [line for number in range(9999) for line in pair(number, number, f"job {number}")]
        for began, lines in (1, [b"junk\n", *old, start("a", 1, GATE, BEGAN + 1), *old[:100]]), \
                            (2, [start("a", 1, GATE, BEGAN + 2), *old]):
            self.journal(*lines)
            (job,) = self.status("--outdir", "out")["jobs"]         # which does not complain
            self.assertEqual(job["start"], BEGAN + began)

    def test_orphans_are_told_as_such(self) -> None:
        self.write("r lost\nd b\n")
        self.journal(start("a", 1, "lost"), *pair("b", 2, "b"))
        told = self.told("--status", "--outdir", "out", "runs.txt")
        self.assertRegex(told, r"1 error, .*\n(?:.*\n){1,2}line .*\n"
                               r"   1  node1  1     ... \d\d \d\d:\d\d  +-  \(orphan\) lost\n$")
        found = self.status("--outdir", "out")
        self.assertEqual((found["jobs"], [job["line"] for job in found["orphans"]]), ([], [1]))

    def test_a_job_that_goes_on_without_its_server_is_still_running_where_it_was(self) -> None:
        self.write("r lost\n")
        hold_line(self, 1)
        self.journal(*pair("a", 1, "lost", state="e", cause="lost", took=2.0, host="h1", slot="2",
                           files=["1.out"], bytes=3))
        self.write("hi\n", "out/1.out")
        for age, host in (60, "h1"), (-30, None):       # the start of another run can follow
            os.utime(self.dir / "runs.txt", (self.now - age,) * 2)
            (job,) = self.status("--outdir", "out")["jobs"]
            self.assertEqual((job["host"], job["slot"]), (host, host and "2"))
        os.utime(self.dir / "runs.txt", (0, 0))
        (run,) = json.loads(self.told("--show", "1", "--json", "--outdir", "out", "runs.txt"))["runs"]
        self.assertEqual((run["outcome"], run["cause"], run["end"], run["bytes"]), ("running", "", None, 3))
        self.assertIn("line 1: running on h1", self.told("--show", "1", "--outdir", "out", "runs.txt"))

    def test_only_what_a_runner_of_this_host_ran_is_said_to_be_dead(self) -> None:
        """A client's job lives on when its server has died with its keeper, also on this host."""
        here, again = os.uname().nodename, "(a runner with --resume runs it again, after all new lines)\n"
        for where, host in (({"runner": 7}, "node1"), ({"host": here, "runner": 7}, ""), (None, "its host"),
                            ({"host": here, "runner": runmaker4.PresenceLock.SERVERS + 7}, here)):
            with self.subTest(where=where):
                self.write("r lost\n")
                self.journal(*[start("a", 1, "lost", **where)] if where else [])
                told = self.told("--status", "--outdir", "out", "runs.txt")
                hint = (f"no lock is held; if {host} is only cut off, or was served by runmaker4-server.py, "
                        "its job may live: start the server first") if host else ""
                self.assertIn(f"\n1 orphan: {hint or 'neither runner nor job lives'} {again}", told)
                (orphan,) = self.status("--outdir", "out")["orphans"]
                self.assertEqual(orphan["hint"], hint)

    def test_it_fits_a_terminal_and_sends_it_no_control_characters(self) -> None:
        command = f"{GATE}; : '\x1b[31m\x07{'long' * 40}'"
        self.start_to_gate(f". {command}\n")
        self.addCleanup(self.open_gate)
        self.journal(start("a", 1, command, host="\x1b" + "host" * 30, slot="\x07"))
        for columns in (80, 40):
            lines = self.at_terminal(columns, "--status", "--outdir", "out", "runs.txt")[-2:]
            self.assertLess(max(map(len, lines)), columns)
            self.assertIn("...", lines[-1])

    def test_no_terminal_is_too_narrow_if_nothing_runs(self) -> None:
        self.write("d a\n")
        for columns in (30, 1):
            shown = "".join(self.at_terminal(columns, "--status", "runs.txt"))
            self.assertIn("1done", "".join(shown.split()))

    def test_a_new_line_whose_command_runs_already_is_not_said_to_be_run_by_nobody(self) -> None:
        self.write(". b\n")
        hold_line(self, 1)
        told = "line 1 waits for a copy of the command that is running without a line r"
        self.assertEqual(self.status()["waits"], told)

    def test_of_a_limit_the_lines_above_that_run_are_named_if_there_are_any(self) -> None:
        limit = "#RUN limit=lic:1\n"
        self.write(f"{limit}. a\n")
        lock_file = runmaker4.open_lock_file_of(str(self.dir / "runs.txt"))
        self.addCleanup(os.close, lock_file)
        (place,) = runmaker4.Limit("lic", 1).offsets
        self.assertTrue(runmaker4.lock(lock_file, place))
        full = "waits for limit lic: 1 of 1 run"
        for text, told in ((". a\n", f"line 2 {full} (#RUN in line 1)"),
                           (". a\nr b\n", f"line 2 {full} (#RUN in line 1)"),
                           ("r b\n. a\n", f"line 3 {full}: line 2 (#RUN in line 1)"),
                           (". a\n#RUN barrier\n. b\n",
                            f"line 4 waits at the #RUN barrier in line 3 for line 2, which {full} "
                            "(#RUN in line 1)")):
            with self.subTest(text):
                self.write(f"{limit}{text}")
                self.assertEqual(self.status()["waits"], told)

    def test_what_keeps_new_jobs_from_being_started_is_told_at_once(self) -> None:
        bob = "host bob (#RUN in line 1)"
        check = "and the #RUN barrier check in line 2 stops the jobs below it"
        weekday = runmaker4.DAYS[(time.localtime(self.now).tm_wday + 3) % 7]
        kept_back = {
            "from=2100-01-01T00:00": runmaker4.JobSettings(start=runmaker4.parse_time("2100-01-01T00:00")),
            f"hours={weekday}": runmaker4.JobSettings(hours=runmaker4.parse_hours(weekday))}
        for text, trouble in (
                *((f"#RUN {setting}\n. a\n#RUN barrier\n. b\n",
                   "line 4 waits at the #RUN barrier in line 3 for line 2, which waits for "
                   f"{settings.describe_opening(self.now)} (#RUN in line 1)")
                  for setting, settings in kept_back.items()),
                ("! a\n#RUN barrier check\n. b\n", f"line 1 failed, {check}"),
                ("r a\n#RUN barrier check\n. b\n", f"line 1 ended in error, {check}"),
                ("#RUN host=bob\n. a\n", f"line 2 waits for {bob}"),
                ("#RUN scratch=yes\n. a\n", "line 2 waits for a client of a server (#RUN in line 1)"),
                ("#RUN scratch=yes host=bob\n. a\n", f"line 2 waits for {bob}"),
                ("#RUN host=bob\n. a\n#RUN\n. b\n", "2 new, but no runner (start runmaker4.py)"),
                ("#RUN host=bob\n. a\n#RUN barrier\n#RUN\n. b\n",
                 f"line 5 waits at the #RUN barrier in line 3 for line 2, which waits for {bob}"),
                ("#RUN name=x host=bob\n. a\n#RUN after=x\n. b\n#RUN barrier\n. c\n",
                 f"line 6 waits at the #RUN barrier in line 5 for line 2, which waits for {bob}"),
                ("#RUN host=bob together=g\n. a\n#RUN\n#RUN barrier\n. b\n",
                 "line 5 waits at the #RUN barrier in line 4 for line 2, which waits for the hosts of the "
                 "group g (#RUN in line 1; runmaker4-server.py starts it)"),
                # an orphan is not waited for, nor a line that a failure stops
                ("r a\n#RUN host=bob\n. b\n#RUN barrier\n. c\n",
                 "line 5 waits at the #RUN barrier in line 4 for line 3, which waits for host bob (#RUN in "
                 "line 2)"),
                ("#RUN name=x\n! a\n#RUN after=x\n. b\n#RUN host=bob\n. c\n#RUN barrier\n. d\n",
                 "line 8 waits at the #RUN barrier in line 7 for line 6, which waits for host bob (#RUN in "
                 "line 5)"),
                ("#RUN slots=4\n. a\n", "line 2 waits for a runner with 4 slots or more (#RUN in line 1)"),
                ("#RUN host=bob together=g\n. a\n",
                 "line 2 waits for the hosts of the group g (#RUN in line 1; runmaker4-server.py starts it)"),
                # a runner would mark it e, and go on
                ("r a\n#RUN barrier\n. b\n", "1 new, but no runner (start runmaker4.py)")):
            with self.subTest(text):
                self.write(text)
                self.assertEqual(self.status()["waits"], trouble)
                self.assertIn(f"\n{trouble}\n", self.told("--status", "runs.txt"))
        self.journal(end(1, 1, runner=runmaker4.PresenceLock.SERVERS))      # over TCP
        self.assertEqual(self.status("--outdir", "out")["waits"],
                         "1 new, but no runner (start runmaker4.py or runmaker4-server.py)")
        self.write("#RUN hots=bob\n. a\n")
        self.assertIn("; the jobs below it wait", self.status()["waits"])
        self.write("#RUN host=bob\n. a\n#RUN hots=bob\n")
        self.assertEqual(self.status()["waits"], f"line 2 waits for {bob}")
        self.write("#RUN host=\33bob\n. a\n")
        self.assertNotIn("\33", self.told("--status", "runs.txt"))


class CommonBeginning(TellingCase):
    """For readers "..." stands for the words with which all shown commands begin; programs get all."""

    def test_where_it_ends(self) -> None:
        whole = object()
        table: dict[tuple[str, ...], object] = {
            ("train.py --lr 0.1 'a b'", "train.py --lr 0.2"): ["... --lr 0.1 'a b'", "... --lr 0.2"],
            ("cd x && ./sim -v 12", "cd x && ./sim -v 13"): ["... -v 12", "... -v 13"],
            ("simulate 12", "simulate 13"): ["... 12", "... 13"],
            ("simulate 'a b' c", "simulate 'a c' c"): ["... 'a b' c", "... 'a c' c"],
            (r"simulate a\ b", r"simulate a\ c"): [r"... a\ b", r"... a\ c"],
            ("simulate a", "simulate a b", "simulate a"): ["... a", "... a b", "... a"],
            ("simulate 1", "simulate "): whole, ("simulate", "simulate 2"): whole,
            ("run 1", "run 2"): whole, ("'my program' 1", "'my programs' 2"): whole,
            ("simulate --seed 1",): whole, ("simulate --seed 1",) * 2: whole, (): whole,
            ("simulate 1", "./simulate 1"): whole}
        for commands, shown in table.items():
            with self.subTest(commands=commands):
                self.assertEqual(runwait4.without_common_beginning(commands, 0),
                                 commands if shown is whole else shown)

    def test_it_is_left_out_on_a_terminal_that_is_too_narrow(self) -> None:
        lines = [f"python3 simulate.py --seed {seed} --name 'two blanks'" for seed in range(1, 5)]
        self.write(f"! {lines[0]}\n! {lines[1]}\nr {lines[2]}\nr {lines[3]}\n")
        hold_line(self, 3)
        self.journal(*(end(seed, seed, lines[seed - 1], state="!", files=[]) for seed in (1, 2)))
        running = "(still running without a runner) ", "(orphan) "
        for view, first, notes, columns in ("--failed", 1, ("", ""), 53), ("--status", 3, running, 113):
            with self.subTest(view):
                call = view, "--outdir", "out", "runs.txt"
                wide, shown = ("\n".join(self.at_terminal(width, *call)) for width in (columns, columns - 1))
                for number, note in enumerate(notes, first):
                    self.assertIn(f"  {note}... --seed {number} --name 'two blanks'\n", f"{shown}\n")
                    for text in f"{wide}\n", self.told(*call):
                        self.assertIn(f"  {note}{lines[number - 1]}\n", text)
                self.assertNotIn("python3", shown)
                self.assertIn(lines[first - 1], "".join(self.at_terminal(1000, *call, "--json")))
        self.assertEqual(self.runwait("--report", "page", "--outdir", "out", "runs.txt").code, 0)
        self.assertIn("<td>(orphan) python3 simulate.py --seed 4 --name", self.read("page").decode())


class Failed(TellingCase, RunCase):

    def failed(self) -> str:
        """What it tells, with the times of day blotted out."""
        told = self.told("--failed", "--outdir", "out", "runs.txt")
        return re.sub(r"\d\d:\d\d:\d\d|[A-Z][a-z]{2} \d\d \d\d:\d\d", "WHEN", told)

    def heads(self) -> list[str]:
        """The first line of each job that it tells."""
        return [line for line in self.failed().splitlines() if line.startswith("line")]

    def test_each_line_in_the_order_of_the_file_and_how_it_ended(self) -> None:
        states = enumerate("!!!eeee!", 2)
        lines = "".join(f"{state} job {number}\n" for number, state in states)
        os.utime(self.write(f"d done\n{lines}. n\n"), (BEGAN, BEGAN))
        self.journal(
            end(9, 8, "job 8", state="e", exit=-1, memory=None, pid=0),
            end(8, 3, "job 3", state="!", exit=-1, signal=9),
            end(7, 4, "job 4", state="!", took=10, exit=-1, signal=15, cause="timeout"),
            *[end(cause, line, f"job {line}", state="e", exit=-1, signal=15, cause=cause)
              for line, cause in ((5, "cancelled"), (6, "stopped"))], start(6, 7, "job 7"),
            end(1, 2, "job 2", state="!", exit=4), end(2, 2, "job 2", state="!", exit=3), end(3, 1, "done"))
        tail = "WHEN, after 1.5s, 95.4M"
        self.assertEqual(self.heads(), [
            f"line 2: exit 3 on node1, {tail}", f"line 3: signal 9 (SIGKILL) on node1, {tail}",
            "line 4: timeout on node1, WHEN, after 10s, 95.4M", f"line 5: cancelled on node1, {tail}",
            f"line 6: stopped on node1, {tail}", "line 7: lost on node1, began WHEN",
            "line 8: could not be started on node1, WHEN, after 1.5s",
            "line 9: failed; no recorded run: edited or set by hand, stopped between tries or with its "
            "group, or its record was not kept, or is in another --outdir"])

    def test_a_signal_that_a_shell_tells_of_is_named_and_little_memory_is_told_as_a_bound(self) -> None:
        self.write("! a\n! b\n! c\n! d\n")
        codes = enumerate((("a", 139), ("b", 128), ("c", 255), ("d", 143)), 1)
        self.journal(*[end(line, line, command, state="!", exit=code, memory=None, memory_below=29_900_000)
                       for line, (command, code) in codes])
        tail = "on node1, WHEN, after 1.5s, <28.5M"
        self.assertEqual(self.heads(), [f"line 1: exit 139 (SIGSEGV) {tail}", f"line 2: exit 128 {tail}",
                                        f"line 3: exit 255 {tail}", f"line 4: exit 143 (SIGTERM) {tail}"])

    def test_the_last_lines_of_stderr_or_else_of_stdout(self) -> None:
        self.write("! a\n! b\n! c\n")
        self.journal(*[end(line, line, command, state="!") for line, command in enumerate("ab", 1)],
                     end(3, 3, "c", state="!", files=["3.out.~1~", "3.err.~1~"]))
        self.write(b"x" * 99999 + b"\n" * 9 + b"1\n2\n\n\x1b[31m3\xff\x07\n\n", "out/1.err")
        self.write("", "out/2.err")
        self.write("only", "out/2.out")
        self.write("older", "out/3.err.~1~")
        self.write("of another run", "out/3.err")
        self.assertRegex(
            re.sub("    slot .*\n", "", self.failed()),
            r"line 1: .*\n    a\n  \| 1\n  \| 2\n  \| 3\udcff\?\n"
            r"line 2: .*\n    b\n  \| only\nline 3: .*\n    c\n  \| older\n$",
        )

    def test_files_that_are_no_output_files_are_not_read(self) -> None:
        self.write("! a\n")
        files = ["../runs.txt", "/etc/passwd", "fifo", "link", "a\0b", "gone"]
        self.journal(end(1, 1, "a", state="!", files=files))
        os.mkfifo(self.dir / "out" / "fifo")
        (self.dir / "out" / "link").symlink_to("/etc/passwd")
        lines = self.failed().splitlines()[3:]
        self.assertEqual((len(lines), lines[0]), (6, "  | (gone: no such file or directory)"))
        self.assertTrue(all(line.startswith("  | (") for line in lines), lines)

    def test_a_file_that_is_gone_is_no_reason_of_a_failure(self) -> None:
        self.write("! a\n! b\n! c\n")
        self.journal(*(end(line, line, command, state="!", exit=code, files=[f"{line}.out"])
                       for line, command, code in ((1, "a", 3), (2, "b", 3), (3, "c", 5))))
        self.assertTrue(self.failed().endswith("     2  exit 3  (lines 1, 2 on node1)\n"
                                               "     1  exit 5  (line 3 on node1)\n"), self.failed())

    def test_where_it_ran_and_why_it_could_not_be_started(self) -> None:
        self.write("! a\ne b\n")
        self.journal(end(1, 1, "a", state="!", files=[], directory="/home/me"),
                     end(2, 2, "b", state="e", exit=-1, pid=0, files=[], why="no zsh on node1"))
        self.assertRegex(
            self.failed(),
            r"line 1: .*\n    a\n    slot 1, process 4712, in /home/me, CPU .*\n"
            r"line 2: could not be started \(no zsh on node1\) on node1, WHEN, .*\n    b\n    slot 1, ",
        )
        runs = json.loads(self.told("--failed", "--json", "--outdir", "out", "runs.txt"))["runs"]
        self.assertEqual([(run["directory"], run["why"]) for run in runs],
                         [("/home/me", ""), ("", "no zsh on node1")])

    def test_equal_reasons_are_grouped_as_on_the_page(self) -> None:
        self.write("! a\n! b\n! c\n! d\n")
        texts = "step 1: no convergence\n", "", "step 20: no convergence\n", "step 3: no convergence\n"
        self.journal(*(end(number, number, "abcd"[number - 1], state="!", stderr=text, files=[])
                       for number, text in enumerate(texts, 1)))
        self.assertTrue(self.told("--failed", "--outdir", "out", "runs.txt").endswith(
            "\n\n     3  step …: no convergence  (lines 1, 3, 4 on node1)\n"
            "     1  exit 3  (line 2 on node1)\n"))

    def test_a_run_that_was_killed_is_grouped_by_the_cause_and_not_by_its_last_output(self) -> None:
        causes = [("timeout", 15.01), ("timeout", 25), ("timeout", 15), ("", 1), ("memory", 1), ("lost", 1)]
        self.write("".join(f"! run {number}\n" for number, _ in enumerate(causes, 1)))
        self.journal(*(end(number, number, f"run {number}", took=took, state="!", cause=cause,
                           promised=4 << 30, memory=number << 30, stdout=f"iterating {number}\n", files=[])
                       for number, (cause, took) in enumerate(causes, 1)))
        for runs, expected in (
            ("1,3", "     2  timeout after 15s  (lines 1, 3 on node1)\n"),
            ("1-6", "     3  timeout  (lines 1, 2, 3 on node1)\n     1  iterating 4  (line 4 on node1)\n"
                    "     1  took 5G of 4G  (line 5 on node1)\n     1  lost  (line 6 on node1)\n"),
        ):
            told = self.told("--show", runs, "--outdir", "out", "runs.txt")
            self.assertEqual(told.rpartition("\n\n")[2], expected)

    def test_many_failed_lines_take_no_more_memory_than_a_part_of_them(self) -> None:
        count = 3000
        lines = [f"{'!e'[number % 2]} run {number}\n" for number in range(count)]
        lines[1234] = lines[1235] = "! equal\n"
        lines[2345] = "d incomplete\n"
        self.write("".join(lines))
        self.journal(*(end(number, number + 1, lines[number].strip()[2:], state=lines[number][0], files=[],
                           stdout="word " * 800, **{"incomplete": True} if number == 2345 else {})
                       for number in range(count)))
        limit = """
import html, json, json.decoder, json.encoder, resource, runwait4, secrets
runwait4.RunOutput.MAX_COLUMNS = 20
runwait4.MAX_LINES = 300
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * 4096 + (12 << 20)
resource.setrlimit(resource.RLIMIT_AS, (size, size))"""
        for more in (), ("--json",):
            options = "--failed", *more, "--outdir", "out", "runs.txt"
            ended = self.finish(self.start_patched(limit, *options, script=RUNWAIT))
            self.assertEqual((ended.code, ended.err), (0, b""))
            whole = "import runwait4\nrunwait4.RunOutput.MAX_COLUMNS = 20"
            self.assertEqual(ended.out, self.finish(self.start_patched(whole, *options, script=RUNWAIT)).out)
            self.assertEqual(ended.out.count(b"incomplete"), count + 1 if more else 1)

    def test_without_a_journal_the_lines(self) -> None:
        self.write("! a\nd b\ne c\nr d\n")
        why = ("no recorded run: edited or set by hand, stopped between tries or with its group, or its "
               "record was not kept, or is in another --outdir")
        self.assertEqual(self.told("--failed", "runs.txt"),
                         "".join(f"line {line} {why}\n    {command}\n" for line, command in
                                 (("1: failed;", "a"), ("3: error;", "c"), ("4: error;", "d")))
                         + "\n     3  no recorded run  (lines 1, 3, 4)\n")
        self.write("d a\n")
        self.assertEqual(self.told("--failed", "runs.txt"), "")


class Incomplete(TellingCase):
    """Lines whose last run has printed more than could be written are told, though they are done."""

    def incomplete(self, err: str = "") -> list[str]:
        told = self.told("--outdir", "out", "--failed", "runs.txt", err=err)
        return re.findall(r"line (\d+): exit 0 on .*\n    .*\n    .*\(some could not be written\)", told)

    def test_lines_that_nobody_of_ours_has_written_are_not_believed(self) -> None:
        self.write("d a\n")
        odd = [b'{"line":1,"command":5,"incomplete": true}\n',
               b'{"line":[],"command":"a","incomplete": true}\n',
               b'{"event":"end","line":1e999,"command":"a","incomplete": true}\n', b'["incomplete"]\n',
               end(1, 1, "a", incomplete="yes"), end(2, "1", "a", incomplete=True),
               end(3, 1, "a")[:-2] + b"\n"]
        self.journal(*odd, *pair("good", 1, "a", incomplete=True))
        self.assertEqual(self.incomplete(err=".*: 7 lines skipped: [^\n]*\n"), ["1"])

    def test_only_the_last_run_of_a_line_counts_also_if_it_was_moved(self) -> None:
        self.write("d a\nd b\nd c\n. n\nd d\n")
        self.journal(*pair(1, 2, "b", incomplete=True), *pair(2, 1, "a", incomplete=True), *pair(3, 1, "a"),
                     *pair(4, 3, "c"), *pair(5, 3, "c", incomplete=True), *pair(6, 2, "elsewhere"),
                     *pair(7, 9, "d", incomplete=True), *pair(8, 9, "gone", incomplete=True))
        self.assertEqual(self.incomplete(), ["2", "3", "5"])
        self.write("d a\n")
        self.journal(*pair(1, 7, "a", incomplete=True), *pair(2, 4, "a"))
        self.assertEqual(self.incomplete(), [])


class Stats(TellingCase):

    def test_a_table_per_host_and_in_all(self) -> None:
        self.journal(*[end(number, number, took=number, cpu=number / 2, memory=number * 10 ** 6, host="alice")
                       for number in range(1, 11)],
                     end("b", 1, took=100, cpu=None, memory=None, host="bob"), start(99, 1))
        # what follows is told in test_memory_told
        table = self.told("--stats", "--outdir", "out").partition("\n\n")[0]
        self.assertEqual([line.split("  ") for line in re.sub("   *", "  ", table).splitlines()], [
            ["host", "runs", "median", "90%", "longest", "CPU", "memory", "too little"],
            ["alice", "10", "5.0s", "9.0s", "10s", "50%", "9.5M", "0"],
            ["bob", "1", "1m 40s", "1m 40s", "1m 40s", "-", "-", "0"],
            ["in all", "11", "6.0s", "10s", "1m 40s", "50%", "9.5M", "0"]])

    def test_on_a_terminal_it_is_no_wider_than_80_columns_elsewhere_names_are_whole(self) -> None:
        self.journal(end(1, 1, took=9e8, cpu=9e9, memory=10 ** 15, host="h" * 99))
        shown = self.at_terminal(80, "--stats", "--outdir", "out")
        self.assertLessEqual(max(map(len, shown)), 80)
        self.assertIn(" 909.5T", shown[1])
        self.assertIn(f'{"h" * 99} ', self.told("--stats", "--outdir", "out"))

    def test_short_times_are_told_in_milliseconds_as_on_the_page(self) -> None:
        self.journal(end(1, 1, took=0.0494), end(2, 2, took=0.0012), end(3, 3, took=0.9997))
        self.assertRegex(self.told("--stats", "--outdir", "out"), r" 49 ms  1\.0s     1\.0s ")
        self.write("d true\n")
        self.told("--outdir", "out", "--report", "o.html", "runs.txt")
        self.assertIn(b'"49 ms"', self.read("o.html"))


class Timeline(TellingCase):

    def test_it_has_the_true_slots_and_what_ran_at_once_in_one_of_them_apart(self) -> None:
        self.journal(
            *[end(number, number + 1, f"job {number}", BEGAN + number, took=1, slot=str(number % 3 * 5))
              for number in range(12)], end("other", 1, "other", BEGAN, took=1.2, slot="10"),
            end("x", 1, "x", host="a", slot="gpu"),
            end("t", 20, "t", BEGAN + 30, took=1, state="!", cause="timeout", exit=-1, signal=15, slot="0"),
            start("open", 3), b"foreign\n", end("at 10", 1, "at 10", BEGAN, took=5, slot="10")
        )
        self.told("--outdir", "out", "--timeline", "out.json", err=".*: 1 line skipped: .*\n")
        trace = read_trace(self.read("out.json"))
        slots = {name: [event["args"]["command"] for event in events]
                 for name, events in trace.host("node1").items()}
        self.assertEqual(slots, {"slot 0": ["job 0", "job 3", "job 6", "job 9", "t"],
                                 "slot 5": ["job 1", "job 4", "job 7", "job 10"],
                                 "slot 10": ["other", "job 2", "job 5", "job 8", "job 11"],
                                 "slot 10 (2)": ["at 10"]})
        self.assertEqual(list(trace.host("a")), ["slot gpu"])
        (timeout,) = [event for event in trace.all if event["args"]["command"] == "t"]
        self.assertEqual((timeout["args"]["state"], timeout["ts"]), ("failed", int((BEGAN + 30) * 1e6)))

    def test_it_tells_what_became_of_each_run_as_the_journal_does(self) -> None:
        endings = {         # what the journal has, and what the timeline tells
            "done": (("d", 0, 0, ""), ("done", 0, 0)),
            "failed": (("!", 3, 0, ""), ("failed", 3, 0)),
            "crashed": (("!", -1, 9, ""), ("failed", 137, 9)),
            "timeout": (("!", -1, 15, "timeout"), ("failed", -1, 15)),
            "timeout, exit 7": (("!", 7, 0, "timeout"), ("failed", -1, 0)),
            "not started": (("e", -1, 0, ""), ("error", -1, 0)),
            "stopped": (("e", -1, 15, "stopped"), ("error", 143, 15)),
            "lost": (("e", -1, 0, "lost"), ("error", -1, 0)),
            "told": (("e", 143, 0, ""), ("error", 143, 0)),
            "died of TERM": (("!", -1, 15, ""), ("failed", 143, 15)),
            "cancelled": (("c", -1, 15, "cancelled"), ("cancelled", 143, 15)),
            "put back": ((".", 255, 0, ""), ("put back", 255, 0)),
        }
        ends = [end(name, line, name, BEGAN + 2 * line, state=state, exit=code, signal=number, cause=cause)
                for line, (name, ((state, code, number, cause), _)) in enumerate(endings.items(), 1)]
        self.journal(*ends)
        self.told("--outdir", "out", "--timeline", "out.json")
        keys = "state", "exit_status", "signal"
        found = {event["args"]["command"]: tuple(event["args"][key] for key in keys)
                 for event in read_trace(self.read("out.json")).all}
        self.assertEqual(found, {name: told for name, (_, told) in endings.items()})

    def test_what_cannot_be_drawn(self) -> None:
        self.journal(start(1, 1))
        self.assertRefused(self.runwait("--outdir", "out", "--timeline", "o.json"), "no finished runs")
        self.assertRefused(self.runwait("--outdir", "gone", "--timeline", "o"), "gone/journal: no such file")
