"""What stands in the documents: blocks, pieces in backquotes, and messages that are explained."""
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

from tests.support.scripts import ROOT


@dataclass
class Piece:
    """A block, or what stands in backquotes in the text.  kind: the word behind the fence, or "inline"."""
    place: str                          # document:line
    kind: str
    text: str
    shown: str = ""                     # of a block of commands: the output that is shown right below it


def read_pieces(document: str) -> Iterator[Piece]:
    """All blocks and inline pieces of a document, in order; a block of output is part of what printed it."""
    block: Optional[Piece] = None
    above: Optional[Piece] = None       # a block of commands, while only blank lines have followed it
    for number, line in enumerate((ROOT / document).read_text().splitlines(), 1):
        place = f"{document}:{number}"
        if line.startswith("```"):
            if block is None:
                block = Piece(place, line[3:], "")
            else:
                block.text = block.text.rstrip("\n")
                if block.kind == "console":             # commands behind `$ `, and what they print
                    typed = re.findall(r"^\$ (.*)$", block.text, re.MULTILINE)
                    shown = re.sub(r"(?m)^\$ .*\n?", "", block.text)
                    block = Piece(block.place, "sh", "\n".join(typed), shown)
                if block.kind == "text" and above:
                    above.shown = block.text
                else:
                    yield block
                above = block if block.kind == "sh" else None
                block = None
        elif block:
            block.text += f"{line}\n"
        else:
            above = None if line else above
            if line.count("`") % 2:
                raise AssertionError(f"{place}: an odd number of backquotes")
            for text in re.findall("`([^`]+)`", line):
                yield Piece(place, "inline", text.replace(r"\|", "|") if line.startswith("|") else text)
    if block:
        raise AssertionError(f"{block.place}: this block has no end")


# The messages that docs/messages.md explains; `...` replaces numbers and names.  tests/docs/test_reference.py
# compares them with the code
TABLE = (ROOT / "docs/messages.md").read_text().partition("## Messages\n")[2].partition("\n## ")[0]
MESSAGES = re.findall("`([^`]+)`", " ".join(re.findall(r"^\| (.*?) \| ", TABLE, re.MULTILINE)))
