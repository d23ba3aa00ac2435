"""Promise: the format of the job file (CR, byte-order mark, UTF-16, any bytes) is read alike everywhere."""
import itertools
import json
import os
import pathlib
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Callable

import runmaker4
from tests.support.case import Case
from tests.support.job_file import BOM, Job, parse
from tests.support.scripts import FULL, RUNMAKER, RUNSET, RUNWAIT, SCRIPTS_AT

FILES = 300 if FULL else 60
LONG_AGO = 1_000_000_000            # so that a last line without a newline counts
OURS = runmaker4.OUR_STATES
WORDS = {bytes([state]): runmaker4.STATE_WORDS[bytes([state])] for state in runmaker4.RUNNER_STATES}

# Calls main() of a script for each file; what it prints goes to two files beside.  One process: imports take
# long.
READ_ALL = """
import importlib, os, sys
script, suffix, *options = sys.argv[1].split()
main = importlib.import_module(script).main
for path in sys.argv[2:]:
    for number, name in (1, path + suffix), (2, path + ".err"):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    code = main([*options, path])
    os.write(2, b"exit %d" % code)
    os.closerange(3, 1000)
"""


def stray(data: bytes) -> list[int]:
    """The lines that are neither jobs, nor comments, nor blank, and not just being written."""
    jobs = [number for number, _, _ in parse(data)]
    lines = data[len(BOM):].split(b"\n") if data.startswith(BOM) else data.split(b"\n")
    if len(lines[-1]) == 1:
        lines.pop()
    return [number for number, line in enumerate(lines, 1)
            if number not in jobs and line.strip(b" \t\r\f\v")
            and (not line.startswith(b"/") or (not jobs and line[1:2] not in b"\r\f\v/* \t"))
            and not line.lstrip(b" \t\r\f\v").startswith(b"#")]


def near_misses(random_: random.Random) -> bytes:
    """Bytes that mean something, in any order."""
    alphabet = OURS + b"#/ \t\r\n\n\n\0\xff\xef\xbb\xbf\xc3\xa9ab'"
    return bytes(random_.choices(alphabet, k=random_.randrange(300)))


def job_lines(random_: random.Random) -> bytes:
    """Mostly good lines; some files are larger than what is read at once."""
    longest = random_.choice([10, 10, 10, 300, 30_000])
    lines = []
    for _ in range(random_.randrange(60)):
        state = bytes(random_.choices(OURS + b"#/q\x80", k=1))
        separator = random_.choice([b" ", b" ", b"\t", b"", b"x"])
        command = random_.randbytes(random_.randrange(longest)).replace(b"\n", b"|")
        lines.append(state + separator + command + random_.choice([b"\n", b"\n", b"\r\n"]))
    return random_.choice([b"", BOM]) + b"".join(lines)


def is_script(data: bytes) -> bool:
    """Whether a file begins as a program does; with a stray line it is no job file."""
    return re.match(rb"(?:\xef\xbb\xbf)?#! */", data) is not None


def said_of(strays: Sequence[int], jobs: bool, data: bytes) -> bytes:
    """What is said of lines that are neither jobs nor comments, where there are jobs or none."""
    if not strays:
        return b""
    if is_script(data):
        return b": line %d is neither a job nor a comment, so this is a script (" % strays[0]
    if not jobs and b"\0" in data[:4096]:
        return b"no jobs, and not a text file ("
    if not jobs:
        return b"no jobs; line %d is plain text (" % strays[0]
    return b": line %d is neither a job nor a comment (" % strays[0]


class RandomBytes(Case):
    """Whatever bytes a file holds, the scripts see the jobs that the format says, and change nothing."""

    def setUp(self) -> None:
        super().setUp()
        random_ = random.Random(4)
        makers: list[Callable[[random.Random], bytes]] = [
            lambda random_: random_.randbytes(random_.randrange(2000)), near_misses, job_lines]
        self.files = {}
        for number in range(FILES):
            data = makers[number % len(makers)](random_)
            if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data.endswith(b"\r"):
                data += b"\n"               # a carriage return ends a line only together with a newline
            path = self.write(data, f"{number}.txt")
            os.utime(path, (LONG_AGO, LONG_AGO))
            self.files[path] = data

    def read_all(self, paths: Sequence[pathlib.Path], call: str) -> Iterator[tuple[bytes, list[Job], bytes]]:
        """Let a script read these files: the bytes of each, its jobs, and what the script printed."""
        # several at once: a file whose last line is cut takes --status a second
        calls = [(sys.executable, "-c", READ_ALL, call, *paths[part::8]) for part in range(8)]
        for _, ended in self.run_all(calls, env={"PYTHONPATH": str(SCRIPTS_AT)}):
            self.assertEqual((ended.code, ended.out, ended.err), (0, b"", b""))
        for path in paths:
            data = self.files[path]
            self.assertEqual(path.read_bytes(), data)
            out, err = self.read(path.name + call.split()[1]), self.read(path.name + ".err")
            jobs, strays = parse(data), stray(data)
            self.assertEqual(err.count(b"\n"), len(strays[:1]), data[:1000])
            self.assertIn(said_of(strays, bool(jobs), data), err)
            is_refused = bool(strays) and (not jobs or is_script(data))
            self.assertTrue(err.endswith(b"exit 2" if is_refused else b"exit 0"), (err, data[:1000]))
            if not is_refused:
                yield data, jobs, out

    def test_the_list_shows_the_jobs_that_are_there(self) -> None:
        for data, jobs, out in self.read_all(list(self.files), "runset4 .list --list"):
            notes = {**dict.fromkeys(WORDS, b""), b"c": b" (cancelled)"}
            shown = (b"%d %s%s %s\n" % (number, state, notes.get(state, b" (held)"), command)
                     for number, state, command in jobs)
            self.assertEqual(out, b"".join(shown), data[:1000])

    def test_the_status_counts_the_jobs_that_are_there(self) -> None:
        states = {path: {state for _, state, _ in parse(data)} for path, data in self.files.items()}
        # a file with held jobs only, in states that nobody writes, is refused
        files = [path for path, found in states.items() if not found or found & {*runmaker4.STATE_WORDS}]
        quick = [path for path in files if b"r" not in states[path]]
        # the others take seconds each: three looks at the orphans
        self.assertGreater(len(quick), FILES // 3)
        for data, jobs, out in self.read_all(quick, "runwait4 .status --status --json"):
            status = json.loads(out)
            self.assertEqual((status["total"], status["jobs"]), (len(jobs), []), data[:1000])
            found = Counter({word: status[word] for word in (*WORDS.values(), "held")})
            self.assertEqual(+found, Counter(WORDS.get(state, "held") for _, state, _ in jobs), data[:1000])


class Lines(Case):
    """Files that people really have."""

    def test_utf_16_is_refused(self) -> None:
        for encoding, mark in itertools.product(("utf-16-le", "utf-16-be"), ("\ufeff", "")):
            text = f"{mark}. echo a\n. echo \u20ac\n".encode(encoding)
            self.write(text)
            calls = (RUNSET, "--list", "runs.txt"), (RUNWAIT, "--status", "runs.txt"), (RUNMAKER, "runs.txt")
            for call, ended in self.run_all(calls):
                with self.subTest(encoding=encoding, mark=mark, call=call):
                    self.assertRefused(ended, "runs.txt", "UTF-16")
            self.assertEqual(self.read(), text)
