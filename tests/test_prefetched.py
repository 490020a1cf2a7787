"""What was read ahead, against a dict: part of what is wanted, in any order, once each."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedding_store.prefetched import REQUESTS_MAX, Prefetched, Rows

WORDS = 4
ON_DISK = set(range(2, 2000, 3))
keys = st.lists(st.integers(1, 300), min_size=1, max_size=60, unique=True)
few_keys = st.lists(st.integers(1, 4), min_size=1, max_size=4, unique=True)  # often a whole request
calls = st.tuples(st.sampled_from(["request", "take", "take", "forget"]), few_keys | keys)


def _read(asked: NDArray[np.uint64]) -> Rows:
    there = np.array([int(key) in ON_DISK for key in asked], np.bool_)
    return np.repeat(asked[there].astype(np.float32)[:, None], WORDS, axis=1), there


@settings(max_examples=400)
@given(st.lists(calls, min_size=8, max_size=20))
def test_gives_up_each_row_once_and_knows_what_it_knows(
    steps: list[tuple[str, list[int]]],
) -> None:
    ahead, known = Prefetched(_read, WORDS), []  # what each request still holds
    for call, values in steps:
        wanted = np.array(values, np.uint64)
        if call == "forget":
            ahead.forget(wanted)
            known = [request - set(values) for request in known]
            continue
        if call == "request":
            new = set(values).difference(*known)
            ahead.request(wanted)
            known = [*known[-REQUESTS_MAX + 1 :], new] if new else known
            continue
        rows, found, is_known = ahead.take(wanted)
        expected = [any(value in request for request in known) for value in values]
        assert is_known.tolist() == expected
        there = np.array([value in ON_DISK for value in values]) & is_known
        assert (found == there).all()
        assert (rows[there] == wanted[there].astype(np.float32)[:, None]).all()
        # A request that gives up its last row makes room for another.
        known = [r - set(values) for r in known if not r or r - set(values)]
    ahead.close()


def test_a_larger_request_after_smaller_ones_is_held_whole() -> None:
    ahead = Prefetched(_read, WORDS)
    for many in (10, 20, 600):  # the third takes the first one's place
        first = 1 + 2 * many
        wanted = np.arange(first, first + many, dtype=np.uint64)
        ahead.request(wanted)
    rows, found, known = ahead.take(wanted[::-1].copy())
    assert known.all() and found.tolist() == [int(key) in ON_DISK for key in wanted[::-1]]
    assert (rows[found, 0] == wanted[::-1][found].astype(np.float32)).all()
    ahead.close()
