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
from tests.support import FULL, GATE, RUNMAKER, RUNSET, WAITING, Ended, RunCase, wait_until

JOBS, EDITS, RUNNERS = (800, 80, 4) if FULL else (200, 6, 4)
PAUSE = 1.0 if FULL else 0.2           # seconds that a job takes: some are left when the last edit is made
EDITOR = "import io, sys, re, os, random, time; path = sys.argv[1]; text = open(path).read()\n"
SAVE = "\nopen(path, 'w').write(text); time.sleep(0.05)"


class EditCase(RunCase):
    """Helpers for tests of editing."""

    def start_edit(self, statements: str, name: str = "editor.py", **settings: object) -> subprocess.Popen:
        """Start --edit with an editor of this name that does this to `text`."""
        editor = self.write(EDITOR + statements + SAVE, name)
        return self.start(RUNSET, "--edit", "runs.txt", env={"EDITOR": f"python3 '{editor}'", "VISUAL": "",
                                                            "TMPDIR": str(self.dir)}, **settings)

    def edit(self, statements: str, **settings: object) -> Ended:
        return self.finish(self.start_edit(statements, **settings))

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

    def test_a_copy_that_is_no_text_in_utf_8_any_more_is_refused(self) -> None:
        self.write(". a\n")
        for encoding, words in (("utf-16", b"the copy is UTF-16 now (save it as UTF-8)"),
                                ("utf-16-be", b"NULs in the copy now (save it as UTF-8)")):
            with self.subTest(encoding):
                self.assertRefuses(self.edit("text += '. b\\n'\n"
                                             f"open = lambda *args: io.open(*args, encoding='{encoding}')"), words)
                self.assertEqual(self.read(), b". a\n")

    def test_new_lines_that_look_like_something_else_are_written_and_named(self) -> None:
        self.write("prose\n. a\n")
        ended = self.edit("text = '. z\\n' + text\n"
                          "text += 'simulate 9\\n# RUN barrier\\n# run this by hand\\n# RUN\\n\\n'")
        self.assertEqual((ended.code, ended.err.replace(b"runset4.py: runs.txt: ", b"").splitlines()), (0, [
            b"line 1 is neither a job nor a comment (a job is '. COMMAND', a comment begins with #)",
            b"line 4 is neither a job nor a comment (a job is '. COMMAND', a comment begins with #)",
            b"line 5 looks like a directive but is a comment (write #RUN ...)",
            b"line 7 looks like a directive but is a comment (write #RUN ...)"]))
        self.assertEqual(self.read(), b". z\nprose\n. a\nsimulate 9\n# RUN barrier\n# run this by hand\n# RUN\n\n")
        ended = self.edit("text += 9 * 'simulate 1\\n'")
        self.assertEqual((ended.code, ended.err.count(b"\n")), (0, 1 + 6))
        self.assertIn(b"... and 4 more lines like this\n", ended.err)

    def test_many_equal_lines_are_taken_in_order_and_not_compared_with_care(self) -> None:
        """That would take a minute, with all lines locked."""
        old = [line for number in range(950) for line in (b"#RUN barrier", b". old %d" % number)]
        new = [line.replace(b"old", b"new") for line in old]
        with mock.patch.object(runset4.difflib, "SequenceMatcher", side_effect=AssertionError):
            self.assertEqual(runset4.align(old, new), [at for number in range(950) for at in (2 * number, -1)])

    def test_what_an_editor_leaves_beside_the_copy_is_removed_with_it(self) -> None:
        self.assertEdits(". a\n", "open(path + '~', 'w').write(text); text += '. b\\n'", ". a\n. b\n")

    def test_a_copy_that_cannot_be_removed_is_no_error(self) -> None:
        self.write(". a\n")
        ended = self.edit("text += '. b\\n'; os.chmod(os.path.dirname(path), 0o500)", **self.bound_by_permissions())
        self.assertEqual((ended.code, ended.err, self.read()), (0, b"", b". a\n. b\n"))

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
        more = b"".join(b". z %d\n" % number for number in range(200_000))       # more than one block

        def append() -> None:
            os.pwrite(self.old, more, 12)
            self.write_result()

        self.apply(b". b\nr a\n! c\n", append)
        self.assertTrue(self.read() == b". b\nd a\n! c\n" + more)

    def test_a_runner_that_goes_on_is_waited_for_until_it_has_its_line_in_the_new_file(self) -> None:
        looks = threading.Timer(0.3, self.runner.look_after)
        self.apply(b". b\nr a\n! c\n", looks.start)
        looks.join()
        self.assertEqual((self.read(), self.locked_lines()), (b". b\nr a\n! c\n", [2]))
        self.assertFalse([text for text in self.said if "did not follow" in text])
        self.runner.give_up(self.job)


class Locked(EditCase):
    """Somebody else keeps a line locked that is not `r`."""

    def hold(self, text: str, line: int) -> int:
        """Make the file of this text, and lock the first byte of a line of it."""
        offset = sum(len(before) for before in text.splitlines(keepends=True)[:line - 1])
        os.replace(self.write(text, "new"), self.dir / "runs.txt")
        fd = os.open(self.dir / "runs.txt", os.O_RDWR)
        self.addCleanup(os.close, fd)
        self.assertTrue(runmaker4.lock(fd, offset))
        return fd

    def apply(self, theirs: bytes, settling: float = 0.3, passing: float = 0.05) -> List[str]:
        """Merge this, with little patience; what is refused."""
        setter = runmaker4.JobFile(str(self.dir / "runs.txt"), say=self.fail, single=True)
        with mock.patch.multiple(runset4, SETTLING=settling, PASSING=passing):
            return runset4.apply(setter, self.read(), theirs)

    def test_a_line_that_nobody_may_claim_stays_as_it_is_and_the_edit_is_made(self) -> None:
        self.hold("x a\n. b\nd c\n", 1)
        self.assertEqual(self.apply(b"x a\nx b\n. c\n. d\n"), [])
        self.assertEqual(self.read(), b"x a\nx b\n. c\n. d\n")
        self.assertEqual(self.apply(b". b\n# moved\nx a\n"), [])
        self.assertEqual(self.read(), b". b\n# moved\nx a\n")

    def test_a_line_that_nobody_may_claim_is_neither_changed_nor_deleted(self) -> None:
        self.hold("# x\nx a\n. b\n", 2)
        for theirs in b"# x\n. a\n. b\n", b"# x\n. b\n", b"# x\nx aa\n. b\n", b"# x\n#x a\n. b\n":
            with self.subTest(theirs):
                self.assertEqual(self.apply(theirs), ["line 2: is locked: its job has not ended, or its host is dead; "
                                                      "'a' was changed or deleted"])
                self.assertEqual(self.read(), b"# x\nx a\n. b\n")

    def test_a_line_that_may_be_claimed_blocks_the_edit_and_is_named(self) -> None:
        for state in ".!e":
            self.hold(f"d a\n{state} b\n. c\n", 2)
            before = self.read()
            with self.subTest(state), self.assertRaisesRegex(BlockingIOError, rf"line 2 stays locked.* is [{state}] "):
                self.apply(b"# new\n" + before)
            self.assertEqual(self.read(), before)

    def test_a_claim_that_is_under_way_is_waited_for(self) -> None:
        runner = self.hold(". a\n. b\n", 1)
        claim = threading.Timer(0.3, os.pwrite, (runner, b"r", 0))
        claim.start()
        self.assertEqual(self.apply(b". a\nx b\n", settling=20.0), [])
        self.assertEqual(self.read(), b"r a\nx b\n")
        claim.join()

    def test_a_lock_that_was_left_on_a_comment_does_not_matter(self) -> None:
        for comment in "# moved away", "running:":
            self.hold(f"{comment}\n. a\n", 1)
            with self.subTest(comment):
                self.assertEqual(self.apply(b"x a\n", passing=20.0), [])
                self.assertEqual(self.read(), b"x a\n")

    def test_a_job_that_outlived_its_runner_and_was_cancelled(self) -> None:
        runner = self.start_to_gate(f". {WAITING}\n. echo b\n")
        self.wait_up(1)                         # now its shell has a share of the lock
        runner.kill()
        self.assertEqual(self.run_script(RUNSET, "--set=x", "--force", "runs.txt", 1).code, 0)
        self.assertEqual(self.locked_lines(), [1])
        self.assertRefuses(self.edit("text = text.replace('x ', '. ')"), b"line 1: is locked: its job has not ended")
        self.assertEqual(self.edit("text = '# top\\n' + text").code, 0)
        self.open_gate()


@unittest.skipUnless(os.geteuid() == 0, "only root can be several users")
class Shared(EditCase):
    """The file is another user's, and shared with a group; who edits it is in this group."""
    OWNER, GROUP, EDITOR, OTHERS = 64101, 64102, 64103, 64104

    def setUp(self) -> None:
        super().setUp()
        self.path = self.write(". a\n")
        for path, mode in (self.dir, 0o770), (self.path, 0o664):
            try:
                os.chown(path, self.OWNER, self.GROUP)
            except PermissionError:
                self.skipTest(f"root may give no file away in {self.dir}")
            path.chmod(mode)
        for folder in [self.path, *self.path.parents]:
            if folder.stat().st_gid != self.GROUP and not folder.stat().st_mode & 0o001:
                self.skipTest(f"nobody else may enter {folder}")

    def edit_as(self, user: int, group: int, groups: List[int], theirs: bytes) -> str:
        """Merge this as a user, in a child; what is wrong."""
        self.assertTrue(runset4.difflib.SequenceMatcher)        # is loaded while its file can be read
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            with open(writer, "w") as answer:
                try:
                    os.setgroups(groups)
                    os.setresgid(group, group, group)
                    os.setresuid(user, user, user)
                    setter = runmaker4.JobFile(str(self.path), say=lambda text: None, single=True)
                    answer.write("; ".join(runset4.apply(setter, b". a\n", theirs)))
                except (runmaker4.Problem, OSError) as fault:
                    answer.write(str(fault))
                finally:
                    answer.flush()
                    os._exit(0)
        os.close(writer)
        with open(reader) as answer:
            said = answer.read()
        os.waitpid(child, 0)
        return said

    def assertShared(self, owner: int, group: int, text: bytes) -> None:
        info = self.path.stat()
        self.assertEqual((info.st_uid, info.st_gid, info.st_mode & 0o777, self.read()), (owner, group, 0o664, text))

    def test_a_new_file_keeps_its_group(self) -> None:
        self.assertEqual(self.edit_as(self.EDITOR, self.EDITOR, [self.GROUP], b"# b\n. a\n"), "")
        self.assertShared(self.EDITOR, self.GROUP, b"# b\n. a\n")

    def test_where_it_cannot_keep_the_group_there_is_no_new_file(self) -> None:
        self.dir.chmod(0o777)
        os.chown(self.path, self.EDITOR, self.GROUP)        # who edits it has left the group
        said = self.edit_as(self.EDITOR, self.OTHERS, [], b"# b\n. a\n")
        self.assertIn("runs.txt: belongs to others, who could not write to a new file of yours (change only", said)
        self.assertShared(self.EDITOR, self.GROUP, b". a\n")
        self.assertEqual(len(list(self.dir.iterdir())), 1)
        self.assertEqual(self.edit_as(self.EDITOR, self.OTHERS, [], b"x a\n. b\n"), "")
        self.assertShared(self.EDITOR, self.GROUP, b"x a\n. b\n")

    def test_who_could_write_to_it_and_now_could_not(self) -> None:
        for mode, user, group, expected in ((0o664, 1, 2, False), (0o664, 9, 2, False), (0o664, 1, 9, True),
                                            (0o640, 1, 9, True), (0o600, 1, 9, False), (0o600, 9, 2, True),
                                            (0o640, 9, 2, True), (0o666, 9, 9, False), (0o662, 9, 9, True)):
            with self.subTest(mode=oct(mode), user=user, group=group):
                old, new = (mock.Mock(st_mode=0o100000 | mode, st_uid=uid, st_gid=gid)
                            for uid, gid in ((1, 2), (user, group)))
                self.assertEqual(runset4.shuts_out(old, new), expected)


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

    def test_jobs_that_outlived_their_runner_are_named_once_the_edit_is_made(self) -> None:
        self.start_to_gate(f". {GATE}\n. echo b\n").kill()
        editor = self.write("#!/bin/sh\necho '. c' | cat - \"$1\" >new && mv new \"$1\"\n", "editor")
        editor.chmod(0o755)
        ended = self.finish(self.start_patched("import runset4\nrunset4.SETTLING = 0.3", "--edit", "runs.txt",
                                               script=RUNSET, env={"VISUAL": str(editor), "TMPDIR": str(self.dir)}))
        self.assertEqual((ended.code, ended.out, ended.err.count(b"\n")), (1, b"", 1), ended.err)
        self.assertIn(b"runs.txt: was changed as wished, but some running jobs did not follow", ended.err)
        self.assertEqual((self.states(), list(self.dir.glob("runset4-*"))), (".r.", []))
        self.open_gate()

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
