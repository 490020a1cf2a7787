"""Predict at the impression, learn when its label is final: the order a server would have.

The published vectors are read when the impression comes and kept with it. Reading them when the
label comes would hand the model vectors that have learnt from this very label.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from downstream.published import PublishedRows, Reads, TakesVectors, read_for
from downstream.scenario.fields import Fields, pack
from downstream.transfer import IsomorphicInteraction
from topics.impression import Impression

WARM_RATE = 0.1
"""Of the learning rate, for weights that come from the upstream. Adagrad's first step is the rate
itself, whatever the gradient: the full one would undo what they came with."""
PENDING_MAX = 200_000
"""Impressions that wait for their label; beyond it the oldest are given up, and counted."""


@dataclass(slots=True)
class _Served:
    codes: list[list[int]]
    vector: NDArray[np.float32]
    age_seconds: float
    missing: float
    logit: float


@dataclass(frozen=True, slots=True)
class ScenarioReport:
    """Progressive figures: each impression scored with the logit that was served."""

    samples: int
    positives: int
    auc: float | None
    """None until both classes were seen."""
    logloss: float | None
    missing_share: float
    """Share of the impressions served without a published vector."""
    from_future: int
    given_up: int


class ScenarioLearner:
    """One scenario's model, learning online. Not thread-safe; its state is memory."""

    def __init__(
        self,
        model: nn.Module,
        fields: Fields,
        reader: TakesVectors,
        *,
        reads: Reads,
        dims: Sequence[int],
        task: str,
        lr: float = 0.05,
    ) -> None:
        """`dims`: widths of the vectors that `reads` names."""
        self._model, self._fields, self._reader = model, fields, reader
        self._reads: Reads = reads
        self._dims, self._task = tuple(dims), task
        self._optimizer = torch.optim.Adagrad(_groups(model, lr), lr=lr)
        self._pending: dict[str, _Served] = {}
        self._logits: list[float] = []
        self._labels: list[int] = []
        self._missing = self._from_future = self._given_up = 0
        self._frozen = False

    def serve(self, impressions: Sequence[Impression]) -> NDArray[np.float32]:
        """Logits `[B]` for impressions as they come; kept until their labels do."""
        if not impressions:
            return np.zeros(0, np.float32)
        codes = [self._fields.codes(i) for i in impressions]
        event_ms = np.asarray([i.event_ms for i in impressions], np.int64)
        published = read_for(
            self._reader,
            self._reads,
            [i.user_id for i in impressions],
            [i.item_id for i in impressions],
            event_ms,
            dims=self._dims,
        )
        self._from_future += published.from_future
        with torch.no_grad():
            logits = self._model(pack(codes), published.tensors()).numpy()
        for b, impression in enumerate(impressions):
            self._pending[impression.impression_id] = _Served(
                codes[b],
                published.vectors[b],
                float(published.age_seconds[b]),
                float(published.missing[b]),
                float(logits[b]),
            )
        while len(self._pending) > PENDING_MAX:
            del self._pending[next(iter(self._pending))]
            self._given_up += 1
        return np.asarray(logits, np.float32)

    def learn(self, labels: dict[str, int], taught: Container[str] | None = None) -> int:
        """Score and learn the impressions whose labels are final now ({impression_id: 0|1});
        returns how many of them had been served here. With `taught`, only those of its impressions
        are learnt; the others are scored: what a scenario with fewer labels would have said."""
        served = [(i, self._pending.pop(i), y) for i, y in labels.items() if i in self._pending]
        self._logits += [s.logit for _, s, _ in served]
        self._labels += [y for _, _, y in served]
        self._missing += int(sum(s.missing for _, s, _ in served))
        learnt = [(s, y) for i, s, y in served if taught is None or i in taught]
        if learnt and not self._frozen:
            self._step([s for s, _ in learnt], [y for _, y in learnt])
        return len(served)

    def _step(self, rows: Sequence[_Served], labels: Sequence[int]) -> None:
        published = PublishedRows(
            np.stack([s.vector for s in rows]),
            np.asarray([s.age_seconds for s in rows], np.float32),
            np.asarray([s.missing for s in rows], np.float32),
        )
        target = torch.tensor([float(y) for y in labels])
        logits = self._model(pack([s.codes for s in rows]), published.tensors())
        loss = functional.binary_cross_entropy_with_logits(logits, target)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def freeze(self) -> None:
        """Learn no more; go on serving and scoring."""
        self._frozen = True

    def read_from(self, reader: TakesVectors) -> None:
        """Serve with another reader's vectors from now on."""
        self._reader = reader

    def scored(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(logits as served, labels) `[N]` of everything scored so far, in order."""
        return np.asarray(self._logits, np.float64), np.asarray(self._labels, np.int64)

    def report(self) -> ScenarioReport:
        """What was scored so far."""
        logits, labels = self.scored()
        many = len(labels)
        positives = int(labels.sum())
        return ScenarioReport(
            samples=many,
            positives=positives,
            auc=area_under_curve(logits, labels),
            logloss=float(np.mean(np.logaddexp(0, logits) - labels * logits)) if many else None,
            missing_share=self._missing / many if many else 0.0,
            from_future=self._from_future,
            given_up=self._given_up,
        )


def _groups(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """What learns, and what of it came warm."""
    learning = [p for p in model.parameters() if p.requires_grad]
    warm = {
        id(p)
        for part in model.modules()
        if isinstance(part, IsomorphicInteraction)
        for p in part.warm_parameters()
    }
    groups: list[dict[str, Any]] = [{"params": [p for p in learning if id(p) not in warm]}]
    came = [p for p in learning if id(p) in warm]
    return [*groups, {"params": came, "lr": lr * WARM_RATE}] if came else groups


def area_under_curve(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float | None:
    """Mann-Whitney with ties at one half; None unless both classes are there."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[group]
    return float(
        (ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    )
