"""The draft: one decoder layer that runs ahead of the target (EAGLE-3, arXiv 2503.01840).

At position t the layer reads the embedding of token t+1, which is known, and a *state* for
position t. At a position that the target has processed, the state is a linear projection
(``fusion``, named ``fc`` in EAGLE-3) of the outputs of three of its layers, low, middle and high:
the auxiliary hidden states. The layer's output plays two roles. After the final norm it is
multiplied with rows of the LM head, to predict token t+2. And it is the state of the next position
where the draft runs ahead of the target.

One difference from EAGLE-3: its draft has an LM head of its own, ours shares the target's.

With ``norms`` it is an EAGLE-3.1 draft (arXiv 2605.09992; ``fc_norm`` and ``norm_output`` in vLLM's
names): each auxiliary hidden state is normed before the projection, and the final norm is part of
the layer, so that what the next position reads has the same scale at every depth. Knows nothing of
how the shortlist is chosen, nor of training.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from minispec.models.kv_cache import KVCache
from minispec.models.lm_head import PackedHead
from minispec.models.model_config import ModelConfig
from minispec.models.quantized_matrix import Rows
from minispec.models.quantized_modules import copy_dequantized, rows_of
from minispec.models.reference import Reference
from minispec.models.transformer import MLP, Attention, Transformer


class EagleDraft(nn.Module):
    """One layer on [embedding; state], with its own final norm before the target's LM head."""

    def __init__(
        self, config: ModelConfig, embedding: Rows, head: PackedHead, norms: bool = False
    ) -> None:
        """``config``, ``embedding`` (V, D) and the rows of ``head`` are the target's; ``norms``:
        those of EAGLE-3.1."""
        super().__init__()
        self.config = config  # the target's: the draft is one more layer of it
        self.embedding, self.head = embedding, head  # the target's: not parameters of the draft
        hidden_size = config.hidden_size
        num_aux = len(config.aux_hidden_state_layer_ids)
        self.norms = norms
        self.fusion_norms = nn.ModuleList(
            config.build_norm(hidden_size) for _ in range(num_aux if norms else 0)
        )
        self.fusion = nn.Linear(num_aux * hidden_size, hidden_size, bias=False)  # EAGLE-3's fc
        self.embedding_norm = config.build_norm(hidden_size)
        self.state_norm = config.build_norm(hidden_size)
        self.attention = Attention(config, 2 * hidden_size)
        self.attention_post_norm = config.build_norm(hidden_size, config.post_norms)
        self.mlp_norm = config.build_norm(hidden_size)
        self.mlp = MLP(config)
        self.mlp_post_norm = config.build_norm(hidden_size, config.post_norms)
        self.output_norm = config.build_norm(hidden_size, norms)
        self.norm = config.build_norm(hidden_size, not norms)  # the final norm is one of these two
        self.rope = (
            config.build_rope()
        )  # global attention, even if the last layer of the target is local
        self.version = 0  # increases when weights change, so that backends repack them

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence of at most ``capacity`` positions."""
        config, weight = self.config, self.fusion.weight
        return KVCache(
            1, 1, capacity, config.num_key_value_heads, config.head_dim, weight.dtype, weight.device
        )

    @torch.inference_mode()
    def fuse(self, aux_hidden_states: Tensor) -> Tensor:
        """Auxiliary hidden states (T, n_aux * D) of the target -> states (T, D)."""
        return self.run_fusion(aux_hidden_states)

    @torch.inference_mode()
    def step(
        self, ids: Tensor, states: Tensor, cache: KVCache, parents: Sequence[int] | None = None
    ) -> Tensor:
        """States (T, D) of positions, and for each the token after it, ids (T,) -> the draft's own
        states (T, D). ``parents`` (N,): of a tree, see ``Draft.step``.

        Raises ContextError, before anything changes, if they exceed the cache or the context.
        """
        metadata = self.rope.attention_metadata(cache, len(ids), parents)
        output = self.run_layer(
            ids[None], states[None], lambda x: self.attention(x, metadata, cache, 0)
        )  # (1, T, D)
        cache.advance(len(ids))
        return output[0]

    @torch.inference_mode()
    def apply_final_norm(self, states: Tensor) -> Tensor:
        """The draft's own states (..., D) -> hidden states for the LM head (..., D)."""
        return self.norm(states)

    def with_own_head(self) -> "EagleDraft":
        """The same weights with a packed head of its own: drafts with different shortlists that
        take turns on a shared head would repack its rows at every turn."""
        twin = copy.copy(self)
        twin.head = PackedHead(self.head.weight)
        return twin

    def run_fusion(self, aux_hidden_states: Tensor) -> Tensor:
        """``fuse`` with gradients: (..., n_aux * D) -> (..., D)."""
        if self.norms:
            parts = aux_hidden_states.chunk(len(self.fusion_norms), dim=-1)  # (..., D) each
            normed = [norm(part) for norm, part in zip(self.fusion_norms, parts, strict=True)]
            aux_hidden_states = torch.cat(normed, dim=-1)
        return self.fusion(aux_hidden_states)

    def run_layer(self, ids: Tensor, states: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """The forward pass of the layer: ids (B, T), states (B, T, D) -> (B, T, D). ``attend`` is
        the attention, with the keys and values that the caller keeps of earlier positions."""
        embedded = self.embedding_norm(self.embedding[ids.to(self.embedding.device)])  # (B, T, D)
        inputs = torch.cat((embedded, self.state_norm(states)), dim=-1)  # (B, T, 2 * D)
        attended = attend(inputs)  # (B, T, D)
        x = states + self.attention_post_norm(attended)
        return self.output_norm(x + self.mlp_post_norm(self.mlp(self.mlp_norm(x))))


def init_draft(target: Reference) -> EagleDraft:
    """A draft to train for a target: from its last layer, or, of a target that is not ours, one
    whose ``fusion`` passes on the highest auxiliary hidden state. Random numbers come from torch's
    default generator."""
    if isinstance(target, Transformer):
        return init_from_target(target)
    draft = build_draft(target)
    with torch.no_grad():
        _pass_on_highest(draft)
        for weight in (draft.attention.output.weight, draft.mlp.down.weight):
            weight.mul_(0.1)  # what it adds to that state is small at first
    return draft


def _pass_on_highest(draft: EagleDraft) -> None:
    hidden_size = draft.config.hidden_size
    draft.fusion.weight.zero_()
    draft.fusion.weight[:, -hidden_size:] = torch.eye(hidden_size)


def init_from_target(target: Transformer) -> EagleDraft:
    """A draft initialized with the target's last layer, so that it computes almost what that layer
    does: ``fusion`` passes on the highest auxiliary hidden state, and the weights for the embedding
    are near zero. It trains several times faster than from random weights. Random numbers come
    from torch's default generator."""
    draft = build_draft(target)
    hidden_size, last = target.config.hidden_size, copy_dequantized(target.last_layer)
    with torch.no_grad():
        _pass_on_highest(draft)
        for name in ("query", "key", "value"):
            module, theirs = getattr(draft.attention, name), getattr(last.attention, name)
            noise = torch.randn_like(module.weight[:, :hidden_size]) * 0.01
            module.weight.copy_(torch.cat((noise, theirs.weight), dim=1))
            if theirs.bias is not None:
                module.bias.copy_(theirs.bias)
        for name in ("output", "query_norm", "key_norm"):
            module = getattr(draft.attention, name)
            module.load_state_dict(getattr(last.attention, name).state_dict())
        for name in ("attention_post_norm", "mlp_norm", "mlp", "mlp_post_norm"):
            getattr(draft, name).load_state_dict(getattr(last, name).state_dict())
        draft.state_norm.load_state_dict(last.attention_norm.state_dict())
        draft.norm.load_state_dict(target.norm.state_dict())
        # Their outputs, if these norms are enabled, are added to states in units of the embeddings.
        for norm in (draft.attention_post_norm, draft.mlp_post_norm):
            for weight in norm.parameters():
                weight.div_(target.config.embedding_scale)
    return draft


def build_draft(target: Reference, norms: bool = False) -> EagleDraft:
    """A draft of this target with uninitialized weights, for a file to be loaded into."""
    embedding = rows_of(target.embedding)
    draft = EagleDraft(target.config, embedding, PackedHead(target.head.weight), norms)
    return draft.to(embedding.device, embedding.dtype).eval()
