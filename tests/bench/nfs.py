"""What a job costs on a real NFS server with real clients (tests/real/rigs/nfs.py)."""
import re
import time
from collections import Counter
from collections.abc import Sequence

from tests.bench.measure import Bench, Row
from tests.real.rigs.nfs import Machine, Rig, missing

ALONE, CONTENDED = 15, 18           # round trips per job that it may cost


def count_trips(clients: Sequence[Machine]) -> Counter[str]:
    """What these clients have asked the server, by operation; Linux does not count NFSv3's lock protocol."""
    found: Counter[str] = Counter()
    for client in clients:
        text = client.run("cat /proc/self/mountstats", directory="/").out.decode()
        text = text.split("mounted on /nfs ")[1].split("per-op statistics")[1].split("\ndevice")[0]
        for name, sent, errors in re.findall(r"(\w+): \d+ (\d+)(?: \d+){6} (\d+)", text):
            found[name] += int(sent)
            found["refused"] += int(errors) if name == "LOCK" else 0
    return found


def run(rig: Rig, hosts: int, count: int, options: str, equal: bool) -> tuple[float, Counter[str]]:
    """So many `true` on so many hosts, perhaps in equal lines: seconds, and round trips."""
    rig.server.run("rm -rf runs.txt out")
    rig.server.write("runs.txt", "".join(f". true {0 if equal else number}\n" for number in range(count)))
    clients = rig.clients[:hosts]
    before, began = count_trips(clients), time.perf_counter()
    runners = [client.popen(f"exec runmaker4.py -q -j2 {options} runs.txt") for client in clients]
    for runner in runners:
        runner.wait(600)
        assert runner.code == 0, str(runner)
    return time.perf_counter() - began, count_trips(clients) - before


def row(rig: Rig, version: str, hosts: int, count: int, options: str = "", equal: bool = False) -> Row:
    seconds, trips = run(rig, hosts, count, options, equal)
    refused, most = trips.pop("refused", 0), ALONE if hosts == 1 else CONTENDED
    each = ", ".join(
        f"{name} {number / count:.1f}" for name, number in trips.most_common() if number >= count / 20
    )
    measured = f"{count / seconds:.0f} jobs/s, {sum(trips.values()) / count:.1f} round trips per job ({each})"
    if version != "3" and hosts > 1:
        measured += (
            f", {100 * refused / count:.0f} claims of 100 jobs wasted on lines that the other host had"
        )
    who = f"{'one host' if hosts == 1 else 'two hosts'}{f' with `{options}`' if options else ''}"
    free = bool(options) or equal
    return Row(f"NFSv{version}, {count} x `true`{', equal lines' if equal else ''}, `-j2`, {who}", measured,
               "" if free else f"<= {most} round trips", free or sum(trips.values()) <= most * count)


def nfs(bench: Bench) -> list[Row]:
    """jobs and round trips on NFS, on machines with kernels of their own"""
    if missing():
        return [Row("on NFS", f"not measured: {missing()}", f"<= {ALONE} round trips", True)]
    count, rows = bench.size(300), []
    with Rig() as rig:
        for version in "3", "4.0", "4.1", "4.2":
            for client in rig.clients:
                client.mount(version)
            rows += [row(rig, version, hosts, count) for hosts in (1, 2)]
            if version == "4.2":
                rows += [row(rig, version, 1, count, "--no-records"), row(rig, version, 1, count, equal=True)]
            for client in rig.clients:
                client.umount()
    return rows


ROWS = (nfs,)
