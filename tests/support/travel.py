"""What the tests of files that travel share: a server and clients, each in a directory of its own."""
import os
import pathlib
from typing import Any

from tests.support.processes import DEADLINE, wait_until
from tests.support.tcp import Program, Server, TcpCase
from tests.support.tcp_patches import EAGER

BIG = 8 << 20
SLOWLY = 4 << 20                # bytes per second
PATCH = EAGER + "__import__('runmaker4-client').FULL_DISK_SECONDS = 0.2\n"


class TravelCase(TcpCase):
    """Helpers: the server works in `srv`, clients in `bob` and `carol`."""
    patch = PATCH

    def setUp(self) -> None:
        super().setUp()
        for name in "srv", "bob", "carol":
            (self.dir / name).mkdir()
        self.srv, self.bob = self.dir / "srv", self.dir / "bob"

    def serve(self, text: str, *options: object, **settings: Any) -> Server:
        self.write(text, "srv/runs.txt")
        return self.serve_again(*options, **settings)

    def serve_again(self, *options: object, **settings: Any) -> Server:
        return self.start_server(*options, file="runs.txt", cwd=self.srv, patch=self.patch, **settings)

    def join(self, server: Any, *options: object, name: str = "bob", **settings: Any) -> Program:
        return self.start_client(server, "--name", name, *options, cwd=self.dir / name, patch=self.patch,
                                 **settings)

    def run_bob(self, server: Server, *options: object) -> Program:
        client = self.join(server, *options)
        client.wait(DEADLINE)
        return client

    def assertStates(self, wanted: str) -> None:
        self.assertEqual(self.states("srv/runs.txt"), wanted)

    def make(self, name: str, content: bytes = b"x", mode: int = 0o644) -> pathlib.Path:
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        return path

    def make_endless(self, name: str) -> None:
        """A file that takes hours SLOWLY."""
        os.truncate(self.make(name), 1 << 36)

    def make_big(self, name: str) -> bytes:
        content = os.urandom(BIG)
        self.make(name, content)
        return content

    def wait_part(self, name: str, size: int = BIG // 4) -> None:
        """Wait until so much of a file has come; nothing has its name yet."""
        path = self.dir / name
        wait_until(lambda: any(part.stat().st_size >= size for part in self.leftovers(path.name)),
                   what="a part has come")
        self.assertFalse(path.exists())

    def leftovers(self, name: str = "*") -> list[pathlib.Path]:
        return [*self.dir.rglob(f".{name}.*.runmaker4-part")]
