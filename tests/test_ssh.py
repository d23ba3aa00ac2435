"""Promise: a cluster scheduler's job script, which copies, runs and copies back with rsync and ssh, runs
unchanged.

Two sshd of the test's own serve as workers, on loopback ports, with keys that are thrown away.  Nothing of
the user's is read: ssh, also that of rsync, is a script on PATH that has a configuration of its own.
"""
import contextlib
import getpass
import json
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import time
import unittest
from typing import Any, Optional

from tests.support import FULL, MARK, RUNMAKER, RUNSET, RUNWAIT, Ended, RunCase, alive, wait_until
from tests.test_slots import NASTY

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
WORKERS = ("alice", "bob")
SSHD_CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {keys}/hostkey
AuthorizedKeysFile {keys}/key.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
MaxStartups 100
AcceptEnv JOB_ID SLAVE_IP
SetEnv WORKER={worker} HOME={keys} {mark}
"""
SSH_CONFIG = """
Host *
    HostName 127.0.0.1
    User {user}
    IdentityFile {keys}/key
    IdentitiesOnly yes
    IdentityAgent none
    HostKeyAlias worker
    UserKnownHostsFile {keys}/known_hosts
    GlobalKnownHostsFile /dev/null
    BatchMode yes
    ConnectTimeout 10
    LogLevel ERROR
    SendEnv JOB_ID SLAVE_IP
"""
# Data there, run, result back, clean up.  ssh comes first: where nobody answers it ends with 255, rsync with
# 255 or 12.  While there is a hold.NAME the job of NAME runs; the workers can see that
JOB_SCRIPT = """#!/bin/bash
set -e
there=$REMOTE/$SLAVE_IP
ssh -t -t "$SLAVE_IP" "mkdir -p $there"
rsync -aP "$1.txt" "$SLAVE_IP:$there/"
ssh -t -t "$SLAVE_IP" "echo \\$\\$ >$REMOTE/pid.$1; while [ -e $PWD/hold.$1 ]; do sleep 0.05; done
    wc <$there/$1.txt >$there/$JOB_ID.out && echo \\$WORKER >>$there/$JOB_ID.out"
rsync -aP "$SLAVE_IP:$there/$JOB_ID.out" .
mv "$JOB_ID.out" "$1.out"
ssh -t -t "$SLAVE_IP" "rm -f $there/$1.txt $there/$JOB_ID.out"
"""


def free_port() -> int:
    """A port on the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a minute")
class SshCase(RunCase):
    """A test with two workers, alice and bob, that ssh and rsync reach by name; and carol, who is dead."""
    NEEDED = {"sshd": SSHD, "ssh": shutil.which("ssh"), "ssh-keygen": shutil.which("ssh-keygen"),
              "rsync": shutil.which("rsync"), "bash": shutil.which("bash")}

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        missing = [name for name, path in cls.NEEDED.items() if not path]
        if missing:
            raise unittest.SkipTest(
                f"{', '.join(missing)} missing (of Debian's openssh-server, openssh-client, rsync)"
            )

    def setUp(self) -> None:
        super().setUp()
        for name in "keys", "bin", "remote", *(f"remote/{worker}" for worker in WORKERS):
            (self.dir / name).mkdir()
        if os.geteuid() == 0:
            # sshd locks its unprivileged part in there
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        for key in "key", "hostkey":
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.dir / "keys" / key], check=True
            )
        self.sshd: dict[str, subprocess.Popen[bytes]] = {}
        ports = {worker: free_port() for worker in (*WORKERS, "carol")}
        for worker in WORKERS:
            self.start_sshd(worker, ports[worker])
        self.write_client_files(ports)
        self.script("job_script.sh", JOB_SCRIPT)
        for worker in WORKERS:
            self.wait_sshd(worker, ports[worker])

    def start_sshd(self, worker: str, port: int) -> None:
        text = SSHD_CONFIG.format(
            port=port, keys=self.dir / "keys", worker=worker, mark=f"{MARK}={self.mark}"
        )
        config = self.write(text, f"{worker}.sshd_config")
        with open(self.dir / f"{worker}.log", "wb") as log:
            self.sshd[worker] = self.start(str(SSHD), "-D", "-e", "-f", config, stdout=log, stderr=log)

    def write_client_files(self, ports: dict[str, int]) -> None:
        """The configuration of ssh, and an ssh on PATH that has it."""
        keys, real = self.dir / "keys", shutil.which("ssh")
        user = pwd.getpwuid(os.geteuid()).pw_name
        hosts = "".join(f"Host {worker}\n    Port {port}\n" for worker, port in ports.items())
        config = self.write(hosts + SSH_CONFIG.format(user=user, keys=keys), "ssh_config")
        self.write(b"worker " + (keys / "hostkey.pub").read_bytes(), "keys/known_hosts")
        self.script("bin/ssh", f'#!/bin/sh\nexec {real} -F {config} "$@"\n')

    def script(self, name: str, text: str) -> None:
        self.write(text, name).chmod(0o755)

    def wait_sshd(self, worker: str, port: int) -> None:
        """Wait until one can log in; skip the test where sshd runs and does not let this user in."""
        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(answers, 10, f"{worker} answers")
        ended = self.run_script("ssh", worker, "true")
        if ended.code != 0:
            said = ended.err + self.read(f"{worker}.log")[-300:]
            self.skipTest(f"sshd does not let {getpass.getuser()} in: {said.decode(errors='replace')}")

    def environ(self, extra: Optional[dict[str, str]] = None) -> dict[str, str]:
        mine = {"PATH": f"{self.dir}/bin:{self.dir}:{os.environ['PATH']}", "REMOTE": str(self.dir / "remote")}
        return super().environ({**mine, **(extra or {})})

    # -- jobs -----------------------------------------------------------------------------------------------

    def prepare(self, count: int, held: int = 0) -> list[str]:
        """The data of so many jobs, of which the first are to be held up; the commands."""
        for number in range(1, count + 1):
            self.write("some words\n" * number, f"data_{number}.txt")
            if number <= held:
                self.write("", f"hold.data_{number}")
        return [f"job_script.sh data_{number}" for number in range(1, count + 1)]

    def release(self, number: int) -> None:
        (self.dir / f"hold.data_{number}").unlink()

    def remote_pid(self, number: int) -> int:
        """The process that a job has on its worker, once it is there."""
        return int(self.wait_file(f"remote/pid.data_{number}"))

    def worker_of(self, number: int) -> str:
        """Who did a job; the result is right."""
        *counts, worker = self.read(f"data_{number}.out").decode().split()
        self.assertEqual(counts, [str(number), str(2 * number), str(11 * number)])
        return worker

    def assertTidy(self, but: str = "") -> None:
        """No data of ours is left with the workers."""
        left = [path.name for worker in WORKERS for path in (self.dir / "remote" / worker).iterdir()]
        self.assertEqual([name for name in left if name != but], [])


class JobScript(SshCase):
    """The script in a runner that is started for a list of jobs."""

    def test_each_job_runs_on_a_worker_and_brings_its_result_back(self) -> None:
        count = 8
        self.jobs(*self.prepare(count))
        ended = self.run_jobs("-q", "--slots", "alice,bob", "--outdir", "logs")
        self.assertEnded(ended, 0, "d" * count)
        self.assertEqual({self.worker_of(number) for number in range(1, count + 1)}, set(WORKERS))
        self.assertIn(b"data_1.txt", self.read("logs/1.out"))           # what rsync says
        self.assertTidy()

    def test_a_dead_worker_is_taken_out_of_service(self) -> None:
        self.jobs(*self.prepare(6))
        ended = self.run_jobs("-q", "--slots", "carol,alice", "--slot-errors", "2")
        self.assertEqual((ended.code, sorted(self.states())), (1, ["!", "!", "d", "d", "d", "d"]), ended.err)
        self.assertEnded(self.run_jobs("-q", "-r", "--slots", "alice"), 0, "dddddd")
        self.assertEqual({self.worker_of(number) for number in range(1, 7)}, {"alice"})
        self.assertEqual(
            len([line for line in ended.err.splitlines() if b"slot carol" in line]), 1, ended.err
        )

    def test_the_job_of_a_worker_that_dies_is_run_again_on_another(self) -> None:
        self.jobs(*self.prepare(3, held=2))
        runner = self.start(RUNMAKER, "-q", "--slots", "alice,bob", "--slot-errors", "1", "runs.txt")
        remote = {self.where(self.remote_pid(number)): number for number in (1, 2)}
        lost, other = remote["bob"], remote["alice"]
        (self.dir / f"remote/pid.data_{lost}").unlink()
        self.kill_worker("bob")
        self.release(other)
        ended = self.finish(runner)
        self.assertEnded(ended, 1, "".join("!" if number == lost else "d" for number in (1, 2, 3)))
        self.assertIn(b"bob", ended.err)
        again = self.start(RUNMAKER, "-q", "-r", "--slots", "alice", "runs.txt")
        self.assertEqual(self.where(self.remote_pid(lost)), "alice")
        self.release(lost)
        self.assertEnded(self.finish(again), 0, "ddd")
        self.assertEqual({self.worker_of(number) for number in (1, 2, 3)}, {"alice"})

    @staticmethod
    def where(pid: int) -> str:
        """The worker on which a process runs."""
        environ = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return next(word[7:].decode() for word in environ if word.startswith(b"WORKER="))

    def kill_worker(self, worker: str) -> None:
        """As if its power was cut: its sshd and all that came of it is gone."""
        listener = self.sshd[worker].pid
        parents = {}
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        doomed = [listener]
        for pid in doomed:                              # grows as it goes
            doomed += [child for child, parent in parents.items() if parent == pid]
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def test_jobs_of_all_kinds_arrive_through_ssh_as_they_are(self) -> None:
        def results(*options: str) -> list[object]:
            self.write(b"".join(b". %s\n" % command for command in NASTY))
            shutil.rmtree(self.dir / "out", ignore_errors=True)
            ended = self.run_jobs("-q", "--slots", "alice", "--outdir", "out", *options, env=home)
            self.assertEqual(ended.code, 1, ended.err)
            return [
                self.states(),
                *(
                    (self.dir / f"out/{line + 1}.out").exists() and self.read(f"out/{line + 1}.out")
                    for line in range(len(NASTY))
                ),
            ]

        home = {"HOME": str(self.dir / "keys")}
        (self.dir / "out").mkdir()                                      # echo * shows the same each time
        here = results()
        self.assertEqual(results("--runner", f"ssh \"$SLAVE_IP\" cd {self.dir} '&&'"), here)


class Scheduler(SshCase):
    """The scheduler in the background: jobs and workers come and go, and so does the scheduler itself."""

    def setUp(self) -> None:
        super().setUp()
        self.write("alice\nbob\n", "workers")

    def start_scheduler(self, name: str, *options: object) -> int:
        """Start one; its pid."""
        ended = self.run_script(RUNMAKER, "-d", "--follow", "--slots", "@workers", "--slot-errors", "3",
                                "--outdir", "logs", "--pidfile", f"{name}.pid", "--errors", f"{name}.errors",
                                *options, "runs.txt")
        self.assertInBackground(ended, f"to {name}.errors")
        return int(self.read(f"{name}.pid"))

    def add(self, *commands: str) -> None:
        self.assertEqual(self.run_script(RUNSET, "runs.txt", "--add", *commands).code, 0)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.run_script(RUNWAIT, "--status", "--json", "runs.txt").out)
        return status

    def stop(self, pid: int, number: signal.Signals = signal.SIGHUP) -> None:
        os.kill(pid, number)
        wait_until(lambda: not alive(pid), 20, "the scheduler has ended")

    def change(self, *words: str) -> Ended:
        return self.run_script(RUNSET, *words)

    def test_jobs_are_added_removed_and_shown_while_it_runs(self) -> None:
        scheduler = self.start_scheduler("first")
        commands = self.prepare(4, held=2)
        self.add(*commands[:2])
        self.remote_pid(1), self.remote_pid(2)
        self.add(*commands[2:])
        self.assertEqual(self.change("--set", "x", "--match", "job_script.sh data_3", "runs.txt").code, 0)
        self.assertEqual(self.change("--list", "runs.txt").out.decode().splitlines(),
                         ["1 r job_script.sh data_1", "2 r job_script.sh data_2",
                          "3 x (held) job_script.sh data_3", "4 . job_script.sh data_4"])
        status = self.status()
        self.assertEqual((status["running"], status["new"], status["held"]), (2, 1, 1))
        self.assertEqual([job["command"] for job in status["jobs"]], commands[:2])
        self.release(1)
        self.release(2)
        self.wait_states("ddxd")
        self.assertEqual({self.worker_of(1), self.worker_of(2)}, set(WORKERS))
        self.stop(scheduler)
        self.assertFalse(self.exists("data_3.out"))
        self.assertTidy()

    def test_the_states_and_the_running_jobs_survive_its_death(self) -> None:
        first = self.start_scheduler("first")
        self.add(*self.prepare(5, held=1))
        self.remote_pid(1)
        self.wait_states("rdddd")
        self.stop(first, signal.SIGKILL)
        self.add("job_script.sh data_2", "job_script.sh data_3")
        second = self.start_scheduler("second")
        self.wait_states("rdddddd")
        self.release(1)
        wait_until(
            lambda: self.exists("data_1.out"), what="the job of the dead scheduler has come to its end"
        )
        self.wait_states("edddddd")                     # nobody was there to note how it ended
        self.stop(second)
        self.assertTidy()

    def test_term_ends_its_jobs_here_and_on_the_workers(self) -> None:
        first = self.start_scheduler("first")
        self.add(*self.prepare(3, held=2))
        remote = [self.remote_pid(1), self.remote_pid(2)]
        self.stop(first, signal.SIGTERM)
        self.assertEqual(self.states(), "ee.")
        wait_until(lambda: not any(map(alive, remote)), 10, "the remote commands have ended")
        self.release(1)
        self.release(2)
        second = self.start_scheduler("second", "--resume")
        self.wait_states("ddd")
        self.assertEqual({self.worker_of(number) for number in (1, 2)}, set(WORKERS))
        self.stop(second)

    def test_workers_are_added_and_removed_while_it_runs(self) -> None:
        self.write("alice\n", "workers")
        scheduler = self.start_scheduler("first")
        self.add(*self.prepare(6, held=2))
        self.remote_pid(1)
        self.write("alice\nbob\n", "workers")
        self.remote_pid(2)
        self.write("bob\n", "workers")
        time.sleep(1)
        self.release(1)
        self.release(2)
        self.wait_states("dddddd", 60)
        self.assertEqual([self.worker_of(number) for number in range(1, 7)], ["alice"] + ["bob"] * 5)
        self.write("bob\ncarol\n", "workers")
        self.add(*["job_script.sh data_3"] * 8)
        wait_until(lambda: sorted(self.states()) == ["!"] * 3 + ["d"] * 11, 60, "carol is out of service")
        self.assertEqual(self.run_script(RUNSET, "--set=.", "--state=!", "runs.txt").code, 0)
        self.wait_states("d" * 14, 60)
        said = [line for line in self.read("first.errors").splitlines() if b"carol" in line]
        self.assertEqual(len(said), 1, said)
        self.stop(scheduler)


if __name__ == "__main__":
    unittest.main()
