"""Promise: a runner copes with what it is started in: descriptors, signals, a full machine."""
import functools
import json
import os
import resource
import signal
import subprocess
from collections.abc import Sequence

from tests.support.processes import DEADLINE, Ended, wait_until
from tests.support.runs import HASTY, SLEEPING, WAITING, RunCase
from tests.support.scripts import RUNMAKER, RUNSET, RUNWAIT


class Descriptors(RunCase):
    """What the runner was started with besides 0, 1 and 2 is not for its jobs."""
    LIST = "for fd in /proc/$$/fd/*; do readlink $fd; done >open"

    def test_jobs_have_the_lock_and_nothing_foreign(self) -> None:
        self.jobs(self.LIST)
        ended = self.run_script("sh", "-c", 'exec 7>leak 8>&1; exec "$@"', "sh",
                                *self.command(RUNMAKER, "runs.txt"))
        self.assertEqual(ended.code, 0, ended.err)
        names = [os.path.basename(line) for line in self.read("open").decode().splitlines()]
        self.assertNotIn("leak", names)
        self.assertEqual(names.count(".runs.txt.lock"), 1, names)
        # its stdout and stderr
        self.assertEqual(len([name for name in names if name.startswith("pipe:")]), 2, names)

    def test_jobs_have_the_limit_of_open_files_that_the_runner_was_started_with(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self.jobs("ulimit -Sn >soft; [ $(ulimit -Hn) != $(ulimit -Sn) ]")
        limits = functools.partial(resource.setrlimit, resource.RLIMIT_NOFILE, (100, hard))
        ended = self.finish(self.start(RUNMAKER, "-q", "-j100", "runs.txt", preexec_fn=limits))
        self.assertEqual((ended.code, self.read("soft")), (0, b"100\n"), ended.err)

    def test_make_in_a_job_is_told_nothing_of_descriptors_that_only_the_runner_has(self) -> None:
        fifo = "-j2 --jobserver-auth=fifo:/tmp/3,4"
        for flags, mflags, told in (("s -j2 --jobserver-auth=3,4 -- A=b", "-j2 --jobserver-fds=3,4",
                                     "s -j2 -- A=b,-j2"), (fifo, fifo, f"{fifo},{fifo}")):
            self.jobs('echo "$MAKEFLAGS,$MFLAGS" >flags')
            self.run_jobs("-q", env={"MAKEFLAGS": flags, "MFLAGS": mflags})
            self.assertEqual(self.read("flags").decode(), f"{told}\n")

    def test_in_grid_engine_jobs_keep_its_job_id(self) -> None:
        self.jobs("true", 'echo "$JOB_ID $RUNMAKER4_LINE" >>ids')
        for env in {"SGE_TASK_ID": "undefined", "JOB_ID": "77"}, {"JOB_ID": "77"}:
            self.assertEqual(self.run_jobs("-q", env=env).code, 0)
            self.jobs("true", 'echo "$JOB_ID $RUNMAKER4_LINE" >>ids')
        self.assertEqual(self.read("ids"), b"77 2\n2 2\n")

    # while the shell is started the worker's thread exchanges the job's descriptor, and another file gets its
    # number
    EXCHANGE = """
import os, runmaker4
marked, mark, start = [], runmaker4.JobQueue._lock_and_mark, runmaker4.Processes.start
def note(*args, **options):
    marked.append(mark(*args, **options))
    return marked[-1]
def start_amid(*args, **options):
    if not marked[-1].job_lock:         # not of a job
        return start(*args, **options)
    fd = marked[-1].job_lock.fd
    kept = os.dup(fd)
    os.close(fd)
    assert os.open("another", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC) == fd
    try:
        return start(*args, **options)
    finally:
        os.dup2(kept, fd, inheritable=False)
runmaker4.JobQueue._lock_and_mark, runmaker4.Processes.start = note, start_amid
"""

    def test_a_job_gets_its_own_lock_although_the_number_is_another_file_s_by_then(self) -> None:
        self.jobs(self.LIST)
        self.assertEnded(self.finish(self.start_patched(self.EXCHANGE, "-q", "runs.txt")), 0, "d")
        names = [os.path.basename(line) for line in self.read("open").decode().splitlines()]
        self.assertIn(".runs.txt.lock", names)
        self.assertNotIn("another", names)

    SLOW_LEND = """
import os, signal, threading, runmaker4
lend, stop, stopped = runmaker4.JobQueue.copy_lock_fds, runmaker4.Runner.drain, threading.Event()
def lend_amid_signal(queue, job):
    os.kill(os.getpid(), signal.SIGUSR1)
    stopped.wait(300)
    return lend(queue, job)
runmaker4.JobQueue.copy_lock_fds = lend_amid_signal
runmaker4.Runner.drain = lambda self: (stop(self), stopped.set())
runmaker4.Mount.network = True
"""

    def test_a_job_is_given_back_if_a_signal_comes_while_the_file_system_takes_its_time(self) -> None:
        self.jobs("true", "true")
        ended = self.finish(self.start_patched(self.SLOW_LEND, "-q", "runs.txt"))
        self.assertEqual(self.states(), "..", ended.err)


class BlockedSignals(RunCase):
    """Signals that were blocked by whoever started the runner do what they always do."""
    ALL = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE)

    def start_blocking(self, *options: str, up: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        return self.start_jobs(*options, up=up,
                               preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, self.ALL))

    def test_the_ends_of_jobs_are_noticed_which_have_no_signal_blocked(self) -> None:
        self.jobs("exec grep SigBlk /proc/self/status >blocked", "exit 3", WAITING)
        runner = self.start_blocking("-j3", up=[3])
        self.open_gate()
        self.assertEnded(self.finish(runner), 1, "d!d")
        self.assertEqual(int(self.read("blocked").split()[1], 16), 0)

    def test_term_ends_the_jobs(self) -> None:
        self.jobs(SLEEPING, "true")
        runner = self.start_blocking(up=[1])
        self.assertEnded(self.stop(runner), 143, "e.")


class LostDirectory(RunCase):
    """The current directory was removed before a script was started in it."""
    LOSE = 'mkdir lost; cd lost; rmdir ../lost; exec "$@"'

    def run_lost(self, script: str, *args: str) -> Ended:
        return self.run_script("sh", "-c", self.LOSE, "sh", *self.command(script, *args))

    def test_a_runner_says_so_in_one_line(self) -> None:
        path = self.write(". true\n")
        for name in str(path), "runs.txt":
            with self.subTest(name=name):
                self.assertRefused(self.run_lost(RUNMAKER, name), "current directory")
        self.assertEqual(self.states(), ".")

    def test_the_other_scripts_need_none_where_the_path_is_absolute(self) -> None:
        """A relative one leads nowhere."""
        path = str(self.write("d true\n"))
        for script, option in (RUNSET, "--list"), (RUNWAIT, "--status"):
            with self.subTest(script=script):
                ended = self.run_lost(script, option, path)
                self.assertEqual((ended.code, ended.err), (0, b""))
                self.assertRefused(self.run_lost(script, option, "runs.txt"), "runs.txt")


class FullMachine(RunCase):
    """The machine has no room for another process, for now."""
    FULL = f"""{HASTY}
import errno, os
spawn, tries = os.posix_spawnp, int(sys.argv.pop(1))
def refuse(*args, **options):
    global tries
    tries -= 1
    if tries >= 0:
        for name in os.listdir("replaced"):     # by an editor, while the line is r
            os.rename("replaced/" + name, name)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return spawn(*args, **options)
os.posix_spawnp = refuse
runmaker4.JobReader.MAX_LOOKS, runmaker4.Runner.BUSY_SECONDS = 2, 0.01
"""
    JOB = "echo this is the job"

    def start_full(self, tries: int) -> subprocess.Popen[bytes]:
        """Start a runner that is refused so many more processes; stderr is in a file."""
        (self.dir / "replaced").mkdir(exist_ok=True)
        with open(self.dir / "errors", "wb") as errors:
            runner = self.start_patched(self.FULL, str(tries), "runs.txt", stderr=errors)
        self.assertIn(b"line 1: cannot be started here: ", self.wait_file("errors"))
        return runner

    def assertSaid(self, runner: subprocess.Popen[bytes], code: int) -> bytes:
        """The runner ends with this exit status; what it said, which is no traceback."""
        self.assertEqual(runner.wait(DEADLINE), code)
        said = self.read("errors")
        self.assertNotIn(b"Traceback", said)
        return said

    def test_the_job_is_started_as_soon_as_that_is_possible(self) -> None:
        self.jobs(self.JOB)
        said = self.assertSaid(self.start_full(2), 0)
        self.assertEqual((self.states(), said.count(b"cannot be started")), ("d", 1))

    def test_another_runner_takes_the_line_meanwhile(self) -> None:
        self.jobs(self.JOB)
        runner = self.start_full(1_000_000)
        # one that meets the line while the first tries to start it has nothing to do
        wait_until(lambda: self.run_jobs("--name", "other").code == 0 and self.states() == "d")
        said = self.assertSaid(runner, 0)
        self.assertEqual(said.count(b"cannot be started"), 1)
        hosts = {json.loads(line)["host"] for line in self.read("runs.txt.out/journal").splitlines()}
        self.assertEqual(hosts, {"other"})

    def test_a_job_that_runs_again_waits_as_nothing_else_can_run_it(self) -> None:
        self.jobs("[ -e ran ] || { touch ran; exit 3; }")
        patch = self.FULL.replace("tries -= 1", "tries -= os.path.exists('ran')").replace(
            "if tries >= 0:", "if os.path.exists('ran') and tries >= 0:")
        (self.dir / "replaced").mkdir()
        ended = self.finish(self.start_patched(patch, "2", "--retries", "1", "runs.txt"))
        self.assertEnded(ended, 0, "d")
        self.assertComplains(ended, "line 1: cannot be started here: resource temporarily unavailable")

    def test_term_gives_the_job_back(self) -> None:
        self.jobs(self.JOB)
        runner = self.start_full(1_000_000)
        runner.send_signal(signal.SIGTERM)
        self.assertSaid(runner, 143)
        self.assertEqual(self.read(), self.before)

    def test_what_has_taken_the_place_of_the_job_is_left_alone(self) -> None:
        for line in b"# no job any more.......\n", b"x echo another job.....\n":
            with self.subTest(line=line):
                self.jobs(self.JOB)
                (self.dir / "replaced").mkdir(exist_ok=True)
                self.write(line, "replaced/runs.txt")
                runner = self.start_full(1_000_000)
                wait_until(lambda: b"line 1: the line is gone" in self.read("errors"), what="it is missed")
                self.assertSaid(runner, 1)
                self.assertEqual(self.read(), line)


class Retried(RunCase):
    """A job cannot be started: on a retry, or for want of room."""

    def test_a_retry_that_cannot_be_started_is_an_error(self) -> None:
        self.script("#!/bin/sh\nexec /bin/sh \"$@\"\n", "bash")
        self.write("#RUN shell=./bash\n. rm bash; exit 3\n")
        ended = self.run_jobs("--retries", "1")
        self.assertEqual((ended.code, self.states()), (1, "e"))
        self.assertComplains(ended, "line 2: cannot be started", "bash")

    LONG = "import os, runmaker4; os.environ.update({f'LONG{number}': 'x' * 100_000 for number in range(80)})"

    def test_the_environment_is_named(self) -> None:
        self.jobs("true")
        ended = self.finish(self.start_patched(self.LONG, "runs.txt"))
        self.assertEnded(ended, 1, "e")
        self.assertComplains(ended, "line 1: cannot be started", "environment")
