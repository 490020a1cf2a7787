"""From touched entities to the encoded records of one version.

UR and IR are recomputed from each entity's last-seen features with the state that is being
committed. CR is a time-decayed sum over the entity's impressions, each counted once at first sight
with the activation of its prediction (so never with its own label), and normalised on publication.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from embedding_store.store import EmbeddingStore
from topics.names import Kind, representation_topic
from topics.publisher import Record
from topics.representation import Representation, encode
from topics.sample import Sample
from trainer.batch import F32, Batch
from trainer.entities import Entities, EntityId, PackedRows, unpack_rows
from trainer.slots import Side
from trainer.step import Learner

TOWER_SIDES: tuple[Side, Side] = ("user", "item")
_SPACE = "touched"
_NORM_EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class Cut:
    """The records of one version, and the produce times behind its freshness."""

    records: list[Record]
    counts: dict[str, int]
    produced_ms: dict[Kind, list[int]]
    """Newest event's produce time of each vector that holds a newer event than when it was last
    published; the others say nothing about freshness."""


def newest_event_ms(sample: Sample) -> int:
    """Event time of the newest event in the sample's information."""
    return sample.event_ms + max(sample.delays_ms.values(), default=0)


def normalise(vectors: F32) -> F32:
    """LayerNorm without affine over the last axis of [N, C]: what of a CR aggregate is published.

    Its length grows with an entity's traffic; direction is what transfers.
    """
    centred = vectors - vectors.mean(1, keepdims=True)
    return np.asarray(
        centred / np.sqrt((centred**2).mean(1, keepdims=True) + _NORM_EPSILON), np.float32
    )


class Representations:
    """Tracks touched entities and cuts versions. Changes are durable with the next commit."""

    def __init__(self, store: EmbeddingStore, learner: Learner, half_life_ms: int) -> None:
        self._store = store
        self._learner = learner
        self._half_life_ms = half_life_ms
        self._entities = Entities(store)
        self._towers = learner.model.tower_dims
        self._touched: set[EntityId] = set()
        self._crossed: set[EntityId] = set()
        for name, touched in ((b"tower", self._touched), (b"cross", self._crossed)):
            raw = store.get(_SPACE, name)
            if raw:
                touched.update(msgspec.msgpack.decode(raw, type=list[tuple[Side, str]]))

    @property
    def any_touched(self) -> bool:
        """Whether a version cut now would have a record."""
        return bool(self._touched or self._crossed)

    def observe(self, batch: Batch, cross: F32 | None, first_sight: Sequence[bool]) -> None:
        """Note what a step did: [B, C] activations of its prediction, and which rows were seen for
        the first time (features and CR come from those alone)."""
        packed = {side: PackedRows(batch.parts[side]) for side in TOWER_SIDES}
        self._entities.open(("user", s.user_id) for s in batch.samples)
        self._entities.open(("item", s.item_id) for s in batch.samples)
        for b, sample in enumerate(batch.samples):
            event_ms = newest_event_ms(sample)
            for side in TOWER_SIDES:
                id_: EntityId = (side, sample.user_id if side == "user" else sample.item_id)
                entity = self._entities[id_]
                if side in self._towers:
                    self._touched.add(id_)
                entity.event_ms = max(entity.event_ms, event_ms)
                entity.produced_ms = max(entity.produced_ms, sample.produced_ms)
                if not first_sight[b]:
                    continue
                if sample.event_ms >= entity.features_event_ms:
                    entity.features_event_ms = sample.event_ms
                    entity.features = (packed[side], b)
                if cross is not None:
                    entity.add_cross(cross[b], sample.event_ms, self._half_life_ms)
                    entity.cross_event_ms = max(entity.cross_event_ms, event_ms)
                    entity.cross_produced_ms = max(entity.cross_produced_ms, sample.produced_ms)
                    self._crossed.add(id_)

    def cut(self, version: int, step: int) -> Cut:
        """The records of `version` from the state as it is now, in order of kind and id; what was
        touched is forgotten."""
        cut = Cut([], {"user": 0, "item": 0, "cross": 0, "tombstones": 0}, {})
        for representation in self._cut(version, step):
            key, value, headers = encode(representation)
            topic = representation_topic(representation.kind)
            cut.records.append((topic, key, value, headers))
            cut.counts[representation.kind] += 1
        for id_ in sorted(self._touched):
            entity = self._entities[id_]
            if entity.produced_ms > entity.published_ms:
                entity.published_ms = entity.produced_ms
                kind: Kind = "user" if id_[0] == "user" else "item"
                cut.produced_ms.setdefault(kind, []).append(entity.produced_ms)
        for id_ in sorted(self._crossed):
            entity = self._entities[id_]
            if entity.cross_produced_ms > entity.cross_published_ms:
                entity.cross_published_ms = entity.cross_produced_ms
                cut.produced_ms.setdefault("cross", []).append(entity.cross_produced_ms)
        self._touched.clear()
        self._crossed.clear()
        return cut

    def forget_touched(self) -> None:
        """For a run that publishes nothing."""
        self._touched.clear()
        self._crossed.clear()

    def stage(self) -> None:
        """Stage entities and what stays touched for the next commit."""
        self._entities.stage()
        for name, touched in ((b"tower", self._touched), (b"cross", self._crossed)):
            if touched:
                self._store.put(_SPACE, name, msgspec.msgpack.encode(sorted(touched)))
            else:
                self._store.delete(_SPACE, name)

    def _cut(self, version: int, step: int) -> Iterator[Representation]:
        self._entities.open(sorted(self._touched | self._crossed))
        for side in TOWER_SIDES:
            ids = [id_ for id_ in sorted(self._touched) if id_[0] == side]
            ids = [id_ for id_ in ids if self._entities[id_].packed()]
            if not ids:
                continue
            packed = [self._entities[id_].packed() for id_ in ids]
            plan = self._learner.plan.sides[side]
            vectors = self._learner.represent(side, unpack_rows(packed, plan))
            for id_, vector in zip(ids, vectors, strict=True):
                entity = self._entities[id_]
                yield Representation(
                    kind="user" if side == "user" else "item",
                    id=id_[1],
                    vector=vector,
                    version=version,
                    step=step,
                    event_ms=entity.event_ms,
                    produced_ms=entity.produced_ms,
                )
        yield from self._cut_cross(version, step)

    def _cut_cross(self, version: int, step: int) -> Iterator[Representation]:
        ids = sorted(self._crossed)
        sums = [self._entities[id_].cross_sum for id_ in ids]
        if not ids:
            return
        vectors = normalise(np.stack([s for s in sums if s is not None]))
        for id_, vector in zip(ids, vectors, strict=True):
            entity = self._entities[id_]
            yield Representation(
                kind="cross",
                id=f"{id_[0]}:{id_[1]}",
                vector=vector,
                version=version,
                step=step,
                event_ms=entity.cross_event_ms,
                produced_ms=entity.cross_produced_ms,
            )
