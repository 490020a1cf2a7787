"""The CPU's prefetch instruction for numba kernels: what hides the latency of random rows."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

AHEAD: Final = 96
"""Cache lines asked for ahead of their use. A core waits for some twenty at a time; the further it
sees ahead, the less it stands still when it comes upon many that are not in the cache."""
_LINE_WORDS: Final = 16
_LINES_AHEAD: Final = 4 * AHEAD
"""Of rows that take more than one: what is asked for has to stay in the first cache meanwhile."""


def _ask(context: Any, builder: Any, array_type: Any, array: Any, place: list[Any]) -> None:
    """LLVM's prefetch for reading, to every cache level."""
    view = context.make_array(array_type)(context, builder, array)
    pointer = cgutils.get_item_pointer(  # type: ignore[no-untyped-call]
        context, builder, array_type, view, place, wraparound=False
    )
    pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
    builder.call(function, [pointer, number(0), number(3), number(1)])


def _prefetch(_typing: Any, array: Any, row: Any, column: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _as_indices(context, builder, signature, args)
        _ask(context, builder, signature.args[0], args[0], place)
        return context.get_dummy_value()

    return types.void(array, row, column), generate


def _prefetch_words(_typing: Any, array: Any, row: Any, first: Any, end: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place, start, stop = _as_indices(context, builder, signature, args)
        line = ir.Constant(start.type, _LINE_WORDS)
        _ask(context, builder, signature.args[0], args[0], [place, start])
        second = builder.add(start, line)
        # Rows begin at a line or in its middle: what is left up to half a line is the last one's.
        between = builder.sub(stop, ir.Constant(stop.type, _LINE_WORDS // 2))
        with cgutils.for_range_slice(builder, second, between, line, start.type) as (column, _):
            _ask(context, builder, signature.args[0], args[0], [place, column])
        last = builder.sub(stop, ir.Constant(stop.type, 1))  # rows straddle cache lines
        _ask(context, builder, signature.args[0], args[0], [place, last])
        return context.get_dummy_value()

    return types.void(array, row, first, end), generate


def _as_indices(context: Any, builder: Any, signature: Any, args: Any) -> list[Any]:
    """All arguments but the first, which is the array."""
    given = zip(args[1:], signature.args[1:], strict=True)
    return [context.cast(builder, value, kind, types.intp) for value, kind in given]


@njit(inline="always")
def rows_ahead(first, end):  # type: ignore[no-untyped-def]
    """How many rows ahead to ask for, of each the 4-byte words from `first` to `end`."""
    lines = (end - first) // _LINE_WORDS + 2
    return max(min(AHEAD, _LINES_AHEAD // lines), 8)


prefetch: Any = intrinsic(_prefetch)
"""prefetch(array, row, column): ask for that element's cache line. A hint: out of range is safe."""
prefetch_words: Any = intrinsic(_prefetch_words)
"""prefetch_words(array, row, first, end): ask for every line of these 4-byte words of a row; of one
that begins neither at a line nor in its middle, for all but perhaps one."""
