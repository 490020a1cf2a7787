"""From touched entities to the encoded records of one version.

UR and IR are recomputed from each entity's last-seen features with the state that is being
committed. CR is a time-decayed sum over the entity's impressions, each counted once at first sight
with the activation of its prediction (so never with its own label), and normalised on publication.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import compress

import msgspec
import numpy as np
import numpy.typing as npt

from embedding_store.store import EmbeddingStore
from settings.publishing import PublishConfig
from topics.names import KINDS, Kind, representation_topic
from topics.publisher import Record
from topics.representation import Representation, encode
from topics.vector_encoding import VectorDtype
from trainer.backlog import Backlog, entity_of
from trainer.basis import Basis
from trainer.batch import F32, I64, Batch
from trainer.entities import NEVER, Entities, EntityKey
from trainer.packed import PackedRows, unpack_rows
from trainer.slots import Side
from trainer.step import Learner
from trainer.sweep import RefreshSweep

TOWER_SIDES: tuple[Side, Side] = ("user", "item")
_SPACE = "touched"
_NORM_EPSILON = 1e-5

_TOWER_TIMES = ("event_ms", "produced_ms")
_Times = tuple[int, int]
"""Event time and produce time of the newest event."""
_Gone = tuple[EntityKey, int, int]


@dataclass(frozen=True, slots=True)
class Cut:
    """The records of one version, and the produce times behind its freshness."""

    records: list[Record]
    counts: dict[str, int]
    produced_ms: dict[Kind, list[int]]
    """Newest event's produce time of each vector that holds a newer event than when it was last
    published; the others say nothing about freshness."""


def _is_of(kind: Kind, key: EntityKey) -> bool:
    return key.startswith(kind.encode() + b":")


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

    def __init__(
        self,
        store: EmbeddingStore,
        learner: Learner,
        publish: PublishConfig,
        *,
        by_count: bool = False,
    ) -> None:
        self._store = store
        self._dtype: VectorDtype = publish.dtype
        self._learner = learner
        self._half_life_ms = publish.cross_half_life
        self._towers = learner.model.tower_dims
        self._entities = Entities(store, learner.model.cross_dim)
        self._backlog: Backlog | None = None
        if publish.vectors_max is not None:
            self._backlog = Backlog(store, publish.vectors_max)
        self._sweep: RefreshSweep | None = None
        if publish.age_max is not None:
            self._sweep = RefreshSweep(store, self._entities, publish.age_max, by_count=by_count)
        self._basis = Basis(store) if publish.basis == "anchored" else None
        self._touched: set[EntityKey] = set()
        self._crossed: set[EntityKey] = set()
        for name, touched in ((b"tower", self._touched), (b"cross", self._crossed)):
            raw = store.get(_SPACE, name)
            if raw:
                touched.update(msgspec.msgpack.decode(raw, type=list[bytes]))
        raw = store.get(_SPACE, b"gone")
        gone = msgspec.msgpack.decode(raw, type=list[_Gone]) if raw else []
        self._gone: dict[EntityKey, _Times] = {key: (event, made) for key, event, made in gone}

    @property
    def any_touched(self) -> bool:
        """Whether a version cut now would have a record."""
        return bool(self._touched or self._crossed or self._gone)

    def retire_rows(self, row_keys: Sequence[int]) -> None:
        """`retire` the users and items among the rows of these keys."""
        self.retire(self._entities.of_rows(row_keys))

    def retire(self, keys: Sequence[EntityKey]) -> None:
        """Forget entities and all that was learnt beside their rows; the next version carries a
        tombstone for what was published of them."""
        numbers = self._entities.open(keys)
        towers = self._times(numbers, "event_ms", "produced_ms")
        for key, tower in zip(keys, towers, strict=True):
            if tower[0] != NEVER:
                self._gone[key] = tower
        self._entities.remove(keys)
        for part in (self._backlog, self._sweep):
            if part is not None:
                part.retire(keys)
        self._touched.difference_update(keys)
        self._crossed.difference_update(keys)

    def retouch(self, published: Sequence[tuple[Kind, bytes]]) -> None:
        """Have what is held now of these (kind, record key) written anew; a tombstone for what is
        held no more."""
        if not published:
            return
        keys = [key if kind == "cross" else kind.encode() + b":" + key for kind, key in published]
        head = self._entities.head[self._entities.open(keys)]
        for (kind, _), key, own in zip(published, keys, head, strict=True):
            if own["event_ms"] == NEVER or (kind == "cross" and not own["cross_count"]):
                self._gone.setdefault(key, (0, 0))
            elif kind == "cross":
                self._crossed.add(key)
            else:
                self._touched.add(key)

    def touch_everything(self) -> None:
        """Have the vectors of every entity written anew, with the next version."""
        for key, has_cross in self._entities.everything():
            if self._has_tower(key):
                self._touched.add(key)
            if has_cross:
                self._crossed.add(key)

    def forget_user(self, user: bytes) -> tuple[bool, list[Kind]]:
        """Forget a user's record at once; (whether there was one, the kinds that need a tombstone,
        which the caller writes)."""
        key = b"user:" + user
        known = bool(self._entities.head["event_ms"][self._entities.open([key])[0]] != NEVER)
        self.retire([key])
        self._gone.pop(key, None)
        kinds: list[Kind] = ["user"] if "user" in self._towers else []
        return known, [*kinds, "cross"] if self._learner.model.cross_dim else kinds

    def unseen_since(self, keys: Sequence[EntityKey], event_ms: int) -> list[EntityKey]:
        """Those of `keys` whose newest event is older than `event_ms`."""
        newest = self._entities.head["event_ms"][self._entities.open(keys)] if keys else ()
        return [k for k, at in zip(keys, newest, strict=True) if NEVER < at < event_ms]

    def observe(
        self, batch: Batch, cross: F32 | None, first_sight: npt.NDArray[np.bool_], *, step: int
    ) -> None:
        """Note what a step did: [B, C] activations of its prediction, and which rows [B] were seen
        for the first time (features and CR come from those alone). `step`: batches learnt from
        before it, which is the model that predicted."""
        first = np.asarray(first_sight, bool)
        for side in TOWER_SIDES:
            if side not in self._towers and cross is None:
                continue  # nothing of it would ever be published
            ids = batch.users if side == "user" else batch.items
            prefix = side.encode() + b":"
            keys = [prefix + id_ for id_ in ids]
            self._entities.observe(
                self._entities.open(keys),
                event_ms=batch.event_ms,
                newest_ms=batch.newest_ms,
                produced_ms=batch.produced_ms,
                packed=PackedRows(batch.parts[side]) if side in self._towers else None,
                first=first,
                cross=cross,
                step=step,
                half_life_ms=self._half_life_ms,
            )
            if self._backlog is not None:
                self._backlog.note(keys)
            if side in self._towers:
                self._touched.update(keys)
            if cross is not None:
                self._crossed.update(keys[b] for b in np.flatnonzero(first).tolist())

    def cut(self, version: int, step: int, now_ms: int) -> Cut:
        """The records of `version` from the state as it is now, in order of kind and id; what goes
        with it is touched no more. `now_ms`: event time, for the sweep."""
        cut = Cut([], {"user": 0, "item": 0, "cross": 0, "tombstones": 0}, {})
        touched, crossed = self._touched, self._crossed
        if self._backlog is not None:
            touched, crossed = self._backlog.candidates(touched, crossed)
        forced = self._sweep.due(now_ms) if self._sweep is not None else []
        if forced:
            touched = touched | {key for key, _ in forced if self._has_tower(key)}
            crossed = crossed | {key for key, has_cross in forced if has_cross}
        made = list(self._cut(version, step, touched, crossed))
        waiting: set[tuple[bool, EntityKey]] = set()
        if self._backlog is not None:
            waiting = {(one.kind == "cross", entity_of(one)) for one in made}
            made = self._backlog.choose(made, {key for key, _ in forced})
        of_kind: dict[Kind, list[EntityKey]] = {"user": [], "item": [], "cross": []}
        for representation in made:
            key, value, headers = encode(representation, self._dtype)
            cut.records.append((representation_topic(representation.kind), key, value, headers))
            cut.counts[representation.kind] += 1
            of_kind[representation.kind].append(entity_of(representation))
            waiting.discard((representation.kind == "cross", of_kind[representation.kind][-1]))
        self._bury(cut, version, step)
        for kind, keys in of_kind.items():
            names = ("cross_produced_ms", "cross_published_ms")
            self._note_published(
                cut, kind, keys, *(names if kind == "cross" else ("produced_ms", "published_ms"))
            )
        self._touched -= {k for k in touched if (False, k) not in waiting}
        self._crossed -= {k for k in crossed if (True, k) not in waiting}
        self._gone.clear()
        return cut

    def _has_tower(self, key: EntityKey) -> bool:
        return key.partition(b":")[0].decode() in self._towers

    def _bury(self, cut: Cut, version: int, step: int) -> None:
        """Tombstones of the retired, unless they came back and have a vector in this version."""
        written = {(topic, key) for topic, key, _, _ in cut.records}
        for entity, (event_ms, produced_ms) in sorted(self._gone.items()):
            side, _, id_ = entity.partition(b":")
            kinds: list[tuple[Kind, bytes]] = []
            if side.decode() in self._towers:
                kinds.append(("user" if side == b"user" else "item", id_))
            if self._learner.model.cross_dim:
                kinds.append(("cross", entity))
            for kind, key in kinds:
                if (representation_topic(kind), key) in written:
                    continue
                tombstone = Representation(
                    kind=kind,
                    id=key.decode("utf-8", "surrogatepass"),
                    vector=None,
                    version=version,
                    step=step,
                    event_ms=event_ms,
                    produced_ms=produced_ms,
                )
                encoded, value, headers = encode(tombstone, self._dtype)
                cut.records.append((representation_topic(kind), encoded, value, headers))
                cut.counts["tombstones"] += 1

    def _note_published(
        self, cut: Cut, kind: Kind, keys: list[EntityKey], produced: str, published: str
    ) -> None:
        numbers = self._entities.open(keys)
        head = self._entities.head
        newer = numbers[head[produced][numbers] > head[published][numbers]]
        if newer.size:
            head[published][newer] = head[produced][newer]
            self._entities.mark_changed(newer)
            cut.produced_ms[kind] = head[produced][newer].tolist()

    def forget_touched(self) -> None:
        """For a run that publishes nothing."""
        self._touched.clear()
        self._crossed.clear()
        self._gone.clear()

    def stage(self) -> None:
        """Stage entities and what stays touched for the next commit."""
        self._entities.stage()
        for part in (self._backlog, self._sweep, self._basis):
            if part is not None:
                part.stage()
        for name, touched in ((b"tower", self._touched), (b"cross", self._crossed)):
            if touched:
                self._store.put(_SPACE, name, msgspec.msgpack.encode(sorted(touched)))
            else:
                self._store.delete(_SPACE, name)
        if self._gone:
            gone = [(key, *times) for key, times in sorted(self._gone.items())]
            self._store.put(_SPACE, b"gone", msgspec.msgpack.encode(gone))
        else:
            self._store.delete(_SPACE, b"gone")

    def _cut(
        self, version: int, step: int, touched: Set[EntityKey], crossed: Set[EntityKey]
    ) -> Iterator[Representation]:
        for kind in KINDS:
            own = crossed if kind == "cross" else {k for k in touched if _is_of(kind, k)}
            if not own:
                continue
            if self._basis is not None:
                self._basis.fit(kind, sorted(own), partial(self._vectors, kind))
            keys, vectors = self._vectors(kind, sorted(own))
            if not keys:
                continue
            if self._basis is not None:
                vectors = self._basis.turned(kind, vectors)
            numbers = self._entities.open(keys)
            names = ("cross_event_ms", "cross_produced_ms")
            times = self._times(numbers, *(names if kind == "cross" else _TOWER_TIMES))
            steps = [step] * len(keys)
            if kind == "cross":
                steps = self._entities.head["cross_step"][numbers].tolist()
            ids = keys if kind == "cross" else [key.partition(b":")[2] for key in keys]
            made = list(zip(times, steps, strict=True))
            yield from self._records(kind, version, ids, vectors, made)

    def _vectors(self, kind: Kind, keys: Sequence[EntityKey]) -> tuple[list[EntityKey], F32]:
        """Those of `keys` that have a vector of `kind`, and their vectors [N, D] as of now."""
        numbers = self._entities.open(keys)
        if kind == "cross":
            has_cross = self._entities.head["cross_count"][numbers] > 0
            found = list(compress(keys, has_cross.tolist()))
            return found, normalise(self._entities.cross[numbers[has_cross]])
        packed = self._entities.packed(numbers)
        present = [i for i, features in enumerate(packed) if features]
        if not present:
            return [], np.zeros((0, 0), np.float32)
        rows = unpack_rows([packed[i] for i in present], self._learner.plan.sides[kind])
        return [keys[i] for i in present], self._learner.represent(kind, rows)

    def _times(self, numbers: I64, event: str, produced: str) -> list[tuple[int, int]]:
        """(event time, produce time) of each."""
        head = self._entities.head
        return list(
            zip(head[event][numbers].tolist(), head[produced][numbers].tolist(), strict=True)
        )

    @staticmethod
    def _records(
        kind: Kind,
        version: int,
        ids: list[bytes],
        vectors: F32,
        made: list[tuple[_Times, int]],
    ) -> Iterator[Representation]:
        """`made`: times of the newest event in each vector, and the step of its model."""
        for id_, vector, (times, step) in zip(ids, vectors, made, strict=True):
            yield Representation(
                kind=kind,
                id=id_.decode("utf-8", "surrogatepass"),
                vector=vector,
                version=version,
                step=step,
                event_ms=times[0],
                produced_ms=times[1],
            )
