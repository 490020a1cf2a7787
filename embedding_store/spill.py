"""Changed rows that had to leave the slab before their commit: RAM only, still looked up.

Nothing uncommitted may reach RocksDB, and a full slab must not fail; so victims wait here. Bounded
by what one commit interval changes; emptied by every commit. A deleted row leaves a tombstone here,
which hides the row on disk until the commit that deletes it there.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedding_store.index import Index
from embedding_store.row_copies import copy_rows

ROWS_AT_FIRST: Final = 1024
SMALL_INTERVALS_MAX: Final = 8
"""Commits in a row that may need less than an eighth of what another did; with one more the memory
is given back."""


class Spill:
    """Rows by key, growing by doubling."""

    def __init__(self, words: int, rows_expected: int = ROWS_AT_FIRST) -> None:
        """Up to `rows_expected` no row is moved to make room for more. That room is address space;
        it takes memory as rows come."""
        self._words, self._expected = words, max(ROWS_AT_FIRST, rows_expected)
        self._start()

    def _start(self) -> None:
        self._rows: NDArray[np.float32] = np.empty((self._expected, self._words), np.float32)
        self._keys: NDArray[np.uint64] = np.zeros(self._expected, np.uint64)  # 0 = taken back
        self._gone: NDArray[np.bool_] = np.zeros(self._expected, np.bool_)
        self._index = Index(ROWS_AT_FIRST)
        self._used = 0
        self._live = 0
        self._used_max = 0
        self._small_intervals = 0

    def __len__(self) -> int:
        """Rows and tombstones."""
        return self._live

    def add(self, keys: NDArray[np.uint64], rows: NDArray[np.float32]) -> None:
        """`keys` must not be here already."""
        positions = self._claim(keys)
        self._rows[positions] = rows

    def add_tombstones(self, keys: NDArray[np.uint64]) -> None:
        """`keys` must not be here already."""
        self._gone[self._claim(keys)] = True

    def _claim(self, keys: NDArray[np.uint64]) -> slice:
        if self._used + len(keys) > len(self._keys):
            self._grow(len(keys))
        start, self._used = self._used, self._used + len(keys)
        positions = slice(start, self._used)
        self._keys[positions] = keys
        self._gone[positions] = False
        if self._used > self._index.capacity:
            self._index_anew(2 * self._used)
        else:
            self._index.assign(keys, np.arange(start, self._used))
        self._live += len(keys)
        return positions

    def _grow(self, incoming: int) -> None:
        """Room for `incoming` more; closes the gaps of rows that were taken back."""
        live = np.flatnonzero(self._keys[: self._used])
        room = max(ROWS_AT_FIRST, 2 * (len(live) + incoming))
        rows = np.empty((room, self._words), np.float32)
        keys, gone = np.zeros(room, np.uint64), np.zeros(room, np.bool_)
        copy_rows(self._rows, live, rows)
        keys[: len(live)], gone[: len(live)] = self._keys[live], self._gone[live]
        self._rows, self._keys, self._gone = rows, keys, gone
        self._used = len(live)
        self._index_anew(room)

    def _index_anew(self, capacity: int) -> None:
        live = np.flatnonzero(self._keys[: self._used])
        self._index = Index(capacity)
        self._index.assign(self._keys[live], live)

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Positions int64[N] of rows and tombstones, -1 where there is neither."""
        if not self._live:
            return np.full(len(keys), -1)
        return self._index.find(keys)

    def at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(rows float32[N, words], whether it is a tombstone bool[N]: then the row is void)."""
        rows = np.empty((len(positions), self._words), np.float32)
        copy_rows(self._rows, positions, rows)
        return rows, self._gone[positions]

    def remove(self, keys: NDArray[np.uint64]) -> None:
        """Drop `keys`, all of which must be here: they are back in the slab, or deleted."""
        self._keys[self._index.find(keys)] = 0
        self._index.delete(keys)
        self._live -= len(keys)

    def rows_live(self) -> NDArray[np.int64]:
        """Positions of the rows."""
        return np.flatnonzero((self._keys[: self._used] != 0) & ~self._gone[: self._used])

    def take(self, positions: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Copy the rows at `positions` to `out` float32[N, words]."""
        copy_rows(self._rows, positions, out)

    def tombstones(self) -> NDArray[np.uint64]:
        """Keys."""
        gone = (self._keys[: self._used] != 0) & self._gone[: self._used]
        keys: NDArray[np.uint64] = self._keys[: self._used][gone]
        return keys

    def clear(self) -> None:
        """What was here is on disk now. The memory is kept: the next interval needs as much.

        One unusual interval must not cost memory for ever, nor a single short one the work of
        growing again.
        """
        self._used_max = max(self._used_max, self._used)
        small = 8 * self._used < self._used_max
        self._small_intervals = self._small_intervals + 1 if small else 0
        if self._small_intervals > SMALL_INTERVALS_MAX:
            self._start()
        elif self._used:
            self._keys[: self._used] = 0
            self._index.clear()
            self._used = self._live = 0
