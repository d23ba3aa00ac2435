"""Journals that tests write themselves: the lines of runmaker4.py --outdir, event by event."""
import json
import os
from typing import Any

from tests.support.values import Text, as_bytes

BEGAN = 1_795_183_239.0                     # seconds since 1970


def event(kind: str, run: object, line: object, command: Text, began: float, **more: Any) -> bytes:
    """A line of a journal."""
    fields = {"time": round(began, 3), "event": kind, "run": f"node1-4711-{run}", "line": line,
              "command": os.fsdecode(as_bytes(command)), "host": "node1", "slot": "1", "pid": 4712, **more}
    return json.dumps(fields).encode() + b"\n"


def start(run: object, line: int, command: Text = "true", began: float = BEGAN, **more: Any) -> bytes:
    return event("start", run, line, command, began, **more)


def end(run: object, line: object, command: Text = "true", began: float = BEGAN, took: float = 1.5,
        state: str = "d", **more: Any) -> bytes:
    """The end of a run that took so many seconds."""
    fields = {"state": state, "exit": 0 if state == "d" else 3, "signal": 0, "cause": "", "seconds": took,
              "cpu": 1.2, "memory": 100_000_000, "bytes": 4, "files": [f"{line}.out", f"{line}.err"], **more}
    return event("end", run, line, command, began + took, **fields)


def pair(run: object, line: int, command: Text = "true", began: float = BEGAN, **more: Any) -> list[bytes]:
    where = {key: more[key] for key in ("host", "slot", "pid") if key in more}
    return [start(run, line, command, began, **where), end(run, line, command, began, **more)]
