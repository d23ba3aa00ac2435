"""runset4.py --edit: what a person changed in a copy is merged into the live file, and no job runs twice or never."""
import os
import random
import re
import subprocess
import threading
import unittest
from typing import Callable, List
from unittest import mock

import runmaker4
import runset4
from tests import marks
from tests.support import FULL, GATE, RUNMAKER, RUNSET, Ended, RunCase, wait_until

JOBS, EDITS, RUNNERS = (800, 80, 4) if FULL else (200, 6, 4)
PAUSE = 1.0 if FULL else 0.2           # seconds that a job takes: some are left when the last edit is made
EDITOR = "import sys, re, os, random, time; path = sys.argv[1]; text = open(path).read()\n"
SAVE = "\nopen(path, 'w').write(text); time.sleep(0.05)"


class EditCase(RunCase):
    """Helpers for tests of editing."""

    def start_edit(self, statements: str, name: str = "editor.py") -> subprocess.Popen:
        """Start --edit with an editor of this name that does this to `text`."""
        editor = self.write(EDITOR + statements + SAVE, name)
        return self.start(RUNSET, "--edit", "runs.txt", env={"EDITOR": f"python3 '{editor}'", "VISUAL": "",
                                                            "TMPDIR": str(self.dir)})

    def edit(self, statements: str) -> Ended:
        return self.finish(self.start_edit(statements))

    def assertEdits(self, before: str, statements: str, after: str) -> None:
        self.write(before)
        ended = self.edit(statements)
        self.assertEqual((ended.code, ended.err, self.read().decode()), (0, b"", after))
        self.assertEqual(list(self.dir.glob("runset4-*")), [])

    def assertRefuses(self, ended: Ended, *words: bytes) -> None:
        """Exit 1 and these words; the copy is kept where that is said."""
        self.assertEqual(ended.code, 1, ended.err)
        for word in words:
            self.assertIn(word, ended.err)
        kept = re.search(rb"copy is kept: (\S+?)\)?\n", ended.err)
        self.assertTrue(kept and os.path.exists(kept[1]), ended.err)


class Merging(EditCase):
    """Nobody else is there, or just one other writer."""

    def test_each_change_does_what_it_looks_like(self) -> None:
        four = ". a\nd b\n. c\n! d\n"
        self.assertEdits(four, "text = text.replace('! d', '. d')", ". a\nd b\n. c\n. d\n")
        self.assertEdits(four, "text += '. e'", four + ". e\n")
        self.assertEdits(four, "text = text.replace('. c\\n', '')", ". a\nd b\n! d\n")
        self.assertEdits(four, "text = '. c\\n' + text.replace('. c\\n', '')", ". c\n. a\nd b\n! d\n")
        self.assertEdits(four, "text = text.replace('d b', 'd b\\n#RUN timeout=5s\\n. b2')",
                         ". a\nd b\n#RUN timeout=5s\n. b2\n. c\n! d\n")

    def test_states_and_lines_that_came_meanwhile_stay(self) -> None:
        self.assertEdits(". a\n. b\n", "live = open('runs.txt', 'r+'); live.write('d'); live.close()\n"
                         "open('runs.txt', 'a').write('. z\\n'); text = text.replace('. b', '. c\\n. b')",
                         "d a\n. c\n. b\n. z\n")

    def test_what_somebody_else_changed_too_is_refused(self) -> None:
        self.write(". a\n. b\n")
        ended = self.edit("live = open('runs.txt', 'r+'); live.write('d'); live.close()\n"
                          "text = text.replace('. a\\n', '')")
        self.assertRefuses(ended, b"line 1: has changed meanwhile: its state is d now")
        self.assertEqual(self.read(), b"d a\n. b\n")

    def test_a_faulty_directive_is_refused_and_all_with_it(self) -> None:
        self.write(". a\n")
        self.assertRefuses(self.edit("text += '#RUN timeot=3\\n. b\\n'"), b"line 2 of the copy: 'timeot=3'")
        self.assertEqual(self.read(), b". a\n")

    def test_editors_that_fail_are_empty_or_come_back_at_once_change_nothing(self) -> None:
        self.write(". a\n")
        self.assertRefuses(self.edit("open(path, 'a').write('. b\\n'); sys.exit(3)"), b"failed: exit 3")
        self.assertRefuses(self.edit("open(path, 'a').write('. b\\n'); os.kill(os.getpid(), 9)"), b"died of signal 9")
        self.assertRefuses(self.edit("text = ''"), b"the copy is empty now")
        quick = self.run_script(RUNSET, "--edit", "runs.txt", env={"VISUAL": "true"})
        self.assertRefuses(quick, b"nothing was changed (the editor came back at once")
        self.assertEqual(self.run_script(RUNSET, "--edit", "runs.txt", env={"VISUAL": "no-such"}).code, 1)
        self.assertEqual(self.read(), b". a\n")

    def test_links_and_mode_are_kept(self) -> None:
        self.write(". a\n. b\n", "real").chmod(0o640)
        os.symlink("real", self.dir / "runs.txt")
        self.assertEqual(self.edit("text = text.replace('. a\\n', '')").code, 0)
        self.assertTrue((self.dir / "runs.txt").is_symlink())
        self.assertEqual((self.read("real"), (self.dir / "real").stat().st_mode & 0o777), (b". b\n", 0o640))


class WorstMoments(EditCase):
    """The name has just become the new file's, and a runner does not know yet."""

    def setUp(self) -> None:
        super().setUp()
        self.path = self.write(". a\n. b\n! c\n")
        self.said: List[str] = []
        self.runner = runmaker4.JobFile(str(self.path), say=self.said.append)
        self.job = runmaker4.Cursor(self.runner, [runmaker4.Taker("")]).claim()
        self.old = os.open(self.path, os.O_RDWR)
        self.addCleanup(os.close, self.old)

    def apply(self, theirs: bytes, then: Callable[[], object]) -> None:
        """Put a new file there, and let something happen right after the rename."""
        rename = os.rename

        def renamed(*names: str) -> None:
            rename(*names)
            then()

        setter = runmaker4.JobFile(str(self.path), say=self.said.append, single=True)
        with mock.patch.object(runset4.os, "rename", renamed):
            self.assertEqual(runset4.apply(setter, self.read(), theirs), [])

    def write_result(self) -> None:
        """The runner had verified its line before."""
        os.pwrite(self.job.fd, b"d", self.job.offset)
        self.runner.give_up(self.job)

    def test_a_result_that_goes_to_the_old_file_is_carried_over(self) -> None:
        self.apply(b". b\nr a\n! c\n", self.write_result)
        self.assertEqual((self.read(), self.said), (b". b\nd a\n! c\n", []))

    def test_who_has_the_old_file_open_finds_nothing_to_take_in_it(self) -> None:
        self.apply(b". b\nr a\n! c\n", self.write_result)
        self.assertEqual(os.pread(self.old, 100, 0), b"d a\nr b\nr c\n")

    def test_what_is_appended_to_the_old_file_is_appended_to_the_new_one(self) -> None:
        def append() -> None:
            os.pwrite(self.old, b". z\n", 12)
            self.write_result()

        self.apply(b". b\nr a\n! c\n", append)
        self.assertEqual(self.read(), b". b\nd a\n! c\n. z\n")

    def test_a_runner_that_goes_on_is_waited_for_until_it_has_its_line_in_the_new_file(self) -> None:
        looks = threading.Timer(0.3, self.runner.look_after)
        self.apply(b". b\nr a\n! c\n", looks.start)
        looks.join()
        self.assertEqual((self.read(), self.locked_lines()), (b". b\nr a\n! c\n", [2]))
        self.assertFalse([text for text in self.said if "did not follow" in text])
        self.runner.give_up(self.job)


class Running(EditCase):
    """Real runners."""

    def test_a_running_line_is_not_changed_but_moves(self) -> None:
        runner = self.start_to_gate(f". {GATE}\n. echo b\n")
        self.assertRefuses(self.edit("text = text[text.index('\\n') + 1:]"), b"line 1: is running (--cancel it first)")
        self.assertEqual(self.edit("text = '. true\\n' + text").code, 0)
        wait_until(lambda: self.locked_lines() == [2], what="the lock moved along")
        self.open_gate()
        self.assertEqual(self.finish(runner).code, 0)
        self.assertEqual(self.states(), "ddd")

    def test_a_second_edit_lets_runners_follow_the_first(self) -> None:
        runner = self.start_to_gate(f". {GATE}\n. echo b\n")
        before = os.stat(self.dir / "runs.txt").st_ino
        first = self.start_edit("text = '# one\\n' + text", "first.py")
        wait_until(lambda: os.stat(self.dir / "runs.txt").st_ino != before, what="the first edit's file is there")
        self.assertEqual(self.edit("text = '# two\\n' + text").code, 0)
        self.assertEqual(self.finish(first).code, 0)
        wait_until(lambda: self.locked_lines() == [3], what="the lock moved along")
        self.open_gate()
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states(), ended.err.count(b"replaced")), (0, "dd", 2), ended.err)

    def test_many_edits_under_runners_lose_no_job_and_run_none_twice(self) -> None:
        self.write("".join(f". {marks.command(number, PAUSE)}\n" for number in range(1, JOBS + 1)))
        self.write("", "marks")
        runners = [self.start(RUNMAKER, "-q", "--follow", "-j2", "runs.txt") for _ in range(RUNNERS)]
        chance, made = random.Random(7), 0
        while made < EDITS and "." in self.states():    # a slow machine may make fewer before all jobs have ended
            ended = self.edit(f"lines = text.splitlines(True); chance = random.Random({chance.random()})\n"
                              "at = chance.randrange(len(lines)); to = chance.randrange(len(lines))\n"
                              f"lines.insert(to, lines.pop(at)) if chance.random() < .5 else "
                              f"lines.insert(at, '# note {made}\\n')\n"
                              "text = ''.join(lines)")
            self.assertEqual(ended.code, 0, ended.err)
            made += 1
        self.assertGreater(made, 1)
        wait_until(lambda: not set(self.states()) & set(".r"), 900, "all jobs have ended")
        self.assertEqual(self.states(), "d" * JOBS)
        for runner in runners:
            runner.terminate()
            self.finish(runner)
        self.assertEqual(marks.problems(self.read("marks"), JOBS, {runner.pid for runner in runners}), [])


if __name__ == "__main__":
    unittest.main()
