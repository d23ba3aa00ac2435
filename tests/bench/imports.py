"""The rows of the benchmarks that are about what becomes of whole lists and logs."""
import collections
import itertools
import json
import re
import sys
from collections.abc import Iterator

from tests.bench.measure import MB, ROOT, RUNWAIT, Bench, Row, Used, compare, within
from tests.support.journal import BEGAN, pair

RUNSET = [sys.executable, str(ROOT / "runset4.py")]

TEMPLATE = "./simulate --in {} --out {/.}.{#}"


def command(number: int) -> str:
    return f"./simulate --seed {number} --out 'results/{number}.dat'"


def journal(count: int) -> Iterator[bytes]:
    """A journal of the same hosts and slots, of runs from 10 to 20 s."""
    for number in range(count):
        slot = number % 128
        yield from pair(number, number + 1, command(number), BEGAN + number // 128 * 20,
                        host=f"node{slot // 16}", slot=str(slot % 16 + 1), pid=4712,
                        took=10 + number * 7919 % 10_000 / 1000)


def write(bench: Bench, name: str, lines: Iterator[bytes]) -> None:
    with open(bench.dir / name, "wb") as file:
        while some := b"".join(itertools.islice(lines, 1000)):
            file.write(some)


def short_runs(count: int) -> Iterator[bytes]:
    """The journal of short jobs, of which one in twenty fails, byte by byte as a runner writes it."""
    for number in range(1, count + 1):
        host, seconds, failed = f"node{number % 8}", (2 + number * 7919 % 500) / 1000, number % 20 == 0
        fields = {
            "time": round(BEGAN + number / 100 + seconds, 3), "event": "end",
            "run": f"{host}-4711-{int(BEGAN) * 1000 + number}-{number % 1000}", "line": number,
            "command": command(number), "host": host, "slot": str(number % 16 + 1),
            "pid": 4712 + number % 30_000, "runner": 1783855833, "directory": "/home/me/simulation",
            "files": [], "state": "!" if failed else "d", "exit": 3 if failed else 0, "signal": 0,
            "cause": "", "seconds": seconds, "cpu": round(0.9 * seconds, 3), "memory": None,
            "memory_below": 42_000_000 + number % 1000 * 4096, "bytes": 9, "stdout": f"{number / 2:.2f}\n",
        }
        if failed:
            fields["stderr"] = f"no convergence in step {number}\n"
        yield json.dumps(fields).encode() + b"\n"


def views(bench: Bench) -> list[Row]:
    """CPU and memory of views of a million short runs, against json.loads() of each line"""
    count = bench.size(1_000_000)
    (bench.dir / "out").mkdir()
    write(bench, "out/journal", short_runs(count))
    states = itertools.cycle("d" * 19 + "!")
    lines = (f"{next(states)} {command(number)}\n" for number in range(1, count + 1))
    write(bench, "runs.txt", map(str.encode, lines))
    parse = "import json\nfor line in open('out/journal', 'rb'): json.loads(line)"
    calls = {"json": [sys.executable, "-c", parse]}
    most = {"--output --csv": 3, "--stats": 2.5, "--report out.html": 2.5, "--failed": 1.5}
    calls.update((option, [*RUNWAIT, "--outdir", "out", *option.split(), "runs.txt"]) for option in most)
    used: dict[str, list[Used]] = {name: [] for name in calls}
    for _ in range(bench.rounds):
        for name, call in calls.items():
            used[name].append(bench.run(call))
    bench.remove("out", "out.html", "runs.txt")
    rows = []
    for option, bound in most.items():
        took, parsing = ([1000 * one.cpu for one in used[name]] for name in (option, "json"))
        what = f"`{option}` of {count:,} short runs, CPU against `json.loads()` of each line"
        row = compare(what, took, parsing, "ms", most=bound)
        memory = max(one.memory for one in used[option])
        rows.append(Row(what, f"{row.measured}; {memory:.0f} MB", f"{row.wanted}, <= 200 MB",
                        row.reached and memory <= 200))
    return rows


def equal(bench: Bench) -> list[Row]:
    """CPU and memory of --output of equal lines and --edit by sed, for ten times as many lines"""
    output = [*RUNWAIT, "--outdir", "out", "--output", "--csv", "equal"]
    edit = ["env", "EDITOR=sed -i s/seed.1/seed=1/", *RUNSET, "-q", "--edit", "runs.txt"]
    calls = {"`--output --csv` of {:,} equal lines": output, "`--edit` of {:,} lines by `sed`": edit}
    few, many = bench.size(50_000), bench.size(500_000)
    used: dict[tuple[str, int], list[Used]] = collections.defaultdict(list)
    for count in [few, many] * bench.rounds:
        (bench.dir / "out").mkdir()
        write(bench, "out/journal", (re.sub(rb'(?<="command": )".*?"', b'"simulate"', end)
                                     for end in short_runs(count)))
        # one in twenty has failed
        bench.file("equal", *[(b"d simulate\n", 19), (b"! simulate\n", 1)] * (count // 20))
        write(bench, "runs.txt", (f". {command(number)}\n".encode() for number in range(count)))
        for what, call in calls.items():
            used[what, count].append(bench.run(call))
        bench.remove("out", "equal", "runs.txt")
    rows = []
    for what in calls:
        large, small = ([1000 * one.cpu for one in used[what, count]] for count in (many, few))
        row = compare(f"{what.format(many)}, CPU against {few:,}", large, small, "ms", most=12)
        memory = max(one.memory for one in used[what, many]) / max(one.memory for one in used[what, few])
        rows.append(Row(row.what, f"{row.measured}; {memory:.1f} x the memory", f"{row.wanted}, <= 10 x",
                        row.reached and memory <= 10))
    return rows


def report(bench: Bench) -> list[Row]:
    """a report of a million jobs that are done"""
    count = bench.size(1_000_000)
    (bench.dir / "out").mkdir()
    write(bench, "out/journal", journal(count))
    write(bench, "runs.txt", (f"d {command(number)}\n".encode() for number in range(count)))
    call = [*RUNWAIT, "--outdir", "out", "--report", "out.html", "runs.txt"]
    used = [bench.run(call) for _ in range(bench.rounds)]
    size = (bench.dir / "out.html").stat().st_size
    bench.remove("out", "out.html", "runs.txt")
    return [within(f"report of {count:,} runs", used, 15, 500, f" (a file of {size / MB:.1f} MB)")]


def timeline(bench: Bench) -> list[Row]:
    """a timeline of a million runs"""
    count = bench.size(1_000_000)
    (bench.dir / "out").mkdir()
    write(bench, "out/journal", journal(count))
    used = []
    for _ in range(bench.rounds):
        used.append(bench.run([*RUNWAIT, "--outdir", "out", "--timeline", "out.json"]))
        if bench.count("out.json", b'{"ph":"X"') != count:
            raise SystemExit("not all jobs are on the timeline")
    size = (bench.dir / "out.json").stat().st_size
    bench.remove("out", "out.json")
    return [within(f"timeline of {count:,} runs", used, 15, 500, f" (a file of {size / MB:.1f} MB)")]


def numbered(bench: Bench, name: str, line: str, count: int) -> None:
    """Write a file of lines with a number each."""
    bench.file(name)
    with open(bench.dir / name, "w") as file:
        for number in range(1_000_000, 1_000_000 + count):
            file.write(line % number)


def lists(bench: Bench) -> list[Row]:
    """seconds and memory to import a list of a million lines"""
    count = bench.size(1_000_000)
    numbered(bench, "commands", "./simulate --seed %d\n", count)
    numbered(bench, "names", "data/run %d/input.dat\n", count)
    rows = []
    for title, words in ((f"`--add-list`, {count:,} commands", ["--add-list", "commands"]),
                         (f"`--add-list --template '{TEMPLATE}'`, {count:,} names with a blank",
                          ["--add-list", "names", "--template", TEMPLATE])):
        used = []
        for _ in range(bench.rounds):
            bench.remove("runs.txt")
            used.append(bench.run([*RUNSET, "runs.txt", *words]))
            if bench.count("runs.txt", b". ./simulate --") != count:
                raise SystemExit("not all lines were added")
        rows.append(within(title, used, 3, 100))
    bench.remove("commands", "names", "runs.txt")
    return rows


ROWS = (lists, timeline, report, views, equal)
