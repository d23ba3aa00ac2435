"""Promise: records and runwait4.py tell what memory jobs were promised, and what they took."""
import itertools
import json
from typing import Any

from tests.support.journal import end
from tests.support.journal_case import JournalCase
from tests.support.memory import HELD, HOLD, WATCHFUL
from tests.support.over_tcp import ordinarily
from tests.support.processes import Ended
from tests.support.scripts import RUNWAIT
from tests.support.tcp import TcpCase

MIB = 1 << 20
RECORDS = "--outdir", "out", "-l", "log"
GROW = ("import os, time; data = b'x' * (110 << 20)\n"
        "if int(os.environ['RUNMAKER4_MEMORY']) < len(data): time.sleep(600)")


class MemoryCase(TcpCase):

    def setUp(self) -> None:
        super().setUp()
        self.write(HOLD, "hold.py")
        self.write(GROW, "grow.py")

    def run_recorded(self, *options: object, pace: str = WATCHFUL) -> Ended:
        """Run the jobs of runs.txt, and keep a journal in `out`.  pace: how often memory is measured."""
        return self.finish(self.start_patched(pace, *RECORDS, *options, "runs.txt"))

    def ends(self) -> dict[int, dict[str, Any]]:
        """The last end of each line in the journal."""
        entries = map(json.loads, self.read("out/journal").splitlines())
        return {entry["line"]: entry for entry in entries if entry["event"] == "end"}

    def told(self, *args: str) -> str:
        """What runwait4.py prints of the journal."""
        return self.run_script(RUNWAIT, "--outdir", "out", *args).out.decode()


class Told(MemoryCase):
    """The journal, and what is read from it."""

    def test_it_is_told_what_was_promised_and_taken(self) -> None:
        hold = ". python3 hold.py"
        self.write(f"#RUN memory=100M\n{hold} 150 60\n#RUN memory=1G\n{hold} 60 3; exit 3\n#RUN\n. true\n")
        self.run_recorded("-j3", "--memory=2G", pace=HELD)
        self.assertEqual(self.states(), "!!d")
        ends = self.ends()
        self.assertEqual([ends[line].get("promised") for line in (2, 4, 6)], [100 * MIB, 1024 * MIB, None])
        self.assertIn(ends[2]["memory"], range(150 * MIB, 200 * MIB))
        self.assertIn(ends[4]["memory"], range(60 * MIB, 100 * MIB))
        failed = self.told("--failed", "runs.txt")
        self.assertRegex(failed, r"line 2: took 1\d\d(\.\d)?M of 100M on .*, after [^,]*\n")
        self.assertRegex(failed, r"line 4: exit 3 on .*, after .*, [67]\d(\.\d)?M of 1G\n")
        self.assertRegex(self.read("log").decode(), r"took 1\d\d(\.\d)?M of 100M")
        shown = self.told("--show", "2", "runs.txt")
        self.assertRegex(shown, r"line 2: took 1\d\d(\.\d)?M of 100M on ")
        run = json.loads(self.told("--show", "2", "--json", "runs.txt"))["runs"][0]
        self.assertEqual((run["promised"], run["cause"]), (100 * MIB, "memory"))

    def test_each_run_of_a_job_that_grew_has_its_own_promise(self) -> None:
        self.write("#RUN memory=60M,200M\n. python3 grow.py\n")
        self.run_recorded("--memory=1G")
        runs = json.loads(self.told("--show", "2", "--json", "runs.txt"))["runs"]
        self.assertEqual([(run["promised"], run["cause"]) for run in runs],
                         [(60 * MIB, "memory"), (200 * MIB, "")])


class Recorded(MemoryCase):
    """Put before a test case: a client runs the jobs, and its server writes the journal."""

    def run_recorded(self, *options: object, pace: str = WATCHFUL) -> Ended:
        server = self.start_server(*RECORDS)
        ended = self.finish(self.start_client(server, *options, patch=pace))
        self.stop(server)
        return ended


@ordinarily("test_each_run_of_a_job_that_grew_has_its_own_promise")
class ToldOverTcp(Recorded, Told):
    """The same with a server and a client."""


class Again(MemoryCase):
    """What grew begins with its first size when it is run again."""

    def test_what_is_run_again_begins_with_the_first_size(self) -> None:
        self.write("#RUN memory=60M,100M,200M\n. echo $RUNMAKER4_MEMORY >>sizes; python3 grow.py\n. false\n")
        self.run_recorded("-j2", "--memory=150M")       # 200M are not there
        self.assertEqual(self.states(), "!!")
        self.run_recorded("-r", "-j2", "--memory=1G")
        self.assertEqual(self.states(), "d!")
        self.assertEqual([int(size) // MIB for size in self.read("sizes").split()], [60, 100, 60, 100, 200])


class Stats(JournalCase, MemoryCase):
    """runwait4.py --stats: memory per command."""

    def shown(self, *sizes: tuple[str, int]) -> list[str]:
        """The commands that are told apart, of runs of these commands, each with so many bytes."""
        self.journal(*(end(number, number, command, memory=size)
                       for number, (command, size) in enumerate(sizes)))
        lines = self.told("--stats").partition("\n\n")[2].splitlines()[1:]
        return [line.partition("  ")[0] for line in lines]

    def test_commands_are_told_up_to_the_first_word_that_differs(self) -> None:
        runs = [("simulate --seed %d --fast" % seed, 9000 + seed) for seed in range(5)]
        runs += [(f"./step{number} -v", 8000 + number) for number in range(3)]
        runs += [(f"process {letter * 3}.txt", 2000) for letter in "abcdefghijkl"]
        runs += [("make all", 1000)] * 3
        self.assertEqual(self.shown(*runs), ["simulate --seed …", "./step… …", "process …", "make all"])

    def test_of_many_commands_those_that_took_most_are_told(self) -> None:
        names = [first + second for first in "abcdefg" for second in "stuvwxyz"]
        shown = self.shown(*((name, (1 + number) * MIB) for number, name in enumerate(names)))
        self.assertEqual(shown, [*reversed(names[-20:]), "and 36 commands more, which took less memory"])

    def test_however_many_commands_there_are_they_take_little_memory(self) -> None:
        names = ["".join(letters) for letters in itertools.product("abcdefgh", repeat=4)]
        shown = self.shown(*((name, (1 + number) * MIB) for number, name in enumerate(names)))
        self.assertEqual(shown[-1], "and 981 commands more, which took less memory")

    def test_what_was_killed_is_counted_and_the_largest_peak_is_told(self) -> None:
        self.journal(*(end(number, number, f"job {number}", memory=number * MIB) for number in range(1, 31)),
                     end("k", 7, "job 7", memory=60 * MIB, state="!", cause="oom", host="node2"),
                     end("m", 8, "job 8", memory=None, memory_below=64 * MIB, state="!", cause="memory"))
        stats = json.loads(self.told("--stats", "--json"))
        for row in stats["all"], *stats["commands"]:
            self.assertEqual((row["too_little"], row["memory"], row["memory_below"]), (2, 60 * MIB, 64 * MIB))
        self.assertEqual([host["too_little"] for host in stats["hosts"]], [1, 1])
        self.assertEqual(stats["too_little_lines"], [7, 8])
        head, row, named = self.told("--stats").partition("\n\n")[2].splitlines()
        self.assertEqual(named, "too little memory: lines 7, 8 (the numbers when they ran)")
        self.assertEqual(head.split(), "command runs median 90% longest CPU memory too little".split())
        self.assertRegex(row, r"^job … +32 .* 60M +2$")
