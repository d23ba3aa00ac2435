"""Promise: on NFS, whatever dies, no job is lost and none runs twice; ends are as docs/messages.md says.

With RUNMAKER4_TEST_REAL=1, in virtual machines that are booted once: alice and bob run jobs on a directory of
a real server, over NFSv3, 4.0, 4.1 and 4.2.  Over 4.0 and 4.1 only what stands on how they keep locks is
tried: the rest comes over 3 and 4.2, which differ in how locks are lost.  A cut that is shorter than the
lease, which NFSv3 has not, a full export, which loses no lock, and the quick start come over 4.2 alone; the
storm and the thousand jobs with alice on 3 and bob on 4.2.  A SEED chooses 3 or 4.2 for power loss, cut and
reboot.
"""
import functools
import json
import random
import signal
import time
import unittest

from tests.real.rigs import REAL
from tests.real.rigs.nfs import SLOW, Command, Machine, Rig, missing
from tests.support import marks
from tests.support.case import Mixin
from tests.support.processes import wait_until
from tests.support.scripts import ALL, SEED, chance

LEASE = 15
GATE = "until [ -e /tmp/go ]; do sleep 0.1; done"           # a job runs until open_gate(), on its host
# Over which version disasters come in this run; "" for both
CHOSEN = chance("NFS").choice(("3", "4.2")) if SEED and not ALL else ""

KILL_ALL = """
kill -STOP RUNNER; jobs=$(pgrep -P RUNNER)
for pid in $jobs; do kill -STOP -$pid; done
for pid in RUNNER $jobs; do
    until ! [ -e /proc/$pid ] || grep -q '^State:.[TZX]' /proc/$pid/status; do sleep 0.05; done
    : >m/killed.0.$pid.0.$HOST
done
for pid in $jobs; do kill -9 -$pid; done; kill -9 RUNNER
for pid in $jobs; do while ps -o stat= -s $pid | grep -qv '^Z'; do sleep 0.05; done; done
"""


def setUpModule() -> None:
    if not REAL:
        raise unittest.SkipTest("RUNMAKER4_TEST_REAL is not set: takes 13 minutes")
    if missing():
        raise unittest.SkipTest(missing())


@functools.cache
def the_rig() -> Rig:
    """The machines of all tests here."""
    rig = Rig(lease=LEASE)
    rig.__enter__()
    unittest.addModuleCleanup(rig.__exit__)
    return rig


def job(number: int, body: str = "true") -> str:
    """A job that marks start and end as files, whose order the server's one clock tells."""
    return f". : >m/start.{number}.$$.$PPID.$HOST; {body}; : >m/end.{number}.$$.0.$HOST\n"


class NfsCase(Mixin):
    """A test with a directory of its own on the server, which clients have mounted with these versions."""
    versions = ("", "")
    rig: Rig
    server: Machine
    alice: Machine
    bob: Machine

    @classmethod
    def setUpClass(cls) -> None:
        cls.rig = the_rig()
        cls.server, (cls.alice, cls.bob) = cls.rig.server, cls.rig.clients
        for client in cls.rig.clients:
            cls.mount(client)

    @classmethod
    def mount(cls, client: Machine) -> None:
        client.mount(cls.versions[cls.rig.clients.index(client)])

    @classmethod
    def tearDownClass(cls) -> None:
        for client in cls.rig.clients:
            client.umount()

    def setUp(self) -> None:
        name = f"{'-'.join(self.versions)}-{self._testMethodName}"
        self.server.run(f"mkdir -m 777 -p {name} {name}/m", directory="/export")
        self.server.directory = f"/export/{name}"
        for client in self.rig.clients:
            client.directory = f"/nfs/{name}"
            client.run("rm -f /tmp/go")
        self.started: list[Command] = []
        self.addCleanup(self.clean)
        self.begin = time.monotonic()

    def clean(self) -> None:
        """Put all back into order for the next test, also after a failure."""
        for client in self.rig.clients:
            client.directory = "/root"
            if client.qemu:
                client.plug(True)
            else:
                self.boot(client)
            client.run(
                "pids=$(grep -la -e RUNMAKER4_JOB= -e RUNMAKER4_TEST= /proc/[0-9]*/environ | cut -d/ -f3); "
                "kill -9 $pids; true",
                check=False,
            )

    # -- steps of the tests ----------------------------------------------------------------------------------

    def boot(self, client: Machine) -> None:
        client.boot()
        directory = client.directory
        self.mount(client)
        client.directory = directory

    def start(self, machine: Machine, command: str) -> Command:
        """Start a command of ours on a machine; the shell becomes it, so that a signal meets nothing else."""
        return machine.popen(f"export RUNMAKER4_TEST=1; exec {command}")

    def finish(self, command: Command, code: int = 0, timeout: float = SLOW) -> str:
        """Wait until a command has ended, with this exit status; what it said on stderr."""
        command.wait(timeout)
        self.assertEqual(command.code, code, str(command))
        self.assertNotIn(b"Traceback", command.err)
        return command.err.decode()

    def wait(self, condition: str) -> None:
        """Wait until a shell command succeeds on the server, which sees the files as they are."""
        waiting = self.server.popen(f"until {condition}; do sleep 0.2; done")
        try:
            waiting.wait()
        except AssertionError:
            waiting.signal(signal.SIGKILL)
            self.fail(f"never: {condition}\n{self.server.run('cat runs.txt; ls m').out.decode()}")

    def wait_states(self, states: str) -> None:
        self.wait(f"""[ "$(grep -v '^#' runs.txt | cut -c1 | tr -d '\\n')" = '{states}' ]""")

    def states(self) -> str:
        return self.server.run("grep -v '^#' runs.txt | cut -c1 | tr -d '\\n'").out.decode()

    def wait_marks(self, pattern: str, count: int = 1) -> None:
        self.wait(f"[ $(ls m | grep -c '{pattern}') -ge {count} ]")

    def wait_until_said(self, command: Command, text: str) -> None:
        wait_until(lambda: text.encode() in command.err, SLOW, f"{command}\nsays: {text}")

    def drain(self, runner: Command) -> None:
        """Have a runner end once it has a handler for the signal, without which it would die."""
        caught = f"0x$(sed -n 's/^SigCgt:\\t//p' /proc/{runner.pid}/status)"
        runner.machine.run(f"until [ $(({caught} >> {signal.SIGUSR1 - 1} & 1)) = 1 ]; do sleep 0.1; done")
        runner.signal(signal.SIGUSR1)
        self.finish(runner)

    def open_gate(self, *clients: Machine) -> None:
        for client in clients or self.rig.clients:
            client.run("touch /tmp/go")

    def kill_runner(self, runner: Command) -> None:
        self.server.run(f": >m/killed.0.{runner.pid}.0.{runner.machine.name}")
        runner.signal(signal.SIGKILL)
        runner.wait()

    def kill_with_jobs(self, runner: Command) -> None:
        """kill -9 for a runner and for its jobs, which are stopped first: so their marks end before ours."""
        runner.machine.run(KILL_ALL.replace("RUNNER", str(runner.pid)))
        runner.wait()

    def lose_power(self, client: Machine) -> None:
        """Switch off a client; whatever has marked its start there is dead."""
        client.kill()
        names = self.server.run(f"ls m | grep '^start.*{client.name}$'").out.decode().splitlines()
        dead = {pid for name in names for pid in name.split(".")[2:4]}
        self.server.run("".join(f": >m/killed.0.{pid}.0.{client.name}; " for pid in dead))

    def marks(self) -> bytes:
        """What happened in the server's order, for support/marks.py; a pid begins with its host's number."""
        hosts = {client.name.encode(): number for number, client in enumerate(self.rig.clients, 1)}
        found = []
        for line in self.server.run("find m/ -type f -printf '%T@ %f\\n'").out.splitlines():
            moment, _, name = line.partition(b" ")
            kind, number, *processes, host = name.split(b".")
            pid, runner = (int(text) + 10_000_000 * hosts[host] for text in processes)
            text = {b"start": f"start {int(number)} {pid} {runner}", b"end": f"end {int(number)} {pid}",
                    b"killed": f"killed {pid}"}[kind]
            found.append((float(moment), kind != b"start", text))
        return "".join(f"{text}\n" for *_, text in sorted(found)).encode()

    def assertRanOnce(self, jobs: int) -> None:
        """Each of the jobs 1 to `jobs` came to its end, never two runs at once, never again without need."""
        text = self.marks()
        runners = {int(line.split()[3]) for line in text.splitlines() if line.startswith(b"start")}
        orphans = {number * 10_000_000 + 1 for number in (1, 2)}        # process 1 is not a runner
        self.assertEqual(marks.problems(text, jobs, runners - orphans), [])


class Locks(NfsCase):
    """What stands on how a version of NFS keeps locks, and who holds them."""

    def test_records_that_two_hosts_share(self) -> None:
        jobs = 30
        numbers = range(1, jobs + 1)
        self.server.write("runs.txt", "".join(f". echo out {n}; echo err {n} >&2; {GATE}\n" for n in numbers))
        runners = [self.start(client, "runmaker4.py -q -j2 -l log --joblog jobs.log --outdir out runs.txt")
                   for client in self.rig.clients]
        self.wait("[ $(grep -c '^r' runs.txt) = 4 ]")       # both are there, and began with any four
        self.open_gate()
        for runner in runners:
            self.finish(runner)
        self.assertEqual(self.states(), "d" * jobs)
        joblog = self.server.read("jobs.log").splitlines()
        self.assertEqual(sorted(int(line.split(b"\t")[0]) for line in joblog[1:]), list(range(1, jobs + 1)))
        self.assertEqual({line.split(b"\t")[1] for line in joblog[1:]}, {b"alice", b"bob"})
        printed = self.server.run(
            "cd out; for n in $(seq 30); do cat $n.out $n.err; done; ls | wc -l"
        ).out.decode()
        self.assertEqual(printed,
                         "".join(f"out {n}\nerr {n}\n" for n in range(1, jobs + 1)) + f"{2 * jobs + 1}\n")
        journal = [json.loads(line) for line in self.server.read("out/journal").splitlines()]
        # a start is missing if the run had ended by the next write, and is there again with the files
        self.assertEqual(sorted(entry["line"] for entry in journal if entry["event"] == "end"), list(numbers))
        self.assertEqual({entry["event"] for entry in journal}, {"start", "end"})
        _, *log = self.server.read("log").split(b"\n")
        self.assertEqual(len(log), jobs * 4 + 1)
        for number in range(1, jobs + 1):
            record = b"\n".join(log[(number - 1) * 4:number * 4])
            self.assertIn(b"echo out %d;" % number, record)
            self.assertIn(b": out %d " % number, record)

    def test_a_job_that_outlives_its_runner_is_not_run_again(self) -> None:
        """Nor after another host has put a new file in the place of the old one."""
        self.server.write("runs.txt", job(1, GATE))
        runner = self.start(self.alice, "runmaker4.py -q runs.txt")
        self.wait_marks("^start")
        self.kill_runner(runner)
        self.bob.run("cp runs.txt new && mv new runs.txt")
        self.finish(self.start(self.bob, "runmaker4.py --resume runs.txt"), code=1)
        self.assertEqual(self.states(), "r")
        self.open_gate()
        self.alice.run("while pgrep -f '[s]tart.1'; do sleep 0.1; done")
        self.finish(self.start(self.bob, "runmaker4.py --resume runs.txt"))
        self.assertEqual(self.states(), "d")
        self.assertRanOnce(1)


class Scenarios(Locks):
    """What hosts do with each other's jobs."""

    def test_a_slots_file_that_another_host_replaces(self) -> None:
        self.server.write("names", "x\n")
        self.server.write("runs.txt", f". touch m/$RUNMAKER4_SLOT; {GATE}\n" * 2)
        runner = self.start(self.alice, "runmaker4.py -q --slots @names runs.txt")
        self.wait("[ -e m/x ]")
        self.bob.run("printf 'x\\ny\\n' >names.new; mv names.new names")
        self.wait("[ -e m/y ]")
        self.open_gate()
        self.finish(runner)
        self.assertEqual(self.states(), "dd")

    def test_a_job_is_cancelled_from_the_other_host(self) -> None:
        self.server.write("runs.txt", job(1, "sleep 100") + job(2))
        runner = self.start(self.alice, "runmaker4.py runs.txt")
        self.wait_marks("^start.1")
        cancelling = self.start(self.bob, "runset4.py --cancel runs.txt 1")
        cancelling.wait()
        if cancelling.code:             # emulated machines that are busy take longer than its ten seconds
            self.assertIn(b"is c, but its job still runs", cancelling.err, str(cancelling))
        self.assertIn("1 done", self.finish(runner))
        self.assertIn(b"cancelled", runner.out)
        self.assertEqual(self.states(), "cd")
        self.assertEqual(self.alice.run("pgrep -fc '^sleep 100'", check=False).out, b"0\n")

    def test_edits_from_the_other_host(self) -> None:
        """In place, by rename and by runset4.py --edit: running jobs are followed, and new ones are found."""
        self.server.write("runs.txt", job(1, GATE) + job(2, GATE))
        runner = self.start(self.alice, "runmaker4.py -j3 runs.txt")
        self.wait_marks("^start", 2)
        new = job(3).replace("'", "'\\''").rstrip()
        self.bob.run(f"cat runs.txt >/tmp/copy; (echo '# in place'; cat /tmp/copy; echo '{new}') >runs.txt")
        self.wait_marks("^end.3")
        self.bob.run(
            f"(echo '# by rename'; cat runs.txt; echo '{new.replace('.3.', '.4.')}') >new; mv new runs.txt"
        )
        self.wait_marks("^end.4")
        self.bob.run(
            f"""cat >/tmp/editor <<'END'\nsed -i '1i# by --edit\\n{new.replace('.3.', '.5.')}' "$1"\nEND"""
        )
        self.finish(self.start(self.bob, "env EDITOR='sh /tmp/editor' runset4.py --edit runs.txt"))
        self.wait_marks("^end.5")
        self.open_gate()
        self.finish(runner)
        self.assertEqual(self.states(), "ddddd")
        self.assertEqual(self.server.run("grep '^#' runs.txt").out, b"# by --edit\n# by rename\n# in place\n")
        self.assertRanOnce(5)


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

    def test_the_server_is_rebooted_under_load(self) -> None:
        jobs = 80
        self.server.write("runs.txt", "".join(job(number, "sleep 0.5") for number in range(1, jobs + 1)))
        runners = [self.start(client, "runmaker4.py -q -j4 runs.txt") for client in self.rig.clients]
        self.server.run("sync")         # what was written here, not by the clients
        self.wait_marks("^end", 10)
        directory = self.server.directory
        self.server.kill()
        self.server.boot()
        self.server.directory = directory
        for runner in runners:
            self.finish(runner, timeout=2 * SLOW)
        self.assertEqual(self.states(), "d" * jobs)
        self.assertRanOnce(jobs)


class OnNfs3(Scenarios, unittest.TestCase):
    versions = ("3", "3")

    def test_a_run_of_another_host_that_was_killed_does_not_get_an_older_result(self) -> None:
        """No query shows a host the shared lock of another that had begun before."""
        self.server.write("runs.txt", f". {GATE}\n. [ $HOST = alice ] || sleep 100\n. {GATE}; true\n")
        other = self.start(self.bob, "runmaker4.py -q runs.txt")
        self.wait_states("r..")
        runner = self.start(self.alice, "runmaker4.py -q runs.txt")
        self.wait_states("rdr")
        self.alice.run("runset4.py -q --set . runs.txt 2")
        self.open_gate(self.bob)
        self.wait_states("drr")
        self.kill_with_jobs(other)
        self.open_gate(self.alice)
        self.finish(runner, code=1)
        self.assertEqual(self.states(), "ded")


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
        self.server.write("runs.txt", job(1, "sleep 4"))
        runner = self.start(self.alice, "runmaker4.py -q runs.txt")
        self.wait_marks("^start")
        other = self.start(self.bob, "runmaker4.py --resume --follow runs.txt")
        self.alice.plug(False)
        time.sleep(LEASE / 3)       # TCP tries again after at most as long once more
        self.alice.plug(True)
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
