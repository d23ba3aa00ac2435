"""Promise: what an event means for a server depends on its phase, and on nothing else."""
import asyncio
import importlib
import unittest
from typing import Any, Callable

from tests.support.tables import cells

server: Any = importlib.import_module("runmaker4-server")
Phase = server.ServerPhase
SIGNAL = 143                # the exit status after TERM

# in the order of the rows of the table "The life of the server"
EVENTS: dict[str, Callable[[Any], None]] = {
    "drain": lambda life: life.drain(),
    "a signal": lambda life: life.start_exiting(SIGNAL),
    "a defect": lambda life: life.start_exiting(1),
    "all is counted": lambda life: life.start_exiting(),
}


class Cells(unittest.IsolatedAsyncioTestCase):
    """A server is in a phase, and something happens."""

    def life(self, phase: Any) -> Any:
        """A server that has come to this phase."""
        life = server.Lifetime(asyncio.get_running_loop())
        if phase is Phase.DRAINING:
            life.drain()
        elif phase is Phase.EXITING:
            life.start_exiting(SIGNAL)
        return life

    async def test_each_event_leads_from_each_phase_where_the_table_says(self) -> None:
        rows = cells(server, "event", *(phase.name for phase in Phase))
        self.assertEqual(len(rows), len(EVENTS))
        for row, (event, happen) in zip(rows, EVENTS.items()):
            for before, cell in zip(Phase, row):
                if cell != "x":
                    with self.subTest(event=event, before=before.name):
                        life = self.life(before)
                        happen(life)
                        # otherwise it remains, and hurry() follows by another call
                        after = Phase[cell] if cell not in ("-", "hurry()") else before
                        self.assertIs(life.phase, after)
                        self.assertEqual(life.exiting.done(), after is Phase.EXITING)
                        self.assertEqual(life.is_serving, after is Phase.SERVING)

    async def test_the_first_reason_to_exit_decides_the_exit_status(self) -> None:
        for event, status in ("a signal", SIGNAL), ("a defect", 1), ("all is counted", None):
            for later, happen_later in EVENTS.items():
                with self.subTest(event=event, later=later):
                    life = self.life(Phase.DRAINING)
                    EVENTS[event](life)
                    happen_later(life)
                    self.assertEqual(life.exit_status, status)

    async def test_a_second_signal_ends_all_waits_once(self) -> None:
        life = self.life(Phase.EXITING)
        self.assertFalse(life.hurrying.done())
        life.hurry()
        life.hurry()
        self.assertTrue(life.hurrying.done())
