"""LMDB alone: rows as values under big-endian keys; unique mode, larger than a cache of its own.

Each step is one write transaction: the distinct keys are read in order, changed by row-wise
Adagrad in numpy, and put back. Nothing is synced but every `commit_every_s` seconds, all at once.
"""

from __future__ import annotations

import time
from typing import Any

import lmdb
import numpy as np
from turns import Step, serve
from workload import EPS, LR, batches, gradients, hashed

FILL_ROWS = 1_000_000


def prepare(request: dict[str, Any]) -> tuple[Step, dict[str, Any]]:
    keys, dim = request["keys"], request["dim"]
    database = lmdb.open(
        request["directory"],
        map_size=max(1 << 30, 8 * keys * (4 * dim + 36)),
        writemap=True,
        sync=False,
        metasync=False,
        max_readers=4,
    )
    _fill(database, keys, dim)
    wanted = [np.unique(hashed(b)) for b in _drawn(request)]
    grad = gradients(max(map(len, wanted)), dim)
    synced = time.monotonic()

    def step(n: int) -> None:
        nonlocal synced
        mine = wanted[n % len(wanted)]
        names = mine.astype(">u8").view("V8").tolist()
        with database.begin(write=True) as transaction, transaction.cursor() as cursor:
            found = cursor.getmulti(names)
            rows = np.frombuffer(b"".join([v for _, v in found]), np.float32)
            rows = rows.reshape(len(mine), dim + 1).copy()
            changed = grad[: len(mine)]
            rows[:, dim] += (changed * changed).mean(1)
            rows[:, :dim] -= (LR / (np.sqrt(rows[:, dim]) + EPS))[:, None] * changed
            values = rows.view(f"V{4 * (dim + 1)}").ravel().tolist()
            cursor.putmulti(list(zip(names, values, strict=True)))
        if time.monotonic() - synced >= request.get("commit_every_s", 1.0):
            database.sync(True)
            synced = time.monotonic()

    return step, {"version": lmdb.__version__, "mode": "unique"}


def _drawn(request: dict[str, Any]) -> list[Any]:
    return batches(request["keys"], request["batches"], request["ids"], request.get("seed"))


def _fill(database: lmdb.Environment, keys: int, dim: int) -> None:
    ordered = np.sort(hashed(np.arange(keys, dtype=np.int64)))
    row = np.full(dim + 1, 0.01, np.float32).tobytes()
    for first in range(0, keys, FILL_ROWS):
        names = ordered[first : first + FILL_ROWS].astype(">u8").view("V8").tolist()
        with database.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti([(name, row) for name in names], append=True)
    database.sync(True)


serve(prepare)
