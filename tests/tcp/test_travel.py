"""Promise: files of send= are at the client before a job starts, those of fetch= at the server before `d`."""
import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
from typing import Callable
from unittest import mock

import runmaker4
from tests.support.messages import new_key
from tests.support.patches import UNTIL_THEY_END
from tests.support.peer import Closed, Peer
from tests.support.processes import DEADLINE, wait_until
from tests.support.proxy import TO_CLIENT, TO_SERVER, Proxy
from tests.support.scripts import RUNSET
from tests.support.tcp import Program, Server
from tests.support.travel import BIG, PATCH, SLOWLY, TravelCase


class Files(TravelCase):

    def test_what_a_job_needs_is_there_and_what_it_makes_comes_back(self) -> None:
        self.make("srv/tools/convert", b"#!/bin/sh\ntr a-z A-Z <$1 >$2; chmod 640 $2\n", 0o755)
        self.make("srv/in/a b", b"text")
        os.utime(self.srv / "in/a b", ns=(1, 1_234_567_890_123_456_789))
        server = self.serve("#RUN send=./tools/convert,{2} fetch={3}\n"
                            ". ./tools/convert 'in/a b' out/deep/1\n")
        self.run_bob(server)
        self.assertStates("d")
        self.assertEqual(self.read("srv/out/deep/1"), b"TEXT")
        self.assertEqual((self.srv / "out/deep/1").stat().st_mode & 0o777, 0o640)
        self.assertEqual((self.bob / "tools/convert").stat().st_mode & 0o777, 0o755)
        self.assertEqual((self.bob / "in/a b").stat().st_mtime_ns, 1_234_567_890_123_456_789)
        for name in "srv/out/deep/1", "bob/out/deep/1":
            self.assertEqual((self.dir / name).stat().st_mtime_ns,
                             (self.srv / "out/deep/1").stat().st_mtime_ns)
        self.assertEqual(self.leftovers(), [])

    def test_a_file_that_is_there_is_not_sent_again_and_a_changed_one_is(self) -> None:
        self.make_big("srv/big")
        lines = "".join(f". cksum big >>sums; : {number}\n" for number in range(9))
        server = self.serve(f"#RUN send=big\n{lines}")
        proxy = Proxy(server.port)
        self.addCleanup(proxy.close)
        self.join(proxy, "-j3").wait(DEADLINE)        # three need it at once
        self.assertStates("d" * 9)
        self.assertLess(proxy.forwarded[TO_CLIENT], 1.2 * BIG)
        self.assertEqual(len(set(self.read("bob/sums").splitlines())), 1)
        self.make_big("srv/big")
        self.append_job(". cksum big >>sums")
        self.join(proxy).wait(DEADLINE)
        self.assertLess(1.9 * BIG, proxy.forwarded[TO_CLIENT])
        self.assertEqual(len(set(self.read("bob/sums").splitlines())), 2)

    def append_job(self, line: str) -> None:
        with open(self.srv / "runs.txt", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def test_an_empty_file_and_those_of_the_size_of_a_piece(self) -> None:
        piece = runmaker4.FILE_PIECE_BYTES
        sizes = 0, 1, piece - 1, piece, piece + 1, 3 * piece
        for size in sizes:
            self.make(f"srv/in.{size}", os.urandom(size))
        lines = "".join(f". cp in.{size} out.{size}\n" for size in sizes)
        self.run_bob(self.serve(f"#RUN send={{2}} fetch={{3}}\n{lines}"), "-j5")
        self.assertStates("d" * len(sizes))
        for size in sizes:
            self.assertEqual(self.read(f"srv/out.{size}"), self.read(f"srv/in.{size}"))

    def test_what_is_missing_is_said_and_the_job_does_not_start(self) -> None:
        self.make("srv/in/dir/file")
        client = self.run_bob(self.serve(
            "#RUN send={2}\n. cat in/none; touch ran\n. cat in/dir; touch ran\n"))
        self.assertStates("ee")
        self.assertIn(b"line 2: cannot be started: in/none: no such file or directory at the server",
                      client.err)
        self.assertIn(b"line 3: cannot be started: in/dir: not a regular file at the server", client.err)
        self.assertFalse(self.exists("bob/ran"))

    def test_a_file_that_was_not_made_is_a_failure_and_after_a_failure_nothing_comes(self) -> None:
        client = self.run_bob(self.serve(
            "#RUN fetch={2},b.{2}\n. touch 1\n. touch 2 b.2; exit 3\n. touch 3 b.3\n"))
        self.assertStates("!!d")
        self.assertIn(b"line 2: b.1: the job has not made this file", client.err)
        there = sorted(path.name for path in self.srv.iterdir() if path.is_file())
        self.assertEqual(there, [".runs.txt.lock", "3", "b.3", "runs.txt"])
        shown = self.run_script("runwait4.py", "--failed", "srv/runs.txt")
        self.assertIn(b"b.1: the job has not made this file", shown.out)

    def test_a_name_that_is_too_long_is_no_fault_of_the_client(self) -> None:
        name = "a" * 229
        for number in range(4):
            self.make(f"srv/in/{number}{name}")
        lines = "".join(f". cat in/{number}{name}\n" for number in range(4))
        client = self.run_bob(self.serve(f"#RUN send={{2}}\n{lines}#RUN\n. true\n"))
        self.assertStates("eeeed")
        self.assertEqual(client.returncode, 1)

    def test_a_word_that_the_shell_expands_is_refused(self) -> None:
        server = self.serve("#RUN send={2}\n"
                            ". cat $file\n. cat *.txt\n. cat\n. cat ../x\n. cat /etc/passwd\n. true '$x'\n")
        self.make("srv/$x")
        self.run_bob(server)
        self.assertStates("eeeeed")
        for line in 2, 3, 4, 5, 6:
            self.wait_said(server, f"line {line}: cannot be started")
        shown = self.run_script("runwait4.py", "--failed", "srv/runs.txt").out
        self.assertIn(b"line 4: could not be started ({2}: the command has no such word, ", shown)

    def test_a_path_is_a_file_below_the_directory_however_it_is_written(self) -> None:
        for path in "a/b{2}", "./a/b{2}", "a//b{2}", "a/././b{2}", ".//a/b{2}":
            paths = runmaker4.parse_travelling_paths(path)
            self.assertEqual(runmaker4.fill_in_words(paths, b"cat '{x}'"), [b"a/b{x}"])
        longest = "a" * 200
        self.assertEqual(runmaker4.parse_travelling_paths(f"{longest}/{longest}"), (f"{longest}/{longest}",))
        for path in ("/a", "//a", "a/", "a/.", "a/..", "../a", "a/.b", ".a", "", ".", "a//.b", f"{longest}a",
                     f"a/{longest}a/b", "\u4e00" * 67):
            with self.subTest(path=path), self.assertRaisesRegex(ValueError, "cannot travel"):
                runmaker4.parse_travelling_paths(path)
        for path in "{x}", "{0}", "a{}", "{2}}":
            with self.subTest(path=path), self.assertRaisesRegex(ValueError, "braces are for words"):
                runmaker4.parse_travelling_paths(path)

    def test_quotes_count_as_for_the_shell(self) -> None:
        names = "a$b", "a`b", 'a"b', "a\\b", "a'b", "a b", "a*b", "a#b", "a,b", "\u00e9", "a;b", "a\tb"
        quoted = []
        for name in names:
            self.make(f"srv/{name}")
            quoted += [shlex.quote(name), "".join(c if c.isalnum() else f"\\{c}" for c in name),
                       '"%s"' % re.sub(r'([$`"\\])', r"\\\1", name)]
        commands = [f"cat 2>&1 {word}" for word in quoted]
        self.run_bob(self.serve("#RUN send={2}\n" + "".join(f". {command}\n" for command in commands)), "-j4")
        self.assertStates("d" * len(commands))

    def test_a_directive_that_names_very_many_files_ends_no_server(self) -> None:
        """Their names do not fit into a message; those of one job never do in the second."""
        names = ",".join(f"in/a-name-of-some-length-{number:060}" for number in range(200))
        server = self.serve(f"#RUN send={names}\n" + "".join(f". : {number}\n" for number in range(64))
                            + f"#RUN send={','.join([names] * 40)}\n. true\n")
        self.run_bob(server, "-j64")
        self.assertStates("e" * 65)
        self.wait_said(server, "line 67: cannot be started: send= and fetch= are too long")

    def test_an_mtime_that_is_too_late_or_too_early_for_a_message(self) -> None:
        for name, mtime in ("early", -1), ("late", 7_258_118_400):
            os.utime(self.make(f"srv/{name}"), (mtime, mtime))
        self.run_bob(self.serve("#RUN send={3} fetch={4}\n. cp -p early out1\n. cp -p late out2\n"))
        self.assertStates("dd")

    def test_a_client_in_the_directory_of_the_server_moves_nothing(self) -> None:
        self.make("srv/in")
        before = (self.srv / "in").stat()
        server = self.serve("#RUN send=in fetch=out\n. cp in out; ls -i out\n")
        client = self.start_client(server, cwd=self.srv, patch=PATCH)
        client.wait(DEADLINE)
        self.assertStates("d")
        after = (self.srv / "in").stat()
        self.assertEqual((after.st_ino, after.st_mtime_ns), (before.st_ino, before.st_mtime_ns))
        self.assertIn(f"{(self.srv / 'out').stat().st_ino} out".encode(), client.out)

    def test_a_runner_on_the_file_ignores_both(self) -> None:
        self.write("#RUN send=none fetch=none\n. true\n")
        self.assertEqual(self.run_jobs().code, 0)

    def test_a_dry_run_checks_the_words_and_counts_what_would_travel(self) -> None:
        self.make("in/1", bytes(3 << 20))
        self.make("tool", b"")
        self.write("#RUN send=./tool,{2} fetch={3}\n. ./tool in/1 out/1\n. ./tool in/2 out/2\n")
        shown = self.run_jobs("--dry-run")
        self.assertEqual(shown.err.decode().splitlines(), [f"runmaker4.py: runs.txt: {text}" for text in (
            "line 2: fetch=out/1",
            "line 3: in/2, by send={2}: missing, or not a regular file (#RUN in line 1)",
            "3M in 2 files of send= would travel over TCP")])
        self.assertEqual(shown.out, b"2 . ./tool in/1 out/1\n3 . ./tool in/2 out/2\n")
        for command in "./tool in/1", "./tool in/1 $x", "./tool in/1 ../x", "./tool $(ls) x":
            self.write(f"#RUN send={{2}} fetch={{3}}\n. {command}\n")
            with self.subTest(command=command):
                shown = self.run_jobs("--dry-run")
                self.assertEqual(shown.code, 2)
                self.assertIn(b"line 2: ", shown.err)

    def test_a_dry_run_names_each_file_once_that_cannot_travel(self) -> None:
        """Where a typing error hides among many: a directory, a missing name, a word that counts as one."""
        self.make("in/1", b"1")
        os.mkfifo(self.dir / "pipe")
        self.write("#RUN send=in,in/1,pipe,in/l fetch={2},{3}\n" + ". A=1 ./tool x\n" * 5
                   + "#RUN send={2}.dat\n. cp a b\n. cp c d\n")
        shown = self.run_jobs("--dry-run")
        said = [line.partition("runs.txt: ")[2] for line in shown.err.decode().splitlines()]
        self.assertEqual(said, ["lines 2, 3 have one fetch=, tool: a later result replaces an earlier one",
                                "line 2: fetch=tool,x", *(
            f"line {line}: {path}, by send={word}: missing, or not a regular file (#RUN in line {above})"
            for line, path, word, above in ((2, "in", "in", 1), (2, "pipe", "pipe", 1),
                                            (2, "in/l", "in/l", 1), (8, "a.dat", "{2}.dat", 7),
                                            (9, "c.dat", "{2}.dat", 7))),
            "0K in 1 file of send= would travel over TCP"])
        self.assertEqual(shown.code, 0)

    def test_two_lines_with_one_result_are_named(self) -> None:
        """By a dry run, by what adds them, and by the server, at its start."""
        self.write("#RUN fetch={2}\n. sim 1.out\nc sim 2.out\n#RUN\n. sim 2.out\n"
                   "#RUN fetch={3}\n. sim\n. sim 2 1.out\n", "srv/runs.txt")
        wanted = b"lines 2, 8 have one fetch=, 1.out: a later result replaces an earlier one\n"
        server = self.serve_again()
        self.assertEqual(server.err.count(wanted), 1)
        self.write("#RUN fetch={2}\n. sim 1\n. sim 2\n")
        self.assertNotIn(b"replaces", self.run_jobs("--dry-run").err)
        self.write("#RUN fetch=out\n. sim 1\n#RUN scratch=yes fetch=out/*.png,log/,[ab]\n. sim 2\n. sim 3\n")
        self.assertNotIn(b"replaces", self.run_jobs("--dry-run").err)
        self.write("#RUN fetch={2}\n. sim 'a[1]'\n. sim 'a[1]' 2\n")
        self.assertIn(b"one fetch=, a[1]: a later", self.run_jobs("--dry-run").err)
        self.write("#RUN scratch=yes fetch=log:always\n. sim 1\n. sim 2\n")
        self.assertIn(b"one fetch=, log", self.run_jobs("--dry-run").err)
        self.write("#RUN fetch=out\n. sim 1\n")
        self.assertIn(b"lines 2, 3 have one fetch=, out: a later",
                      self.run_script("runset4.py", "runs.txt", "--add", "sim 2").err)
        self.assertIn(b"lines 2, 3 have one fetch=, out: a later", self.run_jobs("--dry-run").err)

    def test_a_program_that_can_be_executed_only_now_travels_again(self) -> None:
        self.make("srv/tool", b"#!/bin/sh\ntrue\n")
        server = self.serve("#RUN send=tool\n. ./tool\n")
        for state in "!", "d":
            self.run_bob(server, "-r")
            self.assertStates(state)
            (self.srv / "tool").chmod(0o755)

    def test_a_disk_that_keeps_whole_seconds_gets_a_file_once(self) -> None:
        self.make_big("srv/big")
        server = self.serve("#RUN send=big\n. cksum big >>sums\n. cksum big >>sums 2>&1\n")
        proxy = Proxy(server.port)
        self.addCleanup(proxy.close)
        coarse = ("import os; utime = os.utime\n"
                  "os.utime = lambda fd, ns: utime(fd, ns=tuple(t // 10**9 * 10**9 for t in ns))\n")
        self.start_client(proxy, cwd=self.bob, patch=PATCH + coarse).wait(DEADLINE)
        self.assertStates("dd")
        self.assertLess(proxy.forwarded[TO_CLIENT], 1.2 * BIG)

    def test_two_clients_in_one_directory_get_a_file_once(self) -> None:
        self.make_big("srv/big")
        self.make("srv/small", bytes(1000))
        server = self.serve("#RUN send=big,small\n" + "".join(f". cksum big >sum.{i}\n" for i in range(4)))
        proxy = Proxy(server.port)
        self.addCleanup(proxy.close)
        proxy.bytes_per_second = SLOWLY
        clients = [self.start_client(proxy, "-j2", "--name", name, cwd=self.bob, patch=PATCH)
                   for name in ("bob", "carol")]
        for client in clients:
            client.wait(DEADLINE)
        self.assertStates("dddd")
        self.assertEqual(len({self.read(f"bob/sum.{i}") for i in range(4)}), 1)
        self.assertLess(proxy.forwarded[TO_CLIENT], 1.5 * BIG)
        self.assertEqual(self.leftovers(), [])

    def test_a_job_without_its_file_runs_again(self) -> None:
        """A missing file is a failure, and counts for --retries; the journal says which."""
        server = self.serve("#RUN fetch=out\n. [ ! -e ran ] || touch out; touch ran\n")
        self.run_bob(server, "--retries", "1")
        self.assertStates("d")
        self.assertTrue((self.srv / "out").exists())
        journal = (self.srv / "runs.txt.out/journal").read_text()
        self.assertIn('"cause": "files"', journal)
        self.assertIn("out: the job has not made this file", journal)

    def test_a_result_with_the_size_and_mtime_of_an_earlier_one_comes(self) -> None:
        self.make("bob/letter", b"A")
        server = self.serve("#RUN fetch=out\n. cp letter out; touch -d 2026-01-01 out\n")
        self.run_bob(server)
        self.make("bob/letter", b"B")
        self.run_script("runset4.py", "--set=.", "srv/runs.txt", "2")
        self.run_bob(server)
        self.assertStates("d")
        self.assertEqual(self.read("srv/out"), b"B")

    def test_stats_count_what_has_travelled(self) -> None:
        self.make("srv/in", bytes(3 << 20))
        self.run_bob(self.serve("#RUN send=in fetch=out\n. head -c 1048576 in >out\n. : >out\n"))
        self.assertStates("dd")
        shown = self.run_script("runwait4.py", "--stats", "srv/runs.txt").out
        self.assertIn(b"4M of files travelled over TCP", shown)

    def test_status_says_what_a_job_waits_for(self) -> None:
        self.make_endless("srv/big")
        server = self.serve("#RUN send=big\n. true\n")
        proxy = Proxy(server.port)
        self.addCleanup(proxy.close)
        proxy.bytes_per_second = SLOWLY
        self.join(proxy)
        wait_until(lambda: re.search(rb"; files: [0-9.]+M of 64G for line 2", self.run_script(
            "runwait4.py", "--status", "srv/runs.txt").out), what="--status says it")

    def test_a_server_holds_a_bounded_number_of_pieces(self) -> None:
        """Those that it refuses come again."""
        content = self.make_big("bob/out")
        self.write("#RUN fetch=out\n. true\n", "srv/runs.txt")
        server = self.start_server(file="runs.txt", cwd=self.srv, patch=PATCH
                                   + "__import__('runmaker4-server').MAX_HELD_BYTES = 1_200_000\n")
        self.run_bob(server)
        self.assertStates("d")
        self.assertEqual(self.read("srv/out"), content)

    def test_pings_and_other_jobs_go_on_while_a_file_travels(self) -> None:
        self.make_endless("srv/big")
        server = self.serve("#RUN send=big\n. true\n#RUN\n" + ". true\n" * 30)
        proxy = Proxy(server.port)
        self.addCleanup(proxy.close)
        proxy.bytes_per_second = SLOWLY
        client = self.join(proxy, "-j2", "--follow")
        wait_until(lambda: self.states("srv/runs.txt") == "r" + "d" * 30)
        self.assertEqual(self.states("srv/runs.txt")[0], "r")
        self.assertIsNone(client.poll())


# No link is lost because nothing comes through it.  A client that is told to stop makes the file `stopped`
PATIENT = """
import runmaker4
runmaker4.MAX_SILENT_SECONDS = 600.0
kill_job = runmaker4.Runner.kill_job
def kill_and_tell(*args):
    kill_job(*args)
    open("stopped", "w").close()
runmaker4.Runner.kill_job = kill_and_tell
"""


class Losses(TravelCase):
    """Whoever is lost in the middle of a file, it goes on where it was, and no half file has its name.

    The proxy stands still in the middle of the file, so that what is lost then is lost there.
    """
    # large pieces, if on the way, would count for much of the file
    patch = PATCH + PATIENT + """
__import__("runmaker4-client").LARGE_PIECE_BYTES = runmaker4.FILE_PIECE_BYTES
"""
    JOB = "#RUN send=in fetch=out\n. cp in out\n"

    def setUp(self) -> None:
        super().setUp()
        self.content = self.make_big("srv/in")

    def through_proxy(self, name: str, way: str, frozen: str = "",
                      grace: float = 600) -> tuple[Server, Proxy, Program]:
        """Let a file travel this way to a quarter.  frozen: the way that is frozen; '': that of the file."""
        server = self.serve(self.JOB, "--grace", grace)
        proxy = Proxy(server.port)
        self.addCleanup(proxy.close)
        self.freeze_in_file(proxy, way, frozen or way, BIG // 4)
        client = self.join(proxy, "-j2")
        self.wait_frozen(proxy, frozen or way, name, BIG // 4)
        return server, proxy, client

    @staticmethod
    def freeze_in_file(proxy: Proxy, way: str, frozen: str, size: int) -> None:
        """Freeze a way once so much more of a file has come, in whole pieces, whatever came twice."""
        proxy.freeze_after(size + 4 * runmaker4.FILE_PIECE_BYTES, way, frozen)

    def wait_frozen(self, proxy: Proxy, frozen: str, name: str, size: int) -> None:
        wait_until(lambda: proxy.is_frozen(frozen), what="the proxy stands still")
        self.wait_part(name, size)

    def assertGoesOn(self, proxy: Proxy, way: str, client: Program) -> None:
        proxy.thaw()
        client.wait(DEADLINE)
        self.assertStates("d")
        self.assertEqual(self.read("srv/out"), self.content)
        # each way all but some pieces came once: after each loss one at most, as those behind it came, too
        self.assertLess(proxy.forwarded[way], 1.3 * BIG)
        self.assertEqual(self.leftovers(), [])

    def cut(self, name: str, way: str) -> None:
        """Twice, in two places."""
        _, proxy, client = self.through_proxy(name, way)
        self.cut_and_mend(proxy, client)
        self.freeze_in_file(proxy, way, way, BIG // 4)
        proxy.thaw()
        self.wait_frozen(proxy, way, name, BIG // 2)
        self.cut_and_mend(proxy, client)
        self.assertGoesOn(proxy, way, client)

    def cut_and_mend(self, proxy: Proxy, client: Program) -> None:
        noticed = client.err.count(b"trying again")
        proxy.cut()
        wait_until(lambda: client.err.count(b"trying again") > noticed, what="the client has noticed")
        proxy.mend()

    def test_the_link_on_the_way_to_the_client(self) -> None:
        self.cut("bob/in", TO_CLIENT)

    def test_the_link_on_the_way_back(self) -> None:
        self.cut("srv/out", TO_SERVER)

    def kill_server(self, name: str, way: str) -> None:
        server, proxy, client = self.through_proxy(name, way)
        server.kill()
        self.serve_again("--grace", 600, "--port", server.port)
        self.assertGoesOn(proxy, way, client)

    def test_the_server_on_the_way_to_the_client(self) -> None:
        self.kill_server("bob/in", TO_CLIENT)

    def test_the_server_on_the_way_back(self) -> None:
        self.kill_server("srv/out", TO_SERVER)

    def kill_client(self, name: str, way: str) -> Proxy:
        """What was on the way arrives after that; it is less than the file lacks."""
        server, proxy, client = self.through_proxy(name, way, grace=0.5)
        client.kill()
        proxy.thaw()
        self.wait_said(server, "did not come back")
        self.assertFalse((self.dir / name).exists())
        return proxy

    def test_the_client_on_the_way_to_it(self) -> None:
        proxy = self.kill_client("bob/in", TO_CLIENT)
        self.assertGoesOn(proxy, TO_CLIENT, self.join(proxy, "--resume"))

    def test_the_client_on_the_way_back(self) -> None:
        """Its job runs again, so its new file comes whole."""
        proxy = self.kill_client("srv/out", TO_SERVER)
        self.join(proxy, "--resume").wait(DEADLINE)
        self.assertStates("d")
        self.assertEqual(self.read("srv/out"), self.content)

    def test_a_cancelled_job_takes_no_more(self) -> None:
        """While nothing comes from the client; what it has asked for or sent is less than the file lacks."""
        for name, way in ("bob/in", TO_CLIENT), ("srv/out", TO_SERVER):
            server, proxy, client = self.through_proxy(name, way, frozen=TO_SERVER)
            cancelling = self.start_patched(UNTIL_THEY_END, "--cancel", "srv/runs.txt", 2, script=RUNSET)
            wait_until(lambda: self.exists("bob/stopped"), what="the client is told")
            proxy.thaw()
            self.assertEqual(self.finish(cancelling).code, 0)
            client.wait(DEADLINE)
            self.assertStates("c")
            self.assertFalse((self.dir / name).exists())
            wait_until(lambda: not self.leftovers(), what="no part is left")
            server.kill()
            (self.bob / "stopped").unlink()

    def test_a_cancelled_job_takes_no_file_from_another_that_waits_for_it(self) -> None:
        self.JOB = "#RUN send=in\n. : 1\n. : 2\n"
        _, proxy, client = self.through_proxy("bob/in", TO_CLIENT, frozen=TO_SERVER)
        cancelling = self.start_patched(UNTIL_THEY_END, "--cancel", "srv/runs.txt", 2, script=RUNSET)
        wait_until(lambda: self.exists("bob/stopped"), what="the client is told")
        before = proxy.forwarded[TO_CLIENT]
        proxy.thaw()
        self.assertEqual(self.finish(cancelling).code, 0)
        client.wait(DEADLINE)
        self.assertStates("cd")
        # the quarter that is there does not come again; pieces that the cancelled job has asked for can
        self.assertLess(proxy.forwarded[TO_CLIENT] - before, BIG)

    def test_a_file_that_changes_on_the_way_comes_whole(self) -> None:
        _, proxy, client = self.through_proxy("bob/in", TO_CLIENT)
        self.content = self.make_big("srv/in")
        proxy.thaw()
        client.wait(DEADLINE)
        self.assertStates("d")
        self.assertEqual(self.read("srv/out"), self.content)

    def test_a_file_that_nobody_may_write_is_never_of_two_versions(self) -> None:
        (self.srv / "in").chmod(0o444)
        os.utime(self.srv / "in", (1, 1))
        _, proxy, client = self.through_proxy("bob/in", TO_CLIENT)
        content = self.content[::-1]
        for change in "in place", "anew":
            if change == "anew":
                (self.srv / "in").unlink()
            else:
                (self.srv / "in").chmod(0o644)
            (self.srv / "in").write_bytes(content)
            (self.srv / "in").chmod(0o444)
            os.utime(self.srv / "in", (1, 1))
        proxy.thaw()
        client.wait(DEADLINE)
        self.assertStates("d")
        self.assertEqual(self.read("srv/out"), content)

    def test_a_file_that_jobs_beside_the_server_link_goes_on(self) -> None:
        self.JOB = ("#RUN scratch=yes send=in host=bob fetch=out\n. cp in out\n"
                    "#RUN scratch=yes send=in host=local\n. true\n")
        (self.srv / "in").chmod(0o444)
        server, proxy, client = self.through_proxy("bob/in", TO_CLIENT)
        self.start_client(server, "--name", "local", cwd=self.srv, patch=self.patch)
        wait_until(lambda: self.states("srv/runs.txt") == "rd", what="a job beside the server is done")
        proxy.thaw()
        client.wait(DEADLINE)
        self.assertStates("dd")
        self.assertEqual(self.read("srv/out"), self.content)
        self.assertLess(proxy.forwarded[TO_CLIENT], 1.3 * BIG)


class Parts(TravelCase):
    """What has come of a file."""
    VERSION = runmaker4.FileVersion(4, 1_234_567_890_123_456_789, 0o640)

    def setUp(self) -> None:
        super().setUp()
        self.tree = runmaker4.FileTree(os.fsencode(self.dir))
        self.make("dir/.other")
        self.make("dir/.file.mine")

    def add(self, offset: int, data: bytes = b"", path: bytes = b"dir/file") -> int:
        return self.tree.add_piece(path, self.VERSION, offset, data)

    def test_it_grows_only_at_its_end_and_becomes_the_file_when_it_is_whole(self) -> None:
        for offset, data, end in (2, b"cd", -1), (0, b"ab", 2), (0, b"xy", 2), (3, b"d", -1), (2, b"cdef", 4):
            self.assertFalse((self.dir / "dir/file").exists())
            self.assertEqual(self.add(offset, data), end)
        info = (self.dir / "dir/file").stat()
        self.assertEqual((info.st_size, info.st_mtime_ns, info.st_mode & 0o777), self.VERSION[:3])
        self.assertEqual(self.read("dir/file"), b"abcd")
        self.assertEqual((self.add(0, b"wxyz"), self.read("dir/file")), (4, b"abcd"))
        self.assertEqual(self.leftovers(), [])

    def test_one_that_is_whole_and_was_killed_before_it_was_renamed_becomes_the_file(self) -> None:
        with mock.patch.object(os, "rename", side_effect=SystemExit), self.assertRaises(SystemExit):
            self.add(0, b"abcd")
        self.assertEqual((self.add(runmaker4.NO_OFFSET), self.read("dir/file")), (4, b"abcd"))

    def test_one_of_before_the_boot_is_not_trusted(self) -> None:
        self.add(0, b"ab")
        with mock.patch.object(runmaker4, "boottime", return_value=0.0):
            self.assertEqual(self.add(runmaker4.NO_OFFSET), 0)

    def test_one_whose_sync_fails_is_empty(self) -> None:
        """On NFS a full disk is found then, and what was written can be gone."""
        with mock.patch.object(os, "fsync", side_effect=OSError), self.assertRaises(OSError):
            self.add(0, b"abcd")
        self.assertFalse((self.dir / "dir/file").exists())
        self.assertEqual(self.add(runmaker4.NO_OFFSET), 0)

    def test_old_ones_are_removed_and_those_of_a_file_whose_line_has_ended(self) -> None:
        self.add(0, b"ab")
        self.add(0, b"ab", b"dir/file2")
        self.tree.remove_parts(b"dir/file", [b"file"])
        self.assertEqual([path.name.split(".")[1] for path in self.leftovers()], ["file2"])
        with mock.patch.object(runmaker4, "MAX_PART_SECONDS", -1.0):
            runmaker4.FileTree(os.fsencode(self.dir)).add_piece(b"dir/file", self.VERSION, 0, b"ab")
        self.assertEqual([path.name.split(".")[1] for path in self.leftovers()], ["file"])
        self.assertEqual({path.name for path in (self.dir / "dir").iterdir()} - {self.leftovers()[0].name},
                         {".other", ".file.mine"})

    def test_two_jobs_whose_results_have_one_size_and_mtime_have_a_part_each(self) -> None:
        def add(job: str, offset: int, data: bytes, path: bytes = b"dir/file") -> int:
            return self.tree.add_piece(path, self.VERSION, offset, data, job)

        self.assertEqual([add("a", 0, b"ab"), add("b", 0, b"AB"), add("a", 2, b"cd")], [2, 2, 4])
        self.assertEqual((self.read("dir/file"), self.leftovers()), (b"abcd", []))
        # the second begins again, and takes the place of the first
        self.assertEqual([add("b", 2, b"CD"), add("b", 0, b"AB"), add("b", 2, b"CD")], [0, 2, 4])
        self.assertEqual(self.read("dir/file"), b"ABCD")

    def test_that_of_another_version_is_removed_when_a_new_one_comes(self) -> None:
        for job in "", "a":
            for version in self.VERSION, self.VERSION._replace(ctime=1), self.VERSION._replace(size=5):
                self.tree.add_piece(b"dir/file", version, 0, b"ab", job)
                self.assertEqual(len(self.leftovers()), 1)
            self.assertEqual(self.tree.add_piece(b"dir/file", version, 2, b"cde", job), 5)
            (self.dir / "dir/file").unlink()

    def test_the_directory_of_a_program_that_runs_for_days_is_cleared_again(self) -> None:
        self.add(0, b"abcd")
        old = self.make("dir/.other.1-1.runmaker4-part")
        self.add(0, b"abcd", b"dir/file2")
        self.assertTrue(old.exists())
        with mock.patch.object(runmaker4, "MAX_PART_SECONDS", -1.0):
            self.add(0, b"abcd", b"dir/file3")
        self.assertFalse(old.exists())

    def test_a_piece_is_of_the_version_that_it_is_said_to_be(self) -> None:
        """The file is written while it is read."""
        path, read = self.make("dir/file", b"old"), os.pread

        def read_late(fd: int, size: int, offset: int) -> bytes:
            with open(path, "r+b") as file:
                file.write(b"new")
            os.utime(path, ns=(1, 1))
            return read(fd, size, offset)

        before, _ = self.tree.read_piece(b"dir/file")
        os.utime(path, ns=(1, before.mtime))
        with mock.patch.object(os, "pread", read_late):
            version, data = self.tree.read_piece(b"dir/file", 0, 9)
        self.assertEqual((data, version), (b"new", self.tree.read_piece(b"dir/file")[0]))
        self.assertNotEqual(version, before)

    def test_each_change_makes_a_new_version_whatever_time_is_set(self) -> None:
        def version_after(*changes: Callable[[], object]) -> runmaker4.FileVersion:
            for change in changes:
                before = path.stat().st_ctime_ns
                # the clock of a file system can be coarse
                wait_until(lambda: (change(), path.stat().st_ctime_ns)[1] != before, what="the ctime differs")
            return self.tree.read_piece(b"dir/file")[0]

        def replace() -> None:
            info = path.stat()
            os.utime(self.make("dir/new", b"new", 0o444), ns=(1, info.st_mtime_ns))
            os.replace(self.dir / "dir/new", path)

        def write() -> None:
            info = path.stat()
            path.chmod(0o644)
            path.write_bytes(b"new")
            path.chmod(0o444)
            os.utime(path, ns=(1, info.st_mtime_ns))

        path = self.make("dir/file", b"old", 0o444)
        versions = {version_after(), version_after(replace), version_after(write), version_after(write)}
        self.assertEqual(len(versions), 4)

    def test_those_of_a_file_with_a_longer_name_stay(self) -> None:
        self.add(0, b"ab", b"dir/1.5")
        self.tree.remove_parts(b"dir/1", [b"1"])
        self.assertEqual(self.add(2, b"cd", b"dir/1.5"), 4)

    def test_one_that_another_client_removes_at_its_end_comes_again(self) -> None:
        """It is cancelled there, and the sync takes long here."""
        def sync_and_lose(_: int) -> None:
            self.tree.remove_parts(b"dir/file", [b"file"])

        with mock.patch.object(os, "fsync", side_effect=sync_and_lose):
            self.assertEqual(self.add(0, b"abcd"), 0)
        self.assertEqual(self.add(0, b"abcd"), 4)
        self.assertEqual(self.read("dir/file"), b"abcd")

    def test_one_of_a_file_without_write_permission_can_be_opened_after_a_kill(self) -> None:
        self.VERSION = self.VERSION._replace(mode=0o444)
        with mock.patch.object(os, "fsync", side_effect=SystemExit), self.assertRaises(SystemExit):
            self.add(0, b"abcd")
        part, = self.leftovers()
        self.assertTrue(part.stat().st_mode & 0o200)
        self.add(runmaker4.NO_OFFSET)
        self.assertEqual((self.dir / "dir/file").stat().st_mode & 0o777, 0o444)

    def test_what_disks_keep_of_an_mtime(self) -> None:
        for kept in 123_456_789, 123_456_700, 123_456_000, 123_000_000, 0:
            info = self.VERSION._replace(mtime=1_234_567_890_000_000_000 + kept)
            self.assertTrue(self.VERSION.is_kept_as(info), kept)
            self.assertEqual(info.is_kept_as(self.VERSION), kept == 123_456_789)
        for other in 123_456_788, 123_456_790, 10**9:
            self.assertFalse(self.VERSION.is_kept_as(self.VERSION._replace(mtime=self.VERSION.mtime + other)))
        self.assertFalse(self.VERSION.is_kept_as(self.VERSION._replace(size=5)))
        for needed, kept, is_same in (0o644, 0o755, True), (0o755, 0o700, True), (0o755, 0o644, False):
            version = self.VERSION._replace(mode=needed)
            self.assertEqual(version.is_kept_as(self.VERSION._replace(mode=kept)), is_same)


class HangingDisk(TravelCase):
    """A file server does not answer any more."""
    HANG = PATCH + ("import runmaker4, time\n"
                    "def hang(*_):\n"
                    "    open('hangs', 'w').write('yes')\n"
                    "    time.sleep(1000)\n"
                    "runmaker4.FileTree.add_piece = hang\n")

    def test_a_client_exits(self) -> None:
        self.make("srv/in")
        server = self.serve("#RUN send=in\n. true\n")
        client = self.start_client(server, cwd=self.bob, patch=self.HANG)
        self.wait_file("bob/hangs")
        client.send_signal(signal.SIGTERM)
        self.assertEqual(client.wait(DEADLINE), 143)
        self.assertStates(".")

    def test_a_server_exits(self) -> None:
        self.write("#RUN fetch=out\n. touch out\n", "srv/runs.txt")
        server = self.start_server(file="runs.txt", cwd=self.srv, patch=self.HANG)
        client = self.join(server)
        self.wait_file("srv/hangs")
        server.send_signal(signal.SIGTERM)
        self.assertEqual(server.wait(DEADLINE), 143)
        self.assertIsNone(client.poll())
        self.assertStates("r")
        client.kill()


class FullDisk(TravelCase):

    def mounted(self, directory: str) -> list[str]:
        """The words before a command that has a file system of a megabyte at this directory."""
        if os.geteuid():
            self.skipTest("not root")
        (self.dir / directory).mkdir(exist_ok=True)
        script = f'mount -t tmpfs -o size=1m none {self.dir / directory}; cd .; exec "$@"'
        return ["unshare", "-m", "sh", "-c", script, "sh"]

    def test_at_the_client_another_one_takes_the_lines_and_this_one_waits_for_space(self) -> None:
        self.make_big("srv/dir/in")
        server = self.serve("#RUN send=dir/in\n. cat dir/in >out\n"
                            "#RUN host=bob send=dir/in\n. cat dir/in >out\n")
        client = self.join(server, within=self.mounted("bob/dir"))
        self.wait_said(client, "line 2: cannot be started here: dir/in: no space left on device at")
        self.join(server, name="carol").wait(DEADLINE)
        wait_until(lambda: self.states("srv/runs.txt") == "d.", what="a line is done, the other given back")
        self.assertIsNone(client.poll())
        subprocess.run(["nsenter", "-t", str(client.pid), "-m", "mount", "-o", "remount,size=9m",
                        str(self.dir / "bob/dir")], check=True)
        client.wait(DEADLINE)
        self.assertStates("dd")
        self.assertEqual(client.err.count(b"cannot be started"), 1)
        shown = self.run_script("runwait4.py", "--failed", "srv/runs.txt")
        self.assertNotIn(b"could not be started", shown.out)

    def test_a_client_that_can_write_nothing_ends_after_three_starts_and_another_has_all_lines(self) -> None:
        self.make("srv/dir/in")
        server = self.serve("#RUN send=dir/in\n" + ". cat dir/in\n" * 9)
        within = [word.replace("size=1m", "ro") for word in self.mounted("bob/dir")]
        client = self.join(server, "-j2", within=within)
        self.assertEqual(client.wait(DEADLINE), 1)
        self.wait_said(client, "starts in a row failed (dir/in: read-only file system at the client)")
        self.assertStates("." * 9)
        self.assertEqual(self.join(server, name="carol").wait(DEADLINE), 0)
        self.assertStates("d" * 9)

    def test_at_the_server_the_job_waits(self) -> None:
        self.write("#RUN fetch=dir/out\n. head -c 3000000 /dev/zero >dir/out\n", "srv/runs.txt")
        server = self.start_server(file="runs.txt", cwd=self.srv, patch=PATCH, within=self.mounted("srv/dir"))
        client = self.join(server)
        self.wait_said(client, "dir/out: no space left on device at the server; trying again")
        self.assertStates("r")
        inside = f"/proc/{server.pid}/root{self.srv}/dir"
        part, = os.listdir(inside)
        self.assertTrue(part.endswith(".runmaker4-part"))
        subprocess.run(["nsenter", "-t", str(server.pid), "-m", "mount", "-o", "remount,size=9m",
                        str(self.srv / "dir")], check=True)
        client.wait(DEADLINE)
        self.assertStates("d")
        self.assertEqual((os.listdir(inside), os.stat(f"{inside}/out").st_size), (["out"], 3_000_000))


class EditedDirective(TravelCase):
    """The server no longer knows what the client was told, and fetch= names other files by now."""

    def edit(self, old: str, new: str) -> None:
        """While nobody else writes to the file."""
        text = self.read("srv/runs.txt")
        self.make("srv/edited", text.replace(old.encode(), new.encode()))
        os.replace(self.srv / "edited", self.srv / "runs.txt")

    def test_a_result_waits_until_it_is_named_again(self) -> None:
        for scratch in "", " scratch=yes":
            job = f": >>'{self.dir}/up'; until [ -e '{self.dir}/go' ]; do sleep 0.02; done; echo good >out"
            server = self.serve(f"#RUN fetch=out{scratch}\n. {job}\n", "--grace", 600)
            client = self.join(server)
            wait_until(lambda: self.exists("up"), what="the job runs")
            server.kill()
            self.edit("fetch=out", "fetch=other")
            server = self.serve_again("--grace", 600, "--port", server.port)
            self.make("go")
            self.wait_said(client, "out: no longer in fetch= at the server; trying again")
            self.wait_said(server, "line 2: out: no longer in fetch=; its client tries again")
            self.assertStates("r")
            self.edit("fetch=other", "fetch=out")
            self.assertEqual(client.wait(DEADLINE), 0)
            self.assertStates("d")
            self.assertEqual(self.read("srv/out"), b"good\n")
            server.kill()
            for name in "up", "go", "srv/out":
                (self.dir / name).unlink()


LINK = "a symbolic link, which does not travel,"


class Places(TravelCase):
    """The place of a result at the server cannot be written."""

    def test_this_is_known_before_the_job_starts(self) -> None:
        self.make("srv/file")
        (self.srv / "dir").mkdir()
        long = "x" * 250
        server = self.serve(f"#RUN fetch={{2}}\n. touch dir\n. touch file/x\n. touch {long}\n. touch new/x\n"
                            f"#RUN scratch=yes fetch={{2}}\n. touch {long}\n")
        client = self.run_bob(server)
        self.assertStates("eeede")
        self.wait_said(server, "line 4: cannot be started", "no name of more than 200 bytes")
        for line, why in (2, "dir: not a regular"), (3, "file/x: not a directory"), (7, "file name too long"):
            self.wait_said(client, f"line {line}: cannot be started", why, "at the server")
        self.assertEqual([path.name for path in self.bob.iterdir() if path.is_file()], [])
        self.assertEqual(self.leftovers(), [])

    def test_what_was_made_meanwhile_waits_at_the_client_until_that_is_mended(self) -> None:
        for size in 0, 1000:
            server = self.serve(f"#RUN fetch=out\n. mkdir ../srv/out && head -c {size} /dev/zero >out\n")
            client = self.join(server)
            self.wait_said(client, "out: not a regular file at the server; trying again")
            self.wait_said(server, "line 2: out: not a regular file; its client tries again")
            self.assertStates("r")
            (self.srv / "out").rmdir()
            client.wait(DEADLINE)
            self.assertStates("d")
            self.assertEqual((self.srv / "out").stat().st_size, size)
            self.assertEqual(self.leftovers(), [])
            (self.srv / "out").unlink()
            server.kill()

    def test_a_job_that_is_cancelled_then_leaves_no_part(self) -> None:
        client = self.join(self.serve("#RUN fetch=out\n. mkdir ../srv/out && touch out\n"))
        self.wait_said(client, "out: not a regular file at the server; trying again")
        self.run_script("runset4.py", "--cancel", "srv/runs.txt", "2")
        client.wait(DEADLINE)
        self.assertStates("c")
        wait_until(lambda: not self.leftovers(), what="no part is left")

    def test_so_does_a_job_that_fails(self) -> None:
        self.run_bob(self.serve("#RUN fetch=out\n. false\n"))
        self.assertStates("!")
        wait_until(lambda: not self.leftovers(), what="no part is left")


class Hostile(TravelCase):
    """Who knows the token gets and gives the files of its jobs, and no others."""

    def insider(self, server: Server, key: str = "") -> Peer:
        peer = Peer.of(server.port, server.token)
        self.addCleanup(peer.close)
        peer.hello(client=key or new_key()).hear("welcome")
        return peer

    def claim(self, peer: Peer) -> str:
        """Return the key of the job that it gets."""
        peer.say(dict(type="claim", request=1, want=1, memory=0, last=False, slots=9))
        job, = peer.hear("jobs")["jobs"]
        return str(job["id"])

    def ask(self, peer: Peer, key: str, path: str, **version: object) -> str:
        """Ask for the beginning of a file, or send it; return the error."""
        kind = "put" if version else "get"
        peer.say(dict(type=kind, ask=1, id=key, path=path, offset=0, length=9, **version))
        return str(peer.hear("piece").get("error"))

    def test_it_asks_for_other_files(self) -> None:
        self.make("srv/in", b"")
        self.make("secret", b"secret")
        self.make("srv/other", b"")
        os.symlink("../secret", self.srv / "link")
        os.symlink("..", self.srv / "up")
        server = self.serve("#RUN send=in,link,up/secret fetch=out\n. true\n")
        peer = self.insider(server)
        key = self.claim(peer)
        self.assertEqual(self.ask(peer, key, "in"), "None")
        for path in "other", "runs.txt", "../secret", "/etc/passwd", "in/../other", "", ".", "in\0", "out":
            self.assertEqual(self.ask(peer, key, path), "no file of this job")
        for path in "link", "up/secret":
            self.assertEqual(self.ask(peer, key, path), LINK)
        self.assertEqual(self.ask(self.insider(server), key, "in"), "no file of this job")

    def test_it_sends_what_nobody_wants(self) -> None:
        self.make("srv/in", b"")
        version = dict(size=0, mtime=1, mode=0o644, ctime=1)
        server = self.serve("#RUN send=in fetch=out,deep/out\n. true\n. true 2\n")
        one, two = self.insider(server), self.insider(server)
        key = self.claim(one)
        for path in "in", "evil", "../evil", "runs.txt", "runs.txt.out/journal", "out/evil", "deep", "":
            self.assertEqual(self.ask(one, key, path, **version), "no file of this job")
        self.assertEqual(self.ask(two, key, "out", **version), "no file of this job")
        os.symlink("..", self.srv / "deep")
        self.assertEqual(self.ask(one, key, "deep/out", **version), LINK)
        self.assertEqual(self.ask(one, key, "out", **version), "None")
        self.assertEqual((self.srv / "out").read_bytes(), b"")
        one.say(dict(type="finish", n=1, id=key, state="!", how="exit 1", lost=False))
        one.hear("ack")
        self.assertEqual(self.ask(one, key, "out", **version), "no file of this job")
        self.assertEqual([*self.dir.rglob("*evil*"), *self.dir.glob("out")], [])

    def test_no_path_leads_a_client_out_of_its_directory(self) -> None:
        """Whatever a server calls a file."""
        self.make("secret")
        tree, version = runmaker4.FileTree(os.fsencode(self.bob)), runmaker4.FileVersion(1, 1, 0o600)
        for path in (b"../secret", b"/tmp/secret", b"a/../../secret", b".evil", b"a/.evil", b"", b"a/",
                     b"a\0b", b"a//b"):
            for call in (lambda: tree.read_piece(path, 0), lambda: tree.add_piece(path, version, 0, b"x"),
                         lambda: tree.make_directory(path)):
                with self.subTest(path=path), self.assertRaises(OSError):
                    call()
            tree.remove_parts(path, [path])
        self.assertEqual([*self.bob.iterdir()], [])

    def test_a_deep_path_takes_few_descriptors_and_one_that_nobody_can_open_is_refused(self) -> None:
        tree, version = runmaker4.FileTree(os.fsencode(self.bob)), runmaker4.FileVersion(1, 1, 0o600)
        before = len(os.listdir("/proc/self/fd"))
        with tree.directory_of(b"d/" * 300 + b"x", makes=True):
            self.assertLess(len(os.listdir("/proc/self/fd")), before + 2)
        self.assertEqual(tree.add_piece(b"d/" * 300 + b"x", version, 0, b"x"), 1)
        with self.assertRaisesRegex(OSError, "too long"):
            tree.add_piece(b"d/" * 2048 + b"x", version, 0, b"x")

    def test_the_parts_of_many_files_are_removed_with_few_listings(self) -> None:
        self.make("bob/dir/x")
        tree, version = runmaker4.FileTree(os.fsencode(self.bob)), runmaker4.FileVersion(9, 1, 0o600)
        paths = [b"dir/%d" % number for number in range(300)]
        for path in paths:
            tree.add_piece(path, version, 0, b"part")

        async def forget() -> None:
            tree.forget(paths[1:])
            for executor in tree.executors:             # in the order of the calls
                await executor.call(lambda: None)

        with mock.patch.object(os, "listdir", wraps=os.listdir) as listed:
            asyncio.run(forget())
        self.assertLessEqual(listed.call_count, tree.THREADS)
        self.assertEqual([path.name.split(".")[1] for path in self.leftovers()], ["0"])

    def test_links_lead_no_file_out(self) -> None:
        (self.dir / "outside").mkdir()
        os.symlink("../outside", self.srv / "out")
        client = self.run_bob(self.serve("#RUN fetch=out/1\n. touch out/1\n"))
        self.assertStates("e")
        self.assertIn(f"cannot be started: out/1: {LINK} at the server".encode(), client.err)
        self.assertEqual(os.listdir(self.dir / "outside"), [])

    def test_neither_job_file_nor_records_can_be_overwritten(self) -> None:
        os.symlink(".", self.srv / "here")
        server = self.serve("#RUN fetch={2}\n. touch runs.txt\n. touch runs.txt.out/journal\n"
                            ". touch here/runs.txt\n")
        client = self.run_bob(server)
        self.assertStates("eee")
        self.assertEqual(client.err.count(b"the job file and its records do not travel at the server"), 2)
        self.assertIn(f"line 4: cannot be started: here/runs.txt: {LINK} at the server".encode(), client.err)

    def test_a_result_whose_last_answer_was_lost_does_not_come_again(self) -> None:
        server = self.serve("#RUN fetch=out\n. true\n")
        peer = self.insider(server)
        key = self.claim(peer)
        fields = dict(type="put", ask=1, id=key, path="out", offset=0, size=1, mtime=1, mode=0o644, ctime=1)
        self.assertEqual(peer.put(json.dumps(fields).encode() + b"\0x").hear("piece").get("end"), 1)
        (self.srv / "out").unlink()
        self.assertEqual(peer.say(fields).hear("piece").get("end"), 1)
        self.assertFalse((self.srv / "out").exists())
        # another version does
        self.assertEqual(peer.say({**fields, "ctime": 2, "size": 0}).hear("piece").get("end"), 0)
        self.assertEqual(self.read("srv/out"), b"")

    def test_what_it_has_asked_for_is_not_read_once_it_is_gone(self) -> None:
        self.make("srv/in")
        self.patch = PATCH + (
            "import os, runmaker4, time\n"
            "read_piece = runmaker4.FileTree.read_piece\n"
            "def read(*args):\n"
            "    with open('../reads', 'a') as file: file.write('x')\n"
            "    while not os.path.exists('../gate'): time.sleep(0.01)\n"
            "    return read_piece(*args)\n"
            "runmaker4.FileTree.read_piece = read\n")
        server = self.serve("#RUN send=in\n. true\n", "--grace", 600)
        peer = self.insider(server)
        key = self.claim(peer)
        peer.say(*(dict(type="get", ask=ask, id=key, path="in", offset=0, length=9) for ask in range(9)))
        self.wait_file("reads")
        peer.close()
        self.wait_said(server, "is lost")
        self.make("gate")
        other = self.insider(server)
        for _ in range(50):                         # meanwhile the server could read
            other.say(dict(type="ping", request=1)).hear("pong")
        self.assertEqual(self.read("reads"), b"x")

    def test_strange_pieces_end_no_server(self) -> None:
        server = self.serve("#RUN fetch=out\n" + "". join(f". : {number}\n" for number in range(6)))
        fields = dict(type="put", ask=1, path="out", offset=0, size=1, mtime=1, mode=0o644, ctime=1)
        for change in (dict(size=-1), dict(size=1 << 63), dict(mode=0o10000), dict(mtime="x"),
                       dict(offset=-1)):
            peer = self.insider(server)
            peer.say({**fields, "id": self.claim(peer), **change})
            with self.subTest(change=change), self.assertRaises(Closed):
                peer.hear("piece")
        peer = self.insider(server)
        key = self.claim(peer)
        # more bytes than the file has
        peer.say({**fields, "id": key, "size": 0})
        self.assertEqual(peer.hear("piece").get("end"), 0)
        self.assertEqual((self.srv / "out").stat().st_size, 0)
