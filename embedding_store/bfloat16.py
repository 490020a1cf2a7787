"""bfloat16 as the upper half of a float32, in uint16: numpy has no such type of its own.

Kernels take whole rows `words` [capacity, words] and the word at which the set's vector begins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embedding_store.kernel import kernel
from embedding_store.prefetch import prefetch_words, rows_ahead


def widened(halves: NDArray[np.generic]) -> NDArray[np.float32]:
    """uint16 -> float32 of the same shape; exact."""
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


def nearest(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 -> uint16 of the same shape, to the nearest, ties to even; values must be finite."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)


@kernel
def gather(words, slots, first, vectors) -> None:  # type: ignore[no-untyped-def]
    """vectors float32[N, D] = the rows' halves widened; zeros for -1."""
    stride, dim = np.uint64(2 * words.shape[1]), np.uint64(vectors.shape[1])
    halves, bits = words.reshape(-1).view(np.uint16), vectors.reshape(-1).view(np.uint32)
    end = first + (vectors.shape[1] + 1) // 2
    ahead = rows_ahead(first, end)
    for i in range(slots.shape[0]):
        if i + ahead < slots.shape[0]:
            prefetch_words(words, slots[i + ahead], first, end)
        to = np.uint64(i) * dim
        if slots[i] < 0:
            for d in range(dim):
                bits[to + d] = np.uint32(0)
            continue
        at = np.uint64(slots[i]) * stride + np.uint64(2 * first)
        for d in range(dim):
            bits[to + d] = np.uint32(halves[at + d]) << np.uint32(16)


@kernel
def scatter(words, slots, first, vectors, random) -> None:  # type: ignore[no-untyped-def]
    """Round vectors float32[N, D] into the rows, stochastically; -1 is passed over.

    A value goes up with the probability of its remainder, by 16 bits of SplitMix64 from the row's
    `random` [N]: unbiased, while rounding to the nearest would lose every step smaller than half a
    unit in the last place. A value that bfloat16 holds exactly stays.
    """
    stride, dim = np.uint64(2 * words.shape[1]), np.uint64(vectors.shape[1])
    halves, bits = words.reshape(-1).view(np.uint16), vectors.reshape(-1).view(np.uint32)
    for i in range(slots.shape[0]):
        if slots[i] < 0:
            continue
        at = np.uint64(slots[i]) * stride + np.uint64(2 * first)
        start, state = np.uint64(i) * dim, random[i]
        for d in range(dim):
            state += np.uint64(0x9E3779B97F4A7C15)
            z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            up = np.uint32((z ^ (z >> np.uint64(31))) >> np.uint64(48))
            halves[at + d] = np.uint16((bits[start + d] + up) >> np.uint32(16))
