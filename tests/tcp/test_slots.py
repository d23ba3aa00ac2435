"""Promise: a client's slots have names as a runner's have."""

from tests.runner import test_slots
from tests.support.over_tcp import OverTcp, ordinarily


@ordinarily("test_a_job_knows_its_slot_by_name_and_its_line_by_number")
class NamedSlots(OverTcp, test_slots.NamedSlots):
    """--slots A,B: a slot for each name."""


@ordinarily("test_a_name_that_is_removed_finishes_its_job_and_gets_no_more")
class FollowedNames(OverTcp, test_slots.FollowedNames):
    """--slots @FILE: names come and go while a client runs."""

    def test_the_server_learns_that_there_are_enough_slots_for_a_job(self) -> None:
        self.write(f". {test_slots.HELD}\n")
        self.names("a\n")
        client = self.start_on_names(up=[1])
        self.names("a\nb\n")
        self.append(". true")
        self.wait_states("rd")                  # on b
        self.append("#RUN slots=2", ". echo $RUNMAKER4_SLOTS > taken")
        self.open_gate()
        self.assertAll(0, client, "ddd")
        self.assertEqual(sorted(self.read("taken").strip().split(b",")), [b"a", b"b"])
