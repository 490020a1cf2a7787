"""A downstream team's model of one scenario: hashed fields, a way of transfer, a small MLP."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from downstream.published import Published
from downstream.scenario.fields import FieldRows
from downstream.transfer import LinearConcat, NonLinearAdapter, NoTransfer, TransferName

LOGIT_AT_START = -2.0
HIDDEN = (32, 16)

TRANSFERS: dict[TransferName, Callable[[int, int], nn.Module]] = {
    "none": lambda own, _: NoTransfer(own),
    "sum": LinearConcat,
    "concat": LinearConcat,
    "adapter": NonLinearAdapter,
}
"""Feature-level ways by name: (E, D) -> module. `sum` and `concat` differ in what is published to
them: UR for the one, a CR aggregate for the other."""


class ScenarioModel(nn.Module):
    """logit = MLP(transfer([mean of each field's embeddings], published vector)) + field biases."""

    def __init__(self, fields: int, buckets: int, transfer: nn.Module, *, dim: int) -> None:
        """`transfer` maps ([B, fields * dim], Published) to [B, transfer.width]."""
        super().__init__()
        self.fields, self.dim = fields, dim
        self.table = nn.EmbeddingBag(buckets, dim, mode="mean", include_last_offset=True)
        self.rates = nn.EmbeddingBag(buckets, 1, mode="mean", include_last_offset=True)
        nn.init.normal_(self.table.weight, std=0.01)
        nn.init.zeros_(self.rates.weight)
        self.transfer = transfer
        width, layers = int(transfer.width), []  # type: ignore[arg-type]
        for hidden in HIDDEN:
            layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU()]
            width = hidden
        last = nn.Linear(width, 1)
        self.mlp = nn.Sequential(*layers, last)
        with torch.no_grad():
            last.bias.fill_(LOGIT_AT_START)

    def forward(self, rows: FieldRows, published: Published) -> Tensor:
        """logits [B]"""
        codes, offsets = torch.from_numpy(rows.codes), torch.from_numpy(rows.offsets)
        own = self.table(codes, offsets).view(-1, self.fields * self.dim)
        first = self.rates(codes, offsets).view(-1, self.fields).sum(1)
        logits: Tensor = self.mlp(self.transfer(own, published)).squeeze(1) + first
        return logits
