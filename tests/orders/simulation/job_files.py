"""Job files: what waits for what in one, and how one is drawn for a history."""
from __future__ import annotations

import fnmatch
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tests.orders.simulation.files import command_of, lines_of


class Step(NamedTuple):
    """A job line of a file with names."""
    line: bytes
    host: bytes             # b"": any
    awaited: list[int]      # offsets of the lines for which it waits (after=)
    checked: list[int]      # of those above the last barrier check
    restricted: bool        # by limit= or from=


def steps_of(data: bytes | bytearray) -> dict[int, Step]:
    """The job lines of a file by offset."""
    steps: dict[int, Step] = {}
    named: dict[bytes, list[int]] = {}
    settings: dict[bytes, bytes] = {}
    awaited: list[int] = []
    checked: list[int] = []
    for at, line in lines_of(data):
        if line == b"#RUN barrier check":
            checked = [*steps]
        elif line.startswith(b"#RUN ") and b"=" in line:
            settings = dict(word.split(b"=") for word in line.split()[1:])
            patterns = settings.get(b"after", b"").split(b",")
            awaited = [above for name, lines in named.items() for above in lines
                       if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        elif command_of(line) != line:
            steps[at] = Step(line, settings.get(b"host", b""), awaited, checked,
                             b"limit" in settings or b"from" in settings)
            if b"name" in settings:
                named.setdefault(settings[b"name"], []).append(at)
    return steps


def unfinished_above(steps: Mapping[int, Step], at: int) -> bytes:
    """The first line that is not done of those for which a line waits, also at a check; or b""."""
    if not (step := steps.get(at)):
        return b""
    above = [line for other in step.awaited if (line := steps[other].line)[:1] != b"d"]
    above += [line for other in step.checked if (line := steps[other].line)[:1] in b".r!e"]
    return above[0] if above else b""


def stopped_steps(steps: Mapping[int, Step]) -> set[int]:
    """The new lines and orphans that a failure or a held line stops, at once or through others."""
    stopped: set[int] = set()
    for at, (line, _, awaited, checked, _) in steps.items():
        bad = [above for above in awaited if steps[above].line[:1] not in b".rd"]
        bad += [above for above in checked if steps[above].line[:1] in b"!e"]
        if line[:1] in b".r" and (bad or not stopped.isdisjoint([*awaited, *checked])):
            stopped.add(at)
    return stopped


def make_lines(draws: random.Random) -> list[bytes]:
    """A job file."""
    commands = [b" a", b" b", b" c", b" d"][:draws.choice((1, 2, 2, 3, 4))]
    if draws.random() < 0.33:
        commands += draws.choices(commands[:2], k=draws.choice((1, 1, 2, 3)))
        draws.shuffle(commands)
    # few new lines among failed ones: what -r and --resume mean is most of the work then
    states = (b".",) * draws.choice((8, 8, 1)) + (b"r", b"!", b"e", b"d")
    lines = [draws.choice(states) + command for command in commands]
    if draws.random() < 0.25:
        lines.insert(draws.randrange(1, len(lines) + 1), b"#RUN barrier")
    if draws.random() < 0.1:
        lines += [b"#RUN host=one", b". of one"]
    return lines


def make_steps(draws: random.Random, hosts: Sequence[bytes]) -> list[bytes]:
    """A job file in which jobs wait for jobs by name, or by a pattern; hosts: settings."""
    lines: list[bytes] = []
    names: list[bytes] = []
    for number in range(draws.choice((2, 3, 5, 8))):
        words = []
        name = draws.choice((b"", b"a1", b"a2", b"b1"))
        if names and draws.random() < 0.8:
            chosen = {draws.choice(names) for _ in range(draws.choice((1, 1, 2)))} - {name}
            if draws.random() < 0.2:
                chosen = {draws.choice(names)[:1] + b"*"}
            words += [b"after=" + b",".join(sorted(chosen))] * bool(chosen)
        words += [b"name=" + name] * bool(name) + [draws.choice(hosts)] * (draws.random() < 0.3)
        lines += [b"#RUN " + b" ".join(words)] * bool(words) or [b"#RUN host=*"]
        names += [name] * bool(name)
        if draws.random() < 0.1:
            lines.append(b"#RUN barrier")
        lines += [draws.choice((b".",) * 12 + (b"d", b"x", b"!", b"e", b"r")) + b" %d%c" % (number, letter)
                  for letter in b"abc"[:draws.choice((1, 1, 2, 3))]]
    return lines
