"""The CUDA kernels of the LM head against PyTorch, on small shapes.

Without a GPU they run in Numba's simulator, in which each GPU thread is a Python thread.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import cuda
from torch import Tensor

from fastpath.cuda import device
from fastpath.cuda.head import PLAN, DeviceRows, PackedRows
from fastpath.scores import Scores
from helpers.cuda_inputs import DTYPES, FEW_EXAMPLES, draw_ids, draw_numbers
from minispec.errors import ArgumentError, ShortlistError

pytestmark = pytest.mark.usefixtures("check_barriers")


@pytest.mark.skipif(not device.SIMULATED, reason="on a GPU this would hang")
@pytest.mark.parametrize("kind", ["skipped", "early", "other"])
def test_check_barriers_detects_diverging_barrier(kind):
    @cuda.jit
    def diverge(out):
        thread = cuda.threadIdx.x
        if kind == "early" and thread == 1:
            return
        if kind == "other" and thread == 1:
            cuda.syncthreads()
            out[thread] = 2
        elif kind != "skipped" or thread != 1:
            cuda.syncthreads()
            out[thread] = 1

    with pytest.raises(AssertionError, match="diverges"):
        device.launch(diverge, 1, 3, torch.zeros(3))


def assert_scores(
    scores: Scores, rows: Tensor, hidden: Tensor, top: int, temperature: float
) -> None:
    """Logits are within the kernel's own bound of exact ones; the rest agrees with the logits."""
    rows, hidden = rows.cpu().double(), hidden.cpu().double()
    exact, size = hidden @ rows.T, hidden.abs() @ rows.abs().T
    logits = scores.logits.cpu()
    terms = rows.shape[1] / PLAN.lanes + PLAN.lanes + 8
    assert logits.dtype == torch.float32
    assert ((logits.double() - exact).abs() <= terms * 2**-24 * size).all()
    order = torch.tensor(
        [sorted(range(len(row)), key=lambda i: (-row[i], i))[:top] for row in logits.tolist()]
    )
    assert (scores.top_indices.cpu() == order).all()
    assert (scores.top_logits.cpu() == logits.gather(1, order)).all()
    scaled = (logits - logits.amax(1, keepdim=True)).double() / temperature
    assert torch.allclose(scores.exp_sums.cpu(), scaled.exp().sum(1), rtol=1e-5)


SHAPES = given(
    st.sampled_from(DTYPES), st.integers(1, 40), st.integers(1, 40), st.integers(1, 9),
    st.integers(1, 8), st.sampled_from([1.0, 0.3, 2.0]), st.data(),
)  # fmt: skip


def check_shape(dtype, size, width, states, top, temperature, data):
    weight, hidden = draw_numbers(1, size, width, dtype=dtype), draw_numbers(2, states, width)
    rows = DeviceRows(weight)
    top = min(top, size)
    scores = rows.scores(hidden, top=top, temperature=temperature)
    assert_scores(scores, weight, hidden, top, temperature)
    ids = draw_ids(3, size, data.draw(st.integers(1, size)))
    top = min(top, len(ids))
    scores = rows.scores(hidden, ids, top, temperature)
    assert_scores(scores, weight.cpu()[ids], hidden, top, temperature)


@settings(FEW_EXAMPLES, max_examples=8)
@SHAPES
def test_scores_equal_reference(dtype, size, width, states, top, temperature, data):
    check_shape(dtype, size, width, states, top, temperature, data)


@pytest.mark.slow
@settings(FEW_EXAMPLES, max_examples=150)
@SHAPES
def test_scores_equal_reference_in_many_shapes(dtype, size, width, states, top, temperature, data):
    check_shape(dtype, size, width, states, top, temperature, data)


def test_log_sum_exp_equals_torch():
    weight, hidden = draw_numbers(1, 20, 7), draw_numbers(2, 3, 7)
    scores = DeviceRows(weight).scores(hidden)
    exact = scores.logits.double().logsumexp(1)
    assert (scores.log_sum_exp().double() - exact).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_assert_scores_detects_wrong_logit(dtype):
    weight, hidden = draw_numbers(1, 9, 6, dtype=dtype), draw_numbers(2, 2, 6)
    scores = DeviceRows(weight).scores(hidden)
    weight[4, 5] *= 1 + 2.0**-7
    with pytest.raises(AssertionError):
        assert_scores(scores, weight, hidden, 1, 1.0)


def test_scores_break_ties_by_lower_index():
    weight = torch.tensor([[1.0], [3.0], [2.0], [3.0], [2.0], [3.0], [0.0]])
    weight = weight.to(device.get_device())
    scores = DeviceRows(weight).scores(weight.new_ones(1, 1), top=6)
    assert scores.top_indices.tolist() == [[1, 3, 5, 2, 4, 0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_propagate_nonfinite_weights(bad, dtype):
    weight = draw_numbers(1, 11, 5, dtype=dtype)
    weight[7, 3] = bad
    hidden = draw_numbers(2, 2, 5).abs()
    scores = DeviceRows(weight).scores(hidden, top=3)
    exact = hidden.cpu() @ weight.cpu().float().T
    assert torch.allclose(scores.logits.cpu(), exact, atol=1e-5, equal_nan=True)
    if bad == -math.inf:  # a logit of probability 0
        assert torch.allclose(scores.log_sum_exp().cpu(), exact.logsumexp(1))
    else:  # NaN is the largest, as in PyTorch
        assert (scores.top_indices[:, 0].cpu() == exact.argmax(1)).all()
        assert not scores.log_sum_exp().isfinite().any()


def test_scores_of_rows_without_finite_logit():
    rows = DeviceRows(torch.full((5, 4), -math.inf, device=device.get_device()))
    scores = rows.scores(torch.ones(1, 4, device=device.get_device()), top=2)
    assert scores.top_indices.tolist() == [[0, 1]]
    assert scores.log_sum_exp().tolist() == [-math.inf]


@pytest.mark.parametrize("case", range(3))
@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(DTYPES), st.integers(1, 12), st.integers(0, 1000))
def test_packed_scores_equal_gathered_after_any_updates(case, dtype, width, seed):
    weight = draw_numbers(seed, 20, width, dtype=dtype)
    hidden = draw_numbers(seed + 1, 2, width)
    table = DeviceRows(weight)
    packed, before = PackedRows(table), set[int]()
    for change in range(4):
        size = [(7, 7, 5, 7), (3, 9, 2, 9), (20, 1, 20, 4)][case][change]
        ids = draw_ids(seed + change, 20, size)
        copied = packed.num_copied
        packed.update(ids)
        scores = packed.scores(hidden, top=1)
        assert (scores.logits == table.scores(hidden, ids).logits).all()  # bit for bit
        added = set(ids.tolist()) - before
        grown = case == 1 and change == 1  # above the capacity: all rows are copied
        assert packed.num_copied - copied == (size if grown else len(added))
        before = set(ids.tolist())


@pytest.mark.parametrize(
    "ids", [[], [2, 1], [1, 1], [-1, 2], [1, 9], [[1]], [1.0]], ids=lambda ids: str(ids)
)
def test_invalid_ids_are_rejected_and_change_nothing(ids):
    table = DeviceRows(draw_numbers(1, 9, 4))
    dtype = torch.float32 if 1.0 in ids and isinstance(ids[0], float) else torch.int64
    wrong, hidden = torch.tensor(ids, dtype=dtype), draw_numbers(2, 1, 4)
    packed = PackedRows(table)
    packed.update(torch.tensor([0, 3]))
    for use in (packed.update, lambda ids: table.scores(hidden, ids)):
        with pytest.raises(ShortlistError, match="ids must be"):
            use(wrong)
    exact = table.scores(hidden, torch.tensor([0, 3])).logits
    assert (packed.scores(hidden).logits == exact).all()


def test_invalid_arguments_are_rejected():
    table = DeviceRows(draw_numbers(1, 9, 4))
    with pytest.raises(ArgumentError, match="float64"):
        DeviceRows(draw_numbers(1, 9, 4).double())
    with pytest.raises(ArgumentError, match="top must be 1 to 8 for 9 rows, but is 9"):
        table.scores(draw_numbers(2, 1, 4), top=9)
    with pytest.raises(ArgumentError, match="hidden must be"):
        table.scores(draw_numbers(2, 1, 5))
    with pytest.raises(ShortlistError, match="update"):
        PackedRows(table).scores(draw_numbers(2, 1, 4))


COMPILE_SCRIPT = """
import sys, types
import torch
from numba import cuda, types as T
from numba.cuda import dispatcher
from numba.cuda.cudadrv import nvvm

try:
    if not nvvm.is_available():
        raise OSError
except Exception:
    sys.exit(77)
dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=(8, 0))
from fastpath.cuda import kernels, verify as cuda_verify

def ptx(kernel, *arguments):
    text, _ = cuda.compile_ptx(kernel.py_func, T.void(*arguments), cc=(8, 0))
    return text

i1, i2, i3 = T.int64[::1], T.int64[:, ::1], T.int64[:, :, ::1]
f1, f2, f3 = T.float32[::1], T.float32[:, ::1], T.float32[:, :, ::1]
d1, d2, words = T.float64[::1], T.float64[:, ::1], T.int32[:, ::1]
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    kernel = kernels.make_scorer(dtype, 8, 8, True, kernels.Plan())
    text = ptx(kernel, words, i1, words, T.float64, f2, f3, i3, d2)
    assert "ld.global.v4" in text or "ld.global.nc.v4" in text, dtype
    assert ".local " not in text, dtype  # sums and rows are in registers
ptx(kernels.make_merger(8, 256), f3, i3, d2, T.float64, f2, i2, d1)
ptx(kernels.copy_rows, words, i1, words, i1)
ptx(cuda_verify._distributions, f2, f2, i2, d1, T.float64, f2)
ptx(cuda_verify._choose, f2, d1, T.int64, i1, i1, i1)
ptx(cuda_verify._verify, T.int64, i1, i1, i2, i1, f2, f2, d1, i1, d1, f1)
"""


def test_kernels_compile_with_sixteen_byte_loads():
    """Needs NVIDIA's compiler but no GPU: `pip install numba-cuda[cu12]` installs it."""
    result = subprocess.run(
        [sys.executable, "-c", COMPILE_SCRIPT],
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "0"},
        cwd=Path(__file__).parent.parent.parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    if result.returncode == 77:
        pytest.skip("NVIDIA's compiler is not installed")
    assert result.returncode == 0, result.stderr
