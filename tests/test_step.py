"""One step: read before write, only touched rows move, duplicates sum, missing is not zero."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from embedding_store.keys import row_keys
from embedding_store.store import EmbeddingStore
from settings.config import Config
from settings.load import ConfigError
from tests.sample_stream import make_config, make_samples
from topics.sample import Sample
from trainer.batch import build_batch
from trainer.durable import Progress, recover_state, stage_state
from trainer.errors import StateMismatch
from trainer.models.build import build_model
from trainer.parts.sets import SHARED
from trainer.slots import Plan, plan_slots
from trainer.step import Learner, row_layout

CONFIG = make_config()
PLAN = plan_slots(CONFIG)


def _open(path: Path, config: Config = CONFIG) -> EmbeddingStore:
    return EmbeddingStore.open(path, row_layout(config), cache_rows_max=4096, owner="test")


def _learner(store: EmbeddingStore, config: Config = CONFIG) -> Learner:
    return Learner(plan_slots(config), config, store)


def _step(learner: Learner, samples: list[Sample], plan: Plan = PLAN) -> np.ndarray:
    return learner.step(build_batch(samples, plan), now_ms=1).logits


def test_a_prediction_does_not_depend_on_labels_of_its_batch(tmp_path: Path) -> None:
    samples = make_samples(40)
    flipped = [
        msgspec.structs.replace(s, labels={k: 1 - v for k, v in s.labels.items()}) for s in samples
    ]
    with _open(tmp_path / "a") as one, _open(tmp_path / "b") as other:
        a, b = _learner(one), _learner(other)
        np.testing.assert_array_equal(_step(a, samples), _step(b, flipped))
        assert (_step(a, samples) != _step(b, samples)).any()  # but the next one does


def test_only_rows_of_the_batch_move(tmp_path: Path) -> None:
    samples = make_samples(40)
    with _open(tmp_path) as store:
        learner = _learner(store)
        _step(learner, samples)
        named = np.unique(
            np.concatenate([p.keys for p in build_batch(samples[:1], PLAN).parts.values()])
        )
        before = {key: sets[SHARED][0] for key, _, sets in store.rows()}
        _step(learner, samples[:1])
        after = {key: sets[SHARED][0] for key, _, sets in store.rows()}
        moved = {key for key in before if (before[key] != after[key]).any()}
        assert moved <= set(named.tolist())
        assert int(row_keys("user_id", [samples[0].user_id])[0]) in moved


def test_gradients_of_a_key_are_summed(tmp_path: Path) -> None:
    """Two samples of one user move its row by the Adagrad step of the summed gradient."""
    samples = make_samples(2)
    twins = [msgspec.structs.replace(s, user_id="u", features={}) for s in samples]
    key = row_keys("user_id", ["u"])
    with _open(tmp_path / "a") as store:
        learner = _learner(store)
        store.lookup(key, now_ms=0)
        start = store.peek(key, SHARED)[0][0]
        batch = build_batch(twins, PLAN)
        keys = np.concatenate([p.keys for p in batch.parts.values()])
        table = torch.from_numpy(store.peek(keys, SHARED)[0])  # [N, D], a row per occurrence
        fresh = store.lookup(keys, now_ms=0)
        table = torch.from_numpy(store.gather(fresh, SHARED)[fresh.inverse]).requires_grad_()
        from trainer.loss import batch_loss, targets
        from trainer.tensors import batch_tensors

        tensors = batch_tensors(batch, np.arange(keys.size), learner.moments, torch.device("cpu"))
        positive, negative = (torch.from_numpy(t) for t in targets(batch, "plain"))
        logits = learner.model(tensors, {SHARED: table}).logits
        batch_loss(logits, positive, negative, torch.zeros(2), "plain").backward()
        assert table.grad is not None
        summed = table.grad[torch.from_numpy(keys == key[0])].sum(0).numpy()
        learner.step(batch, now_ms=1)
        moved = store.peek(key, SHARED)[0][0]
    spec = row_layout(CONFIG).sets[SHARED]
    expected = start - spec.lr * summed / (np.sqrt((summed**2).mean()) + spec.eps)
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-7)


def test_moments_are_read_before_they_are_written(tmp_path: Path) -> None:
    samples = make_samples(30)
    with _open(tmp_path) as store:
        learner = _learner(store)
        part = build_batch(samples, PLAN).parts["user"]
        assert (learner.moments["user"].normalise(part.numeric) == 0).all()  # nothing known yet
        _step(learner, samples)
        present = part.numeric[~np.isnan(part.numeric)]
        normal = learner.moments["user"].normalise(part.numeric)
        normal = normal[~np.isnan(part.numeric)]
        np.testing.assert_allclose(
            normal, np.clip((present - present.mean()) / present.std(), -5, 5), rtol=1e-3, atol=1e-4
        )


def test_missing_is_not_zero(tmp_path: Path) -> None:
    one = make_samples(1)[0]
    zero = msgspec.structs.replace(one, features={"vec": [0.0] * 4, "tags": [], "history": []})
    missing = msgspec.structs.replace(one, features={})
    with _open(tmp_path) as store:
        logits = _step(_learner(store), [zero, missing])
    assert (logits[0] != logits[1]).any()


def test_save_and_recover_are_equal(tmp_path: Path) -> None:
    samples = make_samples(120)
    with _open(tmp_path) as store:
        learner = _learner(store)
        recover_state(store, learner, PLAN, CONFIG)
        _step(learner, samples[:60])
        stage_state(store, learner, Progress(step=1))
        store.commit()
        expected = _step(learner, samples[60:])
    with _open(tmp_path) as store:
        learner = _learner(store)
        assert recover_state(store, learner, PLAN, CONFIG).step == 1
        np.testing.assert_array_equal(_step(learner, samples[60:]), expected)


def test_another_model_than_the_stored_one_is_refused_by_name(tmp_path: Path) -> None:
    with _open(tmp_path) as store:
        learner = _learner(store)
        recover_state(store, learner, PLAN, CONFIG)
        stage_state(store, learner, Progress())
        other = make_config(kinds={"click": {"window": "1h"}, "like": {"window": "1h"}})
        with pytest.raises(StateMismatch, match=r'kinds: stored `\["click","buy"\]`.*like'):
            recover_state(store, _learner(store, other), plan_slots(other), other)


def test_entities_of_another_layout_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _open(tmp_path) as store:
        learner = _learner(store)
        with monkeypatch.context() as earlier:
            earlier.setattr("trainer.durable.LAYOUT", 1)
            recover_state(store, learner, PLAN, CONFIG)
            stage_state(store, learner, Progress())
        with pytest.raises(StateMismatch, match=r"layout of entities: stored `1`, now `2`"):
            recover_state(store, _learner(store), PLAN, CONFIG)


def test_an_unknown_model_names_the_nearest() -> None:
    config = make_config(model={"name": "lfm4add"})
    with pytest.raises(ConfigError, match="did you mean 'lfm4ads'"):
        build_model(PLAN, config)


def test_taps_see_the_layers_only_when_asked(tmp_path: Path) -> None:
    with _open(tmp_path) as store:
        learner = _learner(store)
        _step(learner, make_samples(5))
        assert learner.model.tap.seen is None
        learner.model.tap.seen = {}
        _step(learner, make_samples(5))
        assert {"ur", "ir", "cross", "cr"} <= learner.model.tap.seen.keys()
        assert not any(t.requires_grad for t in learner.model.tap.seen.values())


def test_each_set_learns_as_the_config_says_and_unknown_sets_are_named(tmp_path: Path) -> None:
    own = {"sparse": "adam", "sparse_lr": 0.5, "dtype": "bfloat16"}
    config = make_config(optimizer={"sparse": "adagrad", "beta1": 0.7, "sets": {SHARED: own}})
    spec = row_layout(config).sets[SHARED]
    assert (spec.optimizer, spec.lr, spec.beta1, spec.dtype) == ("adam", 0.5, 0.7, "bfloat16")
    with _open(tmp_path, config) as store:
        _step(_learner(store, config), make_samples(10))
        assert all(sets[SHARED][1][-1] == 1 for _, _, sets in store.rows())  # adam's own steps
    with pytest.raises(
        ConfigError, match=r"optimizer.sets, model 'lfm4ads': expected one of shared, got 'none'"
    ):
        row_layout(make_config(optimizer={"sets": {"none": own}}))
