"""How far a consumer is behind, in records and in seconds, as Prometheus gauges.

    headwater_consumer_lag_records{group, topic, partition}
    headwater_consumer_lag_seconds{group, topic, partition}

Seconds are the age of the first record not yet consumed, by its Kafka timestamp: reading that one
is the way that neither understates (compaction, retention) nor falls to 0 when producers stop.
Offsets of transactions' control records are not lag: a partition with no record left to read has 0.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from settings.config import Config
from topics.client import consumer_settings
from topics.errors import TopicError, kafka_errors
from topics.scan import Partition, partitions_of, scan_group

Lag = tuple[int, float]
"""(records, seconds)."""

_CLOSE_SECONDS = 2.0
_LABELS = ("group", "topic", "partition")
_log = structlog.get_logger()


class LagMonitor(Collector):
    """Asks every `interval_seconds`, in a thread of its own; a scrape returns what was found last.

    `offsets` gives the next offset to consume per partition (a missing one = nothing consumed):
    `committed_offsets(...)` for a group's, or a closure over positions that are kept elsewhere.
    Register it: `registry.register(monitor)`. While Kafka is away the last values stay.
    """

    def __init__(
        self,
        config: Config,
        bootstrap: str,
        group: str,
        names: Sequence[str],
        offsets: Callable[[], Mapping[Partition, int]],
        *,
        read_committed: bool = True,
        interval_seconds: float = 2.0,
    ) -> None:
        self._config = config
        self._group = group
        self._names = tuple(names)
        self._offsets = offsets
        self._interval_seconds = interval_seconds
        settings = consumer_settings(
            config, bootstrap, scan_group(config), read_committed=read_committed
        )
        self._consumer = Consumer(settings)
        self._lags: dict[Partition, Lag] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lag of {group}", daemon=True)
        self._thread.start()

    def lags(self) -> Mapping[Partition, Lag]:
        """The last measurement."""
        return self._lags

    def collect(self) -> Iterator[GaugeMetricFamily]:
        records = GaugeMetricFamily(
            "headwater_consumer_lag_records", "Records not yet consumed", labels=_LABELS
        )
        seconds = GaugeMetricFamily(
            "headwater_consumer_lag_seconds",
            "Age of the oldest record not yet consumed",
            labels=_LABELS,
        )
        for (name, partition), lag in self._lags.items():
            labels = [self._group, self._config.topic(name), str(partition)]
            records.add_metric(labels, lag[0])
            seconds.add_metric(labels, lag[1])
        yield records
        yield seconds

    def close(self) -> None:
        """Ends within two seconds: one that waits for a silent broker is left to end by itself."""
        self._stopping.set()
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._consumer.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._lags = self._measure()
            except (TopicError, KafkaException) as error:
                _log.warning("lag_unknown", group=self._group, error=str(error))
            self._stopping.wait(self._interval_seconds)

    def _measure(self) -> dict[Partition, Lag]:
        at = self._offsets()
        lags: dict[Partition, Lag] = {}
        waiting: dict[Partition, tuple[int, int]] = {}
        for name in self._names:
            for partition in partitions_of(self._consumer, self._config, name):
                where = TopicPartition(self._config.topic(name), partition)
                with kafka_errors(f"asking for the end of {where.topic}"):
                    found = self._consumer.get_watermark_offsets(where, timeout=10)
                low, end = found or (0, 0)
                offset = max(low, at.get((name, partition), low))
                lags[name, partition] = (0, 0.0)
                if offset < end:
                    waiting[name, partition] = (offset, end)
        lags.update(self._first_unread(waiting))
        return lags

    def _first_unread(self, waiting: dict[Partition, tuple[int, int]]) -> dict[Partition, Lag]:
        """Lags of those `waiting` (offset, end) that have a record at or after their offset."""
        self._consumer.assign(
            [TopicPartition(self._config.topic(n), p, o) for (n, p), (o, _) in waiting.items()]
        )
        found: dict[Partition, Lag] = {}
        names_of = {self._config.topic(name): name for name in self._names}
        deadline = time.monotonic() + 5
        while waiting and time.monotonic() < deadline and not self._stopping.is_set():
            message = self._consumer.poll(0.2)
            if message is None or message.topic() is None:
                continue
            topic, partition = str(message.topic()), message.partition() or 0
            at = (names_of[topic], partition)
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                continue
            limits = waiting.pop(at, None)
            if limits is not None and error is None:
                age_seconds = max(0.0, time.time() - message.timestamp()[1] / 1000)
                found[at] = (limits[1] - (message.offset() or 0), age_seconds)
        self._consumer.unassign()
        return found


def committed_offsets(
    config: Config, bootstrap: str, group: str, names: Sequence[str]
) -> Callable[[], Mapping[Partition, int]]:
    """A reader of the offsets that `group` has committed; partitions without one are left out."""
    consumer = Consumer(consumer_settings(config, bootstrap, group))
    names_of = {config.topic(name): name for name in names}

    def read() -> Mapping[Partition, int]:
        partitions = [
            TopicPartition(topic, partition)
            for topic, name in names_of.items()
            for partition in partitions_of(consumer, config, name)
        ]
        with kafka_errors(f"reading the committed offsets of group {group}"):
            committed = consumer.committed(partitions, timeout=10)
        return {
            (names_of[found.topic], found.partition): found.offset
            for found in committed
            if found.offset >= 0
        }

    return read
