"""int8 quantization of matrices: each row is rounded to a grid of 255 values with its own scale.

A model in ``int8`` is one whose rows lie on such grids. The reference holds the rounded rows as
floating-point numbers. A fast path holds the integers, and multiplies with the row's scale
afterwards: the same model, read with a quarter of the memory traffic. Knows nothing of models.
"""

import torch
from torch import Tensor


def row_scales(rows: Tensor) -> Tensor:
    """The scale of each row (..., N, D) -> (..., N): its largest absolute number over 127, or 1
    for a row of zeros."""
    largest = rows.abs().amax(dim=-1)  # (..., N)
    return torch.where(largest > 0, largest / 127, 1)


def quantize_rows(rows: Tensor) -> Tensor:
    """Rows (..., N, D) -> integers -127..127, int8 (..., N, D), in units of ``row_scales``."""
    return (rows / row_scales(rows)[..., None]).round().to(torch.int8)


def round_rows(rows: Tensor) -> Tensor:
    """Rows (..., N, D) -> the nearest values on their grids (..., N, D), in their own dtype."""
    return quantize_rows(rows).to(rows.dtype) * row_scales(rows)[..., None]
