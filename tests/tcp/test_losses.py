"""Promise: if client, server or keeper dies, stops or is cut off, no job is lost and none runs twice."""
import contextlib
import itertools
import os
import pathlib
import signal
import time
import unittest
from typing import Any

from tests.support.case import GATE
from tests.support.console import console_lines, printed
from tests.support.fake_server import FakeServer
from tests.support.line_locks import locked_lines
from tests.support.losses import JOB, LATER, LossCase
from tests.support.messages import BEGIN
from tests.support.peer import Peer
from tests.support.ports import free_port
from tests.support.process_table import send
from tests.support.processes import alive, wait_until
from tests.support.proxy import TO_CLIENT, TO_SERVER, Proxy
from tests.support.runs import UP
from tests.support.scripts import FULL, RUNCLIENT, RUNMAKER, RUNSET
from tests.support.tcp import SERVING, Program, Server
from tests.support.tcp_patches import EAGER, THREADED
from tests.support.wire import plain

SHORT = 0.6                                             # one that they do
# a keeper fails when its server is dead, and it waits for the end of the grace
KEEPER_FAILS = "import select; select.poll = lambda: 1 / 0"

# While the file `slow` is there, the file system does not answer those who follow the job file's path; the
# file `asked` says that somebody does
SLOW = f"""{EAGER}{THREADED}
follow = runmaker4.JobFile.open_files
def follow_slowly(file):
    while os.path.exists("slow"):
        open("asked", "w").close()
        time.sleep(0.01)
    return follow(file)
runmaker4.JobFile.open_files = follow_slowly
"""


# The file `touched` says which methods of the server's job file another thread than its worker's has called
WATCHED = THREADED + """
import threading
def watch(plain):
    def call(self, *args, **settings):
        served = type(self).__name__ in ("ServedFile", "ServedQueue", "SharedLockTable", "Cursor")
        if served and threading.current_thread() is threading.main_thread():
            with open("touched", "a") as file:
                file.write(plain.__qualname__ + "\\n")
        return plain(self, *args, **settings)
    return call
for kind in (runmaker4.Cursor, runmaker4.JobQueue, runmaker4.JobFile, runmaker4.JobReader,
             runmaker4.LockTable, runmaker4.LockTableReader):
    for name, plain in list(vars(kind).items()):
        if type(plain).__name__ == "function" and name != "__init__":
            setattr(kind, name, watch(plain))
"""


class KilledClient(LossCase):
    """A client dies by kill -9: its lines are held for the grace, and then they are e."""

    def test_with_its_jobs(self) -> None:
        server, client = self.serve_bob(JOB, JOB, grace=SHORT, up=(1, 2))
        self.append(". touch third")
        self.assert_held(1, 2)
        begin = time.monotonic()
        self.kill_jobs(client)
        self.wait_said(server, "client bob (127.0.0.1) is lost", "1, 2")
        self.wait_states("ee.")
        self.assertGreaterEqual(time.monotonic() - begin, SHORT)
        self.wait_said(server, "bob", "did not come back", "1, 2", "given up")
        self.assert_held()
        self.assertFalse(self.exists("third"))
        self.assertNoJobLeft()

    def test_a_line_that_a_client_with_resume_can_run_is_its_own_and_the_others_are_e(self) -> None:
        self.before = self.write(f". {JOB}\n#RUN host=bob\n. {JOB}\n").read_bytes()
        server = self.serve_again(grace=SHORT)
        client = self.connect(server, "-j2", up=(1, 3))
        self.start_client(server, "--name", "carol", "--resume", "--follow")
        self.kill_jobs(client)
        self.wait_said(server, "bob", "did not come back", "lines 1, 3 given up")
        self.wait_runs(2)
        self.wait_states("re")

    def test_other_clients_go_on_meanwhile(self) -> None:
        server, client = self.serve_bob(JOB, "touch second")
        self.kill_jobs(client)
        self.wait_said(server, "client bob (127.0.0.1) is lost")
        self.assertEqual(self.run_client(server).code, 0)
        self.assertEqual(self.states(), "rd")
        self.assert_held(1)

    def test_a_client_that_is_ended_by_a_signal_has_no_grace(self) -> None:
        server, client = self.serve_bob(JOB)
        self.assertClientEnded(self.stop(client), 143, "e")
        self.assertNotIn(b"lost", server.err)


class VanishedPeer(LossCase):
    """A client takes two lines, and says that it has started the first of them at most."""
    ID = "0123456789abcdef"

    def claim(self, server: Server, peer: Peer) -> list[str]:
        """Claim both lines; the names by which the server knows them."""
        peer.hello(client=self.ID, name="bob", slots=2).hear("welcome")
        peer.say(dict(type="claim", request=1, want=2, last=False))
        jobs: list[str] = []
        while len(jobs) < 2:
            jobs += [job["id"] for job in peer.hear("jobs")["jobs"]]
        self.assert_held(1, 2)
        return jobs

    def vanish(self, server: Server, *others: Peer) -> None:
        """Take both lines, start the first, and be gone without a word; right after it others, too."""
        with Peer.of(server.port, server.token) as peer:
            first, _ = self.claim(server, peer)
            peer.say(dict(BEGIN, n=1, id=first)).hear("ack")
        for other in others:
            other.close()
        self.wait_said(server, "client bob (127.0.0.1) is lost", "lines 1, 2")

    def test_both_are_e_after_the_grace_as_nobody_can_know_whether_the_second_was_started(self) -> None:
        server = self.serve("true", "true", grace=0.3)
        self.vanish(server)
        self.wait_states("ee")
        self.wait_said(server, "bob", "did not come back", "lines 1, 2")
        self.assert_held()

    def test_if_it_comes_back_without_them_the_started_one_is_e_and_the_other_new_at_once(self) -> None:
        server = self.serve("true", "true")
        self.vanish(server)
        with Peer.of(server.port, server.token) as peer:
            peer.hello(client=self.ID, name="bob", slots=2).hear("welcome")
            self.wait_states("e.")
            self.assert_held()

    def test_a_client_that_resumes_but_is_away_makes_them_no_less_e(self) -> None:
        server = self.serve("true", "true", grace=SHORT)
        with Peer.of(server.port, server.token) as other:
            other.hello(name="carol", retry="r").hear("welcome")
            self.vanish(server, other)          # within its grace, which begins with that of bob
        self.wait_said(server, "bob", "did not come back")
        self.wait_states("ee")

    def test_if_it_says_that_it_leaves_they_are_new_at_once(self) -> None:
        server = self.serve("true", "true")
        with Peer.of(server.port, server.token) as peer:
            self.claim(server, peer)
            peer.say(dict(type="bye"))
            self.wait_states("..")
        self.assertEqual(self.run_client(server).code, 0)
        self.assertEqual(self.states(), "dd")

    def test_of_equal_lines_each_job_gets_its_own_and_one_whose_line_another_has_taken_is_lost(self) -> None:
        server = self.serve("true", "true", "true", grace=0.2)
        with Peer.of(server.port, server.token) as bob:
            bob.hello(client="b" * 16, slots=3).hear("welcome")
            jobs = bob.say(dict(type="claim", request=1, want=3, last=False)).hear("jobs")["jobs"]
            bob.say(*(dict(BEGIN, n=number, id=job["id"]) for number, job in enumerate(jobs, 1)))
            bob.say(dict(type="ping", request=1)).hear("pong")
        self.wait_states("eee")
        with Peer.of(server.port, server.token) as other, Peer.of(server.port, server.token) as bob:
            other.hello(retry="er").hear("welcome")
            taken, = other.say(dict(type="claim", request=1, want=1, last=False)).hear("jobs")["jobs"]
            lost = bob.hello(*jobs, client="b" * 16).hear_lost()
            self.assertEqual(lost, [job["id"] for job in jobs if job["number"] == taken["number"]])
            ended = next(job["id"] for job in jobs if job["id"] not in lost)
            bob.say(dict(type="finish", n=9, id=ended, state="d", how="exit 0", lost=False)).hear("ack")
            self.assertEqual(sorted(self.states()), ["d", "r", "r"])

    def test_a_line_that_is_found_only_when_its_client_has_come_once_more_is_its_own(self) -> None:
        """Its grace was over, it came back, and was gone again before the file system had answered."""
        self.PATCH = SLOW
        server = self.serve("true", grace=SHORT)
        bob: dict[str, Any] = dict(client=self.ID, name="bob")
        with Peer.of(server.port, server.token) as peer:
            peer.hello(**bob).hear("welcome")
            job, = peer.say(dict(type="claim", request=1, want=1, last=False)).hear("jobs")["jobs"]
            peer.say(dict(BEGIN, n=1, id=job["id"])).hear("ack")
        self.wait_states("e")
        self.write("", "slow")
        with Peer.of(server.port, server.token) as peer:
            peer.hello(job, **bob)
            wait_until(lambda: self.exists("asked"), what="its line is sought")
        with Peer.of(server.port, server.token) as peer:
            peer.hello(job, **bob)
            (self.dir / "slow").unlink()
            self.assertEqual(peer.hear_lost(), [])
            self.assertEqual(self.states(), "r")
            peer.say(dict(type="finish", n=2, id=job["id"], state="d", how="exit 0", lost=False))
            while peer.hear("ack")["n"] < 2:    # it may repeat that of the event before
                pass
            self.assertEqual(self.states(), "d")


class OneThread(LossCase):
    """Only the worker's thread touches the job file, its queue and its cursor."""

    def test_through_claims_results_groups_another_server_and_a_cancelled_job(self) -> None:
        self.PATCH = WATCHED
        self.before = self.write(f". {JOB}\n. {LATER}\n#RUN together=two host=bob\n. true\n").read_bytes()
        dead = self.serve_again()
        client = self.start_client(dead, "--name", "bob", "-j3", up=(1, 2))
        self.wait_states("rrd")
        dead.kill()
        server = self.serve_again(dead.port)
        self.wait_said(server, "took over")
        self.end_jobs(client)
        self.wait_states("drd")
        self.set_state(2, "x")
        self.finish(client)                             # which was told to end the job
        self.assertEqual(self.stop(server, signal.SIGHUP).code, 0)
        self.assertEqual((self.states(), self.exists("touched")), ("dxd", False))


class CutConnection(LossCase):
    """The connection is cut; client, server and jobs live."""

    def test_a_client_that_comes_back_keeps_its_jobs_and_hands_in_what_ended_meanwhile(self) -> None:
        server = self.serve(f"{JOB}; echo said", LATER)
        proxy, client = self.connect_by_proxy(server, "-j2", up=(1, 2))
        proxy.cut()
        self.wait_said(server, "client bob (127.0.0.1) is lost")
        self.end_jobs(client)
        self.assert_held(1, 2)
        proxy.mend()
        self.wait_said(server, "bob", "came back")
        self.assert_second_ran_on(client)
        self.assertEqual(self.read("out/1.out"), b"said\n")

    def test_it_comes_back_to_a_server_that_hands_out_nothing_more_as_well(self) -> None:
        server = self.serve(JOB, "touch never")
        proxy, client = self.connect_by_proxy(server)
        server.send_signal(signal.SIGHUP)
        self.wait_said(server, "SIGHUP")
        proxy.cut()
        self.wait_said(server, "client bob (127.0.0.1) is lost")
        proxy.mend()
        self.wait_said(client, "connected again")
        self.end_jobs(client)
        self.assertEqual([self.finish(program, 30).code for program in (client, server)], [1, 1])
        self.assertEqual((self.states(), len(self.pids()), self.exists("never")), ("d.", 1, False))
        self.assertEqual(server.err.count(b"came back"), 1, server.err[:1000])

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_where_another_has_taken_the_lines_late_results_do_not_count_and_copies_are_stopped(self) -> None:
        fails = "[ $$ != $(head -n 1 pids.$JOB_ID) ]"   # the first time
        server = self.serve(f"{JOB}; {fails}", LATER, grace=0.3)
        proxy, client = self.connect_by_proxy(server, "-j2", up=(1, 2))
        proxy.cut()
        self.wait_said(server, "bob", "did not come back", "lines 1, 2")
        self.wait_states("ee")
        self.assertEqual(self.run_script(RUNSET, "--set=.", "runs.txt", 1, 2).code, 0)
        runner = self.start_program(RUNMAKER, "-j2", "runs.txt")
        self.wait_runs(2, line=2)
        self.end_jobs(client)
        self.wait_states("dr")
        proxy.mend()
        self.wait_said(client, "line 2", "another")
        first, second = self.pids(2)
        wait_until(lambda: not alive(first), what="the copy is stopped")
        self.assertEqual(self.finish(client).code, 1)
        self.assertTrue(alive(second))
        self.assert_held(2)
        self.wait_said(client, "line 1", "another")
        self.write("", "go.2")
        self.assertEqual((self.finish(runner).code, self.states()), (0, "dd"))

    def test_no_output_is_lost_while_the_server_is_away_of_what_a_job_has_left_behind(self) -> None:
        # days pass for the client while it reads no output
        self.PATCH = """
import asyncio, runmaker4, time
from runmaker4 import Pump
Pump.QUIET_SECONDS = Pump.MAX_READING_SECONDS = 1000.0
init, wait, pumps, away = Pump.__init__, runmaker4.JobTask._wait_for_event, [], [0.0]
def note(pump, *args):
    pumps.append(pump)
    init(pump, *args)
def wait_for_days(task, seconds=None):
    if seconds == 1000.0 and pumps[0].is_paused:
        away[0] += 1e6
        open("paused", "w").close()
    return wait(task, seconds)
Pump.__init__, runmaker4.JobTask._wait_for_event = note, wait_for_days
asyncio.BaseEventLoop.time = lambda loop: time.monotonic() + away[0]
"""
        away, begun = (f"until [ -e {name} ]; do sleep 0.02; done" for name in ("away", "begun"))
        server = self.serve(f"{{ {away}; : >begun; seq 400000; }} & {UP}; {begun}")
        proxy = Proxy(server.port)
        self.addCleanup(proxy.close)
        client = self.start_client(server, "--port", proxy.port, "-q", up=(1,))
        proxy.cut()
        self.write("", "away")
        wait_until(lambda: self.exists("paused"), what="no more is read")
        proxy.mend()
        self.assertClientEnded(self.finish(client), 0, "d")
        self.assertEqual(self.read("out/1.out").split(), [b"%d" % number for number in range(1, 400_001)])


class MissingFile(LossCase):
    """The job file is missing when a client comes back after its grace, or when a result is to be written."""

    # the server does not end for want of a file
    PATCH = f"{EAGER}runmaker4.Cursor._wait_for_file = property(lambda self: True, lambda self, value: None)"

    def test_the_connection_is_dropped_and_the_client_comes_back_later(self) -> None:
        server = self.serve(JOB, grace=0.3)
        proxy, client = self.connect_by_proxy(server)
        proxy.cut()
        self.wait_said(server, "bob", "did not come back", "line 1")
        self.wait_states("e")
        os.rename(self.dir / "runs.txt", self.dir / "away")
        proxy.mend()
        self.wait_said(server, "bob", "is lost", "cannot look for the jobs now (no such file")
        os.rename(self.dir / "away", self.dir / "runs.txt")
        self.wait_states("r")
        self.assertTrue(alive(self.pids()[0]))
        self.end_jobs(client)
        self.assert_each_ran_once(client, "d")

    def test_a_signal_ends_the_attempts_to_write_a_result(self) -> None:
        self.PATCH = "import runmaker4; runmaker4.Program._end_after_defect = lambda *_: open('defect', 'w')"
        server = self.serve("true")
        with Peer.of(server.port, server.token) as peer:
            peer.hello().hear("welcome")
            job, = peer.say(dict(type="claim", request=1, want=1, last=False)).hear("jobs")["jobs"]
            os.rename(self.dir / "runs.txt", self.dir / "away")
            peer.say(dict(type="finish", id=job["id"], n=1, state="d", how="exit 0", lost=False))
            self.wait_said(server, "the result d cannot be written: no such file", "trying again")
            self.assertEqual(self.stop(server).code, 143)
        self.assertFalse(self.exists("defect"))


@unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
class SilentConnection(LossCase):
    """Nothing comes through, in one direction or both, and nobody is told: that is a loss after a while."""
    PATCH = "import runmaker4; runmaker4.MAX_SILENT_SECONDS, runmaker4.PING_SECONDS = 1.2, 0.3"

    def test_a_pause_shorter_than_that_is_nothing(self) -> None:
        self.PATCH = "import runmaker4; runmaker4.MAX_SILENT_SECONDS, runmaker4.PING_SECONDS = 5, 0.3"
        server = self.serve(JOB)
        proxy, client = self.connect_by_proxy(server)
        proxy.freeze()
        time.sleep(1)
        proxy.thaw()
        # if the keep-alives had not come through, that were a loss
        time.sleep(5)
        self.open_gate()
        self.assert_each_ran_once(client, "d")
        self.assertNotIn(b"lost", server.err)
        self.assertEqual(SERVING.sub(b"", client.err).count(b"\n"), 1, client.err)

    def test_a_command_and_output_that_take_longer_than_that_are_no_silence(self) -> None:
        self.PATCH = "import runmaker4; runmaker4.MAX_SILENT_SECONDS, runmaker4.PING_SECONDS = 5, 0.3"
        server = self.serve(f"seq 20000 # {'x' * 80_000}")
        proxy = Proxy(server.port)
        self.addCleanup(proxy.close)
        proxy.bytes_per_second = 13_000
        self.assertClientEnded(self.run_client(server, "--port", proxy.port), 0, "d")
        self.assertNotIn(b"lost", server.err)

    def check_silence(self, *ways: str) -> None:
        """The client is lost through silence, and comes back, with its job and its results."""
        server = self.serve(JOB, LATER)
        proxy, client = self.connect_by_proxy(server, "-j2", up=(1, 2))
        proxy.freeze(*ways)
        self.wait_said(server, "client bob (127.0.0.1) is lost")
        self.end_jobs(client)
        proxy.thaw()
        self.wait_said(server, "bob", "came back")
        self.assert_second_ran_on(client)

    def test_silence_towards_the_server(self) -> None:
        self.check_silence(TO_SERVER)

    def test_silence_towards_the_client(self) -> None:
        self.check_silence(TO_CLIENT)

    def test_a_job_whose_start_the_server_cannot_learn_of_does_not_run_twice(self) -> None:
        """It is handed out while nothing comes back: it is started once at the most."""
        server = self.serve("true", grace=SHORT)
        proxy, _client = self.connect_by_proxy(server, "--follow", up=())
        self.wait_states("d")
        proxy.freeze(TO_SERVER)
        # at once: a client that is slower than half the grace does not start it
        self.append(f". {JOB}")
        self.wait_states("dr")
        self.connect(server, "--follow", name="carol", up=())
        self.wait_said(server, "client bob (127.0.0.1) is lost")
        wait_until(lambda: self.states() == "de" or self.started_lines("carol"), what="it is e, or carol's")
        count = len(self.pids(2))
        proxy.thaw()
        self.open_gate()
        self.wait_states("dd" if count else "de")
        self.assertEqual((len(self.pids(2)), count <= 1), (count, True))

    def test_a_client_that_sleeps_for_longer_than_the_grace_hands_in_its_result_later(self) -> None:
        server, client = self.serve_bob(JOB, grace=0.3)
        client.send_signal(signal.SIGSTOP)
        self.wait_states("e")
        self.wait_said(server, "bob", "did not come back")
        self.open_gate()
        wait_until(lambda: not alive(self.pids()[0]), what="the job has ended")
        client.send_signal(signal.SIGCONT)
        self.assert_each_ran_once(client, "d")

    def test_a_client_that_wakes_up_starts_nothing_that_another_has_run_meanwhile(self) -> None:
        """Jobs that were handed out to it are on their way when it falls asleep."""
        # a busy client that is lost for a moment comes back within this grace
        server = self.serve(*["echo $JOB_ID $PPID >>ran; sleep 0.02"] * 500, grace=3)
        client = self.connect(server, "-j4", up=())
        wait_until(lambda: self.states().count("d") > 100, what="some are done")
        client.send_signal(signal.SIGSTOP)
        self.wait_said(server, "bob", "did not come back")
        self.assertEqual(self.run_client(server, "-j4", "--resume").code, 0)
        self.assertEqual(self.states(), "d" * 500)
        before = self.read("ran")
        client.send_signal(signal.SIGCONT)
        self.finish(client)
        self.assertEqual(self.read("ran"), before)

    def test_a_server_that_slept_for_longer_than_the_grace_gives_its_clients_theirs(self) -> None:
        server, client = self.serve_bob(JOB, LATER, grace=3, up=(1, 2))
        server.send_signal(signal.SIGSTOP)
        self.wait_said(client, "")                      # it has missed its server
        self.end_jobs(client)
        time.sleep(3.1)
        self.assert_held(1, 2)
        server.send_signal(signal.SIGCONT)
        self.assert_second_ran_on(client)
        self.assertNotIn(b"did not come back", server.err)


class KilledServer(LossCase):
    """A server dies by kill -9; its keeper holds the lines for the grace, or until another server comes."""

    def kill_with_keeper(self, server: Server) -> None:
        """kill -9 a server and its keeper, so that their lines are free."""
        keeper = self.keeper(server)
        send(signal.SIGSTOP, [server.pid, keeper])      # so that neither learns of the other's end
        send(signal.SIGKILL, [server.pid, keeper])
        wait_until(lambda: not alive(keeper), what="the keeper is gone")
        server.kill()

    def kill_server(self, *commands: str, **settings: Any) -> tuple[Server, Program]:
        """A client runs these jobs when its server dies."""
        server, client = self.serve_bob(*commands, **settings)
        server.kill()
        return server, client

    def test_the_next_takes_over_its_clients_with_their_jobs_and_what_ended_meanwhile(self) -> None:
        dead, client = self.kill_server(f"{JOB}; echo said", LATER, up=(1, 2))
        self.end_jobs(client)
        self.assert_nothing_for_others(unsupervised=True)
        self.assert_held(1, 2)
        server = self.serve_again(dead.port)
        self.assertIn(b"2", self.wait_said(server, "took over"))
        for fd in pathlib.Path(f"/proc/{server.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):        # it has just been closed
                if os.readlink(fd).endswith("/.runs.txt.lock"):     # nobody must take it for a job: Holders
                    flags = pathlib.Path(f"/proc/{server.pid}/fdinfo/{fd.name}").read_text().split()[3]
                    self.assertTrue(int(flags, 8) & os.O_CLOEXEC)
        self.assert_second_ran_on(client)
        self.assertEqual(self.read("out/1.out"), b"said\n")
        self.assertNotIn(b"nobody runs it", server.err)

    def test_where_the_file_is_away_the_next_exits_and_leaves_the_lines_to_the_one_after_it(self) -> None:
        """An editor has renamed the old one, and is about to write the new one; FUSE can say ESTALE then."""
        dead, client = self.kill_server(f"{JOB}; echo said", LATER, up=(1, 2))
        for error in "FileNotFoundError(2, 'No such file or directory')", "runmaker4.FileChangedError()":
            self.PATCH = f"""
import os, runmaker4
plain, times = runmaker4.JobFile.open_files, iter("1")
def follow(self):
    if type(self).__name__ == "ServedFile" and next(times, ""):
        raise {error}
    return plain(self)
runmaker4.JobFile.open_files = follow
"""
            ended = self.finish(self.serve_again(dead.port))
            self.assertEqual((ended.code, b"cannot be taken over" in ended.err), (2, False), ended.err)
            self.assert_held(1, 2)
        self.PATCH = EAGER
        self.wait_said(self.serve_again(dead.port), "took over")
        self.end_jobs(client)
        self.assert_second_ran_on(client)

    def test_a_result_that_nobody_else_has_is_written_over_the_e_of_another_runner(self) -> None:
        server, client = self.serve_bob(JOB)
        self.kill_with_keeper(server)
        self.end_jobs(client)
        self.run_script(RUNMAKER, "runs.txt")
        self.assertEqual(self.states(), "e")
        self.serve_again(server.port)
        self.assert_each_ran_once(client, "d")

    def test_jobs_that_still_run_get_their_lines_back_from_the_e_or_dot_of_others(self) -> None:
        server, client = self.serve_bob(JOB, LATER, up=(1, 2))
        self.kill_with_keeper(server)
        self.run_script(RUNMAKER, "runs.txt")
        self.assertEqual(self.run_script(RUNSET, "--set=.", "runs.txt", 2).code, 0)
        self.assertEqual(self.states(), "e.")
        self.serve_again(server.port)
        self.wait_states("rr")
        self.open_gate()
        self.assert_second_ran_on(client)

    def test_where_the_file_is_shorter_by_now_than_its_line_number_a_client_gets_its_line_back(self) -> None:
        job = f"echo $$ >>pids.1; echo before; {GATE}; echo after"
        self.write("\n" * 100 + f". {job}\n")
        dead = self.serve_again()
        client = self.start_client(dead, "--name", "bob", "-q")
        self.assertEqual(self.wait_file("out/101.out"), b"before\n")
        self.kill_with_keeper(dead)
        self.before = self.write(f"r {job}\n").read_bytes()
        server = self.serve_again(dead.port)
        wait_until(lambda: locked_lines(self) == [1], what="the line is locked again")
        self.open_gate()
        self.assertClientEnded(self.finish(client), 0, "d")
        self.assertEqual((len(self.pids()), self.logged()), (1, [1]))
        self.assertEqual(self.read("out/101.out"), b"before\n")
        # again if the first server could not acknowledge it any more
        self.assertIn(self.read("out/1.out"), (b"after\n", b"before\nafter\n"))
        self.assertNotIn(b"is lost", server.err)

    def test_the_grace_may_be_longer_than_poll_can_wait(self) -> None:
        dead, client = self.kill_server(JOB, grace=3e6)
        self.assert_nothing_for_others(unsupervised=True)
        self.wait_said(self.serve_again(dead.port), "took over")
        self.open_gate()
        self.assert_each_ran_once(client, "d")

    def test_a_keeper_that_a_defect_ends_holds_the_lines_to_the_end_of_the_grace_all_the_same(self) -> None:
        self.PATCH = KEEPER_FAILS
        server = self.serve(JOB, grace=SHORT)
        self.PATCH = EAGER
        self.connect(server)
        keeper = self.keeper(server)
        begin = time.monotonic()
        server.kill()
        wait_until(lambda: not alive(keeper), what="the keeper is gone")
        self.assertGreaterEqual(time.monotonic() - begin, SHORT)
        self.assertEqual((self.states(), locked_lines(self)), ("r", []))

    def test_a_server_whose_keeper_is_killed_goes_on(self) -> None:
        server, client = self.serve_bob(JOB)
        send(signal.SIGKILL, [self.keeper(server)])
        self.open_gate()
        self.assert_each_ran_once(client, "d")

    def test_a_file_that_is_changed_in_place_while_no_server_is_there(self) -> None:
        """The result stands where the line now stands."""
        dead, client = self.kill_server(JOB)
        above = b"# a note\nx held\n"
        self.write(above + self.read())
        self.wait_clients(self.serve_again(dead.port), 1)
        self.assertEqual(locked_lines(self), [3])
        self.assert_nothing_for_others()
        self.open_gate()
        self.assertEqual(self.finish(client).code, 0)
        wait_until(lambda: self.read() == above + f"d {JOB}\n".encode(), what="the result is written")
        self.assertEqual(len(self.pids()), 1)

class StoppedServer(LossCase):
    """INT and TERM end a server at once; what its clients run waits for the next."""

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_what_runs_waits_for_the_next_and_nothing_else_does(self) -> None:
        server, client = self.serve_bob(JOB, JOB, "touch third", up=(1, 2))
        ended = self.stop(server, signal.SIGINT)
        self.assertEqual(ended.code, 130, ended.err)
        self.assertRegex(ended.err, rb"INT\b.*\blines 1, 2\b")
        self.assert_held(1, 2)
        # a runner on the file finds the line that nobody has, and no other
        alone = self.run_script(RUNMAKER, "--resume", "runs.txt")
        self.assertEqual(printed(console_lines(alone.out), "executing"), [b"touch third"])
        self.end_jobs(client, count=2)
        self.serve_again(server.port)
        self.assertClientEnded(self.finish(client), 0, "ddd")
        self.assertEqual(([len(self.pids(line)) for line in (1, 2)], self.logged()), ([1, 1], [1, 2]))

    def test_a_client_that_waits_for_jobs_is_not_told_to_leave(self) -> None:
        """A claim for it was under way when the signal came, and finds none."""
        self.PATCH = SLOW
        server = self.serve("true")
        with Peer.of(server.port, server.token) as peer:
            peer.hello().hear("welcome")
            self.write("#RUN host=alice\n. true\n")
            self.write("", "slow")
            peer.say(dict(type="claim", request=1, want=1, last=True), dict(type="ping", request=2))
            peer.hear("pong")
            server.send_signal(signal.SIGTERM)
            self.wait_said(server, "TERM: stopping")
            (self.dir / "slow").unlink()
            self.assertEqual(peer.hear(), dict(type="closing", done=False, account=None))


class ExitWhenDone(LossCase):
    """A server with --exit-when-done waits for what clients can still bring, and no longer than it says."""
    BRIEFLY = "__import__('runmaker4-server').MAX_RETURN_SECONDS = 4\n"

    def serve_again(self, port: int = 0, grace: float = SHORT, **settings: Any) -> Server:
        return self.start_server("--exit-when-done", "--grace", grace, "--port", port, "--outdir", "out",
                                 **settings)

    def test_a_laptop_that_sleeps_longer_than_the_grace_brings_its_result(self) -> None:
        server, client = self.serve_bob(JOB, grace=SHORT)
        client.send_signal(signal.SIGSTOP)
        self.wait_said(server, "client bob (127.0.0.1) did not come back within", "line 1 given up")
        self.wait_said(server, "waiting for results of line 1 that lost clients can bring, 12h 00m at most")
        self.assertEqual(self.states(), "e")
        client.send_signal(signal.SIGCONT)
        self.end_jobs(client)
        self.assertClientEnded(self.finish(client), 0, "d")
        self.assertEqual(self.finish(server).code, 0)
        self.assertEqual(len(self.pids()), 1)
        self.assertIn(b": 1 done in ", server.err)

    def test_it_waits_for_a_line_below_many_failed_ones_also_once_an_edit_has_moved_it(self) -> None:
        self.write("! false\n" * 9 + f". {JOB}\n")
        server = self.serve_again()
        proxy, client = self.connect_by_proxy(server, up=(10,))
        proxy.cut()
        self.wait_said(server, "waiting for results of line 10 that lost clients can bring")
        self.write(b"# a comment\n" + self.read("runs.txt"), "edited")
        os.replace(self.dir / "edited", self.dir / "runs.txt")
        visitor = self.connect(server, up=(), name="carol")
        self.finish(visitor)                    # it exits after a count of the edited file
        proxy.mend()
        self.end_jobs(client)
        self.assertEqual(self.finish(client).code, 1)
        self.assertEqual(self.finish(server).code, 1)
        self.assertEqual(self.states(), "!" * 9 + "d")

    def assertNoneAwaited(self, server: Server, client: Program) -> None:
        """Once a lost line has a result."""
        self.assertClientEnded(self.finish(client), 1, "!")
        self.assertEqual(self.finish(server).code, 1)
        self.assertIn(b": 0 done, 1 failed in ", server.err)

    def test_a_client_that_is_back_brings_a_failure(self) -> None:
        server, client = self.serve_bob(f"{JOB}; false", grace=SHORT)
        client.send_signal(signal.SIGSTOP)
        self.wait_said(server, "waiting for results of line 1 that lost clients can bring")
        client.send_signal(signal.SIGCONT)
        self.open_gate()
        self.assertNoneAwaited(server, client)

    def test_the_line_of_a_dead_client_fails_at_another(self) -> None:
        server, client = self.serve_bob(f"{JOB}; false", grace=SHORT)
        self.kill_jobs(client)
        self.wait_said(server, "waiting for results of line 1 that lost clients can bring")
        self.open_gate()
        self.assertNoneAwaited(server, self.start_client(server, "--resume"))

    def test_after_the_end_of_server_and_keeper_it_waits_for_each_client_that_had_a_job(self) -> None:
        """As after a reboot of the host: no lock is held any more."""
        server, bob = self.serve_bob(LATER, JOB, up=(1, 2), grace=SHORT)
        bob.send_signal(signal.SIGSTOP)
        keeper = self.keeper(server)
        server.kill()
        os.kill(keeper, signal.SIGKILL)
        wait_until(lambda: not alive(keeper), what="the locks are free")
        again = self.serve_again(server.port)
        self.wait_said(again, "waiting for a first client, which can have -r for lines 1, 2")
        visitor = self.connect(again, up=(), name="carol")
        self.finish(visitor)                    # the first client that comes has none of these results
        bob.send_signal(signal.SIGCONT)
        self.write("", "go.2")
        self.end_jobs(bob, 2)
        self.assertClientEnded(self.finish(bob), 0, "dd")
        self.assertEqual(self.finish(again).code, 0)

    def test_it_does_not_wait_for_a_dead_client_for_ever(self) -> None:
        server = self.serve(JOB, grace=SHORT, patch=self.BRIEFLY)
        client = self.connect(server)
        client.kill()
        self.assertEqual(self.finish(server).code, 1)
        self.assertIn(b"waiting for results of line 1 that lost clients can bring, 4.0s at most", server.err)
        self.assertEqual(self.states(), "e")

    def test_with_failed_lines_alone_it_waits_for_the_first_client(self) -> None:
        for options, states, code in (("-r",), "dd", 0), ((), "!d", 1):
            with self.subTest(options=options):
                self.write("! true\nd true\n")
                server = self.serve_again()
                self.wait_said(server, "waiting for a first client, which can have -r for line 1")
                client = self.connect(server, *options, up=())
                self.assertEqual((self.finish(client).code, self.finish(server).code), (code, code))
                self.assertEqual(self.states(), states)

    def test_without_a_line_to_repeat_it_waits_for_nobody(self) -> None:
        self.write("d true\nx true\n")
        self.assertEqual(self.finish(self.serve_again()).code, 0)


class WithoutServer(LossCase):
    """A client that has no server: waits, gives up, or is told to leave."""
    # A client puts a byte into `dials.PID` before it dials again.  A slow peer is not lost.  Last: after INT
    PATCH = EAGER + """
import os
random.uniform = lambda low, high: 0.02 * open(f"dials.{os.getpid()}", "ab", 0).write(b"x")
runmaker4.MAX_HANDSHAKE_SECONDS = runmaker4.MAX_SILENT_SECONDS = 600
""" + "runmaker4.Runner.MAX_RESULT_SECONDS = 0.5\n" * (not FULL)

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_int_ends_jobs_and_client_and_the_line_is_e_when_the_next_server_has_waited(self) -> None:
        server, client = self.serve_bob(JOB)
        server.kill()
        client.send_signal(signal.SIGINT)
        self.assertNoJobLeft()
        self.assertEqual(self.finish(client).code, 130)
        self.assert_held(1)
        self.serve_again(server.port, grace=0.3)
        self.wait_states("e")

    def test_who_refuses_a_client_without_the_token_ends_neither_its_job_nor_its_waiting(self) -> None:
        """After a crash another user's server may get the port; the client of ours is to wait for ours."""
        server = self.serve(JOB, grace=SHORT)
        proxy, client = self.connect_by_proxy(server)
        refusals = itertools.cycle([plain(error="token"), plain(error="version"), plain(error="a lie\x1b[2J"),
                                    plain(runmaker4=1, nonce="0" * 32), b"GET / HTTP/1.0\r\n\r\n"])
        refused: list[float] = []

        def refuse(peer: Peer) -> None:
            refused.append(time.monotonic())
            peer.push(next(refusals)).rest()

        with FakeServer(refuse) as other:
            proxy.target = other.port
            proxy.cut()
            proxy.mend()
            wait_until(lambda: len(refused) > 3 and refused[-1] - refused[0] > 2 * SHORT, what="refusals")
            self.assertIsNone(client.poll(), client.err)
            proxy.target = server.port
            self.wait_said(client, "connected again")
        self.end_jobs(client)
        self.assertClientEnded(self.finish(client), 0, "d")
        self.assertEqual(len(self.pids()), 1)
        self.assertEqual(client.err.count(b"wrong token"), 1, client.err)
        self.assertEqual(client.err.count(b"trying again"), 2, client.err)

    def test_an_idle_client_says_once_that_no_server_has_answered_for_long_and_what_ends_it(self) -> None:
        self.PATCH += f"__import__('runmaker4-client').SILENCE_SECONDS = {SHORT}"
        server = self.serve(JOB)
        busy = self.connect(server)
        idle = self.connect(server, "--follow", up=(), name="carol")
        self.wait_clients(server, 2)
        server.kill()
        said = self.wait_said(idle, "connection refused", "no server has answered for", "--give-up")
        self.assertRegex(said, rb" for [\d.ms ]+s; trying again")
        dials = len(self.read(f"dials.{idle.pid}"))
        wait_until(lambda: len(self.read(f"dials.{idle.pid}")) > dials + 3, what="it tries again and again")
        self.serve_again(server.port)
        for client in busy, idle:
            self.wait_said(client, "connected again")
            self.assertEqual(client.err.count(b"no server has answered for"), int(client is idle),
                             client.err)

    def early_client(self, *options: object) -> tuple[int, Program]:
        """A client that was started before its server, and the port where it looks for it."""
        port = free_port()
        self.write("5eed" * 8, ".runmaker4.token").chmod(0o600)
        return port, self.start_program(RUNCLIENT, "--port", port, *options, self.HOST)

    def test_a_client_may_be_started_before_its_server(self) -> None:
        port, client = self.early_client()
        self.wait_said(client, "refused")
        self.jobs("echo hello >>ran")
        self.serve_again(port)
        ended = self.finish(client)
        self.assertClientEnded(ended, 0, "d")
        self.assertEqual(ended.err.count(b"refused"), 1, ended.err)

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_a_client_that_was_never_connected_gives_up_with_2(self) -> None:
        begin = time.monotonic()
        _, client = self.early_client("--give-up", 0.5)
        self.assertEqual(self.finish(client).code, 2)
        self.assertGreaterEqual(time.monotonic() - begin, 0.5)
