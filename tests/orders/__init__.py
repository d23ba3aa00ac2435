"""Every order of events: histories on a simulated host system, and storms of kills; each has a seed.

In none of them is a job lost, and in none do two copies of it run at once.
"""
