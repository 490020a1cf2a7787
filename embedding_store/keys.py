"""(slot, value) -> 64-bit row key: XXH3-64 of the value's UTF-8 bytes, seeded by the slot's name.

No bucketing and no table of values: two values share a row only if 64 bits collide, which for
1e8 keys happens with probability 3e-4 anywhere in the store. Keys are part of what is on disk:
changing this file orphans every row (tests/golden values pin it).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from embedding_store.errors import StoreMisuse

RESERVED_KEY: Final = 0
"""Marks an empty entry of the index, so no row may have it."""
STAND_IN_FOR_RESERVED: Final = 0x9E3779B97F4A7C15
"""The key of a value that hashes to the reserved one."""


@lru_cache(maxsize=4096)
def slot_seed(slot: str) -> int:
    """The seed under which every value of `slot` is hashed."""
    return int(xxhash.xxh3_64_intdigest(slot.encode()))


def row_key(slot: str, value: str) -> int:
    """The key of one value; `row_keys` is the same for a list."""
    return int(row_keys(slot, (value,))[0])


def row_keys(slot: str, values: Sequence[str]) -> NDArray[np.uint64]:
    """Keys uint64[N] of `values` (strings, any length, lone surrogates allowed) in `slot`."""
    try:
        keys = _hashed(map(str.encode, values), slot, len(values))
    except UnicodeEncodeError:  # JSON's "\ud800" is legal in a str and has no strict UTF-8 form
        keys = _hashed((v.encode("utf-8", "surrogatepass") for v in values), slot, len(values))
    keys[keys == RESERVED_KEY] = STAND_IN_FOR_RESERVED
    return keys


def _hashed(values: Iterable[bytes], slot: str, count: int) -> NDArray[np.uint64]:
    """uint64[count]; no step of Python's between two values."""
    digests = map(xxhash.xxh3_64_intdigest, values, repeat(slot_seed(slot)))
    return np.fromiter(digests, np.uint64, count)


def checked_keys(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`keys`, contiguous; raises StoreMisuse unless they are uint64[N] without the reserved one."""
    if keys.ndim != 1 or keys.dtype != np.uint64:
        raise StoreMisuse(f"keys must be uint64[N]: came=`{keys.dtype}{list(keys.shape)}`")
    if len(keys) and keys.min() == RESERVED_KEY:  # 0, the least there is
        raise StoreMisuse("key 0 is reserved: make keys with embedding_store.keys.row_keys")
    return np.ascontiguousarray(keys)
