"""Samples to arrays: missing is missing, wrong types are counted, nothing depends on the rest."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from embedding_store.keys import row_keys
from tests.sample_stream import START_MS, make_config, make_samples
from topics.sample import Sample
from trainer.batch import SidePart, build_batch
from trainer.packed import PackedRows, unpack_rows
from trainer.slots import SIDES, plan_slots

PLAN = plan_slots(make_config())
ONE = make_samples(1)[0]


def _with(features: dict[str, Any], **fields: Any) -> Sample:
    return msgspec.structs.replace(ONE, features=features, **fields)


def _slot(side: str, name: str) -> int:
    return [s.name for s in PLAN.sides[side].slots].index(name)  # type: ignore[index]


def _keys(part: SidePart, slot: int, row: int) -> list[int]:
    bag = slot * part.rows + row
    start = int(part.lengths[:bag].sum())
    return part.keys[start : start + int(part.lengths[bag])].tolist()


def test_every_type_and_its_missing_flag() -> None:
    full = _with(
        {
            "age": 30,
            "tags": ["a", "b", "c", "d"],
            "vec": [0.5, 0, 0, 0],
            "os": "ios",
            "history": [{"item_id": "i9", "event_ms": START_MS}],
        },
        event_ms=START_MS,
    )
    batch = build_batch([full, _with({}), _with({"tags": [], "history": []})], PLAN)
    item, user = batch.parts["item"], batch.parts["user"]
    tags = _slot("item", "tags")
    assert _keys(item, tags, 0) == row_keys("tags", ["b", "c", "d"]).tolist()  # the newest three
    assert item.missing[:, tags].tolist() == [0, 1, 0]  # an empty list is known, not missing
    assert item.vectors[:, 0].tolist() == [0.5, 0, 0]
    assert item.missing[:, _slot("item", "vec")].tolist() == [0, 1, 1]
    history = _slot("user", "history")
    assert _keys(user, history, 0) == row_keys("item_id", ["i9"]).tolist()  # the items' own rows
    assert user.missing[:, history].tolist() == [0, 1, 0]
    assert user.numeric[0, 0] == pytest.approx(np.log1p(30)) and np.isnan(user.numeric[1, 0])
    assert not batch.rejected


@pytest.mark.parametrize(
    ("slot", "value"),
    [
        ("os", 3),
        ("os", ["ios"]),
        ("tags", "a"),
        ("tags", ["a", 1]),
        ("age", "30"),
        ("age", True),
        ("age", 10**400),
        ("vec", [1, 2, 3]),
        ("vec", [1, 2, 3, "4"]),
        ("vec", [1, 2, 3, None]),
        ("vec", 1.0),
        ("history", "i1"),
        ("history", [{"item_id": "i1"}]),
        ("history", ["i1"]),
        ("nonsense", 1),
    ],
)
def test_a_value_of_the_wrong_type_is_counted_and_counts_as_missing(slot: str, value: Any) -> None:
    batch = build_batch([_with({slot: value})], PLAN)
    bare = build_batch([_with({})], PLAN)
    assert sum(batch.rejected.values()) == 1
    assert next(iter(batch.rejected))[0] == ("unknown" if slot == "nonsense" else slot)
    for side in SIDES:
        assert batch.parts[side].keys.tolist() == bare.parts[side].keys.tolist()
        assert (batch.parts[side].vectors == bare.parts[side].vectors).all()


def test_a_null_is_missing_and_not_an_error() -> None:
    assert not build_batch([_with({"os": None, "age": None})], PLAN).rejected


def test_huge_numbers_stay_finite() -> None:
    part = build_batch([_with({"vec": [1e300, -1e300, 1e308, 1e308]})], PLAN).parts["item"]
    assert np.isfinite(part.vectors).all()
    ages = build_batch([_with({"age": 1e308}), _with({"age": -(2**62)})], PLAN).parts["user"]
    assert np.isfinite(ages.numeric).all()


def test_a_sequence_keeps_the_newest_and_drops_the_future() -> None:
    entries = [{"item_id": f"i{n}", "event_ms": START_MS + n} for n in (3, 1, 2, 9)]
    batch = build_batch([_with({"history": entries}, event_ms=START_MS + 5)], PLAN)
    history = _slot("user", "history")
    assert (
        _keys(batch.parts["user"], history, 0) == row_keys("item_id", ["i1", "i2", "i3"]).tolist()
    )
    assert batch.rejected == {("history", "later than the impression"): 1}


def test_weights_of_a_bag_sum_to_one() -> None:
    batch = build_batch(make_samples(50), PLAN)
    for side in SIDES:
        part = batch.parts[side]
        bags = np.repeat(np.arange(part.lengths.size), part.lengths)
        sums = np.bincount(bags, part.weights, minlength=part.lengths.size)
        np.testing.assert_allclose(sums[part.lengths > 0], 1.0, rtol=1e-5)


def test_labels_not_said_are_masked() -> None:
    correction = msgspec.structs.replace(ONE, labels={"buy": 1}, state="correction")
    batch = build_batch([correction], PLAN)
    assert batch.mask.tolist() == [[0, 1]] and batch.labels.tolist() == [[0, 1]]


def test_packed_rows_come_back_as_they_were() -> None:
    samples = make_samples(30)
    for side in SIDES:
        whole = build_batch(samples, PLAN).parts[side]
        packed = PackedRows(whole)
        chosen = [7, 0, 29, 7]
        again = unpack_rows([packed.row(b) for b in chosen], PLAN.sides[side])
        expected = build_batch([samples[b] for b in chosen], PLAN).parts[side]
        for name in ("keys", "lengths", "weights", "missing", "numeric", "vectors"):
            np.testing.assert_array_equal(getattr(again, name), getattr(expected, name), name)
