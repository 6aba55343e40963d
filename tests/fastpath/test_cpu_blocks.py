"""Panels of quantised rows and their products against the reference, bit for bit where whole
numbers are added."""

import ctypes

import llvmlite.binding as llvm
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import ir

from fastpath.cpu import byte_dots
from fastpath.cpu.block_formats import FORMATS, panel_parts, place_rows, read_row, read_rows
from fastpath.cpu.blocks import multiply_segments, round_states
from fastpath.cpu.kernels import multiply
from fastpath.cpu.packed_panels import PackedPanels
from fastpath.cpu.panels import build_panels
from helpers.quantized import draw_matrix
from minispec.models import quantized_matrix
from minispec.models.quantized_matrix import quantize

NAMES = st.sampled_from(sorted(FORMATS))


def bound(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What sums in float32 may differ by from exact ones."""
    return 1e-6 * states.abs() @ weight.abs().T + 1e-30


def test_formats_are_those_of_the_reference():
    assert FORMATS.keys() == quantized_matrix.FORMATS.keys()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 16, 21])
def test_place_rows_and_read_row_keep_every_number(name, rows):
    matrix = draw_matrix(name, rows, 512)
    data, segments = build_panels([[matrix]])
    kind, start, count, columns = segments[0, 0]
    size = panel_parts(kind, columns)[5]
    assert (start, count, columns) == (0, rows, 512) and len(data) % size == 0
    out = np.empty((rows, 512), np.float32)
    for row in range(rows):
        panel = data[row // 16 * size : (row // 16 + 1) * size]
        read_row(kind, panel, columns, row % 16, out[row])
    assert np.array_equal(out, matrix.weight.numpy())
    read_rows(kind, matrix.blocks, matrix.order, columns, out)
    assert np.array_equal(out, matrix.weight.numpy())


@pytest.mark.parametrize("name", FORMATS)
def test_place_rows_overwrites_what_was_there(name):
    first, second = draw_matrix(name, 16, 256, seed=1), draw_matrix(name, 16, 256, seed=2)
    kind = list(FORMATS).index(name)
    used, fresh = (np.full(panel_parts(kind, 256)[5], fill, np.uint8) for fill in (255, 0))
    place_rows(kind, first.blocks, first.order, 256, used, 1)
    for panel in (used, fresh):
        place_rows(kind, second.blocks, second.order, 256, panel, 1)
    out = np.empty((2, 256), np.float32)
    for row in range(16):
        read_row(kind, used, 256, row, out[0])
        read_row(kind, fresh, 256, row, out[1])
        assert np.array_equal(*out) and np.array_equal(out[0], second.weight[row].numpy())


@given(data=st.data(), seed=st.integers(0, 99))
def test_multiply_equals_reference(data, seed):
    rows = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    names = [data.draw(NAMES) for _ in rows]
    columns, count = 256 * data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    matrices = [draw_matrix(n, r, columns, seed) for n, r in zip(names, rows, strict=True)]
    panels, segments = build_panels([matrices])
    torch.manual_seed(seed)
    states = torch.randn(count, columns) * 10 ** torch.randn(count, 1)
    weight = torch.cat([matrix.weight for matrix in matrices])
    rounded = quantized_matrix.round_states(states)
    expected = (rounded.double() @ weight.double().T).float()
    for threads in (1, 2, 3):
        out = np.empty((count, len(weight)), np.float32)
        multiply(panels, segments[0], states.numpy(), out, threads)
        assert ((torch.from_numpy(out) - expected).abs() <= bound(rounded, weight)).all()
    for t in range(count):  # no state's result depends on the others
        alone = np.empty((1, len(weight)), np.float32)
        multiply(panels, segments[0], states[t : t + 1].numpy(), alone, 1)
        assert np.array_equal(alone[0], out[t])
    first = data.draw(st.integers(0, len(weight)))
    last = data.draw(st.integers(first, len(weight)))
    shift = data.draw(st.integers(0, first))
    part = np.full((count, len(weight)), np.nan, np.float32)
    inputs = round_states(states.numpy())
    multiply_segments(panels, segments[0], inputs, part, first, last, shift)
    assert np.array_equal(part[:, first - shift : last - shift], out[:, first:last])
    rest = np.delete(part, slice(first - shift, last - shift), axis=1)
    assert np.isnan(rest).all()  # nothing else is written


def test_round_states_equals_reference():
    states = torch.randn(5, 96) * 10 ** torch.randn(5, 1)
    states[1], states[2, 32:64] = 0, 1e-42
    numbers, sizes, sums, weighted = round_states(states.numpy())
    by_block = numbers.reshape(5, 3, 32)
    expected = quantized_matrix.round_states(states).numpy()
    assert np.array_equal((by_block * sizes[..., None]).reshape(5, 96), expected)
    whole = by_block.sum(-1, dtype=np.int64)
    assert np.array_equal(sums[..., 0], -128 * whole)
    assert np.array_equal(sums[..., 1], -128 * by_block[..., :16].sum(-1, dtype=np.int64))
    assert np.array_equal(sums[..., 2], -128 * by_block[..., 16:].sum(-1, dtype=np.int64))
    assert np.array_equal(weighted, sizes * whole.astype(np.float32))


def test_round_states_of_nan_gives_nan():
    states = np.zeros((1, 64), np.float32)
    states[0, 33] = np.nan
    _, sizes, _, weighted = round_states(states)
    assert sizes[0, 0] == 0 and np.isnan(sizes[0, 1]) and np.isnan(weighted[0, 1])


@given(
    shortlists=st.lists(
        st.sets(st.integers(0, 69), min_size=1, max_size=50).map(sorted), min_size=1, max_size=6
    ),
    name=NAMES,
)
def test_packed_panels_update_to_any_shortlist(shortlists, name):
    matrix, states = draw_matrix(name, 70, 256), torch.randn(3, 256)
    rounded = quantized_matrix.round_states(states)
    packed = PackedPanels(matrix)
    for ids in map(np.array, shortlists):
        out, again = np.empty((2, 3, len(ids)), np.float32)
        assert packed.update(ids, states.numpy(), out)
        packed.multiply(states.numpy(), again)
        weight = matrix.weight[ids]
        assert ((torch.from_numpy(out) - rounded @ weight.T).abs() <= bound(rounded, weight)).all()
        assert np.array_equal(again, out)


def emit_function(how: str, bits: int) -> ir.Module:
    """f(codes, numbers, sums): adds the products of a vector of each to the sums."""
    lanes, module = byte_dots.BYTE_LANES[how], ir.Module()
    pointer = ir.IntType(8).as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer] * 3), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    kinds = [ir.VectorType(ir.IntType(8), 4 * lanes)] * 2 + [ir.VectorType(ir.IntType(32), lanes)]
    codes, numbers, sums = (
        builder.load(argument, typ=kind, align=1)
        for argument, kind in zip(function.args, kinds, strict=True)
    )
    total = byte_dots.add_products(builder, sums, codes, numbers, bits, how)
    builder.store(total, builder.bitcast(function.args[2], kinds[2].as_pointer()), align=4)
    builder.ret_void()
    return module


def compile_module(module: ir.Module, triple: str, features: str) -> tuple:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(features=features)
    module.triple, module.data_layout = triple, str(machine.target_data)
    return llvm.parse_assembly(str(module)), machine


HERE = [
    how
    for how, needed in {
        "vnni512": "+avx512vnni", "vnni256": "+avxvnni", "avx2": "+avx2", "plain": None,
    }.items()
    if needed is None or needed in byte_dots.FEATURES
]  # fmt: skip


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("how", HERE)
def test_add_products_adds_the_same_whole_numbers_with_any_instructions(how, bits):
    module, machine = compile_module(
        emit_function(how, bits), llvm.get_process_triple(), ",".join(byte_dots.FEATURES)
    )
    lanes, rng = byte_dots.BYTE_LANES[how], np.random.default_rng(bits)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    run = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(engine.get_function_address("f"))
    for extreme in (False, True):
        codes = rng.integers(0, 2**bits, 4 * lanes, np.uint8)
        numbers = rng.integers(-127, 128, 4 * lanes, np.int8)
        if extreme:  # where 16 bits would not do
            codes[:], numbers[:] = (
                2**bits - 1,
                np.where(np.arange(4 * lanes) < 2 * lanes, 127, -127),
            )
        sums = rng.integers(-(2**20), 2**20, lanes, np.int32)
        products = codes.astype(np.int64) * numbers
        expected = sums + products.reshape(lanes, 4).sum(-1)
        run(codes.ctypes.data, numbers.ctypes.data, sums.ctypes.data)
        assert np.array_equal(sums, expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("how", "triple", "features", "instruction"),
    [
        ("neon", "aarch64-linux-gnu", "+dotprod,+neon", "sdot"),
        ("vnni256", "x86_64-linux-gnu", "+avx2,+avxvnni", "vpdpbusd"),
        ("avx2", "x86_64-linux-gnu", "+avx2", "vpmaddubsw"),
    ],
)
def test_add_products_compiles_for_other_processors(how, triple, features, instruction, bits):
    module, machine = compile_module(emit_function(how, bits), triple, features)
    assert instruction in machine.emit_assembly(module)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (["+avx512vnni", "+avx512bw", "+avx512vl", "+avx2", "+avxvnni", "+f16c"], "vnni512"),
        (["+avx2", "+avxvnni", "+f16c"], "vnni256"),
        (["+avx2", "+f16c", "-avxvnni"], "avx2"),
        (["+neon", "+dotprod"], "neon"),
        (["+sse4.2"], "plain"),
    ],
)
def test_choose_instructions_takes_the_widest(features, expected):
    assert byte_dots.choose_instructions(features) == expected


def test_quantize_makes_rows_that_are_placed():
    rows = torch.randn(33, 64)
    matrix = quantize(rows)
    data, segments = build_panels([[matrix]])
    states = torch.eye(64)
    out = np.empty((64, 33), np.float32)
    multiply(data, segments[0], states.numpy(), out, 1)
    assert torch.allclose(torch.from_numpy(out).T, rows, atol=0.05)
