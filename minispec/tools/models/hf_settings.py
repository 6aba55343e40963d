"""The settings in ``config.json`` that are read, by family, with transformers' defaults.

Knows nothing of what they mean.
"""

from typing import Annotated, Any

from msgspec import Meta, Struct

from minispec.io.model_state import Count, Width
from minispec.io.schema import Positive, Size

EndIds = Annotated[int, Meta(ge=-1, lt=2**31)] | list[Annotated[int, Meta(ge=-1, lt=2**31)]]

# Settings with the values that mean what is computed here. Absent or null is the first of them.
COMMON: dict[str, tuple[Any, ...]] = {
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
    "hidden_act": ("silu", "swish"),
}


class Config(Struct):
    """The settings that are read of all families, with the defaults of a Llama."""

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
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: Positive | None = None
    rope_parameters: dict[str, Any] = {}
    rope_scaling: dict[str, Any] = {}
    original_max_position_embeddings: Size | None = None
    sliding_window: Size | None = None
    layer_types: list[str] | None = None
    eos_token_id: EndIds | None = None


class Mistral(Config):
    """Those of a Mistral."""

    num_key_value_heads: Count | None = 8
    max_position_embeddings: Size = 131_072
    sliding_window: Size | None = 4096


class Qwen2(Config):
    """Those of a Qwen 2."""

    num_key_value_heads: Count | None = 32
    max_position_embeddings: Size = 32_768
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    max_window_layers: Annotated[int, Meta(ge=0, le=2**16)] = 28


class Qwen3(Qwen2):
    """Those of a Qwen 3."""

    head_dim: Count | None = 128


class SmolLM3(Config):
    """Those of a SmolLM3."""

    num_key_value_heads: Count | None = 4
    max_position_embeddings: Size = 32_768
    tie_word_embeddings: bool = True
    use_sliding_window: bool = False
    no_rope_layers: list[Annotated[int, Meta(ge=0, le=1)]] | None = None  # 1: with rope
    no_rope_layer_interval: Count = 4


class Gemma(Config):
    """Those of a Gemma 3."""

    num_key_value_heads: Count | None = 4
    head_dim: Count | None = 256
    max_position_embeddings: Size = 131_072
    tie_word_embeddings: bool = True
    sliding_window: Size | None = 4096
    sliding_window_pattern: Count = 6
    rope_local_base_freq: Positive | None = None
    query_pre_attn_scalar: Positive = 256.0
