"""A Llama-style model out of one GGUF file: configuration, tensors, tokenizer metadata.

GGUF is the format of llama.cpp. Weights may be quantised (Q4_1, Q8_0, ...): they are
dequantised here, once, and the model that results is *the* target, in whichever dtype it
then runs. One trap: the format stores query and key rows so that rotary pairs are neighbours
(2j, 2j + 1); this package, like Hugging Face, pairs (j, j + head_width / 2).

Knows where a model is in the file, not where the file comes from.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from minispec.checkpoint import check_tensors
from minispec.errors import FileError
from minispec.model import ModelConfig, Rope, Transformer
from minispec.tokenizer import TiktokenTokenizer

_LAYER_NAMES = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.output",
    "ffn_norm": "mlp_norm",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}
_NAMES = {"token_embd": "embedding", "output_norm": "norm", "output": "output"}


def load(path: Path, tap_layers: tuple[int, ...] = ()) -> tuple[Transformer, TiktokenTokenizer]:
    """A float32 Transformer and its tokenizer.

    Raises FileError: missing, damaged, not GGUF, another architecture than ``llama``.
    """
    if not path.is_file():
        raise FileError(f"{path} does not exist: a GGUF file was expected")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        config = _config(metadata, tensors, tap_layers)
        state = {_name(name): _tensor(name, tensors[name], config) for name in tensors}
        tokenizer = TiktokenTokenizer.from_gguf_fields(metadata)
    except FileError as error:
        raise FileError(f"{path}: {error}") from None
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError) as error:
        raise FileError(f"{path} is not a GGUF file, or damaged: {error}") from None
    # Built without memory, then given the file's tensors: nothing is initialised in vain.
    with torch.device("meta"):
        model = Transformer(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    check_tensors(state, shapes, str(path))
    model.load_state_dict(state, assign=True)
    model.rope = Rope(config)  # its tables are no weights: made, not loaded
    return model.eval().requires_grad_(False), tokenizer


def _config(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], tap_layers: tuple[int, ...]
) -> ModelConfig:
    architecture = metadata["general.architecture"]
    if architecture != "llama":
        raise FileError(f"architecture {architecture!r} is not supported, only 'llama' is")
    scaled = metadata.get("llama.rope.scaling.type", "none") != "none"
    if scaled or "rope_freqs.weight" in tensors:
        raise FileError("rope scaling in a GGUF file is not supported: use a folder of safetensors")
    width, heads = metadata["llama.embedding_length"], metadata["llama.attention.head_count"]
    return ModelConfig(
        vocabulary_size=len(metadata["tokenizer.ggml.tokens"]),
        width=width,
        layers=metadata["llama.block_count"],
        heads=heads,
        kv_heads=metadata["llama.attention.head_count_kv"],
        head_width=metadata.get("llama.rope.dimension_count", width // heads),
        mlp_width=metadata["llama.feed_forward_length"],
        context_limit=metadata["llama.context_length"],
        norm_epsilon=metadata["llama.attention.layer_norm_rms_epsilon"],
        rope_base=metadata.get("llama.rope.freq_base", 10_000.0),
        tied_head="output.weight" not in tensors,
        tap_layers=tap_layers,
    )


def _name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem.startswith("blk."):
        _, index, part = stem.split(".")
        return f"layers.{index}.{_LAYER_NAMES[part]}.weight"
    return f"{_NAMES[stem]}.weight"


def _tensor(name: str, tensor: Any, config: ModelConfig) -> Tensor:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads}.get(name.split(".")[-2])
    if heads:
        values = values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2)
        values = values.reshape(-1, values.shape[-1])
    return torch.from_numpy(np.array(values, dtype=np.float32))
