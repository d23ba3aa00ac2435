"""Promise: a fork server that hangs or dies fails no test; another one forks the scripts after it."""
import os
import signal
import socket
import unittest
from unittest import mock

from tests.support import forking
from tests.support.forking import CLONE, ForkServer
from tests.support.runs import RunCase
from tests.support.scripts import FULL

# a script says that it runs
NOTED = "with open('ran', 'a') as file:\n    file.write('x')\n"


@unittest.skipUnless(CLONE and not FULL, "no script is forked here")
class ReplacedForkServer(RunCase):
    def setUp(self) -> None:
        super().setUp()
        self.forks = True       # whatever the SEED says
        servers = mock.patch.dict(forking.fork_servers, clear=True)
        servers.start()
        self.addCleanup(servers.stop)
        self.addCleanup(forking.close_fork_server)
        self.run_noted("x")

    def run_noted(self, ran: str) -> None:
        """Run a script; in all these have run by now."""
        ended = self.finish(self.start_patched(NOTED, "--version"))
        self.assertEqual((ended.code, self.read("ran")), (0, ran.encode()), ended.err)

    @property
    def server(self) -> ForkServer:
        return forking.fork_servers[os.getpid()]

    def assert_replaced(self, old: ForkServer) -> None:
        """The next script runs, and the one after it is a fork of another server."""
        self.run_noted("xx")
        self.assertEqual(old.process.poll(), -signal.SIGKILL)
        self.run_noted("xxx")
        self.assertNotEqual(self.server.process.pid, old.process.pid)

    def test_one_that_hangs(self) -> None:
        os.kill(self.server.process.pid, signal.SIGSTOP)
        self.server.ours.settimeout(0.1)
        self.assert_replaced(self.server)

    def test_one_that_is_dead(self) -> None:
        self.server.process.kill()
        self.server.process.wait()
        self.assert_replaced(self.server)

    def test_a_fork_whose_number_does_not_arrive_runs_nothing(self) -> None:
        old, ours = self.server, self.server.ours
        forks = []

        def lose(size: int) -> bytes:
            forks.append(int(ours.recv(size)))
            raise socket.timeout

        old.ours = mock.Mock(wraps=ours)
        old.ours.recv.side_effect = lose
        self.assert_replaced(old)
        self.assertEqual(os.waitpid(forks[0], 0)[1], 1 << 8)
