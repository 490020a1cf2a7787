"""The parts that models are made of, against their definitions. No data, no store."""

from __future__ import annotations

import itertools

import torch

from tests.sample_stream import make_config
from trainer.parts.gate import ByDomain, Experts
from trainer.parts.head import FirstOrder
from trainer.parts.interaction import GroupPairs, InnerProducts, pair_sum
from trainer.parts.taps import effective_rank
from trainer.parts.terms import expert_covariance
from trainer.slots import plan_slots


def test_pair_sum_is_the_sum_over_pairs() -> None:
    x = torch.randn(3, 5, 4)
    pairs = sum(x[:, i] * x[:, j] for i, j in itertools.combinations(range(5), 2))
    torch.testing.assert_close(pair_sum(x), pairs)


def test_gwpfms_group_form_is_the_loop_over_pairs() -> None:
    torch.manual_seed(1)
    group_of, dim = [0, 2, 1, 0, 2, 0], 3
    part = GroupPairs(group_of, dim).double()
    with torch.no_grad():
        part.relation.copy_(torch.randn_like(part.relation))
    x = torch.randn(4, 6, 3 * dim, dtype=torch.float64)
    v = x.view(4, 6, 3, dim)
    loop = torch.zeros(4, dim, dtype=torch.float64)
    for i, j in itertools.combinations(range(6), 2):
        a, b = group_of[i], group_of[j]
        loop += v[:, i, b] * v[:, j, a] * part.relation[min(a, b), max(a, b)]
    torch.testing.assert_close(part(x), loop)


def test_the_linear_term_learns_no_faster_with_more_sets() -> None:
    plan = plan_slots(make_config())
    own = {"task:click": ["click"], "task:buy": ["buy"]}
    for names, speaks in ((["a"], {}), (["a", "b", "c"], {}), (["a", *own], own)):
        term = FirstOrder(dict.fromkeys(names, 4), plan, speaks)
        slots = {name: torch.full((2, 3, 4), 0.5) for name in names}
        torch.testing.assert_close(term(slots), torch.full((2, 2), 1.5))


def test_one_group_of_gwpfm_is_fm() -> None:
    x = torch.randn(4, 5, 3)
    torch.testing.assert_close(GroupPairs([0] * 5, 3)(x), pair_sum(x))


def test_inner_products_hold_every_pair_once() -> None:
    x = torch.randn(2, 4, 3)
    products = InnerProducts(4, 3)(x)[:, 12:]
    for n, (i, j) in enumerate(itertools.combinations(range(4), 2)):
        torch.testing.assert_close(products[:, n], (x[:, i] * x[:, j]).sum(1))


def test_experts_side_by_side_are_experts_one_by_one() -> None:
    part = Experts(5, (4, 3), 2)
    x = torch.randn(6, 5)
    for e in range(2):
        h = x
        for weight, bias, scale, shift in zip(
            part.weights, part.biases, part.scales, part.shifts, strict=True
        ):
            h = torch.nn.functional.layer_norm(
                h @ weight[e] + bias[e], h.shape[:0] + scale.shape[2:]
            )
            h = torch.relu(h * scale[e] + shift[e])
        torch.testing.assert_close(part(x)[:, e], h)


def test_each_row_takes_its_own_domains_layer() -> None:
    part = ByDomain(3, 4, 2)
    x, domain = torch.randn(5, 4), torch.tensor([2, 0, 1, 1, 2])
    rows = [x[b] @ part.weight[d] + part.bias[d] for b, d in enumerate(domain.tolist())]
    torch.testing.assert_close(part(x, domain), torch.stack(rows))


def test_covariance_is_its_definition_without_the_diagonal() -> None:
    torch.manual_seed(2)
    outputs = torch.randn(40, 3, 4, dtype=torch.float64)
    centred = outputs - outputs.mean(0)
    by_hand = sum(
        (centred[:, p].T @ centred[:, q] / 40).abs().sum() / 16
        for p, q in itertools.combinations(range(3), 2)
    )
    torch.testing.assert_close(expert_covariance(outputs), by_hand)
    # an expert that varies alone costs nothing: its own covariance is left out
    alone = torch.zeros(40, 3, 4)
    alone[:, 1] = torch.randn(40, 4)
    assert expert_covariance(alone) == 0


def test_covariance_does_not_depend_on_the_size_of_the_batch() -> None:
    outputs = torch.randn(16, 2, 5, dtype=torch.float64)
    once, twice = expert_covariance(outputs), expert_covariance(outputs.repeat(2, 1, 1))
    torch.testing.assert_close(once, twice)
    shuffled = outputs[torch.randperm(16)]
    torch.testing.assert_close(once, expert_covariance(shuffled))


def test_covariance_of_one_row_is_nothing() -> None:
    outputs = torch.randn(1, 3, 4, requires_grad=True)
    value = expert_covariance(outputs)
    value.backward()
    assert value == 0 and outputs.grad is not None and torch.isfinite(outputs.grad).all()


def test_effective_rank_counts_equal_directions() -> None:
    eye = torch.eye(5)[None]
    torch.testing.assert_close(effective_rank(eye), torch.tensor([5.0]))
    one = torch.ones(1, 6, 4)
    torch.testing.assert_close(effective_rank(one), torch.tensor([1.0]), atol=1e-3, rtol=0)
