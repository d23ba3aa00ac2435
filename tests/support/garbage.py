"""Random JSON of any shape, and bytes cut into random pieces, as a network may deliver them."""
import random
from collections.abc import Iterator

from tests.support.messages import FIELDS
from tests.support.strange_json import NO_NUMBERS, STRANGE


def pieces(random_: random.Random, data: bytes, longest: int = 40) -> Iterator[bytes]:
    """The data in pieces, as a network may deliver them."""
    while data:
        size = random_.randrange(1, longest)
        yield data[:size]
        data = data[size:]


def garbage(random_: random.Random, depth: int = 3) -> str:
    """A JSON text of any shape; now and then it is none."""
    kind = random_.randrange(20)
    if depth and kind < 3:
        return "[%s]" % ", ".join(garbage(random_, depth - 1) for _ in range(random_.randrange(4)))
    if depth and kind < 6:
        items = (f'"{random_.choice(FIELDS)}": {garbage(random_, depth - 1)}'
                 for _ in range(random_.randrange(4)))
        return "{%s}" % ", ".join(items)
    if kind == 6:
        return random_.choice(NO_NUMBERS)
    if kind < 12:
        numbers = str(random_.randrange(-9, 99)), f'"{random_.choice(FIELDS)}"'
        return random_.choice(["null", "true", "1.5", *numbers])
    return random_.choice(STRANGE)
