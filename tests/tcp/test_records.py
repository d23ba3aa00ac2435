"""Promise: records of a server (-l, --outdir, --joblog, --print) are those of a runner beside the file."""
import dataclasses
import itertools
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time
import unittest
from collections.abc import Iterable, Sequence
from typing import Callable, Union

from tests.support.case import GATE
from tests.support.console import console_lines, printed
from tests.support.log_file import WIDTH, LogCase
from tests.support.messages import BEGIN, END, new_key
from tests.support.peer import Peer
from tests.support.pipes import deadline
from tests.support.ports import free_port
from tests.support.process_table import peak_memory
from tests.support.processes import DEADLINE, Ended, Process, wait_until
from tests.support.proxy import Proxy
from tests.support.runs import SLEEPING, WAITING
from tests.support.scripts import FULL, RUNCLIENT, RUNMAKER, RUNSERVER
from tests.support.tcp import Program, Server, TcpCase
from tests.support.tcp_patches import EAGER
from tests.support.values import as_bytes, present

BINARY = bytes(range(256)) * 100 + "€uro".encode() * 50 + b"\xe2\x82\xff\xfe no newline"
LONG = 3_000_000                        # bytes of a line that is longer than a frame
LONG_LINE = f"head -c {LONG} /dev/zero | tr '\\0' x; echo; echo end"
LARGE_PIPE = (f"{sys.executable} -c 'import fcntl, os; fcntl.fcntl(1, 1031, 1 << 20); "     # F_SETPIPE_SZ
              "os.write(1, bytes(range(256)) * 3000)'")             # more at once than a frame takes
KEPT = ("-l", "outputs", "--outdir", "out", "--joblog", "joblog")
PLACES = re.compile(rb"\((\w+),\d+\)")
TIMES = re.compile(rb"^(\d+\t\w+)\t[\d.]+\t *[\d.]+\t", re.MULTILINE)


def without_pids(text: bytes) -> bytes:
    """The lines of a console with the processes of the jobs blotted out."""
    return PLACES.sub(rb"(\1,PID)", text)


def comparable_log(log: bytes) -> list[bytes]:
    """The lines of a log file without processes, which decide where lines are cut, and without their ends."""
    return [without_pids(line)[:150].rstrip() for line in log.split(b"\n")]


def ticks(pid: int) -> int:
    """The processor time that a process has used, in hundredths of a second."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


class RecordsCase(TcpCase, LogCase):
    """Servers that keep records, and what these hold."""
    MEMORY = 80                         # MB that a server or client may have

    def files(self, directory: str = "out") -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.dir / directory).iterdir()
                if path.name != "journal"}

    def size(self, name: str) -> int:
        """The bytes of a file, 0 if it is not there yet."""
        return os.stat(self.dir / name).st_size if self.exists(name) else 0

    def rows(self) -> list[list[bytes]]:
        return [line.split(b"\t", 8) for line in self.read("joblog").splitlines()[1:]]

    def serve_jobs(self, server_options: Sequence[object], *client_options: object) -> tuple[Ended, Ended]:
        """Run the jobs of runs.txt by alice, a client, then have the server leave; how both ended."""
        server = self.start_server(*server_options)
        client = self.run_client(server, "--name", "alice", *client_options)
        return client, self.stop(server, signal.SIGHUP)

    def shown(self, server: Union[Ended, Program]) -> bytes:
        """What a server has printed after the line with the token."""
        return server.out.partition(b"\n")[2]

    def watch(self, server: Server, clients: Sequence[Program], condition: Callable[[], bool]) -> None:
        """While the condition is true: little memory is used, and the server answers."""
        while condition():
            with Peer.of(server.port, server.token) as peer:
                peer.hello().say(dict(type="ping", request=1)).hear("pong")
            for program in (server, *clients):
                if program.poll() is None:
                    self.assertLess(peak_memory(program.pid), self.MEMORY, program.process.args)
            time.sleep(0.02)

    def wait_until_all_wait(self, *pids: int) -> None:
        """Wait until these processes have next to nothing to do for a while."""
        before = -3
        while sum(map(ticks, pids)) - before > 2:
            before = sum(map(ticks, pids))
            time.sleep(0.2)


class SameBytes(RecordsCase):
    """A client's jobs leave at the server the bytes that they leave with runmaker4.py."""

    COMMANDS = [
        "echo a; echo A",
        "echo b >&2; exit 3",
        "printf 'no newline'",
        ":",
        "seq 3000 >&2",
        "kill -9 $$",
        "cat binary",
        "cat binary >&2",
        "echo x >> tries; wc -l < tries; exit 1",
        "for part in '\\342' '\\202' '\\254 \\342\\202' '\\254'; do printf \"$part\"; sleep 0.03; done",
    ]

    def prepare(self, commands: Iterable[str]) -> None:
        """The job file, and what the jobs read."""
        self.write("# comment\n" + "".join(f". {command}\n" for command in commands) + "x echo held\n")
        self.write(BINARY, "binary")
        self.write("", "tries")

    def records(self, where: str) -> tuple[str, ...]:
        """The options that keep records in this directory, where an older run has left one."""
        (self.dir / where / "out").mkdir(parents=True)
        self.write("old", f"{where}/out/3.err")
        return ("-l", f"{where}/log", "-n", "4", "--outdir", f"{where}/out", "--joblog", f"{where}/joblog")

    def run_here_and_there(self, commands: Sequence[str], local: Sequence[str], server: Sequence[str],
                           *options: object) -> tuple[Ended, Ended, Ended]:
        """Run the jobs by runmaker4.py, then by a client: how runner, client and server ended."""
        self.prepare(commands)
        runner = self.run_script(RUNMAKER, "--name", "alice", *local, *options, "runs.txt")
        states = self.states()
        self.prepare(commands)
        client, serving = self.serve_jobs(server, *options)
        self.assertEqual((self.states(), client.code), (states, runner.code), client.err)
        self.assertEqual(serving.code, runner.code, serving.err)
        return runner, client, serving

    def assertSameRecords(self) -> None:
        """The records in server/ are those in local/, but for processes and times."""
        local, server = self.files("local/out"), self.files("server/out")
        self.assertEqual(sorted(server), sorted(local))
        for name, data in server.items():
            self.assertTrue(data == local[name], f"{name} is another")
        logs = (self.read(f"{where}/joblog") for where in ("server", "local"))
        self.assertEqual(*(TIMES.sub(rb"\1\tSTART\tTIME\t", log) for log in logs))
        log = self.read("server/log")
        self.assertEqual(comparable_log(log), comparable_log(self.read("local/log")))
        records = log.replace(b"\0", b"")        # line 1 is a comment
        self.assertEqual({len(line) for line in records.split(b"\n")[:-1]}, {WIDTH})

    def test_the_files_hold_the_same(self) -> None:
        commands = [*self.COMMANDS, LONG_LINE, LARGE_PIPE]
        _, client, server = self.run_here_and_there(commands, self.records("local"), self.records("server"),
                                                    "--retries", 1)
        self.assertEqual(self.shown(server), b"", "it has no --print")
        self.assertLess({b"A", b"no newline"}, set(printed(console_lines(client.out))))
        self.assertSameRecords()
        names = sorted(self.files("server/out"))
        for name in "3.err", "3.err.~1~", "3.err.~2~", "10.out.~1~":
            self.assertIn(name, names, "older files are kept")

    def test_both_consoles_show_the_same(self) -> None:
        runner, client, server = self.run_here_and_there(self.COMMANDS, (), ["--print"], "--retries", 1)
        self.assertEqual(without_pids(client.out), without_pids(runner.out))
        self.assertEqual(self.shown(server), client.out)

    def test_a_line_that_is_longer_than_a_frame_is_printed_in_pieces(self) -> None:
        self.prepare([LONG_LINE])
        _, server = self.serve_jobs(["--print"])
        *pieces, last = printed(console_lines(self.shown(server)))
        self.assertGreater(len(pieces), 1)
        self.assertTrue((b"".join(pieces), last) == (b"x" * LONG, b"end"), "not what the job printed")

    def test_an_interrupt_leaves_the_same(self) -> None:
        starts: dict[str, Callable[[Sequence[object]], Process]] = {
            "local": lambda records: self.start_jobs("--name", "alice", *records),
            "server": lambda records: self.start_client(self.start_server(*records), "--name=alice", up=[1]),
        }
        for where, start in starts.items():
            self.jobs(f"echo a; printf b; {SLEEPING}")
            program = start(self.records(where))
            wait_until(lambda: self.size(f"{where}/out/1.out") == 3, what="the output was read")
            self.assertEqual(self.stop(program, signal.SIGINT).code, 130)
            self.wait_states("e")
            (self.dir / "up.1").unlink()
        self.assertSameRecords()


# the file `acknowledged` has the output that a client will not send again
ACKNOWLEDGED = EAGER + """
client = __import__("runmaker4-client")
acknowledge = client.Outbox.acknowledge
def note(outbox, number):
    events = acknowledge(outbox, number)
    with open("acknowledged", "a") as file:
        file.write("".join(event.message.get("data", "") for event in events))
    return events
client.Outbox.acknowledge = note
"""


class LongRecords(RecordsCase):
    """Commands and lines that are long, and go on under the next server."""

    def test_the_longest_command_of_bytes_that_take_six_each_in_every_message(self) -> None:
        command = as_bytes(f"{WAITING}; : ") + b"\xff" * (127 << 10)
        self.before = self.write(b". " + command + b"\n").read_bytes()
        first = self.start_server(*KEPT, "--print")
        client = self.start_client(first, "-q", up=[1], patch=EAGER)
        first.kill()
        second = self.start_server(*KEPT, "--print", "--port", first.port)
        self.wait_said(client, "connected again")
        self.open_gate()
        self.assertClientEnded(self.finish(client), 0, "d")
        self.assertEqual(self.rows()[0][8], command)
        self.assertIn(b"exit 0 \"" + command, self.shown(self.stop(second, signal.SIGHUP)))

    def test_the_next_server_begins_new_records_and_nothing_printed_is_lost(self) -> None:
        self.jobs(f"echo early; printf 'begun '; {WAITING}; echo and ended")
        first = self.start_server("-l", "outputs", "--print", patch=EAGER)
        client = self.start_client(first, "-q", "--name", "alice", up=[1], patch=ACKNOWLEDGED)
        wait_until(lambda: self.exists("acknowledged") and b"begun " in self.read("acknowledged"))
        wait_until(lambda: b"): early" in self.read("outputs") and b"): early\n" in first.out,
                   what="the record and stdout have the first line")
        first.kill()
        second = self.start_server("-l", "outputs", "--print", "--port", first.port)
        self.wait_said(client, "connected again")
        self.open_gate()
        self.assertClientEnded(self.finish(client), 0, "d")
        lines = [line.split(b"): ")[-1].rstrip() for line in self.record(1)[1:]]
        self.assertEqual(lines[1], b"and ended")
        shown = console_lines(self.shown(self.stop(second, signal.SIGHUP)))
        self.assertEqual((printed(shown), len(printed(shown, "executing"))), ([b"and ended"], 1))
        self.assertEqual(printed(console_lines(self.shown(first))), [b"early"])


class WhileJobsRun(RecordsCase):
    """Records grow as the jobs run, and show who runs them, and where."""

    def test_a_client_whose_directory_is_gone_has_records_that_name_it(self) -> None:
        place = self.dir / "gone"
        place.mkdir()
        port = free_port()
        client = self.start_program(RUNCLIENT, "-q", "--follow", "--port", port, self.HOST, cwd=place,
                                    env={"RUNMAKER4_TOKEN": "a" * 32})
        self.wait_said(client, "trying again")
        place.rmdir()
        self.jobs("echo a")
        self.start_program(RUNSERVER, *KEPT, "--port", port, "--host", self.HOST, "runs.txt",
                           env={"RUNMAKER4_TOKEN": "a" * 32})
        self.wait_states("d")
        self.assertIn(as_bytes(f".-> echo a (in {place})"), self.record(1)[0])
        self.assertEqual(self.files()["1.out"], b"a\n")     # the shell may have something to say on stderr
        self.assertEqual(client.err.count(b"\n"), 1)

    def test_names_stand_in_the_records_as_they_can_be_shown_and_no_longer_than_they_may_be(self) -> None:
        self.jobs("true")
        client = self.run_client(self.start_server(*KEPT), "--name", "a\nb", "--slots", "n" * 300)
        self.assertClientEnded(client, 0, "d")
        self.assertEqual(self.rows()[0][1], b"a?b")
        self.assertIn(b'"slot": "%b", ' % (b"n" * 255), self.read("out/journal"))


class Together(RecordsCase):
    """Clients of one server, and a runner beside it, share the records."""
    NAMES = ["alice", "bob", "carol"]

    def test_clients_and_a_runner_write_each_record_in_its_place(self) -> None:
        count = 60
        command = f"echo start $JOB_ID; sleep 0.0$((JOB_ID % 7)); echo end $JOB_ID; {GATE}"
        self.write("# shared\n" + f". {command}\n" * count)
        server = self.start_server(*KEPT)
        clients = [self.start_client(server, "-j2", "--name", name) for name in self.NAMES]
        runner = self.start(RUNMAKER, "-j2", "-q", "--name", "dave", *KEPT, "runs.txt")
        wait_until(lambda: self.states().count("r") >= 8, what="each has jobs")
        self.open_gate()
        programs: list[Process] = [*clients, runner]
        self.assertEqual({self.finish(program).code for program in programs}, {0})
        for line in range(2, count + 2):
            self.assertRecord(line, command, f": stdout (WHO): start {line}",
                              f": stdout (WHO): end {line}", f'+ status (WHO): exit 0 "{command}"')
        lines = range(2, count + 2)
        self.assertEqual(self.files(), {f"{n}.out": b"start %d\nend %d\n" % (n, n) for n in lines})
        self.assertEqual(sorted(int(row[0]) for row in self.rows()), list(lines))
        self.assertEqual({row[1].decode() for row in self.rows()}, {"dave", *self.NAMES})


class CutConnection(RecordsCase):
    """The connection breaks amid the output of jobs: what a server keeps is complete and exact."""
    CUTS = 10 if FULL else 2
    AHEAD = 2                                   # pieces that a job may print before the next cut
    PIECES, LINES = CUTS + AHEAD, 20_000

    def expected(self, line: int) -> bytes:
        """What the job of a line prints."""
        return b"".join(b"%d\n" % number for number in range(line, self.LINES + 1)) * self.PIECES

    def serve(self, *options: object) -> None:
        self.server = self.start_server(*KEPT, "--print", *options)

    def restart(self) -> None:
        self.server.kill()
        self.serve("--port", self.server.port)

    def printed_to(self, name: str, expected: bytes) -> bytes:
        """What was printed to all files of this name: of each server one.

        A server that was killed may not have acknowledged the end of its file: the next one has that, too.
        """
        text = b""
        paths = (self.dir / "out").glob(f"{name}*")     # the first has the plain name, the second .~1~
        for path in sorted(paths, key=lambda path: (len(path.name), path.name)):
            part = path.read_bytes()
            begin = expected.rfind(part, 0, len(text) + len(part))
            self.assertGreaterEqual(begin, 0, "something is lost")
            text = text[:begin] + part
        return text

    def serve_two(self) -> None:
        """Serve a job that prints on stdout, and one that prints the same on stderr but for the first lines.

        However fast they are, they cannot be over before all cuts were made.
        """
        waiting = f"[ $i -le {self.AHEAD} ] || until [ -e cut.$((i - {self.AHEAD})) ]; do sleep 0.01; done"
        command = f"for i in $(seq {self.PIECES}); do {waiting}; seq $JOB_ID {self.LINES}; done"
        self.jobs(command, f"exec >&2; {command}")
        self.serve()

    def run_two_and(self, cut: Callable[[], None], port: int = 0) -> None:
        """Run these jobs, and call cut() each time the server has one more piece of what the first prints."""
        client = self.start_client(dataclasses.replace(self.server, port=port or self.server.port),
                                   "-q", "-j2", "--name", "alice")
        expected = {"1.out": self.expected(1), "2.err": self.expected(2)}
        for number in range(1, self.CUTS + 1):
            wanted = len(expected["1.out"]) * number // self.PIECES
            wait_until(lambda: len(self.printed_to("1.out", expected["1.out"])) >= wanted,
                       what=f"the server has {wanted} bytes")
            cut()
            self.write("", f"cut.{number}")
        self.assertClientEnded(self.finish(client), 0, "dd")
        for name, data in expected.items():
            self.assertTrue(self.printed_to(name, data) == data, f"{name} is not what the job printed")
        self.assertEqual(sorted(row[0] for row in self.rows()), [b"1", b"2"])
        for number, mark in (1, b": stdout"), (2, b"! stderr"):
            *_, before, last = self.record(number)
            self.assertRegex(before, mark + rb" \(alice,\d+\): %d +$" % self.LINES)
            self.assertRegex(last, rb"^\+ status \(alice,\d+\): exit 0 ")

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_the_server_is_killed_and_started_again(self) -> None:
        self.serve_two()
        self.run_two_and(self.restart)

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_the_connection_is_cut(self) -> None:
        def cut() -> None:
            proxy.cut()
            proxy.mend()

        self.serve_two()
        proxy = Proxy(self.server.port)
        self.addCleanup(proxy.close)
        self.run_two_and(cut, port=proxy.port)
        self.assertEqual(sorted(self.files()), ["1.out", "2.err"])
        shown = self.shown(self.stop(self.server, signal.SIGHUP))
        for stream, line in ("stdout", 1), ("stderr", 2):
            lines = re.findall(rb"^%b \(alice,\d+\): (.*)\n" % stream.encode(), shown, re.MULTILINE)
            self.assertTrue(lines == self.expected(line).split(), f"{stream} is not what the job printed")
        status = printed(console_lines(shown), "status")
        forked, ended = (sum(text.startswith(word) for text in status) for word in (b"forked", b"exit "))
        self.assertEqual((len(status), ended), (forked + 2, 2))
        self.assertEqual(len(printed(console_lines(shown), "executing")), forked)

    def test_the_output_of_a_line_that_was_moved_while_there_was_no_server_is_in_two_files(self) -> None:
        self.jobs(f"echo first; {WAITING}; echo second")
        self.serve()
        client = self.start_client(self.server, "-q", up=[1], patch=EAGER)
        wait_until(lambda: self.size("out/1.out") == len("first\n"), what="the server has what was printed")
        self.server.kill()
        self.before = b"d : an older job\n" + self.before
        self.write(b"d : an older job\n" + self.read())
        self.write("of another run\n", "out/2.out")
        self.serve("--port", self.server.port)
        self.wait_clients(self.server, 1)
        self.open_gate()
        self.assertClientEnded(self.finish(client), 0, "dd")
        found = self.files()
        # again if the first server could not acknowledge it any more
        self.assertIn(found.pop("2.out.~1~"), (b"second\n", b"first\nsecond\n"))
        self.assertEqual(found, {"1.out": b"first\n", "2.out": b"of another run\n"})

    def test_output_that_a_server_had_and_its_host_lost_with_its_power_is_named(self) -> None:
        """As a power cut leaves it: an empty file, or none, or a journal that does not know of it."""
        self.jobs(*[f"echo first; {WAITING}; echo second"] * 4)
        self.serve()
        client = self.start_client(self.server, "-q", "-j4", up=[1, 2, 3, 4], patch=ACKNOWLEDGED)
        # until then the client sends it to the next server, too
        wait_until(lambda: self.exists("acknowledged") and self.read("acknowledged").count(b"first") == 4,
                   what="the server has what was printed")
        wait_until(lambda: all(b'"%d.out"' % line in self.read("out/journal") for line in (1, 2, 3, 4)),
                   what="the journal names the files")
        self.server.kill()
        self.write("", "out/1.out")
        (self.dir / "out/2.out").unlink()
        torn = '{"time": 1.5, "event": "start", "run": "{"time": 2.5, "event": "start", "files": ["9.out"]}\n'
        self.write(torn + "".join(line for line in self.read("out/journal").decode().splitlines(True)
                                  if '"line": 3' not in line), "out/journal")
        self.serve("--port", self.server.port, "--exit-when-done")
        self.wait_clients(self.server, 1)
        self.open_gate()
        self.assertClientEnded(self.finish(client), 0, "dddd")
        ended = self.finish(self.server)
        self.assertEqual(ended.code, 1)
        self.assertIn(b"; the output of 3 jobs is incomplete (lines 1, 2, 3)", ended.err)
        self.assertEqual(ended.err.count(b": 6 bytes that line "), 3)
        self.assertEqual(self.read("out/journal").count(b'"incomplete": true'), 3)


class MuchOutput(RecordsCase):
    """However much jobs print, and however slowly it is stored: memory is bounded, and the server answers."""
    MB = 1_000_000
    SHARE = 200 * MB if FULL else 10 * MB

    def job(self, size: int) -> str:
        """A command that prints so many bytes, in lines of 80."""
        return f"yes $(printf %079d $JOB_ID) | head -c {size}"

    def assertFile(self, name: str, line: int, size: int) -> None:
        """An output file has exactly what job(size) in this line prints."""
        self.assertEqual(self.size(name), size)
        piece = (b"%079d\n" % line) * 10_000
        with open(self.dir / name, "rb") as file:
            for data in iter(lambda: file.read(len(piece)), b""):
                if data != piece[:len(data)]:
                    self.fail(f"{name} is not what the job printed")

    def test_clients_print_much_at_once(self) -> None:
        """The jobs print on until the server has answered some times."""
        count, piece = 4, self.MB // 4
        least = self.SHARE // count // piece
        self.jobs(*[f"i=0; until [ $i -ge {least} ] && [ -e go ]; do {self.job(piece)}; i=$((i + 1)); "
                    f"[ $i -lt {least} ] || sleep 0.05; done; echo $i >pieces.$JOB_ID"] * count)
        server = self.start_server("--outdir", "out")
        clients = [self.start_client(server, "-q", "-1") for _ in range(count)]
        lines, looks = range(1, count + 1), itertools.count(1)
        self.watch(server, clients, lambda: next(looks) < 5 or (
            sum(self.size(f"out/{line}.out") for line in lines) < self.SHARE))
        self.write("", "go")
        self.assertEqual({self.finish(client).code for client in clients}, {0})
        self.assertEqual(self.states(), "d" * count)
        for line in lines:
            self.assertFile(f"out/{line}.out", line, piece * int(self.read(f"pieces.{line}")))

    def test_a_stopped_server_holds_back_the_job_and_no_byte_is_lost(self) -> None:
        size = 20 * self.MB
        self.jobs(f"{self.job(size)}; : > printed")
        server = self.start_server("--outdir", "out")
        client = self.start_client(server, "-q")
        wait_until(lambda: self.size("out/1.out") > 0, what="output has come")
        server.send_signal(signal.SIGSTOP)
        self.wait_until_all_wait(client.pid)
        self.assertFalse(self.exists("printed"), "the job ended, so its output was read")
        server.send_signal(signal.SIGCONT)
        self.assertEqual((self.finish(client).code, self.states()), (0, "d"))
        self.assertFile("out/1.out", 1, size)


class BlockedReader(RecordsCase):
    """--print to a pipe that nobody reads: only jobs wait, and nothing is missing when it is read again."""
    COUNT = 80_000                      # lines of 80 bytes

    def start_blocked(self) -> Server:
        """Start a server whose stdout is a pipe."""
        program = self.start_program(RUNSERVER, "--print", "--host", self.HOST, "--port", 0,
                                     "runs.txt", stdout=subprocess.PIPE)
        server = self.as_server(program)
        present(program.process.stdout).readline()
        server.token = self.read(".runmaker4.token").decode().strip()
        return server

    @unittest.skipUnless(FULL, "RUNMAKER4_TEST_FULL is not set: takes a second or two")
    def test_the_jobs_wait_until_somebody_reads(self) -> None:
        self.jobs(*[f"{{ : > up.$JOB_ID; seq -f %079.0f 1 {self.COUNT}; : > printed.$JOB_ID; }}"] * 2)
        server = self.start_blocked()
        client = self.start_client(server, "-j2", "-q", up=[1, 2])
        self.wait_until_all_wait(server.pid, client.pid)
        looks = iter(range(5))
        self.watch(server, [client], lambda: next(looks, None) is not None)
        self.assertEqual(self.states(), "rr")
        self.assertFalse(self.exists("printed.1") or self.exists("printed.2"), "a job's output was read")
        server.send_signal(signal.SIGHUP)           # it leaves when they have ended
        with deadline(server.process):
            shown = present(server.process.stdout).read()
        self.assertEqual((self.finish(client).code, self.finish(server).code, self.states()), (0, 0, "dd"))
        expected = b"".join(b"%079d\n" % number for number in range(1, self.COUNT + 1))
        for pid in set(re.findall(rb"^stdout (\(\S+,\d+\)):", shown, re.MULTILINE)):
            lines = re.findall(rb"^stdout %s: (.*\n)" % re.escape(pid), shown, re.MULTILINE)
            self.assertTrue(b"".join(lines) == expected, "not what the job printed")
        self.assertEqual(shown.count(b"\n"), 6 + 2 * self.COUNT)

    def test_a_reader_that_goes_away_is_said_and_the_jobs_go_on(self) -> None:
        self.jobs("seq 1000", "exit 3")
        server = self.start_blocked()
        present(server.process.stdout).close()
        self.assertEqual(self.run_client(server).code, 1)
        ended = self.stop(server, signal.SIGHUP)
        self.assertComplains(ended, "stdout", "broken pipe")
        self.assertEqual(self.states(), "d!")


class FullDisk(RecordsCase):
    """What the server cannot write, or what makes no sense, is said, and its exit status is 1; jobs go on."""

    def test_files_that_may_not_grow(self) -> None:
        """No job has failed, so the client has not."""
        self.jobs("head -c 100000 /dev/zero", *["echo small"] * 9)
        limit = 50_000
        limits = resource.RLIMIT_FSIZE, (limit, limit)
        server = self.start_server(*KEPT, "-n", 40, preexec_fn=lambda: resource.setrlimit(*limits))
        self.assertClientEnded(self.run_client(server, "-q", "-j2"), 0, "d" * 10)
        ended = self.stop(server, signal.SIGHUP)
        for name in "out/1.out", "outputs":
            self.assertComplains(ended, name, "too large")
        self.assertEqual(ended.code, 1)
        self.assertLessEqual(set(self.read("out/1.out")), {0})
        self.assertEqual(self.read("out/10.out"), b"small\n")

    def test_an_event_that_makes_no_sense_is_lost_once_and_not_in_silence(self) -> None:
        self.jobs("true")
        server = self.start_server("--joblog", "joblog", "--exit-when-done")
        key = new_key()

        def connect() -> Peer:
            return Peer.of(server.port, server.token)

        peer = connect().hello(client=key)
        peer.hear("welcome")
        job, = peer.say(dict(type="claim", request=1, want=1, last=False)).hear("jobs")["jobs"]
        event = dict(END, n=1, id=job["id"])            # of a run that has not begun
        peer.say(event).rest()
        peer.close()
        again = connect().hello({name: job[name] for name in ("id", "number", "text")}, client=key)
        again.hear("welcome")
        again.say(event, dict(type="finish", n=2, id=job["id"], state="d", how="exit 0", lost=False))
        again.hear("closing")
        again.close()
        self.assertEqual((self.finish(server).code, self.states()), (1, "d"))
        self.assertEqual(server.err.count(b"invalid event 'end', not handled"), 1)


class Acknowledged(TcpCase):
    """What a client need not send again is in the files, also if the server is killed the next moment."""

    # A client does not repeat a run whose result is in the file
    KILLED = """
import os, runmaker4, signal
runmaker4.Journal.END_GATHER_SECONDS = 1000
def pwrite(fd, data, offset, real=os.pwrite, results=[]):
    results += [data] * (data == b"d")
    written = real(fd, data, offset)
    if len(results) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return written
os.pwrite = pwrite
"""

    def test_the_journal_has_the_end_of_each_result_that_is_in_the_file(self) -> None:
        self.jobs("true", "true")
        server = self.start_server("--outdir", "out", patch=self.KILLED)
        with Peer.of(server.port, server.token) as peer:
            peer.hello().hear("welcome")
            for number in (1, 2):
                job, = peer.say(dict(type="claim", request=number, want=1, last=False)).hear("jobs")["jobs"]
                finish = dict(type="finish", state="d", how="exit 0", lost=False)
                peer.say(*({**event, "id": job["id"], "n": 3 * number + n}
                           for n, event in ((-2, BEGIN), (-1, END), (0, finish))))
            self.assertEqual(server.wait(DEADLINE), -signal.SIGKILL)
        self.assertEqual((self.states(), self.read("out/journal").count(b'"event": "end"')), ("dd", 2))

    # As on a network file system, with a thread; each flush of the journal is noted
    FLUSHES = """
import runmaker4
runmaker4.find_mount = lambda path: runmaker4.Mount("nfs4", frozenset())
flush = runmaker4.OutDir.flush
def flush_and_note(outdir):
    with open("flushes", "a") as file:
        file.write(".")
    flush(outdir)
runmaker4.OutDir.flush = flush_and_note
"""

    def test_a_server_on_a_network_file_system_flushes_the_journal_once_a_second(self) -> None:
        self.jobs("for i in 1 2 3; do echo $i; sleep 0.5; done")
        server = self.start_server(patch=self.FLUSHES)
        self.assertClientEnded(self.run_client(server, "-q"), 0, "d")
        self.stop(server)
        self.assertLess(len(self.read("flushes")), 30)


class Refused(TcpCase):
    """Records that cannot be written are refused before anybody is served: one line, exit 2."""

    def test_files_that_cannot_be_written(self) -> None:
        self.write(". true\n")
        self.write("text\n", "text")
        calls = [("-l", "nowhere/log"), ("-l", "."), ("-l", "runs.txt"), ("--joblog", "nowhere/joblog"),
                 ("--joblog", "text"), ("--outdir", "text"), ("-l", "both", "--joblog", "./both")]
        for call, ended in self.run_all([(RUNSERVER, "--port", 0, "--host", self.HOST, *options, "runs.txt")
                                         for options in calls]):
            with self.subTest(options=call[5:-1]):
                self.assertRefused(ended, pathlib.Path(str(call[-2])).name)
        self.assertEqual(self.states(), ".")
