"""Logistic regression: every value's row holds one weight per task, and they are summed.

The rows learn by FTRL-proximal (McMahan et al., KDD 2013); the bias is dense.
"""

from __future__ import annotations

import torch

from settings.config import ModelConfig
from trainer.models.model import Model, Output, Rows
from trainer.parts.head import LOGIT_AT_START
from trainer.parts.sets import RowSets
from trainer.slots import Plan
from trainer.tensors import BatchTensors

WEIGHTS = "weights"


class LogisticRegression(Model):
    """Rows as wide as there are tasks; no representations."""

    is_deep = False

    @classmethod
    def row_sets(cls, plan: Plan, config: ModelConfig) -> RowSets:
        """One weight per task."""
        del config
        return RowSets({WEIGHTS: len(plan.tasks)}, ftrl=frozenset({WEIGHTS}))

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config)
        self.bias = torch.nn.Parameter(torch.full((len(plan.tasks),), LOGIT_AT_START))

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Logits [B, T]."""
        return Output(self.slots(batch, rows)[WEIGHTS].sum(1) + self.bias)
