"""The join's header: what was written comes back, whatever else is refused by name."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topics.errors import RecordInvalid
from topics.join_header import JOIN_HEADER, JoinHeader

_numbers = st.integers(min_value=-1, max_value=2**63 - 1)


@given(
    stream=st.sampled_from(["impressions", "conversions"]),
    numbers=st.tuples(*[_numbers] * 6),
    beside=st.lists(st.tuples(st.just("hw_reason"), st.binary())),
)
def test_what_was_written_comes_back(
    stream: str, numbers: tuple[int, ...], beside: list[tuple[str, bytes]]
) -> None:
    said = JoinHeader(stream, *numbers)
    headers = [*beside, said.written()]
    assert JoinHeader.read(headers) == JoinHeader.find(headers) == said
    assert said.source == (stream, *numbers[:2])


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"impressions",
        b"impressions 0 1 2 3 4",
        b"impressions 0 1 2 3 4 5 6",
        b"clicks 0 1 2 3 4 5",
        b"impressions 0 1 2 3 4 x",
        b"impressions  0 1 2 3 4 5",
        b"\xff 0 1 2 3 4 5",
    ],
)
def test_what_is_no_join_header_is_refused(value: bytes) -> None:
    with pytest.raises(RecordInvalid, match=re.escape(f"got {value!r}")):
        JoinHeader.find([(JOIN_HEADER, value)])


def test_a_record_without_one() -> None:
    assert JoinHeader.find([("hw_reason", b"late")]) is JoinHeader.find(None) is None
    with pytest.raises(RecordInvalid, match="got none"):
        JoinHeader.read([("hw_reason", b"late")])
