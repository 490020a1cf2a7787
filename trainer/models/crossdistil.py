"""CrossDistil (arXiv 2202.09852): ranking teachers over the four levels of two tasks' labels, and
students that learn the label and the calibrated, corrected teacher.

Teacher and student learn in one step: the ranking loss trains teachers and bottom, Platt's P and Q
see detached teacher logits, students see a detached soft label. Pairs are of one user: each row
against the newest row of each level that the user's reservoir holds (`trainer/reservoir.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from settings.config import ModelConfig
from trainer.models.model import Labels, Model, Output, Rows
from trainer.parts.head import Towers, start_rare
from trainer.parts.interaction import Hidden
from trainer.parts.sets import SHARED
from trainer.parts.terms import Platt, level_loss, masked_entropy
from trainer.slots import Plan
from trainer.tensors import BatchTensors


class CrossDistil(Model):
    """Students for every task, teachers for the two of `tasks`."""

    paired = True

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config)
        options = config.crossdistil
        self.options = options
        width = len(plan.slots) * config.embedding_dim
        self.at = [plan.tasks.index(task) for task in options.tasks or plan.tasks[:2]]
        self.bottom = Hidden(width, options.bottom_dims)
        self.towers = Towers(self.bottom.width, options.tower_dims, plan)
        self.teachers = nn.ModuleList(
            nn.Sequential(
                Hidden(self.bottom.width, options.tower_dims), nn.Linear(self.towers.width, 1)
            )
            for _ in self.at
        )
        for teacher in self.teachers:
            assert isinstance(teacher, nn.Sequential) and isinstance(teacher[1], nn.Linear)
            start_rare(teacher[1])
        self.platt = Platt(len(self.at))
        self.weights = torch.tensor(options.within)

    @property
    def cross_dim(self) -> int:
        """CR is the shared bottom's output."""
        return self.bottom.width

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Students' logits [B, T], CR [B, C], teachers' logits [B, 2]."""
        slots = self.slots(batch, rows)
        cr = self.tap("cr", self.bottom(slots[SHARED].flatten(1)))
        hidden = self.towers.climb([cr] * len(self.towers.linear))
        logits = self.towers(hidden, batch.domain) + self.first_order(slots)
        teachers = torch.cat([teacher(cr) for teacher in self.teachers], 1)
        return Output(logits, cr, hidden, teachers=self.tap("teachers", teachers))

    def soft_labels(self, teachers: Tensor, labels: Tensor) -> Tensor:
        """[B, 2] from calibrated teacher logits forced to the label's side; no gradient."""
        calibrated = self.platt(teachers).detach()
        side = 2.0 * labels - 1.0
        corrected = side * torch.clamp(side * calibrated, min=self.options.margin)
        return torch.sigmoid(corrected / self.options.temperature)

    def label_terms(self, output: Output, said: Labels) -> dict[str, Tensor]:
        """Ranking of both teachers, Platt's loss, and distillation into both students."""
        assert output.teachers is not None
        own, mask = said.labels[:, self.at], said.mask[:, self.at]
        terms = {"platt": self.platt.loss(output.teachers, own, mask)}
        soft = self.soft_labels(output.teachers, own)
        students = output.logits[:, self.at] / self.options.temperature
        share = self.options.distilled / (1.0 - self.options.distilled)
        terms["distilled"] = share * masked_entropy(students, soft, mask)
        weights = self.weights.to(own.device)
        for n, name in enumerate(("teacher_a", "teacher_b")):
            if len(said.pairs):
                terms[name] = level_loss(
                    output.teachers[:, n], own[:, n], own[:, 1 - n], said.pairs, weights
                )
        return terms
