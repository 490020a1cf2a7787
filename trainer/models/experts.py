"""What models of experts share: levels of owners, viewers and gates, then a tower per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from settings.config import ModelConfig
from settings.models import ExpertOptions
from trainer.models.model import Model, Output, Rows
from trainer.parts.gate import Extraction, Sight
from trainer.parts.head import Towers
from trainer.parts.sets import Vectors
from trainer.slots import Plan
from trainer.tensors import BatchTensors


@dataclass(frozen=True, slots=True)
class Level:
    """Experts per owner, and what each viewer sees of them."""

    experts: Mapping[str, int]
    sights: Mapping[str, Mapping[str, Sight]]


class ExpertModel(Model):
    """No representations: what a task mixes is its own. Subclasses give levels and inputs."""

    def __init__(self, plan: Plan, config: ModelConfig, options: ExpertOptions) -> None:
        super().__init__(plan, config)
        self.tasks = plan.tasks
        widths = self.widths(plan, config)
        queries = self.query_widths(widths)
        self.levels = nn.ModuleList()
        for level in self.levels_of(plan, config):
            extraction = Extraction(
                {owner: widths[owner] for owner in level.experts},
                experts=level.experts,
                sights=level.sights,
                query_widths=queries,
                expert_dims=options.expert_dims,
                gate_dims=options.gate_dims,
            )
            self.levels.append(extraction)
            widths = queries = dict.fromkeys(widths | queries, extraction.width)
        self.towers = Towers(options.expert_dims[-1], options.tower_dims, plan)

    def levels_of(self, plan: Plan, config: ModelConfig) -> Sequence[Level]:
        """The levels, first to last."""
        raise NotImplementedError

    def widths(self, plan: Plan, config: ModelConfig) -> dict[str, int]:
        """Owner -> width of its input to the first level."""
        raise NotImplementedError

    def query_widths(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Viewer -> width of its gate's query at the first level; the owners' unless overridden."""
        return dict(widths)

    def inputs(self, slots: Vectors) -> dict[str, Tensor]:
        """Owner -> input of the first level [B, .]."""
        raise NotImplementedError

    def queries(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Viewer -> its gate's query; each one's own input unless overridden."""
        return inputs

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Logits [B, T]."""
        slots = self.slots(batch, rows)
        inputs: Mapping[str, Tensor] = self.inputs(slots)
        for n, level in enumerate(self.levels):
            inputs, weights = level(inputs, self.queries(inputs))
            for viewer, weight in weights.items():
                self.tap(f"gate:{n}:{viewer}", weight)
        hidden = self.towers.climb([inputs[task] for task in self.tasks])
        logits = self.towers(hidden, batch.domain) + self.first_order(slots)
        return Output(logits, hidden=hidden)
