"""Which samples teach what: stationary points, masks, sampled negatives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.sample_stream import make_config, make_samples
from trainer.batch import CORRECTION, EARLY, FINAL, build_batch
from trainer.loss import LossName, batch_loss, targets, trains_on
from trainer.slots import plan_slots

PLAN = plan_slots(make_config())


def _gradient(logit: float, p: float, delayed: float, name: LossName, keep: float = 1.0) -> float:
    """Expected gradient of the loss at `logit` over the stream's emitted rows: an early negative
    (or, under vanilla with in-window positives, its label) and a positive at each conversion."""
    z = torch.full((2, 1), logit, dtype=torch.float64, requires_grad=True)
    early_positive = p - delayed
    # row 0: the early row, in expectation over labels; row 1: the correction, in expectation
    negative = 1.0 if name == "fnw" else 1.0 - early_positive
    positive = torch.tensor([[early_positive], [delayed]], dtype=torch.float64)
    negatives = torch.tensor([[negative], [0.0]], dtype=torch.float64)
    offset = torch.full((2,), float(torch.log(torch.tensor(keep))), dtype=torch.float64)
    batch_loss(z, positive, negatives, offset, name).backward()
    assert z.grad is not None
    return float(z.grad.sum())


def _stationary(p: float, delayed: float, name: LossName) -> float:
    low, high = -20.0, 20.0
    for _ in range(80):
        middle = (low + high) / 2
        if _gradient(middle, p, delayed, name) < 0:
            low = middle
        else:
            high = middle
    return 1 / (1 + math.exp(-low))


@pytest.mark.parametrize(("p", "delayed"), [(0.2, 0.1), (0.2, 0.2), (0.03, 0.01), (0.7, 0.0)])
def test_fnw_is_stationary_at_the_true_rate(p: float, delayed: float) -> None:
    assert _stationary(p, delayed, "fnw") == pytest.approx(p, abs=1e-6)


def test_vanilla_is_low_by_the_delayed_share() -> None:
    assert _stationary(0.2, 0.1, "vanilla") == pytest.approx(0.2 / 1.1, abs=1e-6)


def test_what_each_state_teaches() -> None:
    samples = make_samples(200, correct=True)
    batch = build_batch(samples, PLAN)
    positive, negative = targets(batch, "fnw")
    for b, sample in enumerate(samples):
        if sample.state == "early":
            assert negative[b].tolist() == [1, 1] and positive[b].tolist() == [0, 0]
        elif sample.state == "correction":
            kind = PLAN.tasks.index(next(iter(sample.labels)))
            assert positive[b, kind] == 1 and positive[b].sum() == 1 and not negative[b].any()
        else:
            assert not positive[b].any() and not negative[b].any()
    positive, negative = targets(batch, "plain")
    finals = [b for b, s in enumerate(samples) if s.state == "final"]
    assert (positive + negative)[finals].min() == 1
    assert (positive + negative).sum() == 2 * len(finals)
    states = np.asarray([EARLY, CORRECTION, FINAL])
    assert trains_on("plain", states).tolist() == [False, False, True]
    assert trains_on("fnw", states).tolist() == [True, True, False]


def test_masked_tasks_carry_no_gradient() -> None:
    samples = [s for s in make_samples(60, correct=True) if s.state == "correction"]
    batch = build_batch(samples, PLAN)
    positive, negative = (torch.from_numpy(x) for x in targets(batch, "fnw"))
    logits = torch.randn(len(samples), 2, requires_grad=True)
    batch_loss(logits, positive, negative, torch.zeros(len(samples)), "fnw").backward()
    assert logits.grad is not None
    masked = torch.from_numpy(batch.mask) == 0
    assert masked.any() and (logits.grad[masked] == 0).all() and (logits.grad[~masked] != 0).all()


def test_sampled_negatives_do_not_move_the_served_rate() -> None:
    # of odds p / (1 - p), kept negatives are a tenth: the trained odds are ten times as high
    p, keep = 0.02, 0.1
    low, high = -20.0, 20.0
    for _ in range(80):
        z = torch.full((2, 1), (low + high) / 2, dtype=torch.float64, requires_grad=True)
        positive = torch.tensor([[p], [0.0]], dtype=torch.float64)
        negative = torch.tensor([[0.0], [(1 - p) * keep]], dtype=torch.float64)
        log_keep = torch.full((2,), keep, dtype=torch.float64).log()
        batch_loss(z, positive, negative, log_keep, "plain").backward()
        assert z.grad is not None
        if z.grad.sum() < 0:
            low = float(z.detach()[0, 0])
        else:
            high = float(z.detach()[0, 0])
    assert 1 / (1 + math.exp(-low)) == pytest.approx(p, abs=1e-6)
