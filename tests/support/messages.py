"""The messages of server and client, as they ought to be."""
import secrets
from collections.abc import Iterable
from typing import Any

ACCOUNT = dict(now=dict(new=1, running=1, done=1, failed=1, error=0, held=0), bad=[4], again=True, left=True,
               first_stray=5, stopped=True, lack="")
# of a run
BEGIN = dict(type="begin", time=1.5, run="insider-1-2-3", slot="1", pid=1, promised=4096)
END = dict(type="end", state="d", exit=0, signal=0, cause="", seconds=1.5, cpu=0.5, memory=4096,
           memory_below=None, bytes=0, received=[0, 0], timeout=0.0, stdout="", stderr="", why="")
FROM_CLIENT: tuple[dict[str, Any], ...] = (
    dict(type="hello", client="f" * 16, name="insider", slots=1, memory=0, retry="", follow=False,
         directory="/"),
    dict(type="have", jobs=[dict(id="0" * 16, number=1, text=" true", result=None)]),
    dict(type="claim", request=1, want=1, memory=0, last=False),
    dict(type="ping", request=2),
    dict(type="account"),
    dict(type="bye"),
    dict(BEGIN, n=1, id="0" * 16),
    dict(type="output", n=1, id="0" * 16, stream="stdout", data="text\n"),
    dict(END, n=1, id="0" * 16),
    dict(type="finish", n=1, id="0" * 16, state="d", how="exit 0", lost=False),
    dict(type="ready", id="0" * 16),
    dict(type="get", ask=1, id="0" * 16, path="a file", offset=0, length=1),
    dict(type="put", ask=1, id="0" * 16, path="a file", offset=0, size=1, mtime=2, mode=0o644, ctime=3),
)
FROM_SERVER: tuple[dict[str, Any], ...] = (
    dict(type="welcome", file="runs.txt", directory="/", grace=60.0, seen=0),
    dict(type="jobs", request=1, jobs=[dict(id="0" * 16, number=1, text=" true", timeout=0.0, slots=1,
                                            memory=[0, 4096], shell="/bin/sh", group=False, hold=False,
                                            send=[], fetch=[], scratch=False)]),
    dict(type="nothing", request=1, left="", account=None),
    dict(type="go", id="0" * 16),
    dict(type="stop", id="0" * 16, cancelled=False),
    dict(type="ack", n=1),
    dict(type="fault", id="0" * 16, text="text", cancelled=False),
    dict(type="lost", id="0" * 16),
    dict(type="dismissed", text="text"),
    dict(type="closing", done=False),
    dict(type="account", account=ACCOUNT),
    dict(type="piece", ask=1, size=1, mtime=2, mode=0o644, ctime=3, end=1),
    dict(type="piece", ask=1, error="text", again=False),
    dict(type="pong", request=1, retry="er"),
)
HELLO, HAVE = FROM_CLIENT[:2]
WELCOME, JOBS = FROM_SERVER[:2]
FIELDS = sorted({"runmaker4", "nonce", "proof", "certificate", "file"}.union(*FROM_CLIENT, *FROM_SERVER))


def release(number: int, key: str) -> dict[str, Any]:
    """The event by which a client gives a job back."""
    return dict(type="finish", n=number, id=key, state=".", how="", lost=False)


def new_key() -> str:
    return secrets.token_hex(8)


def fields_of(messages: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Every field of every message, and one that is in none."""
    return [(message, field) for message in messages for field in [*message, "unknown"]]
