"""Statements that a script runs before it starts, so that it has more patience, or less, than for users."""


def patient(seconds: float) -> str:
    """Statements by which what a shell has left is read for so long, also while it is silent.

    On a busy machine it can wait for the CPU for longer than the usual 0.3 s.
    """
    return f"import runmaker4; runmaker4.Pump.MAX_READING_SECONDS = runmaker4.Pump.QUIET_SECONDS = {seconds}"


# A timeout is over once the file `late` is there, or for one run `late.PID` of its shell
WHEN_LATE = """
import asyncio, os, runmaker4
async def kill_when_late(task, timeout):
    while not os.path.exists("late") and not os.path.exists(f"late.{task.run.pid}"):
        await asyncio.sleep(0.05)
    task.kill_run("timeout")
runmaker4.JobTask._kill_after_timeout = kill_when_late
"""


# A process of a job that is ended gets TERM and CONT once, and then only KILL.  A runner that sends anything
# else is dead at once: otherwise what is deaf to that would live until the end of the test
ONLY_KILL_FOLLOWS = """
import os, signal, runmaker4
sent = set()
def send(pids, number, send=runmaker4.TreeKiller._signal):
    pairs = {(pid, number) for pid in pids}
    if number != signal.SIGKILL and (number not in (signal.SIGTERM, signal.SIGCONT) or pairs & sent):
        os.write(2, b"signal %d instead of KILL\\n" % number)
        os._exit(99)
    sent.update(pairs)
    send(pids, number)          # in their order: a shell before the command of its trap
runmaker4.TreeKiller._signal = staticmethod(send)
"""


# all jobs are short, however busy the machine is
PATIENT = "import runmaker4; runmaker4.OutDir.MAX_SHORT_SECONDS = 600.0"


# what ends with 127 does so soon, however busy the machine is
SOON = "import runmaker4; runmaker4.Runner.MAX_BROKEN_SECONDS = 600.0\n"


# runset4.py --cancel waits until the jobs have ended, however long that takes
UNTIL_THEY_END = "import runset4; runset4.MAX_EXIT_WAIT_SECONDS = 600.0"


# runset4.py --cancel waits until the file `enough` is there, not for some seconds
UNTIL_ENOUGH = """
import os, runset4
class UntilEnough(float):
    def __radd__(self, now):
        return self
    def __lt__(self, now):
        return os.path.exists("enough")
runset4.MAX_EXIT_WAIT_SECONDS = UntilEnough()
"""


# What outlives KILL is named once the shell of the job is dead, however long that takes.  A byte is added to
# `looks` whenever it is looked for again
ONCE_THE_SHELL_IS_DEAD = """
import math, runmaker4
def max_dying_seconds(killer):
    with open("/proc/thread-self/children") as children:
        return math.inf if children.read() else 0.0
def undying_pause(killer):
    with open("looks", "ab") as looks:
        looks.write(b"x")
    return 0.1
runmaker4.GRACE = 0.3
runmaker4.TreeKiller.MAX_DYING_SECONDS = property(max_dying_seconds)
runmaker4.TreeKiller.UNDYING_PAUSE = property(undying_pause)
"""
