"""Promise: what -r and --resume mean is made new once, from the top, before the first claim."""
import os
import random
from collections import Counter
from typing import Any, Optional
from unittest import mock

import runmaker4
from tests.support.claims import JobFileCase, job_of


class RetriesOfMany(JobFileCase):
    """What -r and --resume mean is made new once, from the top, before the first claim."""

    def consumer(self, name: str, retry: bytes = b"") -> runmaker4.Consumer:
        slots = runmaker4.Resources(2)
        return runmaker4.Consumer(name, retry=retry, capacity=slots, free=slots)

    def claim(self, cursor: runmaker4.Cursor, retry: bytes = b"") -> Optional[bytes]:
        """The command of the job that a consumer gets who has just come."""
        consumer = self.consumer("alice", retry)
        job = cursor.claim([consumer], runmaker4.Consumers([consumer]))
        while not job and cursor.no_job.retry_after == 0.0:     # a slice is over: this host is busy
            job = cursor.claim([consumer], runmaker4.Consumers([consumer]))
        self.clock.now += 10.0
        return job.command if isinstance(job, runmaker4.Job) else None

    def test_each_who_comes_makes_new_what_has_failed_by_then(self) -> None:
        cursor = self.jobs(b"! a\ne b\nd c\n", serving=True)
        self.assertIsNone(self.claim(cursor))
        self.assertEqual(self.claim(cursor, b"er"), b"b")
        self.assertEqual(self.claim(cursor, b"er"), None)
        self.assertEqual(self.claim(cursor, b"!er"), b"a")

    def test_who_comes_or_goes_meanwhile_begins_it_again_for_those_who_are_there(self) -> None:
        cursor = self.jobs(b"#RUN host=a\n! 1\n! 2\n#RUN host=b\n! 3\n. 4\n", serving=True)
        gone, other = (self.consumer(name, b"!er") for name in "ab")
        with mock.patch.multiple(runmaker4.Cursor, SLICE=-1.0, RESET_BYTES=4):
            for _ in range(2):
                self.assertFalse(cursor.claim((), runmaker4.Consumers([gone])))
            while not (job := cursor.claim((), runmaker4.Consumers([other]))):
                self.assertEqual(cursor.no_job.retry_after, 0.0)
        self.assertEqual(job_of(job).command, b"3")
        self.assertEqual(self.path.read_bytes(), b"#RUN host=a\n. 1\n! 2\n#RUN host=b\nr 3\n. 4\n")

    def test_only_what_fits_is_new(self) -> None:
        before = (b"#RUN host=bob\n! a\n#RUN slots=3\n! b\n#RUN host=alice together=x\n! c\n"
                  b"#RUN host=alice slots=2\n! d\n")
        cursor = self.jobs(before, serving=True)
        self.assertEqual(self.claim(cursor, b"!er"), b"d")
        self.assertEqual(self.path.read_bytes(), before.replace(b"! d", b"r d"))

    def test_an_orphan_of_a_group_is_an_error_as_it_would_start_without_the_others(self) -> None:
        cursor = self.jobs(b"#RUN together=x host=alice\nr a\nd b\n", serving=True)
        self.assertIsNone(self.claim(cursor, b"!er"))
        self.assertEqual(self.path.read_bytes(), b"#RUN together=x host=alice\ne a\nd b\n")
        self.assertEqual(cursor.groups, [])

    def test_nothing_is_claimed_before_a_line_whose_command_is_locked_is_new_and_named(self) -> None:
        """Before: also above it.  A job that runs has its lines made new one by one."""
        said: list[str] = []
        cursor = self.jobs(b". z\n! a\n! b\n. c\n", retry=b"!er", say=said.append)
        other = self.another(cursor.queue.file)
        with other.command_mutex(b"b") as opened:
            self.assertTrue(opened)
            for _ in range(3):
                self.assertFalse(cursor.claim())
                self.assertIsNotNone(cursor.no_job.retry_after)
                self.clock.now += 10.0
        self.assertEqual(self.path.read_bytes(), b". z\n. a\n! b\n. c\n")
        self.assertEqual(len(said), 1)
        self.assertIn("line 3: no job starts before it is new again: another process holds", said[0])
        self.assertEqual([job_of(cursor.claim()).command for _ in range(4)], [b"z", b"a", b"b", b"c"])

    def test_lines_that_others_have_made_new_meanwhile_are_not_locked_one_by_one(self) -> None:
        change_state = runmaker4.JobFile.change_state
        for new, running in (99, 0), (98, 0), (98, 1):
            with self.subTest(new=new, running=running):
                text = b". z\n" + b"".join(b"! %d\n" % number for number in range(99))
                cursor = self.jobs(text, retry=b"!er")
                file, tries = cursor.queue.file, list[int]()
                text = text.replace(b"!", b"r", running).replace(b"!", b".", new)

                def tried(file: runmaker4.JobFile, line: runmaker4.Line, *more: Any) -> runmaker4.Attempt:
                    if not tries:
                        self.path.write_bytes(text)
                    tries.append(line.number)
                    return change_state(file, line, *more)

                other = self.another(file)
                with other.command_mutex(b"z"), mock.patch.object(runmaker4.JobFile, "change_state", tried):
                    while not cursor.claim():
                        self.clock.now += 10.0
                self.assertNotIn(b"!", self.path.read_bytes())
                self.assertLess(len(tries), 4, tries)

    def test_what_others_made_new_in_another_file_is_made_new_in_this_one(self) -> None:
        cursor = self.jobs(b". z\n! a\n! b\n", retry=b"!er")
        other = self.another(cursor.queue.file)
        with other.command_mutex(b"a"):
            self.assertFalse(cursor.claim())
        self.path.write_bytes(b". z\n. a\n. b\n")
        (new := self.path.with_name("new")).write_bytes(b". z\n! a\n! b\n")
        new.replace(self.path)
        self.clock.now += 10.0
        while not (job := cursor.claim()):
            self.clock.now += 10.0
        self.assertEqual((job_of(job).command, self.path.read_bytes()), (b"z", b"r z\n. a\n. b\n"))

    def test_signals_act_between_steps_and_after_two_seconds_it_reports_the_lines(self) -> None:
        """However slow the steps are, no new line starts before a failed one above it."""
        said: list[str] = []
        cursor = self.jobs(b"! a\n. new\n! b\n! c\n", retry=b"!er", say=said.append)
        claims = 0
        with mock.patch.multiple(runmaker4.Cursor, SLICE=-1.0, RESET_BYTES=4):
            while not (job := cursor.claim()):
                self.assertEqual(cursor.no_job.retry_after, 0.0)
                claims += 1
                self.clock.now += 1.5
        self.assertEqual((job_of(job).command, claims), (b"a", 6))
        self.assertEqual(said, ["2 failed lines made new so far; no job starts before all are"])

    def test_a_line_that_has_changed_or_moved_since_it_was_read_is_left_alone(self) -> None:
        file = self.jobs(b"! a\nx b\n! c\n").file
        file.open_to_write()
        lines = [*file.scan_lines(b"!x")]
        self.path.write_bytes(b"! a\nd b\n! c\n")
        self.assertTrue(file.reset_lines(lines))
        self.assertEqual(self.path.read_bytes(), b". a\nd b\n. c\n")
        self.path.write_bytes(moved := b"! a\n! c\nx b\n")
        with self.assertRaises(runmaker4.FileChangedError):
            file.reset_lines(lines)
        self.assertEqual(self.path.read_bytes(), moved)

    def test_lines_that_were_moved_are_run_again_once_wherever_they_stand(self) -> None:
        """The file is replaced by one with its lines in another order, again and again."""
        for seed in range(20):
            with self.subTest(seed=seed):
                draws = random.Random(seed)
                lines = [b"! %d" % number for number in range(30)] + [b"! same"] * 5 + [b"# a", b". new"]
                draws.shuffle(lines)
                cursor = self.jobs(b"".join(line + b"\n" for line in lines), retry=b"!er")
                tried: list[bytes] = []
                running: list[runmaker4.Job] = []
                while (job := cursor.claim()) or running:
                    if job:
                        running.append(job_of(job))
                        tried.append(running[-1].command)
                    if len(running) == 3 or not job:
                        ended = running.pop(draws.randrange(len(running)))
                        cursor.finish(ended, draws.choice((b"!", b"e", b"d")))
                    self.clock.now += 10.0
                    if draws.random() < 0.2:
                        lines = self.path.read_bytes().splitlines()
                        draws.shuffle(lines)
                        new = self.path.with_name("new")
                        new.write_bytes(b"".join(line + b"\n" for line in lines))
                        os.replace(new, self.path)
                once = {b"%d" % number: 1 for number in range(30)}
                self.assertEqual(Counter(tried), {**once, b"same": 5, b"new": 1})

    def test_an_orphan_is_new_for_one_that_is_busy_or_away(self) -> None:
        cursor = self.jobs(b"d a\n", serving=True)
        away, other = self.consumer("a", b"er"), self.consumer("b")
        self.assertFalse(cursor.claim((), runmaker4.Consumers([away, other]), {away, other}))
        self.path.write_bytes(b"r a\n")
        self.clock.now += 10.0
        job = job_of(cursor.claim((), runmaker4.Consumers([other]), {away, other}))
        self.assertEqual((job.command, job.consumer), (b"a", other))
