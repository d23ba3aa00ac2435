"""Promise: of a command that stands once no second copy starts while one lives, whatever is done to the file.

Several runners with --resume and -r, editors that save what they read a while ago (in place or by rename,
lines in another order), kill -9 and SIGSTOP of runners, whose jobs live on.  Each job takes a lock of its own
(flock(1)) and says so if another copy has it.
"""
import os
import random
import shutil
import signal
import subprocess
import time
import unittest

from tests.support.case import GATE
from tests.support.patches import UNTIL_THEY_END
from tests.support.processes import DEADLINE, wait_until
from tests.support.runs import RunCase
from tests.support.scripts import FULL, RUNMAKER, RUNSET, RUNWAIT, SEED

STORM = os.environ.get("RUNMAKER4_TEST_FULL") == "all"
JOB = ("exec 9>lock.{0}; flock -n 9 || {{ echo {0} >>overlaps; exit; }}; echo {0} >>starts; "
       "sleep 0.$((RANDOM % 5))")


@unittest.skipUnless(shutil.which("flock") and shutil.which("bash"), "flock (util-linux) or bash is missing")
class Campaign(RunCase):
    """A campaign, and what editors and fate do to it."""
    JOBS, BLOWS = (10_000, 600) if STORM else (400, 60) if FULL else (60, 14)

    def setUp(self) -> None:
        super().setUp()
        self.seed = SEED or os.urandom(4).hex()
        self.draws = random.Random(self.seed)
        self.runners: list[subprocess.Popen[bytes]] = []

    def start_runner(self) -> None:
        option = self.draws.choice(("--resume", "--retry"))
        self.runners.append(self.start(RUNMAKER, "-q", "-j3", "--follow", option, "runs.txt",
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def save_what_was_read(self) -> None:
        """An editor: reads, thinks, saves states that are old by now."""
        lines = self.read().splitlines(keepends=True)
        time.sleep(self.draws.choice((0.0, 0.05, 0.3, 1.0)))
        if self.draws.random() < 0.5:
            at = self.draws.randrange(len(lines))
            lines = self.draws.choice((lines[at:] + lines[:at], [b"# a note\n", *lines], lines))
        if self.draws.random() < 0.5:
            self.write(b"".join(lines), "runs.new")
            os.replace(self.dir / "runs.new", self.dir / "runs.txt")
        else:
            self.write(b"".join(lines))

    def strike(self) -> None:
        """kill -9 a runner, or stop it for a while."""
        runner = self.draws.choice(self.runners)
        if self.draws.random() < 0.5:
            runner.kill()
            runner.wait()
            self.runners.remove(runner)
            self.start_runner()
        else:
            runner.send_signal(signal.SIGSTOP)
            time.sleep(self.draws.choice((0.1, 1.5)))
            runner.send_signal(signal.SIGCONT)

    def test_a_command_never_overlaps_itself(self) -> None:
        self.write("".join(f". bash -c '{JOB.format(number)}'\n" for number in range(self.JOBS)))
        for _ in range(4):
            self.start_runner()
        for _ in range(self.BLOWS):
            time.sleep(self.draws.random() * 0.3)
            self.draws.choice((self.save_what_was_read, self.save_what_was_read, self.strike))()
            self.assertFalse((self.dir / "overlaps").exists(), f"an overlap (seed {self.seed})")
        for runner in self.runners:
            runner.send_signal(signal.SIGHUP)
        for runner in self.runners:
            runner.wait(timeout=DEADLINE)
        status = RUNWAIT, "--status", "--json", "runs.txt"
        wait_until(lambda: b'"running": 0' in self.run_script(*status).out, what="no job lives")
        self.run_script(RUNMAKER, "-q", "-j8", "--resume", "runs.txt", timeout=600)
        self.assertFalse((self.dir / "overlaps").exists(), f"an overlap (seed {self.seed})")
        self.assertEqual(set(self.read("starts").split()), {b"%d" % number for number in range(self.JOBS)})
        self.assertEqual(set(self.states()), {"d"})


class EqualLines(RunCase):
    """Lines of one command: as many copies as lines, each as often as it stands there."""

    def test_each_runs_as_often_as_it_stands_there(self) -> None:
        self.write(". echo >>marks\n" * 60)
        ended = self.run_all([(RUNMAKER, "-q", "-j4", "runs.txt")] * 3)
        self.assertEqual([it.code for _, it in ended], [0] * 3)
        self.assertEqual((self.states(), self.read("marks")), ("d" * 60, b"\n" * 60))

    def start_three(self, job: str) -> subprocess.Popen[bytes]:
        """Start a runner of three such jobs, each of which adds to `marks`, and wait until they run."""
        self.write(f". {job}\n" * 3)
        runner = self.start_hasty("-q", "-j3", "runs.txt")
        wait_until(lambda: self.exists("marks") and self.read("marks").count(b"\n") == 3,
                   what="three jobs run")
        return runner

    def test_one_of_several_that_run_is_cancelled_by_its_line(self) -> None:
        runner = self.start_three(f"echo $JOB_ID >>marks; {GATE}; echo $JOB_ID >>ends")
        ended = self.finish(self.start_patched(UNTIL_THEY_END, "--cancel", "runs.txt", 2, script=RUNSET))
        self.assertEqual((ended.code, self.states()), (0, "rcr"), ended.err)
        self.open_gate()
        self.finish(runner)
        self.assertEqual((self.states(), sorted(self.read("ends").split())), ("dcd", [b"1", b"3"]))

    def test_fewer_lines_than_copies_start_no_more(self) -> None:
        """Three copies run; one new line of them starts when all three have ended."""
        runner = self.start_three(f"echo >>marks; {GATE}")
        runner.kill()
        runner.wait()
        self.write(self.read().splitlines(keepends=True)[0].replace(b"r ", b". "))
        again = self.start_looking("-q", "runs.txt")
        self.wait_looked()
        self.assertEqual(self.read("marks").count(b"\n"), 3)
        self.open_gate()
        self.finish(again)
        self.assertEqual((self.states(), self.read("marks").count(b"\n")), ("d", 4))
