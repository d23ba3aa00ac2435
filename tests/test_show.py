"""Promise: runwait4.py --show tells what became of a line, run by run, and follows what it prints."""
import dataclasses
import json
import os
import re
import signal
import subprocess
import time
import unittest
import unittest.mock
from typing import Any

import runwait4
from tests.journal import BEGAN, end, moved, pair, start
from tests.support import GATE, RUNMAKER, RUNWAIT, Ended, RunCase, deadline, wait_until
from tests.test_telling import TellingCase
from tests.values import present

WHEN = re.compile(r"[A-Z][a-z]{2} \d\d \d\d:\d\d|\d\d:\d\d:\d\d")


class ShowCase(TellingCase):

    def shown(self, line: object, *options: str, err: str = "") -> str:
        """What is told of a line, with the times of day blotted out."""
        told = self.told("--show", line, *options, "--outdir", "out", "runs.txt", err=err)
        return WHEN.sub("WHEN", told)

    def ran(self, *options: object) -> Ended:
        """Run runs.txt to its end, with out/."""
        return self.run_script(RUNMAKER, "-q", "--outdir", "out", *options, "runs.txt")

    def at_work(self, *lines: str, options: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """A real runner, one of whose jobs is at the gate, with out/."""
        return self.start_to_gate("".join(f"{line}\n" for line in lines), "--outdir", "out", *options)

    def wait_journal(self, what: bytes, count: int = 1) -> None:
        """Wait until the journal has this so many times."""
        wait_until(lambda: self.read("out/journal").count(what) >= count, what=f"{what!r} in the journal")


class Runs(ShowCase):
    """All runs of a line, and the end of what the last one has printed."""

    def test_each_try_is_told_and_the_last_lines_of_the_last_one(self) -> None:
        self.write(". for i in $(seq 12); do echo line $i; done; echo bad >&2; printf part; exit 3\n. true\n")
        self.ran("--retries", "1")
        lines = re.sub(r"after .*|process \d+|CPU .*", "...", self.shown(1)).splitlines()
        self.assertEqual(re.sub(r"on \S+,", "on here,", "\n".join(lines[2:])), """\
run 1: exit 3 ...
    on here, slot 1, ..., WHEN to WHEN, ...
    printed 95 B: out/1.out.~1~, out/1.err.~1~
run 2: exit 3 ...
    on here, slot 1, ..., WHEN to WHEN, ...
    printed 95 B: out/1.out, out/1.err
stdout, 91 B:
""" + "".join(f"  | line {number}\n" for number in range(4, 13)) + "  | part\nstderr, 4 B:\n  ! bad")
        self.assertEqual(lines[0], "line 1: failed, 2 runs")
        self.assertRegex(self.shown(2),
                         r"^line 2: done, 1 run\n    true\nrun 1: exit 0 .*\n.*\n    printed nothing\n$")

    def test_as_json(self) -> None:
        self.write(". printf abc; [ -e second ] || { : >second; exit 3; }\n")
        self.ran("--retries", "1")
        told = json.loads(self.shown("1", "--json"))
        runs = told.pop("runs")
        self.assertEqual(
            told, {"line": 1, "command": self.read()[2:-1].decode(), "state": "done"}
        )
        self.assertEqual([(run["run"], run["line"], run["state"], run["exit"], run["files"]) for run in runs],
                         [(1, 1, "failed", 3, ["1.out.~1~"]), (2, 1, "done", 0, ["1.out"])])
        self.assertEqual(
            set(runs[0]),
            {"run", "line", "host", "slot", "pid", "start", "end", "state", "exit", "signal", "cause",
             "seconds", "cpu", "memory", "memory_below", "promised", "bytes", "files"},
        )
        for run in runs:
            self.assertAlmostEqual(run["end"] - run["start"], run["seconds"], 2)
            self.assertEqual((run["bytes"], run["signal"], run["cause"]), (3, None, ""))

    def test_how_runs_end(self) -> None:
        commands = "done", "segv", "timeout", "cancelled", "stopped", "put back", "unstarted", "lost", "odd"
        self.write("".join(f"{state} {command}\n" for state, command in zip("d!!xe.eer", commands)))
        ends: list[dict[str, Any]] = [
            {}, {"signal": 11, "exit": -1, "state": "!"},
            {"cause": "timeout", "signal": 9, "exit": -1, "state": "!"},
            {"cause": "cancelled", "signal": 15, "exit": -1, "state": "x"},
            {"cause": "stopped", "signal": 15, "exit": -1, "state": "e"},
            {"signal": 15, "exit": -1, "state": "."}, {"pid": 0, "exit": -1, "state": "e"},
        ]
        self.journal(*[end(line, line, command, files=[], **ends[line - 1])
                       for line, command in enumerate(commands[:7], 1)],
                     start(8, 8, "lost"), start(9, 9, "odd"))
        wanted = [
            "done|exit 0 after 1.5s", "failed|signal 11 (SIGSEGV) after 1.5s",
            "failed|timeout (SIGKILL) after 1.5s", "held|cancelled (SIGTERM) after 1.5s",
            "error|stopped (SIGTERM) after 1.5s", "new|put back: signal 15 (SIGTERM) after 1.5s",
            "error|could not be started", "error|lost", "error (r, but nobody runs it any more)|lost",
        ]
        for line, text in enumerate(wanted, 1):
            with self.subTest(text):
                heading, _, run, *_ = self.shown(line).splitlines()
                state, _, how = text.partition("|")
                self.assertEqual((heading, run), (f"line {line}: {state}, 1 run", f"run 1: {how}"))

    def test_an_earlier_run_without_an_end_is_lost(self) -> None:
        self.write("d a\n")
        self.journal(start(1, 1, "a"), moved("1.out", "1.out.~1~"), *pair(2, 1, "a", BEGAN + 9, files=[]))
        self.write("its last words\n", "out/1.out.~1~")
        self.assertRegex(self.shown(1), r"2 runs\n    a\nrun 1: lost\n    on node1, slot 1, process 4712, "
                                        r"since WHEN\n    printed 15 B: out/1\.out\.~1~\nrun 2: exit 0 ")

    def test_one_that_runs_is_told_so_far(self) -> None:
        self.at_work(f". echo hello; {GATE}")
        self.addCleanup(self.open_gate)
        self.wait_journal(b'"start"')
        wait_until((self.dir / "out/1.out").exists)
        self.assertRegex(self.shown(1), r"^line 1: running, 1 run\n    echo hello.*\nrun 1: running for .*\n"
                                        r"    on \S+, slot 1, .*, since WHEN\n    printed 6 B so far: "
                                        r"out/1\.out\nstdout, 6 B:\n  \| hello\n$")
        (run,) = json.loads(self.shown(1, "--json"))["runs"]
        self.assertEqual((run["state"], run["end"], run["exit"], run["bytes"], run["files"]),
                         ("running", None, None, 6, ["1.out"]))
        self.assertGreater(run["seconds"], 0)

    def test_a_cancelled_one_that_lives_still_runs(self) -> None:
        self.write("x a\n")
        self.hold_line(1)
        self.journal(start(1, 1, "a"))
        self.assertRegex(
            self.shown(1), r"^line 1: cancelled, still running, 1 run\n    a\nrun 1: running for "
        )

    def test_one_that_has_not_run(self) -> None:
        self.write(". a\n. b\n")
        self.journal(*pair(1, 1, "a"))
        self.assertEqual(self.shown(2), "line 2: new, no run of it is in the journal\n    b\n")
        self.assertEqual(json.loads(self.shown(2, "--json"))["runs"], [])

    def test_an_end_that_comes_late_is_waited_for(self) -> None:
        self.write("d a\n")
        self.journal(start(1, 1, "a"))
        asking = self.start(RUNWAIT, "--show", "1", "--outdir", "out", "runs.txt")
        time.sleep(1)
        with open(self.dir / "out/journal", "ab") as file:
            file.write(end(1, 1, "a", files=[]))
        self.assertIn(b"\nrun 1: exit 0 after 1.5s\n", self.finish(asking).out)

    def test_a_terminal_is_not_too_narrow(self) -> None:
        self.write("! a\x1b[31m" + "long" * 40 + "\n")
        self.journal(end(1, 1, self.read()[2:-1], state="!", host="\x1b" + "host" * 5, exit=139))
        self.write("\x1b[31mred\n" + "x" * 200, "out/1.out")
        for columns in (80, 40):
            lines = self.at_terminal(columns, "--show", "1", "--outdir", "out", "runs.txt")
            self.assertLess(max(map(len, lines)), columns)
            self.assertIn("  | ?[31mred", lines)
            self.assertIn("out/1.err", " ".join(lines))


class Lines(ShowCase):
    """Which line is meant, and which runs are its."""

    def test_it_is_named_by_its_number_its_command_or_a_pattern(self) -> None:
        self.write("# 1\nd simulate --seed 1\n! simulate --seed 2\nx simulate --seed *\nd 17\n")
        self.journal(*pair(1, 2, "simulate --seed 1"))
        for wanted, line in (("2", 2), ("simulate --seed 1", 2), ("*seed 2", 3), ("simulate --seed *", 4),
                             ("*17", 5), ("[x]17", 0), ("simulate --seed [12]", -1), ("*", -1), ("17", 0),
                             ("1", 0), ("0", 0), ("9" * 30, 0)):
            with self.subTest(wanted):
                ended = self.runwait("--show", wanted, "--outdir", "out", "runs.txt")
                if line > 0:
                    self.assertEqual((ended.code, ended.out.split(b":")[0]), (0, b"line %d" % line))
                elif line == 0:
                    self.assertRefused(ended, "runs.txt: ", "no job")
                else:
                    self.assertRefused(ended, "is lines 2, 3", "(give the number of one)")

    def test_runs_of_another_command_under_its_number_are_none_of_its(self) -> None:
        self.write("d b\nd a\n")
        self.journal(*pair(1, 1, "a"), *pair(2, 2, "b"), *pair(3, 1, "b", BEGAN + 9), start(4, 1, "x"))
        told = self.shown(1, err=r"runwait4.py: runs.txt: 2 runs of other commands, which line 1 had before, "
                                 r"left out\n")
        self.assertEqual((told.count("\nrun "), told.split("\n")[0]), (2, "line 1: done, 2 runs"))

    def test_of_equal_lines_each_has_the_runs_that_are_nearest(self) -> None:
        self.write("d a\n\n\n\n\nd a\n")
        self.journal(*pair(1, 2, "a"), *pair(2, 5, "a"), *pair(3, 9, "a", BEGAN + 9))
        told = [json.loads(self.shown(line, "--json"))["runs"] for line in (1, 6)]
        self.assertEqual([[run["line"] for run in runs] for runs in told], [[2], [5, 9]])

    def test_a_line_that_moved_has_the_runs_from_before(self) -> None:
        self.write(". echo moved\n")
        self.ran()
        self.write(b"# a note\n" + self.read())
        self.assertIn("run 1: exit 0", self.shown(2))

    def test_what_is_missing_is_said_in_a_line(self) -> None:
        self.write("d a\n")
        (self.dir / "old").mkdir()
        here = "--outdir", "old"
        one = "--show", "1"
        for options, words in (
            ((*one, "runs.txt"), "--show needs --outdir DIR, of jobs that were run with runmaker4.py"),
            ((*one, "--outdir", "no", "runs.txt"), "no: no such directory"),
            ((*one, *here, "runs.txt"), "old: has no journal"),
            ((*one, *here), "FILE"),
            (("--show", "", *here, "runs.txt"), "is empty"),
            ((*one, "--status", *here, "runs.txt"), "--status and --show do not go together"),
            ((*one, "-e", *here, "runs.txt"), "--show and -e do not go together"),
            ((*one, "--report", "x", *here), "--report and --show do not go together"),
            ((*one, "--timeline", "x", *here), "--timeline goes with"),
            ((*one, "--follow", "--json", *here, "runs.txt"), "--follow and --json do not go together"),
            (("--follow", "runs.txt"), "--follow goes with --show"),
            (("--stats", "runs.txt"), "--stats needs --outdir DIR, of jobs that were run with runmaker4.py"),
        ):
            with self.subTest(options):
                self.assertRefused(self.runwait(*options), words)


class Output(ShowCase):
    """Whatever a run has printed is fit to be shown, and what is gone is said."""

    def output(self, data: bytes, **fields: Any) -> list[str]:
        """What is shown of a run that has printed this to stdout."""
        self.write("d a\n")
        self.journal(end(1, 1, "a", files=["1.out"], bytes=len(data), **fields))
        self.write(data, "out/1.out")
        return self.shown(1).splitlines()[6:]

    def test_any_bytes(self) -> None:
        self.assertEqual(self.output(b"\0\x1b[2J\xff\xc3\xa9\x9b\n\n10%\r20%\r\nlast"),
                         ["  | ??[2J\udcff\u00e9?", "  | ", "  | 20%", "  | last"])

    def test_only_the_end_of_a_large_file_is_read(self) -> None:
        self.output(b"")
        with open(self.dir / "out/1.out", "r+b") as file:
            file.truncate(1 << 36)
            file.seek(0, os.SEEK_END)
            file.write(b"\nnext to last\nlast\n")
        told = self.shown(1).splitlines()
        self.assertEqual((told[5][:14], told[-2:]), ("stdout, 69 GB:", ["  | next to last", "  | last"]))
        self.assertLess(max(map(len, told[6:])), 600)

    def test_files_that_cannot_be_shown(self) -> None:
        self.write("d a\n")
        names = ["gone.out", "fifo.err"]
        self.journal(end(1, 1, "a", files=names))
        os.mkfifo(self.dir / "out/fifo.err")
        self.assertEqual(self.shown(1).splitlines()[5:], [
            "(stdout: out/gone.out: is not there any more)", "(stderr: out/fifo.err: is no file of output)"])
        self.journal(end(1, 1, "a", files=["../runs.txt", "link.err"], incomplete=True))
        (self.dir / "out/link.err").symlink_to("/etc/passwd")
        told = self.shown(1).splitlines()
        self.assertIn("printed 4 B (not all of it could be written): ", told[4])
        self.assertEqual(len(told), 7)
        self.assertTrue(all(line.startswith("(std") for line in told[5:]), told)


class Files(ShowCase):
    """Each file is printed once, also if it was taken for that of another run."""

    def setUp(self) -> None:
        super().setUp()
        self.put = unittest.mock.Mock()
        patch = unittest.mock.patch.object(runwait4, "put", self.put)
        patch.start()
        self.addCleanup(patch.stop)
        self.printer = runwait4.Printer(runwait4.LastOutput(str(self.dir / "out")))

    def printed(self) -> list[bytes]:
        return [call[0][0] for call in self.put.call_args_list]

    def test_the_file_of_a_run_that_is_lost_may_be_that_of_the_next(self) -> None:
        self.journal(*pair("next", 1, "a", files=["1.out"]), start("lost", 1, "a"))
        self.write("a\nb\n", "out/1.out")
        following, lost = self.opened().runs()
        lost.files = ["1.out", "1.err"]
        self.printer.finish(lost)
        self.printer.finish(following)
        self.assertEqual(self.printed(), [b"  | a\n  | b\n"])

    def test_a_file_that_was_opened_too_early_is_read_on_by_its_run(self) -> None:
        self.journal(*pair("quick", 1, "a", files=["1.out.~1~"]), start("next", 1, "a"))
        self.write("quick\n", "out/1.out.~1~")
        self.write("next\n", "out/1.out")
        quick, following = self.opened().runs()
        following.files = ["1.out"]
        self.printer.go_on(dataclasses.replace(quick, ended=None, files=["1.out"]))
        self.printer.finish(quick)
        self.write("next\nmore\n", "out/1.out")
        self.printer.go_on(following)
        self.assertEqual(self.printed(), [b"  | next\n", b"  | quick\n", b"  | more\n"])


class Follow(ShowCase, RunCase):
    """--follow goes on with what a line prints."""

    NETWORKS = "nfs4", "fuse.glusterfs"
    ARGS = "--follow", "--outdir", "out", "runs.txt"

    def follow(self, line: object = 1) -> subprocess.Popen[bytes]:
        return self.start(RUNWAIT, "--show", line, *self.ARGS)

    def until(self, process: subprocess.Popen[bytes], wanted: bytes) -> bytes:
        """What it prints until that comes."""
        stdout = present(process.stdout)
        out = b""
        with deadline(process):
            while wanted not in out:
                data = os.read(stdout.fileno(), 1 << 16)
                self.assertTrue(data, out)
                out += data
        return out

    def test_output_comes_as_it_is_printed_and_the_end_with_it(self) -> None:
        self.at_work(f". seq 12; {GATE}; echo more; echo bad >&2; printf part; exit 3")
        self.wait_journal(b'"start"')
        follower = self.follow()
        out = self.until(follower, b"  | 12\n")
        self.assertNotIn(b"  | 2\n", out)
        self.assertIn(b"  | 3\n", out)
        self.open_gate()
        ended = self.finish(follower)
        self.assertEqual((ended.code, ended.err), (0, b""))
        rest = WHEN.sub("WHEN", ended.out.decode())
        self.assertRegex(rest, r"^  \| more\n(  ! bad\n  \| part|  \| part\n  ! bad)\nrun 1: exit 3 after "
                               r".*\n.*\n    printed .*: .*, out/1\.err\nline 1: failed, 1 run\n$")

    def test_further_tries_are_followed_wherever_the_files_are_moved(self) -> None:
        self.at_work(f". {GATE}; echo x >>tries; echo try $(wc -l <tries); exit 1",
                     options=("--retries", "30"))
        self.wait_journal(b'"start"')
        follower = self.follow()
        self.until(follower, b"so far\n")
        self.open_gate()
        out = self.finish(follower).out.decode()
        tries = list(range(1, 32))          # each once; one may be taken for that of the run before
        found = re.findall(r"^  \| try (\d+)$", out, re.MULTILINE)
        self.assertEqual(sorted(map(int, found)), tries, found)
        self.assertEqual(list(map(int, re.findall(r"^run (\d+): exit 1", out, re.MULTILINE))), tries)
        self.assertTrue(out.endswith("line 1: failed, 31 runs\n"), out)

    def test_a_line_that_is_new_is_waited_for(self) -> None:
        self.write("d a\n. echo hello\n")
        self.journal(*pair(1, 1, "a"))
        follower = self.follow(2)
        self.until(follower, b"    echo hello\n")
        self.ran()
        self.assertRegex(self.finish(follower).out.decode(),
                         r"^run 1: began .*\n  \| hello\nrun 1: exit 0.*\n.*\n.*\nline 2: done, 1 run\n$")

    def test_a_line_that_has_ended_is_only_shown(self) -> None:
        self.write(". echo hello\n")
        self.ran()
        self.assertEqual(self.shown(1, "--follow"), self.shown(1))

    def test_the_file_may_be_edited_meanwhile(self) -> None:
        self.at_work(f". {GATE}; echo more")
        self.wait_journal(b'"start"')
        follower = self.follow()
        self.until(follower, b"so far\n")
        self.write(b"# a note\n" + self.read(), "new.txt").rename(self.dir / "runs.txt")
        time.sleep(0.5)
        self.open_gate()
        out = self.finish(follower).out.decode()
        self.assertIn("  | more\nrun 1: exit 0", out)
        self.assertIn("\nline 2: done, 1 run\n", out)

    def test_a_runner_that_is_killed_ends_it(self) -> None:
        runner = self.at_work(". echo $$ >pid; : >at.gate; exec sleep 600")
        pid = int(self.wait_file("pid"))
        self.wait_journal(b'"start"')
        follower = self.follow()
        self.until(follower, b"so far\n")
        runner.kill()
        os.kill(pid, signal.SIGKILL)
        out = self.finish(follower).out
        self.assertIn(b"run 1: lost\n", out)
        self.assertTrue(out.endswith(b"line 1: error (r, but nobody runs it any more), 1 run\n"), out)

    def test_interrupts_end_it_quietly(self) -> None:
        self.at_work(f". echo hello; {GATE}")
        self.addCleanup(self.open_gate)
        self.wait_journal(b'"start"')
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            follower = self.follow()
            self.until(follower, b"  | hello\n")
            follower.send_signal(number)
            ended = self.finish(follower)
            self.assertEqual((ended.code, ended.err), (code, b""))

    def test_it_ends_when_nobody_reads_it(self) -> None:
        self.at_work(f". echo hello; {GATE}")
        self.addCleanup(self.open_gate)
        self.wait_journal(b'"start"')
        follower = self.follow()
        self.until(follower, b"  | hello\n")
        present(follower.stdout).close()
        self.assertEqual((follower.wait(20), present(follower.stderr).read()), (0, b""))

    def test_on_a_network_file_system_all_is_read_anew(self) -> None:
        self.at_work(f". echo hello; {GATE}; echo more; printf part; exit 3")
        self.wait_journal(b'"start"')
        followers = []
        for kind in self.NETWORKS:
            there = f"""
import os, runmaker4
find_mount, see_anew = runmaker4.find_mount, runmaker4.see_anew
def mount(path):
    found = find_mount(path)
    return runmaker4.Mount({kind!r}, frozenset()) if "out" in path.split("/") else found
def see(path, mount):
    open("seen.{kind}", "a").write(path + "\\n")
    see_anew(path, mount)
runmaker4.find_mount, runmaker4.see_anew = mount, see
"""
            followers.append(self.start_patched(there, "--show", "1", *self.ARGS, script=RUNWAIT))
            self.until(followers[-1], b"  | hello\n")
        self.open_gate()
        for kind, follower in zip(self.NETWORKS, followers):
            with self.subTest(kind):
                ended = self.finish(follower)
                self.assertRegex(
                    ended.out, rb"^  \| more\n  \| part\nrun 1: exit 3 (.*\n)*line 1: failed, 1 run\n$"
                )
                self.assertGreater(self.read(f"seen.{kind}").count(b"out/journal\n"), 2)

    def test_much_output_comes_whole(self) -> None:
        much = "seq 300000; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end"
        self.at_work(f". echo first; {GATE}; {much}")
        self.wait_journal(b'"start"')
        follower = self.follow()
        self.until(follower, b"  | first\n")            # it goes on from there
        self.open_gate()
        ended = self.finish(follower)
        out = ended.out
        self.assertEqual((ended.code, ended.err), (0, b""), out[-500:])
        self.assertEqual(len(re.findall(rb"^  \| ", out, re.MULTILINE)), 300_000 + 3 + 1, out[-500:])
        self.assertEqual(out.count(b"x"), 3_000_000 + out.count(b"exit"))


if __name__ == "__main__":
    unittest.main()
