"""A simulated host system: files, open file descriptions, record locks, NFS, a clock, and processes that take turns.

It stands in for what the product asks of `os`, `fcntl` and `time`.  Each process (an `Actor`) makes one system call at
a time; whose turn is next is drawn from a seed, so that a history can be made again.  What runs the product is a
thread, and threads pass a baton, so never two of them run; all else (an editor, fate) is a generator.  A system call
takes a moment by the simulated clock, which jumps when everybody sleeps: so whoever is not stopped on purpose comes to
its turn in time.

Why it stands for the real one:
 - fcntl(2), "Open file description locks": a lock belongs to the description; dup() and children share it, the last
   close() gives it back, a range may be split, 2^62 is a byte like any other.  A descriptor's number is never used
   again, so that to close one twice is an error here; really, it might be somebody else's by then.
 - rename(2), unlink(2): who has a file open keeps it, whatever its path leads to now.
 - NFS is what DESIGN, section 4, has measured.  A host that has the file open for writing goes on reading the pages it
   has until a lock is *granted*; without a writer it asks again at open(), and every three seconds.  What is written
   while nobody on that host has a lock carries old neighbours along.  A path is looked up anew by open(), or when the
   directory was opened.  A host that is cut off for longer than the lease loses all its locks once somebody asks for
   one of them; then the descriptors that had them answer EIO, but for reads of a page that the host has, locks on them
   mean nothing, and what the host remembers of its locks still excludes its own new ones.  A descriptor with O_DIRECT
   reads and writes past the pages.  "ceph" stands for other network file systems, at their worst.
Not modelled: NFSv3's ESTALE, a server that restarts, classic locks, files of more than one page, errors of reads, a
computer that loses what was not synced.  Calls that are not modelled break the history that makes them.
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
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator

PATH = "/simulated/runs.txt"
FAR = 1 << 61                   # the bytes that are locked for other reasons than a line begin here, at the latest
FLOCK = struct.Struct("hhqqi4x")
LEASE = 20.0                    # seconds (really 90)
LONGEST = 100_000               # system calls in one schedule; more are a livelock


class Killed(BaseException):
    """Unwinds an actor that was killed."""


class Violation(BaseException):
    """A promise was broken.  No product code can mean to catch it."""


# ======== Files =======================================================================================================


def command_of(line: bytes) -> bytes:
    """What must never change of a line: of a job all but its state."""
    return line[1:] if len(line) > 1 and line[1:2] == b" " and line[:1] != b"#" else line


def lines_of(data: bytes) -> Iterator[tuple[int, bytes]]:
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
    real: bool = True           # the server knows it; else only its host believes in it


@dataclass(eq=False)
class Inode:
    number: int
    data: bytearray
    changed: float = 0.0
    locks: list[Lock] = field(default_factory=list)
    commands: list[bytes] = field(default_factory=list)     # what its lines are by all that editors and appends did
    nameless: float = math.inf  # since which step no path leads to it


@dataclass(eq=False)
class Page:
    """What a host remembers of a file on NFS."""
    data: bytearray
    read: float                                             # when
    dirty: set[int] = field(default_factory=set)            # offsets that the server has not seen yet


@dataclass(eq=False)
class Host:
    name: str
    kind: str                                               # of its file system: "" local, "nfs4", "ceph"
    pages: dict[Inode, Page] = field(default_factory=dict)
    names: dict[str, tuple[Inode | None, float]] = field(default_factory=dict)      # what it remembers, since when
    writers: dict[Inode, int] = field(default_factory=dict)
    cut: tuple[float, float] = (math.inf, math.inf)         # off from the network, from when to when
    robbed: float = -math.inf                               # when its locks were taken away

    @property
    def network(self) -> bool:
        return bool(self.kind)


@dataclass(eq=False)
class Description:
    """An open file description: what open() makes, and dup() and children share."""
    inode: Inode | None         # None: a directory
    host: Host
    writable: bool
    appends: bool
    direct: bool = False        # past the pages of its host
    shares: int = 1
    exclusive: int = 0          # how many exclusive locks it has
    dead: bool = False          # its lease was lost


class Actor:
    """A process: its descriptors, and whose turn it is."""

    def __init__(self, name: str, host: Host, *, work: Callable[[Actor], None] | None = None,
                 script: Iterator[float] | None = None) -> None:
        """work: what it does, in a thread; or script: yields the seconds until its next step."""
        self.name, self.host, self.work, self.script = name, host, work, script
        self.fds: dict[int, Description] = {}
        self.wake = 0.0
        self.hand: Hand | None = None
        self.killed = self.finished = False
        self.reads: deque[tuple[Inode, int, bytes]] = deque(maxlen=20)
        self.shielded = False       # it has verified something under its lock, and may be about to write
        self.looked = 0             # the step of its last look at the path
        self.full = False           # the disk is, and its last write was cut short


class Hand(threading.Thread):
    """A thread that does actors' work, one after the other; few are made."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.turn = threading.Lock()
        self.turn.acquire()
        self.world: World | None = None
        self.actor: Actor | None = None
        self.start()

    def run(self) -> None:
        while True:
            self.turn.acquire()
            world, actor = self.world, self.actor
            try:
                if not actor.killed:
                    actor.work(actor)
            except (Killed, Violation):
                pass
            except BaseException:
                world.note_violation("broke: " + traceback.format_exc())
            world.leave(actor)


# ======== The machine =================================================================================================


class World:
    """Files, actors and a clock, and whose turn it is."""

    def __init__(self, seed: int, kind: str) -> None:
        self.draws = random.Random(seed)
        self.random = self.draws.random
        self.kind, network = kind, bool(kind)
        self.switching = self.draws.choice((0.03, 0.1, 0.3, 0.6))
        self.tick = 0.0005 if network else 0.00005
        self.pace = 5.0 if network else 1.0         # seconds from look to look, by which all else is measured
        self.now, self.steps = 1000.0, 0
        self.errors = 0                             # how many are still to come
        self.actors: list[Actor] = []
        self.me: Actor | None = None                # who makes system calls
        self.main = threading.Lock()
        self.main.acquire()
        self.over = False
        self.violation = ""
        self.names: dict[str, Inode] = {}
        self.last: Inode | None = None              # the file of jobs, also while it has no name
        self.numbers = itertools.count(10)
        self.inodes: list[Inode] = []

    def may_write(self, me: Actor, owner: Description, data: bytes, at: int) -> bytes:
        """Check a state before it is written; the command of its line."""
        raise NotImplementedError

    def note_replaced(self) -> None:
        """A program has put another file in the place of the file of jobs."""
        raise NotImplementedError

    # -- turns --------------------------------------------------------------------------------------------------------

    def fail(self, text: str) -> None:
        self.note_violation(text)
        raise Violation(text)

    def note_violation(self, text: str) -> None:
        if not self.violation:
            self.violation = f"{self.me.name if self.me else ''}: {text}"
            if MACHINE.trace is not None:
                MACHINE.trace.append(f"*** {self.violation}")

    def step(self) -> Actor:
        """A system call is about to be made; who makes it.  Others may make some before."""
        me = self.me
        if me.killed or self.over:
            raise Killed
        self.steps += 1
        self.now += self.tick
        if self.steps > LONGEST:
            self.fail("does not come to an end")
        if self.random() < self.switching:
            self.hand_on(me)
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
        self.me = self.next(None)
        if self.me:                                 # else fate has killed all of them before they began
            self.me.hand.turn.release()
            self.main.acquire()
        self.over = True
        for actor in working:                       # those who were killed, and have not heard of it yet
            if not actor.finished:
                actor.killed = True
                self.me = actor
                actor.hand.turn.release()
                self.main.acquire()
        self.over = bool(self.violation)

    # -- descriptions and locks ---------------------------------------------------------------------------------------

    def share_less(self, description: Description) -> None:
        """One of those who share it has closed it."""
        description.shares -= 1
        if description.shares or not description.inode:
            return
        inode, host = description.inode, description.host
        self.flush(host, inode)
        inode.locks = [lock for lock in inode.locks if lock.owner is not description]
        if description.writable:
            host.writers[inode] -= 1

    def close_all(self, actor: Actor) -> None:
        for description in actor.fds.values():
            self.share_less(description)
        actor.fds.clear()

    def conflict(self, owner: Description, start: int, end: float, exclusive: bool) -> bool:
        """Whether somebody else has one of these bytes.  Who was cut off for longer than the lease loses all then."""
        for lock in owner.inode.locks:
            if lock.owner is not owner and lock.start < end and start < lock.end and (exclusive or lock.exclusive):
                other = lock.owner.host
                if other is not owner.host and lock.real and other.cut[0] + LEASE < self.now < other.cut[1]:
                    self.rob(other)
                if other is owner.host or lock.real and not owner.dead:
                    return True
        return False

    def rob(self, host: Host) -> None:
        """All locks of a host are gone, and the descriptors that had them are of no use any more."""
        host.robbed = self.now
        host.pages.clear()
        for inode in self.inodes:
            for lock in inode.locks:
                if lock.owner.host is host:
                    lock.real, lock.owner.dead = False, True

    def set_lock(self, owner: Description, kind: int, start: int, end: float) -> bool:
        inode, exclusive = owner.inode, kind == fcntl.F_WRLCK
        if kind != fcntl.F_UNLCK and self.conflict(owner, start, end, exclusive):
            return False
        self.flush(owner.host, inode)
        kept = []
        for lock in inode.locks:
            if lock.owner is not owner or lock.end <= start or end <= lock.start:
                kept.append(lock)
                continue
            if lock.start < start:
                kept.append(Lock(lock.start, start, lock.exclusive, owner, lock.real))
            if end < lock.end:
                kept.append(Lock(int(end), lock.end, lock.exclusive, owner, lock.real))
        if kind != fcntl.F_UNLCK:
            kept.append(Lock(start, end, exclusive, owner, not owner.dead))
            if not owner.dead:
                owner.host.pages.pop(inode, None)
        inode.locks = kept
        owner.exclusive = sum(lock.exclusive for lock in kept if lock.owner is owner)
        return True

    # -- what a host sees ---------------------------------------------------------------------------------------------

    def page(self, host: Host, inode: Inode) -> Page:
        """What a host on NFS sees of a file."""
        page = host.pages.get(inode)
        if not page or not page.dirty and not host.writers.get(inode) and self.now - page.read > 3.0:
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
        known = host.names.get(path)
        if not host.network or fresh or known is None or self.now - known[1] > 30.0:
            known = host.names[path] = self.names.get(path), self.now
        return known[0]

    def make_file(self, data: bytes) -> Inode:
        inode = Inode(next(self.numbers), bytearray(data), self.now)
        self.inodes.append(inode)
        self.note_content(inode)
        return inode

    def note_content(self, inode: Inode) -> None:
        inode.commands = [command_of(line) for _, line in lines_of(inode.data)]

    def name(self, path: str, inode: Inode | None) -> None:
        """Have a path lead to this file, or nowhere."""
        old = self.names.pop(path, None)
        if inode:
            self.names[path] = inode
        if path == PATH:
            self.last = inode or self.last
        if old and old not in self.names.values():
            old.nameless = self.steps


class Stat:
    """What stat() tells."""
    st_dev, st_mode, st_nlink, st_uid, st_gid = 1, stat.S_IFREG | 0o644, 1, 0, 0

    def __init__(self, inode: Inode, size: int) -> None:
        self.st_ino, self.st_size, self.st_mtime_ns = inode.number, size, int(inode.changed * 250) * 4_000_000


class Machine:
    """The system calls, of whoever's turn it is."""
    CALLS = ("open", "close", "dup", "pread", "pwrite", "write", "fstat", "stat", "fsync", "ftruncate", "rename",
             "unlink", "fchown", "fchmod")
    MISSING = ("read", "preadv", "pwritev", "readv", "writev", "sendfile", "copy_file_range", "lseek", "dup2", "pipe",
               "replace", "link", "symlink", "remove", "truncate", "lstat", "posix_fallocate",
               "scandir", "listdir", "access", "fdatasync", "sync", "fork", "posix_spawn", "mkdir", "rmdir")

    def __init__(self) -> None:
        self.world: World | None = None
        self.trace: list[str] | None = None

    def namespaces(self) -> dict[str, Any]:
        """What is to take the place of the modules os, fcntl, time, tempfile, and of a function that reads /proc."""
        made: dict[str, Any] = {"inode_of": lambda fd: [b"%d" % id(self.of(self.world.me, fd).inode)]}
        for module in os, os.path, fcntl, time, tempfile:
            made[module.__name__] = copy = types.ModuleType(module.__name__)
            copy.__dict__.update(vars(module))
        path = made[os.path.__name__]
        path.lexists = path.exists = self.traced("exists", self.exists)
        path.realpath = str
        for name in self.CALLS:
            setattr(made["os"], name, self.traced(name, getattr(self, name)))
        for name in self.MISSING:
            setattr(made["os"], name, self.missing)
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

        def noting(*args: Any, **more: Any) -> Any:
            shown, result = args, None
            if name == "fcntl":
                kind, _, start, length, _ = FLOCK.unpack(args[2]) if isinstance(args[2], bytes) else (2, 0, 0, 0, 0)
                shown = args[0], {37: "SETLK", 36: "GETLK"}.get(args[1], args[1]), "RUW"[(0, 2, 1)[kind]], start, length
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
                self.trace.append(f"{self.world.now:9.4f} {actor.name:8} {name}{shown} = {result!r}"[:170])
        return noting

    def missing(self, *args: Any, **more: Any) -> None:
        self.world.fail(f"this call is not simulated: {args} {more}; tests/simulation.py must learn it")

    def of(self, me: Actor, fd: int) -> Description:
        if fd not in me.fds:
            self.world.fail(f"uses descriptor {fd}, which it has closed")
        return me.fds[fd]

    def strike(self, *numbers: int) -> None:
        """An error, now and then."""
        world = self.world
        if world.errors and world.random() < 0.1:
            world.errors -= 1
            raise OSError(world.draws.choice(numbers), "simulated error")

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        world = self.world
        me = world.step()
        host, fd = me.host, next(world.numbers)
        if flags & os.O_DIRECTORY:
            host.names.clear()
            me.fds[fd] = Description(None, host, False, False)
            return fd
        me.looked = world.steps
        inode = world.look_up(host, path, not flags & os.O_PATH)
        if not inode:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        if flags & os.O_PATH:
            me.fds[fd] = Description(inode, host, False, False)
            return fd
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        if not host.writers.get(inode):             # what NFS calls close-to-open
            host.pages.pop(inode, None)
        if writable:
            host.writers[inode] = host.writers.get(inode, 0) + 1
        me.fds[fd] = Description(inode, host, writable, bool(flags & os.O_APPEND), bool(flags & os.O_DIRECT))
        return fd

    def close(self, fd: int) -> None:
        me = self.world.step()
        self.of(me, fd)
        self.world.share_less(me.fds.pop(fd))

    def dup(self, fd: int) -> int:
        me = self.world.step()
        description = self.of(me, fd)
        description.shares += 1
        copy = next(self.world.numbers)
        me.fds[copy] = description
        return copy

    def pread(self, fd: int, count: int, at: int) -> bytes:
        world = self.world
        me = world.step()
        owner = self.of(me, fd)
        if owner.dead and (owner.direct or owner.inode not in me.host.pages):
            raise OSError(errno.EIO, "Input/output error")
        if owner.direct:
            world.flush(me.host, owner.inode)
        view = owner.inode.data if owner.direct else world.view(me.host, owner.inode)
        data = bytes(view[at:at + count])
        me.reads.append((owner.inode, at, data))
        me.shielded |= owner.exclusive > 0
        return data

    def pwrite(self, fd: int, data: bytes, at: int) -> int:
        world = self.world
        me = world.step()
        owner, host = self.of(me, fd), me.host
        if owner.dead:
            raise OSError(errno.EIO, "Input/output error")
        self.strike(errno.ENOSPC, errno.EIO)
        cached = host.network and not owner.direct
        me.shielded = cached                        # it is written only once it is synced
        command = world.may_write(me, owner, data, at)
        me.reads.append((owner.inode, at, data + command + b"\n"))
        if owner.direct:
            world.flush(host, owner.inode)
            host.pages.pop(owner.inode, None)
        if cached:
            page = world.page(host, owner.inode)
            page.data[at:at + 1] = data
            page.dirty.add(at)
        else:
            owner.inode.data[at:at + 1] = data
            owner.inode.changed = world.now
        return 1

    def write(self, fd: int, data: bytes) -> int:
        """Append, at what this host believes to be the end."""
        world = self.world
        me = world.step()
        owner = self.of(me, fd)
        self.strike(errno.ENOSPC)
        inode, data = owner.inode, bytes(data)
        if inode is world.names.get(PATH + ".new"):         # nobody knows it yet
            inode.data += data
            world.note_content(inode)
            return len(data)
        at = len(world.view(me.host, inode))
        if not owner.appends or at != len(inode.data):
            world.fail(f"appends {data!r} over what is there")
        if not any(lock.owner is owner and lock.exclusive and lock.start >= FAR for lock in inode.locks):
            world.fail(f"appends {data!r} without the lock")
        if me.full:
            me.full = False
            raise OSError(errno.ENOSPC, "No space left on device")
        if world.errors and world.random() < 0.5:
            me.full, data = True, data[:len(data) // 2]
        inode.data += data
        inode.changed = world.now
        world.note_content(inode)
        if me.host.network:
            world.page(me.host, inode).data[at:] = inode.data[at:]     # what others here have written is still to come
        return len(data)

    def ftruncate(self, fd: int, size: int) -> None:
        world = self.world
        me = world.step()
        owner = self.of(me, fd)
        if not any(lock.owner is owner and lock.exclusive and lock.start >= FAR for lock in owner.inode.locks):
            world.fail("cuts the file without the lock")
        del owner.inode.data[size:]
        world.note_content(owner.inode)
        me.host.pages.pop(owner.inode, None)

    def mkstemp(self, prefix: str, dir: str) -> tuple[int, str]:
        world = self.world
        me, fd = world.step(), next(world.numbers)
        inode = world.make_file(b"")
        world.name(PATH + ".new", inode)
        me.host.writers[inode] = 1
        me.fds[fd] = Description(inode, me.host, True, False)
        return fd, PATH + ".new"

    def rename(self, old: str, new: str) -> None:
        world = self.world
        me = world.step()
        inode = world.names[old]
        world.name(new, inode)
        world.name(old, None)
        me.host.names.clear()
        world.note_replaced()

    def unlink(self, path: str) -> None:
        world = self.world
        world.step()
        if path not in world.names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        world.name(path, None)

    def fchown(self, fd: int, user: int, group: int) -> None:
        self.of(self.world.step(), fd)

    def fchmod(self, fd: int, mode: int) -> None:
        self.of(self.world.step(), fd)

    def fsync(self, fd: int) -> None:
        world = self.world
        me = world.step()
        owner = self.of(me, fd)
        if not owner.inode:                         # a directory
            return
        if owner.dead:
            raise OSError(errno.EIO, "Input/output error")
        try:
            self.strike(errno.ENOSPC, errno.EIO)
        except OSError:
            me.host.pages.pop(owner.inode, None)    # the kernel forgets what it could not write
            raise
        world.flush(me.host, owner.inode)
        me.shielded = False

    def fstat(self, fd: int) -> Stat:
        me = self.world.step()
        return self.attributes(me.host, self.of(me, fd).inode)

    @staticmethod
    def attributes(host: Host, inode: Inode) -> Stat:
        page = host.pages.get(inode)
        return Stat(inode, len(page.data if page else inode.data))

    def stat(self, path: str) -> Stat:
        world = self.world
        me = world.step()
        me.looked = world.steps
        inode = world.look_up(me.host, path, False)
        if not inode:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return self.attributes(me.host, inode)

    def exists(self, path: str) -> bool:
        me = self.world.step()
        return self.world.look_up(me.host, path, False) is not None

    def fcntl(self, fd: int, request: int, argument: bytes) -> bytes:
        world = self.world
        me = world.step()
        owner = self.of(me, fd)
        if request == fcntl.F_SETFL:
            owner.appends = bool(argument & os.O_APPEND)
            return argument
        kind, whence, start, length, _ = FLOCK.unpack(argument)
        end = start + length if length else math.inf
        if request == fcntl.F_OFD_GETLK:
            taken = world.conflict(owner, start, end, kind == fcntl.F_WRLCK)
            return FLOCK.pack(kind if taken else fcntl.F_UNLCK, whence, start, length, -1 if taken else 0)
        if request != fcntl.F_OFD_SETLK:
            world.fail(f"this request is not simulated: {request}")
        if kind != fcntl.F_UNLCK:
            self.strike(errno.ENOLCK)
        if not world.set_lock(owner, kind, start, end):
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        me.shielded |= me.host.network and kind == fcntl.F_WRLCK    # its read may find what others have read since
        return argument


MACHINE = Machine()
