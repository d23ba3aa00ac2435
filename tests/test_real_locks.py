"""Promise: --check-locks is right about real NFS: it says yes where runners can share a file, and no where they cannot.

With RUNMAKER4_TEST_REAL=1, in virtual machines that are booted once; it takes three minutes.
"""
import functools
import unittest
from typing import List, Sequence

from tests.rigs import REAL
from tests.rigs.nfs import Command, Machine, Rig, missing
from tests.support import wait_until

SLOW = 200              # patience with virtual machines, in seconds
SILENCE = 15            # instead of 40 where a host will not answer
TESTS = 6               # lines that say how one of the tests went

CHECK = """
import os, sys
sys.path.insert(0, "/usr/local/bin")
import runmaker4
%s
import runwait4
runwait4.LockCheck.GATHER, runwait4.LockCheck.SILENCE = %d, %d
sys.exit(runwait4.main(["--check-locks", "/nfs"]))
"""


def setUpModule() -> None:
    if not REAL:
        raise unittest.SkipTest("RUNMAKER4_TEST_REAL is not set: takes three minutes")
    if missing():
        raise unittest.SkipTest(missing())


@functools.lru_cache(maxsize=None)
def the_rig() -> Rig:
    """The machines of all tests here."""
    rig = Rig()
    rig.__enter__()
    unittest.addModuleCleanup(rig.__exit__)
    return rig


class CheckLocks(unittest.TestCase):
    """alice waits for another host, bob comes, and they begin."""

    def setUp(self) -> None:
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

    def names(self) -> List[str]:
        """What is in the directory, as the server has it."""
        return self.rig.server.run("ls -A /export").out.decode().split()

    def start(self, machine: Machine, wait: bool = False, silence: int = SLOW, patch: str = "") -> Command:
        """Start a check that waits for others, until it does; or one that begins at once."""
        begun = machine.popen("exec python3 -B -", data=CHECK % (patch, 600 * wait, silence))
        if wait:
            here = "find /export -name '*.says' -size +0"       # others do not count a host that has not said who it is
            wait_until(lambda: begun.code is not None or self.rig.server.run(here).out, SLOW)
            self.assertIsNone(begun.code, str(begun))
        return begun

    def check(self, **settings) -> List[Command]:
        """A check on both hosts, to its end; it leaves nothing behind."""
        started = self.start(self.alice, wait=True, **settings), self.start(self.bob, **settings)
        ended = [command.wait(SLOW) for command in started]
        self.assertEqual(self.names(), [])
        return ended

    def assertSays(self, ended: Sequence[Command], code: int, *texts: str) -> None:
        for command in ended:
            self.assertEqual(command.code, code, str(command))
            self.assertLessEqual((command.out + command.err).count(b"\n"), 20)
            for text in texts:
                self.assertIn(text, (command.out + command.err).decode())

    def test_yes_where_hosts_share_locks(self):
        for alice, bob in ("3", "3"), ("4.2", "4.2"), ("3", "4.2"):
            with self.subTest(alice=alice, bob=bob):
                self.mount_both(alice, bob)
                ended = self.check()
                self.assertSays(ended, 0, f"vers={alice})", f"vers={bob})", "These hosts can share job files")
                self.assertEqual([command.out.count(b"\nyes ") for command in ended], [TESTS] * 2)

    def test_no_where_locks_stay_on_each_host(self):
        for option in "nolock", "local_lock=all":
            with self.subTest(option=option):
                self.mount_both("3", options=option)
                self.assertSays(self.check(), 1,
                                "for others: bob's file on alice: it is free; alice's file on bob: it is free",
                                f"alice: is on NFS mounted with {option}", f"bob: is on NFS mounted with {option}",
                                "To change: mount with vers=4.2")

    def test_no_where_one_host_keeps_its_locks_to_itself(self):
        self.mount(self.alice, "3", "local_lock=posix")
        self.mount(self.bob, "4.2")
        self.assertSays(self.check(), 1, "alice: is on NFS mounted with local_lock=posix",
                        "for others: bob's file on alice: it is free; alice's file on bob: it is free")

    def test_no_where_reads_lie(self):
        """Out of its host's memory a runner would read what was there before: . or r."""
        self.mount_both("4.2")
        self.assertSays(self.check(patch="runmaker4.Mount.direct = 0"), 1, "NO   what others write is read at once: ")

    def test_two_hosts_of_one_name(self):
        self.bob.run("echo alice >/proc/sys/kernel/hostname")
        self.addCleanup(self.bob.run, "echo bob >/proc/sys/kernel/hostname")
        self.mount(self.alice, "4.2")
        self.mount(self.bob, "4.2")
        self.assertSays(self.check(), 1, "a name of its own: alice: several hosts have it")

    def restart(self) -> None:
        """Start on alice what a test has ended."""
        self.alice.run("pkill rpc.statd; pkill rpcbind; rpcbind -w && rpc.statd -n alice")

    def test_without_rpcbind_and_statd(self):
        self.mount_both("3")
        self.addCleanup(self.restart)
        self.alice.run("pkill rpc.statd; pkill rpcbind")
        self.assertSays(self.check(), 1, "let rpc.statd run on", "granted: alice's file on alice: no locks available")

    def test_a_host_without_statd_that_does_not_answer(self):
        """The kernel looks for statd for a minute: the check ends before that on this host, and the other names it."""
        self.mount_both("3")
        self.addCleanup(self.restart)
        self.alice.run("pkill rpc.statd")
        alice, bob = self.check(silence=SILENCE)
        self.assertSays([alice], 1, "the test whether record locks are granted (alice's file) takes",
                         "does rpc.statd run on both")
        self.assertSays([bob], 1, f"alice: no sign of life for {SILENCE}s")
        self.assertEqual(bob.out.count(b"\nyes "), TESTS)

    def test_a_host_that_never_answers(self):
        self.mount_both("4.2")
        alice = self.start(self.alice, wait=True, silence=SILENCE)
        self.addCleanup(self.alice.plug, True)
        self.alice.plug(False)
        bob = self.start(self.bob, silence=SILENCE).wait(SLOW)
        self.assertSays([bob], 1, f"alice: no sign of life for {SILENCE}s")
        self.assertSays([alice.wait(SLOW)], 1, "does not answer: ")
        self.assertEqual(self.names(), [])
