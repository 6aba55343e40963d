"""Small Llamas in GGUF files, written as llama.cpp's converter writes them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from helpers.tiny_model import gguf_writer
from minispec.models.transformer import Transformer
from minispec.tools.models import gguf_file

TOKENS = [*sorted(ByteLevel.alphabet()), "ab", "<|im_end|>"]
_NAMES = gguf_file._NAMES | gguf_file._LAYER_NAMES | gguf_file._NORM_NAMES
_FILE_NAMES = {new: old for old, new in _NAMES.items()}


def write_gguf(
    path: Path,
    model: Transformer,
    architecture: str = "llama",
    quantised: gguf.GGMLQuantizationType | None = None,
    extra: dict[str, np.ndarray] | None = None,
    tensors_in_a_part: int = 0,
    **fields: Any,
) -> None:
    """Writes a model as llama.cpp's converter does: names, order of rows, metadata; in several
    parts if each is to have at most some ``tensors_in_a_part``."""
    config = model.config
    fields = {"rope.dimension_count": config.head_dim} | fields
    writer = gguf_writer(path, architecture, config, tensors_in_a_part, **fields)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * 257 + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(257)
    tensors = {gguf_name(name): weight.numpy() for name, weight in model.state_dict().items()}
    for name, values in (tensors | (extra or {})).items():
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(
            name.split(".")[-2]
        )
        if (
            heads and values.ndim == 2 and architecture in ("llama", "smollm3")
        ):  # rotary pairs side by side
            values = values.reshape(heads, 2, -1, values.shape[-1]).swapaxes(1, 2)
            values = values.reshape(-1, values.shape[-1])
        if quantised is not None and values.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    if name.startswith("layers."):
        _, index, part = name.split(".", 2)
        part, _, kind = part.rpartition(".")
        return f"blk.{index}.{_FILE_NAMES[part]}.{kind}"
    return f"{_FILE_NAMES[name.removesuffix('.weight')]}.weight"
