"""The other ends of the wire, for the benchmarks of TCP: each is a process of its own that prints what it has
seen.

    peers.py load PORT JOBS     8 connections that claim jobs and say at once that they are done: the seconds
    peers.py idle PORT CLIENTS  clients that wait: "ready" when all do, then the time at which each job came
    peers.py come PORT CLIENTS  clients that dial together: their dials when each has a job, "lost" when the
                                server is gone, "ended" when all are back at the next, with their jobs ended
    peers.py first FILE         the seconds from the start of a server of this file until it hands out a job
    peers.py proxy PORT DELAY   passes everything on, DELAY seconds later: the port that it listens on

The token is that of $HOME/.runmaker4.token.  Times are those of the monotonic clock, the same for all
processes.
"""

import asyncio
import collections
import contextlib
import itertools
import os
import pathlib
import random
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import runmaker4  # noqa: E402 (the path had to be set first)

HOST = "127.0.0.1"
CONTEXT = runmaker4.tls_context(server_side=False)
WANTED = 64                             # jobs that each connection of the load generator asks for at a time


class Client(asyncio.Protocol):
    """A client that speaks the protocol, claims jobs, runs nothing and says at once that they are done."""
    PING = 5.0

    def __init__(self, slots: int, seen: Callable[["Client", dict[str, Any]], None], runs: bool,
                 had: Sequence[dict[str, Any]] = ()) -> None:
        """seen: called with every message; runs: it says that it runs what it gets; had: jobs of before."""
        token = (pathlib.Path(os.environ["HOME"]) / ".runmaker4.token").read_text().strip()
        self.channel = runmaker4.ClientChannel(token, CONTEXT)
        self.slots, self.seen, self.runs = slots, seen, runs
        self.had = had
        self.greeted, self.gone = asyncio.Event(), asyncio.Event()
        self.events = self.acknowledged = 0
        self.requests = itertools.count(1)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a connection can be written to")
        self.transport = transport
        self.flush()

    def data_received(self, data: bytes) -> None:
        proven = self.channel.is_authenticated
        messages = self.channel.receive(data)
        if self.channel.is_authenticated and not proven:
            self.greeted.set()
            for job in self.had:
                held = {name: job[name] for name in ("id", "number", "text")}
                self.send("have", jobs=[{**held, "result": None}])
            self.send("hello", client=secrets.token_hex(8), name="bench", pid=os.getpid(), slots=self.slots,
                      memory=0, retry="", follow=False, directory="/")
        for message in messages:
            self.take(message)
            self.seen(self, message)
        self.flush()

    def connection_lost(self, error: object) -> None:
        self.gone.set()

    def take(self, message: dict[str, Any]) -> None:
        """Do what a client does."""
        kind = message["type"]
        if kind == "welcome" and not self.had:
            self.claim(self.slots)
        elif kind == "jobs" and self.runs:
            for job in message["jobs"]:
                now = time.time()
                self.event("begin", id=job["id"], pid=1, run=f"bench-1-{job['id']}", slot="1", time=now)
                self.event("end", id=job["id"], pid=1, run=f"bench-1-{job['id']}", slot="1", time=now,
                           state="d", exit=0, signal=0, cause="", seconds=0.0, received=[0, 0], timeout=0.0)
                self.event("finish", id=job["id"], state="d", how="exit 0")
            self.claim(len(message["jobs"]))
        elif kind == "ack":
            self.acknowledged = message["n"]

    def claim(self, want: int) -> None:
        self.send("claim", request=next(self.requests), want=want, last=False)

    def event(self, kind: str, **fields: object) -> None:
        self.events += 1
        self.send(kind, n=self.events, **fields)

    def send(self, kind: str, **fields: object) -> None:
        self.channel.send({"type": kind, **fields})

    def flush(self) -> None:
        data = self.channel.take_outgoing()
        if data:
            self.transport.write(data)

    def keep_alive(self) -> None:
        """Send a ping, now and every five seconds."""
        if not self.gone.is_set():
            self.send("ping", request=next(self.requests))
            self.flush()
            asyncio.get_running_loop().call_later(self.PING, self.keep_alive)


async def connect(port: int, slots: int, seen: Callable[[Client, dict[str, Any]], None],
                  runs: bool = True, had: Sequence[dict[str, Any]] = ()) -> Client:
    _, client = await asyncio.get_running_loop().create_connection(
        lambda: Client(slots, seen, runs, had), HOST, port
    )
    return client


async def load(port: int, jobs: int) -> None:
    """Claim and finish all jobs, over 8 connections."""
    clients: list[Client] = []
    all_done = asyncio.Event()

    def seen(client: Client, message: dict[str, Any]) -> None:
        if message["type"] == "ack" and sum(one.acknowledged for one in clients) >= 3 * jobs:
            all_done.set()

    began = time.monotonic()
    for _ in range(8):
        clients.append(await connect(port, WANTED, seen))
    await all_done.wait()
    print(time.monotonic() - began, flush=True)


async def idle(port: int, count: int) -> None:
    welcome: list[Client] = []

    def seen(client: Client, message: dict[str, Any]) -> None:
        if message["type"] == "jobs":
            print(time.monotonic(), flush=True)
        elif message["type"] == "welcome":
            welcome.append(client)
            if len(welcome) == count:
                print("ready", flush=True)

    for number in range(count):
        client = await connect(port, 1, seen)
        asyncio.get_running_loop().call_later(Client.PING * (1 + number / count), client.keep_alive)
    await asyncio.Event().wait()


async def come(port: int, count: int) -> None:
    dials, jobs = 0, dict[Client, dict[str, Any]]()
    acknowledged = asyncio.Semaphore(0)

    async def dial(seen: Callable[[Client, dict[str, Any]], None], *had: dict[str, Any]) -> Client:
        """Dial until a server has heard who we are."""
        nonlocal dials
        while True:
            dials += 1
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                client = await asyncio.wait_for(connect(port, 1, seen, runs=False, had=had), 10)
                try:
                    await asyncio.wait_for(client.greeted.wait(), 10)
                    return client
                except asyncio.TimeoutError:
                    client.transport.abort()        # else it would still take a job
            await asyncio.sleep(random.uniform(0.5, 1))

    def seen(client: Client, message: dict[str, Any]) -> None:
        if message["type"] == "jobs":
            jobs[client], = message["jobs"]

    def seen_back(client: Client, message: dict[str, Any]) -> None:
        if message["type"] == "welcome":
            client.event("finish", id=client.had[0]["id"], state="d", how="exit 0", cause="")
        elif message["type"] == "ack":
            acknowledged.release()

    clients = await asyncio.gather(*(dial(seen) for _ in range(count)))
    while len(jobs) < count:
        await asyncio.sleep(0.05)
    print(dials, flush=True)
    await asyncio.gather(*(client.gone.wait() for client in clients))
    print("lost", flush=True)
    await asyncio.gather(*(dial(seen_back, jobs[client]) for client in clients))
    for _ in clients:
        await acknowledged.acquire()
    print("ended", flush=True)
    await asyncio.Event().wait()


async def first(file: str) -> None:
    """Start a server and take its first job."""
    def seen(client: Client, message: dict[str, Any]) -> None:
        if message["type"] == "jobs":
            times.append(time.monotonic())
            client.send("bye")              # it never started, so the job is new again
            client.send("ping", request=0)
        elif message["type"] == "pong":     # it is new now
            client.transport.close()

    times = [time.monotonic()]
    words = [sys.executable, str(ROOT / "runmaker4-server.py"), "--host", HOST, "--port", "0", file]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        said = server.stderr.readline() if server.stderr else b""
        port = re.search(rb"serving on port (\d+)", said)
        if not port:
            raise SystemExit(f"the server does not serve: {said!r}")
        client = await connect(int(port[1]), 1, seen, runs=False)
        await client.gone.wait()
    finally:
        server.terminate()
        server.wait()
    print(times[1] - times[0], flush=True)


async def relay(source: asyncio.StreamReader, target: asyncio.StreamWriter, delay: float) -> None:
    """Pass on what comes, in order, each piece `delay` seconds later, however much is under way."""
    loop = asyncio.get_running_loop()
    pieces: collections.deque[bytes] = collections.deque()

    def deliver() -> None:
        piece = pieces.popleft()
        target.write(piece) if piece else target.close()

    piece = b"(begin)"
    while piece:
        try:
            piece = await source.read(1 << 16)
        except OSError:                     # reset: for the other end, too, it is over
            piece = b""
        pieces.append(piece)
        loop.call_later(delay, deliver) if delay else deliver()


async def proxy(port: int, delay: float) -> None:
    """Pass on all connections."""
    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(HOST, port)
        await asyncio.gather(relay(reader, server_writer, delay), relay(server_reader, writer, delay))

    listener = await asyncio.start_server(accepted, HOST, 0)
    print(listener.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


KINDS: dict[str, tuple[Callable[..., Coroutine[Any, Any, None]], Sequence[Callable[[str], object]]]] = {
    "load": (load, (int, int)),
    "idle": (idle, (int, int)),
    "come": (come, (int, int)),
    "first": (first, (str,)),
    "proxy": (proxy, (int, float)),
}

if __name__ == "__main__":
    function, types = KINDS[sys.argv[1]]
    asyncio.run(function(*[parse(word) for parse, word in zip(types, sys.argv[2:])]))
