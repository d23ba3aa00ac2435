"""Promise: the journal becomes a timeline: a process per host, a thread per slot, all that ran."""
import itertools
import os
import random
import resource
import signal
import subprocess
import time
import unittest
from collections.abc import Sequence
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
    """Steps that the tests below share."""

    def write_journal(self, *lines: bytes) -> None:
        (self.dir / "out").mkdir(exist_ok=True)
        self.write(b"".join(lines), "out/journal")

    def draw(self, out: str = "out.json", **settings: Any) -> Ended:
        return self.run_script(RUNWAIT, "--outdir", "out", "--timeline", out, **settings)

    def trace(self, *lines: bytes) -> Trace:
        """The timeline of a journal of these lines, or of the one that is there."""
        if lines:
            self.write_journal(*lines)
        before = self.read("out/journal")
        ended = self.draw()
        self.assertEqual((ended.code, ended.out, ended.err), (0, b"", b""))
        self.assertEqual(self.read("out/journal"), before)
        trace = read_trace(self.read("out.json"))
        self.assertSlotsAreTold(trace)
        return trace

    def assertSlotsAreTold(self, trace: Trace) -> None:
        """Each host's threads are slot 1, 1 (2), ..., all used, each by one job at a time."""
        self.assertEqual(set(trace.threads), set(trace.events))
        # Perfetto goes by tid alone
        self.assertEqual(len({tid for _, tid in trace.threads}), len(trace.threads))
        self.assertEqual(len(set(trace.processes.values())), len(trace.processes))
        hosts = [trace.processes[pid] for _, pid in sorted(trace.order["process_sort_index"])]
        self.assertEqual(hosts, sorted(trace.processes.values()))
        slot_of = {tid: "slot 1" if index == 1 else f"slot 1 ({index})"
                   for index, tid in trace.order["thread_sort_index"]}
        self.assertEqual(slot_of, {tid: slot for (_, tid), slot in trace.threads.items()})
        for host in hosts:
            slots = trace.host(host)
            names = ["slot 1", *[f"slot 1 ({number})" for number in range(2, len(slots) + 1)]]
            self.assertEqual(list(slots), names)
            for events in slots.values():
                for one, other in zip(events, events[1:]):
                    self.assertLessEqual(one["ts"] + one["dur"], other["ts"])

    def parts(self, trace: Trace, host: str) -> dict[str, list[tuple[float, float]]]:
        """The events of a host, by slots, as (start, length) in milliseconds after BEGAN."""
        return {slot: [((event["ts"] - BEGAN * 1e6) / 1000, event["dur"] / 1000) for event in events]
                for slot, events in trace.host(host).items()}

    def assertNothingLeft(self, *names: str) -> None:
        """No other files than these are in the directory."""
        self.assertEqual(sorted(os.listdir(self.dir)), sorted(names))


class Slots(TimelineCase):
    """Runs go on the first slot that is free; a millisecond of rounding takes no slot of its own."""

    ONE_SLOT = {            # runs (start, length), in milliseconds, and how they are drawn
        "one after the other": ([(0, 1000), (1000, 1000)], [(0, 1000), (1000, 1000)]),
        "in another order": ([(1000, 1000), (0, 1000)], [(0, 1000), (1000, 1000)]),
        "rounded": ([(0, 1000), (999, 1000)], [(0, 999), (999, 1000)]),
        "by a millisecond, of three": ([(0, 3), (2, 3)], [(0, 2), (2, 3)]),
        "no time": ([(0, 0), (1, 0), (2, 5), (7, 0)], [(0, 0.001), (1, 0.001), (2, 5), (7, 0.001)]),
        "again and again": ([(0, 10), (9, 10), (18, 10)], [(0, 9), (9, 9), (18, 10)]),
    }
    MORE_SLOTS = {  # runs, and the slots of each
        "two at once": ([(0, 1000), (0, 1000)], [1, 2]),
        "by two milliseconds": ([(0, 1000), (998, 1000)], [1, 2]),
        "half of the first": ([(0, 2), (1, 1000)], [1, 2]),
        "no time at once": ([(0, 0), (0, 0), (0, 5)], [1, 2, 3]),
        "the first free": ([(0, 30), (1, 10), (2, 20), (40, 5), (40, 5), (46, 5)], [1, 2, 3, 1, 2, 1]),
        "again": ([(0, 100), (0, 50), (50, 10), (60, 10), (70, 90), (100, 10)], [1, 2, 2, 2, 2, 1]),
    }

    def draw_runs(self, hosts: dict[str, Sequence[tuple[float, float]]]) -> Trace:
        """The timeline of the runs of these hosts, each a start and a length in milliseconds."""
        return self.trace(*[logged(number, host, start / 1000, length / 1000) for host, runs in hosts.items()
                            for number, (start, length) in enumerate(runs, 1)])

    def test_neighbours_share_a_slot_and_never_overlap(self) -> None:
        trace = self.draw_runs({host: runs for host, (runs, _) in self.ONE_SLOT.items()})
        for host, (_, drawn) in self.ONE_SLOT.items():
            with self.subTest(host):
                self.assertEqual(self.parts(trace, host), {"slot 1": drawn})

    def test_what_ran_at_the_same_time_has_slots_of_its_own(self) -> None:
        trace = self.draw_runs({host: runs for host, (runs, _) in self.MORE_SLOTS.items()})
        for host, (runs, slots) in self.MORE_SLOTS.items():
            with self.subTest(host):
                found = {event["args"]["line"]: slot
                         for slot, events in trace.host(host).items() for event in events}
                wanted = ["slot 1" if slot == 1 else f"slot 1 ({slot})" for slot in slots]
                self.assertEqual([found[number] for number in range(1, len(runs) + 1)], wanted)
                drawn = [(start, max(length, 0.001)) for start, length in runs]
                self.assertEqual(sorted(itertools.chain(*self.parts(trace, host).values())), sorted(drawn))

    def test_there_are_as_many_slots_as_jobs_at_a_time(self) -> None:
        for seed in range(3 if FULL else 1):
            chance = random.Random(seed)
            runs = [(5 * chance.randrange(2000), 5 * chance.randrange(1, 40)) for _ in range(600)]
            with self.subTest(seed=seed):
                trace = self.draw_runs({"alice": runs})
                at_once = max(sum(start <= now < start + length for start, length in runs) for now, _ in runs)
                self.assertEqual(len(trace.threads), at_once)
                self.assertEqual(sorted(itertools.chain(*self.parts(trace, "alice").values())), sorted(runs))


class Commands(TimelineCase):
    """Any command and any host's name becomes text that every reader takes."""

    def test_a_long_command_has_a_short_name(self) -> None:
        commands = ["x" * 100, "x" * 101, "ä" * 100, "\U0001f600" * 5000]
        trace = self.trace(*[logged(at, began=at, command=text) for at, text in enumerate(commands, 1)])
        self.assertEqual([event["args"]["command"] for event in trace.all], commands)
        names = [event["name"] for event in trace.all]
        self.assertEqual(names, [commands[0], "x" * 100 + "...", commands[2], "\U0001f600" * 100 + "..."])

    def test_any_bytes_and_hosts_as_servers_name_them(self) -> None:
        commands = {b"echo '\"\\/\x01\x7f\x1b[31m\r'": "echo '\"\\/\x01\x7f\x1b[31m\r'",
                    b"\xff\xc3 \xc3\xa9": "\ufffd\ufffd é", b"\xed\xa0\x80": "\ufffd" * 3,
                    b"\ta\t\tb\t": "\ta\t\tb\t", b"</script>": "</script>",
                    "\u2028\ufeff".encode(): "\u2028\ufeff"}
        lines = [logged(number, b"h\xfcte", number, command=text) for number, text in enumerate(commands, 1)]
        hosts = [":", "[::1]", "a host", "host", "user@host.domain"]
        trace = self.trace(*lines, *[logged(1, host) for host in hosts])
        self.assertEqual(sorted(trace.processes.values()), sorted([*hosts, "h\ufffdte"]))
        told = [event["args"]["command"] for event in trace.host("h\ufffdte")["slot 1"]]
        self.assertEqual(told, list(commands.values()))


class Refused(TimelineCase):
    """What cannot work is refused in one line, and leaves things as they were."""

    def setUp(self) -> None:
        super().setUp()
        self.log = b"".join(logged(number, began=number) for number in range(1000))
        self.write_journal(self.log)

    def test_results_that_cannot_be_written(self) -> None:
        (self.dir / "dir").mkdir()
        os.mkfifo(self.dir / "fifo")
        (self.dir / "link").symlink_to("fifo")
        (self.dir / "self").symlink_to("out/journal")
        self.write(". true\n")
        self.write("{}", "other.json")
        self.write('{"traceEvents":[\n]}\n', "trace.json")
        (self.dir / "queue").symlink_to("runs.txt")
        words = {"dir": "is a directory", "missing/out.json": "no such file or directory",
                 "fifo": "not a regular file", "link": "not a regular file",
                 **dict.fromkeys(("self", "runs.txt", "other.json", "trace.json", "queue"),
                                 "not written by this option")}
        for call, ended in self.run_all((RUNWAIT, "--outdir", "out", "--timeline", name) for name in words):
            with self.subTest(call[-1]):
                self.assertRefused(ended, f"{RUNWAIT}: {call[-1]}: {words[call[-1]]}")
        self.assertNothingLeft("out", *[name for name in words if "/" not in name])
        self.assertEqual(self.read("out/journal"), self.log)
        self.assertTrue((self.dir / "fifo").is_fifo())
        self.assertEqual(self.read(), b". true\n")

    def test_a_directory_that_one_may_not_write_to(self) -> None:
        bound = bound_by_permissions(self)
        (self.dir / "dir").mkdir(mode=0o555)
        self.assertRefused(self.draw(out="dir/out.json", **bound), "dir/out.json: permission denied")

    def test_a_full_disk_leaves_the_older_timeline(self) -> None:
        limit = (20_000, 20_000)
        for left in [], ["out.json"]:
            with self.subTest(left=left):
                for name in left:
                    self.write(OLDER, name)
                ended = self.draw(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
                self.assertRefused(ended, "out.json: file too large")
                self.assertNothingLeft("out", *left)
        self.assertEqual(self.read("out.json"), OLDER)

    def test_interrupted_it_leaves_nothing(self) -> None:
        patch = ("import runwait4, time\n"
                 "def hang(*args):\n"
                 "    print('up', flush=True)\n"
                 "    while True: time.sleep(0.1)     # one that comes before a sleep does not end it\n"
                 "runwait4.trace_events = hang\n")
        for number in signal.SIGINT, signal.SIGTERM:
            with self.subTest(signal=number):
                options = "--outdir", "out", "--timeline", "out.json"
                drawing = self.start_patched(patch, *options, script=RUNWAIT)
                with deadline(drawing):
                    present(drawing.stdout).readline()
                self.assertEqual(len(os.listdir(self.dir)), 2)
                ended = self.stop(drawing, number)
                self.assertEqual((ended.code, ended.err), (128 + number, b""))
                self.assertNothingLeft("out")

    def test_a_new_timeline_replaces_the_older_one_also_behind_a_link(self) -> None:
        self.write(OLDER * 100_000, "older.json")
        (self.dir / "out.json").symlink_to("older.json")
        with open(self.dir / "older.json", "rb") as reader:
            trace = self.trace()
            self.assertEqual(reader.read(), OLDER * 100_000, "who reads the older one reads it to its end")
        self.assertEqual(len(trace.all), 1000)
        self.assertTrue((self.dir / "out.json").is_symlink())
        self.assertNothingLeft("out", "out.json", "older.json")

    def test_it_has_the_mode_of_the_older_one_or_what_the_umask_allows(self) -> None:
        for mode in 0o640, 0o600:
            self.assertEqual(self.draw(preexec_fn=lambda: os.umask(0o027)).code, 0)
            self.assertEqual((self.dir / "out.json").stat().st_mode & 0o777, mode)
            (self.dir / "out.json").chmod(0o600)

    def test_a_name_as_long_as_names_may_be(self) -> None:
        for _ in range(2):              # the second time there is an older timeline
            self.assertEqual(self.draw(out="x" * 255).code, 0)
        self.assertNothingLeft("out", "x" * 255)


class BlockedByACheck(RunCase):
    """A failed `barrier check` that stops new jobs ends the waiting: exit 1, and which line failed."""

    def assertBlocked(self, waiter: subprocess.Popen[bytes], failed: int, check: int) -> Ended:
        """It ends, exit 1, and one line on stderr names both lines."""
        ended = self.finish(waiter)
        self.assertEqual(ended.code, 1, ended.err)
        self.assertRegex(ended.err, rb"^runwait4\.py: runs\.txt: .*line %d\b.*barrier check.*line %d\b.*\n$"
                         % (failed, check))
        self.assertEqual(ended.err.count(b"\n"), 1)
        return ended

    def assertWait(self, *waiters: subprocess.Popen[bytes]) -> None:
        """None of them comes to an end within the time of two more looks."""
        end = time.monotonic() + 0.5
        for waiter in waiters:
            with self.assertRaises(subprocess.TimeoutExpired, msg=waiter.args):
                waiter.wait(max(end - time.monotonic(), 0.01))

    def test_it_ends_and_says_so(self) -> None:
        calls = {"! a\n#RUN barrier check\n. b\n": (1, 2),
                 "d a\ne b\n# c\n#RUN barrier check\nd c\n. b\n": (2, 4)}
        for text, lines in calls.items():
            with self.subTest(text):
                self.write(text)
                ended = self.assertBlocked(self.start(RUNWAIT, "-p", "-e", "runs.txt"), *lines)
                self.assertRegex(ended.out, rb"^progress: .* jobs processed, 1 errors \[.*\]\n$")
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
    def test_a_job_left_behind_counts_as_failed(self) -> None:
        self.write("r a\n#RUN barrier check\n. b\n")
        self.assertBlocked(self.start_patched(HASTY, "runs.txt", script=RUNWAIT), 1, 2)

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
