"""A real NFS server and its clients: machines with kernels of their own (machines.py).

    with Rig(clients=("alice", "bob"), lease=15) as rig:
        alice, bob = rig.clients
        alice.mount("4.2")                          # the server's /export, on /nfs
        alice.run("runmaker4.py runs.txt")          # our scripts are on PATH

They can be hosts of other file systems, too: of one whose servers fs.py starts on this machine
(Rig(beside=...)), or of one on a disk that all have (Rig(disk="256M"): /dev/ubdb).
"""
from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from tests.real.rigs import PATH, machines
from tests.real.rigs.machines import SLOW, Beside, Command, Machines

__all__ = ["SLOW", "Command", "Machine", "Rig", "missing"]

TOOLS = {**machines.TOOLS, "mkfs.ext4": "e2fsprogs", "rpc.nfsd": "nfs-kernel-server",
         "mount.nfs": "nfs-common", "rpcbind": "rpcbind"}
# /state outlives a power loss: what statd and nfsd must remember, and the exported files
REMEMBER = """
mkdir -p /state /run/rpcbind /run/rpc_pipefs /run/sendsigs.omit.d
mount -t ext4 /dev/ubda /state
[ -d /state/nfs ] || { cp -a /var/lib/nfs /state/nfs; mkdir -m 1777 /state/export; }
mount --bind /state/nfs /var/lib/nfs
modprobe -a lockd
mount -t rpc_pipefs sunrpc /run/rpc_pipefs
rpcbind -w
"""
# Clients hear by NFSv3's statd that they must claim their locks anew, and take seconds here; Linux gives them
# 50.  The grace period of NFSv4 ends sooner if all have claimed their locks anew; until then TCP may wait as
# long as the server was away.  The file system of / cannot be exported, not even as the root of NFSv4
SERVE = """
echo 3 >/proc/sys/fs/nfs/nlm_timeout; echo 9 >/proc/sys/fs/nfs/nlm_grace_period
rpc.statd -n server
modprobe nfsd; mount -t nfsd nfsd /proc/fs/nfsd
mkdir -p /export; mount --bind /state/export /export
printf '[exports]\nrootdir=/state\n' >>/etc/nfs.conf
echo '/export *(rw,sync,no_root_squash,no_subtree_check,insecure,fsid=77)' >/etc/exports
echo LEASE >/proc/fs/nfsd/nfsv4leasetime; echo 90 >/proc/fs/nfsd/nfsv4gracetime
mkdir -p /var/lib/nfs/nfsdcld; nfsdcld
exportfs -ra; rpc.mountd; rpc.nfsd 8
sync
"""
ATTEND = """
modprobe -a nfs nfsv3 nfsv4
rpc.statd -n {name}
sync
"""


def missing() -> str:
    """What is missing here, or ''; installs what machines need, where it may."""
    return machines.missing(*TOOLS.items())


class Machine(machines.Machine):
    """A machine that can mount the export."""

    def mount(self, version: str, options: str = "") -> None:
        """Mount the server's export on /nfs, and go there."""
        self.run(f"mkdir -p /nfs && mount -t nfs -o {','.join(filter(None, [f'vers={version}', options]))} "
                 "server:/export /nfs", directory="/")
        self.directory = "/nfs"

    def umount(self) -> None:
        self.directory = "/root"
        self.run("umount -f /nfs || umount -l /nfs")


class Rig(Machines):
    """A server and its clients, booted.

    lease: for how long NFSv4 keeps the locks of a client that is silent, in seconds.  beside: the servers of
    another file system, whose network is one with that of the machines.  disk: the size of a disk that all
    share.  serve: what the server does to export its /state/export as /export.
    """

    def __init__(self, clients: Sequence[str] = ("alice", "bob"), lease: int = 15,
                 beside: Beside | None = None, disk: str = "", serve: str = SERVE) -> None:
        super().__init__(beside)
        self.names, self.size, self.serve = clients, disk, serve.replace("LEASE", str(lease))

    def __enter__(self) -> Rig:
        super().__enter__()
        try:
            self.server = self.join("server", 1, self.serve)
            self.clients = [self.join(name, number, ATTEND.format(name=name))
                            for number, name in enumerate(self.names, 11)]
            if self.size:
                shared = self.disk("shared", self.size)
                for machine in self.machines:
                    machine.disks.append(shared)
            self.boot()
        except BaseException:
            self.__exit__()
            raise
        self.server.directory = "/export"
        return self

    def join(self, name: str, number: int, setup: str) -> Machine:
        """Add a machine with a disk for what it must remember."""
        disk = self.disk(f"{name}.state", "256M")
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(disk)], check=True, capture_output=True,
                       stdin=subprocess.DEVNULL, env={**os.environ, "PATH": PATH})
        return self.add(Machine(self, name, number, [disk], setup=REMEMBER + setup))
