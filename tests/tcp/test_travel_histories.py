"""Promise: whatever is killed, cut, full, edited or cancelled, a line `d` has its whole files."""
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
def write_or_be_full(fd, data):
    if isinstance(data, memoryview) and os.path.exists("full"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write_all(fd, data)
runmaker4.write_all = write_or_be_full
"""


class History(TravelCase):
    """A server in `srv`, and two clients, in directories of their own or in one."""
    proxy: Proxy

    def begin(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clients_in = {"bob": "bob", "carol": self.random.choice(("bob", "carol"))}
        self.versions: dict[int, list[bytes]] = {job: [] for job in range(JOBS)}
        self.make("outside", b"untouched")
        for job in range(JOBS):
            self.write_input(job)
        text = "#RUN send=in/{2} fetch=out/{2}\n" + "".join(
            f". : {job}; cp in/{job} out/{job}\n" for job in range(JOBS))
        self.write(text, "srv/runs.txt")
        self.server: Optional[Server] = None
        self.start_a_server()
        assert self.server
        self.proxy = Proxy(self.server.port)
        self.addCleanup(self.proxy.close)
        self.proxy.bytes_per_second = 4 << 20
        self.clients: dict[str, Optional[Program]] = {name: self.start_one(name) for name in self.clients_in}

    def write_input(self, job: int) -> None:
        """Replace an input, as a whole, by one of another size, often of several pieces."""
        content = self.random.randbytes(self.random.choice((0, 1, 1000, 1 << 18, 700_000, 2 << 20)))
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

    def end(self) -> None:
        """Let all lines come to an end, the failed ones once more, and look at all files."""
        assert self.server
        self.proxy.bytes_per_second = 0
        wait_until(lambda: not {*self.states("srv/runs.txt")} & set("r."), what="no line waits or runs")
        for client in self.clients.values():
            if client:
                client.kill()
        self.start_client(self.proxy, "-j2", "-r", cwd=self.bob, patch=PATCH).wait(DEADLINE)
        wait_until(lambda: not {*self.states("srv/runs.txt")} & set("r."), what="no line waits or runs")
        self.assertLessEqual({*self.states("srv/runs.txt")}, set("dc"))
        for job, state in enumerate(self.states("srv/runs.txt")):
            out = self.srv / f"out/{job}"
            if state == "d" or out.exists():
                self.assertIn(out.read_bytes(), self.versions[job], f"job {job}")
        self.server.kill()
        self.assertEqual(self.read("outside"), b"untouched")
        shown = {path.name for path in self.dir.iterdir()} - {"said", ".runmaker4.token"}
        self.assertLessEqual(shown, {"srv", "bob", "carol", "outside"})
        outputs = {path.name for path in (self.srv / "out").iterdir() if not path.name.startswith(".")}
        self.assertLessEqual(outputs, {*map(str, range(JOBS))})

    def test_whatever_happens(self) -> None:
        for seed in range(FIRST_SEED, FIRST_SEED + HISTORIES):
            with self.subTest(seed=seed):
                self.begin(seed)
                for _ in range(STEPS):
                    self.step()
                self.end()
                for directory in self.srv, self.bob, self.dir / "carol":
                    remove_all(directory)


def remove_all(directory: pathlib.Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
