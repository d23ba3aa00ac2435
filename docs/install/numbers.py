"""Write docs/numbers.md: each number of the scripts that has a name, with the comment beside it.

    python3 -m docs.install.numbers     in a checkout; a test says when
"""
from __future__ import annotations

import ast
import itertools
import re
import textwrap
from collections.abc import Iterator

from docs.install.make import HERE, SCRIPTS

DOCS = HERE.parent
PAGE = DOCS / "numbers.md"
MAX_VALUE = 30                  # characters: longer numbers are those of a curve
HEAD = """\
# Numbers

The numbers that have a name in the scripts, in the order of the code, with the comment at the line, or what
the class is. A comment can go on from the one above. Two values: on a local and on a network file system.
What options and `#RUN` settings set is in `--help` and in the [reference](reference.md).
`python3 -m docs.install.numbers` makes this page.
"""


def made() -> str:
    """Return the page."""
    parts = [HEAD]
    for script in SCRIPTS:
        parts.append(f"\n## {script}.py\n")
        for section, items in itertools.groupby(numbers(script), lambda number: number[0]):
            parts.append(f"\n### {section}\n" * bool(section))
            parts += ["\n", *(f"{item}\n" for _, item in items)]
    return "".join(parts)


def numbers(script: str) -> Iterator[tuple[str, str]]:
    """Yield the section of each number, "" above the first, and an item for the list."""
    text = (DOCS.parent / f"{script}.py").read_text("utf-8")
    lines = text.splitlines()
    sections = [""]                 # of each line
    for line in lines:
        heading = re.match("# ======== (.*?) =+$", line)
        sections.append(heading[1] if heading else sections[-1])
    for names, value, line_number, what in assignments(ast.parse(text), ""):
        comment = comment_of(lines, line_number)
        yield sections[line_number], textwrap.fill(
            f"- {names} = {value}{f': {comment}' if comment else what}", 120, subsequent_indent="  ",
            break_long_words=False, break_on_hyphens=False)


def assignments(owner: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, str, int, str]]:
    """Yield names, value and line number of the numbers of a module or class, and what the class is."""
    what = ""
    if isinstance(owner, ast.ClassDef):
        sentence = " ".join((ast.get_docstring(owner) or "").split()).partition(". ")[0].rstrip(".")
        what = f" ({sentence})" * bool(sentence)
    for statement in owner.body:
        if isinstance(statement, ast.ClassDef) and "Enum" not in "".join(map(ast.unparse, statement.bases)):
            yield from assignments(statement, f"{statement.name}.")
        if not isinstance(statement, ast.Assign):
            continue
        names, value = ast.unparse(statement.targets[0]), ast.unparse(statement.value)
        # other names of a class are attributes before they are set
        is_constant = names.isupper() and value[-1].isdecimal()
        if match := re.fullmatch(r"Seconds\((.+), (.+)\)", value):
            is_constant, value = True, f"{match[1]} and {match[2]} s"
        if is_constant and is_number(statement.value) and len(value) <= MAX_VALUE:
            yield (", ".join(f"`{prefix}{name}`" for name in re.findall(r"\w+", names)), value,
                   statement.lineno, what)


def is_number(value: ast.expr) -> bool:
    """Return True for an expression of numbers, and of names: of numbers, as the value ends in a digit."""
    calculations = ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Tuple, ast.Load, ast.Name
    return all(isinstance(node, calculations)
               or (isinstance(node, ast.Constant) and type(node.value) in (int, float))
               or (isinstance(node, ast.Call) and ast.unparse(node.func) == "Seconds")
               for node in ast.walk(value))


def comment_of(lines: list[str], line_number: int) -> str:
    """Return the comment at a line, or the one above; "": there is none."""
    if match := re.search("  # *(.*)$", lines[line_number - 1]):
        return match[1]
    above = itertools.takewhile(re.compile(" *# ").match, reversed(lines[:line_number - 1]))
    return re.sub(" +", " ", " ".join(line.lstrip(" #") for line in reversed([*above])))


if __name__ == "__main__":
    PAGE.write_text(made(), "utf-8")
