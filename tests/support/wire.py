"""The wire by hand: frames, forged and mutilated, garbage, and connections that say what a test wants."""
import base64
import contextlib
import hashlib
import hmac
import importlib
import json
import random
import secrets
import socket
import ssl
import struct
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Callable, Optional

import runmaker4

TOKEN = "00112233445566778899aabbccddeeff"
VERSION = 13
FILE_ID = "f" * 32                          # of the file that is served
CREDENTIALS: runmaker4.Credentials = importlib.import_module("runmaker4-server").make_credentials(
    runmaker4.tls_context(server_side=True), FILE_ID)
CONTEXT = runmaker4.tls_context(server_side=False)
LENGTH = 4                                  # bytes before a frame's JSON
RECORD_HEAD = 5                             # bytes before the contents of a record of TLS
UNPROVEN, PROVEN = 1 << 10, 1 << 20         # the longest JSON before and after the proof

# texts that JSON parsers and those who use their results may stumble over
STRANGE = (
    "null", "true", "-1", "0", "1.5", "1e308", str(2**63), '""', '"."', '"\\u0000"', '"a\\nb"', '"\\ud800"',
    '"\\udcff"', '"\\udfff\\udc80"', '"\u00e9"', '"%s"' % ("x" * 300), "[]", "[[]]", "{}", '{"type": 1}',
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
    return frame(json.dumps(message).encode())


def read_plain(data: bytes) -> dict[str, Any]:
    """The message of the handshake that these bytes are."""
    assert len(data) == LENGTH + struct.unpack_from(">I", data)[0], data
    message: dict[str, Any] = json.loads(data[LENGTH:])
    return message


def split(data: bytes) -> list[bytes]:
    """Bytes as their frames."""
    frames = []
    while data:
        size = LENGTH + struct.unpack_from(">I", data)[0]
        frames.append(data[:size])
        data = data[size:]
    return frames


def traces(token: str) -> list[bytes]:
    """The heads of the token, its bytes, and what common hashes make of either, in common spellings."""
    raw = [token.encode(), token.upper().encode(), bytes.fromhex(token)]
    hashes = [hashlib.new(name, form).digest() for form in raw
              for name in ("md5", "sha1", "sha256", "sha512")]
    hashes += [hmac.digest(form, b"", "sha256") for form in raw]
    return [spelling[:16] for form in raw + hashes
            for spelling in (form, form.hex().encode(), base64.b64encode(form))]


def records(data: bytes) -> list[bytes]:
    """Bytes as their records of TLS (RFC 8446, 5.1): a type, a version, a length, and what is so long."""
    found = []
    while data:
        size = RECORD_HEAD + int.from_bytes(data[3:RECORD_HEAD], "big")
        found.append(data[:size])
        data = data[size:]
    return found


def extensions(hello: bytes) -> list[int]:
    """The numbers of a ClientHello's extensions (RFC 8446, 4.1.2): 41 is pre_shared_key, 51 key_share."""
    data = hello[RECORD_HEAD + 4 + 2 + 32:]
    for width in 1, 2, 1:               # the length of session, ciphers and compression
        data = data[width + int.from_bytes(data[:width], "big"):]
    data, found = data[2:], []
    while data:
        found.append(int.from_bytes(data[:2], "big"))
        data = data[4 + int.from_bytes(data[2:4], "big"):]
    return found


class End:
    """An end of a connection by the table of the protocol, with nothing of the code that is tested.

    It does what an honest end does, and may then say whatever a test wants.
    """

    def __init__(self, token: str, server: bool, credentials: runmaker4.Credentials = CREDENTIALS,
                 context: ssl.SSLContext = CONTEXT) -> None:
        """credentials: a server's; context: a client's."""
        self.token, self.server = token, server
        self.credentials, self.context = credentials, context
        self.nonce = secrets.token_hex(16)
        self.nonces = self.certified = self.text = self.ready = b""
        self.is_authenticated = False
        self.tls: Optional[ssl.SSLObject] = None
        self.take = self.take_knock if server else self.take_greeting
        if server:
            self.ready = plain(runmaker4=VERSION, nonce=self.nonce)

    def proof(self, label: bytes) -> str:
        """The proof of this label, by what is known by now."""
        text = b"runmaker4 %d %b\n%b%b" % (VERSION, label, self.nonces, self.certified)
        return hmac.new(self.token.encode(), text, hashlib.sha256).hexdigest()

    def check(self, message: dict[str, Any], label: bytes) -> None:
        if message.get("proof") != self.proof(label):
            raise runmaker4.WireError(f"no proof: {message}")

    # -- the steps -------------------------------------------------------------------------------------------

    def take_greeting(self, message: dict[str, Any]) -> None:
        """Step 1."""
        self.nonces = (message["nonce"] + self.nonce).encode()
        self.ready += plain(runmaker4=VERSION, nonce=self.nonce, proof=self.proof(b"client"))
        self.take = self.take_credentials

    def take_knock(self, message: dict[str, Any]) -> None:
        """Step 2."""
        self.nonces = (self.nonce + message["nonce"]).encode()
        self.check(message, b"client")
        certificate, file = self.credentials.certificate, self.credentials.file_id
        self.certified = (certificate + file).encode()
        self.ready += plain(certificate=certificate, file=file, proof=self.proof(b"server"))
        self.start_tls(self.credentials.context)

    def take_credentials(self, message: dict[str, Any]) -> None:
        """Step 3."""
        self.certified = (message["certificate"] + message["file"]).encode()
        self.check(message, b"server")
        self.start_tls(self.context)

    def start_tls(self, context: ssl.SSLContext) -> None:
        self.take = self.take_confirmation
        self.received, self.to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.received, self.to_send, self.server)
        self.text = self.decrypt(self.tls, self.text)

    def decrypt(self, tls: ssl.SSLObject, data: bytes) -> bytes:
        """Step 4, and what is said behind it."""
        text = b""
        self.received.write(data)
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
            if not self.server and not self.is_authenticated:
                found = hashlib.sha256(tls.getpeercert(True) or b"").hexdigest()
                if not self.certified.startswith(found.encode()):
                    raise runmaker4.WireError("another certificate")
                self.is_authenticated = True
                self.confirm()
            while self.received.pending:
                text += tls.read(1 << 14)
        return text

    def confirm(self) -> None:
        """Step 5, at the client."""
        self.send({"proof": self.proof(b"confirmed")})

    def take_confirmation(self, message: dict[str, Any]) -> None:
        """Step 5."""
        self.check(message, b"confirmed")
        self.is_authenticated = True

    # -- as a Channel ----------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that are complete with these bytes."""
        messages = []
        self.text += self.decrypt(self.tls, data) if self.tls else data
        while len(self.text) >= LENGTH:
            end = LENGTH + struct.unpack_from(">I", self.text)[0]
            if len(self.text) < end:
                break
            message = json.loads(self.text[LENGTH:end])
            self.text = self.text[end:]
            if self.is_authenticated:
                messages.append(message)
            else:
                self.take(message)
        return messages

    def put(self, body: bytes) -> None:
        assert self.tls
        self.tls.write(frame(body))

    def send(self, message: dict[str, Any]) -> None:
        self.put(json.dumps(message).encode())

    def take_outgoing(self) -> bytes:
        """Take the bytes that are to be sent."""
        data, self.ready = self.ready, b""
        return data + self.to_send.read() if self.tls else data


def pieces(random_: random.Random, data: bytes, longest: int = 40) -> Iterator[bytes]:
    """The data in pieces, as a network may deliver them."""
    while data:
        size = random_.randrange(1, longest)
        yield data[:size]
        data = data[size:]


def garbage(random_: random.Random, depth: int = 3) -> str:
    """A JSON text of any shape; now and then it is none."""
    kind = random_.randrange(20)
    if depth and kind < 3:
        return "[%s]" % ", ".join(garbage(random_, depth - 1) for _ in range(random_.randrange(4)))
    if depth and kind < 6:
        items = (f'"{random_.choice(FIELDS)}": {garbage(random_, depth - 1)}'
                 for _ in range(random_.randrange(4)))
        return "{%s}" % ", ".join(items)
    if kind == 6:
        return random_.choice(NO_NUMBERS)
    if kind < 12:
        numbers = str(random_.randrange(-9, 99)), f'"{random_.choice(FIELDS)}"'
        return random_.choice(["null", "true", "1.5", *numbers])
    return random_.choice(STRANGE)


# the messages of either end, as they ought to be
ACCOUNT = dict(now=dict(new=1, running=1, done=1, failed=1, error=0, held=0), bad=[4], again=True, left=True,
               first_stray=5)
# of a run
BEGIN = dict(type="begin", time=1.5, run="insider-1-2-3", slot="1", pid=1, promised=4096)
END = dict(type="end", state="d", exit=0, signal=0, cause="", seconds=1.5, cpu=0.5, memory=4096,
           memory_below=None, bytes=0, received=[0, 0], timeout=0.0, stdout="", stderr="", why="")
FROM_CLIENT: tuple[dict[str, Any], ...] = (
    dict(type="hello", client="f" * 16, name="insider", slots=1, memory=0, retry="", follow=False,
         directory="/"),
    dict(type="have", jobs=[dict(id="0" * 16, number=1, text=" true", result=None)]),
    dict(type="claim", request=1, want=1, memory=0, last=False),
    dict(type="ping", request=2),
    dict(type="account"),
    dict(type="bye"),
    dict(BEGIN, n=1, id="0" * 16),
    dict(type="output", n=1, id="0" * 16, stream="stdout", data="text\n"),
    dict(END, n=1, id="0" * 16),
    dict(type="finish", n=1, id="0" * 16, state="d", how="exit 0", lost=False),
    dict(type="ready", id="0" * 16),
)
FROM_SERVER: tuple[dict[str, Any], ...] = (
    dict(type="welcome", file="runs.txt", directory="/", grace=60.0, seen=0),
    dict(type="jobs", request=1, jobs=[dict(id="0" * 16, number=1, text=" true", timeout=0.0, slots=1,
                                            memory=[0, 4096], shell="/bin/sh", group=False, hold=False)]),
    dict(type="nothing", request=1, left="", account=None),
    dict(type="go", id="0" * 16),
    dict(type="stop", id="0" * 16, cancelled=False),
    dict(type="ack", n=1),
    dict(type="fault", id="0" * 16, text="text", cancelled=False),
    dict(type="lost", id="0" * 16),
    dict(type="closing", done=False),
    dict(type="account", account=ACCOUNT),
    dict(type="pong", request=1, retry="er"),
)
HELLO, HAVE = FROM_CLIENT[:2]
WELCOME, JOBS = FROM_SERVER[:2]
FIELDS = sorted({"runmaker4", "nonce", "proof", "certificate", "file"}.union(*FROM_CLIENT, *FROM_SERVER))


def release(number: int, key: str) -> dict[str, Any]:
    """The event by which a client gives a job back."""
    return dict(type="finish", n=number, id=key, state=".", how="", lost=False)


def new_key() -> str:
    return secrets.token_hex(8)


def fields_of(messages: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Every field of every message, and one that is in none."""
    return [(message, field) for message in messages for field in [*message, "unknown"]]


def wrong_versions(value: Any) -> Iterator[str]:
    """JSON of a value in which one value is another, or is missing; in a list, it is in a second item."""
    yield from (*STRANGE, NO_NUMBERS[0])
    if isinstance(value, list) and value:
        yield from (f"[{json.dumps(value[0])}, {wrong}]" for wrong in wrong_versions(value[0]))
    elif isinstance(value, dict):
        for name in value:
            others = [f'"{other}": {json.dumps(value[other])}' for other in value if other != name]
            for text in ([], *([f'"{name}": {wrong}'] for wrong in wrong_versions(value[name]))):
                yield "{%s}" % ", ".join([*others, *text])


class Closed(Exception):
    """The other end has closed the connection."""


class Peer:
    """An end of a connection by hand.

    Bytes go and come as they are; once it has proven itself, messages too.
    """

    def __init__(self, connection: socket.socket, token: str = TOKEN, server: bool = False) -> None:
        connection.settimeout(60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.token, self.server = connection, token, server
        self.channel = End(token, server)
        self.sent = bytearray()
        self.messages: list[dict[str, Any]] = []

    @classmethod
    def of(cls, port: int, token: str = TOKEN) -> "Peer":
        """A connection to a server, which has not proven anything so far."""
        return cls(socket.create_connection(("127.0.0.1", port), 60), token)

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

    def rest(self, timeout: float = 60) -> bytes:
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
