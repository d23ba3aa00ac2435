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
# Each time that a job's memory is measured adds a byte to measured.LINE
MEASURED = f"""{WATCHFUL}
measure = runmaker4.JobTask.measure_memory
def measure_and_note(task, table):
    found = measure(task, table)
    with open(f"measured.{{task.job.number}}", "a") as measured:
        measured.write("x")
    return found
runmaker4.JobTask.measure_memory = measure_and_note
"""
HOLD = ("import os, sys, time; data = b'x' * (int(sys.argv[1]) << 20)\n"
        "open('held.' + os.environ['JOB_ID'], 'w'); time.sleep(float(sys.argv[2]))")
