"""LogCase: the log file of -l, record by record."""
import re

from tests.support.case import Case
from tests.support.processes import Ended
from tests.support.scripts import RUNMAKER
from tests.support.values import present

WIDTH = 160                             # bytes of a line of the log file, without its newline
BLANK = b" " * WIDTH


def cut(text: bytes) -> bytes:
    """UTF-8 as it stands in the log: whole characters only, padded to the width."""
    return text[:WIDTH].decode("utf-8", "ignore").encode().ljust(WIDTH)


class LogCase(Case):
    """Helpers for the tests of -l."""

    def run_jobs(self, *options: object, name: str = "alice") -> Ended:
        return self.run_script(RUNMAKER, "--name", name, "-l", "outputs", *options, "runs.txt")

    def record(self, number: int, loglines: int = 3) -> list[bytes]:
        """The lines of record k, which stands at a fixed place."""
        size = (1 + loglines) * (WIDTH + 1)
        data = self.read("outputs")[(number - 1) * size:number * size]
        self.assertEqual(len(data), size, f"record {number}")
        lines = [data[start:start + WIDTH + 1] for start in range(0, size, WIDTH + 1)]
        for line in lines:
            self.assertEqual(line[WIDTH:], b"\n", lines)
        return [line[:WIDTH] for line in lines]

    def header(self, command: str) -> bytes:
        return cut(f".-> {command} (in {self.dir})".encode())

    def assertRecord(self, number: int, command: str, *lines: str, loglines: int = 3) -> None:
        """Record k is the header and these lines (WHO stands for host and process), the rest blank."""
        record = self.record(number, loglines)
        who = present(re.search(rb"\((\w+,\d+)\)", record[1]))[1].decode()
        wanted = [self.header(command)] + [cut(line.replace("WHO", who).encode()) for line in lines]
        self.assertEqual(record, wanted + [BLANK] * (1 + loglines - len(wanted)))

    def assertLogOfLength(self, records: int, loglines: int = 3) -> None:
        self.assertEqual(len(self.read("outputs")), records * (1 + loglines) * (WIDTH + 1))
