"""Key -> slot by hashing into buckets, with a batch's de-duplication fused into the same pass.

    bucket = uint64[8], a cache line:  four keys  |  their four values
    value  = slot (high 32 bits), position in the batch (low 32 bits)

One random access per id yields its slot, whether the id was seen before in this batch, and where.
The position is believed only if `unique[position]` is this very key: a left-over from an earlier
batch cannot pass that test, so nothing is ever swept.
A key is in the first bucket from its home on that had room for it: at the load here, 0.6, fifteen
of sixteen are at home. Deletion pulls back what would be cut off. A key's home is the top of its
hash times the number of buckets, which need not be a power of two: 27 bytes a key, not 32 to 64.
Whether an id was seen before is arithmetic, not a branch: with two in five of them new it would be
guessed wrong about as often. What remains to guess is whether a key is at home.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from embedding_store.bucket import KEYS, lowest, matches
from embedding_store.kernel import kernel
from embedding_store.pages import zeros
from embedding_store.prefetch import AHEAD, prefetch

ABSENT: Final = 0xFFFFFFFF
"""The slot of a key that is in the table but has no slot yet: missed by the batch under way."""
MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
LOAD: Final = 0.6
"""Of the keys it is made for; 0.9 while a batch is being resolved."""
_BUCKET: Final = np.uint64(2 * KEYS)
"""Words."""
_VALUES: Final = np.uint64(KEYS)
"""From a key to its value, in words."""
_LINE_BYTES: Final = 64
_ZERO, _ONE, _HALF = np.uint64(0), np.uint64(1), np.uint64(32)


class Resolved:
    """A batch's distinct keys [U] in order of first appearance, and how its N ids map to them."""

    def __init__(self, ids: int) -> None:
        # A power of two: any position, also a left-over, can be looked up under a mask.
        self.keys: NDArray[np.uint64] = np.empty(1 << ids.bit_length(), np.uint64)
        self.slots: NDArray[np.int64] = np.empty(ids, np.int64)  # -1 = missed
        self.inverse: NDArray[np.int32] = np.empty(ids, np.int32)
        self.counts: NDArray[np.int32] = np.empty(ids, np.int32)
        self.misses: NDArray[np.int64] = np.empty(ids, np.int64)  # positions among keys

    def cut(self, unique: int, missed: int) -> None:
        self.keys = self.keys[:unique]
        self.slots = self.slots[:unique]
        self.counts = self.counts[:unique]
        self.misses = self.misses[:missed]


class Index:
    """A table for at most `capacity` keys, none of them 0, which also survives `capacity`/2 missed
    ones."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        buckets = max(4, int(capacity / LOAD / KEYS) + 1)
        assert buckets < 1 << 32, "slots and buckets are 32-bit numbers"
        words = 2 * KEYS * buckets
        memory = zeros((words + _LINE_BYTES // 8,), np.uint64)
        start = -memory.ctypes.data % _LINE_BYTES // 8
        self._table: NDArray[np.uint64] = memory[start : start + words]

    def resolve(self, ids: NDArray[np.uint64], *, unique_max: int) -> Resolved | None:
        """De-duplicate and find. Missed keys stay as placeholders: `assign` or `delete` them.

        None, with the table as before, if there are more than `unique_max` distinct keys.
        """
        resolved = Resolved(len(ids))
        homes = np.empty(len(ids) + AHEAD, np.uint32)
        _find_homes(ids, len(self._table) // (2 * KEYS), homes)
        unique, missed = _resolve(
            self._table,
            ids,
            homes,
            unique_max,
            resolved.keys,
            resolved.slots,
            resolved.inverse,
            resolved.counts,
            resolved.misses,
        )
        resolved.cut(unique, missed)
        if unique > unique_max:
            self.delete(resolved.keys[resolved.misses])
            return None
        return resolved

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Slots int64[N], -1 where absent; changes nothing."""
        slots = np.empty(len(keys), np.int64)
        _find(self._table, keys, slots)
        return slots

    def assign(self, keys: NDArray[np.uint64], slots: NDArray[np.int64]) -> None:
        """Set the slots of `keys`, inserting those that are absent."""
        _assign(self._table, keys, slots)

    def delete(self, keys: NDArray[np.uint64]) -> None:
        """Remove `keys`; absent ones are passed over."""
        _delete(self._table, keys)

    def clear(self) -> None:
        self._table[:] = 0


@njit(inline="always")
def _home(key, buckets):  # type: ignore[no-untyped-def]
    """The bucket a key belongs to: its hash's top 32 bits scaled; ascending with the hash."""
    return (((key * MULTIPLIER) >> _HALF) * buckets) >> _HALF


@njit(inline="always")
def _after(at, words):  # type: ignore[no-untyped-def]
    """Where the next bucket begins."""
    return at + _BUCKET if at + _BUCKET < words else _ZERO


@kernel
def _find_homes(ids, buckets, homes) -> None:  # type: ignore[no-untyped-def]
    """uint32[N + AHEAD]: the end is for asking ahead, without a branch, when there is no more."""
    for i in range(ids.shape[0]):
        homes[i] = np.uint32(_home(ids[i], np.uint64(buckets)))
    for i in range(ids.shape[0], homes.shape[0]):
        homes[i] = np.uint32(0)


@kernel
def _resolve(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    table, ids, homes, unique_max, unique, slots, inverse, counts, misses
) -> Any:
    words, lines, most = np.uint64(table.shape[0]), table.reshape(-1, 1), np.uint64(unique_max)
    low, high = np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFF00000000)
    mask, found, missed = np.uint64(unique.shape[0] - 1), _ZERO, 0
    for i in range(ids.shape[0]):
        prefetch(lines, np.uint64(homes[i + AHEAD]) * _BUCKET, 0)
        key, at = ids[i], np.uint64(homes[i]) * _BUCKET
        here = matches(table, at, key)
        while here == _ZERO:
            here = matches(table, at, _ZERO)
            if here != _ZERO:
                entry = at + lowest(here)
                table[entry] = key
                table[entry + _VALUES] = high  # ABSENT
                break
            at = _after(at, words)
            here = matches(table, at, key)
        value = at + lowest(here) + _VALUES
        there = table[value]
        slot, before = there >> _HALF, there & low
        seen = np.uint64(unique[before & mask] == key) & np.uint64(before < found)
        position = found ^ ((found ^ before) & (_ZERO - seen))  # seen ? before : found
        table[value] = (there & high) | position
        inverse[i] = np.int32(position)
        counts[position] = (counts[position] & np.int32(_ZERO - seen)) + np.int32(1)
        unique[found] = key  # the place of the next new one, which overwrites it
        slots[found] = np.int64(slot)
        if slot == np.uint64(ABSENT) and seen == _ZERO:
            slots[found] = -1
            misses[missed] = np.int64(found)
            missed += 1
        found += _ONE - seen
        if found > most:
            break
    return np.int64(found), missed


@kernel
def _find(table, keys, slots) -> None:  # type: ignore[no-untyped-def]
    words, lines, many = np.uint64(table.shape[0]), table.reshape(-1, 1), keys.shape[0]
    buckets = words // _BUCKET
    for i in range(many):
        if i + AHEAD < many:
            prefetch(lines, _home(keys[i + AHEAD], buckets) * _BUCKET, 0)
        at = _home(keys[i], buckets) * _BUCKET
        here = matches(table, at, keys[i])
        while here == _ZERO and matches(table, at, _ZERO) == _ZERO:
            at = _after(at, words)
            here = matches(table, at, keys[i])
        slots[i] = -1
        if here != _ZERO:
            slots[i] = np.int64(table[at + lowest(here) + _VALUES] >> _HALF)


@kernel
def _assign(table, keys, slots) -> None:  # type: ignore[no-untyped-def]
    words, lines, many = np.uint64(table.shape[0]), table.reshape(-1, 1), keys.shape[0]
    buckets, low = words // _BUCKET, np.uint64(0xFFFFFFFF)
    for i in range(many):
        if i + AHEAD < many:
            prefetch(lines, _home(keys[i + AHEAD], buckets) * _BUCKET, 0)
        at = _home(keys[i], buckets) * _BUCKET
        while True:
            here = matches(table, at, keys[i])
            if here == _ZERO:
                here = matches(table, at, _ZERO)
            if here != _ZERO:
                break
            at = _after(at, words)
        entry = at + lowest(here)
        table[entry] = keys[i]
        value = entry + _VALUES
        table[value] = (np.uint64(slots[i]) << _HALF) | (table[value] & low)


@kernel
def _delete(table, keys) -> None:  # type: ignore[no-untyped-def]
    words, lines, many = np.uint64(table.shape[0]), table.reshape(-1, 1), keys.shape[0]
    buckets = words // _BUCKET
    for i in range(many):
        if i + AHEAD < many:
            coming = _home(keys[i + AHEAD], buckets) * _BUCKET
            prefetch(lines, coming, 0)
            prefetch(lines, coming + _BUCKET, 0)  # where what moves up may be
        at = _home(keys[i], buckets) * _BUCKET
        here = matches(table, at, keys[i])
        while here == _ZERO and matches(table, at, _ZERO) == _ZERO:
            at = _after(at, words)
            here = matches(table, at, keys[i])
        if here != _ZERO:
            _close_gap(table, at, at + lowest(here))


@kernel
def _close_gap(table, at, hole) -> None:  # type: ignore[no-untyped-def]
    """Empty the entry `hole` of the bucket `at`. Whoever stands further on because that bucket was
    full moves into it, if nothing else leads to where it stands; and so on from there."""
    words = np.uint64(table.shape[0])
    full = matches(table, at, _ZERO) == _ZERO
    further = at
    while full:
        further = _after(further, words)
        full = matches(table, further, _ZERO) == _ZERO
        distance = _distance(at, further, words)
        for entry in range(further, further + _VALUES):
            key = table[entry]
            if key == _ZERO:
                continue
            home = _home(key, words // _BUCKET) * _BUCKET
            if _distance(home, further, words) >= distance:
                table[hole] = key
                table[hole + _VALUES] = table[entry + _VALUES]
                at, hole = further, entry
                break
    table[hole] = _ZERO
    table[hole + _VALUES] = _ZERO


@njit(inline="always")
def _distance(start, end, words):  # type: ignore[no-untyped-def]
    """Words from one bucket on to another, past the table's end if need be."""
    return end - start if end >= start else end + words - start
