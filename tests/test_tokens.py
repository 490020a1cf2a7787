"""Tokens, sequences and codes against their definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from embedding_store.keys import row_keys
from settings.load import ConfigError, load_config
from tests.sample_stream import make_config, make_samples
from tests.test_models import TINY, TRAINING, open_store, tiny
from tests.test_routing import config_of, free_batch, free_rows
from trainer.batch import build_batch
from trainer.codes import digit_counts, mnse_codes, mnse_keys, similarity_bucket
from trainer.durable import Progress, recover_state, stage_state
from trainer.models.build import build_model
from trainer.parts.mixer import MixerBlock, SparseFfn, mix_tokens
from trainer.parts.sequence import TargetInterest
from trainer.parts.taps import Taps, effective_rank
from trainer.slots import plan_slots
from trainer.step import Learner
from trainer.tensors import SequenceTensors


def test_mixing_twice_is_nothing_and_once_is_its_definition() -> None:
    x = torch.randn(3, 4, 12)
    mixed = mix_tokens(x)
    torch.testing.assert_close(mix_tokens(mixed), x, rtol=0, atol=0)
    for head in range(4):
        slices = [x[:, t, 3 * head : 3 * head + 3] for t in range(4)]
        torch.testing.assert_close(mixed[:, head], torch.cat(slices, 1), rtol=0, atol=0)


def test_tokens_that_do_not_divide_their_width_fail_loudly(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 tokens do not divide their width 12"):
        mix_tokens(torch.zeros(1, 5, 12))
    (tmp_path / "c.toml").write_text("[model]\nname = 'rankmixer'\n[model.rankmixer]\ntokens = 2\n")
    load_config(tmp_path / "c.toml", env={})
    (tmp_path / "c.toml").write_text(
        "[model]\nname = 'rankup'\n[model.rankup]\ntoken_dim = 50\ngroups = 3\n"
    )
    with pytest.raises(
        ConfigError, match=r"expected a multiple of 6, .* got 50; the nearest is 48"
    ):
        load_config(tmp_path / "c.toml", env={})


def test_the_permutation_is_saved_with_the_weights(tmp_path: Path) -> None:
    config = tiny("rankup")
    plan = plan_slots(config)
    with open_store(tmp_path, config) as store:
        learner = Learner(plan, config, store)
        recover_state(store, learner, plan, config)
        drawn = learner.model.permutation.clone()
        assert sorted(drawn.tolist()) == list(range(len(plan.slots)))
        learner.model.permutation.copy_(drawn.flip(0))  # as an earlier version may have drawn it
        expected = learner.step(TRAINING[0], now_ms=1).logits
        stage_state(store, learner, Progress(step=1))
        store.commit()
        after = learner.step(TRAINING[1], now_ms=2).logits
    with open_store(tmp_path, config) as store:
        learner = Learner(plan, config, store)
        recover_state(store, learner, plan, config)
        assert learner.model.permutation.tolist() == drawn.flip(0).tolist()
        np.testing.assert_array_equal(learner.step(TRAINING[1], now_ms=2).logits, after)
    other = tiny("rankup", model=TINY | {"name": "rankup", "rankup": {"permutation_seed": 1}})
    assert build_model(plan, other).permutation.tolist() != drawn.tolist()
    assert expected.shape == (50, 2)


def test_rank_is_tapped_after_every_mixer_and_layer() -> None:
    for name in ("rankmixer", "rankup"):
        config = config_of(name)
        model = build_model(plan_slots(config), config)
        batch = free_batch(config)
        model.tap.seen = {}
        model(batch, free_rows(model, batch))
        for layer in ("mix:0", "ffn:0", "mix:1", "ffn:1"):
            tokens = model.tap.seen[layer]
            rank = effective_rank(tokens)
            assert rank.shape == (40,) and (rank >= 1).all()
            assert (rank <= min(tokens.shape[1:]) + 1e-4).all()


def test_the_ranking_does_not_train_the_two_towers_behind_the_crossed_token() -> None:
    config = config_of("rankup")
    model = build_model(plan_slots(config), config)
    batch = free_batch(config)
    rows = free_rows(model, batch)
    model.first = None  # the linear term speaks for every set
    output = model(batch, rows)
    output.logits.sum().backward(retain_graph=True)
    grad = rows["retrieval"].grad
    assert grad is None or (grad == 0).all()
    output.auxiliary.sum().backward()
    assert rows["retrieval"].grad is not None and (rows["retrieval"].grad != 0).any()


def test_a_token_has_weights_of_its_own() -> None:
    torch.manual_seed(0)
    block = MixerBlock(2, 4, ratio=2, pre_norm=True)
    same = torch.ones(1, 2, 4) * torch.randn(4)
    out, _ = block(same, Taps(), "0")
    moved = block.ffn(same)
    assert (moved[:, 0] != moved[:, 1]).all() and out.shape == same.shape


def test_the_routers_penalty_is_what_its_gates_sum_to() -> None:
    config = config_of("rankmixer", router_l1=0.5)
    model = build_model(plan_slots(config), config)
    batch = free_batch(config)
    model.tap.seen = {}
    output = model(batch, free_rows(model, batch))
    gates = sum(model.tap.seen[f"router:{n}"].sum((1, 2)).mean() for n in range(2))
    torch.testing.assert_close(output.terms["router"].detach(), 0.5 * gates)
    sparse = SparseFfn(2, 4, 2, 3)
    with torch.no_grad():
        sparse.router.bias.fill_(-9.0)
    assert (sparse(torch.randn(5, 2, 4))[0] == 0).all()  # no expert on: nothing moves


@pytest.mark.parametrize("code", ["position", "gap"])
def test_interest_is_tims_formula(code: str) -> None:
    torch.manual_seed(3)
    rows, target = torch.randn(9, 4), torch.randn(2, 4)
    indices = torch.tensor([[3, 5, 7], [1, 0, 0]])
    logs = torch.tensor([[-1.0, -2.0, 0.0], [0.0, -torch.inf, -torch.inf]])
    ages = torch.tensor([[7.3, 4.0, 0.2], [2.0, 0.0, 0.0]])
    part = TargetInterest(4, 5, code)
    vector, attention = part(SequenceTensors(indices, logs, ages), target, rows)
    codes = {"position": [[3, 2, 1], [1]], "gap": [[8, 5, 1], [3]]}[code]
    for b, own in enumerate(codes):
        e = rows[indices[b, : len(own)]] + part.codes.weight[own]
        v = target[b] + part.codes.weight[0]
        a = torch.softmax((e @ v) / 2.0, 0)
        torch.testing.assert_close(attention[b, : len(own)], a)
        torch.testing.assert_close(vector[b], (a[:, None] * (e * v)).sum(0))
    empty = SequenceTensors(indices, torch.full((2, 3), -torch.inf), ages)
    assert (part(empty, target, rows)[0] == 0).all()


def test_mnse_codes_are_digits_by_system_and_position() -> None:
    assert digit_counts((2, 3), 6) == [6, 4]
    (codes,) = mnse_codes(np.array([51]), (2, 3), 6)
    # 51 = 110011 in base 2 and 1220 in base 3, least significant digit first; 2 codes of sign
    binary = [2 + 2 * k + d for k, d in enumerate([1, 1, 0, 0, 1, 1])]
    ternary = [14 + 3 * k + d for k, d in enumerate([0, 2, 2, 1])]
    assert codes.tolist() == [0, *binary, *ternary]
    sign = mnse_codes(np.array([51, -51, 10**9, 63]), (2, 3), 6)
    assert sign[1].tolist() == [1, *codes[1:].tolist()]
    assert sign[2].tolist() == sign[3].tolist()  # held at the end, never wider


def test_mnse_tells_every_number_apart_by_position_and_digit() -> None:
    codes = mnse_codes(np.arange(64), (2, 3), 6)
    assert codes.shape == (64, 11)  # the count of digits does not depend on the number
    assert len({tuple(row) for row in codes.tolist()}) == 64
    six, three = codes[0b110].tolist(), codes[0b011].tolist()
    assert set(six) != set(three)  # the same digits elsewhere are other codes
    keys, weights = mnse_keys("a", np.array([6.0, 3.0]), (2, 3), 6)
    assert set(keys[:11]) != set(keys[11:]) and (weights == 1).all()
    assert set(mnse_keys("a", np.array([6.0]), (2, 3), 7)[0]).isdisjoint(keys)


def _coded(**slots: Any) -> Any:
    config = make_config(slots=slots)
    return plan_slots(config)


def test_numbers_and_similarities_become_their_codes_in_a_batch() -> None:
    plan = _coded(
        age={"side": "user", "type": "numeric", "encoder": "mnse", "bits": 6, "scale": 0.5},
        match={"type": "similarity", "of": ["mine", "its"]},
    )
    one = make_samples(1)[0]
    samples = [
        msgspec.structs.replace(one, features=features)
        for features in (
            {"age": 102, "mine": [3.0, 4.0], "its": [6.0, 8.0]},
            {"mine": [1.0, 0.0], "its": [-2.0, 0.0]},
            {"age": 6, "mine": [1.0], "its": [1.0, 2.0]},
            {"age": 6, "mine": [0.0, 0.0], "its": [1.0, 2.0]},
        )
    ]
    batch = build_batch(samples, plan)
    user = batch.parts["user"]
    assert user.lengths.reshape(-1, 4)[1].tolist() == [11, 0, 11, 11]
    expected, _ = mnse_keys("age", np.array([51.0]), (2, 3), 6)
    assert user.keys[4:15].tolist() == expected.tolist()
    context = batch.parts["context"]
    names = [s.name for s in context.plan.slots]
    at = names.index("match")
    assert context.missing[:, at].tolist() == [0, 0, 1, 1]
    same, _ = mnse_keys("match", similarity_bucket(np.array([1.0])), (2, 3), 8)
    assert same.tolist() == context.keys[-2 * len(same) : -len(same)].tolist()
    assert similarity_bucket(np.array([1.0, -1.0, 0.0])).tolist() == [255, 0, 128]
    assert batch.rejected == {("match", "expected two lists of as many numbers"): 1}
    assert row_keys("match", ["mnse:2.3:8:0"])[0] in context.keys


def test_options_that_do_not_fit_the_slots_are_named() -> None:
    with pytest.raises(ValidationError, match="tim needs at least one slot of type 'sequence'"):
        make_config(model={"name": "tim"}, slots={})
    with pytest.raises(ValidationError, match=r"rankup.tables.*did you mean 'os'"):
        make_config(model={"rankup": {"tables": {"oss": 1}}})
    with pytest.raises(ValidationError, match=r"stem_al.main.*did you mean 'click'"):
        make_config(model={"stem_al": {"main": ["clik"]}})
    with pytest.raises(ValidationError, match="a slot of type 'similarity' has 2 features"):
        make_config(slots={"s": {"type": "similarity"}})
