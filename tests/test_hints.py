"""Promise: a command that a message offers can be pasted as it stands, and helps."""
import os
import re
import shlex
import signal
import subprocess
import unittest

import runmaker4
from tests.support import RUNMAKER, RUNSERVER, RUNWAIT, Ended, RunCase, wait_until
from tests.tcp import TcpCase
from tests.values import present

PRIVATE = "unshare", "-rn"              # a network of its own


class LeadingDashes(RunCase):
    """Files and directories whose names look like options."""

    def setUp(self) -> None:
        super().setUp()
        self.write(". echo good\n. echo bad >&2; exit 3\n", "-j9.txt")

    def paste(self, command: str) -> Ended:
        return self.run_script("/bin/sh", "-c", command)

    def test_what_failed_is_told_and_run_again(self) -> None:
        ended = self.run_script(RUNMAKER, "--outdir=-out", "--", "-j9.txt")
        closing = ended.err.decode().splitlines()[-1]
        told = self.paste(present(re.search("; why: (.*); run again: ", closing))[1])
        self.assertEqual(told.code, 0, told.err)
        self.assertIn(b"line 2: exit 3 on ", told.out)
        self.assertIn(b"  | bad\n", told.out)
        again = self.paste(closing.partition("; run again: ")[2])
        self.assertEqual((again.code, again.out.count(b"executing")), (1, 1), again.err)

    def test_jobs_of_groups_are_run_again(self) -> None:
        self.write("#RUN together=a host=x\n! one\n! two\n", "-g.txt")
        ended = self.run_script(RUNMAKER, "--", "-g.txt")
        command = ended.err.decode().splitlines()[-1].partition("run lines of groups again: ")[2]
        self.assertEqual(self.paste(command).code, 0, ended.err)
        self.assertEqual(self.states("-g.txt"), "..")

    def test_a_file_of_commands_becomes_jobs(self) -> None:
        self.write("echo a\necho b\n", "-list")
        ended = self.run_script(RUNMAKER, "--", "-list")
        command = present(re.search(r"to make jobs of them: (.*)\)", ended.err.decode()))[1]
        self.assertEqual(self.paste(command).code, 0, command)
        self.assertEqual(self.read("NEW"), b". echo a\n. echo b\n")

    def test_how_to_know_more_next_time(self) -> None:
        self.run_script(RUNMAKER, "-q", "--", "-j9.txt")
        (self.dir / "-j9.txt").rename(self.dir / "-it's.txt")
        said = self.run_script(RUNWAIT, "--failed", "--", "-it's.txt").err.decode()
        words = shlex.split(present(re.search(r"then (runwait4\.py .*)\)", said))[1])
        self.assertEqual(words, ["runwait4.py", "--failed", "--outdir", "DIR", "./-it's.txt"])


class Servers(TcpCase):
    """What a server says when it leaves, of itself and of clients."""

    def hint(self, *words: str) -> "re.Match[str]":
        """The commands that run again what failed, of a server that was started so."""
        if subprocess.run([*PRIVATE, "true"], stderr=subprocess.DEVNULL, check=False).returncode:
            self.skipTest("this user may have no network of his own (unshare -n)")
        server = self.start_program(RUNSERVER, "--port", 0, *words, within=PRIVATE)
        wait_until(
            lambda: b"serving on port" in server.err or server.poll() is not None, what="the server serves"
        )
        said = self.stop(server, signal.SIGTERM).err.decode()
        found = re.search(
            r"run again: runmaker4-server\.py (.*), with runmaker4-client\.py -r --port (\d+) (\S+)\n", said
        )
        return present(found)

    def test_all_addresses_are_no_name_of_a_server(self) -> None:
        self.write("! false\n")
        for address in "0.0.0.0", "::":
            with self.subTest(address=address):
                self.assertEqual(self.hint("--host", address, "runs.txt")[3], os.uname().nodename)

    def test_its_port_is_no_file(self) -> None:
        self.write("! false\n", "-x.txt")
        hint = self.hint("--host", "0.0.0.0", "--", "-x.txt")
        self.assertEqual(hint[1], f"--port 0 --host 0.0.0.0 --port {hint[2]} -- -x.txt")


class Times(RunCase):
    """Timeouts and wall times."""

    def test_where_a_timeout_never_fits_into_the_wall_time_that_is_said_and_no_command_offered(self) -> None:
        for text, options in (("#RUN timeout=1h\n. true\n", ("--walltime", "30s")),
                              (". true\n", ("--walltime=30s", "--timeout=30s"))):
            with self.subTest(options=options):
                self.write(text)
                ended = self.run_jobs(*options)
                said, closing = ended.err.decode().splitlines()
                self.assertEqual((ended.code, self.states()), (1, "."))
                self.assertIn("(it never fits: give --walltime more)", said)
                self.assertTrue(
                    closing.endswith("; go on: with more --walltime, or a shorter timeout"), closing
                )

    def test_a_wall_time_that_was_used_up_by_other_jobs_is_another_matter(self) -> None:
        self.jobs("sleep 1", "true")
        ended = self.run_jobs("--walltime", "3", "--timeout", "2.5")
        self.assertEqual((ended.code, self.states()), (1, "d."))
        self.assertIn(b"; go on: ", ended.err)

    def test_a_long_timeout_is_a_number_of_seconds(self) -> None:
        for seconds, text in (
            (30.0, "30"),
            (0.5, "0.5"),
            (1_036_800.0, "1036800"),
            (999_999_999.0, "999999999"),
        ):
            self.assertEqual(str(runmaker4.Ending(9, "timeout", seconds)), f"timeout after {text}s")


if __name__ == "__main__":
    unittest.main()
