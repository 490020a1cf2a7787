"""Reads a sample of somebody's events and says what they are: slots, sides, kinds, domains, gaps.

`runtime.config_init` turns the findings into a config. Lines that are no events are counted, not
guessed at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash

from runtime.producing import NOT_READABLE
from runtime.run_state import now_ms
from topics.event import event_key

LINES_MAX = 500_000
"""Lines read of each file: enough for types and gaps, bounded in time and memory."""
ENTITIES_MAX = 50_000
"""Entities per side that the constancy test remembers."""
_BUCKETS = 2
_CONSTANT_SHARE = 0.99
_REPEATED_ENTITIES_MIN = 3


class _Impression(msgspec.Struct):
    impression_id: str
    event_ms: int
    user_id: str
    item_id: str
    domain: str
    features: dict[str, Any]


class _Conversion(msgspec.Struct):
    conversion_id: str
    event_ms: int
    user_id: str
    item_id: str
    kind: str


@dataclass(slots=True)
class SlotFindings:
    """What one slot's values looked like. `sides` says on which evidence it belongs where."""

    types: Counter[str] = field(default_factory=Counter)
    dims: Counter[int] = field(default_factory=Counter)
    distinct: set[Hashable] = field(default_factory=set)
    length_max: int = 0
    by_entity: dict[str, dict[str, int]] = field(default_factory=lambda: {"user": {}, "item": {}})
    repeated: dict[str, set[str]] = field(default_factory=lambda: {"user": set(), "item": set()})
    changed: dict[str, set[str]] = field(default_factory=lambda: {"user": set(), "item": set()})


@dataclass(slots=True)
class Findings:
    """Everything found in the two files."""

    impressions: int = 0
    conversions: int = 0
    unreadable: int = 0
    bytes_max: int = 0
    slots: dict[str, SlotFindings] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    domains: Counter[str] = field(default_factory=Counter)
    gap_ms_max: int = 0


def read_findings(impressions: Path, conversions: Path) -> Findings:
    """Read up to LINES_MAX lines of each file. Raises OSError."""
    found = Findings()
    times: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    wall_ms = now_ms()
    decode_impression = msgspec.json.Decoder(_Impression).decode
    decode_conversion = msgspec.json.Decoder(_Conversion).decode
    for line in _lines(impressions, found):
        try:
            impression = decode_impression(line)
        except NOT_READABLE:
            found.unreadable += 1
            continue
        found.impressions += 1
        found.domains[impression.domain] += 1
        for name, value in impression.features.items():
            slot = found.slots.setdefault(name, SlotFindings())
            _look(slot, value, impression.user_id, impression.item_id)
        if impression.event_ms <= wall_ms:
            bucket = _bucket(impression.user_id, impression.item_id)
            times["impressions", bucket].append(impression.event_ms)
    for line in _lines(conversions, found):
        try:
            conversion = decode_conversion(line)
        except NOT_READABLE:
            found.unreadable += 1
            continue
        found.conversions += 1
        found.kinds[conversion.kind] += 1
        if conversion.event_ms <= wall_ms:
            bucket = _bucket(conversion.user_id, conversion.item_id)
            times["conversions", bucket].append(conversion.event_ms)
    found.gap_ms_max = max((_gap_ms(part) for part in times.values()), default=0)
    return found


def side_of(name: str, slot: SlotFindings) -> tuple[str, str]:
    """(side, why): by name, else by what the slot is constant within, else context."""
    for prefix, side in (("user_", "user"), ("item_", "item"), ("ad_", "item")):
        if name.startswith(prefix):
            return side, "by its name"
    if slot.types.most_common(1)[0][0] == "sequence":
        return "user", "a sequence: taken as the user's history"
    if len(slot.distinct) < 2:
        return "context", "one value everywhere"
    shares = {
        side: 1 - len(slot.changed[side]) / len(slot.repeated[side])
        for side in ("user", "item")
        if len(slot.repeated[side]) >= _REPEATED_ENTITIES_MIN
    }
    best = max(shares, key=lambda side: (shares[side], len(slot.repeated[side])), default=None)
    if best is not None and shares[best] >= _CONSTANT_SHARE:
        return best, f"the same within each {best}"
    return "context", "it changes within users and within items"


def _lines(path: Path, found: Findings) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if number >= LINES_MAX:
                return
            found.bytes_max = max(found.bytes_max, len(line))
            if line.strip():
                yield line


def _look(slot: SlotFindings, value: Any, user_id: str, item_id: str) -> None:
    kind = _type_of(value)
    if kind is None:
        return
    slot.types[kind] += 1
    if kind in ("multi", "vector", "sequence"):
        slot.length_max = max(slot.length_max, len(value))
    if kind == "vector":
        slot.dims[len(value)] += 1
    if kind == "sequence":
        return
    fingerprint = xxhash.xxh3_64_intdigest(msgspec.json.encode(value))
    if len(slot.distinct) < 1000:
        slot.distinct.add(fingerprint)
    for side, entity in (("user", user_id), ("item", item_id)):
        known = slot.by_entity[side]
        if entity in known:
            slot.repeated[side].add(entity)
            if known[entity] != fingerprint:
                slot.changed[side].add(entity)
        elif len(known) < ENTITIES_MAX:
            known[entity] = fingerprint


def _type_of(value: Any) -> str | None:
    """The slot type that this value fits; "other" fits none; None says nothing (null, [])."""
    if value is None or value == []:
        return None
    if isinstance(value, str):
        return "categorical"
    if _is_number(value):
        return "numeric"
    if isinstance(value, list):
        return _list_type(value)
    return "other"


def _list_type(values: list[Any]) -> str:
    if all(isinstance(entry, str) for entry in values):
        return "multi"
    if all(_is_number(entry) for entry in values):
        return "vector"
    if all(isinstance(entry, dict) and "item_id" in entry for entry in values):
        return "sequence"
    return "other"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bucket(user_id: str, item_id: str) -> int:
    """Stands for the event's partition: a partition is sparser than the whole stream."""
    return xxhash.xxh3_64_intdigest(event_key(user_id, item_id)) % _BUCKETS


def _gap_ms(times: list[int]) -> int:
    ordered = np.sort(np.array(times, np.int64))
    return int(np.diff(ordered).max()) if len(ordered) > 1 else 0
