"""The innermost loops: dot products of a few weight rows with a few hidden states (LLVM, CPU).

Rows are read once, each as one long stream, and meet all states while they pass through the
registers. Compilers do not find that by themselves, so it is written in vectors here. Rows in
bfloat16 meet states in bfloat16, as they do in the reference: where the processor can
(``PAIRED``), in pairs, of whose products it adds two to a float32 sum at once. Other rows meet
float32 states, of which nothing is rounded; so do those in bfloat16 that stand for float32 ones
which it holds exactly.
"""

import itertools
from functools import partial
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
MOST = 8  # states that meet a row at once: their sums must fit the registers
_REGISTERS = 2 * LANES  # that hold a vector
# How many rows meet a number of states side by side: four streams of memory, or as many as the
# registers hold with their sums and a vector of one state.
SIDE_BY_SIDE = (0, *(min(4, (_REGISTERS - 1) // (count + 1)) for count in range(1, MOST + 1)))
_AT_ONCE = 32  # numbers of a row that are met between two branches
_LINE = 64  # bytes that come together
_NEAR = 1024  # bytes that a loop is behind what it tells memory of, if it takes whole lines
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


def called(builder: Any, name: str, result: Any, *values: Any, **flags: Any) -> Any:
    """The result, of a type of LLVM's, of a function of LLVM's."""
    kind = ir.FunctionType(result, [value.type for value in values])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, values, **flags)


def _tell(builder: Any, place: Any) -> None:
    """Memory of a line that will be read, which is to be brought as far as the second cache: the
    first has no room for what is on its way beside what is waited for."""
    place = builder.bitcast(place, ir.IntType(8).as_pointer())
    called(builder, "llvm.prefetch.p0", ir.VoidType(), place, _i32(0), _i32(2), _i32(1))


def below(builder: Any, left: Any, count: int) -> Any:
    """The mask of those of ``count`` lanes whose numbers are less than ``left``."""
    lanes = ir.Constant(ir.VectorType(_i64, count), list(range(count)))
    limit = ir.Constant(lanes.type, ir.Undefined)
    for lane in range(count):
        limit = builder.insert_element(limit, left, _i32(lane))
    return builder.icmp_signed("<", lanes, limit)


def _dots(typingctx, rows, these, later, early, states, first, out, places, count):
    """out[j, places[i]] = rows[these[i]] . states[j] for the first ``SIDE_BY_SIDE[count]`` of four
    rows, for ``count`` states from j = ``first`` on. Meanwhile memory is told of the rows that
    are met ``later``, by fours as well, if ``early``; else of these, where vectors are whole lines.

    ``rows`` (N, D), ``states`` (T, D) and ``out`` (T, M) are contiguous, and ``count`` is a
    literal. They are passed whole: a slice would be counted as a reference, row by row, by
    operations that let no later read begin before they end.

    States are float32 or, for rows in bfloat16 where that is ``PAIRED``, bfloat16 too. Then
    numbers below 2^-126 count as 0, and so do sums.
    """
    # The literal is part of the signature: by it Numba tells one variant from the next.
    signature = types.void(
        rows, these, later, types.boolean, states, types.intp, out, places, count
    )
    states_at_once = range(count.literal_value)
    element, number = _ELEMENTS[rows.dtype], _ELEMENTS[states.dtype]
    paired = number is not _f32
    step, size = 2 * LANES if paired else LANES, _bytes(element)

    def codegen(context, builder, signature, args):
        matrix, many, sums = (
            context.make_array(kind)(context, builder, value)
            for kind, value in ((rows, args[0]), (states, args[4]), (out, args[6]))
        )
        width = builder.extract_value(matrix.shape, 1)
        stride = builder.extract_value(sums.shape, 1)
        many_rows = SIDE_BY_SIDE[count.literal_value]
        its, coming, targets = (cgutils.unpack_tuple(builder, args[i]) for i in (1, 2, 7))
        its, targets = its[:many_rows], targets[:many_rows]

        call = partial(called, builder)

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

        passing = [row_of(matrix.data, index, element) for index in its]
        these_states = [builder.add(args[5], _i64(j)) for j in states_at_once]
        heads = [row_of(many.data, state, number) for state in these_states]

        def met(column: Any, before: list[Any], mask: Any) -> list[Any]:
            """The sums after one more vector of each row has met every state."""

            def load(base: Any, kind: Any) -> Any:
                place, vectors = at(base, column, kind), ir.VectorType(kind, step)
                if mask is None:
                    return builder.load(place, typ=vectors, align=_bytes(kind))
                name = f"llvm.masked.load.v{step}{kind.intrinsic_name}.p0"
                return call(
                    name, vectors, place, _i32(_bytes(kind)), mask, ir.Constant(vectors, None)
                )

            def added(sum_: Any, row: Any, state: Any) -> Any:
                if paired:
                    name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * LANES}"
                    return call(name, _floats, sum_, pairs(row), pairs(state))
                return call(f"llvm.fma.v{LANES}f32", _floats, row, state, sum_)

            met_rows = [load(row, element) for row in passing]
            if not paired:
                met_rows = [widened(row) for row in met_rows]
            sums, after = iter(before), []
            for head in heads:  # state after state: registers are few
                state = load(head, number)
                after += [added(next(sums), row, state) for row in met_rows]
            return after

        to_come = [
            row_of(matrix.data, index, element)
            for four in range(0, len(coming), 4)
            for index in coming[four : four + many_rows]
        ]

        def tell(bases: list[Any], column: Any) -> None:
            """Of what is met between two branches, or as much of other rows."""
            for base, line in itertools.product(bases, range(0, _AT_ONCE, _LINE // size)):
                _tell(builder, at(base, builder.add(column, _i64(line)), element))

        def looped(
            name: str, first: Any, before: list[Any], count: int, masked: bool
        ) -> tuple[Any, list[Any]]:
            """Column and sums after a loop, of ``count`` vectors a time, over all that are whole,
            or over all that is left."""
            entry, far = builder.block, _i64(count * step)
            loop, behind = (builder.append_basic_block(name + n) for n in ("", "_done"))
            limit = builder.sub(width, _i64(1) if masked else far)
            builder.cbranch(builder.icmp_signed("<=", first, limit), loop, behind)
            builder.position_at_end(loop)
            column = builder.phi(_i64)
            sums = after = [builder.phi(_floats) for _ in before]
            if not masked:
                with builder.if_else(args[3]) as (rows_to_come, these_rows):
                    with rows_to_come:
                        tell(to_come, column)
                    with these_rows:
                        if element is _f32 and step * size == _LINE:
                            tell(passing, builder.add(column, _i64(_NEAR // size)))
            for number in range(count):
                here = builder.add(column, _i64(number * step))
                after = met(
                    here, after, below(builder, builder.sub(width, here), step) if masked else None
                )
            advanced = builder.add(column, far)
            last = builder.block
            builder.cbranch(builder.icmp_signed("<=", advanced, limit), loop, behind)
            builder.position_at_end(behind)
            ends = [builder.phi(value.type) for value in (first, *before)]
            old, new = [first, *before], [advanced, *after]
            for values in zip([column, *sums, *ends], old + old, new + new, strict=True):
                values[0].add_incoming(values[1], entry)
                values[0].add_incoming(values[2], last)
            return ends[0], ends[1:]

        nothing = [ir.Constant(_floats, [0.0] * LANES)] * (len(its) * len(heads))
        column, so_far = looped("some", _i64(0), nothing, max(1, _AT_ONCE // step), False)
        _, totals = looped("left", column, so_far, 1, True)
        ends = zip(totals, itertools.product(these_states, targets), strict=True)
        for total, (state, place) in ends:
            name = f"llvm.vector.reduce.fadd.v{LANES}f32"
            target = at(sums.data, builder.add(place, builder.mul(stride, state)), _f32)
            # In any order: a sum from left to right would take as long as the row itself.
            builder.store(call(name, _f32, _f32(0.0), total, fastmath=("reassoc",)), target)
        return context.get_dummy_value()

    return signature, codegen


dots: Any = intrinsic(prefer_literal=True)(_dots)


def _laid(typingctx, rows, row, later, shelf, place):
    """shelf[place] = rows[row], both contiguous (N, D), past the caches: what is to be read
    only when they have been used for something else need not be fetched to be overwritten.
    Meanwhile memory is told of the rows that are laid ``later``.

    A row must be whole cache lines, and ``shelf`` begin at one.
    """
    element = _ELEMENTS[rows.dtype]

    def codegen(context, builder, signature, args):
        matrix, shelves = (
            context.make_array(kind)(context, builder, value)
            for kind, value in ((rows, args[0]), (shelf, args[3]))
        )
        width = builder.extract_value(matrix.shape, 1)
        line = ir.VectorType(element, _LINE // _bytes(element))
        source, target, *to_come = (
            builder.gep(array.data, [builder.mul(index, width)], source_etype=element)
            for array, index in (
                (matrix, args[1]), (shelves, args[4]),
                *((matrix, index) for index in cgutils.unpack_tuple(builder, args[2])),
            )
        )  # fmt: skip
        past = builder.module.add_metadata([_i32(1)])
        with cgutils.for_range_slice(builder, _i64(0), width, _i64(line.count)) as (column, _):
            for base in to_come:
                _tell(builder, builder.gep(base, [column], source_etype=element))
            coming = builder.gep(source, [column], source_etype=element)
            numbers = builder.load(coming, typ=line, align=_bytes(element))
            there = builder.gep(target, [column], source_etype=element)
            there = builder.bitcast(there, line.as_pointer())
            builder.store(numbers, there, align=_LINE).set_metadata("nontemporal", past)
        return context.get_dummy_value()

    return types.void(rows, types.intp, later, shelf, types.intp), codegen


laid: Any = intrinsic(_laid)


def _told(typingctx, rows, row):
    """Tells memory that rows[row], of contiguous (N, D), will be read or laid, so that where it
    lies is looked up."""

    def codegen(context, builder, signature, args):
        matrix = context.make_array(rows)(context, builder, args[0])
        first = builder.mul(args[1], builder.extract_value(matrix.shape, 1))
        _tell(builder, builder.gep(matrix.data, [first], source_etype=_ELEMENTS[rows.dtype]))
        return context.get_dummy_value()

    return types.void(rows, types.intp), codegen


told: Any = intrinsic(_told)
