"""Statements that servers and clients run before they start, as those of patches.py."""
import importlib
import re
from typing import Any

from tests.support.tables import cells

# a client dials again soon, and what runs is in the records soon
EAGER = """
import random, runmaker4
random.uniform = lambda low, high: 0.02
runmaker4.Journal.GATHER_SECONDS = runmaker4.OutDir.MAX_SHORT_SECONDS = 0.1
"""
# all calls of a server's worker are made by a thread, as on a network file system
THREADED = """
import os, runmaker4, time
init = runmaker4.FileExecutor.__init__
runmaker4.FileExecutor.__init__ = lambda self, threaded, *rest, **more: init(self, True, *rest, **more)
"""


def checking_phases() -> str:
    """A phase of an assignment that the table of AssignmentPhase does not name as the next is a defect."""
    server: Any = importlib.import_module("runmaker4-server")
    rows = cells(server, "phase", "meaning", "next phase")
    names = [phase.name for phase in server.AssignmentPhase]
    followers = {name: re.findall("|".join(names), following)
                 for name, (_, following) in zip(names, rows)}
    return f"""
server, followers = __import__("runmaker4-server"), {followers!r}
def set_phase(self, phase):
    before = vars(self).get("phase")
    assert before is None or phase.name in followers[before.name], (before, phase)
    vars(self)["phase"] = phase
server.Assignment.phase = property(lambda self: vars(self)["phase"], set_phase)
"""
