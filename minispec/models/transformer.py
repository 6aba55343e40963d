"""The target: a Llama-style decoder, or Gemma 3, which is one with a few things more.

RMSNorm, rotary positions, grouped-query attention, SwiGLU: the model that speculative
decoding accelerates and whose law it must keep. One property matters more here than in most
implementations: **a forward pass gives the same features for any chunking of its input**,
since a verify pass is nothing but a chunk of gamma + 1 tokens where plain decoding reads one.

Gemma 3 normalises queries and keys, and what attention and MLP give before it is added; gates
with GELU; scales its embeddings; and most of its layers are *local*: they see a window of the
last positions, with a rope of their own. That it writes its norms' weights as 1 + w is undone
where they are read.

Knows nothing of vocabularies as text, of sampling, or of drafts. Shapes: ``B`` rows, ``T``
new positions, ``S`` positions held by the cache, ``D`` width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minispec.errors import ArgumentError
from minispec.models.kv_cache import KVCache
from minispec.models.lm_head import LinearHead
from minispec.models.rope import AttentionMetadata, Rope, RopeScaling, apply_rope
from minispec.types import Features

# What gates an MLP. Hugging Face calls the second ``gelu_pytorch_tanh``.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model. Layers are counted from 1: tap 2 is layer 2's output. What comes
    with a default after ``aux_hidden_state_layer_ids`` is Llama's way, and the other is Gemma's. Raises
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
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = True
    aux_hidden_state_layer_ids: tuple[int, ...] = ()
    activation: str = "silu"
    embedding_scale: float = 1.0
    attention_scale: float | None = None  # None: 1 / sqrt(head_width)
    query_key_norm: bool = False
    post_norms: bool = False  # behind attention and MLP too, not just before
    local_layers: tuple[int, ...] = ()  # that see ``window`` positions, with a rope of their own
    local_rope_theta: float = 10_000.0
    sliding_window: int | None = None
    int8_rows: bool = False  # each row of a matrix lies on a grid of 255 steps (``quantised``)

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
                f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} key heads evenly: "
                "heads must be a multiple of kv_heads"
            )
        if self.head_dim % 2:
            raise ArgumentError(f"head width {self.head_dim} is odd: rotary pairs need it even")
        if any(not 1 <= tap <= self.num_hidden_layers for tap in self.aux_hidden_state_layer_ids):
            raise ArgumentError(
                f"taps {self.aux_hidden_state_layer_ids} must lie in 1..{self.num_hidden_layers}"
            )
        if self.activation not in ACTIVATIONS:
            raise ArgumentError(f"activation {self.activation!r} is none of {[*ACTIVATIONS]}")
        if self.local_layers and not (self.sliding_window and self.sliding_window > 0):
            raise ArgumentError(
                f"local layers need a window of 1 or more, not {self.sliding_window}"
            )

    def rope(self, *, local: bool = False) -> Rope:
        """The places of the layers that see everything, or of the local ones."""
        return Rope(
            self.head_dim,
            self.local_rope_theta if local else self.rope_theta,
            group=self.num_attention_heads // self.num_key_value_heads,
            limit=self.context_limit,
            scaling=None if local else self.rope_scaling,
            window=self.sliding_window if local else None,
        )

    @property
    def beyond_llama(self) -> tuple[str, ...]:
        """The settings that a Llama does not have, for those who run nothing else."""
        names = ("activation", "embedding_scale", "attention_scale", "query_key_norm")
        fields = type(self).__dataclass_fields__
        return tuple(
            name
            for name in (*names, "post_norms", "local_layers")
            if getattr(self, name) != fields[name].default
        )

    def norm(self, width: int, wanted: bool = True) -> nn.Module:
        """A norm, or where none is wanted what changes nothing."""
        return nn.RMSNorm(width, eps=self.rms_norm_eps) if wanted else nn.Identity()


def default_aux_layer_ids(layers: int) -> tuple[int, ...]:
    """Which layers feed the draft: low, middle and high, much as in EAGLE-3
    (arXiv 2503.01840). A model too shallow for that shows its first, middle and last layer, as
    far as these differ."""
    if layers > 8:
        return 2, layers // 2 - 1, layers - 4
    return tuple(sorted({1, (layers + 1) // 2, layers}))


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., arXiv 2305.13245): several query heads share one
    key and value head.

    ``input_width`` differs from the model's width in the draft, whose layer reads an
    embedding and a state side by side.
    """

    def __init__(self, config: ModelConfig, input_width: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        key_width = config.num_key_value_heads * config.head_dim
        self.query = nn.Linear(
            input_width, config.num_attention_heads * config.head_dim, bias=False
        )
        self.key = nn.Linear(input_width, key_width, bias=False)
        self.value = nn.Linear(input_width, key_width, bias=False)
        self.output = nn.Linear(
            config.num_attention_heads * config.head_dim, config.hidden_size, bias=False
        )
        self.query_norm = config.norm(config.head_dim, config.query_key_norm)
        self.key_norm = config.norm(config.head_dim, config.query_key_norm)
        self.scale = config.attention_scale

    def forward(self, x: Tensor, places: AttentionMetadata, cache: KVCache, layer: int) -> Tensor:
        """x (B, T, input_width) -> (B, T, D), over all that the cache then holds of this layer."""
        queries, keys, values = self.project(x, places.cos, places.sin)
        cache.write(layer, places.positions, keys, values)
        seen = places.seen
        return self.attend(
            queries, cache.keys[layer, :, seen], cache.values[layer, :, seen], places.mask
        )

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, input_width), cos and sin (..., 1, hw) -> queries (B, T, heads, hw), keys and
        values (B, T, kv, hw)."""
        split = (-1, self.head_dim)
        queries = apply_rope(self.query_norm(self.query(x).unflatten(-1, split)), cos, sin)
        keys = apply_rope(self.key_norm(self.key(x).unflatten(-1, split)), cos, sin)
        return queries, keys, self.value(x).unflatten(-1, split)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """queries (B, T, heads, hw), keys and values (B, S, kv, hw), mask (B, 1, T * group, S)
        -> (B, T, D)."""
        # Query heads that share a key head become further query positions of it: then each
        # key is read once for the whole group, which is what grouping was invented for.
        new, num_key_value_heads = queries.shape[1], keys.shape[2]
        group = queries.shape[2] // num_key_value_heads
        grouped = queries.unflatten(2, (num_key_value_heads, group)).transpose(
            1, 2
        )  # (B, kv, T, group, hw)
        attended = F.scaled_dot_product_attention(
            grouped.flatten(2, 3),  # (B, kv, T * group, hw)
            keys.transpose(1, 2),  # (B, kv, S, hw)
            values.transpose(1, 2),
            attn_mask=mask,
            scale=self.scale,
        )  # (B, kv, T * group, hw)
        attended = attended.unflatten(2, (new, group)).transpose(1, 2)  # (B, T, kv, group, hw)
        return self.output(attended.flatten(2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), or GeGLU with GELU in its place (Shazeer, arXiv
    2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.down(self.activation(self.gate(x)) * self.up(x))  # (B, T, D)


class Layer(nn.Module):
    """One decoder layer: attention, then MLP, each behind a norm and added to the stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = config.norm(config.hidden_size)
        self.attention = Attention(config, config.hidden_size)
        self.attention_post_norm = config.norm(config.hidden_size, config.post_norms)
        self.mlp_norm = config.norm(config.hidden_size)
        self.mlp = MLP(config)
        self.mlp_post_norm = config.norm(config.hidden_size, config.post_norms)

    def forward(self, x: Tensor, places: AttentionMetadata, cache: KVCache, layer: int) -> Tensor:
        """The stream (B, T, D) -> (B, T, D)."""
        attended = self.attention(self.attention_norm(x), places, cache, layer)
        x = x + self.attention_post_norm(attended)
        return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x)))  # (B, T, D)


class Transformer(nn.Module):
    """The decoder. Its LM head is apart (``head``), since not everyone asks for all of it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        rows = torch.empty(config.vocab_size, config.hidden_size)
        if not rows.is_meta:  # drawing numbers on the meta device imports all of the compiler
            nn.init.normal_(rows)
        self.embedding = nn.Embedding.from_pretrained(rows, freeze=False)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = config.norm(config.hidden_size)
        self.rope, self.local_rope = config.rope(), config.rope(local=True)
        if not config.tie_word_embeddings:
            self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head(self) -> LinearHead:
        """The LM head: the embedding's own rows where the two are tied."""
        return LinearHead(
            (self.embedding if self.config.tie_word_embeddings else self.output).weight
        )

    @property
    def last_layer(self) -> Layer:
        """The layer whose output the final norm reads."""
        layer = self.layers[-1]
        assert isinstance(layer, Layer)
        return layer

    @property
    def context_limit(self) -> int:
        """The most positions that a sequence may have."""
        return self.config.context_limit

    def new_cache(self, capacity: int, rows: int = 1) -> KVCache:
        """An empty cache for ``rows`` sequences of at most ``capacity`` positions each."""
        config, weight = self.config, self.embedding.weight
        return KVCache(
            config.num_hidden_layers,
            rows,
            capacity,
            config.num_key_value_heads,
            config.head_dim,
            weight.dtype,
            weight.device,
        )

    def forward(self, ids: Tensor, cache: KVCache) -> Features:
        """ids (B, T), read after what the cache holds -> hidden (B, T, D), taps (B, T, n * D).

        Raises ContextError, before anything is changed, if they do not fit the cache.
        """
        config = self.config
        places = self.rope.places(cache, ids.shape[1])
        near = self.local_rope.places(cache, ids.shape[1]) if config.local_layers else places
        x = self.embedding(ids) * config.embedding_scale  # (B, T, D)
        aux_hidden_states = []
        for index, layer in enumerate(self.layers):
            x = layer(x, near if index + 1 in config.local_layers else places, cache, index)
            if index + 1 in config.aux_hidden_state_layer_ids:
                aux_hidden_states.append(x / config.embedding_scale)
        cache.advance(ids.shape[1])
        return Features(
            self.norm(x), torch.cat(aux_hidden_states, dim=-1) if aux_hidden_states else x[..., :0]
        )

    @torch.inference_mode()
    def step(self, ids: Tensor, cache: KVCache) -> Features:
        """The pass of one sequence: ids (T,) -> hidden (T, D), taps (T, n * D)."""
        features = self(ids[None], cache)
        return Features(features.hidden[0], features.aux_hidden_states[0])
