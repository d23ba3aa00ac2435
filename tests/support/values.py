"""Values: text that is bytes, and what must be there."""
from typing import Optional, TypeVar, Union

Text = Union[str, bytes]
T = TypeVar("T")


def as_bytes(text: Text) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def present(value: Optional[T]) -> T:
    """A value that must be there, as the pipe of a process or the match of a pattern."""
    if value is None:
        raise AssertionError("there is none")
    return value
