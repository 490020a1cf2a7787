"""How sure a logit is: a Bayesian last layer, or heads that saw different samples of the stream."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional

F32 = npt.NDArray[np.float32]


class Laplace(nn.Module):
    """Diagonal Laplace approximation of each task's last linear layer.

    The precision of a weight grows by the sum of p (1 - p) h^2 over the rows seen; the variance of
    a logit is the sum of h^2 / precision.
    """

    precision: Tensor

    def __init__(self, tasks: int, width: int, prior: float) -> None:
        super().__init__()
        self.register_buffer("precision", torch.full((tasks, width), prior))

    def deviation(self, hidden: list[Tensor]) -> Tensor:
        """T times [B, h] -> standard deviation of each logit [B, T]."""
        each = [(h.square() / p).sum(1) for h, p in zip(hidden, self.precision, strict=True)]
        return torch.stack(each, 1).sqrt()

    def observe(self, hidden: list[Tensor], p: Tensor, told: Tensor) -> None:
        """Learn of rows where `told` [B, T] is 1, predicted as `p` [B, T]."""
        weight = p * (1.0 - p) * told
        for t, h in enumerate(hidden):
            self.precision[t] += (weight[:, t : t + 1] * h.square()).sum(0)


class EnsembleHeads(nn.Module):
    """E linear heads per task on the model's last hidden layer, each trained on an own bootstrap of
    the stream; the trunk is not trained by them. Their spread is the uncertainty."""

    def __init__(self, tasks: int, width: int, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(tasks, width, heads) * width**-0.5)
        self.bias = nn.Parameter(torch.full((tasks, heads), -2.0))

    def logits(self, hidden: list[Tensor]) -> Tensor:
        """T times [B, h] -> [B, T, E]"""
        stacked = torch.stack(hidden, 1).detach()  # [B, T, h]
        return torch.einsum("bth,the->bte", stacked, self.weight) + self.bias

    def deviation(self, hidden: list[Tensor]) -> Tensor:
        """[B, T]"""
        return self.logits(hidden).std(2)

    def loss(
        self, hidden: list[Tensor], labels: Tensor, told: Tensor, impressions: list[bytes]
    ) -> Tensor:
        """Each head's cross entropy over its own bootstrap, summed."""
        logits = self.logits(hidden)
        counts = bootstrap_weights(impressions, logits.shape[2])
        weight = torch.as_tensor(counts, device=logits.device).unsqueeze(1) * told.unsqueeze(2)
        every = labels.unsqueeze(2).expand_as(logits)
        each = functional.binary_cross_entropy_with_logits(logits, every, reduction="none")
        return (each * weight).sum() / told.sum().clamp(min=1.0)


def standard_normals(impressions: list[bytes], columns: int) -> F32:
    """Normal draws [B, columns] that depend on the impression's id alone (Box-Muller)."""
    draws = np.empty((len(impressions), columns, 2), np.float64)
    for b, id_ in enumerate(impressions):
        for c in range(columns):
            bits = xxhash.xxh3_64_intdigest(id_, seed=1000 + c)
            draws[b, c] = (bits >> 32) + 0.5, (bits & 0xFFFFFFFF) + 0.5
    one, other = np.moveaxis(draws / 2**32, 2, 0)
    normals = np.sqrt(-2.0 * np.log(one)) * np.cos(2.0 * math.pi * other)
    return np.asarray(normals, np.float32)


def bootstrap_weights(impressions: list[bytes], heads: int) -> F32:
    """Poisson(1) counts [B, heads] from each impression's id."""
    limits = np.asarray([0.36787944, 0.73575888, 0.91969860, 0.98101184, 0.99634015])
    draws = [
        xxhash.xxh3_64_intdigest(id_, seed=h) / 2**64 for id_ in impressions for h in range(heads)
    ]
    counts = np.searchsorted(limits, np.asarray(draws)).astype(np.float32)
    return counts.reshape(len(impressions), heads)
