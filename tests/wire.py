"""The wire by hand: frames, forged and mutilated ones, garbage, and connections that say whatever a test
wants.
"""
import base64
import contextlib
import hashlib
import hmac
import json
import random
import secrets
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Callable

import runmaker4

TOKEN = "00112233445566778899aabbccddeeff"
PRIME = runmaker4.PRIME                     # tests/test_channel.py computes it by its definition
LENGTH, MAC = 4, 32                         # the sizes of what stands before a frame's JSON; MAC: once proven
UNPROVEN, PROVEN = 1 << 10, 1 << 20         # the longest JSON before and after the proof

# texts that JSON parsers and those who use their results may stumble over
STRANGE = (
    "null", "true", "-1", "0", "1.5", "1e308", str(2**63), '""', '"."', '"\\u0000"', '"a\\nb"', '"\\ud800"',
    '"\\udfff\\udc80"', '"\u00e9"', '"%s"' % ("x" * 300), "[]", "[[]]", "{}", '{"type": 1}',
    "[" * 150 + "]" * 150,
)
NO_NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 60, "9" * 900)
NO_OBJECTS = (b"", b" ", b"null", b"true", b"1", b'"text"', b"[]", b'[{"type": "ping"}]')
NO_JSON = (
    b"{", b"}", b'{"type"', b'{"type": }', b'{"type": "ping",}', b"{'type': 'ping'}", b'{"type": "ping"}x',
    b"\0", b'{"type": "ping"}{"type": "ping"}', b'{"type": "\xff"}', b'{"type": "a\nb"}',
    b'{"type": "\\ud8"}', b"[" * 1000, b'{"a":' * 200, b'{"a":' * 100 + b"[" * 400,
)


def frame(body: bytes) -> bytes:
    """A frame as before the proof."""
    return struct.pack(">I", len(body)) + body


def plain(**message: Any) -> bytes:
    """A message of the handshake as a frame."""
    return frame(json.dumps(message).encode())


def read_plain(data: bytes) -> dict[str, Any]:
    """The message of the handshake that these bytes are."""
    assert len(data) == LENGTH + struct.unpack_from(">I", data)[0], data
    message: dict[str, Any] = json.loads(data[LENGTH:])
    return message


def split(data: bytes, head: int = LENGTH + MAC) -> list[bytes]:
    """Bytes as their frames; head: how many bytes come before the JSON."""
    frames = []
    while data:
        size = head + struct.unpack_from(">I", data)[0]
        frames.append(data[:size])
        data = data[size:]
    return frames


def traces(token: str) -> list[bytes]:
    """The heads of: the token, its bytes, and what is made of either with common hashes; in common spellings.
    """
    raw = [token.encode(), token.upper().encode(), bytes.fromhex(token)]
    hashes = [
        hashlib.new(name, form).digest() for form in raw for name in ("md5", "sha1", "sha256", "sha512")
    ]
    hashes += [hmac.digest(form, b"", "sha256") for form in raw]
    return [
        spelling[:16]
        for form in raw + hashes
        for spelling in (form, form.hex().encode(), base64.b64encode(form))
    ]


class QuickChannel(runmaker4.Channel):
    """A channel whose secret exponents are short, so that tests can have thousands."""
    EXPONENT = 16
    shared = 0                                  # what both ends have agreed on

    def _agree(self, public: str) -> None:
        self.shared = pow(int(public, 16), self.exponent, PRIME)
        super()._agree(public)


class Forger:
    """Makes frames with the right MACs and any contents; by the protocol's table, not by the code that is
    tested.
    """

    def __init__(self, greeting: bytes, answer: bytes, shared: int, from_server: bool,
                 token: str = TOKEN) -> None:
        """greeting, answer: as they were sent; shared: what the ends have agreed on."""
        nonces = "".join(read_plain(flight)["nonce"] for flight in (greeting, answer))
        text = b"runmaker4 9 session\n" + nonces.encode() + shared.to_bytes(256, "big")
        secret = hmac.new(token.encode(), text, hashlib.sha256).digest()
        label = b"server to client" if from_server else b"client to server"
        self.cipher = hmac.new(secret, label + b", cipher", hashlib.sha256).digest()
        self.key = hmac.new(secret, label + b", MAC", hashlib.sha256).digest()
        self.number = 0

    def frame(self, body: bytes) -> bytes:
        """The next frame."""
        number = struct.pack(">Q", self.number)
        stream = hashlib.shake_256(self.cipher + number).digest(len(body))
        text = bytes(a ^ b for a, b in zip(body, stream))
        mac = hmac.new(self.key, number + text, hashlib.sha256).digest()
        self.number += 1
        return struct.pack(">I", len(body)) + mac + text


def pieces(random_: random.Random, data: bytes, longest: int = 40) -> Iterator[bytes]:
    """The data in pieces, as a network may deliver them."""
    while data:
        size = random_.randrange(1, longest)
        yield data[:size]
        data = data[size:]


def mutilate(random_: random.Random, data: bytes) -> bytes:
    """The data with a few bits turned, pieces left out, doubled, moved or put in."""
    for _ in range(random_.randrange(1, 4)):
        at, to = sorted(random_.randrange(len(data) + 1) for _ in range(2))
        part = data[at:to]
        ways: list[Callable[[], bytes]] = [
            lambda: data[:at] + bytes([random_.randrange(256)]) + data[at + 1:],
            lambda: data[:at] + bytes([(data + b"\0")[at] ^ 1 << random_.randrange(8)]) + data[at + 1:],
            lambda: data[:at] + data[to:],
            lambda: data[:to] + part + data[to:],
            lambda: data[to:] + data[:to],
            lambda: data[:at] + random_.randbytes(random_.randrange(9)) + data[at:],
            lambda: data[:at],
        ]
        data = random_.choice(ways)()
    return data


def garbage(random_: random.Random, depth: int = 3) -> str:
    """A JSON text of any shape; now and then it is none."""
    kind = random_.randrange(20)
    if depth and kind < 3:
        return "[%s]" % ", ".join(garbage(random_, depth - 1) for _ in range(random_.randrange(4)))
    if depth and kind < 6:
        items = (
            f'"{random_.choice(FIELDS)}": {garbage(random_, depth - 1)}' for _ in range(random_.randrange(4))
        )
        return "{%s}" % ", ".join(items)
    if kind == 6:
        return random_.choice(NO_NUMBERS)
    if kind < 12:
        return random_.choice(
            ["null", "true", "1.5", str(random_.randrange(-9, 99)), f'"{random_.choice(FIELDS)}"']
        )
    return random_.choice(STRANGE)


# the messages of either end, as they ought to be
ACCOUNT = dict(now=dict(new=1, running=1, done=1, failed=1, error=0, held=0), bad=[4], again=True, left=True)
# of a run
BEGIN = dict(type="begin", time=1.5, mark="insider-1-2-3", slot="1", pid=1, promised=4096, output=True,
             again=False)
END = dict(type="end", status=0, cause="", limit=0.0, taken=0, seconds=1.5, cpu=0.5, memory=4096,
           memory_below=None, stdout=0, stderr=0)
FROM_CLIENT: tuple[dict[str, Any], ...] = (
    dict(type="hello", client="f" * 16, name="insider", pid=1, slots=1, memory=0, retry="", follow=False,
         directory="/"),
    dict(type="have", jobs=[dict(id="0" * 16, number=1, offset=0, text=" true", run="", result=None)]),
    dict(type="claim", request=1, want=1, memory=0, last=False),
    dict(type="ping", request=2),
    dict(type="status"),
    dict(type="account"),
    dict(type="bye"),
    dict(BEGIN, n=1, id="0" * 16),
    dict(type="output", n=1, id="0" * 16, stream="stdout", at=0, data="text\n"),
    dict(END, n=1, id="0" * 16),
    dict(type="finish", n=1, id="0" * 16, state="d", how="exit 0", cause=""),
    dict(type="release", n=1, id="0" * 16),
    dict(type="ready", id="0" * 16),
    dict(type="sync", clock=1.5),
)
FROM_SERVER: tuple[dict[str, Any], ...] = (
    dict(type="welcome", file="runs.txt", grace=60.0, seen=0, window=1 << 20, lost=[], settled=[],
         records=False, output=False),
    dict(type="jobs", request=1, jobs=[dict(id="0" * 16, number=1, offset=0, text=" true", timeout=0.0,
                                            slots=1, memory=[0, 4096], shell="/bin/sh", group=False,
                                            hold=False)]),
    dict(type="nothing", request=1, ended=False, left=""),
    dict(type="sync"),
    dict(type="go", id="0" * 16, at=1.5),
    dict(type="stop", id="0" * 16, cancelled=False),
    dict(type="ack", n=1, window=1 << 20),
    dict(type="fault", id="0" * 16, text="text"),
    dict(type="lost", id="0" * 16),
    dict(type="closing", done=False),
    dict(type="account", account=ACCOUNT),
    dict(type="pong", request=1, retry="er"),
)
HELLO, HAVE = FROM_CLIENT[:2]
WELCOME, JOBS = FROM_SERVER[:2]
FIELDS = sorted({"runmaker4", "nonce", "proof", "public"}.union(*FROM_CLIENT, *FROM_SERVER))


def new_key() -> str:
    """What a client, or a job, is known by."""
    return secrets.token_hex(8)


def fields_of(messages: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Every field of every message, and one that is in none."""
    return [(message, field) for message in messages for field in [*message, "unknown"]]


def spoiled(random_: random.Random, message: dict[str, Any], field: str) -> str:
    """A message as JSON, with any value in this field (or in one of the objects in it), or without it."""
    texts = {name: json.dumps(value) for name, value in message.items()}
    value = message.get(field)
    if isinstance(value, list) and value and isinstance(value[0], dict) and random_.random() < 0.5:
        texts[field] = "[%s]" % spoiled(random_, value[0], random_.choice([*value[0]]))
    elif random_.random() < 0.1:
        texts.pop(field, "")
    else:
        texts[field] = garbage(random_)
    return "{%s}" % ", ".join(f'"{name}": {text}' for name, text in texts.items())


class Closed(Exception):
    """The other end has closed the connection."""


class Peer:
    """An end of a connection by hand.

    Bytes go and come as they are; once it has proven itself, messages too.
    """

    def __init__(self, connection: socket.socket, token: str = TOKEN, server: bool = False) -> None:
        connection.settimeout(30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.token, self.server = connection, token, server
        self.channel = QuickChannel(token, server)
        self.greeting = self.answer = b""
        self.sent = bytearray()
        self.said = 0                               # messages
        self.messages: list[dict[str, Any]] = []

    @classmethod
    def of(cls, port: int, token: str = TOKEN) -> "Peer":
        """A connection to a server, which has not proven anything so far."""
        return cls(socket.create_connection(("127.0.0.1", port), 30), token)

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

    def rest(self, timeout: float = 5) -> bytes:
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
        while not self.channel.authenticated:
            data = self.pull()
            flight = "answer" if self.server else "greeting"
            setattr(self, flight, getattr(self, flight) or data)
            self.messages += self.channel.receive(data)
            self._flush()
        return self

    def _flush(self) -> None:
        data = self.channel.outgoing()
        flight = "greeting" if self.server else "answer"
        if not getattr(self, flight):
            setattr(self, flight, data)
        self.push(data)

    def say(self, *messages: dict[str, Any]) -> "Peer":
        """Send messages."""
        for message in messages:
            self.channel.send(message)
            self.said += 1
        return self.push(self.channel.outgoing())

    def forger(self) -> Forger:
        """Makes frames in this end's name, from here on; say() is of no use after the first of them."""
        forger = Forger(self.greeting, self.answer, self.channel.shared, self.server, self.token)
        forger.number = self.said
        return forger

    def hear(self, *kinds: str) -> dict[str, Any]:
        """Wait for a message of one of these types (of any, if none is given); others may be heard later."""
        while True:
            for at, message in enumerate(self.messages):
                if not kinds or message.get("type") in kinds:
                    return self.messages.pop(at)
            self.messages += self.channel.receive(self.pull())

    def hello(self, *jobs: dict[str, Any], **fields: Any) -> "Peer":
        """Prove itself, and say hello as a client that has these jobs; a new one, unless the fields say
        otherwise.
        """
        self.prove().say(*(dict(type="have", jobs=[{"result": None, "run": "", **job}]) for job in jobs))
        return self.say({**HELLO, "client": new_key(), **fields})


class FakeServer:
    """A server that does to every client what it is told; each connection has a thread of its own."""

    def __init__(self, serve: Callable[[Peer], object], token: str = TOKEN) -> None:
        self.serve, self.token = serve, token
        self.peers: list[Peer] = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "FakeServer":
        return self

    def __exit__(self, *_: object) -> None:
        for end in [self.listener, *(peer.socket for peer in self.peers)]:
            with contextlib.suppress(OSError):          # it is closed already
                end.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):              # it was closed
            while True:
                peer = Peer(self.listener.accept()[0], self.token, server=True)
                self.peers.append(peer)
                threading.Thread(target=self._handle, args=(peer,), daemon=True).start()

    def _handle(self, peer: Peer) -> None:
        with contextlib.suppress(Closed, OSError, runmaker4.WireError), peer:
            self.serve(peer)
