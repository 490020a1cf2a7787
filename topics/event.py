"""What impressions and conversions share: their Kafka key, and the strict reading of their JSON.

The join (Java) and the audit (here) must agree, event for event, on which bytes are an event. The
rules: UTF-8; one JSON object in RFC 8259's grammar (no NaN, no Infinity), finite numbers, at most
100 levels; ids of 1 to 4096 characters; no top-level key that headwater knows twice; unknown keys
are free.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from typing import Annotated, TypeVar

import msgspec

from topics.errors import RecordInvalid

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
"""Ids are keys of records: beside the value they must fit into one."""
EventMs = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

_T = TypeVar("_T")

_DEPTH_MAX = 100
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def event_key(user_id: str, item_id: str) -> bytes:
    """Kafka key of an event: the pair, so that one partition sees a pair's whole story in order."""
    return f"{user_id}\x1f{item_id}".encode()


class Strictness:
    """What the join refuses and a JSON decoder lets pass: a key of `known` twice, a key of
    `reserved`, a number beyond binary64, a time of -0, more than 100 levels of nesting."""

    def __init__(self, known: Collection[str], reserved: Collection[str] = ()) -> None:
        self._known = frozenset(known)
        self._reserved = frozenset(reserved)
        # Matches every event that might break the rules, and few others: names of nested objects
        # (a sequence's item_id), escapes, which could spell any name, and large exponents.
        repeats = [rf'"{name}"(?=.*"{name}")' for name in known]
        words = [rf'"{name}"' for name in reserved]
        rare = [r"\\u", r"[eE]\+?\d{3}", r"\d{300}", r'"event_ms"\s*:\s*-']
        self._suspicious = re.compile("|".join([*rare, *words, *repeats]).encode(), re.DOTALL)

    def check(self, value: bytes) -> None:
        """Raise RecordInvalid if `value`, known to be a JSON object, breaks a rule."""
        if value.count(b"[") + value.count(b"{") > _DEPTH_MAX and _depth(value) > _DEPTH_MAX:
            raise RecordInvalid(f"expected at most {_DEPTH_MAX} levels of nesting, got more")
        if not self._suspicious.search(value):
            return
        outermost: list[str] = []
        negative_zero: list[str] = []

        def remember(pairs: list[tuple[str, object]]) -> None:
            outermost[:] = [name for name, _ in pairs]  # the outermost object ends last
            negative_zero[:] = [name for name, number in pairs if number == "-0"]

        json.loads(value, object_pairs_hook=remember, parse_int=_finite, parse_float=_finite)
        if "event_ms" in negative_zero:  # a string "-0" there was refused by the decoder
            raise RecordInvalid("expected event_ms from 0 to 2^63-1 as an integer, got -0")
        for name in sorted(self._known):
            if outermost.count(name) > 1:
                raise RecordInvalid(f"expected each key once, got {name!r} twice")
        for name in outermost:
            if name in self._reserved:
                raise RecordInvalid(f"expected an event's keys, got {name!r}, which the join adds")


def _finite(number: str) -> str:
    if math.isinf(float(number)):
        raise RecordInvalid(f"expected finite numbers, got {number[:40]}")
    return number


def _depth(value: bytes) -> int:
    depth = deepest = 0
    for bracket in re.findall(rb"[\[\]{}]", _STRINGS.sub(b"", value)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def decode_event(decoder: msgspec.json.Decoder[_T], value: bytes, strictness: Strictness) -> _T:
    """Decode strictly; RecordInvalid says what was expected and what came."""
    try:
        value.decode()
        event = decoder.decode(value)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise RecordInvalid(f"not an event: {error}") from error
    strictness.check(value)
    return event
