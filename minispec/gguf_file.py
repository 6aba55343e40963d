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

from minispec.errors import FileError
from minispec.model import ModelConfig, Transformer, assembled, default_taps
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


class _Reader(gguf.GGUFReader):
    """Cuts the file's metadata into some 400,000 slices; those of a plain array are several
    times faster than those of a memory map."""

    def _build_fields(self, offs: int, count: int) -> int:
        self.data = np.asarray(self.data)  # type: ignore[assignment]
        return super()._build_fields(offs, count)


def load(path: Path) -> tuple[Transformer, TiktokenTokenizer]:
    """A float32 Transformer and its tokenizer.

    Raises FileError: missing, damaged, not GGUF, another architecture than ``llama``.
    """
    if not path.is_file():
        raise FileError(f"{path} does not exist: a GGUF file was expected")
    try:
        reader = _Reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        config = _config(metadata, tensors)
        state = {_name(name): _tensor(name, tensors[name], config) for name in tensors}
        tokenizer = TiktokenTokenizer.from_gguf_fields(metadata)
    except FileError as error:
        raise FileError(f"{path}: {error}") from None
    except NotImplementedError as error:  # a way to quantise that the library cannot undo
        raise FileError(f"{path}: {error}") from None
    except (ValueError, LookupError, TypeError, ArithmeticError, OSError) as error:
        raise FileError(f"{path} is not a GGUF file, or damaged: {error}") from None
    return assembled(config, state, str(path)), tokenizer


def _config(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    architecture = metadata["general.architecture"]
    if architecture != "llama":
        raise FileError(f"architecture {architecture!r} is not supported, only 'llama' is")
    scaled = metadata.get("llama.rope.scaling.type", "none") != "none"
    if scaled or "rope_freqs.weight" in tensors:
        raise FileError("rope scaling in a GGUF file is not supported: use a folder of safetensors")
    width, heads = metadata["llama.embedding_length"], metadata["llama.attention.head_count"]
    layers = metadata["llama.block_count"]
    head_width = metadata.get("llama.attention.key_length") or width // heads
    if metadata.get("llama.rope.dimension_count", head_width) != head_width:
        raise FileError("rotary positions on a part of each head are not supported")
    return ModelConfig(
        vocabulary_size=len(metadata["tokenizer.ggml.tokens"]),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=metadata.get("llama.attention.head_count_kv", heads),
        head_width=head_width,
        mlp_width=metadata["llama.feed_forward_length"],
        context_limit=metadata["llama.context_length"],
        norm_epsilon=metadata["llama.attention.layer_norm_rms_epsilon"],
        rope_base=metadata.get("llama.rope.freq_base", 10_000.0),
        tied_head="output.weight" not in tensors,
        tap_layers=default_taps(layers),
    )


def _name(name: str) -> str:
    match name.split("."):
        case ["blk", index, part, "weight"] if part in _LAYER_NAMES:
            return f"layers.{index}.{_LAYER_NAMES[part]}.weight"
        case [part, "weight"] if part in _NAMES:
            return f"{_NAMES[part]}.weight"
    raise FileError(f"tensor {name!a} is none that a Llama model has here")


def _tensor(name: str, tensor: Any, config: ModelConfig) -> Tensor:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads}.get(name.split(".")[-2])
    if heads:
        values = values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2)
        values = values.reshape(-1, values.shape[-1])
    # Copied only where it is still the file's own memory.
    return torch.from_numpy(np.require(values, np.float32, "W"))
