"""GwPFM, group-weighted part-aware factorisation machine (arXiv 2403.00793): FFM with one
sub-embedding per group of slots instead of one per slot. Groups are the sides.

After the pairs an MLP, as in its use as an expert; the linear part is [model] first_order.
"""

from __future__ import annotations

from settings.config import ModelConfig
from trainer.models.model import Model, Output, Rows
from trainer.models.multi_embedding import side_groups
from trainer.parts.head import Heads
from trainer.parts.interaction import GroupPairs, Hidden
from trainer.parts.sets import SHARED, RowSets
from trainer.slots import SIDES, Plan
from trainer.tensors import BatchTensors


class Gwpfm(Model):
    """One set, as wide as all the sub-embeddings."""

    @classmethod
    def row_sets(cls, plan: Plan, config: ModelConfig) -> RowSets:
        """A sub-embedding of `embedding_dim` toward each side."""
        del plan
        return RowSets({SHARED: config.embedding_dim * len(SIDES)})

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config)
        self.pairs = GroupPairs(side_groups(plan), config.embedding_dim)
        self.deep = Hidden(self.pairs.width, config.gwpfm.hidden_dims)
        self.heads = Heads(self.deep.width, plan)

    @property
    def cross_dim(self) -> int:
        """CR is as wide as the MLP's last layer."""
        return self.deep.width

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Logits [B, T] and CR [B, C]."""
        slots = self.slots(batch, rows)
        phi = self.tap("pairs", self.pairs(slots[SHARED]))  # [B, d]
        cr = self.tap("cr", self.deep(phi))
        logits = self.heads(cr, batch.domain) + self.first_order(slots)
        return Output(logits, cr, [cr] * logits.shape[1])
