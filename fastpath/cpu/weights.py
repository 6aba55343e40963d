"""A model's weights as the kernels read them (NumPy, CPU).

Weights are stacked once, so that a whole pass is one call. The reference's own parameters become
views of the stacks, so nothing is stored twice. Quantised matrices are laid out in panels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fastpath.cpu.block_formats import CODES, read_rows
from fastpath.cpu.head import CpuHead
from fastpath.cpu.panels import Panels, build_panels
from fastpath.cpu.rows import allocate_rows
from minispec.learning.lora import LoraLinear
from minispec.models.eagle_draft import EagleDraft
from minispec.models.int8 import quantize_rows, row_scales
from minispec.models.quantized_matrix import QuantizedMatrix, Rows
from minispec.models.quantized_modules import QuantizedLinear, rows_of
from minispec.models.transformer import MLP, Attention, Layer, Transformer

Stacks = tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]  # weights; scales of their rows


def build_head(rows: Rows) -> CpuHead:
    """A head over a copy of rows (V, D), float32, bfloat16 or quantised."""
    if isinstance(rows, QuantizedMatrix):
        return CpuHead(*_build_matrix([rows]), rows)
    copy = allocate_rows(rows.shape, rows.dtype).copy_(rows)
    return CpuHead(*_to_kernel_rows(copy, False))


def build_model_head(model: Transformer) -> CpuHead:
    """The head of a model, whose rows become a view of the head's."""
    module = model.embedding if model.config.tie_word_embeddings else model.output
    rows = rows_of(module)
    if isinstance(rows, QuantizedMatrix):
        return build_head(rows)
    module.weight.data = allocate_rows(rows.shape, rows.dtype).copy_(rows)
    return CpuHead(*_to_kernel_rows(module.weight.detach(), model.config.int8_rows))


def choose_embed(rows: Rows) -> Callable[[Tensor], Tensor]:
    """What reads rows of an embedding (V, D): ids (T,) -> (T, D) float32."""
    if isinstance(rows, Tensor):
        return lambda ids: rows[ids].float()
    kind, columns = CODES[rows.name], rows.shape[1]

    def embed(ids: Tensor) -> Tensor:
        out = torch.empty(len(ids), columns)
        read_rows(kind, rows.blocks, rows.order[ids.numpy()], columns, out.numpy())
        return out

    return embed


def build_stacks(layers: Sequence[Layer], int8: bool) -> Stacks:
    """The four stacks of a target, QKV, output, gate and up, down, as the kernels read them."""
    by_kind = zip(*(list_matrices(layer.attention, layer.mlp) for layer in layers), strict=True)
    stacks = [_build_stack(matrices, int8) for matrices in by_kind]
    rows, scales = zip(*stacks, strict=True)
    return rows, scales


def _build_stack(
    layers: Sequence[Sequence[nn.Linear]], int8: bool
) -> tuple[np.ndarray, np.ndarray]:
    """One projection of each layer, or several that read the same states. Weights that are not
    quantised are stacked as (L, N, D), and become views of the stack."""
    if all(isinstance(matrix, QuantizedLinear) for matrix in layers[0]):
        return build_panels(list(map(_get_quantized, layers)))
    return _to_kernel_rows(_stack_projections(layers), int8)


def list_matrices(attention: Attention, mlp: MLP) -> list[list[nn.Linear]]:
    """The projections of a layer, together those that read the same states."""
    return [
        [attention.query, attention.key, attention.value],
        [attention.output],
        [mlp.gate, mlp.up],
        [mlp.down],
    ]


def _stack_projections(layers: Sequence[Sequence[nn.Linear]]) -> Tensor:
    """Stacks the weights of some projections of each layer into (L, N, D); the projections become
    views of the stack."""
    first = [projection.weight for projection in layers[0]]
    shape = len(layers), sum(map(len, first)), first[0].shape[1]
    stack = allocate_rows(shape, first[0].dtype)
    for rows, layer in zip(stack, layers, strict=True):
        for part, projection in zip(rows.split([len(p.weight) for p in layer]), layer, strict=True):
            part.copy_(projection.weight.detach())
            projection.weight.data = part
    return stack


def get_norm_weight(norm: nn.Module) -> np.ndarray:
    """The weight of a norm in float32; empty for an identity."""
    weight = getattr(norm, "weight", torch.empty(0))
    return weight.detach().float().numpy()


def list_layer_norms(layer: Layer | EagleDraft) -> tuple[np.ndarray, ...]:
    """The norms of a layer, and the biases of its attention, in the order that ``steps.run_layer``
    takes."""
    outer = layer.mlp_norm, layer.attention_post_norm, layer.mlp_post_norm
    inner = layer.attention.query_norm, layer.attention.key_norm
    projections, output, *_ = list_matrices(layer.attention, layer.mlp)
    biases = map(_concatenate_biases, (projections, output))
    return (*map(get_norm_weight, (*outer, *inner)), *biases)


def _concatenate_biases(matrices: Sequence[nn.Linear | LoraLinear]) -> np.ndarray:
    """The biases of projections, one after another, in float32; empty if they have none."""
    linear = [m.base if isinstance(m, LoraLinear) else m for m in matrices]
    biases = [m.bias.detach().float() for m in linear if m.bias is not None]
    return torch.cat([torch.empty(0), *biases]).numpy()


def concatenate(matrices: Sequence[nn.Linear | LoraLinear]) -> tuple[np.ndarray, np.ndarray]:
    """A draft's projections that read the same states, concatenated, in the form that the kernels
    read. With adapters they stay float32: updates are smaller than bfloat16 resolves."""
    if all(isinstance(matrix, QuantizedLinear) for matrix in matrices):
        return _build_matrix(_get_quantized(matrices))
    stacked = torch.cat(
        [m.merged_weight if isinstance(m, LoraLinear) else m.weight for m in matrices]
    ).detach()
    rows = allocate_rows(stacked.shape, stacked.dtype).copy_(stacked)
    return _to_kernel_rows(rows if has_adapters(matrices) else _to_exact_bfloat16(rows), False)


def has_adapters(matrices: Sequence[nn.Linear | LoraLinear]) -> bool:
    return any(isinstance(matrix, LoraLinear) for matrix in matrices)


def _get_quantized(modules: Sequence[nn.Module]) -> list[QuantizedMatrix]:
    return [module.matrix for module in modules if isinstance(module, QuantizedLinear)]


def _build_matrix(matrices: Sequence[QuantizedMatrix]) -> Panels:
    """Quantised matrices that read the same states, one after the other, as one."""
    data, segments = build_panels([matrices])
    return data, segments[0]


def _to_kernel_rows(weight: Tensor, int8: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights (..., N, D) in the form that the kernels read, and a scale for each row (..., N)."""
    if int8:
        return quantize_rows(weight).numpy(), row_scales(weight).numpy()
    bits = weight.view(torch.uint16) if weight.dtype == torch.bfloat16 else weight
    return bits.numpy(), np.ones(weight.shape[:-1], np.float32)


def _to_exact_bfloat16(weight: Tensor) -> Tensor:
    """float32 weights in bfloat16 where that is lossless: as int16, which tells the kernels to
    keep states in float32. Other weights unchanged."""
    if weight.dtype != torch.float32:
        return weight
    short = allocate_rows(weight.shape, torch.bfloat16).copy_(weight)
    return short.view(torch.int16) if torch.equal(short.float(), weight) else weight
