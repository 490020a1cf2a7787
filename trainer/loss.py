"""Which samples teach what, and with which weight (delayed feedback).

Policy `wait`: plain BCE on finals. Policy `correct`: early and correction samples, for DEFER early
and final. With s the model's own prediction, dp = P(y = 1 and delay > elapsed), tn = P(y = 0 | no
conversion by elapsed), z = 1 - tn; every weight without gradient:

             stream                                   positive weighs     negative weighs
    vanilla  early: its labels; correction: positive  1                   1
    fnw      early: a negative for every kind, and a  1 + s               (1 - s)(1 + s)
             positive beside it for kinds already
             positive; correction: positive
    fnc      as fnw                                   1                   1
    es_dfm   as vanilla                               1 + dp              (1 + dp) tn
    defer    early: its labels; final: its labels     s / (s - dp/2)      (1 - s) / (1 - s + dp/2)
    defuse   as vanilla                               early: 1 + dp       (1 - z)(1 + dp), and z dp
                                                      correction: 1       on the positive term

Stationary at p exactly, but for vanilla (p / (1 + dp), low) and fnc (b = p / (1 + p): what is
served is b / (1 - b)). Sources: Ktena et al. 2019 (fnw, fnc), Yang et al. 2021 (es_dfm), Gu et al.
2021 (defer), Chen et al. 2022 (defuse). The weights follow the papers' derivations: the code
released with DEFER is stationary at .416 where p = .2 and dp = .1, that of DEFUSE at .328.
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
from trainer.delayed import Nuisance

LossName = Literal["plain", "vanilla", "fnw", "fnc", "es_dfm", "defer", "defuse"]
NUISANCE_LOSSES = frozenset({"es_dfm", "defer", "defuse"})
SERVED_MAX = 0.999
"""FNC serves b / (1 - b), which passes 1 where b passes one half."""


def loss_name(config: Config) -> LossName:
    """The loss that the config's join policy and model.delayed_feedback ask for."""
    return "plain" if config.join.policy == "wait" else config.model.delayed_feedback


def trains_on(name: LossName, state: I64) -> npt.NDArray[np.bool_]:
    """[B] whether samples in `state` [B] carry gradient of the model under loss `name`."""
    if name == "plain":
        return np.asarray(state == FINAL)
    if name == "defer":
        return np.asarray((state == EARLY) | (state == FINAL))
    return np.asarray(state != FINAL)


def reads(name: LossName, state: I64) -> npt.NDArray[np.bool_]:
    """[B] whether the step needs samples in `state` [B]: nuisance heads learn from matured ones."""
    if name in NUISANCE_LOSSES:
        return np.asarray(trains_on(name, state) | (state == FINAL))
    return trains_on(name, state)


def targets(batch: Batch, name: LossName) -> tuple[F32, F32]:
    """(positive, negative) [B, T]: how often each loss term of a row and task counts, 0 or 1."""
    early = (batch.state == EARLY)[:, None]
    said = (batch.mask > 0) & trains_on(name, batch.state)[:, None]
    positive = said & (batch.labels > 0)
    shown = early & batch.kept[:, None]  # a sampled-out impression's own negative is not told
    negative = said & (shown if name in ("fnw", "fnc") else batch.labels == 0)
    return positive.astype(np.float32), negative.astype(np.float32)


def batch_loss(
    logits: Tensor,
    positive: Tensor,
    negative: Tensor,
    log_keep_rate: Tensor,
    name: LossName,
    *,
    nuisance: Nuisance | None = None,
) -> Tensor:
    """Scalar: the weighted BCE terms [B, T], summed over tasks, mean over rows that teach.

    `log_keep_rate` [B] moves the logit in training only: kept rows' odds are the true odds divided
    by the keep rate, and the bare logit is what is served. So weights are of the bare logit's
    probability. `nuisance` for NUISANCE_LOSSES.
    """
    offset = logits - log_keep_rate.unsqueeze(1)
    rows = ((positive + negative).sum(1) > 0).sum().clamp(min=1)
    s = torch.sigmoid(logits.detach())
    keep = log_keep_rate.exp().unsqueeze(1)
    positive, negative = _weighted(positive, negative, name, s=s, keep=keep, nuisance=nuisance)
    terms = positive * functional.softplus(-offset) + negative * functional.softplus(offset)
    return terms.sum() / rows


def _weighted(
    positive: Tensor,
    negative: Tensor,
    name: LossName,
    *,
    s: Tensor,
    keep: Tensor,
    nuisance: Nuisance | None,
) -> tuple[Tensor, Tensor]:
    """The table above, from terms that count 0 or 1; `s` [B, T] is without gradient. `keep` [B, 1]
    is the share of negatives that is there: positive terms that they carry make up for it."""
    if name == "fnw":
        return positive * (1.0 + s), negative * (1.0 - s) * (1.0 + s)
    if name not in NUISANCE_LOSSES:
        return positive, negative
    assert nuisance is not None, f"{name} needs the nuisance heads"
    dp, tn = nuisance.delayed.detach(), nuisance.true_negative.detach()
    if name == "es_dfm":
        return positive * (1.0 + dp), negative * (1.0 + dp) * tn
    if name == "defer":
        half = 0.5 * torch.minimum(dp, s)  # delayed positives are some of the positives
        return positive * s / (s - half), negative * (1.0 - s) / (1.0 - s + half)
    z, early = 1.0 - tn, nuisance.early.unsqueeze(1)
    in_window = positive * early * (1.0 + dp) + positive * (1.0 - early)
    return in_window + negative * z * dp / keep, negative * (1.0 - z) * (1.0 + dp)


def served(logits: Tensor, name: LossName) -> Tensor:
    """What is predicted [B, T] of what is trained: FNC learns b = p / (1 + p)."""
    if name != "fnc":
        return logits
    log_p = logits.clamp(max=float(np.log(SERVED_MAX)))  # b / (1 - b) = exp(logit)
    return log_p - torch.log(-torch.expm1(log_p))
