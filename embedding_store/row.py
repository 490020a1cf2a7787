"""One row's bytes, the same in the hot slab and on disk. Little-endian, no gaps but the marked.

offset  bytes   field
0       8       key             uint64   again, so that a row proves whose it is
8       4       created_s       uint32   unix seconds of the caller's clock
12      4       last_touched_s  uint32   never falls
16      4       count           uint32   occurrences learnt from, saturating
20      2       slot            uint16   number of its slot in the layout; 0 = unnamed
22      2       flags           uint16   0 on disk; in memory the slab's own
24      W       vector of the first set by name: float32[D] (W = 4 D), or bfloat16[D] and a zero
                of 2 bytes after an odd D
        4*S     optimizer state of that set, float32[S] (`SetSpec.state_floats`)
        ...     vector and state of every further set; zero where the row's slot lacks the set
        0 | 4   zero, to a multiple of 8 so that keys stay aligned in the slab
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from embedding_store.bfloat16 import nearest, widened
from embedding_store.errors import StoreMisuse
from embedding_store.kernel import kernel
from embedding_store.layout import RowLayout, SetSpec

HEADER: Final = [
    ("key", "<u8"),
    ("created_s", "<u4"),
    ("last_touched_s", "<u4"),
    ("count", "<u4"),
    ("slot", "<u2"),
    ("flags", "<u2"),
]
Headers = NDArray[Any]
"""Structured [N]: the fields of HEADER."""
HEADER_WORDS: Final = 6
CREATED_WORD: Final = 2
TOUCHED_WORD: Final = 3
COUNT_WORD: Final = 4
FLAGS_WORD: Final = 5
"""Slot number in the low half."""
SLOT_BITS: Final = 0xFFFF
SECONDS_MAX: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class SetPlace:
    """Where a set lies in a row, in 4-byte words."""

    spec: SetSpec
    vector_word: int
    vector_words: int
    state_word: int
    seed: int
    """Of the initial values; from the name, so that another set's arrival changes nothing here."""
    members: NDArray[np.bool_] | None
    """By slot number: whether its rows have the set; None = every row has."""


@dataclass(frozen=True, slots=True)
class Header:
    """The part of a row that admission, expiry and audits read."""

    key: int
    created_s: int
    last_touched_s: int
    count: int
    slot: int
    """The slot's number; `RowLayout.slot_name` tells its name."""


SetValues = tuple[NDArray[np.float32], NDArray[np.float32]]
"""(vector float32[D], optimizer state float32[S])"""


class RowFormat:
    """A layout turned into numpy's terms: the structured dtype and each set's place."""

    def __init__(self, layout: RowLayout) -> None:
        self.layout = layout
        self.places: dict[str, SetPlace] = {}
        fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = [*HEADER]
        word = HEADER_WORDS
        for name, spec in layout.sets.items():
            seed = int(xxhash.xxh3_64_intdigest(name.encode()))
            wide = spec.dtype == "float32"
            words = spec.dim if wide else (spec.dim + 1) // 2
            place = SetPlace(spec, word, words, word + words, seed, layout.members(name))
            self.places[name] = place
            fields.append((vector_field(name), "<f4" if wide else "<u2", (spec.dim,)))
            if not wide and spec.dim % 2:
                fields.append((f"padding:{name}", "<u2"))
            fields.append((state_field(name), "<f4", (spec.state_floats,)))
            word += words + spec.state_floats
        if word % 2:
            fields.append(("padding", "<u4"))
            word += 1
        self.words = word
        self.bytes = 4 * word
        self.dtype = np.dtype(fields)
        assert self.dtype.itemsize == self.bytes, "the drawing above and the dtype differ"

    def place(self, set_name: str) -> SetPlace:
        try:
            return self.places[set_name]
        except KeyError:
            raise StoreMisuse(
                f"no such embedding set: set=`{set_name}` expected one of `{list(self.places)}`"
            ) from None

    def fresh(
        self, keys: NDArray[np.uint64], slot_numbers: NDArray[np.uint16], now_s: int
    ) -> NDArray[np.float32]:
        """New rows float32[N, words] for `keys`: a function of key, slot and `now_s` alone."""
        rows = np.zeros(len(keys), self.dtype)
        rows["key"] = keys
        rows["created_s"] = now_s
        rows["last_touched_s"] = now_s
        rows["slot"] = slot_numbers
        words: NDArray[np.float32] = rows.view(np.float32).reshape(len(keys), self.words)
        for name, place in self.places.items():
            vectors = first_vectors(place, keys)
            if place.members is not None:
                vectors[~place.members[slot_numbers]] = 0
            wide = place.spec.dtype == "float32"
            rows[vector_field(name)] = vectors if wide else nearest(vectors)
        return words

    def vectors(self, set_name: str, words: NDArray[np.float32]) -> NDArray[np.float32]:
        """The set's vectors float32[N, D] of whole rows float32[N, words]; a copy."""
        stored: NDArray[np.float32] = self.records(words)[vector_field(set_name)]
        return stored.copy() if stored.dtype == np.float32 else widened(stored)

    def decoded(self, data: bytes) -> tuple[Header, dict[str, SetValues]]:
        """A row's header, and the values of the sets that its slot has."""
        words = np.frombuffer(data, np.float32)[None]
        record = self.records(words)[0]
        header = Header(*(int(record[name]) for name in Header.__slots__))
        return header, {
            name: (self.vectors(name, words)[0], record[state_field(name)].copy())
            for name in self.layout.sets_of(self.layout.slot_name(header.slot))
        }

    def records(self, words: NDArray[np.float32]) -> NDArray[np.void]:
        """float32[N, words] -> structured [N]; a copy only if `words` is not contiguous."""
        return np.ascontiguousarray(words).view(self.dtype).reshape(len(words))


def header_records(rows: Iterable[bytes]) -> Headers:
    """The headers structured [N] of `rows`, whole or only their heads; a copy."""
    size = 4 * HEADER_WORDS
    return np.frombuffer(b"".join(row[:size] for row in rows), np.dtype(HEADER)).copy()


def vector_field(set_name: str) -> str:
    return f"vector:{set_name}"


def state_field(set_name: str) -> str:
    return f"state:{set_name}"


def seconds(now_ms: int) -> int:
    """The header's clock; raises StoreMisuse outside what uint32 seconds can hold (year 2106)."""
    now_s = now_ms // 1000
    if not 0 <= now_s <= SECONDS_MAX:
        raise StoreMisuse(f"a time outside the row header's range: now_ms=`{now_ms}`")
    return now_s


def first_vectors(place: SetPlace, keys: NDArray[np.uint64]) -> NDArray[np.float32]:
    """float32[N, D] that rows of `keys` start from, before the set's type rounds them."""
    vectors = np.empty((len(keys), place.spec.dim), np.float32)
    _draw(vectors, keys, np.float32(place.spec.init_scale), np.uint64(place.seed))
    return vectors


@kernel
def _draw(vectors, keys, scale, seed) -> None:  # type: ignore[no-untyped-def]
    """Uniform [-scale, scale) by SplitMix64 of (key, set, d).

    24 bits a value: exact in float32, so every machine draws the same bytes.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    for i in range(keys.shape[0]):
        state = keys[i] ^ seed
        for d in range(vectors.shape[1]):
            state += golden
            z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = (z ^ (z >> np.uint64(31))) >> np.uint64(40)
            unit = np.float32(np.int64(z)) * np.float32(2.0**-23) - np.float32(1)
            vectors[i, d] = unit * scale
