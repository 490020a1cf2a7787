"""Memory of the rows that wait for their commit."""

from __future__ import annotations

import numpy as np

from embedding_store.spill import ROWS_AT_FIRST, SMALL_INTERVALS_MAX, Spill


def test_memory_outlasts_a_few_short_intervals_and_no_more() -> None:
    spill = Spill(4)

    def interval(rows: int) -> int:
        """Fill and empty it; rows that it has memory for afterwards."""
        keys = np.arange(1, rows + 1, dtype=np.uint64)
        spill.add(keys, np.ones((rows, 4), np.float32))
        assert len(spill) == rows and (spill.find(keys) >= 0).all()
        spill.clear()
        assert len(spill) == 0 and (spill.find(keys) == -1).all()
        return len(spill._rows)

    large = interval(50_000)
    assert large >= 50_000
    for _ in range(2):  # a large one in between starts the count anew
        assert [interval(3) for _ in range(SMALL_INTERVALS_MAX)] == [large] * SMALL_INTERVALS_MAX
        assert interval(50_000) == large
    for _ in range(SMALL_INTERVALS_MAX):
        interval(3)
    assert interval(3) == ROWS_AT_FIRST


def test_more_rows_than_at_first_are_found_without_any_being_moved() -> None:
    spill, memory = Spill(4, 20_000), set()
    every = np.arange(1, 15_001, dtype=np.uint64)
    for some in np.array_split(every, 7):
        spill.add(some, np.repeat(some.astype(np.float32)[:, None], 4, axis=1))
        memory.add(spill._rows.ctypes.data)
    spill.remove(every[::3])
    at = spill.find(every)
    assert (at[::3] == -1).all()
    left = np.delete(np.arange(len(every)), np.s_[::3])
    rows, gone = spill.at(at[left])
    assert (rows[:, 0] == every[left]).all() and not gone.any()
    assert len(memory) == 1
