"""Predict at the impression, learn when its label is final: the order a server would have.

The published vectors are read when the impression comes and kept with it. Reading them when the
label comes would hand the model vectors that have learnt from this very label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from downstream.published import PublishedRows, Reads, TakesVectors, read_for
from downstream.scenario.fields import Fields, pack
from topics.impression import Impression

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
        learning = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adagrad(learning, lr=lr)
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

    def learn(self, labels: dict[str, int]) -> int:
        """Score and learn the impressions whose labels are final now ({impression_id: 0|1});
        returns how many of them had been served here."""
        served = [(self._pending.pop(i), y) for i, y in labels.items() if i in self._pending]
        if not served:
            return 0
        rows = [s for s, _ in served]
        published = PublishedRows(
            np.stack([s.vector for s in rows]),
            np.asarray([s.age_seconds for s in rows], np.float32),
            np.asarray([s.missing for s in rows], np.float32),
        )
        self._logits += [s.logit for s in rows]
        self._labels += [y for _, y in served]
        self._missing += int(published.missing.sum())
        if self._frozen:
            return len(served)
        target = torch.tensor([float(y) for _, y in served])
        logits = self._model(pack([s.codes for s in rows]), published.tensors())
        loss = functional.binary_cross_entropy_with_logits(logits, target)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return len(served)

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
