"""STEM-Net (arXiv 2308.13537): a shared and one embedding set per task, all-forward task-specific
backward (AFTB).

Every task mixes every expert; its gradient stops at other tasks' experts, so no other task trains
a task's own set. The shared experts are trained by all. The gate asks with x_t + x_shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from settings.config import ModelConfig
from trainer.models.experts import ExpertModel, Level
from trainer.parts.gate import Sight
from trainer.parts.sets import SHARED, RowSets, Vectors
from trainer.slots import Plan

ALL = "all tasks"


def task_set(task: str) -> str:
    """Name of a task's own embedding set."""
    return f"task:{task}"


class Stem(ExpertModel):
    """Sets: `shared`, and `task:NAME` per task, all of one width."""

    @classmethod
    def row_sets(cls, plan: Plan, config: ModelConfig) -> RowSets:
        """One row per value holds all of them, each with its own optimizer state."""
        names = (SHARED, *map(task_set, plan.tasks))
        return RowSets(dict.fromkeys(names, config.embedding_dim))

    @classmethod
    def speaks(cls, plan: Plan) -> Mapping[str, Sequence[str]]:
        """A task's own set speaks for that task alone."""
        return {task_set(task): (task,) for task in plan.tasks}

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config, config.stem)

    def levels_of(self, plan: Plan, config: ModelConfig) -> Sequence[Level]:
        """`stem.levels` of them. Under `strict`, the shared viewer between levels looks at the
        tasks' experts without teaching them; the released code lets it, which leaks gradients."""
        options = config.stem
        experts = dict.fromkeys(plan.tasks, options.task_experts) | {ALL: options.shared_experts}
        sights: dict[str, dict[str, Sight]] = {
            viewer: {owner: "learn" if owner in (viewer, ALL) else "look" for owner in experts}
            for viewer in plan.tasks
        }
        between: dict[str, Sight] = dict.fromkeys(plan.tasks, "look" if options.strict else "learn")
        shared: dict[str, dict[str, Sight]] = {ALL: {**between, ALL: "learn"}}
        return [Level(experts, sights | shared)] * (options.levels - 1) + [Level(experts, sights)]

    def widths(self, plan: Plan, config: ModelConfig) -> dict[str, int]:
        """Every slot's vectors of one set, side by side."""
        return dict.fromkeys((*plan.tasks, ALL), len(plan.slots) * config.embedding_dim)

    def inputs(self, slots: Vectors) -> dict[str, Tensor]:
        """Each task's own set and the shared one, [B, F, D] -> [B, F * D]."""
        own = {task: slots[task_set(task)].flatten(1) for task in self.tasks}
        return {**own, ALL: slots[SHARED].flatten(1)}

    def queries(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """x_t + x_shared, not detached."""
        own = {task: inputs[task] + inputs[ALL] for task in self.tasks}
        return {**own, ALL: inputs[ALL]}
