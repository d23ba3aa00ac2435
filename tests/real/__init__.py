"""Real systems; RUNMAKER4_TEST_REAL=1."""
