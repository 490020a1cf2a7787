"""The contract of every model, one suite: it learns, survives what streams do, and is repeatable.

The stream: the user decides the click, and the purchase is noise. Widths are tiny.
"""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from embedding_store.store import EmbeddingStore, Lookup
from settings.config import Config
from settings.load import ConfigError
from tests.sample_stream import make_config, make_samples
from topics.sample import Sample
from trainer.batch import Batch, build_batch
from trainer.durable import Progress, recover_state, stage_state
from trainer.models.build import build_model
from trainer.models.catalogue import MODELS
from trainer.slots import plan_slots
from trainer.step import Learner, row_layout

ALL = sorted(MODELS)
BATCH = 50
EXPERTS = {"expert_dims": (8,), "tower_dims": (6,)}
TINY: dict[str, Any] = {
    "embedding_dim": 4,
    "tower_dims": (8, 4),
    "mix_dims": (8, 6),
    "cross_layers": 1,
    "lr": {"alpha": 0.3},
    "fm": {"factor_dim": 4},
    "crossdistil": {"bottom_dims": (8,), "tower_dims": (6,)},
    "lfm4ads": {"ad_domains": ("search",), "cr_layer": "mix1"},
    "dcn": {"cross_layers": 1, "hidden_dims": (8, 6)},
    "mmoe": {"experts": 2, **EXPERTS},
    "ple": {"levels": 2, **EXPERTS},
    "stem": {"levels": 2, **EXPERTS},
    "stem_al": EXPERTS,
    "ame": {"widths": (3, 5), **EXPERTS},
    "crocodile": {"experts": 2, "expert_dims": (8,), "prior_dim": 3, "tower_dim": 5},
    "multi_embedding": {
        "interactions": ("dcn", "fm", "gwpfm", "ipnn", "mlp"),
        "expert_dims": (6,),
        "cross_layers": 1,
        "tower_dims": (5,),
        "merge": "gate",
        "tables": {"os": 2, "item_id": 4},
    },
    "gwpfm": {"hidden_dims": (6,)},
    "tim": {"cross_layers": 1, "hidden_dims": (6,)},
    "rankmixer": {"token_dim": 12, "experts": 2, "tower_dims": (5,)},
    "rankup": {"token_dim": 12, "cross_dim": 3, "tower_dims": (5,), "tables": {"os": 1}},
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    """Widths are tiny: handing them to threads costs more than computing them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(name: str, **sections: Any) -> Config:
    """A small `name`, with steps large enough to learn from a thousand samples."""
    steps = {"dense_lr": 0.01, "sparse_lr": 0.2}
    return make_config(**{"model": TINY | {"name": name}, "optimizer": steps} | sections)


PLAN = plan_slots(tiny("lr"))
SAMPLES = [
    msgspec.structs.replace(s, labels={"click": int(s.user_id[1:]) % 2, "buy": s.labels["buy"]})
    for s in make_samples(1300)
]
HELD = SAMPLES[-300:]


def batches(samples: list[Sample]) -> list[Batch]:
    return [build_batch(samples[n : n + BATCH], PLAN) for n in range(0, len(samples), BATCH)]


TRAINING = batches(SAMPLES[:1000])


def open_store(path: Path, config: Config) -> EmbeddingStore:
    return EmbeddingStore.open(path, row_layout(config), cache_rows_max=8192, owner="test")


def auc(learner: Learner, samples: list[Sample]) -> float:
    click = np.asarray([s.labels["click"] for s in samples], bool)
    logits = learner.step(build_batch(samples, PLAN), now_ms=1).logits[:, 0]
    ahead = logits[click][:, None] > logits[~click][None, :]
    return float(ahead.mean())


@pytest.mark.parametrize("name", ALL)
def test_what_a_step_saved_goes_with_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the cycle collector, which looks rarely: a graph holds the rows it began with."""
    config = tiny(name)
    rows: list[weakref.ref[torch.Tensor]] = []
    with open_store(tmp_path, config) as store:
        learner = Learner(plan_slots(config), config, store)
        gather = learner._gather

        def noted(lookup: Lookup, set_name: str) -> torch.Tensor:
            gathered = gather(lookup, set_name)
            rows.append(weakref.ref(gathered))
            return gathered

        monkeypatch.setattr(learner, "_gather", noted)
        gc.collect()
        gc.disable()
        try:
            learner.step(TRAINING[0], now_ms=1)
            assert rows and not any(row() is not None for row in rows)
        finally:
            gc.enable()


@pytest.mark.parametrize("name", ALL)
def test_a_kind_may_have_any_name(name: str) -> None:
    kinds = {kind: {"window": "1h"} for kind in ("forward", "type", "a.b")}
    config = make_config(model={"name": name}, kinds=kinds)
    assert build_model(plan_slots(config), config).sets.dims


@pytest.mark.parametrize("name", ALL)
def test_it_learns_a_separable_stream_and_survives_odd_batches(tmp_path: Path, name: str) -> None:
    config = tiny(name)
    with open_store(tmp_path, config) as store:
        learner = Learner(PLAN, config, store)
        for batch in TRAINING:
            learner.step(batch, now_ms=1)
        assert auc(learner, HELD) > 0.8
        bare = msgspec.structs.replace(SAMPLES[0], features={})
        none = [msgspec.structs.replace(s, labels={"click": 0, "buy": 0}) for s in SAMPLES[:5]]
        said = [msgspec.structs.replace(s, labels={"buy": s.labels["buy"]}) for s in SAMPLES[:5]]
        for odd in ([bare], none, SAMPLES[:1], said):
            assert np.isfinite(learner.step(build_batch(odd, PLAN), now_ms=2).logits).all()
        assert auc(learner, HELD) > 0.8


@pytest.mark.parametrize("name", ALL)
def test_it_survives_slots_that_appear_and_vanish(tmp_path: Path, name: str) -> None:
    def without(samples: list[Sample], *slots: str) -> list[Sample]:
        return [
            msgspec.structs.replace(
                s, features={k: v for k, v in s.features.items() if k not in slots}
            )
            for s in samples
        ]

    config = tiny(name)
    stream = without(SAMPLES[:400], "vec", "age", "tags")
    stream += SAMPLES[400:600] + without(SAMPLES[600:1000], "history", "os", "hour")
    with open_store(tmp_path, config) as store:
        learner = Learner(PLAN, config, store)
        for batch in batches(stream):
            assert np.isfinite(learner.step(batch, now_ms=1).logits).all()
        assert auc(learner, without(HELD, "history", "os", "hour")) > 0.8


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_bytes_with_or_without_a_restart(tmp_path: Path, name: str) -> None:
    config = tiny(name)

    def run(path: Path, restart: bool) -> tuple[dict[str, str], bytes]:
        logits = b""
        store = open_store(path, config)
        learner = Learner(PLAN, config, store)
        recover_state(store, learner, PLAN, config)
        for n, batch in enumerate(TRAINING[:6]):
            logits += learner.step(batch, now_ms=n + 1).logits.tobytes()
            if n in (2, 5):
                stage_state(store, learner, Progress(step=n))
                store.commit()
            if n == 2 and restart:
                store.close()
                torch.rand(7)  # whoever drew in between must not matter
                store = open_store(path, config)
                learner = Learner(PLAN, config, store)
                assert recover_state(store, learner, PLAN, config).step == 2
        digest = store.content_digest()
        store.close()
        return digest, logits

    whole = run(tmp_path / "a", restart=False)
    assert run(tmp_path / "b", restart=False) == whole
    assert run(tmp_path / "c", restart=True) == whole
    other = tiny(name, trainer={"seed": 1})
    with open_store(tmp_path / "d", other) as store:
        weights = Learner(PLAN, other, store).model.state_dict()
    if name not in ("lr", "fm"):  # theirs start at constants
        first = build_model(PLAN, config).state_dict()
        assert any((first[k] != weights[k]).any() for k in weights)


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_rows_in_a_batch_does_not_matter(tmp_path: Path, name: str) -> None:
    """Nor does its company: a prediction depends on its own row and the state alone."""
    config = tiny(name)
    samples = SAMPLES[:20]
    with open_store(tmp_path / "a", config) as store:
        learner = Learner(PLAN, config, store)
        straight = learner.step(build_batch(samples, PLAN), now_ms=1).logits
    with open_store(tmp_path / "b", config) as store:
        learner = Learner(PLAN, config, store)
        turned = learner.step(build_batch(samples[::-1], PLAN), now_ms=1).logits
    np.testing.assert_allclose(turned[::-1], straight, rtol=1e-4, atol=1e-5)
    with open_store(tmp_path / "c", config) as store:
        learner = Learner(PLAN, config, store)
        alone = learner.step(build_batch(samples[:1], PLAN), now_ms=1).logits
    np.testing.assert_allclose(alone, straight[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "mmo"}, "did you mean 'mmoe'"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], says: str) -> None:
    config = make_config(model=TINY | options)
    with pytest.raises(ConfigError, match=says):
        build_model(PLAN, config)
