"""What each host sees of files and their locks: local ones, on NFS, GlusterFS and MooseFS.

Why it stands for the real ones:
 - fcntl(2), "Open file description locks": a lock belongs to the description; dup() and children share it,
   the last close() gives it back, a range may be split, F_OFD_GETLK tells of any conflicting lock, not always
   of the first, and an exclusive lock wants a descriptor for writing.
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
reads, a computer that loses what was not synced.
"""
from __future__ import annotations

import fcntl
import math
from dataclasses import replace

from tests.orders.simulation.files import (
    APPEND,
    BUCKET,
    LOCK_FILE,
    PATH,
    Description,
    Host,
    Inode,
    Lock,
    Page,
    command_of,
    lines_of,
)
from tests.orders.simulation.world import LEASE, Actor, World

LATE = 1.0                      # seconds for which FUSE believes what it knows


def has_mutex(start: int, end: float) -> bool:
    """Whether a command mutex is among these bytes of the lock file, or the byte of those who append."""
    return start | BUCKET - 1 < end or start <= APPEND < end


class FileSystems(World):
    """Who has locked what, and what each host sees."""

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

    def loses_answer(self, me: Actor) -> bool:
        """Whether an fsync() is to fail after it has synced."""
        return False

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
