"""What is kept per user and per item beside its rows (store space `entity`).

Last-seen features (so that its vector can be recomputed from any state), the newest event that
reached it, and the time-decayed sum of cross representations. Layout of one record, little-endian:

    i64 features_event_ms | i64 event_ms | i64 produced_ms | i64 cross_event_ms
    i64 cross_produced_ms | i64 published_ms | i64 cross_published_ms | i64 cross_last_ms
    i64 cross_count | u32 C
    f32 cross_sum[C] | features (see `SidePart` rows: `pack_rows`)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from embedding_store.store import EmbeddingStore
from trainer.batch import F32, SidePart
from trainer.slots import Side, SidePlan

_HEAD = struct.Struct("<9qI")
NEVER = -1
SPACE = "entity"
EntityId = tuple[Side, str]


class PackedRows:
    """A side's B rows, each as bytes: counts u16[S], missing u8[S], numeric f32[Sn],
    vectors f32[V], keys u64[n], weights f32[n]."""

    def __init__(self, part: SidePart) -> None:
        slots = len(part.plan.slots)
        lengths = part.lengths.reshape(slots, part.rows)  # [S * B] -> [S, B]
        row_of_key = np.repeat(np.tile(np.arange(part.rows), slots), part.lengths)
        order = np.argsort(row_of_key, kind="stable")  # slot-major -> row-major
        self._keys = part.keys[order].astype("<u8").tobytes()
        self._weights = part.weights[order].astype("<f4").tobytes()
        self._ends = np.cumsum(lengths.sum(0)).tolist()
        self._fixed = np.concatenate(
            [
                np.ascontiguousarray(lengths.T).astype("<u2").view(np.uint8),
                part.missing.astype(np.uint8),
                np.ascontiguousarray(part.numeric).astype("<f4").view(np.uint8),
                np.ascontiguousarray(part.vectors).astype("<f4").view(np.uint8),
            ],
            axis=1,
        ).tobytes()
        self._width = _fixed_bytes(part.plan)

    def row(self, b: int) -> bytes:
        """Row `b`; `unpack_rows` takes it back."""
        start, end = (self._ends[b - 1] if b else 0), self._ends[b]
        return (
            self._fixed[b * self._width : (b + 1) * self._width]
            + self._keys[8 * start : 8 * end]
            + self._weights[4 * start : 4 * end]
        )


def _fixed_bytes(plan: SidePlan) -> int:
    return 3 * len(plan.slots) + 4 * len(plan.of_type("numeric")) + 4 * sum(plan.vector_dims)


def unpack_rows(rows: Sequence[bytes], plan: SidePlan) -> SidePart:
    """A side's part of the packed `rows`, in their order."""
    count, slots, width = len(rows), len(plan.slots), _fixed_bytes(plan)
    fixed = np.frombuffer(b"".join(r[:width] for r in rows), np.uint8).reshape(count, width)
    lengths = np.ascontiguousarray(fixed[:, : 2 * slots]).view("<u2").astype(np.int64)  # [E, S]
    at = 3 * slots
    numeric_end = at + 4 * len(plan.of_type("numeric"))
    split = [width + 8 * n for n in lengths.sum(1).tolist()]
    keys = np.frombuffer(b"".join(r[width:end] for r, end in zip(rows, split, strict=True)), "<u8")
    weights = np.frombuffer(b"".join(r[end:] for r, end in zip(rows, split, strict=True)), "<f4")
    slot_of_key = np.repeat(np.tile(np.arange(slots), count), lengths.ravel())
    order = np.argsort(slot_of_key, kind="stable")  # row-major -> slot-major
    return SidePart(
        plan=plan,
        rows=count,
        keys=keys[order].astype(np.uint64),
        lengths=np.ascontiguousarray(lengths.T).reshape(slots * count),
        weights=weights[order].astype(np.float32),
        missing=fixed[:, 2 * slots : at].astype(np.float32),
        numeric=_floats(fixed[:, at:numeric_end]),
        vectors=_floats(fixed[:, numeric_end:]),
    )


def _floats(raw: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> F32:
    """uint8 [E, 4n] -> float32 [E, n]"""
    return np.frombuffer(raw.tobytes(), "<f4").reshape(raw.shape[0], raw.shape[1] // 4)


@dataclass(slots=True)
class Entity:
    """One user or item, as of the last batch."""

    features_event_ms: int = NEVER
    event_ms: int = NEVER
    produced_ms: int = NEVER
    cross_event_ms: int = NEVER
    cross_produced_ms: int = NEVER
    published_ms: int = NEVER
    """`produced_ms` as of the last published vector; likewise below for the cross vector."""
    cross_published_ms: int = NEVER
    cross_last_ms: int = NEVER
    cross_count: int = 0
    cross_sum: F32 | None = None
    features: bytes | tuple[PackedRows, int] = b""
    """Packed, or where to find them: packing waits for the commit, since a user seen ten times
    between two commits needs it once."""

    def packed(self) -> bytes:
        """The features as bytes; empty if never seen with features."""
        if isinstance(self.features, tuple):
            rows, b = self.features
            self.features = rows.row(b)
        return self.features

    def dump(self) -> bytes:
        """The record drawn above."""
        cross = b"" if self.cross_sum is None else self.cross_sum.astype("<f4").tobytes()
        head = _HEAD.pack(
            self.features_event_ms,
            self.event_ms,
            self.produced_ms,
            self.cross_event_ms,
            self.cross_produced_ms,
            self.published_ms,
            self.cross_published_ms,
            self.cross_last_ms,
            self.cross_count,
            len(cross) // 4,
        )
        return head + cross + self.packed()

    @staticmethod
    def load(raw: bytes) -> Entity:
        """Inverse of `dump`."""
        head = _HEAD.unpack_from(raw)
        width = head[-1]
        end = _HEAD.size + 4 * width
        cross = np.frombuffer(raw, "<f4", width, _HEAD.size) if width else None
        times: tuple[int, int, int, int, int, int, int, int, int] = head[:-1]
        return Entity(*times, cross, raw[end:])

    def add_cross(self, cross: F32, event_ms: int, half_life_ms: int) -> None:
        """sum <- sum * 2^(-dt / half life) + CR [C]; an event older than the newest comes decayed.

        The result does not depend on the order of events, but for rounding.
        """
        self.cross_count += 1
        if self.cross_sum is None:
            self.cross_sum, self.cross_last_ms = cross.copy(), event_ms
            return
        gap = event_ms - self.cross_last_ms
        decay = np.float32(2.0 ** (-abs(gap) / half_life_ms)) if half_life_ms else np.float32(0)
        if gap >= 0:
            self.cross_sum = self.cross_sum * decay + cross
            self.cross_last_ms = event_ms
        else:
            self.cross_sum = self.cross_sum + cross * decay


class Entities:
    """Entities of one store; changes are staged at `stage`."""

    def __init__(self, store: EmbeddingStore) -> None:
        self._store = store
        self._open: dict[EntityId, Entity] = {}

    def __getitem__(self, id_: EntityId) -> Entity:
        """The entity as of the last batch; a new one if it was never seen."""
        if id_ not in self._open:
            self.open([id_])
        return self._open[id_]

    def open(self, ids: Iterable[EntityId]) -> None:
        """Read many at once: one read of the disk instead of one per entity."""
        absent = [id_ for id_ in dict.fromkeys(ids) if id_ not in self._open]
        for id_, raw in zip(
            absent, self._store.get_many(SPACE, [_key(i) for i in absent]), strict=True
        ):
            self._open[id_] = Entity.load(raw) if raw else Entity()

    def stage(self) -> None:
        """Stage every entity that was opened since the last commit, and forget it here."""
        for id_, entity in self._open.items():
            self._store.put(SPACE, _key(id_), entity.dump())
        self._open = {}


def _key(id_: EntityId) -> bytes:
    return f"{id_[0]}:{id_[1]}".encode()
