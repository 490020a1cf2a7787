"""Published vectors as a model's input: data with an age, never a parameter.

A downstream model reads a vector when it serves an impression and keeps it with the impression
until the label has come: reading it again at training time would let it see the future.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from downstream.table import Taken
from topics.names import Kind

AGE_UNIT_SECONDS = 1.0


class TakesVectors(Protocol):
    """`RepresentationReader`, or anything that holds vectors by id."""

    def take(self, kind: Kind, ids: Sequence[str]) -> Taken:
        """See `RepresentationReader.take`."""


@dataclass(frozen=True, slots=True)
class PublishedRows:
    """What was read for a batch of impressions, in numpy: it can wait for its labels."""

    vectors: NDArray[np.float32]
    """`[B, D]`, zero where missing."""
    age_seconds: NDArray[np.float32]
    """`[B]`, event time from the vector's newest event to the impression; 0 where missing."""
    missing: NDArray[np.float32]
    """`[B]`, 1 where there is no vector that may be used, else 0."""
    from_future: int = 0
    """How many of the missing were held, but newer than their impression."""

    def tensors(self) -> Published:
        """As tensors that carry no gradient."""
        return Published(
            torch.from_numpy(self.vectors),
            torch.from_numpy(self.age_seconds),
            torch.from_numpy(self.missing),
        )


@dataclass(frozen=True, slots=True)
class Published:
    """A batch's published vectors on torch's side; `requires_grad` is False in all of them."""

    vectors: Tensor
    """float32 `[B, D]`"""
    age_seconds: Tensor
    """float32 `[B]`"""
    missing: Tensor
    """float32 `[B]`"""

    def features(self) -> Tensor:
        """`[B, D + 2]`: the vector, log1p of its age, and the missing flag (models.md 1.5)."""
        age = torch.log1p(self.age_seconds / AGE_UNIT_SECONDS)
        return torch.cat([self.vectors, age.unsqueeze(1), self.missing.unsqueeze(1)], 1)


def read_published(
    reader: TakesVectors,
    kind: Kind,
    ids: Sequence[str],
    event_ms: NDArray[np.int64],
    *,
    dim: int,
) -> PublishedRows:
    """The vectors of `ids` as an impression at `event_ms` `[B]` may use them.

    A vector with an event newer than the impression is not used: its label may be in it. Live, that
    is rare; after a standstill, when old impressions meet new vectors, it is what keeps the model
    honest. Raises ValueError when vectors of another width than `dim` are published.
    """
    taken = reader.take(kind, ids)
    width = taken.vectors.shape[1]
    if width not in (0, dim):
        raise ValueError(
            f"expected {kind} vectors of {dim} elements, the topic carries {width}: "
            "build the model with the width that is published"
        )
    usable = taken.found & (taken.event_ms <= event_ms)
    vectors = np.zeros((len(ids), dim), np.float32)
    if width:
        vectors[usable] = taken.vectors[usable]
    age = np.where(usable, event_ms - taken.event_ms, 0) / 1000
    return PublishedRows(
        vectors,
        age.astype(np.float32),
        (~usable).astype(np.float32),
        int((taken.found & ~usable).sum()),
    )


Reads = Literal["user", "item", "cross", "crosses", "towers", "cross_item"]
"""What a model reads: UR, IR, the user's CR, the user's and the item's CR, UR and IR, or the user's
CR and IR."""
KINDS_READ: Mapping[Reads, tuple[Kind, ...]] = {
    "user": ("user",),
    "item": ("item",),
    "cross": ("cross",),
    "crosses": ("cross", "cross"),
    "towers": ("user", "item"),
    "cross_item": ("cross", "item"),
}
"""The vectors side by side."""


def read_for(
    reader: TakesVectors,
    reads: Reads,
    users: Sequence[str],
    items: Sequence[str],
    event_ms: NDArray[np.int64],
    *,
    dims: Sequence[int],
) -> PublishedRows:
    """`read_published` of each vector that `reads` names, side by side; `dims` are their widths.

    A row is missing where one of them is (its vectors are zero then); its age is the oldest's.
    """
    sides = {"item": items} if reads == "item" else {"user": users, "item": items}
    parts = []
    of_sides = list(sides.items())[: len(dims)]
    for kind, (side, ids), dim in zip(KINDS_READ[reads], of_sides, dims, strict=True):
        names = [f"{side}:{id_}" for id_ in ids] if kind == "cross" else ids
        parts.append(read_published(reader, kind, names, event_ms, dim=dim))
    missing = np.maximum.reduce([part.missing for part in parts])
    vectors = np.concatenate([part.vectors for part in parts], 1) * (1 - missing)[:, None]
    age = np.maximum.reduce([part.age_seconds for part in parts]) * (1 - missing)
    return PublishedRows(
        vectors.astype(np.float32),
        age.astype(np.float32),
        missing,
        sum(part.from_future for part in parts),
    )
