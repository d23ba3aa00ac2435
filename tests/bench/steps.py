"""Jobs that wait for jobs by name (after=), against as many lines with other settings."""
import functools
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterator

from tests.bench.counted import SHORT_SECONDS, earlier
from tests.bench.measure import ROOT, Bench, Row, compare, spread
from tests.real.rigs.counted import run

BEFORE = "da93b896"             # the last commit without after=
# A runner that writes its own CPU seconds, not those of its jobs, and the number of its walks, to a file
OWN_CPU = """
import resource, sys
sys.path.insert(0, sys.argv.pop(1))
import runmaker4
walks, begin = [], runmaker4.Cursor._begin_walk
def count_and_begin(*args, **options):
    walks.append(None)
    return begin(*args, **options)
runmaker4.Cursor._begin_walk = count_and_begin
code = runmaker4.main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
with open("cpu", "w") as file:
    file.write(f"{used.ru_utime + used.ru_stime} {len(walks)}")
sys.exit(code)
"""
# One walk from the top to the end, by a runner that can start none of the jobs
WALK = """
import math, resource, sys, time
sys.path.insert(0, sys.argv[1])
import runmaker4
cursor = runmaker4.Cursor(runmaker4.JobQueue(runmaker4.JobFile("runs.txt", say=print)),
                          [runmaker4.Consumer("alice")])
cursor.SLICE, began = math.inf, time.process_time()
assert not cursor.claim()
with open("cpu", "w") as file:
    file.write(f"{time.process_time() - began} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}")
"""
JOB = ". true # {}\n"


def by_sample(samples: int) -> Iterator[str]:
    for n in range(samples):
        yield f"#RUN name=a{n}\n{JOB}"
        yield f"#RUN name=b{n} after=a{n}\n{JOB}"
        yield f"#RUN after=b{n}\n{JOB}"


def by_step(samples: int) -> Iterator[str]:
    for settings in "name=a{0}", "name=b{0} after=a{0}", "after=b{0}":
        for n in range(samples):
            yield f"#RUN {settings.format(n)}\n{JOB}"


def chain(samples: int) -> Iterator[str]:
    yield f"#RUN name=s0\n{JOB}"
    for n in range(1, 3 * samples):
        yield f"#RUN name=s{n} after=s{n - 1}\n{JOB}"


def other_settings(samples: int) -> Iterator[str]:
    for n in range(3 * samples):
        yield f"#RUN timeout={n + 1000}\n{JOB}"


def plain(samples: int) -> Iterator[str]:
    yield from [JOB] * 3 * samples


def write(bench: Bench, lines: Iterator[str]) -> None:
    with open(bench.dir / "runs.txt", "w") as file:
        file.writelines(line.format(number) for number, line in enumerate(lines))


def measured(bench: Bench, script: str, *options: str, scripts: pathlib.Path = ROOT) -> tuple[float, float]:
    """The two numbers that such a process writes."""
    bench.remove("runs.txt.out")
    bench.run([sys.executable, "-c", script, str(scripts), *options])
    first, second = map(float, (bench.dir / "cpu").read_text().split())
    return first, second


def steps(bench: Bench) -> list[Row]:
    """the CPU of a runner for jobs that wait for jobs, against as many #RUN lines with a timeout"""
    samples, rows = bench.size(2000), []
    walks: dict[str, list[float]] = {}

    def cpu(make: Callable[[int], Iterator[str]], scripts: pathlib.Path = ROOT, slots: int = 2) -> float:
        write(bench, make(samples))
        seconds, count = measured(bench, OWN_CPU, "-q", f"-j{slots}", "runs.txt", scripts=scripts)
        walks.setdefault(make.__name__, []).append(count)
        return seconds / (3 * samples) * 1e6

    kinds = {"-j2, by sample": by_sample, "-j2, by step": by_step, "-j1, one chain": chain}
    variants: dict[str, Callable[[], float]] = {
        name: functools.partial(cpu, make, slots=int(name[2])) for name, make in kinds.items()}
    variants |= {"-j1": functools.partial(cpu, other_settings, slots=1),
                 "-j2": functools.partial(cpu, other_settings), "plain": functools.partial(cpu, plain)}
    for commit, scripts in earlier(bench, BEFORE).items():
        variants[commit] = functools.partial(cpu, plain, scripts)
    found = bench.interleave(variants)
    for name, make in kinds.items():
        row = compare(f"{3 * samples:,} x `true`, {name}: CPU of the runner for each job, against as many "
                      "`timeout=` lines", found[name], found[name[:3]], "us", most=1.1)
        most = max(walks[make.__name__])
        row.measured += f"; {most:.0f} walks at most"
        row.wanted += ", <= 10 walks"
        row.reached &= most <= 10
        rows.append(row)
    if BEFORE in found:
        rows.append(compare(f"the same without `#RUN` lines, against {BEFORE}", found["plain"], found[BEFORE],
                            "us", most=1.02))
    return rows


def samples(bench: Bench) -> list[Row]:
    """the first walk through 300,000 jobs that wait for jobs of another host"""
    count, seconds, memory = bench.size(100_000), [], []
    write(bench, (line.replace("name=a", "host=bob name=a") for line in by_sample(count)))
    for _ in range(bench.rounds):
        took, size = measured(bench, WALK)
        seconds.append(took)
        memory.append(size)
    reached = statistics.median(seconds) <= 10 and max(memory) <= 130
    return [Row(f"first walk through {count:,} samples of three steps, none of which can start",
                f"{spread(seconds)} s CPU, {max(memory):.0f} MB", "<= 10 s, <= 130 MB", reached)]


def steps_nfs(bench: Bench) -> list[Row]:
    """operations per job that waits for another, on a directory that counts as NFS does"""
    jobs = bench.size(150)

    def operations(make: Callable[[int], Iterator[str]]) -> float:
        text = "".join(line.format(number) for number, line in enumerate(make(jobs)))
        return run(ROOT, text, 1, ["-j2"], 0.001, SHORT_SECONDS).total / (3 * jobs)

    found = bench.interleave({"ours": lambda: operations(by_sample), "plain": lambda: operations(plain)})
    more = statistics.median(found["ours"]) - statistics.median(found["plain"])
    return [Row(f"{3 * jobs} x `true`, `-j2`, 1 ms, by sample: operations per job more than without after=",
                f"{more:.2f}: {spread(found['ours'], 2)} against {spread(found['plain'], 2)}", "<= 2",
                more <= 2)]


ROWS = steps, samples, steps_nfs
