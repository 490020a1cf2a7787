"""Training techniques: each does what it says, and its state is read before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from settings.config import Config
from tests.test_models import PLAN, SAMPLES, TINY, TRAINING, open_store, tiny
from topics.sample import Sample
from trainer.batch import build_batch
from trainer.durable import Progress, recover_state, stage_state
from trainer.errors import TrainerError
from trainer.models.model import Output
from trainer.parts.terms import ranking_loss
from trainer.parts.uncertainty import EnsembleHeads, Laplace, bootstrap_weights, standard_normals
from trainer.step import Learner
from trainer.technique import read_explored


def _config(name: str = "shared_bottom", **technique: Any) -> Config:
    return tiny(name, technique=technique)


def test_the_pair_loss_is_the_mean_over_pairs_and_capped_without_chance() -> None:
    z = torch.tensor([1.0, -1.0, 0.5, 2.0, 0.0])
    positive = torch.tensor([True, False, True, False, False])
    by_hand = torch.stack(
        [torch.nn.functional.softplus(z[j] - z[i]) for i in (0, 2) for j in (1, 3, 4)]
    ).mean()
    torch.testing.assert_close(ranking_loss(z, positive, ~positive, 100), by_hand)
    assert ranking_loss(z, positive & False, ~positive, 100) == 0
    many = torch.randn(3000)
    ahead = torch.arange(3000) % 3 == 0
    capped = [ranking_loss(many, ahead, ~ahead, 500) for _ in range(2)]
    assert capped[0] == capped[1]
    whole = ranking_loss(many, ahead, ~ahead, 10**9)
    torch.testing.assert_close(capped[0], whole, rtol=0.2, atol=0)


def test_the_pair_loss_gives_rare_positives_a_gradient_that_entropy_does_not() -> None:
    """On a negative BCE's gradient is p, tiny where positives are rare; the pair loss's is not."""
    z = torch.full((200,), -4.0, requires_grad=True)
    positive = torch.arange(200) < 2
    ranking_loss(z, positive, ~positive, 10**6).backward()
    pairs = z.grad[50] * 198  # of one negative, per negative
    entropy = torch.sigmoid(torch.tensor(-4.0))
    assert pairs > 10 * entropy


def test_repeats_are_counted_per_pair_and_read_before_they_are_written(tmp_path: Path) -> None:
    config = _config(repeat_weight=0.5)
    one = SAMPLES[0]
    other = msgspec.structs.replace(one, item_id="elsewhere")
    with open_store(tmp_path, config) as store:
        weigh = Learner(PLAN, config, store).techniques.weights
        first = weigh(build_batch([one, other, one], PLAN))
        assert first.tolist() == [1.0, 1.0, 1.0]  # as of before the batch
        second = weigh(build_batch([one, other], PLAN))
        np.testing.assert_allclose(second, 1 + 0.5 * np.log1p([2, 1]), rtol=1e-6)
        unsaid = msgspec.structs.replace(one, labels={})
        weigh(build_batch([unsaid], PLAN))
        assert weigh(build_batch([one], PLAN))[0] == pytest.approx(1 + 0.5 * np.log1p(3))


def test_what_weights_bend_the_calibration_takes_back(tmp_path: Path) -> None:
    """Served is fitted on rows that all weigh the same, whatever the weights made of the logits."""
    config = _config(repeat_weight=3.0)
    with open_store(tmp_path, config) as store:
        techniques = Learner(PLAN, config, store).techniques
    torch.manual_seed(0)
    labels = (torch.rand(50, 2) < 0.3).float()
    too_high = Output(torch.full((50, 2), 1.0))
    adam = torch.optim.Adam(techniques.parameters(), lr=0.1)
    assert techniques.served(too_high.logits).equal(too_high.logits)  # the identity at first
    for _ in range(100):
        adam.zero_grad()
        terms = techniques.terms(too_high, build_batch(SAMPLES[:50], PLAN), (labels, 1.0 - labels))
        torch.stack(terms).sum().backward()
        adam.step()
    served = torch.sigmoid(techniques.served(too_high.logits))
    torch.testing.assert_close(served.mean(0), labels.mean(0), atol=0.01, rtol=0)


def _placed(samples: list[Sample], position: int | None) -> list[Sample]:
    return [msgspec.structs.replace(s, position=position) for s in samples]


def test_position_moves_the_training_and_never_what_is_served(tmp_path: Path) -> None:
    config = _config(positions=3)
    samples = SAMPLES[:50]
    with open_store(tmp_path, config) as store:
        learner = Learner(PLAN, config, store)
        with torch.no_grad():
            learner.techniques.positions.weight[1:] = torch.arange(6.0).view(3, 2)
        logits = torch.zeros(4, 2)
        batch = build_batch([_placed(samples[:1], p)[0] for p in (None, 0, 2, 77)], PLAN)
        biased = learner.techniques.biased(logits, batch)
        assert biased.tolist() == [[0.0, 0.0], [0.0, 1.0], [4.0, 5.0], [4.0, 5.0]]
        bare = learner.model(*_inputs(learner, store, samples)).logits.detach().numpy()
        shown = learner.step(build_batch(_placed(samples, 2), PLAN), now_ms=1).logits
        np.testing.assert_allclose(shown, bare, rtol=1e-5, atol=1e-6)
        assert (learner.techniques.positions.weight[3] != torch.tensor([4.0, 5.0])).all()


def _inputs(learner: Learner, store: Any, samples: list[Sample]) -> tuple[Any, Any]:
    from trainer.tensors import batch_tensors

    batch = build_batch(samples, PLAN)
    keys = np.concatenate([part.keys for part in batch.parts.values()])
    slots = learner._slots_of(batch)
    lookup = store.lookup(keys, slots=slots, now_ms=1)
    rows = {n: torch.from_numpy(store.gather(lookup, n)) for n in learner.model.sets.dims}
    inverse = lookup.inverse.astype(np.int64)
    return batch_tensors(batch, inverse, learner.moments, torch.device("cpu")), rows


def test_a_last_layer_grows_surer_where_it_has_seen_more() -> None:
    laplace = Laplace(1, 3, prior=1.0)
    seen, new = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    assert laplace.deviation([seen]).item() == 1.0
    for _ in range(100):
        laplace.observe([seen], torch.full((1, 1), 0.3), torch.ones(1, 1))
    expected = (1.0 / (1.0 + 100 * 0.3 * 0.7)) ** 0.5
    assert laplace.deviation([seen]).item() == pytest.approx(expected, rel=1e-4)
    assert laplace.deviation([new]).item() == 1.0
    laplace.observe([new], torch.full((1, 1), 0.3), torch.zeros(1, 1))  # no label: nothing learnt
    assert laplace.deviation([new]).item() == 1.0


def test_heads_differ_by_their_bootstrap_and_leave_the_trunk_alone() -> None:
    counts = bootstrap_weights([b"%d" % n for n in range(4000)], 3)
    assert abs(counts.mean() - 1.0) < 0.05 and abs(counts.var() - 1.0) < 0.1
    assert (bootstrap_weights([b"7"], 3) == counts[7]).all()
    heads = EnsembleHeads(1, 2, 4)
    hidden = torch.randn(5, 2, requires_grad=True)
    ids = [b"%d" % n for n in range(5)]
    heads.loss([hidden], torch.ones(5, 1), torch.ones(5, 1), ids).backward()
    assert hidden.grad is None and heads.weight.grad is not None
    assert heads.deviation([hidden]).shape == (5, 1)


def test_draws_are_standard_normal_and_depend_on_the_impression_alone() -> None:
    ids = [b"imp%d" % n for n in range(5000)]
    draws = standard_normals(ids, 2)
    assert abs(draws.mean()) < 0.03 and abs(draws.std() - 1.0) < 0.03
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.05
    np.testing.assert_array_equal(standard_normals(ids[7:8], 2)[0], draws[7])


@pytest.mark.parametrize("explore", ["laplace", "ensemble"])
def test_the_served_score_is_logged_and_survives_a_restart(tmp_path: Path, explore: str) -> None:
    config = _config(explore=explore, explored_kept=70)
    with open_store(tmp_path, config) as store:
        learner = Learner(PLAN, config, store)
        recover_state(store, learner, PLAN, config)
        first = learner.step(TRAINING[0], now_ms=1).logits
        log = read_explored(store, 2)
        mean, sd, score = np.stack([log[i.decode()] for i in TRAINING[0].impressions], 1)
        np.testing.assert_array_equal(mean, first)
        draws = standard_normals(TRAINING[0].impressions, 2)
        np.testing.assert_allclose(score, mean + sd * draws, rtol=1e-5)
        assert (sd > 0).all()
        learner.step(TRAINING[1], now_ms=2)
        assert len(read_explored(store, 2)) == 70  # a ring: the oldest thirty are gone
        stage_state(store, learner, Progress(step=2))
        store.commit()
        weights = {k: v.clone() for k, v in learner.model.state_dict().items()}
    with open_store(tmp_path, config) as store:
        learner = Learner(PLAN, config, store)
        recover_state(store, learner, PLAN, config)
        for name, value in learner.model.state_dict().items():
            assert torch.equal(value, weights[name]), name
        assert int(learner.techniques.logged) == 100
        learner.step(TRAINING[2], now_ms=3)
        assert set(read_explored(store, 2)) >= {i.decode() for i in TRAINING[2].impressions}


def test_a_model_without_a_last_layer_has_no_such_uncertainty(tmp_path: Path) -> None:
    config = _config("lr", explore="laplace")
    with (
        open_store(tmp_path, config) as store,
        pytest.raises(TrainerError, match="hidden layers"),
    ):
        Learner(PLAN, config, store)


def test_lfm4ads_routes_ads_and_content_and_publishes_the_ad_branch(tmp_path: Path) -> None:
    own = {"ad_domains": ("search",), "cr_layer": "cross1"}
    config = tiny("lfm4ads", model=TINY | {"name": "lfm4ads", "lfm4ads": own})
    with open_store(tmp_path, config) as store:
        learner = Learner(PLAN, config, store)
        model = learner.model
        learner.step(TRAINING[0], now_ms=1)
        model.tap.seen = {}
        model.zero_grad()
        output = model(*_inputs(learner, store, SAMPLES[:30]))
        ads = np.asarray([s.domain == "search" for s in SAMPLES[:30]])
        output.logits[torch.from_numpy(~ads)].sum().backward()
        content_only = model.mix.layers[0].weight.grad
        assert content_only is None or (content_only == 0).all()
        assert (model.content.layers[0].weight.grad != 0).any()
        names = {"cr:x0", "cr:cross1", "cr:mix1", "cr:mix2", "ur", "ir", "cr"}
        assert names <= model.tap.seen.keys()
        assert torch.equal(model.tap.seen["cr"], model.tap.seen["cr:cross1"])
        assert output.cross.shape == (30, model.cross_dim)
