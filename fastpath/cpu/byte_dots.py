"""Sums of four products of bytes in each lane of a vector (LLVM, CPU).

One instruction on x86 processors with VNNI, a few where there is AVX2 alone, one on Arm with dot
products, plain multiplications elsewhere. All give the same whole numbers. Knows nothing of what
the bytes stand for.
"""

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from fastpath.cpu.vectors import FEATURES, call_function

_i8, _i16, _i32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)


def choose_instructions(features: list[str]) -> str:
    """The widest of what a processor with these features multiplies bytes with."""
    have = set(features)
    if {"+avx512vnni", "+avx512bw", "+avx512vl"} <= have:
        return "vnni512"
    if "+avxvnni" in have:
        return "vnni256"
    if {"+avx2", "+f16c"} <= have:
        return "avx2"
    return "neon" if "+dotprod" in have else "plain"


INSTRUCTIONS = choose_instructions(FEATURES)
# Sums in a vector, by the instructions.
BYTE_LANES = {"vnni512": 16, "vnni256": 8, "avx2": 8, "neon": 4, "plain": 4}


def repeat(kind: Any, value: int, lanes: int) -> Any:
    """The constant vector of ``lanes`` times a number."""
    return ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)


def add_products(builder: Any, total: Any, codes: Any, numbers: Any, bits: int, how: str) -> Any:
    """Emits total (lanes x i32) + the sums of four products: codes (4 lanes x i8), unsigned with
    ``bits`` bits, times numbers (4 lanes x i8), -127 to 127."""
    lanes = BYTE_LANES[how]
    words = ir.VectorType(_i32, lanes)
    if how in ("vnni512", "vnni256"):
        name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"  # LLVM's name without AVX-512 too
        if llvm.llvm_version_info < (22,):
            codes, numbers = builder.bitcast(codes, words), builder.bitcast(numbers, words)
        return call_function(builder, name, words, total, codes, numbers)
    if how == "avx2":

        def multiply(part: Any) -> Any:
            shorts = ir.VectorType(_i16, 2 * lanes)
            return call_function(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts, part, numbers)

        def widen(pairs: Any) -> Any:
            ones = repeat(_i16, 1, 2 * lanes)
            return call_function(builder, "llvm.x86.avx2.pmadd.wd", words, pairs, ones)

        if bits == 8:  # sums of two products with the highest bit would exceed 16 bits
            low = builder.and_(codes, repeat(_i8, 127, 4 * lanes))
            high = builder.lshr(codes, repeat(_i8, 7, 4 * lanes))
            top = builder.shl(multiply(high), repeat(_i16, 7, 2 * lanes))
            return builder.add(builder.add(total, widen(multiply(low))), widen(top))
        return builder.add(total, widen(multiply(codes)))
    if how == "neon":
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        if bits == 8:  # both are signed: 128 is added back below
            signed = builder.xor(codes, repeat(_i8, 128, 4 * lanes))
            total = call_function(builder, name, words, total, signed, numbers)
            ones = repeat(_i8, 1, 4 * lanes)
            nothing = repeat(_i32, 0, lanes)
            sums = call_function(builder, name, words, nothing, numbers, ones)
            return builder.add(total, builder.shl(sums, repeat(_i32, 7, lanes)))
        return call_function(builder, name, words, total, codes, numbers)
    codes, numbers = builder.bitcast(codes, words), builder.bitcast(numbers, words)
    for shift in (0, 8, 16, 24):
        code = builder.lshr(codes, repeat(_i32, shift, lanes))
        code = builder.and_(code, repeat(_i32, 255, lanes))
        number = builder.shl(numbers, repeat(_i32, 24 - shift, lanes))
        number = builder.ashr(number, repeat(_i32, 24, lanes))
        total = builder.add(total, builder.mul(code, number))
    return total
