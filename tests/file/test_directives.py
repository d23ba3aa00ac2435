"""Promise: #RUN lines say where, when and how long the jobs below run, also when they change."""
import asyncio
import random
import re
import signal
import subprocess
import unittest
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Callable, Optional
from unittest import mock

import runmaker4
from tests.support.case import GATE
from tests.support.claims import JobFileCase, job_of
from tests.support.console import console_lines, printed
from tests.support.directives import LAST, NOTED, RAN, DirectiveCase, spared
from tests.support.over_tcp import OverTcp, ordinarily, without
from tests.support.processes import wait_until
from tests.support.runs import HASTY, LOOKS, WAITING
from tests.support.scripts import ALL, FULL, RUNMAKER, RUNSET
from tests.support.tcp import Server

# -- bad ones ------------------------------------------------------------------------------------------------

MALFORMED = (
    "#RUN host=", "#RUN host=a,,b", "#RUN host=,a", "#RUN host=a,", "#RUN host=,", "#RUN timeout=",
    "#RUN together= host=a", "#RUN together=g host=", "#RUN together=g host=a min-hosts=",
    "#RUN together=g", "#RUN together=g timeout=5", "#RUN min-hosts=1", "#RUN host=a min-hosts=all",
    "#RUN together=g host=a min-hosts=some", "#RUN together=g host=a min-hosts=1.5",
    "#RUN together=g host=a min-hosts=-1", "#RUN together=g host=a min-hosts=ALL", "#RUN timeout=5x",
    "#RUN timeout=0", "#RUN timeout=-1", "#RUN timeout=1s2", "#RUN timeout=None", "#RUN host=a host=b",
    "#RUN timeout=1 timeout=1", "#RUN together=g together=g host=a", "#RUN frobnicate", "#RUN colour=red",
    "#RUN host", "#RUN host =a", "#RUN Host=a", "#RUN Barrier", "#RUN END", "#RUN barrier x",
    "#RUN barrier check x", "#RUN barrier barrier", "#RUN barrier end", "#RUN check", "#RUN end x",
    "#RUN barrier host=a", "#RUN host=a barrier", "#RUN barrier check timeout=1", "#RUN timeout=1 end",
    "#RUNNING", "#RUNbarrier", "#RUN:", "#RUN, host=a", "#RUN=", "#RUN\x0bbarrier", "#RUN # barrier",
    "#RUN shell=", "#RUN shell=fish", "#RUN shell=/usr/bin/tcsh", "#RUN shell=python3", "#RUN shell=true",
    "#RUN slots=0", "#RUN slots=x", "#RUN slots=", "#RUN slots=2 together=g host=a", "#RUN memory=4",
    "#RUN memory=4g", "#RUN memory=4GB", "#RUN memory=0G", "#RUN memory=-1G", "#RUN memory=",
    "#RUN memory=4G,", "#RUN memory=4G,4G", "#RUN memory=16G,4G", "#RUN memory=.G",
    "#RUN memory=999999999T", "#RUN memory=4G together=g host=a",
    "#RUN shell=./activate.sh", "#RUN shell=bash/", "#RUN shell=bash -l", "#RUN shell=bash shell=bash",
    "#RUN \x1b[31m=x",
)

# Runs runmaker4.py on one file after the other, and prints each one's exit status
ONE_BY_ONE = (
    "import runmaker4\nfor name in sys.argv[1:]: print(name, runmaker4.main([name]), flush=True)\nsys.exit()"
)


class Malformed(DirectiveCase):
    """A directive that is wrong is refused before anything runs, with the number of its line."""

    def write_all(self) -> list[str]:
        """A file for each of them, in line 3; the names."""
        names = [f"{number}.txt" for number in range(len(MALFORMED))]
        for name, bad in zip(names, MALFORMED):
            self.write(self.text(bad), name)
        return names

    def text(self, bad: str) -> str:
        return f". touch never\n#RUN timeout=1\n{bad}\n. touch never\n"

    def assertUntouched(self, names: Sequence[str]) -> None:
        self.assertFalse(self.exists("never"), "a job ran")
        for name, bad in zip(names, MALFORMED):
            self.assertEqual(self.read(name).decode(), self.text(bad))

    def test_each_is_refused_at_the_start_in_one_line_that_names_its_own(self) -> None:
        names = self.write_all()
        ended = self.finish(self.start_patched(ONE_BY_ONE, *names, stderr=subprocess.PIPE))
        codes = dict(re.findall(r"^(\d+\.txt) (\d+)$", ended.out.decode(), re.MULTILINE))
        said = ended.err.decode().splitlines()
        for name, bad in zip(names, MALFORMED):
            with self.subTest(directive=bad):
                self.assertEqual(codes.get(name), "2")
                lines = [line for line in said if f": {name}: " in line]
                self.assertEqual(len(lines), 1, lines)
                self.assertRegex(lines[0], rf"\Arunmaker4\.py: {name}: line 3: \S")
        self.assertEqual(len(said), len(names))
        self.assertNotIn(b"\x1b", ended.err)
        self.assertUntouched(names)

    @spared
    def test_a_pattern_that_some_pythons_cannot_read_is_no_defect(self) -> None:
        # before 3.10 it is refused; then it fits no host
        self.write("#RUN host=[z-a]\n. touch never\n")
        self.assertNotIn(b"Traceback", self.run_jobs().err)
        self.assertEqual(self.states(), ".")

    def test_what_only_looks_like_one_is_a_comment(self) -> None:
        self.write("# RUN nonsense\n# run\n#RU\n#\n##RUN x\n/RUN x\n # RUN x\n. true\n"
                   "#RUN\n#RUN \t \n#RUN\r\n#RUN\tbarrier\t\r\n#RUN  barrier \t check \n"
                   "#RUN timeout=90\t host=*\r\n. true\n")
        self.before = self.read()
        self.assertLeft(self.start(RUNMAKER, "runs.txt"), 0, "dd")


# -- settings ------------------------------------------------------------------------------------------------

class Hosts(DirectiveCase):
    """host=: who runs the lines below."""
    NAME = "Alice.example.org"
    OURS: tuple[str, ...] = ("alice", "ALICE", "alice.example.org", "bob,alice", "alice,bob", "al*", "?lice",
                             "[a-c]lice", "*.org", "*")
    OTHERS: tuple[str, ...] = ("bob", "bob,carol", "b*", "lice", "alic", "alice?", "example.org",
                               "alice.example", "al*.net", "alice/")

    def test_a_runner_takes_what_its_name_matches_and_leaves_the_rest(self) -> None:
        """Two lines are for us, one is for others, and one for all, by turns."""
        lines: list[str] = []
        for ours, others in zip(self.OURS, self.OTHERS):
            lines += [f"#RUN host={ours}", f". {RAN}", f". {RAN}",
                      f"#RUN timeout=50 host={others} ", f". {RAN}", "#RUN", f". {RAN}"]
        self.lines(*lines)
        self.assertLeft(self.start(RUNMAKER, "-j4", "--name", self.NAME, "runs.txt"), 0,
                        "dd.d" * len(self.OURS))
        self.assertTold(" new")
        self.assertEqual(len(self.ran()), 3 * len(self.OURS), "JOB_ID is the line number")
        self.assertEqual(set(self.ran()),
                         {7 * block + line for block in range(len(self.OURS)) for line in (2, 3, 7)})


class Settings(DirectiveCase):
    """A settings line holds for what stands below it, down to the next, for whatever a runner takes."""

    @spared
    def test_settings_hold_down_to_the_next_ones(self) -> None:
        others = f"#RUN host=bob\n. {NOTED}\n#RUN barrier\n. {NOTED}\n#RUN barrier check\n. {NOTED}\n"
        late = "until grep -q '^!' 0.txt; do sleep 0.02; done"         # after more than 0.1 s
        self.check_runs(
            (f"#RUN timeout=0.1\n. sleep 600\n#RUN host=bob timeout=0.1\n#RUN timeout=50\n. {late}\n"
             f"#RUN host=bob timeout=0.1\n#RUN\n. {late}\n#RUN host=bob\n#RUN host=alice\n. true\n",
             "-j4", 1, "!ddd", []),
            (others, "", 0, "...", []),
            (others, "--name=bob", 0, "ddd", [2, 4, 6]),
            ("\ufeff#RUN host=bob\n. true\n#RUN\n. true\n", "", 0, ".d", []),
            ("#RUN host=bob\n! true\ne true\n#RUN\n! true\n", "-r", 1, "!ed", []))
        self.assertTold("nothing to do", "3 new")


class Timeouts(DirectiveCase):
    """timeout=: how long the jobs below may run, whatever --timeout says."""

    def test_it_beats_the_option(self) -> None:
        late = "until [ $(grep -c '^!' runs.txt) = 2 ]; do sleep 0.02; done"
        self.lines("#RUN timeout=0.1", ". sleep 600", "#RUN timeout=none", f". {late}", "#RUN", ". sleep 700")
        ended = self.finish(self.start(RUNMAKER, "-j3", "--timeout", "0.2", "runs.txt"))
        self.assertEqual((ended.code, self.states()), (1, "!d!"))
        status = [text for text in printed(console_lines(ended.out), "status") if text.startswith(b"timeout")]
        self.assertEqual(status, [b'timeout after 0.1s "sleep 600"', b'timeout after 0.2s "sleep 700"'])

    PERCENT = "import runmaker4\nrunmaker4.MIN_PERCENT_SECONDS = runmaker4.PING_SECONDS = 0.3\n" \
              "runmaker4.Journal.MEDIAN_BYTES = 500\n"

    def test_percent_are_of_the_median_once_ten_runs_of_the_file_have_ended_well(self) -> None:
        self.lines("#RUN timeout=300%", ". sleep 600", *[". sleep 0"] * 10)
        self.assertLeft(self.start_patched(self.PERCENT, "-j2", "runs.txt"), 1, "!" + "d" * 10)
        why = rb"300% of the median [\d.]+s, at least 10s"
        self.assertRegex(self.told(), rb"line 2: timeout after [\d.]+s: " + why)
        self.assertRegex(self.read("runs.txt.out/journal"), b'"why": "' + why)
        with open(self.dir / "runs.txt", "a", encoding="ascii") as file:
            file.write("#RUN\n.  sleep 700\n")
        self.finish(self.start_patched(self.PERCENT, "--timeout=250.5%", "runs.txt"))
        self.assertEqual(self.states(), "!" + "d" * 10 + "!")
        self.assertRegex(self.told(), rb"line 14: timeout after [\d.]+s: 250\.5% of ")   # of the runs before


    def test_percent_are_of_runs_with_the_same_first_word_and_without_ten_there_is_no_timeout(self) -> None:
        """The long step of many short ones is not ended; scripts count together though each has a number."""
        for number in range(11):
            self.script("#!/bin/sh\n[ $1 = short ] || exec sleep 600\n", f"tr\u00e9m{number}.sh")
        self.lines("#RUN timeout=300%", *[f". ./tr\u00e9m{number}.sh short" for number in range(10)],
                   "#RUN barrier", ". until grep -q ^! runs.txt; do sleep 0.02; done",
                   ". ./tr\u00e9m10.sh long")
        self.assertLeft(self.start_patched(self.PERCENT, "-j2", "runs.txt"), 1, "d" * 11 + "!")


class StoppedTogether(unittest.TestCase):
    """While a runner and its jobs are stopped, a timeout goes on for a second at most."""

    def test_a_job_has_its_time_apart_from_the_stop(self) -> None:
        now, pauses = 0.0, []

        async def sleep(seconds: float) -> None:
            nonlocal now
            pauses.append(seconds)
            now += 3600.0 if len(pauses) == 3 else seconds

        task = object.__new__(runmaker4.JobTask)
        loop = SimpleNamespace(time=lambda: now)
        with mock.patch.object(task, "_runner", SimpleNamespace(loop=loop), create=True), \
             mock.patch.object(task, "kill_run") as kill, mock.patch("asyncio.sleep", sleep):
            asyncio.run(task._kill_after_timeout(5.0))
        kill.assert_called_once_with("timeout")
        self.assertGreater(sum(pauses), 4.5)


class Records(DirectiveCase):
    """-l numbers all lines: directives and comments have empty records."""
    OPTIONS: tuple[str, ...] = ("-l", "log", "-n1")

    def test_each_job_has_the_record_of_its_line(self) -> None:
        self.before = self.write(
            "#RUN timeout=50\n. echo a\n# comment\n#RUN barrier\nx b\n#RUN host=nobody\n. c\n. d\n"
            "! e\nd f\n#RUN\n. echo g\n#RUN end\n. echo h\n"
        ).read_bytes()
        self.assertLeft(self.start(RUNMAKER, *self.OPTIONS, "runs.txt"), 1, "dx..!ddd")
        log = self.read("log").replace(b"\0", b" ")
        size = 2 * 161
        heads = [log[at:at + size].split(b"(in ")[0].strip() for at in range(0, len(log), size)]
        self.assertEqual(heads, [b"", b".-> echo a", *[b""] * 9, b".-> echo g", b"", b".-> echo h"])


# -- barriers ------------------------------------------------------------------------------------------------

class Barriers(DirectiveCase):
    """#RUN barrier: what stands below starts when nothing above is new or running."""

    def test_many_runners_hold_all_barriers(self) -> None:
        chance = random.Random(4)
        sections, size, runners = (8, 60, 5) if FULL else (3, 8, 3)
        self.sections(*[[chance.choice((0, 0, 0.02, 0.1)) for _ in range(size)] for _ in range(sections)])
        started = [self.start(RUNMAKER, "-q", "-j3", "runs.txt") for _ in range(runners)]
        self.assertEqual([self.finish(runner).code for runner in started], [0] * runners)
        self.assertEqual(self.states(), "d" * sections * size)
        self.assertOnlyStatesChanged()
        self.assertBarriersHeld({runner.pid for runner in started})

    @spared
    def test_what_failed_or_is_on_hold_or_in_error_does_not_close_it_but_is_run_again_first(self) -> None:
        self.check_runs(
            ("#RUN barrier\n! a\ne b\nx c\nQ d\n#RUN barrier\n#RUN barrier\n. false\n#RUN barrier\n"
             f". {NOTED}\n#RUN barrier\n", "", 1, "!exQ!d", [10]),
            (f"! {NOTED}; false\n#RUN barrier\n. {NOTED}\n", "-r -j4", 1, "!d", [1, 3]))


class Orphans(DirectiveCase):
    """A barrier waits for who may still run, and takes what a dead runner has left for an error."""

    def test_what_is_left_behind_becomes_an_error_or_is_run_again_before_what_stands_below(self) -> None:
        """Also if it is not for this host.  A check stops there, and says which line."""
        text, others = f"r {NOTED}\n#RUN barrier\n. {NOTED}\n", "#RUN host=bob\nr true\n#RUN\n"
        check = text.replace("barrier", "barrier check")
        others += f"#RUN barrier\n. {NOTED}\n"
        self.check_runs((check, "", 1, "e.", []), *[
            (text, "", 1, "ed", [3]),
            (check, "--resume -j2", 0, "dd", [1, 3]),
            (others, "", 1, "ed", [5]),
            (others, "--resume", 1, "ed", [5])] * FULL)
        self.assertTold("line 1", "barrier check", "line 2")
        if FULL:
            self.assertTold("1.txt", "line 1", "is r without a lock", "marked e")


class Checks(DirectiveCase):
    """#RUN barrier check: what stands below starts only if nothing above has failed."""

    def test_a_job_that_fails_stops_what_stands_below_all_checks_that_follow(self) -> None:
        text = ". true\n. false\n#RUN barrier\n. true\n" + "#RUN barrier check\n. touch never\n" * 2
        self.check_runs((text, "-j2", 1, "d!d..", []))
        self.assertTold("line 2", "failed", "barrier check", "line 5")
        self.assertTold("barrier check")

    def test_retry_runs_what_failed_above_first_and_resume_is_stopped_by_it(self) -> None:
        """It is passed when all is done or on hold; who has nothing to run below does not care."""
        text = f"! {NOTED}\ne {NOTED}\n#RUN barrier check\n! {NOTED}\n. {NOTED}\n"
        self.check_runs(
            (text, "-r", 0, "dddd", [1, 2, 4, 5]),
            *[(f"e {NOTED}\n! {NOTED}\n#RUN barrier check\n. touch never\n", "--resume", 1, "d!.", [1]),
              ("d a\nx b\n. true\n" + "#RUN barrier check\n. true\n" * 2, "", 0, "dxddd", []),
              ("! a\n#RUN barrier check\nd b\n! c\nx d\n", "", 1, "!d!x", []),
              ("! a\n#RUN barrier check\n#RUN host=bob\n. b\n", "", 1, "!.", [])] * FULL)
        self.assertTold("barrier check", times=int(FULL))

    @spared
    def test_a_follower_says_it_once_and_goes_on_when_that_is_mended(self) -> None:
        self.lines(". false", "#RUN barrier check", f". {RAN}")
        runner = self.start_looking("--follow", "runs.txt")
        self.wait_told("line 1", "barrier check", "line 2")
        self.append(f". {RAN}")
        self.wait_looked()
        self.assertEqual((runner.poll(), self.states()), (None, "!.."))
        self.assertEqual(self.run_script(RUNSET, "--set=x", "runs.txt", "1").code, 0)
        self.wait_states("xdd")
        self.assertEqual(self.stop(runner, signal.SIGHUP).code, 0)
        self.assertTold("line 1", "barrier check", "line 2")


class ChecksBesideRetry(JobFileCase):
    """A check waits for a failed job that -r of another runner makes new while it looks above."""

    def test_the_job_below_starts_after_that_job(self) -> None:
        jobs = self.jobs(b"! a\n#RUN barrier check\n. b\n")
        look = runmaker4._first_line_between

        def make_new_and_look(*args: Any) -> Optional[runmaker4.Line]:
            self.path.write_bytes(b". a\n#RUN barrier check\n. b\n")
            return look(*args)

        with mock.patch.object(runmaker4, "_first_line_between", make_new_and_look):
            self.assertFalse(jobs.claim())
        for number in 1, 3:
            self.clock.now += 100
            job = job_of(jobs.claim())
            self.assertEqual((job.number, jobs.finish(job, b"d")), (number, ""))


# -- end, together, stalls -----------------------------------------------------------------------------------

class End(DirectiveCase):
    """#RUN end: followers treat what stands below as not there, and leave when nothing is left above."""

    def test_followers_leave_and_others_do_not_care(self) -> None:
        self.lines(f". {RAN}", "#RUN end", f". {RAN}", "#RUN end", f". {RAN}")
        self.assertLeft(self.start(RUNMAKER, "--follow", "runs.txt"), 0, "d..")
        self.assertLeft(self.start(RUNMAKER, "runs.txt"), 0, "ddd")

    @spared
    def test_what_failed_above_is_run_again_once_and_nothing_below_holds_a_follower(self) -> None:
        below = "#RUN host=bob\n. true\n#RUN\n#RUN barrier\n. touch never\n"
        self.check_runs(("#RUN end\n. touch never\n! touch never\n", "--follow -r", 1, ".!", []),
                        (f"! {NOTED}; false\n#RUN end\n! {NOTED}\n. {NOTED}\n", "--follow -r", 1, "!!.", [1]),
                        (f". {NOTED}\n#RUN end\n{below}", "--follow", 0, "d..", [1]))

    @spared
    def test_lines_above_for_another_host_hold_nobody_but_at_a_barrier(self) -> None:
        self.lines("#RUN host=bob", f". {RAN}", "#RUN", f". {RAN}", "#RUN end", f". {RAN}")
        self.assertLeft(self.start_looking("--follow", "--name", "alice", "runs.txt"), 0, ".d.")
        self.edit("#RUN end\n", f"#RUN barrier\n. {RAN}\n#RUN end\n")
        alice = self.start_looking("--follow", "--name", "alice", "runs.txt")
        self.wait_looked()
        self.assertEqual((alice.poll(), self.states()), (None, ".d.."))
        bob = self.start(RUNMAKER, "--follow", "-1", "--name", "bob", "runs.txt")
        self.assertEqual(self.finish(bob).code, 0)
        self.assertLeft(alice, 0, "ddd.")
        self.assertEqual(self.ran(), [4, 2, 6])


class Together(DirectiveCase):
    """together= needs a server: on a shared file these lines are left alone, and that is said once."""

    def test_these_lines_are_left_and_the_others_run(self) -> None:
        self.lines("#RUN together=g host=*", ". touch never", ". touch never", "#RUN", f". {RAN}",
                   "#RUN together=h host=* min-hosts=1", ". touch never",
                   "#RUN together=h host=* min-hosts=all timeout=5", ". touch never", "#RUN host=*",
                   f". {RAN}")
        self.assertLeft(self.start(RUNMAKER, "-j3", "runs.txt"), 0, "..d..d")
        self.assertTold("line 1", "together=", "runmaker4-server.py")
        self.assertTold("runmaker4-server.py")

# -- changes -------------------------------------------------------------------------------------------------

class Changes(DirectiveCase):
    """Directives that are appended, edited or removed hold for the jobs not yet claimed."""
    # Each look at the lines that run adds to a file.  A walk is overdue after a second, also if it is slow
    LOOKS_AT_RUNNING = f"""{LOOKS}
runmaker4.Cursor.LONG_PAUSE_FACTOR = 0
check_jobs = runmaker4.JobQueue.check_jobs
def check_and_count(queue):
    found = check_jobs(queue)
    with open("looks", "a") as looks:
        looks.write("x")
    return found
runmaker4.JobQueue.check_jobs = check_and_count
"""

    def test_appended_ones_hold_for_the_lines_below(self) -> None:
        self.lines(f". {WAITING}", ". true")
        runner = self.start_hasty("--name", "robert", "runs.txt")
        self.wait_up(1, runner=runner)
        self.append("#RUN host=nobody", ". touch never", "#RUN host=robert timeout=0.1", ". sleep 600")
        self.open_gate()
        self.assertLeft(runner, 1, "dd.!")

    @spared
    def test_a_barrier_that_comes_in_place_above_what_runs_holds_back_the_next_claim(self) -> None:
        self.lines(f". {WAITING}; {RAN}", "#off barrier", f". {LAST}", f". {RAN}")
        runner = self.start_patched(self.LOOKS_AT_RUNNING, "--name=robert", "-j2", "runs.txt")
        self.wait_states("rr.")
        self.wait_up(1, runner=runner)
        self.change("#off barrier", "#RUN barrier")
        before = len(self.wait_file("looks"))
        wait_until(lambda: len(self.read("looks")) > before + 1, what="it has looked since then")
        self.write("", "last")
        self.wait_states("rd.")
        self.wait_looked()
        self.open_gate()
        self.assertLeft(runner, 0, "ddd")
        self.assertEqual(self.ran(), [1, 4])

    @spared
    def test_a_barrier_that_goes_lets_a_waiting_runner_go_on(self) -> None:
        ways: tuple[Callable[[], object], ...] = (lambda: self.change("#RUN barrier", "#off barrier"),
                                                  lambda: self.edit("#RUN barrier\n", ""))
        for how in ways:
            self.lines("#RUN host=bob", ". true", "#RUN", "#RUN barrier", f". {RAN}")
            runner = self.start_looking("--name", "alice", "runs.txt")
            self.wait_looked()
            self.assertEqual(self.states(), "..")
            how()
            self.assertLeft(runner, 0, ".d")

    def test_a_waiting_runner_takes_over_the_lines_that_it_waited_for(self) -> None:
        self.lines("#RUN host=nobody", f". {RAN}", "#RUN", "#RUN barrier", f". {RAN}")
        runner = self.start_looking("--name", "robert", "runs.txt")
        self.wait_looked()
        self.change("host=nobody", "host=robert")
        self.assertLeft(runner, 0, "dd")
        self.assertEqual(self.ran(), [2, 5])


class LastLines(DirectiveCase):
    """A last line without a newline is not taken until the file has stopped growing."""
    ENDS = ((". true\n#RUN end", "--follow", 0, "d"), (". true\n#RUN", "-j2", 0, "d"),
            (". true\n#RUN barrier", "-q", 0, "d"), (". false\n#RUN barrier check", "-q", 1, "!"),
            (". true\n#RUN host=bob\n. x", "--name=alice", 0, "d."), (". true\n. false", "-r", 1, "d!"),
            (". true\n. a\0b", "--resume", 1, "de"), (". true\n#RUN end\n. ech", "--follow", 0, "d."))
    # Has the file `rest` appended as soon as a line without newline is found
    APPENDING = f"""{HASTY}{LOOKS}
import os, sys
find = runmaker4.Scan.next
def find_and_append(scan, *states):
    line, rest = find(scan, *states), sys.argv[-1] + ".rest"
    if line and not line.is_complete and os.path.exists(rest):
        with open(rest, "rb") as source, open(sys.argv[-1], "ab", 0) as file:
            file.write(source.read())
        os.unlink(rest)
    return line
runmaker4.Scan.next = find_and_append
"""
    # What is there at the start, what comes then, what comes just behind its reader, and the jobs that then
    # run in turn
    PIECES = (
        (". true\n", "#RUN host=b", f"ob\n. {NOTED}\n#RUN end\n", b""),
        (". true\n", "#RUN e", f"nd\n. {NOTED}\n", b""),
        (f". {GATE}; {NOTED}\n", "#RUN barr", f"ier\n. {NOTED}\n#RUN end\n", b"1\n3\n"),
        (". true\n", f". {GATE}; {NOTED[:9]}", f"{NOTED[9:]}\n#RUN barrier\n. {NOTED}\n#RUN end\n",
         b"2\n4\n"),
    )

    def test_it_keeps_nobody_for_ever_who_does_not_take_it(self) -> None:
        for number, (text, *_) in enumerate(self.ENDS):
            self.write(text, f"{number}.txt")
        runners = [self.start_hasty(option, f"{number}.txt") for number,
                   (_, option, *_) in enumerate(self.ENDS)]
        for number, runner in enumerate(runners):
            text, option, code, states = self.ENDS[number]
            with self.subTest(text=text, option=option):
                self.assertEqual((self.finish(runner).code, self.states(f"{number}.txt")), (code, states))

    def test_what_is_written_behind_the_reader_counts_as_a_whole(self) -> None:
        runners = []
        for number, (first, _, rest, _) in enumerate(self.PIECES):
            self.write(first, f"{number}.txt")
            self.write(rest, f"{number}.txt.rest")
            runners.append(self.start_patched(self.APPENDING, "--follow", "-j2", "--name=b", f"{number}.txt",
                                              env={"NOTES": f"{number}.ran"}))
        for number, (_, piece, *_) in enumerate(self.PIECES):
            wait_until(lambda: self.states(f"{number}.txt") != ".", what="the first job is taken")
            with open(self.dir / f"{number}.txt", "ab", buffering=0) as file:
                file.write(piece.encode())
        wait_until(lambda: not list(self.dir.glob("*.rest")), what="all is written")
        for number in 2, 3:     # which wait for the gate
            self.wait_looked(f"{number}.txt")
        self.open_gate()
        for number, (_, piece, rest, ran) in enumerate(self.PIECES):
            with self.subTest(text=f"{piece}|{rest}"):
                self.assertEqual(self.finish(runners[number]).code, 0)
                self.assertEqual(self.read(f"{number}.ran") if self.exists(f"{number}.ran") else b"", ran)
        self.assertTold("makes no sense", times=0)


class Claims(JobFileCase):
    """What the next claim of a server gives."""

    def test_a_taker_that_comes_right_after_a_round_is_not_told_that_there_is_nothing(self) -> None:
        jobs = self.jobs(b"#RUN host=bob\n. b\n#RUN end\n", serving=True)
        alice, bob = (runmaker4.Consumers([runmaker4.Consumer(name, True)]) for name in ("alice", "bob"))
        self.assertFalse(jobs.claim(consumers=alice))
        self.assertEqual(job_of(jobs.claim(consumers=bob)).number, 2)


class MalformedLater(DirectiveCase):
    """A wrong directive that comes later is said once; what stands below it waits."""

    def start_it(self, *options: str) -> subprocess.Popen[bytes]:
        self.lines(f". {WAITING}", f". {RAN}")
        runner = self.start_looking(*options, "runs.txt")
        self.wait_up(1, runner=runner)
        self.append("#RUN host=nowhere", f". {RAN}", "#RUN hots=x", f". {RAN}", "#RUN timeout=5", f". {RAN}")
        self.open_gate()
        self.wait_told("line 5")
        self.wait_states("dd...")
        return runner

    def test_a_runner_waits_until_it_is_mended_also_below_lines_for_another_host(self) -> None:
        runner = self.start_it("-j2")
        self.wait_looked()
        self.assertIsNone(runner.poll(), "whom the lines below it are for is not known")
        self.assertEqual(self.states(), "dd...")
        self.change("hots=x", "host=*")
        self.assertLeft(runner, 0, "dd.dd")
        self.assertTold("line 5")

    @spared
    def test_another_one_is_said_anew(self) -> None:
        runner = self.start_it()
        self.change("hots=x", "host=,")
        wait_until(lambda: self.times_told("line 5") == 2, what="it is said anew")
        runner.send_signal(signal.SIGINT)
        self.assertLeft(runner, 130, "dd...")


# -- without running -----------------------------------------------------------------------------------------

class DryRun(DirectiveCase):
    """--dry-run leaves out what is for other hosts, and names the groups, which it leaves out, too."""

    def test_what_is_for_others_or_a_group_is_not_listed(self) -> None:
        self.before = self.write(
            ". a\n#RUN host=bob\n. b\n! c\n#RUN host=alice timeout=5\n. d\n#RUN barrier\n! e\n"
            "#RUN together=g host=*\n. f\n. f\n! g\n#RUN together=other host=*\n. g\n#RUN\n. h\n"
        ).read_bytes()
        for options, wanted in ((), b"1 . a\n6 . d\n16 . h\n"), (("-r",), b"1 . a\n6 . d\n8 ! e\n16 . h\n"):
            ended = self.run_jobs("--dry-run", "--name", "alice", *options, stderr=subprocess.PIPE)
            self.assertEqual((ended.code, ended.out), (0, wanted))
            self.assertEqual(re.findall(rb"line (\d+): only runmaker4-server.py starts", ended.err),
                             [b"10", b"14"])
        self.assertEqual(self.read(), self.before)

# -- many lines ----------------------------------------------------------------------------------------------

class ManyLines(DirectiveCase):
    """Directives mean the same among many lines, wherever the file is cut for reading."""
    LINES = 1_000_000 if ALL else 100_000 if FULL else 10_000

    def write_by_turns(self) -> set[int]:
        """A file of lines for alice and bob by turns, some of them jobs; the lines of alice's."""
        chance = random.Random(6)
        lines, ours, mine = [], set(), True
        for number in range(1, self.LINES + 1):
            kind = chance.random()
            if kind < 0.02:
                mine = chance.random() < 0.5
                lines.append(f"#RUN host={'alice' if mine else 'bob'}{',carol' * chance.randint(0, 40)}\n")
            elif kind < 0.03:
                others = "#off end\n", "# RAN host=alice,bob\n", "#RUN  barrier \n", "#\n", "\n"
                lines.append(chance.choice(others))
            elif kind < 0.05:
                lines.append(f". {RAN}\n")
                ours |= {number} if mine else set()
            else:
                lines.append("d " + "x" * chance.randint(0, 60) + "\n")
        self.before = self.write("".join(lines)).read_bytes()
        return ours

    def leave_few(self, ours: set[int]) -> set[int]:
        """Take out the barriers, and all but some of our jobs; their lines."""
        left = {*sorted(ours)[:5], *sorted(ours)[-200:]}
        ended = ours - left
        lines = self.before.replace(b"#RUN  barrier", b"#off  barrier").splitlines(keepends=True)
        text = [b"d" + line[1:] if number in ended else line for number, line in enumerate(lines, 1)]
        self.before = self.write(b"".join(text)).read_bytes()
        return left

    def test_each_line_obeys_the_directive_above_it_and_none_is_missed(self) -> None:
        ours = self.write_by_turns()
        listed = self.run_jobs("--dry-run", "--name", "alice")
        self.assertEqual({int(line.split()[0]) for line in listed.out.splitlines()}, ours)
        left = self.leave_few(ours)
        runner = self.start(RUNMAKER, "-q", "-j4", "--name", "alice", "runs.txt")
        self.assertEqual(self.finish(runner, 300).code, 0)
        self.assertEqual(sorted(self.ran()), sorted(left))
        self.assertOnlyStatesChanged()


# -- the same, promised of a client -------------------------------------------------------------------------


class DirectivesOverTcp(OverTcp, DirectiveCase):
    """Put before a test case of runmaker4.py with directives: what the server says counts, too."""

    def told(self) -> bytes:
        return super().told() + b"".join(server.err for server in self.servers.values())


@ordinarily()
@without("test_what_is_written_behind_the_reader_counts_as_a_whole")     # by a file of that runner
class LastLinesOverTcp(DirectivesOverTcp, LastLines):
    """A last line without a newline keeps no client for ever."""


@ordinarily()
class MalformedLaterOverTcp(DirectivesOverTcp, MalformedLater):
    """A wrong directive that comes later is said once by the server; clients wait until it is mended."""


@ordinarily("test_a_runner_takes_what_its_name_matches_and_leaves_the_rest")
class HostsOverTcp(DirectivesOverTcp, Hosts):
    """host= means a client's name, or its address as the server sees it."""
    OURS = (*Hosts.OURS, "127.0.0.1", "bob,127.*")
    OTHERS = (*Hosts.OTHERS, "127.0.0.2", "10.0.0.1,bob", "127.0.0", "localhost")


@ordinarily()
class SettingsOverTcp(DirectivesOverTcp, Settings):
    """They hold for what the server hands out."""


@ordinarily("test_it_beats_the_option",
            "test_percent_are_of_the_median_once_ten_runs_of_the_file_have_ended_well",
            "test_percent_are_of_runs_with_the_same_first_word_and_without_ten_there_is_no_timeout")
class TimeoutsOverTcp(DirectivesOverTcp, Timeouts):
    """timeout=: how long a client lets the jobs below run, whatever its --timeout says."""


@ordinarily()
class RecordsOverTcp(DirectivesOverTcp, Records):
    """The server's -l numbers job lines only."""
    OPTIONS = ()

    def start_server(self, *options: object, **settings: Any) -> Server:
        return super().start_server("-l", "log", "-n1", *options, **settings)


@ordinarily()
class BarriersOverTcp(DirectivesOverTcp, Barriers):
    """#RUN barrier holds back what clients run."""

    @spared
    def test_a_client_that_waits_is_ended_by_signals(self) -> None:
        self.lines("#RUN host=bob", ". true", "#RUN barrier", "#RUN", ". touch never")
        clients = {number: self.start_hasty("--name", f"alice.{number}", "runs.txt")
                   for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
        self.wait_clients(self.servers["runs.txt"], len(clients))
        for number, client in clients.items():
            client.send_signal(number)
        self.assertEqual([self.finish(client).code for client in clients.values()], [1, 130, 143])
        self.assertEqual(self.states(), "..")


@ordinarily()
class OrphansOverTcp(DirectivesOverTcp, Orphans):
    """What a dead runner of the file has left is an error for the server's clients."""


@ordinarily("test_a_job_that_fails_stops_what_stands_below_all_checks_that_follow")
class ChecksOverTcp(DirectivesOverTcp, Checks):
    """#RUN barrier check stops clients."""


@ordinarily("test_followers_leave_and_others_do_not_care")
class EndOverTcp(DirectivesOverTcp, End):
    """#RUN end: clients with --follow leave."""


@ordinarily()
class ChangesOverTcp(DirectivesOverTcp, Changes):
    """Directives that are appended, edited or removed hold for what the server has not handed out."""
