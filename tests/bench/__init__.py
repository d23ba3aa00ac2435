"""Benchmarks: `python3 -m tests.bench`."""
