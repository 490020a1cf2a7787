"""Slots -> one vector per slot: gathered rows pooled, dense parts added, a vector for "missing"."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.slots import SidePlan
from trainer.tensors import SequenceTensors, SideTensors


class SideEncoder(nn.Module):
    """One side's S slots as [B, S, D].

    categorical, multi, sequence: weighted mean of the value's rows. numeric: its code's row plus
    the normalised number times a learned direction. vector: a projection. A missing slot is a
    learned vector of its own, so that it is told apart from a zero. `present` [S, D] is 0 where a
    slot lacks the set that a dimension belongs to: there the result is 0 and nothing learns.
    """

    present: Tensor
    numeric_index: Tensor

    def __init__(self, plan: SidePlan, present: Tensor) -> None:
        super().__init__()
        self.slots, self.dim = present.shape
        self.everywhere = bool(present.all())
        self.register_buffer("present", present, persistent=False)
        numeric_at = plan.of_type("numeric")
        self.register_buffer("numeric_index", torch.tensor(numeric_at), persistent=False)
        self.vector_at = plan.of_type("vector")
        self.vector_dims = plan.vector_dims
        self.missing = nn.Parameter(torch.randn(self.slots, self.dim) * 0.01)
        self.direction = nn.Parameter(torch.randn(len(numeric_at), self.dim) * 0.1)
        self.projections = nn.ModuleList(nn.Linear(n, self.dim) for n in self.vector_dims)

    def forward(self, side: SideTensors, rows: Tensor) -> Tensor:
        """`rows` [U, D] gathered -> [B, S, D]."""
        pooled = functional.embedding_bag(
            side.indices,
            rows,
            side.offsets,
            mode="sum",
            per_sample_weights=side.weights.to(rows.dtype),
        )
        # [S * B, D] slot-major -> [B, S, D]
        slots = pooled.view(self.slots, side.rows, self.dim).transpose(0, 1)
        if self.direction.shape[0]:
            moved = side.numeric.unsqueeze(2) * self.direction  # [B, Sn, D]
            slots = slots.index_add(1, self.numeric_index, moved)
        vectors = torch.split(side.vectors, list(self.vector_dims), 1) if self.vector_dims else ()
        for s, vector, projection in zip(self.vector_at, vectors, self.projections, strict=True):
            projected = projection(vector) * (1.0 - side.missing[:, s : s + 1])
            slots = slots.index_copy(1, slots.new_tensor([s]).long(), projected.unsqueeze(1))
        slots = slots + side.missing.unsqueeze(2) * self.missing
        return slots if self.everywhere else slots * self.present


def attend(sequence: SequenceTensors, target: Tensor, rows: Tensor) -> Tensor:
    """Interest in `target` [B, D]: the sequence's rows weighted by likeness to it -> [B, D].

    Softmax over the entries of likeness + log of their recency weight; zeros for no entries.
    """
    entries = functional.embedding(sequence.indices, rows)  # [B, L, D]
    likeness = (entries * target.unsqueeze(1)).sum(2) / entries.shape[2] ** 0.5  # [B, L]
    scores = likeness + sequence.log_weights
    empty = torch.isinf(scores).all(1, keepdim=True)  # [B, 1]
    weights = torch.softmax(scores.masked_fill(empty, 0.0), 1).masked_fill(empty, 0.0)
    return (weights.unsqueeze(2) * entries).sum(1)
