"""A real Slurm cluster of two nodes on one machine, with Debian's packages.

    with Cluster("cgroup") as cluster:                  # or "linuxproc": how the processes of a job are found
        job = cluster.run("sbatch", "--parsable", "script.sh", cwd=directory).strip()
        cluster.wait_state(job, "RUNNING")

Each node has a host name, processes and mounts of its own; kernel, CPUs and files are this machine's.  All of
it ends with the process that has started it.  Slurm's own waits are short, except that it looks at time
limits every 30 s.
"""
from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pathlib
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from typing import Any, Callable

from tests.real.rigs import PATH, lacking
from tests.support.ports import free_port
from tests.support.processes import DEADLINE, alive, wait_until

TOOLS = {"slurmctld": "slurmctld", "slurmd": "slurmd", "srun": "slurm-client", "munged": "munge",
         "setpriv": "util-linux", "unshare": "util-linux", "nsenter": "util-linux", "taskset": "util-linux"}
FREEZER = pathlib.Path("/sys/fs/cgroup/freezer")        # of control groups, version 1
CPUS, GPUS = 8, 2                                       # of each node
CONFIG = """\
ClusterName=rig
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket
CredType=cred/munge
StateSaveLocation={dir}/controller
SlurmdSpoolDir={dir}/%n.spool
SlurmctldPidFile={dir}/controller.pid
SlurmdPidFile={dir}/%n.pid
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
GresTypes=gpu
# from TERM to KILL; a silent node is down after this time; it comes back by itself
KillWait=60
SlurmdTimeout=300
ReturnToService=2
MessageTimeout=5
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE
PartitionName=urgent Nodes=ALL PriorityTier=2
"""
CGROUPS = "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\n"
NODE = "NodeName={name} NodeAddr={address} Port={port} CPUs={cpus} RealMemory=64000 Gres=gpu:{gpus}\n"
# A node's first process: name and hosts are its own, and of {dir}/first only the first node sees the files
BOOT = """\
hostname "$1" && mount --bind {dir}/hosts /etc/hosts &&
    { [ "$2" = 0 ] || mount -t tmpfs none {dir}/first; } || exit
echo up > {dir}/$1.up
while :; do sleep 3600 & wait; done
"""


@functools.cache
def missing() -> str:
    """What is missing here, as a sentence; empty if a cluster can be started."""
    if len(os.sched_getaffinity(0)) < 2:
        return "the tests with a real Slurm need two CPUs"
    return lacking("a real Slurm", TOOLS,
                   ["unshare", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "true"])


def free_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return [*ports]


class Cluster:
    """Two nodes and their controller, up from start() to stop()."""

    def __init__(self, proctrack: str) -> None:
        self.proctrack = proctrack
        # two rigs share the control groups
        self.nodes = [f"{name}{os.getpid()}" for name in ("alice", "bob")]
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.firsts: dict[str, int] = {}                # the first process of each node, as we see it

    def __enter__(self) -> Cluster:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    # -- up and down ----------------------------------------------------------------------------------------

    def start(self) -> Cluster:
        """Bring it up, and wait until the nodes take jobs."""
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="runmaker4-slurm-", dir="/var/tmp"))
        atexit.register(self.stop)
        self.environ = {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.dir / "slurm.conf")}
        try:
            self.configure()
            self.run("mungekey", "--create", f"--keyfile={self.dir}/munge.key-file")
            self.daemon(
                "munged",
                "munged",
                "--foreground",
                "--force",
                *(
                    f"--{option}={self.dir}/munge.{option}"
                    for option in ("key-file", "socket", "pid-file", "seed-file")
                ),
            )
            self.wait_for(lambda: self.asked("munge", "-n", "-S", f"{self.dir}/munge.socket"),
                          "munged answers")
            self.daemon("controller", "slurmctld", "-D")
            for name in self.nodes:
                self.boot(name)
            self.wait_idle()
        except BaseException:
            self.stop()
            raise
        return self

    def configure(self) -> None:
        """Write what all of it reads."""
        for name in "controller", "first":
            (self.dir / name).mkdir()
        port, *ports = free_ports(1 + len(self.nodes))
        addresses = [f"127.0.0.{number}" for number in range(2, 2 + len(self.nodes))]
        values = dict(host=socket.gethostname().partition(".")[0], port=port, dir=self.dir,
                      proctrack=self.proctrack)
        config, hosts = CONFIG.format(**values), pathlib.Path("/etc/hosts").read_text()
        for name, address, port in zip(self.nodes, addresses, ports):
            config += NODE.format(name=name, address=address, port=port, cpus=CPUS, gpus=GPUS)
            hosts += f"{address} {name}\n"
        gpus = [self.dir / f"gpu{number}" for number in range(GPUS)]
        for path in gpus:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))        # /dev/null as well
        files = {"slurm.conf": config, "hosts": hosts, "cgroup.conf": CGROUPS,
                 "gres.conf": f"Name=gpu File={self.dir}/gpu[0-{GPUS - 1}]\n"}
        for name, text in files.items():
            (self.dir / name).write_text(text)

    def stop(self) -> None:
        """End what is left of it, with all jobs; a node's processes go with its first one."""
        for process in self.daemons.values():
            process.kill()
            process.wait()
        for name, pid in self.firsts.items():
            wait_until(lambda: not alive(pid), what=f"no process is left on {name}")
        for name in self.nodes:
            for path, _, _ in os.walk(FREEZER / f"slurm_{name}", topdown=False):
                os.rmdir(path)
        shutil.rmtree(self.dir)
        atexit.unregister(self.stop)

    def daemon(self, name: str, *command: str) -> None:
        """Start a process that stays in the foreground, and ends with this one."""
        with open(self.dir / f"{name}.log", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command], env=self.environ, cwd="/",
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def inside(self, node: str) -> list[str]:
        """The words before a command that is to run on a node."""
        return ["nsenter", "--target", str(self.firsts[node]), "--uts", "--mount", "--pid"]

    def boot(self, node: str) -> None:
        number = self.nodes.index(node)
        self.daemon(node, "unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                    "sh", "-c", BOOT.replace("{dir}", str(self.dir)), "sh", node, str(number))
        self.wait_for((self.dir / f"{node}.up").exists, f"{node} is up")
        pid = self.daemons[node].pid
        self.firsts[node] = int(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text())
        self.start_slurmd(node)

    def wait_idle(self) -> None:
        states = "sinfo", "-h", "-N", "-p", "main", "-o", "%T"
        self.wait_for(lambda: self.asked(*states) == "idle\n" * 2, "the nodes are ready")

    def lose(self, node: str) -> None:
        """End all of a node at once, as a power cut does; tell Slurm, which would see it very late."""
        (self.dir / f"{node}.up").unlink()
        os.kill(self.firsts[node], signal.SIGKILL)
        for name in node, f"slurmd.{node}":
            self.daemons[name].wait(DEADLINE)
        for state in "down", "drain":       # a reply that is still under way would end the first only
            self.run("scontrol", "update", f"nodename={node}", f"state={state}", "reason=lost")

    def bring_back(self, node: str) -> None:
        self.boot(node)
        self.run("scontrol", "update", f"nodename={node}", "state=undrain")

    def start_slurmd(self, node: str) -> None:
        self.daemon(f"slurmd.{node}", *self.inside(node), "slurmd", "-D", "-N", node)

    def kill_slurmd(self, node: str) -> None:
        """kill -9; the jobs of the node run on."""
        pid = (self.dir / f"{node}.pid").read_text().strip()
        self.run(*self.inside(node), "kill", "-9", pid)
        self.daemons[f"slurmd.{node}"].wait(DEADLINE)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition; show the logs where it does not come."""
        try:
            wait_until(condition, what=what)
        except AssertionError as error:
            logs = [
                f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}"
                for path in self.dir.glob("*.log")
            ]
            raise AssertionError("\n".join([str(error), *logs])) from error

    # -- commands and jobs ----------------------------------------------------------------------------------

    def run(self, *command: str, **options: Any) -> str:
        settings: dict[str, Any] = dict(env=self.environ, stdin=subprocess.DEVNULL, capture_output=True,
                                        text=True, timeout=DEADLINE)
        settings.update(options)
        ended: subprocess.CompletedProcess[str] = subprocess.run(command, check=False, **settings)
        if ended.returncode:
            raise AssertionError(f"exit status {ended.returncode}: {command}\n{ended.stdout}{ended.stderr}")
        return ended.stdout

    def asked(self, *command: str) -> str:
        """What a command prints; nothing while there is nobody who answers it."""
        with contextlib.suppress(AssertionError):
            return self.run(*command)
        return ""

    def has_no_jobs(self) -> bool:
        return len(self.asked("squeue").splitlines()) == 1      # the header

    def clear(self) -> None:
        def are_gone() -> bool:
            # they fail, too, where a job is about to start or to end
            self.asked("scancel", "--full", "--signal=KILL", "--me")
            self.asked("scancel", "--me")
            return self.has_no_jobs()

        self.wait_for(are_gone, "no job is left")

    def show(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job, by name."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "-o", "show", "job", job)))

    def states(self, job: str) -> list[str]:
        """The state of a job, or of each task of an array; none while nobody answers."""
        return re.findall(r"\bJobState=(\w+)", self.asked("scontrol", "-o", "show", "job", job))

    def wait_state(self, job: str, *wanted: str) -> None:
        """Wait until a job, or each task of an array, is in the state that is wanted of it."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: sorted(self.states(job)) == sorted(wanted))
            return
        raise AssertionError(f"not {wanted} within 180 s\n{self.run('scontrol', 'show', 'job', job)}")
