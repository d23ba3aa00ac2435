"""An HTCondor pool of one host, alice, with four CPUs.

The host is a set of namespaces with a root of Debian unstable, which is made once (a minute, 600 MB), and our
scripts.  It shares the kernel and the processors with the machine, and a directory below /srv: jobs have a
/tmp of their own.
"""
from __future__ import annotations

import atexit
import os
import pathlib
import shutil
import subprocess
import tempfile

from tests.real.rigs import PATH, lacking, root_command
from tests.support.processes import alive, wait_until
from tests.support.scripts import ROOT, SCRIPTS

TOP = os.environ.get("RUNMAKER4_TEST_CONDOR", "/var/tmp/runmaker4-condor")
TOOLS = {"debootstrap": "debootstrap", "unshare": "util-linux", "nsenter": "util-linux",
         "setpriv": "util-linux", "flock": "util-linux", "ip": "iproute2"}
USER = 3001                             # ann, in the root: HTCondor runs no jobs of root
# what a busy machine makes late comes sooner here
CONFIG = """\
CONDOR_HOST = alice
UID_DOMAIN = lab
FILESYSTEM_DOMAIN = lab
NETWORK_INTERFACE = 198.18.0.1
DAEMON_LIST = MASTER COLLECTOR NEGOTIATOR SCHEDD STARTD
NUM_CPUS = 4
MEMORY = 4096
START = True
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 5
SCHEDD_MIN_INTERVAL = 1
UPDATE_INTERVAL = 5
"""
# The host's first process.  It is no daemon of HTCondor: these change their user, and then outlive unshare
# (PR_SET_PDEATHSIG in prctl(2)).  What they write is in the pool's directory, so the root stays as it is
BOOT = """
root=$1 dir=$2
hostname alice
ip link set lo up
ip link add eth0 type bridge
ip address add 198.18.0.1/24 dev eth0
ip link set eth0 up
mount --bind "$root" "$root"
for directory in dev sys; do mount --rbind "/$directory" "$root/$directory"; done
mount -t proc proc "$root/proc"
mount -t tmpfs none "$root/run"
mkdir -p "$root$dir" "$root/run/lock" "$root/run/condor"
chmod 1777 "$root/run/lock" "$root/run/condor"
mount --bind "$dir" "$root$dir"
mount --bind "$dir/hosts" "$root/etc/hosts"
mount --bind "$dir/bin" "$root/usr/local/bin"
mount --bind "$dir/config" "$root/etc/condor/config.d"
for state in lib spool log; do
    mkdir -p "$root/var/$state/condor"
    cp -a "$root/var/$state/condor" "$dir/$state"
    mount --bind "$dir/$state" "$root/var/$state/condor"
    chroot "$root" chown condor: "/var/$state/condor"
done
chroot "$root" condor_master -f &
while :; do sleep 3600 & wait $!; done
"""


def missing() -> str:
    """Return what is missing here, as a sentence; '' if a pool can be started.  Makes the root."""
    return lacking("a real HTCondor", TOOLS, root_command(TOP, "sid", "condor"), timeout=1200)


class Pool:
    """The host and its daemons, up from start() to stop().  Test directories are to be in `dir`."""

    def start(self) -> Pool:
        """Bring it up, and wait until it takes jobs."""
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="runmaker4-condor-", dir="/srv"))
        self.dir.chmod(0o755)
        shutil.copytree(f"{TOP}/etc/condor/config.d", self.dir / "config")
        (self.dir / "config/50-pool").write_text(CONFIG)
        (self.dir / "hosts").write_text("127.0.0.1 localhost\n198.18.0.1 alice\n")
        for name in "bin", "home":
            (self.dir / name).mkdir()
        os.chown(self.dir / "home", USER, USER)
        for script in SCRIPTS:
            shutil.copy(ROOT / script, self.dir / "bin")
        with open(self.dir / "host.log", "wb") as log:
            self.host = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--uts", "--ipc", "--mount", "--pid",
                 "--fork", "--kill-child", "--mount-proc", "sh", "-euc", BOOT, "sh", TOP, str(self.dir)],
                env={"PATH": PATH}, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True
            )
        atexit.register(self.stop)
        try:
            wait_until(lambda: "Unclaimed" in self.tried("condor_status", "-af", "State").stdout,
                       what="the host takes jobs")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all of it: the processes of the host end with the first one."""
        first = self.first()
        self.host.kill()
        self.host.wait()
        wait_until(lambda: not (first and alive(int(first))), what="no process is left on the host")
        shutil.rmtree(self.dir)
        atexit.unregister(self.stop)

    def first(self) -> str:
        """Return the number of the host's first process, as we see it; '' if there is none."""
        path = pathlib.Path(f"/proc/{self.host.pid}/task/{self.host.pid}/children")
        return path.read_text().strip() if path.exists() else ""

    def tried(self, *command: str, cwd: str = "/") -> subprocess.CompletedProcess[str]:
        """Run a command there, as ann."""
        return subprocess.run(
            ["nsenter", "--target", self.first(), "--net", "--uts", "--ipc", "--mount", "--pid", "chroot",
             TOP, "setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "env", "-i", "-C", cwd,
             f"HOME={self.dir}/home", "PATH=/usr/local/bin:/usr/bin:/bin", *command],
            env={"PATH": PATH}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400,
            check=False
        )

    def run(self, *command: str, cwd: str = "/") -> str:
        """Return the output of a command there, which must succeed."""
        ended = self.tried(*command, cwd=cwd)
        if ended.returncode:
            raise AssertionError(f"exit status {ended.returncode}: {command}\n{ended.stdout}{ended.stderr}")
        return ended.stdout
