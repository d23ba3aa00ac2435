"""Promise: a journal is read run by run, whatever stands in it, in little memory."""
import contextlib
import json
import os
import random
import re
import stat
import tracemalloc
import unittest
import unittest.mock
from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple, Optional

import runmaker4
import runwait4
from tests.support.journal import BEGAN, end, pair, start
from tests.support.journal_case import JournalCase
from tests.support.scripts import FULL, RUNMAKER
from tests.support.strange_json import NO_NUMBERS, STRANGE
from tests.support.values import as_bytes, present


def fields_of(run: runwait4.RunRecord) -> dict[str, Any]:
    return {name: getattr(run, name) for name in run.__slots__}


class Runs(JournalCase):
    """What is told of runs, in little memory however many there are."""

    def test_a_run_has_all_that_its_end_tells(self) -> None:
        self.journal(*pair(1, 17, "simulate --seed 1", cause="timeout", state="!", exit=-1, signal=15))
        (run,), said = self.runs()
        self.assertEqual(fields_of(run), dict(
            run="node1-4711-1", line=17, command=b"simulate --seed 1", host="node1", slot="1", pid=4712,
            time=BEGAN + 1.5, began=BEGAN, ended=BEGAN + 1.5, state="!", exit=-1, signal=15, cause="timeout",
            seconds=1.5, cpu=1.2, memory=100_000_000, memory_below=None, promised=None, bytes=4,
            files=["17.out", "17.err"], stdout="", stderr="", directory="", why="", incomplete=False,
            gathered=0.0, travelled=0, runner=None, position=2))
        self.assertEqual(said, [])

    def test_each_comes_once_as_they_ended_and_then_those_that_have_not(self) -> None:
        again = start("b", 2), end("b", 2)          # a server was restarted before it could say that it knows
        self.journal(start("a", 1), *again, start("c", 3), end("d", 4), end("a", 1), *again)
        self.assertEqual(self.names(), ["b", "d", "a", "c"])
        run = self.runs()[0][-1]
        self.assertEqual((run.state, run.began, run.ended, run.seconds, run.cpu, run.memory, run.files),
                         ("", BEGAN, None, None, None, None, ()))
        # a start may stand behind its own end
        self.journal(end("a", 1), start("a", 1), end("c", 3), start("b", 2))
        self.assertEqual(self.names(), ["a", "c", "b"])

    def test_commands_and_what_was_printed_come_back_byte_for_byte(self) -> None:
        command = bytes(range(1, 10)) + bytes(range(11, 256)) + "é".encode()
        printed = bytes(range(256)) + "é😀".encode() + bytes(range(255, -1, -1))
        self.journal(*pair(1, 1, command, stdout=os.fsdecode(printed), stderr=os.fsdecode(printed[::-1])),
                     start(2, 2, command))
        (run, other), said = self.runs()
        self.assertEqual((run.command, other.command), (command, command))
        self.assertEqual((os.fsencode(run.stdout), os.fsencode(run.stderr)), (printed, printed[::-1]))
        self.assertEqual(said, [])

    def test_a_start_that_comes_again_names_files_and_an_earlier_server_s_files_are_kept(self) -> None:
        self.journal(start(1, 7), start(2, 8), start(1, 7, files=["7.out"]), start(2, 8, files=["8.out"]),
                     start(1, 7, files=["7.out", "7.err"]), start(2, 8, runner=5),
                     end(2, 8, runner=5, files=["8.out.~1~"]))
        self.assertEqual([(run.line, run.files) for run in self.runs()[0]],
                         [(8, ["8.out", "8.out.~1~"]), (7, ["7.out", "7.err"])])

    def test_so_are_they_if_the_run_has_ended_before_the_next_server_writes_that_it_goes_on(self) -> None:
        self.journal(start(1, 7), start(1, 7, files=["7.out"]), end(1, 7, runner=5, files=[]),
                     start(2, 8, files=["8.out"]), start(2, 8, runner=5, files=["8.out.~1~"]),
                     end(2, 8, runner=6, files=["8.out.~2~"]),
                     start(3, 9, files=["9.out"]), end(3, 9, state="e", cause="lost", files=["9.out"]),
                     end(3, 9, runner=5, files=["9.err"]))
        self.assertEqual([(run.line, run.files) for run in self.runs()[0]],
                         [(7, ["7.out"]), (8, ["8.out", "8.out.~1~", "8.out.~2~"]), (9, ["9.out", "9.err"])])

    def test_memory_does_not_grow_with_the_runs(self) -> None:
        def peak(count: int) -> int:
            with open(self.dir / "out" / "journal", "wb") as file:
                for number in range(count):
                    file.writelines(pair(number, number, "true" * 50))
            tracemalloc.start()
            try:
                self.assertEqual(sum(1 for _ in self.opened().start_pass()), count)
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        self.journal()
        with unittest.mock.patch.multiple(runwait4, MAX_REMEMBERED_RUNS=100):
            self.assertLess(peak(6000), 1.2 * peak(2000))

    def test_no_end_that_a_runner_writes_is_checked_field_by_field(self) -> None:
        has_file = "until [ -s out/4.out ]; do sleep 0.02; done"
        self.write(f"#RUN memory=100M\n. echo 'a\\b'; echo \\\"é >&2; false\n#RUN\n. echo a; {has_file}\n"
                   ". kill $$\n#RUN timeout=0.1\n. sleep 600\n. a\0\n")
        self.run_script(RUNMAKER, "-q", "--outdir", "out", "runs.txt")
        journal = self.read("out/journal").splitlines(keepends=True)
        self.journal(*(line for line in journal if b'"event": "end"' in line))
        with unittest.mock.patch.object(runmaker4.RunFields, "__init__", self.fail):
            runs, said = self.runs()
        self.assertEqual(({(run.line, run.state) for run in runs}, said),
                         ({(2, "!"), (4, "d"), (5, "!"), (7, "!"), (8, "e")}, []))


class Trouble(JournalCase):
    """What makes no sense is skipped, and said once."""

    def test_unknown_events_and_fields_and_other_ways_to_write_json_are_no_trouble(self) -> None:
        lines = [json.dumps(dict(reversed(json.loads(line).items())), ensure_ascii=False,
                            separators=(",", ":")).encode() + b"\n" for line in [*pair("é", 1), start(2, 2)]]
        self.journal(b'{"event": "nap", "time": 3}\n', *pair(1, 1, future={"a": [1]}), *lines)
        self.assertEqual(self.names(), ["1", "é", "2"])

    def test_the_runs_of_some_commands_are_found_without_a_pass(self) -> None:
        self.journal(*pair(1, 1, "a"), start(2, 2, "b"), *pair(3, 3, 'echo "event": "start"'),
                     json.dumps(json.loads(end(4, 4, "é")), ensure_ascii=False).encode() + b"\n")
        journal = self.opened()
        journal.read_on()
        self.assertEqual([run.line for run in journal.runs_of([b"a", b"b"])], [1, 4, 2])
        self.assertEqual([run.line for run in journal.runs_of([b'echo "event": "start"'])], [3, 4])

    def test_what_is_written_later_is_read_then(self) -> None:
        lines = [end(number, number, "a", stdout="x" * 999, files=[]) for number in range(1, 5)]
        whole = b"".join(lines)
        self.journal(lines[0])
        said: list[str] = []
        with contextlib.closing(runwait4.JournalReader(str(self.dir / "out"), said.append)) as journal:
            for size in (0, 1, 2 * len(lines[0]), len(whole) - 1, len(whole)):
                self.write(whole[:size], "out/journal")
                journal.read_on()
                self.assertEqual([run.line for run in journal.runs_of([b"a"])],
                                 [*range(1, size // len(lines[0]) + 1)])
        self.assertEqual(said, [])

    def test_commands_of_one_hash_are_told_apart(self) -> None:
        self.write("".join(f"! {name}\n" for name in "abc"))
        self.journal(*(end(name, line, name, stdout=f"{name}\n", files=[])
                       for line, name in enumerate("abc", 1)))
        with unittest.mock.patch.object(runwait4, "hash", lambda _: 0, create=True):
            self.assertEqual(re.findall(r"\| (.*)", self.view("--show", "2")), ["b"])

    def test_foreign_lines(self) -> None:
        odd = [b"hello\n", b"\0\0\n", b"\xff\n", b"[]\n", b"7\n", b"{}\n", b'{"event": 3}\n',
               b"9" * 9999 + b"\n", b"[" * 99999 + b"\n", end(2, 2)[:50] + end(3, 3),
               end(4, 4)[:-1] + b" x\n"]
        values: dict[str, list[Any]] = {
            "time": ["now", 1e300, float("nan"), -1, True], "line": [1.5, "1"], "command": [None, "\ud800"],
            "host": [7], "slot": ["\udfff"], "pid": [None], "state": [1, "", "r", "d!", []], "exit": ["3"],
            "seconds": [None, "", [], float("inf"), 10**400, False], "cpu": ["1", True],
            "memory": [-5, 1.5], "memory_below": ["30", -1], "promised": ["4G", -1], "runner": ["7", True],
            "bytes": [1.0], "files": [None, [7], ["\ud800.err"], "1.out", {"1.out": 3}, [["1.out"]]],
            "cause": [[]], "incomplete": [1, "true", None], "stdout": [None, "\ud800"],
            "stderr": [["text"]], "directory": [7], "why": [{}],
        }
        wrong = [(key, value) for key, several in values.items() for value in several]
        odd += [json.dumps({**json.loads(end(f"w{number}", 1)), key: value}).encode() + b"\n"
                for number, (key, value) in enumerate(wrong)]
        self.journal(start(1, 1), *odd, b"\n", end(1, 1))
        runs, (said,) = self.runs()
        self.assertEqual([run.run for run in runs], ["node1-4711-1"])
        self.assertRegex(said, rf"out/journal: {len(odd)} lines skipped: .* \(lines 2, 3, 4, .*, \.\.\.\)$")

    def test_an_end_as_it_is_written_is_checked_like_any_other(self) -> None:
        """With a blank in front, it is JSON that no runner writes."""
        fields = {
            "time": BEGAN + 1, "event": "end", "run": "node1-4711-1", "line": 3, "command": "true",
            "host": "node1", "slot": "1", "pid": 4712, "runner": 1783855833, "directory": "/home/me",
            "promised": 1 << 20, "files": ["3.out", "3.err"], "state": "d", "exit": 0, "signal": 0,
            "cause": "", "seconds": 0.5, "cpu": 0.4, "memory": 1 << 20, "memory_below": None, "bytes": 6,
            "why": "stopped", "stdout": "3.5\n", "stderr": "", "gathered": 0.05}
        values = [*STRANGE, *NO_NUMBERS, *(str(1 << bits) for bits in (8, 31, 59)), *r"""
            1 01 1. .5 -0 1e1 255 9999999999.5 99999999999.5 "d" "x" "dd" "\u00e9" "\ud7ff" "\ud83d\ude00"
            "\uD800" "a\tb" "\/" "\\n" "\"" "\x" "\u12" ["a"] ["a","b"] ["a",1] ["\ud800"] ["\""]""".split(),
            '"\t"', '["a", "b"]', '"a", "b": "c"', '1, "exit": 3']
        lines = []
        for name, valid in fields.items():
            parts = [f'"{other}": %s' % (json.dumps(value) if other != name else "%s")
                     for other, value in fields.items()]
            body = "{%s}" % ", ".join(parts)
            lines += [(body % value).encode() for value in (json.dumps(valid), *values)]
            lines.append(("{%s}" % ", ".join(part for part in parts if "%s" not in part)).encode())
        self.assertGreater(sum(bool(runwait4.PLAIN_END.fullmatch(line.decode())) for line in lines), 50)
        for line in lines:
            found = []
            for form in line, b" " + line:
                invalid: set[int] = set()
                runs = runwait4.read_runs([(1, form)], invalid)
                told = map(fields_of, runs)
                found.append(([(fields, [*map(type, fields.values())]) for fields in told], invalid))
            self.assertEqual(found[0], found[1], line)

    def test_lines_that_are_too_long(self) -> None:
        """However they lie in the blocks that are read at a time."""
        for size in 300, 936, 1065, 5000:
            self.journal(start(1, 1), b" " * size, b"\n", end(1, 1), end(2, 2), b" " * size)
            with unittest.mock.patch.multiple(runwait4.JournalReader, MAX_LINE_BYTES=1000, READ_BYTES=64):
                runs, (said,) = self.runs()
            self.assertEqual([run.line for run in runs], [1, 2])
            self.assertIn("2 lines skipped: truncated, or not lines of a journal (lines 2, 5)", said)

    def test_a_damaged_start_is_told_although_its_end_says_the_same(self) -> None:
        began = start(1, 1)
        for damaged in (began.replace(b'{"time": 1', b'{"time": 01'),
                        began.replace(b"true", b"tr\xffue"), began.replace(b'": ', b'"; ', 1),
                        began[:-9] + b"\n"):
            with self.subTest(damaged):
                self.journal(damaged, *pair(2, 2), end(1, 1))
                runs, (said,) = self.runs()
                self.assertEqual([run.line for run in runs], [2, 1])
                self.assertIn("1 line skipped: truncated, or not lines of a journal (line 1)", said)

    def test_a_start_that_differs_from_its_end_is_no_other_run(self) -> None:
        """An editor has moved its line meanwhile; another version writes no blanks, or another order."""
        began = start(1, 1)
        for other in (start(1, 2), began.replace(b'": ', b'":'),
                      json.dumps(dict(reversed(json.loads(began).items())))):
            self.journal(as_bytes(other).rstrip() + b"\n", end(1, 1))
            runs, said = self.runs()
            self.assertEqual(([run.line for run in runs], said), ([1], []))

    def test_a_last_line_that_is_cut_anywhere(self) -> None:
        whole, last = b"".join(pair(1, 1)), end(2, 2)
        for size in (1, 20, 60, len(last) - 1):
            self.journal(whole, last[:size])
            runs, (said,) = self.runs()
            self.assertEqual([run.line for run in runs], [1])
            self.assertIn("1 line skipped", said)

    def test_random_damage_is_survived(self) -> None:
        text = b"".join(line for number in range(20) for line in pair(number, number, stdout="text"))
        rng = random.Random(7)
        for _ in range(200):
            data = bytearray(text)
            for _ in range(rng.randrange(1, 8)):
                at = rng.randrange(len(data))
                data[at:at + rng.randrange(30)] = rng.choice([b"", b"\n", b"\0", b"{", b'"', b"\xff"])
            self.journal(bytes(data))
            runs, said = self.runs()
            self.assertGreater(len(runs), 5)
            self.assertLessEqual(len(said), 1)

    def test_a_directory_without_a_journal(self) -> None:
        self.write("", "file")
        (self.dir / "old").mkdir()
        (self.dir / "odd" / "journal").mkdir(parents=True)
        (self.dir / "fifo").mkdir()
        os.mkfifo(self.dir / "fifo" / "journal")
        for name, words in {"missing": "no such file or directory", "file": "not a directory",
                            "old": "no such file or directory", "odd": "is a directory",
                            "fifo": "not a regular file"}.items():
            with self.assertRaisesRegex(runmaker4.UsageError, words):
                runwait4.JournalReader(str(self.dir / name), self.fail)


class OnANetwork(JournalCase):
    """What other hosts have written is read, not what this host remembers."""

    def setUp(self) -> None:
        super().setUp()
        self.journal(*pair(1, 1), *pair(2, 2), *pair(3, 3))
        (self.dir / "out" / "3.out").write_text("as it is now\n")

    def on(self, kind: str, **calls: Any) -> Any:
        """Have the directory on a file system of this kind, where calls of os do something else."""
        mount = runmaker4.Mount(kind, frozenset())
        patches = contextlib.ExitStack()
        patches.enter_context(unittest.mock.patch.object(runwait4, "find_mount", lambda path: mount))
        patches.enter_context(unittest.mock.patch.multiple(os, **calls))
        return patches

    def test_all_of_it_is_read_past_the_pages_and_the_size_that_this_host_remembers(self) -> None:
        fstat = os.fstat

        def remembered(fd: int) -> os.stat_result:
            info = list(fstat(fd))
            info[stat.ST_SIZE] = 0
            return os.stat_result(info)

        with self.on("nfs4", fstat=remembered):
            self.assertEqual(self.names(), ["1", "2", "3"])
            self.assertNotEqual(self.opened().file.reading_mode, runmaker4.Reading.CACHED)

    def test_so_is_what_a_run_has_printed(self) -> None:
        runs, _ = self.runs()
        runs[-1].files = ["3.out"]
        direct, dropped = unittest.mock.Mock(wraps=os.preadv), unittest.mock.Mock()
        with self.on("nfs4", preadv=direct, posix_fadvise=dropped):
            output = runwait4.RunOutput(str(self.dir / "out"))
            self.assertEqual(output.last_lines(runs[-1]), (["as it is now"], ""))
        self.assertTrue(direct.called or dropped.called)

    def test_a_journal_that_another_host_has_just_made_is_there_once_its_directory_was_listed(self) -> None:
        unseen, here, listdir = self.dir / "unseen", self.dir / "out" / "journal", os.listdir
        here.rename(unseen)

        def see(folder: Any) -> list[str]:
            if unseen.exists():
                unseen.rename(here)
            return listdir(folder)

        with self.on("fuse.glusterfs", listdir=see):
            self.assertEqual(self.names(), ["1", "2", "3"])


STATES = {"d": "done", "!": "failed", "e": "error"}


class Told(NamedTuple):
    """What a journal tells of a run, as the model has it."""
    line: int
    command: bytes
    has_ended: bool
    at: int             # the place of the entry
    state: str
    exit: int           # no other run has it
    began: float


class Random(JournalCase):
    """Random journals: equal commands, moved lines, retries, ends that are lost or come twice, cut lines."""
    COUNT = 300
    VIEWED = COUNT if FULL else 20
    WORDS = {b".": "new", b"d": "done", b"!": "failed", b"e": "error", b"r": "error", b"x": "held"}

    def test_the_reader_whose_run_it_is_and_all_views_agree_with_a_model(self) -> None:
        for seed in range(self.COUNT):
            with self.subTest(seed=seed):
                lines, told, odd = self.make(random.Random(seed))
                self.check(lines, told, odd)
                if seed < self.VIEWED:
                    self.check_views(lines, told)

    def make(self, rng: random.Random) -> tuple[list[runmaker4.Line], dict[str, Told], int]:
        """A journal; the job lines, what it tells of each run, and how many entries of it make no sense."""
        commands = [b"a", b"b", b"c"]
        lines = [runmaker4.Line(number, 0, rng.choice([*self.WORDS]), b" " + rng.choice(commands))
                 for number in sorted(rng.sample(range(1, 30), rng.randrange(1, 12)))]
        entries: list[bytes] = []
        told: dict[str, Told] = {}
        odd = 0
        for number in range(rng.randrange(30)):
            line = rng.randrange(1, 30)
            command = rng.choice(commands)
            host, began = rng.choice([("node1", BEGAN), ("node2", BEGAN + 3600)])
            state = rng.choice("d!e")
            name = f"node1-4711-{number}"
            fate = rng.choice(["whole", "no end", "no start", "twice", "cut", "lost and back"])
            its_end = end(number, line, command, began, state=state, exit=number, host=host)
            if fate != "no start":
                entries.append(start(number, line, command, began, host=host))
                told[name] = Told(line, command, False, len(entries), "", -1, began)
            if fate == "cut":
                entries.append(its_end[:-9] + b"\n")
                odd += 1
            elif fate == "lost and back":
                entries.append(end(number, line, command, began, state="e", cause="lost", host=host))
            if fate not in ("no end", "cut"):
                entries.append(its_end)
                told[name] = Told(line, command, True, len(entries), state, number, began)
            if fate == "twice":
                entries.append(entries[-1])
        self.journal(*entries)
        return lines, told, odd

    @staticmethod
    def place(lines: list[runmaker4.Line], told: Collection[Told], run: Told) -> int:
        """The number at which the line of a run is looked for; numbers of as many lines pair in order."""
        numbers = sorted(line.number for line in lines if line.command == run.command)
        known = sorted({other.line for other in told if other.command == run.command})
        return numbers[known.index(run.line)] if len(known) == len(numbers) else run.line

    def whose(self, lines: list[runmaker4.Line], told: Collection[Told], run: Told) -> Optional[int]:
        """The number of the line whose run it is, by the rule."""
        alike = [line for line in lines if line.command == run.command]
        if not run.has_ended:
            alike = [line for line in alike if line.state == b"r"] or alike
        place = self.place(lines, told, run)
        return min((line.number for line in alike), key=lambda number: (abs(number - place), -number),
                   default=None)

    def by_line(self, lines: list[runmaker4.Line], told: Collection[Told]) -> dict[int, list[Told]]:
        of: dict[int, list[Told]] = {line.number: [] for line in lines}
        for run in sorted(told, key=lambda run: run.at):
            if number := self.whose(lines, told, run):
                of[number].append(run)
        return of

    def last(self, lines: list[runmaker4.Line], told: Collection[Told]) -> dict[int, Optional[Told]]:
        """The last run of each line: the one told last."""
        return {number: runs[-1] if runs else None for number, runs in self.by_line(lines, told).items()}

    def recorded(self, line: runmaker4.Line, last: dict[int, Optional[Told]]) -> Optional[Told]:
        """The last run of a line that is failed or in error, if it ended so, or has no end."""
        run = last[line.number]
        return run if run and (not run.has_ended or STATES[run.state] == self.WORDS[line.state]) else None

    def check(self, lines: list[runmaker4.Line], told: dict[str, Told], odd: int) -> None:
        runs, said = self.runs()
        found = {run.run: (run.line, run.command, run.ended is not None, run.position) for run in runs}
        self.assertEqual(found, {name: run[:4] for name, run in told.items()})
        self.assertEqual(len(runs), len(told))
        self.assertEqual(bool(said), odd > 0)
        known = runwait4.LineRuns(lines, (), runs)
        for run in runs:
            line = known.line_of(run)
            self.assertEqual(line.number if line else None, self.whose(lines, told.values(), told[run.run]))
        last = self.last(lines, told.values())
        self.assertEqual({number: told[run.run] for number, run in known.last_runs.items()},
                         {number: run for number, run in last.items() if run})

    def test_a_line_that_an_edit_has_replaced_meanwhile_is_no_error(self) -> None:
        """One number was read twice, with an edit in between: only the second line is known."""
        self.journal(start(1, 6, b"b"))
        runs, _ = self.runs()
        lines = [runmaker4.Line(5, 0, state, text) for state, text in ((b"r", b" a"), (b"x", b" b"))]
        known = runwait4.LineRuns(lines, {5}, runs)
        self.assertFalse(known.is_last_run_certain(lines[0]))

    def check_views(self, lines: list[runmaker4.Line], told: dict[str, Told]) -> None:
        texts = {line.number: line.state + line.text for line in lines}
        path = self.write(b"".join(texts.get(number, b"# none") + b"\n" for number in range(1, 31)))
        os.utime(path, (BEGAN, BEGAN))                  # no end is on its way any more
        of = self.by_line(lines, told.values())
        last = self.last(lines, told.values())
        self.check_status(lines, last)
        self.check_failed(lines, last)
        states: Counter[str] = Counter()
        for run in told.values():
            states[self.state_of(run, lines, told.values(), last)] += 1
        for line in lines:
            rows = json.loads(self.view("--show", str(line.number), "--json"))["runs"]
            self.assertEqual({row["state"] for row in rows}, {self.WORDS[line.state]})
            self.assertEqual([(row["start"], row["exit"], row["outcome"]) for row in rows if row["outcome"]],
                             [(run.began, run.exit if run.has_ended else None,
                               self.state_of(run, lines, told.values(), last)) for run in of[line.number]])
        self.check_stats(sum(run.has_ended for run in told.values()))
        self.check_report(states, lines, told.values())

    def state_of(self, run: Told, lines: list[runmaker4.Line], told: Collection[Told],
                 last: dict[int, Optional[Told]]) -> str:
        """What is told of a run: of one that has not ended, by its line."""
        if run.has_ended:
            return STATES[run.state]
        number = self.whose(lines, told, run)
        lost = number is not None and last[number] == run and any(
            line.number == number and self.WORDS[line.state] == "error" for line in lines)
        return "error" if lost else "unknown"

    def check_status(self, lines: list[runmaker4.Line], last: dict[int, Optional[Told]]) -> None:
        status = json.loads(self.view("--status", "--json"))
        counted = Counter(self.WORDS[line.state] for line in lines)
        self.assertEqual({name: status[name] for name in self.WORDS.values()},
                         {name: counted[name] for name in self.WORDS.values()})
        self.assertEqual((status["total"], status["running"], status["jobs"]), (len(lines), 0, []))
        orphans = {}
        for number in [line.number for line in lines if line.state == b"r"]:
            run = last[number]
            orphans[number] = run.began if run and not run.has_ended else None
        self.assertEqual({job["line"]: job["start"] for job in status["orphans"]}, orphans)

    def check_failed(self, lines: list[runmaker4.Line], last: dict[int, Optional[Told]]) -> None:
        heads = re.findall(r"^line (\d+): (.*)", self.view("--failed"), re.MULTILINE)
        bad = [line for line in lines if line.state in (b"!", b"e", b"r")]
        self.assertEqual([int(number) for number, _ in heads], [line.number for line in bad])
        for line, (_, head) in zip(bad, heads):
            run = self.recorded(line, last)
            if run is None:
                self.assertIn("no recorded run", head)
            elif run.has_ended:
                self.assertIn(f"exit {run.exit} on ", head)
            else:
                self.assertIn("unknown on " if line.state == b"!" else "lost on ", head)
        rows = json.loads(self.view("--failed", "--json"))["runs"]
        self.assertEqual([(row["line"], row["start"]) for row in rows],
                         [(line.number, run and run.began) for line in bad
                          for run in [self.recorded(line, last)]])

    def check_stats(self, ended: int) -> None:
        if not ended:
            with self.assertRaisesRegex(runmaker4.UsageError, "no finished runs"):
                self.view("--stats")
            return
        stats = json.loads(self.view("--stats", "--json"))
        counted = [sum(row["runs"] for row in stats[kind]) for kind in ("hosts", "commands")]
        self.assertEqual([stats["all"]["runs"], *counted], [ended] * 3)

    def check_report(self, states: Counter[str], lines: list[runmaker4.Line], told: Collection[Told]) -> None:
        if not told:
            with self.assertRaisesRegex(runmaker4.UsageError, "no runs"):
                self.view(f"--report={self.dir}/page.html")
            return
        self.view(f"--report={self.dir}/page.html")
        text = self.read("page.html").decode()
        data = json.loads(present(re.search('id="data">(.*?)</script>', text))[1])
        rows = [dict(zip(data["fields"], row)) for row in data["rows"]]
        runs = [row for row in rows if row["outcome"]]
        self.assertEqual(Counter(row["outcome"] for row in runs), states)
        self.assertEqual(sorted(row["line"] for row in runs),
                         sorted(self.whose(lines, told, run) or run.line for run in told))
        bad = {line.number for line in lines if line.state in (b"!", b"e", b"r")}
        self.assertLessEqual(bad, {row["line"] for row in rows if row["is_last"]})
