"""Areas under the ROC curve: of binned counts (mergeable) and of groups (exact)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 2000
LOGIT_MAX = 10.0
"""Bins are 0.01 wide in the logit; what lies beyond falls into the outermost ones."""

Counts = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


def bin_of(logits: npt.NDArray[np.floating[Any]]) -> Counts:
    """[n] logits -> [n] bins, ascending with the logit."""
    at = np.floor((np.clip(logits, -LOGIT_MAX, LOGIT_MAX) + LOGIT_MAX) * (BINS / (2 * LOGIT_MAX)))
    bins: Counts = np.minimum(at, BINS - 1).astype(np.int64)
    return bins


def binned_auc(positives: Counts, negatives: Counts) -> float | None:
    """AUC of counts per bin [BINS]; a tie within a bin counts half. None without both classes."""
    pos, neg = positives.astype(np.float64), negatives.astype(np.float64)
    pairs = pos.sum() * neg.sum()
    if pairs == 0:
        return None
    below = np.cumsum(neg) - neg
    return float((pos * (below + 0.5 * neg)).sum() / pairs)


def grouped_auc(
    groups: Counts, scores: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.bool_]
) -> float | None:
    """sum n_g AUC_g / sum n_g over groups with both classes; ties count half. [n] each.

    None if no group has both classes.
    """
    if not groups.size:
        return None
    order = np.lexsort((scores, groups))
    g, s, y = groups[order], scores[order], labels[order].astype(np.float64)
    at = np.arange(g.size, dtype=np.float64)
    new_group = np.r_[True, g[1:] != g[:-1]]
    new_run = new_group | np.r_[True, s[1:] != s[:-1]]
    group, run = np.cumsum(new_group) - 1, np.cumsum(new_run) - 1
    first = at[new_group][group]
    run_mean = np.bincount(run, at) / np.bincount(run)
    rank = run_mean[run] - first + 1.0
    n = np.bincount(group).astype(np.float64)
    pos = np.bincount(group, y)
    neg = n - pos
    both = (pos > 0) & (neg > 0)
    if not both.any():
        return None
    ranks = np.bincount(group, rank * y)
    auc = (ranks[both] - pos[both] * (pos[both] + 1) / 2) / (pos[both] * neg[both])
    return float((auc * n[both]).sum() / n[both].sum())
