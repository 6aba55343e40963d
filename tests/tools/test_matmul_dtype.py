"""The dtype in which this machine multiplies sooner."""

import timeit

import torch

from minispec.tools.models import matmul_dtype


def test_the_other_dtype_is_no_faster() -> None:
    """At another shape than it was chosen by; where both take about as long, either will do."""
    states, weight = torch.randn(128, 1024), torch.randn(768, 1024)

    def seconds(dtype: torch.dtype) -> float:
        left, right = states.to(dtype), weight.to(dtype)
        return min(timeit.repeat(lambda: left @ right.T, number=1, repeat=9)[1:])

    (other,) = {torch.float32, torch.bfloat16} - {matmul_dtype.fastest_dtype()}
    assert seconds(matmul_dtype.fastest_dtype()) < 2 * seconds(other)
