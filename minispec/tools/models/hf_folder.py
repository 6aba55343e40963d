"""Reads a model of ``hf_families`` from a folder in Hugging Face layout.

Such a folder holds ``config.json``, the weights in ``model.safetensors`` or in several files with
an index, and a tokenizer. Settings that ``minispec.models.transformer`` does not implement are
refused by name: a model that is nearly right would generate text that looks nearly right.

Knows nothing of where the folder comes from.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct
from safetensors import SafetensorError
from torch import Tensor

from minispec.errors import ArgumentError, FileError, FileWarning
from minispec.io.files import open_safetensors, read_header, write_json, write_tensors
from minispec.io.model_state import StoredTensor, build_transformer
from minispec.io.schema import read_json
from minispec.models.model_config import ModelConfig
from minispec.models.transformer import Transformer
from minispec.text.tokenizer import TableTokenizer
from minispec.tokenizer import Tokenizer
from minispec.tools.models import hf_config
from minispec.tools.models.tokenizer_folder import read_tokenizer

_LAYER_NAMES = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
}
_NORM_NAMES = {
    "self_attn.q_norm": "attention.query_norm",
    "self_attn.k_norm": "attention.key_norm",
}
_POST_NORM_NAMES = {
    "post_attention_layernorm": "attention_post_norm",  # in a Llama, the norm before the MLP
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}
_NAMES = {"model.embed_tokens": "embedding", "model.norm": "norm", "lm_head": "output"}
_LARGEST_INDEX = 2**26  # bytes; that of a model with 10,000 tensors has 1 MB
_EMBEDDING, _HEAD = "embedding.weight", "output.weight"


class _ShardIndex(Struct):
    """What is read of an index of several files: the file that each tensor is in."""

    weight_map: dict[str, str]


def load(path: Path) -> tuple[Transformer, Tokenizer]:
    """The float32 model and its tokenizer.

    Raises FileError for a file that is missing or damaged, and for an architecture or a setting
    that is not supported; warns of settings that disagree.
    """
    if (path / "adapter_config.json").exists():
        raise FileError(
            f"{path} has an adapter (adapter_config.json), which is not supported: merge it into "
            "the weights (merge_and_unload of peft), or remove the file to use them without it"
        )
    found = hf_config.read_config(path)
    names = _NAMES | _LAYER_NAMES
    names |= _NORM_NAMES if found.model.query_key_norm else {}
    names |= _POST_NORM_NAMES if found.model.post_norms else {}
    tokenizer = read_tokenizer(path)
    fit_tokenizer(tokenizer, found.model.vocab_size, found.eos_ids, str(path))
    with ExitStack() as files:
        stored = _list_tensors(path, names, found.is_gemma, files)
        config = _decide_head(path, found.model, stored)
        theirs = {ours: name for name, ours in names.items()}
        model = build_transformer(config, stored, str(path), partial(_their_name, theirs))
    return model, tokenizer


def fit_tokenizer(
    tokenizer: TableTokenizer, vocab_size: int, eos_ids: Sequence[int], origin: str
) -> None:
    """Fit a tokenizer to a head of ``vocab_size`` rows: drop ids beyond them, and add the ids that
    end an answer by the model's files. ``origin`` names the model in errors. Raises FileError for
    ids beyond the rows that text becomes."""
    ids = tokenizer.vocab_size
    if ids > vocab_size:  # fewer ids than rows are common: rows are padded to a round number
        try:
            tokenizer.drop_ids(vocab_size)  # special ids that no text becomes
        except ArgumentError as error:
            raise FileError(f"{origin}: the tokenizer has {ids} ids: {error}") from None
    tokenizer.add_eos_ids(eos_ids)


def save(path: Path, model: Transformer) -> None:
    """Writes the configuration of a Llama and its weights in bfloat16; the tokenizer is written
    apart. The weights come last, so that a folder with weights is complete."""
    config = model.config
    head = {"tie_word_embeddings": config.tie_word_embeddings, "rope_theta": config.rope_theta}
    shape = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.context_limit,
        "rms_norm_eps": config.rms_norm_eps,
    }
    fixed = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    write_json(path / "config.json", {**fixed, **shape, **head, "torch_dtype": "bfloat16"})
    theirs = {ours: name for name, ours in (_NAMES | _LAYER_NAMES).items()}
    state = model.state_dict()
    weights = {_their_name(theirs, name): value.bfloat16() for name, value in state.items()}
    write_tensors(path / "model.safetensors", weights, {"format": "pt"})


def _list_tensors(
    folder: Path, names: Mapping[str, str], is_gemma: bool, files: ExitStack
) -> dict[str, StoredTensor]:
    """The tensors of a folder by our names; their files stay open as long as ``files``."""
    found: dict[str, StoredTensor] = {}
    for path, expected in _list_files(folder).items():
        file = files.enter_context(open_safetensors(path))
        header = read_header(file, str(path))
        if lost := expected - header.keys():
            raise FileError(f"{path} lacks the tensor {min(lost)!a}, which the index says it has")
        for name, (shape, dtype) in header.items():
            if name.endswith(".inv_freq"):
                continue  # rotary frequencies follow from the configuration
            ours = _our_name(name, path, names)
            if not dtype.is_floating_point or dtype.itemsize == 1:
                raise FileError(f"{path}: {name} is {dtype}: quantised weights are not supported")
            # Gemma's norms multiply by 1 + w.
            offset = 1 if is_gemma and name.endswith("norm.weight") else 0
            read = partial(_read, file, path, name, offset)
            stored = StoredTensor(str(path), name, shape, read)
            if ours in found and not _are_equal(found[ours], stored):
                raise FileError(
                    f"{path}: tensor {name!a} differs from that in {found[ours].origin}"
                )
            found[ours] = stored
    return found


def _list_files(folder: Path) -> dict[Path, set[str]]:
    """The files with weights, and the tensors that each must have: ``model.safetensors``, or those
    that an index lists."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists() or not index.exists():
        if not whole.exists() and any(folder.glob("*.bin")):
            raise FileError(
                f"{folder} has its weights in .bin files, which are pickled: save it with "
                "save_pretrained(safe_serialization=True) of transformers"
            )
        return {whole: set()}
    expected: dict[Path, set[str]] = {}
    for tensor, name in read_json(index, _ShardIndex, _LARGEST_INDEX).weight_map.items():
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise FileError(f"{index}: {name!a} must be the name of a .safetensors file beside it")
        expected.setdefault(folder / name, set()).add(tensor)
    return dict(sorted(expected.items()))


def _read(file: Any, path: Path, name: str, offset: int) -> Tensor:
    try:
        value: Tensor = file.get_tensor(name).float()
    except SafetensorError as error:
        raise FileError(f"{path} is damaged: {name}: {error}") from None
    return value + offset if offset else value


def _are_equal(one: StoredTensor, other: StoredTensor) -> bool:
    return one.shape == other.shape and torch.equal(one.read(), other.read())


def _decide_head(folder: Path, config: ModelConfig, stored: dict[str, StoredTensor]) -> ModelConfig:
    """Whether the head is the embedding, as transformers decides it: if ``tie_word_embeddings``
    says so, unless the files have a head that differs. Removes from ``stored`` what is a copy."""
    path = folder / "config.json"
    if not config.tie_word_embeddings:
        if _HEAD not in stored:
            raise FileError(
                f"{folder} lacks the tensor lm_head.weight, and tie_word_embeddings in {path} is "
                "false or missing: set it to true if the embedding is the head"
            )
    elif _HEAD in stored and _EMBEDDING not in stored:
        stored[_EMBEDDING] = stored.pop(_HEAD)
    elif _HEAD in stored and not _are_equal(stored[_HEAD], stored[_EMBEDDING]):
        warnings.warn(
            f"{path}: tie_word_embeddings is true, but lm_head.weight differs from the embedding: "
            "the head of its own counts",
            FileWarning,
            stacklevel=3,
        )
        return replace(config, tie_word_embeddings=False)
    else:
        stored.pop(_HEAD, None)
    return config


def _our_name(name: str, file: Path, names: Mapping[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    if kind in ("weight", "bias"):
        if stem in _NAMES:
            return f"{_NAMES[stem]}.{kind}"
        match stem.split(".", 3):
            case ["model", "layers", index, part] if part in names and part not in _NAMES:
                if re.fullmatch(r"0|[1-9]\d*", index):
                    return f"layers.{index}.{names[part]}.{kind}"
    raise FileError(f"{file}: unexpected tensor {name!a}: no such weight in this architecture")


def _their_name(theirs: Mapping[str, str], name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in theirs:
        return f"{theirs[stem]}.{kind}"
    _, index, part = stem.split(".", 2)
    return f"model.layers.{index}.{theirs[part]}.{kind}"
