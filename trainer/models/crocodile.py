"""Crocodile (arXiv 2405.12706): M embedding sets, each with its own expert, all shared by every
domain; a covariance loss keeps the experts different; a prior-informed element-wise gate per domain
mixes them.

Loss weight: the paper's covariance has no 1/N, ours has, so alpha here is the paper's times N.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from settings.config import IMPLICIT_SLOTS, ModelConfig
from trainer.models.model import Model, Output, Rows
from trainer.parts.gate import ByDomain
from trainer.parts.head import LOGIT_AT_START
from trainer.parts.interaction import Hidden
from trainer.parts.sets import RowSets
from trainer.parts.terms import expert_covariance
from trainer.slots import Plan
from trainer.tensors import BatchTensors

PRIOR = "prior"


class Crocodile(Model):
    """Sets: `expert:M` in every slot, and `prior` for user, item and domain alone."""

    @classmethod
    def row_sets(cls, plan: Plan, config: ModelConfig) -> RowSets:
        """The gate's prior embeddings are apart from the experts' sets."""
        del plan
        options = config.crocodile
        experts = {f"expert:{m}": config.embedding_dim for m in range(options.experts)}
        return RowSets(
            experts | {PRIOR: options.prior_dim}, only={PRIOR: frozenset(IMPLICIT_SLOTS)}
        )

    def __init__(self, plan: Plan, config: ModelConfig) -> None:
        super().__init__(plan, config)
        options, domains = config.crocodile, 1 + len(plan.domains)
        width = len(plan.slots) * config.embedding_dim
        self.options = options
        self.experts = nn.ModuleList(
            Hidden(width, options.expert_dims) for _ in range(options.experts)
        )
        self.width = options.expert_dims[-1]
        self.prior_at = [i for i, slot in enumerate(plan.slots) if slot.name in IMPLICIT_SLOTS]
        prior = len(self.prior_at) * options.prior_dim
        self.gate = ByDomain(domains, prior, options.experts * self.width)
        self.tower = ByDomain(domains, self.width, options.tower_dim)
        self.head = ByDomain(domains, options.tower_dim, len(plan.tasks))
        nn.init.constant_(self.head.bias, LOGIT_AT_START)

    @property
    def cross_dim(self) -> int:
        """CR is what the gate mixes."""
        return self.width

    @property
    def hidden_dim(self) -> int:
        """A domain's tower."""
        return self.options.tower_dim

    def forward(self, batch: BatchTensors, rows: Rows) -> Output:
        """Logits [B, T], CR [B, d], and the covariance term."""
        slots = self.slots(batch, rows)
        outputs = torch.stack(
            [e(slots[f"expert:{m}"].flatten(1)) for m, e in enumerate(self.experts)], 1
        )  # [B, M, d]
        self.tap("experts", outputs)
        prior = slots[PRIOR][:, self.prior_at].flatten(1)  # [B, 3 * d_prior]
        scores: Tensor = self.gate(prior, batch.domain).view(outputs.shape)
        weights = self.tap("gate", torch.softmax(scores, 1))  # over experts, per dimension
        cr = self.tap("cr", (weights * outputs).sum(1))  # [B, d]
        tower = torch.relu(self.tower(cr, batch.domain))
        logits = self.head(tower, batch.domain) + self.first_order(slots)
        terms = {}
        if len(cr) >= self.options.covariance_rows_min and self.options.alpha > 0:
            chosen = outputs[: self.options.covariance_rows or None]
            terms["covariance"] = self.options.alpha * expert_covariance(chosen)
        return Output(logits, cr, [tower] * logits.shape[1], terms)
