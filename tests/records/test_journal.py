"""Promise: DIR/journal tells of each run where and when it ran, and how it ended, whoever ran it."""
import json
import os
import resource
import signal
import tempfile
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import runmaker4
import runwait4
from tests.support.case import Case
from tests.support.journal import end
from tests.support.processes import wait_until
from tests.support.runs import SLEEPING, WAITING
from tests.support.scripts import RUNWAIT
from tests.support.tcp import TcpCase

START = {"time", "event", "run", "line", "command", "host", "slot", "pid", "runner", "directory"}
END = START | {"state", "exit", "signal", "cause", "seconds", "cpu", "memory", "memory_below", "bytes",
               "files", "gathered"}


class JournalCase(TcpCase):

    def entries(self, event: str = "") -> list[dict[str, Any]]:
        """What stands in the journal, or what of it tells of one kind of event."""
        # a line can be empty: a runner that sees a part of another's append separates its own by a newline
        lines = [json.loads(line) for line in self.read("out/journal").splitlines() if line]
        return [line for line in lines if line["event"] == event or not event]

    def ends(self) -> dict[int, dict[str, Any]]:
        """How the last run of each line ended."""
        return {entry["line"]: entry for entry in self.entries("end")}

    def assertWhole(self) -> None:
        """Each run has its end, and perhaps its start, with all that they are to tell; no two runs have one
        name.  A run that takes a second, on a slow machine, may have files at its start.
        """
        for event, fields in ("start", START | {"files"}), ("end", END):
            for entry in self.entries(event):
                self.assertEqual({"files"} | entry.keys() - {"stdout", "stderr"}, fields)
        self.assertTrue(all("files" in end for end in self.entries("end")))
        starts, ends = ([entry["run"] for entry in self.entries(event)] for event in ("start", "end"))
        self.assertEqual((len(set(starts)), len(set(ends))), (len(starts), len(ends)))
        self.assertLessEqual(set(starts), set(ends))


class Runs(JournalCase):
    """What a runner writes."""

    def test_a_run_is_told_from_its_start_to_its_end(self) -> None:
        self.write("# comment\n. echo one; echo two >&2; exit 3\n")
        self.run_jobs("--outdir", "out", "--name", "alice", "--slots", "gpu\t0", "--memory=2G")
        start, end = self.entries()
        command = "echo one; echo two >&2; exit 3"
        self.assertEqual({**start, "run": "", "time": 0, "pid": 0, "runner": 0},
                         {"time": 0, "event": "start", "run": "", "line": 2, "command": command,
                          "host": "alice", "slot": "gpu?0", "pid": 0, "runner": 0,
                          "directory": os.path.realpath(self.dir)})
        self.assertEqual({**end, "event": "start", "time": start["time"]}, {**end, **start})
        self.assertEqual([end[name] for name in ("state", "exit", "signal", "cause", "bytes", "files")],
                         ["!", 3, 0, "", 8, ["2.out", "2.err"]])
        self.assertGreaterEqual(end["time"], start["time"])

    def test_time_cpu_and_memory_are_those_of_all_that_the_job_waited_for(self) -> None:
        ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10     # no less is the runner's own
        size = (150 << 20) + ours
        self.write(f"import time\nmemory = bytearray({size})\nwhile time.process_time() < 0.3: pass\n",
                   "work.py")
        self.jobs("python3 work.py", "sleep 0.3")
        self.run_jobs("--outdir", "out")
        busy, idle = self.ends()[1], self.ends()[2]
        self.assertGreater(busy["memory"], size)
        self.assertIsNone(idle["memory"], "it had less than the runner, of whom it was born")
        self.assertIsNone(busy["memory_below"])
        self.assertIn(idle["memory_below"], range(1 << 20, size << 4))
        self.assertGreaterEqual(busy["cpu"], 0.3)
        self.assertGreaterEqual(idle["seconds"], 0.3)
        self.assertLess(idle["cpu"], idle["seconds"])

    def test_each_way_to_end_has_its_state_exit_status_signal_and_cause(self) -> None:
        self.write(". true\n. exit 7\n. kill -9 $$\n. echo a\0b\n#RUN timeout=0.3\n. sleep 600\n")
        self.run_jobs("--outdir", "out")
        ends = self.ends()
        self.assertEqual(
            {line: (end["state"], end["exit"], end["signal"], end["cause"]) for line, end in ends.items()},
            {1: ("d", 0, 0, ""), 2: ("!", 7, 0, ""), 3: ("!", -1, 9, ""), 4: ("e", -1, 0, ""),
             6: ("!", -1, 15, "timeout")})
        self.assertEqual((ends[4]["pid"], ends[4]["why"]), (0, "the command contains a NUL byte"))
        self.assertNotIn("why", ends[6])

    def test_what_a_runner_ends_as_it_is_told_to_leave_was_stopped(self) -> None:
        self.jobs(SLEEPING)
        runner = self.start_jobs("--outdir", "out")
        self.stop(runner)
        self.assertEqual([(end["state"], end["cause"]) for end in self.entries("end")], [("e", "stopped")])

    def test_the_start_of_a_run_that_ends_before_the_next_write_is_left_out(self) -> None:
        self.jobs(*["true"] * 20)
        slow = ("import runmaker4\nrunmaker4.OutDir.on_tick = lambda sink: None\n"
                "runmaker4.Journal.END_GATHER_SECONDS = runmaker4.Journal.GATHER_SECONDS = 60.0\n")
        self.finish(self.start_patched(slow, "--outdir", "out", "runs.txt"))
        self.assertWhole()
        self.assertEqual([len(self.entries(event)) for event in ("start", "end")], [1, 20])

    def test_each_event_has_its_line_whatever_a_command_or_its_output_contains(self) -> None:
        texts = '}, {"time": ', '"}, {"time": 1.5', '\\"}, {"time": 1.5, "event": "end"}, {', "}, {"
        commands = [f"printf %s '{text}' # {text}" for text in texts]
        self.jobs(*commands)
        slow = "import runmaker4\nrunmaker4.Journal.END_GATHER_SECONDS = 60.0\n"      # one append for most
        self.finish(self.start_patched(slow, "runs.txt"))
        lines = [json.loads(line) for line in self.read("runs.txt.out/journal").splitlines()]
        ends = [line for line in lines if line["event"] == "end"]
        self.assertEqual([(end["line"], end["command"], end["stdout"]) for end in ends],
                         [(number, *both) for number, both in enumerate(zip(commands, texts), 1)])

    def test_a_start_is_there_after_a_second_while_the_job_runs_and_names_its_files(self) -> None:
        self.jobs("true", f"echo one; echo two >&2; {SLEEPING}")
        runner = self.start_jobs("--outdir", "out", up=[2])
        both = ["2.out", "2.err"]
        wait_until(lambda: any(entry.get("files") == both for entry in self.entries("start")),
                   what="the start names both")
        self.assertEqual([entry["line"] for entry in self.entries("start")][:2], [1, 2])
        self.assertEqual(len({entry["run"] for entry in self.entries()}), 2)
        self.stop(runner, signal.SIGINT)

    def test_the_end_of_a_try_is_above_the_start_of_the_next_one(self) -> None:
        """So the last run of a line in the journal is its last run, also when both are written at once."""
        self.jobs(f"mkdir tried && exit 3; {WAITING}")
        slow = "import runmaker4\nrunmaker4.Journal.END_GATHER_SECONDS = 60.0\n"
        runner = self.start_patched(slow, "--outdir", "out", "--retries", "1", "runs.txt")
        self.wait_up(1, runner=runner)
        wait_until(lambda: len(self.entries("start")) == 2, what="a start of each try")
        self.assertEqual([entry["event"] for entry in self.entries()], ["start", "end", "start"])
        self.open_gate()
        self.assertEnded(self.finish(runner), 0, "d")

    def test_a_cut_last_line_stays_alone(self) -> None:
        self.jobs("true")
        (self.dir / "out").mkdir()
        self.write('{"time": 1, "eve', "out/journal")
        self.assertEqual(self.run_jobs("--outdir", "out").code, 0)
        cut, *lines = self.read("out/journal").splitlines()
        self.assertEqual(cut, b'{"time": 1, "eve')
        self.assertEqual([json.loads(line)["event"] for line in lines], ["start", "end"])


class Trouble(JournalCase):
    """A journal that cannot be written is said, and no job suffers."""

    def test_what_is_no_file_is_refused_before_anything_runs(self) -> None:
        self.jobs("true")
        (self.dir / "out" / "journal").mkdir(parents=True)
        self.assertRefused(self.run_jobs("--outdir", "out"), "out/journal", "directory")
        self.assertEqual(self.states(), ".")

    def test_a_disk_that_is_full_only_once_output_is_synced_is_said_on_a_network_file_system(self) -> None:
        self.jobs("echo lost")
        full = ("import errno, os, runmaker4\n"
                "runmaker4.find_mount = lambda path: runmaker4.Mount('fuse.glusterfs', frozenset())\n"
                "def fsync(fd, real=os.fsync):\n"
                "    if os.readlink(f'/proc/self/fd/{fd}').endswith('.out'):\n"
                "        raise OSError(errno.ENOSPC, 'No space left on device')\n"
                "    real(fd)\n"
                "os.fsync = fsync")
        ended = self.finish(self.start_patched(full, "--single-host", "--outdir", "out", "runs.txt"))
        self.assertEqual((self.states(), ended.code), ("d", 1))
        self.assertComplains(ended, "1.out: no space left", "output is incomplete")

    def test_output_on_a_full_disk_is_named_at_the_end_in_the_journal_and_with_the_failures(self) -> None:
        self.jobs("echo short", "seq 1000", "seq 1000; exit 1")
        full = ("import errno, runmaker4\n"
                "def write_all(fd, data, real=runmaker4.write_all):\n"
                "    if data[:2] == b'1\\n': raise OSError(errno.ENOSPC, 'No space left on device')\n"
                "    real(fd, data)\n"
                "runmaker4.write_all = write_all")
        ended = self.finish(self.start_patched(full, "--outdir", "out", "runs.txt"))
        self.assertEqual((self.states(), ended.code), ("dd!", 1))
        self.assertIn(b"; the output of 2 jobs is incomplete (lines 2, 3)\nnext: ", ended.err)
        self.assertEqual([end["line"] for end in self.entries("end") if end.get("incomplete")], [2, 3])
        told = self.run_script(RUNWAIT, "--failed", "--outdir", "out", "runs.txt").out
        self.assertRegex(told, rb"line 2: exit 0 on .*\n    seq 1000\n.* \(some could not be written\)")
        self.write("", "out/3.out")                     # nothing could be written
        self.run_script(RUNWAIT, "--report", "page.html", "--outdir", "out", "runs.txt")
        self.assertIn(b">exit 1<", self.read("page.html"))
        self.run_jobs("-r", "--outdir", "out")
        told = self.run_script(RUNWAIT, "--failed", "--outdir", "out", "runs.txt").out
        self.assertEqual(told.count(b"(some could not"), 1, "line 3 was run again")


class Medians(Case):
    """A timeout in percent is of the runs of a program that ended well: here, of what a journal has."""
    TEN = tuple(float(seconds) for seconds in range(1, 11))

    def runs(self, command: str, times: Iterable[float] = TEN, **more: Any) -> bytes:
        return b"".join(end(number, number, command, took=took, **more) for number, took in enumerate(times))

    def median(self, command: bytes, *lines: bytes) -> float:
        """What a journal with these lines answers, which looks at its last 2 KB first."""
        with tempfile.TemporaryDirectory() as folder:
            executor: Any = SimpleNamespace(pool=None, say=self.fail)
            journal = runmaker4.Journal(folder, executor, self.fail, self.fail, True)
            journal.MEDIAN_BYTES = 1 << 11
            with open(journal._file.path, "wb") as file:
                file.writelines(lines)
            self.addCleanup(os.close, journal._file.fd)
            return journal.median(command)

    def test_of_an_even_number_of_runs_it_is_the_longer_of_the_two_in_the_middle(self) -> None:
        backwards = self.runs("work a", reversed(self.TEN))
        self.assertEqual(self.median(b"work b", backwards), 6.0)
        self.assertEqual(self.median(b"work b", backwards, self.runs("work", [100.0])), 6.0)
        self.assertEqual(self.median(b"work b", backwards, self.runs("work", [100.0] * 2)), 7.0)

    def test_nine_runs_are_too_few(self) -> None:
        nine = self.runs("work", self.TEN[1:])
        self.assertEqual(self.median(b"work"), 0.0)
        self.assertEqual(self.median(b"work", nine), 0.0)
        for change in dict(state="!"), dict(state="c"), dict(cause="timeout"), dict(exit=1), dict(signal=9):
            self.assertEqual(self.median(b"work", nine, self.runs("work", [1.0], **change)), 0.0, change)
        self.assertEqual(self.median(b"work", nine, self.runs("work", [1.0])), 6.0)

    def test_only_the_program_itself_counts_whatever_numbers_it_has(self) -> None:
        for other in "works a", "wor k", "/bin/work a", "work-it", "a work", '"command": "work "', "Work":
            with self.subTest(other=other):
                self.assertEqual(self.median(b"work", self.runs(other)), 0.0)
                self.assertEqual(self.median(other.encode(), self.runs("work")), 0.0)
        for other in "work", "  work", "work7 a", "work\u00e912.5 a":
            with self.subTest(other=other):
                command = b"work" if other.strip() == "work" else b"work3 --fast"
                self.assertEqual(self.median(command, self.runs(other)), 6.0)

    def test_a_torn_line_does_not_count_wherever_it_is_torn(self) -> None:
        nine, tenth = self.runs("work", self.TEN[1:]), self.runs("work", [1.25])
        whole = tenth.index(b'"seconds": 1.25') + len(b'"seconds": 1.25')
        for length in range(whole + 1):
            for rest in b"", b"\n", b"\n" + self.runs("other"):
                self.assertEqual(self.median(b"work", nine, tenth[:length], rest), 0.0, tenth[:length])
        for strange in b"...", b"1.2.5", b"", b"-1.25", b'"1.25"', b"NaN":
            garbled = tenth.replace(b"1.25,", strange + b",")
            self.assertEqual(self.median(b"work", nine, garbled), 0.0, strange)

    def test_it_goes_back_as_far_as_necessary(self) -> None:
        others = self.runs("other", [1.0] * 500)
        self.assertGreater(len(others), 50 << 11)
        self.assertEqual(self.median(b"work", self.runs("work"), others), 6.0)
        self.assertEqual(self.median(b"work", self.runs("work"), others, self.runs("work", [20.0])), 6.0)
        self.assertEqual(self.median(b"work", self.runs("work"), self.runs("other", [1.0] * 3000)), 0.0)


class Clients(JournalCase):
    """The server writes for its clients."""

    def test_a_run_of_a_client_is_told_as_one_of_a_runner(self) -> None:
        self.jobs("echo one; exit 3", "true")
        server = self.start_server("--outdir", "out")
        self.run_client(server, "--name", "bob")
        wait_until(lambda: len(self.entries("end")) == 2, what="what has gathered is written")
        self.assertWhole()
        end = self.ends()[1]
        names = "host", "slot", "state", "exit", "command", "bytes", "files"
        self.assertEqual([end[name] for name in names],
                         ["bob", "1", "!", 3, "echo one; exit 3", 4, ["1.out"]])
        self.assertGreaterEqual(end["cpu"], 0)

    def test_the_server_records_the_fields_of_a_runner_in_their_order(self) -> None:
        at_once = "import runmaker4\nrunmaker4.Journal.GATHER_SECONDS = 0.0\n"     # no start is left out
        fields: dict[str, dict[tuple[str, int], list[str]]] = {}
        for writer in "runner", "server":
            self.write(". true\n. echo one; echo two >&2; exit 3\n. kill -9 $$\n. echo a\0b\n"
                       "#RUN memory=1M\n. echo\n#RUN timeout=0.3\n. sleep 600\n")
            if writer == "runner":
                self.finish(self.start_patched(at_once, "--outdir", "out", "runs.txt"))
            else:
                self.run_client(self.start_server("--outdir", "out", patch=at_once))
            wait_until(lambda: len(self.entries("end")) == 6, what="all ends are written")
            self.assertRegex(self.read("out/journal"), runmaker4.Journal.GOOD_END % b"true")
            # of a run with output the last start has its files
            fields[writer] = {(entry["event"], entry["line"]): [*entry] for entry in self.entries()}
            ends = [line for line in self.read("out/journal").splitlines() if b'"event": "end"' in line]
            # others are read, too, but slowly
            self.assertEqual([line for line in ends if not runwait4.PLAIN_END.fullmatch(line.decode())], [])
            (self.dir / "out").rename(self.dir / f"out.{writer}")
        self.assertEqual(fields["server"], fields["runner"])
        self.assertEqual({name for names in fields["server"].values() for name in names},
                         END | {"promised", "why"})
        self.assertEqual([line for event, line in fields["server"] if event == "start"], [1, 2, 3, 6, 8])

    def test_a_run_of_a_client_that_does_not_come_back_is_lost(self) -> None:
        self.jobs(f"echo begun; {SLEEPING}")
        server = self.start_server("--outdir", "out", "--grace", "0.5")
        client = self.start_client(server, up=[1])
        wait_until(lambda: b'"start"' in self.read("out/journal"), what="the server has written its start")
        self.wait_file("out/1.out")
        client.kill()
        self.wait_states("e")
        wait_until(lambda: self.entries("end"), what="the server has written its end")
        end, = self.entries("end")
        found = end["state"], end["cause"], end["cpu"], end["files"]
        self.assertEqual(found, ("e", "lost", None, ["1.out"]))
