"""What the slab notes in a row's flags word: in the cache line that every use of the row touches.

    bits 0-15 slot number | 16 dirty | 17-18 CLOCK's counter | 19-31 last batch, mod 8192

Arrays beside the rows would cost one more random cache line each. A batch's use of its rows is
noted when they learn, which touches their lines anyway. Only the slot number leaves the slab.
`header` is uint32[capacity, words]: whole rows, or headers alone where vectors lie elsewhere.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from embedding_store.kernel import kernel
from embedding_store.prefetch import AHEAD, prefetch
from embedding_store.row import COUNT_WORD, FLAGS_WORD, SLOT_BITS, TOUCHED_WORD

DIRTY: Final = 1 << 16
"""The row differs from what is on disk."""
REFERENCES_MAX: Final = 3
"""CLOCK's counter: with one bit, rows used once in a while leave too early."""
REFERENCE: Final = 1 << 17
REFERENCES: Final = REFERENCES_MAX * REFERENCE
BATCH_SHIFT: Final = 19
BATCH_BITS: Final = 0x1FFF
BELOW_BATCH: Final = (1 << BATCH_SHIFT) - 1
CHANGED: Final = 1
"""A row's mark: it differs from the disk and from what the commit under way writes."""
PENDING: Final = 2
"""A row's mark: the commit under way writes it, so until then the disk has not got it."""
NO_COUNTS: Final[NDArray[np.int32]] = np.empty(0, np.int32)
"""For `learn`: leave counts and times alone."""

assert SLOT_BITS < DIRTY < REFERENCE < REFERENCES < 1 << BATCH_SHIFT


def stamp(batch: int) -> np.uint32:
    """The batch's bits, in place."""
    return np.uint32((batch & BATCH_BITS) << BATCH_SHIFT)


def ages(words: NDArray[np.uint32], now: np.uint32) -> NDArray[np.uint32]:
    """Batches since each row was used, mod 8192, by its flags word."""
    aged: NDArray[np.uint32] = now - (words & np.uint32(0xFFFFFFFF ^ BELOW_BATCH))
    return aged >> np.uint32(BATCH_SHIFT)


@njit(inline="always")
def _age(last, now):  # type: ignore[no-untyped-def]
    """`ages` of one stamp. Numba widens a difference to 64 bits, which would not wrap around."""
    return np.uint32(now - last) >> np.uint32(BATCH_SHIFT)


@njit(inline="always")
def _used(word, stamp, now):  # type: ignore[no-untyped-def]
    """The flags word of a row that the batch of `stamp` uses: one reference more, once per batch.

    `now` is the newest batch's stamp; a row that a newer batch than `stamp` uses stays that one's.
    """
    last = word & np.uint32(0xFFFFFFFF ^ BELOW_BATCH)
    if _age(last, now) < _age(stamp, now) or last == stamp:
        return word
    low = word & np.uint32(BELOW_BATCH)
    if low & np.uint32(REFERENCES) != np.uint32(REFERENCES):
        low += np.uint32(REFERENCE)
    return low | stamp


@njit(inline="always")
def learn_row(flat, row, counting, count, now_s, stamp, now):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """One row, whose words begin at `flat[row]`, learns; whether it is dirty only now."""
    if counting:
        touched, counted = row + np.uint64(TOUCHED_WORD), row + np.uint64(COUNT_WORD)
        flat[touched] = max(flat[touched], now_s)
        room = np.uint32(0xFFFFFFFF) - flat[counted]
        flat[counted] += min(np.uint32(count), room)
    flags = row + np.uint64(FLAGS_WORD)
    clean = flat[flags] & np.uint32(DIRTY) == 0
    flat[flags] = _used(flat[flags], stamp, now) | np.uint32(DIRTY)
    return clean


@kernel
def learn(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    header, slots, counts, now_s, stamp, now, dirty, many
):
    """Rows of `slots` learn: add `counts` [N] (empty = do not), touched `now_s`, marked dirty and
    used by the batch of `stamp`, `now` being the newest batch's.

    Times never fall, counts saturate, -1 is passed over. Newly dirty slots are appended to `dirty`,
    `many` so far; returns how many now.
    """
    stride, flat = np.uint64(header.shape[1]), header.reshape(-1)
    counting = counts.shape[0] > 0
    for i in range(slots.shape[0]):
        if i + AHEAD < slots.shape[0]:
            prefetch(header, slots[i + AHEAD], FLAGS_WORD)
        if slots[i] < 0:
            continue
        count = counts[i] if counting else np.int32(0)
        if learn_row(flat, np.uint64(slots[i]) * stride, counting, count, now_s, stamp, now):
            dirty[many] = np.int32(slots[i])
            many += 1
    return many


@kernel
def use(header, slots, stamp, now) -> None:  # type: ignore[no-untyped-def]
    """Rows of `slots` are used by the batch of `stamp`, `now` being the newest batch's."""
    stride, flat = np.uint64(header.shape[1]), header.reshape(-1)
    for i in range(slots.shape[0]):
        if i + AHEAD < slots.shape[0]:
            prefetch(header, slots[i + AHEAD], FLAGS_WORD)
        if slots[i] >= 0:
            flags = np.uint64(slots[i]) * stride + np.uint64(FLAGS_WORD)
            flat[flags] = _used(flat[flags], stamp, now)


@kernel
def compact(header, dirty, many):  # type: ignore[no-untyped-def]
    """Keep each dirty slot once, at the front of `dirty`; returns how many there are."""
    kept = 0
    for i in range(many):
        if i + AHEAD < many:
            prefetch(header, dirty[i + AHEAD], FLAGS_WORD)
        slot = dirty[i]
        if header[slot, FLAGS_WORD] & np.uint32(DIRTY) != 0:
            header[slot, FLAGS_WORD] ^= np.uint32(DIRTY)
            dirty[kept] = slot
            kept += 1
    for i in range(kept):
        if i + AHEAD < kept:
            prefetch(header, dirty[i + AHEAD], FLAGS_WORD)
        header[dirty[i], FLAGS_WORD] |= np.uint32(DIRTY)
    return kept


@kernel
def commit_begins(header, pending, slots) -> None:  # type: ignore[no-untyped-def]
    """Rows of `slots` are no longer dirty, but `pending`."""
    for i in range(slots.shape[0]):
        if i + AHEAD < slots.shape[0]:
            prefetch(header, slots[i + AHEAD], FLAGS_WORD)
        header[slots[i], FLAGS_WORD] &= np.uint32(0xFFFFFFFF ^ DIRTY)
        pending[slots[i]] = PENDING


@kernel
def sweep(header, now, hand, victims):  # type: ignore[no-untyped-def]
    """CLOCK: fill `victims` with slots whose count ran out, passing over the two newest batches.

    `now` is the newest batch's `stamp`. Returns (hand, how many were found): all, unless more rows
    look pinned than are.
    """
    capacity, found = header.shape[0], 0
    for _ in range((REFERENCES_MAX + 2) * capacity):
        if found == victims.shape[0]:
            break
        flags = header[hand, FLAGS_WORD]
        if _age(flags & np.uint32(0xFFFFFFFF ^ BELOW_BATCH), now) >= 2:
            if flags & np.uint32(REFERENCES) == 0:
                victims[found] = hand
                found += 1
                # pinned, so that the sweep does not give it out twice
                header[hand, FLAGS_WORD] = (flags & np.uint32(BELOW_BATCH)) | now
            else:
                header[hand, FLAGS_WORD] = flags - np.uint32(REFERENCE)
        hand = hand + 1 if hand + 1 < capacity else 0
    return hand, found


@kernel
def leave(header, pending, slots, keys, marks) -> None:  # type: ignore[no-untyped-def]
    """Rows of `slots` leave: their `keys` uint64[N] and `marks` uint8[N], CHANGED or what was
    `pending`, which is taken back."""
    for i in range(slots.shape[0]):
        if i + AHEAD < slots.shape[0]:
            prefetch(header, slots[i + AHEAD], 0)
            prefetch(header, slots[i + AHEAD], FLAGS_WORD)
        slot = slots[i]
        keys[i] = np.uint64(header[slot, 0]) | np.uint64(header[slot, 1]) << np.uint64(32)
        marks[i] = pending[slot]
        if header[slot, FLAGS_WORD] & np.uint32(DIRTY) != 0:
            marks[i] = CHANGED
        pending[slot] = 0
