"""The ids of every store benchmark, the same for ours and for each peer. numpy only.

A step takes 4,096 x 26 ids from one bounded Zipf(1.05) over a universe of keys. Peers with dense
tables get row numbers; stores get 64-bit keys that say nothing of where a row lies.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IDS = 4096 * 26
EXPONENT = 1.05
LR = 0.05
EPS = 1e-8
BATCHES = 8

Ids = NDArray[np.int64]
Keys = NDArray[np.uint64]


def zipf(random: np.random.Generator, universe: int, ids: int = IDS) -> Ids:
    """Row numbers [ids] below `universe`: the bounded power law, by its continuous inverse."""
    power = 1.0 - EXPONENT
    top = (universe + 1.0) ** power
    drawn = (1.0 - random.random(ids) * (1.0 - top)) ** (1.0 / power)
    numbers: Ids = np.minimum(drawn.astype(np.int64) - 1, universe - 1)
    return numbers


def batches(
    universe: int, count: int = BATCHES, ids: int = IDS, seed: int | None = None
) -> list[Ids]:
    """`count` steps' row numbers; equal arguments give equal batches in every process."""
    random = np.random.Generator(np.random.PCG64(universe if seed is None else seed))
    return [zipf(random, universe, ids) for _ in range(count)]


def hashed(ids: Ids) -> Keys:
    """splitmix64 of the row numbers."""
    with np.errstate(over="ignore"):
        x = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def gradients(rows: int, dim: int) -> NDArray[np.float32]:
    """float32[rows, dim], standard normal."""
    return np.random.Generator(np.random.PCG64(1)).standard_normal((rows, dim), np.float32)
