"""Which stack a reader follows, as the `pointer` topic of its own says, from moment to moment."""

from __future__ import annotations

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

from settings.config import Config
from topics.client import consumer_settings
from topics.errors import RecordInvalid, kafka_errors
from topics.names import POINTER
from topics.pointer import decode_pointer
from topics.scan import read_to_end, scan_group

_log = structlog.get_logger()


class Following:
    """Used by one thread. `followed` is the config whose topics to read."""

    def __init__(self, config: Config, bootstrap: str) -> None:
        """Raises TopicError."""
        self._config = config
        self._consumer: Consumer | None = None
        self.followed = config
        settings = consumer_settings(config, bootstrap, scan_group(config))
        consumer = Consumer(settings)
        with kafka_errors("listing topics"):
            found = consumer.list_topics(timeout=30).topics
        if config.topic(POINTER) not in found:  # made by an older headwater: nothing to follow
            consumer.close()
            return
        self._consumer = consumer
        offset = OFFSET_BEGINNING
        for _, message in read_to_end(config, bootstrap, [POINTER]):
            self._take(message)
            offset = (message.offset() or 0) + 1
        consumer.assign([TopicPartition(config.topic(POINTER), 0, offset)])

    def moved(self) -> bool:
        """Whether the pointer has moved since the last call; never waits."""
        if self._consumer is None:
            return False
        before = self.followed
        for message in self._consumer.consume(100, 0):
            if message.error() is None:
                self._take(message)
        return self.followed != before

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()

    def _take(self, message: Message) -> None:
        try:
            pointer = decode_pointer(message.value() or b"")
        except RecordInvalid as invalid:
            _log.warning("pointer_refused", reason=str(invalid))
            return
        kafka = self._config.kafka.model_copy(update={"topic_prefix": pointer.topic_prefix})
        self.followed = self._config.model_copy(update={"kafka": kafka})
