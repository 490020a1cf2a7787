"""The audit's eyes: Kafka topics -> polars frames, one row per record, read in rounds.

Every frame names its record's source by `stream`, `partition`, `offset`: an event's own coordinates
on an event topic, the header `hw_join` on the join's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl
import xxhash
from confluent_kafka import Message

from settings.config import Config
from stream.asides import ORIGIN_HEADER, headers_of
from topics.attribution import decode_attribution
from topics.conversion import decode_conversion
from topics.errors import RecordInvalid
from topics.impression import decode_impression_head
from topics.join_header import JoinHeader
from topics.names import (
    ATTRIBUTIONS,
    EVENT_TOPICS,
    IMPRESSIONS,
    JOIN_OUTPUTS,
    SAMPLES,
)
from topics.sample import decode_sample_head, negatives_kept
from topics.scan import Partition, end_offsets, read_to_end

_I64, _STR = pl.Int64(), pl.String()
_SOURCE: dict[str, pl.DataType] = {"stream": _STR, "partition": _I64, "offset": _I64}

EVENTS: dict[str, pl.DataType] = {
    **_SOURCE,
    "produced_ms": _I64,
    "digest": pl.UInt64(),
    "invalid": _STR,
    "id": _STR,
    "user_id": _STR,
    "item_id": _STR,
    "event_ms": _I64,
    "kind": _STR,
    "named": _STR,
    "value": _STR,
    "content": pl.UInt64(),
    "keep_rate": pl.Float64(),
    "kept": pl.Boolean(),
}
"""`digest` is of the record's value, `content` of an impression's features; `kept` says whether its
negatives are kept, at the rate that the config has for its domain. `invalid` says why the
bytes are no event; it is null for an event, whose fields then follow."""

SIDES: dict[str, pl.DataType] = {
    "topic": _STR,
    **_SOURCE,
    "watermark_ms": _I64,
    "joined_ms": _I64,
    "digest": pl.UInt64(),
    "reason": _STR,
}
ATTRIBUTED: dict[str, pl.DataType] = {
    **_SOURCE,
    "watermark_ms": _I64,
    "joined_ms": _I64,
    "id": _STR,
    "impression_id": _STR,
    "kind": _STR,
}
SAMPLED: dict[str, pl.DataType] = {
    **_SOURCE,
    "watermark_ms": _I64,
    "joined_ms": _I64,
    "event_ms": _I64,
    "produced_ms": _I64,
    "id": _STR,
    "impression_ms": _I64,
    "state": _STR,
    "elapsed_ms": _I64,
    "revision": _I64,
    "kinds": _STR,
    "positive": _STR,
    "delays": _STR,
    "values": _STR,
    "counts": _STR,
    "delayed": _STR,
    "content": pl.UInt64(),
    "keep_rate": pl.Float64(),
    "kept": pl.Boolean(),
}
"""`kinds`, `positive`, `delays`, `values`, `counts`, `delayed` are canonical texts: "buy,like",
"buy:500,like:7"; `delayed` names the kinds that the sample says were delayed."""


class TopicFrames:
    """All records of the event topics and of the join's outputs so far. `advance` reads what has
    come since: outputs first, so that every event that they speak of is among the events."""

    def __init__(self, config: Config, bootstrap: str) -> None:
        self._config = config
        self._bootstrap = bootstrap
        self._next: dict[Partition, int] = {}
        self.events = pl.DataFrame(schema=EVENTS)
        self.sides = pl.DataFrame(schema=SIDES)
        self.attributed = pl.DataFrame(schema=ATTRIBUTED)
        self.sampled = pl.DataFrame(schema=SAMPLED)
        self.appended = pl.DataFrame(schema=SAMPLED)
        """Samples that `reprocess late` added to what the join had said."""
        self.unreadable: list[str] = []
        """Output records that are not what their topic carries."""

    def advance(self) -> None:
        """Raises TopicUnavailable, TopicUnknown."""
        sides = _Rows(SIDES)
        attributed = _Rows(ATTRIBUTED)
        sampled = _Rows(SAMPLED)
        appended = _Rows(SAMPLED)

        def take_output(name: str, message: Message) -> None:
            try:
                if name == SAMPLES and ORIGIN_HEADER in headers_of(message):
                    appended.add(_sample(message))
                elif name == SAMPLES:
                    sampled.add(_sample(message))
                elif name == ATTRIBUTIONS:
                    attributed.add(_attribution(message))
                else:
                    sides.add((name, *_side(message)))
            except (RecordInvalid, KeyError, ValueError) as error:
                at = f"{name} partition {message.partition()} offset {message.offset()}"
                self.unreadable.append(f"{at}: {error}")

        self._read(JOIN_OUTPUTS, take_output)
        self.sides = pl.concat([self.sides, sides.frame()])
        self.attributed = pl.concat([self.attributed, attributed.frame()])
        self.sampled = pl.concat([self.sampled, sampled.frame()])
        self.appended = pl.concat([self.appended, appended.frame()])
        events = _Rows(EVENTS)
        rules = _EventRules(self._config)

        def take_event(name: str, message: Message) -> None:
            events.add(_event(name, message, rules))

        self._read(EVENT_TOPICS, take_event)
        self.events = pl.concat([self.events, events.frame()])

    def watermark_ms(self) -> int:
        """The newest watermark that any output was written at; -1 before the first."""
        newest = [
            frame["watermark_ms"].max() for frame in (self.sides, self.attributed, self.sampled)
        ]
        return max((value for value in newest if isinstance(value, int)), default=-1)

    def _read(self, names: Sequence[str], take: Callable[[str, Message], None]) -> None:
        ends = end_offsets(self._config, self._bootstrap, names)
        for name, message in read_to_end(
            self._config, self._bootstrap, names, start=self._next, until=ends
        ):
            take(name, message)
        self._next.update(ends)


class _Rows:
    """Tuples in, a frame out."""

    def __init__(self, schema: Mapping[str, pl.DataType]) -> None:
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []
        self.add = self._rows.append

    def frame(self) -> pl.DataFrame:
        columns = zip(*self._rows, strict=True) if self._rows else ([] for _ in self._schema)
        return pl.DataFrame(
            [
                pl.Series(name, column, dtype=dtype, strict=True)
                for (name, dtype), column in zip(self._schema.items(), columns, strict=True)
            ]
        )


class _EventRules:
    """The part of the config that says what an event is, and whether its negatives are kept."""

    def __init__(self, config: Config) -> None:
        self.kinds = frozenset(config.kinds)
        self.bytes_max = config.events.bytes_max
        self._rate = config.join.negatives_kept
        self._rate_by_domain = config.join.negatives_kept_by_domain

    def keeping(self, impression_id: str, domain: str) -> tuple[float, bool]:
        """(keep rate, whether its negatives are kept)."""
        rate = self._rate_by_domain.get(domain, self._rate)
        return rate, negatives_kept(impression_id, rate)


def _event(name: str, message: Message, rules: _EventRules) -> tuple[Any, ...]:
    value = message.value()
    bytes_max = rules.bytes_max
    there = None if value is None else value[:bytes_max]  # what `undecodable` holds of a larger one
    found = (name, message.partition(), message.offset(), message.timestamp()[1], _digest(there))
    try:
        if value is None:
            raise RecordInvalid("expected an event, got no bytes")
        if len(value) > bytes_max:
            raise RecordInvalid(f"expected at most {bytes_max} bytes, got {len(value)}")
        if name == IMPRESSIONS:
            head = decode_impression_head(value)
            ids = (head.impression_id, head.user_id, head.item_id, head.event_ms)
            content = _digest(bytes(head.features))
            keeping = rules.keeping(head.impression_id, head.domain)
            return (*found, None, *ids, None, None, None, content, *keeping)
        conversion = decode_conversion(value, rules.kinds)
    except RecordInvalid as invalid:
        return (*found, str(invalid), *[None] * (len(EVENTS) - len(found) - 1))
    number = None if conversion.value is None else repr(conversion.value)
    return (
        *found,
        None,
        conversion.conversion_id,
        conversion.user_id,
        conversion.item_id,
        conversion.event_ms,
        conversion.kind,
        conversion.impression_id,
        number,
        None,
        None,
        None,
    )


def _side(message: Message) -> tuple[Any, ...]:
    said = JoinHeader.read(message.headers())
    return (
        *said.source,
        said.watermark_ms,
        said.joined_ms,
        _digest(message.value()),
        headers_of(message)["hw_reason"].decode("ascii"),
    )


def _attribution(message: Message) -> tuple[Any, ...]:
    said = JoinHeader.read(message.headers())
    attribution = decode_attribution(message.value() or b"")
    return (
        *said.source,
        said.watermark_ms,
        said.joined_ms,
        attribution.conversion_id,
        attribution.impression_id,
        attribution.kind,
    )


def _sample(message: Message) -> tuple[Any, ...]:
    said = JoinHeader.read(message.headers())
    sample = decode_sample_head(message.value() or b"")
    return (
        *said.source,
        said.watermark_ms,
        said.joined_ms,
        said.event_ms,
        sample.produced_ms,
        sample.impression_id,
        sample.event_ms,
        sample.state,
        sample.elapsed_ms,
        sample.revision,
        _text(sample.labels),
        ",".join(sorted(kind for kind, label in sample.labels.items() if label)),
        _text(sample.delays_ms, with_values=True),
        _text(sample.values, with_values=True),
        _text(sample.counts, with_values=True),
        ",".join(sorted(kind for kind, delayed in sample.delayed.items() if delayed)),
        _digest(bytes(sample.features)),
        sample.keep_rate,
        sample.kept,
    )


def _text(pairs: Mapping[str, float], *, with_values: bool = False) -> str:
    if with_values:
        return ",".join(sorted(f"{name}:{value!r}" for name, value in pairs.items()))
    return ",".join(sorted(pairs))


def _digest(value: bytes | None) -> int | None:
    return None if value is None else xxhash.xxh3_64_intdigest(value)
