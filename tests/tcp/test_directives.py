"""Promise: #RUN lines mean the same for the clients of a server as for runners of the file."""
import random
import signal
import time

from tests.support.directives import RAN, DirectiveCase, spared
from tests.support.messages import BEGIN
from tests.support.peer import Peer
from tests.support.process_table import send
from tests.support.processes import Process, wait_until
from tests.support.runs import HASTY, WAITING
from tests.support.scripts import FULL, RUNMAKER, RUNSERVER
from tests.support.tcp import Program, TcpCase

# -- bad ones ------------------------------------------------------------------------------------------------

class Malformed(TcpCase):
    """A directive that is wrong is refused by the server before anything runs, with its line number."""

    def test_it_is_refused_at_the_start_in_one_line_that_names_its_own(self) -> None:
        files = {"1.txt": "#RUN host=a,,b", "2.txt": "#RUN barrier x"}
        for name, bad in files.items():
            self.write(f". touch never\n\n{bad}\n. touch never\n", name)
        calls = [(RUNSERVER, "--host", self.HOST, "--port", 0, name) for name in files]
        for (name, directive), (_, ended) in zip(files.items(), self.run_all(calls)):
            with self.subTest(directive=directive):
                self.assertRefused(ended, f"runmaker4-server.py: {name}: line 3: ")


# -- barriers and end ----------------------------------------------------------------------------------------

class LongFile(DirectiveCase, TcpCase):
    """Where a walk through the file takes long, and is spared for a while, nobody leaves without one."""
    # From now on a walk takes 0.03 s longer, as in a file of 10^6 lines, and the file `walked` says that one
    # was made
    SLOW = f"""{HASTY}
import os, time
begin, end = runmaker4.Cursor._begin_walk, runmaker4.Cursor._end_walk
def begin_slowly(cursor, *args):
    time.sleep(0.03 if os.path.exists("slow") else 0.0)
    return begin(cursor, *args)
def end_and_say(cursor, *how):
    miss = end(cursor, *how)
    if os.path.exists("slow"):
        open("walked", "w").close()
    return miss
runmaker4.Cursor._begin_walk, runmaker4.Cursor._end_walk = begin_slowly, end_and_say
"""

    def test_a_client_is_not_sent_away_from_what_a_barrier_will_let_it_run(self) -> None:
        self.lines("#RUN host=b", f". {WAITING}", "#RUN host=c", ". true", "#RUN", "#RUN barrier",
                   "#RUN host=b", ". true", "#RUN host=c", ". true")
        server = self.start_server(patch=self.SLOW)
        first = self.start_client(server, "--name=b", "--follow", "-j2", up=[2])
        with Peer.of(server.port, server.token) as second:
            second.hello(name="c").hear("welcome")
            job, = second.say(dict(type="claim", request=1, want=1, last=False)).hear("jobs")["jobs"]
            self.write("", "slow")
            wait_until(lambda: self.exists("walked"), what="a walk was made for b alone")
            second.say(dict(BEGIN, n=1, id=job["id"]),
                       dict(type="finish", n=2, id=job["id"], state="d", how="exit 0", lost=False),
                       dict(type="claim", request=2, want=1, last=True),
                       dict(type="ping", request=3)).hear("pong")
            self.open_gate()
            job, = second.hear("jobs", "nothing").get("jobs", [{"number": 0}])
            self.assertEqual(job["number"], 10)
        self.stop(first)


class ExitWhenDone(TcpCase):
    """--exit-when-done: a server does not wait for what a failed check keeps from being run."""

    @spared
    def test_a_failed_check_ends_server_and_followers(self) -> None:
        self.write("d a\n. exit 3\n#RUN barrier check\n. touch never\n")
        server = self.start_server("--exit-when-done")
        client = self.start_client(server, "--follow")
        self.assertEqual([self.finish(program).code for program in (server, client)], [1, 1])
        self.assertEqual(self.states(), "d!.")
        self.assertRegex(server.err, rb"line 2 failed\b.*barrier check in line 3\b")


class Losses(DirectiveCase, TcpCase):
    """A barrier waits for the jobs of clients that may come back; then they are errors."""
    JOB = f"echo $$ >pid; echo $JOB_ID >>ran; {WAITING}"

    def lose(self, barrier: str) -> Program:
        """A client dies with its job above a barrier; another one, which has waited and has ended."""
        self.lines(f". {self.JOB}", barrier, f". {RAN}")
        self.server = self.start_server("--grace", 2)
        first = self.start_client(self.server, "--name", "first", up=[1])
        second = self.start_client(self.server)
        self.wait_clients(self.server, 2)
        self.assertEqual(self.states(), "r.")
        begin = time.monotonic()
        first.kill()
        send(signal.SIGKILL, [int(self.read("pid"))])
        self.finish(second)
        self.assertGreater(time.monotonic() - begin, 2)
        return second

    @spared
    def test_it_is_passed_after_the_grace(self) -> None:
        second = self.lose("#RUN barrier")
        self.assertEqual((second.returncode, self.states(), self.ran()), (1, "ed", [1, 3]))

    @spared
    def test_a_check_stops_the_others_after_the_grace(self) -> None:
        second = self.lose("#RUN barrier check")
        self.assertEqual((second.returncode, self.states(), self.ran()), (1, "e.", [1]))
        self.assertIn(b"barrier check in line 2", second.err + self.server.err)


class MixedWork(DirectiveCase, TcpCase):
    """Clients and runners of the file hold the same barriers."""
    SECTIONS, SIZE, CLIENTS, RUNNERS = (8, 60, 4, 2) if FULL else (2, 12, 2, 1)

    def test_nobody_begins_what_stands_below_before_all_above_have_ended(self) -> None:
        chance = random.Random(7)
        self.sections(*[[chance.choice((0, 0, 0.02, 0.1)) for _ in range(self.SIZE)]
                        for _ in range(self.SECTIONS)])
        server = self.start_server()
        started = [self.start_client(server, "-q", "-j3") for _ in range(self.CLIENTS)]
        runners = [self.start(RUNMAKER, "-q", "-j3", "runs.txt") for _ in range(self.RUNNERS)]
        programs: list[Process] = [*runners, *started]
        self.assertEqual([self.finish(program).code for program in programs], [0] * len(programs))
        self.assertEqual(self.states(), "d" * self.SECTIONS * self.SIZE)
        self.assertBarriersHeld({program.pid for program in programs})
