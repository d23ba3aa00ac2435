"""What a user wrote in a job file and no runner understands is refused, or named, before anything runs."""
import os
import shutil
import signal
import subprocess
from concurrent import futures
from typing import Callable

import runmaker4
from tests.support.processes import wait_until
from tests.support.runs import RunCase
from tests.support.scripts import RUNMAKER, RUNSERVER, RUNSET, RUNWAIT
from tests.support.values import Text, present

READING = ((RUNMAKER, "-q"), (RUNMAKER, "--follow"), (RUNMAKER, "--dry-run"), (RUNSERVER,),
           (RUNSET, "--list"), (RUNSET, "-q", "--set=x", "--all"), (RUNWAIT, "--status"))
STRAY = ("{}: runs.txt: line {} is neither a job nor a comment "
         "(a job is '. COMMAND', a comment begins with #)\n")

Check = Callable[[str, bool, Callable[[str], None]], object]     # of a file's lines, by runmaker4.py


class MisreadCase(RunCase):

    def said(self, check: Check, text: Text) -> list[str]:
        """What a check of runmaker4.py says of this text, or refuses, without its place."""
        said: list[str] = []
        try:
            check(str(self.write(text)), False, said.append)
        except runmaker4.UsageError as problem:
            said.append(str(problem))
        return said

    def assertNames(self, err: str, *calls: tuple[str, ...]) -> None:
        """Each of these scripts, with its options, goes on, and says this on stderr."""
        for call, ended in self.run_all((*call, "runs.txt") for call in calls):
            with self.subTest(call=call):
                self.assertEqual((ended.code, ended.err.decode()), (0, err.format(call[0])))


class PlainCommands(MisreadCase):
    """A file of commands, as GNU parallel takes them, is no job file."""

    def test_every_script_refuses_it_and_says_what_makes_jobs_of_it(self) -> None:
        before = self.write("# mine\n\necho a >>marks\n.echo b\n . echo c\n").read_bytes()
        for call, ended in self.run_all((*call, "runs.txt") for call in READING):
            with self.subTest(call=call):
                self.assertRefused(ended)
                said = (f"{call[0]}: runs.txt: no jobs; line 3 is plain text (a job is '. COMMAND'; "
                        "runset4.py NEW --add-list runs.txt makes jobs of the lines)\n")
                self.assertEqual(ended.err.decode(), said)
        self.assertEqual(self.read(), before)

    def test_one_line_is_enough_with_or_without_its_end(self) -> None:
        for text in "echo a", "echo a\r\n", ".echo", " . a\n", "\t/bin/true\n", b"\xef\xbb\xbfx\n":
            with self.subTest(text=text):
                said, = self.said(runmaker4.check_for_strays, text)
                self.assertIn(": no jobs; line 1 is plain text (", said)

    def test_commands_that_begin_with_a_path_are_refused_like_any(self) -> None:
        self.write("# mine\n\n/bin/echo a\n/bin/echo b\n")
        ended = self.run_script(RUNMAKER, "runs.txt")
        self.assertRefused(ended, "no jobs; line 3", "NEW --add-list")
        self.assertEqual(self.run_script(RUNSET, "-q", "NEW", "--add-list", "runs.txt").code, 0)
        ended = self.run_script(RUNMAKER, "--plain", "NEW")
        self.assertEqual((ended.code, ended.out), (0, b"a\nb\n"))

    def test_a_shell_script_is_refused_also_with_a_line_that_looks_like_a_job(self) -> None:
        script = "#!/bin/sh\n. ./env.sh\nconvert $1\n"
        before = self.write(script).read_bytes()
        for call, ended in self.run_all((*call, "runs.txt") for call in READING):
            with self.subTest(call=call):
                self.assertRefused(ended, "runs.txt: line 3 is neither a job nor a comment, so this is a "
                                   "script (to run it for each line of LIST: runset4.py NEW --add-list LIST "
                                   "--template 'SCRIPT {}')\n")
        self.assertEqual(self.read(), before)

    def test_a_job_file_can_be_a_program_that_runs_itself(self) -> None:
        for head, said in (("/usr/bin/env -S runmaker4.py -q", "line 3 is neither a job nor a comment ("),
                           ("/usr/bin/env list", "line 3 is neither a job nor a comment, so this")):
            for stray in "", "echo b\n":
                with self.subTest(head=head, stray=stray):
                    found = self.said(runmaker4.check_for_strays, f"#!{head}\n. echo a\n{stray}")
                    self.assertEqual([said in text for text in found], [True] * bool(stray), found)

    def test_what_has_no_such_line_is_none(self) -> None:
        for text in ("", "\n", "\r\n \t\r\n", "# a\n  # b\n\t#c", "/ a\n//b\n/* c */\n/\n",
                     "#RUN barrier\n#RUN end\n", "x echo a\n", b"\xef\xbb\xbf# a\n", b"\xef\xbb\xbf",
                     "#" * 10_000, " " * 10_000 + "\n", "# a\n."):     # the last line is being written
            with self.subTest(text=text[:20]):
                self.assertEqual(self.said(runmaker4.check_for_strays, text), [])

    def test_jobs_can_be_added_to_it(self) -> None:
        self.write("echo a\n")
        self.write("b\n", "list")
        self.assertNames(STRAY.format("{}", 1), (RUNSET, "-q", "--add-list=list"))
        self.assertEqual(self.read(), b"echo a\n. b\n")


class StrayLines(MisreadCase):
    """Between jobs a line that is none is named, once."""

    def test_every_script_names_the_first_and_goes_on(self) -> None:
        self.write("# a\nd echo\n\nprose\n.echo b\n/text\n  more\n")
        self.assertNames(self.SAID, *(call for call in READING if call[0] in (RUNSET, RUNWAIT)))
        ended = self.run_script(RUNMAKER, "runs.txt")
        self.assertEqual(ended.code, 1)
        self.assertEqual(ended.err.decode().splitlines(True)[0], self.SAID.format(RUNMAKER))
        server = self.run_script(RUNSERVER, "--exit-when-done", "--port", 0, "runs.txt",
                                 env={"HOME": str(self.dir)})
        self.assertEqual(server.code, 1)
        self.assertEqual(server.err.decode().splitlines(True)[0], self.SAID.format(RUNSERVER))

    SAID = STRAY.format("{}", 4)

    def test_all_lines_are_looked_at(self) -> None:
        text = "d true\n" * 100_000 + "stray\n" * 2 + "d true\n" * 9 + "more"
        said, = self.said(runmaker4.check_for_strays, text)
        self.assertTrue(said.startswith("line 100001 is neither a job nor a comment ("), said)

    def test_they_are_found_wherever_a_read_ends(self) -> None:
        for before in range(4090, 4097):
            text = b"d" + b" " * (before - 2) + b"\n.echo\n \t x\nd echo\n\t# no\n \r\n"
            said, = self.said(runmaker4.check_for_strays, text)
            self.assertTrue(said.startswith("line 2 is neither a job nor a comment ("), said)


class LookAlikes(MisreadCase):
    """What would be a directive but for blanks or small letters is one that makes no sense, for all."""
    ALIKE = ("#run barrier", "# RUN barrier", " #RUN barrier", " # run timeout=3s",
             "\t#\tRun  Barrier Check ", "# RUN end", "#run pause", "#Run host=a,b TIMEOUT=3S\r",
             "# run barrier first", "#RUN: barrier", "#RUNNING")
    OTHERS = (
        "# run these first", "#running barrier", "##RUN barrier", "/RUN barrier", "#RU barrier", "# runs",
        "#off end", "# RUN host", "#", "a #RUN barrier", "x #run barrier", "# run endings", "# RUN",
    )

    def test_they_are_told_from_prose(self) -> None:
        for texts, expected in (self.ALIKE, 1), (self.OTHERS, 0):
            for text in texts:
                with self.subTest(text=text):
                    said = self.said(runmaker4.check_job_file, f". true\n{text}\n. true\n")
                    self.assertEqual([": line 2: looks like a directive" in line for line in said],
                                     [True] * expected)

    def test_who_runs_jobs_refuses_the_first_and_who_looks_tells_what_waits(self) -> None:
        self.write("# run this\n. a\n#run barrier\n. b\n # RUN end\n")
        for call, ended in self.run_all(((RUNMAKER, "--dry-run", "runs.txt"), (RUNSERVER, "runs.txt"))):
            with self.subTest(call=call):
                self.assertRefused(ended, f"{call[0]}: runs.txt: line 3: looks like a directive")
        self.write("d true\n#run barrier\n. true\n")
        self.assertIn(b"line 2: looks like a directive", self.run_script(RUNWAIT, "--status", "runs.txt").out)

    def test_jobs_below_one_that_comes_later_wait_until_it_is_mended(self) -> None:
        self.write(". echo '# run barrier' >>runs.txt; echo '. touch ran' >>runs.txt\n")
        runner = self.start(RUNMAKER, "-q", "--follow", "runs.txt", stderr=subprocess.PIPE)
        said = present(runner.stderr).readline()
        self.assertIn(b"line 2: looks like a directive", said)
        self.assertIn(b"the jobs below it wait", said)
        self.assertFalse(self.exists("ran"))
        self.write(self.read().replace(b"# run", b"#RUN"))
        wait_until(lambda: self.exists("ran"), what="it is mended")
        self.assertEqual(self.stop(runner, signal.SIGHUP).code, 0)

    def test_they_are_found_wherever_a_read_ends(self) -> None:
        text = b"\n        #        RUN barrier\n"
        for before in range(4096 - len(text), 4097):
            self.assertEqual(len(self.said(runmaker4.check_job_file, b"#" * before + text)), 1, before)

    def test_mistakes_among_settings_are_refused(self) -> None:
        mistakes = {"colour=3": "unknown setting 'colour=3' (settings are ",
                    "timeout 3m": "unknown setting 'timeout 3m' (settings are ",
                    "memory=1GB": "memory= is not a size: '1GB' (such as 512M, 4G, 1.5T)",
                    "timeout=3minutes": "timeout= is not a duration: '3minutes' (such as 90, 90s, 5m, "}
        for words, said in mistakes.items():
            with self.subTest(words=words):
                self.write(f"#RUN {words}\n. true\n")
                self.assertRefused(self.run_script(RUNMAKER, "runs.txt"), said)


class Misunderstood(MisreadCase):
    """A command that does something else in its shell than in bash, or is done before its program ends."""
    # what stands behind a program, and the shells in which it is as in bash
    BOTH = {"&> log": "bash zsh mksh lksh busybox",
            "&>>'log'": "bash zsh mksh lksh",
            "|& cat>log": "bash zsh",
            "\"$(dirname \"$f\")\" &>log; true": "bash zsh mksh lksh busybox"}
    ENDS = ("&", "&  ", "& # c", "&# c", "& > log", "&2>e >log", "& >> log 2>&1 # c", "2>&1 &", "&& true &",
            "& <i >| 'a b'\"c\"\\ d", "| cat &", "'&' \"$(echo \"a\" 'b' (c))\" &", "\\& a#b ${#x} $# &",
            "& echo &")
    OTHERS = ("&& > log", "&&>log", ">&2", "2>&1 | cat", "|| true", "# a &", "# &> b", "'a &> b'", "& wait",
              '"a |& b &"', "\\&\\> b", "& > log; wait", "a\\ \\&", "$((1 & 3))", '"$(echo "x &> y")"',
              "[ -n 'a&' ]", '"\\" &> x"', "'it'\\''s &> x'", "\\\\'&'", "x=1\\&y=2", "3<&0 4>&-")
    SHELLS = "dash bash zsh mksh lksh yash ksh busybox"

    def test_it_is_told_from_what_only_looks_like_it(self) -> None:
        for text in *self.BOTH, *self.ENDS, *self.OTHERS:
            known = self.BOTH.get(text, self.SHELLS if text in self.OTHERS else "").split()
            for shell in "dash", "bash", "zsh-5.9", "/opt/mksh", "lksh", "yash", "ksh":
                with self.subTest(text=text, shell=shell):
                    why = runmaker4.why_misread(f"prog {text}".encode(), shell)
                    if os.path.basename(shell).partition("-")[0] in known:
                        self.assertEqual(why, "")
                    else:
                        self.assertIn("ends in &, so " if text in self.ENDS else "2>&1", why)

    def test_shells_do_what_is_said(self) -> None:
        """The program's end is waited for, and the file has all that it prints; or this is said."""
        program = "sh -c 'echo out; echo err >&2; echo late; exit 3'"
        script = runmaker4.Processes.SHELL_SCRIPT.decode()

        def fails(shell: str, text: str) -> bool:
            folder = self.dir / f"{shell}.{text[:3].strip()}"
            folder.mkdir()
            words = ["busybox", "sh"] if shell == "busybox" else [shell]
            done = subprocess.run([*words, "-c", script, shell, f"{program} {text}"], check=False, cwd=folder,
                                  capture_output=True, start_new_session=True)
            found = (folder / "log").read_bytes().split() if (folder / "log").exists() else []
            return done.returncode not in (0, 3) or sorted(found) != [b"err", b"late", b"out"]

        shells = filter(shutil.which, self.SHELLS.split())
        pairs = [(shell, text) for shell in shells for text in [*self.BOTH][:3]]
        pairs = [pair for pair in pairs if pair != ("ksh", "&> log")]     # ksh93 of 2012 does not know it
        with futures.ThreadPoolExecutor() as pool:
            for (shell, text), failed in zip(pairs, pool.map(fails, *zip(*pairs))):
                with self.subTest(shell=shell, text=text):
                    why = runmaker4.why_misread(f"{program} {text}".encode(), shell)
                    self.assertEqual(bool(why), failed, why)

    def test_who_adds_jobs_refuses_it_with_a_remedy_and_a_runner_names_it(self) -> None:
        self.write("#RUN shell=dash\nd a\n")
        bash = "#RUN shell=bash\nsim &> log\n#RUN barrier\nsim |& cat\n"
        self.write(bash + "#RUN shell=dash\nsim &> log\n", "list")
        self.write("a\nb\n", "values")
        calls = {("--add", "a", "b &>>log"): "(write >> FILE 2>&1, or #RUN shell=bash above); nothing was ",
                 ("--add", "#RUN shell=bash", "a &>log &"): "(omit the &: -j runs jobs in parallel)",
                 ("--add-list", "list"): "list: line 6: &> does not",
                 ("--add-list", "values", "--template", "a {} >x & > {}.log"): "values: line 1: ends in &",
                 ("--add", "--template", "a {} |& b", ":::", "1"): "(write 2>&1 |, or"}
        for call, ended in self.run_all((RUNSET, "runs.txt", *words) for words in calls):
            with self.subTest(call=call):
                self.assertRefused(ended, calls[call[2:]])
        for words in ("--add", "#RUN shell=bash", "a &> log"), ("--add", "#RUN barrier", "b &>> c"):
            self.assertEqual(self.run_script(RUNSET, "-q", "runs.txt", *words).code, 0)
        self.write("#RUN shell=bash\n. true &> log\n#RUN shell=dash\n. true &>log\n. true &>log\n")
        said = ": runs.txt: line 4: &> does not"
        self.assertRefused(self.run_script(RUNMAKER, "--dry-run", "runs.txt"), said)
        err = self.run_script(RUNMAKER, "-q", "runs.txt").err
        self.assertEqual((err.count(b"&>"), err.count(said.encode())), (1, 1), err)
