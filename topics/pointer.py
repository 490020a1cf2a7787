"""Topic `pointer`: which stack's representations the readers of this one follow. One key; the
newest record counts, none = its own.

`headwater switch NAME` writes it once the replayed stack has published; readers in every process
move over to its topics by themselves, and back when it points back.
"""

from __future__ import annotations

import time

import msgspec

from settings.config import Config
from topics.admin import ensure_topics
from topics.json_record import decode_json
from topics.names import POINTER
from topics.scan import read_to_end
from topics.writing import write_durably

KEY = b"representations"


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """`topic_prefix` of the stack to follow; `previous` is the one that was followed before."""

    topic_prefix: str
    previous: str
    switched_ms: int
    """Wall clock, Unix milliseconds."""


_pointer = msgspec.json.Decoder(Pointer)


def decode_pointer(value: bytes) -> Pointer:
    """Raises RecordInvalid."""
    return decode_json(_pointer, value, "a pointer")


def read_pointer(config: Config, bootstrap: str) -> Pointer | None:
    """The newest one; None where none was ever written. Raises TopicError."""
    newest: Pointer | None = None
    for _, message in read_to_end(config, bootstrap, [POINTER]):
        newest = decode_pointer(message.value() or b"")
    return newest


def write_pointer(config: Config, bootstrap: str, topic_prefix: str) -> Pointer:
    """Let the readers of `config`'s stack follow `topic_prefix`; returns once it is durable.

    Makes the stack's topics if it has never run: a replay may come before it. Raises TopicError.
    """
    ensure_topics(config, bootstrap)
    before = read_pointer(config, bootstrap)
    pointer = Pointer(
        topic_prefix=topic_prefix,
        previous=config.kafka.topic_prefix if before is None else before.topic_prefix,
        switched_ms=time.time_ns() // 1_000_000,
    )
    write_durably(config, bootstrap, POINTER, KEY, msgspec.json.encode(pointer))
    return pointer
