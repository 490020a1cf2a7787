"""Key -> slot by open addressing, with a batch's de-duplication fused into the same pass.

    entry = uint64[2]:  key  |  slot (high 32 bits), position in the batch (low 32 bits)

An entry is 16 bytes, a quarter of a cache line, so one random access per id yields its slot,
whether the id was seen before in this batch, and where. The position is believed only if
`unique[position]` is this very key: a left-over from an earlier batch cannot pass that test, so
nothing is ever swept.
Linear probing, deletion by shifting back, load at most 1/2 (3/4 while a batch is being resolved).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from embedding_store.prefetch import prefetch

ABSENT: Final = 0xFFFFFFFF
"""The slot of a key that is in the table but has no slot yet: missed by the batch under way."""
MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
AHEAD: Final = 24
"""Entries asked for ahead of their use: enough to cover a memory access, measured flat 16-32."""


class Resolved:
    """A batch's distinct keys [U] in order of first appearance, and how its N ids map to them."""

    def __init__(self, ids: int) -> None:
        self.keys: NDArray[np.uint64] = np.empty(ids, np.uint64)
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
    """A table for at most `capacity` keys, which also survives `capacity`/2 missed ones."""

    def __init__(self, capacity: int) -> None:
        bits = max(4, int(2 * capacity - 1).bit_length())
        self._table: NDArray[np.uint64] = np.zeros((1 << bits, 2), np.uint64)
        self._shift = np.uint64(64 - bits)

    def resolve(self, ids: NDArray[np.uint64], *, unique_max: int) -> Resolved | None:
        """De-duplicate and find. Missed keys stay as placeholders: `assign` or `delete` them.

        None, with the table as before, if there are more than `unique_max` distinct keys.
        """
        resolved = Resolved(len(ids))
        unique, missed = _resolve(
            self._table,
            self._shift,
            ids,
            unique_max,
            resolved.keys,
            resolved.slots,
            resolved.inverse,
            resolved.counts,
            resolved.misses,
        )
        resolved.cut(abs(unique), missed)
        if unique < 0:
            self.delete(resolved.keys[resolved.misses])
            return None
        return resolved

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Slots int64[N], -1 where absent; changes nothing."""
        slots = np.empty(len(keys), np.int64)
        _find(self._table, self._shift, keys, slots)
        return slots

    def assign(self, keys: NDArray[np.uint64], slots: NDArray[np.int64]) -> None:
        """Set the slots of `keys`, inserting those that are absent."""
        _assign(self._table, self._shift, keys, slots)

    def delete(self, keys: NDArray[np.uint64]) -> None:
        """Remove `keys`; absent ones are passed over."""
        _delete(self._table, self._shift, keys)

    def clear(self) -> None:
        self._table[:] = 0


@njit(nogil=True, cache=True)
def _resolve(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    table, shift, ids, unique_max, unique, slots, inverse, counts, misses
) -> Any:
    mask = np.uint64(table.shape[0] - 1)
    low = np.uint64(0xFFFFFFFF)
    high = np.uint64(0xFFFFFFFF00000000)
    many, found, missed = ids.shape[0], 0, 0
    for i in range(many):
        if i + AHEAD < many:
            prefetch(table, np.int64((ids[i + AHEAD] * MULTIPLIER) >> shift), 0)
        key = ids[i]
        at = (key * MULTIPLIER) >> shift
        while table[at, 0] != key and table[at, 0] != 0:
            at = (at + np.uint64(1)) & mask
        new = table[at, 0] == 0
        if not new:
            position = np.int64(table[at, 1] & low)
            if position < found and unique[position] == key:
                inverse[i] = position
                counts[position] += 1
                continue
        if found == unique_max:
            return -found, missed
        if new:
            table[at, 0] = key
            slot = np.int64(-1)
            table[at, 1] = high | np.uint64(found)
        else:
            slot = np.int64(table[at, 1] >> np.uint64(32))
            table[at, 1] = (table[at, 1] & high) | np.uint64(found)
        if slot == -1:
            misses[missed] = found
            missed += 1
        unique[found] = key
        slots[found] = slot
        counts[found] = 1
        inverse[i] = found
        found += 1
    return found, missed


@njit(nogil=True, cache=True)
def _find(table, shift, keys, slots) -> None:  # type: ignore[no-untyped-def]
    mask = np.uint64(table.shape[0] - 1)
    many = keys.shape[0]
    for i in range(many):
        if i + AHEAD < many:
            prefetch(table, np.int64((keys[i + AHEAD] * MULTIPLIER) >> shift), 0)
        key = keys[i]
        at = (key * MULTIPLIER) >> shift
        while table[at, 0] != key and table[at, 0] != 0:
            at = (at + np.uint64(1)) & mask
        slots[i] = np.int64(table[at, 1] >> np.uint64(32)) if table[at, 0] == key else -1


@njit(nogil=True, cache=True)
def _assign(table, shift, keys, slots) -> None:  # type: ignore[no-untyped-def]
    mask = np.uint64(table.shape[0] - 1)
    low = np.uint64(0xFFFFFFFF)
    for i in range(keys.shape[0]):
        key = keys[i]
        at = (key * MULTIPLIER) >> shift
        while table[at, 0] != key and table[at, 0] != 0:
            at = (at + np.uint64(1)) & mask
        table[at, 0] = key
        table[at, 1] = (np.uint64(slots[i]) << np.uint64(32)) | (table[at, 1] & low)


@njit(nogil=True, cache=True)
def _delete(table, shift, keys) -> None:  # type: ignore[no-untyped-def]
    mask = np.uint64(table.shape[0] - 1)
    one = np.uint64(1)
    for i in range(keys.shape[0]):
        hole = (keys[i] * MULTIPLIER) >> shift
        while table[hole, 0] != keys[i] and table[hole, 0] != 0:
            hole = (hole + one) & mask
        if table[hole, 0] == 0:
            continue
        at = hole
        while True:  # pull back every later entry of the run that may stand in the hole
            at = (at + one) & mask
            if table[at, 0] == 0:
                break
            home = (table[at, 0] * MULTIPLIER) >> shift
            if ((at - home) & mask) >= ((at - hole) & mask):
                table[hole, 0] = table[at, 0]
                table[hole, 1] = table[at, 1]
                hole = at
        table[hole, 0] = 0
        table[hole, 1] = 0
