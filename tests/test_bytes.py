"""Promise: the job file and what jobs print are bytes.  Nothing is decoded, mended, dropped or held back."""
import os
import pathlib
import random
import shutil
import subprocess
import unittest
from typing import Dict, Iterator, List

from tests.support import FULL, RUNMAKER, Case, Ended, RunCase, console_lines, peak_memory, printed

LINES_PER_MB = 10_000               # of 100 bytes each, newline included
PAGE = os.sysconf("SC_PAGE_SIZE")
LONGEST_ARGUMENT = 32 * PAGE        # Linux; 128 KiB where a page has 4 KiB


class CommandBytes(RunCase):
    """A command is whatever stands between the separator and the end of the line."""

    def run_file(self, text: bytes, *options: str) -> Ended:
        self.write(text)
        return self.run_script(RUNMAKER, *options, "runs.txt")

    def assertRuns(self, before: bytes, after: bytes, *output: bytes, code: int = 0) -> None:
        """The file's jobs print these lines, all is well, and the file then has these bytes."""
        ended = self.run_file(before)
        self.assertEqual(ended.code, code, ended.err)
        self.assertEqual(printed(console_lines(ended.out)), list(output))
        self.assertEqual(self.read(), after)

    def test_bytes_that_are_not_utf8_reach_the_shell_and_the_console(self):
        ended = self.run_file(b". echo a\xff\xfe\xc3b\n")
        lines = console_lines(ended.out)
        self.assertEqual(printed(lines, "executing"), [b"echo a\xff\xfe\xc3b"])
        self.assertEqual(printed(lines), [b"a\xff\xfe\xc3b"])
        self.assertEqual(printed(lines, "status"), [b'forked "echo a\xff\xfe\xc3b"', b'exit 0 "echo a\xff\xfe\xc3b"'])
        self.assertEqual(self.read(), b"d echo a\xff\xfe\xc3b\n")

    def test_a_tab_separates_too(self):
        self.assertRuns(b".\techo a\n. echo b\n", b"d\techo a\nd echo b\n", b"a", b"b")

    def test_tabs_and_blanks_inside_and_at_the_end_of_a_command_are_kept(self):
        ended = self.run_file(b".  echo\t'a\t b'  \n")
        lines = console_lines(ended.out)
        self.assertEqual(printed(lines, "executing"), [b" echo\t'a\t b'  "])
        self.assertEqual(printed(lines), [b"a\t b"])

    def test_a_carriage_return_before_the_newline_is_not_part_of_the_command(self):
        ended = self.run_file(b". echo a\r\n. echo b\r\n")
        lines = console_lines(ended.out)
        self.assertEqual(printed(lines, "executing"), [b"echo a", b"echo b"])
        self.assertEqual(printed(lines), [b"a", b"b"])
        self.assertEqual(self.read(), b"d echo a\r\nd echo b\r\n")

    def test_a_byte_order_mark_at_the_start_is_skipped_and_stays(self):
        self.assertRuns(b"\xef\xbb\xbf. echo a\n. echo b\n", b"\xef\xbb\xbfd echo a\nd echo b\n", b"a", b"b")

    def test_utf16_is_refused(self):
        for codec in "utf-16-le", "utf-16-be":
            with self.subTest(codec=codec):
                before = "\ufeff. echo a\n".encode(codec)
                self.assertRefused(self.run_file(before), "runs.txt", "UTF-16")
                self.assertEqual(self.read(), before)

    def test_the_last_line_needs_no_newline(self):
        files = {"one.txt": b". echo a", "two.txt": b". echo a\n. echo b"}
        for name, text in files.items():
            self.write(text, name)
        for runner in [self.start_hasty(name) for name in files]:
            self.assertEqual(self.finish(runner).code, 0)
        self.assertEqual([self.read(name) for name in files], [b"d echo a", b"d echo a\nd echo b"])

    def test_an_empty_file_is_nothing_to_do(self):
        ended = self.run_file(b"")
        self.assertEqual((ended.code, ended.out), (0, b""))
        self.assertIn(b"nothing to do", ended.err)

    def test_comments_prose_and_other_states_are_neither_run_nor_changed(self):
        others = [b"# echo comment", b"/ echo comment", b"#. echo comment", b"", b".", b"a", b"Prose: echo prose",
                  b"  echo blank", b" . echo indented", b"\t. echo indented", b".. echo", b"\xc3\xa9 echo e",
                  b"x echo held", b"X\techo held", b"% echo held", b"d echo done", b"! echo failed", b"e echo error",
                  b"\xff echo held", b"\x00 echo held"]
        before = b"".join(other + b"\n. echo $JOB_ID\n" for other in others)
        numbers = [b"%d" % number for number in range(2, 2 * len(others) + 1, 2)]
        self.assertRuns(before, before.replace(b"\n. echo $JOB_ID\n", b"\nd echo $JOB_ID\n"), *numbers,
                        code=1)                         # there are lines ! and e

    def test_a_nul_in_a_command_is_an_error_of_that_line_only(self):
        ended = self.run_file(b". echo a\n. echo b\0c\n. echo d\n")
        self.assertEqual(self.read(), b"d echo a\ne echo b\0c\nd echo d\n")
        self.assertLineError(ended, 2)
        self.assertEqual(printed(console_lines(ended.out)), [b"a", b"d"])

    def assertLineError(self, ended: Ended, line: int) -> None:
        """One job could not be started: one line says which, nothing of it was forked, exit status 1."""
        self.assertEqual(ended.code, 1)
        start = b"runmaker4.py: runs.txt: line %d: " % line
        about = [text for text in ended.err.split(b"\n") if text.startswith(start)]
        self.assertEqual(len(about), 1, ended.err)
        self.assertLess(len(about[0]), 500)
        forked = [text for text in printed(console_lines(ended.out), "status") if text.startswith(b"forked")]
        self.assertEqual(len(forked), 2)

    def test_a_command_of_100_kb_runs(self):
        word = b"x" * 100_000
        self.assertRuns(b". echo " + word + b"\n", b"d echo " + word + b"\n", word)

    def test_a_command_longer_than_an_argument_may_be_is_an_error_of_that_line_only(self):
        for size in LONGEST_ARGUMENT, 20 * LONGEST_ARGUMENT:
            with self.subTest(size=size):
                long = b"echo " + b"x" * (size - 5)
                ended = self.run_file(b". echo a\n. " + long + b"\n. echo d\n")
                self.assertEqual(self.states(), "ded")
                self.assertEqual(self.read(), b"d echo a\ne " + long + b"\nd echo d\n")
                self.assertLineError(ended, 2)

    def test_every_length_around_the_limit_either_runs_or_is_an_error(self):
        lengths = list(range(LONGEST_ARGUMENT - 19, LONGEST_ARGUMENT + 3))
        ended = self.run_file(b"".join(b". : " + b"x" * (length - 2) + b"\n" for length in lengths), "-q")
        states = self.states()
        self.assertRegex(states, "^d+e+$")
        self.assertEqual(ended.err.count(b": line "), states.count("e"), ended.err)


class OutputBytes(Case):
    """What a job prints is on the console and in --outdir byte for byte."""

    def run_cat(self, data: bytes) -> List[bytes]:
        """Run a job that prints these bytes; the console's stdout lines. DIR/1.out must be the same bytes."""
        self.write(data, "data")
        self.write(". cat data\n")
        ended = self.run_script(RUNMAKER, "--outdir", "out", "runs.txt")
        self.assertEqual(ended.code, 0, ended.err)
        self.assertEqual(self.read("out/1.out"), data)
        self.assertFalse((self.dir / "out" / "1.err").exists())
        return printed(console_lines(ended.out))

    def test_all_byte_values_pass_through(self):
        data = bytes(range(256)) + b"\r\nlast, without a newline \xff"
        self.assertEqual(self.run_cat(data), data.split(b"\n"))

    def test_random_bytes_pass_through(self):
        data = random.Random(4).randbytes(300_000) + b"\n"
        self.assertEqual(self.run_cat(data), data[:-1].split(b"\n"))

    def test_empty_lines_are_lines(self):
        self.assertEqual(self.run_cat(b"\n\na\n\n"), [b"", b"", b"a", b""])

    def test_a_line_of_just_under_a_mebibyte_is_one_line(self):
        line = self.letters((1 << 20) - 1)
        self.assertEqual(self.run_cat(b"a\n" + line + b"\nb\n"), [b"a", line, b"b"])

    def test_a_line_of_10_mb_is_printed_in_pieces_of_which_none_is_lost(self):
        line = self.letters(10_000_000)
        pieces = self.run_cat(b"a\n" + line + b"\nb\n")
        self.assertEqual((pieces[0], pieces[-1]), (b"a", b"b"))
        self.assertTrue(b"".join(pieces[1:-1]) == line, "the pieces are not the line")
        self.assertGreaterEqual(len(pieces), 2 + 5)

    def test_the_newline_after_a_mebibyte_that_was_printed_is_no_empty_line(self):
        self.write(". head -c 1048576 /dev/zero | tr '\\0' x; sleep 0.2; echo; echo b\n")
        pieces = printed(console_lines(self.run_script(RUNMAKER, "runs.txt").out))
        self.assertEqual(([len(piece) for piece in pieces], pieces[-1]), ([1 << 20, 1], b"b"))

    def test_a_line_of_10_mb_without_a_newline_is_not_lost_either(self):
        line = self.letters(10_000_000)
        self.assertTrue(b"".join(self.run_cat(line)) == line, "the pieces are not the line")

    @staticmethod
    def letters(size: int) -> bytes:
        """A line that is nowhere the same, so that no piece can stand for another."""
        return random.Random(size).randbytes(size).translate(bytes(97 + byte % 26 for byte in range(256)))


class Volume(Case):
    """Much output of many jobs, on both streams at once: nothing lost, no deadlock, bounded memory."""

    COMMAND = (". a=$((1000000000 + JOB_ID * 20000)); b=$((a + 10000)); "
               "seq -f %099.0f $a $((b - 1)) & seq -f %099.0f $b $((b + 9999)) >&2; wait\n")

    def setUp(self) -> None:
        super().setUp()
        if shutil.which("seq") is None or subprocess.run(["seq", "-f", "%03.0f", "1"], capture_output=True).returncode:
            self.skipTest("no seq that knows -f")

    @staticmethod
    def first_number(job: int, stream: str) -> int:
        return 1_000_000_000 + job * 20_000 + (10_000 if stream in ("stderr", "err") else 0)

    def lines(self, process: subprocess.Popen) -> Iterator[bytes]:
        """The runner's output, line by line; notes the runner's memory as it goes."""
        rest = b""
        self.peak = 0.0
        while True:
            chunk = os.read(process.stdout.fileno(), 1 << 20)
            if not chunk:
                break
            self.peak = max(self.peak, peak_memory(process.pid))
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
        self.assertEqual(rest, b"")

    def run_jobs(self, jobs: int, *options: str) -> None:
        """Run the jobs at -j8, look at every line of the console and at the runner's memory."""
        self.write(self.COMMAND * jobs)
        process = self.start(RUNMAKER, "-j8", "--name", "alice", *options, "runs.txt", stderr=subprocess.DEVNULL)
        following: Dict[bytes, int] = {}            # by stream and job: the number that must come next
        ends = []                                   # (stream, that number) at the exit line of each job
        for line in self.lines(process):
            key, _, text = line.partition(b"): ")
            if key.startswith(b"std"):
                number = int(text[-12:])
                if following.setdefault(key, number) != number or len(text) != 99:
                    self.fail(f"{line!r} where {following[key]} should come")
                following[key] = number + 1
            elif text.startswith(b"exit "):
                job = key[len(b"status"):]
                ends += [(stream, following.pop(stream.encode() + job, 0)) for stream in ("stdout", "stderr")]
        self.assertEqual(process.wait(60), 0)
        self.assertEqual(self.states(), "d" * jobs)
        self.assertEqual(following, {}, "output after the exit line")
        self.assertEqual(sorted(ends), sorted((stream, self.first_number(job, stream) + LINES_PER_MB)
                                              for stream in ("stdout", "stderr") for job in range(1, jobs + 1)))
        self.assertGreater(self.peak, 1)
        self.assertLess(self.peak, 90)

    def assertFiles(self, directory: pathlib.Path, jobs: int) -> None:
        """Each job's two files have each of its lines."""
        for job in range(1, jobs + 1):
            for stream in "out", "err":
                first = self.first_number(job, stream)
                wanted = b"".join(b"%099d\n" % number for number in range(first, first + LINES_PER_MB))
                found = (directory / f"{job}.{stream}").read_bytes()
                self.assertTrue(found == wanted, f"{job}.{stream} is not what the job printed")

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_50_jobs_of_1_mb_on_both_streams_to_console_and_outdir(self):
        self.run_jobs(50, "--outdir", "out")
        self.assertFiles(self.dir / "out", 50)

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: 1,000 jobs that print 1 MB on both streams")
    def test_1000_jobs_of_1_mb_on_both_streams(self):
        self.run_jobs(1000)
