"""Topic `samples`: an impression with its labels, as the trainer reads it. Key: user_id.

The value is the impression's JSON object, byte for byte, with the join's fields spliced in:

    "produced_ms"  produce time of the newest event in the sample's information
    "labels"       {kind: 0|1}; early and final: every kind of the config; correction: only its own
    "delays_ms"    {kind: t_conversion - t_impression} of kinds with label 1
    "values"       {kind: float} of those whose conversion brought a value
    "keep_rate"    1.0 until something samples impressions down
    "state"        "early" | "correction" | "final"
    "elapsed_ms"   event time from the impression to what this sample knows
    "revision"     0, 1, 2, ... per impression, in the order of emission

Policy `wait` gives one `final` per impression; policy `correct` an `early`, a `correction` per kind
that converts later, and always one `final`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from topics.errors import RecordInvalid


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One sample. `features` is as the producer sent it: slots and types are the trainer's to check
    against the config, and so are the optional fields, which the join does not look into."""

    impression_id: str
    user_id: str
    item_id: str
    domain: str
    event_ms: int
    produced_ms: int
    features: dict[str, Any]
    labels: dict[str, Literal[0, 1]]
    delays_ms: dict[str, int]
    values: dict[str, float]
    keep_rate: float
    state: Literal["early", "correction", "final"]
    elapsed_ms: int
    revision: int
    request_id: Any = None
    position: Any = None
    score: Any = None


class SampleHead(msgspec.Struct, frozen=True, kw_only=True):
    """What the audit compares; `features` are bytes of JSON, not decoded."""

    impression_id: str
    event_ms: int
    features: msgspec.Raw
    produced_ms: int
    labels: dict[str, Literal[0, 1]]
    delays_ms: dict[str, int]
    values: dict[str, float]
    state: Literal["early", "correction", "final"]
    elapsed_ms: int
    revision: int


_sample = msgspec.json.Decoder(Sample)
_head = msgspec.json.Decoder(SampleHead)
_encoder = msgspec.json.Encoder()


def encode_sample(sample: Sample) -> bytes:
    """JSON bytes of one sample, as `samples.jsonl` holds them, without a line break."""
    return _encoder.encode(sample)


def decode_sample(value: bytes) -> Sample:
    """Raises RecordInvalid with what was expected and what came."""
    try:
        return _sample.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordInvalid(f"not a sample: {error}") from error


def decode_sample_head(value: bytes) -> SampleHead:
    """Raises RecordInvalid with what was expected and what came."""
    try:
        return _head.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordInvalid(f"not a sample: {error}") from error
