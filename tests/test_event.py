"""Strict reading of impressions, conversions and samples: what is an event and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topics.conversion import Conversion, decode_conversion, encode_conversion
from topics.errors import RecordInvalid
from topics.event import event_key
from topics.impression import (
    RESERVED,
    Impression,
    decode_impression,
    decode_impression_head,
    encode_impression,
)
from topics.sample import Sample, decode_sample, decode_sample_head, encode_sample

IMPRESSION: dict[str, Any] = {
    "impression_id": "i1",
    "event_ms": 1_460_000_000_000,
    "user_id": "u1",
    "item_id": "a1",
    "domain": "feed",
    "features": {"history": [{"item_id": "a0", "event_ms": 5}], "age": 3.5},
}
CONVERSION: dict[str, Any] = {
    "conversion_id": "c1",
    "impression_id": None,
    "event_ms": 1_460_000_000_500,
    "user_id": "u1",
    "item_id": "a1",
    "kind": "buy",
    "value": 9.5,
}


def as_bytes(event: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({**event, **changes}).encode()


def test_key_is_the_pair() -> None:
    assert event_key("u1", "a1") == b"u1\x1fa1"
    assert event_key("ü", "1") == b"\xc3\xbc\x1f1"


def test_impression_is_read_with_nested_names_and_unknown_keys() -> None:
    value = as_bytes(IMPRESSION, request_id="r1", position=2, experiment={"arm": "b"})
    assert decode_impression(value).features == IMPRESSION["features"]
    assert decode_impression(value).position == 2
    assert decode_impression_head(value).impression_id == "i1"


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.floats(allow_nan=False)))
def test_impression_comes_back_as_written(features: dict[str, float]) -> None:
    finite = {name: number for name, number in features.items() if abs(number) != float("inf")}
    written = Impression(**{**IMPRESSION, "features": finite})
    assert decode_impression(encode_impression(written)) == written


def test_depth_and_numbers_at_the_limit_pass() -> None:
    deep = as_bytes(IMPRESSION, features={"deep": 1}, note="[" * 200)
    assert decode_impression_head(deep.replace(b": 1}", b": " + b"[" * 98 + b"]" * 98 + b"}"))
    assert decode_impression_head(deep.replace(b": 1}", b": 1e308}"))
    assert decode_impression_head(deep.replace(b": 1}", b": " + b"9" * 308 + b"}"))


def test_conversion_may_leave_out_what_may_be_null() -> None:
    short = {k: v for k, v in CONVERSION.items() if k not in ("impression_id", "value")}
    read = decode_conversion(as_bytes(short), kinds=["buy"])
    assert (read.impression_id, read.value) == (None, None)
    written = Conversion(**CONVERSION)
    assert decode_conversion(encode_conversion(written)) == written


BAD_IMPRESSIONS = [
    b"",
    b"null",
    b"[]",
    b"{",
    b"\xff\xfe",
    as_bytes(IMPRESSION) + b"x",
    as_bytes(IMPRESSION, note="\udc80"),
    as_bytes(IMPRESSION).replace(b'"feed"', b'"fe\xffed"'),
    as_bytes(IMPRESSION, note="x").replace(b'"x"', b'"\xff"'),
    as_bytes(IMPRESSION, score=float("nan")),
    as_bytes(IMPRESSION, features={"a": float("nan")}),
    as_bytes(IMPRESSION, features={"a": float("inf")}),
    as_bytes(IMPRESSION, features={"a": 1}).replace(b"1}}", b"1e999}}"),
    as_bytes(IMPRESSION, note=1).replace(b": 1}", b": -" + b"9" * 400 + b"}"),
    as_bytes(IMPRESSION, features={"deep": 1}).replace(b"1}}", b"[" * 99 + b"]" * 99 + b"}}"),
    as_bytes(IMPRESSION, event_ms=-1),
    as_bytes(IMPRESSION, event_ms=0).replace(b": 0", b": -0"),
    as_bytes(IMPRESSION, event_ms=0).replace(b'"event_ms": 0', b'"event\\u005fms" :\t-0'),
    as_bytes(IMPRESSION, event_ms=2**63),
    as_bytes(IMPRESSION, event_ms=1.0),
    as_bytes(IMPRESSION, event_ms="5"),
    as_bytes(IMPRESSION, event_ms=True),
    as_bytes(IMPRESSION, impression_id=""),
    as_bytes(IMPRESSION, user_id=""),
    as_bytes(IMPRESSION, item_id=7),
    as_bytes(IMPRESSION, domain=None),
    as_bytes(IMPRESSION, features=[]),
    as_bytes(IMPRESSION)[:-1] + b', "user_id": "u2"}',
    as_bytes(IMPRESSION)[:-1] + b', "us\\u0065r_id": "u2"}',
    *(as_bytes(IMPRESSION, **{name: 1}) for name in RESERVED),
    *(as_bytes({k: v for k, v in IMPRESSION.items() if k != missing}) for missing in IMPRESSION),
]


@pytest.mark.parametrize("value", BAD_IMPRESSIONS)
def test_what_is_no_impression_is_refused(value: bytes) -> None:
    with pytest.raises(RecordInvalid, match=r"\w"):
        decode_impression_head(value)


BAD_CONVERSIONS = [
    as_bytes(CONVERSION, kind="rent"),
    as_bytes(CONVERSION, conversion_id=""),
    as_bytes(CONVERSION, impression_id=""),
    as_bytes(CONVERSION, impression_id=5),
    as_bytes(CONVERSION, value="9"),
    as_bytes(CONVERSION).replace(b"9.5", b"1e999"),
    as_bytes(CONVERSION, value=float("nan")),
    as_bytes(CONVERSION)[:-1] + b', "value": 1}',
]


@pytest.mark.parametrize("value", BAD_CONVERSIONS)
def test_what_is_no_conversion_is_refused(value: bytes) -> None:
    with pytest.raises(RecordInvalid, match=r"\w"):
        decode_conversion(value, kinds=["buy"])


def test_reserved_names_are_free_in_conversions_and_inside_features() -> None:
    assert decode_conversion(as_bytes(CONVERSION, state="new"), kinds=["buy"])
    assert decode_impression_head(as_bytes(IMPRESSION, features={"labels": "x", "state": 1}))


def test_sample_comes_back_as_written() -> None:
    written = Sample(
        **IMPRESSION,
        produced_ms=7,
        labels={"buy": 1, "like": 0},
        delays_ms={"buy": 500},
        values={"buy": 9.5},
        keep_rate=1.0,
        state="final",
        elapsed_ms=1000,
        revision=2,
        request_id="r1",
    )
    value = encode_sample(written)
    assert decode_sample(value) == written
    assert decode_sample_head(value).labels == {"buy": 1, "like": 0}
    for wrong in (b'"labels":{"buy":2}', b'"labels":{"buy":true}'):
        with pytest.raises(RecordInvalid, match="not a sample"):
            decode_sample(value.replace(b'"labels":{"buy":1,"like":0}', wrong))
