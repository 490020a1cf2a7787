"""DCNv2 (arXiv 2008.13535): full-rank cross layers and an MLP, stacked or parallel."""

from __future__ import annotations

import torch

from settings.config import ModelConfig
from trainer.models.model import Model, Output, Rows
from trainer.parts.head import Heads
from trainer.parts.interaction import CrossLayers, Hidden
from trainer.parts.sets import SHARED
from trainer.slots import Plan
from trainer.tensors import BatchTensors


class Dcn(Model):
    """No towers, so no UR and no IR; CR is the last hidden layer."""

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config)
        options, width = config.dcn, len(plan.slots) * config.embedding_dim
        self.parallel = options.structure == "parallel"
        self.cross = CrossLayers(width, options.cross_layers)
        self.deep = Hidden(width, options.hidden_dims)
        self.heads = Heads(self.deep.width + (width if self.parallel else 0), plan)

    @property
    def cross_dim(self) -> int:
        """CR is as wide as the MLP's last layer."""
        return self.deep.width

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Logits [B, T] and CR [B, C]."""
        slots = self.slots(batch, rows)
        x0 = slots[SHARED].flatten(1)  # [B, F, D] -> [B, F * D]
        crossed = self.tap("cross", self.cross(x0))
        cr = self.tap("cr", self.deep(x0 if self.parallel else crossed))
        last = torch.cat([cr, crossed], 1) if self.parallel else cr
        hidden = [last] * self.heads.linear.out_features
        return Output(self.heads(last, batch.domain) + self.first_order(slots), cr, hidden)
