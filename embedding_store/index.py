"""Key -> slot by hashing into buckets, each a cache line, so that a key costs one random access.

    bucket = 64 bytes:  five keys uint64 (0 = nobody)  |  their five slots uint32  |  4 unused

A key is in the first bucket from its home on that had room for it: at the load here, 0.7, thirteen
of fourteen are at home. Deletion pulls back what would be cut off. A key's home is the top of its
hash times the number of buckets, which need not be a power of two: 18 bytes a key. To find changes
nothing, so lines that are only read need not be written back.
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
LOAD: Final = 0.7
"""Of the keys it is made for."""
_BUCKET: Final = np.uint64(WORDS)
_KEY_BITS: Final = np.uint64((1 << KEYS) - 1)
"""Of a bucket's eight words: those that are keys."""
_SLOTS: Final = np.uint64(2 * KEYS)
"""From a bucket's begin to its slots, in half words."""
_NOBODY: Final = np.uint64(1 << KEYS)
"""An entry more, whose slot is the bucket's unused half word."""
_ZERO, _HALF = np.uint64(0), np.uint64(32)


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
        self._slots: NDArray[np.uint32] = self._keys.view(np.uint32)  # the same memory

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Slots int64[N], -1 where absent; changes nothing."""
        slots = np.empty(len(keys), np.int64)
        _find(self._keys, self._slots, keys, slots)
        return slots

    def assign(self, keys: NDArray[np.uint64], slots: NDArray[np.int64]) -> None:
        """Set the slots of `keys`, inserting those that are absent."""
        _assign(self._keys, self._slots, keys, slots)

    def delete(self, keys: NDArray[np.uint64]) -> None:
        """Remove `keys`; absent ones are passed over."""
        _delete(self._keys, self._slots, keys)

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


@kernel
def _find(table, values, keys, slots) -> None:  # type: ignore[no-untyped-def]
    words, lines, many = np.uint64(table.shape[0]), table.reshape(-1, 1), keys.shape[0]
    for i in range(many):
        if i + AHEAD < many:
            prefetch(lines, _home(keys[i + AHEAD], words), 0)
        at = _home(keys[i], words)
        here = _having(table, at, keys[i])
        while (here | _having(table, at, _ZERO)) == _ZERO:
            at = _after(at, words)
            here = _having(table, at, keys[i])
        # Whether a key is there may be anyone's guess, so nothing branches on it.
        slot = np.int64(values[_slot(at, lowest(here | _NOBODY))])
        slots[i] = slot | -np.int64(here == _ZERO)


@kernel
def _assign(table, values, keys, slots) -> None:  # type: ignore[no-untyped-def]
    words, lines, many = np.uint64(table.shape[0]), table.reshape(-1, 1), keys.shape[0]
    for i in range(many):
        if i + AHEAD < many:
            prefetch(lines, _home(keys[i + AHEAD], words), 0)
        at = _home(keys[i], words)
        while True:
            here = _having(table, at, keys[i])
            if here == _ZERO:
                here = _having(table, at, _ZERO)
            if here != _ZERO:
                break
            at = _after(at, words)
        table[at + lowest(here)] = keys[i]
        values[_slot(at, lowest(here))] = np.uint32(slots[i])


@kernel
def _delete(table, values, keys) -> None:  # type: ignore[no-untyped-def]
    words, lines, many = np.uint64(table.shape[0]), table.reshape(-1, 1), keys.shape[0]
    for i in range(many):
        if i + AHEAD < many:
            coming = _home(keys[i + AHEAD], words)
            prefetch(lines, coming, 0)
            prefetch(lines, coming + _BUCKET, 0)  # where what moves up may be
        at = _home(keys[i], words)
        here = _having(table, at, keys[i])
        while here == _ZERO and _having(table, at, _ZERO) == _ZERO:
            at = _after(at, words)
            here = _having(table, at, keys[i])
        if here != _ZERO:
            if _having(table, at, _ZERO) == _ZERO:
                _close_gap(table, values, at, lowest(here))
            else:
                table[at + lowest(here)] = _ZERO


@kernel
def _close_gap(table, values, at, hole) -> None:  # type: ignore[no-untyped-def]
    """Empty the entry `hole` of the full bucket `at`. Whoever stands further on because that bucket
    was full moves into it, if nothing else leads to where it stands; and so on from there."""
    words = np.uint64(table.shape[0])
    full, further = True, at
    while full:
        further = _after(further, words)
        full = _having(table, further, _ZERO) == _ZERO
        distance = _distance(at, further, words)
        for entry in range(np.uint64(KEYS)):
            key = table[further + entry]
            if key == _ZERO:
                continue
            if _distance(_home(key, words), further, words) >= distance:
                table[at + hole] = key
                values[_slot(at, hole)] = values[_slot(further, entry)]
                at, hole = further, entry
                break
    table[at + hole] = _ZERO


@njit(inline="always")
def _distance(start, end, words):  # type: ignore[no-untyped-def]
    """Words from one bucket on to another, past the table's end if need be."""
    return end - start if end >= start else end + words - start
