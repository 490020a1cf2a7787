"""RankUp (arXiv 2604.17878): RankMixer's mixer, pre-norm and SwiGLU, over tokens that keep their
rank: slots grouped by a random permutation, several embedding sets, a global token, a crossed
token of pretrained user and item vectors, and one token per task.

The permutation is drawn once from its own seed and saved with the weights: per-token layers need
tokens that stay what they are. The pretrained vectors are a small two-tower model of our own
(set `retrieval`), trained beside by the same labels; no gradient of the ranking reaches it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from settings.config import ModelConfig
from settings.models import rankup_groups
from trainer.models.model import Model, Output, Rows
from trainer.parts.head import LOGIT_AT_START, Towers
from trainer.parts.interaction import CrossLayers, Hidden, pair_sum
from trainer.parts.mixer import MixerBlock
from trainer.parts.sets import RowSets
from trainer.slots import ITEM_TABLE, Plan
from trainer.tensors import BatchTensors

RETRIEVAL = "retrieval"


class GlobalToken(nn.Module):
    """All slots pooled, then MLP, FM or DCNv2: [B, F, W] -> [B, D]."""

    def __init__(self, kind: str, width: int, dim: int) -> None:
        super().__init__()
        self.kind = kind
        self.inner: nn.Module = nn.Identity()
        if kind == "dcn":
            self.inner = CrossLayers(width, 1)
        elif kind == "mlp":
            self.inner = Hidden(width, (width,))
        self.project = nn.Linear(width, dim)

    def forward(self, fields: Tensor) -> Tensor:
        """See the class."""
        pooled = pair_sum(fields) if self.kind == "fm" else fields.mean(1)
        token: Tensor = self.project(self.inner(pooled))
        return token


class RankUp(Model):
    """Sets: `table:K` in every slot (or fewer by `tables`), `retrieval` of user and item."""

    permutation: Tensor

    @classmethod
    def row_sets(cls, plan: Plan, config: ModelConfig) -> RowSets:
        """Which tables a slot has is a choice per slot."""
        options = config.rankup
        names = {slot.name for slot in plan.slots}
        dims = {f"table:{k}": config.embedding_dim for k in range(options.sets)}
        only = {
            f"table:{k}": frozenset(n for n in names if k < options.tables.get(n, options.sets))
            for k in range(options.sets)
        }
        if options.cross_dim:
            dims[RETRIEVAL] = options.cross_dim
            only[RETRIEVAL] = frozenset({"user_id", ITEM_TABLE})
        return RowSets(dims, only)

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config)
        options, fields, tasks = config.rankup, len(plan.slots), len(plan.tasks)
        self.tables = [f"table:{k}" for k in range(options.sets)]
        width = config.embedding_dim * options.sets
        groups = rankup_groups(options, fields, tasks)
        draw = torch.Generator().manual_seed(options.permutation_seed)
        self.register_buffer("permutation", torch.randperm(fields, generator=draw))
        self.sizes = [fields // groups + (g < fields % groups) for g in range(groups)]
        self.project = nn.ModuleList(nn.Linear(n * width, options.token_dim) for n in self.sizes)
        self.world: GlobalToken | None = None
        if options.global_by != "none":
            self.world = GlobalToken(options.global_by, width, options.token_dim)
        names = [slot.name for slot in plan.slots]
        self.pair_at = [names.index("user_id"), names.index(ITEM_TABLE)]
        self.crossed: nn.Linear | None = None
        if options.cross_dim:
            self.crossed = nn.Linear(options.cross_dim, options.token_dim)
            self.retrieval = nn.Parameter(torch.ones(tasks, options.cross_dim))
            self.retrieval_bias = nn.Parameter(torch.full((tasks,), LOGIT_AT_START))
        self.task_tokens = nn.Parameter(torch.randn(tasks, options.token_dim) * 0.1)
        count = groups + (self.world is not None) + (self.crossed is not None) + tasks
        self.blocks = nn.ModuleList(
            MixerBlock(count, options.token_dim, ratio=options.ratio, pre_norm=True)
            for _ in range(options.layers)
        )
        self.width = options.token_dim
        self.towers = Towers(2 * options.token_dim, options.tower_dims, plan)

    @property
    def cross_dim(self) -> int:
        """CR is the mean token after the last block."""
        return self.width

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Logits [B, T], CR [B, D], and the two-tower model's logits as auxiliary ones."""
        slots = self.slots(batch, rows)
        fields = torch.cat([slots[name] for name in self.tables], 2)  # [B, F, K * d]
        shuffled = torch.split(fields[:, self.permutation], self.sizes, 1)
        tokens = [p(g.flatten(1)) for p, g in zip(self.project, shuffled, strict=True)]
        if self.world is not None:
            tokens.append(self.world(fields))
        auxiliary = None
        if self.crossed is not None:
            user, item = slots[RETRIEVAL][:, self.pair_at].unbind(1)
            pair = user * item  # [B, d_retrieval]
            auxiliary = pair @ self.retrieval.T + self.retrieval_bias
            tokens.append(self.crossed(pair.detach()))
        own = self.task_tokens.expand(fields.shape[0], -1, -1)  # [B, T, D]
        x = self.tap("tokens", torch.cat([torch.stack(tokens, 1), own], 1))
        for n, block in enumerate(self.blocks):
            x, _ = block(x, self.tap, str(n))
        cr = self.tap("cr", x.mean(1))
        tasks = x[:, -own.shape[1] :].unbind(1)
        hidden = self.towers.climb([torch.cat([task, cr], 1) for task in tasks])
        logits = self.towers(hidden, batch.domain) + self.first_order(slots)
        return Output(logits, cr, hidden, auxiliary=auxiliary)
