"""The topics of one stack and how each is laid out; on the broker `<kafka.topic_prefix>.<name>`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

from settings.config import Config

IMPRESSIONS: Final = "impressions"
CONVERSIONS: Final = "conversions"
SAMPLES: Final = "samples"
ATTRIBUTIONS: Final = "attributions"
LATE: Final = "late"
ORPHANS: Final = "orphans"
DUPLICATES: Final = "duplicates"
UNDECODABLE: Final = "undecodable"
MANIFEST: Final = "manifest"
REPROCESSED: Final = "reprocessed"
"""Which late and undecodable events were sent through again; see `stream.reprocess`."""
POINTER: Final = "pointer"
"""Which stack's representations readers of this one follow; see `topics.pointer`."""
CONTROL: Final = "control"
"""What an operator asks of the trainer; see `topics.control`."""

Kind = Literal["user", "item", "cross"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""Kinds of representation. Ids of `cross` are `user:ID` and `item:ID`."""

Stream = Literal["impressions", "conversions"]
STREAMS: Final[tuple[Stream, ...]] = get_args(Stream)

EVENT_TOPICS: Final = (IMPRESSIONS, CONVERSIONS)
SIDE_TOPICS: Final = (LATE, ORPHANS, DUPLICATES, UNDECODABLE)
"""Original bytes of events that end in no sample, with the reason in `hw_reason`."""
JOIN_OUTPUTS: Final = (SAMPLES, ATTRIBUTIONS, *SIDE_TOPICS)
REPRESENTATION_TOPICS: Final = tuple(f"representations.{kind}" for kind in KINDS)
ALL_TOPICS: Final = (
    *EVENT_TOPICS,
    *JOIN_OUTPUTS,
    *REPRESENTATION_TOPICS,
    MANIFEST,
    REPROCESSED,
    POINTER,
    CONTROL,
)

RECORD_OVERHEAD_BYTES: Final = 64 * 1024
"""Room beside an event's bytes for what the join adds: labels, headers, batch framing."""
_RETENTION_MS: Final = 7 * 86_400_000


def representation_topic(kind: Kind) -> str:
    """Name, without prefix, of the topic that carries representations of `kind`."""
    return f"representations.{kind}"


def join_group(config: Config) -> str:
    """Consumer group under which the join commits its source offsets, for lag and the audit."""
    return f"{config.kafka.topic_prefix}.join"


def trainer_group(config: Config) -> str:
    """Consumer group under which lag monitors find how far the trainer's store is."""
    return f"{config.kafka.topic_prefix}.trainer"


def record_bytes_max(config: Config) -> int:
    """Largest record in bytes on any topic: the largest event and what the join adds to it."""
    return config.events.bytes_max + RECORD_OVERHEAD_BYTES


def partition_count(config: Config, name: str) -> int:
    """Partitions of the topic `name` as headwater creates it. Manifests, pointers and commands are
    totally ordered, so theirs have one. An event topic may have grown since:
    `topics.scan.partitions_of` asks."""
    return 1 if name in (MANIFEST, POINTER, CONTROL) else config.kafka.partitions


def topic_settings(config: Config, name: str) -> Mapping[str, str]:
    """Kafka's topic-level settings for `name`.

    Representations are compacted: `min.compaction.lag.ms` lets a reader that trails by less than
    that see every version whole, and a rollback find it; `delete.retention.ms` bounds how long a
    bootstrap may take and still see deletions.
    """
    settings = {
        "message.timestamp.type": "CreateTime",
        "max.message.bytes": str(record_bytes_max(config)),
    }
    if name in (*REPRESENTATION_TOPICS, MANIFEST, POINTER):
        lag_ms = config.publish.rollback_window
        return settings | {
            "cleanup.policy": "compact",
            "min.compaction.lag.ms": str(lag_ms),
            "max.compaction.lag.ms": str(max(3_600_000, 2 * lag_ms)),
            "min.cleanable.dirty.ratio": "0.3",
            "segment.ms": "600000",
            "delete.retention.ms": "86400000",
        }
    return settings | {"cleanup.policy": "delete", "retention.ms": str(_RETENTION_MS)}
