"""Promise: commands, up to the longest, and output are bytes: none is decoded, mended or held back."""
import random
import re
import signal

from tests.support.case import Case
from tests.support.console import console_lines, printed
from tests.support.over_tcp import OverTcp, ordinarily, without
from tests.support.processes import Ended
from tests.support.runs import RunCase
from tests.support.scripts import RUNMAKER, RUNSERVER

TOO_LONG = 128 << 10                 # bytes of a command
NEWLINE = b"\n"


class CommandBytes(RunCase):
    """A command is whatever stands between the separator and the end of the line."""

    def run_file(self, text: bytes, *options: str) -> Ended:
        self.write(text)
        return self.run_script(RUNMAKER, *options, "runs.txt")

    def test_what_stands_before_and_behind_a_command_is_no_part_of_it_and_its_own_bytes_stay(self) -> None:
        """A byte-order mark, a tab, a carriage return; blanks and tabs, and bytes that are not UTF-8."""
        before = b"\xef\xbb\xbf. echo a\n.\techo b\n. echo c\r\n.  echo\t'd\t e'  \n. echo f\xff\xfe\xc3g\n"
        ended = self.run_file(before)
        lines = console_lines(ended.out)
        commands = [b"echo a", b"echo b", b"echo c", b" echo\t'd\t e'  ", b"echo f\xff\xfe\xc3g"]
        self.assertEqual(printed(lines, "executing"), commands)
        self.assertEqual(printed(lines), [b"a", b"b", b"c", b"d\t e", b"f\xff\xfe\xc3g"])
        self.assertEqual(printed(lines, "status"), [text % command for command in commands
                                                    for text in (b'forked "%s"', b'exit 0 "%s"')])
        self.assertEqual((ended.code, self.read()), (0, re.sub(rb"\.(?=[ \t]+echo)", b"d", before)))

    def test_comments_prose_and_other_states_are_neither_run_nor_changed(self) -> None:
        others = [
            b"# echo comment", b"/ echo comment", b"#. echo comment", b"", b".", b"a", b"Prose: echo prose",
            b"  echo blank", b" . echo indented", b"\t. echo indented", b".. echo", b"\xc3\xa9 echo e",
            b"x echo held", b"X\techo held", b"% echo held", b"d echo done", b"! echo failed",
            b"e echo error", b"\xff echo held", b"\x00 echo held"]
        before = b"".join(other + b"\n. echo $JOB_ID\n" for other in others)
        numbers = [b"%d" % number for number in range(2, 2 * len(others) + 1, 2)]
        ended = self.run_file(before)
        self.assertEqual(ended.code, 1, "there are lines ! and e")
        self.assertEqual(printed(console_lines(ended.out)), numbers)
        self.assertEqual(self.read(), before.replace(b"\n. echo $JOB_ID\n", b"\nd echo $JOB_ID\n"))

    def test_a_nul_is_an_error_of_its_line_only(self) -> None:
        """One line says which could not be started, nothing of it was forked, exit status 1."""
        ended = self.run_file(b". echo a\n. echo b\0c\n. echo d\n")
        self.assertEqual((self.states(), ended.code), ("ded", 1))
        self.assertEqual(ended.err.count(b"\n"), 3, ended.err)
        self.assertIn(b"runmaker4.py: runs.txt: line 2: cannot be started: the command contains a NUL byte\n",
                      ended.err)
        lines = console_lines(ended.out)
        self.assertEqual(printed(lines), [b"a", b"d"])
        self.assertEqual(len([text for text in printed(lines, "status") if text.startswith(b"forked")]), 2)


def job_of(length: int) -> bytes:
    """The line of a job with so long a command, without state."""
    return b" :" + b" " * (length - 1) + b"\n"


class LongCommands(RunCase):
    """A command that is longer than Linux can start is an error of its line, and said."""
    PROGRAM = RUNMAKER
    LINE = b": line %d: cannot be started: the command is longer than 128 KiB (put it into a script)\n"

    def test_one_that_is_held_or_just_fits_is_none_and_neither_is_a_comment(self) -> None:
        just = job_of(TOO_LONG - 1)
        self.write(b"x" + job_of(TOO_LONG) + b"#" + job_of(TOO_LONG) + b"." + just + b"." + just[:-1])
        self.run_to_end()
        self.assertEqual(self.states(), "xdd")

    def test_it_is_an_error_of_its_line_and_said_with_it(self) -> None:
        lengths = [*range(TOO_LONG - 5, TOO_LONG + 20), 2_000_000]
        self.write(b"".join(b"." + job_of(length) for length in lengths) + b". true\n", "more")
        self.write(". cat more >>runs.txt\n")
        said = self.run_to_end()
        self.assertEqual(self.states(), "d" + "d" * 5 + "e" * 21 + "d")
        for line in range(7, 28):
            self.assertIn(self.LINE % line, said)
        self.assertEqual(said.count(b": line "), 21)

    def test_a_line_without_a_command_is_an_error_and_said(self) -> None:
        self.write(". \n. true\n.\t  \r\nx \n")
        said = self.run_to_end()
        self.assertEqual(self.states(), "edex")
        for line in 1, 3:
            fault = b": line %d: cannot be started: no command after the state\n" % line
            self.assertIn(fault, said)

    def run_to_end(self) -> bytes:
        """Run the jobs; what was said of lines."""
        return self.run_jobs("-q").err


class OutputBytes(Case):
    """What a job prints is on the console and in --outdir byte for byte."""

    def run_cat(self, data: bytes) -> list[bytes]:
        """Run a job that prints these bytes; the console's stdout lines. DIR/1.out must be the same bytes."""
        self.write(data, "data")
        self.write(". cat data\n")
        ended = self.run_script(RUNMAKER, "--outdir", "out", "runs.txt")
        self.assertEqual(ended.code, 0, ended.err)
        self.assertEqual(self.read("out/1.out"), data)
        self.assertFalse((self.dir / "out" / "1.err").exists())
        return printed(console_lines(ended.out))

    def test_all_bytes_and_empty_lines_pass_through(self) -> None:
        data = (b"\n\na\n\n" + bytes(range(256)) + b"\r\n" + random.Random(4).randbytes(300_000)
                + b"\nlast, without a newline \xff")
        self.assertEqual(self.run_cat(data), data.split(b"\n"))

    def test_a_line_of_just_under_a_mebibyte_is_one_line(self) -> None:
        line = self.letters((1 << 20) - 1)
        self.assertEqual(self.run_cat(b"a\n" + line + b"\nb\n"), [b"a", line, b"b"])

    def test_a_line_of_10_mb_is_printed_in_pieces_of_which_none_is_lost(self) -> None:
        line = self.letters(10_000_000)
        pieces = self.run_cat(b"a\n" + line + b"\nb\n")
        self.assertEqual((pieces[0], pieces[-1]), (b"a", b"b"))
        self.assertTrue(b"".join(pieces[1:-1]) == line, "the pieces are not the line")
        self.assertGreaterEqual(len(pieces), 2 + 5)

    def test_the_newline_after_a_mebibyte_that_was_printed_is_no_empty_line(self) -> None:
        printed_first = "until [ $(wc -c <said) -gt 1048576 ]; do sleep 0.02; done"
        self.write(f". head -c 1048576 /dev/zero | tr '\\0' x; {printed_first}; echo; echo b\n")
        with open(self.dir / "said", "wb") as said:
            self.run_script(RUNMAKER, "runs.txt", stdout=said)
        pieces = printed(console_lines(self.read("said")))
        self.assertEqual(([len(piece) for piece in pieces], pieces[-1]), ([1 << 20, 1], b"b"))

    @staticmethod
    def letters(size: int) -> bytes:
        """A line that is nowhere the same, so that no piece can stand for another."""
        return random.Random(size).randbytes(size).translate(bytes(97 + byte % 26 for byte in range(256)))


# -- the same, promised of a client -------------------------------------------------------------------------


@ordinarily()
@without("test_a_nul_is_an_error_of_its_line_only")    # see test_any_bytes in tests/tcp/test_tcp.py
class CommandBytesOverTcp(OverTcp, CommandBytes):
    """A command reaches the client's shell byte for byte, or is an error of its line."""


class LongCommandsOverTcp(OverTcp, LongCommands):
    """A command that Linux cannot start is refused by the server; one that comes later is an error."""
    PROGRAM = RUNSERVER

    def run_to_end(self) -> bytes:
        server = self.start_server()
        self.run_client(server, "-q")
        return self.stop(server, signal.SIGHUP).err
