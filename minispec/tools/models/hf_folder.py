"""Reads a Llama or Gemma 3 model from a folder in Hugging Face layout.

Such a folder holds ``config.json``, the weights in ``model.safetensors`` or in several files with
an index, and a tokenizer. Settings that ``minispec.models.transformer`` does not implement are
refused by name: a model that is nearly right would generate text that looks nearly right.

Knows nothing of where the folder comes from.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from minispec.errors import ArgumentError, FileError
from minispec.io.files import read_json, read_tensors, write_json, write_tensors
from minispec.io.model_state import build_transformer
from minispec.models.rope import RopeScaling
from minispec.models.transformer import (
    ModelConfig,
    Transformer,
    default_aux_layer_ids,
)
from minispec.text.tokenizer import SentencePieceTokenizer
from minispec.tools.models import tokenizer_files
from minispec.types import Tokenizer

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
_GEMMA_NAMES = {
    "self_attn.q_norm": "attention.query_norm",
    "self_attn.k_norm": "attention.key_norm",
    "post_attention_layernorm": "attention_post_norm",  # in a Llama, the norm before the MLP
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}
_NAMES = {"model.embed_tokens": "embedding", "model.norm": "norm", "lm_head": "output"}
# Other settings of a configuration, with the only value that the transformer implements.
_ONLY: dict[str, dict[str, Any]] = {
    "llama": dict(hidden_act="silu", mlp_bias=False),
    "gemma3_text": dict(
        hidden_activation="gelu_pytorch_tanh",
        final_logit_softcapping=None,
        attn_logit_softcapping=None,
        use_bidirectional_attention=False,
    ),
}
_ONLY_EITHER: dict[str, Any] = dict(attention_bias=False, quantization_config=None)
_KINDS = {name: name for name in _ONLY}
_KINDS |= {"LlamaForCausalLM": "llama", "Gemma3ForCausalLM": "gemma3_text"}


def load(path: Path) -> tuple[Transformer, Tokenizer]:
    """The float32 model and its tokenizer.

    Raises FileError for a file that is missing or damaged, and for an architecture or a setting
    that is not supported.
    """
    kind, config = _config(path / "config.json")
    gemma = kind == "gemma3_text"
    parts = _LAYER_NAMES | (_GEMMA_NAMES if gemma else {})
    tokenizer = _tokenizer(path)
    ids, rows = tokenizer.vocab_size, config.vocab_size
    if ids > rows:  # fewer ids than rows are common: rows are padded to a round number
        raise FileError(f"{path}: the tokenizer has {ids} ids, the model only {rows} rows")
    state: dict[str, Tensor] = {}
    for file, name, value in _weights(path):
        if name.endswith(".inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue  # rotary frequencies follow from the configuration; a tied head is a copy
        if not value.is_floating_point() or value.element_size() == 1:
            raise FileError(f"{file}: {name} is {value.dtype}: quantised weights are not supported")
        # Gemma's norms multiply by 1 + w.
        ours, offset = _name(name, file, parts), gemma and name.endswith("norm.weight")
        state[ours] = value.float() + 1 if offset else value.float()
    return build_transformer(config, state, str(path)), tokenizer


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
    weights = {}
    for name, value in model.state_dict().items():
        layer = re.match(r"layers\.\d+\.", name)
        start = layer[0] if layer else ""
        stem = theirs[name.removeprefix(start).removesuffix(".weight")]
        weights[f"model.{start}{stem}.weight" if layer else f"{stem}.weight"] = value.bfloat16()
    write_tensors(path / "model.safetensors", weights, {"format": "pt"})


def _config(path: Path) -> tuple[str, ModelConfig]:
    """The model type and the configuration."""
    data = read_json(path)
    try:
        names = data.get("architectures") or [data.get("model_type")]
        if len(names) != 1 or (kind := _KINDS.get(names[0])) is None:
            raise FileError(f"architecture {names[0]!a} is not supported: must be Llama or Gemma 3")
        for key, wanted in (_ONLY[kind] | _ONLY_EITHER).items():
            if (found := data.get(key) or wanted) != wanted:
                raise FileError(f"{key} {found!a} is not supported: must be {wanted!a}")
        heads = data["num_attention_heads"]
        shape = dict(
            vocab_size=data["vocab_size"],
            hidden_size=data["hidden_size"],
            num_hidden_layers=data["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=data.get("num_key_value_heads") or heads,
            intermediate_size=data["intermediate_size"],
            context_limit=data["max_position_embeddings"],
            rms_norm_eps=float(data.get("rms_norm_eps", 1e-6)),
            aux_hidden_state_layer_ids=default_aux_layer_ids(data["num_hidden_layers"]),
        )
        return kind, ModelConfig(**shape, **_MORE[kind](data))
    except (FileError, ArgumentError) as error:
        raise FileError(f"{path}: {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise FileError(
            f"{path} is not the configuration of a Llama or Gemma 3: {error!r}"
        ) from None


def _llama(data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a Llama. Newer files have ``rope_parameters``, older ones ``rope_theta`` and
    ``rope_scaling``."""
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    base, scaling = _rope(rope, data.get("rope_theta") or 10_000.0)
    return dict(
        head_dim=data.get("head_dim") or data["hidden_size"] // data["num_attention_heads"],
        rope_theta=base,
        rope_scaling=scaling,
        tie_word_embeddings=bool(data.get("tie_word_embeddings")),
    )


def _gemma(data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a Gemma 3. Missing ones have the defaults of transformers, which does not
    write defaults."""
    ropes = data.get("rope_parameters") or {}
    full = ropes.get("full_attention") or data.get("rope_scaling") or {}
    base, scaling = _rope(full, data.get("rope_theta") or 1e6)
    local = ropes.get("sliding_attention") or {}
    local_base, local_scaling = _rope(local, data.get("rope_local_base_freq") or 10_000.0)
    if local_scaling:
        raise FileError("rope scaling in the local layers is not supported")
    layers, period = data["num_hidden_layers"], data.get("sliding_window_pattern") or 6
    kinds = data.get("layer_types") or [
        "sliding_attention" if layer % period else "full_attention"
        for layer in range(1, layers + 1)
    ]
    if len(kinds) != layers or set(kinds) - {"sliding_attention", "full_attention"}:
        raise FileError(
            f"layer_types {kinds!a} must be {layers} times sliding_attention or full_attention"
        )
    return dict(
        head_dim=data.get("head_dim") or 256,
        rope_theta=base,
        rope_scaling=scaling,
        tie_word_embeddings=bool(data.get("tie_word_embeddings", True)),
        activation="gelu_tanh",
        embedding_scale=data["hidden_size"] ** 0.5,
        attention_scale=float(data.get("query_pre_attn_scalar") or 256) ** -0.5,
        query_key_norm=True,
        post_norms=True,
        local_layers=tuple(
            layer for layer, kind in enumerate(kinds, 1) if kind == "sliding_attention"
        ),
        local_rope_theta=local_base,
        sliding_window=data.get("sliding_window") or 4096,
    )


_MORE = {"llama": _llama, "gemma3_text": _gemma}


def _rope(rope: Mapping[str, Any], base: float) -> tuple[float, RopeScaling | None]:
    """The base of the rotary frequencies, by default ``base``, and their scaling if any."""
    base = float(rope.get("rope_theta") or base)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "llama3"):
        raise FileError(f"rope type {kind!a} is not supported: must be 'default' or 'llama3'")
    if kind == "default":
        return base, None
    return base, RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_position_embeddings=int(rope["original_max_position_embeddings"]),
    )


def _weights(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """Every tensor with its file and name; one file is in memory at a time."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file() and not (folder / "model.safetensors").is_file():
        try:
            names = {str(name) for name in read_json(index)["weight_map"].values()}
        except (LookupError, TypeError, AttributeError):
            raise FileError(f"{index} is not an index of safetensors files") from None
    for name in sorted(names):
        for tensor, value in read_tensors(folder / name).items():
            yield folder / name, tensor, value


def _name(name: str, file: Path, parts: Mapping[str, str]) -> str:
    stem = name.removesuffix(".weight")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.weight"
    match stem.split(".", 3):
        case ["model", "layers", index, part] if part in parts:
            return f"layers.{index}.{parts[part]}.weight"
    raise FileError(f"{file}: unexpected tensor {name!a}: no such weight in this architecture")


def _tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer, from the first of a folder's tokenizer files that can be read: the
    ``tokenizer.json`` of a Llama 2 is not supported, but its ``tokenizer.model`` is."""
    makers: tuple[tuple[str, Callable[[Path], Tokenizer]], ...] = (
        ("tokenizer.json", tokenizer_files.from_tokenizer_json),
        ("tokenizer.model", SentencePieceTokenizer),
        ("tokenizer.model", tokenizer_files.from_llama3_model),
    )
    refusals = []
    for name, make in makers:
        if (folder / name).is_file():
            try:
                return make(folder / name)
            except FileError as error:
                refusals.append(error)
    if refusals:
        raise refusals[0]
    raise FileError(f"{folder} has no tokenizer: expected tokenizer.json or tokenizer.model")
