"""A real NFS server and its clients: virtual machines with kernels of their own, under QEMU, without KVM.

    with Rig(clients=("alice", "bob"), lease=15) as rig:
        alice, bob = rig.clients
        alice.mount("4.2")                          # the server's /export, on /nfs
        alice.run("runmaker4.py runs.txt")          # our scripts are on PATH

Their network exists only between them.  They end with the process that has started them.  What they boot is
built once, in RUNMAKER4_TEST_NFS (/var/tmp/nfsrig); everything else is in a temporary directory.

They can be hosts of other file systems, too: of one whose servers fs.py starts on this machine
(Rig(beside=...)), or of one on a disk that all clients have (Rig(disk="256M"): /dev/vdc).

Or Debian's systemd boots them, with control groups of version 2, and they have neither NFS nor a network
(Rig(systemd=True)).
"""
from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
import pathlib
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

from tests.real.rigs import PATH, TAP, lacking
from tests.support.processes import wait_until
from tests.support.scripts import ROOT, SCRIPTS
from tests.support.values import Text, as_bytes, present

GUEST = pathlib.Path(__file__).with_name("nfs_guest")
# Another build.sh builds another image
IMAGE = (pathlib.Path(os.environ.get("RUNMAKER4_TEST_NFS", "/var/tmp/nfsrig"))
         / hashlib.sha256((GUEST / "build.sh").read_bytes()).hexdigest()[:12])
NETWORK = "10.77.0."
SLOW = 300              # patience with virtual machines, in seconds
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mkfs.ext4": "e2fsprogs",
    "cpio": "cpio",
    "setpriv": "util-linux",
}


@functools.cache
def missing() -> str:
    """What is missing here, or ''; installs and builds what machines need, where it may."""
    if platform.machine() != "x86_64":
        return "real NFS needs x86-64"
    if (IMAGE / "image.stamp").exists() and all(shutil.which(tool, path=PATH) for tool in TOOLS):
        return ""
    return lacking("real NFS", TOOLS, [str(GUEST / "build.sh"), str(IMAGE)], timeout=1200)


class Command:
    """A shell command in a machine: what it has printed so far, and its exit status once it has ended."""

    def __init__(self, machine: Machine, number: int, text: str) -> None:
        self.machine, self.number, self.text = machine, number, text
        self.out = self.err = b""
        self.process = 0                                # its shell; 0: not known yet
        # -N: ended by signal N; -9 too if its machine lost power
        self.code: int | None = None

    def event(self, message: dict[str, Any]) -> None:
        self.out += base64.b64decode(message.get("out", ""))
        self.err += base64.b64decode(message.get("err", ""))
        self.process = message.get("pid", self.process)
        self.code = message.get("code", self.code)      # what it leaves behind may print more

    @property
    def pid(self) -> int:
        """The number of its shell, and of the process group, on its machine; 0: that lost power before."""
        wait_until(lambda: self.process or self.code is not None, SLOW, f"{self}\nis a process")
        return self.process

    def wait(self, timeout: float = SLOW) -> Command:
        wait_until(lambda: self.code is not None, timeout, str(self))
        return self

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the command's process group; a runner's jobs have groups of their own."""
        if self.pid:
            self.machine.tell(id=self.number, signal=int(number))

    def __str__(self) -> str:
        return (f"{self.machine.name}: {self.text}: exit status {self.code}\n"
                f"{(self.out[-3000:] + self.err[-3000:]).decode(errors='replace')}")


class Machine:
    """A virtual machine: its power, its network cable, and commands in it."""

    def __init__(self, rig: Rig, name: str, number: int) -> None:
        self.rig, self.name, self.ip = rig, name, f"{NETWORK}{number}"
        self.card = f"virtio-net-pci,netdev=net0,mac=52:54:00:77:00:{number:02x},id=card,romfile="
        self.directory = "/root"                        # where its commands run
        self.qemu: subprocess.Popen[bytes] | None = None
        self.commands: dict[int, Command] = {}
        self.count = 0
        self.sending = threading.Lock()
        self.ready = False

    # -- power and network ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Switch it on; wait_ready() is to follow."""
        disk = self.path("disk")
        if not disk.exists():
            subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(disk), "256M"], check=True,
                           capture_output=True, stdin=subprocess.DEVNULL, env={**os.environ, "PATH": PATH})
        hosts = ",".join(f"{machine.name}:{machine.ip}" for machine in self.rig.machines)
        words = f"rig.name={self.name} rig.ip={self.ip} rig.lease={self.rig.lease} rig.hosts={hosts}"
        if self.rig.systemd:
            words += " rig.systemd systemd.unit=rig.service"
        command = [
            "setpriv", "--pdeathsig", "KILL", *self.inside(), "qemu-system-x86_64", "-name", self.name,
            *"-M pc -accel tcg,thread=multi -cpu Nehalem,+rdrand -smp 1".split(), "-m", self.rig.memory,
            *"-nodefaults -no-user-config -display none -no-reboot".split(),
            "-kernel", str(IMAGE / "vmlinuz"), "-initrd", str(self.rig.dir / "initrd.img"), "-append",
            f"console=ttyS0 loglevel=4 panic=-1 mitigations=off tsc=unstable no_timer_check {words}",
            "-serial", f"file:{self.path('console')}", "-qmp", f"unix:{self.path('qmp')},server=on,wait=off",
            "-drive", f"if=none,id=root,format=raw,snapshot=on,file={IMAGE / 'root.img'}",
            "-drive", f"if=none,id=state,format=raw,cache=unsafe,file={disk}",
            "-chardev", f"socket,id=port,path={self.path('port')},server=on,wait=off"]
        for device in ("virtio-blk-pci,drive=root", "virtio-blk-pci,drive=state", "virtio-serial-pci",
                       "virtserialport,chardev=port,name=rig", self.card):
            command += ["-device", device]
        if self.rig.disk and self is not self.rig.server:
            # QEMU must not lock it, nor any host keep pages of it
            options = "if=none,id=disk,format=raw,cache=none,file.locking=off"
            command += ["-drive", f"{options},file={self.rig.dir / 'disk'}",
                        "-device", "virtio-blk-pci,drive=disk,share-rw=on"]
        for kind in "qmp", "port":
            self.path(kind).unlink(missing_ok=True)
        with open(self.path("console"), "ab") as log:
            self.qemu = subprocess.Popen(command + self.network(), stdin=subprocess.DEVNULL, stdout=log,
                                         stderr=log,
                                         env={**os.environ, "PATH": PATH, "TMPDIR": str(self.rig.dir)})
        self.ready = False
        self.port = self.connect("port")
        threading.Thread(target=self.listen, args=(self.port,), daemon=True).start()

    def wait_ready(self) -> None:
        """Wait until it takes commands."""
        qemu = present(self.qemu)
        wait_until(lambda: self.ready or qemu.poll() is not None, SLOW, f"{self.name} is up\n{self.log()}")
        if qemu.poll() is not None:
            raise AssertionError(f"{self.name} did not start\n{self.log()}")

    def boot(self) -> None:
        self.start()
        self.wait_ready()

    def kill(self) -> None:
        """Power loss: nothing is written back, closed or said to others."""
        if self.qemu:
            self.qemu.kill()
            self.qemu.wait(SLOW)
            self.qemu = None
            self.port.close()
            self.lose_commands()

    def plug(self, up: bool) -> None:
        """Put its network cable in, or pull it out."""
        with contextlib.closing(self.connect("qmp")) as connection, connection.makefile("rw") as stream:
            stream.readline()
            for request in ({"execute": "qmp_capabilities"},
                            {"execute": "set_link", "arguments": {"name": "card", "up": up}}):
                stream.write(json.dumps(request) + "\n")
                stream.flush()
                while "return" not in (answer := json.loads(stream.readline())):
                    assert "error" not in answer, answer

    def network(self) -> list[str]:
        """QEMU's arguments for the network: the server is the hub, a datagram socket for each client."""
        def cable(name: str, ours: pathlib.Path, theirs: pathlib.Path) -> list[str]:
            return ["-netdev", f"dgram,id={name},local.type=unix,local.path={ours},"
                               f"remote.type=unix,remote.path={theirs}"]
        if self is not self.rig.server:
            return cable("net0", self.path("net"), self.path("hub"))
        arguments = ["-netdev", "hubport,id=net0,hubid=0"]
        for number, client in enumerate(self.rig.clients):
            arguments += cable(f"to{number}", client.path("hub"), client.path("net"))
            arguments += ["-netdev", f"hubport,id=port{number},hubid=0,netdev=to{number}"]
        if self.rig.beside:
            arguments += ["-netdev", f"tap,id=beside,ifname={TAP},script=no,downscript=no",
                          "-netdev", "hubport,id=port-beside,hubid=0,netdev=beside"]
        return arguments

    def inside(self) -> list[str]:
        """The words before QEMU's command: the server's reaches the switch beside."""
        if self.rig.beside and self is self.rig.server:
            return ["nsenter", "-t", str(self.rig.beside.server.first), "--net"]
        return []

    # -- commands and files ---------------------------------------------------------------------------------

    def popen(self, command: str, data: Text = b"", directory: str = "") -> Command:
        """Start a shell command, with this as its standard input."""
        self.count += 1
        started = self.commands[self.count] = Command(self, self.count, command)
        self.tell(id=started.number, command=command, directory=directory or self.directory,
                  input=base64.b64encode(as_bytes(data)).decode())
        return started

    def run(self, command: str, timeout: float = SLOW, check: bool = True, **options: Any) -> Command:
        """Run a shell command to its end; fail if its exit status is not 0."""
        ended = self.popen(command, **options).wait(timeout)
        assert not check or ended.code == 0, str(ended)
        return ended

    def write(self, name: str, text: Text) -> None:
        self.run(f"cat >'{name}'", data=text)

    def read(self, name: str) -> bytes:
        return self.run(f"cat '{name}'").out

    def mount(self, version: str, options: str = "") -> None:
        """Mount the server's export on /nfs, and go there."""
        self.run(f"mkdir -p /nfs && mount -t nfs -o {','.join(filter(None, [f'vers={version}', options]))} "
                 "server:/export /nfs", directory="/")
        self.directory = "/nfs"

    def umount(self) -> None:
        self.directory = "/root"
        self.run("umount -f /nfs || umount -l /nfs")

    # -- inside ---------------------------------------------------------------------------------------------

    def path(self, kind: str) -> pathlib.Path:
        return self.rig.dir / f"{self.name}.{kind}"

    def log(self) -> str:
        return self.path("console").read_text(errors="replace")[-3000:]

    def connect(self, kind: str) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(SLOW)

        def connected() -> bool:
            if present(self.qemu).poll() is not None:
                raise AssertionError(f"{self.name} did not start\n{self.log()}")
            return connection.connect_ex(str(self.path(kind))) == 0
        wait_until(connected, SLOW, f"QEMU listens on {self.path(kind)}")
        return connection

    def tell(self, **message: object) -> None:
        with self.sending:
            self.port.sendall(json.dumps(message).encode() + b"\n")

    def listen(self, port: socket.socket) -> None:
        """A thread's work: take what the machine's agent says, until the machine is gone."""
        port.settimeout(None)
        with contextlib.suppress(OSError):
            for line in port.makefile("rb"):
                message = json.loads(line)
                if "ready" in message:
                    self.ready = True
                else:
                    self.commands[message["id"]].event(message)
        if port is self.port:
            self.lose_commands()

    def lose_commands(self) -> None:
        for command in self.commands.values():
            if command.code is None:
                command.code = -signal.SIGKILL


class Beside(Protocol):
    """The servers of another file system: fs.Rig."""

    @property
    def server(self) -> FirstProcess: ...
    def add_tap(self) -> None: ...


class FirstProcess(Protocol):
    """A host that is known by the number of its first process."""
    first: int


class Rig:
    """A server and its clients.

    lease: for how long NFSv4 keeps the locks of a client that is silent, in seconds.  beside: the servers of
    another file system, whose network is one with that of the machines.  disk: the size of a disk that all
    clients share.  memory: of each machine.  systemd: it boots them, instead of what makes them hosts of NFS.
    """

    def __init__(self, clients: Sequence[str] = ("alice", "bob"), lease: int = 15,
                 beside: Beside | None = None, disk: str = "", memory: str = "320M",
                 systemd: bool = False) -> None:
        self.lease, self.beside, self.disk = lease, beside, disk
        self.memory, self.systemd = memory, systemd
        self.server = Machine(self, "server", 1)
        self.clients = [Machine(self, name, number) for number, name in enumerate(clients, 11)]
        self.machines = [self.server, *self.clients]

    def __enter__(self) -> Rig:
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="runmaker4-nfs-", dir="/var/tmp"))
        try:
            shutil.copy(IMAGE / "initrd.img", self.dir)
            # the kernel unpacks all archives of the file in turn
            with open(self.dir / "initrd.img", "ab") as image:
                for top, names in (GUEST, ("init", "boot", "rig.service", "agent.py")), (ROOT, SCRIPTS):
                    subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=top, stdout=image, check=True,
                                   input="".join(f"{name}\n" for name in names).encode())
            if self.disk:
                subprocess.run(["truncate", "-s", self.disk, str(self.dir / "disk")], check=True)
            if self.beside:
                self.beside.add_tap()
            for machine in self.machines:
                machine.start()
            for machine in self.machines:
                machine.wait_ready()
                # not at a later boot: a server's clock, which dates marks, must not go back while it serves
                machine.run(f"date -s @{time.time():.3f}", directory="/")
        except BaseException:
            self.__exit__()
            raise
        if not self.systemd:
            self.server.directory = "/export"
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            machine.kill()
        shutil.rmtree(self.dir, ignore_errors=True)
