"""Promise: a job file that is a symbolic link is refused; its directories may be led elsewhere by links."""
import os

from tests.support.case import GATE
from tests.support.processes import wait_until
from tests.support.runs import RunCase
from tests.support.scripts import RUNMAKER, RUNSERVER, RUNSET, RUNWAIT

STUBBORN = f"trap '' TERM; echo $$ >>pids; {GATE}"


class Links(RunCase):
    """Two job files."""

    def setUp(self) -> None:
        super().setUp()
        for folder in "s1", "s2":
            (self.dir / folder).mkdir()
        self.write(f". {STUBBORN}\n", "s1/f1")
        self.write(". echo other >>others\n", "s2/f2")

    def test_a_job_file_that_is_a_link_is_refused_with_the_real_path_by_all_programs(self) -> None:
        (self.dir / "link").symlink_to("s2/f2")
        before = sorted(os.listdir(self.dir / "s2"))
        calls = ((RUNMAKER, "link"), (RUNMAKER, "--follow", "link"), (RUNMAKER, "--dry-run", "link"),
                 (RUNSERVER, "--port", "0", "link"),
                 (RUNSET, "link", "--add", "true"), (RUNSET, "--all", "--set=x", "link"),
                 (RUNSET, "--edit", "link"), (RUNSET, "--list", "link"),
                 (RUNWAIT, "link"), (RUNWAIT, "--status", "link"))
        real = os.path.realpath(self.dir / "s2" / "f2")
        for call, ended in self.run_all(calls, env={"VISUAL": "true"}):
            with self.subTest(call):
                self.assertRefused(ended, f"link: is a symbolic link (name the file itself: {real})")
        self.assertEqual(sorted(os.listdir(self.dir / "s2")), before)
        self.assertEqual(self.states("s2/f2"), ".")

    def test_a_link_that_leads_nowhere_makes_no_file(self) -> None:
        (self.dir / "link").symlink_to("missing")
        for args in (RUNSET, "link", "--add", "true"), (RUNMAKER, "--follow", "link"):
            with self.subTest(args):
                self.assertRefused(self.run_script(*args), "symbolic link", "missing")
        self.assertFalse(self.exists("missing"))

    def test_a_link_in_the_place_of_the_file_is_refused_until_it_is_gone(self) -> None:
        with open(self.dir / "said", "wb") as said:
            runner = self.start_hasty("-q", "-j2", "s1/f1", stderr=said)
        self.wait_file("pids")
        file = self.dir / "s1" / "f1"
        file.rename(self.dir / "s1" / "mine")
        file.symlink_to("../s2/f2")
        self.open_gate()
        pid = int(self.read("pids"))
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="the job has ended")
        wait_until(lambda: b"is a symbolic link" in self.read("said"), what="the result cannot be written")
        self.assertEqual(self.states("s1/mine"), "r")
        file.unlink()
        (self.dir / "s1" / "mine").rename(file)
        self.finish(runner)                     # with exit status 1, if it has met the link for long
        self.assertEqual((self.states("s1/f1"), self.states("s2/f2")), ("d", "."))
        self.assertEqual(int(self.read("pids")), pid, "it has run once")

    def test_a_link_in_the_name_of_the_directory_that_leads_elsewhere(self) -> None:
        self.write(". echo other >>others\n", "s2/f1")
        (self.dir / "now").symlink_to("s1")
        runner = self.start_hasty("-q", "now/f1")
        self.wait_file("pids")
        (self.dir / "new").symlink_to("s2")
        (self.dir / "new").rename(self.dir / "now")
        other = self.run_script(RUNMAKER, "-q", "--resume", "s1/f1")
        self.assertEqual((other.code, len(self.read("pids").split()), self.states("s1/f1")), (0, 1, "r"),
                         other.err)
        self.open_gate()
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states("s1/f1"), self.states("s2/f1")), (0, "d", "."), ended.err)
        where, _ = ended.err.splitlines()           # nothing else but the closing line
        self.assertIn(f'the jobs run in "{self.dir}", not in the directory of the job file'.encode(), where)
