"""`headwater reprocess undecodable`: events whose bytes the join refused, sent in once more.

What was fixed is the config (a kind added, `events.bytes_max` raised), a clock that was ahead, or
the bytes themselves, by a function that the caller brings. They go to their source topic again as a
new source record, keyed by the pair that they now decode to. The join judges it anew, and so does
the audit, which counts it as one more event in; the record that it repeats stays what it was. Bytes
that the rules still refuse are not sent, and are looked at again by the next run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec

from settings.config import Config
from stream.asides import Aside, AsideTopic, Record, origin, read_asides, send_once
from topics.conversion import decode_conversion
from topics.errors import RecordInvalid
from topics.event import event_key
from topics.impression import decode_impression_head
from topics.join_header import JoinHeader
from topics.names import IMPRESSIONS, JOIN_OUTPUTS
from topics.scan import end_offsets, read_to_end

Mending = Callable[[str, bytes], bytes | None]
"""(stream, original bytes) -> the bytes to send; None = leave this one where it is."""
_SHOWN = 20
_TAIL_RECORDS = 50
_END_OF_INPUT_MS = 2**62


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was not sent again, and what the rules still have against it."""

    stream: str
    partition: int
    offset: int
    reason: str


class Reprocessed(msgspec.Struct, kw_only=True):
    """What a run did. `dry_run`: what it would have done."""

    topic: AsideTopic
    waiting: int
    """Put aside and never sent again, within --since and --limit."""
    already: int
    """Sent again by earlier runs."""
    sent: int
    """Events sent through again now."""
    records: int
    """Records written for them, without the marks."""
    refused: list[Refused]
    """The first of those not sent."""
    refused_total: int
    dry_run: bool
    untaught: int = 0
    """Of the records: corrections, where policy `wait` keeps the trainer from learning them."""


def reprocess_undecodable(
    config: Config,
    bootstrap: str,
    *,
    since_ms: int = 0,
    limit: int | None = None,
    dry_run: bool = False,
    mending: Mending | None = None,
) -> Reprocessed:
    """Send what now decodes, mended first where `mending` is given. `limit` bounds how many are
    sent. Raises TopicError."""
    asides, already = read_asides(config, bootstrap, "undecodable", since_ms=since_ms)
    running_ms = _reached_watermark_ms(config, bootstrap) + config.join.lateness
    bound_ms = config.events.future_bound
    newest_ms = time.time_ns() // 1_000_000 + bound_ms
    if running_ms >= config.join.lateness:
        newest_ms = min(newest_ms, running_ms + bound_ms)
    fits: list[tuple[Aside, list[Record]]] = []
    refused: list[Refused] = []
    for aside in asides:
        try:
            value = _mended(aside, mending)
            key = _key(config, aside, value, newest_ms)
        except RecordInvalid as invalid:
            stream, partition, offset = aside.source
            refused.append(
                Refused(stream=stream, partition=partition, offset=offset, reason=str(invalid))
            )
        else:
            fits.append((aside, [(aside.source[0], key, value, list(_headers(aside)))]))
    fits = fits[:limit]
    sent, records = (len(fits), len(fits)) if dry_run else send_once(config, bootstrap, fits)
    return Reprocessed(
        topic="undecodable",
        waiting=len(asides),
        already=already,
        sent=sent,
        records=records,
        refused=refused[:_SHOWN],
        refused_total=len(refused),
        dry_run=dry_run,
    )


def _mended(aside: Aside, mending: Mending | None) -> bytes:
    """What is to be sent. Raises RecordInvalid, also for whatever a caller's function raises: one
    event that it cannot mend must not keep the others back."""
    if aside.value is None:
        raise RecordInvalid("expected an event, got no bytes")
    if mending is None:
        return aside.value
    try:
        value = mending(aside.source[0], aside.value)
    except Exception as error:
        raise RecordInvalid(f"mending it failed: {error!r}") from error
    if value is None:
        raise RecordInvalid("left where it is by the function that mends")
    if not isinstance(value, bytes):
        raise RecordInvalid(f"mending it gave {type(value).__name__}, expected bytes or None")
    return value


def _key(config: Config, aside: Aside, value: bytes, newest_ms: int) -> bytes:
    """The Kafka key of the event in `value`. Raises RecordInvalid where there is still none."""
    if value is aside.value and aside.reason.startswith("size:"):
        raise RecordInvalid("only its first bytes were kept: send it from where it came")
    if len(value) > config.events.bytes_max:
        raise RecordInvalid(f"expected at most {config.events.bytes_max} bytes, got {len(value)}")
    event = (
        decode_impression_head(value)
        if aside.source[0] == IMPRESSIONS
        else decode_conversion(value, frozenset(config.kinds))
    )
    if event.event_ms > newest_ms:
        raise RecordInvalid(
            f"still from the future: expected event_ms up to {newest_ms}, got {event.event_ms}"
        )
    return event_key(event.user_id, event.item_id)


def _headers(aside: Aside) -> Iterator[tuple[str, bytes]]:
    yield origin(aside)
    yield "hw_produced_ms", str(aside.produced_ms).encode("ascii")


def _reached_watermark_ms(config: Config, bootstrap: str) -> int:
    """The newest watermark with which the join wrote a committed record, -1 if there is none.

    Reads the last few records of every output partition. The watermark at the end of bounded input
    is no event time and does not count.
    """
    ends = end_offsets(config, bootstrap, JOIN_OUTPUTS)
    start = {where: max(0, end - _TAIL_RECORDS) for where, end in ends.items()}
    reached = -1
    for _, message in read_to_end(config, bootstrap, JOIN_OUTPUTS, start=start):
        said = JoinHeader.find(message.headers())
        if said is not None and said.watermark_ms < _END_OF_INPUT_MS:
            reached = max(reached, said.watermark_ms)
    return reached
