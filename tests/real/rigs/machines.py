"""Hosts with kernels of their own: user-mode Linux, which boots in three seconds, on one network.

    with Machines() as machines:
        disk = machines.disk("disk", "64M")             # a file, which outlives the power of the machine
        one = machines.add(Machine(machines, "one", 1, [disk]))
        one.boot()
        one.run("mkfs.xfs -q /dev/ubda")                # our scripts are on PATH
        one.plug(False)                                 # its network cable
        one.kill()                                      # power loss

Debian's user-mode-linux is a Linux 6.1 that is a process here.  The root of a machine is the `/` of this one,
read-only, below a file system in memory that takes what the machine writes; so it has all programs that are
installed here.  Machines see no other network than their own, and end with the process that has started them.
"""
from __future__ import annotations

import atexit
import base64
import contextlib
import functools
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
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from tests.real.rigs import PATH, lacking
from tests.support.processes import wait_until
from tests.support.scripts import PYTHON, write_programs
from tests.support.values import Text, as_bytes, present

GUEST = pathlib.Path(__file__).with_name("guest")
XSTATE = pathlib.Path(__file__).with_name("xstate.c")
HAS_AMX = platform.system() == "Linux" and " amx_tile " in pathlib.Path("/proc/cpuinfo").read_text()
NETWORK = "10.77.0."
SLOW = 300              # patience with machines, in seconds
TOOLS = {"linux.uml": "user-mode-linux", "ip": "iproute2", "setpriv": "util-linux", "unshare": "util-linux",
         "nsenter": "util-linux", "insmod": "kmod", "pgrep": "procps"}
WITH_US = "setpriv", "--pdeathsig", "KILL"
SWITCH = "ip link add br0 type bridge && ip link set br0 up && echo up && exec sleep infinity"
PLUG_IN = "ip link show $1 >/dev/null 2>&1 || ip tuntap add $1 mode tap; ip link set $1 master br0 up"
# All processes of a machine end with the first one, which must not be the kernel: after a panic that aborts,
# and a first process cannot.  The memory of a machine is a file
INSIDE = "unshare", "--mount", "--fork", "--pid", "--mount-proc", "--kill-child=KILL"
START = 'mount -t tmpfs memory "$1" && export TMPDIR="$1" && shift && linux.uml "$@"; exit'


@functools.cache
def missing(*tools: tuple[str, str]) -> str:
    """What is missing here, as a sentence; '' if machines can be booted.  Installs packages where it may.

    tools: programs beside TOOLS, each with Debian's package that has it.
    """
    if platform.machine() != "x86_64":
        return "user-mode Linux needs x86-64"
    return lacking("user-mode Linux", {**TOOLS, **dict(tools), **({"cc": "gcc"} if HAS_AMX else {})},
                   ["sh", "-c", "test -c /dev/net/tun && unshare --net ip link add br0 type bridge"])


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
    """A machine: its power, its network cable, and commands in it.

    disks: files that are its disks, /dev/ubda and so on; other machines can have them, too.  setup: shell
    commands that it runs whenever it boots, before it takes others.  systemd: this boots it.
    """

    def __init__(self, machines: Machines, name: str, number: int, disks: Sequence[pathlib.Path] = (),
                 memory: str = "320M", setup: str = "", systemd: bool = False) -> None:
        self.machines, self.name, self.number = machines, name, number
        self.ip, self.disks, self.memory = f"{NETWORK}{number}", [*disks], memory
        self.setup, self.systemd = setup, systemd
        self.directory = "/root"                        # where its commands run
        self.process: subprocess.Popen[bytes] | None = None
        self.commands: dict[int, Command] = {}
        self.count = self.told = 0
        self.sending = threading.Lock()
        self.ready = False

    # -- power and network ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Switch it on; wait_ready() is to follow."""
        self.path("setup").write_text(self.setup)
        self.path("memory").mkdir(exist_ok=True)
        self.plug(True)
        self.port, port = socket.socketpair()
        with open(self.path("console"), "ab") as log, port:
            self.process = subprocess.Popen(
                [*WITH_US, *self.machines.inside(), *INSIDE, "sh", "-c", START, "sh",
                 str(self.path("memory")), *self.parameters(), "ssl=null", f"ssl0=fd:{port.fileno()}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[port.fileno()],
                # a kernel that panics kills its process group
                env={**os.environ, "PATH": PATH, **self.machines.preloaded}, start_new_session=True)
        self.ready = False
        self.listener = threading.Thread(target=self.listen, args=(self.port,), daemon=True)
        self.listener.start()

    def wait_ready(self) -> None:
        """Wait until it takes commands."""
        process = present(self.process)
        wait_until(lambda: self.ready or process.poll() is not None, SLOW, f"{self.name} is up\n{self.log()}")
        if process.poll() is not None:
            raise AssertionError(f"{self.name} did not boot\n{self.log()}")

    def boot(self) -> None:
        self.start()
        self.wait_ready()

    def kill(self) -> None:
        """Power loss: nothing is written back, closed or said to others."""
        if self.process:
            self.process.kill()
            self.process.wait(SLOW)
            self.listener.join(SLOW)        # until its last process has gone, and can write nothing more
            self.process = None
            self.port.close()

    def plug(self, up: bool) -> None:
        """Put its network cable in, or pull it out."""
        tap = f"t{self.number}"
        if up:
            self.machines.switch(PLUG_IN, tap)
        else:
            self.machines.switch("ip link set $1 nomaster", tap)

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

    # -- inside ---------------------------------------------------------------------------------------------

    def parameters(self) -> list[str]:
        """The kernel's command line."""
        top = self.machines.dir
        card = f"transport=tap,ifname=t{self.number},mac=52:54:00:77:00:{self.number:02x},depth=128,gro=1"
        # c: other machines can have the disk
        disks = [f"ubd{number}c={path}" for number, path in enumerate(self.disks)]
        return [f"mem={self.memory}", f"uml_dir={top}", f"umid={self.name}", f"vec0:{card}", *disks,
                *"root=/dev/root rootfstype=hostfs rootflags=/ ro loglevel=4 con=null con0=null,fd:2".split(),
                f"init={GUEST / 'boot'}", f"rig.name={self.name}", f"rig.ip={self.ip}", f"rig.dir={top}",
                *["rig.systemd"] * self.systemd]

    def path(self, kind: str) -> pathlib.Path:
        return self.machines.dir / f"{self.name}.{kind}"

    def log(self) -> str:
        return self.path("console").read_text(errors="replace")[-3000:]

    def tell(self, **message: object) -> None:
        """Tell the agent, by the number of a file: its serial line hangs after more than 4 KiB at once."""
        with self.sending:
            self.told += 1
            self.path(f"told.{self.told}").write_text(json.dumps(message))
            self.port.sendall(b"%d\n" % self.told)

    def listen(self, port: socket.socket) -> None:
        """A thread's work: take what the machine's agent says, until the machine is gone."""
        with port.makefile("rb") as lines, contextlib.suppress(ConnectionResetError):
            for line in lines:
                if not line.endswith(b"\n"):
                    break               # it lost power while it said this
                message = json.loads(line)
                if "ready" in message:
                    self.ready = True
                else:
                    self.commands[message["id"]].event(message)
        for command in self.commands.values():
            if command.code is None:
                command.code = -signal.SIGKILL


class FirstProcess(Protocol):
    """A host that is known by the number of its first process."""
    first: int


class Beside(Protocol):
    """The servers of another file system: fs.Rig."""

    @property
    def server(self) -> FirstProcess: ...


M = TypeVar("M", bound=Machine)


class Machines:
    """Machines on a switch.  beside: on the switch of another rig."""

    def __init__(self, beside: Beside | None = None) -> None:
        self.beside = beside
        self.machines: list[Machine] = []
        self.bridge: subprocess.Popen[bytes] | None = None
        self.preloaded: dict[str, str] = {}

    def add(self, machine: M) -> M:
        """Add a machine, which is to be booted."""
        self.machines.append(machine)
        hosts = "".join(f"{machine.ip} {machine.name}\n" for machine in self.machines)
        (self.dir / "etc_hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        return machine

    def disk(self, name: str, size: str) -> pathlib.Path:
        """Make an empty disk."""
        subprocess.run(["truncate", "-s", size, str(self.dir / name)], check=True)
        return self.dir / name

    def boot(self) -> None:
        """Switch all on, and wait until they take commands."""
        for machine in self.machines:
            machine.start()
        for machine in self.machines:
            machine.wait_ready()

    def inside(self) -> list[str]:
        """The words before a command that is to reach the switch."""
        first = self.beside.server.first if self.beside else present(self.bridge).pid
        return ["nsenter", "-t", str(first), "--net"]

    def switch(self, script: str, *args: str) -> None:
        """Run shell commands in the network of the switch."""
        subprocess.run([*self.inside(), "sh", "-ec", script, "sh", *args], check=True, timeout=SLOW,
                       stdin=subprocess.DEVNULL, env={**os.environ, "PATH": PATH})

    def __enter__(self) -> Machines:
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="runmaker4-machines-", dir="/var/tmp"))
        atexit.register(self.__exit__)          # a test that is interrupted does not clean up
        try:
            write_programs(self.dir / "bin", agent=f"{PYTHON} {GUEST / 'agent.py'}")
            if HAS_AMX:
                library = str(self.dir / "xstate.so")
                subprocess.run(["cc", "-shared", "-fPIC", "-o", library, str(XSTATE)], check=True,
                               env={**os.environ, "PATH": PATH})
                self.preloaded = {"LD_PRELOAD": library}
            if not self.beside:
                self.bridge = subprocess.Popen([*WITH_US, "unshare", "--net", "sh", "-c", SWITCH],
                                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                               env={**os.environ, "PATH": PATH})
                assert present(self.bridge.stdout).readline() == b"up\n", "there is no switch"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        atexit.unregister(self.__exit__)
        for machine in self.machines:
            machine.kill()
        if self.bridge:
            self.bridge.kill()
            self.bridge.wait()
            present(self.bridge.stdout).close()
        shutil.rmtree(self.dir, ignore_errors=True)
