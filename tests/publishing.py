"""What the tests of publisher, reader and freshness share: small versions of vectors."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import numpy as np

from settings.config import Config, KafkaConfig, PublishConfig
from topics.manifest import Manifest
from topics.names import Kind, representation_topic
from topics.publisher import Record
from topics.representation import Representation, encode

DIM = 4


def stack_config(prefix: str, *, partitions: int = 2, manifests_kept: int = 1000) -> Config:
    return Config(
        kafka=KafkaConfig(topic_prefix=prefix, partitions=partitions),
        publish=PublishConfig(manifests_kept=manifests_kept),
    )


def representation(
    entity_id: str, version: int, *, kind: Kind = "user", event_ms: int | None = None
) -> Representation:
    """A vector filled with its version, so that a mixture of versions can be seen."""
    return Representation(
        kind=kind,
        id=entity_id,
        vector=np.full(DIM, version, np.float32),
        version=version,
        step=10 * version,
        event_ms=1000 * version if event_ms is None else event_ms,
        produced_ms=int(time.time() * 1000),
    )


def tombstone(entity_id: str, version: int, *, kind: Kind = "user") -> Representation:
    return Representation(
        kind=kind, id=entity_id, vector=None, version=version, step=0, event_ms=0, produced_ms=0
    )


def records(representations: Iterable[Representation]) -> list[Record]:
    return [(representation_topic(r.kind), *encode(r)) for r in representations]


def manifest(
    version: int, *, end_offsets: Mapping[str, Mapping[int, int]] | None = None
) -> Manifest:
    return Manifest(
        version=version,
        step=10 * version,
        created_ms=int(time.time() * 1000),
        event_ms=1000 * version,
        watermark_ms=-1,
        counts={"user": 1, "tombstones": 0},
        source_offsets={"samples": {0: version}},
        evaluation={},
        end_offsets={name: dict(ends) for name, ends in (end_offsets or {}).items()},
    )
