"""Attackers, as programs of their own: the tests run them, and so can you."""
