"""Promise: --walltime auto ends jobs a margin before Slurm ends the runner; never by a guess.  --hire starts
one successor, and only of a runner that has finished a line, and leaves lines only because its time is over.
"""
import itertools
import resource
import signal
import time

from tests.support.processes import alive
from tests.support.runs import SLEEPING, WAITING, RunCase
from tests.support.scripts import RUNCLIENT, RUNMAKER
from tests.support.tcp import TcpCase


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
                if code:                        # the next Slurm job can have more time
                    self.assertRegex(ended.err, rb": the timeout is 2h 00m, .*: starting no more jobs\n")

    def test_no_program_is_needed(self) -> None:
        self.jobs("true", "touch never")
        env = {**ends_in(60), "PATH": str(self.dir)}
        ended = self.run_jobs("--walltime", "auto", "--timeout", "1m", env=env)
        self.assertEnded(ended, 1, "..")
        self.assertEnded(self.run_jobs("--walltime", "auto", "-1", env=env), 0, "d.")

    def test_the_margin_leaves_time_for_kill(self) -> None:
        self.jobs("true")
        ended = self.run_jobs("--walltime", "auto", "--kill-after", "50", env=ends_in(75))
        self.assertEnded(ended, 1, ".")
        self.assertComplains(ended, "Slurm ends this job within the margin of 1m 20s: no job is started")
        self.assertEnded(self.run_jobs("--walltime", "auto", env=ends_in(75)), 0, "d")

    def test_an_end_that_is_past_ends_a_runner_which_says_what_is_left(self) -> None:
        for state, code in ((".", 1), ("d", 0)):
            self.write(f"{state} true\n")
            ended = self.run_jobs("--walltime", "auto", env=ends_in(-100))
            self.assertEqual((ended.code, self.states()), (code, state), ended.err)
            self.assertComplains(ended, "no job is started")

    def test_jobs_are_ended_at_the_wall_time(self) -> None:
        self.jobs(SLEEPING, "touch never")
        soon = "import os, time; os.environ['SLURM_JOB_END_TIME'] = str(int(time.time()) + 40)"
        runner = self.start_patched(soon, "--walltime", "auto", "--kill-after", "0.3", "runs.txt")
        ended = self.finish(runner)
        self.assertEnded(ended, 1, "e.")
        self.assertIn(b"(line 1); in all 1 error, 1 new; --resume runs interrupted jobs again\n", ended.err)

    def test_failed_jobs_alone_are_run_again_by_another_option(self) -> None:
        """The wall time is over before the second can start, and interrupts none."""
        self.write(". false\n#RUN timeout=2h\n. true\n")
        ended = self.run_jobs("--walltime", "1h")
        self.assertEqual((ended.code, self.states()), (1, "!."))
        self.assertIn(b"-r runs them again", ended.err)


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
                self.assertRefused(ended,
                                   f"runmaker4.py: --walltime auto: SLURM_JOB_END_TIME {why} (give a time")
        self.assertEqual(self.states(), ".")

    def test_a_margin_cannot_be_given(self) -> None:
        self.write(". true\n")
        for text in "auto-", "auto-5m", "auto5m", "Auto":
            self.assertRefused(self.run_jobs("--walltime", text, env=ends_in(3600)), "not a duration")

    def test_a_client_is_refused_before_it_connects(self) -> None:
        words = RUNCLIENT, "--port", "1", "--token", "0" * 32, "--walltime", "auto", "localhost"
        self.assertRefused(self.run_script(*words), "SLURM_JOB_END_TIME is not set")


class Hiring(TcpCase):
    """What is hired writes a line to the file `hired`."""
    HIRE = "--walltime", "1h", "--hire", "echo by $SBATCH_ARRAY_INX | tee -a hired"
    TOO_LONG = "#RUN timeout=2h\n. true\n"      # its time ends a runner at once

    # It waits only for a moment, once all that is hired has written its line
    HASTY = """
import os, runmaker4, time
def wait_seconds(program):
    while not os.path.exists("hired") or open("hired").read().count("\\n") < 3: time.sleep(0.01)
    return 0.3
runmaker4.RunnerProgram.MAX_HIRE_SECONDS = property(wait_seconds)
"""

    def hired(self) -> str:
        """What was hired since the last call."""
        text = self.read("hired").decode() if self.exists("hired") else ""
        self.write("", "hired")
        return text

    def test_a_runner_hires_once_if_its_time_ends_and_it_has_finished_a_line(self) -> None:
        for command, options, state in ("true", (), "d"), ("true", ("-r",), "d"), ("false", (), "!"):
            with self.subTest(command=command, options=options):
                self.write(f". {command}\n{self.TOO_LONG}")
                ended = self.run_jobs(*self.HIRE, *options)
                self.assertEqual((ended.code, self.states(), self.hired()), (1, f"{state}.", "by\n"))
                self.assertRegex(ended.err,
                                 rb"1 new.*\n(next: .*\n)?by\n.*--hire: started a successor: echo by")

    def test_what_is_hired_has_the_limit_of_open_files_that_the_runner_was_started_with(self) -> None:
        limits = 600, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self.write(f". true\n{self.TOO_LONG}")
        self.write("a\n", "slots")
        self.run_jobs("--walltime", "1h", "--slots", "@slots", "--hire", "ulimit -Sn >hired",
                      preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits))
        self.assertEqual(self.hired(), "600\n")

    def test_nobody_is_hired_without_lines_to_take_or_by_a_runner_without_success(self) -> None:
        for lines, options in (("", ()), (". true\n", ()), (". true\n#RUN host=elsewhere\n. true\n", ()),
                               (self.TOO_LONG, ()), (f". false\n{self.TOO_LONG}", ("-r",)),
                               (f". false\n{self.TOO_LONG}", ("--max-failed", "1")),
                               (f". true\n{self.TOO_LONG}", ("-1",))):
            with self.subTest(lines=lines, options=options):
                self.write(lines)
                self.run_jobs(*self.HIRE, *options)
                self.assertEqual(self.hired(), "")

    def test_lines_that_were_killed_are_left_for_a_successor_that_resumes(self) -> None:
        calls = []
        for name, options in ("ends", ()), ("resumes", ("--resume",)):
            self.write(f". true\n. {SLEEPING}\n#RUN host=elsewhere\n. true\n", name)
            words = "--walltime", "5", "--hire", f"echo {name} >>hired", *options
            calls.append((RUNMAKER, "-j2", *words, name))
        self.run_all(calls)
        self.assertEqual([self.states(name) for name in ("ends", "resumes")], ["de.", "de."])
        self.assertEqual(self.hired(), "resumes\n")

    def test_nobody_is_hired_after_a_signal(self) -> None:
        for number in signal.SIGUSR1, signal.SIGTERM:
            with self.subTest(number=number):
                self.write(f". true\n. {WAITING}\n{self.TOO_LONG}")
                runner = self.start_program(RUNMAKER, "-j2", *self.HIRE, "runs.txt")
                self.wait_said(runner, "starting no more jobs")
                self.wait_up(2, runner=runner)
                runner.send_signal(number)
                self.wait_said(runner, number.name)
                self.open_gate()
                self.finish(runner)
                self.assertEqual(self.hired(), "")
                for name in "go", "up.2":
                    (self.dir / name).unlink()

    def test_a_client_hires_and_waits_only_so_long_for_all_that_the_command_has_started(self) -> None:
        self.write(f". true\n{self.TOO_LONG}")
        server = self.start_server()
        long = "timeout 100 sh -c 'echo $$ >>hired; sleep 600; echo late >>hired'"
        ended = self.run_client(server, "--walltime", "1h", "--hire",
                                f"echo $$ >hired; setsid {long} & {long}; echo late >>hired",
                                patch=self.HASTY)
        self.assertEqual((ended.code, self.states()), (1, "d."))
        self.assertIn(b"--hire: killed after 0.3 s: echo $$", ended.err)
        hired = list(map(int, self.hired().split()))
        self.assertEqual((len(hired), [*filter(alive, hired)]), (3, []))
        ended = self.run_client(server, *self.HIRE)
        self.assertIn(b"has finished no line, and hires no successor", ended.err)
        self.assertEqual(self.hired(), "")

    def test_a_signal_ends_the_wait_and_what_the_command_has_started(self) -> None:
        self.write(f". true\n{self.TOO_LONG}")
        runner = self.start_program(RUNMAKER, "--walltime", "1h", "--hire", "sleep 600 & echo $! >pid; wait",
                                    "runs.txt", env={"RUNMAKER4_JOB": "host-1-2-3"})     # itself a successor
        pid = int(self.wait_file("pid"))
        # of a process that is just becoming `sleep` it is empty
        self.assertRegex(self.wait_file(f"/proc/{pid}/environ"), rb"\0RUNMAKER4_JOB=host-1-2-3,?[^\0]+\0")
        self.assertIn(b"--hire: killed after a signal: sleep", self.stop(runner, signal.SIGINT).err)
        self.assertFalse(alive(pid))

    def test_a_command_that_cannot_be_started_is_tried_again_for_a_while(self) -> None:
        """As when the user's processes are used up for a moment, or longer."""
        busy = """
import runmaker4
starts, count = runmaker4.Processes.start, 0
def start(self, shell, command, *more, **named):
    global count
    if b"hired" in command:
        count += 1
        if count <= %d:
            raise BlockingIOError(11, "Resource temporarily unavailable")
    return starts(self, shell, command, *more, **named)
runmaker4.Processes.start, runmaker4.RunnerProgram.MAX_HIRE_SECONDS = start, %r
"""
        for failures, seconds, hired, said in ((2, 15.0, "by\n", b"--hire: started a successor: echo by"),
                                               (9, 0.0, "", b"--hire: cannot be started: resource temp")):
            with self.subTest(failures=failures):
                self.write(f". true\n{self.TOO_LONG}")
                ended = self.finish(self.start_patched(busy % (failures, seconds), *self.HIRE, "runs.txt"))
                self.assertEqual((ended.code, self.states(), self.hired()), (1, "d.", hired))
                self.assertIn(said, ended.err)

    def test_a_task_of_an_array_hires_one_task(self) -> None:
        """What sbatch handed on to it is not for its jobs."""
        self.write(f'. test -z "$SBATCH_ARRAY_INX"\n{self.TOO_LONG}')
        self.run_jobs(*self.HIRE, env={"SLURM_ARRAY_TASK_ID": "3", "SBATCH_ARRAY_INX": "3"})
        self.assertEqual((self.states(), self.hired()), ("d.", "by 3\n"))

    def test_refusals(self) -> None:
        self.jobs("true")
        step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
        for options, env, why in ((("--hire", "true"), {}, "--hire requires --walltime"),
                                  (("--walltime", "1h", "--hire", ""), {}, "--hire: is empty"),
                                  (self.HIRE, step, "--hire: each of the 2 tasks of this step would hire")):
            client = self.run_script(RUNCLIENT, "--token", "0" * 32, *options, "localhost", env=env)
            for ended in self.run_jobs(*options, env=env), client:
                self.assertRefused(ended, why)
        # a batch script that was submitted in a step
        self.assertEnded(self.run_jobs(*self.HIRE, env={**step, "SLURM_STEP_ID": "-5"}), 0, "d")
