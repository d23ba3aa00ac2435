"""Promise: a runner uses a slot's name for one job at a time; --runner goes before every job."""
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import time
import unittest
from collections.abc import Sequence
from typing import Any, Callable

import runmaker4
from tests.support.case import GATE
from tests.support.line_locks import locked_lines
from tests.support.over_tcp import OverTcp, ordinarily
from tests.support.patches import SOON
from tests.support.processes import DEADLINE, Ended, wait_until
from tests.support.runs import QUICK, SLEEPING, WAITING, RunCase
from tests.support.scripts import FULL, RUNCLIENT, RUNMAKER, program_of
from tests.support.values import Text
from tests.support.wrappers import LOGGING_WRAPPER, NASTY, SSH

TAKE = 'mkdir "in.$SLAVE_IP" || echo "$SLAVE_IP" >>twice; echo "$SLAVE_IP $JOB_ID" >>used'
LEAVE = 'rmdir "in.$SLAVE_IP"'
# fails to be alone on its name: `twice`
SHORT = f"{TAKE}; sleep 0.02; {LEAVE}"
HELD = f'{TAKE}; echo "$SLAVE_IP" >up.$JOB_ID; {GATE}; {LEAVE}'             # runs until open_gate()
QUICK_LOOKS = f"{SOON}runmaker4.SlotFile.INTERVAL = 0.03\n"                       # unless all is in full size
# Each look at the names adds a byte to the file `looks`
LOOKS = """
import runmaker4
look = runmaker4.SlotFile.reload_names
def look_and_note(file):
    try:
        return look(file)
    finally:
        with open("looks", "a") as looks:
            looks.write("x")
runmaker4.SlotFile.reload_names = look_and_note
"""


class SlotCase(RunCase):
    """A test of slots with names, of which a file `names` has one per line."""

    def names(self, text: Text) -> pathlib.Path:
        return self.write(text, "names")

    def replace_names(self, text: Text) -> None:
        """Change the names as most editors do: write another file, and rename it."""
        self.write(text, "names.new")
        os.replace(self.dir / "names.new", self.dir / "names")

    def start_on_names(self, *options: object, up: Sequence[int] = (), file: str = "runs.txt",
                       **settings: Any) -> subprocess.Popen[bytes]:
        """Start a runner on the followed names, whose messages go to the file `stderr`."""
        with open(self.dir / "stderr", "ab") as said:
            runner = self.start_patched(LOOKS if FULL else QUICK_LOOKS + LOOKS, "-q", "--slots", "@names",
                                        *options, file, stderr=said, **settings)
        self.wait_up(*up, runner=runner)
        return runner

    def wait_names_read(self) -> None:
        """Wait until the names, as they are now, are those that slots get: two looks have found them."""
        before = len(self.wait_file("looks"))
        wait_until(lambda: len(self.read("looks")) > before + 3, what="the names are looked at")

    def name_of(self, line: int) -> str:
        """The name that the HELD job of this line runs on."""
        return self.wait_file(f"up.{line}").decode().strip()

    def used(self) -> list[tuple[str, int]]:
        """Which name had which line, in order."""
        words = self.read("used").decode().split()
        return list(zip(words[::2], map(int, words[1::2])))

    def assertAlone(self) -> None:
        """No two jobs were on one name at once."""
        self.assertFalse(self.exists("twice"), "two jobs were on one name")

    def assertAll(self, code: int, runner: subprocess.Popen[bytes], states: str) -> None:
        """How a runner on the names ends, and what the states are then."""
        ended, said = self.finish(runner), self.read("stderr")
        self.assertNotIn(b"Traceback", said)
        self.assertEqual((ended.code, self.states()), (code, states), said)
        self.assertAlone()


class NamedSlots(SlotCase):
    """--slots A,B: a slot for each name."""

    def test_a_job_knows_its_slot_by_name_and_its_line_by_number(self) -> None:
        self.write(f"# text\n. echo $SLAVE_IP $RUNMAKER4_SLOT $JOB_ID >2; {WAITING}\n"
                   f". echo $SLAVE_IP $RUNMAKER4_SLOT $JOB_ID >3; {WAITING}\n")
        runner = self.start(RUNMAKER, "--slots", "192.168.1.199,user1@199:1000", "runs.txt")
        self.wait_up(2, 3, runner=runner)
        self.open_gate()
        self.assertEqual(self.finish(runner).code, 0)
        said = [self.read(name).decode().split() for name in ("2", "3")]
        self.assertEqual(sorted(name for name, _, _ in said), ["192.168.1.199", "user1@199:1000"])
        self.assertEqual([(again, line) for _, again, line in said], [(said[0][0], "2"), (said[1][0], "3")])

    def test_a_name_has_one_job_at_a_time(self) -> None:
        self.jobs(*[SHORT] * 16)
        self.assertEnded(self.run_jobs("--slots", "a,b"), 0, "d" * 16)
        self.assertAlone()
        self.assertEqual({name for name, _ in self.used()}, {"a", "b"})

    def test_a_name_that_is_given_twice_has_two_slots(self) -> None:
        self.jobs(*[f"{WAITING}; echo $SLAVE_IP >>names"] * 3)
        runner = self.start_jobs("--slots", "a,b,a", up=[1, 2, 3])
        self.open_gate()
        self.assertEnded(self.finish(runner), 0, "ddd")
        self.assertEqual(sorted(self.read("names").split()), [b"a", b"a", b"b"])

    def test_the_least_busy_name_gets_the_next_job(self) -> None:
        self.jobs(*[f"echo $SLAVE_IP >>names; {WAITING}"] * 3)
        runner = self.start_jobs("--slots", "a,a,a,b,b", up=[1, 2, 3])
        self.open_gate()
        self.assertEnded(self.finish(runner), 0, "ddd")
        self.assertEqual(sorted(self.read("names").split()), [b"a", b"a", b"b"])

    def test_a_job_with_two_slots_gets_them_of_one_name_if_it_can(self) -> None:
        self.write(f". {WAITING}\n#RUN slots=2\n. echo $RUNMAKER4_SLOTS >names\n")
        runner = self.start_jobs("--slots", "a,a,b,b", up=[1])
        self.wait_states("rd")
        self.open_gate()
        self.assertEqual((self.finish(runner).code, self.read("names")), (0, b"b,b\n"))

    def test_a_name_may_be_any_bytes(self) -> None:
        self.jobs('printf %s "$SLAVE_IP" >name')
        self.assertEqual(self.run_jobs("--slots", os.fsdecode(b"caf\xe9 $HOME '*'")).code, 0)
        self.assertEqual(self.read("name"), b"caf\xe9 $HOME '*'")
        self.names(b"\t b\xe9t $HOME \r\n")
        self.jobs('printf %s "$SLAVE_IP" >name')
        self.assertEqual(self.run_jobs("--slots", "@names").code, 0)
        self.assertEqual(self.read("name"), b"b\xe9t $HOME")


class Refused(SlotCase):
    """What makes no sense is refused before anything runs."""

    OPTIONS = "-j2 --slots a,b", "--slots a,,b", "--slots @missing", "--slots @comments"
    MORE = ("--slots=", "--slots a,b,", "--slots ,", "--slots @names", "--slots @folder", "--slots @",
            "--slots @runs.txt", "--slots a,b --slot-errors x", "--slots a,b --slot-errors -1",
            "--runner=", "--runner='")

    def test_whatever_makes_no_sense_is_refused(self) -> None:
        self.jobs("touch never")
        self.names("")
        (self.dir / "folder").mkdir()
        self.write("# a\n\n  \n", "comments")
        calls = [(RUNMAKER, *words.split(), "runs.txt") for words in self.OPTIONS + self.MORE * FULL]
        calls.append((RUNCLIENT, "-j2", "--slots", "a,b", "--token", "0" * 32, "localhost"))
        for call, ended in self.run_all(calls):
            with self.subTest(call=call):
                self.assertRefused(ended)
        self.assertEqual(self.read(), self.before)


class FollowedNames(SlotCase):
    """--slots @FILE: names come and go while runners work."""

    def test_comments_blank_lines_and_blanks_around_names_are_dropped(self) -> None:
        self.jobs(*[HELD] * 4)
        self.names("# the cluster\n\n  a\t\r\n#x\n   \nb \nc\n")
        runner = self.start_on_names(up=[1, 2, 3])
        self.assertEqual({self.name_of(line) for line in (1, 2, 3)}, {"a", "b", "c"})
        self.open_gate()
        self.assertAll(0, runner, "dddd")

    def test_a_name_that_is_added_gets_a_job_within_a_second(self) -> None:
        """That is, within three looks: two must find it, and it can come just behind one."""
        self.assertLess(3 * runmaker4.SlotFile.INTERVAL, 1)
        self.jobs(*[HELD] * 5)
        self.names("a\n")
        runner = self.start_on_names(up=[1])
        for line, name in enumerate("bcd", 2):
            with open(self.dir / "names", "a", encoding="ascii") as names:
                names.write(f"{name}\n")
            self.assertEqual(self.name_of(line), name)
        self.open_gate()
        self.assertAll(0, runner, "ddddd")

    def test_a_name_that_is_removed_finishes_its_job_and_gets_no_more(self) -> None:
        self.jobs(*[HELD] * 3, *[SHORT] * 12)
        self.names("a\nb\n")
        runner = self.start_on_names(up=[1, 2])
        self.names("a\nc\n")
        self.assertEqual(self.name_of(3), "c")                          # so the names were looked at
        self.open_gate()
        self.assertAll(0, runner, "d" * 15)
        self.assertLessEqual({name for name, line in self.used() if line > 3}, {"a", "c"})

    def check_kept(self, damage: Callable[[], object]) -> None:
        """The names are lost while a job runs: the known ones stay, said once; later ones count again."""
        self.jobs(HELD)
        self.names("a\nb\n")
        runner = self.start_on_names(up=[1])
        damage()

        def about() -> list[bytes]:
            return [line for line in self.read("stderr").splitlines() if b"names" in line]

        wait_until(about, what="it is said that the names are gone")
        self.append(*[f". {SHORT}"] * 4, f". {HELD}")
        self.wait_up(6)
        self.assertEqual({name for name, _ in self.used()[1:]}, {"a", "b"} - {self.name_of(1)})
        self.wait_names_read()
        self.assertEqual(len(about()), 1, about())
        self.append(f". {HELD}")
        self.replace_names("a\nb\nc\n")
        self.assertEqual(self.name_of(7), "c")
        self.open_gate()
        self.assertAll(0, runner, "d" * 7)

    def test_when_the_file_vanishes_the_last_known_names_stay(self) -> None:
        self.check_kept((self.dir / "names").unlink)

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_when_the_file_is_empty_the_last_known_names_stay(self) -> None:
        self.check_kept(lambda: self.names("# nobody\n"))

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_a_file_that_is_replaced_again_and_again_does_not_use_up_descriptors(self) -> None:
        self.jobs(*[HELD] * 3)
        self.names("a\nb\nc\n")
        runner = self.start_on_names(up=[1, 2, 3])

        def count() -> int:
            return len(os.listdir(f"/proc/{runner.pid}/fd"))

        before = count()
        for _ in range(40):
            self.replace_names("a\nb\nc\n")
            time.sleep(0.15)
        wait_until(lambda: count() < before + 15,
                   what=f"few more than {before} descriptors are open, not {count()}")
        self.open_gate()
        self.assertAll(0, runner, "ddd")

    def test_a_name_that_is_still_being_written_is_no_name(self) -> None:
        """Only what two looks find alike counts."""
        file = runmaker4.SlotFile(str(self.names("a\n")))
        for part in "10.0.", "0.7", "\n# b\n":
            with open(file.path, "a", encoding="ascii") as names:
                names.write(part)
            if part.startswith("\n"):
                self.assertEqual(file.reload_names(), ["a", "10.0.0.7"])
            self.assertIsNone(file.reload_names())


class SlotErrors(SlotCase):
    """A slot whose jobs could not run, N times in a row, gets no more of them (--slot-errors)."""
    BROKEN = '[ "$SLAVE_IP" != bad ] || [ -e mended ] || { echo $JOB_ID >>broken; exit 127; }'
    soon = SOON

    def command(self, script: str, *args: object) -> list[str]:
        words = super().command(script, *args)
        if script == RUNMAKER:
            words[1:2] = "-c", program_of(script, words[1], self.soon)
        return words

    def said_of(self, ended: Ended, name: str) -> str:
        """The line of stderr that names the slot and what it did."""
        found = [line for line in ended.err.decode().splitlines()[:-2] if name in line]
        self.assertEqual(len(found), 1, ended.err)
        return found[0]

    def test_a_broken_slot_is_taken_out_and_r_runs_its_lines_again(self) -> None:
        self.jobs(*[f"{self.BROKEN}; {GATE}"] * 8)
        runner = self.start(RUNMAKER, "-q", "--slots", "bad,good", "--slot-errors", "3", "runs.txt")
        wait_until(lambda: self.states().count("!") == 3, what="bad has had its jobs")
        self.open_gate()
        ended = self.finish(runner)
        broken = [number for number, state in enumerate(self.states(), 1) if state == "!"]
        self.assertEqual([int(line) for line in self.read("broken").split()], broken)
        self.assertEnded(ended, 1, "".join("!" if number in broken else "d" for number in range(1, 9)))
        self.assertIn("3 jobs in a row", self.said_of(ended, "bad"))
        self.assertEnded(self.run_jobs("-q", "-r", "--slots", "good", "--slot-errors", "3"), 0, "d" * 8)

    def test_when_all_slots_are_out_the_runner_ends(self) -> None:
        self.jobs(*["exit 127"] * 6)
        ended = self.run_jobs("-q", "--slots", "one,two", "--slot-errors", "2", "--follow")
        self.assertEnded(ended, 1, "!!!!..")
        for name in "one", "two":
            self.said_of(ended, name)

    def test_all_slots_of_a_name_are_out_together(self) -> None:
        self.jobs(*["exit 127"] * 6)
        ended = self.run_jobs("-q", "--slots", "one,one,one", "--slot-errors", "2")
        self.assertEqual((ended.code, self.states()[-2:]), (1, ".."), ended.err)
        self.said_of(ended, "slot one")

    def test_only_what_could_not_run_counts_and_only_in_a_row(self) -> None:
        ends = "127 126 1 127 126 0 126 126 254 127".split()
        self.jobs(*[f"exit {end}" for end in ends])
        self.assertEnded(self.run_jobs("-q", "--slots", "one"), 1, "!!!!!d!!!!")
        self.jobs(*["exit 1"] * 40)
        self.assertEnded(self.run_jobs("-q", "-j2"), 1, "!" * 40)
        self.jobs(*["exit 127"] * 5)
        self.assertEnded(self.run_jobs("-q", "-j1", "--slot-errors", "0"), 1, "!!!!!")

    def test_127_after_some_work_is_an_end_as_any_other(self) -> None:
        self.soon = ""
        self.jobs("sleep 1; no-such-mailer", "exit 1")
        self.assertEnded(self.run_jobs("-q", "-j1", "--slot-errors", "1"), 1, "!!")

    def test_255_is_of_a_host_out_of_reach_if_ssh_runs_the_jobs_and_else_of_the_program(self) -> None:
        self.script('#!/bin/sh\n[ "$1" != -S ] || shift 2\nexec sh -c "$*"\n', "ssh")
        for options in (), ("--runner", "env X=/ssh"):
            self.jobs(*["exit 255"] * 4)
            self.assertEnded(self.run_jobs("-q", "--slots", "one", *options), 1, "!!!!")
        for ssh_options, remedy in ("", " (a shared connection? use ssh -S none)"), (" -S none", ""):
            self.jobs("exit 127", *["exit 255"] * 3)
            ended = self.run_jobs("-q", "-j1", "--runner", f"nice ./ssh{ssh_options}")
            self.assertEnded(ended, 1, "!!!.")
            said = f"ended with 127 within a second or 255 from ssh{remedy};"
            self.assertIn(said, self.said_of(ended, "slot 1"))

    def test_a_host_without_the_program_leaves_the_list_to_the_other(self) -> None:
        (self.dir / "elsewhere").mkdir()
        self.script(f"#!/bin/sh\ncd ..; {GATE}\n", "there/sim")
        self.jobs(*["./sim"] * 40)
        good = self.start(RUNMAKER, "-q", "-j2", "../runs.txt", cwd=self.dir / "there")
        bad = self.start(RUNMAKER, "-q", "-j16", "--name", "alice", "../runs.txt", cwd=self.dir / "elsewhere")
        ended = self.finish(bad)
        self.open_gate()
        where = re.escape(str(self.dir / "elsewhere"))
        said = rf"slot \d+: \d jobs? in a row ended with 127 within a second; .* on alice in {where}: \./sim"
        self.assertRegex(ended.err.decode(), said)
        self.assertIn(b"no slot is left in service", ended.err)
        self.assertEqual((ended.code, self.finish(good).code), (1, 1))
        self.assertIn(self.states().count("!"), range(10, 26))
        self.assertEqual({*self.states()}, {*"!d"})

    def test_of_the_first_jobs_elsewhere_one_that_could_run_brings_all_slots_back(self) -> None:
        (self.dir / "elsewhere").mkdir()
        self.jobs(f"cd ..; {GATE}", *["exit 127"] * 12, *["true"] * 8)
        runner = self.start(RUNMAKER, "-q", "-j3", "--slot-errors", "20", "../runs.txt",
                            cwd=self.dir / "elsewhere")
        wait_until(lambda: self.states().count("!") >= 10, what="no other slot is in service")
        self.open_gate()
        self.assertEnded(self.finish(runner), 1, "d" + "!" * 12 + "d" * 8)
        slots = runmaker4.Slots(one_only=False, max_broken=3)
        slots.first_broken = 0
        slots.set_names(map(str, range(20)))
        for name in slots.take(12)[:10]:
            self.assertEqual(slots.add_end(name, "127"), ["127"] * (name == "9"))
        self.assertEqual(slots.in_service, 10)
        slots.add_end("10", "")
        self.assertEqual(slots.in_service, 20)
        for _ in range(2):                      # then each slot counts alone
            slots.add_end("11", "127")
        self.assertEqual(slots.in_service, 20)

    def test_in_the_directory_of_the_file_each_slot_counts_alone(self) -> None:
        self.jobs(*["exit 127"] * 12, *["true"] * 8)
        self.assertEnded(self.run_jobs("-q", "-j12"), 1, "!" * 12 + "d" * 8)

    def test_a_name_that_is_removed_and_added_again_is_back_in_service(self) -> None:
        self.jobs(*[f"{self.BROKEN}; {HELD}"] * 5)
        self.names("bad\ngood\n")
        runner = self.start_on_names("--slot-errors", "2")
        wait_until(lambda: b"bad" in self.read("stderr"), what="bad is out of service")
        wait_until(lambda: sorted(self.states()) == ["!", "!", ".", ".", "r"], what="its jobs have failed")
        self.names("good\nother\n")
        wait_until(lambda: sorted(self.states()) == ["!", "!", ".", "r", "r"], what="other has a job")
        self.write("", "mended")
        self.names("good\nother\nbad\n")
        wait_until(lambda: sorted(self.states()) == ["!", "!", "r", "r", "r"], what="bad has a job")
        self.open_gate()
        self.assertEqual((runner.wait(DEADLINE), sorted(self.states())), (1, ["!", "!", "d", "d", "d"]))
        self.assertLessEqual({"bad", "good", "other"}, {name for name, _ in self.used()})

    def test_with_one_only_it_gets_no_second_job(self) -> None:
        self.jobs(*[f"{self.BROKEN}; {HELD}"] * 4)
        self.names("bad\ngood\n")
        runner = self.start_on_names("-1", "--slot-errors", "1")
        wait_until(lambda: sorted(self.states()) == ["!", ".", ".", "r"], what="bad has had its job")
        self.names("good\nother\n")
        wait_until(lambda: sorted(self.states()) == ["!", ".", "r", "r"], what="other has a job")
        self.write("", "mended")
        self.names("good\nother\nbad\n")
        self.wait_names_read()
        self.open_gate()
        self.assertEqual((self.finish(runner).code, sorted(self.states())), (1, ["!", ".", "d", "d"]))

    def test_one_that_breaks_once_it_is_removed_is_back_in_service_when_it_is_added_again(self) -> None:
        self.script('#!/bin/sh\nexec sh -c "$*"\n', "ssh")
        self.jobs("touch up.1; until [ -e out ]; do sleep 0.02; done; exit 255", HELD, HELD)
        self.names("bad\n")
        runner = self.start_on_names("--slot-errors", "1", "--runner", "./ssh", up=[1])
        self.names("good\n")
        self.wait_up(2, runner=runner)
        self.write("", "out")
        self.wait_states("!r.")
        wait_until(lambda: b"bad" in self.read("stderr"), what="bad was out of service")
        self.names("good\nbad\n")
        self.wait_up(3, runner=runner)
        self.open_gate()
        self.assertAll(1, runner, "!dd")


class Arguments(SlotCase):
    """What a wrapper gets."""

    def test_a_wrapper_gets_the_shell_its_option_and_the_job_in_one_word(self) -> None:
        self.script(LOGGING_WRAPPER, "wrap")
        self.write(b"".join(b". %s\n" % command for command in NASTY))
        self.run_jobs("-q", "--slots", "a", "--runner", './wrap env "S=$SLAVE_IP"')
        for number, command in enumerate(NASTY, 1):
            with self.subTest(job=command[:80]):
                words = self.read(f"arguments.{number}").split(b"\0")
                # else an option of the shell's
                word = b" " + command if command.startswith(b"-") else command
                self.assertEqual(words, [b"env", b"S=a", b"/bin/sh", b"-c", word, b""])


@unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
class ArgumentsFromAClient(OverTcp, Arguments):
    """The client's --runner."""


class Wrapped(SlotCase):
    """--runner CMD: what runs is CMD /bin/sh -c JOB, and JOB arrives as it stands in the file."""

    def results(self, commands: list[bytes], *options: str, **settings: Any) -> tuple[str, dict[str, bytes]]:
        """Run these jobs: their states, and all that they print on stdout."""
        self.write(b"".join(b". %s\n" % command for command in commands))
        shutil.rmtree(self.dir / "out", ignore_errors=True)
        ended = self.run_jobs("-q", "--slots", "a b", "--outdir", "out", *options, **settings)
        self.assertEqual(ended.code, 1, ended.err)
        printed = {path.name: path.read_bytes() for path in (self.dir / "out").glob("*.out")}
        return self.states(), printed

    def check_ssh(self, runner: str, *hosts: bytes, longest: int = 100_000) -> None:
        """This wrapper has an ssh in it, and changes nothing of what becomes of the NASTY jobs."""
        self.write("", "hosts")
        commands = [command for command in NASTY if len(command) < longest]
        states, printed = self.results(commands)
        self.assertIn("d", states)
        found = self.results(commands, "--runner", runner,
                             env={"PATH": f"{self.dir}/bin:{os.environ['PATH']}"})
        self.assertEqual(found[0], states)
        for name in sorted(printed.keys() | found[1].keys()):
            with self.subTest(job=commands[int(name.split(".")[0]) - 1][:80], runner=runner):
                self.assertEqual(found[1].get(name, b"")[:300], printed.get(name, b"")[:300])
        self.assertEqual(set(self.read("hosts").splitlines()), {*hosts})

    def test_through_ssh_jobs_of_all_kinds_arrive_as_they_are(self) -> None:
        self.script(SSH, "bin/ssh")
        self.check_ssh('ssh -o BatchMode=yes "$SLAVE_IP"', b"a b")
        if FULL:
            self.check_ssh(f"  {self.dir}/bin/ssh alice", b"alice")
            self.check_ssh("timeout 50 ssh bob", b"bob")
            self.check_ssh("X=/ssh ssh gate env Y=/ssh ssh b", b"gate", b"b", longest=1000)

    def test_messages_and_records_show_the_jobs_own_command(self) -> None:
        self.jobs("echo 'a'", "exit 3")
        ended = self.run_jobs("--runner", "env X=1", "--joblog", "joblog", "-l", "log")
        self.assertEnded(ended, 1, "d!")
        seen = ended.out + self.read("joblog") + self.read("log")
        self.assertNotIn(b"X=1", seen)
        self.assertNotIn(b"/bin/sh", seen)
        self.assertIn(b"executing `echo 'a''\n", ended.out)
        rows = [line.split(b"\t") for line in self.read("joblog").splitlines()[1:]]
        self.assertEqual([(row[6], row[8]) for row in rows], [(b"0", b"echo 'a'"), (b"3", b"exit 3")])

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_a_job_that_is_too_long_with_its_quotes_is_an_error(self) -> None:
        self.jobs(f"""printf '%s' "{"'" * 40_000}" """, "true")
        ended = self.run_jobs("-q", "--runner", "env X=1")
        self.assertEnded(ended, 1, "ed")
        self.assertComplains(ended, "line 1", "too long")

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes some seconds")
    def test_a_job_that_is_ended_is_ended_within_its_wrapper(self) -> None:
        self.script('#!/bin/sh\n"$@"\n', "wrap")
        self.jobs(SLEEPING, f"trap : TERM; {SLEEPING}")
        options = "-j2", "-q", "--runner", "./wrap", "--timeout", "0.5"
        runner = self.start_hasty(*options, "runs.txt", patience=QUICK)
        self.assertEnded(self.finish(runner), 1, "!!")

    def test_the_wrapped_jobs_of_a_killed_runner_keep_their_line(self) -> None:
        self.jobs(WAITING)
        runner = self.start_jobs("--runner", "env X=1", up=[1])
        runner.kill()
        runner.wait()
        self.assertEqual(locked_lines(self), [1])
        self.open_gate()
        wait_until(lambda: not locked_lines(self), what="the line is free")


class SshInRunners(unittest.TestCase):
    """How often a job is read by shells on its way is known by the words of the runner."""

    def test_each_word_that_is_ssh_counts_and_nothing_else_does(self) -> None:
        for count, *runners in (
            (0, "docker exec sshd", "nice -n 19", "apptainer exec ssh.sif", "myssh bob", '"$RSH" bob'),
            (1, "ssh bob", "/usr/bin/ssh -p 22 bob", "timeout 5 ssh bob", "sshpass -e ssh bob",
             "env A=/bin/ssh ssh bob", "'ssh' \"$SLAVE_IP\"", "docker exec ssh"),
            (2, "ssh gate ssh bob", "ssh ssh", "ssh -l ssh bob"),
        ):
            for runner in runners:
                with self.subTest(runner=runner):
                    wrapped = runmaker4.wrap_in_runner(runner.encode(), "/bin/sh", b"a  b")
                    words = shlex.split(wrapped.decode().removeprefix(runner))
                    for _ in range(count):
                        words = shlex.split(" ".join(words))        # as ssh does, and a shell over there
                    self.assertEqual(words, ["/bin/sh", "-c", "a  b"])


# -- the same, promised of a client -------------------------------------------------------------------------


@ordinarily("test_a_job_knows_its_slot_by_name_and_its_line_by_number")
class NamedSlotsOverTcp(OverTcp, NamedSlots):
    """--slots A,B: a slot for each name."""


@ordinarily("test_a_name_that_is_removed_finishes_its_job_and_gets_no_more")
class FollowedNamesOverTcp(OverTcp, FollowedNames):
    """--slots @FILE: names come and go while a client runs."""

    def test_the_server_learns_that_there_are_enough_slots_for_a_job(self) -> None:
        self.write(f". {HELD}\n")
        self.names("a\n")
        client = self.start_on_names(up=[1])
        self.names("a\nb\n")
        self.append(". true")
        self.wait_states("rd")                  # on b
        self.append("#RUN slots=2", ". echo $RUNMAKER4_SLOTS > taken")
        self.open_gate()
        self.assertAll(0, client, "ddd")
        self.assertEqual(sorted(self.read("taken").strip().split(b",")), [b"a", b"b"])
