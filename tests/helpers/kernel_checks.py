"""Weight rows in the three formats of the CPU kernels, and checks of logits and scores.

A float32 sum of D products, in any order, is off by at most about sqrt(D) roundings of its
largest term. The bound used here is 2^-24 * (4 sqrt(D) + 4) * |x| |w| for each row.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from minispec.models.int8 import quantize_rows, row_scales

FORMATS = ("float32", "bfloat16", "int8")
SHAPES: dict[str, Any] = {
    "rows_format": st.sampled_from(FORMATS),
    "size": st.integers(1, 40),
    "width": st.sampled_from([1, 3, 15, 16, 17, 64, 100, 577]),
    "new": st.integers(1, 19),
    "threads": st.integers(1, 3),
    "seed": st.integers(0, 2**31),
}
TEMPERATURES = st.sampled_from([1.0, 0.3, 2.0])


def convert_rows(weight: Tensor, rows_format: str) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """A float32 matrix (N, D) in the format of the kernels, its row scales (N,), and the matrix
    that these stand for, in float64."""
    ones = np.ones(len(weight), np.float32)
    if rows_format == "float32":
        return weight.numpy(), ones, weight.double()
    if rows_format == "bfloat16":
        half = weight.bfloat16()
        return half.view(torch.uint16).numpy(), ones, half.double()
    scales, steps = row_scales(weight), quantize_rows(weight)
    return steps.numpy(), scales.numpy(), steps.double() * scales.double()[:, None]


def assert_logits(
    out: np.ndarray, states: Tensor, weight: Tensor, rows_format: str = "float32"
) -> None:
    """``out`` (T, N) equals states @ weight.T within the bound of float32 sums. For bfloat16 rows
    the states are rounded to bfloat16 first."""
    if rows_format == "bfloat16":
        states = states.bfloat16()
    exact = states.double() @ weight.T
    norms = states.double().norm(dim=1)[:, None] * weight.norm(dim=1)[None, :]
    bound = 2**-24 * (4 * weight.shape[1] ** 0.5 + 4) * norms + 1e-30
    excess = ((torch.from_numpy(out).double() - exact).abs() / bound).max()
    assert excess <= 1, f"off by {float(excess):.1f} times the bound"


def assert_scores(
    scores: Sequence[Tensor | np.ndarray], logits: np.ndarray, top: int, temperature: float
) -> None:
    """Top logits, top indices and sums agree with the logits (T, N), none of which is NaN."""
    top_logits, top_indices, sums = (np.asarray(part) for part in scores)
    order = [sorted(range(len(row)), key=lambda i: (-row[i], i))[:top] for row in logits.tolist()]
    assert top_indices.tolist() == order
    assert np.array_equal(top_logits, np.take_along_axis(logits, top_indices, 1))
    shifted = (logits - logits.max(1, keepdims=True)).astype(np.float64)
    assert np.allclose(sums, np.exp(shifted / temperature).sum(1), rtol=3e-6)
