"""Where a row is: the slab (hot), a spill (not on disk and evicted) or RocksDB (last commit).

A row that is hot or spilled hides the one on disk. There are two spills: what changed since the
last commit began, and what a commit under way is writing, which counts until it is done; a row of
the first hides one of the second. Rows move here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from embedding_store.cold_rows import ColdRows
from embedding_store.coming import Coming
from embedding_store.commit import row_keys_of
from embedding_store.errors import CacheTooSmall, StoreMisuse
from embedding_store.flags import CHANGED, PENDING
from embedding_store.layout import RowLayout
from embedding_store.prefetched import Prefetched
from embedding_store.rocks import ROW_PREFIX, Rocks, row_names
from embedding_store.row import HEADER_WORDS, Headers, RowFormat, SetPlace, header_records
from embedding_store.slab import Slab
from embedding_store.spill import Spill
from embedding_store.state import StagedState

SPILL_BYTES_EXPECTED: Final = 1 << 30
"""Address space of a spill, at most, whose rows no growing moves; never more than the slab's."""


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

    def bind(self, layout: RowLayout, state: StagedState) -> None:
        """Called once, when the store has opened: take back what was staged."""

    def stage(self, state: StagedState) -> None:
        """Called before each commit: stage what a restart must bring back."""


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
    """One thread at a time, and beside it `coming`'s worker, which is done before rows move."""

    def __init__(
        self,
        form: RowFormat,
        rocks: Rocks,
        slab: Slab,
        admission: Admission | None = None,
    ) -> None:
        self.words = form.words
        self.cold = ColdRows(rocks, form.words)
        self.slab = slab
        expected = min(slab.capacity, SPILL_BYTES_EXPECTED // form.bytes)
        self.spill = Spill(form.words, expected)
        self.waiting = Spill(form.words, expected)
        """Of the commit under way; empty between commits."""
        self.prefetched = Prefetched(self.cold.read, form.words)
        self.coming = Coming(slab, self._read_ahead)
        self.counts = TierCounts()
        self.rows_gained = 0
        """Created less deleted since the last commit began."""
        self._form, self._rocks, self._admission = form, rocks, admission
        self._batch = 1

    def lookup(
        self, ids: NDArray[np.uint64], slot_numbers: NDArray[np.uint16] | None, now_s: int
    ) -> Lookup:
        """Make the rows of `ids` hot, creating missing ones. CacheTooSmall changes nothing.

        Whatever else fails (a read of the disk), no row is lost and none is created.
        """
        batch = self._batch + 1
        distinct, slots = self.coming.take(ids)
        unique = len(distinct.keys)
        if not self.slab.pin(slots, batch):
            raise CacheTooSmall(unique, self.slab.capacity)
        self._batch = batch
        missed = np.flatnonzero(slots < 0)
        given = np.zeros(unique, np.uint16)
        if slot_numbers is not None:
            given[distinct.inverse[::-1]] = slot_numbers[::-1]  # a key's first occurrence decides
        lookup = Lookup(
            keys=distinct.keys,
            slot_numbers=given,
            slab_rows=slots,
            inverse=distinct.inverse,
            counts=distinct.counts,
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
        rows, marks, created, refused = self._load(
            keys, lookup.slot_numbers[missed], lookup.counts[missed], now_s
        )
        kept = ~refused
        many = len(rows)
        slots, unsaved, unsaved_marks, evicted = self.slab.make_room(many, lookup.batch)
        self.slab.admit(keys[kept], slots, rows, marks[kept], lookup.batch)
        self._keep(unsaved, unsaved_marks)
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
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
        """For keys [N] not in the slab: (rows float32[M, words], marks, created, refused [N]).

        There are rows for all that are not refused, in order. Spilled rows leave their spill: they
        are the slab's from here on.
        """
        in_spill = self.spill.find(keys)
        in_waiting = np.where(in_spill < 0, self.waiting.find(keys), -1)
        rest = np.flatnonzero((in_spill < 0) & (in_waiting < 0))
        rows, there, known = self.prefetched.take(keys)
        unread = rest[~known[rest]]
        if len(unread):
            read, on_disk = self.cold.read(keys[unread])
            rows[unread[on_disk]] = read
            there[unread] = on_disk
        self.counts.cold += int(there[rest].sum())
        marks = np.zeros(len(keys), np.uint8)
        for spill, positions, mark in (
            (self.spill, in_spill, CHANGED),
            (self.waiting, in_waiting, PENDING),
        ):
            here = np.flatnonzero(positions >= 0)
            if len(here):
                spilled, gone = spill.at(positions[here])
                rows[here], marks[here], there[here] = spilled, mark, ~gone
                self.counts.spilled += len(here) - int(gone.sum())
        created, refused = self._admit_new(
            keys, slot_numbers, counts, np.flatnonzero(~there), now_s
        )
        # Tombstones stay where no row is made, and where the commit under way writes them.
        self.spill.remove(keys[(in_spill >= 0) & ~refused])
        self.waiting.remove(keys[(in_waiting >= 0) & there])
        rows[created] = self._form.fresh(keys[created], slot_numbers[created], now_s)
        marks[created] = CHANGED
        return rows[~refused] if refused.any() else rows, marks, created, refused

    def _admit_new(
        self,
        keys: NDArray[np.uint64],
        slot_numbers: NDArray[np.uint16],
        counts: NDArray[np.int32],
        new: NDArray[np.int64],
        now_s: int,
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(created, refused) bool[N] of `keys`, whose positions `new` have no row."""
        created, refused = np.zeros(len(keys), np.bool_), np.zeros(len(keys), np.bool_)
        created[new] = True
        if self._admission is not None and len(new):
            admitted = self._admission.admit(keys[new], slot_numbers[new], counts[new], now_s)
            created[new] = admitted
            refused[new] = ~admitted
        many = int(created.sum())
        self.counts.created += many
        self.counts.refused += int(refused.sum())
        self.rows_gained += many
        return created, refused

    def _keep(self, rows: NDArray[np.float32], marks: NDArray[np.uint8]) -> None:
        """Evicted rows that are not on disk stay in memory, and are still looked up."""
        changed = (marks & CHANGED) != 0
        for spill, chosen in ((self.spill, rows[changed]), (self.waiting, rows[~changed])):
            if len(chosen):
                spill.add(row_keys_of(chosen), chosen)

    def prefetch(self, ids: NDArray[np.uint64]) -> None:
        """Start reading those of `ids` that only the disk has."""
        self.coming.note(ids)

    def _read_ahead(self, keys: NDArray[np.uint64]) -> None:
        """In a thread beside the store's, which waits for it before it moves a row."""
        keys = keys[self.spill.find(keys) < 0]
        self.prefetched.request(keys[self.waiting.find(keys) < 0])

    def drop(self, keys: NDArray[np.uint64]) -> None:
        """Delete the rows of distinct `keys`, which are there; durable with the next commit.

        Makes all earlier look-ups stale. A tombstone hides what the disk has until then.
        """
        self.coming.settle()
        self.slab.drop(keys)
        self.spill.remove(keys[self.spill.find(keys) >= 0])
        self.spill.add_tombstones(keys)
        self.prefetched.forget(keys)
        self.rows_gained -= len(keys)
        self._batch += 2

    def peek(
        self, keys: NDArray[np.uint64], set_name: str
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(the set's vectors float32[N, D], found bool[N]); moves nothing, zeros if not found."""
        dim = self._form.place(set_name).spec.dim
        distinct, inverse = np.unique(keys, return_inverse=True)
        rows, found = self.read(distinct)
        vectors = np.zeros((len(distinct), dim), np.float32)
        vectors[found] = self._form.vectors(set_name, rows[found])
        return vectors[inverse], found[inverse]

    def refuse_stale(self, lookup: Lookup) -> None:
        """Raises StoreMisuse unless `lookup` is one of the two newest; older rows may move."""
        if lookup.batch + 1 < self._batch:
            raise StoreMisuse(
                f"a lookup older than the last two: lookup=`{lookup.batch}` newest=`{self._batch}`"
            )

    def headers_after(self, key: int, limit: int) -> tuple[Headers, int | None]:
        """(headers, key to go on from; None = the end): the next committed rows above `key` in
        order, as they are now. Looks at `limit` rows and passes over those deleted since."""
        name = row_names(np.array([key], np.uint64))[0]
        found = list(islice(self._rocks.scan(ROW_PREFIX, after=name), limit))
        headers = header_records(data for _, data in found)
        keys = np.ascontiguousarray(headers["key"])
        slots = self.slab.find(keys)
        hot = np.flatnonzero(slots >= 0)
        headers[hot] = self.slab.headers(slots[hot])
        rest, there = np.flatnonzero(slots < 0), np.ones(len(keys), np.bool_)
        for spill in (self.spill, self.waiting):
            at = spill.find(keys[rest])
            here = rest[at >= 0]
            rows, gone = spill.at(at[at >= 0])
            headers[here] = header_records(row[:HEADER_WORDS].tobytes() for row in rows)
            there[here] = ~gone
            rest = rest[at < 0]
        return headers[there], int(keys[-1]) if len(found) == limit else None

    def read(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(whole rows float32[N, words], found bool[N]); moves nothing. Not found = undefined."""
        rows = np.empty((len(keys), self._form.words), np.float32)
        slots = self.slab.find(keys)
        found = slots >= 0
        rows[found] = self.slab.rows(slots[found])
        rest = np.flatnonzero(~found)
        for spill in (self.spill, self.waiting):
            at = spill.find(keys[rest])
            here = rest[at >= 0]
            rows[here], gone = spill.at(at[at >= 0])
            found[here] = ~gone
            rest = rest[at < 0]
        read, there = self.cold.read(keys[rest])
        rows[rest[there]] = read
        found[rest[there]] = True
        return rows, found

    def all_rows(self) -> Iterator[tuple[int, bytes]]:
        """(key, row) of every row as it is now, in order of key."""
        changed = self._unsaved()
        pending = iter(changed.items())
        upcoming = next(pending, None)
        for name, data in self._rocks.scan(ROW_PREFIX):
            while upcoming is not None and upcoming[0] < name:
                if upcoming[1] is not None:
                    yield _key(upcoming[0]), upcoming[1]
                upcoming = next(pending, None)
            if name not in changed:
                yield _key(name), data
        while upcoming is not None:
            if upcoming[1] is not None:
                yield _key(upcoming[0]), upcoming[1]
            upcoming = next(pending, None)

    def _unsaved(self) -> dict[bytes, bytes | None]:
        """Database key -> row, or None = deleted, of all that hides the disk; in order of key."""
        found: dict[bytes, bytes | None] = {}
        for spill in (self.waiting, self.spill):
            live = spill.rows_live()
            found |= dict(_named(spill.at(live)[0], self._form.bytes))
            found |= dict.fromkeys(row_names(spill.tombstones()))
        found |= dict(_named(self.slab.rows(self.slab.unsaved_slots()), self._form.bytes))
        return dict(sorted(found.items()))

    @property
    def rows_unsaved(self) -> int:
        """Rows and deletions that the disk has not got."""
        return len(self.slab.unsaved_slots()) + len(self.spill) + len(self.waiting)

    # -- a commit: count, copy, then either it is done or the store is poisoned ---------------

    def changes(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
        """What the next commit has to write: (slots, positions in the spill, deleted keys)."""
        return self.slab.dirty_slots(), self.spill.rows_live(), self.spill.tombstones()

    def stage_admission(self, state: StagedState) -> None:
        """What the admission filter wants in the next commit."""
        if self._admission is not None:
            self._admission.stage(state)

    def commit_begins(
        self, slots: NDArray[np.int64], spilled: NDArray[np.int64], rows: NDArray[np.float32]
    ) -> int:
        """Copy the rows of `changes` to `rows` float32[N, words]; how many were gained since the
        last commit began. From here on they are pending and what changes belongs to the next."""
        self.coming.settle()
        self.slab.take(slots, rows[: len(slots)])
        self.spill.take(spilled, rows[len(slots) :])
        self.slab.commit_begins(slots)
        self.spill, self.waiting = self.waiting, self.spill
        gained, self.rows_gained = self.rows_gained, 0
        return gained

    def committed(self) -> None:
        """Every pending row is on disk now."""
        self.coming.settle()
        self.slab.committed()
        self.waiting.clear()

    def close(self) -> None:
        """Returns when nothing is read ahead any more."""
        self.coming.close()
        self.prefetched.close()


def slab_rows(lookup: Lookup, place: SetPlace) -> NDArray[np.int64]:
    """int64[U]: where the rows that have the set are; -1 elsewhere."""
    if place.members is None:
        return lookup.slab_rows
    return np.where(place.members[lookup.slot_numbers], lookup.slab_rows, -1)


def _named(rows: NDArray[np.float32], row_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    values: list[bytes] = rows.view(f"V{row_bytes}").ravel().tolist()
    return zip(row_names(row_keys_of(rows)), values, strict=True)


def _key(name: bytes) -> int:
    return int.from_bytes(name[1:], "big")
