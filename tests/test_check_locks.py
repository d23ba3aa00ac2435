"""Promise: --check-locks says whether runners can rely on the locks of a directory, and leaves nothing there.
"""
import errno
import os
import pathlib
import re
import signal
import subprocess
import unittest
from typing import Any

from tests.support import RUNWAIT, Ended, RunCase, peak_memory, wait_until

TRIALS = ("excluded", "inherited", "fresh")
# numbers that all hosts have counted since all were there when a test lets them come to their end
ENOUGH = 5
NO_LOCKS = (f"def lock(*args, **options):\n    raise OSError({errno.ENOLCK}, os.strerror({errno.ENOLCK}))\n"
            "runmaker4.lock = lock")
FREE_FOR_ALL = ("runmaker4.lock = lambda *args, **options: True\nrunmaker4.unlock = lambda *args: None\n"
                "runmaker4.is_free = lambda *args: True\nrunmaker4.other_locks = lambda *args: []")
HANGING = "import time\nrunmaker4.lock = lambda *args: time.sleep(60)"

# What a file system does to what all hosts here read and rename
ALL_OLD = """
first, preadv = {}, os.preadv
def read(fd, buffers, at):
    size = preadv(fd, buffers, at)
    text = first.setdefault((os.readlink(f"/proc/self/fd/{fd}"), at), bytes(buffers[0][:size]))
    buffers[0][:len(text)] = text
    return len(text)
os.preadv = read
"""
# A host that takes its locks late, and one that holds a byte for long while it tries it
LATE_LOCKS = """
import time, runwait4
take_test_locks = runwait4.LockCheck.take_test_locks
def take_late(*args):
    time.sleep(1)
    take_test_locks(*args)
runwait4.LockCheck.take_test_locks = staticmethod(take_late)
"""
LONG_TRIAL = """
import time
unlock = runmaker4.unlock
def unlock_late(fd, at):
    time.sleep(0.1)
    unlock(fd, at)
runmaker4.unlock = unlock_late
"""


class CheckCase(RunCase):
    """Processes that take themselves for hosts, in a directory that is empty when they have ended."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = self.dir / "shared"
        self.folder.mkdir()

    def start_check(
        self,
        host: str,
        boot: str = "",
        silence: float = 40,
        pause: float = 0.05,
        minute: float = 600,
        patch: str = "",
        mount: str = "'ceph', ()",
        **settings: Any,
    ) -> subprocess.Popen[bytes]:
        """Start a check on a made-up host, which goes on until end() is called.

        patch: statements before runwait4 is imported.
        """
        statements = f"""
import os, runmaker4
os.uname = lambda: os.uname_result(['', {host!r}, '', '', ''])
runmaker4.find_mount = lambda path: runmaker4.Mount({mount})
{patch}
import runwait4
runwait4.boot_id = lambda: {boot or host!r}
update_hosts = runwait4.LockCheck.update_hosts
def visit_until_the_end(self):
    try:
        update_hosts(self)
    finally:
        if os.path.exists({str(self.dir / "end")!r}):
            self.CHECK_SECONDS = 0
class Patched(runwait4.LockCheck):
    CHECK_SECONDS, PAUSE_SECONDS, MAX_SILENT_SECONDS = {minute}, {pause}, {silence}
    update_hosts = visit_until_the_end
runwait4.LockCheck = Patched
"""
        return self.start_patched(statements, "--check-locks", self.folder, script=RUNWAIT, **settings)

    def end(self) -> None:
        """Let all checks come to their end after the next number."""
        (self.dir / "end").touch()

    def files(self) -> list[pathlib.Path]:
        """The files that hosts have made to say who they are."""
        return [
            path
            for path in self.folder.iterdir()
            if re.fullmatch("runmaker4-check-.*-[0-9a-f]{8}", path.name)
        ]

    def numbers(self) -> list[int]:
        """How far each host has counted."""
        return [int(path.read_bytes()[:6] or 0) for path in self.files()]

    def wait_known(self, checker: subprocess.Popen[bytes], hosts: int = 1) -> None:
        """Wait until so many hosts have said who they are."""
        def known() -> bool:
            self.assertIsNone(checker.poll(), "the check has ended too early")
            return sum(bool(path.stat().st_size) for path in self.files()) >= hosts
        wait_until(known, 20, f"{hosts} hosts have said who they are")

    def start_waiting(self, host: str = "a", **settings: Any) -> subprocess.Popen[bytes]:
        """Start a check, and wait until it has said who it is."""
        known = len(self.files())
        checker = self.start_check(host, **settings)
        self.wait_known(checker, known + 1)
        return checker

    def wait_enough(self, *checkers: subprocess.Popen[bytes]) -> None:
        """Wait until all have looked at each other, often enough to have tried all."""
        self.wait_known(checkers[0], len(checkers))
        least = max(self.numbers()) + ENOUGH

        def enough() -> bool:
            for checker in checkers:
                self.assertIsNone(checker.poll(), "the check has ended too early")
            return min(self.numbers()) >= least
        wait_until(enough, 40, "all hosts have seen enough of each other")

    def wait_number(self, host: str) -> None:
        """Wait until a host has come far enough to have tried all that it sees."""
        def count() -> int:
            return max((int(path.read_bytes()[:6] or 0)
                        for path in self.folder.glob(f"runmaker4-check-{host}-????????")), default=0)
        least = count() + ENOUGH
        wait_until(lambda: count() >= least, 40, f"{host} has seen enough")

    def child(self, checker: subprocess.Popen[bytes]) -> int:
        """The process that does what a check waits for."""
        pid = checker.pid
        return int(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text())

    def finish_all(self, *checkers: subprocess.Popen[bytes]) -> list[Ended]:
        return [self.finish(checker) for checker in checkers]

    def check_all(self, *checkers: subprocess.Popen[bytes]) -> list[Ended]:
        """Let them see enough of each other, and come to their end."""
        self.wait_enough(*checkers)
        self.end()
        return self.finish_all(*checkers)

    def check_both(self, **settings: Any) -> list[Ended]:
        """A check on two hosts, a and b."""
        return self.check_all(self.start_check("a", **settings), self.start_check("b", **settings))

    def rows(self, ended: Ended) -> dict[str, list[str]]:
        """What the table says of each host."""
        table = re.findall(r"^(\S+) +((?:(?:yes|NO|-) +){3})", ended.out.decode(), re.MULTILINE)
        return {name: cells.split() for name, cells in table}

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
        """All was tried with these hosts, and holds."""
        self.assertSays(ended, code, *texts)
        wanted = {host: ["yes"] * len(TRIALS) for host in hosts}
        self.assertEqual(self.rows(ended), wanted, ended.out.decode())
        self.assertNotIn(b"NO ", ended.out)

    def assertDoesNotHold(self, ended: Ended, *texts: str) -> None:
        self.assertSays(ended, 1, "NO   ", "another directory, or TCP", *texts)


class Locks(CheckCase):
    """What holds and what does not."""

    def test_a_file_system_of_one_host_is_tried_at_once(self) -> None:
        """It would go on for ten minutes."""
        ended = self.finish(self.start_check("a", mount="'ext4', ()"))
        self.assertHolds(ended, 0, "a", "All trials passed on this host. Other hosts do not see ext4")
        self.assertEqual(ended.err, b"")

    def test_a_file_system_that_hosts_may_share_needs_a_second_host(self) -> None:
        ended, = self.check_all(self.start_check("a"))
        self.assertHolds(ended, 1, "a", "ceph, this host", "No other has come: start this on another")

    def test_a_host_that_is_slow_tries_all_on_itself_although_its_minute_is_over(self) -> None:
        ended = self.finish(self.start_check("a", minute=0))
        self.assertHolds(ended, 1, "a", "No other has come: start this on another")

    def test_three_hosts(self) -> None:
        for ended in self.check_all(*map(self.start_check, "abc")):
            self.assertHolds(
                ended, 0, "abc", "If the other hosts print the same, they can share"
            )

    def test_the_same_host_twice_tells_nothing_of_others(self) -> None:
        for ended in self.check_both(boot="1"):
            self.assertHolds(ended, 1, "ab", "All trials passed on this host. No other has come")

    def test_nobody_tries_a_lock_that_its_host_has_not_taken_yet(self) -> None:
        """Else the trial would refuse it the lock."""
        late = self.start_waiting("a", patch=LATE_LOCKS)
        for ended in self.check_all(late, self.start_check("b", patch=LONG_TRIAL)):
            self.assertHolds(ended, 0, "ab")

    def test_hosts_of_one_name(self) -> None:
        for ended in self.check_all(self.start_check("c"), self.start_check("c", boot="2")):
            self.assertDoesNotHold(ended, "c: several hosts have this name", "rename them")

    def test_what_does_not_hold_is_named(self) -> None:
        exclude = "NO   excluded: failed for a, b (a byte that one host has locked cannot be locked"
        for why, patch, wanted, said in (
            ("they do not exclude", FREE_FOR_ALL, (), exclude),
            # a claim would be refused; a look for orphans would find one
            ("they only seem to", "runmaker4.is_free = lambda *args: True", ("excluded", "inherited"), ""),
            # classic record locks: children do not have them, and closing another descriptor frees them
            ("they end with who took them", "runmaker4.OFD_SETLK = runmaker4.fcntl.F_SETLK", (),
             "NO   inherited: failed for a, b"),
            ("nothing new is seen", ALL_OLD, ("fresh",), "")):
            with self.subTest(why):
                for ended in self.check_both(patch=patch):
                    self.assertDoesNotHold(ended, said)
                    if wanted:
                        cells = ["NO" if what in wanted else "yes" for what in TRIALS]
                        self.assertEqual(self.rows(ended)["b"], cells, ended.out.decode())
                (self.dir / "end").unlink()

    def test_locks_of_one_host_that_do_not_reach_the_other(self) -> None:
        """What b locks is locked nowhere: a sees that, and b sees it, too."""
        for ended in self.check_all(self.start_check("a"), self.start_check("b", patch=FREE_FOR_ALL)):
            self.assertDoesNotHold(ended, "NO   excluded: failed for ")
            self.assertIn("NO", self.rows(ended)["b"])

    def test_a_host_without_locks_is_seen_by_the_other(self) -> None:
        without, other = self.start_check("a", patch=NO_LOCKS), self.start_waiting("b")
        self.wait_number("b")
        self.end()
        ended, seen = self.finish_all(without, other)
        self.assertDoesNotHold(ended, "NO   a: no locks available")
        self.assertDoesNotHold(seen, "NO   excluded: failed for a (")

    def test_a_mount_whose_locks_are_known_not_to_reach_others(self) -> None:
        for ended in self.check_both(mount="'lustre', frozenset({'localflock'})"):
            self.assertDoesNotHold(
                ended, ": is on Lustre mounted without flock", "To change: mount with flock."
            )

    def test_what_to_change_is_said_for_the_kind_of_file_system(self) -> None:
        kinds = {
            "nfs": "vers=4.2", "nfs4": "vers=4.2", "fuse.glusterfs": "performance.quick-read",
            "fuse": "bindfs", "fuse.ceph-fuse": "fuse_disable_pagecache",
            "beegfs": "tuneUseGlobalFileLocks", "ocfs2": "pcmk", "unheard-of": "",
        }
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
        interrupted.send_signal(signal.SIGINT)
        self.assertEqual(self.finish(interrupted).code, 130)
        self.assertEqual([path.name[:17] for path in self.files()], ["runmaker4-check-b"])
        self.end()
        self.assertHolds(self.finish(other), 0, "ab")

    def test_a_host_that_leaves_before_all_was_seen(self) -> None:
        leaving = self.start_waiting(pause=600)
        other = self.start_check("b")
        self.wait_number("b")
        leaving.send_signal(signal.SIGINT)
        self.assertEqual(self.finish(leaving).code, 130)
        self.wait_enough(other)
        self.end()
        self.assertSays(self.finish(other), 1, "Some trials are missing for a (")

    def test_a_host_that_never_answers(self) -> None:
        hanging = self.start_waiting()
        self.wait_number("a")
        os.kill(self.child(hanging), signal.SIGSTOP)
        other = self.start_check("b")
        self.wait_number("b")
        self.end()
        ended = self.finish(other)
        self.assertEqual((ended.code, len(self.files())), (1, 1), ended.out)
        self.assertIn(b"Some trials are missing for a (", ended.out)
        os.kill(self.child(hanging), signal.SIGCONT)
        self.assertSays(self.finish(hanging), 1)

    def test_what_a_host_that_was_killed_has_left_is_said_and_removed(self) -> None:
        killed = self.start_waiting()
        os.kill(self.child(killed), signal.SIGKILL)
        self.assertNotEqual(self.finish(killed).code, 0)
        other = self.start_check("b")
        self.wait_number("b")
        self.end()
        self.assertSays(self.finish(other), 1, "Some trials are missing for a (")
        (self.dir / "end").unlink()
        self.assertHolds(self.finish(self.start_check("b", mount="'ext4', ()")), 0, "b")

    def test_a_call_that_never_ends(self) -> None:
        for mount, hint in (
            ("'ceph', ()", b"(is the file server up?)\n"),
            ("'nfs', ()", b"does rpc.statd run on both"),
        ):
            ended = self.finish(self.start_check("a", minute=0, silence=1, patch=HANGING, mount=mount))
            self.assertEqual((ended.code, ended.out), (1, b""))
            self.assertIn(b"does not answer", ended.err)
            self.assertIn(hint, ended.err)

    def test_a_directory_that_vanishes(self) -> None:
        checker = self.start_waiting()
        self.folder.rename(self.dir / "moved")
        self.end()
        ended = self.finish(checker)
        self.assertEqual(ended.code, 1)
        self.assertIn(b"no such file or directory", ended.out)

    def test_directories_that_cannot_be_used(self) -> None:
        self.write("", "file")
        for name in "file", "missing":
            self.assertRefused(self.run_script(RUNWAIT, "--check-locks", name), name, "not a directory")
        bound = self.bound_by_permissions()
        self.folder.chmod(0o555)
        ended = self.finish(self.start_check("a", **bound))
        self.assertDoesNotHold(ended, "NO   a: ", "permission denied")

    def test_a_full_file_system(self) -> None:
        full = f"OSError({errno.ENOSPC}, os.strerror({errno.ENOSPC}))"
        patch = f"def fsync(fd):\n    raise {full}\nos.fsync = fsync"
        self.end()
        self.assertDoesNotHold(
            self.finish(self.start_check("a", patch=patch)), "NO   a: no space left on device"
        )

    def test_it_goes_with_nothing_else(self) -> None:
        for words in ("-p",), ("runs.txt",), ("--outdir", "out"):
            self.assertRefused(
                self.run_script(RUNWAIT, "--check-locks", ".", *words), "excludes FILE and all other options"
            )


class Strangers(CheckCase):
    """What others have put into the directory does no harm."""

    def put(self, name: str, text: bytes = b"") -> pathlib.Path:
        """Make a file that could be a host's."""
        path = self.folder / f"runmaker4-check-{name}"
        path.write_bytes(text)
        return path

    def check_one(self) -> Ended:
        """A check on one host until it has seen enough; its memory is bounded."""
        checker = self.start_check("a")
        self.wait_number("a")
        self.assertLess(peak_memory(self.child(checker)), 100)
        self.end()
        return self.finish(checker)

    def test_links_and_pipes_are_never_opened(self) -> None:
        """Not even to read: /dev/zero never ends, and a pipe waits."""
        victim = self.write("precious\n", "victim")
        (self.folder / "runmaker4-check-zero-00000001").symlink_to("/dev/zero")
        (self.folder / "runmaker4-check-link-00000002").symlink_to(victim)
        os.link(victim, self.folder / "runmaker4-check-hard-00000003")
        os.mkfifo(self.folder / "runmaker4-check-pipe-00000004")
        (self.folder / "runmaker4-check-folder-00000005").mkdir()
        ended = self.check_one()
        self.assertEqual((ended.code, self.rows(ended)), (1, {"a": ["yes"] * 3}), ended.out)
        self.assertEqual(victim.read_bytes(), b"precious\n")
        self.assertEqual(len(os.listdir(self.folder)), 5)

    def test_nonsense_is_passed_over(self) -> None:
        texts = (
            b"", b"{]\n", b"[" * 60_000, b'{"knows": 5}\n', b"000001\trunmaker4-check 2\tb\tb\tceph\n",
            b"\xff" * 99, b"000001\trunmaker4-check 3\tb\tb\t" + b"c" * 300 + b"\n",
            b"9" * 99 + b"\trunmaker4-check 3\tb\tb\tc\n",
        )
        for number, text in enumerate(texts):
            self.put(f"x-{number:08x}", text)
        ended = self.check_one()
        self.assertEqual((ended.code, self.rows(ended)), (1, {"a": ["yes"] * 3}), ended.out)
        self.assertIn(b"No other has come", ended.out)

    def test_a_file_without_an_end_is_read_for_4_kib(self) -> None:
        path = self.put("b-00000001", b"000001\trunmaker4-check 3\tb\tb\tceph\n")
        os.truncate(path, 1 << 34)
        ended = self.check_one()
        self.assertEqual(ended.code, 1)
        self.assertIn(b"Some trials are missing for b (", ended.out)

    def test_what_a_stranger_says_reaches_the_terminal_harmlessly(self) -> None:
        self.put("b-00000001", b"000001\trunmaker4-check 3\t\x1b[2Jb\tb\t\xff\x1b]0;x\x07\n")
        self.assertNotIn(b"\x1b", self.check_one().out)


if __name__ == "__main__":
    unittest.main()
