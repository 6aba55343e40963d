"""Products of panels of quantised rows with states rounded to int8 blocks (LLVM, CPU).

Sums over the columns of a block are sums of whole numbers, so they are exact. One instruction adds
the products of four codes and four rounded numbers of a state for each row: VNNI's on x86 where the
processor has it, else AVX2's multiply-add of bytes; dot products on Arm; plain multiplications
elsewhere. All give the same bits.

The sums of the blocks are multiplied with the scales and added in float32, block after block,
whatever the number of states: a state's result does not depend on the others.
"""

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastpath.cpu.block_formats import BLOCK, FORMATS, PANEL, Format
from fastpath.cpu.vectors import FEATURES, call_function

_CACHE_LINE = 64  # bytes
_i1, _i8, _i16 = ir.IntType(1), ir.IntType(8), ir.IntType(16)
_i32, _i64, _f32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


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
_LANES = {"vnni512": 16, "vnni256": 8, "avx2": 8, "neon": 4, "plain": 4}


def _vector(kind: Any, count: int) -> Any:
    return ir.VectorType(kind, count)


def _broadcast(builder: Any, value: Any, lanes: int) -> Any:
    kind = _vector(value.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _i32(0))
    zeros = ir.Constant(_vector(_i32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, first, zeros)


def _constant(kind: Any, value: int, lanes: int) -> Any:
    return ir.Constant(_vector(kind, lanes), [value] * lanes)


def add_products(builder: Any, total: Any, codes: Any, numbers: Any, bits: int, how: str) -> Any:
    """Emits total (lanes x i32) + the sums of four products: codes (4 lanes x i8), unsigned with
    ``bits`` bits, times numbers (4 lanes x i8), -127 to 127."""
    lanes = _LANES[how]
    words = _vector(_i32, lanes)
    if how in ("vnni512", "vnni256"):
        level = "avx512" if "+avx512vl" in FEATURES and "+avx512vnni" in FEATURES else "avx"
        name = f"llvm.x86.{'avx512' if how == 'vnni512' else level}.vpdpbusd.{32 * lanes}"
        if llvm.llvm_version_info < (22,):
            codes, numbers = builder.bitcast(codes, words), builder.bitcast(numbers, words)
        return call_function(builder, name, words, total, codes, numbers)
    if how == "avx2":

        def multiply(part: Any) -> Any:
            shorts = _vector(_i16, 2 * lanes)
            return call_function(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts, part, numbers)

        def widen(pairs: Any) -> Any:
            ones = _constant(_i16, 1, 2 * lanes)
            return call_function(builder, "llvm.x86.avx2.pmadd.wd", words, pairs, ones)

        if bits == 8:  # sums of two products with the highest bit would exceed 16 bits
            low = builder.and_(codes, _constant(_i8, 127, 4 * lanes))
            high = builder.lshr(codes, _constant(_i8, 7, 4 * lanes))
            top = builder.shl(multiply(high), _constant(_i16, 7, 2 * lanes))
            return builder.add(builder.add(total, widen(multiply(low))), widen(top))
        return builder.add(total, widen(multiply(codes)))
    if how == "neon":
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        if bits == 8:  # both are signed: 128 is added back below
            signed = builder.xor(codes, _constant(_i8, 128, 4 * lanes))
            total = call_function(builder, name, words, total, signed, numbers)
            ones = _constant(_i8, 1, 4 * lanes)
            nothing = _constant(_i32, 0, lanes)
            sums = call_function(builder, name, words, nothing, numbers, ones)
            return builder.add(total, builder.shl(sums, _constant(_i32, 7, lanes)))
        return call_function(builder, name, words, total, codes, numbers)
    codes, numbers = builder.bitcast(codes, words), builder.bitcast(numbers, words)
    for shift in (0, 8, 16, 24):
        code = builder.lshr(codes, _constant(_i32, shift, lanes))
        code = builder.and_(code, _constant(_i32, 255, lanes))
        number = builder.shl(numbers, _constant(_i32, 24 - shift, lanes))
        number = builder.ashr(number, _constant(_i32, 24, lanes))
        total = builder.add(total, builder.mul(code, number))
    return total


class _PanelEmitter:
    """Emits the products of one panel of a format with some states."""

    def __init__(self, builder: Any, how: str, arguments: dict[str, Any]) -> None:
        self._builder, self._how, self._lanes = builder, how, _LANES[how]
        self._arguments = arguments

    def _at(self, base: Any, index: Any, kind: Any) -> Any:
        return self._builder.gep(base, [index], source_etype=kind)

    def _load(self, base: Any, index: Any, kind: Any, count: int = 0) -> Any:
        """One number, or a vector of ``count`` of them, at an index of its kind."""
        vector = _vector(kind, count) if count else kind
        size = 2 if isinstance(kind, ir.HalfType) else max(1, getattr(kind, "width", 32) // 8)
        return self._builder.load(self._at(base, index, kind), typ=vector, align=size)

    def _store(self, vector: Any, address: Any) -> None:
        pointer = self._builder.bitcast(address, vector.type.as_pointer())
        self._builder.store(vector, pointer, align=4)

    def _half_numbers(self, base: Any, index: Any) -> Any:
        halves = self._load(base, index, ir.HalfType(), self._lanes)
        return self._builder.fpext(halves, _vector(_f32, self._lanes))

    def _integers(self, base: Any, index: Any, signed: bool) -> Any:
        builder, words = self._builder, _vector(_i32, self._lanes)
        small = self._load(base, index, _i8, self._lanes)
        wide = builder.sext(small, words) if signed else builder.zext(small, words)
        return builder.sitofp(wide, _vector(_f32, self._lanes))

    def _unpack(self, format: Format, block: Any, rows: int) -> list[Any]:
        """The codes of 32 columns of the rows from ``rows`` on: eight vectors (4 lanes x i8)."""
        builder, size = self._builder, 4 * self._lanes
        data, high = self._arguments["data"], self._arguments["high"]

        def load(number: int, width: int) -> Any:
            at = builder.add(builder.mul(block, _i64(width)), _i64(number * 64 + rows * 4))
            return self._load(data, at, _i8, size)

        if format.bits == 8:
            return [load(number, 512) for number in range(8)]
        packed = [load(number, 256) for number in range(4)]
        low = [builder.and_(vector, _constant(_i8, 15, size)) for vector in packed]
        codes = low + [builder.lshr(vector, _constant(_i8, 4, size)) for vector in packed]
        for bit in range(format.bits - 4):
            mask_kind = ir.IntType(size)
            bytes_of_block = (format.bits - 4) * 64
            for number, code in enumerate(codes):
                at = builder.add(
                    builder.mul(block, _i64(bytes_of_block)),
                    _i64(bit * 64 + number * 8 + rows // 2),
                )
                address = self._at(high, at, _i8)
                mask = builder.load(address, typ=mask_kind, align=1)
                mask = builder.bitcast(mask, _vector(_i1, size))
                with_bit = builder.or_(code, _constant(_i8, 16 << bit, size))
                codes[number] = builder.select(mask, with_bit, code)
        return codes

    def _scales(self, format: Format, block: Any, rows: int, part: int) -> tuple[Any, Any]:
        """d and m (lanes x f32; m is None without one) of one part of the block."""
        builder, arguments = self._builder, self._arguments
        number = builder.lshr(block, _i64(3)) if format.parts else block
        index = builder.add(builder.mul(number, _i64(PANEL)), _i64(rows))
        scale = self._half_numbers(arguments["scales"], index)
        minimum = self._half_numbers(arguments["minima"], index) if format.minimum else None
        if format.parts:
            parts = BLOCK // format.parts
            place = builder.add(builder.mul(block, _i64(parts)), _i64(part))
            index = builder.add(builder.mul(place, _i64(PANEL)), _i64(rows))
            signed = not format.minimum
            scale = builder.fmul(scale, self._integers(arguments["integers"], index, signed))
            if minimum is not None:
                integers = self._integers(arguments["integer_minima"], index, False)
                minimum = builder.fneg(builder.fmul(minimum, integers))
        return scale, minimum

    def emit(self, format: Format) -> None:
        """All states with all blocks of the panel: out[state, column + row] for its rows."""
        builder, arguments, lanes = self._builder, self._arguments, self._lanes
        parts = BLOCK // (format.parts or BLOCK)
        floats, zeros = _vector(_f32, lanes), ir.Constant(_vector(_f32, lanes), None)
        one, blocks = _i64(1), arguments["blocks"]
        for rows in range(0, PANEL, lanes):

            def out_address(state: Any, rows: int = rows) -> Any:
                row = builder.mul(state, arguments["out_stride"])
                place = builder.add(builder.add(row, arguments["column"]), _i64(rows))
                return self._at(arguments["out"], place, _f32)

            with cgutils.for_range_slice(builder, _i64(0), arguments["count"], one) as (state, _):
                self._store(zeros, out_address(state))
            with cgutils.for_range_slice(builder, _i64(0), blocks, one) as (block, _):
                self._prefetch(format, block)
                codes = self._unpack(format, block, rows)
                scales = [self._scales(format, block, rows, part) for part in range(parts)]
                with cgutils.for_range_slice(builder, _i64(0), arguments["count"], one) as (
                    state,
                    _,
                ):
                    first = builder.add(builder.mul(state, blocks), block)  # of the state's blocks
                    address = out_address(state)
                    total = builder.load(address, typ=floats, align=4)
                    size = self._load(arguments["sizes"], first, _f32)
                    for part, (scale, minimum) in enumerate(scales):
                        products = self._products(format, codes, first, part, parts)
                        products = builder.sitofp(products, floats)
                        own_scale = builder.fmul(scale, _broadcast(builder, size, lanes))
                        total = self._multiply_add(products, own_scale, total)
                        if minimum is not None:
                            weighted = self._load(arguments["weighted"], first, _f32)
                            weighted = _broadcast(builder, weighted, lanes)
                            total = self._multiply_add(minimum, weighted, total)
                    self._store(total, address)

    def _multiply_add(self, left: Any, right: Any, total: Any) -> Any:
        name = f"llvm.fma.v{self._lanes}f32"
        return call_function(self._builder, name, total.type, left, right, total)

    def _products(self, format: Format, codes: list[Any], first: Any, part: int, parts: int) -> Any:
        """The sums of (code - offset) * number over the columns of a part (lanes x i32)."""
        builder, lanes = self._builder, self._lanes
        total = _constant(_i32, 0, lanes)
        if format.offset:
            # Of the whole block, then of its halves: -128 times the sum of the numbers.
            index = builder.add(builder.mul(first, _i64(3)), _i64(part if parts == 1 else part + 1))
            total = _broadcast(builder, self._load(self._arguments["sums"], index, _i32), lanes)
            if format.offset < 128:
                shift = (128 // format.offset).bit_length() - 1
                total = builder.ashr(total, _constant(_i32, shift, lanes))
        groups = len(codes) // parts
        for group in range(part * groups, (part + 1) * groups):
            at = builder.add(builder.mul(first, _i64(8)), _i64(group))
            four = self._load(self._arguments["numbers"], at, _i32)
            numbers = builder.bitcast(_broadcast(builder, four, lanes), _vector(_i8, 4 * lanes))
            total = add_products(builder, total, codes[group], numbers, format.bits, self._how)
        return total

    def _prefetch(self, format: Format, block: Any) -> None:
        """Prefetches as many bytes of the next panel as the block has: every line of it once."""
        builder, arguments = self._builder, self._arguments
        scales = 2 * PANEL * (2 if format.minimum else 1)
        if format.parts:
            scales = scales // 8 + scales // 2 * (BLOCK // format.parts)
        bytes_of_block = PANEL * BLOCK * format.bits // 8 + scales
        start = builder.add(arguments["size"], builder.mul(block, _i64(bytes_of_block)))
        for line in range(0, bytes_of_block, _CACHE_LINE):
            address = self._at(arguments["data"], builder.add(start, _i64(line)), _i8)
            hints = _i32(0), _i32(2), _i32(1)  # for reading, into the second-level cache, data
            call_function(builder, "llvm.prefetch.p0", ir.VoidType(), address, *hints)


def _multiply_panel(typingctx, kind, data, start, parts, blocks, states, first, count, out, column):
    """out[first + t, column + r] = the product of row r of a panel with state first + t, for t <
    ``count``.

    ``kind``: the place of the panel's format in ``FORMATS``; ``start``: where it begins in ``data``
    (bytes,);
    ``parts``: see ``block_formats.panel_parts``; ``blocks``: D / 32; ``states``: see
    ``blocks.round_states``; ``out`` (T, at least column + 16) float32, contiguous.
    """
    signature = types.void(
        kind, data, types.intp, parts, types.intp, states, types.intp, types.intp, out, types.intp
    )

    def codegen(context, builder, signature, args):
        data_array = context.make_array(data)(context, builder, args[1])
        out_array = context.make_array(out)(context, builder, args[8])
        panel = builder.gep(data_array.data, [args[2]], source_etype=_i8)
        high, scales, minima, integers, integer_minima, size = (
            context.cast(builder, value, part, types.intp)
            for value, part in zip(cgutils.unpack_tuple(builder, args[3]), parts, strict=True)
        )
        state_arrays = [
            context.make_array(array)(context, builder, value).data
            for value, array in zip(cgutils.unpack_tuple(builder, args[5]), states, strict=True)
        ]

        def behind(offset: Any) -> Any:
            return builder.gep(panel, [offset], source_etype=_i8)

        blocks = args[4]
        numbers, sizes, sums, weighted = state_arrays
        skipped = builder.mul(args[6], blocks)  # blocks of the states before the first

        def from_first(base: Any, kind: Any, numbers_of_block: int) -> Any:
            index = builder.mul(skipped, _i64(numbers_of_block))
            return builder.gep(base, [index], source_etype=kind)

        stride = builder.extract_value(out_array.shape, 1)
        arguments = {
            "data": panel, "high": behind(high), "scales": behind(scales),
            "minima": behind(minima), "integers": behind(integers),
            "integer_minima": behind(integer_minima), "size": size, "blocks": blocks,
            "numbers": from_first(numbers, _i32, 8), "sizes": from_first(sizes, _f32, 1),
            "sums": from_first(sums, _i32, 3), "weighted": from_first(weighted, _f32, 1),
            "count": args[7], "out_stride": stride, "column": args[9],
            "out": builder.gep(
                out_array.data, [builder.mul(args[6], stride)], source_etype=_f32
            ),
        }  # fmt: skip
        done = builder.append_basic_block("panel_done")
        switch = builder.switch(args[0], done)
        for code, format in enumerate(FORMATS.values()):
            block = builder.append_basic_block(f"format{code}")
            switch.add_case(ir.Constant(args[0].type, code), block)
            builder.position_at_end(block)
            _PanelEmitter(builder, INSTRUCTIONS, arguments).emit(format)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, codegen


multiply_panel: Any = intrinsic(_multiply_panel)
