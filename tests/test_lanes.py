"""Eight floats at a time against the same sums one by one: the same bits, and no float beside."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from embedding_store.lanes import LANES, add_floats, copy_floats, step_floats, sum_squares

TO, AT = 3, 5
F32 = np.float32


@njit
def _all(copied, added, stepped, source, count, rate):  # type: ignore[no-untyped-def]
    copy_floats(copied, TO, source, AT, count)
    add_floats(added, TO, source, AT, count)
    step_floats(stepped, TO, source, AT, count, rate)
    return sum_squares(source, AT, count)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 23, 64])
def test_whole_eights_and_what_is_left(count: int) -> None:
    draw = np.random.default_rng(count)
    source, before = draw.standard_normal((2, 80), F32)
    given, rate = source[AT : AT + count], F32(0.3)
    targets = [before.copy() for _ in range(3)]
    squares = _all(*targets, source, count, rate)
    here = slice(TO, TO + count)
    expected = [given, before[here] + given, before[here] - rate * given]
    for target, wanted in zip(targets, expected, strict=True):
        assert np.array_equal(target[here], wanted)
        target[here] = before[here]
        assert np.array_equal(target, before), "beside its place"
    q = np.zeros(LANES, F32)
    for d, value in enumerate(given):
        q[d % LANES] += value * value
    assert squares == ((q[0] + q[4]) + (q[2] + q[6])) + ((q[1] + q[5]) + (q[3] + q[7]))
