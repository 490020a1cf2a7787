"""What impressions and conversions share: their Kafka key, and the strict reading of their JSON.

The join (Java) and the audit (here) must agree, event for event, on which bytes are an event. The
rules: UTF-8; one JSON object in RFC 8259's grammar (no NaN, no Infinity); no top-level key that
headwater knows twice; unknown keys are free.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Annotated, TypeVar

import msgspec

from topics.errors import RecordInvalid

Id = Annotated[str, msgspec.Meta(min_length=1)]
EventMs = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

_T = TypeVar("_T")


def event_key(user_id: str, item_id: str) -> bytes:
    """Kafka key of an event: the pair, so that one partition sees a pair's whole story in order."""
    return f"{user_id}\x1f{item_id}".encode()


class TopLevelKeys:
    """The rule on an event's own keys: none of `known` twice, none of `reserved` at all."""

    def __init__(self, known: Collection[str], reserved: Collection[str] = ()) -> None:
        self._known = frozenset(known)
        self._reserved = frozenset(reserved)
        # Matches every event that might break the rule, and few others: names of nested objects
        # (a sequence's item_id) and escapes, which could spell any name.
        repeats = [rf'"{name}"(?=.*"{name}")' for name in known]
        words = [rf'"{name}"' for name in reserved]
        self._suspicious = re.compile("|".join([r"\\u", *words, *repeats]).encode(), re.DOTALL)

    def check(self, value: bytes) -> None:
        """Raise RecordInvalid if `value`, known to be a JSON object, breaks the rule."""
        if not self._suspicious.search(value):
            return
        outermost: list[str] = []

        def remember(pairs: list[tuple[str, object]]) -> None:
            outermost[:] = [name for name, _ in pairs]  # the outermost object ends last

        json.loads(value, object_pairs_hook=remember)
        for name in sorted(self._known):
            if outermost.count(name) > 1:
                raise RecordInvalid(f"expected each key once, got {name!r} twice")
        for name in outermost:
            if name in self._reserved:
                raise RecordInvalid(f"expected an event's keys, got {name!r}, which the join adds")


def decode_event(decoder: msgspec.json.Decoder[_T], value: bytes, keys: TopLevelKeys) -> _T:
    """Decode strictly; RecordInvalid says what was expected and what came."""
    try:
        value.decode()
        event = decoder.decode(value)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise RecordInvalid(f"not an event: {error}") from error
    keys.check(value)
    return event
