"""Heads: [B, h] -> one logit per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from trainer.parts.gate import ByDomain
from trainer.parts.interaction import Hidden
from trainer.slots import Plan

LOGIT_AT_START = -2.0
"""Conversions are rare: from a rate of one half, a stream's first thousands of impressions would
only teach the bias."""


class FirstOrder(nn.Module):
    """The linear part of a factorisation machine: each slot's vector speaks for itself.

    It starts as the mean over sets of a vector's first numbers, so that a row learns its own rate
    per task from its first gradient on, while the deep part still finds its way. `speaks` says for
    which tasks each set speaks: a task's own set for that task alone.
    """

    def __init__(
        self, dims: Mapping[str, int], plan: Plan, speaks: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__()
        self.tasks = len(plan.tasks)
        self.columns = {
            name: [plan.tasks.index(task) for task in (speaks or {}).get(name, plan.tasks)]
            for name in dims
        }
        self.linear = nn.ModuleList(
            nn.Linear(dim, len(self.columns[name]), bias=False) for name, dim in dims.items()
        )
        # Each set learns at the full rate: of k sets that speak for a task each says a k-th, or a
        # model with more sets would in effect have a larger learning rate.
        speaking = torch.tensor([*chain(*self.columns.values())]).bincount()
        for columns, linear in zip(self.columns.values(), self.linear, strict=True):
            assert isinstance(linear, nn.Linear)
            nn.init.eye_(linear.weight)
            with torch.no_grad():
                linear.weight.div_(speaking[columns].unsqueeze(1))

    def forward(self, slots: Mapping[str, Tensor]) -> Tensor:
        """{set: [B, F, D_set]} -> [B, T]"""
        parts = []
        for (name, columns), linear in zip(self.columns.items(), self.linear, strict=True):
            part = linear(slots[name].sum(1))  # [B, tasks that it speaks for]
            if len(columns) < self.tasks:
                before = columns[0]  # such a set speaks for one task
                part = nn.functional.pad(part, (before, self.tasks - before - 1))
            parts.append(part)
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


class DomainBias(nn.Module):
    """A bias per domain and task, 0 at the start."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.table = nn.Embedding(1 + len(plan.domains), len(plan.tasks))
        nn.init.zeros_(self.table.weight)

    def forward(self, domain: Tensor) -> Tensor:
        """int64 [B] -> [B, T]"""
        bias: Tensor = self.table(domain)
        return bias


class Heads(nn.Module):
    """T logits from one hidden layer, with a bias per domain and task.

    `by_domain` adds a head per domain to the one that all share; it starts at zero, so that a
    small domain begins with what the others know.
    """

    def __init__(self, width: int, plan: Plan, *, by_domain: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(plan.tasks))
        start_rare(self.linear)
        self.domain_bias = DomainBias(plan)
        self.own: ByDomain | None = None
        if by_domain:
            self.own = ByDomain(1 + len(plan.domains), width, len(plan.tasks))
            nn.init.zeros_(self.own.weight)

    def forward(self, hidden: Tensor, domain: Tensor) -> Tensor:
        """[B, width], int64 [B] -> [B, T]"""
        logits: Tensor = self.linear(hidden) + self.domain_bias(domain)
        return logits if self.own is None else logits + self.own(hidden, domain)


class Towers(nn.Module):
    """One MLP and one linear head per task, each on its own input."""

    def __init__(self, width: int, widths: tuple[int, ...], plan: Plan) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(Hidden(width, widths) for _ in plan.tasks)
        self.width = widths[-1] if widths else width
        self.linear = nn.ModuleList(nn.Linear(self.width, 1) for _ in plan.tasks)
        for linear in self.linear:
            assert isinstance(linear, nn.Linear)
            start_rare(linear)
        self.domain_bias = DomainBias(plan)

    def climb(self, inputs: list[Tensor]) -> list[Tensor]:
        """T inputs [B, width] -> T last hidden layers [B, self.width]."""
        return [tower(x) for tower, x in zip(self.hidden, inputs, strict=True)]

    def forward(self, hidden: list[Tensor], domain: Tensor) -> Tensor:
        """T last hidden layers, int64 [B] -> logits [B, T]."""
        logits = [head(x) for head, x in zip(self.linear, hidden, strict=True)]
        together: Tensor = torch.cat(logits, 1) + self.domain_bias(domain)
        return together


def start_rare(linear: nn.Linear) -> None:
    """Start a head at LOGIT_AT_START with small weights."""
    with torch.no_grad():
        linear.bias.fill_(LOGIT_AT_START)
        linear.weight.mul_(0.1)
