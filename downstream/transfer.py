"""How a downstream model takes a published vector in: LFM4Ads at feature and module level.

Feature level (arXiv 2508.14948; the public code's equations): SUM and concat project the vector
linearly and set it beside the model's own fields; the non-linear adapter gates the own fields with
it. Module level: the Isomorphic Interaction Module carries the upstream's mix tower, so that the
downstream model computes a cross of its own, beginning with the upstream's weights. Model level is
`downstream.retrieval`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from downstream.published import Published

TransferName = Literal["none", "sum", "concat", "adapter", "iim", "retrieval"]
PROJECTED = 10
"""Width of the projection beside the own fields, as in the public experiment (models.md 1.2)."""


class NoTransfer(nn.Module):
    """The baseline: the own fields and nothing else."""

    def __init__(self, own: int) -> None:
        super().__init__()
        self.width = own

    def forward(self, own: Tensor, published: Published) -> Tensor:
        """[B, E] -> [B, E]"""
        del published
        return own


class LinearConcat(nn.Module):
    """concat(E, W v): SUM where v is the user's UR, "concat CR_k" where it is a CR aggregate.

    A missing vector is zero and its flag is set, so that a cold entity is not taken for one whose
    projection happens to be small.
    """

    def __init__(self, own: int, dim: int, *, projected: int = PROJECTED) -> None:
        super().__init__()
        self.project = nn.Linear(dim, projected)
        self.width = own + projected + 1

    def forward(self, own: Tensor, published: Published) -> Tensor:
        """[B, E], v [B, D] -> [B, E + projected + 1]"""
        present = 1.0 - published.missing.unsqueeze(1)
        projected = self.project(published.vectors) * present
        return torch.cat([own, projected, published.missing.unsqueeze(1)], 1)


class NonLinearAdapter(nn.Module):
    """E * 2 sigmoid(MLP([v, log1p(age), missing])): the vector decides how much each own field
    counts, and may trust an old vector less than a fresh one.

    The gate starts at exactly 1 (the last layer at zero), so that switching transfer on changes no
    prediction before something has been learnt. The public code's gate is sigmoid of one linear
    layer, without age: factor 2 and start are ours.
    """

    def __init__(self, own: int, dim: int, *, hidden: int = 32) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(dim + 2, hidden), nn.ReLU(), nn.Linear(hidden, own))
        last = self.gate[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.width = own

    def forward(self, own: Tensor, published: Published) -> Tensor:
        """[B, E], v [B, D] -> [B, E]"""
        return own * 2.0 * torch.sigmoid(self.gate(published.features()))


class Direct(nn.Module):
    """w v / sqrt(D), w zero at the start: what a published vector says by itself. A few labels
    teach it; the way through the own layers takes more."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, published: Published) -> Tensor:
        """v [B, D] -> [B]; 0 where it is missing."""
        said: Tensor = published.vectors @ self.weight / len(self.weight) ** 0.5
        return said


class IsomorphicInteraction(nn.Module):
    """The upstream's mix tower once more: LayerNorm, DCNv2 cross layers, then Linear + LayerNorm +
    ReLU, over [published UR and IR | own fields projected to what is left of the input's width].

    `warm_start` takes the upstream's weights (`headwater export --weights`): the published vectors
    stand where they stood upstream, so its layers see what they were made for. `frozen` leaves them
    as they came. The projection of the own fields always learns; it starts at zero, so that the
    layers begin with the published vectors alone. `head` begins as the upstream's for one task.
    """

    def __init__(
        self,
        own: int,
        dim: int,
        *,
        wide: int,
        cross_layers: int,
        mix_dims: Sequence[int],
        frozen: bool = False,
    ) -> None:
        """`own` = E, `dim` = width of the published vectors; `wide`, `cross_layers` and `mix_dims`
        are the upstream's, as its export says them. Raises ValueError unless dim < wide."""
        super().__init__()
        if dim >= wide:
            raise ValueError(
                f"isomorphic module: expected published vectors narrower than wide={wide}, got "
                f"{dim}: UR and IR side by side are what stands in the upstream's input"
            )
        self.enter = nn.Linear(own + 1, wide - dim)
        nn.init.zeros_(self.enter.weight)
        nn.init.zeros_(self.enter.bias)
        self.turn: Tensor
        self.register_buffer("turn", torch.eye(dim))
        self.norm = nn.LayerNorm(wide)
        self.cross = nn.ModuleList(nn.Linear(wide, wide) for _ in range(cross_layers))
        widths = [wide, *mix_dims]
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(after) for after in mix_dims)
        self.head = nn.Linear(widths[-1], 1, bias=False)
        nn.init.zeros_(self.head.weight)
        self.width = own + widths[-1]
        self._frozen = frozen
        if frozen:
            for part in self._upstream_parts():
                part.requires_grad_(False)

    def _upstream_parts(self) -> tuple[nn.Module, ...]:
        return self.norm, self.cross, self.layers, self.norms

    def warm_parameters(self) -> Iterator[nn.Parameter]:
        """What `warm_start` fills."""
        for part in (*self._upstream_parts(), self.head):
            yield from part.parameters()

    def warm_start(self, weights: Mapping[str, Tensor], task: int = 0) -> None:
        """Take the upstream's `norm.*`, `cross.layers.*`, `mix.layers.*` and `mix.norms.*`, and,
        where vectors are published in an anchored basis, `basis.user` and `basis.item`: the
        rotations to undo. `head` takes the row of the upstream's `task` in `heads.linear.weight`;
        without it (an export of before) it stays at zero.

        Copies: what the downstream learns never reaches the upstream. Raises ValueError naming the
        first weight that is missing or has another shape.
        """
        prefixes = {
            "norm.": self.norm,
            "cross.layers.": self.cross,
            "mix.layers.": self.layers,
            "mix.norms.": self.norms,
        }
        with torch.no_grad():
            for prefix, part in prefixes.items():
                for name, parameter in part.named_parameters():
                    given = weights.get(prefix + name)
                    if given is None or given.shape != parameter.shape:
                        came = "nothing" if given is None else f"{list(given.shape)}"
                        raise ValueError(
                            f"isomorphic module: expected {prefix}{name} of shape "
                            f"{list(parameter.shape)}, got {came}: build it with the upstream's "
                            "wide, cross_layers and mix_dims"
                        )
                    parameter.copy_(given)
            if "heads.linear.weight" in weights:
                self.head.weight.copy_(weights["heads.linear.weight"][task : task + 1])
            if "basis.user" in weights:
                at = 0
                for side in ("basis.user", "basis.item"):
                    here = slice(at, at + len(weights[side]))
                    self.turn[here, here] = weights[side].T
                    at = here.stop

    def forward(self, own: Tensor, published: Published) -> Tensor:
        """[B, E], v [B, D] -> [B, E + mix_dims[-1]]: the own fields and the own CR'."""
        entered = self.enter(torch.cat([own, published.missing.unsqueeze(1)], 1))
        x0 = self.norm(torch.cat([published.vectors @ self.turn, entered], 1))
        x = x0
        for layer in self.cross:
            x = x0 * layer(x) + x
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = torch.relu(norm(layer(x)))
        return torch.cat([own, x], 1)

    def says(self, carried: Tensor) -> Tensor:
        """[B, width] as `forward` gave it -> [B]: what the head makes of the own CR'."""
        said: Tensor = self.head(carried[:, -self.head.in_features :]).squeeze(1)
        return said


class RetrievalScore(nn.Module):
    """Model level: <f(q_u), v_i> of a published user vector (UR or CR) and item vector, nothing
    else. f is the downstream's own linear map; see `downstream.retrieval` for the index."""

    def __init__(self, user_dim: int, item_dim: int) -> None:
        """f is the identity at first where the widths agree; else it says nothing at first."""
        super().__init__()
        self.query = nn.Linear(user_dim, item_dim)
        self.scale = nn.Parameter(torch.tensor(item_dim**-0.5))
        with torch.no_grad():
            self.query.weight.zero_()
            if user_dim == item_dim:
                self.query.weight.copy_(torch.eye(item_dim))
            self.query.bias.zero_()

    def forward(self, published: Published) -> Tensor:
        """[q | v] [B, user_dim + item_dim] -> scores [B]; 0 where one of them is missing."""
        end = self.query.in_features
        user, item = published.vectors[:, :end], published.vectors[:, end:]
        score = (self.query(user) * item).sum(1) * self.scale
        present: Tensor = score * (1.0 - published.missing)
        return present
