"""The simulator as the studies of models take it: finals alone, one log for all, truth known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from measuring import config_of
from study_frame import F64, regret, run_trainer, scores
from study_log import Log, joined

from embedding_store.keys import row_keys
from embedding_store.store import EmbeddingStore
from runtime.sources.simulated import SimulatedTraffic
from runtime.sources.world import KINDS
from settings.config import Config
from trainer.loop import Loop

START_MS = 1_700_006_400_000


@dataclass(frozen=True, slots=True)
class Setting:
    """One seed's world and its log."""

    source: SimulatedTraffic
    log: Log
    seed: int

    @property
    def counted(self) -> list[str]:
        """The impressions that metrics are over: all but the first third."""
        return list(self.log.truth)[len(self.log.truth) // 3 :]

    def config(self, model: str, tasks: Sequence[str] = tuple(KINDS), **flags: Any) -> Config:
        """This world under policy `wait`, with `model` of the `tasks`."""
        return _config(self.source, model, self.seed, flags, tasks)

    def truth(self, tasks: Sequence[str]) -> F64:
        """[N, T] true probabilities of `counted`."""
        return np.asarray([[self.log.truth[i][t] for t in tasks] for i in self.counted])

    def run(
        self, config: Config, look: Callable[[Loop, EmbeddingStore], None] = lambda _l, _s: None
    ) -> F64:
        """Logits [N, T] of `counted`, as served; the last batch's layers are tapped."""

        def watch(loop: Loop) -> None:
            loop.learner.model.tap.seen = {}

        said = run_trainer(self.log, config, watch=watch, look=look)
        return np.stack([said[i] for i in self.counted]).astype(np.float64)


def make_setting(seed: int, impressions: int, **world: Any) -> Setting:
    """A world of `seed` and its first `impressions`."""
    source = SimulatedTraffic(start_ms=START_MS, seed=seed, faults=False, **world)
    return Setting(source, joined(source, _config(source, "lr", seed, {}), impressions), seed)


def _config(
    source: SimulatedTraffic,
    model: str,
    seed: int,
    flags: dict[str, Any],
    tasks: Sequence[str] = tuple(KINDS),
) -> Config:
    values = source.config_values()
    return config_of(
        {**values, "kinds": {task: values["kinds"][task] for task in tasks}},
        **{
            "join__policy": "wait",
            "model__name": model,
            "trainer__cut_by": "count",
            "trainer__batch_samples_max": 256,
            "trainer__commit_every_steps": 50,
            "trainer__seed": seed,
            "optimizer__sparse": "adam",
            "optimizer__sparse_lr": 0.01,
            "optimizer__dense_lr": 0.003,
        }
        | flags,
    )


def quality(logits: F64, truth: F64, labels: F64) -> dict[str, float]:
    """Regret and AUC, each the mean over tasks."""
    tasks = range(truth.shape[1])
    return {
        "regret (nats)": float(np.mean([regret(logits[:, t], truth[:, t]) for t in tasks])),
        "auc": float(np.mean([scores(logits[:, t], labels[:, t] > 0)["auc"] for t in tasks])),
    }


def table_of(store: EmbeddingStore, slot: str, values: Sequence[str], sets: Sequence[str]) -> F64:
    """Learnt vectors [N, sum of d] of the values that have a row, the sets side by side."""
    keys = row_keys(slot, list(values))
    parts = [store.peek(keys, name)[0].astype(np.float64) for name in sets]
    whole: F64 = np.concatenate(parts, 1)
    kept: F64 = whole[whole.any(1)]
    return kept


def dense_parameters(loop: Loop) -> int:
    """Of the model, rows apart."""
    return sum(p.numel() for p in loop.learner.model.parameters())


def last_tokens(loop: Loop) -> dict[str, torch.Tensor]:
    """Layer -> tokens [B, T, D] of the last batch, in order of depth."""
    seen = loop.learner.model.tap.seen or {}
    return {name: x for name, x in seen.items() if name == "tokens" or name[:4] in ("mix:", "ffn:")}
