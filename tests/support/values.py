"""Values that must be there."""
from typing import Optional, TypeVar

T = TypeVar("T")


def present(value: Optional[T]) -> T:
    """A value that must be there, as the pipe of a process or the match of a pattern."""
    if value is None:
        raise AssertionError("there is none")
    return value
