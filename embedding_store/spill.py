"""Changed rows that had to leave the slab before their commit: RAM only, still looked up.

Nothing uncommitted may reach RocksDB, and a full slab must not fail; so victims wait here. Bounded
by what one commit interval changes; emptied by every commit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embedding_store.index import Index

ROWS_AT_FIRST = 1024


class Spill:
    """Rows by key, growing by doubling."""

    def __init__(self, words: int) -> None:
        self._words = words
        self._start()

    def _start(self) -> None:
        self._rows: NDArray[np.float32] = np.empty((ROWS_AT_FIRST, self._words), np.float32)
        self._keys: NDArray[np.uint64] = np.zeros(ROWS_AT_FIRST, np.uint64)  # 0 = taken back
        self._index = Index(ROWS_AT_FIRST)
        self._used = 0
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def add(self, keys: NDArray[np.uint64], rows: NDArray[np.float32]) -> None:
        """`keys` must not be here already."""
        end = self._used + len(keys)
        if end > len(self._keys):
            self._grow(len(keys))
            end = self._used + len(keys)
        positions = np.arange(self._used, end)
        self._rows[positions] = rows
        self._keys[positions] = keys
        self._index.assign(keys, positions)
        self._used = end
        self._live += len(keys)

    def _grow(self, incoming: int) -> None:
        """Room for `incoming` more; closes the gaps of rows that were taken back."""
        keys, rows = self.all()
        room = max(ROWS_AT_FIRST, 2 * (len(keys) + incoming))
        self._rows = np.empty((room, self._words), np.float32)
        self._keys = np.zeros(room, np.uint64)
        self._index = Index(room)
        self._rows[: len(keys)] = rows
        self._keys[: len(keys)] = keys
        self._index.assign(keys, np.arange(len(keys)))
        self._used = len(keys)

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(rows float32[F, words] of the keys that are here, in order; found bool[N])."""
        positions = self._index.find(keys)
        found = positions >= 0
        return self._rows[positions[found]], found

    def remove(self, keys: NDArray[np.uint64]) -> None:
        """Drop `keys`, all of which must be here: they are back in the slab."""
        self._keys[self._index.find(keys)] = 0
        self._index.delete(keys)
        self._live -= len(keys)

    def all(self) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        """Copies of every (key [N], row float32[N, words])."""
        live = np.flatnonzero(self._keys[: self._used])
        return self._keys[live], self._rows[live]

    def committed(self) -> None:
        """What was here is on disk now."""
        if self._used:
            self._start()
