"""Promise: on CephFS by the kernel no job is lost and none runs twice at once; OCFS2 with o2cb is refused.

With RUNMAKER4_TEST_REAL=1, on machines that are booted once (rigs/nfs.py): alice and bob are
hosts.  CephFS has default options; its servers are on this machine (rigs/fs.py), and the machines'
server looks at it as a third host.  OCFS2 is on a disk that alice and bob share.
"""
import functools
import unittest

from tests.real.rigs import REAL, fs, machines, nfs
from tests.real.rigs.nfs_case import LEASE, NfsCase, Scenarios

TOOLS = {**nfs.TOOLS, "mkfs.ocfs2": "ocfs2-tools"}
JOIN_CLUSTER = r"""set -e
mkdir -p /etc/ocfs2 /ocfs2
printf 'cluster:\n\tname = rig\n\tnode_count = 2\n' >/etc/ocfs2/cluster.conf
for node in 0:alice:10.77.0.11 1:bob:10.77.0.12; do
    echo $node | sed 's/\(.*\):\(.*\):\(.*\)/\nnode:\n\tnumber = \1\n\tname = \2\n\tip_address = \3/'
    printf '\tip_port = 7777\n\tcluster = rig\n'
done >>/etc/ocfs2/cluster.conf
modprobe -a ocfs2_stack_o2cb ocfs2_dlm ocfs2_dlmfs
mount -t configfs none /sys/kernel/config
o2cb register-cluster rig
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


class OnCeph(Scenarios, NfsCase, unittest.TestCase):
    """By the kernel's client.  NFS serves for the marks of jobs alone: `m` is a link to them."""
    versions = ("4.2", "4.2")

    @classmethod
    def setUpClass(cls) -> None:
        cls.rig = the_rig()
        cls.server, (cls.alice, cls.bob) = cls.rig.server, cls.rig.clients
        ceph = the_ceph()
        key = ceph.server.run(f"ceph-authtool -p {ceph.dir}/keyring -n client.admin").out.decode().strip()
        for number, machine in enumerate(cls.rig.machines, 11):
            machine.run(
                f"ip address add {fs.NETWORK}{number}/24 dev eth0; modprobe ceph; mkdir /ceph; "
                f"mount -t ceph -o name=admin,secret={key} {fs.SERVER}:6789:/ /ceph",
                directory="/",
            )
        cls.server.run("ln -s /export /nfs", directory="/")
        for client in cls.rig.clients:
            cls.mount(client)

    def setUp(self) -> None:
        super().setUp()
        folder = self.server.directory.replace("/export", "/ceph")
        self.server.run(f"mkdir {folder}; ln -s {self.alice.directory}/m {folder}/m")
        for machine in self.rig.machines:
            machine.directory = folder

    def test_each_of_many_jobs_runs_once_and_locks_hold_meanwhile(self) -> None:
        jobs = 2000
        lines = [f". echo {number} >>/tmp/ran\n" for number in range(1, jobs + 1)]
        self.server.write("runs.txt", "".join(lines))
        checks = [self.start(client, "runwait4.py --check-locks .") for client in self.rig.clients]
        runners = [self.start(client, "runmaker4.py -q -j2 runs.txt") for client in self.rig.clients]
        for runner in runners:
            self.finish(runner, timeout=3 * nfs.SLOW)
        ran = [client.run("cat /tmp/ran; rm /tmp/ran").out for client in self.rig.clients]
        self.assertEqual(sorted(map(int, b"".join(ran).split())), list(range(1, jobs + 1)))
        self.assertTrue(all(ran), "both have run jobs")
        self.assertEqual(self.states(), "d" * jobs)
        for check in checks:
            with self.subTest(f"{check.machine.name} says yes"):
                self.finish(check)
                for client in self.rig.clients:
                    self.assertRegex(check.out.decode(), f"additions by {client.name} ")
                self.assertNotIn(b"NO  ", check.out)


class OnOcfs2(unittest.TestCase):
    """With the cluster stack of its own, o2cb: what a host has locked there, others can lock, too."""

    def test_runners_refuse_it_and_check_locks_says_why(self) -> None:
        hosts = the_rig().clients
        for host in hosts:
            host.directory = "/"
            host.run(JOIN_CLUSTER)
        hosts[0].run("mkfs.ocfs2 -q -N 2 --cluster-stack=o2cb --cluster-name=rig /dev/ubdb; sync")
        for host in hosts:
            host.run("mount -t ocfs2 /dev/ubdb /ocfs2; echo . true >/ocfs2/runs.txt")
        refused = hosts[0].run("runmaker4.py /ocfs2/runs.txt", check=False)
        self.assertEqual(refused.code, 2, str(refused))
        self.assertIn(b"o2cb: locks do not reach other hosts", refused.err)
        checks = [host.popen("runwait4.py --check-locks /ocfs2") for host in hosts]
        for check in checks:
            check.wait()
            self.assertEqual(check.code, 1, str(check))
            self.assertIn(b"NO   is on OCFS2 with the cluster stack o2cb: locks do not reach", check.out)
