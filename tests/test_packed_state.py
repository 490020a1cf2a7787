"""State packed for the table builder."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedding_store.commit import FIRST, Changes, SortedChanges, next_record, writes_of
from embedding_store.packed_state import pack_state, unpack_state
from embedding_store.rocks import Write

STATE = st.lists(st.tuples(st.binary(min_size=1), st.none() | st.binary()), max_size=12)
NO_ROWS = (np.empty((0, 8), np.float32), np.empty(0, np.uint64))


@given(STATE)
def test_what_is_packed_comes_back(state: list[Write]) -> None:
    assert unpack_state(b"".join(pack_state(state))) == state


@given(STATE, st.randoms(use_true_random=False))
def test_a_commit_is_the_same_in_whatever_order_it_was_staged(
    state: list[Write], random: Random
) -> None:
    once = list({name: (name, value) for name, value in state}.values())
    other = random.sample(once, len(once))
    one, two = (Changes(*NO_ROWS, each).sorted() for each in (once, other))
    assert one.state == two.state == sorted(once)
    record = next_record(FIRST, one, 0)
    assert record == next_record(FIRST, two, 0)
    assert list(writes_of(record, one))[1:] == sorted(once)


@given(STATE, STATE)
def test_other_state_is_another_history(one: list[Write], other: list[Write]) -> None:
    rows, deleted = NO_ROWS
    both = [SortedChanges(rows, np.empty(0, np.int64), deleted, each) for each in (one, other)]
    histories = {next_record(FIRST, each, 0).history for each in both}
    assert (len(histories) == 1) == (one == other)
