"""Jobs that take memory, and runners that look often how much."""


# A runner, or a client, that looks five times a second how much memory its jobs have, not once
WATCHFUL = ("import runmaker4; "
            "runmaker4.Runner.MIN_MEASURING_PAUSE, runmaker4.Runner.MEASURING_PAUSE_FACTOR = 0.2, 9")
# It counts the memory of a job that has made its held.LINE; this is a program that makes it when it has all
HELD = f"""{WATCHFUL}
import os
measure = runmaker4.JobTask.measure_memory
runmaker4.JobTask.measure_memory = lambda task, table: (
    measure(task, table) if os.path.exists(f"held.{{task.job.number}}") else 0)
"""
HOLD = ("import os, sys, time; data = b'x' * (int(sys.argv[1]) << 20)\n"
        "open('held.' + os.environ['JOB_ID'], 'w'); time.sleep(float(sys.argv[2]))")
