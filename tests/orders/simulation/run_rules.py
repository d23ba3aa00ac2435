"""What must hold of jobs and runners.

The theorem, at each start of a job: at no time do more copies of a command live than the file that the path
names had lines of it when the last of them was claimed (check_runs).  At each operation: each job has a lock
(check_job_locks).  No runner leaves a job alone that it may take (check_idle), exits while one is new
(check_exit), or starts one while a line is `d` that a power cut has left in doubt (check_barrier).  And all
that is left when all have gone and one more runner with --resume has looked at it (settle).
"""
from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tests.orders.simulation.files import LOCK_FILE, PATH, command_of, lines_of
from tests.orders.simulation.job_files import steps_of, stopped_steps, unfinished_above
from tests.orders.simulation.processes import Process, Run
from tests.orders.simulation.product import CORE
from tests.orders.simulation.write_rules import Writes


class History(Writes):
    """What must not have happened."""
    # intervals for which one of two runners may keep a limit= for itself
    MAX_TURN = 2 * CORE.JobQueue.TURN_INTERVALS

    # -- each job --------------------------------------------------------------------------------------------

    def check_runs(self, new: Run) -> None:
        """The theorem, for one more job: no more run than there were lines when the last of them was claimed.
        """
        if (
            self.most is not None
            and sum(run.command == new.command for run in self.runs) >= self.most[new.command]
        ):
            self.fail(f"{new.command!r} is run by {new.runner.name}, once more than anybody wished")
        alive = [run for run in self.runs if run.command == new.command and run.until > self.now] + [new]
        alive.sort(key=lambda run: run.claimed)
        for count, run in enumerate(alive, 1):
            if run.claimed < new.claimed or count <= run.lines:
                continue
            blind = [other for other in alive if self.is_blind(other)]
            if not blind:
                names = ", ".join(f"{run.runner.name} since {run.started_at:.3f}" for run in alive)
                self.fail(f"{new.command!r} runs {count} times, and had {run.lines} lines: {names}")
            if "brick" in self.fates:
                self.fail(f"{new.command!r} runs {count} times, though those who ran it would have locked it")
            for_good = [other for other in blind if other.runner.killed]
            if count - len(for_good) > run.lines:       # else nobody will ever end them
                self.excused += [(one, new) for one in blind if one is not new]

    def check_restriction(self, new: Run) -> None:
        """Of the jobs with a limit= no more run than that lets, but for those whose life sign was taken away
        from outside; and none starts before the time of its from=.
        """
        if self.now < new.job.settings.start:
            self.fail(f"{new.command!r} is started before its time")
        for limit in new.job.settings.limits:
            # one that was robbed can be the new one itself
            alive = [run for run in (*self.runs, new) if run.until > self.now
                     and limit in run.job.settings.limits
                     and max(run.runner.host.robbed, self.removed) < run.started_at]
            if new in alive and len(alive) > limit.maximum:
                self.fail(f"{new.command!r} is started, and {len(alive) - 1} jobs with {limit} run")

    def check_turn(self, new: Run) -> None:
        """Check that others do not start for long, for one limit=, what a runner with a free slot could take,
        and what is below that.
        """
        steps = steps_of(self.last.data) if self.take_turns else {}
        for other in self.actors if steps else ():
            if isinstance(other, Process) and other.waits and other is not new.runner:
                hosts = b"*", other.host.name.encode()
                is_passed = any(step.host in hosts and (step.line[:1] == b"." or at == new.job.offset)
                                for at, step in steps.items() if at <= new.job.offset)
                other.passed_since = min(other.passed_since, self.now) if is_passed else math.inf
                if self.now - other.passed_since > self.MAX_TURN * self.throttle:
                    self.fail(f"{new.command!r} is started, and {other.name} waits with a line above, since "
                              f"{other.passed_since:.3f}")

    def check_alone(self, me: Process, job: Any) -> None:
        """Check that a line that was lost twice in a row runs beside such ones only, or alone after three."""
        key = job.number, job.command
        losses = self.losses[key]
        if losses != me.known_losses[key] and self.made_new.get(job.text, 0) > me.losses_read_in:
            self.miscounted.add(key)
        if key in self.miscounted:
            return
        running = [(run.job.number, run.job.command) for run in me.runs]
        others = [self.losses[other] for other in running if other not in self.miscounted]
        if any((losses > 1) != (other > 1) or max(losses, other) > 2 for other in others):
            self.fail(f"runs {job.text!r}, lost {losses} times in a row, beside lines lost {others} times")

    def check_losses(self, me: Process, job: Any) -> None:
        """Check that each run that a line has lost in a row is recorded when it runs again; where nobody
        edits, sets states or takes locks away.

        A runner does not count what another has recorded, or made new, since it has read the losses.
        """
        if self.edits or self.hand_set or self.fates - {"kill"} or self.removed > 0 or self.erred:
            return
        if sum(command_of(line) == job.text for _, line in lines_of(self.last.data)) > 1:
            return
        runs = [run for run in self.runs if run.command == job.text]
        lost = list(itertools.takewhile(lambda run: not run.written, reversed(runs)))
        self.check_alone(me, job)
        key = job.number, job.command
        if self.losses[key] < len(lost) and key not in self.miscounted:
            self.fail(f"runs {job.text!r} again, which was lost {len(lost)} times, and "
                      f"{self.losses[key]} are recorded")

    def check_barrier(self, me: Process, job: Any) -> None:
        """Check that no line above that this runner must make new is as it was, that no job above a barrier
        is unfinished, unless others run some again or a failure stops it, and none of a name for which this
        one waits; where nobody edits or sets states.
        """
        if self.edits or self.hand_set:
            return
        if lines := self.lines_in_doubt():
            self.fail(f"{job.text!r} is started, and {lines} are in doubt")
        steps = steps_of(self.last.data)
        if above := unfinished_above(steps, job.offset):
            self.fail(f"{job.text!r} is started, and waits for {above!r}")
        unfinished, tried = b"", self.tried_since(me.came)
        # what a failure stops is stopped while it is held, too
        released = b"\n" + self.last.data
        stopped = stopped_steps(steps) | stopped_steps(steps_of(released.replace(b"\np ", b"\n. ")[1:]))
        for at, line in lines_of(self.last.data):
            if at < job.offset and line in me.due and command_of(line) not in tried:
                self.fail(f"{job.text!r} is started, and {line!r} above is not new")
            if line.startswith(b"#RUN barrier") and unfinished and at < job.offset:
                self.fail(f"{job.text!r} is started below a barrier, and {unfinished!r} has not ended")
            is_open = line[:1] in b".r" or (line[:1] == b"p" and command_of(line) in self.paused)
            if command_of(line) != line and is_open and at not in stopped and not self.again:
                unfinished = unfinished or line

    def check_job_locks(self, me: Process) -> None:
        """I3: each of a runner's jobs has a job lock of its own, until a line has its result."""
        data = bytes(self.names[PATH].data) if PATH in self.names else b""
        for command in {run.command for run in me.runs}:
            states = {line[:1] for _, line in lines_of(data) if command_of(line) == command}
            runs = [run for run in me.runs
                    if run.command == command and not (self.is_blind(run) or run.written)
                    and not (run.until <= self.now and run.result in states)]
            owners = {*me.fds.values(), *(owner for run in runs for owner in run.descriptions)}
            if self.now < self.job_locks_back:
                continue
            if self.job_locks(command, owners) < len(runs):
                self.fail(
                    f"has {len(runs)} jobs {command!r}, and {self.job_locks(command, owners)} job locks"
                )
        for one, other in self.excused:
            # of equal lines one may have been given back, and be the first one's again
            alive = sum(run.command == one.command and run.until > self.now for run in self.runs)
            both = min(one.until, other.until) > self.now and alive > other.lines
            if both and not (self.is_blind(one) or self.is_blind(other)):
                self.fail(f"{one.command!r} still runs twice after a life sign was lost")

    # -- a runner that waits or exits ------------------------------------------------------------------------

    def check_idle(self, me: Process) -> None:
        """Check that a runner with a free slot leaves no job alone that it may take."""
        if (
            self.edits
            or self.hand_set
            or self.fates - {"kill"}
            or b"#RUN" in self.last.data
            or self.removed > 0
            or max(self.losses.values(), default=0) > 1         # such lines wait for others, or others do
        ):
            me.left_since = {}
            return
        lines = [line for _, line in lines_of(self.last.data)]
        failed = [line for line in lines if line[:1] in me.retry.replace(b"r", b"")]
        if self.lines_in_doubt() or any(self.is_left_locked(command_of(line)) for line in failed):
            me.left_since = {}              # nothing is claimed before all of these are new
            return
        # one that was lost before can wait for other jobs, and those below it that were lost wait for that
        lost = {b" " + command for (_, command), losses in self.losses.items() if losses}
        lost_again = lost & {command_of(line) for line in lines if line[:1] == b"r"}
        if me.runs and any(self.balance(command) < 0 for command in lost_again):
            me.left_since = {}              # until such a line can run, those below it wait
            return
        left = [line for line in lines if line[:1] in b".r" and command_of(line) != line
                and not (me.runs and command_of(line) in lost)
                and self.balance(command_of(line)) < (line[:1] == b".")
                and not self.is_left_locked(command_of(line))]
        if len(left) < len(me.left_since):      # of equal lines the second can be left for less time
            me.left_since = {}
        places = [(line, left[:at].count(line)) for at, line in enumerate(left)]
        me.left_since = {place: me.left_since.get(place, self.now) for place in places}
        patience = 3 * self.throttle + CORE.Orphans.MIN_UNLOCKED_SECONDS * self.kind.startswith("fuse")
        for (line, _), since in me.left_since.items():
            if self.now - max(since, self.erred) > patience:        # after an error a line is doubted anew
                self.fail(f"has a free slot, and leaves {line!r} alone")

    def check_exit(self, me: Process, new_before: set[bytes], orphans_before: set[bytes], step: int) -> None:
        """Check that no line that this runner may take was new from that step until it may exit, and none an
        orphan that it does not count; where nobody edits, and a read without the command mutex sees what
        other hosts have written.
        """
        if self.edits or me.host.fuse or any(step <= inode.replaced < math.inf for inode in self.inodes):
            return
        for command in new_before & self.new_commands(me, failed_until=step):
            self.fail(f"may exit, and {command!r} is new")
        # -r, --resume, --pause and --go lock all buckets: then somebody is changing lines
        resets = any(isinstance(actor, Process) and (actor.retry or actor.name == "pauser")
                     for actor in self.actors)
        # of equal lines another one can have been claimed since, and be an orphan now
        orphans = [command for command in orphans_before & self.orphans()
                   if not resets and self.made_running.get(command, 0) < step]
        # a lock file that was just removed proves nothing
        if orphans and not self.removed > 0 and me.product and not me.product.cursor.no_job.summary.orphans:
            self.fail(f"may exit, and {orphans} are orphans")

    # -- the end ---------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Check what is left: no line without an end or unknown to all, no result without a run."""
        for description in {lock.owner for inode in self.inodes for lock in inode.locks}:
            self.fail(f"locks are left, of {description.host.name}")
        for path in self.names.keys() - {PATH, LOCK_FILE}:
            if not (self.kind.startswith("fuse") and "cut" in self.fates):      # else it could not be removed
                self.fail(f"{path} is left")
        inode = self.names[PATH]
        if [command_of(line) for _, line in lines_of(inode.data)] != inode.commands:
            self.fail(f"lines were altered: {bytes(inode.data)!r}")
        self.check_done(command_of(line) for _, line in lines_of(inode.data) if line[:1] == b"d")
        stopped = stopped_steps(steps_of(inode.data))
        for at, line in lines_of(inode.data):
            half = self.halves and any(known.startswith(command_of(line)) for known in self.known)
            if command_of(line) not in self.known and b" edited" not in line and not half:
                self.fail(f"nobody wrote the line {line!r}")
            if command_of(line) != line and line[:1] not in b"d!ecx" and at not in stopped:
                self.fail(f"line {line!r} was never run to its end")
        if not self.edits and any(inode.commands.count(command) != 1 for command in self.appended):
            self.fail(f"not all of {self.appended} were appended once")

    def check_done(self, done: Iterable[bytes]) -> None:
        """Check that each line that is done was done from the beginning, or has had a run of its own."""
        # a limit: equal lines moved between a result whose sync has failed and the next try
        if self.edits or self.hand_set or (self.erred and b"#RUN pause" in self.known):
            return
        ran = Counter(run.command for run in self.runs if run.result == b"d")
        for command in Counter(done) - (self.done + ran):
            self.fail(f"{command!r} is done more often than it was run")
