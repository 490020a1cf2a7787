"""A basis that stays: what is published of version v can be compared with what was of version w.

The weights go on learning, and nothing in the loss keeps a tower's coordinates in place: they turn,
and a downstream model that was fitted to them is fed something else. So some entities of each kind
are anchors, with their vectors as they were first published; before each version the orthogonal
rotation that best takes the anchors' vectors of now back to those (Procrustes, by one SVD of
[D, D]) is found, and everything of the version is published through it. Lengths, angles and inner
products within a kind are untouched. What the anchors themselves came to mean otherwise is not held
back: over ANCHORS of them that averages out.

Durable with the commit (space `basis`): anchors, their vectors, the newest rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import numpy as np
import xxhash

from embedding_store.store import EmbeddingStore
from settings.config import Config
from topics.names import KINDS, Kind, representation_topic
from topics.representation import decode_message
from topics.scan import read_to_end
from trainer.batch import F32
from trainer.entities import EntityKey

SPACE = "basis"
ANCHORS = 256
Compute = Callable[[Sequence[EntityKey]], tuple[list[EntityKey], F32]]
"""Entities -> those of them that have a vector, and their vectors [N, D] in the model's basis."""


class _State(msgspec.Struct, array_like=True):
    keys: list[bytes]
    reference: bytes
    """float32 [N, D]"""
    rotation: bytes
    """float32 [D, D]"""
    waiting: list[bytes]
    """Adopted anchors that this store has not met yet."""


def rotation_onto(vectors: F32, reference: F32) -> F32:
    """The orthogonal R [D, D] for which `vectors` [N, D] @ R is nearest to `reference` [N, D]."""
    left, _, right = np.linalg.svd(vectors.astype(np.float64).T @ reference.astype(np.float64))
    return np.asarray(left @ right, np.float32)


def adopt(store: EmbeddingStore, published: Mapping[Kind, Mapping[EntityKey, F32]]) -> None:
    """Let a store that has no basis yet begin in that of `published` vectors (another store's), so
    that models which read those can go on with its own. Durable with the next commit."""
    for kind, vectors in published.items():
        if not vectors or store.get(SPACE, kind.encode()) is not None:
            continue
        keys = _by_hash(vectors)[:ANCHORS]
        reference = np.stack([vectors[key] for key in keys]).astype(np.float32)
        unturned = np.eye(reference.shape[1], dtype=np.float32)
        state = _State(keys, reference.tobytes(), unturned.tobytes(), keys)
        store.put(SPACE, kind.encode(), msgspec.msgpack.encode(state))


def published_vectors(config: Config, bootstrap: str) -> dict[Kind, dict[EntityKey, F32]]:
    """What the stack of `config` shows now, by entity. Raises TopicError."""
    found: dict[Kind, dict[EntityKey, F32]] = {}
    for kind in KINDS:
        own = found.setdefault(kind, {})
        for _, message in read_to_end(config, bootstrap, [representation_topic(kind)]):
            one = decode_message(message, kind=kind)
            key = one.id.encode("utf-8", "surrogatepass")
            key = key if kind == "cross" else kind.encode() + b":" + key
            own.pop(key, None)
            if one.vector is not None:
                own[key] = one.vector
    return found


class Basis:
    """The rotations of one store's kinds."""

    def __init__(self, store: EmbeddingStore) -> None:
        self._store = store
        self._anchors: dict[Kind, dict[EntityKey, F32]] = {}
        self._waiting: dict[Kind, set[EntityKey]] = {}
        self._rotation: dict[Kind, F32] = {}
        for kind in KINDS:
            raw = store.get(SPACE, kind.encode())
            if raw is not None:
                self._load(kind, msgspec.msgpack.decode(raw, type=_State))

    def fit(self, kind: Kind, touched: Sequence[EntityKey], compute: Compute) -> None:
        """Find the rotation of this version; anchors that are gone are replaced from `touched`."""
        anchors = self._anchors.setdefault(kind, {})
        waiting = self._waiting.setdefault(kind, set())
        keys, vectors = compute(list(anchors)) if anchors else ([], np.zeros((0, 0), np.float32))
        waiting.difference_update(keys)
        present = set(keys)
        for key in [key for key in anchors if key not in present and key not in waiting]:
            del anchors[key]
        if keys:
            reference = np.stack([anchors[key] for key in keys])
            self._rotation[kind] = rotation_onto(vectors, reference)
        if len(anchors) < ANCHORS // 2:
            fresh = _by_hash(key for key in touched if key not in anchors)
            keys, vectors = compute(fresh[: ANCHORS - len(anchors)])
            if keys:
                anchors.update(zip(keys, self.turned(kind, vectors), strict=True))

    def turned(self, kind: Kind, vectors: F32) -> F32:
        """[N, D] in the basis that is published."""
        rotation = self._rotation.get(kind)
        return vectors if rotation is None else np.ascontiguousarray(vectors @ rotation)

    def stage(self) -> None:
        """Durable with the next commit."""
        for kind, anchors in self._anchors.items():
            if not anchors:
                continue
            reference = np.stack(list(anchors.values()))
            rotation = self._rotation.get(kind, np.eye(reference.shape[1], dtype=np.float32))
            waiting = sorted(self._waiting.get(kind, ()))
            state = _State(list(anchors), reference.tobytes(), rotation.tobytes(), waiting)
            self._store.put(SPACE, kind.encode(), msgspec.msgpack.encode(state))

    def _load(self, kind: Kind, state: _State) -> None:
        reference = np.frombuffer(state.reference, np.float32).reshape(len(state.keys), -1)
        dim = reference.shape[1]
        self._anchors[kind] = dict(zip(state.keys, reference, strict=True))
        self._waiting[kind] = set(state.waiting)
        self._rotation[kind] = np.frombuffer(state.rotation, np.float32).reshape(dim, dim)


def _by_hash(keys: Iterable[EntityKey]) -> list[EntityKey]:
    """The order in which entities come, or their names, should choose nothing."""
    return sorted(keys, key=lambda key: (xxhash.xxh3_64_intdigest(key), key))
