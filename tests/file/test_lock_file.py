"""Promise: who uses a job file meets all others in its lock file; where not (hard links), no job starts."""
import errno
import json
import os
import subprocess
from typing import Any
from unittest import mock

import runmaker4
from tests.support.case import GATE
from tests.support.line_locks import locked_lines
from tests.support.locks import NFS3, lock_table
from tests.support.permissions import bound_by_permissions
from tests.support.pipes import deadline
from tests.support.processes import wait_until
from tests.support.runs import RunCase
from tests.support.scripts import RUNMAKER, RUNSERVER, RUNSET, RUNWAIT
from tests.support.values import present

# Another host makes each file in the same moment: we are told that it exists, as MooseFS does it
MADE_ELSEWHERE = """
import errno, os
open_ = os.open
made = set()
def open_late(path, flags, *mode, **more):
    if flags & os.O_CREAT and not flags & os.O_EXCL and not os.path.exists(path):
        os.close(open_(path, flags, *mode, **more))
        made.add(os.path.basename(path))
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    return open_(path, flags, *mode, **more)
os.open = open_late
import runmaker4
exit_now = runmaker4.exit_now
runmaker4.exit_now = lambda status: [print("made elsewhere:", *sorted(made), flush=True), exit_now(status)]
"""


class LockTable(RunCase):
    """Who can make it, who cannot, and what becomes of it."""
    USERS = (RUNMAKER,), (RUNSERVER, "--port", "0"), (RUNSET, "--all", "--set=x")

    def setUp(self) -> None:
        super().setUp()
        self.path = self.write(". echo ran >>ran\n")

    def assertAllRefuse(self, *words: str, **settings: Any) -> None:
        """Runner, server and runset4.py refuse the file in one line, and nothing was touched."""
        before = sorted(os.listdir(self.dir))
        for call, ended in self.run_all(((*call, "runs.txt") for call in self.USERS), **settings):
            with self.subTest(call):
                self.assertRefused(ended, *words)
        self.assertEqual((self.states(), sorted(os.listdir(self.dir))), (".", before))

    def test_a_file_with_several_hard_links_is_refused(self) -> None:
        os.link(self.path, self.dir / "other.txt")
        self.assertRefused(self.run_script(RUNMAKER, "runs.txt"), "several names", "keep one")
        self.assertRefused(self.run_script(RUNSERVER, "--port", "0", "runs.txt"), "several names")
        self.assertEqual((self.states(), lock_table(self.path).exists()), (".", False))

    def test_a_file_that_is_a_mount_of_its_own_is_refused(self) -> None:
        self.write(". touch never\n", "source.txt")
        mount = ["unshare", "-rm", "sh", "-c", 'mount --bind source.txt runs.txt && exec "$@"', "sh"]
        probe = subprocess.run([*mount, "true"], cwd=self.dir, stderr=subprocess.PIPE, check=False)
        if probe.returncode:
            self.skipTest(f"no file can be mounted here: {probe.stderr.decode().strip()}")
        ended = self.run_script(*mount, *self.command(RUNMAKER, "runs.txt"))
        self.assertRefused(ended, "mount point", "mount the directory")

    def test_a_pipe_a_directory_or_a_file_of_contents_by_its_name_is_refused_and_left_as_it_is(self) -> None:
        words = {"mkfifo -m 600": "not a regular file", "umask 77; echo private >": "is a file with contents",
                 "touch other; chmod 600 other; ln other": "has several names",
                 "mkdir -m 600": "is a directory"}
        for number, make in enumerate(words):
            self.write(". echo ran >>ran\n", f"{number}").chmod(0o666)
            subprocess.run([f"{make} .{number}.lock"], shell=True, cwd=self.dir, check=True)
        before = sorted(os.listdir(self.dir))
        users = *self.USERS, (RUNWAIT, "--status"), (RUNMAKER, "--dry-run")
        said = dict(zip("0123", words.values()))
        for call, ended in self.run_all((*call, name) for call in users for name in said):
            with self.subTest(call):
                self.assertRefused(ended, f".{call[-1]}.lock", said[call[-1]])
        for name in said:
            self.assertEqual(lock_table(self.dir / name).stat().st_mode & 0o777, 0o600)
            self.assertEqual(self.states(name), ".")
        self.assertEqual(sorted(os.listdir(self.dir)), before)

    def test_a_link_in_its_place_is_named_as_one(self) -> None:
        lock_table(self.path).symlink_to("elsewhere")
        self.write(". true\n")
        self.assertAllRefuse(".runs.txt.lock", "is a symbolic link", "remove the link")
        hasty = "import runwait4; runwait4.Watcher.MAX_MISSING_SECONDS = 0.2"
        looking = self.start_patched(hasty, "--status", "runs.txt", script=RUNWAIT)
        self.assertRefused(self.finish(looking), ".lock: is a symbolic link")
        self.assertFalse((self.dir / "elsewhere").exists())

    def test_each_error_of_a_lock_has_its_own_remedy(self) -> None:
        self.write(". true\n")
        mount = runmaker4.find_mount(str(self.path))
        remedies = {errno.ENOLCK: "grants no lock", errno.EAGAIN: "try again",
                    errno.EINVAL: "a file system with locks", errno.EACCES: "create an empty file",
                    errno.ENOSPC: "df -i", errno.EDQUOT: "see quota"}
        for number, remedy in remedies.items():
            with self.subTest(errno.errorcode[number]), mock.patch.object(
                    runmaker4, "lock", side_effect=OSError(number, os.strerror(number))):
                with self.assertRaises(runmaker4.UsageError) as refused:
                    runmaker4.check_lock_file(runmaker4.JobFile(str(self.path), say=self.fail, mount=mount))
                self.assertIn(remedy, str(refused.exception))

    def test_a_pipe_in_its_place_is_named_by_a_runner_that_is_there(self) -> None:
        self.write(". true\n")
        runner = self.start(RUNMAKER, "-q", "--follow", "runs.txt")
        self.wait_states("d")                   # it has made the lock file, and checked it
        os.mkfifo(self.dir / "pipe")
        (self.dir / "pipe").rename(lock_table(self.path))
        self.write(". echo\n")
        said = present(runner.stderr).readline()
        self.assertIn(b"lock file .runs.txt.lock: not a regular file; trying again", said)
        lock_table(self.path).unlink()
        self.wait_states("d")
        self.stop(runner)

    def test_where_it_cannot_be_made_an_empty_file_will_do(self) -> None:
        bound = bound_by_permissions(self)
        self.dir.chmod(0o555)
        self.addCleanup(self.dir.chmod, 0o755)
        self.assertRefused(self.run_script(RUNMAKER, "runs.txt", **bound), ".runs.txt.lock",
                           "permission denied", "an empty file of this name")
        self.dir.chmod(0o755)
        lock_table(self.path).touch()
        self.write(". true\n")
        self.dir.chmod(0o555)
        ended = self.run_script(RUNMAKER, "-q", "--no-records", "runs.txt", **bound)
        self.assertEqual((ended.code, self.states()), (0, "d"), ended.err)

    def test_who_may_only_read_can_look(self) -> None:
        bound = bound_by_permissions(self)
        self.path.chmod(0o444)
        self.dir.chmod(0o555)
        self.addCleanup(self.dir.chmod, 0o755)
        ended = self.run_script(RUNWAIT, "--status", "runs.txt", **bound)
        self.assertEqual((ended.code, ended.err), (0, b""))
        self.assertIn(b"1 new", ended.out)

    def test_who_may_not_read_it_sees_states_and_is_told_what_cannot_be_known(self) -> None:
        bound = bound_by_permissions(self)
        self.write("r true\n. true\n")
        self.path.chmod(0o644)
        lock_table(self.path).touch()
        lock_table(self.path).chmod(0o000)
        self.dir.chmod(0o755)
        calls = (RUNWAIT, "--status"), (RUNWAIT, "--status", "--json"), (RUNSET, "--list")
        for call, ended in self.run_all(((*call, "runs.txt") for call in calls), **bound):
            with self.subTest(call):
                self.assertEqual(ended.code, 0, ended.err)
                unknown = b"cannot tell whether jobs marked r are still running: no permission to read"
                self.assertIn(b"runs.txt: " + unknown, ended.err)
                self.assertEqual(ended.err.count(b"\n"), 1, ended.err)
        ended = self.run_script(RUNWAIT, "--status", "runs.txt", **bound)
        self.assertIn(b"1 new, 1 running", ended.out)
        self.assertIn(b"\ncannot count runners and servers: no permission to read their locks\n", ended.out)
        self.assertNotIn(b"without", ended.out)
        ended = self.run_script(RUNWAIT, "--status", "--json", "runs.txt", **bound)
        self.assertIsNone(json.loads(ended.out)["runners"])

    def test_one_that_is_somebody_elses_is_refused(self) -> None:
        if os.geteuid():
            self.skipTest("only root can give files away")
        lock_table(self.path).touch()
        os.chown(lock_table(self.path), 4242, -1)
        self.assertAllRefuse(".runs.txt.lock", "belongs to user 4242, who could remove it while jobs run")
        os.chown(self.path, 4242, -1)               # whose file it is may have it
        ended = self.run_script(RUNMAKER, "-q", "runs.txt")
        self.assertEqual((ended.code, self.states()), (0, "d"), ended.err)

    def test_the_owner_is_told_how_to_get_one_of_root(self) -> None:
        bound = bound_by_permissions(self)
        lock_table(self.path).touch()
        lock_table(self.path).chmod(0o000)
        self.assertAllRefuse("if it is root's, sudo chown --reference=runs.txt .runs.txt.lock", **bound)

    def test_who_may_write_the_file_may_use_it_and_nobody_else_also_after_chmod(self) -> None:
        for mode, wanted in (0o644, 0o600), (0o664, 0o660), (0o666, 0o666), (0o640, 0o600):
            with self.subTest(mode=oct(mode)):
                self.write(". true\n")
                self.path.chmod(mode)
                self.assertEqual(self.run_script(RUNMAKER, "-q", "runs.txt").code, 0)
                self.assertEqual(lock_table(self.path).stat().st_mode & 0o777, wanted)

    def test_that_somebody_keeps_a_command_locked_is_told(self) -> None:
        with open(lock_table(self.path), "wb") as file:
            mutex = runmaker4.bucket_of(b"echo ran >>ran") + runmaker4.MUTEX_OFFSET
            self.assertTrue(runmaker4.lock(file.fileno(), mutex))
            runner = self.start_patched("import runmaker4; runmaker4.Cursor.MIN_IDLE_SECONDS = 0.3", "-q",
                                        "runs.txt")
            with deadline(runner):
                self.assertIn(b": 1 new job waits: ", present(runner.stderr).readline())
            told = self.run_script(RUNWAIT, "--status", "runs.txt").out
            self.assertIn(b"line 1 waits for another process, which holds the command mutex", told)
        self.assertEqual((self.finish(runner).code, self.states()), (0, "d"))

    def test_a_lock_on_a_byte_of_the_file_that_names_companions_is_refused(self) -> None:
        lock_table(self.path).touch()
        with open(self.path, "rb") as reader:
            self.assertTrue(runmaker4.lock(reader.fileno(), runmaker4.USER_BYTES + 5, shared=True))
            self.assertAllRefuse("is in use with another lock file (")
            patch = f"{NFS3}runmaker4.JobFile.PROBE_SECONDS = 0.1"
            self.assertRefused(self.finish(self.start_patched(patch, "runs.txt")),
                               "is in use with another lock file (")
        self.assertEqual(self.finish(self.start_patched(NFS3, "-q", "runs.txt")).code, 0)

    def test_runners_make_one_that_was_removed_again_and_say_so(self) -> None:
        runner = self.start_to_gate(f". {GATE}\n")
        lock_table(self.path).unlink()
        wait_until(lambda: locked_lines(self) == [1], what="the line is locked again")
        other = self.run_script(RUNMAKER, "-q", "--resume", "runs.txt")
        self.assertEqual((other.code, self.states()), (0, "r"), other.err)
        self.open_gate()
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states()), (0, "d"))
        self.assertIn(b".runs.txt.lock was removed; it was created and locked again", ended.err)

    def test_files_that_another_host_makes_in_the_same_moment_are_shared_with_it(self) -> None:
        self.write("a\n", "names")
        options = ["-q", "--slots", "@names", "--outdir", "out", "--joblog", "jobs.log", "-l", "log"]
        ended = self.finish(self.start_patched(MADE_ELSEWHERE, *options, "runs.txt"))
        made = b"made elsewhere: .runs.txt.lock jobs.log journal log\n"
        self.assertEqual((ended.code, ended.out), (0, made), ended.err)
        self.assertEqual((self.states(), self.read("ran")), ("d", b"ran\n"))
        adding = ["new.txt", "--add", "true"]
        ended = self.finish(self.start_patched(MADE_ELSEWHERE, *adding, script=RUNSET))
        made = b"made elsewhere: .new.txt.lock new.txt\n"
        self.assertEqual((ended.code, ended.out), (0, made), ended.err)
