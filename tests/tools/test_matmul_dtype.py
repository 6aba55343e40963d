"""The dtype in which this machine multiplies matrices faster."""

import timeit

import torch

from minispec.tools.models import matmul_dtype


def test_fastest_dtype_is_not_slower_than_the_other() -> None:
    """Measured at another shape than the choice; if both take about as long, either is right."""
    states, weight = torch.randn(128, 1024), torch.randn(768, 1024)

    def seconds(dtype: torch.dtype) -> float:
        left, right = states.to(dtype), weight.to(dtype)
        return min(timeit.repeat(lambda: left @ right.T, number=1, repeat=9)[1:])

    (other,) = {torch.float32, torch.bfloat16} - {matmul_dtype.fastest_dtype()}
    assert seconds(matmul_dtype.fastest_dtype()) < 2 * seconds(other)
