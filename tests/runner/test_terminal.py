"""Promise: a terminal shows what jobs print, how they end, and how far all is; it is left clean."""
import asyncio
import fcntl
import os
import re
import subprocess
import tempfile
import unittest
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

import runmaker4
from tests.support.job_file import FileCase
from tests.support.processes import DEADLINE, wait_until
from tests.support.runs import SLEEPING, WAITING
from tests.support.scripts import RUNCLIENT, RUNMAKER, RUNSET, RUNWAIT
from tests.support.sinks import a_run
from tests.support.tcp import TcpCase
from tests.support.terminal import Terminal, TerminalCase
from tests.support.values import present

BAR = r"^progress: +%d of +%d jobs processed%s \[[=!e> ]*\]"
W = TypeVar("W", bound=runmaker4.Writer)
NO_HINT = "-j1"             # without it the terminal is told that jobs run one at a time


class ConsoleCase(TerminalCase):
    """Runs on a terminal."""

    def lines_of(self, terminal: Terminal, process: subprocess.Popen[bytes]) -> list[str]:
        """What is on the screen once a runner has ended, without its hint and its closing line, times as T.

        It has left the terminal clean.
        """
        lines: list[str] = []
        while process.poll() is None:
            lines = terminal.look()         # else the terminal is full, and it waits
        lines = terminal.look()
        self.assertLeftClean(terminal)
        self.assertNotIn("progress", "".join(lines))
        return [re.sub(r" in [\d.]+s", " in T", line)
                for line in lines
                if not line.startswith(("runmaker4", "next: ")) and "those that run" not in line]


class Bar(FileCase):
    """The status line is below the lines that report results, and has counted these."""

    def test_results_count_before_the_file_is_read_again(self) -> None:
        calls: list[tuple[Any, Any]] = []
        executor: Any = SimpleNamespace(call_then=lambda *call: calls.append(call))
        mount = runmaker4.Mount("nfs4", frozenset())
        self.path.write_bytes(b". a\n. b\n. c\n. d\n. e\n")
        reader = runmaker4.JobReader(str(self.path), say=self.fail, mount=mount)
        with mock.patch.multiple(runmaker4.FileCounter, MIN_COUNT_SECONDS_FAR=0.0, PAUSE_FACTOR=0):
            counter = runmaker4.FileCounter(reader, executor)
            self.assertIsNone(counter.counts)

            def count(*results: bytes) -> None:
                """Count the file; jobs end before the count is known."""
                counter.request_count_if_due()
                (on_counted, count_states), = calls
                calls.clear()
                found = count_states()
                for state in results:
                    counter.add_result(state)
                on_counted(found)

            count(b"d")
            self.assertEqual(counter.counts, (4, 0, 1, 0, 0, 0))
            counter.add_result(b"!")
            self.assertEqual(counter.counts, (3, 0, 1, 1, 0, 0))
            self.path.write_bytes(b"d a\n! b\nr c\nr d\n. e\n")
            count(b"e")
            self.assertEqual(counter.counts, (0, 2, 1, 1, 1, 0))        # for one that ends another starts
            counter.add_result(b"c")
            self.assertEqual(counter.counts, (0, 1, 1, 1, 1, 1))


class Lines(ConsoleCase):
    """What jobs print, and how they end."""

    def shown(self, *options: str, **env: str) -> list[str]:
        terminal = self.terminal(200)
        runner = self.start_at(terminal, RUNMAKER, NO_HINT, *options, "runs.txt", **env)
        return self.lines_of(terminal, runner)

    def raw(self, **env: str) -> str:
        """The bytes that a terminal gets for the jobs."""
        terminal = self.terminal(200)
        process, shown = self.start_at(terminal, RUNMAKER, NO_HINT, "runs.txt", **env), ""
        while process.poll() is None:
            shown += terminal.unread()
        return (shown + terminal.unread()).replace("\r\n", "\n")

    def test_each_line_is_behind_the_number_of_its_job_and_each_end_is_a_line(self) -> None:
        self.write("# a comment\n. printf 'a\\nb'\n. exit 3\n. kill -9 $$\n. true\n")
        self.assertEqual(self.shown(), [
            "[2] a",
            "[2] b",
            "[2] done in T: printf 'a\\nb'",
            "[3] exit 3 in T: exit 3",
            "[4] signal 9 in T: kill -9 $$",
            "[5] done in T: true",
        ])

    def test_each_try_has_a_line(self) -> None:
        self.jobs("test -e again || { touch again; exit 1; }", "false", "true")
        self.assertEqual([line.partition(":")[0] for line in self.shown("--retries", "2")], [
            "[1] exit 1 in T",
            "[1] done in T",
            "[2] exit 1 in T",
            "[2] exit 1 in T",
            "[2] exit 1 in T",
            "[3] done in T",
        ])

    def test_a_timeout_says_its_limit(self) -> None:
        self.jobs(SLEEPING)
        self.assertEqual(self.shown("--timeout", "0.3"), [f"[1] timeout after 0.3s: {SLEEPING}"])

    def test_what_stands_before_a_carriage_return_is_dropped(self) -> None:
        self.jobs(r"printf '10%%\r20%%\rready\nwindows\r\nboth\r\r\n\r\n\rlast\r'")
        self.assertEqual(self.shown()[:-1], ["[1] ready", "[1] windows", "[1] both", "[1]", "[1] last"])

    def test_stderr_has_a_colour_of_its_own_and_no_line_leaves_one(self) -> None:
        self.jobs(r"printf 'a\n'", r"printf 'b\nc' >&2", r"printf '\033[32mgreen\nplain\n'")
        shown = self.raw()
        colour = present(re.search(r"(\x1b\[\d+m)\[2\] b", shown))[1]
        for line in "[1] a\n", f"{colour}[2] b\x1b[0m\n", f"{colour}[2] c\x1b[0m\n", "\x1b[32mgreen\x1b[0m\n":
            self.assertIn(line, shown)
        without = self.raw(NO_COLOR="1")
        self.assertEqual(re.findall(r"\x1b\[[\d;]*m", without), [])

    def test_of_the_terminal_sequences_of_a_job_only_colours_pass(self) -> None:
        lasting = r"\033[?1049h\033[2J\033]0;title\007\033c\033(0\016"
        self.jobs(rf"printf '{lasting}a{lasting}b\033[1;32mc\033[m\td\be\007\n'")
        self.assertIn("[1] ab\x1b[1;32mc\x1b[m\tde\x1b[0m\n", self.raw())

    def test_no_c1_control_passes_as_a_character_or_as_a_byte(self) -> None:
        """U+009B is CSI, for an 8-bit terminal also the byte 9B; in another character it is no control."""
        self.jobs(r"printf 'a\302\2332Jb\2332Jc\377\233d\302\205e\304\233\303\200\n'")
        self.assertIn("[1] a2Jb2Jc\udcffde\u011b\u00c0\n", self.raw())

    def test_no_color_lets_the_colours_of_jobs_pass(self) -> None:
        self.jobs(r"printf '\033[32mgreen\n'")
        self.assertIn("[1] \x1b[32mgreen\x1b[0m\n", self.raw(NO_COLOR="1"))

    def test_a_job_that_cannot_be_started_is_said_once(self) -> None:
        self.before = self.write(b". true\0\n. true\n").read_bytes()
        self.assertEqual(self.shown(), ["[2] done in T: true"])
        self.assertEqual(self.states(), "ed")


class Stopped(ConsoleCase):
    """A terminal that takes no output (Ctrl-S, a frozen ssh) does not stop jobs whose output is recorded."""
    HASTY = "import runmaker4; runmaker4.TerminalConsole.MAX_FULL_SECONDS = 0"
    PRINTING = "head -c 3000000 /dev/zero | tr '\\0' x | fold -w 99"

    def test_the_jobs_go_on_and_the_terminal_is_told_once_what_it_does_not_show(self) -> None:
        self.jobs(self.PRINTING, "echo last")
        terminal = self.terminal(200)
        tty = terminal.slave
        runner = self.start_patched(self.HASTY, NO_HINT, "runs.txt", stdin=tty, stdout=tty, stderr=tty)
        shown = ""
        wait_until(lambda: self.states() == "dd", what="the jobs end")
        while runner.poll() is None:
            shown += terminal.unread()
        shown += terminal.unread()
        skipped, = re.findall(r"\((\d+) bytes not shown: the terminal was stopped; ", shown)
        self.assertGreater(int(skipped), 1_000_000)
        self.assertIn("runmaker4.py: runs.txt: 2 done in ", shown)
        self.assertEqual(self.read("runs.txt.out/1.out").count(b"x"), 3_000_000)

    def test_what_is_recorded_nowhere_else_is_not_skipped(self) -> None:
        self.jobs(WAITING)
        for recorded, ignored in (True, 2 << 20), (False, 0):
            terminal = mock.Mock(spec=runmaker4.Terminal, backlog=2 << 20, ignored=0)
            terminal.ignore_backlog = lambda: setattr(terminal, "ignored", terminal.backlog)
            console = runmaker4.TerminalConsole(terminal, True, None, None, False, is_recorded=recorded)
            for _ in range(6):
                console.on_tick()
            self.assertEqual(terminal.ignored, ignored)

    def test_all_output_of_a_job_has_the_number_that_it_was_started_with(self) -> None:
        terminal = mock.Mock(spec=runmaker4.Terminal, ignored=0)
        console = runmaker4.TerminalConsole(terminal, True, None, None, False, is_recorded=True)
        run = a_run(runmaker4.Job(runmaker4.Line(1, 0, b".", b" CMD")))
        run.job.number = 2                      # an edit has moved the line
        console.on_output(run, run.streams[0], b"a\n")
        console.on_ended(run, runmaker4.RunResult(0))
        shown = b"".join(call.args[0] for call in terminal.write.call_args_list)
        self.assertEqual(shown, b"[1] a\n[1] done in 0.0s: CMD\n")


class StatusLine(ConsoleCase):
    """Below all that is printed stands how far the file is."""

    def start_runner(self, columns: int = 80) -> tuple[Terminal, subprocess.Popen[bytes]]:
        terminal = self.terminal(columns)
        return terminal, self.start_at(terminal, RUNMAKER, NO_HINT, "runs.txt")

    def test_it_counts_the_whole_file_and_is_gone_in_the_end(self) -> None:
        self.write(f"d true\ne false\n. echo a\n. {WAITING}\n. true\nx held\n")
        terminal, runner = self.start_runner()
        self.assertLess(len(self.wait_shown(terminal, BAR % (3, 5, ", 1 error"))), 80)
        # so what a narrower window makes of it is behind the cursor, and is erased with it
        self.assertEqual(terminal.screen.column, 0)
        self.open_gate()
        lines = self.lines_of(terminal, runner)
        self.assertIn("[3] a", lines)
        self.assertIn("[5] done in T: true", lines)

    def test_a_runner_that_only_waits_is_at_work_too(self) -> None:
        self.write("d true\n")
        self.start_at(self.terminal(), RUNMAKER, NO_HINT, "--follow", "runs.txt")
        wait_until(lambda: b"\n1 runner at work\n" in self.run_script(RUNWAIT, "--status", "runs.txt").out)

    def test_failed_jobs_and_those_in_error_are_told_apart(self) -> None:
        self.write(f"! false\n! false 2\ne false 3\n. {WAITING}\n")
        terminal, runner = self.start_runner()
        self.wait_shown(terminal, BAR % (3, 4, ", 2 failed, 1 error"))
        self.open_gate()
        self.lines_of(terminal, runner)

    def test_what_others_do_is_counted_soon(self) -> None:
        self.jobs(WAITING, "true", "true")
        terminal, runner = self.start_runner()
        self.wait_shown(terminal, BAR % (0, 3, ""))
        self.run_script(RUNSET, "--set=e", "runs.txt", 2)
        self.wait_shown(terminal, BAR % (1, 3, ", 1 error"))
        self.append(". true")
        self.wait_shown(terminal, BAR % (1, 4, ", 1 error"))
        self.open_gate()
        self.lines_of(terminal, runner)

    def test_a_window_made_narrower_or_wider_is_followed(self) -> None:
        self.jobs("true", WAITING, "true")
        terminal, runner = self.start_runner(120)
        self.wait_shown(terminal, BAR % (1, 3, ""))
        terminal.resize(40)
        self.assertLess(len(self.wait_shown(terminal, r"^1/3 \[=+>+ +\]( .* left)?$")), 40)
        terminal.resize(100)
        self.wait_shown(terminal, BAR % (1, 3, ""))
        self.open_gate()
        self.assertEqual(self.lines_of(terminal, runner)[-1], "[3] done in T: true")

    def test_the_bar_names_a_job_that_hangs_in_place_of_a_time_left(self) -> None:
        self.jobs(*["true"] * 10, WAITING)
        terminal = self.terminal(80)
        runner = self.start_at(terminal, RUNMAKER, NO_HINT, "runs.txt")
        self.wait_shown(terminal, r"^10/11 \[.*\] line 11 runs \d+ times longer than any of the last 10$")
        self.open_gate()
        self.assertEqual(self.finish(runner).code, 0)

    def test_ctrl_c_fits_behind_the_bar_of_progress(self) -> None:
        """In the last column but one it was broken in two, and the first part of the bar remained."""
        self.jobs(WAITING)
        terminal = self.terminal(60)
        self.start_at(terminal, RUNWAIT, "--progress", "runs.txt")
        self.wait_shown(terminal, BAR % (0, 1, ""))
        self.assertEqual(terminal.screen.row, 0)
        terminal.screen.feed("^C")
        self.assertEqual(terminal.screen.row, 0)

    def test_ctrl_c_leaves_whole_lines_only(self) -> None:
        self.jobs(SLEEPING, "true")
        terminal, runner = self.start_runner(500)
        self.wait_shown(terminal, BAR % (0, 2, ""))
        os.write(terminal.master, b"\x03")
        self.assertEqual(self.lines_of(terminal, runner), [f"[1] signal 15 in T: {SLEEPING}"])
        lines = terminal.screen.lines()
        self.assertEqual(lines[1], "runmaker4.py: runs.txt: SIGINT: killing 1 job (Ctrl-C again: at once)")
        self.assertTrue(lines[-2].startswith("runmaker4.py: runs.txt: 0 done, 1 error in "), lines)

    def test_it_comes_back_after_ctrl_z_and_fg_and_not_in_the_background(self) -> None:
        self.jobs(WAITING, "true")
        terminal = self.terminal(100)
        shell = self.start_at(terminal, "sh", "-i", PS1="ready> ", ENV="")
        self.wait_shown(terminal, "ready>")
        words = " ".join(self.command(RUNMAKER, NO_HINT, "runs.txt"))
        os.write(terminal.master, f"{words}\n".encode())
        self.wait_shown(terminal, BAR % (0, 2, ""))
        os.write(terminal.master, b"\x1a")
        self.wait_shown(terminal, "^ready>$")
        os.write(terminal.master, b"fg\n")
        self.wait_shown(terminal, BAR % (0, 2, ""))
        os.write(terminal.master, b"\x1a")
        self.wait_shown(terminal, "^ready>$")
        os.write(terminal.master, b"bg\n")
        wait_until(lambda: "ready> bg" in terminal.look(), what="bg")
        self.wait_shown(terminal, "^ready>$")
        os.write(terminal.master, b"typed")
        self.wait_shown(terminal, "^ready> typed$")
        self.open_gate()
        self.wait_shown(terminal, "runs.txt: 2 done in ")
        self.assertIn("ready> typed[1] done in ", "\n".join(terminal.look()))
        os.write(terminal.master, b"\x15exit\n\nexit\n")
        shell.wait(DEADLINE)

    def test_with_tostop_it_stops_in_the_background_before_it_prints(self) -> None:
        self.jobs("echo out")
        terminal = self.terminal(100)
        shell = self.start_at(terminal, "sh", "-i", PS1="ready> ", ENV="")
        self.wait_shown(terminal, "ready>")
        words = " ".join(self.command(RUNMAKER, NO_HINT, "runs.txt"))
        os.write(terminal.master, f"stty tostop; {words} & wait; jobs\n".encode())
        wait_until(lambda: "Stopped" in "\n".join(terminal.look()), what="it has stopped")
        self.assertNotIn("[1] out", "\n".join(terminal.look()))
        os.write(terminal.master, b"fg\n")
        self.wait_shown(terminal, "runs.txt: 1 done in ")
        os.write(terminal.master, b"exit\n\nexit\n")
        shell.wait(DEADLINE)


class AtAClient(TcpCase, ConsoleCase):
    """A client does not know the file: it shows what it has done itself."""

    def test_a_client_shows_its_own_jobs(self) -> None:
        self.jobs("echo a", "false", WAITING, "true")
        server = self.start_server()
        terminal = self.terminal()
        client = self.start_at(terminal, RUNCLIENT, NO_HINT, *self.client_words(server))
        self.wait_shown(terminal, "^progress: 1 done, 1 failed, 1 running$")
        self.open_gate()
        lines = self.lines_of(terminal, client)
        self.assertEqual(lines[:3], ["[1] a", "[1] done in T: echo a", "[2] exit 1 in T: false"])


class Drawing(unittest.TestCase):
    """The status line is drawn at most ten times a second, and not for a terminal that is behind."""

    def setUp(self) -> None:
        self.now = 100.0
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        asyncio.set_event_loop(loop)            # Python 3.9: an Event belongs to the thread's loop
        self.addCleanup(asyncio.set_event_loop, None)
        fd, path = tempfile.mkstemp()
        os.unlink(path)
        self.addCleanup(os.close, fd)
        clock = mock.patch.object(loop, "time", lambda: self.now)
        clock.start()
        self.addCleanup(clock.stop)
        self.terminal = runmaker4.Terminal(fd, loop, self.fail)
        self.terminal.status = lambda columns: f"{columns} columns at {self.now:.2f}"

    def written(self) -> bytes:
        """What was written since the last call."""
        data = os.pread(self.terminal.fd, 1 << 20, 0)
        os.lseek(self.terminal.fd, 0, os.SEEK_SET)
        os.truncate(self.terminal.fd, 0)
        return data

    def test_no_more_than_ten_times_a_second(self) -> None:
        self.terminal.redraw()
        self.terminal.redraw()
        self.assertEqual(self.written(), b"80 columns at 100.00\r")
        self.now += 0.03
        self.terminal.write(b"a\n")
        self.assertAlmostEqual(present(self.terminal.timer).when(), 100.1)
        self.terminal.write(b"x" * (1 << 19) + b"\n")       # this does not wait
        self.assertEqual(self.written(), b"\r\x1b[Ja\n" + b"x" * (1 << 19) + b"\n")
        self.now += 0.08
        self.terminal.redraw()
        self.assertEqual(self.written(), b"80 columns at 100.11\r")

    def test_a_terminal_that_is_behind_gets_no_more_of_it(self) -> None:
        self.terminal.executor.backlog = 5
        self.terminal.redraw()
        self.terminal.write(b"a\n")
        self.terminal.flush()
        self.assertEqual(self.written(), b"a\n")


class BlockedPipe(unittest.TestCase):
    """What is printed while nobody reads it takes little more memory than its bytes."""

    def test_one_write_at_a_time_is_queued(self) -> None:
        asyncio.run(self.print_into_a_full_pipe())

    def test_what_is_printed_during_a_write_is_gathered_after_it(self) -> None:
        asyncio.run(self.print_during_a_write())

    def test_the_exit_waits_for_what_is_printed_after_a_skipped_part(self) -> None:
        asyncio.run(self.print_after_a_skipped_part())

    def make_writer(self, gather_seconds: float, kind: type[W]) -> tuple[int, int, W]:
        read_fd, write_fd = os.pipe()
        self.addCleanup(os.close, write_fd)
        self.addCleanup(os.close, read_fd)              # first: so a thread that writes can end
        loop = asyncio.get_running_loop()
        writer = kind(write_fd, loop, lambda error: self.fail(str(error)))
        writer.GATHER_SECONDS = gather_seconds
        return read_fd, write_fd, writer

    async def print_during_a_write(self) -> None:
        read_fd, _, writer = self.make_writer(60.0, runmaker4.Writer)
        writer.write(b"1")
        writer.flush()
        writer.write(b"2")
        while writer.executor.backlog:
            await asyncio.sleep(0.001)
        self.assertEqual(bytes(writer.gathered), b"2")
        await writer.drain()
        self.assertEqual(os.read(read_fd, 9), b"12")

    async def print_into_a_full_pipe(self) -> None:
        loop = asyncio.get_running_loop()
        read_fd, write_fd, writer = self.make_writer(0.0, runmaker4.Writer)
        pipe_size = fcntl.fcntl(write_fd, 1032)         # F_GETPIPE_SZ: Python 3.10 has its name
        texts = [b"x" * pipe_size, *(b"%d\n" % number for number in range(100))]
        for text in texts:
            writer.write(text)
            await asyncio.sleep(0)
            while text is texts[0] and writer.backlog:      # which fills the pipe
                await asyncio.sleep(0.001)
        self.assertEqual((len(writer.executor.pending), writer.backlog), (1, len(b"".join(texts[1:]))))
        with open(read_fd, "rb", closefd=False) as reader:
            data = await loop.run_in_executor(None, reader.read, len(b"".join(texts)))
        self.assertEqual(data, b"".join(texts))
        await writer.drain()

    async def print_after_a_skipped_part(self) -> None:
        """The first of two writes is over; the second, which is ignored too, and a message are not."""
        loop, sleep, size = asyncio.get_running_loop(), asyncio.sleep, 200_000      # more than a pipe takes
        read_fd, _, terminal = self.make_writer(60.0, runmaker4.Terminal)
        looks, left = [], []
        for text in b"1", b"2":
            terminal.write(text * size)
            terminal.flush()
        terminal.ignore_backlog()
        terminal.write(b"3")

        async def look_again(seconds: float) -> None:
            looks.append(seconds)
            await sleep(0)

        async def drain() -> None:
            left.append(terminal.executor.backlog)

        with mock.patch("asyncio.sleep", look_again), mock.patch.object(terminal, "drain", drain), \
                open(read_fd, "rb", closefd=False) as reader:
            exit_ = asyncio.ensure_future(
                runmaker4.Program.wait_until_printed(mock.Mock(), terminal, lambda: False))
            await loop.run_in_executor(None, reader.read, size)
            while terminal.executor.backlog > size + 1:
                await sleep(0)
            looks.clear()
            while len(looks) < 3 and not exit_.done():
                await sleep(0)
            await loop.run_in_executor(None, reader.read, size + 1)
            await exit_
        self.assertEqual(left, [0])
