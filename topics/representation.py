"""Topics `representations.user|item|cross`: what the model knows of one entity, as of one version.

Wire format 1
-------------
Record key    the entity's id, UTF-8; in `cross` it is prefixed: `user:ID` or `item:ID`
Record value  the vector: hw_dim numbers in hw_dtype (`topics.vector_encoding`), no header, no
              padding; in float32, the default, value bytes = 4 * hw_dim:

                  byte  0..3    element 0
                  byte  4..7    element 1
                  ...
                  byte  4d..4d+3  element d = hw_dim - 1

              In Python: `numpy.frombuffer(value, "<f4")`. A null value is a tombstone: the entity
              is deleted (evicted or forgotten).
Headers       all ASCII, in this order; integers in decimal without sign or leading zeros

    hw_version      version that the record belongs to; rises by publication
    hw_step         the trainer's step at that version
    hw_event_ms     event time of the newest event in the vector, Unix milliseconds
    hw_produced_ms  produce time (Kafka timestamp) of that event, Unix milliseconds
    hw_dim          number of elements; 0 on a tombstone
    hw_dtype        "float32", "bfloat16" or "int8"; a reader that does not know it must refuse
    hw_schema       "1", this format. A reader that does not know the number must refuse the record.
    hw_scale        only with int8: element = byte * hw_scale, a decimal number

Example: id "u1", vector [1.0, -2.0], version 7, step 70 is key `75 31`, value
`00 00 80 3f 00 00 00 c0`, headers hw_version=7 hw_step=70 ... hw_dim=2 hw_dtype=float32
hw_schema=1 (tests/golden/representation_v1.json).

Topics are compacted; the newest record per id wins, and a record whose hw_version is older than the
one held is a re-publication to ignore. Records become valid with the manifest that covers their
offsets (`topics.manifest`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

from topics.errors import RecordInvalid, WireVersionError
from topics.names import Kind
from topics.vector_encoding import (
    ELEMENT_BYTES,
    VECTOR_DTYPES,
    VectorDtype,
    read_elements,
    write_elements,
)

SCHEMA = 1

Headers = list[tuple[str, bytes]]
ReceivedHeaders = Sequence[tuple[str, str | bytes | None]] | None


class Representation(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A vector `[D]` float32 of one entity, or its deletion (`vector` None)."""

    kind: Kind
    id: str
    vector: NDArray[np.float32] | None
    version: int
    step: int
    event_ms: int
    produced_ms: int
    schema: int = SCHEMA


def encode(
    representation: Representation, dtype: VectorDtype = "float32"
) -> tuple[bytes, bytes | None, Headers]:
    """(key, value, headers) of wire format 1. The vector is copied. Raises ValueError when int8 is
    asked of a vector that is not finite."""
    vector = representation.vector
    value, scale = (None, 1.0) if vector is None else write_elements(vector, dtype)
    headers = [
        ("hw_version", b"%d" % representation.version),
        ("hw_step", b"%d" % representation.step),
        ("hw_event_ms", b"%d" % representation.event_ms),
        ("hw_produced_ms", b"%d" % representation.produced_ms),
        ("hw_dim", b"%d" % (0 if vector is None else len(vector))),
        ("hw_dtype", dtype.encode()),
        ("hw_schema", b"%d" % SCHEMA),
    ]
    if dtype == "int8":
        headers.append(("hw_scale", b"%.9g" % scale))
    return representation.id.encode(), value, headers


def decode(
    key: bytes | None, value: bytes | None, headers: ReceivedHeaders, *, kind: Kind
) -> Representation:
    """Read one record of the topic of `kind`; a float32 vector is a read-only view of `value`.

    Raises WireVersionError for a format that this release does not know, RecordInvalid for bytes
    that are not what their headers say.
    """
    found = dict(headers or ())
    schema = _integer(found, "hw_schema")
    if schema != SCHEMA:
        raise WireVersionError(
            f"expected representations in wire format {SCHEMA}, got hw_schema={schema}: "
            "upgrade this reader to the release of headwater that writes them"
        )
    if key is None:
        raise RecordInvalid("not a representation: expected an id as key, got a null key")
    dim = _integer(found, "hw_dim")
    dtype = _dtype(_text(found, "hw_dtype"))
    size = ELEMENT_BYTES[dtype] * dim
    if len(value or b"") != size:
        raise RecordInvalid(
            f"not a representation: expected {size} bytes (hw_dim={dim}), got {len(value or b'')}"
        )
    scale = _number(found, "hw_scale") if dtype == "int8" else 1.0
    try:
        entity_id = key.decode()
    except UnicodeDecodeError as error:
        raise RecordInvalid(f"not a representation: id is not UTF-8: {key!r}") from error
    return Representation(
        kind=kind,
        id=entity_id,
        vector=None if value is None else read_elements(value, dtype, scale),
        version=_integer(found, "hw_version"),
        step=_integer(found, "hw_step"),
        event_ms=_integer(found, "hw_event_ms"),
        produced_ms=_integer(found, "hw_produced_ms"),
        schema=schema,
    )


def decode_message(message: Message, *, kind: Kind) -> Representation:
    """`decode` of a record as the client hands it out."""
    headers = message.headers()
    pairs = list(headers.items()) if isinstance(headers, dict) else headers
    return decode(message.key(), message.value(), pairs, kind=kind)


def _dtype(name: str) -> VectorDtype:
    for known in VECTOR_DTYPES:
        if name == known:
            return known
    raise WireVersionError(
        f"expected hw_dtype to be one of {', '.join(VECTOR_DTYPES)}, got {name!r}: "
        "upgrade this reader"
    )


def _number(headers: Mapping[str, str | bytes | None], name: str) -> float:
    text = _text(headers, name)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RecordInvalid(
            f"not a representation: expected header {name} to be a finite number, got {text!r}"
        )
    return number


def _text(headers: Mapping[str, str | bytes | None], name: str) -> str:
    content = headers.get(name)
    if content is None:
        raise RecordInvalid(f"not a representation: header {name} is missing")
    return content if isinstance(content, str) else content.decode("ascii", "replace")


def _integer(headers: Mapping[str, str | bytes | None], name: str) -> int:
    content = headers.get(name)
    # isdigit: int() would also take signs, spaces and underscores
    if content is None or not content.isdigit():
        raise RecordInvalid(
            f"not a representation: expected header {name} to be a decimal number, got {content!r}"
        )
    return int(content)
