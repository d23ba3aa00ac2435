"""Promise: whatever happens to the job file or to disks, jobs go on, and no byte is misplaced."""
import functools
import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import runmaker4
from tests.support.over_tcp import OverTcp, ordinarily
from tests.support.permissions import bound_by_permissions
from tests.support.processes import Ended, wait_until
from tests.support.runs import HASTY, INTERVAL, LOOKS, WAITING, RunCase, hastened, without_states
from tests.support.scripts import RUNMAKER, RUNWAIT
from tests.support.tcp import TcpCase
from tests.support.values import as_bytes, present


class FileCase(RunCase):
    """A job waits at the gate, something happens to the file, the gate opens."""

    def wait_at_gate(self, *others: str, first: str = WAITING, options: Sequence[str] = (),
                     **settings: Any) -> None:
        """Start a runner whose first job waits at the gate; the other jobs come after it."""
        self.jobs(first, *others)
        self.runner = self.start_jobs(*options, **settings)
        self.running = self.read().partition(b"\n")[0] + b"\n"          # the line that runs: r COMMAND

    def go_on(self) -> Ended:
        self.open_gate()
        return self.finish(self.runner)

    def rewrite(self, text: bytes) -> None:
        """Edit the file in place, as some editors do: the same inode gets other bytes, and its end is cut."""
        with open(self.dir / "runs.txt", "r+b") as file:
            file.write(text)
            file.truncate()
        self.before = text

    def replace(self, text: bytes) -> None:
        """Edit the file as most editors do: a new file takes its name."""
        self.write(text, "new")
        os.replace(self.dir / "new", self.dir / "runs.txt")
        self.before = text

    def append_bytes(self, text: bytes) -> None:
        with open(self.dir / "runs.txt", "ab", buffering=0) as file:
            file.write(text)
        self.before += text

    def wait_reported(self, text: str) -> None:
        """Wait until the runner has written this to the file `said` (--errors)."""
        wait_until(lambda: self.exists("said") and text.encode() in self.read("said"), what=text)

    def assertLineGone(self, ended: Ended, states: str) -> None:
        """The result of line 1 could not be written and was said; exit 1."""
        self.assertComplains(ended, "line 1", "gone")
        self.assertEnded(ended, 1, states)


class Replaced(FileCase):
    """The job file is replaced by an editor: the new file is followed."""

    def test_the_result_goes_into_the_new_file_and_its_new_lines_are_run(self) -> None:
        self.wait_at_gate()
        self.replace(b". touch above\n" + self.running + b". touch below\n")
        self.assertEnded(self.go_on(), 0, "ddd")
        self.assertTrue(self.exists("above") and self.exists("below"))

    def test_a_line_that_the_new_file_lacks_is_said(self) -> None:
        self.wait_at_gate(quick=True)
        self.replace(b". touch instead\n")
        self.assertLineGone(self.go_on(), "d")
        self.assertTrue(self.exists("instead"))

    def test_a_file_that_is_replaced_while_a_runner_starts_is_no_obstacle(self) -> None:
        self.jobs("touch old")
        self.write(". true\n. true", "new")
        replace = """
import os, runmaker4
check = runmaker4.check_file_for_strays
def check_late(*args, **named):
    os.replace("new", "runs.txt")
    check(*args, **named)
runmaker4.check_file_for_strays = check_late
"""
        ended = self.finish(self.start_patched(replace, "-q", "runs.txt"))
        self.assertEqual((ended.code, self.states(), self.exists("old")), (0, "dd", False), ended.err)

    def test_an_idle_following_runner_goes_on_with_the_new_file(self) -> None:
        self.jobs("touch first")
        runner = self.start(RUNMAKER, "--follow", "runs.txt")
        self.wait_states("d")
        self.replace(b"d touch first\n. touch second\n")
        self.wait_states("dd")
        self.assertEnded(self.stop(runner), 143, "dd")


class Cached(FileCase):
    """The job file is replaced on another host, and this one has the old name cached."""

    def test_a_host_whose_cache_still_has_the_old_file_at_the_path_gets_the_new_one(self) -> None:
        """As GlusterFS: the name is cached, and to open the old file again fails."""
        cached = """
import errno, os, runmaker4
def open_file(path, *args, real=os.open, **named):
    if str(path).startswith("/proc/self/fd/") and not os.stat(path).st_nlink:
        raise OSError(errno.ESTALE, "stale")
    return real(path, *args, **named)
def path_names_fd(path, fd, real=runmaker4.path_names_fd):
    return not os.fstat(fd).st_nlink or real(path, fd)
os.open, runmaker4.path_names_fd = open_file, path_names_fd
runmaker4.find_mount = lambda _: runmaker4.Mount("fuse.glusterfs", frozenset())
""" + hastened(0.2, 0.04)
        self.jobs(WAITING)
        self.runner = self.start_patched(cached, "-q", "--single-host", "runs.txt")
        self.wait_states("r")
        self.replace(self.read() + b". touch below\n")
        self.assertEnded(self.go_on(), 0, "dd")


class Spoiled(FileCase):
    """The job file is cut, deleted or made read-only: what is left stays as it is, and jobs go on."""

    def test_a_single_byte_of_the_line_is_left_alone_and_the_result_is_said(self) -> None:
        self.wait_at_gate("touch never", quick=True)
        self.rewrite(b"r")
        self.assertLineGone(self.go_on(), "")
        self.assertEqual((self.read(), self.exists("never")), (b"r", False))

    def test_a_file_that_is_cut_after_the_running_line_is_well(self) -> None:
        self.wait_at_gate("touch never", "touch never")
        self.rewrite(self.running)
        self.assertEnded(self.go_on(), 0, "d")
        self.assertFalse(self.exists("never"))

    def test_the_running_job_ends_and_its_result_is_said(self) -> None:
        self.wait_at_gate("touch never", first=f"{WAITING}; touch finished", quick=True)
        (self.dir / "runs.txt").unlink()
        self.open_gate()
        said = iter(present(self.runner.stderr).readline, b"")
        self.assertTrue(any(b"line 1: the result d cannot be written" in line for line in said))
        ended = self.stop(self.runner)
        self.assertEqual(ended.code, 143)
        self.assertIn(b"1 not written down", ended.err)
        self.assertTrue(self.exists("finished"))
        self.assertFalse(self.exists("never"))
        self.assertFalse(self.exists("runs.txt"), "nobody makes it anew")
        self.assertNobodyLeft()

    def test_the_running_job_gets_its_result(self) -> None:
        self.wait_at_gate("true", quick=True, **bound_by_permissions(self))
        (self.dir / "runs.txt").chmod(0o444)
        self.assertEnded(self.go_on(), 0, "dd")


class Directory(RunCase):
    """The directory of the file is removed under a runner with --follow."""

    def follow(self, name: str, path: str, statements: str = "") -> subprocess.Popen[bytes]:
        """Start a runner in this directory, made for it, and wait until the job of its file is done."""
        (self.dir / name).mkdir()
        self.write(". true\n", f"{name}/runs.txt")
        runner = self.start_patched(HASTY + statements, "-q", "--follow", "--no-records", "--errors",
                                    str(self.dir / f"{name}.said"), path, cwd=self.dir / name)
        wait_until(lambda: self.read(f"{name}/runs.txt") == b"d true\n", what="the job is done")
        return runner

    def test_a_runner_ends_if_it_cannot_come_back_or_does_not_for_a_while(self) -> None:
        for name, path, statements in (("here", "runs.txt", ""),
                                       ("there", str(self.dir / "there" / "runs.txt"),
                                        "runmaker4.Cursor.MAX_FOLDER_SECONDS = 1.0\n")):
            with self.subTest(path=path):
                runner = self.follow(name, path, statements)
                shutil.rmtree(self.dir / name)
                self.assertEqual(self.finish(runner).code, 1)
                self.assertIn(b"the directory is gone (no more jobs were started)",
                              self.read(f"{name}.said"))

    def test_a_runner_goes_on_if_it_comes_back(self) -> None:
        there, away = self.dir / "there", self.dir / "away"
        runner = self.follow("there", str(there / "runs.txt"), LOOKS)
        there.rename(away)
        wait_until(lambda: b"is gone; trying again" in self.read("there.said"), what="it is missed")
        for _ in range(3):                      # longer than other errors may last
            self.wait_looked("away/runs.txt")
        self.write("d true\n. echo back\n", "away/runs.txt")
        away.rename(there)
        wait_until(lambda: self.read("there/runs.txt") == b"d true\nd echo back\n", what="it is done")
        self.stop(runner)


class SavedInPlace(TcpCase):
    """An editor empties the file before it fills it again: nobody takes what is there meanwhile for all."""
    # The editor fills the file as soon as somebody has looked at it, empty as it is
    FILLED = """
import os, runmaker4
def filling(look):
    def look_and_fill(self, *args, **more):
        found = look(self, *args, **more)
        if os.path.exists("saved") and os.path.getsize("runs.txt") == 0:
            with open("saved") as saved, open("runs.txt", "r+") as file:
                file.write(saved.read())
            os.unlink("saved")
        return found
    return look_and_fill
runmaker4.Cursor._end_walk = filling(runmaker4.Cursor._end_walk)
for name in "snapshot", "summarize":
    setattr(runmaker4.JobReader, name, filling(getattr(runmaker4.JobReader, name)))
"""

    def save(self, command: str = "true") -> None:
        """Empty the file, which is to be filled with this job."""
        self.jobs(command)
        self.write(self.before, "saved")
        self.write("")

    def test_a_runner_runs_what_comes_back(self) -> None:
        self.save()
        runner = self.start_patched(self.FILLED, "runs.txt")
        self.assertEnded(self.finish(runner), 0, "d")

    def test_who_waits_for_the_jobs_goes_on(self) -> None:
        self.save("false")
        waiter = self.start_patched(self.FILLED, "-e", "runs.txt", script=RUNWAIT)
        self.wait_states(".")
        self.assertEqual(self.run_jobs().code, 1)
        self.assertEqual(self.finish(waiter).code, 1, "it has seen the job fail")

    def test_a_client_and_a_server_that_is_to_leave_when_all_is_done_stay(self) -> None:
        self.save()
        server = self.start_server("--exit-when-done", patch=self.FILLED)
        client = self.start_client(server)
        self.assertClientEnded(self.finish(client), 0, "d")
        self.assertEqual(self.finish(server).code, 0)


class Edited(FileCase):
    """The job file is edited in place: results find their line, changed jobs run as they now stand."""

    def test_two_running_lines_of_the_same_text_that_move_by_one_line_both_get_their_results(self) -> None:
        self.wait_at_gate(WAITING, options=["-j2"])
        self.wait_up(2)
        above = b". touch above;" .ljust(len(self.running) - 1, b" ") + b"\n"
        self.rewrite(above + 2 * self.running)
        self.assertEnded(self.go_on(), 0, "ddd")

    def test_a_waiting_job_runs_as_it_now_stands(self) -> None:
        self.wait_at_gate("touch old", "echo third >> third")
        self.rewrite(self.running + b". touch a-new-and-longer-name\n. echo third >> third\n")
        self.assertEnded(self.go_on(), 0, "ddd")
        self.assertTrue(self.exists("a-new-and-longer-name"))
        self.assertFalse(self.exists("old"))
        self.assertEqual(self.read("third"), b"third\n")

    def test_what_looks_like_a_job_in_the_middle_of_a_line_is_not_run(self) -> None:
        """After the edit '. touch never' stands just where the next line began before, but in a command."""
        tail = b". touch never\n"
        self.wait_at_gate("touch second", first=f"{WAITING} # {tail.decode().strip()}")
        self.rewrite(b"#".ljust(len(tail) - 1) + b"\n" + self.running + b". touch second\n")
        self.assertEnded(self.go_on(), 0, "dd")
        self.assertTrue(self.exists("second"))
        self.assertFalse(self.exists("never"))

    def test_a_job_that_was_joined_to_the_comment_above_is_not_run(self) -> None:
        """The line stands where it stood, byte for byte, but the newline before it is a blank now."""
        self.before = self.write(f". {WAITING}\n# text\n. touch never\n. touch last\n").read_bytes()
        self.runner = self.start_jobs()
        self.rewrite(self.read().replace(b"# text\n.", b"# text ."))
        self.assertEnded(self.go_on(), 0, "dd")
        self.assertTrue(self.exists("last"))
        self.assertFalse(self.exists("never"))


class Appended(FileCase):
    """A last line without a newline counts once the file has not grown for a second; it then gets one."""
    # A writer that ends the line later
    HOLDS_OPEN = "exec 3>>runs.txt; printf '. touch fi' >&3; : >held; read -r rest; echo \"$rest\" >&3"

    def test_a_line_that_is_appended_while_jobs_run_is_run(self) -> None:
        self.wait_at_gate(options=["-j2"], quick=True)
        self.append_bytes(b". touch second")
        wait_until(lambda: self.exists("second"), what="the second job has run beside the first")
        self.before += b"\n"
        self.assertEnded(self.go_on(), 0, "dd")

    def test_what_is_appended_to_a_line_that_was_taken_is_a_line_of_its_own_and_is_said(self) -> None:
        self.wait_at_gate(options=["-j2"], quick=True)
        self.append_bytes(b". touch half")
        wait_until(lambda: self.exists("half"), what="the first half of the line is run")
        self.before += b"\n"
        self.append_bytes(b"-and-half && touch whole\n. touch last\n")
        ended = self.go_on()
        self.assertIn(b"line 3 is neither a job nor a comment", ended.err)
        self.assertEnded(ended, 1, "ddd")
        self.assertTrue(self.exists("last"))

    def test_each_runner_after_it_says_so_too(self) -> None:
        self.before = self.write(". touch half").read_bytes()
        self.assertEqual(self.run_jobs("-q").code, 0)
        self.before += b"\n"
        self.append_bytes(b"-and-half\n")
        for options in ["-q"], ["-q", "-r"], ["-q", "--resume"]:
            ended = self.run_jobs(*options)
            self.assertIn(b"line 2 is neither a job nor a comment", ended.err)
            self.assertEnded(ended, 1, "d")

    def test_a_line_waits_for_the_process_that_has_the_file_open_to_write(self) -> None:
        self.before = self.write(". touch first\n").read_bytes()
        writer = self.start("sh", "-c", self.HOLDS_OPEN, stdin=subprocess.PIPE)
        wait_until(lambda: self.exists("held"), what="the writer has written half a line")
        self.runner = self.start_jobs("-q", "--errors=said", up=(), quick=True)
        self.wait_reported(f"no newline, and process {writer.pid} has the file open: waiting for the rest\n")
        self.assertEqual(self.states(), "d.")
        writer.communicate(b"fth\n")
        self.before += b". touch fifth\n"
        self.assertEnded(self.finish(self.runner), 0, "dd")
        self.assertEqual((self.exists("fi"), self.exists("fifth")), (False, True))
        self.assertEqual(self.read("said").count(b"waiting for the rest"), 1)

    def test_a_line_that_its_writer_leaves_like_that_is_run(self) -> None:
        self.before = b". touch fi\n"
        writer = self.start("sh", "-c", self.HOLDS_OPEN, stdin=subprocess.PIPE)
        wait_until(lambda: self.exists("held"), what="the writer has written half a line")
        self.runner = self.start_jobs("-q", "--errors=said", up=(), quick=True)
        self.wait_reported("waiting for the rest")
        writer.kill()
        self.finish(writer)
        self.assertEnded(self.finish(self.runner), 0, "d")
        self.assertTrue(self.exists("fi"))

    def test_only_who_appends_or_only_writes_is_a_writer(self) -> None:
        self.write(". true")
        with open(self.dir / "runs.txt", "rb") as file:
            for opened, writes in ("<>", False), ("<", False), (">>", True), (">", True):
                with self.subTest(opened):
                    holder = self.start("sh", "-c", f"exec 3{opened} runs.txt; : >held; read rest",
                                        stdin=subprocess.PIPE)
                    wait_until(lambda: self.exists("held"), what="the file is open")
                    self.assertEqual(runmaker4.find_writer(file.fileno()), str(holder.pid) if writes else "")
                    holder.communicate(b"\n")
                    os.unlink(self.dir / "held")

    def test_a_line_that_grows_in_the_moment_of_the_newline_is_run_whole(self) -> None:
        faster = """import runmaker4
size, calls = runmaker4.JobFile.size, []
def append_after_size(file):
    last = size(file)
    if not calls:
        calls.append(last)
        with open("runs.txt", "ab") as writer:
            writer.write(b"ole")
    return last
runmaker4.JobFile.size = append_after_size
"""
        self.write(". touch wh")
        self.before = b". touch whole\n"
        self.assertEnded(self.finish(self.start_patched(faster, "-q", "runs.txt")), 0, "d")
        self.assertEqual((self.exists("wh"), self.exists("whole")), (False, True))

    def test_a_newline_that_finds_no_room_is_said_and_the_line_stays_new(self) -> None:
        full = """import errno, os, runmaker4
def fail(*words):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
runmaker4.JobFile.complete_line = fail
"""
        self.write(". touch never")
        self.runner = self.start_patched(full, "-q", "runs.txt", "--errors=said")
        self.wait_reported("o space left")
        self.runner.terminate()
        self.finish(self.runner)
        self.assertEqual((self.read(), self.exists("never")), (b". touch never", False))

    def test_a_line_that_still_grows_is_not_run_before_it_is_whole(self) -> None:
        self.wait_at_gate(options=["-j2"], quick=True)
        slowest, pause = 0.0, INTERVAL / 14
        for byte in b". echo $((1111111)) >> got\n":
            start = time.monotonic()
            self.append_bytes(bytes([byte]))
            time.sleep(pause)
            slowest = max(slowest, time.monotonic() - start)
        if slowest > 0.9 * INTERVAL:
            self.skipTest(f"too busy to append every {pause:.2f} s: one took {slowest:.1f} s")
        self.assertEnded(self.go_on(), 0, "dd")
        self.assertEqual(self.read("got"), b"1111111\n")

    def test_a_running_last_line_may_get_its_newline_and_more_lines(self) -> None:
        self.before = self.write(f". {WAITING}").read_bytes()
        self.runner = self.start_jobs(quick=True)
        self.append_bytes(b"\n. touch second\n")
        self.before = self.before.replace(b"\n", b"\n\n", 1)          # the runner's own
        self.assertEnded(self.go_on(), 0, "dd")


class FullDisk(FileCase):
    """What cannot be written to the log, the output directory or the job log is said; jobs go on; exit 1."""

    @staticmethod
    def no_more(size: int) -> Callable[[], None]:
        """A preexec_fn after which files have at most this many bytes; then SIGXFSZ comes, or EFBIG."""
        return functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))

    def test_the_console_still_shows_what_the_output_directory_has_no_room_for(self) -> None:
        self.jobs("seq 1 3000")
        ended = self.run_jobs("--outdir", "out", preexec_fn=self.no_more(2000))
        self.assertEqual(ended.code, 1)
        shown = [line.rpartition(b" ")[2] for line in ended.out.splitlines() if line.startswith(b"stdout")]
        self.assertEqual(shown, [as_bytes(str(number)) for number in range(1, 3001)])

    def test_a_disk_that_is_full_at_any_byte_of_a_record_is_said_once_for_each_file(self) -> None:
        alone = "import runmaker4; runmaker4.Journal.END_GATHER_SECONDS = 0"       # each record
        for limit in 700, 1000, 1300:
            self.jobs(*["echo out"] * 4)
            ended = self.finish(self.start_patched(alone, "-q", "-l", "log", "-n2", "runs.txt",
                                                   preexec_fn=self.no_more(limit)))
            self.assertEnded(ended, 1, "dddd")
            self.assertEqual(sorted(re.findall(rb"\S+: file too large \(the .*", ended.err)), [
                b"log: file too large (the log file is incomplete; the jobs go on)",
                b"runs.txt.out/journal: file too large (the journal is incomplete; the jobs go on)"])

    def test_messages_that_find_no_room_are_an_error(self) -> None:
        self.jobs(WAITING)
        full = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (30, resource.RLIM_INFINITY))
        runner = self.start_jobs("--no-records", "--errors", "errors", preexec_fn=full)
        wait_until(lambda: len(self.read("errors")) == 30, what="the first message finds no room")
        resource.prlimit(runner.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        self.open_gate()
        self.assertEnded(self.finish(runner), 1, "d")
        self.assertIn(b" runmaker4.py: runs.txt: 1 done in ", self.read("errors"))      # once there was room

    def test_an_output_directory_that_becomes_a_file(self) -> None:
        self.wait_at_gate("echo second", options=["--outdir", "out"])
        os.rename(self.dir / "out", self.dir / "out.old")
        self.write("not a directory\n", "out")
        ended = self.go_on()
        self.assertComplains(ended, "out", "not a directory")
        self.assertEnded(ended, 1, "dd")
        self.assertEqual(self.read("out"), b"not a directory\n")


class FailingWrites(FileCase):
    """A state that cannot be written now is written later; the line stays locked meanwhile."""

    SETUP = f"""{HASTY}
import errno, os
write = os.pwrite
def pwrite(fd, data, offset):
    if data == b"d" and not os.path.exists("room"):
        open("tried", "w").close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(fd, data, offset)
os.pwrite = pwrite
"""

    def test_a_result_that_finds_no_room_is_written_as_soon_as_there_is(self) -> None:
        self.jobs("touch ran", "touch second")
        runner = self.start_patched(self.SETUP, "-j1", "runs.txt")
        wait_until(lambda: self.exists("tried"), what="the first job has run, and the result finds no room")
        self.assertEqual(self.run_jobs("--dry-run", "--resume").out, b"2 . touch second\n",
                         "line 1 is locked")
        self.write("", "room")
        ended = self.finish(runner)
        self.assertEnded(ended, 0, "dd")
        self.assertComplains(ended, "line 1", "no space left")


class Synced(RunCase):
    """The states go to disk when the runner exits."""
    NOTE = "import os\nos.fsync = lambda fd: print(os.readlink(f'/proc/self/fd/{fd}'), flush=True)"

    def test_once_if_it_has_written_any_and_otherwise_not_at_all(self) -> None:
        """All that was written does; alone, the note for power cuts, when it comes and goes."""
        note = f"{self.dir / '.runs.txt.lock'}\n".encode()
        self.script("#!/bin/sh\necho $* >>synced\n", "bin/sync")
        path = {"PATH": f"{self.dir / 'bin'}:{os.environ['PATH']}"}
        all_files = b"-f -- runs.txt.out\n-f -- runs.txt\n"
        for before, fsynced, synced in (("d true\n", b"", b""), (". true\n. true\n", 2 * note, all_files),
                                        ("r lost\n", note, all_files)):
            with self.subTest(before=before):
                self.write(before)
                self.write("", "synced")
                ended = self.finish(self.start_patched(self.NOTE, "--plain", "runs.txt", env=path))
                self.assertEqual((ended.out, self.read("synced")), (fsynced, synced), ended.err)


class SmallFileSystem(FileCase):
    """A file system that really is full."""

    MOUNT = "mount -t tmpfs -o size=64k none full"

    def test_a_job_file_on_a_full_disk_gets_its_states(self) -> None:
        self.jobs("true", "exit 3", "head -c 200000 /dev/zero")
        (self.dir / "full").mkdir()
        probe = subprocess.run(["unshare", "-rm", "sh", "-c", self.MOUNT], cwd=self.dir,
                               stderr=subprocess.PIPE, check=False)
        if probe.returncode != 0:
            self.skipTest(f"no mount namespace with a tmpfs of our own: {probe.stderr.decode()}")
        fill = "cp runs.txt full/; cat /dev/zero > full/filler 2> /dev/null"
        script = f'{self.MOUNT}; {fill}; "$@"; code=$?; cat full/runs.txt; exit $code'
        words = self.command(RUNMAKER, "-q", "full/runs.txt")
        ended = self.run_script("unshare", "-rm", "sh", "-c", script, "sh", *words)
        self.assertEqual((ended.code, ended.out[:1]), (1, b"d"), ended.err)
        self.assertEqual(without_states(ended.out), without_states(self.before))
        self.assertEqual([line[:1] for line in ended.out.splitlines()], [b"d", b"!", b"d"])


# -- the same, promised of a client -------------------------------------------------------------------------


@ordinarily("test_the_result_goes_into_the_new_file_and_its_new_lines_are_run",
            "test_a_line_that_the_new_file_lacks_is_said")
class ReplacedOverTcp(OverTcp, Replaced):
    """The job file is replaced under a server whose clients run jobs."""


@ordinarily("test_a_waiting_job_runs_as_it_now_stands")
class EditedOverTcp(OverTcp, Edited):
    """The job file is edited in place under a server whose clients run jobs."""
