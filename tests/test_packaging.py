"""The scripts run wherever they are: copied by hand, or installed by pip."""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import unittest
from typing import Callable

from tests.support import FULL, ROOT, RUNMAKER, RUNSET, RUNWAIT, Case, Ended

SCRIPTS = (RUNMAKER, RUNSET, RUNWAIT)
NO_BUILD = re.compile(rb"No matching distribution|Could not find a version|Temporary failure|Connection")


class AnywhereCase(Case):
    """Steps that the tests below share."""

    def assertWork(self, call: Callable[..., Ended]) -> None:
        """The scripts, as call(script, arguments...) starts them, add, run, list and count jobs."""
        def output(script: str, *args: str) -> bytes:
            ended = call(script, *args)
            self.assertEqual(ended.code, 0, ended.err)
            return ended.out
        for script in SCRIPTS:
            self.assertIn(script.encode(), output(script, "--help"))
        output(RUNSET, "runs.txt", "--add", "echo a >>marks")
        output(RUNMAKER, "runs.txt")
        self.assertEqual(self.read("marks"), b"a\n")
        self.assertEqual(output(RUNSET, "--list", "runs.txt"), b"1 d echo a >>marks\n")
        self.assertRegex(output(RUNWAIT, "--status", "runs.txt"), rb"^1 jobs: .*1 done")


class Copied(AnywhereCase):
    """Copying the files is enough."""

    def test_the_copied_files_run_with_nothing_but_the_standard_library(self) -> None:
        home = self.dir / "bin"
        home.mkdir()
        for script in SCRIPTS:
            shutil.copy(ROOT / script, home)
        python = [sys.executable, "-S", "-E"]
        self.assertWork(lambda script, *args: self.run_script(*python, str(home / script), *args))

    def test_the_scripts_can_be_started_by_their_names(self) -> None:
        for script in SCRIPTS:
            with self.subTest(script=script):
                self.assertTrue(os.access(ROOT / script, os.X_OK))
                self.assertEqual((ROOT / script).read_bytes().split(b"\n")[0], b"#!/usr/bin/env python3")


class Installed(AnywhereCase):
    """pip install . puts the scripts on PATH under their own names."""

    def setUp(self) -> None:
        super().setUp()
        self.project = self.dir / "project"
        kept = [path for path in ROOT.iterdir() if path.is_file()]
        self.project.mkdir()
        for path in kept:
            shutil.copy(path, self.project)

    def venv(self) -> pathlib.Path:
        """A fresh virtual environment; its directory of programs."""
        made = subprocess.run([sys.executable, "-m", "venv", self.dir / "venv"], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False)
        if made.returncode:
            self.skipTest(f"python -m venv does not work here: {made.stdout.decode(errors='replace')[-300:]}")
        return self.dir / "venv" / "bin"

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: making an environment and installing takes 10 s")
    def test_pip_install_puts_working_scripts_on_path(self) -> None:
        programs = self.venv()
        ended = self.run_script(str(programs / "python"), "-m", "pip", "install", self.project, timeout=300)
        if ended.code and NO_BUILD.search(ended.err):
            self.skipTest(f"pip cannot build here: {ended.err.decode(errors='replace')[-300:]}")
        self.assertEqual(ended.code, 0, ended.err)
        path = {"PATH": f"{programs}:{os.environ['PATH']}"}
        self.assertWork(lambda script, *args: self.run_script("env", script, *args, env=path))
        imported = self.run_script(str(programs / "python"), "-c", "import runmaker4; print(runmaker4.__file__)")
        self.assertIn(str(self.dir / "venv"), imported.out.decode())

    def test_the_project_says_what_it_needs(self) -> None:
        try:
            import tomllib
        except ImportError:
            self.skipTest("this Python has no tomllib (3.11 or later has)")
        project = tomllib.loads((self.project / "pyproject.toml").read_text())["project"]
        self.assertEqual(project.get("dependencies", []), [])
        self.assertEqual(project["requires-python"], ">=3.9")


if __name__ == "__main__":
    unittest.main()
