"""Settings of every Kafka client in headwater, in one place, for librdkafka.

`kafka.extra` of the config is merged last, so security and tuning reach every client alike.
"""

from __future__ import annotations

from typing import Any

from settings.config import Config
from settings.credentials import resolved
from topics.errors import name_principal, note_client_error
from topics.names import record_bytes_max


def client_settings(config: Config, bootstrap: str) -> dict[str, Any]:
    """What producers, consumers and admin clients share. Raises ConfigError for a secret that is
    not where kafka.extra says."""
    extra = resolved(config.kafka.extra)
    name_principal(str(extra.get("sasl.username", "")))
    return {
        "bootstrap.servers": bootstrap,
        # A broker that restarts is back within seconds; the default back-off of 10 s would add
        # itself to the freshness of every vector after each restart.
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        # Errors reach the caller as errors; librdkafka's own lines about each refused connection
        # would bury them (one every 30 ms while a broker is down). kafka.extra can ask for more.
        "log_level": 2,
        "allow.auto.create.topics": False,
        "error_cb": note_client_error,
        **extra,
    }


def producer_settings(
    config: Config, bootstrap: str, *, transactional_id: str | None = None
) -> dict[str, Any]:
    """An idempotent producer that partitions as Java's does (murmur2), transactional if named."""
    settings = client_settings(config, bootstrap)
    del settings["allow.auto.create.topics"]  # a consumer's setting only
    settings |= {
        "acks": "all",
        "enable.idempotence": True,
        # librdkafka's default hash differs from Java's and Flink's: one key, two partitions.
        "partitioner": "murmur2_random",
        "message.max.bytes": record_bytes_max(config),
        "linger.ms": 5,
        "compression.type": "lz4",
    }
    if transactional_id is not None:
        settings["transactional.id"] = transactional_id
    return settings | resolved(config.kafka.extra)


def consumer_settings(
    config: Config, bootstrap: str, group: str, *, read_committed: bool = True
) -> dict[str, Any]:
    """A consumer that commits only when told to and reports the end of each partition."""
    record_bytes = record_bytes_max(config)
    return client_settings(config, bootstrap) | {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed" if read_committed else "read_uncommitted",
        # Control records of transactions occupy offsets: "position == end offset" may never come
        # true by counting records, so ends are learnt from these events instead.
        "enable.partition.eof": True,
        "fetch.wait.max.ms": 100,
        "fetch.error.backoff.ms": 100,
        "fetch.message.max.bytes": max(1_048_576, record_bytes),
        "fetch.max.bytes": max(52_428_800, 2 * record_bytes),
        "receive.message.max.bytes": max(100_000_000, 4 * record_bytes),
        **resolved(config.kafka.extra),
    }
