"""Strangers without the token that come as fast as one core can make them, for some seconds.

    python3 -m tests.attacks.flood PORT SECONDS KIND

KIND is what each of them does: `leave` at once, `answer` the greeting with a wrong proof, or `stay` silent
until 500 others have come.  Prints how many connections were attempted.
"""
import collections
import contextlib
import socket
import sys
import time

from tests.wire import VERSION, plain

ANSWER = plain(runmaker4=VERSION, nonce="0" * 32, proof="0" * 64)
STAYING = 500                           # connections that are open at a time


def main() -> None:
    port, seconds, kind = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    end = time.monotonic() + seconds
    count = 0
    staying: collections.deque[socket.socket] = collections.deque()
    while time.monotonic() < end:
        stranger = socket.socket()
        stranger.setblocking(False)
        with contextlib.suppress(OSError):      # it is not accepted yet, or the server's queue is full
            stranger.connect_ex(("127.0.0.1", port))
            if kind == "answer":
                stranger.send(ANSWER)
        count += 1
        if kind == "leave":
            stranger.close()
            continue
        staying.append(stranger)
        if len(staying) > STAYING:
            staying.popleft().close()
    print(count)


if __name__ == "__main__":
    main()
