"""The innermost loops: dot products of one weight row with a few hidden states (LLVM, CPU).

A row is read once, as one long stream, and meets all states while it passes through the
registers. Compilers do not find that by themselves, so it is written in vectors here. Rows in
bfloat16 meet states in bfloat16, as they do in the reference: where the processor can
(``PAIRED``), in pairs, of whose products it adds two to a float32 sum at once. Other rows meet
float32 states, of which nothing is rounded; so do those in bfloat16 that stand for float32 ones
which it holds exactly.
"""

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

# What code is made for is Numba's to say: NUMBA_CPU_FEATURES, or all that the processor has.
_FEATURES = (config.CPU_FEATURES or get_host_cpu_features()).split(",")
LANES = 16 if "+avx512f" in _FEATURES else 8  # float32 numbers in a vector
_AT_ONCE = 32  # numbers of a row that are met between two branches
_ASKED = 32  # bytes: each line is asked for twice, since some processors forget what they are asked
# Older versions of LLVM know the instruction's operands as numbers of another kind.
PAIRED = "+avx512bf16" in _FEATURES and llvm.llvm_version_info >= (20,)


class _Bfloat(ir.HalfType):  # type: ignore[misc]
    """LLVM's name for bfloat16, which llvmlite does not have."""

    def __str__(self) -> str:
        return "bfloat"


_Bfloat._create_instance()

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_f32 = ir.FloatType()
_floats, _pairs = ir.VectorType(_f32, LANES), ir.VectorType(_Bfloat(), 2 * LANES)
_i16 = ir.IntType(16)
_ELEMENTS = {types.float32: _f32, types.uint16: _i16, types.int16: _i16, types.int8: ir.IntType(8)}


def _bytes(kind: Any) -> int:
    """The size of a number of some kind of LLVM's."""
    return kind.width // 8 if isinstance(kind, ir.IntType) else 4


def _prefetch(builder: Any, place: Any) -> None:
    """Asks memory for a cache line, for reading, to be kept in all caches."""
    kind = ir.FunctionType(ir.VoidType(), [place.type, _i32, _i32, _i32])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(prefetch, [place, _i32(0), _i32(3), _i32(1)])


def _dots(
    typingctx, rows, row, ahead, coming, states, first, out, place, begin, end, count, asking
):
    """out[j, place] = rows[row] . states[j] for ``count`` states from j = ``first`` on, over the
    columns from ``begin`` up to ``end``; added to what is there where ``begin`` is not 0.

    ``rows`` (N, D), ``states`` (T, D) and ``out`` (T, M) are contiguous, and ``count`` is a
    literal. They are passed whole: a slice would be counted as a reference, row by row, by
    operations that let no later read begin before they end. While it works, row ``ahead`` is asked
    for, from column ``coming`` on; any number will do there, since a prefetch of no valid address
    does nothing. Nothing is asked for where the literal ``asking`` is 0.

    States are float32 or, for rows in bfloat16 where that is ``PAIRED``, bfloat16 too. Then
    numbers below 2^-126 count as 0, and so do sums.
    """
    # The literals are part of the signature: by them Numba tells one variant from the next.
    index = types.intp
    signature = types.void(
        rows, index, index, index, states, index, out, index, index, index, count, asking
    )
    states_at_once = range(count.literal_value)
    element, number = _ELEMENTS[rows.dtype], _ELEMENTS[states.dtype]
    paired = number is not _f32
    step = 2 * LANES if paired else LANES

    def codegen(context, builder, signature, args):
        matrix, many, sums = (
            context.make_array(kind)(context, builder, value)
            for kind, value in ((rows, args[0]), (states, args[4]), (out, args[6]))
        )
        width = builder.extract_value(matrix.shape, 1)
        stride = builder.extract_value(sums.shape, 1)
        first, place, begin, end = args[5], args[7], args[8], args[9]

        def call(name: str, result: Any, *values: Any, **flags: Any) -> Any:
            kind = ir.FunctionType(result, [value.type for value in values])
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            return builder.call(function, values, **flags)

        def at(base: Any, index: Any, kind: Any) -> Any:
            return builder.gep(base, [index], source_etype=kind)

        def row_of(base: Any, index: Any, kind: Any) -> Any:
            return at(base, builder.mul(index, width), kind)

        def widened(vector: Any) -> Any:
            if element is _f32:
                return vector
            whole = ir.VectorType(_i32, LANES)
            if element.width == 16:  # bfloat16 is the upper half of a float32
                half = ir.Constant(whole, [16] * LANES)
                return builder.bitcast(builder.shl(builder.zext(vector, whole), half), _floats)
            return builder.sitofp(builder.sext(vector, whole), _floats)

        def pairs(vector: Any) -> Any:
            return builder.bitcast(vector, _pairs)

        this, following = (row_of(matrix.data, index, element) for index in (args[1], args[2]))
        following = at(following, builder.sub(args[3], begin), element)
        these = [builder.add(first, _i64(j)) for j in states_at_once]
        heads = [row_of(many.data, state, number) for state in these]

        def below(left: Any) -> Any:
            """The mask of the lanes whose numbers are less than ``left``."""
            lanes = ir.Constant(ir.VectorType(_i64, step), list(range(step)))
            limit = ir.Constant(lanes.type, ir.Undefined)
            for lane in range(step):
                limit = builder.insert_element(limit, left, _i32(lane))
            return builder.icmp_signed("<", lanes, limit)

        def met(column: Any, before: list[Any], mask: Any) -> list[Any]:
            """The sums after one more vector of the row has met every state."""

            def load(base: Any, kind: Any) -> Any:
                place, vectors = at(base, column, kind), ir.VectorType(kind, step)
                if mask is None:
                    return builder.load(place, typ=vectors, align=_bytes(kind))
                name = f"llvm.masked.load.v{step}{kind.intrinsic_name}.p0"
                return call(
                    name, vectors, place, _i32(_bytes(kind)), mask, ir.Constant(vectors, None)
                )

            passing = load(this, element)
            met_states = zip(before, (load(head, number) for head in heads), strict=True)
            if paired:
                name, passing = f"llvm.x86.avx512bf16.dpbf16ps.{32 * LANES}", pairs(passing)
                return [call(name, _floats, sum_, passing, pairs(new)) for sum_, new in met_states]
            name, passing = f"llvm.fma.v{LANES}f32", widened(passing)
            return [call(name, _floats, passing, new, sum_) for sum_, new in met_states]

        def looped(
            name: str, first: Any, before: list[Any], count: int, masked: bool
        ) -> tuple[Any, list[Any]]:
            """Column and sums after a loop, of ``count`` vectors a time, over all that are whole,
            or over all that is left."""
            entry, far = builder.block, _i64(count * step)
            loop, behind = (builder.append_basic_block(name + n) for n in ("", "_done"))
            limit = builder.sub(end, _i64(1) if masked else far)
            builder.cbranch(builder.icmp_signed("<=", first, limit), loop, behind)
            builder.position_at_end(loop)
            column = builder.phi(_i64)
            sums = after = [builder.phi(_floats) for _ in before]
            for number in range(count):
                here = builder.add(column, _i64(number * step))
                if asking.literal_value and number * step * _bytes(element) % _ASKED == 0:
                    _prefetch(builder, at(following, here, element))
                after = met(here, after, below(builder.sub(end, here)) if masked else None)
            advanced = builder.add(column, far)
            builder.cbranch(builder.icmp_signed("<=", advanced, limit), loop, behind)
            builder.position_at_end(behind)
            ends = [builder.phi(value.type) for value in (first, *before)]
            old, new = [first, *before], [advanced, *after]
            for values in zip([column, *sums, *ends], old + old, new + new, strict=True):
                values[0].add_incoming(values[1], entry)
                values[0].add_incoming(values[2], loop)
            return ends[0], ends[1:]

        nothing = [ir.Constant(_floats, [0.0] * LANES)] * len(these)
        column, so_far = looped("some", begin, nothing, max(1, _AT_ONCE // step), False)
        _, totals = looped("left", column, so_far, 1, True)
        new = builder.icmp_signed("==", begin, _i64(0))
        for state, total in zip(these, totals, strict=True):
            name = f"llvm.vector.reduce.fadd.v{LANES}f32"
            target = at(sums.data, builder.add(place, builder.mul(stride, state)), _f32)
            known = builder.select(new, _f32(0.0), builder.load(target, typ=_f32))
            # In any order: a sum from left to right would take as long as the row itself.
            builder.store(call(name, _f32, known, total, fastmath=("reassoc",)), target)
        return context.get_dummy_value()

    return signature, codegen


dots: Any = intrinsic(prefer_literal=True)(_dots)


def _asked(typingctx, rows, row, column):
    """Asks memory for the cache line of rows[row, column], of a contiguous array (N, D)."""

    def codegen(context, builder, signature, args):
        matrix = context.make_array(rows)(context, builder, args[0])
        width = builder.extract_value(matrix.shape, 1)
        index = builder.add(builder.mul(args[1], width), args[2])
        place = builder.gep(matrix.data, [index], source_etype=_ELEMENTS[rows.dtype])
        _prefetch(builder, place)
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp), codegen


asked: Any = intrinsic(_asked)


def _laid(typingctx, rows, row, shelf, place):
    """shelf[place] = rows[row], both contiguous (N, D), past the caches: what is to be read
    only when they have been used for something else need not be fetched to be overwritten.

    A row must be whole cache lines, and ``shelf`` begin at one.
    """
    element = _ELEMENTS[rows.dtype]

    def codegen(context, builder, signature, args):
        matrix, shelves = (
            context.make_array(kind)(context, builder, value)
            for kind, value in ((rows, args[0]), (shelf, args[2]))
        )
        width = builder.extract_value(matrix.shape, 1)
        line = ir.VectorType(element, 64 // _bytes(element))
        source, target = (
            builder.gep(array.data, [builder.mul(index, width)], source_etype=element)
            for array, index in ((matrix, args[1]), (shelves, args[3]))
        )
        past = builder.module.add_metadata([_i32(1)])
        with cgutils.for_range_slice(builder, _i64(0), width, _i64(line.count)) as (column, _):
            coming = builder.gep(source, [column], source_etype=element)
            numbers = builder.load(coming, typ=line, align=_bytes(element))
            there = builder.gep(target, [column], source_etype=element)
            there = builder.bitcast(there, line.as_pointer())
            builder.store(numbers, there, align=64).set_metadata("nontemporal", past)
        return context.get_dummy_value()

    return types.void(rows, types.intp, shelf, types.intp), codegen


laid: Any = intrinsic(_laid)
