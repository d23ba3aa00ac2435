"""JSON that parsers, and those who use their results, may stumble over."""
import json
from collections.abc import Iterator
from typing import Any

STRANGE = (
    "null", "true", "-1", "0", "1.5", "1e308", str(2**63), '""', '"."', '"\\u0000"', '"a\\nb"', '"\\ud800"',
    '"\\udcff"', '"\\udfff\\udc80"', '"\u00e9"', '"%s"' % ("x" * 300), "[]", "[[]]", "{}", '{"type": 1}',
    "[" * 150 + "]" * 150,
)
NO_NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 60, "9" * 900)
NO_OBJECTS = (b"", b" ", b"null", b"true", b"1", b'"text"', b"[]", b'[{"type": "ping"}]')
NO_JSON = (
    b"{", b"}", b'{"type"', b'{"type": }', b'{"type": "ping",}', b"{'type': 'ping'}", b'{"type": "ping"}x',
    b"\0", b'{"type": "ping"}{"type": "ping"}', b'{"type": "\xff"}', b'{"type": "a\nb"}',
    b'{"type": "\\ud8"}', b"[" * 1000, b'{"a":' * 200, b'{"a":' * 100 + b"[" * 400,
)


def wrong_versions(value: Any) -> Iterator[str]:
    """JSON of a value in which one value is another, or is missing; in a list, it is in a second item."""
    yield from (*STRANGE, NO_NUMBERS[0])
    if isinstance(value, list) and value:
        yield from (f"[{json.dumps(value[0])}, {wrong}]" for wrong in wrong_versions(value[0]))
    elif isinstance(value, dict):
        for name in value:
            others = [f'"{other}": {json.dumps(value[other])}' for other in value if other != name]
            for text in ([], *([f'"{name}": {wrong}'] for wrong in wrong_versions(value[name]))):
                yield "{%s}" % ", ".join([*others, *text])
