"""The scripts as pip installs them, for tests and benchmarks of the commands that it makes."""
import pathlib
import re
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = re.compile(r'^"?([\w.-]+)"? = "([\w.]+):(\w+)"$', re.MULTILINE)       # in pyproject.toml
COMMAND = """\
#!{python}
import sys
sys.path.append({site!r})
from {module} import {name}
if __name__ == '__main__':
    sys.exit({name}())
"""


def install(directory: pathlib.Path) -> list[str]:
    """Put modules into directory/site, and commands into directory/bin; the names of these."""
    site, programs = directory / "site", directory / "bin"
    site.mkdir()
    programs.mkdir()
    for script in ROOT.glob("*.py"):
        shutil.copy(script, site)
    shutil.copy(ROOT / "docs/install/commands.py", site / "runmaker4_commands.py")
    found = SCRIPT.findall((ROOT / "pyproject.toml").read_text())
    for command, module, name in found:
        (programs / command).write_text(COMMAND.format(python=sys.executable, site=str(site), module=module,
                                                       name=name))
        (programs / command).chmod(0o755)
    return [command for command, _, _ in found]
