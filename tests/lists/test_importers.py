"""runset4.py takes lists of commands, templates and job files; all of an import or nothing."""
import argparse
import contextlib
import itertools
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
import unittest
from collections import Counter
from collections.abc import Mapping
from typing import Any, Callable, Optional

import runmaker4
import runset4
from docs import convert
from tests.support.case import Call, Case
from tests.support.locks import locked
from tests.support.processes import DEADLINE, Ended, wait_until
from tests.support.runs import RunCase
from tests.support.scripts import FULL, PYTHON, ROOT, RUNMAKER, RUNSET
from tests.support.values import Text, as_bytes, present

CONVERT = ROOT / "docs/convert.py"
APPEND_BYTE = (1 << 62) + 1         # locked by who appends to a job file
IDLE = " (no runner is at work)"
SHOWN = "'<%s>'"
FOUR = ". echo a\nd echo b\n! echo c\ne echo d\n"
TOO_LONG = 128 << 10
UTF16 = "echo a\n".encode("utf-16")


class ImportCase(RunCase):

    def assertAdds(self, expected: Text, *args: object, said: bytes = b"", **settings: Any) -> None:
        """runset4.py -q with these arguments succeeds, says just that, and this is what runs.txt is then."""
        ended = self.run_script(RUNSET, "-q", "runs.txt", *args, **settings)
        self.assertEqual((ended.code, ended.out, ended.err), (0, b"", said))
        self.assertEqual(self.read(), as_bytes(expected))

    def assertAllRefused(self, calls: Mapping[Call, str]) -> None:
        """These arguments are refused, each with its words, and there is no runs.txt after that."""
        words = list(calls.values())
        for (call, ended), wanted in zip(self.run_all((RUNSET, "runs.txt", *args) for args in calls), words):
            with self.subTest(args=call[2:]):
                self.assertRefused(ended, "runset4.py: ", wanted)
        self.assertFalse(self.exists("runs.txt"), self.exists("runs.txt") and self.read())

    def converted(self, *args: object) -> Ended:
        """How docs/convert.py ends with these arguments."""
        return self.run_script(PYTHON, CONVERT, *args)

    def assertUsageError(self, start: str, call: Callable[[], object]) -> None:
        """The call finds something that the user can mend, and says so in one line that begins like this."""
        with self.assertRaises(runmaker4.UsageError) as raised:
            call()
        self.assertTrue(str(raised.exception).startswith(start), raised.exception)
        self.assertNotIn("\n", str(raised.exception))


class Lists(ImportCase):
    """--add-list: a job per line."""

    def test_lines_become_jobs_but_blank_ones_and_comments(self) -> None:
        self.write(b"\xef\xbb\xbfecho a\n\n# no job\n \t# nor this\n  \n  echo \xff '\t' # b \necho c",
                   "list")
        self.assertAdds(b". echo a\n.   echo \xff '\t' # b \n. echo c\n", "--add-list", "list")

    def test_directives_stay_what_they_are_and_are_checked(self) -> None:
        self.write("#RUN timeout=3s\necho 1\n#RUN  barrier\necho 2\n", "list")
        added = "#RUN timeout=3s\n. echo 1\n#RUN  barrier\n. echo 2\n"
        self.assertAdds(added, "--add-list", "list")
        filled = added.replace("echo 1", "run 'echo 1' 1").replace("echo 2", "run 'echo 2' 2")
        self.assertAdds(added + filled, "--add-list", "list", "--template", "run {} {#}")
        more = "#RUN barrier check\n. echo 3\n"
        self.assertAdds(added + filled + more, "--add", "#RUN barrier check", "echo 3")
        with open(self.write("#RUN end\n", "list"), "rb") as stdin:
            self.assertAdds(added + filled + more + "#RUN end\n", "--add-list", "-", stdin=stdin)

    def test_directives_that_make_no_sense_are_refused_with_all_else(self) -> None:
        self.write("echo 1\n#RUN barier\n", "list")
        self.assertAllRefused({
            ("--add-list", "list"): "list: line 2: unknown setting 'barier' (",
            ("--add-list", "list", "--template", "run {}"): "list: line 2: unknown setting 'barier' (",
            ("--add", "echo 1", "#RUN slots=x"): "slots= is not a whole number from 1 to 100000: 'x'; ",
            ("--add", "#RUNNING"): "looks like a directive",
            ("--add", "#RUN barrier\n. echo 1"): "not a directive: '#RUN barrier?. echo 1' (one ",
            ("--add", "# run barrier"): "looks like a directive",
            ("--add-list", "/dev/null", "--template", "#RUN slots={}"): "argument --template: slots= is not ",
        })
        self.write("echo 1\n # RUN barrier\necho 2\n", "list")
        self.assertAllRefused({
            ("--add-list", "list"): "list: line 2: looks like a directive",
            ("--add-list", "list", "--template", "run {}"): "list: line 2: looks like a directive",
        })

    def test_what_begins_with_a_state_is_refused(self) -> None:
        self.assertAllRefused({
            ("--add", ". echo hi"): "'. echo hi' is a complete job line, in state . (leave out the state; ",
            ("--add", "echo 1", "x\techo hi"): "is a complete job line, in state x (held) (",
            ("--add-list", "/dev/null", "--template", ". echo {}"): "'. echo {}' is a complete job ",
            ("--add", "--template", "d echo", ":::", "1"): "'d echo' is a complete job line, in state ",
        })
        self.assertAdds(".  . /etc/profile\n. .x\n", "--add", " . /etc/profile", ".x")

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
        limited = "trap '' XFSZ; ulimit -f 3000; exec \"$@\""  # a piece of 1 MiB fits, two do not
        adding = self.command(RUNSET, "runs.txt", "--add-list", "list")
        ended = self.run_script("sh", "-c", limited, "sh", *adding)
        self.assertRefused(ended, "runset4.py: runs.txt: ")
        self.assertEqual(self.read(), as_bytes(before))

    def test_no_signal_cuts_it_in_two(self) -> None:
        lines = 1200
        self.write(f"echo {'y' * 1000}\n" * lines, "list")
        for name, code in ("SIGINT", 128 + signal.SIGINT), ("SIGUSR2", -signal.SIGUSR2):
            interrupting = "import os, signal\nwrite = os.write\nos.write = lambda fd, data: (" \
                           f"os.kill(os.getpid(), signal.{name}), write(fd, data))[1]"
            adding = self.start_patched(interrupting, name, "--add-list", "list", script=RUNSET)
            self.assertEqual(self.finish(adding).code, code)
            self.assertEqual(self.read(name), f". echo {'y' * 1000}\n".encode() * lines)

    def test_what_cannot_be_a_list_is_refused_whole(self) -> None:
        self.write("echo 1\n\necho a\0b\n", "nul")
        self.assertAllRefused({
            ("--add-list", "missing"): "missing: no such file",
            ("--add-list", "nul"): "nul: line 3: ",
            ("--add-list", "nul", "--template", "echo {}\necho"): "--template",
        })

    def test_an_empty_list_adds_no_line_as_with_xargs_r(self) -> None:
        self.write("# nothing\n\n \t\n", "nothing")
        for name in "nothing", "/dev/null", "-":
            ended = self.run_script(RUNSET, "runs.txt", "--add-list", name)
            self.assertEqual((ended.code, self.read()), (0, b""))
            self.assertIn(b"runset4.py: runs.txt: no line added", ended.err)
            ended = self.run_script(RUNSET, "-", "--add-list", name)
            self.assertEqual((ended.code, ended.out), (0, b""))

    def test_what_is_wrong_with_a_list_is_said_with_its_line(self) -> None:
        too_long = "the command is longer than 128 KiB"
        for text, template, expected in ((UTF16, "", "line 1: contains a NUL (save it as text in "),
                                         (UTF16[2:], "", "line 1: contains a NUL (save it as text in "),
                                         (f"echo 1\n# c\necho {'x' * TOO_LONG}\n", "", f"line 3: {too_long}"),
                                         ("echo 1\n" + "x" * 10_000_000, "", "line 2: "),
                                         (f"# {'x' * 3 * TOO_LONG}\necho 1\n", "", "line 1: "),
                                         ("1\n2\n", "{}" + "x" * (TOO_LONG - 1), f"line 1: {too_long}")):
            path = self.write(text, "list")
            with self.subTest(text=text[:80]):
                self.assertListRefused(f"{path}: {expected}", path, template.encode())
        self.assertListRefused("/dev/zero: line 1: ", "/dev/zero")
        self.assertListRefused(f"{self.dir}: is a directory", self.dir)

    def assertListRefused(self, start: str, path: object, template: Optional[bytes] = None) -> None:
        options = argparse.Namespace(sweep=[], add=[], add_list=[str(path)], template=template, colsep=None)
        self.assertUsageError(start, lambda: list(runset4.lines_to_add(options, Counter())))

    def test_lines_of_jobs_are_refused_and_what_is_said_instead_works(self) -> None:
        self.write("R --slave\nx\techo a\n", "list")
        self.assertAllRefused({("--add-list", "list"): "list: line 2: 'x?echo a' is a complete job "})
        self.write(". ./env.sh; prog\n", "list")
        self.assertAllRefused({("--add-list", "list"): "if it is a command, put a blank before it"})
        self.assertAdds(". printf '<%s>' '. ./env.sh; prog'\n",
                        "--add-list", "list", "--template", "printf '<%s>'")
        self.write(" . ./env.sh; prog\n", "list")
        self.write("# no newline")
        self.assertAdds("# no newline\n.  . ./env.sh; prog\n", "--add-list", "list")

    def test_the_longest_command_runs(self) -> None:
        command = b"echo " + b"x" * (runmaker4.LONGEST_COMMAND - 5)
        self.write(command + b"\n", "list")
        self.assertAdds(b". %b\n" % command, "--add-list", "list")
        self.assertEqual(self.run_jobs("-q").code, 0)
        self.write(command + b"x\n", "list")
        self.assertRefused(self.run_script(RUNSET, "runs.txt", "--add-list", "list"), "line 1")


class Said(ImportCase):
    """It says in a line on stderr how many lines were added, and which no runner sees."""

    def setUp(self) -> None:
        super().setUp()
        self.write("echo 1\n# c\n\necho 2\n", "list")
        self.write("T:\na: echo c\na: echo d\nend\n", "configuration")
        self.write(self.converted("netjobs", "configuration").out, "tests")
        self.write("[control]\nexecutable: d\n", "job")
        self.write(self.converted("fjd", "job").out, "queue")

    def test_how_many_lines_were_added_is_said(self) -> None:
        calls = {("--add", "echo 1"): "1 line added",
                 ("--add-list", "list"): "2 lines added, 1 comment, 1 blank",
                 ("--add", "--template", "echo", *[":::", "1", "2", "3"] * 2): "9 lines added",
                 ("--add", "echo 1", "#RUN", "#RUN barrier"): "3 lines added",
                 ("--add-list", "tests"): "5 lines added, 1 comment",
                 ("--add-list", "queue", "--new"): "1 line added",
                 ("--add-list", "./queue", "--new"): "0 lines added (1 equal one in the file already)"}
        for args, said in calls.items():
            ended = self.run_script(RUNSET, "runs.txt", *args)
            with self.subTest(args):
                self.assertEqual((ended.code, ended.out), (0, b""))
                # the lock file can be two seconds old by now: see the next test
                self.assertEqual(ended.err.replace(as_bytes(IDLE), b""),
                                 as_bytes(f"runset4.py: runs.txt: {said}\n"))
        self.assertEqual(self.states(), "." * 16)

    def test_that_no_runner_is_at_work_is_said_only_where_that_is_so(self) -> None:
        """To add a line, the lock file must be open: then it is known."""
        file = self.write("d true\n")
        lock_fd = runmaker4.open_lock_file_of(str(file))
        self.addCleanup(os.close, lock_fd)
        with locked(lock_fd, runmaker4.PRESENCE_BYTES + 7):
            ended = self.run_script(RUNSET, "runs.txt", "--add", "echo a")
            self.assertEqual(ended.err, b"runset4.py: runs.txt: 1 line added\n")
        # a --follow runner that has waited for the file has not seen it yet; at its exit a runner touches
        # the lock file
        hour = time.time() + 3600
        for line, lock_file_time, idle in (". true", hour, ""), (". true", 0, IDLE), ("d true", hour, IDLE):
            with self.subTest(line=line, lock_file_time=lock_file_time):
                self.write(f"{line}\n")
                os.utime(self.dir / ".runs.txt.lock", (lock_file_time, lock_file_time))
                ended = self.run_script(RUNSET, "runs.txt", "--add", "echo a")
                self.assertEqual(ended.err, as_bytes(f"runset4.py: runs.txt: 1 line added{idle}\n"))

    def test_jobs_that_are_added_below_the_end_are_said(self) -> None:
        added = ("--add", "echo a"), ("--add-list", "list"), ("--add-list", "tests"), ("--add-list", "queue")
        for args in added:
            self.write("d echo 0\n#RUN \t end\nd echo 1\n#RUN end\n")
            ended = self.run_script(RUNSET, "-q", "runs.txt", *args)
            with self.subTest(args=args):
                self.assertEqual((ended.code, ended.err.count(b"\n")), (0, 1))
                self.assertIn(b"runset4.py: runs.txt: line 2 is a #RUN end; ", ended.err)
                self.assertIn(".", self.states())

    def test_settings_that_are_for_no_job_are_named(self) -> None:
        no_job = "applies to no job (only to jobs added below it)"
        for added, said in (
                (["#RUN memory=50M"], [f"line 1 {no_job}", "1 line added"]),
                (["#RUN barrier", "#RUN timeout=1m memory=50M"],
                 ["line 1 applies to no job", f"line 3 {no_job}",
                  "2 lines added"]),
                (["#RUN timeout=1m"],
                 ["line 4 clears memory=50M of line 3, which applies to no job", f"line 4 {no_job}",
                  "1 line added"]),
                (["a", "b"], ["2 lines added, with timeout=1m of line 4"]),
                (["#RUN", "c"], ["2 lines added"]),
                (["d"], ["1 line added"])):
            ended = self.run_script(RUNSET, "runs.txt", "--add", *added)
            expected = "".join(f"runset4.py: runs.txt: {text}\n" for text in said)
            self.assertEqual((ended.code, ended.err.decode().replace(IDLE, "")), (0, expected))
        ended = self.run_script(RUNMAKER, "--dry-run", "runs.txt")
        self.assertEqual([line.split(b": ")[2] for line in ended.err.splitlines()[:2]],
                         [b"line 1 applies to no job",
                          b"line 4 clears memory=50M of line 3, which applies to no job"])

    def test_a_file_that_is_gone_when_all_is_appended_may_have_been_replaced(self) -> None:
        file = runmaker4.JobFile(str(self.dir / "none"), say=self.fail)
        with self.assertRaises(runmaker4.FileChangedError):
            runset4.say_jobs_below_end(file)


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
        parsed = runset4.parse_template(os.fsdecode(as_bytes(template)))
        return runset4.fill_template(parsed, 1, [as_bytes(value)])

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
        theirs = self.run_script("parallel", "--will-cite", "-j1", "-a", "list", show,
                                 env={"HOME": str(self.dir)})
        ours = [subprocess.check_output(["sh", "-c", self.fill(show, value)]) for value in self.VALUES]
        self.assertEqual(theirs.out, b"".join(ours))

    def test_what_is_no_place_stays_and_without_a_place_for_the_line_it_comes_last(self) -> None:
        for template, value, command in (
            ("awk '{print $1}' {}} %d %% {} {a} {%}", "f", "awk '{print $1}' f} %d %% f {a} {%}"),
            ("echo", "a b", "echo 'a b'"), ("echo {#}", "a", "echo 1 a"), ("echo {/}", "b/a", "echo a"),
            ("echo {} {#}", "{#} {}", "echo '{#} {}' 1"),
        ):
            with self.subTest(template):
                self.assertEqual(self.fill(template, value), command.encode())

    def test_any_bytes_reach_the_command_as_they_are(self) -> None:
        random_, alphabet = random.Random(4), bytes([*range(1, 10), *range(11, 256), *b"'\"$`\\ *"])
        values = [bytes(random_.choices(alphabet, k=30)) for _ in range(100)]
        script = b"\n".join(self.fill("printf '%s\\n' {}", value) for value in values)
        self.assertEqual(subprocess.run(["sh"], input=script, stdout=subprocess.PIPE, check=True).stdout,
                         b"".join(b"%b\n" % value for value in values))

    def test_only_the_lines_that_are_added_have_a_number(self) -> None:
        self.write("it's a b.c\n\nx/y\n", "list")
        self.assertAdds(". n 1 'it'\"'\"'s a b' 50%\n. n 2 x/y 50%\n",
                        "--add-list", "list", "--template", "n {#} {.} 50%")


class QuotedPlaces(ImportCase):
    """A place within quotes of the template is refused: its value could be run."""
    REFUSED = (
        'show "{}"', "show '{}' b", 'cat "dir/{}.txt" > "{/.}.out"', "sh -c 'show {}'", 'sh -c "show {}"',
        "awk '{print {}}' f", "ssh host 'ls {}'", "echo $'a{}'", "echo it's {}", "echo 'a", '"a `b {}`"',
        '"\\{}"',
        # without any quotes, or after closed ones
        "echo `cat {}`", "echo `date` {}", "echo $(({} + 1))", "echo $[{} + 1]", "echo \\{}", "echo ${1}",
        "echo ${x:{}}", "echo ${x#'a'} {}", "echo $'a' {}", 'echo $"a" {}', 'echo "$(date)" {}',
        # these are right, but nothing here knows enough of shells to see it
        'echo "$(cat {})"', '"x$(echo "y" {})z"', "echo # it's {}",
        # patterns, and arithmetic, which a shell evaluates after it has taken quotes away
        "ls run[{}]", "x[{}]=1", "echo [a{1}]",
        # homes, and paths of commands, also of quoted text
        "ls ~{}", "~ann{1}", "PATH=a:~{}", "echo ={}",
    )
    TAKEN = (
        "show {} b", 'cat "dir/"{}".txt" > {/.}".out"', "echo 'a '{}' b '{}' c'", "sh -c 'show \"$1\"' sh {}",
        "bash -lc 'n {#} \"$1\" \"$2\"' sh {1} {2.} >log", 'sh -c "show \\"\\$1\\"" sh {}',
        "case {} in a) echo {};; esac", "echo \\\\{}", "echo \\${}", "echo $(cat {})", "echo it\\'s {}",
        "echo \"{#}\" '{#}' {}", 'echo "a\\"" {} "b"', 'cd "$HOME/${x%.*}" && echo ${x:-y} $? {}',
        '(cd {} && echo "(") <{}', "find . -exec cat {} \\;", 'n={} sh -c "echo \\$n"', "awk '{print $1}' {}",
        "[ {} = a ]", "echo '['{}]", "ls run[12]{}", "echo \\[{}]", "grep a$", "cp a~{} ~/{}",
        "'~'{} x={} '='{}",
    )
    HOSTILE = (b"$(: >pwned)", b"`: >pwned`", b"'; : >pwned; '", b'"; : >pwned; "', b"x[$(: >pwned)]",
               b"\\'; : >pwned #", b'\\"; : >pwned #', b")`: >pwned`", b"'\"`: >pwned`\"'", b"$(: >pwned) #")
    PARTS = (*"\"\"''`)(\\$ a#1;+[]<~", "$(", "$((", "))", "{}", "{}", "{}", "echo ", "$'", "x[")

    def refusal(self, template: str) -> str:
        """Why a template is refused; '' if it is not."""
        try:
            runset4.parse_template(template)
        except argparse.ArgumentTypeError as fault:
            return str(fault)
        return ""

    def test_such_a_template_is_refused_with_one_message(self) -> None:
        for template in self.REFUSED:
            with self.subTest(template):
                refusal = self.refusal(template)
                self.assertRegex(refusal, r"^(\{[^ ]*\}|a value at the end) is within quotes, or after .* "
                                          r"\(remove your quotes")

    def test_the_place_that_is_wrong_is_named(self) -> None:
        for template, place in (('sim --out "$(basename {beta})"', "{beta}"), ("sim `f {a b/.}`", "{a b/.}"),
                                ('echo "{n}" "$(date)"', "{n}"), ('"{#}" "$(date)"', "a value at the end"),
                                ('echo "$(date)"', "a value at the end"), ("echo it's", "a value at the end"),
                                ('"{}" \'{1}\'', "{}"), ('{1} "{2.}"', "{2.}"), ('echo {} "$X{#}"', "{#}"),
                                ("sh -c 'sim {#}>log' {}", "{#}")):
            with self.subTest(template):
                self.assertTrue(self.refusal(template).startswith(f"{place} is within quotes, or after "))
        self.write("beta\n1\n", "t.csv")
        self.assertAllRefused({
            ("--add-list", "t.csv", "--template", template): f"t.csv: line 1: {place} is within quotes"
            for template, place in (("sim ${beta}", "{beta}"), ("sim {beta} '{beta/.}'", "{beta/.}"),
                                    ('"{beta}"', "{beta}"))
        })

    def test_others_are_taken(self) -> None:
        for template in self.TAKEN:
            with self.subTest(template):
                self.assertEqual(self.refusal(template), "")

    EVALUATED = (
        "[ -v {} ] && show", "test -v {}", "[ a = b -o -v {} ]", "[[ a && -v {} ]]",
        "if [ -v {} ]; then :; fi",
        "printf -v {} x", "printf -v{} x", "read {} <f", "read -r -a {} <f", "while read {}; do :; done",
        "A=1 read {}", "mapfile {} <f", "getopts a {}", "declare {}", "declare -i n={}", "local -n n={}",
        "readonly {}", "export {}", "unset {}", "let {}", "let n={}", "trap {} EXIT", "eval {}",
        "true; eval x{}", "command eval {}", "sh -c {}", "nice bash -lc {}", "ssh host sh -e -c {}",
        "[[ {} -gt 3 ]]",
        "[[ 3 -gt {} ]]", "[ {} -gt 3 ]", "n={}; echo $((n*2))", "n={} && echo $[n+1]", "n={}; (( n > 3 ))",
        "n={}; [[ n -gt 3 ]]", "n={}; [[ 3 -lt $n ]]", "n={}; let 'm=n'", "n={}; echo ${a[n]}",
        "n={}; echo ${x:n:2}", 'n={} bash -c "echo \\$((n))"',
        "\\eval {}", "'eval' {}", "\\trap {} EXIT", "compgen -W {}", "shift {}", "ulimit -n {}",
        "print -v {} x", "sh -c -- {}", "fish -c {}", "flock lock -c {}", "bash -o pipefail -ec {}",
        "/bin/sh -e -c {}", "flock -w 10 lock -c {}", "su - bob -c {}", "nice bash --norc -c x{}",
        "bash 2>&1 >out -c {}", "bash $options -c {}", "script -qc {} out", "su bob -c {}",
        "set -- {}; echo $(($1))", "declare -i n; n={}", "integer n; m=1 n={}", "a[1]={}; echo $((a[1]))",
        "n+={}; echo $((n))", "n={}; echo ${!n}", "n={}; echo ${n@P}",
    )
    # a sibling that evaluates nothing
    NOT_EVALUATED = (
        "echo read {}", "sim --unset {}", "sim -v {}", "export v={}; sim $v", "declare v={}", "ssh -c aes {}",
        "push -c {}", "bash -c 'show \"$1\"' sh {}", "[ {} = a ]", "[ -n {} ] && sim {}", "test -f {}",
        "n={}; echo \"$n\" $((1+2))", "a={}; b=$((c+1)); echo \"$a\"", "f={}; echo \"$f\" && [[ -n $f ]]",
        "n={} sh -c 'echo \"$n\"'", "printf %s {}", "cd {} && make", "ls [ab] {}",
        "'retrieval' {}", "flock lock sim {}", "bash run.sh -c {}", "./run.sh -c {}", "flock lock gzip -c {}",
        "flock -w 10 lock gzip -c {}", "sh -e; sim -c {}", "script -q {}", "print {}",
        "set -- {}; sim \"$1\" $((1+2))",
        "declare -i k; n={}; sim \"$n\"", "a[1]={}; sim \"${a[1]}\"", "n={}; sim \"${n#x@P}\"",
    )

    def test_where_a_shell_evaluates_it_a_value_is_a_number_or_a_name(self) -> None:
        for template in map(str.encode, self.EVALUATED):
            with self.subTest(template):
                for value in b"17", b"-1.5", b"name":
                    runset4.fill_template(template, 1, [value])
                for value in self.HOSTILE:
                    with self.assertRaisesRegex(ValueError, r"\Athe shell would evaluate '.*' \(pass"):
                        runset4.fill_template(template, 1, [value])
        for template in map(str.encode, self.NOT_EVALUATED):
            with self.subTest(template):
                runset4.fill_template(template, 1, [self.HOSTILE[0]])
        self.write("n\n1\nx[$(id)]\n", "t.csv")
        self.assertAllRefused({("--add-list", "t.csv", "--template", "n={n}; echo $((n))"):
                               "t.csv: line 3: the shell would evaluate 'x[$(id)]' (pass"})

    def test_it_is_refused_in_one_line_and_nothing_is_added(self) -> None:
        self.assertAllRefused({
            ("--add-list", "/dev/null", "--template", "sh -c 'show {}'"): "argument --template: {} is ",
            ("--add", "--template", 'n "{1}"', ":::", "1"): "argument --template: {1} is within quotes",
        })

    def test_no_value_is_run_whatever_the_template(self) -> None:
        """Of random templates, those that are taken, in each shell that is here."""
        random_ = random.Random(26)
        shells = list(filter(shutil.which, ("dash", "bash"))) or ["sh"]
        taken = list(self.TAKEN)
        while len(taken) < (400 if FULL else 40):
            template = "echo {}" + "".join(random_.choices(self.PARTS, k=random_.randrange(2, 12)))
            taken += [template] if not self.refusal(template) and set(template) & set("\"'`\\$(") else []
        for template in taken:
            values = self.HOSTILE if FULL else random_.sample(self.HOSTILE, 2)
            for shell, value in itertools.product(shells, values):
                command = runset4.fill_template(as_bytes(template), 1, [value], [value] * 9)
                subprocess.run([shell, "-c", command], cwd=self.dir, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
                               timeout=DEADLINE)
                self.assertFalse((self.dir / "pwned").exists(), (shell, command))


class BareWords(ImportCase):
    """A value is text wherever a template has it, also one that needs no quotes elsewhere."""
    # and what a shell prints, with % for the value
    PRINTED = {
        "{}>f; cat f": "%", "{}>>g; cat g; : >g": "%", "1{}>f; cat f": "1%", "{}2>f; cat f": "%2",
        "{}</dev/null": "%",
        "{}{}>f; cat f": "%%", "{} 2>&1": "%", "${X}{}": "dir%", "$X{}": "dir%",
        "$X:{}": "dir:%", '"$X"{}': "dir%", "$1{}": "%", "$?{}": "0%", "$#{}": "0%", "b~{}": "b~%",
        "{}=x": "%=x", "--x={}": "--x=%", "a\\\\{}": "a\\%", "{}#": "%#", "{}'b'\"c\"": "%bc",
        "; Y={}; printf '<%s>' \"$Y\"": "><%",
        "; case x{} in {}) ;; *) printf '<%s>' {};; esac": "><%",
        "; for i in {}; do printf '<%s>' \"$i\"; done": "><%",
    }
    VALUES = ("1", "22", "a", "root", "esac", "=ls", "a:=ls", "x=1", ":h", "a,b", "1..3", "-n", "_b", "/x",
              "a b", "*x", "~", "it's", "{a,b}", "\\", "#x", ">f", "&",
              *map(os.fsdecode, QuotedPlaces.HOSTILE[:4]))

    def fill(self, template: str, *values: str) -> str:
        filled = [os.fsencode(value) for value in values]
        parsed = runset4.parse_template(template)
        return os.fsdecode(runset4.fill_template(parsed, 1, filled, filled))

    def test_each_shell_prints_the_value(self) -> None:
        chance = random.Random(9)
        for shell in filter(shutil.which, ("dash", "bash", "zsh", "yash", "mksh")):
            script, expected = "X=dir\n", ""
            for template, printed in self.PRINTED.items():
                for value in self.VALUES if FULL else ["1", *chance.sample(self.VALUES, 5)]:
                    script += f"( {self.fill(f'printf {SHOWN} {template}', value)}; echo )\n"
                    expected += f"<{printed.replace('%', value)}>\n"
            ended = subprocess.run([shell], input=as_bytes(script), cwd=self.dir, stdout=subprocess.PIPE,
                                   check=False)
            with self.subTest(shell=shell):
                self.assertEqual(os.fsdecode(ended.stdout).split("\n"), expected.split("\n"))
        self.assertEqual(sorted(os.listdir(self.dir)), ["f", "g"])

    def test_in_the_language_of_some_shells(self) -> None:
        for command, wanted in (
            (self.fill("[[ {} = x ]]", "-n"), 1), (self.fill("[[ axb =~ {} ]]", "a.b"), 1),
            (self.fill("echo 2>&{}", "-n"), 1), (self.fill("echo {{}}>/dev/full", "x"), 1),
            (self.fill("set -- {{}}; test $#", "a,b"), 0), (self.fill("set -- {1..{}}; test $# = 3", "3"), 0),
        ):
            with self.subTest(command):
                self.assertEqual(subprocess.call(["bash", "-c", command], stderr=subprocess.DEVNULL), wanted)

    def test_the_start_of_a_command(self) -> None:
        for template, value, command in (
            ("{}", "x=1", "'x=1'"), ("a && {} b", "do", "a && 'do' b"), ("A=1 {} b", "x+=1", "A=1 'x+=1' b"),
            ("if {}; then a; fi", "x=1", "if 'x=1'; then a; fi"), ("({} b)", "if", "('if' b)"),
            ("{}=1 sim", "beta", "beta=1 sim"), ("sim {}", "x=1", "sim x=1"), ("{} b", "ifs", "ifs b"),
            ("{}-b", "if", "if-b"), ("echo {#} {#}>f", "a", "echo '1' '1'>f a"),
            ("echo '{#}' {}", "1", "echo '1' 1"),
        ):
            with self.subTest(template):
                self.assertEqual(self.fill(template, value), command)

    def test_values_stay_bare_where_that_is_enough(self) -> None:
        for template in ("m --beta={} -n {} >out_{}.txt 2>&1", "cp $HOME/{} ~/d/{}.x", "a {} | b {}; (c {})",
                         "PATH=a:{} sim >{} 2>{}", '"$X"{} ${X}.{}'):
            for value in "1", "a", "0.5":
                with self.subTest(template):
                    self.assertEqual(self.fill(template, value), template.replace("{}", value))


class Columns(ImportCase):
    """--template: {1}, {2}, ... are the columns of a line."""

    def test_blanks_separate_columns(self) -> None:
        self.write("1 a.x\t5%\n  2   it's/b.y  z more\n", "list")
        template = "n {1}.{2.} {1} {3} {2} {2/.} {} {#}"
        self.assertAdds(". n 1.a 1 5% a.x a '1 a.x\t5%' 1\n. n 2.'it'\"'\"'s/b' 2 z 'it'\"'\"'s/b.y' b "
                        "'  2   it'\"'\"'s/b.y  z more' 2\n", "--add-list", "list", "--template", template)

    def test_another_separator_is_a_regular_expression(self) -> None:
        self.write("a b, c/d.e ,\r\n\"a\nb\",,\n", "list")
        given = "--add-list", "list", "--colsep", ",", "--template", "n {1}"
        self.assertAllRefused({given: "list: line 3: a value contains a newline",
                               (*given, "--template", "m {1}"): "two --template (give one)"})
        self.write("a b, c/d.e ,\r\n", "list")
        template = "n {1} {2/.} {3} {2.} {2//} {2/}"
        self.assertAdds(". n 'a b' d '' c/d c d.e\n",
                        "--add-list", "list", "--colsep", ",", "--template", template)
        self.write("a b\tc\\d|e", "list")
        for colsep, third in (r"\t", b"'a b'\n"), (r"\|", b"'a b\tc\\d'\n"), (r"[\t|]|\\\\", b"'a b'\n"):
            self.run_script(RUNSET, "runs.txt", "--add-list", "list", "--colsep", colsep, "--template", "{1}")
            self.assertEqual(self.read().splitlines(True)[-1], b". " + third)

    def test_a_place_without_a_column_is_refused(self) -> None:
        self.write("1 2\n# 3\n4\n", "list")
        from_list = "--add-list", "list", "--template"
        self.assertAllRefused({
            (*from_list, "n {1} {2}"): "list: line 3: no value for {2} (1 column; ",
            (*from_list, "{12/.}"): "list: line 1: no value for {12} (2 columns; ",
            (*from_list, "n {0}"): "list: line 1: no value for {0} (2 columns; ",
            ("--add", "--template", "n {0}", ":::", "1"): "no value for {0} (1 column; ",
            (*from_list, "{1}", "--colsep", "(,)|;"): "--colsep: not a regular expression",
            (*from_list, "n", "--colsep", "||"): "--colsep: not a regular expression",
            (*from_list, "n", "--colsep", "[,"): "--colsep: not a regular expression",
            (*from_list, "n", "--colsep", ","): "--colsep requires --add-list, and --template with a column",
            ("--add-list", "list", "--colsep", ","): "--colsep requires --add-list, and --template with ",
            ("--add", "--template", "n {3}", ":::", "1", ":::", "2"): "no value for {3} (2 columns; ",
        })


class Tables(ImportCase):
    """--template: {NAME} is the column of that name, and the first row has the names."""
    TABLE = b"\xef\xbb\xbfbeta,n,file name\r\n0.1,16,\"a, \"\"b\"\"\"\r\n\r\n 0.2 , 32 ,\r\n"

    def test_names_take_the_columns_of_a_table_as_spreadsheets_write_it(self) -> None:
        self.write(self.TABLE, "params.csv")
        self.write(self.TABLE.replace(b",", b"\t"), "PARAMS.TSV")
        self.write(b"#RUN slots=2\nbeta n\n 0.1\t16\n0.2 32\n", "list")
        template = "sim --beta={beta} -n {2} {n} {file name/.} {#} {a,b} {1..3} '{print}' ${HOME}"
        expected = (". sim --beta=0.1 -n 16 16 'a, \"b\"' 1 {a,b} {1..3} '{print}' ${HOME}\n"
                    ". sim --beta=0.2 -n 32 32 '' 2 {a,b} {1..3} '{print}' ${HOME}\n")
        self.assertAdds(expected, "--add-list", "params.csv", "--template", template)
        expected += expected.replace(",", "\t").replace("{a\tb}", "{a,b}")
        self.assertAdds(expected, "--add-list", "PARAMS.TSV", "--template", template)
        expected += "#RUN slots=2\n. sim 16 0.1\n. sim 32 0.2\n"
        self.assertAdds(expected, "--add-list", "list", "--template", "sim {n} {1}")

    def test_a_template_that_does_not_fit_the_table_is_refused(self) -> None:
        self.write("beta,n,n\n0.1,16,1\n", "t.csv")
        self.write("beta,n\n0.1,16\n0.2\n", "short.csv")
        self.write("beta n\n0.1 16 3\n", "long")
        self.write('beta\n"0.1', "open.csv")
        calls = {("t.csv", template): words for template, words in (
            ("sim {alpha}", "t.csv: line 1: no columns of the name in {alpha} (columns: beta, n, n; "),
            ("sim {n}", "2 columns of the name in {n} (columns: beta, n, n;"),
            ("sim {beta} '{n}'", "t.csv: line 1: {n} is within quotes"),
            ("CUDA_VISIBLE_DEVICES={%} train {}", "(write $RUNMAKER4_SLOT)"),
            *((f"to {{{place}}}", "no column") for place in ("= s/x/y/ =", "-1", "+/", "0#")),
        )}
        calls.update({("short.csv", "sim {1}"): "short.csv: line 3: has 1 column, and the first row 2",
                      ("long", "sim {beta}"): "long: line 2: has 3 columns, and the first row 2",
                      ("open.csv", "sim {beta}"): "open.csv: line 2: not CSV: "})
        self.assertAllRefused({("--add-list", name, "--template", template): words
                               for (name, template), words in calls.items()})
        sweep = "--add", "--template", "sim {beta} {1}", ":::", "1"
        self.assertAllRefused({sweep: "columns: none has a name"})

    def test_a_row_that_looks_like_a_comment_is_a_job_and_said_to_be_one(self) -> None:
        self.write("beta,n\n0.1,10\n#0.2,20\n", "params.csv")
        self.write("# colours\n#ff0000\n#00ff00\n", "list")
        for name, template, jobs, said in (
            ("params.csv", "sim {beta} {n}", ". sim 0.1 10\n. sim '#0.2' 20\n",
             "2 lines added, 1 comment-like job"),
            ("list", "paint {}", ". paint '# colours'\n. paint '#ff0000'\n. paint '#00ff00'\n",
             "3 lines added, 3 comment-like jobs"),
        ):
            ended = self.run_script(RUNSET, "runs.txt", "--add-list", name, "--template", template)
            self.assertEqual((ended.code, self.read()), (0, jobs.encode()))
            self.assertRegex(ended.err, rf"^runset4.py: runs.txt: {said}( \(|\n)".encode())
            (self.dir / "runs.txt").unlink()

    def test_a_table_with_semicolons_or_of_json_is_refused_with_the_way_to_take_it(self) -> None:
        self.write("beta;n\n0,1;10\n0,2;20\n", "params.csv")
        templates = "sim {beta} {n}", "sim {1} {2}", "sim {1}"
        self.assertAllRefused({("--add-list", "params.csv", "--template", template): "--colsep ';')"
                               for template in templates})
        self.assertAdds(". sim 0,1 10\n. sim 0,2 20\n", "--add-list", "params.csv", "--colsep", ";",
                        "--template", "sim {beta} {n}")
        (self.dir / "runs.txt").unlink()
        self.write(b"\xef\xbb\xbfsep=;\r\nbeta;n\r\n0,1;\"a;b\"\r\n", "excel.csv")     # as Excel writes it
        self.assertAdds(". sim 0,1 'a;b'\n", "--add-list", "excel.csv", "--template", "sim {beta} {n}")
        (self.dir / "runs.txt").unlink()
        self.write("sep=;", "excel.csv")
        self.assertAdds("", "--add-list", "excel.csv", "--template", "sim {beta} {n}")
        self.write('{"beta": 0.1, "n": "a b"}\n{"beta": 0.2, "n": "c,d"}\n', "list")
        for template in "sim {beta}", "sim {}":
            refused = self.run_script(RUNSET, "runs.txt", "--add-list", "list", "--template", template)
            self.assertRefused(refused, "list: line 1: is JSON", "jq -rs")
        if not shutil.which("jq"):
            self.skipTest("jq is not installed, so the line in the message is not run")
        (self.dir / "runs.txt").unlink()
        way = present(re.search(r"jq -rs .* > LIST.csv", refused.err.decode()))[0].replace("LIST", "list")
        self.assertEqual(self.run_script("sh", "-c", way).code, 0)
        self.assertAdds(". sim 0.1 'a b'\n. sim 0.2 c,d\n", "--add-list", "list.csv", "--template",
                        "sim {beta} {n}")

    def test_a_quote_that_is_text_joins_no_rows(self) -> None:
        joined = 'not CSV: a " joins several rows (if a " is text: --colsep with a regular'
        tables = {
            "last.tsv": ('id\tnote\n1\t"a\n2\tb\n3\tc"\n', f"line 2: {joined}"),
            "first.tsv": ('id\tn\n"a\t1\n5"\t2\n', f"line 2: {joined}"),
            "middle.csv": ('id,n,note\n1,2,x\n2,"3,y\n3,4",z\n', f"line 3: {joined}"),
            "header.tsv": ('id\t"note\n1\ta\n2\tb"\n', f"line 1: {joined}"),
            "single.csv": ('id\n"a\nb"\n', f"line 2: {joined}"),
            "open.tsv": ('id\tnote\n1\ta\n2\t"b\n3\tc\n', "line 3: not CSV: unexpected end of data ("),
            "other.csv": ('id\tn\n"1\t2\n3"\t4\n', "line 2: not CSV: "),
        }
        for name, (text, _) in tables.items():
            self.write(text, name)
        self.assertAllRefused({("--add-list", name, "--template", "sim {1}"): f"{name}: {said}"
                               for name, (_, said) in tables.items()})
        self.assertAdds(". sim 1 '\"a'\n. sim 2 b\n. sim 3 'c\"'\n",
                        "--add-list", "last.tsv", "--colsep", r"\t", "--template", "sim {id} {note}")

    def test_a_quoted_cell_can_have_several_lines(self) -> None:
        self.write('id,note,n\n1,"a\n\nb",1\n2,"x, y\nz",2\n"3",5" e,"3"\n', "t.csv")
        self.assertAdds(". n 1 1\n. n 2 2\n. n 3 3\n", "--add-list", "t.csv", "--template", "n {id} {n}")

    def test_random_tables_lose_no_row(self) -> None:
        random_ = random.Random(63)
        taken = 0
        for _ in range(2000):
            width, colsep = random_.randrange(1, 4), random_.choice("\t,;")
            cells = random_.choices(("x", '"x', 'x"', '"x"', '5" x', '"x y', '""x'), (9, 2, 2, 1, 1, 1, 1),
                                    k=width * random_.randrange(2, 6))
            cells[:width] = "h" * width
            rows = [colsep.join(cells[start:start + width]) for start in range(0, len(cells), width)]
            source = runset4.Source(str(self.write("".join(f"{row}\n" for row in rows), "t")))
            with contextlib.suppress(ValueError):
                lines = list(runset4.lines_of_table(
                    source, b"sim {1}", colsep, itertools.count(1), Counter()))
                self.assertEqual(len(lines), len(rows), rows)
                taken += any('"' in row for row in rows)
        self.assertGreater(taken, 100)

    def test_rows_of_empty_cells_are_blank(self) -> None:
        for colsep in ",", ";", "\t", r"\|", r"\s*;\s*":
            mark = colsep.strip(r"\s*") or colsep
            self.write("dir,n\na,1\n,\n , \n\n,2\n,\n".replace(",", mark), "list")
            with self.subTest(colsep):
                ended = self.run_script(RUNSET, "-", "--add-list", "list", "--colsep", colsep,
                                        "--template", "rm -rf keep/{dir}; sim {n}")
                self.assertEqual(ended.out, b". rm -rf keep/a; sim 1\n. rm -rf keep/''; sim 2\n")
        self.write('a,b\n1,2\n"",""\n," "\n', "t.csv")
        fill = "runs.txt", "--add-list", "t.csv", "--template", "sim {a} {b}"
        self.assertIn(b": 2 lines added, 1 blank", self.run_script(RUNSET, *fill).err)
        self.assertEqual(self.read(), b". sim 1 2\n. sim '' ' '\n")

    def test_outer_blanks_stay_within_quotes(self) -> None:
        for mark in ",", "\t", " ":
            self.write('" name ",n\n" x ",1\n" a""b",  "2 "\n y , 3 \n'.replace(",", mark)
                       if mark != " " else '"name" n\n" x " 1\n" a""b" "2 "\ny 3\n', "list")
            with self.subTest(mark):
                ended = self.run_script(RUNSET, "-", "--add-list", "list", "--colsep", mark,
                                        "--template", "n {name} {n}")
                self.assertEqual(ended.out, b". n ' x ' 1\n. n ' a\"b' '2 '\n. n y 3\n")

    def test_blanks_of_other_scripts_are_values(self) -> None:
        """A row of them is no blank one, in a table as in a list."""
        self.write("name,v\n\u3000,\na\u00a0,1\n", "t.csv")
        self.assertAdds(". n '\u3000' ''\n. n 'a\u00a0' 1\n",
                        "--add-list", "t.csv", "--template", "n {name} {v}")

    def test_a_name_can_be_a_number_or_a_hash(self) -> None:
        self.write("#,0,1,2,b\n17,a,day1,day2,x/y.z\n", "t.csv")
        fill = "--add-list", "t.csv", "--template"
        self.assertAdds(". sim y 17 a day1 day2 a day1 x/y.z\n",
                        *fill, "sim {b/.} {#} {0} {1} {2} {0/} {1.} {5}")
        self.write("")
        self.assertAdds(". sim 1 '#' 0\n. sim 2 17 a\n", *fill, "sim {#} {1} {2}")
        self.write("")
        os.unlink(self.dir / "runs.txt")
        self.assertAllRefused({(*fill, "sim '{#}' {b}"): "t.csv: line 1: {#} is within quotes"})

    def test_a_value_can_begin_with_a_hash_and_what_is_skipped_is_counted(self) -> None:
        self.write("#notes#\n\na.dat\n# b\n", "list")
        fill = "runs.txt", "--add-list", "list", "--template", "wc {}"
        self.assertEqual(self.run_script(RUNSET, *fill).err,
                         b"runset4.py: runs.txt: 3 lines added, 2 comment-like jobs, 1 blank\n")
        self.assertEqual(self.read(), b". wc '#notes#'\n. wc a.dat\n. wc '# b'\n")

    def test_a_dash_as_the_file_prints_the_lines(self) -> None:
        self.write("1\n2\n", "list")
        ended = self.run_script(RUNSET, "-", "--add-list", "list", "--template", "n {}")
        self.assertEqual((ended.code, ended.out, ended.err), (0, b". n 1\n. n 2\n", b""))
        self.assertFalse(self.exists("-"))
        self.assertEqual(self.run_script(RUNSET, "-", "--add", "a\rb").out, b". a\rb\n")

    def test_lines_of_scripts_and_of_make_are_refused(self) -> None:
        for text, words in (("if test -e a; then\necho a\nfi\n", "line 3: is a part of a script"),
                            ("else echo a\n", "line 1: is a part"),
                            ("make[1]: Entering directory '/'\n", "of make")):
            self.write(text, "list")
            self.assertAllRefused({("--add-list", "list"): words})
        self.write("if test -e a; then echo a; fi\ndone-with-it\n", "list")
        self.assertAdds(". if test -e a; then echo a; fi\n. done-with-it\n", "--add-list", "list")


class OnlyNewJobs(ImportCase):
    """--new adds what the file lacks, as the file means its commands."""

    def test_a_command_line_can_name_jobs_that_the_file_has(self) -> None:
        self.write("d echo a\n")
        self.assertAdds("d echo a\n. echo b\n. echo b\n", "--new", "--add", "echo b", "echo a", "echo b")
        self.assertAdds("d echo a\n. echo b\n. echo b\n. echo 2\n", "--new", "--add", "--template",
                        "echo {1}", ":::", "a", "2")

    def test_a_table_that_has_grown_adds_its_new_rows(self) -> None:
        add = "runs.txt", "--add-list", "t.csv", "--new", "--template", "sim {n}"
        self.write("n\n1\n2\n2\n", "t.csv")
        for text, said in (("", "3 lines added"), ("", "0 lines added (3 equal ones in the file already)"),
                           ("3\n2\n", "2 lines added (3 equal ones in the file already)")):
            with open(self.dir / "t.csv", "a") as table:
                table.write(text)
            ended = self.run_script(RUNSET, *add)
            self.assertEqual(ended.err.replace(as_bytes(IDLE), b""),
                             as_bytes(f"runset4.py: runs.txt: {said}\n"))
        self.assertEqual(self.read(), b". sim 1\n. sim 2\n. sim 2\n. sim 3\n. sim 2\n")

    def test_jobs_in_any_state_are_there_and_other_lines_are_not(self) -> None:
        before = "".join(f"{state}{blank}echo {state}{end}" for state, blank, end in zip(
            ".rd!ecxQ", "  \t     ", ("\n", "\r\n", *"\n\n\n\n\n", "")))
        self.write(f"\ufeff# echo a\n/ echo b\n{before}")
        self.write("".join(f"echo {word}\n" for word in (*".rd!ecxQ", "a", "b")) + " echo d\n", "list")
        self.assertAdds(f"\ufeff# echo a\n/ echo b\n{before}\n. echo a\n. echo b\n.  echo d\n",
                        "--add-list", "list", "--new")

    def test_directives_stay_with_new_jobs(self) -> None:
        self.write("d a\n. #RUN slots=2\n")
        self.write("a\n#RUN slots=2\n", "list")
        self.assertAdds("d a\n. #RUN slots=2\n", "--add-list", "list", "--new")
        self.write("#RUN slots=2\na\n#RUN barrier\nb\n", "list")
        for _ in range(2):
            self.assertAdds("d a\n. #RUN slots=2\n#RUN slots=2\n#RUN barrier\n. b\n",
                            "--add-list", "list", "--new")

    def test_calls_at_the_same_time_add_a_row_once(self) -> None:
        self.write("".join(f"echo {number}\n" for number in range(500)), "list")
        for _, ended in self.run_all([(RUNSET, "-q", "runs.txt", "--add-list", "list", "--new")] * 4):
            self.assertEqual(ended.code, 0)
        self.assertEqual(self.read(), b"".join(b". echo %d\n" % number for number in range(500)))

    def test_it_requires_a_list_and_a_file(self) -> None:
        self.assertAllRefused({("--new", "--edit"): "--new requires --add or --add-list",
                               ("--new",): "give exactly one of"})
        self.write("a\n", "list")
        ended = self.run_script(RUNSET, "-", "--add-list", "list", "--new")
        self.assertRefused(ended, "--new requires FILE, not -")


class Sweeps(ImportCase):
    """--add --template T ::: VALUES ::: VALUES: a job for each combination, as GNU parallel has them."""
    CALLS = {
        ("n {1} {2}", ":::", "1", "2", ":::", "a", "b"): "n 1 a,n 1 b,n 2 a,n 2 b",
        ("n {2/.}{1}", ":::", "a", "b", ":::", "x/1.x", "y/2.y"): "n 1a,n 2a,n 1b,n 2b",
        ("n {2} {}", ":::", "1", ":::", "a's", "b "): "n 'a'\"'\"'s' 1 'a'\"'\"'s',n 'b ' 1 'b '",
        ("n", ":::", "-1", "--set", ":::", ""): "n -1 '',n --set ''",
        ("n {.} {#}", ":::", "a.b", "5%"): "n a 1,n 5% 2",
        ("n {/}", ":::", "a/b", ":::", "c/d"): "n b d",
    }

    def test_all_combinations_are_added_in_order(self) -> None:
        for call, expected in self.CALLS.items():
            with self.subTest(call):
                self.write("")
                lines = "".join(f". {command}\n" for command in expected.split(","))
                self.assertAdds(lines, "--add", "--template", *call)

    @unittest.skipUnless(FULL, "GNU parallel itself takes a second: RUNMAKER4_TEST_FULL=1")
    @unittest.skipUnless(shutil.which("parallel"), "there is no parallel here")
    def test_gnu_parallel_makes_the_same_of_them(self) -> None:
        for (template, *values), expected in self.CALLS.items():
            shown = template.replace("n", "printf '<%s>'", 1)
            theirs = self.run_script("parallel", "--will-cite", "-j1", "-k", shown, *values,
                                     env={"HOME": str(self.dir)})
            script = "".join(f"{command.replace('n', 'printf <%s>', 1)}\n" for command in expected.split(","))
            ours = subprocess.check_output(["sh", "-c", script.replace("<%s>", "'<%s>'")])
            self.assertEqual(theirs.out, ours, values)

    def test_a_trillion_combinations_are_made_one_by_one(self) -> None:
        values = [":::", *map(str, range(1000))] * 4
        options = runset4.parse_options(["runs.txt", "--add", "--template", "n {4} {2}", *values])
        jobs = runset4.lines_to_add(options, Counter())
        self.assertEqual(list(itertools.islice(jobs, 1001))[-2:], [b". n 999 0\n", b". n 0 0\n"])

    def test_what_makes_no_sense_is_refused(self) -> None:
        self.write("1\n", "list")
        template = "--template", "n {1}"
        wanted, place = "give a value after each :::", "::: requires --add --template T before it"
        self.assertAllRefused({
            ("--add",): "no jobs (nothing to add)",
            ("--add", *template): "--template requires --add-list, or --add and :::",
            ("--add", *template, ":::"): wanted,
            ("--add", *template, ":::", ":::", "1"): wanted,
            ("--add", *template, ":::", "1", ":::+", "2"): ":::+ is not supported (for linked",
            ("--add", *template, ":::", "1", "::::", "list"): ":::: is not supported (for linked values, or",
            ("--add", *template, "::::+", "list"): "::::+ is not supported",
            ("--add", ":::", "1"): place,
            ("--add", "n {1}", ":::", "1"): place,
            ("--add", "n", *template, ":::", "1"): place,
            ("--add-list", "list", *template, ":::", "1"): place,
            ("--add", *template, ":::", "1\n2"): "not a command: 'n '1?2''",
            ("--add", "echo 1", "echo 2\necho 3"): "not a command: 'echo 2?echo 3'",
        })


class JobFileCase(ImportCase):

    INI = "[control]\nexecutable: ./job.sh\n[params]\nlogfile: {0}.log\nvalue: {0}\n"

    def job_file(self, name: str, text: Optional[Text] = None) -> None:
        path = self.dir / name
        path.parent.mkdir(exist_ok=True)
        self.write(self.INI.format(path.name) if text is None else text, "new").rename(path)

    def line(self, name: Text, executable: str = "./job.sh", state: bytes = b".") -> bytes:
        path = os.fsencode(self.dir) + b"/" + as_bytes(name)
        return b"%b %b %b\n" % (state, executable.encode(), runmaker4.quote(path))


class JobFiles(JobFileCase):
    """docs/convert.py fjd: the command is the executable of a job file, with the path of the file."""

    def assertConverts(self, expected: Text, *paths: object) -> None:
        """The list for these paths is printed and added, and this is what runs.txt is then."""
        ended = self.converted("fjd", *paths)
        self.assertEqual((ended.code, ended.err), (0, b""))
        self.write(ended.out, "list")
        self.assertAdds(expected, "--add-list", "list", "--new")

    def test_job_files_become_jobs_in_the_order_given(self) -> None:
        self.job_file("queue/b")
        self.job_file("queue/a", "[DEFAULT]\nx = %(y)s %\n[fjd]\nExecutable = job.py 50%\nExecutable=last")
        self.job_file("-", "[fjd]\nexecutable: never\n[control]\r\nexecutable:first\r\n")      # no stdin
        self.assertConverts(self.line("queue/b") + self.line("queue/a", "last") + self.line("-", "first"),
                            "queue/b", "queue/a", "-", self.dir / "-")

    def test_names_of_any_bytes_are_quoted_for_the_shell(self) -> None:
        names = [b"it's", b"$(a) b", b"\xff\"\\"]
        text = b"\xef\xbb\xbf[control]\nexecutable: printf '%s\\n' \xc3\xa0 >>out\n"
        for name in names:
            self.job_file("queue/" + os.fsdecode(name), text)
        self.write(self.converted("fjd", "queue").out, "list")
        self.run_script(RUNSET, "runs.txt", "--add-list", "list")
        self.assertEqual(self.run_jobs("-q").code, 0)
        found = self.read("out").split(b"\n")
        paths = [os.fsencode(self.dir) + b"/queue/" + name for name in sorted(names)]
        self.assertEqual(found, [text for path in paths for text in ("\u00e0".encode(), path)] + [b""])

    def test_each_file_of_a_directory_is_added_once(self) -> None:
        for name in "b", "a", "it's 1":
            self.job_file(f"job queue's/{name}")
        for name in "c", ".hidden", "backup~":
            self.job_file(f"job queue's/{name}", "no job")
        (self.dir / "job queue's/c").unlink()
        (self.dir / "job queue's/folder").mkdir()
        (self.dir / "job queue's/dangling").symlink_to("nowhere")
        expected = b"".join(self.line(f"job queue's/{name}") for name in ("a", "b", "it's 1"))
        self.assertConverts(expected, "job queue's")
        self.assertConverts(expected, self.dir / "job queue's/")
        self.job_file("job queue's/aa")
        self.assertConverts(expected + self.line("job queue's/aa"), "job queue's")

    def test_files_whose_jobs_are_not_new_any_more_are_not_added_again(self) -> None:
        names = ["a", "b c", "d", "e", "f"]
        for name in names:
            self.job_file(f"queue/{name}")
        before = b"".join((self.line("queue/a", state=b"d"),
                           self.line("queue/b c", state=b"x").replace(b"\n", b"\r\n"), b"# ",
                           self.line("queue/d"), self.line("queue/e").replace(b"\n", b" more\n"),
                           self.line("queue/f", "edited")))
        self.write(before)
        after = before + self.line("queue/d") + self.line("queue/e") + self.line("queue/f")
        self.assertConverts(after, "queue")
        self.assertConverts(after, "queue/a", "queue", "./queue/f")

    def test_what_cannot_be_a_job_file_is_refused_whole(self) -> None:
        self.job_file("queue/a")
        self.job_file("bad/a")
        self.job_file("bad/b", "[control]\nlogfile: a\n")
        (self.dir / "empty").mkdir()
        for args, words in ((("fjd", "queue/a", "missing"), "missing: no such file"),
                            (("fjd", "queue", "bad"), "bad/b: missing executable="),
                            (("fjd", "empty"), "empty: no job files (nothing"),
                            (("fjd",), "give fjd and job files, or netjobs"),
                            (("nq", "queue"), "give fjd and job files, or netjobs")):
            with self.subTest(args=args):
                self.assertRefused(self.converted(*args), "convert.py: ", words)

    def test_commands_like_lines_with_a_state_stay_commands_and_comments_are_refused(self) -> None:
        self.job_file("queue/a", "[control]\nexecutable: d\n")
        self.assertConverts(self.line("queue/a", " d"), "queue")
        self.assertConverts(self.line("queue/a", " d"), "queue")
        self.job_file("queue/b", "[control]\nexecutable = #RUN end\n")
        self.assertRefused(self.converted("fjd", "queue"), "queue/b: '#RUN end ", "is a comment, no command")

    def test_what_is_wrong_with_a_job_file_is_said_with_its_line(self) -> None:
        errors = "Source contains parsing errors: '{}' "
        no_section = "File contains no section headers. file: '{}', "
        for text, expected in (("\n# x\nexecutable: a\n", no_section + "line: 3 "),
                               ("[control]\nexecutable: a\n\n[params]\nnonsense\n", errors + "[line 5]"),
                               ("[control]\nexecutable: a\n= b\n", errors + "[line 3]"),
                               ("[control]\nexecutable\n", errors + "[line 2]"),
                               ("[params]\nexecutable: a\n", "missing executable="),
                               ("[control]\nexecutable:\n", "missing executable="),
                               ("[control]\nexecutable: a\n  b\n", "not a command"),
                               ("[control]\nexecutable: a\n\n\0\n", "line 4: "),
                               ("[control]\nexecutable: a\n".encode("utf-16"), "line 1: contains a NUL ("),
                               (f"[control]\nexecutable: {'x' * TOO_LONG}\n", "the command is longer"),
                               ("[control]\nexecutable: " + 10_000_000 * "x", "line 2: "),
                               ("", "missing executable=")):
            path = self.write(text, "job")
            with self.subTest(text=text[:80]):
                said = f"{path}: {expected.format(path)}"
                self.assertUsageError(said, lambda: convert.line_of_fjd_file(str(path)))
        path = self.write("[control]\nexecutable: a\n", "two\nlines")
        said = f"{self.dir}/two?lines: not a command"
        self.assertUsageError(said, lambda: convert.line_of_fjd_file(str(path)))


class Appending(JobFileCase, RunCase):
    """Others who append are waited for, and what they appended is taken into account."""
    # A process whose lock is refused says so
    REFUSED = """
import os, runmaker4
lock = runmaker4.lock
def lock_or_note(*args, **settings):
    acquired = lock(*args, **settings)
    if not acquired:
        open(f"refused.{os.getpid()}", "w").close()
    return acquired
runmaker4.lock = lock_or_note
"""

    def test_what_was_appended_meanwhile_is_seen(self) -> None:
        self.job_file("queue/a")
        self.job_file("queue/b")
        jobs = [self.line("queue/a"), self.line("queue/b")]
        files = {"commands": (["--add", "echo b"], b". echo a\n", b". echo a\n. echo b\n"),
                 "jobs": (["--add-list", "list", "--new"], jobs[0], jobs[0] + jobs[1])}
        self.write(self.converted("fjd", "queue").out, "list")
        with contextlib.ExitStack() as stack:
            processes = []
            for name, (args, *_) in files.items():
                self.write("", name)
                locks = runmaker4.open_lock_file_of(str(self.dir / name))
                stack.callback(os.close, locks)
                stack.enter_context(locked(locks, APPEND_BYTE))
                processes.append(self.start_patched(self.REFUSED, name, *args, script=RUNSET))
            for process in processes:
                wait_until((self.dir / f"refused.{process.pid}").exists, what="it waits for the lock")
            self.assertEqual([process.poll() for process in processes], [None] * 2)
            for name, (_, theirs, _) in files.items():
                with open(self.dir / name, "ab", buffering=0) as file:
                    file.write(theirs)
        self.assertEqual([self.finish(process).code for process in processes], [0, 0])
        for name, (_, _, after) in files.items():
            self.assertEqual(self.read(name), after)


class Usage(Case):
    """Which options go together, and that FILE stands before those that take several values."""

    def test_what_makes_no_sense_is_refused_and_named(self) -> None:
        for words, name in (("--add-list a --template", "--template"), ("--add-list a --follow", "--follow"),
                            ("--add a --template {}", "--template"), ("--template {}", "--add-list"),
                            ("--add-list a --add b", "--add-list"), ("--add-list a --all", "--add-list"),
                            ("--add-list a --state=x", "--add-list"),
                            ("--add-jobs a", "fjd JOB... | runset4.py FILE --add-list - --new"),
                            ("--add-tests a", "docs/convert.py netjobs CONFIG... | runset4.py"),
                            ("--add-list a --match=b", "--add-list"), ("--set=x", "--set"),
                            ("--cancel --set=x 3", "--cancel"), ("", "--add-list")):
            args = ["runs.txt", *words.split(), *([" "] if words.endswith("--template") else [])]
            with self.subTest(args=args):
                with self.assertRaises(runmaker4.UsageError) as raised:
                    runset4.parse_options(args)
                self.assertIn(name, str(raised.exception))

    def test_a_file_that_stands_behind_is_asked_for(self) -> None:
        self.write(". echo\n")
        calls = (("--add", "a", "runs.txt"), ("--single-host", "--add", "a", "a"),
                 ("--add", "runs.txt", "--template", "n {1}", ":::", "1"), ("--set=x",))
        words = "runset4.py: missing FILE; it comes before options that take several values (see --help)\n"
        for _, ended in self.run_all((RUNSET, *args) for args in calls):
            self.assertRefused(ended, words)
        self.assertEqual(self.read(), b". echo\n")
