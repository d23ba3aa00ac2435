"""Promise: a wrong value in any field of a message ends no program; nothing of a refused message counts."""
import asyncio
import importlib
import json
import os
import unittest
from types import SimpleNamespace
from typing import Any, Callable
from unittest import mock

import runmaker4
from tests.support.case import Case
from tests.support.messages import BEGIN, FROM_CLIENT, FROM_SERVER, JOBS, WELCOME
from tests.support.strange_json import wrong_versions
from tests.support.wire import CREDENTIALS, TOKEN

server: Any = importlib.import_module("runmaker4-server")
client: Any = importlib.import_module("runmaker4-client")
Message = dict[str, Any]
KEY = "0" * 16                              # of the job in all messages


def read(message: Message) -> runmaker4.Message:
    return runmaker4.Message(message)


class EachField(Case):
    """An end of a connection, here and without a network, gets each wrong version of each message."""

    def setUp(self) -> None:
        super().setUp()
        self.outcomes: set[str] = set()
        self.link = mock.Mock(**{"channel.file_id": "f" * 32})      # and what else only takes what it gets

    def play(self, message: Message, handle: Callable[[Any], None], memory: Callable[[], object],
             body: str) -> None:
        """Handle a wrong version.  memory(): all that the end remembers."""
        before = memory()
        with self.subTest(body=body[:200]):
            try:
                handle(read(runmaker4.decode(body.encode())))
                self.outcomes.add("handled")
            except runmaker4.WireError:
                self.outcomes.add("refused")
                self.assertEqual(memory(), before)

    def test_of_a_client(self) -> None:
        async def play_all() -> None:
            sessions = self.make_sessions()
            for message in FROM_CLIENT:
                for body in wrong_versions(message):
                    self.meet_client(sessions, message, body)

        with mock.patch.object(server, "spawn_task", lambda coroutine: coroutine.close()):
            asyncio.run(play_all())
        self.assertEqual(self.outcomes, {"handled", "refused"})

    def make_sessions(self) -> Any:
        """Of a server with all records, whose file is not touched."""
        executor = runmaker4.FileExecutor(threaded=False)
        stores = (runmaker4.LogFile(str(self.dir / "log"), 3, b"/", executor, self.fail),
                  runmaker4.OutDir(str(self.dir / "out"), executor, self.fail, self.fail,
                                   runmaker4.PresenceLock(True), b"", False),
                  runmaker4.JobLog(str(self.dir / "joblog"), executor, self.fail))
        loop = asyncio.get_running_loop()
        return server.Sessions(
            loop, executor, mock.Mock(**{"finish.return_value": ""}), server.Records(stores, None, executor),
            runmaker4.RunnerStats(), server.Lifetime(loop), say=os.fsencode, on_error=os.fsencode,
            path="runs.txt", directory=b"/", grace=60.0, max_failed=0)

    def meet_client(self, sessions: Any, message: Message, body: str) -> None:
        """A known client, which was sent a job or has begun it, says this on its link, or on a new one."""
        def connect() -> Any:
            link = server.ClientLink(SimpleNamespace(
                loop=sessions.loop, sessions=sessions, dispatcher=self.link, summaries=self.link, token=TOKEN,
                credentials=CREDENTIALS))
            link.address, link.transport, link.send = "::1", self.link, self.link.send
            return link

        link = connect()
        known = sessions.clients["f" * 16] = link.client = server.Client(sessions, "f" * 16)
        known.on_hello(link, read(FROM_CLIENT[0]))
        known.link = link
        job = runmaker4.Job(runmaker4.Line(1, 0, b"r", b" true"))
        assignment = server.Assignment(KEY, known, job, server.AssignmentPhase.SENT)
        if message["type"] == "ready":
            assignment.member = SimpleNamespace(current=assignment, group=self.link)
        sessions.add_assignment(assignment)
        if message["type"] in ("output", "end", "finish"):
            link.handle(read(dict(BEGIN, n=1, id=KEY)))
            body = body.replace('"n": 1', '"n": 2')
        if message["type"] in ("hello", "have"):
            link = connect()
        run = assignment.run
        owners = [known, assignment, *([run, run.shell, *run.streams] if run else ())]
        counts = "newest_event", "output_bytes"         # an invalid event counts as received
        self.play(message, link.handle, lambda: [
            {name: value for name, value in vars(owner).items() if name not in counts} for owner in owners
        ], body)
        sessions.remove_assignment(assignment, mock.Mock())     # ends its run, whatever was said of it

    def test_of_a_server(self) -> None:
        async def play_all() -> None:
            program = mock.Mock(loop=asyncio.get_running_loop(), retry=b"", console=(), say=os.fsencode,
                                directory=b"/", reported_complaint=client.Complaint.NOTHING,
                                **{"options.give_up": None})
            program.make_runner.return_value.exit_step = 0
            program.make_runner.return_value.tasks = {}
            for message in FROM_SERVER:
                for body in wrong_versions(message):
                    self.meet_server(program, message, body)

        asyncio.run(play_all())
        self.assertEqual(self.outcomes, {"handled", "refused"})

    def meet_server(self, program: mock.Mock, message: Message, body: str) -> None:
        """A server says this to a client that runs a job."""
        jobs = client.RemoteJobs(program)
        if message["type"] != "welcome":
            jobs.handle(self.link, read(WELCOME))
        job = jobs._jobs[KEY] = client.RemoteJob.from_message(read(JOBS["jobs"][0]))
        owners = jobs, jobs.link_life, jobs._requests, job

        def memory() -> object:
            return ([dict(vars(owner)) for owner in owners], [*jobs._jobs], [*jobs._jobs_ahead],
                    jobs._summary.done(), len(program.mock_calls))
        self.play(message, lambda wrong: jobs.handle(self.link, wrong), memory, body)


class Texts(unittest.TestCase):
    """A text that its sender has cut at the limit is no wrong value."""

    def test_the_limit_counts_characters_as_sent_and_not_as_shown(self) -> None:
        longest = "\x01\udcff" * (runmaker4.MAX_TEXT_CHARS // 2)
        sent = runmaker4.encode(dict(text=longest))
        self.assertEqual(read(runmaker4.decode(sent)).text("text"), runmaker4.printable(longest))
        with self.assertRaises(runmaker4.WireError):
            read(dict(text=f"{longest} ")).text("text")


def line(number: int, state: bytes = b"!") -> runmaker4.Line:
    """A line of 10 bytes per number."""
    return runmaker4.Line(number, 10 * (number - 1), state, b" CMD")


class CopiedSettings(unittest.TestCase):
    """Settings are copied whole, whatever is added to them."""

    def test_a_client_gets_all_but_what_the_server_heeds(self) -> None:
        settings = runmaker4.JobSettings(
            line(7), 30.0, hosts=("bob",), together="pair", min_hosts=1,
            needs=runmaker4.Resources(2, 1 << 20), larger_needs=(runmaker4.Resources(2, 1 << 21),),
            shell="bash", limits=(runmaker4.Limit("m", 3),), hours=frozenset([1]), start=1.0, name="step",
            after=("first",), awaited=[], send=("a",), fetch=("b",), scratch="yes")
        job = runmaker4.Job(line(9, state=b"."), settings)
        told = json.loads(json.dumps(server.Assignment("0" * 16, None, job).make_job_entry()))
        got = client.RemoteJob.from_message(runmaker4.Message(told)).settings
        heeded = {"line", "hosts", "together", "min_hosts", "limits", "hours", "start", "name", "after",
                  "send", "fetch", "scratch"}
        for name in runmaker4.JobSettings.__annotations__:
            with self.subTest(setting=name):
                default = getattr(runmaker4.JobSettings, name, None)
                expected = default if name in heeded else getattr(settings, name)
                self.assertNotEqual(getattr(settings, name), default, "the test does not set it")
                self.assertEqual(getattr(got, name), expected)
