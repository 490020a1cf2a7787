"""Records and manifests -> tables that only ever show whole versions. Knows no Kafka client."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from downstream.table import Change, VectorTable
from topics.manifest import Manifest
from topics.names import Kind, representation_topic
from topics.representation import Representation


class VersionFold:
    """Stages records until a manifest covers them, then folds them in. Not thread-safe.

    Positions come from record offsets and from end-of-partition events: transactions' control
    records occupy offsets that no record will ever report.
    """

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self.tables: dict[Kind, VectorTable] = {kind: VectorTable(kind) for kind in kinds}
        self.manifest: Manifest | None = None
        """The manifest that the tables are as of."""
        self.closed = 0
        """Manifests taken so far."""
        self.applied = 0
        """Manifests folded in so far."""
        self._staged: dict[tuple[Kind, int], deque[tuple[int, Representation]]] = {}
        self._positions: dict[tuple[Kind, int], int] = {}
        self._waiting: deque[Manifest] = deque()

    def stage(self, partition: int, offset: int, record: Representation) -> None:
        """Take one record; offsets of a partition must rise."""
        self._staged.setdefault((record.kind, partition), deque()).append((offset, record))
        self.reach(record.kind, partition, offset + 1)

    def reach(self, kind: Kind, partition: int, offset: int) -> None:
        """Everything below `offset` of this partition has been staged (or will never be seen)."""
        at = (kind, partition)
        self._positions[at] = max(offset, self._positions.get(at, 0))

    def close(self, manifest: Manifest) -> None:
        """Take a manifest, in the order of its topic."""
        self._waiting.append(manifest)
        self.closed += 1

    def absorb(self) -> None:
        """Before anyone looks: fold in what the newest manifest covers, complete or not, so that a
        bootstrap never holds all records twice."""
        if self._waiting:
            self._apply_below(self._waiting[-1])

    def advance(self) -> list[Change] | None:
        """Fold in the newest manifest that is wholly read; None when there is none."""
        newest: Manifest | None = None
        for count, manifest in enumerate(self._waiting, start=1):
            if self._covers(manifest):
                newest, covered = manifest, count
        if newest is None:
            return None
        changes = self._apply_below(newest)  # its offsets cover those of the ones before it
        for _ in range(covered):
            manifest = self._waiting.popleft()
            self.applied += 1
            # An older version's can only be a re-publication that lost a race.
            if self.manifest is None or manifest.version >= self.manifest.version:
                self.manifest = manifest
        return changes

    def _covers(self, manifest: Manifest) -> bool:
        return all(
            self._positions.get((kind, partition), 0) >= end
            for kind in self.tables
            for partition, end in manifest.end_offsets.get(representation_topic(kind), {}).items()
        )

    def _apply_below(self, manifest: Manifest) -> list[Change]:
        changes: list[Change] = []
        for kind, table in self.tables.items():
            ends = manifest.end_offsets.get(representation_topic(kind), {})
            records: list[Representation] = []
            for partition, end in ends.items():
                staged = self._staged.get((kind, partition))
                while staged and staged[0][0] < end:
                    records.append(staged.popleft()[1])
            if records:
                changes += table.apply(records)
        return changes
