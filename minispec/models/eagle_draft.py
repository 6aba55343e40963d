"""The draft: one decoder layer that runs ahead of the target (EAGLE-3, arXiv 2503.01840).

At position t the layer reads the embedding of token t+1, which is known, and a *state*: what
the target made of position t. Its output is both a guess of the target's hidden state at
position t+1, to be multiplied with rows of the target's own LM head, and the state with which
it reads on by itself when it runs ahead. The state of a position that the target has read is
a mixture ("fusion") of three of the target's layers, low, middle and high.

The draft owns no embedding and no head: it shares the target's. Knows nothing of how the ids
that it may propose are chosen, nor of how it was trained.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minispec.models.kv_cache import KVCache
from minispec.models.lm_head import PackedHead
from minispec.models.transformer import MLP, Attention, ModelConfig, Transformer


class EagleDraft(nn.Module):
    """One layer on [embedding; state], with a norm of its own before the target's LM head."""

    def __init__(self, config: ModelConfig, embedding: Tensor, head: PackedHead) -> None:
        """``config`` and ``embedding`` (V, D) are the target's, and so are the rows of ``head``."""
        super().__init__()
        self.config = config  # the target's, of which it is one more layer
        self.embedding, self.head = embedding, head  # the target's, hence no parameters here
        width = config.hidden_size
        self.fusion = nn.Linear(len(config.aux_hidden_state_layer_ids) * width, width, bias=False)
        self.embedding_norm = config.norm(width)
        self.state_norm = config.norm(width)
        self.attention = Attention(config, 2 * width)
        self.attention_post_norm = config.norm(width, config.post_norms)
        self.mlp_norm = config.norm(width)
        self.mlp = MLP(config)
        self.mlp_post_norm = config.norm(width, config.post_norms)
        self.norm = config.norm(width)
        self.rope = config.rope()  # it looks at the whole past, whatever the last layer does
        self.version = 0  # goes up when weights change: what was packed from them is then stale

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence of at most ``capacity`` positions."""
        config, weight = self.config, self.fusion.weight
        return KVCache(
            1, 1, capacity, config.num_key_value_heads, config.head_dim, weight.dtype, weight.device
        )

    @torch.inference_mode()
    def fuse(self, aux_hidden_states: Tensor) -> Tensor:
        """The target's taps (T, n_aux * D) -> states (T, D)."""
        return self.fusion(aux_hidden_states)

    @torch.inference_mode()
    def step(self, ids: Tensor, states: Tensor, cache: KVCache) -> Tensor:
        """Token ids (T,), each one place ahead of its state (T, D) -> own states (T, D).

        Raises ContextError, before anything is changed, if they do not fit the cache.
        """
        places = self.rope.places(cache, len(ids))
        output = self.layer(ids[None], states[None], lambda x: self.attention(x, places, cache, 0))
        cache.advance(len(ids))
        return output[0]

    @torch.inference_mode()
    def apply_final_norm(self, states: Tensor) -> Tensor:
        """States (..., D) -> what the LM head's rows are multiplied with (..., D)."""
        return self.norm(states)

    def with_own_head(self) -> "EagleDraft":
        """The same weights with a head that packs rows for itself: drafts that take turns with
        lists of their own would otherwise pack them anew at every turn."""
        twin = copy.copy(self)
        twin.head = PackedHead(self.head.weight)
        return twin

    def layer(self, ids: Tensor, states: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """The layer itself: ids (B, T), states (B, T, D) -> (B, T, D). ``attend`` is the
        attention over whatever the caller keeps of earlier positions."""
        embedded = self.embedding_norm(self.embedding[ids])  # (B, T, D)
        attended = attend(torch.cat((embedded, self.state_norm(states)), dim=-1))
        x = states + self.attention_post_norm(attended)
        return x + self.mlp_post_norm(self.mlp(self.mlp_norm(x)))


def init_from_target(target: Transformer) -> EagleDraft:
    """A draft that begins as what it is to imitate: a copy of the target's last layer, fed by
    the highest tap and, at first, deaf to the embedding. It learns several times faster than
    from random numbers. Random draws come from torch's generator."""
    draft = build_draft(target)
    width, last = target.config.hidden_size, target.last_layer
    with torch.no_grad():
        draft.fusion.weight.zero_()
        draft.fusion.weight[:, -width:] = torch.eye(width)
        for name in ("query", "key", "value"):
            weight = getattr(draft.attention, name).weight
            weight[:, :width] = torch.randn_like(weight[:, :width]) * 0.01
            weight[:, width:] = getattr(last.attention, name).weight
        for name in ("output", "query_norm", "key_norm"):
            module = getattr(draft.attention, name)
            module.load_state_dict(getattr(last.attention, name).state_dict())
        for name in ("attention_post_norm", "mlp_norm", "mlp", "mlp_post_norm"):
            getattr(draft, name).load_state_dict(getattr(last, name).state_dict())
        draft.state_norm.load_state_dict(last.attention_norm.state_dict())
        draft.norm.load_state_dict(target.norm.state_dict())
        # What these add, where they are there, is added to states in the units of taps.
        for norm in (draft.attention_post_norm, draft.mlp_post_norm):
            for weight in norm.parameters():
                weight.div_(target.config.embedding_scale)
    return draft


def build_draft(target: Transformer) -> EagleDraft:
    """A draft of this target whose own weights have not been set yet."""
    embedding = target.embedding.weight.detach()
    draft = EagleDraft(target.config, embedding, PackedHead(target.head.weight))
    return draft.to(embedding.dtype).eval()
