"""Case: a test with a directory of its own, in which it starts scripts, and GATE, at which jobs wait.

Every process that a test starts carries a mark in its environment, and so does all that comes of it; what is
left of them is killed when the test ends.  RUNMAKER4_TEST_DIR=DIR puts the job files on another file system.
"""
import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Optional, TypeVar

from tests.support.processes import DEADLINE, MARK, Ended, Process, marked, wait_until
from tests.support.scripts import PYTHON, RUNMAKER, SCRIPTS, SCRIPTS_AT, SEED, chance
from tests.support.values import Text, as_bytes

# A job that runs until open_gate() is called.  It waits at a pipe that nobody writes to: looking again and
# again takes CPU time; where it does not know the pipe's name, it looks
PIPE = f"{tempfile.gettempdir()}/runmaker4-gate.${MARK}"
GATE = f": >at.gate; [ ! -p {PIPE} ] || true 2>/dev/null <{PIPE}; until [ -e go ]; do sleep 0.02; done"
Call = TypeVar("Call", bound=Sequence[object])          # a script and its arguments


class Case(unittest.TestCase):
    """A test with a directory of its own, where its scripts run; cleans up after itself."""
    forks = True                # in ordinary size, scripts in which it does not matter how they are started
    fork: ClassVar[type[subprocess.Popen[bytes]]] = subprocess.Popen        # see tests/support/__init__.py

    def setUp(self) -> None:
        if SEED and chance(self.id()).random() < 1 / 4:     # these start all as users start it
            self.forks = False
        base = os.environ.get("RUNMAKER4_TEST_DIR")
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="runmaker4-", dir=base)).resolve()
        self.mark = uuid.uuid4().hex
        self.started: list[subprocess.Popen[bytes]] = []
        self.pipe = pathlib.Path(PIPE.replace(f"${MARK}", self.mark))
        os.mkfifo(self.pipe)
        self.addCleanup(self.pipe.unlink)
        self.addCleanup(self._clean)

    def _clean(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
        end = time.monotonic() + DEADLINE
        while left := [pid for pid in marked(f"{MARK}={self.mark}") if pid != os.getpid()]:
            if time.monotonic() > end:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        for process in self.started:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    # -- files ----------------------------------------------------------------------------------------------

    def write(self, text: Text, name: str = "runs.txt") -> pathlib.Path:
        """Make a file in the test's directory."""
        path = self.dir / name
        path.write_bytes(as_bytes(text))
        return path

    def script(self, text: str, name: str) -> None:
        """Make a program, and the folder that it is in."""
        (self.dir / name).parent.mkdir(parents=True, exist_ok=True)
        self.write(text, name).chmod(0o755)

    def read(self, name: str = "runs.txt") -> bytes:
        return (self.dir / name).read_bytes()

    def open_gate(self) -> None:
        """Let the jobs that wait at the GATE end."""
        self.write("", "go")
        self.addCleanup(os.close, os.open(self.pipe, os.O_RDWR))        # which lets pass who opens it to read

    def states(self, name: str = "runs.txt") -> str:
        """The state bytes of all job lines, in order: 'dd.r'."""
        found = re.findall(rb"^([^#/ \t\r\n])[ \t]", self.read(name), re.MULTILINE)
        return b"".join(found).decode("latin-1")

    def set_state(self, number: int, state: str) -> None:
        """Write a state in place, without any lock, as some editors do."""
        with open(self.dir / "runs.txt", "r+b") as file:
            lines = file.readlines()
            os.pwrite(file.fileno(), state.encode(), sum(map(len, lines[:number - 1])))

    def wait_states(self, wanted: str, timeout: float = DEADLINE, name: str = "runs.txt") -> None:
        """Wait until the job lines have exactly these states."""
        end = time.monotonic() + timeout
        while self.states(name) != wanted:
            if time.monotonic() > end:
                self.fail(f"states are {self.states(name)!r}, not {wanted!r}, after {timeout} s")
            time.sleep(0.01)

    def start_to_gate(self, text: Text, *options: str) -> subprocess.Popen[bytes]:
        """Make runs.txt of this text, with a job that waits at the GATE; a quiet runner that runs it."""
        at_gate = self.dir / "at.gate"      # a runner writes the state before it starts the job
        at_gate.unlink(missing_ok=True)
        self.write(text)
        runner = self.start(RUNMAKER, "-q", *options, "runs.txt")
        wait_until(lambda: at_gate.exists() or runner.poll() is not None, what="a job is at the gate")
        if not at_gate.exists():
            self.fail(f"the runner has ended: {runner.communicate()}")
        return runner

    def wait_file(self, name: str, timeout: float = DEADLINE) -> bytes:
        """Wait until a file is there and not empty; its bytes."""
        path = self.dir / name

        def written() -> bytes:
            return path.read_bytes() if path.exists() else b""

        return wait_until(written, timeout, f"{name} is written")

    # -- processes ------------------------------------------------------------------------------------------

    def environ(self, extra: Optional[dict[str, str]] = None) -> dict[str, str]:
        """The environment of what a test starts: ours, the mark, and no colour or cluster of the caller's.

        Python's output is buffered, as it is for users: what a script has not written at its exit is lost.
        """
        kept = {key: value for key, value in os.environ.items()
                if not key.startswith(("SLURM_", "RUNMAKER4_")) and key != "PYTHONUNBUFFERED"}
        kept.update({MARK: self.mark})
        kept.update(extra or {})
        return kept

    def command(self, script: str, *args: object) -> list[str]:
        """The argv of one of our scripts; other commands go through unchanged."""
        words = [str(word) for word in args]
        return [PYTHON, str(SCRIPTS_AT / script), *words] if script in SCRIPTS else [script, *words]

    def start(self, script: str, *args: object, env: Optional[dict[str, str]] = None,
              **options: Any) -> subprocess.Popen[bytes]:
        """Start a script (one of SCRIPTS, or any command) in the test's directory; output to pipes."""
        settings: dict[str, Any] = dict(cwd=self.dir, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE)
        settings.update(options)
        popen = self.fork if self.forks else subprocess.Popen
        process: subprocess.Popen[bytes] = popen(self.command(script, *args), env=self.environ(env),
                                                 **settings)
        self.started.append(process)
        return process

    def finish(self, process: Process, timeout: float = DEADLINE) -> Ended:
        """Wait for a started script and return how it ended; never a traceback."""
        out, err = process.communicate(timeout=timeout)
        return self.as_ended(process.wait(), out or b"", err or b"")

    def stop(self, process: Process, number: signal.Signals = signal.SIGTERM) -> Ended:
        """Send a signal, and wait for the end; how it ended."""
        process.send_signal(number)
        return self.finish(process)

    def as_ended(self, code: int, out: bytes, err: bytes) -> Ended:
        self.assertNotIn(b"Traceback", err)
        return Ended(code, out, err)

    def run_script(self, script: str, *args: object, timeout: float = DEADLINE, **options: Any) -> Ended:
        """Run a script to its end."""
        return self.finish(self.start(script, *args, **options), timeout)

    def run_all(self, calls: Iterable[Call], **options: Any) -> list[tuple[Call, Ended]]:
        """Run scripts at the same time; the calls and how they ended."""
        given = list(calls)
        started = [self.start(str(script), *args, **options) for script, *args in given]
        return list(zip(given, map(self.finish, started)))

    def assertRefused(self, ended: Ended, *words: str) -> None:
        """Exit 2, nothing on stdout, one line on stderr that has these words."""
        self.assertEqual(ended.code, 2, ended.err)
        self.assertEqual(ended.out, b"")
        self.assertEqual(ended.err.count(b"\n"), 1, ended.err)
        for word in words:
            self.assertIn(as_bytes(word), ended.err)
