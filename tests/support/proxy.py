"""A proxy between a client and its server, so that what is between them can be cut and frozen."""
import contextlib
import math
import socket
import threading
import time
from typing import Callable

TO_SERVER, TO_CLIENT = "to the server", "to the client"
BOTH = (TO_SERVER, TO_CLIENT)


class Proxy:
    """Forwards what comes to `port` on 127.0.0.1 to another port there.

    A cut ends the connections, and lets nobody in until mend().  What is frozen arrives later, in order, as
    if the cable had been pulled: bytes, the ends of connections, and new connections, which need both
    directions.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.open: dict[str, threading.Event] = {way: threading.Event() for way in BOTH}
        self.sockets: set[socket.socket] = set()
        self.is_cut = False
        self.bytes_per_second = 0               # each way; 0: as fast as it can
        self.forwarded = dict.fromkeys(BOTH, 0)       # bytes
        self.freezes_at = dict.fromkeys(BOTH, (math.inf, ""))   # so many, and which way is frozen then
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.thaw()
        self._start(self._accept)

    def cut(self) -> None:
        """End all connections; new ones are ended at once."""
        self.is_cut = True
        self._end(*list(self.sockets))

    def mend(self) -> None:
        self.is_cut = False

    def freeze(self, *ways: str) -> None:
        """Let nothing through these ways (both, if none is named)."""
        for way in ways or BOTH:
            self.open[way].clear()

    def freeze_after(self, size: int, counted: str, frozen: str) -> None:
        """Freeze a way by itself, once, when so many more bytes have come through a way, perhaps the same."""
        self.freezes_at[counted] = self.forwarded[counted] + size, frozen

    def is_frozen(self, way: str) -> bool:
        return not self.open[way].is_set()

    def thaw(self) -> None:
        for way in BOTH:
            self.open[way].set()

    def close(self) -> None:
        self.cut()
        self._end(self.listener)
        self.listener.close()
        self.thaw()

    # -- the threads -----------------------------------------------------------------------------------------

    @staticmethod
    def _start(function: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=function, args=args, daemon=True)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self._start(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        """Connect a client with the server; forward its bytes, and in another thread those for it."""
        for way in BOTH:
            self.open[way].wait()
        try:
            server = socket.create_connection(("127.0.0.1", self.target))
        except OSError:                                 # nobody serves there now
            return client.close()
        self.sockets.update((client, server))
        if self.is_cut:
            self._end(client, server)
        answers = self._start(self._forward, server, client, TO_CLIENT)
        self._forward(client, server, TO_SERVER)
        answers.join()
        self.sockets.difference_update((client, server))
        client.close()
        server.close()

    def _forward(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        """Forward what comes from one end, and then its end."""
        try:
            while True:
                rate = self.bytes_per_second
                data = source.recv(rate // 10 or 1 << 16)
                time.sleep(len(data) / rate if rate else 0)
                self.open[way].wait()
                if not data:
                    return self._end(source, sink)
                self.forwarded[way] += len(data)
                size, frozen = self.freezes_at[way]
                if self.forwarded[way] >= size:
                    self.freezes_at[way] = math.inf, ""
                    self.freeze(frozen)
                sink.sendall(data)
        except OSError:                                 # an end is gone: so the other must go, too
            self.open[way].wait()
            self._end(source, sink)

    @staticmethod
    def _end(*ends: socket.socket) -> None:
        """End connections for both sides; threads that wait for their bytes go on."""
        for end in ends:
            with contextlib.suppress(OSError):          # was ended before
                end.shutdown(socket.SHUT_RDWR)
