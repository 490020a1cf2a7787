"""The analysis tools against closed forms, and over a real store."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embedding_store.reading import StoreReader
from embedding_store.store import EmbeddingStore
from runtime.verbs.analyse import _lines
from tests.sample_stream import config_toml, make_config, make_samples, write_samples
from trainer.analysis.activations import layer_ranks
from trainer.analysis.measures import (
    contradictory,
    distances,
    effective_rank,
    entanglement,
    information_abundance,
    mutual_information,
    spearman,
)
from trainer.batch import build_batch
from trainer.feed import Feed
from trainer.loop import Loop
from trainer.source import FileSource
from trainer.step import row_layout


def test_abundance_from_the_gram_matrix_is_that_of_the_singular_values() -> None:
    table = np.random.default_rng(0).normal(size=(100, 10))
    values = np.linalg.svd(table, compute_uv=False)
    found = information_abundance(table.T @ table)
    assert found == pytest.approx(values.sum() / values.max(), rel=1e-9)
    assert 6.8 < found < 8.3  # a random Gaussian table; learned ones are far lower
    halves = sum(part.T @ part for part in np.split(table, 2))
    assert information_abundance(halves) == pytest.approx(found)
    assert information_abundance(np.eye(6)) == pytest.approx(6)
    assert information_abundance(np.outer(np.ones(4), np.ones(4))) == pytest.approx(1, abs=1e-6)
    assert information_abundance(np.zeros((3, 3))) == 0


def test_the_toy_collapses_onto_its_partner() -> None:
    """models with a partner of three values collapse, with a hundred they do not."""
    found = {size: [_toy(size, seed) for seed in range(3)] for size in (3, 100)}
    assert 4.0 < np.mean(found[3]) < 6.3  # 5.11 +- .86 over five seeds
    assert 7.2 < np.mean(found[100]) < 8.0  # 7.63 +- .18


def _toy(third: int, seed: int) -> float:
    """FM of three fields, only the first learns: abundance of its table after 30 epochs."""
    draw = np.random.default_rng(seed)
    first = 0.1 * draw.normal(size=(100, 10))
    second, last = draw.normal(size=(100, 10)), draw.normal(size=(third, 10))
    x = np.stack([draw.integers(0, n, 20_000) for n in (100, 100, third)], 1)
    labels = draw.integers(0, 2, 20_000)
    for _ in range(30):
        for rows in np.split(draw.permutation(20_000), 100):
            a, b, c = x[rows].T
            other = second[b] + last[c]
            z = (first[a] * other).sum(1) + (second[b] * last[c]).sum(1)
            error = 1 / (1 + np.exp(-z)) - labels[rows]
            np.add.at(first, a, -2.5 / len(rows) * error[:, None] * other)
    return information_abundance(first.T @ first)


def test_effective_rank_of_known_spectra() -> None:
    assert effective_rank(np.eye(5)) == pytest.approx(5)
    assert effective_rank(np.ones((7, 3))) == pytest.approx(1)
    assert effective_rank(np.diag([1.0, 1.0, 0.0])) == pytest.approx(2)


def test_rank_correlation_and_entanglement() -> None:
    draw = np.random.default_rng(1)
    x = draw.normal(size=300)
    assert spearman(x, np.exp(x)) == pytest.approx(1) and spearman(x, -x) == pytest.approx(-1)
    assert spearman(np.asarray([1, 1, 2]), np.asarray([1, 1, 2])) == pytest.approx(1)
    assert spearman(x, np.ones(300)) == 0
    assert entanglement(x, x) == pytest.approx(0)
    assert entanglement(x, draw.normal(size=300)) == pytest.approx(1, abs=0.2)
    near, far = np.arange(100.0), np.arange(100.0)[::-1]
    assert contradictory(near, far).tolist() == list(range(25))
    assert distances(np.eye(2), np.eye(2)[::-1]) == pytest.approx([np.sqrt(2)] * 2)


def test_information_is_that_of_the_formula_and_nothing_by_chance() -> None:
    labels = np.tile([True, False], 5000)
    assert mutual_information(labels.astype(int), labels) == pytest.approx(1, abs=0.001)
    draw = np.random.default_rng(2)
    assert mutual_information(draw.integers(0, 3000, 10_000), labels) < 0.02
    codes = draw.integers(0, 2, 200_000)
    noisy = draw.random(200_000) < np.where(codes == 1, 0.9, 0.1)
    entropy = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    assert mutual_information(codes, noisy) == pytest.approx(1 - entropy, abs=0.01)


@pytest.mark.parametrize("model", ["dcn", "rankup"])
def test_layers_of_a_store_are_those_of_the_model_that_learnt_it(
    tmp_path: Path, model: str
) -> None:
    """Samples with unknown values among them; dcn taps vectors, rankup tokens."""
    config = make_config(model={"name": model})
    samples = make_samples(600)
    file = write_samples(samples[:500], tmp_path / "s.jsonl")
    layout = row_layout(config)
    with EmbeddingStore.open(tmp_path / "st", layout, cache_rows_max=4096, owner="test") as store:
        loop = Loop(config, store, sink=None)
        feed = Feed(FileSource(file, {}), loop.plan, config.trainer)
        loop.run(feed)
        feed.close()
        tap = loop.learner.model.tap
        tap.seen = {}
        loop.learner.predict(build_batch(samples[300:], loop.plan))
        seen = {name: layer.double().numpy() for name, layer in tap.seen.items()}
    with StoreReader(tmp_path / "st", "test") as reader:
        found = layer_ranks(reader, config, samples[300:])
    assert list(found) == list(seen)
    assert any(layer.ndim == (3 if model == "rankup" else 2) for layer in seen.values())
    for name, layer in seen.items():
        each = layer if layer.ndim == 3 else layer[None]
        expected = np.mean([effective_rank(x) for x in each])
        assert found[name]["effective_rank"] == pytest.approx(expected, rel=1e-3)
        assert found[name]["of"] == min(layer.shape[-2:])


@pytest.mark.slow
def test_the_three_tools_over_a_trained_store(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(config_toml("t").replace("[trainer]", '[model]\nname = "dcn"\n\n[trainer]'))
    file = write_samples(make_samples(1500), tmp_path / "s.jsonl")
    store = tmp_path / "store"

    def run(*command: str) -> dict:  # type: ignore[type-arg]
        done = subprocess.run(
            [sys.executable, "-m", *command], check=True, stdout=subprocess.PIPE, timeout=400
        )
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    run("trainer", "--samples", str(file), "--config", str(config), "--store", str(store))
    tool = ("trainer.analysis",)
    of = ("--store", str(store), "--config", str(config))
    plots = [tmp_path / f"{name}.png" for name in ("a", "b", "c")]
    report = run(*tool, "collapse", *of, "--png", str(plots[0]), "--samples", str(file))
    users = report["tables"]["user_id"]["shared"]
    assert users["rows"] == 60 and 1 < users["information_abundance"] <= users["dim"] == 16
    assert report["layers"]["cross.layers.0.weight"]["effective_rank"] > 1
    assert set(report["towards"]["user_id"]) >= {"item_id", "domain"}
    seen = report["activations"]
    assert list(seen) == ["cross", "cr"] and seen["cr"]["of"] == 128
    assert all(1 < layer["effective_rank"] <= layer["of"] for layer in seen.values())
    single = shutil.copytree(store, tmp_path / "single")  # a store is open once at a time
    report = run(*tool, "entanglement", *of, "--single", f"click={single}", "--png", str(plots[1]))
    assert report["entanglement"]["click"] == pytest.approx(0, abs=1e-9)  # against itself
    assert report["views"]["click|buy"] == pytest.approx(0, abs=1e-9)  # one shared set: one view
    assert "`shared`" in _lines("entanglement", report)[-1]
    report = run(*tool, "correlation", *of, "--samples", str(file), "--png", str(plots[2]))
    bits = {name: slot["bits"]["click"] for name, slot in report["slots"].items()}
    assert bits["user_id"] > 10 * bits["os"]  # users have a click rate of their own
    assert report["slots"]["user_id"]["strength"] > 0
    assert all(plot.stat().st_size > 5000 for plot in plots)
