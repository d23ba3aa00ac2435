"""FakeServer: a server that does to every client what a test wants."""
import contextlib
import socket
import threading
from typing import Callable

import runmaker4
from tests.support.peer import Closed, Peer
from tests.support.wire import TOKEN


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
