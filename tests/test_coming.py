"""What a worker finds out of a batch to come is what the look-up would have found out itself."""

from __future__ import annotations

from pathlib import Path
from threading import Event, Timer

import numpy as np
import pytest

from embedding_store.coming import Coming
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.row import RowFormat
from embedding_store.slab import Slab
from embedding_store.store import EmbeddingStore

LAYOUT = RowLayout(sets={"shared": SetSpec(dim=2, optimizer="sgd", lr=0.1)})
FORM = RowFormat(LAYOUT)


def _slab(keys: list[int]) -> Slab:
    slab = Slab(FORM, 64)
    _admit(slab, keys)
    return slab


def _admit(slab: Slab, keys: list[int]) -> None:
    wanted = np.array(keys, np.uint64)
    slots = slab.make_room(len(keys), 2)[0]
    rows = FORM.fresh(wanted, np.zeros(len(keys), np.uint16), 0)
    slab.admit(wanted, slots, rows, np.zeros(len(keys), np.uint8), 2)


def test_missing_keys_are_told_once_each_and_the_batch_is_taken_as_it_was_given() -> None:
    slab, missed = _slab([5, 6, 7]), list[int]()
    coming = Coming(slab, lambda keys: missed.extend(keys.tolist()))
    ids = np.array([9, 5, 9, 8, 5], np.uint64)
    coming.note(ids)
    ids[:] = 7  # whoever gave them may reuse the memory
    distinct, slots = coming.take(np.array([9, 5, 9, 8, 5], np.uint64))
    assert missed == [9, 8]
    assert distinct.keys.tolist() == [9, 5, 8]
    assert slots.tolist() == [-1, int(slab.find(np.array([5], np.uint64))[0]), -1]
    other, found = coming.take(np.array([7, 7], np.uint64))
    assert other.keys.tolist() == [7] and found[0] >= 0
    coming.close()


def test_rows_that_came_or_went_since_are_looked_for_anew() -> None:
    slab = _slab([5, 6, 7])
    coming = Coming(slab, lambda _keys: None)
    for ids in ([5, 6, 9], [7, 9]):
        coming.note(np.array(ids, np.uint64))
    coming.settle()
    slab.drop(np.array([6], np.uint64))
    _admit(slab, [9])
    for ids in ([5, 6, 9], [7, 9]):
        distinct, slots = coming.take(np.array(ids, np.uint64))
        assert slots.tolist() == slab.find(distinct.keys).tolist()
    coming.close()


def test_what_the_worker_met_is_raised_once() -> None:
    def fail(_keys: np.ndarray) -> None:
        raise MemoryError("no room")

    coming = Coming(_slab([5]), fail)
    coming.note(np.array([8], np.uint64))
    with pytest.raises(MemoryError, match="no room"):
        coming.settle()
    coming.settle()
    assert coming.take(np.array([8], np.uint64))[1].tolist() == [-1]
    coming.close()


def test_a_row_removed_between_prefetch_and_lookup_starts_anew(tmp_path: Path) -> None:
    keys = np.arange(1, 40, dtype=np.uint64)
    with EmbeddingStore.open(tmp_path, LAYOUT, cache_rows_max=200, owner="test") as store:
        lookup = store.lookup(keys, now_ms=0)
        fresh = store.gather(lookup, "shared")
        store.update(lookup, "shared", np.ones((len(keys), 2), np.float32), now_ms=0)
        store.commit()
        for gone in (keys[:10], keys[5:]):
            store.prefetch(keys)
            store.remove(gone)
            again = store.lookup(keys, now_ms=0)
            here = np.isin(again.keys, gone)
            assert (again.found == ~here).all()
            np.testing.assert_array_equal(store.gather(again, "shared")[here], fresh[here])
            store.commit()


@pytest.mark.parametrize("call", ["remove", "lookup", "commit", "settle a commit"])
def test_whatever_moves_rows_waits_for_the_worker(tmp_path: Path, call: str) -> None:
    keys = np.arange(1, 40, dtype=np.uint64)
    with EmbeddingStore.open(tmp_path, LAYOUT, cache_rows_max=200, owner="test") as store:
        store.lookup(keys[:20], now_ms=0)
        pending = store.commit_begin() if call == "settle a commit" else None
        looked, go_on = Event(), Event()

        def look(_keys: np.ndarray) -> None:
            go_on.wait(10)
            looked.set()

        store._tiers.coming._missed = look
        store.prefetch(keys)
        Timer(0.2, go_on.set).start()
        if call == "remove":
            store.remove(keys[:5])
        elif call == "lookup":
            store.lookup(keys[20:], now_ms=0)  # another batch than the one to come
        elif pending is None:
            store.commit_begin()
        else:
            pending.wait()
        assert looked.is_set()
