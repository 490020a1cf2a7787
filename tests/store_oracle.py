"""What the embedding store must be, in the plainest Python: a dict, a copy of it at each commit."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from embedding_store.keys import row_keys
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.store import EmbeddingStore

LAYOUT = RowLayout(
    {
        "shared": SetSpec(dim=4, lr=0.1),
        "exp:0": SetSpec(dim=3, lr=0.5, eps=1e-3, init_scale=0.5),
    }
)
M64 = 2**64 - 1


def first_vector(key: int, set_name: str, spec: SetSpec) -> np.ndarray:
    """SplitMix64 in Python's own integers."""
    state = key ^ int(xxhash.xxh3_64_intdigest(set_name.encode()))
    out = []
    for _ in range(spec.dim):
        state = (state + 0x9E3779B97F4A7C15) & M64
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & M64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
        unit = np.float32(((z ^ (z >> 31)) >> 40) * 2.0**-23 - 1)
        out.append(unit * np.float32(spec.init_scale))
    return np.array(out, np.float32)


def squares(grad: np.ndarray) -> np.float32:
    """In float32: eight sums, one per d % 8, added up as a tree."""
    lanes = [np.float32(0)] * 8
    for d, g in enumerate(grad):
        lanes[d % 8] += g * g
    a, b, c, d, e, f, g, h = lanes
    return ((a + e) + (c + g)) + ((b + f) + (d + h))


def adagrad(spec: SetSpec, vector: np.ndarray, total: np.ndarray, grad: np.ndarray) -> None:
    """Row-wise Adagrad in float32, dimensions added up in order."""
    new = total[0] + squares(grad) / np.float32(spec.dim)
    if np.isfinite(new):
        total[0] = new
        vector -= np.float32(spec.lr) / (np.sqrt(new) + np.float32(spec.eps)) * grad


@dataclass
class OracleRow:
    created_s: int
    last_touched_s: int
    count: int
    sets: dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass
class Oracle:
    layout: RowLayout = LAYOUT
    rows: dict[int, OracleRow] = field(default_factory=dict)
    state: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    commit_id: int = 0
    committed: tuple[dict[int, OracleRow], dict[tuple[str, bytes], bytes]] = ({}, {})

    def lookup(self, keys: list[int], now_ms: int) -> set[int]:
        """Creates what is missing; returns which."""
        created = set(keys) - set(self.rows)
        for key in created:
            sets = {
                name: (first_vector(key, name, spec), np.zeros(1, np.float32))
                for name, spec in self.layout.sets.items()
            }
            self.rows[key] = OracleRow(now_ms // 1000, now_ms // 1000, 0, sets)
        return created

    def update(self, keys: list[int], set_name: str, grad: np.ndarray) -> None:
        for key, g in zip(keys, grad, strict=True):
            adagrad(self.layout.sets[set_name], *self.rows[key].sets[set_name], g)

    def count(self, ids: list[int], now_ms: int) -> None:
        for key in ids:
            self.rows[key].count += 1
            self.rows[key].last_touched_s = max(self.rows[key].last_touched_s, now_ms // 1000)

    def commit(self) -> None:
        self.commit_id += 1
        self.committed = copy.deepcopy((self.rows, self.state))

    def crash(self) -> None:
        self.rows, self.state = copy.deepcopy(self.committed)

    def space(self, name: str) -> list[tuple[bytes, bytes]]:
        return sorted((key, value) for (space, key), value in self.state.items() if space == name)


def plain(row: OracleRow) -> tuple[Any, ...]:
    sets = {name: (v.tobytes(), s.tobytes()) for name, (v, s) in row.sets.items()}
    return row.created_s, row.last_touched_s, row.count, sets


def assert_same(store: EmbeddingStore, oracle: Oracle) -> None:
    """Every row byte by byte, in order, and every record of state."""
    got = {}
    for key, header, sets in store.rows():
        assert header.key == key and header.slot == 0
        flat = {name: (v.tobytes(), s.tobytes()) for name, (v, s) in sets.items()}
        got[key] = (header.created_s, header.last_touched_s, header.count, flat)
    assert list(got) == sorted(oracle.rows)
    for key, row in oracle.rows.items():
        assert got[key] == plain(row), hex(key)
    for space in ("outbox", "offsets"):
        assert list(store.scan(space)) == oracle.space(space)
    assert store.commit_id == oracle.commit_id
    assert store.stats().rows_total == len(oracle.rows)


def scripted_step(store: EmbeddingStore, step: int, *, ids: int = 30, universe: int = 400) -> None:
    """One training step, a function of `step`: ids with duplicates, two sets, state."""
    rng = np.random.default_rng(step)
    values = (universe * rng.random(ids) ** 3).astype(int)
    only_seen = rng.integers(0, universe, ids // 4)  # predicted for, never learnt from
    store.lookup(row_keys("user", [str(v) for v in only_seen]), now_ms=1000 * step)
    lookup = store.lookup(row_keys("item", [str(v) for v in values]), now_ms=1000 * step)
    for name in ("shared", "exp:0"):
        grad = store.gather(lookup, name) + np.float32(0.1)
        store.update(lookup, name, grad, now_ms=1000 * step)
    store.put("offsets", b"partition-0", b"%d" % step)
    store.put("outbox", b"%08d" % step, hashlib.sha256(b"%d" % step).digest() * 8)
    store.delete("outbox", b"%08d" % (step - 5))
