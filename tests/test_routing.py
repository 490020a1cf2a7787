"""Who trains whom: gradients of each task's loss on each embedding set, without a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from settings.config import Config
from tests.sample_stream import make_config, make_samples
from tests.test_models import TINY, open_store, tiny
from trainer.batch import build_batch
from trainer.models.build import build_model
from trainer.models.model import Model, Output
from trainer.moments import Moments
from trainer.slots import SIDES, plan_slots
from trainer.step import Learner
from trainer.tensors import BatchTensors, batch_tensors

CPU = torch.device("cpu")
SAMPLES = [s for s in make_samples(40) if s.labels]


def config_of(name: str, **options: Any) -> Config:
    own = TINY.get(name, {}) | options
    return make_config(model=TINY | {"name": name, name: own})


def free_batch(config: Config) -> BatchTensors:
    """A batch whose every key has a row of its own, and no store behind it."""
    plan = plan_slots(config)
    batch = build_batch(SAMPLES, plan)
    moments = {side: Moments(len(plan.sides[side].of_type("numeric"))) for side in SIDES}
    keys = sum(part.keys.size for part in batch.parts.values())
    return batch_tensors(batch, np.arange(keys), moments, CPU)


def free_rows(model: Model, batch: BatchTensors) -> dict[str, Tensor]:
    count = sum(side.indices.numel() for side in batch.sides.values())
    torch.manual_seed(5)
    return {
        name: (0.3 * torch.randn(count, dim)).requires_grad_()
        for name, dim in model.sets.dims.items()
    }


def trained_sets(config: Config, task: int) -> set[str]:
    """Sets that the loss of `task` has a gradient on."""
    model = build_model(plan_slots(config), config)
    with torch.no_grad():
        for parameter in model.parameters():  # no dead unit hides a path
            parameter.add_(0.05 * torch.rand_like(parameter))
    batch = free_batch(config)
    rows = free_rows(model, batch)
    output: Output = model(batch, rows)
    torch.nn.functional.softplus(output.logits[:, task]).sum().backward()
    return {n for n, r in rows.items() if r.grad is not None and bool((r.grad != 0).any())}


OWN = ({"shared", "task:click"}, {"shared", "task:buy"})
EVERY = {"shared", "task:click", "task:buy"}


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("task", [0, 1])
def test_stem_trains_its_own_and_the_shared_set_alone(levels: int, task: int) -> None:
    assert trained_sets(config_of("stem", levels=levels), task) == OWN[task]


def test_stem_as_released_leaks_through_the_shared_input_of_its_second_level() -> None:
    assert trained_sets(config_of("stem", levels=2, strict=False), 0) == EVERY
    assert trained_sets(config_of("stem", levels=1, strict=False), 0) == OWN[0]


def test_every_expert_reaches_every_task_in_stems_forward_pass() -> None:
    config = config_of("stem", levels=1)
    model = build_model(plan_slots(config), config)
    batch = free_batch(config)
    rows = free_rows(model, batch)
    before = model(batch, rows).logits
    with torch.no_grad():
        rows["task:buy"].mul_(-1.0)
    assert (model(batch, rows).logits[:, 0] != before[:, 0]).any()  # click sees buy's experts


def test_stem_al_lets_only_main_tasks_see_others() -> None:
    assert trained_sets(config_of("stem_al"), 0) == {"task:click"}
    assert trained_sets(config_of("stem_al", detach=False), 0) == {"task:click", "task:buy"}
    assert trained_sets(config_of("stem_al", detach=False), 1) == {"task:buy"}
    assert trained_sets(config_of("stem_al", main=("buy",), detach=False), 1) == {
        "task:click",
        "task:buy",
    }


def test_ame_and_crocodile_train_every_set_by_every_task() -> None:
    assert trained_sets(config_of("ame"), 0) == {"width:3", "width:5"}
    assert trained_sets(config_of("crocodile"), 1) == {"expert:0", "expert:1", "prior"}


def test_a_slot_without_a_set_is_masked() -> None:
    """Crocodile's prior belongs to user, item and domain: other slots give zeros, learn nothing."""
    config = config_of("crocodile")
    plan = plan_slots(config)
    model = build_model(plan, config)
    batch = free_batch(config)
    rows = free_rows(model, batch)
    vectors = model.slots(batch, rows)
    has = model.slots.has["prior"]
    assert [s.name for s, h in zip(plan.slots, has.tolist(), strict=True) if h] == [
        "user_id",
        "history",  # its rows are the items'
        "item_id",
        "domain",
    ]
    assert (vectors["prior"][:, ~has] == 0).all() and (vectors["prior"][:, has] != 0).any()
    assert model.slots.has["expert:0"].all()
    vectors["prior"].square().sum().backward()
    grad = rows["prior"].grad
    assert grad is not None
    side = batch.sides["context"]
    start = side.offsets.view(-1, side.rows)[1:, 0]  # of the slots after `domain`, which has it
    lacking, having = side.indices[start[0] :], side.indices[: start[0]]
    assert (grad[lacking] == 0).all() and (grad[having] != 0).all()


@pytest.mark.parametrize("name", ["stem", "ple", "mmoe", "multi_embedding", "crocodile"])
def test_a_task_without_a_label_teaches_nothing(name: str, tmp_path: Path) -> None:
    """Only clicks are labelled: buy's heads, gates and towers keep their weights."""
    config = tiny(name)
    plan = plan_slots(config)
    said = [msgspec.structs.replace(s, labels={"click": s.labels["click"]}) for s in SAMPLES]
    with open_store(tmp_path, config) as store:
        learner = Learner(plan, config, store)
        before = {k: v.clone() for k, v in learner.model.state_dict().items()}
        learner.step(build_batch(said, plan), now_ms=1)
        after = learner.model.state_dict()
    own = [k for k in before if ("buy" in k and "gate" in k) or k.startswith("towers.hidden.1")]
    own += [k for k in before if k.startswith(("towers.linear.1", "gates.1"))]
    assert name == "crocodile" or own
    assert all((before[k] == after[k]).all() for k in own)
    if name == "crocodile":
        assert (before["head.weight"][..., 1] == after["head.weight"][..., 1]).all()
    assert any((before[k] != after[k]).any() for k in before)


def test_feeding_one_task_leaves_the_others_step_size_alone(tmp_path: Path) -> None:
    """State is per set: row-wise Adagrad of `task:buy` has not seen click's gradients."""
    config = tiny("stem")
    plan = plan_slots(config)
    said = [msgspec.structs.replace(s, labels={"click": s.labels["click"]}) for s in SAMPLES]
    with open_store(tmp_path, config) as store:
        learner = Learner(plan, config, store)
        keys = store.lookup(build_batch(said, plan).parts["user"].keys, now_ms=1).keys
        start = {n: store.peek(keys, n)[0] for n in learner.model.sets.dims}
        for _ in range(3):
            learner.step(build_batch(said, plan), now_ms=1)
        rows = {key: sets for key, _, sets in store.rows()}
        for n, key in enumerate(keys.tolist()):
            assert (rows[key]["task:buy"][1] == 0).all()
            np.testing.assert_array_equal(rows[key]["task:buy"][0], start["task:buy"][n])
            assert (rows[key]["task:click"][1] > 0).all()
