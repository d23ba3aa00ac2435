"""Promise: what an event means for a client's link depends on one state, as the table of LinkLife says."""
import asyncio
import enum
import functools
import importlib
import unittest
from collections import Counter, deque
from typing import Any, Optional
from unittest import mock

import runmaker4

client: Any = importlib.import_module("runmaker4-client")
State = enum.Enum("State", "DOWN IN_USE OVER")


# The columns of the table, and at the end what ends a life that is DOWN
Event = enum.Enum("Event", "WELCOME LOST RETRY CONCLUDE TIME_UP")


# LinkLife's docstring: a row for each state, with what follows each event
TABLE: dict[Any, list[str]] = {
    State[words[0]]: words[1:]
    for words in map(str.split, client.LinkLife.__doc__.splitlines())
    if words and words[0] in State.__members__
}
# the events that lead to each state, from the start
WAYS = {State.DOWN: (), State.IN_USE: (Event.WELCOME,), State.OVER: (Event.CONCLUDE,)}
LINK = mock.Mock(**{"channel.file_id": "f" * 32})


def state_of(life: Any) -> Any:
    """The state of a life, as the text below the table says."""
    if life.link:
        assert life.wants_server
        return State.IN_USE
    return State.DOWN if life.wants_server else State.OVER


class LifeCase(unittest.TestCase):
    """A life with no network: its events come from here, by the methods that its Connection calls."""

    def setUp(self) -> None:
        self.now = 1000.0
        clock = mock.patch.object(client, "boottime", lambda: self.now)
        clock.start()
        self.addCleanup(clock.stop)

    def play(self, life: Any, event: Any) -> object:
        """Let an event happen, as it does in the program."""
        if event is Event.WELCOME:
            return life.on_welcome(LINK, "runs.txt", 60.0)
        if event is Event.LOST:
            return life.on_lost(client.Complaint.LOSS)
        if event is Event.CONCLUDE:
            return life.conclude()
        if event is Event.TIME_UP:
            self.now += 2 * client.FOREVER
        return self.pause(life)

    def pause(self, life: Any) -> Optional[float]:
        """What pause_before_retry() returns; its sleep takes no time, and the clock goes on."""
        self.slept: list[float] = []

        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            self.now += seconds

        with mock.patch.object(client.asyncio, "sleep", sleep), \
                mock.patch.object(client.random, "uniform", lambda low, high: high):
            gone: Optional[float] = asyncio.run(life.pause_before_retry())
        return gone

    def at(self, state: Any, give_up: Optional[float] = None) -> Any:
        life = client.LinkLife(None, give_up, client.Complaint.NOTHING)
        for event in WAYS[state]:
            self.play(life, event)
        self.assertIs(state_of(life), state)
        return life


class Cells(LifeCase):
    """Each state meets each event."""

    def test_each_cell(self) -> None:
        self.assertEqual(set(TABLE), set(State))
        for state, row in TABLE.items():
            for event, after in zip(Event, row):
                if after != "x":
                    with self.subTest(state=state.name, event=event.name):
                        life = self.at(state)
                        self.play(life, event)
                        self.assertEqual(state_of(life).name, after.replace("same", state.name).split("/")[0])

    def test_of_thousands_none_starts_jobs_long_after_a_request_that_a_slow_server_has_answered(self) -> None:
        lives = [self.at(State.IN_USE) for _ in range(2000)]
        answered = dict.fromkeys(lives, -client.FOREVER)        # when each sent its last answered request
        requests: deque[tuple[Any, float]] = deque()            # on the way to the server, which is slow
        may_start = Counter[bool]()
        for turn in range(200):
            self.now += 0.5
            requests += [(life, self.now) for life in lives[turn % 10::10]]     # each has pings, all 5 s
            for _ in range(1000 if turn > 120 else 120):
                if requests:
                    life, sent_at = requests.popleft()
                    answered[life] = sent_at
                    life.on_answer(int(sent_at * 1e6))
            for life in lives:
                may_start[life.can_start_jobs] += 1
                self.assertEqual(life.can_start_jobs, self.now - answered[life] < 15.0)
        self.assertGreater(min(may_start[True], may_start[False]), 10_000)

    def test_no_job_may_start_without_a_link_and_an_answer_that_is_new(self) -> None:
        for state in State:
            life = self.at(state)
            self.assertFalse(life.can_start_jobs, state)
            life.on_answer(int(self.now * 1e6))
            self.assertEqual(life.can_start_jobs, life.link is not None, state)
        life = self.at(State.IN_USE)
        life.on_answer(int(self.now * 1e6))
        self.now += runmaker4.MAX_SILENT_SECONDS - 0.01
        self.assertTrue(life.can_start_jobs)
        self.now += 0.02
        self.assertFalse(life.can_start_jobs)
        life.on_answer(int((self.now + 3600) * 1e6))        # from the future: proves nothing but now
        self.now += runmaker4.MAX_SILENT_SECONDS + 0.01
        self.assertFalse(life.can_start_jobs)


class Pauses(LifeCase):
    """Between two attempts."""

    def test_they_become_longer_until_a_server_says_welcome(self) -> None:
        life = self.at(State.DOWN)
        slept = []
        for _ in range(10):
            self.assertIsNone(self.pause(life))
            slept += self.slept
            self.play(life, Event.LOST)
        self.assertEqual([round(seconds, 1) for seconds in slept],
                         [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0])
        for event in Event.RETRY, Event.WELCOME, Event.LOST:
            self.play(life, event)
        self.pause(life)
        self.assertEqual(self.slept, [0.1])

    def test_it_gives_up_after_its_time_without_a_server(self) -> None:
        life = self.at(State.IN_USE, give_up=5.0)
        self.now += 1000
        self.play(life, Event.LOST)
        gone = self.pause(life)
        while gone is None:
            self.play(life, Event.LOST)
            gone = self.pause(life)
        self.assertGreaterEqual(gone, 5.0)
        self.assertLess(gone, 6.0)
        self.assertIs(state_of(life), State.OVER)

    def test_in_the_queue_of_a_busy_server_it_waits_for_long_but_no_longer_than_give_up(self) -> None:
        async def wait(_: object, timeout: float) -> None:
            self.now += timeout

        for give_up, least, most in (None, 30.0, 60.0), (5.0, 1.0, 5.5):
            life = self.at(State.DOWN, give_up)
            begin = life.down_since = self.now
            link = mock.Mock()
            link.lost_reason.done = functools.partial(getattr, link.drop, "called")
            with mock.patch.object(client.asyncio, "wait", wait):
                asyncio.run(life.keep_alive(link))
            link.drop.assert_called_once_with("no answer")
            self.assertTrue(least < self.now - begin < most, self.now - begin)

    def test_there_is_none_once_we_leave(self) -> None:
        life = self.at(State.OVER)
        self.assertIsNone(self.pause(life))
        self.assertEqual((self.slept, state_of(life)), ([], State.OVER))

    def test_who_begins_to_leave_in_a_pause_does_not_dial_again(self) -> None:
        life = self.at(State.DOWN)

        async def leave(_: float) -> None:
            life.conclude()

        with mock.patch.object(client.asyncio, "sleep", leave):
            self.assertIsNone(asyncio.run(life.pause_before_retry()))
        self.assertIs(state_of(life), State.OVER)


class Asking(unittest.TestCase):
    """A client leaves only when its server says that there is nothing after it has said that it would."""

    def nothing(self, number: int, can_exit: bool = True) -> object:
        """Whether the runner is told to leave by this answer."""
        self.requests.on_no_job(number, client.NoJob(may_exit=can_exit))
        return self.requests.no_job.may_exit

    def test_only_the_answer_to_the_request_that_said_so_lets_it_leave(self) -> None:
        self.requests = client.Requests()
        self.requests.make_hello(2, 1000)
        self.assertFalse(self.nothing(10))
        link = mock.Mock(**{"request.return_value": 11})
        for _ in range(2):                  # the second time nothing has changed
            self.requests.send_claim(link, client.Resources(0, 1000), 2, True)
        link.request.assert_called_once_with("claim", want=0, memory=0, last=True, slots=2)
        self.assertFalse(self.nothing(10))
        self.assertFalse(self.nothing(11, can_exit=False))
        self.assertTrue(self.nothing(11))
