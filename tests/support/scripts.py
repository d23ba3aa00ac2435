"""The five scripts: their names, where tests start them from, and which of the tests a run has."""
import atexit
import os
import pathlib
import py_compile
import random
import shutil
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNMAKER, RUNSET, RUNWAIT = "runmaker4.py", "runset4.py", "runwait4.py"
RUNSERVER, RUNCLIENT = "runmaker4-server.py", "runmaker4-client.py"
SCRIPTS = (RUNMAKER, RUNSET, RUNWAIT, RUNSERVER, RUNCLIENT)
FULL = bool(os.environ.get("RUNMAKER4_TEST_FULL"))      # the full sizes, a minute each; .ci/run turns it on
# the largest sizes, many minutes each; .ci/run all
ALL = os.environ.get("RUNMAKER4_TEST_FULL") == "all"
# Chooses what differs between the runs of .ci/run, which prints it; empty by hand, where nothing differs
SEED = os.environ.get("RUNMAKER4_TEST_SEED", "")
SCRIPTS_AT, PYTHON = ROOT, sys.executable
# compile the scripts once, not at each start; Python takes a directory with a __main__ for a script
if not ALL:
    SCRIPTS_AT = pathlib.Path(tempfile.mkdtemp(prefix="runmaker4-compiled-"))
    atexit.register(shutil.rmtree, SCRIPTS_AT, ignore_errors=True)
    for name in SCRIPTS:
        py_compile.compile(str(ROOT / name), f"{SCRIPTS_AT / name}c", doraise=True)
        (SCRIPTS_AT / name).mkdir()
        (SCRIPTS_AT / name / "__main__.pyc").symlink_to(f"{SCRIPTS_AT / name}c")
        for other in SCRIPTS:       # each is beside the others
            (SCRIPTS_AT / name / f"{other}c").with_suffix(".pyc").symlink_to(SCRIPTS_AT / f"{other}c")
    # an environment of its own: what others have added is not loaded
    PYTHON = str(SCRIPTS_AT / "bin/python3")
    os.mkdir(SCRIPTS_AT / "bin")
    os.symlink(os.path.realpath(sys.executable), PYTHON)
    (SCRIPTS_AT / "pyvenv.cfg").write_text("include-system-site-packages = false\n"
                                           f"home = {os.path.dirname(os.path.realpath(sys.executable))}\n")
    # jobs that say python3 mean this one, and no wrapper that first looks for a version
    os.environ["PATH"] = f"{SCRIPTS_AT}/bin:{os.environ.get('PATH', os.defpath)}"


def write_programs(directory: pathlib.Path, **more: str) -> None:
    """Make a directory for PATH: the scripts, this Python, and `more`: names with words that start them."""
    directory.mkdir()
    programs = {script: f"{PYTHON} {SCRIPTS_AT / script}" for script in SCRIPTS}
    for name, words in {**programs, "python3": PYTHON, **more}.items():
        (directory / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (directory / name).chmod(0o755)


def chance(name: str) -> random.Random:
    """What the SEED chooses for this name: the same in each process."""
    return random.Random(f"{SEED} {name}")


def program_of(script: str, path: object, statements: str = "") -> str:
    """What python3 -c runs: statements, which import runmaker4, and then a script, as if at this path."""
    return (f"import sys\nsys.path[:0] = [{str(SCRIPTS_AT)!r}]\n{statements}\n"
            f"script = __import__({script[:-3]!r})\n"
            f"sys.argv[0] = {str(path)!r}\nscript.exit_now(script.main())\n")
