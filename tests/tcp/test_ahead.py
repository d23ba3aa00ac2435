"""Promise: a client whose jobs are short gets lines ahead; no line waits long, and no limit is overrun."""
import importlib
from typing import Any

from tests.support.fake_server import FakeServer
from tests.support.messages import JOBS, WELCOME
from tests.support.peer import Peer
from tests.support.processes import wait_until
from tests.support.tcp import TcpCase
from tests.support.wire import TOKEN

server: Any = importlib.import_module("runmaker4-server")
# all jobs are done soon, however busy the machine is
SLOW_CLOCK = "import runmaker4, time; runmaker4.boottime = lambda: time.monotonic() / 1000"


class LinesAhead(TcpCase):
    """A client by hand, with one slot, whose jobs all end at once."""

    def serve(self, count: int, *options: object) -> Peer:
        self.write(". true\n" * count)
        server = self.start_server(*options, patch=SLOW_CLOCK)
        peer = Peer.of(server.port, server.token)
        self.addCleanup(peer.close)
        peer.hello(slots=1).hear("welcome")
        self.event = 0
        return peer

    def play(self, peer: Peer, states: str) -> list[int]:
        """Ask for a job each time when all have ended; how many came each time.

        states: what becomes of the jobs; one is drawn for each message.
        """
        counts = []
        for state in states:
            jobs = peer.say(dict(type="claim", request=1, want=1, last=False)).hear("jobs")["jobs"]
            counts.append(len(jobs))
            for job in jobs:
                self.event += 1
                peer.say(dict(type="finish", n=self.event, id=job["id"], state=state, how="exit 0",
                              lost=False))
        return counts

    def test_short_jobs_share_messages_and_a_failure_ends_that(self) -> None:
        peer = self.serve(50)
        self.assertEqual(self.play(peer, "ddddddd!d"), [1, 1, 1, 1, 2, 2, 3, 3, 1])
        while peer.hear("ack")["n"] < self.event:
            pass
        self.assertEqual(self.states(), "d" * 11 + "!!!d" + "." * 35)

    def test_with_a_limit_to_failures_each_job_is_asked_for(self) -> None:
        peer = self.serve(20, "--max-failed", 1)
        self.assertEqual(self.play(peer, "d" * 12), [1] * 12)

    def test_lines_ahead_of_a_client_that_gets_a_long_job_go_to_another(self) -> None:
        self.write(". true\n" * 40 + ". sleep 600\n" + ". echo x >> ran\n" * 4)
        server = self.start_server(patch=SLOW_CLOCK)
        self.start_client(server, "-q", "-j1", "--name", "first")
        wait_until(lambda: self.states().startswith("d" * 40 + "r"))
        self.start_client(server, "-q", "-j1", "--name", "second")
        wait_until(lambda: self.states() == "d" * 40 + "rdddd")
        self.assertEqual(self.read("ran"), b"x\n" * 4)


class JobsThatWaitForTheServer(TcpCase):
    """A server has sent jobs late, so they start when it has answered once more."""

    def test_a_client_whose_slots_they_fill_asks_for_no_other(self) -> None:
        """Lines that come later would be claimed for it, and be lost with it."""
        heard: list[dict[str, Any]] = []

        def serve(peer: Peer) -> None:
            peer.prove().hear("hello")
            peer.say(WELCOME).hear("claim")
            jobs = [{**JOBS["jobs"][0], "id": f"{number:016}"} for number in range(2)]
            peer.say({**JOBS, "request": 1, "jobs": jobs}).hear("ping")     # the answer to an old request
            ping = peer.hear("ping")
            peer.say(dict(type="pong", request=ping["request"], retry=""))
            while sum(message["type"] == "begin" for message in heard) < 2:
                heard.append(peer.hear())

        self.write(TOKEN, ".runmaker4.token").chmod(0o600)
        with FakeServer(serve) as server:
            self.start_client(server, "-j2")
            wait_until(lambda: sum(message["type"] == "begin" for message in heard) == 2)
        self.assertNotIn("claim", [message["type"] for message in heard])
