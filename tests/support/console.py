"""The console of a runner: what it prints, line by line."""
import re
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
    whole, _, rest = re.sub(rb"(?m)^next: runwait4\.py .*\n", b"", out).rpartition(b"\n")
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


