"""The sparse optimizers in numpy's float32, one row at a time: what the kernels must give."""

from __future__ import annotations

import numpy as np

from embedding_store.layout import SetSpec

F = np.float32
M64 = 2**64 - 1


def squares(grad: np.ndarray) -> np.float32:
    """In float32: eight sums, one per d % 8, added up as a tree."""
    lanes = [F(0)] * 8
    for d, g in enumerate(grad):
        lanes[d % 8] += g * g
    a, b, c, d, e, f, g, h = lanes
    return ((a + e) + (c + g)) + ((b + f) + (d + h))


def learn(spec: SetSpec, vector: np.ndarray, state: np.ndarray, grad: np.ndarray) -> None:
    """One step in place; nothing if it would not stay finite."""
    dim, lr = spec.dim, F(spec.lr)
    if spec.optimizer in {"rowwise_adagrad", "sgd"}:
        adaptive = spec.optimizer == "rowwise_adagrad"
        total = state[0] + squares(grad) / F(dim) if adaptive else squares(grad)
        if np.isfinite(total):
            rate = lr / (np.sqrt(total) + F(spec.eps)) if adaptive else lr
            state[:1] = total
            vector -= rate * grad
        return
    sums = state[:dim] if spec.optimizer == "adagrad" else state[dim : 2 * dim]
    if not np.isfinite((sums + grad * grad).sum(dtype=np.float64)):
        return
    if spec.optimizer == "adagrad":
        sums += grad * grad
        vector -= lr * grad / (np.sqrt(sums) + F(spec.eps))
    elif spec.optimizer == "adam":
        _adam(spec, vector, state, grad)
    else:
        _ftrl(spec, vector, state, grad)


def _adam(spec: SetSpec, vector: np.ndarray, state: np.ndarray, grad: np.ndarray) -> None:
    dim, beta1, beta2 = spec.dim, F(spec.beta1), F(spec.beta2)
    state[2 * dim] += F(1)
    steps = int(state[2 * dim])
    rate = F(float(F(spec.lr)) / (1.0 - _power(float(beta1), steps)))
    root = F(np.sqrt(1.0 - _power(float(beta2), steps)))
    m, u = state[:dim], state[dim : 2 * dim]
    m[:] = beta1 * m + (F(1) - beta1) * grad
    u[:] = beta2 * u + (F(1) - beta2) * grad * grad
    vector -= rate * m / (np.sqrt(u) / root + F(spec.eps))


def _power(base: float, exponent: int) -> float:
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def _ftrl(spec: SetSpec, vector: np.ndarray, state: np.ndarray, grad: np.ndarray) -> None:
    dim, lr, l1 = spec.dim, F(spec.lr), F(spec.l1)
    z, n = state[:dim], state[dim : 2 * dim]
    total = n + grad * grad
    sigma = (np.sqrt(total) - np.sqrt(n)) / lr
    z += grad - sigma * vector
    n[:] = total
    shrunk = np.where(z > 0, z - l1, z + l1)
    learnt = -shrunk / ((F(spec.beta) + np.sqrt(total)) / lr + F(spec.l2))
    vector[:] = np.where(np.abs(z) <= l1, F(0), learnt)


def rounded_to_half(vector: np.ndarray, random: int) -> None:
    """float32 values to those of bfloat16, in place, stochastically by SplitMix64 from `random`."""
    state = random
    bits = vector.view(np.uint32)
    for d in range(len(vector)):
        state, drawn = splitmix(state)
        bits[d] = ((int(bits[d]) + (drawn >> 48)) & 0xFFFFFFFF) >> 16 << 16


def splitmix(state: int) -> tuple[int, int]:
    """(next state, 64 random bits) in Python's own integers."""
    state = (state + 0x9E3779B97F4A7C15) & M64
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    return state, z ^ (z >> 31)
