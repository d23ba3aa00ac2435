"""What becomes of jobs: slots, signals, output, ends, memory, wall time."""
