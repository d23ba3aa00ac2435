"""How far apart the commands of a group (`together=`) start: from the first to the last, in milliseconds.

What starts is `echo $JOB_ID > fifo`, which a shell does by itself: nothing is executed that has to be loaded
first.  A process that does nothing else reads the FIFO and notes when each line comes, with real-time
priority where that is allowed.  Figures are the median of the groups, with least and most.  For comparison,
so many shells on this machine without server and clients: forked one after another, and forked before and
then woken one after another.

Clients at delays are behind proxies that pass on what they send and get, each a while of its own later, and
their monotonic clocks are years apart (time namespaces), as on hosts that were not booted together.
"""
import contextlib
import gc
import multiprocessing
import os
import pathlib
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, Callable

from tests.bench.measure import Bench, Row
from tests.bench.tcp import CLIENT, HOST, assert_all_done, peer, run_result, serving

GROUPS = 20
PATIENCE = 120.0                        # seconds for a group to start
YEARS = 100_000_000                     # seconds between the clocks of two clients
FORK = multiprocessing.get_context("fork")
Arrival = tuple[int, float]             # a line, and when it came, in seconds of the monotonic clock


def hurry() -> None:
    """Have this process go before all others whenever it has something to do, where that is allowed."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


@contextlib.contextmanager
def process(function: Callable[..., None], *args: object) -> Iterator[Connection]:
    """A process that runs function(*args, connection) for the time of the block; the other end of its
    connection.
    """
    ours, its = FORK.Pipe()
    worker = FORK.Process(target=function, args=(*args, its), daemon=True)
    worker.start()
    its.close()
    try:
        yield ours
    finally:
        worker.kill()
        worker.join()
        ours.close()


def receive(connection: Connection, what: str) -> Any:
    """The next thing that a process has to say."""
    if not connection.poll(PATIENCE):
        raise SystemExit(f"not within {PATIENCE:.0f} s: {what}")
    return connection.recv()


# -- when things start ---------------------------------------------------------------------------------------

def on_arrivals(fifo: pathlib.Path, size: int, connection: Connection) -> None:
    """Read lines from a FIFO, for ever; say when they came each time there are so many."""
    hurry()
    gc.disable()
    # not only for reading: so there is always a writer, and no end
    source = os.open(fifo, os.O_RDWR)
    connection.send("ready")
    arrivals: list[Arrival] = []
    while True:
        data = os.read(source, 1 << 16)
        now = time.monotonic()
        arrivals += [(int(line), now) for line in data.split()]
        if len(arrivals) >= size:
            connection.send(arrivals[:size])
            del arrivals[:size]


@contextlib.contextmanager
def reading(bench: Bench, size: int) -> Iterator[Callable[[set[int]], float]]:
    """The FIFO is read for the time of the block: a function that waits for lines and gives their skew in ms.
    """
    bench.remove("fifo")
    os.mkfifo(bench.dir / "fifo")
    with process(on_arrivals, bench.dir / "fifo", size) as connection:
        receive(connection, "the FIFO is open")

        def skew(lines: set[int]) -> float:
            arrivals = receive(connection, f"lines {min(lines)} to {max(lines)} have started")
            if {line for line, _ in arrivals} != lines:
                raise SystemExit(f"other lines than {min(lines)} to {max(lines)} have started: {arrivals}")
            times: list[float] = [when for _, when in arrivals]
            return 1000 * (max(times) - min(times))

        yield skew


# -- shells without server and clients -----------------------------------------------------------------------

def fork_shells(bench: Bench, count: int, script: str) -> list[int]:
    """Start shells one after another; their processes.  $0 is their number (from 0), $1 the FIFO."""
    fifo = str(bench.dir / "fifo")
    return [
        os.posix_spawn("/bin/sh", ["sh", "-c", script, str(number), fifo], os.environ)
        for number in range(count)
    ]


def loop_skews(bench: Bench, count: int, groups: int) -> list[float]:
    """Shells that are forked one after another."""
    skews = []
    with reading(bench, count) as skew:
        for _ in range(groups):
            pids = fork_shells(bench, count, 'echo $0 > "$1"')
            skews.append(skew(set(range(count))))
            for pid in pids:
                os.waitpid(pid, 0)
    return skews


def woken_skews(bench: Bench, count: int, groups: int) -> list[float]:
    """Shells that wait, and are woken one after another."""
    skews = []
    with reading(bench, count) as skew:
        for _ in range(groups):
            pids = fork_shells(bench, count, 'echo -$0 > "$1"; kill -STOP $$; echo $0 > "$1"')
            skew({-number for number in range(count)})      # they are there,
            for pid in pids:
                os.waitpid(pid, os.WUNTRACED)               # and wait
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            skews.append(skew(set(range(count))))
            for pid in pids:
                os.waitpid(pid, 0)
    return skews


# -- clients at delays ---------------------------------------------------------------------------------------

def has_time_namespaces() -> bool:
    """Whether processes can have monotonic clocks of their own here."""
    try:
        probe = subprocess.run([*other_clock(1), "true"], stderr=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        return False
    return probe.returncode == 0


def other_clock(number: int) -> list[str]:
    """The words before a command whose monotonic clocks shall be ahead of ours."""
    user = [] if os.geteuid() == 0 else ["-r"]
    shift = str(number * YEARS)
    return ["unshare", *user, "--time", "--monotonic", shift, "--boottime", shift, "--fork", "--kill-child"]


# -- groups --------------------------------------------------------------------------------------------------

def write_groups(bench: Bench, size: int, groups: int) -> list[set[int]]:
    """Make runs.txt of groups, one after another, each with a line for each of h0, h1, ...; the lines of each
    group.
    """
    hosts = ",".join(f"h{number}" for number in range(size))
    text, lines, number = b"", [], 0
    for group in range(groups):
        text += f"#RUN barrier\n#RUN together=group{group} host={hosts}\n".encode()
        text += b". echo $JOB_ID > fifo\n" * size
        lines.append(set(range(number + 3, number + 3 + size)))
        number += 2 + size
    (bench.dir / "runs.txt").write_bytes(text)
    return lines


def group_skews(bench: Bench, ports: Callable[[int], list[int]], size: int, groups: int,
                before: Callable[[int], list[str]] = lambda number: []) -> list[float]:
    """The skews of groups of `size` clients.

    ports: where the clients find the server of a port; before: the words before the command of a client.
    """
    lines = write_groups(bench, size, groups)
    with (
        reading(bench, size) as skew,
        contextlib.ExitStack() as clients,
        serving(bench, "--exit-when-done") as server,
    ):
        started = [
            bench.start([*before(number), *CLIENT, "-q", "--follow", "--name", f"h{number}",
                         "--port", str(port), HOST])
            for number, port in enumerate(ports(server.port))
        ]
        for client in started:
            clients.enter_context(run_result(client))
        skews = [skew(group) for group in lines]
        for client in started:
            client.wait(PATIENCE)
    assert_all_done(bench, size * groups)
    return skews


def spread(values: list[float]) -> str:
    """The median, with least and most."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def row(bench: Bench, what: str, size: int, skews: list[float], most: float) -> Row:
    """A row: these skews, and what this machine can do without server and clients."""
    loop, woken = (measure(bench, size, len(skews)) for measure in (loop_skews, woken_skews))
    beside = f"{size} shells forked in a loop {spread(loop)}, woken in a loop {spread(woken)} ms"
    return Row(
        f"from the first to the last start of a group of {size} clients {what}, {len(skews)} groups",
        f"{spread(skews)} ms; {beside}",
        f"median <= {most:g} ms",
        statistics.median(skews) <= most,
    )


def on_loopback(bench: Bench, size: int, most: float, groups: int) -> list[Row]:
    skews = group_skews(bench, lambda port: [port] * size, size, groups)
    return [row(bench, "on loopback", size, skews, most)]


def skew_8(bench: Bench, groups: int = GROUPS) -> list[Row]:
    """the skew of a group of 8 clients"""
    return on_loopback(bench, 8, 2, groups)


def skew_64(bench: Bench, groups: int = GROUPS) -> list[Row]:
    """the skew of a group of 64 clients"""
    return on_loopback(bench, 64, 15, groups)


def skew_delays(bench: Bench, groups: int = GROUPS) -> list[Row]:
    """the skew of a group of 8 clients at delays of 0 to 50 ms each way"""
    delays = [0.050 * number / 7 for number in range(8)]
    clocks = has_time_namespaces()
    before = other_clock if clocks else lambda number: []
    with contextlib.ExitStack() as stack:
        def ports(port: int) -> list[int]:
            return [int(stack.enter_context(peer(bench, "proxy", port, delay))()) for delay in delays]

        skews = group_skews(bench, ports, 8, groups, before)
    what = "at 0 to 50 ms each way, " + (
        "with clocks that differ" if clocks else "with one clock (no namespaces here)"
    )
    return [row(bench, what, 8, skews, 5)]


ROWS = (skew_8, skew_64, skew_delays)
