"""Products of panels of quantised rows with states rounded to int8 blocks (LLVM, CPU).

Sums over the columns of a block are sums of whole numbers, so they are exact on every processor
(``fastpath.cpu.byte_dots``). The sums of the blocks are multiplied with the scales and added in
float32, block after block, whatever the number of states: a state's result does not depend on the
others.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastpath.cpu.block_formats import BLOCK, FORMATS, PANEL, Format
from fastpath.cpu.byte_dots import BYTE_LANES, INSTRUCTIONS, add_products, repeat
from fastpath.cpu.vectors import broadcast, call_function

_CACHE_LINE = 64  # bytes
_i1, _i8 = ir.IntType(1), ir.IntType(8)
_i32, _i64, _f32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


def _vector(kind: Any, count: int) -> Any:
    return ir.VectorType(kind, count)


class _PanelEmitter:
    """Emits the products of one panel of a format with some states."""

    def __init__(self, builder: Any, how: str, arguments: dict[str, Any]) -> None:
        self._builder, self._how, self._lanes = builder, how, BYTE_LANES[how]
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

    def _unpack(self, layout: Format, block: Any, rows: int) -> list[Any]:
        """The codes of 32 columns of the rows from ``rows`` on: eight vectors (4 lanes x i8)."""
        builder, size = self._builder, 4 * self._lanes
        data, high = self._arguments["data"], self._arguments["high"]

        def load(number: int, width: int) -> Any:
            at = builder.add(builder.mul(block, _i64(width)), _i64(number * 64 + rows * 4))
            return self._load(data, at, _i8, size)

        if layout.bits == 8:
            return [load(number, 512) for number in range(8)]
        packed = [load(number, 256) for number in range(4)]
        low = [builder.and_(vector, repeat(_i8, 15, size)) for vector in packed]
        codes = low + [builder.lshr(vector, repeat(_i8, 4, size)) for vector in packed]
        for bit in range(layout.bits - 4):
            mask_kind = ir.IntType(size)
            bytes_of_block = (layout.bits - 4) * 64
            for number, code in enumerate(codes):
                at = builder.add(
                    builder.mul(block, _i64(bytes_of_block)),
                    _i64(bit * 64 + number * 8 + rows // 2),
                )
                address = self._at(high, at, _i8)
                mask = builder.load(address, typ=mask_kind, align=1)
                mask = builder.bitcast(mask, _vector(_i1, size))
                with_bit = builder.or_(code, repeat(_i8, 16 << bit, size))
                codes[number] = builder.select(mask, with_bit, code)
        return codes

    def _scales(self, layout: Format, block: Any, rows: int, part: int) -> tuple[Any, Any]:
        """d and m (lanes x f32; m is None without one) of one part of the block."""
        builder, arguments = self._builder, self._arguments
        number = builder.lshr(block, _i64(3)) if layout.parts else block
        index = builder.add(builder.mul(number, _i64(PANEL)), _i64(rows))
        scale = self._half_numbers(arguments["scales"], index)
        minimum = self._half_numbers(arguments["minima"], index) if layout.minimum else None
        if layout.parts:
            parts = BLOCK // layout.parts
            place = builder.add(builder.mul(block, _i64(parts)), _i64(part))
            index = builder.add(builder.mul(place, _i64(PANEL)), _i64(rows))
            signed = not layout.minimum
            scale = builder.fmul(scale, self._integers(arguments["integers"], index, signed))
            if minimum is not None:
                integers = self._integers(arguments["integer_minima"], index, False)
                minimum = builder.fneg(builder.fmul(minimum, integers))
        return scale, minimum

    def emit(self, layout: Format) -> None:
        """All states with all blocks of the panel: out[state, column + row] for its rows."""
        zeros = ir.Constant(_vector(_f32, self._lanes), None)
        for rows in range(0, PANEL, self._lanes):
            with self._loop(self._arguments["count"]) as state:
                self._store(zeros, self._out_address(state, rows))
            with self._loop(self._arguments["blocks"]) as block:
                self._prefetch(layout, block)
                self._add_block(layout, block, rows)

    @contextmanager
    def _loop(self, count: Any) -> Iterator[Any]:
        """Emits a loop over 0 to ``count``."""
        with cgutils.for_range_slice(self._builder, _i64(0), count, _i64(1)) as (index, _):
            yield index

    def _out_address(self, state: Any, rows: int) -> Any:
        builder, arguments = self._builder, self._arguments
        row = builder.mul(state, arguments["out_stride"])
        place = builder.add(builder.add(row, arguments["column"]), _i64(rows))
        return self._at(arguments["out"], place, _f32)

    def _add_block(self, layout: Format, block: Any, rows: int) -> None:
        """Adds the products of a block to the sums of all states. They stay in memory, in the
        first-level cache: so there may be any number of them, and the codes stay in registers."""
        builder, arguments, lanes = self._builder, self._arguments, self._lanes
        floats, parts = _vector(_f32, lanes), BLOCK // (layout.parts or BLOCK)
        codes = self._unpack(layout, block, rows)
        scales = [self._scales(layout, block, rows, part) for part in range(parts)]
        with self._loop(arguments["count"]) as state:
            first = builder.add(builder.mul(state, arguments["blocks"]), block)
            address = self._out_address(state, rows)
            total = builder.load(address, typ=floats, align=4)
            size = broadcast(builder, self._load(arguments["sizes"], first, _f32), lanes)
            for part, (scale, minimum) in enumerate(scales):
                products = self._products(layout, codes, first, part, parts)
                own_scale = builder.fmul(scale, size)
                total = self._multiply_add(builder.sitofp(products, floats), own_scale, total)
                if minimum is not None:
                    weighted = self._load(arguments["weighted"], first, _f32)
                    total = self._multiply_add(minimum, broadcast(builder, weighted, lanes), total)
            self._store(total, address)

    def _multiply_add(self, left: Any, right: Any, total: Any) -> Any:
        name = f"llvm.fma.v{self._lanes}f32"
        return call_function(self._builder, name, total.type, left, right, total)

    def _products(self, layout: Format, codes: list[Any], first: Any, part: int, parts: int) -> Any:
        """The sums of (code - offset) * number over the columns of a part (lanes x i32)."""
        builder, lanes = self._builder, self._lanes
        total = repeat(_i32, 0, lanes)
        if layout.offset:
            # Of the whole block, then of its halves: -128 times the sum of the numbers.
            index = builder.add(builder.mul(first, _i64(3)), _i64(part if parts == 1 else part + 1))
            total = broadcast(builder, self._load(self._arguments["sums"], index, _i32), lanes)
            if layout.offset < 128:
                shift = (128 // layout.offset).bit_length() - 1
                total = builder.ashr(total, repeat(_i32, shift, lanes))
        groups = len(codes) // parts
        for group in range(part * groups, (part + 1) * groups):
            at = builder.add(builder.mul(first, _i64(8)), _i64(group))
            four = self._load(self._arguments["numbers"], at, _i32)
            numbers = builder.bitcast(broadcast(builder, four, lanes), _vector(_i8, 4 * lanes))
            total = add_products(builder, total, codes[group], numbers, layout.bits, self._how)
        return total

    def _prefetch(self, layout: Format, block: Any) -> None:
        """Prefetches as many bytes of the next panel as the block has: every line of it once."""
        builder, arguments = self._builder, self._arguments
        scales = 2 * PANEL * (2 if layout.minimum else 1)
        if layout.parts:
            scales = scales // 8 + scales // 2 * (BLOCK // layout.parts)
        bytes_of_block = PANEL * BLOCK * layout.bits // 8 + scales
        start = builder.add(arguments["size"], builder.mul(block, _i64(bytes_of_block)))
        for line in range(0, bytes_of_block, _CACHE_LINE):
            address = self._at(arguments["data"], builder.add(start, _i64(line)), _i8)
            hints = _i32(0), _i32(2), _i32(1)  # for reading, into the second-level cache, data
            call_function(builder, "llvm.prefetch.p0", ir.VoidType(), address, *hints)


def _multiply_panel(typingctx, kind, data, start, parts, blocks, states, first, count, out, column):
    """out[first + t, column + r] = the product of row r of a panel with state first + t, for t <
    ``count``.

    ``kind``: the place of the panel's format in ``FORMATS``; ``start``: where it begins in ``data``
    (bytes,); ``parts``: see ``block_formats.panel_parts``; ``blocks``: D / 32; ``states``: see
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

        def part_at(offset: Any) -> Any:
            return builder.gep(panel, [offset], source_etype=_i8)

        blocks = args[4]
        numbers, sizes, sums, weighted = state_arrays
        skipped = builder.mul(args[6], blocks)  # blocks of the states before the first

        def from_first(base: Any, kind: Any, numbers_of_block: int) -> Any:
            index = builder.mul(skipped, _i64(numbers_of_block))
            return builder.gep(base, [index], source_etype=kind)

        stride = builder.extract_value(out_array.shape, 1)
        arguments = {
            "data": panel, "high": part_at(high), "scales": part_at(scales),
            "minima": part_at(minima), "integers": part_at(integers),
            "integer_minima": part_at(integer_minima), "size": size, "blocks": blocks,
            "numbers": from_first(numbers, _i32, 8), "sizes": from_first(sizes, _f32, 1),
            "sums": from_first(sums, _i32, 3), "weighted": from_first(weighted, _f32, 1),
            "count": args[7], "out_stride": stride, "column": args[9],
            "out": builder.gep(
                out_array.data, [builder.mul(args[6], stride)], source_etype=_f32
            ),
        }  # fmt: skip
        done = builder.append_basic_block("panel_done")
        switch = builder.switch(args[0], done)
        for code, layout in enumerate(FORMATS.values()):
            block = builder.append_basic_block(f"format{code}")
            switch.add_case(ir.Constant(args[0].type, code), block)
            builder.position_at_end(block)
            _PanelEmitter(builder, INSTRUCTIONS, arguments).emit(layout)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, codegen


multiply_panel: Any = intrinsic(_multiply_panel)
