"""A stack's shadow: the same config under another topic prefix, on the same broker."""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from settings.config import Config
from topics.admin import admin_client
from topics.errors import kafka_errors, topic_error
from topics.names import ALL_TOPICS, EVENT_TOPICS

_TIMEOUT_SECONDS = 60.0


def shadow_config(config: Config, prefix: str, *, reads_live: bool, bounded: bool) -> Config:
    """`config` writing topics under `prefix`. `reads_live`: its events are those of `config`.

    A bounded run waits for every partition's end: silence of one must not count as its end.
    """
    own_events = config.kafka.events_prefix or config.kafka.topic_prefix
    kafka = config.kafka.model_copy(
        update={"topic_prefix": prefix, "events_prefix": own_events if reads_live else ""}
    )
    join = config.join.model_copy(update={"idle_timeout": 0}) if bounded else config.join
    return config.model_copy(update={"kafka": kafka, "join": join})


def existing_topics(config: Config, bootstrap: str) -> list[str]:
    """Kafka's names of the topics of `config` that are there."""
    admin = admin_client(config, bootstrap)
    with kafka_errors("listing topics"):
        found = admin.list_topics(timeout=_TIMEOUT_SECONDS).topics
    return [topic for topic in map(config.topic, ALL_TOPICS) if topic in found]


def delete_shadow(config: Config, bootstrap: str) -> list[str]:
    """Delete the shadow's own topics; events that it shares with another stack stay."""
    shared = set(map(config.topic, EVENT_TOPICS)) if config.kafka.events_prefix else set()
    topics = [topic for topic in existing_topics(config, bootstrap) if topic not in shared]
    _delete(admin_client(config, bootstrap), topics)
    return topics


def _delete(admin: AdminClient, topics: Sequence[str]) -> None:
    if not topics:
        return
    # `admin` must outlive the futures: collecting it destroys them.
    for topic, future in admin.delete_topics(list(topics), operation_timeout=30).items():
        try:
            future.result(_TIMEOUT_SECONDS)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise topic_error(error, f"deleting {topic}") from error
