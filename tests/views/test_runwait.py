"""runwait4.py: it waits until all jobs have ended, shows the progress, counts; and it never writes."""
import json
import os
import re
import signal
import subprocess
import termios
import time
import unittest
from typing import Any

from tests.support.case import GATE
from tests.support.line_locks import hold_line
from tests.support.pipes import deadline
from tests.support.processes import DEADLINE, Ended, wait_until
from tests.support.runs import LOOKS, RunCase
from tests.support.scripts import FULL, RUNMAKER, RUNWAIT
from tests.support.terminal import Terminal, TerminalCase
from tests.support.values import present

LINE = re.compile(rb"progress: +\d+ of +\d+ jobs processed, \d+ errors \[=*e*!*>* *\]\n")
COUNTS = ("new", "running", "done", "failed", "error", "held")
# each look of --progress adds a byte to `looks`
NOTES = """
import runwait4
update = runwait4.PipeProgress.update
def update_and_note(progress, counts):
    try:
        update(progress, counts)
    finally:
        with open("looks", "ab") as looks:
            looks.write(b"x")
runwait4.PipeProgress.update = update_and_note
"""
HALF_WAY = b"progress:   2 of   4 jobs processed, 0 errors [========>>>>    ]\n"
ALL_DONE = b"progress:   4 of   4 jobs processed, 0 errors [================]\n"


class RunwaitCase(RunCase):
    """Steps that the tests below share."""

    def runwait(self, *args: object) -> Ended:
        return self.run_script(RUNWAIT, *args, "runs.txt")

    def runner_at_gate(self, *lines: str) -> subprocess.Popen[bytes]:
        """A runner of a file with these lines, the first of which waits for the gate."""
        return self.start_to_gate("".join(f"{line}\n" for line in lines))

    def half_way(self) -> subprocess.Popen[bytes]:
        """A runner that has done 2 of 4 jobs and waits for the gate in the third."""
        return self.runner_at_gate("d echo a", "d echo b", f". {GATE}", ". echo d")

    def first_line(self, process: subprocess.Popen[bytes]) -> bytes:
        with deadline(process):
            return present(process.stdout).readline()

    def assertQuietEnd(self, ended: Ended, code: int = 0) -> None:
        self.assertEqual((ended.code, ended.out, ended.err), (code, b"", b""))


class Waiting(RunwaitCase):
    """It waits for what is new or running, whoever runs it, and for nothing else."""

    def test_it_waits_until_the_last_job_has_ended(self) -> None:
        runner = self.runner_at_gate(f". {GATE}", ". true")
        waiter = self.start_patched(LOOKS, "runs.txt", script=RUNWAIT)
        self.wait_looked()
        self.assertIsNone(waiter.poll())
        self.open_gate()
        self.assertQuietEnd(self.finish(waiter))
        self.assertEqual(self.states(), "dd")
        self.assertEqual(self.finish(runner).code, 0)

    def test_who_waits_while_no_runner_lives_is_told_so_once(self) -> None:
        said = "runwait4.py: runs.txt: 2 new, but no runner (start runmaker4.py)"
        self.write(". a\n. b\nd c\n")
        hasty = f"{LOOKS}import runwait4; runwait4.Watcher.MAX_IDLE_SECONDS = 0.3"
        for options in ["--progress"], ["-e"]:
            terminal = Terminal(100)
            self.addCleanup(terminal.close)
            waiter = self.start_patched(hasty, *options, "runs.txt", script=RUNWAIT, stdout=terminal.slave,
                                        stderr=terminal.slave)
            wait_until(lambda: said in terminal.look(), what=said)
            for _ in range(4):      # looks are 0.2 s apart: it could say it again
                self.wait_looked()
            self.assertEqual(terminal.look().count(said), 1)
            waiter.terminate()
            waiter.wait()

    def test_nothing_to_wait_for_is_no_error(self) -> None:
        for text in ("", "# comment\n", "x held\nQ held\n"):
            with self.subTest(text=text):
                self.write(text)
                self.assertQuietEnd(self.runwait())

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_a_job_that_starts_at_the_moment_of_a_look_is_waited_for(self) -> None:
        self.write(". true\n")
        with open(self.dir / "runs.txt", "r+b", buffering=0) as file:
            hold_line(self, 1)
            waiters = [self.start(RUNWAIT, "--progress", "runs.txt") for _ in range(5)]
            for waiter in waiters:
                self.first_line(waiter)
            end = time.monotonic() + 2
            while time.monotonic() < end:       # as if new jobs started all the time
                for state in (b".", b"r"):
                    os.pwrite(file.fileno(), state, 0)
            self.assertEqual([waiter.poll() for waiter in waiters], [None] * 5)
            os.pwrite(file.fileno(), b"d", 0)
        for waiter in waiters:
            self.assertEqual(self.finish(waiter).code, 0)

    def test_interrupting_it_ends_it_without_a_word(self) -> None:
        self.write(". true\n")
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(signal=number):
                waiter = self.start(RUNWAIT, "--progress", "runs.txt")
                self.first_line(waiter)
                ended = self.stop(waiter, number)
                self.assertIn(ended.code, (128 + number, -number))
                self.assertEqual(ended.err, b"")


class Status(RunwaitCase):
    """--status counts and ends at once, for people and as JSON."""

    TEXT = "# comment\n. a\n. b\n. c\nd d\nd e\n! f\ne g\nx h\nQ i\nprose\n"
    EXPECTED = {"new": 3, "running": 0, "done": 2, "failed": 1, "error": 1, "held": 2}

    NAMED = (
        b"runwait4.py: runs.txt: line 11 is neither a job nor a comment "
        b"(a job is '. COMMAND', a comment begins with #)\n"
    )

    def counts(self, err: bytes = b"", runners: int = 0) -> dict[str, Any]:
        """What --status --json prints, after a look at its form."""
        ended = self.runwait("--status", "--json")
        self.assertEqual((ended.code, ended.err, ended.out.count(b"\n")), (0, err, 1))
        found: dict[str, Any] = json.loads(ended.out)
        keys = "orphans", "cancelled", "in_doubt", "servers", "per_hour", "seconds_left"
        told = {key: found.pop(key) for key in keys}
        self.assertEqual(found.pop("runners"), runners)
        self.assertEqual(found.pop("waits") != "", found["new"] > 0 and not runners)
        self.assertEqual(set(found), {*COUNTS, "total", "jobs"})
        self.assertEqual(told, {"orphans": [], "cancelled": [], "in_doubt": [], "servers": 0,
                                "per_hour": None, "seconds_left": None})
        return found

    def test_the_counts_are_one_line_and_the_same_as_json(self) -> None:
        self.write(self.TEXT)
        ended = self.runwait("--status")
        self.assertEqual((ended.code, ended.err), (0, self.NAMED))
        line, *_ = ended.out.splitlines()
        self.assertRegex(line, rb"^9 jobs: ")
        found = {word.decode(): int(number) for number, word in re.findall(rb"(\d+) ([a-z]+)", line)}
        del found["jobs"]
        self.assertEqual(found, self.EXPECTED)
        self.assertEqual(self.counts(self.NAMED), {**self.EXPECTED, "total": 9, "jobs": []})
        self.write("")
        self.assertEqual(self.counts(), {**dict.fromkeys(COUNTS, 0), "total": 0, "jobs": []})

    def test_a_command_that_is_not_text_is_valid_json(self) -> None:
        command = f"{GATE}; : ".encode() + b"'\xff\xc3\xa9\x01\"'"
        runner = self.start_to_gate(b". " + command + b"\n")
        (job,) = self.counts(runners=1)["jobs"]
        self.assertEqual(job["command"].encode("utf-8", "surrogateescape"), command)
        self.open_gate()
        self.finish(runner)

    def test_the_exit_status_is_set_without_waiting_where_that_is_wished(self) -> None:
        texts = (("", 0), ("d a\nx b\n", 0), ("d a\n.b\n", 1), ("d a\n. b\n", 1), ("! a\n", 1), ("e a\n", 1),
                 ("r orphan\n", 1))
        for number, (text, _) in enumerate(texts):
            self.write(text, f"{number}.txt")
        for options, codes in (("-e",), [code for _, code in texts]), ((), [0] * len(texts)):
            ended = self.run_all((RUNWAIT, "--status", *options, f"{number}.txt")
                                 for number in range(len(texts)))
            self.assertEqual([end.code for _, end in ended], codes)
        runner = self.start_to_gate(f". {GATE}\n")
        self.assertEqual(self.runwait("--status", "-e", "--json").code, 1)
        unread, pipe = os.pipe()
        os.close(unread)
        self.assertEqual(self.run_script(RUNWAIT, "--status", "-e", "runs.txt", stdout=pipe).code, 1)
        os.close(pipe)
        self.open_gate()
        self.finish(runner)
        self.assertEqual(self.runwait("--status", "-e").code, 0)
        self.assertRefused(self.runwait("--stats", "--outdir", "out", "-e"), "--stats and -e")

    def test_the_exit_status_tells_with_e_whether_all_is_done(self) -> None:
        self.write("d true\n.true\n", "stray")
        self.assertEqual(self.run_script(RUNWAIT, "-e", "stray").code, 1)
        names = ("all-dd", "all-dx", "all-", "not-d!", "not-de")
        for name in names:
            self.write("".join(f"{state} true\n" for state in name.partition("-")[2]), name)
        calls = [(RUNWAIT, *options, name) for name in names for options in ((), ("-e",))]
        for call, ended in self.run_all(calls):
            with self.subTest(call=call):
                self.assertQuietEnd(ended, int("-e" in call and call[-1].startswith("not")))


class ProgressInAPipe(RunwaitCase):
    """In a pipe or a file --progress prints a plain line per change."""

    def test_the_lines_of_the_quick_start(self) -> None:
        runner = self.half_way()
        waiter = self.start(RUNWAIT, "--progress", "runs.txt")
        self.assertEqual(self.first_line(waiter), HALF_WAY)
        self.open_gate()
        ended = self.finish(waiter)
        self.assertEqual((ended.code, ended.out[-len(ALL_DONE):], ended.err), (0, ALL_DONE, b""))
        self.finish(runner)

    def test_a_bar_tells_done_error_failed_and_running_apart(self) -> None:
        """An orphan is an error; held jobs do not count."""
        others = "r left behind", "e c", "! d", "d e", "d f", "x held", "d h", "d i"
        runner = self.runner_at_gate(f". {GATE}", *others)
        waiter = self.start(RUNWAIT, "--progress", "runs.txt")
        self.assertRegex(self.first_line(waiter),
                         rb"^progress:   7 of   8 jobs processed, 1 failed, 2 error \[========eeee!!>>\]\n$")
        self.open_gate()
        self.finish(waiter)
        self.finish(runner)

    def test_an_empty_file_is_shown_and_does_not_hang(self) -> None:
        self.write("")
        ended = self.runwait("--progress")
        self.assertEqual((ended.code, ended.err), (0, b""))
        self.assertRegex(ended.out, rb"^progress:   0 of   0 jobs processed, 0 errors \[.{16}\]\n$")

    def test_a_line_comes_per_change_and_at_most_one_a_second(self) -> None:
        self.write(". true\n" * 15 + f". {GATE}\n")
        begin = time.monotonic()
        waiter = self.start(RUNWAIT, "--progress", "runs.txt")
        lines = [self.first_line(waiter)]
        runner = self.start(RUNMAKER, "-q", "runs.txt")
        with deadline(waiter):
            for line in present(waiter.stdout):
                lines.append(line)
                if b" 15 of " in line:
                    self.open_gate()
        # the first comes at once, and so does the last one: the others each after a second
        self.assertGreater(time.monotonic() - begin, len(lines) - 2)
        self.assertGreater(len(lines), 2)
        self.assertEqual(len(set(lines)), len(lines), lines)
        for line in lines:
            self.assertRegex(line, LINE)
        self.assertIn(b" 16 of  16 jobs", lines[-1])
        self.finish(runner)

    def test_a_reader_that_left_does_not_end_the_waiting_with_an_error_message(self) -> None:
        runner = self.half_way()
        waiter = self.start(RUNWAIT, "--progress", "runs.txt")
        self.first_line(waiter)
        present(waiter.stdout).close()
        self.open_gate()
        self.assertEqual((waiter.wait(DEADLINE), present(waiter.stderr).read()), (0, b""))
        self.finish(runner)

    def test_a_reader_that_left_makes_no_success_of_what_is_not_finished(self) -> None:
        runner = self.half_way()
        waiter = self.start_patched(NOTES, "--progress", "runs.txt", script=RUNWAIT)
        self.first_line(waiter)
        present(waiter.stdout).close()
        self.append(". echo e")                         # a change, of which nobody reads
        looks = len(self.wait_file("looks"))
        wait_until(lambda: waiter.poll() is not None or len(self.read("looks")) > looks + 2,
                   what="it has looked again")
        self.open_gate()
        self.assertEqual((waiter.wait(DEADLINE), self.states()), (0, "ddddd"))
        self.finish(runner)


class ProgressOnATerminal(TerminalCase, RunwaitCase):
    """On a terminal --progress is one line, redrawn in place, that fits; the terminal is left as it was."""

    def watch(self, terminal: Terminal, *options: str) -> subprocess.Popen[bytes]:
        return self.start_at(terminal, RUNWAIT, "--progress", *options, "runs.txt")

    def test_the_bar_is_redrawn_in_place_and_fits_any_width(self) -> None:
        runner = self.half_way()
        watched = []
        for columns in (40, 80, 200):
            terminal = self.terminal(columns)
            watched.append((terminal, self.watch(terminal)))
        for terminal, _ in watched:
            self.wait_shown(terminal, r"\b2\b.*\b4\b.*\[=+>+ +\]")
        self.open_gate()
        for terminal, process in watched:
            with self.subTest(columns=terminal.screen.columns):
                self.assertEqual(process.wait(DEADLINE), 0)
                (line,) = terminal.look()
                self.assertRegex(line, r"\b4\b.*\b4\b.*\[=+\]")
                self.assertLeftClean(terminal)
        self.finish(runner)

    def test_a_terminal_that_does_not_tell_its_width_is_taken_for_one_of_80_columns(self) -> None:
        self.write("d true\n! false\n")
        terminal = self.terminal(0)
        self.watch(terminal).wait(DEADLINE)
        self.assertRegex(terminal.look()[0], r"^progress:   2 of   2 jobs processed, 1 failed \[=+!+\]$")

    def test_ctrl_c_leaves_the_terminal_clean(self) -> None:
        runner = self.half_way()
        terminal = self.terminal(80)
        watcher = self.watch(terminal)
        self.wait_shown(terminal, r"\b2\b.*\b4\b")
        # nothing that has to be undone: kill -9 and Ctrl-Z do no harm
        self.assertEqual((terminal.screen.modes, termios.tcgetattr(terminal.slave)), ({}, terminal.settings))
        os.write(terminal.master, b"\x03")
        self.assertIn(watcher.wait(DEADLINE), (130, -signal.SIGINT))
        self.assertLeftClean(terminal)
        self.assertNotIn("Traceback", "".join(terminal.look()))
        self.open_gate()
        self.assertEqual(self.finish(runner).code, 0)
