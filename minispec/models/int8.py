"""Rows of eight-bit numbers: each row of a matrix is rounded to 255 steps of its own size.

A model in ``int8`` is one whose rows lie on such a grid. The reference holds the rounded rows
as float32 numbers, a fast path holds the steps themselves and multiplies with the row's scale
afterwards: the same model, read at a quarter of the traffic. Knows nothing of models.
"""

import torch
from torch import Tensor


def scales(rows: Tensor) -> Tensor:
    """The size of a step in each row (..., N, D) -> (..., N): the largest number is 127 steps.
    A row of nothing but zeros has steps of 1."""
    largest = rows.abs().amax(dim=-1)
    return torch.where(largest > 0, largest / 127, 1)


def steps(rows: Tensor) -> Tensor:
    """The nearest whole number of steps of each number (..., N, D) -> int8 (..., N, D)."""
    return (rows / scales(rows)[..., None]).round().to(torch.int8)


def rounded(rows: Tensor) -> Tensor:
    """Rows (..., N, D) -> the same on their grids (..., N, D), in their own dtype."""
    return steps(rows).to(rows.dtype) * scales(rows)[..., None]
