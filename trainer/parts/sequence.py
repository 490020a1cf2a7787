"""Interest in the target from a sequence of past behaviours."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.tensors import SequenceTensors

GAP_BUCKETS = 40
"""Octaves of seconds between a behaviour and the target: 2^39 s are 17,000 years."""


class TargetInterest(nn.Module):
    """TIM, temporal interest: u = sum_i a_i (e_i * v), a = softmax(<e_i, v> / sqrt(d)), where e_i
    and the target v carry a code of their time relative to the target.

    All three are needed: the code, attention by the target, and the product with it. The code is
    the entry's rank from the newest ("position"), or the octave of the time between ("gap").
    """

    def __init__(self, dim: int, length_max: int, code: str) -> None:
        super().__init__()
        self.by_gap = code == "gap"
        codes = GAP_BUCKETS if self.by_gap else length_max
        self.codes = nn.Embedding(1 + codes, dim)  # 0 is the target's
        nn.init.normal_(self.codes.weight, std=0.01)

    def forward(
        self, sequence: SequenceTensors, target: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Target [B, D], rows [U, D] -> (interest [B, D], attention [B, L]); zeros for no entry."""
        entries = functional.embedding(sequence.indices, rows)  # [B, L, D]
        padded = torch.isinf(sequence.log_weights)  # [B, L]
        entries = entries + self.codes(self.code_of(sequence, padded))
        aimed = target + self.codes.weight[0]  # [B, D]
        scores = (entries * aimed.unsqueeze(1)).sum(2) / entries.shape[2] ** 0.5
        empty = padded.all(1, keepdim=True)
        scores = scores.masked_fill(padded & ~empty, -torch.inf)
        attention = torch.softmax(scores, 1).masked_fill(empty, 0.0)
        return (attention.unsqueeze(2) * entries).sum(1) * aimed, attention

    def code_of(self, sequence: SequenceTensors, padded: Tensor) -> Tensor:
        """int64 [B, L], from 1."""
        if self.by_gap:
            return 1 + sequence.ages.long().clamp(0, GAP_BUCKETS - 1)
        present = (~padded).long()
        newest_first = present.flip(1).cumsum(1).flip(1)  # entries lie oldest first
        return newest_first.clamp(1, self.codes.num_embeddings - 1)
