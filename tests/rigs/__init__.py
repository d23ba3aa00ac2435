"""Real components on one machine, for the tests in tests/test_real_*.py and the benchmarks."""
import os

REAL = bool(os.environ.get("RUNMAKER4_TEST_REAL"))      # the tests that bring them up are on
