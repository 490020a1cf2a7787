"""Where a row is: the slab (hot), the spill (changed and evicted) or RocksDB (last commit).

A row that is hot or spilled hides the one on disk. Rows move here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedding_store.errors import CacheTooSmall, StoreMisuse
from embedding_store.rocks import ROW_PREFIX, Rocks, row_names
from embedding_store.row import RowFormat
from embedding_store.slab import Slab
from embedding_store.spill import Spill


class Admission(Protocol):
    """Decides which keys without a row get one; the others are looked up as zeros."""

    def admit(
        self,
        keys: NDArray[np.uint64],
        slot_numbers: NDArray[np.uint16],
        counts: NDArray[np.int32],
        now_s: int,
    ) -> NDArray[np.bool_]:
        """bool[M] for distinct `keys` [M] without a row; `counts` [M]: occurrences in the batch."""


@dataclass(slots=True)
class Lookup:
    """One batch's rows. U distinct keys in order of first appearance among N ids."""

    keys: NDArray[np.uint64]
    """uint64[U]"""
    slot_numbers: NDArray[np.uint16]
    """uint16[U]: as given, otherwise as the rows' headers say"""
    slab_rows: NDArray[np.int64]
    """int64[U], the store's own; -1 = no row"""
    inverse: NDArray[np.int32]
    """int32[N]: keys[inverse] are the ids as given"""
    counts: NDArray[np.int32]
    """int32[U]: how often each key occurs among the ids"""
    found: NDArray[np.bool_]
    """bool[U]: the row was there before this lookup"""
    admitted: NDArray[np.bool_]
    """bool[U]: there is a row; False = admission let none be created, vectors are zero"""
    batch: int
    counted: bool = field(default=False)
    """Whether the row headers know of this batch: the first `update` tells them."""


@dataclass(slots=True)
class TierCounts:
    """Distinct keys per batch, summed since opening, by where their rows were."""

    hot: int = 0
    spilled: int = 0
    cold: int = 0
    created: int = 0
    refused: int = 0
    """Keys that admission gave no row, once per batch that asked."""
    evicted: int = 0


class Tiers:
    """One thread at a time."""

    def __init__(
        self,
        form: RowFormat,
        rocks: Rocks,
        cache_rows_max: int,
        admission: Admission | None = None,
    ) -> None:
        self.slab = Slab(form, cache_rows_max)
        self.spill = Spill(form.words)
        self.counts = TierCounts()
        self.created_since_commit = 0
        self._form, self._rocks, self._admission = form, rocks, admission
        self._batch = 1

    def lookup(
        self, ids: NDArray[np.uint64], slot_numbers: NDArray[np.uint16] | None, now_s: int
    ) -> Lookup:
        """Make the rows of `ids` hot, creating missing ones. CacheTooSmall changes nothing.

        Whatever else fails (a read of the disk), no row is lost and none is created.
        """
        batch = self._batch + 1
        resolved = self.slab.resolve(ids, batch)
        if resolved is None:
            raise CacheTooSmall(len(np.unique(ids)), self.slab.capacity)
        self._batch = batch
        unique, missed = len(resolved.keys), resolved.misses
        given = np.zeros(unique, np.uint16)
        if slot_numbers is not None:
            given[resolved.inverse[::-1]] = slot_numbers[::-1]  # a key's first occurrence decides
        lookup = Lookup(
            keys=resolved.keys,
            slot_numbers=given,
            slab_rows=resolved.slots,
            inverse=resolved.inverse,
            counts=resolved.counts,
            found=np.ones(unique, np.bool_),
            admitted=np.ones(unique, np.bool_),
            batch=batch,
        )
        self.counts.hot += unique - len(missed)
        if len(missed):
            self._fetch(lookup, missed, now_s)
        if slot_numbers is None and self._form.layout.slots:
            lookup.slot_numbers = self.slab.slot_numbers(lookup.slab_rows)
        return lookup

    def _fetch(self, lookup: Lookup, missed: NDArray[np.int64], now_s: int) -> None:
        """Bring rows that are not in the slab, or make them; `missed` are positions among keys."""
        keys = lookup.keys[missed]
        try:
            rows, spilled, created, refused = self._load(
                keys, lookup.slot_numbers[missed], lookup.counts[missed], now_s
            )
        except BaseException:
            self.slab.forget(keys)
            raise
        kept = ~refused
        self.slab.forget(keys[refused])
        many = len(rows)
        slots, victim_rows, victim_keys, evicted = self.slab.make_room(many, lookup.batch)
        dirty = (spilled | created)[kept]
        self.slab.admit(keys[kept], slots, rows, dirty, lookup.batch)
        self.spill.remove(keys[spilled])
        self.spill.add(victim_keys, victim_rows)
        lookup.slab_rows[missed[kept]] = slots
        lookup.admitted[missed[refused]] = False
        lookup.found[missed] = ~(created | refused)
        self.counts.evicted += evicted

    def _load(
        self,
        keys: NDArray[np.uint64],
        slot_numbers: NDArray[np.uint16],
        counts: NDArray[np.int32],
        now_s: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """For keys [N] not in the slab: (rows float32[M, words], spilled, created, refused [N]).

        There are rows for all that are not refused, in order.
        """
        rows = np.empty((len(keys), self._form.words), np.float32)
        spilled_rows, spilled = self.spill.find(keys)
        rest = np.flatnonzero(~spilled)
        cold_rows, cold = self._rocks.get_rows(keys[rest], self._form.words)
        new = rest[~cold]
        created = np.zeros(len(keys), np.bool_)
        refused = np.zeros(len(keys), np.bool_)
        created[new] = True
        if self._admission is not None and len(new):
            admitted = self._admission.admit(keys[new], slot_numbers[new], counts[new], now_s)
            created[new] = admitted
            refused[new] = ~admitted
        rows[spilled] = spilled_rows
        rows[rest[cold]] = cold_rows
        rows[created] = self._form.fresh(keys[created], slot_numbers[created], now_s)
        self.counts.spilled += len(spilled_rows)
        self.counts.cold += len(cold_rows)
        many = int(created.sum())
        self.counts.created += many
        self.counts.refused += int(refused.sum())
        self.created_since_commit += many
        return rows[~refused], spilled, created, refused

    def refuse_stale(self, lookup: Lookup) -> None:
        """Raises StoreMisuse unless `lookup` is one of the two newest; older rows may move."""
        if lookup.batch + 1 < self._batch:
            raise StoreMisuse(
                f"a lookup older than the last two: lookup=`{lookup.batch}` newest=`{self._batch}`"
            )

    def read(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(whole rows float32[N, words], found bool[N]); moves nothing. Not found = undefined."""
        rows = np.empty((len(keys), self._form.words), np.float32)
        slots = self.slab.find(keys)
        found = slots >= 0
        rows[found] = self.slab.rows(slots[found])
        for tier in (self.spill.find, lambda k: self._rocks.get_rows(k, self._form.words)):
            rest = np.flatnonzero(~found)
            there_rows, there = tier(keys[rest])
            rows[rest[there]] = there_rows
            found[rest[there]] = True
        return rows, found

    def changed_rows(self) -> list[tuple[bytes, bytes]]:
        """(database key, row) of every row that differs from the disk, in order of key."""
        slots = self.slab.dirty_slots()
        spilled_keys, spilled_rows = self.spill.all()
        keys = np.concatenate([self.slab.keys(slots), spilled_keys])
        rows = np.concatenate([self.slab.rows(slots), spilled_rows])
        order = np.argsort(keys)
        values = rows[order].view(f"V{self._form.bytes}").ravel().tolist()
        return list(zip(row_names(keys[order]), values, strict=True))

    def all_rows(self) -> Iterator[tuple[int, bytes]]:
        """(key, row) of every row, changed ones as they are now, in order of key."""
        changed = dict(self.changed_rows())
        pending = iter(changed.items())
        upcoming = next(pending, None)
        for name, data in self._rocks.scan(ROW_PREFIX):
            while upcoming is not None and upcoming[0] < name:
                yield _key(upcoming[0]), upcoming[1]
                upcoming = next(pending, None)
            if name not in changed:
                yield _key(name), data
        while upcoming is not None:
            yield _key(upcoming[0]), upcoming[1]
            upcoming = next(pending, None)

    def committed(self) -> None:
        """Every changed row is on disk now."""
        self.slab.committed()
        self.spill.committed()
        self.created_since_commit = 0


def _key(name: bytes) -> int:
    return int.from_bytes(name[1:], "big")
