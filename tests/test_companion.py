"""Promise: all who use a job file meet in its companion, `.runs.txt.lock`; where they could not, nothing is begun."""
import os
import subprocess
import unittest

from tests.support import GATE, RUNMAKER, RUNSERVER, RUNSET, RUNWAIT, RunCase, companion, wait_until


class Companion(RunCase):
    """Who can make it, who cannot, and what becomes of it."""

    def setUp(self) -> None:
        super().setUp()
        self.path = self.write(". echo ran >>ran\n")

    def assertAllRefuse(self, *words: str, **settings: object) -> None:
        """Runner, server and runset4.py refuse the file in one line, and nothing was touched."""
        before = sorted(os.listdir(self.dir))
        for args in (RUNMAKER,), (RUNSERVER, "--port", "0"), (RUNSET, "--all", "--set=x"):
            with self.subTest(args):
                self.assertRefused(self.run_script(*args, "runs.txt", **settings), *words)
        self.assertEqual((self.states(), sorted(os.listdir(self.dir))), (".", before))

    def test_a_file_with_several_hard_links_is_refused(self) -> None:
        os.link(self.path, self.dir / "other.txt")
        self.assertRefused(self.run_script(RUNMAKER, "runs.txt"), "several names", "keep one")
        self.assertRefused(self.run_script(RUNSERVER, "--port", "0", "runs.txt"), "several names")
        self.assertEqual((self.states(), companion(self.path).exists()), (".", False))

    def test_a_file_that_is_a_mount_of_its_own_is_refused(self) -> None:
        self.write(". touch never\n", "source.txt")
        mount = ["unshare", "-rm", "sh", "-c", 'mount --bind source.txt runs.txt && exec "$@"', "sh"]
        probe = subprocess.run([*mount, "true"], cwd=self.dir, stderr=subprocess.PIPE, check=False)
        if probe.returncode:
            self.skipTest(f"no file can be mounted here: {probe.stderr.decode().strip()}")
        ended = self.run_script(*mount, *self.command(RUNMAKER, "runs.txt"))
        self.assertRefused(ended, "mount of its own", "mount its directory")

    def test_a_companion_that_is_no_file_is_refused(self) -> None:
        companion(self.path).mkdir()
        self.assertAllRefuse(".runs.txt.lock", "is a directory")

    def test_where_it_cannot_be_made_an_empty_file_will_do(self) -> None:
        bound = self.bound_by_permissions()
        self.dir.chmod(0o555)
        self.addCleanup(self.dir.chmod, 0o755)
        self.assertRefused(self.run_script(RUNMAKER, "runs.txt", **bound), ".runs.txt.lock", "permission denied",
                           "an empty file of this name")
        self.dir.chmod(0o755)
        companion(self.path).touch()
        self.write(". true\n")
        self.dir.chmod(0o555)
        ended = self.run_script(RUNMAKER, "-q", "runs.txt", **bound)
        self.assertEqual((ended.code, self.states()), (0, "d"), ended.err)

    def test_who_may_only_read_can_look(self) -> None:
        bound = self.bound_by_permissions()
        self.path.chmod(0o444)
        self.dir.chmod(0o555)
        self.addCleanup(self.dir.chmod, 0o755)
        ended = self.run_script(RUNWAIT, "--status", "runs.txt", **bound)
        self.assertEqual((ended.code, ended.err), (0, b""))
        self.assertIn(b"1 new", ended.out)

    def test_it_is_beside_the_file_that_a_symbolic_link_leads_to(self) -> None:
        (self.dir / "real").mkdir()
        self.path.rename(self.dir / "real" / "jobs.txt")
        self.path.symlink_to("real/jobs.txt")
        self.assertEqual(self.run_script(RUNMAKER, "-q", "runs.txt").code, 0)
        self.assertTrue((self.dir / "real" / ".jobs.txt.lock").exists())
        self.assertFalse(companion(self.path).exists())

    def test_runners_make_one_that_was_removed_again_and_say_so(self) -> None:
        runner = self.start_to_gate(f". {GATE}\n")
        companion(self.path).unlink()
        wait_until(lambda: self.locked_lines() == [1], what="the line is locked again")
        other = self.run_script(RUNMAKER, "-q", "--resume", "runs.txt")
        self.assertEqual((other.code, self.states()), (0, "r"), other.err)
        self.open_gate()
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states()), (0, "d"))
        self.assertIn(b".runs.txt.lock was removed, and is made and locked again", ended.err)


if __name__ == "__main__":
    unittest.main()
