"""Promise of the rigs: a host that does not boot says why, and none outlives the test that has started it.

With RUNMAKER4_TEST_REAL=1, on machines with kernels of their own (rigs/machines.py).
"""
import os
import shutil
import signal
import subprocess
import sys
import unittest

from tests.real.rigs import REAL, machines
from tests.real.rigs.machines import Machine, Machines
from tests.support.processes import marked, wait_until
from tests.support.scripts import ROOT

BOOT_AND_WAIT = """
import time
from tests.real.rigs.machines import Machine, Machines
with Machines() as rig:
    rig.add(Machine(rig, "host", 1)).boot()
    print("up", rig.dir, flush=True)
    time.sleep(3600)
"""


def setUpModule() -> None:
    if not REAL:
        raise unittest.SkipTest("RUNMAKER4_TEST_REAL is not set: takes half a minute")
    if machines.missing():
        raise unittest.SkipTest(machines.missing())


class Boots(unittest.TestCase):

    def add(self, setup: str = "") -> Machine:
        rig = Machines()
        rig.__enter__()
        self.addCleanup(rig.__exit__)
        return rig.add(Machine(rig, "host", 1, setup=setup))

    def test_a_set_up_that_fails_is_shown(self) -> None:
        with self.assertRaises(AssertionError) as raised:
            self.add(setup="mount /dev/ubda /mnt/nowhere").boot()
        self.assertRegex(str(raised.exception), "(?s)host did not boot.*/mnt/nowhere: mount point does not")

    def test_a_kernel_that_panics_ends_the_machine(self) -> None:
        host = self.add()
        host.boot()
        command = host.popen("echo c >/proc/sysrq-trigger; sleep 3600")
        self.assertEqual(command.wait().code, -signal.SIGKILL)
        self.assertIn("sysrq triggered crash", host.log())

    def test_a_missing_program_is_named(self) -> None:
        said = machines.missing(("no-such-program", "no-such-package"))
        self.assertRegex(said, "user-mode Linux cannot be had here: .*no-such-package")

    def test_no_process_outlives_a_test_that_is_killed(self) -> None:
        mark = f"RUNMAKER4_TEST_MARK=boot{os.getpid()}"
        with subprocess.Popen([sys.executable, "-c", BOOT_AND_WAIT], cwd=ROOT, stdout=subprocess.PIPE,
                              env={**os.environ, **dict([mark.split("=")])}) as test:
            assert test.stdout
            up, directory = test.stdout.readline().split()
            self.addCleanup(shutil.rmtree, directory)
            self.assertEqual(up, b"up")
            self.assertGreater(len(marked(mark)), 3)
            test.kill()
        wait_until(lambda: not marked(mark), what="no process is left")
