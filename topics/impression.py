"""Topic `impressions`: an ad shown to a user. Key: `event_key(user_id, item_id)`; value: JSON bytes
as the producer wrote them, never re-encoded; the Kafka timestamp is the produce time.

    {"impression_id": str, "event_ms": int, "user_id": str, "item_id": str, "domain": str,
     "features": {slot: value}}

A slot's value is a string, a list of strings, a number, a list of numbers, or for a sequence a list
of {"item_id": str, "event_ms": int, ...}; a missing slot is missing, not zero. Optional:
`request_id`, `position`, `score` (as served). Other keys pass through to the sample untouched,
except the names that the join itself adds (`RESERVED`): those make an impression undecodable.
"""

from __future__ import annotations

from typing import Any

import msgspec

from topics.errors import RecordInvalid
from topics.event import EventMs, Id, Strictness, decode_event

RESERVED = (
    "produced_ms",
    "labels",
    "delays_ms",
    "values",
    "counts",
    "keep_rate",
    "kept",
    "delayed",
    "state",
    "elapsed_ms",
    "revision",
)
"""Keys that the join adds; an impression that brings its own would make the sample lie."""


class Impression(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An impression with its features decoded, as producers make them."""

    impression_id: Id
    event_ms: EventMs
    user_id: Id
    item_id: Id
    domain: str
    features: dict[str, Any]
    request_id: Any = None
    position: Any = None
    score: Any = None


class ImpressionHead(msgspec.Struct, frozen=True, kw_only=True):
    """What the join reads of an impression; `features` are the bytes of a JSON object."""

    impression_id: Id
    event_ms: EventMs
    user_id: Id
    item_id: Id
    domain: str
    features: msgspec.Raw


_STRICTNESS = Strictness(ImpressionHead.__struct_fields__, RESERVED)
_impression = msgspec.json.Decoder(Impression)
_head = msgspec.json.Decoder(ImpressionHead)
_encoder = msgspec.json.Encoder()


def encode_impression(impression: Impression) -> bytes:
    """JSON bytes of one event, without a line break."""
    return _encoder.encode(impression)


def decode_impression(value: bytes) -> Impression:
    """The whole event. Raises RecordInvalid with what was expected and what came."""
    return decode_event(_impression, value, _STRICTNESS)


def decode_impression_head(value: bytes) -> ImpressionHead:
    """Exactly the checks of the join. Raises RecordInvalid with what was expected and what came."""
    head = decode_event(_head, value, _STRICTNESS)
    if bytes(head.features)[:1] != b"{":
        raise RecordInvalid("not an event: expected features to be an object")
    return head
