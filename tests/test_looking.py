"""Promise: who only looks at a job file is not disturbed by edits, and leaves the terminal as it was."""
import os
import termios

from tests.support import RUNSET, RUNWAIT, Case, unread, wait_until
from tests.values import present

JOBS = 30_000


class Looking(Case):
    """The file is edited while a script is in the middle of it, or the script is killed."""

    def test_a_list_that_is_paged_slowly_comes_to_its_end(self) -> None:
        jobs = (f"d true\nd echo done\n# comment\n. echo job {number}\n" for number in range(JOBS))
        self.write("".join(jobs))
        lister = self.start(RUNSET, "--list", "--state=.", "runs.txt")
        wait_until(lambda: unread(present(lister.stdout)) > 32_000, what="the pipe is full")
        text = b"# a note\n" + self.read()
        with open(self.dir / "runs.txt", "r+b", buffering=0) as file:       # never empty, not for a moment
            file.write(text)
        ended = self.finish(lister)
        self.assertEqual((ended.code, ended.err), (0, b""))
        # the one at the place of the edit may come twice
        self.assertIn(ended.out.count(b"\n"), (JOBS, JOBS + 1))
        self.assertTrue(ended.out.endswith(b" . echo job %d\n" % (JOBS - 1)))

    def test_no_mode_of_the_terminal_is_changed(self) -> None:
        """--progress needs nothing that has to be undone: kill -9 and Ctrl-Z do no harm."""
        self.write("d true\n. true\n")
        master, slave = os.openpty()
        self.addCleanup(os.close, master)
        before = termios.tcgetattr(slave)
        watcher = self.start(RUNWAIT, "--progress", "runs.txt", stdout=slave, env={"TERM": "xterm-256color"})
        shown = b""
        while b"1/2" not in shown and b"1 of   2" not in shown:
            shown += os.read(master, 4096)
        self.assertNotIn(b"\x1b[?", shown)              # such as \x1b[?25l, which hides the cursor
        self.assertEqual(termios.tcgetattr(slave), before)
        watcher.kill()
        os.close(slave)
