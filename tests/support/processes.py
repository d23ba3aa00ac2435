"""Processes of tests: how they end, which of them live; waiting for them, and for other things."""
import contextlib
import os
import pathlib
import re
import signal
import time
from dataclasses import dataclass
from typing import Callable, Optional, Protocol, TypeVar

MARK, MARK_LENGTH = "RUNMAKER4_TEST_MARK", 32
# Seconds after which a test gives up.  What it waits for comes sooner, also on a machine that is ten times
# slower, or that stands still now and then.  A job that must be ended, not end by itself, sleeps for longer
DEADLINE = 300.0
T = TypeVar("T")


for number in signal.SIGHUP, signal.SIGINT, signal.SIGQUIT:     # nohup and a shell's & leave them ignored
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


@dataclass
class Ended:
    """How a script ended: exit status and what it printed."""
    code: int
    out: bytes
    err: bytes


class Process(Protocol):
    """What the tests ask of a process that they have started: a Popen, or one that prints to files."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> Optional[int]: ...
    def wait(self, timeout: Optional[float] = None) -> int: ...
    def communicate(self, *, timeout: Optional[float] = None) -> tuple[bytes, bytes]: ...
    def send_signal(self, number: signal.Signals, /) -> None: ...
    def kill(self) -> None: ...


def wait_until(condition: Callable[[], Optional[T]], timeout: float = DEADLINE, what: str = "") -> T:
    """Wait until condition() is true and return its value; fail after timeout seconds."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what or condition}")
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def marked(mark: str) -> list[int]:
    """The living processes that have this text in their environment (Linux)."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb", buffering=0) as file:
                if mark.encode() in file.readall() and alive(int(entry)):
                    found.append(int(entry))
    return found


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether a signal that was sent to a process has not reached it yet (Linux)."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return any(int(waiting, 16) >> (number - 1) & 1 for waiting in re.findall(r"\wPnd:\s+(\w+)", status))


