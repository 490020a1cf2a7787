"""MMoE (Ma et al., KDD 2018): one pool of experts, one softmax gate and one tower per task."""

from __future__ import annotations

from settings.config import ModelConfig
from trainer.models.model import Model, Output, Rows
from trainer.parts.gate import Extraction
from trainer.parts.head import Towers
from trainer.parts.sets import SHARED
from trainer.slots import Plan
from trainer.tensors import BatchTensors


class Mmoe(Model):
    """No representations: what a task mixes is its own."""

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config)
        options, width = config.mmoe, len(plan.slots) * config.embedding_dim
        self.tasks = plan.tasks
        self.experts = Extraction(
            {SHARED: width},
            experts={SHARED: options.experts},
            sights={task: {SHARED: "learn"} for task in plan.tasks},
            query_widths=dict.fromkeys(plan.tasks, width),
            expert_dims=options.expert_dims,
            gate_dims=options.gate_dims,
        )
        self.towers = Towers(self.experts.width, options.tower_dims, plan)

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Logits [B, T]."""
        slots = self.slots(batch, rows)
        x = slots[SHARED].flatten(1)  # [B, F, D] -> [B, F * D]
        mixed, weights = self.experts({SHARED: x}, dict.fromkeys(self.tasks, x))
        for task in self.tasks:
            self.tap(f"gate:{task}", weights[task])
        hidden = self.towers.climb([mixed[task] for task in self.tasks])
        logits = self.towers(hidden, batch.domain) + self.first_order(slots)
        return Output(logits, hidden=hidden)
