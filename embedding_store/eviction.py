"""Which rows leave a full slab: in place, a few at a time, never a rehash, never a failure.

clock   counting CLOCK: a row is passed over once for each of its last references, three at most
lru     unused for the most batches
lfu     learnt from least often (the header's count)
time    last learnt from the longest ago in event time (the header's last touch)

CLOCK walks on from where it stopped. The others score a window of WINDOW rows for each that has to
go, from where the last window ended, and take the lowest: every row is looked at once per round,
and no order over all rows is kept, which would cost a write per use. Rows of the two newest batches
stay.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embedding_store import flags
from embedding_store.errors import StoreMisuse
from embedding_store.row import COUNT_WORD, FLAGS_WORD, TOUCHED_WORD

Eviction = Literal["clock", "lru", "lfu", "time"]
EVICTIONS: Final[tuple[str, ...]] = get_args(Eviction)
WINDOW: Final = 8
"""Rows looked at for each that goes: it is of the lowest eighth of a sample."""
WINDOW_MIN: Final = 1024


class Choice:
    """One slab's policy and how far it has come."""

    def __init__(self, capacity: int, eviction: Eviction) -> None:
        if eviction not in EVICTIONS:
            raise StoreMisuse(
                f"unknown eviction: eviction=`{eviction}` expected `{list(EVICTIONS)}`"
            )
        self._capacity, self._eviction, self._hand = capacity, eviction, 0
        lru = eviction == "lru"
        self._last_used: NDArray[np.uint32] = np.zeros(capacity if lru else 0, np.uint32)

    def used(self, slots: NDArray[np.int64], batch: int) -> None:
        """Rows of `slots` belong to `batch`; -1 is passed over."""
        if self._eviction == "lru":
            self._last_used[slots[slots >= 0]] = batch

    def fill(self, victims: NDArray[np.int64], header: NDArray[np.uint32], now: np.uint32) -> int:
        """Put slots into `victims` [N] and pin them; how many were found.

        `now` is the newest batch's `flags.stamp`. Fewer than N only if more rows look pinned.
        """
        if self._eviction == "clock":
            self._hand, found = flags.sweep(header, now, self._hand, victims)
            return int(found)
        window = min(self._capacity, max(WINDOW_MIN, WINDOW * len(victims)))
        while True:
            slots = (self._hand + np.arange(window)) % self._capacity
            free = slots[flags.ages(header[slots, FLAGS_WORD], now) >= 2]
            if len(free) >= len(victims) or window == self._capacity:
                break
            window = min(self._capacity, 2 * window)
        found = min(len(free), len(victims))
        order = np.argsort(self._scores(free, header), kind="stable")[:found]
        victims[:found] = free[order]
        words = header[victims[:found], FLAGS_WORD]
        header[victims[:found], FLAGS_WORD] = (words & np.uint32(flags.BELOW_BATCH)) | now
        self._hand = (self._hand + window) % self._capacity
        return found

    def _scores(self, slots: NDArray[np.int64], header: NDArray[np.uint32]) -> NDArray[np.uint32]:
        if self._eviction == "lru":
            return self._last_used[slots]
        word = COUNT_WORD if self._eviction == "lfu" else TOUCHED_WORD
        scores: NDArray[np.uint32] = header[slots, word]
        return scores
