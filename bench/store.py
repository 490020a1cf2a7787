"""Look-up and row-wise Adagrad in memory, against torch's own sparse embeddings. One thread each.

A step takes 4,096 x 26 ids, Zipf(1.05) over a universe of keys that all have a row. `ours` reads
each distinct row once and updates it by a gradient per distinct row; `ours_full` also spreads the
rows to every id and sums the gradients of every id by torch, as the peers do: the ratios compare
this one. The peers get dense row numbers, so they need no index; ours finds hashed 64-bit keys.
"""

from __future__ import annotations

import gc
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from measuring import ratio, run_benchmark, say, spread
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from embedding_store.layout import RowLayout, SetSpec
from embedding_store.store import EmbeddingStore

IDS = 4096 * 26
DIM = 16
EXPONENT = 1.05
BATCHES = 8
LR = 0.05
NOW_MS = 1_700_000_000_000
SET = "shared"
NOT_RUN = {
    "ratio_fbgemm": "fbgemm-gpu-cpu needs an environment of its own",
    "ratio_tfra": "TensorFlow's pins do not resolve beside PyFlink's",
    "ratio_lmdb": "the beyond-memory part is not built",
    "ratio_rocksdb_only": "the beyond-memory part is not built",
    "ssd_fraction": "the beyond-memory part is not built",
    "steps_kept_while_committing": "commits beside a running step are not measured",
    "restart_seconds": "not measured",
    "universes": "1e8 keys and D=64 are not run",
}
Ids = NDArray[np.int64]
Step = Callable[[int], None]


def measure(quick: bool) -> dict[str, Any]:
    """Every key of the report; see the module."""
    torch.set_num_threads(1)
    warnings.filterwarnings(
        "ignore", "Sparse invariant checks"
    )  # once per run, by torch's own code
    universes = (100_000, 1_000_000) if quick else (1_000_000, 10_000_000)
    rounds, steps = (3, 5) if quick else (5, 20)
    _universe(1_000, 1, 1)  # compiles the kernels, whose memory is not the rows'
    by_universe: dict[str, dict[str, Any]] = {}
    for universe in universes:
        say(f"{universe:,} keys")
        by_universe[str(universe)] = _universe(universe, rounds, steps)
    say("commits")
    commits = _commits(rounds, rows=100_000 if quick else 500_000)
    largest = by_universe[str(universes[-1])]
    per_row = [by_universe[str(u)]["ns_per_unique_row"]["median"] for u in universes]
    return {
        "ratio_torch_adagrad": largest["ratio_torch_adagrad"]["median"],
        "ratio_torch_sparse_adam": largest["ratio_torch_sparse_adam"]["median"],
        "growth_per_decade": per_row[1] / per_row[0],
        "commit_rows_per_second": commits["median"],
        "memory_bytes_per_row": largest["memory_bytes_per_row"],
        "ms_per_step": {name: largest["ms_per_step"][name]["median"] for name in SYSTEMS},
        "keys": universes[-1],
        "ids_per_step": IDS,
        "dim": DIM,
        "growth_decade": list(universes),
        "by_universe": by_universe,
        "commit": commits,
        "not_run": NOT_RUN,
    }


def _universe(universe: int, rounds: int, steps: int) -> dict[str, Any]:
    random = np.random.Generator(np.random.PCG64(universe))
    batches = [_zipf(random, universe) for _ in range(BATCHES)]
    uniques = float(np.mean([len(np.unique(batch)) for batch in batches]))
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        before = psutil.Process().memory_info().rss
        store = _open(Path(folder) / "store", universe)
        _fill(store, universe)
        gc.collect()
        bytes_per_row = (psutil.Process().memory_info().rss - before) / universe
        systems = {name: make(store, universe, batches) for name, make in SYSTEMS.items()}
        ms: dict[str, list[float]] = {name: [] for name in systems}
        for step in systems.values():
            step(0)
        for n in range(rounds):
            for name, step in systems.items():
                ms[name].append(_time(step, n, steps))
        store.close()
    say(", ".join(f"{name} {np.median(values):.1f} ms" for name, values in ms.items()))
    return {
        "ms_per_step": {name: spread(values) for name, values in ms.items()},
        "ratio_torch_adagrad": ratio(ms["torch_adagrad"], ms["ours_full"]),
        "ratio_torch_sparse_adam": ratio(ms["torch_sparse_adam"], ms["ours_full"]),
        "ns_per_unique_row": spread([1e6 * value / uniques for value in ms["ours"]]),
        "unique_rows_per_step": uniques,
        "memory_bytes_per_row": bytes_per_row,
    }


def _zipf(random: np.random.Generator, universe: int) -> Ids:
    """Row numbers [IDS] below `universe`: the bounded power law, by its continuous inverse."""
    power = 1.0 - EXPONENT
    top = (universe + 1.0) ** power
    drawn = (1.0 - random.random(IDS) * (1.0 - top)) ** (1.0 / power)
    ids: Ids = np.minimum(drawn.astype(np.int64) - 1, universe - 1)
    return ids


def _hashed(ids: Ids) -> NDArray[np.uint64]:
    """splitmix64 of the row numbers: keys that say nothing of where a row lies."""
    with np.errstate(over="ignore"):
        x = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _open(path: Path, rows_max: int) -> EmbeddingStore:
    spec = SetSpec(dim=DIM, optimizer="rowwise_adagrad", lr=LR, eps=1e-8, init_scale=0.01)
    # Two batches are pinned at a time, and a batch may be up to IDS rows wide.
    return EmbeddingStore.open(
        path, RowLayout(sets={SET: spec}), cache_rows_max=rows_max + 2 * IDS, owner="bench"
    )


def _fill(store: EmbeddingStore, universe: int) -> None:
    """Give every key its row."""
    for first in range(0, universe, IDS):
        keys = _hashed(np.arange(first, min(first + IDS, universe), dtype=np.int64))
        store.lookup(keys, now_ms=NOW_MS)


def _time(step: Step, start: int, steps: int) -> float:
    """Milliseconds per step."""
    began = time.perf_counter()
    for n in range(start, start + steps):
        step(n)
    return 1000 * (time.perf_counter() - began) / steps


def _ours(store: EmbeddingStore, universe: int, batches: list[Ids]) -> Step:
    del universe
    keys = [_hashed(batch) for batch in batches]
    grads = np.random.Generator(np.random.PCG64(1)).standard_normal((IDS, DIM), np.float32)

    def step(n: int) -> None:
        lookup = store.lookup(keys[n % BATCHES], now_ms=NOW_MS)
        store.gather(lookup, SET)
        store.update(lookup, SET, grads[: len(lookup.keys)], now_ms=NOW_MS)

    return step


def _ours_full(store: EmbeddingStore, universe: int, batches: list[Ids]) -> Step:
    del universe
    keys = [_hashed(batch) for batch in batches]
    grads = torch.randn(IDS, DIM)

    def step(n: int) -> None:
        lookup = store.lookup(keys[n % BATCHES], now_ms=NOW_MS)
        rows = torch.from_numpy(store.gather(lookup, SET)).requires_grad_()
        out = functional.embedding(torch.from_numpy(lookup.inverse), rows)
        torch.autograd.backward(out, grads)
        assert rows.grad is not None
        store.update(lookup, SET, rows.grad.numpy(), now_ms=NOW_MS)

    return step


def _torch_step(
    optimizer: Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer],
) -> Callable[[EmbeddingStore, int, list[Ids]], Step]:
    def make(store: EmbeddingStore, universe: int, batches: list[Ids]) -> Step:
        del store
        table = nn.Embedding(universe, DIM, sparse=True)
        chosen = optimizer(table.parameters())
        ids = [torch.from_numpy(batch) for batch in batches]
        grads = torch.randn(IDS, DIM)

        def step(n: int) -> None:
            chosen.zero_grad(set_to_none=True)
            torch.autograd.backward(table(ids[n % BATCHES]), grads)
            chosen.step()

        return step

    return make


SYSTEMS: dict[str, Callable[[EmbeddingStore, int, list[Ids]], Step]] = {
    "ours": _ours,
    "ours_full": _ours_full,
    "torch_adagrad": _torch_step(lambda weights: torch.optim.Adagrad(weights, lr=LR)),
    "torch_sparse_adam": _torch_step(lambda weights: torch.optim.SparseAdam(weights, lr=LR)),
}


def _commits(rounds: int, rows: int) -> dict[str, float]:
    """Changed rows that one synced commit writes per second, nothing else running."""
    per_second: list[float] = []
    grads = np.ones((IDS, DIM), np.float32)
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        store = _open(Path(folder) / "store", rows)
        for _ in range(rounds):
            for first in range(0, rows, IDS):
                ids = np.arange(first, min(first + IDS, rows), dtype=np.int64)
                lookup = store.lookup(_hashed(ids), now_ms=NOW_MS)
                store.update(lookup, SET, grads[: len(lookup.keys)], now_ms=NOW_MS)
            dirty = store.stats().rows_dirty
            began = time.perf_counter()
            store.commit()
            per_second.append(dirty / (time.perf_counter() - began))
        store.close()
    return spread(per_second)


if __name__ == "__main__":
    run_benchmark("store", measure)
