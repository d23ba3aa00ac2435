"""Promise: on a network file system the job file is read and written as it stands there."""
import contextlib
import errno
import fcntl
import os
import random
from unittest import mock

import runmaker4
from tests.support.claims import JobFileCase, job_of
from tests.support.job_file import FileCase


class PastTheCache(JobFileCase):
    """Network file systems: lines are read as they are there, and written there."""

    def run_two_jobs(self) -> list[str]:
        """Claim and finish two jobs on such a file system; what was said."""
        said: list[str] = []
        cursor = self.jobs(b". a\n. b\n", mount=runmaker4.Mount("nfs4", frozenset()), say=said.append)
        for _ in range(2):
            self.assertEqual(cursor.finish(job_of(cursor.claim()), b"d"), "")
        self.assertEqual(self.path.read_bytes(), b"d a\nd b\n")
        return said

    def test_all_reads_are_direct_in_whole_blocks_and_writes_are_synced(self) -> None:
        calls, preadv, pwrite, fsync = [], os.preadv, os.pwrite, os.fsync

        def is_direct(fd: int) -> bool:
            return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)

        def read(fd: int, buffers: list[memoryview], at: int) -> int:
            self.assertEqual((is_direct(fd), at % 4096, len(buffers[0]) % 4096), (True, 0, 0))
            calls.append("read")
            return preadv(fd, buffers, at)

        def write(fd: int, data: bytes, at: int) -> int:
            self.assertFalse(is_direct(fd))
            calls.append("write")
            return pwrite(fd, data, at)

        def sync(fd: int) -> None:
            calls.append("sync")
            fsync(fd)

        self.path.write_bytes(b"")
        try:
            os.close(os.open(self.path, os.O_RDONLY | os.O_DIRECT))
        except OSError:
            self.skipTest("no O_DIRECT on the file system of the tests")
        with mock.patch.multiple(os, preadv=read, pwrite=write, fsync=sync), \
                mock.patch.object(os, "pread", side_effect=AssertionError("a plain read")):
            self.assertEqual(self.run_two_jobs(), [])
        kinds = [call for call, before in zip(calls, ["", *calls]) if call != before]
        self.assertEqual(kinds, ["read", "write", "sync"] * 4)

    def test_blocks_give_what_plain_reads_give(self) -> None:
        random_ = random.Random(25)
        with open(self.path, "wb+", buffering=0) as file:
            for size in 0, 1, 4095, 4096, 4097, 8192, 20_000:
                file.truncate(0)
                os.pwrite(file.fileno(), random_.randbytes(size), 0)
                with runmaker4.Reader.with_own_fd(file.fileno(), True) as reader:
                    for _ in range(200):
                        at, count = random_.randrange(size + 5000), random_.choice([0, 1, 4095, 4096, 30_000])
                        expected = os.pread(file.fileno(), count, at)
                        self.assertEqual(reader.pread(count, at), expected, (size, at, count))

    def test_where_opening_with_o_direct_is_refused_pages_are_dropped_and_that_is_said_once(self) -> None:
        right = os.open

        def refuse(path: str, flags: int, *more: int) -> int:
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return right(path, flags, *more)

        with mock.patch.object(os, "open", refuse), mock.patch.object(os, "posix_fadvise") as advised:
            self.assertEqual(["refuses O_DIRECT" in text for text in self.run_two_jobs()], [True])
        self.assertEqual({call.args[3] for call in advised.mock_calls}, {os.POSIX_FADV_DONTNEED})


class DeadClients(JobFileCase):
    """A file system whose client on this host was killed answers ENOTCONN for ever (FUSE)."""

    def cut_off(self) -> contextlib.AbstractContextManager[mock.MagicMock]:
        return mock.patch.object(os, "open",
                                 side_effect=OSError(errno.ENOTCONN, "Transport endpoint is not connected"))

    def setUp(self) -> None:
        super().setUp()
        self.cursor = self.jobs(b". a\n", mount=runmaker4.Mount("fuse.new", frozenset()))
        self.job = job_of(self.cursor.claim())

    def fail_for(self, seconds: int) -> None:
        """Try to write the result for so long, in vain."""
        with self.cut_off():
            for _ in range(seconds):
                with self.assertRaises(runmaker4.TemporaryError):
                    self.cursor.finish(self.job, b"d")
                self.clock.now += 1

    def test_a_result_is_given_up_after_a_minute(self) -> None:
        self.fail_for(60)
        with self.cut_off():
            self.assertIn("client of the file system has died", self.cursor.finish(self.job, b"d"))
        self.assertEqual(self.cursor.queue.claimed, {})

    def test_one_that_comes_back_gets_its_result(self) -> None:
        for _ in range(3):                      # the minute begins anew each time
            self.fail_for(40)
            self.cursor.queue.open_files()
        self.assertEqual(self.cursor.finish(self.job, b"d"), "")
        self.assertEqual(self.path.read_bytes(), b"d a\n")


class Mounts(FileCase):
    """The mount of a file is found in the kernel's list."""

    TABLE = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw,relatime shared:2 - nfs4 server:/home rw,vers=4.2,local_lock=none
31 30 0:41 / /home/with\040blank rw - nfs server:/b rw,vers=3,local_lock=posix
32 22 0:42 / /homes rw - tmpfs tmpfs rw
33 30 0:43 / /home/over rw - ext4 /dev/sdb1 rw
34 33 0:44 / /home/over rw - fuse.sshfs user@host:/ rw
35 22 0:45 / /mfs rw - fuse mfs\04310.0.0.1:9421 rw
36 22 0:46 / /bind rw - fuse /some/folder rw
37 22 0:47 / /without/source rw - nfs  rw,vers=3,nolock
38 32 0:48 / /home/over/lay rw - overlay overlay rw,lowerdir=/a,upperdir=/home/upper,workdir=/home/work
39 22 0:49 / /crypt rw - ecryptfs /home/lower rw
40 22 0:50 / /private rw - ecryptfs /lower rw
41 22 0:51 / /host rw - hostfs none rw,/srv
42 22 0:52 / /in/place rw - ecryptfs /in/place rw
43 30 0:53 / /home/in/place rw - ecryptfs /home/in/place rw
"""

    def test_the_innermost_mount_counts_and_the_last_one_there(self) -> None:
        self.path.write_text(self.TABLE)
        with mock.patch.object(runmaker4, "MOUNTINFO", str(self.path)):
            for path, kind in (("/runs.txt", "ext4"), ("/home/runs.txt", "nfs4"), ("/home", "nfs4"),
                               ("/home/with blank/runs.txt", "nfs"), ("/home/with", "nfs4"),
                               ("/homes/runs.txt", "tmpfs"), ("/homeless/runs.txt", "ext4"),
                               ("/home/over/a/runs.txt", "fuse.sshfs"), ("/mfs/runs.txt", "fuse.mfs"),
                               ("/home/over/lay/runs.txt", "overlay"),
                               ("/bind/runs.txt", "fuse"), ("/without/source/runs.txt", "nfs")):
                with self.subTest(path=path):
                    self.assertEqual(runmaker4.find_mount(path).kind, kind)
            self.assertIn("local_lock=posix", runmaker4.find_mount("/home/with blank/runs.txt").options)
            self.assertIn("nolock", runmaker4.find_mount("/without/source/runs.txt").options)

    def test_ecryptfs_is_where_its_lower_directory_is_and_keeps_locks_to_itself(self) -> None:
        self.path.write_text(self.TABLE)
        with mock.patch.object(runmaker4, "MOUNTINFO", str(self.path)):
            for path in "/private/runs.txt", "/in/place/runs.txt":
                self.assertFalse(runmaker4.check_mount(path, single_host=False).network)
            for path, kind in (("/crypt/runs.txt", "ecryptfs above nfs4"), ("/host/runs.txt", "hostfs"),
                               ("/home/in/place/runs.txt", "ecryptfs above nfs4")):
                with self.assertRaisesRegex(runmaker4.UsageError, f"is on {kind}: locks do not reach other"):
                    runmaker4.check_mount(path, single_host=False)
                self.assertTrue(runmaker4.check_mount(path, single_host=True).network)

    def test_all_that_is_not_known_to_be_of_one_host_is_a_network_file_system(self) -> None:
        for kind in "ext4", "xfs", "btrfs", "tmpfs", "zfs", "overlay", "fuseblk", "fuse.fuse-overlayfs", "":
            self.assertFalse(runmaker4.Mount(kind, frozenset()).network, kind)
        for kind in "nfs nfs4 lustre ceph gpfs ocfs2 gfs2 9p virtiofs fuse fuse.mfs fuse.new new".split():
            mount, reads_as_fuse = runmaker4.Mount(kind, frozenset()), kind.startswith(("fuse", "virtiofs"))
            self.assertEqual((mount.network, mount.is_fuse), (True, reads_as_fuse), kind)


class Messages(FileCase):
    """What several hosts append to one file."""

    def test_each_host_asks_for_the_size_before_it_appends(self) -> None:
        """With O_APPEND, ceph-fuse writes at the size that this host knows."""
        self.path.touch()
        hosts = [self.open(os.O_WRONLY | os.O_APPEND) for _ in "ab"]
        sizes, store, fstat = dict.fromkeys(hosts, 0), self.open(os.O_WRONLY), os.fstat

        def ask(fd: int) -> os.stat_result:
            sizes[fd] = fstat(fd).st_size
            return fstat(fd)

        def write(fd: int, data: bytes) -> int:
            return os.pwrite(store, data, sizes[fd])

        with mock.patch.multiple(os, fstat=ask, write=write):
            for host in hosts * 2:
                runmaker4.write_all(host, b"a line\n")
        self.assertEqual(self.path.read_text(), "a line\n" * 4)
