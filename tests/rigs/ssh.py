"""Real hosts on one machine, which reach each other by name and by ssh, without a password.

    with Hosts() as hosts:                              # alice and bob
        subprocess.run([*hosts.on("alice"), "ssh", "bob", "hostname"])
        hosts.crash("bob")

Each has a host name, processes, a network (one switch joins them all), a home directory and an sshd of its
own; kernel, clock, CPUs and all other files are this machine's.  All of it ends with the process that has
started it.
"""
from __future__ import annotations

import atexit
import functools
import os
import pathlib
import pwd
import shutil
import subprocess
import tempfile

from tests.rigs import PATH, lacking
from tests.support import wait_until

TOOLS = {"sshd": "openssh-server", "ssh": "openssh-client", "ip": "iproute2", "unshare": "util-linux",
         "nsenter": "util-linux", "setpriv": "util-linux", "pgrep": "procps"}
# for tests of networks (RFC 2544); nothing leaves the switch
NET = "198.18.9"
WITH_US = "setpriv", "--pdeathsig", "KILL"
SWITCH = (
    "mount -t tmpfs none /run; ip link add br0 type bridge; ip link set br0 up; echo up; exec sleep 1000000"
)
PLUG_IN = """
ip netns add $1
ip link add p-$1 type veth peer name eth0 netns $1 address 02:00:00:00:00:0${2##*.}
ip link set p-$1 master br0 up
ip -n $1 link set lo up
ip -n $1 address add $2/24 dev eth0
ip -n $1 link set eth0 up
"""
# A host's first process: its sshd, which must be called by its full path
BOOT = """
hostname $1
mkdir -p /run/sshd
mount --bind {dir}/hosts /etc/hosts
mount --bind {dir}/$1.passwd /etc/passwd
exec {sshd} -D -e -f {dir}/sshd_config
"""
SSHD_CONFIG = """
HostKey {dir}/key
PidFile none
Subsystem sftp internal-sftp
SetEnv PATH={path}
"""


@functools.cache
def missing(**more: str) -> str:
    """What is missing here, as a sentence; empty if hosts can be started.

    more: other tools than TOOLS, with the packages that have them.
    """
    probe = "unshare --net --uts --mount --pid --fork ip link add br0 type bridge"
    return lacking("a network of hosts", {**TOOLS, **more}, probe.split())



class Hosts:
    """Hosts with an sshd each, up from start() to stop().  What is in `bin` their users find on PATH."""

    def __init__(self, *names: str) -> None:
        self.addresses = {name: f"{NET}.{number}" for number, name in enumerate(names or ("alice", "bob"), 1)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Hosts:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    # -- up and down ----------------------------------------------------------------------------------------

    def start(self) -> Hosts:
        """Bring them up, and wait until one can log in."""
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="runmaker4-hosts-", dir="/var/tmp"))
        self.bin = self.dir / "bin"
        self.bin.mkdir()
        self.path = f"{self.bin}:{PATH}"
        atexit.register(self.stop)              # a test that is interrupted does not clean up
        try:
            self._write_files()
            self._start("switch", "unshare", "--mount", "--net", "sh", "-ec", SWITCH)
            wait_until(lambda: b"up\n" in self.log("switch"), 10, "the switch is up")
            for name in self.addresses:
                self.boot(name)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all that runs on them, and forget them."""
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait(30)
        shutil.rmtree(self.dir, ignore_errors=True)
        atexit.unregister(self.stop)

    def boot(self, name: str) -> None:
        """Start a host, and wait until one can log in."""
        self._in_switch(PLUG_IN, name, self.addresses[name])
        boot = BOOT.format(dir=self.dir, sshd=shutil.which("sshd", path=PATH))
        self._start(
            name,
            *self._switch(),
            "ip", "netns", "exec", name, "unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child",
            "--mount-proc", "sh", "-ec", boot, "sh", name,
        )
        wait_until(lambda: b"listening" in self.log(name), 10, f"sshd of {name} listens")
        subprocess.run([*self.on(name), "ssh", name, "true"], check=True, timeout=30)

    def crash(self, name: str) -> None:
        """Power loss: the host is gone before it can say anything, and so is all that ran there."""
        self._in_switch("ip link delete p-$1", name)
        process = self.processes.pop(name)
        process.kill()
        process.wait(30)
        self._in_switch("ip netns delete $1", name)

    # -- on a host ------------------------------------------------------------------------------------------

    def home(self, name: str) -> pathlib.Path:
        return self.dir / name

    def on(self, name: str, directory: object = "") -> list[str]:
        """The words that run a command on a host, in a directory (its home), as one does who is logged in
        there.
        """
        home, parent = self.home(name), str(self.processes[name].pid)
        first = (
            subprocess.run(["pgrep", "-P", parent], check=True, stdout=subprocess.PIPE)
            .stdout.decode()
            .strip()
        )
        return ["nsenter", "-t", first, "-a", f"--wd={directory or home}", "env", "-i",
                f"HOME={home}", f"PATH={self.path}"]

    def log(self, name: str) -> bytes:
        """What a host's sshd has said."""
        return (self.dir / f"{name}.log").read_bytes()

    # -- the parts ------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        """Their names, sshd's configuration, and homes with a key that opens all of them."""
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.dir / "key"], check=True)
        public = (self.dir / "key.pub").read_text()
        (self.dir / "hosts").write_text("127.0.0.1 localhost\n" + "".join(
            f"{address} {name}\n" for name, address in self.addresses.items()))
        (self.dir / "sshd_config").write_text(SSHD_CONFIG.format(dir=self.dir, path=self.path))
        for name in self.addresses:
            keys = self.home(name) / ".ssh"
            keys.mkdir(parents=True, mode=0o700)
            shutil.copy(self.dir / "key", keys / "id_ed25519")
            (keys / "authorized_keys").write_text(public)
            (keys / "known_hosts").write_text(f"* {public}")
            (keys / "config").write_text("ConnectTimeout 20\n")
            users = pathlib.Path("/etc/passwd").read_text()
            (self.dir / f"{name}.passwd").write_text(
                users.replace(f":{pwd.getpwuid(0).pw_dir}:", f":{self.home(name)}:", 1))

    def _start(self, name: str, *words: str) -> None:
        """Start a process that ends with this one."""
        with open(self.dir / f"{name}.log", "wb") as log:
            self.processes[name] = subprocess.Popen([*WITH_US, *words], stdin=subprocess.DEVNULL, stdout=log,
                                                    stderr=log, env={**os.environ, "PATH": PATH})

    def _switch(self) -> list[str]:
        return ["nsenter", "-t", str(self.processes["switch"].pid), "-m", "-n"]

    def _in_switch(self, script: str, *args: str) -> None:
        """Run shell commands in the network of the switch."""
        subprocess.run(
            [*self._switch(), "sh", "-ec", script, "sh", *args],
            check=True,
            timeout=30,
            capture_output=True,
            env={**os.environ, "PATH": PATH},
        )
