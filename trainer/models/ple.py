"""PLE (Tang et al., RecSys 2020): shared and task experts over one embedding set, in levels.

Each task mixes its own and the shared experts; below the last level, the shared input of the next
one mixes them all.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from settings.config import ModelConfig
from trainer.models.experts import ExpertModel, Level
from trainer.parts.gate import Sight
from trainer.parts.sets import SHARED, Vectors
from trainer.slots import Plan

ALL = "all tasks"
"""The shared experts' owner. No kind can have this name."""


class Ple(ExpertModel):
    """Owners: every task, and all of them together."""

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config, config.ple)

    def levels_of(self, plan: Plan, config: ModelConfig) -> Sequence[Level]:
        """`ple.levels` of them; the last has no shared viewer."""
        options = config.ple
        experts = dict.fromkeys(plan.tasks, options.task_experts) | {ALL: options.shared_experts}
        own: dict[str, dict[str, Sight]] = {t: {t: "learn", ALL: "learn"} for t in plan.tasks}
        every: dict[str, dict[str, Sight]] = {ALL: dict.fromkeys((*plan.tasks, ALL), "learn")}
        return [Level(experts, own | every)] * (options.levels - 1) + [Level(experts, own)]

    def widths(self, plan: Plan, config: ModelConfig) -> dict[str, int]:
        """Every slot, side by side, for everyone."""
        return dict.fromkeys((*plan.tasks, ALL), len(plan.slots) * config.embedding_dim)

    def inputs(self, slots: Vectors) -> dict[str, Tensor]:
        """[B, F, D] -> [B, F * D]"""
        return dict.fromkeys((*self.tasks, ALL), slots[SHARED].flatten(1))
