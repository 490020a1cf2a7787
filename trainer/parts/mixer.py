"""Token mixing without parameters, and feed-forward layers of each token's own (RankMixer)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.parts.taps import Taps


def mix_tokens(tokens: Tensor) -> Tensor:
    """[B, T, D] -> [B, T, D]: new token h is the h-th of T slices of every token, side by side.

    Its own inverse. T must divide D.
    """
    b, t, d = tokens.shape
    if d % t:
        raise ValueError(f"{t} tokens do not divide their width {d}: widths must be a multiple")
    return tokens.view(b, t, t, d // t).transpose(1, 2).reshape(b, t, d)


class PerToken(nn.Module):
    """A linear layer of each token's own, [B, T, in] -> [B, T, out]."""

    def __init__(self, tokens: int, width: int, after: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(tokens, width, after).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(tokens, after))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.einsum("btd,tdh->bth", x, self.weight) + self.bias


class TokenFfn(nn.Module):
    """W2 GELU(W1 x), or with `gated` SwiGLU, weights of each token's own; hidden = ratio * D."""

    def __init__(self, tokens: int, dim: int, ratio: int, *, gated: bool) -> None:
        super().__init__()
        self.up = PerToken(tokens, dim, ratio * dim)
        self.gate = PerToken(tokens, dim, ratio * dim) if gated else None
        self.down = PerToken(tokens, ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]"""
        up = self.up(x)
        if self.gate is None:
            hidden = nn.functional.gelu(up)
        else:
            hidden = nn.functional.silu(self.gate(x)) * up
        out: Tensor = self.down(hidden)
        return out


class SparseFfn(nn.Module):
    """E of those per token, weighed by a ReLU router; an L1 penalty keeps most of them off."""

    def __init__(self, tokens: int, dim: int, ratio: int, experts: int) -> None:
        super().__init__()
        self.router = PerToken(tokens, dim, experts)
        nn.init.constant_(self.router.bias, 1.0 / experts)
        self.experts = nn.ModuleList(
            TokenFfn(tokens, dim, ratio, gated=False) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> ([B, T, D], gates [B, T, E], not negative)"""
        gates = torch.relu(self.router(x))
        outputs = torch.stack([expert(x) for expert in self.experts], 2)  # [B, T, E, D]
        return torch.einsum("bte,bted->btd", gates, outputs), gates


class MixerBlock(nn.Module):
    """One block. Post-norm (RankMixer): S = LN(mix(X) + X), LN(FFN(S) + S). Pre-norm (RankUp):
    S = mix(LN(X)) + X, FFN(LN(S)) + S, with SwiGLU."""

    def __init__(
        self, tokens: int, dim: int, *, ratio: int, pre_norm: bool = False, experts: int = 0
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.pre_norm = pre_norm
        self.ffn = None if experts else TokenFfn(tokens, dim, ratio, gated=pre_norm)
        self.sparse = SparseFfn(tokens, dim, ratio, experts) if experts else None

    def forward(self, x: Tensor, tap: Taps, name: str) -> tuple[Tensor, Tensor | None]:
        """[B, T, D] -> ([B, T, D], router gates or None); taps after the mixer and the FFN."""
        first, second = self.norms
        mixed = mix_tokens(first(x)) + x if self.pre_norm else first(mix_tokens(x) + x)
        mixed = tap(f"mix:{name}", mixed)
        inner = second(mixed) if self.pre_norm else mixed
        gates = None
        if self.sparse is not None:
            moved, gates = self.sparse(inner)
        else:
            assert self.ffn is not None
            moved = self.ffn(inner)
        out = moved + mixed if self.pre_norm else second(moved + mixed)
        return tap(f"ffn:{name}", out), gates
