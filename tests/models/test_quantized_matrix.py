"""Quantised matrices: what their rows are, and what a product rounds."""

import copy

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.quantized import draw_matrix, quantized_transformer
from minispec.models.eagle_draft import init_from_target
from minispec.models.quantized_matrix import FORMATS, QuantizedMatrix, multiply, round_states
from minispec.models.quantized_modules import (
    QuantizedLinear,
    dequantize_linears,
    is_quantized,
    quantize_linears,
)

NUMBERS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)


@pytest.mark.parametrize("name", FORMATS)
def test_getitem_equals_the_package_gguf(name):
    matrix = draw_matrix(name, 7, 512)
    kind = gguf.GGMLQuantizationType[name]
    expected = torch.from_numpy(gguf.quants.dequantize(matrix.blocks, kind))[matrix.order]
    assert matrix.shape == (7, 512) and len(matrix) == 7
    assert torch.equal(matrix.weight, expected)
    assert torch.equal(matrix[2:4], expected[2:4])
    ids = torch.tensor([[3, 0], [3, 6]])
    assert torch.equal(matrix[ids], expected[ids])
    assert torch.equal(matrix.select(torch.tensor([5, 1])).weight, expected[[5, 1]])


@pytest.mark.parametrize("name", FORMATS)
def test_scales_are_the_numbers_that_all_others_are_multiplied_with(name):
    matrix = draw_matrix(name, 3, 256)
    scaled = copy.copy(matrix)
    scaled.blocks = matrix.blocks.copy()
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1]
    blocks = scaled.blocks.reshape(3, -1, size)
    halves = np.ascontiguousarray(blocks[..., FORMATS[name]]).view(np.float16) * np.float16(2)
    blocks[..., FORMATS[name]] = halves.view(np.uint8)
    assert np.array_equal(scaled.scales(), 2 * matrix.scales())
    assert torch.equal(scaled[:], 2 * matrix[:])


@given(numbers=st.lists(NUMBERS, min_size=64, max_size=64))
def test_round_states_gives_multiples_of_the_largest_over_127(numbers):
    states = torch.tensor(numbers)
    rounded = round_states(states)
    for part, own in zip(states.split(32), rounded.split(32), strict=True):
        scale = part.abs().max() / 127
        assert ((own - part).abs() <= scale * 0.5001 + 2.0**-100).all()
        if scale > 1e-30:
            steps = own / scale
            assert torch.allclose(steps, steps.round(), atol=1e-4)
            assert torch.allclose(own.abs().max(), part.abs().max(), rtol=1e-6)


def test_round_states_of_zeros_and_nan():
    states = torch.zeros(2, 64)
    states[1, 40] = float("nan")
    rounded = round_states(states)
    assert torch.equal(rounded[0], torch.zeros(64)) and torch.equal(
        rounded[1, :32], torch.zeros(32)
    )
    assert rounded[1, 40].isnan()


def test_multiply_rounds_states_of_quantized_matrices_alone():
    matrix, states = draw_matrix("Q8_0", 5, 64), torch.randn(3, 64)
    expected = round_states(states) @ matrix.weight.T
    assert torch.allclose(multiply(states, matrix), expected, atol=1e-5)
    assert torch.equal(multiply(states, matrix.weight), states @ matrix.weight.T)
    assert not torch.allclose(expected, states @ matrix.weight.T, atol=1e-5)


def test_deepcopy_shares_the_matrix():
    linear = QuantizedLinear(draw_matrix("Q4_1", 4, 64))
    assert copy.deepcopy(linear).matrix is linear.matrix


def test_dequantize_linears_leaves_what_can_be_trained():
    draft = init_from_target(quantized_transformer())
    weights = {name: value.clone() for name, value in draft.state_dict().items()}
    quantize_linears(draft)
    assert is_quantized(draft) and not is_quantized(torch.nn.Linear(32, 32))
    dequantize_linears(draft)
    assert not is_quantized(draft)
    state = draft.state_dict()
    assert state.keys() == weights.keys()
    assert all((state[n] - w).abs().max() <= w.abs().max() / 127 for n, w in weights.items())


def test_quantize_linears_leaves_rows_that_are_no_whole_blocks():
    model = torch.nn.Sequential(
        torch.nn.Linear(40, 3, bias=False), torch.nn.Linear(64, 3, bias=False)
    )
    quantize_linears(model)
    assert isinstance(model[0], torch.nn.Linear) and isinstance(model[1], QuantizedLinear)
    assert isinstance(model[1].matrix, QuantizedMatrix) and model[1].matrix.name == "Q8_0"
