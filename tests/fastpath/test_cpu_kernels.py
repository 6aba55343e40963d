"""The CPU kernels against PyTorch: products, attention, casts, top-k and sums of exponentials.

bfloat16 rows are multiplied with states rounded to bfloat16 once, in the expected results too.
With AVX512-BF16, numbers below 2^-126 count as 0, far below the bound of the checks.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from llvmlite.binding import get_host_cpu_name, llvm_version_info
from numba.core.codegen import get_host_cpu_features

from fastpath.cpu.attention import attend
from fastpath.cpu.dots import BF16_PAIRS, MAX_STATES
from fastpath.cpu.kernels import cast_states, multiply
from fastpath.cpu.ranks import multiply_and_rank
from fastpath.cpu.rows import multiply_gathered
from helpers.kernel_checks import (
    FORMATS,
    SHAPES,
    TEMPERATURES,
    assert_logits,
    assert_scores,
    convert_rows,
)


@given(**SHAPES)
def test_multiply_equals_reference(rows_format, size, width, new, threads, seed):
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, width, generator=rng)
    states = torch.randn(new, width, generator=rng)
    rows, scales, exact = convert_rows(weight, rows_format)
    out = np.full((new + 2, size), 7, np.float32)
    multiply(rows, scales, states.numpy(), out[1:-1], threads)
    assert_logits(out[1:-1], states, exact, rows_format)
    assert (out[0] == 7).all() and (out[-1] == 7).all(), "wrote outside the result"


@pytest.mark.parametrize("rows_format", FORMATS)
@pytest.mark.parametrize("width", [577, 1536, 2048, 5000])
def test_multiply_wide_rows_equals_reference(rows_format, width):
    """Numbers of states that are multiplied with four, two and one rows at once, and one above
    ``MAX_STATES``."""
    for new in (1, 5, 8, 9):
        weight, states = torch.randn(70, width), torch.randn(new, width)
        rows, scales, exact = convert_rows(weight, rows_format)
        out = np.empty((new, 70), np.float32)
        multiply(rows, scales, states.numpy(), out, 2)
        assert_logits(out, states, exact, rows_format)


@given(new=st.integers(1, 8), width=st.integers(1, 600), seed=st.integers(0, 2**31))
def test_multiply_several_states_is_bitwise_equal_to_each_alone(new, width, seed):
    """So plain decoding and verification in bfloat16 differ in no rounding of states."""
    rng = torch.Generator().manual_seed(seed)
    weight, states = (torch.randn(n, width, generator=rng) for n in (40, new))
    rows, scales, _ = convert_rows(weight, "bfloat16")
    together, alone = np.empty((new, 40), np.float32), np.empty((new, 40), np.float32)
    multiply(rows, scales, states.numpy(), together, 2)
    for t in range(new):
        multiply(rows, scales, states[t : t + 1].numpy(), alone[t : t + 1], 1)
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("rows_format", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("new", [MAX_STATES, MAX_STATES + 1, 3 * MAX_STATES - 1])
def test_multiply_many_states_is_bitwise_equal_to_each_alone(new, rows_format):
    """In one group and in several, over several blocks of rows."""
    rng = torch.Generator().manual_seed(new)
    weight, states = (torch.randn(n, 1_000, generator=rng) for n in (1_001, new))
    rows, scales, _ = convert_rows(weight, rows_format)
    together, alone = np.empty((new, 1_001), np.float32), np.empty((new, 1_001), np.float32)
    multiply(rows, scales, states.numpy(), together, 2)
    for t in range(new):
        multiply(rows, scales, states[t : t + 1].numpy(), alone[t : t + 1], 1)
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("column", [0, 16, 19])  # in the first vector, in the second, in the rest
@pytest.mark.parametrize("rows_format", ["float32", "bfloat16"])
def test_multiply_propagates_nonfinite_weights(bad, column, rows_format):
    weight, states = torch.ones(3, 20), torch.ones(2, 20)
    weight[1, column] = bad
    out = np.empty((2, 3), np.float32)
    multiply(*convert_rows(weight, rows_format)[:2], states.numpy(), out, 1)
    assert np.isfinite(out[:, [0, 2]]).all() and not np.isfinite(out[:, 1]).any()


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(numbers=st.lists(FLOATS, min_size=1, max_size=70))
def test_cast_states_rounds_as_torch(numbers):
    states = torch.tensor([numbers])
    cast = cast_states(np.empty((1, len(numbers)), np.uint16), states.numpy())
    ours = torch.from_numpy(cast)
    ours = ours.view(torch.bfloat16).float() if BF16_PAIRS else ours
    assert torch.equal(ours.isnan(), states.isnan())
    assert torch.equal(ours.nan_to_num(0), states.bfloat16().float().nan_to_num(0))
    unchanged = cast_states(np.empty((1, 1), np.float32), states.numpy())
    assert unchanged.tobytes() == states.numpy().tobytes()


def test_kernels_with_bfloat16_multiplied_the_other_way_equal_reference():
    """Runs the tests of bfloat16 rows again: in pairs where this processor multiplies them in
    float32 although it has AVX512-BF16, and in float32 where it multiplies pairs."""
    host = get_host_cpu_features().split(",")
    if "+avx512bf16" not in host or llvm_version_info < (20,):
        pytest.skip("this processor has no AVX512-BF16, so the other tests cover all of its paths")
    other = "+avx512bf16" if BF16_PAIRS else "+amx-bf16"
    features = ",".join(feature for feature in host if feature != other)
    script = f"""
import pytest, sys
from fastpath.cpu.dots import BF16_PAIRS
assert BF16_PAIRS != {BF16_PAIRS}
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1], "-k", sys.argv[2]]))
"""
    tests = "multiply_equals or gathered or wide_rows or rounds_as_torch or bitwise or and_rank"
    result = subprocess.run(
        [sys.executable, "-c", script, __file__, tests],
        env=os.environ | {"NUMBA_CPU_FEATURES": features, "NUMBA_CPU_NAME": get_host_cpu_name()},
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@given(
    new=st.integers(1, 6),
    num_key_value_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    head_dim=st.integers(1, 40).map(lambda half: 2 * half),
    start=st.integers(0, 30),
    window=st.integers(1, 40),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_attend_equals_reference(
    new, num_key_value_heads, group, head_dim, start, window, threads, seed
):
    rng = torch.Generator().manual_seed(seed)
    heads, size = num_key_value_heads * group, start + new
    # Keys and values follow the queries in the same buffer, and the cache has free positions.
    queries = torch.randn(new, heads + 2 * num_key_value_heads, head_dim, generator=rng)
    keys, values = torch.randn(2, size + 3, num_key_value_heads, head_dim, generator=rng)
    out = np.full((new + 1, heads, head_dim), 7, np.float32)
    scale = np.float32(head_dim**-0.5)
    place = (start, np.arange(start, size), start, np.empty((0, 0), np.int64))
    attend(queries.numpy(), keys.numpy(), values.numpy(), place, window, scale, out[:new], threads)
    distance = torch.arange(start, size)[:, None] - torch.arange(size)
    expected = F.scaled_dot_product_attention(
        queries[:, :heads].transpose(0, 1),
        keys[:size].repeat_interleave(group, 1).transpose(0, 1),
        values[:size].repeat_interleave(group, 1).transpose(0, 1),
        attn_mask=(distance >= 0) & (distance < window),
    )
    assert torch.allclose(torch.from_numpy(out[:new]), expected.transpose(0, 1), atol=1e-5)
    assert (out[new:] == 7).all(), "wrote outside the result"


@given(**SHAPES)
def test_multiply_gathered_equals_reference(rows_format, size, width, new, threads, seed):
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(60, width, generator=rng)
    states = torch.randn(new, width, generator=rng)
    ids = torch.randperm(60, generator=rng)[:size].sort().values
    rows, scales, exact = convert_rows(weight, rows_format)
    out = np.empty((new, size), np.float32)
    multiply_gathered(rows, scales, ids.numpy(), states.numpy(), out, threads)
    assert_logits(out, states, exact[ids], rows_format)


@given(**SHAPES, top=st.integers(1, 9), temperature=TEMPERATURES)
def test_multiply_and_rank_equals_ranking_of_logits(
    rows_format, size, width, new, threads, seed, top, temperature
):
    """Each row occurs twelve times, so that the largest logits are tied across threads."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, width, generator=rng).repeat(12, 1)
    states = torch.randn(new, width, generator=rng)
    rows, scales, _ = convert_rows(weight, rows_format)
    out, kept = np.empty((2, new, len(weight)), np.float32)
    multiply(rows, scales, states.numpy(), out, threads)
    scores = multiply_and_rank(
        rows, scales, len(rows), states.numpy(), kept, top, temperature, threads
    )
    assert_scores(scores, out, top, temperature)
    assert np.array_equal(kept, out)
    dropped = np.empty((new, 0), np.float32)
    scores = multiply_and_rank(
        rows, scales, len(rows), states.numpy(), dropped, top, temperature, threads
    )
    assert_scores(scores, out, top, temperature)
