"""The rows of the benchmarks that are about what becomes of whole lists and logs."""
import itertools
import sys
from collections.abc import Iterator

from tests.bench.measure import MB, ROOT, RUNWAIT, Bench, Row, within
from tests.journal import BEGAN, pair

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


ROWS = (lists, timeline, report)
