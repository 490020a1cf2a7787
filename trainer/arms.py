"""What being online is worth: the model of the beginning and of yesterday, beside the live one.

At each boundary of event time the last commit is copied (a RocksDB checkpoint: hard links) and
served from, read-only: `daily` is the newest copy, `frozen` the first. A share of impressions,
chosen by the hash of their ids, is predicted by every arm at first sight and scored when final; the
live arm counts the same impressions. Exact, since a copy is a commit, and affordable, since an arm
reads rows of the share alone. Ids that a copy has never seen have zero vectors there.

Durable: which copies serve (space `arms`), the predictions that wait, every arm's sums.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import xxhash

from embedding_store.store import EmbeddingStore
from settings.config import Config
from trainer.batch import F32, FINAL, I64, Batch
from trainer.durable import recover_state
from trainer.evaluation import Evaluation
from trainer.slots import Plan
from trainer.step import Learner, row_layout

SPACE = "arms"
FROZEN, DAILY, LIVE = "frozen", "daily", "live"
ARMS = (LIVE, DAILY, FROZEN)
_CACHE_ROWS = 1024
_SHARES = 1 << 16
Mask = npt.NDArray[np.bool_]


class _Copy(msgspec.Struct):
    folder: str
    """Below the store's `.arms` directory."""
    boundary: int
    """Number of the boundary of event time that it was made at."""


class Arm:
    """One copy, open for predictions."""

    def __init__(self, folder: Path, config: Config, plan: Plan) -> None:
        self._store = EmbeddingStore.open(
            folder, row_layout(config), cache_rows_max=_CACHE_ROWS, owner="evaluation arm"
        )
        drawn = torch.get_rng_state()
        self._learner = Learner(plan, config, self._store)
        recover_state(self._store, self._learner, plan, config)
        torch.set_rng_state(drawn)  # the live model's draws must not know of arms

    def predict(self, batch: Batch) -> F32:
        """[B, T] logits as this copy would serve them."""
        return self._learner.predict(batch)

    def close(self) -> None:
        """Let go of the files."""
        self._store.close()


class Arms:
    """Frozen, yesterday's and live predictions of the same impressions."""

    def __init__(self, store: EmbeddingStore, config: Config, plan: Plan) -> None:
        self._store, self._config, self._plan = store, config, plan
        self._root = store.path.with_name(f"{store.path.name}.arms")
        self._every_ms = config.evaluation.arms_every
        self._share = round(config.evaluation.arms_share * _SHARES)
        self.watch: Callable[[Batch, dict[str, F32]], None] | None = None
        """Told the first sights of the share and every arm's logits [n, T]: for studies."""
        self._copies: dict[str, _Copy] = {}
        self._open: dict[str, Arm] = {}
        for name in (FROZEN, DAILY):
            raw = store.get(SPACE, name.encode())
            if raw is not None:
                self._copies[name] = msgspec.json.decode(raw, type=_Copy)
        self.evaluations = {
            name: Evaluation(
                store,
                plan.tasks,
                plan.domains,
                window_ms=config.trainer.evaluation_window,
                arm=name,
            )
            for name in ARMS
        }
        for copy in self._copies.values():
            self._arm(copy)

    @property
    def boundary(self) -> int | None:
        """Number of the boundary (event time / arms_every) that yesterday's model is of."""
        newest = self._copies.get(DAILY)
        return None if newest is None else newest.boundary

    def due(self, now_ms: int) -> bool:
        """Whether event time has passed a boundary since the newest copy."""
        newest = self.boundary
        return now_ms >= 0 and (newest is None or now_ms // self._every_ms > newest)

    def snapshot(self, now_ms: int) -> None:
        """Copy the last commit: yesterday's model from here on, and the frozen one if none is yet.

        Called right after a commit. A copy that a crash left behind is made again.
        """
        boundary = now_ms // self._every_ms
        copy = _Copy(f"{boundary}", boundary)
        target = self._root / copy.folder
        shutil.rmtree(target, ignore_errors=True)
        self._root.mkdir(exist_ok=True)
        self._store.checkpoint(target)
        before = self._copies.get(DAILY)
        self._copies = {FROZEN: self._copies.get(FROZEN, copy), DAILY: copy}
        for name, each in self._copies.items():
            self._store.put(SPACE, name.encode(), msgspec.json.encode(each))
        self._arm(copy)
        if before is not None and before.folder != self._copies[FROZEN].folder:
            self._open.pop(before.folder).close()
        # Not yet the copy before: until the next commit a restart would ask for it.
        needed = {each.folder for each in (*self._copies.values(), before) if each is not None}
        for folder in self._root.iterdir():
            if folder.name not in needed:
                shutil.rmtree(folder, ignore_errors=True)

    def observe(self, samples: Batch, logits: F32, first_sight: Mask) -> None:
        """Predict the share of first sights [B], with `logits` [B, T] as the live arm's, and score
        the share of finals."""
        if not self._copies:
            return
        first = np.flatnonzero(first_sight & self._chosen(samples))
        rows = samples.take(first)
        said = {LIVE: logits[first]}
        if first.size:
            for name, copy in self._copies.items():
                said[name] = self._arm(copy).predict(rows)
            if self.watch is not None:
                self.watch(rows, said)
        final = rows.state == FINAL if first.size else np.zeros(0, bool)
        waits = np.flatnonzero(~final)
        kept = [rows.impressions[b] for b in waits.tolist()] if first.size else []
        for name, evaluation in self.evaluations.items():
            if first.size:
                evaluation.remember(kept, said[name][waits])
                self._score(evaluation, rows, said[name], np.flatnonzero(final))
        self._score_waiting(samples, first_sight)

    def _score_waiting(self, samples: Batch, first_sight: Mask) -> None:
        """Finals whose predictions were kept. One seen before the first copy has none."""
        finals = np.flatnonzero((samples.state == FINAL) & ~first_sight & self._chosen(samples))
        for evaluation in self.evaluations.values():
            pending = evaluation.pending([samples.impressions[b] for b in finals.tolist()])
            rows = finals[np.asarray(pending, bool)]
            if rows.size:
                logits = np.zeros((len(samples), len(self._plan.tasks)), np.float32)
                logits[rows] = evaluation.recall([samples.impressions[b] for b in rows.tolist()])
                self._score(evaluation, samples, logits, rows)

    @staticmethod
    def _score(evaluation: Evaluation, samples: Batch, logits: F32, rows: I64) -> None:
        if rows.size:
            evaluation.score(
                logits[rows],
                samples.labels[rows],
                mask=samples.mask[rows],
                domain=samples.domain[rows],
                event_ms=samples.event_ms[rows],
                users=[samples.users[b] for b in rows.tolist()],
            )

    def stage(self) -> None:
        """Stage every arm's sums for the next commit."""
        for evaluation in self.evaluations.values():
            evaluation.stage()

    def totals(self) -> dict[str, dict[str, dict[str, float | int | None]]]:
        """arm -> task -> auc, ne, pcoc, samples, positives."""
        return {name: evaluation.totals() for name, evaluation in self.evaluations.items()}

    def report(self) -> dict[str, Any]:
        """arm -> `overall`, `by_domain`, `by_window`, with grouped AUC."""
        return {name: evaluation.report() for name, evaluation in self.evaluations.items()}

    def close(self) -> None:
        """Let go of the copies; they stay on disk."""
        for arm in self._open.values():
            arm.close()
        self._open = {}

    def _chosen(self, samples: Batch) -> Mask:
        share = self._share
        hashes = (xxhash.xxh3_64_intdigest(id_) % _SHARES for id_ in samples.impressions)
        return np.fromiter((h < share for h in hashes), bool, len(samples))

    def _arm(self, copy: _Copy) -> Arm:
        arm = self._open.get(copy.folder)
        if arm is None:
            arm = self._open[copy.folder] = Arm(self._root / copy.folder, self._config, self._plan)
        return arm
