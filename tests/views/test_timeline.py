"""Promise: the journal becomes a timeline: a process per host, a thread per slot, all that ran."""
import os
import random
import resource
import signal
import subprocess
import time
import unittest
from typing import Any

from tests.support.case import GATE
from tests.support.journal import BEGAN, end
from tests.support.permissions import bound_by_permissions
from tests.support.pipes import deadline
from tests.support.processes import Ended
from tests.support.runs import HASTY, RunCase
from tests.support.scripts import FULL, RUNWAIT
from tests.support.trace import Trace, read_trace
from tests.support.values import Text, as_bytes, present

OLDER = b'{"otherData":{"made_by":"runwait4.py"},"traceEvents":[\n'     # how a timeline of ours begins


def logged(line: int = 1, host: Text = "alice", began: float = 0.0, took: float = 1.0,
           command: Text = "true") -> bytes:
    """The end of a run in the journal, which begins so many seconds after BEGAN."""
    name = os.fsdecode(as_bytes(host))
    return end(f"{name}-{line}-{began}", line, command, BEGAN + began, took, host=name)


class TimelineCase(RunCase):

    def draw(self, out: str = "out.json", **settings: Any) -> Ended:
        return self.run_script(RUNWAIT, "--outdir", "out", "--timeline", out, **settings)

    def trace(self, *lines: bytes) -> Trace:
        """The timeline of a journal of these lines; each slot (1, 1 (2), ...) has a job at a time."""
        if lines:
            (self.dir / "out").mkdir(exist_ok=True)
            self.write(b"".join(lines), "out/journal")
        before, ended = self.read("out/journal"), self.draw()
        self.assertEqual((ended.code, ended.out, ended.err), (0, b"", b""))
        self.assertEqual(self.read("out/journal"), before)
        trace = read_trace(self.read("out.json"))
        self.assertEqual(list(trace.hosts), sorted(trace.hosts))
        for slots in trace.hosts.values():
            self.assertEqual(list(slots), ["slot 1", *[f"slot 1 ({at})" for at in range(2, len(slots) + 1)]])
            for events in slots.values():
                for one, other in zip(events, events[1:]):
                    self.assertLessEqual(one["ts"] + one["dur"], other["ts"])
        return trace

    def assertNothingLeft(self, *names: str) -> None:
        """No other files than these are in the directory."""
        self.assertEqual(sorted(os.listdir(self.dir)), sorted(names))


class Drawn(TimelineCase):
    """Runs go on the first slot that is free; a millisecond of rounding takes no slot of its own."""
    # runs (start, length), in milliseconds; the slot of each; its length as drawn, where it is another
    RUNS: dict[str, tuple[list[tuple[int, int]], list[int], dict[int, float]]] = {
        "one after the other": ([(0, 1000), (1000, 1000)], [1, 1], {}),
        "in another order": ([(1000, 1000), (0, 1000)], [1, 1], {}),
        "rounded": ([(0, 1000), (999, 1000)], [1, 1], {0: 999}),
        "by a millisecond, of three": ([(0, 3), (2, 3)], [1, 1], {0: 2}),
        "no time": ([(0, 0), (1, 0), (2, 5), (7, 0)], [1, 1, 1, 1], {0: 0.001, 1: 0.001, 3: 0.001}),
        "again and again": ([(0, 10), (9, 10), (18, 10)], [1, 1, 1], {0: 9, 1: 9}),
        "two at once": ([(0, 1000), (0, 1000)], [1, 2], {}),
        "by two milliseconds": ([(0, 1000), (998, 1000)], [1, 2], {}),
        "half of the first": ([(0, 2), (1, 1000)], [1, 1], {0: 1}),
        "no time at once": ([(0, 0), (0, 0), (0, 5)], [1, 1, 1], {0: 0.001, 1: 0.001}),
        "a millisecond at once": ([(0, 1), (0, 1), (2, 1)], [1, 1, 1], {0: 0.001}),
        "the first free": ([(0, 30), (1, 10), (2, 20), (40, 5), (40, 5), (46, 5)], [1, 2, 3, 1, 2, 1], {}),
        "again": ([(0, 100), (0, 50), (50, 10), (60, 10), (70, 90), (100, 10)], [1, 2, 2, 2, 2, 1], {}),
    }

    def test_each_run_has_the_first_free_slot_and_its_time(self) -> None:
        chance = random.Random(0)
        many = [(5 * chance.randrange(2000), 5 * chance.randrange(1, 40)) for _ in range(600)]
        hosts = {"many": many, **{host: runs for host, (runs, *_) in self.RUNS.items()}}
        trace = self.trace(*[logged(number, host, start / 1000, length / 1000)
                             for host, runs in hosts.items() for number, (start, length) in enumerate(runs)])
        found = {host: sorted((event["args"]["line"], slot,
                               (event["ts"] - BEGAN * 1e6) // 1000, event["dur"] / 1000)
                              for slot, events in trace.host(host).items() for event in events)
                 for host in hosts}
        for host, (runs, slots, drawn) in self.RUNS.items():
            with self.subTest(host):
                self.assertEqual(found[host], [
                    (at, "slot 1" if slot == 1 else f"slot 1 ({slot})", start, drawn.get(at, length))
                    for at, ((start, length), slot) in enumerate(zip(runs, slots))])
        self.assertEqual([run[2:] for run in found["many"]], many)
        at_once = max(sum(start <= now < start + length for start, length in many) for now, _ in many)
        self.assertEqual(len(trace.host("many")), at_once)

    def test_any_command_and_host_becomes_text_that_every_reader_takes(self) -> None:
        commands = {b"echo '\"\\/\x01\x7f\x1b[31m\r'": "echo '\"\\/\x01\x7f\x1b[31m\r'",
                    b"\xff\xc3 \xc3\xa9": "\ufffd\ufffd é", b"\xed\xa0\x80": "\ufffd" * 3,
                    **{as_bytes(text): text for text in (
                        "\ta\t\tb\t", "</script>", "\u2028\ufeff",
                        "x" * 100, "x" * 101, "ä" * 100, "\U0001f600" * 5000)}}
        hosts = [":", "[::1]", "a host", "host", "user@host.domain"]
        trace = self.trace(*(logged(at, b"h\xfcte", at, command=text) for at, text in enumerate(commands, 1)),
                           *(logged(1, host) for host in hosts))
        self.assertEqual(sorted(trace.hosts), sorted([*hosts, "h\ufffdte"]))
        events = trace.host("h\ufffdte")["slot 1"]
        self.assertEqual([event["args"]["command"] for event in events], list(commands.values()))
        self.assertEqual([event["name"] for event in events],
                         [text if len(text) <= 100 else text[:100] + "..." for text in commands.values()])


class Written(TimelineCase):
    """What cannot work is refused in one line, and leaves things as they were."""

    def setUp(self) -> None:
        super().setUp()
        (self.dir / "out").mkdir()
        self.log = b"".join(logged(number, began=number) for number in range(1000))
        self.write(self.log, "out/journal")

    def test_results_that_cannot_be_written(self) -> None:
        (self.dir / "dir").mkdir(mode=0o555)
        os.mkfifo(self.dir / "fifo")
        kept = {"runs.txt": b". true\n", "other.json": b"{}", "trace.json": b'{"traceEvents":[\n]}\n'}
        for name, text in kept.items():
            self.write(text, name)
        for name, target in {"link": "fifo", "self": "out/journal", "queue": "runs.txt"}.items():
            (self.dir / name).symlink_to(target)
        foreign = dict.fromkeys(("self", "queue", *kept), "not written by this option")
        words = {"dir": "is a directory", "missing/out.json": "no such file or directory",
                 "fifo": "not a regular file", "link": "not a regular file", **foreign}
        for call, ended in self.run_all((RUNWAIT, "--outdir", "out", "--timeline", name) for name in words):
            with self.subTest(call[-1]):
                self.assertRefused(ended, f"{RUNWAIT}: {call[-1]}: {words[call[-1]]}")
        self.assertRefused(self.draw(out="dir/out.json", **bound_by_permissions(self)),
                           "dir/out.json: permission denied")
        self.assertNothingLeft("out", *[name for name in words if "/" not in name])
        self.assertEqual(self.read("out/journal"), self.log)
        self.assertEqual({name: self.read(name) for name in kept}, kept)
        self.assertTrue((self.dir / "fifo").is_fifo())

    def test_a_full_disk_and_a_signal_leave_the_older_timeline_or_none(self) -> None:
        patch = ("import runwait4, time\ndef hang(*args):\n    print('up', flush=True)\n"
                 "    while True: time.sleep(0.1)     # one that comes before a sleep does not end it\n"
                 "runwait4.trace_events = hang\n")
        limit = resource.RLIMIT_FSIZE, (20_000, 20_000)
        words = "--outdir", "out", "--timeline", "out.json"
        for left in [], ["out.json"]:
            for name in left:
                self.write(OLDER, name)
            ended = self.draw(preexec_fn=lambda: resource.setrlimit(*limit))
            self.assertRefused(ended, "out.json: file too large")
            self.assertNothingLeft("out", *left)
            for number in signal.SIGINT, signal.SIGTERM:
                with self.subTest(left=left, signal=number):
                    drawing = self.start_patched(patch, *words, script=RUNWAIT)
                    with deadline(drawing):
                        present(drawing.stdout).readline()
                    self.assertEqual(len(os.listdir(self.dir)), 2 + len(left))
                    ended = self.stop(drawing, number)
                    self.assertEqual((ended.code, ended.err), (128 + number, b""))
                    self.assertNothingLeft("out", *left)
        self.assertEqual(self.read("out.json"), OLDER)

    def test_a_new_timeline_replaces_the_older_one_also_behind_a_link_and_has_its_mode(self) -> None:
        self.write(OLDER * 100_000, "older.json").chmod(0o600)
        (self.dir / "out.json").symlink_to("older.json")
        with open(self.dir / "older.json", "rb") as reader:
            self.assertEqual(len(self.trace().all), 1000)
            self.assertEqual(reader.read(), OLDER * 100_000, "who reads the older one reads it to its end")
        self.assertTrue((self.dir / "out.json").is_symlink())
        for _ in range(2):              # the second time there is an older timeline, of the longest name
            self.assertEqual(self.draw(out="x" * 255, preexec_fn=lambda: os.umask(0o027)).code, 0)
        self.assertNothingLeft("out", "out.json", "older.json", "x" * 255)
        modes = [(self.dir / name).stat().st_mode & 0o777 for name in ("older.json", "x" * 255)]
        self.assertEqual(modes, [0o600, 0o640])


class BlockedByACheck(RunCase):
    """A failed `barrier check` that stops new jobs ends the waiting: exit 1, and which line failed."""

    def assertBlocked(self, waiter: subprocess.Popen[bytes], failed: int, check: int) -> Ended:
        ended = self.finish(waiter)
        self.assertEqual((ended.code, ended.err.count(b"\n")), (1, 1), ended.err)
        self.assertRegex(ended.err, rb"^runwait4\.py: runs\.txt: .*line %d\b.*barrier check.*line %d\b.*\n$"
                         % (failed, check))
        return ended

    def assertWait(self, *waiters: subprocess.Popen[bytes]) -> None:
        """None of them comes to an end within the time of two more looks."""
        end = time.monotonic() + 0.5
        for waiter in waiters:
            with self.assertRaises(subprocess.TimeoutExpired, msg=waiter.args):
                waiter.wait(max(end - time.monotonic(), 0.01))

    def test_it_ends_and_says_so(self) -> None:
        calls = {"! a\n#RUN barrier check\n. b\n": (1, 2),
                 "d a\ne b\n# c\n#RUN barrier check\nd c\n. b\n": (2, 4),
                 # left behind: after two looks
                 **({"r a\n#RUN barrier check\n. b\n": (1, 2)} if FULL else {})}
        for text, lines in calls.items():
            with self.subTest(text):
                self.write(text)
                waiter = self.start_patched(HASTY, "-p", "-e", "runs.txt", script=RUNWAIT)
                ended = self.assertBlocked(waiter, *lines)
                self.assertRegex(ended.out, rb"^progress: .* jobs processed, 1 (failed|error) \[.*\]\n$")
                self.assertEqual(self.read(), text.encode())

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_it_waits_for_what_runs_or_can_still_be_run(self) -> None:
        texts = ("d a\n#RUN barrier check\n. b\n", "! a\n#RUN barrier\n. b\n",
                 "! a\n. b\n#RUN barrier check\n. c\n", "! a\n. b\n", "#RUN barrier check\n. a\n! b\n")
        for number, text in enumerate(texts):
            self.write(text, str(number))
        runner = self.start_to_gate(f"! a\n. {GATE}\n#RUN barrier check\n. b\n")
        waiters = [self.start(RUNWAIT, "--progress", name)
                   for name in ("runs.txt", *map(str, range(len(texts))))]
        for waiter in waiters:
            with deadline(waiter):
                present(waiter.stdout).readline()       # it has looked once
        self.assertWait(*waiters)
        self.open_gate()
        self.assertBlocked(waiters[0], 1, 3)
        self.assertEqual((self.finish(runner).code, self.states()), (1, "!d."))

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_a_job_that_begins_between_two_steps_of_a_look_has_not_failed(self) -> None:
        patch = (
            "import runmaker4, os\nstall = runmaker4.find_block_reason\n"
            "def later(*args):\n"
            "    fd = os.open('runs.txt', os.O_RDWR)\n"
            "    if os.pread(fd, 1, 0) == b'.':\n"
            "        runmaker4.lock(runmaker4.open_lock_file_of('runs.txt'), runmaker4.bucket_of(b'a') + 1)\n"
            "        os.pwrite(fd, b'r', 0)\n"
            "    return stall(*args)\n"
            "runmaker4.find_block_reason = later\n"
        )
        self.write(". a\n#RUN barrier check\n. b\n")
        waiter = self.start_patched(patch, "runs.txt", script=RUNWAIT)
        self.wait_states("r.")
        self.assertWait(waiter)
