"""Real hosts on one machine, which reach each other by name and by ssh, without a password.

    with Hosts() as hosts:                              # alice and bob
        subprocess.run([*hosts.on("alice"), "ssh", "bob", "hostname"])
        hosts.crash("bob")

They are the hosts of fs.py, without its file system, and have a home directory and an sshd each.
"""
from __future__ import annotations

import functools
import pathlib
import pwd
import shutil
import subprocess

from tests.real.rigs import PATH, fs, lacking
from tests.support.processes import DEADLINE, wait_until

TOOLS = {"sshd": "openssh-server", "ssh": "openssh-client", "ip": "iproute2", "unshare": "util-linux",
         "nsenter": "util-linux", "setpriv": "util-linux"}
# sshd must be called by its full path
SSHD = """
mkdir -p /run/sshd
mount --bind {dir}/hosts /etc/hosts
mount --bind {dir}/{name}/passwd /etc/passwd
exec {sshd} -D -e -f {dir}/sshd_config
"""
SSHD_CONFIG = """
HostKey {dir}/key
PidFile none
Subsystem sftp internal-sftp
SetEnv PATH={dir}/bin:{path}
"""


@functools.cache
def missing(**more: str) -> str:
    """What is missing here, as a sentence; empty if hosts can be started.

    more: other tools than TOOLS, with the packages that have them.
    """
    probe = "unshare --net --uts --mount --pid --fork ip link add br0 type bridge"
    return lacking("a network of hosts", {**TOOLS, **more}, probe.split())


class Hosts(fs.Rig):
    """Hosts with an sshd each, up from start() to stop().  What is in `bin` their users find on PATH."""

    def __init__(self) -> None:
        self.add_hosts(("alice", "bob"))

    def set_up(self) -> None:
        """Write their names, sshd's configuration, and a key that opens all homes; start sshd on each."""
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.dir / "key"], check=True)
        (self.dir / "hosts").write_text("127.0.0.1 localhost\n" + "".join(
            f"{host.address} {name}\n" for name, host in self.hosts.items()))
        (self.dir / "sshd_config").write_text(SSHD_CONFIG.format(dir=self.dir, path=PATH))
        for host in self.hosts.values():
            self.furnish(host)
            self.start_sshd(host)

    def furnish(self, host: fs.Host) -> None:
        """Make the home of root on a host."""
        public = (self.dir / "key.pub").read_text()
        keys = host.dir / ".ssh"
        keys.mkdir(mode=0o700)
        shutil.copy(self.dir / "key", keys / "id_ed25519")
        (keys / "authorized_keys").write_text(public)
        (keys / "known_hosts").write_text(f"* {public}")
        (keys / "config").write_text("ConnectTimeout 60\n")
        users = pathlib.Path("/etc/passwd").read_text()
        (host.dir / "passwd").write_text(users.replace(f":{pwd.getpwuid(0).pw_dir}:", f":{host.dir}:", 1))

    def start_sshd(self, host: fs.Host) -> None:
        """Wait until one can log in."""
        sshd = host.popen(SSHD.format(dir=self.dir, name=host.name, sshd=shutil.which("sshd", path=PATH)))
        wait_until(lambda: b"listening" in sshd.err, what=f"sshd of {host.name} listens")
        subprocess.run([*self.on(host.name), "ssh", host.name, "true"], check=True, timeout=DEADLINE)

    def boot(self, name: str) -> None:
        self.hosts[name].boot()
        self.start_sshd(self.hosts[name])

    def crash(self, name: str) -> None:
        """Power loss: the host is gone before it can say anything, and so is all that ran there."""
        self.hosts[name].kill()

    def home(self, name: str) -> pathlib.Path:
        return self.hosts[name].dir

    def on(self, name: str, directory: object = "") -> list[str]:
        """The words that run a command on a host, in a directory (its home), as for who is logged in."""
        home = self.home(name)
        return [*self.hosts[name].inside(), f"--wd={directory or home}", "env", "-i",
                f"HOME={home}", f"PATH={self.dir}/bin:{PATH}"]
