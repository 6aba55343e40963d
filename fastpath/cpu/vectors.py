"""Vectors in LLVM: how many lanes they have here, masks, and sums over lanes (CPU).

Half-precision numbers too. Knows nothing of rows and products.
"""

import itertools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

# The CPU features that Numba compiles for: NUMBA_CPU_FEATURES, or all that the processor has.
FEATURES = (config.CPU_FEATURES or get_host_cpu_features()).split(",")
LANES = 16 if "+avx512f" in FEATURES else 8  # float32 numbers in a vector

_i32, _i64 = ir.IntType(32), ir.IntType(64)
FLOATS = ir.VectorType(ir.FloatType(), LANES)


def call_function(builder: Any, name: str, result: Any, *values: Any, **flags: Any) -> Any:
    """Emits a call of the LLVM function ``name``, which returns the LLVM type ``result``."""
    kind = ir.FunctionType(result, [value.type for value in values])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, values, **flags)


def _half_to_float(typingctx, bits):
    """The bits of a half-precision number, uint16 -> float32."""

    def codegen(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


half_to_float: Any = intrinsic(_half_to_float)


def broadcast(builder: Any, value: Any, count: int) -> Any:
    """A vector with ``count`` times a number."""
    kind = ir.VectorType(value.type, count)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _i32(0))
    zeros = ir.Constant(ir.VectorType(_i32, count), [0] * count)
    return builder.shuffle_vector(first, first, zeros)


def mask_below(builder: Any, limit: Any, count: int) -> Any:
    """The mask of ``count`` lanes that is true where the lane's index is below ``limit``."""
    lanes = ir.Constant(ir.VectorType(_i64, count), list(range(count)))
    limits = ir.Constant(lanes.type, ir.Undefined)
    for lane in range(count):
        limits = builder.insert_element(limits, limit, _i32(lane))
    return builder.icmp_signed("<", lanes, limits)


def sum_lanes(builder: Any, vectors: list[Any]) -> list[Any]:
    """Emits the sums of the lanes of each float32 vector. A step adds the upper half of the lanes
    to the lower half, for two vectors at once, and leaves both in one: a third of the instructions
    that take each vector alone. The order of additions does not depend on the other vectors."""
    # Vectors with the numbers of the sums in them, each in ``width`` adjacent lanes.
    packed, width = [(vector, [number]) for number, vector in enumerate(vectors)], LANES
    while width > 1:
        # Below 128 bits, instructions move lanes only within these.
        block, following = (LANES if width > 4 else 4), []
        for first, second in itertools.zip_longest(packed[::2], packed[1::2]):
            pair = (first, 0), (second or first, LANES)
            starts, numbers = list[int](), list[int]()
            for lane in range(0, LANES, block):
                for (_, own), offset in pair:
                    starts += [offset + start for start in range(lane, lane + block, width)]
                    numbers += own[lane // width : (lane + block) // width]
            halves = []
            for half in (range(width // 2), range(width // 2, width)):
                lanes = [start + i for start in starts for i in half]
                mask = ir.Constant(ir.VectorType(_i32, LANES), lanes)
                halves.append(builder.shuffle_vector(first[0], pair[1][0][0], mask))
            following.append((builder.fadd(*halves), numbers))
        packed, width = following, width // 2
    places = {
        number: (vector, lane) for vector, numbers in packed for lane, number in enumerate(numbers)
    }
    return [
        builder.extract_element(vector, _i32(lane))
        for vector, lane in map(places.__getitem__, range(len(vectors)))
    ]
