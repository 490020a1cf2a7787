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
        return self.every(x)[-1]

    def every(self, x: Tensor) -> list[Tensor]:
        """The input [B, width] and each layer's activation [B, widths[i]]."""
        seen, last = [x], len(self.layers) - 1
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = norm(layer(x))
            if i < last or not self.last_linear:
                x = torch.relu(x)
            seen.append(x)
        return seen


class CrossLayers(nn.Module):
    """DCNv2: x <- x0 * (W x + b) + x, explicit interactions of one degree more per layer."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(count))

    def forward(self, x0: Tensor) -> Tensor:
        """[B, width] -> [B, width]"""
        return self.every(x0)[-1]

    def every(self, x0: Tensor) -> list[Tensor]:
        """The input and each layer's output, all [B, width]."""
        seen = [x0]
        for layer in self.layers:
            seen.append(torch.addcmul(seen[-1], x0, layer(seen[-1])))
        return seen


def pair_sum(fields: Tensor) -> Tensor:
    """Sum over all pairs of slots of their elementwise products (FM), [B, F, D] -> [B, D]."""
    return 0.5 * (fields.sum(1).square() - fields.square().sum(1))


class InnerProducts(nn.Module):
    """IPNN: the slots beside all pairs' inner products, [B, F, D] -> [B, F * D + F (F - 1) / 2]."""

    pairs: Tensor

    def __init__(self, fields: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("pairs", torch.triu_indices(fields, fields, 1), persistent=False)
        self.width = fields * dim + self.pairs.shape[1]

    def forward(self, fields: Tensor) -> Tensor:
        """See the class."""
        products = torch.bmm(fields, fields.transpose(1, 2))  # [B, F, F]
        return torch.cat([fields.flatten(1), products[:, self.pairs[0], self.pairs[1]]], 1)


class GroupPairs(nn.Module):
    """GwPFM: every slot has one sub-embedding per group of slots, and each pair of slots meets in
    the sub-embeddings they have for each other's group.

    Phi = sum over pairs i < j of v_i^(group j) * v_j^(group i) * R[group i, group j], computed from
    per-group sums in O(F G d) instead of O(F^2 d).
    """

    one_hot: Tensor

    def __init__(self, group_of: Sequence[int], dim: int) -> None:
        super().__init__()
        count = max(group_of) + 1
        one_hot = nn.functional.one_hot(torch.tensor(group_of), count).float()  # [F, G]
        self.register_buffer("one_hot", one_hot, persistent=False)
        self.relation = nn.Parameter(torch.ones(count, count, dim))
        """R; only a <= b is read."""
        self.width = dim

    def forward(self, fields: Tensor) -> Tensor:
        """[B, F, G * d] -> Phi [B, d]"""
        count, dim = self.relation.shape[1:]
        toward = fields.view(fields.shape[0], fields.shape[1], count, dim)  # v_i^(group b)
        sums = torch.einsum("fa,zfbd->zabd", self.one_hot, toward)  # S[a, b]
        products = sums * sums.transpose(1, 2)  # S[a, b] * S[b, a]
        own = torch.einsum("fa,zfad->zad", self.one_hot, toward.square())  # of pairs i = i
        upper = torch.triu(torch.ones(count, count, device=fields.device), 1)
        across = (products * (self.relation * upper.unsqueeze(2))).sum((1, 2))
        inside = 0.5 * (torch.diagonal(products, 0, 1, 2).transpose(1, 2) - own)  # [B, G, d]
        return across + (inside * torch.diagonal(self.relation, 0, 0, 1).T).sum(1)


class Interaction(nn.Module):
    """One set's slots through one kind of interaction, then an MLP: [B, F, D] -> [B, h].

    The MLP's nonlinearity is what keeps several sets from collapsing into one.
    """

    def __init__(
        self, kind: str, group_of: Sequence[int], dim: int, *, hidden: Sequence[int], cross: int
    ) -> None:
        super().__init__()
        self.kind, fields = kind, len(group_of)
        self.inner: nn.Module
        if kind == "dcn":
            self.inner, width = CrossLayers(fields * dim, cross), fields * dim
        elif kind == "ipnn":
            self.inner = InnerProducts(fields, dim)
            width = self.inner.width
        elif kind == "gwpfm":
            self.inner, width = GroupPairs(group_of, dim), dim
        else:
            self.inner, width = nn.Identity(), dim if kind == "fm" else fields * dim
        self.mlp = Hidden(width, hidden)
        self.width = self.mlp.width

    @staticmethod
    def set_width(kind: str, dim: int, groups: int) -> int:
        """How wide a slot's vector must be for sub-embeddings of width `dim`."""
        return dim * groups if kind == "gwpfm" else dim

    def forward(self, fields: Tensor) -> Tensor:
        """See the class; [B, F, G * d] for gwpfm."""
        if self.kind == "fm":
            fields = pair_sum(fields)
        elif self.kind in ("dcn", "mlp"):
            fields = fields.flatten(1)
        hidden: Tensor = self.mlp(self.inner(fields))
        return hidden
