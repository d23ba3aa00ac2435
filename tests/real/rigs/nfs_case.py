"""NfsCase: a test on two hosts that share a directory; and what must hold on any shared file system."""
import functools
import json
import signal
import time
import unittest

from tests.real.rigs.nfs import SLOW, Command, Machine, Rig
from tests.support import marks
from tests.support.mixin import Mixin
from tests.support.processes import wait_until

LEASE = 15
GATE = "until [ -e /tmp/go ]; do sleep 0.1; done"           # a job runs until open_gate(), on its host
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
        cls.rig = cls.get_rig()
        cls.server, (cls.alice, cls.bob) = cls.rig.server, cls.rig.clients
        for client in cls.rig.clients:
            cls.mount(client)

    @classmethod
    def get_rig(cls) -> Rig:
        return the_rig()

    @classmethod
    def mount(cls, client: Machine) -> None:
        client.mount(cls.versions[cls.rig.clients.index(client)])

    @classmethod
    def tearDownClass(cls) -> None:
        for client in cls.rig.clients:
            client.umount()

    def setUp(self) -> None:
        # one for each class: the marks of another would be taken for those of this test
        name = f"{type(self).__name__}-{'-'.join(self.versions)}-{self._testMethodName}"
        self.server.run(f"mkdir -m 777 -p {name} {name}/m", directory="/export")
        self.server.directory = f"/export/{name}"
        for client in self.rig.clients:
            client.directory = f"/nfs/{name}"
            client.run("rm -f /tmp/go*")
        self.started: list[Command] = []
        self.addCleanup(self.clean)
        self.begin = time.monotonic()

    def clean(self) -> None:
        """Put all back into order for the next test, also after a failure."""
        for client in self.rig.clients:
            client.directory = "/root"
            if client.process:
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

    def check_locks(self, jobs: int) -> None:
        """Let both hosts run so many jobs, while a check of the locks runs, too."""
        lines = [f". echo {number} >>/tmp/ran\n" for number in range(1, jobs + 1)]
        self.server.write("runs.txt", "".join(lines))
        checks = [self.start(client, "runwait4.py --check-locks .") for client in self.rig.clients]
        runners = [self.start(client, "runmaker4.py -q -j2 runs.txt") for client in self.rig.clients]
        for runner in runners:
            self.finish(runner, timeout=3 * SLOW)
        ran = [client.run("cat /tmp/ran; rm /tmp/ran").out for client in self.rig.clients]
        self.assertEqual(sorted(map(int, b"".join(ran).split())), list(range(1, jobs + 1)))
        self.assertTrue(all(ran), "both have run jobs")
        self.assertEqual(self.states(), "d" * jobs)
        for check in checks:
            with self.subTest(f"{check.machine.name} says yes"):
                self.finish(check)
                for client in self.rig.clients:
                    self.assertRegex(check.out.decode(), f"additions by {client.name} ")
                self.assertNotIn(b"NO  ", check.out)


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
        text = self.server.read("log")
        self.assertNotIn(b"\0", text)
        log = text.split(b"\n")
        # when both have made the file longer, blank lines come after the last record
        self.assertEqual(b"".join(log[jobs * 4:]).strip(), b"")
        self.assertEqual({len(line) for line in log[:jobs * 4]}, {160})
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

    def test_no_more_jobs_than_the_limit_run_on_both_hosts_and_others_go_on(self) -> None:
        numbers = range(1, 7)
        limited = [job(number, f"until [ -e /tmp/go.{number} ]; do sleep 0.1; done") for number in numbers]
        self.server.write("runs.txt", "".join(["#RUN limit=lic:2\n", *limited, "#RUN\n", job(7)]))
        runners = [self.start(client, "runmaker4.py -q -j3 runs.txt") for client in self.rig.clients]
        self.wait_marks("^end.7")
        for ended in range(len(numbers)):
            self.wait_marks("^start.[1-6]", min(ended + 2, len(numbers)))
            first = marks.running(self.marks())[0]
            for client in self.rig.clients:
                client.run(f"touch /tmp/go.{first}")
            self.wait_marks("^end.[1-6]", ended + 1)
        for runner in runners:
            self.finish(runner)
        self.assertEqual(self.states(), "d" * 7)
        self.assertRanOnce(7)
        self.assertEqual(marks.most_at_once(self.marks(), numbers), 2)

    def test_a_job_is_cancelled_from_the_other_host(self) -> None:
        self.server.write("runs.txt", job(1, "sleep 600") + job(2))
        runner = self.start(self.alice, "runmaker4.py runs.txt")
        self.wait_marks("^start.1")
        cancelling = self.start(self.bob, "runset4.py --cancel runs.txt 1")
        cancelling.wait()
        if cancelling.code:             # machines that are busy take longer than its ten seconds
            self.assertIn(b"is c, but its job still runs", cancelling.err, str(cancelling))
        self.assertIn("1 done", self.finish(runner))
        self.assertIn(b"cancelled", runner.out)
        self.assertEqual(self.states(), "cd")
        self.assertEqual(self.alice.run("pgrep -fc '^sleep 600'", check=False).out, b"0\n")

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
