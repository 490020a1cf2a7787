"""Running rates: what became of the impressions that each value was in, counted in its own row.

The set `rates` holds, per (slot, value), matured impressions and their conversions by task. A
sample's label is counted when it is final, and read for later impressions alone: read before write,
and never a label that had not matured. In the row, so that counts are admitted, evicted, committed
and expired with it. The rates, smoothed towards those of all, are inputs of a small network beside
the model, which starts at the prior logit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from embedding_store.layout import SetSpec
from trainer.batch import FINAL, Batch
from trainer.parts.head import LOGIT_AT_START
from trainer.slots import SIDES, Plan
from trainer.tensors import BatchTensors

RATES = "rates"
_PRIOR = 20.0
"""Impressions that the rate of all is worth beside a value's own."""
_COUNT_SCALE = 0.2
"""Of log(1 + impressions) as an input, so that it is about one."""


def rates_spec(tasks: int) -> SetSpec:
    """[impressions, conversions of each task]: plain sums, by steps of rate 1."""
    return SetSpec(dim=1 + tasks, optimizer="sgd", lr=1.0, init_scale=0.0)


def count_outcomes(batch: Batch, inverse: npt.NDArray[Any], distinct: int) -> npt.NDArray[Any]:
    """What the finals of a batch add to its rows, float32 [U, 1 + T].

    `inverse` [N] leads from the batch's keys to its U distinct ones. A sequence's entries were not
    shown, and an impression whose negatives were sampled out tells no rate: both count nothing.
    """
    counted = (batch.state == FINAL) & batch.kept
    outcome = np.concatenate([np.ones((len(batch), 1), np.float32), batch.labels], 1)
    outcome *= counted[:, None]
    said = []
    for side in SIDES:
        part = batch.parts[side]
        bags = part.lengths.reshape(len(part.plan.slots), part.rows)  # [S, B]
        of_key = np.repeat(np.tile(np.arange(part.rows), len(bags)), bags.ravel())  # [N_side]
        shown = np.repeat([slot.type != "sequence" for slot in part.plan.slots], bags.sum(1))
        said.append(outcome[of_key] * shown[:, None])
    added = np.concatenate(said)
    return np.stack(
        [np.bincount(inverse, added[:, c], distinct) for c in range(added.shape[1])], 1
    ).astype(np.float32)


class RunningRates(nn.Module):
    """Smoothed log-odds and counts of every slot -> what they add to the logits."""

    totals: Tensor

    def __init__(self, plan: Plan, hidden: int) -> None:
        super().__init__()
        tasks, slots = len(plan.tasks), len(plan.slots)
        self.register_buffer("totals", torch.zeros(1 + tasks, dtype=torch.float64))
        self.linear = nn.Parameter(torch.full((slots, tasks), 1.0 / slots))
        self.deep = nn.Sequential(nn.Linear(slots * (1 + tasks), hidden), nn.ReLU())
        self.out = nn.Linear(hidden, tasks)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def add(self, outcomes: Tensor) -> None:
        """Count [1 + T] matured impressions and conversions."""
        self.totals += outcomes.to(self.totals)

    def pooled(self, batch: BatchTensors, counts: Tensor) -> Tensor:
        """Gathered counts [U, 1 + T] -> [B, F, 1 + T]: weighted means of a slot's values."""
        sides = []
        for part in (batch.sides[side] for side in SIDES):
            means = nn.functional.embedding_bag(
                part.indices, counts, part.offsets, mode="sum", per_sample_weights=part.weights
            )
            sides.append(means.view(-1, part.rows, counts.shape[1]).transpose(0, 1))
        return torch.cat(sides, 1)

    def forward(self, batch: BatchTensors, counts: Tensor) -> Tensor:
        """A batch's gathered counts [U, 1 + T] -> [B, T]."""
        counts = self.pooled(batch, counts)
        shown, hits = counts[..., :1], counts[..., 1:]
        rate = (self.totals[1:] + 0.5) / (self.totals[0] + 1.0)  # [T]
        start = torch.where(self.totals[0] > 0, torch.logit(rate), LOGIT_AT_START).float()
        prior = torch.sigmoid(start)
        own = (hits + _PRIOR * prior) / (shown + _PRIOR)  # [B, F, T]
        apart = torch.logit(own.clamp(1e-6, 1 - 1e-6)) - start
        inputs = torch.cat([_COUNT_SCALE * torch.log1p(shown), apart], 2).flatten(1)
        said: Tensor = (apart * self.linear).sum(1) + self.out(self.deep(inputs))
        return said + (start - LOGIT_AT_START)
