"""Promise: a client runs the jobs of its server's file as a runner does those of its own; all share it."""
import importlib
import os
import re
import signal
import subprocess
import unittest

from tests.support.console import console_lines, printed
from tests.support.messages import release
from tests.support.peer import Peer
from tests.support.processes import wait_until
from tests.support.runs import HASTY, LOOKS, WAITING
from tests.support.scripts import FULL, RUNMAKER, RUNWAIT
from tests.support.tcp import SERVING, Server, TcpCase
from tests.support.values import Text

# -- the quick start -----------------------------------------------------------------------------------------

class QuickStart(TcpCase):
    """What the README shows first: a server, a client, and what they print."""

    def test_what_the_server_prints(self) -> None:
        self.jobs("true", "exit 3", "true")
        server = self.start_server()
        port = f"runmaker4-server.py: runs.txt: serving on port {server.port}\n"
        self.assertEqual(server.err.decode(), port)
        self.assertEqual(self.run_client(server).code, 1)
        closing = self.stop(server).err.decode().replace(port, "").splitlines()[-2]
        self.assertRegex(closing,
                         r"\Arunmaker4-server\.py: runs\.txt: 2 done, 1 failed in [\d.]+s \(line 2\)")
        token = self.read(".runmaker4.token").decode().rstrip("\n")
        self.assertRegex(token, r"\A[0-9a-f]{32}\Z")
        self.assertEqual(server.out.decode(), f"Token for runmaker4-client.py: (shown on a terminal only) "
                                              f"(written to {self.dir}/.runmaker4.token)\n")

    def test_what_runs_failures_again_is_said(self) -> None:
        self.jobs("exit 3")
        server = self.start_server()
        self.assertIn(b"(line 1); -r runs them again", self.run_client(server).err)
        self.assertIn(b"runmaker4-client.py -r runs them again", self.stop(server, signal.SIGTERM).err)


class Surroundings(TcpCase):
    """What a job of a client finds: its client's directory and environment, and nothing else."""
    LIST = "for fd in /proc/$$/fd/*; do readlink $fd; done"

    def test_directory_environment_input_and_descriptors(self) -> None:
        place = self.dir / "bob"
        place.mkdir()
        self.jobs(f"pwd -P; cat; echo $JOB_ID $RUNMAKER4_SLOT $SLAVE_IP $WHO; {self.LIST}; env > environ")
        server = self.start_server()
        secret = {"RUNMAKER4_TOKEN": server.token, "WHO": "bob"}
        ended = self.run_client(server, env=secret, cwd=place, stdin=subprocess.PIPE)
        where, numbers, *descriptors = printed(console_lines(ended.out))
        self.assertEqual((where, numbers), (os.fsencode(place), b"1 1 1 bob"))
        self.assertEqual([name for name in descriptors
                          if name.startswith(b"socket:") or name.endswith(b".txt")], [])
        self.assertNotIn(server.token.encode(), self.read("bob/environ"))

    def test_a_client_says_if_the_directory_of_the_server_is_another(self) -> None:
        there, elsewhere = self.dir / "there", self.dir / "elsewhere"
        there.mkdir()
        elsewhere.mkdir()
        self.jobs("pwd >where")
        server = self.start_server("--exit-when-done", file="../runs.txt", cwd=there)
        ended = self.run_client(server, cwd=elsewhere)
        said = f": serving ../runs.txt; jobs run in {elsewhere}, not in the server's {there}\n"
        self.assertIn(said.encode(), ended.err)
        self.assertEqual(self.read("elsewhere/where"), f"{elsewhere}\n".encode())


# -- what is promised of a runner, promised of a client ------------------------------------------------------


class LikeARunner(TcpCase):
    """A client and a runner, told the same about the same file, print the same and leave the same."""

    def compare(self, text: Text, *options: object, states: str) -> None:
        """Both run this file with these options and one slot."""
        place = self.dir / "own"
        place.mkdir()
        self.write(text)
        self.write(text, "own/runs.txt")
        runner = self.start_program(RUNMAKER, "--name", "bob", *options, "runs.txt", cwd=place)
        client = self.start_client(self.start_server(), "--name", "bob", *options)
        wanted, found = self.finish(runner), self.finish(client)
        self.assertEqual(self.plain(found.out).splitlines(), self.plain(wanted.out).splitlines())
        self.assertEqual(self.plain(found.err), self.plain(wanted.err))
        self.assertEqual(found.code, wanted.code)
        self.assertEqual(self.read(), self.read("own/runs.txt"))
        self.assertEqual(self.states(), states)

    def test_after_too_many_failures_no_more_are_started(self) -> None:
        self.compare(". true\n. exit 1\n. touch never\n", "--max-failed", 1, states="d!.")

    def plain(self, printed: bytes) -> bytes:
        """What was printed without process numbers, times, who said it, and which file a server has."""
        for pattern, text in (
            (SERVING, b""),
            (rb"\(bob,\d+\)", b"(bob,PID)"),
            (rb"(?<= in )[\d.]+s", b"TIME"),
            (rb"(?m)^next: runwait4\.py --failed runs\.txt\n", b""),    # the server has the records
            # the server says it
            (rb"(?m)^.*: line \d+ is neither a job nor a comment .*\n", b""),
            (rb"(?m)^runmaker4\.py: runs\.txt: ", b"SCRIPT: "),
            (rb"(?m)^runmaker4-client\.py: 127\.0\.0\.1: ", b"SCRIPT: "),
        ):
            printed = re.sub(pattern, text, printed)
        return printed

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_jobs_that_fail_and_die_and_take_too_long(self) -> None:
        self.compare(
            ". echo a; echo b\n. echo c >&2\n. exit 3\n. kill -9 $$\n. sh -c 'kill -9 $$; :'\n"
            "#RUN timeout=0.8\n. sleep 600\n", states="dd!!!!"
        )

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_retries_and_a_walltime(self) -> None:
        self.compare(". false\n. sleep 600\n. true\n", "--retries", 1, "--walltime", 6, states="!e.")

    def test_quiet_and_only_one_job(self) -> None:
        self.compare("! true\n. echo a\0b\n. true\n", "-r", "-1", "-q", "--follow", states="d..")

    def test_any_bytes(self) -> None:
        """In commands and output; comments, states of no meaning, what the shell cannot run."""
        every = bytes(set(range(1, 256)) - set(b"'\n"))
        self.write(bytes(range(256)) + b"\r\nlast, without a newline \xff", "data")
        lines = [b"\xef\xbb\xbf. echo a\xff\xfe\xc3b", b". printf %s '" + every + b"'", b".\techo b\r",
                 b"# echo comment", b".  echo\t'a\t b'  ", b". cat " + bytes(self.dir) + b"/data",
                 b"x echo held", b"\xff echo held", b"", b"Prose: echo prose", b". echo a\0b",
                 b". echo " + b"x" * 100_000, b". :" + b" " * ((128 << 10) - 2)]
        self.compare(b"".join(line + b"\n" for line in lines), states="ddddx\xffedd")


class AskedByOneClient(TcpCase):
    """What -r and --resume of one client mean is run once, by whoever is there."""

    def ran(self, who: str) -> str:
        """The states of the lines that this client ran."""
        lines = self.read(f"ran.{who}").split() if self.exists(f"ran.{who}") else []
        return "".join(sorted(self.old[int(line) - 1] for line in lines))

    def test_all_that_had_failed_is_run_once(self) -> None:
        self.old = "!e." * 20
        self.write("".join(f"{state} echo $JOB_ID >> ran.$WHO; sleep 0.02\n" for state in self.old))
        server = self.start_server()
        clients = [self.start_client(server, "-j2", *options, env={"WHO": who})
                   for who, *options in (("plain",), ("resuming", "--resume"), ("retrying", "-r"))]
        codes = [self.finish(client).code for client in clients]
        # the others may leave while some are `!` or `e`
        self.assertEqual((codes[-1], self.states()), (0, "d" * 60))
        ran = [self.ran(who) for who in ("plain", "resuming", "retrying")]
        self.assertEqual(sorted("".join(ran)), sorted(self.old), "each once")

    def test_all_is_made_new_for_its_first_hello_and_nothing_when_it_comes_back(self) -> None:
        self.write("! true\n! true\n")
        server = self.start_server()
        key = "f" * 16
        with Peer.of(server.port, server.token) as peer:
            peer.hello(client=key, retry="!er").hear("welcome")
            peer.say(dict(type="claim", request=1, want=1, last=False)).hear("jobs")
            self.assertEqual(self.states(), "r.")
        self.write("r true\n! true\n")
        with Peer.of(server.port, server.token) as peer:
            peer.hello(client=key, retry="!er").hear("welcome")
            peer.say(dict(type="claim", request=2, want=1, last=False), dict(type="ping", request=3))
            self.assertEqual(peer.hear("pong")["retry"], "r")
            self.assertEqual(self.states()[1], "!")


class Leaving(TcpCase):
    """A client that is told to leave gets no more lines; none is told to while a line can come back."""
    # Each walk takes as long as in a long file, so that the next is not due at once
    LONG_WALKS = """
import runmaker4, time
claim_next = runmaker4.Walk.claim_next
def claim_slowly(walk, *args):
    time.sleep(0.02)
    return claim_next(walk, *args)
runmaker4.Walk.claim_next = claim_slowly
"""
    LAST_CLAIM = dict(type="claim", request=1, want=1, last=True)

    def test_a_line_goes_past_a_client_that_leaves(self) -> None:
        self.write("d true\n")
        server = self.start_server()
        with Peer.of(server.port, server.token) as leaving, Peer.of(server.port, server.token) as other:
            leaving.hello().hear("welcome")
            # with the count that says so: what it reports when it exits
            self.assertEqual(leaving.say(self.LAST_CLAIM).hear("nothing")["account"]["now"]["done"], 1)
            self.append(". true")
            other.hello().hear("welcome")
            other.say(self.LAST_CLAIM)
            self.assertEqual(len(other.hear("jobs")["jobs"]), 1)

    def test_a_line_that_comes_back_goes_to_a_client_that_wanted_to_leave(self) -> None:
        self.write(". true\n")
        server = self.start_server(patch=self.LONG_WALKS)
        with Peer.of(server.port, server.token) as holding, Peer.of(server.port, server.token) as waiting:
            holding.hello().hear("welcome")
            job, = holding.say({**self.LAST_CLAIM, "last": False}).hear("jobs")["jobs"]
            waiting.hello().hear("welcome")
            for message in self.LAST_CLAIM, dict(type="ping", request=2), dict(type="ping", request=3):
                waiting.say(message)
            self.assertEqual([waiting.hear("pong")["request"] for _ in range(2)], [2, 3])
            holding.say(release(1, job["id"]))
            self.assertEqual(waiting.hear("jobs", "nothing")["type"], "jobs")


# -- a server and those who wait -----------------------------------------------------------------------------

class Serving(TcpCase):
    """A server serves until it is stopped, or with --exit-when-done until all have ended, and is fair."""

    def test_after_too_many_failures_it_hands_out_no_more_and_leaves(self) -> None:
        self.jobs("exit 1", "true", "touch never")
        server = self.start_server("--max-failed", 1)
        self.assertClientEnded(self.run_client(server), 1, "!..")
        ended = self.finish(server)
        self.assertEqual(ended.code, 1)
        self.assertComplains(ended, "1 job failed or in error", "--max-failed")

    def test_a_line_that_is_gone_when_its_job_ends_makes_the_exit_status_1(self) -> None:
        self.jobs(WAITING, "true")
        server = self.start_server("--exit-when-done", patch=HASTY)
        client = self.start_client(server, "-j2", up=[1])
        self.wait_states("rd")
        os.replace(self.write("d true\n", "new"), self.dir / "runs.txt")
        self.open_gate()
        for program in server, client:
            ended = self.finish(program)
            self.assertEqual((ended.code, self.states()), (1, "d"), ended.err)
            self.assertIn(b": 1 done, 1 not written down in", ended.err)

    def test_a_server_with_nothing_to_do_keeps_serving(self) -> None:
        self.before = self.write("d true\n").read_bytes()
        server = self.start_server()
        ended = self.run_client(server)
        self.assertClientEnded(ended, 0, "d")
        self.assertIn(b"nothing to do", ended.err)
        self.append(". touch second")
        self.assertClientEnded(self.run_client(server), 0, "dd")
        self.assertIsNone(server.poll())

    def test_a_line_that_is_appended_or_set_back_reaches_a_waiting_client_within_half_a_second(self) -> None:
        """The server polls the file: it does not look each second here, nor when it hears of a client."""
        self.assertLess(2 * importlib.import_module("runmaker4-server").POLL_SECONDS, 0.5)
        rare = "import runmaker4; runmaker4.MAX_SILENT_SECONDS, runmaker4.PING_SECONDS = 9999, 3600\n"
        no_look = ("import asyncio, importlib\nserver = importlib.import_module('runmaker4-server')\n"
                   "server.Server._check_clients_and_file = lambda _: asyncio.sleep(3600)\n")
        self.jobs("true")
        client = self.start_client(self.start_server(patch=rare + no_look), "--follow", patch=rare)
        self.wait_states("d")
        self.append(". true")
        self.wait_states("dd")
        self.set_state(1, ".")
        wait_until(lambda: client.out.count(b"): exit ") == 3, what="the first has run again")
        self.assertClientEnded(self.stop(client, signal.SIGHUP), 0, "dd")

    def test_an_orphan_is_counted_by_the_server_and_not_by_each_client(self) -> None:
        self.jobs(WAITING)
        server = self.start_server()
        client = self.start_client(server, up=[1])
        self.append("r echo left behind")
        self.wait_states("re")
        self.open_gate()
        self.assertIn(b": 1 done in ", self.finish(client).err)
        self.assertIn(b": 1 done, 1 error in ", self.stop(server, signal.SIGHUP).err)

    def test_a_client_ends_when_the_rest_runs_elsewhere(self) -> None:
        self.jobs(WAITING, WAITING, "true")
        server = self.start_server()
        runner = self.start(RUNMAKER, "-q", "-1", "runs.txt")
        self.wait_up(1)
        other = self.start_client(server, "-1", up=[2])
        self.assertEqual((self.run_client(server).code, self.states()), (0, "rrd"))
        self.open_gate()
        self.assertEqual((self.finish(runner).code, self.finish(other).code), (0, 0))
        self.assertEqual(self.states(), "ddd")

    # a server counts the file at once for each claim
    COUNTS_AT_ONCE = """
server = __import__("runmaker4-server")
server.Dispatcher.hand_out_lines_soon = lambda self, **_: self.hand_out_lines(False)
"""

    def test_a_count_that_was_made_before_a_result_lets_no_client_exit_after_it(self) -> None:
        """The result and the last claim arrive together."""
        self.write(". true\n")
        server = self.start_server(patch=self.COUNTS_AT_ONCE)
        with Peer.of(server.port, server.token) as peer:
            peer.hello().hear("welcome")
            peer.say(dict(type="claim", request=1, want=1, last=True))
            job, = peer.hear("jobs")["jobs"]
            peer.say(dict(type="finish", n=1, id=job["id"], state="d", how="exit 0", lost=False),
                     dict(type="claim", request=2, want=1, last=True))
            self.assertEqual(peer.hear("nothing")["account"]["now"]["running"], 0)

    # a pause of any length over a tenth of a second, such as those between two looks of a server, is forever
    NO_LOOKS = """
import asyncio
def sleep(seconds, real=asyncio.sleep):
    return real(seconds if seconds < 0.1 else 1000)
asyncio.sleep = sleep
def wait_for(work, seconds, real=asyncio.wait_for):
    return real(work, None if seconds is None or seconds >= 0.1 else seconds)
asyncio.wait_for = wait_for
"""

    def test_the_end_of_the_last_job_ends_the_server_without_a_look(self) -> None:
        self.jobs("true", "true")
        server = self.start_server("--exit-when-done", patch=self.NO_LOOKS)
        client = self.run_client(server)
        self.assertEqual((client.code, self.finish(server).code, self.states()), (0, 0, "dd"))

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_server_and_followers_end_with_the_last_job_also_if_a_runner_has_it(self) -> None:
        self.before = self.write(f". {WAITING}\n. exit 3\nx touch never\n").read_bytes()
        runner = self.start(RUNMAKER, "-q", "-1", "runs.txt")
        self.wait_up(1)
        server = self.start_server("--exit-when-done", patch=LOOKS)
        client = self.start_client(server, "--follow")
        self.wait_states("r!x")
        self.wait_looked()                  # who must not end yet
        self.assertEqual((server.poll(), client.poll()), (None, None))
        self.open_gate()
        self.assertEqual([self.finish(program).code for program in (runner, client, server)], [1, 1, 1])
        self.assertEqual(self.states(), "d!x")


class ServerSignals(TcpCase):
    """HUP and USR1 at the server: no more jobs, what runs may end, its results are the exit status."""

    def start_draining(self, number: signal.Signals, *jobs: str) -> Server:
        """Clients run all of these jobs but the last one when the signal comes to their server."""
        self.jobs(*jobs)
        server = self.start_server()
        for line in range(1, len(jobs)):
            self.start_client(server, up=[line])
        server.send_signal(number)
        self.wait_said(server, number.name)
        return server

    def assertDrained(self, server: Server, code: int, states: str) -> None:
        """The server waits for what runs, and then ends in this way."""
        self.assertIsNone(server.poll())
        self.open_gate()
        ended = self.finish(server)
        self.assertEqual((ended.code, self.states()), (code, states), ended.err)
        self.assertFalse(self.exists("never"))

    def test_a_client_that_comes_after_hup_gets_no_job(self) -> None:
        server = self.start_draining(signal.SIGHUP, WAITING, "touch never")
        late = self.start_client(server, "--name", "late")
        wait_until(lambda: late.poll() is not None or late.err or self.knows(server, "late"),
                   what="it was there")
        self.assertDrained(server, 1, "d.")

    def knows(self, server: Server, name: str) -> bool:
        return self.connected(server)[name] > 0

    def test_of_clients_without_a_job_those_that_follow_stay_until_the_server_ends(self) -> None:
        self.jobs(WAITING)
        server = self.start_server()
        self.start_client(server, up=[1])
        self.append("#RUN barrier", ". touch never")
        leaving, following = (self.idle_peer(server, follow=follow) for follow in (False, True))
        server.send_signal(signal.SIGHUP)
        leaving.hear("nothing")                     # all get it at once, or never
        leaving.close()
        following.say(dict(type="ping", request=3)).hear("pong")
        self.assertNotIn("nothing", [message["type"] for message in following.messages])
        self.open_gate()
        following.hear("closing")
        following.close()
        self.assertEqual((self.finish(server).code, self.states()), (1, "d."))

    def idle_peer(self, server: Server, **fields: object) -> Peer:
        """One that has asked for a job, and would exit without one."""
        peer = Peer.of(server.port, server.token)
        self.addCleanup(peer.close)
        peer.hello(slots=1, **fields).hear("welcome")
        peer.say(dict(type="claim", request=1, want=1, last=True), dict(type="ping", request=2)).hear("pong")
        return peer

    def test_a_job_that_fails_after_usr1_makes_the_exit_status_1(self) -> None:
        server = self.start_draining(signal.SIGUSR1, WAITING, f"{WAITING}; exit 3", "touch never")
        # a server that is busy does not answer at once
        wait_until(lambda: b"\nthe server drains: 2 clients, 0 lost\n" in self.run_script(
            RUNWAIT, "--status", "runs.txt").out, what="its clients are counted")
        self.assertDrained(server, 1, "d!.")
