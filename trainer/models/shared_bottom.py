"""Shared-Bottom (Caruana 1997): one MLP over every slot, one linear head per task."""

from __future__ import annotations

from settings.config import ModelConfig
from trainer.models.model import Model, Output, Rows
from trainer.parts.head import Heads
from trainer.parts.interaction import Hidden
from trainer.parts.sets import SHARED
from trainer.slots import Plan
from trainer.tensors import BatchTensors


class SharedBottom(Model):
    """No towers, so no UR and no IR; CR is the last hidden layer."""

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config)
        self.bottom = Hidden(len(plan.slots) * config.embedding_dim, config.mix_dims)
        self.heads = Heads(self.bottom.width, plan)

    @property
    def cross_dim(self) -> int:
        """CR is as wide as the bottom's last hidden layer."""
        return self.bottom.width

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Logits [B, T] and CR [B, C]."""
        slots = self.slots(batch, rows)
        cr = self.tap(
            "cr", self.bottom(slots[SHARED].flatten(1))
        )  # [B, F, D] -> [B, F * D] -> [B, C]
        hidden = [cr] * self.heads.linear.out_features
        return Output(self.heads(cr, batch.domain) + self.first_order(slots), cr, hidden)
