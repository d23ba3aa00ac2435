"""Lines of running jobs that edits have moved, deleted or set back; lines that other runners have taken meanwhile."""
import errno
import os
import random
import signal
import unittest
from typing import Any, Callable, List
from unittest import mock

import runmaker4
from tests.support import FULL, wait_until
from tests.test_life_sign import EditedHelpers
from tests.test_parts import JobFileCase


class EditedInPlace(EditedHelpers):
    """An editor saves in place while jobs run; beside them --resume runners look for work."""
    JOB = "sh job.sh"

    def setUp(self) -> None:
        super().setUp()
        self.write(self.WAITING, "job.sh")

    def start_jobs_of(self, text: str, runs: int, *options: str) -> Any:
        """A runner on this file; returns when so many jobs run."""
        self.write(text)
        runner = self.start_runner(*options)
        wait_until(lambda: (self.dir / "marks").exists() and self.runs() == runs, what=f"{runs} jobs run")
        return runner

    def save(self, change: Callable[[List[bytes]], Any]) -> None:
        """Read the lines, change them, and write all of them to the same file, as an editor without rename does."""
        lines = self.read().splitlines(keepends=True)
        change(lines)
        (self.dir / "runs.txt").write_bytes(b"".join(lines))

    def assert_nobody_resumes(self) -> None:
        """A --resume runner takes nothing, and calls nothing an orphan."""
        before = self.runs()
        other = self.finish(self.start_hasty("--resume", "runs.txt"))
        self.assertEqual((other.out, self.runs()), (b"", before), other.err)
        self.assertNotIn("e", self.states())

    def test_of_identical_commands_the_lock_moves_to_the_one_that_runs(self) -> None:
        runner = self.start_jobs_of(f"d {self.JOB}\n. {self.JOB}\nx {self.JOB}\n", 1)
        self.save(lambda lines: lines.pop(0))
        wait_until(lambda: self.locked_lines() == [1], what="line 1 is locked, and no other")
        self.assert_nobody_resumes()
        self.open_gate()
        self.assertEqual(self.finish(runner).code, 0)
        self.assertEqual((self.states(), self.runs()), ("dx", 1))

    def test_its_result_is_written_there_also_if_nobody_has_looked_since(self) -> None:
        runner = self.start_jobs_of(f"d {self.JOB}\n. {self.JOB}\nx {self.JOB}\n", 1)
        self.save(lambda lines: lines.pop(0))
        self.open_gate()
        self.assertEqual(self.finish(runner).code, 0)
        self.assertEqual((self.states(), self.runs()), ("dx", 1))

    def check_edits(self, edits: int, running: int) -> None:
        """Identical jobs run while lines are deleted, inserted and moved: nobody else takes one, none is an error."""
        dice = random.Random(24)
        first = "".join(f"{state} {self.JOB}\n" for state in dice.choices("dx!", k=running))
        runner = self.start_jobs_of(first + f". {self.JOB}\n" * running, running, f"-j{running}")

        def change(lines: List[bytes]) -> None:
            idle = [line for line in lines if not line.startswith(b"r")]
            if idle and dice.random() < 0.6:
                lines.remove(dice.choice(idle))
            else:
                lines.insert(dice.randrange(len(lines)), dice.choice([f"x {self.JOB}\n".encode(), b"# a note\n"]))

        for _ in range(edits):
            self.save(change)
            expected = [number for number, line in enumerate(self.read().splitlines(), 1) if line.startswith(b"r")]
            wait_until(lambda: self.locked_lines() == expected, what=f"lines {expected} are locked, no others")
        self.assert_nobody_resumes()
        self.open_gate()
        self.finish(runner)
        self.assertEqual((self.runs(), self.states().count("r"), self.states().count("e")), (running, 0, 0))

    def test_the_locks_of_identical_jobs_follow_any_edits(self) -> None:
        self.check_edits(edits=5, running=4)

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a minute")
    def test_the_locks_of_many_identical_jobs_follow_many_edits(self) -> None:
        self.check_edits(edits=40, running=30)

    def test_a_job_whose_state_is_set_by_hand_does_not_take_another_line_of_its_command(self) -> None:
        runner = self.start_jobs_of(f". {self.JOB}\n", 1)
        (self.dir / "runs.txt").write_text(f"x {self.JOB}\n#RUN host=nobody\n. {self.JOB}\n")
        self.open_gate()
        self.finish(runner)
        self.assertEqual(self.states(), "x.")

    def test_a_dot_that_is_saved_over_a_running_line_is_put_right(self) -> None:
        runner = self.start_jobs_of(f". {self.JOB}\n", 1)
        self.save(lambda lines: lines.__setitem__(0, f". {self.JOB}\n".encode()))
        self.wait_states("r")
        self.open_gate()
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states(), self.runs()), (0, "d", 1))
        self.assertIn(b"line 1: its job runs, so the . that was saved over its r is r again (runset4.py --edit keeps "
                      b"states)\n", ended.err)

    def test_it_is_put_right_also_if_the_job_ends_before_that_is_seen(self) -> None:
        runner = self.start_jobs_of(f". {self.JOB}\n", 1)
        self.save(lambda lines: lines.__setitem__(0, f". {self.JOB}\n".encode()))
        self.open_gate()
        self.assertEqual((self.finish(runner).code, self.states(), self.runs()), (0, "d", 1))


class Numbers(EditedHelpers):
    """What is said and recorded of a job names the line where it stands now."""

    def test_the_closing_line_and_the_job_log_name_the_line_where_the_job_stands_now(self) -> None:
        self.write(f". {self.WAITING}; false\n")
        runner = self.start_runner("--joblog", "log")
        self.job_pid()
        self.replace(b"# a note\nx held\n" + self.read())
        wait_until(lambda: self.locked_lines() == [3], what="line 3 is locked")
        self.open_gate()
        self.assertIn(b"(line 3)", self.finish(runner).err.splitlines()[-1])
        self.assertEqual(self.read("log").splitlines()[1].split(b"\t")[0], b"3")


class TakenMeanwhile(EditedHelpers):
    """A runner that was stopped for a while may have lost its lines."""

    def check_copy_is_stopped(self, above: bytes) -> None:
        """While a runner is stopped the file is replaced, and another runs its job: it stops its own copy."""
        self.write(f". {self.WAITING}\n")
        first = self.start_runner()
        copy = self.job_pid()
        first.send_signal(signal.SIGSTOP)
        self.replace(above + self.read())
        second = self.start_runner("--resume")
        wait_until(lambda: self.runs() == 2, what="the other runs the job, too")
        first.send_signal(signal.SIGCONT)
        ended = self.finish(first)
        self.assertIn(b"was lost to another runner, our copy is stopped\n", ended.err)
        self.assertFalse(os.path.exists(f"/proc/{copy}"))
        self.assertEqual((ended.code, self.states()), (1, "r"))     # nobody knows yet how it ends
        self.open_gate()
        self.assertEqual((self.finish(second).code, self.states()), (0, "d"))

    def test_its_copy_of_a_job_that_another_has_taken_is_stopped(self) -> None:
        self.check_copy_is_stopped(b"")

    def test_also_if_the_line_has_moved(self) -> None:
        self.check_copy_is_stopped(b"# a note\n")


class HeldLines(JobFileCase):
    """JobFile by itself, with a clock of the test's."""

    def setUp(self) -> None:
        super().setUp()
        self.said: List[str] = []

    def hold(self, text: bytes, **settings: Any) -> Any:
        """A JobFile on this text, and its first new job, claimed."""
        file = self.file(text, **settings)
        file.say = self.said.append
        job = runmaker4.Cursor(file, [runmaker4.Taker("")]).claim()
        self.addCleanup(file.give_up, job)
        return file, job

    def lose_lease(self, file: runmaker4.JobFile, job: runmaker4.Job) -> Any:
        """The next read by the descriptor that the job has now fails."""
        lost, right = [job.fd], file.read_line

        def read_line(fd: int, *args: Any) -> bytes:
            if fd in lost:
                lost.clear()                            # its number will be another's
                raise OSError(errno.EIO, "lease lost")
            return right(fd, *args)

        return mock.patch.object(file, "read_line", read_line)

    def test_after_a_lost_lease_a_line_is_taken_back_though_its_job_has_the_old_description(self) -> None:
        file, job = self.hold(b". a\n")
        inherited = os.dup(job.fd)                      # as the job has it
        self.addCleanup(os.close, inherited)
        with self.lose_lease(file, job):
            self.assertEqual(file.look_after(), {})
        self.assertIn(job, file.held)
        with open(self.path, "r+b") as other:
            self.assertFalse(runmaker4.is_free(other.fileno(), 0))
        self.assertEqual((self.said, file.finish(job, b"d")), (["line 1: its lock was lost and is taken back"], ""))
        self.assertEqual(self.path.read_bytes(), b"d a\n")

    def test_after_a_lost_lease_that_each_refresh_tells_the_only_descriptor_is_left(self) -> None:
        """A server's, or that of classic locks: reads and locks are on one, and it stays useless."""
        file, job = self.hold(b". a\n", single=True)
        lost, refresh = file.fd, file.refresh

        def fail() -> None:
            if file.fd == lost:
                raise OSError(errno.EIO, "lease lost")
            refresh()

        with mock.patch.object(file, "refresh", fail):
            self.assertEqual(file.look_after(), {})
        self.assertIn(job, file.held)
        with open(self.path, "r+b") as other:
            self.assertFalse(runmaker4.is_free(other.fileno(), 0))
        self.assertEqual((self.said, file.finish(job, b"d")), (["line 1: its lock was lost and is taken back"], ""))

    def test_a_page_in_memory_hides_no_lost_lease(self) -> None:
        """Only the first read after a granted lock asks the server; jobs three and four were claimed after the loss."""
        file, first = self.hold(b". a\n. b\n. c\n. d\n")
        cursor = runmaker4.Cursor(file, [runmaker4.Taker("")])
        jobs = [first] + [cursor.claim() for _ in range(3)]
        for job in jobs[1:]:
            self.addCleanup(file.give_up, job)
        lost, right, asked = {job.fd for job in jobs[:2]}, file.read_line, []

        def read_line(fd: int, *args: Any) -> bytes:
            if fd in lost and not asked:
                lost.discard(fd)
                raise OSError(errno.EIO, "lease lost")
            asked.append(fd)
            return right(fd, *args)

        with mock.patch.object(file, "read_line", read_line), mock.patch.object(file, "refresh", asked.clear):
            self.assertEqual(file.look_after(), {})
        self.assertEqual(sorted(self.said), [f"line {n}: its lock was lost and is taken back" for n in (1, 2)])

    def test_after_a_lost_lease_a_line_that_another_has_run_is_lost(self) -> None:
        file, job = self.hold(b". a\n")
        self.path.write_bytes(b"d a\n")
        with self.lose_lease(file, job):
            self.assertEqual(file.look_after(), {job: "lost"})
        self.assertNotIn(job, file.held)

    def test_a_result_for_a_line_that_another_has_taken_is_said_in_so_many_words(self) -> None:
        file, job = self.hold(b". a\n")
        self.path.rename(self.path.with_name("older"))
        self.path.write_bytes(b"r a\n")
        with open(self.path, "r+b") as other:
            runmaker4.lock(other.fileno(), 0)
            self.assertEqual(file.finish(job, b"d"),
                             "another runner has taken it meanwhile; its result d is not written")

    def test_locks_that_fail_cost_no_descriptors(self) -> None:
        for lease_lost in False, True:
            with self.subTest(lease_lost=lease_lost):
                file, job = self.hold(b". a\n")
                self.path.rename(self.path.with_name("older"))
                self.path.write_bytes(b"# moved\nr a\n")
                before = len(os.listdir("/proc/self/fd"))
                failing = mock.patch.object(runmaker4, "lock", side_effect=OSError(errno.ENOLCK, "no locks"))
                with failing, self.lose_lease(file, job):
                    for _ in range(5):
                        file.look_after()
                self.assertLessEqual(len(os.listdir("/proc/self/fd")), before)

    def test_a_line_that_was_deleted_is_searched_for_less_and_less_often_and_that_is_said_once(self) -> None:
        file, job = self.hold(b". a\nd b\n")
        self.path.write_bytes(b"d b\n")
        searches = mock.Mock(side_effect=file.lines_of)
        with mock.patch.object(file, "lines_of", searches):
            for _ in range(600):                        # seconds
                self.clock.now += 1
                file.look_after()
        self.assertLess(searches.call_count, 20)
        self.assertEqual(self.said, ["line 1: is not in the file any more; its job runs on"])
        self.path.rename(self.path.with_name("older"))
        self.path.write_bytes(b"d b\nr a\n")            # it is put back: a new file is searched at once
        file.look_after()
        self.assertEqual((job.number, job.offset), (2, 4))

    def test_a_search_reads_only_lines_of_these_texts(self) -> None:
        file, job = self.hold(b". a\n")
        self.path.write_bytes(b". b\n" * 1000)
        with mock.patch.object(runmaker4, "Line", side_effect=runmaker4.Line) as lines:
            file.look_after()
        self.assertEqual(lines.call_count, 0)

    def test_a_text_across_the_border_of_two_chunks_is_found(self) -> None:
        command = b"c" * 300
        for before in range(4096 - 310, 4096 + 10):
            file, job = self.hold(b". " + command + b"\n")
            self.path.write_bytes(b"#" * before + b"\nr " + command + b"\n")
            file.look_after()
            self.assertEqual((job.number, job.offset), (2, before + 1))
            file.give_up(job)


class RandomEdits(JobFileCase):
    """Three runners hold lines of few different commands while an editor moves them: none is lost, none held twice."""
    HISTORIES, EDITS = 3000 if FULL else 150, 6
    NOTES = "# note\n", "x a\n", "d a\n", "! bb\n", "x ccc\n"

    def begin(self, seed: int, server: bool) -> None:
        """A file and its runners.  server: one of them has all its locks on one description."""
        self.dice = random.Random(seed)
        texts = self.dice.choices(["a", "a", "bb", "ccc"], k=self.dice.randrange(3, 12))
        first = self.file("".join(f"{self.dice.choice('..dx!')} {text}\n" for text in texts).encode(), single=server)
        others = [runmaker4.JobFile(str(self.path), say=lambda said: None, clock=self.clock) for _ in range(2)]
        for file in (first, *others):
            file.follow_path()
        self.runners = [runmaker4.Cursor(file, [runmaker4.Taker("")]) for file in (first, *others)]
        self.jobs: List[Any] = []
        for _ in range(self.dice.randrange(1, 6)):
            self.claim()

    def claim(self) -> None:
        runner = self.dice.choice(self.runners)
        job = runner.claim()
        if job:
            self.jobs.append((runner, job))

    def end_one(self) -> None:
        runner, job = self.jobs.pop(self.dice.randrange(len(self.jobs)))
        self.assertEqual(runner.finish(job, b"d"), "")

    def edit(self, stale: bool) -> None:
        """Change lines that do not run, move any.  stale: with the states from before the claims, if that is clear."""
        lines = self.path.read_text().splitlines(keepends=True)
        for _ in range(self.dice.randrange(1, 4)):
            idle = [number for number, line in enumerate(lines) if line[0] != "r"]
            what = self.dice.random()
            if what < 0.4 and idle:
                lines.pop(self.dice.choice(idle))
            elif what < 0.7 or not lines:
                lines.insert(self.dice.randrange(len(lines) + 1), self.dice.choice(self.NOTES))
            else:
                line = lines.pop(self.dice.randrange(len(lines)))
                lines.insert(self.dice.randrange(len(lines) + 1), line)
        running = [line for line in lines if line[0] == "r"]
        texts = [line[1:] for line in lines]
        if stale and all(texts.count(line[1:]) == 1 for line in running):
            lines = [line.replace("r", ".", 1) if line in running else line for line in lines]
        target = self.path if self.dice.random() < 0.5 else self.path.with_name("new")
        target.write_text("".join(lines))
        os.replace(target, self.path)

    def look(self) -> None:
        """Each runner looks after its lines three times, in any order."""
        for _ in range(3):
            for runner in self.dice.sample(self.runners, 3):
                self.assertEqual(runner.file.look_after(), {})
            self.clock.now += 1

    def check(self) -> None:
        """Each job has a line `r` of its own, locked, and no other line is `r`."""
        for runner in self.runners:
            runner.file.check()
        for runner, job in self.jobs:
            self.assertEqual((runner.file.state_at(job.fd, job), job.inode), (b"r", runner.file.inode))
            with open(self.path, "r+b") as other:
                self.assertFalse(runmaker4.is_free(other.fileno(), job.offset))
        places = {job.offset for _, job in self.jobs}
        running = [line for line in self.path.read_text().splitlines() if line[0] == "r"]
        self.assertEqual((len(places), len(running)), (len(self.jobs), len(self.jobs)))

    def end(self) -> None:
        for runner, job in self.jobs:
            runner.file.give_up(job)
        for runner in self.runners:
            self.assertEqual(list(runner.file.users), [runner.file.fd])
        for runner in self.runners[1:]:
            os.close(runner.file.fd)

    def test_each_running_job_keeps_a_line_of_its_own(self) -> None:
        for seed in range(self.HISTORIES):
            with self.subTest(seed=seed):
                self.begin(seed, server=seed % 2 == 1)
                for _ in range(self.EDITS):
                    self.edit(stale=self.dice.random() < 0.2)
                    self.look()
                    self.check()
                    if self.jobs and self.dice.random() < 0.5:
                        self.end_one()
                    if self.dice.random() < 0.5:
                        self.claim()
                self.end()


if __name__ == "__main__":
    unittest.main()
