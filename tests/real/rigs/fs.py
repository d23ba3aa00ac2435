"""Real network file systems, each with a server and three client hosts, on one machine: GlusterFS, CephFS,
MooseFS.

    with Rig("gluster", bricks=3) as rig:           # or "ceph", "moose"
        one, other = rig.hosts["A"], rig.hosts["B"]
        one.write("runs.txt", ". true\\n")
        runner = other.popen("exec runmaker4.py runs.txt")      # our scripts are on PATH
        one.cut()                                   # its network cable; join(), kill(), boot(), kill_client()
        runner.wait()

The file systems have their default settings and the FUSE clients that come with them.  A host has a network,
processes, mounts, a name and a boot id of its own, and so has the server; kernel, clock, CPUs and all other
files are this machine's.  The only network is a switch inside the server.  What servers and clients keep
under /run, /var and /etc is private to each host.  So several rigs can be up at once.  All of it ends with
the process that has started it.
"""
from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterable

from tests.real.rigs import PATH, lacking
from tests.support.processes import DEADLINE, alive, wait_until
from tests.support.scripts import write_programs
from tests.support.values import Text, as_bytes, present

NETWORK = "198.18.8."                   # for tests of networks (RFC 2544); nothing leaves the switch
SERVER = f"{NETWORK}1"
WITH_US = "setpriv", "--pdeathsig", "KILL"
# A host's first process.  Of these directories a host sees its own, empty at the start, unless they are not
# there
BOOT = """
hostname "$1"
mount --bind "$2/$1/boot_id" /proc/sys/kernel/random/boot_id
for directory in /run /var/lib/glusterd /var/lib/ceph /var/lib/mfs /etc/ceph /etc/mfs; do
    [ ! -d $directory ] || mount -t tmpfs none $directory
done
mount --bind "$2/$1/log" /var/log
mkdir -p /run/gluster /run/ceph /var/log/glusterfs /var/log/ceph
ip link set lo up
: > "$2/$1/up"
while :; do sleep 3600 & wait; done
"""
SWITCH = f"ip link add br0 type bridge; ip address add {SERVER}/24 dev br0; ip link set br0 up"
PLUG_IN = """
ip link add p-$1 type veth peer name eth0 netns $2 address 02:00:00:00:00:${3##*.}
ip link set p-$1 master br0 up
nsenter -t $2 -n ip address add $3/24 dev eth0
nsenter -t $2 -n ip link set eth0 up
"""


def first_child(pid: int) -> int:
    """The first child of a process; 0 if it has none, or has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return int((pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split() or ["0"])[0])
    return 0


class Command:
    """A shell command on a host: what it has printed so far, and its exit status once it has ended."""

    def __init__(self, host: Host, number: int, text: str, data: bytes, directory: object) -> None:
        self.host, self.text = host, text
        self.paths = [host.dir / f"{kind}.{number}" for kind in ("in", "out", "err")]
        self.paths[0].write_bytes(data)
        script = f"cd {shlex.quote(str(directory))} || exit\n{text}"
        with contextlib.ExitStack() as stack:
            source, out, err = (
                stack.enter_context(path.open(mode)) for path, mode in zip(self.paths, ("r", "w", "w"))
            )
            self.process = subprocess.Popen([*host.inside(), "sh", "-c", script], stdin=source, stdout=out,
                                            stderr=err, env=host.environ(), cwd="/", start_new_session=True)

    @property
    def out(self) -> bytes:
        return self.paths[1].read_bytes()

    @property
    def err(self) -> bytes:
        return self.paths[2].read_bytes()

    @property
    def code(self) -> int | None:
        """Its exit status; -N: ended by signal N, -9 too if its host lost power."""
        return self.process.poll()

    @functools.cached_property
    def outside(self) -> int:
        """The process number of its shell, or of what this has become, on this machine; 0: it has ended."""
        wait_until(lambda: first_child(self.process.pid) or self.code is not None,
                   what=f"{self.text} is a process")
        return first_child(self.process.pid)

    @functools.cached_property
    def pid(self) -> int:
        """That number on its host; 0 if it has ended too soon."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = pathlib.Path(f"/proc/{self.outside}/status").read_text()
            return int(present(re.search(r"(?m)^NSpid:.*?(\d+)$", status))[1])
        return 0

    def wait(self, timeout: float = DEADLINE) -> Command:
        """Wait for its end; it must not be meant to stay stopped."""
        def has_ended() -> bool:
            # nsenter stops itself some time after the command was stopped: perhaps once this goes on again
            # (findings/nsenter-stays-stopped-after-its-program.sh)
            self.process.send_signal(signal.SIGCONT)
            return self.code is not None

        try:
            wait_until(has_ended, timeout)
        except AssertionError:
            raise AssertionError(f"not within {timeout} s: {self}") from None
        return self

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal, unless it has ended."""
        if self.code is None and self.outside:
            with contextlib.suppress(ProcessLookupError):       # nsenter can end a moment later
                os.kill(self.outside, number)
            if number in (signal.SIGCONT, signal.SIGKILL):      # nsenter stops itself when the command stops
                self.process.send_signal(signal.SIGCONT)

    def __str__(self) -> str:
        return (f"{self.host.name}: {self.text}: exit status {self.code}\n"
                f"{(self.out[-3000:] + self.err[-3000:]).decode(errors='replace')}")


class Host:
    """A host: its power, its network cable, its client of the file system, and commands on it."""

    def __init__(self, rig: Rig, name: str, address: str) -> None:
        self.rig, self.name, self.address = rig, name, address
        self.directory = pathlib.Path("/")          # where its commands run
        self.commands: list[Command] = []
        self.first = 0                              # its first process, as this machine counts
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def dir(self) -> pathlib.Path:
        """What belongs to it alone; all hosts see it."""
        return self.rig.dir / self.name

    # -- power, network and client ---------------------------------------------------------------------------

    def boot(self) -> None:
        """Switch it on, with a boot id of its own, and plug its cable in."""
        (self.dir / "log").mkdir(parents=True, exist_ok=True)
        (self.dir / "boot_id").write_text(f"{uuid.uuid4()}\n")
        (self.dir / "up").unlink(missing_ok=True)
        with open(self.dir / "boot.log", "ab") as log:
            process = self.process = subprocess.Popen(
                [
                    *WITH_US,
                    "unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                    "sh", "-ec", BOOT, "sh", self.name,
                    str(self.rig.dir),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environ(),
                cwd="/",
                start_new_session=True,
            )
        wait_until(lambda: (self.dir / "up").exists() or process.poll() is not None,
                   what=f"{self.name} is up")
        assert process.poll() is None, (self.dir / "boot.log").read_text()
        self.first = first_child(process.pid)
        if self is self.rig.server:
            self._switch(SWITCH)
        else:
            self._switch(PLUG_IN, self.name, str(self.first), self.address)

    def cut(self) -> None:
        """Pull out its network cable."""
        self._switch("ip link set p-$1 down", self.name)

    def join(self) -> None:
        """Put its network cable in again."""
        self._switch("ip link set p-$1 up", self.name)

    def kill(self) -> None:
        """Power loss: nothing is written back, closed or said to others."""
        self._switch("ip link delete p-$1", self.name)
        self.end()

    def end(self) -> None:
        self.end_commands()
        if self.process:
            self.process.kill()
            self.process.wait()
            wait_until(lambda: not alive(self.first), what=f"no process is left on {self.name}")
            self.process = None

    def mount(self) -> None:
        """Mount the file system, and go there."""
        self.directory = pathlib.Path("/")
        self.run(f"mkdir -p {self.rig.mount}")
        self.rig.kind.mount(self)
        self.run(f"mountpoint {self.rig.mount}")
        self.directory = self.rig.mount

    def umount(self) -> None:
        """Unmount it, also where its client is dead."""
        self.directory = pathlib.Path("/")
        self.run(f"umount -l {self.rig.mount}")

    def kill_client(self) -> None:
        """kill -9 for the file system's FUSE daemon."""
        self.run(f"pkill -9 -x '{self.rig.kind.CLIENT}'", directory="/")

    # -- commands and files ----------------------------------------------------------------------------------

    def popen(self, command: str, data: Text = b"", directory: object = "") -> Command:
        """Start a shell command, with this as its standard input."""
        started = Command(self, len(self.commands), command, as_bytes(data), directory or self.directory)
        self.commands.append(started)
        return started

    def run(self, command: str, timeout: float = DEADLINE, check: bool = True, data: Text = b"",
            directory: object = "") -> Command:
        """Run a shell command to its end; fail if its exit status is not 0."""
        started = self.popen(command, data, directory)
        try:
            started.wait(timeout)
        except AssertionError:
            started.signal(signal.SIGKILL)
            raise
        assert not check or started.code == 0, str(started)
        return started

    def end_commands(self) -> None:
        """kill -9 for all of its commands that have not ended; what they have started lives on."""
        for command in self.commands:
            command.signal(signal.SIGKILL)
            # nsenter, which may be stopped, and would not see the command's end
            command.process.kill()
            command.process.wait()

    def write(self, name: str, text: Text) -> None:
        self.run(f"cat >'{name}'", data=text)

    def read(self, name: str) -> bytes:
        """What `cat` shows of a file; that may be old on the host where it is asked."""
        return self.run(f"cat '{name}'").out

    # -- inside ----------------------------------------------------------------------------------------------

    def inside(self) -> list[str]:
        """The words before a command that is to run here."""
        return ["nsenter", "-t", str(self.first), "--net", "--uts", "--mount", "--pid"]

    def environ(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{self.rig.dir / 'bin'}:{PATH}",
            "HOST": self.name,
            "HOME": str(self.dir),
            "LC_ALL": "C.UTF-8",
        }

    def _switch(self, script: str, *args: str) -> None:
        """Run shell commands in the network of the switch."""
        subprocess.run(
            ["nsenter", "-t", str(self.rig.server.first), "--net", "sh", "-ec", script, "sh", *args],
            check=True, timeout=DEADLINE, stdin=subprocess.DEVNULL, env={**os.environ, "PATH": PATH}
        )


# -- the file systems ----------------------------------------------------------------------------------------


class FileSystem:
    """What differs from one file system to the next."""
    TOOLS: dict[str, str]               # its programs, and Debian's packages that have them
    CLIENT: str                         # the name of its FUSE daemon, as a pattern

    def serve(self, server: Host) -> None:
        """Start its servers, and wait until it can be mounted."""
        raise NotImplementedError

    def mount(self, host: Host, options: str = "") -> None:
        """Mount it with its FUSE client, and these words for that; the directory is there."""
        raise NotImplementedError


class Gluster(FileSystem):
    """A volume of one brick, or of some that hold the same (replica)."""
    TOOLS = {"glusterd": "glusterfs-server", "gluster": "glusterfs-server", "glusterfs": "glusterfs-client"}
    CLIENT = "glusterfs"

    def __init__(self, bricks: int = 1) -> None:
        self.bricks = bricks

    def serve(self, server: Host) -> None:
        server.run("glusterd -L WARNING -l /var/log/glusterfs/glusterd.log")
        wait_until(lambda: server.run("gluster pool list", check=False).code == 0, what="glusterd answers")
        paths = [server.rig.dir / f"brick{number}" for number in range(self.bricks)]
        replica = f"replica {self.bricks}" if self.bricks > 1 else ""
        self.command(server,
                     f"volume create v {replica} {' '.join(f'{SERVER}:{path}' for path in paths)} force")
        self.command(server, "volume start v")

    @staticmethod
    def command(server: Host, text: str) -> str:
        """Have the server do something with its volumes; what it says."""
        return server.run(f"gluster --mode=script {text}").out.decode()

    def mount(self, host: Host, options: str = "") -> None:
        host.run(f"mount -t glusterfs -o log-level=WARNING {options} {SERVER}:/v {host.rig.mount}")


CEPH_CONFIG = """
[global]
fsid = 11111111-2222-3333-4444-555555555555
mon_host = [v1:{server}:6789]
ms_bind_msgr2 = false
public_network = {network}0/24
auth_allow_insecure_global_id_reclaim = true
mon_warn_on_insecure_global_id_reclaim_allowed = false
# one of each, in little memory, with little disk left
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
mon_data_avail_warn = 2
mon_mgr_beacon_grace = 60
mgr_initial_modules =
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_class_update_on_start = false
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_memory_target = 939524096
run_dir = /run/ceph
keyring = {dir}/keyring
mon_data = {dir}/mon
mgr_data = {dir}/mgr
osd_data = {dir}/osd
mds_data = {dir}/mds
"""
CEPH_MAKE = """
cd {dir}
mkdir mon mgr osd mds
ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *'
for name in client.admin mgr.x osd.0 mds.m; do
    ceph-authtool keyring --gen-key -n $name --cap mon 'allow *' --cap osd 'allow *' --cap mds 'allow *' \
        --cap mgr 'allow *'
done
fsid=11111111-2222-3333-4444-555555555555
monmaptool --create --addv a '[v1:{server}:6789]' --fsid $fsid monmap
ceph-mon $C -i a --mkfs --monmap monmap --keyring keyring
ceph-mon $C -i a
ceph-mgr $C -i x
timeout 150 ceph $C osd new 22222222-2222-3333-4444-555555555555 0
ceph-osd $C -i 0 --mkfs --osd-uuid 22222222-2222-3333-4444-555555555555
ceph-osd $C -i 0
until timeout 20 ceph $C osd stat | grep -q '1 up'; do sleep 0.2; done
timeout 150 ceph $C osd pool create data 8
timeout 150 ceph $C osd pool create meta 8
timeout 150 ceph $C fs new fs meta data
ceph-mds $C -i m
until timeout 20 ceph $C mds stat | grep -q active; do sleep 0.2; done
"""


class Ceph(FileSystem):
    """CephFS with one server of each kind, which keep the data in memory: 1.4 GB in all."""
    TOOLS = {"ceph-mon": "ceph-mon", "ceph-mgr": "ceph-mgr", "ceph-osd": "ceph-osd", "ceph-mds": "ceph-mds",
             "ceph-fuse": "ceph-fuse", "ceph": "ceph-common", "ceph-authtool": "ceph-common"}
    CLIENT = "ceph-fuse"

    def serve(self, server: Host) -> None:
        names = dict(dir=server.rig.dir, server=SERVER, network=NETWORK)
        (server.rig.dir / "ceph.conf").write_text(CEPH_CONFIG.format(**names))
        server.run(f"set -e; C='{self.config(server)}'\n{CEPH_MAKE.format(**names)}", timeout=600)

    @staticmethod
    def config(host: Host) -> str:
        return f"-c {host.rig.dir / 'ceph.conf'}"

    def mount(self, host: Host, options: str = "") -> None:
        host.run(f"ceph-fuse {self.config(host)} -n client.admin {options} {host.rig.mount}")


MOOSE_MAKE = """
cd {dir}
mkdir etc master chunks disk
echo '{network}0/24 / rw,alldirs,admin,maproot=0' > etc/exports
: > etc/topology
echo {dir}/disk > etc/disks
cat > etc/master <<E
WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = {dir}/master
EXPORTS_FILENAME = {dir}/etc/exports
TOPOLOGY_FILENAME = {dir}/etc/topology
E
cat > etc/chunkserver <<E
WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = {dir}/chunks
HDD_CONF_FILENAME = {dir}/etc/disks
HDD_LEAVE_SPACE_DEFAULT = 64MiB
MASTER_HOST = {server}
E
printf 'MFSM NEW' > master/metadata.mfs
mfsmaster -c etc/master start
mfschunkserver -c etc/chunkserver start
"""


class Moose(FileSystem):
    """MooseFS with a master and a chunk server."""

    TOOLS = {
        "mfsmaster": "moosefs-master",
        "mfschunkserver": "moosefs-chunkserver",
        "mfsmount": "moosefs-client",
    }
    CLIENT = "mfsmount.*"               # it writes what it is doing behind its name

    def serve(self, server: Host) -> None:
        server.run("set -e\n" + MOOSE_MAKE.format(dir=server.rig.dir, server=SERVER, network=NETWORK))

    def mount(self, host: Host, options: str = "") -> None:
        host.run(f"mfsmount {host.rig.mount} -H {SERVER} {options}")
        # For ten seconds after its start the master lets nobody change what is written already
        host.run(f"cd {host.rig.mount}; for n in 1 2; do echo | dd of=.up conv=fsync,notrunc; done; rm .up")


KINDS: dict[str, type[FileSystem]] = {"gluster": Gluster, "ceph": Ceph, "moose": Moose}
TOOLS = {"setpriv": "util-linux", "unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2",
         "pkill": "procps", **Gluster.TOOLS, **Ceph.TOOLS, **Moose.TOOLS}
VIEWS = {"bindfs": "bindfs", "mergerfs": "mergerfs"}     # FUSE daemons that show a directory in another place


@functools.cache
def missing(kind: str) -> str:
    """What is missing here for one of the KINDS, as a sentence; empty if it can be had."""
    others = {tool for one in KINDS.values() if one is not KINDS[kind] for tool in one.TOOLS}
    tools = {tool: package for tool, package in TOOLS.items() if tool not in others - {*KINDS[kind].TOOLS}}
    probe = "test -c /dev/fuse && exec unshare --net --uts --mount --pid --fork ip link add br0 type bridge"
    return lacking(f"a real {kind} file system", tools, ["sh", "-c", probe])


class Rig:
    """A file system, its server, and hosts that have it mounted on `mount`, up from start() to stop()."""

    def __init__(self, kind: str, names: Iterable[str] = "ABC", **options: int) -> None:
        self.kind = KINDS[kind](**options)
        self.add_hosts(names)

    def add_hosts(self, names: Iterable[str]) -> None:
        self.server = Host(self, "server", SERVER)
        self.hosts = {name: Host(self, name, f"{NETWORK}{number}") for number, name in enumerate(names, 11)}

    def __enter__(self) -> Rig:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> Rig:
        """Boot all hosts, and set up what is to be there."""
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="runmaker4-fs-", dir="/var/tmp"))
        self.mount = self.dir / "mnt"
        atexit.register(self.stop)              # a test that is interrupted does not clean up
        try:
            write_programs(self.dir / "bin")
            for host in self.server, *self.hosts.values():
                host.boot()
            self.set_up()
        except BaseException:
            self.stop()
            raise
        return self

    def set_up(self) -> None:
        """Have the file system mounted on all hosts."""
        self.kind.serve(self.server)
        for host in self.hosts.values():
            host.mount()

    def stop(self) -> None:
        """End all that runs there, and forget what was stored."""
        atexit.unregister(self.stop)
        with contextlib.ExitStack() as steps:       # all of them are taken, the last one first
            steps.callback(shutil.rmtree, self.dir)
            for host in self.server, *self.hosts.values():
                steps.callback(host.end)
