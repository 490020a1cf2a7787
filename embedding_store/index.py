"""Key -> slot by hashing into buckets, each a cache line, so that a key costs one random access.

    bucket = 64 bytes:  five keys uint64 (0 = nobody)  |  their five slots uint32  |  passed uint32

A key is in the first bucket from its home on that had room for it when it came: at the load here,
0.6, 22 of 23 are at home. `passed` counts the keys that went by a full bucket, so a search ends
where nobody did, and a deletion moves no other key. A key's home is the top of its hash times the
number of buckets, which need not be a power of two: 21 bytes a key. To find changes nothing, so
lines that are only read need not be written back.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from embedding_store.cache_line import LINE_BYTES, WORDS, lowest, matches
from embedding_store.distinct import MULTIPLIER
from embedding_store.kernel import kernel
from embedding_store.pages import zeros
from embedding_store.prefetch import AHEAD, prefetch

KEYS: Final = 5
LOAD: Final = 0.6
"""Of the keys it is made for."""
_BUCKET: Final = np.uint64(WORDS)
_KEY_BITS: Final = np.uint64((1 << KEYS) - 1)
"""Of a bucket's eight words: those that are keys."""
_SLOTS: Final = np.uint64(2 * KEYS)
"""From a bucket's begin to its slots, in half words."""
_NOBODY: Final = np.uint64(1 << KEYS)
"""As if one entry more had the key; in the place of its slot is `passed`."""
_PASSED: Final = np.uint64(KEYS)
_ZERO, _ONE, _HALF = np.uint64(0), np.uint64(1), np.uint64(32)


class Index:
    """A table for at most `capacity` keys, none of them 0."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        buckets = max(4, int(capacity / LOAD / KEYS) + 1)
        assert buckets < 1 << 32, "slots and buckets are 32-bit numbers"
        words = WORDS * buckets
        memory = zeros((words + WORDS,), np.uint64)
        start = -memory.ctypes.data % LINE_BYTES // 8
        self._keys: NDArray[np.uint64] = memory[start : start + words]
        self._halves: NDArray[np.uint32] = self._keys.view(np.uint32)  # the same memory

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Slots int64[N], -1 where absent; changes nothing."""
        slots = np.empty(len(keys), np.int64)
        _find(self._keys, self._halves, keys, slots)
        return slots

    def assign(self, keys: NDArray[np.uint64], slots: NDArray[np.int64]) -> None:
        """Set the slots of `keys`, inserting those that are absent."""
        _assign(self._keys, self._halves, keys, slots)

    def delete(self, keys: NDArray[np.uint64]) -> None:
        """Remove `keys`; absent ones are passed over."""
        _delete(self._keys, self._halves, keys)

    def clear(self) -> None:
        self._keys[:] = 0


@njit(inline="always")
def _home(key, words):  # type: ignore[no-untyped-def]
    """Where the bucket begins that a key belongs to: its hash's top 32 bits scaled; ascending with
    the hash."""
    return ((((key * MULTIPLIER) >> _HALF) * (words // _BUCKET)) >> _HALF) * _BUCKET


@njit(inline="always")
def _after(at, words):  # type: ignore[no-untyped-def]
    """Where the next bucket begins."""
    return at + _BUCKET if at + _BUCKET < words else _ZERO


@njit(inline="always")
def _having(table, at, key):  # type: ignore[no-untyped-def]
    """Which of a bucket's entries have `key`, 0 for the free ones, as bits."""
    return matches(table, at, key) & _KEY_BITS


@njit(inline="always")
def _slot(at, entry):  # type: ignore[no-untyped-def]
    """Where the slot of a bucket's entry is, in half words."""
    return at + at + _SLOTS + entry


@njit(inline="always")
def _goes_on(halves, at, here):  # type: ignore[no-untyped-def]
    """Not 0 if a key that is not `here` may be further on; arithmetic, since it is rare while
    whether the key is here may be anyone's guess."""
    nowhere = (here - _ONE) >> np.uint64(63)
    return np.uint64(halves[_slot(at, _PASSED)]) & (_ZERO - nowhere)


@kernel
def _find(table, halves, keys, slots) -> None:  # type: ignore[no-untyped-def]
    words, lines, many = np.uint64(table.shape[0]), table.reshape(-1, 1), keys.shape[0]
    for i in range(many):
        if i + AHEAD < many:
            prefetch(lines, _home(keys[i + AHEAD], words), 0)
        at = _home(keys[i], words)
        here = _having(table, at, keys[i])
        while _goes_on(halves, at, here) != _ZERO:
            at = _after(at, words)
            here = _having(table, at, keys[i])
        slot = np.int64(halves[_slot(at, lowest(here | _NOBODY))])
        slots[i] = slot | -np.int64(here == _ZERO)


@kernel
def _assign(table, halves, keys, slots) -> None:  # type: ignore[no-untyped-def]
    words, lines, many = np.uint64(table.shape[0]), table.reshape(-1, 1), keys.shape[0]
    for i in range(many):
        if i + AHEAD < many:
            prefetch(lines, _home(keys[i + AHEAD], words), 0)
        home = _home(keys[i], words)
        at, here = home, _having(table, home, keys[i])
        while _goes_on(halves, at, here) != _ZERO:
            at = _after(at, words)
            here = _having(table, at, keys[i])
        if here == _ZERO:
            at, here = home, _having(table, home, _ZERO)
            while here == _ZERO:
                halves[_slot(at, _PASSED)] += np.uint32(1)
                at = _after(at, words)
                here = _having(table, at, _ZERO)
            table[at + lowest(here)] = keys[i]
        halves[_slot(at, lowest(here))] = np.uint32(slots[i])


@kernel
def _delete(table, halves, keys) -> None:  # type: ignore[no-untyped-def]
    words, lines, many = np.uint64(table.shape[0]), table.reshape(-1, 1), keys.shape[0]
    for i in range(many):
        if i + AHEAD < many:
            prefetch(lines, _home(keys[i + AHEAD], words), 0)
        home = _home(keys[i], words)
        at, here = home, _having(table, home, keys[i])
        while _goes_on(halves, at, here) != _ZERO:
            at = _after(at, words)
            here = _having(table, at, keys[i])
        if here != _ZERO:
            table[at + lowest(here)] = _ZERO
            while home != at:
                halves[_slot(home, _PASSED)] -= np.uint32(1)
                home = _after(home, words)
