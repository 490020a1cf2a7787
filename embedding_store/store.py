"""The embedding store: rows by key, fast while hot, durable as of one commit.

A row is in exactly one of three places that count: the slab (hot), the spill (changed, evicted,
waiting for its commit) or RocksDB (as of the last commit). Nothing uncommitted reaches RocksDB;
`commit` writes changed rows, staged state and the commit record in one synced batch. After a crash
the store is exactly what the last commit made it.

Given the same calls with the same arguments, every byte of every row and record is the same: new
rows are drawn from their key, times come from the caller, sums have a fixed order, and eviction
never shows.

One thread at a time. A failed write poisons the store: memory would be ahead of the disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from embedding_store.audit import COMMIT_NAME, known_or_new, sync_directory, verify_rows
from embedding_store.commit import CommitRecord, next_record
from embedding_store.errors import (
    CacheTooSmall,
    StoreError,
    StoreLocked,
    StoreMisuse,
    StorePoisoned,
    StoreUnreadable,
)
from embedding_store.keys import RESERVED_KEY
from embedding_store.layout import RowLayout
from embedding_store.owner import OwnerLock
from embedding_store.rocks import ROW_PREFIX, Rocks, Write, row_names
from embedding_store.row import Header, RowFormat, seconds, state_field, vector_field
from embedding_store.slab import Slab
from embedding_store.spill import Spill
from embedding_store.state import StagedState

DATABASE: Final = "rocks"
NO_COUNTS: Final = np.empty(0, np.int32)
OLDEST_LOOKUP: Final = 1
"""A lookup stays valid until the second `lookup` after it: its rows are pinned that long."""

T = TypeVar("T")
Row = tuple[int, Header, dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]]


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


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Counts since opening, unless said otherwise. Of one moment between two calls."""

    rows_total: int
    """In the store now, rows not yet committed included."""
    rows_hot: int
    rows_spilled: int
    rows_dirty: int
    cache_rows_max: int
    row_bytes: int
    commit_id: int
    lookups_hot: int
    """Distinct keys per batch that were in the slab; likewise below."""
    lookups_spilled: int
    lookups_cold: int
    rows_created: int
    rows_evicted: int
    gradients_not_finite: int
    """Row updates left out since a gradient was NaN or infinite."""
    rows_committed: int


class EmbeddingStore:
    """See the module. Build it with `open`."""

    def __init__(
        self,
        *,
        path: Path,
        lock: OwnerLock,
        rocks: Rocks,
        form: RowFormat,
        record: CommitRecord,
        cache_rows_max: int,
    ) -> None:
        self.path = path
        self.layout = form.layout
        self._lock, self._rocks, self._form, self._record = lock, rocks, form, record
        self._slab = Slab(form, cache_rows_max)
        self._spill = Spill(form.words)
        self._state = StagedState(rocks)
        self._batch = OLDEST_LOOKUP + 1  # so that an unused slot's 0 is never a pinned batch
        self._created_since_commit = 0
        self._poison: str | None = None
        self._closed = False
        self._counts = dict.fromkeys(
            ("hot", "spilled", "cold", "created", "evicted", "not_finite", "committed"), 0
        )

    @staticmethod
    def open(path: Path, layout: RowLayout, *, cache_rows_max: int, owner: str) -> EmbeddingStore:
        """Open, or create, the store in directory `path` as its only writer.

        `owner` is what a refused second opener is told. Raises StoreLocked, LayoutMismatch,
        StoreCorrupt, StoreUnreadable, or CacheTooSmall for fewer than two rows.
        """
        if cache_rows_max < 2:
            raise CacheTooSmall(1, cache_rows_max)
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnreadable(f"cannot create the store's directory: path=`{path}`") from error
        lock = OwnerLock(path, owner)
        try:
            rocks = Rocks(path / DATABASE)
        except StoreLocked:
            lock.release()
            raise StoreLocked(path, "another program, by RocksDB's LOCK file", -1) from None
        except BaseException:
            lock.release()
            raise
        try:
            record = known_or_new(path, rocks, layout)
            return EmbeddingStore(
                path=path,
                lock=lock,
                rocks=rocks,
                form=RowFormat(layout),
                record=record,
                cache_rows_max=cache_rows_max,
            )
        except BaseException:
            rocks.close()
            lock.release()
            raise

    # -- rows ---------------------------------------------------------------------------------

    def lookup(self, keys: NDArray[np.uint64], *, now_ms: int) -> Lookup:
        """De-duplicate uint64[N] `keys`, make their rows hot, create those that are missing.

        The result may be gathered from and updated until the second `lookup` after it. A created
        row exists from here on (its header says `now_ms`, count 0) and is durable after `commit`.
        Raises CacheTooSmall, changing nothing, if more than half the slab would be needed.
        """
        self._refuse_if_unusable()
        ids, now_s = _checked(keys), seconds(now_ms)
        batch = self._batch + 1
        resolved = self._slab.resolve(ids, batch)
        if resolved is None:
            raise CacheTooSmall(len(np.unique(ids)), self._slab.capacity)
        self._batch = batch
        missed = resolved.misses
        found = np.ones(len(resolved.keys), np.bool_)
        self._counts["hot"] += len(resolved.keys) - len(missed)
        if len(missed):
            try:
                rows, dirty, created = self._load(resolved.keys[missed], now_s)
            except BaseException:
                self._slab.forget(resolved)
                raise
            slots, spilled_rows, spilled_keys, evicted = self._slab.make_room(len(missed), batch)
            self._slab.admit(resolved.keys[missed], slots, rows, dirty, batch)
            self._spill.add(spilled_keys, spilled_rows)
            self._counts["evicted"] += evicted
            resolved.slots[missed] = slots
            found[missed] = ~created
        return Lookup(
            resolved.keys, resolved.slots, resolved.inverse, resolved.counts, found, batch
        )

    def _load(
        self, keys: NDArray[np.uint64], now_s: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
        """(rows float32[N, words], dirty bool[N], created bool[N]) of keys not in the slab."""
        rows = np.empty((len(keys), self._form.words), np.float32)
        spilled_rows, dirty = self._spill.find(keys)
        rest = np.flatnonzero(~dirty)
        cold_rows, cold = self._rocks.get_rows(keys[rest], self._form.words)
        created = np.zeros(len(keys), np.bool_)
        created[rest[~cold]] = True
        rows[dirty] = spilled_rows
        rows[rest[cold]] = cold_rows
        rows[created] = self._form.fresh(keys[created], now_s)
        self._spill.remove(keys[dirty])
        self._counts["spilled"] += len(spilled_rows)
        self._counts["cold"] += len(cold_rows)
        self._counts["created"] += int(created.sum())
        self._created_since_commit += int(created.sum())
        return rows, dirty | created, created

    def gather(self, lookup: Lookup, set_name: str) -> NDArray[np.float32]:
        """The set's vectors float32[U, D], a copy, in the order of `lookup.keys`."""
        self._refuse_if_unusable()
        self._refuse_if_stale(lookup)
        return self._slab.gather(self._form.place(set_name), lookup.slots)

    def update(
        self, lookup: Lookup, set_name: str, grad: NDArray[np.float32], *, now_ms: int
    ) -> None:
        """One optimizer step on the set: `grad` float32[U, D], already summed per distinct key.

        The first update of a lookup also adds its counts to the row headers and sets
        `last_touched` to `now_ms` (it never falls). A row whose gradient is not finite keeps its
        vector and is counted in `stats`.
        """
        self._refuse_if_unusable()
        self._refuse_if_stale(lookup)
        place, now_s = self._form.place(set_name), seconds(now_ms)
        if grad.shape != (len(lookup.keys), place.spec.dim) or grad.dtype != np.float32:
            raise StoreMisuse(
                f"a gradient of another shape or type: set=`{set_name}` "
                f"expected=`float32[{len(lookup.keys)}, {place.spec.dim}]` "
                f"came=`{grad.dtype}{list(grad.shape)}`"
            )
        counts = NO_COUNTS if lookup.counted else lookup.counts
        skipped = self._slab.update(place, lookup.slots, np.ascontiguousarray(grad), counts, now_s)
        lookup.counted = True
        self._counts["not_finite"] += skipped

    def peek(
        self, keys: NDArray[np.uint64], set_name: str
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(vectors float32[N, D], found bool[N]) as of now; creates, moves and counts nothing.

        In the order of `keys`, which may repeat. Rows not found are zero: ask `found`, not zero.
        """
        self._refuse_if_unusable()
        place = self._form.place(set_name)
        distinct, inverse = np.unique(_checked(keys), return_inverse=True)
        rows, found = self._read(distinct)
        vectors = np.zeros((len(distinct), place.spec.dim), np.float32)
        vectors[found] = rows[found, place.vector_word : place.vector_word + place.spec.dim]
        return vectors[inverse], found[inverse]

    def _read(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Whole rows float32[N, words] wherever they are; those not found are undefined."""
        rows = np.empty((len(keys), self._form.words), np.float32)
        slots = self._slab.find(keys)
        found = slots >= 0
        rows[found] = self._slab.rows(slots[found])
        for tier in (self._spill.find, lambda k: self._rocks.get_rows(k, self._form.words)):
            rest = np.flatnonzero(~found)
            there_rows, there = tier(keys[rest])
            rows[rest[there]] = there_rows
            found[rest[there]] = True
        return rows, found

    def rows(self) -> Iterator[Row]:
        """Every row, not yet committed ones included, in order of key: (key, header, sets).

        `sets[name]` = (vector float32[D], optimizer state float32[S]). For audits and exports; call
        nothing that changes the store before the iterator ends.
        """
        for key, data in self._row_bytes():
            record = np.frombuffer(data, self._form.dtype)[0]
            header = Header(*(int(record[name]) for name in Header.__slots__))
            sets = {
                name: (record[vector_field(name)].copy(), record[state_field(name)].copy())
                for name in self._form.places
            }
            yield key, header, sets

    def content_digest(self) -> dict[str, str]:
        """XXH3-128 of all rows ("rows") and of each space of state ("state/NAME").

        Equal digests = equal bytes, whatever the files of RocksDB look like.
        """
        self._refuse_if_unusable()
        digests = {"rows": xxhash.xxh3_128()}
        for _, data in self._row_bytes():
            digests["rows"].update(data)
        for space in self._state.spaces():
            digest = digests[f"state/{space}"] = xxhash.xxh3_128()
            for name, value in self._state.scan(space):
                digest.update(b"%d:%d:" % (len(name), len(value)) + name + value)
        return {name: digest.hexdigest() for name, digest in digests.items()}

    def _row_bytes(self) -> Iterator[tuple[int, bytes]]:
        """(key, row) in order of key: the rows on disk overlaid with the changed ones."""
        self._refuse_if_unusable()
        changed = dict(self._changed_rows())
        pending = iter(changed.items())
        upcoming = next(pending, None)
        for name, data in self._rocks.scan(ROW_PREFIX):
            while upcoming is not None and upcoming[0] < name:
                yield int.from_bytes(upcoming[0][1:], "big"), upcoming[1]
                upcoming = next(pending, None)
            if name not in changed:
                yield int.from_bytes(name[1:], "big"), data
        while upcoming is not None:
            yield int.from_bytes(upcoming[0][1:], "big"), upcoming[1]
            upcoming = next(pending, None)

    def _changed_rows(self) -> list[tuple[bytes, bytes]]:
        """(database key, row) of every row that differs from the disk, sorted."""
        slots = self._slab.dirty_slots()
        spilled_keys, spilled_rows = self._spill.all()
        keys = np.concatenate([self._slab.keys(slots), spilled_keys])
        rows = np.concatenate([self._slab.rows(slots), spilled_rows])
        order = np.argsort(keys)
        values = rows[order].view(f"V{self._form.bytes}").ravel().tolist()
        return list(zip(row_names(keys[order]), values, strict=True))

    # -- durable state ------------------------------------------------------------------------

    def get(self, space: str, key: bytes) -> bytes | None:
        """The record's value, staged changes included; None if there is none."""
        return self.get_many(space, [key])[0]

    def get_many(self, space: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of `keys`: one read of the disk instead of N."""
        self._refuse_if_unusable()
        return self._state.get_many(space, keys)

    def put(self, space: str, key: bytes, value: bytes) -> None:
        """Stage; visible to `get` and `scan` at once, durable after `commit`."""
        self._refuse_if_unusable()
        self._state.put(space, key, value)

    def delete(self, space: str, key: bytes) -> None:
        """Stage a deletion; an absent record is fine."""
        self._refuse_if_unusable()
        self._state.delete(space, key)

    def scan(self, space: str) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of the whole space in order of key, staged changes included."""
        self._refuse_if_unusable()
        return self._state.scan(space)

    # -- durability ---------------------------------------------------------------------------

    @property
    def commit_id(self) -> int:
        """Of the newest commit on disk; 0 = none yet."""
        return self._record.id

    def commit(self) -> int:
        """Write changed rows, staged state and the record of it as one; returns its id after fsync.

        Any failure poisons the store (StorePoisoned, now and from now on).
        """
        self._refuse_if_unusable()
        rows, state = self._changed_rows(), self._state.writes()
        record = next_record(self._record, rows, state, self._created_since_commit)
        closing: list[Write] = [(COMMIT_NAME, record.encode())]
        self._or_poison(lambda: self._rocks.write([*closing, *rows, *state]))
        self._slab.committed()
        self._spill.committed()
        self._state.committed()
        self._created_since_commit = 0
        self._counts["committed"] += len(rows)
        self._record = record
        return record.id

    def checkpoint(self, target: Path) -> None:
        """A copy of the last commit in directory `target`, which must not exist, by hard links.

        It opens like any store. It appears whole or not at all; returns after fsync of its parent.
        A failure poisons the store, for the disk that refused it is the store's own.
        """
        self._refuse_if_unusable()
        target = Path(target)
        if target.exists():
            raise StoreMisuse(f"a checkpoint's target must not exist: target=`{target}`")
        building = target.with_name(target.name + ".building")

        def build() -> None:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
            self._rocks.checkpoint(building / DATABASE)
            building.rename(target)
            sync_directory(target.parent)

        self._or_poison(build)

    def verify(self) -> int:
        """Read everything back from disk; returns the number of rows.

        Checks RocksDB's block checksums, the commit record's, each row's size and key, and that
        there are as many rows as the last commit counted. Raises StoreCorrupt at the first fault.
        """
        self._refuse_if_unusable()
        return verify_rows(self._rocks, self._form)

    def stats(self) -> StoreStats:
        dirty = len(self._slab.dirty_slots()) + len(self._spill)
        counts = self._counts
        return StoreStats(
            rows_total=self._record.rows_total + self._created_since_commit,
            rows_hot=self._slab.used,
            rows_spilled=len(self._spill),
            rows_dirty=dirty,
            cache_rows_max=self._slab.capacity,
            row_bytes=self._form.bytes,
            commit_id=self._record.id,
            lookups_hot=counts["hot"],
            lookups_spilled=counts["spilled"],
            lookups_cold=counts["cold"],
            rows_created=counts["created"],
            rows_evicted=counts["evicted"],
            gradients_not_finite=counts["not_finite"],
            rows_committed=counts["committed"],
        )

    def close(self) -> None:
        """Let go of the files and the lock; what was not committed is gone. Idempotent."""
        if not self._closed:
            self._closed = True
            self._rocks.close()
            self._lock.release()

    def __enter__(self) -> EmbeddingStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _or_poison(self, write: Callable[[], T]) -> T:
        try:
            return write()
        except (StoreError, OSError) as error:
            self._poison = str(error)
            raise StorePoisoned(self._poison) from error

    def _refuse_if_unusable(self) -> None:
        if self._poison is not None:
            raise StorePoisoned(self._poison)
        if self._closed:
            raise StoreMisuse(f"the store is closed: path=`{self.path}`")

    def _refuse_if_stale(self, lookup: Lookup) -> None:
        if lookup.batch < self._batch - OLDEST_LOOKUP:
            raise StoreMisuse(
                f"a lookup older than the previous one, its rows may have moved: "
                f"lookup=`{lookup.batch}` newest=`{self._batch}`"
            )


def _checked(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    if keys.ndim != 1 or keys.dtype != np.uint64:
        raise StoreMisuse(f"keys must be uint64[N]: came=`{keys.dtype}{list(keys.shape)}`")
    if (keys == RESERVED_KEY).any():
        raise StoreMisuse("key 0 is reserved: make keys with embedding_store.keys.row_keys")
    return np.ascontiguousarray(keys)
