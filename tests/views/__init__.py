"""runwait4.py: status, progress, failures, output, statistics, timeline and report.

All views tell the same of a line and its runs, and none writes into the job file.
"""
