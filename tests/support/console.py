"""The console of a runner: what it prints, line by line."""
import os
import re
import select
import time
from dataclasses import dataclass
from typing import Optional

CONSOLE_LINE = re.compile(rb"(executing) `(.*)'|(status|stdout|stderr) \(([^,()]+),(\d+)\): (.*)", re.DOTALL)


@dataclass
class ConsoleLine:
    """A line that a runner printed: executing (text is the command), status, stdout or stderr."""
    kind: str
    host: str
    pid: int
    text: bytes


def console_lines(out: bytes) -> list[ConsoleLine]:
    """What a runner printed on stdout, line by line; fails where one has none of the forms or is cut."""
    if not out:
        return []
    found = []
    whole, _, rest = out.rpartition(b"\n")
    assert not rest, f"the last line has no newline: {rest[:200]!r}"
    for line in whole.split(b"\n"):
        match = CONSOLE_LINE.fullmatch(line)
        assert match, f"not a line of the console: {line[:200]!r}"
        if match[1]:
            found.append(ConsoleLine("executing", "", 0, match[2]))
        else:
            found.append(ConsoleLine(match[3].decode(), match[4].decode(), int(match[5]), match[6]))
    return found


def printed(lines: list[ConsoleLine], kind: str = "stdout", pid: Optional[int] = None) -> list[bytes]:
    """The texts of the lines of one kind, of one job or of all."""
    return [line.text for line in lines if line.kind == kind and pid in (None, line.pid)]


def read_terminal(master: int) -> bytes:
    """All that a pseudo-terminal gets until its last holder has gone, with plain newlines."""
    shown, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([master], [], [], 0.1)[0]:
            try:
                shown += os.read(master, 65536)
            except OSError:                         # EIO: the hang-up
                return shown.replace(b"\r\n", b"\n")
    raise AssertionError(f"the runner did not end: {shown[-1000:]!r}")
