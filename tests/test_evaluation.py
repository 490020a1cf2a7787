"""Progressive metrics: exact against brute force, mergeable, durable, each impression once."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from embedding_store.store import EmbeddingStore
from tests.sample_stream import make_config
from trainer.auc import BINS, bin_of, binned_auc, grouped_auc
from trainer.evaluation import Evaluation, Sums
from trainer.step import row_layout

WINDOW_MS = 3_600_000

CONFIG = make_config()


def _open(path: Path) -> EmbeddingStore:
    return EmbeddingStore.open(path, row_layout(CONFIG), cache_rows_max=4096, owner="test")


def _brute_auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    pairs = list(itertools.product(scores[labels], scores[~labels]))
    if not pairs:
        return None
    return float(np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs]))


def test_binned_auc_is_the_auc_of_binned_scores() -> None:
    draw = np.random.default_rng(0)
    labels = draw.random(200) < 0.3
    scores = np.round(draw.normal(size=200) + labels, 2)
    bins = bin_of(scores)
    auc = binned_auc(
        np.bincount(bins[labels], minlength=BINS), np.bincount(bins[~labels], minlength=BINS)
    )
    assert auc == pytest.approx(_brute_auc(bins.astype(float), labels))
    assert auc == pytest.approx(_brute_auc(scores, labels), abs=0.01)


def test_grouped_auc_weighs_users_with_both_classes() -> None:
    draw = np.random.default_rng(1)
    groups = draw.integers(0, 12, 150)
    labels = draw.random(150) < 0.3
    scores = np.round(draw.normal(size=150), 1)
    expected = [
        (int((groups == g).sum()), _brute_auc(scores[groups == g], labels[groups == g]))
        for g in np.unique(groups)
    ]
    both = [(n, auc) for n, auc in expected if auc is not None]
    wanted = sum(n * auc for n, auc in both) / sum(n for n, _ in both)
    assert grouped_auc(groups, scores, labels) == pytest.approx(wanted)
    assert grouped_auc(groups, scores, np.zeros(150, bool)) is None


def test_sums_merge_and_survive_bytes() -> None:
    draw = np.random.default_rng(2)
    logits, labels = draw.normal(size=300), draw.random(300) < 0.2
    whole, left, right = Sums(), Sums(), Sums()
    whole.add(logits, labels)
    left.add(logits[:100], labels[:100])
    right.add(logits[100:], labels[100:])
    left.merge(Sums.load(right.dump()))
    assert left.report() == pytest.approx(whole.report())
    p = 1 / (1 + np.exp(-logits))
    rate = labels.mean()
    logloss = -np.mean(np.where(labels, np.log(p), np.log(1 - p)))
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert whole.report()["ne"] == pytest.approx(logloss / entropy)
    assert whole.report()["pcoc"] == pytest.approx(p.sum() / labels.sum())


def test_one_class_and_nothing_are_undefined_and_not_an_error() -> None:
    sums = Sums()
    assert sums.report() == {"auc": None, "ne": None, "pcoc": None, "samples": 0, "positives": 0}
    sums.add(np.zeros(3), np.zeros(3, bool))
    assert sums.report()["ne"] is None and sums.report()["samples"] == 3


def test_a_calibrated_model_has_pcoc_one() -> None:
    draw = np.random.default_rng(3)
    logits = draw.normal(size=50_000) - 2
    labels = draw.random(50_000) < 1 / (1 + np.exp(-logits))
    sums = Sums()
    sums.add(logits, labels)
    assert sums.report()["pcoc"] == pytest.approx(1.0, abs=3 / np.sqrt(labels.sum()))


def _evaluation(store: EmbeddingStore) -> Evaluation:
    return Evaluation(store, ("click", "buy"), ("feed", "search"), window_ms=WINDOW_MS)


def test_predictions_and_sums_are_durable_by_domain_and_window(tmp_path: Path) -> None:
    first = np.asarray([0.5, -1.0], np.float32)
    with _open(tmp_path) as store:
        evaluation = _evaluation(store)
        evaluation.remember([b"imp1"], first[None])
        evaluation.stage()
        store.commit()
    with _open(tmp_path) as store:
        evaluation = _evaluation(store)
        assert evaluation.pending([b"imp1", b"imp2"]) == [True, False]
        np.testing.assert_array_equal(evaluation.recall([b"imp1"])[0], first)
        assert evaluation.pending([b"imp1"]) == [False]
        evaluation.score(
            np.asarray([[0.5, -1.0], [2.0, 0.0], [-2.0, 0.0]], np.float32),
            np.asarray([[1, 0], [1, 0], [0, 0]], np.float32),
            mask=np.asarray([[1, 1], [1, 0], [1, 0]], np.float32),
            domain=np.asarray([1, 0, 0]),
            event_ms=np.asarray([0, WINDOW_MS, WINDOW_MS]),
            users=[b"a", b"b", b"b"],
        )
        evaluation.stage()
        store.commit()
        assert evaluation.latest()["click"]["samples"] == 3
        evaluation.score(
            np.asarray([[1.0, 0.0]], np.float32),
            np.asarray([[1, 0]], np.float32),
            mask=np.asarray([[0, 1]], np.float32),
            domain=np.asarray([0]),
            event_ms=np.asarray([2 * WINDOW_MS]),
            users=[b"b"],
        )
        assert evaluation.latest()["click"]["samples"] == 2  # the first window has gone by
    with _open(tmp_path) as store:
        report = _evaluation(store).report()
    assert report["overall"]["click"]["samples"] == 3 and report["overall"]["buy"]["samples"] == 1
    assert report["overall"]["click"]["gauc"] == 1.0  # user b; user a has one class only
    assert set(report["by_domain"]) == {"feed", "other"}
    assert report["by_domain"]["feed"]["click"]["positives"] == 1
    assert set(report["by_window"]) == {"0", str(WINDOW_MS)}
    assert report["by_window"]["0"]["click"]["samples"] == 1
