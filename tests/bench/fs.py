"""What a job costs on real network file systems with their default settings (tests/real/rigs/fs.py)."""
import json
import re
import time
from typing import Callable

from tests.bench.measure import RUNMAKER, Bench, Row
from tests.real.rigs.fs import Ceph, Gluster, Rig, missing
from tests.support.values import present

LOCAL_TO_THE_BRICK = "RELEASE", "RELEASEDIR", "FORGET"      # nobody waits for them, and they are no requests


def on_bricks(rig: Rig) -> int:
    """What GlusterFS's bricks were asked; counted once `volume profile v start` has been said."""
    said = Gluster.command(rig.server, "volume profile v info cumulative")
    return sum(int(calls) for calls, name in re.findall(r"(?m) [nu]s +(\d+) +([A-Z]+)$", said)
               if name not in LOCAL_TO_THE_BRICK)


def on_ceph(rig: Rig) -> int:
    """What CephFS's clients have asked its metadata and object servers."""
    found = 0
    for host in rig.hosts.values():
        said = host.run(f"ceph {Ceph.config(host)} --admin-daemon /run/ceph/*.asok perf dump").out
        counts = json.loads(said)
        found += counts["client"]["reply"]["avgcount"] + counts["objecter"]["op_reply"]
    return found


def on_moose(rig: Rig) -> int:
    """What MooseFS's clients have sent to its master; contents go between them and chunk servers."""
    told = (host.run(f"cat {rig.mount}/.stats").out.decode() for host in rig.hosts.values())
    return sum(int(present(re.search(r"(?m)^master\.packets_sent: (\d+)", text))[1]) for text in told)


# Title, kind of rig, its options, what counts the operations, and what they are
KINDS: tuple[tuple[str, str, dict[str, int], Callable[[Rig], int], str], ...] = (
    ("GlusterFS", "gluster", {}, on_bricks, "operations of the brick"),
    ("GlusterFS, replica 3", "gluster", {"bricks": 3}, on_bricks, "operations of all bricks"),
    ("CephFS, ceph-fuse", "ceph", {}, on_ceph, "requests to the metadata and object servers"),
    ("MooseFS", "moose", {}, on_moose, "requests to the master"))


def local(bench: Bench, jobs: str) -> float:
    """The seconds that a runner takes for these jobs in the directory of the benchmarks."""
    (bench.dir / "runs.txt").write_text(jobs)
    return bench.run([*RUNMAKER, "-q", "-j2", "runs.txt"]).seconds


def run(rig: Rig, hosts: int, jobs: str) -> float:
    """The seconds that runners on so many hosts take for these jobs."""
    clients = [*rig.hosts.values()][:hosts]
    name = f"runs.{hosts}"
    clients[0].write(name, jobs)
    for client in clients:
        client.run(f"until [ -s {name} ]; do sleep 0.1; done")
    began = time.perf_counter()
    runners = [client.popen(f"exec runmaker4.py -q -j2 {name}") for client in clients]
    for runner in runners:
        runner.wait(600)
        assert runner.code == 0, str(runner)
    return time.perf_counter() - began


def fs(bench: Bench) -> list[Row]:
    """jobs and operations on GlusterFS, CephFS and MooseFS"""
    count, rows = bench.size(1000), []
    jobs = "".join(f". true {number}\n" for number in range(count))
    for title, kind, options, operations, what in KINDS:
        if missing(kind):
            rows.append(Row(title, f"not measured: {missing(kind)}", "", True))
            continue
        with Rig(kind, "ABC", **options) as rig:
            if kind == "gluster":
                Gluster.command(rig.server, "volume profile v start")
            for hosts in 1, 2:
                before, here = operations(rig), local(bench, jobs)
                seconds = run(rig, hosts, jobs)
                rows.append(Row(
                    f"{title}, {count} x `true`, `-j2`, {'one host' if hosts == 1 else 'two hosts'}",
                    f"{count / seconds:.0f} jobs/s, {here / seconds:.2f} x a local file; "
                    f"{(operations(rig) - before) / count:.1f} {what} per job", "", True))
    return rows


ROWS = (fs,)
