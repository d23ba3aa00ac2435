"""Promise: on NFS, whatever dies, no job is lost and none runs twice; ends are as docs/messages.md says.

With RUNMAKER4_TEST_REAL=1, on machines that are booted once (rigs/nfs.py): alice and bob run jobs on a
directory of a real server, over NFSv3, 4.0, 4.1 and 4.2.  Over 4.0 and 4.1 only what stands on how they keep
locks is tried: the rest comes over 3 and 4.2, which differ in how locks are lost.  A cut that is shorter than
the lease, which NFSv3 has not, a full export, which loses no lock, and the quick start come over 4.2 alone;
the storm and the thousand jobs with alice on 3 and bob on 4.2.  A SEED chooses 3 or 4.2 for power loss, cut
and reboot.
"""
import random
import time
import unittest

from tests.real.rigs import REAL
from tests.real.rigs.nfs import SLOW, Command, missing
from tests.real.rigs.nfs_case import GATE, LEASE, Locks, NfsCase, Scenarios, job
from tests.support.scripts import ALL, SEED, chance

# Over which version disasters come in this run; "" for both
CHOSEN = chance("NFS").choice(("3", "4.2")) if SEED and not ALL else ""


def setUpModule() -> None:
    if not REAL:
        raise unittest.SkipTest("RUNMAKER4_TEST_REAL is not set: takes 13 minutes")
    if missing():
        raise unittest.SkipTest(missing())


class Disasters(NfsCase):
    """What takes longer, and what dies for good."""

    def test_a_host_loses_power(self) -> None:
        self.server.write("runs.txt", job(1, GATE) + job(2, GATE))
        self.start(self.alice, "runmaker4.py -q -j2 runs.txt")
        self.wait_marks("^start", 2)
        other = self.start(self.bob, "runmaker4.py -j2 --resume --follow runs.txt")
        self.open_gate(self.bob)
        self.lose_power(self.alice)
        if "3" in self.versions:         # its locks stay until it is up again
            command = job(1, GATE).partition(" ")[2].rstrip().replace("'", "'\\''")
            self.finish(self.start(self.bob, "runset4.py --cancel runs.txt 1"), 1)
            self.finish(self.start(self.bob, f"runset4.py runs.txt --add ' {command}'"))
            self.wait_states("crd")
            self.boot(self.alice)
            self.wait_states("cdd")
        else:
            self.wait_states("dd")
        self.drain(other)
        self.assertRanOnce(2)

    def test_the_network_is_cut_for_more_than_the_lease(self) -> None:
        """NFSv4: another host takes a line, and the first then stops its copy. NFSv3: nobody can."""
        self.server.write("runs.txt", job(1, GATE) + job(2, GATE))
        runner = self.start(self.alice, "runmaker4.py -j2 runs.txt")
        self.wait_marks("^start", 2)
        self.alice.plug(False)
        begin = time.monotonic()
        other = self.start(self.bob, "runmaker4.py --resume --follow runs.txt")
        if "3" not in self.versions:
            self.wait_marks("^start.*bob")
        time.sleep(max(0.0, begin + LEASE + 10 - time.monotonic()))
        self.alice.plug(True)
        if "3" in self.versions:
            self.open_gate()
            self.finish(runner)
            self.wait_states("dd")
            self.assertRanOnce(2)
        else:
            taken = int(self.server.run("ls m | grep bob").out.split(b".")[1])
            self.wait_until_said(runner, f"line {taken}: another runner took over this job; stopping our")
            self.wait_until_said(runner, f"line {3 - taken}: locked again")
            self.open_gate(self.bob)
            # else the first cannot know how the taken line will end, and says 1
            self.wait_states({1: "dr", 2: "rd"}[taken])
            self.open_gate(self.alice)
            self.finish(runner, 0)
            self.wait_states("dd")
        self.drain(other)

    def test_the_server_loses_power_under_load(self) -> None:
        """It exports with `sync`: what is `d` has its result on the server's disk."""
        jobs = 80
        self.server.write("runs.txt", "".join(job(number, f"seq 3000 >result.{number}; sleep 0.5")
                                              for number in range(1, jobs + 1)))
        runners = [self.start(client, "runmaker4.py -q -j4 runs.txt") for client in self.rig.clients]
        self.server.run("sync")         # what was written here, not by the clients
        self.wait_marks("^end", 10)
        directory = self.server.directory
        self.server.kill()
        self.server.boot()
        self.server.directory = directory
        done = [number for number, state in enumerate(self.states(), 1) if state == "d"]
        self.assertGreater(len(done), 0)
        sums = self.server.run(f"seq 3000 | md5sum; for n in {' '.join(map(str, done))}; do "
                               "md5sum <result.$n; done").out.split(b"\n")[:-1]
        self.assertEqual((len(sums), len({*sums})), (len(done) + 1, 1), done)
        for runner in runners:
            self.finish(runner, timeout=2 * SLOW)
        self.assertEqual(self.states(), "d" * jobs)
        self.assertRanOnce(jobs)


class OnNfs3(Scenarios, unittest.TestCase):
    versions = ("3", "3")


class OnNfs40(Locks, unittest.TestCase):
    versions = ("4.0", "4.0")


class OnNfs41(Locks, unittest.TestCase):
    versions = ("4.1", "4.1")


class OnNfs42(Scenarios, unittest.TestCase):
    versions = ("4.2", "4.2")

    def test_quick_start_with_a_second_host(self) -> None:
        first = self.start(
            self.alice,
            "sh -c \"printf '. echo %s; sleep 1s; echo %s\\n' a A b B c C d D > runs.txt && "
            "runmaker4.py -j2 runs.txt; cat runs.txt\"",
        )
        self.wait("grep -q '^[rd]' runs.txt")
        second = self.start(self.bob, "runmaker4.py -j2 runs.txt")
        self.finish(first)
        self.finish(second)
        self.assertEqual(self.states(), "dddd")
        printed = first.out + second.out
        for letter in b"abcdABCD":
            self.assertEqual(printed.count(b"): %c\n" % letter), 1, printed)

    def test_the_network_is_cut_for_less_than_the_lease(self) -> None:
        self.server.write("runs.txt", job(1, GATE))
        runner = self.start(self.alice, "runmaker4.py -q runs.txt")
        self.wait_marks("^start")
        other = self.start(self.bob, "runmaker4.py --resume --follow runs.txt")
        self.alice.plug(False)
        time.sleep(LEASE / 3)       # TCP tries again after at most as long once more
        self.alice.plug(True)
        self.open_gate(self.alice)
        self.finish(runner)
        self.drain(other)
        self.assertEqual(self.states(), "d")
        self.assertRanOnce(1)

    def test_the_export_is_full(self) -> None:
        """Output is lost, which is said; jobs and states go on, an addition is made whole or not at all."""
        self.server.write("runs.txt", f". [ $JOB_ID -le 3 ] || {GATE}; echo text; sleep 0.3\n" * 30)
        runner = self.start(self.alice, "runmaker4.py -q -j2 --outdir out runs.txt")
        self.wait("[ $(grep -c '^d' runs.txt) -ge 3 ]")
        self.addCleanup(self.server.run, "rm -f /state/fill")
        self.server.run("fallocate -l $(($(df -B1 --output=avail . | tail -n 1) - 4000000)) /state/fill; "
                        "cat /dev/zero >>/state/fill", check=False)
        self.open_gate()
        self.assertIn("no space left on device", self.finish(runner, 1))
        self.assertEqual(self.states(), "d" * 30)
        before = self.server.read("runs.txt")
        adding = "sh -c 'yes true | head -n 10000 | runset4.py runs.txt --add-list -'"
        self.assertIn("no space left", self.finish(self.start(self.bob, adding), 2))
        self.assertEqual(self.server.read("runs.txt"), before)
        self.server.run("rm /state/fill")
        self.finish(self.start(self.bob, "runset4.py --set=. runs.txt 1-30"))
        self.finish(self.start(self.bob, "runmaker4.py -q -j2 --outdir out runs.txt"))
        newest = "for n in $(seq 30); do cat $(ls -t out/$n.out* | head -n 1); done"
        self.assertEqual(self.server.run(newest).out, b"text\n" * 30)


@unittest.skipIf(CHOSEN == "4.2", "this commit has disasters over NFSv4.2")
class DisastersOnNfs3(Disasters, unittest.TestCase):
    versions = ("3", "3")


@unittest.skipIf(CHOSEN == "3", "this commit has disasters over NFSv3")
class DisastersOnNfs42(Disasters, unittest.TestCase):
    versions = ("4.2", "4.2")


class OnBoth(NfsCase, unittest.TestCase):
    """Hosts with different versions: the server has one table of locks for all."""
    versions = ("3", "4.2")

    def test_a_thousand_jobs_while_others_add_and_set(self) -> None:
        """A gate, and a barrier below it, keep lines new until the last addition."""
        jobs = [f"echo {number} >>/tmp/ran" for number in range(1, 1001)]
        jobs[0] += f"; {GATE}"
        lines = [f". {text}\n" for text in jobs[:960]]
        self.server.write("runs.txt", "".join([*lines[:900], "#RUN barrier\n", *lines[900:]]))
        waiters = [self.start(client, "runwait4.py -e runs.txt") for client in self.rig.clients]
        runners = [self.start(client, "runmaker4.py -q -j4 runs.txt") for client in self.rig.clients]
        for first in 960, 980:
            added = " ".join(f"'{text}'" for text in jobs[first:first + 20])
            self.finish(self.start(self.bob, f"runset4.py runs.txt --add {added}"))
            self.finish(self.start(self.bob, "runset4.py --set=x --state=. runs.txt 941-943"))
            self.finish(self.start(self.bob, "runset4.py --set=. --state=x runs.txt"))
        self.open_gate()
        for runner in runners:
            self.finish(runner, timeout=3 * SLOW)
        self.assertEqual(self.states(), "d" * 1000)
        ran = b"".join(client.run("cat /tmp/ran; rm /tmp/ran").out for client in self.rig.clients)
        self.assertEqual(sorted(map(int, ran.split())), list(range(1, 1001)))
        for waiter in waiters:
            self.finish(waiter)

    def test_a_storm_of_kills(self) -> None:
        (jobs, kills), chance = (10_000, 240) if ALL else (500, 12), random.Random(7)
        self.server.write("runs.txt", "".join(job(number, "sleep 0.2") for number in range(1, jobs + 1)))
        runners: list[Command] = []
        killed: list[Command] = []
        for done in [*sorted(chance.sample(range(jobs * 8 // 10), kills)), jobs]:
            while int(self.server.run("grep -c '^d' runs.txt", check=False).out) < done:
                for client in self.rig.clients:
                    living = [runner for runner in runners
                              if runner.machine is client and runner.code is None]
                    for _ in range(2 - len(living)):
                        runners.append(self.start(client, "runmaker4.py -q -j3 --resume runs.txt"))
                self.assertLess(time.monotonic() - self.begin, 4 * SLOW * jobs / 500, self.states())
                time.sleep(0.5)
            living = [runner for runner in runners if runner.code is None]
            if done < jobs and living:
                killed.append(chance.choice(living))
                (self.kill_with_jobs if len(killed) % 2 else self.kill_runner)(killed[-1])
        for runner in runners:
            if runner not in killed:
                runner.wait()
                self.assertIn(runner.code, (0, 1), str(runner))
                if runner.code:
                    self.assertIn(b" running", runner.err, str(runner))
        self.assertEqual(self.states(), "d" * jobs)
        self.assertRanOnce(jobs)
