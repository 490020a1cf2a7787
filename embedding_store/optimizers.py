"""How a set learns: one optimizer step per distinct row, in place, in the row's own state.

    g       the gradient float32[D] of one row, already summed over the batch's duplicates
    rowwise_adagrad   G += mean(g^2);  w -= lr / (sqrt(G) + eps) * g                 state G
    adagrad           G += g^2;        w -= lr * g / (sqrt(G) + eps)                 state G[D]
    adam (lazy)       t += 1;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
                      w -= lr / (1-b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)   state m[D] v[D] t
    ftrl (proximal)   n' = n + g^2;  z += g - (sqrt(n') - sqrt(n)) / lr * w;  n = n';
                      w = 0 if |z| <= l1, else
                          -(z - sign(z) l1) / ((beta + sqrt(n)) / lr + l2)           state z[D] n[D]
    sgd               w -= lr * g                                                    no state

Lazy: rows that a batch does not name do not change, and `t` counts a row's own steps (McMahan et
al. 2013 for FTRL, Kingma and Ba 2015 for Adam). Sums run in a fixed order without fast-math, so a
step gives the same bytes on every machine. A row is left alone, and counted, when its gradient or
what would become of its state is not finite.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from embedding_store.flags import NO_COUNTS, learn_row
from embedding_store.kernel import kernel
from embedding_store.lanes import COMMON_WIDTH, step_floats, sum_squares
from embedding_store.layout import SetSpec
from embedding_store.prefetch import prefetch_words, rows_ahead

NOT_LEARNING: Final = (
    np.empty((0, 1), np.uint32),
    NO_COUNTS,
    *(np.uint32(0), np.uint32(0), np.uint32(0)),
    np.empty(0, np.int32),
    0,
)
"""For `rowwise`: headers stay as they are."""


def hyperparameters(spec: SetSpec) -> NDArray[np.float32]:
    """float32[7]: lr, eps, beta1, beta2, l1, l2, beta."""
    values = (spec.lr, spec.eps, spec.beta1, spec.beta2, spec.l1, spec.l2, spec.beta)
    return np.array(values, np.float32)


# Every kernel takes the rows' words [capacity, words], the slots [N] to change (-1 is passed over),
# the words at which vector and state begin, the gradients [N, D] and `hyperparameters`, and returns
# how many rows it left alone. They index flat arrays by unsigned offsets: signed ones are looked at
# for being negative.


@njit(inline="always")
def _rowwise(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    words, slots, first, state, grad, hyper, adaptive, learning, dim
) -> Any:
    """`rowwise` of sets `dim` wide."""
    header, counts, now_s, stamp, now, dirty, many = learning
    stride = np.uint64(words.shape[1])
    flat, gradient, heads = words.reshape(-1), grad.reshape(-1), header.reshape(-1)
    end = max(first + grad.shape[1], state + 1)
    start = 0 if heads.shape[0] > 0 else first
    lr, eps, width = hyper[0], hyper[1], np.float32(grad.shape[1])
    skipped, heading, counting = 0, heads.shape[0] > 0, counts.shape[0] > 0
    ahead = rows_ahead(start, end)
    for i in range(slots.shape[0]):
        if i + ahead < slots.shape[0]:
            prefetch_words(words, slots[i + ahead], start, end)
        if slots[i] < 0:
            continue
        row, g = np.uint64(slots[i]) * stride, np.uint64(i) * dim
        if heading:
            count = counts[i] if counting else np.int32(0)
            if learn_row(heads, row, counting, count, now_s, stamp, now):
                dirty[many] = np.int32(slots[i])
                many += 1
        v, s = row + np.uint64(first), row + np.uint64(state)
        total = sum_squares(gradient, g, dim)
        if adaptive:
            total = flat[s] + total / width
        if not np.isfinite(total):
            skipped += 1
            continue
        rate = lr
        if adaptive:
            flat[s] = total
            rate = lr / (np.sqrt(total) + eps)
        step_floats(flat, v, gradient, g, dim, rate)
    return skipped, many


@kernel(error_model="numpy")
def rowwise(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    words, slots, first, state, grad, hyper, adaptive, learning
) -> Any:
    """Row-wise Adagrad, or SGD unless `adaptive`.

    With `learning` also `flags.learn` in the same pass, so that each row's lines are fetched once:
    (header, counts, now_s, stamp, now, dirty, many); else with NOT_LEARNING.
    Returns (how many rows were left alone, how many are in `dirty` now).
    """
    # The commonest width as a constant: no loops, and registers for what they would take.
    if grad.shape[1] == COMMON_WIDTH:
        return _rowwise(
            words, slots, first, state, grad, hyper, adaptive, learning, np.uint64(COMMON_WIDTH)
        )
    return _rowwise(
        words, slots, first, state, grad, hyper, adaptive, learning, np.uint64(grad.shape[1])
    )


@njit(inline="always")
def _stays_finite(flat, sums, gradient, g, dim) -> Any:  # type: ignore[no-untyped-def]
    """Whether every sum of squares that this step adds to stays finite."""
    after = np.float32(0)
    for d in range(dim):
        after += flat[sums + d] + gradient[g + d] * gradient[g + d]
    return np.isfinite(after)


@kernel(error_model="numpy")
def _adagrad(words, slots, first, state, grad, hyper) -> Any:  # type: ignore[no-untyped-def]  # noqa: PLR0917
    lr, eps = hyper[0], hyper[1]
    dim, stride = np.uint64(grad.shape[1]), np.uint64(words.shape[1])
    flat, gradient = words.reshape(-1), grad.reshape(-1)
    end = max(first + grad.shape[1], state + grad.shape[1])
    skipped = 0
    ahead = rows_ahead(first, end)
    for i in range(slots.shape[0]):
        if i + ahead < slots.shape[0]:
            prefetch_words(words, slots[i + ahead], first, end)
        if slots[i] < 0:
            continue
        row, g = np.uint64(slots[i]) * stride, np.uint64(i) * dim
        v, s = row + np.uint64(first), row + np.uint64(state)
        if not _stays_finite(flat, s, gradient, g, dim):
            skipped += 1
            continue
        for d in range(dim):
            total = flat[s + d] + gradient[g + d] * gradient[g + d]
            flat[s + d] = total
            flat[v + d] -= lr * gradient[g + d] / (np.sqrt(total) + eps)
    return skipped


@kernel(error_model="numpy")
def _adam(words, slots, first, state, grad, hyper) -> Any:  # type: ignore[no-untyped-def]  # noqa: PLR0917
    one = np.float32(1)
    lr, eps, beta1, beta2 = hyper[0], hyper[1], hyper[2], hyper[3]
    dim, stride = np.uint64(grad.shape[1]), np.uint64(words.shape[1])
    flat, gradient = words.reshape(-1), grad.reshape(-1)
    end = max(first + grad.shape[1], state + 2 * grad.shape[1] + 1)
    skipped = 0
    ahead = rows_ahead(first, end)
    for i in range(slots.shape[0]):
        if i + ahead < slots.shape[0]:
            prefetch_words(words, slots[i + ahead], first, end)
        if slots[i] < 0:
            continue
        row, g = np.uint64(slots[i]) * stride, np.uint64(i) * dim
        v, s = row + np.uint64(first), row + np.uint64(state)
        moments = s + dim
        if not _stays_finite(flat, moments, gradient, g, dim):
            skipped += 1
            continue
        counter = moments + dim
        flat[counter] = min(flat[counter] + one, np.float32(1 << 24))
        steps = np.int64(flat[counter])
        rate = np.float32(np.float64(lr) / (1.0 - _power(np.float64(beta1), steps)))
        root = np.float32(np.sqrt(1.0 - _power(np.float64(beta2), steps)))
        for d in range(dim):
            m = beta1 * flat[s + d] + (one - beta1) * gradient[g + d]
            u = beta2 * flat[moments + d] + (one - beta2) * gradient[g + d] * gradient[g + d]
            flat[s + d] = m
            flat[moments + d] = u
            flat[v + d] -= rate * m / (np.sqrt(u) / root + eps)
    return skipped


@kernel
def _power(base, exponent) -> Any:  # type: ignore[no-untyped-def]
    """float64 by squaring: unlike libm's, the same on every machine."""
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


@kernel(error_model="numpy")
def _ftrl(words, slots, first, state, grad, hyper) -> Any:  # type: ignore[no-untyped-def]  # noqa: PLR0917
    lr, l1, l2, beta = hyper[0], hyper[4], hyper[5], hyper[6]
    dim, stride = np.uint64(grad.shape[1]), np.uint64(words.shape[1])
    flat, gradient = words.reshape(-1), grad.reshape(-1)
    end = max(first + grad.shape[1], state + 2 * grad.shape[1])
    skipped = 0
    ahead = rows_ahead(first, end)
    for i in range(slots.shape[0]):
        if i + ahead < slots.shape[0]:
            prefetch_words(words, slots[i + ahead], first, end)
        if slots[i] < 0:
            continue
        row, g = np.uint64(slots[i]) * stride, np.uint64(i) * dim
        v, s = row + np.uint64(first), row + np.uint64(state)
        sums = s + dim
        if not _stays_finite(flat, sums, gradient, g, dim):
            skipped += 1
            continue
        for d in range(dim):
            before = flat[sums + d]
            total = before + gradient[g + d] * gradient[g + d]
            root = np.sqrt(total)
            sigma = (root - np.sqrt(before)) / lr
            z = flat[s + d] + (gradient[g + d] - sigma * flat[v + d])
            flat[s + d] = z
            flat[sums + d] = total
            shrunk = z - l1 if z > 0 else z + l1
            learnt = -shrunk / ((beta + root) / lr + l2)
            flat[v + d] = np.float32(0) if abs(z) <= l1 else learnt
    return skipped


def step(  # noqa: PLR0917
    spec: SetSpec,
    words: NDArray[np.float32],
    slots: NDArray[np.int64],
    first: int,
    state: int,
    grad: NDArray[np.float32],
    hyper: NDArray[np.float32],
) -> int:
    """One step of `spec`'s optimizer on float32 vectors in place; how many rows were left alone."""
    left: int
    if spec.optimizer in {"rowwise_adagrad", "sgd"}:
        adaptive = spec.optimizer == "rowwise_adagrad"
        left, _ = rowwise(words, slots, first, state, grad, hyper, adaptive, NOT_LEARNING)
    else:
        left = KERNELS[spec.optimizer](words, slots, first, state, grad, hyper)
    return left


KERNELS: Final = {"adagrad": _adagrad, "adam": _adam, "ftrl": _ftrl}
