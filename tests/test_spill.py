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
