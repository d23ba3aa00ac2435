"""Promise: jobs with after= start once all above of that name are done; a failure stops only them."""
import fnmatch
import json
import os
import re
import subprocess
import unittest
from typing import Any
from unittest import mock

import runmaker4
from tests.support.claims import JobFileCase, job_of
from tests.support.directives import LAST, DirectiveCase
from tests.support.over_tcp import OverTcp, without
from tests.support.processes import wait_until
from tests.support.scripts import ROOT, RUNMAKER, RUNSET, RUNWAIT
from tests.support.values import present

NFS = "import runmaker4\nrunmaker4.find_mount = lambda path: runmaker4.Mount('nfs4', frozenset())\n"
STEPS = ("#RUN name=prep\n. {}\n#RUN name=sim after=prep\n. echo 2 >>ran\n. echo 2 >>ran\n"
         "#RUN after=sim\n. echo 3 >>ran\n")
SAMPLES = "".join(f"#RUN name=a{n}\n. echo {n}1 >>ran\n#RUN name=b{n} after=a{n}\n. echo {n}2 >>ran\n"
                  f"#RUN after=b{n}\n. echo {n}3 >>ran\n" for n in (1, 2, 3))


class AfterCase(DirectiveCase):
    """Steps that the tests below share."""

    def status(self, name: str = "runs.txt") -> dict[str, Any]:
        ended = self.run_script(RUNWAIT, "--status", "--json", name)
        result: dict[str, Any] = json.loads(ended.out)
        return result

    def run_text(self, text: str, *options: str) -> int:
        self.write(text)
        return self.finish(self.start(RUNMAKER, *options, "runs.txt")).code


class Order(AfterCase):
    """Jobs wait for jobs by name."""

    def test_jobs_start_when_all_of_the_name_are_done_and_others_go_on_beside_them(self) -> None:
        prep = "until [ -e other ]; do sleep 0.02; done; echo 1 >>ran"
        self.assertEqual(self.run_text(STEPS.format(prep) + "#RUN\n. touch other\n", "-j3"), 0)
        self.assertEqual(self.ran(), [1, 2, 2, 3])

    def test_a_chain_for_each_sample_runs_in_the_order_of_the_file(self) -> None:
        self.assertEqual(self.run_text(SAMPLES, "-j1"), 0)
        self.assertEqual(self.ran(), [11, 12, 13, 21, 22, 23, 31, 32, 33])

    def test_a_name_can_be_used_again_below(self) -> None:
        self.assertEqual(self.run_text(
            "#RUN name=a\n. echo 1 >>ran\n#RUN after=a\n. echo 2 >>ran; touch two\n"
            "#RUN name=a\n. until [ -e two ]; do sleep 0.02; done; echo 3 >>ran\n"
            "#RUN after=a\n. echo 4 >>ran\n", "-j3"), 0)
        self.assertEqual(self.ran(), [1, 2, 3, 4])

    def test_several_names_and_a_pattern_gather_over_samples(self) -> None:
        gather = ("#RUN after=a1,b*\n. echo 4 >>ran\n#RUN name=b4 after=[ab]?\n. echo 5 >>ran\n"
                  "#RUN after=b4\n. echo 6 >>ran\n")
        self.assertEqual(self.run_text(SAMPLES + gather, "-j1"), 0)
        self.assertEqual(self.ran()[-3:], [4, 5, 6])

    def test_a_pattern_waits_for_each_of_its_names(self) -> None:
        for late in "a1", "a2", "a3":
            with self.subTest(late=late):
                jobs = "".join(f"#RUN name=a{n}\n. {f'{LAST};' * (late == f'a{n}')} echo {n} >>ran\n"
                               for n in (1, 2, 3))
                last = "#RUN after=a*\n. echo 4 >>ran\n#RUN\n. touch last\n"
                self.assertEqual(self.run_text(jobs + last, "-j2"), 0)
                self.assertEqual((sorted(self.ran()), self.ran()[-1]), ([1, 2, 3, 4], 4))
            (self.dir / "ran").unlink()
            (self.dir / "last").unlink()

    def test_a_barrier_below_waits_for_all_of_it(self) -> None:
        below = "#RUN barrier\n#RUN\n. echo 4 >>ran\n"
        self.assertEqual(self.run_text(STEPS.format("echo 1 >>ran") + below, "-j3"), 0)
        self.assertEqual(self.ran(), [1, 2, 2, 3, 4])

    def test_on_a_network_file_system_too(self) -> None:
        self.write(STEPS.format("echo 1 >>ran"))
        self.assertEqual(self.finish(self.start_patched(NFS, "-j3", "runs.txt")).code, 0)
        self.assertEqual(self.ran(), [1, 2, 2, 3])

    def test_jobs_of_another_runner_are_waited_for(self) -> None:
        self.write("#RUN name=a host=alice\n. until [ -e go ]; do sleep 0.02; done\n"
                   "#RUN after=a host=bob\n. echo 1 >>ran\n")
        bob = self.start(RUNMAKER, "--name=bob", "runs.txt")
        alice = self.start(RUNMAKER, "--name=alice", "runs.txt")
        wait_until(lambda: self.states() == "r.")
        (self.dir / "go").touch()
        self.assertEqual((self.finish(alice).code, self.finish(bob).code), (0, 0))
        self.assertEqual(self.ran(), [1])


class Held(AfterCase):
    """A held or cancelled job is not done: it stops what waits for it, as a failure does."""

    def test_it_is_named_and_a_plain_barrier_passes_what_waits_for_it_but_a_check_does_not(self) -> None:
        for state, what in ("p", "is held"), ("c", "is cancelled"):
            for barrier, below in ("barrier", "d"), ("barrier check", "."):
                with self.subTest(state=state, barrier=barrier):
                    code = self.run_text(f"#RUN name=a\n. true\n{state} false\n#RUN name=b after=a\n. false\n"
                                         f"#RUN after=b\n. false\n#RUN {barrier}\n#RUN\n. true\n")
                    self.assertEqual((code, self.states()), (1, f"d{state}..{below}"))
                    self.assertTrue(self.times_told(f"line 5 waits for a: line 3 {what}"), self.told())
                    self.assertRegex(self.status()["waits"], f"^line 5 waits for a: line 3 {what}")
                    self.assertEqual(self.run_script(RUNWAIT, "runs.txt").code, 1)
                    self.assertEqual(self.run_script(RUNMAKER, "--dry-run", "runs.txt").out, b"")

    def test_a_follower_goes_on_once_it_is_released(self) -> None:
        self.write("#RUN name=a\nx true\n#RUN after=a\n. echo 1 >>ran\n")
        runner = self.start_looking("--follow", "runs.txt")
        self.wait_told("line 4 waits for a: line 2 is held")
        self.assertEqual(self.run_script(RUNSET, "--set=.", "runs.txt", "2").code, 0)
        self.wait_states("dd")
        self.append("#RUN end")
        self.assertEqual((self.finish(runner).code, self.ran()), (0, [1]))


class Failures(AfterCase):
    """A failure stops the jobs that wait for it, and those that wait for these."""

    def test_the_line_is_named_others_run_and_the_status_is_1(self) -> None:
        self.assertEqual(self.run_text(STEPS.format("false") + "#RUN\n. echo 4 >>ran\n", "-j2"), 1)
        self.assertEqual((self.states(), self.ran()), ("!...d", [4]))
        self.assertTold("line 2 failed", "after=prep", "line 3")
        self.assertEqual(self.status()["waits"], "line 4 waits for prep: line 2 failed")
        self.assertEqual(self.run_script(RUNWAIT, "runs.txt").code, 1)
        self.assertEqual(self.run_script(RUNMAKER, "--dry-run", "runs.txt").out, b"")

    def test_a_plain_barrier_opens_below_stopped_jobs_and_a_barrier_check_does_not(self) -> None:
        for barrier, states in ("barrier", "!...d"), ("barrier check", "!...."):
            with self.subTest(barrier=barrier):
                below = f"#RUN {barrier}\n#RUN\n. true\n"
                self.assertEqual(self.run_text(STEPS.format("false") + below, "-j2"), 1)
                self.assertEqual(self.states(), states)
                self.assertEqual(self.run_script(RUNMAKER, "--dry-run", "runs.txt").out, b"")

    def test_a_job_in_error_stops_them_too_and_one_that_failed_before_the_start(self) -> None:
        for state in "!e":
            text = f"#RUN name=a\n{state} true\n. true\n#RUN after=a\n. touch never\n"
            self.assertEqual(self.run_text(text), 1)
            self.assertEqual((self.states(), self.exists("never")), (f"{state}d.", False))

    def test_a_pattern_is_stopped_by_one_of_its_names(self) -> None:
        self.assertEqual(self.run_text("#RUN name=a1\n. true\n#RUN name=a2\n. false\n"
                                       "#RUN after=a?\n. touch never\n"), 1)
        self.assertEqual(self.states(), "d!.")
        self.assertTold("line 4 failed", "after=a2", "line 5")

    def test_with_r_the_failed_job_runs_again_and_then_the_others(self) -> None:
        self.assertEqual(self.run_text(STEPS.format("[ -e good ]")), 1)
        (self.dir / "good").touch()
        self.assertEqual(self.finish(self.start(RUNMAKER, "-r", "runs.txt")).code, 0)
        self.assertEqual(self.ran(), [2, 2, 3])

    def test_with_follow_it_is_said_and_they_start_once_it_is_mended(self) -> None:
        self.write(STEPS.format("[ -e good ]"))
        runner = self.start(RUNMAKER, "--follow", "runs.txt")
        self.wait_told("line 2 failed", "after=prep")
        (self.dir / "good").touch()
        self.run_script(RUNSET, "--set", "new", "runs.txt", 2)
        self.run_script(RUNSET, "runs.txt", "--add", "#RUN end")
        self.assertEqual(self.finish(runner).code, 0)
        self.assertEqual(self.states(), "dddd")


class SeveralSteps(AfterCase):
    """The recipe of docs/recipes.md, with 96 samples, of which one fails, and a runner that is killed."""

    def step(self, name: str, *lines: str) -> None:
        path = self.write("\n".join(["#!/bin/sh", *lines, f"echo $1 >>{name}.ran", ""]), name)
        path.chmod(0o755)

    def test_all_samples_but_one_are_done_and_r_goes_on_with_that(self) -> None:
        recipe = re.search(r"```sh\n(while read .*?)```", (ROOT / "docs/recipes.md").read_text(), re.DOTALL)
        samples = [f"S{number}" for number in range(96)]
        self.write("".join(f"{sample}\n" for sample in samples), "samples")
        self.step("trim", "[ $1 != S7 ] || [ -e good ] || exit 1")
        self.step("align", "grep -qx $1 trim.ran || exit 1", f"[ $1 != S50 ] || {{ touch begun; {LAST}; }}")
        self.step("count", "grep -qx $1 align.ran || exit 1")
        self.step("total", "grep -c . count.ran")
        with mock.patch.dict(os.environ, PATH=f"{self.dir}:{ROOT}:{os.environ['PATH']}"):
            subprocess.run(["sh", "-c", present(recipe)[1]], cwd=self.dir, check=True)
            runner = self.start(RUNMAKER, "-j2", "runs.txt")
            wait_until(lambda: self.exists("begun"))        # later than its `r`
            runner.kill()
            runner.wait()
            (self.dir / "last").touch()
            wait_until(lambda: "S50" in self.read("align.ran").decode().split())
            self.assertEqual(self.finish(self.start(RUNMAKER, "-j2", "--resume", "runs.txt")).code, 1)
            left = [line for line in self.read("runs.txt").split(b"\n") if line and line[:1] not in b"d#"]
            self.assertEqual(left, [b"! trim S7", b". align S7", b". count S7", b". total"])
            (self.dir / "good").touch()
            self.assertEqual(self.finish(self.start(RUNMAKER, "-j2", "-r", "runs.txt")).code, 0)
        self.assertEqual({*self.read("count.ran").decode().split()}, {*samples})


class Names(AfterCase):
    """A name stands above the lines that use it."""

    def refused_at_the_start(self, text: str, *words: bytes) -> None:
        self.write(text)
        ended = self.finish(super().start(RUNMAKER, "runs.txt", stderr=subprocess.PIPE))
        self.assertEqual(ended.code, 2)
        for word in words:
            self.assertIn(word, ended.err)

    def test_an_unknown_one_is_refused_at_the_start(self) -> None:
        self.refused_at_the_start("#RUN after=b\n. true\n#RUN name=b\n. true\n", b"runs.txt: line 1: after=b")
        self.refused_at_the_start("#RUN name=b\n. true\n#RUN after=c*\n. true\n", b"line 3: after=c*")

    def test_blanks_and_commas_in_a_name_are_refused_with_the_remedy(self) -> None:
        for text in "name=my sample", "name=a,b", "name=a after=my sample=3", "after=my sample":
            with self.subTest(text=text):
                self.refused_at_the_start(f"#RUN {text}\n. true\n", b"tr ' ,' '__'")

    def test_an_unknown_one_is_not_added(self) -> None:
        self.write("#RUN name=b\n. true\n")
        self.assertRefused(self.run_script(RUNSET, "runs.txt", "--add", "#RUN after=c", "true"),
                           "runset4.py: after=c")
        good = "#RUN after=b name=c", "true", "#RUN after=c", "true"
        self.assertEqual(self.run_script(RUNSET, "runs.txt", "--add", *good).code, 0)

    def test_what_is_added_below_such_settings_waits_too_and_that_is_said(self) -> None:
        self.write("#RUN name=b\n. true\n#RUN after=b\n. true\n")
        self.assertIn(b"with after=b of line 3", self.run_script(RUNSET, "runs.txt", "--add", "true").err)

    def test_an_edit_that_breaks_a_name_is_refused(self) -> None:
        self.write("#RUN name=b\n. true\n#RUN after=b\n. true\n")
        before = self.read("runs.txt")
        for command, code in (("s/name=b/name=c/", 1), ("s/after=b/after=c/", 1), ("s/=b/=c/", 0)):
            with self.subTest(command=command), mock.patch.dict(os.environ, EDITOR=f"sed -i {command}"):
                ended = self.run_script(RUNSET, "--edit", "runs.txt")
                self.assertEqual((ended.code, self.read("runs.txt") == before), (code, bool(code)))
                self.assertEqual(b"line 3: after=" in ended.err, bool(code), ended.err)

    def test_a_second_line_that_clears_the_name_is_reported(self) -> None:
        self.write("#RUN name=a\n. true\n#RUN name=b\n#RUN after=a\n. true\n")
        said = b"line 4 clears name=b of line 3, which applies to no job"
        for options in ("--dry-run",), ("-j1",):
            ended = self.finish(super().start(RUNMAKER, *options, "runs.txt", stderr=subprocess.PIPE))
            self.assertEqual(ended.err.count(said), 1, ended.err)
        added = self.run_script(RUNSET, "runs.txt", "--add", "#RUN name=b", "#RUN after=a", "true")
        self.assertIn(b"clears name=b", added.err)

    def test_no_job_waits_for_its_own_name_and_no_group_waits(self) -> None:
        for text in "name=a after=b,a", "name=a,b", "after=a,", "host=x together=g after=a":
            with self.subTest(text=text), self.assertRaises(ValueError):
                runmaker4.parse_directive(b"RUN " + text.encode())


@without("test_a_chain_for_each_sample_runs_in_the_order_of_the_file", "test_on_a_network_file_system_too")
class OfClients(OverTcp, Order):
    """The clients of a server keep to it."""


@without("test_with_follow_it_is_said_and_they_start_once_it_is_mended",
         "test_the_line_is_named_others_run_and_the_status_is_1",
         "test_a_pattern_is_stopped_by_one_of_its_names")
class FailuresOfClients(OverTcp, Failures):
    """A failure stops jobs of clients."""


class Walks(JobFileCase):
    """What waits is found without another walk through the file."""

    def test_a_long_chain_takes_few_walks(self) -> None:
        text = b"#RUN name=s0\n. 0\n" + b"".join(b"#RUN name=s%d after=s%d\n. %d\n" % (n, n - 1, n)
                                                 for n in range(1, 200))
        cursor = self.jobs(text)
        with mock.patch.object(runmaker4.Cursor, "_begin_walk", autospec=True,
                               side_effect=runmaker4.Cursor._begin_walk) as begin:
            for number in range(200):
                job = job_of(cursor.claim())
                self.assertEqual(job.command, b"%d" % number)
                self.assertFalse(cursor.claim())
                cursor.finish(job, runmaker4.DONE)
        self.assertLess(begin.call_count, 5)

    def test_a_pattern_looks_only_at_names_that_begin_like_it(self) -> None:
        """A file can have 100,000 samples, and a pattern for each."""
        above, names, looked_at = runmaker4.Above(), [], []

        def enter(number: int, text: str) -> None:
            above.enter(runmaker4.Line(number, number, runmaker4.DIRECTIVE, f"RUN {text}".encode()))

        def look(names: list[str], pattern: str) -> list[str]:
            looked_at.append(len(names))
            return [name for name in names if fnmatch.fnmatchcase(name, pattern)]

        with mock.patch.object(fnmatch, "filter", look):
            for number in range(300):
                for lane in range(2):
                    names.append(f"S{number}-{lane}")
                    enter(3 * number + lane, f"name={names[-1]}")
                # the first comes late, so that many names are new to it
                if number >= 200:
                    enter(3 * number + 2, f"after=S{number}-*,S[0-9]-1,*-{lane}")
                    self.assertEqual(above.scope.error, "")
        self.assertEqual(max(looked_at[::3]), 2)
        for pattern in "S17-*", "S17*", "S?-1", "*", "S29?-0", "[!S]*", "S[2]99-?", "S17-0*", "T*", "S":
            self.assertEqual({*above._match_names(pattern)}, {*look(names, pattern)}, pattern)

    def test_more_jobs_of_a_name_than_a_walk_remembers_are_waited_for(self) -> None:
        text = b"#RUN name=a host=bob\n" + b". a\n" * 1500 + b"#RUN after=a\n. b\n"
        cursor = self.jobs(text)
        self.assertFalse(cursor.claim())
        self.path.write_bytes(text.replace(b". a", b"d a", 1499))
        self.clock.now += 100.0
        self.assertFalse(cursor.claim())
        self.path.write_bytes(text.replace(b". a", b"d a"))
        self.clock.now += 100.0
        self.assertEqual(job_of(cursor.claim()).command, b"b")

    def test_jobs_that_became_ready_suit_their_hosts(self) -> None:
        """At a server: those of a host that is busy stay until it asks."""
        cursor = self.jobs(b"#RUN name=a host=alice\n. a\n#RUN after=a host=bob\n. b\n#RUN after=a\n. c\n",
                           serving=True)
        alice, bob = runmaker4.Consumer("alice"), runmaker4.Consumer("bob")

        def claim(*consumers: runmaker4.Consumer) -> runmaker4.Job:
            return job_of(cursor.claim(consumers=runmaker4.Consumers(consumers), known=[alice, bob]))

        first = claim(alice)
        self.assertFalse(cursor.claim(consumers=runmaker4.Consumers([alice]), known=[alice, bob]))
        cursor.finish(first, runmaker4.DONE)
        with mock.patch.object(runmaker4.Cursor, "_begin_walk", side_effect=AssertionError):
            self.assertEqual((claim(alice).command, claim(bob).command), (b"c", b"b"))

    def test_a_job_that_is_done_once_a_walk_has_read_its_line_is_done_when_it_meets_it(self) -> None:
        cursor = self.jobs(b"#RUN name=a\n. a\n#RUN after=a\n. b\n")
        job = job_of(cursor.claim())
        cursor.restart_walk()
        with mock.patch.multiple(runmaker4.Scan, MIN_CHUNK_SIZE=16, MAX_CHUNK_SIZE=16), \
                mock.patch.object(runmaker4.Cursor, "SLICE", -1.0):
            self.assertEqual(cursor.claim(), runmaker4.NoJob(runmaker4.AGAIN))
        cursor.finish(job, runmaker4.DONE)
        with mock.patch.object(runmaker4.Cursor, "_begin_walk", side_effect=AssertionError):
            self.assertEqual(job_of(cursor.claim()).command, b"b")

    def test_an_orphan_that_becomes_an_error_stops_those_that_wait_for_its_name(self) -> None:
        cursor = self.jobs(b"#RUN name=a\nr a\n. a\n#RUN after=a\n. b\n#RUN\n. c\n")
        jobs = [job_of(cursor.claim()), job_of(cursor.claim())]
        self.assertEqual([job.command for job in jobs], [b"a", b"c"])
        self.assertEqual([cursor.finish(job, runmaker4.DONE) for job in jobs], ["", ""])
        self.assertFalse(cursor.claim())
        self.assertEqual(self.path.read_bytes(), b"#RUN name=a\ne a\nd a\n#RUN after=a\n. b\n#RUN\nd c\n")

    def test_a_job_whose_settings_are_unknown_is_found_by_its_line(self) -> None:
        """As one that a client has brought back to a new server."""
        cursor = self.jobs(b"#RUN name=a\n. a\n#RUN after=a\n. b\n")
        job = job_of(cursor.claim())
        self.assertFalse(cursor.claim())
        job.settings = runmaker4.NO_SETTINGS
        cursor.finish(job, runmaker4.DONE)
        with mock.patch.object(runmaker4.Cursor, "_begin_walk", side_effect=AssertionError):
            self.assertEqual(job_of(cursor.claim()).command, b"b")


if __name__ == "__main__":
    unittest.main()
