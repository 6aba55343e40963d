"""Quantised matrices of every format, and toy models of them."""

import gguf
import numpy as np
import torch

from helpers.toys import toy_transformer
from minispec.models.quantized_matrix import FORMATS, QuantizedMatrix, quantize
from minispec.models.quantized_modules import quantize_linears, set_matrix
from minispec.models.transformer import Transformer

WIDE = dict(
    hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=96, vocab_size=130,
)  # fmt: skip


def draw_matrix(name: str, rows: int, columns: int, seed: int = 0) -> QuantizedMatrix:
    """Random blocks of a format, with scales that are small finite numbers of either sign."""
    rng = np.random.default_rng(seed)
    numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (rows, columns // numbers, size), np.uint8)
    place = FORMATS[name]
    count = (place.stop - place.start) // 2
    scales = (rng.standard_normal((rows, columns // numbers, count)) / 16).astype(np.float16)
    blocks[..., place] = scales.view(np.uint8)
    return QuantizedMatrix(name, blocks.reshape(rows, -1), rng.permutation(rows))


def quantized_transformer(seed: int = 0, **changes: object) -> Transformer:
    """A toy target whose matrices have several formats: two in one product, too."""
    model = toy_transformer(seed, **(WIDE | changes)).float()
    quantize_linears(model)
    with torch.no_grad():
        for index, layer in enumerate(model.layers):
            for part, name in (("attention.query", "Q4_1"), ("mlp.down", "Q5_0")):
                rows = layer.get_submodule(part).weight
                set_matrix(model, f"layers.{index}.{part}.weight", quantize(rows, name))
        set_matrix(model, "embedding.weight", quantize(model.embedding.weight))
    return model
