"""A simulated host system: files, open file descriptions, record locks, NFS, a clock, and processes that take
turns.

It stands in for what the product asks of `os`, `fcntl` and `time`.  Each process (an `Actor`) makes one
system call at a time; whose turn is next is drawn from a seed, so that a history can be made again.  What
runs the product is a thread, and threads pass a baton, so never two of them run; all else (an editor, fate)
is a generator.  A system call takes a moment by the simulated clock, which jumps when everybody sleeps: so
whoever is not stopped on purpose comes to its turn in time.

Why it stands for the real one:
 - fcntl(2), "Open file description locks": a lock belongs to the description; dup() and children share it,
   the last close() gives it back, a range may be split, F_OFD_GETLK tells of any conflicting lock, not always
   of the first, and an exclusive lock wants a descriptor for writing.  A descriptor's number is never used
   again, so that to close one twice is an error here; really, it might be somebody else's by then.
 - rename(2), unlink(2): who has a file open keeps it, whatever its path leads to now.
 - NFS ("nfs4") is what DESIGN, section 4, has measured. A host that has the file open for writing goes on
   reading the pages it has until a lock is *granted*; without a writer it asks again at open(), and every
   three seconds. What is written while nobody on that host has a lock carries old neighbours along. A path is
   looked up anew by open(), or when the directory was opened. A host that is cut off for longer than the
   lease loses all its locks once somebody asks for one of them; then the descriptors that had them answer
   EIO, but for reads of a page that the host has, locks on them seem to succeed and mean nothing, and what
   the host remembers of its locks still excludes its own new ones. A read of an empty file tells, too (so it
   is on NFS with O_DIRECT). A descriptor with O_DIRECT reads past the pages, in whole blocks.  What a host
   that is cut off asks for waits until it is back.
 - GlusterFS ("fuse.glusterfs") is what tests/real/test_fs.py meets.  A host takes names, sizes and what a
   look-up has brought of a small file for true for a second, also when it reads with O_DIRECT (quick-read),
   unless the directory is listed or the host itself has changed the file.  What is written is there at once.
   A host that is cut off for longer than the lease (really 42 s) loses all its locks, whether or not anybody
   asks for one; its calls answer ENOTCONN from then on, and when it is back all of its descriptors work
   again, without an error and without locks.
 - MooseFS ("fuse.mfs") is the same, but for what a read with O_DIRECT gives: what was read through this
   description within the last second, unless the host itself has changed the file (reopen_reader_on_fuse()).
Not modelled: NFSv3's ESTALE, a server that restarts, classic locks, files of more than one page, errors of
reads, a computer that loses what was not synced.  Calls that are not modelled break the history that makes
them.
"""
from __future__ import annotations

import errno
import fcntl
import itertools
import math
import os
import random
import stat
import struct
import tempfile
import threading
import time
import traceback
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Callable, NoReturn

PATH = "/simulated/runs.txt"
LOCK_FILE = "/simulated/.runs.txt.lock"
# bytes of the lock file that belong to one text; the last of them is the command mutex
BUCKET = 1 << 16
APPEND = (1 << 62) + 1
FLOCK = struct.Struct("hhqqi4x")
LEASE = 20.0                    # seconds (really 90)
LATE = 1.0                      # seconds for which FUSE believes what it knows
BLOCK = 4096                    # bytes that O_DIRECT reads
LONGEST = 20_000               # system calls in one schedule; more are a livelock


class Killed(BaseException):
    """Unwinds an actor that was killed."""


class Violation(BaseException):
    """A promise was broken.  No product code can mean to catch it."""


# ======== Files =============================================================================================


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


def has_mutex(start: int, end: float) -> bool:
    """Whether a command mutex is among these bytes of the lock file, or the byte of those who append."""
    return start | BUCKET - 1 < end or start <= APPEND < end


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


class Actor:
    """A process: its descriptors, and whose turn it is."""

    def __init__(self, name: str, host: Host, *, work: Callable[[Actor], None] | None = None,
                 script: Iterator[float] | None = None) -> None:
        """work: what it does, in a thread; or script: yields the seconds until its next step."""
        self.name, self.host, self.work, self.script = name, host, work, script
        self.fds: dict[int, Description] = {}
        self.left: list[Description] = []       # what processes have that its jobs left; they end with it
        self.wake = 0.0
        self.last = 0.0             # when its last call began
        self.hand: Hand             # that does its work; World.run() says which one
        self.killed = self.finished = False
        self.reads: deque[tuple[Description, int, bytes, int]] = deque(maxlen=20)       # the last is the step
        # it has verified something while holding the command mutex, and may be about to write
        self.shielded = False
        self.full = False           # the disk is, and its last write was cut short
        # until when it has a descriptor left for the lock file, but none for a job lock
        self.lacks_files_until = 0.0

    def writes_soon(self) -> bool:
        """Whether it can write by what it reads now."""
        return any(description.writes for description in self.fds.values())

    def writes_more(self) -> bool:
        """A claim that has read a line can write a result first: both have a bucket locked."""
        return sum(description.writes for description in {*self.fds.values()}) > 1


class Hand(threading.Thread):
    """A thread that does actors' work, one after the other; few are made."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.turn = threading.Lock()
        self.turn.acquire()
        self.world: World           # whose work it does next is said before it has its turn
        self.actor: Actor
        self.start()

    def run(self) -> None:
        while True:
            self.turn.acquire()
            world, actor = self.world, self.actor
            try:
                if actor.work and not actor.killed:
                    actor.work(actor)
            except (Killed, Violation):
                pass
            except BaseException:
                world.note_violation("broke: " + traceback.format_exc())
            world.leave(actor)


# ======== The machine =======================================================================================


class World:
    """Files, actors and a clock, and whose turn it is."""

    def __init__(self, seed: int, kind: str) -> None:
        self.draws = random.Random(seed)
        self.random = self.draws.random
        self.kind, network = kind, bool(kind)
        self.switching = self.draws.choice((0.03, 0.1, 0.3, 0.6))
        self.tick = 0.0005 if network else 0.00005
        # seconds from look to look, by which all else is measured
        self.throttle = 5.0 if network else 1.0
        self.now, self.steps = 1000.0, 0
        self.errors = 0                             # how many are still to come
        # who was cut off in an addition could not cut off the half of it
        self.halves = False
        self.edits = False                          # whether there is an editor
        # how likely it is that the disk is full in the middle of a write
        self.fills = 0.0
        self.erred = 0.0                            # when the last one came
        # in which step something else than ours last changed what counts
        self.disturbed: float = -1
        self.actors: list[Actor] = []
        self.me = Actor("", Host("", kind))         # who makes system calls; at first nobody
        self.main = threading.Lock()
        self.main.acquire()
        self.over = False
        self.violation = ""
        self.names: dict[str, Inode] = {}
        self.last: Inode                            # the job file, also while it has no name
        self.directory = Inode(0, bytearray(), self.now)
        self.numbers = itertools.count(10)
        self.inodes: list[Inode] = []

    def may_write(self, me: Actor, owner: Description, data: bytes, at: int) -> bytes:
        """Check a state before it is written; the command of its line."""
        raise NotImplementedError

    def may_replace(self, me: Actor, new: Inode) -> None:
        """Check a job file before a program puts it in the place of the old one."""
        raise NotImplementedError

    def note_mutexes(self, owner: Description, start: int, end: float, opened: bool) -> None:
        """CommandMutexes among these bytes of the lock file are about to be locked, or were just opened."""
        raise NotImplementedError

    def add_lines(self) -> None:
        """The path leads to other lines now."""
        raise NotImplementedError

    # -- turns -----------------------------------------------------------------------------------------------

    def fail(self, text: str) -> NoReturn:
        self.note_violation(text)
        raise Violation(text)

    def note_violation(self, text: str) -> None:
        if not self.violation:
            self.violation = f"{self.me.name}: {text}"
            if MACHINE.trace is not None:
                MACHINE.trace.append(f"*** {self.violation}")

    def step(self, local: bool = False) -> Actor:
        """A system call is about to be made; who makes it.  Others may make some before.  Raises OSError.

        local: it does what it has to do also without the server.
        """
        me = self.me
        if me.killed or self.over or self.violation:
            raise Killed
        self.steps += 1
        me.last = self.now
        self.now += self.tick
        if self.steps > LONGEST:
            self.fail("does not come to an end")
        if self.random() < self.switching:
            self.hand_on(me)
        host = me.host
        while host.network and host.cut[0] <= self.now < host.cut[1]:
            until = host.cut[1]                 # I/O waits until the host is back
            if host.fuse:
                if self.now >= host.cut[0] + LEASE:
                    break
                until = min(until, host.cut[0] + LEASE)
            me.wake = until
            self.hand_on(me)
        if host.fuse and host.robbed < host.cut[0] and host.cut[0] + LEASE <= min(self.now, host.cut[1]):
            self.rob(host)
        # the daemon answers a call that it cannot make, also if the process is stopped until the host is back
        is_cut_off = host.cut[0] <= self.now < host.cut[1] or host.robbed > me.last
        if host.fuse and is_cut_off and not local:
            self.halves |= me.full
            me.full = False
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return me

    def sleep(self, me: Actor, seconds: float) -> None:
        if me.killed or self.over:
            raise Killed
        me.wake = self.now + max(seconds, self.tick)
        me.shielded = False
        self.hand_on(me)

    def next(self, me: Actor | None) -> Actor | None:
        """Whose turn it is, of those in threads; None: there is nobody left, or `me` was killed."""
        while self.actors and not (me and me.killed):
            ready = [actor for actor in self.actors if actor.wake <= self.now]
            if not ready:
                self.now = min(actor.wake for actor in self.actors)
                if self.now == math.inf:
                    return None
                continue
            it = ready[int(self.random() * len(ready))]
            if not it.script:
                return it
            pause = next(it.script, None)
            if pause is None:
                self.actors.remove(it)
            else:
                it.wake = self.now + pause
        return None

    def hand_on(self, me: Actor) -> None:
        """Returns when it is this actor's turn.  Raises Killed."""
        it = self.next(me)
        if me.killed:
            raise Killed
        if it is None:
            self.fail("nobody will ever have a turn again")
        if it is not me:
            self.me = it
            it.hand.turn.release()
            me.hand.turn.acquire()
            if me.killed or self.over:
                raise Killed

    def leave(self, me: Actor) -> None:
        """A thread has done its work."""
        me.finished = True
        if self.over or self.violation:
            self.over = True
            self.main.release()
            return
        if not me.killed:
            self.actors.remove(me)
            self.close_all(me)
        it = self.next(None)
        if it:
            self.me = it
            it.hand.turn.release()
        else:
            self.main.release()

    def run(self, hands: list[Hand]) -> None:
        """Have all actors do their work, to the end."""
        working = [actor for actor in self.actors if actor.work]
        while len(hands) < len(working):
            hands.append(Hand())
        for actor, hand in zip(working, hands):
            hand.world, hand.actor, actor.hand = self, actor, hand
        first = self.next(None)
        if first:                                   # else fate has killed all of them before they began
            self.me = first
            first.hand.turn.release()
            self.main.acquire()
        self.over = True
        for actor in working:                       # those who were killed, and have not heard of it yet
            if not actor.finished:
                actor.killed = True
                self.me = actor
                actor.hand.turn.release()
                self.main.acquire()
        self.over = bool(self.violation)

    # -- descriptions and locks ------------------------------------------------------------------------------

    def share_less(self, description: Description) -> None:
        """One of those who share it has closed it."""
        description.shares -= 1
        if description.shares:
            return
        inode, host = description.inode, description.host
        self.flush(host, inode)
        inode.locks = [lock for lock in inode.locks if lock.owner is not description]
        if description.writable:
            host.writers[inode] -= 1
        if description.writes:
            self.note_mutexes(description, 0, math.inf, True)

    def loses_answer(self, me: Actor) -> bool:
        """Whether an fsync() is to fail after it has synced."""
        return False

    def close_all(self, actor: Actor) -> None:
        for description in *actor.fds.values(), *actor.left:
            self.share_less(description)
        actor.fds.clear()
        actor.left.clear()

    def conflicts(self, owner: Description, start: int, end: float, exclusive: bool) -> list[Lock]:
        """What others have of these bytes.  Who was cut off for longer than the lease loses all then."""
        found = []
        for lock in owner.inode.locks:
            if (
                lock.owner is not owner
                and lock.start < end
                and start < lock.end
                and (exclusive or lock.exclusive)
            ):
                other = lock.owner.host
                if other is not owner.host and lock.real and other.cut[0] + LEASE < self.now < other.cut[1]:
                    self.rob(other)
                if other is owner.host or (lock.real and not owner.dead):
                    found.append(lock)
        return found

    def rob(self, host: Host) -> None:
        """All locks of a host are gone, and the descriptors that had them are of no use any more."""
        host.robbed, self.disturbed = self.now, math.inf
        host.pages.clear()
        for inode in self.inodes:
            for lock in inode.locks:
                if lock.owner.host is host:
                    lock.real, lock.owner.dead = False, not host.fuse
                    lock.owner.writes &= not host.fuse
            if host.fuse:                           # it forgets in silence
                inode.locks = [lock for lock in inode.locks if lock.owner.host is not host]

    def set_lock(self, owner: Description, kind: int, start: int, end: float) -> bool:
        inode, exclusive = owner.inode, kind == fcntl.F_WRLCK
        if kind != fcntl.F_UNLCK and self.conflicts(owner, start, end, exclusive):
            return False
        self.flush(owner.host, inode)
        mutexes = inode.path == LOCK_FILE and kind != fcntl.F_RDLCK and has_mutex(start, end)
        if mutexes and exclusive:
            self.note_mutexes(owner, start, end, False)
        kept = []
        for lock in inode.locks:
            if lock.owner is not owner or lock.end <= start or end <= lock.start:
                kept.append(lock)
                continue
            # CephFS keeps something else then, perhaps nothing (runmaker4.lock())
            if kind != fcntl.F_UNLCK and lock.exclusive == exclusive:
                self.fail(f"bytes {start} to {end} are locked again through the same description")
            if lock.start < start:
                kept.append(replace(lock, end=start))
            if end < lock.end:
                kept.append(replace(lock, start=int(end)))
        if kind != fcntl.F_UNLCK:
            kept.append(Lock(start, end, exclusive, owner, not owner.dead, self.steps))
            if not owner.dead:
                owner.host.pages.pop(inode, None)
        inode.locks = kept
        if mutexes:
            owner.writes = any(lock.owner is owner and has_mutex(lock.start, lock.end) for lock in kept)
            if not exclusive:
                self.note_mutexes(owner, start, end, True)
        return True

    # -- what a host sees ------------------------------------------------------------------------------------

    def page(self, host: Host, inode: Inode) -> Page:
        """What a host on NFS sees of a file."""
        page = host.pages.get(inode)
        if not page or (not page.dirty and not host.writers.get(inode) and self.now - page.read > 3.0):
            page = host.pages[inode] = Page(bytearray(inode.data), self.now)
        return page

    def view(self, host: Host, inode: Inode) -> bytearray:
        return self.page(host, inode).data if host.network else inode.data

    def flush(self, host: Host, inode: Inode) -> None:
        """Have the server see what was written."""
        page = host.pages.get(inode)
        if not page or not page.dirty:
            return
        carried = set() if any(lock.owner.host is host for lock in inode.locks) else {
            at for at, (old, new) in enumerate(zip(inode.data, page.data)) if old != new}
        dirty = {at for at in page.dirty if at < len(inode.data)}
        lost, carried = page.dirty - dirty, carried - dirty
        for at in dirty | carried:
            inode.data[at] = page.data[at]
        inode.changed = self.now
        page.dirty.clear()
        if lost:
            self.fail("a write came so late that the file ends before it")
        if carried:
            self.fail(f"a write without a lock carried old neighbours along, at {sorted(carried)}")

    def look_up(self, host: Host, path: str, fresh: bool) -> Inode | None:
        """What a path leads to; fresh: NFS asks at each open, FUSE once the file that it knows is gone."""
        known = host.names.get(path)
        if host.fuse:
            fresh &= known is not None and known[0] not in self.names.values()
        if not host.network or fresh or known is None or self.now - known[1] > (LATE if host.fuse else 30.0):
            inode = self.names.get(path)
            known = host.names[path] = inode, self.now
            if host.fuse and inode and inode not in host.small:
                host.small[inode] = bytes(inode.data), self.now
        return known[0]

    def read_directly(self, owner: Description, count: int, at: int) -> bytes:
        """What a read with O_DIRECT gives."""
        host, inode = owner.host, owner.inode
        if not host.fuse:
            return bytes(inode.data[at:at + count])
        if host.kind == "fuse.mfs":
            data, since = host.kept.get(owner, (b"", -math.inf))
            if self.now - since > LATE:
                data = bytes(inode.data)
                host.kept[owner] = data, self.now
            return data[at:at + count]
        data, since = host.small.get(inode, (b"", -math.inf))
        if self.now - since <= LATE and at < len(data):
            return data[at:at + count]
        if self.size(host, inode) <= at:
            return b""
        return bytes(inode.data[at:at + count])

    def size(self, host: Host, inode: Inode) -> int:
        """How long a host on FUSE believes a file to be."""
        size, since = host.sizes.get(inode, (0, -math.inf))
        if self.now - since > LATE:
            size = len(inode.data)
            host.sizes[inode] = size, self.now
        return size

    def make_file(self, data: bytes) -> Inode:
        inode = Inode(next(self.numbers), bytearray(data), self.now)
        self.inodes.append(inode)
        return inode

    def note_content(self, inode: Inode) -> None:
        """Somebody has changed more of a file than states."""
        inode.changed = self.now
        inode.commands = [command_of(line) for _, line in lines_of(inode.data)]
        if inode is self.names.get(PATH):
            self.add_lines()

    def name(self, path: str, inode: Inode | None) -> None:
        """Have a path lead to this file, or nowhere."""
        old = self.names.pop(path, None)
        if old and old.path == path:
            old.replaced = self.steps
        if inode:
            self.names[path] = inode
        if path == PATH and inode:
            self.last = inode
        if path in (PATH, LOCK_FILE) and inode:
            inode.path, inode.replaced = path, math.inf
            self.note_content(inode)


class Stat:
    """What stat() tells."""
    st_dev, st_mode, st_uid, st_gid = 1, stat.S_IFREG | 0o644, 0, 0

    def __init__(self, inode: Inode, size: int, names: int) -> None:
        self.st_ino, self.st_size, self.st_nlink = inode.number, size, names
        self.st_mtime_ns = int(inode.changed * 250) * 4_000_000


class Machine:
    """The system calls, of whoever's turn it is."""

    CALLS = (
        "open", "close", "dup", "pread", "preadv", "pwrite", "write", "fstat", "stat", "lstat", "fsync",
        "lseek",
        "ftruncate", "rename", "replace", "link", "unlink", "remove", "fchown", "fchmod", "listdir",
        "urandom", "pipe2",
    )
    MISSING = (
        "pwritev", "readv", "writev", "sendfile", "copy_file_range", "dup2", "pipe",
        "symlink", "truncate", "posix_fallocate", "posix_fadvise", "scandir", "access", "fdatasync", "sync",
        "fork", "posix_spawn", "posix_spawnp", "mkdir", "rmdir",
    )

    def __init__(self) -> None:
        self.world: World           # of the history that is being made
        self.trace: list[str] | None = None

    def namespaces(self) -> dict[str, Any]:
        """What takes the place of os, fcntl, time, tempfile, and of a function that reads /proc."""
        made: dict[str, Any] = {
            "file_identity_lines": lambda fd: [b"%d" % id(self.of(self.world.me, fd).inode)],
        }
        for module in os, os.path, fcntl, time, tempfile:
            made[module.__name__] = copy = types.ModuleType(module.__name__)
            copy.__dict__.update(vars(module))
        path = made[os.path.__name__]
        path.lexists = path.exists = self.traced("exists", self.exists)
        path.realpath = lambda path, **strict: str(path)
        for name in self.CALLS:
            setattr(made["os"], name, self.traced(name, getattr(self, name)))
        for name in self.MISSING:
            setattr(made["os"], name, self.missing)
        made["os"].read = self.traced("read", self.read_pipe)
        made["os"].path = path
        made["tempfile"].mkstemp = self.traced("mkstemp", self.mkstemp)
        made["fcntl"].fcntl = self.traced("fcntl", self.fcntl)
        made["time"].monotonic = made["time"].time = lambda: self.world.now
        made["time"].thread_time = float
        made["time"].sleep = lambda seconds: self.world.sleep(self.world.me, seconds)
        return made

    def traced(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call as it is, or one that notes what it did."""
        if self.trace is None:
            return call
        trace = self.trace

        def noting(*args: Any, **more: Any) -> Any:
            shown, result = args, None
            if name == "preadv":
                shown = args[0], len(args[1][0]), args[2]
            if name in ("write", "pwrite"):
                shown = args[0], bytes(args[1]), *args[2:]
            if name == "fcntl" and isinstance(args[-1], bytes):
                kind, _, start, length, _ = FLOCK.unpack(args[2])
                shown = (
                    args[0],
                    {37: "SETLK", 36: "GETLK"}.get(args[1], args[1]),
                    "RUW"[(0, 2, 1)[kind]],
                    start,
                    length,
                )
            try:
                result = call(*args, **more)
                return result
            except BaseException as error:
                result = type(error).__name__ + f" {getattr(error, 'strerror', '')}"
                raise
            finally:
                if isinstance(result, Stat):
                    result = result.st_ino, result.st_size
                actor = self.world.me
                trace.append(f"{self.world.now:9.4f} {actor.name:8} {name}{shown} = {result!r}"[:170])
        return noting

    def missing(self, *args: Any, **more: Any) -> NoReturn:
        self.world.fail(f"this call is not simulated: {args} {more}; simulation.py must learn it")

    def of(self, me: Actor, fd: int) -> Description:
        if fd not in me.fds:
            self.world.fail(f"uses descriptor {fd}, which it has closed")
        return me.fds[fd]

    def strike(self, *numbers: int) -> None:
        """An error, now and then."""
        world = self.world
        if world.errors and world.random() < 0.1:
            world.errors -= 1
            world.erred = world.now
            world.disturbed = max(world.disturbed, world.steps)
            raise OSError(world.draws.choice(numbers), "simulated error")

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        world = self.world
        me = world.step()
        host, fd = me.host, next(world.numbers)
        if path == LOCK_FILE and world.now < me.lacks_files_until and me.writes_soon():
            raise OSError(errno.EMFILE, "Too many open files")
        if flags & os.O_DIRECTORY:
            if not host.fuse:
                host.names.clear()
            me.fds[fd] = Description(world.directory, host, False, False)
            return fd
        if path.startswith("/proc/self/fd/"):
            opened = self.of(me, int(path.rpartition("/")[2]))
            if opened.written_by:               # the write end of a pipe, once more
                opened.written_by.shares += 1
                me.fds[fd] = opened.written_by
                return fd
            found: Inode | None = opened.inode
        else:
            found = world.look_up(host, path, not flags & os.O_PATH)
        if found and flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "File exists")
        if not found and flags & os.O_CREAT:
            found = world.make_file(b"")
            world.name(path, found)
            host.names.clear()
        if not found:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        inode = found
        if flags & os.O_TRUNC and inode.data:
            world.fail(f"empties {path}")
        if flags & os.O_PATH:
            me.fds[fd] = Description(inode, host, False, False)
            return fd
        if flags & os.O_DIRECT and flags & os.O_APPEND:
            raise OSError(errno.EINVAL, "Invalid argument")     # as fs/nfs/file.c says, in nfs_check_flags()
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        if not host.writers.get(inode):             # what NFS calls close-to-open
            host.pages.pop(inode, None)
        if writable:
            host.writers[inode] = host.writers.get(inode, 0) + 1
        me.fds[fd] = Description(inode, host, writable, bool(flags & os.O_APPEND), bool(flags & os.O_DIRECT))
        return fd

    def close(self, fd: int) -> None:
        me = self.world.step(local=True)
        self.of(me, fd)
        self.world.share_less(me.fds.pop(fd))

    def listdir(self, fd: int) -> list[str]:
        """FUSE asks for names and sizes with it, and GlusterFS for what has changed."""
        world = self.world
        me = world.step()
        host = me.host
        me.shielded |= host.fuse and me.writes_soon()       # its read may find what was there now
        if host.fuse:
            host.names.clear()
            host.sizes.clear()
            host.small = {
                inode: (data, world.now) for inode, (data, _) in host.small.items() if data == inode.data
            }
        return []

    def urandom(self, size: int) -> bytes:
        number: int = next(self.world.numbers)
        # the first byte varies: a share of 2^32 is a share of these
        return (number % (1 << 8 * size)).to_bytes(size, "little")

    def dup(self, fd: int) -> int:
        me = self.world.step(local=True)
        description = self.of(me, fd)
        description.shares += 1
        copy = next(self.world.numbers)
        me.fds[copy] = description
        return copy

    def pipe2(self, flags: int) -> tuple[int, int]:
        me = self.world.step(local=True)
        inode = Inode(next(self.world.numbers), bytearray(), self.world.now)
        write_end = Description(inode, me.host, writable=False, appends=False)
        read_end = Description(inode, me.host, writable=False, appends=False, written_by=write_end)
        fds = next(self.world.numbers), next(self.world.numbers)
        me.fds.update(zip(fds, (read_end, write_end)))
        return fds

    def read_pipe(self, fd: int, size: int) -> bytes:
        """Nobody writes into it: it has ended once nobody can."""
        write_end = self.of(self.world.step(local=True), fd).written_by
        if not write_end or write_end.shares:
            raise BlockingIOError
        return b""

    @staticmethod
    def check_lease(owner: Description) -> None:
        if owner.dead:
            raise OSError(errno.EBADF if owner.inode.replaced < math.inf else errno.EIO, "its lease was lost")

    def pread(self, fd: int, count: int, at: int) -> bytes:
        if self.of(self.world.me, fd).direct:
            self.world.fail("reads with O_DIRECT, and not in blocks")
        return self.read(fd, count, at)

    def preadv(self, fd: int, buffers: list[memoryview], at: int) -> int:
        buffer, = buffers
        if not self.of(self.world.me, fd).direct or at % BLOCK or len(buffer) % BLOCK:
            self.world.fail(f"reads {len(buffer)} bytes at {at} in blocks")
        data = self.read(fd, len(buffer), at)
        buffer[:len(data)] = data
        return len(data)

    def read(self, fd: int, count: int, at: int) -> bytes:
        world = self.world
        me = world.step()
        owner = self.of(me, fd)
        inode = owner.inode
        if owner.direct or inode.path == LOCK_FILE or inode not in me.host.pages:
            self.check_lease(owner)
        if owner.direct:
            world.flush(me.host, inode)
        data = (world.read_directly(owner, count, at) if owner.direct else
                bytes(world.view(me.host, inode)[at:at + count]))
        if inode.path == PATH:
            me.reads.append((owner, at, data, world.steps))
            me.shielded |= me.writes_soon()
        return data

    def pwrite(self, fd: int, data: bytes, at: int) -> int:
        world = self.world
        me = world.step()
        owner, host = self.of(me, fd), me.host
        self.check_lease(owner)
        self.strike(errno.ENOSPC, errno.EIO)
        inode = owner.inode
        if not inode.path or inode.path == LOCK_FILE:
            inode.data.extend(bytes(max(at - len(inode.data), 0)))
            inode.data[at:at + len(data)] = data
            return len(data)
        if owner.direct:
            world.fail("writes with O_DIRECT")
        cached = host.network and not host.fuse
        # It is written only once it is synced
        me.shielded = cached or (me.shielded and me.writes_more())
        for place, byte in enumerate(data, at):     # of several, those that are not as they were
            if len(data) == 1 or inode.data[place:place + 1] != bytes([byte]):
                command = world.may_write(me, owner, bytes([byte]), place)
                me.reads.append((owner, place, bytes([byte]) + command + b"\n", world.steps))
        if cached:
            page = world.page(host, inode)
            # others have made it longer, unseen by this host
            page.data.extend(bytes(max(at - len(page.data), 0)))
            page.data[at:at + len(data)] = data
            page.dirty.update(range(at, at + len(data)))
        else:
            inode.data[at:at + len(data)] = data
            inode.changed = world.now
            host.forget(inode)
        return len(data)

    def may_append(self, me: Actor, what: str) -> None:
        if not any(lock.owner in me.fds.values() and lock.exclusive and lock.covers(APPEND)
                   for inode in self.world.inodes if inode.path == LOCK_FILE for lock in inode.locks):
            self.world.fail(f"{what} without the lock")

    def write(self, fd: int, data: bytes) -> int:
        """Append, at what this host believes to be the end."""
        world = self.world
        me = world.step()
        owner = self.of(me, fd)
        world.halves |= owner.dead and me.full
        self.check_lease(owner)
        self.strike(errno.ENOSPC)
        inode, data = owner.inode, bytes(data)
        if not inode.path:
            inode.data += data
            return len(data)
        at = len(inode.data if me.host.fuse else world.view(me.host, inode))
        if not owner.appends or at != len(inode.data):
            world.fail(f"appends {data!r} over what is there")
        self.may_append(me, f"appends {data!r}")
        if me.full:
            me.full = False
            raise OSError(errno.ENOSPC, "No space left on device")
        if world.random() < world.fills:
            me.full, data = True, data[:len(data) // 2]
        inode.data += data
        world.note_content(inode)
        if me.host.fuse:
            me.host.forget(inode)
        elif me.host.network:
            # what others here have written is still to come
            world.page(me.host, inode).data[at:] = inode.data[at:]
        if me.full:
            # others may take it for whole
            me.wake = self.world.now + world.draws.choice((0.0, 0.5)) * world.throttle
            world.hand_on(me)
        return len(data)

    def ftruncate(self, fd: int, size: int) -> None:
        world = self.world
        me = world.step()
        owner = self.of(me, fd)
        self.world.halves |= owner.dead
        self.check_lease(owner)                 # SETATTR of the size has the state of the lock, as WRITE has
        # what others here have written comes first (kernel: fs/nfs/inode.c, nfs_setattr())
        world.flush(me.host, owner.inode)
        if owner.inode is world.names.get(PATH):
            self.may_append(me, "cuts the file")
            # An editor that has shortened the file in place has made untrue what runners know of its size
            if b"\nr" in owner.inode.data[max(size - 1, 0):] and not world.edits:
                world.fail("cuts off a line that is running")
        del owner.inode.data[size:]
        owner.inode.data.extend(bytes(size - len(owner.inode.data)))
        world.note_content(owner.inode)
        me.host.forget(owner.inode)

    def mkstemp(self, suffix: str = "", prefix: str = "", dir: str = "") -> tuple[int, str]:
        path = f"{dir}/{prefix}new{self.world.steps}{suffix}"
        return self.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL), path

    def rename(self, old: str, new: str) -> None:
        world = self.world
        me = world.step()
        inode = world.names[old]
        if new == PATH:
            world.may_replace(me, inode)
        world.name(old, None)
        world.name(new, inode)
        me.host.names.clear()

    replace = rename

    def link(self, old: str, new: str) -> None:
        world = self.world
        me = world.step()
        if old not in world.names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        if new in world.names:
            raise FileExistsError(errno.EEXIST, "File exists")
        world.name(new, world.names[old])
        me.host.names.clear()

    def unlink(self, path: str) -> None:
        world = self.world
        me = world.step()
        if path not in world.names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        world.name(path, None)
        me.host.names.clear()

    remove = unlink

    def fchown(self, fd: int, user: int, group: int) -> None:
        self.of(self.world.step(), fd)

    def fchmod(self, fd: int, mode: int) -> None:
        self.of(self.world.step(), fd)

    def fsync(self, fd: int) -> None:
        world = self.world
        me = world.step()
        owner = self.of(me, fd)
        if owner.inode is world.directory:
            return
        self.check_lease(owner)
        try:
            self.strike(errno.ENOSPC, errno.EIO)
        except OSError:
            me.host.pages.pop(owner.inode, None)    # the kernel forgets what it could not write
            raise
        world.flush(me.host, owner.inode)
        if world.loses_answer(me):
            raise OSError(errno.EIO, "simulated error, after all was written")
        me.shielded &= me.writes_more()

    def lseek(self, fd: int, position: int, whence: int) -> int:
        if (position, whence) != (0, os.SEEK_END):
            raise NotImplementedError
        return self.fstat(fd).st_size

    def fstat(self, fd: int) -> Stat:
        me = self.world.step()
        return self.attributes(me.host, self.of(me, fd).inode)

    def attributes(self, host: Host, inode: Inode) -> Stat:
        page = host.pages.get(inode)
        # attributes are asked for again
        if page and not page.dirty and self.world.now - inode.changed > 30.0:
            page = None
        size = self.world.size(host, inode) if host.fuse else len(page.data if page else inode.data)
        return Stat(inode, size, [*self.world.names.values()].count(inode))

    def stat(self, path: str) -> Stat:
        me = self.world.step()
        inode = self.world.look_up(me.host, path, False)
        if not inode:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return self.attributes(me.host, inode)

    lstat = stat

    def exists(self, path: str) -> bool:
        me = self.world.step()
        return self.world.look_up(me.host, path, False) is not None

    def fcntl(self, fd: int, request: int, argument: bytes | int = 0) -> bytes | int:
        if isinstance(argument, bytes):
            return self.fcntl_lock(fd, request, argument)
        owner = self.of(self.world.step(local=True), fd)
        if request == fcntl.F_SETFL:
            owner.appends = bool(argument & os.O_APPEND)
            return argument
        if request == fcntl.F_GETFL:
            return os.O_DIRECT if owner.direct else 0
        self.world.fail(f"this request is not simulated: {request}")

    def fcntl_lock(self, fd: int, request: int, argument: bytes) -> bytes:
        world = self.world
        me = world.step()
        owner = self.of(me, fd)
        kind, whence, start, length, _ = FLOCK.unpack(argument)
        end = start + length if length else math.inf
        if request == fcntl.F_OFD_GETLK:
            taken = world.conflicts(owner, start, end, kind == fcntl.F_WRLCK)
            if not taken:
                return FLOCK.pack(fcntl.F_UNLCK, whence, start, length, 0)
            one = taken[int(world.random() * len(taken))]       # it need not be the first
            return FLOCK.pack(fcntl.F_WRLCK if one.exclusive else fcntl.F_RDLCK, whence, one.start,
                              0 if one.end == math.inf else one.end - one.start, -1)
        if request != fcntl.F_OFD_SETLK:
            world.fail(f"this request is not simulated: {request}")
        if kind == fcntl.F_WRLCK and not owner.writable:
            raise OSError(errno.EBADF, "Bad file descriptor")
        if kind != fcntl.F_UNLCK:
            self.strike(errno.ENOLCK)
        elif any(lock.owner is owner and (lock.start < start < lock.end or lock.start < end < lock.end)
                 for lock in owner.inode.locks):
            self.strike(errno.EIO)              # NFS4ERR_LOCK_RANGE
        if not world.set_lock(owner, kind, start, end):
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        if kind == fcntl.F_UNLCK:
            me.shielded &= any(description.writes for description in me.fds.values())
        else:
            # its read may find what others have read since
            me.shielded |= me.host.network and owner.writes
        return argument


MACHINE = Machine()
