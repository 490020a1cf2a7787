"""RankMixer (arXiv 2507.15551): slots cut into tokens, mixed without parameters, and a feed-forward
layer of each token's own; with `experts`, a sparse mixture of them under ReLU routing.

Dense training with sparse serving by a second router is not built: what is trained is served.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from settings.config import ModelConfig
from settings.models import token_count
from trainer.models.model import Model, Output, Rows
from trainer.parts.head import Towers
from trainer.parts.mixer import MixerBlock, PerToken
from trainer.parts.sets import SHARED
from trainer.slots import Plan
from trainer.tensors import BatchTensors


class RankMixer(Model):
    """CR is the mean token after the last block."""

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config)
        options, width = config.rankmixer, len(plan.slots) * config.embedding_dim
        self.tokens = token_count(options, len(plan.slots))
        self.slice = -(-width // self.tokens)  # the last slice is padded with zeros
        self.padding = self.tokens * self.slice - width
        self.project = PerToken(self.tokens, self.slice, options.token_dim)
        self.blocks = nn.ModuleList(
            MixerBlock(self.tokens, options.token_dim, ratio=options.ratio, experts=options.experts)
            for _ in range(options.layers)
        )
        self.width = options.token_dim
        self.router_l1 = options.router_l1
        self.towers = Towers(options.token_dim, options.tower_dims, plan)

    @property
    def cross_dim(self) -> int:
        """CR is as wide as a token."""
        return self.width

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Logits [B, T], CR [B, D], and the routers' penalty."""
        slots = self.slots(batch, rows)
        flat = nn.functional.pad(slots[SHARED].flatten(1), (0, self.padding))
        x = self.project(flat.view(flat.shape[0], self.tokens, self.slice))  # [B, T, D]
        x = self.tap("tokens", x)
        penalties: list[Tensor] = []
        for n, block in enumerate(self.blocks):
            x, gates = block(x, self.tap, str(n))
            if gates is not None:
                penalties.append(self.tap(f"router:{n}", gates).sum((1, 2)).mean())
        cr = self.tap("cr", x.mean(1))
        hidden = self.towers.climb([cr] * len(self.towers.linear))
        logits = self.towers(hidden, batch.domain) + self.first_order(slots)
        terms = {}
        if penalties:
            terms["router"] = self.router_l1 * torch.stack(penalties).sum()
        return Output(logits, cr, hidden, terms)
