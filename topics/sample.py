"""Topic `samples`: an impression with its labels, as the trainer reads it. Key: user_id.

The value is the impression's JSON object, byte for byte, with the join's fields spliced in:

    "produced_ms"  produce time of the newest event in the sample's information
    "labels"       {kind: 0|1}; early and final: every kind of the config; correction: only its own
    "delays_ms"    {kind: t_conversion - t_impression} of kinds with label 1: the first conversion's
    "values"       {kind: float} of kinds with label 1, by the kind's policy (`kinds.NAME.value`)
    "counts"       {kind: int} of kinds with label 1: conversions of the kind that belong to it
    "keep_rate"    the share of negatives that is kept where this impression is (see below)
    "kept"         false: this impression's negatives were sampled out
    "delayed"      {kind: 0|1} of kinds with label 1, policy `correct` only: 0 = its early sample
                   had it, 1 = a correction said it
    "state"        "early" | "correction" | "final"
    "elapsed_ms"   event time from the impression to what this sample knows
    "revision"     0, 1, 2, ... per impression, in the order of emission

Policy `wait` gives one `final` per impression; policy `correct` an `early`, a `correction` per kind
that converts later, and always one `final`. An `early` counts the conversions at or before its
`elapsed_ms`, a `correction` the one that it tells of, a `final` all. A kind whose window is at most
`elapsed_ms` has matured; in a `final` all have.

Values: `first` = that of the first conversion, the one that gives label and delay (none if it
brought none); `last`, `sum`, `max` = over the conversions that brought one, in order of event time
and id. A sum beyond binary64 is its largest number.

Down-sampled negatives (`join.negatives_kept` < 1). Whether an impression's negatives are kept is
drawn from its id (`negatives_kept`), the same for all its samples. If not (`kept` false), its
samples name only kinds with label 1; one that would name none is not written. So of each kind every
positive is in the stream, and exactly the share `keep_rate` of negatives, whatever else the
impression did. Every sample, positive or not, carries that share: training with
`logit - ln(keep_rate)` on all of them makes the bare logit unbiased, kind by kind, under every
weighting of models that weigh by the *true* probability. What estimates a rate by counting
(metrics, nuisance models) uses samples with `kept` true: they are a fair share of all impressions.
"""

from __future__ import annotations

import zlib
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
    counts: dict[str, int] = {}
    keep_rate: float
    kept: bool = True
    delayed: dict[str, Literal[0, 1]] = {}
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
    counts: dict[str, int] = {}
    keep_rate: float
    kept: bool = True
    delayed: dict[str, Literal[0, 1]] = {}
    state: Literal["early", "correction", "final"]
    elapsed_ms: int
    revision: int


def negatives_kept(impression_id: str, keep_rate: float) -> bool:
    """Whether the negatives of this impression are in the stream; `keep_rate` in (0, 1].

    Murmur3's finaliser over the CRC-32 of the id: a function of the id alone, so that a replay and
    the audit draw what the join drew.
    """
    h = zlib.crc32(impression_id.encode()) ^ _SALT
    h = ((h ^ h >> 16) * 0x85EBCA6B) & 0xFFFFFFFF
    h = ((h ^ h >> 13) * 0xC2B2AE35) & 0xFFFFFFFF
    return (h ^ h >> 16) < keep_rate * 2.0**32


_SALT = 0x9E3779B9
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
