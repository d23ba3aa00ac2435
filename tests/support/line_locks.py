"""The job locks of a test's lines: which are held, and holding one."""
import os

import runmaker4
from tests.support.case import Case
from tests.support.locks import held_job_locks


def locked_lines(case: Case, name: str = "runs.txt") -> list[int]:
    """The numbers of the lines with a life sign: their own job locks, or any if no line is like them."""
    lines = [(number, line[2:]) for number, line in enumerate(case.read(name).splitlines(), 1)
             if line[1:2] == b" " and line[:1] not in b"#/"]
    texts = [text for _, text in lines]
    return [number for number, text in lines if (job_locks := held_job_locks(case.dir / name, text))
            and (number in job_locks or texts.count(text) == 1)]


def hold_line(case: Case, number: int, name: str = "runs.txt") -> int:
    """Take the life sign of a line, as its runner would; the descriptor, closed when the test ends."""
    command = case.read(name).splitlines()[number - 1][2:]
    fd = runmaker4.open_lock_file_of(str(case.dir / name))
    case.addCleanup(os.close, fd)
    case.assertTrue(runmaker4.lock(fd, runmaker4.bucket_of(command) + number))
    return fd
