"""How a vector's elements are written: float32 as they are, bfloat16 in half, int8 in a quarter.

    float32   4 bytes, IEEE 754 binary32, little-endian
    bfloat16  2 bytes, the upper half of the binary32, little-endian, rounded to nearest even
    int8      1 byte, two's complement; element = byte * hw_scale, with hw_scale = max|v| / 127

Largest error of an element v: none; 2^-8 |v| (bfloat16 keeps 8 bits); hw_scale / 2 = max|v| / 254.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

VectorDtype = Literal["float32", "bfloat16", "int8"]
VECTOR_DTYPES: Final[tuple[VectorDtype, ...]] = get_args(VectorDtype)
ELEMENT_BYTES: Final[dict[VectorDtype, int]] = {"float32": 4, "bfloat16": 2, "int8": 1}
_INT8_MAX = 127


def write_elements(vector: NDArray[np.float32], dtype: VectorDtype) -> tuple[bytes, float]:
    """(bytes, scale) of a vector `[D]`; the scale is 1 except for int8. Raises ValueError for int8
    of a vector that is not finite: one infinity would leave nothing of the others."""
    words = np.ascontiguousarray(vector, "<f4")
    if dtype == "float32":
        return words.tobytes(), 1.0
    if dtype == "bfloat16":
        bits = words.view("<u4").astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        # Rounding a NaN upwards could make it an infinity: keep it quiet instead.
        upper = np.where(np.isnan(words), (bits >> 16) | 0x40, rounded)
        return upper.astype("<u2").tobytes(), 1.0
    largest = float(np.abs(words).max(initial=0.0))
    if not np.isfinite(largest):
        raise ValueError("expected a finite vector to write as int8, got NaN or infinity")
    # The scale travels as text and is read back in float32: round first, divide by what is read.
    scale = np.float32(largest / _INT8_MAX)
    if scale == 0:
        return bytes(len(words)), 1.0
    levels = np.clip(np.rint(words / scale), -_INT8_MAX, _INT8_MAX)
    return levels.astype(np.int8).tobytes(), float(scale)


def read_elements(value: bytes, dtype: VectorDtype, scale: float) -> NDArray[np.float32]:
    """The vector `[D]` float32; for float32 a read-only view of `value`."""
    if dtype == "float32":
        return np.frombuffer(value, "<f4")
    if dtype == "bfloat16":
        return (np.frombuffer(value, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(value, np.int8).astype(np.float32) * np.float32(scale)
