"""Promise: what an event means for a client's link depends on one state, as the table of LinkLife says."""
import asyncio
import functools
import importlib
import unittest
from typing import Any, Callable, Optional
from unittest import mock

import runmaker4

client: Any = importlib.import_module("runmaker4-client")
# LinkLife's docstring: a row for each state, with what follows each event
TABLE: dict[str, list[str]] = {
    words[0]: words[1:] for words in map(str.split, client.LinkLife.__doc__.splitlines())
    if words and words[0] in ("DOWN", "IN_USE", "OVER")
}
LINK = mock.Mock(**{"channel.file_id": "f" * 32})
LOSS, SILENT = client.Complaint.LOSS, runmaker4.MAX_SILENT_SECONDS


class Link(unittest.TestCase):
    """A life with no network: its events come from here, by the methods that RemoteJobs calls."""

    def setUp(self) -> None:
        self.now = 1000.0
        clock = mock.patch.object(client, "boottime", lambda: self.now)
        clock.start()
        self.addCleanup(clock.stop)

    def at(self, state: str, give_up: Optional[float] = None, grace: float = 60.0) -> Any:
        """A life that has come to this state."""
        self.life = life = client.LinkLife(None, give_up, client.Complaint.NOTHING)
        if state == "IN_USE":
            life.on_welcome(LINK, "runs.txt", grace)
        elif state == "OVER":
            life.conclude()
        self.assertEqual(self.state(), state)
        return life

    def state(self) -> str:
        """The state of the life, as the text below the table says."""
        return "IN_USE" if self.life.link else "DOWN" if self.life.wants_server else "OVER"

    def pause(self, then: Callable[[], object] = lambda: None) -> tuple[Optional[float], list[float]]:
        """What pause_before_retry() returns, and the pauses that it made; after each this happens."""
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(round(seconds, 1))
            self.now += seconds
            then()

        with mock.patch.object(client.asyncio, "sleep", sleep), \
                mock.patch.object(client.random, "uniform", lambda low, high: high):
            return asyncio.run(self.life.pause_before_retry()), slept

    def time_up(self) -> None:
        """The time of --give-up is over, also where none is given."""
        self.now += 2 * client.FOREVER
        self.pause()

    def conclude(self) -> None:
        self.life.conclude()

    def test_each_state_meets_each_event(self) -> None:
        self.assertEqual(len(TABLE), 3)
        for state, (welcome, lost, pause_over, conclude) in TABLE.items():
            for name, event, after in (
                ("welcome", lambda: self.life.on_welcome(LINK, "runs.txt", 60.0), welcome),
                ("lost", lambda: self.life.on_lost(LOSS), lost),
                ("pause over", self.pause, pause_over.split("/")[0]),
                ("time up", self.time_up, pause_over.split("/")[-1]),
                ("conclude", self.conclude, conclude),
            ):
                if after != "x":
                    with self.subTest(state=state, event=name):
                        self.at(state)
                        event()
                        self.assertEqual(self.state(), after.replace("same", state))

    def test_no_job_may_start_without_a_link_and_an_answer_that_is_new(self) -> None:
        for state, grace, answer, passed, can in (
            ("DOWN", 60, 0, 0, False), ("OVER", 60, 0, 0, False), ("IN_USE", 60, None, 0, False),
            ("IN_USE", 60, 0, 0, True), ("IN_USE", 60, 0, SILENT - 0.01, True),
            ("IN_USE", 60, 0, SILENT + 0.01, False),
            ("IN_USE", 8, 0, 3.9, True), ("IN_USE", 8, 0, 4.1, False), ("IN_USE", 60, -SILENT - 1, 0, False),
            ("IN_USE", 60, 0, SILENT, False),
            ("IN_USE", 60, 3600, SILENT + 0.01, False),   # from the future: means now
        ):
            with self.subTest(state=state, grace=grace, answer=answer, passed=passed):
                life = self.at(state, grace=grace)
                if answer is not None:
                    life.on_answer(int((self.now + answer) * 1e6))
                    life.on_answer(int((self.now - 2 * SILENT) * 1e6))       # one that was late
                self.now += passed
                self.assertIs(life.can_start_jobs, can)

    def test_pauses_become_longer_until_a_server_says_welcome(self) -> None:
        life = self.at("DOWN")
        self.assertEqual([self.pause() for _ in range(10)], [
            (None, [seconds]) for seconds in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0)])
        life.on_welcome(LINK, "runs.txt", 60.0)
        self.life.on_lost(LOSS)
        self.assertEqual(self.pause(), (None, [0.1]))

    def test_it_gives_up_after_its_time_without_a_server_and_dials_no_more_once_it_leaves(self) -> None:
        self.at("IN_USE", give_up=5.0)
        self.now += 1000
        self.life.on_lost(LOSS)
        found = [self.pause()[0] for _ in range(20)]
        gone, = filter(None, found)
        self.assertTrue(5.0 <= gone < 6.0, gone)
        self.assertEqual((self.state(), self.pause()), ("OVER", (None, [])))
        life = self.at("DOWN")
        self.assertEqual((self.pause(life.conclude), self.state()), ((None, [0.1]), "OVER"))

    def test_in_the_queue_of_a_busy_server_it_waits_for_long_but_no_longer_than_give_up(self) -> None:
        async def wait(_: object, timeout: float) -> None:
            self.now += timeout

        for give_up, least, most in (None, 30.0, 60.0), (5.0, 1.0, 5.5):
            life = self.at("DOWN", give_up)
            begin, link = self.now, mock.Mock()
            link.lost_reason.done = functools.partial(getattr, link.drop, "called")
            with mock.patch.object(client.asyncio, "wait", wait):
                asyncio.run(life.keep_alive(link))
            link.drop.assert_called_once_with("no answer")
            self.assertTrue(least < self.now - begin < most, self.now - begin)

    def test_only_the_answer_to_the_request_that_said_so_lets_it_leave(self) -> None:
        requests = client.Requests()
        requests.make_hello(2, 1000)
        link = mock.Mock(**{"request.return_value": 11})
        for number, may_exit, leaves in (10, True, 0), (10, True, 0), (11, False, 0), (11, True, 1):
            requests.on_no_job(number, client.NoJob(may_exit=may_exit))
            self.assertEqual(requests.no_job.may_exit, leaves)
            requests.send_claim(link, client.Resources(0, 1000), 2, not leaves)     # once: nothing changes
        link.request.assert_called_once_with("claim", want=0, memory=0, last=True, slots=2)
