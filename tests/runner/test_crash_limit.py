"""Promise: a line that kills its runner, or client, five times is failed, and holds up no other line."""
import json
import os
from collections import Counter
from unittest import mock

import runmaker4
from tests.support.claims import JobFileCase, job_of
from tests.support.losses import LossCase
from tests.support.processes import wait_until
from tests.support.runs import RunCase
from tests.support.scripts import RUNSET, RUNWAIT

KILLER = "echo x >>tries; kill -9 $PPID"
# runs until the runner is killed
BESIDE = "echo x >>beside; [ -e no.more ] || tail --pid=$PPID -f /dev/null"
MAX_LOSSES = 5


class CrashCase(RunCase):

    def count(self, name: str = "tries") -> int:
        return len(self.read(name).split())

    def run_until_alive(self, *options: object) -> int:
        """Start one runner after the other, until one is not killed; return how many were."""
        for deaths in range(12):
            if self.run_jobs("-q", *options).code >= 0:
                return deaths
            self.assertNobodyLeft()
        return 12

    def lose(self, times: int, *options: object) -> None:
        """Let so many runners be killed."""
        for _ in range(times):
            self.assertEqual(self.run_jobs("-q", "--resume", *options).code, -9)
            self.assertNobodyLeft()

    def shift_losses(self, seconds: float) -> None:
        """Let the losses so far be so many seconds longer ago."""
        journal = self.dir / "runs.txt.out" / "journal"
        if not journal.exists():
            return
        events = [json.loads(line) for line in journal.read_bytes().splitlines()]
        for event in events:
            event["time"] -= seconds * (event["event"] == "loss")
        journal.write_text("".join(f"{json.dumps(event)}\n" for event in events))


class Limit(CrashCase):

    def test_the_fifth_loss_makes_the_line_failed_and_views_say_why(self) -> None:
        self.write(f". {KILLER}\n. touch fine\n#RUN barrier\n. true\n")
        self.lose(1)
        self.lose(1)
        self.assertTrue(self.exists("fine"))            # before the killer was started again
        self.assertEqual(self.run_until_alive("--resume"), MAX_LOSSES - 2)
        self.assertEqual((self.states(), self.count()), ("!dd", MAX_LOSSES))
        for option in ("--failed",), ("--show", "1"):
            told = self.run_script(RUNWAIT, *option, "runs.txt").out
            self.assertIn(b"line 1: lost with its runner 5 times on ", told)
            self.assertIn(b"output unknown", told)
            self.assertNotIn(b"set by hand", told)
        rows = self.run_script(RUNWAIT, "--output", "--json", "runs.txt").out.splitlines()
        self.assertEqual([json.loads(row)["stdout"] for row in rows], [None, "", ""])
        stats = json.loads(self.run_script(RUNWAIT, "--stats", "--json", "runs.txt").out)
        self.assertNotIn("?", [host["host"] for host in stats["hosts"]])

    def test_retry_and_a_user_run_it_once_more(self) -> None:
        self.write(f". {KILLER}\n. true\n")
        self.run_until_alive("--resume")
        self.assertEqual(self.run_jobs("-q", "-r").code, -9)
        self.assertEqual(self.run_until_alive("--resume"), 0)
        self.assertEqual((self.states(), self.count()), ("!d", MAX_LOSSES + 1))
        self.run_script(RUNSET, "--set", "new", "runs.txt", "1")
        self.assertEqual(self.run_until_alive("--resume"), 1)
        self.assertEqual((self.states(), self.count()), ("!d", MAX_LOSSES + 2))

    def test_lines_beside_it_are_not_counted_with_it(self) -> None:
        """After two losses lines start only beside such lines, and after three alone, with all slots."""
        self.write(f". {BESIDE}\n. {KILLER}; until [ -e beside ]; do :; done\n. {BESIDE}\n"
                   ". until [ -e tries ]; do sleep 0.1; done; echo $RUNMAKER4_SLOTS\n")
        self.lose(2, "-j4")
        self.write("", "no.more")
        self.assertEqual(self.run_until_alive("--resume", "-j4"), MAX_LOSSES - 2)
        self.assertEqual((self.states(), self.count()), ("d!dd", MAX_LOSSES))

    def test_equal_lines_are_counted_one_by_one(self) -> None:
        self.write(f". {KILLER}\n. {KILLER}\n")
        deaths = self.run_until_alive("--resume", "-j2")
        self.assertEqual(self.states(), "!!")
        self.assertLessEqual(MAX_LOSSES, deaths)
        events = map(json.loads, self.read("runs.txt.out/journal").splitlines())
        lost = Counter(event["line"] for event in events if event["event"] == "loss")
        # not the deaths: one job can kill the runner before it has counted the loss of the other
        self.assertEqual(lost, {1: MAX_LOSSES, 2: MAX_LOSSES})

    def test_losses_an_hour_apart_are_not_in_a_row(self) -> None:
        """A long job can be preempted without end."""
        self.write(f". {KILLER}\n")
        for _ in range(MAX_LOSSES + 1):
            self.shift_losses(3700)
            self.lose(1)
        self.assertEqual(self.states(), "r")
        self.lose(MAX_LOSSES - 3)           # after one that was found a moment ago, and one that was not
        self.assertEqual(self.run_until_alive("--resume"), 1)
        self.assertEqual(self.states(), "!")

    def test_a_run_that_ends_begins_a_new_row(self) -> None:
        self.write(f". [ -e no.more ] || {{ {KILLER}; }}\n")
        self.lose(MAX_LOSSES - 1)
        self.write("", "no.more")
        self.assertEqual((self.run_until_alive("--resume"), self.states()), (0, "d"))
        (self.dir / "no.more").unlink()
        self.set_state(1, ".")
        self.assertEqual((self.run_until_alive("--resume"), self.states()), (MAX_LOSSES, "!"))

    def test_without_records_it_is_last_and_not_failed(self) -> None:
        self.write(f". {KILLER}\n. touch fine\n#RUN barrier\n. true\n")
        self.lose(MAX_LOSSES + 2, "--no-records")
        self.assertEqual((self.states(), self.exists("fine")), ("rd.", True))

    def test_a_runner_that_only_marks_it_counts_too(self) -> None:
        """What it has marked is last for the next --resume, and alone."""
        self.write(f". {KILLER}\n. {BESIDE}\n. true\n")
        self.lose(1)
        for losses in range(1, MAX_LOSSES + 1):
            self.write("", "no.more")
            self.run_jobs("-q")
            self.assertEqual(self.states(), "edd" if losses < MAX_LOSSES else "!dd")
            if losses < MAX_LOSSES:
                self.lose(1, "-j2")

    def test_a_runner_that_follows_marks_it_and_waits_for_more(self) -> None:
        self.write(f". {KILLER}\n")
        self.lose(MAX_LOSSES, "--follow")
        runner = self.start_looking("-q", "--resume", "--follow", "runs.txt")
        self.wait_states("!")
        self.append(". true", "#RUN end")
        self.assertEqual(self.finish(runner).code, 1)
        self.assertEqual(self.states(), "!d")


class Claims(JobFileCase):
    """How a line that was lost is claimed again."""

    def test_one_that_waits_for_slots_is_not_new_for_another_runner_meanwhile(self) -> None:
        jobs = self.jobs(b". b\nr a\n", retry=b"er")
        beside = job_of(jobs.claim())
        jobs.orphans.outdir = mock.Mock()
        jobs.orphans.outdir.journal.read_losses.return_value = {(2, b"a"): 1}
        consumer, = jobs.consumers.all
        consumer.capacity, consumer.free = runmaker4.Resources(2), runmaker4.Resources(1)
        self.assertFalse(jobs.claim())
        self.assertEqual(self.path.read_bytes(), b"r b\nr a\n")
        self.assertEqual(jobs.finish(beside, b"d"), "")
        consumer.free = consumer.capacity
        self.assertEqual(job_of(jobs.claim()).number, 2)
        line, state, losses = jobs.orphans.outdir.journal.add_loss.call_args.args
        self.assertEqual((line.number, state, losses), (2, b".", 2))

    def test_one_that_was_made_new_starts_after_the_others_but_before_a_barrier_below_it(self) -> None:
        """A runner without --resume has marked it."""
        jobs = self.jobs(b"e a\n. b\n#RUN barrier\n. c\n", retry=b"er")
        jobs.orphans.outdir = mock.Mock()
        jobs.orphans.outdir.journal.read_losses.return_value = {(1, b"a"): 1}
        other = job_of(jobs.claim())
        self.assertEqual((other.text, jobs.finish(other, b"d")), (b" b", ""))
        self.assertEqual(job_of(jobs.claim()).text, b" a")
        self.assertFalse(jobs.claim())
        self.assertEqual(self.path.read_bytes(), b"r a\nd b\n#RUN barrier\n. c\n")

    def test_a_group_is_found_as_a_whole_although_a_line_of_it_was_lost(self) -> None:
        jobs = self.jobs(b"#RUN together=x host=bob\n. a\n. b\n#RUN\n. c\n", retry=b"er", serving=True)
        jobs.orphans.outdir = mock.Mock()
        jobs.orphans.outdir.journal.read_losses.return_value = {(2, b"a"): 1}
        self.assertEqual(job_of(jobs.claim()).text, b" c")
        group, = jobs.groups
        self.assertEqual([line.text for line, _ in group.jobs], [b" a", b" b"])

    def test_those_that_were_lost_twice_run_beside_each_other_only_and_after_three_alone(self) -> None:
        for losses, together in (1, 2), (2, 1):
            with self.subTest(losses=losses):
                jobs = self.jobs(b"r a\nr b\n", retry=b"er")
                jobs.orphans.outdir = mock.Mock()
                jobs.orphans.outdir.journal.read_losses.return_value = {(1, b"a"): losses, (2, b"b"): losses}
                consumer, = jobs.consumers.all
                consumer.capacity = consumer.free = runmaker4.Resources(3)
                claimed = []
                while isinstance(job := jobs.claim(), runmaker4.Job):
                    claimed.append(job)
                    consumer.free -= job.settings.needs
                self.assertEqual(len(claimed), together)
                with self.path.open("ab") as file:
                    file.write(b". c\n")
                self.clock.now += 1000
                self.assertFalse(jobs.claim())
                for job in claimed:
                    self.assertEqual(jobs.finish(job, b"d"), "")
                consumer.free = consumer.capacity
                self.clock.now += 1000
                self.assertEqual(job_of(jobs.claim()).text, b" c" if together == 2 else b" b")
                jobs.file.close_files()

    def test_one_that_was_lost_three_times_waits_for_one_that_was_lost_twice(self) -> None:
        jobs = self.jobs(b"r a\nr b\n", retry=b"er")
        jobs.orphans.outdir = mock.Mock()
        jobs.orphans.outdir.journal.read_losses.return_value = {(1, b"a"): 1, (2, b"b"): 2}
        consumer, = jobs.consumers.all
        consumer.capacity, consumer.free = runmaker4.Resources(3), runmaker4.Resources(3)
        job = job_of(jobs.claim())
        self.assertEqual(job.text, b" a")
        consumer.free -= job.settings.needs
        self.assertFalse(jobs.claim())
        self.assertEqual(jobs.finish(job, b"d"), "")
        consumer.free = consumer.capacity
        self.assertEqual(job_of(jobs.claim()).text, b" b")

    def test_a_line_that_is_new_by_then_starts_before_it(self) -> None:
        """Also on a network file system, where runners leave new lines to each other."""
        # no failed lines are made new, so losses are read once: before the walk that takes the lost line
        jobs = self.jobs(b"x a\nr b\n", retry=b"r", mount=runmaker4.Mount("nfs4", frozenset()))
        jobs.queue.spread = jobs.queue.MAX_SPREAD

        def release() -> None:
            self.path.write_bytes(b". a\nr b\n")

        with (mock.patch.object(os, "urandom", lambda size: b"\x05" * size),
              mock.patch.object(jobs.orphans, "read_losses", release)):
            self.assertEqual(job_of(jobs.claim()).number, 1)

    def test_it_and_its_losses_are_on_disk_before_it_starts_but_other_lines_are_not_synced(self) -> None:
        """It can take the host down."""
        executor = mock.Mock(pool=None)
        journal = runmaker4.Journal(str(self.path.parent), executor, self.fail, self.fail, False)
        jobs = self.jobs(b". b\nr a\n", retry=b"er")
        jobs.orphans.outdir = mock.Mock(journal=journal)
        with mock.patch.object(os, "fsync") as fsync:
            self.assertEqual(job_of(jobs.claim()).number, 1)
            self.assertEqual(fsync.call_args_list, [])
            self.assertEqual(job_of(jobs.claim()).number, 2)
            synced = {call.args[0] for call in fsync.call_args_list}
            self.assertEqual(synced, {jobs.file.fd, journal._file.fd})
        self.assertEqual(journal.read_losses(), {(2, b"a"): 1})


class OverTcp(LossCase):

    def test_clients_that_it_kills_are_counted_and_the_others_lines_are_run_before(self) -> None:
        self.write(f". {KILLER}\n. touch fine\n#RUN barrier\n. true\n")
        server = self.start_server("--grace", "0.2")
        deaths = 0
        while (code := self.run_client(server, "-q", "--resume").code) < 0:
            deaths += 1
            self.assertLessEqual(deaths, MAX_LOSSES)
            wait_until(lambda: server.err.count(b"did not come back within") == deaths, what="it is given up")
            if deaths == 2:
                self.assertTrue(self.exists("fine"))
        self.assertEqual((code, deaths, self.states()), (1, MAX_LOSSES, "!dd"))
        self.assertIn(b"line 1: lost with its runner 5 times",
                      self.run_script(RUNWAIT, "--failed", "runs.txt").out)
