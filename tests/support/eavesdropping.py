"""Bytes from the wire, taken apart as by an eavesdropper: frames, records of TLS, traces of a token."""
import base64
import hashlib
import hmac
import struct

from tests.support.wire import LENGTH

RECORD_HEAD = 5                             # bytes before the contents of a record of TLS


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
