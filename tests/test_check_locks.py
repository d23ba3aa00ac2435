"""Promise: --check-locks says whether runners can rely on the locks of a directory, and leaves nothing there."""
import errno
import fcntl
import os
import pty
import signal
import subprocess
import termios
from typing import Optional

from tests.support import RUNMAKER, Ended, RunCase, wait_until

TESTS = ("granted", "starts its job", "claimed once", "locked for others", "its runner is killed", "job has ended",
         "read after a refresh", "in place of another")

PATIENT = "runmaker4.wait_ready = lambda fds, event, seconds: fds"  # with itself, however slow this machine is


class CheckCase(RunCase):
    """Processes that take themselves for hosts, in a directory that is empty when they have ended."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = self.dir / "shared"
        self.folder.mkdir()

    def start_check(self, host: str, boot: str = "", node: str = "", gather: float = 0, silence: float = 40,
                    patch: str = "", wait: bool = False, **settings) -> subprocess.Popen:
        """Start a check on a made-up host; gather: the seconds that it waits for others; wait: until it does."""
        statements = (f"import os, time, types, runmaker4\n"
                      f"os.uname = lambda: types.SimpleNamespace(nodename={node or host!r})\n"
                      f"runmaker4.boot_id = lambda: {boot or host!r}\n"
                      f"runmaker4.LockCheck.GATHER, runmaker4.LockCheck.SILENCE = {gather}, {silence}\n"
                      f"runmaker4.LockCheck.BEAT, runmaker4.LockCheck.PAUSE = 0.2, 0.02\n{patch}\n")
        checker = self.start_patched(statements, "--name", host, "--check-locks", self.folder, **settings)
        if wait:
            self.wait_for(f"runmaker4-check-{host}-*.host", checker)
        return checker

    def kill(self, host: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to the process that does the check of a host; the one that was started watches it."""
        name, = self.folder.glob(f"runmaker4-check-{host}-*.host")
        pid = int(name.name.split("-")[3])
        os.kill(pid, number)
        return pid

    def wait_for(self, pattern: str, checker: subprocess.Popen) -> None:
        """Wait until a file is there that a checker makes, and not empty."""
        def found() -> bool:
            self.assertIsNone(checker.poll(), "the check has ended too early")
            return any(path.stat().st_size for path in self.folder.glob(pattern))
        wait_until(found, 20, f"{pattern} is written")

    def check(self, host: str = "a", **settings) -> Ended:
        """A check on one host more, to its end."""
        return self.finish(self.start_check(host, **settings))

    def check_both(self, first: Optional[dict] = None, second: Optional[dict] = None) -> "list[Ended]":
        """A check on two hosts: the second comes while the first waits, and then they begin."""
        waiting = self.start_check(**{"host": "a", "gather": 60, "wait": True, **(first or {})})
        joining = self.start_check(**{"host": "b", **(second or {})})
        return [self.finish(checker) for checker in (waiting, joining)]

    def assertSays(self, ended: Ended, code: int, *texts: str) -> None:
        """The exit status; at most 20 lines, which say all this; no file is left, and no process."""
        said = (ended.out + ended.err).decode()
        self.assertEqual(ended.code, code, said)
        self.assertLessEqual(said.count("\n"), 20)
        for text in texts:
            self.assertIn(text, said)
        self.assertEqual(os.listdir(self.folder), [])
        self.assertNobodyLeft()

    def assertHolds(self, ended: Ended, *texts: str) -> None:
        """Each test was made, and all holds."""
        self.assertSays(ended, 0, *TESTS, *texts)
        self.assertNotIn(b"NO ", ended.out)
        self.assertEqual(ended.out.count(b"yes "), len(TESTS), ended.out)

    def assertDoesNotHold(self, ended: Ended, *texts: str) -> None:
        self.assertSays(ended, 1, "NO ", "another directory, or TCP", *texts)


class Locks(CheckCase):
    """What holds and what does not."""

    def test_one_host_alone(self):
        self.assertHolds(self.check(), "All holds on this host.")

    def test_two_hosts(self):
        for ended in self.check_both():
            self.assertHolds(ended, "These hosts can share job files", "a (", "b (")

    def test_three_hosts(self):
        first = self.start_check("a", gather=60, wait=True)
        for ended in *self.check_both({"host": "b"}, {"host": "c"}), self.finish(first):
            self.assertHolds(ended, "These hosts can share job files", "a (", "b (", "c (")

    def test_hosts_whose_clocks_differ(self):
        patch = ("say = runmaker4.LockCheck._say\n"
                 "runmaker4.LockCheck._say = lambda check, **how: (say(check, **how), os.utime(check.fd, (1e9, 1e9)))")
        for ended in self.check_both({"patch": patch}):
            self.assertHolds(ended, "These hosts can share job files")

    def test_the_same_host_twice_tells_nothing_of_others(self):
        for ended in self.check_both({"boot": "1"}, {"host": "a", "boot": "1"}):
            self.assertHolds(ended, "All these run on one host.", "All holds on this host.")

    def test_a_network_file_system_needs_a_second_host(self):
        device, mounts = os.stat(self.dir).st_dev, self.dir / "mounts"
        mounts.write_text(f"36 22 {os.major(device)}:{os.minor(device)} / {self.dir} rw - nfs4 server:/x rw,vers=4.2\n")
        ended = self.check(patch=f"runmaker4.MOUNTINFO = {str(mounts)!r}")
        self.assertSays(ended, 1, *TESTS, "a (nfs4 vers=4.2)", "start this there, too")

    def test_hosts_of_one_name(self):
        for ended in self.check_both({"node": "c"}, {"node": "c"}):
            self.assertDoesNotHold(ended, "a name of its own: c: several hosts have it")

    def test_locks_that_do_not_exclude(self):
        patch = ("runmaker4.lock = lambda *args, **options: True\nrunmaker4.unlock = lambda *args: None\n"
                 "runmaker4.is_free = lambda *args: True\nrunmaker4.test_locks = lambda path: None")
        for ended in self.check_both({"patch": patch}):
            self.assertDoesNotHold(ended, "locked for others: a, b's file on a: it is free", "yes ")

    def test_no_locks_at_all(self):
        patch = (f"def lock(*args, **options):\n    raise OSError({errno.ENOLCK}, os.strerror({errno.ENOLCK}))\n"
                 "runmaker4.lock, runmaker4.LockCheck.PATIENCE = lock, 0.2")
        for ended in self.check_both({"patch": patch}):
            self.assertDoesNotHold(ended, "record locks are granted: a: no record locks", "no locks available")

    def test_locks_that_jobs_do_not_inherit(self):
        for ended in self.check_both({"patch": "runmaker4.__file__ = 'classic.py'", "cwd": self.classic()}):
            self.assertDoesNotHold(ended, "its runner is killed: a, a's file on b: it is free")

    def classic(self) -> str:
        """A directory with a runner whose locks are classic ones."""
        self.write(f"import sys\nsys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})\nimport runmaker4\n"
                   "runmaker4.DESCRIPTION_LOCKS = False\nsys.exit(runmaker4.main())\n", "classic.py")
        return str(self.dir)

    BLIND = """
claim, done, Check = runmaker4.LockCheck._claim_line, runmaker4.LockCheck._is_done, runmaker4.LockCheck
def claim_again(check, host):
    return claim(check, host) or check.voice.lines.update({host: 2})
def read_late(check, host, voice):
    runmaker4.Scan.__iter__ = lambda scan: iter([runmaker4.Line(2, 0, 0, b"r", b"")])
    return done(check, host, voice)
Check._claim_line, Check._is_done, Check.PATIENCE = claim_again, read_late, 0.1
runmaker4.JobFile.follow_path = lambda file: file.fd < 0 and file._open_anew()
"""

    def test_a_host_that_sees_nothing_of_what_others_do(self):
        for ended in self.check_both({"patch": self.BLIND}, {"patch": self.BLIND}):
            self.assertDoesNotHold(ended, "claimed once: a's file, b's file: 2 hosts have claimed a line",
                                   "read after a refresh: a, b's file on a, a's file on b, b: its state is read as r",
                                   "is seen: a, b's file on a, a's file on b, b: the old file is seen")

    def test_a_mount_whose_locks_are_known_not_to_reach_others(self):
        device, mounts = os.stat(self.dir).st_dev, self.dir / "mounts"
        mounts.write_text(f"36 22 {os.major(device)}:{os.minor(device)} / {self.dir} rw - nfs x:/x rw,vers=3,nolock\n")
        for ended in self.check_both({"patch": f"runmaker4.MOUNTINFO = {str(mounts)!r}"}):
            self.assertDoesNotHold(ended, "a (nfs nolock vers=3)", "a: is on NFS mounted with nolock", "vers=4.2")


class Hosts(CheckCase):
    """Hosts that end, hang, come late, or have left something behind."""

    def test_enter_begins_at_once(self):
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        checker = self.start_check("a", gather=60, wait=True, stdin=theirs, start_new_session=True,
                                   preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(theirs)
        os.write(ours, b"\n")
        self.assertHolds(self.finish(checker))

    def test_a_host_that_is_interrupted(self):
        hanging = self.start_check("a", gather=60, wait=True,
                                   patch="runmaker4.LockCheck._claim = lambda check: time.sleep(60)")
        other = self.start_check("b")
        self.wait_for("runmaker4-check-b-*.txt", other)
        self.wait_for("runmaker4-check-a-*.txt", hanging)
        hanging.send_signal(signal.SIGINT)
        self.assertEqual(self.finish(hanging).code, 130)
        self.assertDoesNotHold(self.finish(other), "a: has left before the end")

    def test_a_host_that_never_answers(self):
        hanging = self.start_check("a", gather=60, wait=True)
        other = self.start_check("b", gather=4, silence=3, patch=PATIENT, wait=True)
        stopped = self.kill("a", signal.SIGSTOP)
        ended = self.finish(other)
        self.assertEqual((ended.code, os.listdir(self.folder)), (1, []))
        self.assertIn(b"a: no sign of life for more than 3.0s", ended.out)
        os.kill(stopped, signal.SIGCONT)
        self.assertDoesNotHold(self.finish(hanging), "a: its files are gone")

    def test_a_host_that_is_killed_while_its_job_runs(self):
        killed = self.start_check("a", gather=60, wait=True,
                                  patch="runmaker4.LockCheck._claim = lambda check: time.sleep(60)")
        other = self.start_check("b", silence=3, patch=PATIENT)
        self.wait_for("runmaker4-check-a-*.txt", killed)
        self.kill("a")
        self.assertEqual(self.finish(killed).code, 1)
        self.assertDoesNotHold(self.finish(other), "a: no sign of life for more than 3.0s")

    def test_files_of_a_killed_run_are_removed(self):
        killed = self.start_check("a", gather=60, wait=True)
        self.kill("a")
        self.assertEqual(self.finish(killed).code, 1)
        for path in self.folder.iterdir():
            os.utime(path, (1e9, 1e9))
        self.write("{]\n", "shared/runmaker4-check-other-7.host")
        os.utime(self.folder / "runmaker4-check-other-7.host", (1e9, 1e9))
        self.assertHolds(self.check("b"), "a: files of a run that was killed were removed", "other-7: files of")

    def test_a_call_that_never_ends(self):
        ended = self.check(silence=1, patch="runmaker4.test_locks = lambda path: time.sleep(60)")
        self.assertEqual(ended.code, 1)
        self.assertIn(b"the test whether record locks are granted (a's file) takes more than 1.0s", ended.err)

    def test_a_directory_that_vanishes(self):
        checker = self.start_check("a", gather=60, wait=True)
        self.folder.rename(self.dir / "moved")
        ended = self.finish(checker)
        self.assertEqual(ended.code, 1)
        self.assertIn(b"the tests did not come to their end", ended.out)

    def test_directories_that_cannot_be_used(self):
        self.write("", "file")
        for name in "file", "missing":
            self.assertRefused(self.run_script(RUNMAKER, "--check-locks", name), name, "is no directory")
        bound = self.bound_by_permissions()
        self.folder.chmod(0o555)
        self.assertRefused(self.check(**bound), "permission denied")

    def test_a_full_file_system(self):
        patch = f"def fsync(fd):\n    raise OSError({errno.ENOSPC}, os.strerror({errno.ENOSPC}))\nos.fsync = fsync"
        self.assertRefused(self.check(patch=patch), "no space left on device")
        self.assertEqual(os.listdir(self.folder), [])
