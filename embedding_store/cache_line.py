"""The eight words of a cache line compared at once: an LLVM vector, written out.

One comparison tells which of them is the one looked for. A loop over them would end at a place that
no branch predictor can know, and a wrong guess costs more than the comparison. Nothing is checked:
the eight words have to be there.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

WORDS: Final = 8
LINE_BYTES: Final = 64
_WORD: Final = ir.IntType(64)
_WORDS: Final = ir.VectorType(_WORD, WORDS)
_WORD_BYTES: Final = 8


def _matches(_typing: Any, table: Any, at: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, args[0])
        first = builder.gep(view.data, [args[1]])
        words = builder.load(builder.bitcast(first, ir.PointerType(_WORDS)))
        words.align = _WORD_BYTES
        nothing, number = ir.Constant(_WORDS, ir.Undefined), ir.IntType(32)
        wanted = builder.insert_element(nothing, args[2], ir.Constant(number, 0))
        same = ir.Constant(ir.VectorType(number, WORDS), [0] * WORDS)
        equal = builder.icmp_unsigned("==", words, builder.shuffle_vector(wanted, nothing, same))
        return builder.zext(builder.bitcast(equal, ir.IntType(WORDS)), _WORD)

    return types.uint64(table, at, word), generate


def _lowest(_typing: Any, mask: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(mask), generate


matches: Any = intrinsic(_matches)
"""matches(table, at, word) -> uint64: bit n is set if table[at + n] == word, for n < WORDS; all are
uint64 and `table` is flat."""
lowest: Any = intrinsic(_lowest)
"""lowest(mask) -> uint64: the number of its lowest set bit; `mask` is uint64 and not 0."""
