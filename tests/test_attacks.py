"""Promise: attackers who have, or have not, the token get what docs/who-can-do-what.md says, and no more."""
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
import unittest

import runmaker4
from tests.attacks import lying_client, man_in_the_middle
from tests.support import ALL, FULL, ROOT, WAITING, wait_until
from tests.tcp import Server
from tests.test_hostile import Stage
from tests.wire import Peer

server_module = importlib.import_module("runmaker4-server")


class AttackCase(Stage):
    """A server with a good client, and programs that attack them."""

    def attack(self, name: str, server: Server, *args: object) -> str:
        """Run an attacker of tests/attacks against this server to its end; what it prints."""
        words = [sys.executable, "-m", f"tests.attacks.{name}", str(server.port), *map(str, args)]
        env = self.environ({"RUNMAKER4_TOKEN": server.token})
        ended = subprocess.run(words, cwd=ROOT, env=env, timeout=1800, capture_output=True, check=False)
        self.assertEqual((ended.returncode, ended.stderr), (0, b""), ended.stderr.decode())
        return ended.stdout.decode()


class LyingClient(AttackCase):
    """A client that says what cannot be is refused, whatever it says; nobody else notices."""
    JOBS = ("#RUN host=liar\n" + ". : a job\n" * 20 +
            "#RUN together=held host=holder\n. : a job that is held\n#RUN\n")

    def verdicts(self) -> dict[str, str]:
        """What becomes of each lie."""
        said = self.attack("lying_client", self.server)
        return dict(line.split(": ") for line in said.splitlines())

    def test_each_lie_is_refused(self) -> None:
        self.open("--outdir", "out", "-l", "log", "--joblog", "joblog", text=self.JOBS)
        self.assertEqual(self.verdicts(), dict.fromkeys(lying_client.LIES, "refused"))
        self.is_unharmed()
        self.close()


class ReturningClient(AttackCase):
    """A client that comes back after its grace gets no line but its own, and no records but its own."""
    JOBS = "#RUN host=liar\n. : its own\n#RUN\n"

    def come_back(self, number: int, *link: str) -> str:
        """It says that its job, line 3, has this number; what becomes of it."""
        self.open("--outdir", "out", "-l", "log", "--joblog", "joblog", text=self.JOBS)
        return self.attack("returning_client", self.server, number, self.dir / "runs.txt", *link)

    def check_lost(self, number: int) -> None:
        self.assertEqual(self.come_back(number), "lost\n")
        self.assertEqual(self.states(), "re")
        self.assertEqual(self.read("out/3.out"), b"one\n")
        record = f".-> {WAITING}".encode()[:runmaker4.LogFile.WIDTH - 4]
        wait_until(lambda: self.read("log").startswith(record), what="the first record is of the first job")
        self.assertEqual([name for name in os.listdir(self.dir / "out") if name.startswith(str(number))], [])
        self.is_unharmed()
        self.close()

    def test_the_number_of_a_line_that_runs(self) -> None:
        self.check_lost(1)

    def test_a_number_that_no_line_has(self) -> None:
        self.check_lost(1 << 61)

    def test_through_a_link_in_the_place_of_its_file(self) -> None:
        """Whoever may write to the output directory has put it there meanwhile."""
        self.write("precious", "precious")
        self.assertEqual(self.come_back(3, str(self.dir / "out/3.out")), "done\n")
        wait_until(lambda: self.states() == "rd", what="the result is written")
        self.assertEqual(self.read("precious"), b"precious")
        self.is_unharmed()
        self.close()


class Crowd(AttackCase):
    """Strangers that come as fast as they can and stay silent."""
    DESCRIPTORS = server_module.MIN_DESCRIPTORS
    FEW = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))"

    def test_they_cost_nobody_output_and_the_server_few_lines(self) -> None:
        self.open("--outdir", "out", patch=self.FEW)
        before, lines = self.descriptors(), self.server.err.count(b"\n")
        most, job = self.attack("crowd", self.server, 400, self.server.pid), len(self.states()) + 1
        # some are accepted and not counted yet, or dropped and not closed yet
        self.assertLessEqual(int(most), before + server_module.MAX_UNAUTHENTICATED + 10)
        self.add(1, "echo one; echo two >&2")
        wait_until(lambda: self.states()[-1] == "d", what="the job is done")
        self.assertEqual((self.read(f"out/{job}.out"), self.read(f"out/{job}.err")), (b"one\n", b"two\n"))
        self.assertLessEqual(self.server.err.count(b"\n"), lines + 1, self.server.err)
        self.is_unharmed()
        self.close()

    def test_those_who_come_together_do_not_use_up_the_descriptors(self) -> None:
        self.open(patch=self.FEW)
        lines = self.server.err.count(b"\n")
        self.server.send_signal(signal.SIGSTOP)
        try:
            strangers = [socket.create_connection((self.HOST, self.server.port))
                         for _ in range(2 * self.DESCRIPTORS)]
        finally:
            self.server.send_signal(signal.SIGCONT)
        self.serves()
        for stranger in strangers:
            stranger.close()
        self.assertEqual(self.server.err.count(b"\n"), lines, self.server.err)
        self.is_unharmed()
        self.close()

    USE_UP = """
import os, threading, time
def use_up():
    while not os.path.exists("enough"): time.sleep(0.01)
    taken = []
    try:
        while True: taken.append(os.dup(0))
    except OSError: pass
    while os.path.exists("enough"): time.sleep(0.01)
    for fd in taken: os.close(fd)
threading.Thread(target=use_up, daemon=True).start()
"""

    def test_what_cannot_be_accepted_is_said_once_a_minute_and_accepted_later(self) -> None:
        """Where something else has used up all descriptors."""
        self.open(patch=self.FEW + self.USE_UP)
        lines = self.server.err.count(b"\n")
        self.write("", "enough")
        wait_until(lambda: self.descriptors() >= self.DESCRIPTORS - 1, what="none is left")
        peers = [socket.create_connection((self.HOST, self.server.port)) for _ in range(5)]
        self.wait_said(self.server, "not accepted", "too many open files")
        time.sleep(1.2)                         # in which it has tried again
        self.assertEqual(self.server.err.count(b"\n"), lines + 1, self.server.err)
        (self.dir / "enough").unlink()
        Peer.of(self.server.port, self.server.token).prove().close()
        for peer in peers:
            peer.close()
        self.is_unharmed()
        self.close()


class Mutations(AttackCase):
    """Messages with something changed in each end their own connection at the most."""
    COUNT = 100_000 if ALL else 20_000 if FULL else 200
    JOBS = "#RUN host=liar\n" + ". : a job\n" * 50 + "#RUN\n"

    def test_before_the_proof_and_after_it_they_end_no_server_and_disturb_no_client(self) -> None:
        self.open("--outdir", "out", "-l", "log", "--joblog", "joblog", text=self.JOBS)
        said = self.attack("mutations", self.server, self.COUNT, 41)
        for phase in "before", "after":
            self.assertRegex(said, f"(?m)^{phase} the proof: {self.COUNT} read, [1-9][0-9]* ended")
        self.is_unharmed()
        self.close()


class ManInTheMiddle(AttackCase):
    """Who is on the way between a client and its server neither reads nor changes anything."""
    COUNT = 2 * len(man_in_the_middle.HANDSHAKES) + 2 * len(man_in_the_middle.TAMPERINGS)
    JOBS = 300
    COMMAND, OUTPUT = "the-command", "the-output"
    EAGER = "import random; random.uniform = lambda low, high: 0.0"         # it connects again at once

    def start_man(self, server: Server) -> subprocess.Popen[bytes]:
        """Have him stand before a server; what he prints goes to the file `man`."""
        words = [sys.executable, "-m", "tests.attacks.man_in_the_middle", server.port, self.dir / "record"]
        with open(self.dir / "man", "wb") as out:
            man = self.start(*map(str, words), cwd=ROOT, stdout=out)
        server.port = int(self.said_by_man(1)[0])
        return man

    def said_by_man(self, count: int) -> list[bytes]:
        """The lines that he has printed, once there are so many."""
        wait_until(lambda: self.read("man").count(b"\n") >= count, 60, f"he has printed {count} lines")
        return self.read("man").splitlines()

    def test_he_finds_no_command_and_no_output_and_what_he_changes_is_refused(self) -> None:
        job = f": {self.COMMAND}; echo $JOB_ID >>ran; printf '%s%s\\n' {self.OUTPUT[:3]} {self.OUTPUT[3:]}"
        self.jobs(*[job] * self.JOBS)
        server = self.start_server("--outdir", "out", "--exit-when-done")
        man = self.start_man(server)
        client = self.start_client(server, "-j2", patch=self.EAGER)
        verdicts = self.said_by_man(1 + self.COUNT)[1:]
        self.assertEqual([line for line in verdicts if not line.endswith(b": refused")], [])
        self.assertEqual((self.finish(client).code, self.finish(server).code), (0, 0), client.err)
        man.kill()
        man.communicate()
        self.assertEqual(self.states(), "d" * self.JOBS)
        self.assertEqual(sorted(map(int, self.read("ran").split())), list(range(1, self.JOBS + 1)))
        for line in range(1, self.JOBS + 1):
            self.assertEqual(self.read(f"out/{line}.out"), f"{self.OUTPUT}\n".encode())
        for word in self.COMMAND, self.OUTPUT, "finish":
            self.assertNotIn(word.encode(), self.read("record"))


class OwnCertificate(AttackCase):
    """Who ends TLS himself, with a certificate of his own, gets nothing out of either end."""

    def start_impostor(self, server: Server) -> subprocess.Popen[bytes]:
        """Have him stand before a server; what he prints goes to the file `impostor`."""
        words = [sys.executable, "-m", "tests.attacks.own_certificate", server.port]
        with open(self.dir / "impostor", "wb") as out:
            impostor = self.start(*map(str, words), cwd=ROOT, stdout=out)
        wait_until(lambda: b"\n" in self.read("impostor"), what="he listens")
        server.port = int(self.read("impostor"))
        return impostor

    def test_a_client_that_comes_first_to_him_ends_and_the_server_is_told_nothing(self) -> None:
        self.jobs("touch never")
        server = self.start_server()
        before = server.err
        impostor = self.start_impostor(server)
        ended = self.run_client(server)
        self.assertRefused(ended, "TLS does not end at the server")
        wait_until(lambda: self.read("impostor").count(b"\n") > 1, what="he has seen the end of it")
        self.assertEqual(self.read("impostor").splitlines()[1:], [b"from the client: 0, from the server: 0"])
        impostor.kill()
        impostor.communicate()
        self.assertEqual((server.err, self.states(), self.exists("never")), (before, ".", False))


if __name__ == "__main__":
    unittest.main()
