"""CRC-32C (Castagnoli), as RocksDB's logs carry it. No library of the store's has it."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedding_store.kernel import kernel

_POLYNOMIAL: Final = 0x82F63B78
_MASK_DELTA: Final = 0xA282EAD8


def _tables() -> NDArray[np.uint32]:
    """uint32[8, 256]: eight bytes are folded at a time."""
    tables = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        tables[0, byte] = value
    for n in range(1, 8):
        tables[n] = (tables[n - 1] >> np.uint32(8)) ^ tables[0, tables[n - 1] & np.uint32(0xFF)]
    return tables


_TABLES: Final = _tables()


@kernel
def _fold(data: NDArray[np.uint8], tables: NDArray[np.uint32], start: Any) -> Any:
    value = np.uint32(start)
    at, whole = 0, len(data) - len(data) % 8
    while at < whole:
        low = value ^ (
            np.uint32(data[at])
            | np.uint32(data[at + 1]) << np.uint32(8)
            | np.uint32(data[at + 2]) << np.uint32(16)
            | np.uint32(data[at + 3]) << np.uint32(24)
        )
        value = (
            tables[7, low & np.uint32(0xFF)]
            ^ tables[6, (low >> np.uint32(8)) & np.uint32(0xFF)]
            ^ tables[5, (low >> np.uint32(16)) & np.uint32(0xFF)]
            ^ tables[4, low >> np.uint32(24)]
            ^ tables[3, data[at + 4]]
            ^ tables[2, data[at + 5]]
            ^ tables[1, data[at + 6]]
            ^ tables[0, data[at + 7]]
        )
        at += 8
    while at < len(data):
        value = (value >> np.uint32(8)) ^ tables[0, (value ^ data[at]) & np.uint32(0xFF)]
        at += 1
    return value


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of `data`, uint32."""
    folded = _fold(np.frombuffer(data, np.uint8), _TABLES, np.uint32(0xFFFFFFFF))
    return int(folded) ^ 0xFFFFFFFF


@kernel
def _prefix_length(data: NDArray[np.uint8], tables: NDArray[np.uint32], wanted: Any) -> Any:
    value = np.uint32(0xFFFFFFFF)
    for at in range(len(data)):
        value = (value >> np.uint32(8)) ^ tables[0, (value ^ data[at]) & np.uint32(0xFF)]
        if value ^ np.uint32(0xFFFFFFFF) == wanted:
            return at + 1
    return -1


def prefix_with(data: bytes | memoryview, checksum: int) -> int:
    """Bytes of the shortest non-empty prefix of `data` with this checksum; -1 if none has it."""
    return int(_prefix_length(np.frombuffer(data, np.uint8), _TABLES, np.uint32(checksum)))


def masked(checksum: int) -> int:
    """As it is stored: a checksum of data that contains checksums would be weak."""
    return (((checksum >> 15) | (checksum << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def unmasked(stored: int) -> int:
    """What `masked` was given."""
    rotated = (stored - _MASK_DELTA) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF
