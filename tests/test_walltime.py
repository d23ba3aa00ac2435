"""Promise: --walltime auto ends jobs a margin before Slurm ends the runner, as Slurm says then; never by a guess."""
import shutil
import signal
import subprocess
import time
import unittest
from typing import Dict

from tests.support import FULL, RUNCLIENT, SLEEPING, WAITING, RunCase, deadline, wait_until
from tests.tcp import TcpCase

SQUEUE = """#!/bin/sh
echo "$*; $SLURM_TIME_FORMAT; $(env | grep -c '^SQUEUE_')" >> asked
ends() { echo "$1 $(($(date +%s) + $2))"; }
"""
HANGING = "sleep 60\n"
IMPATIENT = "import runmaker4\nrunmaker4.SlurmLimit.PATIENCE = 1.5\n"
HOUR = "ends 7 3600\n"                  # squeue's line on a job that ends then; 7 is the one that the runner is
SECONDS = "[ -e end ] || ends 7 8 > end; cat end"       # ... always the same line


class SlurmCase(RunCase):
    """A test with a runner that is told, by variables and a squeue of ours, that it is a job of Slurm."""

    def setUp(self) -> None:
        super().setUp()
        (self.dir / "bin").mkdir()

    def squeue(self, answer: str) -> None:
        """Make a squeue that writes down how it is asked, and then does this."""
        self.write(SQUEUE + answer, "squeue").chmod(0o755)
        (self.dir / "squeue").rename(self.dir / "bin/squeue")

    def slurm(self, **more: str) -> Dict[str, str]:
        """The environment of a Slurm job, where no squeue but ours is found."""
        for name in "sh", "env", "grep", "date", "cat", "mkdir", "sleep", "touch":
            if not self.exists(f"bin/{name}"):
                (self.dir / "bin" / name).symlink_to(shutil.which(name))
        return {"PATH": f"{self.dir}/bin", "SLURM_JOB_ID": "7", **more}

    def wait_asked(self, times: int) -> None:
        """Wait until squeue was asked so often."""
        wait_until(lambda: self.exists("asked") and self.read("asked").count(b"\n") >= times, what="squeue is asked")


class Limits(SlurmCase):
    """The end that counts is this job's, as Slurm has it now."""

    def test_squeue_is_asked_for_seconds_whatever_the_user_has_set_for_it(self):
        self.jobs("true")
        self.squeue(HOUR)
        env = self.slurm(SQUEUE_FORMAT="%L", SQUEUE_STATES="PD", SLURM_TIME_FORMAT="relative")
        self.assertEnded(self.run_jobs("--walltime", "auto", env=env), 0, "d")
        self.assertEqual(self.read("asked"), b"-h -t all -j 7 -o %A %e; %s; 0\n")

    def test_none_is_no_limit(self):
        self.jobs("true")
        self.squeue("echo 7 NONE")
        self.assertEnded(self.run_jobs("--walltime", "auto", "--timeout", "100d", env=self.slurm()), 0, "d")

    def test_the_last_task_of_an_array_which_has_the_id_of_the_array_finds_its_own_line(self):
        self.jobs("true")
        self.squeue(f"ends 9 -100; ends 77 -100; {HOUR}ends 78 -100")
        self.assertEnded(self.run_jobs("--walltime", "auto", env=self.slurm()), 0, "d")

    def test_the_variable_will_do_without_squeue(self):
        self.jobs("true", "touch never")
        env = {"SLURM_JOB_END_TIME": str(int(time.time()) + 60), "PATH": str(self.dir)}
        ended = self.run_jobs("--walltime", "auto-10s", "--timeout", "1m", env=env)
        self.assertEnded(ended, 1, "..")
        self.assertEnded(self.run_jobs("--walltime", "auto-10s", "-1", env=env), 0, "d.")

    def test_the_margin_leaves_time_for_kill(self):
        self.jobs("true")
        self.squeue("ends 7 45")
        ended = self.run_jobs("--walltime", "auto", "--kill-after", "20", env=self.slurm())
        self.assertEnded(ended, 1, ".")
        self.assertComplains(ended, "Slurm ends this job in 4", "the margin is 50s: no job is started")
        self.assertEnded(self.run_jobs("--walltime", "auto", env=self.slurm()), 0, "d")

    def test_an_end_that_is_past_ends_a_runner_which_says_what_is_left(self):
        self.squeue("ends 7 -100")
        for state, code in ((".", 1), ("d", 0)):
            self.write(f"{state} true\n")
            ended = self.run_jobs("--walltime", "auto", env=self.slurm())
            self.assertEqual((ended.code, self.states()), (code, state), ended.err)
            self.assertComplains(ended, "no job is started")

    def test_a_variable_from_before_the_limit_was_extended_does_not_count(self):
        self.jobs("true")
        self.squeue(HOUR)
        env = self.slurm(SLURM_JOB_END_TIME=str(int(time.time()) - 10))
        self.assertEnded(self.run_jobs("--walltime", "auto", env=env), 0, "d")


class Refusals(SlurmCase):
    """What is not understood is no reason to run without a limit."""

    def check(self, answer: str, *words: str, **env: str) -> None:
        """A runner whose squeue does this is refused."""
        self.write(". touch never\n")
        self.squeue(answer)
        with self.subTest(answer=answer, env=env):
            ended = self.run_jobs("-d", "--walltime", "auto", env=self.slurm(**env))
            self.assertRefused(ended, "runmaker4.py: --walltime auto: ", *words)
            self.assertEqual(self.states(), ".")

    def test_answers_that_are_none(self):
        for answer in "ends 9 3600", "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1":
            self.check(answer, "squeue does not tell when job 7 ends: '", "Invalid" if "Invalid" in answer else "")
        for text in "N/A", "2026-11-21T14:10:00", "3600", "\\033[2J":
            self.check(f"printf '7 {text}\\n'", "is not understood: '" + text.replace("\\033", "?"))

    def test_no_slurm_no_squeue_and_a_variable_that_is_no_time(self):
        self.check("echo 7 NONE", "SLURM_JOB_ID is not set", SLURM_JOB_ID="")
        self.check("echo 7 NONE", "squeue: no such file or directory", PATH=str(self.dir))
        self.check("echo 7 NONE", "not understood: 'soon'", SLURM_JOB_END_TIME="soon")
        (self.dir / "bin/squeue").chmod(0)
        self.assertRefused(self.run_jobs("--walltime", "auto", env=self.slurm()), "squeue: permission denied")

    def test_a_squeue_that_does_not_answer_is_given_up(self):
        self.write(". touch never\n")
        self.squeue(HANGING)
        ended = self.finish(self.start_patched(IMPATIENT, "--walltime", "auto", "runs.txt", env=self.slurm()))
        self.assertRefused(ended, "squeue has not answered within 1.5s")
        self.assertNobodyLeft()

    def test_a_margin_that_is_no_duration(self):
        self.write(". true\n")
        for text in "auto-", "auto-5x", "auto5m", "auto--5m", "Auto":
            self.assertRefused(self.run_jobs("--walltime", text, env=self.slurm()), "not a duration")

    def test_nobody_is_asked_where_nothing_is_run(self):
        self.write(". true\n")
        self.assertEqual(self.run_jobs("--walltime", "auto", "--dry-run").code, 0)


class AskedAgain(SlurmCase):
    """Before the wall time ends anything squeue is asked once more, and jobs go on meanwhile."""

    def start_for_seconds(self, *commands: str, patch: str = "import runmaker4") -> subprocess.Popen:
        """A runner of these jobs that has five seconds or so, also to start the first of them."""
        self.jobs(*commands)
        self.squeue(SECONDS)
        runner = self.start_patched(patch, "--walltime", "auto-2.3s", "runs.txt", env=self.slurm())
        self.wait_up(1, runner=runner)
        return runner

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_where_nothing_has_changed_jobs_are_ended(self):
        runner = self.start_for_seconds(SLEEPING, "touch never")
        self.assertEnded(self.finish(runner), 1, "e.")
        self.assertEqual(self.read("asked").count(b"\n"), 2)

    def test_jobs_run_on_where_the_limit_was_extended_or_is_no_more(self):
        cases = (HOUR, "the wall time is over in "), ("echo 7 NONE", "the wall time has no end")
        for answer, text in cases[:2 if FULL else 1]:
            with self.subTest(answer=answer):
                runner = self.start_for_seconds(WAITING, "true")
                self.squeue(answer)
                with deadline(runner):
                    self.assertIn(text, runner.stderr.readline().decode())
                self.squeue("ends 7 -100")      # nobody asks any more
                self.open_gate()
                self.assertEnded(self.finish(runner), 0, "dd")
                for name in "go", "asked", "up.1", "end":
                    (self.dir / name).unlink()

    def test_the_end_that_is_known_counts_where_squeue_does_not_answer(self):
        for answer in (HANGING, "echo garbage")[:2 if FULL else 1]:
            with self.subTest(answer=answer):
                runner = self.start_for_seconds(SLEEPING, "touch never", patch=IMPATIENT)
                self.squeue(answer)
                self.assertEnded(self.finish(runner), 1, "e.")
                for name in "up.1", "end":
                    (self.dir / name).unlink()

    def start_asking(self, answer: str) -> subprocess.Popen:
        """A runner that asks again, whereupon squeue does this: one job runs, and there is no time for the other."""
        self.before = self.write(f". {WAITING}\n#RUN timeout=2h\n. {SLEEPING}\n").read_bytes()
        self.squeue(f"if mkdir first; then {HOUR}else {answer}\nfi")
        runner = self.start_jobs("-j2", "--walltime", "auto", env=self.slurm())
        self.wait_asked(2)
        return runner

    def test_results_are_written_while_squeue_is_asked_but_no_job_is_started(self):
        runner = self.start_asking(HANGING)
        self.open_gate()
        self.wait_states("dr")                  # claimed until it is known whether there is time for it
        self.assertFalse(self.exists("up.3"))
        runner.send_signal(signal.SIGINT)
        self.assertEnded(self.finish(runner), 130, "d.")

    def test_a_signal_ends_jobs_and_the_question_while_squeue_is_asked(self):
        runner = self.start_asking(HANGING)
        runner.send_signal(signal.SIGTERM)
        self.assertEnded(self.finish(runner), 143, "e.")

    def test_a_job_whose_timeout_fits_since_the_limit_was_extended_is_run(self):
        runner = self.start_asking("ends 7 10800")
        self.wait_up(3, runner=runner)
        runner.send_signal(signal.SIGTERM)
        self.assertEnded(self.finish(runner), 143, "ee")

    def test_a_job_whose_timeout_does_not_fit_ends_the_runner_when_the_others_have_ended(self):
        runner = self.start_asking(HOUR)
        self.open_gate()
        self.assertEnded(self.finish(runner), 1, "d.")


class Client(TcpCase, SlurmCase):
    """A client has the same wall time."""

    def test_a_client_asks_before_it_connects(self):
        words = RUNCLIENT, "--port", "1", "--token", "0" * 32, "--walltime", "auto", "localhost"
        self.assertRefused(self.run_script(*words), "SLURM_JOB_ID is not set")

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_a_client_asks_again_before_it_ends_jobs(self):
        self.jobs(SLEEPING, "touch never")
        server = self.start_server()
        self.squeue(SECONDS)
        ended = self.run_client(server, "--walltime", "auto-2.3s", env=self.slurm())
        self.assertEqual((ended.code, self.states()), (1, "e."), ended.err)
        self.assertEqual(self.read("asked").count(b"\n"), 2)


if __name__ == "__main__":
    unittest.main()
