"""What stands in the documents: blocks, pieces in backquotes, messages; and stubs for the programs there."""
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


# Stand-ins for programs that a test does not have.  The first ones are the user's own
STUBS = dict.fromkeys(("prepare", "collect", "prog", "train", "run"), "")
STUBS.update({
    # a simulation: one of them fails, and all take as long as a test wants them to
    "simulate": "while [ -e hold ]; do sleep 0.05; done; echo \"$@\"; [ \"$2\" != 13 ]",
    "sbatch": "echo 1234",                                              # Slurm: it takes a batch job
    "qrsh": "shift 3; exec sh -c \"$*\"",                               # Grid Engine: -inherit -nostdin HOST
    "oarsh": "shift; exec sh -c \"$*\"",                                # OAR: HOST
    "srun": "while [ \"${1#-}\" != \"$1\" ]; do shift; done; exec \"$@\"",      # Slurm: a step of one task
    "scancel": "[ \"${*#-b }\" = '-s USR1 1234' ]",                     # Slurm: a signal for a batch job
    "apptainer": "shift 2; exec \"$@\"",                                # a container: exec IMAGE COMMAND
    "docker": "until [ \"$1\" = IMAGE ]; do shift; done; shift; exec \"$@\"",
    # a scope: OPTIONS /bin/sh -c JOB
    "systemd-run": "until [ \"$1\" = /bin/sh ]; do shift; done; exec \"$@\"",
    # a container: --image=IMAGE -- COMMAND
    "shifter": "shift 2; exec \"$@\"",
    # a host, which has a shell read the command
    "ssh": "[ \"$1\" = -f ] && exit; [ \"$1\" != -t ] || shift; [ \"$1\" != -S ] || shift 2\n"
           "[ \"$1\" != -o ] || shift 2\n"
           "shift; exec sh -c \"$*\"",
    # a mail that says something
    "mail": "grep -q '1 done' && echo \"$2\" > mail",
    "scp": "test -s \"${2#alice:}\"",                                   # a host: its file is here already
    # -a FILE HOST:DIRECTORY
    "rsync": "mkdir -p \"${3#*:}\"",
    # --query-gpu=index: a host with two GPUs
    "nvidia-smi": "seq 0 1",
    # MPI: -n NUMBER [--host HOSTS]
    "mpirun": "shift 2; [ \"$1\" != --host ] || shift 2; \"$@\" && \"$@\"",
    # -c . FILE: of lines that are valid, the same
    "jq": "[ ! -x /usr/bin/jq ] || exec /usr/bin/jq \"$@\"; shift 2; exec cat \"$@\"",
    "openssl": "echo 0123456789abcdef0123456789abcdef",                 # rand -hex 16
})
