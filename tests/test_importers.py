"""runset4.py takes the jobs of other tools: lists of commands, templates, job files; all of an import or nothing."""
import contextlib
import fcntl
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import unittest
from typing import Callable, Dict, List, Optional
from unittest import mock

import runmaker4
import runset4
from tests.support import (FULL, GATE, RUNMAKER, RUNSET, Case, RunCase, Text, as_bytes,
                           wait_until)

APPEND_BYTE = (1 << 62) + 1         # locked by who appends to a job file
FOUR = ". echo a\nd echo b\n! echo c\ne echo d\n"
TOO_LONG = 128 << 10
UTF16 = "echo a\n".encode("utf-16")


class ImportCase(RunCase):
    """Steps that the tests below share."""

    def assertAdds(self, expected: Text, *args: object, said: bytes = b"", **settings) -> None:
        """runset4.py with these arguments succeeds, says just that, and this is what runs.txt is then."""
        ended = self.run_script(RUNSET, "runs.txt", *args, **settings)
        self.assertEqual((ended.code, ended.out, ended.err), (0, b"", said))
        self.assertEqual(self.read(), as_bytes(expected))

    def assertAllRefused(self, calls: Dict[tuple, str]) -> None:
        """Arguments for runset4.py and what it must say: each is refused, and there is no runs.txt after that."""
        words = list(calls.values())
        for (call, ended), wanted in zip(self.run_all((RUNSET, "runs.txt", *args) for args in calls), words):
            with self.subTest(args=call[2:]):
                self.assertRefused(ended, "runset4.py: ", wanted)
        self.assertFalse(self.exists("runs.txt"), self.exists("runs.txt") and self.read())

    def assertProblem(self, start: str, call: Callable[[], object]) -> None:
        """The call finds something that the user can mend, and says so in one line that begins like this."""
        with self.assertRaises(runmaker4.Problem) as raised:
            call()
        self.assertTrue(str(raised.exception).startswith(start), raised.exception)
        self.assertNotIn("\n", str(raised.exception))


class Lists(ImportCase):
    """--add-list: a job per line."""

    def test_lines_become_jobs_but_blank_ones_and_comments(self) -> None:
        self.write(b"\xef\xbb\xbfecho a\r\n\n# no job\n \t# nor this\n  \r\n  echo \xff '\t' # b \necho c", "list")
        self.assertAdds(b". echo a\n.   echo \xff '\t' # b \n. echo c\n", "--add-list", "list")

    def test_they_are_appended_to_what_is_there(self) -> None:
        self.write(FOUR + "# no newline")
        self.write("echo 1\necho 2\n", "list")
        self.assertAdds(FOUR + "# no newline\n. echo 1\n. echo 2\n", "--add-list", "list")

    def test_the_list_may_come_on_stdin(self) -> None:
        self.write("echo 1\necho 2\n", "list")
        with open(self.dir / "list", "rb") as stdin:
            self.assertAdds(". echo 1\n. echo 2\n", "--add-list", "-", stdin=stdin)

    def test_a_long_list_is_added_whole_and_in_order(self) -> None:
        commands = [b"echo %07d" % number for number in range(1_000_000 if FULL else 20_000)]
        self.write(b"".join(b"%b\n" % command for command in commands), "list")
        adding = self.start(RUNSET, "runs.txt", "--add-list", "list", stdout=None, stderr=None)
        _, status, usage = os.wait4(adding.pid, 0)
        adding.returncode = os.WEXITSTATUS(status)
        self.assertEqual(status, 0)
        self.assertEqual(self.read(), b"".join(b". %b\n" % command for command in commands))
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss        # which a new process inherits
        self.assertLessEqual(usage.ru_maxrss, max(own, 100_000_000 // 1024))

    def test_nothing_is_added_if_not_all_fits(self) -> None:
        before = FOUR + "# " + "x" * 1000 + "\n"
        self.write(before)
        self.write(f"echo {'y' * 1000}\n" * 2200, "list")
        limited = "trap '' XFSZ; ulimit -f 3000; exec \"$@\""       # a piece of 1 MiB fits, two do not
        ended = self.run_script("sh", "-c", limited, "sh", *self.command(RUNSET, "runs.txt", "--add-list", "list"))
        self.assertRefused(ended, "runset4.py: runs.txt: ")
        self.assertEqual(self.read(), as_bytes(before))

    def test_ctrl_c_does_not_cut_it_in_two(self) -> None:
        lines = 1200
        self.write(f"echo {'y' * 1000}\n" * lines, "list")
        interrupting = ("import os, signal\nwrite = os.write\n"
                        "os.write = lambda fd, data: (os.kill(os.getpid(), signal.SIGINT), write(fd, data))[1]")
        adding = self.start_patched(interrupting, "runs.txt", "--add-list", "list", script=RUNSET)
        self.assertEqual(self.finish(adding).code, 128 + signal.SIGINT)
        self.assertEqual(self.read(), f". echo {'y' * 1000}\n".encode() * lines)

    def test_what_cannot_be_a_list_is_refused_whole(self) -> None:
        self.write("echo 1\necho 2\n", "good")
        self.write("echo 1\n\necho a\0b\n", "nul")
        self.assertAllRefused({
            ("--add-list", "missing"): "missing: no such file",
            ("--add-list", "nul"): "nul: line 3: ",
            ("--add-list", "-"): "stdin: ",
            ("--add-list", "good", "--template", "echo {}\necho"): "--template",
        })

    def test_what_is_wrong_with_a_list_is_said_with_its_line(self) -> None:
        self.write("echo 1\necho 2\n", "good")
        too_long = "the command is longer than 128 KiB"
        for text, template, expected in ((UTF16, "", "is UTF-16"),
                                         (f"echo 1\n# c\necho {'x' * TOO_LONG}\n", "", f"line 3: {too_long}"),
                                         ("echo 1\n" + "x" * 10_000_000, "", "line 2: "),
                                         (f"# {'x' * 3 * TOO_LONG}\necho 1\n", "", "line 1: "),
                                         ("1\n2\n", "{}" + "x" * (TOO_LONG - 7), f"line 1: {too_long}"),
                                         ("# nothing\n\n \t\n", "", "there is no job in it"),
                                         ("", "", "there is no job in it")):
            path = self.write(text, "list")
            filled = runset4.Template(template.encode()) if template else None
            with self.subTest(text=text[:80]):
                self.assertProblem(f"{path}: {expected}", lambda: list(runset4.list_jobs(str(path), filled)))
        self.assertProblem("/dev/zero: line 1: ", lambda: list(runset4.list_jobs("/dev/zero", None)))
        self.assertProblem(f"{self.dir}: is a directory", lambda: list(runset4.list_jobs(str(self.dir), None)))

    def test_an_existing_file_stays_as_it_is_when_a_list_is_refused(self) -> None:
        self.write(". no newline")
        self.write("echo 1\necho a\0b\n", "list")
        self.assertRefused(self.run_script(RUNSET, "runs.txt", "--add-list", "list"), "list: line 2: ")
        self.assertEqual(self.read(), b". no newline")

    def test_the_longest_command_runs(self) -> None:
        command = b"echo " + b"x" * (runset4.LONGEST - 5)
        self.write(command + b"\n", "list")
        self.assertAdds(b". %b\n" % command, "--add-list", "list")
        self.assertEqual(self.run_jobs("-q").code, 0)
        self.write(command + b"x\n", "list")
        self.assertRefused(self.run_script(RUNSET, "runs.txt", "--add-list", "list"), "line 1")


class Templates(ImportCase):
    """--template: a command with a place for each line, as GNU parallel has it, and quoted for the shell."""

    ALL = "{} {.} {/} {//} {/.} {#}"
    VALUES = {
        "a/b.c": "a/b.c a/b b.c a b 1",
        "a.b/c": "a.b/c a.b/c c a.b c 1",
        "a.b/c.d.e": "a.b/c.d.e a.b/c.d c.d.e a.b c.d 1",
        "/a.txt": "/a.txt /a a.txt / a 1",
        ".hidden": ".hidden '' .hidden . '' 1",
        "a.": "a. a a. . a 1",
        "a/": "a/ a/ '' . '' 1",
        "/": "/ / '' / '' 1",
        "a//b": "a//b a//b b a b 1",
        "it's 5%.txt": "'it'\"'\"'s 5%.txt' 'it'\"'\"'s 5%' 'it'\"'\"'s 5%.txt' . 'it'\"'\"'s 5%' 1",
    }

    def fill(self, template: Text, value: Text) -> bytes:
        return runset4.Template(as_bytes(template)).fill(as_bytes(value), 1)

    def test_the_parts_of_a_line(self) -> None:
        for value, expected in self.VALUES.items():
            with self.subTest(value=value):
                self.assertEqual(self.fill(self.ALL, value), as_bytes(expected))

    @unittest.skipUnless(FULL, "GNU parallel itself takes a second: RUNMAKER4_TEST_FULL=1")
    @unittest.skipUnless(shutil.which("parallel"), "there is no parallel here")
    def test_gnu_parallel_sees_the_same_parts(self) -> None:
        values = "".join(f"{value}\n" for value in self.VALUES)
        show = "printf '%s\\n' {} {.} {/} {//} {/.}"
        self.write(values, "list")
        theirs = self.run_script("parallel", "--will-cite", "-j1", "-a", "list", show, env={"HOME": str(self.dir)})
        ours = b"".join(subprocess.check_output(["sh", "-c", self.fill(show, value)]) for value in self.VALUES)
        self.assertEqual(theirs.out, ours)

    def test_other_braces_and_per_cents_stay(self) -> None:
        self.assertEqual(self.fill("awk '{print $1} {}}' %d %% {} {a} {%}", "f"),
                         b"awk '{print $1} f}' %d %% f {a} {%}")

    def test_without_a_place_for_the_line_it_comes_last(self) -> None:
        self.assertEqual(self.fill("echo", "a b"), b"echo 'a b'")
        self.assertEqual(self.fill("echo {#}", "a"), b"echo 1 a")
        self.assertEqual(self.fill("echo {/}", "b/a"), b"echo a")

    def test_what_a_line_brings_in_is_not_a_place(self) -> None:
        self.assertEqual(self.fill("echo {} {#}", "{#} {}"), b"echo '{#} {}' 1")

    def test_any_bytes_reach_the_command_as_they_are(self) -> None:
        random_ = random.Random(4)
        values = [bytes(random_.choice([*range(1, 10), *range(11, 256), *b"'\"$`\\ *"]) for _ in range(30))
                  for _ in range(100)]
        script = b"\n".join(self.fill("printf '%s\\n' {}", value) for value in values)
        self.assertEqual(subprocess.run(["sh"], input=script, stdout=subprocess.PIPE).stdout,
                         b"".join(b"%b\n" % value for value in values))

    def test_only_the_lines_that_are_added_have_a_number(self) -> None:
        self.write("# a\nit's a b.c\n\nx/y\n", "list")
        self.assertAdds(". n 1 'it'\"'\"'s a b' 50%\n. n 2 x/y 50%\n",
                        "--add-list", "list", "--template", "n {#} {.} 50%")

    def test_the_jobs_run(self) -> None:
        self.write("it's a b\n$HOME `x`\n-n\n", "list")
        self.run_script(RUNSET, "runs.txt", "--add-list", "list", "--template", "printf '%s\\n' {} >>out")
        self.assertEqual(self.run_jobs("-q").code, 0)
        self.assertEqual(self.read("out"), b"it's a b\n$HOME `x`\n-n\n")


class JobFileCase(ImportCase):
    """Steps for tests with job files in INI form."""

    INI = "[control]\nexecutable: ./job.sh\n[params]\nlogfile: {0}.log\nvalue: {0}\n"

    def job_file(self, name: str, text: Optional[Text] = None) -> None:
        """Make a job file, in its directory, in one go."""
        path = self.dir / name
        path.parent.mkdir(exist_ok=True)
        self.write(self.INI.format(path.name) if text is None else text, "new").rename(path)

    def line(self, name: Text, executable: str = "./job.sh", state: bytes = b".") -> bytes:
        """The line of runs.txt for a job file."""
        path = os.fsencode(self.dir) + b"/" + as_bytes(name)
        return b"%b %b %b\n" % (state, executable.encode(), runset4.quote(path))


class JobFiles(JobFileCase):
    """--add-jobs: the command is the executable of a job file, with the path of the file."""

    def test_job_files_become_jobs_in_the_order_given(self) -> None:
        self.job_file("queue/b")
        self.job_file("queue/a", "[DEFAULT]\nx = %(y)s %\n[fjd]\nExecutable = job.py 50% # c\nExecutable=last")
        self.job_file("queue/c", "[fjd]\nexecutable: never\n[control]\r\nexecutable:first\r\n")
        self.assertAdds(self.line("queue/b") + self.line("queue/a", "last") + self.line("queue/c", "first"),
                        "--add-jobs", "queue/b", "queue/a", self.dir / "queue/c")

    def test_names_of_any_bytes_are_quoted_for_the_shell(self) -> None:
        names = [b"it's", b"$(a) b", b"\xff\"\\"]
        text = b"\xef\xbb\xbf[control]\nexecutable: printf '%s\\n' \xc3\xa0 >>out\n"
        for name in names:
            self.job_file("queue/" + os.fsdecode(name), text)
        self.run_script(RUNSET, "runs.txt", "--add-jobs", "queue")
        self.assertEqual(self.run_jobs("-q").code, 0)
        found = self.read("out").split(b"\n")
        self.assertEqual(found, [x for name in sorted(names)
                                 for x in ("\u00e0".encode(), os.fsencode(self.dir) + b"/queue/" + name)] + [b""])

    def test_each_file_of_a_directory_is_added_once(self) -> None:
        for name in "b", "a", "it's 1":
            self.job_file(f"job queue's/{name}")
        for name in "c", ".hidden", "backup~":
            self.job_file(f"job queue's/{name}", "no job")
        (self.dir / "job queue's/c").unlink()
        (self.dir / "job queue's/folder").mkdir()
        (self.dir / "job queue's/dangling").symlink_to("nowhere")
        expected = b"".join(self.line(f"job queue's/{name}") for name in ("a", "b", "it's 1"))
        self.assertAdds(expected, "--add-jobs", "job queue's")
        self.assertAdds(expected, "--add-jobs", self.dir / "job queue's/")
        self.job_file("job queue's/aa")
        self.assertAdds(expected + self.line("job queue's/aa"), "--add-jobs", "job queue's")

    def test_files_whose_jobs_are_not_new_any_more_are_not_added_again(self) -> None:
        names = ["a", "b c", "d", "e", "f"]
        for name in names:
            self.job_file(f"queue/{name}")
        edited = self.line("queue/b c", "edited --more", b"x").replace(b"\n", b"\r\n")
        before = (self.line("queue/a", state=b"d") + edited + b"# " + self.line("queue/d")
                  + self.line("queue/e").replace(b"\n", b" more\n") + self.line("queue/f/f") + self.line("other/f"))
        self.write(before)
        self.assertAdds(before + self.line("queue/d") + self.line("queue/e") + self.line("queue/f"),
                        "--add-jobs", "queue")

    def test_what_lies_across_the_pieces_that_are_read_at_once_is_found(self) -> None:
        """The first piece ends behind the a of ab; the last line has no newline."""
        filler = b"d %b\n" % (b"x" * (runset4.BLOCK - len(self.line("queue/a")) - 2))
        before = filler + self.line("queue/ab") + self.line("queue/z").rstrip()
        self.assertEqual(before[runset4.BLOCK - 2:][:4], b"/ab\n")
        for name in "a", "ab", "z":
            self.job_file(f"queue/{name}")
        self.write(before)
        self.assertAdds(before + b"\n" + self.line("queue/a"), "--add-jobs", "queue")

    def test_a_file_that_is_named_is_added_each_time(self) -> None:
        for name in "queue/a", "queue/b", "-":
            self.job_file(name)
        self.assertAdds(self.line("queue/a") + self.line("-"), "--add-jobs", "queue/a", "-")
        self.assertAdds(2 * (self.line("queue/a") + self.line("-")), "--add-jobs", "queue/a", "./-")
        self.assertAdds(2 * (self.line("queue/a") + self.line("-")) + self.line("queue/a") + self.line("queue/b"),
                        "--add-jobs", "queue", "queue/a", "./queue")

    def test_what_cannot_be_a_job_file_is_refused_whole(self) -> None:
        self.job_file("queue/a")
        self.job_file("bad/a")
        self.job_file("bad/b", "[control]\nlogfile: a\n")
        (self.dir / "empty").mkdir()
        self.assertAllRefused({
            ("--add-jobs", "queue/a", "missing"): "missing: no such file",
            ("--add-jobs", "queue", "bad"): "bad/b: there is no executable",
            ("--add-jobs", "empty"): "empty: there is no job file in it",
            ("--add-jobs", "queue/a", "--follow"): "queue/a: ",
            ("--add-jobs", "missing", "--follow"): "missing: ",
        })

    def test_what_is_wrong_with_a_job_file_is_said_with_its_line(self) -> None:
        for text, expected in (("\n# x\nexecutable: a\n", "line 3: stands in no [section]"),
                               ("[control]\nexecutable: a\n\n[params]\nnonsense\n", "line 5: "),
                               ("[control]\nexecutable: a\n= b\n", "line 3: "),
                               ("[control]\nexecutable\n", "line 2: "),
                               ("[params]\nexecutable: a\n", "there is no executable"),
                               ("[control]\nexecutable:\n", "its executable= is empty"),
                               ("[control]\nexecutable: a\n  b\n", "not a command"),
                               ("[control]\nexecutable: a\n\n\0\n", "line 4: "),
                               ("[control]\nexecutable: a\n".encode("utf-16"), "is UTF-16"),
                               (f"[control]\nexecutable: {'x' * TOO_LONG}\n", "the command is longer"),
                               ("[control]\nexecutable: " + 10_000_000 * "x", "line 2: "),
                               ("[control]\nexecutable: a\n" + "# x\n" * 400_000, "line 2"),
                               ("", "there is no executable")):
            path = self.write(text, "job")
            with self.subTest(text=text[:80]):
                self.assertProblem(f"{path}: {expected}", lambda: runset4.read_job_file(str(path)))
        path = self.write("[control]\nexecutable: a\n", "two\nlines")
        self.assertProblem(f"{self.dir}/two?lines: not a command", lambda: runset4.read_job_file(str(path)))

    def test_ten_jobs_for_four_workers_as_in_fjd(self) -> None:
        """Workers and jobs come in any order; each job reads its file and writes the log file that is named there."""
        workers = self.start(RUNMAKER, "-q", "--follow", "-j4", "runs.txt")
        script = "sed -n 's/^value: *//p' \"$1\" >\"$(sed -n 's/^logfile: *//p' \"$1\")\"\n"
        self.write(f"#!/bin/sh\n{script}", "job.sh").chmod(0o755)
        names = [f"job{number}" for number in range(10)]
        for name in names:
            self.job_file(f"queue/{name}")
        self.run_script(RUNSET, "runs.txt", "--add-jobs", *(f"queue/{name}" for name in names))
        self.run_script(RUNSET, "runs.txt", "--end")
        self.assertEqual(self.finish(workers).code, 0)
        self.assertEqual(self.states(), "d" * 10)
        self.assertEqual([self.read(f"{name}.log") for name in names], [f"{name}\n".encode() for name in names])


class Collecting(JobFileCase):
    """What follows a directory adds what has come to rest there; on a clock that the tests wind on."""

    def setUp(self) -> None:
        super().setUp()
        (self.dir / "queue").mkdir()
        self.now, self.said = 0.0, []
        self.write("")
        self.collector = self.make()

    def make(self) -> runset4.Collector:
        """One that has just been started."""
        file = runmaker4.JobFile(str(self.dir / "runs.txt"), say=self.said.append, single=True)
        return runset4.Collector(file, [str(self.dir / "queue")], self.said.append,
                                 lambda: self.now)

    def look(self, *expected: str, after: float = 0.5) -> None:
        """Have it look after this many seconds; then runs.txt has just these job files."""
        self.now += after
        self.collector.look()
        self.assertEqual(self.read(), b"".join(map(self.line, expected)))

    def test_files_are_added_when_they_have_not_changed_for_a_second(self) -> None:
        self.job_file("queue/b")
        self.look()
        self.job_file("queue/a")
        self.job_file("queue/c")
        self.look()
        self.look("queue/b")
        self.look("queue/b", "queue/a", "queue/c")
        self.job_file("queue/a", "changed")
        for _ in range(4):
            self.look("queue/b", "queue/a", "queue/c")
        self.assertEqual(self.said, [])

    def test_a_file_that_is_written_to_is_waited_for(self) -> None:
        with open(self.dir / "queue/a", "w", buffering=1) as file:
            file.write("[fjd]\nexecutable: early\n")
            for number in range(5):
                file.write("executable: not yet\n")
                self.look(after=0.9)
                os.utime(file.fileno(), (number, number))       # times need not differ from write to write
            file.write("executable: ./job.sh\n")
            self.look()
            self.look(after=0.9)
            self.look("queue/a", after=0.1)

    def test_a_file_that_changes_while_it_is_read_is_waited_for(self) -> None:
        def read_job_file(path: str) -> bytes:
            self.job_file("queue/a", "[fjd]\nexecutable: ./job.sh\n")
            patch.stop()
            return b". early\n"

        self.job_file("queue/a", "[fjd]\nexecutable: early\n")
        self.look()
        patch = mock.patch("runset4.read_job_file", read_job_file)
        patch.start()
        self.look(after=1)
        self.look()
        self.look("queue/a", after=1)

    def test_a_wrong_file_is_named_once_and_tried_again_when_it_changed(self) -> None:
        self.job_file("queue/bad", "[control]\n")
        self.job_file("queue/good")
        self.look()
        for _ in range(3):
            self.look("queue/good", after=1)
        self.assertEqual(self.said, [f"{self.dir}/queue/bad: there is no executable= in [control] or [fjd]; "
                                     "waiting for a change"])
        self.job_file("queue/bad")
        self.look("queue/good")
        self.look("queue/good", "queue/bad", after=1)
        self.assertEqual(len(self.said), 1)

    def test_an_end_above_what_is_added_is_said_once(self) -> None:
        self.write("#RUN end\n")
        for name in "ab":
            self.job_file(f"queue/{name}")
            for after in 0.5, 1:
                self.now += after
                self.collector.look()
        self.assertEqual(self.read(), b"#RUN end\n" + self.line("queue/a") + self.line("queue/b"))
        self.assertEqual(self.said, [f"{self.dir}/runs.txt: there is a #RUN end in line 1; no --follow runner takes "
                                     "the jobs below it (--reopen, then --end)"])

    def test_a_directory_that_vanishes_is_waited_for(self) -> None:
        self.job_file("queue/a")
        self.look()
        self.look("queue/a", after=1)
        for _ in range(2):
            (self.dir / "queue").rename(self.dir / "away")
            self.look("queue/a")
            self.look("queue/a")
            (self.dir / "away").rename(self.dir / "queue")
            self.look("queue/a")
        self.assertEqual(self.said, [f"{self.dir}/queue: no such file or directory; waiting for it"] * 2)
        self.job_file("queue/b")
        self.look("queue/a")
        self.look("queue/a", "queue/b", after=1)

    def test_it_tries_again_while_the_job_file_cannot_be_appended_to(self) -> None:
        self.job_file("queue/a")
        self.look()
        with mock.patch.object(runset4.Collector, "PATIENCE", 0.01), open(self.dir / "runs.txt", "r+b") as file:
            with runmaker4.locked(file.fileno(), APPEND_BYTE):
                self.look(after=1)
                self.look()
        self.assertEqual(len(self.said), 1)
        self.assertIn("runs.txt: ", self.said[0])
        self.look("queue/a")

    def test_it_goes_on_with_many_files_in_the_next_look(self) -> None:
        names = [f"queue/{number}" for number in range(9)]
        for name in names:
            self.job_file(name)
        self.look()
        self.now += 1
        clock = mock.Mock(side_effect=itertools.count(self.now, 0.3))
        with mock.patch.object(self.collector, "clock", clock):
            self.collector.look()
        self.assertIn(len(self.states()), range(1, 9))
        self.look(*names)

    def test_another_one_adds_no_file_again(self) -> None:
        self.job_file("queue/it's a")
        self.look()
        self.look("queue/it's a", after=1)
        self.collector = self.make()
        self.job_file("queue/b")
        self.look("queue/it's a")
        self.look("queue/it's a", "queue/b", after=1)

    def test_the_job_file_may_be_removed_and_comes_again(self) -> None:
        (self.dir / "runs.txt").unlink()
        self.job_file("queue/a")
        self.collector.look()
        self.look("queue/a", after=1)


class Following(JobFileCase):
    """--add-jobs --follow: the same in a process that is ended by signals."""

    # From look to look it takes 0.03 s, not 0.5 s, and a file rests after 0.15 s, not after 1 s
    HASTY = "" if FULL else "import runset4\nrunset4.Collector.INTERVAL, runset4.Collector.REST = 0.03, 0.15"

    def setUp(self) -> None:
        super().setUp()
        (self.dir / "queue").mkdir()

    def follow(self, *folders: str, **settings) -> subprocess.Popen:
        """Follow directories."""
        return self.start_patched(self.HASTY, "runs.txt", "--add-jobs", *(folders or ("queue",)), "--follow",
                                  script=RUNSET, **settings)

    def end(self, process: subprocess.Popen, number: int) -> None:
        """Send a signal, which must end it in its own way."""
        self.assertIsNone(process.poll())
        process.send_signal(number)
        ended = self.finish(process, 10)
        self.assertEqual((ended.code, ended.out, ended.err), (128 + number, b"", b""))

    def wait_lines(self, *names: str) -> None:
        """Wait until runs.txt has just these job files, in any order."""
        expected = sorted(self.line(name) for name in names)
        wait_until(lambda: self.exists("runs.txt") and sorted(self.read().splitlines(keepends=True)) == expected,
                   what=f"{names} in runs.txt")

    def test_what_is_there_and_what_comes_is_added(self) -> None:
        self.job_file("queue/a")
        self.job_file("queue/.hidden")
        (self.dir / "more").mkdir()
        process = self.follow("queue", "more")
        self.wait_lines("queue/a")
        self.job_file("queue/it's b")
        self.job_file("more/c")
        self.wait_lines("queue/a", "queue/it's b", "more/c")
        self.end(process, signal.SIGINT)

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_two_of_them_one_of_them_killed_add_each_file_once(self) -> None:
        names = [f"queue/{number}" for number in range(30)]
        killed, other = self.follow(), self.follow()
        for name in names[:15]:
            self.job_file(name)
        wait_until(lambda: self.exists("runs.txt") and self.read(), what="something is added")
        killed.kill()
        for name in names[15:]:
            self.job_file(name)
        self.wait_lines(*names)
        again = self.follow(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        self.end(other, signal.SIGHUP)
        self.job_file("queue/last")
        self.wait_lines(*names, "queue/last")
        again.send_signal(signal.SIGHUP)                # nohup: it stays
        self.job_file("queue/very last")
        self.wait_lines(*names, "queue/last", "queue/very last")
        self.end(again, signal.SIGTERM)

    def test_what_cannot_be_a_job_file_of_ours_is_refused_at_the_start(self) -> None:
        (self.dir / "folder").mkdir()
        self.assertRefused(self.run_script(RUNSET, "folder", "--add-jobs", "queue", "--follow"), "runset4.py: folder: ")


class Hiring(ImportCase):
    """--end and --reopen: those who wait for more jobs are sent home, and hired again."""

    def test_the_end_is_appended_once(self) -> None:
        self.assertAdds("#RUN end\n", "--end")
        self.assertAdds("#RUN end\n", "--end")
        self.write(". echo a\n#RUN \t end \r\nd echo b\n")
        self.assertAdds(". echo a\n#RUN \t end \r\nd echo b\n", "--end")
        self.write("# RUN end\n#run end\n#RUN ending\n#RUN end now\n. #RUN end\nx #RUN end")
        self.assertAdds("# RUN end\n#run end\n#RUN ending\n#RUN end now\n. #RUN end\nx #RUN end\n#RUN end\n", "--end")

    def test_jobs_that_are_added_below_the_end_are_said(self) -> None:
        self.write("echo b\n", "list")
        self.write("T:\na: echo c\nend\n", "tests")
        (self.dir / "queue").mkdir()
        self.write("[control]\nexecutable: d\n", "queue/d")
        for line, args in enumerate((("runs.txt", "--add", "echo a"), ("runs.txt", "--add-list", "list"),
                                     ("runs.txt", "--add-tests", "tests"), ("runs.txt", "--add-jobs", "queue"),
                                     ("--rerun", "runs.txt", 1)), 1):
            self.write("d echo 0\n" + "# more\n" * line + "#RUN end\nd echo 1\n#RUN end\n")
            ended = self.run_script(RUNSET, *args)
            with self.subTest(args=args):
                self.assertEqual((ended.code, ended.err), (
                    0, b"runset4.py: runs.txt: there is a #RUN end in line %d; no --follow runner takes the jobs below "
                    b"it (--reopen, then --end)\n" % (line + 2)))
                self.assertIn(".", self.states())

    def test_a_file_that_is_gone_when_all_is_appended_may_have_been_replaced(self) -> None:
        file = runmaker4.JobFile(str(self.dir / "none"), say=self.fail, single=True)
        with self.assertRaises(runmaker4.Shifted):
            runset4.jobs_below_end(file)

    @unittest.skipUnless(FULL, "the suite has no time to spare: RUNMAKER4_TEST_FULL=1")
    def test_new_jobs_below_an_older_end_are_said_and_it_is_not_appended_again(self) -> None:
        before = self.write(". echo a\n#RUN \t end \r\nd echo b\n. echo c\n#RUN end\n").read_bytes()
        ended = self.run_script(RUNSET, "runs.txt", "--end")
        self.assertEqual((ended.code, ended.out, self.read()), (0, b"", before))
        self.assertEqual(ended.err, b"runset4.py: runs.txt: there is a #RUN end in line 2; no --follow runner takes "
                                    b"the jobs below it (--reopen, then --end)\n")
        self.assertAdds(before.replace(b"#RUN", b"#off"), "--reopen")
        self.assertAdds(before.replace(b"#RUN", b"#off") + b"#RUN end\n", "--end")

    def test_reopening_makes_comments_of_all_of_them_in_place(self) -> None:
        before = b"\xef\xbb\xbf#RUN end\n. echo a\n#RUN\tend \r\n#RUN barrier\n# RUN end\n. #RUN end\n#RUN end"
        path = self.write(before)
        inode = path.stat().st_ino
        after = before.replace(b"\n#RUN\tend", b"\n#off\tend").replace(b"\n#RUN end", b"\n#off end")
        self.assertAdds(after.replace(b"\xbf#RUN end", b"\xbf#off end"), "--reopen")
        self.assertEqual(path.stat().st_ino, inode)

    def test_nothing_to_reopen_is_said(self) -> None:
        self.write(FOUR)
        ended = self.run_script(RUNSET, "runs.txt", "--reopen")
        self.assertEqual((ended.code, ended.out), (1, b""))
        self.assertEqual(ended.err, b"runset4.py: runs.txt: there is no #RUN end in it\n")
        self.assertEqual(self.read(), as_bytes(FOUR))

    def test_a_missing_file_is_not_reopened(self) -> None:
        self.assertAllRefused({("--reopen",): "runs.txt: "})

    def test_a_follower_at_work_is_not_disturbed_and_goes_home_at_the_end(self) -> None:
        self.write(f"#RUN end\n. {GATE}\n. : >two\n#RUN end\n. echo never >three\n")
        self.assertEqual(self.run_script(RUNSET, "runs.txt", "--reopen").code, 0)
        runner = self.start(RUNMAKER, "-q", "--follow", "runs.txt")
        self.wait_states("r..")
        self.assertEqual(self.run_script(RUNSET, "runs.txt", "--set=x", "5").code, 0)
        self.assertEqual(self.run_script(RUNSET, "runs.txt", "--end").code, 0)
        self.assertEqual(self.locked_lines(), [2])
        self.open_gate()
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states()), (0, "ddx"), ended.err)


class Appending(JobFileCase):
    """Others who append are waited for, and what they appended is taken into account."""

    def test_what_was_appended_meanwhile_is_seen(self) -> None:
        self.job_file("queue/a")
        self.job_file("queue/b")
        jobs = [self.line("queue/a"), self.line("queue/b")]
        files = {"ends": (["--end"], b"#RUN end\n", b"#RUN end\n"),
                 "jobs": (["--add-jobs", "queue"], jobs[0], jobs[0] + jobs[1]),
                 "reopened": (["--reopen"], b"#RUN end\n", b"#off end\n")}
        with contextlib.ExitStack() as stack:
            processes = []
            for name, (args, theirs, _) in files.items():
                file = stack.enter_context(open(self.dir / name, "wb", buffering=0))
                stack.enter_context(runmaker4.locked(file.fileno(), APPEND_BYTE))
                processes.append(self.start(RUNSET, name, *args))
                file.write(theirs[:3])
            with self.assertRaises(subprocess.TimeoutExpired):
                processes[0].wait(0.4)
            self.assertEqual([process.poll() for process in processes], [None] * 3)
            for name, (_, theirs, _) in files.items():
                with open(self.dir / name, "ab") as file:
                    file.write(theirs[3:])
        self.assertEqual([self.finish(process).code for process in processes], [0, 0, 0])
        for name, (_, _, after) in files.items():
            self.assertEqual(self.read(name), after)


class Rerunning(ImportCase):
    """--rerun: lines that a dead host holds are put on hold, and their commands are appended anew."""

    def test_lines_are_held_and_their_commands_appended(self) -> None:
        self.write("#RUN timeout=5s\n" + FOUR.replace("\n", "\r\n") + "r\techo \u00e9 'e'")
        self.assertAdds("#RUN timeout=5s\n. echo a\r\nx echo b\r\nx echo c\r\ne echo d\r\nx\techo \u00e9 'e'\n"
                        ". echo b\n. echo c\n. echo \u00e9 'e'\n", "--rerun", "3-4", "6")

    def test_they_keep_their_settings_and_those_at_the_end_hold_on(self) -> None:
        before = b"! a\n#RUN host=alice timeout=5s\r\n! b\n! c\n#RUN barrier\n#RUN timeout=1h\n! d\n# e\n! f"
        self.write(before)
        self.assertAdds(before.replace(b"!", b"x") + b"\n#RUN\n. a\n#RUN host=alice timeout=5s\n. b\n. c\n"
                        b"#RUN timeout=1h\n. d\n. f\n", "--rerun", "1-9")

    @unittest.skipUnless(FULL, "the suite has no time to spare: RUNMAKER4_TEST_FULL=1")
    def test_settings_are_repeated_only_where_they_differ_from_the_last_ones(self) -> None:
        before = b"#RUN timeout=5s\n! a\n#RUN timeout=1h\n! b\n#RUN end\n"
        for selection, appended in (("4", b". b\n"), ("2", b"#RUN timeout=5s\n. a\n#RUN timeout=1h\n")):
            path = self.write(before)
            os.utime(path, (0, 0))
            line = b"! " + appended.split(b". ")[1][:1]
            self.assertAdds(before.replace(line, line.replace(b"!", b"x")) + appended, "--rerun", selection, said=
                            b"runset4.py: runs.txt: there is a #RUN end in line 5; no --follow runner takes the jobs "
                            b"below it (--reopen, then --end)\n")

    @unittest.skipUnless(FULL, "the suite has no time to spare: RUNMAKER4_TEST_FULL=1")
    def test_lines_of_groups_are_refused(self) -> None:
        before = "#RUN together=pair host=alice,bob\n! echo a\n! echo b\n"
        refused = "runset4.py: runs.txt: line {}: is of a group (which runs again if all its lines are set to .)\n"
        self.write(before)
        ended = self.run_script(RUNSET, "runs.txt", "--rerun", "2")
        self.assertEqual((ended.code, ended.err.decode(), self.read()), (1, refused.format(2), before.encode()))
        self.write(before + "#RUN\n! echo c\n")
        ended = self.run_script(RUNSET, "runs.txt", "--rerun", "--state=!")
        self.assertEqual((ended.code, ended.err.decode()), (1, refused.format(2) + refused.format(3)))
        self.assertEqual(self.read(), f"{before}#RUN\nx echo c\n. echo c\n".encode())

    def test_the_option_may_stand_before_the_file_and_go_with_other_selections(self) -> None:
        self.write(FOUR)
        ended = self.run_script(RUNSET, "--rerun", "--state=!", "runs.txt")
        self.assertEqual((ended.code, self.read()), (0, b". echo a\nd echo b\nx echo c\ne echo d\n. echo c\n"))

    def test_a_line_that_somebody_holds_is_taken_from_him(self) -> None:
        self.write("r echo a\nr echo b\n")
        with open(self.dir / "runs.txt", "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX, 1, 0)
            self.assertAdds("x echo a\nr echo b\n. echo a\n", "--rerun", "1")

    def test_a_runner_that_lives_nevertheless_reports_no_result(self) -> None:
        runner = self.start_to_gate(f". {GATE}\n")
        self.assertEqual(self.run_script(RUNSET, "runs.txt", "--rerun", "1").code, 0)
        self.assertEqual(self.states()[0], "x")
        self.open_gate()
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states()), (1, "xd"), ended.err)

    def test_nothing_changes_when_the_commands_do_not_fit(self) -> None:
        before = f"! {GATE}\nd echo b\n# {'x' * 1000}\n! echo {'y' * 700}\n"
        self.write(before)
        words = self.command(RUNSET, "--rerun", "runs.txt", "1-4")
        ended = self.run_script("sh", "-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "sh", *words)
        self.assertRefused(ended, "runs.txt: ")
        self.assertEqual(self.read(), as_bytes(before))

    def test_selecting_nothing_is_said(self) -> None:
        self.write(FOUR)
        ended = self.run_script(RUNSET, "runs.txt", "--rerun", "9")
        self.assertEqual((ended.code, ended.err), (1, b"runset4.py: runs.txt: no job is selected by this\n"))
        self.assertEqual(self.read(), as_bytes(FOUR))


class Usage(unittest.TestCase):
    """Which options go together."""

    def test_what_makes_no_sense_is_refused_and_named(self) -> None:
        for words, name in (("--add-list a --template", "--template"), ("--add-list a --follow", "--follow"),
                            ("--add a --template {}", "--template"), ("--template {}", "--add-list"),
                            ("--add-list a --add b", "--add-list"), ("--add-list a --all", "--add-list"),
                            ("--add-jobs a --state=x", "--add-jobs"), ("--add-tests a --match=b", "--add-tests"),
                            ("--add-tests a --follow", "--follow"), ("--end --reopen", "--end"),
                            ("--end --state=.", "--end"), ("3 --reopen", "--reopen"), ("--rerun", "--rerun"),
                            ("--rerun --set=x 3", "--rerun"), ("", "--add-list")):
            args = ["runs.txt", *words.split(), *([" "] if words.endswith("--template") else [])]
            with self.subTest(args=args):
                with self.assertRaises(runmaker4.Problem) as raised:
                    runset4.parse(args)
                self.assertIn(name, str(raised.exception))


class Misplaced(Case):
    """FILE stands before options that take several values."""

    def test_a_file_that_stands_behind_is_shown_where_it_belongs(self) -> None:
        self.write("[control]\nexecutable=echo\n", "a.ini")
        self.write(". echo\n")
        commands = {("--add", "echo 1", "runs.txt"): "runs.txt --add 'echo 1'",
                    ("--add", "echo 1", "--single-host"): "FILE --add 'echo 1' --single-host",
                    ("--single-host", "--add", "a", "a"): "a --single-host --add a",
                    ("--add", "echo 1", "echo 2"): "FILE --add 'echo 1' 'echo 2'",
                    ("--add-jobs", "a.ini", "runs.txt"): "runs.txt --add-jobs a.ini",
                    ("--add-jobs", "a.ini", "new.txt", "--follow"): "new.txt --add-jobs a.ini --follow",
                    ("--add-jobs", "b.ini", "a.ini"): "FILE --add-jobs b.ini a.ini",
                    ("--add-jobs", "b.ini", "."): "FILE --add-jobs b.ini ."}
        for (_, *args), ended in self.run_all((RUNSET, *args) for args in commands):
            with self.subTest(args=args):
                option = next(arg for arg in args if arg.startswith("--add"))
                self.assertRefused(ended, f"runset4.py: FILE stands before {option}: ",
                                   f"{RUNSET} {commands[tuple(args)]} (see --help)\n")
        self.assertRefused(self.run_script(RUNSET, "--set=x"), "FILE")


class Help(Case):
    """--help fits on a terminal, and names what this is about."""

    def test_it_fits_sixty_lines_of_eighty_columns(self) -> None:
        lines = self.run_script(RUNSET, "--help", env={"COLUMNS": "80"}).out.decode().splitlines()
        self.assertLess(len(lines), 60)
        self.assertLess(max(map(len, lines)), 80)
        self.assertIn(f"    {RUNSET} ", lines[1])
        text = "\n".join(lines)
        options: List[str] = "--add-list --template --add-jobs --follow --add-tests --end --reopen --rerun".split()
        self.assertEqual([option for option in options if option not in text], [])


if __name__ == "__main__":
    unittest.main()
