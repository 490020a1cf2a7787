"""Topic `attributions`: which impression a conversion belongs to. Key: conversion_id; value:

{"conversion_id": str, "impression_id": str, "kind": str}
"""

from __future__ import annotations

import msgspec

from topics.json_record import decode_json


class Attribution(msgspec.Struct, frozen=True, kw_only=True):
    conversion_id: str
    impression_id: str
    kind: str


_attribution = msgspec.json.Decoder(Attribution)


def decode_attribution(value: bytes) -> Attribution:
    """Raises RecordInvalid with what was expected and what came."""
    return decode_json(_attribution, value, "an attribution")
