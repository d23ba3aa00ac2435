"""Ports of the loopback that nobody listens at."""
import contextlib
import secrets
import socket


def free_port() -> int:
    """A port of the loopback that is free, below those that the system gives to who asks for any port."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
