"""What the tests share: job files, the scripts as real processes, and waiting for conditions.

Every process that a test starts carries a mark in its environment, and so does all that comes of it; what is
left of them is killed when the test ends.  RUNMAKER4_TEST_DIR=DIR puts the job files on another file system.
"""
import atexit
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import pathlib
import py_compile
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
import unittest
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Callable, Optional, Protocol, TypeVar, Union
from unittest import mock

import runmaker4

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNMAKER, RUNSET, RUNWAIT = "runmaker4.py", "runset4.py", "runwait4.py"
RUNSERVER, RUNCLIENT = "runmaker4-server.py", "runmaker4-client.py"
SCRIPTS = (RUNMAKER, RUNSET, RUNWAIT, RUNSERVER, RUNCLIENT)
FULL = bool(os.environ.get("RUNMAKER4_TEST_FULL"))      # the full sizes, a minute each; .ci/run turns it on
# the largest sizes, many minutes each; .ci/run all
ALL = os.environ.get("RUNMAKER4_TEST_FULL") == "all"
MARK, MARK_LENGTH = "RUNMAKER4_TEST_MARK", 32
# A job that runs until open_gate() is called.  It waits at a pipe that nobody writes to: looking again and
# again takes CPU time; where it does not know the pipe's name, it looks
PIPE = f"{tempfile.gettempdir()}/runmaker4-gate.${MARK}"
GATE = f": >at.gate; [ ! -p {PIPE} ] || true 2>/dev/null <{PIPE}; until [ -e go ]; do sleep 0.02; done"
Text = Union[str, bytes]
T = TypeVar("T")
C = TypeVar("C", bound=type)
SCRIPTS_AT, PYTHON = ROOT, sys.executable
# compile the scripts once, not at each start; Python takes a directory with a __main__ for a script
if not ALL:
    SCRIPTS_AT = pathlib.Path(tempfile.mkdtemp(prefix="runmaker4-compiled-"))
    atexit.register(shutil.rmtree, SCRIPTS_AT, ignore_errors=True)
    for name in SCRIPTS:
        py_compile.compile(str(ROOT / name), f"{SCRIPTS_AT / name}c", doraise=True)
        (SCRIPTS_AT / name).mkdir()
        (SCRIPTS_AT / name / "__main__.pyc").symlink_to(f"{SCRIPTS_AT / name}c")
        for other in SCRIPTS:       # each is beside the others
            (SCRIPTS_AT / name / f"{other}c").with_suffix(".pyc").symlink_to(SCRIPTS_AT / f"{other}c")
    # an environment of its own: what others have added is not loaded
    PYTHON = str(SCRIPTS_AT / "bin/python3")
    os.mkdir(SCRIPTS_AT / "bin")
    os.symlink(os.path.realpath(sys.executable), PYTHON)
    (SCRIPTS_AT / "pyvenv.cfg").write_text("include-system-site-packages = false\n"
                                           f"home = {os.path.dirname(os.path.realpath(sys.executable))}\n")
    # jobs that say python3 mean this one, and no wrapper that first looks for a version
    os.environ["PATH"] = f"{SCRIPTS_AT}/bin:{os.environ.get('PATH', os.defpath)}"

for number in signal.SIGHUP, signal.SIGINT, signal.SIGQUIT:     # nohup and a shell's & leave them ignored
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


# Forks scripts for its own parent (CLONE_PARENT, clone(2)), which sends arguments and descriptors.  What
# Python imports for a script costs 60 to 150 ms of CPU time, a fork 5 ms.  A fork does what the script does
# before its imports.  /proc/PID/environ has the mark of its test there (env_start: proc_pid_stat(5))
CLONE = {"x86_64": 56, "aarch64": 220}.get(os.uname().machine)       # clone() in <asm/unistd.h>
FORKING = f"""
import asyncio, ctypes, gc, importlib, json, os, queue, signal, socket, sys, threading
sys.path[0] = {str(SCRIPTS_AT)!r}
with open("/proc/self/stat") as stat, open("/proc/self/environ", "rb") as environ:
    env_start = int(stat.read().rpartition(")")[2].split()[47])
    mark_at = env_start + environ.read().index(b"{MARK}=") + {len(MARK) + 1}
here = socket.socket(fileno=0)
while (got := socket.recv_fds(here, 1 << 20, 4))[0]:
    asked, files = json.loads(got[0]), got[1]
    importlib.import_module(asked["script"])
    gc.freeze()
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = ctypes.CDLL(None).syscall({CLONE}, 0x8000 | signal.SIGCHLD, 0, 0, 0, 0)
    if pid:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
        for fd in files:
            os.close(fd)
        continue
    ctypes.pythonapi.PyOS_AfterFork_Child()
    ctypes.memmove(mark_at, asked["environ"]["{MARK}"].encode(), {MARK_LENGTH})
    here.send(b"%d" % os.getpid())          # from here on the test finds it by its mark
    here.close()
    if not os.read(files.pop(), 1):         # nobody knows of this fork
        os._exit(1)
    os.environ.clear()
    os.environ.update(asked["environ"])
    os.chdir(asked["cwd"])
    for fd, file in enumerate(files):
        os.dup2(file, fd)
    os.closerange(3, 1 << 16)
    if asked["session"]:
        os.setsid()
    if asked["script"].startswith("runmaker4"):
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2,
                                                  signal.SIGXCPU, signal.SIGHUP, signal.SIGUSR1,
                                                  signal.SIGQUIT))
    sys.argv = asked["argv"]
    if sys.argv[0] != "-c":
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    else:       # what is changed in runmaker4 has changed when the others import it
        for name in {[name[:-3] for name in SCRIPTS if name != RUNMAKER]}:
            sys.modules.pop(name, None)
    exec(asked["program"], {{"__name__": "__main__"}})
"""
SCRIPT = re.compile(r"^script = __import__\('(.*)'\)$", re.MULTILINE)


def program_of(script: str, path: object, statements: str = "") -> str:
    """What python3 -c runs: statements, which import runmaker4, and then a script, as if at this path."""
    return (f"import sys\nsys.path[:0] = [{str(SCRIPTS_AT)!r}]\n{statements}\n"
            f"script = __import__({script[:-3]!r})\n"
            f"sys.argv[0] = {str(path)!r}\nscript.exit_now(script.main())\n")


class ForkServer:
    """The Python that forks scripts for one process, which has started it."""
    MAX_SECONDS = 60.0

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self.ours.settimeout(self.MAX_SECONDS)
        environ = {**os.environ, MARK: "-" * MARK_LENGTH}
        self.process = subprocess.Popen([PYTHON, "-c", FORKING], stdin=theirs.fileno(),
                                        stdout=subprocess.DEVNULL, env=environ)
        theirs.close()

    def fork(self, asked: dict[str, Any], files: Sequence[int]) -> int:
        """Fork a script that gets these files as 0 to 2; return its process number, or 0: there is no answer.

        Then no script runs, and none will: a fork waits for a byte that says that its number has arrived.
        """
        go_read, go_write = os.pipe()
        try:
            socket.send_fds(self.ours, [json.dumps(asked).encode()], [*files, go_read])
            if answer := self.ours.recv(20):        # empty: it has ended
                os.write(go_write, b"\n")
            return int(answer or 0)
        except OSError:                             # also the timeout
            return 0
        finally:
            os.close(go_read)
            os.close(go_write)

    def close(self) -> None:
        """End it, even if it is stopped or hangs."""
        self.ours.close()
        self.process.kill()
        self.process.wait()


fork_servers: dict[int, ForkServer] = {}        # by the process number of who started it


def fork_script(asked: dict[str, Any], files: Sequence[int]) -> int:
    """Have a script forked; return its process number, or 0: it must be started in the ordinary way.

    A fork server that does not answer is ended, and the next script gets another.
    """
    if (own := os.getpid()) not in fork_servers:
        fork_servers[own] = ForkServer()
    pid = fork_servers[own].fork(asked, files)
    if not pid:
        fork_servers.pop(own).close()
    return pid


@atexit.register
def close_fork_server() -> None:
    if server := fork_servers.pop(os.getpid(), None):
        server.close()


class Forked(subprocess.Popen[bytes]):
    """A process: a fork if it is a script in which it does not matter how it is started."""
    _child_created: bool
    _close_pipe_fds: Callable[..., None]

    def _execute_child(self, *given: Any) -> None:
        words, preexec, kept, cwd, environ, *pipes, session = (
            given[at] for at in (0, 2, 4, 5, 6, 10, 13, 15, 21)
        )
        files = [number if fd == -1 else fd for number, fd in enumerate(pipes)]
        program = self.program(words)
        script = SCRIPT.search(program)
        # Python asks whether it is a terminal, and reads these variables, when it starts
        own = {name for name in environ if re.match("PYTHON|LC_|LANG|TZ|LD_|MALLOC", name)}
        if (preexec or kept or not script or any(map(os.isatty, files))
                or any(environ[name] != os.environ.get(name) for name in own)):
            super()._execute_child(*given)      # type: ignore[misc]    # what subprocess does
            return
        asked = {"script": script[1], "program": program, "argv": words[1:2] + words[2 + (words[1] == "-c"):],
                 "cwd": str(cwd), "environ": environ, "session": session}
        pid = fork_script(asked, files)
        if not pid:
            super()._execute_child(*given)      # type: ignore[misc]    # what subprocess does
            return
        self.pid = pid
        self._child_created = True
        self._close_pipe_fds(*given[10:16])

    @staticmethod
    def program(words: list[str]) -> str:
        """What this command has Python run, if it is one of our scripts."""
        if words[:2] == [PYTHON, "-c"]:
            return words[2]
        is_script = words[0] == PYTHON and os.path.dirname(words[1]) == str(SCRIPTS_AT)
        return program_of(os.path.basename(words[1]), words[1]) if is_script else ""


def as_bytes(text: Text) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


Call = TypeVar("Call", bound=Sequence[object])          # a script and its arguments
# What a mixin is that has tests: unittest would run them, too, if it were a TestCase before it is mixed in
if TYPE_CHECKING:
    Mixin = unittest.TestCase
else:
    Mixin = object


@dataclass
class Ended:
    """How a script ended: exit status and what it printed."""
    code: int
    out: bytes
    err: bytes


class Process(Protocol):
    """What the tests ask of a process that they have started: a Popen, or one that prints to files."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> Optional[int]: ...
    def wait(self, timeout: Optional[float] = None) -> int: ...
    def communicate(self, *, timeout: Optional[float] = None) -> tuple[bytes, bytes]: ...
    def send_signal(self, number: signal.Signals, /) -> None: ...
    def kill(self) -> None: ...


def wait_until(condition: Callable[[], Optional[T]], timeout: float = 40, what: str = "") -> T:
    """Wait until condition() is true and return its value; fail after timeout seconds.

    A job that sleeps for a minute, and should be ended, has not ended by itself then.
    """
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what or condition}")
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def marked(mark: str) -> list[int]:
    """The living processes that have this text in their environment (Linux)."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb", buffering=0) as file:
                if mark.encode() in file.readall() and alive(int(entry)):
                    found.append(int(entry))
    return found


def lock_table(path: pathlib.Path) -> pathlib.Path:
    """The file beside a job file in which its commands are locked."""
    return path.with_name(f".{path.name}.lock")


def held_job_locks(path: pathlib.Path, command: bytes) -> list[int]:
    """The job locks of a command that are held."""
    try:
        with open(lock_table(path), "rb") as file:
            start = runmaker4.bucket_of(command)
            return [at - start
                    for found in runmaker4.other_locks(file.fileno(), start, runmaker4.JOB_LOCKS_PER_BUCKET)
                    for at in found]
    except FileNotFoundError:
        return []


def job_of(found: Union[runmaker4.Job, runmaker4.NoJob]) -> runmaker4.Job:
    """The job that was claimed, which must have been one."""
    if not isinstance(found, runmaker4.Job):
        raise AssertionError(f"no job was claimed: {found}")
    return found


@contextlib.contextmanager
def locked(fd: int, at: int, length: int = 1) -> Iterator[None]:
    """Hold an exclusive lock for a moment; tries for 60 seconds, then raises OSError(EAGAIN)."""
    if not runmaker4.keep_trying(lambda: runmaker4.lock(fd, at, length), 60.0):
        raise OSError(errno.EAGAIN, "somebody else has kept it locked")
    try:
        yield
    finally:
        runmaker4.unlock(fd, at, length)


@contextlib.contextmanager
def deadline(process: Process, timeout: float = 60) -> Iterator[None]:
    """Kill the process if the block takes longer than this, so that reading its output comes to an end."""
    watchdog = threading.Timer(timeout, process.kill)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def without(*names: str) -> Callable[[C], C]:
    """A class decorator: these of the tests that are inherited are none of this class."""
    def take_out(case: C) -> C:
        for name in names:
            if not callable(getattr(case, name, None)):
                raise LookupError(f"{case.__name__} does not inherit {name}")
            setattr(case, name, None)
        return case
    return take_out


class Case(unittest.TestCase):
    """A test with a directory of its own, where its scripts run; cleans up after itself."""
    forks = True                # in ordinary size, scripts in which it does not matter how they are started

    def setUp(self) -> None:
        base = os.environ.get("RUNMAKER4_TEST_DIR")
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="runmaker4-", dir=base)).resolve()
        self.mark = uuid.uuid4().hex
        self.started: list[subprocess.Popen[bytes]] = []
        self.pipe = pathlib.Path(PIPE.replace(f"${MARK}", self.mark))
        os.mkfifo(self.pipe)
        self.addCleanup(self.pipe.unlink)
        self.addCleanup(self._clean)

    def _clean(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
        for _ in range(100):
            left = [pid for pid in marked(f"{MARK}={self.mark}") if pid != os.getpid()]
            if not left:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        for process in self.started:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    # -- files ----------------------------------------------------------------------------------------------

    def write(self, text: Text, name: str = "runs.txt") -> pathlib.Path:
        """Make a file in the test's directory."""
        path = self.dir / name
        path.write_bytes(as_bytes(text))
        return path

    def script(self, text: str, name: str) -> None:
        """Make a program, and the folder that it is in."""
        (self.dir / name).parent.mkdir(parents=True, exist_ok=True)
        self.write(text, name).chmod(0o755)

    def read(self, name: str = "runs.txt") -> bytes:
        return (self.dir / name).read_bytes()

    def open_gate(self) -> None:
        """Let the jobs that wait at the GATE end."""
        self.write("", "go")
        self.addCleanup(os.close, os.open(self.pipe, os.O_RDWR))        # which lets pass who opens it to read

    def states(self, name: str = "runs.txt") -> str:
        """The state bytes of all job lines, in order: 'dd.r'."""
        found = re.findall(rb"^([^#/ \t\r\n])[ \t]", self.read(name), re.MULTILINE)
        return b"".join(found).decode("latin-1")

    def set_state(self, number: int, state: str) -> None:
        """Write a state in place, without any lock, as some editors do."""
        with open(self.dir / "runs.txt", "r+b") as file:
            lines = file.readlines()
            os.pwrite(file.fileno(), state.encode(), sum(map(len, lines[:number - 1])))

    def wait_states(self, wanted: str, timeout: float = 40, name: str = "runs.txt") -> None:
        """Wait until the job lines have exactly these states."""
        end = time.monotonic() + timeout
        while self.states(name) != wanted:
            if time.monotonic() > end:
                self.fail(f"states are {self.states(name)!r}, not {wanted!r}, after {timeout} s")
            time.sleep(0.01)

    def locked_lines(self, name: str = "runs.txt") -> list[int]:
        """The numbers of the lines with a life sign: their own job locks, or any if no line is like them."""
        lines = [(number, line[2:]) for number, line in enumerate(self.read(name).splitlines(), 1)
                 if line[1:2] == b" " and line[:1] not in b"#/"]
        texts = [text for _, text in lines]
        return [number for number, text in lines if (job_locks := held_job_locks(self.dir / name, text))
                and (number in job_locks or texts.count(text) == 1)]

    def hold_line(self, number: int, name: str = "runs.txt") -> int:
        """Take the life sign of a line, as its runner would; the descriptor, closed when the test ends."""
        command = self.read(name).splitlines()[number - 1][2:]
        fd = runmaker4.open_lock_file_of(str(self.dir / name))
        self.addCleanup(os.close, fd)
        self.assertTrue(runmaker4.lock(fd, runmaker4.bucket_of(command) + number))
        return fd

    def start_to_gate(self, text: Text, *options: str) -> subprocess.Popen[bytes]:
        """Make runs.txt of this text, with a job that waits at the GATE; a quiet runner that runs it."""
        at_gate = self.dir / "at.gate"      # a runner writes the state before it starts the job
        at_gate.unlink(missing_ok=True)
        self.write(text)
        runner = self.start(RUNMAKER, "-q", *options, "runs.txt")
        wait_until(lambda: at_gate.exists() or runner.poll() is not None, what="a job is at the gate")
        if not at_gate.exists():
            self.fail(f"the runner has ended: {runner.communicate()}")
        return runner

    def wait_file(self, name: str, timeout: float = 40) -> bytes:
        """Wait until a file is there and not empty; its bytes."""
        path = self.dir / name

        def written() -> bytes:
            return path.read_bytes() if path.exists() else b""

        return wait_until(written, timeout, f"{name} is written")

    # -- processes ------------------------------------------------------------------------------------------

    def environ(self, extra: Optional[dict[str, str]] = None) -> dict[str, str]:
        """The environment of what a test starts: ours, the mark, and no colour or cluster of the caller's.

        Python's output is buffered, as it is for users: what a script has not written at its exit is lost.
        """
        kept = {key: value for key, value in os.environ.items()
                if not key.startswith(("SLURM_", "RUNMAKER4_")) and key != "PYTHONUNBUFFERED"}
        kept.update({MARK: self.mark})
        kept.update(extra or {})
        return kept

    def command(self, script: str, *args: object) -> list[str]:
        """The argv of one of our scripts; other commands go through unchanged."""
        words = [str(word) for word in args]
        return [PYTHON, str(SCRIPTS_AT / script), *words] if script in SCRIPTS else [script, *words]

    def start(self, script: str, *args: object, env: Optional[dict[str, str]] = None,
              **options: Any) -> subprocess.Popen[bytes]:
        """Start a script (one of SCRIPTS, or any command) in the test's directory; output to pipes."""
        settings: dict[str, Any] = dict(cwd=self.dir, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE)
        settings.update(options)
        popen = Forked if self.forks and CLONE and not FULL else subprocess.Popen
        process: subprocess.Popen[bytes] = popen(self.command(script, *args), env=self.environ(env),
                                                 **settings)
        self.started.append(process)
        return process

    def finish(self, process: Process, timeout: float = 60) -> Ended:
        """Wait for a started script and return how it ended; never a traceback."""
        out, err = process.communicate(timeout=timeout)
        return self.as_ended(process.wait(), out or b"", err or b"")

    def stop(self, process: Process, number: signal.Signals = signal.SIGTERM, timeout: float = 60) -> Ended:
        """Send a signal, and wait for the end; how it ended."""
        process.send_signal(number)
        return self.finish(process, timeout)

    def as_ended(self, code: int, out: bytes, err: bytes) -> Ended:
        self.assertNotIn(b"Traceback", err)
        return Ended(code, out, err)

    def run_script(self, script: str, *args: object, timeout: float = 60, **options: Any) -> Ended:
        """Run a script to its end."""
        return self.finish(self.start(script, *args, **options), timeout)

    def run_all(self, calls: Iterable[Call], **options: Any) -> list[tuple[Call, Ended]]:
        """Run scripts at the same time; the calls and how they ended."""
        given = list(calls)
        started = [self.start(str(script), *args, **options) for script, *args in given]
        return list(zip(given, map(self.finish, started)))

    def assertRefused(self, ended: Ended, *words: str) -> None:
        """Exit 2, nothing on stdout, one line on stderr that has these words."""
        self.assertEqual(ended.code, 2, ended.err)
        self.assertEqual(ended.out, b"")
        self.assertEqual(ended.err.count(b"\n"), 1, ended.err)
        for word in words:
            self.assertIn(as_bytes(word), ended.err)


# -- the console of a runner ---------------------------------------------------------------------------------

CONSOLE_LINE = re.compile(rb"(executing) `(.*)'|(status|stdout|stderr) \(([^,()]+),(\d+)\): (.*)", re.DOTALL)


@dataclass
class ConsoleLine:
    """A line that a runner printed: executing (text is the command), status, stdout or stderr."""
    kind: str
    host: str
    pid: int
    text: bytes


def console_lines(out: bytes) -> list[ConsoleLine]:
    """What a runner printed on stdout, line by line; fails where one has none of the forms or is cut."""
    if not out:
        return []
    found = []
    whole, _, rest = out.rpartition(b"\n")
    assert not rest, f"the last line has no newline: {rest[:200]!r}"
    for line in whole.split(b"\n"):
        match = CONSOLE_LINE.fullmatch(line)
        assert match, f"not a line of the console: {line[:200]!r}"
        if match[1]:
            found.append(ConsoleLine("executing", "", 0, match[2]))
        else:
            found.append(ConsoleLine(match[3].decode(), match[4].decode(), int(match[5]), match[6]))
    return found


def printed(lines: list[ConsoleLine], kind: str = "stdout", pid: Optional[int] = None) -> list[bytes]:
    """The texts of the lines of one kind, of one job or of all."""
    return [line.text for line in lines if line.kind == kind and pid in (None, line.pid)]


def unread(pipe: IO[bytes]) -> int:
    """How many bytes wait in a pipe for somebody to read them."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def peak_memory(pid: int) -> float:
    """The most memory that a process of ours ever had, in MB; 0 once it has ended (Linux)."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1000 if found else 0.0


# -- runners and their endings -------------------------------------------------------------------------------

# a runner or script that sees an NFSv3 mount, where a query shows no shared lock of another host
NFS3 = """
import fcntl, runmaker4
def is_free(fd, offset, length=1):
    query = runmaker4.FLOCK.pack(fcntl.F_RDLCK, 0, offset, length, 0)      # finds exclusive locks
    return not length or fcntl.F_UNLCK == runmaker4.FLOCK.unpack(
        fcntl.fcntl(fd, runmaker4.OFD_GETLK, query))[0]
runmaker4.find_mount, runmaker4.is_free = lambda _: runmaker4.Mount("nfs", frozenset()), is_free
"""
UP = ": > up.$JOB_ID"               # a job says that it runs
WAITING = f"{UP}; {GATE}"           # a job says so, and runs until open_gate() is called
SLEEPING = f"{UP}; sleep 60"        # a job says so, and must be ended


def without_states(text: bytes) -> bytes:
    """The bytes of a job file with every state blotted out."""
    return re.sub(rb"^[^#/ \t\r\n](?=[ \t])", b"?", text, flags=re.MULTILINE)


# From look to look at a job file it takes 0.2 s, not 1 s
INTERVAL = 1.0 if FULL else 0.2
HASTY = f"""
import runmaker4
def interval(file):
    return 5.0 if file.network else {INTERVAL}
runmaker4.JobReader.interval = property(interval, lambda file, seconds: None)
"""
# KILL comes 0.5 s after TERM, not 10 s; a line is gone at the first look instead of the third
QUICK = f"{HASTY}runmaker4.GRACE, runmaker4.JobReader.MAX_LOOKS = 0.5, 1\n"
PR_CAPBSET_DROP, CAP_DAC = 24, (1, 2)       # of <linux/prctl.h>; CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


class RunCase(Case):
    """A test of what becomes of jobs, of their file and of their processes."""
    before = b""                # runs.txt as it was made, and appended to

    def jobs(self, *commands: str) -> None:
        """Make runs.txt of these commands, all new."""
        self.before = self.write("".join(f". {command}\n" for command in commands)).read_bytes()

    @contextlib.contextmanager
    def limited(self, groups: str, limits: Optional[Mapping[str, str]],
                env: Optional[dict[str, str]]) -> Iterator[None]:
        """Have this text in /proc/self/cgroup, these files in /sys/fs/cgroup, and these variables."""
        root = self.dir / "cgroup"
        for name, text in (limits or {}).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text + "\n")
        own = self.write(groups, "self")
        groups_of_ours = mock.patch.multiple(runmaker4, CGROUP_ROOT=str(root), PROC_CGROUP=str(own))
        with groups_of_ours, mock.patch.dict(os.environ, self.environ(env), clear=True):
            yield
        shutil.rmtree(root, ignore_errors=True)

    def append(self, *lines: str) -> None:
        """Append lines in one write."""
        text = "".join(f"{line}\n" for line in lines).encode()
        with open(self.dir / "runs.txt", "ab", buffering=0) as file:
            file.write(text)
        self.before += text

    def run_jobs(self, *options: object, **settings: Any) -> Ended:
        """Run the jobs of runs.txt to the end of the runner."""
        return self.run_script(RUNMAKER, *options, "runs.txt", **settings)

    def start_jobs(self, *options: object, up: Sequence[int] = (1,), quick: bool = False,
                   **settings: Any) -> subprocess.Popen[bytes]:
        """Start a runner on runs.txt, and return it when the jobs of these lines have made their up.LINE.

        quick: with less patience (see QUICK), unless all is to be tested in full size.
        """
        if quick:
            runner = self.start_hasty(*options, "runs.txt", patience=QUICK, **settings)
        else:
            runner = self.start(RUNMAKER, *options, "runs.txt", **settings)
        self.wait_up(*up, runner=runner)
        return runner

    def start_patched(self, statements: str, *args: object, script: str = RUNMAKER,
                      **settings: Any) -> subprocess.Popen[bytes]:
        """Start a script in a Python that has run these statements, which import runmaker4, before."""
        program = program_of(script, ROOT / script, statements)
        return self.start(PYTHON, "-c", program, *args, **settings)

    def start_hasty(self, *args: object, patience: str = HASTY, **settings: Any) -> subprocess.Popen[bytes]:
        """Start runmaker4.py with less patience, unless all is to be tested in full size."""
        if FULL:
            return self.start(RUNMAKER, *args, **settings)
        return self.start_patched(patience, *args, **settings)

    def wait_up(self, *lines: int, runner: Optional[Process] = None) -> None:
        """Wait until the jobs of these lines run; fail at once when this runner is gone."""
        def is_up(name: str) -> bool:
            if runner is not None and runner.poll() is not None and not self.exists(name):
                self.fail(f"the runner ended before {name} was there: {runner.communicate()}")
            return self.exists(name)

        for line in lines:
            wait_until(lambda: is_up(f"up.{line}"), what=f"the job of line {line} runs")

    def exists(self, name: str) -> bool:
        return (self.dir / name).exists()

    def assertNobodyLeft(self) -> None:
        """No process of this test lives on."""
        wait_until(lambda: not marked(f"{MARK}={self.mark}"), what="no process is left")

    def assertOnlyStatesChanged(self) -> None:
        """Nothing but state bytes differs from what jobs() wrote."""
        self.assertEqual(without_states(self.read()), without_states(self.before))

    def assertEnded(self, ended: Ended, code: int, states: str) -> None:
        """The exit status and the states left; nothing else changed in the file, and no process lives on."""
        self.assertEqual((ended.code, self.states()), (code, states), ended.err.decode(errors="replace"))
        self.assertOnlyStatesChanged()
        self.assertNobodyLeft()

    def assertComplains(self, ended: Ended, *words: str) -> None:
        """One line on stderr has all these words (in any case); the closing line does not count."""
        lines = ended.err.splitlines()[:-1]
        self.assertTrue(any(all(as_bytes(word).lower() in line.lower() for word in words) for line in lines),
                        f"no line has {words}: {ended.err!r}")

    def assertInBackground(self, ended: Ended, messages: str) -> None:
        """A starter has said who runs now, how that is stopped, and where messages go; and nothing else."""
        self.assertEqual((ended.code, ended.out), (0, b""))
        self.assertRegex(
            ended.err,
            rb"\A\S+: \S+: process (\d+) \(kill \1 stops it, kill -USR1 \1 lets running jobs "
            rb"finish\); messages go %b\n\Z" % messages.encode(),
        )

    def bound_by_permissions(self) -> dict[str, Any]:
        """Settings for start() with which root, too, is bound by the permissions of a file (Linux)."""
        if os.geteuid() != 0:
            return {}
        libc = ctypes.CDLL(None)
        settings: dict[str, Any] = dict(preexec_fn=lambda: [libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
                                                            for number in CAP_DAC])
        self.write("", "probe").chmod(0)
        reading = ["cat", str(self.dir / "probe")]
        if subprocess.run(reading, stderr=subprocess.DEVNULL, check=False, **settings).returncode == 0:
            self.skipTest(
                "root's right to pass over permissions cannot be dropped here (prctl PR_CAPBSET_DROP)"
            )
        (self.dir / "probe").unlink()
        return settings
