"""The wire by hand: frames, and an end of a connection that does what the table of the protocol says."""
import contextlib
import hashlib
import hmac
import importlib
import json
import secrets
import ssl
import struct
from typing import Any, Optional

import runmaker4

TOKEN = "00112233445566778899aabbccddeeff"
VERSION = 15
FILE_ID = "f" * 32                          # of the file that is served
CREDENTIALS: runmaker4.Credentials = importlib.import_module("runmaker4-server").make_credentials(
    runmaker4.tls_context(server_side=True), FILE_ID)
CONTEXT = runmaker4.tls_context(server_side=False)
LENGTH = 4                                  # bytes before a frame's JSON
UNPROVEN, PROVEN = 1 << 10, 1 << 20         # the longest JSON before and after the proof


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


