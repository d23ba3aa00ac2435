"""What happened in a history, for the rules to look at.

A life sign can be taken away from outside, by a lost lease or with the lock file; until the runner has had
time to look (is_blind) that excuses two copies, and nothing else does.
"""
from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Container, Sequence

from tests.orders.simulation.file_systems import FileSystems
from tests.orders.simulation.files import (
    BUCKET,
    LOCK_FILE,
    PATH,
    Description,
    Inode,
    Lock,
    command_of,
    is_bucket,
    lines_of,
)
from tests.orders.simulation.job_files import steps_of, stopped_steps
from tests.orders.simulation.processes import Process, Run
from tests.orders.simulation.product import bucket_of
from tests.orders.simulation.system_calls import BLOCK, MACHINE
from tests.orders.simulation.world import Actor


def job_locks_in(lock_table: Inode, command: bytes, owners: Container[Description] | None = None) -> int:
    """How many job locks of a command are held in a lock file, perhaps by these owners only."""
    row = bucket_of(command)
    return sum(
        row <= lock.start < row + BUCKET - 1
        and (lock.end == lock.start + 1 or is_bucket(lock))
        and lock.real
        and (owners is None or lock.owner in owners)
        for lock in lock_table.locks
    )


class Record(FileSystems):
    """What happened, and what is to be seen of it."""

    def __init__(self, seed: int, kind: str) -> None:
        super().__init__(seed, kind)
        self.runs: list[Run] = []
        self.made_new: dict[bytes, int] = {}        # command -> the last step in which a line became new
        self.made_running: dict[bytes, int] = {}        # the same of `r`
        self.lost_answers = 0                       # fsync() that still fail after they have synced
        self.done: Counter[bytes] = Counter()       # commands of lines that were done at the beginning
        self.in_doubt: set[bytes] = set()           # those that were, but the power was cut
        self.excused: list[tuple[Run, Run]] = []    # two that run the same, because of a lost life sign
        self.forced: set[bytes] = set()             # running commands that were cancelled
        self.appended: list[bytes] = []             # commands, by those who were told that this went well
        self.known: set[bytes] = set()              # commands that may be in the file
        # whether there is somebody who sets states, or runs again what has ended
        self.hand_set = self.again = False
        self.saved = False                          # an editor has saved the file
        self.fates: set[str] = set()
        # how often each command may run, where nobody asks for more
        self.most: Counter[bytes] | None = None
        # from which step on the path led to which commands
        self.lines: list[tuple[int, Counter[bytes]]] = []
        self.places: dict[int, bytes] = {}          # of command mutexes, and whose they are
        # command mutexes locked: since when, the balance
        self.entered: dict[tuple[Description, bytes], tuple[int, int]] = {}
        self.unlocked: dict[bytes, int] = {}        # in which step somebody has last unlocked one
        self.removed = -math.inf                    # when somebody has removed the lock file
        self.job_locks_back = -math.inf             # until then nobody can lock all job locks in the next one
        # whether jobs are taken for short; here on each kind of file system
        self.takes_buckets = random.Random(f"buckets? {seed}").random() < 0.6
        # of the first read of a search, in bytes; small: claims return before its end
        self.chunk_size = 16 if random.Random(f"chunks? {seed}").random() < 0.3 else BLOCK
        self.paused: set[bytes] = set()             # commands of lines that are held for a while
        self.given_back = 0.05                      # which share of jobs is not started
        self.have_met = False                       # whether all runners know that there are others
        self.renewed: Counter[bytes] = Counter()    # how many orphans of a command ran again
        # how often lines were lost in a row, by number and command, as runners have recorded it
        self.losses: Counter[tuple[int, bytes]] = Counter()
        self.miscounted: set[tuple[int, bytes]] = set()         # lines: see check_losses()
        self.take_turns = False                     # whether the runners only wait for one limit=
        self.times: Sequence[float] = (0.001, 0.1, 0.7, 1.5, 5.0)   # that jobs take, by the pace

    def trace(self, text: str) -> None:
        if MACHINE.trace is not None:
            MACHINE.trace.append(text)

    def on_save(self, new: bytes, way: str) -> None:
        self.saved = True
        self.disturbed = max(self.disturbed, self.steps)
        self.trace(f"{self.now:9.4f} editor saves {way}: {new!r}")

    def loses_answer(self, me: Actor) -> bool:
        """Whether an fsync() fails after it has synced a result: the job lock is held, and the line has
        ended."""
        ended = isinstance(me, Process) and any(run.until <= self.now for run in me.runs)
        if not (self.lost_answers and ended and self.random() < 0.5):
            return False
        self.lost_answers -= 1
        self.erred = self.now
        self.disturbed = max(self.disturbed, self.steps)
        return True

    # -- command mutexes and job locks -----------------------------------------------------------------------

    def add_lines(self) -> None:
        commands = Counter(self.names[PATH].commands)
        self.lines.append((self.steps, commands))
        for command in commands.keys() - set(self.places.values()):
            self.places[bucket_of(command) + BUCKET - 1] = command

    def most_lines(self, command: bytes, since: int, upto: int) -> int:
        """The most lines of a command that the path has led to between two steps."""
        most = 0
        for step, commands in reversed(self.lines):
            if step <= upto:
                most = max(most, commands[command])
            if step <= since:
                break
        return most

    def job_locks(self, command: bytes, owners: Container[Description] | None = None) -> int:
        """How many job locks of a command are held, perhaps by these owners only."""
        lock_table = self.names.get(LOCK_FILE)
        return job_locks_in(lock_table, command, owners) if lock_table else 0

    def command_mutex(self, me: Actor, command: bytes) -> Lock | None:
        """The lock by which somebody stands while holding the mutex of a command."""
        at = bucket_of(command) + BUCKET - 1
        return next((lock for inode in self.inodes if inode.path == LOCK_FILE for lock in inode.locks
                     if lock.covers(at) and lock.exclusive and lock.real and lock.since < inode.replaced
                     and lock.owner in me.fds.values()), None)

    def is_left_locked(self, command: bytes) -> bool:
        """Whether a job keeps its bucket: the runner was killed soon after the claim, or cannot trim it.
        """
        return any(run.command == command and run.runner.trims_nothing() and lock.owner in run.descriptions
                   for run in self.runs for inode in self.inodes for lock in inode.locks if is_bucket(lock))

    def balance(self, command: bytes) -> int:
        """How many job locks are held more than lines are running."""
        inode = self.names.get(PATH)
        return self.job_locks(command) - (
            bytes(inode.data).split(b"\n").count(b"r" + command) if inode else 0
        )

    # -- runs and lines --------------------------------------------------------------------------------------

    def is_blind(self, run: Run) -> bool:
        """Whether a job's life sign was taken away from outside, and its runner has had no time to see to it.
        """
        lost = max(run.runner.host.robbed, self.removed)
        return lost >= run.started_at and (
            run.runner.killed
            or any(
                self.now < end
                for end in (max(lost, self.erred, run.runner.lacks_files_until) + 2 * self.throttle,
                            *(end for _, end in run.runner.stops))
            )
        )

    def tried_since(self, time: float) -> set[bytes]:
        """The commands that ran, or had no result yet, at some time since then."""
        return {run.command for run in self.runs if max(run.until, run.settle_at) >= time}

    def lines_in_doubt(self) -> list[bytes]:
        """The lines that are `d` from before a power cut, and were not on disk."""
        ran = {run.command for run in self.runs}
        return [line for _, line in lines_of(self.last.data)
                if line[:1] == b"d" and command_of(line) in self.in_doubt - ran]

    def bad_lines(self, states: bytes) -> set[bytes]:
        """The lines that have failed, or are in error, and whose commands stand once, for any host."""
        data = bytes(self.names[PATH].data) if PATH in self.names else b""
        lines = [step.line for step in steps_of(data).values() if step.host in (b"", b"*")]
        commands = Counter(command_of(line) for _, line in lines_of(data))
        return {line for line in lines if line[:1] in states.replace(b"r", b"")
                and commands[command_of(line)] == 1}

    def new_commands(self, me: Process, failed_until: float = math.inf) -> set[bytes]:
        """The commands of new lines that a runner may take, now or once others are done.

        failed_until: what has become new from this step on counts as failed, with all that it stops.
        """
        steps = {at: step._replace(line=b"e" + step.line[1:])
                 if self.made_new.get(command_of(step.line), 0) >= failed_until else step
                 for at, step in steps_of(self.names[PATH].data if PATH in self.names else b"").items()}
        stopped = stopped_steps(steps)
        return {command_of(step.line) for at, step in steps.items()
                if step.line[:1] == b"." and at not in stopped
                and step.host in (b"", b"*", me.host.name.encode())}

    def orphans(self) -> set[bytes]:
        """The commands that have more lines `r` than job locks are held; not those whose mutex somebody has
        locked, perhaps with all job locks: that process is to find the orphan before it exits.
        """
        data = bytes(self.names[PATH].data) if PATH in self.names else b""
        return {command_of(line) for _, line in lines_of(data)
                if line[:1] == b"r" and self.balance(command_of(line)) < 0} - {
                    command for _, command in self.entered}
