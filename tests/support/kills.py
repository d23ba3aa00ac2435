"""KillCase: those who run jobs are killed, and what they and their jobs do is marked."""
import random
import signal
import time
from collections.abc import Sequence
from typing import Callable

from tests.support import marks
from tests.support.processes import Process, freeze, process_table, send
from tests.support.runs import RunCase


class KillCase(RunCase):
    """Those who run jobs are killed, and what they and their jobs do is marked."""
    SEED = 5

    def setUp(self) -> None:
        super().setUp()
        self.random = random.Random(self.SEED)
        self.killed: list[Process] = []

    def done(self) -> int:
        return (b"\n" + self.read()).count(b"\nd ")

    def kill(self, runner: Process, with_jobs: bool) -> None:
        """kill -9 a runner.  Its jobs too: each is a session of its own, with its process group."""
        jobs: list[int] = []
        if with_jobs:
            freeze([runner.pid])                        # so that it starts no more jobs
            jobs = [pid for pid, (_, parent) in process_table().items() if parent == runner.pid]
            freeze(jobs)                                # so that their marks end before ours
        marks.append(self.dir / "marks", "".join(f"killed {pid}\n" for pid in [*jobs, runner.pid]))
        send(signal.SIGKILL, [*jobs, *(-pid for pid in jobs), runner.pid])
        self.killed.append(runner)

    def kill_one(self, living: Callable[[], Sequence[Process]], with_jobs: bool) -> None:
        """Kill one of those who live then, sooner or later."""
        time.sleep(self.random.uniform(0, 0.03))
        self.kill(self.random.choice(living()), with_jobs)
