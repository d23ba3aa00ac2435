"""What the commands that pip makes of the five scripts start; installed as runmaker4_commands.py, beside the
scripts.

A script that is started by the name of its file is compiled anew each time.  A command starts it as `python
-m` does, by the name of its module: from the bytecode that is kept beside it.
"""
import functools
import os
import runpy
import sys


def run(script: str) -> None:
    """Run a script; its name may have a hyphen, which only the import statement does not take."""
    # where Python looks for modules first; but
    commands = os.path.dirname(os.path.realpath(sys.argv[0]))
    # runmaker4.py is a command there, not the module
    sys.path[:] = [path for path in sys.path if path != commands]
    runpy.run_module(script, run_name="__main__")


runmaker4, runset4, runwait4, server, client = (functools.partial(run, script) for script in (
    "runmaker4", "runset4", "runwait4", "runmaker4-server", "runmaker4-client"))
