"""What docs/clusters.md has users type on hosts that reach each other by ssh works there, word for word.

alice and bob are real hosts to all that matters here (rigs/ssh.py); what is typed is read out of the
document.
"""
import json
import re
import subprocess
import unittest

from tests.real.rigs import REAL, ssh
from tests.support.documents import STUBS, read_pieces
from tests.support.processes import DEADLINE, Ended, wait_until
from tests.support.runs import RunCase
from tests.support.scripts import SCRIPTS, SCRIPTS_AT

SIMULATE = f"""{STUBS["simulate"].replace('"$@"', '"$@" on $(hostname)')}"""
# What docker does that a runner can notice: it is process 1, on a host of its own
CONTAINER = """until [ "$1" = IMAGE ]; do shift; done; shift
exec unshare --uts --pid --fork --kill-child --mount-proc sh -c 'hostname container; exec "$@"' sh "$@\""""
MPI_AS_ROOT = "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1\n"


def block(start: str, document: str = "docs/clusters.md") -> str:
    """The block of a document that begins so."""
    return next(piece.text for piece in read_pieces(document) if piece.text.startswith(start))


def blotted(text: str) -> set[str]:
    """The lines of a status, with words for what differs from run to run."""
    for pattern, word in ("alice|bob", "HOST"), (r"[\d.]+s|\d+m \d+s", "LONG"), (r"\d+", "N"), (" +", " "):
        text = re.sub(pattern, word, text)
    return set(text.splitlines())


@unittest.skipUnless(REAL, "RUNMAKER4_TEST_REAL is not set: real hosts, half a minute")
class HostsCase(RunCase):
    """A test on alice and bob, who have the scripts on PATH and see the test's directory."""
    hosts: ssh.Hosts

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        if ssh.missing():
            raise unittest.SkipTest(ssh.missing())
        cls.hosts = ssh.Hosts()
        cls.hosts.start()
        cls.addClassCleanup(cls.hosts.stop)
        for name, body in ("simulate", SIMULATE), ("docker", CONTAINER):
            program = cls.hosts.dir / "bin" / name
            program.write_text(f"#!/bin/sh\n{body}\n")
            program.chmod(0o755)

    def type(self, text: str, host: str = "alice", directory: object = "") -> subprocess.Popen[bytes]:
        """Have a shell on a host run this in a directory (the test's); what it prints is in `printed`."""
        with open(self.dir / "printed", "ab") as out:
            return self.start(*self.hosts.on(host, directory or self.dir), "sh", "-c", text, stdout=out,
                              stderr=out)

    def typed(self, text: str, host: str = "alice", directory: object = "") -> Ended:
        """Type this, and wait for its end; what is left in the background (`ssh -f`) may go on printing."""
        self.write("", "printed")
        code = self.type(text, host, directory).wait(DEADLINE)
        self.assertNotIn(b"Traceback", self.read("printed"))
        return Ended(code, self.read("printed"), b"")

    def simulations(self, count: int) -> None:
        """Make runs.txt of so many simulations, which run until hold is gone."""
        self.write("", "hold")
        self.jobs(*(f"simulate --seed {number}" for number in range(1, count + 1)))

    def wait_left(self) -> None:
        wait_until(lambda: not list(self.dir.glob("pid.*")), what="the runners have left")

    def hosts_of(self, *jobs: int) -> set[str]:
        """Where jobs ran that are done."""
        shown = self.typed(f"runwait4.py --show {','.join(map(str, jobs))} --json runs.txt").out
        return {run["host"] for run in json.loads(shown)["runs"] if run["outcome"] == "done"}

    def power_off(self, name: str) -> None:
        """A host without power, until the test has ended; alice does not wait for it long."""
        self.hosts.crash(name)
        self.addCleanup(self.hosts.boot, name)
        config = self.hosts.home("alice") / ".ssh/config"
        self.addCleanup(config.write_text, config.read_text())
        config.write_text(f"Host {name}\n    ConnectTimeout 1\nHost *\n{config.read_text()}")


class Loops(HostsCase):
    """Hosts that see the file: a loop that starts runners on them, and one that stops them."""
    START, STOP = block("for host in alice bob; do\n"), block("for host in alice bob; do ssh")

    def start_all(self, loop: str = START) -> None:
        ended = self.typed(loop)
        self.assertEqual((ended.code, ended.out.count(b"(kill ")), (0, 2), ended.out)
        self.wait_running("alice", "bob")

    def wait_running(self, *names: str) -> None:
        """Wait until jobs run on these hosts and no others."""
        status = "runwait4.py --status runs.txt"
        self.status = ""

        def running() -> bool:
            self.status = self.typed(status, host="bob").out.decode()
            jobs = re.findall(r"(alice|bob) .*simulate", self.status)
            return set(jobs) == set(names) and " - " not in self.status

        wait_until(running, what=f"jobs run on {names}")

    def test_they_start_the_runners_and_stop_them(self) -> None:
        self.simulations(30)
        self.start_all()
        shown = block("12 jobs:", "docs/first-day.md").replace("./model", "simulate")
        self.assertEqual(blotted(self.status), blotted(shown))
        self.assertEqual(self.typed(self.STOP).code, 0)
        self.wait_left()
        self.assertRegex(self.states(), r"^e+\.+$")
        (self.dir / "hold").unlink()
        self.assertEqual(self.typed(self.START.replace("-d", "-d --resume")).code, 0)
        self.wait_states("d" * 12 + "!" + "d" * 17)
        self.assertOnlyStatesChanged()

    def test_they_go_on_without_a_host_that_has_crashed(self) -> None:
        self.simulations(12)
        self.start_all()
        self.power_off("bob")
        ended = self.typed(self.STOP.replace("kill", "kill -USR1"))
        self.assertIn(b"host bob", ended.out)
        (self.dir / "hold").unlink()
        wait_until(lambda: not self.exists("pid.alice"), what="the runner of alice has left")
        self.assertRegex(self.states(), "^[der.]+$")
        (self.dir / "pid.bob").unlink()
        ended = self.typed(self.START.replace("-d", "-d --resume"))
        self.assertIn(b"host bob", ended.out)
        self.wait_states("d" * 12)
        self.assertEqual(self.hosts_of(*range(1, 13)), {"alice"})


class FirstDay(HostsCase):
    """docs/first-day.md, step by step."""

    def test_each_step_does_what_it_says(self) -> None:
        """What a second terminal is for comes before the bar, which waits until all is over."""
        gate = "until [ -e go ]; do sleep 0.1; done"
        steps = [re.sub(r"\bsleep \d+", gate, piece.text.replace("/shared", str(self.dir)))
                 for piece in read_pieces("docs/first-day.md") if piece.kind == "sh"]
        version, locks, write, start, watch, change, stop, look, again, back = steps
        self.assertRegex(self.typed(version).out, rb"^runmaker4.py \S+\n$")
        said = self.typed(locks).out            # on a file system of one host nobody waits for the other
        self.assertEqual(said.count(b"No addition was lost"), 2, said)
        for step in write, start, change, stop, watch:
            if step is watch:
                self.open_gate()
            ended = self.typed(step)
            self.assertEqual(ended.code, 0, ended.out)
        self.wait_left()
        self.assertEqual(self.states(), "d" * 6 + "!" + "d" * 4 + "c" + "d")
        self.assertRegex(self.typed(look).out, rb"line 7: exit 1 on (.*\n)+  \| 7 does not converge\n$")
        self.assertEqual(self.typed(again).code, 0)
        self.assertEqual(self.states(), "d" * 11 + "c" + "d")
        self.assertRegex(self.typed(back).out, rb"line 7: exit 1 on (.*\n)+line 7: exit 0 on ")
        self.assertIn(b"</html>", self.read("night.html"))


class Slots(HostsCase):
    """Remote hosts as slots."""
    WORDS = block("printf '%s\\n' alice bob > workers")

    def test_a_host_without_power_gets_no_more_jobs(self) -> None:
        self.power_off("bob")
        self.jobs(*[f"until [ -e {self.dir}/go ]; do sleep 0.1; done; simulate --seed 1"] * 10)
        runner = self.type(self.WORDS)
        wait_until(lambda: self.states().count("!") == 3, what="bob has had its jobs")
        self.open_gate()
        code, out = runner.wait(DEADLINE), self.read("printed")
        self.assertEqual((code, sorted(self.states())), (1, ["!"] * 3 + ["d"] * 7), out)
        self.assertEqual(out.count(b": --seed 1 on alice\n"), 7, out)
        again = self.typed(
            self.WORDS.replace("alice bob", "alice").replace("runmaker4.py ", "runmaker4.py -r ")
        )
        self.assertEqual((again.code, self.states()), (0, "d" * 10), again.out)
        self.assertEqual(len([line for line in out.splitlines() if line.startswith(b"runmaker4.py: ")
                              and b"bob" in line]), 1, out)

    def test_both_work_and_a_terminal_ends_what_runs_there(self) -> None:
        """In the directory that is asked for."""
        for option, lives in ("", True), ("-tt ", False):
            for file in self.dir.glob("pid.*"):
                file.unlink()
            self.jobs(*["echo $$ > pid.$(hostname); exec sleep 600"] * 2)
            words = f"{option}\"$SLAVE_IP\" cd {self.dir} \"&&\""
            runner = self.type(self.WORDS.replace("\"$SLAVE_IP\"", words))
            for name in "alice", "bob":
                self.wait_file(f"pid.{name}")
            self.typed("runset4.py --cancel runs.txt 1-2")
            self.assertEqual((runner.wait(DEADLINE), self.states()), (0, "cc"))
            for name in "alice", "bob":
                with self.subTest(option=option, host=name):
                    alive = f"kill -0 $(cat pid.{name})"
                    if lives:
                        self.assertEqual(self.typed(f"{alive} && kill $(cat pid.{name})", name).code, 0)
                    else:
                        wait_until(lambda: self.typed(alive, name).code, what="it has ended")


class Tunnel(HostsCase):
    """Hosts that share no file system, through ssh."""

    def test_a_client_works_through_it(self) -> None:
        self.jobs("simulate --seed 1", "simulate --seed 2")
        server = self.type(block("runmaker4-server.py --host localhost"))
        wait_until(lambda: b"serving on" in self.read("printed"), what="the server serves")
        ended = self.typed(block("ssh -f -N -L"), host="bob", directory=self.hosts.home("bob"))
        self.assertEqual((ended.code, self.states()), (0, "dd"), ended.out)
        self.assertEqual(ended.out.count(b" on bob\n"), 2, ended.out)
        self.assertIsNone(server.poll())
        # not from afar
        self.assertNotEqual(self.typed("runmaker4-client.py --give-up 0 alice", host="bob").code, 0)


class Container(HostsCase):
    """A runner that is process 1 of a container."""

    def test_it_buries_what_jobs_leave_behind_and_ends_its_jobs_when_it_is_told_to(self) -> None:
        # kill -0 finds what is dead until it is buried
        self.jobs(r'sh -c "echo \$\$ > left; while [ -e /proc/$$ ]; do sleep 0.1; done" & simulate --seed 1',
                  "until [ -s left ] && ! kill -0 $(cat left); do sleep 0.1; done; ps ax",
                  "kill 1; sleep 600", "simulate --seed 2")
        for script in SCRIPTS:
            (self.dir / script).symlink_to(SCRIPTS_AT / script)
        ended = self.typed(block("docker run", "docs/services.md").replace("-j0", "-j1"))
        self.assertEqual((ended.code, self.states()), (128 + 15, "dde."), ended.out)
        self.assertIn(b"): --seed 1 on container\n", ended.out)
        self.assertNotIn(b"defunct", ended.out)


class Mpi(HostsCase):
    """MPI jobs, with the mpirun of Open MPI."""

    @classmethod
    def setUpClass(cls) -> None:
        if ssh.missing(mpirun="openmpi-bin"):
            raise unittest.SkipTest(ssh.missing(mpirun="openmpi-bin"))
        super().setUpClass()

    def ranks(self, ended: Ended) -> list[str]:
        """Where the ranks ran."""
        return sorted(line.split()[-1] for line in ended.out.decode().splitlines()
                      if line.startswith("stdout"))

    def test_ranks_take_the_slots_of_their_runner(self) -> None:
        self.write(block("#RUN slots=4") + "\n")
        ended = self.typed(f"{MPI_AS_ROOT}export OMPI_MCA_rmaps_base_oversubscribe=1; "
                           + block("runmaker4.py -j8 --runner").replace("/tmp", str(self.dir)))
        self.assertEqual((ended.code, self.states(), self.ranks(ended)), (0, "dd", ["alice"] * 8), ended.out)

    def test_ranks_on_several_hosts_take_a_slot_each(self) -> None:
        ended = self.typed(MPI_AS_ROOT + block("printf '%s\\n' alice alice"))
        self.assertEqual((ended.code, self.states(), self.ranks(ended)),
                         (0, "d", [*["alice"] * 2, *["bob"] * 2]), ended.out)
