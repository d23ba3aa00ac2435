"""Promise: what an event means for a job depends on its phase, and on nothing else."""
import asyncio
import os
import pathlib
import signal
import subprocess
import tempfile
import unittest
from typing import Any, Callable, Optional
from unittest import mock

import runmaker4
from runmaker4 import NEW, Job, NoJob, Phase, Resources, Runner
from tests.support.processes import DEADLINE, wait_until
from tests.support.runs import UP, RunCase
from tests.support.scripts import FULL

BACK, NOTHING = b"given back", b"nothing is written"
# The table of JobTask, by rows: what the line gets after drain(), and after kill() for each cause
TABLE = {
    Phase.STARTING: (BACK, BACK, b"c", NOTHING),
    Phase.AT_GATE: (BACK, BACK, b"c", NOTHING),
    Phase.RUNNING: (b"!", b"e", b"c", NOTHING),
    Phase.READING_ON: (b"!", b"!", b"c", NOTHING),
    Phase.DELIVERING: (b"d", b"e", b"c", NOTHING),
    Phase.UNDYING: (b"!", b"!", b"c", NOTHING),
    Phase.GROWING: (b"e", b"e", b"c", NOTHING),
    Phase.SETTLING: (b"!", b"!", b"!", b"!"),
}
EVENTS = "drain", "stopped", "cancelled", "lost"
GO = f"{tempfile.gettempdir()}/runmaker4-go."       # and the runner's process: once it is there, jobs end
UNTIL_GO = f"until [ -e {GO}$PPID ]; do sleep 0.02; done; exit 3".encode()
# what the job does that comes to this phase; in all but one the end of its last run is `!`
COMMANDS = {
    Phase.STARTING: b"exit 3",
    Phase.AT_GATE: b"exit 3",
    Phase.RUNNING: UNTIL_GO,
    Phase.READING_ON: b"(while :; do echo x; sleep 0.02; done) & exit 3",
    Phase.DELIVERING: b"exit 0",
    Phase.UNDYING: UNTIL_GO,
    Phase.GROWING: UNTIL_GO,
    Phase.SETTLING: b"exit 3",
}


class OneJob:
    """The `Jobs` of a runner that gets one job; its calls in one phase are held back."""
    interval, poll = 1.0, 0.05

    def __init__(self, job: Job) -> None:
        self.waiting = [job]
        self.written = NOTHING
        self.hold: Optional[Phase] = None
        self.go_on = asyncio.Event()

    async def _pass(self, phase: Phase) -> None:
        if self.hold is phase:
            await self.go_on.wait()

    async def claim(self, *_: object) -> object:
        return self.waiting.pop() if self.waiting else NoJob(may_exit=True)

    async def copy_lock_fds(self, _: Job) -> tuple[int, ...]:
        await self._pass(Phase.STARTING)
        return ()

    async def bring(self) -> str:
        await self._pass(Phase.STARTING)
        return ""

    async def deliver(self) -> str:
        await self._pass(Phase.DELIVERING)
        return ""

    async def still_has(self, _: Job) -> bool:
        return True

    def on_ready_to_start(self, _: Job) -> None:
        pass

    async def finish(self, _: Job, state: bytes) -> str:
        await self._pass(Phase.SETTLING)
        self.written = BACK if state == runmaker4.NEW else state
        return ""

    async def check_jobs(self) -> dict[Job, str]:
        return {}


class Cells(unittest.TestCase):
    """A job is brought to a phase, something happens, and its line gets what the table says."""
    seconds_left: Optional[float] = None        # until the wall time is over

    def setUp(self) -> None:
        # on a busy machine a process that prints can be silent for 0.3 s
        patient = mock.patch.object(runmaker4.Pump, "QUIET_SECONDS", 60.0)
        patient.start()
        self.addCleanup(patient.stop)
        self.go = pathlib.Path(f"{GO}{os.getpid()}")
        self.addCleanup(self.go.unlink, missing_ok=True)

    def let_go(self) -> None:
        """Have jobs end that wait for it."""
        self.go.touch()

    def play(self, *args: Any, **more: Any) -> bytes:
        """The same as make_events(), with an event loop."""
        return asyncio.run(self.make_events(*args, **more))

    async def make_events(self, phase: Phase, *events: Callable[[Runner, Job], None], command: bytes = b"",
                          after_a_run: bool = False, travels: bool = False) -> bytes:
        """Return what the line of a job gets if these events happen in this phase.

        after_a_run: the phase is STARTING for its second run.  travels: so do files of the job.
        """
        self.go.unlink(missing_ok=True)
        job = Job(runmaker4.Line(1, 0, NEW, b" " + (command or COMMANDS[phase])))
        job.gated = phase is Phase.AT_GATE
        if phase is Phase.GROWING:
            job.settings = runmaker4.JobSettings(needs=Resources(1, 5.0), larger_needs=(Resources(1, 9.0),))
        jobs = OneJob(job)
        if travels or phase is Phase.DELIVERING:
            job.bring, job.deliver = jobs.bring, lambda _: jobs.deliver()
        if not after_a_run:
            jobs.hold = phase
        self.runner, signals = self.make_runner(jobs, phase)
        work = asyncio.ensure_future(self.runner.run())
        if after_a_run:
            await self.reach(job, Phase.RUNNING)
            jobs.hold = Phase.STARTING
            self.let_go()
        if phase is Phase.GROWING:
            await self.reach(job, Phase.RUNNING)
            self.runner.tasks[job].run.cause = "memory"
            self.let_go()
        if phase is Phase.UNDYING:
            await self.reach(job, Phase.RUNNING)
            self.runner.tasks[job].kill_run("timeout")
        await self.reach(job, phase)
        for event in events:
            event(self.runner, job)
        jobs.go_on.set()
        self.let_go()
        await asyncio.wait_for(work, DEADLINE)
        self.outlives_runner = job.outlives_runner
        os.close(signal.set_wakeup_fd(-1))
        os.close(signals.read_fd)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return jobs.written

    def make_runner(self, jobs: OneJob, phase: Phase) -> tuple[Runner, runmaker4.Signals]:
        retries = str(int(phase is Phase.STARTING))
        options = runmaker4.make_parser().parse_args(["--retries", retries, "runs.txt"])
        loop = asyncio.get_running_loop()
        signals = runmaker4.Signals(loop)           # SIGCHLD
        processes = runmaker4.Processes(loop, signals, 5.0)
        said: list[str] = []
        runner = Runner(jobs, processes, [runmaker4.Sink()], [mock.Mock(backlog=0)], b"host", options,  # type: ignore[arg-type]
                        said.append, runmaker4.RunnerStats(), ["1"], None, runmaker4.FileExecutor(False),
                        memory=10.0, seconds_left=self.seconds_left)
        if phase is Phase.UNDYING:          # as if the processes were another user's, and KILL came at once
            processes.grace = processes.MAX_DYING_SECONDS = 0.0
            processes.UNDYING_PAUSE = 0.05
            mock.patch.object(processes, "_signal").start()
        if phase is Phase.GROWING:          # others have all memory
            mock.patch.object(runner, "_free_resources", lambda: Resources(1, 0.0)).start()
        return runner, signals

    async def reach(self, job: Job, phase: Phase) -> None:
        end = asyncio.get_running_loop().time() + DEADLINE
        while job not in self.runner.tasks or self.runner.tasks[job].phase is not phase:
            self.assertLess(asyncio.get_running_loop().time(), end, f"{phase} was not reached")
            await asyncio.sleep(0.001)

    @staticmethod
    def event(name: str) -> Callable[[Runner, Job], None]:
        if name == "drain":
            return lambda runner, job: runner.drain()
        return lambda runner, job: runner.kill_job(job, name)

    def test_each_cell_of_the_table(self) -> None:
        for phase, row in TABLE.items():
            for name, becomes in zip(EVENTS, row):
                longest = 5.0 if FULL or name != "drain" else 1.0       # nothing ends the reading earlier
                with self.subTest(phase=phase.name, event=name), \
                        mock.patch.object(runmaker4.Pump, "MAX_READING_SECONDS", longest):
                    self.assertEqual(self.play(phase, self.event(name)), becomes)
                    self.assertFalse(name == "lost" and self.runner.runner_stats.results[b"e"])

    def test_a_job_whose_files_come_is_starting_whatever_its_run(self) -> None:
        for name, first, again in zip(EVENTS, TABLE[Phase.STARTING], (b"!", b"e", b"c", NOTHING)):
            with self.subTest(event=name):
                self.assertEqual(self.play(Phase.STARTING, self.event(name), travels=True), first)
                self.assertEqual(self.play(Phase.STARTING, self.event(name), command=UNTIL_GO,
                                           after_a_run=True, travels=True), again)

    def test_a_runner_that_exits_waits_for_no_process_that_cannot_be_killed(self) -> None:
        """The line gets what the table says, and the job lock is not unlocked."""
        def kill_jobs(runner: Runner, job: Job) -> None:
            self.addCleanup(os.kill, runner.tasks[job].run.pid, signal.SIGKILL)
            runner.kill_jobs()

        for events, becomes in (([], b"!"), ([self.event("cancelled")], b"c")):
            self.assertEqual(self.play(Phase.UNDYING, kill_jobs, *events, command=b"exec sleep 600"), becomes)
            self.assertTrue(self.outlives_runner)

    def test_a_job_that_is_just_being_started_again_has_its_last_result_or_is_in_error(self) -> None:
        for name, becomes in zip(EVENTS, (b"!", b"e", b"c", NOTHING)):
            with self.subTest(event=name):
                self.assertEqual(self.play(Phase.STARTING, self.event(name), command=UNTIL_GO,
                                           after_a_run=True), becomes)

    def test_the_strongest_cause_counts_whatever_the_order(self) -> None:
        for first, second, becomes in (("stopped", "cancelled", b"c"), ("cancelled", "stopped", b"c"),
                                       ("cancelled", "lost", NOTHING), ("lost", "cancelled", NOTHING)):
            for phase in Phase.STARTING, Phase.READING_ON, Phase.GROWING:
                with self.subTest(first=first, second=second, phase=phase.name):
                    events = self.event(first), self.event(second)
                    self.assertEqual(self.play(phase, *events), becomes)

    def test_a_timeout_ends_what_runs_or_is_left_and_too_much_memory_what_runs(self) -> None:
        for cause, seconds in ("timeout", 60.0), ("memory", 0.5):
            def end(runner: Runner, job: Job) -> None:
                runner.tasks[job].kill_run(cause)

            with self.subTest(cause=cause):
                self.assertEqual(self.play(Phase.RUNNING, end, command=b"sleep 600"), b"!")
                with mock.patch.object(runmaker4.Pump, "MAX_READING_SECONDS", seconds):
                    self.assertEqual(self.play(Phase.READING_ON, end), b"!")
                for phase, becomes in ((Phase.STARTING, BACK), (Phase.AT_GATE, BACK),
                                       (Phase.DELIVERING, b"d"), (Phase.GROWING, b"e"),
                                       (Phase.SETTLING, b"!")):
                    self.assertEqual(self.play(phase, end, self.event("drain")), becomes, phase)

    def test_what_ends_the_rest_of_a_run_is_not_why_its_shell_has_exited(self) -> None:
        """And too much memory of what the shell has left ends nothing."""
        for name in "stopped", "cancelled", "lost", "timeout", "memory":
            kills = name != "memory"

            def kill(runner: Runner, job: Job) -> None:
                self.task = runner.tasks[job]
                (self.task.kill if name in EVENTS else self.task.kill_run)(name)

            with self.subTest(cause=name), \
                    mock.patch.object(runmaker4.Processes, "kill_tree", autospec=True,
                                      side_effect=runmaker4.Processes.kill_tree) as kill_tree, \
                    mock.patch.object(runmaker4.Pump, "MAX_READING_SECONDS", 60.0 if kills else 0.5):
                self.play(Phase.READING_ON, kill)
                self.assertEqual((self.task.run.cause, kill_tree.called), ("", kills))

    def test_a_job_whose_timeout_does_not_fit_into_the_rest_of_the_wall_time_is_not_run_again(self) -> None:
        def spend_time(runner: Runner, _: Job) -> None:
            runner.options.retries = 1
            runner.wall_end = runner.loop.time() + 500.0

        for timeout, runs in (1000.0, 1), (100.0, 2):
            with self.subTest(timeout=timeout), \
                    mock.patch.object(runmaker4.JobSettings, "timeout", timeout), \
                    mock.patch.object(runmaker4.Processes, "start", autospec=True,
                                      side_effect=runmaker4.Processes.start) as start:
                self.assertEqual(self.play(Phase.RUNNING, spend_time), b"!")
                self.assertEqual(start.call_count, runs)

    def test_a_stop_of_the_runner_counts_for_the_wall_time_and_not_for_a_timeout(self) -> None:
        def stop(runner: Runner, _: Job) -> None:
            """SIGSTOP, and SIGCONT much later: as the loop sees it, its clock jumps."""
            time = runner.loop.time
            mock.patch.object(runner.loop, "time", lambda: time() + 1000).start()

        until_go = UNTIL_GO.replace(b"exit 3", b"exit 0")
        for self.seconds_left, command, becomes in (None, until_go, b"d"), (500.0, b"sleep 600", b"e"):
            with self.subTest(seconds_left=self.seconds_left), \
                    mock.patch.object(runmaker4.JobSettings, "timeout", 60.0):
                self.assertEqual(self.play(Phase.RUNNING, stop, command=command), becomes)

    def test_a_gate_is_opened_once_or_refused_for_good(self) -> None:
        def refusing(runner: Runner, job: Job) -> None:
            runner.tasks[job].refuse_gate()

        opening = Runner.open_gate
        for events, becomes in (([opening], b"!"), ([opening, refusing], b"!"), ([refusing], BACK),
                                ([refusing, opening], BACK)):
            with self.subTest(events=[event.__name__ for event in events]):
                self.assertEqual(self.play(Phase.AT_GATE, *events), becomes)

    def test_a_job_that_is_killed_in_the_turn_in_which_its_gate_is_opened_is_killed(self) -> None:
        """The coroutine that waits at the gate has not run yet."""
        for name, becomes in zip(EVENTS[1:], TABLE[Phase.RUNNING][1:]):
            events = Runner.open_gate, self.event(name)
            with self.subTest(event=name):
                self.assertEqual(self.play(Phase.AT_GATE, *events, command=b"sleep 600"), becomes)

    def test_a_job_that_is_killed_in_the_moment_in_which_its_shell_has_exited_keeps_its_result(self) -> None:
        """The shell has exited, and nobody has waited for it yet."""
        def wait_for_exit(runner: Runner, job: Job) -> None:
            self.let_go()
            os.waitid(os.P_PID, runner.tasks[job].run.pid, os.WEXITED | os.WNOWAIT)

        for name, becomes in zip(EVENTS, TABLE[Phase.READING_ON]):
            with self.subTest(event=name):
                self.assertEqual(self.play(Phase.RUNNING, wait_for_exit, self.event(name)), becomes)

# a process that a shell leaves behind: once it can note a TERM it says that it runs, and it prints until then
PRINTS_ON = f"(trap ': > term; exit' TERM; {UP}; while :; do echo x; sleep 0.02; done) &"


class ReadingOn(RunCase):
    """The shell of a job has exited, and a process that it has left behind still prints."""

    def start_reading(self, run_result: str) -> subprocess.Popen[bytes]:
        """Start a runner whose job has left such a process behind and ended in this way."""
        self.jobs(f"{PRINTS_ON} echo $$ >pid; {run_result}")
        # On a busy machine a process that prints can be silent for 0.3 s
        runner = self.start_patched(
            "from runmaker4 import Pump; Pump.MAX_READING_SECONDS = Pump.QUIET_SECONDS = 60.0", "runs.txt")
        self.wait_up(1, runner=runner)
        return runner

    def wait_exited(self) -> None:
        shell = int(self.wait_file("pid"))
        wait_until(lambda: not os.path.exists(f"/proc/{shell}"), what="the shell was waited for")

    def test_int_and_term_kill_what_is_left_and_keep_the_result_of_the_shell(self) -> None:
        for number, run_result, state in ((signal.SIGINT, "exit 0", "d"), (signal.SIGTERM, "exit 3", "!")):
            with self.subTest(number=number.name, run_result=run_result):
                runner = self.start_reading(run_result)
                self.wait_exited()
                runner.send_signal(number)
                self.assertEnded(self.finish(runner, 30), 128 + number, state)
                for name in "term", "up.1", "pid":
                    (self.dir / name).unlink()

    def test_a_job_that_was_stopped_with_its_runner_is_in_error_however_long_it_is_read(self) -> None:
        """Slurm and systemd send TERM to all processes of a job, one after the other."""
        runner = self.start_reading("sleep 600")
        os.kill(int(self.wait_file("pid")), signal.SIGTERM)
        self.wait_exited()
        runner.send_signal(signal.SIGTERM)
        self.assertEnded(self.finish(runner, 30), 143, "e")
