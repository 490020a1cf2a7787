"""The hot tier: rows side by side in memory, found by the index, replaced by counting CLOCK.

A row's words are the bytes that go to disk, so loading, spilling and committing are copies. What
the slab itself must know of a row stands in the upper half of the row's flags word, in the cache
line that every use of the row touches anyway:

    bits 0-15 slot number | 16 dirty | 17-18 CLOCK's counter | 19-31 last batch, mod 8192

Arrays beside the rows would cost one more random cache line each. Copies that leave the slab carry
only the slot number.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from embedding_store.index import Index, Resolved
from embedding_store.optimizers import (
    DIRTY_BIT,
    KINDS,
    hyperparameters,
    touch_rows,
    update_halves,
    update_rows,
)
from embedding_store.prefetch import prefetch
from embedding_store.row import (
    FLAGS_WORD,
    HEADER,
    HEADER_WORDS,
    SLOT_BITS,
    Headers,
    RowFormat,
    SetPlace,
)

REFERENCES_MAX: Final = 3
"""CLOCK's counter: measured 7-39 % fewer misses than one bit at a cache of 10-50 % of the rows."""
REFERENCE: Final = 1 << 17
REFERENCES: Final = REFERENCES_MAX * REFERENCE
BATCH_SHIFT: Final = 19
BATCH_BITS: Final = 0x1FFF
OWN_BITS: Final = 0xFFFF0000
AHEAD: Final = 16
LINE_WORDS: Final = 16
CHANGED: Final = 1
"""A row's mark: it differs from the disk and from what the commit under way writes."""
PENDING: Final = 2
"""A row's mark: the commit under way writes it, so until then the disk has not got it."""
NO_COUNTS: Final[NDArray[np.int32]] = np.empty(0, np.int32)
"""For `update`: leave the headers alone."""


class Slab:
    """`capacity` rows. A row is pinned while it belongs to one of the two newest batches."""

    def __init__(self, form: RowFormat, capacity: int) -> None:
        self._form = form
        self.capacity = capacity
        self._words: NDArray[np.float32] = np.zeros((capacity, form.words), np.float32)
        self._header: NDArray[np.uint32] = self._words.view(np.uint32)
        self._index = Index(capacity)
        self._hyper = {id(place): hyperparameters(place.spec) for place in form.places.values()}
        # Every dirty row is in here at least once; also slots that were dirty and then evicted.
        self._dirty: NDArray[np.int32] = np.empty(capacity + capacity // 4 + 1024, np.int32)
        self._dirty_many = 0
        # Rows of the commit under way: beside the rows, for only eviction asks.
        self._pending: NDArray[np.uint8] = np.zeros(capacity, np.uint8)
        self._pinned: list[NDArray[np.int64]] = []  # slots of the two newest batches
        self._free: list[int] = []  # below `used`, given up by `drop`
        self._hand = 0
        self.used = 0

    def __len__(self) -> int:
        """Rows that are here."""
        return self.used - len(self._free)

    def resolve(self, ids: NDArray[np.uint64], batch: int) -> Resolved | None:
        """De-duplicate `ids` and pin what is here; None if two such batches cannot both fit.

        Missed keys are placeholders until `admit` or `forget`.
        """
        resolved = self._index.resolve(ids, unique_max=self.capacity // 2)
        if resolved is not None:
            _touch(self._header, resolved.slots, np.uint32(batch & BATCH_BITS))
            self._pinned = [*self._pinned[-1:], resolved.slots]
        return resolved

    def forget(self, keys: NDArray[np.uint64]) -> None:
        """Undo the placeholders of missed keys that get no row."""
        self._index.delete(keys)

    def make_room(
        self, rows: int, batch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint8], int]:
        """(`rows` empty slots, rows that had to go and are not on disk, their marks, evicted)."""
        reused = min(rows, len(self._free))
        fresh = reused + min(rows - reused, self.capacity - self.used)
        slots = np.empty(rows, np.int64)
        slots[:reused] = self._free[len(self._free) - reused :]
        del self._free[len(self._free) - reused :]
        slots[reused:fresh] = np.arange(self.used, self.used + fresh - reused)
        stamp = np.uint32(batch & BATCH_BITS)
        self._header[slots[:fresh], FLAGS_WORD] = stamp << np.uint32(BATCH_SHIFT)  # now pinned
        self.used += fresh - reused
        victims = slots[fresh:]
        if len(victims):
            self._hand, found = _clock(self._header, stamp, self._hand, victims)
            if found < len(victims):  # rows unused for a multiple of 8192 batches look pinned
                self._stamp_old(stamp, slots[: fresh + found])
                self._hand, _ = _clock(self._header, stamp, self._hand, victims[found:])
        keys = self.keys(victims)
        self._index.delete(keys)
        changed = self._header[victims, FLAGS_WORD] & np.uint32(DIRTY_BIT) != 0
        marks = np.where(changed, np.uint8(CHANGED), self._pending[victims])
        self._pending[victims] = 0
        kept = marks != 0
        return slots, self.rows(victims[kept]), marks[kept], len(victims)

    def _stamp_old(self, stamp: np.uint32, given: NDArray[np.int64]) -> None:
        """Unpin every row that is neither of the two newest batches nor `given` just now."""
        old = np.ones(self.capacity, np.bool_)
        for slots in (*self._pinned, given):
            old[slots[slots >= 0]] = False
        flags = self._header[:, FLAGS_WORD]
        aged = np.uint32((int(stamp) - 2) & BATCH_BITS) << np.uint32(BATCH_SHIFT)
        low = np.uint32((1 << BATCH_SHIFT) - 1)
        flags[old] = (flags[old] & low) | aged

    def admit(
        self,
        keys: NDArray[np.uint64],
        slots: NDArray[np.int64],
        rows: NDArray[np.float32],
        marks: NDArray[np.uint8],
        batch: int,
    ) -> None:
        """Put `rows` into `slots` from `make_room`; `marks` CHANGED, PENDING or 0 = as on disk."""
        self._words[slots] = rows
        own = np.uint32(REFERENCE | (batch & BATCH_BITS) << BATCH_SHIFT)
        self._header[slots, FLAGS_WORD] |= own
        self._index.assign(keys, slots)
        self._mark(slots[marks == CHANGED], NO_COUNTS, 0)
        self._pending[slots[marks == PENDING]] = PENDING

    def drop(self, keys: NDArray[np.uint64]) -> None:
        """Forget rows for good, changed or not; keys that are not here are passed over.

        Lookups before this may not be used any more.
        """
        slots = self.find(keys)
        slots = slots[slots >= 0]
        self._index.delete(keys)
        self._header[slots] = 0
        self._pending[slots] = 0
        self._free.extend(slots.tolist())

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Slots int64[N], -1 where not here. Pins nothing and counts nothing."""
        return self._index.find(keys)

    def keys(self, slots: NDArray[np.int64]) -> NDArray[np.uint64]:
        pairs = np.ascontiguousarray(self._header[slots, :2])
        return pairs.view(np.uint64).ravel()

    def slot_numbers(self, slots: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Of the layout's slots, as the rows' headers have them; 0 for -1."""
        numbers: NDArray[np.uint16] = self._header[slots, FLAGS_WORD].astype(np.uint16)
        numbers[slots < 0] = 0
        return numbers

    def headers(self, slots: NDArray[np.int64]) -> Headers:
        """Copies of the headers structured [N], as they go to disk."""
        words = np.ascontiguousarray(self._header[slots, :HEADER_WORDS])
        words[:, FLAGS_WORD] &= np.uint32(SLOT_BITS)
        headers: Headers = words.view(np.dtype(HEADER)).reshape(len(slots))
        return headers

    def rows(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Copies of whole rows float32[N, words], as they go to disk."""
        copied: NDArray[np.float32] = self._words[slots]
        copied.view(np.uint32)[:, FLAGS_WORD] &= np.uint32(SLOT_BITS)
        return copied

    def gather(self, place: SetPlace, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """The set's vectors float32[N, D]; zeros for -1."""
        vectors = np.empty((len(slots), place.spec.dim), np.float32)
        if place.spec.dtype == "float32":
            _gather(self._words, slots, place.vector_word, vectors)
        else:
            _gather_halves(self._words, slots, place.vector_word, vectors)
        return vectors

    def update(
        self,
        place: SetPlace,
        slots: NDArray[np.int64],
        grad: NDArray[np.float32],
        counts: NDArray[np.int32],
        now_s: int,
    ) -> int:
        """The set's optimizer in place, but for slots -1; `counts` [N] also advances the headers.

        NO_COUNTS leaves them. Returns how many rows were left alone since their step would not be
        finite.
        """
        self._room_for_dirty(len(slots))
        spec = place.spec
        arguments = (
            KINDS[spec.optimizer],
            self._words,
            self._header,
            slots,
            place.vector_word,
            place.state_word,
            spec.state_floats,
            grad,
            self._hyper[id(place)],
            counts,
            np.uint32(now_s),
            self._dirty,
            self._dirty_many,
        )
        skipped: int
        if spec.dtype == "float32":
            skipped, self._dirty_many = update_rows(*arguments)
        else:
            skipped, self._dirty_many = update_halves(*arguments, np.uint64(place.seed))
        return skipped

    def count(self, slots: NDArray[np.int64], counts: NDArray[np.int32], now_s: int) -> None:
        """Advance the headers without learning: rows whose slot lacks the set that learns."""
        self._mark(slots, counts, now_s)

    def dirty_slots(self) -> NDArray[np.int64]:
        """Slots int64[N] of every row that differs from the disk."""
        self._dirty_many = _compact(self._header, self._dirty, self._dirty_many)
        return self._dirty[: self._dirty_many].astype(np.int64)

    def unsaved_slots(self) -> NDArray[np.int64]:
        """Slots int64[N] of every row that is changed or pending."""
        return np.union1d(self.dirty_slots(), np.flatnonzero(self._pending[: self.used]))

    def take(self, slots: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Copy whole rows to `out` float32[N, words], as they go to disk."""
        np.take(self._words, slots, axis=0, out=out, mode="clip")
        out.view(np.uint32)[:, FLAGS_WORD] &= np.uint32(SLOT_BITS)

    def commit_begins(self, slots: NDArray[np.int64]) -> None:
        """`slots`, all that differ from the disk, are pending from here on."""
        self._header[slots, FLAGS_WORD] &= np.uint32(0xFFFFFFFF ^ DIRTY_BIT)
        self._dirty_many = 0
        self._pending[slots] = PENDING

    def committed(self) -> None:
        """What was pending is on disk now."""
        self._pending[: self.used] = 0

    def _mark(self, slots: NDArray[np.int64], counts: NDArray[np.int32], now_s: int) -> None:
        self._room_for_dirty(len(slots))
        self._dirty_many = touch_rows(
            self._header, slots, counts, np.uint32(now_s), self._dirty, self._dirty_many
        )

    def _room_for_dirty(self, rows: int) -> None:
        if self._dirty_many + rows > len(self._dirty):
            self._dirty_many = _compact(self._header, self._dirty, self._dirty_many)
            missing = self._dirty_many + rows - len(self._dirty)
            if missing > 0:
                self._dirty = np.concatenate([self._dirty, np.empty(missing, np.int32)])


@njit(nogil=True, cache=True)
def _touch(header, slots, stamp) -> None:  # type: ignore[no-untyped-def]
    """Pin the rows of a batch and count one reference each."""
    low = np.uint32((1 << BATCH_SHIFT) - 1)
    upper = stamp << np.uint32(BATCH_SHIFT)
    for i in range(slots.shape[0]):
        if i + AHEAD < slots.shape[0]:
            prefetch(header, slots[i + AHEAD], FLAGS_WORD)
        if slots[i] >= 0:
            flags = header[slots[i], FLAGS_WORD]
            if flags & np.uint32(REFERENCES) != np.uint32(REFERENCES):
                flags += np.uint32(REFERENCE)
            header[slots[i], FLAGS_WORD] = (flags & low) | upper


@njit(nogil=True, cache=True)
def _clock(header, stamp, hand, victims):  # type: ignore[no-untyped-def]
    """Fill `victims` with slots whose count ran out, passing over the two newest batches.

    Returns (hand, how many were found): all, unless more rows look pinned than are.
    """
    capacity, found = header.shape[0], 0
    low = np.uint32((1 << BATCH_SHIFT) - 1)
    for _ in range((REFERENCES_MAX + 2) * capacity):
        if found == victims.shape[0]:
            break
        flags = header[hand, FLAGS_WORD]
        age = (stamp - (flags >> np.uint32(BATCH_SHIFT))) & np.uint32(BATCH_BITS)
        if age >= 2:
            if flags & np.uint32(REFERENCES) == 0:
                victims[found] = hand
                found += 1
                # pinned, so that the sweep does not give it out twice
                header[hand, FLAGS_WORD] = (flags & low) | (stamp << np.uint32(BATCH_SHIFT))
            else:
                header[hand, FLAGS_WORD] = flags - np.uint32(REFERENCE)
        hand = hand + 1 if hand + 1 < capacity else 0
    return hand, found


@njit(nogil=True, cache=True)
def _compact(header, dirty, many):  # type: ignore[no-untyped-def]
    """Keep each dirty slot once; returns how many there are."""
    kept = 0
    for i in range(many):
        slot = dirty[i]
        if header[slot, FLAGS_WORD] & np.uint32(DIRTY_BIT) != 0:
            header[slot, FLAGS_WORD] ^= np.uint32(DIRTY_BIT)
            dirty[kept] = slot
            kept += 1
    for i in range(kept):
        header[dirty[i], FLAGS_WORD] |= np.uint32(DIRTY_BIT)
    return kept


@njit(nogil=True, cache=True)
def _gather(words, slots, first, vectors) -> None:  # type: ignore[no-untyped-def]
    many, dim = vectors.shape
    for i in range(many):
        if i + AHEAD < many:
            for column in range(first, first + dim, LINE_WORDS):
                prefetch(words, slots[i + AHEAD], column)
            prefetch(words, slots[i + AHEAD], first + dim - 1)  # rows straddle cache lines
        if slots[i] < 0:
            vectors[i] = np.float32(0)
            continue
        vector = words[slots[i], first : first + dim]  # a slice: its index needs no sign check
        for d in range(dim):
            vectors[i, d] = vector[d]


@njit(nogil=True, cache=True)
def _gather_halves(words, slots, first, vectors) -> None:  # type: ignore[no-untyped-def]
    halves = words.view(np.uint16)
    bits = vectors.view(np.uint32)
    many, dim = vectors.shape
    for i in range(many):
        if i + AHEAD < many:
            for column in range(first, first + (dim + 1) // 2, LINE_WORDS):
                prefetch(words, slots[i + AHEAD], column)
        for d in range(dim):
            half = np.uint32(0)
            if slots[i] >= 0:
                half = np.uint32(halves[slots[i], 2 * first + d])
            bits[i, d] = half << np.uint32(16)
