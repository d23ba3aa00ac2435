"""Promise: after a power cut on a real disk no line stays `d` whose work is lost, unless it is named.

With RUNMAKER4_TEST_REAL=1, on a host with a kernel of its own (rigs/machines.py), which loses power again and
again while runners work on several file systems, or a server.  What its kernel had not written by then is
lost.  After each cut the host boots, what is `d` and not named must be there whole, and `--resume` does the
rest.
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import unittest
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable

from tests.real.rigs import PATH, REAL, machines
from tests.real.rigs.machines import Command, Machine, Machines
from tests.support.processes import wait_until
from tests.support.scripts import ALL, RUNMAKER, RUNSERVER, chance, program_of

CUTS, JOBS = (12, 120) if ALL else (2, 20)      # jobs: on each file system
TOOLS = {"mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs",
         "mkfs.f2fs": "f2fs-tools", "dmsetup": "dmsetup"}
# 45 s there: here lines become safe within the seconds of a test
RENEWING = "import runmaker4\nrunmaker4.Program.RENEWAL_SECONDS = 3.0\n"
# A job: it writes a result, every fourth by renaming it, and prints some bytes, or some thousand
WORK = """#!/bin/sh
[ $(($1 % 4)) = 0 ] && part=part.$1 || part=$2
seq $1 3000 >$part
[ $part = $2 ] || mv $part $2
[ $(($1 % 2)) = 0 ] && exec printf '%9000d\\n' $1
echo $1
"""
# The lines that are d, of these the ones whose result or output is not whole, and the lines that are named:
# in doubt, or with incomplete output
CHECK = r"""
import json, pathlib, subprocess

def view(option):
    return [json.loads(line) for line in subprocess.run(
        ["runwait4.py", option, "--json", "runs.txt"], stdout=subprocess.PIPE).stdout.splitlines()]

def is_whole(number):
    result = pathlib.Path(f"result.{number}")
    return (printed.get(number) == f"%{1 if number % 2 else 9000}d\n" % number and result.exists()
            and result.read_bytes() == b"".join(b"%d\n" % value for value in range(number, 3001)))

lines = pathlib.Path("runs.txt").read_bytes().splitlines()
done = [number for number, line in enumerate(lines, 1) if line.startswith(b"d")]
printed = {run["line"]: run["stdout"] for run in view("--output")}
incomplete = [run["line"] for run in view("--failed")[0]["runs"] if run["incomplete"]]
print(json.dumps({"done": done, "lost": [number for number in done if not is_whole(number)],
                  "named": sorted({*view("--status")[0]["in_doubt"], *incomplete})}))
"""

# An ext4 file system for which a pool has space, as long as others leave it some; made at the first boot
POOL = """
modprobe dm_thin_pool
options="error_if_no_space skip_block_zeroing"
dmsetup create pool --table "0 204800 thin-pool /dev/ubda /dev/ubdb 128 0 2 $options"
dmsetup mknodes
dmsetup message pool 0 "create_thin 0" || true
dmsetup create thin --table "0 2097152 thin /dev/mapper/pool 0"
dmsetup mknodes
blkid /dev/mapper/thin || mkfs.ext4 -q /dev/mapper/thin
mkdir -p /m/a; mount /dev/mapper/thin /m/a
"""


@dataclass
class Disk:
    """A file system that loses power, and how many lines were seen there after the cuts."""
    name: str
    size: str
    make: str
    options: str = "defaults"
    runners: int = 1
    cuts: int = 0
    done: int = 0
    lost: int = 0
    named: int = 0
    unnamed: int = 0

    def __str__(self) -> str:
        return (f"{self.name}: {self.cuts} cuts, {self.done} lines d, {self.lost} lost, {self.named} named, "
                f"{self.unnamed} lost and not named")


def setUpModule() -> None:
    if not REAL:
        raise unittest.SkipTest("RUNMAKER4_TEST_REAL is not set: takes two minutes")
    if missing := machines.missing(*TOOLS.items()):
        raise unittest.SkipTest(missing)


class PowerCase(unittest.TestCase):
    """A host with some disks, each with a job file, which loses power."""
    head = ""               # what stands in front of the jobs: lines

    def setUp(self) -> None:
        self.rig = Machines()
        self.rig.__enter__()
        self.addCleanup(self.rig.__exit__)
        (self.rig.dir / "bin/work").write_text(WORK)
        (self.rig.dir / "bin/work").chmod(0o755)
        (self.rig.dir / "check.py").write_text(CHECK)
        first = self.head.count("\n") + 1
        self.numbers = [*range(first, first + JOBS)]        # of the jobs, and of their lines

    def boot(self, *disks: Disk) -> None:
        """Switch it on, with these disks."""
        self.disks = {f"/m/{letter}": disk for letter, disk in zip("abcdefgh", disks)}
        files = [self.make(disk, directory[-1]) for directory, disk in self.disks.items()]
        setup = "\n".join(f"mkdir -p {directory}; mount -o {disk.options} /dev/ubd{directory[-1]} {directory}"
                          for directory, disk in self.disks.items())
        self.host = self.rig.add(Machine(self.rig, "host", 1, files, "512M", f"modprobe f2fs\n{setup}"))
        self.host.boot()
        jobs = "".join(f". work {number} result.{number}\n" for number in self.numbers)
        for directory in self.disks:
            self.host.run("cat >runs.txt; sync -f .", data=self.head + jobs, directory=directory)

    def make(self, disk: Disk, letter: str) -> pathlib.Path:
        """Make a disk with an empty file system."""
        file = self.rig.disk(letter, disk.size)
        subprocess.run([*disk.make.split(), str(file)], check=True, stdin=subprocess.DEVNULL,
                       capture_output=True, env={**os.environ, "PATH": PATH})
        return file

    def program(self, script: str) -> str:
        """The words that start a script, which makes lines safe soon."""
        file = self.rig.dir / f"renewing-{script}"
        file.write_text(program_of(script, script, RENEWING))
        return f"exec python3 {file}"

    def count_done(self) -> int:
        return int(self.host.run("cat /m/*/runs.txt | grep -c '^d'", check=False).out)

    def look(self, directory: str) -> dict[str, list[int]]:
        """The numbers of the lines there: those that are done, lost and named."""
        found: dict[str, list[int]] = json.loads(
            self.host.run(f"python3 {self.rig.dir}/check.py", directory=directory).out)
        return found

    def cut(self) -> list[dict[str, list[int]]]:
        """Lose power, boot, and see that what is lost is named.

        An editor has just brought the job files to disk, so lines are `d` there before their results are.
        Return for each disk what look() finds.
        """
        self.host.run("sync /m/*/runs.txt")
        self.host.kill()
        self.host.boot()
        found = []
        for directory, disk in self.disks.items():
            seen = self.look(directory)
            found.append(seen)
            unnamed = {*seen["lost"]} - {*seen["named"]}
            disk.cuts += 1
            disk.done += len(seen["done"])
            disk.lost += len(seen["lost"])
            disk.named += len(seen["named"])
            disk.unnamed += len(unnamed)
            with self.subTest(disk.name):
                self.assertEqual(unnamed, set(), seen)
        return found

    def wait_done(self, wanted: int, runners: Sequence[Command]) -> None:
        """Wait until so many lines are d, or the runners have ended."""
        wait_until(lambda: self.count_done() >= wanted or all(runner.code is not None for runner in runners),
                   what=f"{wanted} lines are d")

    def work_and_cut(self, start: Callable[[], Sequence[Command]]) -> None:
        """Start runners, and cut the power at a moment before they have done all; and again."""
        moments = chance(self.id())
        jobs = JOBS * len(self.disks)
        for _ in range(CUTS):
            runners = start()
            left = jobs - self.count_done()
            wanted = jobs - moments.randrange(left // 3, left + 1)
            self.wait_done(wanted, runners)
            self.cut()
        self.assertNotEqual([disk for disk in self.disks.values() if disk.lost], [], "nothing was lost")

    def finish(self, *commands: Command) -> None:
        for command in commands:
            self.assertEqual(command.wait().code, 0, str(command))

    def assertAllSafe(self) -> None:
        """After they have ended in order a cut loses nothing, and names nothing."""
        for seen, disk in zip(self.cut(), self.disks.values()):
            with self.subTest(disk.name):
                self.assertEqual(seen, {"done": self.numbers, "lost": [], "named": []})
        if ALL:
            print(*self.disks.values(), sep="\n", file=sys.stderr)


class Runners(PowerCase):

    def test_what_is_done_and_not_named_is_there_and_the_rest_runs_again(self) -> None:
        self.boot(Disk("ext4, three runners", "64M", "mkfs.ext4 -q", runners=3),
                  Disk("ext4, commit=300", "64M", "mkfs.ext4 -q", "commit=300"),
                  Disk("ext4, data=writeback", "64M", "mkfs.ext4 -q", "data=writeback"),
                  Disk("xfs", "320M", "mkfs.xfs -q"),
                  Disk("btrfs", "200M", "mkfs.btrfs -q"),
                  Disk("f2fs", "100M", "mkfs.f2fs -q"))
        runner = self.program(RUNMAKER)

        def start() -> list[Command]:
            return [self.host.popen(f"{runner} -q --resume runs.txt", directory=directory)
                    for directory, disk in self.disks.items() for _ in range(disk.runners)]

        self.work_and_cut(start)
        self.finish(*start())
        self.assertAllSafe()


class Servers(PowerCase):
    """The clients are on another host, and live on."""
    head = "#RUN fetch={3}\n"

    def test_what_clients_have_done_and_is_not_named_is_there(self) -> None:
        self.boot(Disk("ext4, a server with clients", "64M", "mkfs.ext4 -q"))
        other = self.rig.add(Machine(self.rig, "other", 2))
        other.boot()
        server = self.program(RUNSERVER)
        token = "export RUNMAKER4_TOKEN=0123456789abcdef0123456789abcdef"

        clients: list[Command] = []

        def start() -> list[Command]:
            """Start a server, and a client beside those that wait for one: only this takes what is named."""
            directory = f"/root/{len(clients)}"
            other.run(f"mkdir {directory}")
            clients.append(other.popen(f"{token}; exec runmaker4-client.py -q -j2 --resume {self.host.ip}",
                                       directory=directory))
            return [self.host.popen(f"{token}; {server} runs.txt", directory="/m/a")]

        def work_to_the_end() -> None:
            last, = start()
            self.finish(clients[-1])
            for client in clients:
                self.assertIn(client.wait().code, (0, 1), str(client))
            last.signal(signal.SIGUSR1)
            # 1: what a living job had printed before a cut is not there
            self.assertIn(last.wait().code, (0, 1), str(last))

        self.work_and_cut(start)
        work_to_the_end()
        if named := self.look("/m/a")["named"]:
            self.host.run(f"runset4.py --set=. runs.txt {' '.join(map(str, named))}", directory="/m/a")
            work_to_the_end()
        self.assertAllSafe()


class WriteErrors(PowerCase):
    """The kernel takes what a job writes, and later has no place for it, which it says once."""

    def test_no_line_stays_d_for_which_a_pool_had_no_space(self) -> None:
        disks = [self.rig.disk("metadata", "16M"), self.rig.disk("data", "100M")]
        self.host = self.rig.add(Machine(self.rig, "host", 1, disks, "512M", POOL))
        self.host.boot()
        self.host.directory = "/m/a"
        jobs = "".join(f". seq {number} 60000 >result.{number}\n" for number in range(1, 9))
        self.host.run("cat >runs.txt; mkdir runs.txt.out; head -c 3000000 /dev/zero >spare; sync -f .",
                      data=jobs)
        self.host.run("head -c 90000000 /dev/urandom >other; sync -f .", check=False)
        runner = self.host.run("exec runmaker4.py -q -j2 runs.txt", check=False)
        self.assertEqual(runner.code, 1, str(runner))
        self.host.kill()
        self.host.boot()
        compare = "for n in $(seq 8); do seq $n 60000 | cmp -s - result.$n || echo $n; done"
        lost = [*map(int, self.host.run(compare).out.split())]
        self.assertNotEqual(lost, [])
        named = json.loads(self.host.run("runwait4.py --status --json runs.txt").out)["in_doubt"]
        lines = self.host.read("runs.txt").decode().splitlines()
        self.assertEqual([number for number in lost if lines[number - 1][0] == "d" and number not in named],
                         [], str(runner))
