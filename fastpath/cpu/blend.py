"""Weighted sums of rows, the second innermost loop (LLVM, CPU).

Attention's sum over the values. A plain loop would check for every row whether it overlaps the
output, and would load and store the sum each time; here the sum stays in registers.
"""

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastpath.cpu.vectors import FLOATS, LANES, call_function, mask_below

_f32, _i32, _i64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


def _blend(typingctx, weights, rows, ids, size, out, start, count):
    """out[start + j] = sum over s < ``size`` of weights[j, s] * rows[ids[s]], for j < ``count``, a
    literal from 1 to 3. ``ids`` is an int64 array (S,), or for equally spaced rows a pair
    (first, step) that stands for first + s * step. The order of the sum is that of s.

    ``weights`` (J, S), ``rows`` (N, D) and ``out`` (M, D) are float32 and contiguous.
    """
    signature = types.void(weights, rows, ids, types.intp, out, types.intp, count)
    spaced = isinstance(ids, types.BaseTuple)
    outputs = range(count.literal_value)

    def codegen(context, builder, signature, args):
        weight_array, row_array, out_array = (
            context.make_array(kind)(context, builder, value)
            for kind, value in ((weights, args[0]), (rows, args[1]), (out, args[4]))
        )
        width = builder.extract_value(row_array.shape, 1)
        weight_stride = builder.extract_value(weight_array.shape, 1)

        def at(base: Any, index: Any) -> Any:
            return builder.gep(base, [index], source_etype=_f32)

        call = partial(call_function, builder)

        if spaced:
            first, step = cgutils.unpack_tuple(builder, args[2])
            begin, stride = at(row_array.data, builder.mul(first, width)), builder.mul(step, width)
        else:
            id_array = context.make_array(ids)(context, builder, args[2])

        def row_address(index: Any) -> Any:
            if spaced:
                return at(begin, builder.mul(index, stride))
            pointer = builder.gep(id_array.data, [index], source_etype=_i64)
            return at(row_array.data, builder.mul(builder.load(pointer, typ=_i64), width))

        def blend_columns(column: Any, vectors: int, mask: Any) -> None:
            """Computes ``vectors`` vectors of each output, from ``column`` on."""

            def load(address: Any) -> Any:
                if mask is None:
                    return builder.load(address, typ=FLOATS, align=4)
                name, zeros = f"llvm.masked.load.v{LANES}f32.p0", ir.Constant(FLOATS, None)
                return call(name, FLOATS, address, _i32(4), mask, zeros)

            columns = [builder.add(column, _i64(i * LANES)) for i in range(vectors)]
            slots = [cgutils.alloca_once(builder, FLOATS) for _ in range(vectors * len(outputs))]
            for slot in slots:
                builder.store(ir.Constant(FLOATS, [0.0] * LANES), slot)
            with cgutils.for_range(builder, args[3]) as loop:
                row = row_address(loop.index)
                loaded = [load(at(row, index)) for index in columns]
                sums = iter(slots)
                for j in outputs:
                    index = builder.add(builder.mul(_i64(j), weight_stride), loop.index)
                    weight = builder.load(at(weight_array.data, index), typ=_f32)
                    broadcast = builder.insert_element(
                        ir.Constant(FLOATS, ir.Undefined), weight, _i32(0)
                    )
                    lane_zero = ir.Constant(ir.VectorType(_i32, LANES), [0] * LANES)
                    broadcast = builder.shuffle_vector(broadcast, broadcast, lane_zero)
                    for vector in loaded:
                        slot = next(sums)
                        old = builder.load(slot, typ=FLOATS)
                        name = f"llvm.fma.v{LANES}f32"
                        builder.store(call(name, FLOATS, broadcast, vector, old), slot)
            sums = iter(slots)
            for j in outputs:
                out_row = at(out_array.data, builder.mul(builder.add(args[5], _i64(j)), width))
                for index in columns:
                    total, address = builder.load(next(sums), typ=FLOATS), at(out_row, index)
                    if mask is None:
                        pointer = builder.bitcast(address, FLOATS.as_pointer())
                        builder.store(total, pointer, align=4)
                    else:
                        name = f"llvm.masked.store.v{LANES}f32.p0"
                        call(name, ir.VoidType(), total, address, _i32(4), mask)

        # As many sums as fit 16 registers beside a row and its weights.
        vectors = 8 if count.literal_value == 1 else 4
        block = _i64(vectors * LANES)
        whole_blocks = builder.mul(builder.sdiv(width, block), block)
        with cgutils.for_range_slice(builder, _i64(0), whole_blocks, block) as (column, _):
            blend_columns(column, vectors, None)
        with cgutils.for_range_slice(builder, whole_blocks, width, _i64(LANES)) as (column, _):
            blend_columns(column, 1, mask_below(builder, builder.sub(width, column), LANES))
        return context.get_dummy_value()

    return signature, codegen


blend: Any = intrinsic(prefer_literal=True)(_blend)
