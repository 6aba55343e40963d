"""The configuration of an EAGLE-3 draft: its ``config.json`` in either of two layouts.

SafeAILab's, which SGLang and vLLM read, has the settings of a Llama of one layer and
``draft_vocab_size``. speculators' has those of the layer in ``transformer_layer_config``, and names
the algorithm. The two layouts count auxiliary layers as vLLM does: id i is the output of layer i,
counted from 1. In ``eagle_config``, which SGLang reads, i is the output of layer i + 1.

Knows nothing of weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from minispec.errors import ArgumentError, FileError, FingerprintError
from minispec.io.model_state import Count, Width
from minispec.io.schema import Positive, Size, convert, read_json
from minispec.models.eagle3_draft import Eagle3Norms
from minispec.models.model_config import ModelConfig
from minispec.tools.models.hf_rope import Outer, read_rope

_LARGEST = 2**22  # bytes; a configuration has a few thousand
_LayerIds = list[Annotated[int, Meta(ge=-1, lt=2**16)]]
# Settings of the layer with the values that mean what is computed here, the default first.
_ONLY: dict[str, tuple[Any, ...]] = {
    "num_hidden_layers": (1,),
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1.0,),
    "quantization_config": (None,),
    "logit_scale": (1, 1.0),
}


class _Layer(Struct):
    """The settings of the draft's layer."""

    hidden_size: Width
    intermediate_size: Width
    num_attention_heads: Count
    vocab_size: Width
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    rms_norm_eps: Annotated[float, Meta(ge=0, le=1e300)] = 1e-6
    max_position_embeddings: Size = 2048
    rope_theta: Positive | None = None
    rope_parameters: dict[str, Any] = {}
    rope_scaling: dict[str, Any] = {}
    original_max_position_embeddings: Size | None = None
    layer_types: list[str] = []


class _EagleConfig(Struct):
    """What is read of ``eagle_config``."""

    eagle_aux_hidden_state_layer_ids: _LayerIds | None = None
    use_aux_hidden_state: bool = True


class _Draft(Struct):
    """The settings beside those of the layer."""

    draft_vocab_size: Width | None = None
    target_hidden_size: Width | None = None
    eagle_aux_hidden_state_layer_ids: _LayerIds | None = None
    eagle_config: _EagleConfig | None = None
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False


@dataclass(frozen=True)
class Eagle3Config:
    """What a folder says of its draft. ``model``: the settings of the layer, with the target's
    vocabulary, number of layers and auxiliary layers; ``draft_vocab_size``: the rows of its head,
    None if the file's own count; ``target_hidden_size``: None for the target's."""

    model: ModelConfig
    norms: Eagle3Norms
    draft_vocab_size: int | None
    target_hidden_size: int | None


def read_config(folder: Path, target: ModelConfig) -> Eagle3Config:
    """Read the ``config.json`` of a draft for a target. Raises FileError by the names of its
    settings, FingerprintError if it is for another target."""
    path = folder / "config.json"
    raw = _drop_nulls(read_json(path, dict[str, Any], _LARGEST))
    algorithm = raw.get("speculators_model_type", "eagle3")
    if "auto_map" in raw and "speculators_model_type" not in raw:  # speculators always adds its own
        raise FileError(
            f"{path}: auto_map asks for code in the folder, which is never run: remove it if the "
            "draft is an EAGLE-3 draft as SafeAILab publishes them"
        )
    if algorithm != "eagle3":
        raise FileError(f"{path}: speculators_model_type {algorithm!a} must be 'eagle3'")
    nested = convert(raw.get("transformer_layer_config") or {}, dict[str, Any], str(path))
    settings = _drop_nulls(nested) if nested else raw
    for name, wanted in _ONLY.items():
        if (value := settings.get(name, wanted[0])) not in wanted:
            raise FileError(f"{path}: {name} {value!a} is not supported: must be {wanted[0]!a}")
    layer, draft = convert(settings, _Layer, str(path)), convert(raw, _Draft, str(path))
    if set(layer.layer_types) - {"full_attention"}:
        raise FileError(f"{path}: layer_types must all be 'full_attention'")
    if draft.norm_before_fc and draft.fc_norm:
        raise FileError(f"{path}: norm_before_fc and fc_norm exclude each other: give one")
    if layer.vocab_size != target.vocab_size:
        raise FingerprintError(
            f"{path}: the draft is for a target of {layer.vocab_size} ids, this one has "
            f"{target.vocab_size}: give the draft of this model"
        )
    aux_layers = _find_aux_layers(draft, target, path)
    try:
        model = _build_model(layer, target, aux_layers, path)
    except ArgumentError as error:
        raise FileError(f"{path}: {error}") from None
    norms = Eagle3Norms(
        draft.norm_before_residual, draft.norm_before_fc, draft.fc_norm, draft.norm_output
    )
    return Eagle3Config(model, norms, draft.draft_vocab_size, draft.target_hidden_size)


def _drop_nulls(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _find_aux_layers(draft: _Draft, target: ModelConfig, path: Path) -> tuple[int, ...]:
    """The auxiliary layers, counted from 1, ascending as the engines concatenate them."""
    layers = target.num_hidden_layers
    named, inner = draft.eagle_aux_hidden_state_layer_ids, draft.eagle_config
    if inner and not inner.use_aux_hidden_state:
        raise FileError(f"{path}: use_aux_hidden_state false is not supported: must be true")
    if inner and inner.eagle_aux_hidden_state_layer_ids is not None:
        shifted = [layer + 1 for layer in inner.eagle_aux_hidden_state_layer_ids]
        if named is not None and sorted(named) != sorted(shifted):
            raise FileError(
                f"{path}: eagle_aux_hidden_state_layer_ids {named} and those in eagle_config, "
                f"which stand for {shifted}, disagree"
            )
        named = shifted
    found = sorted([2, layers // 2, layers - 3] if named is None else named)
    if not found or len(set(found)) < len(found) or not 1 <= found[0] <= found[-1] <= layers:
        origin = "EAGLE-3's default, since none are given" if named is None else "as given"
        raise FileError(
            f"{path}: auxiliary layers {found} ({origin}) must be distinct and lie in 1..{layers}, "
            "the layers of the model"
        )
    return tuple(found)


def _build_model(
    layer: _Layer, target: ModelConfig, aux_layers: tuple[int, ...], path: Path
) -> ModelConfig:
    """A Llama's layer: nothing of the target's but its vocabulary, layers and context. Raises
    ArgumentError."""
    if layer.head_dim is None and layer.hidden_size % layer.num_attention_heads:
        raise FileError(
            f"{path}: hidden_size {layer.hidden_size} must be a multiple of num_attention_heads "
            f"{layer.num_attention_heads} where head_dim is missing"
        )
    context = layer.max_position_embeddings
    outer = Outer(layer.rope_theta, 10_000.0, layer.original_max_position_embeddings, context)
    rope = layer.rope_scaling or layer.rope_parameters
    base, scaling = read_rope(rope, f"{path}: rope", outer)
    return ModelConfig(
        vocab_size=target.vocab_size,
        hidden_size=layer.hidden_size,
        num_hidden_layers=target.num_hidden_layers,
        num_attention_heads=layer.num_attention_heads,
        num_key_value_heads=layer.num_key_value_heads or layer.num_attention_heads,
        head_dim=layer.head_dim or layer.hidden_size // layer.num_attention_heads,
        intermediate_size=layer.intermediate_size,
        context_limit=max(context, target.context_limit),
        rms_norm_eps=layer.rms_norm_eps,
        rope_theta=base,
        rope_scaling=scaling,
        embedding_scale=target.embedding_scale,
        aux_hidden_state_layer_ids=aux_layers,
    )


def with_query_key_norm(config: Eagle3Config) -> Eagle3Config:
    """The same settings for a layer that normalizes queries and keys, as a Qwen 3's does; files
    have it by their tensors alone."""
    return replace(config, model=replace(config.model, query_key_norm=True))
