"""The scripts run wherever they are: copied by hand, or as pip makes commands of them."""
import ast
import importlib
import os
import pathlib
import pty
import re
import shutil
import subprocess
import sys
import unittest
from typing import Optional

import runset4
from docs.install import make
from tests.support.anywhere import AnywhereCase
from tests.support.case import Case
from tests.support.installed import install
from tests.support.pipes import read_terminal
from tests.support.scripts import FULL, ROOT, RUNMAKER, RUNSET, RUNWAIT, SCRIPTS, chance

# Each start in a new Python costs a tenth of a second: in ordinary size that of one script stands for all
STARTED = SCRIPTS if FULL else (chance("start").choice(SCRIPTS),)
whole = unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: one start of a script stands for all")


class Copied(AnywhereCase):
    """Copying the files is enough."""

    @whole
    def test_the_copied_files_run_with_nothing_but_the_standard_library(self) -> None:
        home = self.copy_scripts()
        python = [sys.executable, "-S", "-E"]
        self.assertWork(lambda script, *args: self.run_script(*python, str(home / script), *args))

    def copy_scripts(self) -> pathlib.Path:
        home = self.dir / "bin"
        home.mkdir()
        for script in SCRIPTS:
            shutil.copy(ROOT / script, home)
        return home

    def test_no_file_of_the_user_runs_instead_nor_is_another_version_preferred(self) -> None:
        """Nor do -bb and PYTHONSAFEPATH matter, or what does the same before Python 3.11: -I."""
        home = self.copy_scripts()
        user = "raise SystemExit('a file of the user was run')"
        for name in "queue signal copy resource select token argparse asyncio array".split():
            self.write(user, f"bin/{name}.py")
        self.write(user, "runmaker4.py")
        environ = {"PYTHONPATH": str(self.dir)}
        if FULL:
            self.assertWork(lambda script, *args: self.run_script(
                sys.executable, "-bb", str(home / script), *args, env=environ))
        for script in STARTED:
            for python in ["-I", "-bb"], ["-bb"]:
                ended = self.run_script(sys.executable, *python, str(home / script), "--version",
                                        env={**environ, "PYTHONSAFEPATH": "1"})
                self.assertEqual(ended.code, 0, ended.err)

    def test_help_on_a_terminal_has_no_colours_and_all_its_words(self) -> None:
        """Python 3.14 colours a part of it, and 3.15 drops backticks then."""
        for script in STARTED:
            master, terminal = pty.openpty()
            runner = subprocess.Popen([sys.executable, "-E", str(ROOT / script), "--help"], stdout=terminal,
                                      env={**os.environ, "TERM": "xterm", "COLUMNS": "80"})
            os.close(terminal)
            shown = read_terminal(master)
            runner.wait()
            os.close(master)
            self.assertEqual(shown, self.run_script(script, "--help", env={"COLUMNS": "80"}).out, script)

    def test_the_scripts_can_be_started_by_their_names(self) -> None:
        for script in SCRIPTS:
            with self.subTest(script=script):
                self.assertTrue(os.access(ROOT / script, os.X_OK))
                self.assertEqual((ROOT / script).read_bytes().split(b"\n")[0], b"#!/usr/bin/env python3")

    def test_a_script_without_runmaker4_beside_it_says_so(self) -> None:
        for script in SCRIPTS:
            if script != RUNMAKER:
                path = shutil.copy(ROOT / script, self.dir)
                ended = self.run_script(sys.executable, "-E", path, "runs.txt")
                said = f"{script}: runmaker4.py is missing (copy it to where this script is)\n"
                self.assertRefused(ended, said)

    # a later Python says that it is 3.8, and starts the script
    OLD = "import runpy, sys; sys.hexversion = 0x030812F0; sys.argv = sys.argv[1:]; " \
          "runpy.run_path(sys.argv[0], run_name='__main__')"

    @unittest.skipIf(sys.version_info < (3, 10), "ast.parse() of Python 3.9 reads := as if it were in 3.7")
    def test_a_python_that_cannot_even_read_the_script_shows_a_line_that_says_why(self) -> None:
        for script in SCRIPTS:
            for minor in 6, 7:
                with self.subTest(script=script, minor=minor):
                    with self.assertRaises(SyntaxError) as caught:
                        ast.parse((ROOT / script).read_bytes(), feature_version=(3, minor))
                    self.assertIn("Python 3.9 or later", str(caught.exception.text))

    def test_a_python_that_is_too_old_is_named(self) -> None:
        for script in STARTED:
            with self.subTest(script=script):
                ast.parse((ROOT / script).read_bytes(), feature_version=(3, 8))     # so the check is reached
                ended = self.run_script(sys.executable, "-c", self.OLD, str(ROOT / script), "runs.txt",
                                        env={"PYTHONPATH": str(ROOT)})
                self.assertRefused(ended)
                said = f"{script}: needs Python 3.9 or later (this is {sys.version.split()[0]})\n"
                self.assertEqual(ended.err.decode(), said)


class Commands(AnywhereCase):
    """The commands that pip, pipx and uv make are all of one form, and start the scripts from bytecode."""

    def setUp(self) -> None:
        super().setUp()
        self.names = install(self.dir)

    def environ(self, extra: Optional[dict[str, str]] = None) -> dict[str, str]:
        path = f"{self.dir}/bin:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        ours = {"PATH": path, "PYTHONPATH": f"{self.dir}/site", "PYTHONDONTWRITEBYTECODE": ""}
        return super().environ({**ours, **(extra or {})})

    def test_each_script_is_a_command_with_and_without_py_and_kept_as_bytecode(self) -> None:
        self.assertEqual(sorted(self.names), sorted([*SCRIPTS, *(script[:-3] for script in SCRIPTS)]))
        for command in self.names if FULL else (STARTED[0], STARTED[0][:-3]):
            ended = self.run_script("env", command, "--version")
            self.assertEqual(ended.out.decode().split()[0].removesuffix(".py"), command.removesuffix(".py"),
                             ended.err)
        kept = {path.name.partition(".")[0] for path in (self.dir / "site/__pycache__").iterdir()}
        self.assertEqual(kept, {"runmaker4_commands", "runmaker4", *(script[:-3] for script in STARTED)})

    @whole
    def test_they_do_what_the_scripts_do(self) -> None:
        self.assertWork(lambda script, *args: self.run_script("env", script, *args))

    @whole
    def test_each_script_is_a_module_that_can_be_run(self) -> None:
        self.assertWork(lambda script, *args: self.run_script(sys.executable, "-m", script[:-3], *args))


class Made(Case):
    """Completions and manual pages are kept in the repository, and written from parsers and README."""

    def test_they_are_up_to_date(self) -> None:
        make.main(self.dir)
        kept, new = (
            {str(path.relative_to(share)): path.read_text() for path in share.rglob("*") if path.is_file()}
            for share in (make.HERE / "share", self.dir)
        )
        self.assertEqual(kept, new, "python3 -m docs.install.make")

    def test_every_option_is_in_them(self) -> None:
        for script in SCRIPTS:
            _, _, _, *groups = make.read_script(script[:-3]).parser.format_help().split("\n\n")
            options = re.findall(r"--[a-z][\w-]*", "\n\n".join(groups))
            for name in (f"man/man1/{script[:-3]}.1", f"bash-completion/completions/{script[:-3]}",
                         f"zsh/site-functions/_{script[:-3]}",
                         f"fish/vendor_completions.d/{script[:-3]}.fish"):
                text = (make.HERE / "share" / name).read_text().replace("\\-", "-").replace(" -l ", " --")
                self.assertEqual(set(options) - set(re.findall(r"--[a-z][\w-]*", text)), set(), name)

    def test_each_state_is_completed_and_each_description_is_a_line(self) -> None:
        made = make.made()
        for name in ("zsh/site-functions/_runset4", "bash-completion/completions/runset4",
                     "fish/vendor_completions.d/runset4.fish"):
            for state in runset4.STATES:
                self.assertRegex(made[name], rf"\b{state}\b", name)
        for script in SCRIPTS:
            specs = made[f"zsh/site-functions/_{script[:-3]}"].partition("_arguments")[2].splitlines()[1:]
            self.assertEqual([line for line in specs if not line.startswith("    ")], [])
            lines = made[f"fish/vendor_completions.d/{script[:-3]}.fish"].splitlines()[1:]
            self.assertEqual([line for line in lines if not line.startswith("complete -c ")], [])
            self.assertRegex(made[f"man/man1/{script[:-3]}.1"], "(?m)^\\.SS [A-Z]")
        self.assertIn("FILE is created if there is none", made["man/man1/runset4.1"])

    def test_what_a_manual_page_shows_as_it_is_fits_into_80_columns(self) -> None:
        for name, text in make.made().items():
            for shown in re.findall(r"^\.nf\n(.*?)^\.fi$", text, re.MULTILINE | re.DOTALL):
                lines = re.sub(r"\\\(..|\\e", "?", shown).replace("\\-", "-").replace("\\&", "").splitlines()
                for line in lines:
                    # man indents by 7
                    self.assertLessEqual(len(line), 80 - 7, f"{name}: {line}")

    def test_each_page_is_found_under_the_name_of_the_script_too(self) -> None:
        for script in SCRIPTS:
            found = make.made()[f"man/man1/{script}.1"].splitlines()[-1]
            self.assertEqual(found, f".so man1/{script[:-3]}.1")

    def test_bash_completes_job_files_and_not_where_their_commands_are_locked(self) -> None:
        stubs = "_init_completion() { cur=; prev=runset4; split=false; }; _filedir() { COMPREPLY=(.* *); }"
        for name in "runs.txt", ".runs.txt.lock", ".hidden":
            self.write("", name)
        for script in RUNMAKER, RUNSET, RUNWAIT:
            path = make.HERE / "share/bash-completion/completions" / script[:-3]
            call = f'{stubs}; . "$0"; _{script[:-3]}; printf "%s\\n" "${{COMPREPLY[@]}}"'
            ended = self.run_script("bash", "-c", call, path)
            found = set(ended.out.decode().split()) - {".", ".."}
            self.assertEqual(found, {"runs.txt", ".hidden"}, ended.err)


class Project(unittest.TestCase):
    """What pyproject.toml says."""

    def test_the_project_says_what_it_needs(self) -> None:
        try:
            tomllib = importlib.import_module("tomllib")
        except ImportError:
            self.skipTest("this Python has no tomllib (3.11 or later has)")
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        self.assertEqual(project.get("dependencies", []), [])
        self.assertEqual(project["requires-python"], ">=3.9")
