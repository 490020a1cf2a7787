"""Interaction collapse without data (arXiv 2310.04400): an FM field that meets a field of few
values loses dimensions. Also the identity by which information abundance is streamed."""

from __future__ import annotations

import numpy as np
import pytest

ROWS, BATCH, EPOCHS, STEP, SEEDS = 20_000, 200, 30, 2.5, 5


def abundance(table: np.ndarray) -> float:
    """Sum of singular values over the largest, from the d x d Gram matrix."""
    values = np.sqrt(np.clip(np.linalg.eigvalsh(table.T @ table), 0, None))
    return float(values.sum() / values.max())


def test_abundance_from_the_gram_matrix_is_that_of_the_singular_values() -> None:
    tables = [np.random.default_rng(n).normal(size=(100, 10)) for n in range(20)]
    for table in tables:
        values = np.linalg.svd(table, compute_uv=False)
        assert abundance(table) == pytest.approx(values.sum() / values[0], rel=1e-9)
    assert np.mean([abundance(t) for t in tables]) == pytest.approx(7.8, abs=0.2)


def learned_abundance(third: int, seed: int) -> float:
    """IA of E1 after training it alone on e1.e2 + e1.e3 + e2.e3 with random labels."""
    draw = np.random.default_rng(seed)
    one = 0.1 * draw.normal(size=(100, 10))
    two, three = draw.normal(size=(100, 10)), draw.normal(size=(third, 10))
    x = np.stack([draw.integers(0, n, ROWS) for n in (100, 100, third)], 1)
    labels = draw.integers(0, 2, ROWS)
    partner = two[x[:, 1]] + three[x[:, 2]]  # [rows, 10]
    rest = (two[x[:, 1]] * three[x[:, 2]]).sum(1)
    for _ in range(EPOCHS):
        order = draw.permutation(ROWS)
        for start in range(0, ROWS, BATCH):
            rows = order[start : start + BATCH]
            at = x[rows, 0]
            score = (one[at] * partner[rows]).sum(1) + rest[rows]
            error = 1 / (1 + np.exp(-score)) - labels[rows]
            moved = np.zeros_like(one)
            np.add.at(moved, at, error[:, None] * partner[rows] / BATCH)
            one -= STEP * moved
    return abundance(one)


@pytest.mark.slow
def test_a_partner_of_few_values_collapses_a_field() -> None:
    few = [learned_abundance(3, seed) for seed in range(SEEDS)]
    many = [learned_abundance(100, seed) for seed in range(SEEDS)]
    assert np.mean(few) == pytest.approx(5.11, abs=0.86)
    assert np.mean(many) == pytest.approx(7.63, abs=0.18)
