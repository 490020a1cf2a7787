"""What models are made of. LayerNorm and no BatchNorm: micro-batches of a stream are small and
drift, so batch statistics would make a prediction depend on its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.encoder import SideEncoder
from trainer.slots import Plan, Side
from trainer.tensors import BatchTensors, SideTensors

LOGIT_AT_START = -2.0


@dataclass(slots=True)
class Output:
    """What one forward pass gives."""

    logits: Tensor
    """[B, T]"""
    cross: Tensor | None
    """CR [B, C]; None for a model that has none."""


class Model(nn.Module):
    """A model over one set of rows. Subclasses say which representations they have."""

    def __init__(self, plan: Plan, dim: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {side: SideEncoder(side_plan, dim) for side, side_plan in plan.sides.items()}
        )
        self.taps: dict[str, Tensor] | None = None
        """Set to {} to collect what `tap` sees; None costs nothing."""

    @property
    def tower_dims(self) -> dict[Side, int]:
        """Width of UR ("user") and IR ("item"); empty for a model without towers."""
        return {}

    @property
    def cross_dim(self) -> int:
        """Width of CR; 0 for a model without one."""
        return 0

    def encode(self, side: Side, tensors: SideTensors, rows: Tensor) -> Tensor:
        """[B, S, D] of one side's slots."""
        encoded: Tensor = self.encoders[side](tensors, rows)
        return encoded

    def represent(self, side: Side, tensors: SideTensors, rows: Tensor) -> Tensor:
        """UR or IR [B, tower_dims[side]] from that side's features alone."""
        raise NotImplementedError(f"{type(self).__name__} has no {side} tower")

    def forward(self, batch: BatchTensors, rows: Tensor) -> Output:
        """Logits and CR from gathered rows [U, D]."""
        raise NotImplementedError

    def tap(self, name: str, tensor: Tensor) -> Tensor:
        """Let an analysis see `tensor`; returns it."""
        if self.taps is not None:
            self.taps[name] = tensor.detach()
        return tensor


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
            x = x0 * layer(x) + x
        return x


class FirstOrder(nn.Module):
    """The linear part of a factorisation machine: each slot's vector speaks for itself.

    It starts as the identity on the first T numbers of a vector, so that a row learns its own rate
    per task from its first gradient on, while the deep part still finds its way.
    """

    def __init__(self, dim: int, plan: Plan) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, len(plan.tasks), bias=False)
        nn.init.eye_(self.linear.weight)

    def forward(self, slots: Sequence[Tensor]) -> Tensor:
        """Sides' [B, S, D] -> [B, T]"""
        logits: Tensor = self.linear(torch.cat(list(slots), 1).sum(1))
        return logits


class Heads(nn.Module):
    """T logits from one hidden layer, with a bias per domain and task."""

    def __init__(self, width: int, plan: Plan) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(plan.tasks))
        with torch.no_grad():
            # Conversions are rare: from a rate of one half, a stream's first thousands of
            # impressions would only teach the bias.
            self.linear.bias.fill_(LOGIT_AT_START)
            self.linear.weight.mul_(0.1)
        self.domain_bias = nn.Embedding(1 + len(plan.domains), len(plan.tasks))
        nn.init.zeros_(self.domain_bias.weight)

    def forward(self, hidden: Tensor, domain: Tensor) -> Tensor:
        """[B, width], int64 [B] -> [B, T]"""
        logits: Tensor = self.linear(hidden) + self.domain_bias(domain)
        return logits
