"""OverTcp: tests of a runner, played by a client and its server; which of them a class takes."""
import subprocess
import unittest
from typing import Any, Callable, TypeVar

from tests.support.processes import Ended
from tests.support.scripts import FULL, RUNCLIENT, RUNMAKER
from tests.support.tcp import SERVING, Server, TcpCase

C = TypeVar("C", bound=type)


def without(*names: str) -> Callable[[C], C]:
    """A class decorator: these of the tests that are inherited are none of this class."""
    def take_out(case: C) -> C:
        for name in names:
            if not callable(getattr(case, name, None)):
                raise LookupError(f"{case.__name__} does not inherit {name}")
            setattr(case, name, None)
        return case
    return take_out


def ordinarily(*names: str) -> Callable[[type], type]:
    """A class decorator: of the inherited tests only these run, unless in full size."""
    def choose(case: type) -> type:
        inherited = {name for name in set(dir(case)) - set(vars(case)) if name.startswith("test_")}
        if not set(names) <= inherited:
            raise LookupError(f"{case.__name__} does not inherit {set(names) - inherited}")
        for name in inherited - set(names) if not FULL else ():
            skipped = unittest.skip("RUNMAKER4_TEST_FULL is not set: like the runner's own test")(
                getattr(case, name)
            )
            setattr(case, name, skipped)
        return case
    return choose


class OverTcp(TcpCase):
    """Put before a test case of runmaker4.py: a client is in its place, and a server has the job file."""

    def setUp(self) -> None:
        super().setUp()
        self.servers: dict[str, Server] = {}

    def server_of(self, file: str, **settings: Any) -> Server:
        """The server of this file, one for the whole test."""
        if file not in self.servers:
            self.servers[file] = self.start_server(file=file, **settings)
        return self.servers[file]

    def command(self, script: str, *args: object) -> list[str]:
        if script != RUNMAKER or "--dry-run" in args:
            return super().command(script, *args)
        *options, file = args
        return super().command(RUNCLIENT, *self.client_words(self.server_of(str(file)), *options))

    def start_patched(self, statements: str, *args: object, **settings: Any) -> subprocess.Popen[bytes]:
        """Start a client, and its server, with these statements."""
        *options, file = args
        server = self.server_of(str(file), patch=statements)
        return self.start(*self.patched(statements, RUNCLIENT, *self.client_words(server, *options)),
                          **settings)

    def as_ended(self, code: int, out: bytes, err: bytes) -> Ended:
        """What the client said reads as if a runner of runs.txt had said it."""
        said = SERVING.sub(b"", err)
        said = said.replace(f"{RUNCLIENT}: {self.HOST}: ".encode(), f"{RUNMAKER}: runs.txt: ".encode())
        return super().as_ended(code, out, said)

    def assertNobodyLeft(self) -> None:
        """No process of a job lives on; the server does."""
        self.assertNoJobLeft()
