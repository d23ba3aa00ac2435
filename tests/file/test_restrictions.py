"""Promise: limit= bounds how many jobs run at once on all hosts; hours=, from= and a pause keep jobs back."""
import errno
import os
import time
import unittest
from typing import Any
from unittest import mock

import runmaker4
from tests.support.claims import JobFileCase, job_of
from tests.support.directives import LAST, DirectiveCase
from tests.support.losses import JOB, LATER, LossCase
from tests.support.over_tcp import OverTcp, without
from tests.support.runs import WAITING
from tests.support.scripts import RUNMAKER, RUNSET, RUNWAIT

NEVER = "#RUN from=2100-01-01T00:00\n"


def at(text: str) -> float:
    return runmaker4.parse_time(text)


def settings_of(text: str) -> runmaker4.JobSettings:
    settings = runmaker4.parse_directive(b"RUN " + text.encode())
    if not isinstance(settings, runmaker4.JobSettings):
        raise AssertionError(f"{text} has no settings")
    return settings


class Clocks(unittest.TestCase):
    """When the local clock lets jobs start."""

    def setUp(self) -> None:
        patch = mock.patch.dict(os.environ, TZ="CET-1CEST,M3.5.0,M10.5.0/3")
        patch.start()
        time.tzset()
        self.addCleanup(time.tzset)
        self.addCleanup(patch.stop)             # before tzset(): the last cleanup comes first

    def test_hours_go_past_midnight_and_days_are_open_at_all_hours(self) -> None:
        nights = settings_of("hours=20:00-07:00,Sat")
        for text, is_open in (("24T19:59:59", False), ("24T20:00", True), ("25T06:59", True),
                              ("25T07:00", False), ("26T12:00", True), ("27T12:00", False)):
            with self.subTest(text=text):
                self.assertIs(nights.is_open(at(f"2026-12-{text}")), is_open)

    def test_directives_with_equal_hours_share_them(self) -> None:
        """A week has 10,080 minutes, and each of 10,000 samples can have a directive of its own."""
        one, other = settings_of("name=1 hours=20:00-07:00,sat"), settings_of("name=2 hours=20:00-07:00,sat")
        self.assertIs(one.hours, other.hours)

    def test_an_end_at_24_00_and_equal_times_mean_the_whole_rest_and_the_whole_day(self) -> None:
        for text, is_open in ("23:00-24:00", False), ("12:00-12:00", True):
            with self.subTest(text=text):
                self.assertIs(settings_of(f"hours={text}").is_open(at("2026-12-24T00:00")), is_open)
                self.assertTrue(settings_of(f"hours={text}").is_open(at("2026-12-24T23:59")))

    def test_the_opening_is_told_by_the_local_clock_also_when_that_changes(self) -> None:
        for hours, now, wanted in (("20:00-07:00", "2026-12-24T18:30", "20:00 (in 1h 30m)"),
                                   ("sat", "2026-12-24T18:30", "2026-12-26 00:00 (in 1d 05h)"),
                                   # there is no 02:30 on this day, and the clock goes from 02:00 to 03:00
                                   ("02:30-02:40", "2026-03-29T01:00", "2026-03-30 02:30 (in 1d 00h)"),
                                   ("03:00-04:00", "2026-03-29T01:30", "03:00 (in 30m 00s)"),
                                   # on this one 02:00 to 03:00 comes twice
                                   ("03:00-04:00", "2026-10-25T01:30", "03:00 (in 2h 30m)")):
            with self.subTest(hours=hours, now=now):
                self.assertEqual(settings_of(f"hours={hours}").describe_opening(at(now)), wanted)

    def test_a_start_is_a_local_time_and_hours_count_from_then_on(self) -> None:
        both = settings_of("hours=20:00-21:00 from=2026-12-24T20:30")
        for text, is_open in (("23T20:30", False), ("24T20:29:59", False), ("24T20:30", True),
                              ("24T21:00", False), ("25T20:00", True)):
            with self.subTest(text=text):
                self.assertIs(both.is_open(at(f"2026-12-{text}")), is_open)
        self.assertEqual(both.describe_opening(at("2026-12-24T20:00")), "20:30 (in 30m 00s)")

    def test_other_values_are_refused_with_an_example(self) -> None:
        for name, values in (("hours", ("20-7", "25:00-07:00", "20:00", "mon-fri", "sat,")),
                             ("from", ("18:00", "tomorrow", "2026-13-01T00:00", "2026-12-24")),
                             ("limit", ("matlab", ":3", "a:0", "a:x", "a:1,b", "a:20000", "a:3,a:1"))):
            for value in values:
                with self.subTest(value=value), self.assertRaisesRegex(ValueError, f"^{name}= is not "):
                    settings_of(f"{name}={value}")


class KeptBack(JobFileCase):
    """Which line a runner claims next, with a clock that the test sets."""

    def claim(self, cursor: runmaker4.Cursor) -> Any:
        found = cursor.claim(cursor.consumers.all)
        return found.number if isinstance(found, runmaker4.Job) else found

    def cursor_at(self, text: str, now: str, retry: bytes = b"") -> runmaker4.Cursor:
        cursor = self.jobs(text.encode(), retry=retry)
        cursor.file.wall_clock = lambda: at(self.now)
        self.now = now
        return cursor

    def test_jobs_below_hours_are_claimed_when_these_come_without_a_change_of_the_file(self) -> None:
        cursor = self.cursor_at("#RUN hours=20:00-07:00\n. 1\n. 2\n#RUN\n. 3\n", "2026-12-24T19:00")
        self.assertEqual(self.claim(cursor), 5)
        self.assertFalse(self.claim(cursor).may_exit)
        self.clock.now += 10.0
        self.assertFalse(self.claim(cursor).exits)
        self.now = "2026-12-24T20:00"
        self.clock.now += 10.0
        self.assertEqual([self.claim(cursor), self.claim(cursor)], [2, 3])

    def test_a_clock_that_is_set_back_closes_the_hours_again(self) -> None:
        cursor = self.cursor_at("#RUN hours=20:00-07:00\n. 1\n. 2\n", "2026-12-24T20:00")
        self.assertEqual(self.claim(cursor), 2)
        self.now = "2026-12-24T19:00"
        self.assertFalse(self.claim(cursor).exits)

    def test_a_job_that_waits_for_a_name_waits_for_the_hours_as_well(self) -> None:
        cursor = self.cursor_at("#RUN name=a\n. 1\n#RUN after=a hours=20:00-07:00\n. 2\n", "2026-12-24T19:00")
        job = job_of(cursor.claim())
        self.assertFalse(self.claim(cursor))
        cursor.finish(job, b"d")
        self.assertFalse(self.claim(cursor))
        self.now = "2026-12-24T20:00"
        self.clock.now += 10.0
        self.assertEqual(self.claim(cursor), 4)

    def test_a_barrier_waits_for_jobs_that_are_kept_back(self) -> None:
        cursor = self.cursor_at(NEVER + ". 1\n#RUN barrier\n#RUN\n. 2\n", "2026-12-24T19:00")
        self.assertFalse(self.claim(cursor).exits)

    def test_a_barrier_waits_for_an_orphan_that_is_kept_back(self) -> None:
        cursor = self.cursor_at(NEVER + "r 1\n#RUN barrier\n#RUN\n. 2\n", "2026-12-24T19:00", retry=b"er")
        self.assertFalse(self.claim(cursor))
        self.assertEqual(self.path.read_bytes(), (NEVER + ". 1\n#RUN barrier\n#RUN\n. 2\n").encode())

    def test_a_job_goes_before_a_big_one_below_it_that_waits_for_slots(self) -> None:
        cursor = self.cursor_at("#RUN limit=a:1\n. 1\n. 2\n#RUN slots=6\n. 3\n", "2026-12-24T19:00")
        consumer = next(iter(cursor.consumers.all))
        consumer.capacity = consumer.free = runmaker4.Resources(6, 0)
        job = job_of(cursor.claim())
        consumer.free = runmaker4.Resources(5, 0)
        self.assertNotIsInstance(self.claim(cursor), int, "the big one, or a second job with the limit")
        cursor.finish(job, b"d")
        consumer.free = runmaker4.Resources(5, 0)       # a job of others, which needs one
        self.assertEqual(self.claim(cursor), 3)

    def test_a_job_whose_job_lock_was_lost_counts_again_with_the_next_one(self) -> None:
        cursor = self.cursor_at("#RUN limit=a:1\n. 1\n. 2\n", "2026-12-24T19:00")
        job = job_of(cursor.claim())
        self.lose_job_lock(cursor.queue, job)
        self.assertEqual(cursor.queue.check_jobs(), {})
        self.assertNotIsInstance(self.claim(cursor), int, "a second job with the limit")

    def test_an_orphan_that_is_kept_back_keeps_a_runner_that_resumes_it(self) -> None:
        cursor = self.cursor_at("#RUN limit=a:1\nr 1\n. 2\n", "2026-12-24T19:00", retry=b"er")
        other = job_of(cursor.claim())
        self.assertEqual(other.number, 3)
        self.assertFalse(self.claim(cursor).exits)
        self.assertEqual(cursor.finish(other, b"d"), "")
        self.clock.now += 10.0
        self.assertEqual(self.claim(cursor), 2)

    def test_lines_that_exceed_what_a_walk_keeps_keep_their_order(self) -> None:
        with mock.patch.object(runmaker4.Walk, "MAX_WAITING", 2):
            lines = "".join(f". {number}\n" for number in range(6))
            cursor = self.cursor_at(f"#RUN limit=a:1\n{lines}", "2026-12-24T19:00")
            numbers = []
            job = job_of(cursor.claim())
            for _ in range(5):
                self.assertNotIsInstance(self.claim(cursor), int, "a second job with the limit")
                numbers.append(job.number)
                cursor.finish(job, b"d")
                self.clock.now += 10.0
                job = job_of(cursor.claim())
        self.assertEqual(numbers, [2, 3, 4, 5, 6])


class Turns(JobFileCase):
    """Which of several runners gets the place of a full limit= that is free again."""

    def runner(self, name: str, slots: int = 1) -> runmaker4.Cursor:
        """A cursor of a runner with this name on the file as it is; it claims its first job, if it may."""
        file = runmaker4.JobFile(str(self.path), say=lambda text: None, clock=self.clock)
        self.addCleanup(file.close_files)
        capacity = runmaker4.Resources(slots)
        return runmaker4.Cursor(runmaker4.JobQueue(file), [
            runmaker4.Consumer(name, capacity=capacity, free=capacity)])

    def finish_and_claim(self, cursor: runmaker4.Cursor, job: runmaker4.Job) -> Any:
        """What a runner with one slot does after a job that took two seconds."""
        self.clock.now += 2.0
        self.assertEqual(cursor.finish(job, b"d"), "")
        return cursor.claim()

    def test_a_line_above_for_another_host_goes_before_those_of_the_runner_that_frees_the_place(self) -> None:
        for maximum, slots in (1, 1), (3, 3):
            with self.subTest(maximum=maximum):
                limit = f"limit={'abcd'[maximum]}:{maximum}"
                self.path.write_text(f"#RUN {limit} host=above\n. {maximum} 1\n. {maximum} 2\n"
                                     f"#RUN {limit} host=below\n" + "".join(
                                         f". {maximum} {number}\n" for number in range(20, 40)))
                below, above = self.runner("below", slots), self.runner("above")
                jobs = [job_of(below.claim()) for _ in range(maximum)]
                self.assertFalse(above.claim())
                self.assertFalse(self.finish_and_claim(below, jobs[0]))
                job = job_of(above.claim())
                self.assertEqual(job.number, 2)
                self.clock.now += 20.0
                self.assertFalse(below.claim())
                # one above gives way to none below
                self.assertEqual(job_of(self.finish_and_claim(above, job)).number, 3)

    def test_a_runner_that_cannot_take_back_that_it_waits_keeps_the_job_that_it_has_claimed(self) -> None:
        self.path.write_text("#RUN limit=a:1\n. 1\n. 2\n")
        first, second = self.runner("one"), self.runner("two")
        first.claim()
        self.assertFalse(second.claim())
        with open(self.path, "a") as file:
            file.write("#RUN\n. 3\n")
        self.clock.now += 20.0
        unlock = runmaker4.unlock

        def lose(fd: int, offset: int, length: int = 1) -> None:
            unlock(fd, offset, length)
            if offset >= runmaker4.LIMIT_BYTES:
                raise OSError(errno.EIO, "lost")

        with mock.patch.object(runmaker4, "unlock", lose):
            self.assertEqual(job_of(second.claim()).number, 5)

    def test_equal_runners_all_get_places(self) -> None:
        self.path.write_text("#RUN limit=a:1\n" + "".join(f". {number}\n" for number in range(60)))
        runners = [self.runner(name) for name in ("one", "two", "three")]
        counts = [0, 0, 0]
        turn, job = 0, job_of(runners[0].claim())
        for _ in range(59):
            for index in {0, 1, 2} - {turn}:
                self.assertFalse(runners[index].claim())
            counts[turn] += 1
            found = self.finish_and_claim(runners[turn], job)
            while not found:                    # it has given way
                self.clock.now += 0.5
                turn = (turn + 1) % 3
                found = runners[turn].claim()
            job = job_of(found)
        self.assertGreater(min(counts), 9, counts)

    def test_a_runner_that_waits_and_is_stopped_holds_up_the_others_only_now_and_then(self) -> None:
        self.path.write_text("#RUN limit=a:1 host=above\n. 1\n#RUN limit=a:1 host=below\n" + "".join(
            f". below {number}\n" for number in range(60)))
        below, above = self.runner("below"), self.runner("above")
        job = job_of(below.claim())
        self.assertFalse(above.claim())         # and never again
        idle = 0.0
        for _ in range(50):
            found = self.finish_and_claim(below, job)
            while not found:
                self.clock.now += 0.25
                idle += 0.25
                found = below.claim()
            job = job_of(found)
        self.assertLess(idle, 2.0 * 50 / 3)

    def test_a_runner_that_has_found_other_jobs_for_its_slots_is_not_waited_for(self) -> None:
        self.path.write_text("#RUN limit=a:1 host=above\n. 1\n#RUN limit=a:1 host=below\n. 2\n. 3\n. 4\n")
        below, above = self.runner("below"), self.runner("above")
        job = job_of(below.claim())
        self.assertFalse(above.claim())
        with self.path.open("a") as file:
            file.write("#RUN\n. other\n")
        self.clock.now += 2.0
        self.assertEqual(job_of(above.claim()).command, b"other")
        self.assertEqual(job_of(self.finish_and_claim(below, job)).number, 5)

    def test_clients_of_several_hosts_get_places_while_one_is_busy(self) -> None:
        """One server hands out the lines: a line for a busy client keeps none below from others."""
        cursor = self.jobs(b"#RUN limit=a:2\n. 1\n. 2\n#RUN limit=a:2 host=busy\n. 3\n. 4\n"
                           b"#RUN limit=a:2 host=idle\n. 5\n. 6\n. 7\n", serving=True)
        busy, idle = (runmaker4.Consumer(name) for name in ("busy", "idle"))
        known = [busy, idle]
        jobs = [job_of(cursor.claim((), runmaker4.Consumers(known), known)) for _ in range(2)]
        self.assertFalse(cursor.claim((), runmaker4.Consumers(known), known))
        for number in 8, 9, 10:
            self.assertEqual(cursor.finish(jobs.pop(0), b"d"), "")
            jobs.append(job_of(cursor.claim((), runmaker4.Consumers([idle]), known)))
            self.assertEqual(jobs[-1].number, number)

    def test_directives_that_differ_otherwise_cost_one_claim_while_the_limit_is_full(self) -> None:
        self.path.write_text("".join(f"#RUN name=s{number} limit=a:1\n. {number}\n" for number in range(50)))
        cursor = self.runner("")
        job = job_of(cursor.claim())
        with mock.patch.object(cursor.queue, "claim", wraps=cursor.queue.claim) as claim:
            self.assertFalse(cursor.claim())
            self.assertEqual(job_of(self.finish_and_claim(cursor, job)).number, 4)
            self.assertFalse(cursor.claim())
        self.assertLess(claim.call_count, 10)

    def test_many_lines_of_one_full_limit_leave_room_for_those_of_another(self) -> None:
        with mock.patch.object(runmaker4.Walk, "MAX_WAITING", 8):
            self.path.write_text("#RUN limit=a:1\n" + ". a\n" * 20 + "#RUN limit=b:1\n" + ". b\n" * 4)
            cursor = self.runner("", 2)
            self.assertEqual(job_of(cursor.claim()).number, 2)
            job = job_of(cursor.claim())
            self.assertEqual(job.number, 23)
            self.assertFalse(cursor.claim())
            for number in 24, 25:               # at once: no walk is due
                self.assertEqual(cursor.finish(job, b"d"), "")
                job = job_of(cursor.claim())
                self.assertEqual(job.number, number)


class RestrictionCase(DirectiveCase):
    """Steps that the tests below share."""

    def runset(self, *options: str) -> None:
        self.assertEqual(self.run_script(RUNSET, *options).code, 0)

    def status(self) -> str:
        return self.run_script(RUNWAIT, "--status", "runs.txt").out.decode()

    def most_at_once(self) -> int:
        """How many jobs have run at once, as they have noted in `ran`."""
        running = most = 0
        for line in self.read("ran").split():
            running += 1 if line == b"S" else -1
            most = max(most, running)
        return most


class Runners(RestrictionCase):
    """Jobs that wait, and runners that wait with them."""

    def test_lines_below_go_on_and_the_runner_stays_until_the_time_has_come(self) -> None:
        self.lines(NEVER[:-1], ". echo 2 >>ran", "#RUN", ". echo 4 >>ran; touch up.4")
        runner = self.start_looking("-q", "runs.txt")
        self.wait_up(4, runner=runner)
        self.wait_looked()
        self.assertEqual((self.states(), runner.poll()), (".d", None))
        self.edit("#RUN from=2100-01-01T00:00", "#RUN from=2000-01-01T00:00")
        self.assertLeft(runner, 0, "dd")
        self.assertEqual(self.ran(), [4, 2])

    def test_a_time_comes_by_itself(self) -> None:
        soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 2))
        self.lines(f"#RUN from={soon}", ". echo 2 >>ran", ". echo 3 >>ran", "#RUN", ". echo 5 >>ran")
        self.assertLeft(self.start(RUNMAKER, "-q", "runs.txt"), 0, "ddd")
        self.assertEqual(sorted(self.ran()), [2, 3, 5])

    def test_no_more_than_the_limit_run_on_several_runners_and_lines_below_go_on(self) -> None:
        job = f". echo S >>ran; {WAITING}; echo E >>ran"
        self.lines("#RUN limit=lic:2", *[job] * 6, "#RUN", ". touch up.9")
        runners = [self.start_looking("-q", "-j4", "runs.txt") for _ in range(2)]
        self.wait_up(2, 3, 9)
        self.wait_looked()
        self.wait_states("rr....d")
        self.assertIn("line 4 waits for limit lic: 2 of 2 run: lines 2, 3 (#RUN in line 1)", self.status())
        self.open_gate()
        for runner in runners:
            self.assertLeft(runner, 0, "ddddddd")
        self.assertEqual(self.most_at_once(), 2)

    def test_a_job_with_several_limits_waits_for_each(self) -> None:
        self.lines("#RUN limit=a:1", f". {WAITING}", "#RUN limit=b:2,a:1", ". true",
                   "#RUN limit=b:2", ". touch up.6")
        runner = self.start_looking("-q", "-j4", "runs.txt")
        self.wait_up(2, 6)
        self.wait_looked()
        self.assertEqual(self.states(), "r.d")
        self.open_gate()
        self.assertLeft(runner, 0, "ddd")

    def test_a_job_that_outlives_its_runner_counts(self) -> None:
        self.lines("#RUN limit=a:1", f". {WAITING}", ". touch up.3", "#RUN", ". touch up.5")
        runner = self.start_jobs("-q", up=[2])
        runner.kill()
        runner.wait()
        other = self.start_looking("-q", "runs.txt")
        self.wait_up(5, runner=other)
        self.wait_looked()
        self.assertEqual(self.states(), "r.d")
        self.open_gate()
        self.wait_up(3, runner=other)

    def test_after_an_edit_to_a_smaller_limit_fewer_start(self) -> None:
        self.lines("#RUN limit=a:2", f". {WAITING}", f". {WAITING}", ". touch up.4")
        runner = self.start_looking("-q", "-j4", "runs.txt")
        self.wait_up(2, 3, runner=runner)
        self.edit("limit=a:2", "limit=a:1")
        self.wait_looked()
        self.assertEqual(self.states(), "rr.")
        self.open_gate()
        self.assertLeft(runner, 0, "ddd")

    def test_no_successor_is_hired_only_for_jobs_that_may_not_start_now(self) -> None:
        for above in NEVER, "#RUN pause\n":
            with self.subTest(above=above):
                self.write(f". {LAST}; sleep 600\n{above}. true\n")
                self.write("", "last")
                runner = self.start(RUNMAKER, "-q", "-j2", "--walltime=1", "--hire=touch hired", "runs.txt")
                self.finish(runner)
                self.assertEqual((self.states(), self.exists("hired")), ("e.", False))


@without("test_no_successor_is_hired_only_for_jobs_that_may_not_start_now",
         "test_a_job_that_outlives_its_runner_counts")
class RunnersOverTcp(OverTcp, Runners):
    """The same of clients."""


class Pauses(RestrictionCase):
    """`#RUN pause`, and the options that write and remove it."""

    def test_below_a_pause_nothing_starts_and_the_runner_stays_until_the_line_goes(self) -> None:
        self.lines(f". {WAITING}", ". echo 2 >>ran", ". echo 3 >>ran")
        runner = self.start_looking("-q", "runs.txt")
        self.wait_up(1, runner=runner)
        self.runset("--pause", "runs.txt")
        self.runset("runs.txt", "--add", "echo 4 >>ran")
        self.open_gate()
        self.wait_states("d...")
        self.wait_looked()
        self.assertEqual((self.states(), runner.poll()), ("d...", None))
        self.assertEqual(self.read().split(b"\n")[0], b"#RUN pause")
        self.runset("--set=.", "runs.txt", "2")         # done before the pause
        self.wait_looked()
        self.assertEqual((self.states(), runner.poll()), ("....", None))
        self.assertIn("paused (#RUN pause in line 1)", self.status())
        self.wait_told("paused (#RUN pause in line 1)")
        self.runset("--go", "runs.txt")
        self.assertEqual(self.finish(runner).code, 0)
        self.assertEqual((self.states(), self.ran()), ("dddd", [2, 3, 4]))

    def test_it_stands_above_all_jobs_in_any_state_or_last_in_a_file_without_any(self) -> None:
        for text, paused in (("# a\n#RUN slots=2\nd b\n. b\n", "# a\n#RUN slots=2\n#RUN pause\nd b\n. b\n"),
                             ("x held\n#RUN pause\n. b\n", "#RUN pause\nx held\n#RUN pause\n. b\n"),
                             ("# a", "# a\n#RUN pause\n"), ("#RUN slots=2\n", "#RUN slots=2\n#RUN pause\n")):
            with self.subTest(text=text):
                self.write(text)
                self.runset("--pause", "runs.txt")
                self.assertEqual(self.read().decode(), paused)

    def test_a_line_that_is_lost_meanwhile_is_not_run_again(self) -> None:
        self.write(f". echo 1 >>ran; {WAITING}\n. echo 2 >>ran\n")
        runner = self.start_jobs("-q", up=[1])
        self.runset("--pause", "runs.txt")
        runner.kill()
        runner.wait()
        self.open_gate()
        other = self.start_looking("-q", "--resume", "runs.txt")
        self.wait_looked()
        self.assertEqual((self.ran(), other.poll()), ([1], None))
        self.runset("--go", "runs.txt")
        self.assertEqual(self.finish(other).code, 0)
        self.assertEqual((self.states(), self.ran()), ("dd", [1, 2, 1]))

    def test_a_second_pause_and_a_second_go_change_nothing(self) -> None:
        self.lines(". true", ". true")
        paused = b"is paused already (#RUN pause in line 1)"
        for option, said in ("--pause", paused), ("--go", b"is not paused"):
            with self.subTest(option=option):
                self.runset(option, "runs.txt")
                before = self.read()
                ended = self.run_script(RUNSET, option, "runs.txt")
                self.assertEqual((ended.code, self.read()), (1, before))
                self.assertIn(said, ended.err)

    def test_go_removes_the_first_pause_alone_and_names_the_next(self) -> None:
        self.lines(". 1", "#RUN pause", ". 2", "#RUN  pause ", ". 3")
        ended = self.run_script(RUNSET, "--go", "runs.txt")
        self.assertEqual(self.read(), b". 1\n. 2\n#RUN  pause \n. 3\n")
        self.assertIn(b"goes on up to the #RUN pause in line 3 (#RUN pause in line 2 is removed)", ended.err)

    def test_a_dry_run_ends_at_the_pause_and_says_so(self) -> None:
        for below in (". 2",), ():
            with self.subTest(below=below):
                self.lines(". 1", "#RUN pause", *below)
                ended = self.run_jobs("--dry-run")
                self.assertEqual(ended.out, b"1 . 1\n")
        self.assertTold("paused (#RUN pause in line 2)", times=2)
        self.run_jobs("--dry-run", "-1")        # leaves no slot for a job below
        self.assertTold("paused (#RUN pause in line 2)", times=2)

    def test_a_selection_of_lines_is_refused(self) -> None:
        self.lines(". 1")
        for option in "--pause", "--go":
            with self.subTest(option=option):
                self.assertEqual(self.run_script(RUNSET, option, "runs.txt", "1").code, 2)


class AtTheServer(LossCase):
    """A limit over TCP, on the file, and beyond the death of the server."""

    def test_jobs_of_a_killed_server_count_until_they_have_ended(self) -> None:
        self.before = self.write(f"#RUN limit=a:1\n. {JOB}\n. {LATER}\n").read_bytes()
        server = self.serve_again()
        client = self.connect(server, "-j2", up=[2])
        runner = self.start_looking("-q", "runs.txt")
        server.kill()
        self.wait_looked()
        self.assertEqual(self.states(), "r.")
        server = self.serve_again(server.port)
        self.wait_clients(server, 1)
        self.wait_looked()
        self.assertEqual(self.states(), "r.")
        self.open_gate()
        self.wait_up(3)                         # of the client or the runner
        self.write("", "go.2")
        self.wait_states("dd")
        self.finish(runner)
        self.assertClientEnded(self.finish(client), 0, "dd")
