"""Where a row is: the slab (hot), the spill (changed and evicted) or RocksDB (last commit).

A row that is hot or spilled hides the one on disk. Rows move here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedding_store.errors import CacheTooSmall, StoreMisuse
from embedding_store.rocks import ROW_PREFIX, Rocks, row_names
from embedding_store.row import RowFormat
from embedding_store.slab import Slab
from embedding_store.spill import Spill


@dataclass(slots=True)
class Lookup:
    """One batch's rows. U distinct keys in order of first appearance among N ids."""

    keys: NDArray[np.uint64]
    """uint64[U]"""
    slots: NDArray[np.int64]
    """int64[U], the store's own"""
    inverse: NDArray[np.int32]
    """int32[N]: keys[inverse] are the ids as given"""
    counts: NDArray[np.int32]
    """int32[U]: how often each key occurs among the ids"""
    found: NDArray[np.bool_]
    """bool[U]: False = this lookup created the row"""
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
    evicted: int = 0


class Tiers:
    """One thread at a time."""

    def __init__(self, form: RowFormat, rocks: Rocks, cache_rows_max: int) -> None:
        self.slab = Slab(form, cache_rows_max)
        self.spill = Spill(form.words)
        self.counts = TierCounts()
        self.created_since_commit = 0
        self._form, self._rocks = form, rocks
        self._batch = 1  # so that an unused slot (0) never looks pinned

    def lookup(self, ids: NDArray[np.uint64], now_s: int) -> Lookup:
        """Make the rows of `ids` hot, creating missing ones. CacheTooSmall changes nothing.

        Whatever else fails (a read of the disk), no row is lost and none is created.
        """
        batch = self._batch + 1
        resolved = self.slab.resolve(ids, batch)
        if resolved is None:
            raise CacheTooSmall(len(np.unique(ids)), self.slab.capacity)
        self._batch = batch
        missed = resolved.misses
        found = np.ones(len(resolved.keys), np.bool_)
        self.counts.hot += len(resolved.keys) - len(missed)
        if len(missed):
            keys = resolved.keys[missed]
            try:
                rows, spilled, created = self._load(keys, now_s)
            except BaseException:
                self.slab.forget(resolved)
                raise
            slots, victim_rows, victim_keys, evicted = self.slab.make_room(len(missed), batch)
            self.slab.admit(keys, slots, rows, spilled | created, batch)
            self.spill.remove(keys[spilled])
            self.spill.add(victim_keys, victim_rows)
            resolved.slots[missed] = slots
            found[missed] = ~created
            self.counts.evicted += evicted
        return Lookup(
            resolved.keys, resolved.slots, resolved.inverse, resolved.counts, found, batch
        )

    def _load(
        self, keys: NDArray[np.uint64], now_s: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
        """(rows float32[N, words], spilled bool[N], created bool[N]) of keys not in the slab."""
        rows = np.empty((len(keys), self._form.words), np.float32)
        spilled_rows, spilled = self.spill.find(keys)
        rest = np.flatnonzero(~spilled)
        cold_rows, cold = self._rocks.get_rows(keys[rest], self._form.words)
        created = np.zeros(len(keys), np.bool_)
        created[rest[~cold]] = True
        rows[spilled] = spilled_rows
        rows[rest[cold]] = cold_rows
        rows[created] = self._form.fresh(keys[created], now_s)
        self.counts.spilled += len(spilled_rows)
        self.counts.cold += len(cold_rows)
        new = int(created.sum())
        self.counts.created += new
        self.created_since_commit += new
        return rows, spilled, created

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
