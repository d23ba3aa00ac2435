"""The lock file of a job file: its locks that are held, and holding one."""
import contextlib
import errno
import pathlib
from collections.abc import Iterator

import runmaker4
from tests.support.processes import DEADLINE

# a runner or script that sees an NFSv3 mount, where a query shows no shared lock of another host
NFS3 = """
import fcntl, runmaker4
def is_free(fd, offset, length=1):
    query = runmaker4.FLOCK.pack(fcntl.F_RDLCK, 0, offset, length, 0)      # finds exclusive locks
    return not length or fcntl.F_UNLCK == runmaker4.FLOCK.unpack(
        fcntl.fcntl(fd, runmaker4.OFD_GETLK, query))[0]
runmaker4.find_mount, runmaker4.is_free = lambda _: runmaker4.Mount("nfs", frozenset()), is_free
"""


def lock_table(path: pathlib.Path) -> pathlib.Path:
    """The file beside a job file in which its commands are locked."""
    return path.with_name(f".{path.name}.lock")


def held_job_locks(path: pathlib.Path, command: bytes) -> list[int]:
    """The job locks of a command that are held."""
    try:
        with open(lock_table(path), "rb") as file:
            start = runmaker4.bucket_of(command)
            return [at - start
                    for found in runmaker4.other_locks(file.fileno(), start, runmaker4.JOB_LOCKS_PER_BUCKET)
                    for at in found]
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def locked(fd: int, at: int, length: int = 1) -> Iterator[None]:
    """Hold an exclusive lock for a moment; tries until the DEADLINE, then raises OSError(EAGAIN)."""
    if not runmaker4.keep_trying(lambda: runmaker4.lock(fd, at, length), DEADLINE):
        raise OSError(errno.EAGAIN, "somebody else has kept it locked")
    try:
        yield
    finally:
        runmaker4.unlock(fd, at, length)
