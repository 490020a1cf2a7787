"""`store migrate`: what stays is the same, and a kill leaves the old store or the new one."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedding_store.errors import LayoutMismatch, StoreLocked, StoreMisuse
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.migrate import changed_layout, migrate
from embedding_store.reading import StoreReader
from embedding_store.store import EmbeddingStore
from tests.knobs import kills

OLD = RowLayout(
    {"shared": SetSpec(dim=4), "gone": SetSpec(dim=3, optimizer="adam")},
    {"item_id": (), "user_id": ("shared",)},
)
ADDED = {"task:like": SetSpec(dim=5, optimizer="ftrl"), "half": SetSpec(dim=3, dtype="bfloat16")}

KILLS = kills(6, 60)
STEPS = ("begun", "comparing", "exchanging", "exchanged", "done")


def _keys(count: int) -> NDArray[np.uint64]:
    return np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _write(path: Path, count: int) -> None:
    keys = _keys(count)
    slots = np.where(np.arange(count) % 3 == 0, 2, 1).astype(np.uint16)
    with EmbeddingStore.open(path, OLD, cache_rows_max=3 * count, owner="test") as store:
        lookup = store.lookup(keys, slots=slots, now_ms=5_000_000)
        grad = np.random.default_rng(1).standard_normal((count, 4), np.float32)
        store.update(lookup, "shared", grad, now_ms=6_000_000)
        store.put("trainer", b"progress", b"{}")
        store.put("entity", b"user:7", bytes(range(256)))
        store.commit()


def _plan(layout: RowLayout) -> RowLayout:
    return changed_layout(layout, ADDED, ["gone"], {"half": ("user_id",)})


def _content(path: Path) -> dict[str, object]:
    with StoreReader(path, "test") as reader:
        records = np.concatenate(list(reader.records()))
        return {
            "headers": records[["key", "created_s", "last_touched_s", "count", "slot"]].tolist(),
            "shared": records["vector:shared"].tobytes() + records["state:shared"].tobytes(),
            "state": list(reader.state()),
            "commit": reader.record,
        }


def test_what_stays_is_the_same_and_what_comes_starts_as_a_new_row(tmp_path: Path) -> None:
    path = tmp_path / "store"
    _write(path, 20_000)  # more than one block
    before = _content(path)
    done = migrate(path, _plan, lambda _: None)
    assert done.rows == 20_000 and _content(path) == before
    assert _content(done.before) == before and not (tmp_path / "store.migrating").exists()
    with pytest.raises(LayoutMismatch):
        EmbeddingStore.open(path, OLD, cache_rows_max=10, owner="test")
    new = RowLayout({**ADDED, "shared": SetSpec(dim=4)}, {"item_id": (), "user_id": ()})
    new = RowLayout(new.sets, {"item_id": ("shared", "task:like"), "user_id": ()})
    with EmbeddingStore.open(path, new, cache_rows_max=100_000, owner="test") as store:
        assert store.verify() == 20_000
        fresh = EmbeddingStore.open(tmp_path / "f", new, cache_rows_max=100_000, owner="test")
        keys = _keys(900)
        slots = np.where(np.arange(900) % 3 == 0, 2, 1).astype(np.uint16)
        migrated = store.lookup(keys, now_ms=7_000_000)
        made = fresh.lookup(keys, slots=slots, now_ms=7_000_000)
        assert migrated.found.all() and not made.found.any()
        for name in ADDED:
            assert np.array_equal(store.gather(migrated, name), fresh.gather(made, name))
            assert np.array_equal(store.has_set(migrated, name), fresh.has_set(made, name))
        fresh.close()
        store.commit()  # and it goes on as a store does


def test_a_live_store_and_an_impossible_plan_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    _write(path, 10)
    with (
        EmbeddingStore.open(path, OLD, cache_rows_max=10, owner="the trainer"),
        pytest.raises(StoreLocked, match="the trainer"),
    ):
        migrate(path, _plan, lambda _: None)
    for add, drop, only, says in (
        ({"shared": SetSpec(dim=2)}, [], {}, r"present=`\['shared'\]`"),
        ({}, ["shraed"], {}, r"absent=`\['shraed'\]`"),
        ({}, ["shared"], {}, "slot=`user_id`"),
        (ADDED, [], {"half": ("usr",)}, r"slots=`\['usr'\]`"),
    ):
        with pytest.raises(StoreMisuse, match=says):
            changed_layout(OLD, add, drop, only)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_copy_that_differs_is_found_and_the_old_store_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import embedding_store.migrate as module

    path = tmp_path / "store"
    _write(path, 100)
    before = _content(path)
    real = module._converted

    def damaged(*arguments: object) -> object:
        words = real(*arguments)  # type: ignore[arg-type]
        words[50, 4] += 1  # the header's count
        return words

    monkeypatch.setattr(module, "_converted", damaged)
    with pytest.raises(module.StoreCorrupt, match="differs"):
        migrate(path, _plan, lambda _: None)
    assert _content(path) == before


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.timeout(900)
def test_a_kill_at_any_moment_leaves_the_old_store_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "store"
    _write(path, 30_000)
    before = _content(path)
    took: dict[str, float] = {}
    for step in STEPS:  # killed at the step itself
        there = _sets(path)
        took[step] = _killed(path, step, 0.0)
        assert _content(path) == before, step
        changed = _sets(path) != there
        assert changed == (step in ("exchanged", "done")), step
    for kill in range(KILLS):  # and at a moment between two
        step, following = list(pairwise(STEPS))[kill % (len(STEPS) - 1)]
        after = took[following] * (kill + 1) / (KILLS + 1)
        _killed(path, step, after)
        assert _content(path) == before, f"killed {after:.3f} s after `{step}`"
        assert _sets(path) in ({"shared", "gone"}, {"shared", "task:like", "half"})


def _killed(path: Path, at: str, after: float) -> float:
    """Migrate, let it go on from step to step, and kill it `after` seconds from step `at`.

    Returns the seconds from the step before to `at`.
    """
    command = [sys.executable, "-m", "tests.migrating", str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        for step in STEPS:
            began = time.perf_counter()
            assert child.stdout.readline() == f"{step}\n"
            took = time.perf_counter() - began
            if step == at and not after:
                child.kill()
                return took
            child.stdin.write("go\n")
            child.stdin.flush()
            if step == at:
                time.sleep(after)
                child.kill()
                return took
    raise AssertionError(f"no such step: `{at}`")


def _sets(path: Path) -> set[str]:
    with StoreReader(path, "test") as reader:
        return set(reader.layout.sets)
