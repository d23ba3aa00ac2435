"""Promise: the commands of a group start at one moment on all its hosts, or not at all; and it ends as
min-hosts says.

To see a group between claim and release, one of its clients is stopped: the others hold their shells until it
goes on.
"""
import json
import os
import random
import re
import signal
import time
import unittest
from typing import Any, Callable, Optional

import runmaker4
from tests.support.case import GATE
from tests.support.line_locks import locked_lines
from tests.support.locks import lock_table, locked
from tests.support.losses import LONG, LossCase
from tests.support.messages import new_key, release
from tests.support.patches import UNTIL_THEY_END, WHEN_LATE
from tests.support.peer import Peer
from tests.support.pipes import read_terminal
from tests.support.process_table import process_table, send
from tests.support.processes import DEADLINE, alive, wait_until
from tests.support.proxy import TO_CLIENT, Proxy
from tests.support.runs import HASTY, LOOKS, UP, WAITING
from tests.support.scripts import FULL, PYTHON, ROOT, RUNSERVER, RUNSET
from tests.support.tcp import Program, Server
from tests.support.tcp_patches import EAGER, THREADED, checking_phases

RAN = "echo $JOB_ID $WHO >>ran"         # a job notes its line and its client
SLEEP = f"{RAN}; {UP}; sleep 600"        # runs until it is ended
HOLDS = f"{RAN}; {UP}; {GATE}"          # runs until open_gate() is called
VANISHES = 0.5                          # a grace that tests wait for
TRIED_AGAIN = 2                         # seconds within which a group would be tried again
# a client that is stopped stays a host, and a group waits for it, however busy the machine is
PATIENT = """
__import__("runmaker4").MAX_SILENT_SECONDS = 600.0
__import__("runmaker4-server").Group.MAX_PREPARING_SECONDS = 600.0
"""
# a client starts what it has got, however long that took: its server waits, and has not given it away
TRUSTING = """
__import__("runmaker4-client").LinkLife.can_start_jobs = property(lambda life: life.link is not None)
"""
# a file `limited` says that the time of a job's timeout runs
LIMITED = """
import runmaker4
kill_after_timeout = runmaker4.JobTask._kill_after_timeout
def tell_and_kill(*args):
    open("limited", "w").close()
    return kill_after_timeout(*args)
runmaker4.JobTask._kill_after_timeout = tell_and_kill
"""


def groups(count: int, command: str) -> list[str]:
    """The lines of so many groups, one after another, of five commands for three hosts each."""
    return [line for number in range(count) for line in
            ("#RUN barrier", f"#RUN together=g{number} host=alice,bob,carol", *[f". {command}"] * 5)]


class GroupCase(LossCase):
    """Helpers: a file with directives, its server, clients that stay, and what became of the group."""

    def serve_lines(self, *lines: str, grace: float = LONG, **settings: Any) -> Server:
        """Make runs.txt of these lines, and start a server on it."""
        self.before = self.write("".join(f"{line}\n" for line in lines)).read_bytes()
        return self.serve_again(grace=grace, **settings)

    def serve_again(self, port: int = 0, grace: float = LONG, **settings: Any) -> Server:
        return super().serve_again(port, grace, patch=PATIENT + checking_phases(), **settings)

    def join(self, server: Server, name: str, *options: object, **settings: Any) -> Program:
        """Start a client of this name that waits for more."""
        return self.start_client(server, "--name", name, "--follow", *options, env={"WHO": name},
                                 patch=TRUSTING, **settings)

    def proxy_of(self, server: Server) -> Proxy:
        proxy = Proxy(server.port)
        self.addCleanup(proxy.close)
        return proxy

    def join_all(self, server: Server, *names: str) -> list[Program]:
        return [self.join(server, name) for name in names]

    def join_stopped(self, server: Server, name: str, *options: object) -> Program:
        """A client that has asked its server for jobs, and is stopped: it is there, but does not answer."""
        client = self.join(server, name, *options)
        self.wait_quiet(server, client, name)
        client.send_signal(signal.SIGSTOP)
        return client

    def wait_quiet(self, server: Server, client: Program, name: str) -> None:
        """Wait until a client of this name is there, and has said all that it has to say."""
        self.wait_there(server, name)
        # for so many looks neither it nor the server has had anything to do
        quiet = 0
        while quiet < 5:
            processes = process_table()
            quiet = quiet + 1 if all(processes[one.pid][0] == "S" for one in (server, client)) else 0
            time.sleep(0.01)

    def wait_there(self, server: Server, *names: str) -> None:
        """Wait until the server has these clients, and they are not lost."""
        wait_until(lambda: all(self.connected(server)[name] > 0 for name in names), what=f"{names} are there")

    def shells(self, client: Program) -> list[int]:
        """The living children of a client: its jobs, begun and held."""
        return [pid for pid, (state, parent) in process_table().items()
                if parent == client.pid and state != "Z"]

    def wait_held(self, client: Program, states: str, count: int = 1) -> list[int]:
        """Wait until the client holds so many shells, and the file has these states; the shells."""
        wait_until(lambda: len(self.shells(client)) == count or client.poll() is not None,
                   what=f"{count} shells are held")
        self.wait_states(states)
        self.assertFalse(self.exists("ran"))
        return self.shells(client)

    def hold(self, *lines: str, states: str, **settings: Any) -> tuple[Server, Program, Program]:
        """A server; alice, who holds a shell; bob, who is stopped."""
        server = self.serve_lines(*lines, **settings)
        bob = self.join_stopped(server, "bob")
        alice = self.join(server, "alice")
        self.wait_held(alice, states)
        return server, alice, bob

    def check_nothing_starts(self, *ran: str, seconds: float) -> None:
        """These have run, and no others follow for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.assertEqual(sorted(self.ran()), list(ran))
            time.sleep(0.05)

    def ran(self) -> list[str]:
        """Who has run which line, in the order of their starts."""
        return self.read("ran").decode().splitlines() if self.exists("ran") else []

    def ran_on(self, name: str) -> list[int]:
        return [int(line) for line, who in map(str.split, self.ran()) if who == name]

    def assertEachRanOnce(self, states: str, *ran: str, timeout: float = DEADLINE) -> None:
        """The file comes to these states; these runs, and no others; nobody holds a line any more."""
        self.wait_states(states, timeout)
        self.assertEqual(sorted(self.ran()), sorted(ran))
        self.assertOnlyStatesChanged()
        wait_until(lambda: not locked_lines(self), what="no line is locked")

    def assertAtMostOnce(self) -> None:
        """All lines have ended; a command that is done has run once, and none ran twice."""
        wait_until(lambda: not set(self.states()) & set(".r"), what="all lines have ended")
        lines = [int(run.split()[0]) for run in self.ran()]
        self.assertEqual(len(lines), len(set(lines)), lines)
        for line, text in enumerate(self.read().splitlines(), 1):
            if text.startswith(b"d "):
                self.assertIn(line, lines)
        self.assertOnlyStatesChanged()

    def said(self, server: Server, group: str, rows: int) -> list[str]:
        """Wait until the server has printed the results of a group: the heading and so many lines."""
        def found() -> Optional[list[str]]:
            lines = server.out.decode().splitlines()
            for at, line in enumerate(lines):
                if re.search(rf"\b{group}\b", line) and not line.startswith(" "):
                    return lines[at:at + 1 + rows] if len(lines) > at + rows else None
            return None
        return wait_until(found, what=f"the results of {group} are printed")

    def assertResults(self, server: Server, group: str, succeeded: bool, *rows: tuple[str, str, str]) -> None:
        """The server prints if the group succeeded, and these rows of host, result, command in any order."""
        heading, *lines = self.said(server, group, len(rows))
        self.assertIn("succeeded" if succeeded else "failed", heading)
        for host, result, command in rows:
            # between the result and the command its seconds; none if it has not run
            wanted = rf"\s*{re.escape(host)} +({result}) +([0-9.]+m?s +)?{re.escape(command)}"
            self.assertTrue(any(re.fullmatch(wanted, line) for line in lines), (wanted, lines))


class ByHandCase(GroupCase):
    """Helpers for groups whose clients say just what a test wants."""

    def fake(self, server: Server, name: str, key: str, *jobs: dict[str, Any]) -> Peer:
        """A client by hand, which may have jobs already."""
        peer = Peer.of(server.port, server.token)
        self.addCleanup(peer.close)
        fields = ("id", "number", "text")
        return peer.hello(*({field: job[field] for field in fields} for job in jobs), client=key, name=name,
                          follow=True)

    def fake_pair(self, server: Server, key: str = "") -> tuple[Peer, Peer]:
        """alice, who has this key, and bob, each with a claim."""
        alice, bob = self.fake(server, "alice", key or new_key()), self.fake(server, "bob", new_key())
        for peer in alice, bob:
            self.claim_by_hand(peer)
        return alice, bob

    @staticmethod
    def claim_by_hand(peer: Peer) -> None:
        """Claim a job as soon as the server welcomes it."""
        peer.hear("welcome")
        peer.say(dict(type="claim", request=1, want=1, last=False))

    def hold_by_hand(self, peer: Peer) -> dict[str, Any]:
        """Wait for a job that is to be held."""
        job: dict[str, Any]
        job, = peer.hear("jobs")["jobs"]
        self.assertTrue(job["hold"])
        return job


# -- start ---------------------------------------------------------------------------------------------------

class Start(GroupCase):
    """A group starts once all its hosts are there, each command where it belongs."""

    def test_all_start_at_one_moment_once_the_last_host_is_there_and_results_are_printed(self) -> None:
        server = self.serve_lines("#RUN together=trio host=alice,bob,carol", f". {HOLDS}",
                                  f". {HOLDS}; exit 3", f". {HOLDS}")
        self.join_all(server, "alice", "bob")
        self.wait_there(server, "alice", "bob")
        self.assertEqual(self.states(), "...")
        before = time.time()
        self.join(server, "carol", up=(2, 3, 4))
        for line in 2, 3, 4:
            self.assertGreater((self.dir / f"up.{line}").stat().st_mtime, before)
        self.assertEqual(self.states(), "rrr")
        self.open_gate()
        self.assertEachRanOnce("d!d", "2 alice", "3 bob", "4 carol")
        self.assertResults(server, "trio", True, ("alice", "exit 0", HOLDS),
                           ("bob", "exit 3", f"{HOLDS}; exit 3"), ("carol", "exit 0", HOLDS))

    def test_further_lines_of_a_host_follow_in_order_on_the_same_client(self) -> None:
        """Although another one of its name is free."""
        # the later the shorter
        order = f"{RAN}; echo $PPID >>parents.$WHO; sleep 0.0$(( 9 - $JOB_ID ))"
        server = self.serve_lines("#RUN together=pair host=alice,bob", *[f". {order}"] * 5,
                                  "#RUN together=pair host=bob", f". {order}")
        self.join_all(server, "alice", "alice", "bob")
        self.assertEachRanOnce("dddddd", "2 alice", "3 bob", "4 alice", "5 bob", "6 alice", "8 bob")
        self.assertEqual((self.ran_on("alice"), self.ran_on("bob")), ([2, 4, 6], [3, 5, 8]))
        self.assertEqual(len(set(self.read("parents.alice").split())), 1)

    def test_hosts_are_found_by_pattern_short_name_and_address_whoever_fits_several(self) -> None:
        server = self.serve_lines("#RUN together=quartet host=127.0.0.1,127.*,bob,AL*", *[f". {HOLDS}"] * 4)
        for name in ("alice", "Bob.example.org", "carol", "dave"):      # the first two fit three entries each
            self.join(server, name)
        self.wait_up(2, 3, 4, 5)
        self.assertEqual((self.ran_on("Bob.example.org"), self.ran_on("alice")), ([4], [5]))
        self.assertEqual(sorted(self.ran_on("carol") + self.ran_on("dave")), [2, 3])
        self.open_gate()
        self.wait_states("dddd")

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_a_group_that_somebody_is_appending_starts_when_all_of_it_is_there(self) -> None:
        server = self.serve_lines("d true")
        self.join_all(server, "alice", "bob")
        self.wait_there(server, "alice", "bob")
        with open(lock_table(self.dir / "runs.txt"), "r+b") as file, \
                locked(file.fileno(), runmaker4.APPEND_BYTE):
            self.append("#RUN together=pair host=alice", f". {HOLDS}")
            self.check_nothing_starts(seconds=1)
            self.append("#RUN together=pair host=bob", f". {HOLDS}")
        self.wait_up(3, 5)
        self.open_gate()
        self.assertEachRanOnce("ddd", "3 alice", "5 bob")
        self.said(server, "pair", 2)

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_other_lines_are_handed_out_while_a_group_waits_which_is_said_after_a_while(self) -> None:
        self.PATCH = "import runmaker4; runmaker4.Cursor.MIN_IDLE_SECONDS = 0.3"
        server = self.serve_lines(f". {RAN}", "#RUN together=pair host=alice,bob", f". {RAN}", f". {RAN}",
                                  "#RUN", f". {RAN}")
        self.join(server, "alice")
        self.wait_states("d..d")
        self.wait_said(server, "2 new jobs wait: runwait4.py --status")
        self.join(server, "bob")
        self.assertEachRanOnce("dddd", "1 alice", "3 alice", "4 bob", "6 alice")

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_a_group_that_is_too_long_waits_which_is_said(self) -> None:
        count = runmaker4.PendingGroup.MAX_GROUP_JOBS + 1
        self.assertEqual(count, 10_001)
        server = self.serve_lines(f". {RAN}", "#RUN together=long host=alice", *[f". {RAN}"] * count, "#RUN",
                                  f". {RAN}")
        self.join(server, "alice")
        self.wait_said(server, "line 10003: the group long has more than 10,000 jobs; it and the jobs below")
        self.wait_states("d" + "." * (count + 1))
        self.check_nothing_starts("1 alice", seconds=0.5)


class LikeAnyJob(GroupCase):
    """A command of a group finds and does what it would without one."""

    def test_environment_input_and_descriptors(self) -> None:
        # The shell only waits while its descriptors are listed: for a pipeline it would open and close some
        look = ("cat; ( for fd in /proc/$$/fd/*; do echo ${fd##*/} $(readlink $fd); done; pwd -P; env ) "
                ">seen.$JOB_ID")
        server = self.serve_lines("#RUN together=solo host=alice", f". {look}", "#RUN", f". {look}")
        self.join(server, "alice")
        self.wait_states("dd")
        in_group, alone = (sorted(re.sub(rb"=.*|(?<=pipe:).*", b"", line)
                                  for line in self.read(f"seen.{job}").splitlines()) for job in (2, 4))
        self.assertEqual(in_group, alone)
        self.assertIn(b"1 pipe:", alone)

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second")
    def test_odd_commands_end_as_they_do_without_a_group(self) -> None:
        commands = [b"exit 3", b"kill -9 $$", b"(", b"echo a # comment", b"echo a \\", b"read x",
                    b"exec true", b"echo 'it''s' \"$0\" \xff\xfe", b"true\0false", b": " + b"x" * 100_000,
                    b"  true  ", b"exec exit 4", b"cat <<E", b"set -e; false; true", b"trap 'exit 7' 0; true",
                    b"exit", b"{ echo a; } >&2; exit 1"]
        lines = b"".join(b". " + command + b"\n" for command in commands)
        self.write(b"#RUN together=solo min-hosts=0 host=alice\n" + lines + b"#RUN barrier\n#RUN\n" + lines)
        server = self.serve_again()
        self.join(server, "alice")
        wait_until(lambda: not set(self.states()) & set(".r"), what="all has ended")
        states, count = self.states(), len(commands)
        self.assertEqual(states[:count], states[count:])
        for line in range(2, 2 + count):
            for end in ("out", "err"):
                names = [f"out/{number}.{end}" for number in (line, line + count + 2)]
                one, other = (self.read(name) if self.exists(name) else b"" for name in names)
                self.assertEqual(one, other, commands[line - 2])

    def test_a_terminal_gets_no_control_characters_of_commands_and_a_program_their_bytes(self) -> None:
        command = "true '\x1b[31m\u202e'"
        self.before = self.write(f"#RUN together=solo host=alice\n. {command}\n").read_bytes()
        master, slave = os.openpty()
        self.addCleanup(os.close, master)
        words = "--exit-when-done", "--port", "0", "--host", self.HOST, "runs.txt"
        server = self.as_server(self.start_program(RUNSERVER, *words, stdout=slave))
        os.close(slave)
        self.join(server, "alice")
        shown = read_terminal(master).decode()
        self.assertRegex(shown, r"\n  alice +exit 0 +[0-9.]+m?s  true '\?\[31m\?'\n")
        self.assertEqual(self.finish(server).code, 0)
        server = self.serve_lines("#RUN together=solo host=alice", f". {command}")
        self.join(server, "alice")
        self.assertResults(server, "solo", True, ("alice", "exit 0", command))


# -- min-hosts -----------------------------------------------------------------------------------------------

@unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
class MinHosts(GroupCase):
    """What ends a group early: hosts that time out or vanish, when too few are left."""
    PATCH = EAGER + LIMITED

    def test_all_the_first_time_out_ends_what_runs_and_what_has_not_begun(self) -> None:
        server = self.serve_lines("#RUN together=pair host=alice timeout=4s", f". {SLEEP}", f". {RAN}",
                                  "#RUN together=pair host=bob", f". {SLEEP}", f". {RAN}", "#RUN", f". {RAN}")
        self.join_all(server, "alice", "bob")
        self.wait_states("!eeed")
        self.assertEqual(sorted(self.ran())[:2], ["2 alice", "5 bob"])
        self.assertEqual(len(self.ran()), 3)
        self.assertNoJobLeft()
        self.assertResults(server, "pair", False, ("alice", "timeout after 4s", SLEEP),
                           ("alice", "stopped", RAN), ("bob", "stopped", SLEEP), ("bob", "stopped", RAN))

    def test_the_time_out_counts_from_the_release(self) -> None:
        server, alice, bob = self.hold("#RUN together=pair host=alice,bob timeout=1h", f". {HOLDS}",
                                       f". {HOLDS}", states="rr")
        self.wait_quiet(server, alice, "alice")
        self.assertFalse(self.exists("limited"))
        released = time.time()
        bob.send_signal(signal.SIGCONT)
        wait_until(lambda: self.exists("limited"), what="the time runs")
        self.wait_up(2, 3)
        self.open_gate()
        self.assertEachRanOnce("dd", "2 alice", "3 bob")
        wait_until(lambda: len(self.logged()) == 2, what="both runs are in the job log")
        for line in self.read("joblog").splitlines()[1:]:
            began, took = map(float, line.split(b"\t")[2:4])
            self.assertGreater(began, released - 0.001)
            self.assertLess(took, time.time() - released)


class TimeoutOfAClient(GroupCase):
    """--timeout of a client holds for its jobs of a group that have no timeout= of their own."""
    PATCH = EAGER + WHEN_LATE + LIMITED

    def check_timeout(self, directive: str, shown: str) -> None:
        """The time of alice's job counts from the release, and ends the group; bob has no limit."""
        server = self.serve_lines(directive, f". {SLEEP}", "#RUN together=pair host=bob", f". {SLEEP}")
        bob = self.join_stopped(server, "bob")
        alice = self.join(server, "alice", "--timeout=1h")
        self.wait_held(alice, "rr")
        self.wait_quiet(server, alice, "alice")
        self.assertFalse(self.exists("limited"))
        bob.send_signal(signal.SIGCONT)
        self.wait_up(2, 4)
        wait_until(lambda: self.exists("limited"), what="the time runs")
        self.write("", "late")
        self.wait_states("!e")
        self.assertResults(server, "pair", False, ("alice", shown, SLEEP), ("bob", "stopped", SLEEP))

    def test_it_ends_a_job_without_a_timeout(self) -> None:
        self.check_timeout("#RUN together=pair host=alice", "timeout after 3600s")

    def test_that_of_the_directive_counts_before_it(self) -> None:
        self.check_timeout("#RUN together=pair host=alice timeout=2h", "timeout after 7200s")


@unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
class Vanished(GroupCase):
    """A client that dies after the release counts as vanished once its grace is over."""

    PAIR = ("#RUN together=pair host=alice,bob", f". {HOLDS}", f". {HOLDS}", f". {RAN}", f". {RAN}")

    def test_all_the_rest_is_ended_if_it_is_killed(self) -> None:
        self.check_rest(self.kill_jobs, VANISHES)

    def test_all_the_rest_is_ended_at_once_if_it_is_ended_by_a_signal(self) -> None:
        self.check_rest(lambda bob: self.assertEqual(self.stop(bob, signal.SIGINT).code, 130))

    def check_rest(self, lose: Callable[[Program], None], seconds: float = 0.0) -> None:
        """All lines of a group in which bob is lost are e after these seconds, not after the long grace."""
        server = self.serve_lines(*self.PAIR, grace=seconds or LONG)
        _alice, bob = self.join_all(server, "alice", "bob")
        self.wait_up(2, 3)
        self.wait_states("rrrr")
        began = time.monotonic()
        lose(bob)
        self.assertEachRanOnce("eeee", "2 alice", "3 bob")
        self.assertGreater(time.monotonic() - began, seconds)
        self.assertNoJobLeft()
        self.assertResults(server, "pair", False, ("alice", "stopped", HOLDS), ("bob", "vanished", HOLDS),
                           ("alice", "stopped", RAN), ("bob", "vanished|stopped", RAN))
        server.send_signal(signal.SIGHUP)
        self.assertEqual(self.finish(server).code, 1)
        self.assertIn(b": 0 done, 4 error in ", server.err)
        self.assertNotIn(b"another runner took over", server.err)

    def test_a_line_that_it_had_not_got_is_not_lost_with_it(self) -> None:
        server = self.serve_lines("#RUN together=pair host=alice,bob min-hosts=1", *self.PAIR[1:],
                                  grace=VANISHES)
        proxy = self.proxy_of(server)
        self.join(server, "alice", "--port", proxy.port)
        self.join(server, "bob")
        self.wait_up(2, 3)
        proxy.cut()
        self.wait_states("erer")
        events = map(json.loads, self.read("out/journal").splitlines())
        self.assertEqual([event["line"] for event in events if event["event"] == "loss"], [2])
        self.open_gate()
        self.wait_states("eded")

    def test_a_client_that_comes_back_within_the_grace_has_not_vanished(self) -> None:
        server = self.serve_lines(*self.PAIR)
        proxy = self.proxy_of(server)
        self.join(server, "alice")
        self.join(server, "bob", "--port", proxy.port)
        self.wait_up(2, 3)
        proxy.cut()
        self.wait_said(server, "bob", "is lost")
        self.open_gate()
        self.wait_states("drdr")
        proxy.mend()
        self.assertEachRanOnce("dddd", "2 alice", "3 bob", "4 alice", "5 bob")

# -- before the release --------------------------------------------------------------------------------------

PAIR = ("#RUN together=pair host=alice,bob", f". {RAN}", f". {RAN}", f". {RAN}")


class BeforeTheRelease(ByHandCase):
    """Somebody is lost while shells are held: no command has run; all are tried again when all are there."""

    def test_a_client_is_killed_that_the_others_wait_for(self) -> None:
        server, alice, bob = self.hold(*PAIR, states="rrr")
        held, = self.shells(alice)
        bob.kill()
        self.wait_states("...")
        wait_until(lambda: not alive(held), what="the held shell is stopped")
        self.assertEqual((self.ran(), alice.poll()), ([], None))
        if FULL:                                # groups are not tried again at once
            self.join(server, "bob")
            self.assertEachRanOnce("ddd", "2 alice", "3 bob", "4 alice")

    def test_a_client_is_killed_that_holds_shells_of_which_none_outlives_it(self) -> None:
        """Neither because of the other, nor of a job that lives on."""
        server = self.serve_lines("#RUN host=alice", f". {WAITING}")
        self.join_stopped(server, "bob")
        alice = self.join(server, "alice", "-j3")
        self.wait_states("r")
        self.append("#RUN together=trio host=alice,127.0.0.1,bob", *[f". {RAN}"] * 3)
        shells = self.wait_held(alice, "rrrr", 3)
        alice.kill()
        wait_until(lambda: sum(map(alive, shells)) == 1, what="the held shells have ended")
        self.wait_states("r...")
        self.assertEqual(self.ran(), [])

    def test_a_client_keeps_no_descriptor_of_a_shell_that_it_has_held(self) -> None:
        """The shell is killed by somebody; or the client is told to stop it."""
        server = self.serve_lines("x true")
        alice = self.join(server, "alice")
        self.wait_quiet(server, alice, "alice")
        idle = self.descriptors(alice)
        self.append(*PAIR)
        for is_killed in True, False:
            with self.subTest(is_killed=is_killed):
                bob = self.fake(server, "bob", new_key())
                self.claim_by_hand(bob)
                self.hold_by_hand(bob)
                held = self.wait_held(alice, "xrrr")
                self.assertGreater(self.descriptors(alice), idle)
                if is_killed:
                    send(signal.SIGKILL, held)
                    bob.hear("stop")
                bob.close()
                self.wait_states("x...")
                wait_until(lambda: self.descriptors(alice) == idle, what="as many files are open as before")

    def descriptors(self, client: Program) -> int:
        return len(os.listdir(f"/proc/{client.pid}/fd"))

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_a_client_is_cut_off_and_comes_back(self) -> None:
        server = self.serve_lines(*PAIR)
        proxy = self.proxy_of(server)
        self.wait_quiet(server, self.join(server, "bob", "--port", proxy.port), "bob")
        proxy.freeze()
        alice = self.join(server, "alice")
        held, = self.wait_held(alice, "rrr")
        proxy.cut()
        self.wait_states("...")
        wait_until(lambda: not alive(held), what="the held shell is stopped")
        self.assertEqual(self.ran(), [])
        proxy.mend()
        proxy.thaw()
        self.assertEachRanOnce("ddd", "2 alice", "3 bob", "4 alice")

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_a_client_that_the_release_does_not_reach_has_vanished(self) -> None:
        server = self.serve_lines("#RUN together=trio host=alice,bob,carol min-hosts=2", *[f". {RAN}"] * 6)
        proxy = self.proxy_of(server)
        carol = self.join_stopped(server, "carol")
        alice, bob = self.join(server, "alice"), self.join(server, "bob", "--port", proxy.port)
        for client in alice, bob:
            self.wait_held(client, "rrrrrr")
        for client, name in (alice, "alice"), (bob, "bob"):
            self.wait_quiet(server, client, name)
        proxy.freeze(TO_CLIENT)
        carol.send_signal(signal.SIGCONT)
        wait_until(lambda: {"2 alice", "4 carol"} <= set(self.ran()), what="the others have started")
        self.assertEqual(self.ran_on("bob"), [])
        proxy.cut()
        proxy.thaw()
        proxy.mend()
        self.assertEachRanOnce("dedddd", "2 alice", "4 carol", "5 alice", "6 bob", "7 carol")
        self.assertResults(server, "trio", True, ("bob", "vanished", RAN),
                           *[(host, "exit 0", RAN) for host in ("alice", "bob", "carol") * 2][1:])

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_a_signal_to_a_client_that_holds_a_shell(self) -> None:
        """It leaves without having run the command, and so it does if it is killed; it may come again."""
        for number, code in (signal.SIGTERM, 143), (signal.SIGHUP, 1), (signal.SIGKILL, -signal.SIGKILL):
            with self.subTest(number):
                (self.dir / "ran").unlink(missing_ok=True)
                server, alice, bob = self.hold(*PAIR, states="rrr")
                self.assertEqual(self.stop(alice, number).code, code)
                self.assertNoJobLeft()
                self.wait_states("...")
                bob.send_signal(signal.SIGCONT)
                clients = bob, self.join(server, "alice")
                self.assertEachRanOnce("ddd", "2 alice", "3 bob", "4 alice")
                for program in (*clients, server):
                    self.stop(program)

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_a_held_shell_that_is_killed_by_somebody_does_not_start_the_others_alone(self) -> None:
        _server, alice, bob = self.hold(*PAIR, states="rrr")
        send(signal.SIGKILL, self.shells(alice))
        self.wait_states("...")
        bob.send_signal(signal.SIGCONT)
        self.assertEachRanOnce("ddd", "2 alice", "3 bob", "4 alice")

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_a_client_that_connects_anew_before_its_loss_was_noticed_stops_the_others(self) -> None:
        """It holds a shell, and the server does not know that the old connection is dead."""
        server = self.serve_lines("#RUN together=pair host=alice,bob", f". {RAN}", f". {RAN}")
        key = new_key()
        alice, bob = self.fake_pair(server, key)
        first, second = self.hold_by_hand(alice), self.hold_by_hand(bob)
        alice.say(dict(type="ready", id=first["id"]))
        alice = self.fake(server, "alice", key, first)
        bob.say(dict(type="ready", id=second["id"]))
        self.assertEqual(bob.hear("go", "stop"), dict(type="stop", id=second["id"], cancelled=False))
        alice.hear("welcome")
        for peer, job in (alice, first), (bob, second):
            peer.say(release(1, job["id"]), dict(type="claim", request=2, want=1, last=False))
        again = [(peer, self.hold_by_hand(peer)["id"]) for peer in (alice, bob)]
        for peer, job in again:
            peer.say(dict(type="ready", id=job))
        self.assertEqual([peer.hear("go", "stop")["id"] for peer, _ in again], [job for _, job in again])

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_hup_to_the_server_while_shells_are_held(self) -> None:
        server, _alice, bob = self.hold(*PAIR, states="rrr")
        server.send_signal(signal.SIGHUP)
        bob.send_signal(signal.SIGCONT)
        self.assertIn(self.finish(server).code, (0, 1))
        self.assertEqual(len(self.ran()), len(set(self.ran())))
        self.assertIn((self.states(), self.ran() != []), (("...", False), ("ddd", True)))


class Cancelled(ByHandCase):
    """Lines of a group that has begun, or is about to, are set to x (runset4.py --cancel)."""
    PATCH = HASTY

    def cancel(self, *lines: object) -> None:
        """Cancel these lines, and wait until nobody has them locked."""
        cancelling = self.start_patched(UNTIL_THEY_END, "--cancel", "runs.txt", *lines, script=RUNSET)
        self.assertEqual(self.finish(cancelling).code, 0)

    def finish_first(self, server: Server, key: str) -> tuple[Peer, dict[str, Any]]:
        """A client by hand, alice, whose first job of a group has ended; the next one that it was sent."""
        alice = self.fake(server, "alice", key)
        self.claim_by_hand(alice)
        first = self.hold_by_hand(alice)["id"]
        alice.say(dict(type="ready", id=first))
        self.assertEqual(alice.hear("go", "stop")["type"], "go")
        alice.say(dict(type="finish", n=1, id=first, state="d", how="exit 0", lost=False))
        return alice, alice.hear("jobs")["jobs"][0]

    def test_cancelled_lines_are_not_started_whether_the_first_ends_or_is_cancelled_too(self) -> None:
        lines = ["#RUN together=solo host=alice", f". {HOLDS}", *[f". {RAN}"] * 3]
        server = self.serve_lines(*lines)
        self.join(server, "alice")
        self.wait_up(2)
        self.cancel(3, 4)
        self.open_gate()
        self.wait_states("dccd")
        (self.dir / "go").unlink()
        self.append("#RUN barrier", *lines)
        self.wait_up(8)
        self.cancel("8-11")
        self.assertEachRanOnce("dccdcccc", "2 alice", "5 alice", "8 alice")
        self.assertResults(server, "solo", True, ("alice", "exit 0", HOLDS), ("alice", "cancelled", RAN),
                           ("alice", "cancelled", RAN), ("alice", "exit 0", RAN))
        self.assertIn(b"2 done, 6 cancelled", self.stop(server).err)

    def test_all_lines_are_cancelled_while_clients_hold_shells(self) -> None:
        server, alice, bob = self.hold("#RUN together=pair host=alice,bob", *[f". {RAN}"] * 5, states="rrrrr")
        self.cancel("2-6")
        self.wait_held(alice, "ccccc", count=0)
        bob.send_signal(signal.SIGCONT)
        self.append("#RUN host=bob", f". {RAN}")
        self.assertEachRanOnce("cccccd", "8 bob")
        # One that goes back, for others of the group are cancelled, just before it would be, counts as not
        # begun
        self.assertRegex(self.stop(server).err, rb"1 done, [1-5] cancelled in ")

    def test_a_cancelled_line_that_has_not_begun_does_not_make_the_host_count_as_lost(self) -> None:
        server = self.serve_lines("#RUN together=solo host=alice", *[f". {RAN}"] * 3)
        alice, job = self.finish_first(server, new_key())
        second = job["id"]
        self.set_state(3, "x")
        self.assertEqual(alice.hear("stop"), dict(type="stop", id=second, cancelled=True))
        alice.say(release(2, second))
        self.assertEqual(alice.hear("jobs")["jobs"][0]["number"], 4)
        self.assertEqual(self.states(), "dxr")

    def test_a_line_that_is_lost_on_its_way_and_cancelled_meanwhile_is_not_sent_again(self) -> None:
        server = self.serve_lines("#RUN together=solo host=alice", *[f". {RAN}"] * 4)
        key = new_key()
        alice, second = self.finish_first(server, key)
        self.assertEqual(second["number"], 3)
        alice.close()
        self.wait_said(server, "alice", "is lost")
        for line in 3, 4:
            self.set_state(line, "x")
        # the server has seen both in one look, and gives up that one of which no client can know
        wait_until(lambda: 4 not in locked_lines(self), what="the server sees that the lines are cancelled")
        alice = self.fake(server, "alice", key)
        self.assertEqual(alice.hear("jobs")["jobs"][0]["number"], 5)
        wait_until(lambda: 3 not in locked_lines(self), what="the line is given up")
        self.assertEqual(self.states(), "dxxr")


class Stopped(ByHandCase):
    """Too many hosts of a group are lost."""

    def test_a_line_that_was_lost_on_its_way_is_not_new_again(self) -> None:
        server = self.serve_lines("#RUN together=pair host=alice,bob", *[f". {RAN}"] * 4)
        key = new_key()
        alice, bob = self.fake_pair(server, key)
        held = [(peer, self.hold_by_hand(peer)["id"]) for peer in (alice, bob)]
        for peer, job in held:
            peer.say(dict(type="ready", id=job))
        for peer, _ in held:
            self.assertEqual(peer.hear("go", "stop")["type"], "go")
        (_, first), (_, second) = held
        alice.say(dict(type="finish", n=1, id=first, state="d", how="exit 0", lost=False))
        self.assertEqual(alice.hear("jobs")["jobs"][0]["number"], 4)
        alice.close()
        self.wait_said(server, "alice", "is lost")
        bob.say(dict(type="finish", n=1, id=second, state="!", how="timeout after 1s", lost=True))
        self.wait_states("d!re")
        alice = self.fake(server, "alice", key)
        alice.hear("welcome")
        self.wait_states("d!ee")
        self.assertResults(server, "pair", False, ("alice", "exit 0", RAN), ("alice", "stopped", RAN),
                           ("bob", "timeout after 1s", RAN), ("bob", "stopped", RAN))


class Reserved(ByHandCase):
    """All hosts of a group are there, and some are busy."""
    PATCH = LOOKS

    def test_a_host_that_is_free_waits_for_the_others_and_gets_no_line_below(self) -> None:
        server = self.serve_lines("#RUN host=alice", f". {RAN}", "#RUN host=bob", f". {RAN}",
                                  "#RUN together=pair host=alice,bob", *[f". {RAN}"] * 2, "#RUN", f". {RAN}")
        peers = self.fake_pair(server)
        busy = [peer.hear("jobs")["jobs"][0]["id"] for peer in peers]
        for peer, job in zip(reversed(peers), reversed(busy)):
            self.append(f". {RAN}")
            self.wait_looked()              # nobody has taken it, though bob could in the second round
            peer.say(dict(type="finish", n=1, id=job, state="d", how="exit 0", lost=False),
                     dict(type="claim", request=2, want=1, last=False))
        for peer in peers:
            self.hold_by_hand(peer)
        self.assertEqual(self.states(), "ddrr...")


class GivenBack(ByHandCase):
    """A client gives back a job whose shell it has held."""
    # nothing is written before the test says so
    PATCH = f"""{THREADED}
finish = runmaker4.JobQueue.finish
def wait_and_finish(self, *rest):
    while not os.path.exists("writes"):
        time.sleep(0.01)
    return finish(self, *rest)
runmaker4.JobQueue.finish = wait_and_finish
"""

    def test_the_others_do_not_begin_while_that_is_written(self) -> None:
        server = self.serve_lines("#RUN together=pair host=alice,bob", f". {RAN}", f". {RAN}")
        alice, bob = self.fake_pair(server)
        first, second = self.hold_by_hand(alice), self.hold_by_hand(bob)
        alice.say(dict(type="ready", id=first["id"]), release(1, first["id"]), dict(type="ping", request=2))
        alice.hear("pong")
        bob.say(dict(type="ready", id=second["id"]), dict(type="ping", request=2))
        bob.hear("pong")
        (self.dir / "writes").touch()
        self.assertEqual(bob.hear("go", "stop"), dict(type="stop", id=second["id"], cancelled=False))
        self.wait_states("..")


class CalledOff(ByHandCase):
    """A group whose lines are all claimed, and that cannot begin any more."""
    # a claim of line 3 comes back only when the test says so
    PATCH = f"""{THREADED}
claim = runmaker4.JobQueue.claim
def claim_and_wait(self, line, *rest):
    found = claim(self, line, *rest)
    while line.number == 3 and not os.path.exists("claimed"):
        time.sleep(0.01)
    return found
runmaker4.JobQueue.claim = claim_and_wait
"""

    def test_a_client_that_is_lost_while_lines_are_claimed_keeps_the_others_from_getting_theirs(self) -> None:
        server = self.serve_lines("#RUN together=pair host=alice,bob", *[f". {RAN}"] * 4)
        alice, bob = self.fake_pair(server)
        self.wait_states("rrr.")                    # hosts are served one after the other
        bob.close()
        self.wait_said(server, "bob", "is lost")
        (self.dir / "claimed").touch()
        self.wait_states("....")
        again = self.fake(server, "bob", new_key())
        self.claim_by_hand(again)
        for peer in alice, again:
            self.assertTrue(peer.hear("jobs")["jobs"][0]["hold"])


@unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
class SlowFile(ByHandCase):
    """All that is done with the file takes a while, and is done in a thread, as on a network file system."""
    PATCH = f"""{THREADED}
call = runmaker4.FileExecutor.call
slow = lambda function, *args: (time.sleep(0.015), function(*args))[1]
runmaker4.FileExecutor.call = lambda self, *args: call(self, slow, *args)
"""

    def test_a_group_that_runs_when_the_server_gets_a_hup_runs_to_its_end(self) -> None:
        server = self.serve_lines("#RUN together=pair host=alice,bob", *[f". {HOLDS}"] * 2, *[f". {RAN}"] * 4)
        clients = [self.start_client(server, "--name", name, env={"WHO": name}) for name in ("alice", "bob")]
        self.wait_up(2, 3)
        server.send_signal(signal.SIGHUP)
        self.open_gate()
        self.assertEachRanOnce("dddddd", "2 alice", "3 bob", "4 alice", "5 bob", "6 alice", "7 bob")
        self.assertEqual(self.finish(server).code, 0)
        for client in clients:
            self.finish(client)


class ServerDies(GroupCase):
    """kill -9 of the server in the middle of a group: each command runs at most once, unless its line is e.

    So are those after the grace that no client had been told of: the next server cannot know that.
    """

    def test_before_the_release(self) -> None:
        server, _alice, bob = self.hold(*PAIR, states="rrr")
        server.kill()
        bob.send_signal(signal.SIGCONT)
        again = self.serve_again(server.port)
        self.wait_states("..r")
        again.kill()
        self.serve_again(server.port, grace=VANISHES)
        self.assertEachRanOnce("dde", "2 alice", "3 bob")

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_before_the_release_and_a_client_comes_back_later(self) -> None:
        server, _alice, bob = self.hold("#RUN together=pair host=alice,bob", f". {HOLDS}", f". {HOLDS}",
                                        states="rr")
        server.kill()
        again = self.serve_again(server.port)
        self.wait_there(again, "alice")
        self.check_nothing_starts(seconds=TRIED_AGAIN)
        bob.send_signal(signal.SIGCONT)
        self.wait_up(2, 3)
        self.open_gate()
        self.assertEachRanOnce("dd", "2 alice", "3 bob")

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_while_the_commands_run(self) -> None:
        """Further lines of a host still wait for its first, although its client has a free slot."""
        server = self.serve_lines("#RUN together=pair host=alice,bob", f". {HOLDS}", f". {HOLDS}", f". {RAN}",
                                  f". {RAN}")
        for name in ("alice", "bob"):
            self.join(server, name, "-j2")
        self.wait_up(2, 3)
        server.kill()
        again = self.serve_again(server.port)
        self.wait_there(again, "alice", "bob")
        self.check_nothing_starts("2 alice", "3 bob", seconds=TRIED_AGAIN)
        self.open_gate()
        wait_until(lambda: self.states().startswith("dd"), what="they have ended")
        again.kill()
        self.serve_again(server.port, grace=VANISHES)
        self.assertAtMostOnce()
        self.assertEqual((self.states()[:2], len(self.states())), ("dd", 4))

    def test_a_signal_gives_back_what_no_client_has_been_told_of(self) -> None:
        server = self.serve_lines("#RUN together=pair host=alice,bob", f". {HOLDS}", f". {HOLDS}", f". {RAN}",
                                  f". {RAN}")
        self.join_all(server, "alice", "bob")
        self.wait_up(2, 3)
        self.assertIn(b"; lines 2, 3 kept", self.stop(server).err)
        self.assertEqual(self.states(), "rr..")
        self.serve_again(server.port)
        self.open_gate()
        self.assertEachRanOnce("dddd", "2 alice", "3 bob", "4 alice", "5 bob")

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_again_and_again(self) -> None:
        server = self.serve_lines(*groups(12, f"{RAN}; sleep 0.1"))
        self.join_all(server, "alice", "bob", "carol")
        chance = random.Random(7)
        for _ in range(8):
            time.sleep(chance.uniform(0.2, 0.8))
            server.kill()
            server = self.serve_again(server.port, grace=3)
        self.assertAtMostOnce()


@unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a quarter of a minute")
class Storm(GroupCase):
    """Connections are cut at any moment, for less than the grace."""

    def test_no_command_runs_twice_and_only_hosts_that_missed_their_start_have_vanished(self) -> None:
        server = self.serve_lines(*groups(20, f"{RAN}; sleep 0.02"))
        proxies = [self.proxy_of(server) for _ in range(3)]
        for name, proxy in zip(("alice", "bob", "carol"), proxies):
            self.join(server, name, "--port", proxy.port)
        chance, end = random.Random(7), time.monotonic() + 600
        while set(self.states()) & set(".r"):
            self.assertLess(time.monotonic(), end, self.states())
            proxy = chance.choice(proxies)
            time.sleep(chance.uniform(0, 0.6))
            proxy.cut()
            time.sleep(chance.uniform(0, 0.1))
            proxy.mend()
        self.assertAtMostOnce()
        self.assertGreater(self.states().count("d"), 20)
        for line in server.out.decode().splitlines():
            if line[0] == " " and " exit 0 " not in line:
                self.assertRegex(line, r"^ +\w+ +(vanished|stopped) ")


# -- NetJobs -------------------------------------------------------------------------------------------------

CONFIG = r"""
# two tests, as NetJobs reads them
first test:
-generaltimeout : 500s
-minhosts: 1

   alice  :   "echo $JOB_ID $WHO >>ran; sleep 600"
-timeout: 3s
alice: "echo $JOB_ID $WHO >>ran"
bob: "echo $JOB_ID $WHO >>ran; echo 'hello, world'"
end

second:
-minhosts: all
127.0.0.1: echo $JOB_ID $WHO >>ran
end
"""


class FromNetJobs(GroupCase):
    """A configuration of NetJobs, from its file to the results of each test."""

    def test_two_tests_one_after_the_other_with_time_outs_and_min_hosts(self) -> None:
        self.write(CONFIG, "tests.conf")
        converted = self.run_script(PYTHON, ROOT / "docs/convert.py", "netjobs", "tests.conf")
        self.write(converted.out, "list")
        added = self.run_script(RUNSET, "-q", "runs.txt", "--add-list", "list")
        self.assertEqual((added.code, added.err), (0, b""))
        self.before = self.read()
        server = self.start_server("-l", "log")
        self.join_all(server, "alice", "bob")
        self.wait_states("!ddd")
        self.assertEqual([len(self.ran()), len(set(self.ran()))], [4, 4])
        lines = [number for number, line in enumerate(self.read().splitlines(), 1)
                 if line[:2] in (b"d ", b"! ")]
        self.assertEqual((self.ran_on("alice")[:2], self.ran_on("bob")[:1]), (lines[:2], lines[2:3]))
        self.assertEqual(int(self.ran()[-1].split()[0]), lines[3])
        self.assertResults(server, "first_test", True, ("alice", "timeout after 3s", f"{RAN}; sleep 600"),
                           ("alice", "exit 0", RAN), ("bob", "exit 0", f"{RAN}; echo 'hello, world'"))
        self.assertResults(server, "second", True, ("127.0.0.1", "exit 0", RAN))
        self.assertIn(b"hello, world", self.read("log"))
