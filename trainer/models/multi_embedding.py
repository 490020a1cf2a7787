"""Multi-embedding (arXiv 2310.04400) with heterogeneous experts (arXiv 2403.00793): set m interacts
only with itself, in an interaction of its own that ends in a nonlinear layer; then they merge.

Widening one set hardly helps, for its dimensions collapse; more sets with different interactions
do. Which of the sets a slot has is a choice per slot (`tables`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from settings.config import ModelConfig
from trainer.models.model import Model, Output, Rows
from trainer.parts.gate import SoftmaxGate
from trainer.parts.head import Towers
from trainer.parts.interaction import Interaction
from trainer.parts.sets import RowSets
from trainer.slots import SIDES, Plan
from trainer.tensors import BatchTensors


def side_groups(plan: Plan) -> list[int]:
    """[F] group of each slot for GwPFM: its side."""
    return [SIDES.index(slot.side) for slot in plan.slots]


class MultiEmbedding(Model):
    """Sets: `expert:M`, one per entry of `interactions`."""

    @classmethod
    def row_sets(cls, plan: Plan, config: ModelConfig) -> RowSets:
        """A slot named in `tables` has only the first so many."""
        options = config.multi_embedding
        dims = {
            f"expert:{m}": Interaction.set_width(kind, config.embedding_dim, len(SIDES))
            for m, kind in enumerate(options.interactions)
        }
        names = {slot.name for slot in plan.slots}
        only = {
            f"expert:{m}": frozenset(n for n in names if m < options.tables.get(n, len(dims)))
            for m in range(len(dims))
        }
        return RowSets(dims, only)

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config)
        options = config.multi_embedding
        self.experts = nn.ModuleList(
            Interaction(
                kind,
                side_groups(plan),
                config.embedding_dim,
                hidden=options.expert_dims,
                cross=options.cross_layers,
            )
            for kind in options.interactions
        )
        width, count = options.expert_dims[-1], len(options.interactions)
        self.merge = options.merge
        self.scalars = nn.Parameter(torch.ones(count) / count)
        query = sum(self.sets.dims.values()) * len(plan.slots)
        self.gates = nn.ModuleList(
            SoftmaxGate(query, options.gate_dims, count)
            for _ in (plan.tasks if self.merge == "gate" else ())
        )
        self.towers = Towers(width, options.tower_dims, plan)
        self.tasks = len(plan.tasks)

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Logits [B, T]."""
        slots = self.slots(batch, rows)
        outputs = torch.stack(
            [expert(slots[f"expert:{m}"]) for m, expert in enumerate(self.experts)], 1
        )  # [B, M, h]
        self.tap("experts", outputs)
        merged: list[Tensor]
        if self.merge == "gate":
            query = torch.cat([slots[name].flatten(1) for name in self.sets.dims], 1)
            merged = [gate(outputs, query)[0] for gate in self.gates]
        elif self.merge == "scalars":
            merged = [torch.einsum("m,bmh->bh", self.scalars, outputs)] * self.tasks
        else:
            merged = [outputs.mean(1)] * self.tasks
        hidden = self.towers.climb(merged)
        logits = self.towers(hidden, batch.domain) + self.first_order(slots)
        return Output(logits, hidden=hidden)
