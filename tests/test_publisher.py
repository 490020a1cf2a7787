"""Publisher against the real broker: one transaction per version, harmless repeats, fencing."""

from __future__ import annotations

import pytest

from settings.config import Config, EventsConfig, KafkaConfig
from tests.publishing import manifest, records, representation, stack_config, tombstone
from tests.readable import Publisher
from topics.admin import ensure_topics
from topics.client import producer_settings
from topics.errors import (
    PublisherFenced,
    RecordTooLarge,
    TopicMismatch,
    TopicUnavailable,
    TopicUnknown,
)
from topics.manifest import decode_manifest
from topics.names import ALL_TOPICS, MANIFEST, REPRESENTATION_TOPICS
from topics.scan import end_offsets, read_to_end

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
USERS = "representations.user"


def _read(config: Config, kafka: str, name: str) -> list[tuple[bytes | None, bytes | None]]:
    return [(m.key(), m.value()) for _, m in read_to_end(config, kafka, [name])]


def test_topics_are_made_once_and_a_differing_layout_is_named(kafka: str, prefix: str) -> None:
    config = stack_config(prefix)
    ensure_topics(config, kafka)
    ensure_topics(config, kafka)
    ends = end_offsets(config, kafka, ALL_TOPICS)
    assert len(ends) == 2 * (len(ALL_TOPICS) - 3) + 3 and not any(ends.values())
    with pytest.raises(TopicMismatch, match=f"{prefix}.samples has 2 partitions, expected 3"):
        ensure_topics(stack_config(prefix, partitions=3), kafka)
    larger = Config(
        kafka=KafkaConfig(topic_prefix=prefix), events=EventsConfig(bytes_max=2_000_000)
    )
    with pytest.raises(
        TopicMismatch, match=r"max.message.bytes=1065536, expected at least 2065536"
    ):
        ensure_topics(larger, kafka)


def test_missing_topics_and_broker_are_named(kafka: str, prefix: str) -> None:
    with pytest.raises(TopicUnknown, match=prefix):
        end_offsets(stack_config(prefix), kafka, [MANIFEST])
    with pytest.raises(TopicUnavailable, match=r"listing the topics of 127.0.0.1:9"):
        ensure_topics(stack_config(prefix), "127.0.0.1:9", timeout_seconds=1)


def test_manifest_closes_the_version_with_every_end_offset(kafka: str, prefix: str) -> None:
    config = stack_config(prefix)
    ensure_topics(config, kafka)
    publisher = Publisher(config, kafka, f"{prefix}-publisher")
    first = publisher.publish(
        1, records([representation(f"u{i}", 1) for i in range(20)]), manifest(1)
    )
    assert sum(first.end_offsets[USERS].values()) == 20
    assert first.end_offsets["representations.item"] == {0: 0, 1: 0}
    second = publisher.publish(2, records([representation("a", 2, kind="item")]), manifest(2))
    assert second.end_offsets[USERS] == first.end_offsets[USERS]  # carried forward
    assert sum(second.end_offsets["representations.item"].values()) == 1
    publisher.close()
    again = Publisher(config, kafka, f"{prefix}-publisher")  # reads where the topics end
    assert again.newest == second
    third = again.publish(3, records([tombstone("u1", 3)]), manifest(3))
    assert all(
        third.end_offsets[name][p] >= end
        for name, ends in second.end_offsets.items()
        for p, end in ends.items()
    )
    again.close()
    values = [value for _, value in _read(config, kafka, MANIFEST)]
    assert [decode_manifest(v) for v in values if v is not None] == [first, second, third]


def test_publishing_a_version_again_writes_the_same_records(kafka: str, prefix: str) -> None:
    config = stack_config(prefix, partitions=1)
    ensure_topics(config, kafka)
    outbox = records([representation("a", 1), representation("b", 1)])
    for _ in range(2):  # the second is a trainer that died before it marked version 1 done
        publisher = Publisher(config, kafka, f"{prefix}-publisher")
        publisher.publish(1, outbox, manifest(1))
        publisher.close()
    read = _read(config, kafka, USERS)
    assert read[:2] == read[2:] == [(key, value) for _, key, value, _ in outbox]


def test_old_manifests_get_tombstones_in_the_same_transaction(kafka: str, prefix: str) -> None:
    config = stack_config(prefix, manifests_kept=2)
    ensure_topics(config, kafka)
    publisher = Publisher(config, kafka, f"{prefix}-publisher")
    for version in (1, 2, 3):
        publisher.publish(version, records([representation("a", version)]), manifest(version))
    publisher.close()
    publisher = Publisher(config, kafka, f"{prefix}-publisher")
    publisher.publish(4, [], manifest(4))
    publisher.close()
    left: dict[bytes | None, bytes | None] = dict(_read(config, kafka, MANIFEST))
    assert [key for key, value in left.items() if value is not None] == [b"3", b"4"]
    assert [key for key, value in left.items() if value is None] == [b"1", b"2"]


def test_second_publisher_fences_the_first(kafka: str, prefix: str) -> None:
    config = stack_config(prefix)
    ensure_topics(config, kafka)
    first = Publisher(config, kafka, f"{prefix}-publisher")
    first.publish(1, records([representation("a", 1)]), manifest(1))
    second = Publisher(config, kafka, f"{prefix}-publisher")
    with pytest.raises(
        PublisherFenced, match=r"publishing version 2( to \S+)?: .*another process uses"
    ):
        first.publish(2, records([representation("a", 2)]), manifest(2))
    second.publish(2, records([representation("a", 2)]), manifest(2))
    assert [key for key, _ in _read(config, kafka, MANIFEST)] == [b"1", b"2"]
    second.close()


def test_failed_version_leaves_nothing_and_the_next_succeeds(kafka: str, prefix: str) -> None:
    config = stack_config(prefix)
    ensure_topics(config, kafka)
    publisher = Publisher(config, kafka, f"{prefix}-publisher")
    large = (USERS, b"big", b"\0" * 3_000_000, [])
    with pytest.raises(RecordTooLarge, match="publishing version 1"):
        publisher.publish(1, [*records([representation("a", 1)]), large], manifest(1))
    assert _read(config, kafka, USERS) == []
    assert publisher.newest is None
    publisher.publish(1, records([representation("a", 1)]), manifest(1))
    assert [key for key, _ in _read(config, kafka, USERS)] == [b"a"]
    publisher.close()


def test_what_a_dead_publisher_left_open_is_never_read(kafka: str, prefix: str) -> None:
    from confluent_kafka import Producer

    config = stack_config(prefix, partitions=1)
    ensure_topics(config, kafka)
    dead = Producer(producer_settings(config, kafka, transactional_id=f"{prefix}-publisher"))
    dead.init_transactions(60)
    dead.begin_transaction()
    dead.produce(config.topic(USERS), key=b"ghost", value=b"\0\0\0\0")
    dead.flush(60)
    assert end_offsets(config, kafka, [USERS]) == {(USERS, 0): 0}
    assert end_offsets(config, kafka, [USERS], read_committed=False) == {(USERS, 0): 1}
    publisher = Publisher(config, kafka, f"{prefix}-publisher")
    written = publisher.publish(1, records([representation("a", 1)]), manifest(1))
    assert written.end_offsets[USERS] == {0: 3}  # the ghost, its abort marker, then "a"
    assert [key for key, _ in _read(config, kafka, USERS)] == [b"a"]
    assert end_offsets(config, kafka, REPRESENTATION_TOPICS)[USERS, 0] == 4
    publisher.close()
    dead.purge()
