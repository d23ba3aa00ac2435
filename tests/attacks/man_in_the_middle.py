"""A man in the middle between clients and their server: he records all, and tampers with what passes.

    python3 -m tests.attacks.man_in_the_middle PORT RECORD

PORT is the server's.  Prints his own port, where clients are to connect.  The first connection he ends after
some frames.  With each further one he tampers in another way, once, some frames behind the handshake; and
prints which way it was, and `refused` if the end that was to believe it ended the connection at once, else
`believed`.  When he knows no further way he lets all pass.  What he saw is in the file RECORD.
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
HANDSHAKE = 2                           # frames in each direction that have no MAC
LENGTH, MAC = 4, 32                     # bytes
AT = 1                                  # the frame behind the handshake that is tampered with
ENOUGH = 3                              # frames of the first connection that he remembers
# seconds until the end that was lied to must have ended the connection
PATIENCE = 3.0

Frames = list[bytes]


@dataclass
class Seen:
    """What has passed on a connection: its sealed frames."""
    frames: dict[str, Frames] = field(default_factory=lambda: {TO_SERVER: [], TO_CLIENT: []})


def changed(frame: bytes, at: int) -> bytes:
    """A frame with one bit turned."""
    return frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1:]


def shorter(frame: bytes) -> bytes:
    """A frame that says that it is a byte shorter."""
    return struct.pack(">I", struct.unpack_from(">I", frame)[0] - 1) + frame[LENGTH:]


# What is sent instead of two frames: of these two, of what went the other way, and of another connection's
TAMPERINGS: dict[str, Callable[[Frames, Frames, Frames], Frames]] = {
    "shorter": lambda now, back, other: [shorter(now[0]), now[1]],
    "another MAC": lambda now, back, other: [changed(now[0], LENGTH), now[1]],
    "another text": lambda now, back, other: [changed(now[0], LENGTH + MAC), now[1]],
    "another end": lambda now, back, other: [changed(now[0], len(now[0]) - 1), now[1]],
    "repeated": lambda now, back, other: [now[0], now[0], now[1]],
    "swapped": lambda now, back, other: [now[1], now[0]],
    "left out": lambda now, back, other: [now[1]],
    "sent back": lambda now, back, other: [back[AT - 1], *now],
    "of another connection": lambda now, back, other: [other[AT], *now],
}


class Man:
    """The man in the middle."""

    def __init__(self, port: int, record: str) -> None:
        self.port = port
        self.record = open(record, "ab", buffering=0)      # noqa: SIM115 (open as long as he is there)
        ways = ((name, way) for name in TAMPERINGS for way in (TO_SERVER, TO_CLIENT))
        self.ways: Iterator[tuple[str, str]] = itertools.chain(ways, itertools.repeat(("", "")))
        self.first = Seen()             # the first connection

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Stand between a client and the server."""
        servers = await asyncio.open_connection("127.0.0.1", self.port)
        learns = len(self.first.frames[TO_CLIENT]) < ENOUGH
        seen, (name, way) = (self.first, ("", "")) if learns else (Seen(), next(self.ways))
        ends = {TO_SERVER: (reader, servers[1]), TO_CLIENT: (servers[0], writer)}
        over = {direction: asyncio.ensure_future(
            self.forward(direction, *ends[direction], seen, name if direction == way else "",
                         ENOUGH if learns and direction == TO_CLIENT else sys.maxsize))
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
        most: int,
    ) -> None:
        """Let so many frames pass; with tampering nothing more after that, until whoever gets it has had
        time.
        """
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            for number in range(-HANDSHAKE, most):
                frame = await self.read(reader, sealed=number >= 0)
                if number >= 0:
                    seen.frames[direction].append(frame)
                if tampering and number == AT:
                    two = [frame, await self.read(reader, sealed=True)]
                    back, other = seen.frames[OTHER[direction]], self.first.frames[direction]
                    writer.write(b"".join(TAMPERINGS[tampering](two, back, other)))
                    await asyncio.sleep(PATIENCE)
                    return
                writer.write(frame)

    async def read(self, reader: asyncio.StreamReader, sealed: bool) -> bytes:
        """The next frame, which is recorded."""
        head = await reader.readexactly(LENGTH)
        frame = head + await reader.readexactly(struct.unpack(">I", head)[0] + MAC * sealed)
        self.record.write(frame)
        return frame


async def main() -> None:
    man = Man(int(sys.argv[1]), sys.argv[2])
    server = await asyncio.start_server(man.handle, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main())
