"""A man in the middle between clients and their server: he records all, and tampers with what passes.

    python3 -m tests.attacks.man_in_the_middle PORT RECORD

PORT is the server's.  Prints his own port, where clients are to connect.  The first connection he ends after
some records.  With each further one he tampers in another way, once: with the handshake, or with records of
TLS behind it.  He prints which way it was, and `refused` if the end that was to believe it ended the
connection at once, else `believed`.  When he knows no further way he lets all pass.  What he saw is in the
file RECORD.
"""
import asyncio
import contextlib
import itertools
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Callable

TO_SERVER, TO_CLIENT = "to the server", "to the client"
OTHER = {TO_SERVER: TO_CLIENT, TO_CLIENT: TO_SERVER}
CLEAR = {TO_SERVER: 1, TO_CLIENT: 2}    # frames in each direction that are not encrypted
LENGTH, HEAD = 4, 5                     # bytes before the contents of such a frame, and of a record of TLS
SEALED = 23                             # the type of an encrypted record (RFC 8446, 5.2)
AT = 7                                  # the encrypted record that is tampered with: long after the handshake
ENOUGH = 12                             # encrypted records of the first connection that he remembers
# seconds until the end that was lied to must have ended the connection
PATIENCE = 3.0

Records = list[bytes]


@dataclass
class Seen:
    """What has passed on a connection: its encrypted records."""
    records: dict[str, Records] = field(default_factory=lambda: {TO_SERVER: [], TO_CLIENT: []})


def changed(record: bytes, at: int) -> bytes:
    """A record with one bit turned."""
    return record[:at] + bytes([record[at] ^ 1]) + record[at + 1:]


def resized(record: bytes, more: int) -> bytes:
    """A record that says that it is so many bytes longer."""
    return record[:3] + struct.pack(">H", struct.unpack_from(">H", record, 3)[0] + more) + record[HEAD:]


# What is sent instead of two records: of these two, of what went the other way, and of another connection's
TAMPERINGS: dict[str, Callable[[Records, Records, Records], Records]] = {
    "another type": lambda now, back, other: [changed(now[0], 0), now[1]],
    "shorter": lambda now, back, other: [resized(now[0], -1), now[1]],
    "longer": lambda now, back, other: [resized(now[0], 1), now[1]],
    "another text": lambda now, back, other: [changed(now[0], HEAD), now[1]],
    "another end": lambda now, back, other: [changed(now[0], len(now[0]) - 1), now[1]],
    "repeated": lambda now, back, other: [now[0], now[0], now[1]],
    "swapped": lambda now, back, other: [now[1], now[0]],
    "left out": lambda now, back, other: [now[1]],
    "sent back": lambda now, back, other: [back[-1], *now],
    "of another connection": lambda now, back, other: [other[AT], *now],
}
# What is sent instead of the last frame that is not encrypted, and of the first bytes of TLS behind it
HANDSHAKES: dict[str, Callable[[bytes], bytes]] = {
    "another proof": lambda frame: changed(frame, len(frame) - 3),
    "garbage after the frame": lambda frame: frame + b"\x16\x03\x01\x00\x05garbage",
    "TLS 1.0 after the frame": lambda frame: frame + b"\x15\x03\x01\x00\x02\x02\x46",
    "the frame twice": lambda frame: frame + frame,
}


class Man:
    """The man in the middle."""

    def __init__(self, port: int, record: str) -> None:
        self.port = port
        self.record = open(record, "ab", buffering=0)      # noqa: SIM115 (open as long as he is there)
        ways = ((name, way) for name in (*HANDSHAKES, *TAMPERINGS) for way in (TO_SERVER, TO_CLIENT))
        self.ways: Iterator[tuple[str, str]] = itertools.chain(ways, itertools.repeat(("", "")))
        self.first = Seen()             # the first connection

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Stand between a client and the server."""
        servers = await asyncio.open_connection("127.0.0.1", self.port)
        learns = min(map(len, self.first.records.values())) < ENOUGH
        seen, (name, way) = (self.first, ("", "")) if learns else (Seen(), next(self.ways))
        ends = {TO_SERVER: (reader, servers[1]), TO_CLIENT: (servers[0], writer)}
        over = {direction: asyncio.ensure_future(
            self.forward(direction, *ends[direction], seen, name if direction == way else "", learns))
            for direction in ends}
        await asyncio.wait(over.values(), return_when=asyncio.FIRST_COMPLETED)
        if name:
            done, _ = await asyncio.wait([over[OTHER[way]]], timeout=PATIENCE)
            print(f"{name} {way}: {'refused' if done else 'believed'}", flush=True)
        for task in over.values():
            task.cancel()
        for end in writer, servers[1]:
            end.close()

    async def forward(
        self,
        direction: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        seen: Seen,
        tampering: str,
        learns: bool,
    ) -> None:
        """Let records pass, until he has learnt enough; with tampering nothing more after that, until whoever
        gets it has had time.
        """
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            for number in range(CLEAR[direction]):
                frame = await self.read(reader, LENGTH, ">I")
                if tampering in HANDSHAKES and number == CLEAR[direction] - 1:
                    writer.write(HANDSHAKES[tampering](frame))
                    await asyncio.sleep(PATIENCE)
                    return
                writer.write(frame)
            passed = seen.records[direction]
            while not learns or min(map(len, seen.records.values())) < ENOUGH:
                record = await self.read(reader, HEAD, ">3xH")
                back, other = seen.records[OTHER[direction]], self.first.records[direction]
                if tampering and len(passed) == AT and len(back) > AT:
                    two = [record, await self.read(reader, HEAD, ">3xH")]
                    writer.write(b"".join(TAMPERINGS[tampering](two, back, other)))
                    await asyncio.sleep(PATIENCE)
                    return
                if record[0] == SEALED and (not tampering or len(passed) < AT):
                    passed.append(record)
                writer.write(record)

    async def read(self, reader: asyncio.StreamReader, size: int, head: str) -> bytes:
        """The next frame or record, which is recorded; head: how its first bytes tell the length of the rest.
        """
        start = await reader.readexactly(size)
        data = start + await reader.readexactly(struct.unpack(head, start)[0])
        self.record.write(data)
        return data


async def main() -> None:
    man = Man(int(sys.argv[1]), sys.argv[2])
    server = await asyncio.start_server(man.handle, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main())
