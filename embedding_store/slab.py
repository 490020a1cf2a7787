"""The hot tier: rows side by side in memory, found by the index, replaced by counting CLOCK.

A row's words are the bytes that go to disk, so loading, spilling and committing are copies. Kernels
take the set's place in the row as numbers: one compiled kernel serves every layout. Sums run in a
fixed order without fast-math, so a step gives the same bytes on every machine.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from embedding_store.index import Index, Resolved
from embedding_store.prefetch import prefetch
from embedding_store.row import COUNT_WORD, HEADER_WORDS, TOUCHED_WORD, RowFormat, SetPlace

REFERENCES_MAX: Final = 3
"""CLOCK's counter: measured 7-39 % fewer misses than one bit at a cache of 10-50 % of the rows."""
AHEAD: Final = 16
LINE_WORDS: Final = 16
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
        self._references: NDArray[np.uint8] = np.zeros(capacity, np.uint8)
        self._batch: NDArray[np.uint32] = np.zeros(capacity, np.uint32)  # the last that used it
        self._dirty: NDArray[np.uint8] = np.zeros(capacity, np.uint8)
        self._hand = 0
        self.used = 0

    def resolve(self, ids: NDArray[np.uint64], batch: int) -> Resolved | None:
        """De-duplicate `ids` and pin what is here; None if two such batches cannot both fit.

        Missed keys are placeholders until `admit` or `forget`.
        """
        resolved = self._index.resolve(ids, unique_max=self.capacity // 2)
        if resolved is not None:
            here = (
                resolved.slots if not len(resolved.misses) else resolved.slots[resolved.slots >= 0]
            )
            self._batch[here] = batch
            self._references[here] = np.minimum(self._references[here] + 1, REFERENCES_MAX)
        return resolved

    def forget(self, resolved: Resolved) -> None:
        """Undo the placeholders of a batch that could not be loaded."""
        self._index.delete(resolved.keys[resolved.misses])

    def make_room(
        self, rows: int, batch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint64], int]:
        """`rows` empty slots; (slots, dirty rows that had to go, their keys, evicted in all)."""
        fresh = min(rows, self.capacity - self.used)
        slots = np.empty(rows, np.int64)
        slots[:fresh] = np.arange(self.used, self.used + fresh)
        self._batch[slots[:fresh]] = batch  # or the clock would hand them out once more
        self.used += fresh
        victims = slots[fresh:]
        if len(victims):
            self._hand = _clock(self._references, self._batch, batch, self._hand, victims)
        keys = self.keys(victims)
        self._index.delete(keys)
        spilled = self._dirty[victims] != 0
        return slots, self._words[victims[spilled]], keys[spilled], len(victims)

    def admit(
        self,
        keys: NDArray[np.uint64],
        slots: NDArray[np.int64],
        rows: NDArray[np.float32],
        dirty: NDArray[np.bool_],
        batch: int,
    ) -> None:
        """Put `rows` into `slots` from `make_room`; `dirty` = differs from what is on disk."""
        self._words[slots] = rows
        self._dirty[slots] = dirty
        self._references[slots] = 1
        self._batch[slots] = batch
        self._index.assign(keys, slots)

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Slots int64[N], -1 where not here. Pins nothing and counts nothing."""
        return self._index.find(keys)

    def keys(self, slots: NDArray[np.int64]) -> NDArray[np.uint64]:
        pairs = np.ascontiguousarray(self._header[slots, :2])
        return pairs.view(np.uint64).ravel()

    def rows(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Copies of whole rows float32[N, words]."""
        copied: NDArray[np.float32] = self._words[slots]
        return copied

    def gather(self, place: SetPlace, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """The set's vectors float32[N, D]."""
        vectors = np.empty((len(slots), place.spec.dim), np.float32)
        _gather(self._words, slots, place.vector_word, vectors)
        return vectors

    def update(
        self,
        place: SetPlace,
        slots: NDArray[np.int64],
        grad: NDArray[np.float32],
        counts: NDArray[np.int32],
        now_s: int,
    ) -> int:
        """Row-wise Adagrad in place; `counts` [N] also advances the headers, NO_COUNTS leaves them.

        Returns how many rows were left alone since their gradient was not finite.
        """
        skipped: int = _adagrad(
            self._words,
            self._header,
            self._dirty,
            slots,
            place.vector_word,
            place.state_word,
            grad,
            np.float32(place.spec.lr),
            np.float32(place.spec.eps),
            counts,
            np.uint32(now_s),
        )
        return skipped

    def dirty_slots(self) -> NDArray[np.int64]:
        return np.flatnonzero(self._dirty[: self.used])

    def committed(self) -> None:
        """What is here is on disk now."""
        self._dirty[: self.used] = 0


@njit(nogil=True, cache=True)
def _clock(references, last_batch, batch, hand, victims):  # type: ignore[no-untyped-def]
    """Fill `victims` with slots whose count ran out, passing over the two newest batches."""
    found, capacity = 0, references.shape[0]
    while found < victims.shape[0]:
        if last_batch[hand] + 1 < batch:
            if references[hand] == 0:
                victims[found] = hand
                found += 1
                last_batch[hand] = batch  # not twice in one sweep
            else:
                references[hand] -= 1
        hand = hand + 1 if hand + 1 < capacity else 0
    return hand


@njit(nogil=True, cache=True)
def _gather(words, slots, first, vectors) -> None:  # type: ignore[no-untyped-def]
    many, dim = vectors.shape
    for i in range(many):
        if i + AHEAD < many:
            for column in range(first, first + dim, LINE_WORDS):
                prefetch(words, slots[i + AHEAD], column)
            prefetch(words, slots[i + AHEAD], first + dim - 1)  # rows straddle cache lines
        vector = words[slots[i], first : first + dim]  # a slice: its index needs no sign check
        for d in range(dim):
            vectors[i, d] = vector[d]


@njit(nogil=True, cache=True)
def _adagrad(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    words, header, dirty, slots, first, state, grad, lr, eps, counts, now_s
):
    """G += mean(g^2); w -= lr / (sqrt(G) + eps) * g, every operation in float32, d ascending."""
    many, dim = grad.shape
    skipped = 0
    for i in range(many):
        if i + AHEAD < many:
            ahead = slots[i + AHEAD]
            prefetch(words, ahead, 0)
            for column in range(first, first + dim + 1, LINE_WORDS):
                prefetch(words, ahead, column)
        slot = slots[i]
        squares = np.float32(0)
        for d in range(dim):
            squares += grad[i, d] * grad[i, d]
        total = words[slot, state] + squares / np.float32(dim)
        if np.isfinite(total):
            words[slot, state] = total
            rate = lr / (np.sqrt(total) + eps)
            vector = words[slot, first : first + dim]
            for d in range(dim):
                vector[d] -= rate * grad[i, d]
        else:
            skipped += 1
        if counts.shape[0] > 0:
            header[slot, TOUCHED_WORD] = max(header[slot, TOUCHED_WORD], now_s)
            room = np.uint32(0xFFFFFFFF) - header[slot, COUNT_WORD]
            header[slot, COUNT_WORD] += min(np.uint32(counts[i]), room)
        dirty[slot] = 1
    return skipped


assert HEADER_WORDS > COUNT_WORD > TOUCHED_WORD
