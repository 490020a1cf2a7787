"""Create a stack's topics, or verify that those which exist are laid out as the config says."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource  # .admin's stubs do not re-export these
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic

from settings.config import Config
from topics.client import client_settings
from topics.errors import (
    TopicMismatch,
    TopicUnavailable,
    TopicUnknown,
    kafka_errors,
    topic_error,
)
from topics.names import ALL_TOPICS, EVENT_TOPICS, partition_count, topic_settings
from topics.scan import end_offsets

_TRY_SECONDS = 10.0


def ensure_topics(config: Config, bootstrap: str, *, timeout_seconds: float = 30.0) -> None:
    """Create what is missing and check the rest; safe to call from every process at its start.

    Returns when every topic has a leader for every partition. Raises TopicMismatch naming each
    differing setting (partitions, cleanup.policy, or a max.message.bytes that is too small: what
    would lose or misplace records), TopicUnavailable, TopicUnauthorized.
    """
    admin = admin_client(config, bootstrap)
    with kafka_errors(f"listing the topics of {bootstrap}"):
        try:
            existing = admin.list_topics(timeout=timeout_seconds).topics
        except KafkaException:
            admin.poll(0)  # if it was not let in, its error callback hears so only now
            raise
    missing = [name for name in ALL_TOPICS if config.topic(name) not in existing]
    _create(config, bootstrap, missing, timeout_seconds)
    if missing:
        # A topic that was just made has a leader before the leader knows: ask until it answers.
        _wait_for_leaders(config, bootstrap, timeout_seconds)
    differences = list(_differences(admin, config, timeout_seconds))
    if differences:
        raise TopicMismatch("topics differ from the config: " + "; ".join(differences))
    if not missing:
        # Another process may have made them a moment ago, and waits as well.
        _wait_for_leaders(config, bootstrap, timeout_seconds)


def _wait_for_leaders(config: Config, bootstrap: str, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            end_offsets(config, bootstrap, ALL_TOPICS)
        except TopicUnknown:  # made a moment ago: a broker that is busy has not heard of it
            if time.monotonic() > deadline:
                raise
        else:
            return


def _create(config: Config, bootstrap: str, names: list[str], timeout_seconds: float) -> None:
    """Patient with a broker that was started, or stood still, a moment ago: until its controller
    hears of it again it is fenced, and there is nobody to lay a topic upon."""
    deadline = time.monotonic() + timeout_seconds
    while names:
        try:
            # A client of its own each time: one that has met no controller waits for it in vain.
            _create_at_once(admin_client(config, bootstrap), config, names, timeout_seconds)
        except TopicUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _create_at_once(
    admin: AdminClient, config: Config, names: list[str], timeout_seconds: float
) -> None:
    topics = [
        NewTopic(
            config.topic(name),
            num_partitions=partition_count(config, name),
            replication_factor=config.kafka.replication,
            config=dict(topic_settings(config, name)),
        )
        for name in names
    ]
    try_seconds = min(timeout_seconds, _TRY_SECONDS)
    futures = admin.create_topics(
        topics, operation_timeout=try_seconds, request_timeout=try_seconds
    )
    for topic, future in futures.items():
        try:
            future.result()
        except KafkaException as error:
            # Another process of the stack created it a moment ago: its layout is checked below.
            if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                continue
            found = topic_error(error, f"creating topic {topic}")
            if error.args[0].code() == KafkaError.INVALID_REPLICATION_FACTOR and (
                "currently fenced" in str(error.args[0])
            ):
                found = TopicUnavailable(str(found))
            raise found from error


def _differences(admin: AdminClient, config: Config, timeout_seconds: float) -> Iterator[str]:
    with kafka_errors("listing topics"):
        found = admin.list_topics(timeout=timeout_seconds).topics
    described = _described(admin, config, ALL_TOPICS, timeout_seconds)
    for name in ALL_TOPICS:
        topic, actual = config.topic(name), described[name]
        expected = partition_count(config, name)
        partitions = len(found[topic].partitions)
        # Event topics are the producers': they may have grown, and the join finds new partitions.
        if partitions != expected and not (name in EVENT_TOPICS and partitions > expected):
            yield f"{topic} has {partitions} partitions, expected {expected}"
        yield from _setting_differences(topic, topic_settings(config, name), actual)


def _described(
    admin: AdminClient, config: Config, names: Sequence[str], timeout_seconds: float
) -> dict[str, dict[str, str]]:
    """Topic -> its settings as the broker has them."""
    resources = [ConfigResource(ResourceType.TOPIC, config.topic(name)) for name in names]
    futures = {
        resource.name: future
        for resource, future in admin.describe_configs(
            resources, request_timeout=timeout_seconds
        ).items()
    }
    found: dict[str, dict[str, str]] = {}
    for name in names:
        topic = config.topic(name)
        with kafka_errors(f"describing topic {topic}"):
            entries = futures[topic].result()
        found[name] = {key: str(entry.value) for key, entry in entries.items()}
    return found


def actual_settings(
    config: Config, bootstrap: str, names: Sequence[str], *, timeout_seconds: float = 30.0
) -> dict[str, dict[str, str]]:
    """Topic (without prefix) -> its settings as the broker has them. Raises TopicError."""
    admin = admin_client(config, bootstrap)
    return _described(admin, config, names, timeout_seconds)


def admin_client(config: Config, bootstrap: str) -> AdminClient:
    """A client for topics and their records."""
    settings = client_settings(config, bootstrap)
    del settings["allow.auto.create.topics"]
    return AdminClient(settings)


def _setting_differences(
    topic: str, expected: Mapping[str, str], actual: Mapping[str, str]
) -> Iterator[str]:
    """Only what would lose or misplace records; retention and the like are the operator's."""
    policy = "cleanup.policy"
    if actual[policy] != expected[policy]:
        yield f"{topic} has {policy}={actual[policy]}, expected {expected[policy]}"
    limit = "max.message.bytes"
    if int(actual[limit]) < int(expected[limit]):
        yield f"{topic} has {limit}={actual[limit]}, expected at least {expected[limit]}"
