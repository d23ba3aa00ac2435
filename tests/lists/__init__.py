"""runset4.py: lines are added, listed, edited and cancelled, and come from lists of other tools.

All of a change is made or nothing, and no running job is disturbed.
"""
