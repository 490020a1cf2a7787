"""PLE (Tang et al., RecSys 2020): shared and task experts over one embedding set, in levels.

Each task mixes its own and the shared experts; below the last level, the shared input of the next
one mixes them all.
"""

from __future__ import annotations

from torch import nn

from settings.config import ModelConfig
from trainer.models.model import Model, Output, Rows
from trainer.parts.gate import Extraction, Sight
from trainer.parts.head import Towers
from trainer.parts.sets import SHARED
from trainer.slots import Plan
from trainer.tensors import BatchTensors

ALL = "all tasks"


class Ple(Model):
    """No representations: what a task mixes is its own."""

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config)
        options, width = config.ple, len(plan.slots) * config.embedding_dim
        self.tasks = plan.tasks
        own: dict[str, dict[str, Sight]] = {t: {t: "learn", ALL: "learn"} for t in plan.tasks}
        every: dict[str, dict[str, Sight]] = {ALL: dict.fromkeys((*plan.tasks, ALL), "learn")}
        self.levels = nn.ModuleList()
        for level in range(options.levels):
            last = level == options.levels - 1
            owners = (*plan.tasks, ALL)
            extraction = Extraction(
                dict.fromkeys(owners, width),
                experts=dict.fromkeys(plan.tasks, options.task_experts)
                | {ALL: options.shared_experts},
                sights=own if last else own | every,
                query_widths=dict.fromkeys(owners, width),
                expert_dims=options.expert_dims,
                gate_dims=options.gate_dims,
            )
            self.levels.append(extraction)
            width = extraction.width
        self.towers = Towers(width, options.tower_dims, plan)

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Logits [B, T]."""
        slots = self.slots(batch, rows)
        x = slots[SHARED].flatten(1)  # [B, F, D] -> [B, F * D]
        inputs = dict.fromkeys((*self.tasks, ALL), x)
        for n, level in enumerate(self.levels):
            inputs, weights = level(inputs, inputs)
            for viewer, weight in weights.items():
                self.tap(f"gate:{n}:{viewer}", weight)
        hidden = self.towers.climb([inputs[task] for task in self.tasks])
        logits = self.towers(hidden, batch.domain) + self.first_order(slots)
        return Output(logits, hidden=hidden)
