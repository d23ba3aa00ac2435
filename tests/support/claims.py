"""JobFileCase: a test that claims lines itself, by a JobQueue and a cursor, with a clock that it sets."""
import functools
import importlib
import math
from typing import Any, Union
from unittest import mock

import runmaker4
from tests.support.job_file import FileCase
from tests.support.values import present

server = importlib.import_module("runmaker4-server")
# Classes of that module, which only importlib can import: its name has a hyphen
ServedQueue = Any


def job_of(found: Union[runmaker4.Job, runmaker4.NoJob]) -> runmaker4.Job:
    """The job that was claimed, which must have been one."""
    if not isinstance(found, runmaker4.Job):
        raise AssertionError(f"no job was claimed: {found}")
    return found


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class JobFileCase(FileCase):
    """A test with a job file of its own, and a clock."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        # on a busy machine a claim would return before it has found anything
        patch = mock.patch.object(runmaker4.Cursor, "SLICE", math.inf)
        patch.start()
        self.addCleanup(patch.stop)

    def queue_on(self, text: bytes, **options: Any) -> runmaker4.JobQueue:
        """A JobQueue on this text."""
        self.path.write_bytes(text)
        options = {"say": lambda said: None, "clock": self.clock, **options}
        file = runmaker4.JobFile(str(self.path), **options)
        self.addCleanup(file.close_files)
        return runmaker4.JobQueue(file)

    def another(self, file: runmaker4.JobFile) -> runmaker4.JobFile:
        other = runmaker4.JobFile(file.path, say=self.fail)
        self.addCleanup(other.close_files)
        other.open_to_write()
        return other

    def lose_job_lock(self, queue: runmaker4.JobQueue, job: runmaker4.Job) -> None:
        """As if an NFS server had restarted, or the lease been lost."""
        queue.file.lock_table.free_job_lock(present(job.job_lock))
        job.job_lock = None

    def served_queue(self, mount: runmaker4.Mount = runmaker4.LOCAL) -> ServedQueue:
        """A server's on the file as it is."""
        make_lock_table = functools.partial(server.SharedLockTable, give_to_keeper=lambda fd: None)
        file = server.ServedFile(str(self.path), say=lambda text: None, mount=mount,
                                 make_lock_table=make_lock_table)
        self.addCleanup(file.close_files)
        return server.ServedQueue(file)

    def jobs(self, text: bytes, *, retry: bytes = b"", serving: bool = False,
             **options: Any) -> runmaker4.Cursor:
        """A cursor in a JobQueue on this text, for a runner that takes lines in these states besides."""
        queue = self.queue_on(text, **options)
        return runmaker4.Cursor(queue, [runmaker4.Consumer("", retry=retry)], serving=serving)
