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

from fastpath.cpu.vectors import FLOATS, LANES, broadcast, call_function, mask_below

_f32, _i32, _i64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


def _blend(typingctx, weights, first_weights, rows, spacing, begin, end, out, start, count):
    """out[start + j] += sum over s from ``begin`` to ``end`` of weights[first_weights + j, s] *
    rows[first + s * step], for j < ``count``, a literal from 1 to 3, and ``spacing`` = (first,
    step). The order of the sum is that of s, wherever it is divided.

    ``weights`` (J, S), ``rows`` (N, D) and ``out`` (M, D) are float32 and contiguous.
    """
    signature = types.void(
        weights, types.intp, rows, spacing, types.intp, types.intp, out, types.intp, count
    )
    outputs = range(count.literal_value)

    def codegen(context, builder, signature, args):
        weight_array, row_array, out_array = (
            context.make_array(kind)(context, builder, value)
            for kind, value in ((weights, args[0]), (rows, args[2]), (out, args[6]))
        )
        width = builder.extract_value(row_array.shape, 1)
        weight_stride = builder.extract_value(weight_array.shape, 1)

        def at(base: Any, index: Any) -> Any:
            return builder.gep(base, [index], source_etype=_f32)

        call = partial(call_function, builder)

        first, step = cgutils.unpack_tuple(builder, args[3])
        origin, stride = at(row_array.data, builder.mul(first, width)), builder.mul(step, width)
        own_weights = [
            at(weight_array.data, builder.mul(builder.add(args[1], _i64(j)), weight_stride))
            for j in outputs
        ]

        def blend_columns(column: Any, vectors: int, mask: Any) -> None:
            """Computes ``vectors`` vectors of each output, from ``column`` on."""

            def load(address: Any) -> Any:
                if mask is None:
                    return builder.load(address, typ=FLOATS, align=4)
                name, zeros = f"llvm.masked.load.v{LANES}f32.p0", ir.Constant(FLOATS, None)
                return call(name, FLOATS, address, _i32(4), mask, zeros)

            def store(total: Any, address: Any) -> None:
                if mask is None:
                    pointer = builder.bitcast(address, FLOATS.as_pointer())
                    builder.store(total, pointer, align=4)
                    return
                name = f"llvm.masked.store.v{LANES}f32.p0"
                call(name, ir.VoidType(), total, address, _i32(4), mask)

            columns = [builder.add(column, _i64(i * LANES)) for i in range(vectors)]
            slots, addresses = [], []
            for j in outputs:
                out_row = at(out_array.data, builder.mul(builder.add(args[7], _i64(j)), width))
                for index in columns:
                    addresses.append(at(out_row, index))
                    slots.append(cgutils.alloca_once(builder, FLOATS))
                    builder.store(load(addresses[-1]), slots[-1])
            with cgutils.for_range_slice(builder, args[4], args[5], _i64(1)) as (index, _):
                row = at(origin, builder.mul(index, stride))
                loaded = [load(at(row, place)) for place in columns]
                sums = iter(slots)
                for weights_of_one in own_weights:
                    weight = builder.load(at(weights_of_one, index), typ=_f32)
                    repeated = broadcast(builder, weight, LANES)
                    for vector in loaded:
                        slot = next(sums)
                        old = builder.load(slot, typ=FLOATS)
                        name = f"llvm.fma.v{LANES}f32"
                        builder.store(call(name, FLOATS, repeated, vector, old), slot)
            for slot, address in zip(slots, addresses, strict=True):
                store(builder.load(slot, typ=FLOATS), address)

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
