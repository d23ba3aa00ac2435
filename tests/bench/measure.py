"""What the benchmarks share: the sizes of a run, processes and what they take, the comparison of rounds."""
import math
import os
import pathlib
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Callable

from tests.support.values import present

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RUNMAKER = [sys.executable, str(ROOT / "runmaker4.py")]
RUNWAIT = [sys.executable, str(ROOT / "runwait4.py")]
MB = 1_000_000


@dataclass
class Used:
    """What a process took."""
    seconds: float
    memory: float                       # its peak, in MB
    cpu: float = 0.0                    # seconds


@dataclass
class Row:
    """A row of the table."""
    what: str
    measured: str
    wanted: str
    reached: bool


class Bench:
    """The sizes of a run, a directory for its files, and ways to run a process and look at it."""

    def __init__(self, directory: pathlib.Path, rounds: int, quick: bool) -> None:
        self.dir = directory
        self.rounds = rounds
        self.quick = quick
        self.errors = directory / "stderr"
        self.environ = {**os.environ, "HOME": str(directory), "PARALLEL": "--will-cite", "NO_COLOR": "1"}

    def size(self, full: int) -> int:
        """A size, a tenth of it with --quick."""
        return full // 10 if self.quick else full

    def file(self, name: str, *parts: tuple[bytes, int]) -> None:
        """Write a file of lines, each given as (line, how often), in pieces that keep this process small."""
        with open(self.dir / name, "wb") as file:
            for line, count in parts:
                for start in range(0, count, 10_000):
                    file.write(line * min(10_000, count - start))

    def count(self, name: str, start: bytes) -> int:
        """How many lines of a file begin so."""
        with open(self.dir / name, "rb") as file:
            return sum(line.startswith(start) for line in file)

    def remove(self, *names: str) -> None:
        for name in names:
            path = self.dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    # -- processes ------------------------------------------------------------------------------------------

    def start(self, command: list[str], stdin: str = os.devnull,
              stdout: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start a command in the directory; what it says on stderr is kept for the case that it fails."""
        with open(self.dir / stdin, "rb") as source, open(self.errors, "ab") as errors:
            return subprocess.Popen(command, cwd=self.dir, env=self.environ, stdin=source, stdout=stdout,
                                    stderr=errors)

    def wait(self, process: subprocess.Popen[bytes], began: float, code: int = 0) -> Used:
        """Wait for its end; another exit status than this ends the benchmarks.

        A new process inherits the peak of this one (it shares our memory until its exec), so this one must
        stay small.
        """
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != code:
            said = self.errors.read_text()[-2000:]
            raise SystemExit(f"exit {process.returncode}: {process.args!r}\n{said}")
        return Used(time.perf_counter() - began, usage.ru_maxrss * 1024 / MB, usage.ru_utime + usage.ru_stime)

    def run(self, command: list[str], stdin: str = os.devnull) -> Used:
        began = time.perf_counter()
        return self.wait(self.start(command, stdin), began)

    def rate_of_xargs(self, count: int, slots: int) -> float:
        """Commands per second that xargs runs; the file `list` has `count` of them."""
        return count / self.run(["xargs", "-d", "\n", f"-P{slots}", "-n1", "sh", "-c"], "list").seconds

    def run_piped(self, command: list[str]) -> tuple[Used, int]:
        """Run a command whose stdout is a pipe that is read at once; what it took, and the bytes read."""
        began = time.perf_counter()
        process = self.start(command, stdout=subprocess.PIPE)
        buffer, total = bytearray(1 << 20), 0
        with present(process.stdout) as output:
            while True:
                count = os.readv(output.fileno(), [buffer])
                if not count:
                    return self.wait(process, began), total
                total += count

    def run_all(self, commands: list[list[str]]) -> float:
        began = time.perf_counter()
        processes = [self.start(command) for command in commands]
        for process in processes:
            self.wait(process, began)
        return time.perf_counter() - began

    def until_first_job(self, runner: list[str] = RUNMAKER) -> tuple[float, Used]:
        """The seconds until a runner's first job (`. : > started`) runs, and what the runner took in all."""
        self.remove("started")
        os.mkfifo(self.dir / "started")
        reader = os.open(self.dir / "started", os.O_RDONLY | os.O_NONBLOCK)
        poll = select.poll()
        poll.register(reader, select.POLLHUP)       # once somebody has opened it for writing and closed it
        began = time.perf_counter()
        process = self.start([*runner, "runs.txt"])
        if not poll.poll(60_000):
            raise SystemExit("the first job did not start")
        seconds = time.perf_counter() - began
        os.close(reader)
        return seconds, self.wait(process, began)

    def until_jobs_done(self, name: str, first: int, last: int) -> float:
        """Seconds from the end of the first-th job to the last-th's; then the runner is stopped."""
        process = self.start([*RUNMAKER, name], stdout=subprocess.PIPE)
        done, times = 0, {}
        with present(process.stdout) as output:
            for line in output:
                if b"): exit 0 " in line:
                    done += 1
                    times[done] = time.perf_counter()
                    if done == last:
                        process.send_signal(signal.SIGHUP)      # start nothing more
        self.wait(process, began=0, code=1)             # for new jobs are left
        return times[last] - times[first]

    # -- comparing ------------------------------------------------------------------------------------------

    def interleave(self, variants: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
        """Run each variant once per round, in turn; the results of each."""
        results: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(self.rounds):
            for name, variant in variants.items():
                results[name].append(variant())
        return results


def compare(what: str, one: list[float], other: list[float], unit: str, least: float = 0.0,
            most: float = math.inf) -> Row:
    """The row of the median of the rounds' ratios, which has one bound."""
    ratio = statistics.median(a / b for a, b in zip(one, other))
    wanted = f">= {least} x" if least else f"<= {most} x"
    measured = f"{ratio:.2f} x: {spread(one)} against {spread(other)} {unit}"
    return Row(what, measured, wanted, least <= ratio <= most)


def within(what: str, used: list[Used], seconds: float, memory: float, more: str = "") -> Row:
    """The row of what takes so many seconds and MB at the most; more: what else there is to say."""
    middle, most = statistics.median(one.seconds for one in used), max(one.memory for one in used)
    return Row(what, f"{middle:.2f} s, {most:.0f} MB{more}", f"<= {seconds} s, <= {memory} MB",
               middle <= seconds and most <= memory)


def spread(values: list[float], digits: int = 0) -> str:
    """The median, with least and most."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def cpu_seconds(pid: int) -> float:
    """The processor time that a process (not its children) has used."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> float:
    """The most memory that a living process ever had, in MB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(present(re.search(r"VmHWM:\s+(\d+) kB", status))[1]) * 1024 / MB
