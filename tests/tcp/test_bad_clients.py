"""Promise: a client at which jobs fail that others do gets no more of them, and names what to look at."""
from typing import Any

from tests.support.messages import new_key
from tests.support.peer import Peer
from tests.support.processes import wait_until
from tests.support.tcp import Server, TcpCase
from tests.support.travel import PATCH, TravelCase

# each failure is quick, however busy the machine is
QUICK = "import importlib; importlib.import_module('runmaker4-server').QUICK_SECONDS = 600.0\n"
SAID = "jobs fail here, and not at other clients"


class BadDesktop(TcpCase):
    """A program works on one host, and not on others."""
    # the first job is done, and all others wait
    GOOD = "mkdir ../first 2>/dev/null && exit; until [ -e ../go ]; do sleep 0.02; done\n"
    BAD = "echo looking; echo 'model: no such module' >&2; exit 1\n"

    def setUp(self) -> None:
        super().setUp()
        self.write(self.GOOD, "good/model")
        self.write(self.BAD, "bad/model")

    def write(self, data: Any, name: str = "runs.txt") -> Any:
        (self.dir / name).parent.mkdir(exist_ok=True)
        return super().write(data, name)

    def run_bad(self, server: Server, *options: str) -> bytes:
        ended = self.run_client(server, "-q", *options, cwd=self.dir / "bad")
        self.assertEqual(ended.code, 1)
        return ended.err

    def test_bad_ones_get_no_more_and_r_at_a_good_one_repeats_their_lines(self) -> None:
        self.jobs(*["sh model"] * 60)
        server = self.start_server(patch=QUICK)
        good = self.start_client(server, "-q", cwd=self.dir / "good")
        wait_until(lambda: sorted(self.states()[:2]) == ["d", "r"], what="the first is done")
        last_words = f"(the last: {self.dir / 'bad'}: sh model: model: no such module)"
        for options in ("-j4",), ("-j8", "--follow"):
            before = self.states().count("!")
            said = self.run_bad(server, "--name", options[0][1:], *options).decode()
            self.assertIn(f"{SAID} {last_words} (no more jobs were started)", said)
            self.assertIn(self.states().count("!") - before, range(10, 10 + 8))
        for name in "j4", "j8":
            self.wait_said(server, f"client {name} (127.0.0.1) gets no more: {SAID} {last_words}")
        self.open_gate()
        self.assertEqual(self.finish(good).code, 1)
        self.assertEqual({*self.states()}, {*"d!"})
        self.assertClientEnded(self.run_client(server, "-r", "-j4", cwd=self.dir / "good"), 0, "d" * 60)

    def test_a_bad_one_waits_while_the_jobs_of_others_run_on(self) -> None:
        (self.dir / "first").mkdir()            # so the good one does none for now
        self.jobs(*["sh model"] * 60)
        server = self.start_server(patch=QUICK)
        good = self.start_client(server, "-q", "-j2", cwd=self.dir / "good")
        wait_until(lambda: self.states()[:2] == "rr", what="two run")
        bad = self.start_client(server, "-q", "-j4", cwd=self.dir / "bad")
        self.wait_said(server, "waits until another client has done a job", "model: no such module")
        wait_until(lambda: self.states()[2:].count("r") == 0, what="none runs there")
        self.assertIn(self.states().count("!"), range(10, 10 + 8))
        self.assertIsNone(bad.poll())
        self.open_gate()
        for client in good, bad:
            self.assertEqual(self.finish(client).code, 1)
        self.assertEqual({*self.states()}, {*"d!"})

    def test_without_a_success_elsewhere_nothing_compares(self) -> None:
        self.jobs(*["sh model"] * 40)
        self.assertNotIn(SAID.encode(), self.run_bad(self.start_server(patch=QUICK), "-j2"))
        self.assertEqual(self.states(), "!" * 40)

    def test_slow_failures_are_of_jobs_that_have_run(self) -> None:
        self.jobs("true", *["sh model"] * 20)
        server = self.start_server(patch=QUICK.replace("600.0", "0.0"))
        self.run_client(server, "-1", cwd=self.dir / "good")
        self.run_bad(server, "-j2")
        self.assertEqual(self.states(), "d" + "!" * 20)


class Files(TravelCase):
    """Carol has done a job and is there; bob has failures for want of files, and then a job that succeeds."""
    patch = PATCH + QUICK

    def last_state_after(self, directive: str) -> str:
        server = self.serve(f"#RUN host=carol\n. true\n#RUN host=bob {directive}\n" + ". true\n" * 10
                            + "#RUN host=bob\n. true\n")
        carol = self.join(server, "--follow", name="carol")
        self.wait_states("d" + "." * 11, name="srv/runs.txt")
        self.assertEqual(self.run_bob(server).poll(), 1)
        for program in carol, server:
            program.kill()
        return self.states("srv/runs.txt")[-1]

    def test_one_that_the_server_refuses_says_nothing_of_the_client(self) -> None:
        (self.srv / "dir").mkdir()
        for directive in "send=missing", "fetch=dir":
            self.assertEqual(self.last_state_after(directive), "d", directive)

    def test_one_that_the_jobs_do_not_make_there_counts(self) -> None:
        self.assertEqual(self.last_state_after("fetch=missing"), ".")


class ByHand(TcpCase):
    """Two clients by hand."""

    def setUp(self) -> None:
        super().setUp()
        self.numbers_of: dict[Peer, int] = {}
        self.write(". true\n" * 60)
        self.server = self.start_server(patch=QUICK)
        self.good, self.bad = self.connect(), self.connect()

    def connect(self, **fields: Any) -> Peer:
        peer = Peer.of(self.server.port, self.server.token)
        self.addCleanup(peer.close)
        self.numbers_of[peer] = 0
        peer.hello(slots=20, **fields).hear("welcome")
        return peer

    def get(self, peer: Peer, count: int) -> list[str]:
        """Ask for so many jobs, and wait for them."""
        peer.say(dict(type="claim", request=1, want=count, last=False))
        keys: list[str] = []
        while len(keys) < count:
            keys += [job["id"] for job in peer.hear("jobs", "dismissed")["jobs"]]
        return keys

    def end(self, peer: Peer, keys: list[str], state: str) -> None:
        for key in keys:
            self.numbers_of[peer] += 1
            peer.say(dict(type="finish", n=self.numbers_of[peer], id=key, state=state, how="exit 1",
                          lost=False))

    def ask_and_exit(self, peer: Peer) -> str:
        """Ask for a job as a client that runs none; what comes."""
        answer = peer.say(dict(type="claim", request=2, want=1, last=True)).hear("jobs", "dismissed")
        return str(answer["type"])



class Compared(ByHand):
    """No client has done a job."""

    def test_one_at_which_jobs_fail_waits_for_a_job_that_another_got_before(self) -> None:
        key, = self.get(self.good, 1)
        self.end(self.bad, self.get(self.bad, 10), "!")
        self.wait_said(self.server, "waits until another client has done a job")
        self.bad.say(dict(type="claim", request=2, want=1, last=True),
                     dict(type="ping", request=3)).hear("pong")
        self.assertEqual({message["type"] for message in self.bad.messages} & {"jobs", "dismissed"}, set())
        self.end(self.good, [key], "!")         # so the jobs can be to blame
        self.assertEqual(self.bad.hear("jobs", "dismissed")["type"], "jobs")

    def test_it_does_not_wait_for_a_job_that_another_got_later(self) -> None:
        keys = self.get(self.bad, 10)
        self.get(self.good, 1)
        self.end(self.bad, keys, "!")
        self.assertEqual(self.ask_and_exit(self.bad), "jobs")


class Judged(ByHand):
    """One of the two has done a job."""

    def setUp(self) -> None:
        super().setUp()
        self.end(self.good, self.get(self.good, 1), "d")
        self.wait_states("d" + "." * 59)

    def test_ten_failures_are_enough_and_nine_are_not(self) -> None:
        self.end(self.bad, self.get(self.bad, 9), "!")
        self.end(self.bad, self.get(self.bad, 1), "!")
        self.assertEqual(self.ask_and_exit(self.bad), "dismissed")
        self.assertEqual(self.ask_and_exit(self.good), "jobs")

    def leave(self, peer: Peer) -> None:
        peer.say(dict(type="bye"))
        self.wait_said(self.server, "left")

    def test_one_that_has_left_says_nothing_of_jobs_that_fail_later(self) -> None:
        self.leave(self.good)
        for _ in range(2):
            self.end(self.bad, self.get(self.bad, 10), "!")
        self.assertEqual(self.ask_and_exit(self.bad), "jobs")

    def test_that_the_good_one_leaves_changes_no_judgement(self) -> None:
        self.end(self.bad, self.get(self.bad, 10), "!")
        self.bad.say(dict(type="ping", request=3)).hear("pong")
        self.leave(self.good)
        self.assertEqual(self.ask_and_exit(self.bad), "dismissed")

    def test_jobs_that_could_not_be_started_count(self) -> None:
        self.end(self.bad, self.get(self.bad, 10), "e")
        self.assertEqual(self.ask_and_exit(self.bad), "dismissed")

    def test_it_is_told_again_on_its_next_connection_and_a_new_process_begins_anew(self) -> None:
        key = new_key()
        lost = self.connect(client=key)
        self.end(lost, self.get(lost, 10), "!")
        lost.hear("ack")
        lost.reset()
        self.assertEqual(self.ask_and_exit(self.connect(client=key)), "dismissed")
        self.assertEqual(self.ask_and_exit(self.connect()), "jobs")

    def test_a_failure_at_the_good_one_shows_that_the_jobs_are_to_blame(self) -> None:
        for _ in range(3):
            self.end(self.bad, self.get(self.bad, 9), "!")
            self.end(self.good, self.get(self.good, 1), "!")
            self.good.say(dict(type="ping", request=3)).hear("pong")
        self.end(self.bad, self.get(self.bad, 10), "!")
        self.assertEqual(self.ask_and_exit(self.bad), "dismissed")

    def test_jobs_that_still_run_can_show_that_jobs_can_run_there(self) -> None:
        keys = self.get(self.bad, 12)
        self.end(self.bad, keys[:10], "!")
        for peer in self.bad, self.good:        # then it was passed over
            peer.say(dict(type="claim", request=2, want=1, last=False))
        self.good.hear("jobs")
        self.bad.say(dict(type="ping", request=3)).hear("pong")
        self.assertEqual({message["type"] for message in self.bad.messages} & {"jobs", "dismissed"}, set())
        self.end(self.bad, keys[10:11], "d")
        self.assertEqual(self.bad.hear("jobs", "dismissed")["type"], "jobs")
