"""Nuisance heads of delayed feedback: how often a conversion is late, and what a silence means.

Two logits per task on the model's last hidden layer, cut off from it, so that they never bend the
model. They learn online from matured rows alone (`final` samples, whose labels and delays are
known); ES-DFM's released code trains them once, with labels from the future. Their weights lie
beside the model's and are durable with them.

    dp   P(y = 1 and delay > elapsed)           from every matured row
    tn   P(y = 0 | no conversion by elapsed)    from matured rows that had none by then
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.batch import EARLY, FINAL, Batch
from trainer.parts.interaction import Hidden

_WIDTH = 32
_LATE_AT_START, _SILENT_AT_START = -4.0, 4.0
"""Logits: few conversions are late, nearly every silence is a no, until the data says otherwise."""


@dataclass(frozen=True, slots=True)
class Nuisance:
    """What the heads say of a batch."""

    delayed: Tensor
    """dp [B, T]"""
    true_negative: Tensor
    """tn [B, T]"""
    early: Tensor
    """[B] 1 for an early sample: its positives came in time, a correction's came late."""


class NuisanceHeads(nn.Module):
    """(dp, tn) logits per task."""

    def __init__(self, widths: Sequence[int]) -> None:
        """`widths` [T] of each task's hidden layer; 0 = from the logit alone."""
        super().__init__()
        self.widths = tuple(widths)
        self.hidden = nn.ModuleList(Hidden(width + 1, (_WIDTH,)) for width in widths)
        self.heads = nn.ModuleList(nn.Linear(_WIDTH, 2) for _ in widths)
        for head in self.heads:
            assert isinstance(head, nn.Linear)
            with torch.no_grad():
                head.weight.mul_(0.1)
                head.bias.copy_(torch.tensor([_LATE_AT_START, _SILENT_AT_START]))

    def forward(self, logits: Tensor, hidden: list[Tensor] | None) -> Tensor:
        """[B, T] and T times [B, h] -> logits [B, T, 2] of (dp, tn)."""
        logits = logits.detach()
        found = []
        for t, (layer, head) in enumerate(zip(self.hidden, self.heads, strict=True)):
            inputs = [logits[:, t : t + 1]]
            if hidden is not None and self.widths[t]:
                inputs.append(hidden[t].detach())
            found.append(head(layer(torch.cat(inputs, 1))))
        return torch.stack(found, 1)


@dataclass(frozen=True, slots=True)
class Matured:
    """What matured rows of a batch say about delays; zeros in rows that are not `final`."""

    known: Tensor
    """[B, T] 1 where the row says something about the task."""
    silent: Tensor
    """[B, T] 1 where it does, and nothing had converted by `elapsed`."""
    late: Tensor
    """[B, T] 1 where it converted after `elapsed`."""


def matured(batch: Batch, elapsed_ms: int, device: torch.device) -> Matured:
    """From labels and delays of the final samples."""
    known = ((batch.state == FINAL) & batch.kept)[:, None] & (batch.mask > 0)
    positive = known & (batch.labels > 0)
    late = positive & (batch.delays > elapsed_ms)
    masks = (known, known & ~(positive & ~late), late)
    return Matured(*(torch.tensor(m, dtype=torch.float32, device=device) for m in masks))


def nuisance_of(heads_logits: Tensor, batch: Batch) -> Nuisance:
    """Probabilities for the loss's weights, from logits [B, T, 2]."""
    dp, tn = torch.sigmoid(heads_logits.detach()).unbind(2)
    early = torch.tensor(batch.state == EARLY, dtype=dp.dtype, device=dp.device)
    return Nuisance(dp, tn, early)


def nuisance_loss(heads_logits: Tensor, matured_rows: Matured) -> Tensor:
    """Scalar: BCE of both heads [B, T, 2], each a mean over the rows that say something."""
    dp, tn = heads_logits.unbind(2)
    known, silent, late = matured_rows.known, matured_rows.silent, matured_rows.late
    of_dp = functional.binary_cross_entropy_with_logits(dp, late, known, reduction="sum")
    of_tn = functional.binary_cross_entropy_with_logits(tn, 1.0 - late, silent, reduction="sum")
    return of_dp / known.sum().clamp(min=1) + of_tn / silent.sum().clamp(min=1)
