"""What is kept of runs: journal, output, log file, job log.

They tell of each run what it printed and how it ended, whole, whoever ran it.
"""
