"""What a short job asks of an NFS server, counted on a local directory (tests/real/rigs/counted.py), and
jobs/s there beside those of the scripts of an earlier commit.

    python3 -m tests.bench.counted                  fail if the jobs of one runner ask for more than LIMIT
"""
import functools
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable

from tests.bench.measure import MB, ROOT, Bench, Row, compare, spread
from tests.real.rigs.counted import Counted, run

JOBS = 400
BEFORE = "7df0a27"                  # the last commit whose runners take three locks for each job
# Each job counts as short: on a busy machine `true` itself can take longer than a short job may
SHORT_SECONDS = 60.0
# What a runner asks for while time passes, however many jobs it has: journal, looks at its jobs, walks
PER_SECOND = 8
# All else for each of JOBS jobs, with the start and the end of the runner.  Six runs, beside light and heavy
# load, had 8.29 to 8.38.
LIMIT = 8.5


def count(scripts: pathlib.Path, jobs: int, runners: int, slots: int, milliseconds: int) -> Counted:
    """Count what so many jobs ask for, at a round trip of so many milliseconds."""
    lines = "".join(f". true {number}\n" for number in range(jobs))
    return run(scripts, lines, runners, [f"-j{slots}"], milliseconds / 1000, SHORT_SECONDS)


def earlier(bench: Bench, commit: str = BEFORE) -> dict[str, pathlib.Path]:
    """The directory of the scripts of a commit for a file, if this repository has that."""
    directory = bench.dir / commit
    directory.mkdir(exist_ok=True)
    for name in "runmaker4.py", "runset4.py":
        command = ["git", "show", f"{commit}:{name}"]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        if shown.returncode:
            return {}
        (directory / name).write_bytes(shown.stdout)
    return {commit: directory}


def rows(bench: Bench, runners: int, slots: int, milliseconds: int, most: float) -> list[Row]:
    """The row of the operations per job, and that of jobs/s against BEFORE."""
    scripts, jobs = {"ours": ROOT, **earlier(bench)}, bench.size(JOBS)
    counts: dict[str, list[float]] = {name: [] for name in scripts}

    def rate(name: str) -> float:
        found = count(scripts[name], jobs, runners, slots, milliseconds)
        counts[name].append(found.total / jobs)
        return jobs / found.seconds

    rates = bench.interleave({name: functools.partial(rate, name) for name in scripts})
    each = {name: spread(found, 2) for name, found in counts.items()}
    what = f"{jobs} x `true`, {runners} x `-j{slots}`, {milliseconds} ms"
    operations = Row(f"{what}: operations per job", each["ours"], f"<= {most}",
                     statistics.median(counts["ours"]) <= most)
    if BEFORE not in scripts:
        measured = f"{spread(rates['ours'])} jobs/s; {BEFORE} is not in this repository"
        return [operations, Row(what, measured, ">= 3 x", True)]
    operations.measured += f", with {BEFORE} {each[BEFORE]}"
    return [operations, compare(f"{what}, against {BEFORE}", rates["ours"], rates[BEFORE], "jobs/s", least=3)]


def counted(bench: Bench) -> list[Row]:
    """operations per job and jobs/s of runners on a directory that counts as NFS does"""
    return [*rows(bench, 1, 2, 1, 8.6), *rows(bench, 4, 1, 2, 11.5)]


def row_beside(bench: Bench, what: str, measure: Callable[[pathlib.Path], float], most: float) -> Row:
    """Measure our scripts, and beside them those of 73f7234 if the repository has that commit.

    measure: of the scripts in this directory; must be at most `most`.
    """
    found = bench.interleave({name: functools.partial(measure, scripts) for name, scripts in
                              {"ours": ROOT, **earlier(bench, "73f7234")}.items()})
    ours = found.pop("ours")
    before = "".join(f", with {name} {spread(figures, 2)}" for name, figures in found.items())
    return Row(what, spread(ours, 2) + before, f"<= {most:g}", statistics.median(ours) <= most)


def waiting(bench: Bench) -> list[Row]:
    """operations per job of runners that wait for the last jobs of each other"""
    jobs = bench.size(192)
    lines = "".join(f". sleep 1 # {number}\n" for number in range(jobs))

    def operations(scripts: pathlib.Path) -> float:
        return run(scripts, lines, 16, ["-j4"], 0.002).total / jobs

    return [row_beside(bench, f"{jobs} x `sleep`, 16 x `-j4`, 2 ms: operations per job", operations, 32)]


def edited(bench: Bench) -> list[Row]:
    """memory of --edit that changes one line"""
    count = bench.size(1_000_000)
    bench.file("runs.txt", (b"d true --seed 1234567\n", count))
    size = (bench.dir / "runs.txt").stat().st_size

    def copies(scripts: pathlib.Path) -> float:
        command = ["env", "EDITOR=sed -i 3s/eed/eeed/", sys.executable, str(scripts / "runset4.py"), "--edit"]
        return bench.run([*command, "runs.txt"]).memory * MB / size

    return [row_beside(bench, f"`--edit` of a line in {count:,}: memory, in sizes of the file", copies, 4)]


def failed(bench: Bench) -> list[Row]:
    """operations per job of runners with -r that begin at once on the same failed lines"""
    jobs = bench.size(1000)
    lines = "".join(f"! true {number}\n" for number in range(jobs))

    def operations(scripts: pathlib.Path) -> float:
        return run(scripts, lines, 4, ["-j1", "-r"], 0.002, SHORT_SECONDS).total / jobs

    what = f"{jobs} failed `true`, 4 x `-r -j1`, 2 ms: operations per job"
    return [row_beside(bench, what, operations, 8.5)]


ROWS = counted, failed, waiting, edited


def main() -> int:
    asked = count(ROOT, JOBS, 1, 1, 0)
    found = (asked.total - PER_SECOND * asked.seconds) / JOBS
    print(f"{JOBS} short jobs as on NFS: {found:.2f} operations for each, {LIMIT} allowed "
          f"(beside {PER_SECOND} a second)")
    return int(found > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
