"""Promise: what the jobs of a runner are promised by `#RUN memory=` never is more than the runner has."""
import os
import pathlib
import random
import re
import shlex
import time
import unittest
from typing import Any, Callable, Optional
from unittest import mock

import runmaker4
from tests.support.claims import JobFileCase
from tests.support.limits import LimitedCase
from tests.support.memory import HELD, HOLD, MEASURED, WATCHFUL
from tests.support.over_tcp import OverTcp, ordinarily, without
from tests.support.processes import Ended, wait_until
from tests.support.runs import UP
from tests.support.scripts import ALL, FULL, RUNMAKER, RUNWAIT
from tests.support.tcp import TcpCase
from tests.support.values import present

GIB = 1 << 30


# Until a job is killed, it takes long to read a process that was there before, and its own waits for a CPU;
# others that come meanwhile, by the hundred where other tests run, do not
LARGE_HOST = """
import os, runmaker4, time
before, is_slow = set(os.listdir("/proc")), True
read, kill_tree = runmaker4.ProcessStat.read, runmaker4.TreeKiller.kill_tree
def read_slowly(pid):
    if is_slow and pid in before:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
    elif is_slow and os.path.realpath(f"/proc/{pid}/cwd") == os.getcwd():
        time.sleep(0.15)
    return read(pid)
def kill_fast(*args):
    global is_slow
    is_slow = False
    return kill_tree(*args)
runmaker4.ProcessStat.read, runmaker4.TreeKiller.kill_tree = read_slowly, kill_fast
"""


class Sizes(unittest.TestCase):
    """Sizes, as directives and options give them, and what there is of memory and slots."""

    def test_a_size_is_a_whole_or_a_fraction_with_a_unit_of_a_power_of_1024(self) -> None:
        for text, size in (("1K", 1024), ("512M", GIB // 2), ("4G", 4 * GIB), ("1.5G", 3 * GIB // 2),
                           (".5T", 512 * GIB)):
            with self.subTest(text):
                self.assertEqual(runmaker4.memory_size(text), size)

    def test_sizes_are_shown_short(self) -> None:
        for size, text in ((0, "0K"), (512, "0.5K"), (4 * GIB, "4G"), (3 * GIB // 2, "1.5G"),
                           (GIB - 1, "1024M"), (5.1 * GIB, "5.1G"), (4096 * GIB, "4T")):
            with self.subTest(text):
                self.assertEqual(runmaker4.memory_text(size), text)

    def test_who_needs_no_memory_finds_enough_of_it_also_where_too_much_was_promised(self) -> None:
        left = runmaker4.Resources(1, GIB) - runmaker4.Resources(0, 2 * GIB)
        self.assertTrue(left.holds(runmaker4.ONE_SLOT))
        self.assertFalse(left.holds(runmaker4.Resources(1, 1)))


class Available(LimitedCase):
    """What a runner has that is not told by --memory: the least of the host's, the cgroups' and Slurm's."""

    def memory(self, groups: str = "", limits: Optional[dict[str, str]] = None,
               env: Optional[dict[str, str]] = None) -> float:
        """available_memory() in GiB on a host that has 64."""
        host = mock.patch.object(os, "sysconf", lambda name: 64 * GIB // runmaker4.PAGE)
        with host, self.limited(groups, limits, env):
            return runmaker4.available_memory() / GIB

    def test_cgroup_v2_limits_of_the_group_and_of_those_above(self) -> None:
        group = "0::/user.slice/job.scope\n"
        for limits, size in (
            ({"user.slice/job.scope/memory.max": str(3 * GIB)}, 3),
            ({"user.slice/job.scope/memory.max": "max", "user.slice/memory.max": str(2 * GIB)}, 2),
            ({"user.slice/job.scope/memory.max": str(GIB), "user.slice/memory.max": str(2 * GIB)}, 1),
            ({"memory.max": str(GIB)}, 1),
            ({"user.slice/memory.max": "max"}, 64),
        ):
            with self.subTest(limits=limits):
                self.assertEqual(self.memory(group, limits), size)

    def test_what_a_runner_was_promised_as_a_job_and_slurm_variables(self) -> None:
        step = {"SLURM_STEP_ID": "0", "SLURM_GTIDS": "4,5,6,7"}
        batch = {"SLURM_STEP_ID": "-5", "SLURM_GTIDS": "0", "SLURM_STEP_TASKS_PER_NODE": "4"}     # 26.05
        for env, size in (
            ({"RUNMAKER4_MEMORY": str(GIB)}, 1),
            ({"RUNMAKER4_MEMORY": str(128 * GIB)}, 64),
            ({"SLURM_MEM_PER_NODE": "8192"}, 8),
            ({"SLURM_MEM_PER_NODE": "8192", **step}, 2),
            ({"SLURM_MEM_PER_NODE": "8192", **batch}, 8),
            ({"SLURM_MEM_PER_NODE": "0"}, 64),
            ({"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "6"}, 6),
            ({"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "6"}, 6),
            ({**batch, "SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "6"}, 3),
            ({"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "8", **step}, 2),
            ({"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "8", **step}, 2),
            ({"SLURM_MEM_PER_CPU": "1024"}, 64),
            ({"SLURM_MEM_PER_NODE": "much"}, 64),
        ):
            with self.subTest(env=env):
                self.assertEqual(self.memory(env=env), size)

    def test_what_was_promised_counts_only_below_the_runner_that_promised_it(self) -> None:
        """sbatch, tmux and at keep the variables of the job that has called them."""
        promised = {"RUNMAKER4_MEMORY": str(GIB)}
        host = os.uname().nodename
        above, beside = f"{host}-{os.getppid()}-1-1", f"{host}-{os.getpid()}-1-1"
        elsewhere = "its-container-1-1-1"       # each host has a process 1
        for tags, size in ((above, 1), (f"{beside}/{above}", 1), (beside, 64), (f"{above}/{beside}", 64),
                           (elsewhere, 64), (f"{elsewhere}/{above}", 1), (f"{above}/{elsewhere}", 64)):
            with self.subTest(tags):
                self.assertEqual(self.memory(env={**promised, "RUNMAKER4_JOB": tags}), size)

    def test_a_runner_in_a_job_and_one_that_the_job_has_left_its_variables(self) -> None:
        self.write("#RUN memory=1M\n. true\n", "inner")
        inner = shlex.join(self.command(RUNMAKER, "--dry-run", "inner"))
        self.write(f"#RUN memory=64M\n. export -p >left; {inner} 2>inside\n")
        self.assertEqual(self.run_jobs().code, 0)
        self.assertIn(b"64M of memory for jobs", self.read("inside"))
        self.assertNotIn(b"64M of memory for jobs", self.run_script("sh", "-c", f". ./left; {inner}").err)

    def test_a_dry_run_says_it_if_a_job_needs_some(self) -> None:
        text = b"1.5G of memory for jobs with memory=\n"
        self.jobs("true")
        self.assertEqual(self.run_jobs("--dry-run", "-r", "--memory", "1.5G").err, b"")
        self.write("#RUN memory=1G\n. true\n#RUN memory=2G\n. false\n")
        ended = self.run_jobs("--dry-run", "--memory", "1.5G")
        self.assertEqual((ended.out, ended.err.count(b"\n")), (b"2 . true\n", 1))
        self.assertIn(text, ended.err)

    def test_a_runner_without_so_much_leaves_it_to_others_and_takes_what_is_below(self) -> None:
        for needs in "memory=900000T", "memory=900000T slots=2":
            with self.subTest(needs):
                self.write(f"#RUN {needs}\n. true\n#RUN\n. true\n")
                ended = self.run_jobs("-j2")
                self.assertEqual((ended.code, self.states()), (0, ".d"))
                self.assertIn(b"1 new", ended.err)


class Promises(TcpCase):
    """Jobs with memory= on a runner that has some.  A promise ends with its run."""

    def test_no_more_is_promised_than_there_is_and_nothing_below_begins_meanwhile(self) -> None:
        job = f". {UP}; until [ -e go.$JOB_ID ]; do sleep 0.02; done\n"
        self.write(f"#RUN memory=400M\n{job}{job}{job}#RUN\n{job}")
        runner = self.start_jobs("-j4", "--memory", "1G", up=[2, 3])
        self.assertEqual(self.states(), "rr..")
        self.write("", "go.2")
        self.wait_up(4, 6, runner=runner)
        self.assertEqual(self.states(), "drrr")
        for line in 3, 4, 6:
            self.write("", f"go.{line}")
        self.assertEqual((self.finish(runner).code, self.states()), (0, "dddd"))

    def test_a_job_without_a_promise_does_not_see_that_of_another_runners_job(self) -> None:
        self.jobs("[ -z $RUNMAKER4_MEMORY ]")
        self.assertEqual(self.run_jobs(env={"RUNMAKER4_MEMORY": "1"}).code, 0)

    def test_the_memory_of_a_job_that_has_left_a_process_is_for_others(self) -> None:
        self.write("#RUN memory=400M\n. (until [ -e go ]; do sleep 0.02; done) &\n. : >go\n")
        self.assertEqual((self.run_jobs("--memory=500M").code, self.states()), (0, "dd"))


@ordinarily("test_no_more_is_promised_than_there_is_and_nothing_below_begins_meanwhile",
            "test_the_memory_of_a_job_that_has_left_a_process_is_for_others")
class PromisesOverTcp(OverTcp, Promises):
    """The same with a server and a client, of which the server knows what it has."""


class WatchedCase(TcpCase):
    """Jobs whose memory is looked at."""

    def run_jobs(self, *options: object, patch: str = WATCHFUL, **settings: Any) -> Ended:
        return self.finish(self.start_patched(patch, *options, "runs.txt", **settings))


class Kept(WatchedCase):
    """What takes more than it was promised is ended."""

    def setUp(self) -> None:
        super().setUp()
        self.write(HOLD, "hold.py")

    def test_a_job_that_takes_more_is_ended_and_has_failed(self) -> None:
        self.write("#RUN memory=100M\n. python3 hold.py 150 60\n. python3 hold.py 20 1\n")
        ended = self.run_jobs("-j2", "--memory=1G", patch=HELD)
        self.assertEqual((ended.code, self.states()), (1, "!d"))
        self.assertRegex(ended.out.decode(), r"took 1[56][0-9](\.[0-9])?M of 100M")

    def test_all_processes_of_its_tree_count(self) -> None:
        each = "python3 hold.py {} 60 & "
        self.write(f"#RUN memory=150M\n. {each.format(70)}setsid {each.format(80)}wait\n")
        ended = self.run_jobs("--memory=1G")
        self.assertEqual((ended.code, self.states()), (1, "!"))
        self.assertRegex(ended.out.decode(), r"took 1[5-9][0-9](\.[0-9])?M of 150M")

    def test_a_host_with_many_processes_and_a_queue_for_its_cpus_holds_up_no_measurement(self) -> None:
        """Nor does it hide a process that has left session and environment."""
        leaving = 'env -i JOB_ID=2 PATH="$PATH" setsid python3 hold.py 150 300'
        self.write(f"#RUN memory=100M\n. sleep 0.3; {leaving} & wait\n")
        ended = self.run_jobs("--memory=1G", patch=LARGE_HOST)
        self.assertEqual((ended.code, self.states()), (1, "!"))
        self.assertRegex(ended.out.decode(), r"took 1[0-9][0-9](\.[0-9])?M of 100M")

    def test_pages_that_its_processes_share_count_once(self) -> None:
        self.write("import os, time\ndata = b'x' * (60 << 20)\n"
                   "def times(): return os.path.exists('measured.2') and os.path.getsize('measured.2')\n"
                   "before = times()\n"
                   "for _ in range(4):\n    if not os.fork():\n"
                   "        while times() < before + 2: time.sleep(0.02)\n        os._exit(0)\n"
                   "for _ in range(4):\n    os.wait()\n", "share.py")
        self.write("#RUN memory=150M\n. python3 share.py\n")
        self.assertEqual((self.run_jobs("--memory=1G", patch=MEASURED).code, self.states()), (0, "d"))

    def test_it_is_tried_again_as_after_a_timeout(self) -> None:
        self.write("#RUN memory=100M\n. echo >>runs; [ $(wc -l <runs) = 2 ] || python3 hold.py 150 60\n")
        ended = self.run_jobs("--memory=1G", "--retries=1")
        self.assertEqual((ended.code, self.states()), (0, "d"))

    def test_jobs_without_a_promise_may_take_what_they_want(self) -> None:
        measured = "rm -f measured.3; until [ -e measured.3 ]; do sleep 0.02; done"
        self.write(". python3 hold.py 150 60 & until [ -e held.1 ]; do sleep 0.02; done; "
                   f"{measured}; {measured}; : >over; kill $!; true\n"
                   "#RUN memory=10M\n. until [ -e over ]; do sleep 0.02; done\n")
        ended = self.run_jobs("-j2", "--memory=20M", patch=MEASURED)
        self.assertEqual((ended.code, self.states()), (0, "dd"))


class Growing(WatchedCase):
    """Growing sizes: what was ended for want of memory runs again with the next one."""

    def setUp(self) -> None:
        super().setUp()
        self.write("import os, time; data = b'x' * (110 << 20)\n"
                   "if int(os.environ['RUNMAKER4_MEMORY']) < len(data): time.sleep(600)", "hold.py")

    def test_it_runs_again_with_the_next_size_until_it_has_enough(self) -> None:
        self.write("#RUN memory=60M,100M,200M\n. echo $RUNMAKER4_MEMORY >>sizes; python3 hold.py\n")
        ended = self.run_jobs("--memory=1G")
        self.assertEqual((ended.code, self.states()), (0, "d"))
        self.assertEqual(self.read("sizes").split(), [b"%d" % (size << 20) for size in (60, 100, 200)])

    def test_a_runner_that_has_not_so_much_says_so(self) -> None:
        self.write("#RUN memory=60M,1G\n. echo >>runs; python3 hold.py\n")
        ended = self.run_jobs("--memory=900M", "--retries=3")
        self.assertEqual((ended.code, self.states(), self.read("runs")), (1, "!", b"\n"))
        text = r"line 2: took (.*)M of 60M; does not run again with 1G: there are 900M here\n"
        told = re.search(text, ended.err.decode())
        self.assertGreater(float(present(told)[1]), 60)     # it may be ended while it still takes more

    def test_retries_come_beside_it(self) -> None:
        self.write("#RUN memory=60M,200M\n. echo $RUNMAKER4_MEMORY >>sizes; python3 hold.py; [ -e no ]\n")
        self.assertEqual((self.run_jobs("--memory=1G", "--retries=1").code, self.states()), (1, "!"))
        self.assertEqual(self.read("sizes").split(), [b"%d" % (size << 20) for size in (60, 200, 200)])

    def test_it_waits_for_the_next_size_while_others_end(self) -> None:
        ended = "[ -s first ] && ! kill -0 $(cat first)"
        self.write("#RUN memory=60M,200M\n"
                   ". [ -s first ] || echo $$ >first; python3 hold.py && [ ! -e running ]\n"
                   f"#RUN memory=100M\n. >running; until {ended}; do sleep 0.02; done; rm running\n")
        self.assertEqual((self.run_jobs("-j2", "--memory=250M").code, self.states()), (0, "dd"))

    def test_a_runner_that_may_have_lost_its_line_does_not_run_it_again(self) -> None:
        patch = ("import os, runmaker4\ndef still_has(file, job):\n    open('asked', 'w').close()\n"
                 "    return os.path.exists('mine')\nrunmaker4.JobQueue.still_has = still_has")
        self.write("#RUN memory=60M,200M\n. echo >>runs; python3 hold.py\n")
        runner = self.start_patched(f"{WATCHFUL}\n{patch}", "--memory=1G", "runs.txt")
        wait_until(lambda: self.exists("asked"), what="it is asked")
        self.assertEqual((self.states(), self.read("runs")), ("r", b"\n"))
        self.write("", "mine")
        self.assertEqual((self.finish(runner).code, self.states()), (0, "d"))

    def test_what_the_kernel_has_killed_runs_again_with_more(self) -> None:
        self.write("#RUN memory=60M,200M\n. echo >>runs; [ $(wc -l <runs) = 2 ] || exit 137\n")
        counting = ("import runmaker4\nkills = iter(range(9))\n"
                    "runmaker4.OomKills.read_count = lambda self: next(kills)")
        runner = self.start_patched(counting, "--memory=1G", "runs.txt")
        self.assertEqual((self.finish(runner).code, self.states()), (0, "d"))

    def test_of_two_that_have_had_too_little_each_gets_what_it_needs(self) -> None:
        job = f"{UP}; until [ -e up.$((5 - $JOB_ID)) ]; do sleep 0.02; done; python3 hold.py"
        self.write(f"#RUN memory=60M,200M\n. {job}\n. {job}\n")
        self.assertEqual((self.run_jobs("-j2", "--memory=250M").code, self.states()), (0, "dd"))


@ordinarily("test_it_runs_again_with_the_next_size_until_it_has_enough",
            "test_a_runner_that_has_not_so_much_says_so")
@without("test_a_runner_that_may_have_lost_its_line_does_not_run_it_again")
class GrowingOverTcp(OverTcp, Growing):
    """The same with a server and a client."""


@ordinarily("test_a_job_that_takes_more_is_ended_and_has_failed")
@without("test_all_processes_of_its_tree_count", "test_pages_that_its_processes_share_count_once",
         "test_jobs_without_a_promise_may_take_what_they_want")     # a client watches them as a runner does
class KeptOverTcp(OverTcp, Kept):
    """The same with a server and a client."""


class OutOfMemory(LimitedCase, TcpCase):
    """What the kernel kills for want of memory is known from what others kill."""
    def setUp(self) -> None:
        super().setUp()
        self.write("data = b'x' * (500 << 20)", "take.py")

    def small_group(self) -> pathlib.Path:
        """A control group of 400 MiB, which a process enters by writing its number into its cgroup.procs."""
        group = pathlib.Path(f"/sys/fs/cgroup/runmaker4-{os.getpid()}")
        try:
            group.mkdir()
            self.addCleanup(group.rmdir)
            with open(group / "memory.max", "r+") as limit:
                limit.write(str(400 << 20))
        except OSError:
            raise unittest.SkipTest("no control group can be made here whose memory is limited") from None
        return group

    def test_a_job_that_the_kernel_has_killed_is_out_of_memory(self) -> None:
        group = self.small_group()
        self.jobs("python3 take.py", "kill -9 $$")
        runner = shlex.join(self.command(RUNMAKER, "--outdir=out", "runs.txt"))
        ended = self.run_script("sh", "-c", f"echo $$ >{group}/cgroup.procs && exec {runner}")
        self.assertEqual((ended.code, self.states()), (1, "!!"))
        self.assertIn(b"out of memory, exit 137", ended.out)
        self.assertEqual(ended.out.count(b"out of memory"), 1)
        told = self.run_script(RUNWAIT, "--failed", "--outdir=out", "runs.txt").out
        self.assertEqual(told.count(b"out of memory, exit 137"), 1)

    def test_the_nearest_control_group_that_counts_is_asked(self) -> None:
        for limits, count in (
            ({"a/b/memory.events": "low 0\noom 9\noom_kill 3", "a/memory.events": "oom_kill 7"}, 3),
            ({"a/memory.events": "oom 9\noom_kill 7\noom_group_kill 1"}, 7),
            ({"a/cpu.max": "max 100000"}, 0),
        ):
            with self.subTest(limits=limits), self.limited("0::/a/b\n", limits, None):
                self.assertEqual(runmaker4.OomKills().read_count(), count)


class Clients(TcpCase):
    """Clients have their own memory each, and the server hands out by it."""

    def wait_left_alone(self, states: str) -> None:
        """Wait until the jobs have stayed in these states for a second."""
        since = [time.monotonic()]

        def is_left_alone() -> bool:
            if self.states() != states:
                since[0] = time.monotonic()
            return time.monotonic() - since[0] > 1.0
        wait_until(is_left_alone, what=f"the jobs stay {states}")

    def test_a_job_goes_to_the_client_that_has_enough(self) -> None:
        self.write("#RUN memory=500M\n" + ". echo $RUNMAKER4_SLOT >>taken\n" * 3)
        server = self.start_server()
        small = self.start_client(server, "--slots=small", "--memory=400M", "--follow")
        big = self.start_client(server, "--slots=big", "--memory=600M")
        self.assertEqual((self.finish(big).code, self.states()), (0, "ddd"))
        self.assertEqual(self.read("taken"), b"big\n" * 3)
        self.stop(small)

    def test_a_server_gives_nothing_to_a_client_that_does_not_fit_beside_a_grown_job(self) -> None:
        self.write("#RUN memory=60M,800M\n. echo >>runs; [ $(wc -l <runs) = 2 ] || python3 hold.py 80 60; "
                   f"{UP}; until [ -e go ]; do sleep 0.02; done\n")
        self.write(HOLD, "hold.py")
        client = self.start_client(self.start_server(), "-j2", "--memory=1G", up=[2], patch=WATCHFUL)
        self.append("#RUN memory=500M", ". true")
        # on a busy machine it is sent before the server hears of the growth, and comes back after a second
        self.wait_left_alone("r.")
        self.write("", "go")
        self.assertEqual((self.finish(client).code, self.states()), (0, "dd"))

    def test_what_a_job_was_promised_by_the_server_before_is_not_free(self) -> None:
        self.write(f"#RUN memory=600M\n. {UP}; until [ -e go ]; do sleep 0.02; done\n")
        server = self.start_server()
        client = self.start_client(server, "-j2", "--memory=1G", up=[2])
        server.kill()
        self.append(". true")
        self.start_server("--port", server.port)
        self.wait_said(client, "connected again")
        self.wait_left_alone("r.")
        self.write("", "go")
        self.assertEqual((self.finish(client).code, self.states()), (0, "dd"))


class HandingOut(JobFileCase):
    """Random lines, consumers, ends and kills: what is handed out is compared with a model of the file."""
    SEEDS = 200 if ALL else 60 if FULL else 5
    LINES, STEPS = 30, 250

    def run_model(self, seed: int, shared: bool) -> None:
        """A random course of events.  shared: all consumers have one cursor, as clients of a server do."""
        model = Model(random.Random(seed), self.LINES)
        path = self.path
        path.write_bytes(model.text)
        while True:
            model.keep_consumers(lambda consumer: self.cursor_for(consumer, model, shared))
            if model.steps > self.STEPS and model.is_over(path.read_bytes()):
                break
            self.clock.now += 0.5
            model.step(path)
        self.assertEqual(model.faults, [])

    def cursor_for(self, consumer: runmaker4.Consumer, model: "Model", shared: bool) -> runmaker4.Cursor:
        cursors = [cursor for cursor, _ in model.consumers.values()]
        if shared and cursors:
            return cursors[0]
        file = runmaker4.JobFile(str(self.path), say=lambda said: None, clock=self.clock)
        self.addCleanup(file.close_files)
        queue = runmaker4.JobQueue(file)
        # in full size a thousand: select(2) takes no descriptor from 1024 on, in whatever test comes next
        self.addCleanup(runmaker4.close_all, *queue._reserve)
        return runmaker4.Cursor(queue, [] if shared else [consumer], serving=shared)

    def test_runners_on_one_file_and_clients_of_one_server(self) -> None:
        for seed in range(self.SEEDS):
            for shared in False, True:
                with self.subTest(seed=seed, shared=shared):
                    self.run_model(seed, shared)


class Model:
    """What may happen to a file's lines, and what each consumer has promised.  faults: what must not be."""
    UNIT = 100 << 20

    def __init__(self, draws: random.Random, lines: int) -> None:
        self.random = draws
        self.needs: dict[int, runmaker4.Resources] = {}         # by line number
        self.consumers: dict[runmaker4.Consumer, tuple[runmaker4.Cursor, list[runmaker4.Job]]] = {}
        self.faults: list[str] = []
        self.steps = 0
        text: list[str] = []
        for _ in range(lines):
            needs = runmaker4.Resources(draws.choice([1, 1, 1, 2, 3]), draws.randrange(8) * self.UNIT)
            memory = f" memory={needs.memory // self.UNIT * 100}M" if needs.memory else ""
            text += [f"#RUN slots={needs.slots}{memory}", f". job {len(text)}"]
            self.needs[len(text)] = needs
        self.text = "".join(f"{line}\n" for line in text).encode()

    def keep_consumers(self, cursor_for: Callable[[runmaker4.Consumer], runmaker4.Cursor]) -> None:
        """Have three consumers, the first of which has enough for each line."""
        while len(self.consumers) < 3:
            big = not any(consumer.name == "big" for consumer in self.consumers)
            has = runmaker4.Resources(self.random.randint(1, 4), self.random.randint(1, 9) * self.UNIT)
            consumer = runmaker4.Consumer("big" if big else "small",
                                          capacity=runmaker4.Resources(4, 9 * self.UNIT) if big else has)
            self.consumers[consumer] = cursor_for(consumer), []

    def free(self, consumer: runmaker4.Consumer) -> runmaker4.Resources:
        free = consumer.capacity
        for job in self.consumers[consumer][1]:
            free -= self.needs[job.number]
        return free

    def step(self, path: pathlib.Path) -> None:
        """Something happens.  At the end nobody is killed."""
        self.steps += 1
        consumer = self.random.choice(list(self.consumers))
        cursor, jobs = self.consumers[consumer]
        event = self.random.random()
        if event < 0.03 and self.steps < HandingOut.STEPS:
            self.kill(consumer)
        elif event < 0.45 and jobs:
            cursor.finish(jobs.pop(self.random.randrange(len(jobs))), self.random.choice([b"d", b"!"]))
        else:
            self.claim(cursor, path)

    def claim(self, cursor: runmaker4.Cursor, path: pathlib.Path) -> None:
        """Some of a cursor's consumers ask, all that have an idle slot or some of them."""
        asking = [consumer for consumer, (own, _) in self.consumers.items()
                  if own is cursor and self.free(consumer).slots > 0 and self.random.random() < 0.8]
        for consumer in asking:
            consumer.free = self.free(consumer)
        states = path.read_bytes().splitlines()
        found = cursor.claim(consumers=runmaker4.Consumers(asking))
        if isinstance(found, runmaker4.Job):
            consumer = found.consumer
            needs = self.needs[found.number]
            if states[found.number - 1][:1] != b".":
                self.faults.append(f"line {found.number} was not new")
            if not consumer.free.holds(needs):
                self.faults.append(f"line {found.number} needs {needs}, free are {consumer.free}")
            above = [self.needs[number] for number, line in enumerate(states[: found.number - 1], 1)
                     if line[:1] == b"."]
            if any(consumer.capacity.holds(other) and not consumer.free.holds(other) for other in above):
                self.faults.append(f"line {found.number} has overtaken one that waits")
            self.consumers[consumer][1].append(found)

    def kill(self, consumer: runmaker4.Consumer) -> None:
        """A runner dies, and its locks with it; of a client's lines the server says that they are lost."""
        cursor, jobs = self.consumers.pop(consumer)
        if any(other is cursor for other, _ in self.consumers.values()):
            for job in jobs:
                cursor.finish(job, b"e")
        else:
            for job_lock in cursor.file.lock_table.job_locks.values():
                os.close(job_lock.fd)
            cursor.file.close_files()

    def is_over(self, text: bytes) -> bool:
        """Whether each line has ended; else somebody must be able to go on."""
        if self.steps > 40 * HandingOut.STEPS:
            self.faults.append("lines are left that somebody could take")
            return True
        return not any(line[:1] in b".r" for line in text.splitlines())
