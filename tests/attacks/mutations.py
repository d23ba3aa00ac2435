"""Messages with something changed in each: from strangers, and from a client that knows the token.

    RUNMAKER4_TOKEN=TOKEN python3 -m tests.attacks.mutations PORT COUNT SEED

Sends COUNT of them before the proof and COUNT after it, each on a connection that the server has not ended
yet.  The file needs jobs below `#RUN host=liar`.  Prints how many of each the server has read, and how many
of them ended the connection.  The same SEED makes the same messages.
"""
import contextlib
import json
import os
import random
import socket
import sys
from typing import Any, Callable

from tests.wire import (
    FROM_CLIENT,
    VERSION,
    Closed,
    Peer,
    fields_of,
    frame,
    garbage,
    mutilate,
    new_key,
    spoiled,
)

Message = dict[str, Any]
FIELDS = fields_of(FROM_CLIENT)
KNOCK: Message = dict(runmaker4=VERSION, nonce="0" * 32, proof="0" * 64)
CONFIRMATION: Message = dict(proof="0" * 64)
TOGETHER = 8                            # messages on a connection
LAST = 1 << 62                          # a ping with this number is no mutation


def text_before(random_: random.Random) -> bytes:
    """A message of the handshake, mutated."""
    message = random_.choice([KNOCK, KNOCK, CONFIRMATION])
    ways: list[Callable[[], bytes]] = [
        lambda: spoiled(random_, message, random_.choice([*message])).encode(),
        lambda: mutilate(random_, json.dumps(message).encode()),
        lambda: garbage(random_).encode(),
    ]
    return random_.choice(ways)()


def before_the_proof(port: int, random_: random.Random, _: int) -> tuple[int, int]:
    """One mutated message: read, and whether it ended the connection."""
    with Peer.of(port) as peer, contextlib.suppress(Closed):
        peer.pull()
        body = text_before(random_)
        peer.push(frame(body) if random_.random() < 0.9 else mutilate(random_, frame(body)))
        peer.end().rest(30)
    return 1, 1


class Client:
    """Clients, one after the other, of which each holds a job if there is one for it."""

    def __init__(self, token: str) -> None:
        self.token = token

    def after_the_proof(self, port: int, random_: random.Random, count: int) -> tuple[int, int]:
        """Some mutated messages: how many were read, and how many of these ended the connection."""
        pongs = 0
        with Peer.of(port, self.token) as peer, contextlib.suppress(Closed, socket.timeout):
            peer.prove()
            key = self.come(peer, random_) if random_.random() < 0.9 else ""
            number = 0
            for _ in range(min(count, TOGETHER)):
                message, field = random_.choice(FIELDS)
                if "n" in message:
                    number += 1
                    message = {**message, "n": number, "id": key or new_key()}
                text = spoiled(random_, message, field).encode()
                body = text if random_.random() < 0.9 else mutilate(random_, text)
                peer.put(body, b'{"type":"ping","request":%d}' % LAST)
            peer.end()
            while True:
                heard = peer.hear("pong")
                pongs += heard["request"] == LAST
        ended = pongs < min(count, TOGETHER)
        return pongs + ended, int(ended)

    @staticmethod
    def come(peer: Peer, random_: random.Random) -> str:
        """Say hello; the key of a job that is begun, perhaps."""
        peer.say({**FROM_CLIENT[0], "client": new_key(), "name": "liar", "retry": "!e"}).hear("welcome")
        peer.say(dict(type="claim", request=1, want=1, last=False), dict(type="ping", request=1)).hear("pong")
        jobs: list[Message] = next((heard["jobs"] for heard in peer.messages if heard["type"] == "jobs"), [])
        return jobs[0]["id"] if jobs else ""


def main() -> None:
    port, count, seed = map(int, sys.argv[1:])
    after = Client(os.environ["RUNMAKER4_TOKEN"]).after_the_proof
    phases: dict[str, Callable[[int, random.Random, int], tuple[int, int]]] = {
        "before the proof": before_the_proof, "after the proof": after}
    for name, attack in phases.items():
        random_ = random.Random(seed)
        read = ended = 0
        while read < count:
            more, refused = attack(port, random_, count - read)
            read, ended = read + more, ended + refused
        print(f"{name}: {read} read, {ended} ended the connection", flush=True)


if __name__ == "__main__":
    main()
