"""Every sparse optimizer against a dense torch one (FTRL against its formula), every width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_store.fanout import expand, reduce
from embedding_store.keys import row_keys
from embedding_store.layout import RowLayout, SetSpec
from embedding_store.optimizers import hyperparameters, step
from embedding_store.store import EmbeddingStore

UNIVERSE, IDS, STEPS = 40, 64, 60
KEYS = row_keys("item", [str(i) for i in range(UNIVERSE)])
SPECS = {
    "rowwise_adagrad": SetSpec(dim=5, optimizer="rowwise_adagrad", lr=0.1, eps=1e-6),
    "rowwise_adagrad_16": SetSpec(dim=16, optimizer="rowwise_adagrad", lr=0.1, eps=1e-6),
    "adagrad": SetSpec(dim=4, optimizer="adagrad", lr=0.1, eps=1e-6),
    "adam": SetSpec(dim=17, optimizer="adam", lr=0.05, beta1=0.8, beta2=0.95),
    "ftrl": SetSpec(dim=3, optimizer="ftrl", lr=0.3, l1=0.5, l2=0.1, beta=0.7),
    "sgd": SetSpec(dim=8, optimizer="sgd", lr=0.02),
}


class Dense:
    """One parameter per row, which steps only when the row is touched: lazy by construction."""

    def __init__(self, name: str, spec: SetSpec, first: np.ndarray) -> None:
        import torch

        self.torch, self.name, self.spec = torch, name, spec
        self.rows = [torch.tensor(row.astype(np.float64), requires_grad=True) for row in first]
        self.sums = np.zeros(len(first))
        self.z = np.zeros(first.shape)
        self.n = np.zeros(first.shape)
        made: dict[str, Any] = {
            "adagrad": lambda: torch.optim.Adagrad(self.rows, lr=spec.lr, eps=spec.eps),
            "adam": lambda: torch.optim.Adam(
                self.rows, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps
            ),
            "sgd": lambda: torch.optim.SGD(self.rows, lr=spec.lr),
        }
        self.optimizer = made[name]() if name in made else None

    def step(self, batch: np.ndarray, grad: np.ndarray) -> None:
        for row in self.rows:
            row.grad = None
        for i, g in zip(batch, grad.astype(np.float64), strict=True):
            row = self.rows[i]
            row.grad = self.torch.tensor(g) + (0 if row.grad is None else row.grad)
        if self.optimizer is not None:
            self.optimizer.step()
            return
        for i in np.unique(batch):
            g, weights = self.rows[i].grad.numpy(), self.rows[i].data.numpy()
            if self.name == "ftrl":  # McMahan et al. 2013, algorithm 1
                s = self.spec
                sigma = (np.sqrt(self.n[i] + g**2) - np.sqrt(self.n[i])) / s.lr
                self.z[i] += g - sigma * weights
                self.n[i] += g**2
                rate = (s.beta + np.sqrt(self.n[i])) / s.lr + s.l2
                weights[:] = np.where(
                    np.abs(self.z[i]) <= s.l1, 0, -(self.z[i] - np.sign(self.z[i]) * s.l1) / rate
                )
            else:
                self.sums[i] += (g**2).mean()
                weights -= self.spec.lr / (np.sqrt(self.sums[i]) + self.spec.eps) * g

    def vectors(self) -> np.ndarray:
        return np.stack([row.detach().numpy() for row in self.rows])


@pytest.mark.slow
def test_each_is_its_dense_self_and_feeding_one_set_leaves_the_others(tmp_path: Path) -> None:
    """Duplicate ids in every batch; each set learns in its own random half of the steps."""
    with EmbeddingStore.open(
        tmp_path / "s", RowLayout(SPECS), cache_rows_max=200, owner="test"
    ) as store:
        lookup = store.lookup(KEYS, now_ms=0)
        dense = {n: Dense(n, s, store.gather(lookup, n)) for n, s in SPECS.items()}
        rng = np.random.default_rng(1)
        for _ in range(STEPS):
            batch = (UNIVERSE * rng.random(IDS) ** 2).astype(int)
            lookup = store.lookup(KEYS[batch], now_ms=0)
            for name, spec in SPECS.items():
                if rng.random() < 0.5:
                    continue
                target = rng.standard_normal((IDS, spec.dim)).astype(np.float32)
                grad = store.gather_each(lookup, name) - target
                store.update_each(lookup, name, grad, now_ms=0)
                dense[name].step(batch, grad)
        for name, oracle in dense.items():
            learnt, found = store.peek(KEYS, name)
            assert found.all()
            np.testing.assert_allclose(learnt, oracle.vectors(), rtol=3e-4, atol=3e-5, err_msg=name)
        assert (store.peek(KEYS, "ftrl")[0] == 0).mean() > 0.01  # l1 zeroes exactly


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dim", [1, 7, 8, 19])
def test_a_step_that_would_not_be_finite_changes_nothing(name: str, dim: int) -> None:
    spec = SetSpec(dim=dim, optimizer=SPECS[name].optimizer)
    rng = np.random.default_rng(dim)
    words = rng.random((5, dim + spec.state_floats), np.float32)
    grad = rng.standard_normal((4, dim)).astype(np.float32)
    grad[1, dim - 1], grad[3, dim // 2] = np.nan, np.inf
    before = words.copy()
    slots = np.array([4, 0, -1, 2])
    assert step(spec, words, slots, 0, dim, grad, hyperparameters(spec)) == 2
    assert np.array_equal(words[:4], before[:4]) and (words[4, :dim] != before[4, :dim]).all()


def test_gradients_are_summed_per_key_and_rows_spread_over_ids() -> None:
    rng = np.random.default_rng(3)
    inverse = np.array([0, 1, 0, 2, 1, 0], np.int32)
    grad = rng.integers(-9, 9, (6, 3)).astype(np.float32)
    expected = np.stack([grad[inverse == u].sum(0) for u in range(3)])
    assert np.array_equal(reduce(grad, inverse, 3), expected)
    assert np.array_equal(expand(expected, inverse), expected[inverse])


def test_bfloat16_rounds_without_bias_and_the_same_way_again(tmp_path: Path) -> None:
    """Steps far below half a unit in the last place still move the mean as in float32."""
    lr, steps = 1e-4, 300
    digests = []
    for name in ("a", "b"):
        layout = RowLayout(
            {
                "half": SetSpec(dim=33, optimizer="sgd", lr=lr, init_scale=0, dtype="bfloat16"),
                "full": SetSpec(dim=33, optimizer="sgd", lr=lr, init_scale=0),
            }
        )
        with EmbeddingStore.open(
            tmp_path / name, layout, cache_rows_max=200, owner="test"
        ) as store:
            lookup = store.lookup(KEYS, now_ms=0)
            start = np.ones((UNIVERSE, 33), np.float32) * np.float32(-1 / lr)
            for each in layout.sets:
                store.update(lookup, each, start, now_ms=0)  # every weight is 1
            for _ in range(steps):
                lookup = store.lookup(KEYS, now_ms=0)
                for each in layout.sets:
                    store.update(lookup, each, -np.ones_like(start), now_ms=0)
            half, full = store.peek(KEYS, "half")[0], store.peek(KEYS, "full")[0]
            digests.append(store.content_digest())
        assert abs(full.mean() - (1 + lr * steps)) < 1e-4
        # one unit in the last place is 2^-7 here: nearest would stay at 1 for ever
        assert abs(half.mean() - full.mean()) < 1e-3 and half.std() > 1e-3
        assert not (half.view(np.uint32) & 0xFFFF).any()
    assert digests[0] == digests[1]
