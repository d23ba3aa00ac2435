"""Promise: a signal ends or drains a runner in an orderly way, and no lost console stops a job."""
import contextlib
import os
import pty
import random
import signal
import subprocess
import termios
import time
from pathlib import Path

import runmaker4
from tests.support.case import GATE
from tests.support.console import console_lines, printed
from tests.support.over_tcp import OverTcp, ordinarily, without
from tests.support.pipes import deadline, read_terminal
from tests.support.processes import DEADLINE, Ended, alive, is_pending, wait_until
from tests.support.runs import SLEEPING, UP, WAITING, RunCase
from tests.support.scripts import PYTHON, ROOT, RUNMAKER
from tests.support.terminal import TerminalCase
from tests.support.values import present

STUBBORN = f"trap ': > term.$JOB_ID' TERM; {UP}; while :; do sleep 0.1; done"       # notes TERM, and lives on


def threads(pid: int) -> dict[int, int]:
    """The mask of the signals that it blocks, by thread of a process (proc(5))."""
    masks = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):         # it has just ended
            masks[int(task.name)] = int((task / "status").read_text().split("SigBlk:", 1)[1].split()[0], 16)
    return masks


class SignalCase(RunCase):

    def await_word(self, runner: subprocess.Popen[bytes], word: bytes) -> None:
        """Wait until a line of stderr has this word."""
        with deadline(runner):
            lines = iter(present(runner.stderr).readline, b"")
            self.assertTrue(any(word in line for line in lines), "it has ended")


class Interrupted(SignalCase):
    """INT, TERM and what batch systems send before KILL end the jobs, and mark them e."""

    def check_ended(self, number: signal.Signals, code: int, *options: object) -> None:
        """Two jobs run and one waits when the signal comes; the closing line names the two."""
        self.jobs(SLEEPING, SLEEPING, "touch never")
        runner = self.start_jobs("-j2", *options, up=[1, 2])
        ended = self.stop(runner, number)
        self.assertEnded(ended, code, "ee.")
        self.assertRegex(ended.err, rb"\nrunmaker4\.py: runs\.txt: [^\n]*lines 1, 2\b[^\n]*\n(next: .*\n)?\Z")

    def test_int_ends_the_jobs_and_exits_130(self) -> None:
        """None is tried again."""
        self.check_ended(signal.SIGINT, 130, "--retries", "3", "--retry", "--follow")

    def test_term_ends_the_jobs_and_exits_143(self) -> None:
        self.check_ended(signal.SIGTERM, 143)

    def test_usr2_does_the_same_and_the_runs_have_an_end(self) -> None:
        self.check_ended(signal.SIGUSR2, 140)
        self.assertEqual(self.read("runs.txt.out/journal").count(b'"event": "end"'), 2)

    def test_xcpu_does_the_same(self) -> None:
        self.check_ended(signal.SIGXCPU, 152)

    def test_ctrl_c_reaches_the_runner_alone_and_the_jobs_get_term(self) -> None:
        """What a job prints then is not lost."""
        traps = "; ".join(f"trap 'echo {name}; exit 0' {name}" for name in ("INT", "TERM"))
        self.jobs(f"{traps}; {UP}; while :; do sleep 0.1; done")
        runner = self.start_jobs(start_new_session=True)
        os.killpg(runner.pid, signal.SIGINT)
        ended = self.finish(runner)
        self.assertEnded(ended, 130, "e")
        self.assertEqual(printed(console_lines(ended.out)), [b"TERM"])

    def test_a_second_term_leaves_the_jobs_their_time(self) -> None:
        saves = ": >saving; until [ -e second ]; do sleep 0.02; done; touch saved; exit"
        self.jobs(f"trap '{saves}' TERM; {UP}; while :; do sleep 0.1; done")
        runner = self.start_jobs()
        runner.send_signal(signal.SIGTERM)              # twice, as Slurm does at a time limit
        wait_until(lambda: self.exists("saving"), what="the job got TERM")
        runner.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_pending(runner.pid, signal.SIGTERM), what="the runner got the second one")
        self.write("", "second")
        self.assertEnded(self.finish(runner), 143, "e")
        self.assertTrue(self.exists("saved"))

    def test_a_second_int_kills_at_once(self) -> None:
        self.jobs(STUBBORN, STUBBORN)
        runner = self.start_jobs("-j2", "--kill-after", "1h", up=[1, 2])
        runner.send_signal(signal.SIGINT)
        wait_until(lambda: self.exists("term.1") and self.exists("term.2"), what="the jobs got TERM")
        ended = self.stop(runner, signal.SIGINT)
        self.assertEnded(ended, 130, "ee")
        self.assertIn(b": SIGINT: killing 2 jobs (Ctrl-C again: at once)\n", ended.err)

    def start_amid(self) -> subprocess.Popen[bytes]:
        """A runner amid short jobs; those at the end of the file wait at the gate, so it never reaches it."""
        self.jobs(*["echo $JOB_ID >> ran"] * 1000, *[f"echo $JOB_ID >> ran; {GATE}"] * 3, "touch never")
        runner = self.start(RUNMAKER, "-j3", "-q", "runs.txt")
        wait_until(lambda: self.states().count("d") > 5, what="some are done")
        return runner

    def test_nothing_is_left_running_when_int_comes_amid_short_jobs(self) -> None:
        for seed in range(3):
            with self.subTest(seed=seed):
                runner = self.start_amid()
                time.sleep(random.Random(seed).uniform(0, 0.1))
                states = self.check_amid(self.stop(runner, signal.SIGINT), 130)
                self.assertLessEqual(states.count("e"), 3)

    def test_nothing_is_cut_short_when_hup_comes_amid_short_jobs(self) -> None:
        runner = self.start_amid()
        runner.send_signal(signal.SIGHUP)
        self.await_word(runner, b"HUP")
        self.open_gate()
        self.assertNotIn("e", self.check_amid(self.finish(runner), 1))

    def check_amid(self, ended: Ended, code: int) -> str:
        """Only some of the jobs ran, and those are marked; the states."""
        states = self.states()
        self.assertEnded(ended, code, states)
        self.assertLessEqual(set(states), set("d.e"))
        self.assertIn(".", states)
        ran = sorted(int(line) for line in self.read("ran").split())
        done = [line for line, state in enumerate(states, 1) if state == "d"]
        self.assertEqual([line for line in ran if states[line - 1] != "e"], done)
        (self.dir / "ran").unlink()
        return states


class OfTheMainThread(SignalCase):
    """The signal that each job brings wakes no thread of the runner but the main one."""

    def test_no_other_thread_gets_one(self) -> None:
        self.jobs(f"echo out; {WAITING}")
        runner = self.start_jobs()
        wait_until(lambda: len(threads(runner.pid)) > 1, what="another thread has started")
        wait_until(lambda: [task for task, blocked in threads(runner.pid).items()
                            if not blocked & 1 << signal.SIGCHLD - 1] == [runner.pid], what="it blocks it")
        self.open_gate()
        self.assertEnded(self.finish(runner), 0, "d")


class Drained(RunCase):
    """HUP and USR1: nothing more is started, what runs may end, and the results make the exit status."""

    def drain(self, number: signal.Signals, first: str, *options: object) -> Ended:
        """The signal comes while the first job waits at the gate and the second is still to come."""
        self.jobs(first, "touch never")
        runner = self.start_jobs(*options)
        runner.send_signal(number)
        self.open_gate()
        return self.finish(runner)

    def test_usr1_does_so_and_a_drained_runner_does_not_follow_the_file_any_longer(self) -> None:
        self.assertEnded(self.drain(signal.SIGUSR1, WAITING, "--follow"), 1, "d.")

    def test_quit_does_the_same_however_often_it_comes(self) -> None:
        self.jobs(WAITING, "touch never")
        runner = self.start_jobs(start_new_session=True)
        for _ in range(2):
            os.killpg(runner.pid, signal.SIGQUIT)           # what Ctrl-\ does
        self.open_gate()
        self.assertEnded(self.finish(runner), 1, "d.")

    def test_a_job_that_fails_after_hup_is_marked_and_not_retried(self) -> None:
        ended = self.drain(signal.SIGHUP, f"{WAITING}; echo x >> runs; exit 3", "--retries", "3")
        self.assertEnded(ended, 1, "!.")
        self.assertEqual(self.read("runs"), b"x\n")

    def test_int_still_ends_the_jobs_of_a_draining_runner(self) -> None:
        self.jobs(SLEEPING, "touch never")
        runner = self.start_jobs()
        runner.send_signal(signal.SIGHUP)
        self.assertEnded(self.stop(runner, signal.SIGINT), 130, "e.")


class IgnoredAtStart(RunCase):
    """A signal that was ignored at the start (nohup) stays ignored by the runner, not by its jobs."""

    def start_ignoring(self, signals: str, *options: str) -> subprocess.Popen[bytes]:
        words = self.command(RUNMAKER, *options, "runs.txt")
        return self.start("sh", "-c", f'trap "" {signals}; exec "$@"', "sh", *words)

    def test_they_stay_ignored(self) -> None:
        """HUP as under nohup."""
        self.jobs(WAITING, "touch second")
        runner = self.start_ignoring("HUP INT TERM")
        self.wait_up(1)
        for number in signal.SIGHUP, signal.SIGINT, signal.SIGTERM:
            runner.send_signal(number)
        self.open_gate()
        self.assertEnded(self.finish(runner), 0, "dd")

    def test_jobs_start_with_default_signals(self) -> None:
        names = ("HUP", "INT", "QUIT", "TERM", "PIPE", "USR1", "USR2", "XCPU", "XFSZ")
        self.jobs(*[f"sh -c 'kill -{name} $$; :'" for name in names])
        ended = self.finish(self.start_ignoring("HUP INT QUIT PIPE USR1 USR2 XCPU XFSZ", f"-j{len(names)}"))
        self.assertEnded(ended, 1, "!" * len(names))


class DeadlySignals(RunCase):
    """A job that dies of a signal that its runner did not send has failed."""

    def test_a_signal_that_would_stop_a_runner_is_a_failure_if_the_runner_does_not_get_it(self) -> None:
        self.jobs("kill -TERM $$", "kill -HUP $$", "exit 130")
        runner = self.start_patched("import runmaker4; runmaker4.StopSignals.TOGETHER_SECONDS = 0.1", "-j3",
                                    "runs.txt")
        self.assertEnded(self.finish(runner), 1, "!!!")

    def test_resume_does_not_run_a_crashing_job_again(self) -> None:
        self.jobs("echo >>ran; kill -SEGV $$")
        for _ in range(2):
            self.assertEnded(self.run_jobs("--resume"), 1, "!")
        self.assertEqual(self.read("ran"), b"\n")


class StoppedTogether(SignalCase):
    """Slurm or a terminal sends one signal to jobs and runners: what dies was interrupted."""

    def pids(self, count: int) -> list[int]:
        return [int(self.wait_file(f"pid.{line}")) for line in range(1, count + 1)]

    def start_two(self, second: str, *options: object, held: float = 0) -> subprocess.Popen[bytes]:
        """Two jobs run, one waits; together= has more than a second here, as we may be slow.

        second: the second job, which says that it is up once it has its traps.
        held: for so long, about, the runner holds back what a job has ended with.
        """
        told = "echo $$ >pid.$JOB_ID"
        self.jobs(f"{told}; {UP}; exec sleep 600", f"{told}; {second}", "true")
        patch = ("from runmaker4 import StopSignals; StopSignals.TOGETHER_SECONDS = 30; "
                 f"StopSignals.MAX_HELD_SECONDS = {held}; StopSignals.HELD_SHARE = 1000; "
                 "StopSignals.MIN_HELD_RUN = 0")
        runner = self.start_patched(patch, "-j2", *options, "runs.txt")
        self.wait_up(1, 2, runner=runner)
        return runner

    def signal_all(self, runner: subprocess.Popen[bytes], number: signal.Signals, *order: int) -> Ended:
        """Send a signal to all in this order; a job that comes before the runner has ended by then."""
        for pid in order:
            os.kill(pid, number)
            if pid != runner.pid:
                wait_until(lambda: not alive(pid), what="the job has ended")
        return self.finish(runner)

    def test_jobs_that_end_before_their_runner_is_told_are_interrupted(self) -> None:
        tidying = f"trap 'trap - TERM; kill -TERM $$' TERM; {UP}; while :; do sleep 0.02; done"
        runner = self.start_two(tidying, "--retries", "2")
        self.assertEnded(self.signal_all(runner, signal.SIGTERM, *self.pids(2), runner.pid), 143, "ee.")

    def test_a_runner_that_is_only_to_drain_counts_them_as_interrupted_too(self) -> None:
        runner = self.start_two(f"{UP}; exec sleep 600")
        self.assertEnded(self.signal_all(runner, signal.SIGUSR1, *self.pids(2), runner.pid), 1, "ee.")

    def test_a_job_that_dies_just_after_its_runner_was_told_is_interrupted(self) -> None:
        runner = self.start_two(f"trap 'exit 129' HUP; {UP}; while :; do sleep 0.02; done")
        runner.send_signal(signal.SIGHUP)
        self.await_word(runner, b"HUP")
        self.assertEnded(self.signal_all(runner, signal.SIGHUP, *self.pids(2)), 1, "ee.")

    def check_own_end(self, number: signal.Signals, code: int, held: float) -> None:
        """The second job, too, gets the signal, saves its state, and exits with this.

        held: it ends before its runner is told; 0: before the runner, which is stopped, can look.
        """
        saves = f"trap 'exit {code}' INT TERM XCPU; {UP}; while :; do sleep 0.02; done"
        runner = self.start_two(saves, held=held)
        if not held:
            runner.send_signal(signal.SIGSTOP)
            runner.send_signal(number)
        _, job = self.pids(2)
        os.kill(job, number)
        wait_until(lambda: not alive(job), what="the job has ended")
        runner.send_signal(number if held else signal.SIGCONT)
        self.assertEnded(self.finish(runner), 128 + number, "ee.")

    def test_a_job_that_ends_with_0_just_before_its_runner_is_told_is_interrupted(self) -> None:
        self.check_own_end(signal.SIGTERM, code=0, held=30)

    def test_a_job_that_ends_with_0_while_its_runner_is_told_is_interrupted(self) -> None:
        self.check_own_end(signal.SIGINT, code=0, held=0)

    def test_a_signal_with_a_larger_number_than_sigchld_is_handled_before_it(self) -> None:
        self.check_own_end(signal.SIGXCPU, code=0, held=0)

    def test_a_job_that_fails_in_its_own_way_just_before_its_runner_is_told_is_interrupted(self) -> None:
        self.check_own_end(signal.SIGINT, code=3, held=30)

    def test_a_job_that_still_ends_well_is_done(self) -> None:
        runner = self.start_two(f"trap 'exit 0' USR1; {UP}; while :; do sleep 0.02; done")
        first, second = self.pids(2)
        runner.send_signal(signal.SIGUSR1)
        self.await_word(runner, b"USR1")
        self.assertEnded(self.signal_all(runner, signal.SIGUSR1, first, second), 1, "ed.")

    def test_what_is_told_of_the_job_is_how_it_ended(self) -> None:
        runner = self.start_two(f"{UP}; exec sleep 600", "--joblog", "joblog")
        ended = self.signal_all(runner, signal.SIGTERM, *self.pids(2), runner.pid)
        self.assertEqual([line.split(b"\t")[6:8] for line in self.read("joblog").splitlines()[1:]],
                         [[b"143", b"15"]] * 2)
        self.assertEqual([text[:9] for text in printed(console_lines(ended.out), "status")[2:]],
                         [b"signal 15"] * 2)


class LostConsole(RunCase):
    """A console that goes away is said once; the jobs go on, and only they decide the exit status."""

    def test_a_closed_pipe_is_said_once_and_only_the_jobs_count(self) -> None:
        """One line is read, as by head -1.  That failed jobs count is tested below."""
        self.jobs(f"{WAITING}; echo a", "echo b", "echo c", "true")
        runner = self.start_jobs()
        self.assertTrue(present(runner.stdout).readline().startswith(b"executing `"))
        present(runner.stdout).close()
        self.open_gate()
        ended = self.finish(runner)
        self.assertEqual(ended.err.count(b"\n"), 2, f"the complaint and the closing line: {ended.err!r}")
        self.assertComplains(ended, "output")
        self.assertEnded(ended, 0, "dddd")

    def test_the_jobs_go_on_when_stderr_is_closed_too(self) -> None:
        self.jobs(f"{WAITING}; echo a; echo b >&2", "echo b", "exit 1")
        runner = self.start_jobs(stderr=subprocess.STDOUT)
        present(runner.stdout).close()
        self.open_gate()
        self.assertEqual(runner.wait(timeout=DEADLINE), 1)
        self.assertEqual(self.states(), "dd!")
        self.assertNobodyLeft()

    def test_a_full_disk_under_the_console_stops_no_job(self) -> None:
        self.jobs("echo a", "echo b", "true")
        with open("/dev/full", "wb") as full:
            ended = self.run_jobs(stdout=full)
        self.assertEqual((ended.code, self.states()), (1, "ddd"))
        self.assertComplains(ended, "output")

    def test_without_the_three_descriptors_nothing_is_written_to_the_wrong_file(self) -> None:
        """Files that a runner opens must not get the numbers 0 to 2, where messages go."""
        self.jobs("echo a; echo b >&2; cat; touch ran", "true")
        words = self.command(RUNMAKER, "-l", "log", "--joblog", "joblog", "runs.txt")
        ended = self.run_script("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words)
        self.assertEnded(ended, 0, "dd")
        self.assertTrue(self.exists("ran"))
        self.assertEqual([line.split(b"\t")[0] for line in self.read("joblog").splitlines()],
                         [b"Seq", b"1", b"2"])


class StuckConsole(RunCase):
    """A console that blocks holds back the reading of jobs, nothing else."""

    def test_a_timeout_strikes_while_the_terminal_is_stopped(self) -> None:
        """Ctrl-S from the first line on, Ctrl-Q in the end; then all that was printed is there."""
        self.before = self.write(f". echo a\n#RUN timeout=0.3\n. {SLEEPING}\n#RUN\n. echo c\n").read_bytes()
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        termios.tcflow(slave, termios.TCOOFF)
        runner = self.start(RUNMAKER, "runs.txt", stdout=slave)
        self.wait_states("d!d")
        termios.tcflow(slave, termios.TCOON)
        os.close(slave)
        shown = read_terminal(master)
        self.assertEnded(self.finish(runner), 1, "d!d")
        for text in b"[1] a\n", b"timeout after 0.3s", b"[5] c\n", b"[5] done in ":
            self.assertIn(text, shown)

    def test_int_ends_the_jobs_while_nobody_reads_the_pipe(self) -> None:
        self.jobs(f"{UP}; yes", SLEEPING)
        runner = self.start_jobs("-j2", up=[1, 2])
        runner.send_signal(signal.SIGINT)
        self.wait_states("ee")
        self.assertEnded(self.finish(runner), 130, "ee")


class StoppedAtTerminal(TerminalCase):
    """The first line on a terminal says which keys stop a runner: they do (Ctrl-C: test_terminal)."""

    def test_ctrl_backslash_lets_what_runs_end(self) -> None:
        self.jobs(WAITING, "true")
        terminal = self.terminal(200)
        runner = self.start_at(terminal, RUNMAKER, "runs.txt")
        self.wait_up(1)
        self.wait_shown(terminal, "^progress: ")
        first, *_ = terminal.look()
        self.assertRegex(first, r"^runmaker4\S*\.py: \S+: Ctrl-C kills the jobs; Ctrl-\\ starts no more")
        os.write(terminal.master, b"\x1c")
        wait_until(lambda: "SIGQUIT: " in "".join(terminal.look()), what="the key is obeyed")
        self.open_gate()
        self.assertEqual((runner.wait(DEADLINE), self.states()), (1, "d."))


class ControllingTerminal(TerminalCase):
    """Jobs have neither the runner's terminal nor its input."""

    def test_a_job_that_asks_the_terminal_fails_at_once(self) -> None:
        self.jobs("cat < /dev/tty", "true")
        runner = self.start_at(self.terminal(), RUNMAKER, "runs.txt")
        self.assertEnded(self.finish(runner), 1, "!d")

    def test_a_job_that_reads_its_input_finds_the_end_at_once(self) -> None:
        self.jobs("cat > got")
        runner = self.start(RUNMAKER, "runs.txt", stdin=subprocess.PIPE)
        present(runner.stdin).write(b"for the runner\n")
        present(runner.stdin).flush()
        self.assertEqual(runner.wait(timeout=DEADLINE), 0)
        self.assertEqual(self.read("got"), b"")


class Descriptors(RunCase):
    """The limit of open files is raised to what the slots need, or the runner refuses to start."""

    def run_limited(self, limit: str) -> subprocess.Popen[bytes]:
        words = self.command(RUNMAKER, "-j100", "runs.txt")
        return self.start("sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *words)

    def test_a_hundred_jobs_run_at_once_under_a_soft_limit_of_64(self) -> None:
        os.mkfifo(self.dir / "fifo")
        self.jobs(*[f"{UP}; : < fifo"] * 100)
        runner = self.run_limited("-Sn 64")
        self.wait_up(*range(1, 101))
        gate = os.open(self.dir / "fifo", os.O_RDWR)
        self.addCleanup(os.close, gate)
        self.assertEnded(self.finish(runner), 0, "d" * 100)

    def test_a_limit_that_is_low_but_suffices_is_no_obstacle(self) -> None:
        self.jobs("echo a", "true")
        words = self.command(RUNMAKER, "runs.txt")
        self.assertEnded(self.run_script("sh", "-c", 'ulimit -n 45; exec "$@"', "sh", *words), 0, "dd")

    def test_a_hard_limit_of_64_is_refused_in_one_line(self) -> None:
        self.jobs(*["touch ran"] * 100)
        self.assertRefused(self.finish(self.run_limited("-n 64")), "runmaker4.py", "64")
        self.assertEqual(self.states(), "." * 100)
        self.assertFalse(self.exists("ran"))

    def test_files_that_are_open_at_the_start_count_too(self) -> None:
        self.jobs("touch ran")
        fds = [os.dup(0) for _ in range(30)]
        words = self.command(RUNMAKER, "runs.txt")
        ended = self.run_script("sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *words, pass_fds=fds)
        runmaker4.close_all(*fds)
        self.assertRefused(ended, "so many jobs need", "open files, the limit is 64")
        self.assertFalse(self.exists("ran"))


class OnNfs(RunCase):
    """A runner that takes its directory for NFS, where a result needs descriptors (rigs/counted.py)."""
    # once a job has made `all` or `few`, take all descriptors, or all but 8, until there is `enough`
    TAKEN = """
import os, threading, time
def take():
    while not (names := {"all", "few"} & {*os.listdir()}): time.sleep(0.01)
    taken, failed = [], 0
    while failed < 60:                  # for longer than the start of the job, or a look at /proc, has some
        try: taken, failed = [*taken, os.dup(0)], 0
        except OSError: time.sleep(0.02); failed += 1
    if "few" in names:
        for fd in range(92, 100): taken.remove(fd) or os.close(fd)
    os.mkdir("taken")
    while not os.path.exists("enough"): time.sleep(0.01)
    for fd in taken: os.close(fd)
threading.Thread(target=take, daemon=True).start()
"""

    def start_limited(self, *options: object, patch: str = "") -> subprocess.Popen[bytes]:
        """Start it with at most 100 open files."""
        program = (f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
                   f"from tests.real.rigs import counted\n{patch}\n"
                   "sys.exit(counted.main(*sys.argv[1:]))")
        words = PYTHON, "-c", program, ROOT, "counts", 0, 0, *options, self.dir / "runs.txt"
        return self.start("sh", "-c", 'ulimit -n 100; exec "$@"', "sh", *words)

    def test_a_job_that_fails_again_and_again_takes_no_more_and_more(self) -> None:
        self.jobs("exit 1", "sleep 600 & exit 1", "true")
        ended = self.finish(self.start_limited("-q", "--no-records", "-j2", "--retries", "100"))
        self.assertEqual((self.states(), ended.err.count(b"\n")), ("!!d", 1), ended.err)

    def test_a_result_is_written_although_none_is_left(self) -> None:
        self.jobs("touch all; until [ -e taken ]; do sleep 0.02; done")
        runner = self.start_limited("-q", "--no-records", patch=self.TAKEN)
        self.wait_states("d")
        self.write("", "enough")
        said = self.finish(runner).err
        self.assertIn(b"line 1: the result d cannot be written: too many open files; trying again", said)

    def test_no_job_starts_with_the_last_ones(self) -> None:
        self.jobs("touch few; until [ -e taken ]; do sleep 0.02; done", "true")
        runner = self.start_limited("--errors", self.dir / "said", patch=self.TAKEN)
        waits = b"line 2: cannot be started here: too many open files"
        wait_until(lambda: self.exists("said") and waits in self.read("said"), what="it waits")
        self.wait_states("d.")
        self.assertIsNone(runner.poll())
        self.write("", "enough")
        self.assertEqual((self.finish(runner).code, self.states()), (0, "dd"))


# -- the same, promised of a client -------------------------------------------------------------------------


@ordinarily("test_int_ends_the_jobs_and_exits_130", "test_term_ends_the_jobs_and_exits_143",
            "test_nothing_is_left_running_when_int_comes_amid_short_jobs",
            "test_nothing_is_cut_short_when_hup_comes_amid_short_jobs")
class InterruptedOverTcp(OverTcp, Interrupted):
    """INT and TERM at a client: its jobs end and are e at once; lines that had not begun are new."""

    def check_amid(self, ended: Ended, code: int) -> str:
        """The server first takes back what was on its way to the client when it left."""
        wait_until(lambda: "r" not in self.states(), what="no line is claimed any more")
        return super().check_amid(ended, code)


@ordinarily("test_usr1_does_so_and_a_drained_runner_does_not_follow_the_file_any_longer")
class DrainedOverTcp(OverTcp, Drained):
    """HUP and USR1 at a client: it starts nothing more and waits for what runs."""


@ordinarily()
@without("test_what_is_told_of_the_job_is_how_it_ended")    # the job log is the server's
class StoppedTogetherOverTcp(OverTcp, StoppedTogether):
    """Somebody sends one signal to jobs and clients alike: what dies of it was interrupted."""


class OfTheMainThreadOverTcp(OverTcp, OfTheMainThread):
    """The same of a client, of which another thread has looked up the server's name."""
    HOST = "localhost"


class IgnoredAtStartOverTcp(OverTcp, IgnoredAtStart):
    """A signal that was ignored when the client started stays ignored."""


@ordinarily("test_ctrl_backslash_lets_what_runs_end")
class StoppedAtTerminalOverTcp(OverTcp, StoppedAtTerminal):
    """A client's terminal: the same keys, said in the same line."""
