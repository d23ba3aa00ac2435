"""Servers, clients and jobs killed at random: no job is lost, and none runs twice at the same time."""
import functools
import random
import signal
import time
import unittest
from typing import Callable

from tests.support import marks
from tests.support.case import GATE
from tests.support.kills import KillCase
from tests.support.line_locks import locked_lines
from tests.support.losses import LossCase
from tests.support.process_table import process_table
from tests.support.processes import Process, wait_until
from tests.support.proxy import TO_CLIENT, TO_SERVER, Proxy
from tests.support.scripts import ALL, FULL
from tests.support.tcp import Program, Server, TcpCase
from tests.support.tcp_patches import checking_phases

JOBS, CLIENTS, CLIENT_KILLS, SERVER_KILLS = (
    (3_000, 6, 200, 20) if ALL else (600, 6, 40, 5) if FULL else (100, 3, 8, 2)
)
# long against the jobs, and against the time in which clients come back
GRACE = 10
PATIENCE = 1800 if FULL else 180


class TcpStorm(KillCase, TcpCase):
    """Clients die by kill -9, alone or with their jobs, and so do servers; new ones carry on."""

    def setUp(self) -> None:
        super().setUp()
        self.server: Server
        self.clients: list[Program] = []                # those that nobody killed

    def start_storm_server(self, port: int = 0) -> None:
        self.server = self.start_server("--grace", GRACE, "--joblog", "joblog", "--port", port,
                                        patch=checking_phases())

    def keep_clients_until(self, condition: Callable[[], object]) -> None:
        """Start new clients for those that died, until condition() is true."""
        def reached() -> object:
            for _ in range(CLIENTS - len(self.clients)):
                slots = self.random.randint(1, 4)
                self.clients.append(
                    self.start_client(self.server, f"-j{slots}", "-q", "--resume", "--follow"))
            return condition()
        wait_until(reached, PATIENCE)

    def kill_client(self, with_jobs: bool) -> None:
        """kill -9 a client, one that runs jobs if there is one, as the other storm does a runner."""
        parents = {parent for _, parent in process_table().values()}
        client = self.random.choice([one for one in self.clients if one.pid in parents] or self.clients)
        self.kill(client, with_jobs)

    def kill(self, runner: Process, with_jobs: bool) -> None:
        super().kill(runner, with_jobs)
        self.clients = [client for client in self.clients if client is not runner]
        runner.wait()

    def kill_server(self) -> None:
        """kill -9 the server, not its keeper, and start another, sooner or later."""
        self.server.kill()
        time.sleep(self.random.uniform(0, 0.5))
        self.start_storm_server(self.server.port)

    def test_no_job_is_lost_and_none_runs_twice_at_once(self) -> None:
        self.jobs(marks.command(1, gate=GATE), *(marks.command(line, 0.03) for line in range(2, JOBS + 1)))
        self.write("", "marks")
        self.start_storm_server()
        self.kill_at_gate(self.keep_clients_until, lambda: self.clients)
        kills: list[Callable[[], None]] = [
            functools.partial(self.kill_client, with_jobs) for with_jobs in (True, False)]
        events = kills * (CLIENT_KILLS // 2) + [self.kill_server] * SERVER_KILLS
        self.random.shuffle(events)
        times = sorted(self.random.sample(range(1, JOBS * 9 // 10), len(events)))
        for done, event in zip(times, events):
            self.keep_clients_until(lambda: self.done() >= done)
            time.sleep(self.random.uniform(0, 0.03))
            event()
        self.keep_clients_until(lambda: self.states() == "d" * JOBS)

        killed = self.read("marks").count(b"killed ")
        self.assertGreater(killed, CLIENT_KILLS + 1, "no job died with its client")
        for client in self.clients:
            client.send_signal(signal.SIGHUP)
        self.assertEqual({self.finish(client).code for client in self.clients}, {0})
        self.assertOnlyStatesChanged()
        self.assertEqual((self.states(), locked_lines(self)), ("d" * JOBS, []))
        clients = {program.pid for program in self.programs}
        self.assertEqual(marks.problems(self.read("marks"), JOBS, clients), [])
        logged = {int(line.split(b"\t")[0]) for line in self.read("joblog").splitlines()[1:]}
        lines = self.read().splitlines()
        self.assertEqual(logged, {number for number, line in enumerate(lines, 1) if line[:1] == b"d"})


@unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a minute")
class SilenceStorm(LossCase):
    """Clients and server sleep, connections freeze or are cut for longer than the grace; nobody dies."""
    PATCH = "import runmaker4; runmaker4.MAX_SILENT_SECONDS, runmaker4.PING_SECONDS = 1.0, 0.3"
    JOBS, EVENTS = (6_000, 40) if ALL else (1_800, 12)
    GRACE, AWAY = 0.5, 2.0

    def test_each_job_runs_exactly_once(self) -> None:
        chance = random.Random(3)
        # of equal lines, one can get the result of the other
        jobs = [f"echo {number} >>ran; sleep 0.01" for number in range(1, self.JOBS + 1)]
        server = self.serve(*jobs, grace=self.GRACE)
        pairs = [self.connect_by_proxy(server, f"-j{slots}", "-q", "--follow", up=()) for slots in (1, 2, 3)]
        proxies, clients = zip(*pairs)
        disturb = [lambda: self.sleep(server), lambda: self.sleep(chance.choice(clients)),
                   lambda: self.freeze(chance.choice(proxies)),
                   lambda: self.freeze(chance.choice(proxies), TO_SERVER),
                   lambda: self.freeze(chance.choice(proxies), TO_CLIENT),
                   lambda: self.cut(chance.choice(proxies))]
        for event in range(self.EVENTS):
            wait_until(lambda: self.ended() >= event * self.JOBS // self.EVENTS, PATIENCE)
            time.sleep(chance.uniform(0, 0.1))
            chance.choice(disturb)()
        wait_until(lambda: self.ended() == self.JOBS, PATIENCE)
        for client in clients:
            self.assertEqual(self.stop(client, signal.SIGHUP).code, int("e" in self.states()), client.err)
        self.check_runs()
        # the server can lose this one, too
        wait_until(lambda: self.run_client(server, "-j6", "--resume").code == 0, PATIENCE)
        self.assertEqual(self.states(), "d" * self.JOBS)
        self.check_runs()

    def ended(self) -> int:
        """How many jobs have ended, or were lost on their way to a client that was away (e)."""
        states = self.states()
        return states.count("d") + states.count("e")

    def check_runs(self) -> None:
        """The lines that are done are those that ran, each once, and once in the job log."""
        lines = [line for line, found in enumerate(self.states(), 1) if found == "d"]
        self.assertEqual(sorted(map(int, self.read("ran").split())), lines)
        self.assertEqual(self.logged(), lines)

    def sleep(self, program: Program) -> None:
        program.send_signal(signal.SIGSTOP)
        self.end_later(lambda: program.send_signal(signal.SIGCONT))

    def freeze(self, proxy: Proxy, *ways: str) -> None:
        proxy.freeze(*ways)
        self.end_later(proxy.thaw)

    def cut(self, proxy: Proxy) -> None:
        proxy.cut()
        self.end_later(proxy.mend)

    def end_later(self, end: Callable[[], None]) -> None:
        """End a disturbance that lasts for longer than the grace."""
        time.sleep(self.AWAY)
        end()
