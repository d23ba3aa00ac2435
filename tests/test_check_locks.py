"""Promise: --check-locks says whether runners can rely on the locks of a directory, and leaves nothing there."""
import errno
import fcntl
import os
import pty
import signal
import subprocess
import termios
import unittest
from typing import List

from tests.support import RUNWAIT, Ended, RunCase, wait_until

TESTS = ("granted", "locked for others", "its runner is killed", "job has ended", "read at once", "in place of another")


class CheckCase(RunCase):
    """Processes that take themselves for hosts, in a directory that is empty when they have ended."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = self.dir / "shared"
        self.folder.mkdir()

    def start_check(self, host: str, boot: str = "", gather: float = 0, silence: float = 40, patch: str = "",
                    mount: str = "'ceph', ()", **settings) -> subprocess.Popen:
        """Start a check on a made-up host.

        gather: the seconds that it waits for others.  patch: statements before runwait4 is imported.
        """
        statements = (f"import os, runmaker4\nos.uname = lambda: os.uname_result(['', {host!r}, '', '', ''])\n"
                      f"runmaker4.find_mount = lambda path: runmaker4.Mount({mount})\n{patch}\n"
                      f"import runwait4\nrunwait4.boot_id = lambda: {boot or host!r}\n"
                      f"runwait4.LockCheck.GATHER, runwait4.LockCheck.SILENCE = {gather}, {silence}\n")
        return self.start_patched(statements, "--check-locks", self.folder, script=RUNWAIT, **settings)

    def start_waiting(self, host: str = "a", **settings) -> subprocess.Popen:
        """Start a check that waits for others, until it does."""
        checker = self.start_check(host, gather=60, **settings)
        self.wait_known(host, checker)
        return checker

    def wait_known(self, host: str, checker: subprocess.Popen) -> None:
        """Wait until a host has said who it is."""
        def known() -> bool:
            self.assertIsNone(checker.poll(), "the check has ended too early")
            return any(path.stat().st_size for path in self.folder.glob(f"runmaker4-check-{host}-*.says"))
        wait_until(known, 20, f"{host} has said who it is")

    def check_both(self, **settings) -> List[Ended]:
        """A check on two hosts, a and b: the second comes while the first waits, and then they begin."""
        return self.finish_all(self.start_waiting(**settings), self.start_check("b", **settings))

    def finish_all(self, *checkers: subprocess.Popen) -> List[Ended]:
        return [self.finish(checker) for checker in checkers]

    def assertSays(self, ended: Ended, code: int, *texts: str) -> None:
        """The exit status; at most 20 lines, which say all this; no file is left, and no process."""
        said = (ended.out + ended.err).decode()
        self.assertEqual(ended.code, code, said)
        self.assertLessEqual(said.count("\n"), 20)
        for text in texts:
            self.assertIn(text, said)
        self.assertEqual(os.listdir(self.folder), [])
        self.assertNobodyLeft()

    def assertHolds(self, ended: Ended, code: int, *texts: str) -> None:
        """Each test was made, and all holds."""
        self.assertSays(ended, code, *TESTS, *texts)
        self.assertNotIn(b"NO ", ended.out)
        self.assertEqual(ended.out.count(b"yes "), len(TESTS), ended.out)

    def assertDoesNotHold(self, ended: Ended, *texts: str) -> None:
        self.assertSays(ended, 1, "NO ", "another directory, or TCP", *texts)


class Locks(CheckCase):
    """What holds and what does not."""

    def test_a_file_system_of_one_host_is_tried_at_once(self):
        """It would wait for others for ten minutes."""
        ended = self.finish(self.start_check("a", gather=600, mount="'ext4', ()"))
        self.assertHolds(ended, 0, "All holds on this host. Other hosts do not see ext4")
        self.assertEqual(ended.err, b"")

    def test_a_file_system_that_hosts_may_share_needs_a_second_host(self):
        self.assertHolds(self.finish(self.start_check("a")), 1, "a (ceph)", "start this there, too")

    def test_two_hosts(self):
        for ended in self.check_both():
            self.assertHolds(ended, 0, "These hosts can share job files", "a (ceph), b (ceph)")

    def test_three_hosts(self):
        first, second = self.start_waiting(), self.start_waiting("b")
        for ended in self.finish_all(self.start_check("c"), second, first):
            self.assertHolds(ended, 0, "These hosts can share job files", "a (", "b (", "c (")

    def test_the_same_host_twice_tells_nothing_of_others(self):
        for ended in self.check_both(boot="1"):
            self.assertHolds(ended, 1, "All holds on this host. No other has come")

    def test_hosts_of_one_name(self):
        waiting = self.start_waiting("c")
        for ended in self.finish_all(self.start_check("c", boot="2"), waiting):
            self.assertDoesNotHold(ended, "a name of its own: c: several hosts have it")

    def test_locks_that_do_not_exclude(self):
        patch = ("runmaker4.lock = lambda *args, **options: True\nrunmaker4.unlock = lambda *args: None\n"
                 "runmaker4.is_free = lambda *args: True")
        for ended in self.check_both(patch=patch):
            self.assertDoesNotHold(ended, "yes ", "locked for others: ", "b's file on a: it is free")

    def test_locks_that_only_seem_to_exclude(self):
        """A claim would be refused; a look for orphans would find one."""
        for ended in self.check_both(patch="runmaker4.is_free = lambda *args: True"):
            self.assertDoesNotHold(ended, "locked for others: ", "b's file on a: it is free")

    def test_no_locks_at_all(self):
        patch = (f"def lock(*args, **options):\n    raise OSError({errno.ENOLCK}, os.strerror({errno.ENOLCK}))\n"
                 "runmaker4.lock = lock")
        for ended in self.check_both(patch=patch):
            self.assertDoesNotHold(ended, "record locks are granted: ", "a's file on a: no locks available")

    def test_locks_that_end_with_the_process_that_took_them(self):
        """Classic record locks: children do not have them."""
        patch = "runmaker4.OFD_SETLK = runmaker4.fcntl.F_SETLK"
        for ended in self.check_both(patch=patch):
            self.assertDoesNotHold(ended, "its runner is killed: ", "b's file on a: it is free")

    def test_a_host_that_sees_nothing_of_what_others_write(self):
        """Its first look at a file is all that it ever sees."""
        patch = ("seen, pread = {}, os.pread\n"
                 "os.pread = lambda fd, size, at: seen.setdefault(os.readlink(f'/proc/self/fd/{fd}'), "
                 "pread(fd, size, at))")
        for ended in self.check_both(patch=patch):
            self.assertDoesNotHold(ended, "read at once: ", "b's file on a: an old number",
                                   "is seen: ", "b's file on a: the old file")

    def test_a_mount_whose_locks_are_known_not_to_reach_others(self):
        for ended in self.check_both(mount="'lustre', frozenset({'localflock'})"):
            self.assertDoesNotHold(ended, "between hosts: a: is on Lustre mounted without flock",
                                   "To change: mount with flock.")


class Hosts(CheckCase):
    """Hosts that end, hang, come late, or have left something behind."""

    def test_enter_begins_at_once(self):
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        checker = self.start_waiting(stdin=theirs, start_new_session=True,
                                     preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(theirs)
        os.write(ours, b"\n")
        self.assertHolds(self.finish(checker), 1)

    def test_a_host_that_is_interrupted(self):
        interrupted = self.start_waiting()
        interrupted.send_signal(signal.SIGSTOP)
        other = self.start_check("b")
        wait_until(lambda: any(b'"stage": 1' in path.read_bytes() for path in self.folder.glob("*-b-*.says")))
        interrupted.send_signal(signal.SIGINT)
        interrupted.send_signal(signal.SIGCONT)
        self.assertEqual(self.finish(interrupted).code, 130)
        self.assertDoesNotHold(self.finish(other), "a: has left before the end")

    def test_a_host_that_leaves_while_others_still_come(self):
        first, second = self.start_waiting(), self.start_waiting("b")
        first.send_signal(signal.SIGINT)
        self.assertEqual(self.finish(first).code, 130)
        for ended in self.finish_all(self.start_check("c"), second):
            self.assertHolds(ended, 0, ": b (ceph), c (ceph)")

    def test_a_host_that_never_answers(self):
        hanging = self.start_waiting()
        hanging.send_signal(signal.SIGSTOP)
        ended = self.finish(self.start_check("b", silence=3))
        self.assertEqual((ended.code, os.listdir(self.folder)), (1, []))
        self.assertIn(b"a: no sign of life for 3.0s", ended.out)
        hanging.send_signal(signal.SIGCONT)
        self.assertDoesNotHold(self.finish(hanging), "the tests did not come to their end")

    def test_a_host_that_is_killed(self):
        killed = self.start_waiting()
        killed.kill()
        self.finish(killed)
        self.assertDoesNotHold(self.finish(self.start_check("b", silence=3)), "a: no sign of life for 3.0s")
        self.assertHolds(self.finish(self.start_check("b")), 1)

    def test_a_file_of_another_version(self):
        for text in "", "{]\n", "[]\n", '{"version": 7}\n':
            (self.folder / f"runmaker4-check-{len(text)}.says").write_text(text)
        ended = self.finish(self.start_check("a"))
        self.assertEqual((ended.code, ended.out.count(b"yes ")), (1, len(TESTS)), ended.out)

    def test_a_call_that_never_ends(self):
        ended = self.finish(self.start_check("a", silence=1, patch="runmaker4.lock = lambda *args: time.sleep(60)\n"
                                                                   "import time"))
        self.assertEqual((ended.code, ended.out), (1, b""))
        self.assertIn(b"the test whether record locks are granted (a's file) takes more than 1.0s", ended.err)

    def test_a_directory_that_vanishes(self):
        checker = self.start_waiting()
        self.folder.rename(self.dir / "moved")
        ended = self.finish(checker)
        self.assertEqual(ended.code, 1)
        self.assertIn(b"the tests did not come to their end", ended.out)

    def test_directories_that_cannot_be_used(self):
        self.write("", "file")
        for name in "file", "missing":
            self.assertRefused(self.run_script(RUNWAIT, "--check-locks", name), name, "is no directory")
        bound = self.bound_by_permissions()
        self.folder.chmod(0o555)
        self.assertDoesNotHold(self.finish(self.start_check("a", **bound)), "a: permission denied")

    def test_a_full_file_system(self):
        patch = f"def fsync(fd):\n    raise OSError({errno.ENOSPC}, os.strerror({errno.ENOSPC}))\nos.fsync = fsync"
        self.assertDoesNotHold(self.finish(self.start_check("a", patch=patch)), "a: no space left on device")

    def test_it_goes_with_nothing_else(self):
        for words in ("-p",), ("runs.txt",), ("--outdir", "out"):
            self.assertRefused(self.run_script(RUNWAIT, "--check-locks", ".", *words), "goes with no other option")


if __name__ == "__main__":
    unittest.main()
