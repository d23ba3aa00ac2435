"""Promise: a file that is not ours is not written, emptied or removed, whatever its name or a link says."""
import os
import subprocess

from tests.support.pipes import deadline
from tests.support.runs import WAITING, RunCase
from tests.support.scripts import RUNMAKER, RUNSERVER, RUNWAIT
from tests.support.values import present

NOTES = "what I must not forget\n"


class ForeignCase(RunCase):
    """A job file whose job must not run, and somebody's notes."""

    def setUp(self) -> None:
        super().setUp()
        self.jobs("touch ran")
        self.notes = self.write(NOTES, "notes.txt")

    def refuse(self, name: str, word: str, *options: object) -> None:
        """A runner with these options is refused, and names this file and what is wrong with it."""
        self.assertRefused(self.run_jobs(*options), f"runmaker4.py: {name}: ", word)
        self.assertFalse(self.exists("ran"))
        self.assertEqual((self.notes.read_text(), self.states()), (NOTES, "."))


class PidFiles(ForeignCase):
    """--pidfile replaces what its file holds, and removes it: so that may be nothing, or a number."""

    def test_a_file_that_holds_more_than_a_number_is_refused(self) -> None:
        self.refuse("notes.txt", "pid file", "--pidfile", "notes.txt")
        for text in "12 13\n", "-1\n", "4711\n" + " " * 100 + "more", "\n\n7":
            with self.subTest(text=text):
                self.write(text, "pid")
                self.refuse("pid", "pid file", "--pidfile", "pid")
                self.assertEqual(self.read("pid").decode(), text)

    def test_a_link_is_refused_wherever_it_leads(self) -> None:
        for target in "notes.txt", "numbers", "missing":
            with self.subTest(target=target):
                self.write("4711\n", "numbers")
                (self.dir / "pid").unlink(missing_ok=True)
                (self.dir / "pid").symlink_to(target)
                self.refuse("pid", "symbolic link", "--pidfile", "pid")
        self.assertEqual(self.read("numbers"), b"4711\n")
        self.assertFalse(self.exists("missing"))

    def test_none_an_empty_one_and_a_number_are_taken_and_removed(self) -> None:
        for text in None, "", "4711", "4711\n":
            with self.subTest(text=text):
                self.jobs("cat pid")
                if text is not None:
                    self.write(text, "pid")
                runner = self.start(RUNMAKER, "--plain", "--pidfile", "pid", "runs.txt")
                ended = self.finish(runner)
                self.assertEqual((ended.code, ended.out), (0, b"%d\n" % runner.pid))
                self.assertFalse(self.exists("pid"))

    def test_a_link_that_takes_its_place_is_not_followed_at_the_end(self) -> None:
        self.jobs(WAITING)
        runner = self.start_jobs("-q", "--pidfile", "pid")
        os.rename(self.dir / "pid", self.dir / "kept")
        (self.dir / "pid").symlink_to("kept")
        self.open_gate()
        self.assertEqual(self.finish(runner).code, 0)
        self.assertTrue((self.dir / "pid").is_symlink())

    def test_a_pipe_that_takes_its_place_holds_up_nobody(self) -> None:
        self.jobs(WAITING)
        runner = self.start_jobs("-q", "--pidfile", "pid")
        (self.dir / "pid").unlink()
        os.mkfifo(self.dir / "pid")
        self.open_gate()
        self.assertEqual(self.finish(runner).code, 0)


class LockFiles(ForeignCase):
    """What becomes of jobs is not written to a lock file, or to the job file."""
    OPTIONS = (RUNMAKER, "-l"), (RUNMAKER, "--joblog"), (RUNMAKER, "--errors"), (RUNMAKER, "--pidfile"), (
        RUNMAKER, "--outdir"), (RUNSERVER, "--joblog"), (RUNWAIT, "--outdir=out", "--report")

    def test_the_lock_file_whether_there_is_one_or_a_link_to_it(self) -> None:
        (self.dir / "link").symlink_to(".runs.txt.lock")
        for made in False, True:
            if made:
                self.write("", ".runs.txt.lock")
            names = ".runs.txt.lock", "link"
            calls = [(*words, name, "runs.txt") for words in self.OPTIONS for name in names]
            for call, ended in self.run_all(calls):
                with self.subTest(call=call, made=made):
                    self.assertRefused(ended, f"'{call[-2]}' is the lock file of runs.txt")
            self.assertEqual(self.exists(".runs.txt.lock"), made)
        self.assertEqual((self.read(".runs.txt.lock"), self.states()), (b"", "."))

    def test_the_job_file_also_one_without_contents(self) -> None:
        self.write("", "empty.txt")
        (self.dir / "out").mkdir()
        self.write("", "out/journal")
        for call, ended in self.run_all((*words, "./empty.txt", "empty.txt") for words in self.OPTIONS):
            with self.subTest(call=call):
                self.assertRefused(ended, "empty.txt")
        self.assertEqual(self.read("empty.txt"), b"")


class Journals(ForeignCase):
    """DIR/journal is appended to if it is a journal."""

    def setUp(self) -> None:
        super().setUp()
        (self.dir / "out").mkdir()

    def test_a_link_is_refused(self) -> None:
        (self.dir / "out" / "journal").symlink_to("../notes.txt")
        self.refuse("out/journal", "symbolic link", "--outdir", "out")

    def test_what_holds_anything_else_is_refused(self) -> None:
        self.write(NOTES, "out/journal")
        self.refuse("out/journal", "is not a journal", "--outdir", "out")
        self.assertEqual(self.read("out/journal").decode(), NOTES)

    def test_one_that_others_own_and_all_may_write_is_refused(self) -> None:
        if os.geteuid():
            self.skipTest("only root can give files away")
        journal = self.write("", "out/journal")
        journal.chmod(0o666)
        os.chown(journal, 4242, -1)
        self.refuse("out/journal", "belongs to user 4242, and all may write to it", "--outdir", "out")
        journal.chmod(0o664)
        self.jobs("true")
        self.assertEqual(self.run_jobs("-q", "--outdir", "out").code, 0)

    def test_an_empty_one_and_one_of_an_earlier_run_are_taken(self) -> None:
        self.write("", "out/journal")
        self.jobs("true")
        self.assertEqual(self.run_jobs("-q", "--outdir", "out").code, 0)
        self.jobs("true")
        self.assertEqual(self.run_jobs("-q", "--outdir", "out").code, 0)
        self.assertEqual(self.read("out/journal").count(b'"end"'), 2)


class JobFiles(RunCase):
    """The lines of a job file are commands: whoever could not write to it does not get his own run."""

    def setUp(self) -> None:
        super().setUp()
        if os.geteuid():
            self.skipTest("only root can give files away")
        self.path = self.dir / "runs.txt"

    def start_waiting(self, *options: str) -> subprocess.Popen[bytes]:
        """A runner whose first job waits for a file `go`."""
        for name in "up", "go", "ours", "theirs":
            (self.dir / name).unlink(missing_ok=True)
        self.write(". echo >up; until [ -e go ]; do sleep 0.02; done\n. touch ours\n")
        return self.start_hasty("-q", *options, "runs.txt")

    def replace(self, runner: subprocess.Popen[bytes], group: int) -> bytes:
        """User 4242 puts a file that all may write to in the place of this one; what it holds."""
        self.wait_file("up")
        new = self.write(self.path.read_text() + ". touch theirs\n", "new")
        new.chmod(0o666)
        os.chown(new, 4242, group)
        self.path.rename(self.dir / "kept")
        new.rename(self.path)
        self.write("", "go")
        return self.read()

    def test_what_a_stranger_puts_there_is_not_followed_until_the_file_is_back(self) -> None:
        for mode, group in (0o644, 0), (0o664, 4343):           # the old file's group is 0
            with self.subTest(mode=oct(mode)):
                runner = self.start_waiting("--follow")
                self.path.chmod(mode)
                theirs = self.replace(runner, group)
                said = b"was replaced by a file of user 4242, who could not write to the"
                with deadline(runner):
                    self.assertTrue(any(said in line for line in present(runner.stderr)))
                self.assertEqual(self.read(), theirs)
                os.rename(self.dir / "kept", self.path)
                self.wait_states("dd")
                self.stop(runner)
                self.assertFalse(self.exists("theirs"))

    def test_who_could_write_to_the_old_file_is_followed(self) -> None:
        old = {"owner": (0o644, 4242, 0), "all": (0o666, 0, 0), "group": (0o664, 0, 4343)}
        for who, (mode, owner, group) in old.items():
            with self.subTest(who):
                self.write("")
                os.chown(self.path, owner, group)
                self.path.chmod(mode)
                runner = self.start_waiting()
                self.replace(runner, group)
                ended = self.finish(runner)
                self.assertEqual((ended.code, self.states()), (0, "ddd"), ended.err)
                self.assertTrue(self.exists("theirs"))
