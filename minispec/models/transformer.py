"""The target: a Llama-style decoder, or one that extends it in the ways of ``ModelConfig``.

RMSNorm, rotary positions, grouped-query attention, SwiGLU: the model that speculative decoding
accelerates and whose distribution it must keep. One property matters more here than in most
implementations: **a forward pass gives the same features for any chunking of its input**, since a
verify pass is a chunk of gamma + 1 tokens where plain decoding reads one.

Gemma 3 stores the weights of its norms minus 1; the loaders add the 1.

Knows nothing of vocabularies as text, of sampling, or of drafts. Shapes: ``B`` sequences, ``T``
new positions, ``S`` cached positions that are attended to, ``D`` hidden size, ``hd`` head_dim.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minispec.models.kv_cache import KVCache
from minispec.models.lm_head import LinearHead
from minispec.models.model_config import ACTIVATIONS, ModelConfig
from minispec.models.rope import AttentionMetadata, apply_rope
from minispec.types import Features


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
        self.query = nn.Linear(input_size, query_size, bias=config.attention_bias)
        self.key = nn.Linear(input_size, key_size, bias=config.attention_bias)
        self.value = nn.Linear(input_size, key_size, bias=config.attention_bias)
        self.output = nn.Linear(query_size, config.hidden_size, bias=config.output_bias)
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
        hidden_size, intermediate_size = config.hidden_size, config.intermediate_size
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=config.mlp_bias)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=config.mlp_bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=config.mlp_bias)
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

    runs_batches = True

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
        return LinearHead((self.embedding if tied else self.output).weight)

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
        config, weight = self.config, self.embedding.weight
        sizes = (batch_size, capacity, config.num_key_value_heads, config.head_dim)
        return KVCache(config.num_hidden_layers, *sizes, weight.dtype, weight.device)

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
        ids = ids.to(self.embedding.weight.device)
        x = self.embedding(ids) * config.embedding_scale  # (B, T, D)
        outputs = []
        for index, layer in enumerate(self.layers):
            own = local if index + 1 in config.local_layers else metadata
            if index + 1 in config.rope_free_layers:
                own = own.without_rope()
            x = layer(x, own, cache, index)
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
