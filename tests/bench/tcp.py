"""The rows of the benchmarks that are about TCP.

Server, clients and what is between them run on the loopback.
"""
import contextlib
import os
import re
import select
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Callable

from tests.bench.measure import (
    MB,
    ROOT,
    RUNMAKER,
    Bench,
    Row,
    Used,
    compare,
    cpu_seconds,
    peak_memory,
    spread,
)
from tests.support.ports import free_port
from tests.support.values import present

SERVER = [sys.executable, str(ROOT / "runmaker4-server.py")]
CLIENT = [sys.executable, str(ROOT / "runmaker4-client.py")]
PEERS = [sys.executable, str(ROOT / "tests" / "bench" / "peers.py")]
HOST = "127.0.0.1"


@contextlib.contextmanager
def run_result(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End a process after the block."""
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)
        if process.stdout:
            process.stdout.close()


@contextlib.contextmanager
def serving(bench: Bench, *options: str, file: str = "runs.txt") -> Iterator[tuple[int, int]]:
    """A server of a file on a free port, for the time of the block: its pid and its port."""
    said = bench.errors.stat().st_size if bench.errors.exists() else 0
    with run_result(bench.start([*SERVER, "--host", HOST, "--port", "0", *options, file])) as process:
        port, end = None, time.monotonic() + 30
        while not port:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server does not serve: {bench.errors.read_text()[said:]}")
            time.sleep(0.01)
            port = re.search(rb"serving on port (\d+)\n", bench.errors.read_bytes()[said:])
        yield process.pid, int(port[1])


@contextlib.contextmanager
def peer(bench: Bench, *words: object) -> Iterator[Callable[[], str]]:
    """One of peers.py for the time of the block: a function that waits for the next line that it prints."""
    with run_result(bench.start([*PEERS, *map(str, words)], stdout=subprocess.PIPE)) as process:
        output = present(process.stdout)
        poll = select.poll()
        poll.register(output, select.POLLIN)

        def line() -> str:
            text = output.readline().decode() if poll.poll(120_000) else ""
            if not text:
                raise SystemExit(f"no line of peers.py {words}: {bench.errors.read_text()[-2000:]}")
            return text

        yield line


def run_client(bench: Bench, port: int, *options: str) -> Used:
    return bench.run([*CLIENT, *options, "--port", str(port), HOST])


def assert_all_done(bench: Bench, count: int) -> None:
    done = bench.count("runs.txt", b"d ")
    if done != count:
        raise SystemExit(f"{done} of {count} jobs are done: {bench.errors.read_text()[-2000:]}")


# -- the rows ------------------------------------------------------------------------------------------------

def tcp_jobs(bench: Bench) -> list[Row]:
    """jobs per second of one client, against runmaker4.py"""
    count = bench.size(2000)

    def local() -> float:
        bench.file("runs.txt", (b". true\n", count))
        return count / bench.run([*RUNMAKER, "-j2", "runs.txt"]).seconds

    def remote() -> float:
        bench.file("runs.txt", (b". true\n", count))
        with serving(bench) as (_, port):
            rate = count / run_client(bench, port, "-j2").seconds
        assert_all_done(bench, count)
        return rate

    rates = bench.interleave({"local": local, "remote": remote})
    what = f"{count:,} x `true`, one client `-j2`, against `runmaker4.py -j2`"
    return [compare(what, rates["remote"], rates["local"], "jobs/s", least=0.75)]


def tcp_list(bench: Bench) -> list[Row]:
    """a whole list by a server with --exit-when-done and one client, against xargs"""
    count = bench.size(2000)
    bench.file("list", (b"true\n", count))

    def ours() -> float:
        bench.file("runs.txt", (b". true\n", count))
        began = time.perf_counter()
        with serving(bench, "--exit-when-done") as (pid, port):
            run_client(bench, port, "-j2")
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            seconds = time.perf_counter() - began
        assert_all_done(bench, count)
        return count / seconds

    rates = bench.interleave({"ours": ours, "xargs": lambda: bench.rate_of_xargs(count, 2)})
    what = f"{count:,} x `true`, server with `--exit-when-done` and one client `-j2`, against `xargs -P2`"
    return [compare(what, rates["ours"], rates["xargs"], "jobs/s", least=0.52)]


def tcp_claims(bench: Bench) -> list[Row]:
    """claims per second, by a load generator"""
    count = bench.size(50_000)

    def rate() -> float:
        bench.file("runs.txt", (b". true\n", count))
        with serving(bench) as (_, port), peer(bench, "load", port, count) as line:
            claims = count / float(line())
        assert_all_done(bench, count)
        return claims

    rates = [rate() for _ in range(bench.rounds)]
    return [Row(f"claims of {count:,} jobs over 8 connections, each with its start and its end",
                f"{spread(rates)} claims/s", ">= 5,000 claims/s", statistics.median(rates) >= 5000)]


def tcp_idle(bench: Bench) -> list[Row]:
    """what many waiting clients cost, and how soon they get a new job"""
    clients, seconds = bench.size(500), 4 if bench.quick else 10
    bench.file("runs.txt", (b"d true\n", 1))
    with serving(bench) as (pid, port), peer(bench, "idle", port, clients) as line:
        line()                                      # all wait
        time.sleep(1)
        before = cpu_seconds(pid)
        time.sleep(seconds)
        share = 100 * (cpu_seconds(pid) - before) / seconds
        latencies = []
        for _ in range(4 * bench.rounds):
            time.sleep(0.13)                        # at another moment between two looks of the server
            began = time.monotonic()
            with open(bench.dir / "runs.txt", "ab") as file:
                file.write(b". true\n")
            latencies.append(float(line()) - began)
        memory = peak_memory(pid)
    assert_all_done(bench, 1 + len(latencies))
    middle, slowest = statistics.median(latencies), max(latencies)
    measured = f"{share:.1f} % of a core, {memory:.0f} MB, {middle:.2f} s (at the most {slowest:.2f} s)"
    return [
        Row(f"{clients} idle clients: CPU and memory of the server, time from a new line to a client",
            measured, "<= 2 % of a core, <= 50 MB, <= 0.5 s", share <= 2 and memory <= 50 and slowest <= 0.5)
    ]


def tcp_many(bench: Bench) -> list[Row]:
    """what it costs a server that clients come together, and come back to the next server together"""
    clients = bench.size(2000)
    bench.file("runs.txt", (b". true\n", clients))
    with serving(bench) as (pid, port), peer(bench, "come", port, clients) as line:
        dials = float(line()) / clients             # all have a job
        milliseconds = 1000 * cpu_seconds(pid) / clients
        os.kill(pid, signal.SIGKILL)
        line()                                      # they have noticed
        with serving(bench, "--port", str(port)) as (next_pid, _):
            line()                                  # all are back, and have ended their jobs
            milliseconds_back = 1000 * cpu_seconds(next_pid) / clients
    never_sent = clients - bench.count("runs.txt", b"d ")
    return [
        Row(f"{clients} clients dial at once: dials, and CPU of the server, for each until it has a job",
            f"{dials:.2f}, {milliseconds:.2f} ms", "<= 1.5, <= 2.5 ms", dials <= 1.5 and milliseconds <= 2.5),
        Row("after `kill -9`: CPU of the next server for each, until the job has ended; lines lost",
            f"{milliseconds_back:.2f} ms, {never_sent}", "<= 4 ms, 0",
            milliseconds_back <= 4 and not never_sent),
    ]


def tcp_delay(bench: Bench) -> list[Row]:
    """jobs per second at 20 ms round trip, against none"""
    count = bench.size(2000)

    def rate(delay: float) -> float:
        bench.file("runs.txt", (b". true\n", count))
        with serving(bench) as (_, port), peer(bench, "proxy", port, delay) as line:
            jobs = count / run_client(bench, int(line()), "-j64").seconds
        assert_all_done(bench, count)
        return jobs

    rates = bench.interleave({"far": lambda: rate(0.010), "near": lambda: rate(0)})
    what = f"{count:,} x `true`, one client `-j64`, at 20 ms round trip, against none"
    return [compare(what, rates["far"], rates["near"], "jobs/s", least=0.5)]


def tcp_output(bench: Bench) -> list[Row]:
    """output that the server collects"""
    size = bench.size(200 * MB)
    job = f". yes {'x' * 79} | head -c {size}\n".encode()
    memory: dict[str, float] = {"client": 0, "server": 0}

    def rate() -> float:
        bench.remove("out")
        bench.file("runs.txt", (job, 1))
        with serving(bench, "--outdir", "out") as (pid, port):
            used = run_client(bench, port, "-q")
            memory["client"] = max(memory["client"], used.memory)
            memory["server"] = max(memory["server"], peak_memory(pid))
        if (bench.dir / "out/1.out").stat().st_size != size:
            raise SystemExit("output was lost")
        return size / used.seconds / MB

    rates = [rate() for _ in range(bench.rounds)]
    measured = (
        f"{spread(rates)} MB/s, client {memory['client']:.0f} MB, server {memory['server']:.0f} MB memory"
    )
    return [Row(f"one job of a client printing {size // MB} MB, server with `--outdir`", measured,
                ">= 50 MB/s, <= 80 MB", statistics.median(rates) >= 50 and max(memory.values()) <= 80)]


def tcp_start(bench: Bench) -> list[Row]:
    """from the start of the server to its first job"""
    count = bench.size(1_000_000)
    rows = []
    for state, title in (b"d", "`d` and one new"), (b".", "all of them new"):
        bench.file("runs.txt", (state + b" ./simulate --seed 123456\n", count - 1), (b". ./simulate\n", 1))
        times = []
        for _ in range(bench.rounds):
            with peer(bench, "first", "runs.txt") as line:
                times.append(float(line()))
        middle = statistics.median(times)
        rows.append(
            Row(f"server start on {count:,} lines ({title}) to the first job handed out", f"{middle:.2f} s",
                "<= 0.7 s", middle <= 0.7)
        )
    return rows


@contextlib.contextmanager
def ssh_daemon(bench: Bench) -> Iterator[list[str]]:
    """An sshd of ours on the loopback, for the time of the block: options with which ssh and scp reach it."""
    port = free_port()
    for name in "host", "user":
        bench.remove(name, f"{name}.pub")
        bench.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name])
    options = {"Port": port, "ListenAddress": HOST, "HostKey": bench.dir / "host", "StrictModes": "no",
               "AuthorizedKeysFile": bench.dir / "user.pub", "PidFile": "none", "UsePAM": "no",
               "Subsystem": "sftp internal-sftp", "MaxStartups": 100}
    bench.file("sshd.conf", *((f"{name} {value}\n".encode(), 1) for name, value in options.items()))
    os.makedirs("/run/sshd", exist_ok=True)
    with run_result(bench.start(["/usr/sbin/sshd", "-D", "-f", str(bench.dir / "sshd.conf")])):
        yield ["-o", f"Port={port}", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
               "-o", "LogLevel=ERROR", "-o", "ConnectionAttempts=20", "-i", str(bench.dir / "user")]


def tcp_files(bench: Bench) -> list[Row]:
    """a large file there and back, beside scp"""
    size = bench.size(1000) * MB
    cpu: dict[str, float] = {}
    bench.remove("client")
    (bench.dir / "client").mkdir()
    subprocess.run(["dd", "if=/dev/urandom", "of=in", "bs=1M", f"count={size // (1 << 20)}", "status=none"],
                   cwd=bench.dir, check=True)

    def ours(job: bytes) -> Callable[[], float]:
        def rate() -> float:
            bench.remove("client/in" if job.startswith(b"#RUN send") else "out")
            bench.file("runs.txt", (job, 1))
            with serving(bench) as (pid, port):
                command = f"cd client && exec {shlex.join(CLIENT)} -q --port {port} {HOST}"
                used = bench.run(["sh", "-c", command])
                for end, seconds in ("client", used.cpu), ("server", cpu_seconds(pid)):
                    cpu[f"{end} {job[5:9].decode()}"] = 1e9 * seconds / size
            assert_all_done(bench, 1)
            return size / used.seconds / MB
        return rate

    with ssh_daemon(bench) as options:
        def scp() -> float:
            bench.remove("copy")
            return size / bench.run(["scp", "-q", *options, "in", f"{HOST}:{bench.dir}/copy"]).seconds / MB

        rates = bench.interleave({"there": ours(b"#RUN send=in\n. true\n"),
                                  "back": ours(b"#RUN fetch=out\n. ln -f in out\n"), "scp": scp})
    print("CPU seconds for a GB:", {end: round(seconds, 1) for end, seconds in cpu.items()}, file=sys.stderr)
    return [compare(f"a file of {size // MB} MB {way}, against scp", rates[name], rates["scp"], "MB/s",
                    least=0.8)
            for name, way in (("there", "to a client"), ("back", "from a client"))]


def tcp_small_files(bench: Bench) -> list[Row]:
    """many files there and back with two clients, beside GNU parallel --transferfile, near and far"""
    count = bench.size(400)
    bench.remove("work", "one", "two")
    for name in "work/in", "one", "two":
        (bench.dir / name).mkdir(parents=True)
    for number in range(count):
        (bench.dir / f"work/in/{number}").write_bytes(os.urandom(100_000))

    def ours(delay: float) -> Callable[[], float]:
        def seconds() -> float:
            bench.remove("work/out", "one/in", "one/out", "two/in", "two/out")
            bench.file("work/runs.txt", (b"#RUN send={2} fetch={3}\n", 1), *(
                (f". cp in/{number} out/{number}\n".encode(), 1) for number in range(count)))
            with serving(bench, file="work/runs.txt") as (_, port), \
                    peer(bench, "proxy", port, delay) as line:
                shell = f"exec {shlex.join(CLIENT)} -q -j2 --port {int(line())} {HOST}"
                taken = bench.run_all([["sh", "-c", f"cd {name} && {shell}"] for name in ("one", "two")])
            if len(list((bench.dir / "work/out").iterdir())) != count:
                raise SystemExit("files are missing")
            return taken
        return seconds

    with ssh_daemon(bench) as options:
        def parallel() -> float:
            bench.remove("work/out")
            (bench.dir / "work/out").mkdir()
            bench.file("list", *((f"{number}\n".encode(), 1) for number in range(count)))
            hosts = ",".join(f"2/{shlex.join(['ssh', *options])} {host}" for host in (HOST, "localhost"))
            words = ["parallel", "-S", hosts, "-a", "../list", "--transferfile", "in/{}",
                     "--return", "out/{}", "--cleanup", "--wd", "...", "mkdir -p out; cp in/{} out/{}"]
            return bench.run(["sh", "-c", f"cd work && exec {shlex.join(words)}"]).seconds

        times = bench.interleave({"near": ours(0), "far": ours(0.025), "parallel": parallel})
    what = f"{count} files of 100 kB there and back, two clients `-j2`"
    return [compare(f"{what}, against GNU parallel `--transferfile`", times["parallel"], times["near"], "s",
                    least=1.0),
            Row(f"{what}, at 50 ms round trip", f"{spread(times['far'])} s", "", True)]


ROWS = (tcp_jobs, tcp_list, tcp_claims, tcp_idle, tcp_many, tcp_delay, tcp_output, tcp_start, tcp_files,
        tcp_small_files)
