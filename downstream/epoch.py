"""One consistent epoch: every vector as readers held it at one version, for as long as needed.

A model that is fitted or evaluated over hours must not have its inputs move under it, and two
processes that score with each other's vectors must hold the same ones. `RepresentationReader`
follows the newest version; an epoch stays at the one it names.

    epoch = read_epoch(config, bootstrap, version=reader.version)
    ids, matrix = epoch.matrix("item")
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from downstream.table import Taken, VectorTable
from settings.config import Config
from topics.history import kept_version
from topics.manifest import Manifest
from topics.names import KINDS, Kind, representation_topic
from topics.representation import Representation, decode_message
from topics.scan import read_to_end

_FOLDED = 4096
"""Records folded in at a time."""


class Epoch:
    """The vectors of one version. Never changes; safe to share between threads."""

    def __init__(self, manifest: Manifest, tables: dict[Kind, VectorTable]) -> None:
        self.manifest = manifest
        self._tables = tables

    @property
    def version(self) -> int:
        """The version that everything here is as of."""
        return self.manifest.version

    def get(self, kind: Kind, entity_id: str) -> Representation | None:
        """The entity's representation, or None."""
        return self._tables[kind].get(entity_id)

    def take(self, kind: Kind, ids: Sequence[str]) -> Taken:
        """The vectors of many ids at once."""
        return self._tables[kind].take(ids)

    def matrix(self, kind: Kind) -> tuple[list[str], NDArray[np.float32]]:
        """(ids, `[N, D]` float32) of every entity of `kind`; a copy."""
        return self._tables[kind].matrix()


def read_epoch(
    config: Config, bootstrap: str, version: int, kinds: Sequence[Kind] = KINDS
) -> Epoch:
    """Read the topics up to where `version` ended. Raises VersionGone for one that is no longer
    kept whole (`publish.rollback_window`), WireVersionError, TopicError."""
    manifest = kept_version(config, bootstrap, version)
    tables = {kind: VectorTable(kind) for kind in kinds}
    for kind, table in tables.items():
        topic = representation_topic(kind)
        ends = {(topic, n): end for n, end in manifest.end_offsets.get(topic, {}).items()}
        waiting: list[Representation] = []
        for _, message in read_to_end(config, bootstrap, [topic], until=ends):
            waiting.append(decode_message(message, kind=kind))
            if len(waiting) == _FOLDED:
                table.apply(waiting)
                waiting = []
        table.apply(waiting)
    kept_version(config, bootstrap, version)  # still: nothing was compacted away while reading
    return Epoch(manifest, tables)
