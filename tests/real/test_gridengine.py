"""The batch scripts of docs/clusters.md, word for word, on a real Grid Engine of two hosts
(tests/real/rigs/gridengine.py).

    RUNMAKER4_TEST_REAL=1 python3 -m unittest tests.real.test_gridengine

Grid Engine finds the processes of a job by a group of its own, so its signals reach runner and jobs alike.
"""
import json
import os
import unittest
from collections import Counter
from typing import Optional

from tests.real.rigs import REAL, gridengine
from tests.support.documents import read_pieces
from tests.support.processes import wait_until
from tests.support.runs import RunCase

LINES = 300


def script(name: str) -> str:
    """Return the batch script of that name in the document."""
    found, = (piece.text for piece in read_pieces("docs/clusters.md")
              if piece.text.startswith(f"#!/bin/sh\n# {name}: "))
    return found + "\n"


@unittest.skipUnless(REAL, "a real Grid Engine: RUNMAKER4_TEST_REAL=1 turns it on")
class GridEngine(RunCase):
    """Workers of one user, ann, on alice and bob."""
    cluster: gridengine.Cluster

    @classmethod
    def setUpClass(cls) -> None:
        if why := gridengine.missing():
            raise unittest.SkipTest(why)
        cls.cluster = gridengine.Cluster().start()
        cls.addClassCleanup(cls.cluster.stop)

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.cluster.clear)

    def submit(self, name: str, *options: str, walltime: Optional[str] = None) -> str:
        """Submit one of the document's scripts; return the number of the batch job."""
        text = script(name)
        if walltime:
            self.assertIn(" 7.9h ", text)
            text = text.replace(" 7.9h ", f" {walltime} ")
        self.write(text, name)
        for path in self.dir, *self.dir.iterdir():
            os.chown(path, gridengine.USER, gridengine.USER)
        return self.cluster.run("qsub", "-terse", *options, name, cwd=str(self.dir)).partition(".")[0].strip()

    def wait_over(self) -> None:
        """Wait until Grid Engine has no job; a failure says what each had come to by then."""
        try:
            wait_until(lambda: not self.cluster.run("qstat"), 400, "no job is left")
        except AssertionError as error:
            left = self.cluster.run("qstat", "-f", "-g", "t")
            raise AssertionError(f"{error}: {self.states()}\n{left}\n{self.said()}") from error

    def said(self) -> str:
        return "".join(path.read_text() for path in (*self.dir.glob("*.sh.o*"), *self.dir.glob("refused")))

    def test_a_worker_that_is_warned_ends_its_jobs(self) -> None:
        """-notify: USR2 comes before the KILL of qdel, USR1 before the STOP of a suspension."""
        for command in ["qdel"], ["qmod", "-sj"]:
            with self.subTest(command=command):
                self.jobs(*["echo >>up.$JOB_ID; sleep 1000; true"] * 3)
                job = self.submit("worker.sh", "-t", "1", "-notify")
                # a line that is `r` a moment before its job runs can get its old state back
                wait_until(lambda: self.wait_file(f"up.{job}") == b"\n\n", what="two jobs run")
                self.cluster.run(*command, job)
                self.wait_over()
                self.assertEqual(self.states(), "ee.", self.said())

    def test_a_line_is_part_of_its_batch_job(self) -> None:
        """qrsh -inherit, and so mpirun, takes the batch job from JOB_ID."""
        # a busy host learns late of the batch job, and refuses the task before
        # or qrsh waits for ever, as it seems
        self.jobs(*["for host in alice bob; do "
                    "until timeout 60 qrsh -inherit -nostdin $host hostname >>reached 2>>refused; "
                    "do sleep 1; done; done; echo $JOB_ID $RUNMAKER4_LINE >>ids"] * 2)
        jobs: set[str] = set()
        while self.states() != "dd" and len(jobs) < 3:
            # If a task on a busy host fails "assumedly before job" (qacct), Grid Engine ends the batch job.
            # Then the next worker runs its lines
            jobs.add(self.submit("worker.sh", "-t", "1", "-pe", "mpi", "6"))
            self.wait_over()
        self.assertEqual((self.states(), set(self.read("reached").split())), ("dd", {b"alice", b"bob"}),
                         self.said())
        ids = [line.split() for line in self.read("ids").decode().splitlines()]
        self.assertEqual({line for _, line in ids}, {"1", "2"})
        self.assertLessEqual({job for job, _ in ids}, jobs)

    def test_a_runner_on_each_host_of_a_batch_job(self) -> None:
        line = ("hostname >>ran; "
                "for n in $(seq 150); do [ $(sort -u ran | wc -l) = 1 ] || break; sleep 0.2; done")
        wanted = {b"alice", b"bob"}, "d" * 12
        for _ in range(3):          # what a busy host refuses can end the batch job (see above)
            self.write("", "ran")
            self.jobs(*[line] * 12)
            self.submit("hosts.sh")
            self.wait_over()
            found = set(self.read("ran").split()), self.states()
            if found == wanted:
                break
        self.assertEqual(found, wanted, self.said())
        self.assertIn("12 done", self.said())

    def test_deleted_workers_and_a_lost_host_cost_no_line_and_start_no_second_copy(self) -> None:
        """Workers come back when their wall time is over, and the next ones run what the dead have left."""
        # only the shell keeps the file locked: it dies some time before or after its children
        line = ("exec 9>at.{0}; flock -n -E 9 9; [ $? != 9 ] || echo {0} >>twice; sleep 0.4 9>&-; "
                "echo {0} >>ended")
        self.jobs(*[line.format(number) for number in range(LINES)])
        job = self.submit("worker.sh", walltime="7s")
        for task, count in ("1", 30), ("2", 60):
            wait_until(lambda: self.states().count("d") > count, what=f"{count} lines are done")
            self.cluster.run("qdel", job, "-t", task)
        wait_until(lambda: self.states().count("d") > 90, what="90 lines are done")
        self.cluster.lose("bob")
        self.addCleanup(self.cluster.start_execd, "bob")
        self.addCleanup(self.cluster.boot, "bob")
        left = self.states()
        self.submit("worker.sh", "-l", "h=alice", walltime="7s")
        wait_until(lambda: set(self.states()) == {"d"}, 300, f"all is done, after {left}")
        self.assertEqual({int(word) for word in self.read("ended").split()}, set(range(LINES)))
        self.assertFalse(self.exists("twice"), self.said())
        events = [json.loads(text) for text in self.read("runs.txt.out/journal").splitlines() if text]
        done = Counter(event["line"] for event in events if event["event"] == "end" and event["state"] == "d")
        # four workers with two jobs each were killed; what ends is in the journal before its line is `d`
        self.assertLessEqual(sum(done.values()) - len(done), 8)
        runners = {event["runner"] for event in events if event["event"] != "loss"}
        self.assertGreater(len(runners), 4, "workers came back")
