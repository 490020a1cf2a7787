"""Key -> slot by open addressing, with a batch's de-duplication fused into the same pass.

    entry = uint64[2]:  key  |  slot (high 32 bits), position in the batch (low 32 bits)

An entry is 16 bytes, a quarter of a cache line, so one random access per id yields its slot,
whether the id was seen before in this batch, and where. The position is believed only if
`unique[position]` is this very key: a left-over from an earlier batch cannot pass that test, so
nothing is ever swept.
Linear probing, deletion by shifting back, load at most 0.6 (0.9 while a batch is being resolved).
A key's home is the top of its hash times the table's size, so the size need not be a power of two:
27 bytes a key, not 32 to 64.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedding_store.kernel import kernel
from embedding_store.pages import zeros
from embedding_store.prefetch import prefetch

ABSENT: Final = 0xFFFFFFFF
"""The slot of a key that is in the table but has no slot yet: missed by the batch under way."""
MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
LOAD: Final = 0.6
AHEAD: Final = 48
"""Entries asked for ahead of their use: enough to cover a memory access."""


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
        size = max(16, int(capacity / LOAD) + 1)
        assert size < 1 << 32, "slots are 32-bit numbers"
        self._table: NDArray[np.uint64] = zeros((size, 2), np.uint64)

    def resolve(self, ids: NDArray[np.uint64], *, unique_max: int) -> Resolved | None:
        """De-duplicate and find. Missed keys stay as placeholders: `assign` or `delete` them.

        None, with the table as before, if there are more than `unique_max` distinct keys.
        """
        resolved = Resolved(len(ids))
        unique, missed = _resolve(
            self._table,
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


@kernel
def _home(key, size):  # type: ignore[no-untyped-def]
    """Where a key belongs: its hash's top 32 bits scaled to the table; ascending with the hash."""
    return (((key * MULTIPLIER) >> np.uint64(32)) * size) >> np.uint64(32)


@kernel
def _resolve(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    table, ids, unique_max, unique, slots, inverse, counts, misses
) -> Any:
    size, one, entries = np.uint64(table.shape[0]), np.uint64(1), table.reshape(-1)
    low, high = np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFF00000000)
    many, found, missed = ids.shape[0], 0, 0
    for i in range(many):
        if i + AHEAD < many:
            prefetch(table, np.int64(_home(ids[i + AHEAD], size)), 0)
        key = ids[i]
        at = _home(key, size)
        while entries[at << one] != key and entries[at << one] != 0:
            at = at + one if at + one < size else np.uint64(0)
        value = (at << one) + one
        there, new = entries[value], entries[value - one] == 0
        if not new:
            position = there & low
            if position < np.uint64(found) and unique[position] == key:
                inverse[i] = np.int32(position)
                counts[position] += 1
                continue
        if found == unique_max:
            return -found, missed
        if new:
            entries[value - one] = key
            there = high
        entries[value] = (there & high) | np.uint64(found)
        slot = np.int64(there >> np.uint64(32))
        if slot == ABSENT:
            slot = np.int64(-1)
            misses[missed] = found
            missed += 1
        unique[found] = key
        slots[found] = slot
        counts[found] = 1
        inverse[i] = found
        found += 1
    return found, missed


@kernel
def _find(table, keys, slots) -> None:  # type: ignore[no-untyped-def]
    size, one = np.uint64(table.shape[0]), np.uint64(1)
    many = keys.shape[0]
    for i in range(many):
        if i + AHEAD < many:
            prefetch(table, np.int64(_home(keys[i + AHEAD], size)), 0)
        key = keys[i]
        at = _home(key, size)
        while table[at, 0] != key and table[at, 0] != 0:
            at = at + one if at + one < size else np.uint64(0)
        slots[i] = np.int64(table[at, 1] >> np.uint64(32)) if table[at, 0] == key else -1


@kernel
def _assign(table, keys, slots) -> None:  # type: ignore[no-untyped-def]
    size, one = np.uint64(table.shape[0]), np.uint64(1)
    low, many = np.uint64(0xFFFFFFFF), keys.shape[0]
    for i in range(many):
        if i + AHEAD < many:
            prefetch(table, np.int64(_home(keys[i + AHEAD], size)), 0)
        key = keys[i]
        at = _home(key, size)
        while table[at, 0] != key and table[at, 0] != 0:
            at = at + one if at + one < size else np.uint64(0)
        table[at, 0] = key
        table[at, 1] = (np.uint64(slots[i]) << np.uint64(32)) | (table[at, 1] & low)


@kernel
def _delete(table, keys) -> None:  # type: ignore[no-untyped-def]
    size, one = np.uint64(table.shape[0]), np.uint64(1)
    many = keys.shape[0]
    for i in range(many):
        if i + AHEAD < many:
            prefetch(table, np.int64(_home(keys[i + AHEAD], size)), 0)
        hole = _home(keys[i], size)
        while table[hole, 0] != keys[i] and table[hole, 0] != 0:
            hole = hole + one if hole + one < size else np.uint64(0)
        if table[hole, 0] == 0:
            continue
        at = hole
        while True:  # pull back every later entry of the run that may stand in the hole
            at = at + one if at + one < size else np.uint64(0)
            if table[at, 0] == 0:
                break
            home = _home(table[at, 0], size)
            from_home = at - home if at >= home else at + size - home
            from_hole = at - hole if at >= hole else at + size - hole
            if from_home >= from_hole:
                table[hole, 0] = table[at, 0]
                table[hole, 1] = table[at, 1]
                hole = at
        table[hole, 0] = 0
        table[hole, 1] = 0
