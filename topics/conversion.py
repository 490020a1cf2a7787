"""Topic `conversions`: something a user did after an impression. Key and timestamp as for
impressions; value: JSON bytes as the producer wrote them, never re-encoded.

    {"conversion_id": str, "impression_id": str|null, "event_ms": int, "user_id": str,
     "item_id": str, "kind": str, "value": float|null}

`impression_id` and `value` may be left out, which means null. Unknown keys are ignored.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from topics.errors import RecordInvalid
from topics.event import EventMs, Id, Strictness, decode_event


class Conversion(msgspec.Struct, frozen=True, kw_only=True):
    """A conversion; `impression_id` None = last touch of the pair decides."""

    conversion_id: Id
    impression_id: Id | None = None
    event_ms: EventMs
    user_id: Id
    item_id: Id
    kind: Id
    value: float | None = None


_STRICTNESS = Strictness(Conversion.__struct_fields__)
_conversion = msgspec.json.Decoder(Conversion)
_encoder = msgspec.json.Encoder()


def encode_conversion(conversion: Conversion) -> bytes:
    """JSON bytes of one event, without a line break."""
    return _encoder.encode(conversion)


def decode_conversion(value: bytes, kinds: Collection[str] | None = None) -> Conversion:
    """The event; with `kinds` (the config's), exactly the checks of the join.

    Raises RecordInvalid with what was expected and what came.
    """
    conversion = decode_event(_conversion, value, _STRICTNESS)
    if kinds is not None and conversion.kind not in kinds:
        raise RecordInvalid(
            f"not an event: expected kind to be one of {sorted(kinds)}, got {conversion.kind!r}"
        )
    return conversion
