"""The target: a Llama-style decoder, or Gemma 3, which extends it.

RMSNorm, rotary positions, grouped-query attention, SwiGLU: the model that speculative decoding
accelerates and whose distribution it must keep. One property matters more here than in most
implementations: **a forward pass gives the same features for any chunking of its input**, since a
verify pass is a chunk of gamma + 1 tokens where plain decoding reads one.

Gemma 3 also normalizes queries and keys, and the outputs of attention and MLP; its activation is
GELU; it scales its embeddings; and most of its layers are *local*: they attend to a sliding window
and have a RoPE of their own. (It stores the weights of its norms minus 1; the loaders add the 1.)

Knows nothing of vocabularies as text, of sampling, or of drafts. Shapes: ``B`` sequences, ``T``
new positions, ``S`` cached positions that are attended to, ``D`` hidden size, ``hd`` head_dim.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minispec.errors import ArgumentError
from minispec.models.kv_cache import KVCache
from minispec.models.lm_head import LinearHead
from minispec.models.quantized_modules import rows_of
from minispec.models.rope import AttentionMetadata, Rope, Scaling, apply_rope, check_rope
from minispec.types import Features

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
    query_key_norm: bool = False
    post_norms: bool = False  # also after attention and MLP, not only before
    local_layers: tuple[int, ...] = ()  # layers with ``sliding_window`` and a RoPE of their own
    local_rope_theta: float = 10_000.0
    sliding_window: int | None = None
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
        for theta in (self.rope_theta, self.local_rope_theta):
            check_rope(self.head_dim, theta, self.rope_scaling)
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
            scaling=None if local else self.rope_scaling,
            window=self.sliding_window if local else None,
        )

    @property
    def beyond_llama(self) -> tuple[str, ...]:
        """The settings that differ from a Llama's, for backends that support only a Llama."""
        names = ("activation", "embedding_scale", "attention_scale", "query_key_norm")
        fields = type(self).__dataclass_fields__
        return tuple(
            name
            for name in (*names, "post_norms", "local_layers")
            if getattr(self, name) != fields[name].default
        )

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


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., arXiv 2305.13245): several query heads share one
    key and value head.

    ``input_size`` is the hidden size, or twice that in the draft, whose layer reads an embedding
    and a state side by side.
    """

    def __init__(self, config: ModelConfig, input_size: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        query_size = config.num_attention_heads * config.head_dim
        self.query = nn.Linear(input_size, query_size, bias=False)
        self.key = nn.Linear(input_size, key_size, bias=False)
        self.value = nn.Linear(input_size, key_size, bias=False)
        self.output = nn.Linear(query_size, config.hidden_size, bias=False)
        self.query_norm = config.build_norm(config.head_dim, config.query_key_norm)
        self.key_norm = config.build_norm(config.head_dim, config.query_key_norm)
        self.scale = config.attention_scale

    def forward(self, x: Tensor, metadata: AttentionMetadata, cache: KVCache, layer: int) -> Tensor:
        """x (B, T, input_size) -> (B, T, D): writes keys and values to the cache of this layer,
        then attends to all that it holds."""
        queries, keys, values = self.project(x, metadata.cos, metadata.sin)
        cache.write(layer, metadata.positions, keys, values)
        keys = cache.keys[layer, :, metadata.key_slice]  # (B, S, kv_heads, hd)
        values = cache.values[layer, :, metadata.key_slice]
        return self.attend(queries, keys, values, metadata.mask)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, input_size), cos and sin (..., 1, hd) -> queries (B, T, heads, hd), keys and
        values (B, T, kv_heads, hd)."""
        heads = (-1, self.head_dim)
        queries = self.query_norm(self.query(x).unflatten(-1, heads))  # (B, T, heads, hd)
        keys = self.key_norm(self.key(x).unflatten(-1, heads))  # (B, T, kv_heads, hd)
        values = self.value(x).unflatten(-1, heads)  # (B, T, kv_heads, hd)
        return apply_rope(queries, cos, sin), apply_rope(keys, cos, sin), values

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """queries (B, T, heads, hd), keys and values (B, S, kv_heads, hd), mask
        (B, 1, T * group, S) -> (B, T, D)."""
        # The query heads that share a key head become further query positions of it. So each key
        # is read once for the whole group, which is the point of grouping.
        new, num_key_value_heads = queries.shape[1], keys.shape[2]
        group = queries.shape[2] // num_key_value_heads
        grouped = queries.unflatten(2, (num_key_value_heads, group))  # (B, T, kv_heads, group, hd)
        grouped = grouped.transpose(1, 2)  # (B, kv_heads, T, group, hd)
        attended = F.scaled_dot_product_attention(
            grouped.flatten(2, 3),  # (B, kv_heads, T * group, hd)
            keys.transpose(1, 2),  # (B, kv_heads, S, hd)
            values.transpose(1, 2),
            attn_mask=mask,
            scale=self.scale,
        )  # (B, kv_heads, T * group, hd)
        attended = attended.unflatten(2, (new, group)).transpose(1, 2)
        return self.output(attended.flatten(2))  # (B, T, heads * hd) -> (B, T, D)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), or GeGLU, with GELU for silu (Shazeer, arXiv
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
    """One decoder layer: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = config.build_norm(config.hidden_size)
        self.attention = Attention(config, config.hidden_size)
        self.attention_post_norm = config.build_norm(config.hidden_size, config.post_norms)
        self.mlp_norm = config.build_norm(config.hidden_size)
        self.mlp = MLP(config)
        self.mlp_post_norm = config.build_norm(config.hidden_size, config.post_norms)

    def forward(self, x: Tensor, metadata: AttentionMetadata, cache: KVCache, layer: int) -> Tensor:
        """x (B, T, D) -> (B, T, D). ``layer``, counted from 0, is its index in the cache."""
        attended = self.attention(self.attention_norm(x), metadata, cache, layer)  # (B, T, D)
        x = x + self.attention_post_norm(attended)
        return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x)))  # (B, T, D)


class Transformer(nn.Module):
    """The decoder. Its LM head is separate (``head``), since not every caller needs all logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        rows = torch.empty(config.vocab_size, config.hidden_size)
        if not rows.is_meta:  # random numbers on the meta device would import torch's compiler
            nn.init.normal_(rows)
        self.embedding = nn.Embedding.from_pretrained(rows, freeze=False)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = config.build_norm(config.hidden_size)
        self.rope, self.local_rope = config.build_rope(), config.build_rope(local=True)
        if not config.tie_word_embeddings:
            self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head(self) -> LinearHead:
        """The LM head: the rows of the embedding if the two are tied."""
        tied = self.config.tie_word_embeddings
        return LinearHead(rows_of(self.embedding if tied else self.output))

    @property
    def last_layer(self) -> Layer:
        """The layer before the final norm."""
        layer = self.layers[-1]
        assert isinstance(layer, Layer)
        return layer

    @property
    def context_limit(self) -> int:
        """The most positions that a sequence may have."""
        return self.config.context_limit

    def new_cache(self, capacity: int, batch_size: int = 1) -> KVCache:
        """An empty cache for ``batch_size`` sequences of at most ``capacity`` positions each."""
        config, rows = self.config, rows_of(self.embedding)
        sizes = (batch_size, capacity, config.num_key_value_heads, config.head_dim)
        return KVCache(config.num_hidden_layers, *sizes, rows.dtype, rows.device)

    def forward(
        self, ids: Tensor, cache: KVCache, parents: Sequence[int] | None = None
    ) -> Features:
        """ids (B, T), appended to what the cache holds -> hidden (B, T, D), auxiliary hidden states
        (B, T, n_aux * D). With ``parents`` (T,) they are a tree, and B is 1. Raises ContextError,
        before anything changes, if they exceed the cache or the context."""
        config, new = self.config, ids.shape[1]
        metadata = local = self.rope.attention_metadata(cache, new, parents)
        if config.local_layers:
            local = self.local_rope.attention_metadata(cache, new, parents)
        ids = ids.to(rows_of(self.embedding).device)
        x = self.embedding(ids) * config.embedding_scale  # (B, T, D)
        outputs = []
        for index, layer in enumerate(self.layers):
            x = layer(x, local if index + 1 in config.local_layers else metadata, cache, index)
            if index + 1 in config.aux_hidden_state_layer_ids:
                outputs.append(x / config.embedding_scale)  # in the units of the embeddings
        cache.advance(new)
        aux_hidden_states = torch.cat(outputs, dim=-1) if outputs else x[..., :0]
        return Features(self.norm(x), aux_hidden_states)

    @torch.inference_mode()
    def step(self, ids: Tensor, cache: KVCache, parents: Sequence[int] | None = None) -> Features:
        """One sequence: ids (T,) -> hidden (T, D), auxiliary hidden states (T, n_aux * D). Raises
        ContextError as ``forward``."""
        features = self(ids[None], cache, parents)
        return Features(features.hidden[0], features.aux_hidden_states[0])
