"""Jobs of random need on a runner with less memory than all of them take, against list scheduling."""
import heapq
import random
import statistics
from collections.abc import Sequence

from tests.bench.measure import RUNMAKER, Bench, Row

HAS = 600                       # MB of the runner
HOLD = "import sys, time; data = b'x' * ((int(sys.argv[1]) - 9) << 20); time.sleep(float(sys.argv[2]))"


def memory(bench: Bench) -> list[Row]:
    """a campaign of jobs of random need against list scheduling"""
    count = bench.size(200)
    ratios = [campaign(bench, random.Random(seed), count) for seed in range(bench.rounds)]
    what = f"{count} jobs of 10 to 200 MB on a runner with {HAS} MB, time against list scheduling"
    middle = statistics.median(ratios)
    measured = f"{middle:.2f} ({min(ratios):.2f}-{max(ratios):.2f}) x"
    return [Row(what, measured, "<= 1.2 x", middle <= 1.2)]


def campaign(bench: Bench, draws: random.Random, count: int) -> float:
    """How much longer the runner takes than list scheduling with what its jobs have taken."""
    needs = [draws.randint(10, 200) for _ in range(count)]
    bench.remove("joblog")
    bench.file("hold.py", (HOLD.encode(), 1))
    bench.file("runs.txt", *(
        (b"#RUN memory=%dM\n. python3 -S hold.py %d %.2f\n" % (need, need, draws.uniform(0.5, 3)), 1)
        for need in needs
    ))
    bench.run([*RUNMAKER, "-q", "-j50", f"--memory={HAS}M", "--joblog=joblog", "runs.txt"])
    rows = [line.split("\t") for line in (bench.dir / "joblog").read_text().splitlines()[1:]]
    runs = sorted((int(number), float(start), float(seconds)) for number, _, start, seconds, *_ in rows)
    took = max(start + seconds for _, start, seconds in runs) - min(start for _, start, _ in runs)
    return took / list_scheduling([seconds for _, _, seconds in runs], needs)


def list_scheduling(seconds: Sequence[float], needs: Sequence[int]) -> float:
    """The time when the last job ends, if each begins as soon as it fits, the first that fits first."""
    waiting = list(range(len(needs)))
    running: list[tuple[float, int]] = []           # when jobs end, and which
    free = HAS
    now = 0.0
    while waiting or running:
        for job in list(waiting):
            if needs[job] <= free:
                free -= needs[job]
                waiting.remove(job)
                heapq.heappush(running, (now + seconds[job], job))
        now, job = heapq.heappop(running)
        free += needs[job]
    return now


ROWS = (memory,)
