"""Taps: let an analysis see a layer, and what is measured of it. Free when nobody looks."""

from __future__ import annotations

import torch
from torch import Tensor


class Taps:
    """Collects named tensors while `seen` is a dict; None costs nothing."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] | None = None

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Show `tensor` (detached) under `name`; returns it as it is."""
        if self.seen is not None:
            self.seen[name] = tensor.detach()
        return tensor


def effective_rank(tokens: Tensor) -> Tensor:
    """exp of the entropy of each sample's singular values, [B, T, D] -> [B]; at most min(T, D)."""
    values = torch.linalg.svdvals(tokens.float())  # [B, min(T, D)]
    p = values / values.sum(1, keepdim=True).clamp(min=1e-12)
    return torch.exp(-(p * torch.log(p.clamp(min=1e-12))).sum(1))
