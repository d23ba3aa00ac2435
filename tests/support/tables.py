"""The tables in comments and docstrings of the scripts, which tests look up."""
import inspect
from types import ModuleType


def cells(module: ModuleType, heading: str, *columns: str) -> list[list[str]]:
    """The rows of the table with this heading and these columns in a script, without their names."""
    lines = iter(inspect.getsource(module).splitlines())
    titles = next(line for line in lines if line.lstrip(" #").startswith(heading) and columns[0] in line)
    starts = [*map(titles.index, (heading, *columns)), len(titles) + 60]
    rows: list[list[str]] = []
    while (line := next(lines)).strip(" #") or not rows:
        # what begins further right belongs to the row above
        begun = [""] * len(columns) if line[:starts[0] + 1].strip(" #") or not rows else rows.pop()
        rows.append([f"{cell} {line[start:end].strip()}".strip()
                     for cell, start, end in zip(begun, starts[1:], starts[2:])])
    return rows[not any(rows[0]):]
