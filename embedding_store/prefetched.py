"""Cold rows of a coming batch, read from disk while the present step runs.

What is read ahead never changes what a look-up gives: a row on disk changes only by a commit that
wrote it, which needs it to have been hot first, and whoever makes a key hot takes its entry from
here. One worker serves the requests in order.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedding_store.index import Index
from embedding_store.row_copies import move_rows

REQUESTS_MAX: Final = 2
"""Batches read ahead at a time; a further one lets the oldest go."""

Rows = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""(rows float32[F, words] of the keys that exist, in order; found bool[N])"""


class _Request:
    reading: Future[Rows]

    def __init__(self, keys: NDArray[np.uint64], used_before: Index | None) -> None:
        """`used_before`: an earlier request's index; clearing it is cheaper than new memory."""
        if used_before is None or used_before.capacity < len(keys):
            self.index = Index(len(keys) + len(keys) // 2)
        else:
            self.index = used_before
            self.index.clear()
        self.index.assign(keys, np.arange(len(keys)))
        self.left = len(keys)
        """How many of them nobody took, or deleted."""

    def positions(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        return self.index.find(keys)

    def forget(self, keys: NDArray[np.uint64]) -> None:
        self.left -= int((self.positions(keys) >= 0).sum())
        self.index.delete(keys)


class Prefetched:
    """`read` is called in the worker's thread; all else belongs to the store's thread."""

    def __init__(self, read: Callable[[NDArray[np.uint64]], Rows], words: int) -> None:
        self._read, self._words = read, words
        self._requests: list[_Request] = []
        self._spare: Index | None = None
        self._worker: ThreadPoolExecutor | None = None

    def request(self, keys: NDArray[np.uint64]) -> None:
        """Start to read `keys`, which are distinct and neither hot nor spilled."""
        for earlier in self._requests:
            keys = keys[earlier.positions(keys) < 0]
        if not len(keys):
            return
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="store-prefetch")
        if len(self._requests) == REQUESTS_MAX:
            self._spare = self._requests.pop(0).index
        request, self._spare = _Request(keys, self._spare), None
        # Last: from here on the worker wants the interpreter's lock, too.
        request.reading = self._worker.submit(self._read, keys)
        self._requests.append(request)

    def take(
        self, keys: NDArray[np.uint64]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
        """Give up what is known of `keys`: (rows float32[N, words], found bool[N], known bool[N]).

        Waits for the reading of any of them; raises what the reading raised. Rows not found are
        void.
        """
        rows = np.empty((len(keys), self._words), np.float32)
        found, known = np.zeros(len(keys), np.bool_), np.zeros(len(keys), np.bool_)
        for request in list(self._requests):
            at = request.positions(keys)
            here = np.flatnonzero(at >= 0)
            if not len(here):
                continue
            try:
                read, there = request.reading.result()
            except BaseException:
                self._requests.remove(request)
                raise
            known[here] = True
            found[here] = there[at[here]]
            rank = np.cumsum(there) - 1
            present = here[found[here]]
            move_rows(read, rank[at[present]], rows, present)
            request.left -= len(here)
            if request.left:
                request.index.delete(keys[here])
            else:  # nearly always: clearing the index is cheaper than deleting all of it
                self._requests.remove(request)
                self._spare = request.index
        return rows, found, known

    def forget(self, keys: NDArray[np.uint64]) -> None:
        """`keys` are deleted: what was read of them is no longer so."""
        for request in self._requests:
            request.forget(keys)

    def close(self) -> None:
        """Returns when nothing reads any more."""
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
        self._requests = []
