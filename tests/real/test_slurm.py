"""The batch scripts of docs/clusters.md, word for word, on a real Slurm cluster of two nodes
(tests/real/rigs/slurm.py), with what the document adds for a Slurm older than 23.02.

    RUNMAKER4_TEST_REAL=1 python3 -m unittest tests.real.test_slurm

Whom Slurm's signals reach depends on how it finds the processes of a job: only a batch script or the tasks of
a step (proctrack/cgroup, as most sites have it), or all their children, too (proctrack/linuxproc).  What
depends on that is tested with both; what does not, with the first one that can be had here.
"""
import contextlib
import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import unittest
from collections.abc import Sequence
from typing import Optional

from tests.real.rigs import PATH, REAL
from tests.real.rigs.slurm import FREEZER, Cluster, missing
from tests.support.case import GATE
from tests.support.documents import read_pieces
from tests.support.line_locks import locked_lines
from tests.support.processes import MARK, marked, wait_until
from tests.support.runs import UP, WAITING, RunCase
from tests.support.scripts import PYTHON, ROOT, RUNMAKER, RUNSET, RUNWAIT, SCRIPTS, SCRIPTS_AT
from tests.support.values import present

DOCUMENT = "docs/clusters.md"
FOREVER = "sleep 1000"
SIZED = "--mem=$((RUNMAKER4_MEMORY >> 20))" # makes a step as large as its line was promised


def block(beginning: str) -> str:
    """The commands in the document that begin so, or the script of that name, as this Slurm needs it."""
    texts = [piece.text for piece in read_pieces(DOCUMENT) if piece.kind == "sh"]
    found = [text for text in texts if text.startswith((beginning, f"#!/bin/bash\n# {beginning}: "))]
    assert len(found) == 1, f"{len(found)} blocks of {DOCUMENT} are {beginning}"
    if "--walltime auto" not in found[0] or sets_end_time():
        return found[0] + "\n"
    comments = present(re.match(r"(#.*\n)+", found[0]))[0]
    return comments + block("export SLURM_JOB_END_TIME") + found[0][len(comments):] + "\n"


@functools.cache
def sets_end_time() -> bool:
    """Whether this Slurm sets SLURM_JOB_END_TIME."""
    version = subprocess.run(["slurmd", "-V"], env={"PATH": PATH}, capture_output=True, check=True)
    year, month = present(re.search(rb"(\d+)\.(\d+)", version.stdout)).groups()
    return (int(year), int(month)) >= (23, 2)


@unittest.skipUnless(REAL, "a real Slurm: RUNMAKER4_TEST_REAL=1 turns it on")
class SlurmCase(RunCase):
    """A test with a cluster, which all tests of its class share."""
    proctrack = "cgroup" if FREEZER.exists() else "linuxproc"
    cluster: Cluster

    @classmethod
    def setUpClass(cls) -> None:
        why = missing()
        if not why and cls.proctrack == "cgroup" and not FREEZER.exists():
            why = f"proctrack/cgroup needs the control groups in {FREEZER}"
        if why:
            raise unittest.SkipTest(why)
        cls.cluster = Cluster(cls.proctrack).start()
        cls.addClassCleanup(cls.cluster.stop)

    def setUp(self) -> None:
        super().setUp()
        self.bin = self.dir / "bin"
        self.bin.mkdir()
        two = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))       # so -j0 is -j2 everywhere
        for script in SCRIPTS:
            (self.bin / script).write_text(
                f"#!/bin/sh\nexec taskset -c {two} {PYTHON} {SCRIPTS_AT / script} \"$@\"\n"
            )
            (self.bin / script).chmod(0o755)
        self.addCleanup(self.cluster.clear)

    def environ(self, extra: Optional[dict[str, str]] = None) -> dict[str, str]:
        found = super().environ(extra)
        return {**found, "PATH": f"{self.bin}:{found['PATH']}",
                "SLURM_CONF": self.cluster.environ["SLURM_CONF"]}

    def slurm(self, *command: str, where: Optional[pathlib.Path] = None) -> str:
        return self.cluster.run(*command, env=self.environ(), cwd=where or self.dir)

    def submit(self, name: str, *options: str, where: Optional[pathlib.Path] = None) -> str:
        """sbatch one of the document's scripts; the number of the batch job."""
        self.write(block(name), name)
        return self.slurm("sbatch", "--parsable", *options, str(self.dir / name), where=where).strip()

    def wait_jobs(self, count: int) -> None:
        """Wait until so many jobs are WAITING: a line that is `r` a moment before can get its old state."""
        wait_until(lambda: len([*self.dir.glob("up.*")]) == count, what=f"{count} jobs run")

    def wait_slurm(self, job: str, *states: str) -> None:
        """Wait until a batch job, or each task of an array, is in the state that is wanted of it."""
        try:
            self.cluster.wait_state(job, *states)
        except AssertionError as error:
            raise AssertionError(f"{error}{self.said()[-3000:]}\n{self.read().decode()}") from None

    def check_drained(self, states: str, ends: Sequence[str], scancel: Sequence[str], *script: str) -> None:
        """Two runners or clients with two jobs each, which get USR1, start nothing more."""
        self.jobs(*[WAITING] * 6)
        job = self.submit(*script)
        self.wait_jobs(4)
        self.slurm("scancel", *scancel, "-s", "USR1", job)
        wait_until(lambda: self.said().count("SIGUSR1") == 2, what="both were told")
        self.open_gate()
        self.wait_slurm(job, *ends)
        self.assertEqual(sorted(self.states()), sorted(states))

    def said(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self.dir.glob("slurm-*.out"))

    def printed(self) -> list[str]:
        """What the jobs have printed, one of them after the other."""
        return [text.rstrip("\n") for text in self.outputs(self.dir) if text]

    def outputs(self, directory: pathlib.Path) -> list[str]:
        """The stdout of all runs, in the order of the lines, from the journal or from files."""
        shown = self.run_script(RUNWAIT, "--show", "*", "--json", str(directory / "runs.txt")).out
        found = []
        for run in json.loads(shown)["runs"]:
            names = [name for name in run["files"] if ".out" in name]
            texts = [(directory / "runs.txt.out" / name).read_text() for name in names]
            found.append("".join([*texts, run["stdout"] or ""]))
        return found

    def runners(self) -> list[int]:
        def is_runner(pid: int) -> bool:
            with contextlib.suppress(OSError):
                words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                return words[0] == PYTHON.encode() and words[1].endswith(b"runmaker4.py")
            return False
        return [pid for pid in marked(f"{MARK}={self.mark}") if is_runner(pid)]


class Ends(SlurmCase):
    """How lines and batch jobs end, which proctrack may have a say in."""

    def go_on(self) -> None:
        """The next batch job brings all to its end."""
        self.open_gate()
        job = self.submit("workers.sh", "--array=0")
        self.wait_slurm(job, "COMPLETED")
        self.assertEqual(set(self.states()), {"d"}, self.said())

    def check_cancelled(self, tasks: int, name: str, *options: str) -> None:
        """Two runners or clients with two jobs each, in a batch job of so many tasks, end them."""
        self.jobs(*[f"{WAITING}; true"] * 6)
        job = self.submit(name, *options)
        self.wait_jobs(4)
        self.slurm("scancel", job)
        self.wait_slurm(job, *["CANCELLED"] * tasks)
        if tasks == 1:
            self.wait_states("eeee..")
        self.assertEqual(sorted(self.states()), sorted("eeee.."))

    def test_cancelled_workers_end_their_jobs_and_the_next_ones_run_them_again(self) -> None:
        self.check_cancelled(2, "workers.sh", "--array=0-1")
        self.go_on()

    def test_cancelled_nodes_end_their_jobs(self) -> None:
        self.check_cancelled(1, "nodes.sh")
        self.go_on()

    def test_preempted_workers_end_their_jobs(self) -> None:
        self.jobs(WAITING, f"{WAITING}; true", "true")
        job = self.submit("workers.sh", "--array=0")
        self.wait_up(1, 2)
        self.slurm("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
        self.wait_slurm(job, "PREEMPTED")
        self.assertEqual(self.states(), "ee.")
        self.go_on()

    def test_a_cancelled_step_per_line_ends(self) -> None:
        self.jobs(*[f"{WAITING}; true"] * 10)
        job = self.submit("steps.sh")
        self.wait_up(1, 2, 3, 4, 5, 6, 7, 8)
        self.slurm("scancel", job)
        self.wait_slurm(job, "CANCELLED")
        self.assertEqual(self.states(), "e" * 8 + "..", self.said())

    def test_a_cancelled_line_ends_its_step(self) -> None:
        self.jobs(f"{UP}; {FOREVER}", WAITING)
        job = self.submit("steps.sh")
        self.wait_up(1, 2)
        self.assertEqual(self.run_script(RUNSET, "--cancel", "runs.txt", "1").code, 0)
        self.assertEqual(self.states(), "cr")
        steps = "squeue", "-h", "-s", "-o", "%i"
        wait_until(lambda: len(re.findall(r"\.\d", self.cluster.asked(*steps))) == 1,
                   what="only the step of the other line is left")
        self.open_gate()
        self.wait_slurm(job, "COMPLETED")

    def test_cancelled_clients_of_a_server_end_their_jobs(self) -> None:
        self.check_cancelled(1, "served.sh")
        self.open_gate()
        job = self.submit("served.sh")
        self.wait_slurm(job, "COMPLETED")
        self.assertEqual(self.states(), "dddddd", self.said())

    def test_limits(self) -> None:
        """Slurm ends what it was not expected to; the wall time is over before."""
        jobs = {}
        for name in "struck", "over":
            (self.dir / name).mkdir()
            self.write(f". {UP}; {FOREVER}\n", f"{name}/runs.txt")
            limit = "--time=1" if name != "struck" else "--time=10"
            jobs[name] = self.submit("nodes.sh", limit, "--nodes=1", where=self.dir / name)
        for name in jobs:
            wait_until((self.dir / name / "up.1").exists, what=f"{name} runs")
        self.slurm("scontrol", "update", f"jobid={jobs['struck']}", "endtime=now+5")
        self.wait_slurm(jobs["over"], "FAILED")
        self.wait_slurm(jobs["struck"], "TIMEOUT")      # Slurm looks at time limits every 30 s
        self.assertEqual([self.states(f"{name}/runs.txt") for name in jobs], ["e", "e"])
        wanted = {"over": "the wall time is over",
                  # srun may leave before it has shown what the runner says then
                  "struck": "DUE TO TIME LIMIT"}
        for name, words in wanted.items():
            said = (self.dir / name / f"slurm-{jobs[name]}.out").read_text()
            self.assertIn(words, said)

    def test_a_batch_job_that_is_put_back_into_the_queue_goes_on(self) -> None:
        self.jobs(*[WAITING] * 3)
        job = self.submit("workers.sh", "--array=0")
        self.wait_up(1, 2)
        self.slurm("scontrol", "requeue", job)
        self.wait_slurm(job, "PENDING")
        self.assertEqual(self.states(), "ee.")
        self.open_gate()
        # Slurm would wait two minutes; in the second in which it has ended the first try the node refuses a
        # second one
        self.slurm("scontrol", "update", f"jobid={job}", "starttime=now+2")
        self.wait_slurm(job, "COMPLETED")
        self.assertEqual((self.states(), self.cluster.show(job)["Restarts"]), ("ddd", "1"))

    def test_a_killed_runner_of_an_array(self) -> None:
        self.jobs(*[f"{WAITING}; true"] * 3)
        job = self.submit("workers.sh", "--array=0")
        self.wait_up(1, 2)
        runner, = self.runners()
        os.kill(runner, signal.SIGKILL)
        self.wait_slurm(job, "FAILED")
        self.assertEqual(self.states(), "rr.")
        self.assertEqual(locked_lines(self), [] if self.proctrack == "cgroup" else [1, 2])     # they run on
        self.go_on()

    def test_what_a_killed_runner_had_is_run_by_the_one_on_the_other_node(self) -> None:
        """While the other one still has jobs of its own: a runner that has nothing to do leaves.

        Jobs print behind the gate: after a second, output is in a file, and stays there if the run is lost.
        """
        self.jobs(*[f"{UP}; until [ -e go.$(hostname) ]; do sleep 0.02; done; hostname"] * 4)
        job = self.submit("nodes.sh")
        self.wait_up(1, 2, 3, 4)
        killed = self.runners()[0]
        environ = pathlib.Path(f"/proc/{killed}/environ").read_bytes().split(b"\0")
        (node,) = (entry.partition(b"=")[2].decode() for entry in environ
                   if entry.startswith(b"SLURMD_NODENAME="))
        os.kill(killed, signal.SIGKILL)
        self.write("", f"go.{node}")            # where its jobs live on they end, too
        wait_until(lambda: len(locked_lines(self)) == 2, what="two are gone")
        other, = {*self.cluster.nodes} - {node}
        self.write("", f"go.{other}")
        self.wait_slurm(job, "COMPLETED")
        self.assertEqual((self.states(), self.printed()), ("dddd", [other] * 4), self.said())

    def test_a_killed_slurmd_ends_nothing(self) -> None:
        self.jobs(*[WAITING] * 3)
        job = self.submit("workers.sh", "--array=0", f"--nodelist={self.cluster.nodes[0]}")
        self.wait_up(1, 2)
        self.cluster.kill_slurmd(self.cluster.nodes[0])
        self.open_gate()
        self.wait_states("ddd")
        self.cluster.start_slurmd(self.cluster.nodes[0])
        self.wait_slurm(job, "COMPLETED")

    def test_drained_workers_let_their_jobs_end(self) -> None:
        self.check_drained("dddd..", ["FAILED"] * 2, ["-b"], "workers.sh", "--array=0-1")

    def test_drained_nodes_let_their_jobs_end_where_these_do_not_hear_it(self) -> None:
        self.check_drained("dddd.." if self.proctrack == "cgroup" else "eeee..", ["FAILED"], [], "nodes.sh")


@unittest.skipIf(SlurmCase.proctrack == "linuxproc", "that is how all tests are run here")
class EndsOfAllProcesses(Ends):
    """How jobs end where Slurm's signals reach the children, too."""
    proctrack = "linuxproc"


class Recipes(SlurmCase):
    """What the scripts do when all goes well."""

    def test_each_worker_of_an_array_leaves_when_it_is_done(self) -> None:
        self.jobs(*["true"] * 20, WAITING)
        job = self.submit("workers.sh")
        self.wait_slurm(job, "COMPLETED", "COMPLETED", "COMPLETED", "RUNNING")
        self.wait_states("d" * 20 + "r")
        self.open_gate()
        self.wait_slurm(job, *["COMPLETED"] * 4)
        self.assertEqual(self.states(), "d" * 21)

    def test_many_nodes_and_what_comes_after(self) -> None:
        self.write("#!/bin/sh\nexec runset4.py --list runs.txt\n", "collect.sh")
        self.write(block("nodes.sh"), "nodes.sh")
        self.jobs(*[f"hostname; {WAITING}"] * 4)
        after = self.slurm("sh", "-c", block("job=$(")).split()[-1]
        first = str(int(after) - 1)
        self.wait_up(1, 2, 3, 4)
        self.assertEqual(self.cluster.states(after), ["PENDING"])
        self.open_gate()
        self.wait_slurm(first, "COMPLETED")
        self.wait_slurm(after, "COMPLETED")
        self.assertEqual((self.states(), set(self.printed())), ("dddd", set(self.cluster.nodes)))
        self.assertRegex(self.said(), "4 done")

    def test_nothing_comes_after_nodes_where_a_line_has_failed(self) -> None:
        self.write("#!/bin/sh\nexec touch collected\n", "collect.sh")
        self.write(block("nodes.sh"), "nodes.sh")
        self.jobs("true", f"{GATE}; exit 3")
        after = self.slurm("sh", "-c", block("job=$(")).split()[-1]
        self.open_gate()
        self.wait_slurm(str(int(after) - 1), "FAILED")
        self.wait_slurm(after, "CANCELLED")
        self.assertFalse(self.exists("collected"))

    def test_nodes_without_a_shared_file_system(self) -> None:
        """The second node sees an empty directory."""
        first = self.cluster.dir / "first"
        (first / "runs.txt").write_text(
            f". hostname; ls; : > {self.dir}/up.$JOB_ID; cd {self.dir}; {GATE}\n" * 4
        )
        job = self.submit("served.sh", where=first)
        self.wait_up(1, 2, 3, 4)
        self.open_gate()
        self.wait_slurm(job, "COMPLETED")
        texts = sorted(text.split("\n", 1) for text in self.outputs(first))
        self.assertEqual([host for host, _ in texts], sorted(self.cluster.nodes * 2))
        self.assertEqual(["runs.txt" in listed for _, listed in texts], [True, True, False, False])

    def test_drained_clients_of_a_server_let_their_jobs_end(self) -> None:
        self.check_drained("dddd..", ["FAILED"], [], "served.sh")

    def hire(self, *options: str, text: str = "") -> str:
        """Submit workers.sh, whose successors have a minute, too; the number of the batch job."""
        self.write(text or block("workers.sh"), "workers.sh")
        words = "env", "SBATCH_TIMELIMIT=1", "sbatch", "--parsable", *options, "workers.sh"
        return self.slurm(*words).strip()

    def test_workers_hire_until_all_lines_are_done(self) -> None:
        """One is killed -9, and has no successor, until `sbatch workers.sh` makes up for it."""
        self.jobs(*[f"sleep 2; : {number}" for number in range(200)])
        job = self.hire()
        wait_until(lambda: "d" in self.states() and self.runners(), what="a worker has done a line")
        os.kill(self.runners()[0], signal.SIGKILL)
        wait_until(lambda: self.said().count("Submitted") >= 3, what="three have hired")
        self.wait_slurm(job, *["FAILED"] * 4)
        self.hire("--array=0")
        wait_until(lambda: set(self.states()) == {"d"}, 600, f"all are done: {self.states()}")
        wait_until(self.cluster.has_no_jobs, 300, "nobody is hired any more")
        hired = self.said().count("Submitted")
        self.assertEqual(len(list(self.dir.glob("slurm-*.out"))), 4 + 1 + hired, self.said())

    def test_what_a_lost_node_had_is_run_by_the_other_and_its_worker_comes_back(self) -> None:
        self.jobs(*[WAITING] * 6)
        job = self.hire("--array=0-1", "--cpus-per-task=8", "--time=10")
        self.wait_jobs(4)
        lost = self.cluster.nodes[0]
        self.cluster.lose(lost)
        self.addCleanup(self.cluster.wait_idle)
        self.addCleanup(self.cluster.bring_back, lost)
        wait_until(lambda: len(locked_lines(self)) == 2, what="two are gone")
        self.open_gate()
        self.wait_states("d" * 6)
        self.wait_slurm(job, "COMPLETED", "PENDING")        # Slurm has put the lost one back into the queue
        task = self.slurm("squeue", "-h", "-t", "PENDING", "-o", "%i").strip()
        self.slurm("scontrol", "update", f"jobid={task}", "starttime=now+2")
        self.wait_slurm(job, "COMPLETED", "COMPLETED")
        self.assertEqual(self.said().count("Submitted"), 0, self.said())

    def test_a_single_batch_job_hires_and_does_not_for_lines_that_never_fit(self) -> None:
        self.write(f". true\n. {WAITING}\n#RUN timeout=2h\n. true\n")
        first = int(self.hire(text=block("workers.sh").replace("#SBATCH --array=0-3\n", "")))
        # it has ended its job; the next one has 20 s
        wait_until(lambda: "Submitted" in self.said(), what="the first has hired")
        self.open_gate()
        self.wait_slurm(str(first), "FAILED")
        # the next runs the line that was killed, and hires; the last one has finished none
        self.wait_slurm(str(first + 1), "FAILED")
        self.wait_slurm(str(first + 2), "FAILED")
        self.assertEqual((self.states(), self.said().count("Submitted")), ("dd.", 2), self.said())
        self.assertIn("has finished no line", self.said())

    def test_nobody_is_hired_after_scancel_by_a_script_that_dies_or_in_a_step_of_several_tasks(self) -> None:
        self.jobs("true", WAITING, WAITING, "true")
        script = block("workers.sh")
        job = self.hire("--array=0", "--time=10")
        self.wait_up(2, 3)
        self.slurm("scancel", job)
        self.wait_slurm(job, "CANCELLED")
        for text in script.replace("auto", "soon"), script.replace("exec", "srun -n2"):
            self.wait_slurm(self.hire("--array=0", "--ntasks=2", text=text), "FAILED")
        self.assertIn("--hire: each of the 2 tasks", self.said())
        self.assertEqual((self.said().count("Submitted"), self.slurm("squeue", "-h")), (0, ""), self.said())

    def test_a_step_per_line(self) -> None:
        self.jobs(*["echo $SLURM_STEP_ID"] * 12)
        job = self.submit("steps.sh")
        self.wait_slurm(job, "COMPLETED")
        self.assertEqual(self.states(), "d" * 12)
        self.assertEqual(sorted(map(int, self.printed())), list(range(12)))

    def test_a_line_per_gpu(self) -> None:
        self.jobs(*[f"echo $CUDA_VISIBLE_DEVICES; {WAITING}"] * 3)
        job = self.submit("gpus.sh")
        self.wait_up(1, 2)
        self.assertEqual(self.states(), "rr.")
        self.open_gate()
        self.wait_slurm(job, "COMPLETED")
        self.assertEqual((self.states(), sorted(self.printed()[:2])), ("ddd", ["0", "1"]))

    def test_a_client_with_a_line_per_gpu_of_its_node(self) -> None:
        pieces = [piece.text for piece in read_pieces(DOCUMENT) if piece.kind == "inline"]
        client, = [text for text in pieces if "exec runmaker4-client.py" in text]
        text = block("served.sh").replace("runmaker4-client.py --resume -j0", f"{client} --resume")
        self.assertIn(client, text)
        self.write(text, "gpu-clients.sh")
        self.jobs(*[f"hostname; echo $RUNMAKER4_SLOT; {WAITING}"] * 5)
        job = self.slurm("sbatch", "--parsable", "--gres=gpu:2", "gpu-clients.sh").strip()
        self.wait_up(1, 2, 3, 4)
        self.assertEqual(self.states(), "rrrr.")
        self.open_gate()
        self.wait_slurm(job, "COMPLETED")
        wanted = [f"{node}\n{gpu}" for node in self.cluster.nodes for gpu in "01"]
        self.assertEqual(sorted(self.printed()[:4]), sorted(wanted))


class Memory(SlurmCase):
    """What a runner has for jobs with memory=: what Slurm has given this task."""
    SAYS = re.compile(r"([0-9.]+[MG]) of memory for jobs with memory=")
    ASK = "runmaker4.py --dry-run runs.txt"

    def setUp(self) -> None:
        super().setUp()
        self.write("#RUN memory=1M\n. true\n")

    def batch(self, script: str, *options: str) -> str:
        """The number of a batch job with this script."""
        self.write(f"#!/bin/bash\n{script}\n", "batch.sh")
        return self.slurm("sbatch", "--parsable", *options, "batch.sh").strip()

    def has(self, script: str, *options: str) -> set[str]:
        """What the runners of a batch job say that they have."""
        job = self.batch(script, *options)
        self.wait_slurm(job, "COMPLETED")
        return set(self.SAYS.findall((self.dir / f"slurm-{job}.out").read_text()))

    def test_a_batch_script_has_all_of_the_batch_job_on_its_node_and_tasks_of_a_step_share_it(self) -> None:
        for options, step, size in (("--mem=300M", "exec", 300),
                                    ("--mem=300M --ntasks=2 --nodes=2", "exec", 300),
                                    ("--mem-per-cpu=150M --cpus-per-task=2", "exec", 300),
                                    ("--mem-per-cpu=50M --cpus-per-task=2 --ntasks=3", "exec", 300),
                                    ("--mem=300M --ntasks=2 --nodes=2", "srun -n2", 300),
                                    ("--mem=300M --ntasks=2", "srun -n2", 150),
                                    ("--mem-per-cpu=150M --ntasks=4", "srun -n4", 150),
                                    ("--mem-per-cpu=150M --ntasks=4 --cpus-per-task=2", "srun -n2 -c2", 300)):
            with self.subTest(options=options, step=step):
                self.assertEqual(self.has(f"{step} {self.ASK}", *options.split()), {f"{size}M"})

    def test_of_all_memory_of_a_node_slurm_says_nothing(self) -> None:
        without = self.run_script(RUNMAKER, "--dry-run", "runs.txt").err.decode()
        self.assertEqual(self.has(f"exec {self.ASK}", "--mem=0"), set(self.SAYS.findall(without)))

    def test_a_job_that_does_not_fit_is_left_to_a_worker_that_has_more(self) -> None:
        self.write(f"#RUN memory=400M\n. true\n#RUN memory=200M\n. {WAITING}\n. {WAITING}; true\n")
        job = self.submit("workers.sh", "--array=0", "--mem=300M")
        self.wait_up(4)
        self.assertEqual(self.states(), ".r.", "there is memory for one of them")
        self.open_gate()
        self.wait_slurm(job, "COMPLETED")
        self.assertEqual(self.states(), ".dd")
        self.assertIn("1 new", self.said())
        job = self.submit("workers.sh", "--array=0", "--mem-per-cpu=100M")
        self.wait_slurm(job, "COMPLETED")
        self.assertEqual(self.states(), "ddd")

    def test_a_step_per_line_is_as_large_as_the_line_says(self) -> None:
        self.assertIn(f"`{SIZED}`", (ROOT / DOCUMENT).read_text())
        self.write(block("steps.sh").replace("-c1", f"-c1 {SIZED}"), "sized.sh")
        self.write(f"#RUN memory=100M\n. {WAITING}\n. {WAITING}; true\n. true\n#RUN\n. {WAITING}; : 6\n")
        job = self.slurm("sbatch", "--parsable", "--mem-per-cpu=30M", "sized.sh").strip()
        self.wait_up(2, 3)
        found = self.slurm("scontrol", "-o", "show", "step", job)
        self.assertEqual(sorted(re.findall(r"\bTRES=\S*mem=(\w+)", found)), ["100M", "100M"])
        self.assertEqual(self.states(), "rr..", "the third does not fit")
        self.open_gate()
        self.wait_slurm(job, "COMPLETED")
        self.assertEqual(self.states(), "dddd")

    def test_a_step_that_takes_more_than_its_line_says_is_ended(self) -> None:
        """The rig's Slurm does not see to it.  The runner does, for the steps on its own node."""
        self.write(block("steps.sh").replace("-c1", f"-c1 {SIZED}"), "sized.sh")
        hold = f"{PYTHON} -c 'import time; data = bytes([1]) * (150 << 20); time.sleep(600)'"
        self.write(f"#RUN memory=100M\n. {hold}\n")
        job = self.slurm("sbatch", "--parsable", "--mem-per-cpu=30M", "sized.sh").strip()
        self.wait_slurm(job, "FAILED")
        self.assertEqual(self.states(), "!")
        self.assertRegex(self.said(), r"took 1\d\d(\.\d)?M of 100M")
