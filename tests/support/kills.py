"""KillCase: those who run jobs are killed, and what they and their jobs do is marked."""
import random
import re
import signal
import time
from collections.abc import Sequence
from typing import Callable, Optional

from tests.support import marks
from tests.support.process_table import freeze, process_table, send
from tests.support.processes import Process
from tests.support.runs import RunCase
from tests.support.values import present


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

    def kill_at_gate(self, keep_until: Callable[[Callable[[], object]], None],
                     living: Callable[[], Sequence[Process]]) -> None:
        """Kill who runs job 1, with that job, which waits at the gate, and open the gate.

        keep_until: starts new ones for those that died, until a condition is true.
        """
        def find() -> Optional[Process]:
            started = re.search(rb"^start 1 \d+ (\d+)$", self.read("marks"), re.MULTILINE)
            return next((one for one in living() if started and one.pid == int(started[1])), None)

        keep_until(find)
        self.kill(present(find()), with_jobs=True)
        self.open_gate()

    def kill_one(self, living: Callable[[], Sequence[Process]], with_jobs: bool) -> None:
        """Kill one of those who live then, sooner or later."""
        time.sleep(self.random.uniform(0, 0.03))
        self.kill(self.random.choice(living()), with_jobs)
