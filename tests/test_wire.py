"""Bytes of representations and manifests: round trips, golden bytes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.publishing import manifest, representation
from topics.errors import RecordInvalid, WireVersionError
from topics.manifest import TaskEvaluation, decode_manifest, encode_manifest, manifest_key
from topics.representation import Representation, decode, encode

GOLDEN = Path(__file__).parent / "golden"
_count = st.integers(0, 2**63 - 1)
_vectors = st.lists(st.floats(width=32, allow_nan=False), max_size=64).map(
    lambda numbers: np.array(numbers, np.float32)
)
_ids = st.text(st.characters(codec="utf-8"), min_size=1)


@given(_ids, st.none() | _vectors, _count, _count, _count, _count)
def test_representation_comes_back_as_written(
    entity_id: str,
    vector: np.ndarray | None,
    version: int,
    step: int,
    event_ms: int,
    produced_ms: int,
) -> None:
    written = Representation(
        kind="cross",
        id=entity_id,
        vector=vector,
        version=version,
        step=step,
        event_ms=event_ms,
        produced_ms=produced_ms,
    )
    key, value, headers = encode(written)
    read = decode(key, value, headers, kind="cross")
    for name in Representation.__struct_fields__:
        if name != "vector":
            assert getattr(read, name) == getattr(written, name)
    if vector is None:
        assert read.vector is None and value is None
    else:
        assert value is not None and read.vector is not None
        assert read.vector.tobytes() == vector.tobytes() == value


def test_golden_bytes_of_wire_format_1() -> None:
    cases = json.loads((GOLDEN / "representation_v1.json").read_text(encoding="utf-8"))
    for case in cases:
        value = None if case["value_hex"] is None else bytes.fromhex(case["value_hex"])
        headers = [(name, text.encode()) for name, text in case["headers"].items()]
        read = decode(bytes.fromhex(case["key_hex"]), value, headers, kind=case["kind"])
        assert read.id == case["id"]
        if value is not None:  # as any other language would: 4 bytes each, little-endian
            numbers = np.frombuffer(value, "<f4").astype(float).tolist()
            assert numbers == case["vector"]
        assert encode(read) == (bytes.fromhex(case["key_hex"]), value, headers)


def test_unknown_wire_version_says_what_to_do() -> None:
    key, value, headers = encode(representation("u1", 3))
    newer = [(n, b"2" if n == "hw_schema" else c) for n, c in headers]
    with pytest.raises(WireVersionError, match=r"expected .* format 1, got hw_schema=2: upgrade"):
        decode(key, value, newer, kind="user")
    other = [(n, b"float8" if n == "hw_dtype" else c) for n, c in headers]
    with pytest.raises(WireVersionError, match="one of float32, bfloat16, int8, got 'float8'"):
        decode(key, value, other, kind="user")


@given(_vectors)
def test_shorter_encodings_stay_within_their_error(vector: np.ndarray) -> None:
    finite = np.where(np.isfinite(vector), vector, 0).astype(np.float32)
    finite = np.clip(finite, -1e30, 1e30)
    wide = finite.astype(np.float64)
    written = representation("u1", 3)
    for dtype, size in (("bfloat16", 2), ("int8", 1)):
        key, value, headers = encode(msgspec.structs.replace(written, vector=finite), dtype)
        assert value is not None and len(value) == size * len(finite)
        read = decode(key, value, headers, kind="user").vector
        assert read is not None and read.dtype == np.float32
        error = np.abs(read.astype(np.float64) - wide)
        largest = np.abs(wide).max(initial=0.0)
        # of subnormals, bfloat16 keeps half a step of its smallest
        bound = 2.0**-8 * np.abs(wide) + 2.0**-134 if dtype == "bfloat16" else largest / 253 + 1e-44
        assert (error <= bound).all()


def test_golden_bytes_of_the_shorter_encodings() -> None:
    one = msgspec.structs.replace(
        representation("u1", 3), vector=np.asarray([1.0, -2.0, 0.3, 3.4e38], np.float32)
    )
    assert encode(one, "bfloat16")[1] == bytes.fromhex("803f00c09a3e807f")  # the last rounds to inf
    _, value, headers = encode(
        msgspec.structs.replace(one, vector=np.asarray([1.0, -0.5, 0.0], np.float32)), "int8"
    )
    assert value == bytes.fromhex("7fc000")
    assert dict(headers)["hw_scale"] == b"0.00787401572"
    nan = msgspec.structs.replace(one, vector=np.asarray([np.nan, np.inf], np.float32))
    key, value, headers = encode(nan, "bfloat16")
    read = decode(key, value, headers, kind="user").vector
    assert read is not None and np.isnan(read[0]) and np.isinf(read[1])
    with pytest.raises(ValueError, match="finite"):
        encode(nan, "int8")


@pytest.mark.parametrize("scale", [b"", b"nan", b"x", None])
def test_a_scale_that_is_no_number_is_refused(scale: bytes | None) -> None:
    key, value, headers = encode(representation("u1", 3), "int8")
    wrong = [(n, scale if n == "hw_scale" else c) for n, c in headers]
    with pytest.raises(RecordInvalid, match="hw_scale"):
        decode(key, value, wrong, kind="user")


@pytest.mark.parametrize("name", ["hw_schema", "hw_dim", "hw_dtype", "hw_version", "hw_event_ms"])
def test_missing_header_is_named(name: str) -> None:
    key, value, headers = encode(representation("u1", 3))
    with pytest.raises(RecordInvalid, match=name):
        decode(key, value, [pair for pair in headers if pair[0] != name], kind="user")


@pytest.mark.parametrize("content", [b"", b"-1", b"+1", b" 1", b"1_0", b"1.0", b"\xff", None])
def test_header_that_is_no_number_is_refused(content: bytes | None) -> None:
    key, value, headers = encode(representation("u1", 3))
    wrong = [(n, content if n == "hw_version" else c) for n, c in headers]
    with pytest.raises(RecordInvalid, match="hw_version"):
        decode(key, value, wrong, kind="user")


def test_wrong_length_or_key_is_refused() -> None:
    key, value, headers = encode(representation("u1", 3))
    assert value is not None
    with pytest.raises(RecordInvalid, match=r"expected 16 bytes \(hw_dim=4\), got 15"):
        decode(key, value[:-1], headers, kind="user")
    with pytest.raises(RecordInvalid, match="expected 16 bytes"):
        decode(key, None, headers, kind="user")
    with pytest.raises(RecordInvalid, match="null key"):
        decode(None, value, headers, kind="user")
    with pytest.raises(RecordInvalid, match="not UTF-8"):
        decode(b"\xff", value, headers, kind="user")


def test_manifest_comes_back_and_refuses_a_newer_schema() -> None:
    evaluation = TaskEvaluation(auc=0.75, ne=0.9, pcoc=None, samples=10, positives=0)
    written = msgspec.structs.replace(
        manifest(9, end_offsets={"representations.user": {0: 5, 1: 7}}),
        evaluation={"click": evaluation},
        reason="calibration held it",
    )
    value = encode_manifest(written)
    assert decode_manifest(value) == written
    assert b"\n" not in value
    with pytest.raises(WireVersionError, match="expected manifests of schema 1, got 2"):
        decode_manifest(value.replace(b'"schema":1', b'"schema":2'))
    with pytest.raises(RecordInvalid, match="not a manifest"):
        decode_manifest(value[:-5])


def test_golden_bytes_of_every_encoding_and_of_a_forgotten_users_tombstone() -> None:
    cases = json.loads((GOLDEN / "representation_v1_encodings.json").read_text(encoding="utf-8"))
    for case in cases:
        headers = [(name, text.encode()) for name, text in case["headers"].items()]
        value = None if case["value_hex"] is None else bytes.fromhex(case["value_hex"])
        read = decode(bytes.fromhex(case["key_hex"]), value, headers, kind=case["kind"])
        assert read.id == case["id"]
        if case["vector"] is None:
            assert read.vector is None and dict(headers)["hw_forgotten"] == b"1"
            continue
        assert read.vector is not None
        error = np.abs(read.vector - np.asarray(case["vector"], np.float32)).max()
        assert error <= (0.012 if case["dtype"] == "int8" else 0.0)
        again = msgspec.structs.replace(read, vector=np.asarray(case["vector"], np.float32))
        assert encode(again, case["dtype"]) == (bytes.fromhex(case["key_hex"]), value, headers)


def test_golden_bytes_of_a_manifest() -> None:
    golden = json.loads((GOLDEN / "manifest_v1.json").read_text(encoding="utf-8"))
    read = decode_manifest(golden["value"].encode())
    assert manifest_key(read.version) == golden["key"].encode()
    assert encode_manifest(read) == golden["value"].encode()
