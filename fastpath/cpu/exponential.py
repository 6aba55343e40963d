"""e^x in float32, in a form that compilers vectorise (Numba, CPU)."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from fastpath.cpu.process import CACHE


def _bits_to_float32(typingctx, bits):
    """The float32 with the bits of an int32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


bits_to_float32: Any = intrinsic(_bits_to_float32)


@njit(cache=CACHE)
def exponential(x):
    """e^x in float32 with a relative error of at most 3e-7, for x up to 88; x is clamped to
    [-87, 88].

    e^x = 2^n e^r with |r| <= log(2) / 2, and the Taylor series of e^r up to r^7 / 7!. The
    library's exponential takes one number at a time; this loop body is vectorised.
    """
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    # log(2) as a sum of two constants, the first with few digits, so that n times it is exact.
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    series = np.float32(1 / 5040)
    series = series * r + np.float32(1 / 720)
    series = series * r + np.float32(1 / 120)
    series = series * r + np.float32(1 / 24)
    series = series * r + np.float32(1 / 6)
    series = series * r + np.float32(1 / 2)
    series = series * r + np.float32(1)
    series = series * r + np.float32(1)
    return series * bits_to_float32(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))
