"""A batch's distinct keys, by a table that is small enough for the core's own cache.

    places = uint32[2^b]   where among the distinct keys the one is that hashed here; 0 = nobody yet
    keys   = uint64[1 + U] in order of first appearance; keys[0] = 0, which is no key

In blocks of ids, each in two passes. The first only reads: which ids are known already? It stores
nothing that a later id's reading would have to wait for, and branches on nothing. The second takes
those that were not, two in five, in order, whose lines are at hand by then: nearly all of them are
new. Doing both for one id after another costs twice as much, all of it waiting and wrong guesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedding_store.kernel import kernel

MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
_BLOCK: Final = 256
_PLACES_PER_ID: Final = 2
_ZERO, _ONE = np.uint64(0), np.uint64(1)


@dataclass(frozen=True, slots=True)
class Distinct:
    """N ids as U distinct keys, in order of first appearance."""

    keys: NDArray[np.uint64]
    """uint64[U]"""
    inverse: NDArray[np.int32]
    """int32[N]: keys[inverse] are the ids"""
    counts: NDArray[np.int32]
    """int32[U]: how often each occurs"""


class Deduplicator:
    """Keeps its memory from batch to batch. One thread at a time."""

    def __init__(self) -> None:
        self._places: NDArray[np.uint32] = np.empty(0, np.uint32)
        self._unknown: NDArray[np.uint32] = np.empty(_BLOCK, np.uint32)

    def __call__(self, ids: NDArray[np.uint64]) -> Distinct:
        """uint64[N] `ids`, none of them 0."""
        bits = max(1, (_PLACES_PER_ID * len(ids) - 1).bit_length())
        if len(self._places) < 1 << bits:
            self._places = np.empty(1 << bits, np.uint32)
        places = self._places[: 1 << bits]
        keys, inverse = np.empty(len(ids) + 1, np.uint64), np.empty(len(ids), np.int32)
        many = _distinct(ids, 64 - bits, places, self._unknown, keys, inverse)
        counts = np.empty(many, np.int32)
        _count(inverse, counts)
        return Distinct(keys[1 : many + 1], inverse, counts)


@kernel
def _distinct(ids, shift, places, unknown, keys, inverse):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Fills `keys` [1 + N] and `inverse` [N]; returns U. At least one of `places` stays free."""
    for i in range(places.shape[0]):
        places[i] = np.uint32(0)
    keys[0] = _ZERO
    total, block = np.uint64(ids.shape[0]), np.uint64(unknown.shape[0])
    mask = np.uint64(places.shape[0] - 1)
    found, begin = _ONE, _ZERO
    while begin < total:
        end, many = min(begin + block, total), _ZERO
        for i in range(begin, end):
            place = np.uint64(places[(ids[i] * MULTIPLIER) >> np.uint64(shift)])
            inverse[i] = np.int32(place) - np.int32(1)
            unknown[many] = np.uint32(i)
            many += np.uint64(keys[place] != ids[i])
        for n in range(many):
            each = np.uint64(unknown[n])
            at = (ids[each] * MULTIPLIER) >> np.uint64(shift)
            place = np.uint64(places[at])
            while place != _ZERO and keys[place] != ids[each]:
                at = (at + _ONE) & mask
                place = np.uint64(places[at])
            if place == _ZERO:
                place = found
                places[at], keys[place] = np.uint32(place), ids[each]
                found += _ONE
            inverse[each] = np.int32(place) - np.int32(1)
        begin = end
    return np.int64(found - _ONE)


@kernel
def _count(inverse, counts) -> None:  # type: ignore[no-untyped-def]
    for n in range(counts.shape[0]):
        counts[n] = 0
    for i in range(inverse.shape[0]):
        counts[np.uint64(inverse[i])] += np.int32(1)
