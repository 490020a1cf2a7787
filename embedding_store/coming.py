"""Batches to come: what they are made of and which of it is not in memory, found out beside a step.

One worker looks into the index and the spills while the store's thread does what changes neither:
gathers, updates, and whatever is between two steps. `settle` comes before everything that does.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedding_store.distinct import Deduplicator, Distinct
from embedding_store.slab import Slab

BATCHES_MAX: Final = 2
"""Noted at a time; a further one lets the oldest go."""


class _Found(NamedTuple):
    distinct: Distinct
    slots: NDArray[np.int64]
    moves: int
    """Of the slab, when it was asked for `slots`."""


class _Batch(NamedTuple):
    ids: NDArray[np.uint64]
    """A copy: whoever gave them may reuse the memory."""
    found: Future[_Found]


class Coming:
    """Called by the store's thread alone."""

    def __init__(self, slab: Slab, missed: Callable[[NDArray[np.uint64]], None]) -> None:
        """`missed` is told, in the worker, the distinct keys of a batch that the slab has not."""
        self._slab, self._missed = slab, missed
        self._batches: list[_Batch] = []
        self._distinct, self._distinct_beside = Deduplicator(), Deduplicator()
        self._worker: ThreadPoolExecutor | None = None

    def note(self, ids: NDArray[np.uint64]) -> None:
        """Begin to find out what uint64[N] `ids` need."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="store-note")
        self._batches = self._batches[1 - BATCHES_MAX :]
        copied = ids.copy()
        self._batches.append(_Batch(copied, self._worker.submit(self._find_out, copied)))

    def _find_out(self, ids: NDArray[np.uint64]) -> _Found:
        distinct = self._distinct_beside(ids)
        slots = self._slab.find(distinct.keys)
        self._missed(distinct.keys[slots < 0])
        return _Found(distinct, slots, self._slab.moves)

    def settle(self) -> None:
        """Returns when the worker looks at nothing any more. Raises what it met, once."""
        try:
            for batch in self._batches:
                batch.found.result()
        except BaseException:
            self.close()
            raise

    def take(self, ids: NDArray[np.uint64]) -> tuple[Distinct, NDArray[np.int64]]:
        """(the distinct keys of `ids`, their slots as of now, -1 = not in the slab). What was noted
        of just these ids is used, and forgotten. Settles."""
        self.settle()
        for n, batch in enumerate(self._batches):
            if np.array_equal(batch.ids, ids):
                del self._batches[n]
                distinct, slots, moves = batch.found.result()
                return distinct, slots if moves == self._slab.moves else self._find(distinct)
        distinct = self._distinct(ids)
        return distinct, self._find(distinct)

    def _find(self, distinct: Distinct) -> NDArray[np.int64]:
        return self._slab.find(distinct.keys)

    def close(self) -> None:
        """Returns when the worker has ended; `note` would start another."""
        if self._worker is not None:
            self._worker.shutdown(wait=True)
        self._worker, self._batches = None, []
