"""Pipes of a process: what waits in one, and an end of reading from it."""
import contextlib
import fcntl
import sys
import termios
import threading
from collections.abc import Iterator
from typing import IO

from tests.support.processes import Process


@contextlib.contextmanager
def deadline(process: Process, timeout: float = 60) -> Iterator[None]:
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
