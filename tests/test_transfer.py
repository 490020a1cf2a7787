"""Published vectors in a downstream model: data, aged, never a parameter; each way of transfer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from downstream.published import Published, PublishedRows, read_for, read_published
from downstream.scenario.model import RetrievalModel
from downstream.table import Taken, VectorTable
from downstream.transfer import (
    Direct,
    IsomorphicInteraction,
    LinearConcat,
    NonLinearAdapter,
    NoTransfer,
    RetrievalScore,
)
from tests.publishing import DIM, representation
from topics.names import Kind

OWN = 12
PARTS = ("weight", "bias")


class Held:
    """A reader's side of `take`, over a real table."""

    def __init__(self, table: VectorTable) -> None:
        self._table = table

    def take(self, kind: Kind, ids: Sequence[str]) -> Taken:
        assert kind == "user"
        return self._table.take(ids)


def published(rows: int, dim: int = DIM, *, missing: float = 0.0) -> Published:
    vectors = torch.randn(rows, dim, generator=torch.Generator().manual_seed(1))
    return Published(
        vectors * (1 - missing), torch.full((rows,), 3.0), torch.full((rows,), missing)
    )


def test_a_vector_newer_than_its_impression_is_not_used() -> None:
    table = VectorTable("user")
    table.apply([representation("u1", 5, event_ms=5_000), representation("u2", 9, event_ms=9_000)])
    ids = ["u1", "u2", "nobody", "u1"]
    read = read_published(Held(table), "user", ids, np.asarray([7_500, 8_999, 1, 5_000]), dim=DIM)
    assert read.missing.tolist() == [0, 1, 1, 0]
    assert read.from_future == 1
    assert read.age_seconds.tolist() == [2.5, 0, 0, 0]
    assert read.vectors.tolist() == [[5.0] * DIM, [0.0] * DIM, [0.0] * DIM, [5.0] * DIM]


def test_what_is_read_carries_no_gradient_and_knows_its_width() -> None:
    table = VectorTable("user")
    empty = read_published(Held(table), "user", ["u1"], np.asarray([1]), dim=DIM)
    assert empty.vectors.shape == (1, DIM)
    assert empty.missing.tolist() == [1]
    table.apply([representation("u1", 5)])
    tensors = read_published(Held(table), "user", ["u1"], np.asarray([9_000]), dim=DIM).tensors()
    assert not any(t.requires_grad for t in (tensors.vectors, tensors.age_seconds, tensors.missing))
    with pytest.raises(
        ValueError, match="expected user vectors of 7 elements, the topic carries 4"
    ):
        read_published(Held(table), "user", ["u1"], np.asarray([9_000]), dim=7)


@pytest.mark.parametrize(
    "module",
    [
        NoTransfer(OWN),
        LinearConcat(OWN, DIM),
        NonLinearAdapter(OWN, DIM),
        IsomorphicInteraction(OWN, DIM, wide=8, cross_layers=2, mix_dims=(6, 5)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_every_way_has_the_width_it_says_and_learns(module: nn.Module) -> None:
    own = torch.randn(3, OWN)
    out = module(own, published(3))
    assert out.shape == (3, module.width)
    if list(module.parameters()):
        out.square().sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_the_adapter_changes_nothing_before_it_has_learnt() -> None:
    own = torch.randn(5, OWN)
    assert torch.equal(NonLinearAdapter(OWN, DIM)(own, published(5)), own)


def test_the_adapter_sees_age_and_absence() -> None:
    adapter = NonLinearAdapter(OWN, DIM)
    nn.init.normal_(adapter.gate[-1].weight)
    own, near = torch.ones(1, OWN), published(1)
    old = Published(near.vectors, near.age_seconds * 1000, near.missing)
    gone = Published(near.vectors, near.age_seconds, torch.ones(1))
    assert not torch.equal(adapter(own, near), adapter(own, old))
    assert not torch.equal(adapter(own, near), adapter(own, gone))


def test_a_missing_vector_is_not_a_small_one() -> None:
    module = LinearConcat(OWN, DIM)
    own = torch.ones(1, OWN)
    zero = Published(torch.zeros(1, DIM), torch.zeros(1), torch.zeros(1))
    missing = Published(torch.zeros(1, DIM), torch.zeros(1), torch.ones(1))
    assert not torch.equal(module(own, zero), module(own, missing))
    assert module(own, missing)[0, OWN:-1].eq(0).all()


def upstream_weights(
    wide: int, cross_layers: int, mix_dims: Sequence[int]
) -> dict[str, torch.Tensor]:
    """As `Lfm4Ads` names and shapes them."""
    generator = torch.Generator().manual_seed(7)
    weights = {"norm.weight": torch.ones(wide), "norm.bias": torch.zeros(wide)}
    for n in range(cross_layers):
        weights[f"cross.layers.{n}.weight"] = torch.randn(wide, wide, generator=generator)
        weights[f"cross.layers.{n}.bias"] = torch.randn(wide, generator=generator)
    before = wide
    for n, after in enumerate(mix_dims):
        weights[f"mix.layers.{n}.weight"] = torch.randn(after, before, generator=generator)
        weights[f"mix.layers.{n}.bias"] = torch.randn(after, generator=generator)
        weights[f"mix.norms.{n}.weight"] = torch.ones(after)
        weights[f"mix.norms.{n}.bias"] = torch.zeros(after)
        before = after
    return weights


@pytest.mark.parametrize("frozen", [True, False])
def test_an_isomorphic_module_starts_as_the_upstream_and_may_stay_so(frozen: bool) -> None:
    weights = upstream_weights(8, 2, (6, 5))
    module = IsomorphicInteraction(OWN, DIM, wide=8, cross_layers=2, mix_dims=(6, 5), frozen=frozen)
    module.warm_start(weights)
    assert torch.equal(module.cross[1].weight, weights["cross.layers.1.weight"])
    assert torch.equal(module.layers[1].weight, weights["mix.layers.1.weight"])
    before = {name: tensor.clone() for name, tensor in weights.items()}
    learning = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.1)
    module(torch.randn(4, OWN), published(4))[:, OWN:].square().sum().backward()
    entered = module.enter.weight.clone()
    optimizer.step()
    assert not torch.equal(module.enter.weight, entered), "the own projection always learns"
    assert torch.equal(module.cross[1].weight, before["cross.layers.1.weight"]) is frozen
    assert all(torch.equal(weights[name], before[name]) for name in weights), "only copies learn"


def test_the_upstreams_head_of_one_task_speaks_from_the_start() -> None:
    """With no own field learnt yet, the module says what the upstream's layers and head say of the
    published vectors; an export without heads leaves it silent."""
    weights = upstream_weights(8, 1, (6,))
    own, read = torch.randn(4, OWN), published(4)
    silent = IsomorphicInteraction(OWN, DIM, wide=8, cross_layers=1, mix_dims=(6,))
    silent.warm_start(weights)
    assert silent.says(silent(own, read)).eq(0).all()
    weights["heads.linear.weight"] = torch.randn(3, 6)
    module = IsomorphicInteraction(OWN, DIM, wide=8, cross_layers=1, mix_dims=(6,))
    module.warm_start(weights, task=2)
    x0 = nn.functional.layer_norm(torch.cat([read.vectors, torch.zeros(4, 8 - DIM)], 1), (8,))
    crossed = x0 * nn.functional.linear(x0, *(weights[f"cross.layers.0.{p}"] for p in PARTS)) + x0
    mixed = nn.functional.linear(crossed, *(weights[f"mix.layers.0.{p}"] for p in PARTS))
    hidden = torch.relu(nn.functional.layer_norm(mixed, (6,)))
    expected = hidden @ weights["heads.linear.weight"][2]
    assert torch.allclose(module.says(module(own, read)), expected, atol=1e-5)


def test_what_a_vector_says_by_itself_is_nothing_at_first() -> None:
    direct = Direct(DIM)
    assert direct(published(3)).tolist() == [0.0] * 3
    direct(published(3)).sum().backward()
    assert direct.weight.grad is not None and direct.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("user_dim", [DIM, 6])
def test_retrieval_learns_what_a_user_vector_asks_of_an_item_vector(user_dim: int) -> None:
    """UR and IR of one width, or CR and IR of two."""
    torch.manual_seed(2)
    users, items = torch.randn(400, user_dim), torch.randn(400, DIM)
    wanted = torch.randn(user_dim, DIM)
    labels = ((users @ wanted * items).sum(1) > 0).float()
    read = Published(torch.cat([users, items], 1), torch.zeros(400), torch.zeros(400))
    score = RetrievalScore(user_dim, DIM)
    first = (users * items).sum(1) * DIM**-0.5 if user_dim == DIM else torch.zeros(400)
    assert torch.allclose(score(read), first, atol=1e-6)
    optimizer = torch.optim.Adam(score.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(score(read), labels).backward()
        optimizer.step()
    assert ((score(read) > 0) == (labels > 0)).float().mean() > 0.95
    assert score(Published(read.vectors, read.age_seconds, torch.ones(400))).eq(0).all()


def test_the_crs_user_side_and_ir_are_read_side_by_side() -> None:
    tables = {kind: VectorTable(kind) for kind in ("cross", "item")}
    tables["cross"].apply(
        [representation(name, v, kind="cross") for name, v in (("user:a", 3), ("item:a", 4))]
    )
    tables["item"].apply([representation("a", 5, kind="item")])

    class Reader:
        def take(self, kind: Kind, ids: Sequence[str]) -> Taken:
            return tables[kind].take(ids)

    at = np.asarray([10**6, 10**6])
    read = read_for(Reader(), "cross_item", ["a", "b"], ["a", "a"], at, dims=[DIM, DIM])
    assert read.vectors.tolist() == [[3.0] * DIM + [5.0] * DIM, [0.0] * 2 * DIM]
    assert read.missing.tolist() == [0, 1]
    with pytest.raises(ValueError, match="expected the widths of a user's and an item's vector"):
        RetrievalModel([DIM])


def test_weights_of_another_shape_are_refused_by_name() -> None:
    module = IsomorphicInteraction(OWN, DIM, wide=8, cross_layers=2, mix_dims=(6,))
    with pytest.raises(ValueError, match=r"mix.layers.0.weight of shape \[6, 8\], got \[7, 8\]"):
        module.warm_start(upstream_weights(8, 2, (7,)))
    with pytest.raises(ValueError, match=r"cross.layers.1.weight .* got nothing"):
        module.warm_start(upstream_weights(8, 1, (6,)))


def test_rows_wait_for_their_label_as_they_were_read() -> None:
    table = VectorTable("user")
    table.apply([representation("u1", 5)])
    read = read_published(Held(table), "user", ["u1"], np.asarray([9_000]), dim=DIM)
    table.apply([representation("u1", 6)])
    assert isinstance(read, PublishedRows)
    assert read.vectors.tolist() == [[5.0] * DIM], "a later version must not reach into it"
