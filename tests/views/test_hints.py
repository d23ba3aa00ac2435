"""Promise: what a message offers can be done as it stands, and helps."""
import re
import shlex
from typing import Any

import runmaker4
from tests.support.processes import Ended
from tests.support.runs import RunCase
from tests.support.scripts import RUNMAKER, RUNSET, RUNWAIT
from tests.support.tcp import TcpCase
from tests.support.values import present


class LeadingDashes(RunCase):
    """Files and directories whose names look like options."""

    def setUp(self) -> None:
        super().setUp()
        self.write(". echo good\n. echo bad >&2; exit 3\n", "-j9.txt")

    def test_a_file_of_commands_becomes_jobs(self) -> None:
        self.write("echo a\necho b\n", "-list")
        ended = self.run_script(RUNMAKER, "--", "-list")
        command = present(re.search(r"; runset4.py (.*) makes jobs of the lines\)", ended.err.decode()))[1]
        self.assertEqual(self.run_script(RUNSET, *shlex.split(command)).code, 0, command)
        self.assertEqual(self.read("NEW"), b". echo a\n. echo b\n")

    def test_such_a_job_file_is_named_after_two_dashes(self) -> None:
        calls = {
            ("--add", "echo c", "--", "-j9.txt"): b"",
            ("--set=held", "--", "-j9.txt", "2-3"): b"",
            ("--list", "--", "-j9.txt", "1,3"): b"1 . echo good\n3 x (held) echo c\n",
            ("--list", "-j9.txt"): None,
        }
        for words, out in calls.items():
            with self.subTest(words):
                ended = self.run_script(RUNSET, *words)
                self.assertEqual((ended.code, ended.out), (2, b"") if out is None else (0, out), ended.err)


class WhyJobsFailed(TcpCase):
    """The closing line has a command that can be pasted as it stands."""
    NAME = "-it's.txt"

    def setUp(self) -> None:
        super().setUp()
        self.write(". echo bad >&2; exit 3\n", self.NAME)

    def check(self, ended: Ended, *words: str, **settings: Any) -> None:
        """These are the words of the command, and it shows why the job failed."""
        command = present(re.search(r"\nnext: (runwait4\.py .*)\n\Z", ended.err.decode()))[1]
        self.assertEqual(shlex.split(command), ["runwait4.py", "--failed", *words])
        told = self.run_script(RUNWAIT, *shlex.split(command)[1:], **settings)
        self.assertIn(b"line 1: exit 3 ", told.out, told.err)

    def test_after_a_runner(self) -> None:
        ended = self.run_script(RUNMAKER, "-q", "--outdir", "o'ut dir", "--", self.NAME)
        self.check(ended, "--outdir", "o'ut dir", f"./{self.NAME}")

    def test_without_an_option(self) -> None:
        self.check(self.run_script(RUNMAKER, "-q", "--", self.NAME), f"./{self.NAME}")
        self.write(". echo bad >&2; exit 3\n", self.NAME)
        ended = self.run_script(RUNMAKER, "-q", "--outdir=-other", "--", self.NAME)
        self.check(ended, "--outdir", "./-other", f"./{self.NAME}")

    def test_after_a_server(self) -> None:
        (self.dir / self.NAME).rename(self.dir / "runs.txt")
        server = self.start_server("--outdir", "out")
        self.finish(self.start_client(server, "-q"))
        self.check(self.stop(server), "--outdir", "out", "runs.txt")


class Times(RunCase):
    """Timeouts and wall times."""

    def test_where_a_timeout_never_fits_into_the_wall_time_that_is_said(self) -> None:
        for text, options in (("#RUN timeout=1h\n. true\n", ("--walltime", "3m")),
                              (". true\n", ("--walltime=3m", "--timeout=3m"))):
            with self.subTest(options=options):
                self.write(text)
                ended = self.run_jobs(*options)
                self.assertEqual((ended.code, self.states()), (1, "."))
                self.assertRegex(ended.err, rb"line \d: the timeout is [^,]*, and the wall time is over in "
                                            rb"[^:]*: .*\(it never fits: give --walltime more\)\n")

    def test_a_long_timeout_is_a_number_of_seconds(self) -> None:
        for seconds, text in ((30.0, "30"), (0.5, "0.5"), (1_036_800.0, "1036800"),
                              (999_999_999.0, "999999999")):
            self.assertEqual(str(runmaker4.RunResult(9, "timeout", seconds)), f"timeout after {text}s")
