"""CrossDistil: who is trained by what, the teacher's correction, and the reservoir's pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from settings.config import Config
from tests.test_models import BATCH, PLAN, SAMPLES, open_store, tiny
from tests.test_routing import config_of, free_batch, free_rows
from trainer.batch import build_batch
from trainer.models.build import build_model
from trainer.models.crossdistil import CrossDistil
from trainer.models.model import Labels, Output
from trainer.packed import PackedRows
from trainer.parts.terms import Platt, level_loss
from trainer.reservoir import NO_STATE, SPACE, Reservoir, joined
from trainer.slots import SIDES, plan_slots
from trainer.step import Learner


def _passed(config: Config) -> tuple[CrossDistil, Output, Labels]:
    torch.manual_seed(4)
    model = build_model(plan_slots(config), config)
    assert isinstance(model, CrossDistil)
    batch = free_batch(config)
    output = model(batch, free_rows(model, batch))
    labels = (torch.rand(40, 2) < 0.4).float()
    pairs = torch.stack([torch.arange(20), torch.arange(20, 40)], 1)
    return model, output, Labels(labels, torch.ones(40, 2), pairs)


def _trained(model: CrossDistil, loss: torch.Tensor) -> set[str]:
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name.split(".")[0]
        for name, p in model.named_parameters()
        if p.grad is not None and bool((p.grad != 0).any())
    }


def test_no_gradient_of_a_student_reaches_a_teacher_and_platt_trains_itself_alone() -> None:
    model, output, said = _passed(config_of("crossdistil", distilled=0.5))
    terms = model.label_terms(output, said)
    student = _trained(model, terms["distilled"])
    assert "towers" in student and "bottom" in student
    assert not student & {"teachers", "platt"}
    assert _trained(model, terms["platt"]) == {"platt"}
    for name in ("teacher_a", "teacher_b"):
        teacher = _trained(model, terms[name])
        assert {"teachers", "bottom"} <= teacher and not teacher & {"towers", "platt"}


def test_a_teacher_that_contradicts_the_label_is_held_on_its_side() -> None:
    config = config_of("crossdistil", margin=0.5, temperature=2.0)
    model, _, _ = _passed(config)
    with torch.no_grad():
        model.platt.q.copy_(torch.tensor([0.25, 0.0]))
    teachers = torch.tensor([[-3.0, 2.0], [4.0, 2.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    soft = model.soft_labels(teachers, labels)
    expected = torch.sigmoid(torch.tensor([[0.5, -0.5], [4.25, 2.0]]) / 2.0)
    torch.testing.assert_close(soft, expected)
    assert not soft.requires_grad


def test_platts_scale_stays_positive_and_finds_the_odds() -> None:
    torch.manual_seed(0)
    platt, z = Platt(1), torch.randn(4000, 1)
    labels = (torch.rand(4000, 1) < torch.sigmoid(2.0 * z - 1.0)).float()
    adam = torch.optim.Adam(platt.parameters(), lr=0.05)
    for _ in range(200):
        adam.zero_grad()
        platt.loss(z, labels, torch.ones_like(labels)).backward()
        adam.step()
    p, q = platt.log_p.detach().exp().item(), platt.q.detach().item()
    assert abs(p - 2.0) < 0.25 and abs(q + 1.0) < 0.15
    assert (torch.diff(platt(z.sort(0).values), dim=0) >= 0).all()


def test_levels_are_ordered_and_pairs_of_one_level_say_nothing() -> None:
    first = torch.tensor([1.0, 1.0, 0.0, 0.0])  # ++ +- -+ --
    second = torch.tensor([1.0, 0.0, 1.0, 0.0])
    weights = torch.tensor([0.5, 0.25])
    falling, rising = torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 2.0, 3.0])
    pairs = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    softplus = torch.nn.functional.softplus
    by_hand = 0.5 * softplus(torch.tensor(-1.0)) + softplus(torch.tensor(-1.0))
    by_hand += 0.25 * softplus(torch.tensor(-1.0)) + softplus(torch.tensor(-3.0))
    loss = level_loss(falling, first, second, pairs, weights)
    torch.testing.assert_close(loss, by_hand / 2.75)
    assert loss < level_loss(rising, first, second, pairs, weights)
    same = torch.tensor([[1, 1]])
    assert level_loss(falling, first, second, same, weights) == 0


def test_the_reservoir_holds_the_newest_row_per_level_and_is_read_before_it_is_written(
    tmp_path: Path,
) -> None:
    config = tiny("crossdistil")
    one, two = build_batch(SAMPLES[:30], PLAN), build_batch(SAMPLES[30:60], PLAN)
    every = np.ones(30, bool)
    with open_store(tmp_path, config) as store:
        reservoir = Reservoir(store, PLAN, [0, 1])
        drawn, pairs = reservoir.draw(one, every)
        assert len(drawn) == 30 and not len(pairs)  # nothing was there before
        newest: dict[tuple[bytes, int], int] = {}
        for b in range(30):
            newest[one.users[b], int(2 * one.labels[b, 0] + one.labels[b, 1])] = b
        drawn, pairs = reservoir.draw(two, every)
        met = {u for u, _ in newest} & set(two.users)
        assert met and len(drawn) == 30 + sum(u in met for u, _ in newest)
        assert (drawn.mask[30:] == 0).all() and (drawn.state[30:] == NO_STATE).all()
        packed = {side: PackedRows(drawn.parts[side]) for side in SIDES}
        before = {side: PackedRows(one.parts[side]) for side in SIDES}
        for own, other in pairs.tolist():
            user = two.users[own]
            level = int(2 * drawn.labels[other, 0] + drawn.labels[other, 1])
            for side in SIDES:
                assert packed[side].row(other) == before[side].row(newest[user, level])
        assert len(list(store.scan(SPACE))) == len(set(one.users) | set(two.users))


def test_joined_parts_are_the_rows_one_after_another() -> None:
    whole = build_batch(SAMPLES[:20], PLAN)
    first, second = build_batch(SAMPLES[:13], PLAN), build_batch(SAMPLES[13:20], PLAN)
    for side in SIDES:
        part = joined(first.parts[side], second.parts[side])
        for name in ("keys", "lengths", "weights", "missing", "numeric", "vectors", "ages"):
            np.testing.assert_array_equal(
                getattr(part, name), getattr(whole.parts[side], name), err_msg=name
            )


def test_drawn_rows_change_no_prediction_of_their_batch(tmp_path: Path) -> None:
    config = tiny("crossdistil")
    first, second = (build_batch(SAMPLES[n : n + BATCH], PLAN) for n in (0, BATCH))
    with open_store(tmp_path / "a", config) as one, open_store(tmp_path / "b", config) as other:
        a, b = Learner(PLAN, config, one), Learner(PLAN, config, other)
        a.step(first, now_ms=1)
        b.step(first, now_ms=1)
        for name, _ in list(other.scan(SPACE)):
            other.delete(SPACE, name)
        seen, alone = a.step(second, now_ms=2), b.step(second, now_ms=2)
        assert seen.logits.shape == (BATCH, 2) and seen.cross.shape[0] == BATCH
        np.testing.assert_allclose(seen.logits, alone.logits, rtol=1e-4, atol=1e-5)
        third = build_batch(SAMPLES[2 * BATCH : 3 * BATCH], PLAN)
        later = a.step(third, now_ms=3).logits, b.step(third, now_ms=3).logits
        assert (later[0] != later[1]).any()  # but the pairs taught something
