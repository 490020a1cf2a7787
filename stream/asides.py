"""Events that the join has put aside (`late`, `undecodable`), and sending each through once more.

An event is known by its source: the stream, partition and offset of its first record. A record on
the topic `reprocessed` marks it as sent again; key `stream/partition/offset`, value a small JSON
object. What is sent and its marks are one Kafka transaction under one transactional id, so a run
that is cut off, or two at once, send each event once or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from settings.config import Config
from topics.client import producer_settings
from topics.errors import TopicUnavailable, kafka_errors, topic_error
from topics.join_header import JoinHeader
from topics.names import REPROCESSED
from topics.scan import end_offsets, read_to_end

Source = tuple[str, int, int]
"""(stream, partition, offset) of an event's record."""
AsideTopic = Literal["late", "undecodable"]
ORIGIN_HEADER = "hw_reprocessed"
"""On what was sent again: `topic/stream/partition/offset` of the event that it repeats."""
_TRANSACTION_RECORDS = 2_000
_TIMEOUT_SECONDS = 60.0
_SETTLE_SECONDS = 5.0
Record = tuple[str, bytes | None, bytes | None, list[tuple[str, bytes]]]
"""(topic without prefix, key, value, headers)."""


@dataclass(frozen=True, slots=True)
class Aside:
    """One event put aside: its source, its bytes, and why it is there."""

    topic: AsideTopic
    source: Source
    key: bytes | None
    value: bytes | None
    reason: str
    joined_ms: int
    watermark_ms: int
    produced_ms: int


def read_asides(
    config: Config, bootstrap: str, topic: AsideTopic, *, since_ms: int = 0
) -> tuple[list[Aside], int]:
    """(events put aside at or after the wall time `since_ms` and not sent again yet, how many
    others were), in the order of their topic. Raises TopicError."""
    marked = read_marks(config, bootstrap)
    found: list[Aside] = []
    already = 0
    for _, message in read_to_end(config, bootstrap, [topic]):
        aside = _aside(topic, message)
        if aside.joined_ms < since_ms:
            continue
        if aside.source in marked:
            already += 1
        else:
            found.append(aside)
    return found, already


def read_marks(config: Config, bootstrap: str) -> set[Source]:
    """Sources of the events that were sent again.

    A commit returns before its records are readable, so what is open is waited for, for a while.
    """
    ends = end_offsets(config, bootstrap, [REPROCESSED], read_committed=False)
    deadline = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < deadline:
        stable = end_offsets(config, bootstrap, [REPROCESSED])
        if all(stable[where] >= end for where, end in ends.items()):
            break
        time.sleep(0.05)
    marked: set[Source] = set()
    for _, message in read_to_end(config, bootstrap, [REPROCESSED]):
        stream, partition, offset = (message.key() or b"//").decode("ascii").split("/")
        marked.add((stream, int(partition), int(offset)))
    return marked


def send_once(
    config: Config, bootstrap: str, groups: Iterable[tuple[Aside, list[Record]]]
) -> tuple[int, int]:
    """Write each event's records and its mark, whole events per transaction; (events, records).

    Events that another run marked before this one had the transactional id are left out. Raises
    TopicError: what was committed stays, and a run after it goes on behind it.
    """
    writer = _Writer(config, bootstrap)
    # Read after the id was taken: whoever held it before cannot commit any more.
    marked = read_marks(config, bootstrap)
    events = records = 0
    for batch in _batches((a, r) for a, r in groups if a.source not in marked):
        writer.write([record for aside, own in batch for record in (*own, _mark(aside))])
        events += len(batch)
        records += sum(len(own) for _, own in batch)
    return events, records


def origin(aside: Aside) -> tuple[str, bytes]:
    """The header that says where a record comes from."""
    return ORIGIN_HEADER, "/".join(map(str, (aside.topic, *aside.source))).encode("ascii")


def headers_of(message: Message) -> dict[str, bytes]:
    found: Any = message.headers() or ()
    return dict(found)


def _aside(topic: AsideTopic, message: Message) -> Aside:
    said = JoinHeader.read(message.headers())
    return Aside(
        topic=topic,
        source=said.source,
        key=message.key(),
        value=message.value(),
        reason=headers_of(message)["hw_reason"].decode("ascii"),
        joined_ms=said.joined_ms,
        watermark_ms=said.watermark_ms,
        produced_ms=said.produced_ms,
    )


def _mark(aside: Aside) -> Record:
    key = "/".join(map(str, aside.source)).encode("ascii")
    value = {"topic": aside.topic, "reason": aside.reason, "at_ms": time.time_ns() // 1_000_000}
    return REPROCESSED, key, msgspec.json.encode(value), []


def _batches(
    groups: Iterable[tuple[Aside, list[Record]]],
) -> Iterator[list[tuple[Aside, list[Record]]]]:
    batch: list[tuple[Aside, list[Record]]] = []
    size = 0
    for group in groups:
        batch.append(group)
        size += len(group[1]) + 1
        if size >= _TRANSACTION_RECORDS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Writer:
    """Transactions under `<topic_prefix>-reprocess`; a newer one fences an older one."""

    def __init__(self, config: Config, bootstrap: str) -> None:
        self._config = config
        self._failure: KafkaError | None = None
        self._producer = Producer(
            producer_settings(
                config, bootstrap, transactional_id=f"{config.kafka.topic_prefix}-reprocess"
            )
        )
        with kafka_errors("taking over the transactional id of reprocess"):
            self._producer.init_transactions(_TIMEOUT_SECONDS)

    def write(self, records: list[Record]) -> None:
        """All of `records`, committed, or none."""
        self._producer.begin_transaction()
        try:
            for name, key, value, headers in records:
                self._produce(self._config.topic(name), key, value, headers)
            left = self._producer.flush(_TIMEOUT_SECONDS)
            if self._failure is not None:
                raise KafkaException(self._failure)
            if left:
                raise TopicUnavailable(f"{left} records not acknowledged in {_TIMEOUT_SECONDS} s")
            self._producer.commit_transaction(_TIMEOUT_SECONDS)
        except KafkaException as error:
            if error.args[0].txn_requires_abort():
                self._producer.abort_transaction(_TIMEOUT_SECONDS)
            raise topic_error(error, "sending events through again") from error

    def _produce(
        self, topic: str, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
    ) -> None:
        while True:
            try:
                self._producer.produce(
                    topic, value, key, headers=[*headers], on_delivery=self._delivered
                )
            except BufferError:
                self._producer.poll(0.1)
            else:
                self._producer.poll(0)
                return

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None and self._failure is None:
            self._failure = error
