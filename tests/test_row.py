"""Row bytes: the drawing in row.py, pinned; initial values; header limits."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from embedding_store.errors import LayoutMismatch, StoreMisuse
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.row import RowFormat, seconds
from tests.store_oracle import LAYOUT, first_vector

KEYS = np.array([1, 0xDEADBEEF, 2**64 - 1], np.uint64)
UNNAMED = np.zeros(3, np.uint16)


def test_the_bytes_are_as_drawn() -> None:
    form = RowFormat(LAYOUT)
    assert form.bytes == 64  # 24 header, exp:0 (3 + 1), shared (4 + 1), padding 1 word
    row = form.fresh(KEYS[1:2], UNNAMED[:1], 77)[0].tobytes()
    exp = first_vector(0xDEADBEEF, "exp:0", LAYOUT.sets["exp:0"])
    shared = first_vector(0xDEADBEEF, "shared", LAYOUT.sets["shared"])
    assert row == struct.pack("<QIIII3ff4ff4x", 0xDEADBEEF, 77, 77, 0, 0, *exp, 0.0, *shared, 0.0)


def test_golden_row() -> None:
    row = RowFormat(LAYOUT).fresh(KEYS[:1], UNNAMED[:1], 1)[0].tobytes()
    assert row.hex() == (
        "01000000000000000100000001000000000000000000000078ea98be64e0363e"
        "9474bbbe000000008f429a3970261abb243512bb298ea73b0000000000000000"
    )


def test_initial_values_depend_on_key_and_set_alone() -> None:
    one = RowFormat(RowLayout({"shared": LAYOUT.sets["shared"]}))
    both = RowFormat(LAYOUT)
    place, alone = both.place("shared"), one.place("shared")
    wide = both.fresh(KEYS, UNNAMED, 5)[:, place.vector_word :][:, :4]
    narrow = one.fresh(KEYS[::-1].copy(), UNNAMED, 9)[:, alone.vector_word :][::-1, :4]
    assert np.array_equal(wide, narrow)


def test_initial_values_are_uniform() -> None:
    form = RowFormat(RowLayout({"s": SetSpec(dim=16, init_scale=0.01)}))
    drawn = form.fresh(np.arange(1, 20_001, dtype=np.uint64), np.zeros(20_000, np.uint16), 0)[
        :, 6:22
    ]
    assert drawn.min() >= -0.01 and drawn.max() < 0.01
    assert abs(drawn.mean()) < 5e-5 and abs(drawn.std() - 0.01 / 3**0.5) < 5e-5
    assert np.abs(np.corrcoef(drawn.T) - np.eye(16)).max() < 0.05


def test_order_of_sets_does_not_matter() -> None:
    turned = RowLayout(dict(reversed(LAYOUT.sets.items())))
    assert turned.to_json() == LAYOUT.to_json()
    assert RowFormat(turned).dtype == RowFormat(LAYOUT).dtype


def test_hyperparameters_may_change_and_shapes_may_not() -> None:
    LAYOUT.adopt(
        RowLayout(
            {"shared": SetSpec(dim=4, lr=9.0, init_scale=0.0), "exp:0": SetSpec(dim=3, eps=1.0)}
        ).to_json()
    )
    for other in (
        {"shared": SetSpec(dim=4)},
        {"shared": SetSpec(dim=4), "exp:0": SetSpec(dim=4)},
        {"shared": SetSpec(dim=4), "exp:1": SetSpec(dim=3)},
    ):
        with pytest.raises(LayoutMismatch) as caught:
            LAYOUT.adopt(RowLayout(other).to_json())
        assert '"dim": 3' in str(caught.value) and "stored=`" in str(caught.value)


def test_a_layout_is_checked() -> None:
    with pytest.raises(StoreMisuse, match="at least one embedding set"):
        RowLayout({})
    with pytest.raises(StoreMisuse, match="at least one dimension"):
        SetSpec(dim=0)
    with pytest.raises(StoreMisuse, match="unknown optimizer"):
        SetSpec(dim=1, optimizer="lamb")  # type: ignore[arg-type]


def test_times_that_the_header_cannot_hold_are_refused() -> None:
    assert seconds(2**32 * 1000 - 1) == 2**32 - 1
    for bad in (-1, 2**32 * 1000):
        with pytest.raises(StoreMisuse, match="outside the row header"):
            seconds(bad)


SLOTTED = RowLayout(LAYOUT.sets, slots={"user": (), "item": ("shared",)})


def test_a_slot_that_lacks_a_set_has_zeros_there() -> None:
    form = RowFormat(SLOTTED)
    rows = form.fresh(KEYS, np.array([0, 1, 2], np.uint16), 7)
    assert form.records(rows)["slot"].tolist() == [0, 1, 2]
    assert form.vectors("exp:0", rows).any(1).tolist() == [True, True, False]
    assert form.vectors("shared", rows).any(1).all()


def test_slots_keep_their_numbers_and_new_ones_come_after() -> None:
    assert SLOTTED.numbers == {"user": 1, "item": 2}
    turned = RowLayout(LAYOUT.sets, slots={"ad": (), "item": ("shared",)})
    adopted = turned.adopt(SLOTTED.to_json())
    assert adopted.numbers == {"user": 1, "item": 2, "ad": 3}
    assert adopted.sets_of("user") == ("exp:0", "shared") and adopted.slot_name(2) == "item"
    assert RowLayout.from_json(adopted.to_json()).numbers == adopted.numbers
    for other in ({"item": ()}, {"user": ("exp:0",)}):
        with pytest.raises(LayoutMismatch) as caught:
            RowLayout(LAYOUT.sets, slots=other).adopt(SLOTTED.to_json())
        assert '"number": 2' in caught.value.stored
    with pytest.raises(StoreMisuse, match="no such slot"):
        turned.slot_number("page")
    with pytest.raises(StoreMisuse, match=r"unknown=`\['none'\]`"):
        RowLayout(LAYOUT.sets, slots={"item": ("none",)})


def test_a_layout_of_version_1_is_read_and_another_is_not() -> None:
    first = (
        b'{"sets": {"exp:0": {"dim": 3, "optimizer": "rowwise_adagrad"}, '
        b'"shared": {"dim": 4, "optimizer": "rowwise_adagrad"}}, "version": 1}'
    )
    assert SLOTTED.adopt(first).numbers == SLOTTED.numbers
    for bad in (first.replace(b"1}", b"3}"), b"[]", b"{"):
        with pytest.raises(LayoutMismatch, match="layouts of version 1 to 2"):
            SLOTTED.adopt(bad)
