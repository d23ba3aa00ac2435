"""Promise: runwait4.py --status counts who is at work, by presence locks that death takes away."""
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from typing import Any

import runmaker4
import runwait4
from tests.support.case import GATE
from tests.support.journal import end, pair, start
from tests.support.journal_case import JournalCase
from tests.support.locks import lock_table
from tests.support.process_table import process_table
from tests.support.processes import wait_until
from tests.support.runs import RunCase
from tests.support.scripts import ROOT, RUNMAKER, RUNSET, RUNWAIT
from tests.support.tcp import TcpCase
from tests.support.values import present


class AtWorkCase(JournalCase, RunCase):

    def told(self, *args: object) -> str:
        """What --status prints; it has nothing to complain about."""
        ended = self.run_script(RUNWAIT, "--status", *args, "runs.txt")
        self.assertEqual((ended.code, ended.err), (0, b""))
        return os.fsdecode(ended.out)

    def status(self, *args: object) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.told("--json", *args))
        return found

    def runners(self, count: int) -> dict[str, Any]:
        """Wait until so many are at work; what --status says then."""
        def seen() -> dict[str, Any]:
            found = self.status()
            return found if found["runners"] == count else {}
        return wait_until(seen, what=f"{count} at work")

    def gated(self, *more: str, options: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """A runner of line 1, which waits for the gate; more lines follow."""
        runner = self.start_to_gate("".join(f"{line}\n" for line in (f". {GATE}", *more)), *options)
        self.addCleanup(self.open_gate)
        return runner

    def kill(self, runner: subprocess.Popen[bytes]) -> None:
        runner.kill()
        runner.wait()


class Runners(AtWorkCase):
    """Runners are there as long as they live, with their names where the journal has them."""

    def test_they_are_counted(self) -> None:
        first = self.gated(options=("--outdir", "out"))
        second = self.start(RUNMAKER, "-q", "--follow", "--outdir", "out", "runs.txt")
        third = self.start(RUNMAKER, "-q", "--follow", "runs.txt")
        self.runners(3)
        for options in (), ("--outdir", "out"):
            self.assertRegex(self.told(*options), r"\n3 runners at work\nline  ")
        self.kill(third)
        self.kill(second)
        self.assertEqual(self.status("--outdir", "out")["runners"], 1)
        self.open_gate()
        self.finish(first)
        self.assertEqual(self.status()["runners"], 0)
        self.assertEqual(self.told(), "1 job: 0 new, 0 running, 1 done, 0 failed, 0 error, 0 held\n")

    def test_one_that_is_stopped_is_named_in_place_of_a_time_left(self) -> None:
        runner = self.start(RUNMAKER, "-q", "--follow", self.write(f". true\n. {GATE}\n").name)
        self.addCleanup(self.open_gate)
        self.wait_states("dr")
        said = f"\na runner or client on this host is stopped (kill -CONT {runner.pid})\n1 runner at work\n"
        wait_until(lambda: " left\n1 runner at work\n" in self.told(), what="a run is recorded")
        runner.send_signal(signal.SIGSTOP)
        wait_until(lambda: said in self.told())
        self.assertIsNone(self.status()["seconds_left"])
        runner.send_signal(signal.SIGCONT)
        wait_until(lambda: "stopped" not in self.told())
        runner.send_signal(signal.SIGSTOP)
        self.kill(runner)
        self.assertNotIn("stopped", self.told())

    def test_the_document_shows_the_columns_that_it_has(self) -> None:
        self.gated(options=("--outdir", "out"))
        wait_until(lambda: b'"start"' in self.read("out/journal"))
        printed = self.told("--outdir", "out").splitlines()
        shown = re.findall(r"(?m)^line .*\bslot\b.*", (ROOT / "docs/records.md").read_text())
        self.assertEqual([row.split() for row in shown], [printed[2].split()], "its header")

    def test_a_byte_that_somebody_has_is_left_to_him_and_the_journal_tells_of_the_other(self) -> None:
        self.write(f". {GATE}\n")
        patch = """
import runmaker4
drawn = iter([7, 7, 9])
runmaker4.PresenceLock._draw = lambda self: next(drawn)
"""
        with open(lock_table(self.dir / "runs.txt"), "wb") as file:
            self.assertTrue(runmaker4.lock(file.fileno(), runmaker4.PRESENCE_BYTES + 7))
            runner = self.start_patched(patch, "-q", "--outdir", "out", "--name", "alice", "runs.txt")
            self.addCleanup(self.open_gate)
            self.wait_states("r")
            self.assertEqual(self.runners(2)["runners"], 2)
        found = wait_until(lambda: (now := self.status("--outdir", "out"))["jobs"][0].get("host") and now)
        self.assertFalse(found["jobs"][0]["without_runner"])
        self.kill(runner)
        self.assertTrue(self.status("--outdir", "out")["jobs"][0]["without_runner"])

    def test_one_that_finds_all_locked_is_there_once_that_is_over(self) -> None:
        self.write(f". {GATE}\n. b\n")
        with open(lock_table(self.dir / "runs.txt"), "wb") as file:
            fd, all_presence_locks = file.fileno(), (runmaker4.PRESENCE_BYTES, runmaker4.PresenceLock.COUNT)
            self.assertTrue(runmaker4.lock(fd, *all_presence_locks))
            self.start(RUNMAKER, "-q", "runs.txt")
            self.addCleanup(self.open_gate)
            self.wait_states("r.")
            runmaker4.unlock(fd, *all_presence_locks)
            self.runners(1)

    def test_one_whose_companion_was_removed_is_there_again(self) -> None:
        self.gated()
        lock_table(self.dir / "runs.txt").unlink()
        self.runners(1)

    def test_who_only_adds_or_sets_is_no_runner(self) -> None:
        self.write("x a\n")
        patch = """
import runset4, time
runset4.append_locked = lambda *args: open("adding", "w").close() or time.sleep(600)
"""
        adder = self.start_patched(patch, "runs.txt", "--add", "b", script=RUNSET)
        wait_until(lambda: self.exists("adding"))
        self.assertEqual(self.status()["runners"], 0)
        self.kill(adder)

    def test_a_range_that_another_program_has_locked_is_nobody_at_work(self) -> None:
        path = self.write("d a\n")
        with open(lock_table(path), "wb") as file:
            self.assertTrue(runmaker4.lock(file.fileno(), runmaker4.PRESENCE_BYTES, 1000))
            self.assertTrue(runmaker4.lock(file.fileno(), runmaker4.PRESENCE_BYTES + 2000))
            self.assertEqual(self.status()["runners"], 1)


class Outlived(AtWorkCase):
    """A job that has outlived its runner is told as such, and looks like no runner."""

    def test_where_no_runner_is_left(self) -> None:
        runner = self.gated(". true")
        self.assertFalse(self.status()["jobs"][0]["without_runner"])
        self.kill(runner)
        found = self.status()
        self.assertEqual((found["runners"], found["running"]), (0, 1))
        self.assertTrue(found["jobs"][0]["without_runner"])
        self.assertRegex(self.told(), r"\n   1  .*\(still running without a runner\) : >at\.gate")
        ended = self.run_script(RUNMAKER, "-q", "--resume", "runs.txt")
        self.assertEqual(ended.code, 1)
        self.assertRegex(ended.err, rb"in all 1 done, 1 running\nnext: runwait4\.py --status runs\.txt\n\Z")

    def test_where_another_runner_is_there_the_journal_tells_whose_it_was(self) -> None:
        first = self.gated(f". {GATE}; : 2", options=("--outdir", "out"))
        second = self.start(RUNMAKER, "-q", "--outdir", "out", "runs.txt")
        self.wait_states("rr")
        wait_until(lambda: all(job["pid"] for job in self.status("--outdir", "out")["jobs"]))
        self.kill(first)
        jobs = self.status("--outdir", "out")["jobs"]
        self.assertEqual([job["without_runner"] for job in jobs], [True, False])
        self.assertEqual([job["without_runner"] for job in self.status()["jobs"]], [False, False])
        self.open_gate()
        self.finish(second)

    def test_no_time_left_is_told_where_nobody_is_there_to_go_on(self) -> None:
        runner = self.gated(*[f". {number}" for number in range(9)])
        now = time.time()
        self.journal(*(line for number in range(24)
                       for line in pair(number, 5 + number, "d", now - 241 + 10 * number, took=1)),
                     start("a", 1, GATE, now))
        self.assertIsNotNone(self.status("--outdir", "out")["seconds_left"])
        self.kill(runner)
        found = self.status("--outdir", "out")
        self.assertIsNone(found["seconds_left"])
        self.assertIsNotNone(found["per_hour"])
        self.assertRegex(self.told("--outdir", "out"), r"\n\d+ jobs/h lately\n")


class Cancelled(AtWorkCase):
    """A job that was cancelled and still runs is told, with its runner and without."""

    def test_until_it_has_ended(self) -> None:
        self.gated("x other", f"x {GATE}")
        self.assertEqual(self.status()["cancelled"], [])
        stubborn = "trap '' TERM; : >up; until [ -e go ]; do sleep 0.05; done"
        self.append(f". {stubborn}")
        runner = self.start(RUNMAKER, "-q", "--kill-after", "none", "runs.txt")
        wait_until(lambda: self.exists("up"))
        self.set_state(4, "x")
        (job,) = self.status()["cancelled"]
        self.assertEqual((job["line"], job["command"]), (4, stubborn))
        self.assertFalse(job["without_runner"])
        self.assertRegex(self.told(), r"\n   4  .*\(cancelled, still running\) trap")
        self.open_gate()
        self.finish(runner)
        self.assertEqual((self.states()[1:], self.status()["cancelled"]), ("xxx", []))

    def test_where_its_runner_is_dead(self) -> None:
        self.kill(self.gated())
        self.set_state(1, "x")
        self.assertRegex(self.told(), r"\n   1  .*\(cancelled, still running without a runner\) : >at")
        found = self.status()
        self.assertEqual(([job["line"] for job in found["cancelled"]], found["held"]), ([1], 1))

    def test_where_its_line_was_moved_and_equal_lines_run(self) -> None:
        runner = self.gated(f". {GATE}", "d a", "d b", options=("-j2",))
        self.wait_states("rrdd")
        wait_until(lambda: sum(parent == runner.pid for _, parent in process_table().values()) == 2)
        self.kill(runner)
        self.write(f"d a\nx {GATE}\nd b\nr {GATE}\nx other\n")
        found = self.status()
        self.assertEqual(([job["line"] for job in found["cancelled"]], found["running"]), ([2], 1))


class Busy(AtWorkCase):
    """Who is at work and busy is not waited for, and a job between two tries is where its slot is."""

    def test_a_job_for_a_host_that_runs_another_one_waits_for_nobody(self) -> None:
        self.gated("#RUN host=alice", ". b", "#RUN host=bob", ". c",
                   options=("--outdir", "out", "--name", "alice"))
        wait_until(lambda: b'"start"' in self.read("out/journal"))
        self.assertEqual(self.status("--outdir", "out")["waits"], "")
        self.write(self.read() + b"#RUN host=alice,carol slots=4\n. d\n")
        self.assertEqual(self.status("--outdir", "out")["waits"], "")
        self.write(self.read().replace(b"alice\n. b", b"bob\n. b"))
        self.assertRegex(self.status("--outdir", "out")["waits"], "^line 3 waits for host bob ")

    def test_memory_is_waited_for_where_a_runner_runs_nothing(self) -> None:
        big = "#RUN memory=900T\n. b\n"
        self.write(f"d a\n{big}")
        self.assertEqual(self.status()["waits"], "1 new, but no runner (start runmaker4.py)")
        self.start(RUNMAKER, "-q", "--follow", "runs.txt")
        self.runners(1)
        waits = "line 3 waits for a runner with 900T of memory or more (#RUN in line 2)"
        self.assertIn(f"\n{waits}\n1 runner at work\n", self.told())
        self.append("#RUN host=bob memory=1K", ". c")
        self.assertEqual(self.status()["waits"], waits)
        self.write(f"#RUN host=bob\n. a\n#RUN host=*\n{big}")
        self.assertEqual(self.status()["waits"], "line 2 waits for host bob (#RUN in line 1)")
        self.append("#RUN", f". {GATE}")
        self.addCleanup(self.open_gate)
        self.wait_states("..r")
        self.assertEqual(self.status()["waits"], "")    # it can take as much as there is

    def test_between_two_tries(self) -> None:
        """A run has ended, and the line is still `r`: the job waits for more memory, for example."""
        self.gated(options=("--outdir", "out", "--name", "alice"))
        wait_until(lambda: b'"start"' in self.read("out/journal"))
        begun = next(fields for fields in map(json.loads, self.read("out/journal").splitlines())
                     if fields["event"] == "start")
        ended = {**json.loads(end(1, 1, state="!")), **begun, "event": "end"}
        with open(self.dir / "out/journal", "ab") as journal:
            journal.write(json.dumps(ended).encode() + b"\n")
        (job,) = self.status("--outdir", "out")["jobs"]
        self.assertEqual((job["host"], job["slot"], job["without_runner"]), ("alice", "1", False))
        self.assertEqual((job["pid"], job["start"], job["seconds"]), (None, None, None))
        self.assertRegex(self.told("--outdir", "out"), r"\n   1  alice  1     -        -  ")


class Servers(TcpCase):
    """A server has a presence lock, too."""

    def test_it_says_how_many_clients_it_has_and_which_are_lost_or_that_it_does_not_answer(self) -> None:
        self.write(f". {GATE}\n")
        server = self.start_server("--outdir", "out", "--grace", "600")

        def status(*options: str) -> bytes:
            return self.run_script(RUNWAIT, "--status", *options, "--outdir", "out", "runs.txt").out

        lost = self.start_client(server, "--name", "bob", "--follow")
        self.start_client(server, "--name", "carol", "--follow")
        self.wait_clients(server, 2)
        self.wait_states("r")
        # a busy server answers too late
        wait_until(lambda: re.search(rb"\n1 server at work\n2 clients, 0 lost\n *line ", status()))
        lost.kill()
        self.wait_said(server, "bob", "is lost")
        wait_until(lambda: re.search(rb"\n1 client, 1 lost: bob since \d\S*s\n", status()))
        told = "1 client, 1 lost: bob since "
        wait_until(lambda: [text[:len(told)] for text in json.loads(status("--json"))["clients"]] == [told])
        server.send_signal(signal.SIGSTOP)
        self.assertIn(b"\nthe server on this host does not answer (it is stopped or busy)\n", status())
        server.send_signal(signal.SIGCONT)
        server.kill()
        self.assertNotRegex(status(), b"the server|at work")

    def test_a_server_without_a_descriptor_for_an_answer_goes_on(self) -> None:
        self.write(f". {GATE}\n")
        server = self.start_server()
        wait_until(lambda: b"0 clients" in self.run_script(RUNWAIT, "--status", "runs.txt").out)
        limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        # below the number of any connection that is only now closed
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        shown = self.run_script(RUNWAIT, "--status", "runs.txt").out
        self.assertIn(b"the server on this host does not answer", shown)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
        wait_until(lambda: b"0 clients" in self.run_script(RUNWAIT, "--status", "runs.txt").out)

    # As another user, asks all servers of this host, and answers for one of another host
    OTHER_USER = """
import os, socket
if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)
ask, answer = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
ask.connect({server!r}); print(ask.recv(99), flush=True)
answer.bind({other!r}); answer.listen(); print("listens", flush=True)
while True: answer.accept()[0].send(b"lies")
"""

    def test_users_neither_ask_nor_answer_each_other(self) -> None:
        self.write(f". {GATE}\n")
        server = self.start_server()
        wait_until(lambda: b"0 clients" in self.run_script(RUNWAIT, "--status", "runs.txt").out)
        number, = present(runwait4.Watcher(str(self.dir / "runs.txt")).presence_locks())
        is_root = os.geteuid() == 0
        names = {key: runmaker4.PresenceLock.SOCKET % (number ^ 1 if key == "other" else number)
                 for key in ("server", "other")}
        other = self.start(sys.executable, "-c", self.OTHER_USER.format(**names))
        said = present(other.stdout)
        self.assertEqual(said.readline(), b"b''\n" if is_root else b"b'0 clients, 0 lost'\n")
        self.assertEqual(said.readline(), b"listens\n")
        told = ["0 clients, 0 lost"] if is_root else ["lies", "0 clients, 0 lost"]
        wait_until(lambda: [*runwait4.RunnersAtWork([number ^ 1, number]).ask_servers()] == told)
        self.assertEqual(self.stop(server).code, 143)

    def test_a_job_that_the_next_server_has_taken_over_has_one(self) -> None:
        self.write(f". {GATE}\n")
        dead = self.start_server("--outdir", "out", "--grace", "60")
        self.start_client(dead, "--name", "bob")
        self.wait_states("r")
        wait_until(lambda: b'"start"' in self.read("out/journal"))
        dead.kill()
        dead.wait()
        self.start_server("--outdir", "out", "--grace", "60", "--port", dead.port)

        def status() -> dict[str, Any]:
            words = RUNWAIT, "--status", "--json", "--outdir", "out", "runs.txt"
            found: dict[str, Any] = json.loads(self.run_script(*words).out)
            return found if found["servers"] else {}

        found = wait_until(status)              # just after it has said where it serves
        self.assertEqual((found["runners"], found["servers"]), (0, 1))
        self.assertFalse(found["jobs"][0]["without_runner"], found)
