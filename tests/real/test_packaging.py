"""runmaker4 as pip, pipx and uv install it, with the oldest and the newest Python, and in real shells and
manuals.

    RUNMAKER4_TEST_REAL=1 python3 -m unittest tests.real.test_packaging
"""
import atexit
import contextlib
import functools
import os
import pathlib
import pty
import re
import select
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
import zipfile
from collections.abc import Sequence
from typing import Any, Optional

from tests.real.rigs import REAL, lacking
from tests.support.anywhere import AnywhereCase
from tests.support.processes import Ended
from tests.support.scripts import ROOT, SCRIPTS

COMMANDS = [*SCRIPTS, *(script[:-3] for script in SCRIPTS)]
OURS = re.compile(r"runmaker4|runset4|runwait4")
PROMPT = b"READY> "
SHELLS = {"bash": ["bash", "--rcfile", ".bashrc", "-i"], "zsh": ["zsh", "-d", "-i"], "fish": ["fish", "-i"]}
PACKAGES = {"bash": "bash", "zsh": "zsh", "fish": "fish", "man": "man-db", "groff": "groff",
            "mandoc": "mandoc", "dh_bash-completion": "bash-completion"}


def python(version: str) -> str:
    """A Python of this version here.  Raises SkipTest."""
    known = sorted(pathlib.Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))
    found = str(known[-1]) if known else shutil.which(f"python{version}")
    if not found:
        raise unittest.SkipTest(f"no Python {version} here")
    return found


@functools.cache
def tools() -> pathlib.Path:
    """A directory with pipx, uv and build in it, made once.  Raises SkipTest."""
    home = pathlib.Path(tempfile.mkdtemp(prefix="runmaker4-tools-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    for words in (["-m", "venv", home], ["-m", "pip", "install", "pipx", "uv", "build"]):
        program = home / "bin/python" if "pip" in words else sys.executable
        made = subprocess.run([program, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=300, check=False)
        if made.returncode:
            raise unittest.SkipTest(f"pipx, uv and build cannot be had here: {made.stdout.decode()[-300:]}")
    return home / "bin"


@unittest.skipUnless(REAL, "real pip, pipx, uv and shells: RUNMAKER4_TEST_REAL=1 turns them on")
class PackagingCase(AnywhereCase):
    """A test with a copy of the project, and directories of its own for all that installs it."""

    def setUp(self) -> None:
        super().setUp()
        self.project, self.home = self.dir / "project", self.dir / "home"
        self.home.mkdir()
        # what .gitignore names, too: the memory of tools that have checked this checkout
        left_out = shutil.ignore_patterns(".git", "__pycache__", "dist", ".mypy_cache", ".ruff_cache")
        shutil.copytree(ROOT, self.project, ignore=left_out)

    def environ(self, extra: Optional[dict[str, str]] = None) -> dict[str, str]:
        at = {name: str(self.home / name) for name in (
            "PYTHONUSERBASE", "PIPX_HOME", "PIPX_BIN_DIR", "PIPX_MAN_DIR", "UV_TOOL_DIR", "UV_TOOL_BIN_DIR")}
        settings = {"PIP_NO_WARN_SCRIPT_LOCATION": "1", "PIP_BREAK_SYSTEM_PACKAGES": "1",
                    "PYTHONDONTWRITEBYTECODE": "", "UV_CACHE_DIR": str(tools() / "cache"),
                    "UV_PYTHON_DOWNLOADS": "never",
                    # else an index that is slow to answer makes them warn or give up
                    "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_DEFAULT_TIMEOUT": "60",
                    "UV_HTTP_TIMEOUT": "60"}
        return super().environ({**at, **settings, **(extra or {})})

    def call(self, *words: object, **settings: Any) -> Ended:
        ended = self.run_script(*map(str, words), timeout=300, **settings)
        self.assertEqual(ended.code, 0, ended.out + ended.err)
        return ended

    def files(self) -> set[pathlib.Path]:
        return {path for path in self.home.rglob("*") if not path.is_dir()}


class Installed(PackagingCase):
    """All ways to install give ten commands, with manual pages and completion, and remove them again."""

    def check(self, programs: str, *remove: object) -> None:
        """Use what is installed, then remove it.  programs: the directory of the commands, in the home."""
        path = {"PATH": f"{self.home / programs}:{os.environ['PATH']}"}
        for command in COMMANDS:
            self.assertTrue((self.home / programs / command).exists(), command)
            self.assertIn(b" 4.", self.call("env", command, "--version", env=path).out)
        self.assertWork(lambda script, *args: self.run_script("env", script[:-3], *args, env=path))
        names = {path.name for path in self.files()}
        self.assertLessEqual({"runmaker4-server.1", "runmaker4.5", "_runset4", "runwait4.fish",
                              "runmaker4.py"}, names)
        compiled = {name.partition(".")[0] for name in names if name.endswith(".pyc") and OURS.match(name)}
        self.assertLessEqual({script[:-3] for script in SCRIPTS}, compiled)
        self.call(*remove)
        left = [path for path in self.files() if OURS.search(str(path.relative_to(self.home)))]
        # that is pipx's own
        self.assertEqual([path for path in left if path.name != ".runmaker4.lock"], [])

    def with_pip(self, version: str) -> None:
        """In a virtual environment."""
        self.call(python(version), "-m", "venv", self.home / "env")
        before, pip = self.files(), [self.home / "env/bin/python", "-m", "pip"]
        self.call(*pip, "install", self.project)
        self.check("env/bin", *pip, "uninstall", "-y", "runmaker4")
        self.assertEqual({path for path in self.files() - before if "site-packages/pip" not in str(path)},
                         set())

    def with_pip_user(self, version: str) -> None:
        pip = [python(version), "-m", "pip"]
        self.call(*pip, "install", "--user", self.project)
        self.check("PYTHONUSERBASE/bin", *pip, "uninstall", "-y", "runmaker4")
        self.assertEqual(self.files(), set())

    def with_pipx(self, version: str) -> None:
        self.call(tools() / "pipx", "install", "--python", python(version), self.project)
        self.assertTrue((self.home / "PIPX_MAN_DIR/man1/runset4.1").exists())
        self.check("PIPX_BIN_DIR", tools() / "pipx", "uninstall", "runmaker4")

    def with_uv(self, version: str) -> None:
        self.call(tools() / "uv", "tool", "install", "--python", python(version), self.project)
        self.check("UV_TOOL_BIN_DIR", tools() / "uv", "tool", "uninstall", "runmaker4")

    def with_uvx(self, version: str) -> None:
        uvx = [tools() / "uvx", "--python", python(version), "--from", self.project]
        self.assertWork(lambda script, *args: self.call(*uvx, script[:-3], *args))


def add_tests() -> None:
    """A test for each way and version."""
    for way in [name for name in vars(Installed) if name.startswith("with_")]:
        for version in "3.9", "3.13":
            def test(case: Installed, way: str = way, version: str = version) -> None:
                getattr(case, way)(version)
            setattr(Installed, f"test_{way}_on_{version.replace('.', '_')}", test)


add_tests()


class Built(PackagingCase):
    """What is published."""

    def test_the_archives_hold_everything_and_are_built_without_a_warning(self) -> None:
        ended = self.call(tools() / "python", "-m", "build", self.project)
        self.assertNotIn(b"warning", (ended.out + ended.err).lower().replace(b"warning: location", b""))
        wheel, = (self.project / "dist").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = {re.sub(r"^.*\.data/data/", "", name) for name in archive.namelist()
                     if ".dist-info" not in name}
        install = self.project / "docs/install"
        shared = {str(path.relative_to(install)) for path in (install / "share").rglob("*") if path.is_file()}
        documents = {
            f"share/doc/runmaker4/{path.relative_to(self.project)}"
            for path in (self.project / "README.md", self.project / "CHANGELOG.md", *install.parent.iterdir())
            if path.is_file()
        }
        self.assertEqual(names, {*SCRIPTS, "runmaker4_commands.py", *shared, *documents})
        source, = (self.project / "dist").glob("*.tar.gz")
        with tarfile.open(source) as archive:
            held = {name.partition("/")[2] for name in archive.getnames()} - {"PKG-INFO"}
        self.assertEqual(held, {str(path.relative_to(self.project)) for path in self.project.rglob("*")
                                if path.is_file() and path.parent.name != "dist"})


class Shown(PackagingCase):
    """Real shells complete words, and real manuals show pages, without a warning."""
    SHARE = ROOT / "docs/install/share"

    def setUp(self) -> None:
        super().setUp()
        why = lacking("a shell or a manual", PACKAGES,
                      ["test", "-e", "/usr/share/bash-completion/bash_completion"])
        if why:
            self.skipTest(why)

    def test_the_pages(self) -> None:
        pages = self.SHARE.glob("man/*/*")
        for page in map(str, sorted(path for path in pages if not path.name.endswith(".py.1"))):
            for words in (["groff", "-ww", "-man", "-Tutf8", page], ["mandoc", "-Tlint", page],
                          ["man", "--warnings", "-l", page]):
                ended = self.call(*words)
                self.assertEqual(ended.err, b"", words)
                if words[0] == "mandoc":
                    self.assertEqual(ended.out, b"", words)

    def test_a_page_is_found_under_the_name_of_the_script(self) -> None:
        env = {"MANPATH": str(self.SHARE / "man"), "MANWIDTH": "80"}
        pages = {self.call("man", name, env=env).out for name in ("runmaker4.py", "runmaker4")}
        self.assertEqual([b"\nSYNOPSIS\n" in page for page in pages], [True])

    def test_options_words_files_and_directories_are_completed(self) -> None:
        (self.dir / "directory").mkdir()
        self.write("", "notes.txt")
        self.make_home()
        for shell in SHELLS:
            for name in "runmaker4", "runmaker4.py":
                with self.subTest(shell=shell, name=name):
                    self.assertEqual(self.complete(shell, f"{name} --outd\tdi\t -l no\t no\t"),
                                     ["--outdir", "directory", "-l", "notes.txt", "notes.txt"])
            with self.subTest(shell=shell):
                self.assertEqual(self.complete(shell, "runset4 --sta\thel\t --set=do\t no\t"),
                                 ["--state", "held", "--set", "done", "notes.txt"])
                self.assertEqual(self.complete(shell, "runmaker4-server --exit-\t no\t"),
                                 ["--exit-when-done", "notes.txt"])

    def test_a_file_where_commands_are_locked_is_no_job_file(self) -> None:
        (self.dir / "below").mkdir()
        for name in ".runs.txt.lock", ".runs.old", "below/.runs.txt.lock", "below/.runs.old":
            self.write("", name)
        self.make_home()
        for shell in SHELLS:
            for typed in "runset4 .ru\t", "runset4 below/.ru\t", "runmaker4.py -j2 .ru\t":
                with self.subTest(shell=shell, typed=typed):
                    self.assertEqual(self.complete(shell, typed)[-1].removeprefix("below/"), ".runs.old")

    def test_the_options_of_scripts_that_were_copied_are_completed(self) -> None:
        (self.dir / "directory").mkdir()
        self.make_home(SCRIPTS)
        for shell in SHELLS:
            with self.subTest(shell=shell):
                self.assertEqual(self.complete(shell, "runwait4.py --outd\tdi\t"), ["--outdir", "directory"])

    def make_home(self, commands: Sequence[str] = COMMANDS) -> None:
        """Commands that only say what they were given, and shells that know where completions are."""
        (self.dir / "bin").mkdir()
        for name in commands:
            self.write('#!/bin/sh\nprintf "%s\\n" "$@" >said.new && mv said.new said\n', f"bin/{name}").chmod(
                0o755
            )
        self.write("set -U fish_greeting\nfunction fish_prompt; echo 'READY> '; end\n", "config.fish")
        (self.dir / "fish").mkdir()
        (self.dir / "config.fish").rename(self.dir / "fish/config.fish")
        self.write(". /usr/share/bash-completion/bash_completion\nPS1='READY> '\n", ".bashrc")
        self.write(
            f"fpath=({self.SHARE}/zsh/site-functions $fpath)\nautoload -Uz compinit && compinit -D -u\n"
            "PS1='READY> '\n",
            ".zshrc",
        )

    def complete(self, shell: str, typed: str) -> list[str]:
        """Type a line in a shell: the words that the command was given, also those on both sides of a '='."""
        home = str(self.dir)
        env = self.environ({"PATH": f"{home}/bin:{os.environ['PATH']}", "HOME": home, "ZDOTDIR": home,
                            "TERM": "xterm", "XDG_CONFIG_HOME": home,
                            "XDG_DATA_DIRS": f"{self.SHARE}:/usr/share",
                            "BASH_COMPLETION_USER_DIR": f"{self.SHARE}/bash-completion"})
        ours, theirs = pty.openpty()
        said, shown, end = self.dir / "said", b"", time.monotonic() + 60
        process = subprocess.Popen(["setsid", "--ctty", *SHELLS[shell]], cwd=home, env=env, stdin=theirs,
                                   stdout=theirs, stderr=theirs)
        self.started.append(process)
        os.close(theirs)
        with contextlib.closing(os.fdopen(ours, "r+b", buffering=0)) as terminal:
            while not said.exists() and time.monotonic() < end:
                if select.select([ours], [], [], 0.05)[0]:
                    prompted, shown = PROMPT in shown, shown + terminal.read(1 << 16)
                    if PROMPT in shown and not prompted:
                        terminal.write(typed.encode() + b"\n")
            process.kill()
        self.assertTrue(said.exists(), shown)
        words = re.split(r"[\n=]", said.read_text().rstrip("\n"))
        said.unlink()
        return [word.rstrip("/") for word in words]
