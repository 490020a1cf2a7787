"""Shared-Bottom (Caruana 1997): one MLP over every slot, one linear head per task."""

from __future__ import annotations

import torch
from torch import Tensor

from settings.config import ModelConfig
from trainer.models.parts import Heads, Hidden, Model, Output
from trainer.slots import SIDES, Plan
from trainer.tensors import BatchTensors


class SharedBottom(Model):
    """No towers, so no UR and no IR; CR is the last hidden layer."""

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config.embedding_dim)
        self.bottom = Hidden(len(plan.slots) * config.embedding_dim, config.mix_dims)
        self.heads = Heads(self.bottom.width, plan)

    @property
    def cross_dim(self) -> int:
        """CR is as wide as the bottom's last hidden layer."""
        return self.bottom.width

    def forward(self, batch: BatchTensors, rows: Tensor) -> Output:
        """Logits [B, T] and CR [B, C]."""
        slots = [self.encode(side, batch.sides[side], rows) for side in SIDES]
        cr: Tensor = self.bottom(torch.cat(slots, 1).flatten(1))  # [B, S, D] -> [B, S * D]
        return Output(self.heads(self.tap("cr", cr), batch.domain), cr)
