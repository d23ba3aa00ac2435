"""Promise: a list that was written for another tool becomes the jobs that its writer meant, or is refused."""
import gzip

from tests.support.runs import RunCase
from tests.support.scripts import RUNMAKER, RUNSERVER, RUNSET, RUNWAIT


class AddedLists(RunCase):
    """--add-list names the first line that would become another job than was meant."""

    def assertListRefused(self, text: str, line: int, word: str, *options: str) -> None:
        self.write(text, "list")
        with self.subTest(text=text):
            ended = self.run_script(RUNSET, "runs.txt", "--add-list", "list", *options)
            self.assertRefused(ended, f"runset4.py: list: line {line}: ", word)
            self.assertFalse(self.exists("runs.txt"))

    def test_a_command_that_continues_in_the_next_line(self) -> None:
        self.assertListRefused("echo a\nrm -rf keep \\\nother\n", 2, "ends in \\")
        self.write("echo a\\\\\n", "list")
        self.assertEqual(self.run_script(RUNSET, "runs.txt", "--add-list", "list").code, 0)

    def test_directives_of_disbatch_scripts_and_numbers(self) -> None:
        self.assertListRefused("echo a\n#DISBATCH PREFIX ulimit -c 0;\necho b\n", 2, "disBatch")
        self.assertListRefused("a\n#DISBATCH BARRIER\nb\n", 2, "disBatch", "--template", "echo {}")
        self.assertListRefused("#!/bin/sh\ncd /tmp\nmake\n", 1, "script")
        self.assertListRefused("echo 0\n1\n2\n", 2, "--template")
        self.write("1\n2\n", "list")
        ended = self.run_script(RUNSET, "runs.txt", "--add-list", "list", "--template", "echo")
        self.assertEqual((ended.code, self.read()), (0, b". echo 1\n. echo 2\n"))

    def test_line_ends_of_other_systems(self) -> None:
        self.assertListRefused("echo a\n\r\necho b\n", 2, "CR LF by tr -d '\\r'")
        self.assertListRefused("# c\r\necho a\r\n", 1, "CR LF by tr -d '\\r'", "--template", "echo {}")
        self.assertListRefused("echo a\n#RUN timeout=3s\r\necho b\r\n", 2, "CR LF by tr -d '\\r'")
        self.assertListRefused("echo a\necho b\recho c\r", 2, "CR by tr '\\r' '\\n'")

    def test_a_runner_warns_of_a_continued_command(self) -> None:
        self.write(". echo \\\n. echo b\\\\\n. echo c \\\n")
        ended = self.run_script(RUNMAKER, "-q", "runs.txt")
        self.assertEqual(ended.err.count(b"ends in \\"), 1, ended.err)
        self.assertIn(b"line 1: ends in \\", ended.err)


class AddedCommands(RunCase):
    """--add adds all that it is given, and asks for quotes where they were forgotten."""

    def test_options_that_are_repeated_add_all(self) -> None:
        self.write("echo c\n", "list")
        self.write("echo d\n", "more")
        ended = self.run_script(RUNSET, "runs.txt", "--add", "echo a", "--add", "echo b", "#RUN end")
        self.assertEqual(ended.code, 0)
        self.assertEqual(self.run_script(RUNSET, "runs.txt", "--add-list=list", "--add-list=more").code, 0)
        self.assertEqual(self.read(), b". echo a\n. echo b\n#RUN end\n. echo c\n. echo d\n")

    def test_a_bare_number_is_refused(self) -> None:
        ended = self.run_script(RUNSET, "runs.txt", "--add", "sleep", "5")
        self.assertRefused(ended, "'5' is only a number (quote a command")
        self.assertFalse(self.exists("runs.txt"))


class PlainLists(RunCase):
    """A list whose lines all look like held jobs is no job file."""
    LETTERS = "( cd data; ./prepare )\nR CMD BATCH model.R\n[ -e done ] || ./run\n: nothing\n"

    def test_it_is_refused_with_the_command_that_converts_it(self) -> None:
        calls = ((RUNMAKER,), (RUNSERVER, "--port", "0"), (RUNWAIT, "-e"), (RUNWAIT, "--status"))
        for text in ("# jobs\n( cd a; make )\n( cd b; make )\n", "R CMD BATCH a\necho b\n", "[ -e a ]\n",
                     self.LETTERS, f"./first\n{self.LETTERS}"):
            self.write(text)
            number = 2 if text.startswith("#") else 1
            for call, ended in self.run_all((*call, "runs.txt") for call in calls):
                with self.subTest(text=text, call=call):
                    self.assertRefused(ended, f"no jobs; line {number} is plain text (",
                                       "runset4.py NEW --add-list runs.txt")
            self.assertEqual(self.read(), text.encode())

    def test_no_command_is_offered_that_refuses_a_file_that_is_no_text(self) -> None:
        self.write(gzip.compress(b". echo a\n"))
        for call, ended in self.run_all((*call, "runs.txt") for call in ((RUNMAKER,), (RUNSET, "--list"))):
            with self.subTest(call=call):
                self.assertRefused(ended, "no jobs, and not a text file (a job is '. COMMAND')\n")

    def test_a_pipe_has_no_other_name(self) -> None:
        (self.dir / "runs.txt").symlink_to("/proc/1/fd/pipe:[4711]")
        ended = self.run_script(RUNMAKER, "runs.txt")
        self.assertEqual(ended.code, 2)
        self.assertIn(b"is a symbolic link (name a regular file)\n", ended.err)

    def test_a_state_that_we_write_makes_it_a_job_file(self) -> None:
        for text in "x echo a\nn echo b\n", "x true\n- false\n", "n echo a\nd echo b\n":
            self.write(text)
            with self.subTest(text=text):
                self.assertEqual(self.run_script(RUNMAKER, "runs.txt").code, 0)
        self.write("n echo a\n")
        self.assertEqual(self.run_script(RUNSET, "--set=new", "runs.txt", 1).code, 0)
