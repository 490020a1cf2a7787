"""Standalone Retrieval (LFM4Ads at model level): candidates straight from published vectors.

score(u, i) = <f(q_u), IR_i>, q_u being the user's UR or CR, f a linear map that the downstream
team fits on its own conversions (the identity where the widths agree). The items live in a usearch
HNSW index that follows the topic: a version's changes are in it when `apply` returns.

    index = RetrievalIndex(dim)
    with RepresentationReader(config, bootstrap, on_applied=index.follow("item")) as reader:
        index.load(reader, "item")
        index.search(queries, 100)
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from usearch.compiled import MetricKind
from usearch.index import BatchMatches, Index

from downstream.reader import OnApplied, RepresentationReader
from downstream.table import Change
from topics.names import Kind


class RetrievalIndex:
    """Approximate nearest items by inner product. Thread-safe; memory is 4 * D bytes an item plus
    the graph (some 300 bytes an item at `connectivity` 16)."""

    def __init__(self, dim: int, *, connectivity: int = 16, search_width: int = 128) -> None:
        """`search_width` is HNSW's ef: more finds more, and takes longer."""
        self.dim = dim
        self._index = Index(
            ndim=dim,
            metric=MetricKind.IP,
            dtype="f32",
            connectivity=connectivity,
            expansion_add=search_width,
            expansion_search=search_width,
        )
        self._labels: dict[str, int] = {}
        self._ids: list[str] = []
        self._guard = threading.Lock()
        self._reader: RepresentationReader | None = None
        self.version = -1
        """Newest version that the index reflects."""

    def __len__(self) -> int:
        return len(self._index)

    def put(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add or replace; raises ValueError unless `vectors` is `[N, D]`."""
        if vectors.shape != (len(ids), self.dim):
            raise ValueError(
                f"expected vectors [{len(ids)}, {self.dim}], got {list(vectors.shape)}"
            )
        if not ids:
            return
        with self._guard:
            labels = np.asarray([self._label(entity_id) for entity_id in ids], np.uint64)
            held = np.asarray(self._index.contains(labels))
            if held.any():
                self._index.remove(labels[held])
            self._index.add(labels, vectors)

    def remove(self, ids: Sequence[str]) -> None:
        """Forget items, their ids too; unknown ones are fine."""
        with self._guard:
            known = [self._labels.pop(i) for i in ids if i in self._labels]
            for label in known:
                self._ids[label] = ""
            labels = np.asarray(known, np.uint64)
            if len(labels):
                self._index.remove(labels[np.asarray(self._index.contains(labels))])

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[tuple[str, float]]]:
        """The `k` best (id, inner product) for each of `queries` `[Q, D]`, best first."""
        with self._guard:
            if not len(self._index):
                return [[] for _ in queries]
            # usearch answers one query in another shape than several.
            batch = queries if len(queries) > 1 else np.repeat(queries, 2, 0)
            found = self._index.search(np.ascontiguousarray(batch, np.float32), k)
            assert isinstance(found, BatchMatches)
            return [
                [
                    (self._ids[int(key)], 1.0 - float(distance))
                    for key, distance in zip(
                        found.keys[q, :count], found.distances[q, :count], strict=True
                    )
                ]
                for q, count in enumerate(found.counts.tolist()[: len(queries)])
            ]

    def follow(self, kind: Kind) -> OnApplied:
        """A reader's `on_applied`: takes over each version's changes of `kind`, from the moment
        that `load` has brought in what was there before."""

        def applied(changes: Sequence[Change], _: float) -> None:
            with self._guard:
                reader = self._reader
            ids = [change.id for change in changes if change.kind == kind]
            if reader is not None and ids:
                self._refresh(reader, kind, ids)

        return applied

    def load(self, reader: RepresentationReader, kind: Kind) -> None:
        """Everything that the reader holds; from then on `follow` keeps it current."""
        with self._guard:
            self._reader = reader  # first: a version that shows meanwhile is taken twice, not never
        version, ids, vectors = reader.matrix_of_version(kind)
        self.put(ids, vectors)
        self.version = max(self.version, -1 if version is None else version)

    def _refresh(self, reader: RepresentationReader, kind: Kind, ids: Sequence[str]) -> None:
        """Make the index hold for `ids` what the reader holds: its vectors, or nothing."""
        taken = reader.take(kind, ids)
        self.put(
            [i for i, f in zip(ids, taken.found, strict=True) if f], taken.vectors[taken.found]
        )
        self.remove([i for i, f in zip(ids, taken.found, strict=True) if not f])
        self.version = max(self.version, int(taken.version.max(initial=-1)))

    def _label(self, entity_id: str) -> int:
        label = self._labels.get(entity_id)
        if label is None:
            label = self._labels[entity_id] = len(self._ids)
            self._ids.append(entity_id)
        return label


def exact_search(
    ids: Sequence[str], vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int
) -> list[list[str]]:
    """The true `k` best by inner product, best first: what recall is measured against."""
    scores = queries @ vectors.T
    k = min(k, len(ids))
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.take_along_axis(scores, best, 1).argsort(1)[:, ::-1]
    return [[ids[column] for column in row] for row in np.take_along_axis(best, order, 1)]


def recall_at_k(found: Sequence[Sequence[str]], exact: Sequence[Sequence[str]]) -> float:
    """Mean share of the exact neighbours that were found."""
    return float(
        np.mean([len(set(f) & set(e)) / max(1, len(e)) for f, e in zip(found, exact, strict=True)])
    )
