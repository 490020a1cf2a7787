"""TIM, temporal interest module (arXiv 2308.08487): each sequence's interest in the very item, with
target-aware time codes, attention and representation; then cross layers and an MLP.

The product with the target is inside the pooled sum, as in the paper's formula; the released code
multiplies after a BatchNorm and a Dense layer.
"""

from __future__ import annotations

import torch
from torch import nn

from settings.config import ModelConfig
from trainer.models.model import Model, Output, Rows
from trainer.parts.head import Heads
from trainer.parts.interaction import CrossLayers, Hidden
from trainer.parts.sequence import TargetInterest
from trainer.parts.sets import SHARED
from trainer.slots import ITEM_TABLE, SIDES, Plan
from trainer.tensors import BatchTensors


class Tim(Model):
    """No towers: an interest depends on both sides. CR is the last hidden layer."""

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config)
        options, dim = config.tim, config.embedding_dim
        self.target_at = [slot.name for slot in plan.slots].index(ITEM_TABLE)
        self.interests = nn.ModuleList(
            TargetInterest(dim, slot.length_max, options.time_code)
            for slot in plan.slots
            if slot.type == "sequence"
        )
        width = (len(plan.slots) + len(self.interests)) * dim
        self.norm = nn.LayerNorm(width)
        self.cross = CrossLayers(width, options.cross_layers)
        self.deep = Hidden(width, options.hidden_dims)
        self.heads = Heads(self.deep.width, plan)

    @property
    def cross_dim(self) -> int:
        """CR is as wide as the MLP's last layer."""
        return self.deep.width

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Logits [B, T] and CR [B, C]."""
        slots = self.slots(batch, rows)
        target = slots[SHARED][:, self.target_at]  # [B, D]
        sequences = [s for side in SIDES for s in batch.sides[side].sequences]
        pooled = []
        for n, (interest, sequence) in enumerate(zip(self.interests, sequences, strict=True)):
            vector, attention = interest(sequence, target, rows[SHARED])
            self.tap(f"attention:{n}", attention)
            pooled.append(self.tap(f"interest:{n}", vector))
        x0 = self.norm(torch.cat([slots[SHARED].flatten(1), *pooled], 1))
        cr = self.tap("cr", self.deep(self.tap("cross", self.cross(x0))))
        logits = self.heads(cr, batch.domain) + self.first_order(slots)
        return Output(logits, cr, [cr] * logits.shape[1])
