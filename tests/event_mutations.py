"""Events that somebody got wrong: each a valid one with up to two accidents, by seed."""

from __future__ import annotations

import json
import random
import re
from typing import Any

_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null|[\[\]{},:]')
_VALUES = (
    *(
        b"1e3",
        b"1.0",
        b"01",
        b"00",
        b"-0",
        b"-01",
        b"-0.0",
        b"-",
        b"+1",
        b".5",
        b"5.",
        b"1e",
        b"1_0",
    ),
    *(b"1e999", b"-1e999", b"1e-999", b"0e99999", b"1e309", b"1.7976931348623159e308", b"0x10"),
    *(b"9" * 400, b"0." + b"1" * 400, b"1" * 310 + b"e-200", b"1" * 5000),
    *(b"9223372036854775807", b"9223372036854775808", b"18446744073709551616"),
    *(b"NaN", b"Infinity", b"-Infinity", b"true", b"True", b"null", b"nul", b'""', b"'a'", b"1 2"),
    *(b'"\\ud800"', b'"\\udc00"', b'"\\ud83d\\ude00"', b'"\\ud83d\\u0041"', b'"\\u12g4"', b'"\\x"'),
    *(b'"\\u0000"', b'"\\/"', b'"a\nb"', b'"\x7f"', b'"\t"', b'"\xc0\x80"', b'"\xed\xa0\x80"'),
    *(b'"\xf4\x90\x80\x80"', b'"\xf0\x9f\x98\x80"', b"\xa0", b"/*c*/1"),
    *(b"[]", b"{}", b"[1,]", b'{"a":1,}', b'{"a":1,"a":2}'),
    *(b"[" * deep + b"]" * deep for deep in (98, 99, 100, 1500, 50_000)),
    *(b'{"a":' * deep + b"1" + b"}" * deep for deep in (98, 99)),
    *(b'"' + b"x" * length + b'"' for length in (4096, 4097)),
    b'"' + "😀".encode() * 4096 + b'"',
)
_KEYS = (
    *(
        b'"user_id"',
        b'"us\\u0065r_id"',
        b'"User_id"',
        b'"event_ms"',
        b'"\\u0065vent_ms"',
        b'"kind"',
    ),
    *(b'"labels"', b'"l\\u0061bels"', b'"state"', b'"value"', b'"conversion_id"', b'"features"'),
    *(b'"impression_id"', b'"domain"', b'"\\ud800"', b'""', b'"k\xff"', b'"new"', b"new"),
)
_BYTES = (
    *(
        b"\xef\xbb\xbf",
        b" ",
        b"\n",
        b"\x00",
        b",",
        b"\x0b",
        b"\xc2\xa0",
        b"\\",
        b'"',
        b"\x1f",
        b"-",
    ),
    *(b"0", b".", b"\xe2\x80\xa8"),
)


def mutated(random_: random.Random, event: dict[str, Any]) -> bytes:
    """`event` as JSON, its keys in any order, with nought to two accidents."""
    items = list(event.items())
    random_.shuffle(items)
    if random_.random() < 0.1:
        items.pop()
    value = json.dumps(dict(items), ensure_ascii=random_.random() < 0.5).encode()
    for _ in range(random_.choice((0, 1, 1, 1, 2))):
        value = _accident(random_, value)
    return value


def _accident(random_: random.Random, value: bytes) -> bytes:
    at = random_.randrange(len(value) + 1)
    spans = [match.span() for match in _TOKENS.finditer(value)] or [(0, len(value))]
    start, end = random_.choice(spans)
    field = random_.choice(_KEYS) + b": " + random_.choice(_VALUES)
    match random_.randrange(10):
        case 0:
            return value[:at] + bytes([random_.randrange(256)]) + value[at + 1 :]
        case 1:
            return value[:at]
        case 2:
            return value[:at] + random_.choice(_BYTES) + value[at:]
        case 3 | 4 | 5:
            return value[:start] + random_.choice(_VALUES) + value[end:]
        case 6:
            other, to = random_.choice(spans)
            return value[:start] + value[other:to] + value[end:]
        case 7:
            return value[: value.rfind(b"}")] + b", " + field + b"}"
        case 8:
            return b"{" + field + b", " + value[1:]
        case _:
            utf_16 = value.decode("utf-8", "replace").encode("utf-16")
            wrapped = (b"\xef\xbb\xbf" + value, b" \t\r\n" + value + b"\n", value + value, utf_16)
            return random_.choice((*wrapped, b"[" + value + b"]", value + b"\x00"))
