"""The key -> slot table against a dict, through collisions, deletions and full buckets."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_store.index import Index

# Keys whose home entry is the last or the first of a table, so that runs wrap around.
INVERSE = pow(0x9E3779B97F4A7C15, -1, 2**64)
CLASHING = [(home << 60 | i) * INVERSE % 2**64 for home in (15, 0, 14) for i in range(1, 5)]
key = st.sampled_from([*CLASHING, 1, 2, 2**64 - 1])


def _u64(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint64)


@given(st.lists(st.tuples(st.sampled_from(["put", "delete"]), key), max_size=60))
def test_as_a_dict_through_deletions(steps: list[tuple[str, int]]) -> None:
    index, oracle = Index(8), {}
    for number, (what, k) in enumerate(steps):
        if what == "delete":
            index.delete(_u64([k]))
            oracle.pop(k, None)
        elif k in oracle or len(oracle) < 8:
            index.assign(_u64([k]), np.array([number]))
            oracle[k] = number
        every = [*CLASHING, 1, 2, 2**64 - 1]
        assert index.find(_u64(every)).tolist() == [oracle.get(e, -1) for e in every]


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_as_a_dict_while_full_buckets_come_and_go(seed: int) -> None:
    """Two thirds of the keys belong to the table's last bucket and its first, so that they fill
    several; each deletion from a full one has to pull back who stands further on because of it."""
    random = np.random.default_rng(seed)
    homes = random.choice([15, 0, 3, 7], 60, p=[0.5, 0.2, 0.2, 0.1])
    every = np.array([(int(h) << 60 | i + 1) * INVERSE % 2**64 for i, h in enumerate(homes)], "u8")
    index, oracle = Index(40), np.full(len(every), -1)
    for number in range(80):
        chosen = random.permutation(len(every))[: random.integers(1, 12)]
        if random.random() < 0.5:
            index.delete(every[chosen])
            oracle[chosen] = -1
        else:
            room = 40 - int((oracle >= 0).sum())
            chosen = chosen[:room]
            index.assign(every[chosen], np.full(len(chosen), number))
            oracle[chosen] = number
        np.testing.assert_array_equal(index.find(every), oracle)


def test_a_slot_takes_all_32_bits_and_touches_no_other() -> None:
    index, keys = Index(40), np.arange(1, 41, dtype=np.uint64)
    slots = np.arange(40) + 2**32 - 40
    index.assign(keys, slots)
    assert index.find(keys).tolist() == slots.tolist()
    index.assign(keys[::2], slots[::2] - 40)
    slots[::2] -= 40
    assert index.find(keys).tolist() == slots.tolist()
    index.clear()
    assert (index.find(keys) == -1).all()
