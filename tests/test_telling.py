"""Promise: runwait4.py tells how it is going, what failed and why, what runs cost, from the file and its journal."""
import json
import os
import time
import unittest
from typing import Any, Dict, List

from tests.journal import end, pair, start
from tests.support import GATE, RUNWAIT, Ended, wait_until
from tests.test_journal_reading import JournalCase
from tests.test_runwait import Terminal


class TellingCase(JournalCase):

    def runwait(self, *args: object) -> Ended:
        return self.run_script(RUNWAIT, *args)

    def told(self, *args: object, err: str = "") -> str:
        """What it prints; it must be content, and say this."""
        ended = self.runwait(*args)
        self.assertEqual(ended.code, 0, ended.err)
        self.assertRegex(ended.err.decode(), f"^{err}$")
        return ended.out.decode("utf-8", "surrogateescape")

    def at_terminal(self, columns: int, *args: object) -> List[str]:
        """The lines that it prints on a terminal."""
        terminal = Terminal(columns)
        self.addCleanup(terminal.close)
        process = self.start(RUNWAIT, *args, stdout=terminal.slave)
        wait_until(lambda: process.poll() is not None)
        return terminal.look()


class Status(TellingCase):

    def running(self, *more: str) -> None:
        """A real runner runs line 1 of runs.txt until the gate opens; more lines follow."""
        self.runner = self.start_to_gate("".join(f"{line}\n" for line in (f". {GATE}", *more)))
        self.addCleanup(self.open_gate)

    def status(self, *args: object) -> Dict[str, Any]:
        return json.loads(self.told("--status", "--json", *args, "runs.txt"))

    def test_without_an_outdir_what_the_file_says(self) -> None:
        self.running(". second", "d third")
        self.assertEqual(self.told("--status", "runs.txt"),
                         "3 jobs: 1 new, 1 running, 1 done, 0 failed, 0 error, 0 held\n"
                         f"line  command\n   1  {GATE}\n")

    def test_where_and_since_when_each_line_runs(self) -> None:
        began = time.time() - 100
        self.running(". second", "d third")
        self.journal(start("old", 1, GATE, began - 500, slot="x"), *pair("b", 1, GATE, began - 50),
                     start("a", 1, GATE, began, slot="gpu 2"), start("c", 7, GATE, began + 1))
        since = time.strftime("%H:%M:%S", time.localtime(began))
        shown = self.told("--status", "--outdir", "out", "runs.txt")
        if since < "23:58":
            self.assertIn(f"line  host   slot   since     command\n   1  node1  gpu 2  {since}  {GATE}\n", shown)
        (job,) = self.status("--outdir", "out")["jobs"]
        self.assertAlmostEqual(job.pop("start"), began, 2)
        self.assertEqual(job, {"line": 1, "command": GATE, "host": "node1", "slot": "gpu 2", "pid": 4712})

    def test_jobs_per_hour_and_the_time_left_go_by_the_recent_past(self) -> None:
        self.running(*[f". {number}" for number in range(9)])
        now = time.time()
        self.journal(*sum((pair(number, 5, "d", now - 9000 + number, took=1) for number in range(100)), []),
                     *sum((pair(f"n{number}", 5, "d", now - 241 + 10 * number, took=1) for number in range(24)), []),
                     start("a", 1, GATE, now), end("put back", 5, "d", now, state="."))
        found = self.status("--outdir", "out")
        self.assertAlmostEqual(found["per_hour"], 23 / 240 * 3600, delta=20)
        self.assertAlmostEqual(found["seconds_left"], 10 / found["per_hour"] * 3600, delta=1)
        self.assertRegex(self.told("--status", "--outdir", "out", "runs.txt"),
                         r"\n3\d\d jobs/h lately, 1m \d\ds left\n")

    def test_orphans_are_told_as_such(self) -> None:
        self.write("r lost\nd b\n")
        self.journal(start("a", 1, "lost"), *pair("b", 2, "b"))
        self.assertRegex(self.told("--status", "--outdir", "out", "runs.txt"),
                         r"1 error, .*\n(.*\n)?line .*\n   1  node1  1     ... \d\d \d\d:\d\d  \(orphan\) lost\n$")
        found = self.status("--outdir", "out")
        self.assertEqual((found["jobs"], [job["line"] for job in found["orphans"]]), ([], [1]))

    def test_it_fits_a_terminal_and_sends_it_no_control_characters(self) -> None:
        command = f"{GATE}; : '\x1b[31m\x07{'long' * 40}'"
        self.start_to_gate(f". {command}\n")
        self.addCleanup(self.open_gate)
        self.journal(start("a", 1, command, host="\x1b" + "host" * 30, slot="\x07"))
        for columns in (80, 40):
            lines = self.at_terminal(columns, "--status", "--outdir", "out", "runs.txt")[-2:]
            self.assertLess(max(map(len, lines)), columns)
            self.assertIn("...", lines[-1])

    def test_new_jobs_that_nobody_runs(self) -> None:
        message = "2 new, and nobody runs them (start runmaker4.py)"
        path = self.write(". a\n. b\nd c\n")
        self.assertNotIn(message, self.told("--status", "runs.txt"))
        os.utime(path, (time.time() - 31,) * 2)
        self.assertIn(f"\n{message}\n", self.told("--status", "runs.txt"))
        self.assertEqual(self.status()["trouble"], message)
        for columns in (0, 80):
            terminal = Terminal(80)
            self.addCleanup(terminal.close)
            waiter = self.start(RUNWAIT, "--progress", "runs.txt", stderr=terminal.slave,
                                **({"stdout": terminal.slave} if columns else {}))
            wait_until(lambda: f"runwait4.py: runs.txt: {message}" in terminal.look(), what=message)
            waiter.terminate()
            waiter.wait()
        self.write(". a\n")
        os.utime(path, (time.time() - 31,) * 2)
        self.running()
        os.utime(path, (time.time() - 31,) * 2)
        self.assertEqual(self.status()["trouble"], "")

    def test_a_failed_barrier_check_is_what_keeps_them(self) -> None:
        path = self.write("! a\n#RUN barrier check\n. b\n")
        os.utime(path, (time.time() - 31,) * 2)
        self.assertIn("line 1", self.status()["trouble"])

    def test_an_outdir_that_does_not_help(self) -> None:
        self.write("d a\n")
        (self.dir / "old").mkdir()
        self.assertRefused(self.runwait("--status", "--outdir", "old", "runs.txt"), "old: has no journal")
        self.assertRefused(self.runwait("--status", "--outdir", "no", "runs.txt"), "no: no such directory")
        self.assertRefused(self.runwait("--outdir", "no", "runs.txt"), "--outdir goes with")
        self.journal(*pair(1, 1, "other"))
        self.told("--status", "--outdir", "out", "runs.txt", err=r".*out/journal: .* of another job file\?\)\n")
        self.journal(b"foreign\n", *pair(1, 1, "a"))
        self.told("--status", "--outdir", "out", "runs.txt", err=r".*out/journal: 1 line left out: .* \(line 1\)\n")


if __name__ == "__main__":
    unittest.main()
