"""A Llama-style model, or a Gemma 3, out of one GGUF file: configuration, tensors, tokenizer.

GGUF is the format of llama.cpp. Weights may be quantised (Q4_1, Q8_0, ...): they are
dequantised here, once, and the model that results is *the* target, in whichever dtype it
then runs. Two traps: the format stores a Llama's query and key rows so that rotary pairs are
neighbours (2j, 2j + 1), where this package, like Hugging Face and like the format itself for
Gemma, pairs (j, j + head_width / 2); and of a Gemma's norms it stores 1 + w already.

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
    """Cuts the file's metadata into some 400,000 slices; those of a plain array are several
    times faster than those of a memory map."""

    def _build_fields(self, offs: int, count: int) -> int:
        self.data = np.asarray(self.data)  # type: ignore[assignment]
        return super()._build_fields(offs, count)


def load(path: Path) -> tuple[Transformer, Tokenizer]:
    """A float32 Transformer and its tokenizer.

    Raises FileError: missing, damaged, not GGUF, an architecture of another name.
    """
    if not path.is_file():
        raise FileError(f"{path} does not exist: a GGUF file was expected")
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
    except NotImplementedError as error:  # a way to quantise that the library cannot undo
        raise FileError(f"{path}: {error}") from None
    except (ValueError, LookupError, TypeError, ArithmeticError, OSError) as error:
        raise FileError(f"{path} is not a GGUF file, or damaged: {error}") from None
    return build_transformer(config, state, str(path)), tokenizer


def _config(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    architecture = metadata["general.architecture"]
    if architecture not in ("llama", "gemma3"):
        raise FileError(
            f"architecture {architecture!r} is not supported, only 'llama' and 'gemma3' are"
        )
    at = architecture + "."
    if metadata.get(at + "rope.scaling.type", "none") != "none" or "rope_freqs.weight" in tensors:
        raise FileError("rope scaling in a GGUF file is not supported: use a folder of safetensors")
    width, heads = metadata[at + "embedding_length"], metadata[at + "attention.head_count"]
    layers = metadata[at + "block_count"]
    head_dim = metadata.get(at + "attention.key_length") or width // heads
    if metadata.get(at + "rope.dimension_count", head_dim) != head_dim:
        raise FileError("rotary positions on a part of each head are not supported")
    more: dict[str, Any] = dict(aux_hidden_state_layer_ids=default_aux_layer_ids(layers))
    if architecture == "gemma3":
        more |= _gemma(metadata, width, layers)
    return ModelConfig(
        vocab_size=len(metadata["tokenizer.ggml.tokens"]),
        hidden_size=width,
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


def _gemma(metadata: Mapping[str, Any], width: int, layers: int) -> dict[str, Any]:
    """What a Gemma has beyond a Llama. The format takes some of it for granted: that every
    sixth layer sees everything, and the base of the others' rope."""
    return dict(
        activation="gelu_tanh",
        embedding_scale=width**0.5,
        query_key_norm=True,
        post_norms=True,
        local_layers=tuple(layer for layer in range(1, layers + 1) if layer % 6),
        sliding_window=metadata["gemma3.attention.sliding_window"],
        # The lowest tap says little that the embedding does not, and makes a larger draft.
        aux_hidden_state_layer_ids=default_aux_layer_ids(layers)[1:],
    )


def _name(name: str, parts: Mapping[str, str]) -> str:
    match name.split("."):
        case ["blk", index, part, "weight"] if part in parts:
            return f"layers.{index}.{parts[part]}.weight"
        case [part, "weight"] if part in _NAMES:
            return f"{_NAMES[part]}.weight"
    raise FileError(f"tensor {name!a} is none that such a model has here")


def _tensor(name: str, tensor: Any, paired: Mapping[str, int]) -> Tensor:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if heads := paired.get(name.split(".")[-2]):
        values = values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2)
        values = values.reshape(-1, values.shape[-1])
    # Copied only where it is still the file's own memory.
    return torch.from_numpy(np.require(values, np.float32, "W"))
