"""Stage: a server and a good client, who must notice nothing of what attackers do."""
import os
from typing import Any

from tests.support.peer import Peer
from tests.support.processes import wait_until
from tests.support.runs import WAITING
from tests.support.tcp import TcpCase

# seconds: soon over, and long enough for a good client on a busy machine
GRACE = 2.0
# of a server: who is not turned away at once stays, however busy the machine is
PATIENT = "import runmaker4; runmaker4.MAX_HANDSHAKE_SECONDS = runmaker4.MAX_SILENT_SECONDS = 600"


class Stage(TcpCase):
    """A server and its good client, whose first job runs on and on; attacks go on meanwhile."""

    def open(self, *options: object, text: str = "", **settings: Any) -> "Stage":
        """Start both; the text is more of the job file."""
        self.write(f". {WAITING}\n{text}")
        self.server = self.start_server("--grace", GRACE, *options, **settings)
        self.good = self.start_client(self.server, "-j3", "--follow", "--name", "good", up=(1,))
        self.said = b"runmaker4-client.py: 127.0.0.1: serving runs.txt\n"
        wait_until(lambda: self.good.err == self.said, what="it is connected, and has said so")
        # from the first count on the server has the file open to be counted
        with Peer.of(self.server.port, self.server.token) as peer:
            peer.hello(name="leaver").hear("welcome")
            peer.say(dict(type="account")).hear("account")
            peer.say(dict(type="bye")).end().rest()
        self.wait_said(self.server, "leaver", "left")
        return self

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.server.pid}/fd"))

    def add(self, count: int, command: str = ": a job") -> None:
        with open(self.dir / "runs.txt", "ab") as file:
            file.write(f". {command}\n".encode() * count)

    def serves(self) -> None:
        """The good client soon does a job that is added now, whoever waits for jobs, too."""
        before = len(self.read("served")) if self.exists("served") else 0
        self.add(9, "echo served >>served")
        wait_until(lambda: self.exists("served") and len(self.read("served")) > before, what="one is done")

    def is_unharmed(self) -> None:
        """The good client and its job have noticed nothing, nor has the server said anything about it."""
        self.serves()
        self.assertEqual((self.server.poll(), self.good.poll()), (None, None), self.server.err)
        self.assertEqual((self.states()[0], self.good.err), ("r", self.said))
        self.assertNotIn(b"Traceback", self.server.err)
        self.assertNotIn(b"good (127.0.0.1) is lost", self.server.err)

    def close(self) -> None:
        """Let the good client end its job, and stop both, which must be unharmed."""
        self.is_unharmed()
        self.open_gate()
        wait_until(lambda: self.states()[0] == "d", what="the good client's job is done")
        self.assertEqual(self.stop(self.good).code, 143)
        self.assertEqual(self.stop(self.server).code, 143)
        self.assertNotIn(b"Traceback", self.server.err + self.good.err)
