"""What prints lists and counts goes well with other commands, and says so when nothing can be printed."""
import os
import unittest
from collections.abc import Sequence

from tests.support.case import Case
from tests.support.journal import end
from tests.support.pipes import deadline, unread
from tests.support.processes import DEADLINE, Ended, wait_until
from tests.support.scripts import RUNMAKER, RUNSET, RUNWAIT
from tests.support.values import present

PRINTING = ((RUNSET, "--list"), (RUNWAIT, "--status"), (RUNWAIT, "--progress"), (RUNMAKER, "--dry-run", "-r"),
            (RUNSET, "--help"), (RUNWAIT, "--help"), (RUNMAKER, "--help"))


class StandardOutput(Case):
    """A reader that leaves is no error; a full disk is one; neither gives a traceback."""

    def setUp(self) -> None:
        super().setUp()
        self.write("d echo a\n! echo b\n")

    def run_by_shell(self, redirection: str, *calls: Sequence[str]) -> list[tuple[Sequence[object], Ended]]:
        """How the scripts end that are started so."""
        words = ("sh", "-c", f'exec "$@" {redirection}', "sh")
        return self.run_all((*words, *self.command(*call, "runs.txt")) for call in calls)

    def test_a_reader_that_has_left_is_no_error(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        self.addCleanup(os.close, writing)
        for call, ended in self.run_all(((*words, "runs.txt") for words in PRINTING), stdout=writing):
            with self.subTest(call=call):
                self.assertEqual((ended.code, ended.err), (0, b""))

    def test_who_wants_to_know_whether_all_is_done_is_not_told_so_by_a_reader_that_has_left(self) -> None:
        (self.dir / "out").mkdir()
        self.write(end(2, 2, "echo b", state="!"), "out/journal")
        reading, writing = os.pipe()
        os.close(reading)
        self.addCleanup(os.close, writing)
        for words in ("--progress",), ("--failed", "--outdir", "out"), ("--status",):
            with self.subTest(words):
                codes = [self.run_script(RUNWAIT, *more, *words, "runs.txt", stdout=writing).code
                         for more in (["-e"], [])]
                self.assertEqual(codes, [1, 0])

    def test_a_reader_that_leaves_in_the_middle_is_no_error(self) -> None:
        self.write(". echo some words that fill the pipe\n" * 20_000)
        for words in ((RUNSET, "--list"), (RUNMAKER, "--dry-run")):
            with self.subTest(words=words):
                process = self.start(*words, "runs.txt")
                with deadline(process):
                    first = present(process.stdout).readline()
                    self.assertEqual(first, b"1 . echo some words that fill the pipe\n")
                present(process.stdout).close()
                self.assertEqual((process.wait(DEADLINE), present(process.stderr).read()), (0, b""))

    @unittest.skipUnless(os.path.exists("/dev/full"), "there is no /dev/full")
    def test_a_full_disk_is_said_in_one_line(self) -> None:
        for call, ended in self.run_by_shell(">/dev/full", *PRINTING[:4]):
            with self.subTest(call=call):
                self.assertIn(ended.code, (1, 2))
                self.assertEqual(ended.err.count(b"\n"), 1, ended.err)
                self.assertIn(b"o space left", ended.err)

    def test_a_closed_output_gives_no_traceback(self) -> None:
        for call, ended in self.run_by_shell(">&-", *PRINTING[:4]):
            with self.subTest(call=call):
                self.assertLessEqual(ended.err.count(b"\n"), 1)         # finish() looks for tracebacks

    def test_no_output_at_all_leaves_the_job_file_alone(self) -> None:
        before = self.read()
        self.run_by_shell("<&- >&- 2>&-", *PRINTING[:4], (RUNSET, "--set=q", "--state=z"))
        self.assertEqual(self.read(), before)

    def test_a_list_that_is_paged_slowly_comes_to_its_end(self) -> None:
        """Though the file is edited meanwhile."""
        count = 30_000
        jobs = (f"d true\nd echo done\n# comment\n. echo job {number}\n" for number in range(count))
        self.write("".join(jobs))
        lister = self.start(RUNSET, "--list", "--state=.", "runs.txt")
        wait_until(lambda: unread(present(lister.stdout)) > 32_000, what="the pipe is full")
        text = b"# a note\n" + self.read()
        with open(self.dir / "runs.txt", "r+b", buffering=0) as file:       # never empty, not for a moment
            file.write(text)
        ended = self.finish(lister)
        self.assertEqual((ended.code, ended.err), (0, b""))
        # the one at the place of the edit may come twice
        self.assertIn(ended.out.count(b"\n"), (count, count + 1))
        self.assertTrue(ended.out.endswith(b" . echo job %d\n" % (count - 1)))
