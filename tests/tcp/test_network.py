"""Promise: whatever a network does between hosts, and hosts do to it, no job is lost and none runs twice."""
import os
import shutil
import signal
import subprocess
import time
import unittest
from typing import Any

from tests.support.losses import JOB, LATER, LossCase
from tests.support.process_table import send
from tests.support.processes import DEADLINE
from tests.support.scripts import FULL
from tests.support.tcp import Program, Server
from tests.support.values import present

NET = "198.18.7"
ADDRESSES = {"alice": f"{NET}.1", "bob": f"{NET}.2", "carol": f"{NET}.3"}
SWITCH = (
    "mount -t tmpfs tmpfs /run; ip link add br0 type bridge; ip link set br0 up; echo up; exec sleep 100000"
)
HOST = ("ip netns add $0; ip link add p-$0 type veth peer name eth0 netns $0 address 02:00:00:00:00:0$1; "
        "ip link set p-$0 master br0 up; ip -n $0 address add $2/24 dev eth0; "
        # after a crash with the same address as before
        "ip -n $0 link set lo up; ip -n $0 link set eth0 up")


class NetworkCase(LossCase):
    """Helpers: hosts that are network namespaces of `ip netns`, joined by a bridge, in namespaces of the
    test's own.

    A server runs on alice, clients on bob and carol.
    """
    HOST = ADDRESSES["alice"]

    def setUp(self) -> None:
        super().setUp()
        missing = [tool for tool in ("unshare", "nsenter", "ip") if not shutil.which(tool)]
        if missing:
            self.skipTest(f"missing: {', '.join(missing)}")
        user = [] if os.geteuid() == 0 else ["-r"]
        switch = self.start("unshare", *user, "-mn", "sh", "-ec", SWITCH)
        if present(switch.stdout).readline() != b"up\n":
            said = present(switch.stderr).read().decode(errors="replace").strip()
            self.skipTest(f"no private network namespace here: {said}")
        user = ["-U", "--preserve-credentials"] if user else []
        self.inside = ["nsenter", "-t", str(switch.pid), *user, "-m", "-n", f"--wd={self.dir}"]
        for name in ADDRESSES:
            self.boot(name)

    def network(self, script: str, *args: str, may_lack: bool = False) -> bytes:
        """Run shell commands in the network of the switch.  may_lack: a system may not be able to do this."""
        done = subprocess.run([*self.inside, "sh", "-ec", script, *args], capture_output=True,
                              env=self.environ(), timeout=DEADLINE, check=False)
        if done.returncode and may_lack:
            self.skipTest(f"{script!r} is not possible here: {done.stderr.decode(errors='replace').strip()}")
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def boot(self, name: str) -> None:
        address = ADDRESSES[name]
        self.network(HOST, name, address[-1], address, may_lack=True)

    def on(self, name: str) -> list[str]:
        """The words that run a command on a host."""
        return [*self.inside, "ip", "netns", "exec", name]

    def pull_cable(self, name: str) -> None:
        self.network("ip link set p-$0 down", name)

    def plug_in(self, name: str) -> None:
        self.network("ip link set p-$0 up", name)

    def crash(self, name: str) -> None:
        """Power loss: the host is gone before it can say anything, and so is all that ran there."""
        self.pull_cable(name)
        pids = [int(pid) for pid in self.network("ip netns pids $0", name).split()]
        self.assertTrue(pids)
        send(signal.SIGKILL, pids)
        self.network("ip link delete p-$0; ip netns delete $0", name)

    def serve(self, *commands: str, **settings: Any) -> Server:
        return super().serve(*commands, within=self.on("alice"), **settings)

    def connect(self, server: Server, *options: object, name: str = "bob", **settings: Any) -> Program:
        return super().connect(server, *options, name=name, within=self.on(name), **settings)


class PowerLoss(NetworkCase):
    """A host loses its power, with the silence that makes a loss cut short."""
    PATCH = "import runmaker4; runmaker4.MAX_SILENT_SECONDS, runmaker4.PING_SECONDS = 2.0, 0.2"

    def test_the_lines_of_a_host_that_is_gone_are_new_after_silence_and_grace(self) -> None:
        server = self.serve(JOB, JOB, grace=0.4)
        client = self.connect(server)
        self.connect(server, "--resume", "--follow", name="carol", up=(2,))
        begin = time.monotonic()
        self.crash("bob")
        self.wait_said(server, f"client bob ({ADDRESSES['bob']}) is lost")
        self.wait_states(".r")
        self.assertGreater(time.monotonic() - begin, 0.4)
        self.open_gate()
        self.wait_states("dd")
        self.assertEqual((len(self.pids(1)), client.process.wait()), (2, -signal.SIGKILL))


@unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes half a minute")
class Cable(NetworkCase):
    """The cable is pulled, and all times are the real ones."""

    def test_pulled_for_longer_than_silence_and_grace(self) -> None:
        server = self.serve(JOB, LATER, grace=3)
        client = self.connect(server, "-j2", up=(1, 2))
        begin = time.monotonic()
        self.pull_cable("bob")
        self.end_jobs(client)
        self.wait_states("ee")
        self.assertGreater(time.monotonic() - begin, 3 + 3)     # the last keep-alive came 5 s before, or more
        self.wait_said(server, "bob", "did not come back", "lines 1, 2")
        self.plug_in("bob")
        self.assert_second_ran_on(client)                       # late results count
