"""Promise: what cannot work is refused in one line, before anything runs; -j0 takes its share."""
import itertools
import os
import shutil
import subprocess
import unittest
from typing import Any, Optional
from unittest import mock

import runmaker4
from tests.support.limits import LimitedCase
from tests.support.permissions import bound_by_permissions
from tests.support.refusals import RefusalCase
from tests.support.runs import hastened
from tests.support.scripts import RUNMAKER, RUNSERVER, RUNSET, RUNWAIT
from tests.support.values import present

NUMBERS = ("--jobs=x", "--jobs=-1", "--jobs=1.5", "--jobs=", "--retries=x", "--retries=-1", "--loglines=x",
           "--timeout=5y", "--walltime=soon", "--walltime=300%", "--timeout=0%", "--timeout=-5%",
           "--timeout=x%", "--timeout=300%%")


class JobFiles(RefusalCase):
    """A job file that is none, or that cannot be used."""

    CALLS = (RUNMAKER,), (RUNSET, "--list"), (RUNSET, "--all", "--set=."), (RUNWAIT,)

    def test_a_missing_file_a_directory_and_a_fifo(self) -> None:
        (self.dir / "runs").mkdir()
        os.mkfifo(self.dir / "fifo")
        for name, words in ("missing.txt", "missing.txt"), ("runs", "runs directory"), ("fifo", "fifo"):
            self.refuse_all([(*call, name) for call in self.CALLS], words)
        self.assertFalse(self.exists("missing.txt"))
        # following waits for a file, but not for this
        self.refuse(RUNMAKER, "--follow", "runs", words="runs directory")

    def test_a_companion(self) -> None:
        self.write("", ".runs.txt.lock")
        calls = *self.CALLS, (RUNMAKER, "--follow"), (RUNSERVER,), (RUNSET, "--edit")
        for name in ".runs.txt.lock", f"{self.dir}/.runs.txt.lock":
            self.refuse_all([(*call, name) for call in calls],
                            ".lock' is not a job file, but the lock file of runs.txt")

    def test_a_file_that_one_may_not_read(self) -> None:
        bound = bound_by_permissions(self)
        self.write(". touch ran\n", "secret.txt").chmod(0)
        self.refuse_all([(*call, "secret.txt") for call in self.CALLS], "secret.txt", **bound)

    def test_a_file_that_one_may_not_write(self) -> None:
        bound = bound_by_permissions(self)
        (self.dir / "runs.txt").chmod(0o444)
        self.refuse(RUNMAKER, "runs.txt", words="runs.txt", **bound)
        self.refuse(RUNSET, "--all", "--set=x", "runs.txt", words="runs.txt", **bound)


class Arguments(RefusalCase):
    """A command line that makes no sense."""

    def test_bad_numbers_and_durations(self) -> None:
        for call, ended in self.run_all((RUNMAKER, word, "runs.txt") for word in NUMBERS):
            with self.subTest(call=call):
                self.assertRefused(ended, f"{RUNMAKER}: ", call[1].partition("=")[0])
        self.assertUntouched()

    def test_what_was_meant_is_told(self) -> None:
        self.refuse(RUNMAKER, "--retries", "-1", "runs.txt", words="OPTION=ARGUMENT")
        self.refuse(RUNMAKER, "", words="FILE: is empty")
        self.refuse_all([(RUNMAKER,), (RUNWAIT,)], "FILE")

    def test_a_host_without_proc(self) -> None:
        """Or with that of another PID namespace: the numbers there are those of other processes."""
        hide = "import os\nos.path.realpath = lambda path: "
        for found in "'/proc/self'", "f'/proc/{os.getpid() + 1}'":
            ended = self.finish(self.start_patched(hide + found, "runs.txt"))
            self.assertRefused(ended, "/proc is not mounted, or that of another PID namespace")
        self.assertUntouched()


class Outputs(RefusalCase):
    """A log, an output directory, a job log, an errors file or a pid file that cannot be used."""
    RECORDS = "--logfile", "--joblog"

    def test_a_directory_in_place_of_a_file_or_one_that_is_not_there(self) -> None:
        (self.dir / "place").mkdir()
        for name in "place", "nowhere/log":
            self.refuse_all([(RUNMAKER, f"{option}={name}", "runs.txt") for option in self.RECORDS], name)
        others = [(RUNMAKER, "-d", f"{option}=place", "runs.txt") for option in ("--pidfile", "--errors")]
        self.refuse_all(others, "place")

    def test_a_log_that_one_may_not_write(self) -> None:
        self.write("", "log")
        bound = bound_by_permissions(self)
        (self.dir / "log").chmod(0o444)
        self.refuse_all([(RUNMAKER, f"{option}=log", "runs.txt") for option in self.RECORDS], "log", **bound)

    def test_a_job_log_of_another_format(self) -> None:
        for text in "hello\n", "Seq\tHost\n", "runs,1,2\n":
            with self.subTest(text=text):
                self.write(text, "joblog")
                self.refuse(RUNMAKER, "--joblog=joblog", "runs.txt", words="joblog")
                self.assertEqual(self.read("joblog"), text.encode())

    def test_the_job_file_as_stdout_or_stderr(self) -> None:
        """What the job prints would become a job."""
        calls = [RUNMAKER], [RUNSERVER], [RUNMAKER, "--dry-run"]
        for (script, *how), name in itertools.product(calls, ("stdout", "stderr")):
            with self.subTest(script, stream=name, how=how), open(self.dir / "runs.txt", "ab") as file:
                streams: dict[str, Any] = {name: file}
                ended = self.finish(self.start(script, *how, "runs.txt", **streams))
                said = f"{script}: runs.txt: {name} goes to this file".encode()
                self.assertEqual(ended.code, 2)
                self.assertIn(said, self.read() if name == "stderr" else ended.err)
                self.assertFalse(self.exists("ran"))
            self.jobs("touch ran")


class Mounts(RefusalCase):
    """A file system that does not share locks between hosts is refused without --single-host, or has none."""
    # The kernel does not list the locks that a FUSE daemon keeps
    KEPT_BY_DAEMON = """
import io
def hide_locks(path, *args, **options):
    file = open(path, *args, **options)
    if not str(path).startswith("/proc/self/fdinfo/"):
        return file
    with file:
        return io.BytesIO(b"".join(line for line in file if not line.startswith(b"lock:")))
runmaker4.open = hide_locks
"""

    def start_mounted(self, kind: str, options: str, *args: str, file: str = "runs.txt", place: str = "",
                      patch: str = "", script: str = RUNMAKER) -> subprocess.Popen[bytes]:
        """Start with a made-up mount of the test's directory, or of a place in it."""
        device = os.stat(self.dir).st_dev
        lines = ["22 1 250:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw",
                 f"36 22 {os.major(device)}:{os.minor(device)} / {self.dir / place} rw,relatime - {kind} "
                 f"server:/x {options}"]
        name = f"mountinfo.{len(self.started)}"
        self.write("\n".join(lines) + "\n", name)
        patch = f"import runmaker4; runmaker4.MOUNTINFO = {name!r}\n{patch}"
        return self.start_patched(patch, *args, file, script=script)

    def assertAccepted(self, runner: subprocess.Popen[bytes]) -> None:
        ended = self.finish(runner)
        self.assertEnded(ended, 0, "d")
        self.assertEqual(ended.err.count(b"\n"), 1, f"nothing but the closing line: {ended.err!r}")

    def test_mounts_that_share_no_locks(self) -> None:
        mounts = (("nfs", "rw,vers=3,nolock,proto=tcp", "nolock"),
                  ("nfs", "rw,vers=3,local_lock=posix,proto=tcp", "local_lock"),
                  ("nfs", "rw,vers=3,local_lock=all", "local_lock"), ("lustre", "rw,localflock", "Lustre"),
                  ("lustre", "rw,noflock", "Lustre"), ("gfs2", "rw,localflocks", "GFS2"),
                  ("ocfs2", "rw,cluster_stack=o2cb", "o2cb"),
                  ("ocfs2", "rw,coherency=full", "o2cb"), ("9p", "rw,trans=virtio", "9p"),
                  ("cifs", "rw,vers=3.0,nobrl", "do not reach"), ("cifs", "rw,vers=3.0", "nobrl"))
        runners = [self.start_mounted(kind, options) for kind, options, _ in mounts]
        for (kind, options, word), runner in zip(mounts, runners):
            with self.subTest(kind=kind, options=options):
                self.assertRefused(self.finish(runner), "runs.txt", word, "--single-host")
        self.assertUntouched()

    def test_mounts_that_share_locks(self) -> None:
        for kind, options in (("nfs4", "rw,vers=4.2,local_lock=none"), ("fuse.glusterfs", "rw"),
                              ("ceph", "rw,acl"), ("nfs", "rw,vers=3,local_lock=flock"),
                              ("xfs", "rw,nolock-not-really")):
            with self.subTest(kind=kind, options=options):
                self.jobs("true")
                self.assertAccepted(self.start_mounted(kind, options, patch=self.KEPT_BY_DAEMON))
        self.jobs("true")
        self.assertAccepted(self.start_mounted("nfs", "rw,vers=3,nolock", "--single-host"))

    def test_fuse_is_refused_where_this_host_keeps_the_locks(self) -> None:
        """As it does here.  Each program that writes the file asks the kernel, and leaves it as it is."""
        calls = ((RUNMAKER, "runs.txt"), (RUNSERVER, "runs.txt", "--port=0"), (RUNSET, "runs.txt", "--add=a"),
                 (RUNSET, "runs.txt", "--all", "--set=x"), (RUNSET, "new.txt", "--add=a"))
        for kind in "fuse.sshfs", "virtiofs":
            started = [self.start_mounted(kind, "rw", *options, file=name, script=script)
                       for script, name, *options in calls]
            for call, process in zip(calls, started):
                with self.subTest(kind=kind, call=call):
                    self.assertRefused(self.finish(process), call[1], f"is on {kind}", "reach other hosts",
                                       "--single-host")
        self.assertUntouched()
        self.assertFalse(self.exists("new.txt"))

    def test_a_file_that_comes_later_is_refused_too(self) -> None:
        patch = hastened(0.1, 0.02)
        runner = self.start_mounted("fuse.bindfs", "rw", "--follow", file="new.txt", patch=patch)
        said = present(runner.stderr)
        self.assertIn(b"not tested", said.readline())
        self.assertIn(b"waiting for it", said.readline())
        self.write(". touch ran\n", "new.txt")
        ended = self.finish(runner)
        self.assertEqual((ended.code, self.states("new.txt")), (1, "."))
        self.assertComplains(ended, "locks do not reach other hosts")
        self.assertUntouched()

    def test_a_folder_that_may_not_be_listed_on_fuse(self) -> None:
        bound = bound_by_permissions(self)
        os.close(os.open(self.dir / ".runs.txt.lock", os.O_CREAT, 0o600))
        self.addCleanup(self.dir.chmod, 0o755)
        for kind, code in ("fuse.glusterfs", 2), ("nfs4", 0):
            with self.subTest(kind=kind):
                self.jobs("true")
                self.write(f"22 1 250:1 / / rw - {kind} server:/x rw\n", "mountinfo")
                self.dir.chmod(0o311)
                patch = f"import runmaker4; runmaker4.MOUNTINFO = 'mountinfo'\n{self.KEPT_BY_DAEMON}"
                ended = self.finish(self.start_patched(patch, "runs.txt", **bound))
                self.dir.chmod(0o755)
                self.assertEqual(ended.code, code, ended.err)
                self.assertEqual(b"no permission to list the directory" in ended.err, code == 2, ended.err)

    def test_a_link_leads_to_the_mount_of_what_it_names(self) -> None:
        (self.dir / "home").mkdir()
        os.link(self.dir / "runs.txt", self.dir / "home" / "runs.txt")
        (self.dir / "link").symlink_to("home")
        runner = self.start_mounted("nfs", "rw,nolock", place="home", file="link/runs.txt")
        self.assertRefused(self.finish(runner), "link/runs.txt", "nolock")
        self.assertUntouched()

    def test_a_network_file_system_that_was_not_tested_is_named_once(self) -> None:
        for kind in "lustre", "beegfs", "fuse", "fuse.new", "nobody-has-heard-of-it":
            with self.subTest(kind=kind):
                self.jobs("true")
                ended = self.finish(self.start_mounted(kind, "rw,flock", patch=self.KEPT_BY_DAEMON))
                self.assertEnded(ended, 0, "d")
                self.assertEqual(ended.err.count(b"\n"), 2)
                self.assertComplains(ended, f"is on {kind}", "not tested", "--check-locks", "--single-host")
                self.jobs("true")
                self.assertAccepted(self.start_mounted(kind, "rw,flock", "--single-host"))

    BROKEN = """
import errno, fcntl, os
def lock(real, commands):
    def call(descriptor, command, *rest):
        if commands is None or command in commands:
            raise OSError(errno.{0}, os.strerror(errno.{0}))
        return real(descriptor, command, *rest)
    return call
names = "F_OFD_SETLK", "F_OFD_SETLKW", "F_SETLK", "F_SETLKW"
fcntl.fcntl = lock(fcntl.fcntl, [getattr(fcntl, name) for name in names if hasattr(fcntl, name)])
fcntl.lockf = lock(fcntl.lockf, None)
import runmaker4
"""

    def test_a_file_system_without_locks(self) -> None:
        names = "ENOSYS", "EINVAL", "EOPNOTSUPP"
        for runner in [self.start_patched(self.BROKEN.format(name), "runs.txt") for name in names]:
            self.assertRefused(self.finish(runner), "runs.txt", "lock")
        self.assertUntouched()


class CpuCount(LimitedCase):
    """-j0: the least of CPU affinity, cgroup limits and Slurm's share; here 64 CPUs, unless said."""

    def cpus(self, groups: str = "", limits: Optional[dict[str, str]] = None,
             env: Optional[dict[str, str]] = None, affinity: int = 64) -> int:
        """available_cpus() with this text in /proc/self/cgroup, and these files in /sys/fs/cgroup."""
        machine = mock.patch.multiple(os, create=True, sched_getaffinity=lambda pid: set(range(affinity)),
                                      cpu_count=lambda: 64, process_cpu_count=lambda: 64)
        with machine, self.limited(groups, limits, env):
            return runmaker4.available_cpus()

    def test_cgroup_v2_limits_of_the_group_and_of_those_above(self) -> None:
        group = "0::/user.slice/job.scope\n"
        for limits, cpus in (({"user.slice/job.scope/cpu.max": "300000 100000"}, 3),
                             ({"user.slice/job.scope/cpu.max": "max 100000"}, 64),
                             ({"user.slice/job.scope/cpu.max": "max 100000",
                               "user.slice/cpu.max": "100000 50000"}, 2),
                             ({"user.slice/job.scope/cpu.max": "200000 100000",
                               "user.slice/cpu.max": "max 100000"}, 2),
                             ({"user.slice/job.scope/cpu.max": "10000 100000"}, 1), ({}, 64)):
            with self.subTest(limits=limits):
                self.assertEqual(self.cpus(group, limits), cpus)
        # in a container, it may name a path of the host that is not mounted here
        self.assertEqual(self.cpus("0::/docker/abc\n", {"cpu.max": "200000 100000"}), 2)

    def test_slurm_variables(self) -> None:
        for env, cpus in (({"SLURM_CPUS_PER_TASK": "3"}, 3), ({"SLURM_CPUS_ON_NODE": "5"}, 5),
                          ({"SLURM_CPUS_PER_TASK": "3", "SLURM_CPUS_ON_NODE": "12"}, 3),
                          ({"SLURM_CPUS_ON_NODE": "500"}, 64), ({"SLURM_CPUS_ON_NODE": "many"}, 64)):
            with self.subTest(env=env):
                self.assertEqual(self.cpus(env=env), cpus)

    def test_tasks_of_a_step_share_what_slurm_gives_the_job_on_their_node(self) -> None:
        step = {"SLURM_STEP_ID": "0", "SLURM_CPUS_ON_NODE": "12"}
        for tasks, cpus in (("4,5", 6), ("0,1,2", 4), (",".join("1" * 25), 1), ("0", 12), ("", 12)):
            with self.subTest(tasks=tasks):
                env = dict(step, SLURM_GTIDS=tasks)
                self.assertEqual(self.cpus(env=env), cpus)
                self.assertEqual(self.cpus(env=dict(env, SLURM_CPUS_PER_TASK="2")), 2)
        for changed, cpus in (({"SLURM_CPUS_ON_NODE": "²"}, 64), ({"SLURM_CPUS_ON_NODE": "0"}, 64),
                              ({"SLURM_CPUS_PER_TASK": "some"}, 4), ({"SLURM_CPUS_PER_TASK": "0"}, 4)):
            with self.subTest(changed=changed):
                self.assertEqual(self.cpus(env={**step, "SLURM_GTIDS": "0,1,2", **changed}), cpus)

    def test_a_batch_script_has_the_job_s_cpus_for_itself(self) -> None:
        """Also if sbatch was called in a step: its variables are still set (22.05, 26.05)."""
        env = {"SLURM_CPUS_ON_NODE": "12", "SLURM_NODEID": "0", "SLURM_TASKS_PER_NODE": "3",
               "SLURM_STEP_ID": "-5", "SLURM_STEP_TASKS_PER_NODE": "3", "SLURM_GTIDS": "0"}
        self.assertEqual(self.cpus(env=env), 12)

    def test_the_least_of_all_counts(self) -> None:
        group, limits, env = "0::/a\n", {"a/cpu.max": "500000 100000"}, {"SLURM_CPUS_PER_TASK": "6"}
        self.assertEqual(self.cpus(group, limits, env, affinity=7), 5)
        self.assertEqual(self.cpus(group, limits, env, affinity=4), 4)
        self.assertEqual(self.cpus(group, {"a/cpu.max": "800000 100000"}, env, affinity=7), 6)
        self.assertEqual((self.cpus(), self.cpus(affinity=3)), (64, 3))

    def test_threads_of_a_job_limit_no_jobs(self) -> None:
        """OMP_NUM_THREADS=1 runmaker4.py -j0 is for many jobs of one thread; HTCondor sets all three."""
        for name in "OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "PYTHON_CPU_COUNT":
            self.assertEqual(self.cpus(env={name: "1"}), 64)

    @unittest.skipUnless(shutil.which("taskset"), "there is no taskset here")
    def test_j0_runs_one_job_at_a_time_on_one_cpu(self) -> None:
        first = min(os.sched_getaffinity(0))
        self.jobs(*["mkdir alone && sleep 0.1 && rmdir alone"] * 3)
        ended = self.run_script("taskset", "-c", first, *self.command(RUNMAKER, "-j0", "runs.txt"))
        self.assertEnded(ended, 0, "ddd")

    def test_j0_runs_as_many_jobs_as_slurm_gives(self) -> None:
        """Two jobs that each wait for the other one."""
        if len(os.sched_getaffinity(0)) < 2:
            self.skipTest("there is one CPU only")
        root = self.write("", "no-limits")
        self.jobs(": > a; until [ -e b ]; do sleep 0.05; done", ": > b; until [ -e a ]; do sleep 0.05; done")
        unlimited = f"import runmaker4; runmaker4.CGROUP_ROOT = runmaker4.PROC_CGROUP = {str(root)!r}"
        two = {"SLURM_CPUS_ON_NODE": "2"}
        runner = self.start_patched(unlimited, "-j0", "--timeout=50", "runs.txt", env=two)
        self.assertEnded(self.finish(runner), 0, "dd")
