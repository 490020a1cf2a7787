"""LFM4Ads upstream (arXiv 2508.14948): user tower -> UR, item tower -> IR, mix tower -> CR.

The mix tower sees UR, IR, the context slots and, per sequence, the interest in this very item. The
towers see their own side alone, so UR and IR can be computed for one entity without the other. CR
is the penultimate activation of the mix tower: the paper's best layer to transfer. A first-order
term stands beside the cross layers: without it, ids learn their rate only through the deep part,
which takes a stream's first hours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from settings.config import ModelConfig
from trainer.encoder import attend
from trainer.models.model import Model, Output, Rows
from trainer.parts.head import Heads
from trainer.parts.interaction import CrossLayers, Hidden
from trainer.parts.sets import SHARED
from trainer.slots import ITEM_TABLE, SIDES, Plan, Side
from trainer.tensors import BatchTensors, SideTensors


class Lfm4Ads(Model):
    """Triple tower with explicit cross layers before the mix tower's MLP."""

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        dim = config.embedding_dim
        super().__init__(plan, config)
        self.towers = nn.ModuleDict(
            {
                side: Hidden(len(plan.sides[side].slots) * dim, config.tower_dims, last_linear=True)
                for side in ("user", "item")
            }
        )
        sequences = sum(len(side.of_type("sequence")) for side in plan.sides.values())
        wide = 2 * config.tower_dims[-1] + (len(plan.sides["context"].slots) + sequences) * dim
        self.norm = nn.LayerNorm(wide)
        self.cross = CrossLayers(wide, config.cross_layers)
        self.mix = Hidden(wide, config.mix_dims)
        self.heads = Heads(self.mix.width, plan)
        names = [slot.name for slot in plan.sides["item"].slots]
        self.target_at = names.index(ITEM_TABLE)

    @property
    def tower_dims(self) -> dict[Side, int]:
        """UR and IR are as wide as the towers' last layer."""
        return {"user": self._tower("user").width, "item": self._tower("item").width}

    @property
    def cross_dim(self) -> int:
        """CR is as wide as the mix tower's last hidden layer."""
        return self.mix.width

    def represent(self, side: Side, tensors: SideTensors, rows: Rows) -> Tensor:
        """UR or IR [B, tower_dims[side]]."""
        return self._climb(side, self.slots.side(side, tensors, rows)[SHARED])

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Logits [B, T] and CR [B, C]."""
        encoded = {side: self.slots.side(side, batch.sides[side], rows)[SHARED] for side in SIDES}
        target = encoded["item"][:, self.target_at]  # [B, D]
        interests = [
            attend(sequence, target, rows[SHARED])
            for side in SIDES
            for sequence in batch.sides[side].sequences
        ]
        user = self.tap("ur", self._climb("user", encoded["user"]))
        item = self.tap("ir", self._climb("item", encoded["item"]))
        x0 = self.norm(torch.cat([user, item, encoded["context"].flatten(1), *interests], 1))
        crossed = self.tap("cross", self.cross(x0))
        cr = self.tap("cr", self.mix(crossed))
        first = self.first_order({SHARED: torch.cat([encoded[side] for side in SIDES], 1)})
        hidden = [cr] * self.heads.linear.out_features
        return Output(self.heads(cr, batch.domain) + first, cr, hidden)

    def _tower(self, side: Side) -> Hidden:
        tower = self.towers[side]
        assert isinstance(tower, Hidden)
        return tower

    def _climb(self, side: Side, encoded: Tensor) -> Tensor:
        """[B, S, D] -> [B, tower width]"""
        climbed: Tensor = self._tower(side)(encoded.flatten(1))
        return climbed
