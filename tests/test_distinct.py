"""A batch's distinct keys against a dict, through collisions, block borders and reused memory."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store.distinct import Deduplicator

INVERSE = pow(0x9E3779B97F4A7C15, -1, 2**64)
# Keys that hash to the last places of any table and to the first, so that probing wraps around.
CLASHING = [(home << 40 | n) * INVERSE % 2**64 for home in (2**24 - 1, 0) for n in range(1, 40)]


def _check(distinct_of: Deduplicator, ids: list[int]) -> None:
    given = np.array(ids, np.uint64)
    found = distinct_of(given)
    expected = list(dict.fromkeys(ids))
    assert found.keys.tolist() == expected
    assert found.keys[found.inverse].tolist() == ids
    assert found.counts.tolist() == [ids.count(key) for key in expected]
    assert given.tolist() == ids


@given(st.lists(st.lists(st.sampled_from([*CLASHING, 1, 2, 2**64 - 1]), max_size=90), max_size=6))
def test_keys_that_clash_batch_after_batch(batches: list[list[int]]) -> None:
    distinct_of = Deduplicator()
    for ids in batches:
        _check(distinct_of, ids)


@settings(max_examples=40)
@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(0, 1100), st.integers(1, 2000)), min_size=1, max_size=4),
)
def test_batches_of_any_length_and_any_share_of_repeats(
    seed: int, batches: list[tuple[int, int]]
) -> None:
    """Several blocks of ids; a long batch leaves its marks in the memory of a short one."""
    random, distinct_of = np.random.default_rng(seed), Deduplicator()
    for length, universe in batches:
        numbers = random.integers(0, universe, length)
        _check(distinct_of, [(int(n) + 1) * 0x9E3779B97F4A7C15 % 2**64 for n in numbers])


def test_what_was_returned_is_not_overwritten_by_the_next_batch() -> None:
    distinct_of = Deduplicator()
    first = distinct_of(np.array([5, 6, 5], np.uint64))
    distinct_of(np.array([9, 9, 9], np.uint64))
    assert first.keys.tolist() == [5, 6]
    assert first.inverse.tolist() == [0, 1, 0]
    assert first.counts.tolist() == [2, 1]
