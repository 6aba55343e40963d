"""e^x in float32, many numbers at once (Numba, CPU)."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


def _as_float(typingctx, bits):
    """The float32 with the bits of an int32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


as_float: Any = intrinsic(_as_float)


@njit(cache=True)
def exponential(x):
    """e^x in float32 to 3e-7 relative, for x up to 88; below -87 it is 0 to rounding.

    e^x = 2^n e^r with |r| <= log(2) / 2, where the series of e^r ends after r^7 / 7!. The
    library's own exponential takes one number at a time, this one is made into vectors.
    """
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    # log(2) in two parts, the first with few digits, so that n times it is exact.
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    series = np.float32(1 / 5040)
    series = series * r + np.float32(1 / 720)
    series = series * r + np.float32(1 / 120)
    series = series * r + np.float32(1 / 24)
    series = series * r + np.float32(1 / 6)
    series = series * r + np.float32(1 / 2)
    series = series * r + np.float32(1)
    series = series * r + np.float32(1)
    return series * as_float(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))
