"""Promise: a client's slots have names as a runner's have."""
import unittest

from tests import test_slots
from tests.support import wait_until
from tests.tcp import OverTcp
from tests.test_tcp import ordinarily


@ordinarily("test_a_job_knows_its_slot_by_name_and_its_line_by_number")
class NamedSlots(OverTcp, test_slots.NamedSlots):
    """--slots A,B: a slot for each name."""


@ordinarily("test_a_name_that_is_removed_finishes_its_job_and_gets_no_more")
class FollowedNames(OverTcp, test_slots.FollowedNames):
    """--slots @FILE: names come and go while a client runs."""

    def test_the_server_learns_that_there_are_enough_slots_for_a_job(self) -> None:
        self.write(f". {test_slots.HELD}\n#RUN slots=2\n. echo $RUNMAKER4_SLOTS > taken\n")
        self.names("a\n")
        client = self.start_on_names(up=[1])
        self.names("a\nb\n")
        wait_until(lambda: self.slots_known() == 2, what="b is known")
        self.open_gate()
        self.assertAll(0, client, "dd")
        self.assertEqual(sorted(self.read("taken").strip().split(b",")), [b"a", b"b"])

    def test_names_that_come_back_are_used_again(self) -> None:
        self.write(". true\n")
        self.names("a\nb\nc\nd\n")
        client = self.start_on_names("--follow")
        self.wait_states("d")
        self.names("a\n")

        def only_one_is_left() -> bool:
            self.add_jobs("true")
            return self.slots_known() == 1

        wait_until(only_one_is_left, what="only a is left")
        wait_until(lambda: not set(self.states()) & set(".r"), what="its jobs are done")
        self.names("a\nb\nc\nd\n")
        count = len(self.states())
        self.add_jobs(*[test_slots.HELD] * 4)
        self.wait_up(*range(count + 1, count + 5), runner=client)
        self.open_gate()
        self.wait_states("d" * (count + 4))
        self.assertAlone()

    def slots_known(self) -> int:
        """How many slots the client has, as the server knows."""
        slots: int = self.status(self.servers["runs.txt"])["clients"][0]["slots"]
        return slots


if __name__ == "__main__":
    unittest.main()
