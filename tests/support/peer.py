"""Peer: an end of a connection by hand, that says what a test wants."""
import socket
import struct
from typing import Any

from tests.support.messages import HELLO, new_key
from tests.support.processes import DEADLINE
from tests.support.wire import TOKEN, End


class Closed(Exception):
    """The other end has closed the connection."""


class Peer:
    """An end of a connection by hand.

    Bytes go and come as they are; once it has proven itself, messages too.
    """

    def __init__(self, connection: socket.socket, token: str = TOKEN, server: bool = False) -> None:
        connection.settimeout(DEADLINE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.token, self.server = connection, token, server
        self.channel = End(token, server)
        self.sent = bytearray()
        self.messages: list[dict[str, Any]] = []

    @classmethod
    def of(cls, port: int, token: str = TOKEN) -> "Peer":
        """A connection to a server, which has not proven anything so far."""
        return cls(socket.create_connection(("127.0.0.1", port), DEADLINE), token)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close the connection as a broken end does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    # -- bytes -----------------------------------------------------------------------------------------------

    def push(self, data: bytes) -> "Peer":
        """Send bytes as they are."""
        self.sent += data
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None
        return self

    def end(self) -> "Peer":
        """Send no more; the other end may."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:                             # the connection was closed
            raise Closed from None
        return self

    def pull(self) -> bytes:
        """Some bytes that have come."""
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            raise Closed
        return data

    def rest(self, timeout: float = DEADLINE) -> bytes:
        """All that comes until the other end closes the connection, which it must within that time."""
        self.socket.settimeout(timeout)
        data = b""
        try:
            while True:
                data += self.pull()
        except Closed:
            return data
        except socket.timeout:
            raise AssertionError(f"not closed within {timeout} s after {bytes(self.sent[:200])!r}") from None

    def is_closed(self) -> bool:
        """Whether the other end has closed the connection by now."""
        self.socket.settimeout(0)
        try:
            while True:
                self.pull()
        except Closed:
            return True
        except BlockingIOError:
            return False

    # -- messages --------------------------------------------------------------------------------------------

    def prove(self) -> "Peer":
        """Shake hands."""
        self._flush()
        while not self.channel.is_authenticated:
            self.messages += self.channel.receive(self.pull())
            self._flush()
        return self

    def _flush(self) -> None:
        self.push(self.channel.take_outgoing())

    def say(self, *messages: dict[str, Any]) -> "Peer":
        """Send messages."""
        for message in messages:
            self.channel.send(message)
        return self.push(self.channel.take_outgoing())

    def put(self, *bodies: bytes) -> "Peer":
        for body in bodies:
            self.channel.put(body)
        return self.push(self.channel.take_outgoing())

    def hear(self, *kinds: str) -> dict[str, Any]:
        """Wait for a message of one of these types (of any, if none is given); others may be heard later."""
        while True:
            for at, message in enumerate(self.messages):
                if not kinds or message.get("type") in kinds:
                    return self.messages.pop(at)
            self.messages += self.channel.receive(self.pull())

    def hear_lost(self) -> list[str]:
        """Wait for the welcome; return the keys of the jobs that the server calls lost right after it."""
        self.hear("welcome")
        self.say(dict(type="ping", request=1)).hear("pong")
        lost = [message for message in self.messages if message["type"] == "lost"]
        self.messages = [message for message in self.messages if message["type"] != "lost"]
        return [message["id"] for message in lost]

    def hello(self, *jobs: dict[str, Any], **fields: Any) -> "Peer":
        """Prove itself, and say hello as a client that has these jobs; as a new one without such fields."""
        self.prove().say(*(dict(type="have", jobs=[{"result": None, **job}]) for job in jobs))
        return self.say({**HELLO, "client": new_key(), **fields})


