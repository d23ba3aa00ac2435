"""AnywhereCase: scripts that work, however they are installed and started."""
from typing import Callable

from tests.support.case import Case
from tests.support.processes import Ended
from tests.support.scripts import RUNMAKER, RUNSET, RUNWAIT


class AnywhereCase(Case):

    def assertWork(self, call: Callable[..., Ended]) -> None:
        """The scripts, as call(script, arguments...) starts them, add, run, list and count jobs."""
        def output(script: str, *args: str) -> bytes:
            ended = call(script, *args)
            self.assertEqual(ended.code, 0, ended.err)
            return ended.out
        for script in (RUNMAKER, RUNSET, RUNWAIT):
            self.assertIn(script.encode(), output(script, "--help"))
        output(RUNSET, "runs.txt", "--add", "echo a >>marks")
        output(RUNMAKER, "runs.txt")
        self.assertEqual(self.read("marks"), b"a\n")
        self.assertEqual(output(RUNSET, "--list", "runs.txt"), b"1 d echo a >>marks\n")
        self.assertRegex(output(RUNWAIT, "--status", "runs.txt"), rb"^1 job: .*1 done")
