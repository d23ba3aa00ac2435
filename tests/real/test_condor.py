"""The batch scripts of docs/clusters.md, word for word, on a real HTCondor (tests/real/rigs/condor.py).

    RUNMAKER4_TEST_REAL=1 python3 -m unittest tests.real.test_condor
"""
import json
import os
import re
import shutil
import unittest
from unittest.mock import patch

from tests.real.rigs import REAL, condor
from tests.support.documents import read_pieces
from tests.support.processes import wait_until
from tests.support.runs import RunCase
from tests.support.scripts import ROOT, RUNCLIENT, RUNMAKER

# it says that it runs, and if it is killed, and waits for the file `go`
LINE = "trap ': >killed; exit 1' TERM; : >up.$RUNMAKER4_LINE; until [ -e go ]; do sleep 0.1; done"


def piece(text: str) -> str:
    """Return what has this in the document."""
    found, = (piece.text for piece in read_pieces("docs/clusters.md") if text in piece.text)
    return found


@unittest.skipUnless(REAL, "a real HTCondor: RUNMAKER4_TEST_REAL=1 turns it on")
class Condor(RunCase):
    """Workers of one user, ann, on one host."""
    pool: condor.Pool

    @classmethod
    def setUpClass(cls) -> None:
        if why := condor.missing():
            raise unittest.SkipTest(why)
        cls.pool = condor.Pool().start()
        cls.addClassCleanup(cls.pool.stop)

    def setUp(self) -> None:
        with patch.dict(os.environ, RUNMAKER4_TEST_DIR=str(self.pool.dir)):
            super().setUp()
        self.addCleanup(self.pool.tried, "condor_rm", "-all")

    def submit(self, count: int, *settings: str, script: str = "", walltime: str = "7.9h") -> None:
        """Submit so many of the document's workers, with one CPU each and more settings."""
        self.script((script or piece("# condor.sh: ")).replace(" 7.9h ", f" {walltime} "), "condor.sh")
        text = piece("# condor.sub: ").replace("request_memory = 4G", "request_memory = 500M")
        text = text.replace("request_cpus = 2", "request_cpus = 1").replace("queue 4", f"queue {count}")
        self.write("\n".join([*settings, text, ""]), "condor.sub")
        self.give_to_user()
        self.pool.run("condor_submit", "condor.sub", cwd=str(self.dir))

    def give_to_user(self) -> None:
        for path in self.dir, *self.dir.iterdir():
            os.chown(path, condor.USER, condor.USER)

    def wait_over(self) -> None:
        self.pool.run("condor_wait", "-wait", "300", "condor.log", cwd=str(self.dir))

    def said(self) -> str:
        return "".join(path.read_text() for path in self.dir.glob("err.*"))

    def test_a_worker_comes_back_when_its_wall_time_is_over(self) -> None:
        self.jobs("true", "echo >>starts; until [ -e go ]; do sleep 0.1; done")
        self.submit(1, walltime="12s")
        wait_until(lambda: self.exists("starts") and self.read("starts") == b"\n\n",
                   what="the line runs again")
        self.write("", "go")
        self.wait_over()
        self.assertEqual(self.states(), "dd", self.said())
        events = [json.loads(text) for text in self.read("runs.txt.out/journal").splitlines() if text]
        self.assertEqual(len({event["runner"] for event in events}), 2)

    def test_a_worker_that_is_vacated_kills_its_line_and_runs_it_again(self) -> None:
        self.jobs(LINE)
        self.submit(1)
        wait_until((self.dir / "up.1").exists, what="the line runs")
        self.pool.run("condor_vacate_job", "-all")
        wait_until((self.dir / "killed").exists, what="the line is killed")
        self.write("", "go")
        self.wait_over()
        self.assertEqual(self.states(), "d", self.said())

    def test_with_usr1_running_lines_finish_first(self) -> None:
        self.jobs(LINE, "true")
        self.submit(1, "kill_sig = SIGUSR1", "job_max_vacate_time = 3600")
        wait_until((self.dir / "up.1").exists, what="the line runs")
        self.pool.run("condor_vacate_job", "-all")
        wait_until(lambda: "SIGUSR1" in self.said(), what="the worker drains")
        self.write("", "go")
        self.wait_over()
        self.assertEqual((self.states(), self.exists("killed")), ("dd", False), self.said())

    def test_a_client_comes_with_its_files_and_leaves_none(self) -> None:
        self.jobs("[ $OMP_NUM_THREADS = 1 ]", ": >left")
        for name in RUNMAKER, RUNCLIENT:
            shutil.copy(ROOT / name, self.dir)
        self.give_to_user()
        self.pool.run("runmaker4-server.py", "-d", "--pidfile", "pid", "--errors", "errors",
                      "--exit-when-done", "runs.txt", cwd=str(self.dir))
        script = "\n".join([*piece("# condor.sh: ").split("\n")[:3], piece("--give-up 2m alice"), ""])
        settings = re.findall("(?m)^# ((?:transfer|should)_.*)", piece("# condor.sub: "))
        self.assertEqual(len(settings), 3)
        self.submit(1, *settings, script=script)
        self.wait_over()
        self.assertEqual(self.states(), "dd", self.said())
        self.assertFalse(self.exists("left"))
