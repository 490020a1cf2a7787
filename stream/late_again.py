"""`headwater reprocess late`: what late events would have given, had they come in time.

Sent to their topic once more they would be late once more. So they are joined with the history of
their pairs by a bounded run of the same join (`runtime.reprocessing`), and what that adds to what
the live join has said is appended to `samples`:

    a late impression    its own samples, as under the config's policy, ending in its one `final`
    a late conversion    a `correction` for the impression that it belongs to, if that was sampled
                         without this kind; nothing if the kind was known, or none owns it

Under policy `wait` the trainer learns from finals alone: such a correction would be a positive
beside the negative that it has learnt. It is for other readers, and for a replay.

Conversions that the live join attributed stay where they are: what it said is not taken back. The
appended records carry `hw_reprocessed`; in the audit the late events stay late, and the appended
samples are checked on their own.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from confluent_kafka import Message

from settings.config import Config
from stream.asides import Aside, Record, Source, headers_of, origin
from topics.attribution import decode_attribution
from topics.join_header import JoinHeader
from topics.names import (
    ATTRIBUTIONS,
    EVENT_TOPICS,
    IMPRESSIONS,
    JOIN_OUTPUTS,
    ORPHANS,
    SAMPLES,
    Stream,
)
from topics.sample import SampleHead, decode_sample_head
from topics.scan import read_to_end

Pair = tuple[str, str]


class _Where(msgspec.Struct):
    user_id: str
    item_id: str
    event_ms: int


@dataclass(frozen=True, slots=True)
class PastEvent:
    """An event of a pair that has a late one, as its topic holds it."""

    stream: Stream
    source: Source
    event_ms: int
    key: bytes | None
    value: bytes
    produced_ms: int


@dataclass(slots=True)
class Said:
    """What the outputs say of one impression: kinds told positive, and its newest revision."""

    kinds: set[str] = field(default_factory=set)
    revision: int = -1


@dataclass(slots=True)
class Past:
    """The late events' pairs: the events to join again, in order, and what was said before."""

    events: list[PastEvent]
    said: dict[Source, Said]


_where = msgspec.json.Decoder(_Where)


def read_past(config: Config, bootstrap: str, asides: Iterable[Aside]) -> Past:
    """Impressions of the late events' pairs, these late events, and the pairs' orphans: those may
    belong to a late impression. Reads the event topics and the outputs whole. Raises TopicError.
    """
    chosen = {aside.source: aside for aside in asides}
    pairs = {_pair_of(aside.value) for aside in chosen.values()}
    past: dict[Source, PastEvent] = {}
    for name, message in read_to_end(config, bootstrap, EVENT_TOPICS):
        value = message.value()
        try:
            found = _where.decode(value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if value is None or (found.user_id, found.item_id) not in pairs:
            continue
        stream: Stream = "impressions" if name == IMPRESSIONS else "conversions"
        source = (name, message.partition() or 0, message.offset() or 0)
        past[source] = PastEvent(
            stream, source, found.event_ms, message.key(), value, message.timestamp()[1]
        )
    verdicts: dict[Source, str] = {}
    said: dict[Source, Said] = defaultdict(Said)
    for name, message in read_to_end(config, bootstrap, JOIN_OUTPUTS):
        source = _source(message)
        if source not in past:
            continue
        if name == SAMPLES:
            _remember(said[source], decode_sample_head(message.value() or b""))
        verdicts.setdefault(source, name)

    def takes_part(event: PastEvent) -> bool:
        verdict = verdicts.get(event.source)
        if event.source in chosen:
            return True
        if event.stream == "impressions":
            return verdict in (None, SAMPLES) or event.source in said
        return verdict == ORPHANS

    events = [event for event in past.values() if takes_part(event)]
    # Ties as the join takes them: impressions before conversions.
    events.sort(key=lambda event: (event.event_ms, event.stream != "impressions", event.source))
    is_open = {s for s in past if s[0] == IMPRESSIONS and verdicts.get(s) is None}
    return Past(events, {s: known for s, known in said.items() if s not in is_open})


def additions(
    past: Past,
    asides: Iterable[Aside],
    outputs: Iterable[tuple[str, Message]],
    shadow_sources: dict[Source, Source],
) -> list[tuple[Aside, list[Record]]]:
    """For each late event the records to append, in the order of `asides`. `outputs` is what the
    bounded run wrote, `shadow_sources` maps its source coordinates to the events' own."""
    late = {aside.source: aside for aside in asides}
    found: dict[Source, list[Record]] = {source: [] for source in late}
    owners: dict[str, list[Source]] = defaultdict(list)
    finals: dict[str, tuple[Source, Message]] = {}
    for name, message in outputs:
        source = shadow_sources[_source(message)]
        if name == ATTRIBUTIONS and source in late:
            owners[decode_attribution(message.value() or b"").impression_id].append(source)
        elif name == SAMPLES:
            head = decode_sample_head(message.value() or b"")
            if source in late:
                found[source].append(_moved(late[source], source, message))
            elif head.state == "final":
                finals[head.impression_id] = (source, message)
    for impression_id, conversions in owners.items():
        if impression_id in finals:
            source, message = finals[impression_id]
            for kind, conversion in _firsts(message, [late[c] for c in conversions]).items():
                known = past.said.get(source)
                if known is not None and kind not in known.kinds:
                    known.kinds.add(kind)
                    known.revision += 1
                    found[conversion.source].append(
                        _correction(conversion, source, message, kind, known.revision)
                    )
    return [(late[source], records) for source, records in found.items()]


def is_correction(record: Record) -> bool:
    """Of a record that is to be appended to the samples."""
    return decode_sample_head(record[2] or b"").state == "correction"


def _remember(said: Said, head: SampleHead) -> None:
    said.kinds.update(kind for kind, label in head.labels.items() if label)
    said.revision = max(said.revision, head.revision)


def _firsts(final: Message, conversions: list[Aside]) -> dict[str, Aside]:
    """Kind -> the late conversion that is its label in the final sample."""
    head = decode_sample_head(final.value() or b"")
    firsts: dict[str, Aside] = {}
    for aside in conversions:
        event = msgspec.json.decode(aside.value or b"")
        if head.delays_ms.get(event["kind"]) == event["event_ms"] - head.event_ms:
            firsts.setdefault(event["kind"], aside)
    return firsts


def _correction(aside: Aside, source: Source, final: Message, kind: str, revision: int) -> Record:
    """The final sample cut down to one kind; features stay the bytes that they are."""
    sample: dict[str, msgspec.Raw] = msgspec.json.decode(
        final.value() or b"", type=dict[str, msgspec.Raw]
    )
    head = decode_sample_head(final.value() or b"")
    values = {kind: head.values[kind]} if kind in head.values else {}
    own: dict[str, Any] = {
        "labels": {kind: 1},
        "delays_ms": {kind: head.delays_ms[kind]},
        "values": values,
        "counts": {kind: 1},
        "delayed": {kind: 1},
        "state": "correction",
        "elapsed_ms": head.delays_ms[kind],
        "revision": revision,
        "produced_ms": aside.produced_ms,
    }
    value = msgspec.json.encode({**sample, **own})
    event_ms = head.event_ms + head.delays_ms[kind]
    return SAMPLES, final.key(), value, _own_headers(aside, source, final, event_ms=event_ms)


def _moved(aside: Aside, source: Source, message: Message) -> Record:
    return SAMPLES, message.key(), message.value(), _own_headers(aside, source, message)


def _own_headers(
    aside: Aside, source: Source, message: Message, event_ms: int | None = None
) -> list[tuple[str, bytes]]:
    """Of the impression's own coordinates, and of the watermark that the live join had reached."""
    headers = headers_of(message)
    said = JoinHeader.read(message.headers())
    own = said._replace(
        partition=source[1],
        offset=source[2],
        watermark_ms=aside.watermark_ms,
        event_ms=said.event_ms if event_ms is None else event_ms,
        joined_ms=time.time_ns() // 1_000_000,
    )
    return list((headers | dict([own.written(), origin(aside)])).items())


def _pair_of(value: bytes | None) -> Pair:
    found = _where.decode(value or b"")
    return found.user_id, found.item_id


def _source(message: Message) -> Source:
    return JoinHeader.read(message.headers()).source
