"""Promise: without any option FILE.out has what each job printed, where it ran and how it ended, and all
views show it; short output is in the journal, and costs no file.
"""
import json
import os
import pathlib
import shutil
import signal
import stat
import unittest
from typing import Any

from tests.support.case import GATE
from tests.support.line_locks import locked_lines
from tests.support.patches import PATIENT
from tests.support.permissions import bound_by_permissions
from tests.support.processes import Ended, wait_until
from tests.support.runs import SLEEPING
from tests.support.scripts import FULL, RUNMAKER, RUNSET, RUNWAIT
from tests.support.tcp import TcpCase

BYTES = bytes(range(256)) + "é😀\n".encode() + bytes(range(255, -1, -1))
# A job waits until what it printed is in a file: its line ran once
HAS_FILE = "until [ -s runs.txt.out/$JOB_ID.out ]; do sleep 0.02; done"
by_root = unittest.skipIf(os.geteuid(), "only root can give files away")


class DefaultCase(TcpCase):
    """Runs without --outdir."""

    def view(self, *options: str) -> bytes:
        """What runwait4.py prints, which must succeed."""
        ended = self.run_script(RUNWAIT, *options, "runs.txt")
        self.assertEqual((ended.code, ended.err), (0, b""))
        return ended.out

    def rows(self, lines: str = "*") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.view("--show", lines, "--json"))["runs"]
        return found

    def printed(self, lines: str = "*") -> list[tuple[bytes, bytes]]:
        """What each run has printed, in the journal and in files."""
        found = []
        for row in self.rows(lines):
            texts = [b"", b""]
            for name in row["files"]:       # of several servers, in the order in which they began them
                texts[".err" in name] += self.read(f"runs.txt.out/{name}")
            found.append((texts[0] + os.fsencode(row["stdout"]), texts[1] + os.fsencode(row["stderr"])))
        return found

    def files(self) -> list[str]:
        return sorted(os.listdir(self.dir / "runs.txt.out"))

    def run_client_of_a_server(self, *options: object, patch: str = "") -> Ended:
        """Run the jobs by a client of a server, which leaves when all is done; how the server ended."""
        server = self.start_server("--exit-when-done", patch=patch)
        self.run_client(server, *options, patch=patch)
        return self.finish(server)


class Views(DefaultCase):
    """Every view works after any run."""

    def check_views(self, said: bytes) -> None:
        """Line 1 has failed for want of a mesh, line 2 is done, and alice ran them."""
        self.assertEqual(self.states(), "!d")
        self.assertIn(b"next: runwait4.py --failed runs.txt\n", said)
        failed = self.view("--failed").decode()
        self.assertRegex(failed, r"line 1: exit 3 on \w+, .*\n    .*\n    slot 1, .*\n  \| mesh missing\n$")
        self.assertIn(f"in {os.path.realpath(self.dir)}", failed)
        self.assertRegex(self.view("--show", "2").decode(), r"^line 2: exit 0 on .*\n.*\n.*\n  \| fine\n$")
        stats = json.loads(self.view("--stats", "--json"))
        self.assertEqual([row["host"] for row in stats["hosts"]], ["alice"])
        self.assertEqual(stats["all"]["runs"], 2)
        self.assertIn(b"2 jobs: 0 new, 0 running, 1 done, 1 failed", self.view("--status"))
        self.view("--report", "page.html")
        self.assertIn(b"mesh missing", self.read("page.html"))
        self.view("--timeline", "trace.json")
        self.assertIn(b"mesh missing", self.read("trace.json"))

    COMMANDS = "echo mesh missing >&2; exit 3", "echo fine"

    def test_in_the_foreground(self) -> None:
        self.jobs(*self.COMMANDS)
        self.check_views(self.run_jobs("--name", "alice").err)

    def test_in_the_background(self) -> None:
        self.jobs(*self.COMMANDS)
        self.run_jobs("-d", "--name", "alice", "--errors", "messages")
        wait_until(lambda: b"next: " in self.read("messages"), what="the runner has ended")
        self.check_views(self.read("messages"))

    def test_over_tcp(self) -> None:
        self.jobs(*self.COMMANDS)
        self.check_views(self.run_client_of_a_server("--name", "alice", patch=PATIENT).err)
        self.assertEqual(self.files(), ["journal"])

    def test_before_any_run(self) -> None:
        self.jobs("true")
        self.assertIn(b"1 new", self.view("--status"))
        self.assertEqual(self.view("--failed"), b"")
        self.assertRefused(self.run_script(RUNWAIT, "--stats", "runs.txt"), "runs.txt.out/journal: no such",
                           "no job was run yet")
        (self.dir / "runs.txt.out").mkdir()             # without a journal it is somebody else's
        self.assertIn(b"1 new", self.view("--status"))

    def test_nothing_is_kept_with_no_records(self) -> None:
        self.jobs("echo a; exit 3")
        ended = self.run_jobs("--no-records")
        self.assertEqual((ended.code, self.states()), (1, "!"))
        self.assertNotIn(b"next: ", ended.err)
        server = self.start_server("--no-records")      # --exit-when-done leaves before a client is there
        self.run_client(server, "-r")
        self.assertNotIn(b"next: ", self.stop(server).err)
        self.assertFalse((self.dir / "runs.txt.out").exists())
        self.assertIn(b"line 1: failed; no recorded run: edited or set by hand, stopped between tries or "
                      b"with its group, or its record was not kept, or is in another --outdir\n",
                      self.view("--failed"))
        self.assertRefused(self.run_jobs("--no-records", "--outdir", "out"), "--no-records and --outdir")


class Short(DefaultCase):
    """Short output is in the journal, all other output in files."""

    def test_many_jobs_that_print_make_few_files(self) -> None:
        count = 2000 if FULL else 300
        self.jobs(*["echo $JOB_ID; echo err $JOB_ID >&2"] * count)
        for runner in [self.start_patched(PATIENT, "-q", "-j2", "runs.txt") for _ in range(2)]:
            self.assertEqual(self.finish(runner, 300).code, 0)
        self.assertEqual(self.files(), ["journal"])
        self.assertEqual(self.printed(), [(b"%d\n" % number, b"err %d\n" % number)
                                          for number in range(1, count + 1)])

    def test_a_client_whose_clock_is_behind_makes_no_more_files(self) -> None:
        self.jobs("echo a; sleep 0.1")
        server = self.start_server("--exit-when-done", patch=PATIENT)
        behind = "import time; now = time.time; time.time = lambda: now() - 300\n"
        self.assertEqual(self.run_client(server, patch=behind + PATIENT).code, 0)
        self.assertEqual((self.finish(server).code, self.files()), (0, ["journal"]))

    def test_each_stream_may_have_4096_bytes(self) -> None:
        def many(count: int) -> str:
            return f"head -c {count} /dev/zero"
        self.jobs(f"{many(4096)}; {many(4096)} >&2", f"{many(4097)}; echo a >&2", f"echo b; {many(4097)} >&2")
        for client in False, True:
            with self.subTest(client=client):
                self.run_script(RUNSET, "--all", "--set=.", "runs.txt")
                if client:
                    self.run_client_of_a_server(patch=PATIENT)
                else:
                    self.finish(self.start_patched(PATIENT, "-q", "runs.txt"))
                zeros = bytes(4096)
                self.assertEqual([self.printed(str(line))[-1] for line in (1, 2, 3)],
                                 [(zeros, zeros), (zeros + b"\0", b"a\n"), (b"b\n", zeros + b"\0")])
                self.assertEqual([len(self.rows(str(line))[-1]["files"]) for line in (1, 2, 3)], [0, 2, 2])

    def test_a_run_of_more_than_a_second_has_files_that_grow(self) -> None:
        self.jobs(f"echo one; echo two >&2; {HAS_FILE}; echo on; {GATE}; echo more; exit 3")
        self.addCleanup(self.open_gate)
        runner = self.start(RUNMAKER, "-q", "runs.txt")
        def has_grown() -> bool:
            return self.exists("runs.txt.out/1.out") and self.read("runs.txt.out/1.out") == b"one\non\n"
        wait_until(has_grown, what="the file grows while the job runs")
        wait_until(lambda: b'"files"' in self.read("runs.txt.out/journal"), what="the journal names them")
        self.assertRegex(self.view("--show", "1").decode(),
                         r"^line 1: running .*\n.*\n.* runs.txt.out/1.out, runs.txt.out/1.err\n  \| two\n$")
        self.open_gate()
        self.finish(runner)
        self.assertEqual((self.printed(), self.rows()[0]["stdout"]), ([(b"one\non\nmore\n", b"two\n")], ""))

    def test_any_bytes_come_back(self) -> None:
        self.write(BYTES, "bytes")
        files = "$(find runs.txt.out -name '2.out*' | wc -l)"
        each_has_a_file = f"echo >>tries; until [ {files} = $(wc -l <tries) ]; do sleep 0.02; done"
        self.jobs("cat bytes; cat bytes bytes >&2", f"cat bytes; {each_has_a_file}")
        self.run_jobs("-q", "-j2")
        expected = [(BYTES, BYTES * 2), (BYTES, b"")]
        self.assertEqual(self.printed(), expected)
        self.run_script(RUNSET, "--all", "--set=.", "runs.txt")
        self.run_client_of_a_server("-j2")
        self.assertEqual(self.printed("1"), expected[:1] * 2)
        self.assertEqual(self.printed("2"), expected[1:] * 2)


class Killed(DefaultCase):
    """Who is killed loses little, and a server nothing."""

    def test_a_run_that_dies_with_its_runner_shows_what_it_printed(self) -> None:
        self.jobs(f"echo early; {HAS_FILE}; echo late; {SLEEPING}")
        runner = self.start_jobs("-q")
        wait_until(lambda: self.exists("runs.txt.out/1.out") and b"late" in self.read("runs.txt.out/1.out"),
                   what="the output is in a file")
        wait_until(lambda: b'"files"' in self.read("runs.txt.out/journal"), what="the journal names the file")
        runner.kill()
        runner.wait()
        for row in json.loads(self.view("--status", "--json"))["jobs"]:
            os.killpg(row["pid"], signal.SIGKILL)
        wait_until(lambda: not locked_lines(self), what="the job is gone")
        self.assertRegex(self.view("--show", "1").decode(),
                         r"^line 1: (lost|error).*\n.*\n.*1\.out\n  \| early\n  \| late\n$")

    def test_a_server_that_is_killed_in_the_middle_loses_no_byte(self) -> None:
        long = "for i in 1 2 3 4 5 6 7 8; do echo $JOB_ID.$i; sleep 0.25; done"
        self.jobs(*["echo short $JOB_ID; sleep 0.02"] * 60, *[long] * 2)
        server = self.start_server()
        client = self.start_client(server, "-q", "-j4")
        wait_until(lambda: self.states().count("d") > 10, what="some jobs are done")
        server.kill()
        server = self.start_server("--port", server.port)
        wait_until(lambda: self.states().count("d") > 40, what="more are done")
        wait_until(lambda: self.exists("runs.txt.out/61.out"), what="a long one has a file")
        server.kill()
        # for lines that were claimed, and had not been sent, it waits for the whole grace, and then, here not
        # for a night, for a client that could bring their results
        server = self.start_server("--port", server.port, "--exit-when-done", "--grace", 10,
                                   patch="__import__('runmaker4-server').MAX_RETURN_SECONDS = 20.0\n")
        self.finish(client)
        self.finish(server)
        self.run_jobs("--resume", "-q")                 # a line that was claimed, and not sent yet, is `e`
        self.assertEqual(set(self.states()), {"d"})
        words: dict[int, list[bytes]] = {}              # a piece may be there twice
        for row, (stdout, _) in zip(self.rows(), self.printed()):
            words.setdefault(row["line"], []).extend(stdout.split())
        expected = {number: [b"short", b"%d" % number] for number in range(1, 61)}
        expected.update({number: [f"{number}.{i}".encode() for i in range(1, 9)] for number in (61, 62)})
        self.assertEqual({line: [*dict.fromkeys(found)] for line, found in words.items()}, expected)


class NotKept(DefaultCase):
    """Records that cannot be kept are said once; the jobs run, and the exit status is 1."""

    def setUp(self) -> None:
        super().setUp()
        self.jobs("echo a", "true")

    def assertRunsWithout(self, ended: Ended, words: str) -> None:
        self.assertEqual((ended.code, self.states()), (1, "dd"), ended.err)
        self.assertEqual(ended.err.count(b"the jobs run without records"), 1, ended.err)
        self.assertComplains(ended, "runs.txt.out", words)

    def test_a_file_in_the_way(self) -> None:
        self.write("mine", "runs.txt.out")
        self.assertRunsWithout(self.run_jobs("-q"), "exists")
        self.assertEqual(self.read("runs.txt.out"), b"mine")
        self.assertRefused(self.run_jobs("--outdir", "runs.txt.out"), "must be a directory")

    def test_a_link_that_leads_nowhere(self) -> None:
        (self.dir / "runs.txt.out").symlink_to("elsewhere")
        self.assertRunsWithout(self.run_jobs("-q"), "symbolic link to nothing")
        self.assertFalse((self.dir / "elsewhere").exists())

    def check_permission(self, directory: pathlib.Path, *options: str) -> None:
        """The jobs run after a run with these options if this directory may not be written any more."""
        bound = bound_by_permissions(self)
        self.run_jobs("-q", *options)
        self.jobs("true", "true")
        directory.chmod(0o500)
        self.addCleanup(directory.chmod, 0o700)
        self.assertRunsWithout(self.run_jobs("-q", **bound), "permission denied")

    def test_no_permission(self) -> None:
        self.check_permission(self.dir / "runs.txt.out")

    def test_a_job_file_in_a_directory_that_cannot_be_written(self) -> None:
        self.check_permission(self.dir, "--no-records")         # which makes the lock file

    def test_no_inode(self) -> None:
        full = ("import errno, os\n"
                "def makedirs(*args, **named): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
                "os.makedirs = makedirs\n")
        self.assertRunsWithout(self.finish(self.start_patched(full, "-q", "runs.txt")), "no space left")

    @by_root
    def test_a_directory_or_link_of_another_user(self) -> None:
        path = self.dir / "runs.txt.out"
        (self.dir / "elsewhere").mkdir()
        path.symlink_to("elsewhere")
        for _ in range(2):
            os.chown(path, 12345, -1, follow_symlinks=False)
            self.jobs("echo a", "true")
            self.assertRunsWithout(self.run_jobs("-q"), "belongs to")
            self.assertEqual(os.listdir(path), [])
            if path.is_symlink():
                path.unlink()
                path.mkdir()

    @by_root
    def test_one_of_the_owner_of_the_job_file_will_do(self) -> None:
        (self.dir / "runs.txt.out").mkdir()
        for name in "runs.txt", "runs.txt.out":
            os.chown(self.dir / name, 12345, -1)
        self.assertEqual(self.run_jobs("-q").code, 0)
        self.assertEqual(self.printed(), [(b"a\n", b""), (b"", b"")])

    @by_root
    def test_users_who_can_write_the_job_file_share_its_records(self) -> None:
        directory = self.dir / "runs.txt.out"
        self.dir.chmod(0o2755)                          # the group of new files is this one's
        for mode in 0o664, 0o666:
            self.jobs("seq 2000", "true")
            os.chown(self.dir / "runs.txt", 4242, 4242)
            (self.dir / "runs.txt").chmod(mode)
            self.assertEqual(self.run_jobs("-q").code, 0)
            kept = {name: os.stat(directory / name) for name in (".", "journal", "1.out")}
            self.assertEqual({name: (info.st_gid, stat.S_IMODE(info.st_mode)) for name, info in kept.items()},
                             {".": (4242, mode | 0o2111), "journal": (4242, mode), "1.out": (4242, mode)})
            for name in ".", "journal":             # now of another of these users
                os.chown(directory / name, 12345, -1)
            self.jobs("true")
            self.assertEqual(self.run_jobs("-q").code, 0)
            shutil.rmtree(directory)

    def test_the_server_says_so_too(self) -> None:
        self.write("mine", "runs.txt.out")
        self.assertRunsWithout(self.run_client_of_a_server(), "exists")

    def test_short_output_that_is_lost_on_a_full_disk_is_told_with_its_line(self) -> None:
        self.jobs("echo lost", "true", "exit 3")
        full = ("import errno, os\n"
                "def write(fd, data, real=os.write):\n"
                "    if b'lost' in data and b'journal' in os.readlink(f'/proc/self/fd/{fd}').encode():\n"
                "        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
                "    return real(fd, data)\n"
                "os.write = write\n"
                "import runmaker4\n"
                "runmaker4.Journal.END_GATHER_SECONDS = 0.0\n")
        ended = self.finish(self.start_patched(full, "runs.txt"))
        self.assertEqual((ended.code, self.states()), (1, "dd!"))
        self.assertComplains(ended, "no space left", "journal is incomplete")
        self.assertIn(b"; the output of 1 job is incomplete (line 1)", ended.err)

    def test_why_and_where_over_tcp(self) -> None:
        self.write(". pwd\n#RUN send=none\n. true\n")
        why = "none: no such file or directory at the server"
        self.run_client_of_a_server("--name", "alice")
        directory = os.path.realpath(self.dir)
        self.assertEqual([(row["why"], row["directory"]) for row in self.rows()],
                         [("", directory), (why, directory)])
        self.assertIn(f"could not be started ({why})", self.view("--failed").decode())
