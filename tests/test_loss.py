"""Which samples teach what: stationary points, masks, sampled negatives."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch

from tests.sample_stream import make_config, make_samples
from trainer.batch import CORRECTION, EARLY, FINAL, build_batch
from trainer.delayed import Nuisance, NuisanceHeads, matured, nuisance_loss, nuisance_of
from trainer.loss import LossName, batch_loss, served, targets, trains_on
from trainer.slots import plan_slots

PLAN = plan_slots(make_config())


class Stream:
    """What the join emits of impressions with P(y) = p, of which `late` convert after `elapsed`:
    rows of the batch are kinds of samples, weighted by how often they come."""

    def __init__(self, p: float, late: float, keep: float = 1.0) -> None:
        """`keep` is the share of impressions whose negatives are kept; of others positives are."""
        of_kept = {
            ("early", 1): p - late,
            ("early", 0): 1 - p + late,
            ("correction", 1): late,
            ("final", 1): p,
            ("final", 0): 1 - p,
        }
        rows = {(state, y, True): keep * share for (state, y), share in of_kept.items()}
        others = {(state, y, False): share for (state, y), share in of_kept.items() if y}
        rows |= {row: (1 - keep) * share for row, share in others.items()}
        self.weights = torch.tensor(list(rows.values()), dtype=torch.float64)[:, None]
        self.log_keep = torch.full((len(rows),), math.log(keep), dtype=torch.float64)
        sample = make_samples(1)[0]
        self.batch = build_batch(
            [
                msgspec.structs.replace(sample, state=state, labels={"click": label}, kept=kept)
                for state, label, kept in rows
            ],
            PLAN,
        )
        early = torch.tensor([state == "early" for state, _, _ in rows], dtype=torch.float64)
        dp = torch.full((len(rows), 2), late, dtype=torch.float64)
        tn = torch.full((len(rows), 2), (1 - p) / (1 - p + late), dtype=torch.float64)
        self.oracle = Nuisance(dp, tn, early)

    def gradient(self, logit: float, name: LossName) -> float:
        """Expected gradient of the loss of one impression at `logit`."""
        z = torch.full((len(self.batch), 2), logit, dtype=torch.float64, requires_grad=True)
        positive, negative = (torch.from_numpy(part).double() for part in targets(self.batch, name))
        # each row's own gradient, then in expectation: the loss is a sum over rows
        batch_loss(z, positive, negative, self.log_keep, name, nuisance=self.oracle).backward()
        assert z.grad is not None
        return float((z.grad * self.weights).sum())

    def stationary(self, name: LossName) -> float:
        """The predicted rate at which nothing moves any more."""
        low, high = -20.0, 20.0
        for _ in range(80):
            middle = (low + high) / 2
            if self.gradient(middle, name) < 0:
                low = middle
            else:
                high = middle
        return float(torch.sigmoid(served(torch.tensor(low, dtype=torch.float64), name)))


@pytest.mark.parametrize(("p", "late"), [(0.2, 0.1), (0.2, 0.2), (0.03, 0.01), (0.4, 0.0)])
@pytest.mark.parametrize("name", ["fnw", "fnc", "es_dfm", "defer", "defuse"])
def test_every_method_is_stationary_at_the_true_rate(name: LossName, p: float, late: float) -> None:
    assert Stream(p, late).stationary(name) == pytest.approx(p, abs=1e-6)


@pytest.mark.parametrize("name", ["plain", "fnw", "fnc", "es_dfm", "defer", "defuse"])
def test_sampled_negatives_move_no_method(name: LossName) -> None:
    assert Stream(0.2, 0.1, keep=0.05).stationary(name) == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize(("p", "late"), [(0.2, 0.1), (0.03, 0.01)])
def test_vanilla_is_low_by_the_late_share(p: float, late: float) -> None:
    assert Stream(p, late).stationary("vanilla") == pytest.approx(p / (1 + late), abs=1e-6)


def test_fnc_stays_below_one() -> None:
    rates = torch.sigmoid(served(torch.linspace(-8, 8, 50, dtype=torch.float64), "fnc"))
    assert float(rates.max()) == pytest.approx(0.999) and (rates.diff() >= 0).all()


def test_weights_carry_no_gradient_and_heads_no_gradient_into_the_model() -> None:
    stream = Stream(0.2, 0.1)
    heads = NuisanceHeads([4, 4])
    hidden = [torch.randn(len(stream.batch), 4, requires_grad=True) for _ in range(2)]
    logits = torch.randn(len(stream.batch), 2, requires_grad=True)
    said = heads(logits, hidden)
    nuisance_loss(said, matured(stream.batch, 0, torch.device("cpu"))).backward()
    assert all(h.grad is None for h in hidden) and logits.grad is None
    assert all(p.grad is not None for p in heads.parameters())
    for p in heads.parameters():
        p.grad = None
    parts = (torch.from_numpy(part) for part in targets(stream.batch, "es_dfm"))
    nuisance = nuisance_of(heads(logits, hidden), stream.batch)
    batch_loss(
        logits, *parts, torch.zeros(len(stream.batch)), "es_dfm", nuisance=nuisance
    ).backward()
    assert logits.grad is not None and all(p.grad is None for p in heads.parameters())


def test_heads_learn_from_matured_rows_alone() -> None:
    """Their own stationary points: dp and tn of the finals; early rows say nothing."""
    draw = np.random.default_rng(0)
    one = make_samples(1)[0]
    samples = []
    for _ in range(4000):
        y, delay = int(draw.random() < 0.4), int(draw.integers(0, 1000))
        samples.append(
            msgspec.structs.replace(
                one,
                state="final",
                labels={"click": y, "buy": 0},
                delays_ms={"click": delay} if y else {},
            )
        )
    early = [msgspec.structs.replace(s, state="early", labels={"click": 1}) for s in samples[:500]]
    batch = build_batch([*samples, *early], PLAN)
    elapsed = 600
    heads = NuisanceHeads([0, 0])
    adam = torch.optim.Adam(heads.parameters(), lr=0.05)
    rows = matured(batch, elapsed, torch.device("cpu"))
    for _ in range(150):
        adam.zero_grad()
        nuisance_loss(heads(torch.zeros(len(batch), 2), None), rows).backward()
        adam.step()
    said = nuisance_of(heads(torch.zeros(len(batch), 2), None), batch)
    late = np.asarray([s.delays_ms.get("click", 0) > elapsed for s in samples])
    no = np.asarray([s.labels["click"] == 0 for s in samples])
    assert float(said.delayed[0, 0]) == pytest.approx(late.mean(), abs=0.005)
    assert float(said.true_negative[0, 0]) == pytest.approx(no.sum() / (no | late).sum(), abs=0.005)
    assert float(said.delayed[0, 1]) < 0.005  # nobody bought


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
