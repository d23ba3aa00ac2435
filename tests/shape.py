"""What a reader meets: size and density of Python files.

    python3 -m tests.shape FILE...                  a line for each file, and one for all
    python3 -m tests.shape --limit LIMIT FILE...    fail if there is more of them than LIMIT says

nodes: of the syntax tree, what there is to understand, however it is laid out.  code: lines that are neither
blank, nor comment, nor docstring.  words: of comments and docstrings.  wide: lines of more than 110
characters.  attributes: of the class that has most of them.  flags: attributes that are ever set to True,
False or None, so states that are spread over variables.

LIMIT begins with the nodes of all files.  Too many words for a line of code are only reported: a limit made
sentences shorter, not plainer.
"""
import argparse
import ast
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Optional

NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
           tokenize.ENDMARKER)
DOCUMENTED = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
WIDTH = 110
MANY_WORDS = 3.8        # for a line of code, in one file
HEADINGS = ("file", "lines", "code", "nodes", "nodes/line", "words", "words/line", "wide", "classes",
            "attributes", "flags")
WIDTHS = 22, 6, 6, 7, 10, 6, 10, 4, 7, 10, 5
WORD = re.compile(r"[A-Za-z]{2,}")


@dataclass
class Shape:
    """The figures of a file, or of several."""
    lines: int = 0
    code: int = 0
    nodes: int = 0
    words: int = 0
    wide: int = 0
    classes: int = 0
    attributes: int = 0
    flags: int = 0

    def __add__(self, other: "Shape") -> "Shape":
        total = Shape(*(one + more for one, more in zip(astuple(self), astuple(other))))
        total.attributes = max(self.attributes, other.attributes)
        return total

    def row(self, name: str) -> str:
        """A row of the table, below HEADINGS."""
        density = f"{self.nodes / max(self.code, 1):.1f}"
        size = self.lines, self.code, self.nodes, density, self.words, f"{self.words_for_a_line():.2f}"
        return aligned(name, *size, self.wide, self.classes, self.attributes, self.flags)

    def words_for_a_line(self) -> float:
        """How many words of comments and docstrings there are for a line of code."""
        return self.words / max(self.code, 1)


def aligned(name: str, *cells: object) -> str:
    """A row of the table: the name to the left, all else to the right."""
    first, *others = WIDTHS
    return " ".join([name.ljust(first), *(str(cell).rjust(width) for cell, width in zip(cells, others))])


def code_lines(text: str, tree: ast.AST) -> int:
    """How many lines have code on them."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            first = node.body[0]
            lines.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


Assigned = tuple[ast.expr, Optional[ast.expr]]      # a target and what is assigned to it, if that is known


def assigned(node: ast.AST) -> Iterator[Assigned]:
    """What an assignment assigns; of tuples each element."""
    if isinstance(node, ast.AnnAssign):
        yield node.target, node.value
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if not isinstance(target, ast.Tuple):
                yield target, node.value
            elif isinstance(node.value, ast.Tuple) and len(node.value.elts) == len(target.elts):
                yield from zip(target.elts, node.value.elts)
            else:
                yield from ((each, None) for each in target.elts)


def is_self(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id == "self"


def is_flag(value: Optional[ast.expr]) -> bool:
    return isinstance(value, ast.Constant) and (value.value is None or isinstance(value.value, bool))


def attributes(cls: ast.ClassDef) -> tuple[set[str], set[str]]:
    """All attributes of a class (its fields, and what is set on self), and those that are flags."""
    found: list[tuple[str, Optional[ast.expr]]] = []
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append((node.target.id, node.value))
    for inner in ast.walk(cls):
        for target, value in assigned(inner):
            if isinstance(target, ast.Attribute) and is_self(target.value):
                found.append((target.attr, value))
    return {name for name, _ in found}, {name for name, value in found if is_flag(value)}


def explaining_words(text: str, tree: ast.AST) -> int:
    """How many words comments and docstrings have."""
    texts = [token.string for token in tokenize.generate_tokens(io.StringIO(text).readline)
             if token.type == tokenize.COMMENT]
    texts += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    return sum(len(WORD.findall(each)) for each in texts)


def shape_of(text: str) -> Shape:
    """The figures of a file with this text."""
    tree = ast.parse(text)
    classes = [attributes(node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return Shape(lines=text.count("\n"), code=code_lines(text, tree), nodes=sum(1 for _ in ast.walk(tree)),
                 words=explaining_words(text, tree),
                 wide=sum(len(line) > WIDTH for line in text.splitlines()), classes=len(classes),
                 attributes=max((len(found) for found, _ in classes), default=0),
                 flags=sum(len(flags) for _, flags in classes))


def exceeds(shapes: dict[str, Shape], limit: pathlib.Path) -> bool:
    """Return True, and report it, if there are more nodes in all than this file allows."""
    for name, shape in shapes.items():
        if shape.words_for_a_line() > MANY_WORDS:
            print(f"{name}: {shape.words_for_a_line():.2f} words for a line of code (can some go?)")
    max_nodes = int(limit.read_text("ascii").split()[0])
    nodes = sum(shapes.values(), Shape()).nodes
    if nodes > max_nodes:
        print(f"{limit}: {nodes} nodes (save some, or give the reason for a higher number)")
    elif nodes < max_nodes:
        print(f"{limit}: {nodes} nodes (lower the number in the same commit)")
    return nodes > max_nodes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.shape")
    parser.add_argument("--limit", type=pathlib.Path)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()
    print(aligned(*HEADINGS))
    shapes = {path.name: shape_of(path.read_text(encoding="utf-8")) for path in arguments.files}
    for name, shape in shapes.items():
        print(shape.row(name))
    print(sum(shapes.values(), Shape()).row("all"))
    return int(arguments.limit is not None and exceeds(shapes, arguments.limit))


if __name__ == "__main__":
    sys.exit(main())
