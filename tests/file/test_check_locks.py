"""Promise: --check-locks says whether one can rely on the locks of a directory, and leaves nothing."""
import errno
import os
import re
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import runmaker4
from tests.support.locks import locked
from tests.support.permissions import bound_by_permissions
from tests.support.processes import Ended, wait_until
from tests.support.runs import RunCase
from tests.support.scripts import RUNWAIT

# additions of each host since all were there when a test lets them come to their end
ENOUGH = 30
NO_LOCKS = (f"def lock(*args, **options):\n    raise OSError({errno.ENOLCK}, os.strerror({errno.ENOLCK}))\n"
            "runmaker4.lock = lock")
FREE_FOR_ALL = ("runmaker4.lock = lambda *args, **options: True\nrunmaker4.unlock = lambda *args: None\n"
                "runmaker4.other_locks = lambda *args: []")
# each host gets the lock for additions, whether another one has it or not
NOT_EXCLUSIVE = """
lock = runmaker4.lock
runmaker4.lock = lambda fd, offset, *args: lock(fd, offset, *args) or not offset
"""
NOT_INHERITED = """
import subprocess
popen = subprocess.Popen
subprocess.Popen = lambda command, pass_fds, **options: popen(command, **options)
"""
# somebody has the description of the child's lock when the child has ended, as SaunaFS does
OUTLIVING = """
import subprocess
popen = subprocess.Popen
subprocess.Popen = lambda command, pass_fds, **options: [
    popen(command, pass_fds=pass_fds, **options), os.dup(pass_fds[0])][0]
"""
HANGING = "import time\nrunmaker4.lock = lambda *args: time.sleep(600)"

# What a file system does to what all hosts here read: they see what was there first, or what they wrote last
ALL_OLD = """
first, preadv = {}, os.preadv
def read(fd, buffers, at):
    size = preadv(fd, buffers, at)
    text = first.setdefault((os.readlink(f"/proc/self/fd/{fd}"), at), bytes(buffers[0][:size]))
    buffers[0][:len(text)] = text
    return len(text)
os.preadv = read
"""
OWN_CACHE = """
written, pread, pwrite = {}, runmaker4.Reader.pread, os.pwrite
def remember(fd, data, at):
    written[at] = bytes(data)
    return pwrite(fd, data, at)
os.pwrite = remember
runmaker4.Reader.pread = lambda self, size, at: written.get(at) or pread(self, size, at)
"""


class CheckCase(RunCase):
    """Processes that take themselves for hosts, in a directory that is empty when they have ended."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = self.dir / "shared"
        self.folder.mkdir()

    def start_check(self, host: str, minute: float = 600, patch: str = "", mount: str = "'ceph', ()",
                    **settings: Any) -> subprocess.Popen[bytes]:
        """Start a check on a made-up host until end() is called; patch: run before runwait4 is imported."""
        statements = f"""
import os, runmaker4
os.uname = lambda: os.uname_result(['', {host!r}, '', '', ''])
runmaker4.find_mount = lambda path: runmaker4.Mount({mount})
{patch}
import runwait4
runwait4.CHECK_SECONDS, runwait4.MAX_PAUSE_SECONDS = {minute}, 0.01
class Patched(runwait4.LockCheck):
    def add(self):
        is_right = super().add()
        with open({str(self.dir)!r} + f"/added.{host}.{{os.getpid()}}", "a") as file:
            file.write("+")
        if os.path.exists({str(self.dir / "end")!r}):
            runwait4.MIN_ADDITIONS = 0
            runwait4.time = Ended
        return is_right
class Ended:
    monotonic = lambda: 1e9
    sleep = lambda seconds: None
runwait4.LockCheck = Patched
"""
        return self.start_patched(statements, "--check-locks", self.folder, script=RUNWAIT, **settings)

    def end(self) -> None:
        """Let all checks come to their end after the next addition."""
        (self.dir / "end").touch()

    def additions(self, checker: subprocess.Popen[bytes]) -> int:
        return sum(path.stat().st_size for path in self.dir.glob(f"added.*.{checker.pid}"))

    def wait_enough(self, *checkers: subprocess.Popen[bytes]) -> None:
        """Wait until all have added, and after that often enough to have found all there is."""
        for least in 1, ENOUGH:
            wanted = {checker: self.additions(checker) + least for checker in checkers}

            def enough() -> bool:
                for checker in checkers:
                    self.assertIsNone(checker.poll(), "the check has ended too early")
                return all(self.additions(checker) >= count for checker, count in wanted.items())
            wait_until(enough, what="all hosts have seen enough of each other")

    def start_adding(self, host: str = "a") -> subprocess.Popen[bytes]:
        checker = self.start_check(host)
        self.wait_enough(checker)
        return checker

    def check_all(self, *checkers: subprocess.Popen[bytes]) -> list[Ended]:
        """Let them see enough of each other, and come to their end."""
        self.wait_enough(*checkers)
        self.end()
        return [self.finish(checker) for checker in checkers]

    def check_both(self, **settings: Any) -> list[Ended]:
        return self.check_all(self.start_check("a", **settings), self.start_check("b", **settings))

    def hosts(self, ended: Ended) -> str:
        found = re.findall(r"^ *[1-9]\d* additions by (\S) ", ended.out.decode(), re.MULTILINE)
        return "".join(sorted(found))

    def assertSays(self, ended: Ended, code: int, *texts: str) -> None:
        """The exit status; at most 20 lines, which say all this; no file is left, and no process."""
        said = (ended.out + ended.err).decode()
        self.assertEqual(ended.code, code, said)
        self.assertLessEqual(said.count("\n"), 20)
        for text in texts:
            self.assertIn(text, said)
        self.assertEqual(os.listdir(self.folder), [])
        self.assertNobodyLeft()

    def assertHolds(self, ended: Ended, code: int, hosts: str, *texts: str) -> None:
        """These hosts have added, and nothing was lost."""
        self.assertSays(ended, code, *texts)
        self.assertEqual(self.hosts(ended), hosts, ended.out.decode())
        self.assertNotIn(b"NO ", ended.out)

    def assertDoesNotHold(self, ended: Ended, *texts: str) -> None:
        self.assertSays(ended, 1, "NO   ", "another directory, or TCP", *texts)


class Locks(CheckCase):
    """What holds and what does not."""

    def test_a_file_system_of_one_host_is_tried_at_once(self) -> None:
        """It would go on for ten minutes."""
        ended = self.finish(self.start_check("a", mount="'ext4', ()"))
        self.assertHolds(ended, 0, "a", "No addition was lost: this host can share job files")
        self.assertEqual(ended.err, b"")

    def test_three_hosts(self) -> None:
        for ended in self.check_all(*map(self.start_check, "abc")):
            self.assertHolds(ended, 0, "abc", "No addition was lost: these hosts can share job files")

    def test_the_same_host_twice_tells_nothing_of_others(self) -> None:
        for ended in self.check_all(self.start_check("a"), self.start_check("a")):
            self.assertHolds(ended, 1, "aa", "no other host has come: start this on another")

    def test_what_does_not_hold_is_named(self) -> None:
        lost = "an addition was lost: two hosts had the lock at once, or one has read old data"
        for why, patch, said in (("they exclude nothing", FREE_FOR_ALL, lost),
                                 ("they do not exclude", NOT_EXCLUSIVE, lost),
                                 ("nothing new is seen", ALL_OLD, lost),
                                 ("each host sees what it wrote itself", OWN_CACHE, "reads are old")):
            with self.subTest(why):
                (self.dir / "end").unlink(missing_ok=True)
                for ended in self.check_both(patch=patch):
                    self.assertDoesNotHold(ended, said)

    def test_locks_that_a_job_does_not_keep_are_found_by_one_host(self) -> None:
        for why, patch in (
            ("children do not inherit them", NOT_INHERITED),
            # classic record locks: children do not have them, and closing another descriptor frees them
            ("they end with who took them", "runmaker4.OFD_SETLK = runmaker4.fcntl.F_SETLK"),
            # a claim would be refused; a look for orphans would find one
            ("nobody sees them", "runmaker4.other_locks = lambda *args: []"),
        ):
            with self.subTest(why):
                ended = self.finish(self.start_check("a", patch=patch, mount="'ext4', ()"))
                self.assertDoesNotHold(ended, "NO   a job does not keep the lock of its runner")

    def test_locks_that_cannot_be_trimmed_are_found_by_one_host(self) -> None:
        patch = ("unlock = runmaker4.unlock\n"
                 "runmaker4.unlock = lambda fd, at, length=1: unlock(fd, at, 3 if at >= 64 else length)")
        ended, = self.check_all(self.start_check("a", patch=patch, mount="'nfs4', ()"))
        self.assertDoesNotHold(ended, "NO   a lock is lost, or stays, where a part of it is unlocked")

    def test_a_lock_that_outlives_its_process_is_found_by_one_host(self) -> None:
        ended = self.finish(self.start_check("a", patch=OUTLIVING, mount="'ext4', ()"))
        self.assertDoesNotHold(ended, "NO   a lock stays after the end of its process")

    def test_a_host_that_alone_reads_old_data_or_locks_nothing_is_found_by_both(self) -> None:
        for patch, said in (OWN_CACHE, ""), (FREE_FOR_ALL, "an addition was lost"):
            (self.dir / "end").unlink(missing_ok=True)
            for ended in self.check_all(self.start_check("a"), self.start_check("b", patch=patch)):
                self.assertDoesNotHold(ended, said)

    def test_a_host_without_locks(self) -> None:
        """The other one has nothing to do with it."""
        other = self.start_adding("b")
        self.assertIn(b"NO   no locks available", self.finish(self.start_check("a", patch=NO_LOCKS)).out)
        self.wait_enough(other)
        self.end()
        self.assertHolds(self.finish(other), 1, "b", "no other host has come")

    def test_a_mount_whose_locks_are_known_not_to_reach_others(self) -> None:
        for ended in self.check_both(mount="'lustre', frozenset({'localflock'})"):
            self.assertDoesNotHold(ended, "on Lustre mounted without flock", "To change: mount with flock.")
        # the kernel lists our lock here, as for a FUSE daemon that wants to know of none
        self.assertDoesNotHold(self.finish(self.start_check("a", mount="'fuse.new', ()")),
                               "NO   is on fuse.new, mounted so that locks do not reach other hosts",
                               "To change: use the directory where its own file system is mounted")

    def test_what_to_change_is_said_for_the_kind_of_file_system(self) -> None:
        kinds = {"nfs": "vers=4.2", "nfs4": "vers=4.2", "fuse.glusterfs": "performance.quick-read",
                 "fuse": "bindfs", "fuse.ceph-fuse": "fuse_disable_pagecache",
                 "fuse.rclone": "--vfs-cache-mode writes", "fuse.sfs": "enablefilelocks",
                 "fuse.mfs": "mfsnoposixlocks", "virtiofs": "NFS", "cifs": "NFS",
                 "beegfs": "tuneUseGlobalFileLocks", "ocfs2": "pcmk", "unheard-of": ""}
        self.end()
        started = {kind: self.start_check("a", mount=f"{kind!r}, ()", patch=NO_LOCKS) for kind in kinds}
        for kind, checker in started.items():
            with self.subTest(kind=kind):
                said = self.finish(checker).out.decode()
                self.assertIn("\nTo change: " if kinds[kind] else "\nUntil ", said)
                self.assertIn(kinds[kind], said)


class Hosts(CheckCase):
    """Hosts that end, hang, come late, or have left something behind."""

    def test_a_host_that_is_interrupted_when_all_was_seen(self) -> None:
        interrupted, other = self.start_check("a"), self.start_check("b")
        self.wait_enough(interrupted, other)
        self.assertEqual(self.stop(interrupted, signal.SIGINT).code, 130)
        self.wait_enough(other)
        self.end()
        self.assertHolds(self.finish(other), 0, "ab")

    def test_a_host_that_does_not_answer(self) -> None:
        """It may have the lock or not when it is stopped."""
        stopped = self.start_adding()
        os.kill(stopped.pid, signal.SIGSTOP)
        other = self.start_check("b", minute=1)
        ended = self.finish(other)
        self.assertEqual(ended.code, 1, ended.out)
        self.assertRegex(ended.out, b"no addition of another host|keeps the lock and does not answer")
        os.kill(stopped.pid, signal.SIGCONT)
        self.end()
        self.assertSays(self.finish(stopped), 1)

    def test_what_a_host_that_was_killed_has_left_is_removed(self) -> None:
        killed = self.start_adding()
        killed.kill()
        self.assertNotEqual(self.finish(killed).code, 0)
        (self.folder / "runmaker4-check").write_bytes(b"\xff" * 64)
        self.assertHolds(self.finish(self.start_check("b", mount="'ext4', ()")), 0, "b")

    def test_on_one_host_another_check_may_just_begin_or_end(self) -> None:
        """It has a row then, and adds nothing to it."""
        (self.folder / "runmaker4-check").touch()
        fd = runmaker4.open_lock_file_of(str(self.folder / "runmaker4-check"))
        self.addCleanup(os.close, fd)
        with locked(fd, 1):
            ended = self.finish(self.start_check("b", mount="'ext4', ()"))
        self.assertEqual(ended.code, 0, ended.out)
        self.assertIn(b"No addition was lost: this host can share job files", ended.out)

    def test_on_one_host_another_check_may_come_and_go_between_two_looks(self) -> None:
        meanwhile = f"""
import subprocess
keep_trying, calls = runmaker4.keep_trying, []
def delayed(*args):
    calls.append(args)
    if len(calls) == 3:
        subprocess.run({self.command(RUNWAIT, "--check-locks", self.folder)}, check=True)
    return keep_trying(*args)
runmaker4.keep_trying = delayed
"""
        ended = self.finish(self.start_check("b", patch=meanwhile, mount="'ext4', ()"))
        self.assertEqual((ended.code, ended.out.count(b"No addition was lost")), (0, 2), ended.out)

    def test_ctrl_c_acts_while_a_call_hangs(self) -> None:
        checker = self.start_check("a", patch=HANGING)
        wait_until(lambda: os.listdir(self.folder), what="the check has started")
        self.assertEqual(self.stop(checker, signal.SIGINT).code, 130)

    def test_a_directory_that_vanishes(self) -> None:
        checker = self.start_adding()
        self.folder.rename(self.dir / "moved")
        ended = self.finish(checker)
        self.assertEqual(ended.code, 1)
        self.assertIn(b"no such file or directory", ended.out)

    def test_directories_that_cannot_be_used(self) -> None:
        self.write("", "file")
        for name in "file", "missing":
            self.assertRefused(self.run_script(RUNWAIT, "--check-locks", name), name, "not a directory")
        bound = bound_by_permissions(self)
        self.folder.chmod(0o555)
        ended = self.finish(self.start_check("a", **bound))
        self.assertDoesNotHold(ended, "NO   ", "permission denied")


class Strangers(CheckCase):
    """What others have put into the directory does no harm."""

    def check_one(self, *texts: str) -> Ended:
        """A check on a file system of one host, which would need a child and three additions."""
        ended = self.finish(self.start_check("a", mount="'ext4', ()"))
        for text in texts:
            self.assertIn(text, ended.out.decode())
        return ended

    def test_links_and_pipes_are_never_written_to(self) -> None:
        victim = self.write("precious\n", "victim")
        path = self.folder / "runmaker4-check"
        makers: tuple[tuple[Callable[[], None], str], ...] = (
            (lambda: path.symlink_to(victim), "too many levels of symbolic links"),
            (lambda: os.link(victim, path), "has several names (hard links)"),
            (lambda: os.mkfifo(path), "not a regular file"),
            (path.mkdir, "is a directory"),
        )
        for make, said in makers:
            with self.subTest(said):
                make()
                self.assertEqual(self.check_one(said).code, 1)
                self.assertTrue(os.path.lexists(path))
                (path.rmdir if path.is_dir() else path.unlink)()
        self.assertEqual(victim.read_bytes(), b"precious\n")

    def test_nonsense_is_passed_over(self) -> None:
        for text in b"", b"{]\n", b"[" * 60_000, b"\xff" * 99, b"9" * 4096, b"\n" * 128:
            with self.subTest(text[:9]):
                (self.folder / "runmaker4-check").write_bytes(text)
                self.assertHolds(self.check_one(), 0, "a")

    def test_what_a_stranger_says_reaches_the_terminal_harmlessly(self) -> None:
        """It is in the row of a host that seems to add."""
        checker = self.start_adding(r"\x1b[2Jb")
        ended, _ = self.check_all(self.start_check("b"), checker)
        self.assertIn(b"[2Jb", ended.out)
        self.assertNotIn(b"\x1b", ended.out)
