"""Benchmarks: what the figures in README.md beside this file are made of.

    python3 -m tests.bench                          all rows, 5 rounds each
    python3 -m tests.bench status idle              these rows only (tcp_...: server and clients)
    python3 -m tests.bench --quick                  a tenth of the sizes, to see that it works

Speed is compared, not absolute: what is measured and its peers run in turn (A B A B) within one run, and a
figure is the median of the rounds' ratios.  Peers are xargs and GNU parallel; one that is missing is named as
missing.  Memory is the peak of the process as the kernel counts it (ru_maxrss; of servers VmHWM).
RUNMAKER4_TEST_DIR=DIR measures elsewhere.
"""
import argparse
import compileall
import functools
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from typing import Callable

from tests.bench import beside, counted, fs, imports, memory, nfs, steps, tcp
from tests.bench.measure import (
    MB,
    ROOT,
    RUNMAKER,
    RUNWAIT,
    Bench,
    Row,
    Used,
    compare,
    cpu_seconds,
    spread,
    within,
)
from tests.support.installed import install

# -- the rows ------------------------------------------------------------------------------------------------

def throughput(bench: Bench) -> list[Row]:
    """jobs per second against xargs and GNU parallel"""
    count = bench.size(10_000)          # so many that the start is no part of it
    return [*against_peers(bench, count, 2), *against_peers(bench, count, 4)]


def against_peers(bench: Bench, count: int, slots: int) -> list[Row]:
    bench.file("list", (b"true\n", count))

    def ours() -> float:
        bench.file("runs.txt", (b". true\n", count))
        return count / bench.run([*RUNMAKER, f"-j{slots}", "runs.txt"]).seconds

    def parallel() -> float:
        bench.remove("joblog")
        return count / bench.run(["parallel", f"-j{slots}", "--joblog", "joblog"], "list").seconds

    peers = {"xargs": lambda: bench.rate_of_xargs(count, slots), "parallel": parallel}
    peers = {name: peer for name, peer in peers.items() if shutil.which(name)}
    rates = bench.interleave({"ours": ours, **peers})
    rows = []
    for peer, title, least in (("xargs", f"`xargs -P{slots} -n1 sh -c`", 0.9),
                               ("parallel", "GNU parallel `--joblog`", 4)):
        what = f"{count:,} x `true`, `-j{slots}`, against {title}"
        if peer not in rates:
            measured = f"{spread(rates['ours'])} jobs/s; {peer} is missing here"
            rows.append(Row(what, measured, f">= {least} x", True))
            continue
        rows.append(compare(what, rates["ours"], rates[peer], "jobs/s", least=least))
    return rows


MOST_CALLS = 40                     # two thirds of what it was in November 2026
# a runner that writes the CPU seconds that it has itself used, not its jobs, to a file
OWN_CPU = """
import resource, sys
sys.path.insert(0, sys.argv.pop(1))
import runmaker4
code = runmaker4.main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
with open("cpu", "w") as file:
    file.write(str(used.ru_utime + used.ru_stime))
sys.exit(code)
"""


def short_job(bench: Bench) -> list[Row]:
    """what a short job costs the runner itself, and jobs per second against xargs"""
    count = bench.size(4000)
    bench.file("list", (b"true\n", count))

    def run(*words: str) -> float:
        bench.file("runs.txt", (b". true\n", count))
        return bench.run([*words, "-j2", "runs.txt"]).seconds

    def own_cpu() -> float:
        run(sys.executable, "-c", OWN_CPU, str(ROOT))
        return float((bench.dir / "cpu").read_text()) / count * 1_000_000

    def system_calls() -> float:
        run("strace", "-c", "-o", "calls", *RUNMAKER)
        return int((bench.dir / "calls").read_text().split("\n")[-2].split()[3]) / count

    rates = bench.interleave({"ours": lambda: count / run(*RUNMAKER),
                              "xargs": lambda: bench.rate_of_xargs(count, 2), "cpu": own_cpu})
    what = f"{count:,} x `true`, `-j2`"
    rows = [compare(f"{what}, against `xargs -P2 -n1 sh -c`", rates["ours"], rates["xargs"], "jobs/s",
                    least=0.67),
            Row(f"{what}: CPU of the runner itself for each job, with its start",
                f"{spread(rates['cpu'])} us", "<= 480 us", statistics.median(rates["cpu"]) <= 480)]
    title = f"{what}: system calls of the runner's own thread for each job, with its start"
    if shutil.which("strace"):
        calls = system_calls()
        return [*rows, Row(title, f"{calls:.1f}", f"<= {MOST_CALLS}", calls <= MOST_CALLS)]
    return [*rows, Row(title, "not measured: strace is missing here", f"<= {MOST_CALLS}", True)]


def sinks(bench: Bench) -> list[Row]:
    """jobs per second with records, -l, --joblog, --outdir"""
    count = bench.size(2000)
    options = {"plain": ["--no-records"], "no option": [], "`-l`": ["--no-records", "-l", "outputs"],
               "`--joblog`": ["--no-records", "--joblog", "joblog"], "`--outdir`": ["--outdir", "out"]}

    def rate(extra: list[str]) -> float:
        bench.remove("outputs", "joblog", "out", "runs.txt.out")
        bench.file("runs.txt", (b". true\n", count))
        return count / bench.run([*RUNMAKER, "-j2", *extra, "runs.txt"]).seconds

    def files() -> float:
        """What the file system alone takes for the files of --outdir, in ms."""
        bench.remove("out")
        os.mkdir(bench.dir / "out")
        began = time.perf_counter()
        for number in range(2 * count):
            bench.file(f"out/{number}")
        return (time.perf_counter() - began) * 1000

    variants = {name: lambda extra=extra: rate(extra) for name, extra in options.items()}
    rates = bench.interleave({**variants, "files": files})
    rows = []
    for name in list(options)[1:]:
        what = f"{count:,} x `true`, `-j2`, with {name}, against `--no-records`"
        rows.append(compare(what, rates[name], rates["plain"], "jobs/s", least=0.85))
    rows[-1].measured += f"; to make {2 * count:,} empty files alone takes {spread(rates['files'])} ms here"
    return rows


def start(bench: Bench) -> list[Row]:
    """from the start of the scripts to what they are for, as they are and installed, against Python alone"""
    install(bench.dir)
    compileall.compile_dir(bench.dir / "site", quiet=2)
    bench.file("done.txt", (b"d true\n", 1))

    def installed(name: str) -> list[str]:
        return [sys.executable, str(bench.dir / "bin" / name)]

    def first_job(runner: list[str]) -> float:
        bench.file("runs.txt", (b". : > started\n", 1))
        return bench.until_first_job(runner)[0] * 1000

    def end(*command: str) -> float:
        return bench.run([*command]).seconds * 1000

    least, more = "import argparse", "import asyncio, argparse"
    variants = {
        "script": lambda: first_job(RUNMAKER), "runner": lambda: first_job(installed("runmaker4")),
        "status": lambda: end(*installed("runwait4"), "--status", "done.txt"),
        "add": lambda: end(*installed("runset4"), "more.txt", "--add", "true"),
        least: lambda: end(sys.executable, "-c", least), more: lambda: end(sys.executable, "-c", more)}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(4):                              # short: more rounds
        for name, values in bench.interleave(variants).items():
            times[name] += values

    def row(what: str, name: str, python: str, most: float) -> Row:
        title = f"{what}, against `python3 -c '{python}'`"
        return compare(title, times[name], times[python], "ms", most=most)

    return [row("start to first job, 1-line file", "script", more, 1.7),
            row("the same, installed", "runner", more, 1.3),
            row("`runwait4 --status`, 1-line file, installed", "status", least, 1.3),
            row("`runset4 --add`, installed", "add", least, 1.3)]


def skip(bench: Bench) -> list[Row]:
    """the first job behind a million that are done"""
    count = bench.size(1_000_000)
    took = []
    for _ in range(bench.rounds):
        bench.file("runs.txt", (b"d ./simulate --seed 123456\n", count), (b". : > started\n", 1),
                   (b". true\n", 1))
        first, used = bench.until_first_job()
        took.append(Used(first, used.memory))
    return [within(f"first job of {count + 2:,} lines whose first {count:,} are `d`", took, 0.35, 60)]


def directives(bench: Bench) -> list[Row]:
    """the same with a thousand directives between the lines"""
    count = bench.size(1_000_000)
    last = (b". : > started\n", 1), (b". true\n", 1)
    done = b"d ./simulate --seed 123456\n"

    def plain() -> float:
        bench.file("runs.txt", (done, count), *last)
        return 1000 * bench.until_first_job()[0]

    def directed() -> float:
        bench.file("runs.txt", (b"#RUN timeout=1h host=*\n" + done * (count // 1000), 1000), *last)
        return 1000 * bench.until_first_job()[0]

    times = bench.interleave({"plain": plain, "directed": directed})
    what = f"the same with 1,000 `#RUN` lines among {count:,} others, against without"
    return [compare(what, times["directed"], times["plain"], "ms", most=1.2)]


def scale(bench: Bench) -> list[Row]:
    """the cost of a job in a file of a million lines"""
    large, jobs = bench.size(1_000_000), 900

    def cost(*parts: tuple[bytes, int]) -> Callable[[], float]:
        def measure() -> float:
            bench.file("runs.txt", *parts)
            return bench.until_jobs_done("runs.txt", 50, jobs) / (jobs - 50) * 1e6
        return measure

    costs = bench.interleave({"small": cost((b". true\n", 1000)), "new": cost((b". true\n", large)),
                              "end": cost((b"d true\n", large - 1000), (b". true\n", 1000))})
    rows = []
    for name, which in ("new", "all of them new"), ("end", "the last thousand new"):
        what = f"cost per job in a file of {large:,} lines, {which}, against one of 1,000"
        rows.append(compare(what, costs[name], costs["small"], "us", most=1.2))
    return rows


def many(bench: Bench) -> list[Row]:
    """many runners on one file"""
    count = bench.size(8000)

    def rate(runners: int, slots: int) -> float:
        bench.file("runs.txt", (b". true\n", count))
        return count / bench.run_all([[*RUNMAKER, f"-j{slots}", "runs.txt"]] * runners)

    rates = bench.interleave({"eight": lambda: rate(8, 1), "one": lambda: rate(1, 8)})
    what = f"8 runners `-j1` on one file of {count:,} jobs, against one `-j8`"
    return [compare(what, rates["eight"], rates["one"], "jobs/s", least=0.8)]


def output(bench: Bench) -> list[Row]:
    """one job that prints 200 MB in lines of 80 bytes"""
    size = bench.size(200 * MB)
    job = f". yes {'x' * 79} | head -c {size}\n".encode()
    memory: dict[str, list[float]] = {}

    def rate(name: str, options: list[str], piped: bool) -> float:
        bench.remove("out")
        bench.file("runs.txt", (job, 1))
        command = [*RUNMAKER, *options, "runs.txt"]
        used, total = bench.run_piped(command) if piped else (bench.run(command), size)
        kept = bench.dir / "out/1.out"
        if total < size or (options and kept.stat().st_size != size):
            raise SystemExit(f"{name}: output was lost")
        memory.setdefault(name, []).append(used.memory)
        return size / used.seconds / MB

    kinds = {"`--outdir -q`": (["-q", "--outdir", "out"], False, 150),
             "`--outdir`, console to /dev/null": (["--outdir", "out"], False, 150),
             "a piped console": ([], True, 60)}
    rates = bench.interleave(
        {name: functools.partial(rate, name, words, piped) for name, (words, piped, _) in kinds.items()}
    )
    rows = []
    for name, (_, _, least) in kinds.items():
        middle, most = statistics.median(rates[name]), max(memory[name])
        measured = f"{spread(rates[name])} MB/s, {most:.0f} MB memory"
        rows.append(Row(f"one job printing {size // MB} MB to {name}", measured,
                        f">= {least} MB/s, <= 60 MB", middle >= least and most <= 60))
    return rows


def status(bench: Bench) -> list[Row]:
    """counting the states of a million lines"""
    count = bench.size(1_000_000)
    states = b"d", b"!", b"e", b"."
    bench.file("runs.txt", *[(state + b" ./simulate --seed 123456\n", count // 4) for state in states])
    used = [bench.run([*RUNWAIT, "--status", "runs.txt"]) for _ in range(bench.rounds)]
    return [within(f"`runwait4.py --status runs.txt` on {count:,} lines", used, 0.7, 60)]


def idle(bench: Bench) -> list[Row]:
    """the share of a core of who waits"""
    seconds = 4 if bench.quick else 20
    bench.file("runs.txt", (b". sleep 600\n", 2))
    bench.file("done.txt", (b"d true\n", 2))
    commands = {"a runner with 2 running jobs": [*RUNMAKER, "-j2", "runs.txt"],
                "a runner with `--follow` and nothing to do": [*RUNMAKER, "--follow", "done.txt"],
                "`runwait4.py` on running jobs": [*RUNWAIT, "runs.txt"]}
    processes = {}
    try:
        for name, command in commands.items():
            processes[name] = bench.start(command)
            time.sleep(1)                           # the jobs run before somebody waits for them
        before = {name: cpu_seconds(process.pid) for name, process in processes.items()}
        time.sleep(seconds)
        used = {name: cpu_seconds(process.pid) - before[name] for name, process in processes.items()}
        gone = [name for name, process in processes.items() if process.poll() is not None]
        if gone:
            raise SystemExit(f"did not wait: {gone[0]}: {bench.errors.read_text()[-2000:]}")
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.wait(30)
    shares = {name: 100 * value / seconds for name, value in used.items()}
    return [Row(f"idle: {name}", f"{share:.2f} % of a core", "<= 1 % of a core", share <= 1)
            for name, share in shares.items()]


LOCAL = (throughput, short_job, sinks, start, skip, directives, scale, many, output, status, idle)
ROWS = {function.__name__: function for function in (*LOCAL, *memory.ROWS, *imports.ROWS, *tcp.ROWS,
                                               *nfs.ROWS, *counted.ROWS, *steps.ROWS, *fs.ROWS,
                                               beside.beside)}


# -- the list ------------------------------------------------------------------------------------------------

def machine(directory: pathlib.Path) -> str:
    """CPU, cores, kernel, Python and the file system of the files, in one line."""
    model = "unknown processor"
    for line in pathlib.Path("/proc/cpuinfo").read_text().split("\n"):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    listed = subprocess.run(["df", "--output=fstype", directory], capture_output=True, text=True, check=False)
    kind = (listed.stdout.split() or ["unknown file system"])[-1]
    return (f"{model}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}, "
            f"{platform.python_implementation()} {platform.python_version()}, files on {kind}")


def item(row: Row, missed: bool) -> str:
    """A row as an item of a Markdown list, in lines of at most 119 columns."""
    # not to be broken
    wanted = f"must reach {row.wanted}{' **(not reached)**' if missed else ''}".replace(" ", "\0")
    text = f"{row.measured}; {wanted}" if row.wanted else row.measured
    lines = textwrap.wrap(text, 119, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join([f"- {row.what}:", *lines]).replace("\0", " ")


def main() -> int:
    listed = "\n".join(f"  {name:12}{function.__doc__}" for name, function in ROWS.items())
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench", description=__doc__,
                                     epilog=f"rows:\n{listed}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows to measure [all]")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds per row [5]")
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in ROWS]
    if unknown or options.rounds < 1:
        parser.error(f"no such row: {' '.join(unknown)}" if unknown else "at least one round")
    with tempfile.TemporaryDirectory(prefix="runmaker4-bench-",
                                     dir=os.environ.get("RUNMAKER4_TEST_DIR")) as directory:
        bench = Bench(pathlib.Path(directory).resolve(), options.rounds, options.quick)
        print(f"{machine(bench.dir)}; {options.rounds} rounds{', quick' if options.quick else ''}\n")
        # so that nobody pays for reading the modules the first time
        bench.run([*RUNMAKER, "--help"])
        for name in options.names or ROWS:
            for row in ROWS[name](bench):
                text = (
                    row if isinstance(row, str) else item(row, missed=not row.reached and not options.quick)
                )
                print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
