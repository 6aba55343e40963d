"""A model's linear layers and its embedding over quantised matrices, in place of PyTorch's."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from minispec.models.quantized_matrix import BLOCK, QuantizedMatrix, Rows, multiply, quantize


class QuantizedLinear(nn.Module):
    """``nn.Linear`` over a quantised matrix (outputs, inputs), with a ``bias`` (outputs,) or
    without."""

    def __init__(self, matrix: QuantizedMatrix, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.matrix, self.bias = matrix, bias

    @property
    def weight(self) -> Tensor:
        """The rows in float32 (outputs, inputs)."""
        return self.matrix.weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        products = multiply(x, self.matrix)
        return products if self.bias is None else products + self.bias


class QuantizedEmbedding(nn.Module):
    """``nn.Embedding`` over a quantised matrix (V, D): only rows that are asked for are read."""

    def __init__(self, matrix: QuantizedMatrix) -> None:
        super().__init__()
        self.matrix = matrix

    @property
    def weight(self) -> Tensor:
        """The rows in float32 (V, D)."""
        return self.matrix.weight

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) -> (..., D)."""
        return self.matrix[ids]


def set_matrix(model: nn.Module, name: str, matrix: QuantizedMatrix) -> None:
    """Replaces the weight called ``name`` of a linear layer or embedding by a matrix."""
    path = name.removesuffix(".weight")
    module: Any = model.get_submodule(path)
    embeds = isinstance(module, nn.Embedding)
    new = QuantizedEmbedding(matrix) if embeds else QuantizedLinear(matrix, module.bias)
    model.set_submodule(path, new)


def quantize_linears(model: nn.Module) -> None:
    """Quantises the linear layers of a draft to Q8_0, in place, but for those whose rows are no
    whole number of blocks."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module.in_features % BLOCK == 0:
            set_matrix(model, f"{name}.weight", quantize(module.weight))


def dequantize_linears(model: nn.Module) -> None:
    """Replaces quantised linear layers by float32 ones, for a draft that is trained."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            outputs, inputs = module.matrix.shape
            linear = nn.Linear(inputs, outputs, bias=False, device="meta")
            linear.weight = nn.Parameter(module.matrix[:], requires_grad=False)
            linear.register_parameter("bias", module.bias)
            model.set_submodule(name, linear)


def copy_dequantized(module: Any) -> Any:
    """A draft or layer, or a dequantised copy of it: with matrices that can be trained."""
    if is_quantized(module):
        module = copy.deepcopy(module)
        dequantize_linears(module)
    return module


def rows_of(module: nn.Module) -> Rows:
    """The rows (N, D) of a linear layer or embedding, quantised or not."""
    if isinstance(module, QuantizedLinear | QuantizedEmbedding):
        return module.matrix
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def is_quantized(model: nn.Module) -> bool:
    """Whether any of its matrices is quantised."""
    kinds = QuantizedLinear | QuantizedEmbedding
    return any(isinstance(module, kinds) for module in model.modules())
