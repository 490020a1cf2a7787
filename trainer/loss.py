"""Which samples teach what, and with which weight (delayed feedback).

Policy `wait`: plain BCE on finals. Policy `correct`: early and correction samples; finals only
score. With s the model's own prediction, gradient stopped:

    vanilla   early: BCE on its labels; correction: a positive. Stationary at p / (1 + dp): low.
    fnw       early: a negative for every kind, and a positive beside it for kinds already positive;
              correction: a positive. Positives weigh 1 + s, negatives (1 - s)(1 + s), and the
              stationary point is p exactly (fake-negative weighting, Ktena et al. 2019).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from settings.config import Config
from trainer.batch import EARLY, F32, FINAL, I64, Batch

LossName = Literal["plain", "vanilla", "fnw"]


def loss_name(config: Config) -> LossName:
    """The loss that the config's join policy and model.delayed_feedback ask for."""
    return "plain" if config.join.policy == "wait" else config.model.delayed_feedback


def trains_on(name: LossName, state: I64) -> npt.NDArray[np.bool_]:
    """[B] whether samples in `state` [B] carry gradient under loss `name`."""
    return np.asarray(state == FINAL if name == "plain" else state != FINAL)


def targets(batch: Batch, name: LossName) -> tuple[F32, F32]:
    """(positive, negative) [B, T]: how often each loss term of a row and task counts, 0 or 1."""
    early = (batch.state == EARLY)[:, None]
    trained = trains_on(name, batch.state)[:, None]
    said = (batch.mask > 0) & trained
    positive = said & (batch.labels > 0)
    if name == "plain":
        negative = said & (batch.labels == 0)
    elif name == "vanilla":
        negative = said & early & (batch.labels == 0)
    else:
        negative = said & early
    return positive.astype(np.float32), negative.astype(np.float32)


def batch_loss(
    logits: Tensor, positive: Tensor, negative: Tensor, log_keep_rate: Tensor, name: LossName
) -> Tensor:
    """Scalar: the weighted BCE terms [B, T], summed over tasks, mean over rows that teach.

    `log_keep_rate` [B] moves the logit in training only: kept rows' odds are the true odds divided
    by the keep rate, and the bare logit is what is served.
    """
    offset = logits - log_keep_rate.unsqueeze(1)
    if name == "fnw":
        s = torch.sigmoid(offset.detach())
        positive = positive * (1.0 + s)
        negative = negative * (1.0 - s) * (1.0 + s)
    terms = positive * functional.softplus(-offset) + negative * functional.softplus(offset)
    rows = ((positive + negative).sum(1) > 0).sum().clamp(min=1)
    return terms.sum() / rows
