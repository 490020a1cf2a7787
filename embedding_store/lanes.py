"""Eight floats at a time for numba kernels: LLVM vectors, written out.

Left to itself the compiler takes these loops one float at a time, since it cannot know that source
and target do not overlap; and a function of the kernel's, even an inlined one, would count a
reference to each array at each row. Arrays are flat, C-order and float32, and do not overlap;
offsets and lengths are in floats and not checked. No fused multiply-add and a fixed
order of sums: the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES: Final = 8
COMMON_WIDTH: Final = 2 * LANES
"""The width of most sets."""
_FLOAT: Final = ir.FloatType()
_VECTOR: Final = ir.VectorType(_FLOAT, LANES)
_ALIGN: Final = 4  # rows begin at any word


class _Floats:
    """An array's memory as the generator of a kernel sees it."""

    def __init__(self, context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> None:
        self._builder = builder
        view = context.make_array(array_type)(context, builder, array)
        self._first = builder.gep(view.data, [at])

    def load(self, index: Any, kind: Any) -> Any:
        value = self._builder.load(self._pointer(index, kind))
        value.align = _ALIGN
        return value

    def store(self, index: Any, value: Any) -> None:
        self._builder.store(value, self._pointer(index, value.type)).align = _ALIGN

    def _pointer(self, index: Any, kind: Any) -> Any:
        return self._builder.bitcast(self._builder.gep(self._first, [index]), ir.PointerType(kind))


def _each(builder: Any, count: Any, work: Callable[[Any, Any], None]) -> None:
    """`work(index, type)`: for every whole eight, then for what is left, one by one.

    The commonest width is written out: two loops that end after two rounds and none cost more than
    what is done in them.
    """
    common = builder.icmp_unsigned("==", count, ir.Constant(count.type, COMMON_WIDTH))
    with builder.if_else(common, likely=True) as (unrolled, looped):
        with unrolled:
            for index in range(0, COMMON_WIDTH, LANES):
                work(ir.Constant(count.type, index), _VECTOR)
        with looped:
            _loops(builder, count, work)


def _loops(builder: Any, count: Any, work: Callable[[Any, Any], None]) -> None:
    eight = ir.Constant(count.type, LANES)
    whole = builder.and_(count, ir.Constant(count.type, -LANES))
    zero, one = ir.Constant(count.type, 0), ir.Constant(count.type, 1)
    with cgutils.for_range_slice(builder, zero, whole, eight, count.type) as (index, _):
        work(index, _VECTOR)
    with cgutils.for_range_slice(builder, whole, count, one, count.type) as (index, _):
        work(index, _FLOAT)


def _offset(context: Any, builder: Any, value: Any, kind: Any) -> Any:
    return context.cast(builder, value, kind, types.intp)


def _splat(builder: Any, scalar: Any, kind: Any) -> Any:
    """The scalar in every lane of `kind`."""
    if kind == _FLOAT:
        return scalar
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(nothing, scalar, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, nothing, mask)


def _between(combine: Callable[[Any, Any, Any, Any], Any]) -> Callable[..., Any]:
    """Generator of target[to + d] = combine(target[to + d], source[at + d]) for d < count."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        to, at, count = (_offset(context, builder, args[n], kinds[n]) for n in (1, 3, 4))
        target = _Floats(context, builder, kinds[0], args[0], to)
        source = _Floats(context, builder, kinds[2], args[2], at)
        scalar = args[5] if len(args) > 5 else None

        def work(index: Any, kind: Any) -> None:
            given = source.load(index, kind)
            target.store(index, combine(builder, lambda: target.load(index, kind), given, scalar))

        _each(builder, count, work)
        return context.get_dummy_value()

    return generate


_generate_copy = _between(lambda _builder, _old, given, _scalar: given)
_generate_add = _between(lambda builder, old, given, _scalar: builder.fadd(old(), given))
_generate_step = _between(
    lambda builder, old, given, rate: builder.fsub(
        old(), builder.fmul(_splat(builder, rate, given.type), given)
    )
)


def _generate_squares(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    kinds = signature.args
    at, count = (_offset(context, builder, args[n], kinds[n]) for n in (1, 2))
    source = _Floats(context, builder, kinds[0], args[0], at)
    nothing = ir.Constant(_VECTOR, [0.0] * LANES)
    sums = cgutils.alloca_once_value(builder, nothing)  # type: ignore[no-untyped-call]
    number = ir.IntType(32)

    def work(index: Any, kind: Any) -> None:
        value = source.load(index, kind)
        square, so_far = builder.fmul(value, value), builder.load(sums)
        if kind == _VECTOR:
            builder.store(builder.fadd(so_far, square), sums)
        else:
            lane = builder.and_(builder.trunc(index, number), ir.Constant(number, LANES - 1))
            added = builder.fadd(builder.extract_element(so_far, lane), square)
            builder.store(builder.insert_element(so_far, added, lane), sums)

    _each(builder, count, work)
    lanes = [builder.extract_element(builder.load(sums), ir.Constant(number, n)) for n in range(8)]
    q0, q1, q2, q3 = (builder.fadd(lanes[n], lanes[n + 4]) for n in range(4))
    return builder.fadd(builder.fadd(q0, q2), builder.fadd(q1, q3))


def _copy_floats(_typing: Any, target: Any, to: Any, source: Any, at: Any, count: Any) -> Any:
    return types.void(target, to, source, at, count), _generate_copy


def _add_floats(_typing: Any, target: Any, to: Any, source: Any, at: Any, count: Any) -> Any:
    return types.void(target, to, source, at, count), _generate_add


def _step_floats(  # noqa: PLR0917
    _typing: Any, target: Any, to: Any, source: Any, at: Any, count: Any, rate: Any
) -> Any:
    return types.void(target, to, source, at, count, rate), _generate_step


def _sum_squares(_typing: Any, source: Any, at: Any, count: Any) -> Any:
    return types.float32(source, at, count), _generate_squares


def _copy_bytes(_typing: Any, target: Any, to: Any, source: Any, at: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        to, at, count = (_offset(context, builder, args[n], kinds[n]) for n in (1, 3, 4))
        into, given = (
            builder.gep(context.make_array(kinds[n])(context, builder, args[n]).data, [place])
            for n, place in ((0, to), (2, at))
        )
        cgutils.raw_memcpy(builder, into, given, count, 1)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    return types.void(target, to, source, at, count), generate


copy_floats: Any = intrinsic(_copy_floats)
"""copy_floats(target, to, source, at, count): target[to + d] = source[at + d]."""
copy_bytes: Any = intrinsic(_copy_bytes)
"""copy_bytes(target, to, source, at, count): the same of flat arrays of uint8."""
add_floats: Any = intrinsic(_add_floats)
"""add_floats(target, to, source, at, count): target[to + d] += source[at + d]."""
step_floats: Any = intrinsic(_step_floats)
"""step_floats(target, to, source, at, count, rate): target[to + d] -= rate * source[at + d]."""
sum_squares: Any = intrinsic(_sum_squares)
"""sum_squares(source, at, count) -> float32: in eight lanes, d % 8, each in order of d, then as a
tree: ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7))."""
