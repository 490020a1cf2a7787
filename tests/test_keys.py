"""Row keys: stable for ever, apart by slot, never the reserved one."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from embedding_store import keys
from embedding_store.keys import row_key, row_keys


def test_golden_keys_never_change() -> None:
    assert row_keys("user_id", ["u1", "", "日本", "u1"]).tolist() == [
        0x33D032C579A031CD,
        0x14DDECD68CEC86CD,
        0x87FCB1DCD2287E5D,
        0x33D032C579A031CD,
    ]
    assert row_key("item_id", "u1") == 0xFC9E27B358F9063C


@given(st.text(max_size=20), st.lists(st.text(max_size=40), max_size=20))
def test_a_list_gives_each_values_own_key(slot: str, values: list[str]) -> None:
    assert row_keys(slot, values).tolist() == [row_key(slot, value) for value in values]


@given(st.lists(st.text(st.characters(categories=["L", "N", "Cs"]), max_size=5), max_size=20))
def test_any_string_has_a_key_lone_surrogates_included(values: list[str]) -> None:
    got = row_keys("user_id", values)
    assert got.dtype == np.uint64 and got.shape == (len(values),)
    assert len(set(got.tolist())) == len(set(values))


def test_slots_and_values_do_not_run_together() -> None:
    pairs = [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"), ("a", "b\0c"), ("a\0b", "c")]
    assert len({row_key(slot, value) for slot, value in pairs}) == len(pairs)


def test_a_million_values_do_not_collide() -> None:
    values = [str(i) for i in range(500_000)]
    both = np.concatenate([row_keys("user_id", values), row_keys("item_id", values)])
    assert len(np.unique(both)) == 1_000_000


def test_the_reserved_key_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", lambda *_: 0)
    assert keys.row_keys("user_id", ["x"]).tolist() == [keys.STAND_IN_FOR_RESERVED]
