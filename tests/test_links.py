"""Promise: whether a job file is opened by a symbolic link or by its own name, no job runs twice at once for
it.
"""
import os
import pathlib
import subprocess
import unittest

from tests.support import GATE, RUNMAKER, RUNSET, RUNWAIT, WAITING, Ended, RunCase, held_seats, wait_until

STUBBORN = f"trap '' TERM; echo $$ >>pids; {GATE}"


class Links(RunCase):
    """Two job files, and a link to one of them."""

    def setUp(self) -> None:
        super().setUp()
        for folder in "s1", "s2":
            (self.dir / folder).mkdir()
        self.write(f". {STUBBORN}\n", "s1/f1")
        self.write(". echo other >>others\n", "s2/f2")
        self.link = self.dir / "link"
        self.link.symlink_to("s1/f1")

    def start_by(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        """A quiet runner on the file of this name, whose job runs."""
        runner = self.start_hasty("-q", *options, name)
        self.wait_file("pids")
        return runner

    def point_link_at(self, target: str) -> None:
        """As ln -sfn does."""
        (self.dir / "new").symlink_to(target)
        (self.dir / "new").rename(self.link)

    def edit_by_renaming(self, path: pathlib.Path, old: bytes, new: bytes) -> None:
        """As sed -i does: what has the name is replaced by a file."""
        made = path.with_name("sedXYZ")
        made.write_bytes(path.read_bytes().replace(old, new))
        made.rename(path)

    def starts(self) -> int:
        return len(self.read("pids").split())

    def end_job(self, runner: subprocess.Popen[bytes]) -> Ended:
        self.open_gate()
        return self.finish(runner)

    def test_who_came_by_a_link_stays_with_its_file_when_the_link_leads_elsewhere(self) -> None:
        runner = self.start_by("link")
        self.point_link_at("s2/f2")
        other = self.run_script(RUNMAKER, "-q", "--resume", "s1/f1")
        self.assertEqual((other.code, self.starts(), self.states("s1/f1")), (0, 1, "r"), other.err)
        by_link = self.run_script(RUNMAKER, "-q", "link")
        self.assertEqual((by_link.code, self.states("s2/f2")), (0, "d"), by_link.err)
        ended = self.end_job(runner)
        self.assertEqual((ended.code, ended.err.count(b"\n"), self.states("s1/f1")), (0, 1, "d"), ended.err)

    def test_who_came_by_the_name_does_not_mind_the_link(self) -> None:
        runner = self.start_by("s1/f1")
        self.edit_by_renaming(self.link, b"", b"")
        ended = self.end_job(runner)
        self.assertEqual((ended.code, self.states("s1/f1"), self.states("link")), (0, "d", "r"), ended.err)
        self.assertEqual(ended.err.count(b"\n"), 1, "nothing but the closing line")

    def test_a_file_in_the_place_of_the_link_is_followed(self) -> None:
        runner = self.start_by("link")
        command = STUBBORN.encode()
        self.edit_by_renaming(self.link, b". ", b"# edited\n. ")
        wait_until(lambda: held_seats(self.link, command), what="the job is locked beside the new file")
        # in the old file its r stays, and the job itself has its lock; nobody is at work there
        for name, code in ("link", 0), ("s1/f1", 1):
            other = self.run_script(RUNMAKER, "-q", "--resume", name)
            self.assertEqual((other.code, self.starts(), self.states(name)), (code, 1, "r"), other.err)
        with open(self.link, "ab") as file:
            file.write(b". echo more >>more\n")
        ended = self.end_job(runner)
        self.assertEqual((ended.code, self.states("link"), self.states("s1/f1")), (0, "dd", "r"), ended.err)
        self.assertIn(b"was replaced by another file of this name; going on with that", ended.err)
        self.assertNotIn(b"removed", ended.err)

    def test_a_result_goes_to_the_file_that_has_just_come_in_the_place_of_the_link(self) -> None:
        self.write(f". {WAITING}\n", "s1/f1")
        runner = self.start(RUNMAKER, "-q", "link")         # which looks once a second
        wait_until((self.dir / "up.1").exists, what="the job runs")
        self.edit_by_renaming(self.link, b"", b"")
        self.open_gate()
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states("link")), (0, "d"), ended.err)

    def test_a_link_in_the_place_of_the_file_is_refused_until_it_is_gone(self) -> None:
        runner = self.start_by("s1/f1", "-j2")
        file = self.dir / "s1" / "f1"
        file.rename(self.dir / "s1" / "mine")
        file.symlink_to("../s2/f2")
        self.open_gate()
        self.assertEqual(len(self.wait_pids_gone()), 1)
        self.assertEqual((self.states("s2/f2"), self.states("s1/mine")), (".", "r"))
        file.unlink()
        (self.dir / "s1" / "mine").rename(file)
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states("s1/f1")), (0, "d"), ended.err)
        self.assertIn(b"is a symbolic link now", ended.err)

    def wait_pids_gone(self) -> list[bytes]:
        pids = self.read("pids").split()
        wait_until(
            lambda: not any(os.path.exists(f"/proc/{int(pid)}") for pid in pids), what="the job has ended"
        )
        return pids

    def test_a_link_in_the_name_of_the_directory_that_leads_elsewhere(self) -> None:
        self.write(". echo other >>others\n", "s2/f1")
        (self.dir / "now").symlink_to("s1")
        runner = self.start_by("now/f1")
        (self.dir / "new").symlink_to("s2")
        (self.dir / "new").rename(self.dir / "now")
        other = self.run_script(RUNMAKER, "-q", "--resume", "s1/f1")
        self.assertEqual((other.code, self.starts(), self.states("s1/f1")), (0, 1, "r"), other.err)
        ended = self.end_job(runner)
        self.assertEqual((ended.code, self.states("s1/f1"), self.states("s2/f1")), (0, "d", "."), ended.err)
        self.assertEqual(ended.err.count(b"\n"), 1, "nothing but the closing line")

    def test_the_other_programs_take_a_link_as_the_file(self) -> None:
        self.write(". true\n", "s1/f1")
        self.assertEqual(self.run_script(RUNSET, "link", "--add", "true 2").code, 0)
        self.assertEqual(self.run_script(RUNSET, "-q", "--set=x", "link", "1").code, 0)
        editor = self.write("#!/bin/sh\nsed -i '1i # mine' \"$1\"\n", "editor")
        editor.chmod(0o755)
        ended = self.run_script(RUNSET, "--edit", "link", env={"VISUAL": str(editor)})
        self.assertEqual(ended.code, 0, ended.err)
        self.assertEqual((self.read("s1/f1"), self.link.is_symlink()), (b"# mine\nx true\n. true 2\n", True))
        self.assertIn(b"1 new, 0 running", self.run_script(RUNWAIT, "--status", "link").out)


if __name__ == "__main__":
    unittest.main()
