"""Runners on a local directory that they take for NFSv4.2, and what they ask of its server, counted.

Every system call that a real client turns into an operation of the server counts as this, and takes a round
trip of a length that is set.  So runners on one machine contend as hosts do.  Which call costs what was read
off the trace of RPC calls of a client with Linux 6.1 (tests/real/rigs/nfs.py; nobody waits for FREE_STATEID).
What only the start of a runner does with paths (LOOKUP, ACCESS, MKDIR) does not count.

As a program this is one such runner: counted.py SCRIPTS COUNTS ROUND_TRIP SHORT_SECONDS ARGUMENT... FILE
"""
import fcntl
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Union

Path = Union[str, bytes]


@dataclass
class Counted:
    """What runners have asked, and for how long the longest ran, without the start of Python."""
    operations: Counter[str]
    seconds: float

    @property
    def total(self) -> int:
        """How many operations."""
        return sum(self.operations.values())


class Client:
    """System calls as an NFSv4.2 client does them, on the files of a directory.

    round_trip: of an operation, in seconds.
    """

    def __init__(self, directory: str, round_trip: float) -> None:
        self.directory = os.path.realpath(directory)
        self.round_trip = round_trip
        self.operations: list[str] = []                 # append() is safe in threads
        self.locks: dict[int, set[range]] = {}          # of each descriptor of a file there
        self.unsynced: Counter[int] = Counter()         # writes since the last fsync()
        self.known: set[int] = set()                    # descriptors whose attributes the client has

    def ask(self, operation: str) -> None:
        self.operations.append(operation)
        if self.round_trip:
            time.sleep(self.round_trip)

    def has(self, path: Path) -> bool:
        """Return True if a path is in the directory."""
        return f"{os.path.realpath(os.fsdecode(path))}/".startswith(f"{self.directory}/")

    def open(self, path: Path, flags: int, *more: Any, **options: Any) -> int:
        fd = os.open(path, flags, *more, **options)
        if self.has(path):
            self.locks[fd] = set()
            if not flags & os.O_PATH:
                self.ask("GETATTR" if flags & os.O_DIRECTORY else "OPEN")
        return fd

    def close(self, fd: int) -> None:
        if self.locks.pop(fd, None):
            self.operations.append("FREE_STATEID")
        self.unsynced.pop(fd, None)
        self.known.discard(fd)
        os.close(fd)

    def pread(self, fd: int, *more: Any) -> bytes:
        if fd in self.locks:
            self.ask("READ")
        return os.pread(fd, *more)

    def preadv(self, fd: int, *more: Any) -> int:
        if fd in self.locks:
            self.ask("READ")
        return os.preadv(fd, *more)

    def pwrite(self, fd: int, *more: Any) -> int:
        if self.unsynced[fd]:
            self.ask("WRITE")           # of the one before, which is in another place
        if fd in self.locks:
            self.unsynced[fd] += 1
            self.known.discard(fd)
        return os.pwrite(fd, *more)

    def write(self, fd: int, *more: Any) -> int:
        if fd in self.locks:
            self.unsynced[fd] = max(self.unsynced[fd], 1)       # what is appended to is one piece
            self.known.discard(fd)
        return os.write(fd, *more)

    def fsync(self, fd: int) -> None:
        """Write what is not written, and have the server sync it; the disk of this machine has no part."""
        writes = self.unsynced.pop(fd, 0)
        if writes:
            self.ask("WRITE")
        if writes > 1:
            self.ask("COMMIT")

    def fstat(self, fd: int) -> os.stat_result:
        if fd in self.locks and fd not in self.known:
            self.ask("GETATTR")
            self.known.add(fd)
        return os.fstat(fd)

    def stat(self, path: Union[Path, int], **options: Any) -> os.stat_result:
        if isinstance(path, int):
            return self.fstat(path)
        if self.has(path):
            self.ask("GETATTR")
        return os.stat(path, **options)

    def ftruncate(self, fd: int, size: int) -> None:
        if fd in self.locks:
            self.ask("SETATTR")
            self.known.discard(fd)
        os.ftruncate(fd, size)

    def fcntl(self, fd: int, command: int, argument: Any = 0) -> Any:
        if fd not in self.locks or command not in (self.scripts.OFD_SETLK, self.scripts.OFD_GETLK):
            return fcntl.fcntl(fd, command, argument)
        kind, _, start, length, _ = self.scripts.FLOCK.unpack(argument)
        if command == self.scripts.OFD_GETLK:
            self.ask("LOCKT")
            return fcntl.fcntl(fd, command, argument)
        self.ask("LOCKU" if kind == fcntl.F_UNLCK else "LOCK")
        answer = fcntl.fcntl(fd, command, argument)         # raises OSError if the server refuses it
        held = self.locks[fd]
        if kind != fcntl.F_UNLCK:
            held.add(range(start, start + length))
        else:
            end = start + length if length else sys.maxsize
            held -= {one for one in held if start <= one.start and one.stop <= end}
            if not held:
                self.operations.append("FREE_STATEID")
        return answer

    def serve(self, scripts: Any) -> None:
        """Let a module runmaker4 use this client for all files in the directory."""
        self.scripts = scripts
        scripts.os = SimpleNamespace(**{
            **vars(os), "open": self.open, "close": self.close, "pread": self.pread, "preadv": self.preadv,
            "pwrite": self.pwrite, "write": self.write, "fsync": self.fsync, "fstat": self.fstat,
            "stat": self.stat, "ftruncate": self.ftruncate})
        scripts.fcntl = SimpleNamespace(**{**vars(fcntl), "fcntl": self.fcntl})
        mount = scripts.Mount("nfs4", frozenset(), self.directory)
        scripts.find_mount = lambda path: mount if self.has(path) else scripts.LOCAL


def run(scripts: pathlib.Path, jobs: str, runners: int, options: Sequence[str], round_trip: float,
        short_seconds: float = 0) -> Counted:
    """Let so many runners, of the scripts in a directory, do these jobs, all of which must be done.

    short_seconds: up to which a job counts as short, where the scripts ask for that; 0: as they say.
    """
    with tempfile.TemporaryDirectory(prefix="runmaker4-counted-", dir="/var/tmp") as name:
        directory = pathlib.Path(name)
        (directory / "net").mkdir()
        file = directory / "net" / "runs.txt"
        file.write_text(jobs)
        counts = [directory / f"counts.{number}" for number in range(runners)]
        started = [subprocess.Popen([sys.executable, __file__, scripts, path, str(round_trip),
                                     str(short_seconds), "-q", *options, file], stderr=subprocess.PIPE)
                   for path in counts]
        said = [runner.communicate()[1].decode() for runner in started]
        assert file.read_text() == re.sub("(?m)^[.!] ", "d ", jobs), said
        results = [json.loads(path.read_text()) for path in counts]
    operations: Counter[str] = Counter()
    for result in results:
        operations.update(result["operations"])
    return Counted(operations, max(result["seconds"] for result in results))


def main(directory: str, counts: str, round_trip: str, short_seconds: str, *arguments: str) -> int:
    sys.path.insert(0, directory)
    scripts = importlib.import_module("runmaker4")
    client = Client(os.path.dirname(arguments[-1]), float(round_trip))
    client.serve(scripts)
    if float(short_seconds):
        scripts.FileJobs.SHORT_SECONDS = float(short_seconds)
    began = time.monotonic()
    code: int = scripts.main(arguments)
    pathlib.Path(counts).write_text(json.dumps(
        {"operations": Counter(client.operations), "seconds": time.monotonic() - began}))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
