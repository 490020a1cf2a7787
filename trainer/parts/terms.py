"""Terms of the loss beside cross entropy."""

from __future__ import annotations

import torch
from torch import Tensor


def expert_covariance(outputs: Tensor) -> Tensor:
    """Crocodile's covariance loss over M experts' outputs [N, M, d]: a scalar.

    Sum over pairs of different experts of the entrywise L1 norm of their cross-covariance, over
    d^2. Divided by N, unlike the paper's, so that its weight does not depend on the batch; an
    expert's own covariance is left out, for it would shrink the variance itself.
    """
    n, count, width = outputs.shape
    centred = (outputs - outputs.mean(0, keepdim=True)).reshape(n, count * width)
    covariance = (centred.T @ centred / n).view(count, width, count, width)
    pairs = torch.ones(count, count, device=outputs.device).triu(1)  # p < q
    return (covariance.abs().sum((1, 3)) * pairs).sum() / width**2
