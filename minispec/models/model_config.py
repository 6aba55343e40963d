"""The hyperparameters of a target: a Llama, or what differs from one in a few settings.

A Mistral has sliding windows; a Qwen 2 has biases, a Qwen 3 normalized queries and keys; a SmolLM3
has layers without rotary positions. A Gemma 3 also normalizes the outputs of attention and MLP; its
activation is GELU; it scales its embeddings; and most of its layers are *local*: they attend to a
sliding window and have a RoPE of their own.

Knows nothing of weights.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from minispec.errors import ArgumentError
from minispec.models.rope import Rope, Scaling, check_rope

# Activations of the MLP's gate. Hugging Face calls the second one ``gelu_pytorch_tanh``.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


@dataclass(frozen=True)
class ModelConfig:
    """The hyperparameters of a model, named as in Hugging Face where it has them.

    Layers are counted from 1: an auxiliary hidden state of layer 2 is the output of the second
    layer. The defaults from ``activation`` on are those of a Llama; a Gemma 3 sets them. Raises
    ArgumentError on construction."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    context_limit: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: Scaling | None = None
    tie_word_embeddings: bool = True
    aux_hidden_state_layer_ids: tuple[int, ...] = ()
    activation: str = "silu"
    embedding_scale: float = 1.0
    attention_scale: float | None = None  # None: 1 / sqrt(head_dim)
    attention_bias: bool = False  # of queries, keys and values
    output_bias: bool = False  # of attention's output
    mlp_bias: bool = False
    query_key_norm: bool = False
    post_norms: bool = False  # also after attention and MLP, not only before
    local_layers: tuple[int, ...] = ()  # layers with ``sliding_window`` and a RoPE of their own
    local_rope_theta: float = 10_000.0
    local_rope_scaling: Scaling | None = None
    sliding_window: int | None = None
    rope_free_layers: tuple[int, ...] = ()  # layers without rotary positions
    int8_rows: bool = False  # the rows of its matrices lie on int8 grids (see ``int8``)

    def __post_init__(self) -> None:
        sizes = (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim",
        )  # fmt: skip
        for name in (*sizes, "intermediate_size", "context_limit"):
            if not isinstance(size := getattr(self, name), int) or size < 1:
                raise ArgumentError(f"{name} {size!a} must be a whole number of at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ArgumentError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        check_rope(self.head_dim, self.rope_theta, self.rope_scaling)
        check_rope(self.head_dim, self.local_rope_theta, self.local_rope_scaling)
        if not 0 <= self.rms_norm_eps < math.inf:
            raise ArgumentError(f"rms_norm_eps {self.rms_norm_eps} must be a finite number from 0")
        if self.head_dim % 2:
            raise ArgumentError(f"head_dim {self.head_dim} must be even: RoPE rotates pairs")
        if any(not 1 <= i <= self.num_hidden_layers for i in self.aux_hidden_state_layer_ids):
            raise ArgumentError(
                f"aux_hidden_state_layer_ids {self.aux_hidden_state_layer_ids} must lie in "
                f"1..{self.num_hidden_layers}, the layers of the model"
            )
        if self.activation not in ACTIVATIONS:
            raise ArgumentError(
                f"unknown activation {self.activation!r}: known are {', '.join(ACTIVATIONS)}"
            )
        if self.local_layers and not (self.sliding_window and self.sliding_window > 0):
            raise ArgumentError(
                f"sliding_window {self.sliding_window} must be at least 1: local_layers need it"
            )

    def build_rope(self, *, local: bool = False) -> Rope:
        """The RoPE and mask of the global layers, or of the local ones."""
        return Rope(
            self.head_dim,
            self.local_rope_theta if local else self.rope_theta,
            group=self.num_attention_heads // self.num_key_value_heads,
            context_limit=self.context_limit,
            scaling=self.local_rope_scaling if local else self.rope_scaling,
            window=self.sliding_window if local else None,
        )

    @property
    def beyond_llama(self) -> tuple[str, ...]:
        """The settings that differ from a Llama's, for backends that support only a Llama."""
        names = (
            "activation", "embedding_scale", "attention_scale", "attention_bias", "output_bias",
            "mlp_bias", "query_key_norm", "post_norms", "local_layers", "rope_free_layers",
        )  # fmt: skip
        fields = type(self).__dataclass_fields__
        return tuple(name for name in names if getattr(self, name) != fields[name].default)

    def build_norm(self, size: int, enabled: bool = True) -> nn.Module:
        """An RMSNorm, or the identity if it is not ``enabled``."""
        return nn.RMSNorm(size, eps=self.rms_norm_eps) if enabled else nn.Identity()


def default_aux_layer_ids(num_hidden_layers: int) -> tuple[int, ...]:
    """The layers whose outputs the draft reads: low, middle and high, much as in EAGLE-3
    (arXiv 2503.01840). In a model of 8 layers or fewer, the first, middle and last layer, as far
    as these differ."""
    last = num_hidden_layers
    if last > 8:
        return 2, last // 2 - 1, last - 4
    return tuple(sorted({1, (last + 1) // 2, last}))
