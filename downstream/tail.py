"""The Kafka side of a reader: feeds records and manifests, by offset, into a `VersionFold`."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from downstream.fold import VersionFold
from settings.config import Config
from topics.client import consumer_settings
from topics.errors import (
    RecordInvalid,
    TopicUnknown,
    WireVersionError,
    kafka_errors,
    topic_error,
)
from topics.manifest import decode_manifest
from topics.names import MANIFEST, Kind, partition_count, representation_topic
from topics.representation import decode_message
from topics.scan import Partition, log_span, scan_group

_BATCH_RECORDS_MAX = 8192
_MANIFESTS: Partition = (MANIFEST, 0)
_PASSING = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE)
_log = structlog.get_logger()


class Tail:
    """Used by one thread. A broker that is away is waited for; the client reconnects by itself."""

    def __init__(self, config: Config, bootstrap: str, fold: VersionFold) -> None:
        self._config = config
        self._fold = fold
        self._kind_of: dict[str, Kind] = {
            config.topic(representation_topic(kind)): kind for kind in fold.tables
        }
        self._manifest_topic = config.topic(MANIFEST)
        self._at_end: set[Partition] = set()
        self._consumer = Consumer(consumer_settings(config, bootstrap, scan_group(config)))
        self.positions: dict[Partition, int] = {}
        """Next offset to read."""
        self.refused = 0
        """Records whose bytes are not what their topic carries."""

    def close(self) -> None:
        self._consumer.close()

    def read(self, timeout_seconds: float = 0.1) -> None:
        """Stage what has come, waiting up to `timeout_seconds` for the first record.

        Raises WireVersionError, and Kafka's errors unless they pass by themselves.
        """
        # consume() alone would wait out its timeout for a full batch, at freshness's cost.
        first = self._consumer.poll(timeout_seconds)
        if first is not None:
            for message in (first, *self._consumer.consume(_BATCH_RECORDS_MAX, 0)):
                self._take(message)

    def bootstrap(self, stopped: Callable[[], bool]) -> None:
        """Read everything there is; afterwards the fold holds the newest version whole.

        Compaction may have dropped a record for a newer version's, so the version to hold is the
        newest one as of after the representation topics were read to their ends.
        """
        partitions = [
            (representation_topic(kind), partition)
            for kind in self._fold.tables
            for partition in range(partition_count(self._config, representation_topic(kind)))
        ]
        self._require_topics()
        self._consumer.assign([self._from_start(_MANIFESTS)])
        self._read_until(lambda: _MANIFESTS in self._at_end, stopped)
        self._consumer.incremental_assign([self._from_start(at) for at in partitions])
        self._read_until(lambda: self._at_end.issuperset(partitions), stopped)
        manifests_end = self._manifests_end()
        self._read_until(lambda: self.positions.get(_MANIFESTS, 0) >= manifests_end, stopped)
        closed = self._fold.closed
        while self._fold.applied < closed and not stopped():
            if self._fold.advance() is None:
                self.read()

    def _require_topics(self) -> None:
        with kafka_errors("listing topics"):
            found = self._consumer.list_topics(timeout=30).topics
        missing = [t for t in (*self._kind_of, self._manifest_topic) if t not in found]
        if missing:
            raise TopicUnknown(
                f"expected topics {', '.join(missing)}, which this broker does not have"
            )

    def _read_until(self, done: Callable[[], bool], stopped: Callable[[], bool]) -> None:
        while not done() and not stopped():
            self.read()
            self._fold.absorb()

    def _from_start(self, at: Partition) -> TopicPartition:
        return TopicPartition(self._config.topic(at[0]), at[1], OFFSET_BEGINNING)

    def _manifests_end(self) -> int:
        return log_span(self._consumer, self._manifest_topic, 0)[1]

    def _take(self, message: Message) -> None:
        error = message.error()
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            self._take_error(error)
            return
        assert topic is not None and partition is not None and offset is not None
        kind = self._kind_of.get(topic)
        at = (MANIFEST if kind is None else representation_topic(kind), partition)
        if error is not None:
            # The end may lie behind control records, which only this event tells of.
            self.positions[at] = max(offset, self.positions.get(at, 0))
            self._at_end.add(at)
            if kind is not None:
                self._fold.reach(kind, partition, offset)
            return
        self.positions[at] = offset + 1
        try:
            if kind is not None:
                self._take_record(kind, partition, offset, message)
            elif (value := message.value()) is not None:
                self._fold.close(decode_manifest(value))
        except WireVersionError:
            raise
        except RecordInvalid as invalid:
            self.refused += 1
            _log.warning("record_refused", topic=topic, offset=offset, reason=str(invalid))

    def _take_record(self, kind: Kind, partition: int, offset: int, message: Message) -> None:
        self._fold.reach(kind, partition, offset + 1)
        self._fold.stage(partition, offset, decode_message(message, kind=kind))

    def _take_error(self, error: KafkaError) -> None:
        if error.fatal() or not (error.retriable() or error.code() in _PASSING):
            raise topic_error(error, "reading representations")
        _log.warning("kafka_away", error=error.str())
