"""Every eviction policy and every place of the vectors gives the same bytes; who has to go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedding_store.errors import StoreMisuse
from embedding_store.eviction import EVICTIONS
from embedding_store.keys import row_keys
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.store import EmbeddingStore

SPECS = {
    "rowwise": SetSpec(dim=5, lr=0.1),
    "wide": SetSpec(dim=11, optimizer="adagrad", lr=0.1),
    "lazy": SetSpec(dim=16, optimizer="adam", lr=0.05),
    "linear": SetSpec(dim=1, optimizer="ftrl", lr=0.3, l1=0.05, init_scale=0.0),
    "plain": SetSpec(dim=3, optimizer="sgd", lr=0.02),
    "half": SetSpec(dim=7, optimizer="adam", dtype="bfloat16"),
}
LAYOUT = RowLayout(SPECS, slots={"item": (), "user": ("rowwise", "half")})
ITEMS = row_keys("item", [str(i) for i in range(300)])


def _gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _run(path: Path, *, rows: int, eviction: str = "clock", device: str = "memory") -> dict:
    """Sixty steps over three hundred items; commits; a reopening; a gradient that is not finite."""
    rng = np.random.default_rng(7)
    numbers = np.where(np.arange(len(ITEMS)) % 4 == 0, 2, 1).astype(np.uint16)
    choices = {"cache_rows_max": rows, "owner": "test", "eviction": eviction, "device": device}
    store = EmbeddingStore.open(path, LAYOUT, **choices)
    evicted = 0
    for step in range(60):
        ids = (300 * rng.random(40) ** 2).astype(int)
        lookup = store.lookup(ITEMS[ids], slots=numbers[ids], now_ms=1000 * step)
        for name, spec in SPECS.items():
            grad = store.gather(lookup, name) + rng.standard_normal(
                (len(lookup.keys), spec.dim), np.float32
            )
            if step % 7 == 0:
                grad[0, 0] = np.nan
            store.update(lookup, name, grad, now_ms=1000 * step)
        if step % 9 == 8:
            store.commit()
        if step == 44:
            evicted += store.stats().rows_evicted
            store.close()
            store = EmbeddingStore.open(path, LAYOUT, **choices)
    digests = store.content_digest()
    store.commit()
    assert store.verify() == store.stats().rows_total
    assert store.content_digest() == digests
    evicted += store.stats().rows_evicted
    assert (evicted > 200) == (rows < 300)
    store.close()
    return digests


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return _run(tmp_path_factory.mktemp("roomy") / "s", rows=1000)


@pytest.mark.slow
@pytest.mark.parametrize("eviction", EVICTIONS)
def test_eviction_never_shows(tmp_path: Path, roomy: dict, eviction: str) -> None:
    assert _run(tmp_path / "s", rows=90, eviction=eviction) == roomy


@pytest.mark.slow
@pytest.mark.parametrize("device", ["memory", "cpu", "cuda"])
def test_where_vectors_lie_never_shows(tmp_path: Path, roomy: dict, device: str) -> None:
    if device == "cuda" and not _gpu():
        pytest.skip("no GPU on this machine")
    assert _run(tmp_path / "s", rows=90, device=device) == roomy


@pytest.mark.parametrize(
    ("eviction", "stays"), [("lru", "newest"), ("lfu", "often"), ("time", "late")]
)
def test_the_lowest_score_goes(tmp_path: Path, eviction: str, stays: str) -> None:
    """Three groups of ten, each best by one score; two batches stay pinned; ten have to go."""
    groups = {"often": ITEMS[:10], "late": ITEMS[10:20], "newest": ITEMS[20:30]}
    layout = RowLayout({"plain": SPECS["plain"]})
    with EmbeddingStore.open(
        tmp_path / "s", layout, cache_rows_max=50, owner="test", eviction=eviction
    ) as store:
        for name, repeats, now_s in (("often", 9, 5), ("late", 1, 99), ("newest", 2, 6)):
            lookup = store.lookup(np.repeat(groups[name], repeats), now_ms=1000 * now_s)
            grad = np.ones((10, 3), np.float32)
            store.update(lookup, "plain", grad, now_ms=1000 * now_s)
        store.lookup(ITEMS[30:40], now_ms=0)
        store.lookup(ITEMS[40:50], now_ms=0)  # full: thirty old rows, twenty pinned
        store.lookup(ITEMS[50:70], now_ms=0)  # ten of the pinned may go by now, too
        store.commit()
        before = store.stats().lookups_hot
        store.lookup(groups[stays], now_ms=0)
        assert store.stats().lookups_hot - before == 10


def test_unknown_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreMisuse, match=r"eviction=`fifo` expected `\['clock'"):
        _run(tmp_path / "s", rows=90, eviction="fifo")
