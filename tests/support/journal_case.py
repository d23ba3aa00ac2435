"""JournalCase: a journal of a test's own, read by runwait4.py's own code or printed by its views."""
import contextlib
import os
import re
import unittest.mock
from collections.abc import Iterator

import runwait4
from tests.support.case import Case


def open_descriptors() -> set[int]:
    """All that are open; the one that the directory is listed by is not any more."""
    return {int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}


@contextlib.contextmanager
def closing() -> Iterator[None]:
    """Close what is left open, as the end of a program does."""
    before = open_descriptors()
    try:
        yield
    finally:
        for fd in open_descriptors() - before:
            os.close(fd)


class JournalCase(Case):

    def journal(self, *lines: bytes) -> None:
        """Write out/journal, at the time that its last line tells."""
        (self.dir / "out").mkdir(exist_ok=True)
        path = self.write(b"".join(lines), "out/journal")
        if lines and (when := re.match(rb'\{"time": (\d+)', lines[-1])):
            os.utime(path, (int(when[1]), int(when[1])))

    def runs(self) -> tuple[list[runwait4.RunRecord], list[str]]:
        """The runs in it, and what was said."""
        said: list[str] = []
        with contextlib.closing(runwait4.JournalReader(str(self.dir / "out"), said.append)) as journal:
            return list(journal.start_pass()), said

    def opened(self) -> runwait4.JournalReader:
        """The journal; nothing may be said."""
        journal = runwait4.JournalReader(str(self.dir / "out"), self.fail)
        self.addCleanup(journal.file.close)
        return journal

    def view(self, *options: str) -> str:
        """What it prints; it runs here, because there are hundreds of files."""
        put: list[bytes] = []
        nothing = unittest.mock.Mock()
        words = [*options, "--outdir", str(self.dir / "out"), str(self.dir / "runs.txt")]
        quiet = unittest.mock.patch.multiple(runwait4, print_bytes=put.append, warn=nothing, exit_on=nothing)
        with quiet, closing():
            runwait4.run_with_options(words)
        return b"".join(put).decode()

    def names(self) -> list[str]:
        """The last part of each run's name; nothing may be said."""
        runs, said = self.runs()
        self.assertEqual(said, [])
        return [run.run.rpartition("-")[2] for run in runs]
