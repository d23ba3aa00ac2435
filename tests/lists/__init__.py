"""runset4.py: what makes and changes lines."""
