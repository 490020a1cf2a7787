"""What the embedding store must be, in the plainest Python: a dict, a copy of it at each commit."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from embedding_store.admission import PANES
from embedding_store.bfloat16 import nearest, widened
from embedding_store.expiry import ExpiryPolicy
from embedding_store.keys import row_keys
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.store import EmbeddingStore
from tests.optimizer_oracle import learn, rounded_to_half, splitmix

LAYOUT = RowLayout(
    {
        "shared": SetSpec(dim=4, lr=0.1),
        "exp:0": SetSpec(dim=3, lr=0.5, eps=1e-3, init_scale=0.5),
    }
)


def set_seed(set_name: str) -> int:
    return int(xxhash.xxh3_64_intdigest(set_name.encode()))


def first_vector(key: int, set_name: str, spec: SetSpec) -> np.ndarray:
    """SplitMix64 in Python's own integers."""
    state = key ^ set_seed(set_name)
    out = []
    for _ in range(spec.dim):
        state, drawn = splitmix(state)
        unit = np.float32((drawn >> 40) * 2.0**-23 - 1)
        out.append(unit * np.float32(spec.init_scale))
    vector = np.array(out, np.float32)
    return vector if spec.dtype == "float32" else widened(nearest(vector))


@dataclass
class OracleRow:
    created_s: int
    last_touched_s: int
    count: int
    slot: int
    sets: dict[str, tuple[np.ndarray, np.ndarray]]
    """Those that the row's slot has."""


@dataclass
class Content:
    """All that a commit holds."""

    rows: dict[int, OracleRow] = field(default_factory=dict)
    state: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    candidates: dict[int, dict[int, int]] = field(default_factory=dict)
    """Key without a row -> pane of the admission window -> occurrences."""
    pane: int = 0


@dataclass
class Oracle:
    layout: RowLayout = LAYOUT
    thresholds: Mapping[int, int] = field(default_factory=dict)
    """Slot number -> occurrences within the window that earn a row; at first sight elsewhere."""
    pane_s: int = 1
    now: Content = field(default_factory=Content)
    committed: Content = field(default_factory=Content)
    pending: Content | None = None
    """Of the commit under way."""
    commit_id: int = 0

    @property
    def rows(self) -> dict[int, OracleRow]:
        return self.now.rows

    @property
    def state(self) -> dict[tuple[str, bytes], bytes]:
        return self.now.state

    def lookup(
        self, keys: list[int], now_ms: int, slots: Mapping[int, int] | None = None
    ) -> tuple[set[int], set[int]]:
        """Creates what is missing and earned; returns (created, refused)."""
        created, refused = set(), set()
        for key in sorted(set(keys) - set(self.rows)):
            slot = 0 if slots is None else slots[key]
            if not self._earned(key, slot, keys.count(key), now_ms // 1000):
                refused.add(key)
                continue
            created.add(key)
            sets = {}
            for name in self.layout.sets_of(self.layout.slot_name(slot)):
                spec = self.layout.sets[name]
                state = np.zeros(spec.state_floats, np.float32)
                sets[name] = (first_vector(key, name, spec), state)
            self.rows[key] = OracleRow(now_ms // 1000, now_ms // 1000, 0, slot, sets)
        return created, refused

    def _earned(self, key: int, slot: int, count: int, now_s: int) -> bool:
        self.now.pane = max(self.now.pane, now_s // self.pane_s)
        if slot not in self.thresholds:
            return True
        panes = self.now.candidates.setdefault(key, {})
        panes[self.now.pane] = panes.get(self.now.pane, 0) + count
        within = sum(c for pane, c in panes.items() if pane > self.now.pane - PANES)
        if within < self.thresholds[slot]:
            return False
        del self.now.candidates[key]
        return True

    def update(self, keys: list[int], set_name: str, grad: np.ndarray) -> None:
        spec = self.layout.sets[set_name]
        for key, g in zip(keys, grad, strict=True):
            row = self.rows.get(key)
            if row is None or set_name not in row.sets:
                continue
            vector, state = row.sets[set_name]
            learn(spec, vector, state, g)
            if spec.dtype == "bfloat16":
                rounded_to_half(vector, key ^ (row.count << 17) ^ set_seed(set_name))

    def count(self, ids: list[int], now_ms: int) -> None:
        for key in ids:
            if (row := self.rows.get(key)) is not None:
                row.count += 1
                row.last_touched_s = max(row.last_touched_s, now_ms // 1000)

    def expire(self, policy: ExpiryPolicy, now_s: int) -> list[int]:
        """Deletes, and returns in order, what brute force over the committed rows says; by age and
        number alone."""
        gone: list[int] = []
        for slot in {row.slot for row in self.rows.values()}:
            rule = policy.slots.get(self.layout.slot_name(slot), policy.default)
            of_slot = [k for k in self.committed.rows if k in self.rows]
            of_slot = [k for k in of_slot if self.rows[k].slot == slot]
            touched = sorted((self.rows[key].last_touched_s, key) for key in of_slot)
            old = [k for at, k in touched if rule.ttl_s is not None and now_s - at > rule.ttl_s]
            left = touched[len(old) :]
            surplus = max(0, len(left) - (rule.rows_max or len(left)))
            gone += old + [key for _, key in left[:surplus]]
        self.remove(gone)
        return sorted(gone)

    def remove(self, keys: list[int]) -> None:
        for key in keys:
            del self.rows[key]

    def begin(self) -> None:
        assert self.pending is None
        self.pending = copy.deepcopy(self.now)

    def settle(self) -> None:
        assert self.pending is not None
        self.committed, self.pending = self.pending, None
        self.commit_id += 1

    def commit(self) -> None:
        self.begin()
        self.settle()

    def crash(self) -> None:
        """What was not committed is gone, a commit under way with it: settle it first if not."""
        self.now, self.pending = copy.deepcopy(self.committed), None

    def space(self, name: str) -> list[tuple[bytes, bytes]]:
        return sorted((key, value) for (space, key), value in self.state.items() if space == name)


def plain(row: OracleRow) -> tuple[Any, ...]:
    sets = {name: (v.tobytes(), s.tobytes()) for name, (v, s) in row.sets.items()}
    return row.created_s, row.last_touched_s, row.count, row.slot, sets


def assert_same(store: EmbeddingStore, oracle: Oracle) -> None:
    """Every row byte by byte, in order, and every record of state."""
    got = {}
    for key, header, sets in store.rows():
        assert header.key == key
        flat = {name: (v.tobytes(), s.tobytes()) for name, (v, s) in sets.items()}
        told = (header.created_s, header.last_touched_s, header.count, header.slot, flat)
        got[key] = told
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
