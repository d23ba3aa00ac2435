"""Promise: --outdir loses no output to a name that is taken; DIR/N.out is of the last run that began as line
N.
"""
import os
import unittest
from typing import Any, Callable
from unittest import mock

import runmaker4
import runwait4
from tests.support import RUNMAKER, Case, wait_until


def run_of(number: int) -> runmaker4.Run:
    """A run of the job in this line."""
    job = runmaker4.Job(number=number, ordinal=number, offset=0, state=b".", text=b" CMD")
    return runmaker4.Run(job, [runmaker4.Slot("1")], b"host",
                         streams=(runmaker4.Stream(b"stdout", -1), runmaker4.Stream(b"stderr", -1)))


def put(outdir: runmaker4.OutDir, run: runmaker4.Run, data: bytes) -> None:
    """A run prints this on stdout."""
    stdout = run.streams[0]
    stdout.received += len(data)
    outdir.on_output(run, stdout, data)


class OutCase(Case):
    """Output directories of several runners, all the same directory."""

    def setUp(self) -> None:
        super().setUp()
        self.said: list[str] = []
        self.out = self.dir / "{out}"

    def outdir(self) -> runmaker4.OutDir:
        """One runner's."""
        return runmaker4.OutDir(str(self.out), runmaker4.FileExecutor(False), self.said.append)

    def files(self) -> dict[str, str]:
        return {
            path.name: path.read_text()
            for path in self.out.iterdir()
            if path.is_file() and path.name != "journal"
        }

    def contents(self) -> list[str]:
        """What the files hold, in whichever of them."""
        return sorted(self.files().values())

    def meanwhile(self, name: str, others: Callable[[], object]) -> "mock._patch[Callable[..., Any]]":
        """Do something before the first call of a function of os, as another runner might."""
        real, things = getattr(os, name), [others]

        def call(*args: Any, **options: Any) -> Any:
            if things:
                things.pop()()
            return real(*args, **options)

        return mock.patch.object(os, name, call)


class TakenNames(OutCase):
    """Another run has the name already, or takes it this very moment."""

    def test_a_name_that_another_run_takes_before_the_first_output_loses_neither(self) -> None:
        first, second, run, same = self.outdir(), self.outdir(), run_of(7), run_of(7)
        first.on_started(run)
        second.on_started(same)
        put(second, same, b"second ")
        put(first, run, b"first ")
        put(second, same, b"goes on")
        put(first, run, b"goes on")
        first.on_ended(run, runmaker4.RunResult(0))
        second.on_ended(same, runmaker4.RunResult(0))
        self.assertEqual(self.files(), {"7.out": "second goes on", "7.out.~1~": "first goes on"})
        self.assertEqual(self.said, [])

    def test_a_line_of_another_number_that_an_edit_puts_in_a_running_one_s_place_loses_nothing(self) -> None:
        self.write(". echo one began >&2; until [ -e go ]; do sleep 0.02; done; echo one\n")
        runner = self.start(RUNMAKER, "-j2", "--outdir", "out", "runs.txt")
        wait_until((self.dir / "out/1.err").exists)
        self.write(". echo two; : > go\n" + self.read().decode(), "new")
        os.rename(self.dir / "new", self.dir / "runs.txt")
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states()), (0, "dd"), ended.err)
        found = sorted(path.read_text() for path in (self.dir / "out").glob("*.out*"))
        self.assertEqual(found, ["one\n", "two\n"])
        self.assertNotIn(b"incomplete", ended.err)

    def test_names_that_nfs_shows_only_when_it_is_asked_again_are_put_aside(self) -> None:
        """What another host has made is not seen before the folder was opened."""
        self.out.mkdir()
        (self.out / "7.out").write_text("another host's")
        fresh, lexists, open_ = [], os.path.lexists, os.open

        def open_and_see(path: str, flags: int, *args: Any, **options: Any) -> int:
            fresh.extend([True] if flags & os.O_DIRECTORY else [])
            return open_(path, flags, *args, **options)

        outdir, run = self.outdir(), run_of(7)
        outdir.journal.network = True
        with mock.patch.object(os.path, "lexists", lambda name: bool(fresh) and lexists(name)), \
                mock.patch.object(os, "open", open_and_see):
            outdir.on_started(run)
            put(outdir, run, b"ours")
            outdir.on_ended(run, runmaker4.RunResult(0))
        self.assertEqual(self.files(), {"7.out": "ours", "7.out.~1~": "another host's"})

    def test_what_cannot_be_put_aside_leaves_the_output_a_numbered_name(self) -> None:
        (self.out / "7.out").mkdir(parents=True)
        outdir, run = self.outdir(), run_of(7)
        outdir.on_started(run)
        put(outdir, run, b"ours")
        outdir.on_ended(run, runmaker4.RunResult(0))
        self.assertEqual(self.files(), {"7.out.~1~": "ours"})
        self.assertIn("7.out", self.said[0])


class OlderFiles(OutCase):
    """keep_older(): every file gets a name of its own, and that in little time."""

    def setUp(self) -> None:
        super().setUp()
        self.out.mkdir()
        self.name = self.out / "7.out"

    def test_two_that_keep_older_ones_at_once_replace_none(self) -> None:
        self.name.write_text("first")

        def another_run() -> None:
            runmaker4.keep_older(str(self.name))
            self.name.write_text("second")

        with self.meanwhile("rename", another_run):
            runmaker4.keep_older(str(self.name))
        self.assertEqual(self.contents(), ["first", "second"])

    def test_who_comes_too_late_leaves_nothing_behind(self) -> None:
        self.name.write_text("first")
        with self.meanwhile("rename", lambda: runmaker4.keep_older(str(self.name))):
            runmaker4.keep_older(str(self.name))
        self.assertEqual(self.contents(), ["first"])

    def test_a_rename_that_is_said_to_have_failed_and_has_not_loses_nothing(self) -> None:
        """NFS: the answer was lost, and the request is repeated to a server that has forgotten it."""
        self.name.write_text("first")
        real = os.rename

        def rename(*args: str) -> None:
            real(*args)
            raise FileNotFoundError

        with mock.patch.object(os, "rename", rename):
            runmaker4.keep_older(str(self.name))
        self.assertEqual(self.contents(), ["first"])

    def test_the_thousandth_is_put_aside_in_a_few_looks(self) -> None:
        for number in range(1, 1000):
            (self.out / f"7.out.~{number}~").touch()
        self.name.write_text("last")
        with mock.patch.object(os.path, "lexists", side_effect=os.path.lexists) as looks:
            runmaker4.keep_older(str(self.name))
        self.assertEqual((self.out / "7.out.~1000~").read_text(), "last")
        self.assertLess(looks.call_count, 30)


class MovedLines(OutCase):
    """An edit has moved the line of a running job: its files keep their names."""

    def test_the_latest_run_has_the_name_and_the_journal_names_the_files_of_both(self) -> None:
        self.write(". echo one; : > began; until [ -e go ]; do sleep 0.02; done; echo on\n")
        runner = self.start(RUNMAKER, "-j2", "--outdir", "out", "runs.txt")
        self.wait_file("out/1.out")
        self.write(". echo two; sleep 0.2; : > go\n" + self.read().decode(), "new")
        os.rename(self.dir / "new", self.dir / "runs.txt")
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states()), (0, "dd"), ended.err)
        self.assertEqual((self.read("out/1.out"), self.read("out/1.out.~1~")), (b"two\n", b"one\non\n"))
        journal = runwait4.JournalReader(str(self.dir / "out"), self.fail)
        with journal.file:
            found = journal.start_pass()
            runs = list(found)
            found.set_current_file_names(runs)
        self.assertEqual({run.command.split(b";")[0]: run.files for run in runs},
                         {b"echo one": ["1.out.~1~"], b"echo two": ["1.out"]})

    def test_of_a_file_that_somebody_has_removed_the_journal_tells_its_name(self) -> None:
        ours, run = self.outdir(), run_of(2)
        ours.on_started(run)
        put(ours, run, b"two")
        os.unlink(self.out / "2.out")
        ours.on_ended(run, runmaker4.RunResult(0))
        ours.on_tick()
        self.assertEqual((self.files(), self.said), ({}, []))
        self.assertIn(b'"files": ["2.out"]', (self.out / "journal").read_bytes())


if __name__ == "__main__":
    unittest.main()
