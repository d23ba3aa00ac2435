"""Promise: what an event means for a group depends on its stage, and on nothing else."""
import importlib
import unittest
from collections import deque
from types import SimpleNamespace
from typing import Any, Callable, Optional, Union
from unittest import mock

import runmaker4
from tests.support.tables import cells

server: Any = importlib.import_module("runmaker4-server")
Stage = server.Stage
HOSTS = "alice", "bob", "carol"
FAILED = server.LineResult(b"!", "exit 1")
TIMEOUT = server.LineResult(b"e", "timeout after 5s", loses_host=True)
KILLED = server.LineResult(b"e", "out of memory")         # in error, but its host is not lost


class FakeSessions:
    """Settles lines at once, as Sessions does a little later."""

    def __init__(self) -> None:
        self.loop = mock.Mock(**{"time.return_value": 0.0})
        self.states: dict[int, bytes] = {}
        self._settled: deque[tuple[Any, Any]] = deque()

    def settle(self, assignment: Any, wanted: Any) -> None:
        line_result = assignment.decide_result(wanted)
        if line_result:
            self.states[assignment.number] = line_result.state
            self._settled.append((assignment, line_result))

    def conclude(self) -> None:
        while self._settled:
            assignment, line_result = self._settled.popleft()
            assignment.mark_over()
            if assignment.member:
                assignment.member.group.on_job_finished(assignment.member, assignment, line_result)


class Cells(unittest.TestCase):
    """Three hosts, each with two jobs, the first in lines 1, 3 and 5; and the group is in a stage."""

    def make_group(self, stage: Any, least: Optional[int]) -> None:
        self.sessions = FakeSessions()
        self.printed: list[bytes] = []
        stdout = SimpleNamespace(terminal=False, write=self.printed.append)
        self.dispatcher = mock.Mock(sessions=self.sessions, stdout=stdout,
                                    **{"is_startable.return_value": True})
        self.dispatcher.send_jobs.side_effect = lambda client, some: [each.mark_sent() for each in some]
        settings = runmaker4.JobSettings(together="g", min_hosts=least)
        numbers = iter(range(1, 7))
        self.jobs: dict[str, list[Any]] = {}
        clients = {host: mock.Mock(name=host, group_count=0) for host in HOSTS}
        for host, client in clients.items():
            lines = [runmaker4.Job(runmaker4.Line(number, 0, b".", b" true"))
                     for number in (next(numbers), next(numbers))]
            self.jobs[host] = [server.Assignment(str(job.number), client, job) for job in lines]
        met = runmaker4.PendingGroup("g", jobs=[(self.jobs["alice"][0].job, settings)])
        self.group = server.Group(self.dispatcher, met, self.jobs)
        self.members = {host: assignments[0].member for host, assignments in self.jobs.items()}
        self.clients = clients
        self.group.prepare()
        if stage is not Stage.PREPARING:
            self.be_ready()
        if stage is Stage.STOPPED:
            self.group._stop_group()
            self.sessions.conclude()

    def be_ready(self) -> None:
        for member in self.members.values():
            self.group.on_ready(member)

    def finish(self, *hosts: str, line_result: Any = FAILED) -> None:
        """The job ends that was sent to each of these hosts."""
        for host in hosts:
            self.sessions.settle(self.members[host].current, line_result)
        self.sessions.conclude()

    def sent(self) -> list[int]:
        """The lines that were sent to clients, in order; forgets them."""
        calls = [each for call in self.dispatcher.send_jobs.call_args_list for each in call.args[1]]
        self.dispatcher.send_jobs.reset_mock()
        return [assignment.number for assignment in calls]

    def told(self, host: str) -> list[str]:
        """What the client of a host was told of its jobs; forgets it."""
        kinds = [call.kwargs["type"] for call in self.clients[host].send_message.call_args_list]
        self.clients[host].send_message.reset_mock()
        return kinds

    def put_into(self, stage: Any, least: Optional[int] = None) -> None:
        """A new group in this stage, with all that it has said forgotten."""
        self.make_group(stage, least)
        self.sent()
        for host in HOSTS:
            self.told(host)

    def test_each_event_leads_from_each_stage_where_the_table_says(self) -> None:
        """Where a cell begins with no stage, the group remains in its own."""
        # names of methods of the group, or what happens to its jobs; and min-hosts
        events: list[tuple[Union[str, Callable[[], object]], Optional[int]]] = [
            (self.be_ready, None),
            ("_on_prepare_timeout", None),
            ("abort", None),
            (lambda: self.finish("bob"), None),
            (lambda: self.finish("bob", line_result=KILLED), 2),
            (lambda: self.finish("bob", line_result=TIMEOUT), 3),
            (lambda: self.group.on_client_back(self.members["bob"]), None),
        ]
        stages = Stage.PREPARING, Stage.RUNNING, Stage.STOPPED
        rows = cells(server, "event", *(stage.name for stage in stages))
        self.assertEqual(len(rows), len(events))
        for row, (event, least) in zip(rows, events):
            for stage, cell in zip(stages, row):
                with self.subTest(row=row, stage=stage.name):
                    self.put_into(stage, least)
                    (getattr(self.group, event) if isinstance(event, str) else event)()
                    self.sessions.conclude()
                    name, *_ = cell.split(":")
                    self.assertIs(self.group.stage, Stage.__members__.get(name, stage))

    def test_readiness_means_nothing_later(self) -> None:
        for stage in Stage.RUNNING, Stage.STOPPED:
            with self.subTest(stage=stage.name):
                self.put_into(stage)
                self.be_ready()
                self.assertIs(self.group.stage, stage)
                self.assertEqual([self.told(host) for host in HOSTS], [[]] * 3)

    def test_only_a_group_that_prepares_is_called_off(self) -> None:
        """By a lost client, by a server that drains, or after ten seconds."""
        for event in "abort", "_on_prepare_timeout":
            for stage in Stage.PREPARING, Stage.RUNNING, Stage.STOPPED:
                with self.subTest(event=event, stage=stage.name):
                    self.put_into(stage)
                    before = dict(self.sessions.states)
                    getattr(self.group, event)()
                    self.sessions.conclude()
                    if stage is Stage.PREPARING:
                        self.assertIs(self.group.stage, Stage.CALLED_OFF)
                        self.assertEqual(self.sessions.states, dict.fromkeys(range(1, 7), b"."))
                        self.assertEqual([self.told(host) for host in HOSTS], [["stop"]] * 3)
                        self.assertEqual(self.printed, [])
                    else:
                        self.assertIs(self.group.stage, stage)
                        self.assertEqual(self.sessions.states, before)

    def test_a_job_that_finishes_while_others_prepare_calls_the_group_off(self) -> None:
        self.put_into(Stage.PREPARING)
        self.finish("bob")
        self.assertIs(self.group.stage, Stage.CALLED_OFF)
        self.assertEqual(self.sessions.states, {3: b"!", 1: b".", 2: b".", 4: b".", 5: b".", 6: b"."})

    def test_an_error_drops_a_host_that_prepares(self) -> None:
        for line_result in TIMEOUT, KILLED:
            with self.subTest(line_result=line_result):
                self.put_into(Stage.PREPARING, least=2)
                self.finish("bob", line_result=line_result)
                self.assertIs(self.group.stage, Stage.PREPARING)
                self.assertEqual(self.sessions.states, {3: b"e", 4: b"e"})
                for host in "alice", "carol":
                    self.group.on_ready(self.members[host])
                self.assertIs(self.group.stage, Stage.RUNNING)
                self.assertEqual([self.told(host) for host in HOSTS], [["go"], [], ["go"]])

    def test_too_few_hosts_stop_what_runs_and_what_has_not_begun(self) -> None:
        for stage in Stage.PREPARING, Stage.RUNNING:
            with self.subTest(stage=stage.name):
                self.put_into(stage, least=3)
                self.finish("bob", line_result=TIMEOUT)
                self.assertIs(self.group.stage, Stage.STOPPED)
                self.assertEqual(self.sessions.states, {3: b"e", 2: b"e", 4: b"e", 6: b"e"})
                self.assertEqual([self.told(host) for host in HOSTS], [["stop"], [], ["stop"]])

    def test_a_result_in_a_stopped_group_is_recorded_and_the_last_one_prints_them_all(self) -> None:
        self.put_into(Stage.STOPPED)
        self.finish("alice", "bob")
        self.assertEqual((self.sent(), self.printed), ([], []))
        self.finish("carol", line_result=TIMEOUT)
        self.assertEqual(len(self.printed), 1)
        self.assertEqual(len(self.printed[0].splitlines()), 1 + 6)
        self.assertIn(b"failed", self.printed[0].splitlines()[0])

    def test_an_error_of_a_stopped_group_is_told_as_stopped(self) -> None:
        self.put_into(Stage.STOPPED)
        self.finish("alice", "bob", "carol", line_result=TIMEOUT)
        self.assertEqual(self.printed[0].count(b"stopped"), 6)

    def test_a_client_that_comes_back_gets_the_next_job_or_the_order_to_stop(self) -> None:
        self.put_into(Stage.RUNNING)
        self.clients["bob"].link = None
        self.finish("bob")
        self.assertEqual(self.sent(), [])
        self.clients["bob"].link = object()
        self.group.on_client_back(self.members["bob"])
        self.assertEqual((self.sent(), self.told("bob")), ([4], []))
        self.put_into(Stage.STOPPED)
        self.group.on_client_back(self.members["bob"])
        self.assertEqual((self.sent(), self.told("bob")), ([], ["stop"]))

    def test_a_client_that_comes_back_while_its_job_runs_is_told_nothing(self) -> None:
        self.put_into(Stage.RUNNING)
        self.group.on_client_back(self.members["bob"])
        self.assertEqual((self.sent(), self.told("bob")), ([], []))

    def test_a_job_that_did_not_arrive_is_sent_again(self) -> None:
        self.put_into(Stage.RUNNING)
        self.jobs["bob"][0].mark_unsent()
        self.group.on_client_back(self.members["bob"])
        self.assertEqual((self.sent(), self.told("bob")), ([3], []))
