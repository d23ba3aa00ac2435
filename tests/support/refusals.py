"""RefusalCase: what is refused in one line, before a job has run."""
from collections.abc import Iterable, Sequence
from typing import Any

from tests.support.runs import RunCase


class RefusalCase(RunCase):
    """A job file whose job must not run."""

    def setUp(self) -> None:
        super().setUp()
        self.jobs("touch ran")

    def assertUntouched(self) -> None:
        """The job file has the bytes it had, and its job did not run."""
        self.assertEqual(self.read(), self.before)
        self.assertFalse(self.exists("ran"))

    def refuse(self, script: str, *args: object, words: str = "", **settings: Any) -> None:
        """The script refuses these arguments with one line, which has its name and these words."""
        self.refuse_all([(script, *args)], words, **settings)

    def refuse_all(self, calls: Iterable[Sequence[object]], words: str = "", **settings: Any) -> None:
        """These calls are refused, each a script and its arguments; they run at the same time."""
        for call, ended in self.run_all(calls, **settings):
            with self.subTest(call=call):
                self.assertRefused(ended, *words.split())
                self.assertTrue(ended.err.startswith(f"{call[0]}: ".encode()), ended.err)
        self.assertUntouched()
