"""Pipes and terminals of a process: what waits in one, and reading it to its end."""
import contextlib
import fcntl
import os
import select
import sys
import termios
import threading
import time
from collections.abc import Iterator
from typing import IO

from tests.support.processes import DEADLINE, Process


@contextlib.contextmanager
def deadline(process: Process, timeout: float = DEADLINE) -> Iterator[None]:
    """Kill the process if the block takes longer than this, so that reading its output comes to an end."""
    watchdog = threading.Timer(timeout, process.kill)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def unread(pipe: IO[bytes]) -> int:
    """How many bytes wait in a pipe for somebody to read them."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def read_terminal(master: int) -> bytes:
    """All that a pseudo-terminal gets until its last holder has gone, with plain newlines."""
    shown, end = b"", time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if select.select([master], [], [], 0.1)[0]:
            try:
                shown += os.read(master, 65536)
            except OSError:                         # EIO: the hang-up
                return shown.replace(b"\r\n", b"\n")
    raise AssertionError(f"the runner did not end: {shown[-1000:]!r}")
