"""What files, hosts, descriptions and locks are here, and the lines of a job file."""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

PATH = "/simulated/runs.txt"
LOCK_FILE = "/simulated/.runs.txt.lock"
# bytes of the lock file that belong to one text; the last of them is the command mutex
BUCKET = 1 << 16
APPEND = (1 << 62) + 1


def command_of(line: bytes) -> bytes:
    """What must never change of a line: of a job all but its state."""
    return line[1:] if len(line) > 1 and line[1:2] == b" " and line[:1] != b"#" else line


def lines_of(data: bytes | bytearray) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, each with its offset."""
    at = 0
    for line in bytes(data).split(b"\n"):
        if line:
            yield at, line
        at += len(line) + 1


@dataclass(eq=False)
class Lock:
    start: int
    end: float
    exclusive: bool
    owner: Description
    real: bool                  # the server knows it; else only its host believes in it
    since: int                  # the step in which it was granted

    def covers(self, at: int) -> bool:
        return self.start <= at < self.end


def is_bucket(lock: Lock) -> bool:
    """Whether it is the lock of a short job: all of a bucket, or what half a trim has left of that."""
    return 1 < lock.end - lock.start <= BUCKET and lock.end % BUCKET == 0


@dataclass(eq=False)
class Inode:
    number: int
    data: bytearray
    changed: float
    path: str = ""              # PATH or LOCK_FILE, if it ever had this name; else it is somebody's own
    locks: list[Lock] = field(default_factory=list)
    # what its lines are by all that editors and appends did
    commands: list[bytes] = field(default_factory=list)
    replaced: float = math.inf  # since which step this path does not lead to it


@dataclass(eq=False)
class Page:
    """What a host remembers of a file on NFS."""
    data: bytearray
    read: float                                             # when
    dirty: set[int] = field(default_factory=set)            # offsets that the server has not seen yet


@dataclass(eq=False)
class Host:
    name: str
    # of its file system: "" local, "nfs4", "fuse.glusterfs", "fuse.mfs"
    kind: str
    pages: dict[Inode, Page] = field(default_factory=dict)
    # what it remembers, since when
    names: dict[str, tuple[Inode | None, float]] = field(default_factory=dict)
    # FUSE: what look-ups have brought, and stat()
    small: dict[Inode, tuple[bytes, float]] = field(default_factory=dict)
    sizes: dict[Inode, tuple[int, float]] = field(default_factory=dict)
    kept: dict[Description, tuple[bytes, float]] = field(default_factory=dict)   # read through each
    writers: dict[Inode, int] = field(default_factory=dict)
    cut: tuple[float, float] = (math.inf, math.inf)         # off from the network, from when to when
    robbed: float = -math.inf                               # when its locks were taken away

    def __post_init__(self) -> None:
        self.network, self.fuse = bool(self.kind), self.kind.startswith("fuse")     # asked at each step

    def forget(self, inode: Inode) -> None:
        """This host has changed a file: what it knew of it is void."""
        self.pages.pop(inode, None)
        self.small.pop(inode, None)
        self.sizes.pop(inode, None)
        for owner in [owner for owner in self.kept if owner.inode is inode]:
            del self.kept[owner]


@dataclass(eq=False)
class Description:
    """An open file description: what open() makes, and dup() and children share."""
    inode: Inode
    host: Host
    writable: bool
    appends: bool
    direct: bool = False        # past the pages of its host
    shares: int = 1
    writes: bool = False        # it has a command mutex locked, or the byte of those who append
    dead: bool = False          # its lease was lost
    written_by: Description | None = None        # of the read end of a pipe: the other end
