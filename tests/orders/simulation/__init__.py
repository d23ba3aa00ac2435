"""Histories: the real `JobQueue` and `Cursor` race each other on a simulated host system, each time from
another seed.

    python3 -m tests.orders.simulation --schedules 1000000 --planted ''     many histories, on all cores
    python3 -m tests.orders.simulation                       how many histories find each planted defect
    python3 -m tests.orders.simulation --seed 7              the system calls of one history
    python3 -m tests.orders.simulation --seed 7 --planted 'no command mutex'

Runners, people, and the faults that come over them take turns; each start of a job, each byte that is written
and all that is left is checked.  A job is a time span and a result: processes and output are none of this.
Nor are groups, the server, and whether a sync brings data to disk.

What to read before a change, after this page and test_simulation.py, in this order.  The lines are those of
all that, up to the next hundred; tests.docs.test_what_to_read counts them, and wants no more than 1500.

| what for | read | lines |
|---|---|---|
| showing histories | many, __main__ | 300 |
| a planted defect | product, planted_defects, many | 800 |
| a rule for writes | files, world, processes, product, job_files, record, write_rules, runner | 1400 |
| a rule for runs and exits | files, world, processes, product, job_files, record, run_rules, runner | 1500 |
| an actor | files, world, processes, product, job_files, runner, people, histories | 1500 |
| a fault of process or host | files, world, processes, product, job_files, runner, faults, histories | 1500 |
| an error of a system call | files, world, file_systems, system_calls, histories | 1500 |
| a system call, a file system | files, world, file_systems, system_calls | 1200 |
"""
