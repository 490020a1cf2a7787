"""Gates: whose experts a viewer sees, how it mixes them, and whom its gradient may reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.parts.interaction import Hidden

SHARED = "shared"
Sight = Literal["learn", "look", "no"]
"""learn = forward and backward; look = forward only (gradient stopped); no = not at all."""


def view(x: Tensor, sight: Sight) -> Tensor:
    """`x` as a viewer with this `sight` gets it: AFTB is `look` at every other task's experts."""
    return x if sight == "learn" else x.detach()


class Experts(nn.Module):
    """E experts over one input, each Linear, LayerNorm, ReLU per layer, computed side by side."""

    def __init__(self, width: int, widths: Sequence[int], count: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        self.scales = nn.ParameterList()
        self.shifts = nn.ParameterList()
        for after in widths:
            bound = width**-0.5
            self.weights.append(torch.empty(count, width, after).uniform_(-bound, bound))
            self.biases.append(torch.empty(count, 1, after).uniform_(-bound, bound))
            self.scales.append(torch.ones(count, 1, after))
            self.shifts.append(torch.zeros(count, 1, after))
            width = after
        self.count, self.width = count, width

    def forward(self, x: Tensor) -> Tensor:
        """[B, width] -> [B, E, widths[-1]]"""
        h = x.unsqueeze(0).expand(self.count, -1, -1)  # [E, B, width]
        for weight, bias, scale, shift in zip(
            self.weights, self.biases, self.scales, self.shifts, strict=True
        ):
            h = torch.baddbmm(bias, h, weight)
            h = nn.functional.layer_norm(h, h.shape[2:])
            h = torch.relu(h * scale + shift)
        return h.transpose(0, 1)


class SoftmaxGate(nn.Module):
    """Softmax weights from a query, and the weighted sum of n inputs."""

    def __init__(self, width: int, hidden: Sequence[int], count: int) -> None:
        super().__init__()
        self.hidden = Hidden(width, hidden)
        self.linear = nn.Linear(self.hidden.width, count)

    def forward(self, inputs: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """[B, n, h], [B, width] -> ([B, h], weights [B, n])"""
        weights = torch.softmax(self.linear(self.hidden(query)), 1)
        return torch.bmm(weights.unsqueeze(1), inputs).squeeze(1), weights


class Extraction(nn.Module):
    """One level: experts per owner of an input, and a gate per viewer over the experts it sees.

    `sights[viewer][owner]` decides everything that tells PLE, STEM, STEM-AL and AME apart.
    """

    def __init__(
        self,
        widths_in: Mapping[str, int],
        *,
        experts: Mapping[str, int],
        sights: Mapping[str, Mapping[str, Sight]],
        query_widths: Mapping[str, int],
        expert_dims: Sequence[int],
        gate_dims: Sequence[int],
    ) -> None:
        super().__init__()
        self.owners = list(widths_in)
        self.sights = {viewer: dict(sight) for viewer, sight in sights.items()}
        self.experts = nn.ModuleDict(
            {_key(o): Experts(widths_in[o], expert_dims, experts[o]) for o in self.owners}
        )
        self.gates = nn.ModuleDict()
        for viewer, sight in self.sights.items():
            seen = sum(experts[o] for o in self.owners if sight.get(o, "no") != "no")
            self.gates[_key(viewer)] = SoftmaxGate(query_widths[viewer], gate_dims, seen)
        self.width = expert_dims[-1]

    def forward(
        self, inputs: Mapping[str, Tensor], queries: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """{owner: [B, .]}, {viewer: query [B, .]} -> ({viewer: [B, h]}, {viewer: weights})."""
        outputs = {o: self.experts[_key(o)](inputs[o]) for o in self.owners}  # [B, E_o, h]
        mixed: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        for viewer, sight in self.sights.items():
            seen = [view(outputs[o], sight[o]) for o in self.owners if sight.get(o, "no") != "no"]
            mixed[viewer], weights[viewer] = self.gates[_key(viewer)](
                torch.cat(seen, 1), queries[viewer]
            )
        return mixed, weights


def _key(name: str) -> str:
    """Module names must not hold a dot, and be no attribute such as `forward`; kinds may."""
    return "of " + name.replace(".", "\N{ONE DOT LEADER}")


class ByDomain(nn.Module):
    """A linear layer per domain: [B, in], int64 [B] -> [B, out]. Domains are few, so all of them
    are computed and each row takes its own."""

    def __init__(self, domains: int, width: int, after: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(domains, width, after).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(domains, after))

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """See the class."""
        every = torch.einsum("bi,sio->bso", x, self.weight) + self.bias  # [B, S, out]
        own = domain.view(-1, 1, 1).expand(-1, 1, every.shape[2])
        return every.gather(1, own).squeeze(1)
