"""The other innermost loop: a few weighted sums of rows that lie a step apart (LLVM, CPU).

What attention makes of the values. In plain loops each row would ask, before it is added, whether
it overlaps with the sum, and the sum would come from memory and go back for every row; here it
stays in the registers.
"""

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastpath.cpu.dots import LANES, below, called

_f32, _i32, _i64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_floats = ir.VectorType(_f32, LANES)


def _blend(typingctx, weights, rows, first, step, size, out, to, count):
    """out[to + j] = the sum over s < ``size`` of weights[j, s] * rows[first + s * step], for
    ``count`` sums, a literal of 1 to 3.

    ``weights`` (J, S), ``rows`` (N, D) and ``out`` (M, D) are float32 and contiguous.
    """
    signature = types.void(
        weights, rows, types.intp, types.intp, types.intp, out, types.intp, count
    )
    sums_at_once = range(count.literal_value)

    def codegen(context, builder, signature, args):
        many, matrix, target = (
            context.make_array(kind)(context, builder, value)
            for kind, value in ((weights, args[0]), (rows, args[1]), (out, args[5]))
        )
        width = builder.extract_value(matrix.shape, 1)
        places = builder.extract_value(many.shape, 1)

        def at(base: Any, index: Any) -> Any:
            return builder.gep(base, [index], source_etype=_f32)

        call = partial(called, builder)

        begin = at(matrix.data, builder.mul(args[2], width))
        stride = builder.mul(args[3], width)

        def blended(column: Any, vectors: int, mask: Any) -> None:
            """Makes ``vectors`` vectors of each sum, from a column on."""

            def load(place: Any) -> Any:
                if mask is None:
                    return builder.load(place, typ=_floats, align=4)
                name, nothing = f"llvm.masked.load.v{LANES}f32.p0", ir.Constant(_floats, None)
                return call(name, _floats, place, _i32(4), mask, nothing)

            here = [builder.add(column, _i64(i * LANES)) for i in range(vectors)]
            kept = [
                cgutils.alloca_once(builder, _floats) for _ in range(vectors * len(sums_at_once))
            ]
            for place in kept:
                builder.store(ir.Constant(_floats, [0.0] * LANES), place)
            with cgutils.for_range(builder, args[4]) as loop:
                row = at(begin, builder.mul(loop.index, stride))
                numbers = [load(at(row, place)) for place in here]
                sums = iter(kept)
                for j in sums_at_once:
                    index = builder.add(builder.mul(_i64(j), places), loop.index)
                    weight = builder.load(at(many.data, index), typ=_f32)
                    whole = builder.insert_element(
                        ir.Constant(_floats, ir.Undefined), weight, _i32(0)
                    )
                    zeros = ir.Constant(ir.VectorType(_i32, LANES), [0] * LANES)
                    whole = builder.shuffle_vector(whole, whole, zeros)
                    for number in numbers:
                        place = next(sums)
                        old = builder.load(place, typ=_floats)
                        name = f"llvm.fma.v{LANES}f32"
                        builder.store(call(name, _floats, whole, number, old), place)
            sums = iter(kept)
            for j in sums_at_once:
                line = at(target.data, builder.mul(builder.add(args[6], _i64(j)), width))
                for place in here:
                    total, there = builder.load(next(sums), typ=_floats), at(line, place)
                    if mask is None:
                        builder.store(total, builder.bitcast(there, _floats.as_pointer()), align=4)
                    else:
                        name = f"llvm.masked.store.v{LANES}f32.p0"
                        call(name, ir.VoidType(), total, there, _i32(4), mask)

        # As many as the registers hold, 16 with a row and its weights.
        vectors = 8 if count.literal_value == 1 else 4
        block = _i64(vectors * LANES)
        whole = builder.mul(builder.sdiv(width, block), block)
        with cgutils.for_range_slice(builder, _i64(0), whole, block) as (column, _):
            blended(column, vectors, None)
        with cgutils.for_range_slice(builder, whole, width, _i64(LANES)) as (column, _):
            blended(column, 1, below(builder, builder.sub(width, column), LANES))
        return context.get_dummy_value()

    return signature, codegen


blend: Any = intrinsic(prefer_literal=True)(_blend)
