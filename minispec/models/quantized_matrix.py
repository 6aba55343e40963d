"""Matrices whose rows are quantised blocks, as GGUF files store them, and their products.

Each block of 32 numbers (256 in the K formats) has a small whole number for each of its numbers,
and scales. A product with states keeps the blocks as they are and rounds the *states* to whole
numbers from -127 to 127 in blocks of 32, each with a scale of its own, as llama.cpp does: so a fast
path can multiply whole numbers, and adds up in float32 what the blocks' scales make of them. Here
the blocks are dequantised and the rounded states multiplied in float32: the same numbers, but for
the order of the sums.

Knows nothing of files and of models.
"""

import functools
from typing import Any

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32  # numbers of a state that share a scale
SMALLEST = 2.0**-100  # of which 127 / x is finite
# The formats that are multiplied as they are, by their names in GGUF, and the bytes of a block in
# which its scales lie, half-precision numbers.
FORMATS = {
    "Q4_0": slice(0, 2), "Q4_1": slice(0, 4), "Q5_0": slice(0, 2), "Q5_1": slice(0, 4),
    "Q8_0": slice(0, 2), "Q4_K": slice(0, 4), "Q5_K": slice(0, 4), "Q6_K": slice(208, 210),
}  # fmt: skip


class QuantizedMatrix:
    """Rows (N, D) of one format. ``blocks`` (N, bytes of a row) may be mapped from a file, and is
    never changed; ``order`` (N,) int64 says which of its rows is which of the matrix, None that
    they are in order. ``matrix[ids]`` is a float32 tensor of some rows, as of a tensor."""

    dtype, device = torch.float32, torch.device("cpu")  # of rows that are read

    def __init__(self, name: str, blocks: np.ndarray, order: np.ndarray | None = None) -> None:
        self.name, self.blocks = name, blocks
        self.order = np.arange(len(blocks)) if order is None else order
        self._kind = gguf.GGMLQuantizationType[name]
        numbers, size = gguf.GGML_QUANT_SIZES[self._kind]
        self.shape = torch.Size((len(self.order), blocks.shape[1] // size * numbers))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, ids: Tensor | slice) -> Tensor:
        """Ids (...) or a slice -> their rows (..., D), float32."""
        index = ids if isinstance(ids, slice) else ids.numpy()
        rows = self.order[index]
        values = gguf.quants.dequantize(self.blocks[rows.reshape(-1)], self._kind)
        return torch.from_numpy(values).view(*rows.shape, self.shape[1])

    def __deepcopy__(self, memo: Any) -> "QuantizedMatrix":
        return self  # never changed, so copies of a model share it

    def select(self, ids: Tensor) -> "QuantizedMatrix":
        """The matrix of some rows, ids (K,)."""
        return QuantizedMatrix(self.name, self.blocks, self.order[ids.numpy()])

    def is_finite(self) -> bool:
        """Whether all numbers are finite: those whose exponent has all bits set are not."""
        return not ((self.scales().view(np.uint16) & 0x7C00) == 0x7C00).any()

    def scales(self) -> np.ndarray:
        """The scales of all blocks (n,), float16, in no order that means anything."""
        _, size = gguf.GGML_QUANT_SIZES[self._kind]
        blocks = self.blocks.reshape(len(self.blocks), -1, size)[..., FORMATS[self.name]]
        return np.ascontiguousarray(blocks).view(np.float16).reshape(-1)

    @functools.cached_property
    def weight(self) -> Tensor:
        """All rows (N, D) in float32, kept from the first use on: what the reference multiplies."""
        return self[:]


Rows = Tensor | QuantizedMatrix  # of an LM head or an embedding (V, D)


def quantize(rows: Tensor, name: str = "Q8_0") -> QuantizedMatrix:
    """Rows (N, D) in a format that the package gguf can make; D must be a multiple of 32."""
    kind = gguf.GGMLQuantizationType[name]
    return QuantizedMatrix(name, gguf.quants.quantize(rows.detach().float().numpy(), kind))


def round_states(states: Tensor) -> Tensor:
    """States (..., D) float32, D a multiple of 32 -> the nearest multiples of each block's scale,
    its largest absolute number over 127 (..., D); halves are rounded to even. A block without a
    number of at least ``SMALLEST`` becomes zero."""
    blocks = states.unflatten(-1, (-1, BLOCK))  # (..., D / 32, 32)
    largest = blocks.abs().amax(-1, keepdim=True)  # (..., D / 32, 1)
    scales = largest / 127
    inverse = torch.where(largest < SMALLEST, 0, 1 / scales)
    return ((blocks * inverse).round() * scales).flatten(-2)


def multiply(states: Tensor, rows: Rows) -> Tensor:
    """States (..., D), rows (N, D) -> products with each row (..., N); those of a quantised matrix
    are taken of rounded states."""
    if isinstance(rows, QuantizedMatrix):
        return F.linear(round_states(states), rows.weight)
    return F.linear(states, rows)
