"""runwait4.py: what is told."""
