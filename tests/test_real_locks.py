"""Promise: --check-locks is right about real file systems: yes where runners can share a file, no where they
cannot.

With RUNMAKER4_TEST_REAL=1: NFS in virtual machines that are booted once, and bindfs.  It takes seven minutes.

Any other file system that is mounted on several hosts: call check_hosts().
"""
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Sequence
from typing import Any

from tests.rigs import PATH, REAL, lacking
from tests.rigs.nfs import Command, Machine, Rig, missing
from tests.support import ROOT, Ended, wait_until

SLOW = 200              # patience with virtual machines, in seconds
SILENCE = 15            # instead of 40 where a host will not answer
MINUTE = 20             # instead of 60: seconds that a check takes
TRIALS = 3              # columns of the table
# a patch: reads show what was read before
CACHED = ("os.O_DIRECT = 0\nos.posix_fadvise = lambda *args: None\n"
          "import runmaker4\nrunmaker4.refresh_reader = lambda file, mount: None")

CHECK = """
import os, sys
sys.path[:0] = %r
%s
import runmaker4, runwait4
runwait4.LockCheck.CHECK_SECONDS, runwait4.LockCheck.MAX_SILENT_SECONDS = %r
sys.exit(runwait4.main(["--check-locks", %r]))
"""


def program(folder: str, patch: str = "", minute: float = MINUTE, silence: float = 40,
            scripts: Sequence[str] = (str(ROOT),)) -> str:
    """A check of this directory, as a program for Python.  patch: statements before our modules are imported.
    """
    return CHECK % (list(scripts), patch, (minute, silence), folder)


def check_hosts(
    places: Sequence[tuple[Sequence[str], str]],
    patches: Sequence[str] = (),
    minute: float = MINUTE,
    python: str = sys.executable,
) -> list[Ended]:
    """Start a check on several hosts at once, and wait for its ends.

    places: for each host the words that stand before a command to run it there, such as ("ssh", "alice"), and
    the directory.  All have our scripts and Python where we have them.  patches: statements for each host.
    """
    patches = patches or [""] * len(places)
    started = [
        subprocess.Popen(
            [*way, python, "-B", "-c", program(folder, patch, minute)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for (way, folder), patch in zip(places, patches)
    ]
    ended = []
    for process in started:
        out, err = process.communicate(timeout=minute + SLOW)
        ended.append(Ended(process.returncode, out, err))
    return ended


def rows(said: bytes) -> list[list[str]]:
    """What the table says: a name and the cells for each host."""
    table = re.findall(r"^(\S+) +((?:(?:yes|NO|-) +){%d})" % TRIALS, said.decode(), re.MULTILINE)
    return [[name, *cells.split()] for name, cells in table]


def setUpModule() -> None:
    if not REAL:
        raise unittest.SkipTest("RUNMAKER4_TEST_REAL is not set: takes seven minutes")


@functools.cache
def the_rig() -> Rig:
    """The machines of all tests here."""
    rig = Rig()
    rig.__enter__()
    unittest.addModuleCleanup(rig.__exit__)
    return rig


class Bindfs(unittest.TestCase):
    """Two views of one folder, each a FUSE mount of its own."""

    def setUp(self) -> None:
        if fault := lacking("bindfs", {"bindfs": "bindfs"}, ["test", "-c", "/dev/fuse"]):
            self.skipTest(fault)
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir)
        os.mkdir(f"{self.dir}/folder")
        self.mounted: list[str] = []
        self.addCleanup(self.unmount)

    def check(self, *options: str, patch: str = "") -> list[Ended]:
        """A check on two processes that take themselves for hosts, each with a view of its own; it leaves
        nothing.
        """
        places, patches = [], []
        for host in "ab":
            view = f"{self.dir}/{host}"
            os.makedirs(view, exist_ok=True)
            subprocess.run(["bindfs", *options, f"{self.dir}/folder", view], check=True,
                           env={**os.environ, "PATH": PATH})
            self.mounted.append(view)
            places.append(((), view))
            patches.append(f"{patch}\nos.uname = lambda: os.uname_result(['', {host!r}, '', '', ''])\n"
                           f"import runwait4\nrunwait4.boot_id = lambda: {host!r}")
        ended = check_hosts(places, patches, minute=8)
        self.unmount()
        self.assertEqual(os.listdir(f"{self.dir}/folder"), [])
        return ended

    def unmount(self) -> None:
        """Unmount all views."""
        while self.mounted:
            subprocess.run(["umount", self.mounted.pop()], check=True)

    def test_locks_do_not_reach_the_other_view(self) -> None:
        first, second = self.check()
        for ended, other in (first, "b"), (second, "a"):
            self.assertEqual(ended.code, 1, ended)
            self.assertIn(f"NO   excluded: failed for {other} (".encode(), ended.out)
            self.assertIn(b"To change: use the directory where its own file system is mounted", ended.out)

    def test_reads_are_fresh_and_those_out_of_memory_are_found_to_be_old(self) -> None:
        """bindfs forwards locks badly, but each host is seen to have locked its number."""
        for patch, wanted in ("", "yes"), (CACHED, "NO"):
            with self.subTest(patch=patch):
                first, second = self.check("--multithreaded", "--enable-lock-forwarding", patch=patch)
                cells = [row[3] for ended, other in ((first, "b"), (second, "a")) for row in rows(ended.out)
                         if row[0] == other]
                self.assertEqual(cells, [wanted] * 2, (first, second))


class Nfs(unittest.TestCase):
    """Two hosts, alice and bob, and a server."""

    def setUp(self) -> None:
        if missing():
            self.skipTest(missing())
        self.rig = the_rig()
        self.alice, self.bob = self.rig.clients

    def mount(self, machine: Machine, version: str, options: str = "") -> None:
        machine.mount(version, options)
        machine.directory = "/root"
        self.addCleanup(machine.umount)

    def mount_both(self, alice: str, bob: str = "", options: str = "") -> None:
        """Mount the export anew; bob's version of NFS is that of alice if it is not given."""
        self.doCleanups()
        self.mount(self.alice, alice, options)
        self.mount(self.bob, bob or alice, options)

    def names(self) -> list[str]:
        """What is in the directory, as the server has it."""
        return self.rig.server.run("ls -A /export").out.decode().split()

    def start(
        self, machine: Machine, minute: float = MINUTE, silence: float = SLOW, patch: str = ""
    ) -> Command:
        """Start a check on a host."""
        text = program("/nfs", patch, minute, silence, scripts=["/usr/local/bin"])
        return machine.popen("exec python3 -B -", data=text)

    def start_waiting(self, machine: Machine, **settings: Any) -> Command:
        """Start a check, and wait until it has said who it is."""
        begun = self.start(machine, **settings)
        here = "find /export -name 'runmaker4-check-*' -size +0"
        wait_until(lambda: begun.code is not None or self.rig.server.run(here).out, SLOW)
        self.assertIsNone(begun.code, str(begun))
        return begun

    def check(self, **settings: Any) -> list[Command]:
        """A check on both hosts, to its end; it leaves nothing behind."""
        started = self.start(self.alice, **settings), self.start(self.bob, **settings)
        ended = [command.wait(SLOW) for command in started]
        self.assertEqual(self.names(), [])
        return ended

    def assertSays(self, ended: Sequence[Command], code: int, *texts: str) -> None:
        for command in ended:
            self.assertEqual(command.code, code, str(command))
            self.assertLessEqual((command.out + command.err).count(b"\n"), 20)
            for text in texts:
                self.assertIn(text, (command.out + command.err).decode())

    def test_yes_where_hosts_share_locks(self) -> None:
        for alice, bob in ("3", "3"), ("4.2", "4.2"), ("3", "4.2"):
            with self.subTest(alice=alice, bob=bob):
                self.mount_both(alice, bob)
                # the server has to call files back
                ended = self.check(minute=60 if alice != bob else MINUTE)
                self.assertSays(ended, 0, f"vers={alice}", f"vers={bob}", "If the other hosts print the same")
                all_yes = [[host, *["yes"] * TRIALS] for host in ("alice", "bob")]
                for command in ended:
                    self.assertEqual(rows(command.out), all_yes)

    def test_no_where_locks_stay_on_each_host(self) -> None:
        self.mount_both("3", options="nolock")
        alice, bob = self.check()
        self.assertSays([alice], 1, "alice: is on NFS mounted with nolock", "excluded: failed for bob (")
        self.assertSays([bob], 1, "bob: is on NFS mounted with nolock", "excluded: failed for alice (")
        self.assertSays([alice, bob], 1, "To change: mount with vers=4.2")

    def test_no_where_one_host_keeps_its_locks_to_itself(self) -> None:
        self.mount(self.alice, "3", "local_lock=posix")
        self.mount(self.bob, "4.2")
        alice, bob = self.check()
        self.assertSays(
            [alice], 1, "alice: is on NFS mounted with local_lock=posix", "excluded: failed for bob ("
        )
        self.assertSays([bob], 1, "excluded: failed for alice (")

    def test_no_where_reads_lie(self) -> None:
        """Out of its host's memory a runner would read what was there before: . or r."""
        self.mount_both("4.2")
        self.assertSays(self.check(patch=CACHED), 1, "NO   fresh: failed for ")

    def test_two_hosts_of_one_name(self) -> None:
        self.bob.run("echo alice >/proc/sys/kernel/hostname")
        self.addCleanup(self.bob.run, "echo bob >/proc/sys/kernel/hostname")
        self.mount(self.alice, "4.2")
        self.mount(self.bob, "4.2")
        self.assertSays(self.check(), 1, "alice: several hosts have this name")

    def restart(self) -> None:
        """Start on alice what a test has ended."""
        self.alice.run("pkill rpc.statd; pkill rpcbind; rpcbind -w && rpc.statd -n alice")

    def test_without_rpcbind_and_statd(self) -> None:
        self.mount_both("3")
        self.addCleanup(self.restart)
        self.alice.run("pkill rpc.statd; pkill rpcbind")
        alice, bob = self.check()
        self.assertSays([alice], 1, "let rpc.statd run on", "alice: no locks available")
        self.assertSays([bob], 1, "NO   excluded: failed for alice (")

    def test_a_host_without_statd_that_does_not_answer(self) -> None:
        """The kernel looks for statd for a minute: the check ends before that on this host."""
        self.mount_both("3")
        self.addCleanup(self.restart)
        self.alice.run("pkill rpc.statd")
        alice, bob = self.start(self.alice, silence=SILENCE), self.start(self.bob)
        self.assertSays(
            [alice.wait(SLOW)], 1, "does not answer", "does rpc.statd run on both"
        )
        self.assertSays([bob.wait(SLOW)], 1, "Some trials are missing for alice (")
        self.remove_all()

    def test_a_host_that_never_answers(self) -> None:
        self.mount_both("4.2")
        alice = self.start_waiting(self.alice, silence=SILENCE)
        self.addCleanup(self.alice.plug, True)
        self.alice.plug(False)
        bob = self.start(self.bob).wait(SLOW)
        self.assertSays([bob], 1, "Some trials are missing for alice (")
        self.assertSays([alice.wait(SLOW)], 1, "does not answer")
        self.remove_all()

    def remove_all(self) -> None:
        """Remove what a host has left that could not reach its server any more."""
        self.rig.server.run("rm -f /export/runmaker4-check-*")


if __name__ == "__main__":
    unittest.main()
