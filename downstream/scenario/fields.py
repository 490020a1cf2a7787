"""An impression's own fields as hashed codes: what a small downstream team would start with.

One field per implicit and configured slot; a categorical value is one code, a list or a sequence
several, a number its bucket on a logarithmic scale. Vectors are left out. Collisions are accepted:
the exact table is the upstream's job.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from settings.config import IMPLICIT_SLOTS, Config
from topics.impression import Impression

BUCKETS_PER_E = 2.0


@dataclass(frozen=True, slots=True)
class FieldRows:
    """Codes of B impressions x F fields, ragged: field f of impression b is
    `codes[offsets[b * F + f] : offsets[b * F + f + 1]]`, empty where missing."""

    codes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    """`[B * F + 1]`"""


class Fields:
    """Packs impressions by the slots of one config."""

    def __init__(self, config: Config, *, buckets: int = 2**16) -> None:
        self.buckets = buckets
        self._slots = [n for n, spec in sorted(config.slots.items()) if spec.type != "vector"]
        self.names = (*IMPLICIT_SLOTS, *self._slots)

    def __len__(self) -> int:
        return len(self.names)

    def codes(self, impression: Impression) -> list[list[int]]:
        """F lists of codes below `buckets`."""
        own: list[Any] = [getattr(impression, name) for name in IMPLICIT_SLOTS]
        own += [impression.features.get(name) for name in self._slots]
        return [
            [self._code(name, text) for text in _texts(value)]
            for name, value in zip(self.names, own, strict=True)
        ]

    def _code(self, name: str, text: str) -> int:
        return int(xxhash.xxh3_64_intdigest(f"{name}\x1f{text}".encode()) % self.buckets)


def pack(rows: Sequence[list[list[int]]]) -> FieldRows:
    """B rows of F lists, side by side."""
    lists = [codes for row in rows for codes in row]
    lengths = np.fromiter((len(codes) for codes in lists), np.int64, len(lists))
    flat = np.fromiter((code for codes in lists for code in codes), np.int64, int(lengths.sum()))
    return FieldRows(flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def _texts(value: Any) -> list[str]:
    """What of a slot's value is hashed; nothing for a type that no slot has."""
    if value is None or isinstance(value, bool):
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return []
        scale = math.floor(BUCKETS_PER_E * math.log1p(abs(value)))
        return [f"{'-' if value < 0 else '+'}{scale}"]
    if isinstance(value, list):
        entries = [v.get("item_id") if isinstance(v, dict) else v for v in value]
        return [entry for entry in entries if isinstance(entry, str)]
    return []
