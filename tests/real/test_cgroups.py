"""Promise: control groups of version 2 bound what a runner has, and tell what the kernel kills; so do
scopes of systemd's, as docs/messages.md has users type.

With RUNMAKER4_TEST_REAL=1, in a machine that is booted once (rigs/machines.py), by Debian's systemd.
"""
import functools
import os
import re
import shlex
import unittest

from tests.real.rigs import REAL
from tests.real.rigs.machines import Command, Machine, Machines, missing
from tests.support.documents import read_pieces
from tests.support.mixin import Mixin
from tests.support.scripts import PYTHON, SCRIPTS_AT

TOOLS = {"/lib/systemd/systemd": "systemd", "loginctl": "systemd", "dbus-daemon": "dbus-daemon",
         "/lib/x86_64-linux-gnu/security/pam_systemd.so": "libpam-systemd",
         "/usr/lib/systemd/user/dbus.socket": "dbus-user-session"}
GROUPS = "/sys/fs/cgroup/limited"       # a group of 400 MB, with two groups in it
MAKE_GROUPS = f"""set -e
mkdir {GROUPS}
echo 400M >{GROUPS}/memory.max
echo +memory >{GROUPS}/cgroup.subtree_control
mkdir {GROUPS}/ours {GROUPS}/others
"""
TAKE = "import sys\ndata = b'x' * (int(sys.argv[1]) << 20)\n"
# a job that is killed by itself while another runs, which goes on when its line tells so
FIRST = ". : first; until [ -e begun ]; do sleep 0.1; done; kill -9 $$"
AFTER = ": >begun; while grep -q '^[.r] : first' runs.txt; do sleep 0.1; done"
# what docs/messages.md has users type
SCOPES = next(piece.text for piece in read_pieces("docs/messages.md") if "systemd-run --user" in piece.text)


def setUpModule() -> None:
    if not REAL:
        raise unittest.SkipTest("RUNMAKER4_TEST_REAL is not set: takes a minute")
    if missing(*TOOLS.items()):
        raise unittest.SkipTest(missing(*TOOLS.items()))


@functools.cache
def the_machine() -> Machine:
    """The machine of all tests here."""
    machines = Machines()
    machines.__enter__()
    unittest.addModuleCleanup(machines.__exit__)
    machine = machines.add(Machine(machines, "machine", 1, memory="768M", systemd=True))
    machine.boot()
    machine.run(f"useradd -m worker && loginctl enable-linger worker\n{MAKE_GROUPS}")
    # our scripts and this Python can be root's alone
    machine.run("".join(f"p={path}; until [ $p = / ]; do chmod a+rx $p; p=${{p%/*}}; p=${{p:-/}}; done\n"
                        for path in (SCRIPTS_AT, os.path.realpath(PYTHON))))
    return machine


class GroupsCase(Mixin):
    """A test with a directory of its own in the machine."""

    def setUp(self) -> None:
        self.machine = the_machine()
        name = f"/home/worker/{self._testMethodName}"
        self.machine.run(f"mkdir {name}", directory="/")
        self.machine.directory = name
        self.machine.write("take.py", TAKE)

    def jobs(self, *lines: str) -> None:
        self.machine.write("runs.txt", "".join(f"{line}\n" for line in lines))
        self.machine.run("chown -R worker .")

    def states(self) -> str:
        lines = self.machine.read("runs.txt").decode().splitlines()
        return "".join(line[0] for line in lines if not line.startswith("#"))

    def out_of_memory(self, ended: Command) -> tuple[int, list[str]]:
        """How many runs the kernel has killed, as the runner tells, and which lines have failed so."""
        told = self.machine.run("runwait4.py --failed --outdir out runs.txt").out.decode()
        lines = re.findall("(?m)^line ([0-9]+): out of memory, exit 137", told)
        return ended.out.count(b"out of memory, exit 137"), lines


class InAGroup(GroupsCase, unittest.TestCase):
    """A runner in a group below one whose memory is limited."""

    def run_jobs(self, options: str) -> Command:
        """Run the jobs in it, to the end of the runner."""
        enter = f"echo $$ >{GROUPS}/ours/cgroup.procs"
        return self.machine.run(f"{enter} && exec runmaker4.py {options} runs.txt", check=False)

    def test_it_has_the_memory_of_the_group_above(self) -> None:
        text = b"400M of memory for jobs with memory=\n"
        self.jobs("#RUN memory=400M", ". true", "#RUN memory=401M", ". false")
        told = self.run_jobs("--dry-run")
        self.assertEqual(told.out, b"2 . true\n", str(told))
        self.assertIn(text, told.err)
        ended = self.run_jobs("")
        self.assertEqual((ended.code, self.states()), (0, "d."), str(ended))

    def test_what_the_kernel_has_killed_is_told_from_what_others_kill_before_and_after(self) -> None:
        self.jobs(FIRST, "#RUN memory=400M", ". python3 take.py 300", f". {AFTER}; python3 take.py 600",
                  "#RUN barrier", ". kill -9 $$")
        ended = self.run_jobs("-j2 --outdir out")
        self.assertEqual((ended.code, self.states()), (1, "!d!!"), str(ended))
        self.assertEqual(self.out_of_memory(ended), (1, ["4"]), str(ended))

    def test_what_the_kernel_kills_in_another_group_is_not_the_runners(self) -> None:
        self.jobs(f". echo $$ >{GROUPS}/others/cgroup.procs; python3 take.py 600; "
                  f"echo $$ >{GROUPS}/ours/cgroup.procs; kill -9 $$")
        ended = self.run_jobs("--outdir out")
        self.assertEqual((ended.code, self.states()), (1, "!"), str(ended))
        self.assertIn(b"Killed", ended.out + ended.err)
        self.assertEqual(self.out_of_memory(ended), (0, []), str(ended))


class InScopes(GroupsCase, unittest.TestCase):
    """A user's runner, with a scope of systemd's for each job."""

    def run_jobs(self, command: str) -> Command:
        """Run a command in a session of the user's, in which the shell becomes it."""
        text = f"cd {self.machine.directory} && exec {command}"
        return self.machine.run(f"runuser -l worker -c {shlex.quote(text)}", check=False)

    def test_a_job_that_takes_more_is_killed(self) -> None:
        self.jobs("#RUN memory=100M", FIRST, f". {AFTER}; python3 take.py 300", "#RUN memory=400M",
                  ". python3 take.py 300")
        ended = self.run_jobs(SCOPES.replace("runs.txt", "-j2 --outdir out runs.txt"))
        self.assertEqual((ended.code, self.states()), (1, "!!d"), str(ended))
        self.assertIn(b"exit 137", ended.out)
        self.assertEqual(self.out_of_memory(ended), (0, []), str(ended))
