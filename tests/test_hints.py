"""Promise: what a message offers can be done as it stands, and helps."""
import re
import shlex
import unittest

import runmaker4
from tests.support import RUNMAKER, RUNSET, RUNWAIT, RunCase
from tests.values import present


class LeadingDashes(RunCase):
    """Files and directories whose names look like options."""

    def setUp(self) -> None:
        super().setUp()
        self.write(". echo good\n. echo bad >&2; exit 3\n", "-j9.txt")

    def test_a_file_of_commands_becomes_jobs(self) -> None:
        self.write("echo a\necho b\n", "-list")
        ended = self.run_script(RUNMAKER, "--", "-list")
        command = present(re.search(r"; runset4.py (.*) makes jobs of them\)", ended.err.decode()))[1]
        self.assertEqual(self.run_script(RUNSET, *shlex.split(command)).code, 0, command)
        self.assertEqual(self.read("NEW"), b". echo a\n. echo b\n")

    def test_how_to_know_more_next_time(self) -> None:
        self.run_script(RUNMAKER, "-q", "--", "-j9.txt")
        (self.dir / "-j9.txt").rename(self.dir / "-it's.txt")
        said = self.run_script(RUNWAIT, "--failed", "--", "-it's.txt").err.decode()
        words = shlex.split(present(re.search(r"then (runwait4\.py .*)\)", said))[1])
        self.assertEqual(words, ["runwait4.py", "--failed", "--outdir", "DIR", "./-it's.txt"])


class Times(RunCase):
    """Timeouts and wall times."""

    def test_where_a_timeout_never_fits_into_the_wall_time_that_is_said(self) -> None:
        for text, options in (("#RUN timeout=1h\n. true\n", ("--walltime", "30s")),
                              (". true\n", ("--walltime=30s", "--timeout=30s"))):
            with self.subTest(options=options):
                self.write(text)
                ended = self.run_jobs(*options)
                self.assertEqual((ended.code, self.states()), (1, "."))
                self.assertIn(b"(it never fits: give --walltime more)", ended.err)

    def test_a_long_timeout_is_a_number_of_seconds(self) -> None:
        for seconds, text in (
            (30.0, "30"), (0.5, "0.5"), (1_036_800.0, "1036800"), (999_999_999.0, "999999999"),
        ):
            self.assertEqual(str(runmaker4.Ending(9, "timeout", seconds)), f"timeout after {text}s")


if __name__ == "__main__":
    unittest.main()
