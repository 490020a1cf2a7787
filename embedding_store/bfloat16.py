"""bfloat16 as the upper half of a float32, in uint16: numpy has no such type of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def widened(halves: NDArray[np.generic]) -> NDArray[np.float32]:
    """uint16 -> float32 of the same shape; exact."""
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


def nearest(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 -> uint16 of the same shape, to the nearest, ties to even; values must be finite."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)
