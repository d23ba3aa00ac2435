"""The system calls of the simulated host system: what the product asks of `os`, `fcntl` and `time`.

A descriptor's number is never used again, so that to close one twice is an error here; really, it might be
somebody else's by then.  Calls that are not modelled break the history that makes them.
"""
from __future__ import annotations

import errno
import fcntl
import math
import os
import stat
import struct
import tempfile
import time
import types
from typing import Any, Callable, NoReturn

from tests.orders.simulation.file_systems import FileSystems
from tests.orders.simulation.files import APPEND, LOCK_FILE, PATH, Description, Host, Inode
from tests.orders.simulation.world import Actor

FLOCK = struct.Struct("hhqqi4x")
BLOCK = 4096                    # bytes that O_DIRECT reads


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
        self.world: FileSystems     # of the history that is being made
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
        self.world.fail(f"this call is not simulated: {args} {more}; the simulation must learn it")

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
