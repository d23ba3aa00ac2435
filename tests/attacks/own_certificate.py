"""A man in the middle without the token, who passes on steps 1 to 3 and then ends TLS himself.

    python3 -m tests.attacks.own_certificate PORT

PORT is the server's.  Prints his own port, where clients are to connect; and for each connection how many
bytes of text he has got out of either end.
"""
import contextlib
import importlib
import socket
import ssl
import sys
import threading

import runmaker4
from tests.wire import CONTEXT, FILE_ID, LENGTH

OWN = runmaker4.tls_context(server_side=True)
importlib.import_module("runmaker4-server").make_credentials(OWN, FILE_ID)


def pass_on(source: socket.socket, sink: socket.socket) -> None:
    """Pass on a frame that is not encrypted."""
    head = source.recv(LENGTH, socket.MSG_WAITALL)
    sink.sendall(head + source.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))


def listen_to(end: socket.socket, context: ssl.SSLContext, server_side: bool, heard: list[int]) -> None:
    """Speak TLS with an end until it ends the connection; count what it says."""
    count = 0
    with contextlib.suppress(OSError), context.wrap_socket(end, server_side=server_side) as connection:
        while data := connection.recv(1 << 14):
            count += len(data)
    heard.append(count)


def stand_between(client: socket.socket, server: socket.socket) -> None:
    """Deal with one connection."""
    pass_on(server, client)
    pass_on(client, server)
    pass_on(server, client)
    to_end = server.dup()                       # wrap_socket() takes the other one
    of_client: list[int] = []
    of_server: list[int] = []
    threads = [
        threading.Thread(target=listen_to, args=(client, OWN, True, of_client)),
        threading.Thread(target=listen_to, args=(server, CONTEXT, False, of_server)),
    ]
    for thread in threads:
        thread.start()
    threads[0].join()
    with contextlib.suppress(OSError):          # the server has ended it, too
        to_end.shutdown(socket.SHUT_RDWR)
    to_end.close()
    threads[1].join()
    print(f"from the client: {of_client[0]}, from the server: {of_server[0]}", flush=True)


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        stand_between(listener.accept()[0], socket.create_connection(("127.0.0.1", int(sys.argv[1]))))


if __name__ == "__main__":
    main()
