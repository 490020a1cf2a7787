"""What durability costs: a training loop beside commits once a second of all that changed.

undisturbed   look-up, gather and row-wise Adagrad of 4,096 x 26 ids, every row hot, no commits
committing    the same, and `commit_begin` a second after the last one began, `wait` once it is done
small, large  rows a second of one commit and nothing else, through the log and as a table: where
              the two meet is where `TABLE_ROWS_MIN` belongs
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Part, ratio, say, spread
from store_hot import NOW_MS, SET, fill
from workload import EPS, IDS, LR, batches, gradients, hashed

from embedding_store.layout import RowLayout, SetSpec
from embedding_store.store import EmbeddingStore

DIM = 16
COMMIT_EVERY_S = 1.0
NEVER = 1 << 40
COMMIT_ROWS = (1_000, 4_000, 16_000, 64_000)


def measure(quick: bool) -> Part:
    """Keys `steps_kept_while_committing`, `commit_rows_per_second`, `commit`."""
    keys, rounds, seconds = (100_000, 3, 2.0) if quick else (1_000_000, 5, 6.0)
    loop = _loop(keys, rounds, seconds)
    say(f"steps kept: {loop['steps_kept']['median']:.2f}")
    sizes = COMMIT_ROWS[:2] if quick else COMMIT_ROWS
    paths = {
        name: {str(rows): _alone(rows, table_rows_min, rounds) for rows in sizes}
        for name, table_rows_min in (("log", NEVER), ("table", 1))
    }
    per_second = _alone(keys // 2, 1, rounds)
    return Part(
        summary={
            "steps_kept_while_committing": loop["steps_kept"]["median"],
            "commit_stall_p99_ms": loop["stall_p99_ms"]["median"],
            "commit_bytes_per_changed_row": loop["bytes_per_changed_row"]["median"],
            "commit_rows_per_second": per_second["median"],
        },
        detail={"commit": {**loop, "rows_per_second": per_second, "rows_per_second_by": paths}},
    )


def _open(path: Path, rows_max: int, table_rows_min: int) -> EmbeddingStore:
    spec = SetSpec(dim=DIM, optimizer="rowwise_adagrad", lr=LR, eps=EPS, init_scale=0.01)
    return EmbeddingStore.open(
        path,
        RowLayout({SET: spec}),
        cache_rows_max=rows_max + 2 * IDS,
        owner="bench",
        table_rows_min=table_rows_min,
    )


def _loop(keys: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Steps a second with and without commits, in turns."""
    kept: dict[str, list[float]] = {"alone": [], "committing": []}
    told: dict[str, list[float]] = {"stall_p99_ms": [], "bytes_per_changed_row": [], "begin_ms": []}
    drawn = [hashed(b) for b in batches(keys)]
    grads = gradients(IDS, DIM)
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        store = _open(Path(folder) / "store", keys, 8192)
        fill(store, keys)
        store.commit()
        for _ in range(rounds):
            for name, every in (("alone", np.inf), ("committing", COMMIT_EVERY_S)):
                before = store.stats()
                ms, begins = _steps(store, drawn, grads, seconds, every)
                after = store.stats()
                kept[name].append(1000 * len(ms) / sum(ms))
                if name == "committing":
                    rows = after.rows_committed - before.rows_committed
                    told["stall_p99_ms"].append(float(np.percentile(ms, 99)))
                    told["bytes_per_changed_row"].append(
                        (after.table_bytes - before.table_bytes) / max(rows, 1)
                    )
                    told["begin_ms"] += begins
        store.close()
    return {
        "steps_per_second": {name: spread(values) for name, values in kept.items()},
        "steps_kept": ratio(kept["committing"], kept["alone"]),
        **{name: spread(values) for name, values in told.items()},
    }


def _steps(
    store: EmbeddingStore, drawn: list[Any], grads: Any, seconds: float, every: float
) -> tuple[list[float], list[float]]:
    """(milliseconds of each step, what its commit took from it included; of each begin alone)."""
    ms: list[float] = []
    begins: list[float] = []
    pending, began_at = None, time.monotonic()
    ends = began_at + seconds
    while (started := time.monotonic()) < ends:
        lookup = store.lookup(drawn[len(ms) % len(drawn)], now_ms=NOW_MS)
        store.gather(lookup, SET)
        store.update(lookup, SET, grads[: len(lookup.keys)], now_ms=NOW_MS)
        if pending is not None and pending.done:
            pending.wait()
            pending = None
        if pending is None and time.monotonic() - began_at >= every:
            began_at = time.monotonic()
            pending = store.commit_begin()
            begins.append(1000 * (time.monotonic() - began_at))
        ms.append(1000 * (time.monotonic() - started))
    store.commit() if pending is None else pending.wait()
    return ms, begins


def _alone(rows: int, table_rows_min: int, rounds: int) -> dict[str, float]:
    """Changed rows a second of one durable commit, nothing else running."""
    per_second: list[float] = []
    grads = np.ones((IDS, DIM), np.float32)
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        store = _open(Path(folder) / "store", rows, table_rows_min)
        for _ in range(rounds + 1):
            for first in range(0, rows, IDS):
                ids = np.arange(first, min(first + IDS, rows), dtype=np.int64)
                lookup = store.lookup(hashed(ids), now_ms=NOW_MS)
                store.update(lookup, SET, grads[: len(lookup.keys)], now_ms=NOW_MS)
            began = time.perf_counter()
            store.commit()
            per_second.append(rows / (time.perf_counter() - began))
        store.close()
    return spread(per_second[1:])  # the first also starts the child
