"""Look-up and row-wise Adagrad with every row hot: ours, one thread.

`ours` reads each distinct row once and updates it by a gradient per distinct row; `ours_full` also
spreads the rows to every id and sums the gradients of every id, as peers with dense tables do. Ours
finds hashed 64-bit keys and keeps headers, sets and the found-mask.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from workload import EPS, IDS, LR, Ids, batches, gradients, hashed

from embedding_store.layout import RowLayout, SetSpec
from embedding_store.pages import zeros
from embedding_store.store import EmbeddingStore

NOW_MS = 1_700_000_000_000
SET = "shared"
Step = Callable[[int], None]


class Ours:
    """A store whose every key has a hot row, and its two ways to take a step."""

    def __init__(self, universe: int, dim: int) -> None:
        self.universe, self.dim = universe, dim
        self._folder = tempfile.TemporaryDirectory(prefix="headwater-bench-")
        before = psutil.Process().memory_info().rss
        self._store = open_store(Path(self._folder.name) / "store", universe, dim)
        fill(self._store, universe)
        gc.collect()
        self.bytes_per_row = (psutil.Process().memory_info().rss - before) / universe
        self._batches = batches(universe)
        self.unique_rows = float(np.mean([len(np.unique(batch)) for batch in self._batches]))
        keys = [hashed(batch) for batch in self._batches]
        grads = gradients(IDS, dim)
        self._steps: dict[str, Step] = {
            "ours": _unique(self._store, keys, grads),
            "ours_full": _full(self._store, keys, grads),
        }
        for step in self._steps.values():
            step(0)

    def steps(self, mode: str, first: int, steps: int) -> float:
        """Milliseconds per step; `mode` is "ours" or "ours_full"."""
        step = self._steps[mode]
        began = time.perf_counter()
        for n in range(first, first + steps):
            step(n)
        return 1000 * (time.perf_counter() - began) / steps

    def close(self) -> None:
        """Give the memory back."""
        self._store.close()
        self._steps.clear()
        del self._store
        self._folder.cleanup()
        gc.collect()


def open_store(path: Path, rows_max: int, dim: int) -> EmbeddingStore:
    """A store that can hold `rows_max` rows hot. Two batches, each up to IDS rows, are pinned."""
    spec = SetSpec(dim=dim, optimizer="rowwise_adagrad", lr=LR, eps=EPS, init_scale=0.01)
    return EmbeddingStore.open(
        path, RowLayout(sets={SET: spec}), cache_rows_max=rows_max + 2 * IDS, owner="bench"
    )


def fill(store: EmbeddingStore, universe: int) -> None:
    """Give every key its row."""
    for first in range(0, universe, IDS):
        keys = hashed(np.arange(first, min(first + IDS, universe), dtype=np.int64))
        store.lookup(keys, now_ms=NOW_MS)


def _unique(store: EmbeddingStore, keys: list[Ids], grads: np.ndarray) -> Step:
    def step(n: int) -> None:
        lookup = store.lookup(keys[n % len(keys)], now_ms=NOW_MS)
        store.gather(lookup, SET)
        store.update(lookup, SET, grads[: len(lookup.keys)], now_ms=NOW_MS)

    return step


def _full(store: EmbeddingStore, keys: list[Ids], grads: np.ndarray) -> Step:
    def step(n: int) -> None:
        lookup = store.lookup(keys[n % len(keys)], now_ms=NOW_MS)
        store.gather_each(lookup, SET)
        store.update_each(lookup, SET, grads, now_ms=NOW_MS)

    return step


def bare_gather(universe: int, dim: int, rounds: int, steps: int) -> list[float]:
    """Milliseconds per step by round of what the machine's memory allows: the same rows read from a
    bare table of the same width at known places by numpy's own gather, and nothing else.

    Each distinct row of a step once, in order of first appearance. The table is gone afterwards.
    """
    table = zeros((universe, dim), np.float32)
    table[:] = 1
    drawn = batches(universe)
    wanted = [batch[np.sort(np.unique(batch, return_index=True)[1])] for batch in drawn]
    out = np.empty((max(map(len, wanted)), dim), np.float32)
    taken: list[float] = []
    for n in range(-1, rounds):
        began = time.perf_counter()
        for step in range(steps):
            rows = wanted[(n * steps + step) % len(wanted)]
            np.take(table, rows, axis=0, out=out[: len(rows)], mode="clip")
        taken.append(1000 * (time.perf_counter() - began) / steps)
    return taken[1:]  # the first also fetched what it needs
