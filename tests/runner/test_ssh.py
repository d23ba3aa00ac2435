"""Promise: a cluster scheduler's job script, which copies, runs and copies back by ssh, runs unchanged.

Two sshd of the test's own serve as workers, on loopback ports, with keys that are thrown away.  Nothing of
the user's is read: ssh, also that of rsync, is a script on PATH that has a configuration of its own.
"""
import getpass
import os
import pwd
import shutil
import socket
import subprocess
import unittest
from typing import Optional

from tests.support.ports import free_port
from tests.support.processes import MARK, wait_until
from tests.support.runs import RunCase
from tests.support.scripts import FULL
from tests.support.wrappers import NASTY

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
    ConnectTimeout 60
    LogLevel ERROR
    SendEnv JOB_ID SLAVE_IP
"""
# Data there, run, result back, clean up.  ssh comes first: where nobody answers it ends with 255, rsync with
# 255 or 12
JOB_SCRIPT = """#!/bin/bash
set -e
there=$REMOTE/$SLAVE_IP
ssh -t -t "$SLAVE_IP" "mkdir -p $there"
rsync -aP "$1.txt" "$SLAVE_IP:$there/"
ssh -t -t "$SLAVE_IP" "wc <$there/$1.txt >$there/$JOB_ID.out && echo \\$WORKER >>$there/$JOB_ID.out"
rsync -aP "$SLAVE_IP:$there/$JOB_ID.out" .
mv "$JOB_ID.out" "$1.out"
ssh -t -t "$SLAVE_IP" "rm -f $there/$1.txt $there/$JOB_ID.out"
"""


@unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a minute")
class SshCase(RunCase):
    """A test with two workers, alice and bob, that ssh and rsync reach by name."""
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
        for name in "keys", "remote", *(f"remote/{worker}" for worker in WORKERS):
            (self.dir / name).mkdir()
        if os.geteuid() == 0:
            # sshd locks its unprivileged part in there
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        for key in "key", "hostkey":
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.dir / "keys" / key],
                           check=True)
        ports = {worker: free_port() for worker in WORKERS}
        for worker in WORKERS:
            self.start_sshd(worker, ports[worker])
        self.write_client_files(ports)
        self.script(JOB_SCRIPT, "job_script.sh")
        for worker in WORKERS:
            self.wait_sshd(worker, ports[worker])

    def start_sshd(self, worker: str, port: int) -> None:
        text = SSHD_CONFIG.format(port=port, keys=self.dir / "keys", worker=worker,
                                  mark=f"{MARK}={self.mark}")
        config = self.write(text, f"{worker}.sshd_config")
        with open(self.dir / f"{worker}.log", "wb") as log:
            self.start(str(SSHD), "-D", "-e", "-f", config, stdout=log, stderr=log)

    def write_client_files(self, ports: dict[str, int]) -> None:
        """The configuration of ssh, and an ssh on PATH that has it."""
        keys, real = self.dir / "keys", shutil.which("ssh")
        user = pwd.getpwuid(os.geteuid()).pw_name
        hosts = "".join(f"Host {worker}\n    Port {port}\n" for worker, port in ports.items())
        config = self.write(hosts + SSH_CONFIG.format(user=user, keys=keys), "ssh_config")
        self.write(b"worker " + (keys / "hostkey.pub").read_bytes(), "keys/known_hosts")
        self.script(f'#!/bin/sh\nexec {real} -F {config} "$@"\n', "bin/ssh")

    def wait_sshd(self, worker: str, port: int) -> None:
        """Wait until one can log in; skip the test where sshd runs and does not let this user in."""
        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(answers, what=f"{worker} answers")
        ended = self.run_script("ssh", worker, "true")
        if ended.code != 0:
            said = ended.err + self.read(f"{worker}.log")[-300:]
            self.skipTest(f"sshd does not let {getpass.getuser()} in: {said.decode(errors='replace')}")

    def environ(self, extra: Optional[dict[str, str]] = None) -> dict[str, str]:
        mine = {"PATH": f"{self.dir}/bin:{self.dir}:{os.environ['PATH']}", "REMOTE": str(self.dir / "remote")}
        return super().environ({**mine, **(extra or {})})

    # -- jobs -----------------------------------------------------------------------------------------------

    def prepare(self, count: int) -> list[str]:
        for number in range(1, count + 1):
            self.write("some words\n" * number, f"data_{number}.txt")
        return [f"job_script.sh data_{number}" for number in range(1, count + 1)]

    def worker_of(self, number: int) -> str:
        """Who did a job; the result is right."""
        *counts, worker = self.read(f"data_{number}.out").decode().split()
        self.assertEqual(counts, [str(number), str(2 * number), str(11 * number)])
        return worker

    def assertTidy(self) -> None:
        """No data of ours is left with the workers."""
        left = [path.name for worker in WORKERS for path in (self.dir / "remote" / worker).iterdir()]
        self.assertEqual(left, [])


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

    def test_jobs_of_all_kinds_arrive_through_ssh_as_they_are(self) -> None:
        def results(*options: str) -> list[object]:
            self.write(b"".join(b". %s\n" % command for command in NASTY))
            shutil.rmtree(self.dir / "out", ignore_errors=True)
            ended = self.run_jobs("-q", "--slots", "alice", "--outdir", "out", *options, env=home)
            self.assertEqual(ended.code, 1, ended.err)
            return [self.states(),
                    *((self.dir / f"out/{line + 1}.out").exists() and self.read(f"out/{line + 1}.out")
                      for line in range(len(NASTY)))]

        home = {"HOME": str(self.dir / "keys")}
        (self.dir / "out").mkdir()                                      # echo * shows the same each time
        here = results()
        self.assertEqual(results("--runner", f"ssh \"$SLAVE_IP\" cd {self.dir} '&&'"), here)
