"""Promise: the console shows what jobs print, whole and in order, and at last what became of them."""
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import unittest
from typing import Any, Callable

from tests.support.case import GATE, Case
from tests.support.console import ConsoleLine, console_lines, printed
from tests.support.patches import patient
from tests.support.pipes import read_terminal
from tests.support.process_table import peak_memory
from tests.support.processes import DEADLINE, Ended, wait_until
from tests.support.runs import SLEEPING, RunCase
from tests.support.scripts import RUNMAKER
from tests.support.values import present

ESCAPE = re.compile(rb"\x1b\[[0-9;]*m")
STATUS = re.compile(rb"progress:[^\r\n]*\r(?:\r\x1b\[J)?")     # a status line, and what erases it


class Wanted(RunCase):
    """Jobs have pipes where what they print is shown or kept, and else /dev/null."""

    def test_nobody_reads_what_nobody_shows_or_keeps(self) -> None:
        for options, nowhere in ((["-q", "--no-records"], True), (["--no-records"], False), (["-q"], False),
                                 (["--no-records", "--plain"], False),
                                 (["--no-records", "-q", "-l", "log"], False),
                                 (["--no-records", "-q", "--joblog", "joblog"], False)):
            with self.subTest(options):
                self.jobs('found=$(readlink /proc/$$/fd/1 /proc/$$/fd/2); echo "$found" >where; echo printed')
                ended = self.run_jobs(*options)
                self.assertEqual((ended.code, self.read("where") == b"/dev/null\n" * 2), (0, nowhere))


class Console(Case):
    """One line per event, in a fixed form, never mixed with another and never late."""

    def run_jobs(self, text: str, *options: str) -> list[ConsoleLine]:
        self.write(text)
        return console_lines(self.run_script(RUNMAKER, *options, "runs.txt").out)

    def test_the_lines_of_a_job_have_exactly_this_form_and_order(self) -> None:
        """Each names the node, and the shell of the job."""
        self.write(". echo $$; echo 'b \"c\"'\n. echo $$ >&2; printf 'b\\nc' >&2\n")
        out = self.run_script(RUNMAKER, "--name", "alice", "runs.txt").out
        wanted = b""
        for command, stream, others in ((b"echo $$; echo 'b \"c\"'", b"stdout", [b'b "c"']),
                                        (b"echo $$ >&2; printf 'b\\nc' >&2", b"stderr", [b"b", b"c"])):
            who = b"(alice,%b): " % present(re.search(rb"%b \(alice,(\d+)\)" % stream, out))[1]
            texts = [who[7:-3], *others]
            wanted += b"executing `%b'\nstatus %bforked \"%b\"\n" % (command, who, command)
            wanted += b"".join(b"%b %b%b\n" % (stream, who, text) for text in texts)
            wanted += b"status %bexit 0 \"%b\"\n" % (who, command)
        self.assertEqual(out, wanted)

    def test_the_exit_status_or_signal_of_a_failure_is_shown(self) -> None:
        lines = self.run_jobs(". exit 3\n. sh -c 'kill -9 $$'\n. kill -9 $$\n")
        ends = [text for text in printed(lines, "status") if not text.startswith(b"forked")]
        self.assertEqual(ends,
                         [b'exit 3 "exit 3"', b'exit 137 "sh -c \'kill -9 $$\'"', b'signal 9 "kill -9 $$"'])

    def test_lines_of_jobs_at_once_are_never_mixed_within_a_line(self) -> None:
        halves = "for i in 1 2 3 4 5; do printf aaaa; sleep 0.0$i; echo bbbb; done"
        lines = self.run_jobs(f". {halves}\n" * 4, "-j4")
        self.assertEqual(printed(lines), [b"aaaabbbb"] * 20)

    def test_a_line_is_shown_while_its_job_runs(self) -> None:
        self.write(". echo first; until [ -e go ]; do sleep 0.02; done; echo second\n")
        runner = self.start(RUNMAKER, "runs.txt")
        self.addCleanup(self.write, "", "go")
        early = [present(runner.stdout).readline() for _ in range(3)]
        self.assertTrue(early[2].endswith(b"): first\n"), early)
        self.assertEqual(self.states(), "r")
        self.write("", "go")
        self.assertEqual(printed(console_lines(self.finish(runner).out)), [b"second"])


class LastOutput(Case):
    """All that a job printed is shown before its exit line, nothing after it."""

    def assertNothingLate(self, lines: list[ConsoleLine]) -> None:
        ended: set[int] = set()
        for line in lines:
            self.assertNotIn(line.pid, ended, line)
            if line.kind == "status" and not line.text.startswith(b"forked"):
                ended.add(line.pid)

    def test_the_dying_words_of_jobs_of_every_age_come_before_their_exit_line(self) -> None:
        pauses = ["", "sleep 0.01; ", "sleep 0.05; "]
        jobs = [f"{pauses[number % 3]}seq {number} 2000; printf end >&2; printf end" for number in range(24)]
        self.write("".join(f". {job}\n" for job in jobs))
        lines = console_lines(self.run_script(RUNMAKER, "-j4", "runs.txt").out)
        self.assertNothingLate(lines)
        for number, job in enumerate(jobs):
            pid = next(line.pid for line in lines if line.text == b'exit 0 "%s"' % job.encode())
            self.assertEqual(printed(lines, "stdout", pid),
                             [b"%d" % i for i in range(number, 2001)] + [b"end"])
            self.assertEqual(printed(lines, "stderr", pid), [b"end"])

    def test_a_full_pipe_is_read_to_its_end_when_the_job_ends(self) -> None:
        self.write(". head -c 60000 /dev/zero | tr '\\0' x; kill -9 $$\n" * 10)
        lines = console_lines(self.run_script(RUNMAKER, "-j2", "runs.txt").out)
        self.assertNothingLate(lines)
        self.assertEqual(printed(lines), [b"x" * 60000] * 10)

    def test_what_a_background_process_prints_later_is_not_shown(self) -> None:
        ended = "until grep -q '^d' runs.txt; do sleep 0.02; done"
        self.write(f". (trap '' PIPE; {ended}; echo late; touch late) & echo last\n"
                   ". until [ -e late ]; do sleep 0.02; done\n")
        lines = console_lines(self.run_script(RUNMAKER, "runs.txt").out)
        self.assertEqual(printed(lines), [b"last"])
        self.assertNothingLate(lines)


class Plain(RunCase):
    """--plain: what jobs print and nothing else, each job's together when it has ended."""

    JOBS = (
        ". echo a; echo a >&2; until grep -q '^d' runs.txt; do sleep 0.02; done; printf aa\n"
        ". echo b; echo bb >&2\n"
    )

    def run_plain(self, text: str, *options: str) -> Ended:
        self.write(text)
        return self.run_script(RUNMAKER, "-j2", "--plain", *options, "runs.txt")

    def test_a_file_of_messages_has_the_stderr_of_jobs_and_no_line_of_ours_if_all_is_well(self) -> None:
        self.write(". echo a >&2\n")
        ended = self.run_script(RUNMAKER, "--plain", "--errors", "errors", "runs.txt")
        self.assertEqual((ended.code, self.read("errors")), (0, b"a\n"), ended.err)

    def test_each_job_s_output_comes_together_and_with_k_in_the_order_of_the_file(self) -> None:
        self.assertEqual(self.run_plain(self.JOBS), Ended(0, b"b\na\naa", b"bb\na\n"))
        self.assertEqual(self.run_plain(self.JOBS, "-k"), Ended(0, b"a\naab\n", b"a\nbb\n"))

    def test_only_the_last_try_of_a_job_is_printed_and_at_its_place(self) -> None:
        """Of one that fills a file, of one whose last try is silent, and of one whose second cannot start."""
        first = "[ -e tried.$JOB_ID ] || { : > tried.$JOB_ID; seq 200000; echo half; echo half >&2; exit 1; }"
        others = "until [ ! -e dash ]; do sleep 0.02; done"
        text = (f". {first}; {others}; echo a; echo a >&2\n. {first}\n. echo b; exit 1\n"
                "#RUN shell=./dash\n. echo c; rm dash; exit 1\n")
        for options in ("--retries", "1"), ("-k", "--retries", "2"):
            (self.dir / "dash").symlink_to("/bin/sh")
            ended = self.run_plain(text, *options)
            self.assertEqual((self.states(), sorted(ended.out.split())), ("dd!e", [b"a", b"b", b"c"]))
            self.assertNotIn(b"half", ended.err)
            for number in 1, 2:
                (self.dir / f"tried.{number}").unlink()
        self.assertEqual(ended.out, b"a\nb\nc\n")

    def test_long_outputs_are_whole(self) -> None:
        numbers = b"".join(b"%d\n" % number for number in range(1, 300_001))
        ended = self.run_plain(". seq 300000\n. seq 300000 >&2\n. seq 300000\n", "-k")
        self.assertTrue((ended.out, ended.err) == (2 * numbers, numbers), "not what the jobs printed")

    def test_long_outputs_that_wait_for_their_turn_need_no_descriptors(self) -> None:
        """Of 60 jobs each prints more than fits into memory, while the first one runs.

        No more are started when their files need all descriptors, and nothing is lost.
        """
        self.write(f". {GATE}; echo first\n" + ". seq 200000\n" * 60)
        few = "sh", "-c", 'ulimit -n 64; exec "$@"', "sh"
        with open(self.dir / "printed", "wb") as printed, open(self.dir / "said", "wb") as said:
            runner = self.start(*few, *self.command(RUNMAKER, "-j2", "--plain", "-k", "runs.txt"),
                                stdout=printed, stderr=said)
        wait_until(lambda: b"too many open files" in self.read("said"), what="no descriptor is free")
        self.assertLess(peak_memory(runner.pid), 150)
        self.open_gate()
        self.assertEqual((self.finish(runner).code, self.states()), (0, "d" * 61))
        self.assertNotIn(b"lost", self.read("said"))
        numbers = b"".join(b"%d\n" % number for number in range(1, 200_001))
        self.assertTrue(self.read("printed") == b"first\n" + 60 * numbers, "not what the jobs printed")

    def test_an_interrupted_job_s_output_is_printed(self) -> None:
        self.write(f". echo a; {SLEEPING}\n. echo b\n")
        runner = self.start_jobs("-j2", "--plain", "-k")
        self.wait_states("rd")
        self.assertEqual(self.stop(runner, signal.SIGINT).out, b"a\nb\n")

    def test_k_alone_is_refused(self) -> None:
        self.write(". true\n")
        self.assertRefused(self.run_script(RUNMAKER, "-k", "runs.txt"), "--plain")

    def test_an_error_of_the_temporary_file_is_not_one_of_stdout(self) -> None:
        self.write(". head -c 3000000 /dev/zero; echo one\n. echo two\n")
        unreadable = """
import errno, os, tempfile
make = tempfile.TemporaryFile
class Unreadable:
    def __init__(self, **settings):
        self.file = make(**settings)
    def __getattr__(self, name):
        return getattr(self.file, name)
    def read(self, size):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
tempfile.TemporaryFile = Unreadable
"""
        ended = self.finish(self.start_patched(unreadable, "--plain", "-k", "runs.txt"))
        self.assertEqual((ended.code, self.states()), (1, "dd"))
        self.assertEqual(ended.out, b"two\n")
        self.assertComplains(ended, "line 1", "temporary file")
        self.assertNotIn(b"stdout", ended.err)

    def fill_the_disk(self, *options: object) -> None:
        """Have a job print more than its file may have, and then a little, which a buffer would keep."""
        self.write(f". head -c 1500000 /dev/zero | tr '\\0' x; {GATE}; echo more; exit 1\n. echo two\n")
        runner = self.start("sh", "-c", 'ulimit -f 2048; exec "$@"', "sh",      # 1 MiB
                            *self.command(RUNMAKER, "-j1", "--plain", "--no-records", *options, "runs.txt"))
        self.assertIn(b"too large in a temporary file", present(runner.stderr).readline())
        self.open_gate()
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states()), (1, "!d"))
        self.assertEqual(ended.out, b"x" * (1 << 20) + b"two\n")
        self.assertNotIn(b"stdout", ended.err)

    def test_what_a_full_disk_has_of_it_is_printed(self) -> None:
        self.fill_the_disk()

    def test_a_full_disk_ends_no_runner_that_tries_again(self) -> None:
        self.fill_the_disk("--retries", 1)


class SharedDescriptor(Case):
    """Console and messages may go to one pipe or terminal, and the console to a file or a socket."""

    LINES = 30_000

    def start_noisy(self, **options: Any) -> subprocess.Popen[bytes]:
        """Start a runner that has much to print and many messages to say meanwhile."""
        self.write(f". seq 1000001 {1_000_000 + self.LINES}\n" + ". :\0\n. sleep 0.01\n" * 40)
        return self.start(RUNMAKER, "-j2", "--name", "alice", "runs.txt", **options)

    @staticmethod
    def read_slowly(read: Callable[[], bytes]) -> bytes:
        """All that comes, with pauses in which the runner has to wait."""
        pieces: list[bytes] = []
        while not pieces or pieces[-1]:
            pieces.append(read())
            time.sleep(0.001)
        return b"".join(pieces)

    def assertWholeLines(self, out: bytes) -> None:
        """Every line of the job is there and whole, and so are the messages."""
        lines = re.sub(rb"^runmaker4\.py: [^\n]*\n", b"", out, flags=re.MULTILINE)
        self.assertAll(printed(console_lines(lines)), out)

    def assertAll(self, lines: list[bytes], out: bytes) -> None:
        """These are the lines of the job, and the messages are in what was printed."""
        expected = [b"%d" % number for number in range(1_000_001, 1_000_001 + self.LINES)]
        self.assertTrue(lines == expected, "not the lines of the job")
        messages = re.findall(rb"^runmaker4\.py: runs\.txt: line \d+: [^\n]*\n", out, re.MULTILINE)
        self.assertEqual(len(messages), 40)

    def test_messages_on_the_same_pipe_split_no_line(self) -> None:
        runner = self.start_noisy(stderr=subprocess.STDOUT)
        self.assertWholeLines(self.read_slowly(lambda: os.read(present(runner.stdout).fileno(), 3000)))

    def test_a_pipe_that_another_has_made_non_blocking_gets_all_lines_and_stays_so(self) -> None:
        ours, theirs = os.pipe()
        os.set_blocking(theirs, False)
        with open(ours, "rb", buffering=0) as reader, open(theirs, "wb") as writer:
            self.start_noisy(stdout=writer, stderr=writer)
            first = reader.read(3000)
            self.assertFalse(os.get_blocking(theirs))
            writer.close()
            self.assertWholeLines(first + self.read_slowly(lambda: reader.read(3000)))

    def test_messages_on_the_same_terminal_split_no_line(self) -> None:
        master, slave = os.openpty()
        self.addCleanup(os.close, master)
        self.start_noisy(stdout=slave, stderr=slave, env={"NO_COLOR": "1", "TERM": "xterm"})
        os.close(slave)
        shown = read_terminal(master)
        self.assertIn(b"progress: ", shown)
        out = STATUS.sub(b"", shown)
        self.assertAll(re.findall(rb"^\[1\] (\d+)\n", out, re.MULTILINE), out)
        self.assertNotIn(b"progress: ", out)
        self.assertNotIn(b"\x1b", out)

    def test_a_file_gets_all_lines(self) -> None:
        with open(self.dir / "console", "wb") as console:
            self.assertEqual(self.start_noisy(stdout=console, stderr=subprocess.STDOUT).wait(DEADLINE), 1)
        self.assertWholeLines(self.read("console"))

    def test_a_socket_gets_all_lines(self) -> None:
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.start_noisy(stdout=theirs, stderr=theirs)
        theirs.close()
        self.assertWholeLines(self.read_slowly(lambda: ours.recv(3000)))


class Terminal(Case):
    """On a terminal failures stand out in colour; a pipe, a file and NO_COLOR get none."""

    JOBS = ". echo a\n. echo b; exit 3\n. kill -9 $$\n"

    def run_in_terminal(self, *options: str, **env: str) -> bytes:
        """Run the jobs with stdout and stderr on a pseudo-terminal; what the terminal got."""
        self.write(self.JOBS)
        master, slave = os.openpty()
        self.addCleanup(os.close, master)
        settings = {"NO_COLOR": "", "TERM": "xterm-256color", **env}
        runner = self.start(RUNMAKER, *options, "runs.txt", env=settings, stdout=slave, stderr=slave)
        os.close(slave)
        shown = read_terminal(master)
        ends = (0, "d..") if "-1" in options else (1, "d!!")
        self.assertEqual((runner.wait(DEADLINE), self.states()), ends)
        return shown

    def line_of(self, shown: bytes, text: bytes) -> bytes:
        return next(line for line in shown.split(b"\n") if text in line)

    def test_failures_are_coloured_and_successes_are_not(self) -> None:
        shown = self.run_in_terminal()
        for text in b"exit 3", b"signal 9":
            self.assertRegex(self.line_of(shown, text + b" in "), ESCAPE)
        for text in b"[1] a", b"[1] done in ", b"[2] b":
            self.assertNotRegex(self.line_of(shown, text), ESCAPE)
        self.assertTrue(ESCAPE.findall(shown)[-1] in (b"\x1b[0m", b"\x1b[m"),
                        "the colour is switched off again")
        self.assertNotRegex(self.run_in_terminal(NO_COLOR="1"), ESCAPE)

    def test_with_a_log_file_results_are_shown_and_no_output(self) -> None:
        shown = self.run_in_terminal("-l", "log")
        first, second, *_ = ESCAPE.sub(b"", shown).split(b"\n")
        self.assertRegex(first, rb"Ctrl-C kills the jobs; Ctrl-\\ starts no more")
        self.assertEqual(second.rstrip(), b"runmaker4.py: runs.txt: one job at a time (-j0: one per CPU)")
        self.assertRegex(self.line_of(shown, b"exit 3 in "), ESCAPE)
        self.assertIn(b"[1] done in ", shown)
        self.assertNotIn(b"[1] a", shown)

    def test_that_jobs_run_one_at_a_time_is_said_where_nobody_has_asked_for_it(self) -> None:
        for options in "", "-r", "-j1", "-1", "--slots a", "-q":
            with self.subTest(options=options):
                shown = self.run_in_terminal(*options.split())
                self.assertEqual(b"one job at a time (-j0: one per CPU)" in shown, options in ("", "-r"))

    def test_a_dumb_terminal_gets_lines_only(self) -> None:
        for name in "dumb", "":
            with self.subTest(TERM=name):
                shown = self.run_in_terminal(TERM=name)
                self.assertNotIn(b"\x1b", shown)
                self.assertNotIn(b"progress", shown)
                self.assertIn(b"[1] a\n[1] done in ", shown)

    def test_a_pipe_gets_no_colour_though_stderr_is_a_terminal(self) -> None:
        self.write(self.JOBS)
        env = {"NO_COLOR": "", "TERM": "xterm-256color"}
        master, slave = os.openpty()
        self.addCleanup(os.close, master)
        runner = self.start(RUNMAKER, "runs.txt", env=env, stderr=slave)
        os.close(slave)
        out = runner.communicate(timeout=DEADLINE)[0]
        self.assertNotIn(b"\x1b", out)
        self.assertIn(b"-r runs them again", read_terminal(master))


class ClosingLine(RunCase):
    """A runner's last line, on stderr, says what became of its jobs, and which states were not written."""
    NO_ROOM = """
import errno, os, runmaker4
pwrite = os.pwrite
def no_room_for_errors(descriptor, data, offset):
    if data == b"e":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return pwrite(descriptor, data, offset)
os.pwrite = no_room_for_errors
runmaker4.Runner.MAX_RESULT_SECONDS = 0.2
"""

    def test_after_a_signal_the_lines_that_still_say_running_are_named(self) -> None:
        self.jobs(SLEEPING, "true", SLEEPING)
        runner = self.start_patched(self.NO_ROOM, "-j3", "runs.txt")
        self.wait_up(1, 3, runner=runner)
        self.wait_states("rdr")
        ended = self.stop(runner)
        self.assertEnded(ended, 143, "rdr")
        closing = ended.err.decode().splitlines()[-1]
        self.assertRegex(closing, r"\(lines 1, 3\); in all 1 done, 2 running; -r runs them again$")
        self.assertRegex(closing, r"\b1 done\b")

    STUCK = """
import os, time, runmaker4
write = runmaker4.JobFile.write
def write_if_it_answers(*args):
    while os.path.exists("stuck"):
        time.sleep(0.05)
    return write(*args)
runmaker4.JobFile.write = write_if_it_answers
runmaker4.Mount.network = True          # so a thread makes the calls
runmaker4.Runner.MAX_RESULT_SECONDS = runmaker4.Runner.MAX_ANSWER_SECONDS = 0.2
"""

    def test_after_a_signal_a_file_system_that_does_not_answer_is_not_waited_for(self) -> None:
        self.write("a\nb\n", "names")
        for options in ("-j2",), ("--slots", "@names"):
            with self.subTest(options):
                self.jobs(SLEEPING)
                runner = self.start_patched(self.STUCK, *options, "runs.txt")
                self.wait_up(1, runner=runner)
                self.write("", "stuck")
                ended = self.stop(runner)
                self.assertEqual(ended.code, 143)
                self.assertIn(b"1 not written down", ended.err)
                for name in "stuck", "up.1":
                    (self.dir / name).unlink()

    def test_errors_count_apart_from_failures_and_it_is_the_last_of_all_lines(self) -> None:
        self.write(". true\n. false\n. kill -9 $$\n. echo a\0b\n. a\0b\n")
        both = self.run_script(RUNMAKER, "-j3", "runs.txt", stderr=subprocess.STDOUT)
        self.assertEqual((both.code, self.states()), (1, "d!!ee"))
        self.assertRegex(both.out, rb"\nrunmaker4\.py: runs\.txt: 1 done, 2 failed, 2 error in [^\n]* "
                                   rb"\(lines 2, 3, 4, 5\)[^\n]*; -r runs [^\n]*\nnext: [^\n]*\n\Z")

    def test_it_is_said_once_and_not_of_what_only_looks_like_it(self) -> None:
        self.write(". echo a \\&\n. sleep 0 & wait\n. echo '&'\n. true # &c\n. true # a &\n"
                   ". true && sleep 0 &\n. sleep 0 & \n. true\n")
        ended = self.run_script(RUNMAKER, "-q", "runs.txt")
        self.assertEqual(ended.code, 0)
        self.assertEqual(ended.err.count(b"ends in &, so it is done at once"), 1, ended.err)
        self.assertIn(b"line 6: ends in &", ended.err)


class ReadOn(RunCase):
    """What a shell has left may print on after its end."""

    @unittest.skipUnless(shutil.which("bash"), "there is no bash")
    def test_what_goes_through_a_process_substitution_is_whole(self) -> None:
        wanted = [b"%d" % number for number in range(1, 20_001)]
        self.write("#RUN shell=bash\n. exec > >(cat >all; tee log <all) 2>&1; seq 20000\n")
        ended = self.finish(self.start_patched(patient(60), "--outdir", "out", "runs.txt"))
        self.assertEqual(ended.code, 0, ended.err)
        self.assertEqual(printed(console_lines(ended.out)), wanted)
        self.assertEqual(self.read("out/2.out").split(), wanted)
        self.assertEqual(self.read("log").split(), wanted)

    def test_a_silent_process_does_not_keep_a_job(self) -> None:
        self.jobs("sleep 600 & echo $! >pid")
        ended = self.run_jobs()
        os.kill(int(self.read("pid")), signal.SIGKILL)
        self.assertEnded(ended, 0, "d")

    def test_one_that_prints_for_ever_does_not_keep_a_job(self) -> None:
        self.jobs("while :; do echo x; sleep 0.05; done &")
        ended = self.finish(self.start_patched(patient(2), "runs.txt"))
        self.assertEnded(ended, 0, "d")
        self.assertGreater(len(printed(console_lines(ended.out))), 2)

    def test_a_console_that_is_blocked_for_long_loses_no_line(self) -> None:
        self.jobs("{ seq 150000; : > printed; } & : > left")
        runner = self.start_patched(patient(2), "runs.txt")
        wait_until((self.dir / "left").exists, what="the shell has left a process behind")
        time.sleep(3.0)                     # longer than output is read
        self.assertFalse(self.exists("printed"), "the console is not blocked")
        self.assertLess(peak_memory(runner.pid), 80)
        ended = self.finish(runner)
        self.assertEnded(ended, 0, "d")
        self.assertTrue(self.exists("printed"))
        self.assertEqual(printed(console_lines(ended.out)), [b"%d" % number for number in range(1, 150_001)])
