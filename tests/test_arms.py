"""Frozen, yesterday's and live predictions of the same impressions; alarms when they decay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedding_store.store import EmbeddingStore
from settings.config import Config
from tests.sample_stream import make_config, make_samples, write_samples
from trainer.arms import Arms
from trainer.batch import Batch, build_batch
from trainer.bounded import run_bounded
from trainer.drift import DriftMonitor
from trainer.durable import recover_state
from trainer.evaluation import Evaluation, Sums
from trainer.feed import Feed
from trainer.loop import Loop
from trainer.source import FileSource
from trainer.step import Learner, row_layout

HOUR_MS = 3_600_000


def _open(path: Path, config: Config) -> EmbeddingStore:
    return EmbeddingStore.open(path, row_layout(config), cache_rows_max=4096, owner="test")


def _config(**sections: object) -> Config:
    return make_config(
        evaluation={"arms": True, "arms_every": "10m", "arms_share": 0.5}, **sections
    )


def test_a_copy_predicts_what_the_model_of_its_commit_predicted(tmp_path: Path) -> None:
    config = _config()
    samples = make_samples(800)
    file = write_samples(samples, tmp_path / "s.jsonl")
    with _open(tmp_path / "store", config) as store:
        loop = Loop(config, store, sink=None)
        assert loop.arms is not None
        asked = build_batch(samples[:50], loop.plan)
        at_copy: list[np.ndarray] = []
        copying = loop.arms.snapshot

        def note(now_ms: int) -> None:
            at_copy.append(loop.learner.predict(asked))
            copying(now_ms)

        apart = [0.0]

        def watch(rows: Batch, said: dict[str, np.ndarray]) -> None:
            assert loop.arms is not None
            for name in ("daily", "frozen"):
                own = loop.arms._arm(loop.arms._copies[name])
                np.testing.assert_array_equal(said[name], own.predict(rows))
            apart.append(float(np.abs(said["daily"] - said["frozen"]).max()))

        loop.arms.snapshot = note  # type: ignore[method-assign]
        loop.arms.watch = watch
        feed = Feed(FileSource(file, {}), loop.plan, config.trainer)
        loop.run(feed)
        feed.close()
        assert len(at_copy) > 2 and max(apart) > 0.01
        again = Arms(store, config, loop.plan)  # as a restart finds them
        for name, expected in (("frozen", at_copy[0]), ("daily", at_copy[-1])):
            found = again._arm(again._copies[name]).predict(asked)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert np.abs(at_copy[0] - at_copy[-1]).max() > 0.01
        assert {p.name for p in again._root.iterdir()} >= {c.folder for c in again._copies.values()}
        again.close()


@pytest.mark.parametrize("correct", [False, True])
def test_arms_count_the_same_impressions_and_change_nothing(tmp_path: Path, correct: bool) -> None:
    policy = {"policy": "correct" if correct else "wait"}
    samples = make_samples(700, correct=correct)
    file = write_samples(samples, tmp_path / "s.jsonl")
    with_arms = run_bounded(file, _config(join=policy), tmp_path / "a")
    without = run_bounded(file, make_config(join=policy), tmp_path / "b")
    assert with_arms["progressive"] == without["progressive"] and not without["arms"]
    counts = {
        (r["overall"]["click"]["samples"], r["overall"]["click"]["positives"])
        for r in with_arms["arms"].values()
    }
    assert len(counts) == 1 and 150 < counts.pop()[0] < 500
    entropies = {name: r["overall"]["click"]["ne"] for name, r in with_arms["arms"].items()}
    assert entropies["live"] < entropies["frozen"]  # it learns


def _window(rate: float, predicted: float, draw: np.random.Generator) -> dict[str, Sums]:
    labels = draw.random(4000) < rate
    sums = Sums()
    sums.add(np.full(4000, np.log(predicted / (1 - predicted))), labels)
    return {"click": sums}


def test_drift_is_raised_on_a_shift_and_not_on_noise(tmp_path: Path) -> None:
    config, draw = make_config(), np.random.default_rng(0)
    with _open(tmp_path, config) as store:
        monitor = DriftMonitor(store, ("click",))
        for _ in range(2):
            monitor.prepare()
        for n in range(40):
            assert not monitor.close_window(n * HOUR_MS, _window(0.1, 0.1, draw))
        for n in range(40, 60):  # calibration is lost: twice too high
            monitor.close_window(n * HOUR_MS, _window(0.1, 0.2, draw))
        assert {a.measure for a in monitor.alarms} >= {"pcoc"}
        assert 40 * HOUR_MS <= monitor.alarms[0].window_ms <= 50 * HOUR_MS
        again = DriftMonitor(store, ("click",))  # the detectors come from what is stored
        assert again.alarms == monitor.alarms and again.closed_to == 59 * HOUR_MS


def test_windows_close_once_and_in_order_also_over_a_restart(tmp_path: Path) -> None:
    config = make_config()

    def score(evaluation: Evaluation, hour: int) -> None:
        evaluation.score(
            np.zeros((1, 1), np.float32),
            np.ones((1, 1), np.float32),
            mask=np.ones((1, 1), np.float32),
            domain=np.zeros(1, np.int64),
            event_ms=np.asarray([hour * HOUR_MS]),
            users=[b"u"],
        )

    with _open(tmp_path, config) as store:
        first = Evaluation(store, ("click",), (), window_ms=HOUR_MS)
        for hour in (0, 1, 2):
            score(first, hour)
        assert [w for w, _ in first.closed_windows(-1)] == [0]
        first.stage()
        second = Evaluation(store, ("click",), (), window_ms=HOUR_MS)
        score(second, 4)
        closed = list(second.closed_windows(0))
        assert [w for w, _ in closed] == [HOUR_MS, 2 * HOUR_MS]
        assert closed[0][1]["click"].samples == 1


def test_a_learner_predicts_without_learning(tmp_path: Path) -> None:
    config = make_config()
    with _open(tmp_path, config) as store:
        loop = Loop(config, store, sink=None)
        learner = Learner(loop.plan, config, store)
        recover_state(store, learner, loop.plan, config)
        batch = build_batch(make_samples(40), loop.plan)
        learner.step(batch, now_ms=1)
        before = store.stats().rows_total
        said = learner.predict(batch)
        unseen = build_batch(make_samples(40, seed=9), loop.plan)
        learner.predict(unseen)
        assert store.stats().rows_total == before
        np.testing.assert_array_equal(said, learner.predict(batch))
        np.testing.assert_allclose(said, learner.step(batch, now_ms=2).logits, atol=1e-5)
