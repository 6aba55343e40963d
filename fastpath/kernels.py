"""Products of weight rows with a few hidden states, at the speed of memory (Numba, CPU).

A matrix that does not fit the cache costs the time of reading it, whether it is multiplied
with one hidden state or with five; that is what makes a verify pass over gamma + 1 positions
nearly as cheap as a step of plain decoding. For this to come true each row must be read once,
as one long stream, and meet all states while it passes through the registers. Compilers do
not find that by themselves, so the innermost loop is written in vectors here (``dots``).

Rows are float32, bfloat16 (passed as uint16, its bits) or int8 with a scale for each row;
states, sums and results are float32. Knows nothing of models.
"""

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

_WIDE = "avx512f" in llvm.get_host_cpu_features()
LANES = 16 if _WIDE else 8  # numbers in a vector
MOST = 8  # states that meet a row at once: their sums must fit the registers
AHEAD = 4  # rows: memory answers after some hundred cycles, so it is asked that much earlier
_L1 = 20 * 1024  # bytes of states that leave the first cache room for the rows passing by
_BLOCK = 256  # rows whose products are looked at before the next are computed
_PANEL = 32  # rows that meet one part of the states before the next part is taken up

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_f32 = ir.FloatType()
_floats, _masks = ir.VectorType(_f32, LANES), ir.VectorType(_i1, LANES)
_ELEMENTS = {types.float32: _f32, types.uint16: ir.IntType(16), types.int8: ir.IntType(8)}


def _prefetch(builder: Any, place: Any) -> None:
    """Asks memory for a cache line, for reading, to be kept in all caches."""
    kind = ir.FunctionType(ir.VoidType(), [place.type, _i32, _i32, _i32])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(prefetch, [place, _i32(0), _i32(3), _i32(1)])


def _dots(typingctx, rows, row, ahead, states, out, place, begin, end, count):
    """out[j, place] = rows[row] . states[j] for j < ``count``, over the columns from ``begin``
    up to ``end``; added to what is there where ``begin`` is not 0.

    ``rows`` (N, D), ``states`` (>= count, D) and ``out`` (>= count, M) are contiguous, and
    ``count`` is a literal. While it works, row ``ahead`` is asked for; any number will do
    there, since a prefetch of no valid address does nothing.
    """
    # The literal is part of the signature: by it Numba tells one variant from the next.
    index = types.intp
    signature = types.void(rows, index, index, states, out, index, index, index, count)
    states_at_once = range(count.literal_value)
    element = _ELEMENTS[rows.dtype]

    def codegen(context, builder, signature, args):
        matrix, many, sums = (
            context.make_array(kind)(context, builder, value)
            for kind, value in ((rows, args[0]), (states, args[3]), (out, args[4]))
        )
        width = builder.extract_value(matrix.shape, 1)
        stride = builder.extract_value(sums.shape, 1)
        begin, end = args[6], args[7]

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

        this, following = (row_of(matrix.data, index, element) for index in (args[1], args[2]))
        heads = [row_of(many.data, _i64(j), _f32) for j in states_at_once]
        zero = ir.Constant(_floats, [0.0] * LANES)

        def met(column: Any, before: list[Any], mask: Any) -> list[Any]:
            """The sums after one more vector of the row has met every state."""

            def load(base: Any, kind: Any) -> Any:
                place, vectors = at(base, column, kind), ir.VectorType(kind, LANES)
                size = kind.width // 8 if isinstance(kind, ir.IntType) else 4
                if mask is None:
                    return builder.load(place, typ=vectors, align=size)
                name = f"llvm.masked.load.v{LANES}{kind.intrinsic_name}.p0"
                return call(name, vectors, place, _i32(size), mask, ir.Constant(vectors, None))

            passing, fma = widened(load(this, element)), f"llvm.fma.v{LANES}f32"
            return [
                call(fma, _floats, passing, load(head, _f32), sum_)
                for head, sum_ in zip(heads, before, strict=True)
            ]

        # The whole vectors of the row ...
        start = builder.block
        loop, rest, tail, done = map(builder.append_basic_block, ("loop", "rest", "tail", "done"))
        whole = builder.add(begin, builder.and_(builder.sub(end, begin), _i64(-LANES)))
        builder.cbranch(builder.icmp_signed(">", whole, begin), loop, rest)
        builder.position_at_end(loop)
        column = builder.phi(_i64)
        before = [builder.phi(_floats) for _ in states_at_once]
        coming = at(following, column, element)
        _prefetch(builder, coming)
        after = met(column, before, None)
        advanced = builder.add(column, _i64(LANES))
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
        lanes = ir.Constant(ir.VectorType(_i64, LANES), list(range(LANES)))
        limit, left = ir.Constant(lanes.type, ir.Undefined), builder.sub(end, whole)
        for lane in range(LANES):
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
            target = at(sums.data, builder.add(args[5], builder.mul(stride, _i64(j))), _f32)
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


@njit(cache=True)
def ask(rows, row):
    """Asks memory for a whole row that will be read soon."""
    for column in range(0, rows.shape[1], 64 // rows.itemsize):
        asked(rows, row, column)


@njit(cache=True)
def room(rows, width):
    """An uninitialised float32 array (rows, width) that begins at a cache line: a vector of
    states that lies across two lines costs two reads, for each row that it meets."""
    size = rows * width
    numbers = np.empty(size + 16, np.float32)
    first = (-numbers.ctypes.data // 4) % 16
    return numbers[first : first + size].reshape(rows, width)


@njit(cache=True)
def meet(rows, row, ahead, states, out, place, begin, end):
    """out[:, place] = states @ rows[row] over some columns (see ``dots``), any number of
    states."""
    for first in range(0, len(states), MOST):
        few, sums = states[first : first + MOST], out[first : first + MOST]
        count = len(few)
        if count == 1:
            dots(rows, row, ahead, few, sums, place, begin, end, 1)
        elif count == 2:
            dots(rows, row, ahead, few, sums, place, begin, end, 2)
        elif count == 3:
            dots(rows, row, ahead, few, sums, place, begin, end, 3)
        elif count == 4:
            dots(rows, row, ahead, few, sums, place, begin, end, 4)
        elif count == 5:
            dots(rows, row, ahead, few, sums, place, begin, end, 5)
        elif count == 6:
            dots(rows, row, ahead, few, sums, place, begin, end, 6)
        elif count == 7:
            dots(rows, row, ahead, few, sums, place, begin, end, 7)
        else:
            dots(rows, row, ahead, few, sums, place, begin, end, 8)


@njit(cache=True)
def span(rows, scales, states, out, first, last):
    """out[:, first:last] = states @ rows[first:last].T * scales[first:last], on one thread."""
    width = rows.shape[1]
    # States that do not fit the first cache meet the rows in parts: else each row would wait
    # for them anew.
    most = max(LANES, _L1 // (4 * min(len(states), MOST)) // LANES * LANES)
    part = width if width <= most else (width // (-(-width // most)) // LANES + 1) * LANES
    for panel in range(first, last, _PANEL):
        for begin in range(0, width, part):
            for row in range(panel, min(panel + _PANEL, last)):
                meet(rows, row, row + AHEAD, states, out, row, begin, min(begin + part, width))
    for state in range(len(states)):
        for row in range(first, last):
            out[state, row] *= scales[row]


@njit(parallel=True, cache=True)
def largest(rows, scales, states, found, places, threads):
    """The largest of states (T, D) @ (rows (N, D) * scales (N,)).T in each thread's share of the
    rows, ``found`` (threads, T), and the row that it is of, ``places`` (threads, T), ties to the
    first; NaN is larger than all. No more products are kept than the first cache holds."""
    new = len(states)
    for thread in prange(threads):
        first, last = thread * len(rows) // threads, (thread + 1) * len(rows) // threads
        some = room(new, _BLOCK)
        found[thread] = -np.inf
        places[thread] = first
        for begin in range(first, last, _BLOCK):
            count = min(_BLOCK, last - begin)
            span(rows[begin:last], scales[begin:last], states, some, 0, count)
            for t in range(new):
                best, place = found[thread, t], places[thread, t]
                for row in range(count):
                    value = some[t, row]
                    if value > best or (value != value and best == best):
                        best, place = value, begin + row
                found[thread, t], places[thread, t] = best, place


@njit(parallel=True, cache=True)
def product(rows, scales, states, out, threads):
    """rows (N, D), scales (N,), states (T, D) -> out (T, N) = states @ (rows * scales).T."""
    for thread in prange(threads):
        first, last = thread * len(rows) // threads, (thread + 1) * len(rows) // threads
        span(rows, scales, states, out, first, last)
