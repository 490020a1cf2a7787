"""What the tests of publisher, reader and freshness share: small versions of vectors."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from settings.config import Config, KafkaConfig, PublishConfig
from topics import publisher
from topics.manifest import Manifest
from topics.names import MANIFEST, REPRESENTATION_TOPICS, Kind, representation_topic
from topics.publisher import Record
from topics.representation import Representation, encode
from topics.scan import end_offsets

DIM = 4


class Publisher(publisher.Publisher):
    """The real one, for tests that read at once what they published: `publish` returns when it can
    be read."""

    def __init__(self, config: Config, bootstrap: str, *rest: Any, **more: Any) -> None:
        super().__init__(config, bootstrap, *rest, **more)
        self._at = (config, bootstrap)

    def publish(self, version: int, records: Iterable[Record], manifest: Manifest) -> Manifest:
        written = super().publish(version, records, manifest)
        await_readable(*self._at, (MANIFEST, *REPRESENTATION_TOPICS))
        return written


def await_readable(config: Config, bootstrap: str, names: Sequence[str]) -> None:
    """Until no transaction is open on the topics `names`. A broker answers a commit before it has
    written the markers that make it readable: who reads at once may see what was before."""
    deadline = time.monotonic() + 120
    while True:
        stable, written = (
            end_offsets(config, bootstrap, names, read_committed=committed)
            for committed in (True, False)
        )
        if stable == written:
            return
        assert time.monotonic() < deadline, f"open for two minutes: {stable}, {written}"
        time.sleep(0.01)


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
