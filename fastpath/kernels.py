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
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

_WIDE = "avx512f" in llvm.get_host_cpu_features()
LANES = 16 if _WIDE else 8  # numbers in a vector
MOST = 8  # states that meet a row at once: their sums must fit the registers
AHEAD = 4  # rows: memory answers after some hundred cycles, so it is asked that much earlier
_L1 = 16 * 1024  # bytes of states above which a pass over them should serve two rows

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_f32 = ir.FloatType()
_floats, _masks = ir.VectorType(_f32, LANES), ir.VectorType(_i1, LANES)
_ELEMENTS = {types.float32: _f32, types.uint16: ir.IntType(16), types.int8: ir.IntType(8)}


def _dots(typingctx, rows, row, ahead, states, out, column, block, count):
    """out[j, column + b] = rows[row + b] . states[j] for b < ``block`` and j < ``count``.

    ``rows`` (N, D), ``states`` (>= count, D) and ``out`` (>= count, M) are contiguous;
    ``block`` and ``count`` are literals. While it works, row ``ahead`` and the next ones are
    asked for; any number will do there, since a prefetch of no valid address does nothing.
    """
    # The literals are part of the signature: by it Numba tells one variant from the next.
    signature = types.void(rows, types.intp, types.intp, states, out, types.intp, block, count)
    blocks, counts = block.literal_value, count.literal_value
    element = _ELEMENTS[rows.dtype]

    def codegen(context, builder, signature, args):
        matrix, many, sums = (
            context.make_array(kind)(context, builder, value)
            for kind, value in ((rows, args[0]), (states, args[3]), (out, args[4]))
        )
        width = builder.extract_value(matrix.shape, 1)
        stride = builder.extract_value(sums.shape, 1)

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

        firsts, nexts = (
            [row_of(matrix.data, builder.add(start, _i64(b)), element) for b in range(blocks)]
            for start in (args[1], args[2])
        )
        heads = [row_of(many.data, _i64(j), _f32) for j in range(counts)]
        pairs = [(j, b) for j in range(counts) for b in range(blocks)]
        zero = ir.Constant(_floats, [0.0] * LANES)

        def met(column: Any, before: dict[Any, Any], mask: Any) -> dict[Any, Any]:
            """The sums after one more vector of every row has met every state."""

            def load(base: Any, kind: Any) -> Any:
                place, vectors = at(base, column, kind), ir.VectorType(kind, LANES)
                size = kind.width // 8 if isinstance(kind, ir.IntType) else 4
                if mask is None:
                    return builder.load(place, typ=vectors, align=size)
                name = f"llvm.masked.load.v{LANES}{kind.intrinsic_name}.p0"
                return call(name, vectors, place, _i32(size), mask, ir.Constant(vectors, None))

            passing = [widened(load(first, element)) for first in firsts]
            after = {}
            for j in range(counts):
                state = load(heads[j], _f32)
                for b in range(blocks):
                    after[j, b] = call(
                        f"llvm.fma.v{LANES}f32", _floats, passing[b], state, before[j, b]
                    )
            return after

        # The whole vectors of the row ...
        start = builder.block
        loop = builder.append_basic_block("dots.loop")
        rest = builder.append_basic_block("dots.rest")
        tail = builder.append_basic_block("dots.tail")
        done = builder.append_basic_block("dots.done")
        whole = builder.and_(width, _i64(-LANES))
        builder.cbranch(builder.icmp_signed(">", whole, _i64(0)), loop, rest)
        builder.position_at_end(loop)
        column = builder.phi(_i64)
        column.add_incoming(_i64(0), start)
        before = {}
        for pair in pairs:
            before[pair] = builder.phi(_floats)
            before[pair].add_incoming(zero, start)
        for b in range(blocks):  # read, to be kept in all caches
            place = at(nexts[b], column, element)
            call("llvm.prefetch.p0", ir.VoidType(), place, _i32(0), _i32(3), _i32(1))
        after = met(column, before, None)
        following = builder.add(column, _i64(LANES))
        column.add_incoming(following, loop)
        for pair in pairs:
            before[pair].add_incoming(after[pair], loop)
        builder.cbranch(builder.icmp_signed("<", following, whole), loop, rest)

        # ... and, masked, what is left of it.
        builder.position_at_end(rest)
        so_far = {}
        for pair in pairs:
            so_far[pair] = builder.phi(_floats)
            so_far[pair].add_incoming(zero, start)
            so_far[pair].add_incoming(after[pair], loop)
        builder.cbranch(builder.icmp_signed("<", whole, width), tail, done)
        builder.position_at_end(tail)
        lanes = ir.Constant(ir.VectorType(_i64, LANES), list(range(LANES)))
        left = builder.sub(width, whole)
        limit = ir.Constant(ir.VectorType(_i64, LANES), ir.Undefined)
        for lane in range(LANES):
            limit = builder.insert_element(limit, left, _i32(lane))
        ended = met(whole, so_far, builder.icmp_signed("<", lanes, limit))
        builder.branch(done)

        builder.position_at_end(done)
        total = {}
        for pair in pairs:
            total[pair] = builder.phi(_floats)
            total[pair].add_incoming(so_far[pair], rest)
            total[pair].add_incoming(ended[pair], tail)
        for j, b in pairs:
            name = f"llvm.vector.reduce.fadd.v{LANES}f32"
            # In any order: a sum from left to right would take as long as the row itself.
            sum_ = call(name, _f32, _f32(0.0), total[j, b], fastmath=("reassoc",))
            place = builder.add(args[5], builder.add(builder.mul(stride, _i64(j)), _i64(b)))
            builder.store(sum_, at(sums.data, place, _f32))
        return context.get_dummy_value()

    return signature, codegen


dots: Any = intrinsic(prefer_literal=True)(_dots)


@njit(cache=True)
def meet(rows, row, ahead, states, out, column):
    """out[:, column] = states @ rows[row], any number of states."""
    for first in range(0, len(states), MOST):
        few, sums = states[first : first + MOST], out[first : first + MOST]
        count = len(few)
        if count == 1:
            dots(rows, row, ahead, few, sums, column, 1, 1)
        elif count == 2:
            dots(rows, row, ahead, few, sums, column, 1, 2)
        elif count == 3:
            dots(rows, row, ahead, few, sums, column, 1, 3)
        elif count == 4:
            dots(rows, row, ahead, few, sums, column, 1, 4)
        elif count == 5:
            dots(rows, row, ahead, few, sums, column, 1, 5)
        elif count == 6:
            dots(rows, row, ahead, few, sums, column, 1, 6)
        elif count == 7:
            dots(rows, row, ahead, few, sums, column, 1, 7)
        else:
            dots(rows, row, ahead, few, sums, column, 1, 8)


@njit(cache=True)
def meet_two(rows, row, states, out):
    """out[:, row : row + 2] = states @ rows[row : row + 2].T, for states too large for the
    first cache: each is then read once for two rows."""
    ahead = row + AHEAD
    for first in range(0, len(states), MOST):
        few, sums = states[first : first + MOST], out[first : first + MOST]
        count = len(few)
        if count == 1:
            dots(rows, row, ahead, few, sums, row, 2, 1)
        elif count == 2:
            dots(rows, row, ahead, few, sums, row, 2, 2)
        elif count == 3:
            dots(rows, row, ahead, few, sums, row, 2, 3)
        elif count == 4:
            dots(rows, row, ahead, few, sums, row, 2, 4)
        elif count == 5:
            dots(rows, row, ahead, few, sums, row, 2, 5)
        elif count == 6:
            dots(rows, row, ahead, few, sums, row, 2, 6)
        elif count == 7:
            dots(rows, row, ahead, few, sums, row, 2, 7)
        else:
            dots(rows, row, ahead, few, sums, row, 2, 8)


@njit(cache=True)
def span(rows, scales, states, out, first, last):
    """out[:, first:last] = states @ rows[first:last].T * scales[first:last], on one thread."""
    row = first
    if min(len(states), MOST) * states.shape[1] * 4 > _L1:
        while row + 2 <= last:
            meet_two(rows, row, states, out)
            row += 2
    while row < last:
        meet(rows, row, row + AHEAD, states, out, row)
        row += 1
    for state in range(len(states)):
        for row in range(first, last):
            out[state, row] *= scales[row]


@njit(parallel=True, cache=True)
def product(rows, scales, states, out, threads):
    """rows (N, D), scales (N,), states (T, D) -> out (T, N) = states @ (rows * scales).T."""
    for thread in prange(threads):
        first, last = thread * len(rows) // threads, (thread + 1) * len(rows) // threads
        span(rows, scales, states, out, first, last)
