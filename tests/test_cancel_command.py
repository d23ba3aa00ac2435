"""runset4.py --cancel: x over the state, and a wait for the lock; each line that cannot be stopped is named.
"""
import threading
import time
import unittest

import runmaker4
from tests.support import GATE, RUNSET, SLEEPING, RunCase, alive, wait_until


class Cancel(RunCase):
    """A stand-in holds the locks, or a real runner."""

    def hold(self, number: int, seconds: float = 0.3) -> None:
        """Hold a line as a runner does; once an x stands there, let go."""
        fd = self.hold_line(number)

        def runner() -> None:
            end = time.monotonic() + 10
            while self.states()[number - 1] != "x" and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(seconds)
            runmaker4.unlock(fd, 0, 0)
        thread = threading.Thread(target=runner)
        thread.start()
        self.addCleanup(thread.join)

    def cancel(self, *args: object, code: int = 0) -> bytes:
        ended = self.run_script(RUNSET, "-q", "--cancel", "runs.txt", *args)
        self.assertEqual((ended.code, ended.out), (code, b""), ended.err)
        return ended.err

    def test_a_running_line_and_a_new_one_are_stopped(self) -> None:
        self.write("r echo a\n. echo b\nd echo c\n")
        self.hold(1)
        self.assertEqual(self.cancel("1-2"), b"")
        self.assertEqual(self.states(), "xxd")

    def test_what_does_not_run_is_named_each(self) -> None:
        self.write("d echo a\n# no job\nr echo b\n")
        said = self.cancel(1, 2, 3, 9, code=1)
        for words in (b"line 1: does not run: its state is d", b"line 2: is no job", b"line 9: is no job",
                      b"line 3: is r, but nobody runs it"):
            self.assertIn(words, said)
        self.assertEqual(self.states(), "dx")

    def test_a_range_may_reach_further_than_any_file(self) -> None:
        self.write(". echo a\n. echo b\n")
        self.assertEqual(self.cancel("2-99999999999999999999"), b"")
        self.assertEqual(self.states(), ".x")
        self.assertIn(b"line 99999999999999999999: is no job", self.cancel("99999999999999999999", code=1))

    def test_an_equal_line_that_is_an_orphan_is_not_taken_for_the_one_that_is_cancelled(self) -> None:
        job = f"echo $$ >>pids; {SLEEPING}"
        self.write(f"r {job}\n. {job}\n")
        hasty = (
            "import runmaker4\n"
            "plain = runmaker4.Cursor._consider\n"
            "runmaker4.Cursor._consider = lambda self, scan, line: "
            "plain(self, scan, line) if line.state != b'r' else None"
        )  # it meets no orphan itself
        runner = self.start_patched(hasty, "-q", "runs.txt")
        pid = int(self.wait_file("pids"))
        said = self.cancel(2)
        self.assertIn(b"line 1: is r, but nobody runs it (its runner or host died); it is e now\n", said)
        wait_until(lambda: not alive(pid), what="the job is ended")
        self.finish(runner)
        self.assertEqual(self.states(), "ex")

    def test_a_lock_that_stays_is_named(self) -> None:
        self.write("r echo a\n")
        self.hold(1, seconds=1.5)
        hasty = "import runset4\nrunset4.STOPPING = 0.3"
        ended = self.finish(self.start_patched(hasty, "-q", "--cancel", "runs.txt", 1, script=RUNSET))
        self.assertEqual(ended.code, 1)
        self.assertIn(b"line 1: is x, but still runs", ended.err)

    def test_a_real_job_is_ended_and_others_go_on(self) -> None:
        self.jobs(SLEEPING, GATE)
        runner = self.start_jobs("-j2")
        self.cancel(1)
        self.open_gate()
        self.assertEqual(self.finish(runner).code, 0)
        self.assertEqual(self.states(), "xd")
        self.assertNobodyLeft()


if __name__ == "__main__":
    unittest.main()
