"""Reads a Llama or Gemma 3 model from a GGUF file: configuration, weights and tokenizer.

GGUF is the file format of llama.cpp. Quantised weights (Q4_1, Q8_0, ...) are dequantised when they
are loaded, and the result is *the* target, whatever dtype it then runs in. Two traps: for Llama the
format permutes query and key rows so that rotary pairs are adjacent (2j, 2j + 1), while this
package, Hugging Face, and GGUF itself for Gemma pair (j, j + head_dim / 2); and for Gemma it stores
the norm weights as 1 + w.

Knows nothing of where the file comes from.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from minispec.errors import FileError
from minispec.io.model_state import build_transformer
from minispec.models.transformer import (
    ModelConfig,
    Transformer,
    default_aux_layer_ids,
)
from minispec.tools.models import tokenizer_files
from minispec.types import Tokenizer

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
_GEMMA_NAMES = {
    "attn_q_norm": "attention.query_norm",
    "attn_k_norm": "attention.key_norm",
    "post_attention_norm": "attention_post_norm",
    "post_ffw_norm": "mlp_post_norm",
}
_NAMES = {"token_embd": "embedding", "output_norm": "norm", "output": "output"}


class _Reader(gguf.GGUFReader):
    """Reads the metadata from a plain array: it takes some 400,000 slices of the file, which are
    several times slower on a memory map."""

    def _build_fields(self, offs: int, count: int) -> int:
        self.data = np.asarray(self.data)  # type: ignore[assignment]
        return super()._build_fields(offs, count)


def load(path: Path) -> tuple[Transformer, Tokenizer]:
    """The float32 model and its tokenizer.

    Raises FileError for a file that is missing, damaged or not GGUF, and for an architecture or a
    setting that is not supported.
    """
    if not path.is_file():
        raise FileError(f"{path} does not exist: expected a GGUF file")
    try:
        reader = _Reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        config = _config(metadata, tensors)
        gemma = metadata["general.architecture"] == "gemma3"
        names = _LAYER_NAMES | (_GEMMA_NAMES if gemma else {})
        paired = (
            {}
            if gemma
            else {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        )
        state = {_name(name, names): _tensor(name, tensors[name], paired) for name in tensors}
        tokenizer = tokenizer_files.from_gguf_fields(metadata)
    except FileError as error:
        raise FileError(f"{path}: {error}") from None
    except NotImplementedError as error:  # a quantisation that the library cannot dequantise
        raise FileError(f"{path}: {error}") from None
    except (ValueError, LookupError, TypeError, ArithmeticError, OSError) as error:
        raise FileError(f"{path} is not a GGUF file or is damaged: {error}") from None
    return build_transformer(config, state, str(path)), tokenizer


def _config(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    architecture = metadata["general.architecture"]
    if architecture not in ("llama", "gemma3"):
        raise FileError(
            f"architecture {architecture!r} is not supported: must be 'llama' or 'gemma3'"
        )
    at = architecture + "."
    if metadata.get(at + "rope.scaling.type", "none") != "none" or "rope_freqs.weight" in tensors:
        raise FileError("rope scaling in a GGUF file is not supported: use a folder of safetensors")
    hidden_size, heads = metadata[at + "embedding_length"], metadata[at + "attention.head_count"]
    layers = metadata[at + "block_count"]
    head_dim = metadata.get(at + "attention.key_length") or hidden_size // heads
    if metadata.get(at + "rope.dimension_count", head_dim) != head_dim:
        raise FileError("rotary embedding of a part of each head is not supported")
    more: dict[str, Any] = dict(aux_hidden_state_layer_ids=default_aux_layer_ids(layers))
    if architecture == "gemma3":
        more |= _gemma(metadata, hidden_size, layers)
    return ModelConfig(
        vocab_size=len(metadata["tokenizer.ggml.tokens"]),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=metadata.get(at + "attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=metadata[at + "feed_forward_length"],
        context_limit=metadata[at + "context_length"],
        rms_norm_eps=metadata[at + "attention.layer_norm_rms_epsilon"],
        rope_theta=metadata.get(at + "rope.freq_base", 10_000.0),
        tie_word_embeddings="output.weight" not in tensors,
        **more,
    )


def _gemma(metadata: Mapping[str, Any], hidden_size: int, layers: int) -> dict[str, Any]:
    """The settings that a Gemma has and a Llama does not. Two are fixed by the architecture and
    not in the file: every sixth layer attends globally, and the rope base of the local layers."""
    return dict(
        activation="gelu_tanh",
        embedding_scale=hidden_size**0.5,
        query_key_norm=True,
        post_norms=True,
        local_layers=tuple(layer for layer in range(1, layers + 1) if layer % 6),
        sliding_window=metadata["gemma3.attention.sliding_window"],
        # The low layer adds little to the embedding, and would make the draft larger.
        aux_hidden_state_layer_ids=default_aux_layer_ids(layers)[1:],
    )


def _name(name: str, parts: Mapping[str, str]) -> str:
    match name.split("."):
        case ["blk", index, part, "weight"] if part in parts:
            return f"layers.{index}.{parts[part]}.weight"
        case [part, "weight"] if part in _NAMES:
            return f"{_NAMES[part]}.weight"
    raise FileError(f"unexpected tensor {name!a}: no such weight in this architecture")


def _tensor(name: str, tensor: Any, paired: Mapping[str, int]) -> Tensor:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if heads := paired.get(name.split(".")[-2]):
        values = values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2)
        values = values.reshape(-1, values.shape[-1])
    # Copies only what still points into the file.
    return torch.from_numpy(np.require(values, np.float32, "W"))
