"""STEM-AL: STEM for auxiliary learning (arXiv 2308.13537): no shared set; main tasks mix every
task's experts, auxiliary tasks only their own.

Sketched from a third party's reading, as are the defaults; see docs/models.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from settings.config import ModelConfig
from trainer.models.experts import ExpertModel, Level
from trainer.models.stem import task_set
from trainer.parts.gate import Sight
from trainer.parts.sets import RowSets, Vectors
from trainer.slots import Plan


class StemAuxiliary(ExpertModel):
    """Sets: `task:NAME` per task."""

    @classmethod
    def row_sets(cls, plan: Plan, config: ModelConfig) -> RowSets:
        """One set per task."""
        return RowSets(dict.fromkeys(map(task_set, plan.tasks), config.embedding_dim))

    @classmethod
    def speaks(cls, plan: Plan) -> Mapping[str, Sequence[str]]:
        """A task's own set speaks for that task alone."""
        return {task_set(task): (task,) for task in plan.tasks}

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config, config.stem_al)

    def levels_of(self, plan: Plan, config: ModelConfig) -> Sequence[Level]:
        """A single one; main tasks are the first kind unless named."""
        options = config.stem_al
        main = options.main or plan.tasks[:1]
        others: Sight = "look" if options.detach else "learn"
        sights: dict[str, dict[str, Sight]] = {}
        for viewer in plan.tasks:
            every: dict[str, Sight] = dict.fromkeys(plan.tasks, others)
            sights[viewer] = {**(every if viewer in main else {}), viewer: "learn"}
        return [Level(dict.fromkeys(plan.tasks, options.task_experts), sights)]

    def widths(self, plan: Plan, config: ModelConfig) -> dict[str, int]:
        """Every slot's vectors of one set, side by side."""
        return dict.fromkeys(plan.tasks, len(plan.slots) * config.embedding_dim)

    def inputs(self, slots: Vectors) -> dict[str, Tensor]:
        """[B, F, D] -> [B, F * D]"""
        return {task: slots[task_set(task)].flatten(1) for task in self.tasks}
