"""An EAGLE-3 draft as other projects publish it (Li et al., arXiv 2503.01840).

The layer is that of ``eagle_draft``. What differs: an LM head of its own, often over a part of the
vocabulary (``d2t``), and switches for where norms are applied. EAGLE 3.1 normalizes the auxiliary
hidden states before ``fc``, and passes on the output of the final norm instead of its input;
speculators' drafts may add attention to the normalized state.

Knows nothing of files.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minispec.models.eagle_draft import EagleDraft
from minispec.models.kv_cache import KVCache
from minispec.models.lm_head import PackedHead
from minispec.models.model_config import ModelConfig


@dataclass(frozen=True)
class Eagle3Norms:
    """Where a draft has norms, by the names that speculators and vLLM give the settings.

    ``norm_before_residual``: attention is added to the normalized state, not to the state itself.
    ``norm_before_fc``: one norm over all auxiliary hidden states; ``fc_norm``: one for each of
    them. ``norm_output``: the next position gets the output of the final norm as its state."""

    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False


class ReducedHead:
    """An LM head over K ids of a vocabulary of V: all other ids have the logit -inf, so that their
    probability is exactly 0. It packs the rows of the last shortlist, as ``PackedHead``."""

    def __init__(self, weight: Tensor, ids: Tensor, vocab_size: int) -> None:
        """``weight`` (K, D): row i belongs to ``ids[i]``; ids (K,) sorted and unique."""
        self.weight, self.ids, self._vocab_size = weight.detach(), ids, vocab_size
        self._index = torch.full((vocab_size,), -1)  # (V,): the row of each id, -1 for none
        self._index[ids] = torch.arange(len(ids))
        self._selected: Tensor | None = None
        self._packed, self._missing = self.weight, torch.zeros(0, dtype=torch.bool)

    @property
    def vocab_size(self) -> int:
        """V: ids are those of the target."""
        return self._vocab_size

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """(..., D), ids (K',) sorted and unique -> logits of those ids (..., K')."""
        if ids is not self._selected:  # identity, as in PackedHead
            rows = self._index[ids]  # (K',)
            missing, device = rows < 0, self.weight.device
            whole = len(ids) == len(self.ids) and not missing.any()
            self._packed = self.weight if whole else self.weight[rows.clamp(min=0).to(device)]
            self._selected, self._missing = ids, missing.to(device)
        return F.linear(hidden, self._packed).masked_fill(self._missing, -torch.inf)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> logits of every id (..., V)."""
        logits = hidden.new_full((*hidden.shape[:-1], self.vocab_size), -torch.inf)
        logits[..., self.ids.to(hidden.device)] = F.linear(hidden, self.weight)
        return logits

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) -> the ids (T,) of the largest logits, ties to the lowest id, and these logits
        (T,). NaN counts as the largest."""
        logits = F.linear(hidden, self.weight)  # (T, K)
        rows = logits.argmax(-1)
        return self.ids.to(rows.device)[rows], logits.gather(-1, rows[:, None])[:, 0]

    def with_own_packing(self) -> "ReducedHead":
        """A head over the same rows that packs those of another shortlist."""
        return ReducedHead(self.weight, self.ids, self.vocab_size)


class Eagle3Draft(EagleDraft):
    """An EAGLE-3 draft with its own LM head, and perhaps an embedding and norms of its own."""

    head: ReducedHead | PackedHead  # type: ignore[assignment]

    def __init__(
        self,
        config: ModelConfig,
        norms: Eagle3Norms,
        embedding: Tensor,
        head: ReducedHead | PackedHead,
        target_hidden_size: int,
    ) -> None:
        """``config``: the draft's own sizes and norms, with the target's vocabulary, layers and
        auxiliary layers; ``embedding`` (V, D), D the draft's hidden size."""
        super().__init__(config, embedding, head)  # type: ignore[arg-type]
        num_aux = len(config.aux_hidden_state_layer_ids)
        inputs = num_aux * target_hidden_size
        self.placement = norms
        self.fusion = nn.Linear(inputs, config.hidden_size, bias=False)
        self.input_norm = config.build_norm(inputs, norms.norm_before_fc)
        self.fc_norm = nn.ModuleList(
            config.build_norm(target_hidden_size) for _ in range(num_aux * norms.fc_norm)
        )

    @torch.inference_mode()
    def fuse(self, aux_hidden_states: Tensor) -> Tensor:
        """Auxiliary hidden states (T, n_aux * D_target) of the target -> states (T, D)."""
        # Ours are in the units of the embeddings, those of other projects as the target has them.
        states = self.input_norm(aux_hidden_states * self.config.embedding_scale)
        if self.placement.fc_norm:
            parts = states.chunk(len(self.fc_norm), dim=-1)
            norms = zip(self.fc_norm, parts, strict=True)
            states = torch.cat([norm(part) for norm, part in norms], dim=-1)
        return self.fusion(states)

    @torch.inference_mode()
    def step(
        self, ids: Tensor, states: Tensor, cache: KVCache, parents: Sequence[int] | None = None
    ) -> Tensor:
        """States (T, D), ids (T,) -> states (T, D), as ``EagleDraft.step``; with ``norm_output``
        they are normalized already."""
        output = super().step(ids, states, cache, parents)
        return self.norm(output) if self.placement.norm_output else output

    @torch.inference_mode()
    def apply_final_norm(self, states: Tensor) -> Tensor:
        """The draft's own states (..., D) -> hidden states for the LM head (..., D)."""
        return states if self.placement.norm_output else self.norm(states)

    def with_own_head(self) -> "Eagle3Draft":
        """The same weights with a head that packs rows for this draft alone."""
        twin = copy.copy(self)
        head = self.head
        twin.head = (
            head.with_own_packing() if isinstance(head, ReducedHead) else PackedHead(head.weight)
        )
        return twin

    def run_layer(self, ids: Tensor, states: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """ids (B, T), states (B, T, D) -> (B, T, D), as ``EagleDraft.run_layer``, with
        ``norm_before_residual``."""
        embedded = self.embedding_norm(self.embedding[ids.to(self.embedding.device)])  # (B, T, D)
        normalized = self.state_norm(states)  # (B, T, D)
        attended = attend(torch.cat((embedded, normalized), dim=-1))  # (B, T, D)
        x = attended + (normalized if self.placement.norm_before_residual else states)
        return x + self.mlp(self.mlp_norm(x))
