"""LFM4Ads upstream (arXiv 2508.14948): user tower -> UR, item tower -> IR, mix tower -> CR.

The mix tower sees UR, IR, the context slots and, per sequence, the interest in this very item. The
towers see their own side alone, so UR and IR can be computed for one entity without the other.

The mix tower's MLP has an ad branch and, with `ad_domains`, a content branch for the samples of
other domains; every domain has heads of its own. CR is an activation of the ad branch, for every
sample: by default the penultimate one, the paper's best layer to transfer. All its candidates are
tapped as `cr:NAME`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from settings.config import ModelConfig
from settings.models import ALL_LAYERS, cr_layers
from trainer.encoder import attend
from trainer.models.model import Model, Output, Rows
from trainer.parts.head import Heads
from trainer.parts.interaction import CrossLayers, Hidden
from trainer.parts.sets import SHARED
from trainer.slots import ITEM_TABLE, SIDES, Plan, Side
from trainer.tensors import BatchTensors, SideTensors


class Lfm4Ads(Model):
    """Triple tower with explicit cross layers before the mix tower's MLP."""

    is_ad: Tensor

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
        ads = set(config.lfm4ads.ad_domains)
        self.content = Hidden(wide, config.mix_dims) if ads else None
        is_ad = torch.tensor([not ads, *(d in ads for d in plan.domains)])
        self.register_buffer("is_ad", is_ad, persistent=False)
        self.heads = Heads(self.mix.width, plan, by_domain=True)
        self.layers = cr_layers(config)
        self.layer = config.lfm4ads.cr_layer or self.layers[-1]
        self.wide = wide
        names = [slot.name for slot in plan.sides["item"].slots]
        self.target_at = names.index(ITEM_TABLE)

    @property
    def tower_dims(self) -> dict[Side, int]:
        """UR and IR are as wide as the towers' last layer."""
        return {"user": self._tower("user").width, "item": self._tower("item").width}

    @property
    def cross_dim(self) -> int:
        """CR is as wide as the layer it is taken from, or as all of them side by side."""
        if self.layer == ALL_LAYERS:
            return sum(map(self._width, self.layers))
        return self._width(self.layer)

    def _width(self, layer: str) -> int:
        if not layer.startswith("mix"):
            return self.wide
        linear = self.mix.layers[int(layer.removeprefix("mix")) - 1]
        assert isinstance(linear, nn.Linear)
        return linear.out_features

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
        crossed = self.cross.every(x0)
        self.tap("cross", crossed[-1])
        ad = self.mix.every(crossed[-1])
        candidates = dict(zip(self.layers, [*crossed, *ad[1:]], strict=True))
        for name, activation in candidates.items():
            self.tap(f"cr:{name}", activation)
        last = ad[-1]
        if self.content is not None:
            is_ad = self.is_ad[batch.domain].unsqueeze(1)
            last = torch.where(is_ad, last, self.content(crossed[-1]))
        if self.layer == ALL_LAYERS:
            candidates[ALL_LAYERS] = torch.cat(list(candidates.values()), 1)
        cr = self.tap("cr", candidates[self.layer])
        first = self.first_order({SHARED: torch.cat([encoded[side] for side in SIDES], 1)})
        logits = self.heads(last, batch.domain) + first
        return Output(logits, cr, [last] * logits.shape[1])

    def _tower(self, side: Side) -> Hidden:
        tower = self.towers[side]
        assert isinstance(tower, Hidden)
        return tower

    def _climb(self, side: Side, encoded: Tensor) -> Tensor:
        """[B, S, D] -> [B, tower width]"""
        climbed: Tensor = self._tower(side)(encoded.flatten(1))
        return climbed
