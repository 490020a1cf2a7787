"""Terms of the loss beside cross entropy."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def expert_covariance(outputs: Tensor) -> Tensor:
    """Crocodile's covariance loss over M experts' outputs [N, M, d]: a scalar.

    Sum over pairs of different experts of the entrywise L1 norm of their cross-covariance, over
    d^2. Divided by N, unlike the paper's, so that its weight does not depend on the batch; an
    expert's own covariance is left out, for it would shrink the variance itself.
    """
    n, count, width = outputs.shape
    centred = (outputs - outputs.mean(0, keepdim=True)).reshape(n, count * width)
    covariance = (centred.T @ centred / n).view(count, width, count, width)
    pairs = torch.ones(count, count, device=outputs.device).triu(1)  # p < q
    return (covariance.abs().sum((1, 3)) * pairs).sum() / width**2


def ranking_loss(logits: Tensor, positive: Tensor, negative: Tensor, pairs_max: int) -> Tensor:
    """Mean over pairs (i positive, j negative) of a batch of softplus(-(z_i - z_j)): a scalar.

    Logits [B], bool [B] each. 0 without a pair. Beyond `pairs_max`, rows of the larger class are
    taken at even distances, so that the same batch always gives the same pairs.
    """
    ahead, behind = logits[positive], logits[negative]
    if not len(ahead) or not len(behind):
        return logits.sum() * 0.0
    ahead = _thinned(ahead, max(1, pairs_max // len(behind), int(pairs_max**0.5)))
    behind = _thinned(behind, max(1, pairs_max // len(ahead)))
    return nn.functional.softplus(behind.unsqueeze(0) - ahead.unsqueeze(1)).mean()


def _thinned(values: Tensor, count: int) -> Tensor:
    if len(values) <= count:
        return values
    return values[torch.linspace(0, len(values) - 1, count, device=values.device).long()]


class Platt(nn.Module):
    """Calibration P z + Q per column, P > 0 so that order survives; the identity at the start."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.log_p = nn.Parameter(torch.zeros(columns))
        self.q = nn.Parameter(torch.zeros(columns))

    def forward(self, logits: Tensor) -> Tensor:
        """[B, columns] -> [B, columns]"""
        return logits * torch.exp(self.log_p) + self.q

    def loss(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Cross entropy of the calibrated logits, which it does not train: only P and Q learn."""
        return masked_entropy(self(logits.detach()), labels, mask)


def masked_entropy(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Binary cross entropy with (soft) labels, mean over the mask; all [B, T]."""
    each = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (each * mask).sum() / mask.sum().clamp(min=1.0)


def level_loss(scores: Tensor, first: Tensor, second: Tensor, pairs: Tensor, b: Tensor) -> Tensor:
    """CrossDistil's ranking of ++ > +- > -+ > -- for a task with labels `first`, `second` the other
    task's: mean over pairs int64 [P, 2] of rows whose levels differ.

    Across the task's own label a pair weighs 1; within its positives b[0], its negatives b[1].
    """
    i, j = pairs.unbind(1)
    level = 2 * first + second
    sign = torch.sign(level[i] - level[j])
    within = torch.where(first[i] > 0, b[0], b[1])
    weight = torch.where(first[i] != first[j], torch.ones_like(within), within) * sign.abs()
    each = nn.functional.softplus(-sign * (scores[i] - scores[j]))
    return (each * weight).sum() / weight.sum().clamp(min=1.0)
