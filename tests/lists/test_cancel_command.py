"""runset4.py --cancel: c over the state, and a wait for the lock; what cannot be stopped is named."""
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import runmaker4
from tests.support.life_sign import LifeSign
from tests.support.line_locks import hold_line, locked_lines
from tests.support.processes import DEADLINE, alive, wait_until
from tests.support.runs import SLEEPING, WAITING, RunCase
from tests.support.scripts import ROOT, RUNMAKER, RUNSET, RUNWAIT
from tests.support.tcp import TcpCase

# A byte is added to `asked` whenever runset4.py asks if a job still runs
ASKS = """
import runset4
can_run = runset4.JobFile.can_run_another_copy
def note_and_ask(file, command):
    with open("asked", "ab") as asked:
        asked.write(b"x")
    return can_run(file, command)
runset4.JobFile.can_run_another_copy = note_and_ask
"""
# runset4.py, that has asked so twice, stands still until the runner is gone, and looks for it then
STANDS_STILL = """
import os, time
has_no_other_users = runset4.JobFile.has_no_other_users
def stand_still_and_look(file):
    while os.path.exists("asked") and os.path.getsize("asked") > 1 and not os.path.exists("gone"):
        time.sleep(0.01)
    return has_no_other_users(file)
runset4.JobFile.has_no_other_users = stand_still_and_look
"""


def waiting(seconds: float) -> str:
    """Statements by which runset4.py waits so long for a job to end."""
    return f"{ASKS}runset4.MAX_EXIT_WAIT_SECONDS = {seconds}"


class CancelCase(RunCase):

    def cancel(self, *args: object, code: int = 0, patch: str = waiting(DEADLINE)) -> bytes:
        """What runset4.py says when it cancels these lines; it waits as long as a busy machine takes."""
        ended = self.finish(self.start_patched(patch, "-q", "--cancel", "runs.txt", *args, script=RUNSET))
        self.assertEqual((ended.code, ended.out), (code, b""), ended.err)
        return ended.err

    def run_shown(self, said: bytes) -> None:
        """Run the command by which the user can end the one job that lives."""
        command, = re.findall(rb"\(end it on host %b: (kill [0-9 ]+)\)\n" % os.fsencode(os.uname().nodename),
                              said)
        ended = self.run_script("sh", "-c", os.fsdecode(command))
        self.assertEqual((ended.code, ended.err), (0, b""))


class Cancel(CancelCase):
    """A stand-in holds the locks, or a real runner."""

    def hold(self, number: int) -> None:
        """Hold a line as a runner does; once its command has a c, let go."""
        fd, line = hold_line(self, number), self.read().splitlines()[number - 1]
        self.assertTrue(runmaker4.lock(fd, runmaker4.PRESENCE_BYTES + number))

        def runner() -> None:
            wait_until(lambda: b"c" + line[1:] in self.read().splitlines())
            wait_until(lambda: len(self.wait_file("asked")) > 1, what="it is asked again")
            runmaker4.unlock(fd, 0, 0)
            self.write("", "gone")
        thread = threading.Thread(target=runner)
        thread.start()
        self.addCleanup(thread.join)

    def test_a_running_line_and_a_new_one_are_stopped(self) -> None:
        self.write("r echo a\n. echo b\nd echo c\n")
        self.hold(1)
        self.assertEqual(self.cancel("1-2"), b"")
        self.assertEqual(self.states(), "ccd")

    def test_a_job_that_has_ended_since_it_was_looked_for_does_not_live_on_without_its_runner(self) -> None:
        self.write("r echo a\n")
        self.hold(1)
        self.assertEqual(self.cancel(1, patch=waiting(DEADLINE) + STANDS_STILL), b"")
        self.assertEqual(self.states(), "c")

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
        self.assertTrue(runmaker4.lock(hold_line(self, 1), runmaker4.bucket_of(b"echo a") + 2))
        self.write("r echo a\n. echo new\nr echo a\n")
        self.assertIn(b"line 2: another running job had this number", self.cancel(2, code=1))

    def test_it_is_not_new_again_as_long_as_its_job_runs(self) -> None:
        """Its runner is stopped: it would take the new line for its own, and the job's end for its result."""
        self.jobs(SLEEPING)
        runner = self.start_jobs("-j1")
        self.wait_states("r")
        runner.send_signal(signal.SIGSTOP)
        self.assertIn(b"still runs", self.cancel(1, code=1, patch=waiting(0.1)))
        refused = self.run_script(RUNSET, "--set=.", "runs.txt", "1")
        self.assertEqual((refused.code, self.states()), (1, "c"))
        self.assertIn(b"line 1: still has a running job (set it again once that has ended)\n", refused.err)
        runner.send_signal(signal.SIGCONT)
        self.finish(runner)
        self.assertEqual(self.run_script(RUNSET, "--set=.", "runs.txt", "1").code, 0)
        self.assertEqual(self.states(), ".")

    def test_a_range_may_reach_further_than_any_file(self) -> None:
        self.write(". echo a\n. echo b\n")
        self.assertEqual(self.cancel("2-99999999999999999999"), b"")
        self.assertEqual(self.states(), ".c")
        self.assertIn(b"line 99999999999999999999: no such job", self.cancel("99999999999999999999", code=1))


class OverTcp(TcpCase):
    """The runner is a client."""

    def test_of_a_client_that_is_away_it_is_said_that_it_will_be_told(self) -> None:
        self.jobs(SLEEPING)
        server = self.start_server()
        client = self.start_client(server, up=[1])
        client.send_signal(signal.SIGSTOP)
        words = "-q", "--cancel", "runs.txt", 1
        ended = self.finish(self.start_patched(waiting(0.3), *words, script=RUNSET))
        self.assertEqual(ended.code, 1)
        self.assertIn(b"no process of it is visible here: ", ended.err)
        self.assertIn(b"; a client over TCP kills it when it is back)", ended.err)
        client.send_signal(signal.SIGCONT)
        wait_until(lambda: not locked_lines(self), what="the job is ended")


class InContainer(CancelCase):
    """The runner is in another PID namespace, where it has the number 2, on a host of the same name."""
    BOX = "unshare", "-r", "--pid", "--fork", "--kill-child", "--mount-proc"

    def setUp(self) -> None:
        super().setUp()
        probe = self.run_script(*self.BOX, "true")
        if probe.code:
            self.skipTest(f"no PID namespace (unshare --pid): {probe.err.decode()}")
        self.jobs(SLEEPING)
        box = self.start(*self.BOX, "sh", "-c", '"$@" & wait; sleep 600', "sh",
                         *self.command(RUNMAKER, "runs.txt"))
        self.wait_up(1, runner=box)
        wait_until(lambda: b'"start"' in self.wait_file("runs.txt.out/journal"), what="the start is recorded")
        shell, = self.children(box.pid)
        self.runner, = self.children(shell)

    @staticmethod
    def children(pid: int) -> list[int]:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def test_the_job_of_a_dead_one_is_named_by_its_number_here_and_not_from_a_third_namespace(self) -> None:
        shell, = self.children(self.runner)
        os.kill(self.runner, signal.SIGKILL)
        wait_until(lambda: not alive(self.runner))
        status = RUNWAIT, "--status", "runs.txt"
        said = f"line 1: the runner is dead, but the job still runs (end it: kill {shell}".encode()
        # its threads can hold its locks a moment longer
        wait_until(lambda: said in self.run_script(*status).out, what="--status says it")
        told = self.run_script(*self.BOX, *self.command(*status)).out.decode()
        self.assertNotIn("the runner is dead, but", told)
        box = self.run_script(*self.BOX, *self.command(RUNSET, "--cancel", "runs.txt", 1))
        self.assertIn(b"line 1: is c, but its job still runs (no process of it is visible here: ", box.err)
        self.run_shown(self.cancel(1, code=1))
        wait_until(lambda: not locked_lines(self), what="the job is ended")


class WithoutRunner(CancelCase, LifeSign):
    """The runner is dead, and its job lives on, on this host: the user is told how to end it."""

    def start_and_lose(self, *jobs: str, options: Sequence[object] = (), patch: str = "") -> None:
        """Let a runner die while all of these jobs run."""
        self.write("".join(f". {job}\n" for job in jobs))
        runner = self.start_patched(f"import runmaker4\n{patch}", f"-j{len(jobs)}", *options, "runs.txt",
                                    start_new_session=True)
        self.wait_up(*range(1, len(jobs) + 1), runner=runner)
        self.kill(runner)

    def cancel(self, *args: object, code: int = 1, patch: str = waiting(1e6)) -> bytes:
        """It waits for no runner, since none is at work, and must not take the jobs for orphans."""
        said = super().cancel(*args, code=code, patch=patch)
        self.assertNotIn(b"no runner has it", said)
        return said

    def test_its_processes_are_named_and_others_are_not(self) -> None:
        self.start_and_lose(f"sleep 610 & setsid sleep 620 & (sleep 630 & sleep 640) & {SLEEPING}", WAITING)
        said = self.cancel(1)
        self.assertEqual((self.states(), locked_lines(self)), ("cr", [1, 2]))
        self.run_shown(said)
        wait_until(lambda: locked_lines(self) == [2], what="the job is ended")
        self.assertIn(b"is not running: the state is c", self.cancel(1))
        self.open_gate()
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
                self.run_shown(self.cancel(1))
                wait_until(lambda: not locked_lines(self), what="the job is ended")
                (self.dir / "up.1").unlink()
        self.assertNobodyLeft()

    def test_of_equal_lines_the_one_that_is_meant(self) -> None:
        job = "echo $$ >pid.$JOB_ID; " + SLEEPING
        self.start_and_lose(job, job, job)
        pids = [int(self.read(f"pid.{line}")) for line in (1, 2, 3)]
        self.run_shown(self.cancel(2))
        wait_until(lambda: not alive(pids[1]), what="the job is ended")
        self.assertEqual(self.states(), "rcr")
        self.assertEqual([alive(pid) for pid in pids], [True, False, True])

    def test_a_line_that_was_cancelled_before_and_that_nobody_has_ended(self) -> None:
        self.start_and_lose(SLEEPING, WAITING)
        self.set_state(1, "x")
        said = self.cancel(1)
        self.assertIn(b"line 1: is x, but its job runs\n", said)
        self.assertIn(b"line 1: is x, but its job still runs (", said)
        self.run_shown(said)
        wait_until(lambda: locked_lines(self) == [2], what="the job is ended")
        self.assertEqual(self.states(), "xr")
        self.assertIn(b"is not running: the state is x", self.cancel(1))

    def test_a_line_that_has_moved_or_over_whose_r_an_editor_has_saved(self) -> None:
        for text, line in (f"# a note\nr {SLEEPING}\n", 2), (f". {SLEEPING}\n", 1):
            with self.subTest(text):
                self.start_and_lose(SLEEPING)
                self.write(text)
                self.run_shown(self.cancel(line))
                self.assertEqual(self.states(), "c")
                self.assertNobodyLeft()
                (self.dir / "up.1").unlink()

    def test_a_runner_that_lives_has_the_time_to_end_its_job(self) -> None:
        """It is stopped, and does nothing: so its job goes on, and is named, but not the runner."""
        self.jobs(SLEEPING)
        runner = self.start_jobs()
        runner.send_signal(signal.SIGSTOP)
        said = self.cancel(1, patch=waiting(1.5)).decode()
        self.assertRegex(said, r"line 1: is c, but its job still runs \(end it on host \S+: kill \d")
        self.assertNotRegex(said, rf"\b{runner.pid}\b")
        self.assertEqual(locked_lines(self), [1])
        runner.send_signal(signal.SIGCONT)
        self.assertEqual(self.finish(runner).code, 0)
        self.assertNobodyLeft()

    def test_a_runner_that_is_a_job_ends_its_job_though_the_outer_one_is_dead(self) -> None:
        """Both work on one file, so the inner one holds job locks of one lock file."""
        inner = " ".join(self.command(RUNMAKER, "-q", "runs.txt"))
        self.write(f". {inner}\n. {SLEEPING}\n")
        runner = self.start(RUNMAKER, "runs.txt", start_new_session=True)
        self.wait_up(2, runner=runner)
        self.kill(runner)
        self.assertEqual(self.cancel(2, code=0), b"")
        self.wait_states("rc")
        wait_until(lambda: not locked_lines(self), what="the inner runner has ended")

    def test_a_descriptor_that_is_not_inherited_is_that_of_a_runner_or_server(self) -> None:
        """One can have been started with many open descriptors."""
        self.write("r echo a\n")
        holds = ("import os, runmaker4, time\n"
                 "fd = runmaker4.open_lock_file_of('runs.txt')\n"
                 "os.dup2(fd, 64, inheritable=False)\n"
                 "assert runmaker4.lock(64, runmaker4.bucket_of(b'echo a') + 1)\n"
                 "open('ready', 'w').close()\ntime.sleep(600)")
        holder = self.start(sys.executable, "-c", holds, env={"PYTHONPATH": str(ROOT)})
        wait_until(lambda: self.exists("ready") or holder.poll() is not None, what="it has the job lock")
        self.assertIn(b"line 1: is c, but its job still runs (no process of it is visible here: run this as "
                      b"root, on the host that runwait4.py --status names, or in its container; on FUSE kill "
                      b"it there; a stopped runner kills it after kill -CONT; a client over TCP kills it "
                      b"when it is back)\n", self.cancel(1))
