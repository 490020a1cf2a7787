"""A bucket of the index, four keys at a time: LLVM vectors, written out.

One comparison tells which of a cache line's four keys is the one looked for. A loop over them would
end at a place that no branch predictor can know, and a wrong guess costs more than the comparison.
Nothing is checked: the four words have to be there.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

KEYS: Final = 4
_WORD: Final = ir.IntType(64)
_WORDS: Final = ir.VectorType(_WORD, KEYS)
_WORD_BYTES: Final = 8


def _matches(_typing: Any, table: Any, at: Any, key: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, args[0])
        first = builder.gep(view.data, [args[1]])
        keys = builder.load(builder.bitcast(first, ir.PointerType(_WORDS)))
        keys.align = _WORD_BYTES
        nothing, number = ir.Constant(_WORDS, ir.Undefined), ir.IntType(32)
        wanted = builder.insert_element(nothing, args[2], ir.Constant(number, 0))
        same = ir.Constant(ir.VectorType(number, KEYS), [0] * KEYS)
        equal = builder.icmp_unsigned("==", keys, builder.shuffle_vector(wanted, nothing, same))
        return builder.zext(builder.bitcast(equal, ir.IntType(KEYS)), _WORD)

    return types.uint64(table, at, key), generate


def _lowest(_typing: Any, mask: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(mask), generate


matches: Any = intrinsic(_matches)
"""matches(table, at, key) -> uint64: bit n is set if table[at + n] == key, for n < KEYS; all are
uint64 and `table` is flat."""
lowest: Any = intrinsic(_lowest)
"""lowest(mask) -> uint64: the number of its lowest set bit; `mask` is uint64 and not 0."""
