"""Promise: attackers who have, or have not, the token get what docs/who-can-do-what.md says, and no more."""
import contextlib
import importlib
import os
import signal
import socket
from typing import Any, Callable

import runmaker4
from tests.support.messages import BEGIN, END, HAVE, HELLO, new_key
from tests.support.peer import Closed, Peer
from tests.support.processes import wait_until
from tests.support.runs import WAITING
from tests.support.stage import PATIENT, Stage

server_module = importlib.import_module("runmaker4-server")
# with those that are being closed
MAX_UNAUTHENTICATED = server_module.MAX_STALLED + 2 * server_module.MAX_HANDSHAKES
KEPT = ("--outdir", "out", "-l", "log", "--joblog", "joblog")
Message = dict[str, Any]
Lie = Callable[["Liar"], list[Message]]
CLAIM = dict(type="claim", request=1, want=1, last=False)


class Liar:
    """A client that may claim a job, and then tells its events."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.events = 0
        self.key = ""                       # of its job

    def come(self, name: str = "liar") -> None:
        """Say hello as an honest client does."""
        self.peer.hello(name=name).hear("welcome")

    def claim(self, name: str = "liar") -> None:
        self.come(name)
        self.key = self.peer.say(CLAIM).hear("jobs")["jobs"][0]["id"]

    def event(self, **message: Any) -> Message:
        self.events += 1
        return {**message, "n": self.events, "id": self.key}

    def begin(self, **changes: Any) -> Message:
        return self.event(**{**BEGIN, **changes})

    def output(self, **changes: Any) -> Message:
        return self.event(**{**dict(type="output", stream="stdout", data="a lie\n"), **changes})

    def end(self, **changes: Any) -> Message:
        return self.event(**{**END, "received": [6, 0], **changes})


def of_a_job(lie: Lie, name: str = "liar") -> Lie:
    """A lie about a job that the liar has claimed by this name."""
    def told(liar: Liar) -> list[Message]:
        liar.claim(name)
        return lie(liar)
    return told


def after_begin(lie: Callable[[Liar], Message]) -> Lie:
    """A lie about a job that runs."""
    return of_a_job(lambda liar: [liar.begin(), lie(liar)])


def finish(state: str) -> Lie:
    """A job that runs ends in this state."""
    return after_begin(lambda liar: liar.event(type="finish", state=state, how=""))


def after_hello(*messages: Message) -> Lie:
    """Messages that come too late, or unasked."""
    def told(liar: Liar) -> list[Message]:
        liar.come()
        return list(messages)
    return told


def before_hello(*messages: Message) -> Lie:
    """Messages that come too early."""
    def told(liar: Liar) -> list[Message]:
        liar.peer.prove()
        return list(messages)
    return told


LIES: dict[str, Lie] = {
    "output before the begin": of_a_job(lambda liar: [liar.output()]),
    "output of what could not be started": of_a_job(lambda liar: [liar.begin(pid=0), liar.output()]),
    "exit status of what could not be started": of_a_job(lambda liar: [liar.begin(pid=0), liar.end()]),
    "begin of what runs": after_begin(lambda liar: liar.begin()),
    "end before the begin": of_a_job(lambda liar: [liar.end()]),
    "end of what has ended": of_a_job(lambda liar: [liar.begin(), liar.output(), liar.end(), liar.end()]),
    "output of what has ended": of_a_job(
        lambda liar: [liar.begin(), liar.end(received=[0, 0]), liar.output()]),
    "ready to begin what is not held": of_a_job(lambda liar: [dict(type="ready", id=liar.key)]),
    "a begin in a year that no clock shows": of_a_job(lambda liar: [liar.begin(time=1e308)]),
    "a begin before all clocks": of_a_job(lambda liar: [liar.begin(time=-1)]),
    "a process that cannot be": of_a_job(lambda liar: [liar.begin(pid=1 << 31)]),
    "a slot with a long name": of_a_job(lambda liar: [liar.begin(slot="~~" * 200)]),
    "a stream that there is not": after_begin(lambda liar: liar.output(stream="status", data="~~")),
    "a stream whose name is no text": after_begin(lambda liar: liar.output(stream="\udcff", data="~~")),
    "a status that cannot be": after_begin(lambda liar: liar.end(received=[0, 0], exit=256)),
    "a truth in the place of a number": after_begin(lambda liar: liar.end(received=[0, 0], exit=True)),
    "a time in words": after_begin(lambda liar: liar.end(received=[0, 0], seconds="~~")),
    "less than no output": after_begin(lambda liar: liar.end(received=[-1, 0])),
    "a run of many lives": after_begin(lambda liar: liar.end(received=[0, 0], seconds=1e308)),
    "a limit of many lives": after_begin(lambda liar: liar.end(cause="timeout", timeout=1e308)),
    "a cause of many words": after_begin(lambda liar: liar.end(received=[0, 0], cause="~~" * 9)),
    "less than no CPU time": after_begin(lambda liar: liar.end(cpu=-1e-9)),
    "more memory than there is": after_begin(lambda liar: liar.end(memory=1 << 63)),
    **{f"the result {state}": finish(state) for state in ("r", ".", "x", "dd")},
    "jobs after hello": after_hello(HAVE),
    "hello twice": after_hello({**HELLO, "client": new_key()}),
    "claim after bye": after_hello(dict(type="bye"), CLAIM),
    "hello after bye": after_hello(dict(type="bye"), {**HELLO, "client": new_key()}),
    "what only servers say": after_hello(dict(type="ack", n=1)),
    "claim before hello": before_hello(CLAIM),
    "event before hello": before_hello(dict(BEGIN, n=1, id="0" * 16)),
    "bye before hello": before_hello(dict(type="bye")),
    "one job twice": before_hello(HAVE, HAVE, HELLO),
    "begin of what is held": of_a_job(lambda liar: [liar.begin()], name="holder"),
}


class LyingClient(Stage):
    """A client that says what cannot be is refused, whatever it says; nobody else notices."""
    JOBS = ("#RUN host=liar\n" + ". : a job\n" * 40 +
            "#RUN together=held host=holder\n. : a job that is held\n#RUN\n")

    def test_each_lie_is_refused_and_leaves_no_record(self) -> None:
        self.open(*KEPT, text=self.JOBS)
        for name, lie in LIES.items():
            with self.subTest(lie=name), self.assertRaises(Closed), \
                    Peer.of(self.server.port, self.server.token) as peer:
                peer.say(*lie(Liar(peer)), dict(type="ping", request=99)).hear("pong")
        for file in (*self.dir.glob("*log"), *(self.dir / "out").glob("*")):
            self.assertNotIn(b"~~", file.read_bytes())
        self.close()


class ReturningClient(Stage):
    """A client that comes back after its grace gets no line but its own, and no records but its own."""
    JOBS = "#RUN host=liar\n. : its own\n#RUN\n"

    def go_away(self) -> Message:
        """A client begins the job of line 3, prints, and is away for longer than the grace; the job."""
        self.open("--grace", 0.5, *KEPT, text=self.JOBS)
        with Peer.of(self.server.port, self.server.token) as peer:
            job: Message
            peer.hello(name="liar", client="c" * 16).hear("welcome")
            job, = peer.say(CLAIM).hear("jobs")["jobs"]
            peer.say(dict(BEGIN, n=1, id=job["id"]),
                     dict(type="output", n=2, id=job["id"], stream="stdout", data="one\n"))
            while peer.hear("ack")["n"] < 2:
                pass
        self.wait_states("re")
        return job

    def come_back(self, job: Message) -> list[str]:
        """It names its job, begins and ends it; which jobs are lost, as the server says."""
        with Peer.of(self.server.port, self.server.token) as peer:
            lost: list[str] = peer.hello(job, name="liar", client="c" * 16).hear_lost()
            output = dict(type="output", stream="stdout", data="two\n")
            finish = dict(type="finish", state="d", how="exit 0")
            events: list[Message] = [BEGIN, output, dict(END, received=[4, 0]), finish]
            peer.say(*({**event, "n": number, "id": job["id"]} for number, event in enumerate(events, 1)))
            while peer.hear("ack")["n"] < 4:
                pass
        return lost

    def test_the_number_of_a_line_that_runs(self) -> None:
        job = self.go_away()
        self.assertEqual(self.come_back({**job, "number": 1}), [])
        wait_until(lambda: self.states() == "rd", what="it has the only line of its command, not line 1")
        self.assertEqual(self.read("out/3.out"), b"one\n")
        record = f".-> {WAITING}".encode()[:runmaker4.LogFile.WIDTH - 4]
        wait_until(lambda: self.read("log").startswith(record), what="the first record is of line 1")
        self.assertEqual([name for name in os.listdir(self.dir / "out") if name.startswith("1")], [])
        self.close()

    def test_through_a_link_in_the_place_of_its_file(self) -> None:
        """Whoever may write to the output directory has put it there meanwhile."""
        job = self.go_away()
        self.write("precious", "precious")
        (self.dir / "out/3.out").unlink()
        (self.dir / "out/3.out").symlink_to("../precious")
        self.assertEqual(self.come_back(job), [])
        wait_until(lambda: self.states() == "rd", what="the result is written")
        self.assertEqual(self.read("precious"), b"precious")
        self.close()


class Crowd(Stage):
    """Strangers that come as fast as they can and stay silent."""
    DESCRIPTORS = server_module.MIN_DESCRIPTORS
    STRANGERS = DESCRIPTORS + 200
    # on a busy machine they and the tests need longer than a handshake, or a silence, may take
    FEW = (f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))\n"
           f"{PATIENT}\n")

    def test_they_cost_nobody_output_and_the_server_few_lines(self) -> None:
        self.open("--outdir", "out", patch=self.FEW)
        before, lines = self.descriptors(), self.server.err.count(b"\n")
        most, job = 0, len(self.states()) + 1
        for _ in range(self.STRANGERS):
            stranger = socket.socket()
            self.addCleanup(stranger.close)
            stranger.setblocking(False)             # whatever becomes of it: the next one comes at once
            stranger.connect_ex((self.HOST, self.server.port))
            most = max(most, self.descriptors())
        # some are accepted and not counted yet, or dropped and not closed yet
        self.assertLessEqual(most, before + MAX_UNAUTHENTICATED + 10)
        self.add(1, "echo one; echo two >&2")
        wait_until(lambda: self.states()[-1] == "d", what="the job is done")
        self.assertEqual((self.read(f"out/{job}.out"), self.read(f"out/{job}.err")), (b"one\n", b"two\n"))
        self.assertLessEqual(self.server.err.count(b"\n"), lines + 1, self.server.err)
        self.close()

    def come_together(self, count: int) -> list[Peer]:
        """So many connections, of which the server learns at one moment."""
        self.server.send_signal(signal.SIGSTOP)
        try:
            return [Peer.of(self.server.port, self.server.token) for _ in range(count)]
        finally:
            self.server.send_signal(signal.SIGCONT)

    def test_of_those_who_come_together_all_are_heard_or_the_descriptors_are_not_used_up(self) -> None:
        self.open(patch=self.FEW)
        lines = self.server.err.count(b"\n")
        for client in self.come_together(150):
            client.prove().close()
        strangers = self.come_together(self.STRANGERS)
        self.serves()
        for stranger in strangers:
            stranger.close()
        self.assertEqual(self.server.err.count(b"\n"), lines, self.server.err)
        self.close()

    def crowd(self, count: int) -> list[Peer]:
        """Strangers whom the server has accepted, or dropped since; every second one sends half a length."""
        strangers = [Peer.of(self.server.port, self.server.token) for _ in range(count)]
        for stranger in strangers:
            self.addCleanup(stranger.close)
        for stranger in strangers[::2]:
            with contextlib.suppress(Closed):
                stranger.push(b"\0\0")
        for stranger in strangers:
            with contextlib.suppress(Closed):
                stranger.pull()                 # the challenge
        return strangers

    def test_progress_decides_who_is_dropped_and_not_who_came_first(self) -> None:
        """Who has proved the token stays, then who came last."""
        self.open(patch=self.FEW)
        first = Peer.of(self.server.port, self.server.token)
        first.messages += first.channel.receive(first.pull())
        first.push(first.channel.take_outgoing())       # the proof
        strangers = self.crowd(MAX_UNAUTHENTICATED + 50)
        wait_until(lambda: sum(stranger.is_closed() for stranger in strangers) > 50, what="some are dropped")
        # the youngest is asked first: more can be dropped meanwhile
        dropped = [stranger.is_closed() for stranger in reversed(strangers)]
        self.assertEqual(dropped, sorted(dropped), "the oldest are")
        Peer.of(self.server.port, self.server.token).prove().close()
        first.hello(name="first").hear("welcome")
        first.close()
        self.close()

    USE_UP = """
import errno, itertools, os, socket, threading, time
accept, number = socket.socket.accept, itertools.count(1)
def accept_or_note(listener):
    try: return accept(listener)
    except OSError as error:
        if error.errno == errno.EMFILE: os.mkdir(f"refused.{next(number)}")    # which needs no descriptor
        raise
socket.socket.accept = accept_or_note
def use_up():
    while not os.path.exists("enough"): time.sleep(0.01)
    taken = []
    try:
        while True: taken.append(os.dup(0))
    except OSError: pass
    while os.path.exists("enough"): time.sleep(0.01)
    for fd in taken: os.close(fd)
threading.Thread(target=use_up, daemon=True).start()
"""

    def test_what_cannot_be_accepted_is_said_once_a_minute_and_accepted_later(self) -> None:
        """Where something else has used up all descriptors."""
        self.open(patch=self.FEW + self.USE_UP)
        lines = self.server.err.count(b"\n")
        self.write("", "enough")
        wait_until(lambda: self.descriptors() >= self.DESCRIPTORS - 1, what="none is left")
        peers = [socket.create_connection((self.HOST, self.server.port)) for _ in range(5)]
        self.wait_said(self.server, "not accepted", "too many open files")
        wait_until((self.dir / "refused.2").exists, what="it has tried again")
        self.assertEqual(self.server.err.count(b"\n"), lines + 1, self.server.err)
        (self.dir / "enough").unlink()
        Peer.of(self.server.port, self.server.token).prove().close()
        for peer in peers:
            peer.close()
        self.close()
