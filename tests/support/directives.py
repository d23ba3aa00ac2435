"""DirectiveCase: job files with #RUN lines, what runners say of them, and when each job ran."""
import os
import re
import subprocess
import unittest
from collections.abc import Sequence
from typing import Any

from tests.support import marks
from tests.support.processes import wait_until
from tests.support.runs import RunCase, without_states
from tests.support.scripts import FULL, PYTHON, RUNMAKER
from tests.support.values import as_bytes

RAN = "echo $JOB_ID >>ran"                              # a job that notes its line
NOTED = "echo $JOB_ID >>$NOTES"                         # so does this one, for one runner of several
spared = unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: others go most of this way")
LAST = "until [ -e last ]; do sleep 0.02; done"         # a job that runs until the file `last` is there


class DirectiveCase(RunCase):
    """Steps that the tests below share.  What runners say on stderr goes to one file."""

    def lines(self, *lines: str, name: str = "runs.txt") -> None:
        self.before = self.write("".join(f"{line}\n" for line in lines), name).read_bytes()

    def start(self, script: str, *args: object, **settings: Any) -> subprocess.Popen[bytes]:
        if script in (RUNMAKER, PYTHON) and "stderr" not in settings:
            with open(self.dir / "told", "ab") as told:
                return super().start(script, *args, stderr=told, **settings)
        return super().start(script, *args, **settings)

    def ran(self, name: str = "ran") -> list[int]:
        """The lines of the jobs that noted their run, in this order."""
        return [int(line) for line in self.read(name).split()] if self.exists(name) else []

    # -- what they say --------------------------------------------------------------------------------------

    def told(self) -> bytes:
        """What all of them have said so far."""
        return self.read("told") if self.exists("told") else b""

    def times_told(self, *words: str) -> int:
        """How many whole lines have all these words, in any case; 'line 3' is not in 'line 31'."""
        patterns = [re.compile(re.escape(as_bytes(word)) + rb"(?!\w)", re.IGNORECASE) for word in words]
        lines = self.told().split(b"\n")[:-1]
        return sum(all(pattern.search(line) for pattern in patterns) for line in lines)

    def wait_told(self, *words: str) -> None:
        """Wait until a line has all these words."""
        wait_until(lambda: self.times_told(*words), what=f"somebody says {words}")

    def assertTold(self, *words: str, times: int = 1) -> None:
        """So many lines have all these words."""
        self.assertEqual(self.times_told(*words), times, f"{words}: {self.told().decode(errors='replace')}")

    def assertLeft(self, runner: subprocess.Popen[bytes], code: int, states: str) -> None:
        """The runner ends, with this status, and leaves these states; only they changed in the file."""
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states()), (code, states), self.told().decode(errors="replace"))
        self.assertOnlyStatesChanged()

    def check_runs(self, *cases: tuple[str, str, int, str, list[int]]) -> None:
        """Run these texts at once, as alice: options, exit status, states, and what NOTED its run."""
        runners = []
        for number, (text, options, *_) in enumerate(cases):
            self.write(text, f"{number}.txt")
            runners.append(self.start(RUNMAKER, "--name=alice", *options.split(), f"{number}.txt",
                                      env={"NOTES": f"{number}.ran"}))
        for number, (text, options, code, states, noted) in enumerate(cases):
            with self.subTest(text=text, options=options):
                self.assertEqual(self.finish(runners[number]).code, code)
                self.assertEqual((self.states(f"{number}.txt"), self.ran(f"{number}.ran")), (states, noted))
                self.assertEqual(without_states(self.read(f"{number}.txt")), without_states(text.encode()))
        self.assertFalse(self.exists("never"))

    # -- changes of the file --------------------------------------------------------------------------------

    def change(self, old: str, new: str) -> None:
        """Write other bytes, as many, in place."""
        self.assertEqual((len(old), self.before.count(old.encode())), (len(new), 1))
        at = self.before.index(old.encode())
        with open(self.dir / "runs.txt", "r+b", buffering=0) as file:
            file.seek(at)
            file.write(new.encode())
        self.before = self.before.replace(old.encode(), new.encode())

    def edit(self, old: str, new: str) -> None:
        """Change lines as most editors do: a new file takes the place of the old one."""
        text = self.read().replace(old.encode(), new.encode())
        self.before = self.before.replace(old.encode(), new.encode())
        os.replace(self.write(text, "runs.txt.new"), self.dir / "runs.txt")

    # -- jobs that leave marks ------------------------------------------------------------------------------

    def sections(self, *sections: Sequence[float]) -> None:
        """Make runs.txt of jobs that take so many seconds, with barriers between the sections."""
        numbers = iter(range(1, 1_000_000))
        self.section: dict[int, int] = {}               # job -> section
        lines: list[str] = []
        for section, seconds in enumerate(sections):
            lines += ["#RUN barrier"] if section else []
            for pause in seconds:
                number = next(numbers)
                self.section[number] = section
                lines.append(f". {marks.command(number, pause)}")
        self.lines(*lines)
        self.write("", "marks")

    def assertBarriersHeld(self, runners: set[int]) -> None:
        """Each job ran once, and no job began before all above its barrier had ended."""
        self.assertEqual(marks.problems(self.read("marks"), len(self.section), runners), [])
        seen = [self.section[int(line.split()[1])] for line in self.read("marks").decode().splitlines()]
        self.assertEqual(len(seen), 2 * len(self.section))
        self.assertEqual(seen, sorted(seen))
