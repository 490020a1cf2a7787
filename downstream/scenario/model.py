"""A downstream team's model of one scenario: hashed fields, a way of transfer, a small MLP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from downstream.pretrained import MixTower
from downstream.published import Published, Reads
from downstream.scenario.fields import FieldRows
from downstream.transfer import (
    Direct,
    IsomorphicInteraction,
    LinearConcat,
    NonLinearAdapter,
    NoTransfer,
    RetrievalScore,
    TransferName,
)

LOGIT_AT_START = -2.0
HIDDEN = (32, 16)

READS: Mapping[TransferName, Reads] = {
    "none": "user",
    "sum": "user",
    "concat": "crosses",
    "adapter": "crosses",
    "iim": "towers",
    "retrieval": "towers",
}
"""What each way of transfer reads. `sum` and `concat` are one module: SUM has the user's UR."""
_FEATURE_LEVEL: Mapping[TransferName, Callable[[int, int], nn.Module]] = {
    "none": lambda own, _: NoTransfer(own),
    "sum": LinearConcat,
    "concat": LinearConcat,
    "adapter": NonLinearAdapter,
}
TRANSFERS: tuple[TransferName, ...] = (*_FEATURE_LEVEL, "iim", "retrieval")


@dataclass(frozen=True, slots=True)
class Shape:
    """F fields of D numbers each, over hashed codes."""

    fields: int
    buckets: int
    dim: int = 8


def scenario_model(
    transfer: TransferName,
    shape: Shape,
    dims: Sequence[int],
    *,
    tower: MixTower | None = None,
    frozen: bool = False,
    task: int = 0,
) -> nn.Module:
    """A model of ([B, F] codes, Published) -> logits [B]; `dims` are the widths of what it reads.

    `iim` takes the upstream's mix `tower`, and its head of `task` (by place). Raises ValueError
    without one, and for widths that do not fit.
    """
    own, dim = shape.fields * shape.dim, sum(dims)
    if transfer == "retrieval":
        return RetrievalModel(dims)
    if transfer != "iim":
        reads = 0 if transfer == "none" else dim
        return ScenarioModel(shape, _FEATURE_LEVEL[transfer](own, dim), reads)
    if tower is None:
        raise ValueError(
            "transfer iim: expected the upstream's weights, got none: `headwater export DIR "
            "--weights` writes them"
        )
    module = IsomorphicInteraction(
        own,
        dim,
        wide=tower.wide,
        cross_layers=tower.cross_layers,
        mix_dims=tower.mix_dims,
        frozen=frozen,
    )
    module.warm_start(tower.weights, task)
    return ScenarioModel(shape, module, dim)


class ScenarioModel(nn.Module):
    """logit = MLP(transfer([mean of each field's embeddings], published vector)) + field biases
    + what the vector says by itself.

    The MLP says nothing at the start: of few labels its random layers would be most of the answer.
    """

    def __init__(self, shape: Shape, transfer: nn.Module, reads: int) -> None:
        """`transfer` maps ([B, fields * dim], Published) to [B, transfer.width]; `reads`: width of
        the published vectors, 0 = none."""
        super().__init__()
        self.fields, self.dim = shape.fields, shape.dim
        self.table = nn.EmbeddingBag(
            shape.buckets, shape.dim, mode="mean", include_last_offset=True
        )
        self.rates = nn.EmbeddingBag(shape.buckets, 1, mode="mean", include_last_offset=True)
        nn.init.normal_(self.table.weight, std=0.01)
        nn.init.zeros_(self.rates.weight)
        self.transfer = transfer
        self.direct = Direct(reads) if reads else None
        width, layers = int(transfer.width), []  # type: ignore[arg-type]
        for hidden in HIDDEN:
            layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU()]
            width = hidden
        last = nn.Linear(width, 1)
        self.mlp = nn.Sequential(*layers, last)
        with torch.no_grad():
            last.weight.zero_()
            last.bias.fill_(LOGIT_AT_START)

    def forward(self, rows: FieldRows, published: Published) -> Tensor:
        """logits [B]"""
        codes, offsets = torch.from_numpy(rows.codes), torch.from_numpy(rows.offsets)
        own = self.table(codes, offsets).view(-1, self.fields * self.dim)
        first = self.rates(codes, offsets).view(-1, self.fields).sum(1)
        carried = self.transfer(own, published)
        logits: Tensor = self.mlp(carried).squeeze(1) + first
        if self.direct is not None:
            logits = logits + self.direct(published)
        if isinstance(self.transfer, IsomorphicInteraction):
            logits = logits + self.transfer.says(carried)
        return logits


class RetrievalModel(nn.Module):
    """Candidates by published vectors alone: no own field is read."""

    def __init__(self, dims: Sequence[int]) -> None:
        """`dims`: widths of the user's and the item's vector. Raises ValueError for others."""
        super().__init__()
        if len(dims) != 2:
            raise ValueError(
                f"retrieval: expected the widths of a user's and an item's vector, got {dims}: "
                "it reads towers (UR, IR) or cross_item (CR, IR)"
            )
        self.score = RetrievalScore(*dims)
        self.bias = nn.Parameter(torch.tensor(LOGIT_AT_START))

    def forward(self, rows: FieldRows, published: Published) -> Tensor:
        """logits [B]"""
        del rows
        logits: Tensor = self.score(published) + self.bias
        return logits
