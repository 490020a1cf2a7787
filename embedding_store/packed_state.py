"""Many small records as a few buffers: how a commit's state reaches the table builder.

    u64 count | i32[2, count] lengths of names and of values (-1 = deleted) | names | values

Column by column, since thousands of records are packed at each commit beside a training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedding_store.rocks import Write

DELETED: Final = -1


def pack_state(state: Sequence[Write]) -> list[bytes]:
    """Buffers that are the packed records when one follows the other."""
    lengths = np.empty((2, len(state)), "<i4")
    lengths[0] = [len(name) for name, _ in state]
    lengths[1] = [DELETED if value is None else len(value) for _, value in state]
    names = b"".join([name for name, _ in state])
    values = b"".join([value for _, value in state if value])
    return [len(state).to_bytes(8, "little"), lengths.tobytes(), names, values]


def unpack_state(packed: bytes) -> list[Write]:
    """The records in their order."""
    count = int.from_bytes(packed[:8], "little")
    names_at = 8 + 8 * count
    of_names, of_values = np.frombuffer(packed, "<i4", 2 * count, 8).reshape(2, count)
    names = _cut(packed, names_at, of_names)
    values = _cut(packed, names_at + int(of_names.sum()), np.maximum(of_values, 0))
    return [
        (name, None if length == DELETED else value)
        for name, value, length in zip(names, values, of_values.tolist(), strict=True)
    ]


def _cut(packed: bytes, start: int, lengths: NDArray[np.int32]) -> list[bytes]:
    """Pieces of these lengths from `start` on."""
    ends = (start + np.cumsum(lengths, dtype=np.int64)).tolist()
    return [packed[begin:end] for begin, end in zip([start, *ends], ends, strict=False)]
