"""The configuration of a Llama or Gemma 3 from ``config.json`` and ``generation_config.json``.

Settings are read as transformers reads them: with its defaults, and of two that disagree the one
that counts there. A setting of another value that would change what is computed is refused by name.

Knows nothing of weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from minispec.errors import ArgumentError, FileError
from minispec.io.model_state import Count, Width
from minispec.io.schema import Positive, Size, convert, read_json
from minispec.models.transformer import ModelConfig, default_aux_layer_ids
from minispec.tools.models.hf_rope import Outer, read_rope, warn

EndIds = Annotated[int, Meta(ge=-1, lt=2**31)] | list[Annotated[int, Meta(ge=-1, lt=2**31)]]

# Settings with the values that mean what is computed here. Absent or null is the first of them.
_EITHER: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "quantization_config": (None,),
    "compression_config": (None,),
    "per_layer_config": (None, {}),
    "text_config": (None, {}),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "is_causal": (True,),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "use_bidirectional_attention": (False,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "use_qk_norm": (False,),
    "clip_qkv": (None,),
}
_ONLY: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": _EITHER | {"hidden_act": ("silu", "swish"), "use_sliding_window": (False,)},
    "gemma3_text": _EITHER | {"hidden_activation": ("gelu_pytorch_tanh", "gelu_python_tanh")},
}
del _ONLY["gemma3_text"]["use_qk_norm"]  # a Gemma 3 always normalizes
_LARGEST = 2**22  # bytes; a configuration has a few thousand
_KINDS = ("full_attention", "sliding_attention")
_ARCHITECTURES = {"LlamaForCausalLM": "llama", "Gemma3ForCausalLM": "gemma3_text"}


class _Config(Struct):
    """The settings that are read of both, with the defaults of a Llama."""

    vocab_size: Width
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    max_position_embeddings: Size = 2048
    rms_norm_eps: Annotated[float, Meta(ge=0, le=1e300)] = 1e-6
    tie_word_embeddings: bool = False
    rope_theta: Positive | None = None
    rope_parameters: dict[str, Any] = {}
    rope_scaling: dict[str, Any] = {}
    original_max_position_embeddings: Size | None = None
    sliding_window: Size | None = None
    layer_types: list[str] | None = None
    eos_token_id: EndIds | None = None


class _Gemma(_Config):
    """Those of a Gemma 3."""

    num_key_value_heads: Count | None = 4
    head_dim: Count | None = 256
    max_position_embeddings: Size = 131_072
    tie_word_embeddings: bool = True
    sliding_window: Size | None = 4096
    sliding_window_pattern: Count = 6
    rope_local_base_freq: Positive | None = None
    query_pre_attn_scalar: Positive = 256.0


class _Generation(Struct):
    """What is read of ``generation_config.json``."""

    eos_token_id: EndIds | None = None


@dataclass(frozen=True)
class FolderConfig:
    """What a folder says of its model: the configuration, whether it is a Gemma 3, and the ids that
    end an answer by any of the files."""

    model: ModelConfig
    is_gemma: bool
    eos_ids: tuple[int, ...]


def read_config(folder: Path) -> FolderConfig:
    """Read the configuration in a folder. Raises FileError by the names of the file's settings;
    warns of settings that disagree."""
    path = folder / "config.json"
    raw = read_json(path, dict[str, Any], _LARGEST)
    data = {name: value for name, value in raw.items() if value is not None}
    kind = _find_kind(data, path)
    for name, wanted in _ONLY[kind].items():
        if (value := data.get(name, wanted[0])) not in wanted:
            raise FileError(f"{path}: {name} {value!a} is not supported: must be {wanted[0]!a}")
    try:
        if kind == "llama":
            config = convert(data, _Config, str(path))
            more = _read_llama(config, path)
        else:
            config = gemma = convert(data, _Gemma, str(path))
            more = _read_gemma(gemma, path, raw.get("sliding_window", 1) is not None)
        model = ModelConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads or config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            context_limit=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
            aux_hidden_state_layer_ids=default_aux_layer_ids(config.num_hidden_layers),
            **more,
        )
    except ArgumentError as error:
        raise FileError(f"{path}: {error}") from None
    return FolderConfig(model, kind == "gemma3_text", _read_ends(config, folder))


def _find_kind(data: Mapping[str, Any], path: Path) -> str:
    """The model type, by which transformers chooses the model; ``architectures``, by which vLLM
    does, must not contradict it."""
    architectures = data.get("architectures") or []
    names = [*architectures] if isinstance(architectures, list) else [architectures]
    kinds = [_ARCHITECTURES.get(str(name)) for name in names]
    if (found := data.get("model_type")) is not None:
        names, kinds = [*names, found], [*kinds, found if found in [*_ONLY] else None]
    if None in kinds or not kinds:
        wrong = names[kinds.index(None)] if kinds else None
        raise FileError(
            f"{path}: architecture {wrong!a} is not supported: must be "
            f"{' or '.join(_ARCHITECTURES)}"
        )
    if len(set(kinds)) > 1:
        raise FileError(f"{path}: architectures and model_type disagree: {names!a}")
    return str(kinds[0])


def _read_llama(config: _Config, path: Path) -> dict[str, Any]:
    """The settings of a Llama. Of ``rope_scaling`` and ``rope_parameters`` the former counts,
    unless it is empty."""
    context, window = config.max_position_embeddings, config.sliding_window
    if window is not None and window < context:
        raise FileError(
            f"{path}: sliding_window {window} is not supported in a Llama: must be null or at "
            f"least max_position_embeddings, {context}"
        )
    if set(config.layer_types or ()) - {"full_attention"}:
        raise FileError(f"{path}: layer_types of a Llama must all be 'full_attention'")
    if config.head_dim is None and config.hidden_size % config.num_attention_heads:
        raise FileError(
            f"{path}: hidden_size {config.hidden_size} must be a multiple of num_attention_heads "
            f"{config.num_attention_heads} where head_dim is missing"
        )
    ropes = {"rope_scaling": config.rope_scaling, "rope_parameters": config.rope_parameters}
    outer = Outer(config.rope_theta, 10_000.0, config.original_max_position_embeddings, context)
    readings = [read_rope(rope, f"{path}: {name}", outer) for name, rope in ropes.items() if rope]
    if len(readings) == 2 and readings[0] != readings[1]:
        warn(f"{path}: rope_scaling and rope_parameters disagree: rope_scaling counts")
    base, scaling = readings[0] if readings else (config.rope_theta or 10_000.0, None)
    return dict(
        head_dim=config.head_dim or config.hidden_size // config.num_attention_heads,
        rope_theta=base,
        rope_scaling=scaling,
    )


def _read_gemma(config: _Gemma, path: Path, has_window: bool) -> dict[str, Any]:
    """The settings of a Gemma 3. ``rope_scaling`` adds to ``rope_parameters`` of the global
    layers."""
    layers, period = config.num_hidden_layers, config.sliding_window_pattern
    kinds = config.layer_types or [_KINDS[bool(n % period)] for n in range(1, layers + 1)]
    if len(kinds) != layers or set(kinds) - {*_KINDS}:
        raise FileError(
            f"{path}: layer_types must be {layers} times {' or '.join(_KINDS)}, found {len(kinds)} "
            f"of {', '.join(sorted(set(kinds)))[:200]!a}"
        )
    if "sliding_attention" in kinds and not has_window:
        raise FileError(f"{path}: sliding_window null must be at least 1: layer_types need it")
    if flat := config.rope_parameters.keys() - {*_KINDS}:
        raise FileError(
            f"{path}: rope_parameters of a Gemma 3 must be given for {' and '.join(_KINDS)}, found "
            f"{min(flat)!a}"
        )
    if "type" in config.rope_scaling and "rope_type" not in config.rope_scaling:
        raise FileError(f"{path}: rope_scaling of a Gemma 3 must have 'rope_type', not 'type'")
    full, local = (
        convert(config.rope_parameters.get(kind) or {}, dict[str, Any], f"{path}: {kind}")
        for kind in _KINDS
    )
    context = config.max_position_embeddings
    base, scaling = read_rope(
        full | config.rope_scaling,
        f"{path}: rope of {_KINDS[0]}",
        Outer(config.rope_theta, 1e6, None, context),
    )
    local_base, local_scaling = read_rope(
        local,
        f"{path}: rope of {_KINDS[1]}",
        Outer(config.rope_local_base_freq, 10_000.0, None, context),
    )
    if local_scaling:
        raise FileError(f"{path}: rope scaling in the local layers is not supported")
    return dict(
        head_dim=config.head_dim,
        rope_theta=base,
        rope_scaling=scaling,
        activation="gelu_tanh",
        embedding_scale=config.hidden_size**0.5,
        attention_scale=config.query_pre_attn_scalar**-0.5,
        query_key_norm=True,
        post_norms=True,
        local_layers=tuple(n for n, kind in enumerate(kinds, 1) if kind == _KINDS[1]),
        local_rope_theta=local_base,
        sliding_window=config.sliding_window,
    )


def _read_ends(config: _Config, folder: Path) -> tuple[int, ...]:
    """The ids that end an answer by either file."""
    path = folder / "generation_config.json"
    generation = read_json(path, _Generation, _LARGEST) if path.exists() else _Generation()
    ends: list[int] = []
    for found in (generation.eos_token_id, config.eos_token_id):
        ends += found if isinstance(found, list) else [] if found is None else [found]
    if unknown := [i for i in ends if i >= config.vocab_size]:
        warn(f"{folder}: eos_token_id {unknown[0]} is outside the model's {config.vocab_size} ids")
    return tuple(dict.fromkeys(i for i in ends if 0 <= i < config.vocab_size))
