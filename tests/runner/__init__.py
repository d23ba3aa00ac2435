"""What becomes of jobs on one host: slots, signals, output, ends, memory, wall time; options and refusals.

A job that is started gets what it was promised, and ends as it must; the runner says how.
"""
