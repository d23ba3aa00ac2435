"""Promise: --walltime auto ends jobs a margin before Slurm ends the runner, as Slurm says then; never by a
guess.
"""
import shutil
import time
import unittest

from tests.support import RUNCLIENT, SLEEPING, RunCase
from tests.tcp import TcpCase
from tests.values import present

SQUEUE = """#!/bin/sh
echo "$*; $SLURM_TIME_FORMAT; $(env | grep -c '^SQUEUE_')" >> asked
ends() { echo "$1 $(($(date +%s) + $2))"; }
"""
HANGING = "exec sleep 60\n"
IMPATIENT = "import runmaker4\nrunmaker4.SlurmLimit.PATIENCE = 1.5\n"
# squeue's line on a job that ends then; 7 is the one that the runner is
HOUR = "ends 7 3600\n"


class SlurmCase(RunCase):
    """A test with a runner that is told, by variables and a squeue of ours, that it is a job of Slurm."""

    def setUp(self) -> None:
        super().setUp()
        (self.dir / "bin").mkdir()

    def squeue(self, answer: str) -> None:
        """Make a squeue that writes down how it is asked, and then does this."""
        self.write(SQUEUE + answer, "squeue").chmod(0o755)
        (self.dir / "squeue").rename(self.dir / "bin/squeue")

    def slurm(self, **more: str) -> dict[str, str]:
        """The environment of a Slurm job, where no squeue but ours is found."""
        for name in "sh", "env", "grep", "date", "cat", "mkdir", "sleep", "touch":
            if not self.exists(f"bin/{name}"):
                (self.dir / "bin" / name).symlink_to(present(shutil.which(name)))
        return {"PATH": f"{self.dir}/bin", "SLURM_JOB_ID": "7", **more}


class Limits(SlurmCase):
    """The end that counts is this job's, as Slurm has it now."""

    def test_squeue_is_asked_for_seconds_whatever_the_user_has_set_for_it(self) -> None:
        self.jobs("true")
        self.squeue(HOUR)
        env = self.slurm(SQUEUE_FORMAT="%L", SQUEUE_STATES="PD", SLURM_TIME_FORMAT="relative")
        self.assertEnded(self.run_jobs("--walltime", "auto", env=env), 0, "d")
        self.assertEqual(self.read("asked"), b"-h -t all -j 7 -o %A %e; %s; 0\n")

    def test_what_squeue_says_of_this_job_counts(self) -> None:
        past = {"SLURM_JOB_END_TIME": str(int(time.time()) - 10)}
        for answer, timeout, env, code, state in (
            ("echo 7 NONE", "100d", {}, 0, "d"),
            # the last task of an array, which has the id of the array
            (f"ends 9 -100; ends 77 -100; {HOUR}ends 78 -100", "50m", {}, 0, "d"),
            (HOUR, "50m", past, 0, "d"),    # the variable is from before the limit was extended
            ("echo garbage", "none", past, 1, "."),
        ):
            with self.subTest(answer=answer, env=env):
                self.jobs("true")
                self.squeue(answer)
                ended = self.run_jobs("--walltime", "auto", "--timeout", timeout, env=self.slurm(**env))
                self.assertEnded(ended, code, state)

    def test_the_variable_will_do_without_squeue(self) -> None:
        self.jobs("true", "touch never")
        env = {"SLURM_JOB_END_TIME": str(int(time.time()) + 60), "PATH": str(self.dir)}
        ended = self.run_jobs("--walltime", "auto-10s", "--timeout", "1m", env=env)
        self.assertEnded(ended, 1, "..")
        self.assertEnded(self.run_jobs("--walltime", "auto-10s", "-1", env=env), 0, "d.")

    def test_the_margin_leaves_time_for_kill(self) -> None:
        self.jobs("true")
        self.squeue("ends 7 45")
        ended = self.run_jobs("--walltime", "auto", "--kill-after", "20", env=self.slurm())
        self.assertEnded(ended, 1, ".")
        self.assertComplains(ended, "Slurm ends this job in 4", "the margin is 50s: no job is started")
        self.assertEnded(self.run_jobs("--walltime", "auto", env=self.slurm()), 0, "d")

    def test_an_end_that_is_past_ends_a_runner_which_says_what_is_left(self) -> None:
        self.squeue("ends 7 -100")
        for state, code in ((".", 1), ("d", 0)):
            self.write(f"{state} true\n")
            ended = self.run_jobs("--walltime", "auto", env=self.slurm())
            self.assertEqual((ended.code, self.states()), (code, state), ended.err)
            self.assertComplains(ended, "no job is started")


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

    def test_answers_that_are_none(self) -> None:
        for answer in "ends 9 3600", "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1":
            self.check(
                answer, "squeue does not tell when job 7 ends: '", "Invalid" if "Invalid" in answer else ""
            )
        for text in "N/A", "2026-11-21T14:10:00", "3600", "\\033[2J":
            self.check(f"printf '7 {text}\\n'", "is not understood: '" + text.replace("\\033", "?"))

    def test_no_slurm_no_squeue_and_a_variable_that_is_no_time(self) -> None:
        self.check("echo 7 NONE", "SLURM_JOB_ID is not set", SLURM_JOB_ID="")
        self.check("echo 7 NONE", "squeue: no such file or directory", PATH=str(self.dir))
        self.check("echo 7 NONE", "not understood: 'soon'", SLURM_JOB_END_TIME="soon")
        (self.dir / "bin/squeue").chmod(0)
        self.assertRefused(self.run_jobs("--walltime", "auto", env=self.slurm()), "squeue: permission denied")

    def test_a_squeue_that_does_not_answer_is_given_up(self) -> None:
        self.write(". touch never\n")
        self.squeue(HANGING)
        ended = self.finish(self.start_patched(IMPATIENT, "--walltime", "auto", "runs.txt", env=self.slurm()))
        self.assertRefused(ended, "squeue has not answered within 1.5s")
        self.assertNobodyLeft()

    def test_a_margin_that_is_no_duration(self) -> None:
        self.write(". true\n")
        for text in "auto-", "auto-5x", "auto5m", "auto--5m", "Auto":
            self.assertRefused(self.run_jobs("--walltime", text, env=self.slurm()), "not a duration")

    def test_nobody_is_asked_where_nothing_is_run(self) -> None:
        self.write(". true\n")
        self.squeue(HOUR)
        self.assertEqual(self.run_jobs("--walltime", "auto", "--dry-run", env=self.slurm()).code, 0)
        self.assertFalse(self.exists("asked"))

    def test_a_dry_run_outside_slurm_is_refused_as_the_run_is(self) -> None:
        self.write(". true\n")
        for option in (), ("--dry-run",):
            ended = self.run_jobs("--walltime", "auto", *option)
            self.assertRefused(ended, "SLURM_JOB_ID is not set (give a time")


class Ends(SlurmCase):
    """At the wall time jobs are ended; squeue was asked once."""

    def test_jobs_are_ended_whatever_squeue_would_say_by_then(self) -> None:
        self.jobs(SLEEPING, "touch never")
        self.squeue("ends 7 8")
        runner = self.start_jobs("--walltime", "auto-2.3s", env=self.slurm())
        self.squeue(HOUR)
        self.assertEnded(self.finish(runner), 1, "e.")
        self.assertEqual(self.read("asked").count(b"\n"), 1)


class Client(TcpCase, SlurmCase):
    """A client has the same wall time."""

    def test_a_client_asks_before_it_connects(self) -> None:
        words = RUNCLIENT, "--port", "1", "--token", "0" * 32, "--walltime", "auto", "localhost"
        self.assertRefused(self.run_script(*words), "SLURM_JOB_ID is not set")


if __name__ == "__main__":
    unittest.main()
