"""Promise: by queue.sh of docs/coming-from.md, Snakemake queues jobs, learns how they end, and cancels."""
from tests.support.documents import read_pieces
from tests.support.runs import WAITING, RunCase
from tests.support.scripts import PYTHON, RUNMAKER, RUNSET, SCRIPTS_AT


class Queue(RunCase):
    """Called as cluster-generic 1.0.9 does: `submit ... SCRIPT`, `status ID`, and ID... to cancel."""

    def setUp(self) -> None:
        super().setUp()
        text, = (piece.text for piece in read_pieces("docs/coming-from.md") if "# queue.sh:" in piece.text)
        self.script(text, "queue.sh")
        self.script(f'#!/bin/sh\nexec {PYTHON} {SCRIPTS_AT / RUNSET} "$@"\n', f"bin/{RUNSET}")

    def queue(self, *words: str) -> str:
        ended = self.run_script("./queue.sh", *words, env={"PATH": f"{self.dir}/bin:/usr/bin:/bin"})
        self.assertEqual(ended.code, 0, ended.err)
        return ended.out.decode().strip()

    def submit(self, name: str, command: str, *after: str) -> str:
        """Queue a script of Snakemake; return the id of its job."""
        path = f".snakemake/tmp.x1/snakejob.{name}.sh"
        self.script(f"#!/bin/sh\n{command}\n", path)
        return self.queue("submit", "2", "300", *after, f"{self.dir}/{path}")

    def test_a_job_is_running_until_it_has_ended_well_or_failed(self) -> None:
        good = self.submit("one.1", "echo $RUNMAKER4_SLOTS $RUNMAKER4_MEMORY >one")
        bad = self.submit("two.2", "exit 3")
        self.assertEqual([self.queue("status", job) for job in (good, bad)], ["running"] * 2)
        self.run_script(RUNMAKER, "-q", "-j2", "--memory", "1G", "runs.txt")
        self.assertEqual([self.queue("status", job) for job in (good, bad)], ["success", "failed"])
        self.assertEqual(self.read("one"), b"1,2 %d\n" % (300 << 20))

    def test_the_last_try_of_a_job_counts(self) -> None:
        self.submit("one.1", "[ -e tried ] || { : >tried; exit 1; }")
        self.run_script(RUNMAKER, "-q", "-j2", "runs.txt")
        again = self.submit("one.1", "true")
        self.assertEqual(self.queue("status", again), "running")
        self.run_script(RUNMAKER, "-q", "-j2", "runs.txt")
        self.assertEqual((self.queue("status", again), self.states()), ("success", "!d"))

    def test_a_job_that_is_queued_with_ids_waits_for_these(self) -> None:
        first, second = self.submit("one.1", "exit 3"), self.submit("two.2", "true")
        self.submit("three.3", "true", first, second)
        self.run_script(RUNMAKER, "-q", "-j2", "runs.txt")
        self.assertEqual(self.states(), "!d.")

    def test_ids_alone_cancel_running_and_new_jobs(self) -> None:
        running, new = self.submit("one.1", WAITING), self.submit("two.2", "true")
        runner = self.start(RUNMAKER, "-q", "-j2", "runs.txt")
        self.wait_states("r.")
        self.queue(running, new)
        self.assertEqual([self.queue("status", job) for job in (running, new)], ["failed"] * 2)
        self.assertEqual((self.finish(runner).code, self.states()), (0, "cc"))
