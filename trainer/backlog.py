"""Which of the touched vectors go with a version that may hold only so many.

First those that changed most for the traffic they see: distance from the vector that readers hold,
relative to its length, times events since it was published. Vectors are computed for the busiest
CANDIDATES times as many; the others wait, and the sweep (`trainer.sweep`) bounds for how long.

Spaces: `published`, the vectors that readers hold (float16; only while a budget is set), and
`traffic`, the events since. Durable with the commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set

import msgspec
import numpy as np

from embedding_store.store import EmbeddingStore
from topics.representation import Representation
from trainer.batch import F32
from trainer.entities import EntityKey

CANDIDATES = 4
SPACE, TRAFFIC = "published", "traffic"
_NEW = np.float32(3e38)
"""Change of a vector that readers do not have at all."""


def entity_of(representation: Representation) -> EntityKey:
    """The entity that a vector is of."""
    name = representation.id.encode("utf-8", "surrogatepass")
    kind = representation.kind
    return name if kind == "cross" else kind.encode() + b":" + name


class Backlog:
    """What is touched and waits, by worth."""

    def __init__(self, store: EmbeddingStore, vectors_max: int) -> None:
        self._store, self._most = store, vectors_max
        raw = store.get(TRAFFIC, b"since")
        self._traffic = Counter(msgspec.msgpack.decode(raw, type=dict[bytes, int]) if raw else {})

    def note(self, keys: Iterable[EntityKey]) -> None:
        """Events that reached these, which may repeat."""
        self._traffic.update(keys)

    def candidates(
        self, touched: Set[EntityKey], crossed: Set[EntityKey]
    ) -> tuple[set[EntityKey], set[EntityKey]]:
        """Those of the touched that are worth computing for this version."""
        keys = touched | crossed
        if len(keys) > CANDIDATES * self._most:
            ranked = sorted(keys, key=lambda key: (-self._traffic[key], key))
            keys = set(ranked[: CANDIDATES * self._most])
        return set(touched & keys), set(crossed & keys)

    def choose(
        self, made: Sequence[Representation], forced: Set[EntityKey]
    ) -> list[Representation]:
        """At most so many of `made`, in their order, and all of the entities `forced`."""
        keys = [entity_of(one) for one in made]
        change = self._change(made)
        worth = [
            (key not in forced, -float(change[i]) * max(1, self._traffic[key]), key, made[i].kind)
            for i, key in enumerate(keys)
        ]
        order = sorted(range(len(made)), key=worth.__getitem__)
        many = max(self._most, sum(key in forced for key in keys))
        chosen = [made[i] for i in sorted(order[:many])]
        for one in chosen:
            self._traffic.pop(entity_of(one), None)
            self._store.put(SPACE, _name(one), _bytes(one))
        return chosen

    def retire(self, keys: Iterable[EntityKey]) -> None:
        """Forget entities."""
        for key in keys:
            self._traffic.pop(key, None)
            for kind in (b"t", b"c"):
                self._store.delete(SPACE, kind + key)

    def stage(self) -> None:
        """Durable with the next commit."""
        ordered = dict(sorted(self._traffic.items()))
        self._store.put(TRAFFIC, b"since", msgspec.msgpack.encode(ordered))

    def _change(self, made: Sequence[Representation]) -> F32:
        """[N] relative distance of each vector from the one that readers hold."""
        found = np.full(len(made), _NEW, np.float32)
        held = self._store.get_many(SPACE, [_name(one) for one in made])
        for i, (one, raw) in enumerate(zip(made, held, strict=True)):
            if raw is not None and one.vector is not None:
                before = np.frombuffer(raw, "<f2").astype(np.float32)
                if len(before) == len(one.vector):
                    length = float(np.linalg.norm(before)) + 1e-6
                    found[i] = float(np.linalg.norm(one.vector - before)) / length
        return found


def _name(one: Representation) -> bytes:
    return (b"c" if one.kind == "cross" else b"t") + entity_of(one)


def _bytes(one: Representation) -> bytes:
    assert one.vector is not None
    return one.vector.astype("<f2").tobytes()
