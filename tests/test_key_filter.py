"""What a table cannot have: never a key that it has, and seldom another."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedding_store.key_filter import KeyFilter

hashes = st.integers(1, 2**64 - 1)
anything = st.one_of(hashes, st.integers(1, 300), st.integers(2**64 - 300, 2**64 - 1))


@given(st.sets(anything, min_size=1, max_size=200), st.sets(anything, max_size=200))
def test_no_key_of_the_table_is_passed_over(table: set[int], others: set[int]) -> None:
    keys = np.array(sorted(table), np.uint64)
    among = [k for k in sorted(table | others) if keys[0] <= k <= keys[-1]]
    wanted, todo = np.array([0, *among], np.uint64), np.arange(1, len(among) + 1)
    maybe = KeyFilter(keys).passed(wanted, todo)
    assert maybe.tolist() == sorted(set(maybe.tolist()) & set(todo.tolist()))
    assert table <= {int(wanted[n]) for n in maybe}


def test_most_hashes_that_are_not_there_are_passed_over() -> None:
    random = np.random.default_rng(7)
    keys = np.unique(random.integers(1, 2**64 - 1, 50_000, np.uint64))
    others = np.sort(random.integers(keys[0], keys[-1], 20_000, np.uint64))
    maybe = KeyFilter(keys).passed(others, np.arange(len(others)))
    assert len(maybe) < 0.1 * len(others)
