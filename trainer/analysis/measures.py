"""What the analysis tools compute, in closed form where there is one. NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.floating[Any]]
I64 = npt.NDArray[np.int64]
_SHUFFLE_SEED = 0


def information_abundance(gram: F64) -> float:
    """sum of singular values over the largest, from a table's Gram matrix [D, D] = E^T E.

    Identical to that of E's singular values, and E may be streamed. 1 = collapsed onto one
    direction, D = all equal; 0 for a table of zeros.
    """
    values = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0.0, None))
    largest = float(values.max(initial=0.0))
    return float(values.sum() / largest) if largest > 0 else 0.0


def effective_rank(matrix: Vectors) -> float:
    """exp of the entropy of the singular values of [N, D]; at most min(N, D)."""
    values = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    total = values.sum()
    if total <= 0:
        return 0.0
    p = values[values > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))


def ranks(values: Vectors) -> F64:
    """[N] average ranks, ties shared."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: F64 = (ends - (counts - 1) / 2.0)[inverse]
    return means


def spearman(left: Vectors, right: Vectors) -> float:
    """Rank correlation of [N] and [N]; 0 where one of them is constant."""
    a, b = ranks(left), ranks(right)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else 0.0


def distances(users: Vectors, items: Vectors) -> F64:
    """[N] Euclidean distances of normalised rows [N, D]: by direction, as scores go by it."""
    u, i = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (users, items))
    apart: F64 = np.linalg.norm(np.asarray(u - i, np.float64), axis=1)
    return apart


def entanglement(view: Vectors, single: Vectors) -> float:
    """1 - Spearman of pairs' distances [N] in a multi-task model's view of a task and in the task's
    own single-task model: 0 = the view orders pairs as the task alone would."""
    return 1.0 - spearman(view, single)


def contradictory(near: Vectors, far: Vectors) -> I64:
    """Pairs in the nearest quarter of one space and the farthest of the other."""
    chosen = (near <= np.quantile(near, 0.25)) & (far >= np.quantile(far, 0.75))
    return np.flatnonzero(chosen)


def mutual_information(codes: npt.NDArray[Any], labels: npt.NDArray[np.bool_]) -> float:
    """Bits that a code [N] says about a label [N], less what it says about shuffled labels.

    An id seen once would else explain its label; formulas for that bias need many rows per code.
    """
    if not len(codes):
        return 0.0
    inverse = np.unique(codes, return_inverse=True)[1]
    shuffled = np.random.default_rng(_SHUFFLE_SEED).permutation(labels)
    return max(0.0, _bits(inverse, labels) - _bits(inverse, shuffled))


def _bits(inverse: I64, labels: npt.NDArray[np.bool_]) -> float:
    joint = np.zeros((2, int(inverse.max()) + 1), np.float64)
    np.add.at(joint, (labels.astype(np.int64), inverse), 1.0 / len(labels))
    expected = np.outer(joint.sum(1), joint.sum(0))
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / expected[seen])).sum())
