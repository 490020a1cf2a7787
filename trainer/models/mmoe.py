"""MMoE (Ma et al., KDD 2018): one pool of experts, one softmax gate and one tower per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from settings.config import ModelConfig
from trainer.models.experts import ExpertModel, Level
from trainer.parts.sets import SHARED, Vectors
from trainer.slots import Plan


class Mmoe(ExpertModel):
    """One owner, `shared`; every task sees all of its experts."""

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config, config.mmoe)

    def levels_of(self, plan: Plan, config: ModelConfig) -> Sequence[Level]:
        """A single one."""
        return [
            Level({SHARED: config.mmoe.experts}, {task: {SHARED: "learn"} for task in plan.tasks})
        ]

    def widths(self, plan: Plan, config: ModelConfig) -> dict[str, int]:
        """Every slot, side by side."""
        return {SHARED: len(plan.slots) * config.embedding_dim}

    def query_widths(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Every task asks with the whole input."""
        return dict.fromkeys(self.tasks, widths[SHARED])

    def inputs(self, slots: Vectors) -> dict[str, Tensor]:
        """[B, F, D] -> [B, F * D]"""
        return {SHARED: slots[SHARED].flatten(1)}

    def queries(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Every task asks with the whole input."""
        return dict.fromkeys(self.tasks, inputs[SHARED])
