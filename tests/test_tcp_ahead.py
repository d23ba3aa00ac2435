"""Promise: a client whose jobs are short gets lines ahead; no line waits long, and no limit is overrun."""
import importlib
import unittest
from types import SimpleNamespace
from typing import Any
from unittest import mock

import runmaker4
from tests.support import wait_until
from tests.tcp import TcpCase
from tests.wire import Peer

server: Any = importlib.import_module("runmaker4-server")
# all jobs are done soon, however busy the machine is
SLOW_CLOCK = "import runmaker4, time; runmaker4.boottime = lambda: time.monotonic() / 1000"


class Throttle(unittest.IsolatedAsyncioTestCase):
    """How many lines a client gets that it has not asked for."""

    def setUp(self) -> None:
        self.now = 1000.0
        clock = mock.patch.object(server, "boottime", lambda: self.now)
        clock.start()
        self.addCleanup(clock.stop)

    def client(self, max_failed: int = 0, slots: int = 2) -> Any:
        sessions = SimpleNamespace(max_failed=max_failed)
        client = server.Client(sessions, "c" * 16)
        client.capacity = runmaker4.Resources(slots)
        client.requested_slots = 1
        return client

    def end(self, client: Any, state: bytes = b"d", after: float = 0.0) -> int:
        """A job ends so many seconds after it was sent.  How many lines the client gets ahead from now on."""
        job = runmaker4.Job(1, 0, 0, b".", b" true")
        assignment = server.Assignment("key", client, job)
        assignment.mark_sent()
        self.now += after
        client.count_short_jobs(assignment, server.LineResult(server.Cause.RAN, state))
        ahead: int = client.prefetch_count
        return ahead

    def ready(self, **settings: int) -> Any:
        """A client that gets as many as it can."""
        client = self.client(**settings)
        for _ in range(4 * server.MAX_PREFETCHED_LINES):
            self.end(client)
        return client

    def test_one_more_for_each_four_short_jobs_and_no_more_than_some(self) -> None:
        client = self.client()
        self.assertEqual([self.end(client) for _ in range(9)], [0, 0, 0, 1, 1, 1, 1, 2, 2])
        self.assertEqual(self.ready().prefetch_count, server.MAX_PREFETCHED_LINES)
        client = self.ready()
        self.assertEqual(self.end(client), server.MAX_PREFETCHED_LINES)

    def test_a_job_that_takes_longer_or_fails_or_comes_back_ends_that(self) -> None:
        self.assertEqual(self.end(self.ready(), after=server.SHORT_JOB_SECONDS), 0)
        for state in b"!", b"e", b".", b"x":
            self.assertEqual(self.end(self.ready(), state), 0, state)

    def test_a_line_that_was_never_sent_ends_it_too(self) -> None:
        client = self.ready()
        assignment = server.Assignment("key", client, runmaker4.Job(1, 0, 0, b".", b" true"))
        client.count_short_jobs(assignment, server.LineResult(server.Cause.RAN, b"d"))
        self.assertEqual(client.prefetch_count, 0)

    def test_only_who_asks_gets_lines(self) -> None:
        client = self.ready()
        self.assertEqual(client.slots_to_fill, 1 + server.MAX_PREFETCHED_LINES)
        client.subtract_requested(1 + server.MAX_PREFETCHED_LINES)
        self.assertEqual((client.requested_slots, client.slots_to_fill), (0, 0))
        client.requested_slots = 1
        client.assignments = {str(number): SimpleNamespace(is_undecided=True) for number in range(4)}
        self.assertEqual(client.slots_to_fill, 0)            # it has two lines for each slot


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
            peer.say(dict(type="claim", request=1, want=1, last=False))
            jobs = peer.hear("jobs")["jobs"]
            counts.append(len(jobs))
            for job in jobs:
                self.event += 1
                peer.say(dict(type="finish", n=self.event, id=job["id"], state=state, how="exit 0", cause=""))
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


if __name__ == "__main__":
    unittest.main()
