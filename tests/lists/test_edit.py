"""runset4.py --edit merges a changed copy into the live file, and no job runs twice or never."""
import os
import random
import re
import signal
import threading
import tracemalloc
import unittest
from collections import Counter
from typing import Any
from unittest import mock

import runmaker4
import runset4
from tests.support import marks
from tests.support.case import GATE
from tests.support.line_locks import locked_lines
from tests.support.permissions import bound_by_permissions
from tests.support.processes import DEADLINE, Ended, wait_until
from tests.support.runs import WAITING, RunCase
from tests.support.scripts import FULL, RUNMAKER, RUNSET
from tests.support.terminal import Terminal

JOBS, EDITS, RUNNERS = (800, 80, 4) if FULL else (200, 6, 4)
PAUSE = 1.0 if FULL else 0.2           # seconds that a job takes: some are left when the last edit is made
EDITOR = "import io, sys, re, os, random, time; path = sys.argv[1]; text = open(path).read()\n"
SAVE = "\nopen(path, 'w').write(text)"
# another process replaces the file while this one waits for the locks, once
REPLACED = """
import os, runset4, shutil
wait = runset4.wait_for_complete_line
def replace_and_wait(file):
    runset4.wait_for_complete_line = wait
    os.replace(shutil.copy("runs.txt", "new"), "runs.txt")
    wait(file)
runset4.wait_for_complete_line = replace_and_wait
"""


class EditCase(RunCase):

    def edit(self, statements: str, **settings: Any) -> Ended:
        """Run --edit with an editor that does this to `text`."""
        editor = self.write(EDITOR + statements + SAVE, "editor.py")
        environ = {"EDITOR": f"python3 '{editor}'", "VISUAL": "", "TMPDIR": str(self.dir)}
        return self.run_script(RUNSET, "--edit", "runs.txt", env=environ, **settings)

    def assertEdits(self, before: str, statements: str, after: str, said: str) -> None:
        self.write(before)
        ended = self.edit(statements)
        self.assertEqual((ended.code, ended.err.decode(), self.read().decode()),
                         (0, f"runset4.py: runs.txt: {said}\n", after))
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
        self.assertEdits(four, "text = text.replace('! d', '. d')", ". a\nd b\n. c\n. d\n", "1 state set")
        # what an editor leaves beside the copy is removed with it
        beside = "open(path + '~', 'w').write(text)"
        self.assertEdits(four, f"{beside}; text += '. e'", four + ". e\n", "1 line added")
        self.assertEdits(four, "text = text.replace('! d', '. dd') + '. e'", ". a\nd b\n. c\n. dd\n. e\n",
                         "2 lines added, 1 line removed")
        self.assertEdits(four, "text = text.replace('. c\\n', '')", ". a\nd b\n! d\n", "1 line removed")
        self.assertEdits(four, "text = '. c\\n' + text.replace('. c\\n', '')", ". c\n. a\nd b\n! d\n",
                         "lines were moved")
        self.assertEdits(four, "text = text.replace('d b', 'd b\\n#RUN timeout=5s\\n. b2')",
                         ". a\nd b\n#RUN timeout=5s\n. b2\n. c\n! d\n", "2 lines added")
        self.assertEdits(four, "text = text.replace('! d', '. dd').replace('. a', '. aa')",
                         ". aa\nd b\n. c\n. dd\n", "2 lines changed")

    def test_states_and_lines_that_came_meanwhile_stay(self) -> None:
        self.assertEdits(". a\n. b\n", "live = open('runs.txt', 'r+'); live.write('d'); live.close()\n"
                         "open('runs.txt', 'a').write('. z\\n'); text = text.replace('. b', '. c\\n. b')",
                         "d a\n. c\n. b\n. z\n", "1 line added")

    def test_who_swaps_equal_lines_has_nothing_run_again(self) -> None:
        """The second line is done meanwhile.  Seen in the simulation: the first one then ran once more."""
        self.write("d a\n# note\n. a\n! a\n")
        ended = self.edit("live = open('runs.txt', 'r+'); live.seek(11); live.write('d'); live.close()\n"
                          "text = '. a\\n# note\\nd a\\n! a\\n'")
        self.assertRefuses(ended, b"line 3: has changed since: the state is d now")
        self.assertEqual(self.read(), b"d a\n# note\nd a\n! a\n")

    def test_what_others_have_appended_comes_before_what_the_person_has(self) -> None:
        """So their lines keep their places, which runners know, and the file is written in place."""
        for mine, merged in (". a\n. b\n. m\n", ". a\nd b\n. z\n. m\n"), (". aa\n. b\n", ". aa\nd b\n. z\n"):
            with self.subTest(mine):
                inode = self.write(". a\n. b\n").stat().st_ino
                ended = self.edit(f"open('runs.txt', 'w').write('. a\\nd b\\n. z\\n'); text = {mine!r}")
                self.assertEqual((ended.code, self.read().decode()), (0, merged), ended.err)
                is_in_place = (self.dir / "runs.txt").stat().st_ino == inode
                self.assertEqual(is_in_place, mine.endswith(". m\n"))

    def test_whose_lines_are_not_where_they_were_is_refused_and_keeps_the_copy(self) -> None:
        for mine, theirs in (
            (". aa\n. b\n. c\n", ". a2\n. b\n"),                # both have changed a line
            (". aa\n. b\n. c\n", ". b\n"),                      # it is deleted
            (". b\n. c\n", ". aa\n. b\n"),
            ("x a\n. b\n. c\n", "# theirs\n. a\n. b\n"),        # it has moved
            (". b\n. a\n. c\n", ". aa\n. bb\n"),
            (". a\n. bb\n", ""),
            (". aa\n. b\n", "\ufeff. a\n. b\n"),
            (". a\n# new\n. b\n", ". b\n. a\n"),               # the lines beside an insertion
            ("# new\n. a\n. b\n", ". b\n. a\n"),
        ):
            with self.subTest(mine=mine, theirs=theirs):
                self.write(". a\n. b\n")
                ended = self.edit(f"open('runs.txt', 'w').write({theirs!r}); text = {mine!r}")
                self.assertRefused(ended, "runs.txt: another editor has saved since; your copy is ")
                self.assertEqual(self.read().decode(), theirs)
                kept = ended.err.decode().rpartition("your copy is ")[2].rstrip()
                with open(kept) as copy:
                    self.assertEqual(copy.read(), mine)

    def test_who_only_waited_for_one_who_saved_goes_on(self) -> None:
        self.write(". a\n. b\n")
        for action, lines in (("--pause", b"#RUN pause\n. a\n. b\n"), ("--edit", b"#RUN pause\n. a\n. bb\n"),
                              ("--go", b". a\n. bb\n")):
            ended = self.finish(self.start_patched(REPLACED, action, "runs.txt", script=RUNSET,
                                                   env={"EDITOR": "sed -i s/b/bb/", "VISUAL": ""}))
            self.assertEqual((ended.code, self.read()), (0, lines), ended.err)

    def test_who_changes_lines_that_are_where_they_were_may_save_second(self) -> None:
        self.write(". a\n. b\n# x\n")
        theirs = "d a\n. b\n# y\n. z\n"
        ended = self.edit(f"open('runs.txt', 'w').write({theirs!r}); text = text.replace('b', 'bb')")
        self.assertEqual((ended.code, self.read()), (0, b"d a\n. bb\n# y\n. z\n"), ended.err)

    def test_of_any_two_changes_each_counts_once_or_not_at_all(self) -> None:
        """None makes a line twice, loses one or touches one that runs; what is left out stays as it was."""
        for seed in range(20_000 if FULL else 200):
            draws = random.Random(seed)
            base = [b"%c %d" % (draws.choice(b"...dr"), draws.randrange(8))
                    for _ in range(draws.randrange(9))]
            mine, theirs = self.changed(draws, base), self.used(draws, base)
            before, my_keys, their_keys = (Counter(map(runset4.merge_key, lines))
                                           for lines in (base, mine, theirs))
            merged, refused = runset4.merge_edit(base, mine, theirs)
            refusals = refused
            while refusals:             # as apply_edit() does; each time more is left out, so it ends
                merged, refusals = runset4.merge_edit(base, runset4.leave_out(base, mine, refused), theirs)
                self.assertEqual(refusals.keys() & refused.keys(), set())
                refused.update(refusals)
            for key, count in Counter(map(runset4.merge_key, merged)).items():
                with self.subTest(seed=seed, key=key):
                    both = my_keys[key] + their_keys[key] - before[key]
                    self.assertEqual(count, their_keys[key] if key in refused else both)
            with self.subTest(seed=seed):
                self.assertEqual(*(sorted(filter(runset4.is_running_line, lines))
                                   for lines in (merged, theirs)))
                lost = set(their_keys) - set(map(runset4.merge_key, merged))
                self.assertEqual([key for key in lost if my_keys[key] >= before[key]], [])

    def test_what_is_left_out_takes_no_line_with_it(self) -> None:
        """Lines are changed, and some are deleted, or others inserted: a refused change takes none away."""
        for seed in range(20_000 if FULL else 300):
            draws = random.Random(seed)
            base = [b". %d" % number for number in range(draws.randrange(2, 12))]
            mine = [line + b"x" * draws.choice((0, 1, 1)) for line in base]
            inserts = draws.random() < 0.5
            for _ in range(draws.randrange(3)):
                place = draws.randrange(len(mine) + inserts)
                mine[place:place + (not inserts)] = [b". new"] * inserts
                if len(mine) == 1:
                    break
            chosen = draws.choice(base)
            refused = {runset4.merge_key(line): "" for line in (chosen, chosen + b"x") if line in base + mine}
            merged = runset4.leave_out(base, mine, refused)
            with self.subTest(seed=seed, base=base, mine=mine, refused=chosen):
                self.assertIn(chosen, merged)
                self.assertNotIn(chosen + b"x", merged)
                for line in base:
                    if {line, line + b"x"} & {*mine}:
                        self.assertEqual((line in merged) + (line + b"x" in merged), 1)

    def test_many_lines_are_left_out_at_once(self) -> None:
        """In a time that does not grow with the square of their number: the locks are held meanwhile."""
        base = [b". %06d" % number for number in range(30_000)]
        mine = base[:]
        random.Random(0).shuffle(mine)
        refused = {runset4.merge_key(b". 000077"): ""}
        self.assertEqual(len(runset4.leave_out(base, mine, refused)), len(base))
        self.assertGreater(len(refused), 20_000)
        merged, refusals = runset4.merge_edit(base, [line + b"\\" for line in base], base)
        self.assertEqual((merged, len(refusals)), ([], len(base)))

    @staticmethod
    def used(draws: random.Random, lines: list[bytes]) -> list[bytes]:
        """What others make of these lines without an editor: states are set, lines are appended."""
        appended = [b". %d" % draws.randrange(12) for _ in range(draws.choice((0, 0, 1, 3)))]
        return [draws.choice((line, line, b"r" + line[1:])) if line[:1] in b".dr" else line
                for line in [*lines, *appended]]

    @staticmethod
    def changed(draws: random.Random, lines: list[bytes]) -> list[bytes]:
        """What a person makes of these lines: some are deleted, moved, added or changed."""
        lines = lines[:]
        for _ in range(draws.randrange(4)):
            line = lines.pop(draws.randrange(len(lines))) if lines else b". 0"
            lines[draws.randrange(len(lines) + 1):0] = draws.choice(
                ([], [line], [line, b"x 9"], [b"%c%s" % (draws.choice(b".dx"), line[1:])]))
        return lines

    def test_merging_a_part_of_the_file_does_what_merging_all_of_it_does(self) -> None:
        for seed in range(10_000 if FULL else 150):
            draws = random.Random(seed)
            kinds = b". %d", b"d %d", b"r %d", b"# %d", runmaker4.UTF8_MARK + b". %d"
            base = [draws.choice(kinds) % draws.randrange(9) for _ in range(1 + draws.randrange(12))]
            mark = draws.choice((b"", runmaker4.UTF8_MARK))
            # if this last line had no newline, it could count as the one before or after an equal one
            texts = [mark + b"".join(line + b"\n" for line in base)]
            mine, theirs = self.changed(draws, base), self.used(draws, base)
            # only a line that was appended can lack its newline
            theirs_end = b"" if len(theirs) > len(base) and draws.random() < 0.5 else b"\n"
            newlines = draws.choice((b"", b"\n")), theirs_end
            texts += [mark + b"\n".join(lines) + newline for lines, newline in zip((mine, theirs), newlines)]
            with mock.patch.object(runset4, "changed_part", lambda old, new: (0, len(old))):
                expected = self.applied(texts)
            with self.subTest(seed=seed):
                self.assertEqual(self.applied(texts), expected)

    def applied(self, texts: list[bytes]) -> tuple[object, ...]:
        """What apply_edit() makes of a file, refuses and says; and whether it is a new file."""
        said: list[str] = []
        base, edited, live = texts
        path = self.dir / "parts.txt"
        path.write_bytes(live)
        file = runmaker4.JobFile(str(path), say=said.append)
        with mock.patch.object(runset4, "wait_for_complete_line"):      # a second each, in half of the files
            refused = runset4.apply_edit(file, base, edited)
        is_new = file.find_replacement() is not None
        file.close_files()
        return path.read_bytes(), refused, said, is_new

    def test_a_change_of_one_line_takes_the_memory_of_few_copies_of_the_file(self) -> None:
        line = ". true --seed %09d\n"
        text = "".join(line % number for number in range(300_000))
        base, edited = text.encode(), text.replace("000123456", "x", 1).encode()
        path = self.dir / "runs.txt"
        path.write_text(text)
        file = runmaker4.JobFile(str(path), say=lambda text: None)
        self.addCleanup(file.close_files)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.assertEqual(runset4.apply_edit(file, base, edited), [])
        self.assertLess(tracemalloc.get_traced_memory()[1], 1.5 * len(base))
        self.assertEqual(path.read_text(), text.replace("000123456", "x", 1))

    def test_equal_lines_are_told_apart_by_their_order(self) -> None:
        for made, live, expected in (
            ("....", "dr..", "dr..."),      # one more copy
            ("..", "dr.", "dr"),            # one copy less
            (".x.", "d..", "dx."),          # another one was done
            ("x..", "x.d", "x.d"),          # both have made the same of it
            ("x..", "r..", None),
            ("x..", "d..", None),
            ("", "...", ""),
            ("", "..d", None),
            ("r...", "...", None),
        ):
            with self.subTest(made=made, live=live):
                base, theirs, now = ([b"%c a" % state for state in states.encode()]
                                     for states in ("...", made, live))
                lines, faults = runset4.merge_edit(base, theirs, now)
                self.assertEqual(bool(faults), expected is None, faults)
                self.assertEqual(b"".join(line[:1] for line in lines).decode(), expected or "")

    def test_a_running_line_is_written_by_nobody_in_place(self) -> None:
        """Whoever dies between two writes would leave more copies that live than lines that run."""
        self.assertFalse(runset4.can_write_in_place([b". a", b"r a"], [b"r a", b". a"]))
        self.assertTrue(runset4.can_write_in_place([b"r a", b"x a", b". b"], [b"r a", b". a"]))

    def test_a_faulty_directive_is_refused_and_all_with_it(self) -> None:
        self.write(". a\n")
        self.assertRefuses(self.edit("text += '#RUN timeot=3\\n. b\\n# RUN barrier\\n'"),
                           b"line 2 of the copy: unknown setting 'timeot=3'",
                           b"line 4 of the copy: looks like a directive")
        self.assertEqual(self.read(), b". a\n")

    def test_editors_that_fail_are_empty_or_come_back_at_once_change_nothing(self) -> None:
        self.write(". a\n")
        self.assertRefuses(self.edit("open(path, 'a').write('. b\\n'); sys.exit(3)"), b"failed: exit 3")
        killed = self.edit("open(path, 'a').write('. b\\n'); os.kill(os.getpid(), 9)")
        self.assertRefuses(killed, b"failed: exit -9")
        self.assertRefuses(self.edit("text = ''"), b"the copy is empty")
        quick = self.run_script(RUNSET, "--edit", "runs.txt", env={"VISUAL": "true"})
        self.assertEqual(quick.code, 0)
        self.assertIn(b"nothing was changed (if the editor opens another window, make it wait", quick.err)
        self.assertEqual(self.run_script(RUNSET, "--edit", "runs.txt", env={"VISUAL": "no-such"}).code, 1)
        self.assertEqual(self.read(), b". a\n")

    def test_a_copy_that_is_no_text_in_utf_8_any_more_is_refused(self) -> None:
        self.write(". a\n")
        for encoding in "utf-16", "utf-32-be":
            with self.subTest(encoding):
                opening = f"open = lambda *args: io.open(*args, encoding='{encoding}')"
                ended = self.edit(f"text += '. b\\n'\n{opening}")
                self.assertRefuses(ended, b"the copy contains NULs (save it as UTF-8)")
                self.assertEqual(self.read(), b". a\n")

    def test_lines_that_are_neither_jobs_nor_comments_are_written_and_told(self) -> None:
        self.write("prose\n. a\n")
        ended = self.edit("text = '. z\\n' + text + 'simulate 9\\n# run this by hand\\n\\n'")
        self.assertEqual(ended.err.replace(b"runset4.py: runs.txt: ", b"").splitlines(), [
            b"4 lines added",
            b"line 2 is neither a job nor a comment (a job is '. COMMAND', a comment begins with #)"])
        self.assertEqual(self.read(), b". z\nprose\n. a\nsimulate 9\n# run this by hand\n\n")

    def test_quiet_says_nothing_of_what_was_done(self) -> None:
        self.write(". a\n")
        ended = self.run_script(RUNSET, "-q", "--edit", "runs.txt", env={"VISUAL": "sed -i s/a/b/"})
        self.assertEqual((ended.code, ended.err, self.read()), (0, b"", b". b\n"))

    def test_a_copy_that_cannot_be_removed_is_no_error_and_the_mode_is_kept(self) -> None:
        self.write(". a\n. b\n").chmod(0o640)
        changes = "text = text.replace('. a\\n', ''); os.chmod(os.path.dirname(path), 0o500)"
        ended = self.edit(changes, **bound_by_permissions(self))
        mode = (self.dir / "runs.txt").stat().st_mode & 0o777
        self.assertEqual((ended.code, self.read(), mode), (0, b". b\n", 0o640), ended.err)


class Locked(EditCase):
    """Jobs that have not ended, though their lines say something else."""

    def test_a_lock_file_that_is_replaced_meanwhile_is_noticed(self) -> None:
        path = self.write(". a\n")
        setter = runmaker4.JobFile(str(path), say=self.fail)
        self.addCleanup(setter.close_files)
        setter.open_to_write()

        def replace_and_lock(*args: Any) -> bool:
            os.replace(self.write("", "new"), self.dir / ".runs.txt.lock")
            return runmaker4.lock(*args)

        with mock.patch.object(runset4, "lock", replace_and_lock), \
             self.assertRaises(runmaker4.FileChangedError), runset4.hold_all_locks(setter):
            pass

    def test_a_door_that_somebody_is_behind_is_waited_for_and_then_that_is_said(self) -> None:
        path = self.write(". a\n. b\n")
        fd = runmaker4.open_lock_file_of(str(path))
        self.addCleanup(os.close, fd)
        door = runmaker4.bucket_of(b"a") + runmaker4.MUTEX_OFFSET
        self.assertTrue(runmaker4.lock(fd, door))
        setter = runmaker4.JobFile(str(path), say=self.fail)
        with mock.patch.object(runset4, "MAX_MUTEX_WAIT_SECONDS", 0.1), self.assertRaises(BlockingIOError):
            runset4.apply_edit(setter, self.read(), b". b\n. a\n")
        leaving = threading.Timer(0.3, runmaker4.unlock, (fd, door))
        leaving.start()
        self.assertEqual(runset4.apply_edit(setter, self.read(), b". b\n. a\n", quiet=True), [])
        leaving.join()
        self.assertEqual(self.read(), b". b\n. a\n")

    def test_a_cancelled_job_that_outlived_its_runner_is_not_run_twice_at_once(self) -> None:
        runner = self.start_to_gate(f". {WAITING}\n. echo b\n")
        self.wait_up(1)                         # now its shell has a share of the lock
        runner.kill()
        self.set_state(1, "x")
        self.assertEqual(locked_lines(self), [1])
        self.assertEqual(self.edit("text = '# top\\n' + text.replace('x ', '. ')").code, 0)
        (self.dir / "up.1").unlink()
        other = self.start(RUNMAKER, "-q", "runs.txt")
        self.wait_states(".d")                  # so it has come past the first line
        self.assertFalse(self.exists("up.2"))
        self.open_gate()
        self.assertEqual(self.finish(other).code, 0)
        self.assertEqual(self.states(), "dd")


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

    def edit_as(self, user: int, group: int, groups: list[int], theirs: bytes, base: bytes = b". a\n") -> str:
        """Merge this as a user, in a child; what is wrong."""
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            with open(writer, "w") as answer:
                try:
                    os.setgroups(groups)
                    os.setresgid(group, group, group)
                    os.setresuid(user, user, user)
                    setter = runmaker4.JobFile(str(self.path), say=lambda text: None)
                    answer.write("; ".join(runset4.apply_edit(setter, base, theirs)))
                except (runmaker4.UsageError, OSError) as fault:
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
        found = info.st_uid, info.st_gid, info.st_mode & 0o777, self.read()
        self.assertEqual(found, (owner, group, 0o664, text))

    def test_a_new_file_keeps_its_group(self) -> None:
        self.assertEqual(self.edit_as(self.EDITOR, self.EDITOR, [self.GROUP], b"# b\n. a\n"), "")
        self.assertShared(self.EDITOR, self.GROUP, b"# b\n. a\n")

    def test_who_could_use_the_file_can_use_it_after_a_new_one_of_a_colleague(self) -> None:
        lock_file = self.dir / ".runs.txt.lock"
        for user in self.OWNER, self.EDITOR, self.OWNER, self.EDITOR, self.OTHERS:
            text = b"# of %d\n" % user + self.read()           # a new file
            self.assertEqual(self.edit_as(user, user, [self.GROUP], text, base=self.read()), "")
            self.assertShared(user, self.GROUP, text)
            self.assertEqual((lock_file.stat().st_uid, lock_file.stat().st_mode & 0o777), (self.OWNER, 0o660))

    def test_a_lock_file_of_a_user_who_could_not_write_the_job_file_is_refused(self) -> None:
        self.path.chmod(0o644)
        self.write("", ".runs.txt.lock")
        for mode, group in (0o644, self.GROUP), (0o664, self.OTHERS):
            self.path.chmod(mode)
            os.chown(self.dir / ".runs.txt.lock", self.OTHERS, group)
            (self.dir / ".runs.txt.lock").chmod(0o666)
            said = self.edit_as(self.OWNER, self.OWNER, [self.GROUP], b"# b\n. a\n")
            self.assertIn(f"belongs to user {self.OTHERS}, who could remove it while jobs run", said)

    def test_where_it_cannot_keep_the_group_there_is_no_new_file(self) -> None:
        self.dir.chmod(0o777)
        os.chown(self.path, self.EDITOR, self.GROUP)        # who edits it has left the group
        said = self.edit_as(self.EDITOR, self.OTHERS, [], b"# b\n. a\n")
        self.assertIn("runs.txt: other users could not write to a new file of yours (change only", said)
        self.assertShared(self.EDITOR, self.GROUP, b". a\n")
        self.assertEqual({it.name for it in self.dir.iterdir()}, {"runs.txt", ".runs.txt.lock"})
        self.assertEqual(self.edit_as(self.EDITOR, self.OTHERS, [], b"x a\n. b\n"), "")
        self.assertShared(self.EDITOR, self.GROUP, b"x a\n. b\n")

    def test_where_a_new_file_cannot_keep_the_group_ours_gets_only_what_all_have(self) -> None:
        for mode, expected in (0o640, 0o600), (0o664, 0o644), (0o755, 0o755), (0o600, 0o600):
            with self.subTest(mode=oct(mode)), open(self.path, "rb") as new, \
                    mock.patch("os.fchown", side_effect=PermissionError):
                old = mock.Mock(st_mode=0o100000 | mode, st_uid=self.OWNER, st_gid=self.GROUP + 1)
                runmaker4.copy_owner_and_mode(new.fileno(), old)
                self.assertEqual(os.fstat(new.fileno()).st_mode & 0o7777, expected)

    def test_who_has_saved_since_is_named(self) -> None:
        self.assertEqual(self.edit_as(self.EDITOR, self.EDITOR, [self.GROUP], b". mine\n", base=b". old\n"),
                         f"{self.path}: user {self.OWNER} has saved since")
        self.assertShared(self.OWNER, self.GROUP, b". a\n")

    def test_who_could_write_to_it_and_now_could_not(self) -> None:
        for mode, user, group, expected in ((0o664, 1, 2, False), (0o664, 9, 2, False), (0o664, 1, 9, True),
                                            (0o640, 1, 9, True), (0o600, 1, 9, False), (0o600, 9, 2, True),
                                            (0o640, 9, 2, True), (0o666, 9, 9, False), (0o662, 9, 9, True)):
            with self.subTest(mode=oct(mode), user=user, group=group):
                old, new = (mock.Mock(st_mode=0o100000 | mode, st_uid=uid, st_gid=gid)
                            for uid, gid in ((1, 2), (user, group)))
                self.assertEqual(runset4.locks_out_writers(old, new), expected)


class Running(EditCase):
    """Real runners."""

    def answer(self, answer: bytes, editor: str) -> str:
        """Let an editor change lines of which one runs, answer what now, and return what was said."""
        terminal = Terminal(0)
        self.addCleanup(terminal.close)
        editing = self.start(RUNSET, "--edit", "runs.txt", stdin=terminal.slave, stdout=terminal.slave,
                             stderr=terminal.slave,
                             env={"EDITOR": editor, "VISUAL": "", "TMPDIR": str(self.dir)})
        said = ""

        def has_asked() -> bool:
            nonlocal said
            said += terminal.unread()
            return said.endswith("What now? (e)dit again, (w)rite the other changes, e(x)it: ")

        wait_until(has_asked, what="it asks")
        os.write(terminal.master, answer)
        self.assertEqual(editing.wait(DEADLINE), 1)
        return said + terminal.unread()

    def test_changes_of_other_lines_can_be_written_though_some_run(self) -> None:
        runner = self.start_to_gate(f". {GATE}\n. echo b\n. echo c\n. echo d\n")
        before = self.read()
        first = before[:before.index(b"\n") + 1]
        for answer in b"x\n", b"\n", b"\4":
            self.answer(answer, "sed -i 's/$/ # new/'")
            self.assertEqual(self.read(), before)
        said = self.answer(b"w\n", "sed -i 's/$/ # new/; 3s/$/er/'")
        self.assertEqual(self.read(), first + b". echo b # new\n. echo c # newer\n. echo d # new\n")
        self.assertEqual(said.count("line 1: is r (--cancel it first)"), 2)
        self.assertIn("not all was written; the copy is kept: ", said)
        # the last line is moved into the place of the running one: it would be lost if only that stayed
        said = self.answer(b"w\n", "sed -i '1s/.*/. echo d # new/; 2s/b/B/; 4d'")
        self.assertEqual(self.read(), first + b". echo B # new\n. echo c # newer\n. echo d # new\n")
        self.assertIn("'echo d # new' is left out, too", said)
        self.open_gate()
        self.assertEqual(self.finish(runner).code, 0)

    def test_a_running_line_is_not_changed_but_moves_and_runners_are_not_waited_for(self) -> None:
        runner = self.start_to_gate(f". {GATE}\n. echo b\n")
        ended = self.edit("text = text[text.index('\\n') + 1:]")
        self.assertRefuses(ended, b"line 1: is r (--cancel it first)")
        runner.send_signal(signal.SIGSTOP)
        for line in "# note", ". true":
            self.assertEqual(self.edit(f"text = '{line}\\n' + text").code, 0)
        runner.send_signal(signal.SIGCONT)
        self.open_gate()
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states()), (0, "ddd"), ended.err)
        self.assertNotIn(b"replaced", ended.err)

    def test_many_edits_under_runners_lose_no_job_and_run_none_twice(self) -> None:
        commands = [marks.command(number, PAUSE) for number in range(1, JOBS + 1)]
        commands[0] = f"{GATE}; {commands[0]}"          # it runs until the last edit is made
        self.write("".join(f". {command}\n" for command in commands))
        self.write("", "marks")
        runners = [self.start(RUNMAKER, "-q", "--follow", "-j2", "runs.txt") for _ in range(RUNNERS)]
        chance = random.Random(7)
        for made in range(EDITS):
            ended = self.edit(f"lines = text.splitlines(True); chance = random.Random({chance.random()})\n"
                              "at = chance.randrange(len(lines)); to = chance.randrange(len(lines))\n"
                              f"lines.insert(to, lines.pop(at)) if chance.random() < .5 else "
                              f"lines.insert(at, '# note {made}\\n')\n"
                              "text = ''.join(lines)")
            self.assertEqual(ended.code, 0, ended.err)
        self.open_gate()
        wait_until(lambda: not set(self.states()) & set(".r"), 900, "all jobs have ended")
        self.assertEqual(self.states(), "d" * JOBS)
        for runner in runners:
            self.stop(runner)
        self.assertEqual(marks.problems(self.read("marks"), JOBS, {runner.pid for runner in runners}), [])
