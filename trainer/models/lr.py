"""Logistic regression: every value's row holds one weight per task, and they are summed."""

from __future__ import annotations

import torch

from settings.config import ModelConfig
from trainer.models.parts import LOGIT_AT_START, Model, Output
from trainer.slots import SIDES, Plan
from trainer.tensors import BatchTensors


class LogisticRegression(Model):
    """Rows as wide as there are tasks; no representations."""

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        del config
        super().__init__(plan, len(plan.tasks))
        self.bias = torch.nn.Parameter(torch.full((len(plan.tasks),), LOGIT_AT_START))

    def forward(self, batch: BatchTensors, rows: torch.Tensor) -> Output:
        """Logits [B, T]."""
        slots = [self.encode(side, batch.sides[side], rows) for side in SIDES]
        return Output(torch.cat(slots, 1).sum(1) + self.bias, None)
