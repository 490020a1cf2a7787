"""Encoders of numbers: value -> codes, pure and fixed for good, since each code names a row.

MNSE (multiple numeral systems, arXiv 2403.00793): an integer's digits in bases 2, 3, ..., each
(base, position, digit) a code of its own; a row's vectors are summed. The number of digits is
fixed up front: leading zeros count, and a value out of range is held at its end. SEE: the cosine
of two pretrained vectors, bucketed, through MNSE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from embedding_store.keys import row_keys

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

SIMILARITY_BITS = 8


def digit_counts(bases: Sequence[int], bits: int) -> list[int]:
    """Digits of each base that hold every integer below 2^bits."""
    return [math.ceil(bits * math.log(2) / math.log(base) - 1e-9) for base in bases]


def mnse_codes(values: I64, bases: Sequence[int], bits: int) -> I64:
    """Codes int64 [n, C] of integers [n]: C = the sum of `digit_counts`, plus one for the sign.

    A code is its place in the list of all (base, position, digit): different ones never meet.
    """
    size = np.minimum(np.abs(values), 2**bits - 1)
    columns = [(values < 0).astype(np.int64)]
    first = 2
    for base, count in zip(bases, digit_counts(bases, bits), strict=True):
        left = size
        for _ in range(count):  # least significant digit first
            columns.append(first + left % base)
            left = left // base
            first += base
    return np.stack(columns, 1)


def code_count(bases: Sequence[int], bits: int) -> int:
    """How many codes there are in all."""
    counts = digit_counts(bases, bits)
    return 2 + sum(b * n for b, n in zip(bases, counts, strict=True))


def mnse_keys(slot: str, values: F64, bases: Sequence[int], bits: int) -> tuple[U64, F32]:
    """Row keys [n * C] of numbers [n], rounded, row-major, each of weight 1."""
    held = np.clip(np.rint(values), -(2.0**62), 2.0**62).astype(np.int64)
    codes = mnse_codes(held, bases, bits)
    # bases and bits are part of the name: another choice never reads this one's rows
    prefix = f"mnse:{'.'.join(map(str, bases))}:{bits}"
    table = row_keys(slot, [f"{prefix}:{n}" for n in range(code_count(bases, bits))])
    return table[codes].reshape(-1), np.ones(codes.size, np.float32)


def similarity_bucket(cosines: F64) -> F64:
    """[-1, 1] -> whole numbers below 2^SIMILARITY_BITS."""
    return np.asarray(np.rint((np.clip(cosines, -1, 1) + 1) / 2 * (2**SIMILARITY_BITS - 1)))
