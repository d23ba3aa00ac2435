"""Promise: whatever comes to the port, and whatever a client with the token does, the other clients do not
notice.

Nor does a client come to harm from a server that is none, and the token stays with those who know it.
"""
import contextlib
import importlib
import os
import pathlib
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import unittest
from typing import Any, Callable
from unittest import mock

import runmaker4
import runwait4
from tests.support.case import GATE
from tests.support.eavesdropping import split, traces
from tests.support.fake_server import FakeServer
from tests.support.messages import BEGIN, FROM_CLIENT, FROM_SERVER, HAVE, HELLO, JOBS, WELCOME, new_key
from tests.support.peer import Closed, Peer
from tests.support.process_table import peak_memory
from tests.support.processes import DEADLINE, MARK, marked, wait_until
from tests.support.runs import UP, WAITING
from tests.support.scripts import ALL, FULL, RUNSERVER, RUNWAIT
from tests.support.stage import PATIENT, Stage
from tests.support.strange_json import NO_JSON, NO_NUMBERS, NO_OBJECTS, wrong_versions
from tests.support.tcp import Server, TcpCase
from tests.support.values import present
from tests.support.wire import PROVEN, TOKEN, UNPROVEN, frame, plain, read_plain

server_module = importlib.import_module(RUNSERVER[:-len(".py")])
NOBODY = 65534                          # some user other than root
CONNECTIONS = 10_000 if ALL else 2_000 if FULL else 1_000
ROUNDS = 50_000 if ALL else 5_000 if FULL else 280      # of garbage for a client
MEMORY = 80                             # MB that a server or client may have at the most
Message = dict[str, Any]


class Attack(unittest.TestCase):
    """Attacks on one server, one after another; after each the good client must be as before."""
    OPTIONS: tuple[str, ...] = ()
    LOCALE: dict[str, str] = {}             # variables of the server
    PATCH = PATIENT
    stage: Stage
    port: int
    token: str

    @classmethod
    def setUpClass(cls) -> None:
        cls.stage = Stage()
        cls.addClassCleanup(cls.stage.doCleanups)
        cls.stage.setUp()
        cls.stage.open(*cls.OPTIONS, env=cls.LOCALE, patch=cls.PATCH)
        cls.port, cls.token = cls.stage.server.port, cls.stage.server.token

    @classmethod
    def tearDownClass(cls) -> None:
        cls.stage.close()

    def setUp(self) -> None:
        self.before, self.older = self.stage.descriptors(), len(self.stage.states())
        self.peers: list[Peer] = []

    def tearDown(self) -> None:
        for peer in self.peers:
            peer.close()
        self.stage.is_unharmed()
        wait_until(lambda: self.stage.descriptors() <= self.before,
                   what="the server has closed all connections")

    def peer(self) -> Peer:
        """A connection that has proven nothing; closed at the end."""
        self.peers.append(Peer.of(self.port, self.token))
        return self.peers[-1]


class Strangers(Attack):
    """Whoever does not know the token, and knows the protocol or not."""

    def assertTurnedAway(self, data: bytes) -> None:
        """Who sends this is turned away at once, and hears no more than the greeting and an error."""
        with self.subTest(data=data[:80]), self.peer() as peer:
            with contextlib.suppress(Closed):
                peer.push(data)
            heard = [read_plain(part) for part in split(peer.rest())]
            self.assertLessEqual(len(heard), 2)
            # which may be lost if the connection ends with our bytes unread
            for greeting in heard[:1]:
                self.assertEqual(set(greeting), {"runmaker4", "nonce"})
            for answer in heard[1:]:
                self.assertEqual(set(answer), {"error"})

    def test_those_who_leave_at_once(self) -> None:
        for leave in Peer.close, Peer.reset:
            for number in range(CONNECTIONS // 2):
                leave(Peer.of(self.port))
                if number == CONNECTIONS // 4:
                    self.stage.serves()

    def test_those_who_send_something_else(self) -> None:
        for data in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\r\n\r\n",
                     b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600), b"HELO localhost\r\n",
                     b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\0", b"\0" * 100_000, b"\xff" * 100_000):
            self.assertTurnedAway(data)
        for length in UNPROVEN + 1, 1 << 16, PROVEN + 1, 1 << 31, (1 << 32) - 1:
            self.assertTurnedAway(length.to_bytes(4, "big"))
        for body in NO_OBJECTS + NO_JSON + (b"[" * UNPROVEN, b"{}"):
            self.assertTurnedAway(frame(body))
        for text in NO_NUMBERS:
            self.assertTurnedAway(frame(b'{"runmaker4": %s}' % text.encode()))
        for message in FROM_CLIENT:                     # which are for those who know the token
            self.assertTurnedAway(plain(**message))


class SlowStrangers(Stage):
    """Who does not prove itself in time is cut off, however busy it looks."""
    LIMIT = runmaker4.MAX_HANDSHAKE_SECONDS

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_silence_and_half_a_frame_and_a_byte_now_and_then(self) -> None:
        self.open()
        before, begin = self.descriptors(), time.monotonic()
        peers = {name: Peer.of(self.server.port)
                 for name in ("silent", "half a frame", "most of an answer", "drips")}
        for peer in peers.values():
            self.addCleanup(peer.close)
        peers["half a frame"].push(frame(b" " * UNPROVEN)[:UNPROVEN // 2])
        peers["most of an answer"].push(plain(runmaker4=1, nonce="0" * 32, proof="0" * 64)[:-1])
        drops = iter(frame(b" " * UNPROVEN))
        ended: dict[str, float] = {}

        def all_ended() -> bool:
            with contextlib.suppress(Closed):
                peers["drips"].push(bytes([next(drops)]))
            for name in set(peers) - set(ended):
                if peers[name].is_closed():
                    ended[name] = time.monotonic() - begin
            time.sleep(self.LIMIT / 20)
            return len(ended) == len(peers)

        wait_until(all_ended, self.LIMIT + 20, "all are cut off")
        self.assertGreater(min(ended.values()), 0.9 * self.LIMIT, ended)
        self.assertLessEqual(self.descriptors(), before)
        self.close()


class Insiders(Attack):
    """Clients that know the token, and misbehave.  What the server collects goes to files."""
    OPTIONS = ("--outdir", "out", "--joblog", "joblog", "-l", "log")
    LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}     # has ASCII only
    NOISE = "NOISE\n"
    ORPHAN = " : an orphan"

    def insider(self, *jobs: Message, **fields: Any) -> Peer:
        """Somebody who knows the token and has said hello, with these jobs and fields; welcome is heard."""
        peer = self.peer()
        peer.hello(*jobs, **fields).hear("welcome")
        return peer

    def ask(self, peer: Peer) -> None:
        """Wait until what the peer has said is dealt with.  Raises Closed if it was turned away."""
        peer.say(dict(type="ping", request=77)).hear("pong")

    def hold(self, count: int = 1, **fields: Any) -> tuple[Peer, list[Message]]:
        """An insider that has claimed jobs, and the jobs."""
        peer = self.insider(**{"slots": count, **fields})
        peer.say(dict(type="claim", request=1, want=count, last=False))
        self.ask(peer)
        # the good client takes some; what another test left running, and nobody has now, is another command
        self.stage.add(6 * count, f": a job of {self.id()}")
        jobs: list[Message] = []
        while len(jobs) < count:
            jobs += peer.hear("jobs")["jobs"]
        return peer, jobs

    def started(self, **fields: Any) -> tuple[Peer, Message]:
        """An insider whose job, as it says, runs; its next event has the number 2."""
        peer, (job,) = self.hold(**fields)
        peer.say(dict(BEGIN, n=1, id=job["id"]))
        return peer, job

    def states(self) -> str:
        return self.stage.states()[self.older:]

    def all_end(self, states: str = "de") -> None:
        """All jobs that this test has added end in these states: e is what an insider had when it left."""
        wait_until(lambda: set(self.states()) <= set(states), what=f"all of {self.states()} are {states}")

    def records(self) -> bytes:
        """All that the server has collected."""
        folder = self.stage.dir
        return b"".join(file.read_bytes() for file in [*folder.glob("*log"), *(folder / "out").glob("*")])

    def append(self, text: str) -> int:
        """Add text to the job file; where it stands there."""
        with open(self.stage.dir / "runs.txt", "a") as file:
            file.write(text)
            return file.tell() - len(text)

    def job_at(self, offset: int, **fields: Any) -> Message:
        """An orphan that stands there, as an insider may describe it."""
        if "number" not in fields:
            fields["number"] = self.stage.read()[:offset].count(b"\n") + 1
        return {**dict(id=new_key(), text=self.ORPHAN), **fields}

    def take(self, *jobs: Message) -> None:
        """An insider says that jobs are its own, and have failed."""
        with self.peer() as peer, contextlib.suppress(Closed):
            peer.hello(*jobs).hear("welcome")
            reports = [report for job in jobs for report in self.reports(job["id"])]
            peer.say(*({**report, "n": number} for number, report in enumerate(reports, 1)))
            self.ask(peer)

    def reports(self, key: str) -> list[Message]:
        """What can be said about a job, its end last."""
        changes = dict(output=dict(data="x" * (4 * (runmaker4.LogFile.WIDTH + 1))),
                       finish=dict(state="!", how="exit 1"))
        kinds = "begin", "output", "end", "finish"
        return [{**report, "id": key, **changes.get(report["type"], {})} for report in FROM_CLIENT
                if report["type"] in kinds]

    def test_one_that_reports_on_jobs_it_does_not_hold(self) -> None:
        _, (job,) = self.hold()                         # which the other insider does not
        for report in FROM_CLIENT:
            if "n" in report:
                changes: Message = {field: self.NOISE for field in ("data", "line") if field in report}
                for key in job["id"], "0" * 16, "", "1":
                    with self.insider() as peer, contextlib.suppress(Closed):
                        peer.say({**report, **changes, "id": key})
                        self.ask(peer)
        self.assertEqual(self.stage.states()[job["number"] - 1], "r")
        self.assertNotIn(self.NOISE.encode(), self.records())

    def test_one_that_says_it_runs_the_jobs_of_others(self) -> None:
        _, (theirs,) = self.hold()
        command = self.stage.read().split(b"\n")[0][1:].decode()
        ours: Message = dict(id=new_key(), number=1, text=command)
        for job in ours, theirs, {**theirs, "id": new_key()}:
            for result in None, "d", "!", "e":
                with self.peer() as peer, contextlib.suppress(Closed):
                    peer.hello({**job, "result": result})
                    self.assertEqual(peer.hear_lost(), [job["id"]])
                    peer.say(dict(type="finish", n=1, id=job["id"], state="!", how="exit 1"))
                    self.ask(peer)
        self.assertEqual([self.stage.states()[job["number"] - 1] for job in (ours, theirs)], ["r", "r"])

    def test_one_that_takes_comments_for_jobs(self) -> None:
        """A line `r` that nobody has may be taken back; but no byte of what is no job may change."""
        comments = "really, a comment", "r\x0b nor is this one a job"
        for comment in comments:
            self.take(self.job_at(self.append(comment + "\n"), text=comment[1:]))
        offset = self.append(f"r{self.ORPHAN}\n")
        self.take(self.job_at(offset, text=f"{self.ORPHAN}\nr : nor one line"))
        self.take(self.job_at(offset + 1, text=self.ORPHAN[1:]))
        self.assertIn(self.states(), ("r", "e"))        # the server may have met it by now
        self.take(self.job_at(offset))
        wait_until(lambda: self.states() == "!", what="the result is written")
        self.assertIn("\n".join(comments).encode(), self.stage.read())

    def test_one_that_takes_back_what_it_describes_strangely(self) -> None:
        for fields in (dict(id="\ud800"), dict(id="\u20ac" * 16), dict(id=""), dict(number=1 << 62),
                       dict(number=0)):
            with self.subTest(fields=fields):
                offset = self.append(f"r{self.ORPHAN}\n")
                self.take(self.job_at(offset, **fields))
                self.take(self.job_at(offset))
        wait_until(lambda: set(self.states()) == {"!"}, what="all results are written")
        self.assertLess((self.stage.dir / "log").stat().st_size, 1 << 30)

    def test_one_that_takes_a_line_twice_or_two_lines_as_one(self) -> None:
        first, second = (self.append(f"r{self.ORPHAN}\n") for _ in range(2))
        key = new_key()
        self.take(self.job_at(first), self.job_at(first), self.job_at(first, number=3))
        self.take(self.job_at(first, id=key), self.job_at(second, id=key), self.job_at(second))
        self.take(self.job_at(first), self.job_at(second))
        wait_until(lambda: self.states() == "!!", what="the results are written")

    def test_one_that_says_it_has_far_more_than_it_can(self) -> None:
        """Nor can the next server, which would have to remember it all."""
        with self.peer() as peer, contextlib.suppress(Closed):
            peer.prove()
            short = HAVE["jobs"][0]
            for _ in range(200):
                peer.say(dict(type="have", jobs=[{**short, "text": " " + "x" * 900_000}, short]))
            peer.say(HELLO).hear("welcome")
        self.stage.serves()
        self.assertLess(peak_memory(self.stage.server.pid), MEMORY + 64)

    def test_one_that_ends_its_job_again_and_again(self) -> None:
        peer, job = self.started()
        end = dict(type="finish", n=3, id=job["id"], state="d", how="exit 0")
        self.ask(peer.say(end))
        wait_until(lambda: self.stage.states()[job["number"] - 1] == "d", what="the result is written")
        with contextlib.suppress(Closed):
            for number in 3, 1, 4, 10 ** 18, 5:
                peer.say({**end, "n": number, "state": "!"})
            self.ask(peer)
        self.all_end("d")

    def test_names_that_would_spoil_a_terminal(self) -> None:
        said = len(self.stage.server.err)
        lie = "a\nrunmaker4-server.py: runs.txt: a lie\x1b[2J"
        for name in lie, "\udcff\ud800", "", "n" * 100_000, "\0", "\u20ac":
            with contextlib.suppress(Closed):
                self.hold(name=name)
        for peer in self.peers:
            peer.close()
        self.all_end()
        text = self.stage.server.err[said:]
        self.assertIn(b"lie", text)
        self.assertNotIn(b"\x1b", text)
        self.assertNotIn(b"\nrunmaker4-server.py: runs.txt: a lie", text)
        self.assertLess(len(text), 20_000)

    def test_many_that_say_that_they_are_the_same(self) -> None:
        for number in range(20):
            self.insider(client="a" * 16, name=f"twin{number}")


class Greedy(Stage):
    """A client that asks for much; the others are served meanwhile."""
    LINES = 200_000 if ALL else 50_000      # of a file which it is dear to look at
    UNREAD = "" if ALL else "import runmaker4; runmaker4.MAX_UNREAD_BYTES = 1 << 18"

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_answers_that_it_does_not_read(self) -> None:
        self.open(patch=self.UNREAD)
        with Peer.of(self.server.port, self.server.token) as peer:
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.hello().hear("welcome")
            with contextlib.suppress(Closed):
                for _ in range(500 if ALL else 200):         # more than the kernel buffers
                    peer.say(*[dict(type="ping", request=1 << 60)] * 1000)
            self.wait_said(self.server, "insider", "does not read")
        self.assertLess(peak_memory(self.server.pid), MEMORY)
        self.close()

    def test_thousands_of_questions_at_once(self) -> None:
        self.open(text="d : done\n" * self.LINES)
        for question in dict(type="account"), dict(type="claim", request=1, want=0, last=True):
            with self.subTest(question=question), Peer.of(self.server.port, self.server.token) as peer:
                peer.hello(slots=1).hear("welcome")
                peer.say(*[question] * 3000)
                for _ in range(3):
                    self.serves()
        self.close()


class BlockedConsole(TcpCase):
    """The server's stdout is a pipe that nobody reads: what it prints for its clients must not pile up."""

    def test_a_client_that_sends_more_than_its_window_is_dropped(self) -> None:
        self.write(". true\n")
        server = self.start_program(RUNSERVER, "--host", self.HOST, "--port", 0, "--print", "runs.txt",
                                    stdout=subprocess.PIPE)
        port = int(self.wait_said(server, "serving on port").split()[-1])
        present(server.process.stdout).readline()
        token = self.read(".runmaker4.token").decode().strip()
        with Peer.of(port, token) as peer:
            peer.hello().hear("welcome")
            peer.say(dict(type="claim", request=1, want=1, last=False))
            job, = peer.hear("jobs")["jobs"]
            peer.say(dict(BEGIN, n=1, id=job["id"]))
            with self.assertRaises(Closed):
                for number in range(2, 2000):
                    peer.say(dict(type="output", n=number, id=job["id"], stream="stdout", data="x" * 60_000))
        self.wait_said(server, "insider", "more output than the window allows")
        self.assertLess(peak_memory(server.pid), MEMORY)
        with Peer.of(port, token) as peer:
            peer.hello().hear("welcome")


class LyingServers(TcpCase):
    """A server that knows the token and is out of its mind: the client keeps its head."""
    JOB = JOBS["jobs"][0]
    EAGER = "import random; random.uniform = lambda low, high: 0.0"        # it connects again at once

    def setUp(self) -> None:
        super().setUp()
        self.write(TOKEN, ".runmaker4.token").chmod(0o600)

    @staticmethod
    def welcome(peer: Peer, **fields: Any) -> Peer:
        """Receive a client as its server does; the fields change what it is told."""
        peer.prove().hear("hello")
        return peer.say({**WELCOME, **fields})

    def hand_out(self, *jobs: Message, **fields: Any) -> Callable[[Peer], Peer]:
        """A server that welcomes a client and hands out these jobs in answer to its claim."""
        def serve(peer: Peer) -> Peer:
            self.welcome(peer, **fields)
            claim = peer.hear("claim")
            handed = [{**self.JOB, **job} for job in jobs]
            return peer.say(dict(type="jobs", request=claim["request"], jobs=handed))
        return serve

    def test_garbage_in_every_field_of_every_message(self) -> None:
        draws = random.Random(34)
        wrong = [(message == WELCOME, body) for message in FROM_SERVER for body in wrong_versions(message)]
        said = iter(draws.sample(wrong, min(ROUNDS, len(wrong))))
        over = threading.Event()

        def serve(peer: Peer) -> None:
            peer.prove().hear("hello")
            is_welcome, body = next(said, (False, ""))
            if not body:
                over.set()
                peer.say(WELCOME, dict(type="closing", done=True)).rest(60)
            peer.say(*[WELCOME] * (not is_welcome and draws.random() < 0.8))
            peer.put(body.encode()).end().rest(60)

        with FakeServer(serve) as server:
            while not over.is_set():                    # some messages have it leave
                client = self.start_client(server, "-j2", "--follow", patch=self.EAGER)
                while client.poll() is None:            # as long as it takes, if it connects again
                    count = len(server.peers)
                    wait_until(lambda: client.poll() is not None or len(server.peers) > count)
                ended = self.finish(client)
                self.assertIn(ended.code, (0, 1), ended.err[-2000:])
                for line in ended.err.splitlines():
                    self.assertTrue(line.startswith(b"runmaker4-client.py: 127.0.0.1: "), line)

    def test_faults_that_would_spoil_a_terminal(self) -> None:
        def serve(peer: Peer) -> None:
            self.hand_out(dict(text=f" {WAITING}"))(peer)
            peer.hear("begin")
            lie = "a\nrunmaker4-client.py: a lie\x1b[2J"
            peer.say(dict(type="fault", id=self.JOB["id"], text=lie, cancelled=False))
            self.open_gate()
            peer.hear("finish")
            peer.say(dict(type="ack", n=99), dict(type="closing", done=True)).rest(60)

        with FakeServer(serve) as server:
            ended = self.run_client(server)
        self.assertEqual(ended.code, 1, ended.err)
        self.assertNotIn(b"\x1b", ended.err)
        self.assertNotIn(b"\nrunmaker4-client.py: a lie", ended.err)

    def test_more_jobs_than_were_asked_for_do_not_run_at_once(self) -> None:
        jobs = [dict(id=str(number), text=f" echo x >>runs.$$; {GATE}") for number in range(50)]

        def serve(peer: Peer) -> None:
            self.hand_out(*jobs)(peer)
            peer.hear("finish")
            while True:
                message = peer.hear()
                if "n" in message:
                    peer.say(dict(type="ack", n=message["n"]))
                elif message["type"] == "ping":
                    peer.say(dict(type="pong", request=message["request"], retry=""))

        with FakeServer(serve) as server:
            client = self.start_client(server, "-j2")
            wait_until(lambda: len(list(self.dir.glob("runs.*"))) == 2, what="two run")
            self.assertEqual(self.stop(client).code, 143)
        self.assertEqual(len(list(self.dir.glob("runs.*"))), 2)

    def test_no_job_of_a_slow_server_starts_before_an_answer_that_is_new(self) -> None:
        """The line can be another runner's by the time at which the answer to an old request comes."""
        grace, early = 2.0, []

        def serve(peer: Peer) -> None:
            self.welcome(peer, grace=grace)
            claim = peer.hear("claim")
            time.sleep(grace / 2)
            peer.say(dict(type="jobs", request=claim["request"], jobs=[{**self.JOB, "text": f" {UP}"}]))
            heard_at = runmaker4.boottime()
            while (ping := peer.hear("ping"))["request"] < heard_at * 1e6 + 300_000:
                pass
            early.append(self.exists("up.1"))
            peer.say(dict(type="pong", request=ping["request"], retry="")).rest()

        with FakeServer(serve) as server:
            self.start_client(server, up=(1,)).kill()
        self.assertEqual(early, [False])

    def test_a_server_that_never_acknowledges_output_slows_the_job_and_costs_no_memory(self) -> None:
        text = f" {UP}; head -c 300M /dev/zero; echo ended >ended"
        sizes: list[int] = []

        def serve(peer: Peer) -> None:
            self.hand_out(dict(text=text))(peer)
            while True:
                sizes.append(len(peer.hear("output")["data"]))

        with FakeServer(serve) as server:
            client = self.start_client(server, up=(1,), stdout=subprocess.DEVNULL)
            most = runmaker4.OUTPUT_WINDOW_BYTES
            wait_until(lambda: sum(sizes) > most - runmaker4.MAX_PIECE_BYTES, what="the window is full")
            time.sleep(0.3)
            self.assertLessEqual(sum(sizes), most)
            self.assertLess(peak_memory(client.pid), MEMORY)
            self.assertFalse(self.exists("ended"))
            client.kill()

    def test_a_server_that_talks_on_and_on_is_no_burden(self) -> None:
        heard = threading.Event()

        def serve(peer: Peer) -> None:
            self.welcome(peer)
            for number in range(300):
                messages: list[Message] = [dict(type="pong", request=number, retry=""), dict(type="ack", n=0),
                                           dict(type="lost", id=str(number)),
                                           dict(type="nothing", request=0, left="x" * 500)]
                peer.say(*messages * 20)
            heard.set()
            peer.say(dict(type="closing", done=True)).rest(60)

        with FakeServer(serve) as server:
            client = self.start_client(server)
            self.assertTrue(heard.wait(DEADLINE))
            memory = peak_memory(client.pid)
            self.assertIn(self.finish(client).code, (0, 1))
        self.assertLess(memory, MEMORY)


class TokenFile(TcpCase):
    """The token's file is nobody else's to read at any moment; the server leaves alone what it refuses."""
    NAME = ".runmaker4.token"

    # notes the modes of all files of the token whenever a file was opened
    WATCH = """
import builtins, io, os
os.umask(0)
seen = os.open("seen", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def watched(function):
    def call(*args, **settings):
        result = function(*args, **settings)
        for name in os.listdir():
            if "token" in name:
                os.write(seen, f"{name} {os.lstat(name).st_mode:o}\\n".encode())
        return result
    return call
os.open = watched(os.open)
io.open = builtins.open = watched(io.open)
"""

    def setUp(self) -> None:
        super().setUp()
        self.write(". true\n")
        self.file = self.dir / self.NAME

    def assertTokenIn(self, token: str) -> None:
        """The file is one, of ours alone, and has this token."""
        found = self.file.lstat()
        self.assertEqual((stat.filemode(found.st_mode), found.st_nlink), ("-rw-------", 1))
        self.assertEqual(self.file.read_text().strip(), token)

    def test_a_new_file_can_be_read_by_nobody_else_at_any_moment(self) -> None:
        server = self.start_server(patch=self.WATCH)
        modes = [line.split()[1] for line in self.read("seen").decode().splitlines()]
        self.assertEqual(set(modes), {"100600"})
        self.assertTokenIn(server.token)

    def refuse(self, *words: str) -> None:
        """A server that finds what is there is refused."""
        ended = self.run_script(RUNSERVER, "--host", self.HOST, "--port", 0, "runs.txt")
        self.assertRefused(ended, self.NAME, *words)

    def test_a_file_that_others_could_use_or_that_holds_no_token(self) -> None:
        for text, mode, word in ((TOKEN, 0o640, "permissions 0640"), (TOKEN, 0o620, "permissions 0620"),
                                 ("hello\n", 0o600, "no token"), ("", 0o600, "copy of the server's")):
            with self.subTest(text=text, mode=oct(mode)):
                self.write(text, self.NAME).chmod(mode)
                self.refuse(word)
                self.assertEqual((self.file.read_text(), self.file.stat().st_mode & 0o777), (text, mode))

    @unittest.skipIf(os.geteuid() != 0, "only root can make a file of root")
    def test_a_secret_that_root_owns_and_nobody_can_write(self) -> None:
        self.write(TOKEN, self.NAME).chmod(0o444)
        self.assertEqual(self.start_server().token, TOKEN)
        os.chown(self.file, NOBODY, NOBODY)
        self.refuse("belongs to another user")

    @unittest.skipIf(os.geteuid() != 0, "only root can give a file to another user")
    def test_a_file_of_another_user(self) -> None:
        self.write(TOKEN, self.NAME).chmod(0o600)
        os.chown(self.file, NOBODY, NOBODY)
        self.refuse("belongs to another user")

    def test_a_link_is_as_good_as_the_file_that_it_leads_to(self) -> None:
        for target, words in ("missing", "no such file"), (self.NAME, "symbolic links"):
            self.file.symlink_to(target)
            self.refuse(words)
            self.file.unlink()
        self.assertFalse(self.exists("missing"))
        self.file.symlink_to("elsewhere")
        self.write(TOKEN, "elsewhere").chmod(0o644)
        self.refuse("permissions 0644")
        (self.dir / "elsewhere").chmod(0o600)
        self.assertEqual(self.start_server().token, TOKEN)
        self.assertTrue(self.file.is_symlink())

    def test_what_is_no_file(self) -> None:
        os.mkfifo(self.file, 0o600)
        self.refuse("not a regular file")
        self.file.unlink()
        self.file.mkdir()
        self.refuse("not a regular file")

    # so that each has seen that there is no token before the first one has made it
    SLOW = ("import secrets, time\nmake = secrets.token_hex\n"
            "secrets.token_hex = lambda size: time.sleep(0.2) or make(size)")

    def test_servers_that_start_at_once_agree_on_a_token(self) -> None:
        files = [self.write(". true\n", f"runs.{number}").name for number in range(3)]
        servers = [self.start_program(RUNSERVER, "--host", self.HOST, "--port", 0, file, patch=self.SLOW)
                   for file in files]
        for server in servers:
            self.wait_said(server, "serving on port")
        token = self.file.read_text().strip()
        for server in servers:
            Peer.of(int(self.wait_said(server, "serving on port").split()[-1]), token).prove().close()
        self.assertTokenIn(token)
        self.assertEqual([name for name in os.listdir(self.dir) if "token" in name], [self.NAME])


class KeeperSocket(TcpCase):
    """What a server leaves behind is for the next server of the same user."""
    VISIT = """
import os, socket, sys
if len(sys.argv) > 2: os.setgroups([]); os.setgid(65534); os.setuid(65534)
visit = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
visit.settimeout(60)
visit.connect("\\0" + sys.argv[1])
print(len(socket.recv_fds(visit, 100, 9)[1]))
"""

    def leave_behind(self) -> Server:
        """Kill a server whose client runs a job."""
        self.jobs(WAITING)
        server = self.start_server("--grace", 30, preexec_fn=lambda: os.umask(0))
        self.start_client(server, up=(1,))
        server.kill()
        return server

    def link(self) -> Any:
        """What a server knows of keepers."""
        token = self.read(".runmaker4.token").decode().strip()
        link = server_module.KeeperLink(str(self.dir / "runs.txt"), 0.0, token)
        for end in link._keeper_sock, link._keeper_end:
            self.addCleanup(end.close)
        return link

    def test_its_socket_is_for_the_same_user(self) -> None:
        self.leave_behind()
        address, = self.link().find_addresses()         # which is in no file system
        name = address[1:].decode()
        if os.geteuid() == 0:                           # who may become another user
            self.dir.chmod(0o755)
            other = self.run_script(sys.executable, "-c", self.VISIT, name, "as nobody")
            self.assertEqual(other.out, b"0\n")
        self.assertEqual(self.run_script(sys.executable, "-c", self.VISIT, name).out, b"1\n")

    def test_a_file_that_a_live_server_serves_is_refused(self) -> None:
        self.jobs("true")
        self.start_server()
        for _ in range(2):                              # the first visit stays in the keeper's queue
            ended = self.run_script(RUNSERVER, "--host", self.HOST, "--port", 0, "runs.txt")
            self.assertRefused(ended, f"{RUNSERVER}: runs.txt: ", "is served already")

    # As another user, fills the queue of a socket, and goes on to connect, also if the other end closes each
    # connection.  If there is no such socket any more, it makes one of that name
    FLOOD = """
import os, resource, socket, sys, threading
os.setgroups([]); os.setgid(65534); os.setuid(65534)
name, kind, count = "\\0" + sys.argv[1], int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8
def connect(kept):
    while len(kept) < count:
        visit = socket.socket(socket.AF_UNIX, kind)
        visit.settimeout(timeout)
        visit.connect(name)
        kept.append(visit)
timeout, kept = 0, []
try: connect(kept)
except BlockingIOError: print("full", flush=True)
timeout = None
def flood():
    while True:
        try: connect([])
        except ConnectionRefusedError: break
threads = [threading.Thread(target=flood) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
squatter = socket.socket(socket.AF_UNIX, kind)
squatter.bind(name)
squatter.listen(0)
try: connect([])
finally: sys.stdin.read()
"""

    def flood(self, name: bytes, kind: socket.SocketKind) -> None:
        """Have another user fill the queue of a socket for the rest of the test."""
        if os.geteuid() != 0:
            self.skipTest("only root can become another user")
        self.dir.chmod(0o755)
        words = sys.executable, "-c", self.FLOOD, name[1:].decode(), int(kind)
        flood = self.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.addCleanup(flood.communicate)
        self.addCleanup(flood.kill)
        self.assertEqual(present(flood.stdout).readline(), b"full\n")

    def test_another_user_who_fills_the_queue_keeps_no_server_from_taking_over(self) -> None:
        self.jobs(WAITING)
        server = self.start_server()
        self.start_client(server, up=(1,))
        keeper = self.keeper(server)
        os.kill(keeper, signal.SIGSTOP)         # else it can have emptied the queue in time
        address, = self.link().find_addresses()
        self.flood(address, socket.SOCK_SEQPACKET)
        server.kill()
        tell = ("import importlib, sys\nlink = importlib.import_module('runmaker4-server').KeeperLink\n"
                "link.MAX_EXIT_SECONDS, find = 600, link.find_addresses\n"
                "link.find_addresses = lambda self: (\n"
                "    print('looks', file=sys.stderr, flush=True), find(self))[1]\n")
        again = self.start_program(RUNSERVER, "--host", self.HOST, "--port", 0, "runs.txt", patch=tell)
        self.wait_said(again, "looks")
        os.kill(keeper, signal.SIGCONT)
        self.wait_said(again, "took over 1 running job")
        self.assertEqual(self.stop(again).code, 143)
        # the name of the old keeper is another user's by now, and its queue is full
        last = self.start_server()
        self.assertEqual(self.stop(last).code, 143)

    def test_another_user_who_connects_again_and_again_does_not_lengthen_the_grace(self) -> None:
        address = b"\0" + new_key().encode()
        now = 0.0
        visits = []

        def meet_stranger(_: object) -> bool:
            nonlocal now
            now += 1.0
            self.assertLessEqual(now, 5.0)
            visit()
            return False

        def visit() -> None:
            visits.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            visits[-1].connect(address)

        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(address)
            listener.listen()
            visit()
            with mock.patch.object(server_module, "same_user", meet_stranger), \
                    mock.patch.object(server_module, "time", mock.Mock(monotonic=lambda: now)):
                self.assertIsNone(server_module.give_to_next_server(listener, -1, 5.0))
        for each in visits:
            each.close()

    def test_names_that_others_make_are_not_of_a_keeper(self) -> None:
        self.jobs("true")
        self.start_server()
        link = self.link()
        address, = link.find_addresses()
        for salt in b"0" * 12, b"":
            thief = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.addCleanup(thief.close)
            thief.bind(address[:11] + salt + address[23:])
        self.assertEqual(link.find_addresses(), {address})
        other = server_module.KeeperLink(str(self.dir / "runs.txt"), 0.0, "0" * 32)
        self.addCleanup(other._keeper_sock.close)
        self.addCleanup(other._keeper_end.close)
        self.assertEqual(other.find_addresses(), set())

    def test_a_server_that_waits_for_a_keeper_can_be_stopped(self) -> None:
        self.jobs("true")
        live = self.start_server()
        tell = ("import socket, sys\ntake = socket.recv_fds\n"
                "socket.recv_fds = lambda *args: (\n"
                "    print('waits', file=sys.stderr, flush=True), take(*args))[1]\n"
                "__import__('runmaker4-server').KeeperLink.MAX_EXIT_SECONDS = 600\n")
        second = self.start_program(RUNSERVER, "--host", self.HOST, "--port", 0, "runs.txt", patch=tell)
        self.wait_said(second, "waits")
        self.assertEqual(self.stop(second).code, -signal.SIGTERM)
        self.assertEqual(self.stop(live).code, 143)

    def test_another_user_who_fills_the_queue_of_status_does_not_blind_it(self) -> None:
        self.jobs("true")
        self.start_server()
        wait_until(lambda: b"0 clients" in self.run_script(RUNWAIT, "--status", "runs.txt").out)
        number, = present(runwait4.Watcher(str(self.dir / "runs.txt")).presence_locks())
        self.flood((runmaker4.PresenceLock.SOCKET % number).encode(), socket.SOCK_STREAM)
        self.assertIn(b"\n0 clients, 0 lost\n", self.run_script(RUNWAIT, "--status", "runs.txt").out)

    INSIDE = 'mount --bind "$1" shared && cd shared && shift && exec "$@"'

    def in_container(self, folder: str) -> list[str]:
        """Words before a command that has this folder as `shared`, and all others' abstract names."""
        return ["unshare", "-rm", "sh", "-c", self.INSIDE, "sh", folder]

    def test_two_files_of_one_path_in_two_containers_have_two_keepers(self) -> None:
        for folder in "first", "second", "shared":
            (self.dir / folder).mkdir()
        probe = self.run_script(*self.in_container("first"), "true")
        if probe.code:
            self.skipTest(f"no mount namespace of our own: {probe.err.decode()}")
        for folder in "first", "second":
            self.write(f". {WAITING}\n", f"{folder}/runs.txt")
        path = str(self.dir / "shared" / "runs.txt")
        first = self.start_server(file=path, within=self.in_container("first"))
        self.start_client(first, up=(1,))
        first.kill()
        second = self.start_server(file=path, within=self.in_container("second"))
        again = self.start_server("--port", first.port, file=path, within=self.in_container("first"))
        self.wait_said(again, "took over 1 running job")
        self.assertNotIn(b"took over", second.err)


class TokenSecrecy(TcpCase):
    """The token is on the server's first line and in its file, and nowhere else."""

    PRYING = ("env; cat /proc/$$/environ /proc/$$/cmdline /proc/$PPID/cmdline | tr '\\0' '\\n'; "
              "ls -l /proc/$$/fd; ps -ef; echo $RUNMAKER4_TOKEN; false")
    forks = False

    def assertNoTrace(self, text: bytes, token: str) -> None:
        """Nothing of this token is in the text."""
        for trace in traces(token):
            self.assertNotIn(trace, text)

    def commands(self) -> bytes:
        """The command lines of all processes of this test."""
        texts = []
        for pid in marked(f"{MARK}={self.mark}"):
            with contextlib.suppress(OSError):          # it has ended meanwhile
                texts.append(pathlib.Path(f"/proc/{pid}/cmdline").read_bytes())
        return b"\n".join(texts)

    def everything(self) -> bytes:
        """The test's files and their names, but for the token's file and the server's first line."""
        files = [file for file in self.dir.rglob("*") if file.is_file() and file.name != ".runmaker4.token"]
        texts = [file.read_bytes().partition(b"\n")[2] if file.name.endswith("server.out")
                 else file.read_bytes() for file in files]
        return b"\n".join([*texts, *(os.fsencode(file) for file in self.dir.rglob("*"))])

    def test_from_the_environment_which_jobs_do_not_inherit(self) -> None:
        self.jobs(WAITING, self.PRYING)
        server = self.start_server("-l", "log", "--outdir", "out", "--joblog", "joblog", "--print")
        client = self.start_client(server, "-j2", up=(1,), env={"RUNMAKER4_TOKEN": server.token})
        self.wait_states("r!")
        self.assertNoTrace(self.commands(), server.token)
        self.open_gate()
        ended = self.finish(client)
        self.assertEqual(ended.code, 1, ended.err)
        self.stop(server)
        self.assertNoTrace(self.everything(), server.token)

    def test_on_the_wire_where_nothing_else_that_is_said_can_be_read(self) -> None:
        self.jobs(": the-command; printf '%s%s\\n' the- output; false")
        server = self.start_server("--print", "-l", "log", "--outdir", "out")
        wire = bytearray()

        def relay(peer: Peer) -> None:
            with Peer.of(server.port) as other:
                back = threading.Thread(target=copy, args=(other, peer))
                back.start()
                copy(peer, other)
                back.join()

        def copy(source: Peer, sink: Peer) -> None:
            with contextlib.suppress(Closed):
                while True:
                    data = source.pull()
                    wire.extend(data)
                    sink.push(data)
            with contextlib.suppress(Closed):
                sink.end()

        with FakeServer(relay) as between:
            self.assertEqual(self.run_client(between).code, 1)
        self.assertIn(b"nonce", wire)
        self.assertGreater(len(wire), 2000)
        self.assertNoTrace(bytes(wire), server.token)
        self.assertEqual(self.read("out/1.out"), b"the-output\n")
        for word in b"the-command", b"the-output", b"finish":
            self.assertNotIn(word, wire)
