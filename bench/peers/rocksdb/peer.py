"""RocksDB alone, in the project's own environment: rows as values under big-endian keys.

Each step reads the distinct keys in order by one list-get, changes them by row-wise Adagrad in
numpy, and writes them as one sorted WriteBatch; its block cache holds a tenth of the rows. Writes
go to the log unsynced, and the log is synced every `commit_every_s` seconds.
"""

from __future__ import annotations

import importlib.metadata
import time
from typing import Any

import numpy as np
import rocksdict
from turns import Step, serve
from workload import EPS, LR, batches, gradients, hashed

FILL_ROWS = 1_000_000


def prepare(request: dict[str, Any]) -> tuple[Step, dict[str, Any]]:
    keys, dim = request["keys"], request["dim"]
    options = _options(cache_bytes=keys * (4 * dim + 12) // 10)
    database = rocksdict.Rdict(request["directory"], options, column_families={"default": options})
    row_bytes = 4 * (dim + 1)
    _fill(database, options, request["directory"], keys, row_bytes)
    drawn = batches(keys, request["batches"], request["ids"], request.get("seed"))
    wanted = [np.unique(hashed(b)) for b in drawn]
    grad = gradients(max(map(len, wanted)), dim)
    synced = time.monotonic()

    def step(n: int) -> None:
        nonlocal synced
        mine = wanted[n % len(wanted)]
        names = mine.astype(">u8").view("V8").tolist()
        rows = np.frombuffer(b"".join(database.get(names)), np.float32)
        rows = rows.reshape(len(mine), dim + 1).copy()
        changed = grad[: len(mine)]
        rows[:, dim] += (changed * changed).mean(1)
        rows[:, :dim] -= (LR / (np.sqrt(rows[:, dim]) + EPS))[:, None] * changed
        batch = rocksdict.WriteBatch(raw_mode=True)
        for name, value in zip(names, rows.view(f"V{row_bytes}").ravel().tolist(), strict=True):
            batch.put(name, value)
        database.write(batch)
        if time.monotonic() - synced >= request.get("commit_every_s", 1.0):
            database.flush_wal(True)
            synced = time.monotonic()

    return step, {"version": importlib.metadata.version("rocksdict"), "mode": "unique"}


def _options(cache_bytes: int) -> Any:
    options = rocksdict.Options(raw_mode=True)
    table = rocksdict.BlockBasedOptions()
    table.set_bloom_filter(10.0, False)
    table.set_block_cache(rocksdict.Cache(cache_bytes))
    options.set_block_based_table_factory(table)
    options.set_compression_type(rocksdict.DBCompressionType.none())
    options.create_if_missing(True)
    return options


def _fill(database: Any, options: Any, directory: str, keys: int, row_bytes: int) -> None:
    ordered = np.sort(hashed(np.arange(keys, dtype=np.int64)))
    row = np.full(row_bytes // 4, 0.01, np.float32).tobytes()
    files = []
    for n, first in enumerate(range(0, keys, FILL_ROWS)):
        files.append(f"{directory}/fill-{n}.sst")
        writer = rocksdict.SstFileWriter(options)
        writer.open(files[-1])
        for name in ordered[first : first + FILL_ROWS].astype(">u8").view("V8").tolist():
            writer[name] = row
        writer.finish()
    database.ingest_external_file(files)


serve(prepare)
