"""One row's bytes, the same in the hot slab and on disk. Little-endian, no gaps but the last.

offset  bytes   field
0       8       key             uint64   again, so that a row proves whose it is
8       4       created_s       uint32   unix seconds of the caller's clock
12      4       last_touched_s  uint32   never falls
16      4       count           uint32   occurrences learnt from, saturating
20      4       flags           uint32   0 in layout version 1
24      4*D     vector of the first set by name, float32[D]
        4*S     optimizer state of that set, float32[S]  (rowwise_adagrad: S = 1, the sum G)
        ...     vector and state of every further set
        0 | 4   zero, to a multiple of 8 so that keys stay aligned in the slab
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

from embedding_store.errors import StoreMisuse
from embedding_store.layout import RowLayout, SetSpec

HEADER: Final = [
    ("key", "<u8"),
    ("created_s", "<u4"),
    ("last_touched_s", "<u4"),
    ("count", "<u4"),
    ("flags", "<u4"),
]
HEADER_WORDS: Final = 6
TOUCHED_WORD: Final = 3
COUNT_WORD: Final = 4
SECONDS_MAX: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class SetPlace:
    """Where a set lies in a row, in 4-byte words."""

    spec: SetSpec
    vector_word: int
    state_word: int
    seed: int
    """Of the initial values; from the name, so that another set's arrival changes nothing here."""


@dataclass(frozen=True, slots=True)
class Header:
    """The part of a row that admission, expiry and audits read."""

    key: int
    created_s: int
    last_touched_s: int
    count: int
    flags: int


class RowFormat:
    """A layout turned into numpy's terms: the structured dtype and each set's place."""

    def __init__(self, layout: RowLayout) -> None:
        self.layout = layout
        self.places: dict[str, SetPlace] = {}
        fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = [*HEADER]
        word = HEADER_WORDS
        for name, spec in layout.sets.items():
            seed = int(xxhash.xxh3_64_intdigest(name.encode()))
            self.places[name] = SetPlace(spec, word, word + spec.dim, seed)
            fields.append((vector_field(name), "<f4", (spec.dim,)))
            fields.append((state_field(name), "<f4", (spec.state_floats,)))
            word += spec.dim + spec.state_floats
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

    def fresh(self, keys: NDArray[np.uint64], now_s: int) -> NDArray[np.float32]:
        """New rows float32[N, words] for `keys`: a function of the key and `now_s` alone."""
        rows = np.zeros(len(keys), self.dtype)
        rows["key"] = keys
        rows["created_s"] = now_s
        rows["last_touched_s"] = now_s
        words: NDArray[np.float32] = rows.view(np.float32).reshape(len(keys), self.words)
        for place in self.places.values():
            _draw(
                words,
                keys,
                place.vector_word,
                place.spec.dim,
                np.float32(place.spec.init_scale),
                np.uint64(place.seed),
            )
        return words

    def records(self, words: NDArray[np.float32]) -> NDArray[np.void]:
        """float32[N, words] -> structured [N]; a copy only if `words` is not contiguous."""
        return np.ascontiguousarray(words).view(self.dtype).reshape(len(words))


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


@njit(nogil=True, cache=True)
def _draw(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    words, keys, first, dim, scale, seed
):
    """words[:, first : first+dim] = uniform [-scale, scale) by SplitMix64 of (key, set, d).

    24 bits a value: exact in float32, so every machine draws the same bytes.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    for i in range(keys.shape[0]):
        state = keys[i] ^ seed
        for d in range(dim):
            state += golden
            z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = (z ^ (z >> np.uint64(31))) >> np.uint64(40)
            unit = np.float32(np.int64(z)) * np.float32(2.0**-23) - np.float32(1)
            words[i, first + d] = unit * scale
