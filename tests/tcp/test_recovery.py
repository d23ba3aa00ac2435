"""Promise: the next server finds the lines of jobs that a client names (parts; with kills: test_losses)."""
import asyncio
import contextlib
import errno
import importlib
import os
from typing import Any, Optional
from unittest import mock

import runmaker4
from tests.support.claims import JobFileCase
from tests.support.values import present

server = importlib.import_module("runmaker4-server")
# Classes of that module, which only importlib can import: its name has a hyphen
ServedQueue = Any
Sessions = Any


class LinesOfADeadServer(JobFileCase):
    """The next server gives them to the clients that name them, also where they have moved."""

    def inherit(self, before: list[bytes], after: bytes) -> ServedQueue:
        """Hold these lines, then edit the file: how the next server has it."""
        self.path.write_bytes(after)
        fd = runmaker4.open_lock_file_of(str(self.path))
        for number, text in enumerate(before, 1):
            self.assertTrue(runmaker4.lock(fd, runmaker4.bucket_of(text[1:]) + number))
        queue = self.served_queue()
        self.addCleanup(queue.file.lock_table.free_all_job_locks)
        queue.open_files()
        queue.file.lock_table.inherit_locks(fd)
        return queue

    def take_back(self, queue: ServedQueue, *texts: bytes) -> list[int]:
        """Where the lines of clients are that say where they were."""
        found = queue.file.lines_by_command({text[1:] for text in texts})
        jobs = []
        for number, text in enumerate(texts, 1):
            own_line, = (line for line in found[text[1:]] if line.number == number)
            lock_offset = runmaker4.own_job_lock_offset(own_line)
            jobs.append(present(queue.reclaim_line(own_line, lock_offset, b"re.")))
        queue.check_jobs()
        return [job.offset for job in jobs]

    def test_no_seat_is_locked_as_it_is_locked_already(self) -> None:
        """On CephFS that would lock what is behind it, too."""
        with mock.patch.object(server, "lock", wraps=runmaker4.lock) as lock:
            self.inherit([b" a", b" b"], b"r a\nr b\n")
        asked = [(*call.args, *call.kwargs.items()) for call in lock.mock_calls]
        self.assertEqual([len(one) for one in asked], [3, 2] * 2, asked)
        self.assertEqual([one[:2] for one in asked[::2]], asked[1::2])

    def test_equal_lines_go_to_the_clients_that_name_them_and_none_to_two(self) -> None:
        for after, offsets in (
            (b"r echo\nr echo\nr echo\n", [0, 7, 14]),
            (b"x echo\nr echo\nr echo\n", [0, 7, 14]),
        ):
            with self.subTest(after=after):
                self.path = self.path.with_name(f"runs.{after[:1].hex()}")
                queue = self.inherit([b" echo"] * 3, after)
                self.assertEqual(sorted(self.take_back(queue, *[b" echo"] * 3)), offsets)

    def test_the_line_that_an_edit_has_left_of_two_goes_to_one_client(self) -> None:
        queue = self.inherit([b" echo"] * 2, b"# new\n# new\nr echo\n")
        left, = queue.file.lines_by_command({b"echo"})[b"echo"]
        found = [queue.reclaim_line(left, runmaker4.bucket_of(b"echo") + number, b"re") for number in (1, 2)]
        self.assertEqual([job is None for job in found], [False, True])

    def test_a_line_that_the_server_before_had_with_the_lock_of_another_number(self) -> None:
        """An edit had moved it, and that server had found it."""
        queue = self.inherit([b" echo"], b"# new\nr echo\n")
        line, = queue.file.lines_by_command({b"echo"})[b"echo"]
        job = queue.reclaim_line(line, runmaker4.own_job_lock_offset(line), b"re")
        self.assertEqual((job.number, job.job_lock.offset), (2, runmaker4.bucket_of(b"echo") + 1))

    def test_a_server_whose_lock_file_was_removed_locks_its_jobs_in_the_next_one(self) -> None:
        queue = self.inherit([b" a", b" b"], b"r a\nr b\n. c\n")
        table, (a, _, c) = queue.file.lock_table, queue.file.scan_lines()
        jobs = [queue.claim_inherited(a, runmaker4.own_job_lock_offset(a)), queue.claim(c).job]
        os.unlink(table.path)
        queue.open_files()
        other = runmaker4.open_lock_file_of(str(self.path))
        self.addCleanup(os.close, other)
        found = {offset for locked in runmaker4.find_held_job_locks(other) for offset in locked}
        self.assertEqual(found, {job.job_lock.offset for job in jobs})
        self.assertEqual(runmaker4.identity_of(jobs[0].job_lock.fd), runmaker4.identity_of(other))
        self.assertFalse(table.locks_without_line)      # what nobody has named so far is locked nowhere

    def test_orphans_and_lines_that_others_have_are_not_among_them(self) -> None:
        text = b" echo"
        self.path.write_bytes(b"r%s\n" % text * 3)
        other = runmaker4.open_lock_file_of(str(self.path))
        self.addCleanup(os.close, other)
        self.assertTrue(runmaker4.lock(other, runmaker4.bucket_of(b"echo") + 3))
        queue = self.inherit([text], b"r%s\n" % text * 3)
        self.assertEqual(len(queue.file.lock_table.locks_without_line), 1)
        self.assertEqual(self.take_back(queue, text), [0])
        file = queue.file
        self.assertEqual([file.is_orphan(line) for line in file.scan_lines(b"r")], [False, True, False])


class LinesOfAClientThatComesBack(JobFileCase):
    """A server seeks the lines of jobs that it has not given to the client that names them."""

    def sessions(self, lines: bytes, threaded: bool = False) -> Sessions:
        """Of a server whose file has these lines, which nobody runs.  To be called in an event loop.

        threaded: as on a network file system.
        """
        self.path.write_bytes(lines)
        self.served = self.served_queue()
        claims = server.Claims(self.served, serving=True)
        loop = asyncio.get_running_loop()
        return server.Sessions(
            loop, runmaker4.FileExecutor(threaded), claims, mock.Mock(), runmaker4.RunnerStats(),
            server.Lifetime(loop), say=lambda text: None, on_error=lambda text: None,
            path=str(self.path), directory=b"", grace=60.0, max_failed=0)

    def answer(self, lines: bytes, result: Optional[bytes], known: tuple[str, ...] = ()) -> object:
        """What becomes of a job of the line ` echo` that stood first in the file, which has these lines now.

        The number of the line that the client has then, or the word for why it has none.  known: the keys
        that this server has settled.
        """
        async def come() -> object:
            sessions = self.sessions(lines)
            client = server.Client(sessions, "c" * 16)
            claim = server.ReportedJob("1" * 16, runmaker4.Line(1, 0, b".", b" echo"), result)
            sessions.settled_keys.update(dict.fromkeys(known))
            reclaimed = await sessions.reclaim_lines(client, [claim])
            numbers = [assignment.number for assignment in client.assignments.values()]
            self.assertEqual(len(self.served.claimed), len(numbers))
            for assignment in client.assignments.values():
                self.served.release_job(assignment.job)
            only, = ["LOST"] * len(reclaimed.lost) + numbers or ["SETTLED"]
            return only
        return asyncio.run(come())

    def test_a_server_that_exits_first_writes_the_results_that_are_decided(self) -> None:
        async def exit_with_results(threaded: bool) -> None:
            sessions = self.sessions(b"r a\nr b\n", threaded)
            client = server.Client(sessions, "c" * 16)
            await sessions.reclaim_lines(client, [
                server.ReportedJob(str(number) * 16, runmaker4.Line(number, 0, b"r", command), None)
                for number, command in ((1, b" a"), (2, b" b"))])
            for assignment in list(client.assignments.values()):
                sessions.settle(assignment, server.LineResult(b"d"))
            await sessions.flush_results()
            self.assertEqual((self.path.read_bytes(), client.assignments), (b"d a\nd b\n", {}))

        for threaded in False, True:
            with self.subTest(threaded=threaded):
                asyncio.run(exit_with_results(threaded))

    def test_a_client_has_its_line_until_a_count_from_before_the_new_state_is_answered(self) -> None:
        """Otherwise the answer would let it exit, although it could take the line, which is new again."""
        async def give_back(threaded: bool) -> None:
            sessions = self.sessions(b"r a\n", threaded)
            client = server.Client(sessions, "c" * 16)
            await sessions.reclaim_lines(
                client, [server.ReportedJob("1" * 16, runmaker4.Line(1, 0, b"r", b" a"), None)])
            had_lines: list[tuple[bytes, int]] = []
            # the last call before that of the state
            sessions.records.flush.side_effect = lambda: sessions.executor.call_then(
                lambda states: had_lines.append((states, len(client.assignments))), self.path.read_bytes)
            sessions.settle(*client.assignments.values(), server.RETURNED)
            await sessions.flush_results()
            self.assertEqual(had_lines, [(b"r a\n", 1)])
            self.assertEqual((self.path.read_bytes(), client.assignments), (b". a\n", {}))

        for threaded in False, True:
            with self.subTest(threaded=threaded):
                asyncio.run(give_back(threaded))

    def test_the_last_results_that_were_written_are_known_whatever_stands_there_then(self) -> None:
        """A client says them again if it was away before it heard that they are."""
        async def settle_and_come_back() -> list[str]:
            sessions = self.sessions(b"r a\nr b\n")
            client = server.Client(sessions, "c" * 16)
            lines = [runmaker4.Line(1, 0, b"r", b" a"), runmaker4.Line(2, 4, b"r", b" b")]
            await sessions.reclaim_lines(
                client, [server.ReportedJob(str(line.number) * 16, line, None) for line in lines])
            for assignment in list(client.assignments.values()):
                sessions.settle(assignment, server.LineResult(b"d", event=1))
                await sessions.flush_results()
            self.assertEqual(self.path.read_bytes(), b"d a\nd b\n")
            self.path.write_bytes(b"x a\nx b\n")
            reclaimed = await sessions.reclaim_lines(client, [
                server.ReportedJob(str(line.number) * 16, line, b"d") for line in lines])
            return [*reclaimed.lost]

        with mock.patch.object(server, "MAX_SETTLED_KEYS", 1):
            self.assertEqual(asyncio.run(settle_and_come_back()), ["1" * 16])

    def test_what_a_client_says_and_what_stands_there_decide(self) -> None:
        table = {
            None: {"r": 1, "e": 1, ".": 1, "d": "LOST", "!": "LOST", "x": "LOST"},
            "d": {"r": 1, "e": 1, ".": 1, "d": "SETTLED", "!": "LOST", "x": "LOST"},
            "!": {"r": 1, "e": 1, ".": 1, "d": "LOST", "!": "SETTLED", "x": "LOST"},
            ".": {"r": 1, "e": "LOST", ".": "SETTLED", "d": "LOST", "!": "LOST", "x": "LOST"},
            "e": {"r": 1, "e": "SETTLED", ".": "LOST", "d": "LOST", "!": "LOST", "x": "LOST"},
        }
        for result, answers in table.items():
            said = None if result is None else result.encode()
            for state, answer in answers.items():
                with self.subTest(said=result, stands=state):
                    self.assertEqual(self.answer(b"%s echo\n" % state.encode(), said), answer)
                    self.assertEqual(self.path.read_bytes()[:1].decode(), "r" if answer == 1 else state)
            with self.subTest(said=result, stands="nothing"):
                self.assertEqual(self.answer(b"r other\n", said), "LOST")
            with self.subTest(said=result, stands="anything", known="it is settled"):
                self.assertEqual(self.answer(b". echo\n", said, known=("1" * 16,)), "SETTLED")

    def test_a_line_r_that_another_has_is_lost_whatever_is_said(self) -> None:
        self.path.write_bytes(b"")
        other = runmaker4.open_lock_file_of(str(self.path))
        self.addCleanup(os.close, other)
        self.assertTrue(runmaker4.lock(other, runmaker4.bucket_of(b"echo") + 1))
        for result in None, b"d", b".", b"e":
            with self.subTest(said=result):
                self.assertEqual(self.answer(b"r echo\n", result), "LOST")

    def test_a_line_of_another_number_is_its_own_only_if_there_is_no_equal_one(self) -> None:
        """A command may use $JOB_ID: what has run under one number has not under another."""
        for result in None, b"!":
            for lines, answer in (
                (b"d echo\nr echo\n", "LOST"),
                (b"d echo\ne echo\n", "LOST"),
                (b"d echo\n. echo\n", "LOST"),
                (b"# new\nr echo\n", 2),
                (b"# new\nr echo\nr echo\n", "LOST"),
                (b"# new\ne echo\n", 2),                # it can be no other line
                (b"# new\ne echo\ne echo\n", "LOST"),
                (b"# new\n. echo\n", "LOST"),
                (b"# new\nd echo\n", "LOST"),
            ):
                with self.subTest(said=result, lines=lines):
                    self.assertEqual(self.answer(lines, result), answer)

    def test_the_only_line_of_a_file_that_can_be_half_saved_is_not_taken_yet(self) -> None:
        async def come() -> Any:
            sessions = self.sessions(b"# new\ne echo\n")
            job = server.ReportedJob("1" * 16, runmaker4.Line(1, 0, b".", b" echo"), b"d")
            with mock.patch.object(sessions.claims.file, "seconds_until_trusted", return_value=1.0):
                return sessions.claims.reclaim_lines(server.Client(sessions, "c" * 16), [job], False)
        reclaimed = asyncio.run(come())
        self.assertEqual((reclaimed.jobs, reclaimed.doubt), ({}, "the file can be half saved"))

    def test_the_clients_of_a_dead_server_cost_no_search_each(self) -> None:
        fd = runmaker4.open_lock_file_of(str(self.path))
        self.addCleanup(os.close, fd)
        for number in 1, 2:
            self.assertTrue(runmaker4.lock(fd, runmaker4.bucket_of(b"echo") + number))

        async def come() -> list[int]:
            sessions = self.sessions(b"r echo\nr echo\n")
            sessions.claims.inherit(fd)
            clients = [server.Client(sessions, f"{number:016x}") for number in (1, 2)]
            with mock.patch.object(self.served.file, "lines_by_command", side_effect=AssertionError):
                for number, client in enumerate(clients, 1):
                    line = runmaker4.Line(number, 0, b".", b" echo")
                    await sessions.reclaim_lines(client, [server.ReportedJob(client.id, line, None)])
            return [assignment.number for client in clients for assignment in client.assignments.values()]
        self.assertEqual(asyncio.run(come()), [1, 2])

    def test_only_another_lock_file_makes_the_locks_of_a_dead_server_void(self) -> None:
        lock_path = runmaker4.lock_file_of(str(self.path))

        def is_held_after(trouble: Optional[OSError]) -> bool:
            async def come() -> None:
                sessions = self.sessions(b"r echo\n")
                with mock.patch.object(self.served, "open_files", side_effect=trouble) if trouble \
                        else contextlib.nullcontext():
                    await sessions.inherit_lines(fd)
            fd = runmaker4.open_lock_file_of(str(self.path))
            self.addCleanup(os.close, fd)
            offset = runmaker4.bucket_of(b"echo") + 1
            self.assertTrue(runmaker4.lock(fd, offset))
            if trouble:
                self.assertRaises(runmaker4.UsageError, asyncio.run, come())
            else:
                os.unlink(lock_path)
                asyncio.run(come())
            with open(f"/proc/self/fd/{fd}", "rb") as second:
                is_held = not runmaker4.is_free(second.fileno(), offset)
            runmaker4.unlock(fd, offset)
            return is_held

        self.assertTrue(is_held_after(runmaker4.FileChangedError()))
        self.assertTrue(is_held_after(OSError(errno.ESTALE, "Stale file handle")))
        self.assertFalse(is_held_after(None))

    def test_a_result_that_was_written_before_an_edit_is_settled(self) -> None:
        self.assertEqual(self.answer(b"# new\nd echo\n", b"d"), "SETTLED")
        self.assertEqual(self.answer(b"# new\nd echo\n", None), "LOST")
        self.assertEqual(self.answer(b"# new\nd echo\nr echo\n", b"d"), "LOST")

    def come_in_vain(self, function: str, trouble: object) -> tuple[str, list[int]]:
        """Why the client is not told what it has lost if each call of a function of the queue or its file
        ends so, and the lines that it has then; nothing is asked again after a moment.
        """
        async def come() -> str:
            sessions = self.sessions(b"r echo one\nr echo two\n")
            self.served.file.interval, self.served.file.max_absence = 0.05, 0.1
            where = self.served if hasattr(self.served, function) else self.served.file
            self.client = server.Client(sessions, "c" * 16)
            lines = [runmaker4.Line(number, 0, b".", b" echo " + word)
                     for number, word in enumerate((b"one", b"two", b"three"), 1)]
            jobs = [server.ReportedJob(f"{line.number:016x}", line, None) for line in lines]
            with mock.patch.object(where, function, side_effect=trouble):
                reclaimed = await sessions.reclaim_lines(self.client, jobs)
            why: str = reclaimed.doubt
            return why
        return asyncio.run(come()), [assignment.number for assignment in self.client.assignments.values()]

    def test_what_cannot_be_looked_at_is_not_lost(self) -> None:
        def locked(*args: object) -> object:
            return runmaker4.Attempt(runmaker4.LineCheck.LOCKED)

        for function, trouble, why in (
            ("open_files", FileNotFoundError(errno.ENOENT, "No such file"), "no such file"),
            ("lines_by_command", OSError(errno.EIO, "Input/output error"), "input/output error"),
            ("claim", runmaker4.FileChangedError("edited"), "edited"),
            ("claim", locked, "holds the command mutex"),
        ):
            with self.subTest(function=function, why=why):
                answer, lines = self.come_in_vain(function, trouble)
                self.assertIn(why, answer.lower())
                self.assertEqual(lines, [])
