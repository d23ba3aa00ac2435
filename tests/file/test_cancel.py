"""Promise: another state over the `r` of a running line ends its job, and stays."""
import json
import os

from tests.support.processes import Ended, wait_until
from tests.support.runs import HASTY, SLEEPING, hastened
from tests.support.tcp import TcpCase


class CancelCase(TcpCase):

    def assertCancelled(self, ended: Ended, states: str, code: int = 0) -> None:
        """The states; the job of line 1 was cancelled, and nothing of it lives on."""
        self.assertEqual((self.states(), ended.code), (states, code), ended.err)
        self.assertNobodyLeft()
        self.assertIn(b'cancelled "', ended.out)
        self.assertIn(b"1 cancelled", ended.err)
        self.assertNotRegex(ended.err, rb"done, \d+ failed")


class OnTheFile(CancelCase):
    """A runner beside the file."""

    def test_a_running_line_that_is_set_by_hand_ends_its_job_and_keeps_that_state(self) -> None:
        self.jobs(f"sleep 600 & {SLEEPING}", "true")
        runner = self.start_jobs("--joblog", "joblog", "--outdir", "out")
        self.set_state(1, "k")
        self.assertCancelled(self.finish(runner), "kd")
        seq, *_, code, number, _ = self.read("joblog").splitlines()[1].split(b"\t")
        self.assertEqual((seq, code, number), (b"1", b"143", b"15"))
        self.assertIn(b'"signal": 15, "cause": "cancelled"', self.read("out/journal"))

    def test_an_editor_that_saves_by_rename_can_cancel_the_only_line_of_its_text(self) -> None:
        self.jobs(SLEEPING, "true")
        runner = self.start_jobs()
        new = self.write(self.read().replace(b"r", b"x", 1), "new")
        os.replace(new, self.dir / "runs.txt")
        self.assertCancelled(self.finish(runner), "xd")

    def test_a_cancelled_job_is_not_run_again_by_retries_nor_by_retry(self) -> None:
        self.jobs(f"echo >>starts; {SLEEPING}")
        runner = self.start_jobs("-r", "--retries", "3")
        self.set_state(1, "!")
        self.assertCancelled(self.finish(runner), "!", code=1)
        self.assertEqual(self.read("starts"), b"\n")

    def test_a_line_that_takes_the_place_of_a_running_one_of_the_same_text_cancels_nothing(self) -> None:
        self.jobs("touch up.$JOB_ID; while [ ! -e go ]; do sleep 0.05; done")
        runner = self.start_jobs()
        text = self.read()
        with open(self.dir / "runs.txt", "r+b") as file:
            os.pwrite(file.fileno(), b"x" + text[1:] + text, 0)
        self.write("", "go")
        self.assertEqual((self.finish(runner).code, self.states()), (0, "xd"))

    def test_a_result_of_the_same_moment_is_not_written_over_the_state_that_was_set(self) -> None:
        self.jobs("printf x 1<>runs.txt")
        ended = self.run_jobs()
        self.assertEqual(self.states(), "x")
        self.assertTrue(b"a user set the state 'x'" in ended.err or b"1 cancelled" in ended.err, ended.err)


class OnStaleFuse(CancelCase):
    """An open description of the file never shows what other hosts write, as on JuiceFS."""
    STALE = """
import os, runmaker4
seen = {}       # what each descriptor of runs.txt shows: what was there when it was opened, and our writes
def open_file(*args, real=os.open, **named):
    fd = real(*args, **named)
    seen.pop(fd, None)
    if os.readlink(f"/proc/self/fd/{fd}").endswith("/runs.txt"):
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            seen[fd] = bytearray(file.read())
    return fd
def pread(fd, size, offset, real=os.pread):
    return bytes(seen[fd][offset:offset + size]) if fd in seen else real(fd, size, offset)
def preadv(fd, buffers, offset):
    data = pread(fd, len(buffers[0]), offset)
    buffers[0][:len(data)] = data
    return len(data)
def pwrite(fd, data, offset, real=os.pwrite):
    for shown in seen.values():
        shown[offset:offset + len(data)] = data
    return real(fd, data, offset)
os.open, os.pread, os.preadv, os.pwrite = open_file, pread, preadv, pwrite
runmaker4.find_mount = lambda _: runmaker4.Mount("fuse.juicefs", frozenset())
""" + hastened(0.2, 0.04)

    def test_a_cancel_and_a_state_that_another_host_sets_are_seen(self) -> None:
        self.jobs("echo >>ran", SLEEPING)
        runner = self.start_patched(self.STALE, "-q", "--single-host", "runs.txt")
        self.wait_states("dr")
        self.set_state(1, ".")
        self.set_state(2, "x")
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states(), self.read("ran")), (0, "dx", b"\n\n"), ended.err)


class Clients(CancelCase):
    """A client, by way of its server."""

    def test_a_clients_job_is_cancelled(self) -> None:
        self.jobs(SLEEPING, "true")
        server = self.start_server("--exit-when-done")
        client = self.start_client(server, up=[1])
        self.set_state(1, "x")
        self.assertCancelled(self.finish(client), "xd")
        self.assertEqual(self.finish(server).code, 0)
        self.assertIn(b"1 done, 1 cancelled", server.err)

    def test_a_client_that_was_away_hears_of_it_when_it_comes_back(self) -> None:
        self.jobs(SLEEPING, "true")
        server = self.start_server()
        client = self.start_client(server, up=[1])
        self.stop(server)
        self.set_state(1, "x")
        again = self.start_server("--port", server.port)
        ended = self.finish(client)
        self.stop(again)
        self.assertCancelled(ended, "xd")
        self.assertNotIn(b"another runner", ended.err)

    # The grace is over once the server has seen that a job is cancelled
    GRACE = f"""{HASTY}
import asyncio, importlib
server = importlib.import_module("runmaker4-server")
async def wait_until_cancelled(client):
    while not client._hello_came.is_set():
        if any(assignment.is_cancelled for assignment in client.assignments.values()):
            return None
        await asyncio.sleep(0.05)
    client._hello_came.clear()
    return client.newest_link
server.Client._next_link = wait_until_cancelled
server.MAX_RETURN_SECONDS = 0
"""

    def test_a_client_that_does_not_come_back_leaves_a_cancelled_line_as_it_is(self) -> None:
        self.jobs(SLEEPING, SLEEPING)
        server = self.start_server("--exit-when-done", "--outdir", "out", patch=self.GRACE)
        client = self.start_client(server, "-j2", up=[1, 2])
        wait_until(lambda: self.exists("out/journal") and self.read("out/journal").count(b'"start"') == 2,
                   what="the server knows that they have started")
        client.kill()
        self.wait_said(server, "is lost")
        self.set_state(1, "x")
        self.assertEqual((self.finish(server).code, self.states()), (1, "xe"))
        self.assertIn(b"; line 2 given up (", server.err)
        self.assertIn(b"1 error, 1 cancelled in ", server.err)
        self.assertNotIn(b"not written", server.err)
        events = map(json.loads, self.read("out/journal").splitlines())
        ends = {event["line"]: (event["state"], event["cause"])
                for event in events if event["event"] == "end"}
        self.assertEqual(ends, {1: ("c", "cancelled"), 2: ("e", "lost")})
