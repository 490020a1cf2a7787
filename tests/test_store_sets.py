"""Sets that a slot lacks, slots in the header, rows that admission lets be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_store.errors import StoreMisuse
from embedding_store.keys import row_keys
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.rocks import Rocks
from embedding_store.row import RowFormat, vector_field
from embedding_store.store import EmbeddingStore
from tests.store_oracle import LAYOUT, first_vector

SLOTTED = RowLayout(LAYOUT.sets, slots={"user": (), "item": ("shared",)})
USERS = row_keys("user", [str(i) for i in range(5)])
ITEMS = row_keys("item", [str(i) for i in range(5)])
BOTH = np.concatenate([USERS, ITEMS])
NUMBERS = np.repeat(np.array([1, 2], np.uint16), 5)


def _open(path: Path, layout: RowLayout = SLOTTED, **more: Any) -> EmbeddingStore:
    return EmbeddingStore.open(path, layout, cache_rows_max=40, owner="test", **more)


def test_a_slot_without_a_set_reads_zeros_and_never_learns_it(tmp_path: Path) -> None:
    with _open(tmp_path / "s") as store:
        lookup = store.lookup(BOTH, slots=NUMBERS, now_ms=1000)
        assert lookup.slot_numbers.tolist() == NUMBERS.tolist()
        assert store.has_set(lookup, "exp:0").tolist() == [True] * 5 + [False] * 5
        vectors = store.gather(lookup, "exp:0")
        spec = LAYOUT.sets["exp:0"]
        assert vectors[:5].tobytes() == b"".join(
            first_vector(int(k), "exp:0", spec).tobytes() for k in USERS
        )
        assert not vectors[5:].any()
        store.update(lookup, "exp:0", np.ones((10, 3), np.float32), now_ms=9000)
        store.update(lookup, "shared", np.ones((10, 4), np.float32), now_ms=9000)
        store.commit()
        form = RowFormat(store.layout)
    with Rocks(tmp_path / "s" / "rocks", read_only=True) as rocks:
        rows, found = rocks.get_rows(ITEMS, form.words)
        assert found.all() and not form.records(rows)[vector_field("exp:0")].any()
    with _open(tmp_path / "s", RowLayout(LAYOUT.sets)) as store:  # the numbers are in the rows
        again = store.lookup(BOTH[::-1].copy(), now_ms=0)
        assert again.found.all() and again.slot_numbers.tolist() == NUMBERS[::-1].tolist()
        after = store.gather(again, "exp:0")[::-1]
        assert not after[5:].any() and (after[:5] != vectors[:5]).all()
        told = {key: (header, sets) for key, header, sets in store.rows()}
        for key, number in zip(BOTH.tolist(), NUMBERS.tolist(), strict=True):
            header, sets = told[key]
            assert (header.slot, header.count, header.last_touched_s) == (number, 1, 9)
            assert set(sets) == set(store.layout.sets_of(store.layout.slot_name(number)))


def test_slot_numbers_are_checked(tmp_path: Path) -> None:
    with _open(tmp_path / "s") as store:
        with pytest.raises(StoreMisuse, match=r"expected=`uint16\[10\]` came=`uint16\[9\]`"):
            store.lookup(BOTH, slots=NUMBERS[1:], now_ms=0)
        with pytest.raises(StoreMisuse, match="number=`3` greatest=`2`"):
            store.lookup(BOTH, slots=NUMBERS + np.uint16(1), now_ms=0)
        assert store.stats().rows_total == 0


class _Even:
    def admit(self, keys: Any, slot_numbers: Any, counts: Any, now_s: int) -> Any:
        self.told = dict(zip(keys.tolist(), counts.tolist(), strict=True))
        return keys % np.uint64(2) == 0

    def bind(self, layout: RowLayout, state: Any) -> None:
        """Keeps nothing."""

    def stage(self, state: Any) -> None:
        """Likewise."""


def test_keys_that_admission_refuses_have_no_row(tmp_path: Path) -> None:
    even = BOTH % np.uint64(2) == 0
    assert even.any() and not even.all()
    admission = _Even()
    with _open(tmp_path / "s", admission=admission) as store:
        for repeat in range(3):
            lookup = store.lookup(np.repeat(BOTH, 2), now_ms=0)
            assert lookup.admitted.tolist() == even.tolist()
            assert lookup.found.tolist() == (even & (repeat > 0)).tolist()
            vectors = store.gather(lookup, "shared")
            assert vectors.any(1).tolist() == even.tolist()
            store.update(lookup, "shared", np.ones_like(vectors), now_ms=0)
            asked = BOTH if repeat == 0 else BOTH[~even]
            assert admission.told == dict.fromkeys(asked.tolist(), 2)
        assert [key for key, _, _ in store.rows()] == sorted(BOTH[even].tolist())
        assert store.stats().rows_refused == 3 * int((~even).sum())
        assert store.commit() == 1 and store.verify() == int(even.sum())


def test_updates_of_one_set_never_change_another(tmp_path: Path) -> None:
    layout = RowLayout({"a": SetSpec(dim=3), "b": SetSpec(dim=2, optimizer="adam")})
    with _open(tmp_path / "s", layout) as store:
        for step in range(5):
            lookup = store.lookup(USERS, now_ms=0)
            store.update(lookup, "a", np.full((5, 3), step, np.float32), now_ms=0)
        for key, _, sets in store.rows():
            assert not sets["b"][1].any()
            assert np.array_equal(sets["b"][0], first_vector(key, "b", layout.sets["b"]))
            assert sets["a"][1][0] == 0 + 1 + 4 + 9 + 16
