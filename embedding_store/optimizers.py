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

from embedding_store.layout import OPTIMIZERS, SetSpec
from embedding_store.prefetch import prefetch
from embedding_store.row import COUNT_WORD, FLAGS_WORD, TOUCHED_WORD

LANES: Final = 8
"""Partial sums of squares: lane d % 8, each in order of d, then added as a tree."""
AHEAD: Final = 16
LINE_WORDS: Final = 16
DIRTY_BIT: Final = 1 << 16
"""In the flags word of a row in memory: it differs from what is on disk."""

ROWWISE_ADAGRAD, ADAGRAD, ADAM, FTRL, SGD = range(5)
KINDS: Final = dict(zip(OPTIMIZERS, (ROWWISE_ADAGRAD, ADAGRAD, ADAM, FTRL, SGD), strict=True))


def hyperparameters(spec: SetSpec) -> NDArray[np.float32]:
    """float32[7]: lr, eps, beta1, beta2, l1, l2, beta."""
    values = (spec.lr, spec.eps, spec.beta1, spec.beta2, spec.l1, spec.l2, spec.beta)
    return np.array(values, np.float32)


@njit(nogil=True, cache=True)
def _sum_of_squares(values) -> Any:  # type: ignore[no-untyped-def]
    """Of float32[D], in LANES fixed partial sums: independent, so that the CPU overlaps them."""
    zero = np.float32(0)
    a, b, c, d, e, f, g, h = zero, zero, zero, zero, zero, zero, zero, zero
    dim = values.shape[0]
    whole = dim - dim % 8
    for i in range(0, whole, 8):
        a += values[i] * values[i]
        b += values[i + 1] * values[i + 1]
        c += values[i + 2] * values[i + 2]
        d += values[i + 3] * values[i + 3]
        e += values[i + 4] * values[i + 4]
        f += values[i + 5] * values[i + 5]
        g += values[i + 6] * values[i + 6]
        h += values[i + 7] * values[i + 7]
    for i in range(whole, dim):
        square = values[i] * values[i]
        lane = i - whole
        if lane == 0:
            a += square
        elif lane == 1:
            b += square
        elif lane == 2:
            c += square
        elif lane == 3:
            d += square
        elif lane == 4:
            e += square
        elif lane == 5:
            f += square
        else:
            g += square
    return ((a + e) + (c + g)) + ((b + f) + (d + h))


@njit(nogil=True, cache=True)
def _power(base, exponent) -> Any:  # type: ignore[no-untyped-def]
    """float64 by squaring: unlike libm's, the same on every machine."""
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


@njit(nogil=True, cache=True)
def _adagrad(vector, state, grad, lr, eps) -> bool:  # type: ignore[no-untyped-def]
    after = np.float32(0)
    for d in range(grad.shape[0]):
        after += state[d] + grad[d] * grad[d]
    if not np.isfinite(after):
        return False
    for d in range(grad.shape[0]):
        state[d] += grad[d] * grad[d]
        vector[d] -= lr * grad[d] / (np.sqrt(state[d]) + eps)
    return True


@njit(nogil=True, cache=True)
def _adam(vector, state, grad, hyper) -> bool:  # type: ignore[no-untyped-def]
    dim = grad.shape[0]
    if not np.isfinite(_sum_of_squares(grad)):
        return False
    one = np.float32(1)
    beta1, beta2, eps = hyper[2], hyper[3], hyper[1]
    state[2 * dim] = min(state[2 * dim] + one, np.float32(1 << 24))
    steps = np.int64(state[2 * dim])
    rate = np.float32(np.float64(hyper[0]) / (1.0 - _power(np.float64(beta1), steps)))
    root = np.float32(np.sqrt(1.0 - _power(np.float64(beta2), steps)))
    for d in range(dim):
        first = beta1 * state[d] + (one - beta1) * grad[d]
        second = beta2 * state[dim + d] + (one - beta2) * grad[d] * grad[d]
        state[d] = first
        state[dim + d] = second
        vector[d] -= rate * first / (np.sqrt(second) / root + eps)
    return True


@njit(nogil=True, cache=True)
def _ftrl(vector, state, grad, hyper) -> bool:  # type: ignore[no-untyped-def]
    dim = grad.shape[0]
    after = np.float32(0)
    for d in range(dim):
        after += state[dim + d] + grad[d] * grad[d]
    if not np.isfinite(after):
        return False
    lr, l1, l2, beta = hyper[0], hyper[4], hyper[5], hyper[6]
    for d in range(dim):
        total = state[dim + d] + grad[d] * grad[d]
        root = np.sqrt(total)
        z = state[d] + (grad[d] - (root - np.sqrt(state[dim + d])) / lr * vector[d])
        state[d] = z
        state[dim + d] = total
        if abs(z) <= l1:
            vector[d] = np.float32(0)
        else:
            shrunk = z - l1 if z > 0 else z + l1
            vector[d] = -shrunk / ((beta + root) / lr + l2)
    return True


@njit(nogil=True, cache=True)
def _step(kind, vector, state, grad, hyper) -> bool:  # type: ignore[no-untyped-def]
    """One row's step in place; False, with nothing changed, where it would not be finite."""
    if kind == ADAGRAD:
        return bool(_adagrad(vector, state, grad, hyper[0], hyper[1]))
    if kind == ADAM:
        return bool(_adam(vector, state, grad, hyper))
    if kind == FTRL:
        return bool(_ftrl(vector, state, grad, hyper))
    squares = _sum_of_squares(grad)
    if kind == SGD:
        if not np.isfinite(squares):
            return False
        rate = hyper[0]
    else:
        total = state[0] + squares / np.float32(grad.shape[0])
        if not np.isfinite(total):
            return False
        state[0] = total
        rate = hyper[0] / (np.sqrt(total) + hyper[1])
    for d in range(grad.shape[0]):
        vector[d] -= rate * grad[d]
    return True


@njit(nogil=True, cache=True)
def update_rows(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    kind, words, header, slots, first, state, state_floats, grad, hyper, counts, now_s, dirty, many
) -> Any:
    """A step of the float32 set at word `first` on every row of `slots`; -1 is passed over.

    `counts` also advances the headers unless it is empty. Rows that become dirty are appended to
    `dirty`, `many` so far. Returns (rows left alone, `many` now).
    """
    dim = grad.shape[1]
    skipped = 0
    for i in range(grad.shape[0]):
        if i + AHEAD < grad.shape[0]:
            for column in range(first, first + dim + state_floats, LINE_WORDS):
                prefetch(words, slots[i + AHEAD], column)
        slot = slots[i]
        if slot < 0:
            continue
        vector = words[slot, first : first + dim]
        own = words[slot, state : state + state_floats]
        if not _step(kind, vector, own, grad[i], hyper):
            skipped += 1
        if counts.shape[0] > 0:
            _count(header, slot, counts[i], now_s)
        many = _mark(header, slot, dirty, many)
    return skipped, many


@njit(nogil=True, cache=True)
def update_halves(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    kind,
    words,
    header,
    slots,
    first,
    state,
    state_floats,
    grad,
    hyper,
    counts,
    now_s,
    dirty,
    many,
    seed,
) -> Any:
    """`update_rows` for a bfloat16 set: widened, stepped in float32, rounded stochastically.

    The rounding bits are SplitMix64 of (key, set, the row's count after this batch): the same run
    rounds the same way, wherever the row lies. Without them a step below half a unit in the last
    place would never move a weight.
    """
    dim = grad.shape[1]
    halves = words.view(np.uint16)
    wide = np.empty(dim, np.float32)
    bits = wide.view(np.uint32)
    skipped = 0
    for i in range(grad.shape[0]):
        if i + AHEAD < grad.shape[0]:
            for column in range(first, state + state_floats, LINE_WORDS):
                prefetch(words, slots[i + AHEAD], column)
        slot = slots[i]
        if slot < 0:
            continue
        if counts.shape[0] > 0:
            _count(header, slot, counts[i], now_s)
        many = _mark(header, slot, dirty, many)
        for d in range(dim):
            bits[d] = np.uint32(halves[slot, 2 * first + d]) << np.uint32(16)
        own = words[slot, state : state + state_floats]
        if not _step(kind, wide, own, grad[i], hyper):
            skipped += 1
            continue
        key = np.uint64(header[slot, 0]) | (np.uint64(header[slot, 1]) << np.uint64(32))
        random = key ^ seed ^ (np.uint64(header[slot, COUNT_WORD]) << np.uint64(17))
        for d in range(dim):
            random += np.uint64(0x9E3779B97F4A7C15)
            z = (random ^ (random >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            up = np.uint32(bits[d] + np.uint32((z ^ (z >> np.uint64(31))) >> np.uint64(48)))
            halves[slot, 2 * first + d] = np.uint16(up >> np.uint32(16))
    return skipped, many


@njit(nogil=True, cache=True)
def touch_rows(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    header, slots, counts, now_s, dirty, many
) -> Any:
    """Advance the headers of `slots` by `counts` (empty = leave them) and mark the rows dirty.

    -1 is passed over. Returns how many of `dirty` are filled now.
    """
    for i in range(slots.shape[0]):
        if i + AHEAD < slots.shape[0]:
            prefetch(header, slots[i + AHEAD], 0)
        if slots[i] >= 0:
            if counts.shape[0] > 0:
                _count(header, slots[i], counts[i], now_s)
            many = _mark(header, slots[i], dirty, many)
    return many


@njit(nogil=True, cache=True)
def _count(header, slot, count, now_s) -> None:  # type: ignore[no-untyped-def]
    header[slot, TOUCHED_WORD] = max(header[slot, TOUCHED_WORD], now_s)
    room = np.uint32(0xFFFFFFFF) - header[slot, COUNT_WORD]
    header[slot, COUNT_WORD] += min(np.uint32(count), room)


@njit(nogil=True, cache=True)
def _mark(header, slot, dirty, many) -> Any:  # type: ignore[no-untyped-def]
    if header[slot, FLAGS_WORD] & np.uint32(DIRTY_BIT) == 0:
        header[slot, FLAGS_WORD] |= np.uint32(DIRTY_BIT)
        dirty[many] = slot
        many += 1
    return many
