"""The vectors of one kind, held in contiguous arrays: id -> row -> `[N, D]` float32."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from topics.errors import RecordInvalid
from topics.names import Kind
from topics.representation import Representation

_ROWS_AT_FIRST = 1024
_DELETIONS_KEPT = 100_000
_META = ("version", "step", "event_ms", "produced_ms")


class Change(NamedTuple):
    """A vector that `VectorTable.apply` has put in place, or taken away."""

    kind: Kind
    id: str
    produced_ms: int
    has_newer_event: bool
    """Its newest event is newer than that of the vector held before (or none was held)."""
    is_deleted: bool = False


class Taken(NamedTuple):
    """Vectors of many ids at once; rows of unknown ids are zero, and `found` says which."""

    vectors: NDArray[np.float32]
    """`[B, D]`; D = 0 while nothing is held."""
    event_ms: NDArray[np.int64]
    """`[B]`, newest event in each vector; -1 where unknown."""
    version: NDArray[np.int64]
    """`[B]`, the version that each vector belongs to; -1 where unknown."""
    found: NDArray[np.bool_]
    """`[B]`"""


class VectorTable:
    """Not thread-safe. Rows of deleted ids are used again; arrays double when full, so 1e6 ids of
    D = 32 take at most 2 * (128 + 32) MB beside the ids themselves."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._rows: dict[str, int] = {}
        self._ids: list[str | None] = []
        self._free: list[int] = []
        self._vectors: NDArray[np.float32] = np.zeros((0, 0), np.float32)  # [capacity, D]
        self._meta: NDArray[np.int64] = np.zeros((0, len(_META)), np.int64)  # [capacity, 4]
        # Ids deleted of late, with their version: an older re-publication must not revive them.
        self._deleted: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def apply(self, records: Iterable[Representation]) -> list[Change]:
        """Fold `records` in: per id the newest version wins, of equal ones the later record.

        Raises RecordInvalid when a vector's length differs from those held.
        """
        newest: dict[str, Representation] = {}
        for record in records:
            if record.version >= self._held_version(record.id, newest):
                newest[record.id] = record
        puts = [record for record in newest.values() if record.vector is not None]
        gone = [record for record in newest.values() if record.vector is None]
        for record in gone:
            self._delete(record)
        changes = self._put(puts) if puts else []
        changes += [Change(self._kind, r.id, r.produced_ms, False, True) for r in gone]
        return changes

    def get(self, entity_id: str) -> Representation | None:
        """A copy of what is held for the id."""
        row = self._rows.get(entity_id)
        if row is None:
            return None
        version, step, event_ms, produced_ms = self._meta[row].tolist()
        return Representation(
            kind=self._kind,
            id=entity_id,
            vector=self._vectors[row].copy(),
            version=version,
            step=step,
            event_ms=event_ms,
            produced_ms=produced_ms,
        )

    def take(self, ids: Sequence[str]) -> Taken:
        """Copies of what is held for `ids`, in their order."""
        rows = np.asarray([self._rows.get(entity_id, -1) for entity_id in ids], np.int64)
        found = rows >= 0
        vectors = np.zeros((len(ids), self._vectors.shape[1]), np.float32)
        vectors[found] = self._vectors[rows[found]]
        meta = np.full((len(ids), len(_META)), -1, np.int64)
        meta[found] = self._meta[rows[found]]
        return Taken(vectors, meta[:, 2], meta[:, 0], found)

    def matrix(self) -> tuple[list[str], NDArray[np.float32]]:
        """(ids, `[N, D]` copy), row i of the matrix being ids[i]; in order of first appearance
        except that ids may take the rows of deleted ones. `[0, 0]` while nothing is held."""
        ids = [entity_id for entity_id in self._ids if entity_id is not None]
        if not self._free:
            return ids, self._vectors[: len(ids)].copy()
        rows = [row for row, entity_id in enumerate(self._ids) if entity_id is not None]
        return ids, self._vectors[rows]

    def _held_version(self, entity_id: str, newest: dict[str, Representation]) -> int:
        if entity_id in newest:
            return newest[entity_id].version
        row = self._rows.get(entity_id)
        if row is not None:
            return int(self._meta[row, 0])
        return self._deleted.get(entity_id, -1)

    def _put(self, records: list[Representation]) -> list[Change]:
        dims = {len(record.vector) for record in records if record.vector is not None}
        if self._rows:
            dims.add(self._vectors.shape[1])
        if len(dims) != 1:
            raise RecordInvalid(
                f"representations of kind {self._kind} must have one length, got {sorted(dims)}: "
                "a model of another width needs another kafka.topic_prefix"
            )
        changes, rows = [], []
        for record in records:
            row = self._rows.get(record.id)
            is_newer = row is None or record.event_ms > int(self._meta[row, 2])
            changes.append(Change(self._kind, record.id, record.produced_ms, is_newer))
            rows.append(self._take_row(record.id) if row is None else row)
        self._grow(dims.pop())
        self._vectors[rows] = np.stack([r.vector for r in records if r.vector is not None])
        self._meta[rows] = [(r.version, r.step, r.event_ms, r.produced_ms) for r in records]
        return changes

    def _take_row(self, entity_id: str) -> int:
        self._deleted.pop(entity_id, None)
        if self._free:
            row = self._free.pop()
            self._ids[row] = entity_id
        else:
            row = len(self._ids)
            self._ids.append(entity_id)
        self._rows[entity_id] = row
        return row

    def _delete(self, record: Representation) -> None:
        row = self._rows.pop(record.id, None)
        if row is not None:
            self._ids[row] = None
            self._free.append(row)
        self._deleted.pop(record.id, None)
        self._deleted[record.id] = record.version
        if len(self._deleted) > _DELETIONS_KEPT:
            del self._deleted[next(iter(self._deleted))]

    def _grow(self, dim: int) -> None:
        capacity = len(self._vectors)
        if len(self._ids) <= capacity and self._vectors.shape[1] == dim:
            return
        wanted = max(_ROWS_AT_FIRST, capacity)
        while wanted < len(self._ids):
            wanted *= 2
        vectors = np.zeros((wanted, dim), np.float32)
        meta = np.zeros((wanted, len(_META)), np.int64)
        if self._vectors.shape[1] == dim:  # else every id was deleted: nothing to keep
            vectors[:capacity] = self._vectors
            meta[:capacity] = self._meta
        self._vectors, self._meta = vectors, meta
