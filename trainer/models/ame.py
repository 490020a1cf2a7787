"""AME: asymmetric multi-embedding (arXiv 2403.00793): a few sets of different widths, and every
task's gate over the experts of all of them.

For many tasks, where a set per task is impossible: small ones drift to the narrow set. Sketched
from a third party's reading; see docs/models.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from settings.config import ModelConfig
from trainer.models.experts import ExpertModel, Level
from trainer.parts.gate import Sight
from trainer.parts.sets import RowSets, Vectors
from trainer.slots import Plan


class Ame(ExpertModel):
    """Sets: `width:D` for each of `ame.widths`."""

    @classmethod
    def row_sets(cls, plan: Plan, config: ModelConfig) -> RowSets:
        """Sets of different width in every slot."""
        del plan
        return RowSets({f"width:{width}": width for width in config.ame.widths})

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        self.owners = [f"width:{width}" for width in config.ame.widths]
        super().__init__(plan, config, config.ame)

    def levels_of(self, plan: Plan, config: ModelConfig) -> Sequence[Level]:
        """A single one; nothing is detached."""
        every: dict[str, Sight] = dict.fromkeys(self.owners, "learn")
        return [
            Level(dict.fromkeys(self.owners, config.ame.experts), dict.fromkeys(plan.tasks, every))
        ]

    def widths(self, plan: Plan, config: ModelConfig) -> dict[str, int]:
        """Every slot's vectors of one set, side by side."""
        return {f"width:{width}": len(plan.slots) * width for width in config.ame.widths}

    def query_widths(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Widths differ, so the query is all sets side by side, not their sum."""
        return dict.fromkeys(self.tasks, sum(widths.values()))

    def inputs(self, slots: Vectors) -> dict[str, Tensor]:
        """[B, F, D] -> [B, F * D]"""
        return {owner: slots[owner].flatten(1) for owner in self.owners}

    def queries(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """All sets side by side."""
        return dict.fromkeys(self.tasks, torch.cat([inputs[owner] for owner in self.owners], 1))
