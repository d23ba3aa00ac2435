"""Promise: --walltime auto ends jobs a margin before Slurm ends the runner; never by a guess."""
import itertools
import time
import unittest

from tests.support import RUNCLIENT, SLEEPING, RunCase
from tests.tcp import TcpCase


def ends_in(seconds: float) -> dict[str, str]:
    """The variable of a Slurm job that ends then."""
    return {"SLURM_JOB_END_TIME": str(int(time.time() + seconds))}


class Limits(RunCase):
    """The end of the Slurm job counts, less the margin."""

    def test_jobs_must_end_before_the_slurm_job(self) -> None:
        for env, timeout, code, state in (
            (ends_in(3600), "50m", 0, "d"),
            (ends_in(3600), "2h", 1, "."),
            # squeue prints that for a Slurm job without a limit
            ({"SLURM_JOB_END_TIME": "NONE"}, "100d", 0, "d"),
        ):
            with self.subTest(env=env, timeout=timeout):
                self.jobs("true")
                ended = self.run_jobs("--walltime", "auto", "--timeout", timeout, env=env)
                self.assertEnded(ended, code, state)

    def test_no_program_is_needed(self) -> None:
        self.jobs("true", "touch never")
        env = {**ends_in(60), "PATH": str(self.dir)}
        ended = self.run_jobs("--walltime", "auto", "--timeout", "1m", env=env)
        self.assertEnded(ended, 1, "..")
        self.assertEnded(self.run_jobs("--walltime", "auto", "-1", env=env), 0, "d.")

    def test_the_margin_leaves_time_for_kill(self) -> None:
        self.jobs("true")
        ended = self.run_jobs("--walltime", "auto", "--kill-after", "20", env=ends_in(45))
        self.assertEnded(ended, 1, ".")
        self.assertComplains(ended, "Slurm ends this job within the margin of 50s: no job is started")
        self.assertEnded(self.run_jobs("--walltime", "auto", env=ends_in(45)), 0, "d")

    def test_an_end_that_is_past_ends_a_runner_which_says_what_is_left(self) -> None:
        for state, code in ((".", 1), ("d", 0)):
            self.write(f"{state} true\n")
            ended = self.run_jobs("--walltime", "auto", env=ends_in(-100))
            self.assertEqual((ended.code, self.states()), (code, state), ended.err)
            self.assertComplains(ended, "no job is started")

    def test_jobs_are_ended_at_the_wall_time(self) -> None:
        self.jobs(SLEEPING, "touch never")
        self.assertEnded(self.run_jobs("--walltime", "auto", "--kill-after", "0.3", env=ends_in(36)), 1, "e.")


class Refusals(TcpCase):
    """What is not understood is no reason to run without a limit."""

    def test_a_variable_that_is_not_set_or_no_time(self) -> None:
        self.write(". touch never\n")
        texts = "", "soon", "N/A", "2026-11-21T14:10:00", "3600", "-1795000000", "\033[2J"
        for text, option in zip(texts, itertools.cycle(("-d", "--dry-run"))):
            why = f"is not a time: '{text}'".replace("\033", "?") if text else "is not set"
            # a Slurm job of an older version has the number alone
            env = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": text}
            with self.subTest(text=text, option=option):
                ended = self.run_jobs(option, "--walltime", "auto", env=env)
                self.assertRefused(
                    ended, f"runmaker4.py: --walltime auto: SLURM_JOB_END_TIME {why} (give a time"
                )
        self.assertEqual(self.states(), ".")

    def test_a_margin_cannot_be_given(self) -> None:
        self.write(". true\n")
        for text in "auto-", "auto-5m", "auto5m", "Auto":
            self.assertRefused(self.run_jobs("--walltime", text, env=ends_in(3600)), "not a duration")

    def test_a_client_is_refused_before_it_connects(self) -> None:
        words = RUNCLIENT, "--port", "1", "--token", "0" * 32, "--walltime", "auto", "localhost"
        self.assertRefused(self.run_script(*words), "SLURM_JOB_END_TIME is not set")


if __name__ == "__main__":
    unittest.main()
