"""Interactions of slots. LayerNorm and no BatchNorm: micro-batches of a stream are small and drift,
so batch statistics would make a prediction depend on its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Hidden(nn.Module):
    """Layers of Linear, LayerNorm, ReLU; `last_linear` leaves the ReLU off the last one."""

    def __init__(self, width: int, widths: Sequence[int], *, last_linear: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.norms = nn.ModuleList()
        for after in widths:
            self.layers.append(nn.Linear(width, after))
            self.norms.append(nn.LayerNorm(after))
            width = after
        self.width = width
        self.last_linear = last_linear

    def forward(self, x: Tensor) -> Tensor:
        """[B, width] -> [B, widths[-1]]"""
        last = len(self.layers) - 1
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = norm(layer(x))
            if i < last or not self.last_linear:
                x = torch.relu(x)
        return x


class CrossLayers(nn.Module):
    """DCNv2: x <- x0 * (W x + b) + x, explicit interactions of one degree more per layer."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(count))

    def forward(self, x0: Tensor) -> Tensor:
        """[B, width] -> [B, width]"""
        x = x0
        for layer in self.layers:
            x = torch.addcmul(x, x0, layer(x))
        return x


def pair_sum(fields: Tensor) -> Tensor:
    """Sum over all pairs of slots of their elementwise products (FM), [B, F, D] -> [B, D]."""
    return 0.5 * (fields.sum(1).square() - fields.square().sum(1))
