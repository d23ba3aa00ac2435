"""The fork server: scripts start as forks of a Python that has imported them."""
import atexit
import json
import os
import re
import socket
import subprocess
from collections.abc import Sequence
from typing import Any, Callable

from tests.support.processes import MARK, MARK_LENGTH
from tests.support.scripts import PYTHON, RUNMAKER, SCRIPTS, SCRIPTS_AT, program_of

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
