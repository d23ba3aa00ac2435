"""Real systems: file servers, virtual machines, schedulers, sshd, control groups; RUNMAKER4_TEST_REAL=1.

What the other rooms promise holds there, and batch scripts of the documents run word for word.
"""
