"""Mixin: the base of a class with tests that is put before test cases."""
import unittest
from typing import TYPE_CHECKING

# unittest would run its tests, too, if it were a TestCase before it is mixed in
if TYPE_CHECKING:
    Mixin = unittest.TestCase
else:
    Mixin = object
