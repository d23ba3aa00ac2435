"""Promise: a signal that comes before there are handlers does what it does later."""
import os
import signal
import socket

import runmaker4
from tests.support.processes import Process, wait_until
from tests.support.scripts import RUNCLIENT, RUNMAKER, RUNSERVER
from tests.support.tcp import TcpCase
from tests.support.values import present

# sends the signal when the scripts import the first module after they have blocked it
EARLY = """
import os, sys
class Early:
    @staticmethod
    def find_spec(name, path, target=None):
        if name == "argparse":
            os.kill(os.getpid(), int(os.environ.pop("EARLY")))
            sys.meta_path.remove(Early)
sys.meta_path.insert(0, Early)
"""


class EarlySignal(TcpCase):
    """The signal is sent within the first line that imports something."""

    def early(self, number: signal.Signals) -> dict[str, str]:
        """An environment in which a script sends itself this signal when it has just begun."""
        # Written once: a script that was started before this one may be reading it just now
        if not (self.dir / "early").exists():
            (self.dir / "early").mkdir()
            self.write(EARLY, "early/sitecustomize.py")
        return {"EARLY": str(int(number)), "PYTHONPATH": str(self.dir / "early")}

    def test_no_job_is_started_and_int_and_term_are_the_exit_status(self) -> None:
        self.jobs("true")
        for number in runmaker4.STOP_SIGNALS:
            with self.subTest(number=number):
                ended = self.run_jobs(env=self.early(number))
                self.assertEqual(self.states(), ".")
                if number in runmaker4.KILL_SIGNALS:
                    self.assertEqual(ended.code, 128 + number, ended.err)
                else:
                    self.assertGreaterEqual(ended.code, 0, ended.err)
                    self.assertIn(f"{number.name}: starting no more jobs".encode(), ended.err)

    def test_what_was_ignored_at_the_start_stays_ignored(self) -> None:
        started = {}
        for number in signal.SIGHUP, signal.SIGINT, signal.SIGTERM:
            self.write(". kill -s TERM $$\n", number.name)      # but not for jobs
            started[number] = self.start(RUNMAKER, number.name, env=self.early(number),
                                         preexec_fn=lambda: signal.signal(number, signal.SIG_IGN))
        for number, runner in started.items():
            with self.subTest(number=number):
                ended = self.finish(runner)
                self.assertGreaterEqual(ended.code, 0, ended.err)
                self.assertIn(self.states(name=number.name), "e!")

    def test_a_refused_start_is_refused_all_the_same(self) -> None:
        self.assertRefused(self.run_script(RUNMAKER, "missing.txt", env=self.early(signal.SIGUSR1)),
                           "missing.txt")
        words = "--none", "missing.txt"
        self.assertRefused(self.run_script(RUNMAKER, *words, env=self.early(signal.SIGHUP)), "--none")

    def test_one_that_goes_into_the_background_takes_the_signal_along(self) -> None:
        self.jobs("true")
        ended = self.run_jobs("-d", "--errors", "errors", env=self.early(signal.SIGUSR1))
        self.assertEqual(ended.code, 0, ended.err)
        wait_until(lambda: self.read("errors").count(b"\n") > 1)
        self.assertIn(b"USR1: starting no more jobs", self.read("errors"))
        self.assertNobodyLeft()
        self.assertEqual(self.states(), ".")

    def test_a_server_ends_as_it_should(self) -> None:
        self.jobs("true")
        for number, code in (signal.SIGUSR1, 0), (signal.SIGTERM, 143), (signal.SIGUSR2, 140):
            with self.subTest(number=number):
                server = self.start_program(RUNSERVER, "--port", 0, "--host", self.HOST, "runs.txt",
                                            env=self.early(number))
                ended = self.finish(server)
                self.assertGreaterEqual(ended.code, 0, ended.err)
                if code:
                    self.assertEqual(ended.code, code)
                else:
                    self.assertIn(b"USR1: handing out no more jobs", ended.err)

    def test_a_client_ends_as_it_should(self) -> None:
        self.jobs("true")
        server = self.start_server()
        for number in signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT:
            with self.subTest(number=number):
                ended = self.run_client(server, env=self.early(number))
                self.assertGreaterEqual(ended.code, 0, ended.err)
                self.assertIn(f"{number.name}: starting no more jobs".encode(), ended.err)
                self.assertEqual(self.states(), ".")
        for number in signal.SIGTERM, signal.SIGXCPU:
            self.assertEqual(self.run_client(server, env=self.early(number)).code, 128 + number)


class LongStarts(TcpCase):
    """What takes long before anything has been started: Ctrl-C ends it at once."""

    def assertEndsAtOnce(self, program: Process, number: signal.Signals) -> None:
        self.assertIn(self.stop(program, number).code, (-number, 128 + number))

    def test_a_client_whose_server_is_silent(self) -> None:
        with socket.create_server((self.HOST, 0)) as silent:
            port = silent.getsockname()[1]
            patient = "import runmaker4; runmaker4.MAX_HANDSHAKE_SECONDS = 600"
            words = "--token", "0" * 32, "--port", port, self.HOST
            client = self.start_program(RUNCLIENT, *words, patch=patient)
            connection, _ = silent.accept()
            with connection:
                self.assertEndsAtOnce(client, signal.SIGINT)

    def test_a_dry_run_that_nobody_reads(self) -> None:
        self.jobs(*["true"] * 20_000)
        runner = self.start(RUNMAKER, "--dry-run", "runs.txt")
        os.read(present(runner.stdout).fileno(), 1)
        self.assertEndsAtOnce(runner, signal.SIGTERM)
