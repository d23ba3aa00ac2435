"""Promise: the output that is given for a line is what its last run has printed; a line without is named.

Runners, kills, edits, states set by hand, records in other places: random histories, each made from a seed
(tests/orders/random_output.py).
"""
import math
import unittest
from typing import Callable
from unittest import mock

from tests.orders import random_output
from tests.support.patches import PATIENT
from tests.support.scripts import ALL, FULL

HISTORIES = 1000 if ALL else 50 if FULL else 2


def halves(journal: bytes) -> tuple[bytes, bytes]:
    """What a journal has of each of two runs."""
    at = journal.index(b"\n", journal.index(b'"event": "end"')) + 1
    return journal[:at], journal[at:]


class TheProof(unittest.TestCase):
    """A history finds what must not be: else it proves nothing."""

    def new_history(self, seed: int, defect: str = "") -> random_output.History:
        history = random_output.History(seed, defect)
        history.setUp()
        self.addCleanup(history.doCleanups)
        return history

    def kinds_after(self, change: Callable[[bytes], bytes]) -> set[str]:
        """The faults that are found after two runs of a line, if somebody changes the journal."""
        history = self.new_history(0)
        history.script(random_output.JOB % "*) status=0 pause=0 kind=2;;", "job")
        history.write("", "truth")
        history.write("3.14", "kind.2")
        history.write(". ./job j1\n")
        history.note_places()
        for label in "R1", "R2":
            process = history.start_patched(PATIENT, "-q", "runs.txt", env={"RUNNER": label})
            history.runners[label] = random_output.Runner(process, has_journal=True)
            history.finish(process)
            history.set_file(f"--set={'d' if label == 'R2' else '.'}", "--all")
        history.write(change(history.read("runs.txt.out/journal")), "runs.txt.out/journal")
        history.check_all_views()
        return {fault.partition(":")[0] for fault in history.faults}

    def test_what_must_not_be_is_found_and_nothing_else(self) -> None:
        self.assertEqual(self.kinds_after(lambda journal: journal), set())
        for kind, change in (
            ("the journal lacks a run", lambda journal: halves(journal)[1]),
            ("late, and an older run that ended in the same state is given",
             lambda journal: halves(journal)[0]),
            # by a clock that is a year late: the clocks cannot tell the order
            ("recorded, and an older run is given",
             lambda journal: halves(journal)[1].replace(b'"time": 1', b'"time": ') + halves(journal)[0]),
            ("output is cut or changed", lambda journal: journal.replace(b"3.14", b"3.1")),
        ):
            # a view that takes long on a busy machine has not waited for a record
            with self.subTest(kind), mock.patch.object(random_output, "MAX_WAIT_SECONDS", math.inf):
                self.assertIn(kind, self.kinds_after(change))

    def test_a_failed_line_that_is_no_job_is_a_limit_of_saves_in_place_alone(self) -> None:
        for in_place, kind in (True, "(limit) a state is in a command"), (False, "--failed names no job"):
            with self.subTest(kind):
                history = self.new_history(0)
                history.write("", "truth")
                history.write("! ./j!b j1\nx ./job j2\n")
                history.has_saved_in_place = in_place
                history.check_all_views()
                self.assertEqual({fault.partition(":")[0] for fault in history.faults}, {kind})

    def test_work_that_was_not_on_disk_when_the_last_runner_ended_is_found(self) -> None:
        for defect, wanted in ("", set()), (random_output.NO_SYNC, {"lost in a power cut, and not in doubt"}):
            with self.subTest(defect=defect):
                history = self.new_history(4, defect)
                history.make_files()
                history.script(random_output.JOB % "*) status=0 pause=0 kind=2;;", "job")
                history.finish(history.start_runner().process)
                history.cut_power()
                self.assertEqual({fault.partition(":")[0] for fault in history.faults}, wanted, history.told)


class Histories(unittest.TestCase):
    """Each is shown by python3 -m tests.orders.random_output --seed N."""

    def test_what_is_given_for_a_line_is_what_its_last_run_has_printed(self) -> None:
        for kinds, story in random_output.explore_many(range(HISTORIES)):
            faults = {kind for kind in kinds if not kind.startswith("(limit)")}
            self.assertEqual(faults, set(), "\n".join(story))
