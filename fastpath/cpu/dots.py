"""Dot products of weight rows with hidden states, the innermost loop (LLVM, CPU).

Each weight row is read from memory once, as one sequential stream, and multiplied with up to
fourteen states while it is in the registers. Compilers do not find this loop by themselves, so it
is written here in vector instructions.

bfloat16 rows are multiplied with bfloat16 states, as in the reference. With ``BF16_PAIRS`` one
instruction multiplies pairs and adds both products to a float32 sum. All other rows, including
bfloat16 copies of float32 rows that bfloat16 represents exactly, are multiplied with float32
states without any rounding.
"""

import itertools
from functools import partial
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastpath.cpu.vectors import FEATURES, FLOATS, LANES, call_function, mask_below, sum_lanes

MAX_STATES = 14  # states multiplied with a row at once: their sums must fit the registers
_REGISTERS = 2 * LANES  # vector registers
# NUM_STREAMS[T]: how many rows are read in parallel for T states. At most four, and no more than
# the registers hold together with their sums and one vector of a state; from nine states on two,
# because three leave no register free.
NUM_STREAMS = (
    0,
    *(
        min(4 if count < 9 else 2, (_REGISTERS - 1) // (count + 1))
        for count in range(1, MAX_STATES + 1)
    ),
)
_UNROLL = 32  # numbers of a row in one loop iteration
_CACHE_LINE = 64  # bytes
_PREFETCH_DISTANCE = 1024  # bytes ahead in the same row, where a vector is a whole cache line
_PREFETCH_ONCE = 7  # states from which the reads of the states leave no time to repeat a prefetch
# Whether products of bfloat16 pairs are one instruction of AVX512-BF16. Older versions of LLVM
# expect operands of another type; processors with AMX run it at half the speed of two products in
# float32.
BF16_PAIRS = (
    "+avx512bf16" in FEATURES and "+amx-bf16" not in FEATURES and llvm.llvm_version_info >= (20,)
)


class _BFloat16Type(ir.HalfType):  # type: ignore[misc]
    """LLVM's bfloat16 type, which llvmlite lacks."""

    def __str__(self) -> str:
        return "bfloat"


_BFloat16Type._create_instance()

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_f32 = ir.FloatType()
_pairs = ir.VectorType(_BFloat16Type(), 2 * LANES)
_i16 = ir.IntType(16)
_ELEMENTS = {types.float32: _f32, types.uint16: _i16, types.int16: _i16, types.int8: ir.IntType(8)}


def _item_size(kind: Any) -> int:
    """Bytes of one number of an LLVM type."""
    return kind.width // 8 if isinstance(kind, ir.IntType) else 4


def _prefetch_line(builder: Any, address: Any) -> None:
    """Prefetches a cache line for reading into the second-level cache: prefetches into the first
    compete with ordinary loads for its fill buffers."""
    address = builder.bitcast(address, ir.IntType(8).as_pointer())
    call_function(builder, "llvm.prefetch.p0", ir.VoidType(), address, _i32(0), _i32(2), _i32(1))


def _dots(typingctx, rows, row_ids, prefetch_ids, prefetch, states, first, out, columns, count):
    """out[j, columns[i]] = rows[row_ids[i]] . states[j], for ``count`` states from j = ``first``.

    ``row_ids`` and ``columns`` have four entries, of which the first ``NUM_STREAMS[count]`` are
    used. With ``prefetch``, the rows ``prefetch_ids`` (also in groups of four, with many states the
    last group alone) are prefetched meanwhile; without it, later parts of the current rows are,
    where a vector is a cache line.

    ``rows`` (N, D), ``states`` (T, D) and ``out`` (T, M) are contiguous, and ``count`` is a
    literal. The arrays are passed whole: a slice would be reference-counted for every row, with
    atomic operations that later loads have to wait for.

    States are float32 or, for bfloat16 rows with ``BF16_PAIRS``, bfloat16. In that case
    subnormal inputs and sums (below 2^-126) count as 0.
    """
    # The literal is part of the signature, by which Numba distinguishes the variants.
    signature = types.void(
        rows, row_ids, prefetch_ids, types.boolean, states, types.intp, out, columns, count
    )
    state_range = range(count.literal_value)
    element, state_element = _ELEMENTS[rows.dtype], _ELEMENTS[states.dtype]
    paired = state_element is not _f32
    step, size = 2 * LANES if paired else LANES, _item_size(element)

    def codegen(context, builder, signature, args):
        row_array, state_array, out_array = (
            context.make_array(kind)(context, builder, value)
            for kind, value in ((rows, args[0]), (states, args[4]), (out, args[6]))
        )
        width = builder.extract_value(row_array.shape, 1)
        stride = builder.extract_value(out_array.shape, 1)
        streams = NUM_STREAMS[count.literal_value]
        ids, ids_ahead, targets = (cgutils.unpack_tuple(builder, args[i]) for i in (1, 2, 7))
        ids, targets = ids[:streams], targets[:streams]

        call = partial(call_function, builder)

        def at(base: Any, index: Any, kind: Any) -> Any:
            return builder.gep(base, [index], source_etype=kind)

        def row_address(base: Any, index: Any, kind: Any) -> Any:
            return at(base, builder.mul(index, width), kind)

        def to_float32(vector: Any) -> Any:
            if element is _f32:
                return vector
            words = ir.VectorType(_i32, LANES)
            if element.width == 16:  # bfloat16 is the upper half of a float32
                half = ir.Constant(words, [16] * LANES)
                return builder.bitcast(builder.shl(builder.zext(vector, words), half), FLOATS)
            return builder.sitofp(builder.sext(vector, words), FLOATS)

        def as_pairs(vector: Any) -> Any:
            return builder.bitcast(vector, _pairs)

        current_rows = [row_address(row_array.data, index, element) for index in ids]
        state_ids = [builder.add(args[5], _i64(j)) for j in state_range]
        current_states = [
            row_address(state_array.data, state, state_element) for state in state_ids
        ]

        def multiply_vector(column: Any, before: list[Any], mask: Any) -> list[Any]:
            """Adds the products of one vector of each row with that of every state to the sums."""

            def load(base: Any, kind: Any) -> Any:
                address, vectors = at(base, column, kind), ir.VectorType(kind, step)
                if mask is None:
                    return builder.load(address, typ=vectors, align=_item_size(kind))
                name = f"llvm.masked.load.v{step}{kind.intrinsic_name}.p0"
                zeros = ir.Constant(vectors, None)
                return call(name, vectors, address, _i32(_item_size(kind)), mask, zeros)

            def multiply_add(total: Any, row: Any, state: Any) -> Any:
                if paired:
                    name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * LANES}"
                    return call(name, FLOATS, total, as_pairs(row), as_pairs(state))
                return call(f"llvm.fma.v{LANES}f32", FLOATS, row, state, total)

            vectors = [load(row, element) for row in current_rows]
            if not paired:
                vectors = [to_float32(row) for row in vectors]
            sums, after = iter(before), []
            for address in current_states:  # one state at a time: registers are few
                state = load(address, state_element)
                after += [multiply_add(next(sums), row, state) for row in vectors]
            return after

        repeats = 1 if count.literal_value >= _PREFETCH_ONCE else len(ids_ahead) // 4
        rows_ahead = [
            row_address(row_array.data, index, element)
            for four in range(len(ids_ahead) - 4 * repeats, len(ids_ahead), 4)
            for index in ids_ahead[four : four + streams]
        ]

        def prefetch_rows(bases: list[Any], column: Any) -> None:
            """Prefetches from each row as many numbers as one loop iteration multiplies."""
            for base, line in itertools.product(bases, range(0, _UNROLL, _CACHE_LINE // size)):
                _prefetch_line(builder, at(base, builder.add(column, _i64(line)), element))

        def emit_loop(
            name: str, first: Any, before: list[Any], count: int, masked: bool
        ) -> tuple[Any, list[Any]]:
            """Emits a loop over the columns from ``first`` on, ``count`` vectors an iteration:
            over the whole iterations, or if ``masked`` over the rest. Returns the column and the
            sums after it."""
            entry, advance = builder.block, _i64(count * step)
            loop, done = (builder.append_basic_block(name + n) for n in ("", "_done"))
            limit = builder.sub(width, _i64(1) if masked else advance)
            builder.cbranch(builder.icmp_signed("<=", first, limit), loop, done)
            builder.position_at_end(loop)
            column = builder.phi(_i64)
            sums = after = [builder.phi(FLOATS) for _ in before]
            if not masked:
                with builder.if_else(args[3]) as (other_rows, same_rows):
                    with other_rows:
                        prefetch_rows(rows_ahead, column)
                    with same_rows:
                        if element is _f32 and step * size == _CACHE_LINE:
                            ahead = builder.add(column, _i64(_PREFETCH_DISTANCE // size))
                            prefetch_rows(current_rows, ahead)
            for number in range(count):
                here = builder.add(column, _i64(number * step))
                mask = mask_below(builder, builder.sub(width, here), step) if masked else None
                after = multiply_vector(here, after, mask)
            advanced = builder.add(column, advance)
            last = builder.block
            builder.cbranch(builder.icmp_signed("<=", advanced, limit), loop, done)
            builder.position_at_end(done)
            ends = [builder.phi(value.type) for value in (first, *before)]
            old, new = [first, *before], [advanced, *after]
            for values in zip([column, *sums, *ends], old + old, new + new, strict=True):
                values[0].add_incoming(values[1], entry)
                values[0].add_incoming(values[2], last)
            return ends[0], ends[1:]

        zeros = [ir.Constant(FLOATS, [0.0] * LANES)] * (len(ids) * len(current_states))
        column, partial_sums = emit_loop("whole", _i64(0), zeros, max(1, _UNROLL // step), False)
        _, totals = emit_loop("rest", column, partial_sums, 1, True)
        pairs = itertools.product(state_ids, targets)
        for total, (state, target) in zip(sum_lanes(builder, totals), pairs, strict=True):
            address = at(out_array.data, builder.add(target, builder.mul(stride, state)), _f32)
            builder.store(total, address)
        return context.get_dummy_value()

    return signature, codegen


dots: Any = intrinsic(prefer_literal=True)(_dots)


def _copy_row(typingctx, rows, row, prefetch_ids, target, slot):
    """target[slot] = rows[row], with non-temporal stores that bypass the caches: a slot that is
    read only after the caches were overwritten need not be fetched before it is written. The
    rows ``prefetch_ids``, which are copied next, are prefetched meanwhile.

    Both arrays are contiguous (N, D). A row must be a whole number of cache lines, and ``target``
    must start at one.
    """
    element = _ELEMENTS[rows.dtype]

    def codegen(context, builder, signature, args):
        row_array, target_array = (
            context.make_array(kind)(context, builder, value)
            for kind, value in ((rows, args[0]), (target, args[3]))
        )
        width = builder.extract_value(row_array.shape, 1)
        line = ir.VectorType(element, _CACHE_LINE // _item_size(element))
        source, destination, *rows_ahead = (
            builder.gep(array.data, [builder.mul(index, width)], source_etype=element)
            for array, index in (
                (row_array, args[1]), (target_array, args[4]),
                *((row_array, index) for index in cgutils.unpack_tuple(builder, args[2])),
            )
        )  # fmt: skip
        nontemporal = builder.module.add_metadata([_i32(1)])
        with cgutils.for_range_slice(builder, _i64(0), width, _i64(line.count)) as (column, _):
            for base in rows_ahead:
                _prefetch_line(builder, builder.gep(base, [column], source_etype=element))
            read_from = builder.gep(source, [column], source_etype=element)
            vector = builder.load(read_from, typ=line, align=_item_size(element))
            write_to = builder.gep(destination, [column], source_etype=element)
            write_to = builder.bitcast(write_to, line.as_pointer())
            builder.store(vector, write_to, align=_CACHE_LINE).set_metadata(
                "nontemporal", nontemporal
            )
        return context.get_dummy_value()

    return types.void(rows, types.intp, prefetch_ids, target, types.intp), codegen


copy_row: Any = intrinsic(_copy_row)


def _prefetch_row(typingctx, rows, row):
    """Prefetches the first cache line of rows[row], of a contiguous array (N, D), so that the
    address translation of its page is cached before the row is read or overwritten."""

    def codegen(context, builder, signature, args):
        array = context.make_array(rows)(context, builder, args[0])
        first = builder.mul(args[1], builder.extract_value(array.shape, 1))
        address = builder.gep(array.data, [first], source_etype=_ELEMENTS[rows.dtype])
        _prefetch_line(builder, address)
        return context.get_dummy_value()

    return types.void(rows, types.intp), codegen


prefetch_row: Any = intrinsic(_prefetch_row)
