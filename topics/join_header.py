"""The header `hw_join`: what the join says of each record that it writes.

    hw_join  STREAM PARTITION OFFSET WATERMARK_MS EVENT_MS PRODUCED_MS JOINED_MS

Seven ASCII words, a space between them. One header: each costs the producer and every reader more
than the number in it. Side topics have `hw_reason` beside it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

from topics.errors import RecordInvalid
from topics.names import CONVERSIONS, IMPRESSIONS

JOIN_HEADER = "hw_join"
_STREAMS = {name.encode("ascii"): name for name in (IMPRESSIONS, CONVERSIONS)}


class JoinHeader(NamedTuple):
    """About one record: the source event that it is about, and the times of its verdict."""

    stream: str
    """impressions or conversions."""
    partition: int
    offset: int
    watermark_ms: int
    """The watermark at which the verdict was given; -1 = none yet."""
    event_ms: int
    """Event time of the newest event in it."""
    produced_ms: int
    """Of the same event: when it was produced."""
    joined_ms: int
    """Wall clock of the verdict."""

    @property
    def source(self) -> tuple[str, int, int]:
        """(stream, partition, offset)"""
        return self[:3]

    @classmethod
    def read(cls, headers: Any) -> Self:
        """From a message's `headers()`. Raises RecordInvalid where it is missing, or as `find`."""
        found = cls.find(headers)
        if found is None:
            raise RecordInvalid(f"{JOIN_HEADER}: expected this header, got none")
        return found

    @classmethod
    def find(cls, headers: Any) -> Self | None:
        """Likewise; None where a record has none, so that the join did not write it. Raises
        RecordInvalid where it is not seven words."""
        for name, value in headers or ():
            if name == JOIN_HEADER:
                return cls._parsed(value or b"")
        return None

    @classmethod
    def _parsed(cls, value: bytes) -> Self:
        words = value.split(b" ")
        stream = _STREAMS.get(words[0])
        if stream is not None and len(words) == len(cls._fields):
            try:
                return cls(stream, *map(int, words[1:]))
            except ValueError:
                pass
        raise RecordInvalid(f"{JOIN_HEADER}: expected a stream and six integers, got {value!r}")

    def written(self) -> tuple[str, bytes]:
        """(name, value) as the join writes it."""
        return JOIN_HEADER, " ".join(map(str, self)).encode("ascii")
