"""A model's linear layers and its embedding over quantised matrices, in place of PyTorch's."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from minispec.models.quantized_matrix import BLOCK, QuantizedMatrix, multiply, quantize


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
    parent, _, leaf = name.removesuffix(".weight").rpartition(".")
    owner = model.get_submodule(parent)
    module = getattr(owner, leaf)
    embeds = isinstance(module, nn.Embedding)
    new = QuantizedEmbedding(matrix) if embeds else QuantizedLinear(matrix, module.bias)
    setattr(owner, leaf, new)


def quantize_linears(model: nn.Module) -> None:
    """Quantises the linear layers of a draft to Q8_0, in place, but for those whose rows are no
    whole number of blocks."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in linears:
        weight = model.get_submodule(name).weight
        if isinstance(weight, Tensor) and weight.shape[1] % BLOCK == 0:
            set_matrix(model, f"{name}.weight", quantize(weight))


def dequantize_linears(model: nn.Module) -> None:
    """Replaces quantised linear layers by float32 ones, for a draft that is trained."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            outputs, inputs = module.matrix.shape
            linear = nn.Linear(inputs, outputs, bias=False, device="meta")
            linear.weight = nn.Parameter(module.matrix[:], requires_grad=False)
            linear.register_parameter("bias", module.bias)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, linear)


def copy_dequantized(draft: Any) -> Any:
    """The draft, or a dequantised copy of it: with matrices that can be trained."""
    if is_quantized(draft):
        draft = copy.deepcopy(draft)
        dequantize_linears(draft)
    return draft


def rows_of(module: nn.Module) -> Tensor | QuantizedMatrix:
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
