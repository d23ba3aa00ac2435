"""RunCase: a test of what becomes of jobs, their file and their processes; jobs that it can wait for."""
import re
import subprocess
from collections.abc import Sequence
from typing import Any, Optional

from tests.support.case import GATE, Case
from tests.support.processes import MARK, Ended, Process, marked, wait_until
from tests.support.scripts import FULL, PYTHON, ROOT, RUNMAKER, program_of
from tests.support.values import as_bytes

UP = ": > up.$JOB_ID"               # a job says that it runs
WAITING = f"{UP}; {GATE}"           # a job says so, and runs until open_gate() is called
SLEEPING = f"{UP}; sleep 600"       # a job says so, and must be ended



def hastened(local: float, network: float = 1.0) -> str:
    """Statements that multiply the seconds of a local job file, and of one on a network, but for `poll`."""
    return f"""
import runmaker4
for name, number in vars(runmaker4.JobReader).items():
    if isinstance(number, runmaker4.Seconds) and name != "poll":
        number.seconds = number.seconds[0] * {local}, number.seconds[1] * {network}
"""


# From look to look at a job file it takes 0.2 s, not 1 s
INTERVAL = 1.0 if FULL else 0.2
HASTY = hastened(INTERVAL)
# KILL comes 0.5 s after TERM, not 10 s; a line is gone at the first look instead of the third
QUICK = f"""{HASTY}
runmaker4.GRACE, runmaker4.JobReader.MAX_LOOKS = 0.5, 1
runmaker4.JobReader.max_absence = runmaker4.Seconds(0.0, 0.0)
"""
# A byte is added to NAME.looks, in the directory of the process, when a runner or server has found no job to
# claim in the file NAME, or a view has read it
LOOKS = """
import os, runmaker4
claim, snapshot = runmaker4.Cursor.claim, runmaker4.JobReader.snapshot
def note_look(file):
    with open(os.path.basename(file.path) + ".looks", "ab") as looks:
        looks.write(b"x")
def claim_and_note(cursor, *args, **settings):
    found = claim(cursor, *args, **settings)
    if isinstance(found, runmaker4.NoJob):
        note_look(cursor.file)
    return found
def read_and_note(reader):
    found = snapshot(reader)
    note_look(reader)
    return found
runmaker4.Cursor.claim, runmaker4.JobReader.snapshot = claim_and_note, read_and_note
"""


def without_states(text: bytes) -> bytes:
    """The bytes of a job file with every state blotted out."""
    return re.sub(rb"^[^#/ \t\r\n](?=[ \t])", b"?", text, flags=re.MULTILINE)


class RunCase(Case):
    """A test of what becomes of jobs, of their file and of their processes."""
    before = b""                # runs.txt as it was made, and appended to

    def jobs(self, *commands: str) -> None:
        """Make runs.txt of these commands, all new."""
        self.before = self.write("".join(f". {command}\n" for command in commands)).read_bytes()

    def append(self, *lines: str) -> None:
        """Append lines in one write."""
        text = "".join(f"{line}\n" for line in lines).encode()
        with open(self.dir / "runs.txt", "ab", buffering=0) as file:
            file.write(text)
        self.before += text

    def run_jobs(self, *options: object, **settings: Any) -> Ended:
        """Run the jobs of runs.txt to the end of the runner."""
        return self.run_script(RUNMAKER, *options, "runs.txt", **settings)

    def start_jobs(self, *options: object, up: Sequence[int] = (1,), quick: bool = False,
                   **settings: Any) -> subprocess.Popen[bytes]:
        """Start a runner on runs.txt, and return it when the jobs of these lines have made their up.LINE.

        quick: with less patience (see QUICK), unless all is to be tested in full size.
        """
        if quick:
            runner = self.start_hasty(*options, "runs.txt", patience=QUICK, **settings)
        else:
            runner = self.start(RUNMAKER, *options, "runs.txt", **settings)
        self.wait_up(*up, runner=runner)
        return runner

    def start_patched(self, statements: str, *args: object, script: str = RUNMAKER,
                      **settings: Any) -> subprocess.Popen[bytes]:
        """Start a script in a Python that has run these statements, which import runmaker4, before."""
        program = program_of(script, ROOT / script, statements)
        return self.start(PYTHON, "-c", program, *args, **settings)

    def start_hasty(self, *args: object, patience: str = HASTY, **settings: Any) -> subprocess.Popen[bytes]:
        """Start runmaker4.py with less patience, unless all is to be tested in full size."""
        if FULL:
            return self.start(RUNMAKER, *args, **settings)
        return self.start_patched(patience, *args, **settings)

    def start_looking(self, *args: object, **settings: Any) -> subprocess.Popen[bytes]:
        """Start a runner as start_hasty() does, for wait_looked()."""
        return self.start_patched(LOOKS if FULL else HASTY + LOOKS, *args, **settings)

    def wait_looked(self, name: str = "runs.txt") -> None:
        """Wait for the second look from now on of who runs with LOOKS: it saw the file as it is now."""
        looks = self.dir / f"{name}.looks"
        looks.touch()
        before = looks.stat().st_size
        wait_until(lambda: looks.stat().st_size > before + 1, what=f"{name} is looked at")

    def wait_up(self, *lines: int, runner: Optional[Process] = None) -> None:
        """Wait until the jobs of these lines run; fail at once when this runner is gone."""
        def is_up(name: str) -> bool:
            if runner is not None and runner.poll() is not None and not self.exists(name):
                self.fail(f"the runner ended before {name} was there: {runner.communicate()}")
            return self.exists(name)

        for line in lines:
            wait_until(lambda: is_up(f"up.{line}"), what=f"the job of line {line} runs")

    def exists(self, name: str) -> bool:
        return (self.dir / name).exists()

    def assertNobodyLeft(self) -> None:
        """No process of this test lives on."""
        wait_until(lambda: not marked(f"{MARK}={self.mark}"), what="no process is left")

    def assertOnlyStatesChanged(self) -> None:
        """Nothing but state bytes differs from what jobs() wrote."""
        self.assertEqual(without_states(self.read()), without_states(self.before))

    def assertEnded(self, ended: Ended, code: int, states: str) -> None:
        """The exit status and the states left; nothing else changed in the file, and no process lives on."""
        self.assertEqual((ended.code, self.states()), (code, states), ended.err.decode(errors="replace"))
        self.assertOnlyStatesChanged()
        self.assertNobodyLeft()

    def assertComplains(self, ended: Ended, *words: str) -> None:
        """One line on stderr has all these words (in any case); the closing line does not count."""
        lines = ended.err.splitlines()[:-1]
        self.assertTrue(any(all(as_bytes(word).lower() in line.lower() for word in words) for line in lines),
                        f"no line has {words}: {ended.err!r}")
