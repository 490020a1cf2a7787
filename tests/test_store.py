"""The store's promises one by one; any sequence of calls is `test_store_machine`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_store.errors import (
    CacheTooSmall,
    LayoutMismatch,
    StoreError,
    StoreMisuse,
)
from embedding_store.keys import row_keys
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.rocks import Rocks
from embedding_store.store import EmbeddingStore
from tests.store_oracle import LAYOUT, Oracle, assert_same, scripted_step

CACHE_ROWS = 24
KEYS = row_keys("item", [str(i) for i in range(60)])


def _open(path: Path, cache_rows_max: int = CACHE_ROWS, **more: Any) -> EmbeddingStore:
    return EmbeddingStore.open(
        path, more.get("layout", LAYOUT), cache_rows_max=cache_rows_max, owner="test"
    )


@pytest.mark.slow
def test_a_tiny_slab_gives_the_bytes_of_a_large_one(tmp_path: Path) -> None:
    digests = []
    for name, rows in (("tiny", 60), ("large", 10_000)):
        with _open(tmp_path / name, rows) as store:
            for step in range(200):
                scripted_step(store, step)
                if step % 40 == 39:
                    store.commit()
            digests.append(store.content_digest())
            stats = store.stats()
            assert (stats.rows_evicted > 500) == (name == "tiny")
            assert (stats.lookups_spilled > 20) == (stats.lookups_cold > 20) == (name == "tiny")
            store.commit()
            digests.append(store.content_digest())
            assert store.verify() == store.stats().rows_total
    assert digests[0] == digests[1] == digests[2] == digests[3]


@pytest.mark.slow
def test_row_wise_adagrad_is_a_dense_torch_step(tmp_path: Path) -> None:
    """Duplicate ids' gradients are summed by autograd; the store gets the sum, as the trainer."""
    torch = pytest.importorskip("torch")
    dim, universe, spec = 16, 50, SetSpec(dim=16, lr=0.1, eps=1e-8)
    keys = row_keys("item", [str(i) for i in range(universe)])
    with _open(tmp_path / "s", 100, layout=RowLayout({"shared": spec})) as store:
        weights = torch.tensor(store.gather(store.lookup(keys, now_ms=0), "shared").copy())
        total = torch.zeros(universe)
        rng = np.random.default_rng(1)
        for _ in range(100):
            batch = rng.integers(0, universe, 64)
            target = torch.tensor(rng.standard_normal((64, dim), dtype=np.float32))
            lookup = store.lookup(keys[batch], now_ms=0)
            rows = torch.tensor(store.gather(lookup, "shared"), requires_grad=True)
            ((rows[torch.tensor(lookup.inverse)] - target) ** 2).sum().backward()
            store.update(lookup, "shared", rows.grad.numpy(), now_ms=0)

            dense = weights.clone().requires_grad_(True)
            ((dense[torch.tensor(batch)] - target) ** 2).sum().backward()
            total += dense.grad.pow(2).mean(1)
            touched = torch.tensor(np.unique(batch))
            step = spec.lr / (total.sqrt() + spec.eps)
            weights[touched] -= (step[:, None] * dense.grad)[touched]
        learnt, found = store.peek(keys, "shared")
    assert found.all()
    torch.testing.assert_close(torch.tensor(learnt), weights, rtol=2e-5, atol=2e-6)


def test_a_batch_that_two_of_would_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    oracle = Oracle()
    with _open(tmp_path / "s", 20) as store:
        for _ in range(2):
            with pytest.raises(CacheTooSmall, match=r"unique_keys=`11` cache_rows_max=`20`"):
                store.lookup(KEYS[:11], now_ms=0)
        assert_same(store, oracle)
        for start in range(0, 50, 10):  # and the largest that fits always fits
            oracle.lookup(KEYS[start : start + 10].tolist(), 0)
            store.lookup(KEYS[start : start + 10], now_ms=0)
        assert_same(store, oracle)
    with pytest.raises(CacheTooSmall):
        _open(tmp_path / "s", 1)


def test_a_zero_row_is_found(tmp_path: Path) -> None:
    """FBGEMM's tier took a row of zeros for an absent one, and reloaded an older row over it."""
    layout = RowLayout({"shared": SetSpec(dim=4, init_scale=0.0)})
    with _open(tmp_path / "s", 4, layout=layout) as store:
        store.lookup(KEYS[:2], now_ms=5_000)
        store.commit()
        for start in range(2, 12, 2):
            store.lookup(KEYS[start : start + 2], now_ms=9_000)
        again = store.lookup(KEYS[:2], now_ms=9_000)
        assert again.found.all()
        assert store.peek(KEYS[:1], "shared")[1].all()
        headers = {key: header for key, header, _ in store.rows()}
        assert headers[int(KEYS[0])].created_s == 5


def test_headers_count_occurrences_once_per_batch_and_times_never_fall(tmp_path: Path) -> None:
    with _open(tmp_path / "s") as store:
        for now_ms in (7_000, 9_999, 5_000):
            lookup = store.lookup(KEYS[[0, 1, 0]], now_ms=now_ms)
            for name in ("shared", "exp:0"):
                grad = np.zeros_like(store.gather(lookup, name))
                store.update(lookup, name, grad, now_ms=now_ms)
        store.lookup(KEYS[[0]], now_ms=20_000)  # seen without learning: nothing to count
        headers = {key: header for key, header, _ in store.rows()}
    told = headers[int(KEYS[0])], headers[int(KEYS[1])]
    assert [(h.created_s, h.last_touched_s, h.count) for h in told] == [(7, 9, 6), (7, 9, 3)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_gradient_that_is_not_finite_leaves_its_row_alone(tmp_path: Path, bad: float) -> None:
    with _open(tmp_path / "s") as store:
        lookup = store.lookup(KEYS[:2], now_ms=0)
        before = store.gather(lookup, "shared")
        grad = np.ones_like(before)
        grad[1, 2] = bad
        store.update(lookup, "shared", grad, now_ms=0)
        after = store.gather(lookup, "shared")
        assert not np.array_equal(after[0], before[0]) and np.array_equal(after[1], before[1])
        assert store.stats().gradients_not_finite == 1


def test_misuse_is_refused_by_name(tmp_path: Path) -> None:
    with _open(tmp_path / "s") as store:
        first = store.lookup(KEYS[:3], now_ms=0)
        with pytest.raises(StoreMisuse, match="key 0 is reserved"):
            store.lookup(np.zeros(1, np.uint64), now_ms=0)
        with pytest.raises(StoreMisuse, match=r"uint64\[N\]: came=`int64\[3\]`"):
            store.lookup(np.arange(1, 4), now_ms=0)
        with pytest.raises(StoreMisuse, match=r"no such embedding set: set=`task`"):
            store.gather(first, "task")
        with pytest.raises(StoreMisuse, match=r"expected=`float32\[3, 4\]` came=`float32\[3, 5\]`"):
            store.update(first, "shared", np.zeros((3, 5), np.float32), now_ms=0)
        with pytest.raises(StoreMisuse, match="without NUL"):
            store.put("a\0b", b"", b"")
        store.lookup(KEYS[3:6], now_ms=0)
        store.gather(first, "shared")
        store.lookup(KEYS[6:9], now_ms=0)
        with pytest.raises(StoreMisuse, match="older than the last two"):
            store.gather(first, "shared")
        with pytest.raises(StoreMisuse, match="must not exist"):
            store.checkpoint(tmp_path)
    with pytest.raises(StoreMisuse, match="is closed"):
        store.lookup(KEYS[:3], now_ms=0)


def test_another_layout_is_refused_and_both_are_shown(tmp_path: Path) -> None:
    with _open(tmp_path / "s") as store:
        scripted_step(store, 1, ids=10)
        store.commit()
        digest = store.content_digest()
    other = RowLayout({"shared": SetSpec(dim=8)})
    with pytest.raises(LayoutMismatch) as caught:
        _open(tmp_path / "s", layout=other)
    assert '"exp:0": {"dim": 3' in caught.value.stored and '"dim": 8' in caught.value.asked
    with _open(tmp_path / "s") as store:  # the refusal let go of the lock and changed nothing
        assert store.content_digest() == digest


def test_same_calls_same_bytes_and_history(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        with _open(tmp_path / name) as store:
            for step in range(20):
                scripted_step(store, step, ids=10)
                if step % 7 == 6:
                    store.commit()
            digests.append(store.content_digest())
        digests.append(Rocks(tmp_path / name / "rocks").get(b"mcommit"))
    assert digests[:2] == digests[2:]
    assert set(digests[0]) == {"rows", "state/offsets", "state/outbox"}


def test_the_bloom_filter_is_alive_after_a_reopen(tmp_path: Path) -> None:
    """RocksDB takes a reopened store's filter from its own file, unless told otherwise."""
    keys = row_keys("item", [str(i) for i in range(4000)])
    with _open(tmp_path / "s", 10_000) as store:
        store.lookup(keys[:2000], now_ms=0)
        store.commit()
    with _open(tmp_path / "s", 10_000) as store:
        store.lookup(keys[2000:], now_ms=0)
        store.commit()
    rocks = Rocks(tmp_path / "s" / "rocks", statistics=True)
    absent = row_keys("user", [str(i) for i in range(1000)])
    present, none = rocks.get_rows(keys, 16)[1], rocks.get_rows(absent, 16)[1]
    assert present.all() and not none.any()
    useful = _ticker(rocks, "rocksdb.bloom.filter.useful")
    tables = int(rocks.property("rocksdb.num-files-at-level0"))
    rocks.close()
    assert tables >= 2
    assert useful > 0.95 * tables * len(absent), (useful, tables)


def test_every_write_is_synced_once(tmp_path: Path) -> None:
    """No kill can show a missing fsync: only a power cut would."""
    rocks = Rocks(tmp_path / "rocks", statistics=True)
    for number in range(1, 4):
        rocks.write([(b"a%d" % i, b"value") for i in range(number)])
        assert _ticker(rocks, "rocksdb.wal.synced") == number
    rocks.close()


def _ticker(rocks: Rocks, name: str) -> int:
    for line in rocks.statistics().splitlines():
        if line.startswith(f"{name} COUNT"):
            return int(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no ticker {name}")


def test_every_error_is_a_store_error_with_an_operator_action() -> None:
    pending = [StoreError]
    while pending:
        kind = pending.pop()
        children = kind.__subclasses__()
        pending.extend(children)
        assert children or "Operator action:" in (kind.__doc__ or ""), kind
