"""What a prefetch found out of a batch, for the look-up of that batch to begin with."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedding_store.distinct import Distinct
from embedding_store.slab import Slab

BATCHES_MAX: Final = 2
"""Noted at a time; a further one lets the oldest go."""


class _Batch(NamedTuple):
    ids: NDArray[np.uint64]
    """A copy: whoever gave them may reuse the memory."""
    distinct: Distinct
    slots: NDArray[np.int64]
    moves: int
    """Of the slab, when it was asked for `slots`."""


class Coming:
    """Distinct keys, and where they are in the slab, of batches to come."""

    def __init__(self, slab: Slab) -> None:
        self._slab = slab
        self._batches: list[_Batch] = []

    def note(self, ids: NDArray[np.uint64]) -> tuple[Distinct, NDArray[np.int64]]:
        """(the distinct keys of `ids`, their slots, -1 = not in the slab), remembered."""
        distinct = self._slab.distinct(ids)
        slots = self._slab.find(distinct.keys)
        batch = _Batch(ids.copy(), distinct, slots, self._slab.moves)
        self._batches = [*self._batches[1 - BATCHES_MAX :], batch]
        return distinct, slots

    def take(self, ids: NDArray[np.uint64]) -> tuple[Distinct, NDArray[np.int64]]:
        """The same as of now; by what was noted of just these `ids`, which is forgotten."""
        for n, batch in enumerate(self._batches):
            if np.array_equal(batch.ids, ids):
                del self._batches[n]
                distinct, slots = batch.distinct, batch.slots
                if batch.moves != self._slab.moves:
                    slots = self._slab.find(distinct.keys)
                return distinct, slots
        distinct = self._slab.distinct(ids)
        return distinct, self._slab.find(distinct.keys)
