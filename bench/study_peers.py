"""The peers of the studies of logs: a LightGBM retrained daily and river, of matured labels."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt
import orjson
from river import linear_model, optim
from study_frame import Predictions
from study_log import Log

DAY_MS = 86_400_000
_PRIOR = 20.0
"""Impressions that a running rate of a new value is worth."""
TREES = 100
Row = dict[str, Any]


class _Rates:
    """Counts of matured labels per (slot, value), and the smoothed rates of an impression."""

    def __init__(self, tasks: tuple[str, ...]) -> None:
        self._tasks = tasks
        self._shown: dict[tuple[str, str], float] = defaultdict(float)
        self._hits: dict[tuple[str, str, str], float] = defaultdict(float)
        self._all = dict.fromkeys(tasks, 0.0)
        self._count = 0.0

    def learn(self, sample: Row) -> None:
        self._count += 1
        for slot, value in _categorical(sample):
            self._shown[slot, value] += 1
        for task in self._tasks:
            if sample["labels"][task]:
                self._all[task] += 1
                for slot, value in _categorical(sample):
                    self._hits[slot, value, task] += 1

    def features(self, sample: Row, slots: list[str]) -> list[float]:
        values = dict(_categorical(sample))
        numbers = {k: float(v) for k, v in sample["features"].items() if isinstance(v, int | float)}
        row = [numbers.get(slot, np.nan) for slot in slots]
        for slot in slots:
            value = values.get(slot)
            shown = self._shown[slot, value] if value is not None else np.nan
            row.append(shown)
            for task in self._tasks:
                rate = self._all[task] / max(1.0, self._count)
                hits = self._hits[slot, value, task] if value is not None else np.nan
                row.append((hits + _PRIOR * rate) / (shown + _PRIOR))
        return row


def _categorical(sample: Row) -> list[tuple[str, str]]:
    found = [(name, sample[name]) for name in ("user_id", "item_id", "domain")]
    return found + [(k, v) for k, v in sample["features"].items() if isinstance(v, str)]


def lightgbm_daily(log: Log, tasks: tuple[str, ...], leaves: int, seed: int) -> Predictions:
    """Retrained at each midnight on every impression whose final had been emitted; `seed` draws
    what a tree sees."""
    samples = [orjson.loads(line) for line in log.lines]
    slots = ["user_id", "item_id", "domain"]
    slots += sorted(
        {
            k
            for s in samples[:5000]
            for k, v in s["features"].items()
            if not isinstance(v, list | dict)
        }
    )
    rates = _Rates(tasks)
    kept: dict[str, npt.NDArray[np.float32]] = {}
    rows: list[npt.NDArray[np.float32]] = []
    labels: list[list[int]] = []
    predictions: Predictions = {}
    waiting: list[str] = []
    models: list[Any] = []
    day = None

    def predict() -> None:
        if not waiting:
            return
        x = np.stack([kept[i] for i in waiting])
        z = [
            m.predict(x, raw_score=True) if not isinstance(m, float) else np.full(len(x), m)
            for m in models or [-3.0] * len(tasks)
        ]
        predictions.update(zip(waiting, np.stack(z, 1), strict=True))
        waiting.clear()

    for sample in samples:
        id_ = sample["impression_id"]
        if sample["state"] == "early":
            today = sample["event_ms"] // DAY_MS
            if today != day:
                predict()
                day = today
                if rows:
                    models = _trained(np.stack(rows), np.asarray(labels), leaves, seed)
            kept[id_] = np.asarray(rates.features(sample, slots), np.float32)
            waiting.append(id_)
        elif sample["state"] == "final":
            rates.learn(sample)
            if id_ in waiting[-1:]:
                predict()
            rows.append(kept[id_])
            labels.append([sample["labels"][task] for task in tasks])
    predict()
    return predictions


def _trained(x: npt.NDArray[Any], y: npt.NDArray[Any], leaves: int, seed: int) -> list[Any]:
    """One model per task; a constant logit where a task has one class."""
    models: list[Any] = []
    binned = lightgbm.Dataset(x, params={"max_bin": 127, "verbosity": -1}, free_raw_data=False)
    for t in range(y.shape[1]):
        if not 0 < y[:, t].sum() < len(y):
            models.append(-5.0)
            continue
        settings = {"objective": "binary", "num_leaves": leaves, "learning_rate": 0.1, "seed": seed}
        settings |= {"verbosity": -1, "num_threads": 1, "feature_fraction": 0.8, "max_bin": 127}
        settings |= {"bagging_fraction": 0.8, "bagging_freq": 1}
        models.append(lightgbm.train(settings, binned.set_label(y[:, t]), TREES))
    return models


def river_online(log: Log, tasks: tuple[str, ...], _seed: int) -> Predictions:
    """Logistic regression on (slot, value), AdaGrad; learns a final when emitted; draws nothing."""
    models = [linear_model.LogisticRegression(optim.AdaGrad(0.1), intercept_lr=0.05) for _ in tasks]
    predictions: Predictions = {}
    for line in log.lines:
        sample = orjson.loads(line)
        if sample["state"] == "correction":
            continue
        x = {f"{slot}={value}": 1.0 for slot, value in _categorical(sample)}
        if sample["state"] == "early":
            p = [model.predict_proba_one(x)[True] for model in models]
            q = np.clip(p, 1e-6, 1 - 1e-6)
            predictions[sample["impression_id"]] = np.log(q / (1 - q))
        else:
            for model, task in zip(models, tasks, strict=True):
                model.learn_one(x, bool(sample["labels"][task]))
    return predictions
