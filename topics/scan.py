"""Read topics from their beginning to where they end now: for tools, the audit and a start-up."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from settings.config import Config
from topics.client import consumer_settings
from topics.errors import TopicUnavailable, TopicUnknown, kafka_errors, topic_error
from topics.names import EVENT_TOPICS, partition_count

Partition = tuple[str, int]
"""(topic without prefix, partition)."""

_STALL_SECONDS = 30.0
_YOUNG_SECONDS = 10.0


def scan_group(config: Config) -> str:
    """A group id of one's own: assignment is manual and nothing is committed under it."""
    return f"{config.kafka.topic_prefix}.scan.{uuid.uuid4().hex[:12]}"


def partitions_of(client: Consumer, config: Config, name: str) -> range:
    """Partitions of the topic `name`: an event topic may have more than headwater made it with, and
    `client` asks the broker. Raises TopicUnavailable."""
    made = partition_count(config, name)
    if name not in EVENT_TOPICS:
        return range(made)
    topic = config.topic(name)
    with kafka_errors(f"counting the partitions of {topic}"):
        found = client.list_topics(topic, timeout=_STALL_SECONDS).topics[topic]
    return range(max(made, len(found.partitions)))


def end_offsets(
    config: Config, bootstrap: str, names: Sequence[str], *, read_committed: bool = True
) -> dict[Partition, int]:
    """Where each partition ends now: its last stable offset, or with read_committed=False its
    high watermark. Control records of transactions count. Raises TopicUnavailable."""
    consumer = Consumer(
        consumer_settings(config, bootstrap, scan_group(config), read_committed=read_committed)
    )
    try:
        return {
            (name, partition): log_span(consumer, config.topic(name), partition)[1]
            for name in names
            for partition in partitions_of(consumer, config, name)
        }
    finally:
        consumer.close()


def record_ends(config: Config, bootstrap: str, names: Sequence[str]) -> dict[Partition, int]:
    """Behind the last committed record of each partition (0 where there is none): what a consumer
    comes to. The partition itself may end later, with control records of transactions.

    Raises TopicUnavailable, TopicUnknown.
    """
    ends = end_offsets(config, bootstrap, names)
    found: dict[Partition, int] = {}
    back = 64
    while len(found) < len(ends):
        start = {at: end if at in found else max(0, end - back) for at, end in ends.items()}
        for name, message in read_to_end(config, bootstrap, names, start=start, until=ends):
            found[name, message.partition() or 0] = (message.offset() or 0) + 1
        for at, offset in start.items():
            if offset == 0:
                found.setdefault(at, 0)
        back *= 64
    return found


def read_to_end(
    config: Config,
    bootstrap: str,
    names: Sequence[str],
    *,
    start: Mapping[Partition, int] | None = None,
    until: Mapping[Partition, int] | None = None,
    read_committed: bool = True,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, Message]]:
    """(topic without prefix, record) of every record below the ends of now, in offset order within
    a partition; with `start`, from those offsets; with `until`, below those where they are nearer.
    `stopped` ends it early.

    Raises TopicUnavailable when Kafka stays silent for 30 s, and TopicUnknown.
    """
    consumer = Consumer(
        consumer_settings(config, bootstrap, scan_group(config), read_committed=read_committed)
    )
    try:
        ends: dict[Partition, int] = {}
        assignment: list[TopicPartition] = []
        for name in names:
            for partition in partitions_of(consumer, config, name):
                low, end = log_span(consumer, config.topic(name), partition)
                end = min(end, (until or {}).get((name, partition), end))
                low = max(low, (start or {}).get((name, partition), low))
                if low < end:
                    ends[name, partition] = end
                    assignment.append(TopicPartition(config.topic(name), partition, low))
        consumer.assign(assignment)
        names_of = {config.topic(name): name for name in names}
        yield from _read(consumer, names_of, ends, stopped)
    finally:
        consumer.close()


def _read(
    consumer: Consumer,
    names_of: Mapping[str, str],
    ends: dict[Partition, int],
    stopped: Callable[[], bool],
) -> Iterator[tuple[str, Message]]:
    heard = time.monotonic()
    while ends and not stopped():
        messages = consumer.consume(4096, 0.1)
        if messages:
            heard = time.monotonic()
        elif time.monotonic() - heard > _STALL_SECONDS:
            raise TopicUnavailable(
                f"nothing came for {_STALL_SECONDS:.0f} s, still to read: {sorted(ends)}"
            )
        for message in messages:
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            error = message.error()
            if topic is None or partition is None or offset is None:
                if error is not None and not error.retriable() and error.fatal():
                    raise topic_error(error, "reading")
                continue
            at = (names_of[topic], partition)
            end = ends.get(at)
            if error is not None:
                if error.code() != KafkaError._PARTITION_EOF:
                    raise topic_error(error, f"reading {topic}")
                # The end is reached even if the last offsets hold only control records.
                if end is not None and offset >= end:
                    del ends[at]
                continue
            if end is None:
                continue
            if offset < end:
                yield at[0], message
            if offset >= end - 1:
                del ends[at]


@retry(
    retry=retry_if_exception_type(TopicUnavailable),
    stop=stop_after_delay(_STALL_SECONDS),
    wait=wait_fixed(0.1),
    reraise=True,
)
@retry(
    # Metadata may be older than a topic created a moment ago; longer than this, it is not there.
    retry=retry_if_exception_type(TopicUnknown),
    stop=stop_after_delay(_YOUNG_SECONDS),
    wait=wait_fixed(0.1),
    reraise=True,
)
def log_span(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """(first offset, end) of a partition; `topic` with its prefix. The one place where they are
    asked for: patient with a broker that is away and with a topic that was just made.

    Raises TopicUnavailable after 30 s, TopicUnknown after 10 s.
    """
    with kafka_errors(f"asking for the end of {topic} partition {partition}"):
        found = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
    if found is None:
        raise TopicUnavailable(f"no answer for the end of {topic} partition {partition}")
    return found
