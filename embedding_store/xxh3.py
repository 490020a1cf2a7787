"""XXH3-64 of a long input, for numba's kernels, which cannot call the library: the checksum of
RocksDB's blocks.

By the specification of XXH3 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md), held against the
library by a test. Inputs of up to 240 bytes are hashed in another way, which is not here.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from embedding_store.kernel import kernel

LONG: Final = 241
"""Bytes from which on an input is long."""
_SECRET: Final = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
        "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
        "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
        "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
        "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    np.uint8,
)


def _words(first: int, many: int, step: int) -> NDArray[np.uint64]:
    """`many` little-endian words of the secret, `step` bytes apart."""
    starts = range(first, first + many * step, step)
    words = [int.from_bytes(_SECRET[at : at + 8].tobytes(), "little") for at in starts]
    return np.array(words, np.uint64)


_STRIPES_PER_BLOCK: Final = 16
LANES: Final = 8
_BY_STRIPE: Final = np.stack([_words(8 * n, LANES, 8) for n in range(_STRIPES_PER_BLOCK)])
_SCRAMBLE: Final = _words(128, LANES, 8)
_LAST: Final = _words(121, LANES, 8)
_MERGE: Final = _words(11, LANES, 8)
_PRIME32_1: Final = np.uint64(0x9E3779B1)
_PRIME64_1: Final = np.uint64(0x9E3779B185EBCA87)
_AVALANCHE: Final = np.uint64(0x165667919E3779F9)
_START: Final = np.array(
    [
        0xC2B2AE3D,
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x85EBCA77,
        0x27D4EB2F165667C5,
        0x9E3779B1,
    ],
    np.uint64,
)


@njit(inline="always")
def _word(data, at):  # type: ignore[no-untyped-def]
    """Eight bytes, little-endian; the compiler makes one load of it."""
    return (
        np.uint64(data[at])
        | np.uint64(data[at + 1]) << np.uint64(8)
        | np.uint64(data[at + 2]) << np.uint64(16)
        | np.uint64(data[at + 3]) << np.uint64(24)
        | np.uint64(data[at + 4]) << np.uint64(32)
        | np.uint64(data[at + 5]) << np.uint64(40)
        | np.uint64(data[at + 6]) << np.uint64(48)
        | np.uint64(data[at + 7]) << np.uint64(56)
    )


@njit(inline="always")
def _accumulate(lanes, data, at, secret):  # type: ignore[no-untyped-def]
    """One stripe of 64 bytes."""
    for lane in range(8):
        word = _word(data, at + np.uint64(8 * lane))
        mixed = word ^ secret[lane]
        lanes[lane ^ 1] += word
        lanes[lane] += (mixed & np.uint64(0xFFFFFFFF)) * (mixed >> np.uint64(32))


@kernel
def _folded(a, b):  # type: ignore[no-untyped-def]
    """The 128-bit product's halves, one over the other."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    cross = (a0 * b0 >> half) + (a1 * b0 & low) + a0 * b1
    upper = (a1 * b0 >> half) + (cross >> half) + a1 * b1
    return upper ^ (cross << half | a0 * b0 & low)


@kernel
def xxh3_64_long(data: Any, first: Any, length: Any, lanes: Any) -> Any:
    """uint64 of `data` uint8[first : first + length], where `length` >= LONG; `lanes` is
    uint64[LANES] to work in."""
    for lane in range(LANES):
        lanes[lane] = _START[lane]
    first, length = np.uint64(first), np.uint64(length)
    stripes = (length - np.uint64(1)) // np.uint64(64)
    for stripe in range(stripes):
        within = stripe % _STRIPES_PER_BLOCK
        _accumulate(lanes, data, first + np.uint64(64 * stripe), _BY_STRIPE[within])
        if within == _STRIPES_PER_BLOCK - 1:
            for lane in range(LANES):
                value = lanes[lane] ^ lanes[lane] >> np.uint64(47) ^ _SCRAMBLE[lane]
                lanes[lane] = value * _PRIME32_1
    _accumulate(lanes, data, first + length - np.uint64(64), _LAST)
    value = length * _PRIME64_1
    for lane in range(0, LANES, 2):
        value += _folded(lanes[lane] ^ _MERGE[lane], lanes[lane + 1] ^ _MERGE[lane + 1])
    value ^= value >> np.uint64(37)
    value *= _AVALANCHE
    return value ^ value >> np.uint64(32)
