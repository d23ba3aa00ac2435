"""Promise: on NFS-Ganesha, a server in user space, no job is lost and none runs twice at once.

With RUNMAKER4_TEST_REAL=1, on machines that are booted once (rigs/nfs.py), over NFSv3 and 4.1: what stands on
how the server keeps locks.
"""
import functools
import unittest

from tests.real.rigs import REAL, machines, nfs
from tests.real.rigs.nfs_case import LEASE, Locks, NfsCase
from tests.support.scripts import ALL

TOOLS = {**nfs.TOOLS, "ganesha.nfsd": "nfs-ganesha",
         "/usr/lib/x86_64-linux-gnu/ganesha/libfsalvfs.so": "nfs-ganesha-vfs"}
# Its grace period cannot end sooner while it serves NFSv3
SERVE = """
rpc.statd -n server
mkdir -p /export /run/ganesha /var/lib/nfs/ganesha
mount --bind /state/export /export
cat >/etc/ganesha/ganesha.conf <<END
NFS_CORE_PARAM { Protocols = 3, 4; mount_path_pseudo = true; }
NFSv4 { Lease_Lifetime = LEASE; Grace_Period = LEASE; RecoveryBackend = fs; }
EXPORT { Export_Id = 77; Path = /export; Pseudo = /export; Access_Type = RW; Squash = No_Root_Squash;
    Protocols = 3, 4; Transports = TCP; FSAL { Name = VFS; } }
END
ulimit -n 4096
ganesha.nfsd -f /etc/ganesha/ganesha.conf -L /tmp/ganesha.log -p /run/ganesha.pid
"""


def setUpModule() -> None:
    if not REAL:
        raise unittest.SkipTest("RUNMAKER4_TEST_REAL is not set: takes a minute")
    if missing := machines.missing(*TOOLS.items()):
        raise unittest.SkipTest(missing)


@functools.cache
def the_rig() -> nfs.Rig:
    """The machines of all tests here."""
    rig = nfs.Rig(lease=LEASE, serve=SERVE)
    rig.__enter__()
    unittest.addModuleCleanup(rig.__exit__)
    return rig


class OnGanesha(NfsCase):

    @classmethod
    def get_rig(cls) -> nfs.Rig:
        return the_rig()


class OnGanesha3(OnGanesha, Locks, unittest.TestCase):
    versions = ("3", "3")


class OnGanesha41(OnGanesha, Locks, unittest.TestCase):
    versions = ("4.1", "4.1")


class OnBoth(OnGanesha, unittest.TestCase):
    versions = ("3", "4.1")

    @unittest.skipUnless(ALL, "RUNMAKER4_TEST_FULL is not all: takes more than a minute")
    def test_each_of_some_jobs_runs_once_and_locks_hold_meanwhile(self) -> None:
        self.check_locks(100)
