"""Factorisation machine (Rendle, ICDM 2010): linear weights and all pairs of factors.

One task takes the plain sum over the pairs' products; with several, each task weighs the D
products' dimensions by its own vector, which starts at one.
"""

from __future__ import annotations

import torch
from torch import nn

from settings.config import ModelConfig
from trainer.models.model import Model, Output, Rows
from trainer.parts.head import LOGIT_AT_START, DomainBias
from trainer.parts.interaction import pair_sum
from trainer.parts.sets import RowSets
from trainer.slots import Plan
from trainer.tensors import BatchTensors

LINEAR, FACTORS = "linear", "factors"


class FactorisationMachine(Model):
    """Two sets: `linear`, one weight per task, and `factors`."""

    is_deep = False

    @classmethod
    def row_sets(cls, plan: Plan, config: ModelConfig) -> RowSets:
        """Weights and factors apart: each with its own state and step size."""
        return RowSets({LINEAR: len(plan.tasks), FACTORS: config.fm.factor_dim})

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config)
        self.bias = nn.Parameter(torch.full((len(plan.tasks),), LOGIT_AT_START))
        self.domain_bias = DomainBias(plan)
        self.pairs = nn.Parameter(torch.ones(len(plan.tasks), config.fm.factor_dim))

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Logits [B, T]."""
        slots = self.slots(batch, rows)
        paired = self.tap("pairs", pair_sum(slots[FACTORS]))  # [B, D]
        logits = slots[LINEAR].sum(1) + paired @ self.pairs.T
        return Output(logits + self.bias + self.domain_bias(batch.domain))
