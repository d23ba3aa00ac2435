"""Promise: -1, -r, --resume, --follow, --delay and other options of a runner do what --help says."""
import argparse
import functools
import importlib
import json
import os
import re
import signal
import unittest
from collections import Counter
from typing import Any

import runmaker4
from runmaker4 import VERSION
from tests.support.over_tcp import OverTcp, ordinarily, without
from tests.support.processes import Ended, wait_until
from tests.support.runs import UP, WAITING, RunCase
from tests.support.scripts import ROOT, RUNMAKER, RUNSERVER, RUNSET, RUNWAIT, SCRIPTS

client = importlib.import_module("runmaker4-client")
server = importlib.import_module("runmaker4-server")


class Selection(RunCase):
    """-1, --retry and --resume: which lines a runner takes, and that it comes to an end."""

    def run_states(self, states: str, *options: str) -> str:
        """Run lines of these states, each of which notes its number in 'ran'; which lines ran."""
        self.before = self.write("".join(f"{state} echo $JOB_ID >> ran\n" for state in states)).read_bytes()
        self.write("", "ran")
        self.ended = self.run_jobs(*options)
        return " ".join(self.read("ran").decode().split())

    def test_new_lines_are_run_and_what_the_options_say_besides(self) -> None:
        for states, options, ran, code, left in (("!.edx.q", (), "2 6", 1, "!dedxdq"),
                                                 ("!.edx!", ("-r",), "1 2 3 6", 0, "ddddxd"),
                                                 ("!.edxe", ("--resume",), "2 3 6", 1, "!dddxd")):
            with self.subTest(options=options):
                self.assertEqual(self.run_states(states, *options), ran)
                self.assertEnded(self.ended, code, left)

    # A runner pauses when it has made the first line new
    PAUSING = """
import os, runmaker4, time
reset_lines = runmaker4.JobFile.reset_lines
def reset_lines_and_pause(*args):
    is_new = reset_lines(*args)
    while is_new and not os.path.exists("go"):
        time.sleep(0.01)
    return is_new
runmaker4.JobFile.reset_lines = reset_lines_and_pause
"""

    def test_ctrl_c_acts_while_failed_lines_become_new_and_no_job_has_started(self) -> None:
        """A job that runs has them made new one by one."""
        self.write("".join(f"! sleep 600 # {number}\n" for number in range(20_000)) + ". sleep 600\n")
        other = self.start(RUNMAKER, "runs.txt")
        wait_until(lambda: self.read().endswith(b"\nr sleep 600\n"), what="the other job runs")
        runner = self.start_patched(self.PAUSING, "-r", "runs.txt")
        wait_until(lambda: self.read()[:1] == b".", what="the first line is new")
        runner.send_signal(signal.SIGINT)
        self.write("", "go")
        self.assertEqual(self.finish(runner).code, 130)
        states = Counter(self.states())
        self.assertEqual((states["r"], states["!"] + states["."]), (1, 20_000))
        self.assertGreater(states["!"], 10_000)
        self.stop(other, signal.SIGINT)

    def test_one_only_runs_one_job_per_slot(self) -> None:
        for options, ran in (("-1",), "1"), (("--one-only", "-j2"), "1 2"):
            with self.subTest(options=options):
                lines = self.run_states(".....", *options).split()
                self.assertEqual(" ".join(sorted(lines)), ran)
                self.assertEnded(self.ended, 0, "d" * len(lines) + "." * (5 - len(lines)))


class Waiting(RunCase):
    """--follow waits for jobs and for the file; other runners look for new jobs as long as theirs run."""
    # A runner writes down how long it means to wait before it looks again
    NOTED = """
import asyncio
call_later = asyncio.BaseEventLoop.call_later
def note_and_call(loop, seconds, callback, *args, **named):
    if getattr(callback, "__qualname__", "") == "Event.set":
        with open("pauses", "a") as pauses:
            pauses.write(f"{seconds}\\n")
    return call_later(loop, seconds, callback, *args, **named)
asyncio.BaseEventLoop.call_later = note_and_call
"""

    def test_follow_starts_a_new_job_within_half_a_second(self) -> None:
        self.jobs("true")
        self.write(f"{server.POLL_SECONDS}\n", "pauses")        # a client waits for its server
        runner = self.start_patched(self.NOTED, "--follow", "runs.txt")
        for count in range(1, 4):
            self.wait_states("d" * count)
            self.append(". true")
        self.wait_states("d" * 4)
        pauses = map(float, self.read("pauses").split())
        self.assertLessEqual(max(pause for pause in pauses if pause != client.FOREVER), 0.5)
        self.assertEnded(self.stop(runner, signal.SIGINT), 130, "d" * 4)

    def test_one_only_with_follow_waits_for_one_job(self) -> None:
        self.jobs()
        runner = self.start(RUNMAKER, "-1", "--follow", "runs.txt")
        self.append(". touch first")
        self.append(". touch never")
        self.assertEnded(self.finish(runner), 0, "d.")

    def test_a_free_slot_takes_a_new_job_while_others_run(self) -> None:
        self.jobs(WAITING)
        runner = self.start_jobs("-j2")
        self.append(". touch second")
        self.wait_states("rd")
        self.open_gate()
        self.assertEnded(self.finish(runner), 0, "dd")


class Delay(RunCase):
    """--delay: the least time between two starts of a runner."""

    def test_jobs_and_tries_start_apart_though_there_are_free_slots(self) -> None:
        self.jobs("true", "false", "true")
        self.assertEnded(self.run_jobs("-j4", "--delay=0.5", "--retries=1"), 1, "d!d")
        events = map(json.loads, self.read("runs.txt.out/journal").splitlines())
        starts = sorted(event["time"] - event["seconds"] for event in events if event["event"] == "end")
        self.assertEqual(len(starts), 4)
        for earlier, later in zip(starts, starts[1:]):
            self.assertGreater(later - earlier, 0.45)

    def test_a_runner_holds_no_line_while_it_waits_and_exits_once_none_is_left(self) -> None:
        self.jobs(UP, UP)
        waiting = self.start_jobs("-j2", "--delay=1h")
        self.wait_states("d.")
        self.assertEnded(self.run_jobs(), 0, "dd")
        self.assertEqual(self.finish(waiting).code, 0)

    def test_a_runner_that_drains_waits_for_no_try(self) -> None:
        self.jobs(f"{UP}; false")
        runner = self.start_jobs("--delay=1h", "--retries=1")
        wait_until(lambda: b'"exit": 1' in self.read("runs.txt.out/journal"), what="the first try has ended")
        self.assertEnded(self.stop(runner, signal.SIGQUIT), 1, "!")


class DryRun(RunCase):
    """--dry-run: says what would be run, and touches nothing."""

    def test_it_lists_lines_with_their_states_makes_no_file_and_does_not_wait(self) -> None:
        path = self.write("# text\n. touch a\nd touch b\n! touch c\ne touch d\n.\ttouch e\n")
        before, names = (path.read_bytes(), path.stat().st_mtime_ns), sorted(os.listdir(self.dir))
        first, failed, error, last = b"2 . touch a\n", b"4 ! touch c\n", b"5 e touch d\n", b"6 . touch e\n"
        for options, listed in (("", first + last), ("-r", first + failed + error + last),
                                ("--resume", first + error + last), ("-1", first), ("-1 -j2", first + last),
                                ("-l log --joblog joblog --outdir out --follow", first + last)):
            with self.subTest(options=options):
                ended = self.run_jobs("--dry-run", *options.split())
                self.assertEqual((ended.code, ended.out), (0, listed), ended.err)
                self.assertEqual((path.read_bytes(), path.stat().st_mtime_ns), before)
                self.assertEqual(sorted(os.listdir(self.dir)), names)

    def test_with_one_only_it_lists_the_lines_that_the_slots_suffice_for(self) -> None:
        big = "#RUN slots=2\n. true big\n"
        for text, options, ran in ((f". true\n{big}", "-j2", [1]), (f". true\n{big}", "-j3", [1, 3]),
                                   (f"{big}#RUN\n. true\n", "-j2", [2]),
                                   (f". true\n{big}#RUN\n. true\n. true\n", "-j2", [1, 5])):
            with self.subTest(text, options=options):
                self.write(text)
                listed = self.run_jobs("--dry-run", "-1", options).out.splitlines()
                self.assertEqual([int(line.split()[0]) for line in listed], ran)
                self.run_jobs("-1", options)
                lines = self.read().splitlines()
                self.assertEqual([number for number, line in enumerate(lines, 1) if line[:1] == b"d"], ran)

    def test_it_lists_nothing_where_there_is_no_file_yet(self) -> None:
        ended = self.run_jobs("--dry-run", "--follow")
        self.assertEqual((ended.code, ended.out), (0, b""), ended.err)


class Loudness(RunCase):
    """-q: less on the console."""

    def test_quiet_leaves_errors_and_the_closing_line(self) -> None:
        self.jobs("echo a; echo b >&2", "exit 3", "echo a\0b")
        ended = self.run_jobs("-q")
        self.assertEnded(ended, 1, "d!e")
        self.assertEqual(ended.out, b"")
        self.assertEqual(ended.err.count(b"\n"), 3, ended.err)
        self.assertComplains(ended, "line 3")
        self.assertIn(b"\nrunmaker4.py: runs.txt: 1 done, 1 failed, 1 error", ended.err)


class Help(RunCase):
    """--version, and --help: what a script is, usage, examples, groups, exit statuses, on two screens."""

    def test_it_fits_sixty_lines_of_any_terminal_and_has_all_its_parts(self) -> None:
        for columns in "", "80", "100":
            calls = ((script, "--help") for script in SCRIPTS)
            for (script, _), ended in self.run_all(calls, env={"COLUMNS": columns}):
                with self.subTest(script=script, columns=columns):
                    self.assertEqual((ended.code, ended.err), (0, b""))
                    lines = ended.out.decode().splitlines()
                    self.assertLessEqual(len(lines), 60)
                    self.assertLess(max(map(len, lines)), int(columns or 80))
                    self.check_parts(script, lines)

    def check_parts(self, script: str, lines: list[str]) -> None:
        """The usage, what the program is, examples; groups of options; exit statuses."""
        usage, purpose, examples, *_ = "\n".join(lines).split("\n\n")
        self.assertRegex(purpose, r"\A[A-Z][^\n]*\.\Z|\A[A-Z][^\n]*\n[^\n]*\.\Z|\A(.*\n){2}.*\.\Z")
        self.assertRegex(usage, rf"\Ausage: {script} \[options\] [A-Z]+")
        self.assertRegex(examples, rf"(?m)^    (alice\$ )?{script} [^\[\n]*(runs\.txt|alice)")
        headings = [line for line in lines if line.endswith(":") and not line.startswith((" ", "-"))]
        self.assertGreaterEqual(len(headings), 2, headings)
        statuses = [line.split()[0] for line in lines[lines.index("Exit status:") + 1:]
                    if re.match("  [0-9]", line)]
        self.assertEqual(statuses[:3], ["0", "1", "2"])

    def test_an_unknown_option_is_refused(self) -> None:
        for script, option in ((RUNMAKER, "--max-fail"), (RUNSET, "--ad-list=l"), (RUNWAIT, "--progres")):
            ended = self.run_script(script, option, "runs.txt")
            self.assertRefused(ended, f"{script}: unrecognized arguments: {option} (see --help)\n")

    def test_an_option_of_another_script_is_refused_with_its_name_before_a_file_is_looked_for(self) -> None:
        for script, option, owner in ((RUNMAKER, "--status", RUNWAIT), (RUNMAKER, "-e", RUNWAIT),
                                      (RUNWAIT, "-r", RUNMAKER), (RUNSET, "--host", RUNSERVER)):
            ended = self.run_script(str(ROOT / script), option, "bob", "missing.txt")
            self.assertRefused(ended, f"{script}: {option} is an option of {owner}\n")
        ended = self.run_script(RUNSET, "--set=new", "--color", "red", "missing.txt")
        self.assertRefused(ended, "unrecognized arguments: --color (see --help)")

    def test_an_option_of_another_program_is_refused_with_ours(self) -> None:
        for script, option, ours in ((RUNMAKER, "--retry-failed", "-r"), (RUNMAKER, "-P", "-j"),
                                     (RUNSERVER, "-p", "--port"), (RUNMAKER, "--dryrun", "--dry-run"),
                                     (RUNMAKER, "--bar", f"{RUNWAIT} --progress"),
                                     (RUNMAKER, "--eta", f"{RUNWAIT} --progress")):
            ended = self.run_script(script, option, "missing.txt")
            self.assertRefused(ended, f"{script}: unrecognized arguments: {option} (here: {ours})\n")

    def test_a_call_as_of_parallel_is_refused_with_what_makes_jobs(self) -> None:
        for words in (("convert", "{}", ":::", "a", "b"), ("convert", "-resize", "9x9", "{}", ":::", "a"),
                      ("convert", "::::", "list")):
            self.assertRefused(self.run_script(RUNMAKER, "-j4", *words), "::: makes no jobs here (use "
                               "runset4.py runs.txt --add --template 'convert {}' ::: *.png, or --add-list "
                               "FILE)\n")
        self.assertRefused(self.run_script(RUNSET, "runs.txt", "echo {}", ":::", "a"),
                           "'echo {}' (such as ", "; new jobs: --add CMD, or --add --template CMD :::)")
        for jobs in "+0", "100%":
            self.assertRefused(self.run_script(RUNMAKER, f"-j{jobs}", "runs.txt"),
                               f"whole number from 0 to 100000: '{jobs}' (0: one per CPU) (see --help)\n")
        self.assertFalse(self.exists("runs.txt"))

    def test_a_path_gets_the_home_directory_and_a_dash_is_none(self) -> None:
        self.jobs("true")
        self.assertEnded(self.run_jobs("-q", "--outdir=~/out", env={"HOME": str(self.dir / "home")}), 0, "d")
        self.assertTrue((self.dir / "home" / "out" / "journal").exists())
        for script, option in (RUNWAIT, "--report"), (RUNMAKER, "-l"), (RUNMAKER, "--outdir"):
            self.assertRefused(self.run_script(script, option, "-", "runs.txt"), "a file is required ('./-'")
        for words in ("-",), ("true", "-"):
            self.assertRefused(self.run_script(RUNSET, "runs.txt", "--add", *words),
                               "--add takes jobs, not '-' (for lines of stdin: --add-list -)\n")

    def test_a_range_of_slots_is_refused(self) -> None:
        for names in "0-3", "a,0-3", "0..3":
            self.assertRefused(self.run_script(RUNMAKER, "--slots", names, "missing.txt"),
                               f"not a list of names: '{names}' (A,B,... or 0,1,2,3 or @FILE)")
        self.jobs("echo $SLAVE_IP >names")
        self.assertEqual(self.run_jobs("-q", "--slots", "MIG-0-3,gpu-1", "-1").code, 0)
        self.assertEqual(self.read("names"), b"MIG-0-3\n")

    def test_a_runner_in_another_directory_than_all_before_says_so(self) -> None:
        self.jobs("true", "true", "true")
        (self.dir / "sub").mkdir()
        where = f"the jobs run in \"{self.dir}/sub\"".encode()
        said = where + f"; those before ran in \"{self.dir}\"\n".encode()
        self.assertNotIn(b"ran in", self.run_jobs("-q", "-1").err)
        elsewhere = functools.partial(self.run_script, RUNMAKER, "-q", "-1", "../runs.txt",
                                      cwd=self.dir / "sub")
        self.assertIn(said, elsewhere().err)
        self.assertNotIn(b"ran in", elsewhere().err)    # one of those before was there
        self.assertNotIn(b"ran in", self.run_jobs("-q").err)
        self.jobs("true", "true")
        (self.dir / "runs.txt.out/journal").unlink()
        self.assertIn(where + b", not in the directory of the job file\n", elsewhere().err)
        self.assertNotIn(b"the jobs run in", elsewhere().err)
        (self.dir / "here").symlink_to(self.dir)
        for path in self.dir / "runs.txt", "here/runs.txt":
            (self.dir / "runs.txt.out/journal").unlink()
            self.jobs("true")
            self.assertNotIn(b"the jobs run in", self.run_script(RUNMAKER, "-q", path).err)

    def test_a_second_file_is_refused(self) -> None:
        calls = ((RUNMAKER, "a.txt", "b.txt", "c.txt"), (RUNSERVER, "a.txt", "--", "b.txt", "c.txt"))
        for call, ended in self.run_all(calls):
            with self.subTest(call=call):
                self.assertRefused(ended, "unrecognized arguments: ", "b.txt")
        self.assertRefused(self.run_script(RUNWAIT, "a.txt", "b.txt"), "LINE requires --output")

    def test_a_negative_number_is_no_value(self) -> None:
        self.assertRefused(self.run_jobs("-j", "-1"), "argument -j/--jobs: expected one argument")

    def test_every_script_tells_its_version(self) -> None:
        for script in SCRIPTS:
            with self.subTest(script):
                ended = self.run_script(script, "--version")
                self.assertEqual((ended.code, ended.out, ended.err),
                                 (0, f"{script} {VERSION}\n".encode(), b""))


class Durations(unittest.TestCase):
    """Durations are read as people write them, and nothing else is taken for one."""

    def test_numbers_and_units(self) -> None:
        for text, seconds in (("90", 90), ("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86400),
                              ("1.5h", 5400), (".5", 0.5), ("0.25s", 0.25), ("007", 7), ("none", None)):
            with self.subTest(text=text):
                self.assertEqual(runmaker4.duration(text), seconds)

    def test_anything_else_is_refused(self) -> None:
        words = "0 0s -1 +1 s . 1:30 1h30m 5M 5ms 1e3 inf nan None \u0665 1,5 1_0".split()
        for text in (*words, "", "5 m", " 5", "5\n", "9" * 400):
            with self.subTest(text=text), self.assertRaises(argparse.ArgumentTypeError):
                runmaker4.duration(text)

    def test_times_are_told_with_two_units_at_the_most(self) -> None:
        for seconds, text in ((0, "0.0s"), (0.44, "0.4s"), (9.94, "9.9s"), (9.96, "10s"), (59.4, "59s"),
                              (59.6, "1m 00s"), (303, "5m 03s"), (3599.6, "1h 00m"), (11_520, "3h 12m"),
                              (187_200, "2d 04h")):
            with self.subTest(seconds=seconds):
                self.assertEqual(runmaker4.human_time(seconds), text)


# -- the same, promised of a client -------------------------------------------------------------------------


@ordinarily()
# a server goes on until it has heard that the client leaves
@without("test_ctrl_c_acts_while_failed_lines_become_new_and_no_job_has_started")
class SelectionOverTcp(OverTcp, Selection):
    """-1, --retry and --resume are said by the client and heeded by the server."""

    def run_jobs(self, *options: object, **settings: Any) -> Ended:
        """Run the jobs by a server of their own: another one would go on where it is in the file."""
        for server in self.servers.values():
            self.stop(server)
        self.servers.clear()
        return super().run_jobs(*options, **settings)

    def assertComplains(self, ended: Ended, *words: str) -> None:
        """It is the server who says it."""
        self.wait_said(self.servers["runs.txt"], *words)


@ordinarily("test_a_free_slot_takes_a_new_job_while_others_run")
class WaitingOverTcp(OverTcp, Waiting):
    """--follow waits for more; every client looks for new jobs as long as its own run."""


@ordinarily("test_jobs_and_tries_start_apart_though_there_are_free_slots")
class DelayOverTcp(OverTcp, Delay):
    """--delay of a client: it gives back what it cannot start within a second."""

    def test_a_runner_holds_no_line_while_it_waits_and_exits_once_none_is_left(self) -> None:
        """Another client gets the line; this one would exit after its pause."""
        self.jobs(UP, UP)
        waiting = self.start_jobs("-j2", "--delay=1h")
        self.wait_states("d.")
        self.assertEnded(self.run_jobs(), 0, "dd")
        self.stop(waiting)

    def test_a_group_starts_though_its_shells_start_apart(self) -> None:
        self.before = self.write("#RUN together=g host=alice\n" + f". {UP}\n" * 3).read_bytes()
        self.assertEnded(self.run_jobs("--name=alice", "-j3", "--delay=1.2"), 0, "ddd")


