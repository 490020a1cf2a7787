"""A tenth of the rows hot, the rest on disk; durable commits go on all the time.

beyond memory
bare         a step waits for its cold rows
prefetched   the next step's rows are read while a dense part as long as the reads runs
on disk
direct       cold rows past the page cache, against what the disk gives at its best queue depth
restart      a new process: opening to the end of the first step
checkpoint   how long a copy by hard links holds the steps up

Batches do not repeat: each step meets rows it has not seen for long. LMDB and RocksDB alone keep
the same promise, what was changed is synced once a second; `ratio_lmdb_unsynced` lets LMDB off it.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Part, ratio, say, spread
from peer_process import Peer, PeerAbsent
from store_disk import best_reads_per_second
from store_hot import NOW_MS, SET, open_store
from workload import EPS, IDS, LR, batches, gradients, hashed

from embedding_store.layout import RowLayout, SetSpec
from embedding_store.rocks import Reads
from embedding_store.store import EmbeddingStore, PendingCommit

DIM = 16
COMMIT_EVERY_S = 1.0
FILL_ROWS = 1_000_000
SIZE, SIZE_QUICK = (10_000_000, 5, 20), (300_000, 3, 5)
"""Keys, rounds, steps a round."""
STEADY_STEPS, STEADY_STEPS_QUICK = 240, 5
"""Before anything is measured: some three seconds, so several commits and what they spill."""
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lmdb": ("lmdb", {"commit_every_s": COMMIT_EVERY_S}),
    "rocksdb_only": ("rocksdb", {"commit_every_s": COMMIT_EVERY_S}),
    "lmdb_unsynced": ("lmdb", {"commit_every_s": 1e9}),
}


class Ours:
    """A store on disk, and its steps beside commits once a second."""

    def __init__(self, path: Path, keys: int, rows_max: int, *, reads: Reads = "auto") -> None:
        self.path = path
        spec = SetSpec(dim=DIM, optimizer="rowwise_adagrad", lr=LR, eps=EPS, init_scale=0.01)
        self.store = EmbeddingStore.open(
            path, RowLayout({SET: spec}), cache_rows_max=rows_max, owner="bench", reads=reads
        )
        self._keys, self._grads = keys, gradients(IDS, DIM)
        self._drawn = 0
        self._pending: PendingCommit | None = None
        self._committed_at = time.monotonic()
        self.commits = 0

    def draw(self, steps: int) -> list[Any]:
        """The keys of `steps` further batches."""
        self._drawn += 1
        return [hashed(b) for b in batches(self._keys, steps, seed=1000 + self._drawn)]

    def step(self, keys: Any, ahead: Any = None, dense: Callable[[], None] | None = None) -> None:
        """Look up, read ahead, the dense part, update; commit when one is due."""
        lookup = self.store.lookup(keys, now_ms=NOW_MS)
        self.store.gather(lookup, SET)
        if ahead is not None:
            self.store.prefetch(ahead)
        if dense is not None:
            dense()
        self.store.update(lookup, SET, self._grads[: len(lookup.keys)], now_ms=NOW_MS)
        if self._pending is not None and self._pending.done:
            self.finish_commit()
        if self._pending is None and time.monotonic() - self._committed_at >= COMMIT_EVERY_S:
            self._committed_at = time.monotonic()
            self._pending = self.store.commit_begin()

    def finish_commit(self) -> None:
        """Wait for the commit under way."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
            self.commits += 1

    def close(self) -> None:
        """Let go of the files."""
        self.finish_commit()
        self.store.close()


def fill(path: Path, keys: int) -> None:
    """Give every key its row on disk, a million rows a commit."""
    with open_store(path, min(keys, FILL_ROWS), DIM) as store:
        for first in range(0, keys, FILL_ROWS):
            last = min(first + FILL_ROWS, keys)
            for start in range(first, last, IDS):
                ids = np.arange(start, min(start + IDS, last), dtype=np.int64)
                store.lookup(hashed(ids), now_ms=NOW_MS)
            store.commit()


def measure(quick: bool) -> Part:
    """Keys ratio_lmdb, ratio_rocksdb_only, ratio_lmdb_unsynced, prefetched_over_in_memory."""
    keys, rounds, steps = SIZE_QUICK if quick else SIZE
    not_run: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        ours = _steady(Path(folder) / "store", quick=quick)
        cached = _cached(ours, keys, rounds, steps, quick=quick, not_run=not_run)
        ours.close()
    told = ("ratio_", "prefetched_over")
    summary = {name: found["median"] for name, found in cached.items() if name.startswith(told)}
    return Part(summary, {"beyond_memory": {"keys": keys, **cached}}, not_run)


def measure_on_disk(quick: bool) -> Part:
    """Keys ssd_fraction, restart_seconds, checkpoint_stall_p99_ms."""
    keys, rounds, steps = SIZE_QUICK if quick else SIZE
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        path = Path(folder) / "store"
        ours = _steady(path, quick=quick)
        checkpoint = _checkpoints(ours, Path(folder), 5 if quick else 20)
        ours.close()
        restart = [_restart(path, keys, _rows_max(keys)) for _ in range(3)]
        direct = _direct(path, keys, _rows_max(keys), rounds, max(steps // 4, 2))
    summary = {
        "ssd_fraction": direct["ssd_fraction"]["median"],
        "restart_seconds": max(restart),
        "checkpoint_stall_p99_ms": checkpoint["p99_ms"],
    }
    detail = {"keys": keys, "direct": direct, "restart": spread(restart), "checkpoint": checkpoint}
    return Part(summary, {"on_disk": detail})


def _rows_max(keys: int) -> int:
    """A tenth; but two batches have to fit."""
    return max(keys // 10, 2 * IDS)


def _steady(path: Path, *, quick: bool) -> Ours:
    """A filled store after so many steps that evictions and commits are as ever."""
    torch.set_num_threads(1)
    keys, _, _ = SIZE_QUICK if quick else SIZE
    began = time.perf_counter()
    fill(path, keys)
    say(f"{keys:,} rows filled in {time.perf_counter() - began:.0f} s")
    ours = Ours(path, keys, _rows_max(keys))
    for each in ours.draw(STEADY_STEPS_QUICK if quick else STEADY_STEPS):
        ours.step(each)
    return ours


def _cached(
    ours: Ours, keys: int, rounds: int, steps: int, *, quick: bool, not_run: dict[str, str]
) -> dict[str, Any]:
    """Cold rows from the page cache: ours in its three ways and the peers, in turns."""
    peers = _started(keys, rounds * steps, quick=quick, not_run=not_run)
    hot = _all_hot(ours, keys)
    dense = _dense(0.0)
    ms: dict[str, list[float]] = {}

    def told(name: str, value: float) -> None:
        ms.setdefault(name, []).append(value)

    before, counted = ours.store.stats(), 0
    for n in range(rounds):
        told("bare", _run(ours, steps))
        told("in_memory", hot(n * steps, steps, None))
        dense = _dense(max(0.0, ms["bare"][-1] - ms["in_memory"][-1]))
        told("dense", _timed(dense, steps))
        told("prefetched", _run(ours, steps, dense))
        told("in_memory_with_dense", hot(n * steps, steps, dense))
        counted += 2 * steps
        for name, peer in list(peers.items()):
            try:
                told(name, peer.steps(n * steps, steps))
            except PeerAbsent as error:
                not_run[f"ratio_{name}"] = str(error)
                peers.pop(name)
                ms.pop(name, None)
        say(f"round {n + 1}: " + ", ".join(f"{k} {v[-1]:.0f} ms" for k, v in ms.items()))
    for peer in peers.values():
        peer.close()
    after = ours.store.stats()
    return {
        "ms_per_step": {name: spread(values) for name, values in ms.items()},
        **{f"ratio_{name}": ratio(ms[name], ms["bare"]) for name in peers},
        "prefetched_over_in_memory": ratio(ms["prefetched"], ms["in_memory_with_dense"]),
        "cold_rows_per_step": (after.lookups_cold - before.lookups_cold) / counted,
        "hot_rows": ours.store.stats().cache_rows_max,
        "commits": ours.commits,
    }


def _run(ours: Ours, steps: int, dense: Callable[[], None] | None = None) -> float:
    """Milliseconds per step; with a dense part, the next batch is read ahead."""
    drawn = ours.draw(steps + 1)
    if dense is not None:
        ours.store.prefetch(drawn[0])
    began = time.perf_counter()
    for n in range(steps):
        ours.step(drawn[n], drawn[n + 1] if dense is not None else None, dense)
    return 1000 * (time.perf_counter() - began) / steps


def _all_hot(ours: Ours, keys: int) -> Callable[[int, int, Callable[[], None] | None], float]:
    """The same step with every row in the slab: what a prefetched one should cost."""
    folder = tempfile.mkdtemp(dir=ours.path.parent)
    store = open_store(Path(folder) / "hot", keys, DIM)
    for first in range(0, keys, IDS):
        ids = np.arange(first, min(first + IDS, keys), dtype=np.int64)
        store.lookup(hashed(ids), now_ms=NOW_MS)
    grads = gradients(IDS, DIM)

    def run(first: int, steps: int, dense: Callable[[], None] | None) -> float:
        drawn = [hashed(b) for b in batches(keys, steps, seed=first)]
        began = time.perf_counter()
        for each in drawn:
            lookup = store.lookup(each, now_ms=NOW_MS)
            store.gather(lookup, SET)
            if dense is not None:
                dense()
            store.update(lookup, SET, grads[: len(lookup.keys)], now_ms=NOW_MS)
        return 1000 * (time.perf_counter() - began) / steps

    return run


def _dense(ms: float) -> Callable[[], None]:
    """A dense part of about `ms` on one thread: matrix products, which hold no lock of Python's."""
    left, right = torch.ones(384, 384), torch.ones(384, 384)
    began, once = time.perf_counter(), 0.0
    for _ in range(20):
        torch.mm(left, right)
    once = 1000 * (time.perf_counter() - began) / 20
    times = round(ms / once)

    def run() -> None:
        for _ in range(times):
            torch.mm(left, right)

    return run


def _timed(run: Callable[[], None], steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        run()
    return 1000 * (time.perf_counter() - began) / steps


def _started(keys: int, steps: int, *, quick: bool, not_run: dict[str, str]) -> dict[str, Peer]:
    """Peers that run here, filled; their batches do not repeat, either."""
    running: dict[str, Peer] = {}
    for name, (folder, more) in PEERS.items():
        if quick and name == "lmdb_unsynced":
            continue
        try:
            peer = Peer(folder, install=not quick)
            running[name] = peer
            peer.prepare({"keys": keys, "dim": DIM, "ids": IDS, "batches": steps + 1, **more})
        except PeerAbsent as error:
            not_run[f"ratio_{name}"] = str(error)
            if name in running:
                running.pop(name).close()
    return running


def _checkpoints(ours: Ours, folder: Path, times: int) -> dict[str, float]:
    """Milliseconds that a checkpoint takes from the step that it comes between."""
    taken: list[float] = []
    for n in range(times):
        for each in ours.draw(3):
            ours.step(each)
        began = time.perf_counter()
        ours.store.checkpoint(folder / f"checkpoint-{n}")
        taken.append(1000 * (time.perf_counter() - began))
    return {**spread(taken), "p99_ms": float(np.percentile(taken, 99))}


def _restart(path: Path, keys: int, rows_max: int) -> float:
    """Seconds of a new process from its start to the end of its first step."""
    began = time.perf_counter()
    code = (
        "import sys; from pathlib import Path; from store_beyond_memory import Ours; "
        "o = Ours(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])); "
        "o.step(o.draw(1)[0]); print('stepped', flush=True); o.store.close()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(keys), str(rows_max)],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
    assert line == b"stepped\n", f"the restarted process ended: {process.returncode}"
    return seconds


def _direct(path: Path, keys: int, rows_max: int, rounds: int, steps: int) -> dict[str, Any]:
    """Cold rows a second past the page cache, beside the disk's own best on the same file."""
    gc.collect()
    ours = Ours(path, keys, rows_max, reads="direct")
    for each in ours.draw(2):
        ours.step(each)
    kept = path.with_name("kept")
    ours.store.checkpoint(kept)  # compaction may delete the store's own table at any moment
    table = max((kept / "rocks").glob("*.sst"), key=lambda file: file.stat().st_size)
    ms, rows, fractions, disks = [], [], [], []
    for _ in range(rounds):
        before = ours.store.stats().lookups_cold
        ms.append(_run(ours, steps))
        cold = (ours.store.stats().lookups_cold - before) / steps
        rows.append(1000 * cold / ms[-1])
        disks.append(best_reads_per_second(table))
        fractions.append(rows[-1] / disks[-1])
    ours.close()
    say(f"direct: {np.median(rows):,.0f} rows/s of {np.median(disks):,.0f} reads/s")
    return {
        "ms_per_step": spread(ms),
        "rows_per_second": spread(rows),
        "disk_reads_per_second": spread(disks),
        "ssd_fraction": spread(fractions),
    }
