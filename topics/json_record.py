"""Small JSON records, decoded alike: what is not one says so."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from topics.errors import RecordInvalid

T = TypeVar("T")


def decode_json(decoder: msgspec.json.Decoder[T], value: bytes, what: str) -> T:
    """`value` as `decoder`'s type. Raises RecordInvalid: not `what`, and why not."""
    try:
        return decoder.decode(value)
    except msgspec.DecodeError as error:
        raise RecordInvalid(f"not {what}: {error}") from error
