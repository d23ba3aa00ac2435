"""Promise: on GlusterFS, CephFS and MooseFS as they come no job is lost, and none runs twice at once.

With RUNMAKER4_TEST_REAL=1, with real servers and the FUSE clients that come with them (rigs/fs.py).  A
and B run jobs of a file that all hosts see; C only looks and edits.  A job says on a local disk that it
starts and that it ends.
"""
import itertools
import random
import re
import signal
import time
import unittest

from tests.real.rigs import REAL
from tests.real.rigs.fs import Command, Host, Rig, missing
from tests.support import marks
from tests.support.processes import DEADLINE, wait_until
from tests.support.scripts import FULL

SLOW = 600              # patience with two CPUs that servers and clients share, in seconds
# What the file holds: listed, so that GlusterFS takes no old file for the one of this name, and not from a
# cache
READ = "ls -l >/dev/null; exec dd if=runs.txt bs=64k iflag=direct status=none"
# What `watch` and editors do: they look all the time, so that this host always has something in its caches
LOOK = """python3 -c '
import os, time
while True:
    os.stat("runs.txt")
    with open("runs.txt", "rb") as file:
        file.read()
    time.sleep(0.01)'"""
LIST = """python3 -c '
import os
while True:
    os.listdir()'"""
# The inode of the file as it is listed, and as its name is looked up anew, because a call said ESTALE
INODES = """python3 -c '
import contextlib, os
os.listdir()
print(os.stat("runs.txt").st_ino)
with contextlib.suppress(OSError):
    os.listxattr("runs.txt")
print(os.stat("runs.txt").st_ino)'"""
SAVE = "cp -p runs.txt new && mv new runs.txt"
# Before an editor reads.  GlusterFS (with performance.write-behind, the default) and ceph-fuse leave in a
# host's cache what it has written or read, also when fstat(2) tells that the file has changed since: then an
# editor saves old states
LOOK_ANEW = "ls -l >/dev/null; dd of=runs.txt oflag=nocache conv=notrunc,fdatasync count=0 status=none"
# As editors do that write into the file.  All lines stay where they are: else a state that a runner has
# checked and is about to write may meet another line.  There are some milliseconds between the two: on
# GlusterFS lines were damaged by 2 to 5 of 120 such saves beside 3,000 writes of states, on a local file
# system by none
REWRITE = r"""exec python3 -c '
import sys
with open("runs.txt", "r+b") as file:
    read = file.read()
    file.seek(0)
    file.truncate()
    file.write(b"# edit " + sys.argv[1].encode() + b"\n" + read.partition(b"\n")[2])' """


def setUpModule() -> None:
    if not REAL:
        raise unittest.SkipTest("RUNMAKER4_TEST_REAL is not set: real file systems, 12 minutes")


class FsCase(unittest.TestCase):
    """A test with a directory of its own on the file system, where the commands of all hosts run."""
    kind = ""
    options: dict[str, int] = {}
    rig: Rig
    alice: Host
    bob: Host
    carol: Host

    @classmethod
    def setUpClass(cls) -> None:
        if not cls.kind:
            raise unittest.SkipTest("what the file systems have in common")
        if missing(cls.kind):
            raise unittest.SkipTest(missing(cls.kind))
        cls.rig = Rig(cls.kind, "ABC", **cls.options).start()
        cls.addClassCleanup(cls.rig.stop)
        cls.alice, cls.bob, cls.carol = cls.rig.hosts.values()

    def setUp(self) -> None:
        self.local = self.rig.dir / self._testMethodName
        self.local.mkdir()
        self.marks = self.local / "marks"
        self.marks.touch()
        directory = self.rig.mount / self._testMethodName
        self.alice.run(f"mkdir {directory}", directory="/")
        for host in self.rig.hosts.values():
            host.directory = directory
            host.run(f"until ls {directory}; do sleep 0.1; done", directory="/")
        self.addCleanup(self.clean)
        self.begin = time.monotonic()

    def clean(self) -> None:
        """Put all back into order for the next test, also after a failure."""
        for host in self.rig.hosts.values():
            host.join()
            host.end_commands()
            host.run(
                "pids=$(grep -la -e RUNMAKER4_JOB= -e RUNMAKER4_TEST= /proc/[0-9]*/environ | cut -d/ -f3); "
                "kill -9 $pids; true",
                directory="/",
            )
            if host.run(f"ls {self.rig.mount}", check=False, directory="/").code:
                host.umount()
                host.mount()

    # -- steps of the tests ----------------------------------------------------------------------------------

    def job(self, number: int, body: str = "true") -> str:
        """A job line, of a job that marks its start and its end."""
        return (f". echo start {number} $$ $PPID $HOST >>{self.marks}; {body}; "
                f"echo end {number} $$ $HOST >>{self.marks}\n")

    @property
    def gate(self) -> str:
        """What a job does that runs until open_gate() for its host."""
        return f"until [ -e {self.local}/go.$HOST ]; do sleep 0.1; done"

    def open_gate(self, *hosts: Host) -> None:
        for host in hosts or self.rig.hosts.values():
            (self.local / f"go.{host.name}").touch()

    def start(self, host: Host, command: str) -> Command:
        """Start a command on a host; the shell becomes it, so that a signal meets nothing else."""
        return host.popen(f"export RUNMAKER4_TEST=1; exec {command}")

    def finish(self, command: Command, code: int = 0, timeout: float = SLOW) -> str:
        """Wait until a command has ended, with this exit status; what it said on stderr."""
        command.wait(timeout)
        self.assertEqual(command.code, code, str(command))
        self.assertNotIn(b"Traceback", command.err)
        return command.err.decode()

    def finish_edited(self, runner: Command, jobs: int) -> None:
        """Wait until a runner has ended, beside which an editor has saved: each job is done.

        Where an `r` was saved over a result that had just come, the line is `e`, which is said.
        """
        runner.wait(SLOW)
        states = self.states()
        self.assertEqual(states.replace("e", "d"), "d" * jobs, str(runner))
        self.assertEqual(runner.err.count(b"is r without a lock"), states.count("e"), str(runner))
        self.assertEqual(runner.code, int("e" in states), str(runner))
        self.assertNotIn(b"Traceback", runner.err)

    def kill_runner(self, runner: Command) -> None:
        marks.append(self.marks, f"killed {runner.pid} {runner.host.name}\n")
        runner.signal(signal.SIGKILL)
        runner.wait()

    def lines(self) -> list[bytes]:
        return self.carol.run(READ, check=False).out.splitlines()

    def states(self) -> str:
        return b"".join(line[:1] for line in self.lines() if line[:1] != b"#").decode()

    def wait_states(self, states: str, timeout: float = SLOW) -> None:
        wait_until(lambda: self.states() == states, timeout, f"{states}: {self.lines()}")

    def wait_marks(self, pattern: str, count: int = 1, timeout: float = SLOW) -> None:
        wait_until(lambda: len(re.findall(f"(?m){pattern}", self.marks.read_text())) >= count, timeout,
                   f"{count} x {pattern}: {self.marks.read_text()[-3000:]}")

    def assertRanOnce(self, jobs: int) -> None:
        """Each of the jobs 1 to `jobs` came to its end, never two runs at once, never again without need."""
        found = marks.problems_of_hosts(self.marks.read_bytes(), jobs, [*self.rig.hosts])
        self.assertEqual(found[:5], [], f"{len(found)} problems")


class Hosts(FsCase):
    """What hosts do with one file."""

    def test_each_of_many_jobs_runs_once_and_locks_hold_meanwhile(self) -> None:
        jobs = 10_000 if FULL else 2000
        self.alice.write("runs.txt", "".join(self.job(number) for number in range(1, jobs + 1)))
        checks = [self.start(host, "runwait4.py --check-locks .") for host in (self.alice, self.bob)]
        runners = [self.start(host, "runmaker4.py -q -j2 runs.txt") for host in (self.alice, self.bob)]
        for runner in runners:
            self.finish(runner, timeout=SLOW * jobs / 2000)
        with self.subTest("each job runs once"):
            self.assertRanOnce(jobs)
            self.assertEqual(self.states(), "d" * jobs)
        for check in checks:
            with self.subTest(f"{check.host.name} says yes"):
                self.finish(check)
                for name in "A", "B":
                    self.assertRegex(check.out.decode(), f"additions by {name} ")
                self.assertNotIn(b"NO  ", check.out)

    def test_each_job_runs_once_while_programs_on_all_hosts_look(self) -> None:
        """A host believes what it has just looked up: GlusterFS gives old contents even to O_DIRECT."""
        jobs = 1000 if FULL else 300
        self.alice.write("runs.txt", "".join(self.job(number) for number in range(1, jobs + 1)))
        looks = [self.start(host, LOOK) for host in self.rig.hosts.values()]
        runners = [self.start(host, "runmaker4.py -q -j2 runs.txt") for host in (self.alice, self.bob)]
        for runner in runners:
            self.finish(runner)
        for look in looks:
            self.assertIsNone(look.code, str(look))
        self.assertRanOnce(jobs)
        self.wait_states("d" * jobs)

    def test_no_more_jobs_than_the_limit_run_on_all_hosts_and_others_go_on(self) -> None:
        numbers = range(1, 7)
        limited = [self.job(number, f"until [ -e {self.local}/go.{number} ]; do sleep 0.1; done")
                   for number in numbers]
        self.alice.write("runs.txt", "".join(["#RUN limit=lic:2\n", *limited, "#RUN\n", self.job(7)]))
        runners = [self.start(host, "runmaker4.py -q -j3 runs.txt") for host in self.rig.hosts.values()]
        self.wait_marks("^end 7 ")
        for ended in range(len(numbers)):
            self.wait_marks("^start [1-6] ", min(ended + 2, len(numbers)))
            (self.local / f"go.{marks.running(self.marks.read_bytes())[0]}").touch()
            self.wait_marks("^end [1-6] ", ended + 1)
        for runner in runners:
            self.finish(runner)
        self.assertRanOnce(7)
        self.wait_states("d" * 7)
        self.assertEqual(marks.most_at_once(self.marks.read_bytes(), numbers), 2)

    def is_replaced_file_listed(self) -> bool:
        """Return True if a brick of GlusterFS lists the file that was replaced, until the next rename.

        It does if it was listing at that moment: posix_readdirp_fill() takes the inode of the name that
        the brick remembers, and gf_link_inodes_from_dirent() makes it remember that again.
        """
        listed, named = self.carol.run(INODES).out.split()
        return listed != named

    def edit(self, command: str) -> None:
        """B edits the file again and again, while A runs jobs, none of which begins and ends in one edit."""
        jobs, begun = 48, self.local / "begun"
        begun.touch()
        (self.local / "over.0").touch()
        body = f"n=$(wc -l <{begun}); sleep 1.5; until [ -e {self.local}/over.$n ]; do sleep 0.1; done"
        self.alice.write("runs.txt", "".join(["# edit 0\n", *(self.job(n, body) for n in range(1, jobs)),
                                              self.job(jobs, self.gate)]))
        runner = self.start(self.alice, "runmaker4.py -q -j8 runs.txt")
        self.wait_marks("^start", 8)
        for number in range(1, 5):
            marks.append(begun, "\n")
            self.bob.run(f"{LOOK_ANEW}; {command.format(number)}", SLOW)
            (self.local / f"over.{number}").touch()
            time.sleep(1)
        self.assertIsNone(runner.code, str(runner))
        # without LOOK_ANEW, which lists; no runner has been able to write since B saved
        while self.is_replaced_file_listed():
            self.bob.run(SAVE)
        self.open_gate()
        self.finish_edited(runner, jobs)
        self.assertEqual(self.lines()[0], b"# edit 4")
        self.assertRanOnce(jobs)

    def test_another_host_edits_by_rename(self) -> None:
        self.edit("sed -i '1s/.*/# edit {}/' runs.txt")

    def test_another_host_edits_in_place(self) -> None:
        self.edit(REWRITE + "{}")

    def test_an_editor_that_saves_old_states_loses_no_job_and_starts_no_second_copy(self) -> None:
        """As any editor on a host that has cached what it saved before (see LOOK_ANEW)."""
        jobs = 30
        text = "".join([*(self.job(n, "sleep 1.5") for n in range(1, jobs)), self.job(jobs, self.gate)])
        self.alice.write("runs.txt", text)
        self.bob.write("old", text)
        runner = self.start(self.alice, "runmaker4.py -q -j6 runs.txt")
        self.wait_marks("^end", 6)
        for how in "cat old >runs.txt", "cp old new; mv new runs.txt", "cat old >runs.txt":
            self.bob.run(how, SLOW)
            time.sleep(2)
        self.open_gate()
        self.finish(runner)
        self.assertEqual(self.states(), "d" * jobs)
        found = marks.problems_of_hosts(self.marks.read_bytes(), jobs, [*self.rig.hosts])
        self.assertEqual([problem for problem in found if "and nobody killed" not in problem], [])

    def test_a_third_host_adds_edits_cancels_and_looks(self) -> None:
        gated = "".join(self.job(number, self.gate) for number in range(1, 5))
        # no runner passes a directive while it leaves lines to others
        self.alice.write("runs.txt", f"{gated}#RUN timeout=1h\n{self.job(5)}")
        runners = [self.start(host, "runmaker4.py -q -j2 runs.txt") for host in (self.alice, self.bob)]
        self.wait_marks("^start", 4)
        progress, waiter = (self.start(self.carol, f"runwait4.py {option} runs.txt")
                            for option in ("--progress", "-e"))
        with self.subTest("status"):
            said = self.start(self.carol, "runwait4.py --status runs.txt")
            self.finish(said)
            self.assertIn(b"5 jobs: 1 new, 4 running, 0 done", said.out)
        with self.subTest("--cancel"):
            self.finish(self.start(self.carol, "runset4.py --cancel runs.txt 2"))
            self.wait_marks("^end 5")
        with self.subTest("--add"):
            added = self.carol.popen("runset4.py runs.txt --add-list -", self.job(6)[2:])
            self.finish(added)
            self.wait_marks("^end 6")
        with self.subTest("--edit"):
            (self.local / "editor").write_text(
                f"cat >>\"$1\" <<'END'\n{self.job(7)}END\nsed -i '1i# edited' \"$1\"\n"
            )
            self.finish(self.start(self.carol,
                                   f"env EDITOR='sh {self.local}/editor' runset4.py --edit runs.txt"))
            self.wait_marks("^end 7")
        self.wait_states("rcrrddd")
        self.open_gate()
        for runner in runners:
            self.finish(runner)
        self.finish(waiter)
        self.finish(progress)
        self.assertRegex(progress.out, rb"6 of +6 jobs processed, 0 errors")
        self.assertEqual(self.states(), "dcddddd")
        self.assertEqual(self.lines()[0], b"# edited")
        started = sorted(re.findall("(?m)^start ([0-9]+)", self.marks.read_text()))
        self.assertEqual(started, [str(number) for number in range(1, 8)])

    def test_a_storm(self) -> None:
        """Runners of two hosts are killed, stopped and let go on at random, and others started."""
        jobs, chance = (3000, random.Random(7)) if FULL else (300, random.Random(7))
        self.alice.write("runs.txt", "".join(self.job(number, "sleep 0.3") for number in range(1, jobs + 1)))
        hosts = [self.alice, self.bob]
        stopped: list[Command] = []
        runners = [self.start(host, "runmaker4.py -q -j3 --resume runs.txt") for host in hosts * 2]
        while self.states().count("d") < jobs * 0.8:
            self.assertLess(time.monotonic() - self.begin, SLOW * jobs / 300, self.states())
            living = [runner for runner in runners if runner.code is None]
            if not living:
                break           # they have done all since we looked
            victim, fate = chance.choice(living), chance.random()
            if fate < 0.4:
                self.kill_runner(victim)
                stopped = [runner for runner in stopped if runner is not victim]
                runners.append(self.start(victim.host, "runmaker4.py -q -j3 --resume runs.txt"))
            elif fate < 0.7:
                victim.signal(signal.SIGSTOP)
                stopped.append(victim)
            for runner in chance.sample(stopped, len(stopped) // 2):
                runner.signal(signal.SIGCONT)
                stopped.remove(runner)
            time.sleep(chance.uniform(0.1, 1))
        for runner in stopped:
            runner.signal(signal.SIGCONT)
        for runner in runners:
            runner.wait(SLOW)
            self.assertIn(runner.code, (0, 1, -signal.SIGKILL), str(runner))
        while self.states() != "d" * jobs:
            runners.append(self.start(self.bob, "runmaker4.py -q -j3 --resume runs.txt"))
            runners[-1].wait(SLOW)
            self.assertLess(time.monotonic() - self.begin, SLOW * jobs / 300, self.states())
        for runner in runners:
            if runner.code == 1:
                self.assertIn(b" running", runner.err, str(runner))
        self.assertRanOnce(jobs)

    def test_lines_that_all_hosts_append_at_once_are_all_there(self) -> None:
        """O_APPEND alone, under this lock, loses every other line on ceph-fuse: it writes at an old end."""
        self.alice.write("runs.txt", "x held\n")
        adding = "for n in $(seq 15); do runset4.py runs.txt --add \"echo $HOST $n\" || exit; done"
        for command in [self.start(host, f"sh -c '{adding}'") for host in self.rig.hosts.values()]:
            self.finish(command)
        wanted = [b"x held", *(f". echo {host} {n}".encode() for host in "ABC" for n in range(1, 16))]
        self.assertEqual(sorted(self.lines()), sorted(wanted))

    def test_what_failed_is_reported_on_another_host(self) -> None:
        jobs = 100
        self.alice.write("runs.txt", "".join(
            self.job(number, f"{self.gate if number <= 4 else ':'}; "
                             f"echo out {number}; echo err {number} >&2; [ {number % 10} != 7 ] || exit 3")
            for number in range(1, jobs + 1)))
        runners = [self.start(host, "runmaker4.py -q -j2 --outdir out --joblog log runs.txt")
                   for host in (self.alice, self.bob)]
        self.wait_marks("^start [1-4] ", 4)
        self.open_gate()
        for runner in runners:
            self.finish(runner, 1)
        failed = self.start(self.carol, "runwait4.py --failed --outdir out runs.txt")
        self.finish(failed)
        for number in range(7, jobs, 10):
            self.assertIn(f"err {number}", failed.out.decode())
        self.finish(self.start(self.carol, "runwait4.py --report page.html --outdir out runs.txt"))
        self.assertIn(b"90 done", self.carol.read("page.html"))
        printed = self.carol.run(f"cd out; for n in $(seq {jobs}); do cat $n.out $n.err; done").out.decode()
        self.assertEqual(printed, "".join(f"out {n}\nerr {n}\n" for n in range(1, jobs + 1)))
        log = self.carol.read("log").splitlines()
        self.assertEqual(sorted(int(line.split(b"\t")[0]) for line in log[1:]), list(range(1, jobs + 1)))
        self.assertEqual({line.split(b"\t")[1] for line in log[1:]}, {b"A", b"B"})


class OnGluster(Hosts):
    kind = "gluster"

    def test_the_network_is_cut_for_a_minute(self) -> None:
        """After 42 s another host takes a line, and no call of the first one fails; yet it stops its copy."""
        self.alice.write("runs.txt", self.job(1, self.gate) + self.job(2, self.gate))
        runner = self.start(self.alice, "runmaker4.py -j2 runs.txt")
        self.wait_marks("^start", 2)
        self.alice.cut()
        begin = time.monotonic()
        other = self.start(self.bob, "runmaker4.py --resume --follow runs.txt")
        self.wait_marks("^start . .*B$")
        time.sleep(max(0.0, begin + 60 - time.monotonic()))
        self.alice.join()
        # mostly line 1; the server can drop its lock just after B has looked there
        taken = re.findall("(?m)^start (.) .*B$", self.marks.read_text())
        left, states = (b"2", "dr") if taken == ["1"] else (b"1", "rd")
        stopped = b"another runner took over this job; stopping our copy"
        wait_until(lambda: stopped in runner.err, SLOW, str(runner))
        wait_until(lambda: b"line %b: locked again" % left in runner.err, SLOW, str(runner))
        self.open_gate(self.bob)
        self.wait_states(states)        # else the first cannot know how that line will end, and says 1
        self.open_gate(self.alice)
        self.finish(runner)
        self.wait_states("dd")
        other.signal(signal.SIGUSR1)
        self.finish(other)

    def test_jobs_that_resume_took_over_are_stopped_where_another_host_has_taken_them_since(self) -> None:
        self.alice.write("runs.txt", "".join("r" + self.job(number, self.gate)[1:] for number in (1, 2, 3)))
        runner = self.start(self.alice, "runmaker4.py -j3 --resume runs.txt")
        self.wait_marks("^start .*A$", 3)
        self.alice.cut()
        # lost for the second time in a row, each of them takes all slots of its runner
        others = [self.start(self.bob, "runmaker4.py -j1 --resume --follow runs.txt") for _ in range(3)]
        self.wait_marks("^start .*B$", 3)
        self.alice.join()
        stopped = rb"line (\d): another runner took over this job; stopping our copy"
        wait_until(lambda: len({*re.findall(stopped, runner.err)}) == 3, SLOW, str(runner))
        self.open_gate(self.bob)
        self.wait_states("ddd")
        runner.wait(SLOW)
        for other in others:
            other.signal(signal.SIGUSR1)
            self.finish(other)


class OnReplicatedGluster(Hosts):
    kind = "gluster"
    options = {"bricks": 3}

    def test_a_runner_waits_while_the_replaced_file_is_listed_and_another_save_ends_that(self) -> None:
        """It must wait: hosts read old states, even with O_DIRECT, from their quick-read.  For the brick
        answers look-ups of the name with the times of the replaced file (posix_get_mdata_xattr()).
        """
        jobs = 4
        self.alice.write("runs.txt", "".join(self.job(number, self.gate) for number in range(1, jobs + 1)))
        runner = self.start(self.alice, f"runmaker4.py -q -j2 --errors {self.local}/said runs.txt")
        self.wait_marks("^start", 2)
        self.wait_states("rr..")
        for _ in range(100):
            lists = [self.start(self.carol, LIST) for _ in range(2)]
            self.bob.run(f"{LOOK_ANEW}; {SAVE}", SLOW)
            for command in lists:
                command.signal(signal.SIGKILL)
                command.wait()
            if self.is_replaced_file_listed():
                break
        else:
            self.skipTest("no brick lists the replaced file after a hundred saves")
        self.open_gate()
        wait_until(lambda: b"trying again" in (self.local / "said").read_bytes(), SLOW, "the runner waits")
        self.assertNotIn("start 3", self.marks.read_text())
        self.bob.run(SAVE)
        self.finish(runner)
        self.wait_states("d" * jobs)
        self.assertRanOnce(jobs)


class OnCeph(Hosts):
    kind = "ceph"

    def test_messages_of_two_hosts_in_one_file_overwrite_none_of_each_other(self) -> None:
        runners, turns = [], range(1, 7)
        for host in self.alice, self.bob:
            word = f"{host.name}{{0}}"
            job = f". until [ -e {self.local}/{word} ]; do sleep 0.1; done; echo {word} >&2\n"
            host.write(f"{host.name}.txt", "".join(map(job.format, turns)))
            runners.append(self.start(host, f"runmaker4.py --plain --errors errors {host.name}.txt"))
        said = ""
        for turn, host in itertools.product(turns, (self.alice, self.bob)):
            said += f"{host.name}{turn}\n"
            (self.local / f"{host.name}{turn}").touch()
            wait_until(lambda: self.carol.run("cat errors", check=False).out.decode() == said, SLOW, said)
        for runner in runners:
            self.finish(runner)


class OnMoose(Hosts):
    kind = "moose"

    def test_a_mount_that_keeps_its_locks_to_itself_is_refused(self) -> None:
        """MooseFS is mounted so by an option; without it runners accept it (all other tests here)."""
        self.alice.write("runs.txt", self.job(1))
        directory = self.bob.directory
        self.bob.umount()
        self.addCleanup(self.bob.mount)
        self.addCleanup(self.bob.umount)
        self.rig.kind.mount(self.bob, "-o mfsnoposixlocks")
        self.bob.directory = directory
        for command in "runmaker4.py", "runset4.py --add=true", "runmaker4-server.py --port 0":
            said = self.finish(self.start(self.bob, f"{command} runs.txt"), 2)
            self.assertIn("is on fuse.mfs, mounted so that locks do not reach other hosts", said)
        self.finish(self.start(self.alice, "runmaker4.py -q runs.txt"))
        self.assertRanOnce(1)

    def test_the_client_of_the_file_system_dies(self) -> None:
        """It is FUSE that answers no call any more, whatever the file system is.

        A runner that is told to end does; another gives up in a minute.
        """
        runners = []
        for number in 1, 2:
            self.alice.write(f"runs{number}.txt", self.job(number, self.gate))
            runners.append(self.start(self.alice, f"runmaker4.py -q runs{number}.txt"))
            self.wait_marks(f"^start {number}")
        stopped, left = runners
        self.alice.kill_client()
        time.sleep(7)           # they have looked at their files
        stopped.signal()
        stopped.wait()
        self.assertEqual(stopped.code, 143, str(stopped))
        self.assertEqual(self.alice.run("pgrep -fc '[e]cho start 1'", check=False, directory="/").out, b"0\n")
        self.open_gate()
        left.wait(DEADLINE)
        self.assertEqual(left.code, 1, str(left))
        self.assertIn(b"transport endpoint is not connected", left.err)
        self.assertNotIn(b"Traceback", stopped.err + left.err)

    def test_an_editor_that_is_held_up_while_the_file_is_empty_loses_no_job(self) -> None:
        """MooseFS does that for up to 30 s, now and then: here each time."""
        jobs, emptied = 12, self.local / "emptied"
        body = f"until [ -e {emptied} ]; do sleep 0.1; done"
        self.alice.write("runs.txt", "".join(self.job(number, body) for number in range(1, jobs + 1)))
        runner = self.start(self.alice, "runmaker4.py -q -j6 runs.txt")
        self.wait_marks("^start", 6)
        wait_until(lambda: self.states().count("r") == 6, SLOW, "six lines are r")
        self.bob.run(f"{LOOK_ANEW}; cp runs.txt old; : >runs.txt; sleep 2; touch {emptied}; sleep 28; "
                     "cat old >runs.txt", SLOW)
        self.finish_edited(runner, jobs)
        self.assertRanOnce(jobs)


del Hosts
