"""Promise: on CephFS by the kernel, and on GFS2 with dlm, no job is lost and none runs twice at once; OCFS2
with o2cb is refused.

With RUNMAKER4_TEST_REAL=1, on machines that are booted once (rigs/nfs.py): alice and bob are hosts, and their
server looks at the files as a third one.  CephFS has default options; its servers are on this machine
(rigs/fs.py).  GFS2 and OCFS2 are on a disk that all share.
"""
import functools
import unittest

from tests.real.rigs import REAL, fs, machines, nfs
from tests.real.rigs.nfs_case import GATE, LEASE, Locks, NfsCase, Scenarios, job
from tests.support.scripts import ALL

TOOLS = {**nfs.TOOLS, "corosync": "corosync", "dlm_controld": "dlm-controld", "mkfs.gfs2": "gfs2-utils",
         "mkfs.ocfs2": "ocfs2-tools"}
JOIN_CLUSTER = r"""set -e
mkdir -p /etc/ocfs2 /ocfs2
printf 'cluster:\n\tname = rig\n\tnode_count = 2\n' >/etc/ocfs2/cluster.conf
for node in 0:alice:10.77.0.11 1:bob:10.77.0.12; do
    echo $node | sed 's/\(.*\):\(.*\):\(.*\)/\nnode:\n\tnumber = \1\n\tname = \2\n\tip_address = \3/'
    printf '\tip_port = 7777\n\tcluster = rig\n'
done >>/etc/ocfs2/cluster.conf
modprobe -a ocfs2_stack_o2cb ocfs2_dlm ocfs2_dlmfs
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
o2cb register-cluster rig
"""


COROSYNC = """totem {
version: 2
cluster_name: rig
transport: udpu
crypto_cipher: none
crypto_hash: none
token: TOKEN
}
nodelist {
NODES}
quorum {
provider: corosync_votequorum
}
logging {
to_syslog: no
}
"""
# Nobody can fence a machine here
JOIN_DLM = """set -e
mkdir -p /etc/dlm /dev/misc
modprobe -a gfs2 dlm
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
until corosync-quorumtool -s | grep -q '^Quorate: *Yes'; do sleep 0.2; done
for device in dlm-control dlm-monitor dlm_plock; do ln -sf ../$device /dev/misc/$device; done
dlm_controld --enable_fencing 0
"""


def setUpModule() -> None:
    if not REAL:
        raise unittest.SkipTest("RUNMAKER4_TEST_REAL is not set: takes 10 minutes")
    if missing := machines.missing(*TOOLS.items()) or fs.missing("ceph"):
        raise unittest.SkipTest(missing)


@functools.cache
def the_ceph() -> fs.Rig:
    """The servers of CephFS."""
    rig = fs.Rig("ceph", names=()).start()
    unittest.addModuleCleanup(rig.stop)
    return rig


@functools.cache
def the_rig() -> nfs.Rig:
    """The machines of all tests here."""
    rig = nfs.Rig(lease=LEASE, beside=the_ceph(), disk="512M")
    rig.__enter__()
    unittest.addModuleCleanup(rig.__exit__)
    return rig


class Shared(NfsCase):
    """NFS serves for the marks of jobs alone: `m` is a link to them."""
    versions = ("4.2", "4.2")
    top = ""                # where the file system is mounted that all hosts share

    @classmethod
    def get_rig(cls) -> nfs.Rig:
        return the_rig()

    @classmethod
    def setUpClass(cls) -> None:
        server = cls.get_rig().server
        server.run("ln -sfn /export /nfs", directory="/")
        cls.join(server)
        super().setUpClass()

    @classmethod
    def mount(cls, client: nfs.Machine) -> None:
        super().mount(client)
        cls.join(client)

    @classmethod
    def join(cls, machine: machines.Machine) -> None:
        """Have a machine mount the file system."""
        raise NotImplementedError

    def setUp(self) -> None:
        super().setUp()
        folder = self.server.directory.replace("/export", self.top)
        self.server.run(f"mkdir {folder}; ln -s {self.alice.directory}/m {folder}/m")
        for machine in self.rig.machines:
            machine.directory = folder


class OnCeph(Scenarios, Shared, unittest.TestCase):
    """By the kernel's client."""
    top = "/ceph"

    @classmethod
    def join(cls, machine: machines.Machine) -> None:
        ceph = the_ceph()
        key = ceph.server.run(f"ceph-authtool -p {ceph.dir}/keyring -n client.admin").out.decode().strip()
        machine.run(f"ip address add {fs.NETWORK}{machine.number + 10}/24 dev eth0; modprobe ceph; "
                    "mkdir /ceph; "
                    f"mount -t ceph -o name=admin,secret={key} {fs.SERVER}:6789:/ /ceph", directory="/")

    def test_each_of_many_jobs_runs_once_and_locks_hold_meanwhile(self) -> None:
        self.check_locks(2000)


class OnGfs2(Locks, Shared, unittest.TestCase):
    """On a disk that all hosts have, with the locks of dlm."""
    top = "/gfs2"

    @classmethod
    def setUpClass(cls) -> None:
        for machine in cls.get_rig().machines:      # two of them are a quorum
            cls.start_corosync(machine)
        super().setUpClass()
        cls.addClassCleanup(cls.leave)

    @classmethod
    def start_corosync(cls, machine: machines.Machine, patience: int = 100) -> None:
        """Start it; or give it another patience with a silent host, in seconds."""
        nodes = "".join(f"node {{\nnodeid: {one.number}\nname: {one.name}\nring0_addr: {one.ip}\n}}\n"
                        for one in cls.get_rig().machines)
        machine.run("cat >/etc/corosync/corosync.conf; mkdir -p /run/corosync /var/lib/corosync; "
                    "pgrep -x corosync && corosync-cfgtool -R || corosync", directory="/",
                    data=COROSYNC.replace("NODES", nodes).replace("TOKEN", f"{patience}000"))

    @classmethod
    def join(cls, machine: machines.Machine) -> None:
        cls.start_corosync(machine)
        machine.run(JOIN_DLM, directory="/")
        if machine is cls.get_rig().server:
            machine.run("mkfs.gfs2 -q -O -p lock_dlm -t rig:gfs2 -j 3 -J 16 /dev/ubdb", directory="/")
        # dlm_controld can have heard of corosync, and not yet be connected
        machine.run("mkdir -p /gfs2; until mount -t gfs2 /dev/ubdb /gfs2; do sleep 0.2; done", directory="/")

    @classmethod
    def leave(cls) -> None:
        for machine in cls.rig.machines:
            machine.run("umount /gfs2", directory="/")

    @unittest.skipUnless(ALL, "RUNMAKER4_TEST_FULL is not all: takes more than a minute")
    def test_each_of_some_jobs_runs_once_and_locks_hold_meanwhile(self) -> None:
        self.check_locks(100)

    def test_a_host_loses_power(self) -> None:
        self.server.write("runs.txt", job(1, GATE) + job(2, GATE))
        self.start(self.alice, "runmaker4.py -q -j2 runs.txt")
        self.wait_marks("^start", 2)
        other = self.start(self.bob, "runmaker4.py -j2 --resume --follow runs.txt")
        self.open_gate(self.bob)
        living = self.server, self.bob
        for machine in living:
            self.start_corosync(machine, patience=10)
        self.lose_power(self.alice)
        self.wait_states("dd")
        for machine in living:
            self.start_corosync(machine)
        self.drain(other)
        self.assertRanOnce(2)

    def test_a_mount_that_keeps_its_locks_to_itself_is_refused(self) -> None:
        self.server.write("runs.txt", job(1))
        directory, self.alice.directory = self.alice.directory, "/"
        self.addCleanup(self.alice.run, "umount /gfs2; mount -t gfs2 /dev/ubdb /gfs2", directory="/")
        self.alice.run("umount /gfs2; mount -t gfs2 -o localflocks /dev/ubdb /gfs2")
        self.alice.directory = directory
        for command in "runmaker4.py", "runset4.py --add=true", "runmaker4-server.py --port 0":
            said = self.finish(self.start(self.alice, f"{command} runs.txt"), 2)
            self.assertIn("localflocks", said)
        check = self.start(self.alice, "runwait4.py --check-locks .").wait()
        self.assertEqual(check.code, 1, str(check))
        self.assertIn(b"localflocks", check.out)
        self.assertNotIn("not tested", self.finish(self.start(self.bob, "runmaker4.py runs.txt")))
        self.assertRanOnce(1)


class OnOcfs2(unittest.TestCase):
    """With the cluster stack of its own, o2cb: what a host has locked there, others can lock, too."""

    def test_runners_refuse_it_and_check_locks_says_why(self) -> None:
        hosts = the_rig().clients
        for host in hosts:
            host.directory = "/"
            host.run(JOIN_CLUSTER)
        hosts[0].run("wipefs -aq /dev/ubdb; "
                     "mkfs.ocfs2 -q -N 2 --cluster-stack=o2cb --cluster-name=rig /dev/ubdb; sync")
        for host in hosts:
            self.addCleanup(host.run, "umount /ocfs2")
            host.run("mount -t ocfs2 /dev/ubdb /ocfs2; echo . true >/ocfs2/runs.txt")
        refused = hosts[0].run("runmaker4.py /ocfs2/runs.txt", check=False)
        self.assertEqual(refused.code, 2, str(refused))
        self.assertIn(b"o2cb: locks do not reach other hosts", refused.err)
        checks = [host.popen("runwait4.py --check-locks /ocfs2") for host in hosts]
        for check in checks:
            check.wait()
            self.assertEqual(check.code, 1, str(check))
            self.assertIn(b"NO   is on OCFS2 with the cluster stack o2cb: locks do not reach", check.out)
