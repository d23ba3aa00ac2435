"""LifeSign: a job that waits at the gate, and runners that die."""
import os
import signal
import subprocess
from typing import Any

from tests.support.case import GATE
from tests.support.line_locks import locked_lines
from tests.support.processes import alive, wait_until
from tests.support.runs import RunCase


class LifeSign(RunCase):
    """Helpers: a job that waits at the gate, and runners that die."""
    WAITING = f"echo $$ >>marks; {GATE}; echo ended >>marks"

    def start_runner(self, *options: str, **settings: Any) -> subprocess.Popen[bytes]:
        return self.start_hasty(*options, "runs.txt", start_new_session=True, **settings)

    def job_pid(self) -> int:
        return int(self.wait_file("marks").split()[-1])

    def runs(self) -> int:
        marks = self.read("marks") if (self.dir / "marks").exists() else b""
        return len([mark for mark in marks.split() if mark.isdigit()])

    def kill(self, runner: subprocess.Popen[bytes]) -> None:
        """kill -9 a runner, and all that is in its process group."""
        os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()

    def lose_runner(self) -> int:
        """Let a runner die while its only job waits at the gate; the pid of the job, that is alive."""
        self.write(f". {self.WAITING}\n")
        runner = self.start_runner()
        pid = self.job_pid()
        self.kill(runner)
        self.assert_running()
        return pid

    def assert_running(self) -> None:
        """The only job is running, and somebody holds its line."""
        self.assertTrue(alive(self.job_pid()))
        self.assertEqual((self.states(), locked_lines(self)), ("r", [1]))

    def end_job(self) -> None:
        """Open the gate, and wait until nobody holds a line."""
        self.open_gate()
        wait_until(lambda: not locked_lines(self), what="all lines are free")
