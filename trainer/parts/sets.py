"""Embedding sets: one look-up per batch, one row per (slot, value), several widths in each row.

A model declares its sets once (`RowSets`); the store lays rows out by it, and `SlotVectors` turns
gathered rows into {set: [B, F, d_set]}, F slots in the plan's order. A set may be absent from a
slot: its vectors are zeros there, no gradient reaches the rows, and `has` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from trainer.encoder import SideEncoder
from trainer.slots import SIDES, Plan, Side, table_of
from trainer.tensors import BatchTensors, SideTensors

SHARED = "shared"

Vectors = dict[str, Tensor]
"""{set: [B, F, d_set]}"""


@dataclass(frozen=True, slots=True)
class RowSets:
    """What a model wants of the store's rows."""

    dims: Mapping[str, int]
    """Set -> width."""
    only: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Set -> the slots that have it; a set that is not named here is in every slot."""
    ftrl: frozenset[str] = frozenset()
    """Sets whose rows learn by FTRL-proximal with [model.lr]'s options."""

    def of_slot(self, slot: str) -> tuple[str, ...]:
        """The sets of one slot, sorted by name."""
        return tuple(s for s in sorted(self.dims) if slot in self.only.get(s, {slot}))


class SlotVectors(nn.Module):
    """Gathered rows -> {set: [B, F, d_set]}. All sets are pooled at once, then split."""

    def __init__(self, plan: Plan, sets: RowSets) -> None:
        super().__init__()
        self.names = sorted(sets.dims)
        self.widths = [sets.dims[name] for name in self.names]
        self.encoders = nn.ModuleDict()
        for side, side_plan in plan.sides.items():
            present = torch.tensor(
                [
                    [n in sets.of_slot(table_of(slot)) for n in self.names]
                    for slot in side_plan.slots
                ],
                dtype=torch.float32,
            ).reshape(len(side_plan.slots), len(self.names))
            widened = present.repeat_interleave(torch.tensor(self.widths), 1)  # [S, sum of d]
            self.encoders[side] = SideEncoder(side_plan, widened)
        self.has = {
            name: torch.tensor([name in sets.of_slot(table_of(s)) for s in plan.slots])
            for name in self.names
        }
        """Set -> bool [F]"""

    def side(self, side: Side, tensors: SideTensors, rows: Mapping[str, Tensor]) -> Vectors:
        """One side's slots, {set: [B, S, d_set]}."""
        return self._split(self.encoders[side](tensors, self._joined(rows)))

    def forward(self, batch: BatchTensors, rows: Mapping[str, Tensor]) -> Vectors:
        """Every slot, side after side, from gathered rows {set: [U, d_set]}."""
        joined = self._joined(rows)
        sides = [self.encoders[side](batch.sides[side], joined) for side in SIDES]
        return self._split(torch.cat(sides, 1))

    def _joined(self, rows: Mapping[str, Tensor]) -> Tensor:
        if len(self.names) == 1:
            return rows[self.names[0]]
        return torch.cat([rows[name] for name in self.names], 1)

    def _split(self, vectors: Tensor) -> Vectors:
        parts: Sequence[Tensor] = (vectors,)
        if len(self.names) > 1:
            parts = torch.split(vectors, self.widths, 2)
        return dict(zip(self.names, parts, strict=True))
