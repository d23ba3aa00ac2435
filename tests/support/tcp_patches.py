"""Statements that servers and clients run before they start, as those of patches.py."""


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
