"""The embedding store: rows by key, fast while hot, durable as of one commit.

A row is in exactly one of three places that count: the slab (hot), a spill (changed, evicted,
waiting for its commit) or RocksDB (as of the last commit). Nothing uncommitted reaches RocksDB;
`commit` writes changed rows, deletions, staged state and the commit record as one: a synced batch,
or, when there is much of it, a table file that a child process builds while training goes on. After
a crash the store is exactly what the last commit made it.

Given the same calls with the same arguments, every byte of every row and record is the same: new
rows are drawn from their key, times come from the caller, sums have a fixed order, and eviction
never shows.

One thread at a time, but records of state may be read by another meanwhile. A failed write
poisons the store: memory would be ahead of the disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedding_store import fanout
from embedding_store.audit import known_or_new, verify_rows, write_reached
from embedding_store.commit import CommitRecord
from embedding_store.digest import content_digest
from embedding_store.errors import (
    CacheTooSmall,
    StoreError,
    StoreLocked,
    StoreMisuse,
    StorePoisoned,
    StoreUnreadable,
)
from embedding_store.eviction import Eviction
from embedding_store.expiry import Expired, ExpiryPolicy, Sweep
from embedding_store.flags import NO_COUNTS
from embedding_store.keys import checked_keys
from embedding_store.layout import RowLayout
from embedding_store.owner import OwnerLock
from embedding_store.pending import Commits, PendingCommit
from embedding_store.rocks import Reads, Rocks
from embedding_store.row import Header, Headers, RowFormat, SetPlace, SetValues, seconds
from embedding_store.sealed import sync_directory
from embedding_store.slab import Slab, make_slab
from embedding_store.state import StagedState
from embedding_store.stats import StoreStats
from embedding_store.tiers import Admission, Lookup, Tiers, slab_rows

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Admission", "EmbeddingStore", "Lookup", "PendingCommit", "Row", "StoreStats"]

DATABASE: Final = "rocks"
SWEEP_ROWS: Final = 100_000
BUILDING: Final = "building"
TABLE_ROWS_MIN: Final = 4096
"""Commits of fewer rows go through RocksDB's log: many small tables make work for compaction. About
here both take as long (`headwater bench store --part commit`); only the log holds training up."""

T = TypeVar("T")

Row = tuple[int, Header, dict[str, SetValues]]
"""(key, header, {set: its values})"""


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
        slab: Slab,
        admission: Admission | None,
        table_rows_min: int,
    ) -> None:
        self.path = path
        self.layout = form.layout
        self._lock, self._rocks, self._form = lock, rocks, form
        self._tiers = Tiers(form, rocks, slab, admission)
        self._state = StagedState(rocks)
        if admission is not None:
            admission.bind(self.layout, self._state)
        tables = path / BUILDING
        self._commits = Commits(
            rocks, self._tiers, self._state, record, directory=tables, table_rows_min=table_rows_min
        )
        self._poison: str | None = None
        self._closed = False
        self._gradients_not_finite = 0

    @staticmethod
    def open(
        path: Path,
        layout: RowLayout,
        *,
        cache_rows_max: int,
        owner: str,
        admission: Admission | None = None,
        eviction: Eviction = "clock",
        device: str = "memory",
        reads: Reads = "auto",
        table_rows_min: int = TABLE_ROWS_MIN,
    ) -> EmbeddingStore:
        """Open, or create, the store in directory `path` as its only writer.

        Slots that `layout` names for the first time get their numbers here, for good; `layout` of
        the store has them all. `owner` is what a refused second opener is told; without an
        `admission` every key gets a row. Which rows leave a full slab (`eviction`), where vectors
        lie (`device`: "memory", torch's "cpu" or "cuda"), how cold rows are read and that commits
        under `table_rows_min` rows go through the log change no byte of any result. Raises
        StoreLocked, LayoutMismatch, StoreCorrupt, StoreUnreadable, CacheTooSmall (under two rows).
        """
        if cache_rows_max < 2:
            raise CacheTooSmall(1, cache_rows_max)
        try:
            (path := Path(path)).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnreadable(f"cannot create the store's directory: path=`{path}`") from error
        lock = OwnerLock(path, owner)
        try:
            rocks = Rocks(path / DATABASE, reads=reads)
        except StoreLocked:
            lock.release()
            raise StoreLocked(path, "another program, by RocksDB's LOCK file", -1) from None
        except BaseException:
            lock.release()
            raise
        try:
            record, adopted = known_or_new(path, rocks, layout)
            form = RowFormat(adopted)
            return EmbeddingStore(
                path=path,
                lock=lock,
                rocks=rocks,
                form=form,
                record=record,
                slab=make_slab(form, cache_rows_max, eviction, device),
                admission=admission,
                table_rows_min=table_rows_min,
            )
        except BaseException:
            rocks.close()
            lock.release()
            raise

    # -- rows ---------------------------------------------------------------------------------

    def lookup(
        self,
        keys: NDArray[np.uint64],
        *,
        slots: NDArray[np.uint16] | None = None,
        now_ms: int,
    ) -> Lookup:
        """De-duplicate uint64[N] `keys`, make their rows hot, create those that are missing.

        `slots` uint16[N] are `layout.slot_number` of each key's slot: a created row carries its
        number, and says which sets it has; None = unnamed, and rows that exist say their own. The
        result may be gathered from and updated until the second `lookup` after it. A created row
        exists from here on (its header says `now_ms`, count 0) and is durable after `commit`.
        Raises CacheTooSmall, changing nothing, if more than half the slab would be needed.
        """
        self._refuse_if_unusable()
        if slots is not None:
            self.layout.check_slot_numbers(slots, len(keys))
        return self._tiers.lookup(checked_keys(keys), slots, seconds(now_ms))

    def prefetch(self, keys: NDArray[np.uint64]) -> None:
        """Start to read the cold rows among uint64[N] `keys`, which a coming `lookup` will want.

        No result depends on it. Two batches at most; what it meets, the next look-up raises.
        """
        self._refuse_if_unusable()
        self._tiers.prefetch(checked_keys(keys))

    def remove(self, keys: NDArray[np.uint64]) -> int:
        """Delete the rows of uint64[N] `keys`; how many there were. Durable after `commit`.

        A later look-up creates them anew. Look-ups made before this must not be used any more.
        """
        self._refuse_if_unusable()
        distinct = np.unique(checked_keys(keys))
        there = distinct[self._tiers.read(distinct)[1]]
        self._tiers.drop(there)
        return len(there)

    def sweep(self, policy: ExpiryPolicy, now_ms: int, *, dry_run: bool = False) -> Sweep:
        """A walk that `policy` asks for, as of `now_ms`; take it with `expire_slice`."""
        now_s, row_bytes = seconds(now_ms), self._form.bytes
        return Sweep(policy, self.layout, row_bytes, now_s, dry_run=dry_run)

    def expire_slice(self, sweep: Sweep, rows: int) -> Headers:
        """Walk `rows` committed rows on; the headers of those deleted, durable after `commit`.

        If any was, look-ups made before this must not be used any more.
        """
        self._refuse_if_unusable()
        return sweep.step(self._tiers, rows)

    def expire(self, policy: ExpiryPolicy, now_ms: int, *, dry_run: bool = False) -> Expired:
        """A whole sweep at once."""
        sweep = self.sweep(policy, now_ms, dry_run=dry_run)
        while not sweep.finished:
            self.expire_slice(sweep, SWEEP_ROWS)
        return sweep.found

    def gather(self, lookup: Lookup, set_name: str) -> NDArray[np.float32]:
        """The set's vectors float32[U, D], a copy, in the order of `lookup.keys`; zeros where
        there is no row, or its slot lacks the set: ask `has_set`, not zero."""
        place = self._place(lookup, set_name)
        return self._tiers.slab.gather(place, slab_rows(lookup, place))

    def gather_tensor(self, lookup: Lookup, set_name: str) -> Tensor:
        """`gather` where the vectors lie, for a store opened with a `device` of torch."""
        place = self._place(lookup, set_name)
        return self._tiers.slab.gather_tensor(place, slab_rows(lookup, place))

    def gather_each(self, lookup: Lookup, set_name: str) -> NDArray[np.float32]:
        """The set's vectors float32[N, D], one per id as given: `gather(...)[lookup.inverse]`."""
        return fanout.expand(self.gather(lookup, set_name), lookup.inverse)

    def update_each(
        self, lookup: Lookup, set_name: str, grad: NDArray[np.float32], *, now_ms: int
    ) -> None:
        """`update` by `grad` float32[N, D], one per id as given: summed per key first, in order."""
        summed = fanout.reduce(grad, lookup.inverse, len(lookup.keys))
        self.update(lookup, set_name, summed, now_ms=now_ms)

    def has_set(self, lookup: Lookup, set_name: str) -> NDArray[np.bool_]:
        """bool[U]: whether there is a row whose slot has the set."""
        return slab_rows(lookup, self._form.place(set_name)) >= 0

    def update(
        self, lookup: Lookup, set_name: str, grad: NDArray[np.float32] | Tensor, *, now_ms: int
    ) -> None:
        """One optimizer step on the set: `grad` float32[U, D], already summed per distinct key.

        The first update of a lookup also advances the row headers: counts, and `last_touched` to
        `now_ms`. Rows without the set are passed over; one whose step would not be finite, too.
        """
        place, now_s = self._place(lookup, set_name), seconds(now_ms)
        fanout.check_gradient(grad, (len(lookup.keys), place.spec.dim), set_name)
        slab, counts = self._tiers.slab, NO_COUNTS if lookup.counted else lookup.counts
        slots = slab_rows(lookup, place)
        # The first update counts every row, also such as lack this set.
        every = slots if lookup.counted else lookup.slab_rows
        skipped = slab.learn_and_update(place, every, slots, grad, counts, now_s, lookup.batch)
        lookup.counted = True
        self._gradients_not_finite += skipped

    def peek(
        self, keys: NDArray[np.uint64], set_name: str
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(vectors float32[N, D], found bool[N]) as of now; creates, moves and counts nothing.

        In the order of `keys`, which may repeat. Rows not found are zero: ask `found`, not zero.
        """
        self._refuse_if_unusable()
        return self._tiers.peek(checked_keys(keys), set_name)

    def rows(self) -> Iterator[Row]:
        """Every row, not yet committed ones included, in order of key: (key, header, sets).

        `sets[name]` = (vector float32[D], optimizer state float32[S]) of the sets that the row's
        slot has. For audits and exports; call nothing that changes the store before the iterator
        ends.
        """
        for key, data in self._tiers.all_rows():
            yield key, *self._form.decoded(data)

    def content_digest(self) -> dict[str, str]:
        """XXH3-128 of all rows ("rows") and of each space of state ("state/NAME").

        Equal digests = equal bytes, whatever the files of RocksDB look like.
        """
        self._refuse_if_unusable()
        return content_digest(self._tiers.all_rows(), self._state)

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
        self.put_many(space, [key], [bytes(value)])

    def put_many(self, space: str, keys: Iterable[bytes], values: Iterable[bytes]) -> None:
        """`put` of many at once."""
        self._refuse_if_unusable()
        self._state.put_many(space, keys, values)

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
        return self._commits.newest.id

    def commit(self) -> int:
        """Write changed rows, staged state and the record of it as one; returns its id after fsync.

        Any failure poisons the store (StorePoisoned, now and from now on).
        """
        return self.commit_begin().wait()

    def commit_begin(self) -> PendingCommit:
        """Take what a commit has to write; call `wait` before the next one, and go on meanwhile.

        A row or record that changes from here on belongs to the next commit; all are looked up as
        ever. Durable when `wait` returns, and not before; a failure poisons the store. A small
        commit is written before this returns.
        """
        self._refuse_if_unusable()
        self._commits.refuse_second()
        written = self._or_poison(self._commits.begin)
        return PendingCommit(self.commit_id + 1, self._settle, written)

    def _settle(self) -> int:
        """Wait for the commit under way, if any; the newest commit's id."""
        self._refuse_if_unusable()
        return self._or_poison(self._commits.settle)

    def checkpoint(self, target: Path) -> None:
        """A copy of the last commit in directory `target`, which must not exist, by hard links.

        It appears whole or not at all, durable on return. A failure poisons the store: same disk.
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
            write_reached(building, self._commits.newest)
            building.rename(target)
            sync_directory(target.parent)

        self._or_poison(build)

    def table_ranges(self) -> dict[str, tuple[bytes, bytes]]:
        """File name of each table on disk now -> (first, last) database key in it."""
        return self._rocks.table_ranges()

    def verify(self) -> int:
        """Read everything back from disk; returns the number of rows.

        Checks RocksDB's block checksums, the commit record's, each row's size and key, and that
        there are as many rows as the last commit counted. Raises StoreCorrupt at the first fault.
        """
        self._settle()  # rows are counted against the record that names them
        return verify_rows(self._rocks, self._form)

    def stats(self) -> StoreStats:
        slab, spill, counts = self._tiers.slab, self._tiers.spill, self._tiers.counts
        return StoreStats(
            rows_total=self._commits.rows_total,
            rows_hot=len(slab),
            rows_spilled=len(spill) + len(self._tiers.waiting),
            rows_dirty=self._tiers.rows_unsaved,
            cache_rows_max=slab.capacity,
            row_bytes=self._form.bytes,
            commit_id=self._commits.newest.id,
            lookups_hot=counts.hot,
            lookups_spilled=counts.spilled,
            lookups_cold=counts.cold,
            rows_created=counts.created,
            rows_refused=counts.refused,
            rows_evicted=counts.evicted,
            gradients_not_finite=self._gradients_not_finite,
            rows_committed=self._commits.rows_written,
            table_bytes=self._commits.table_bytes,
        )

    def close(self) -> None:
        """Let go of the files and the lock; what was not committed is gone. Idempotent.

        A commit under way is waited for, as nobody can call it back.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._tiers.close()
            self._commits.close()
            self._tiers.cold.close()
            self._rocks.close()
            write_reached(self.path, self._commits.newest)
        except StoreError:
            if self._poison is None:
                raise  # a poisoned store said so already, and RocksDB repeats it here
        finally:
            self._lock.release()

    def __enter__(self) -> EmbeddingStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _place(self, lookup: Lookup, set_name: str) -> SetPlace:
        self._refuse_if_unusable()
        self._tiers.refuse_stale(lookup)
        return self._form.place(set_name)

    def _or_poison(self, write: Callable[[], T]) -> T:
        try:
            return write()
        except BaseException as error:
            self._poison = str(error) or type(error).__name__
            if isinstance(error, StoreError | OSError):
                raise StorePoisoned(self._poison) from error
            raise  # an interrupt: nobody knows how far it came

    def _refuse_if_unusable(self) -> None:
        if self._poison is not None:
            raise StorePoisoned(self._poison)
        if self._closed:
            raise StoreMisuse(f"the store is closed: path=`{self.path}`")
