"""The invariants, at each byte that is written and each command mutex that is left.

That an editor does not save in place in the microseconds between a check and its write is seen to in edit().
"""
from __future__ import annotations

import math
from collections import Counter

from tests.orders.simulation.files import BUCKET, PATH, Description, Inode, command_of, lines_of
from tests.orders.simulation.job_files import steps_of
from tests.orders.simulation.processes import Process, process
from tests.orders.simulation.record import Record
from tests.orders.simulation.system_calls import MACHINE
from tests.orders.simulation.world import Actor


class Writes(Record):
    """What must not be written."""

    def note_mutexes(self, owner: Description, start: int, end: float, opened: bool) -> None:
        """I4: nothing of ours raises the balance, but to 0."""
        last = start | BUCKET - 1
        places = [last] if end <= last + BUCKET else [at for at in self.places if start <= at < end]
        for command in map(self.places.get, places):
            if not command:
                continue
            if not opened:
                process(self.me).mutexes[command] = self.steps
                self.entered.setdefault((owner, command), (self.steps, self.balance(command)))
            elif (owner, command) in self.entered:
                self.unlocked[command] = self.steps
                since, before = self.entered.pop((owner, command))
                after = self.balance(command)
                if after > max(before, 0) and self.disturbed < since:
                    self.note_violation(
                        f"holds {after} more job locks of {command!r} than lines run; before: {before}"
                    )

    def may_write(self, actor: Actor, owner: Description, data: bytes, at: int) -> bytes:
        """Check a state before it is written; the command of its line."""
        me, inode = process(actor), owner.inode
        line = dict(lines_of(inode.data)).get(at, b"")
        command = command_of(line)
        if inode.path != PATH or len(data) != 1 or command == line:
            self.fail(f"writes {data!r} where no job line begins, at {at}")
        if "brick" in self.fates and me.host.robbed >= me.began - self.throttle:
            return command                      # its descriptor is bad, so really this waits, or fails
        if not any(lock.covers(at) and lock.real and lock.owner in me.fds.values() for lock in inode.locks):
            self.fail(f"writes {data!r} over {line!r} without the in-use lock")
        command_mutex = self.command_mutex(me, command)
        if not command_mutex:
            self.fail(f"writes {data!r} over {line!r} without its command mutex")
        # A short job has its mutex locked since the claim; the read comes after all that were locked since
        since = max(command_mutex.since, me.began_in, *me.mutexes.values())
        if inode.replaced <= since:
            self.fail(
                f"writes {data!r} over {line!r} in a file that was replaced before it came to the mutex"
            )
        # others may have old pages
        read = next(
            (
                read[at - start :]
                for by, start, read, step in reversed(me.reads)
                if by.inode is inode and start <= at and at + len(line) <= start + len(read)
                and step > since
            ),
            b"",
        )
        back = me.claimed == command and me.claimed_state == data       # a claim could not be synced
        if data == b"r" and line[:1] == b"." and me.operation == "claim" and not self.edits and any(
                above == b"#RUN pause" and start < at for start, above in lines_of(inode.data)):
            self.fail(f"claims {line!r} below a pause")
        if read.partition(b"\n")[0][back:] != line[back:]:
            text = read.partition(b"\n")[0]
            self.fail(f"writes {data!r} over {line!r}, and has read {text!r} while holding its command mutex")
        if me.by_force:
            self.disturbed = max(self.disturbed, self.steps)
        self.check_state(me, line, data, back)
        return command

    def check_state(self, me: Process, line: bytes, data: bytes, back: bool) -> None:
        """Check that this state is what became of this line."""
        command = command_of(line)
        mine = [run for run in me.runs if run.command == command]
        if data == b".":
            self.made_new[command] = self.steps
        if data == b"r":
            self.made_running[command] = self.steps
            if line[:1] != b".":
                self.fail(f"claims {line!r}")
            me.claimed, me.claimed_state, me.claimed_at = command, line[:1], self.steps
        if not me.runs_jobs:
            if (line[:1] == b"r" and not me.by_force and self.balance(command) >= 0) or data == b"r":
                self.fail(f"writes {data!r} over {line!r}, and is no runner")
            return
        ended = [run for run in mine if run.until <= self.now and run.result == data]
        if data == b"." and line[:1] in b"!e" and not (back or ended):
            self.check_reset(me, line)
            return
        is_resumed = data == b"." and line[:1] == b"r" and b"r" in me.retry and not (back or ended)
        if data not in b"re" and not (back or ended or is_resumed or data == line[:1]):
            self.fail(f"writes {data!r} over {line!r}, which has no such result")
        if is_resumed:
            self.check_last(me, command)
        # an `e` over an `e`: one that -r leaves as it is, among others that it makes new in one write
        if is_resumed or (data == b"e" != line[:1] != b"d" and not (back or ended)):
            self.check_orphan(me, command)
        if line[:1] == b"d" != data and line not in self.lines_in_doubt():
            self.fail(f"writes {data!r} over {line!r}, which is not in doubt")
        own = self.job_locks(command, me.fds.values())
        if ended and not (back or own or self.edits or self.hand_set or self.removed > 0):
            running = bytes(self.last.data).split(b"\n").count(b"r" + command)
            if line[:1] == b"r" and self.job_locks(command) >= running:
                self.fail(f"writes {data!r} over {line!r}, which is another runner's")
        if own < sum(not (self.is_blind(run) or run.written) for run in mine):
            self.fail(f"writes {data!r} over {line!r} without a job lock")          # I1
        for run in ended:
            run.written = True
            run.settle_at = max(run.settle_at, self.now)

    def check_orphan(self, me: Process, command: bytes) -> None:
        """Check that a line `r` of this command has no runner and no job, when one is taken for an orphan."""
        running = bytes(self.names[PATH].data).split(b"\n").count(b"r" + command) if PATH in self.names else 0
        going = [run for run in self.runs if run.command == command and not self.is_blind(run)
                 and (run.until > self.now
                      or (run in run.runner.runs and not (run.runner.killed or run.written)))]
        if self.most is not None or (len(going) >= running and self.disturbed < me.mutexes[command]):
            self.fail(f"calls a line {command!r} an orphan, though nobody was killed")

    def check_last(self, me: Process, command: bytes) -> None:
        """Check that no other line above the next barrier is new when an orphan runs again; where nobody
        edits or sets states.  What became new since the walk began waits for the next one.
        """
        if self.edits or self.hand_set or self.fates - {"kill"} or self.removed > 0 or me.host.name != "one":
            return
        locked = {other for _, other in self.entered} | {run.command for run in self.runs}
        lost = {b" " + other for (_, other), losses in self.losses.items() if losses}
        steps = steps_of(self.last.data)
        for at, line in lines_of(self.last.data):
            other = command_of(line)
            if line.startswith((b"#RUN barrier", b"#RUN pause")):
                return
            # one that was an orphan itself, and was given back, is no better than this one
            if (line[:2] == b". " and other not in (command, *locked, *lost) and self.balance(other) <= 0
                    and not self.renewed[other] and self.made_new.get(other, 0) < me.walk_began_in
                    and self.unlocked.get(other, 0) < me.walk_began_in      # else the walk can meet a lock
                    # else a walk can have passed it before it was ready
                    and not (steps[at].awaited or steps[at].restricted)):
                self.fail(f"runs the orphan {command!r} again, and {line!r} is new")

    def check_reset(self, me: Process, line: bytes) -> None:
        """Check that a runner may make a failed line new: with -r or --resume, and if it has not run it."""
        command = command_of(line)
        if line[:1] not in me.retry:
            self.fail(f"makes {line!r} new, which is not for it")
        equal = sum(command_of(other) == command for _, other in lines_of(self.last.data))
        tries = sum(run.runner is me and run.command == command for run in self.runs)
        unknown = self.edits or self.hand_set or self.disturbed == math.inf
        # an orphan that is new again runs as any new line does
        if tries >= equal + self.renewed[command] and not unknown:
            self.fail(f"makes {line!r} new, which it has tried {tries} times already")

    def may_replace(self, me: Actor, new: Inode) -> None:
        """Check a job file before a program puts it in the place of the old one."""
        MACHINE.may_append(me, "replaces the file")
        old = self.names.get(PATH)
        before, after = (
            Counter(line for _, line in lines_of(inode.data if inode else b"")) for inode in (old, new)
        )
        # while it waited for this call: no server sees locked names
        cut_off = me.host.robbed > me.last
        for line in before:
            if command_of(line) != line and not (cut_off or self.command_mutex(me, command_of(line))):
                self.fail(f"replaces {line!r} without its command mutex")
            if line[:1] == b"r" and command_of(line) != line and after[line] < before[line]:
                self.fail(f"replaces the file, and {line!r} is running")
