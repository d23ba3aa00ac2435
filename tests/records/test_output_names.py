"""Promise: no output is lost to a file name that is taken (7.out, 7.out.~1~); the journal has the names."""
import os
from unittest import mock

import runmaker4
import runwait4
from tests.support.case import Case
from tests.support.scripts import RUNMAKER
from tests.support.sinks import a_run


def run_of(number: int) -> runmaker4.Run:
    """A run of the job in this line."""
    return a_run(runmaker4.Job(runmaker4.Line(number, 0, b".", b" CMD")))


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
        loop = mock.patch("asyncio.get_running_loop")       # whose timers are never due
        loop.start()
        self.addCleanup(loop.stop)

    def outdir(self) -> runmaker4.OutDir:
        """One runner's."""
        return runmaker4.OutDir(str(self.out), runmaker4.FileExecutor(False), self.said.append, mock.Mock(),
                                runmaker4.PresenceLock(False), b"", False)

    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.out.iterdir()
                if path.is_file() and path.name != "journal"}


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

    def test_a_name_that_this_host_does_not_see_yet_is_not_lost(self) -> None:
        """NFS: another host has made files, and this one remembers that there are none."""
        self.out.mkdir()
        for name in "7.out", "7.out.~1~":
            (self.out / name).write_text("another host's")
        outdir, run = self.outdir(), run_of(7)
        with mock.patch.object(os.path, "lexists", lambda name: False):
            outdir.on_started(run)
            put(outdir, run, b"ours")
            outdir.on_ended(run, runmaker4.RunResult(0))
        self.assertEqual(self.files(), {"7.out": "another host's", "7.out.~1~": "another host's",
                                        "7.out.~2~": "ours"})

    def test_a_directory_link_or_pipe_of_the_name_leaves_the_output_a_numbered_name(self) -> None:
        (self.out / "7.out").mkdir(parents=True)
        (self.out / "7.err").symlink_to(self.dir / "elsewhere")
        os.mkfifo(self.out / "7.err.~1~")
        outdir, run = self.outdir(), run_of(7)
        outdir.on_started(run)
        put(outdir, run, b"ours")
        outdir.on_output(run, run.streams[1], b"ours too")
        outdir.on_ended(run, runmaker4.RunResult(0))
        self.assertEqual(self.files(), {"7.out.~1~": "ours", "7.err.~2~": "ours too"})
        self.assertFalse((self.dir / "elsewhere").exists())
        self.assertEqual(self.said, [])

    def test_the_thousandth_name_is_found(self) -> None:
        self.out.mkdir()
        for name in "7.out", *(f"7.out.~{number}~" for number in range(1, 1000)):
            (self.out / name).touch()
        outdir, run = self.outdir(), run_of(7)
        outdir.on_started(run)
        put(outdir, run, b"last")
        self.assertEqual((self.out / "7.out.~1000~").read_text(), "last")


class MovedLines(OutCase):
    """An edit has moved the line of a running job: its files keep their names."""

    def test_the_first_run_has_the_name_and_the_journal_names_the_files_of_both(self) -> None:
        self.write(". echo one; : > began; until [ -e go ]; do sleep 0.02; done; echo on\n")
        runner = self.start(RUNMAKER, "-j2", "--outdir", "out", "runs.txt")
        self.wait_file("out/1.out")
        has_file = "until [ -s out/1.out.~1~ ]; do sleep 0.02; done"
        self.write(f". echo two; {has_file}; : > go\n" + self.read().decode(), "new")
        os.rename(self.dir / "new", self.dir / "runs.txt")
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states()), (0, "dd"), ended.err)
        self.assertEqual((self.read("out/1.out"), self.read("out/1.out.~1~")), (b"one\non\n", b"two\n"))
        journal = runwait4.JournalReader(str(self.dir / "out"), self.fail)
        with journal.file:
            runs = list(journal.start_pass())
        self.assertEqual({run.command.split(b";")[0]: run.files for run in runs},
                         {b"echo one": ["1.out"], b"echo two": ["1.out.~1~"]})

    def test_of_a_file_that_somebody_has_removed_the_journal_tells_its_name(self) -> None:
        ours, run = self.outdir(), run_of(2)
        ours.on_started(run)
        put(ours, run, b"two")
        os.unlink(self.out / "2.out")
        ours.on_ended(run, runmaker4.RunResult(0))
        ours.on_tick()
        self.assertEqual((self.files(), self.said), ({}, []))
        self.assertIn(b'"files": ["2.out"]', (self.out / "journal").read_bytes())
