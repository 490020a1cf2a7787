"""Which of many ascending keys a table cannot have, told from a byte for each key it has.

    words = uint64[W]   word n stands for the n-th part of the range of keys; each key sets three of
                        its bits (a Bloom filter in blocks of one word)

Batches ask dozens of tables for keys that nearly all of them have not got. Since both ascend, a
batch reads the words from front to back, as fast as memory gives them; looking for a key among the
table's own takes four cache lines from anywhere. Keys that are no hashes may fill a few words with
all their bits: those are then looked for.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from embedding_store.distinct import MULTIPLIER
from embedding_store.kernel import kernel

KEYS_PER_WORD: Final = 8
_ONE, _HALF, _SIX_BITS = np.uint64(1), np.uint64(32), np.uint64(63)


class KeyFilter:
    """Made of a table's keys uint64[N], ascending, at least one."""

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        self._first = keys[0]
        span = int(keys[-1]) - int(keys[0])
        self._shift = np.uint64(max(0, span.bit_length() - 32))
        many = len(keys) // KEYS_PER_WORD + 1
        self._scale = np.uint64((many << 32) // ((span >> int(self._shift)) + 1))
        self._words: NDArray[np.uint64] = np.zeros(many, np.uint64)
        _fill(self._words, self._first, self._shift, self._scale, keys)

    def passed(self, wanted: NDArray[np.uint64], todo: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the positions `todo` int64[T] whose keys the table may have, in order.

        Positions are `wanted`'s, whose keys are from the table's first to its last.
        """
        maybe = np.empty_like(todo)
        many = _passed(self._words, self._first, self._shift, self._scale, wanted, todo, maybe)
        return maybe[:many]


@njit(inline="always")
def _word(key, first, shift, scale):  # type: ignore[no-untyped-def]
    return (((key - first) >> shift) * scale) >> _HALF


@njit(inline="always")
def _bits(key):  # type: ignore[no-untyped-def]
    mixed = key * MULTIPLIER
    return (
        (_ONE << (mixed >> np.uint64(58)))
        | (_ONE << ((mixed >> np.uint64(52)) & _SIX_BITS))
        | (_ONE << ((mixed >> np.uint64(46)) & _SIX_BITS))
    )


@kernel
def _fill(words, first, shift, scale, keys) -> None:  # type: ignore[no-untyped-def]
    for i in range(keys.shape[0]):
        words[_word(keys[i], first, shift, scale)] |= _bits(keys[i])


@kernel
def _passed(words, first, shift, scale, wanted, todo, maybe):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Returns how many of `todo` are in `maybe`; nothing branches on it."""
    many = np.int64(0)
    for i in range(todo.shape[0]):
        key = wanted[todo[i]]
        bits = _bits(key)
        maybe[many] = todo[i]
        many += np.int64(words[_word(key, first, shift, scale)] & bits == bits)
    return many
