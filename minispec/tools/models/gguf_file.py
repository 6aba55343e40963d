"""Reads a model from a GGUF file: configuration, weights and tokenizer.

GGUF is the file format of llama.cpp. Quantised weights (Q4_1, Q8_0, ...) are dequantised when they
are loaded, and the result is *the* target, whatever dtype it then runs in; or they are kept as they
are (``minispec.models.quantized_matrix``). Two traps: for Llama and SmolLM3 the format permutes
query and key rows so that rotary pairs are adjacent (2j, 2j + 1), while this package, Hugging Face,
and GGUF itself for the others pair (j, j + head_dim / 2); and for Gemma it stores the norm weights
as 1 + w.

A model may be split into several files; any of them opens it.

Knows nothing of where the file comes from.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import gguf
import numpy as np
import torch
from msgspec import Meta, Struct
from torch import Tensor

from minispec.errors import FileError
from minispec.io.gguf_header import GGUFHeader, read_header
from minispec.io.model_state import StoredTensor, build_transformer
from minispec.io.schema import Index, convert
from minispec.models.quantized_matrix import FORMATS, QuantizedMatrix
from minispec.models.transformer import Transformer
from minispec.tokenizer import Tokenizer
from minispec.tools.models import gguf_config
from minispec.tools.models.gguf_tokenizer import from_gguf_fields

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
_NORM_NAMES = {"attn_q_norm": "attention.query_norm", "attn_k_norm": "attention.key_norm"}
_POST_NORM_NAMES = {
    "post_attention_norm": "attention_post_norm",
    "post_ffw_norm": "mlp_post_norm",
}
_NAMES = {"token_embd": "embedding", "output_norm": "norm", "output": "output"}
_ROPE_FACTORS = "rope_freqs.weight"
_PAIRED = ("llama", "smollm3")  # architectures whose rotary pairs are adjacent
_PART_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


class _Split(
    Struct, rename={"number": "split.no", "count": "split.count", "tensors": "split.tensors.count"}
):
    """Which of how many parts a file is, numbered from 0, and the tensors of all parts."""

    number: Annotated[int, Meta(ge=0, lt=99_999)] = 0
    count: Annotated[int, Meta(ge=0, lt=100_000)] = 0
    tensors: Index | None = None


def load(path: Path, quantized: bool = False) -> tuple[Transformer, Tokenizer]:
    """The model and its tokenizer, from a GGUF file or any one of its parts: in float32, or with
    matrices as they are in the file if ``quantized``.

    Raises FileError for a file that is missing, damaged or not GGUF, and for an architecture or a
    setting that is not supported.
    """
    parts = _read_parts(path)
    metadata = parts[0].metadata
    kind = metadata.get("general.architecture")
    names = _LAYER_NAMES | (_NORM_NAMES if kind in ("gemma3", "qwen3") else {})
    names |= _POST_NORM_NAMES if kind == "gemma3" else {}
    holders = {name: part for part in parts for name in part.tensors}
    try:
        factors = None
        if _ROPE_FACTORS in holders and kind == "llama":
            factors = _read_rope_factors(holders.pop(_ROPE_FACTORS))
        config = gguf_config.read_config(
            metadata, tied="output.weight" not in holders, rope_factors=factors
        )
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        paired = heads if kind in _PAIRED else {}
        stored = {
            _our_name(name, names): StoredTensor(
                str(part.path),
                name,
                part.tensors[name].shape,
                partial(_read, part, name, paired),
                partial(_read_matrix, part, name, paired)
                if quantized and len(part.tensors[name].shape) == 2
                else None,
            )
            for name, part in holders.items()
        }
        tokenizer = from_gguf_fields(metadata)
    except FileError as error:
        raise FileError(f"{path}: {error}") from None
    theirs = {ours: name for name, ours in (_NAMES | names).items()}
    return build_transformer(config, stored, str(path), partial(_their_name, theirs)), tokenizer


def _read_parts(path: Path) -> list[GGUFHeader]:
    """The headers of all parts of a model, in order; ``path`` is any of them."""
    header = read_header(path)
    split = convert(header.metadata, _Split, str(path))
    if split.count < 2:
        return [header]
    number, count = split.number + 1, split.count
    name = _PART_NAME.fullmatch(path.name)
    if name is None or (int(name[2]), int(name[3])) != (number, count):
        raise FileError(
            f"{path} is part {number} of {count}, so its name must end in "
            f"-{number:05}-of-{count:05}.gguf: rename it as it was, beside the other parts"
        )
    headers = []
    for i in range(count):
        part = path.with_name(f"{name[1]}-{i + 1:05}-of-{count:05}.gguf")
        if not part.exists():
            raise FileError(f"{part} is missing: {path.name} is part {number} of {count}")
        headers.append(header if part == path else read_header(part))
        found = convert(headers[-1].metadata, _Split, str(part))
        if (found.number, found.count) != (i, count):
            raise FileError(
                f"{part} is part {found.number + 1} of {found.count}, expected part {i + 1} of "
                f"{count}: it belongs to another model"
            )
        if again := {n for h in headers[:-1] for n in h.tensors} & headers[-1].tensors.keys():
            raise FileError(f"{part}: tensor {min(again)!a} is in an earlier part too")
    total = sum(len(header.tensors) for header in headers)
    expected = convert(headers[0].metadata, _Split, str(path)).tensors
    if expected not in (None, total):
        raise FileError(f"{path}: its {count} parts hold {total} tensors, expected {expected}")
    return headers


def _read_rope_factors(part: GGUFHeader) -> list[float]:
    shape = part.tensors[_ROPE_FACTORS].shape
    if len(shape) != 1 or shape[0] > 2**15:
        raise FileError(f"{_ROPE_FACTORS} has shape {shape}, expected half the size of a head")
    return _read(part, _ROPE_FACTORS, {}).tolist()


def _our_name(name: str, parts: Mapping[str, str]) -> str:
    match name.split("."):
        case ["blk", index, part, "weight" | "bias" as kind] if part in parts:
            if re.fullmatch(r"0|[1-9]\d*", index):
                return f"layers.{index}.{parts[part]}.{kind}"
        case [part, "weight"] if part in _NAMES:
            return f"{_NAMES[part]}.weight"
    raise FileError(f"unexpected tensor {name!a}: no such weight in this architecture")


def _their_name(theirs: Mapping[str, str], name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in theirs:
        return f"{theirs[stem]}.{kind}"
    _, index, part = stem.split(".", 2)
    return f"blk.{index}.{theirs[part]}.{kind}"


def _read_matrix(part: GGUFHeader, name: str, paired: Mapping[str, int]) -> QuantizedMatrix:
    """A matrix as it is in the file, mapped. Raises FileError for a quantisation that is not
    multiplied as it is."""
    entry = part.tensors[name]
    if entry.kind.name not in FORMATS:
        raise FileError(
            f"{part.path}: {name} is of type {entry.kind.name}, which dtype gguf does not multiply "
            f"as it is (but {', '.join(FORMATS)}): use float32, bfloat16 or int8"
        )
    order = _find_order(name, entry.shape[0], paired)
    return QuantizedMatrix(entry.kind.name, part.read_bytes(name), order)


def _find_order(name: str, rows: int, paired: Mapping[str, int]) -> np.ndarray | None:
    """Which row of the file is which of ours, where rotary pairs are adjacent; None where no row
    moves. ``paired``: the heads of the tensors that have such pairs."""
    if heads := paired.get(name.split(".")[-2]):
        return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
    return None


def _read(part: GGUFHeader, name: str, paired: Mapping[str, int]) -> Tensor:
    """A tensor in float32. Raises FileError for a quantisation that is not supported."""
    try:
        values: Any = gguf.quants.dequantize(part.read_bytes(name), part.tensors[name].kind)
    except NotImplementedError:
        raise FileError(
            f"{part.path}: {name} is of type {part.tensors[name].kind.name}, which is not "
            "supported: convert it to F16 or Q8_0, or to another type that the package gguf "
            "dequantises"
        ) from None
    if (order := _find_order(name, len(values), paired)) is not None:
        values = values[order]
    # Copies only what still points into the file.
    return torch.from_numpy(np.require(values, np.float32, "W"))
