"""A Grid Engine cluster on one machine: a master, and execution hosts that can lose their power.

Each host is a set of namespaces with one root of Debian bookworm, which is made once (a minute, 500 MB), and
our scripts.  All share the kernel, the processors and /tmp.  Debian's master gives no work to a busy machine,
grants a `-notify` 60 s and looks for work every 15 s; here it has no load limit, 20 s and 2 s.
"""
from __future__ import annotations

import atexit
import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from tests.real.rigs import PATH, lacking, root_command
from tests.support.processes import DEADLINE, alive, wait_until
from tests.support.scripts import ROOT, SCRIPTS

TOP = os.environ.get("RUNMAKER4_TEST_GRIDENGINE", "/var/tmp/runmaker4-gridengine")
TOOLS = {"debootstrap": "debootstrap", "unshare": "util-linux", "nsenter": "util-linux",
         "setpriv": "util-linux", "flock": "util-linux", "ip": "iproute2"}
MASTER, HOSTS, SLOTS = "gmaster", ("alice", "bob"), 4
USER = 3001                             # ann, in the root: Grid Engine takes no jobs of root
PACKAGES = "gridengine-master gridengine-exec gridengine-client"
ANSWER = """
echo '198.18.0.1 gmaster' >>"$root/etc/hosts"
hostname gmaster
for package in client common master exec; do
    for value in 'cell string default' 'master string gmaster' 'config boolean true'; do
        echo "gridengine-$package shared/gridengine$value"
    done
done | chroot "$root" debconf-set-selections
"""
# A host's first process.  What the daemons write is in the cluster's directory, so the root stays as it is
BOOT = """
name=$1 address=$2 root=$3 dir=$4
hostname "$name"
ip link set lo up
until ip link show eth0 2>"$dir/$name.link"; do sleep 0.1; done
ip address add "$address/24" dev eth0
ip link set eth0 up
mount --bind "$root" "$root"
for directory in dev sys tmp; do mount --rbind "/$directory" "$root/$directory"; done
mount -t proc proc "$root/proc"
mount --bind "$dir/hosts" "$root/etc/hosts"
for state in spool lib; do mount --bind "$dir/$state" "$root/var/$state/gridengine"; done
mount --bind "$dir/bin" "$root/usr/local/bin"
mkdir -p "$root/run/gridengine"
chmod 777 "$root/run/gridengine"
echo up >"$dir/$name.up"
while :; do sleep 3600 & wait; done
"""
EXECUTION_HOST = """\
hostname {name}
load_scaling NONE
complex_values NONE
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
"""
CONFIGURE = f"""
cd "$1"
qconf -as gmaster
for name in smp mpi; do qconf -Ap /usr/share/gridengine/util/resources/pe/$name; done
printf 'group_name @allhosts\\nhostlist NONE\\n' >group
qconf -Ahgrp group
for name in {' '.join(HOSTS)}; do
    qconf -Ae $name.host
    qconf -aattr hostgroup hostlist $name @allhosts
done
EDITOR=true qconf -aq all.q
qconf -sq all.q | sed 's/^hostlist .*/hostlist @allhosts/; s/^slots .*/slots {SLOTS}/
    s/^load_thresholds .*/load_thresholds NONE/; s/^notify .*/notify 0:0:20/' >queue
qconf -Mq queue
qconf -ssconf | sed 's/^schedule_interval .*/schedule_interval 0:0:2/
    s/^flush_\\(submit\\|finish\\)_sec .*/flush_\\1_sec 1/' >scheduler
qconf -Msconf scheduler
"""


def missing() -> str:
    """Return what is missing here, as a sentence; '' if a cluster can be started.  Makes the root."""
    make = root_command(TOP, "bookworm", PACKAGES, ANSWER)
    return lacking("a real Grid Engine", TOOLS, make, timeout=1200)


class Cluster:
    """The master and its hosts, up from start() to stop()."""

    def __init__(self) -> None:
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.firsts: dict[str, int] = {}                # the first process of each host, as we see it

    def start(self) -> Cluster:
        """Bring it up, and wait until the hosts take jobs."""
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="runmaker4-gridengine-"))
        self.dir.chmod(0o755)
        atexit.register(self.stop)
        try:
            for state in "spool", "lib":
                subprocess.run(["cp", "-a", f"{TOP}/var/{state}/gridengine", self.dir / state], check=True)
            names = (MASTER, *HOSTS)
            hosts = [f"198.18.0.{number} {name}\n" for number, name in enumerate(names, 1)]
            (self.dir / "hosts").write_text("".join(["127.0.0.1 localhost\n", *hosts]))
            (self.dir / "config").mkdir()
            for name in HOSTS:
                (self.dir / f"config/{name}.host").write_text(EXECUTION_HOST.format(name=name))
            (self.dir / "config").chmod(0o777)
            (self.dir / "bin").mkdir()
            for script in SCRIPTS:
                shutil.copy(ROOT / script, self.dir / "bin")
            for name in names:
                self.boot(name)
            self.start_qmaster()
            self.run("sh", "-uc", CONFIGURE, "sh", str(self.dir / "config"), user="sgeadmin")
            for name in HOSTS:
                self.start_execd(name)
            wait_until(lambda: len(re.findall(r"lx-amd64 +\n", self.run("qstat", "-f"))) == len(HOSTS),
                       what="the hosts are ready")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all of it, with all jobs: the processes of a host end with the first one."""
        for process in self.daemons.values():
            process.kill()
            process.wait()
        for pid in self.firsts.values():
            wait_until(lambda: not alive(pid), what="no process is left on a host")
        shutil.rmtree(self.dir)
        atexit.unregister(self.stop)

    def daemon(self, name: str, *command: str) -> None:
        """Start a process that stays in the foreground, and ends with this one."""
        with open(self.dir / f"{name}.log", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command], env={"PATH": PATH}, cwd="/",
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def boot(self, name: str) -> None:
        """Start a host, with a cable to the bridge, which is on the master."""
        number = (MASTER, *HOSTS).index(name) + 1
        link, up = self.dir / f"{name}.link", self.dir / f"{name}.up"
        for path in link, up:
            path.unlink(missing_ok=True)
        self.daemon(name, "unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child",
                    "--mount-proc", "sh", "-euc", BOOT, "sh", name, f"198.18.0.{number}", TOP, str(self.dir))
        wait_until(link.exists, what=f"{name} waits for a cable")
        pid = self.daemons[name].pid
        self.firsts[name] = int(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text())
        bridge = ["nsenter", "--net", "--target", str(self.firsts[MASTER]), "ip", "link"]
        if name == MASTER:
            cables = [[*bridge, "add", "eth0", "type", "bridge"]]
        else:
            # of a host that was lost, the kernel takes it away a moment later
            old = [*bridge, "show", name]
            wait_until(lambda: subprocess.run(old, capture_output=True, check=False).returncode,
                       what=f"the old cable of {name} is gone")
            cables = [[*bridge, "add", name, "type", "veth", "peer", "name", "eth0", "netns",
                       str(self.firsts[name])], [*bridge, "set", name, "master", "eth0", "up"]]
        for command in cables:
            subprocess.run(command, check=True)
        wait_until(up.exists, what=f"{name} is up")

    def start_qmaster(self) -> None:
        """Start the master, with what its spool says, and wait until it answers."""
        self.daemon("qmaster", *self.inside(MASTER), "env", "SGE_ND=1", "sge_qmaster")
        wait_until(lambda: self.tried("qconf", "-sh").returncode == 0, what="the master answers")

    def start_execd(self, name: str) -> None:
        self.daemon(f"execd.{name}", *self.inside(name), "env", "SGE_ND=1", "sge_execd")

    def lose(self, name: str) -> None:
        """End all processes of a host at once, as a power cut does."""
        os.kill(self.firsts[name], signal.SIGKILL)
        for process in name, f"execd.{name}":
            self.daemons[process].wait(DEADLINE)
        wait_until(lambda: not alive(self.firsts[name]), what=f"no process is left on {name}")

    def inside(self, host: str) -> list[str]:
        """Return the words before a command that runs on a host, as root."""
        return ["nsenter", "--target", str(self.firsts[host]), "--net", "--uts", "--ipc", "--mount", "--pid",
                "chroot", TOP]

    def tried(self, *command: str, user: str = "ann", cwd: str = "/") -> subprocess.CompletedProcess[str]:
        """Run a command on the master."""
        return subprocess.run(
            [*self.inside(MASTER), "setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups",
             "env", "-i", "-C", cwd, "PATH=/usr/local/bin:/usr/bin:/bin", f"USER={user}", "HOME=/tmp",
             *command],
            env={"PATH": PATH}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
            check=False
        )

    def run(self, *command: str, user: str = "ann", cwd: str = "/") -> str:
        """Return the output of a command on the master, which must succeed.

        After a host was lost, the master of a busy machine has crashed once ("Connection refused").  Then it
        is started again, as a service manager would, and the command is repeated.
        """
        ended = self.tried(*command, user=user, cwd=cwd)
        if ended.returncode:
            # its end can be seen a moment later than that of its socket
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.daemons["qmaster"].wait(3)
            if (status := self.daemons["qmaster"].poll()) is not None:
                print(f"Grid Engine's master has ended by itself, exit status {status}", file=sys.stderr)
                self.start_qmaster()
                ended = self.tried(*command, user=user, cwd=cwd)
        if ended.returncode:
            raise AssertionError(f"exit status {ended.returncode}: {command}\n{ended.stdout}{ended.stderr}")
        return ended.stdout

    def clear(self) -> None:
        """End all jobs, those of a lost host as well."""
        def has_no_jobs() -> bool:
            # it fails if there is no job; a master that was started again has not got the last one
            self.tried("qdel", "-f", "-u", "ann", user="sgeadmin")
            return not self.run("qstat")

        wait_until(has_no_jobs, what="no job is left")
