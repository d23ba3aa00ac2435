"""Promise: whatever happens, a line `d` has the files of the run that gave it that state, byte for byte.

In half of the histories the jobs have directories of their own (scratch=yes).  All runs of a job give their
results one size and one mtime.  `TRAVEL_SEED=7 python3 -m unittest tests.orders.test_files` begins with that
history.
"""
import hashlib
import json
import os
import pathlib
import random
import time
from typing import Optional

from tests.support.processes import DEADLINE, wait_until
from tests.support.proxy import Proxy
from tests.support.scripts import ALL, FULL
from tests.support.tcp import Program, Server
from tests.support.travel import PATCH, TravelCase

HISTORIES = 100 if ALL else 20 if FULL else 2
FIRST_SEED = int(os.environ.get("TRAVEL_SEED", "1"))
JOBS = 6
STEPS = 14
# where a file `full` is in the directory of a program, its disk is full for pieces of files, and nothing else
FULL_DISK = """
import errno, os, runmaker4
write_all = runmaker4.write_all
full = os.path.join(os.getcwd(), "full")
def write_or_be_full(fd, data):
    if isinstance(data, memoryview) and os.path.exists(full):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write_all(fd, data)
runmaker4.write_all = write_or_be_full
"""
# The second result says which run made it, and from which input.  A run with an empty input fails
WORK = b"""#!/bin/sh
mkdir -p out/$1
ln -s ../../../outside out/$1/link
cp in/$1 out/$1/copy.$$
echo $RUNMAKER4_JOB >log/$1
yes "$RUNMAKER4_JOB $(md5sum <out/$1/copy.$$)" | head -c 600000 >out/$1/run.$$
touch -d 2026-01-01 out/$1/*.$$
mv out/$1/copy.$$ out/$1/copy
mv out/$1/run.$$ out/$1/run
[ -s in/$1 ]
"""
DIRECTIVES = {False: "#RUN send=work,in/{2} fetch=out/{2}/copy,out/{2}/run\n",
              True: "#RUN scratch=yes send=work,in/{2} fetch=out/{2}/,log/{2}:always\n"}


class History(TravelCase):
    """A server in `srv`, and two clients, in directories of their own or in one."""
    proxy: Proxy

    def begin(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.scratch = seed % 2 == 0
        self.clients_in = {"bob": "bob", "carol": self.random.choice(("bob", "carol"))}
        self.versions: dict[int, list[bytes]] = {job: [] for job in range(JOBS)}
        self.make("outside", b"untouched")
        self.make("srv/work", WORK, 0o755)
        for name in {*self.clients_in.values()} if not self.scratch else ():
            (self.dir / name / "log").mkdir()
        for job in range(JOBS):
            self.write_input(job)
        text = DIRECTIVES[self.scratch] + "".join(f". : {job}; ./work {job}\n" for job in range(JOBS))
        self.write(text, "srv/runs.txt")
        self.server: Optional[Server] = None
        self.start_a_server()
        assert self.server
        self.proxy = Proxy(self.server.port)
        self.addCleanup(self.proxy.close)
        self.proxy.bytes_per_second = 4 << 20
        self.clients: dict[str, Optional[Program]] = {name: self.start_one(name) for name in self.clients_in}

    def write_input(self, job: int, size: int = 0) -> None:
        """Replace an input, as a whole, by one of another size, often of several pieces."""
        content = self.random.randbytes(size or self.random.choice((0, 1, 1000, 1 << 18, 700_000, 2 << 20)))
        self.versions[job].append(content)
        new = self.make("srv/in/new", content)
        os.rename(new, self.srv / f"in/{job}")

    def start_a_server(self) -> None:
        port = self.server.port if self.server else 0
        self.server = self.start_server("--grace", 0.5, "--port", port, file="runs.txt", cwd=self.srv,
                                        patch=PATCH + FULL_DISK)

    def start_one(self, name: str) -> Program:
        return self.start_client(self.proxy, "-j2", "--resume", "--follow", "--name", name,
                                 cwd=self.dir / self.clients_in[name], patch=PATCH + FULL_DISK)

    def step(self) -> None:
        """Let one thing happen."""
        assert self.server
        event = self.random.randrange(8)
        name = self.random.choice([*self.clients])
        full = self.dir / self.random.choice(("srv", "bob")) / "full"
        if event == 0:
            self.write_input(self.random.randrange(JOBS))
        elif event == 1:
            self.server.kill()
            self.start_a_server()
        elif event == 2 and (client := self.clients[name]):
            client.kill()
            self.clients[name] = self.start_one(name)
        elif event == 3:
            self.proxy.cut()
            self.pause()
            self.proxy.mend()
        elif event == 4:
            full.touch()
            self.pause()
            full.unlink()
        elif event == 5:
            self.run_script("runset4.py", "--cancel", "srv/runs.txt", str(2 + self.random.randrange(JOBS)))
        elif event == 6:
            self.run_script("runset4.py", "--set", ".", "srv/runs.txt", str(2 + self.random.randrange(JOBS)))
        self.pause()

    def pause(self) -> None:
        time.sleep(self.random.choice((0.0, 0.05, 0.2, 0.5)))

    def wait_settled(self) -> None:
        wait_until(lambda: not {*self.states("srv/runs.txt")} & set("r."), what="no line waits or runs")

    def end(self) -> None:
        """Let all lines come to an end, the failed ones once more, and look at all files."""
        assert self.server
        self.proxy.bytes_per_second = 0
        self.wait_settled()
        for client in self.clients.values():
            if client:
                client.kill()
        self.assertNoJobLeft()                  # they would keep their directories
        self.check_results()
        for job, state in enumerate(self.states("srv/runs.txt")):
            if state in "!e" or job == 0:
                self.write_input(job, 1000)
        # only a client that runs a job with a directory removes those that killed clients left
        self.run_script("runset4.py", "--set", ".", "srv/runs.txt", "2")
        self.start_client(self.proxy, "-j2", "-r", cwd=self.bob, patch=PATCH).wait(DEADLINE)
        self.wait_settled()
        self.assertLessEqual({*self.states("srv/runs.txt")}, set("dc"))
        self.server.kill()
        self.check_results()
        self.check_directories()

    def check_results(self) -> None:
        """Compare the files of each line `d` with its last run, and the log of each line `!`.

        Without scratch=yes, a job of a killed client can write beside the run that gave the state.
        """
        runs = self.last_runs()
        for job, state in enumerate(self.states("srv/runs.txt")):
            copy, made = (self.srv / f"out/{job}/{name}" for name in ("copy", "run"))
            if state == "d" or copy.exists():
                self.assertIn(copy.read_bytes(), self.versions[job], f"job {job}")
            if state == "d":
                text = made.read_bytes()
                line = text[:text.index(b"\n") + 1]
                self.assertEqual(text, (line * 600_000)[:600_000], f"job {job}")
                if self.scratch:
                    checksum = hashlib.md5(copy.read_bytes()).hexdigest()
                    self.assertEqual(line.decode().split(), [runs[job, "d"], checksum, "-"], f"job {job}")
            if self.scratch and state in "d!":
                log = (self.srv / f"log/{job}").read_text().strip()
                self.assertEqual(log, runs[job, state], f"job {job}")

    def last_runs(self) -> dict[tuple[int, str], str]:
        """The last run of each job that gave each state."""
        journal = (self.srv / "runs.txt.out/journal").read_text()
        events = [event for event in map(json.loads, journal.splitlines()) if event["event"] == "end"]
        return {(event["line"] - 2, event["state"]): event["run"] for event in events}

    def check_directories(self) -> None:
        self.assertEqual(self.read("outside"), b"untouched")
        shown = {path.name for path in self.dir.iterdir()} - {"said", ".runmaker4.token"}
        self.assertLessEqual(shown, {"srv", "bob", "carol", "outside"})
        self.assertLessEqual({path.name for path in (self.srv / "out").iterdir()}, {*map(str, range(JOBS))})
        for directory in {*self.clients_in.values()}:
            there = {path.name for path in (self.dir / directory).iterdir()}
            left = {name for name in there if name.startswith(".") and "runmaker4-job" in name}
            if directory == "bob":              # where the last client was started
                self.assertEqual(left, set())
            kept = {"work", "in"} if self.scratch else {"work", "in", "out", "log"}
            self.assertLessEqual(there - left, kept)

    def test_whatever_happens(self) -> None:
        for seed in range(FIRST_SEED, FIRST_SEED + HISTORIES):
            with self.subTest(seed=seed):
                self.begin(seed)
                try:
                    for _ in range(STEPS):
                        self.step()
                    self.end()
                finally:                        # the next history begins with nothing of this one
                    for program in self.programs:
                        program.kill()
                    self.assertNoJobLeft()
                    for directory in self.srv, self.bob, self.dir / "carol":
                        remove_all(directory)


def remove_all(directory: pathlib.Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
