"""Strangers that come as fast as they can, say nothing, and stay; without the token.

    python3 -m tests.attacks.crowd PORT COUNT PID

Opens COUNT connections.  Prints how many descriptors the server, process PID, had open at the most.
"""
import os
import socket
import sys


def main() -> None:
    port, count, pid = map(int, sys.argv[1:])
    most, strangers = 0, []
    for _ in range(count):
        stranger = socket.socket()
        stranger.setblocking(False)                 # whatever becomes of it: the next one comes at once
        stranger.connect_ex(("127.0.0.1", port))
        strangers.append(stranger)
        most = max(most, len(os.listdir(f"/proc/{pid}/fd")))
    print(most)


if __name__ == "__main__":
    main()
