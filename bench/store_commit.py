"""Changed rows that one synced commit writes per second, nothing else running."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import Part, spread
from store_in_memory import NOW_MS, SET, open_store
from workload import IDS, hashed

DIM = 16


def measure(quick: bool) -> Part:
    """Keys `commit_rows_per_second`, `commit`."""
    rounds, rows = (3, 100_000) if quick else (5, 500_000)
    per_second: list[float] = []
    grads = np.ones((IDS, DIM), np.float32)
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        store = open_store(Path(folder) / "store", rows, DIM)
        for _ in range(rounds):
            for first in range(0, rows, IDS):
                ids = np.arange(first, min(first + IDS, rows), dtype=np.int64)
                lookup = store.lookup(hashed(ids), now_ms=NOW_MS)
                store.update(lookup, SET, grads[: len(lookup.keys)], now_ms=NOW_MS)
            dirty = store.stats().rows_dirty
            began = time.perf_counter()
            store.commit()
            per_second.append(dirty / (time.perf_counter() - began))
        store.close()
    found = spread(per_second)
    return Part(
        summary={"commit_rows_per_second": found["median"]},
        detail={"commit": found},
        not_run={
            "steps_kept_while_committing": "commits beside a running step are not measured",
            "restart_seconds": "not measured",
        },
    )
