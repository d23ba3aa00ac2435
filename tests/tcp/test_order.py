"""Promise: every client gets the first line of the file that it may take at that moment."""
import re
from typing import Any

from tests.support.peer import Peer
from tests.support.tcp import Server, TcpCase


class OrderOfTheFile(TcpCase):
    """Clients that come and go, one job at a time, as if each read the file for itself."""

    def setUp(self) -> None:
        super().setUp()
        self.peers: dict[str, Peer] = {}
        self.requests = 0

    def serve_lines(self, *lines: str) -> None:
        self.write("".join(f"{line}\n" for line in lines))
        self.server: Server = self.start_server()

    def claim(self, name: str, **fields: object) -> dict[str, Any]:
        """The job that the client of this name gets next; it runs on."""
        if name not in self.peers:
            self.peers[name] = Peer.of(self.server.port, self.server.token)
            self.addCleanup(self.peers[name].close)
            self.peers[name].hello(name=name, slots=100, **fields).hear("welcome")
        self.requests += 1
        self.peers[name].say(dict(type="claim", request=self.requests, want=1, last=False))
        job: dict[str, Any]
        job, = self.peers[name].hear("jobs")["jobs"]
        return job

    def claims(self, *names: str) -> list[int]:
        return [self.claim(name)["number"] for name in names]

    def test_lines_for_one_host_are_not_overtaken_by_those_for_all(self) -> None:
        self.serve_lines("#RUN host=alice", *[". a"] * 3, "#RUN host=bob", *[". b"] * 3, "#RUN", *[". c"] * 4)
        self.assertEqual(self.claims("bob", "carol", "alice", "bob", "carol", "alice", "bob", "alice"),
                         [6, 10, 2, 7, 11, 3, 8, 4])
        self.assertEqual(self.claims("alice", "bob"), [12, 13])

    def test_the_first_of_two_places_for_one_host_comes_first(self) -> None:
        self.serve_lines("#RUN host=alice", ". a", "#RUN host=alice timeout=9h", ". a", "#RUN", ". c")
        self.assertEqual(self.claims("bob", "alice", "alice"), [6, 2, 4])

    def test_lines_for_more_slots_and_below_the_end_as_well(self) -> None:
        self.serve_lines("#RUN host=alice", ". a", "#RUN", ". c", ". c", "#RUN end", "#RUN host=alice", ". a",
                         "#RUN", ". c")
        self.assertEqual(self.claims("carol", "bob", "alice", "carol", "alice"), [4, 5, 2, 10, 8])

    def test_a_line_for_more_slots_than_the_first_in_turn_has_free_goes_to_the_next(self) -> None:
        self.serve_lines(". a", "#RUN slots=2", ". b")
        _, free = self.busy_and_free()
        free.say(dict(type="claim", request=1, want=2, last=False))
        self.assertEqual([job["number"] for job in free.hear("jobs")["jobs"]], [3])

    def test_who_waits_for_slots_gets_no_smaller_line_below_beside_others_who_do(self) -> None:
        self.serve_lines(". a", "#RUN host=busy slots=2", ". b", "#RUN host=busy", ". c", "#RUN", ". d")
        busy, free = self.busy_and_free()
        free.say(dict(type="claim", request=1, want=1, last=False))
        self.assertEqual([job["number"] for job in free.hear("jobs")["jobs"]], [7])
        busy.say(dict(type="ping", request=4)).hear("pong")
        self.assertEqual(self.states(), "r..r")

    def busy_and_free(self) -> list[Peer]:
        """Two clients with two slots; one has a job, and waits for another."""
        busy, free = (Peer.of(self.server.port, self.server.token) for _ in range(2))
        for name, peer in ("busy", busy), ("free", free):
            self.addCleanup(peer.close)
            peer.hello(name=name, slots=2).hear("welcome")
        busy.say(dict(type="claim", request=1, want=1, last=False)).hear("jobs")
        busy.say(dict(type="claim", request=2, want=1, last=False), dict(type="ping", request=3)).hear("pong")
        return [busy, free]

    def test_a_barrier_below_holds_for_who_comes_back_from_there(self) -> None:
        self.serve_lines("#RUN host=alice", ". a", "#RUN", ". c", "#RUN barrier", ". c")
        self.assertEqual(self.claims("bob"), [4])
        peer = Peer.of(self.server.port, self.server.token)
        self.addCleanup(peer.close)
        peer.hello(name="carol").hear("welcome")
        peer.say(dict(type="claim", request=99, want=1, last=False), dict(type="ping", request=100)).hear(
            "pong"
        )
        self.assertEqual(self.claims("alice"), [2])
        self.assertEqual(self.states(), "rr.")

    # Few clients make many
    COUNT_OFFERS = """
import importlib, sys
server = importlib.import_module("runmaker4-server")
server.FEW_OFFERS, claim_batch = 2, server.Claims.claim_batch
def count_offers(self, offers, *rest):
    print("offers:", len(offers), file=sys.stderr, flush=True)
    return claim_batch(self, offers, *rest)
server.Claims.claim_batch = count_offers
"""

    def peers_in_turn(self, *would_exit: bool) -> list[Peer]:
        """So many wait for lines, one after the other."""
        self.write("# none yet\n")
        self.server = self.start_server(patch=self.COUNT_OFFERS)
        peers = [Peer.of(self.server.port, self.server.token) for _ in would_exit]
        for number, (peer, last) in enumerate(zip(peers, would_exit)):
            self.addCleanup(peer.close)
            peer.hello(name=f"h{number}", slots=1, follow=not last).hear("welcome")
            peer.say(dict(type="claim", request=number, want=1, last=last), dict(type="ping", request=99))
            peer.hear("pong")
        return peers

    def test_who_would_exit_is_answered_however_many_wait_before(self) -> None:
        self.assertEqual(self.peers_in_turn(False, False, False, True)[3].hear("nothing")["request"], 3)

    def test_of_many_that_wait_only_the_first_are_asked_until_a_line_does_not_suit_them(self) -> None:
        peers = self.peers_in_turn(*[False] * 6)
        self.append(". for all")
        self.assertEqual(peers[0].hear("jobs")["request"], 0)
        self.append("#RUN host=h5\n. for the last\n#RUN\n. for all")
        self.assertEqual([peers[number].hear("jobs")["request"] for number in (5, 1)], [5, 1])
        counts = [int(count) for count in re.findall(rb"offers: (\d+)", self.server.err)]
        self.assertEqual([max(counts[:counts.index(4)]), max(counts)], [2, 4], counts)

    def test_a_file_that_is_edited_between_two_claims(self) -> None:
        self.serve_lines("#RUN host=alice", ". a", ". a", "#RUN", *[". c"] * 4)
        self.assertEqual(self.claims("bob"), [5])
        text = self.read()
        (self.dir / "runs.txt").write_bytes(b"# above\n" + text)
        self.assertEqual(self.claims("alice", "bob", "alice"), [3, 7, 4])
