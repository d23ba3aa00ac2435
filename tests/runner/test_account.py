"""Promise: exit status and closing line of a runner, client or server speak of the file."""
import os
import re
import signal
import subprocess
import threading
import unittest
from typing import Any

import runmaker4
from tests.support.case import GATE
from tests.support.fake_server import FakeServer
from tests.support.messages import JOBS, WELCOME
from tests.support.over_tcp import OverTcp
from tests.support.peer import Peer
from tests.support.processes import DEADLINE, Ended, Process, wait_until
from tests.support.runs import HASTY, WAITING, RunCase
from tests.support.scripts import FULL, RUNMAKER
from tests.support.tcp import TcpCase
from tests.support.values import present
from tests.support.wire import TOKEN

Message = dict[str, Any]


def closing(ended: Ended) -> str:
    """The closing line without program, file and time."""
    lines = [line for line in ended.err.decode().splitlines() if not line.startswith("next: runwait4.py ")]
    line = lines[-1].split(": ", 2)[2]
    return re.sub(r" in \d+(\.\d+)?[smh]( \d\d[smh])?", " in T", line)


def drain(case: RunCase, runner: Process, number: signal.Signals = signal.SIGHUP) -> Ended:
    """Have a runner start no more jobs while its first one runs; how it ends."""
    case.wait_up(1, runner=runner)
    runner.send_signal(number)
    case.open_gate()
    return case.finish(runner)


class OfTheFile(RunCase):
    """A runner that has run all it could exits with 0 only if the file has nothing bad, or left for it."""
    # What stands there, with which options, the exit status, and the closing line
    FILES = (
        (". true\nd a\n", (), 0, "1 done in T"),
        ("d a\nx b\n", (), 0, "nothing to do: 1 done, 1 held"),
        (". true\nx b\n", (), 0, "1 done in T; in all 1 done, 1 held"),
        ("", (), 0, "nothing to do"),
        ("x a\n# b\n", (), 0, "nothing to do: 1 held"),
        ("d a\n! b\n", (), 1, "nothing to do: 1 done, 1 failed (line 2); -r runs them again"),
        (". true\ne b\n", (), 1, "1 done in T; in all 1 done, 1 error (line 2); -r runs them again"),
        (". true\n. false\n! a\n", ("--plain",), 1,
         "1 done, 1 failed in T (line 2); in all 1 done, 2 failed; -r runs them again"),
        ("! true\n. false\n", ("-r",), 1, "1 done, 1 failed in T (line 2); -r runs them again"),
        ("! true\n", ("-r",), 0, "1 done in T"),
        # jobs for others do not count ...
        ("#RUN host=nobody\n. a\n#RUN\n. true\n", (), 0, "1 done in T; in all 1 done, 1 new"),
        ("#RUN together=all host=*\n. a\n. b\n", (), 0, "nothing to do: 2 new"),
        (". true\n#RUN end\n. a\n", ("--follow",), 0, "1 done in T; in all 1 done, 1 new"),
        (". true\n. a\n", ("-1",), 0, "1 done in T; in all 1 done, 1 new"),
        (". true\n", ("-1", "-j2"), 0, "1 done in T"),
        # what -1 leaves since a slot has not had its job does count
        (". a\n", ("-1", "--walltime=1h", "--timeout=5h"), 1, "nothing done; in all 1 new"),
        (". exit 127\n. a\n", ("-1", "--slots=s", "--slot-errors=1"), 1,
         "0 done, 1 failed in T (line 1); in all 1 failed, 1 new; -r runs them again"),
        # what a check stops counts, as does what failed in a group
        ("! a\n#RUN barrier check\n. b\n", (), 1,
         "nothing done; in all 1 failed (line 1), 1 new; -r runs them again"),
        ("#RUN together=all host=*\n! a\n", (), 1, "nothing to do: 1 failed (line 2)"),
        ("#RUN slots=5\n. a\n", ("-j2",), 0, "nothing to do: 1 new; line 2 needs 5 slots of 2"),
        ("#RUN host=bob\n. a\n#RUN slots=3 host=*\n. b\n", ("--plain",), 0,
         "nothing to do: 2 new; line 2 needs host bob"),
        ("#RUN host=bob\n. a\n#RUN slots=3\n. b\n", ("-j3", "-1", "--walltime=1h", "--timeout=5h"), 1,
         "nothing done; in all 2 new"),
        # what -r runs is told however many of groups stand above it
        ("#RUN together=all host=*\n" + "! a\n" * 20 + "#RUN\n! b\n" + "! c\n" * 20, (), 1,
         "nothing to do: 41 failed (lines 2, 3, 4, 5, 6, 7, 8, 9, ...); -r runs them again"),
        # lines that nobody understands are named again, and change no exit status
        (". true\nprose\n", (), 1, "1 done in T; line 2 is neither a job nor a comment"),
        ("d a\n! b\np\nq\n", (), 1, "nothing to do: 1 done, 1 failed (line 2); -r runs them again; line 3 is "
         "neither a job nor a comment"),
        # a job that fails is the one job of -1, too
        (". false\n. a\n", ("-1",), 1,
         "0 done, 1 failed in T (line 1); in all 1 failed, 1 new; -r runs them again"),
        # a runner without a job says why the first new line is not for it
        ("d a\n#RUN memory=2G\n. a\n#RUN host=b\n. b\n", ("--memory=1G",), 0,
         "nothing to do: 1 done, 2 new; line 3 needs 2G of 1G"),
        ("#RUN end\n#RUN slots=9\n. a\n", ("--follow",), 0,
         "nothing to do: 1 new; line 3 is below a #RUN end"),
    )

    def test_all_sorts_of_files(self) -> None:
        for number, (text, *_) in enumerate(self.FILES):
            self.write(text, f"{number}.txt")
        calls = ((RUNMAKER, "-q", *file[1], f"{number}.txt") for number, file in enumerate(self.FILES))
        for (text, options, code, line), (_, ended) in zip(self.FILES, self.run_all(calls)):
            with self.subTest(text=text, options=options):
                self.assertEqual((ended.code, closing(ended)), (code, line), ended.err)

    def test_a_failure_that_somebody_else_has_mended_is_none(self) -> None:
        self.jobs("[ -e mended ]", GATE)
        runner = self.start(RUNMAKER, "-q", "-j2", "runs.txt")
        self.wait_states("!r")
        self.write("", "mended")
        self.run_jobs("-r", "-q", "-1")
        self.open_gate()
        self.assertEqual(self.finish(runner).code, 0)
        self.assertEqual(self.states(), "dd")

    def test_what_another_runner_runs_does_not_count_and_its_failure_does(self) -> None:
        self.jobs(f"{WAITING}; false", "true")
        other = self.start_jobs("-q")
        ended = self.run_jobs("-q", "-1")
        self.assertEqual((ended.code, closing(ended)), (0, "1 done in T; in all 1 done, 1 running"))
        self.open_gate()
        self.assertEqual(self.finish(other).code, 1)

    def test_a_drained_runner_knows_what_dead_ones_have_left(self) -> None:
        self.write(f". {WAITING}\nr a\n#RUN host=nobody\nr b\n")
        ended = drain(self, self.start_patched(HASTY, "-q", "runs.txt"))
        self.assertEqual((ended.code, closing(ended)),
                         (1, "1 done in T; in all 1 done, 2 error (lines 2, 4); -r runs them again"))

    def test_jobs_below_many_directives_for_others(self) -> None:
        """Settings that do not fit are passed over, which takes little time."""
        text = "".join(f"#RUN host=h{number}\n" + f". {number}\n" * 100 for number in range(100))
        self.write(f". true\n{text}#RUN\n! a\n#RUN together=g host=a\ne b\n")
        ended = self.run_jobs("-q")
        self.assertEqual(closing(ended), "1 done in T; in all 1 done, 1 failed, 1 error (lines 10103, "
                                         "10105), 10000 new; -r runs them again")


class NoFile(RunCase):
    """A file that cannot be read at the end: what it holds is not known, and nothing is well."""
    GONE = f"{HASTY}runmaker4.JobReader.MAX_LOOKS = 1\n"
    REMOVED = f"""{GONE}
import os
finish = runmaker4.JobQueue.finish
def finish_and_remove(*args):
    error = finish(*args)
    os.unlink("runs.txt")
    return error
runmaker4.JobQueue.finish = finish_and_remove
"""

    def test_a_file_that_has_gone_is_said(self) -> None:
        self.jobs(WAITING)
        ended = drain(self, self.start_patched(self.REMOVED, "-q", "runs.txt"))
        self.assertEqual(ended.code, 1)
        self.assertTrue(closing(ended).endswith("; the state of the file is unknown"), ended.err)

    def test_a_file_without_jobs_is_said_to_have_none(self) -> None:
        for command in ": >runs.txt", ": >runs.txt; exit 1":
            self.jobs(command)
            ended = self.finish(self.start_patched(self.GONE, "-q", "runs.txt"))
            self.assertEqual((ended.code, closing(ended)),
                             (1, "0 done, 1 not written down in T (line 1); in all no jobs"))

    def test_a_file_that_never_came_has_nothing_left(self) -> None:
        runner = self.start(RUNMAKER, "--follow", "-q", "runs.txt", stderr=subprocess.PIPE)
        self.assertIn(b"waiting for it", present(runner.stderr).readline())
        ended = self.stop(runner, signal.SIGHUP)
        self.assertEqual((ended.code, closing(ended)), (0, "nothing to do"))

    def test_a_file_in_a_directory_that_is_not_there_is_refused(self) -> None:
        """It is mistyped, or not mounted: nothing is made in its place."""
        for options in (), ("--no-records",), ("--outdir", "out"):
            ended = self.run_script(RUNMAKER, "--follow", *options, "nowhere/runs.txt")
            self.assertRefused(ended, "nowhere/runs.txt: no such file or directory")
        self.assertEqual(os.listdir(self.dir), [])

    HANGING = """
import runmaker4, time
runmaker4.find_mount = lambda path: runmaker4.Mount("nfs4", frozenset())
def hang(file, consumers):
    open("hangs", "w").close()
    time.sleep(600)
runmaker4.JobReader.summarize = hang
runmaker4.Runner.MAX_ANSWER_SECONDS = 0.1
"""

    def test_a_file_system_that_does_not_answer_holds_up_no_end(self) -> None:
        self.jobs("true", "true")
        runner = self.start_patched(self.HANGING, "-q", "-1", "runs.txt")
        wait_until(lambda: self.exists("hangs"), what="the file is to be counted")
        runner.send_signal(signal.SIGINT)
        ended = self.finish(runner)
        self.assertEqual((ended.code, closing(ended)), (130, "1 done in T; the state of the file is unknown"))


class OfTheServersFile(OverTcp, RunCase):
    """A client says what its server has counted."""
    test_all_sorts_of_files = OfTheFile.test_all_sorts_of_files
    FILES = tuple(OfTheFile.FILES[at] for at in (7, 15, 19, 22, 24, -1, *(5, 10, 13, 17, 20, 21) * FULL))


class LateJobs(TcpCase):
    """A job that comes while a client leaves is given back before the file is counted for it."""

    def test_it_is_new_and_left(self) -> None:
        has_claimed = threading.Event()

        def count(new: int, running: int) -> Message:
            now = dict(new=new, running=running, done=0, failed=0, error=0, held=0)
            account = dict(now=now, bad=[], again=False, left=new > 0, first_stray=0, stopped=False,
                           lack="")
            return dict(type="account", account=account)

        def serve(peer: Peer) -> None:
            peer.prove().hear("hello")
            claim = peer.say(WELCOME).hear("claim")
            has_claimed.set()
            peer.hear("account")
            peer.say({**JOBS, "request": claim["request"]}, count(new=0, running=1))
            finish = peer.hear("finish")        # a long count has begun before that
            peer.say(count(new=0, running=1), dict(type="ack", n=finish["n"])).hear("account")
            peer.say(count(new=1, running=0)).rest(60)

        self.write(TOKEN, ".runmaker4.token").chmod(0o600)
        with FakeServer(serve) as server:
            client = self.start_client(server, "-q")
            self.assertTrue(has_claimed.wait(DEADLINE))
            ended = self.stop(client, signal.SIGHUP)
        self.assertEqual((ended.code, closing(ended)), (1, "nothing done; in all 1 new"))


class LeavingServer(TcpCase):
    """A server's end is told to its clients with what the file holds; nobody takes it for a failure."""

    def test_when_all_is_done_all_exit_with_0(self) -> None:
        self.jobs(*[GATE] * 4, *["true"] * 16)     # all slots wait: no client leaves before both are there
        server = self.start_server("--exit-when-done")
        clients = [self.start_client(server, "-q", "-j2", *options) for options in ((), ("--follow",))]
        self.wait_clients(server, 2)
        self.open_gate()
        ended = [self.finish(program) for program in (server, *clients)]
        self.assertEqual([one.code for one in ended], [0, 0, 0])
        self.assertEqual(closing(ended[0]), "20 done in T")
        others = r"(; in all \d+ done, \d+ running)?"      # it leaves when no line is new
        self.assertRegex(closing(ended[1]), rf"^(\d+ done in T|nothing done){others}$|^nothing to do$")
        self.assertRegex(closing(ended[2]), r"^\d+ done in T$|^nothing to do$")

    def test_a_failure_does_not_keep_it_once_a_client_was_there(self) -> None:
        self.jobs("true", "exit 3")
        server = self.start_server("--exit-when-done")
        self.assertEqual(self.run_client(server, "-q").code, 1)
        ended = self.finish(server)
        self.assertEqual(ended.code, 1)
        self.assertIn("1 done, 1 failed in T (line 2)", closing(ended))

    def test_a_claim_that_comes_with_the_request_for_the_count_takes_no_line(self) -> None:
        together = """
import importlib
server = importlib.import_module("runmaker4-server")
handle, claims = server.ClientLink.handle, []
def handle_late(link, message):
    kind = message.text("type", 16)
    if kind == "claim" and not claims:
        claims.append(message)
        return
    if kind == "account":
        handle(link, claims[0])
    handle(link, message)
server.ClientLink.handle = handle_late
"""
        self.jobs("true")
        client = self.run_client(self.start_server(patch=together), "-1", "-q", "--walltime=1", "--timeout=5")
        self.assertEqual((client.code, closing(client)), (1, "nothing done; in all 1 new"))

    def test_what_was_lost_and_run_again_counts_no_more(self) -> None:
        self.jobs(WAITING)
        server = self.start_server("--grace=0.1")
        self.start_client(server, up=[1]).kill()
        self.wait_states("e")
        self.open_gate()
        client = self.run_client(server, "-q", "--resume")
        self.assertEqual((client.code, closing(client)), (0, "1 done in T"))
        ended = self.stop(server, signal.SIGHUP)
        self.assertEqual((ended.code, closing(ended)), (0, "1 done in T"))

    def test_drained_with_jobs_left_it_exits_with_1(self) -> None:
        self.jobs("true")
        ended = self.stop(self.start_server(), signal.SIGUSR1)
        self.assertEqual((ended.code, closing(ended)), (1, "nothing done; in all 1 new"))

    def test_after_a_signal_that_kills_it_speaks_of_the_file(self) -> None:
        self.jobs(WAITING, "true")
        server = self.start_server()
        self.start_client(server, up=[1])
        ended = self.stop(server, signal.SIGTERM)
        self.assertEqual((ended.code, closing(ended)), (143, "nothing done; in all 1 running, 1 new"))

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_a_client_that_cannot_ask_does_not_say_that_all_is_well(self) -> None:
        self.jobs(f"{WAITING}")
        server = self.start_server()
        client = self.start_client(server, "-q", "--give-up=0.5", up=[1])
        server.kill()
        self.wait_said(client, "trying again")
        self.open_gate()
        ended = self.finish(client)
        self.assertEqual(ended.code, 1)
        self.assertTrue(closing(ended).endswith("; the state of the file is unknown"), ended.err)

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_a_client_that_is_stopped_before_it_is_welcome_asks_all_the_same(self) -> None:
        self.write("d true\n")
        server = self.start_server()
        slow = ("import runmaker4; receive = runmaker4.Link.data_received; runmaker4.Link.data_received = "
                "lambda link, data: link.loop.call_later(0.7, receive, link, data)")
        client = self.start_client(server, "-q", "--follow", patch=slow)
        self.wait_clients(server, 1)
        ended = self.stop(client, signal.SIGHUP)
        self.assertEqual((ended.code, closing(ended)), (0, "nothing to do"), ended.err)

    def test_jobs_for_other_clients_do_not_count(self) -> None:
        self.write("#RUN host=bob\n. true\n#RUN\n. true\n")
        server = self.start_server()
        alice = self.run_client(server, "-q", "--name=alice")
        self.assertEqual((alice.code, closing(alice)), (0, "1 done in T; in all 1 done, 1 new"))
        self.write("#RUN host=bob\n. : >up.2; sleep 600\n. true\n")
        bob = self.start_client(server, "-q", "--name=bob", up=[2])
        ended = self.stop(bob, signal.SIGINT)
        self.assertEqual((ended.code, closing(ended)), (
            130, "0 done, 1 error in T (line 2); in all 1 error, 1 new; -r runs them again"))


class Accounts(unittest.TestCase):
    """What a closing line says of a file."""

    def test_a_line_that_failed_once_the_others_were_counted_is_not_taken_for_one_of_them(self) -> None:
        for states, text in ((0, 1, 0), "1 running"), ((0, 1, 2), "2 done, 1 running"):
            now = runmaker4.Counts(*states, failed=0, error=0, held=0)
            self.assertEqual(runmaker4.Summary(now, bad_lines=(3,)).describe(True), text)
