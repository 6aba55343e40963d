"""The configuration of a model from the settings in a GGUF file.

Settings are read as llama.cpp reads them. Every setting of the architecture is read, or cannot
change what is computed, or is refused by name.

Knows nothing of weights.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

from minispec.errors import ArgumentError, FileError
from minispec.io.model_state import Count, Width
from minispec.io.schema import Index, Positive, Size, convert
from minispec.models.model_config import ModelConfig, default_aux_layer_ids
from minispec.models.rope import FrequencyFactors

ARCHITECTURES = ("llama", "gemma3", "qwen2", "qwen3", "smollm3")  # a Mistral is a "llama"
_ROPE_FREE_PERIOD = 4  # of a SmolLM3, whose files do not have it

PerLayer = list[Annotated[int, Meta(ge=0, le=2**20)]]  # some files give one number for each layer
NotNegative = Annotated[float, Meta(ge=0, le=1e300)]

_NAMES = {  # our names of those that are called otherwise
    "num_heads": "attention.head_count",
    "key_heads": "attention.head_count_kv",
    "key_length": "attention.key_length",
    "value_length": "attention.value_length",
    "epsilon": "attention.layer_norm_rms_epsilon",
    "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern",
    "rope_dimensions": "rope.dimension_count",
    "rope_base": "rope.freq_base",
    "local_rope_base": "rope.freq_base_swa",
    "scaling_type": "rope.scaling.type",
    "scaling_factor": "rope.scaling.factor",
    "scale_linear": "rope.scale_linear",
}


class _Settings(Struct, rename=_NAMES):
    """The settings that are read, with the defaults of llama.cpp."""

    block_count: Count
    context_length: Size
    embedding_length: Width
    feed_forward_length: Width | PerLayer
    num_heads: Count | PerLayer
    epsilon: NotNegative
    key_heads: Count | PerLayer | None = None
    key_length: Count | None = None
    value_length: Count | None = None
    rope_dimensions: Index | None = None
    rope_base: Positive = 10_000.0
    local_rope_base: Positive = 10_000.0
    scaling_type: str = "linear"
    scaling_factor: NotNegative | None = None
    scale_linear: NotNegative = 0.0  # the older name of the factor
    sliding_window: Index | None = None
    sliding_window_pattern: Count = 6


_READ = {_NAMES.get(name, name) for name in _Settings.__struct_fields__}
# Settings that do not change what is computed here.
_IRRELEVANT = {
    "vocab_size",  # the length of the token list counts
    "tensor_data_layout",
    "pooling_type",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",  # only yarn and longrope need it
    "mm.tokens_per_image",
}
# Settings with the values that mean what is computed here.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_parallel_residual": (False,),
    "attention.causal": (True,),
    "attention.scale": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attention.shared_kv_layers": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "nextn_predict_layers": (0,),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.alpha": (0,),
    "rope.scaling.yarn_ext_factor": (-1, 0),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_beta_fast": (32,),
    "rope.scaling.yarn_beta_slow": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
}
_HEAD_SIZES = ("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa")


class _General(Struct, rename={"tokens": "tokenizer.ggml.tokens", "kind": "general.architecture"}):
    """What is read of the settings without the architecture's name before them."""

    kind: str
    tokens: list[str]


def read_config(
    metadata: Mapping[str, Any], *, tied: bool, rope_factors: Sequence[float] | None
) -> ModelConfig:
    """The configuration; ``tied``: the file has no head of its own; ``rope_factors``: what its
    tensor of rope frequency factors holds. Raises FileError by the names of the file's settings."""
    general = convert(dict(metadata), _General, "metadata")
    if general.kind not in ARCHITECTURES:
        raise FileError(
            f"architecture {general.kind!a} is not supported: must be one of "
            f"{', '.join(map(ascii, ARCHITECTURES))}"
        )
    prefix = f"{general.kind}."
    data = {
        name.removeprefix(prefix): value
        for name, value in metadata.items()
        if name.startswith(prefix)
    }
    settings = convert(data, _Settings, general.kind)
    layers, hidden_size = settings.block_count, settings.embedding_length
    heads = _one_number(settings.num_heads, "attention.head_count")
    if heads == 0:
        raise FileError(f"{prefix}attention.head_count must be at least 1")
    head_dim = settings.key_length or hidden_size // heads
    _check_others(data, prefix, head_dim)
    for name, found in (
        ("attention.value_length", settings.value_length),
        ("rope.dimension_count", settings.rope_dimensions),
    ):
        if found not in (None, head_dim):
            raise FileError(
                f"{prefix}{name} {found} is not supported: must be {head_dim}, the size of a head "
                "(values of another size, or rotary embedding of a part of each head)"
            )
    more: dict[str, Any] = dict(aux_hidden_state_layer_ids=default_aux_layer_ids(layers))
    if general.kind == "gemma3":
        more |= _gemma(settings, heads)
    elif (settings.sliding_window or settings.context_length) < settings.context_length:
        raise FileError(
            f"{prefix}attention.sliding_window {settings.sliding_window} is not supported: must "
            "be absent or at least the context length"
        )
    if general.kind == "qwen2":
        more["attention_bias"] = True
    elif general.kind == "qwen3":
        more["query_key_norm"] = True
    elif general.kind == "smollm3":
        more["rope_free_layers"] = tuple(range(_ROPE_FREE_PERIOD, layers + 1, _ROPE_FREE_PERIOD))
    key_heads = settings.num_heads if settings.key_heads is None else settings.key_heads
    try:
        return ModelConfig(
            vocab_size=len(general.tokens),
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=_one_number(key_heads, "attention.head_count_kv"),
            head_dim=head_dim,
            intermediate_size=_one_number(settings.feed_forward_length, "feed_forward_length"),
            context_limit=settings.context_length,
            rms_norm_eps=settings.epsilon,
            rope_theta=settings.rope_base,
            rope_scaling=_rope_scaling(settings, prefix, rope_factors),
            tie_word_embeddings=tied,
            **more,
        )
    except ArgumentError as error:
        raise FileError(str(error)) from None


def _gemma(settings: _Settings, heads: int) -> dict[str, Any]:
    """The settings that a Gemma has and a Llama does not."""
    if not settings.sliding_window:
        raise FileError(
            f"gemma3.attention.sliding_window {settings.sliding_window} must be at least 1"
        )
    layers = range(1, settings.block_count + 1)
    return dict(
        activation="gelu_tanh",
        embedding_scale=settings.embedding_length**0.5,
        # Fixed by the number of layers: the 27B model, of 62, scales by the hidden size.
        attention_scale=(settings.embedding_length / heads) ** -0.5 if len(layers) == 62 else None,
        query_key_norm=True,
        post_norms=True,
        local_layers=tuple(layer for layer in layers if layer % settings.sliding_window_pattern),
        local_rope_theta=settings.local_rope_base,
        sliding_window=settings.sliding_window,
        # The low layer adds little to the embedding, and would make the draft larger.
        aux_hidden_state_layer_ids=default_aux_layer_ids(len(layers))[1:],
    )


def _rope_scaling(
    settings: _Settings, prefix: str, rope_factors: Sequence[float] | None
) -> FrequencyFactors | None:
    """Linear scaling, which llama.cpp assumes of a factor without a type, and the factors of the
    frequencies that Llama 3.1 files hold as a tensor."""
    if settings.scaling_type not in ("none", "linear"):
        raise FileError(
            f"{prefix}rope.scaling.type {settings.scaling_type!a} is not supported: must be 'none' "
            "or 'linear'"
        )
    factor = settings.scaling_factor
    factor = settings.scale_linear if factor is None else factor
    if settings.scaling_type == "none" or factor == 0:
        factor = 1.0
    if rope_factors is None and factor == 1:
        return None
    return FrequencyFactors(tuple(factor * f for f in rope_factors or (1.0,)))


def _one_number(value: int | Sequence[int], name: str) -> int:
    """The number that a setting gives for all layers alike."""
    if isinstance(value, int):
        return value
    if len(set(value)) != 1:
        raise FileError(f"{name} {[*value]} is not supported: must be the same in all layers")
    return value[0]


def _check_others(data: Mapping[str, Any], prefix: str, head_dim: int) -> None:
    """Refuses a setting that is not read and could change what is computed."""
    for name, value in data.items():
        if name in _READ or name in _IRRELEVANT:
            continue
        wanted = (head_dim,) if name in _HEAD_SIZES else _NEUTRAL.get(name)
        if wanted is None:
            raise FileError(f"setting {prefix}{name} is not supported: must be absent")
        if value not in wanted:
            raise FileError(
                f"{prefix}{name} {value!a} is not supported: must be {wanted[0]!a} or absent"
            )
