"""TellingCase: what runwait4.py prints of a journal of a test's own."""
import json
from typing import Any

from tests.support.journal_case import JournalCase
from tests.support.processes import Ended, wait_until
from tests.support.scripts import RUNWAIT
from tests.support.terminal import Terminal


class TellingCase(JournalCase):

    def runwait(self, *args: object) -> Ended:
        return self.run_script(RUNWAIT, *args)

    def told(self, *args: object, err: str = "") -> str:
        """What it prints; it must be content, and say this."""
        ended = self.runwait(*args)
        self.assertEqual(ended.code, 0, ended.err)
        self.assertRegex(ended.err.decode(), f"^{err}$")
        return ended.out.decode("utf-8", "surrogateescape")

    def status(self, *args: object) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.told("--status", "--json", *args, "runs.txt"))
        return status

    def at_terminal(self, columns: int, *args: object) -> list[str]:
        """The lines that it prints on a terminal."""
        terminal = Terminal(columns)
        self.addCleanup(terminal.close)
        process = self.start(RUNWAIT, *args, stdout=terminal.slave)
        wait_until(lambda: process.poll() is not None)
        return terminal.look()
