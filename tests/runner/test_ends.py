"""Promise: a job that must end (TERM, KILL, timeout) does, with all its processes, in time; --retries."""
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
import unittest
from collections.abc import Sequence

from tests.support.console import console_lines, printed
from tests.support.patches import ONLY_KILL_FOLLOWS, WHEN_LATE
from tests.support.processes import Ended, alive, wait_until
from tests.support.runs import SLEEPING, UP, WAITING, RunCase
from tests.support.scripts import FULL, PYTHON, RUNMAKER, program_of

# It is three quarters of an hour later once the file `later` is there
LATER = """
import asyncio, os, time
asyncio.BaseEventLoop.time = lambda loop: time.monotonic() + 2700 * os.path.exists("later")
"""
ALL_LATER = """
import os, time
monotonic = time.monotonic
time.monotonic = lambda: monotonic() + 2700 * os.path.exists("later")
"""
# Jobs that are more than one process.  Each makes its up.LINE when all of its parts run.
TREES = (
    # shells in shells
    f"sh -c 'sleep 600 & sleep 600 & wait' & sh -c 'sh -c \"sleep 600; :\"; :' & {UP}; wait",
    f"setsid sleep 600 & {UP}; wait",                                    # a part in a session of its own
    f"setsid sh -c 'sleep 600 &'; {UP}; sleep 600",                       # nobody is the parent of this one
    f"setsid sh -c 'setsid sleep 600 & setsid sleep 600; :' & {UP}; wait",
    f"nohup sleep 600 & {UP}; wait",
    f"{UP}; kill -STOP $$; touch never",                                # stops itself
    f"{UP}; setsid sh -c 'kill -STOP $$; sleep 600'; touch never",       # a part of it stops itself
    f"{UP}; exec sleep 600",
)

# Jobs that only KILL ends.
DEAF = (
    f"trap '' TERM; {UP}; sleep 600",
    f"trap '' TERM; setsid sleep 600 & {UP}; wait",
    # the shell ends on TERM, its part does not
    f"setsid sh -c 'trap \"\" TERM; {UP}; sleep 600' & wait",
    # starts another one on TERM
    f"trap 'setsid sleep 600 & exit' TERM; {UP}; while :; do sleep 0.1; done",
)


# A job that goes on after TERM, and notes how what it starts ends: one before TERM, two later
GOES_ON = """
import signal, subprocess, time
signal.signal(signal.SIGTERM, lambda *_: None)
for seconds in "60", "0.3", "0.3":
    child = subprocess.Popen(["sleep", seconds])
    open("up.1", "w").close()
    with open("ends", "a") as ends:
        ends.write(f"{child.wait()}\\n")
    time.sleep(0.2)
"""


class Trees(RunCase):
    """No process of a job lives on after the runner has ended the job."""

    def start_all(self, commands: Sequence[str], *options: object) -> subprocess.Popen[bytes]:
        """Run these commands all at once, to where they are up; a timeout is over WHEN_LATE."""
        self.jobs(*commands)
        runner = self.start_patched(WHEN_LATE + ONLY_KILL_FOLLOWS, "-j", len(commands), *options, "runs.txt")
        self.wait_up(*range(1, len(commands) + 1), runner=runner)
        return runner

    def test_int_ends_every_part_of_a_job_and_does_not_wait_for_kill(self) -> None:
        runner = self.start_all(TREES, "--kill-after=none")
        self.assertEnded(self.stop(runner, signal.SIGINT), 130, "e" * len(TREES))
        self.assertFalse(self.exists("never"))

    def test_a_process_whose_first_thread_has_ended_is_ended_too(self) -> None:
        """It shows as a zombie (proc(5)), and lives."""
        leaves = ("import ctypes, os, threading, time; open('left', 'w').write(str(os.getpid())); "
                  "threading.Thread(target=time.sleep, args=(60,)).start(); "
                  "ctypes.CDLL(None).pthread_exit(None)")
        self.jobs(f"setsid {PYTHON} -c \"{leaves}\" & {SLEEPING}")
        runner = self.start_jobs("--kill-after=1", up=(1,))
        pid = int(self.wait_file("left"))
        wait_until(lambda: not alive(pid), what="it looks dead")
        threads = pathlib.Path(f"/proc/{pid}/task")
        self.assertEqual(len(list(threads.iterdir())), 2)
        self.assertEnded(self.stop(runner, signal.SIGINT), 130, "e")
        wait_until(lambda: not threads.exists() or len(list(threads.iterdir())) == 1, what="it is gone")

    def test_the_command_after_the_one_that_runs_is_not_begun(self) -> None:
        """A shell gets TERM before its commands; one CPU brings to light if not."""
        jobs = 30
        self.jobs(*[f"{SLEEPING}; touch never"] * jobs)
        runner = self.start_jobs("-j", jobs, up=range(1, jobs + 1),
                                 preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}))
        self.assertEnded(self.stop(runner, signal.SIGINT), 130, "e" * jobs)
        self.assertFalse(self.exists("never"))

    def test_a_timeout_ends_every_part_of_a_job_and_the_next_job_runs(self) -> None:
        runner = self.start_all([*TREES, f"{UP}; true"], "--timeout", "1")
        self.wait_states("r" * len(TREES) + "d")
        self.write("", "late")
        self.assertEnded(self.finish(runner), 1, "!" * len(TREES) + "d")

    def test_after_int_jobs_that_ignore_term_are_killed(self) -> None:
        runner = self.start_all(DEAF, "--kill-after=0.5")
        self.assertEnded(self.stop(runner, signal.SIGINT), 130, "e" * len(DEAF))

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes 10 s")
    def test_kill_comes_ten_seconds_after_term(self) -> None:
        runner = self.start_all(DEAF)
        start = time.monotonic()
        self.assertEnded(self.stop(runner), 143, "e" * len(DEAF))
        self.assertGreater(time.monotonic() - start, 9.9)

    def test_what_a_job_starts_after_its_term_is_left_alone_until_kill(self) -> None:
        """The commands of a trap that tidies up, or of a loop that goes on."""
        self.write(GOES_ON, "job.py")
        self.jobs(f'exec "{sys.executable}" job.py')
        runner = self.start_jobs("--kill-after=none")
        self.assertEnded(self.stop(runner, signal.SIGINT), 130, "e")
        self.assertEqual(self.read("ends").split(), [b"-15", b"0", b"0"])

    def test_a_part_without_its_environment_is_ended(self) -> None:
        """It has not even the mark of the tests.  The first descends from its job; the second is of its
        session.
        """
        self.jobs(f"env -i setsid sh -c 'echo $$ > pid.1; sleep 600; :' & {SLEEPING}",
                  f"env -i sh -c 'sleep 600 & echo $! > pid.2'; {SLEEPING}")
        runner = self.start_jobs("-j2", up=[1, 2])
        parts = [int(self.wait_file(f"pid.{line}")) for line in (1, 2)]
        self.assertEnded(self.stop(runner), 143, "ee")
        wait_until(lambda: not any(map(alive, parts)), what="the parts have ended")

    def test_jobs_of_a_runner_within_a_job_are_ended_although_that_runner_is_dead(self) -> None:
        inner = shlex.join(self.command(RUNMAKER, "inner.txt"))
        self.write(". : > inner.up; sleep 600\n", "inner.txt")
        kill = "until [ -e inner.up ]; do sleep 0.02; done; kill -9 $!; : > dead"
        self.jobs(f"{inner} & {UP}; {kill}; sleep 600")
        runner = self.start_jobs()
        wait_until(lambda: self.exists("dead"), what="the inner runner is dead")
        self.assertEqual((self.stop(runner, signal.SIGINT).code, self.states()), (130, "e"))
        self.assertNobodyLeft()


class ManyAtOnce(RunCase):
    """Many jobs that end together are looked for together: it is the table of all processes that costs."""
    COUNT = 60
    COUNTED = """
import runmaker4
read, look = runmaker4.ProcessTable.__init__, runmaker4.ProcessTable.job_processes
def note(text):
    with open("noted", "a") as file:
        file.write(text)
runmaker4.ProcessTable.__init__ = lambda table: note("r") or read(table)
runmaker4.ProcessTable.job_processes = lambda table, shell: note("l") or look(table, shell)
"""

    def assertSharedReadings(self, ended: Ended, code: int, states: str) -> None:
        """Each job is looked for twice at least; at the end a slow one may be looked for alone."""
        self.assertEnded(ended, code, states)
        noted = self.read("noted")
        self.assertGreater(noted.count(b"l") - noted.count(b"r"), 1.5 * self.COUNT)

    def start_counted(self, *options: str) -> subprocess.Popen[bytes]:
        self.jobs(*[SLEEPING] * self.COUNT)
        patch = WHEN_LATE + self.COUNTED
        runner = self.start_patched(patch, "-q", f"-j{self.COUNT}", *options, "runs.txt")
        self.wait_up(*range(1, self.COUNT + 1), runner=runner)
        return runner

    def test_int(self) -> None:
        runner = self.start_counted()
        self.assertSharedReadings(self.stop(runner, signal.SIGINT), 130, "e" * self.COUNT)

    def test_timeout(self) -> None:
        runner = self.start_counted("--timeout=1")
        self.write("", "late")
        self.assertSharedReadings(self.finish(runner), 1, "!" * self.COUNT)


class NumbersThatComeAgain(RunCase):
    """The number of an ended job's session goes to somebody else, while parts of the job live."""
    PRIVATE = "unshare", "-r", "--pid", "--fork", "--mount-proc"
    SET_NEXT = "echo $(($(cat shell) - 1)) >/proc/sys/kernel/ns_last_pid"       # pid_namespaces(7)
    # A stranger gets that number, and a session of it, when the shell is waited for and a look has found
    # nobody left
    STRANGER = f"""
"$@" &
until [ -s shell ] && [ -e deaf ]; do sleep 0.02; done
while kill -0 $(cat shell) 2>/dev/null; do sleep 0.02; done
sleep 0.4
{SET_NEXT}
setsid sleep 600 &
echo $! >stranger
wait %1
kill -0 $(cat stranger) && : >lives
"""

    def test_a_stranger_with_that_number_is_not_touched(self) -> None:
        probe = [*self.PRIVATE, "sh", "-c", f"echo 400 >shell; {self.SET_NEXT}"]
        if subprocess.run(probe, cwd=self.dir, stderr=subprocess.DEVNULL, check=False).returncode:
            self.skipTest("this user may have no process numbers of his own (unshare --pid)")
        (self.dir / "shell").unlink()
        self.jobs("setsid sh -c 'trap \"\" TERM; : >deaf; exec sleep 600' & echo $$ >shell; "
                  "until [ -e deaf ]; do sleep 0.02; done; : >late; sleep 600")
        runner = PYTHON, "-c", program_of(RUNMAKER, RUNMAKER, WHEN_LATE + ONLY_KILL_FOLLOWS)
        ended = self.run_script(*self.PRIVATE, "sh", "-c", self.STRANGER, "sh", *runner,
                                "-q", "--timeout=1", "--kill-after=2", "runs.txt")
        self.assertEqual(self.states(), "!", ended.err)
        self.assertEqual(self.read("stranger"), self.read("shell"), "it has the number of the job's shell")
        self.assertTrue(self.exists("lives"), ended.err)


# COUNTED N: fails N times, then is well
COUNTED = "echo $JOB_ID >>order; echo >>runs.$JOB_ID $JOB_ID; test $(wc -l <runs.$JOB_ID) -gt"


class Retries(RunCase):
    """--retries N: a job that fails is run up to N more times, at once, before it is marked !."""

    def test_a_job_is_run_again_at_once_until_it_is_well_or_has_had_its_retries(self) -> None:
        """Whether it fails or dies of a signal; one that is well is not repeated."""
        self.jobs(f"{COUNTED} 2", f"{COUNTED} 99", f"{COUNTED} 0", f"{COUNTED} 1 || kill -9 $$")
        ended = self.run_jobs("--retries", 2)
        self.assertEnded(ended, 1, "d!dd")
        self.assertEqual(self.read("order").split(), [b"1"] * 3 + [b"2"] * 3 + [b"3"] + [b"4"] * 2)
        status = printed(console_lines(ended.out), "status")
        self.assertEqual([text[:6] for text in status[:6]],
                         [b"forked", b"exit 1"] * 2 + [b"forked", b"exit 0"])

    def test_a_job_that_runs_too_long_is_retried(self) -> None:
        self.jobs(f"{COUNTED} 1 || {{ : >late.$$; sleep 600; }}")
        runner = self.start_patched(WHEN_LATE, "--retries=1", "--timeout=0.4", "runs.txt")
        self.assertEnded(self.finish(runner), 0, "d")
        self.assertEqual(self.read("runs.1").split(), [b"1", b"1"])

    def test_the_line_stays_running_from_the_first_run_to_the_last(self) -> None:
        self.jobs("head -c1 runs.txt >> seen; test $(wc -c < seen) -gt 3")
        self.assertEnded(self.run_jobs("--retries", 3), 0, "d")
        self.assertEqual(self.read("seen"), b"rrrr")


class TooManyFailures(RunCase):
    """--max-failed N: a runner starts nothing more once N jobs of its own are failed or in error."""

    def test_after_so_many_failures_nothing_more_is_started_and_what_runs_is_waited_for(self) -> None:
        self.jobs(WAITING, "exit 1", "true", "echo a\0b", "touch never")
        runner = self.start_jobs("-j2", "--max-failed", 2)
        self.wait_states("r!de.")
        self.open_gate()
        ended = self.finish(runner)
        self.assertEnded(ended, 1, "d!de.")
        self.assertComplains(ended, "2 jobs failed or in error", "--max-failed", "no more jobs")

    def test_what_has_failed_before_does_not_count_nor_does_a_retry(self) -> None:
        self.write("! exit 1\ne exit 1\n. [ -e tried ] && exit; : > tried; exit 1\n. true\n")
        ended = self.run_jobs("--max-failed", 1, "--retries", 1)
        self.assertEqual((ended.code, self.states()), (1, "!edd"), ended.err)
        self.assertNotIn(b"--max-failed", ended.err.rpartition(b"-r runs")[0])

    def test_what_fails_again_counts_and_what_now_succeeds_hides_none_of_it(self) -> None:
        self.write("! true\n" * 5 + "! exit 1\n" * 20)
        ended = self.run_jobs("--max-failed", 2, "-r")
        self.assertComplains(ended, "2 jobs failed or in error", "--max-failed")
        self.assertEqual(ended.out.count(b"executing"), 7)
        self.assertTrue(self.states().startswith("ddddd!!"))

    def test_failures_of_other_runners_do_not_count(self) -> None:
        self.jobs(WAITING, "exit 1")
        runner = self.start_jobs("--max-failed", 1)
        self.assertEqual(self.run_jobs().code, 1)
        self.append(". true")
        self.open_gate()
        self.assertEqual((self.finish(runner).code, self.states()), (1, "d!d"))


class CutOff(RunCase):
    """A command that is cut off is one that fails; what the runner adds does not complete it."""

    def test_a_command_without_its_end_fails(self) -> None:
        self.jobs("true &&", "echo lost |", "f()", "cat <<END", "if true; then", "(true")
        self.assertEnded(self.run_jobs("-q"), 1, "!!!!!!")

    def test_commands_that_look_as_if_they_were_cut_off_do_not(self) -> None:
        self.jobs("true \\", "# nothing but a comment", "sleep 0 &", "{ true; }", "-n 2>/dev/null; true")
        self.assertEnded(self.run_jobs("-q"), 0, "ddddd")


class Limits(RunCase):
    """--timeout ends a job that runs too long, --walltime all, and nothing begins that would not fit."""

    def test_what_runs_is_ended_and_not_retried_and_what_waits_stays_new(self) -> None:
        self.jobs("true", SLEEPING, "touch never")
        runner = self.start_patched(LATER, "--walltime=30m", "--retries=5", "--retry", "runs.txt")
        self.wait_up(2, runner=runner)
        self.write("", "later")
        self.assertEnded(self.finish(runner), 1, "de.")

    def test_a_runner_that_is_done_before_does_not_wait_and_a_failure_counts(self) -> None:
        self.jobs("true", "false")
        self.assertEnded(self.run_jobs("--walltime", "1h"), 1, "d!")

    def test_a_following_runner_leaves_at_its_walltime_and_all_is_well_if_all_is_done(self) -> None:
        self.jobs("true")
        runner = self.start_patched(LATER, "--walltime=30m", "--follow", "runs.txt")
        self.wait_states("d")
        self.assertIsNone(runner.poll())
        self.write("", "later")
        self.assertEnded(self.finish(runner), 0, "d")

    def test_a_job_is_not_retried_whose_timeout_does_not_fit_any_more(self) -> None:
        self.jobs("echo >> runs; : >later; false")
        runner = self.start_patched(LATER, "--walltime=1h", "--timeout=30m", "--retries=9", "runs.txt")
        self.assertEnded(self.finish(runner), 1, "!")
        self.assertEqual(self.read("runs"), b"\n")

    def test_a_try_whose_timeout_does_not_fit_after_the_delay_is_not_begun(self) -> None:
        self.jobs(f"echo >> runs; {UP}; false")
        runner = self.start_patched(ALL_LATER, "--walltime=1h", "--timeout=30m", "--delay=30m", "--retries=1",
                                    "runs.txt")
        self.wait_up(1, runner=runner)
        wait_until(lambda: b'"exit": 1' in self.read("runs.txt.out/journal"), what="the first try has ended")
        self.write("", "later")
        self.assertEnded(self.finish(runner), 1, "!")
        self.assertEqual(self.read("runs"), b"\n")

    def test_a_job_that_runs_too_long_is_marked_as_failed_and_the_console_says_why(self) -> None:
        """Also one that then ends well."""
        self.jobs("echo before; : >late.$$; sleep 600; touch never", "echo after",
                  "trap 'exit 0' TERM; : >late.$$; while :; do sleep 0.1; done")
        ended = self.finish(self.start_patched(WHEN_LATE, "--timeout", "0.4", "runs.txt"))
        self.assertEnded(ended, 1, "!d!")
        lines = console_lines(ended.out)
        command = lines[0].text
        self.assertEqual(printed(lines, "status")[1], b'timeout after 0.4s "%s"' % command)
        self.assertEqual(printed(lines), [b"before", b"after"])
        self.assertLess([line.text for line in lines].index(b"before"), 3, "output comes before the end")
        self.assertFalse(self.exists("never"))


class KillAfter(RunCase):
    """--kill-after: how long a job that is ended has for what it does on TERM."""

    def end_one(self, kill_after: str, pause: float) -> bool:
        """End a job that takes so many seconds to leave; whether it came to that."""
        self.jobs(f"trap 'sleep {pause}; touch checkpoint; exit' TERM; {UP}; while :; do sleep 0.02; done")
        runner = self.start_patched(ONLY_KILL_FOLLOWS, "--kill-after", kill_after, "runs.txt")
        self.wait_up(1, runner=runner)
        self.assertEnded(self.stop(runner), 143, "e")
        return self.exists("checkpoint")

    def test_a_job_has_that_long_and_no_longer(self) -> None:
        self.assertFalse(self.end_one("0.1", 600))
        (self.dir / "up.1").unlink()
        self.assertTrue(self.end_one("600", 0.2))
