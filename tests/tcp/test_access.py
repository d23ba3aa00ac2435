"""Promise: who may reach a server, and how; what cannot work is refused in one line."""
import contextlib
import fcntl
import importlib
import os
import pathlib
import pty
import re
import signal
import socket
import stat
import subprocess
import termios
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from tests.support import wire
from tests.support.fake_server import FakeServer
from tests.support.peer import Peer
from tests.support.ports import free_port
from tests.support.processes import DEADLINE, Ended, wait_until
from tests.support.runs import WAITING
from tests.support.scripts import RUNCLIENT, RUNMAKER, RUNSERVER, RUNSET, RUNWAIT
from tests.support.tcp import PORT_LINE, SERVING, TOKEN_LINE, Program, Server, TcpCase
from tests.support.values import present

NOBODY = 65534                              # some user other than root
OTHER_TOKEN = "0123456789abcdef" * 2
Call = tuple[Sequence[object], dict[str, str]]      # options and environment
Arguments = TypeVar("Arguments", bound=Sequence[object])


class TokenCase(TcpCase):
    """A server with a job that no client here can run."""

    def setUp(self) -> None:
        super().setUp()
        self.write("#RUN host=other\n. touch ran\n")

    def tearDown(self) -> None:
        self.assertFalse(self.exists("ran"))
        super().tearDown()

    @property
    def token_file(self) -> pathlib.Path:
        return self.dir / ".runmaker4.token"


class TokenOfTheServer(TokenCase):
    """The token is kept until its file is removed, so that a restarted server is reachable by its clients."""

    def next_token(self) -> str:
        """The token of another server on the file; it is in the token file, which nobody else may read."""
        server = self.start_server()
        self.stop(server)
        self.assertEqual(self.token_file.read_text().strip(), server.token)
        found = self.token_file.lstat()
        self.assertEqual((stat.filemode(found.st_mode), found.st_uid), ("-rw-------", os.geteuid()))
        return server.token

    def test_it_is_kept_until_its_file_is_removed(self) -> None:
        first, second = self.next_token(), self.next_token()
        self.token_file.unlink()
        self.assertEqual(first, second)
        self.assertNotEqual(second, self.next_token())

    def test_a_home_that_is_not_there_is_refused(self) -> None:
        ended = self.run_script(RUNSERVER, "--host", self.HOST, "--port", 0, "runs.txt",
                                env={"HOME": "/nonexistent"})
        self.assertRefused(ended, "runmaker4-server.py", "/nonexistent", "token")


class TokenOfTheEnvironment(TcpCase):
    """$RUNMAKER4_TOKEN is the server's, too: each job of a user has its own, and no file is written."""

    def start_own(self, file: str, token: str) -> Server:
        self.write(f". echo {file}\n", file)
        return self.as_server(self.start_program(RUNSERVER, "--host", self.HOST, "--port", 0, file,
                                                 env={"RUNMAKER4_TOKEN": token}), token)

    def test_it_is_neither_printed_nor_written_and_clients_of_one_are_not_let_in_by_the_other(self) -> None:
        first, second = self.start_own("a.txt", "a" * 32), self.start_own("b.txt", "b" * 32)
        self.assertRefused(self.run_client(first, env={"RUNMAKER4_TOKEN": second.token}), "wrong token")
        self.assertEqual((self.states("a.txt"), self.states("b.txt")), (".", "."))
        ended = self.run_client(second, env={"RUNMAKER4_TOKEN": f"{second.token}\n"})
        self.assertEqual((ended.code, self.states("a.txt"), self.states("b.txt")), (0, ".", "d"))
        self.assertEqual(self.stop(second).code, 143)
        self.assertRegex(second.out, rb"\AToken for runmaker4-client\.py: [^\n]*\n\Z")
        self.assertNotIn(second.token.encode(), second.out + second.err + ended.out + ended.err)
        self.assertFalse(self.exists(".runmaker4.token"))

    def test_what_is_no_token_is_refused(self) -> None:
        self.jobs("touch never")
        for given in "nonsense", "A" * 32, "a" * 33:
            with self.subTest(given=given):
                ended = self.run_script(RUNSERVER, "--host", self.HOST, "--port", 0, "runs.txt",
                                        env={"RUNMAKER4_TOKEN": given})
                self.assertRefused(ended, "RUNMAKER4_TOKEN", "32")
                self.assertNotIn(given.encode(), ended.err)


class TokenInLogs(TokenCase):
    """The token is written nowhere but on a terminal: others may read a log, whoever makes it."""

    def start_on(self, stdout: int) -> Program:
        return self.start_program(RUNSERVER, "--host", self.HOST, "--port", 0, "runs.txt", stdout=stdout)

    def test_a_pipe_says_where_it_is_for_it_may_lead_to_a_file(self) -> None:
        """As a file does: TcpCase.start_server() waits for this line in one."""
        shown = present(self.start_on(subprocess.PIPE).process.stdout).readline()
        self.assertEqual(present(TOKEN_LINE.fullmatch(shown))[1], os.fsencode(self.token_file))

    def test_a_terminal_shows_it(self) -> None:
        master, slave = pty.openpty()
        with open(master, "rb", buffering=0) as terminal:
            server = self.start_on(slave)
            os.close(slave)
            self.assertIn(b"port", self.wait_said(server, "serving on port"))
            self.assertIn(
                b"Token for runmaker4-client.py: %s (written to " % self.token_file.read_bytes().strip(),
                terminal.read(1000),
            )


class NameOfTheFile(TcpCase):
    """A client says which file its server serves; again where another server has taken its place."""

    def test_it_is_said_once_and_not_with_q(self) -> None:
        self.jobs("true")
        server = self.start_server()
        said = SERVING.findall(self.run_client(server).err)
        self.assertEqual(said, [f"{RUNCLIENT}: {self.HOST}: serving runs.txt\n".encode()])
        self.assertNotIn(b"serving", self.run_client(server, "-q").err)

    def test_a_long_name_and_strange_bytes_in_it(self) -> None:
        name = b"\xff\x1b[2J" + b"x" * 240
        path = self.dir / os.fsdecode(name)
        path.write_bytes(b". true\n")
        ended = self.run_client(self.start_server(file=str(path)))
        self.assertEqual(ended.code, 0, ended.err)
        self.assertIn(b"serving " + b"x" * 200 + b"\n", ended.err)


class TokenOfTheClient(TokenCase):
    """A client takes --token VALUE or FILE, $RUNMAKER4_TOKEN, or its home's file, in this order."""

    def setUp(self) -> None:
        super().setUp()
        self.server = self.start_server()
        self.wrong_env = {"RUNMAKER4_TOKEN": OTHER_TOKEN}
        self.right_env = {"RUNMAKER4_TOKEN": self.server.token}

    def ask(self, calls: Sequence[Call]) -> list[tuple[Call, Ended]]:
        """Clients with these options and this environment, all at once: how they ended."""
        started = [self.start_client(self.server, "-q", *options, env=env) for options, env in calls]
        return [(call, self.finish(client)) for call, client in zip(calls, started)]

    SEEN = (b"runmaker4-client.py: 127.0.0.1: other users of this host can see the token in the list of "
            b"processes (give --token a file, or set $RUNMAKER4_TOKEN)\n")
    CLOSING = b"runmaker4-client.py: 127.0.0.1: nothing to do: 1 new; line 2 needs host other\n"

    def assertRight(self, *calls: Call, said: bytes = b"") -> None:
        for call, ended in self.ask(calls):
            with self.subTest(call=call):
                self.assertEqual((ended.code, ended.err), (0, said + self.CLOSING))

    def assertWrong(self, *calls: Call, words: tuple[str, ...] = ()) -> None:
        """The clients are refused in one line, which shows neither the right token nor the wrong one."""
        for call, ended in self.ask(calls):
            with self.subTest(call=call):
                self.assertRefused(ended, "token", *words)
                self.assertTrue(ended.err.startswith(b"runmaker4-client.py: "), ended.err)
                self.assertNotIn(self.server.token.encode(), ended.err)
                self.assertNotIn(OTHER_TOKEN.encode(), ended.err)

    def test_the_command_line_comes_before_the_environment_and_that_before_the_file(self) -> None:
        right, wrong = ["--token", self.server.token], ["--token", OTHER_TOKEN]
        self.assertRight(([], {}))
        self.assertRight((right, self.wrong_env), said=self.SEEN)
        self.assertWrong((wrong, self.right_env), ([], self.wrong_env))
        self.assertWrong(([], {"RUNMAKER4_TOKEN": str(self.token_file)}), words=("32",))

    def type_token(self, text: str) -> tuple[int, bytes]:
        """Start a client without a token on a terminal, and type this: exit status, what is shown."""
        master, slave = pty.openpty()
        with open(master, "rb", buffering=0) as terminal:
            client = self.start(RUNCLIENT, *self.client_words(self.server), stdin=slave, stdout=slave,
                                stderr=slave, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
                                start_new_session=True)
            os.close(slave)
            shown = b""
            while b"Token (" not in shown:
                shown += terminal.read(1000)
            os.write(master, text.encode())
            with contextlib.suppress(OSError):          # EIO: nobody has it open any more
                while more := terminal.read(1000):
                    shown += more
            return client.wait(DEADLINE), shown

    def test_a_terminal_is_asked_for_the_token_and_does_not_show_it(self) -> None:
        self.token_file.rename(self.dir / "moved")
        code, shown = self.type_token(self.server.token + "\n")
        self.assertEqual(code, 0, shown)
        self.assertIn(b"serving runs.txt", shown)
        self.assertNotIn(self.server.token.encode(), shown)
        code, shown = self.type_token("hello\n")
        self.assertEqual((code, shown.count(b"32 hexadecimal digits")), (2, 1), shown)
        self.assertEqual(self.type_token("\x03")[0], 130)

    def test_a_home_without_the_file(self) -> None:
        self.token_file.rename(self.dir / "moved")
        self.assertWrong(([], {}))
        self.assertRight((["--token", self.server.token], {}), said=self.SEEN)
        self.assertRight(([], self.right_env), (["--token", "moved"], {}),
                         ([f"--token={self.dir / 'moved'}"], {}))

    def test_what_is_no_token(self) -> None:
        self.write("hello\n", "text").chmod(0o600)
        words = "nowhere", "text", self.server.token + "0", "", "."
        self.assertWrong(*[(["--token", word], {}) for word in words])

    def test_a_file_that_others_may_read_or_write(self) -> None:
        for mode, options in (0o640, []), (0o602, ["--token", self.token_file]):
            self.token_file.chmod(mode)
            self.assertWrong((options, {}), words=(".runmaker4.token",))


class RefusalCase(TcpCase):
    """A script that refuses its arguments."""
    SCRIPT = ""

    def assertAllRefused(self, calls: Mapping[Arguments, str]) -> None:
        """Each of these calls is refused at once and with one line, which has these words."""
        found = self.run_all([(self.SCRIPT, *args) for args in calls])
        for (args, words), (_, ended) in zip(calls.items(), found):
            with self.subTest(args=args):
                self.assertRefused(ended, *words.split())
                self.assertTrue(ended.err.startswith(f"{self.SCRIPT}: ".encode()), ended.err)


class RefusedClients(RefusalCase):
    """What cannot work at the client: exit 2 and one line, at once, whatever --give-up says."""
    SCRIPT = RUNCLIENT

    def assertRefusedAt(self, port: int, *calls: Sequence[object], words: str = "") -> None:
        """Clients with these options are refused at this port, with some token; the line names the server."""
        self.assertAllRefused({("--port", port, "--token", OTHER_TOKEN, *options, self.HOST):
                               f"{RUNCLIENT}: {self.HOST}: {words}" for options in calls})

    def test_a_wrong_token_at_a_server_that_was_not_there_at_first(self) -> None:
        """Nor is it tried again and again, also in the background."""
        self.jobs("touch never")
        port = free_port()
        settings: dict[str, Any] = dict(env={"RUNMAKER4_TOKEN": OTHER_TOKEN})
        client = self.start_program(RUNCLIENT, "--follow", "--port", port, self.HOST, **settings)
        daemon = "-d", "--pidfile", "pid", "--errors", "errors"
        self.run_script(RUNCLIENT, *daemon, "--port", port, self.HOST, **settings)
        self.wait_said(client, "refused", "trying again")
        self.assertTrue(self.exists("pid"))
        wait_until(lambda: b"refused" in self.read("errors"), what="it says so where its messages go")
        self.start_server("--port", port)
        ended = self.finish(client)
        said = (f"{RUNCLIENT}: {self.HOST}: wrong token, from $RUNMAKER4_TOKEN (the first line that the "
                "server printed names the file with the right one; give it with --token)\n")
        self.assertEqual((ended.code, ended.err.splitlines(keepends=True)[1:]), (2, [said.encode()]))
        wait_until(lambda: not self.exists("pid"), what="the other one is gone, too")
        self.assertRegex(self.read("errors"),
                         rb"process \d+, -j1 on .*\n.* refused .*\n\S+ " + re.escape(said.encode()))

    def test_a_wrong_token_whose_refusal_gets_lost_on_its_way(self) -> None:
        """Each of several clients dials again until it is told."""
        cuts = iter([True] * 3)

        def serve(peer: Peer) -> None:
            peer.push(peer.channel.take_outgoing()).pull()
            if next(cuts, False):
                peer.reset()
            else:
                peer.push(wire.plain(error="token")).rest()

        with FakeServer(serve) as server:
            call = RUNCLIENT, "--port", server.port, "--token", OTHER_TOKEN
            for _, ended in self.run_all([(*call, "--give-up", time, self.HOST) for time in range(60, 64)]):
                self.assertEqual((ended.code, b"wrong token" in ended.err.splitlines()[-1]), (2, True))
            self.assertFalse(next(cuts, False))

    def test_an_unknown_host(self) -> None:
        hosts = "no-such-host.invalid", "a..b", "127.0.0.1.1", "runs.txt"
        self.assertAllRefused({("--token", OTHER_TOKEN, host): f"{RUNCLIENT}: {host}:" for host in hosts})

    def test_a_name_service_that_is_not_there_yet_is_waited_for(self) -> None:
        """Not with --give-up 0.  Twice the first answer is a temporary failure."""
        patch = """import socket
answers, find = [socket.gaierror(socket.EAI_AGAIN, "Temporary failure")] * 2, socket.getaddrinfo
def getaddrinfo(*args, **named):
    if answers:
        raise answers.pop()
    return find(*args, **named)
socket.getaddrinfo = getaddrinfo"""
        self.jobs("true")
        server = self.start_server()
        refused = self.run_client(server, "--give-up", 0, host="localhost", patch=patch)
        ended = self.run_client(server, host="localhost", patch=patch)
        self.assertEqual((ended.code, self.states()), (0, "d"), ended.err)
        self.assertIn(b": localhost: temporary failure; trying again\n", ended.err)
        self.assertRefused(refused, f"{RUNCLIENT}: localhost: temporary failure\n")

    def test_nobody_at_the_port_with_give_up_0(self) -> None:
        with contextlib.closing(socket.socket()) as taken:
            taken.bind((self.HOST, 0))  # and does not listen
            self.assertRefusedAt(taken.getsockname()[1], ["--give-up", 0, "--follow"], ["--give-up", 0],
                                 words="refused")

    def test_a_server_that_speaks_another_version(self) -> None:
        def serve(peer: Peer) -> None:
            peer.push(wire.plain(runmaker4=1, nonce="0" * 32)).rest()

        with FakeServer(serve) as server:
            self.assertRefusedAt(server.port, [], words="version 1 2")

    def test_bad_options_and_those_of_others(self) -> None:
        options = ("--jobs=x", "--walltime=soon", "--port=0", "--port=65536", "--give-up=-1", "--status",
                   "--joblog=log")
        self.assertAllRefused({(): "", (self.HOST, self.HOST): "",
                               **{(option, self.HOST): option.partition("=")[0] for option in options}})


class RefusedServers(RefusalCase):
    """What cannot work at the server: exit 2 and one line, and the job file is left alone."""
    SCRIPT = RUNSERVER

    def setUp(self) -> None:
        super().setUp()
        self.jobs("touch never")

    def tearDown(self) -> None:
        self.assertEqual(self.read(), self.before)
        super().tearDown()

    def test_addresses_that_are_taken_unknown_or_anothers(self) -> None:
        with contextlib.closing(socket.create_server((self.HOST, 0))) as taken:
            port = taken.getsockname()[1]
            calls = {("--port", port, "--host", self.HOST, "runs.txt"): f"{port} in use"}
            for host in "no-such-host.invalid", "192.0.2.1", "a..b":
                calls["--port", 0, "--host", host, "runs.txt"] = host
            self.assertAllRefused(calls)

    def test_a_file_that_is_none(self) -> None:
        (self.dir / "directory").mkdir()
        self.write("\ufeff. touch never\n".encode("utf-16-le"), "wide.txt")
        files = {"missing.txt": "missing.txt", "directory": "directory", "wide.txt": "wide.txt UTF-16"}
        self.assertAllRefused({("--host", self.HOST, "--port", 0, name): words
                               for name, words in files.items()})
        self.assertFalse(self.exists("missing.txt"))

    def test_bad_options_and_those_of_others(self) -> None:
        options = "--port=x", "--port=65536", "--grace=soon", "--grace=none", "-j=2", "--follow"
        self.assertAllRefused({(): "", ("--port=0", "runs.txt", "runs.txt"): "",
                               **{("--port=0", option, "runs.txt"): option.partition("=")[0]
                                  for option in options}})

    def test_a_limit_of_open_files_that_leaves_no_room_for_clients(self) -> None:
        for limit in 10, 64, 499:
            with self.subTest(limit=limit):
                words = self.command(RUNSERVER, "--host", self.HOST, "--port", 0, "runs.txt")
                ended = self.run_script("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *words)
                self.assertRefused(ended, f"500 open files, the limit is {limit} (raise ulimit -Hn)")


class WithoutTls(RefusalCase):
    """Server and client need TLS 1.3, say so where Python has none, and obey a policy that allows it."""
    NO_SSL = "import sys; sys.modules['ssl'] = None"
    OLD_SSL = "import ssl; ssl.HAS_TLSv1_3 = False"

    def test_server_and_client_are_refused(self) -> None:
        self.jobs("touch never")
        for patch in self.NO_SSL, self.OLD_SSL:
            for words in (RUNSERVER, "--host", self.HOST, "--port", 0, "--outdir", "out", "runs.txt"), \
                    (RUNCLIENT, "--token", OTHER_TOKEN, self.HOST):
                with self.subTest(patch=patch, words=words):
                    ended = self.run_script(*self.patched(patch, *words))
                    self.assertRefused(ended, f"{words[0]}: ", "TLS 1.3", "OpenSSL 1.1.1")
        self.assertEqual((self.exists("out"), self.exists(".runmaker4.token")), (False, False))

    def test_they_do_not_load_it(self) -> None:
        """It takes as long as a tenth of the start."""
        self.jobs("true")
        for words in (RUNSET, "runs.txt", "--add", "true"), (RUNMAKER, "runs.txt"), (RUNWAIT, "runs.txt"):
            python, *others = self.command(*words)
            ended = self.run_script(python, "-X", "importtime", *others)
            self.assertIn(b"import time:", ended.err)
            self.assertNotRegex(ended.err, rb"\| +_ssl\n")

    POLICY = """
openssl_conf = all
[all]
ssl_conf = tls
[tls]
system_default = policy
[policy]
MaxProtocol = TLSv1.2
CipherString = DEFAULT:@SECLEVEL=3
Ciphersuites = TLS_AES_128_GCM_SHA256
Groups = P-256
SignatureAlgorithms = ECDSA+SHA256
"""

    def test_jobs_run_where_little_is_allowed(self) -> None:
        self.jobs("true")
        env = {"OPENSSL_CONF": str(self.write(self.POLICY, "openssl.cnf"))}
        server = self.start_server(env=env)
        ended = self.run_client(server, env=env)
        self.assertEqual((ended.code, self.states()), (0, "d"), ended.err)


class Addresses(TcpCase):
    """IPv4, IPv6, and by default both."""

    def check(self, server: Server, *hosts: str, **settings: Any) -> None:
        """A client reaches the server by each of these names, and calls it by that name."""
        for host in hosts:
            with self.subTest(host=host):
                ended = self.run_client(server, "-1", host=host, **settings)
                self.assertEqual(ended.code, 0, ended.err)
                said = SERVING.sub(b"", ended.err)
                self.assertTrue(said.startswith(f"runmaker4-client.py: {host}: 1 done".encode()), ended.err)

    def test_ipv6(self) -> None:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            self.skipTest(f"there is no IPv6 on the loopback here: {error}")
        self.jobs("true")
        self.check(self.start_server("--host", "::1"), "::1")

    def test_without_host_all_addresses_of_both_families_are_served(self) -> None:
        """In a network namespace of its own, so that nobody else can reach it."""
        up = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        seek = [*up, "grep", "-q", "1", "/proc/net/if_inet6"]
        probe = subprocess.run(seek, stderr=subprocess.PIPE, check=False)
        if probe.returncode != 0:
            self.skipTest(f"no network namespace of our own with IPv6: {probe.stderr.decode()}")
        self.jobs("true", "true")
        server = self.as_server(self.start_program(RUNSERVER, "--port", 0, "runs.txt", within=up))
        inside = ["nsenter", "-t", str(server.pid), "-U", "-n", "--preserve-credentials"]
        self.check(server, "127.0.0.1", "::1", within=inside)


class Background(TcpCase):
    """-d: the server goes into the background once it is ready."""

    def test_it_serves_until_term(self) -> None:
        self.jobs("true")
        ended = self.run_script(RUNSERVER, "-d", "--pidfile", "pid", "--errors", "errors",
                                "--host", self.HOST, "--port", 0, "runs.txt")
        self.assertEqual(ended.code, 0, ended.err)
        self.assertTrue(ended.out.startswith(b"Token for runmaker4-client.py: "), ended.out)
        pid = int(self.wait_file("pid"))
        port = wait_until(lambda: PORT_LINE.search(ended.err + self.read("errors")), what="it has a port")
        client = self.run_script(RUNCLIENT, "--port", int(present(port)[1]), self.HOST)
        self.assertEqual((client.code, self.states()), (0, "d"), client.err)
        os.kill(pid, signal.SIGTERM)
        self.assertNobodyLeft()
        self.assertIn(b"process %d, serving on port " % pid, self.read("errors").splitlines()[0])
        self.assertIn(b"1 done in", self.read("errors").splitlines()[-1])

    def test_what_is_wrong_is_said_before(self) -> None:
        self.jobs("true")
        for words in ("missing.txt",), ("--host", "192.0.2.1", "runs.txt"):
            with self.subTest(words=words):
                self.assertRefused(self.run_script(RUNSERVER, "-d", "--pidfile", "pid", "--port", 0, *words))
                self.assertFalse(self.exists("pid"))
        self.assertNobodyLeft()


class ComingAndGoing(TcpCase):
    """The server says when clients come and go, and how long it has served, by a clock that nobody sets."""

    def test_it_says_who_comes_and_who_leaves(self) -> None:
        self.jobs(WAITING)
        server = self.start_server()
        client = self.start_client(server, "--name", "alice", up=[1])
        self.assertEqual(self.run_client(server, "--name", "b\u00f6b").code, 0)
        self.open_gate()
        self.assertEqual(self.finish(client).code, 0)
        wait_until(lambda: b"alice (127.0.0.1) left" in server.err, what="it has said that alice left")
        said = re.findall("client (.*)", server.err.decode())
        self.assertEqual(said, ["alice (127.0.0.1) came", "b\u00f6b (127.0.0.1) came",
                                "b\u00f6b (127.0.0.1) left", "alice (127.0.0.1) left"])

    LATER = """
import os, time
real = time.time
time.time = lambda: real() + 7200 * os.path.exists("set")
"""

    def test_the_closing_line_after_the_wall_clock_was_set(self) -> None:
        self.jobs(WAITING)
        server = self.start_server(patch=self.LATER)
        client = self.start_client(server, up=[1])
        self.write("", "set")
        self.open_gate()
        self.assertEqual(self.finish(client).code, 0)
        self.assertRegex(self.stop(server).err.splitlines()[-1], rb": 1 done in [0-9.]+s$")


class Address(TcpCase):
    """A server is named by its host, or by HOST:PORT."""

    def test_the_port_may_stand_behind_the_host(self) -> None:
        self.jobs("true")
        server = self.start_server()
        for words in ((f"{self.HOST}:{server.port}",), ("--port", server.port, f"{self.HOST}:{server.port}")):
            self.jobs("true")
            ended = self.run_script(RUNCLIENT, "-q", *words)
            self.assertEqual((ended.code, self.states()), (0, "d"), ended.err)

    def test_hosts_and_ports_are_told_apart(self) -> None:
        client = importlib.import_module("runmaker4-client")
        for text, found in {"alice": ("alice", None), "alice:9999": ("alice", 9999), "::1": ("::1", None),
                            "[::1]:5": ("::1", 5), "fe80::1%eth0": ("fe80::1%eth0", None)}.items():
            self.assertEqual(client.server_address(text), found)
        for text in "alice:", "alice:x", "alice:0", "alice:65536", ":9998", "[::1", "[::1]", "a b:c":
            self.assertRefused(self.run_script(RUNCLIENT, text), "argument SERVER: not HOST or HOST:PORT: ")
        ended = self.run_script(RUNCLIENT, "--port=1", "alice:2")
        self.assertRefused(ended, "give only one of --port 1 and SERVER:2")
