"""What ``config.json`` says of a Llama, Mistral, Qwen 2, Qwen 3, SmolLM3 or Gemma 3.

Each family has the values of settings that mean what is computed here, and a function from its
settings to those of ``ModelConfig`` that differ from a plain Llama's.

Knows nothing of weights and of other files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minispec.errors import FileError
from minispec.io.schema import convert
from minispec.tools.models.hf_rope import Outer, read_rope, warn
from minispec.tools.models.hf_settings import (
    COMMON,
    Config,
    Gemma,
    Mistral,
    Qwen2,
    Qwen3,
    SmolLM3,
)

_KINDS = ("full_attention", "sliding_attention")

Read = Callable[[Any, Path], dict[str, Any]]


def _read_llama(config: Config, path: Path) -> dict[str, Any]:
    context, window = config.max_position_embeddings, config.sliding_window
    if window is not None and window < context:
        raise FileError(
            f"{path}: sliding_window {window} is not supported in a Llama: must be null or at "
            f"least max_position_embeddings, {context}"
        )
    if set(config.layer_types or ()) - {_KINDS[0]}:
        raise FileError(f"{path}: layer_types of a Llama must all be {_KINDS[0]!a}")
    return _read_heads_and_rope(config, path) | _list_biases(config)


def _read_mistral(config: Mistral, path: Path) -> dict[str, Any]:
    """All layers have the window, if there is one."""
    kind = _KINDS[config.sliding_window is not None]
    if set(config.layer_types or ()) - {kind}:
        raise FileError(
            f"{path}: layer_types of a Mistral must be absent, or all {kind!a} as its "
            "sliding_window says: layers of two kinds are those of a Ministral"
        )
    kinds = [kind] * config.num_hidden_layers
    return _read_heads_and_rope(config, path) | _place_windows(config, kinds, path)


def _read_qwen2(config: Qwen2, path: Path) -> dict[str, Any]:
    """Queries, keys and values always have biases."""
    more = _place_windows(config, _list_kinds_of_qwen(config), path)
    return _read_heads_and_rope(config, path) | more | dict(attention_bias=True)


def _read_qwen3(config: Qwen3, path: Path) -> dict[str, Any]:
    """Queries and keys are normalized."""
    more = _place_windows(config, _list_kinds_of_qwen(config), path) | _list_biases(config)
    return _read_heads_and_rope(config, path) | more | dict(query_key_norm=True)


def _list_kinds_of_qwen(config: Qwen2) -> list[str]:
    if not config.use_sliding_window:
        config.sliding_window = None
    layers, first = config.num_hidden_layers, config.max_window_layers
    has_window = config.sliding_window is not None
    return config.layer_types or [_KINDS[has_window and n >= first] for n in range(layers)]


def _read_smollm3(config: SmolLM3, path: Path) -> dict[str, Any]:
    """Some layers have no rotary positions, and these may have the window."""
    layers, period = config.num_hidden_layers, config.no_rope_layer_interval
    ropes = config.no_rope_layers
    if ropes is None:
        ropes = [int(n % period != 0) for n in range(1, layers + 1)]
    if len(ropes) < layers:
        raise FileError(f"{path}: no_rope_layers must be {layers} numbers, found {len(ropes)}")
    if not config.use_sliding_window:
        config.sliding_window = None
    has_window = config.sliding_window is not None
    kinds = config.layer_types or [_KINDS[has_window and not rope] for rope in ropes[:layers]]
    rope_free = tuple(n for n, rope in enumerate(ropes[:layers], 1) if not rope)
    more = _place_windows(config, kinds, path) | _list_biases(config)
    return _read_heads_and_rope(config, path) | more | dict(rope_free_layers=rope_free)


def _list_biases(config: Config) -> dict[str, Any]:
    """One setting for all four matrices of attention, one for the three of the MLP."""
    bias = config.attention_bias
    return dict(attention_bias=bias, output_bias=bias, mlp_bias=config.mlp_bias)


def _place_windows(config: Config, kinds: list[str], path: Path) -> dict[str, Any]:
    """The layers with a sliding window, whose rope is that of the others. A window as long as the
    context is none."""
    layers, window = config.num_hidden_layers, config.sliding_window
    _check_kinds(kinds, layers, path)
    local = tuple(n for n, kind in enumerate(kinds, 1) if kind == _KINDS[1])
    if local and window is None:
        raise FileError(
            f"{path}: layer_types have {_KINDS[1]!a}, which needs a sliding_window (and "
            "use_sliding_window true where the family has it)"
        )
    if window is None or window >= config.max_position_embeddings or not local:
        return {}
    found = _read_heads_and_rope(config, path)
    return dict(
        local_layers=local, sliding_window=window,
        local_rope_theta=found["rope_theta"], local_rope_scaling=found["rope_scaling"],
    )  # fmt: skip


def _check_kinds(kinds: list[str], layers: int, path: Path) -> None:
    if len(kinds) != layers or set(kinds) - {*_KINDS}:
        raise FileError(
            f"{path}: layer_types must be {layers} times {' or '.join(_KINDS)}, found {len(kinds)} "
            f"of {', '.join(sorted(set(kinds)))[:200]!a}"
        )


def _read_heads_and_rope(config: Config, path: Path) -> dict[str, Any]:
    """Of ``rope_scaling`` and ``rope_parameters`` the former counts, unless it is empty."""
    context = config.max_position_embeddings
    if config.head_dim is None and config.hidden_size % config.num_attention_heads:
        raise FileError(
            f"{path}: hidden_size {config.hidden_size} must be a multiple of num_attention_heads "
            f"{config.num_attention_heads} where head_dim is missing"
        )
    default = 2e6 if isinstance(config, SmolLM3) else 10_000.0
    ropes = {"rope_scaling": config.rope_scaling, "rope_parameters": config.rope_parameters}
    outer = Outer(config.rope_theta, default, config.original_max_position_embeddings, context)
    readings = [read_rope(rope, f"{path}: {name}", outer) for name, rope in ropes.items() if rope]
    if len(readings) == 2 and readings[0] != readings[1]:
        warn(f"{path}: rope_scaling and rope_parameters disagree: rope_scaling counts")
    base, scaling = readings[0] if readings else (config.rope_theta or default, None)
    return dict(
        head_dim=config.head_dim or config.hidden_size // config.num_attention_heads,
        rope_theta=base,
        rope_scaling=scaling,
    )


def _read_gemma(config: Gemma, path: Path) -> dict[str, Any]:
    """The settings of a Gemma 3. ``rope_scaling`` adds to ``rope_parameters`` of the global
    layers."""
    layers, period = config.num_hidden_layers, config.sliding_window_pattern
    kinds = config.layer_types or [_KINDS[bool(n % period)] for n in range(1, layers + 1)]
    _check_kinds(kinds, layers, path)
    if "sliding_attention" in kinds and config.sliding_window is None:
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


@dataclass(frozen=True)
class Family:
    """How a family's ``config.json`` is read: the name of its architecture, its settings, the only
    values of some others, the first of which is the default, and what it has beyond a Llama."""

    architecture: str
    settings: type[Config]
    only: Mapping[str, tuple[Any, ...]]
    read: Read


def _only(*free: str, **values: tuple[Any, ...]) -> dict[str, tuple[Any, ...]]:
    """The common values without those of settings that are ``free``, and with other ``values``."""
    common = {name: wanted for name, wanted in COMMON.items() if name not in free}
    return common | values


_GELU = ("gelu_pytorch_tanh", "gelu_python_tanh")
_NO_WINDOW = {"use_sliding_window": (False,)}
FAMILIES = {  # by model_type
    "llama": Family(
        "LlamaForCausalLM", Config, _only("attention_bias", "mlp_bias", **_NO_WINDOW), _read_llama
    ),
    "mistral": Family("MistralForCausalLM", Mistral, _only(), _read_mistral),
    "qwen2": Family("Qwen2ForCausalLM", Qwen2, _only(attention_bias=(True,)), _read_qwen2),
    "qwen3": Family(
        "Qwen3ForCausalLM", Qwen3, _only("attention_bias", "use_qk_norm"), _read_qwen3
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM", SmolLM3, _only("attention_bias", "mlp_bias"), _read_smollm3
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM", Gemma,
        _only("use_qk_norm", "hidden_act", hidden_activation=_GELU), _read_gemma,
    ),
}  # fmt: skip
