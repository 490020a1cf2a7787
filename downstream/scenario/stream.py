"""A scenario's stream: impressions to serve, finals to learn from, from now on."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from confluent_kafka import Consumer, KafkaError, TopicPartition

from downstream.scenario.learner import ScenarioLearner
from settings.config import Config
from topics.client import consumer_settings
from topics.errors import RecordInvalid, kafka_errors, topic_error
from topics.impression import Impression, decode_impression
from topics.names import IMPRESSIONS, SAMPLES
from topics.sample import decode_sample
from topics.scan import end_offsets, scan_group

_BATCH_RECORDS_MAX = 1024
_PASSING = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE)
_log = structlog.get_logger()


class ScenarioStream:
    """Reads both topics from where they end at the start: a scenario serves what comes, not what
    was. It commits no offsets; what it knows of unlabelled impressions is in memory."""

    def __init__(
        self, config: Config, bootstrap: str, learner: ScenarioLearner, *, domain: str, task: str
    ) -> None:
        self._learner, self._domain, self._task = learner, domain, task
        self._impressions = config.topic(IMPRESSIONS)
        self._undecodable = self._learnt = 0
        self._told_at = 1
        ends = end_offsets(config, bootstrap, [IMPRESSIONS, SAMPLES])
        self._consumer = Consumer(consumer_settings(config, bootstrap, scan_group(config)))
        with kafka_errors("assigning the scenario's topics"):
            self._consumer.assign(
                [TopicPartition(config.topic(name), p, end) for (name, p), end in ends.items()]
            )

    def run(self, stopping: Callable[[], bool]) -> None:
        """Serve and learn until `stopping`. Raises TopicError unless it passes by itself."""
        while not stopping():
            self.step(0.2)

    def step(self, timeout_seconds: float) -> None:
        """Take what has come, waiting at most `timeout_seconds` for the first record."""
        first = self._consumer.poll(timeout_seconds)
        if first is None:
            return
        impressions: list[Impression] = []
        labels: dict[str, int] = {}
        for message in (first, *self._consumer.consume(_BATCH_RECORDS_MAX, 0)):
            error = message.error()
            if error is not None:
                if error.code() != KafkaError._PARTITION_EOF and error.code() not in _PASSING:
                    raise topic_error(error, "reading the scenario's stream")
                continue
            try:
                if message.topic() == self._impressions:
                    impression = decode_impression(message.value() or b"")
                    if not self._domain or impression.domain == self._domain:
                        impressions.append(impression)
                else:
                    sample = decode_sample(message.value() or b"")
                    if sample.state == "final" and self._task in sample.labels:
                        labels[sample.impression_id] = sample.labels[self._task]
            except RecordInvalid:
                self._undecodable += 1  # the join sends it to `undecodable` and says why
        # Served first: of one read, no label may come before its impression.
        self._learner.serve(impressions)
        self._learnt += self._learner.learn(labels)
        if self._learnt >= self._told_at:  # at the first, and whenever they have doubled
            _log.info("scenario_learns", samples=self._learnt)
            self._told_at = 2 * self._learnt

    def close(self) -> None:
        """Leave Kafka."""
        if self._undecodable:
            _log.warning("events_not_served", undecodable=self._undecodable)
        self._consumer.close()
