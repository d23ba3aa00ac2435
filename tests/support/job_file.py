"""A job file by itself: a test that has one, random ones, and a parser of a few lines."""
import os
import pathlib
import random
import tempfile
import unittest

BOM = b"\xef\xbb\xbf"
Job = tuple[int, bytes, bytes]      # line number, state, command


def parse(data: bytes) -> list[Job]:
    """The job lines of a file, the straightforward way."""
    jobs = []
    if data.startswith(BOM):
        data = data[len(BOM):]
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    for number, line in enumerate(lines, 1):
        state, separator, command = line[:1], line[1:2], line[2:]
        if separator in (b" ", b"\t") and state not in (b"#", b"/", b" ", b"\t"):
            jobs.append((number, state, command[:-1] if command.endswith(b"\r") else command))
    return jobs


def job_file(random_: random.Random, lines: int = 40) -> bytes:
    """Job lines, comments and prose in all states, of very different lengths."""
    text = []
    for _ in range(random_.randrange(lines)):
        state = random_.choice([".", ".", "r", "d", "!", "e", "x", "#", "/", ""])
        separator = random_.choice([" ", " ", "\t", "prose"])
        command = "c" * random_.choice([0, 1, 2, 3, 10, 50, 300])
        text.append(state + separator + command + random_.choice(["\n", "\n", "\r\n", "\n\n"]))
    return random_.choice([b"", b"", BOM]) + "".join(text).encode()


class FileCase(unittest.TestCase):
    """A test with a file of its own."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="runmaker4-", dir=os.environ.get("RUNMAKER4_TEST_DIR"))
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "runs.txt"

    def open(self, flags: int = os.O_RDONLY) -> int:
        descriptor = os.open(self.path, flags)
        self.addCleanup(os.close, descriptor)
        return descriptor
