"""One record, durably: for tools that say one thing."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from settings.config import Config
from topics.client import producer_settings
from topics.errors import TopicUnavailable, topic_error

_TIMEOUT_SECONDS = 30.0


def write_durably(config: Config, bootstrap: str, name: str, key: bytes, value: bytes) -> int:
    """Write one record to the topic `name`; its offset, once every replica has it.

    Raises TopicError.
    """
    failures: list[KafkaError] = []
    offsets: list[int] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failures.append(error)
        else:
            offsets.append(message.offset() or 0)

    producer = Producer(producer_settings(config, bootstrap))
    producer.produce(config.topic(name), value, key, on_delivery=delivered)
    if producer.flush(_TIMEOUT_SECONDS):
        raise TopicUnavailable(f"{config.topic(name)}: not acknowledged in 30 s")
    if failures:
        raise topic_error(KafkaException(failures[0]), f"writing {config.topic(name)}")
    return offsets[0]
