"""What tests share, by subject: see tests/README.md.

In ordinary size a script is a fork of a Python that has imported it: a test need not know of that.
"""
from tests.support.case import Case
from tests.support.forking import CLONE, Forked
from tests.support.scripts import FULL

if CLONE and not FULL:
    Case.fork = Forked
