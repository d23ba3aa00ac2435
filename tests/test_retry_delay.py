"""Promise: with --retry-delay a job that has failed waits before it runs again: its slot and its line stay
its own, and it is ended as a job that runs.
"""
import json
import os
import signal
import subprocess
import time
import unittest
from typing import Any

from tests.support import RUNMAKER, RUNSET, SLEEPING, WAITING, Ended, RunCase, wait_until, without
from tests.tcp import OverTcp, TcpCase

FAILING = "echo >>runs.$JOB_ID; exit 3"


class DelayCase(RunCase):
    """A test of jobs that wait to run again; what their runner says goes to the file `messages`."""

    def start_delayed(self, *options: object, delay: str = "1h", patch: str = "",
                      **settings: Any) -> subprocess.Popen[bytes]:
        """Start a runner with this delay, and three retries unless the options say otherwise."""
        words = ["-v", "--retries", 3, "--retry-delay", delay, *options, "runs.txt"]
        with open(self.dir / "messages", "wb") as messages:
            if patch:
                return self.start_patched(patch, *words, stderr=messages, **settings)
            return self.start(RUNMAKER, *words, stderr=messages, **settings)

    def wait_word(self, *words: str) -> None:
        """Wait until the runner has said these, each in a line."""
        wait_until(lambda: all(word.encode() in self.read("messages") for word in words),
                   what=f"it says: {', '.join(words)}")

    def wait_waiting(self, *lines: int) -> None:
        """Wait until the jobs of these lines wait to run again."""
        self.wait_word(*(f"line {line}: again in" for line in lines))

    def end(self, runner: subprocess.Popen[bytes]) -> Ended:
        """Wait for its end, and for nobody to be left; what it has said is `err`."""
        ended = self.finish(runner)
        self.assertNobodyLeft()
        return Ended(ended.code, ended.out, self.read("messages"))

    def runs(self, line: int = 1) -> int:
        """How often the job of a line has run."""
        return len(self.read(f"runs.{line}").splitlines())


class Delays(DelayCase):
    """How long a job waits."""

    def delays(self, **settings: Any) -> list[bytes]:
        self.jobs(FAILING)
        ended = self.end(self.start_delayed("--retries", 4, delay="0.1", **settings))
        self.assertEnded(ended, 1, "!")
        self.assertEqual(self.runs(), 5)
        return [line.rpartition(b" ")[2] for line in ended.err.splitlines() if b"line 1: again in " in line]

    def test_it_waits_twice_as_long_each_time(self) -> None:
        self.assertEqual(self.delays(), [b"0.1s", b"0.2s", b"0.4s", b"0.8s"])

    def test_it_waits_no_longer_than_the_longest_delay(self) -> None:
        self.assertEqual(self.delays(patch="import runmaker4; runmaker4.MAX_RETRY_DELAY_SECONDS = 0.3"),
                         [b"0.1s", b"0.2s", b"0.3s", b"0.3s"])

    def test_each_run_has_its_records(self) -> None:
        self.jobs(FAILING)
        self.end(self.start_delayed("--retries", 1, "--outdir", "out", "--joblog", "joblog", delay="0.1"))
        events = [json.loads(line)["event"] for line in self.read("out/journal").splitlines()]
        self.assertEqual([event for event in events if event != "runner"], ["start", "end"] * 2)
        self.assertEqual(len(self.read("joblog").splitlines()), 1 + 2)

    def test_a_delay_without_retries_is_refused_as_is_one_over_an_hour(self) -> None:
        self.jobs("true")
        self.assertRefused(self.run_jobs("--retry-delay", "30s"), "--retry-delay requires --retries")
        self.assertRefused(self.run_jobs("--retries", 1, "--retry-delay", "61m"), "longer than 1h")


class Meanwhile(DelayCase):
    """What others do while a job waits."""

    def test_its_slot_waits_and_its_line_stays_running(self) -> None:
        self.jobs("echo >>runs.1; [ $(wc -l <runs.1) -gt 2 ]", "[ $(wc -l <runs.1) -gt 2 ]")
        runner = self.start_delayed(delay="0.5")
        self.wait_waiting(1)
        self.assertEqual(self.states(), "r.")
        self.assertEnded(self.end(runner), 0, "dd")

    def test_all_of_its_slots_do(self) -> None:
        second = "[ $(wc -l <runs.2) -gt 1 ]"
        self.before = self.write(f"#RUN slots=2\n. echo $RUNMAKER4_SLOTS >>runs.2; {second}\n"
                                 f"#RUN\n. {second}\n").read_bytes()
        self.assertEnded(self.end(self.start_delayed("-j2", delay="0.1")), 0, "dd")
        self.assertEqual(self.read("runs.2").splitlines(), [b"1,2"] * 2)


class WaitingCase(DelayCase):
    """A test of a job that waits for a long time."""

    def start_waiting(self, *others: str, options: tuple[object, ...] = (),
                      **settings: Any) -> subprocess.Popen[bytes]:
        """Start a runner, and return it when the job of line 1 has failed, and waits for an hour."""
        self.jobs(FAILING, *others)
        runner = self.start_delayed(*options, **settings)
        self.wait_waiting(1)
        return runner

    def assertWasEnded(self, runner: subprocess.Popen[bytes], code: int, states: str, *words: str) -> None:
        """How the runner ended, and what it said; the job of line 1 has run once."""
        ended = self.end(runner)
        self.assertEnded(ended, code, states)
        self.assertEqual(self.runs(), 1)
        for word in words:
            self.assertIn(word.encode(), ended.err)


class Ends(WaitingCase):
    """What ends a job that waits."""

    def test_it_is_cancelled(self) -> None:
        runner = self.start_waiting("true")
        with open(self.dir / "runs.txt", "r+b") as file:
            file.write(b"x")
        ended = self.end(runner)
        self.assertEqual((ended.code, self.states(), self.runs()), (0, "xd", 1), ended.err)
        self.assertIn(b"1 done, 1 cancelled", ended.err)

    def test_int_and_term_make_it_an_error(self) -> None:
        for number, code in (signal.SIGINT, 130), (signal.SIGTERM, 143):
            with self.subTest(number):
                (self.dir / "runs.1").unlink(missing_ok=True)
                runner = self.start_waiting()
                runner.send_signal(number)
                self.assertWasEnded(runner, code, "e", "killing 1 job")

    def test_hup_usr1_and_quit_leave_it_as_failed_and_wait_for_what_runs(self) -> None:
        runner = self.start_waiting(WAITING, "touch never", options=("-j2",))
        self.wait_up(2, runner=runner)
        for number in signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT:
            runner.send_signal(number)
        self.wait_states("!r.")
        self.open_gate()
        self.assertWasEnded(runner, 1, "!d.", "waiting for 1 job")

    def test_int_after_that_is_too_late_for_it(self) -> None:
        runner = self.start_waiting(SLEEPING, options=("-j2",))
        self.wait_up(2, runner=runner)
        runner.send_signal(signal.SIGHUP)
        self.wait_states("!r")
        runner.send_signal(signal.SIGINT)
        self.assertWasEnded(runner, 130, "!e")

    def test_it_has_failed_for_good_if_its_next_run_does_not_fit_into_the_wall_time(self) -> None:
        self.jobs(FAILING, "true")
        runner = self.start_delayed("--walltime", "50m", "--timeout", "30m", delay="40m")
        self.assertWasEnded(runner, 1, "!d", "line 1: does not run again in 40m 00s")

    def test_follow_does_not_end_it(self) -> None:
        self.jobs("echo >>runs.1; [ $(wc -l <runs.1) -gt 2 ]")
        self.append("#RUN end")
        self.assertEnded(self.end(self.start_delayed("--follow", delay="0.1")), 0, "d")


class OnFile(WaitingCase):
    """What ends a job that waits, at a runner on the file."""

    def test_what_killed_its_runner_leaves_it_as_an_orphan_that_is_run_again(self) -> None:
        runner = self.start_waiting()
        self.assertEqual(self.locked_lines(), [1])
        runner.kill()
        runner.wait()
        wait_until(lambda: not self.locked_lines(), what="its job lock is free")
        self.assertEqual(self.states(), "r")
        self.assertEnded(self.run_jobs("--resume"), 1, "!")
        self.assertEqual(self.runs(), 2)

    def test_too_many_failures_leave_it_as_failed(self) -> None:
        runner = self.start_waiting("true", WAITING, "touch never", options=("-j2", "--max-failed", 1))
        self.wait_up(3, runner=runner)
        self.run_script(RUNSET, "--set=!", "runs.txt", "2")
        self.wait_states("!!r.")
        self.open_gate()
        self.assertWasEnded(runner, 1, "!!d.", "--max-failed")

    def test_a_runner_that_may_have_lost_its_line_does_not_run_it_again(self) -> None:
        patch = ("import os, runmaker4\ndef still_has(file, job):\n    open('asked', 'w').close()\n"
                 "    return os.path.exists('mine')\nrunmaker4.JobQueue.still_has = still_has")
        self.jobs("echo >>runs.1; [ -e mine ]")
        runner = self.start_delayed("--retries", 1, delay="0.1", patch=patch)
        wait_until(lambda: self.exists("asked"), what="it is asked")
        self.assertEqual((self.states(), self.runs()), ("r", 1))
        self.write("", "mine")
        self.assertEnded(self.end(runner), 0, "d")

    def test_a_name_that_runners_share_is_nobody_elses_meanwhile(self) -> None:
        self.write("gpu\n", "names")
        self.write(". true\n", "other.txt")
        runner = self.start_waiting(options=("--slots", "@names"))
        with open(self.dir / "said", "wb") as said:
            other = self.start(RUNMAKER, "--slots", "@names", "other.txt", stderr=said)
        wait_until(lambda: b"all slots are in use by other runners" in self.read("said"),
                   what="the other one waits for the name")
        runner.send_signal(signal.SIGHUP)
        self.assertWasEnded(runner, 1, "!")
        self.assertEqual(self.finish(other).code, 0)
        self.assertEqual(self.read("other.txt"), b"d true\n")


@without("test_each_run_has_its_records", "test_it_waits_no_longer_than_the_longest_delay",
         "test_a_delay_without_retries_is_refused_as_is_one_over_an_hour")
class DelaysOverTcp(OverTcp, Delays):
    """How long a client's job waits."""


class MeanwhileOverTcp(OverTcp, Meanwhile):
    """What others do while a client's job waits."""


class EndsOverTcp(OverTcp, Ends):
    """What ends a client's job that waits."""


class ServerLost(TcpCase):
    """A client's job waits while there is no server."""

    def test_it_runs_again_once_there_is_a_server(self) -> None:
        self.jobs("echo >>runs.1; wc -l <runs.1; [ -e back ]", "true")
        options = ("--outdir", "out", "-l", "log")
        server = self.start_server(*options)
        client = self.start_client(server, "-v", "-j2", "--retries", 1, "--retry-delay", "2s")
        self.wait_said(client, "line 1: again in 2.0s")
        self.wait_states("rd")
        server.kill()
        self.wait_said(client, "trying again")
        time.sleep(3)                           # its time comes, and there is no server
        self.assertEqual(self.read("runs.1"), b"\n")
        self.write("", "back")
        again = self.start_server(*options, "--port", server.port)
        self.assertClientEnded(self.finish(client), 0, "dd")
        self.stop(again)
        # What was not acknowledged when the server was killed is told again, so an entry may be there twice
        events = [json.loads(line) for line in self.read("out/journal").splitlines()]
        told = dict.fromkeys((event["run"], event["event"]) for event in events if event.get("line") == 1)
        self.assertEqual([event for _, event in told], ["start", "end"] * 2)
        self.assertEqual(len({run for run, _ in told}), 2)
        # so the first try may have had a file before, with all of its output or none
        kept = {path.read_bytes() for path in self.dir.glob("out/1.out.~*~")}
        self.assertEqual((kept - {b""}, self.read("out/1.out")), ({b"1\n"}, b"2\n"))
        self.assertIn(b": 2  ", self.read("log"))

    def test_it_is_an_error_if_the_client_gives_up(self) -> None:
        self.jobs(FAILING)
        server = self.start_server()
        client = self.start_client(server, "-v", "--retries", 1, "--retry-delay", "1h", "--give-up", "1s")
        self.wait_said(client, "line 1: again in")
        server.kill()
        self.assertEqual(self.finish(client).code, 1)
        self.assertEqual(self.read("runs.1"), b"\n")

    def test_it_is_an_error_if_the_client_does_not_come_back(self) -> None:
        self.jobs(FAILING)
        server = self.start_server("--grace", 1)
        client = self.start_client(server, "-v", "--retries", 1, "--retry-delay", "1h")
        self.wait_said(client, "line 1: again in")
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
        self.wait_states("e")


if __name__ == "__main__":
    unittest.main()
