"""A table of other tools beside ours, of those that are installed: all run the same commands.

What is measured counts jobs by a byte that each appends to a file: so it begins with the first job, and
neither the start of a tool nor its leave is part of its jobs per second.  What takes too long is cut off: see
PATIENCE.
"""
import contextlib
import functools
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable, Optional

from tests.bench.measure import MB, RUNMAKER, Bench
from tests.support.processes import marked

# seconds until the first of many jobs; the same to come to an end after a crash
PATIENCE = 120.0
COUNTED = b"echo >> n\n"                # a job that counts itself
# A job that says when it starts, and when it has ended, and whether it runs already
JOB = """mkdir at.$1 2> gone || echo $1 >> at_once
sleep 0.5
rmdir at.$1 2> gone
echo $1 >> ended
"""
JOBS, ENOUGH = 80, 20                   # how many there are; how many have ended when the tool is killed
HYPERQUEUE = """import sys
from hyperqueue import Job
from hyperqueue.cluster import LocalCluster, WorkerConfig
with LocalCluster() as cluster, open("commands") as commands:
    cluster.start_worker(WorkerConfig(cores=int(sys.argv[1])))
    job = Job()
    for line in commands:
        job.program(["sh", "-c", line.rstrip()], stdout=None, stderr=None)
    client = cluster.client()
    client.wait_for_jobs([client.submit(job)])
"""
MAKEFILE = r"""mkdir s; (echo "all: \$(addprefix s/,\$(shell seq $(wc -l < commands)))"
awk '{ printf "s/%d:\n\t@%s && : > $@\n", NR, $0 }' commands) > Makefile"""


@dataclass(frozen=True)
class Tool:
    """How a tool runs the lines of the file `commands`, SLOTS at once: shell commands."""
    name: str
    needs: str                          # a program, or the import of a package
    run: str
    resume: str = ""                    # to go on after a crash; where it cannot, it is run again
    prepare: str = ":"                  # makes its own files of `commands`


OURS = shlex.join(RUNMAKER)
TOOLS = (
    Tool("runmaker4", "sh", f"{OURS} -jSLOTS runs.txt", f"{OURS} --resume -jSLOTS runs.txt",
         "sed 's/^/. /' commands > runs.txt"),
    Tool("`xargs -P`", "xargs", r"xargs -d '\n' -PSLOTS -n1 sh -c < commands"),
    Tool("`make -j`", "make", "make -jSLOTS", "make -jSLOTS", MAKEFILE),
    Tool("GNU parallel `--joblog`", "parallel", "parallel -jSLOTS --joblog joblog < commands",
         "parallel -jSLOTS --resume --joblog joblog < commands"),
    Tool("HyperQueue (its Python package)", "import hyperqueue",
         f"{shlex.join([sys.executable, '-c', HYPERQUEUE])} SLOTS"),
    Tool("disBatch", "disBatch", "disBatch -p db/ -s localhost:SLOTS commands",
         "disBatch -p db/ -s localhost:SLOTS $(printf ' -r %s' db/*_status.txt) commands", "mkdir db"),
    Tool("PyTaskFarmer", "pytaskfarmer.py", "pytaskfarmer.py --proc SLOTS --workdir work tasks",
         "pytaskfarmer.py --proc SLOTS --workdir work tasks",
         # it has no shell read them
         "echo 'echo >> n' > count; sed 's/^echo .*/sh count/' commands > tasks"),
)


class ToolFailed(SystemExit):
    """A tool has ended before it has run a job."""


# -- a tool at work ------------------------------------------------------------------------------------------

class Trial(Bench):
    """A tool with commands, in a directory of their own; what it starts carries a mark."""

    def __init__(self, bench: Bench, tool: Tool, *commands: tuple[bytes, int]) -> None:
        super().__init__(bench.dir / "beside", bench.rounds, bench.quick)
        self.tool, self.mark = tool, uuid.uuid4().hex
        self.environ["RUNMAKER4_BENCH_MARK"] = self.mark
        self.dir.mkdir()
        self.file("commands", *commands)
        for name in "n", "ended", "at_once":
            self.file(name)
        (self.dir / "job").write_text(JOB)
        subprocess.run(["sh", "-ec", tool.prepare], cwd=self.dir, check=True)

    def __enter__(self) -> "Trial":
        return self

    def __exit__(self, *error: object) -> None:
        while left := marked(self.mark):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        shutil.rmtree(self.dir)

    def begin(self, slots: int, words: str = "") -> subprocess.Popen[bytes]:
        words = (words or self.tool.run).replace("SLOTS", str(slots))
        return self.start(["sh", "-c", f"exec {words}"])

    def memory(self) -> float:
        """What the tool has in memory now, without its jobs, in MB."""
        total = 0
        for pid in marked(self.mark):
            with contextlib.suppress(OSError):
                if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() not in ("sh", "sleep"):
                    shares = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
                    total += sum(int(size) for size in re.findall(r"^Pss: +(\d+) kB", shares, re.MULTILINE))
        return total * 1024 / MB

    def ended(self) -> int:
        """How many jobs have counted themselves."""
        return (self.dir / "n").stat().st_size

    def wait_first(self, process: subprocess.Popen[bytes]) -> Optional[float]:
        """The seconds from now until a job has ended; None: it takes too long."""
        began = time.perf_counter()
        while not self.ended():
            if process.poll() is not None and not self.ended():
                raise ToolFailed(
                    f"{self.tool.name}: exit {process.returncode}\n{self.errors.read_text()[-2000:]}"
                )
            if time.perf_counter() - began > PATIENCE:
                return None
            time.sleep(0.001)
        return time.perf_counter() - began


def rate(bench: Bench, tool: Tool, slots: int) -> float:
    """Jobs per second, from the first to the last, or for half a minute."""
    count, seconds = bench.size(10_000), 3 if bench.quick else 30
    with Trial(bench, tool, (COUNTED, count)) as trial:
        process = trial.begin(slots)
        if trial.wait_first(process) is None:
            return 0
        began, before = time.perf_counter(), trial.ended()
        while trial.ended() < count and time.perf_counter() - began < seconds:
            if process.poll() is not None and trial.ended() < count:
                raise SystemExit(
                    f"{tool.name}: {trial.ended()} of {count} jobs\n{trial.errors.read_text()[-2000:]}"
                )
            time.sleep(0.005)
        return (trial.ended() - before) / (time.perf_counter() - began)


def start(bench: Bench, tool: Tool) -> float:
    """Milliseconds to the end of the only job."""
    with Trial(bench, tool, (COUNTED, 1)) as trial:
        return 1000 * (trial.wait_first(trial.begin(2)) or PATIENCE)


def million(bench: Bench, tool: Tool) -> str:
    """The seconds to the first of a million jobs, and the memory that the tool has a second later."""
    with Trial(bench, tool, (COUNTED, bench.size(1_000_000))) as trial:
        try:
            first = trial.wait_first(trial.begin(2))
        except ToolFailed as failed:
            return f"cannot: {str(failed).strip().splitlines()[-1][:80]}"
        if first is None:
            return f"> {PATIENCE:.0f} s, {trial.memory():,.0f} MB"
        time.sleep(1)
        return f"{first:.1f} s, {trial.memory():,.0f} MB"


def crash(bench: Bench, tool: Tool) -> str:
    """What becomes of jobs when the tool is killed with -9 and goes on: lost, twice, at once."""
    numbers = [b"%d" % number for number in range(JOBS)]
    with Trial(bench, tool, *((b"sh job %s\n" % number, 1) for number in numbers)) as trial:
        def ended() -> Counter[bytes]:
            return Counter((trial.dir / "ended").read_bytes().split())

        process, end = trial.begin(4), time.monotonic() + PATIENCE
        while sum(ended().values()) < ENOUGH and time.monotonic() < end:
            time.sleep(0.01)
        process.kill()
        process.wait()
        process, end = trial.begin(4, tool.resume), time.monotonic() + PATIENCE
        while time.monotonic() < end and (process.poll() is None or list(trial.dir.glob("at.*"))):
            time.sleep(0.05)                    # jobs of the first one may still run
        late = f", not at its end after {PATIENCE:.0f} s" if process.poll() is None else ""
        runs, at_once = ended(), len((trial.dir / "at_once").read_bytes().split())
        return f"{JOBS - len(runs)}, {sum(count > 1 for count in runs.values())}, {at_once}{late}"


# -- the table -----------------------------------------------------------------------------------------------

def is_here(tool: Tool) -> bool:
    package = tool.needs.startswith("import ")
    return bool(importlib.util.find_spec(tool.needs[7:]) if package else shutil.which(tool.needs))


def beside(bench: Bench) -> Iterator[str]:
    """other tools beside ours, of those that are here"""
    tools = [tool for tool in TOOLS if is_here(tool)]
    measures: list[Callable[[Tool], float]] = [
        lambda tool: rate(bench, tool, 2),
        lambda tool: rate(bench, tool, 4),
        lambda tool: start(bench, tool),
    ]
    cells: dict[str, list[str]] = {tool.name: [] for tool in tools}
    for measure in measures:
        found = bench.interleave({tool.name: functools.partial(measure, tool) for tool in tools})
        for name, values in found.items():
            cells[name].append(f"{statistics.median(values):,.0f}")
    yield (f"| | jobs/s `-j2` | jobs/s `-j4` | start, ms | first of {bench.size(1_000_000):,} jobs, memory "
           "| lost, twice, at once |\n|---|---|---|---|---|---|")
    for tool in tools:
        yield f"| {' | '.join([tool.name, *cells[tool.name], million(bench, tool), crash(bench, tool)])} |"
    missing = [tool.name for tool in TOOLS if tool not in tools]
    if missing:
        yield f"\nNot here: {', '.join(missing)}."
