"""runset4.py --cancel: c over the state, and a wait for the lock; what cannot be stopped is named."""
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import runmaker4
from tests.file.test_life_sign import LifeSign
from tests.support.processes import alive, wait_until
from tests.support.runs import SLEEPING, WAITING, RunCase
from tests.support.scripts import ROOT, RUNMAKER, RUNSET, RUNWAIT
from tests.support.tcp import TcpCase


def impatient(seconds: float) -> str:
    """Statements by which runset4.py waits no longer for a job to end."""
    return f"import runset4\nrunset4.MAX_EXIT_WAIT_SECONDS = {seconds}"


class CancelCase(RunCase):

    def cancel(self, *args: object, code: int = 0, patch: str = "") -> bytes:
        """What runset4.py says when it cancels these lines."""
        words = "-q", "--cancel", "runs.txt", *args
        ended = self.finish(self.start_patched(patch, *words, script=RUNSET) if patch else
                            self.start(RUNSET, *words))
        self.assertEqual((ended.code, ended.out), (code, b""), ended.err)
        return ended.err


class Cancel(CancelCase):
    """A stand-in holds the locks, or a real runner."""

    def hold(self, number: int) -> None:
        """Hold a line as a runner does; once its command has a c, let go."""
        fd, line = self.hold_line(number), self.read().splitlines()[number - 1]

        def runner() -> None:
            wait_until(lambda: b"c" + line[1:] in self.read().splitlines(), 60)
            time.sleep(0.3)
            runmaker4.unlock(fd, 0, 0)
        thread = threading.Thread(target=runner)
        thread.start()
        self.addCleanup(thread.join)

    def test_a_running_line_and_a_new_one_are_stopped(self) -> None:
        self.write("r echo a\n. echo b\nd echo c\n")
        self.hold(1)
        self.assertEqual(self.cancel("1-2"), b"")
        self.assertEqual(self.states(), "ccd")

    def test_what_does_not_run_is_named_each(self) -> None:
        self.write("d echo a\n# no job\nr echo b\n")
        said = self.cancel(1, 2, 3, 9, code=1)
        for words in (b"line 1: is not running: the state is d", b"line 2: no such job",
                      b"line 9: no such job", b"line 3: is r, but no runner has it"):
            self.assertIn(words, said)
        self.assertEqual(self.states(), "dc")

    def test_a_number_that_another_running_job_had_at_its_start_takes_the_command(self) -> None:
        self.write("r echo a\nr echo b\n. echo c\n")
        self.hold(1)
        self.hold(2)
        self.write("# inserted\nr echo a\nr echo b\n. echo c\n")
        self.assertIn(b"line 2: another running job had this number", self.cancel(2, code=1))
        self.assertEqual(self.states(), "rr.")
        self.assertEqual(self.cancel(2, "--match", "echo a"), b"")
        self.assertEqual(self.cancel("3-4"), b"")           # no other job had these
        self.assertEqual(self.states(), "ccc")

    def test_a_range_with_both_lines_takes_no_command(self) -> None:
        self.write("r echo a\nr echo b\n")
        self.hold(1)
        self.hold(2)
        self.write("# inserted\nr echo a\nr echo b\n")
        self.assertEqual(self.cancel("1-9"), b"")
        self.assertEqual(self.states(), "cc")

    def test_a_new_line_at_the_number_of_a_running_one_is_left_alone(self) -> None:
        self.write("r echo a\n")
        self.hold(1)
        self.write(". echo new\nr echo a\n")
        self.assertIn(b"line 1: another running job had this number", self.cancel(1, code=1))
        self.assertEqual((self.states(), self.cancel("--all"), self.states()), (".r", b"", "cc"))

    def test_the_kernel_joins_the_locks_that_a_server_has_of_equal_commands(self) -> None:
        self.write("r echo a\nr echo a\n")
        self.assertTrue(runmaker4.lock(self.hold_line(1), runmaker4.bucket_of(b"echo a") + 2))
        self.write("r echo a\n. echo new\nr echo a\n")
        self.assertIn(b"line 2: another running job had this number", self.cancel(2, code=1))

    def test_a_range_may_reach_further_than_any_file(self) -> None:
        self.write(". echo a\n. echo b\n")
        self.assertEqual(self.cancel("2-99999999999999999999"), b"")
        self.assertEqual(self.states(), ".c")
        self.assertIn(b"line 99999999999999999999: no such job", self.cancel("99999999999999999999", code=1))

    def test_a_runner_of_version_4_0_has_no_namespace_in_its_tag(self) -> None:
        for number, found in (os.getpid(), os.getpid()), (2 ** 22 + 1, 0):      # larger than any (proc(5))
            tag = b"%s-%d-1795801113835-3" % (runmaker4.THIS_HOST, number)
            self.assertEqual(runmaker4.find_runner(tag), found)
        self.assertIsNone(runmaker4.find_runner(b"x-1-1-1"))


class OverTcp(TcpCase):
    """The runner is a client."""

    def test_of_a_client_that_is_away_it_is_said_that_it_will_be_told(self) -> None:
        self.jobs(SLEEPING)
        server = self.start_server()
        client = self.start_client(server, up=[1])
        client.send_signal(signal.SIGSTOP)
        words = "-q", "--cancel", "runs.txt", 1
        ended = self.finish(self.start_patched(impatient(0.3), *words, script=RUNSET))
        self.assertEqual(ended.code, 1)
        self.assertIn(b"; a client over TCP kills it when it is back)", ended.err)
        client.send_signal(signal.SIGCONT)
        wait_until(lambda: not self.locked_lines(), what="the job is ended")


class InContainer(CancelCase):
    """The runner is in another PID namespace, where it has the number 2, on a host of the same name."""
    BOX = "unshare", "-r", "--pid", "--fork", "--kill-child", "--mount-proc"

    def setUp(self) -> None:
        super().setUp()
        probe = self.run_script(*self.BOX, "true")
        if probe.code:
            self.skipTest(f"no PID namespace (unshare --pid): {probe.err.decode()}")
        self.jobs(SLEEPING)
        box = self.start(*self.BOX, "sh", "-c", '"$@" & wait; sleep 60', "sh",
                         *self.command(RUNMAKER, "runs.txt"))
        self.wait_up(1, runner=box)
        wait_until(lambda: b'"start"' in self.read("runs.txt.out/journal"), what="the start is recorded")
        shell, = self.children(box.pid)
        self.runner, = self.children(shell)

    @staticmethod
    def children(pid: int) -> list[int]:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def test_a_runner_that_lives_is_named_by_its_number_here_and_ends_its_job_itself(self) -> None:
        os.kill(self.runner, signal.SIGSTOP)
        said = self.cancel(1, code=1, patch=impatient(1.5)).decode()
        self.assertRegex(said, rf"is still running after 2 s \(process [\d, ]*\b{self.runner}\b")
        self.assertNotRegex(said, r"is dead|\b2[,\b]")
        os.kill(self.runner, signal.SIGCONT)
        wait_until(lambda: not self.locked_lines(), what="it ends its job")

    def test_the_job_of_a_dead_one_is_found_from_here_and_not_from_a_third_namespace(self) -> None:
        shell, = self.children(self.runner)
        os.kill(self.runner, signal.SIGKILL)
        wait_until(lambda: not alive(self.runner))
        status = RUNWAIT, "--status", "runs.txt"
        told = self.run_script(*status).out.decode()
        self.assertRegex(told, rf"line 1: the runner is dead; process {shell}\b[\d, ]* keeps it r ")
        told, fields = (self.run_script(*self.BOX, *self.command(*status, *more)).out.decode()
                        for more in ((), ("--json",)))
        self.assertIn("line 1: the runner is dead; the job runs in another container of this host", told)
        self.assertIsNone(json.loads(fields)["jobs"][0]["processes"])
        self.assertIn(f"the runner is dead; killing the job (process {shell})", self.cancel(1).decode())


class WithoutRunner(CancelCase, LifeSign):
    """The runner is dead, and its job lives on, on this host."""

    def start_and_lose(self, *jobs: str, options: Sequence[object] = (), patch: str = "") -> None:
        """Let a runner die while all of these jobs run."""
        self.write("".join(f". {job}\n" for job in jobs))
        runner = self.start_patched(f"import runmaker4\n{patch}", f"-j{len(jobs)}", *options, "runs.txt",
                                    start_new_session=True)
        self.wait_up(*range(1, len(jobs) + 1), runner=runner)
        self.kill(runner)

    def cancel(self, *args: object, code: int = 0, patch: str = "") -> bytes:
        """It must not take them for orphans."""
        said = super().cancel(*args, code=code, patch=patch)
        self.assertNotIn(b"no runner has it", said)
        return said

    def assertEndedHere(self, said: bytes, *lines: int) -> None:
        """The jobs of these lines, and no other, were ended by runset4.py."""
        named = re.findall(rb"line (\d+): the runner is dead; killing the job \(process \d+\)", said)
        self.assertEqual([int(number) for number in named], [*lines], said)

    def test_its_job_is_ended_with_all_that_it_has_started_and_others_go_on(self) -> None:
        self.start_and_lose(f"sleep 61 & setsid sleep 62 & (sleep 63 & sleep 64) & {SLEEPING}", WAITING)
        self.assertEndedHere(self.cancel(1), 1)
        self.assertEqual((self.states(), self.locked_lines()), ("cr", [2]))
        self.open_gate()
        self.assertNobodyLeft()

    def test_children_that_have_closed_the_descriptor_are_ended_too(self) -> None:
        self.start_and_lose(f"(exec 64>&-; exec sleep 61) & {SLEEPING}")
        self.assertEndedHere(self.cancel(1), 1)
        self.assertNobodyLeft()

    def test_the_lock_is_found_whatever_number_it_had_in_the_runner(self) -> None:
        """As with -j20.  On NFS a job inherits the end of a pipe, too, which can have that number as well."""
        for kind, step in ("", 1), ("nfs4", 1), ("nfs4", -1):
            with self.subTest(kind, step=step):
                self.start_and_lose(SLEEPING, patch=f"""
import fcntl
runmaker4.find_mount = lambda path: runmaker4.Mount("{kind}", frozenset())
lend = runmaker4.LockTable.copy_job_lock
def lend_from_64_on(table, fd):
    fds = lend(table, fd)
    copies = {{fd: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in fds[::{step}]}}
    runmaker4.close_all(*fds)
    return [copies[fd] for fd in fds]
runmaker4.LockTable.copy_job_lock = lend_from_64_on
""")
                self.assertEndedHere(self.cancel(1), 1)
                (self.dir / "up.1").unlink()
        self.assertNobodyLeft()

    def test_a_job_that_ignores_term_is_killed(self) -> None:
        self.start_and_lose("trap '' TERM; : >up.$JOB_ID; while :; do sleep 0.1; done")
        self.assertEndedHere(self.cancel(1, patch="import runset4\nrunset4.GRACE = 0.5"), 1)
        self.assertEqual(self.states(), "c")
        self.assertNobodyLeft()

    def test_a_job_that_tidies_up_has_the_time_for_it(self) -> None:
        """Its shell may say of what was ended, and nobody reads that any more."""
        trap = "trap 'sleep 0.3; echo tidy >tidied; exit' TERM; : >up.1"
        self.start_and_lose(f"exec 2>/dev/null; {trap}; while :; do sleep 0.1; done")
        self.assertEndedHere(self.cancel(1), 1)
        self.assertEqual(self.read("tidied"), b"tidy\n")

    def test_of_equal_lines_the_one_that_is_meant(self) -> None:
        job = "echo $$ >pid.$JOB_ID; " + SLEEPING
        self.start_and_lose(job, job, job)
        pids = [int(self.read(f"pid.{line}")) for line in (1, 2, 3)]
        self.assertEndedHere(self.cancel(2), 2)
        self.assertEqual(self.states(), "rcr")
        self.assertEqual([alive(pid) for pid in pids], [True, False, True])

    def test_a_line_that_was_cancelled_before_and_that_nobody_has_ended(self) -> None:
        self.start_and_lose(SLEEPING, WAITING)
        self.set_state(1, "x")
        said = self.cancel(1)
        self.assertIn(b"line 1: is x, but its job runs", said)
        self.assertEndedHere(said, 1)
        self.assertEqual(self.states(), "xr")
        self.assertIn(b"is not running: the state is x", self.cancel(1, code=1))

    def test_which_of_equal_jobs_is_meant_is_not_guessed_where_one_has_a_runner(self) -> None:
        """Both lines have moved.  What has a runner is ended by it, and the other is not."""
        job = f"echo $$ >pid.$JOB_ID; : >up.$JOB_ID; {SLEEPING}"
        self.start_and_lose(job)
        self.append(f". {job}")
        self.wait_up(2, runner=self.start(RUNMAKER, "runs.txt", start_new_session=True))
        lost, kept = (int(self.read(f"pid.{line}")) for line in (1, 2))
        self.write(b"# a note\n" + self.read())
        ended = self.finish(self.start_patched(impatient(4), "-q", "--cancel", "runs.txt", 2, script=RUNSET))
        self.assertEqual((self.states(), alive(lost)), ("cr", True))
        # its runner may have ended the other: on which line its job stands it has decided by then
        self.assertEqual(alive(kept), ended.code == 1, ended.err)
        self.assertEqual(f"{lost}".encode() in ended.err, ended.code == 1)

    def test_a_line_that_has_moved_or_over_whose_r_an_editor_has_saved(self) -> None:
        for text, line in (f"# a note\nr {SLEEPING}\n", 2), (f". {SLEEPING}\n", 1):
            with self.subTest(text):
                self.start_and_lose(SLEEPING)
                self.write(text)
                self.assertEndedHere(self.cancel(line), line)
                self.assertEqual(self.states(), "c")
                self.assertNobodyLeft()
                (self.dir / "up.1").unlink()

    def test_jobs_whose_runner_lives_are_left_to_it(self) -> None:
        """It is stopped, and does nothing: so its job goes on, and is named."""
        self.jobs(SLEEPING)
        runner = self.start_jobs()
        runner.send_signal(signal.SIGSTOP)
        said = self.cancel(1, code=1, patch=impatient(1.5))
        self.assertEndedHere(said)
        why = rf"process [\d, ]*\b{runner.pid}\b[\d, ]* of this host runs it, or should kill it\)"
        self.assertRegex(said.decode(), rf"is c, but is still running after 2 s \({why}")
        self.assertEqual(self.locked_lines(), [1])
        runner.send_signal(signal.SIGCONT)
        self.assertEqual(self.finish(runner).code, 0)
        self.assertNobodyLeft()

    def test_a_runner_that_is_a_job_is_not_taken_for_one_of_its_jobs(self) -> None:
        """Both work on one file, so the inner one holds job locks of one lock file; the outer one is dead."""
        inner = " ".join(self.command(RUNMAKER, "-q", "runs.txt"))
        self.write(f". {inner}\n. {SLEEPING}\n")
        runner = self.start(RUNMAKER, "runs.txt", start_new_session=True)
        self.wait_up(2, runner=runner)
        self.kill(runner)
        self.assertEndedHere(self.cancel(2))
        self.wait_states("rc")
        wait_until(lambda: not self.locked_lines(), what="the inner runner has ended")

    def check_is_spared(self, said: str, inherited: bool = True, **environ: str) -> None:
        """Another process has the job lock, as a job has it or not; runset4.py says this."""
        self.write("r echo a\n")
        holds = ("import os, runmaker4, time\n"
                 "fd = runmaker4.open_lock_file_of('runs.txt')\n"
                 f"os.dup2(fd, 64, inheritable={inherited})\n"
                 "assert runmaker4.lock(64, runmaker4.bucket_of(b'echo a') + 1)\n"
                 "open('ready', 'w').close()\ntime.sleep(60)")
        holder = self.start(sys.executable, "-c", holds, env={"PYTHONPATH": str(ROOT), **environ},
                            start_new_session=True)
        wait_until(lambda: self.exists("ready") or holder.poll() is not None, what="it has the job lock")
        told = self.cancel(1, code=1, patch=impatient(0.3))
        self.assertEndedHere(told)
        self.assertIn(f"is c, but is still running after 0 s ({said.format(holder.pid)}".encode(), told)
        self.assertIsNone(holder.poll())
        holder.kill()
        holder.wait()
        (self.dir / "ready").unlink()

    def test_what_is_no_job_or_whose_runner_can_live_is_spared(self) -> None:
        """A server may have been started with many open descriptors, and as a job."""
        dead = self.start("true")
        dead.wait()
        tag = f"{os.uname().nodename}-{runmaker4.pid_namespace('self')}-{dead.pid}-2-3"
        named = "process {} of this host"
        self.check_is_spared("no visible process of this host", inherited=False, RUNMAKER4_JOB=tag)
        self.check_is_spared(named)
        self.check_is_spared(named, RUNMAKER4_JOB="elsewhere-" + tag)

    def test_of_a_job_elsewhere_it_is_said_where_to_look_for_its_host(self) -> None:
        self.write("r echo a\n")
        self.hold_line(1)
        patch = f"{impatient(0.3)}\nrunset4.Holders._jobs_of = lambda self, command: iter(())"
        self.assertIn(b"line 1: is c, but is still running after 0 s (no visible process of this host runs "
                      b"it: use runset4.py --cancel on the right host (runwait4.py --status names it), or "
                      b"in its container, on FUSE kill it there; a client over TCP kills it when it is "
                      b"back)\n",
                      self.cancel(1, code=1, patch=patch))
