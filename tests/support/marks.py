"""Jobs that leave marks of when they ran, and the proof that none was lost and none ran twice at once.

The jobs and the test append lines to one file, each by a single write, so their order is the order of events:

    start JOB PID RUNNER    a job begins; RUNNER is the process that started it
    end JOB PID             the same job comes to its end
    killed PID              the test kills a runner, or a job that it has stopped before: it does nothing more
"""

import pathlib
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Callable

PIDS = 10_000_000       # more than a host has process numbers (4,194,304 at most: proc_sys_kernel(5))


@dataclass
class Run:
    """One run of a job."""
    pid: int
    runner: int


def command(job: int, seconds: float = 0, gate: str = "") -> str:
    """A job that marks its start and its end in the file `marks`.

    gate: what it waits for meanwhile.
    """
    pause = f"{gate}; " if gate else f"sleep {seconds}; " if seconds else ""
    return f'echo "start {job} $$ $PPID" >>marks; {pause}echo "end {job} $$" >>marks'


def append(path: pathlib.Path, text: str) -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(text.encode())


def of_hosts(text: bytes, hosts: Sequence[str]) -> bytes:
    """Marks with a host's name at the end of each line, as ones whose process numbers tell the host."""
    lines = []
    for line in text.decode().splitlines():
        *words, host = line.split()
        named = 2 if words[0] in ("start", "end") else 1        # the kind, perhaps the job
        pids = (str(int(pid) + PIDS * (1 + hosts.index(host))) for pid in words[named:])
        lines.append(" ".join([*words[:named], *pids]))
    return "".join(f"{line}\n" for line in lines).encode()


def running(text: bytes) -> list[int]:
    """The jobs that have started and not ended, the first one first."""
    jobs = []
    for kind, job, *_ in (line.split() for line in text.splitlines()):
        if kind == b"start":
            jobs.append(int(job))
        elif kind == b"end":
            jobs.remove(int(job))
    return jobs


def most_at_once(text: bytes, jobs: Container[int]) -> int:
    """How many of these jobs ran at once at most."""
    lines = text.splitlines(keepends=True)
    return max(sum(job in jobs for job in running(b"".join(lines[:end]))) for end in range(len(lines) + 1))


class Reader:
    """Reads the marks in the order of events, and collects what must not be."""

    def __init__(self, runners: Container[int]) -> None:
        # all that ever were; the job of a dead one has another parent
        self.runners = runners
        self.last: dict[int, Run] = {}                  # job -> its latest run
        self.running: set[int] = set()                  # jobs that have started and not ended
        self.ended: set[int] = set()                    # jobs that came to their end at least once
        self.killed: set[int] = set()
        self.problems: list[str] = []

    def start(self, job: int, pid: int, runner: int) -> None:
        before = self.last.get(job)
        if before and job in self.running:
            self.problems.append(f"job {job}: started as {pid} while it ran as {before.pid}")
        elif before and before.runner in self.runners and before.runner not in self.killed:
            self.problems.append(
                f"job {job}: started again as {pid}, and nobody killed runner {before.runner}"
            )
        self.last[job] = Run(pid, runner)
        self.running.add(job)

    def end(self, job: int, pid: int) -> None:
        if job not in self.running or self.last[job].pid != pid:
            self.problems.append(f"job {job}: {pid} ended, and was not what ran")
        self.running.discard(job)
        self.ended.add(job)

    def kill(self, pid: int) -> None:
        self.killed.add(pid)
        self.running = {job for job in self.running if self.last[job].pid != pid}


def problems_of_hosts(text: bytes, jobs: int, hosts: Sequence[str]) -> list[str]:
    """What marks of jobs on several hosts (see of_hosts) say that must not be; nothing, if all is well."""
    text = of_hosts(text, hosts)
    runners = {int(line.split()[3]) for line in text.splitlines() if line.startswith(b"start")}
    # process 1 of a host, which has the jobs of dead runners, is none
    return problems(text, jobs, {runner for runner in runners if runner % PIDS != 1})


def problems(text: bytes, jobs: int, runners: Container[int]) -> list[str]:
    """What the marks of jobs 1 to `jobs` say that must not be; nothing, if all is well."""
    reader = Reader(runners)
    events: dict[str, Callable[..., None]] = {"start": reader.start, "end": reader.end, "killed": reader.kill}
    for line in text.decode().splitlines():
        kind, *numbers = line.split()
        events[kind](*map(int, numbers))
    reader.problems += [f"job {job}: started and neither ended nor killed" for job in sorted(reader.running)]
    never = [job for job in range(1, jobs + 1) if job not in reader.ended]
    return reader.problems + [f"job {job}: never came to its end" for job in never]
