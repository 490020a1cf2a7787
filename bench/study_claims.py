"""What a study of a log may say of its figures: no claim inside 2 SD."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Arms = Mapping[str, Mapping[str, Any]]
"""Arm -> `auc` (mean and sd over seeds) and `seeds`."""

RUNS_MIN = 3
"""An SD of two runs says little."""


def better(arms: Arms, peers: Iterable[str]) -> str:
    """The peer with the larger AUC."""
    return max(peers, key=lambda peer: arms[peer]["auc"]["mean"])


def verdict(task: str, arms: Arms, models: Sequence[str], peers: Sequence[str]) -> str:
    """How many models are above the better of `peers` by more than 2 SD of the difference, and
    the best of them by mean. Of models that ran less often than RUNS_MIN nothing is claimed; a peer
    that ran once counts as it is."""
    peer = better(arms, peers)
    there = [model for model in models if model in arms]
    judged = [model for model in there if arms[model]["seeds"] >= RUNS_MIN]
    gaps = {model: _gap(arms[model]["auc"], arms[peer]["auc"]) for model in judged or there}
    best = max(gaps, key=lambda model: gaps[model][0])
    gap, sd = gaps[best]
    if not judged:
        return (
            f"{task}: our best, {best}, {gap:+.4f} AUC against {peer} (goal: above); of fewer than "
            f"{RUNS_MIN} seeds nothing is claimed"
        )
    clear = sum(gap > 2 * sd for gap, sd in gaps.values())
    inside = ", inside 2 SD" if abs(gap) <= 2 * sd else ""
    return (
        f"{task}: {clear} of the {len(judged)} models of {RUNS_MIN} seeds or more are above {peer} "
        f"in AUC by more than 2 SD; our best of them, {best}, by {gap:+.4f} ± {sd:.2g}{inside} "
        "(goal: our best above)"
    )


def _gap(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[float, float]:
    """Of the means, and its SD: the seeds of the two have nothing in common."""
    return ours["mean"] - theirs["mean"], math.hypot(ours["sd"], theirs["sd"])


__all__ = ["better", "verdict"]
