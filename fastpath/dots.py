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


def _prefetch(builder: Any, place: Any) -> None:
    """Asks memory for a cache line, for reading, to be kept in all caches."""
    kind = ir.FunctionType(ir.VoidType(), [place.type, _i32, _i32, _i32])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(prefetch, [place, _i32(0), _i32(3), _i32(1)])


def _dots(typingctx, rows, row, ahead, coming, states, out, place, begin, end, count):
    """out[j, place] = rows[row] . states[j] for j < ``count``, over the columns from ``begin``
    up to ``end``; added to what is there where ``begin`` is not 0.

    ``rows`` (N, D), ``states`` (>= count, D) and ``out`` (>= count, M) are contiguous, and
    ``count`` is a literal. While it works, row ``ahead`` is asked for, from column ``coming``
    on; any number will do there, since a prefetch of no valid address does nothing.

    States are float32 or, for rows in bfloat16 where that is ``PAIRED``, bfloat16 too. Then
    numbers below 2^-126 count as 0, and so do sums.
    """
    # The literal is part of the signature: by it Numba tells one variant from the next.
    index = types.intp
    signature = types.void(rows, index, index, index, states, out, index, index, index, count)
    states_at_once = range(count.literal_value)
    element, number = _ELEMENTS[rows.dtype], _ELEMENTS[states.dtype]
    paired = number is not _f32
    step = 2 * LANES if paired else LANES

    def codegen(context, builder, signature, args):
        matrix, many, sums = (
            context.make_array(kind)(context, builder, value)
            for kind, value in ((rows, args[0]), (states, args[4]), (out, args[5]))
        )
        width = builder.extract_value(matrix.shape, 1)
        stride = builder.extract_value(sums.shape, 1)
        begin, end = args[7], args[8]

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
        heads = [row_of(many.data, _i64(j), number) for j in states_at_once]
        zero = ir.Constant(_floats, [0.0] * LANES)

        def met(column: Any, before: list[Any], mask: Any) -> list[Any]:
            """The sums after one more vector of the row has met every state."""

            def load(base: Any, kind: Any) -> Any:
                place, vectors = at(base, column, kind), ir.VectorType(kind, step)
                size = kind.width // 8 if isinstance(kind, ir.IntType) else 4
                if mask is None:
                    return builder.load(place, typ=vectors, align=size)
                name = f"llvm.masked.load.v{step}{kind.intrinsic_name}.p0"
                return call(name, vectors, place, _i32(size), mask, ir.Constant(vectors, None))

            passing = load(this, element)
            met_states = zip(before, (load(head, number) for head in heads), strict=True)
            if paired:
                name, passing = f"llvm.x86.avx512bf16.dpbf16ps.{32 * LANES}", pairs(passing)
                return [call(name, _floats, sum_, passing, pairs(new)) for sum_, new in met_states]
            name, passing = f"llvm.fma.v{LANES}f32", widened(passing)
            return [call(name, _floats, passing, new, sum_) for sum_, new in met_states]

        # The whole vectors of the row ...
        start = builder.block
        loop, rest, tail, done = map(builder.append_basic_block, ("loop", "rest", "tail", "done"))
        whole = builder.add(begin, builder.and_(builder.sub(end, begin), _i64(-step)))
        builder.cbranch(builder.icmp_signed(">", whole, begin), loop, rest)
        builder.position_at_end(loop)
        column = builder.phi(_i64)
        before = [builder.phi(_floats) for _ in states_at_once]
        coming = at(following, column, element)
        _prefetch(builder, coming)
        after = met(column, before, None)
        advanced = builder.add(column, _i64(step))
        column.add_incoming(begin, start)
        column.add_incoming(advanced, loop)
        for old, new in zip(before, after, strict=True):
            old.add_incoming(zero, start)
            old.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", advanced, whole), loop, rest)

        # ... and, masked, what is left of it.
        builder.position_at_end(rest)
        so_far = [builder.phi(_floats) for _ in states_at_once]
        for sum_, new in zip(so_far, after, strict=True):
            sum_.add_incoming(zero, start)
            sum_.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", whole, end), tail, done)
        builder.position_at_end(tail)
        lanes = ir.Constant(ir.VectorType(_i64, step), list(range(step)))
        limit, left = ir.Constant(lanes.type, ir.Undefined), builder.sub(end, whole)
        for lane in range(step):
            limit = builder.insert_element(limit, left, _i32(lane))
        ended = met(whole, so_far, builder.icmp_signed("<", lanes, limit))
        builder.branch(done)

        builder.position_at_end(done)
        totals = [builder.phi(_floats) for _ in states_at_once]
        for total, short, long in zip(totals, so_far, ended, strict=True):
            total.add_incoming(short, rest)
            total.add_incoming(long, tail)
        first = builder.icmp_signed("==", begin, _i64(0))
        for j, total in enumerate(totals):
            name = f"llvm.vector.reduce.fadd.v{LANES}f32"
            target = at(sums.data, builder.add(args[6], builder.mul(stride, _i64(j))), _f32)
            known = builder.select(first, _f32(0.0), builder.load(target, typ=_f32))
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
        bits = element.width if isinstance(element, ir.IntType) else 32
        line = ir.VectorType(element, 512 // bits)
        source, target = (
            builder.gep(array.data, [builder.mul(index, width)], source_etype=element)
            for array, index in ((matrix, args[1]), (shelves, args[3]))
        )
        past = builder.module.add_metadata([_i32(1)])
        with cgutils.for_range_slice(builder, _i64(0), width, _i64(line.count)) as (column, _):
            coming = builder.gep(source, [column], source_etype=element)
            numbers = builder.load(coming, typ=line, align=bits // 8)
            there = builder.gep(target, [column], source_etype=element)
            there = builder.bitcast(there, line.as_pointer())
            builder.store(numbers, there, align=64).set_metadata("nontemporal", past)
        return context.get_dummy_value()

    return types.void(rows, types.intp, shelf, types.intp), codegen


laid: Any = intrinsic(_laid)
