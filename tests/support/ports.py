"""Ports of the loopback that nobody listens at."""
import contextlib
import fcntl
import functools
import os
import secrets
import socket
import tempfile


@functools.cache
def reservations() -> int:
    """A file in which a process of the tests locks byte N as long as it lives, once it was given port N."""
    path = os.path.join(tempfile.gettempdir(), f"runmaker4-ports-{os.getuid()}")
    return os.open(path, os.O_RDWR | os.O_CREAT)


def free_port() -> int:
    """A port of the loopback that is free, below those that the system gives to who asks for any port.

    It stays this process's, also while nobody listens there.
    """
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            fcntl.lockf(reservations(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            probe.bind(("127.0.0.1", port))
            return port
