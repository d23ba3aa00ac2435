"""Promise: --check-locks is right about real file systems: yes where runners can share a file, else no.

With RUNMAKER4_TEST_REAL=1: NFS on machines that are booted once, bindfs and mergerfs, which runners
refuse.  It takes seven minutes.

Any other file system that is mounted on several hosts: call check_hosts().
"""
import contextlib
import functools
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Iterator, Sequence
from typing import Any

from tests.real.rigs import PATH, REAL, lacking
from tests.real.rigs.fs import VIEWS
from tests.real.rigs.nfs import SLOW, Command, Machine, Rig, missing
from tests.support.processes import Ended, wait_until
from tests.support.scripts import ROOT, RUNMAKER, RUNSERVER, RUNSET, RUNWAIT, SCRIPTS_AT

MINUTE = 20             # instead of 60: seconds that a check takes
LOST = "an addition was lost"
# a patch: reads show what was read before
CACHED = ("os.O_DIRECT = 0\nos.posix_fadvise = lambda *args: None\n"
          "import runmaker4\nrunmaker4.Reader.refresh = lambda file, mount: None")

CHECK = """
import os, sys
sys.path[:0] = %r
%s
import runmaker4, runwait4
runwait4.CHECK_SECONDS = %r
sys.exit(runwait4.main(["--check-locks", %r]))
"""


def program(folder: str, patch: str = "", minute: float = MINUTE,
            scripts: Sequence[str] = (str(ROOT),)) -> str:
    """A check of this directory, as a program for Python.  patch: what runs before our imports."""
    return CHECK % (list(scripts), patch, minute, folder)


def check_hosts(places: Sequence[tuple[Sequence[str], str]], patches: Sequence[str] = (),
                minute: float = MINUTE, python: str = sys.executable) -> list[Ended]:
    """Start a check on several hosts at once, and wait for its ends.

    places: for each host the words that stand before a command to run it there, such as ("ssh", "alice"), and
    the directory.  All have our scripts and Python where we have them.  patches: statements for each host.
    """
    patches = patches or [""] * len(places)
    started = [
        subprocess.Popen([*way, python, "-B", "-c", program(folder, patch, minute)], stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for (way, folder), patch in zip(places, patches)
    ]
    ended = []
    for process in started:
        out, err = process.communicate(timeout=minute + SLOW)
        ended.append(Ended(process.returncode, out, err))
    return ended


def hosts(said: bytes) -> list[str]:
    return re.findall(r"^ *[1-9]\d* additions by (\S+) ", said.decode(), re.MULTILINE)


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


class Views(unittest.TestCase):
    """A view of a folder: a FUSE mount of its own, whose locks do not reach other views."""

    def setUp(self) -> None:
        if fault := lacking("FUSE", VIEWS, ["test", "-c", "/dev/fuse"]):
            self.skipTest(fault)

    @contextlib.contextmanager
    def mounted(self, program: str) -> Iterator[pathlib.Path]:
        """Mount an empty folder by this program."""
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as view:
            subprocess.run([program, folder, view], check=True, env={**os.environ, "PATH": PATH})
            try:
                yield pathlib.Path(view)
            finally:
                subprocess.run(["umount", view], check=True)

    def run_script(self, view: pathlib.Path, script: str, *args: str) -> Ended:
        ended = subprocess.run([sys.executable, SCRIPTS_AT / script, *args], cwd=view, check=False,
                               stdin=subprocess.DEVNULL, capture_output=True, timeout=SLOW)
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def test_no_and_what_writes_the_file_refuses_it_unless_no_other_host_uses_it(self) -> None:
        said = re.compile(rb"is on fuse[^ ]*, mounted so that locks do not reach other hosts")
        for program in VIEWS:
            with self.subTest(program), self.mounted(program) as view:
                checked = self.run_script(view, RUNWAIT, "--check-locks", ".")
                self.assertEqual((checked.code, os.listdir(view)), (1, []), checked)
                self.assertRegex(checked.out, b"NO   " + said.pattern)
                self.assertIn(b"To change: use the directory where its own file system", checked.out)
                (view / "runs.txt").write_text(". true\n")
                for call in ((RUNMAKER, "runs.txt"), (RUNSERVER, "--port=0", "runs.txt"),
                             (RUNSET, "runs.txt", "--add=true"), (RUNSET, "new.txt", "--add=true")):
                    ended = self.run_script(view, *call)
                    self.assertEqual((ended.code, ended.err.count(b"\n")), (2, 1), ended)
                    self.assertRegex(ended.err, said)
                self.assertEqual((view / "runs.txt").read_text(), ". true\n")
                self.assertFalse((view / "new.txt").exists())
                ended = self.run_script(view, RUNMAKER, "--single-host", "runs.txt")
                self.assertEqual((ended.code, (view / "runs.txt").read_text()), (0, "d true\n"), ended)


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
        return self.rig.server.run("ls -A /export").out.decode().split()

    def start(self, machine: Machine, minute: float = MINUTE, patch: str = "") -> Command:
        """Start a check on a host."""
        text = program("/nfs", patch, minute, scripts=[str(SCRIPTS_AT)])
        return machine.popen("exec python3 -B -", data=text)

    def start_waiting(self, machine: Machine, **settings: Any) -> Command:
        """Start a check, and wait until it has added."""
        begun = self.start(machine, **settings)
        here = "find /export -name runmaker4-check -size +0"
        wait_until(lambda: begun.code is not None or self.rig.server.run(here).out, SLOW)
        self.assertIsNone(begun.code, str(begun))
        return begun

    def check(self, **settings: Any) -> list[Command]:
        """A check on both hosts, to its end; it leaves nothing behind."""
        started = self.start(self.alice, **settings), self.start(self.bob, **settings)
        ended = [command.wait() for command in started]
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
                kinds = {version: "nfs4" if version.startswith("4") else "nfs" for version in (alice, bob)}
                self.assertSays(ended, 0, *kinds.values(), "No addition was lost: these hosts can share")
                for command in ended:
                    self.assertEqual(sorted(hosts(command.out)), ["alice", "bob"], str(command))

    def test_no_where_locks_stay_on_each_host(self) -> None:
        self.mount_both("3", options="nolock")
        alice, bob = self.check()
        self.assertSays([alice], 1, "NO   is on NFS mounted with nolock")
        self.assertSays([bob], 1, "NO   is on NFS mounted with nolock")
        self.assertSays([alice, bob], 1, "To change: mount with vers=4.2")

    def test_no_where_one_host_keeps_its_locks_to_itself(self) -> None:
        self.mount(self.alice, "3", "local_lock=posix")
        self.mount(self.bob, "4.2")
        alice, bob = self.check()
        self.assertSays([alice], 1, "NO   is on NFS mounted with local_lock=posix")
        self.assertSays([bob], 1, LOST)

    def test_no_where_reads_lie(self) -> None:
        """Out of its host's memory a runner would read what was there before: . or r."""
        self.mount_both("4.2")
        for command in self.check(patch=CACHED):
            self.assertEqual(command.code, 1, str(command))
            self.assertRegex(command.out, b"NO   (an addition was lost|no addition of another host)")

    def test_two_hosts_of_one_name(self) -> None:
        self.bob.run("echo alice >/proc/sys/kernel/hostname")
        self.addCleanup(self.bob.run, "echo bob >/proc/sys/kernel/hostname")
        self.mount(self.alice, "4.2")
        self.mount(self.bob, "4.2")
        # the server takes them for one: each loses its locks to the other, or waits until the other has left
        self.assertSays(self.check(), 1)

    def restart(self) -> None:
        self.alice.run("pkill rpc.statd; pkill rpcbind; rpcbind -w && rpc.statd -n alice")

    def test_without_rpcbind_and_statd(self) -> None:
        self.mount_both("3")
        self.addCleanup(self.restart)
        self.alice.run("pkill rpc.statd; pkill rpcbind")
        alice, bob = self.check()
        self.assertSays([alice], 1, "let rpc.statd run on", "NO   no locks available")
        self.assertSays([bob], 1, "no other host has come")

    def test_a_host_that_never_answers(self) -> None:
        self.mount_both("4.2")
        alice = self.start_waiting(self.alice)
        self.addCleanup(self.alice.plug, True)
        self.alice.plug(False)
        bob = self.start(self.bob).wait()
        self.assertEqual(bob.code, 1, str(bob))
        self.assertRegex(bob.out, b"no addition of another host|keeps the lock|no other host has come")
        self.alice.plug(True)
        alice.wait()
        self.rig.server.run("rm -f /export/runmaker4-check /export/.runmaker4-check.lock")
