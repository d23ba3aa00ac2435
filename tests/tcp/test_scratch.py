"""Promise: with scratch=yes a job runs in a directory of its own, which is gone once its line has a state."""
import errno
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
from concurrent import futures
from typing import Any
from unittest import mock

import runmaker4
from tests.support.messages import new_key
from tests.support.peer import Peer
from tests.support.processes import DEADLINE, wait_until
from tests.support.proxy import TO_SERVER, Proxy
from tests.support.scripts import RUNSET
from tests.support.travel import BIG, PATCH, TravelCase

JOB_AND_LOCK = ".*.runmaker4-job*"


def close_and_choose(parent: bytes, name: bytes, can_open: bool) -> tuple[list[bytes], str]:
    """What is chosen if a job has closed its directories, all of which are gone then.

    can_open: whether they are this user's, who is not root: that may read any directory.
    """
    tree = runmaker4.FileTree(parent)           # with what only root can import here
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    directory = runmaker4.JobDirectory(tree, 1)
    directory.make()
    path = pathlib.Path(os.fsdecode(directory.path))
    (path / "o/p/q").mkdir(parents=True)
    for file in "log", "o/g", "o/p/q/f":
        (path / file).write_bytes(b"")
    for closed, mode in ("o/p/q", 0o400), ("o/p", 0), ("o", 0o500):
        (path / closed).chmod(mode)
    with mock.patch("os.chmod", side_effect=None if can_open else PermissionError(errno.EPERM, ""),
                    wraps=os.chmod):
        chosen, why = directory.choose_results([name], [], runmaker4.DONE)
    directory.remove()
    assert not path.exists()
    return sorted(chosen), why


class ScratchCase(TravelCase):

    def job_directories(self, within: str = ".") -> list[pathlib.Path]:
        """Directories of jobs, and their lock files."""
        return [*(self.dir / within).rglob(JOB_AND_LOCK)]

    def files(self, directory: str) -> set[str]:
        """The paths of the files, but not of those that a server has, and none below a hidden directory."""
        root = self.dir / directory
        paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        return {str(path) for path in paths
                if not (str(path).startswith("runs.txt") or any(name[0] == "." for name in path.parts))}

    def assertClean(self) -> None:
        wait_until(lambda: not (self.job_directories() or self.leftovers()), what="nothing is left")


class Directory(ScratchCase):

    def test_jobs_that_write_one_name_do_not_meet(self) -> None:
        self.make("srv/in/1", b"one")
        self.make("srv/in/2", b"two")
        self.make("srv/tool", b"#!/bin/sh\ncat in/* >result; echo $(ls -A); mv result out/${1#in/}\n", 0o755)
        server = self.serve("#RUN scratch=yes send=./tool,{2} fetch=out/\n. ./tool in/1\n. ./tool in/2\n")
        client = self.run_bob(server, "-j2")
        self.assertStates("dd")
        self.assertEqual((self.read("srv/out/1"), self.read("srv/out/2")), (b"one", b"two"))
        self.assertEqual(client.out.count(b"in out result tool"), 2)
        # the client keeps inputs, and no results
        self.assertEqual(self.files("bob"), {"in/1", "in/2", "tool"})
        self.assertClean()

    def test_a_job_may_change_its_inputs_and_a_read_only_one_is_no_copy(self) -> None:
        self.make("srv/in", b"old")
        self.make("srv/db", b"db", 0o444)
        self.run_bob(self.serve(
            "#RUN scratch=yes send={2},{2},db fetch=n\n. : in; cat in >n; echo new >in; ls -i db >>n\n"))
        self.assertStates("d")
        self.assertEqual(self.read("bob/in"), b"old")
        self.assertEqual(self.read("srv/n"), f"old{(self.bob / 'db').stat().st_ino} db\n".encode())

    def test_each_run_has_a_fresh_one(self) -> None:
        server = self.serve("#RUN scratch=yes fetch=n\n"
                            ". ls -A >n; touch left; [ -e ../ran ] || { touch ../ran; false; }\n")
        self.run_bob(server, "--retries", "1", "--runner", "env")
        self.assertStates("d")
        self.assertEqual(self.read("srv/n"), b"n\n")
        self.assertClean()

    def test_what_a_job_leaves_is_removed_and_nothing_else(self) -> None:
        self.make("outside/file")
        self.make("bob/own")
        os.chmod(self.dir / "outside", 0o750)
        server = self.serve("#RUN scratch=yes\n. ln -s ../../outside link; ln -s ../../outside/file file; "
                            "mkdir -p a/b/c; touch a/b/c/d; mkfifo p; chmod 555 a/b/c a/b a; false\n")
        self.run_bob(server)
        self.assertStates("!")
        self.assertClean()
        self.assertEqual((self.files("outside"), self.files("bob")), ({"file"}, {"own"}))
        self.assertEqual((self.dir / "outside").stat().st_mode & 0o777, 0o750)

    def test_a_client_in_the_directory_of_the_server(self) -> None:
        self.make("srv/in", b"in")
        server = self.serve("#RUN scratch=yes send=in fetch=out\n. cp in out; echo >>in\n")
        self.start_client(server, cwd=self.srv, patch=PATCH).wait(DEADLINE)
        self.assertStates("d")
        self.assertEqual((self.read("srv/in"), self.read("srv/out")), (b"in", b"in"))
        self.assertClean()

    def test_there_an_input_that_nobody_may_write_can_be_a_result(self) -> None:
        self.make("srv/in", b"in", 0o444)
        server = self.serve("#RUN scratch=yes send=in fetch=in\n. cat in\n")
        self.start_client(server, cwd=self.srv, patch=PATCH).wait(DEADLINE)
        self.assertStates("d")
        self.assertEqual(self.read("srv/in"), b"in")

    def test_a_runner_on_the_file_leaves_such_a_line_to_clients(self) -> None:
        self.write("#RUN scratch=yes\n. true\n#RUN\n. true\n")
        self.run_jobs()
        self.assertEqual(self.states(), ".d")
        self.assertIn(b"1 new; line 2 needs a client of a server (scratch=yes)", self.run_jobs().err)
        self.assertEqual(self.run_jobs("--dry-run").out, b"2 . true\n")

    def test_what_a_directive_can_say(self) -> None:
        def parse(settings: str) -> tuple[str, ...]:
            directive = runmaker4.parse_directive(b"RUN " + settings.encode())
            assert isinstance(directive, runmaker4.JobSettings)
            return directive.fetch

        self.assertEqual(parse("scratch=yes fetch=./a*,b/,{2}.log:always,c:optional:always"),
                         ("./a*", "b/", "{2}.log:always", "c:optional:always"))
        for settings, why in (("scratch=1", "scratch= is yes"), ("fetch=a*", "require scratch=yes"),
                              ("fetch=a/", "require scratch"), ("fetch=b/,a", "require scratch"),
                              ("fetch=a:always", "require scratch"),
                             ("send=a:always", "marks for fetch="), ("scratch=yes fetch=/", "cannot travel"),
                              ("scratch=yes fetch=../a/", "cannot travel"),
                              ("scratch=yes fetch=.a:always", "cannot travel"),
                              ("scratch=yes fetch=:always", "cannot travel"),
                              ("scratch=yes together=a host=b", "cannot be used with together=")):
            with self.subTest(settings=settings), self.assertRaisesRegex(ValueError, why):
                parse(settings)


    def test_that_a_result_can_be_written_is_found_out_without_a_trace(self) -> None:
        server = self.serve("#RUN scratch=yes fetch=a\n"
                            ". echo >../up; until [ -e ../gate ]; do sleep 0.02; done; echo >a\n")
        client = self.join(server)
        self.wait_file("bob/up")
        self.assertEqual(self.leftovers(), [])
        self.make("bob/gate", b"")
        self.assertEqual(self.finish(client).code, 0)
        self.assertStates("d")


class Results(ScratchCase):
    """Names of fetch=."""

    def fetch(self, names: str, command: str, state: str = "d") -> set[str]:
        """Run a job, and return what has come."""
        server = self.serve(f"#RUN scratch=yes fetch={names}\n. {command}\n")
        client = self.run_bob(server)
        self.said = client.err.decode()
        self.assertStates(state)
        self.assertClean()
        server.kill()
        return self.files("srv")

    def test_patterns_and_directories(self) -> None:
        command = ("mkdir -p out/deep results/a/b x .h; "
                   "touch out/1.png out/2.gif out/deep/3.png results/r results/a/b/s x/y a .h/z results/.h; "
                   "ln -s /etc/passwd results/passwd; ln -s . results/loop")
        self.assertEqual(self.fetch("out/*.png,./results//,[xy]/y", command), {
            "out/1.png", "out/deep/3.png", "results/r", "results/a/b/s", "x/y"})

    def test_inputs_come_back_only_by_their_names(self) -> None:
        for name in "a", "b":
            self.make(f"srv/in/{name}", b"old")
        server = self.serve("#RUN scratch=yes send=in/a,in/b fetch=*,in/,in/b\n"
                            ". tee in/a in/b in/c c </dev/null\n")
        self.run_bob(server)
        self.assertStates("d")
        self.assertEqual([self.read(f"srv/{name}") for name in ("in/a", "in/b", "in/c", "c")],
                         [b"old", b"", b"", b""])

    def test_the_directories_are_there(self) -> None:
        self.assertEqual(self.fetch("a/b/*,c/,d/e/f", "touch a/b/1 c/2 d/e/f"), {"a/b/1", "c/2", "d/e/f"})

    def test_a_word_of_the_command_is_no_pattern(self) -> None:
        self.assertEqual(self.fetch("{2}*", "touch 'a[1]' a1 a2 'a[1]b'"), {"a[1]", "a[1]b"})

    def test_a_word_with_pattern_characters_is_a_directory_and_an_own_name(self) -> None:
        self.make("srv/in/a[1]", b"old")
        server = self.serve("#RUN scratch=yes send=in/{2} fetch=out/{2}/,in/{2},new/{2},*/{2}.?\n"
                            ". : 'a[1]'; tee 'in/a[1]' 'out/a[1]/r' 'new/a[1]' 'new/a[1].x' </dev/null\n")
        self.run_bob(server)
        self.assertStates("d")
        self.assertEqual(self.files("srv"), {"in/a[1]", "out/a[1]/r", "new/a[1]", "new/a[1].x"})
        self.assertEqual((self.read("srv/in/a[1]"), {path.split("/")[0] for path in self.files("bob")}),
                         (b"", {"in"}))

    def test_what_is_there_instead_of_a_file_is_named(self) -> None:
        for name, command, why in (
                ("out", "mkdir out; touch out/r", "a directory (out/ fetches the files below it)"),
                ("link", "touch r; ln -s r link", "a symbolic link, which does not travel"),
                ("dir/", "rmdir dir; mkdir e; ln -s e dir", "a symbolic link, which does not travel"),
                ("h/", "touch h/.x", "no file in it travels (hidden ones, links and inputs do not)"),
                ("b/:alway", "touch b/r", "the job has not made this file (marks: :always, :optional)")):
            with self.subTest(name=name):
                self.assertEqual(self.fetch(name, command, "!"), set())
                self.assertIn(f"line 2: {name}: {why}", self.said)

    def test_who_replaces_the_result_of_another_line_is_said_once(self) -> None:
        server = self.serve("#RUN scratch=yes fetch=*.dat\n" + "".join(
            f". : {number}; touch a.dat\n" for number in range(3)))
        self.run_bob(server)
        self.assertStates("ddd")
        self.wait_said(server, "line 3: a.dat replaces the result of line 2 (")

    def test_one_for_which_no_file_was_made_is_a_failure_unless_it_is_marked(self) -> None:
        for name in "none", "none/", "non*", "none:always":
            self.assertEqual(self.fetch(f"a,{name}", "touch a", "!"), set())
            shown = name.partition(":")[0]
            self.assertIn(f"line 2: {shown}: the job has not made this file", self.said)
        self.assertEqual(self.fetch("a,none:optional,none/:optional,non*:always:optional", "touch a"), {"a"})

    def test_after_a_failure_those_come_that_are_marked(self) -> None:
        names = "a,log:always,trace/:optional:always,none:always"
        for end, timeout in ("exit 3", ""), ("exec sleep 600", " timeout=1"):
            command = f"touch a log trace/1; {end}"
            self.assertEqual(self.fetch(names + timeout, command, "!"), {"log", "trace/1"})
            for path in "srv/log", "srv/trace/1":
                (self.dir / path).unlink()

    def test_if_another_file_is_missing_those_come_that_are_marked(self) -> None:
        self.assertEqual(self.fetch("a,log:always,none", "touch a log", "!"), {"log"})

    def test_a_mark_leaves_an_input_its_own_name(self) -> None:
        for mark in "optional", "always":
            with self.subTest(mark=mark):
                self.make("srv/in", b"old")
                server = self.serve(f"#RUN scratch=yes send=in fetch=in:{mark}\n. echo new >in\n")
                self.run_bob(server)
                self.assertStates("d")
                self.assertEqual(self.read("srv/in"), b"new\n")
                server.kill()

    def test_a_name_that_is_too_long_there_is_a_failure_and_the_others_come(self) -> None:
        self.assertEqual(self.fetch("o/", "touch o/ok o/$(printf 'a%.0s' $(seq 205))", "!"), {"o/ok"})
        self.assertIn("file name too long at the server", self.said)

    def test_a_directory_that_the_job_has_closed_is_opened_and_removed(self) -> None:
        self.assertEqual(self.choose(b"o/"), ([b"o/g", b"o/p/q/f"], ""))

    def test_one_of_another_user_counts_only_for_what_can_be_in_it(self) -> None:
        for name in b"o/", b"*", b"o/p/*", b"[n-p]/*", b"o/p/q/f":
            chosen, why = self.choose(name, can_open=False)
            self.assertEqual((chosen, why), ([], f"{os.fsdecode(name)}: o/p/ cannot be read"))
        for name in b"log", b"o/g", b"l*":
            self.assertEqual(self.choose(name, can_open=False)[1], "")
        self.assertEqual(self.choose(b"o/p", can_open=False)[1],
                         "o/p: a directory (o/p/ fetches the files below it)")

    def choose(self, name: bytes, can_open: bool = True) -> tuple[list[bytes], str]:
        self.dir.chmod(0o777)
        with futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            return pool.submit(close_and_choose, os.fsencode(self.dir), name, can_open).result()

    def test_a_job_may_remove_what_it_has_made(self) -> None:
        """All of it, or part of it while the client looks for results."""
        self.assertEqual(self.fetch("log:optional", 'rm -r "$PWD"'), set())
        directory = runmaker4.JobDirectory(runmaker4.FileTree(os.fsencode(self.dir)), 1)
        directory.make()
        path = pathlib.Path(os.fsdecode(directory.path))
        (path / "tmp/a").mkdir(parents=True)
        (path / "out").write_bytes(b"")
        walk = os.walk

        def remove_and_walk(*args: Any, **options: Any) -> Any:
            for found in walk(*args, **options):
                yield found
                shutil.rmtree(path / "tmp", ignore_errors=True)

        with mock.patch("os.walk", remove_and_walk):
            self.assertEqual(directory.choose_results([b"out", b"o*"], [], runmaker4.DONE),
                             ([b"out", b"out"], ""))
        directory.remove()

    def test_after_an_interrupt_none_comes(self) -> None:
        server = self.serve("#RUN scratch=yes fetch=log:always\n. touch log; echo >../up; exec sleep 600\n")
        client = self.join(server)
        self.wait_file("bob/up")
        client.send_signal(signal.SIGTERM)
        client.wait(DEADLINE)
        self.assertStates("e")
        self.assertClean()
        self.assertEqual(self.files("srv"), set())

    def test_a_job_that_is_repeated_with_more_memory_brings_the_files_of_the_last_run(self) -> None:
        server = self.serve("#RUN scratch=yes memory=1M,1G fetch=out,log:always\n"
                            ". ls -A >log; touch out; [ $RUNMAKER4_MEMORY -gt 9999999 ] || kill -9 $$\n")
        client = self.run_bob(server, "--memory", "2G", "--retries", "1")
        self.assertIn(self.states("srv/runs.txt"), "d!", client.err)
        self.assertClean()


class Losses(ScratchCase):
    JOB = ("#RUN scratch=yes send=in fetch=out\n"
           ". cp in out; echo >../made; until [ -e ../gate ]; do sleep 0.02; done\n")

    def setUp(self) -> None:
        super().setUp()
        self.content = self.make_big("srv/in")

    def test_a_killed_client_leaves_one_that_the_next_removes_once_the_job_has_ended(self) -> None:
        server = self.serve(self.JOB + "#RUN scratch=yes\nx true\n", "--grace", 0.5)

        def run_another() -> None:
            self.run_script(RUNSET, "--set=.", "srv/runs.txt", "4")
            self.run_bob(server)

        client = self.join(server)
        self.wait_file("bob/made")
        client.kill()
        self.wait_said(server, "did not come back")
        run_another()                               # the job lives
        self.assertStates("ed")
        self.assertEqual(len(self.job_directories()), 2)
        self.make("bob/gate")
        self.assertNoJobLeft()
        run_another()
        self.assertClean()
        self.assertEqual(self.files("srv"), {"in"})

    def test_another_client_removes_none_of_a_living_one(self) -> None:
        server = self.serve(self.JOB + "#RUN scratch=yes\n. true\n")
        client = self.join(server, "-j1")
        self.wait_file("bob/made")
        self.run_bob(server, "--name", "carol")
        self.assertStates("rd")
        self.make("bob/gate")
        client.wait(DEADLINE)
        self.assertStates("dd")
        self.assertEqual(self.read("srv/out"), self.content)
        self.assertClean()

    def test_the_server_is_killed_while_results_go(self) -> None:
        server = self.serve(self.JOB, "--grace", 600)
        proxy = Proxy(server.port)
        self.addCleanup(proxy.close)
        client = self.join(proxy)
        self.wait_file("bob/made")
        proxy.freeze_after(BIG // 4, TO_SERVER, TO_SERVER)
        self.make("bob/gate")
        wait_until(lambda: proxy.is_frozen(TO_SERVER), what="the proxy stands still")
        server.kill()
        self.serve_again("--grace", 600, "--port", server.port)
        proxy.thaw()
        client.wait(DEADLINE)
        self.assertStates("d")
        self.assertEqual(self.read("srv/out"), self.content)
        self.assertClean()

    def test_a_cancelled_job(self) -> None:
        client = self.join(self.serve(self.JOB))
        self.wait_file("bob/made")
        self.run_script(RUNSET, "--cancel", "srv/runs.txt", "2")
        client.wait(DEADLINE)
        self.assertStates("c")
        self.assertClean()


class Bounds(ScratchCase):
    """Whoever has the token brings files that fetch= names, and no others."""

    def test_what_a_client_brings(self) -> None:
        os.symlink("..", self.srv / "out")
        server = self.serve("#RUN scratch=yes fetch=*.txt,res/,out/*,*/x\n. true\n")
        peer = Peer.of(server.port, server.token)
        self.addCleanup(peer.close)
        peer.hello(client=new_key()).hear("welcome")
        peer.say(dict(type="claim", request=1, want=1, memory=0, last=False, slots=9))
        job, = peer.hear("jobs")["jobs"]
        self.assertEqual((job["fetch"], job["scratch"]), (["*.txt", "res/", "out/*", "*/x"], True))

        def bring(path: str) -> str:
            peer.put(json.dumps(dict(type="put", ask=1, id=job["id"], path=path, offset=0, size=1, mtime=1,
                                     mode=0o644, ctime=1)).encode() + b"\0x")
            return str(peer.hear("piece").get("error"))

        for path in "a.txt", "deep/a.txt", "res/b", "res/c/d", "e/x":
            self.assertEqual(bring(path), "None")
        for path in ("a", "res", "x", "../a.txt", "/tmp/a.txt", ".a.txt", "res/.a", ".res/x", "res/../x",
                     "res//b", "out", "res/", "a.txt/", "b/../a.txt"):
            self.assertEqual(bring(path), "no file of this job", path)
        self.assertEqual(bring("runs.txt"), "the job file and its records do not travel")
        self.assertEqual(bring("runs.txt.out/a.txt"), "the job file and its records do not travel")
        self.assertEqual(bring("out/a"), "a symbolic link, which does not travel,")
        self.assertEqual(self.files("srv"), {"a.txt", "deep/a.txt", "res/b", "res/c/d", "e/x"})

    def test_a_job_brings_a_bounded_number_of_files(self) -> None:
        self.patch = PATCH + "runmaker4.MAX_FILES = 3\n"
        server = self.serve("#RUN scratch=yes fetch=out/\n"
                            ". touch out/1 out/2 out/3\n. touch out/4 out/5 out/6 out/7\n")
        client = self.run_bob(server)
        self.assertStates("d!")
        self.wait_said(client, "line 3: more than 3 files of one job")
        self.assertEqual(self.files("srv"), {"out/1", "out/2", "out/3"})


class JobDirectories(ScratchCase):
    """JobDirectory, without programs."""

    def setUp(self) -> None:
        super().setUp()
        self.tree = runmaker4.FileTree(os.fsencode(self.bob))
        self.lock_file = self.bob / os.fsdecode(b".1-a" + runmaker4.JOB_SUFFIX + runmaker4.LOCK_SUFFIX)

    def make_one(self) -> runmaker4.JobDirectory:
        directory = runmaker4.JobDirectory(self.tree, 17)
        directory.make()
        return directory

    def test_only_those_that_nobody_has_locked_are_removed(self) -> None:
        mine, dead = self.make_one(), self.make_one()
        os.close(dead.lock_fd)
        self.lock_file.touch()                  # killed before its directory was made
        (self.bob / ".1-a.other.runmaker4-job.lock").touch()
        runmaker4.remove_dead_directories.cache_clear()
        runmaker4.remove_dead_directories(self.tree.root)
        left = {path.name for path in self.job_directories()}
        own = os.path.basename(os.fsdecode(mine.path))
        self.assertEqual(left, {own, f"{own}.lock", ".1-a.other.runmaker4-job.lock"})
        mine.remove()
        self.assertEqual(len(self.job_directories()), 1)

    def test_one_is_not_made_under_a_lock_file_that_is_about_to_be_removed(self) -> None:
        with mock.patch.object(runmaker4, "lock", return_value=False), self.assertRaises(OSError):
            self.make_one()
        self.assertEqual([path.suffix for path in self.job_directories()], [".lock"])

    def test_links_lead_no_removal_out(self) -> None:
        self.make("outside/file")
        outside = os.fsencode(self.dir / "outside")
        os.symlink(outside, self.lock_file.with_suffix(""))
        self.lock_file.touch()
        runmaker4.remove_dead_directories.cache_clear()
        runmaker4.remove_dead_directories(self.tree.root)
        self.assertEqual(self.files("outside"), {"file"})
        self.assertEqual((self.dir / "outside").stat().st_mode & 0o777, 0o755)

    def test_one_that_is_too_deep_for_python_ends_no_client(self) -> None:
        directory = self.make_one()
        self.addCleanup(lambda: subprocess.run(["rm", "-rf", directory.path], check=True))
        deep = "d/" * 1800
        subprocess.run(["sh", "-c", f"mkdir -p {deep}; touch {deep}file"], cwd=directory.path, check=True)
        chosen, why = directory.choose_results([b"d/"], [], runmaker4.DONE)
        self.assertTrue(why or len(chosen) == 1, (why, chosen))
        directory.remove()

    def test_a_deep_one(self) -> None:
        directory = self.make_one()
        path = directory.path
        for _ in range(300):
            path += b"/d"
            os.mkdir(path)
        directory.remove()
        self.assertEqual(self.job_directories(), [])
