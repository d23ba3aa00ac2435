"""runset4.py: states are set, jobs are selected, listed and added, and no running job is disturbed."""
import itertools
import json
import os
import random
import signal
import stat
import subprocess
import threading
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

import runmaker4
import runset4
from tests.support.case import GATE, Case
from tests.support.failing_calls import EACH_CALL
from tests.support.line_locks import hold_line
from tests.support.locks import locked
from tests.support.processes import Ended, wait_until
from tests.support.runs import RunCase
from tests.support.scripts import PYTHON, RUNMAKER, RUNSET
from tests.support.values import as_bytes

APPEND_BYTE = (1 << 62) + 1         # locked by who appends to a job file
FOUR = ". echo a\nd echo b\n! echo c\ne echo d\n"


class RunsetCase(Case):
    """Steps that the tests below share."""

    def assertQuiet(self, *args: object, stray: int = 0) -> None:
        """runset4.py -q with these arguments succeeds and prints nothing.  stray: the line that is named."""
        ended = self.run_script(RUNSET, "-q", *args)
        self.assertEqual((ended.code, ended.out, ended.err), (0, b"", self.named(stray)))

    def named(self, number: int) -> bytes:
        """What is said of a line that is no job; 0: there is none."""
        said = (f"runset4.py: runs.txt: line {number} is neither a job nor a comment (a job is '. COMMAND', "
                "a comment begins with #)\n")
        return said.encode() if number else b""

    def assertComplains(self, ended: Ended, *words: object) -> None:
        """Exit 1 and one line on stderr that has these words."""
        self.assertEqual((ended.code, ended.out, ended.err.count(b"\n")), (1, b"", 1), ended.err)
        for word in words:
            self.assertIn(as_bytes(str(word)), ended.err)

    def assertLists(self, expected: bytes, *args: object, stray: int = 0) -> None:
        """--list prints just this.  stray: the number of the line that is named."""
        ended = self.run_script(RUNSET, "--list", "runs.txt", *args)
        self.assertEqual((ended.code, ended.out, ended.err), (0, expected, self.named(stray)))

    def runner_at_gate(self, others: str = "") -> subprocess.Popen[bytes]:
        """A runner whose job, line 1, runs until the gate opens; the other lines wait."""
        return self.start_to_gate(f". {GATE}\n{others}")


class SettingStates(RunsetCase):
    """--set changes the state bytes of what is selected, and nothing else."""

    def test_all_includes_held_jobs_but_what_only_looks_like_one_must_be_named(self) -> None:
        for states, *selection in ((".QI", "--all"), (".QI", "--match=*"), ("..I", 1, 2),
                                   ("xQ.", "--state=I", "--match=have *")):
            with self.subTest(selection):
                self.write("x echo a\nQ echo b\nI have a list\n")
                self.assertQuiet("--set=.", "runs.txt", *selection)
                self.assertEqual(self.states(), states)

    def test_a_line_is_surely_a_job_in_our_states_alone(self) -> None:
        for state in (*runmaker4.STATE_WORDS, b"p"):
            letter, is_ours = state.decode(), state != b"p"
            with self.subTest(state):
                self.write(f"{letter} x\nmore text\n")
                refused = self.run_script(RUNMAKER, "--dry-run", "runs.txt").code == 2
                self.assertEqual(refused, not is_ours, "as plain text")
                self.write(f"{letter} x\n")
                self.run_script(RUNSET, "-q", "--set=d", "--all", "runs.txt")
                self.assertEqual(self.states(), "d" if is_ours else "p")
                ended = self.run_script(RUNSET, "runs.txt", "--add", f"{letter} x")
                self.assertEqual(ended.code, 2 * is_ours, ended.err)
                self.write(f"{letter} x\n")
                # a lock file that has just been made, however slow this machine is
                os.utime(self.dir / ".runs.txt.lock", (time.time() + 60, time.time() + 60))
                added = self.run_script(RUNSET, "runs.txt", "--add", "true")
                self.assertEqual(b"(no runner is at work)" in added.err, is_ours and state != b".", added.err)
                (self.dir / ".runs.txt.lock").unlink()

    def test_what_is_held_and_taken_back_as_the_help_says_leaves_finished_jobs_alone(self) -> None:
        self.write(f"x echo z\n{FOUR}. echo e\n")
        self.assertQuiet("--set=x", "--state=.", "runs.txt", "2-9")
        self.assertEqual(self.states(), "xxd!ex")
        self.assertQuiet("--set=.", "--state=x", "runs.txt", "2-9")
        self.assertEqual(self.states(), "x.d!e.")

    def test_only_the_state_bytes_change_and_it_stays_the_same_file(self) -> None:
        before = b"\xef\xbb\xbfd echo a\r\nd\techo \xff\n# d\n/ d\nprose\n\n  d\nd d \nd no newline"
        after = b"\xef\xbb\xbf. echo a\r\n.\techo \xff\n# d\n/ d\nprose\n\n  d\n. d \n. no newline"
        path = self.write(before)
        path.chmod(0o640)
        inode = path.stat().st_ino
        os.utime(path, (0, 0))                  # so that the last line counts
        self.assertQuiet("--all", "--set=.", "runs.txt", stray=5)
        info = path.stat()
        self.assertEqual((self.read(), info.st_ino, stat.S_IMODE(info.st_mode)), (after, inode, 0o640))

    def test_a_number_that_is_no_job_is_named_and_a_range_or_a_filter_may_reach_further(self) -> None:
        for args, named in (("1 9 2", [2, 9]), ("1-9 2", [2]), ("1,3-9", []), ("--state=. 1 2 3", [])):
            with self.subTest(args):
                self.write(". echo a\n# no job\nd echo b\n")
                ended = self.run_script(RUNSET, "-q", "--set=x", "runs.txt", *args.split())
                said = "".join(f"runset4.py: runs.txt: line {number}: no such job\n" for number in named)
                self.assertEqual((ended.code, ended.err.decode()), (1 if named else 0, said))
                self.assertEqual(self.states()[:1], "x")

    def test_r_is_for_runners(self) -> None:
        self.write(FOUR)
        self.assertRefused(self.run_script(RUNSET, "--set=r", "runs.txt", 1), "only runners set r (. is new)")
        self.assertEqual(self.read(), as_bytes(FOUR))

    def test_it_says_which_states_it_has_set(self) -> None:
        calls = {
            "--set=. --state=failed,error": "1 line: ! -> ., 1 line: e -> .",
            "--set=held 1-4": "1 line: . -> x (held), 1 line: d -> x (held), 1 line: ! -> x (held), "
                              "1 line: e -> x (held)",
            "--set=n 1": "1 line: . -> n (held)",
            "--set=. 5": "1 line: x (held) -> .",
            "--cancel 1": "line 1: cancelled: echo a\nrunset4.py: runs.txt: 1 line: . -> c (cancelled)",
        }
        for words, said in calls.items():
            for quiet in (), ("-q",):
                with self.subTest(words, quiet=quiet):
                    self.write(FOUR + "x echo e\n")
                    ended = self.run_script(RUNSET, *quiet, "runs.txt", *words.split())
                    self.assertEqual((ended.code, ended.out, ended.err),
                                     (0, b"", b"" if quiet else as_bytes(f"runset4.py: runs.txt: {said}\n")))

    def test_lines_are_held_and_cancelled_from_the_bottom_up_and_released_from_the_top_down(self) -> None:
        """Or a barrier would open for what is held above it, and is not yet below."""
        new, held = ". a\n. b\n", "p a\np b\n"
        for words, text, order in (("--set=p", new, [2, 1]), ("--cancel --all", new, [2, 1]),
                                   ("--set=.", held, [1, 2])):
            with self.subTest(words=words):
                self.write(text)
                path, numbers = str(self.dir / "runs.txt"), list[int]()
                write = runmaker4.JobFile.write

                def note(file: runmaker4.JobFile, line: runmaker4.Line, state: bytes) -> None:
                    numbers.append(line.number)
                    write(file, line, state)

                options = words.split() if "--all" in words else [words, f"--state={text[0]}"]
                with mock.patch.object(runmaker4.JobFile, "write", note):
                    self.assertEqual(runset4.run_command(["-q", *options, path]), 0)
                self.assertEqual(numbers, order)

    def test_of_a_step_that_is_new_again_it_names_the_later_steps_that_are_done(self) -> None:
        self.write("#RUN name=a\nd a\nd b\n#RUN name=b after=a\nd c\n! d\n#RUN after=b\nd e\n#RUN\nd f\n")
        told = b"runset4.py: runs.txt: lines 5, 8: d, and waited by after= for what is new again\n"
        self.assertIn(told, self.run_script(RUNSET, "--set=.", "runs.txt", 2).err)
        self.assertNotIn(b"after=", self.run_script(RUNSET, "--set=.", "runs.txt", 8, 10).err)
        self.assertNotIn(b"after=", self.run_script(RUNSET, "--set=x", "runs.txt", 3).err)

    def test_of_many_lines_that_are_cancelled_it_names_eight(self) -> None:
        self.write("".join(f". echo {number}\n" for number in range(1, 13)))
        ended = self.run_script(RUNSET, "--cancel", "--all", "runs.txt")
        said = [f"line {number}: cancelled: echo {number}" for number in range(1, 9)]
        self.assertEqual(ended.err.decode().replace("runset4.py: runs.txt: ", "").splitlines(),
                         [*said, "12 lines: . -> c (cancelled)"])

    def test_the_words_of_the_status_mean_their_states(self) -> None:
        for words, after in {
            ("--set=new", "--state=failed"): ".d.ex", ("--set=.", "--state=failed,error"): ".d..x",
            ("--set=held", "--state=!,done,e"): ".xxxx", ("--set=done", "--state=held"): ".d!ed",
            ("--set=failed", "--state=new", "--state=ex"): "!d!!!", ("--set=error", "2"): ".e!ex"
        }.items():
            with self.subTest(words):
                self.write(FOUR + "x echo e\n")
                self.assertQuiet("runs.txt", *words)
                self.assertEqual(self.states(), after)
        self.write(". a\nr b\nc c\nx d\n")
        self.assertLists(b"2 r b\n", "--state=running")
        self.assertLists(b"3 c (cancelled) c\n", "--state=cancelled")
        self.assertQuiet("--set=new", "--state=held", "runs.txt")
        self.assertEqual(self.states(), ".rc.")

    def test_a_word_is_never_read_as_letters(self) -> None:
        self.write(FOUR)
        words = ("fialed", "err", "ok", "Done", "new,", "", "failed,red,xd!x", "IQ", "!#", "faileddone",
                 "\u00e9")
        for call, ended in self.run_all((RUNSET, "--set=.", f"--state={word}", "runs.txt") for word in words):
            with self.subTest(call=call):
                self.assertRefused(ended, "--state: not a state: '")
        no_states = ("fialed", "running", "d!", "new,done", "", " ", "\t", "\n", "#", "/", "ab", "\u00e9")
        for call, ended in self.run_all((RUNSET, f"--set={word}", "--all", "runs.txt") for word in no_states):
            with self.subTest(call=call):
                self.assertRefused(ended, "--set: ")
        self.assertEqual(self.read(), as_bytes(FOUR))


class Locked(RunCase):
    """Lines whose command another process keeps locked hold up no other line."""

    # The file `waits` says that it waits for a lock: all that needs none is changed, and it heeds signals
    WAITS = """
import runmaker4
command_mutex = runmaker4.JobFile.command_mutex
def lock_and_tell(file, command, patience):
    if patience:
        open("waits", "w").close()
    return command_mutex(file, command, patience)
runmaker4.JobFile.command_mutex = lock_and_tell
runmaker4.JobFile.MUTEX_SECONDS = """

    def start_change(self, option: str, seconds: float) -> subprocess.Popen[bytes]:
        """Start runset4.py, which waits so long for locked lines, and wait until it does."""
        (self.dir / "waits").unlink(missing_ok=True)
        self.write(". echo a\n. echo b\n. echo b\n. echo c\n. echo d\n")
        self.lock_file = runmaker4.open_lock_file_of(str(self.dir / "runs.txt"))
        self.addCleanup(os.close, self.lock_file)
        for command in b"echo b", b"echo c":
            start = runmaker4.bucket_of(command)
            self.assertTrue(runmaker4.lock(self.lock_file, start, runmaker4.BUCKET_SIZE))
        process = self.start_patched(f"{self.WAITS}{seconds}", option, "--all", "runs.txt", script=RUNSET)
        wait_until(lambda: self.exists("waits"), what="it waits")
        self.assertEqual(self.states().replace("c", "x"), "x...x")
        return process

    def assertSaid(self, process: subprocess.Popen[bytes], code: int, *lines: str) -> None:
        """The exit status, and what it says; then nothing is locked."""
        ended = self.finish(process)
        said = "".join(f"runset4.py: runs.txt: {line}\n" for line in lines)
        self.assertEqual((ended.code, ended.err.decode()), (code, said))
        runmaker4.unlock(self.lock_file, 0, 0)

    def named(self, option: str, *numbers: int) -> list[str]:
        """What --cancel says of these lines."""
        return [f"line {n}: cancelled: echo {'abbcd'[n - 1]}" for n in numbers if option == "--cancel"]

    def test_all_others_are_changed_and_both_are_counted(self) -> None:
        for option, state in ("--set=held", "x (held)"), ("--cancel", "c (cancelled)"):
            with self.subTest(option):
                why = (": keeps being added, claimed or edited, or a job whose runner was killed or "
                       "suspended has it locked (wait for it; lslocks names it)")
                self.assertSaid(self.start_change(option, 0.2), 1, *self.named(option, 1, 5), *(
                    f"line {n}{why}" for n in (2, 3, 4)), f"2 lines: . -> {state}, 3 lines: refused")

    def test_what_is_unlocked_in_time_is_changed_too(self) -> None:
        for option, state in ("--set=held", "x (held)"), ("--cancel", "c (cancelled)"):
            with self.subTest(option):
                process = self.start_change(option, 600)
                runmaker4.unlock(self.lock_file, 0, 0)
                self.assertSaid(process, 0, *self.named(option, 1, 5, 2, 3, 4), f"5 lines: . -> {state}")

    def test_an_interrupt_while_it_waits_leaves_the_count_of_what_was_changed(self) -> None:
        for option, state in ("--set=held", "x (held)"), ("--cancel", "c (cancelled)"):
            with self.subTest(option):
                process = self.start_change(option, 600)
                process.send_signal(signal.SIGINT)
                self.assertSaid(process, 130, *self.named(option, 1, 5), f"2 lines: . -> {state}")


class Selecting(RunsetCase):
    """Jobs are selected by line, range, state, or command; never by a part of something."""

    TEXT = ". echo a\n# comment\n! echo b\n. echo ab\n! test [ -e a ]\nd Echo a\n"
    # the states when all that these arguments select is set to X; ~: a blank
    SELECTED = {
        "1 5": "X!.Xd",
        "2-4": ".XX!d",
        "5-6 3 1-1 3": "XX.XX",
        "1,4-5 1,7-9": "X!XXd",
        "5-999999999": ".!.XX",
        "--state=!": ".X.Xd",
        "--match=echo~a": "X!.!d",                 # a whole command
        "--match=echo~*": "XXX!d",                 # a shell pattern
        "--match=echo~?": "XX.!d",
        "--match=test~[~-e~a~]": ".!.Xd",
    }

    def setUp(self) -> None:
        super().setUp()
        self.write(self.TEXT)

    def test_by_line_range_state_and_command(self) -> None:
        for words, states in self.SELECTED.items():
            with self.subTest(words):
                self.write(self.TEXT)
                self.assertQuiet("-s", "X", "runs.txt", *(word.replace("~", " ") for word in words.split()))
                self.assertEqual(self.states(), states)

    def test_lines_between_ranges_are_passed_over_unread_whatever_the_ranges_are(self) -> None:
        draws, read = random.Random(1), list[int]()
        text = [draws.choice((". true", "d true", "# none", "", f"d {'long ' * 999}")) for _ in range(3000)]
        file = runmaker4.JobReader(str(self.write("\n".join(text))), say=self.fail)
        self.addCleanup(file.close_files)
        refused = runset4.ChangeCounts(SimpleNamespace(say=str))        # type: ignore[arg-type]
        parse = runmaker4.Scan._parse_line_at

        def parse_noted(scan: runmaker4.Scan, index: int) -> runmaker4.Line:
            read.append(index)
            return parse(scan, index)

        with mock.patch.object(runmaker4.Scan, "_parse_line_at", parse_noted):
            for case in range(60):
                starts = [draws.randint(1, 3100) for _ in range(draws.choice((1, 2, 40)))]
                ranges = [range(start, start + draws.choice((1, 1, 20, 400))) for start in starts]
                states = draws.choice((b"", b"d"))
                wanted = [number for number, line in enumerate(text, 1) if line[1:2] == " " and line[0] != "#"
                          and line[0] in (states.decode() or ".d") and any(number in one for one in ranges)]
                read.clear()
                lines = runset4.Selection(ranges, states, None).lines(file, refused)
                with self.subTest(case=case):
                    self.assertEqual([line.number for line in lines], wanted)
                    self.assertLessEqual(len(read), len(wanted) + len(ranges) + 2)

    def test_a_command_that_is_not_text_matches_itself(self) -> None:
        self.write(b". echo \xff\n. echo \xfe\n")
        self.assertQuiet("--set=X", os.fsdecode(b"--match=echo \xff"), "runs.txt")
        self.assertEqual(self.states(), "X.")

    def test_selecting_nothing_is_said(self) -> None:
        before = self.read()
        for call, ended in self.run_all((RUNSET, "--set=X", "runs.txt", selection)
                                     for selection in (2, 7, "--state=e", "--match=cho ?")):
            with self.subTest(call=call):
                self.assertComplains(ended, "runset4.py: runs.txt: ")
        self.assertComplains(self.run_script(RUNSET, "--list", "--state=x", "runs.txt"), "no matching jobs\n")
        self.assertComplains(self.run_script(RUNSET, "--list", "--match=cho", "runs.txt"),
                             "no matching jobs (a pattern must match the whole command: '*cho*')\n")
        self.assertEqual(self.read(), before)

    def test_bad_lines_and_ranges_are_refused(self) -> None:
        before = self.read()
        selections = ("0", "0-3", "5-3", "1-", "one", "1-2-3", "1.5", "+1", "1_0", "\u0663", "", "1 - 2",
                      "1,", ",1", "1,,2", "1,x")
        for call, ended in self.run_all((RUNSET, "--set=X", "runs.txt", word) for word in selections):
            with self.subTest(call=call):
                self.assertRefused(ended, call[-1])
        self.assertEqual(self.read(), before)


class BesideRunners(RunsetCase, RunCase):
    """A running job is not touched, and its runner is not disturbed."""

    def test_a_running_job_is_refused_and_the_others_are_set_held_added_and_run(self) -> None:
        runner = self.runner_at_gate(". echo b >>marks\nd echo c >>marks\n")
        self.assertLists(f"1 r {GATE}\n2 . echo b >>marks\n3 d echo c >>marks\n".encode())
        ended = self.run_script(RUNSET, "-qas", "x", "runs.txt")
        self.assertComplains(ended, "runs.txt", "line 1", "--cancel")
        self.assertEqual(self.states(), "rxx")
        self.assertQuiet("--set=.", "runs.txt", 3)
        self.assertQuiet("runs.txt", "--add", "echo d >>marks", "echo e >>marks")
        self.open_gate()
        self.assertEqual(self.finish(runner).code, 0)
        self.assertEqual((self.states(), self.read("marks")), ("dxddd", b"c\nd\ne\n"))

    def test_a_job_that_outlived_its_runner_is_refused_and_an_orphan_can_be_set(self) -> None:
        runner = self.runner_at_gate("r echo a\n")
        runner.kill()
        runner.wait()
        self.assertComplains(self.run_script(RUNSET, "-q", "--set=x", "runs.txt", 1, 2), "line 1")
        self.assertEqual(self.states(), "rx")

    def test_what_a_dead_host_keeps_locked_is_cancelled_and_its_command_is_added_as_another_one(self) -> None:
        """As with NFSv3, where nobody frees the locks of a host that is gone for good."""
        self.write("r echo a >>marks\nr echo b\n")
        hold_line(self, 1)
        self.assertComplains(self.run_script(RUNSET, "--set=held", "runs.txt", 1), "line 1: is running")
        self.assertEqual(runset4.MAX_EXIT_WAIT_SECONDS, 10)
        ended = self.run_script(RUNSET, "--cancel", "runs.txt", 1, 2)       # no runner is at work
        self.assertEqual((ended.code, ended.out, self.states()), (1, b"", "cc"))
        self.assertIn(b"line 1: is c, but its job still runs", ended.err)
        self.assertQuiet("runs.txt", "--add", "echo a >>marks", " echo a >>marks")
        runner = self.start(RUNMAKER, "-q", "runs.txt")
        self.wait_states("cc.d")
        self.stop(runner)
        self.assertEqual((self.states(), self.read("marks")), ("cc.d", b"a\n"))


class HalfLine(RunCase):
    """What another program has begun to write is neither joined nor cut."""

    def test_a_line_without_a_newline_that_a_process_is_writing_keeps_new_lines_waiting(self) -> None:
        self.write("")
        writer = self.start("sh", "-c", "exec 3>>runs.txt; printf '. echo ha' >&3; read -r rest; echo lf >&3",
                            stdin=subprocess.PIPE)
        wait_until(self.read, what="half a line is in the file")
        refused = self.finish(self.start_patched("import runset4; runset4.MAX_APPEND_WAIT_SECONDS = 1.5",
                                                 "runs.txt", "--add", "echo never", script=RUNSET))
        self.assertEqual(refused.code, 2)
        self.assertIn(f"process {writer.pid} has the file open".encode(), refused.err)
        self.assertIn(b"another process is writing the last line, which has no newline yet", refused.err)
        self.assertEqual(self.read(), b". echo ha")
        with open(self.dir / "said", "wb") as said:
            adding = self.start(RUNSET, "runs.txt", "--add", "echo new", stderr=said)
        wait_until(lambda: b"waiting for the rest" in self.read("said"), what="--add waits")
        writer.communicate(b"\n")
        self.assertEqual((self.finish(adding).code, self.read()), (0, b". echo half\n. echo new\n"))

    def test_neither_an_edit_nor_a_pause_cuts_it(self) -> None:
        for options in ("--edit",), ("--pause",):
            with self.subTest(options):
                self.write(". echo first\n")
                writer = self.start("sh", "-c", "exec 3>>runs.txt; printf '. echo ha' >&3; read -r rest; "
                                                "printf 'lf\\n. echo last\\n' >&3", stdin=subprocess.PIPE)
                wait_until(lambda: self.read().endswith(b"ha"), what="half a line is in the file")
                with open(self.dir / "said", "wb") as said:
                    changing = self.start(RUNSET, *options, "runs.txt", stderr=said,
                                          env={"EDITOR": "sed -i s/first/1st/"})
                wait_until(lambda: b"waiting for the rest" in self.read("said"), what="it waits")
                writer.communicate(b"\n")
                self.assertEqual(self.finish(changing).code, 0)
                self.assertTrue(self.read().endswith(b". echo half\n. echo last\n"), self.read())

    def test_a_line_that_an_editor_left_without_a_newline_gets_one(self) -> None:
        self.write(". echo a")
        self.assertEqual(self.run_script(RUNSET, "runs.txt", "--add", "echo b").code, 0)
        self.assertEqual(self.read(), b". echo a\n. echo b\n")


class FailingCalls(RunCase):
    """Each system call fails in turn: exit status 2 says that nothing was written, otherwise it is said."""
    BEFORE = ". echo a\nd echo b\nd echo c\n"
    EDITORS = {"in place": "sed -i -e 1s/./x/ -e '$a. echo new'", "a new file": "sed -i '2i. echo new'"}

    def check(self, written: str, *words: object, **settings: Any) -> None:
        """Let each call of runset4.py with these words fail.  written: the file, once all is written."""
        self.write(self.BEFORE)
        ended = self.finish(self.start(PYTHON, "-c", EACH_CALL, *words, **settings))
        lines = ended.out.splitlines()
        self.assertEqual(json.loads(lines.pop())[1:], [0, ""], ended.err)        # of the last n: none failed
        self.assertGreater(len(lines), 100)
        for line, after in zip(lines[::2], lines[1::2]):
            (number, status, call), (text, said) = json.loads(line), json.loads(after)
            with self.subTest(words, number=number, call=call):
                self.assertNotIn("Traceback", said)
                if status == 2:
                    self.assertEqual(text, self.BEFORE, said)
                elif status == 0:
                    self.assertEqual(text, written, said)
                else:
                    self.assertEqual(status, 1)
                    self.assertIn(", after changes were written (look whether all are there)", said)
                    self.assertNotEqual(text, self.BEFORE)

    def test_lines_that_were_added_are_not_taken_for_a_failure(self) -> None:
        self.write("echo new\n", "list")
        for words in ("--add", "echo new"), ("--new", "--add-list", "list"):
            self.check(f"{self.BEFORE}. echo new\n", "runs.txt", *words)

    def test_states_that_were_set_are_said(self) -> None:
        self.check(self.BEFORE.replace("d", "x"), "--set=x", "--state=done", "runs.txt")
        self.check(self.BEFORE.replace(". ", "c "), "--cancel", "runs.txt", "1")

    def test_an_edit_that_was_saved_is_said(self) -> None:
        self.check(f"x{self.BEFORE[1:]}. echo new\n", "--edit", "runs.txt",
                   env={"EDITOR": self.EDITORS["in place"]})
        first, rest = self.BEFORE.split("\n", 1)
        self.check(f"{first}\n. echo new\n{rest}", "--edit", "runs.txt",
                   env={"EDITOR": self.EDITORS["a new file"]})


class Listing(RunsetCase):
    """--list prints LINE STATE COMMAND, and goes well with other commands."""

    def test_all_jobs_are_listed_if_nothing_is_selected(self) -> None:
        self.write("# first\n" + FOUR + "x echo f\nprose\n")
        everything = b"2 . echo a\n3 d echo b\n4 ! echo c\n5 e echo d\n6 x (held) echo f\n"
        self.assertLists(everything, stray=7)
        self.assertLists(everything, "--all", stray=7)

    def test_the_selected_jobs_are_listed_in_the_order_of_the_file(self) -> None:
        self.write(FOUR)
        self.assertLists(b"2 d echo b\n4 e echo d\n", 4, 2)
        self.assertLists(b"3 ! echo c\n", "--state=!")
        self.assertLists(b"1 . echo a\n", "--match=*a")

    def test_a_number_that_is_no_job_is_named_behind_the_others(self) -> None:
        self.write("# no job\n" + FOUR)
        ended = self.run_script(RUNSET, "--list", "runs.txt", 1, 2, "4-9", 9)
        said = "".join(f"runset4.py: runs.txt: line {number}: no such job\n" for number in (1, 9))
        self.assertEqual((ended.code, ended.err.decode()), (1, said))
        self.assertEqual(ended.out, b"2 . echo a\n4 ! echo c\n5 e echo d\n")


class Adding(RunsetCase):
    """--add appends jobs: all of them, in order, or none."""

    def test_a_file_that_cannot_be_made_is_refused(self) -> None:
        for name in "no/such/folder/runs.txt", ".":
            with self.subTest(name):
                self.assertRefused(self.run_script(RUNSET, name, "--add", "echo 1"), f"runset4.py: {name}: ")

    def test_a_command_is_bytes_and_not_text(self) -> None:
        self.assertQuiet("runs.txt", "--add", os.fsdecode(b"echo \xff '\t' "))
        self.assertEqual(self.read(), b". echo \xff '\t' \n")

    def test_several_that_add_at_once_do_not_mix(self) -> None:
        writers, rounds, jobs = 4, 3, 40
        self.write(". no newline")
        script = 'for round in 1 2 3; do "$@" || exit 1; done'
        started = []
        for writer in range(writers):
            commands = [f"echo {writer} {job}" for job in range(jobs)]
            words = self.command(RUNSET, "runs.txt", "--add", *commands)
            started.append(self.start("sh", "-c", script, "sh", *words))
        self.assertEqual([self.finish(process).code for process in started], [0] * writers)
        lines = self.read().split(b"\n")
        self.assertEqual((lines[0], lines[-1]), (b". no newline", b""))
        self.assertEqual(self.batches(lines[1:-1], jobs), sorted(list(range(writers)) * rounds))

    def batches(self, lines: list[bytes], jobs: int) -> list[int]:
        """Who wrote the batches in these lines, sorted; each batch is whole and in order."""
        self.assertEqual(len(lines) % jobs, 0)
        found = []
        for start in range(0, len(lines), jobs):
            batch = lines[start:start + jobs]
            writer = int(batch[0].split()[2])
            self.assertEqual(batch, [b". echo %d %d" % (writer, job) for job in range(jobs)])
            found.append(writer)
        return sorted(found)


class Replaced(RunCase):
    """An editor puts a new file in the place of the job file while runset4.py is at work on it."""
    BEFORE = "! echo a\n! echo b\n. echo c\n"
    # What is in `new` comes to the place of runs.txt before the nth command mutex is locked, or when what was
    # written is synced
    BEFORE_LOCK = """
import os, runmaker4
lock, calls = runmaker4.LockTable._lock, []
def late(*args):
    calls.append(args)
    if len(calls) == {}:
        {}
    return lock(*args)
runmaker4.LockTable._lock = late
"""
    # ... or when the file was just opened to append to it
    AFTER_OPEN = """
import os, runset4
open_file, calls = runset4.open_job_file, []
def late(path, flags):
    fd = open_file(path, flags)
    if flags & os.O_APPEND:
        calls.append(fd)
        if len(calls) == {}:
            {}
    return fd
runset4.open_job_file = late
"""
    AT_SYNC = """
import os
sync = os.fsync
def early(fd):
    os.replace("new", "runs.txt")
    sync(fd)
os.fsync = early
"""
    REPLACE = "os.replace('new', 'runs.txt')"

    def edit_meanwhile(self, patch: str, *args: object) -> Ended:
        """Run runset4.py, patched so that an editor saves the file with a line more meanwhile."""
        self.write(self.BEFORE)
        self.write(f"# edited\n{self.BEFORE}", "new")
        return self.finish(self.start_patched(patch, "-q", "runs.txt", *args, script=RUNSET))

    def assertSaid(self, ended: Ended) -> None:
        """Exit 1 and one line that says what to do; the file is as the editor has saved it."""
        self.assertEqual((ended.code, ended.out, ended.err.count(b"\n")), (1, b"", 1), ended.err)
        said = b"runset4.py: runs.txt: was replaced, and may lack the changes just written (look, and run"
        self.assertTrue(ended.err.startswith(said), ended.err)
        self.assertEqual(self.read(), as_bytes(f"# edited\n{self.BEFORE}"))

    def test_what_is_added_goes_to_the_new_file_which_is_waited_for(self) -> None:
        aside = ("os.rename('runs.txt', 'runs.txt~'); import threading; "
                 "threading.Timer(0.1, os.replace, ('new', 'runs.txt')).start()")
        for moment, editor in itertools.product((self.BEFORE_LOCK, self.AFTER_OPEN), (self.REPLACE, aside)):
            with self.subTest(editor, moment=moment):
                ended = self.edit_meanwhile(moment.format(1, editor), "--add", "echo 1")
                self.assertEqual((ended.code, ended.err), (0, b""))
                self.assertEqual(self.read(), as_bytes(f"# edited\n{self.BEFORE}. echo 1\n"))

    def test_what_was_added_at_the_moment_of_the_save_is_said(self) -> None:
        self.assertSaid(self.edit_meanwhile(self.AT_SYNC, "--add", "echo 1"))

    def test_states_are_not_set_in_the_old_file_without_a_word(self) -> None:
        for number in 1, 2:
            with self.subTest(number=number):
                ended = self.edit_meanwhile(self.BEFORE_LOCK.format(number, self.REPLACE), "--set=x", "1-2")
                self.assertSaid(ended)

    def test_a_save_behind_the_last_line_is_noticed(self) -> None:
        patch = (
            "import os, runmaker4\nunlock, calls = runmaker4.unlock, []\n"
            "def late(*args):\n    unlock(*args)\n    calls.extend(args[1:2] * (args[1] % 65536 == 65535))\n"
            f"    if len(calls) == 2: {self.REPLACE}\nrunmaker4.unlock = late"
        )
        self.assertSaid(self.edit_meanwhile(patch, "--set=x", "1-2"))

    def test_nobody_else_appends_until_what_is_added_is_written_and_synced(self) -> None:
        look = """
import fcntl, os, runmaker4
def looking(write):
    def look_and_write(*args):
        if not os.fork():
            try:
                fd = os.open(".runs.txt.lock", os.O_RDWR)
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, runmaker4.APPEND_BYTE)
                open("free", "w").close()
            finally:
                os._exit(0)
        os.wait()
        return write(*args)
    return look_and_write
os.write, os.fsync = looking(os.write), looking(os.fsync)
"""
        ended = self.edit_meanwhile(look, "--add", "echo d", "echo e")
        self.assertEqual((ended.code, ended.err), (0, b""))
        self.assertEqual(self.states(), "!!...")
        self.assertFalse(self.exists("free"))

    def test_what_is_added_while_editors_save_is_there_once(self) -> None:
        """The editor reads and saves under the append lock."""
        rounds = [[f"echo {number}{writer}" for writer in range(3)] for number in range(4)]
        self.write("")
        saves, over = [], threading.Event()

        def edit() -> None:
            while not over.wait(0.002):
                fd = runmaker4.open_lock_file_of(str(self.dir / "runs.txt"))
                with locked(fd, APPEND_BYTE):
                    os.replace(self.write(self.read(), "new"), self.dir / "runs.txt")
                os.close(fd)
                saves.append(fd)

        editor = threading.Thread(target=edit)
        editor.start()
        try:
            for commands in rounds:
                before = len(saves)
                for _, ended in self.run_all((RUNSET, "-q", "runs.txt", "--add", it) for it in commands):
                    self.assertEqual((ended.code, ended.err), (0, b""))
                wait_until(lambda: len(saves) > before + 2, what="the editor has saved, too")
        finally:
            over.set()
            editor.join()
        wanted = [f". {it}" for commands in rounds for it in commands]
        self.assertEqual(sorted(self.read().decode().splitlines()), wanted)
