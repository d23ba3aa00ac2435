"""Promise: --outdir loses no output to a name that is taken, and DIR/N.out is the output of what is line N today."""
import os
import unittest
from typing import Callable, Dict, List
from unittest import mock

import runmaker4
from tests.support import RUNMAKER, Case, wait_until

ENTRY = {"time": 0.0, "run": "host-1-1"}        # for the journal, which is not looked at here

def job(number: int) -> runmaker4.Job:
    return runmaker4.Job(number=number, ordinal=number, offset=0, state=b".", text=b" CMD")


class OutCase(Case):
    """Output directories of several runners, all the same directory."""

    def setUp(self) -> None:
        super().setUp()
        self.said: List[str] = []
        self.out = self.dir / "{out}"

    def outdir(self) -> runmaker4.OutDir:
        """One runner's."""
        return runmaker4.OutDir(str(self.out), runmaker4.Worker(False), self.said.append)

    def files(self) -> Dict[str, str]:
        return {path.name: path.read_text() for path in self.out.iterdir() if path.is_file() and path.name != "journal"}

    def contents(self) -> List[str]:
        """What the files hold, in whichever of them."""
        return sorted(self.files().values())

    def meanwhile(self, name: str, others: Callable[[], object]) -> "mock._patch":
        """Do something before the first call of a function of os, as another runner might."""
        real, things = getattr(os, name), [others]

        def call(*args, **options):
            if things:
                things.pop()()
            return real(*args, **options)

        return mock.patch.object(runmaker4.os, name, call)


class TakenNames(OutCase):
    """Another run has the name already, or takes it this very moment."""

    def test_a_name_that_another_run_takes_before_the_first_output_loses_neither(self):
        first, second, line, same = self.outdir(), self.outdir(), job(7), job(7)
        first.begin(line, ENTRY)
        second.begin(same, ENTRY)
        second.put(same, b"stdout", 0, b"second ")
        first.put(line, b"stdout", 0, b"first ")
        second.put(same, b"stdout", 7, b"goes on")
        first.put(line, b"stdout", 6, b"goes on")
        first.end(line, ENTRY)
        second.end(same, ENTRY)
        self.assertEqual(self.files(), {"7.out": "first goes on", "7.out.~1~": "second goes on"})
        self.assertEqual(self.said, [])

    def test_a_line_of_another_number_that_an_edit_puts_in_a_running_one_s_place_loses_nothing(self):
        self.write(". echo one began >&2; until [ -e go ]; do sleep 0.02; done; echo one\n")
        runner = self.start(RUNMAKER, "-j2", "--outdir", "out", "runs.txt")
        wait_until(lambda: (self.dir / "out/1.err").exists())
        self.write(". echo two; : > go\n" + self.read().decode(), "new")
        os.rename(self.dir / "new", self.dir / "runs.txt")
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states()), (0, "dd"), ended.err)
        found = sorted(path.read_text() for path in (self.dir / "out").glob("*.out*"))
        self.assertEqual(found, ["one\n", "two\n"])
        self.assertNotIn(b"incomplete", ended.err)

    def test_names_that_nfs_shows_only_when_it_is_asked_again_are_put_aside(self):
        """What another host has made is not seen before the folder was opened."""
        self.out.mkdir()
        (self.out / "7.out").write_text("another host's")
        fresh, lexists, open_ = [], os.path.lexists, os.open

        def open_and_see(path, flags, *args, **options):
            fresh.extend([True] if flags & os.O_DIRECTORY else [])
            return open_(path, flags, *args, **options)

        outdir, line = self.outdir(), job(7)
        outdir.journal.network = True
        with mock.patch.object(runmaker4.os.path, "lexists", lambda name: bool(fresh) and lexists(name)), \
                mock.patch.object(runmaker4.os, "open", open_and_see):
            outdir.begin(line, ENTRY)
            outdir.put(line, b"stdout", 0, b"ours")
            outdir.end(line, ENTRY)
        self.assertEqual(self.files(), {"7.out": "ours", "7.out.~1~": "another host's"})

    def test_what_cannot_be_put_aside_leaves_the_output_a_numbered_name(self):
        (self.out / "7.out").mkdir(parents=True)
        outdir, line = self.outdir(), job(7)
        outdir.begin(line, ENTRY)
        outdir.put(line, b"stdout", 0, b"ours")
        outdir.end(line, ENTRY)
        self.assertEqual(self.files(), {"7.out.~1~": "ours"})
        self.assertIn("7.out", self.said[0])

    def test_a_name_that_is_taken_again_and_again_leaves_the_output_a_numbered_one(self):
        outdir, line, put_aside = self.outdir(), job(7), runmaker4.keep_older

        def taken_again(name: str) -> None:
            put_aside(name)
            (self.out / "7.out").write_text("another's")

        outdir.begin(line, ENTRY)
        (self.out / "7.out").write_text("another's")
        with mock.patch.object(runmaker4, "keep_older", taken_again):
            outdir.put(line, b"stdout", 0, b"ours")
        outdir.end(line, ENTRY)
        self.assertEqual(set(self.contents()), {"another's", "ours"})
        self.assertEqual(self.said, [])


class OlderFiles(OutCase):
    """keep_older(): every file gets a name of its own, and that in little time."""

    def setUp(self) -> None:
        super().setUp()
        self.out.mkdir()
        self.name = self.out / "7.out"

    def test_two_that_keep_older_ones_at_once_replace_none(self):
        self.name.write_text("first")

        def another_run() -> None:
            runmaker4.keep_older(str(self.name))
            self.name.write_text("second")

        with self.meanwhile("rename", another_run):
            runmaker4.keep_older(str(self.name))
        self.assertEqual(self.contents(), ["first", "second"])

    def test_who_comes_too_late_leaves_nothing_behind(self):
        self.name.write_text("first")
        with self.meanwhile("rename", lambda: runmaker4.keep_older(str(self.name))):
            runmaker4.keep_older(str(self.name))
        self.assertEqual(self.contents(), ["first"])

    def test_a_rename_that_is_said_to_have_failed_and_has_not_loses_nothing(self):
        """NFS: the answer was lost, and the request is repeated to a server that has forgotten it."""
        self.name.write_text("first")
        real = os.rename

        def rename(*args: str) -> None:
            real(*args)
            raise FileNotFoundError

        with mock.patch.object(runmaker4.os, "rename", rename):
            runmaker4.keep_older(str(self.name))
        self.assertEqual(self.contents(), ["first"])

    def test_the_thousandth_is_put_aside_in_a_few_looks(self):
        for number in range(1, 1000):
            (self.out / f"7.out.~{number}~").touch()
        self.name.write_text("last")
        with mock.patch.object(runmaker4.os.path, "lexists", side_effect=os.path.lexists) as looks:
            runmaker4.keep_older(str(self.name))
        self.assertEqual((self.out / "7.out.~1000~").read_text(), "last")
        self.assertLess(looks.call_count, 30)


class MovedLines(OutCase):
    """An edit has moved the line of a running job."""

    def setUp(self) -> None:
        super().setUp()
        self.outdir_of_ours = self.outdir()

    def begin(self, number: int, output: str = "") -> runmaker4.Job:
        """A run of a line, and what it prints."""
        line = job(number)
        self.outdir_of_ours.begin(line, ENTRY)
        if output:
            self.outdir_of_ours.put(line, b"stdout", 0, output.encode())
        return line

    def end(self, *lines: runmaker4.Job) -> None:
        for line in lines:
            self.outdir_of_ours.end(line, ENTRY)

    def test_a_file_gets_the_number_that_its_line_has_at_the_end(self):
        line = self.begin(2, "two")
        line.number = 3
        self.end(line)
        self.assertEqual((self.files(), self.said), ({"3.out": "two"}, []))

    def test_a_file_is_made_with_the_number_that_its_line_has_then(self):
        line = self.begin(2)
        line.number = 3
        self.outdir_of_ours.put(line, b"stdout", 0, b"two")
        self.assertEqual(self.files(), {"3.out": "two"})
        self.end(line)
        self.assertEqual(self.files(), {"3.out": "two"})

    def test_an_older_file_of_that_number_is_kept(self):
        self.end(self.begin(3, "three"))
        line = self.begin(2, "two")
        line.number = 3
        self.end(line)
        self.assertEqual(self.files(), {"3.out": "two", "3.out.~1~": "three"})

    def test_also_if_the_run_prints_nothing(self):
        self.end(self.begin(3, "three"))
        line = self.begin(2)
        line.number = 3
        self.end(line)
        self.assertEqual(self.files(), {"3.out.~1~": "three"})

    def test_lines_that_move_into_each_other_s_places_all_get_their_numbers(self):
        for turn in 1, -1:
            lines = [self.begin(number, f"was {number}") for number in (1, 2, 3)]
            for line in lines:
                line.number += 1
            self.end(*lines[::turn])
            latest = {name: text for name, text in self.files().items() if "~" not in name}
            self.assertEqual(latest, {"2.out": "was 1", "3.out": "was 2", "4.out": "was 3"})
        self.assertEqual(self.contents(), ["was 1", "was 1", "was 2", "was 2", "was 3", "was 3"])

    def test_two_lines_that_change_places_both_get_their_numbers(self):
        one, two = self.begin(1, "one"), self.begin(2, "two")
        one.number, two.number = 2, 1
        self.end(one, two)
        self.assertEqual(self.files(), {"1.out": "two", "2.out": "one"})

    def test_a_name_that_is_taken_that_very_moment_is_not_replaced(self):
        line = self.begin(2, "two")
        line.number = 3
        with self.meanwhile("link", lambda: (self.out / "3.out").write_text("another's")):
            self.end(line)
        self.assertEqual(self.files(), {"3.out": "two", "3.out.~1~": "another's"})

    def test_what_takes_the_old_name_that_very_moment_is_not_renamed_for_ours(self):
        line = self.begin(2, "two")
        line.number = 3

        def another_run() -> None:
            runmaker4.keep_older(str(self.out / "2.out"))
            (self.out / "2.out").write_text("another's")

        with self.meanwhile("rename", another_run):
            self.end(line)
        self.assertEqual(self.files(), {"3.out": "two", "2.out.~1~": "another's"})

    def test_a_file_that_somebody_has_removed_stays_removed(self):
        line = self.begin(2, "two")
        os.unlink(self.out / "2.out")
        line.number = 3
        self.end(line)
        self.assertEqual((self.files(), self.said), ({}, []))

    def test_a_file_system_without_links_keeps_the_output_and_that_is_said(self):
        line = self.begin(2, "two")
        line.number = 3
        with mock.patch.object(runmaker4.os, "link", side_effect=PermissionError(1, "Operation not permitted")):
            self.end(line)
        self.assertEqual(self.contents(), ["two"])
        self.assertEqual(len(self.said), 1)
        self.assertIn("line 3", self.said[0])


if __name__ == "__main__":
    unittest.main()
